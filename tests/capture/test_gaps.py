"""A slot that has lost rows is noticed at the start and at a reconnection; a start goes on behind the gap as told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine

from headrace.capture.base import KIND
from headrace.capture.postgres import gaps
from headrace.capture.postgres.doctor import examination_of, examine
from headrace.capture.postgres.slot_binding import Stranded
from headrace.errors import SourceRefused
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.testing.servers import postgres

LOST = ("gone", "made again", "advanced", "another system", "another timeline", "unfinished resync")
"""What happens to the slot, or to the log's record of it, while nothing is captured."""


def lose(kind: str, database: CapturedDatabase, log: Log) -> None:
    slot = f"headrace_{database.name}"
    if kind in ("gone", "made again", "unfinished resync"):
        database.execute("SELECT pg_drop_replication_slot(%s)", slot)
    if kind == "made again":
        database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    if kind == "advanced":
        database.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", slot)
    with log.transaction() as transaction:
        stored = json.loads(log.records(KIND)[database.name])
        if kind == "another system":
            stored["system_identifier"] = "7"
        if kind == "another timeline":
            stored["timeline"] = 3
        transaction.put(KIND, database.name, json.dumps(stored).encode())
        if kind == "unfinished resync":
            transaction.put("resync", database.name, b'{"at": "yesterday"}')


def events(engine: Engine, database: CapturedDatabase) -> list[Any]:
    return engine.ids(database.topic())


@pytest.mark.parametrize("kind", LOST)
def test_a_gap_is_said_and_closed_or_accepted(
    kind: str, database: CapturedDatabase, capture: Capture, tmp_path: Path
) -> None:
    place = str(tmp_path / "x.headrace")
    for policy in ("snapshot", "accept"):
        database.execute("TRUNCATE t")
        database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 3) i")
        log = MemoryLog()
        engine = capture(log, place=place)
        engine.catch_up()
        database.execute("INSERT INTO t VALUES (4, 4)")
        engine.catch_up()
        engine.source.stop()
        assert events(engine, database) == [1, 2, 3, 4]
        database.execute("UPDATE t SET x = 9 WHERE id = 1")
        database.execute("INSERT INTO t VALUES (5, 5)")
        lose(kind, database, log)
        with pytest.raises(Stranded) as caught:
            capture(log, place=place)
        text = str(caught.value)
        assert "Missing may be changes of public.t that were committed from 0/" in text
        assert "the newest that the log has: 20" in text
        assert "--on-gap snapshot" in text
        assert "--on-gap accept" in text
        engine = capture(log, on_gap=policy, place=place)
        database.execute("INSERT INTO t VALUES (6, 6)")
        engine.catch_up()
        # What the slot still has is not lost, whatever the log says of its server.
        lost = [] if policy == "accept" and "another" not in kind else [5, 1]
        assert sorted(events(engine, database)[4:]) == sorted([*lost, 6])
        (passed,) = gaps.passed_gaps(log, database.name)
        assert (passed.handled, passed.tables) == (policy, ("public.t",))
        assert passed.since_time.startswith("20")
        engine.source.stop()
        # It goes on as any log does.
        engine = capture(log, place=place)
        database.execute("INSERT INTO t VALUES (7, 7)")
        engine.catch_up()
        assert events(engine, database)[-1] == 7
        engine.source.stop()
        database.drop_slots()


@pytest.mark.parametrize(("policy", "code"), [("fail", 2), ("snapshot", 1)])
def test_a_slot_that_is_made_again_while_the_connection_is_lost(
    policy: str, code: int, database: CapturedDatabase, capture: Capture
) -> None:
    """The pipeline ends; a supervisor begins it again where a start goes on by itself (exit code 1)."""
    engine = capture(on_gap=policy)
    engine.catch_up()
    slot = f"headrace_{database.name}"
    (pid,) = database.execute("SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", slot)[0]
    database.execute("SELECT pg_terminate_backend(%s, 10000)", pid)
    database.execute("SELECT pg_drop_replication_slot(%s)", slot)
    database.execute("INSERT INTO t VALUES (1, 1)")
    database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    said = r"stands at .*made again or advanced by hand.*Missing may be changes of public\.t"
    with pytest.raises(Stranded, match=said) as caught:
        engine.until(lambda: False, timeout=60)
    assert caught.value.exit_code == code
    assert engine.ids(database.topic()) == []


