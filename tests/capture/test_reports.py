"""What people have reported of Debezium and its neighbours, each as a test.

Elsewhere: an incremental snapshot that is stuck until somebody edits offsets (`tests/crash/`, snapshots); NaN and
infinity in numeric(p,s) (`tests/capture/test_debezium_cases.py`, cases 06 to 09).
"""

from __future__ import annotations

import math
import time
from typing import Any

import psycopg
import pytest
from tests.capture.conftest import Capture, CapturedDatabase, Engine
from tests.databases import fresh_database
from tests.waiting import wait_until

from headrace.batch import OPS
from headrace.capture.postgres.checks import Heartbeat
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import Examination, examine
from headrace.log.memory import MemoryLog
from headrace.position import parse_lsn
from headrace.testing.servers import PostgresServer


def column(engine: Engine, topic: str, name: str) -> list[Any]:
    return engine.ids(topic, name)


def test_rows_that_share_one_lsn(database: CapturedDatabase, capture: Capture) -> None:
    """COPY writes many rows in one record of the WAL. The connection is lost between two of them, more than once."""
    engine = capture(max_open_rows=100)
    with psycopg.connect(database.dsn) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY t FROM STDIN") as copy:
            for number in range(5_000):
                copy.write_row((number, number))
        connection.commit()
    for enough in (150, 2_000, 4_000):
        engine.until(lambda least=enough: sum(piece.rows for piece in engine.pieces) >= least)  # type: ignore[misc]
        pid = database.slot().get("active_pid")
        if pid is not None:
            database.execute("SELECT pg_terminate_backend(%s, 10000)", pid)
    engine.catch_up()
    assert engine.ids(database.topic()) == list(range(5_000))
    positions = list(
        zip(column(engine, database.topic(), "__lsn"), column(engine, database.topic(), "__index"), strict=True)
    )
    assert len(set(positions)) == 5_000


def test_rows_between_a_restart_and_the_stored_offset(database: CapturedDatabase, capture: Capture) -> None:
    """What committed after the last acknowledgement, in a transaction that was open at the restart, and while away."""
    engine = capture()
    engine.catch_up()
    with psycopg.connect(database.dsn) as long:
        long.execute("INSERT INTO t VALUES (100, 0)")
        long.commit()
        engine.catch_up()
        long.execute("INSERT INTO t VALUES (101, 0)")  # its WAL lies before the place of the restart
        for number in range(3):
            database.execute("INSERT INTO t VALUES (%s, 0)", number)
        engine.catch_up()
        # As a kill leaves it: stored, and not acknowledged.
        engine.source._connection.drop("killed")
        database.execute("INSERT INTO t VALUES (3, 0)")
        second = capture(engine.log)
        long.commit()
    database.execute("INSERT INTO t VALUES (4, 0)")
    second.catch_up()
    assert second.ids(database.topic()) == [100, 0, 1, 2, 3, 101, 4]


@pytest.mark.parametrize("kind", ["float8", "float4", "numeric"])
def test_nan_and_infinity_in_keys(kind: str, database: CapturedDatabase, capture: Capture) -> None:
    database.execute(f"CREATE TABLE t_odd (id {kind} PRIMARY KEY, x {kind})")
    database.execute("INSERT INTO t_odd VALUES ('NaN', 'NaN'), ('infinity', '-infinity'), (0, 1)")
    engine = capture()
    database.execute("INSERT INTO t_odd VALUES ('-infinity', 'NaN')")
    database.execute("UPDATE t_odd SET x = 'infinity' WHERE id = 'NaN'")
    database.execute("UPDATE t_odd SET id = 5 WHERE id = 'infinity'")
    database.execute("DELETE FROM t_odd WHERE id = 'NaN'")
    database.execute("INSERT INTO t_odd VALUES ('NaN', 2)")
    engine.catch_up()
    topic = database.topic("t_odd")
    assert f"{topic}.dlq" not in engine.log.topics()
    keys = [str(float(str(value))) for value in engine.ids(topic)]
    assert sorted(keys[:3]) == ["0.0", "inf", "nan"]
    found = list(zip(column(engine, topic, "__op"), keys, strict=True))[3:]
    named = {number: name for name, number in OPS.items()}
    events = [(named.get(op, op), key) for op, key in found]
    assert ("c", "-inf") in events
    assert ("u", "nan") in events
    assert [key for op, key in events if op == "d"][-1] == "nan"
    assert events[-1] == ("c", "nan")
    assert math.isinf(float(str(column(engine, topic, "x")[events.index(("u", "nan")) + 3])))


