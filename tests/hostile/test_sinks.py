"""Values and names of every kind, into every sink: each is delivered as it is or refused by itself, and none waits."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pyarrow as pa
import pytest

import headrace as hr
from headrace.log import open_log
from headrace.testing.servers import MongoDbServer, PostgresServer

from ..sinks.conftest import receiver
from ..sinks.events import write
from ..sinks.receiver import Receiver

__all__ = ["receiver"]

pytest.importorskip("pymongo")

MOST = 2**63 - 1
YEAR_US = 31_556_952_000_000


def times(*numbers: int, zone: str | None = "UTC", unit: str = "us") -> pa.Array:
    return pa.array(numbers, pa.int64()).view(pa.timestamp(unit, zone))


def days(number: int) -> pa.Array:
    return pa.array([number], pa.int32()).view(pa.date32())


def broken() -> pa.Array:
    return pa.StringArray.from_buffers(1, pa.array([0, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))


# A column with one value. What it is in PostgreSQL (as text) and in JSON; None: it is refused there.
VALUES: dict[str, tuple[pa.Array, str | None, Any]] = {
    "infinity": (times(MOST), "infinity", "infinity"),
    "minus_infinity": (times(-MOST - 1), "-infinity", "-infinity"),
    "local_infinity": (times(MOST, zone=None), "infinity", "infinity"),
    "before_christ": (times(-62_167_219_200_000_000 - 365 * 86_400_000_000),
                      "0002-01-01 00:00:00+00 BC", "0002-01-01 00:00:00+00 BC"),
    "five_digits": (times(253_402_318_799_000_000), "10000-01-01 04:59:59+00", "10000-01-01 04:59:59+00"),
    "usual_time": (times(0), "1970-01-01 00:00:00+00", "1970-01-01T00:00:00Z"),
    "nanoseconds": (times(1, unit="ns"), None, "1970-01-01 00:00:00.000000001+00"),
    "infinite_day": (days(2**31 - 1), "infinity", "infinity"),
    "old_day": (days(-735_160), "0044-03-15 BC", "0044-03-15 BC"),
    "late_day": (days(4_000_000), "12921-08-18", "12921-08-18"),
    "end_of_day": (pa.array([86_400_000_000], pa.int64()).view(pa.time64("us")), "24:00:00", "24:00:00"),
    "long_duration": (pa.array([MOST], pa.int64()).view(pa.duration("us")), "2562047788:00:54.775807",
                      "2562047788:00:54.775807"),
    "nan": (pa.array([float("nan")]), "NaN", "NaN"),
    "infinite": (pa.array([float("-inf")]), "-Infinity", "-Infinity"),
    "nested_nan": (pa.array([[float("nan"), 1.0]]), "{NaN,1}", ["NaN", 1.0]),
    "past_63_bits": (pa.array([2**63], pa.uint64()), str(2**63), 2**63),
    "all_64_bits": (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1), 2**64 - 1),
    "34_digits": (pa.array([Decimal("9" * 34)]), "9" * 34, "9" * 34),
    "38_digits": (pa.array([Decimal("9" * 38)]), "9" * 38, "9" * 38),
    "76_digits": (pa.array([Decimal("-0." + "7" * 76)], pa.decimal256(76, 76)), "-0." + "7" * 76, "-0." + "7" * 76),
    "no_utf8": (broken(), None, None),
    "no_utf8_in_a_list": (pa.ListArray.from_arrays([0, 1], broken()), None, None),
    "no_utf8_in_a_struct": (pa.StructArray.from_arrays([broken()], ["a"]), None, None),
    "bytes": (pa.array([b"a\xff\x00"]), "\\x61ff00", "Yf8A"),
    "zero_character": (pa.array(["a\0b"]), None, "a\0b"),
    "zero_character_inside": (pa.array([{"a": "\0"}]), None, {"a": "\0"}),
    "large_text": (pa.array(["x" * 2_000_000]), "x" * 2_000_000, "x" * 2_000_000),
    "emoji": (pa.array(["🐟\u2028"]), "🐟\u2028", "🐟\u2028"),
    "nothing_in_a_struct": (pa.array([{}], pa.struct([])), "{}", {}),
    "nothing_inside": (pa.array([{"a": [{}]}], pa.struct([("a", pa.list_(pa.struct([])))])), '{"a": [{}]}',
                       {"a": [{}]}),
    "empty_list": (pa.array([[]], pa.list_(pa.int64())), "{}", []),
    "nulls": (pa.array([[None]], pa.list_(pa.null())), "{NULL}", [None]),
    "a_map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '[["k", 1]]', [["k", 1]]),
    "months": (pa.array([(1, 2, 3)], pa.month_day_nano_interval()), None, [1, 2, 3]),
    "dollar_inside": (pa.array([{"$x": 1, "a.b": 2, "": 3}]), '{"": 3, "$x": 1, "a.b": 2}', {"$x": 1, "a.b": 2, "": 3}),
    # Names that a destination does not have.
    "x" * 70: (pa.array(["a"]), None, "a"),
    "x" * 69 + "y": (pa.array(["b"]), None, "b"),
    "": (pa.array(["c"]), None, "c"),
    "xmin": (pa.array([1]), None, 1),
    "zero\0": (pa.array([1]), None, 1),
    "$dollar": (pa.array([1]), "1", 1),
    "a.dot": (pa.array([1]), "1", 1),
    'quo"te': (pa.array([1]), "1", 1),
}  # fmt: skip
NOT_IN_MONGO = {
    "past_63_bits", "all_64_bits", "38_digits", "76_digits", "zero\0", "$dollar", "a.dot", "", "no_utf8",
    "no_utf8_in_a_list", "no_utf8_in_a_struct",
}  # fmt: skip
NOT_IN_PARQUET = {
    "nothing_in_a_struct", "nothing_inside", "months", "no_utf8", "no_utf8_in_a_list", "no_utf8_in_a_struct"
}  # fmt: skip
NAMES = list(VALUES)


def batches() -> Iterator[hr.Batch]:
    """For each value three rows, of which the middle one has it."""
    for number, (name, (value, _, _)) in enumerate(VALUES.items()):
        ids = pa.array([3 * number, 3 * number + 1, 3 * number + 2])
        column = value.take(pa.array([None, 0, None], pa.int64()))
        yield hr.Batch.of(pa.RecordBatch.from_arrays([ids, column], names=["id", name]), key=["id"])


def refused(log: Path) -> dict[str, dict[int, str]]:
    """By sink, the ids in the dead letters with the reasons."""
    held = open_log(log, writer=False)
    found: dict[str, dict[int, str]] = {}
    try:
        for entry in held.read_topic("in.dlq"):
            for row in entry.records.select(["reason", "row"]).to_pylist():
                sink, _, reason = row["reason"].partition(": ")
                ids = found.setdefault(sink, {})
                id = json.loads(row["row"])["id"]
                assert id not in ids, f"refused twice: {row}"
                ids[id] = reason
    finally:
        held.close()
    return found


def test_every_value_in_every_sink(
    dsn: str,
    query: Callable[..., list[tuple[Any, ...]]],
    mongo: MongoDbServer,
    receiver: Receiver,
    server: PostgresServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pymongo

    write(tmp_path / "log", *batches())
    app = hr.App("shop", log=tmp_path / "log")
    stream = app.topic("in")
    stream.to_table(dsn, "keyed", key="id", name="keyed").to_table(dsn, "added", name="added")
    stream.to_mongo(mongo.uri, "hostile.keyed", key="id", name="mongo")
    stream.to_mongo(mongo.uri, "hostile.added", name="mongo_added")
    stream.to_parquet(tmp_path / "files", name="parquet").to_http(receiver.url, name="http")
    stream.to_console(format="lines", name="console")
    with app.start() as running:
        running.wait(120)
    everything = set(range(3 * len(VALUES)))
    bad = refused(tmp_path / "log")
    # Only rows that hold such a value are refused.
    odd = {(sink, id): reason for sink, ids in bad.items() for id, reason in ids.items() if id % 3 != 1}
    assert not odd
    by_name = {sink: {NAMES[id // 3]: reason for id, reason in ids.items()} for sink, ids in bad.items()}

    wanted = {name for name, (_, text, _) in VALUES.items() if text is None}
    for table in ("keyed", "added"):
        assert set(by_name[table]) == wanted, {item: by_name[table].get(item) for item in set(by_name[table]) ^ wanted}
        with psycopg.connect(dsn, options="-c timezone=UTC") as connection:
            rows = connection.execute(f"select id from {table} order by ctid".encode()).fetchall()
            assert [id for (id,) in rows] == sorted(everything - set(bad[table]))
            for number, (name, (_, text, _)) in enumerate(VALUES.items()):
                if text is not None:
                    column = psycopg.sql.Identifier(name).as_string(connection)
                    look = f"select {column}::text from {table} where id = {3 * number + 1}"
                    assert connection.execute(look.encode()).fetchone() == (text,), name

    answers = {name: value for name, (_, _, value) in VALUES.items() if value is not None}
    for sink, lines in (
        ("http", [request.row for request in receiver.requests]),
        ("console", [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]),
    ):
        assert set(by_name[sink]) == VALUES.keys() - answers.keys()
        assert [line["id"] for line in lines] == sorted(everything - set(bad[sink]))
        found = {NAMES[line["id"] // 3]: line[NAMES[line["id"] // 3]] for line in lines if line["id"] % 3 == 1}
        assert found == answers

    client: Any = pymongo.MongoClient(mongo.uri, tz_aware=True)
    for sink, collection in (("mongo", "keyed"), ("mongo_added", "added")):
        assert set(by_name[sink]) == NOT_IN_MONGO, by_name[sink]
        found = sorted(row["id"] for row in client["hostile"][collection].find({}, ["id"]))
        assert found == sorted(everything - set(bad[sink]))
    assert client["hostile"]["keyed"].find_one({"id": 1})["infinity"] == "infinity"
    client.close()

    assert set(by_name["parquet"]) == NOT_IN_PARQUET, by_name["parquet"]
    files = f"read_parquet('{tmp_path}/files/*.parquet', union_by_name = true)"
    assert [id for (id,) in duckdb.sql(f"select id from {files} order by id").fetchall()] == sorted(
        everything - set(bad["parquet"])
    )
    assert duckdb.sql(f"select late_day::text from {files} where late_day is not null").fetchall() == [("12921-08-18",)]
    # A second run has nothing left to do.
    with app.start() as running:
        running.wait(60)
    assert refused(tmp_path / "log") == bad


def test_what_the_server_refuses_for_a_row_s_sake(
    dsn: str, query: Callable[..., list[tuple[Any, ...]]], server: PostgresServer, tmp_path: Path
) -> None:
    """Checks at the commit, triggers, policies on rows, keys that are one to the table only, too many columns."""
    for statement in (
        "create table parents (id int primary key); insert into parents values (1), (2)",
        "create table deferred (id int primary key, x text,"
        " parent int references parents deferrable initially deferred)",
        "create table triggered (id int primary key, x text, parent int)",
        "create function no() returns trigger language plpgsql as $$ begin"
        " if new.x = 'no' then raise exception 'not that'; end if; return new; end $$",
        "create trigger t before insert on triggered for each row execute function no()",
        "create role policed login",
        "create table policies (id int primary key, x text, parent int)",
        "alter table policies enable row level security",
        "create policy p on policies using (true) with check (x <> 'no')",
        "grant all on policies to policed; create schema headrace authorization policed",
        "create table loosely (id int, x char(5) primary key, parent int)",
    ):
        query(statement)
    write(
        tmp_path / "log",
        hr.Batch.of({"id": [1, 2, 3, 4], "x": ["yes", "no", "yes ", "on"], "parent": [1, 2, 3, 1]}),
    )
    app = hr.App("shop", log=tmp_path / "log")
    stream = app.topic("in")
    small = dsn.replace("postgres@", "policed@")
    try:
        stream.to_table(small, "policies", key="id", name="policies")
        with app.start() as running:
            running.wait(60)
        for table, key in (("deferred", "id"), ("triggered", "id"), ("loosely", "x")):
            stream.to_table(dsn, table, key=key, name=table)
        with app.start() as running:
            running.wait(60)
        assert refused(tmp_path / "log").keys() == {"deferred", "triggered", "policies"}
        for table, wrong in (("deferred", 3), ("triggered", 2), ("policies", 2)):
            assert list(refused(tmp_path / "log")[table]) == [wrong]
            assert query(f"select id from {table} order by 1") == [(id,) for id in range(1, 5) if id != wrong]
        assert query("select id, x from loosely order by 1") == [(2, "no   "), (3, "yes  "), (4, "on   ")]
    finally:
        query("drop owned by policed cascade")
        server.execute("drop role policed")


def test_two_columns_of_one_name(dsn: str, query: Callable[..., list[tuple[Any, ...]]], tmp_path: Path) -> None:
    """They are called as everywhere where rows are shown."""
    doubled = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["id", "x", "x"])
    write(tmp_path / "log", hr.Batch.of(doubled), hr.Batch.of({"id": [2]}))
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("in").to_table(dsn, "out", key="id", name="out").to_parquet(tmp_path / "files", every="10 ms")
    app.run(until="caught-up")
    assert query("select id, x, x_2 from out order by 1") == [(1, 2, 3), (2, None, None)]
    files = f"read_parquet('{tmp_path}/files/*.parquet', union_by_name = true)"
    assert duckdb.sql(f"select id, x, x_2 from {files} order by 1").fetchall() == [(1, 2, 3), (2, None, None)]


@pytest.mark.slow
def test_more_columns_than_a_table_can_have(
    dsn: str, query: Callable[..., list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    wide = {"id": [1, 2], **{f"c{number}": pa.array([number, None]) for number in range(1700)}}
    write(tmp_path / "log", hr.Batch.of({"id": [0]}), hr.Batch.of(wide), hr.Batch.of({"id": [3], "c5": [5]}))
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("in").to_table(dsn, "out", key="id", name="out")
    app.run(until="caught-up")
    assert query("select id from out order by 1") == [(0,), (2,), (3,)]
    assert "cannot have the column" in refused(tmp_path / "log")["out"][1]


def test_a_failure_of_a_library_is_one_row_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that no sink knows of, and over a start in between."""
    from headrace.sinks import http

    given = http.json_rows

    def failing(batch: hr.Batch) -> list[bytes]:
        if 5 in batch.column("id").to_pylist():
            raise OverflowError("no fives")
        return given(batch)

    monkeypatch.setattr(http, "json_rows", failing)
    write(tmp_path / "log", hr.Batch.of({"id": list(range(9))}), hr.Batch.of({"id": [5, 9], "at": [dt.date.max] * 2}))
    with Receiver() as receiver:
        app = hr.App("shop", log=tmp_path / "log")
        app.topic("in").to_http(receiver.url, name="http")
        for _ in range(2):
            app.run(until="caught-up")
        assert [request.row["id"] for request in receiver.requests] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    held = open_log(tmp_path / "log", writer=False)
    try:
        reasons = [row["reason"] for entry in held.read_topic("in.dlq") for row in entry.records.to_pylist()]
    finally:
        held.close()
    assert reasons == ["http: OverflowError: no fives"] * 2
