"""Hashes of values of every type, and numbers that follow rows."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.arrays import lasting, lasting_zeros
from headrace.batch import Batch
from headrace.step import row_identity
from headrace.step.row_identity import Identity, _Index
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


def test_a_row_takes_twenty_four_bytes_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_identity, "_PIECE", 100)
    rows, size = Identity(limit=20_000), 500
    for begin in range(0, 30_000, size):
        ids = np.arange(begin, begin + size)
        numbers = rows.follow(Batch.of({"id": ids}, key=["id"]))
        assert rows.follow(Batch.of({"id": ids}, op="u", key=["id"])).tolist() == numbers.tolist()
    index = rows._index
    assert sum(keys.nbytes + found.nbytes for keys, found in index._runs) == 16 * len(index)
    assert len(index) < 2 * rows.limit
    assert len(rows._keys.values) <= 2 * rows.limit
    assert not len(rows._late.values)  # no row was shown by an update first
    found = rows.follow(Batch.of({"id": [9_000, 11_000, 29_999]}, op="u", key=["id"])).tolist()
    assert found[0] < 0 < found[1] < found[2]  # the first was forgotten


def test_runs_of_keys_are_merged_piece_by_piece_as_a_dict_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_identity, "_PIECE", 16)
    random, index, expected = np.random.default_rng(0), _Index(), {}
    for step in range(1, 200):
        keys = random.integers(1, 900, int(random.integers(1, 60))).astype(np.uint64)
        numbers = np.where(random.random(len(keys)) < 0.2, 0, np.arange(len(keys)) + 100 * step)
        index.add(keys, numbers, 0)
        expected.update(zip(keys.tolist(), numbers.tolist(), strict=True))
    asked = np.arange(1, 1000).astype(np.uint64)
    assert index.find(asked).tolist() == [expected.get(key, 0) for key in asked.tolist()]
    assert all((np.diff(run.astype(np.int64)) > 0).all() for run, _ in index._runs)


def test_values_that_last_give_their_memory_back_and_are_of_one_process() -> None:
    zeros = lasting_zeros(1 << 18, np.int64)
    assert not zeros.any()
    child = os.fork()
    if not child:
        zeros[:] = 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not zeros.any()
    copy = lasting(np.arange(1 << 18))
    assert copy[-1] == (1 << 18) - 1
    assert len(lasting(np.empty(0, np.uint32))) == 0
