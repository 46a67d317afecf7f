"""The snapshot gives the same schema, values and dead letters as the stream, in pieces of fixed size."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import psycopg
import pyarrow as pa
import pytest

from headrace import plain_values
from headrace.batch import Batch
from headrace.capture.base import Waker
from headrace.capture.postgres import row_reader, startup
from headrace.capture.postgres import snapshot as snapshots
from headrace.capture.postgres.catalog import Table
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.snapshot import Converter, Snapshot, SnapshotStale, literal, select
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.errors import SourceRefused, SourceUnavailable
from headrace.inspect.messages import rows as shown
from headrace.log.memory import MemoryLog

from .conftest import Capture, CapturedDatabase, Engine

TYPES = {
    "b": ("boolean", "true"),
    "i2": ("smallint", "-3"),
    "i4": ("integer", "70000"),
    "i8": ("bigint", "5000000000"),
    "o": ("oid", "4000000000"),
    "f4": ("real", "0.1"),
    "f8": ("double precision", "'NaN'"),
    "n": ("numeric(10,3)", "-12.5"),
    "n38": ("numeric(38,0)", "99999999999999999999999999999999999999"),
    "n0": ("numeric", "1.500"),
    "n0nan": ("numeric", "'NaN'"),
    "nneg": ("numeric(3,-2)", "12345"),
    "nbig": ("numeric(50,2)", "1.5"),
    "s": ("text", "'grüße \\ \"x\"'"),
    "v": ("varchar(5)", "'ab '"),
    "c": ("char(5)", "'ab'"),
    "c1": ('"char"', "'x'"),
    "nm": ("name", "'some name'"),
    "d": ("date", "'2024-02-29'"),
    "dbc": ("date", "'0044-03-15 BC'"),
    "ts": ("timestamp", "'2024-02-29 12:34:56.789012'"),
    "ts0": ("timestamp(0)", "'1969-12-31 23:59:59'"),
    "tz": ("timestamptz", "'2024-02-29 12:34:56.7+05:30'"),
    "y": ("bytea", "'\\x00ff'"),
    "u": ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    "j": ("json", '\'{"a":  1, "a": 2}\''),
    "jb": ("jsonb", "'{\"b\": [1, null]}'"),
    "iv": ("interval", "'1 year 2 days 03:04:05.678'"),
    "ti": ("time", "'12:34:56.7'"),
    "tt": ("timetz", "'12:34:56+02'"),
    "mo": ("money", "12.34"),
    "ip": ("inet", "'10.0.0.1'"),
    "ci": ("cidr", "'10.0.0.0/8'"),
    "ma": ("macaddr", "'08:00:2b:01:02:03'"),
    "bi": ("bit(3)", "'101'"),
    "ia": ("int[]", "'{1,NULL,3}'"),
    "ta": ("text[]", "'{\"a b\",NULL}'"),
    "r": ("int4range", "'[1,5)'"),
    "tr": ("tstzrange", "'[2024-01-01 00:00+01,)'"),
    "p": ("point", "'(1.5,2)'"),
    "rc": ("regclass", "'pg_class'"),
    "lsn": ("pg_lsn", "'16/B374D848'"),
    "mood": ("mood", "'so so'"),
    "dom": ("padded", "'ab'"),
    "comp": ("pair", "'(1,\"a b\")'"),
}


def both(engine: Engine, topic: str) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    snapshot, stream = (entry.records for entry in engine.log.read_topic(topic))
    return snapshot, stream


def table_of(database: CapturedDatabase, names: list[str]) -> str:
    columns = ", ".join(f'"{name}" {TYPES[name][0]}' for name in names)
    values = ", ".join(TYPES[name][1] for name in names)
    database.execute("CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE DOMAIN padded AS char(5) NOT NULL DEFAULT ''")
    database.execute("CREATE TYPE pair AS (a int, b text)")
    database.execute(f"CREATE TABLE tt (id serial PRIMARY KEY, {columns})")
    return f"INSERT INTO tt ({', '.join(names)}) VALUES ({values})"


BINARY = [name for name in TYPES if list(TYPES).index(name) < list(TYPES).index("iv")]


@pytest.mark.parametrize("names", [BINARY, list(TYPES)], ids=["binary", "text"])
def test_equal_to_the_stream_for_every_type(database: CapturedDatabase, capture: Capture, names: list[str]) -> None:
    insert = table_of(database, names)
    nulls = "INSERT INTO tt DEFAULT VALUES"
    database.execute(insert)
    database.execute(nulls)
    engine = capture()
    with psycopg.connect(database.dsn) as connection:
        connection.execute(insert.encode())
        connection.execute(nulls)
    engine.catch_up()
    snapshot, stream = both(engine, database.topic("tt"))
    assert snapshot.schema.equals(stream.schema, check_metadata=True)
    for name in names:
        assert str(snapshot.column(name)) == str(stream.column(name)), name


def test_generated_columns_are_left_out(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE tg (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)")
    database.execute("INSERT INTO tg VALUES (1)")
    engine = capture()
    database.execute("INSERT INTO tg VALUES (2)")
    engine.catch_up()
    snapshot, stream = both(engine, database.topic("tg"))
    assert snapshot.schema.equals(stream.schema, check_metadata=True)
    assert "twice" not in snapshot.schema.names


def test_dropped_columns_and_odd_names(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("""CREATE TABLE "t Odd" ("a ""b" int PRIMARY KEY, gone int, "c'\\d" numeric(4,1))""")
    database.execute("""ALTER TABLE "t Odd" DROP COLUMN gone""")
    database.execute("""INSERT INTO "t Odd" VALUES (1, 1.5), (2, 'NaN')""")
    engine = capture()
    database.execute("""INSERT INTO "t Odd" VALUES (3, 2.5), (4, 'NaN')""")
    engine.catch_up()
    topic = database.topic("t_Odd")
    snapshot, stream = both(engine, topic)
    assert snapshot.schema.equals(stream.schema, check_metadata=True)
    assert engine.ids(topic, 'a "b') == [1, 2, 3, 4]
    for records in (snapshot, stream):
        nan = Batch(records).nan("c'\\d")
        assert nan is not None and nan.tolist() == [False, True]
        assert records.column("c'\\d").is_null().to_pylist() == [False, True]
    (entry,) = engine.log.read_topic(topic, offset=2)
    assert [row["c'\\d"] for row in shown(entry, 2, 4)] == [2.5, "NaN"]


def test_what_arrow_cannot_hold_is_a_dead_letter_as_in_the_stream(database: CapturedDatabase, capture: Capture) -> None:
    database.execute(
        "CREATE TABLE td (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, n numeric(5,2), s text)"
    )
    values = """(1, '2024-01-01', '2024-01-01', '2024-01-01', 1.5, 'good'),
        (2, 'infinity', '2024-01-01 12:00', '2024-01-01', 'NaN', 'date'),
        (3, NULL, '-infinity', 'infinity', 'NaN', 'three'),
        (4, '2024-01-01', '294270-01-01', '294270-01-01 00:00+00', 1.5, NULL),
        (5, NULL, NULL, NULL, NULL, NULL),
        (6, 'infinity', '-infinity', 'infinity', 1.5, 'kept'),
        (7, '-infinity', 'infinity', '-infinity', NULL, 'kept'),
        (8, '2024-01-01', '294270-01-01', NULL, 'NaN', 'lost with its NaN')"""
    database.execute(f"INSERT INTO td VALUES {values}")
    engine = capture()
    topic = database.topic("td")
    snapshot_letters = engine.log.read_topic(f"{topic}.dlq")[0].records
    with psycopg.connect(database.dsn) as connection:
        connection.execute("TRUNCATE td")
        connection.execute(f"INSERT INTO td VALUES {values}".encode())
    engine.catch_up()
    stream_letters = engine.log.read_topic(f"{topic}.dlq", offset=2)[-1].records
    assert engine.ids(topic) == [1, 2, 3, 5, 6, 7, None, 1, 2, 3, 5, 6, 7]
    for column in ("d", "ts", "tz"):
        entries = engine.log.read_topic(topic)
        found = [value for entry in entries for value in plain_values.values(entry.records.column(column))]
        assert found[:6] == found[7:] and set(found[4:6]) == {"infinity", "-infinity"}
    assert [row["n"] for entry in entries for row in shown(entry, entry.offset, 100)].count("NaN") == 4
    assert snapshot_letters.column("__index").to_pylist() == [3, 7]
    for name in ("reason", "stage"):
        assert snapshot_letters.column(name).to_pylist() == stream_letters.column(name).to_pylist()
    ours, theirs = (
        [json.loads(row) for row in letters.column("row").to_pylist()] for letters in (snapshot_letters, stream_letters)
    )
    assert ours == theirs
    assert ours[1] == {
        "id": 8,
        "d": "2024-01-01",
        "ts": "294270-01-01 00:00:00",
        "tz": None,
        "n": "NaN",
        "s": "lost with its NaN",
    }


def test_pieces_of_exactly_so_many_rows(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_reader, "_BATCH_BYTES", 10_000)
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 230000) g")
    seen = []
    engine = capture(on_progress=lambda table, rows, _: seen.append((table, rows)))
    slices: dict[int, int] = {}
    for entry in engine.log.read_topic(database.topic(), limit=10**9):
        slices[entry.slice] = slices.get(entry.slice, 0) + entry.records.num_rows
    assert list(slices.values()) == [100_000, 100_000, 30_000]
    begun = [("public.t", 0)] * 2  # what will come, and where it begins
    assert seen == [*begun, ("public.t", 100_000), ("public.t", 200_000), ("public.t", 230_000)]
    assert engine.ids(database.topic(), "__index") == list(range(230_000))


def test_rows_of_children_are_not_the_parents(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("CREATE TABLE t_child (PRIMARY KEY (id)) INHERITS (t)")
    database.execute("INSERT INTO t VALUES (1, 1); INSERT INTO t_child VALUES (2, 2)")
    engine = capture()
    database.execute("INSERT INTO t_child VALUES (3, 3)")
    engine.catch_up()
    assert engine.ids(database.topic()) == [1]
    assert engine.ids(database.topic("t_child")) == [2, 3]


def test_row_security_refuses_rather_than_hides(database: CapturedDatabase, capture: Capture) -> None:
    role = f"limited_{database.name}"
    database.execute(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON t TO {role}")
    database.execute("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE PUBLICATION mine FOR TABLE t")
    try:
        with pytest.raises(SourceRefused, match=r"row security hides rows of public\.t"):
            capture(dsn=database.dsn.replace("postgres@", f"{role}@"), publication="mine")
    finally:
        database.drop_slots()
        database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_table_rewritten_after_the_slot_takes_a_new_snapshot(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old snapshot sees a rewritten table as empty."""
    database.execute("INSERT INTO t VALUES (1, 1)")
    import_snapshot = snapshots.Snapshot._lock
    left = iter([True])

    def rewrite_first(self: snapshots.Snapshot, *arguments: object) -> object:
        if next(left, False):
            database.execute("ALTER TABLE t ALTER COLUMN x TYPE text")
        return import_snapshot(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshots.Snapshot, "_lock", rewrite_first)
    engine = capture()
    assert engine.ids(database.topic(), "x") == ["1"]
    assert issubclass(SnapshotStale, SourceUnavailable)


