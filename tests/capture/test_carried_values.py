"""Values that an update did not send (TOAST), carried forward from the log."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.databases import Database

import headrace as hr
from headrace.capture.postgres import carried_values
from headrace.log.base import Log
from headrace.log.memory import MemoryLog
from headrace.log.sqlite import SqliteLog

from .conftest import Capture, CapturedDatabase, Engine
from .test_unsent import KEYS, LARGE_BYTES, LARGE_SQL, each, table, told

LARGE = LARGE_BYTES.decode()


def test_by_a_key_of_any_type(database: CapturedDatabase, capture: Capture) -> None:
    """The first value is in the log when the capture goes on, the second comes in the update's own batch."""
    names = [f"t{place}" for place in range(len(KEYS))]
    for name, (column, key) in zip(names, KEYS, strict=True):
        table(database, name, column)
        each(database, f"INSERT INTO {name} VALUES ({key}, repeat('x', 9000), NULL, 1)")
    log = MemoryLog()
    capture(log, carries=True).source.stop()
    for name in names:
        each(database, f"UPDATE {name} SET v = 2", f"UPDATE {name} SET b = repeat('b', 8000)::bytea")
        each(database, f"UPDATE {name} SET v = 3")
    engine = capture(log, carries=True)
    engine.catch_up()
    a, b = "x" * 9000, b"b" * 8000
    expected = [("r", a, None, 1, []), ("u", a, None, 2, []), ("u", a, b, 2, []), ("u", a, b, 3, [])]
    found = {key: told(engine, database.topic(name)) for name, key in zip(names, KEYS, strict=True)}
    assert found == dict.fromkeys(KEYS, expected)


class Twins:
    """Two tables with the same rows, of which one sends everything (REPLICA IDENTITY FULL)."""

    COLUMNS = "k int, l text, a text, b bytea, v int"

    def __init__(self, database: Database) -> None:
        self._database = database
        for name in ("t_last", "t_full"):
            each(
                database,
                f"CREATE TABLE {name} ({self.COLUMNS}, PRIMARY KEY (l, k))",
                f"ALTER TABLE {name} ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL",
            )
        each(database, "ALTER TABLE t_full REPLICA IDENTITY FULL")

    def run(self, *statements: str) -> None:
        """Run statements on both tables, in one transaction; none where a key would be there twice."""
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            both = [some.replace("TWIN", name) for name in ("t_last", "t_full") for some in statements]
            self._database.execute("; ".join(both))

    def rows(self, log: Log, name: str) -> list[tuple[Any, ...]]:
        """What inserts and updates say, by their transactions; which row a statement comes to first is the server's."""
        found = []
        for entry in log.read_topic(f"{self._database.name}.public.{name}", limit=10_000_000):
            told = "__unchanged" in entry.records.schema.names
            unsent = entry.records.column("__unchanged").to_pylist() if told else [[]] * entry.records.num_rows
            columns = (entry.records.column(name).to_pylist() for name in ("__lsn", "__op", "k", "l", "a", "b", "v"))
            found += [(lsn, chr(op), *row, names or []) for lsn, op, *row, names in zip(*columns, unsent, strict=True)]
        return sorted((row for row in found if row[1] not in "dt"), key=lambda row: (row[0], str(row[1:])))

    def check(self, log: Log) -> int:
        last, full = self.rows(log, "t_last"), self.rows(log, "t_full")
        assert [row for row in last if row[-1]] == []
        assert last == full
        return len(last)


