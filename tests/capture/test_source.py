"""PostgresSource on a real server: snapshot then stream without a gap, positions, resuming, idle slots, text mode."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psycopg
import pytest
from tests.processes import run_python
from tests.waiting import BUSY_S

from headrace.capture.base import Piece, SourceState
from headrace.capture.postgres.receiver import MOST_MESSAGES
from headrace.capture.postgres.slot_binding import SourceRecord
from headrace.errors import SourceRefused
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.log.sqlite import SqliteLog
from headrace.position import Lsn, Position, parse_lsn
from headrace.testing.servers import postgres

from .conftest import Capture, CapturedDatabase, Engine, Writer


def positions(log: Log, topic: str) -> list[Position]:
    found = []
    for entry in log.read_topic(topic, limit=10_000_000):
        pairs = zip(entry.records.column("__lsn").to_pylist(), entry.records.column("__index").to_pylist(), strict=True)
        found += [Position(lsn, index) for lsn, index in pairs]
    return found


def record(log: Log, database: CapturedDatabase) -> SourceRecord:
    found = SourceRecord.load(log, database.name)
    assert found is not None
    return found


# --- snapshot and stream ---


def test_every_row_once_while_others_write(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t SELECT g, 0.5 FROM generate_series(1, 1000) g")
    with Writer(database, first=1001) as writer:
        while writer.last < 1100:
            time.sleep(0.01)
        engine = capture()
        begun = writer.last
        while writer.last < begun + 400:
            engine.round()
    engine.catch_up()
    ids = engine.ids(database.topic())
    assert sorted(ids) == list(range(1, writer.last + 1))
    ops = engine.ids(database.topic(), "__op")
    snapshot_rows = ops.count(ord("r"))
    assert 1100 <= snapshot_rows <= begun
    assert ops == [ord("r")] * snapshot_rows + [ord("c")] * (writer.last - snapshot_rows)
    where = positions(engine.log, database.topic())
    assert where == sorted(set(where))


def test_snapshot_rows_stand_at_the_consistent_point(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE ta (id int PRIMARY KEY); CREATE TABLE tz (id int PRIMARY KEY)")
    for table in ("t", "ta", "tz"):
        database.execute(f"INSERT INTO {table} (id) SELECT generate_series(1, 10)")
    before = int(time.time() * 1e6)
    engine = capture(first_tables=["public.tz"])
    point = record(engine.log, database).consistent_point
    tables = [entry.topic.rpartition(".")[2] for entry in engine.log.read()]
    assert tables == ["tz", "t", "ta"]
    found = [position for table in tables for position in positions(engine.log, database.topic(table))]
    assert found == [Position(point, index) for index in range(30)]
    (ts,) = set(engine.ids(database.topic(), "__ts"))
    assert abs(ts.timestamp() * 1e6 - before) < 10e6
    last = engine.log.read(limit=10**9)[-1]
    assert last.complete


def test_updates_deletes_and_truncates(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    engine = capture()
    database.execute("UPDATE t SET x = 10 WHERE id = 1")
    database.execute("DELETE FROM t WHERE id = 2")
    database.execute("TRUNCATE t")
    engine.catch_up()
    assert [chr(op) for op in engine.ids(database.topic(), "__op")] == list("rrudt")
    assert engine.ids(database.topic(), "x")[2] == 10.0
    batch = engine.log.read_topic(database.topic())[0].records
    assert batch.schema.metadata == {b"headrace.key": b'["id"]', b"headrace.source": database.name.encode()}


def test_tables_says_the_schema_of_the_topics(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture()
    (entry,) = engine.log.read_topic(database.topic())
    assert engine.source.traits.tables == {database.topic(): entry.records.schema}


def test_empty_tables_and_no_snapshot(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine = capture(snapshot="never")
    assert engine.log.topics() == {}
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [2]


# --- resuming ---


def test_resumes_where_the_log_ends(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log)
    database.execute("INSERT INTO t SELECT g FROM generate_series(1, 5) g")
    engine.catch_up()
    engine.source.stop()
    log.close()
    database.execute("INSERT INTO t SELECT g FROM generate_series(6, 9) g")
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log)
    engine.catch_up()
    assert engine.ids(database.topic()) == list(range(1, 10))
    log.close()


def test_what_was_not_stored_comes_again(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    database.execute("INSERT INTO t VALUES (2, 2)")
    while not any(piece.rows for piece in engine.source.poll(0.1)):
        pass  # received, and lost with the process
    engine.source.stop()
    engine = capture(engine.log)
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2]


def test_what_was_stored_and_not_acknowledged_does_not(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    pieces: list[Piece[Lsn]] = []
    while not any(piece.rows for piece in pieces):
        pieces = engine.source.poll(0.1)
    end = pieces[0].position
    assert end is not None
    with engine.log.transaction() as transaction:
        engine._append(transaction, pieces[0])
        engine.source.store(transaction, end)
    engine.source.stop()  # without acknowledge
    assert parse_lsn(database.slot()["confirmed_flush_lsn"]) < end
    engine = capture(engine.log)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2]


def test_the_server_never_knows_more_than_the_log(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    for number in range(30):
        database.execute("INSERT INTO t VALUES (%s, 1)", number)
        engine.round(0.2)
        assert parse_lsn(database.slot()["confirmed_flush_lsn"]) <= record(engine.log, database).acknowledged
    engine.catch_up()
    engine.source.stop()
    assert parse_lsn(database.slot()["confirmed_flush_lsn"]) == record(engine.log, database).acknowledged


class Crash(BaseException):
    """Stands for the end of the process."""


def test_crash_in_the_snapshot_starts_it_again(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY)")
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 250000) g")
    database.execute("INSERT INTO t2 VALUES (1)")

    def crash(_table: str, rows: int, _estimated: int) -> None:
        if rows == 200_000:
            raise Crash

    log = SqliteLog(tmp_path / "log", writer=True)
    with pytest.raises(Crash):
        capture(log, on_progress=crash)
    log.close()
    first = database.slot()
    database.execute("INSERT INTO t VALUES (250001, 1)")
    log = SqliteLog(tmp_path / "log", writer=True)
    assert log.topics() == {}
    engine = capture(log)
    assert parse_lsn(database.slot()["confirmed_flush_lsn"]) > parse_lsn(first["confirmed_flush_lsn"])
    engine.catch_up()
    assert engine.ids(database.topic()) == list(range(1, 250_002))
    assert engine.ids(database.topic("t2")) == [1]
    log.close()


@pytest.mark.parametrize("point", ["snapshot.slot-created", "snapshot.piece-staged", "snapshot.before-publish"])
def test_killed_in_the_snapshot(database: CapturedDatabase, capture: Capture, tmp_path: Path, point: str) -> None:
    database.execute("INSERT INTO t VALUES (1, 1)")
    program = f"""
