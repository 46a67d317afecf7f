"""Hashes of values, column by column: equal values have equal hashes in every process, and in every version.

Rows are found by them, and spread by them; what is stored under one depends on each bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.plain_values import whole

Hashes = npt.NDArray[np.uint64]

_LONG_TEXT = 256
_NULL = np.uint64(0x9E3779B97F4A7C15)
_NAN = np.uint64(0x7FF8_0000_0000_0000)


def mixed(values: Hashes) -> Hashes:
    """Spread 64 bits over 64 bits, one to one (the finaliser of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def hashes(columns: Sequence[pa.Array]) -> Hashes:
    """Return a hash of each row of some columns, 64 bits; equal values have equal hashes in every process.

    >>> found = hashes([pa.array([1, 2, 1]), pa.array(["a", "b", "a"])])
    >>> bool(found[0] == found[2]), bool(found[0] == found[1])
    (True, False)
    """
    found = np.zeros(len(columns[0]), np.uint64)
    for number, column in enumerate(columns, 1):
        found += mixed(hashed(column) + _salt(number))
    return found


def _salt(number: int) -> np.uint64:
    return np.uint64(number * int(_NULL) & 0xFFFF_FFFF_FFFF_FFFF)


def hashed(array: pa.Array) -> Hashes:
    """Return a hash of each value; whole numbers have one whatever their type."""
    array = whole(array)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_null(kind):
        return np.full(len(array), _NULL)
    found = _of_values(array, kind)
    return found if not array.null_count else np.where(np.asarray(array.is_valid()), found, _NULL)


def _of_values(array: pa.Array, kind: pa.DataType) -> Hashes:
    types = pa.types
    if types.is_boolean(kind) or types.is_integer(kind):
        filled = array.fill_null(False if types.is_boolean(kind) else 0) if array.null_count else array
        return mixed(filled.to_numpy(zero_copy_only=False).astype(np.uint64))
    if types.is_floating(kind):
        return _of_floats(array)
    if types.is_temporal(kind) and kind.bit_width in (32, 64):
        return hashed(array.view(pa.int32() if kind.bit_width == 32 else pa.int64()))
    if types.is_string(kind) or types.is_binary(kind):
        return _of_bytes(array, np.int32)
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return _of_bytes(array, np.int64)
    if types.is_decimal128(kind) or types.is_fixed_size_binary(kind):
        return _of_fixed(array, kind.byte_width)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _of_lists(array)
    return _one_by_one(array)


def _of_floats(array: pa.Array) -> Hashes:
    filled = array.fill_null(0.0) if array.null_count else array
    values = filled.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0  # -0.0 is 0.0
    bits = values.view(np.uint64).copy()
    bits[np.isnan(values)] = _NAN
    whole = np.abs(values) < 2.0**63
    whole &= np.where(whole, values, 0.5) == np.floor(np.where(whole, values, 0.5))
    if whole.any():
        bits[whole] = values[whole].astype(np.int64).view(np.uint64)
    return mixed(bits)


def _of_bytes(array: pa.Array, offsets_of: type[Any]) -> Hashes:
    n = len(array)
    _, offsets, data = array.buffers()
    if not n or offsets is None:
        return np.zeros(n, np.uint64)
    bounds = np.frombuffer(offsets, offsets_of, n + 1, array.offset * np.dtype(offsets_of).itemsize).astype(np.int64)
    held = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return _of_spans(held[: int(bounds[-1])], bounds[:-1], bounds[1:] - bounds[:-1])


def _of_fixed(array: pa.Array, width: int) -> Hashes:
    n = len(array)
    data = array.buffers()[1]
    if not n or data is None:
        return np.zeros(n, np.uint64)
    start = (array.offset + np.arange(n)) * width
    return _of_spans(np.frombuffer(data, np.uint8)[: int(start[-1]) + width], start, np.full(n, width))


def _of_spans(data: npt.NDArray[np.uint8], start: Ints, length: Ints) -> Hashes:
    """Return hashes of pieces of a buffer: eight bytes of each at a time, long ones each by itself."""
    found = mixed(length.astype(np.uint64) + _NULL)
    long = length > _LONG_TEXT
    for row in np.flatnonzero(long).tolist():
        piece = data[start[row] : start[row] + length[row]].tobytes()
        found[row] = int.from_bytes(hashlib.blake2b(piece, digest_size=8).digest(), "little")
    rows = np.flatnonzero((length > 0) & ~long)
    if not len(rows):
        return found
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.ndarray((len(padded) - 7,), np.dtype("<u8"), padded, strides=(1,))
    at = 0
    while len(rows):
        left = length[rows] - at
        word = words[start[rows] + at]
        short = left < 8
        if short.any():
            word = np.where(short, word & ((np.uint64(1) << (8 * np.clip(left, 0, 7)).astype(np.uint64)) - 1), word)
        found[rows] = mixed(found[rows] ^ word) + np.uint64(at + 1)
        at += 8
        rows = rows[length[rows] > at]
    return found


def _of_lists(array: pa.Array) -> Hashes:
    n = len(array)
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        values = array.values.slice(array.offset * size, n * size)
        start = np.arange(n, dtype=np.int64) * size
        end = start + size
    else:
        offsets = np.asarray(array.offsets).astype(np.int64)
        values = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        start, end = offsets[:-1] - offsets[0], offsets[1:] - offsets[0]
    length = end - start
    found = mixed(length.astype(np.uint64))
    plain = _lists_of_words(values, start, length, found)
    rest = np.flatnonzero(~plain & (length > 0))
    if len(rest):
        # Of the others each value is hashed, whatever it is.
        inside = np.repeat(start[rest], length[rest]) + _places(length[rest])
        contained = hashed(values.take(pa.array(inside)))
        contained = mixed(contained + (_places(length[rest]) + 1).astype(np.uint64) * _NULL)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(contained, dtype=np.uint64)])
        ends = np.cumsum(length[rest])
        found[rest] = mixed(sums[ends] - sums[ends - length[rest]] + found[rest])
    return found


