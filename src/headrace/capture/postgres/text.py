"""Cells in PostgreSQL's text form as Arrow arrays, by Arrow's own parsers; the same values as the binary form gives.

The session is expected to have datestyle=ISO, timezone=UTC, bytea_output=hex, intervalstyle=postgres and
extra_float_digits above 0. As in `values`, a second result says which rows hold what Arrow cannot.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.capture.postgres import arrays, types
from headrace.capture.postgres.cells import Cells
from headrace.capture.postgres.values import Decoded

_DAY_US = 86_400_000_000
_DATE_PARTS = r"^(?P<year>\d{1,7})-(?P<month>\d\d)-(?P<day>\d\d)"
_TIME_PARTS = r" (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?(?:\+00)?"
_BC = r"(?P<bc> BC)?$"


def text(cells: Cells, valid: Mask | None, type_oid: int, arrow_type: pa.DataType) -> Decoded:
    """Decode the valid cells of a text column; the others become null.

    >>> cells = Cells(np.frombuffer(b"1.50-0.25", np.uint8), 2, ord("t"), np.array([4, 5]), start=np.array([0, 4]))
    >>> text(cells, None, 1700, pa.decimal128(4, 2))[0].to_pylist()
    [Decimal('1.50'), Decimal('-0.25')]
    """
    if type_oid == types.BOOL:
        return _bool(cells, valid)
    if type_oid == types.BYTEA:
        return _bytea(cells, valid)
    texts = arrays.of_spans(cells.buffer, cells.start, cells.lengths, pa.string(), valid)
    if pa.types.is_string(arrow_type):
        return texts, None
    try:
        return texts.cast(arrow_type), None
    except pa.ArrowInvalid:
        if pa.types.is_temporal(arrow_type):
            return _unusual_times(cells, texts, arrow_type)
        return _cast_what_can_be(texts, arrow_type)


def _bool(cells: Cells, valid: Mask | None) -> Decoded:
    first = cells.buffer[cells.start]
    values = first == ord("t")
    bad = ~(values | (first == ord("f"))) | (cells.lengths != 1)
    if valid is not None:
        bad &= valid
    if not bad.any():
        return arrays.of_bools(values, valid), None
    return arrays.of_bools(values, ~bad if valid is None else valid & ~bad), bad


_NIBBLES = np.full(256, 255, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)


def _bytea(cells: Cells, valid: Mask | None) -> Decoded:
    r"""Hexadecimal digits after ``\x``, decoded for all rows together."""
    start, length = cells.start, cells.lengths
    bad = (length < 2) | (length % 2 == 1) | (cells.buffer[start] != ord("\\"))
    bad |= cells.buffer[start + 1] != ord("x")
    if valid is not None:
        bad &= valid
    valid = valid if not bad.any() else ~bad if valid is None else valid & ~bad
    skip = 2 if valid is None else np.where(valid, 2, 0)
    digits = arrays.of_spans(cells.buffer, start + skip, np.maximum(length - skip, 0), pa.binary(), valid)
    offsets = np.frombuffer(digits.buffers()[1], np.int32)[digits.offset : digits.offset + len(digits) + 1]
    data = digits.buffers()[2]
    nibbles = _NIBBLES[np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.empty(0, np.uint8)]
    wrong = np.flatnonzero(nibbles == 255)
    if wrong.size:
        rows = np.searchsorted(offsets, wrong + offsets[0], "right") - 1
        bad[rows] = True
    sizes = np.diff(offsets) // 2
    array = arrays.of_text((nibbles[0::2] << 4 | nibbles[1::2]).astype(np.uint8), sizes, pa.binary(), valid)
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
    """Arrow casts years of four digits; `_dates_or_times` has the other years, and what is no time at all."""
    last = cells.start + np.maximum(cells.lengths, 1) - 1
    unusual = (cells.buffer[cells.start + 4] != ord("-")) | (cells.buffer[last] == ord("C"))
    mask = pa.array(unusual)
    try:
        array = pc.if_else(mask, pa.scalar(None, pa.string()), texts).cast(arrow_type)
    except pa.ArrowInvalid:
        return _dates_or_times(texts, arrow_type)
    array = pc.replace_with_mask(array, mask, _dates_or_times(texts.filter(mask), arrow_type)[0])
    return array, _lost(texts, array)


def _dates_or_times(texts: pa.StringArray, arrow_type: pa.DataType) -> Decoded:
    """Dates and timestamps with years before 1 or after 9999, which Arrow does not parse; infinity is lost.

    >>> _dates_or_times(pa.array(["0001-01-01 BC", "infinity"]), pa.date32())[0].cast(pa.int32()).to_pylist()
    [-719528, None]
    """
    dates = pa.types.is_date(arrow_type)
    parts = pc.extract_regex(texts, _DATE_PARTS + ("" if dates else _TIME_PARTS) + _BC)
    valid = pc.is_valid(parts).to_numpy(zero_copy_only=False)

    def number(name: str) -> Ints:
        field = pc.struct_field(parts, name)
        digits = pc.if_else(pc.and_(pc.is_valid(parts), pc.not_equal(field, "")), field, "0")
        numbers: Ints = digits.fill_null("0").cast(pa.int64()).to_numpy()
        return numbers

    bc = pc.not_equal(pc.struct_field(parts, "bc"), "").fill_null(False).to_numpy(zero_copy_only=False)
    year = np.where(bc, 1 - number("year"), number("year"))
    days = days_of(year, number("month"), number("day"))
    if dates:
        array = arrays.of_numbers(days.astype(np.int32), arrow_type, valid)
        return array, _lost(texts, array)
    seconds = (number("hour") * 60 + number("minute")) * 60 + number("second")
    fraction = pc.utf8_rpad(pc.struct_field(parts, "fraction").fill_null(""), 6, "0").cast(pa.int64()).to_numpy()
    # Times after the year 294247 do not fit 64 bits of microseconds since 1970.
    last = 2**63 - 1 - (seconds * 1_000_000 + fraction)
    fits = valid & (days <= last // _DAY_US)
    micros = np.where(fits, days, 0) * _DAY_US + seconds * 1_000_000 + fraction
    array = arrays.of_numbers(micros, arrow_type, fits)
    return array, _lost(texts, array)


def days_of(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days since 1970-01-01 of proleptic Gregorian dates; year 0 is 1 BC.

    Source: https://howardhinnant.github.io/date_algorithms.html#days_from_civil

    >>> days_of(np.array([2000, -4713]), np.array([1, 11]), np.array([1, 24])).tolist()
    [10957, -2440588]
    """
    year = year - (month <= 2)
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    days: Ints = era * 146_097 + day_of_era - 719_468
    return days