def test_a_heartbeat_table_that_is_not_in_the_publication(database: CapturedDatabase) -> None:
    database.execute("CREATE TABLE beat (id int PRIMARY KEY, at timestamptz)")
    database.execute("CREATE PUBLICATION own FOR TABLE t")
    beat = Heartbeat("INSERT INTO beat VALUES (1, now()) ON CONFLICT (id) DO UPDATE SET at = now()", 1000)
    about = Examination(Server(database.dsn), (r"public\.t",), "", "own", own_publication=False, heartbeat=beat)
    (found,) = [finding for finding in examine(about) if finding.check == "heartbeat"]
    assert found.sql == ('ALTER PUBLICATION "own" ADD TABLE "public"."beat";',)
    database.execute(found.sql[0].removesuffix(";"))
    assert not [finding for finding in examine(about) if finding.check == "heartbeat"]


def test_one_bad_row_stops_nothing(database: CapturedDatabase, capture: Capture) -> None:
    """A time that no 64 bits of microseconds hold, in the snapshot and in the stream: it goes to the dead letters."""
    database.execute("CREATE TABLE t_times (id int PRIMARY KEY, at timestamp)")
    database.execute("INSERT INTO t_times VALUES (1, '2024-01-01'), (2, '294276-12-31'), (3, 'infinity')")
    engine = capture()
    database.execute("INSERT INTO t_times VALUES (4, '294276-12-31'), (5, '2024-01-02')")
    database.execute("UPDATE t_times SET at = '294276-01-01' WHERE id = 1")
    database.execute("INSERT INTO t_times VALUES (6, '4713-01-01 BC')")
    engine.catch_up()
    topic = database.topic("t_times")
    assert engine.ids(topic) == [1, 3, 5, 6]
    letters = column(engine, f"{topic}.dlq", "reason")
    assert len(letters) == 3
    assert all(reason for reason in letters)


