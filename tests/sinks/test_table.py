"""to_table: a PostgreSQL table follows a topic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.errors import WaitTimeout

from .events import app_on, events, letters, write

Query = Callable[..., list[tuple[Any, ...]]]

# What came, and what is in the table then: key id, columns in their order.
CASES = {
    "inserted": ("""
        op id x
        c  1  a
        r  2  b
        """, [(1, "a"), (2, "b")]),
    "the last of a key wins": ("""
        op id x
        c  1  a
        u  1  b
        c  2  c
        u  1  d
        """, [(1, "d"), (2, "c")]),
    "deleted": ("""
        op id x
        c  1  a
        c  2  b
        d  1  -
        """, [(2, "b")]),
    "deleted and there again": ("""
        op id x
        c  1  a
        d  1  -
        c  1  b
        """, [(1, "b")]),
    "another key": ("""
        op id x was
        c  1  a -
        u  5  a 1
        """, [(5, "a")]),
    "keys that change places": ("""
        op id x was
        c  1  a -
        c  2  b -
        u  3  a 1
        u  1  b 2
        u  2  a 3
        """, [(1, "b"), (2, "a")]),
    "truncated": ("""
        op id x
        c  1  a
        t  -  -
        c  2  b
        """, [(2, "b")]),
    "a value that was not sent": ("""
        op id x y
        c  1  a 7
        u  1  ~ 8
        """, [(1, "a", 8)]),
    "not sent, then sent": ("""
        op id x y
        c  1  a 7
        u  1  ~ 8
        u  1  c 9
        """, [(1, "c", 9)]),
    "a value that was not sent moves with its key": ("""
        op id x y was
        c  1  a 7 -
        u  2  ~ 7 1
        """, [(2, "a", 7)]),
    "moved twice, and its first key is another's": ("""
        op id x y was
        c  1  a 7 -
        u  2  ~ 8 1
        u  3  ~ 9 2
        c  1  b 1 -
        u  2  ~ 2 1
        """, [(2, "b", 2), (3, "a", 9)]),
    "values that were not sent change places": ("""
        op id x y was
        c  1  a 7 -
        c  2  b 8 -
        u  3  ~ 7 1
        u  1  ~ 8 2
        u  2  ~ 7 3
        u  2  ~ 9 -
        """, [(1, "b", 8), (2, "a", 9)]),
    "moved to where one was deleted": ("""
        op id x y was
        c  1  a 7 -
        c  2  b 8 -
        d  2  - - -
        u  2  ~ 7 1
        u  2  c 7 -
        c  1  d 1 -
        d  2  - - -
        u  2  ~ 1 1
        """, [(2, "d", 1)]),
}  # fmt: skip


@pytest.mark.parametrize("split", [False, True], ids=["in one batch", "each event a batch"])
@pytest.mark.parametrize("case", CASES)
def test_a_table_by_key_is_what_its_source_is(case: str, split: bool, dsn: str, query: Query, tmp_path: Path) -> None:
    grid, expected = CASES[case]
    batch = events(grid)
    pieces = [batch.slice(i, 1) for i in range(batch.num_rows)] if split else [batch]
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id")
    if split:  # each of them by a run of its own: read together they would be one part
        for piece in pieces:
            write(tmp_path / "log", piece)
            app.run(until="caught-up")
    else:
        write(tmp_path / "log", *pieces)
        app.run(until="caught-up")
    assert query("select * from out order by id") == expected
    assert letters(tmp_path / "log") == []


def test_without_a_key_every_insert_and_update_is_a_row(dsn: str, query: Query, tmp_path: Path) -> None:
    write(tmp_path / "log", events(CASES["deleted and there again"][0]))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out")
    for _ in range(2):
        app.run(until="caught-up")
    assert query("select id, x from out") == [(1, "a"), (1, "b")]


UTC = dt.UTC
VALUES: dict[str, tuple[pa.DataType, Any, str, Any]] = {
    "boolean": (pa.bool_(), True, "boolean", True),
    "uint8": (pa.uint8(), 255, "smallint", 255),
    "int32": (pa.int32(), -7, "integer", -7),
    "int64": (pa.int64(), 1 << 62, "bigint", 1 << 62),
    "uint64": (pa.uint64(), (1 << 64) - 1, "numeric(20,0)", Decimal((1 << 64) - 1)),
    "float32": (pa.float32(), 0.1, "real", 0.1),
    "float64": (pa.float64(), 0.1 + 0.2, "double precision", 0.1 + 0.2),
    "infinite": (pa.float64(), float("-inf"), "double precision", float("-inf")),
    "decimal": (pa.decimal128(12, 3), Decimal("1.230"), "numeric(12,3)", Decimal("1.230")),
    "text": (pa.string(), 'a "b", \\c\nü', "text", 'a "b", \\c\nü'),
    "empty text": (pa.string(), "", "text", ""),
    "large text": (pa.large_string(), "x", "text", "x"),
    "code": (pa.dictionary(pa.int8(), pa.string()), "red", "text", "red"),
    "bytes": (pa.binary(), b"\x00\xff'", "bytea", b"\x00\xff'"),
    "no bytes": (pa.binary(), b"", "bytea", b""),
    "fixed bytes": (pa.binary(2), b"ab", "bytea", b"ab"),
    "day": (pa.date32(), dt.date(2021, 6, 10), "date", dt.date(2021, 6, 10)),
    "time": (pa.time64("us"), dt.time(1, 2, 3, 4), "time without time zone", dt.time(1, 2, 3, 4)),
    "moment": (pa.timestamp("us", "UTC"), dt.datetime(2021, 6, 10, 1, 2, 3, 4, UTC), "timestamp with time zone",
               dt.datetime(2021, 6, 10, 1, 2, 3, 4, UTC)),
    "elsewhere": (pa.timestamp("ns", "Asia/Tokyo"), dt.datetime(2021, 6, 10, 1, tzinfo=UTC),
                  "timestamp with time zone", dt.datetime(2021, 6, 10, 1, tzinfo=UTC)),
    "local": (pa.timestamp("ms"), dt.datetime(2021, 6, 10, 1, 2), "timestamp without time zone",
              dt.datetime(2021, 6, 10, 1, 2)),
    "duration": (pa.duration("ms"), dt.timedelta(days=2, milliseconds=5), "interval",
                 dt.timedelta(days=2, milliseconds=5)),
    "numbers": (pa.list_(pa.float64()), [1.5, None], "double precision[]", [1.5, None]),
    "fixed numbers": (pa.list_(pa.int32(), 2), [1, 2], "integer[]", [1, 2]),
    "texts": (pa.list_(pa.string()), ["a b", 'c"\\', "", None, "NULL"], "text[]", ["a b", 'c"\\', "", None, "NULL"]),
    "no texts": (pa.list_(pa.string()), [], "text[]", []),
    "moments": (pa.list_(pa.timestamp("us", "UTC")), [dt.datetime(2021, 6, 10, tzinfo=UTC)],
                "timestamp with time zone[]", [dt.datetime(2021, 6, 10, tzinfo=UTC)]),
    "nested": (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]), {"a": 1, "b": ["x"]}, "jsonb",
               {"a": 1, "b": ["x"]}),
    "matrix": (pa.list_(pa.list_(pa.int64())), [[1], []], "jsonb", [[1], []]),
}  # fmt: skip


def test_values_of_every_type_come_back_the_same(dsn: str, query: Query, tmp_path: Path) -> None:
    columns = {name: pa.array([value, None, value], kind) for name, (kind, value, _, _) in VALUES.items()}
    rows = pa.RecordBatch.from_pydict({"id": [1, 2, 3], **columns})
    # A slice has offsets of its own in every buffer.
    write(tmp_path / "log", hr.Batch.of(rows), hr.Batch.of(rows).slice(2))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id").to_table(dsn, "added", name="added")
    app.run(until="caught-up")
    assert letters(tmp_path / "log") == []
    types = query(
        "select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'out'::regclass"
        " and attnum > 1"
    )
    assert dict(types) == {name: one[2] for name, one in VALUES.items()}
    expected = [item[3] for item in VALUES.values()]
    assert [list(row[1:]) for row in query("select * from out order by id")] == [
        expected,
        [None] * len(VALUES),
        expected,
    ]
    assert query("select count(*) from added") == [(4,)]


def test_words_of_sql_and_odd_names_are_names(dsn: str, query: Query, tmp_path: Path) -> None:
    rows = pa.RecordBatch.from_pydict({"select": [1], 'a "b"': ["x"], "Größe; drop table t": [1.5], "%s": [7]})
    write(tmp_path / "log", hr.Batch.of(rows))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "Order.user", key=["select", "%s"])
    app.run(until="caught-up")
    assert query('select "select", "a ""b""", "Größe; drop table t" from "Order"."user"') == [(1, "x", 1.5)]
    assert query("select sink, next_offset from headrace.sinks") == [("postgres:Order.user", 1)]


