"""Arrow values as Python's values, JSON, text and keys: whatever the value, nothing raises and nothing is rounded."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.batch import Batch, dead_letters
from headrace.plain_values import beyond, cast_texts, json_texts, keys, rows, texts, united, value, values

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
YEAR_10000 = 253_402_300_800  # in seconds
IDES = -735_160 * 86_400  # 15 March 44 BC


def times(numbers: list[int | None], kind: pa.DataType) -> pa.Array:
    """Numbers of a type's own unit as that type."""
    width = pa.int32() if pa.types.is_date32(kind) or pa.types.is_time32(kind) else pa.int64()
    return pa.array(numbers, width).view(kind)


HOSTILE = times([YEAR_10000 * 1_000_000, IDES * 1_000_000, LARGEST, SMALLEST, None, 0], pa.timestamp("us", "UTC"))
TOLD = [
    "10000-01-01 00:00:00+00",
    "0044-03-15 00:00:00+00 BC",
    "infinity",
    "-infinity",
    None,
    datetime(1970, 1, 1, tzinfo=UTC),
]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        pytest.param(HOSTILE, TOLD, id="timestamptz"),
        pytest.param(
            times([YEAR_10000 - 1, YEAR_10000, IDES], pa.timestamp("s")),
            [datetime(9999, 12, 31, 23, 59, 59), "10000-01-01 00:00:00", "0044-03-15 00:00:00 BC"],
            id="seconds",
        ),
        pytest.param(
            times([-62_135_596_800_001, -62_135_596_800_000], pa.timestamp("ms")),
            ["0001-12-31 23:59:59.999 BC", datetime(1, 1, 1)],
            id="milliseconds",
        ),
        pytest.param(
            times([1_000, 1, SMALLEST, LARGEST], pa.timestamp("ns")),
            [datetime(1970, 1, 1, 0, 0, 0, 1), "1970-01-01 00:00:00.000000001", "-infinity", "infinity"],
            id="nanoseconds",
        ),
        pytest.param(
            times([(YEAR_10000 - 3600) * 1_000_000], pa.timestamp("us", "+05:00")),
            ["9999-12-31 23:00:00+00"],
            id="in-its-own-zone-too-late",
        ),
        pytest.param(times([0], pa.timestamp("s", "Nowhere/X")), ["1970-01-01 00:00:00+00"], id="unknown-zone"),
        pytest.param(
            times([0, 2_932_896, 2_932_897, -719_163, 2**31 - 1, -(2**31)], pa.date32()),
            [date(1970, 1, 1), date(9999, 12, 31), "10000-01-01", "0001-12-31 BC", "infinity", "-infinity"],
            id="date",
        ),
        pytest.param(times([86_400_000, LARGEST], pa.date64()), [date(1970, 1, 2), "infinity"], id="date64"),
        pytest.param(
            times([86_399_999_999, 86_400_000_000], pa.time64("us")), [time(23, 59, 59, 999_999), "24:00:00"], id="time"
        ),
        pytest.param(times([1, 2_000], pa.time64("ns")), ["00:00:00.000000001", time(0, 0, 0, 2)], id="time-ns"),
        pytest.param(
            times([1, LARGEST, -5_400], pa.duration("s")),
            [timedelta(seconds=1), "2562047788015215:30:07", timedelta(seconds=-5400)],
            id="duration",
        ),
        pytest.param(times([1], pa.duration("ns")), ["00:00:00.000000001"], id="duration-ns"),
        pytest.param(pa.array([b"a\xff", None]).view(pa.string()), ["a\ufffd", None], id="no-utf-8"),
        pytest.param(pa.array([1.5], pa.float16()), [1.5], id="half"),
        pytest.param(pa.ListArray.from_arrays([0, 2, 6], HOSTILE), [TOLD[:2], TOLD[2:]], id="list"),
        pytest.param(pa.ListArray.from_arrays([0, 2, 6], HOSTILE)[1:], [TOLD[2:]], id="slice-of-lists"),
        pytest.param(pa.ListViewArray.from_arrays([2, 0], [1, 2], HOSTILE), [TOLD[2:3], TOLD[:2]], id="list-view"),
        pytest.param(pa.FixedSizeListArray.from_arrays(HOSTILE, 3), [TOLD[:3], TOLD[3:]], id="fixed-size-list"),
        pytest.param(
            pa.StructArray.from_arrays([HOSTILE[:2], HOSTILE[:2]], ["x", "x"], mask=pa.array([False, True])),
            [{"x": TOLD[0], "x_2": TOLD[0]}, None],
            id="struct-with-a-name-twice",
        ),
        pytest.param(
            pa.MapArray.from_arrays([0, 1, 1], pa.array(["k"]), HOSTILE[:1]), [[("k", TOLD[0])], []], id="map"
        ),
        pytest.param(HOSTILE.dictionary_encode(), TOLD, id="dictionary"),
        pytest.param(pc.run_end_encode(HOSTILE), TOLD, id="runs"),
        pytest.param(pa.chunked_array([HOSTILE[:1], HOSTILE[1:]]), TOLD, id="chunks"),
        pytest.param(
            pa.UnionArray.from_dense(
                pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [HOSTILE, pa.array([1])]
            ),
            [TOLD[0], 1],
            id="union",
        ),
        pytest.param(
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)], pa.binary(16))), [UUID(int=0)], id="uuid"
        ),
        pytest.param(pa.nulls(2), [None, None], id="null"),
    ],
)
def test_values_that_python_does_not_have_come_as_text(array: Any, expected: list[Any]) -> None:
    assert values(array) == expected
    assert [value(item) for item in array] == expected
    assert len(texts(array)) == len(keys(array)) == len(expected)
    assert {type(text) for text in texts(array)} <= {str, type(None)}
    assert isinstance(hash(tuple(keys(array))), int)
    assert beyond(array) or expected in ([1.5], [UUID(int=0)], [None, None])
    table = pa.table({"x": array})
    assert rows(table) == [{"x": value} for value in expected]
    assert [set(json.loads(json_text)) for json_text in json_texts(table)] == [{"x"}] * len(expected)


