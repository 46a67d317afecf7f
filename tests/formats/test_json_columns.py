"""Columns of JSON without a schema: the same rows give the same values and types, however they are fetched."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.formats import json_columns
from headrace.formats.json_columns import ROW, Column

Found = list[tuple[str, Any]]


def read(values: list[bytes], cuts: list[int], *, enveloped: bool = False) -> tuple[Found, dict[int, str], Column]:
    """Each row's type and value, which are bad and why, and the columns at the end, read in pieces."""
    column, bad = ROW, {}
    rows: dict[int, tuple[str, Any]] = {}
    for start, end in itertools.pairwise([0, *sorted(cuts), len(values)]):
        if start == end:
            continue
        parts, wrong, column = json_columns.decode(values[start:end], column, enveloped=enveloped)
        column = Column.load(json.loads(json.dumps(column.dump())))  # as after a restart
        bad |= {start + i: why for i, why in wrong}
        for part in parts:
            if enveloped:
                part.columns = part.columns.select(["before", "after"])
            shown = part.columns.to_pylist()
            for i, one in zip(part.rows.tolist(), shown, strict=True):
                assert start + i not in rows
                rows[start + i] = (str(part.columns.schema), repr(one))
    assert rows.keys() | bad.keys() == set(range(len(values)))
    return [rows[i] for i in sorted(rows)], bad, column


def same_everywhere(values: list[bytes], *, enveloped: bool = False) -> tuple[Found, dict[int, str], Column]:
    """Read at once, one by one, in halves: the same."""
    n = len(values)
    once = read(values, [], enveloped=enveloped)
    for cuts in (list(range(1, n)), [n // 2], list(range(3, n, 3))):
        other = read(values, cuts, enveloped=enveloped)
        assert other[:2] == once[:2] and other[2].dump() == once[2].dump()
    return once


def column_of(*texts: str) -> tuple[list[Any], list[str], dict[int, str]]:
    """Values and types of a column «x» with these JSON texts."""
    found, bad, _ = same_everywhere([b'{"x":%s}' % text.encode() for text in texts])
    parts, _, _ = json_columns.decode([b'{"x":%s}' % text.encode() for text in texts], ROW)
    columns = [part.columns.column("x") for part in parts]
    assert len(found) == sum(map(len, columns))
    types = [str(column.type) for column in columns for _ in range(len(column))]
    return [value for column in columns for value in column.to_pylist()], types, bad


INT, FLOAT, FIXED = "int64", "double", "decimal256(76, 38)"


@pytest.mark.parametrize(
    ("texts", "values", "types"),
    [
        (["1", "0.5", "2"], [1, 0.5, 2.0], [INT, FLOAT, FLOAT]),
        (["9007199254740993", "0.5"], [9007199254740993, Decimal("0.5")], [INT, FIXED]),
        (["0.5", "9007199254740993", "1"], [0.5, 9007199254740993, 1], [FLOAT, FIXED, FIXED]),
        (["0.5", "9007199254740992", "100000000000000000000"], [0.5, 2.0**53, 1e20], [FLOAT] * 3),
        (["18446744073709551615", "1"], [2**64 - 1, 1], ["decimal128(38, 0)"] * 2),
        (["1", "18446744073709551615", "0.5"], [1, 2**64 - 1, Decimal("0.5")], [INT, "decimal128(38, 0)", FIXED]),
        (["-9223372036854775808", "9223372036854775807"], [-(2**63), 2**63 - 1], [INT, INT]),
        ([str(10**60), "7"], [10**60, 7], ["decimal256(76, 0)"] * 2),
        (["-0", "-0.0"], [0, -0.0], [INT, FLOAT]),
        (["12345678901234567.89"], [Decimal("12345678901234567.89")], [FIXED]),
        (["0.1", "0.12345678901234567890"], [0.1, Decimal("0.1234567890123456789")], [FLOAT, FIXED]),
        (["0.30000000000000004", "1e22", "2.50"], [0.30000000000000004, 1e22, 2.5], [FLOAT] * 3),
        (["null", "1"], [None, 1], ["null", INT]),
        (["1", "null", '"a"', "null"], [1, None, "a", None], [INT, INT, "string", "string"]),
        (["true", "1", "false"], [True, 1, False], ["bool", INT, "bool"]),
        (['"2024-01-01"', '"n/a"'], ["2024-01-01", "n/a"], ["string"] * 2),
        (["1.5", '"NaN"', "NaN"], [1.5, float("nan"), float("nan")], [FLOAT] * 3),
        (['"NaN"', "1.5"], ["NaN", 1.5], ["string", FLOAT]),
        (
            ["[]", "[1]", "[1.5,2]"],
            [[], [1], [1.5, 2.0]],
            ["list<item: null>", f"list<item: {INT}>", f"list<item: {FLOAT}>"],
        ),
        (['[1,"a"]', "[1]"], ['[1,"a"]', [1]], ["string", f"list<item: {INT}>"]),
        (
            ['{"a":1}', '{"b":"x"}'],
            [{"a": 1}, {"a": None, "b": "x"}],
            ["struct<a: int64>", "struct<a: int64, b: string>"],
        ),
        (['{"a":[{"b":1}]}', "5"], [{"a": [{"b": 1}]}, 5], ["struct<a: list<item: struct<b: int64>>>", INT]),
        (['""', "{}", "[[]]"], ["", {}, [[]]], ["string", "struct<>", "list<item: list<item: null>>"]),
    ],
)  # fmt: skip
def test_types_are_decided_row_by_row(texts: list[str], values: list[Any], types: list[str]) -> None:
    found, kinds, bad = column_of(*texts)
    assert bad == {} and kinds == types
    assert list(map(plain, found)) == list(map(plain, values))


def plain(value: Any) -> str:
    """A value's text, decimals without zeros at their end."""
    text = f"{value:f}" if isinstance(value, Decimal) else repr(value)
    return text.rstrip("0").rstrip(".") if isinstance(value, Decimal) and "." in text else text


@pytest.mark.parametrize(
    ("texts", "row", "why"),
    [
        (["1", "1e400"], 1, "the number 1e400 is beyond 64-bit floats"),
        (["1e-400"], 0, "held exactly neither"),
        (["9007199254740993", "0.5", "1e300"], 2, "held exactly neither"),
        (["9007199254740993", "0.5", "NaN"], 2, "NaN among numbers"),
        (["1" * 77], 0, "77 digits"),
        (["9" * 5000], 0, "5000 digits"),
        (["0." + "1" * 60], 0, "held exactly neither"),
        (["[1,1e-999]"], 0, "column «x»"),
        (['"\\ud800"'], 0, "a surrogate"),
    ],
)
def test_what_no_type_holds_is_refused_and_changes_nothing(texts: list[str], row: int, why: str) -> None:
    _, _, bad = column_of(*texts, "null")
    assert list(bad) == [row] and why in bad[row]


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-5, 5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.decimals(-(10**12), 10**12, places=8).map(lambda one: Written(f"{one:f}")),
    st.sampled_from(["", "a", "NaN", "2024-01-01", "5", "é"]),
    st.sampled_from(["9007199254740993", "0.12345678901234567890", "1e400", "-0", "1E+5"]).map(
        lambda one: Written(one)
    ),
)


class Written(str):
    """A number as it is to be written."""


DOCUMENTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.recursive(
        LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2)
    ),
    max_size=3,
)


