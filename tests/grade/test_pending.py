"""Rows that wait, keys and truths as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.grade.interval_join.join_state import ExpiryQueue
from headrace.grade.interval_join.keys import pack_keys, truth_codes, unpack_keys
from headrace.grade.interval_join.pending import PendingRows, alike, of_one_kind


def rows(first: int, count: int) -> pa.RecordBatch:
    numbers = np.arange(first, first + count)
    return pa.record_batch({"n": numbers, "text": [f"row {number}" for number in numbers]})


def numbers(table: pa.Table) -> list[Any]:
    return table.column("n").to_pylist()


@given(st.data())
def test_rows_are_what_a_dict_would_hold(data: st.DataObject) -> None:
    store, kept, next_seq = PendingRows(), set(), 0
    for _ in range(data.draw(st.integers(1, 12))):
        for size in data.draw(st.lists(st.sampled_from([0, 1, 1, 1, 5, 70, 3000]), max_size=40)):
            assert store.add(rows(next_seq, size)) == next_seq
            kept |= set(range(next_seq, next_seq + size))
            next_seq += size
        if kept:
            share = data.draw(st.sampled_from([0.1, 0.5, 0.9]))
            random = np.random.default_rng(data.draw(st.integers(0, 99)))
            gone = random.permutation(sorted(kept))[: max(1, int(share * len(kept)))]
            store.drop(gone)
            kept -= set(gone.tolist())
        if data.draw(st.booleans()):
            state = store.snapshot()
            store = PendingRows()
            store.restore(state)
        assert len(store) == len(kept)
        asked = [*sorted(kept, reverse=True)[:50], -1, *sorted(kept)[:50]]
        if len(store.schema):
            assert numbers(store.take(np.array(asked))) == [None if number < 0 else number for number in asked]
        if kept:
            # Rows that follow each other are slices of their chunks.
            start = data.draw(st.integers(0, len(kept) - 1))
            assert numbers(store.take(np.array(sorted(kept)[start:]))) == sorted(kept)[start:]


def test_many_single_rows_lie_in_few_chunks_and_memory_is_given_back() -> None:
    store = PendingRows()
    for i in range(5_000):
        store.add(rows(i, 1))
    assert len(store._chunks) < 100
    full = store.nbytes
    # One row in a hundred stays for long.
    store.drop(np.array([i for i in range(5_000) if i % 100]))
    assert store.nbytes < full / 20
    assert len(store._chunks) < 10
    assert numbers(store.take(np.array([4_900, 0]))) == [4_900, 0]


def test_a_small_piece_does_not_keep_the_whole() -> None:
    store = PendingRows()
    store.add(rows(0, 100_000).slice(10, 2))
    assert store._chunks[0].records.get_total_buffer_size() < 1_000


def test_types_widen() -> None:
    store = PendingRows()
    store.add(pa.record_batch({"a": pa.array([1], pa.int64()), "b": pa.nulls(1)}))
    store.add(pa.record_batch({"a": [1.5], "b": ["x"], "c": [True]}))
    store.add(pa.record_batch({"c": [False]}))
    table = store.take(np.array([0, 1, 2, -1]))
    assert table.schema.types == [pa.float64(), pa.string(), pa.bool_()]
    assert [list(row.values()) for row in table.to_pylist()] == [
        [1.0, None, None],
        [1.5, "x", True],
        [None, None, False],
        [None, None, None],
    ]
    assert store.take(np.array([-1, -1])).schema == table.schema


def test_a_dictionary_of_each_batch_its_own() -> None:
    store = PendingRows()
    for words in (["a", "b"], ["c", "a"]):
        store.add(pa.record_batch({"w": pa.array(words).dictionary_encode()}))
    assert store.take(np.array([3, 2, 1, 0])).column("w").to_pylist() == ["a", "c", "b", "a"]
    assert store.take(np.array([1, 2, 3])).column("w").to_pylist() == ["b", "c", "a"]
    again = PendingRows()
    again.restore(store.snapshot())
    assert again.take(np.array([2, 0])).column("w").to_pylist() == ["c", "a"]


def test_values_of_another_kind_are_kept_beside_the_others_and_change_none_of_them() -> None:
    store = PendingRows()
    store.add(pa.record_batch({"a": [1], "b": ["x"]}))
    store.add(pa.record_batch({"a": ["n/a", None]}))
    store.add(pa.record_batch({"a": [True]}))
    store.add(pa.record_batch({"a": [2.5]}))
    again = PendingRows()
    again.restore(store.snapshot())
    for rows in (store, again):
        assert rows.take(np.array([4, 0])).to_pydict() == {"a": [2.5, 1.0], "b": [None, "x"]}
        assert rows.take(np.array([1])).column("a").to_pylist() == ["n/a"]
        assert rows.take(np.array([3, 2])).column("a").to_pylist() == [True, None]
        assert rows.take(np.array([0, 1, 3])).column("a").to_pylist() == ["1", "n/a", "true"]
        assert rows.take(np.array([-1, -1])).to_pydict() == {"a": [None, None], "b": [None, None]}
        apart = rows.take_apart(np.array([0, 4, 1, 2, 3]))
        assert [of_one_kind(apart[run]).column("a").to_pylist() for run in alike(apart)] == [
            [1.0, 2.5],
            ["n/a"],
            [None],
            [True],
        ]


@pytest.mark.parametrize("seqs", [[7], [0], [0, 1], [1, 9]], ids=["beyond", "dropped", "one dropped", "one beyond"])
def test_a_row_that_is_not_there(seqs: list[int]) -> None:
    store = PendingRows()
    store.add(rows(0, 5))
    store.drop(np.array([0]))
    with pytest.raises(KeyError):
        store.take(np.array(seqs))


SCALARS = st.one_of(st.integers(), st.text(), st.binary(), st.floats(allow_nan=False), st.none())
ONE_TYPE = [st.integers(-(2**63), 2**63 - 1), st.text(), st.binary(), st.floats(allow_nan=False)]
KEYS = st.one_of(
    *(st.lists(item) for item in ONE_TYPE),
    st.lists(st.one_of(*ONE_TYPE, st.tuples(SCALARS, SCALARS), st.integers())),
    st.lists(st.tuples(ONE_TYPE[0], ONE_TYPE[1])),
    st.lists(st.tuples()),
)


@given(KEYS)
def test_keys_come_back_as_they_were(keys: list[Any]) -> None:
    again = unpack_keys(pack_keys(keys))
    assert again == keys
    assert list(map(repr, again)) == list(map(repr, keys))


TRUTHS = {
    "whole and broken numbers": (pa.array([5, 0, -3], pa.int32()), pa.array([5.0, -0.0, -3.0])),
    "bool and number": (pa.array([True, False]), pa.array([1, 0])),
    "NULL": (pa.array([None, 1], pa.int64()), pa.array([None, 1.0], pa.float32())),
    "NaN": (pa.array([float("nan")]), pa.array([-float("nan")])),
    "text, encoded or not": (pa.array(["a", None, "b"]), pa.array(["a", None, "b"]).dictionary_encode()),
    "beyond what floats tell apart": (pa.array([2**53 + 1, 2**62 - 1]), pa.array([2**53 + 1, 2**62 - 1], pa.uint64())),
    "lists": (pa.array([[1, 2], None]), pa.array([[1, 2], None])),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_equal_truths_have_equal_codes(name: str) -> None:
    one, other = TRUTHS[name]
    assert truth_codes(one).tolist() == truth_codes(other).tolist()
    assert len(set(truth_codes(one).tolist())) == len(one)


def test_different_truths_have_different_codes() -> None:
    values = [
        pa.array([0.0, 1.0, float("nan"), float("inf"), None, 0.1]),
        pa.array([2**53, 2**53 + 1, 2**53 - 1, 2**60 + 1]),
        pa.array(["", "a", "b", "0", "1"]),
    ]
    codes = [code for value in values for code in truth_codes(value).tolist()]
    assert len(set(codes)) == len(codes)


@given(st.lists(st.one_of(st.integers(0, 30), st.lists(st.integers(0, 30), max_size=9)), max_size=60), st.data())
def test_what_is_over_comes_in_order(added: list[int | list[int]], data: st.DataObject) -> None:
    order, waiting, seq = ExpiryQueue(), [], 0
    for drawn_ in added:
        times = [drawn_] if isinstance(drawn_, int) else drawn_
        seqs = np.arange(seq, seq + len(times))
        if isinstance(drawn_, int):
            order.add(drawn_, seq, seq)
        else:
            order.add_many(np.array(drawn_, np.int64), seqs, seqs)
        waiting += zip(times, seqs.tolist(), seqs.tolist(), strict=True)
        seq += len(times)
        if data.draw(st.integers(0, 3)) == 0:
            before = data.draw(st.integers(0, 31))
            over = sorted(entry for entry in waiting if entry[0] < before)
            waiting = [entry for entry in waiting if entry[0] >= before]
            if data.draw(st.booleans()):
                assert order.pop_few(before) == over
            else:
                assert list(zip(*(part.tolist() for part in order.pop(before)), strict=True)) == over
        assert order.first == min((entry[0] for entry in waiting), default=2**62)