def test_an_accepted_gap_keeps_tables_apart_that_join_later(database: CapturedDatabase, capture: Capture) -> None:
    """A table that was made in the gap joins with all of its rows; one of the log's misses what is in the gap."""
    engine = capture()
    engine.catch_up()
    engine.source.stop()
    database.execute("CREATE TABLE t_late (id int PRIMARY KEY)")
    database.execute("INSERT INTO t_late VALUES (1), (2)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    database.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    engine = capture(engine.log, on_gap="accept")
    database.execute("INSERT INTO t_late VALUES (3)")
    engine.catch_up()
    assert sorted(engine.ids(database.topic("t_late"))) == [1, 2, 3]
    assert database.topic() not in engine.log.topics()


def test_a_log_that_does_not_have_all_rows_is_not_compared(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(snapshot="never")
    engine.catch_up()
    engine.source.stop()
    database.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    with pytest.raises(SourceRefused, match=r"began with snapshot=\"never\"") as caught:
        capture(engine.log, snapshot="never", on_gap="snapshot")
    assert "headrace capture resync --unknown-rows append" in caught.value.advice
    engine = capture(engine.log, snapshot="never", on_gap="accept")
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [2]


def test_a_publication_that_was_altered(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    """What it left out is not known, so it is not accepted; tables that are read anew have it."""
    place = str(tmp_path / "x.headrace")
    engine = capture(place=place)
    engine.catch_up()
    engine.source.stop()
    name = f"headrace_{database.name}"
    database.execute(f"DROP PUBLICATION {name}")
    database.execute("INSERT INTO t VALUES (1, 1)")
    database.execute(f"CREATE PUBLICATION {name} FOR TABLE t")
    for policy in ("fail", "accept"):
        with pytest.raises(Stranded, match="was dropped and made again") as caught:
            capture(engine.log, on_gap=policy, place=place)
        assert "A start with --on-gap snapshot does it by itself." in caught.value.advice
    engine = capture(engine.log, on_gap="snapshot", place=place)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2]


def test_a_wrong_server_is_not_taken_for_the_logs(database: CapturedDatabase, capture: Capture) -> None:
    """Without any of the log's tables there is nothing to go on with."""
    engine = capture()
    engine.catch_up()
    engine.source.stop()
    database.execute("ALTER TABLE t RENAME TO other")
    database.execute("CREATE TABLE t_new (id int PRIMARY KEY)")
    with engine.log.transaction() as transaction:
        stored = json.loads(engine.log.records(KIND)[database.name])
        transaction.put(KIND, database.name, json.dumps({**stored, "system_identifier": "7"}).encode())
    with pytest.raises(SourceRefused, match=r"has none of the tables that the log has: public\.t"):
        capture(engine.log, on_gap="accept")


def test_a_slot_that_the_server_has_invalidated() -> None:
    with postgres(settings={"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}) as own:
        database = CapturedDatabase(own, "postgres")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        log = MemoryLog()
        source = database.source()
        source.start(log)
        source.stop()
        database.execute("INSERT INTO t VALUES (1, 1)")
        for _ in range(4):
            own.execute("SELECT pg_logical_emit_message(false, 'x', 'x', true)")
            own.execute("SELECT pg_switch_wal()")
        own.execute("CHECKPOINT")
        with pytest.raises(Stranded, match=r"invalidated.*Missing may be changes of public\.t"):
            database.source().check(log)
        source = database.source(on_gap="snapshot")
        source.check(log)
        source.start(log)
        engine = Engine(source, log)
        engine.catch_up()
        assert engine.ids("postgres.public.t") == [1]
        source.stop()


def test_the_doctor_says_what_a_log_misses(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.catch_up()
    engine.source.stop()
    slot = f"headrace_{database.name}"
    for policy, found in (("accept", ["gap"]), ("snapshot", [])):
        database.execute("SELECT pg_drop_replication_slot(%s)", slot)
        engine = capture(engine.log, on_gap=policy)
        engine.catch_up()
        engine.source.stop()
        about = examination_of(engine.log, database.name, database.dsn, "x.headrace")
        assert [finding.check for finding in examine(about) if finding.check in ("gap", "log")] == found
