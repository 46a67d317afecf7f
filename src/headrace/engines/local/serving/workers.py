"""Several processes that serve one pipeline on one port: this one runs it, the others follow its log and answer.

All of them accept connections from one socket, which this process has bound and keeps open. A worker begins to listen
when its models are loaded. When one dies, the others take the connections that wait in the socket's queue; when all
have died, those begun in their place do. Only what a killed worker had already accepted is lost with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import HeadraceError
from headrace.event_log import event

logger = logging.getLogger("headrace")

AGAIN_AFTER = 1.0
LOOK_SECONDS = 0.2
END_SECONDS = 15.0
# Files in which prometheus-client adds up what several processes count.
SHARED_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
PARENT = "HEADRACE_WORKER_OF"
SOCKET = "HEADRACE_WORKER_SOCKET"


class Worker:
    """One process; begun again when it dies."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], listening: socket.socket) -> None:
        self._command = list(command)
        self._environment = {**environment, SOCKET: str(listening.fileno())}
        self._listening = listening
        self._begun_at = 0.0
        self.process = self._begin()

    def _begin(self) -> subprocess.Popen[bytes]:
        self._begun_at = time.monotonic()
        return subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=(self._listening.fileno(),),
        )

    def wait_until_ready(self) -> None:
        """Return when it answers: it writes one line then.

        Raises:
            HeadraceError: it has died.
        """
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise HeadraceError(f"a worker process ended with code {self.process.wait()} before it answered")

    def look(self) -> None:
        """Begin it again where it has died, at most once a second."""
        if self.process.poll() is not None and time.monotonic() - self._begun_at >= AGAIN_AFTER:
            logger.warning(
                "worker %d ended with code %d: begun again",
                self.process.pid,
                self.process.returncode,
                extra=event("worker_ended"),
            )
            self._close()
            self.process = self._begin()

    def end(self) -> None:
        """Ask it to end, by its id; `wait` follows."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()

    def wait(self) -> None:
        """Until it has ended, or must be killed."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def workers(
    listening: socket.socket, count: int, arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[Callable[[], None]]:
    """Start processes of ``headrace`` with these arguments, which all answer now; they end with the block.

    Args:
        listening: the socket that they share, bound and not listening.

    Yields:
        A function to be called now and then: it begins again those that died.
    """
    command = [sys.executable, "-c", "from headrace.cli.main import main; main()", *arguments]
    with tempfile.TemporaryDirectory(prefix="headrace-counts-") as counts:
        own = {**os.environ, **environment, SHARED_COUNTS: counts, PARENT: str(os.getpid())}
        begun: list[Worker] = []
        try:
            begun += [Worker(command, own, listening) for _ in range(count)]
            for worker in begun:
                worker.wait_until_ready()

            def look() -> None:
                for worker in begun:
                    worker.look()

            yield look
        finally:
            for worker in begun:
                worker.end()
            for worker in begun:
                worker.wait()


def inherited_socket() -> socket.socket | None:
    """Return the socket that the process which began this worker has bound; None in a process that is no worker."""
    number = os.environ.get(SOCKET)
    return None if number is None else socket.socket(fileno=int(number))


def end_with_parent(stop: Callable[[], None]) -> None:
    """End this worker when the process that began it is gone, however that went."""
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        stop()

    threading.Thread(target=watch, name="headrace-parent", daemon=True).start()


def is_file(log: str) -> bool:
    """Return whether a log is a file, which other processes can follow.

    >>> is_file("fish.headrace"), is_file("memory://")
    (True, False)
    """
    return "://" not in log or Path(log).exists()
