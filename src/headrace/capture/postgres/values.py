"""Cells in PostgreSQL's binary form (`typsend`) and in its text form as Arrow arrays; both give the same values.

`binary(...)` and `text(...)` decode one column. Their second result says which rows hold what Arrow cannot (NaN in a
decimal, a time out of range); they are null in the array. Infinity, as a day or an instant, is the largest number of
its type, -infinity the smallest (`headrace.plain_values`). A value that contradicts its type raises `Malformed`.

Text is read by Arrow's own parsers; the session is expected to have datestyle=ISO, timezone=UTC, bytea_output=hex,
intervalstyle=postgres and extra_float_digits above 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Bytes, Ints, Mask
from headrace.capture.postgres import types
from headrace.capture.postgres.cells import Cells
from headrace.capture.postgres.messages import UNIX_2000_US, Longs
from headrace.plain_values import is_list, times_of

UNIX_2000_DAYS = 10_957
_INT64_MAX = np.iinfo(np.int64).max

Decoded = tuple[pa.Array, Mask | None]
_Decode = Callable[[Cells, Mask | None, pa.DataType], Decoded]


class Malformed(Exception):
    """A value that its type does not allow, by its row among the cells given."""

    def __init__(self, row: int, what: str) -> None:
        super().__init__(what)
        self.row = row


def binary(cells: Cells, valid: Mask | None, type_oid: int, arrow_type: pa.DataType) -> Decoded:
    """Decode the valid cells of a binary column; the others become null.

    >>> cells = Cells(np.frombuffer(bytes([0, 7, 0, 9]), np.uint8), 2, ord("b"), 2, stride=2)
    >>> binary(cells, None, 21, pa.int16())[0].to_pylist()
    [7, 9]
    """
    if is_list(arrow_type):
        return vectors_sent(cells.buffer, cells.start, cells.lengths, valid, arrow_type), None
    return _DECODERS[type_oid](cells, valid, arrow_type)


def check_length(cells: Cells, valid: Mask | None, width: int) -> None:
    """See that every valid value has this many bytes."""
    if isinstance(cells.length, int):
        if cells.length != width:
            raise Malformed(0, f"a value of {cells.length} bytes where its type has {width}")
        return
    wrong = cells.length != width if valid is None else (cells.length != width) & valid
    if wrong.any():
        row = int(wrong.argmax())
        raise Malformed(row, f"a value of {cells.length[row]} bytes where its type has {width}")


def _fixed(dtype: str) -> _Decode:
    width = int(dtype[-1])

    def decode(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
        check_length(cells, valid, width)
        return of_numbers(cells.numbers(dtype), arrow_type, valid), None

    return decode


def _oid(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 4)
    return of_numbers(cells.numbers(">u4").astype(np.int64), arrow_type, valid), None


def _bool(cells: Cells, valid: Mask | None, _: pa.DataType) -> Decoded:
    check_length(cells, valid, 1)
    return of_bools(cells.numbers("u1") != 0, valid), None


def _date(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 4)
    return _shifted(cells.numbers(">i4"), UNIX_2000_DAYS, arrow_type, valid)


def _timestamp(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 8)
    return _shifted(cells.numbers(">i8"), UNIX_2000_US, arrow_type, valid)


def _shifted(values: npt.NDArray[np.signedinteger], by: int, arrow_type: pa.DataType, valid: Mask | None) -> Decoded:
    """Count from 1970 instead of 2000. The extremes are infinity and -infinity, before and after."""
    low, high = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
    odd = (values == low) | (values > high - by)
    if not odd.any():
        values += values.dtype.type(by)
        return of_numbers(values, arrow_type, valid), None
    infinite = (values == low) | (values == high)
    bad = odd & ~infinite
    values = np.where(infinite, values, np.where(odd, 0, values) + values.dtype.type(by))
    if not bad.any():
        return of_numbers(values, arrow_type, valid), None
    bad = bad if valid is None else bad & valid
    return of_numbers(values, arrow_type, ~bad if valid is None else valid & ~bad), bad if bad.any() else None


def _bytes(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    return of_spans(cells.buffer, cells.start, cells.lengths, arrow_type, valid), None


def _jsonb(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    """Decode jsonb: a version byte, 1, and the text."""
    wrong = (cells.buffer[cells.start] != 1) | (cells.lengths < 1)
    if valid is not None:
        wrong &= valid
    if wrong.any():
        raise Malformed(int(wrong.argmax()), "a jsonb value that is not of version 1")
    skip = 1 if valid is None else valid.astype(np.int64)
    return of_spans(cells.buffer, cells.start + skip, cells.lengths - skip, arrow_type, valid), None


_CHARS = pa.array(["", *map(chr, range(1, 128)), *(f"\\{code:03o}" for code in range(128, 256))])


def _char(cells: Cells, valid: Mask | None, _: pa.DataType) -> Decoded:
    """Decode one byte; PostgreSQL shows 0 as the empty string and bytes above 127 in octal (`charout`)."""
    check_length(cells, valid, 1)
    codes = cells.numbers("u1")
    return _CHARS.take(pa.array(codes, mask=None if valid is None else ~valid)), None


_HEX = np.frombuffer(bytes(range(256)).hex().encode(), np.uint16)
_UUID_GROUPS = ((8, 0, 0), (4, 8, 9), (4, 12, 14), (4, 16, 19), (12, 20, 24))  # width, from, to


def _uuid(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    check_length(cells, valid, 16)
    start = cells.start if valid is None else cells.start[valid]
    n = start.size
    values = np.ndarray((cells.buffer.size - 15,), "V16", cells.buffer, strides=(1,))[start].view(np.uint8)
    digits = _HEX.take(values)
    text = np.full(36 * n, ord("-"), np.uint8)
    for width, source, target in _UUID_GROUPS:
        into: npt.NDArray[np.void] = np.ndarray((n,), f"V{width}", text, target, (36,))
        into[...] = np.ndarray((n,), f"V{width}", digits, source, (32,))
    length: Ints = np.full(cells.n, 36, np.int64) if valid is None else valid * np.int64(36)
    return of_text(text, length, arrow_type, valid), None


def _numeric(cells: Cells, valid: Mask | None, arrow_type: pa.DataType) -> Decoded:
    rows = np.arange(cells.n) if valid is None else np.flatnonzero(valid)
    numbers, wrong = read_numerics(cells.buffer, cells.start[rows], cells.lengths[rows])
    if wrong.any():
        raise Malformed(int(rows[wrong.argmax()]), "a numeric value that contradicts its length or sign")
    if pa.types.is_string(arrow_type):
        return to_text(numbers, valid), None
    words, bad = to_decimals(numbers, arrow_type)
    if valid is None and not bad.any():
        return of_numbers(words, arrow_type, None), None
    every = np.zeros((cells.n, 2), np.uint64)
    every[rows[~bad]] = words[~bad]
    kept, lost = np.zeros(cells.n, bool), np.zeros(cells.n, bool)
    kept[rows[~bad]], lost[rows[bad]] = True, True
    return of_numbers(every, arrow_type, kept), lost if bad.any() else None


_DECODERS: dict[int, _Decode] = {
    types.BOOL: _bool,
    types.INT2: _fixed(">i2"),
    types.INT4: _fixed(">i4"),
    types.INT8: _fixed(">i8"),
    types.OID: _oid,
    types.FLOAT4: _fixed(">f4"),
    types.FLOAT8: _fixed(">f8"),
    types.DATE: _date,
    types.TIMESTAMP: _timestamp,
    types.TIMESTAMPTZ: _timestamp,
    types.NUMERIC: _numeric,
    types.CHAR: _char,
    types.UUID: _uuid,
    types.JSONB: _jsonb,
    types.BYTEA: _bytes,
    types.TEXT: _bytes,
    types.NAME: _bytes,
    types.BPCHAR: _bytes,
    types.VARCHAR: _bytes,
    types.JSON: _bytes,
}


# --- Arrow arrays made of NumPy's: from numbers, from spans of a buffer, from text laid end to end ---

_EVENS = np.arange(0, 2 * 65_536, 2, dtype=np.int64)


def validity(valid: Mask | None) -> pa.Buffer | None:
    """Return Arrow's bitmap of valid rows; None stands for all."""
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def of_numbers(values: npt.NDArray[Any], arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """Return an array of fixed-width values; what stands under a null is cleared.

    >>> of_numbers(np.array([1, 2], np.int32), pa.date32(), np.array([True, False])).to_pylist()
    [datetime.date(1970, 1, 2), None]
    """
    if valid is not None:
        values[~valid] = 0
    return pa.Array.from_buffers(arrow_type, len(values), [validity(valid), pa.py_buffer(values)])


def of_bools(values: Mask, valid: Mask | None) -> pa.Array:
    """Return an array of booleans."""
    if valid is not None:
        values = values & valid
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), values.size, [validity(valid), bits])


