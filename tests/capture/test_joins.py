"""Tables that join a capture that runs: each row once, in a log that goes on."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import psycopg
import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine, Writer
from tests.waiting import wait_until

from headrace.batch import Batch
from headrace.capture.postgres import source as sources
from headrace.log.memory import MemoryLog


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the catalog more often than a user needs it."""
    monkeypatch.setattr(sources, "_LOOK_S", 0.05)


def joined(engine: Engine, topic: str) -> None:
    """Wait until a topic's table has joined."""
    table = topic.rpartition(".")[2]
    engine.until(lambda: any(t.name == table for t in engine.source._startup.began.tables))  # type: ignore[union-attr]
    engine.catch_up()


def ops(engine: Engine, topic: str) -> list[tuple[str, int]]:
    found = []
    for entry in engine.log.read_topic(topic, limit=10_000_000):
        batch = Batch(entry.records)
        ids = batch.records.column("id").to_pylist()
        found += [(chr(op), id_) for op, id_ in zip(batch.op.tolist(), ids, strict=True)]
    return found


def check_order(engine: Engine) -> None:
    """Positions rise over all topics, slice by slice, and none is there twice."""
    positions = []
    for entry in engine.log.read(limit=10_000_000):
        batch = Batch(entry.records)
        positions += [(entry.slice, at) for at in zip(batch.lsn.tolist(), batch.index.tolist(), strict=True)]
    last: dict[int, tuple[int, int]] = {}
    for number, at in positions:
        last[number] = max(last.get(number, (0, 0)), at)
    firsts: dict[int, tuple[int, int]] = {}
    for number, at in positions:
        firsts[number] = min(firsts.get(number, at), at)
    numbers = sorted(last)
    for before, after in itertools.pairwise(numbers):
        assert last[before] < firsts[after]
    assert len({at for _, at in positions}) == len(positions)


def test_a_table_that_is_made_later_joins_with_its_rows(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, v text); INSERT INTO tn VALUES (1, 'a'), (2, 'b')")
    joined(engine, database.topic("tn"))
    database.execute("INSERT INTO tn VALUES (3, 'c'); UPDATE tn SET v = 'x' WHERE id = 1; INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1), ("r", 2), ("c", 3), ("u", 1)]
    assert ops(engine, database.topic()) == [("r", 1), ("c", 2)]
    check_order(engine)


def test_it_joins_once_while_others_write_into_it(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    engine = capture()
    with psycopg.connect(database.dsn) as late:
        late.execute("INSERT INTO t VALUES (-1, 0)")  # has begun before the table is published
        database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8)")
        late.execute("INSERT INTO tn VALUES (-1, 0)")
        writer = Writer(database, "tn")
        with writer:
            deadline = time.monotonic() + 1.0
            while time.monotonic() < deadline:
                engine.round()
            assert database.topic("tn") not in engine.log.topics(), "it waits for who was at work"
            engine.until(lambda: f"server process {late.info.backend_pid}" in caplog.text)
            late.execute("INSERT INTO tn VALUES (-2, 0)")
            late.commit()
            joined(engine, database.topic("tn"))
            at_least = writer.last + 50
            engine.until(lambda: writer.last >= at_least)
    engine.catch_up()
    found = Counter(id_ for _, id_ in ops(engine, database.topic("tn")))
    assert set(found) == {-1, -2, *range(1, writer.last + 1)} and set(found.values()) == {1}
    assert {op for op, _ in ops(engine, database.topic("tn"))} == {"r", "c"}
    check_order(engine)


def test_what_its_snapshot_saw_is_not_taken_from_a_stream_that_is_behind(
    database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8); INSERT INTO tn VALUES (0, 0)")
    wait_until(lambda: engine.source._joins.due)  # nobody polls
    for number in range(1, 20):
        database.execute("INSERT INTO tn VALUES (%s, 0)", number)
        database.execute("UPDATE tn SET x = 1 WHERE id = %s", number - 1)
        database.execute("INSERT INTO t VALUES (%s, 0)", number)
    database.execute("DELETE FROM tn WHERE id = 3")
    with psycopg.connect(database.dsn) as late:
        late.execute("INSERT INTO tn VALUES (100, 0)")
        engine.until(lambda: database.topic("tn") in engine.log.topics())
        late.commit()
    joined(engine, database.topic("tn"))
    database.execute("INSERT INTO tn VALUES (101, 0)")
    engine.catch_up()
    read = [("r", number) for number in range(20) if number != 3]
    assert sorted(ops(engine, database.topic("tn"))[:19]) == read
    assert ops(engine, database.topic("tn"))[19:] == [("c", 100), ("c", 101)]
    check_order(engine)


def test_who_waits_for_the_end_waits_for_tables_that_join(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1)]


def test_one_that_was_made_while_nothing_ran_joins_at_the_next_start(
    database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    log = engine.log
    engine.source.stop()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1); CREATE TABLE to_ (id int)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(log)
    joined(engine, database.topic("tn"))
    assert ops(engine, database.topic("tn")) == [("r", 1)] and ops(engine, database.topic()) == [("c", 1)]
    engine.source.stop()
    database.execute("INSERT INTO tn VALUES (2)")
    engine = capture(log)
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("r", 1), ("c", 2)]


def test_a_connection_that_breaks_begins_it_again(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.capture.postgres.snapshot.PIECE_ROWS", 10)
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn SELECT generate_series(1, 100)")
    engine.until(lambda: engine.source._joins.running is not None)
    database.execute("INSERT INTO tn VALUES (101)")
    database.server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        database.name,
    )
    joined(engine, database.topic("tn"))
    assert sorted(id_ for _, id_ in ops(engine, database.topic("tn"))) == list(range(1, 102))
    check_order(engine)


def test_one_that_cannot_join_is_told_of_and_the_others_go_on(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    engine = capture()
    database.execute("CREATE TABLE tnokey (id int); CREATE UNLOGGED TABLE tu (id int PRIMARY KEY)")
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    joined(engine, database.topic("tn"))
    engine.until(lambda: "public.tnokey matches" in caplog.text and "public.tu matches" in caplog.text)
    assert "UPDATE and DELETE on it would fail" in caplog.text
    assert ops(engine, database.topic("tn")) == [("r", 1)]
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert ops(engine, database.topic()) == [("c", 1)]


def test_a_name_that_begins_to_match(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    engine = capture()
    database.execute("ALTER TABLE other RENAME TO told")
    joined(engine, database.topic("told"))
    assert ops(engine, database.topic("told")) == [("r", 1)]


def test_without_a_snapshot_it_joins_without_its_rows(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture(snapshot="never")
    database.execute("CREATE TABLE tn (id int PRIMARY KEY); INSERT INTO tn VALUES (1)")
    engine.catch_up()
    database.execute("INSERT INTO tn VALUES (2)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("c", 2)]


def test_an_empty_table(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("CREATE TABLE tn (id int PRIMARY KEY)")
    engine.until(lambda: not engine.source._joins.due and engine.source._joins.after > 0)
    database.execute("CREATE TABLE tm (id int PRIMARY KEY); INSERT INTO tm VALUES (5)")
    joined(engine, database.topic("tm"))
    database.execute("INSERT INTO tn VALUES (1)")
    engine.catch_up()
    assert ops(engine, database.topic("tn")) == [("c", 1)] and ops(engine, database.topic("tm")) == [("r", 5)]
    assert isinstance(engine.log, MemoryLog) and threading.active_count() > 0
