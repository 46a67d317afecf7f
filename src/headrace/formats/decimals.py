"""Columns of decimals as plain text or as the bytes of their unscaled values, and back."""

from __future__ import annotations

from decimal import Decimal, Inexact, localcontext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats import base64_columns

_TEXT = pa.large_string()
LARGEST_SCALE, SMALLEST_SCALE = 16_383, -131_072  # as far as PostgreSQL's numeric goes
PLAIN = r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$"


def to_text(array: pa.Array) -> pa.Array:
    """Plain digits with as many decimals as the type's scale, never an exponent.

    >>> to_text(pa.array(["0.00000001", "-1.50000000", None]).cast(pa.decimal128(20, 8))).to_pylist()
    ['0.00000001', '-1.50000000', None]
    >>> to_text(pa.array([1234500]).cast(pa.decimal128(38, 0)).cast(pa.decimal128(5, -2))).to_pylist()
    ['1234500']
    """
    return scaled_text(unscaled(array).cast(_TEXT), array.type.scale)


def check_scale(scale: int) -> None:
    """Refuse a scale whose decimals would only fill memory.

    Raises:
        FormatError: it is none that PostgreSQL has.
    """
    if not SMALLEST_SCALE <= scale <= LARGEST_SCALE:
        raise FormatError(f"its scale is {scale}, not one of {SMALLEST_SCALE} to {LARGEST_SCALE}")


def scaled_text(digits: pa.Array, scale: int) -> pa.Array:
    """Integers' texts as decimals of this scale.

    >>> scaled_text(pa.array(["-5", "1234"]), 2).to_pylist()
    ['-0.05', '12.34']
    """
    digits = digits.cast(_TEXT)
    if scale == 0:
        return digits
    if scale < 0:
        zeros = pc.binary_join_element_wise(digits, pa.scalar("0" * -scale, _TEXT), pa.scalar("", _TEXT))
        return pc.if_else(pc.equal(digits, "0"), digits, zeros)
    minus = pc.starts_with(digits, "-")
    padded = pc.utf8_lpad(pc.utf8_ltrim(digits, "-"), scale + 1, "0")
    sign = pc.if_else(minus, pa.scalar("-", _TEXT), pa.scalar("", _TEXT))
    whole, rest = pc.utf8_slice_codeunits(padded, 0, -scale), pc.utf8_slice_codeunits(padded, -scale)
    return pc.binary_join_element_wise(sign, whole, pa.scalar(".", _TEXT), rest, pa.scalar("", _TEXT))


def unscaled(array: pa.Array) -> pa.Array:
    """The integers without the decimal point, as decimals of scale 0."""
    kind = array.type
    if not (pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind)):
        array = array.cast(pa.decimal128(kind.precision, kind.scale))
    wide = pa.decimal256(76, 0) if pa.types.is_decimal256(kind) else pa.decimal128(38, 0)
    return array.view(wide)


def to_bytes(array: pa.Array) -> pa.Array:
    """Unscaled values as two's complement, big-endian, in as few bytes as hold them (Java's `toByteArray`).

    >>> to_bytes(pa.array(["1.50", "-1.28", "0.00"]).cast(pa.decimal128(5, 2))).to_pylist()
    [b'\\x00\\x96', b'\\x80', b'\\x00']
    """
    numbers = unscaled(array)
    width = 32 if pa.types.is_decimal256(numbers.type) else 16
    raw = np.frombuffer(numbers.buffers()[1], np.uint8)[
        numbers.offset * width : (numbers.offset + len(numbers)) * width
    ]
    big = raw.reshape(-1, width)[:, ::-1]
    sign = np.where(big[:, :1] >= 128, 255, 0).astype(np.uint8)
    # A byte is needless when it and all before it repeat the sign, and the next byte shows the same sign.
    same = np.logical_and.accumulate(big == sign, axis=1)
    next_sign = (big[:, 1:] >= 128) == (sign >= 128)
    needless = np.zeros(big.shape, bool)
    needless[:, :-1] = same[:, :-1] & next_sign
    valid = np.asarray(array.is_valid())
    kept = ~needless & valid[:, None]
    return base64_columns.of_spans(big[kept], kept.sum(axis=1), pa.large_binary(), array.is_valid())