def test_a_dead_letter_holds_any_row() -> None:
    letters = dead_letters(Batch.of({"id": [1], "at": HOSTILE[:1]}), ["NULL"], stage="learn")
    assert json.loads(letters.column("row")[0].as_py()) == {"id": 1, "at": "10000-01-01 00:00:00+00"}
    many = dead_letters(Batch.of({"n": pa.array([Decimal(10**75)])}), ["large"], stage="learn")
    assert json.loads(many.column("row")[0].as_py()) == {"n": str(10**75)}


def test_in_range_a_dead_letter_is_as_it_was() -> None:
    """Checkpoints and topics of before hold these texts; a replay must give the same."""
    batch = pa.record_batch(
        {
            "at": pa.array([0], pa.timestamp("us", "UTC")),
            "d": pa.array([0], pa.int32()).cast(pa.date32()),
            "n": pa.array([Decimal("1.10")]),
            "raw": pa.array([b"a"]),
            "x": pa.array([float("nan")]),
            "é": pa.array(["é"]),
            "l": pa.array([[1, None]]),
        }
    )
    assert json_texts(batch) == [
        '{"at": "1970-01-01 00:00:00+00:00", "d": "1970-01-01", "n": "1.10", "raw": "b\'a\'", "x": NaN, '
        '"\\u00e9": "\\u00e9", "l": [1, null]}'
    ]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([0.0, -0.5, 1e14, 1e15, 1e-4, 1e-5, math.inf]), ["0", "-0.5", "100000000000000", "1e+15"]),
        (pa.array([16777216.0, 999999.0], pa.float32()), ["1.6777216e+07", "999999"]),
        (pa.array([Decimal("0.00000001")]), ["0.00000001"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([b"\x00\xff"]), ["\\x00ff"]),
        (pa.array([["", 'a"b', "null", None, "x"]]), ['{"","a\\"b","null",NULL,x}']),
        (pa.array([[True, False]]), ["{t,f}"]),
        (times([0], pa.timestamp("us", "UTC")), ["1970-01-01 00:00:00+00"]),
        (times([0], pa.date32()), ["1970-01-01"]),
    ],
)
def test_texts_are_postgresqls(array: pa.Array, expected: list[str]) -> None:
    assert texts(array)[: len(expected)] == expected


