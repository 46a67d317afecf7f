"""A database of its own for each test, and an engine that does nothing but append."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.databases import Database, debian_binaries

from headrace.capture.base import Piece, Waker
from headrace.capture.postgres.source import PostgresSource
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.position import Lsn
from headrace.testing.servers import PostgresServer, postgres


@pytest.fixture(scope="session")
def debian() -> Iterator[PostgresServer]:
    """Debian's PostgreSQL 15 with the contrib extensions; skips where it is not installed."""
    with postgres(settings={"fsync": "off", "full_page_writes": "off"}, binaries=debian_binaries()) as running:
        yield running


class CapturedDatabase(Database):
    """A database that sources capture."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        super().__init__(server, name)
        self.sources: list[PostgresSource] = []

    def source(self, **options: Any) -> PostgresSource:
        given = {"app": self.name, "prefix": self.name, "tables": [r"public\.t.*"], **options}
        made = PostgresSource(given.pop("dsn", self.dsn), **given)
        self.sources.append(made)
        return made

    def topic(self, table: str = "t") -> str:
        return f"{self.name}.public.{table}"

    def slot(self, name: str | None = None) -> dict[str, Any]:
        query = """SELECT to_jsonb(s) FROM pg_replication_slots s WHERE slot_name = %s"""
        rows = self.server.execute(query, name or f"headrace_{self.name}")
        return dict(rows[0][0]) if rows else {}

    def drop(self) -> None:
        for source in self.sources:
            source.stop()
        with contextlib.suppress(psycopg.Error):
            super().drop()


@pytest.fixture
def database(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[CapturedDatabase]:
    """A database with a table ``t (id, x)``."""
    made = CapturedDatabase.create(server, request.node.originalname.removeprefix("test_")[:20])
    made.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    try:
        yield made
    finally:
        made.drop()


class Engine:
    """Appends what a source captures, as the local engine does; nothing else."""

    def __init__(self, source: PostgresSource, log: Log) -> None:
        self.source, self.log = source, log
        self.pieces: list[Piece[Lsn]] = []
        self.rewinds = 0
        self.waker = Waker()

    def round(self, timeout: float = 0.05) -> int:
        """One poll and what it brought; the rows."""
        pieces = self.source.poll(timeout)
        reached = [piece.position for piece in pieces if piece.position is not None]
        if pieces:
            with self.log.transaction() as transaction:
                for piece in pieces:
                    self._append(transaction, piece)
                if reached:
                    self.source.store(transaction, reached[-1])
        if reached:
            self.source.acknowledge()
        self.rewinds += sum(piece.rewound for piece in pieces)
        self.pieces += [piece for piece in pieces if not piece.rewound and not piece.idle]
        return sum(piece.rows for piece in pieces)

    @staticmethod
    def _append(transaction: Any, piece: Piece[Lsn]) -> None:
        if piece.rewound:
            transaction.discard_staged()
            return
        transaction.next_slice()
        whole = not piece.open and not piece.continued
        for topic, batch in (*piece.batches, *piece.rejected):
            (transaction.append if whole else transaction.stage)(topic, batch.records)
        if piece.continued and not piece.open:
            transaction.publish()

    def until(self, done: Callable[[], bool], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not done():
            assert time.monotonic() < deadline, f"still not: {self.source.status}"
            self.round()

    def catch_up(self, timeout: float = 60.0) -> float:
        """Until everything committed before now is in the log; the seconds it took."""
        begun = time.monotonic()
        target = self.source.end()
        self.until(lambda: self.source.status.position >= target, timeout)
        return time.monotonic() - begun

    def ids(self, topic: str, column: str = "id") -> list[Any]:
        entries = self.log.read_topic(topic, limit=10_000_000)
        return [value for entry in entries for value in entry.records.column(column).to_pylist()]


Capture = Callable[..., Engine]


@pytest.fixture
def capture(database: CapturedDatabase) -> Capture:
    """Starts a capture of the database into a log: ``capture(log=…, **options of PostgresSource)``."""

    def start(log: Log | None = None, **options: Any) -> Engine:
        into = MemoryLog() if log is None else log
        source = database.source(**options)
        source.check(into)
        engine = Engine(source, into)
        source.start(into, engine.waker)
        return engine

    return start


class Writer:
    """Inserts ids 1, 2, 3, … into a table in a thread, one transaction each, until it is stopped."""

    def __init__(self, database: CapturedDatabase, table: str = "t", first: int = 1) -> None:
        self._database, self._table, self.last = database, table, first - 1
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with psycopg.connect(self._database.dsn, autocommit=True) as connection:
            while not self._stopped.is_set():
                connection.execute(f"INSERT INTO {self._table} VALUES ({self.last + 1}, 0.5)".encode())
                self.last += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
