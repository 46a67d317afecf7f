"""States as bytes: bit for bit there and back, canonical, and never believed when they are wrong."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.errors import LearnError, LogCorrupt, LogVersionError
from headrace.learn.state import LIMIT, dump_state, load_state, state_hash

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KINDS = (
    arrays.integer_dtypes()
    | arrays.unsigned_integer_dtypes()
    | arrays.floating_dtypes(sizes=(16, 32, 64))
    | arrays.complex_number_dtypes(sizes=(64, 128))
    | arrays.boolean_dtypes()
    | arrays.datetime64_dtypes()
    | arrays.unicode_string_dtypes(max_len=5)
)
ARRAYS = arrays.arrays(KINDS, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
STATES = st.dictionaries(st.text(max_size=8), SCALARS | ARRAYS, max_size=6)


@given(STATES)
def test_there_and_back(state: dict[str, Any]) -> None:
    data = dump_state(state)
    loaded = load_state(data)
    assert list(loaded) == sorted(state)
    assert dump_state(loaded) == data
    assert state_hash(loaded) == state_hash(state)
    if not any(name.startswith("@") for name in state):
        assert state_hash(state) == data[4:20].hex()
    for name, value in state.items():
        found: Any = loaded[name]
        assert type(found) is type(value)
        if isinstance(value, np.ndarray):
            assert found.shape == value.shape
            assert found.dtype == value.dtype.newbyteorder("<")
            assert found.tobytes() == value.astype(value.dtype.newbyteorder("<")).tobytes()
            assert found.flags.writeable
            assert found.flags.owndata
        elif isinstance(value, float):
            assert struct.pack("<d", found) == struct.pack("<d", value)
        else:
            assert found == value


def test_what_is_equal_has_equal_bytes() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    data = dump_state({"a": matrix, "b": 1})
    assert dump_state({"b": 1, "a": matrix}) == data
    assert dump_state({"a": np.asfortranarray(matrix), "b": 1}) == data
    assert dump_state({"a": matrix.astype(">f8"), "b": 1}) == data
    assert dump_state({"a": np.arange(12.0).reshape(2, 6)[:, ::2] / 2, "b": 1}) == data


@pytest.mark.parametrize(
    "other",
    [1.0, True, "1", None, np.array(1), np.array([1]), np.array([[1]]), np.array([1], np.int32), np.array([1.0])],
    ids=repr,
)
def test_what_differs_in_type_or_shape_has_another_hash(other: Any) -> None:
    assert state_hash({"a": other}) != state_hash({"a": 1})
    assert state_hash({"a": other}) != state_hash({"b": other})


def test_zeros_have_signs_and_nans_have_bits() -> None:
    quiet, other = (np.array([bits], np.uint64).view(np.float64) for bits in (0x7FF8000000000000, 0x7FF8000000000001))
    assert len({state_hash({"a": value}) for value in (0.0, -0.0, np.zeros(1), -np.zeros(1), quiet, other)}) == 6


def test_numpy_scalars_come_back_as_arrays_without_dimensions() -> None:
    loaded: Any = load_state(dump_state({"a": np.float32(1.5)}))["a"]
    assert (loaded.shape, loaded.dtype, loaded) == ((), np.float32, 1.5)


def test_large_arrays_and_large_integers() -> None:
    state = {"w": np.random.default_rng(0).normal(size=(300, 400)), "n": -(7**9999), "t": "é😀" * 50_000}
    loaded = load_state(dump_state(state))
    assert state_hash(loaded) == state_hash(state)
    assert loaded["n"] == state["n"]


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.zeros(2, "i4,f8"),
        np.zeros(1, np.longdouble),
        np.zeros(1, "V3"),
        [1],
        {"a": 1},
        b"x",
        1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_canonical_bytes_is_refused(value: Any) -> None:
    with pytest.raises(LearnError, match="«thing»"):
        dump_state({"thing": value})


def test_names_are_text() -> None:
    with pytest.raises(LearnError, match="names"):
        dump_state({1: 2})  # type: ignore[dict-item]


GOOD = dump_state({"centers": np.arange(3.0), "n": 3, "who": "me"})


def test_every_changed_byte_is_found() -> None:
    for at in range(len(GOOD)):
        changed = bytearray(GOOD)
        changed[at] ^= 0x10
        with pytest.raises((LogCorrupt, LogVersionError)):
            load_state(bytes(changed))


def test_every_truncation_and_anything_more_is_found() -> None:
    for end in range(len(GOOD)):
        with pytest.raises(LogCorrupt):
            load_state(GOOD[:end])
    with pytest.raises(LogCorrupt, match="digest"):
        load_state(GOOD + b"\0")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_our_error(data: bytes) -> None:
    for attempt in (data, b"HRS\x01" + data, sealed(data)):
        with pytest.raises(LogCorrupt):
            load_state(attempt)


def sealed(body: bytes) -> bytes:
    """Bytes with the right digest: a forgery, not an accident."""
    return b"HRS\x01" + hashlib.blake2b(body, digest_size=16).digest() + body


@pytest.mark.parametrize(
    "header",
    [
        [["a", "a", ["<f8", [10**12]]]],
        [["a", "a", ["<f8", [-1]]]],
        [["a", "a", ["<f8", [2**40, 2**40, 0]]]],
        [["a", "a", ["<f8", [0.5]]]],
        [["a", "a", ["|O", [1]]]],
        [["a", "a", ["<f8,<i4", [0]]]],
        [["a", "a", ["S0", [0]]]],
        [["a", "a", ["nonsense", [0]]]],
        [["a", "a", None]],
        [["a", "i", "xyz"]],
        [["a", "i", 5]],
        [["a", "f", "00"]],
        [["a", "b", 1]],
        [["a", "n", 1]],
        [["a", "s", 1]],
        [["a", "q", 1]],
        [["b", "n", None], ["a", "n", None]],
        [["a", "n", None], ["a", "n", None]],
        [["a", "n"]],
        [[1, "n", None]],
        [[[], "n", None]],
        {},
        {"a": 1},
        None,
        5,
    ],
    ids=repr,
)
def test_a_forged_header_is_refused(header: Any) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(LogCorrupt, match="cannot be read"):
        load_state(sealed(struct.pack("<I", len(text)) + text))


def test_a_header_that_is_nested_deeply_is_refused() -> None:
    text = b"[" * 100_000
    with pytest.raises(LogCorrupt):
        load_state(sealed(struct.pack("<I", len(text)) + text))


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    with pytest.raises(LogCorrupt, match="more than the 10 allowed"):
        load_state(GOOD, limit=10)
    assert LIMIT == 2**30


def test_a_newer_layout_is_named() -> None:
    with pytest.raises(LogVersionError, match="layout 2") as refusal:
        load_state(b"HRS\x02" + GOOD[4:])
    assert "Upgrade" in refusal.value.advice
