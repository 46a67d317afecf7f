"""Transactions that are rolled back, in whole or in part, prepared, or cut off: capture goes on behind them.

With `logical_decoding_work_mem=64kB` a few hundred rows are more than the server keeps in memory while it decodes; then
PostgreSQL 18 sends Stream Abort although streaming is off.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from tests.databases import debian_binaries

from headrace.capture.postgres import drift
from headrace.capture.postgres.client import Replication
from headrace.errors import SourceRefused
from headrace.log.memory import MemoryLog
from headrace.testing.servers import PostgresServer, postgres

from .conftest import CapturedDatabase, Engine

N = 800  # rows of about 100 bytes


def insert(table: str, first: int, n: int = N) -> str:
    return f"INSERT INTO {table} SELECT id, id FROM generate_series({first}, {first + n - 1}) id"


def transactions(table: str) -> list[str]:
    """Each a session's statements; what they commit are single rows from 1,000,000 on and what `_kept` says."""
    big = [insert(table, first) for first in (1, 10_000, 20_000)]
    return [
        # The issue's: nested savepoints released, then all of it rolled back.
        f"BEGIN; SAVEPOINT a; {insert(table, 90_000, 1)}; SAVEPOINT b; {big[0]}; RELEASE b; RELEASE a; {big[1]}; "
        "ROLLBACK",
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; SAVEPOINT c; {big[2]}; RELEASE c; RELEASE b; RELEASE a;"
        f" {insert(table, 90_000)}; ROLLBACK",
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; ROLLBACK TO a; {big[1]}; ROLLBACK",
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; SAVEPOINT c; {big[2]}; RELEASE c; ROLLBACK TO b; "
        "ROLLBACK",
        # Parts of these are committed.
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; RELEASE b; ROLLBACK TO a; "
        f"{insert(table, 30_000, 3)}; COMMIT",
        f"BEGIN; {insert(table, 40_000)}; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; RELEASE b; RELEASE a; "
        f"SAVEPOINT c; {big[2]}; ROLLBACK TO c; COMMIT; DELETE FROM {table} WHERE id < 30000",
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; RELEASE b; RELEASE a; PREPARE TRANSACTION 'x'; "
        f"ROLLBACK PREPARED 'x'",
        f"BEGIN; SAVEPOINT a; {insert(table, 50_000)}; SAVEPOINT b; {big[1]}; ROLLBACK TO b; PREPARE TRANSACTION 'x'; "
        f"COMMIT PREPARED 'x'",
        f"BEGIN; TRUNCATE {table}; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; RELEASE b; ROLLBACK",
        # The server process is killed in the middle.
        f"BEGIN; SAVEPOINT a; {big[0]}; SAVEPOINT b; {big[1]}; RELEASE b; RELEASE a; {big[2]}; TERMINATE",
    ]


def run(server: PostgresServer, dsn: str, statements: str) -> None:
    with contextlib.suppress(psycopg.errors.AdminShutdown), psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements.split(";"):
            if "TERMINATE" in statement:
                server.execute("SELECT pg_terminate_backend(%s, 30000)", connection.info.backend_pid)
            else:
                connection.execute(statement.encode())


@pytest.fixture(scope="module", params=["18", "15"])
def small(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """A server that decodes with little memory."""
    binaries = debian_binaries() if request.param == "15" else None
    settings = {"logical_decoding_work_mem": "64kB", "max_prepared_transactions": "8", "fsync": "off"}
    with postgres(settings=settings, binaries=binaries) as server:
        yield server


@pytest.mark.parametrize("plain", [True, False], ids=["socket", "libpq"])
def test_capture_goes_on_behind_what_was_not_committed(
    small: PostgresServer, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replication, "plain", plain)
    name = f"aborted_{'plain' if plain else 'libpq'}"
    small.execute(f"CREATE DATABASE {name}")
    database, log = CapturedDatabase(small, name), MemoryLog()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8); CREATE TABLE other (LIKE t INCLUDING ALL)")
    source = database.source(tables=[r"public\.t"])
    try:
        source.check(log)
        source.start(log)
        engine = Engine(source, log)
        for number, statements in enumerate([*transactions("t"), *transactions("other")]):
            run(small, database.dsn, statements)
            database.execute(insert("t", 1_000_000 + number, 1))
            if number % 4 == 0:  # the rest comes again from its slot, all at once
                engine.catch_up()
                source.stop()
                source = database.source(tables=[r"public\.t"])
                source.check(log)
                source.start(log)
                engine = Engine(source, log)
        open_one = psycopg.connect(database.dsn)
        for statement in (
            insert("t", 200_000),
            "SAVEPOINT a",
            insert("t", 210_000),
            "SAVEPOINT b",
            insert("t", 220_000),
        ):
            open_one.execute(statement.encode())
        small.stop("immediate")
        small.start()
        database.execute(insert("t", 2_000_000, 2))
        engine.catch_up(60)
        inserted = engine.ids(database.topic())
        ops = engine.ids(database.topic(), "__op")
        alive: set[int] = set()
        for row, op in zip(inserted, ops, strict=True):
            (alive.add if chr(op) in "cr" else alive.discard)(row)
        assert sorted(alive) == [row for (row,) in database.execute("SELECT id FROM t ORDER BY id")]
        assert len(alive) > 2 * N
    finally:
        source.stop()
        database.drop()


def test_a_slot_that_sends_prepared_transactions(small: PostgresServer) -> None:
    small.execute("CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)")
    small.execute("SELECT pg_create_logical_replication_slot('both', 'pgoutput', false, true)")
    source = CapturedDatabase(small, "postgres").source(slot="both", snapshot="never")
    try:
        with pytest.raises(SourceRefused, match="two_phase"):
            source.check(MemoryLog())
    finally:
        small.execute("SELECT pg_drop_replication_slot('both')")


@pytest.mark.parametrize("plain", [True, False], ids=["socket", "libpq"])
def test_publication_dropped_and_made_again(
    small: PostgresServer, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server says about it is met although nothing follows; where nothing was missed, capture goes on."""
    monkeypatch.setattr(Replication, "plain", plain)
    # The catalog tells that it is another publication before anything runs (`test_drift.py`): here the stream does.
    monkeypatch.setattr(drift, "check", lambda *_, **__: None)
    name = f"again_{'plain' if plain else 'libpq'}"
    small.execute(f"CREATE DATABASE {name}")
    database = CapturedDatabase(small, name)
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    options = {"tables": [r"public\.t"]}
    try:
        for number in (1, 2, 5, 6):
            log, app = MemoryLog(), f"{name}{number}"
            source = database.source(app=app, prefix=app, **options)
            source.check(log)
            source.start(log)
            Engine(source, log).catch_up()
            source.stop()
            missed, later = number % 2, number // 2 % 2
            if number // 4:
                database.execute(insert("t", number * 10, 1))
            database.execute(f"DROP PUBLICATION headrace_{app}")
            if missed:
                database.execute(insert("t", number * 10 + 1, 1))
            database.execute(f"CREATE PUBLICATION headrace_{app} FOR TABLE ONLY t")
            if later:
                database.execute(insert("t", number * 10 + 2, 1))
            source = database.source(app=app, prefix=app, **options)
            source.check(log)
            source.start(log)
            with pytest.raises(SourceRefused, match="is not there") if missed else contextlib.nullcontext() as caught:
                Engine(source, log).catch_up()
            if caught is not None:
                assert "new snapshot" in str(caught.value)
            source.stop()
            database.drop_slots()
    finally:
        database.drop()