def of_spans(buffer: Bytes, start: Ints, length: Ints, arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """Return strings or bytes that stand in ``buffer`` in row order.

    The buffer is seen as 2n-1 values, wanted ones and the gaps between them, of which Arrow takes every other.

    >>> data = np.frombuffer(b"..ab..cde", np.uint8)
    >>> of_spans(data, np.array([2, 6]), np.array([2, 3]), pa.string(), None).to_pylist()
    ['ab', 'cde']
    """
    n = start.size
    if not n:
        return pa.array([], arrow_type)
    low = int(start[0])
    offsets = np.empty(2 * n, np.int32)
    offsets[0::2] = start if not low else start - low
    np.add(offsets[0::2], length, out=offsets[1::2], casting="unsafe")
    data = pa.py_buffer(buffer[low : int(start[-1]) + int(length[-1])])
    values = pa.Array.from_buffers(arrow_type, 2 * n - 1, [None, pa.py_buffer(offsets), data])
    evens = _EVENS[:n] if n <= _EVENS.size else np.arange(0, 2 * n, 2, dtype=np.int64)
    return values.take(pa.Array.from_buffers(pa.int64(), n, [validity(valid), pa.py_buffer(evens)]))


def of_text(data: Bytes, length: Ints, arrow_type: pa.DataType, valid: Mask | None) -> pa.Array:
    """Return strings or bytes laid end to end; a null's length is 0."""
    offsets = np.zeros(length.size + 1, np.int32)
    np.cumsum(length, out=offsets[1:])
    buffers = [validity(valid), pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(arrow_type, length.size, buffers)


# --- binary numeric, all rows at once ---
#
# A value is int16 number of digits, int16 weight of the first, int16 sign (0x0000 plus, 0x4000 minus, 0xC000 NaN,
# 0xD000 Infinity, 0xF000 -Infinity), int16 dscale (digits shown after the point), then the digits in base 10,000: the
# value is the sum of digit[i] * 10000 ** (weight - i).
# (https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/numeric.c, `numeric_send`)

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
        """Return the base-10,000 digit of this weight in every value (0 where it has none)."""
        index = self.weight - weight
        there = (index >= 0) & (index < self.ndigits)
        at = np.where(there, self.digits + 2 * index, 0)
        # Two bytes of a digit; above 9999 only in damaged bytes.
        digit = (self.buffer[at].astype(np.int64) << 8) | self.buffer[at + 1]
        return np.where(there, digit, 0)


def read_numerics(buffer: Bytes, start: Ints, length: Ints) -> tuple[Numbers, Mask]:
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
    """Return absolute values of at most 18 digits, times 10 ** scale: two words, and which overflow 128 bits."""
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
    """Return the same for up to 38 digits, in four limbs of 32 bits."""
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
    """Return PostgreSQL's text of every value, dscale and all; ``numbers`` has the valid rows only."""
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
    return of_text(data, length, pa.string(), valid)


def _alike(numbers: Numbers) -> Iterator[Ints]:
    """Yield rows whose texts are of about one width, so that few huge values do not widen all the others."""
    groups = np.maximum(numbers.weight, 0) + (numbers.dscale >> 2)
    width = np.maximum(np.frexp(groups / 4)[1], 0)
    for bits in np.unique(width):
        rows = np.flatnonzero(width == bits)
        step = max(1, _CHUNK_CHARS >> (int(bits) + 4))
        for at in range(0, rows.size, step):
            yield rows[at : at + step]


def _text(numbers: Numbers) -> tuple[Bytes, Ints]:
    """Lay texts of some values end to end: a matrix of characters less the ones not shown; and their lengths."""
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


def not_utf8(array: pa.Array) -> Mask | None:
    """Return which texts are not UTF-8, as of a database with the encoding SQL_ASCII; None where all are.

    >>> not_utf8(pa.array([b"a", b"\\xff", None]).view(pa.string())).tolist()
    [False, True, False]
    """
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return np.array([_is_strange(text) for text in array.view(pa.binary()).to_pylist()])
    return None


def _is_strange(text: bytes | None) -> bool:
    try:
        return text is not None and text.decode() is None
    except UnicodeDecodeError:
        return True


def without(array: pa.Array, lost: Mask) -> pa.Array:
    """Return texts with nulls where they are no UTF-8."""
    return pc.if_else(pa.array(~lost), array.view(pa.binary()), pa.scalar(None, pa.binary())).cast(pa.string())


# --- the text form ---


def text(cells: Cells, valid: Mask | None, type_oid: int, arrow_type: pa.DataType) -> Decoded:
    """Decode the valid cells of a text column; the others become null.

    >>> cells = Cells(np.frombuffer(b"1.50-0.25", np.uint8), 2, ord("t"), np.array([4, 5]), start=np.array([0, 4]))
    >>> text(cells, None, 1700, pa.decimal128(4, 2))[0].to_pylist()
    [Decimal('1.50'), Decimal('-0.25')]
    """
    if type_oid == types.BOOL:
        return _bool_text(cells, valid)
    if type_oid == types.BYTEA:
        return _bytea(cells, valid)
    texts = of_spans(cells.buffer, cells.start, cells.lengths, pa.string(), valid)
    if pa.types.is_string(arrow_type):
        return texts, None
    if is_list(arrow_type):
        return vectors(texts, arrow_type), None
    try:
        return texts.cast(arrow_type), None
    except pa.ArrowInvalid:
        if pa.types.is_temporal(arrow_type):
            return _unusual_times(cells, texts, arrow_type)
        return _cast_what_can_be(texts, arrow_type)


def vectors(texts: pa.StringArray, arrow_type: pa.DataType) -> pa.Array:
    """Return pgvector's text of vectors as lists of numbers.

    Raises:
        Malformed: one is none, or has not as many numbers as its type.

    >>> vectors(pa.array(["[1,-0.5]", None]), pa.list_(pa.float32(), 2)).to_pylist()
    [[1.0, -0.5], None]
    """
    lists = pc.split_pattern(pc.utf8_slice_codeunits(texts, 1, -1), ",")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0)).astype(np.int64)
    try:
        numbers = np.asarray(lists.flatten().cast(pa.float32()))
    except pa.ArrowInvalid as error:
        raise Malformed(0, f"a vector that is none: {error}") from error
    return _vectors(numbers, lengths, np.asarray(texts.is_valid()), arrow_type)