from headrace.log.sqlite import SqliteLog
from headrace.capture.postgres.source import PostgresSource
log = SqliteLog({str(tmp_path / "log")!r}, writer=True)
source = PostgresSource({database.dsn!r}, app={database.name!r}, prefix={database.name!r}, tables=[r"public\\.t"])
source.check(log)
source.start(log)
"""
    result = run_python([sys.executable, "-c", program], env={"HEADRACE_FAULT": point}, check=False)
    assert result.returncode == -9
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1, 2]
    log.close()


def test_waits_for_the_dead_reader_of_its_slot(database: CapturedDatabase, capture: Capture) -> None:
    first = capture()
    threading.Timer(0.5, first.source.stop).start()
    second = capture(first.log)
    database.execute("INSERT INTO t VALUES (1, 1)")
    second.catch_up()
    assert second.ids(database.topic()) == [1]


# --- a server that goes away ---


def test_the_server_restarts(tmp_path: Path) -> None:
    with postgres() as server:
        database = CapturedDatabase(server, "postgres")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        log = MemoryLog()
        engine = Engine(database.source(), log)
        engine.source.check(log)
        engine.source.start(log)
        database.execute("INSERT INTO t VALUES (1, 1)")
        engine.catch_up()
        database.execute("INSERT INTO t SELECT g FROM generate_series(2, 2000) g")
        server.stop("immediate")
        while engine.source.status.state is SourceState.CONNECTED:
            engine.round()
        assert engine.source.status.state is SourceState.RETRYING and "again in" in engine.source.status.text
        begun = time.monotonic()
        assert engine.source.poll(0.05) == []
        assert time.monotonic() - begun < BUSY_S
        server.start()
        database.execute("INSERT INTO t VALUES (2001, 1)")
        engine.until(lambda: len(engine.ids(database.topic())) >= 2001)
        engine.catch_up()
        assert engine.ids(database.topic()) == list(range(1, 2002))
        assert "streaming" in engine.source.status.text
        engine.source.stop()


def test_the_walsender_is_terminated(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    with Writer(database) as writer:
        for _ in range(3):
            aim = writer.last + 100
            while writer.last < aim:
                engine.round()
            database.server.execute("SELECT pg_terminate_backend(%s)", database.slot()["active_pid"])
            engine.until(lambda: engine.source.status.state is SourceState.RETRYING)
            engine.until(lambda: engine.source.status.state is SourceState.CONNECTED)
    engine.catch_up()
    assert engine.ids(database.topic()) == list(range(1, writer.last + 1))
    assert engine.rewinds == 3


def test_slot_dropped_while_it_runs(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    pid = database.slot()["active_pid"]
    database.server.execute("SELECT pg_terminate_backend(%s, 5000)", pid)
    database.server.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    with pytest.raises(SourceRefused, match="is gone"):
        engine.until(lambda: False, 10)


def test_publication_dropped_while_it_runs(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute(f"DROP PUBLICATION headrace_{database.name}")
    database.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(SourceRefused, match="publication"):
        engine.until(lambda: False, 10)


# --- transactions ---


def test_large_transaction_comes_in_pieces(database: CapturedDatabase, capture: Capture) -> None:
    rows = 2 * MOST_MESSAGES  # more than is read at once, however late it is read
    engine = capture(max_open_rows=1000)
    with psycopg.connect(database.dsn) as connection:
        connection.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, %s) g", [rows])
        connection.execute("INSERT INTO t VALUES (0, 1)")
    database.execute("INSERT INTO t VALUES (%s, 1)", rows + 1)
    engine.catch_up()
    assert [piece.open for piece in engine.pieces].count(True) >= 1
    assert any(piece.continued and not piece.open for piece in engine.pieces)
    assert engine.ids(database.topic()) == [*range(1, rows + 1), 0, rows + 1]
    where = positions(engine.log, database.topic())
    assert [item.index for item in where] == [*range(rows + 1), 0]
    assert where == sorted(where)


def test_connection_lost_in_a_large_transaction(database: CapturedDatabase, capture: Capture) -> None:
    """Pieces already staged are discarded and come again; nothing is doubled."""
    engine = capture(max_open_rows=500)
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 300000) g")
    engine.until(lambda: bool(engine.pieces) and engine.pieces[-1].open)
    pid = database.slot()["active_pid"]
    assert pid is not None
    database.server.execute("SELECT pg_terminate_backend(%s)", pid)
    engine.catch_up(60)
    assert np.array_equal(engine.ids(database.topic()), np.arange(1, 300_001))
    assert engine.rewinds == 1


def test_one_transaction_over_two_tables_is_one_slice(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY)")
    engine = capture()
    with psycopg.connect(database.dsn) as connection:
        connection.execute("INSERT INTO t VALUES (1, 1)")
        connection.execute("INSERT INTO t2 VALUES (1)")
    engine.catch_up()
    assert len({entry.slice for entry in engine.log.read()}) == 1


# --- progress ---


def test_idle_slot_moves_when_only_other_tables_are_written(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE other (id int)")
    engine = capture()
    before = parse_lsn(database.slot()["confirmed_flush_lsn"])
    database.execute("INSERT INTO other SELECT generate_series(1, 10000)")
    written = parse_lsn(database.execute("SELECT pg_current_wal_lsn()::text")[0][0])
    engine.until(lambda: parse_lsn(database.slot()["confirmed_flush_lsn"]) >= written)
    assert written > before + 100_000
    assert record(engine.log, database).acknowledged >= written


def test_idle_position_waits_for_what_is_not_stored(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    while not any(piece.rows for piece in engine.source.poll(0.1)):
        pass
    time.sleep(1.1)
    assert engine.source.poll(0.1) == []


def test_waiting_ends_promptly(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.catch_up()
    assert max(engine.catch_up() for _ in range(5)) < BUSY_S
    database.execute("INSERT INTO t VALUES (1, 1)")
    assert engine.catch_up() < BUSY_S
    assert engine.ids(database.topic()) == [1]


def test_waiting_covers_asynchronous_commits(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for number in range(1, 6):
            connection.execute("INSERT INTO t VALUES (%s, 1)", [number])
            assert engine.catch_up() < BUSY_S
            assert engine.ids(database.topic()) == list(range(1, number + 1))


def test_waiting_ends_after_a_switch_of_the_segment(database: CapturedDatabase, capture: Capture) -> None:
    """The insert position then stands behind the new segment's header."""
    engine = capture()
    database.execute("SELECT pg_switch_wal()")
    assert engine.catch_up() < BUSY_S