def test_waiting_for_open_transactions_can_be_interrupted(database: CapturedDatabase) -> None:
    with psycopg.connect(database.dsn) as connection:
        connection.execute("INSERT INTO t VALUES (1, 1)")
        source = database.source()
        source.check(MemoryLog())
        waker = Waker()
        threading.Timer(0.5, waker.interrupt).start()
        with pytest.raises(SourceUnavailable, match="interrupted"):
            source.start(MemoryLog(), waker)
        assert "waits for the transactions that are open" in source.status.text


def test_a_broken_snapshot_leaves_nothing(database: CapturedDatabase, capture: Capture) -> None:
    database.execute("INSERT INTO t SELECT g, 1 FROM generate_series(1, 150000) g")

    def broken(_table: str, _rows: int, _estimated: int) -> None:
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )

    log = MemoryLog()
    database.execute("CREATE TABLE t2 (id int PRIMARY KEY, s text)")
    database.execute("INSERT INTO t2 SELECT g, repeat('x', 1000) FROM generate_series(1, 100000) g")
    with pytest.raises(SourceUnavailable):
        capture(log, on_progress=broken)
    assert log.topics() == {}
    engine = capture(log)
    assert len(engine.ids(database.topic())) == 150_000
    assert len(engine.ids(database.topic("t2"))) == 100_000