def vectors_sent(buffer: Bytes, start: Ints, length: Ints, valid: Mask | None, arrow_type: pa.DataType) -> pa.Array:
    """Return vectors in pgvector's binary form: how many numbers, two bytes of nothing, the numbers of 4 or 2 bytes.

    Raises:
        Malformed: one is none, or has not as many numbers as its type.

    >>> sent = np.frombuffer(bytes.fromhex("000200003f800000bf000000"), np.uint8)
    >>> vectors_sent(sent, np.array([0]), np.array([12]), None, pa.list_(pa.float32(), 2)).to_pylist()
    [[1.0, -0.5]]
    """
    held = np.ones(start.size, bool) if valid is None else valid
    if not held.any():
        return pa.nulls(start.size, arrow_type)
    _refuse(held & (length < 6), length)
    first = np.where(held, start, start[held.argmax()])
    counts = np.where(held, (buffer[first].astype(np.int64) << 8) | buffer[first + 1], 0)
    size = np.where(held, length - 4, 0)
    width = 2 if (size == 2 * counts).all() else 4
    _refuse(held & ((size != width * counts) | (counts == 0)), length)
    packed = of_spans(buffer, np.where(held, start + 4, start), size, pa.binary(), valid)
    offsets = np.frombuffer(packed.buffers()[1], np.int32)[packed.offset : packed.offset + len(packed) + 1]
    data = np.frombuffer(packed.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    return _vectors(data.view(f">f{width}").astype(np.float32), counts, held, arrow_type)


def _refuse(wrong: Mask, length: Ints) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise Malformed(row, f"a value of {length[row]} bytes that is no vector")


def _vectors(numbers: npt.NDArray[np.float32], lengths: Ints, held: Mask, arrow_type: pa.DataType) -> pa.Array:
    """Return lists of as many numbers each, none in those that are not held, which are null."""
    mask = None if held.all() else pa.array(~held)
    if not pa.types.is_fixed_size_list(arrow_type):
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(numbers), type=arrow_type, mask=mask)
    size = arrow_type.list_size
    wrong = held & (lengths != size)
    if wrong.any():
        row = int(wrong.argmax())
        raise Malformed(row, f"a vector of {lengths[row]} numbers where its type has {size}")
    if mask is not None:
        padded = np.zeros((held.size, size), np.float32)
        padded[held] = numbers.reshape(-1, size)
        numbers = padded.ravel()
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=arrow_type, mask=mask)