def from_bytes(array: pa.Array, scale: int) -> pa.Array:
    """Texts of decimals from the bytes of their unscaled values.

    >>> from_bytes(pa.array([b"\\x00\\x96", b"\\x80", None]), 2).to_pylist()
    ['1.50', '-1.28', None]
    """
    return scaled_text(_integers(array), scale)


def _integers(array: pa.Array) -> pa.Array:
    if (pc.max(pc.binary_length(array)).as_py() or 0) > 16:
        # Beyond Arrow's decimals. Python refuses to print very long ints, but not Decimals.
        values = [
            None if value is None else str(Decimal(int.from_bytes(value, "big", signed=True)))
            for value in array.to_pylist()
        ]
        return pa.array(values, _TEXT)
    return fixed_point(array, 38, 0).cast(_TEXT)


def fixed_point(values: pa.Array, precision: int, scale: int) -> pa.Array:
    """Read big-endian two's complement numbers as decimals; null where one has more than 16 bytes.

    >>> fixed_point(pa.array([b"\\xff\\x85", b"\\x01\\x00", None]), 5, 2).to_pylist()
    [Decimal('-1.23'), Decimal('2.56'), None]
    """
    flat = values.cast(pa.large_binary())
    offsets = np.frombuffer(flat.buffers()[1], np.int64)[flat.offset : flat.offset + len(flat) + 1]
    data = np.frombuffer(flat.buffers()[2] or b"", np.uint8)
    if not len(data):
        data = np.zeros(1, np.uint8)
    starts, stops = offsets[:-1], offsets[1:]
    lengths = stops - starts
    first = data[np.minimum(starts, len(data) - 1)]
    fill = np.where((lengths > 0) & (first & 0x80 != 0), 0xFF, 0).astype(np.uint8)
    # Byte k of the number, counted from its low end, lies k bytes before the value's end.
    back = np.arange(16)
    at = np.maximum(stops[:, None] - 1 - back, 0)
    number = np.where(back < lengths[:, None], data[at], fill[:, None])
    present = np.asarray(pc.is_valid(flat)) & (lengths <= 16)
    bitmap = pa.array(present).buffers()[1]
    kind = pa.decimal128(precision, scale)
    return pa.Array.from_buffers(kind, len(flat), [bitmap, pa.py_buffer(np.ascontiguousarray(number))])


def from_text(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Decimals of a type from plain texts, none rounded.

    Raises:
        ValueError, ArrowInvalid: a text is no decimal, or has more digits than the type.

    >>> from_text(pa.array(["12300", None]), pa.decimal128(5, -2)).to_pylist()
    [Decimal('1.23E+4'), None]
    """
    if kind.scale >= 0 and (pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind)) and _are_short(texts):
        return texts.cast(pa.string()).cast(kind)
    with localcontext() as context:
        context.prec = max(100, 2 * (pc.max(pc.utf8_length(texts)).as_py() or 0))
        try:
            values = [None if text is None else Decimal(text) for text in texts.to_pylist()]
        except ArithmeticError:
            raise ValueError("is no decimal") from None
        return pa.array([None if value is None else _trimmed(value, kind.scale) for value in values], kind)


def _are_short(texts: pa.Array) -> bool:
    """Return whether Arrow's own cast is exact: it wraps around where a text has more digits than 128 bits have."""
    longest = pc.max(pc.utf8_length(texts)).as_py()
    return longest is None or (longest <= 38 and not pc.any(pc.match_substring_regex(texts, "[eE]")).as_py())


def _trimmed(number: Decimal, scale: int) -> Decimal:
    """Without zeros at the end that the scale has no place for."""
    exponent = number.as_tuple().exponent
    if not isinstance(exponent, int):
        raise ValueError("is no number")
    if exponent >= -scale:
        return number
    with localcontext() as context:
        context.traps[Inexact] = True
        try:
            return number.quantize(Decimal(1).scaleb(-scale))
        except ArithmeticError:
            raise ValueError(f"has more decimals than the scale {scale}") from None