def _places(length: Ints) -> Ints:
    """0, 1, … of each list."""
    return np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)


def _lists_of_words(values: pa.Array, start: Ints, length: Ints, found: Hashes) -> Mask:
    """Fill in hashes of lists of numbers by their bytes, of as many together; which lists these are.

    Of floats too, so that -0.0 is not 0.0 there. How a list is hashed depends on nothing but the list.
    """
    kind = values.type
    done = np.zeros(len(length), np.bool_)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)) or not len(values):
        return done
    whole = np.ones(len(length), np.bool_)
    if values.null_count:
        nulls = np.concatenate([[0], np.cumsum(np.asarray(values.is_null()))])
        whole = nulls[start + length] == nulls[start]
        values = values.fill_null(0)
    numbers = np.ascontiguousarray(values.to_numpy(zero_copy_only=False))
    for item in np.unique(length[whole]).tolist():
        rows = np.flatnonzero(whole & (length == item))
        if item:
            together = len(rows) * item == int(start[rows[-1]] + item - start[rows[0]])
            if together:
                lists = numbers[start[rows[0]] : start[rows[-1]] + item].reshape(len(rows), item)
            else:
                lists = numbers[start[rows][:, None] + np.arange(item)]
            found[rows] = _rows_of_words(lists)
        done[rows] = True
    return done


def _rows_of_words(rows: npt.NDArray[Any]) -> Hashes:
    """Return hashes of rows of as many numbers."""
    length = rows.shape[1]
    rows = np.ascontiguousarray(rows)
    if rows.itemsize * length % 8:
        rows = rows.astype(np.float64 if rows.dtype.kind == "f" else np.int64)
    words = rows.view(np.uint64).reshape(len(rows), -1)
    weights = mixed(np.arange(1, words.shape[1] + 1, dtype=np.uint64) * _NULL) | np.uint64(1)
    spread = words ^ (words >> np.uint64(32))
    spread *= weights
    return mixed(spread.sum(axis=1, dtype=np.uint64) + mixed(np.array([length], np.uint64))[0])


def _one_by_one(array: pa.Array) -> Hashes:
    return np.array([_hash(array.slice(row, 1)) for row in range(len(array))], np.uint64)


def _hash(value: pa.Array) -> int:
    """Return the hash of one value of any type, by its text in Arrow's own form, which is made of every value."""
    text = value.to_string().encode() if not pa.types.is_struct(value.type) else repr(_inside(value)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _inside(value: pa.Array) -> list[tuple[str, int]]:
    names = [value.type.field(i).name for i in range(value.type.num_fields)]
    return [(name, int(hashed(value.field(i))[0])) for i, name in enumerate(names)]
