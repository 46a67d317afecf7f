"""A start that stands still says what it waits for."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from headrace.capture.postgres import startup
from headrace.capture.postgres.client import Replication
from headrace.errors import SourceError
from headrace.log.memory import MemoryLog

from .conftest import CapturedDatabase


@contextlib.contextmanager
def holding(database: CapturedDatabase, *statements: str) -> Iterator[int]:
    """A session that has run these and does nothing more; its server process."""
    with psycopg.connect(database.dsn, application_name="the other") as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection.info.backend_pid
        connection.rollback()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    monkeypatch.setattr(startup, "PATIENCE_S", 0.2)
    caplog.set_level(logging.WARNING, logger="headrace")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["LOCK TABLE t IN ACCESS EXCLUSIVE MODE"], ["a lock on table public.t", "the other", "LOCK TABLE t"]),
        (["ALTER TABLE t ADD COLUMN y int"], ["a lock on table public.t", "the other", "ALTER TABLE"]),
        (["INSERT INTO other VALUES (1)"], ["making slot", "the end of a transaction", "the other", "idle in trans"]),
        (["LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE"], ["making publication", "public.t", "user postgres"]),
    ],
)
def test_a_lock_or_a_transaction(
    database: CapturedDatabase, said: Callable[[], str], statements: list[str], says: list[str]
) -> None:
    database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    source, log, ended = database.source(tables=[r"public\.t"]), MemoryLog(), threading.Event()

    def start() -> None:
        with contextlib.suppress(SourceError):
            source.check(log)
            source.start(log)
        ended.set()

    with holding(database, *statements) as pid:
        threading.Thread(target=start, daemon=True).start()
        deadline = time.monotonic() + 60
        while not all(part in said() for part in (*says, f"server process {pid}")):
            assert time.monotonic() < deadline, said()
            time.sleep(0.05)
        assert not ended.is_set()
    assert ended.wait(60)
    assert "streaming" in source.status.text


def test_another_reader_of_the_slot(
    database: CapturedDatabase, said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.capture.postgres.startup.IN_USE_SECONDS", 1.0)
    log = MemoryLog()
    first = database.source()
    first.check(log)
    first.start(log)
    first.stop()
    deadline = time.monotonic() + 60
    while database.slot()["active_pid"] is not None:  # its walsender goes when it notices
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with contextlib.closing(Replication.open(database.source()._declared.server)) as other:
        name = f"headrace_{database.name}"
        other.command(f"START_REPLICATION SLOT {name} LOGICAL 0/0 (proto_version '1', publication_names '{name}')")
        second = database.source()
        second.check(log)
        with pytest.raises(SourceError, match=r"server process \d+ .*headrace"):
            second.start(log)
        assert "which server process" in said()


def test_a_server_that_does_not_answer(said: Callable[[], str], database: CapturedDatabase) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        source = database.source(dsn=f"postgresql://x@{where}/x?connect_timeout=2")
        with pytest.raises(SourceError):
            source.check(MemoryLog())
        assert f"connecting to {where}/x" in said()