def written(value: Any) -> str:
    if isinstance(value, Written):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value.items()) + "}"
    return "[" + ",".join(map(written, value)) + "]" if isinstance(value, list) else json.dumps(value)


@given(st.lists(DOCUMENTS, min_size=1, max_size=12), st.data())
def test_rows_are_the_same_however_they_are_fetched(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    values = [written(row).encode() for row in rows]
    once = read(values, [])
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    other = read(values, cuts)
    assert other[:2] == once[:2] and other[2].dump() == once[2].dump()


@pytest.mark.parametrize("enveloped", [False, True])
def test_natively_and_row_by_row_are_the_same(enveloped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    odd = {211: "9007199254740993", 350: "null", 501: '"text"', 640: "0.123456789012345678", 777: "1e999", 901: "[1]"}
    rows = [
        b'{"id":%d,"x":%s,"name":"n%d","tags":[%d,2]}' % (i, odd.get(i, repr(float(rng.normal()))).encode(), i, i)
        for i in range(1_200)
    ]
    rows[100] = b"poison"
    rows[150] = b'{"id":150,"id":151}'
    if enveloped:
        rows = [b'{"before":null,"after":%s,"op":"c","source":{"lsn":%d}}' % (row, i) for i, row in enumerate(rows)]
    natively = read(rows, [], enveloped=enveloped)
    assert sorted(natively[1]) == [100, 150, 777]
    monkeypatch.setattr(json_columns, "_FEWEST", 10**9)
    assert read(rows, [1], enveloped=enveloped)[:2] == natively[:2]


def test_clean_rows_are_parsed_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [b'{"id":%d,"x":%d.25,"t":"a"}' % (i, i) for i in range(5_000)]
    _, _, column = json_columns.decode(rows[:1], ROW)
    monkeypatch.setattr(json_columns._Decoding, "_one_by_one", lambda *_: pytest.fail("row by row"))
    parts, bad, after = json_columns.decode(rows, column)
    assert len(parts) == 1 and not bad and after is column
    assert parts[0].columns.column("x").to_pylist()[-1] == 4999.25


def test_columns_known_and_missing_are_null() -> None:
    found, _, column = same_everywhere([b'{"a":1}', b'{"b":"x"}', b"{}"])
    assert [kind for kind, _ in found] == ["a: int64", "a: int64\nb: string", "a: int64\nb: string"]
    assert column.schema == pa.schema([("a", pa.int64()), ("b", pa.string())])


def test_old_and_new_rows_share_their_columns() -> None:
    values = [
        b'{"before":{"x":1},"after":{"x":9007199254740993},"op":"u","source":{}}',
        b'{"before":{"x":2},"after":{"x":0.5},"op":"u","source":{}}',
        b'{"before":{"x":0.5},"after":{"x":"text"},"op":"u","source":{}}',
        b'{"before":{"x":"text"},"after":null,"op":"d","source":{}}',
    ]
    found, bad, _ = same_everywhere(values, enveloped=True)
    assert bad == {} and "decimal256" in found[1][0] and "'before': None" in found[2][1]


def test_deep_values_are_kept_as_their_json() -> None:
    deep = "[" * 300 + "1.50" + "]" * 300
    found, bad, column = same_everywhere([b'{"x":%s}' % deep.encode(), b'{"x":1}'])
    assert bad == {} and len(found) == 2
    assert "1.50" in found[0][1] and column.fields["x"].kind == "number"