def test_literals() -> None:
    assert literal("a\\b'c") == "E'a\\\\b''c'"


@pytest.fixture
def catalog_table(database: CapturedDatabase) -> Iterator[object]:
    source = database.source()
    source.check(MemoryLog())
    yield source._startup.tables[0]


def test_plain_tables_are_selected_plainly(catalog_table: object) -> None:
    assert select(catalog_table) == 'SELECT "id" AS "id", "x" AS "x" FROM ONLY "public"."t"'  # type: ignore[arg-type]
    converter = Converter(catalog_table, "p", lsn=16, ts_us=0)  # type: ignore[arg-type]
    rows, letters = converter.convert(pa.record_batch({"id": pa.array([1], pa.int32()), "x": [0.5]}), 7)
    assert rows.to_pylist()[0]["__index"] == 7
    assert letters is None


@pytest.mark.parametrize("large", [False, True])
def test_several_connections_give_the_same_rows_in_the_same_order(
    database: CapturedDatabase, capture: Capture, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(snapshots, "_RANGE_PAGES", 3)
    monkeypatch.setattr(startup, "PIECE_ROWS", 700)
    if large:
        monkeypatch.setattr(startup, "LARGE_BYTES", 1)
    database.execute("INSERT INTO t SELECT g, g FROM generate_series(1, 9000) g; DELETE FROM t WHERE id % 1000 < 300")
    database.execute("INSERT INTO t SELECT -g, 'NaN' FROM generate_series(1, 500) g")
    database.execute("CREATE TABLE t_empty (id int PRIMARY KEY); CREATE TABLE t_wide (id int PRIMARY KEY, s text)")
    database.execute("INSERT INTO t_wide SELECT g, repeat(md5(g::text), 50) FROM generate_series(1, 300) g")
    read = {}
    for threads in (1, 3):
        options = SnapshotOptions(threads=threads)
        engine = capture(app=f"{database.name}_{threads}", snapshots=options, publication=f"p{threads}")
        read[threads] = {
            table: [
                row
                for entry in engine.log.read_topic(database.topic(table), limit=10**9)
                for row in entry.records.to_pylist()
            ]
            for table in ("t", "t_wide")
        }
        for rows in read[threads].values():
            for row in rows:
                del row["__lsn"], row["__ts"]
        engine.source.stop()
    assert len(read[1]["t"]) == 6800 and repr(read[1]) == repr(read[3])


def test_a_query_that_fails_among_several_ends_them_all(database: CapturedDatabase) -> None:
    with psycopg.connect(database.dsn) as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        (name,) = holder.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
        database.execute("CREATE PUBLICATION p FOR TABLE t")
        (oid,) = database.execute("SELECT 't'::regclass::oid::bigint")[0]
        table = Table(oid, "public", "t", "r", "p", "d", 0)
        with Snapshot(Server(database.dsn), name, [table], "p", threads=2) as snapshot:
            queries = [(1, "SELECT 1 AS a"), (2, "SELECT 1 / 0 AS a"), (3, "SELECT 3 AS a FROM pg_sleep(60)")]
            seen = snapshot.read_each(iter(queries))
            assert next(seen)[0] == 1
            with pytest.raises(SourceRefused, match="division by zero"):
                list(seen)
