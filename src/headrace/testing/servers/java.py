"""Servers that run on Java: found, started, waited for by asking them, stopped by their own process id.

A server dies with the process that started it, also when that one is killed: see `_Starter`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from headrace.errors import HeadraceError
from headrace.testing.servers.places import free_directory, free_port

OLDEST_JAVA = 17
START_SECONDS = 90.0
STOP_SECONDS = 30.0
# Half the start time and half the memory of the defaults: no second compiler, no collector threads.
JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")
LOG_TAIL = 40


class JavaMissing(HeadraceError):
    """A server cannot run on this machine: no Java, too old a Java, no Maven, or no way to get the jars."""


class ServerFailed(HeadraceError):
    """A server ended, or did not answer within its deadline; the message has the end of its log."""


def java() -> Path:
    """The `java` of JAVA_HOME, or the first one on PATH; 17 or newer.

    Raises:
        JavaMissing: there is none, or it is older.
    """
    home = os.environ.get("JAVA_HOME")
    program = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if program is None:
        where = f"in JAVA_HOME={home}" if home else "on PATH"
        raise JavaMissing(f"there is no Java {where}", advice="apt-get install openjdk-17-jre-headless")
    version = _java_version(program)
    if version < OLDEST_JAVA:
        raise JavaMissing(f"{program} is Java {version}", advice=f"Java {OLDEST_JAVA} or newer is needed.")
    return Path(program)


def maven() -> Path:
    """The `mvn` on PATH.

    Raises:
        JavaMissing: there is none.
    """
    program = shutil.which("mvn")
    if program is None:
        raise JavaMissing("there is no Maven (mvn) on PATH", advice="apt-get install maven")
    return Path(program)


@cache
def _java_version(program: str) -> int:
    """The feature release of a Java: 17 of «17.0.15», 8 of «1.8.0_402»."""
    done = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=60, check=False)
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr)
    if done.returncode or found is None:
        raise JavaMissing(f"{program} -version says nothing useful:\n{done.stderr.strip()}")
    return int(found[1])


class _Starter:
    """Starts children that the kernel kills when this process dies.

    Linux's PR_SET_PDEATHSIG sends the signal when the *thread* that forked ends. Children are therefore started by one
    thread that lives as long as the process, whoever asks. The child sets it on itself, in a small Python that then
    becomes the server: `preexec_fn` would run between fork and exec of a process with threads. Where there is no
    `prctl` (macOS), an orphan stays.
    """

    WRAPPER = (
        "import ctypes, os, sys\n"
        "prctl = getattr(ctypes.CDLL(None), 'prctl', None)\n"
        "if prctl and sys.argv[1] != '0': prctl(1, 9, 0, 0, 0)\n"
        # The parent died before that: nobody would send the signal.
        "if sys.argv[1] not in ('0', str(os.getppid())): sys.exit(1)\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "headrace-servers")

    def start(
        self, command: list[str], *, directory: Path, log: Path, outlives: bool, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        return self._thread.submit(self._start, command, directory, log, outlives, environment).result()

    def _start(
        self, command: list[str], directory: Path, log: Path, outlives: bool, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        parent = "0" if outlives else str(os.getpid())
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", self.WRAPPER, parent, *command],
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in a terminal is for the test, which then stops its servers in order.
                start_new_session=True,
            )


@cache
def _starter(_process: int) -> _Starter:
    """One for each process: a forked child has none of its parent's threads."""
    return _Starter()


class RemovedAtExit(ABC):
    """Servers that a ``with`` block starts, and removes at its end; also where they do not start."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def remove(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


class JavaServer(RemovedAtExit):
    """One JVM in a directory of its own.

    Used as a context manager it is started, and removed at the end. It may be started again after `stop` and `kill`,
    on the same ports and the same data.

    Args:
        directory: where its settings, data and log go; made when missing. A temporary one by default.
        heap: the most that Java's heap may take, as `-Xmx` has it.
        port: where it listens; a free one by default.

    Raises:
        JavaMissing: there is no Java.
    """

    name: ClassVar[str]
    heap = "512m"

    def __init__(self, directory: Path | None = None, *, heap: str | None = None, port: int | None = None) -> None:
        self.java = java()
        self.directory = directory or free_directory(f"headrace-{self.name}-")
        self.heap = heap or self.heap
        self.port = port or free_port()
        self.outlives = False
        """True where it goes on when the process that started it ends; set before `start`."""
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(port {self.port}, {self.directory})"

    @property
    def log(self) -> Path:
        """The output of the server, over all of its starts."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise ServerFailed(f"{self.name} is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while its process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and wait until it answers; nothing happens when it runs.

        Raises:
            ServerFailed: it ended, or did not answer in time.
            JavaMissing: its jars cannot be had.
        """
        if self.running:
            return
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        self._prepare()
        self._process = _starter(os.getpid()).start(
            self._command(),
            directory=self.directory,
            log=self.log,
            outlives=self.outlives,
            environment=self._environment(),
        )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough; nothing happens when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: what a crash of the machine's process looks like. Returns when it is gone."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it on the same ports and data."""
        self.stop()
        self.start()

    def remove(self) -> None:
        """Kill it, if it runs, and delete its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def tail(self, lines: int = LOG_TAIL) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    @abstractmethod
    def _prepare(self) -> None:
        """Write what it needs to start; called before each start."""

    def _command(self) -> list[str]:
        """Return what is run: Java itself, or a script that becomes it."""
        # Kafka's snappy and zstd unpack their native libraries there.
        options = [*JVM, f"-Xmx{self.heap}", f"-Djava.io.tmpdir={self.directory / 'tmp'}"]
        return [str(self.java), *options, *self._arguments()]

    def _environment(self) -> dict[str, str]:
        """Return variables that it gets beside those of this process."""
        return {}

    @abstractmethod
    def _arguments(self) -> list[str]:
        """Return what follows Java's own options: system properties, class path, main class, its arguments."""

    @abstractmethod
    def _answers(self) -> bool:
        """Return whether it does its work; called again and again, returns within a second or so."""

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ServerFailed(f"{self.name} ended with {code}; the end of {self.log}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.name} does not answer in {START_SECONDS:.0f} s; {self.log}:\n{self.tail()}")
            time.sleep(0.02)


def responds(url: str) -> bool:
    """Return whether a server responds to GET with 200."""
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


def listens(port: int) -> bool:
    """Return whether something on loopback accepts connections at a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
