"""Binary `numeric` values, all rows at once.

A value is int16 number of digits, int16 weight of the first, int16 sign (0x0000 plus, 0x4000 minus, 0xC000 NaN, 0xD000
Infinity, 0xF000 -Infinity), int16 dscale (digits shown after the point), then the digits in base 10,000: the value is
the sum of digit[i] * 10000 ** (weight - i).
(https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/numeric.c, `numeric_send`)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.arrays import Bytes, Ints, Mask
from headrace.capture.postgres import arrays
from headrace.capture.postgres.messages import Longs

_MINUS, _NAN, _PLUS_INFINITY, _MINUS_INFINITY = 0x4000, 0xC000, 0xD000, 0xF000
_SPECIAL = {_NAN: b"NaN", _PLUS_INFINITY: b"Infinity", _MINUS_INFINITY: b"-Infinity"}
_GROUPS = np.frombuffer("".join(f"{group:04d}" for group in range(10_000)).encode(), np.uint8).reshape(10_000, 4)
_CHUNK_CHARS = 1 << 22


class Numbers(NamedTuple):
    """The header fields of valid values, and where their digits start in ``buffer``."""

    buffer: Bytes
    digits: Ints
    ndigits: Ints
    weight: Ints
    sign: Ints
    dscale: Ints

    def take(self, rows: Ints | Mask) -> Numbers:
        return Numbers(self.buffer, *(field[rows] for field in self[1:]))

    def group(self, weight: int) -> Ints:
        """The base-10,000 digit of this weight in every value (0 where it has none)."""
        index = self.weight - weight
        there = (index >= 0) & (index < self.ndigits)
        at = np.where(there, self.digits + 2 * index, 0)
        # Two bytes of a digit; above 9999 only in damaged bytes.
        digit = (self.buffer[at].astype(np.int64) << 8) | self.buffer[at + 1]
        return np.where(there, digit, 0)


def read(buffer: Bytes, start: Ints, length: Ints) -> tuple[Numbers, Mask]:
    """Read the headers; also says which values contradict their length or the format."""
    wire = np.ndarray((buffer.size - 7,), ">i8", buffer, strides=(1,))
    word = wire[start].astype(np.int64)
    ndigits, weight = (word >> 48) & 0xFFFF, (word << 16) >> 48
    sign, dscale = (word >> 16) & 0xFFFF, word & 0x3FFF
    known = (sign == 0) | (sign == _MINUS) | (sign >= _NAN) & np.isin(sign, list(_SPECIAL))
    wrong = (length != 8 + 2 * ndigits) | ~known
    return Numbers(buffer, start + 8, ndigits, weight, sign, dscale), wrong


def to_decimals(numbers: Numbers, arrow_type: pa.Decimal128Type) -> tuple[Longs, Mask]:
    """Two's complement values (n, 2 words), and which rows do not fit (NaN, too many digits)."""
    precision, scale = arrow_type.precision, arrow_type.scale
    special = numbers.sign >= _NAN
    top = int(np.where(special | (numbers.ndigits == 0), -1, numbers.weight).max(initial=-1))
    bad = special | (numbers.weight * 4 >= precision - scale) & (numbers.ndigits > 0)
    top = min(top, (precision - scale - 1) // 4)
    low, high, over = (_small if 4 * (top + 1) + scale <= 18 else _large)(numbers, top, scale)
    limit_high, limit_low = divmod(10**precision, 1 << 64)
    bad |= over | (high > limit_high) | (high == limit_high) & (low >= limit_low)
    negative = numbers.sign == _MINUS
    words = np.empty((low.size, 2), np.uint64)
    words[:, 0] = np.where(negative, ~low + np.uint64(1), low)
    words[:, 1] = np.where(negative, ~high + (low == 0), high)
    return words, bad


def _small(numbers: Numbers, top: int, scale: int) -> tuple[Longs, Longs, Mask]:
    """Absolute values of at most 18 digits, times 10 ** scale: low and high word, and which overflow 128 bits."""
    value = np.zeros(numbers.sign.size, np.int64)
    for weight in range(max(top, -1), -1, -1):
        value = value * 10_000 + numbers.group(weight)
    whole, rest = divmod(scale, 4)
    for place in range(1, whole + 1):
        value = value * 10_000 + numbers.group(-place)
    if rest:
        value = value * 10**rest + numbers.group(-whole - 1) // 10 ** (4 - rest)
    return value.view(np.uint64), np.zeros(value.size, np.uint64), np.zeros(value.size, bool)


def _large(numbers: Numbers, top: int, scale: int) -> tuple[Longs, Longs, Mask]:
    """The same for up to 38 digits, in four limbs of 32 bits."""
    limbs = [np.zeros(numbers.sign.size, np.uint64) for _ in range(4)]
    over = np.zeros(numbers.sign.size, bool)

    def times_plus(factor: int, addend: Ints) -> None:
        carry = addend.view(np.uint64)
        for place, limb in enumerate(limbs):
            total = limb * np.uint64(factor) + carry
            limbs[place], carry = total & np.uint64(0xFFFFFFFF), total >> np.uint64(32)
        np.logical_or(over, carry > 0, out=over)

    whole, rest = divmod(scale, 4)
    for weight in range(max(top, -1), -whole - 1, -1):
        times_plus(10_000, numbers.group(weight))
    if rest:
        times_plus(10**rest, numbers.group(-whole - 1) // 10 ** (4 - rest))
    shift = np.uint64(32)
    return limbs[0] | limbs[1] << shift, limbs[2] | limbs[3] << shift, over


def to_text(numbers: Numbers, valid: Mask | None) -> pa.Array:
    """PostgreSQL's text of every value, dscale and all; ``numbers`` has the valid rows only."""
    n = numbers.sign.size
    length = np.zeros(n, np.int64)
    parts: list[tuple[Ints, Bytes, Ints]] = []
    for rows in _alike(numbers):
        text, sizes = _text(numbers.take(rows))
        parts.append((rows, text, sizes))
        length[rows] = sizes
    data = parts[0][1] if len(parts) == 1 else _interleave(parts, length)
    if valid is not None:
        every = np.zeros(valid.size, np.int64)
        every[valid] = length
        length = every
    return arrays.of_text(data, length, pa.string(), valid)


def _alike(numbers: Numbers) -> Iterator[Ints]:
    """Rows whose texts are of about one width, so that few huge values do not widen all the others."""
    groups = np.maximum(numbers.weight, 0) + (numbers.dscale >> 2)
    width = np.maximum(np.frexp(groups / 4)[1], 0)
    for one in np.unique(width):
        rows = np.flatnonzero(width == one)
        step = max(1, _CHUNK_CHARS >> (int(one) + 4))
        for at in range(0, rows.size, step):
            yield rows[at : at + step]


def _text(numbers: Numbers) -> tuple[Bytes, Ints]:
    """Texts of some values laid end to end, and their lengths: a matrix of characters less the ones not shown."""
    n = numbers.sign.size
    special = numbers.sign >= _NAN
    top = max(int(np.where(special, 0, numbers.weight).max()), 0)
    places = -(-int(np.where(special, 0, numbers.dscale).max()) // 4)
    point = 1 + 4 * (top + 1)
    chars = np.empty((n, max(point + 1 + 4 * places, len(b"-Infinity"))), np.uint8)
    chars[:, 0], chars[:, point] = ord("-"), ord(".")
    for weight in range(top, -places - 1, -1):
        at = 1 + 4 * (top - weight) + (1 if weight < 0 else 0)
        chars[:, at : at + 4] = _GROUPS.take(numbers.group(weight), axis=0, mode="clip")
    shown = np.zeros(chars.shape, bool)
    shown[:, 0] = numbers.sign == _MINUS
    np.logical_or.accumulate(chars[:, 1:point] != ord("0"), axis=1, out=shown[:, 1:point])
    shown[:, point - 1] = True
    shown[:, point] = numbers.dscale > 0
    shown[:, point + 1 : point + 1 + 4 * places] = np.arange(4 * places) < numbers.dscale[:, None]
    for row in np.flatnonzero(special):
        name = _SPECIAL[int(numbers.sign[row])]
        chars[row, : len(name)] = np.frombuffer(name, np.uint8)
        shown[row] = np.arange(chars.shape[1]) < len(name)
    return chars[shown], shown.sum(axis=1)


def _interleave(parts: list[tuple[Ints, Bytes, Ints]], length: Ints) -> Bytes:
    """Put texts of several groups of rows in row order."""
    start = np.cumsum(length) - length
    data = np.empty(int(length.sum()), np.uint8)
    for rows, text, sizes in parts:
        inside = np.arange(text.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        data[np.repeat(start[rows], sizes) + inside] = text
    return data
