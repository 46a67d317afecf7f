"""Hashes of values of every type, and numbers that follow rows."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.value_hashes import hashed, hashes

LARGE = 2**62
VALUES: dict[str, tuple[list[Any], pa.DataType]] = {
    "int64": ([0, 1, -1, LARGE, -LARGE, None], pa.int64()),
    "uint64": ([0, 1, 2**64 - 1, None], pa.uint64()),
    "float64": ([0.0, 0.5, -1.5, 1e300, float("inf"), float("nan"), None], pa.float64()),
    "bool": ([True, False, None], pa.bool_()),
    "text": (["", "a", "b", "ab", "a" * 8, "a" * 9, "é" * 200, "x" * 300, "x" * 301, None], pa.string()),
    "large text": (["", "a", "x" * 1000, None], pa.large_string()),
    "binary": ([b"", b"\0", b"\0\0", b"\0" * 8, b"\0" * 9, None], pa.binary()),
    "fixed": ([b"\0" * 16, b"\1" * 16, None], pa.binary(16)),
    "numeric": ([Decimal("1.00"), Decimal("-1.00"), Decimal("99999999.99"), None], pa.decimal128(20, 2)),
    "large numeric": ([Decimal("1.00"), Decimal("2.00"), None], pa.decimal256(60, 2)),
    "date": ([-(2**31), 0, 2**31 - 1, None], pa.int32()),
    "infinity": ([-(2**63), 0, 2**63 - 1, None], pa.int64()),
    "time": ([dt.time(1), dt.time(2), None], pa.time64("us")),
    "interval": ([(1, 2, 3), (3, 2, 1), None], pa.month_day_nano_interval()),
    "array": ([[], [1], [1, 2], [2, 1], [None], None], pa.list_(pa.int32())),
    "vectors": ([[1.0, 2.0], [-1.0, -2.0], [2.0, 1.0]], pa.list_(pa.float32(), 2)),
    "signs": ([[1.0] * 4, [-1.0] * 4, [-1.0, 1.0, -1.0, 1.0]], pa.list_(pa.float64())),
    "texts": ([["a", "b"], ["ab"], ["b", "a"], [], None], pa.list_(pa.string())),
    "struct": (
        [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}, {"a": 1, "b": None}, None],
        pa.struct({"a": pa.int64(), "b": pa.string()}),
    ),
    "structs": ([[{"a": 1}], [{"a": 2}], [], None], pa.list_(pa.struct({"a": pa.int64()}))),
    "words": (["a", "b", None], pa.dictionary(pa.int32(), pa.string())),
}
CASTS = {"date": pa.date32(), "infinity": pa.timestamp("us", tz="UTC")}


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_told_apart_wherever_they_stand(kind: str) -> None:
    values, arrow = VALUES[kind]
    array = pa.array(values, arrow)
    if kind in CASTS:
        array = array.view(CASTS[kind])
    found = hashed(array)
    assert len(set(found.tolist())) == len(values)
    repeated = pa.concat_arrays([array.take(pa.array([len(values) - 1])), array, array])
    assert hashed(repeated.slice(1, len(values))).tolist() == hashed(repeated.slice(1 + len(values))).tolist()
    assert hashed(repeated.slice(1, len(values))).tolist() == found.tolist()
    assert [int(hashed(array.slice(i, 1))[0]) for i in range(len(values))] == found.tolist()


def test_numbers_have_one_hash_whatever_their_type() -> None:
    whole = [hashed(pa.array([0, 7, -3], kind)) for kind in (pa.int8(), pa.int64(), pa.float32(), pa.float64())]
    assert all((item == whole[0]).all() for item in whole)
    assert hashed(pa.array([-0.0])) == hashed(pa.array([0]))
    both = hashes([pa.array([1, 2]), pa.array([2, 1])])
    assert both[0] != both[1]
    assert len(np.unique(hashed(pa.array(np.arange(100_000))))) == 100_000
