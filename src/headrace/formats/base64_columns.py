"""Columns of bytes as base64 text and back, all values of a column together."""

from __future__ import annotations

import binascii

import numpy as np
import pyarrow as pa

from headrace.arrays import Bytes, Ints

_PAD = ord("=")
_NOT_BASE64 = 255
_SEXTETS = np.full(256, _NOT_BASE64, np.uint8)
_SEXTETS[np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)] = np.arange(64)
# The alphabet for URLs (Debezium's binary.handling.mode=base64-url-safe) shares all but two characters.
_SEXTETS[np.frombuffer(b"-_", np.uint8)] = 62, 63
_SEXTETS[_PAD] = 0


def spans(array: pa.Array) -> tuple[Bytes, Ints, Ints]:
    """Bytes, starts and lengths of the values of a binary or string column; nulls are empty.

    >>> data, start, length = spans(pa.array([b"ab", None, b"c"]))
    >>> data.tobytes(), start.tolist(), length.tolist()
    (b'abc', [0, 2, 2], [2, 0, 1])
    """
    filled = array.cast(pa.large_binary())
    if filled.null_count:
        filled = filled.fill_null(b"")
    _, offset_buffer, data_buffer = filled.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[filled.offset : filled.offset + len(filled) + 1]
    data = np.empty(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    first = int(offsets[0]) if offsets.size else 0
    last = int(offsets[-1]) if offsets.size else 0
    return data[first:last], offsets[:-1] - first, np.diff(offsets)


def of_spans(data: Bytes, length: Ints, of_type: pa.DataType, valid: pa.Array | None) -> pa.Array:
    """A large_binary or large_string column of values laid end to end; ``valid`` is a boolean array or None."""
    offsets = np.zeros(length.size + 1, np.int64)
    np.cumsum(length, out=offsets[1:])
    # A fresh array, since the bits of a slice do not begin at its first byte.
    mask = None if valid is None or not valid.false_count else pa.array(np.asarray(valid)).buffers()[1]
    buffers = [mask, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(of_type, length.size, buffers)


def encode(array: pa.Array) -> pa.LargeStringArray:
    """Base64 of every value, padded.

    >>> encode(pa.array([b"", b"f", b"fo", b"foo", None])).to_pylist()
    ['', 'Zg==', 'Zm8=', 'Zm9v', None]
    """
    data, start, length = spans(array)
    padded = (length + 2) // 3 * 3
    ends = np.cumsum(padded)
    room = np.zeros(int(padded.sum()), np.uint8)
    room[np.repeat(ends - padded - start, length) + np.arange(data.size)] = data
    text = np.frombuffer(binascii.b2a_base64(room.tobytes(), newline=False), np.uint8).copy()
    missing = padded - length
    ends = ends // 3 * 4
    text[ends[missing >= 1] - 1] = _PAD
    text[ends[missing == 2] - 2] = _PAD
    return of_spans(text, padded // 3 * 4, pa.large_string(), array.is_valid())


def decode(array: pa.Array) -> pa.LargeBinaryArray:
    """The bytes of base64 texts, of either alphabet, padded.

    Raises:
        ValueError: some value is not base64.

    >>> decode(pa.array(["", "Zg==", "Zm8=", None])).to_pylist()
    [b'', b'f', b'fo', None]
    """
    text, start, length = spans(array)
    sextets = _SEXTETS[text]
    if (length % 4).any() or (sextets == _NOT_BASE64).any():
        raise ValueError("is not base64")
    ends = (start + length)[length > 0]
    last = text[ends - 1] == _PAD
    both = last & (text[ends - 2] == _PAD)
    if np.count_nonzero(text == _PAD) != np.count_nonzero(last) + np.count_nonzero(both):
        raise ValueError("is not base64")
    quads = sextets.reshape(-1, 4).astype(np.uint32)
    words = quads[:, 0] << 18 | quads[:, 1] << 12 | quads[:, 2] << 6 | quads[:, 3]
    room = words.astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].reshape(-1)
    kept = np.ones(room.size, bool)
    kept[ends[last] // 4 * 3 - 1] = False
    kept[ends[both] // 4 * 3 - 2] = False
    sizes = length // 4 * 3
    sizes[length > 0] -= last.astype(np.int64) + both.astype(np.int64)
    return of_spans(room[kept], sizes, pa.large_binary(), array.is_valid())
