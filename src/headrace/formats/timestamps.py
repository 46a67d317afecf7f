"""Instants and times of day as ISO 8601 text and back, in any year that PostgreSQL or Java knows.

Years beyond 9999 carry a sign (``+20000-01-01T…``), years before 1 are astronomical (``-0043`` is 44 BC), as Java's
`OffsetDateTime` prints them, which is what Debezium sends.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.plain_values import PER_SECOND, beyond, civil, days_of

_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800
_ISO = (
    r"^(?P<year>[+-]?\d{4,9})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[T ](?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?)?"
    r"(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?$"
)


def to_iso(array: pa.Array) -> pa.LargeStringArray:
    """Instants of a timestamp column as ISO text in UTC, with as many decimals as the unit has.

    >>> to_iso(pa.array([0, 253402300800000000, -62167219200000001], pa.timestamp("us", "UTC"))).to_pylist()
    ['1970-01-01T00:00:00.000000Z', '+10000-01-01T00:00:00.000000Z', '-0001-12-31T23:59:59.999999Z']
    """
    unit = array.type.unit
    if unit == "ns":  # 64 bits of nanoseconds end in 2262
        return _joined(array.view(pa.timestamp(unit)))
    numbers = array.view(pa.int64())
    per = PER_SECOND[unit]
    usual = pc.and_(pc.greater_equal(numbers, _YEAR_1 * per), pc.less(numbers, _YEAR_10000 * per))
    if not usual.false_count:
        return _joined(array.view(pa.timestamp(unit)))
    odd = [i for i, value in enumerate(usual.to_pylist()) if value is False]
    texts = _joined(pc.if_else(usual, numbers, pa.scalar(0, pa.int64())).view(pa.timestamp(unit)))
    mask = pc.fill_null(pc.invert(usual), False)
    replaced = pa.array([iso_text(numbers[i].as_py(), unit) for i in odd], pa.large_string())
    return pc.replace_with_mask(texts, mask, replaced)


def to_iso_days(array: pa.Array) -> pa.LargeStringArray:
    """Days of a date column as ISO text.

    >>> to_iso_days(pa.array([19782, 2145042905, None], pa.int32()).view(pa.date32())).to_pylist()
    ['2024-02-29', '+5874897-12-31', None]
    """
    text, days = pa.large_string(), array.cast(pa.date32(), safe=False)
    if not beyond(days):
        return days.cast(text)
    return pa.array([None if value is None else date_text(value) for value in days.view(pa.int32()).to_pylist()], text)


def _joined(plain: pa.Array) -> pa.LargeStringArray:
    text = pa.large_string()
    with_t = pc.binary_replace_slice(plain.cast(text), 10, 11, "T")
    return pc.binary_join_element_wise(with_t, pa.scalar("Z", text), pa.scalar("", text))


def iso_text(number: int, unit: str) -> str:
    """One instant in UTC.

    >>> iso_text(-63549360000, "s")
    '-0044-03-15T00:00:00Z'
    """
    seconds, fraction = divmod(number, PER_SECOND[unit])
    days, rest = divmod(seconds, 86_400)
    digits = _DIGITS[unit]
    decimals = f".{fraction:0{digits}d}" if digits else ""
    return f"{date_text(days)}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}{decimals}Z"


def date_text(days: int) -> str:
    """A day since 1970-01-01 in ISO form.

    >>> date_text(19782), date_text(-719529), date_text(4000000)
    ('2024-02-29', '-0001-12-31', '+12921-08-18')
    """
    year, month, day = civil(days)
    sign = "+" if year > 9999 else "-" if year < 0 else ""
    return f"{sign}{abs(year):04d}-{month:02d}-{day:02d}"


def from_iso(texts: pa.Array, unit: str) -> pa.Array:
    """ISO texts as numbers of ``unit`` since 1970-01-01 UTC (int64); a text without a zone is in UTC.

    Raises:
        ValueError: a text is no such instant, is too far away, or has more decimals than the unit.

    >>> from_iso(pa.array(["1970-01-01T01:00:00+01:00", "+10000-01-01T00:00:00Z", "1969-12-31"]), "ms").to_pylist()
    [0, 253402300800000, -86400000]
    """
    try:
        return texts.cast(pa.timestamp(unit, "UTC")).view(pa.int64())
    except pa.ArrowInvalid:
        return _parsed(texts, unit)


def _parsed(texts: pa.Array, unit: str) -> pa.Array:
    parts = pc.extract_regex(texts.cast(pa.string()), _ISO)
    if parts.null_count > texts.null_count:
        raise ValueError("is not an ISO 8601 date and time")
    days = _days(parts)
    hour, minute, second = (_int(parts, name) for name in ("hour", "minute", "second"))
    if (hour > 24).any() or (minute > 59).any() or (second > 60).any():
        raise ValueError("is not an ISO 8601 date and time")
    fraction = _int(parts, "fraction", pc.utf8_rpad(parts.field("fraction"), 9, "0"))
    scale = 10 ** (9 - _DIGITS[unit])
    if (fraction % scale).any():
        raise ValueError(f"has more decimals than timestamp[{unit}]")
    seconds = days * 86_400 + hour * 3600 + minute * 60 + second - _zone_seconds(parts.field("zone"))
    per = PER_SECOND[unit]
    rest = fraction // scale
    (top, top_rest), (low, low_rest) = divmod(2**63 - 1, per), divmod(-(2**63), per)
    beyond = (seconds > top) | (seconds < low) | ((seconds == top) & (rest > top_rest))
    beyond |= (seconds == low) & (rest < low_rest)
    missing = np.asarray(texts.is_null())
    if (beyond & ~missing).any():
        raise ValueError(f"is beyond what timestamp[{unit}] can hold")
    return pa.array(np.where(missing, 0, seconds) * per + rest, mask=missing)


def _days(parts: pa.StructArray) -> Ints:
    year, month, day = _int(parts, "year"), _int(parts, "month"), _int(parts, "day")
    valid = np.asarray(parts.is_valid())
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    longest = np.array([31, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[np.clip(month, 0, 12)] + (
        leap & (month == 2)
    )
    if (valid & ((month < 1) | (month > 12) | (day < 1) | (day > longest))).any():
        raise ValueError("is not a date of the calendar")
    return days_of(year, month, day)


def _int(parts: pa.StructArray, name: str, digits: pa.Array | None = None) -> Ints:
    texts = parts.field(name) if digits is None else digits
    texts = pc.replace_substring_regex(texts, r"^\+", "")
    # Groups that did not take part are empty texts; rpad made nine zeros of the fraction's.
    filled = pc.if_else(pc.equal(pc.fill_null(texts, ""), ""), "0", pc.fill_null(texts, "0"))
    return np.asarray(filled.cast(pa.int64()))


def _zone_seconds(zones: pa.Array) -> Ints:
    distinct = pc.fill_null(zones, "").dictionary_encode()
    seconds = np.array([_one_zone(zone) for zone in distinct.dictionary.to_pylist()], np.int64)
    return seconds[np.asarray(distinct.indices)] if len(zones) else np.empty(0, np.int64)


def _one_zone(zone: str) -> int:
    if zone in ("", "Z"):
        return 0
    digits = zone[1:].replace(":", "").ljust(4, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return -seconds if zone[0] == "-" else seconds


def time_text(numbers: pa.Array, unit: str = "us") -> pa.Array:
    """Numbers of a unit since midnight as PostgreSQL prints a time: decimals only as far as needed, 24:00:00 allowed.

    Raises:
        ValueError: a number is no time of a day.

    >>> time_text(pa.array([45296789012, 86400000000, 100000, None])).to_pylist()
    ['12:34:56.789012', '24:00:00', '00:00:00.1', None]
    """
    values = np.asarray(pc.fill_null(numbers, 0).cast(pa.int64()))
    per = PER_SECOND[unit]
    if (values < 0).any() or (values > 86_400 * per).any():
        raise ValueError("is not a time of day")
    full = values == 86_400 * per
    nanos = np.where(full, 0, values) * (PER_SECOND["ns"] // per)
    times = pa.array(nanos).cast(pa.time64("ns")).cast(pa.string())
    if full.any():
        times = pc.if_else(pa.array(full), "24:00:00.000000000", times)
    short = pc.utf8_rtrim(pc.utf8_rtrim(times, "0"), ".")
    # Without decimals the zeros of whole seconds went too.
    whole = pc.utf8_slice_codeunits(times, 0, 8)
    texts = pc.if_else(pc.less(pc.utf8_length(short), 9), whole, short)
    return pc.if_else(numbers.is_valid(), texts, pa.scalar(None, pa.string()))