def test_wake_ends_a_poll(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.catch_up()
    engine.source.poll(0)
    threading.Timer(0.2, engine.waker.wake).start()
    begun = time.monotonic()
    while engine.source.poll(60) == [] and time.monotonic() - begun < 0.2:
        pass
    assert time.monotonic() - begun < BUSY_S


def test_a_lone_transaction_comes_at_once(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.catch_up()
    waits = []
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        for number in range(20):
            connection.execute("INSERT INTO t VALUES (%s, 1)", [number])
            begun = time.monotonic()
            engine.until(lambda: len(engine.ids(database.topic())) > number)  # noqa: B023
            waits.append(time.monotonic() - begun)
    assert np.median(waits) < 0.5


def test_a_busy_engine_does_not_lose_its_connection(tmp_path: Path) -> None:
    """An engine that works for longer than wal_sender_timeout."""
    with postgres(settings={"wal_sender_timeout": "1500ms"}) as server:
        database = CapturedDatabase(server, "postgres")
        database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
        log = MemoryLog()
        engine = Engine(database.source(), log)
        engine.source.start(log)
        time.sleep(4)
        database.execute("INSERT INTO t VALUES (1, 1)")
        engine.catch_up()
        assert engine.ids(database.topic()) == [1]
        assert engine.rewinds == 0
        engine.source.stop()


# --- types that are not decoded in binary ---


def test_text_mode_for_a_table_with_another_type(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE ti (id int PRIMARY KEY, i interval, n int[], x float8)")
    database.execute("INSERT INTO ti VALUES (1, '1 day 2 hours', '{1,NULL}', 0.1)")
    engine = capture()
    database.execute("INSERT INTO ti VALUES (2, '1 day 2 hours', '{1,NULL}', 0.1)")
    engine.catch_up()
    assert engine.ids(database.topic("ti"), "i") == ["1 day 02:00:00"] * 2
    assert engine.ids(database.topic("ti"), "n") == ["{1,NULL}"] * 2
    assert engine.ids(database.topic("ti"), "x") == [0.1] * 2
    assert engine.rewinds == 0


def test_text_mode_when_such_a_column_is_added(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    database.execute("ALTER TABLE t ADD COLUMN i interval")
    database.execute("INSERT INTO t VALUES (2, 2, '1 hour'), (3, 3, NULL)")
    engine.until(lambda: len(engine.ids(database.topic())) == 3)
    assert engine.ids(database.topic()) == [1, 2, 3]
    last = engine.log.read_topic(database.topic(), offset=1)[-1].records
    assert last.column("i").to_pylist() == ["01:00:00", None]
    assert engine.rewinds == 1


# --- publications of the user's ---


def test_named_publication_with_other_tables_and_a_filter(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    database.execute("CREATE PUBLICATION mine FOR TABLE t (id) WHERE (id > 10), TABLE other")
    database.execute("INSERT INTO t VALUES (1, 1), (11, 1)")
    engine = capture(publication="mine")
    database.execute("INSERT INTO t VALUES (2, 2), (12, 2)")
    database.execute("INSERT INTO other VALUES (7)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [11, 12]
    assert list(engine.log.topics()) == [database.topic()]
    snapshot, stream = (entry.records.schema for entry in engine.log.read_topic(database.topic()))
    assert snapshot.equals(stream, check_metadata=True)
    assert "x" not in snapshot.names


def test_own_publication_is_mended(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE other (id int PRIMARY KEY)")
    database.execute(f"CREATE PUBLICATION headrace_{database.name} FOR TABLE other WITH (publish = 'insert')")
    engine = capture()
    database.execute("INSERT INTO t VALUES (1, 1)")
    database.execute("DELETE FROM t")
    engine.catch_up()
    assert [chr(op) for op in engine.ids(database.topic(), "__op")] == ["c", "d"]


IDENTITIES = {
    "t_keyless": ("(id int)", "", "has no primary key"),
    "t_nothing": ("(id int PRIMARY KEY)", "ALTER TABLE t_nothing REPLICA IDENTITY NOTHING", "is NOTHING"),
    "t_deferrable": ("(id int PRIMARY KEY DEFERRABLE)", "", "is deferrable"),
    "t_dropped": (
        "(id int NOT NULL)",
        "CREATE UNIQUE INDEX i ON t_dropped (id); ALTER TABLE t_dropped REPLICA IDENTITY USING INDEX i; DROP INDEX i",
        "was dropped",
    ),
    "t_unique": ("(id int NOT NULL UNIQUE)", "", "has no primary key"),
    "t_full_generated": (
        "(id int, x int GENERATED ALWAYS AS (id + 1) STORED)",
        "ALTER TABLE t_full_generated REPLICA IDENTITY FULL",
        "has a generated column",
    ),
    "t_key_generated": (
        "(id int, x int GENERATED ALWAYS AS (id + 1) STORED PRIMARY KEY)",
        "",
        "has a generated column",
    ),
    "t_full": ("(id int)", "ALTER TABLE t_full REPLICA IDENTITY FULL", ""),
    "t_nothing_full": ("(id int PRIMARY KEY DEFERRABLE)", "ALTER TABLE t_nothing_full REPLICA IDENTITY FULL", ""),
    "t_index": (
        "(id int NOT NULL)",
        "CREATE UNIQUE INDEX t_j ON t_index (id); ALTER TABLE t_index REPLICA IDENTITY USING INDEX t_j",
        "",
    ),
    "t_beside": ("(id int PRIMARY KEY, x int GENERATED ALWAYS AS (id + 1) STORED)", "", ""),
}


def test_tables_whose_updates_would_fail(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """They are refused by name, and exactly they: what the server then does says so."""
    for name, (columns, then, _) in IDENTITIES.items():
        database.execute(f"CREATE TABLE {name} {columns}; INSERT INTO {name} (id) VALUES (1)")
        if then:
            database.execute(then)
    refused = {name: says for name, (_, _, says) in IDENTITIES.items() if says}
    with pytest.raises(SourceRefused) as caught:
        database.source().check(MemoryLog())
    for name in IDENTITIES:
        assert (f"public.{name}: " in str(caught.value)) == (name in refused)
    assert 'ALTER TABLE "public"."t_keyless" REPLICA IDENTITY FULL' in str(caught.value)
    assert "allow_failing_updates=True" in str(caught.value)
    assert database.execute("SELECT pubname FROM pg_publication") == []

    engine = capture(allow_failing_updates=True)
    warnings = engine.source.traits.warnings
    for name, says in refused.items():
        assert sum(bool(re.search(rf"public\.{name}\b", text)) and says in text for text in warnings) == 1
    for name in IDENTITIES:
        failed = False
        try:
            database.execute(f"UPDATE {name} SET id = 2")
        except psycopg.errors.DatabaseError:
            failed = True
        assert failed == (name in refused), name
        database.execute(f"INSERT INTO {name} (id) VALUES (3)")
    engine.catch_up()
    assert engine.ids(database.topic("t_keyless")) == [1, 3]

    database.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")  # while it runs
    engine.until(lambda: "table public.t: its replica identity is NOTHING" in caplog.text, 60)
    log = engine.log
    engine.source.stop()
    again = database.source()  # a log that has them goes on
    again.check(log)
    assert any("public.t" in text and "NOTHING" in text for text in again.traits.warnings)


def test_many_tables_without_a_key_are_one_warning(
    database: CapturedDatabase, capture: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    """The same holds for those that are unlogged, and for those that come while others are captured."""
    made = "; ".join(f"CREATE TABLE t_{n:03} (id int); CREATE UNLOGGED TABLE t_u{n:03} (id int)" for n in range(200))
    database.execute(f"{made}; ALTER TABLE t_007 REPLICA IDENTITY FULL")
    source = capture(allow_failing_updates=True, debezium={}).source
    keyless, unlogged = source.traits.warnings
    assert keyless.startswith("each of 199 tables (public.t_000, public.t_001, public.t_002 and 196 more): it has no")
    assert unlogged.startswith("each of 200 tables (public.t_u000, public.t_u001, public.t_u002 and 197 more) of ")
    assert len(keyless) < 500 and len(unlogged) < 500
    source.stop()

    engine = capture(app=f"{database.name}_late", prefix="late", tables=[r"public\.(t|late.*)"])
    caplog.clear()
    database.execute("; ".join(f"CREATE TABLE late_{n} (id int)" for n in range(5)))
    database.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    engine.until(lambda: "table public.t: its replica identity is NOTHING" in caplog.text)
    late = [record.getMessage() for record in caplog.records if "public.late" in record.getMessage()]
    named = "each of 5 tables (public.late_0, public.late_1, public.late_2 and 2 more)"
    assert len(late) == 1 and late[0].startswith(f"{named} matches tables=… and is not captured: it has no primary key")


def test_stop_before_start_and_twice(database: CapturedDatabase) -> None:
    source = database.source()
    source.stop()
    source.stop()


def test_a_server_that_does_not_answer_is_left_in_time(database: CapturedDatabase, capture: Capture) -> None:
    """Polling keeps its time-out while a connection attempt hangs."""
    engine = capture()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        engine.source._connection._server = type(engine.source._connection._server)(
            f"postgresql://x@127.0.0.1:{port}/x"
        )
        engine.source._connection.drop("test", at_once=True)
        for _ in range(3):
            begun = time.monotonic()
            assert not any(piece.rows for piece in engine.source.poll(0.1))
            assert time.monotonic() - begun < BUSY_S


def test_an_unlogged_table_is_read_and_does_not_stream(
    database: CapturedDatabase, capture: Capture, tmp_path: Path
) -> None:
    database.execute("CREATE UNLOGGED TABLE t0 (id int PRIMARY KEY)")
    database.execute("INSERT INTO t0 VALUES (7)")
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log)
    (warning,) = engine.source.traits.warnings
    assert "public.t0" in warning and "unlogged" in warning
    assert set(engine.source.traits.tables) == {database.topic("t0"), database.topic()}
    database.execute("INSERT INTO t0 VALUES (8)")
    database.execute("INSERT INTO t VALUES (1, 1)")
    engine.catch_up()
    assert engine.ids(database.topic("t0")) == [7] and engine.ids(database.topic()) == [1]
    engine.source.stop()
    log.close()
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log)
    database.execute("INSERT INTO t VALUES (2, 2)")
    engine.catch_up()
    assert engine.ids(database.topic("t0")) == [7] and engine.ids(database.topic()) == [1, 2]
    log.close()


def test_an_unlogged_table_alone_is_refused(database: CapturedDatabase) -> None:
    database.execute("CREATE UNLOGGED TABLE only_one (id int)")
    with pytest.raises(SourceRefused, match="unlogged"):
        database.source(tables=[r"public\.only_one"]).check(MemoryLog())