def test_keys_are_equal_by_value_and_never_by_rounding() -> None:
    one = {*keys(pa.array([1])), *keys(pa.array([1.0])), *keys(pa.array([Decimal("1.00")]))}
    assert one == {1}
    assert keys(pa.array([Decimal("0.1")])) == keys(pa.array([0.1]))
    large = [2**53, 2**53 + 1]
    assert len({*keys(pa.array(large)), *keys(pa.array([float(2**53)]))}) == 2
    fine = pa.array([Decimal("0.10000000000000000001"), Decimal("0.10000000000000000002")])
    assert len({*keys(fine), *keys(pa.array([0.1]))}) == 3
    nan = keys(pa.array([float("nan")]))
    assert nan == keys(pa.array([float("nan")]))
    midnight = times([86_400], pa.timestamp("s", "UTC"))
    for same in (
        times([1], pa.date32()),
        times([86_400_000_000], pa.timestamp("us")),
        times([86_400_000], pa.timestamp("ms", "+05:00")),
        times([86_400_000], pa.date64()),
    ):
        assert keys(midnight) == keys(same)
    assert len(set(keys(HOSTILE))) == len(HOSTILE)
    assert keys(pa.array([b"\xff", b"\xfe"]).view(pa.string())) == [("text", b"\xff"), ("text", b"\xfe")]


def united_columns(first: Any, second: Any) -> tuple[pa.DataType, list[Any]]:
    found = united([pa.table({"x": first}), pa.table({"x": second})]).column("x")
    assert united([pa.table({"x": second}), pa.table({"x": first})]).column("x").type == found.type
    return found.type, values(found)


@pytest.mark.parametrize(
    ("first", "second", "kind", "expected"),
    [
        ([7], ["seven"], pa.string(), ["7", "seven"]),
        ([True], ["x"], pa.string(), ["true", "x"]),
        ([b"\x00a"], ["x"], pa.string(), ["\\x0061", "x"]),
        ([1], [0.5], pa.float64(), [1.0, 0.5]),
        ([2**53 + 1], [0.5], pa.string(), ["9007199254740993", "0.5"]),
        ([2**63 - 1], [1e300], pa.string(), ["9223372036854775807", "1e+300"]),
        (pa.array([2**64 - 1], pa.uint64()), [-1], pa.decimal128(20, 0), [Decimal(2**64 - 1), Decimal(-1)]),
        ([Decimal("1.10")], [1], pa.decimal128(21, 2), [Decimal("1.10"), Decimal(1)]),
        ([Decimal("1.10")], [0.1], pa.float64(), [1.1, 0.1]),
        ([Decimal("12345678901234567.89")], [0.1], pa.string(), ["12345678901234567.89", "0.1"]),
        ([date(1970, 1, 2)], [datetime(1, 1, 1)], pa.timestamp("us"), [datetime(1970, 1, 2), datetime(1, 1, 1)]),
        (times([2**31 - 1], pa.date32()), ["x"], pa.string(), ["infinity", "x"]),
        (HOSTILE[:2], ["x"], pa.string(), ["10000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC", "x"]),
        (times([0], pa.timestamp("us")), HOSTILE[5:], pa.string(), ["1970-01-01 00:00:00", "1970-01-01 00:00:00+00"]),
        ([[1]], [["a"]], pa.list_(pa.string()), [["1"], ["a"]]),
        ([{"a": 1}], [{"a": "x", "b": 1}], None, [{"a": "1", "b": None}, {"a": "x", "b": 1}]),
        ([None], [1], pa.int64(), [None, 1]),
    ],
)  # fmt: skip
def test_columns_of_two_types_are_one_column_and_no_value_is_rounded(
    first: Any, second: Any, kind: pa.DataType | None, expected: list[Any]
) -> None:
    found, told = united_columns(first, second)
    assert kind is None or found == kind
    assert told == expected


def test_words_of_categories_are_as_they_were_as_far_as_arrow_has_them() -> None:
    instants = times([0, YEAR_10000 * 1_000_000, 2**62, LARGEST, IDES * 1_000_000], pa.timestamp("us", "UTC"))
    assert cast_texts(instants, as_before=True).to_pylist() == [
        "1970-01-01 00:00:00.000000Z",
        "10000-01-01 00:00:00.000000Z",
        "148108-07-06 14:00:27.387904+00",
        "infinity",
        "-0043-03-15 00:00:00.000000Z",
    ]
    assert cast_texts(instants)[4].as_py() == "0044-03-15 00:00:00+00 BC"
    assert cast_texts(times([2**31 - 1, 0], pa.date32()), as_before=True).to_pylist() == ["infinity", "1970-01-01"]
    assert cast_texts(times([86_400], pa.time32("s")), as_before=True).to_pylist() == ["24:00:00"]
