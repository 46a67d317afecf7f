"""The time at which something happened: of a column of the row, or of the commit that brought it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arrays import Ints, Mask
from headrace.batch import Batch

Times = tuple[Ints, Mask, dict[int, str]]
_UTC = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What is added to a time, a window's length or how long a row waits, must not leave 64 bits: years to 148,000.
_FARTHEST_US = 2**62 - 1
# Whole numbers are milliseconds; those of later years than 9999 are another unit.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_DAY_US = 86_400_000_000
_US_PER = {"s": 1_000_000, "ms": 1_000, "us": 1}
_TEXT = re.compile(
    r"([+-]?\d{4,6})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(\.\d{1,9})?)?)?"
    r"\s*(?:(Z|UTC)|([+-])(\d\d)(?::?(\d\d))?(?::?(\d\d))?)?( BC)?",
    re.ASCII,
)


def event_times(batch: Batch, column: str | None) -> Times:
    """Return microseconds since 1970-01-01 UTC, which rows have a time, and why the others do not.

    Args:
        column: a timestamp or date; ISO 8601 text, or as PostgreSQL prints it (without a zone it is UTC); or whole
            milliseconds since 1970, of the years 1 to 9999. None: the time of the commit.

    >>> rows = Batch.of({"at": ["1970-01-01T00:00:01Z", "1970-01-01 02:00:00+02:00", "soon"]})
    >>> times, valid, reasons = event_times(rows, "at")
    >>> times[valid].tolist(), reasons
    ([1000000, 0], {2: "the time «at» is 'soon'"})
    """
    n = batch.num_rows
    if column is None:
        return batch.ts_us, np.ones(n, np.bool_), {}
    if column not in batch.schema.names:
        reasons = dict.fromkeys(range(n), f"there is no column «{column}» for the time")
        return np.zeros(n, np.int64), np.zeros(n, np.bool_), reasons
    array = batch.column(column)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    found, valid = _microseconds(array)
    valid &= (found >= -_FARTHEST_US) & (found <= _FARTHEST_US)
    more = _advice(array.type)
    shown = {row: _shown(array[row]) for row in np.flatnonzero(~valid).tolist()}
    reasons = {row: f"the time «{column}» is {text}{more if text != 'NULL' else ''}" for row, text in shown.items()}
    return np.where(valid, found, 0), valid, reasons


def _advice(kind: pa.DataType) -> str:
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return ": a number is whole milliseconds since 1970, of the years 1 to 9999"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "" if text or pa.types.is_timestamp(kind) or pa.types.is_date(kind) else f", which is {kind} and no time"


def holds_times(kind: pa.DataType) -> bool:
    """Return whether values of a type may be times: timestamps, dates, numbers, texts; and where there are only NULLs.

    >>> holds_times(pa.date32()), holds_times(pa.bool_())
    (True, False)
    """
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_null(kind) or pa.types.is_string_view(kind) or "no time" not in _advice(kind))


def _microseconds(array: pa.Array) -> tuple[Ints, Mask]:
    """Return times, and which rows have one; those too far away to be counted in 64 bits have none."""
    kind = array.type
    none = np.zeros(len(array), np.int64), np.zeros(len(array), np.bool_)
    if pa.types.is_timestamp(kind):
        numbers, valid = _numbers(array.view(pa.int64()))
        if kind.unit == "ns":
            return numbers // 1000, valid & _finite(numbers, 64)
        return _scaled(numbers, _US_PER[kind.unit], valid & _finite(numbers, 64))
    if pa.types.is_date32(kind):
        days, valid = _numbers(array.view(pa.int32()).cast(pa.int64()))
        return _scaled(days, _DAY_US, valid & _finite(days, 32))
    if pa.types.is_date64(kind):
        numbers, valid = _numbers(array.view(pa.int64()))
        return _scaled(numbers, 1000, valid & _finite(numbers, 64))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _milliseconds(array)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return none
    return _texts(array)


def _numbers(array: pa.Array) -> tuple[Ints, Mask]:
    valid = np.asarray(array.is_valid())
    return np.asarray(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), np.int64), valid.copy()


def _finite(numbers: Ints, bits: int) -> Mask:
    """Return which numbers stand for no infinity."""
    most = (1 << bits - 1) - 1
    return (numbers < most) & (numbers > -most)


def _scaled(numbers: Ints, by: int, valid: Mask) -> tuple[Ints, Mask]:
    valid = valid & (numbers <= _FARTHEST_US // by) & (numbers >= -_FARTHEST_US // by)
    return np.where(valid, numbers, 0) * by, valid


def _milliseconds(array: pa.Array) -> tuple[Ints, Mask]:
    """Whole milliseconds, of floats and decimals too."""
    if pa.types.is_signed_integer(array.type):
        numbers, valid = _numbers(array.cast(pa.int64()))
    else:
        floats = np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False), np.float64)
        # Within these years a double holds every whole number; what a decimal has after the point it may not.
        valid = (floats >= _FIRST_MS) & (floats <= _LAST_MS)
        numbers = np.where(valid, floats, 0).astype(np.int64)
        valid &= numbers == np.where(valid, floats, 0)
        if pa.types.is_decimal(array.type):
            whole = [
                number is not None and number == number.to_integral_value() for number in plain_values.values(array)
            ]
            valid &= np.array(whole, np.bool_)
    return _scaled(numbers, 1000, valid & (numbers >= _FIRST_MS) & (numbers <= _LAST_MS))


def _texts(array: pa.Array) -> tuple[Ints, Mask]:
    try:
        return _numbers(array.cast(_UTC).view(pa.int64()))
    except (pa.ArrowException, ValueError):
        pass
    # Some other text than Arrow's, or no time at all: value by value, whatever its neighbours are.
    known: dict[str | None, int | None] = {None: None}
    for text in set(plain_values.values(array)) - {None}:
        known[text] = _parsed(text)
    return _numbers(pa.array([known[text] for text in plain_values.values(array)], pa.int64()))


def _parsed(text: str) -> int | None:
    try:
        return int(_numbers(pa.array([text]).cast(_UTC).view(pa.int64()))[0][0])
    except (pa.ArrowException, ValueError):
        pass
    try:
        when = datetime.fromisoformat(text)
        since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        return _as_printed(text)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _as_printed(text: str) -> int | None:
    """Read text of PostgreSQL: years before Christ, and of more than four digits."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        return None
    era, month, day, hour, minute, second, fraction, _, sign, *zone, bc = found.groups()
    year = 1 - int(era) if bc else int(era)
    try:
        days = np.datetime64(f"{year:05d}-{month}-{day}", "D").astype(np.int64)
    except ValueError:
        return None
    clock = [int(part or 0) for part in (hour, minute, second)]
    if clock[0] > 24 or max(clock[1:]) > 59 or (clock[0] == 24 and any(clock[1:])):
        return None
    away = sum(int(part or 0) * by for part, by in zip(zone, (3600, 60, 1), strict=True)) * (-1 if sign == "-" else 1)
    seconds = int(days) * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2] - away
    return seconds * 1_000_000 + int(((fraction or ".0")[1:] + "000000")[:6])


def _shown(value: pa.Scalar) -> str:
    return repr(plain_values.value(value)) if value.is_valid else "NULL"
