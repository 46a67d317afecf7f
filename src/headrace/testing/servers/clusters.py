"""A cluster on this machine: a head, and workers that register with it, a process each."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import urllib.request
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from headrace.errors import MissingExtra
from headrace.testing.servers.java import JavaServer, RemovedAtExit


class JavaCluster(RemovedAtExit):
    """A head and its workers.

    Used as a context manager it is started, and removed at the end. Each of its servers can be killed and started again
    by itself.

    Attributes:
        head: the server that others register with.
        workers: those others.
    """

    def __init__(self, directory: Path, head: JavaServer, workers: Sequence[JavaServer]) -> None:
        self.directory = directory
        self.head = head
        self.workers = list(workers)

    @property
    @abstractmethod
    def place(self) -> str:
        """What applications are given to find it."""

    @property
    @abstractmethod
    def page(self) -> str:
        """Its page, for a browser."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.head}, {len(self.workers)} workers)"

    @property
    def pid(self) -> int:
        """The process id of its head."""
        return self.head.pid

    @property
    def outlives(self) -> bool:
        """True where it goes on when the process that started it ends; set before `start`."""
        return self.head.outlives

    @outlives.setter
    def outlives(self, outlives: bool) -> None:
        for server in (self.head, *self.workers):
            server.outlives = outlives

    def start(self) -> None:
        """Start what does not run, and wait until every worker is registered.

        Raises:
            ServerFailed: a server ended, or did not answer in time; the others are stopped.
        """
        try:
            self.head.start()
            with ThreadPoolExecutor(len(self.workers) or 1) as pool:
                list(pool.map(lambda worker: worker.start(), self.workers))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the workers, with what they have started, and then the head."""
        with ThreadPoolExecutor(len(self.workers) or 1) as pool:
            list(pool.map(lambda worker: worker.stop(), self.workers))
        self.head.stop()

    def remove(self) -> None:
        """Stop it, if it runs, and delete its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def package_home(package: str, extra: str) -> Path:
    """Return the directory of an installed package, whose wheel brings a whole distribution.

    Raises:
        MissingExtra: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtra(extra, f"a cluster of {extra.title()}")
    return Path(spec.origin).parent


def asked(url: str) -> Any:
    """Return what a server responds to GET as JSON; None while it does not."""
    with contextlib.suppress(OSError, ValueError), urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)
    return None