def test_columns_are_added_and_found_by_name(dsn: str, query: Query, tmp_path: Path) -> None:
    write(
        tmp_path / "log",
        events("op id x n\nc 1 a -"),
        events("op y id\nc 2.5 2"),
        events("op id n\nc 3 7"),
        events("op x id\nu b 1"),
    )
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id")
    app.run(until="caught-up")
    found = query("select id, x, y, n from out order by id")
    assert found == [(1, "b", None, None), (2, None, 2.5, None), (3, None, None, 7)]


def test_rows_that_the_table_refuses_go_to_the_dead_letters_once(dsn: str, query: Query, tmp_path: Path) -> None:
    query("create table out (id int primary key, x text not null check (x <> 'no'), extra int default 4)")
    write(
        tmp_path / "log",
        events("""
            op id         x
            c  1          a
            c  2          no
            c  3          -
            c  -          e
            c  9999999999 f
            c  4          g
            """),
        events("op x\nc h"),
    )
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id")
    for _ in range(2):
        app.run(until="caught-up")
    assert query("select * from out order by id") == [(1, "a", 4), (4, "g", 4)]
    found = letters(tmp_path / "log")
    assert [item.partition(" | ")[2] for item in found] == [
        '{"id": 2, "x": "no"}', '{"id": 3, "x": null}', '{"id": null, "x": "e"}', '{"id": 9999999999, "x": "f"}',
        '{"x": "h"}',
    ]  # fmt: skip
    for word, one in zip(
        (
            "violates check constraint",
            "null value",
            "the key column «id» is null",
            "out of range",
            "no key column «id»",
        ),
        found,
        strict=True,
    ):
        assert word in one and one.startswith("postgres:out: "), one