def test_a_partition_that_is_added_to_a_published_root(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_root (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)")
    database.execute("CREATE TABLE part_1 PARTITION OF t_root FOR VALUES FROM (0) TO (10)")
    database.execute("INSERT INTO t_root VALUES (1, 1)")
    engine = capture()
    engine.catch_up()
    database.execute("CREATE TABLE part_2 PARTITION OF t_root FOR VALUES FROM (10) TO (20)")
    database.execute("INSERT INTO t_root VALUES (2, 11)")
    database.execute("INSERT INTO part_2 VALUES (3, 12)")
    database.execute("UPDATE t_root SET at = 2 WHERE id = 2")
    engine.catch_up()
    ids = engine.ids(database.topic("t_root"))
    assert ids[:3] == [1, 2, 3]
    assert ids[3:] in ([2], [2, 2])  # a row that changes its partition is deleted in one, and inserted in the other
    assert set(engine.log.topics()) == {database.topic("t_root")}


def test_a_column_that_was_dropped_while_old_wal_still_holds_it(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    engine.catch_up()
    engine.source.stop()
    database.execute("ALTER TABLE t ADD COLUMN more text DEFAULT 'x'")
    database.execute("INSERT INTO t VALUES (1, 1, 'old')")
    database.execute("UPDATE t SET more = 'older' WHERE id = 1")
    database.execute("ALTER TABLE t DROP COLUMN more")
    database.execute("INSERT INTO t VALUES (2, 2)")
    database.execute("ALTER TABLE t ADD COLUMN more int")
    database.execute("INSERT INTO t VALUES (3, 3, 3)")
    engine = capture(engine.log)
    engine.catch_up()
    events = [row for entry in engine.log.read_topic(database.topic()) for row in entry.records.to_pylist()]
    assert [(row["id"], row.get("more")) for row in events] == [(1, "old"), (1, "older"), (2, None), (3, 3)]


def test_a_snapshot_of_82_columns_costs_by_the_cell(database: CapturedDatabase, capture: Capture) -> None:
    """By the processor's time of this process: a cell of a wide table costs at most twice that of a narrow one."""
    wide = ", ".join(f"c{number} {('int', 'float8', 'text', 'timestamptz')[number % 4]}" for number in range(81))
    narrow = ", ".join(wide.split(", ")[:5])
    values = {"int": "i", "float8": "i / 7.0", "text": "'text ' || i", "timestamptz": "now()"}
    seconds = {}
    for name, columns, rows in (("t_narrow", narrow, 54_000), ("t_wide", wide, 4_000)):
        database.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, {columns})")
        chosen = ", ".join(values[part.split()[1]] for part in columns.split(", "))
        database.execute(f"INSERT INTO {name} SELECT i, {chosen} FROM generate_series(1, {rows}) i")
    for name in ("t_narrow", "t_wide", "t_narrow", "t_wide"):
        begun = time.process_time()
        engine = capture(MemoryLog(), tables=[rf"public\.{name}"], prefix=f"{database.name}_{name}")
        seconds[name] = min(seconds.get(name, 1e9), time.process_time() - begun)
        assert len(engine.ids(f"{database.name}_{name}.public.{name}")) == {"t_narrow": 54_000, "t_wide": 4_000}[name]
        engine.source.stop()
        database.drop_slots()
    assert seconds["t_wide"] < 2 * seconds["t_narrow"] + 0.1, seconds


# --- nothing pins the WAL ---


def restart_lsn(database: CapturedDatabase) -> int:
    return parse_lsn(str(database.slot()["restart_lsn"]))


def follows(engine: Engine, database: CapturedDatabase, writer: Any, *, rows: int, times: int) -> None:
    """Write to other tables, of this database or another one; the slot follows each of these writes."""
    marks: list[int] = []
    for _ in range(times):
        (lsn,) = writer.execute("SELECT pg_current_wal_lsn()::text")[0]
        marks.append(parse_lsn(str(lsn)))
        writer.execute("INSERT INTO other SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, %s) i", rows)
        writer.execute("TRUNCATE other")

        def kept() -> bool:
            database.server.execute("CHECKPOINT")
            engine.round()
            return restart_lsn(database) >= marks[-1]

        wait_until(kept, f"restart_lsn behind the write of {rows} rows")
    assert not engine.pieces


@pytest.mark.parametrize("size", ["small", pytest.param("2 GB", marks=pytest.mark.slow)])
@pytest.mark.parametrize("where", ["other tables", "another database"])
def test_a_slot_does_not_grow_while_its_tables_are_idle(
    where: str, size: str, server: PostgresServer, database: CapturedDatabase, capture: Capture
) -> None:
    engine = capture()
    engine.catch_up()
    rows, times = (2_000, 2) if size == "small" else (128_000, 16)  # of about 1.1 kB in the WAL, each
    with fresh_database(server, "busy") as other:
        writer = database if where == "other tables" else other
        writer.execute("CREATE TABLE other (id int, pad text)")
        before = database.server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
        follows(engine, database, writer, rows=rows, times=times)
        after = database.server.execute("SELECT pg_current_wal_lsn() - '0/0'")[0][0]
        assert after - before > (2 << 30 if size == "2 GB" else 4 << 20)