def statement(rng: random.Random) -> str:
    key = f"k = {rng.randrange(6)} AND l = 'l{rng.randrange(2)}'"
    some = f"k % 3 = {rng.randrange(3)}"
    where = rng.choice([key, key, some, "true"])
    large = f"repeat('{rng.randrange(10)}', {rng.choice([1, 3000, 20000])})"
    insert = (
        f"INSERT INTO TWIN SELECT {rng.randrange(6)} + g, 'l{rng.randrange(2)}', "
        f"{rng.choice(['NULL', large])}, {large}::bytea, 0 FROM generate_series(0, {rng.randrange(3)}) g "
        "ON CONFLICT DO NOTHING"
    )
    return rng.choice(
        [
            insert,
            f"UPDATE TWIN SET v = v + 1 WHERE {where}",
            f"UPDATE TWIN SET v = v + 1 WHERE {where}",
            f"UPDATE TWIN SET a = {large} WHERE {where}",
            f"UPDATE TWIN SET b = {rng.choice(['NULL', large + '::bytea'])}, v = -1 WHERE {where}",
            f"UPDATE TWIN SET k = k + 100 WHERE {where}",
            f"UPDATE TWIN SET k = k - 100 WHERE k >= 100 AND k - 100 NOT IN (SELECT k FROM TWIN) AND {some}",
            f"UPDATE TWIN SET l = 'moved' || l, v = 9 WHERE {key}",
            f"DELETE FROM TWIN WHERE {key}",
            *(["TRUNCATE TWIN"] if rng.random() < 0.2 else []),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_replica_identity_full(
    database: CapturedDatabase, capture: Capture, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is done, in one transaction or in several, in pieces or not, and with captures that end and begin."""
    rng = random.Random(seed)
    if seed:  # what else takes many rows: batches are cut, forgotten and read again, and lie in files
        for name, limit in (("_SLICE_ROWS", 2), ("_HELD", seed), ("_READ_BYTES", 1), ("_ASIDE_BYTES", 30_000)):
            monkeypatch.setattr(carried_values, name, limit)
    twins = Twins(database)
    twins.run("INSERT INTO TWIN SELECT g, 'l' || g % 2, repeat('s', 5000), repeat('t', 5000)::bytea, 0 "
              "FROM generate_series(0, 9) g")  # fmt: skip
    log = MemoryLog()
    engine = capture(log, carries=True, max_open_rows=5, allow_failing_updates=True)
    for _ in range(60):
        twins.run(*(statement(rng) for _ in range(rng.choice([1, 1, 3, 10]))))
        happens = rng.random()
        if happens < 0.2:
            engine.catch_up()
        elif happens < 0.35:
            engine.round()
        elif happens < 0.45:
            engine.source.poll(0.01)  # and never stored
            engine.source.stop()
            engine = capture(log, carries=True, max_open_rows=5, allow_failing_updates=True)
        elif happens < 0.55:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            each(database, f"{others} AND pid <> pg_backend_pid()")
    engine.catch_up()
    assert twins.check(log) > 100


def last(engine: Engine, topic: str, count: int) -> list[tuple[object, ...]]:
    return told(engine, topic)[-count:]


def test_what_was_not_stored_before_a_connection_was_lost_does_not_count(
    database: CapturedDatabase, capture: Capture
) -> None:
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)")
    engine = capture(carries=True)
    each(database, "UPDATE tw SET v = 2", "UPDATE tw SET a = 'later'")
    end = engine.source.end()
    while engine.source.status.position < end:
        engine.source.poll(0.05)  # and not stored
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    each(database, f"{others} AND pid <> pg_backend_pid()")
    engine.until(lambda: engine.rewinds > 0)
    engine.catch_up()
    assert last(engine, database.topic("tw"), 2) == [("u", LARGE, None, 2, []), ("u", "later", None, 2, [])]


def test_a_log_of_before_goes_on(database: CapturedDatabase, capture: Capture) -> None:
    """Updates that were stored as marked are passed over, but for those whose row had another key then."""
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw SELECT g, {LARGE_SQL}, {LARGE_SQL}::bytea, 1 FROM generate_series(1, 3) g")
    log = MemoryLog()
    engine = capture(log)
    each(
        database,
        "UPDATE tw SET v = 2",
        "UPDATE tw SET a = 'newer' WHERE k = 2",
        "UPDATE tw SET k = 33 WHERE k = 3",
        "UPDATE tw SET v = 3",
    )
    engine.catch_up()
    engine.source.stop()
    each(database, "UPDATE tw SET v = 4", "UPDATE tw SET b = 'b' WHERE k = 33", "UPDATE tw SET v = 5")
    engine = capture(log, carries=True)
    engine.catch_up()
    rows = last(engine, database.topic("tw"), 7)
    known = [("u", LARGE, LARGE_BYTES), ("u", "newer", LARGE_BYTES)]
    assert sorted(rows[:3], key=str) == [*((*row, 4, []) for row in known), ("u", None, None, 4, ["a", "b"])]
    assert sorted(rows[4:], key=str) == [*((*row, 5, []) for row in known), ("u", None, b"b", 5, ["a"])]


def test_rows_that_the_log_does_not_have(database: CapturedDatabase, capture: Capture) -> None:
    """They stay marked until they are sent."""
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)")
    engine = capture(carries=True, snapshot="never")
    each(database, "UPDATE tw SET v = 2", f"UPDATE tw SET a = 'x' || {LARGE_SQL}", "UPDATE tw SET v = 3")
    engine.catch_up()
    assert told(engine, database.topic("tw")) == [
        ("u", None, None, 2, ["a"]),
        ("u", "x" + LARGE, None, 2, []),
        ("u", "x" + LARGE, None, 3, []),
    ]


@pytest.mark.parametrize("apart", [True, False], ids=["in batches of their own", "in one batch"])
def test_a_row_that_only_a_dead_letter_has(database: CapturedDatabase, capture: Capture, apart: bool) -> None:
    """What it had before is not what it has now, after a restart either."""
    each(database, "CREATE TABLE tw (k text PRIMARY KEY, a text, b bytea, v int, at timestamp)")
    each(database, "ALTER TABLE tw ALTER a SET STORAGE EXTERNAL")
    each(database, f"INSERT INTO tw SELECT k, {LARGE_SQL}, NULL, 1 FROM unnest('{{x,y}}'::text[]) k")
    log = MemoryLog()
    engine = capture(log, carries=True)
    for refused in (
        f"UPDATE tw SET a = 'new' || {LARGE_SQL}, at = '294276-12-31' WHERE k = 'x'",
        "UPDATE tw SET at = NULL, v = 2",
    ):
        each(database, refused)
        if apart:
            engine.catch_up()
    engine.catch_up()
    topic = database.topic("tw")
    expected = [("u", LARGE, None, 2, []), ("u", None, None, 2, ["a"])]
    assert sorted(last(engine, topic, 2), key=str) == expected
    engine.source.stop()
    each(database, "UPDATE tw SET v = 3")
    engine = capture(log, carries=True)
    engine.catch_up()
    assert sorted(last(engine, topic, 2), key=str) == [(op, a, b, 3, names) for op, a, b, _, names in expected]
    assert "timestamp" in engine.log.read_topic(f"{topic}.dlq")[0].records.column("reason")[0].as_py()


def test_rows_told_by_another_index(database: CapturedDatabase, capture: Capture) -> None:
    """The replica identity changes while the capture runs; keys change that it does not tell of."""
    each(database, "CREATE TABLE tw (k int PRIMARY KEY, other text NOT NULL UNIQUE, a text, b bytea, v int)")
    each(database, "ALTER TABLE tw ALTER a SET STORAGE EXTERNAL")
    each(database, f"INSERT INTO tw SELECT g, 'o' || g, g || {LARGE_SQL}, NULL, 1 FROM generate_series(1, 3) g")
    engine = capture(carries=True)
    each(
        database,
        "UPDATE tw SET v = 2, other = 'x' || k",
        "ALTER TABLE tw REPLICA IDENTITY USING INDEX tw_other_key",
        "UPDATE tw SET k = k + 10, v = 3",
        "UPDATE tw SET other = 'y' || k, v = 4",
        "ALTER TABLE tw REPLICA IDENTITY DEFAULT",
        "UPDATE tw SET k = k - 10, v = 5",
    )
    engine.catch_up()
    rows = last(engine, database.topic("tw"), 12)
    assert rows == [("u", f"{k}{LARGE}", None, v, []) for v in (2, 3, 4, 5) for k in (1, 2, 3)]


def test_columns_that_change_their_names(database: CapturedDatabase, capture: Capture) -> None:
    """A column is known by its name and its place: another one's value is never taken for its own."""
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)", "ALTER TABLE tw ADD c text")
    each(database, "ALTER TABLE tw ALTER c SET STORAGE EXTERNAL", f"UPDATE tw SET c = 'c' || {LARGE_SQL}")
    log = MemoryLog()
    engine = capture(log, carries=True)
    each(database, "ALTER TABLE tw ADD more int", "UPDATE tw SET v = 2")
    swap = [f"ALTER TABLE tw RENAME {old} TO {new}" for old, new in (("a", "t"), ("c", "a"), ("t", "c"))]
    each(database, *swap, "UPDATE tw SET v = 3", "UPDATE tw SET c = 'sent'", "UPDATE tw SET v = 4")
    engine.catch_up()
    rows = last(engine, database.topic("tw"), 4)
    assert rows[0] == ("u", LARGE, None, 2, [])
    assert [(row[1], row[3], row[4]) for row in rows[1:]] == [(None, 3, ["c", "a"]), (None, 3, ["a"]), (None, 4, ["a"])]


def test_tables_that_join_and_chunks(database: CapturedDatabase, capture: Capture) -> None:
    """Rows that the stream did not bring count, and the changes that came while they were read."""
    log = MemoryLog()
    engine = capture(log, carries=True)
    table(database, "tjoin", "k int")
    each(database, f"INSERT INTO tjoin SELECT g, {LARGE_SQL}, NULL, 1 FROM generate_series(1, 3) g")
    topic = database.topic("tjoin")
    engine.until(lambda: topic in log.topics())
    each(database, "UPDATE tjoin SET v = 2")
    engine.catch_up()
    assert last(engine, topic, 3) == [("u", LARGE, None, 2, [])] * 3
    answers: list[dict[str, Any]] = []
    each(database, "SET session_replication_role = replica; UPDATE tjoin SET v = 3")
    engine.source.want_snapshot(["public.tjoin"], "", "", "again", answers.append)
    engine.until(lambda: bool(answers) and not engine.source.status.text.startswith("incremental"))
    each(database, "UPDATE tjoin SET v = 4")
    engine.catch_up()
    assert last(engine, topic, 3) == [("u", LARGE, None, 4, [])] * 3


def test_a_gap_that_was_passed(database: CapturedDatabase, capture: Capture) -> None:
    """What the log has from before it may not be what rows have now."""
    table(database, "tw", "k int")
    each(database, f"INSERT INTO tw SELECT g, {LARGE_SQL}, NULL, 1 FROM generate_series(1, 2) g")
    log = MemoryLog()
    capture(log, carries=True).source.stop()
    database.server.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    each(database, f"UPDATE tw SET a = 'unseen' || {LARGE_SQL} WHERE k = 1")
    engine = capture(log, carries=True, on_gap="accept")
    each(database, "UPDATE tw SET v = 2", f"UPDATE tw SET a = 'seen' || {LARGE_SQL} WHERE k = 1", "UPDATE tw SET v = 3")
    engine.catch_up()
    topic = database.topic("tw")
    assert last(engine, topic, 5) == [
        *[("u", None, None, 2, ["a"])] * 2,
        ("u", "seen" + LARGE, None, 2, []),
        *sorted([("u", "seen" + LARGE, None, 3, []), ("u", None, None, 3, ["a"])], key=lambda row: row[1] is not None),
    ]


def test_a_table_without_a_key_has_nothing_to_carry(database: CapturedDatabase, capture: Capture) -> None:
    """Its rows come whole, or its updates are refused by the server."""
    each(database, "CREATE TABLE tw (a text, b bytea, v int)", "ALTER TABLE tw ALTER a SET STORAGE EXTERNAL")
    each(database, "ALTER TABLE tw REPLICA IDENTITY FULL", f"INSERT INTO tw VALUES ({LARGE_SQL}, NULL, 1)")
    engine = capture(carries=True)
    each(database, "UPDATE tw SET v = 2")
    engine.catch_up()
    assert last(engine, database.topic("tw"), 1) == [("u", LARGE, None, 2, [])]
    each(database, "ALTER TABLE tw REPLICA IDENTITY DEFAULT")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        each(database, "UPDATE tw SET v = 3")


def test_a_hundred_thousand_rows(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    """One update of all, after a restart, with the log on disk: each has its own value, from rows in many entries."""
    table(database, "tw", "k int")
    # Every sixteenth is large enough to lie out of line.
    text = "CASE WHEN g % 16 = 0 THEN lpad(g::text, 2050, 'x') ELSE g::text END"
    each(database, f"INSERT INTO tw SELECT g, {text}, NULL, 1 FROM generate_series(1, 100000) g")
    with contextlib.closing(SqliteLog(tmp_path / "log", writer=True)) as log:
        capture(log, carries=True).source.stop()
        each(database, "UPDATE tw SET v = 2")
        engine = capture(log, carries=True, max_open_rows=20_000)
        held = pa.total_allocated_bytes()
        engine.catch_up()
        assert pa.total_allocated_bytes() - held < 200 << 20
        count = 0
        for entry in log.read_topic(database.topic("tw"), offset=100_000, limit=1_000_000):
            keys, values = entry.records.column("k"), entry.records.column("a")
            texts, large = keys.cast(pa.string()), pc.equal(pc.bit_wise_and(keys, 15), 0)
            assert values.equals(pc.if_else(large, pc.utf8_lpad(texts, 2050, "x"), texts))
            assert "__unchanged" not in entry.records.schema.names
            count += entry.records.num_rows
        assert count == 100_000


def test_as_a_user_declares_it(database: CapturedDatabase) -> None:
    table(database, "tw", "k int")
    app = hr.App("carried", log="memory://")
    rows = app.postgres(database.dsn, tables=r"public\.tw", toast="last")["public.tw"]
    with app.start() as running:
        each(database, f"INSERT INTO tw VALUES (1, {LARGE_SQL}, NULL, 1)", "UPDATE tw SET v = 2")
        running.wait(60)
    assert rows.read().to_arrow().column("a").to_pylist() == [LARGE] * 2