def _bool_text(cells: Cells, valid: Mask | None) -> Decoded:
    first = cells.buffer[cells.start]
    values = first == ord("t")
    bad = ~(values | (first == ord("f"))) | (cells.lengths != 1)
    if valid is not None:
        bad &= valid
    if not bad.any():
        return of_bools(values, valid), None
    return of_bools(values, ~bad if valid is None else valid & ~bad), bad


_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def _bytea(cells: Cells, valid: Mask | None) -> Decoded:
    r"""Decode hexadecimal digits after ``\x``, for all rows together."""
    start, length = cells.start, cells.lengths
    bad = (length < 2) | (length % 2 == 1) | (cells.buffer[start] != ord("\\"))
    bad |= cells.buffer[start + 1] != ord("x")
    if valid is not None:
        bad &= valid
    valid = valid if not bad.any() else ~bad if valid is None else valid & ~bad
    skip = 2 if valid is None else np.where(valid, 2, 0)
    digits = of_spans(cells.buffer, start + skip, np.maximum(length - skip, 0), pa.binary(), valid)
    offsets = np.frombuffer(digits.buffers()[1], np.int32)[digits.offset : digits.offset + len(digits) + 1]
    data = digits.buffers()[2]
    nibbles = _NIBBLES[np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.empty(0, np.uint8)]
    wrong = np.flatnonzero(nibbles == 255)
    if wrong.size:
        rows = np.searchsorted(offsets, wrong + offsets[0], "right") - 1
        bad[rows] = True
    sizes = np.diff(offsets) // 2
    array = of_text((nibbles[0::2] << 4 | nibbles[1::2]).astype(np.uint8), sizes, pa.binary(), valid)
    if wrong.size:
        array = pc.if_else(pa.array(bad), pa.scalar(None, pa.binary()), array)
    return array, bad if bad.any() else None