def test_a_delivery_leaves_the_catalog_alone(dsn: str, query: Query, tmp_path: Path) -> None:
    # What each delivery wrote into the catalog stayed there as long as a replication slot's catalog_xmin, and the
    # longer a pipeline ran, the slower it delivered.
    app = hr.App("shop", log=tmp_path / "log")
    app.topic("in", append=True).to_table(dsn, "out", key="id")
    written = []
    with app.start() as running:
        for number in range(4):
            running.append("in", {"id": number, "x": "a"})
            running.wait(60)
            written += query("select xmin from pg_class where relname like 'headrace_stage%'")
    assert query("select count(*) from out") == [(4,)]
    assert len(written) == 4
    assert len(set(written)) == 1


def test_a_new_log_begins_again_where_rows_have_a_key(dsn: str, query: Query, tmp_path: Path) -> None:
    for name, grid in (("one", "op id x\nc 1 a\nc 2 b"), ("two", "op id x\nc 2 c")):
        write(tmp_path / name, events(grid))
        app, stream = app_on(tmp_path / name)
        stream.to_table(dsn, "out", key="id")
        app.run(until="caught-up")
    assert query("select * from out order by id") == [(1, "a"), (2, "c")]


def test_a_new_log_is_not_added_to_the_rows_of_another_one(dsn: str, query: Query, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, events("op id x\nc 1 a\nc 2 b"))
    app, stream = app_on(tmp_path / "one")
    stream.to_table(dsn, "out")
    app.run(until="caught-up")
    other, stream = app_on(tmp_path / "two")
    stream.to_table(dsn, "out")
    with other.start() as running, pytest.raises(WaitTimeout, match="another log of «shop»"):
        running.wait(1)
    assert query("select count(*) from out") == [(2,)]


def test_a_log_that_was_put_back_is_noticed(dsn: str, query: Query, tmp_path: Path) -> None:
    write(tmp_path / "log", events("op id\nc 1\nc 2"))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id")
    app.run(until="caught-up")
    query("update headrace.sinks set next_offset = 5")
    with app.start() as running, pytest.raises(WaitTimeout, match="ends at 2"):
        running.wait(1)


def test_a_table_without_an_index_on_its_key_says_what_to_do(dsn: str, query: Query, tmp_path: Path) -> None:
    query("create table out (id int, x text)")
    write(tmp_path / "log", events("op id x\nc 1 a"))
    app, stream = app_on(tmp_path / "log")
    stream.to_table(dsn, "out", key="id")
    with app.start() as running:
        with pytest.raises(WaitTimeout, match=r"CREATE UNIQUE INDEX ON out \(id\)"):
            running.wait(1)
        query("create unique index on out (id)")
        running.wait(60)
    assert query("select * from out") == [(1, "a")]