def _cast_what_can_be(texts: pa.StringArray, arrow_type: pa.DataType) -> Decoded:
    """Cast, with nulls for the values that cannot be: NaN in a decimal first, then whatever halving finds."""
    kept = pc.if_else(pc.equal(texts, "NaN"), pa.scalar(None, pa.string()), texts)
    parts: list[pa.Array] = []
    _halve(kept, arrow_type, parts)
    array = pa.concat_arrays(parts)
    return array, _lost(texts, array)


def _halve(texts: pa.StringArray, arrow_type: pa.DataType, parts: list[pa.Array]) -> None:
    try:
        parts.append(texts.cast(arrow_type))
    except pa.ArrowInvalid:
        if len(texts) == 1:
            parts.append(pa.nulls(1, arrow_type))
            return
        middle = len(texts) // 2
        _halve(texts[:middle], arrow_type, parts)
        _halve(texts[middle:], arrow_type, parts)


def _lost(texts: pa.StringArray, array: pa.Array) -> Mask | None:
    bad = pc.and_(pc.is_valid(texts), pc.is_null(array)).to_numpy(zero_copy_only=False)
    return bad if bad.any() else None


def _unusual_times(cells: Cells, texts: pa.StringArray, arrow_type: pa.DataType) -> Decoded:
    """Cast times; Arrow does years of four digits, `times_of` the others, and what is no time at all."""
    last = cells.start + np.maximum(cells.lengths, 1) - 1
    unusual = (cells.buffer[cells.start + 4] != ord("-")) | (cells.buffer[last] == ord("C"))
    mask = pa.array(unusual)
    try:
        array = pc.if_else(mask, pa.scalar(None, pa.string()), texts).cast(arrow_type)
    except pa.ArrowInvalid:
        array = times_of(texts, arrow_type)
    else:
        array = pc.replace_with_mask(array, mask, times_of(texts.filter(mask), arrow_type))
    return array, _lost(texts, array)
