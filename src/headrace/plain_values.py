"""Arrow values as Python's values, as JSON, as text and as keys. Nothing here raises because of a value.

Arrow's own `as_py` and `to_pylist` end with an error at a day that `datetime` does not have, cut off nanoseconds, take
24:00:00 for midnight, and give pandas' types where pandas happens to be installed. Here a value that Python's types
hold exactly comes as one of them, as Arrow gives it, and any other as text, as PostgreSQL prints it:

===================================================  =====================================================
value                                                text
===================================================  =====================================================
a day or instant beyond the years 1 to 9999          ``0044-03-15 BC``, ``10000-01-01 04:59:59+00`` (in UTC)
the largest and the smallest number of its type      ``infinity``, ``-infinity``
nanoseconds                                          ``2024-02-29 12:34:56.789012345+00``
the end of a day, as a time of day                   ``24:00:00``
a duration beyond `timedelta`, or with nanoseconds   ``2562047788015:12:55``
text that is no UTF-8                                with U+FFFD for the bytes that are none
===================================================  =====================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Context, Decimal
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask

PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DECIMALS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_DAY_SECONDS = 86_400
_FIRST_DAY, _END_DAY = -719_162, 2_932_897  # 0001-01-01 and 10000-01-01, in days since 1970
_ARROW_FIRST_DAY, _ARROW_LAST_DAY = -12_687_428, 11_248_737  # -32767-01-01 and 32767-12-31
# Arrow has an error of its own for each of its types and for some values: none of them is let through.
_REFUSED = (ArithmeticError, LookupError, TypeError, ValueError, NotImplementedError, pa.ArrowException)
_EXACT = Context(prec=100_000)


# -- as Python has them -----------------------------------------------------------------------------------------------


def values(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return the values of a column as `to_pylist` does, and as text what Python's types cannot hold.

    >>> values(pa.array([0, 253402318799000000, None]).cast(pa.timestamp("us", "UTC")))[1:]
    ['10000-01-01 04:59:59+00', None]
    >>> values(pa.array([[-735160], []], pa.list_(pa.int32())).cast(pa.list_(pa.date32())))
    [['0044-03-15 BC'], []]
    """
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in values(chunk)]
    if not _may_mislead(array.type):
        try:
            found: list[Any] = array.to_pylist()
        except _REFUSED:
            pass
        else:
            return found
    return _carefully(array)


def value(scalar: pa.Scalar) -> Any:
    """Return one value, as `values` has it.

    >>> value(pa.scalar(2**31 - 1, pa.int32()).cast(pa.date32()))
    'infinity'
    """
    return values(pa.array([scalar]) if isinstance(scalar.type, pa.BaseExtensionType) else _alone(scalar))[0]


def rows(records: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return each row as a dictionary of its `values`. Of columns with one name, the later ones get a number.

    >>> rows(pa.record_batch([pa.array([1]), pa.array([2])], names=["x", "x"]))
    [{'x': 1, 'x_2': 2}]
    """
    names = distinct(records.schema.names)
    if not names:
        return [{} for _ in range(records.num_rows)]
    columns = [values(column) for column in records.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def json_texts(records: pa.RecordBatch | pa.Table) -> list[str]:
    """Return each row as a JSON object, as dead letters hold it: what JSON has no type for is text.

    >>> json_texts(pa.record_batch({"at": pa.array([253402318799]).cast(pa.timestamp("s")), "x": [1.5]}))
    ['{"at": "10000-01-01 04:59:59", "x": 1.5}']
    """
    return [_json(row) for row in rows(records)]


def _json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, default=str)
    except _REFUSED:  # a whole number with more digits than Python prints
        return json.dumps({name: repr_text(value) for name, value in row.items()}, default=repr_text)


def repr_text(value: Any) -> str:
    """Return any value of Python as some text."""
    try:
        return str(value)
    except _REFUSED:
        return str(Decimal(value)) if isinstance(value, int) else object.__repr__(value)


def beyond(array: pa.Array | pa.ChunkedArray) -> bool:
    """Return whether a column has a value that Python's types do not hold, so that `values` gives text for it.

    >>> beyond(pa.array([0, 253402300800]).cast(pa.timestamp("s"))), beyond(pa.array(["9999-12-31"]).cast(pa.date32()))
    (True, False)
    """
    if isinstance(array, pa.ChunkedArray):
        return any(beyond(chunk) for chunk in array.chunks)
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return beyond(array.storage)
    if pa.types.is_dictionary(kind):
        return beyond(array.dictionary)
    if pa.types.is_run_end_encoded(kind):
        return beyond(array.values)
    if pa.types.is_union(kind):
        return True
    if pa.types.is_map(kind):
        return beyond(array.keys) or beyond(array.items)
    if pa.types.is_struct(kind):
        names = [field.name for field in kind]
        return len(set(names)) < len(names) or any(beyond(child) for child in array.flatten())
    if is_list(kind):
        return beyond(array.flatten())
    if is_text(kind):
        return _is_unreadable(array)
    if pa.types.is_timestamp(kind) and kind.unit != "ns" and kind.tz in (None, "UTC"):
        per = PER_SECOND[kind.unit] * _DAY_SECONDS
        return _is_outside(array.view(pa.int64()), _FIRST_DAY * per, _END_DAY * per)
    if pa.types.is_date32(kind):
        return _is_outside(array.view(pa.int32()), _FIRST_DAY, _END_DAY)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return any(isinstance(value, str) for value in values(array))
    return False


def _is_outside(numbers: pa.Array, first: int, end: int) -> bool:
    extremes = pc.min_max(numbers)
    return bool(extremes["min"].is_valid) and not first <= extremes["min"].as_py() <= extremes["max"].as_py() < end


def _is_unreadable(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return False


def _may_mislead(kind: pa.DataType) -> bool:
    """Return whether Arrow may give a wrong value, or one that depends on what is installed, without an error."""
    if isinstance(kind, pa.BaseExtensionType):
        return _may_mislead(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _may_mislead(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_may_mislead(kind.field(i).type) for i in range(kind.num_fields))
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return bool(kind.unit == "ns")
    return bool(pa.types.is_time(kind) or pa.types.is_float16(kind))


def _carefully(array: pa.Array) -> list[Any]:
    kind = array.type
    for matches, convert in _CAREFUL:
        if matches(kind):
            try:
                return convert(array)
            except _REFUSED:
                break
    return [_alone_carefully(array[i]) for i in range(len(array))]


def _alone(scalar: pa.Scalar) -> pa.Array:
    try:
        return pa.array([scalar], scalar.type)
    except _REFUSED:
        return pa.repeat(scalar, 1)


def _alone_carefully(scalar: pa.Scalar) -> Any:
    if not scalar.is_valid:
        return None
    try:
        return scalar.as_py()
    except _REFUSED:
        pass
    if pa.types.is_union(scalar.type):
        return value(scalar.value)
    return f"a value of {scalar.type}"


def _instants(array: pa.Array) -> list[Any]:
    unit, zoned = array.type.unit, array.type.tz is not None
    if unit == "ns":
        return _whole_or(array, pa.timestamp("us", array.type.tz), lambda number: timestamp_text(number, "ns", zoned))
    return [
        None if number is None else _instant(array, row, number, unit, zoned)
        for row, number in enumerate(array.view(pa.int64()).to_pylist())
    ]


def _instant(array: pa.Array, row: int, number: int, unit: str, zoned: bool) -> Any:
    if _FIRST_DAY <= number // PER_SECOND[unit] // _DAY_SECONDS < _END_DAY:
        try:
            return array[row].as_py()
        except _REFUSED:  # in its own zone it is in another year; or the zone is not known here
            pass
    return timestamp_text(number, unit, zoned)


def _whole_or(array: pa.Array, wider: pa.DataType, text: Callable[[int], str]) -> list[Any]:
    """Return nanoseconds: those that are whole microseconds as Arrow gives them, the others as text."""
    numbers = array.view(pa.int64()).to_pylist()
    whole = [number if number is not None and number % 1000 == 0 else None for number in numbers]
    found = values(pa.array([None if number is None else number // 1000 for number in whole], pa.int64()).view(wider))
    return [
        text(number) if micros is None and number is not None else known
        for number, micros, known in zip(numbers, whole, found, strict=True)
    ]


def _days(array: pa.Array) -> list[Any]:
    if pa.types.is_date64(array.type):
        numbers = array.view(pa.int64()).to_pylist()
        days = [ms if ms is None or _is_extreme(ms, 64) else ms // (_DAY_SECONDS * 1000) for ms in numbers]
        bits = 64
    else:
        days, bits = array.view(pa.int32()).to_pylist(), 32
    return [None if day is None else _day(day, bits) for day in days]


def _day(days: int, bits: int) -> date | str:
    if _FIRST_DAY <= days < _END_DAY:
        return date.fromordinal(days - _FIRST_DAY + 1)
    return date_text(days, bits)


def _times(array: pa.Array) -> list[Any]:
    unit = array.type.unit
    numbers = array.view(_integers_of(array.type)[0]).to_pylist()
    return [None if number is None else _time(number, unit) for number in numbers]


def _time(number: int, unit: str) -> time | str:
    micros, rest = divmod(number * PER_SECOND["us"], PER_SECOND[unit])
    if rest or not 0 <= micros < _DAY_SECONDS * 1_000_000:
        return clock_text(number, unit)
    seconds, micros = divmod(micros, 1_000_000)
    return time(seconds // 3600, seconds // 60 % 60, seconds % 60, micros)


def _durations(array: pa.Array) -> list[Any]:
    unit = array.type.unit
    return [None if number is None else _duration(number, unit) for number in array.view(pa.int64()).to_pylist()]


def _duration(number: int, unit: str) -> timedelta | str:
    micros, rest = divmod(number * PER_SECOND["us"], PER_SECOND[unit])
    try:
        return clock_text(number, unit) if rest else timedelta(microseconds=micros)
    except OverflowError:
        return clock_text(number, unit)


def _halves(array: pa.Array) -> list[Any]:
    found: list[Any] = array.cast(pa.float32()).to_pylist()
    return found


def _readable(array: pa.Array) -> list[Any]:
    raw = array.cast(pa.large_binary()) if not pa.types.is_string_view(array.type) else array.cast(pa.binary_view())
    return [None if text is None else text.decode(errors="replace") for text in raw.to_pylist()]


def _structs(array: pa.StructArray) -> list[Any]:
    names = distinct([field.name for field in array.type])
    valid = array.is_valid().to_pylist()
    columns = [values(child) for child in array.flatten()]
    if not columns:
        return [{} if is_valid else None for is_valid in valid]
    parts = zip(*columns, strict=True)
    return [
        dict(zip(names, row, strict=True)) if is_valid else None for is_valid, row in zip(valid, parts, strict=True)
    ]


def _lists(array: pa.Array) -> list[Any]:
    return [values(array[i].values) if array[i].is_valid else None for i in range(len(array))]


def _maps(array: pa.MapArray) -> list[Any]:
    return [None if pairs is None else list(pairs) for pairs in _entries(array, values)]


def _entries(
    array: pa.MapArray, convert: Callable[[pa.Array], list[Any]]
) -> Iterator[Iterable[tuple[Any, ...]] | None]:
    """Yield the entries of each map, keys and values converted; None for a null."""
    for scalar in array:
        parts = [convert(part) for part in scalar.values.flatten()] if scalar.is_valid else None
        yield None if parts is None else zip(*parts, strict=True)


def _decoded(array: pa.DictionaryArray) -> list[Any]:
    known = values(array.dictionary)
    return [None if code is None else known[code] for code in array.indices.to_pylist()]


def is_list(kind: pa.DataType) -> bool:
    """Return whether a type is a list of any kind."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def list_offsets(array: pa.Array) -> Ints:
    """Return where each list begins among the items that `flatten` gives, and where the last one ends.

    >>> list_offsets(pa.array([[7, 8], None, [9]])).tolist()
    [0, 2, 2, 3]
    """
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(array), 0)), out=offsets[1:])
    return offsets


def with_items(array: pa.Array, items: pa.Array) -> pa.ListArray:
    """Return the lists of an array with other items, one in place of each that `flatten` gives.

    >>> with_items(pa.array([[7, 8], None]), pa.array(["a", "b"])).to_pylist()
    [['a', 'b'], None]
    """
    offsets = pa.array(list_offsets(array)).cast(pa.int32())
    return pa.ListArray.from_arrays(offsets, items, mask=array.is_null() if array.null_count else None)


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column in one piece."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def at_rows(values: pa.Array, rows: Mask) -> pa.Array:
    """Return values at the rows of a mask, in order, and nulls at the others.

    >>> at_rows(pa.array([4, 5]), np.array([True, False, True])).to_pylist()
    [4, None, 5]
    """
    return values.take(pa.array(np.cumsum(rows) - 1, mask=~rows))


def is_text(kind: pa.DataType) -> bool:
    """Return whether a type is a string of any width."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type is binary of any width."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


_CAREFUL: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], list[Any]]], ...] = (
    (lambda kind: isinstance(kind, pa.BaseExtensionType), lambda array: values(array.storage)),
    (pa.types.is_timestamp, _instants),
    (pa.types.is_date, _days),
    (pa.types.is_time, _times),
    (pa.types.is_duration, _durations),
    (pa.types.is_float16, _halves),
    (is_text, _readable),
    (pa.types.is_struct, _structs),
    (pa.types.is_map, _maps),
    (is_list, _lists),
    (pa.types.is_dictionary, _decoded),
    (pa.types.is_run_end_encoded, lambda array: values(pc.run_end_decode(array))),
)


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which no two are the same: the later ones get a number.

    >>> distinct(["x", "x", "x_2"])
    ['x', 'x_2', 'x_2_2']
    """
    found: dict[str, None] = {}
    for name in names:
        number, free = 2, name
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found[free] = None
    return list(found)


def _integers_of(kind: pa.DataType) -> tuple[pa.DataType, int, int]:
    """Return the integers under a type of days, times or durations: their type, nanoseconds in their unit, bits."""
    if pa.types.is_date32(kind):
        return pa.int32(), _DAY_SECONDS * PER_SECOND["ns"], 32
    nanos = PER_SECOND["ns"] // PER_SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
    return (pa.int32(), nanos, 32) if pa.types.is_time32(kind) else (pa.int64(), nanos, 64)


# -- as PostgreSQL prints them ----------------------------------------------------------------------------------------


def date_text(days: int, bits: int = 0) -> str:
    """Return a day since 1970-01-01 as PostgreSQL prints it, for any year.

    Args:
        bits: of the type that holds it, whose extremes are ``infinity`` and ``-infinity``; 0: none are.

    >>> date_text(19782), date_text(-719529), date_text(4000000), date_text(2**31 - 1, 32)
    ('2024-02-29', '0002-12-31 BC', '12921-08-18', 'infinity')
    """
    if bits and _is_extreme(days, bits):
        return "infinity" if days > 0 else "-infinity"
    return "{}{}".format(*_date(days))


def timestamp_text(number: int, unit: str = "us", zoned: bool = False) -> str:
    """Return an instant, counted since 1970-01-01 UTC, as PostgreSQL prints it in UTC.

    >>> timestamp_text(1709210096700000, "us", True), timestamp_text(-62167219200001 - 86400000 * 366, "ms")
    ('2024-02-29 12:34:56.7+00', '0003-12-30 23:59:59.999 BC')
    >>> timestamp_text(2**63 - 1)
    'infinity'
    """
    if _is_extreme(number, 64):
        return "infinity" if number > 0 else "-infinity"
    return instant_text(number, unit, "+00" if zoned else "")


def instant_text(number: int, unit: str, zone: str) -> str:
    """Return an instant that no number stands for infinity in, with what the zone is called."""
    days, rest = divmod(number, _DAY_SECONDS * PER_SECOND[unit])
    day, bc = _date(days)
    return f"{day} {clock_text(rest, unit)}{zone}{bc}"


def clock_text(number: int, unit: str) -> str:
    """Return a time of day, or a duration, as PostgreSQL prints it: hours, minutes, seconds, decimals where needed.

    >>> clock_text(86400, "s"), clock_text(-5_400_500, "ms"), clock_text(1, "ns")
    ('24:00:00', '-01:30:00.5', '00:00:00.000000001')
    """
    sign = "-" if number < 0 else ""
    seconds, fraction = divmod(abs(number), PER_SECOND[unit])
    decimals = f".{fraction:0{_DECIMALS[unit]}d}".rstrip("0") if fraction else ""
    return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{decimals}"


def civil(days: int) -> tuple[int, int, int]:
    """Return year, month and day of a day since 1970-01-01; year 0 is 1 BC.

    Source: https://howardhinnant.github.io/date_algorithms.html#civil_from_days

    >>> civil(19782), civil(-719529)
    ((2024, 2, 29), (-1, 12, 31))
    """
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return era * 400 + year_of_era + (month <= 2), month, day_of_year - (153 * shifted + 2) // 5 + 1


def days_of(year: Ints, month: Ints, day: Ints) -> Ints:
    """Return days since 1970-01-01 of proleptic Gregorian dates, the inverse of `civil`; year 0 is 1 BC.

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


def _date(days: int) -> tuple[str, str]:
    year, month, day = civil(days)
    return f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}", "" if year > 0 else " BC"


def _is_extreme(number: int, bits: int) -> bool:
    """Return whether a number stands for infinity: the largest, the smallest, or the largest's negative (DuckDB)."""
    return abs(number) >= (1 << bits - 1) - 1


def number_text(number: float, single: bool = False) -> str:
    """Return a float as PostgreSQL prints it: the shortest text that reads back as the same.

    Args:
        single: it is one of 32 bits.

    >>> number_text(1.0), number_text(-2.5e-7), number_text(1e15), number_text(float("-inf"))
    ('1', '-2.5e-07', '1e+15', '-Infinity')
    >>> number_text(0.10000000149011612, single=True), number_text(1e6, single=True)
    ('0.1', '1e+06')
    """
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    shortest = np.format_float_scientific(np.float32(number) if single else np.float64(number), trim="-", exp_digits=2)
    digits, _, exponent = shortest.partition("e")
    if not -4 <= int(exponent) < (6 if single else 15):
        return shortest
    return f"{Decimal(shortest):f}" if number else digits


def texts(array: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """Return the values of a column as PostgreSQL prints them; what it has no type for, as JSON.

    >>> texts(pa.array([True])), texts(pa.array([1.0])), texts(pa.array([b"a"])), texts(pa.array([["a b", None]]))
    (['true'], ['1'], ['\\\\x61'], ['{"a b",NULL}'])
    """
    if isinstance(array, pa.ChunkedArray):
        return [text for chunk in array.chunks for text in texts(chunk)]
    array = _unwrapped(array)
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        plain: list[str | None] = array.cast(pa.string()).to_pylist()
        return plain
    if pa.types.is_floating(kind):
        single = not pa.types.is_float64(kind)
        return [None if number is None else number_text(number, single) for number in values(array)]
    if pa.types.is_timestamp(kind):
        zoned = kind.tz is not None
        return _each(array, pa.int64(), lambda number: timestamp_text(number, kind.unit, zoned))
    if pa.types.is_date(kind):
        return [_date_or_text(day) for day in _days(array)]
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        return _each(array, _integers_of(kind)[0], lambda number: clock_text(number, kind.unit))
    if is_list(kind):
        return [array_text(array[i].values) if array[i].is_valid else None for i in range(len(array))]
    return [None if value is None else _text(value) for value in values(array)]


def array_text(items: pa.Array) -> str:
    r"""Return the elements of one array as PostgreSQL prints it.

    >>> array_text(pa.array(["a", None, "NULL", "b c"])), array_text(pa.array([[1, 2], [3, 4]]))
    ('{a,NULL,"NULL","b c"}', '{{1,2},{3,4}}')
    """
    nested = is_list(items.type)
    found = texts(items)
    if pa.types.is_boolean(items.type):
        found = [None if entry is None else entry[0] for entry in found]
    return "{" + ",".join("NULL" if item is None else item if nested else _quoted(item) for item in found) + "}"


def _quoted(text: str) -> str:
    special = not text or text.upper() == "NULL" or any(char in '{}",\\' or char.isspace() for char in text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if special else text


def cast_texts(array: pa.Array, *, as_before: bool = False) -> pa.Array:
    """Return plain values as Arrow's own text of them, but as PostgreSQL prints them what Python has no type for.

    Args:
        as_before: take Arrow's text as far as it has one, years of up to five digits with a sign before. States and
            topics of before hold such texts.

    Raises:
        pyarrow.ArrowException: their type has no text (lists and the like).

    >>> cast_texts(pa.array([0, 253402318799, 2**63 - 1]).cast(pa.timestamp("s"))).to_pylist()
    ['1970-01-01 00:00:00', '10000-01-01 04:59:59', 'infinity']
    """
    kind = array.type
    if not pa.types.is_temporal(kind) or not beyond(array):
        return array.cast(pa.string())
    told = texts(array)
    odd = _is_beyond_arrows_text(array) if as_before else _is_odd(array)
    usual = pc.if_else(pa.array(odd), pa.scalar(None, kind), array).cast(pa.string())
    return pc.replace_with_mask(
        usual, pa.array(odd), pa.array([told[row] for row in np.flatnonzero(odd).tolist()], pa.string())
    )


def _is_odd(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.array([isinstance(value, str) for value in values(array)], bool)


def _is_beyond_arrows_text(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which times have a year of more than 16 bits or a zone that is unknown here, or are no time of a day."""
    kind = array.type
    if pa.types.is_time(kind) or (pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC")):
        return _is_odd(array)
    if pa.types.is_duration(kind):
        return np.zeros(len(array), bool)
    integer, nanos, _ = _integers_of(kind)
    days = np.asarray(array.view(integer).fill_null(0), np.int64) // (_DAY_SECONDS * PER_SECOND["ns"] // nanos)
    found: npt.NDArray[np.bool_] = (days < _ARROW_FIRST_DAY) | (days > _ARROW_LAST_DAY)
    return found


def _each(array: pa.Array, numbers: pa.DataType, text: Callable[[int], str]) -> list[str | None]:
    return [None if number is None else text(number) for number in array.view(numbers).to_pylist()]


def _date_or_text(day: date | str | None) -> str | None:
    return day.isoformat() if isinstance(day, date) else day


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, default=_text, ensure_ascii=False)
    return repr_text(value)


def _unwrapped(array: pa.Array) -> pa.Array:
    """Return values of a dictionary, of runs, or of a type made of another."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _unwrapped(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _unwrapped(pc.run_end_decode(array))
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        return _unwrapped(array.storage)
    return array


# -- as keys ----------------------------------------------------------------------------------------------------------


def keys(array: pa.Array | pa.ChunkedArray) -> list[Hashable]:
    """Return values as keys: equal where the values are equal, whatever their types, and never equal by rounding.

    A number is an int or float (a decimal too, where it is the shortest text of a float), text is text and bytes are
    bytes. Anything else is a tuple that begins with a word: ``("numeric", "0.10000000000000000001")``,
    ``("instant", nanoseconds since 1970 UTC)`` of days, timestamps and timestamps with a zone alike (as PostgreSQL
    compares them in UTC), ``("clock", nanoseconds)``, ``("duration", nanoseconds)``, ``("list", …)``. Tuples hold only
    int, float, bool, str, bytes, None and tuples. NaN is ``("numeric", "NaN")``, which equals itself, as in an index.

    >>> keys(pa.array([Decimal("1.00")])), keys(pa.array([1.0])), keys(pa.array([Decimal("0.1")])), keys(pa.array([1]))
    ([1], [1], [0.1], [1])
    >>> keys(pa.array([1], pa.timestamp("s", "UTC"))) == keys(pa.array([1000], pa.timestamp("ms")))
    True
    """
    if isinstance(array, pa.ChunkedArray):
        return [key for chunk in array.chunks for key in keys(chunk)]
    array = _unwrapped(array)
    kind = array.type
    for matches, convert in _KEYS:
        if matches(kind):
            return convert(array)
    return [_key(value) for value in values(array)]


def of_instant_keys(found: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return the values of a type of times that have these `keys`: the inverse of `keys` for such a column.

    >>> of_instant_keys([("instant", 10**9), None], pa.timestamp("s")).to_pylist()
    [datetime.datetime(1970, 1, 1, 0, 0, 1), None]
    """
    integer, per, bits = _integers_of(kind)
    extremes = {"infinity": 2 ** (bits - 1) - 1, "-infinity": -(2 ** (bits - 1))}
    numbers = [None if key is None else extremes[key[1]] if key[1] in extremes else key[1] // per for key in found]
    return pa.array(numbers, integer).view(kind)


def number_key(number: float | Decimal) -> Hashable:
    """Return a number's key; see `keys`.

    >>> number_key(2.0), number_key(Decimal("1e3")), number_key(0.5), number_key(float("nan"))
    (2, 1000, 0.5, ('numeric', 'NaN'))
    """
    exact = number if isinstance(number, Decimal) else Decimal(repr(float(number)))
    if not exact.is_finite():
        return float(exact) if exact.is_infinite() else ("numeric", "NaN")
    if exact == exact.to_integral_value():
        return int(exact)
    near = float(exact)
    if math.isfinite(near) and Decimal(repr(near)) == exact:
        return near
    return ("numeric", f"{exact.normalize(_EXACT):f}")


def _number_keys(array: pa.Array) -> list[Hashable]:
    if pa.types.is_float32(array.type) or pa.types.is_float16(array.type):
        array = array.cast(pa.float64())
    return [None if number is None else number_key(number) for number in array.to_pylist()]


def _instant_keys(array: pa.Array) -> list[Hashable]:
    integer, per, bits = _integers_of(array.type)
    numbers = array.view(integer).to_pylist()
    return [None if number is None else ("instant", _nanos(number, per, bits)) for number in numbers]


def _nanos(number: int, per: int, bits: int) -> int | str:
    if _is_extreme(number, bits):
        return "infinity" if number > 0 else "-infinity"
    return number * per


def _span_keys(array: pa.Array) -> list[Hashable]:
    integer, per, _ = _integers_of(array.type)
    numbers = array.view(integer).to_pylist()
    word = "clock" if pa.types.is_time(array.type) else "duration"
    return [None if number is None else (word, number * per) for number in numbers]


def _text_keys(array: pa.Array) -> list[Hashable]:
    try:
        found: list[Hashable] = array.to_pylist()
    except UnicodeDecodeError:  # two texts must not be one because neither can be read
        return [None if text is None else _text_key(text) for text in array.cast(pa.large_binary()).to_pylist()]
    return found


def _text_key(raw: bytes) -> Hashable:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ("text", raw)


def _plain_keys(array: pa.Array) -> list[Hashable]:
    found: list[Hashable] = array.to_pylist()
    return found


def _list_keys(array: pa.Array) -> list[Hashable]:
    return [("list", *keys(array[i].values)) if array[i].is_valid else None for i in range(len(array))]


def _struct_keys(array: pa.StructArray) -> list[Hashable]:
    names = [field.name for field in array.type]
    parts = [keys(child) for child in array.flatten()]
    valid = array.is_valid().to_pylist()
    return [
        ("struct", *((name, part[i]) for name, part in zip(names, parts, strict=True))) if is_valid else None
        for i, is_valid in enumerate(valid)
    ]


def _map_keys(array: pa.MapArray) -> list[Hashable]:
    """Return entries in any order are the same map."""
    pairs_of = _entries(array, keys)
    return [None if pairs is None else ("map", *sorted(pairs, key=repr)) for pairs in pairs_of]


def _key(value: Any) -> Hashable:
    """Return the key of a value of Python that no type above has."""
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bool | int | str | bytes) or value is None:
        return value
    if isinstance(value, float | Decimal):
        return number_key(value)
    return (type(value).__name__, repr_text(value))


_KEYS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[Any], list[Hashable]]], ...] = (
    (lambda kind: bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or is_bytes(kind)), _plain_keys),
    (is_text, _text_keys),
    (lambda kind: bool(pa.types.is_floating(kind) or pa.types.is_decimal(kind)), _number_keys),
    (lambda kind: bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind)), _instant_keys),
    (lambda kind: bool(pa.types.is_time(kind) or pa.types.is_duration(kind)), _span_keys),
    (pa.types.is_struct, _struct_keys),
    (pa.types.is_map, _map_keys),
    (is_list, _list_keys),
)


# -- tables of one topic whose columns have changed their types -------------------------------------------------------


def united(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables as one: a column that a table lacks is null there, and one that changed its type has the wider one.

    The wider type is the narrowest that holds every value of both exactly: of whole numbers one with more bits, of
    decimals one with more digits, of a whole number or decimal and a float float64 where each number stays the number
    that is printed, of days and timestamps the timestamp; of lists and structs the same within. Where there is none,
    the values are text, as PostgreSQL prints them. See docs/decisions/0021-columns-that-change-type.md.

    >>> united([pa.table({"x": [1]}), pa.table({"x": [0.5]}), pa.table({"y": ["a"]})]).to_pydict()
    {'x': [1.0, 0.5, None], 'y': [None, None, 'a']}
    >>> united([pa.table({"x": [2**53 + 1]}), pa.table({"x": [0.5]})]).column("x").to_pylist()
    ['9007199254740993', '0.5']
    """
    tables = [_with_distinct_names(table) for table in tables]
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="default")  # missing columns are null, and no type changes
    except pa.ArrowException:
        return _united(tables)


def _united(tables: Sequence[pa.Table]) -> pa.Table:
    fields: dict[str, pa.Field] = {}
    for table in tables:
        for field in table.schema:
            known = fields.get(field.name)
            fields[field.name] = field if known is None else _wider_field(known, field)
    for name, field in fields.items():
        if any(name not in table.column_names for table in tables):
            fields[name] = field.with_nullable(True)
    columns = {name: _column_of(tables, field) for name, field in fields.items()}
    metadata = next((table.schema.metadata for table in tables if table.schema.metadata), None)
    schema = pa.schema([field.with_type(columns[name].type) for name, field in fields.items()], metadata=metadata)
    return pa.Table.from_arrays(list(columns.values()), schema=schema)


def _column_of(tables: Sequence[pa.Table], field: pa.Field) -> pa.ChunkedArray:
    name = field.name
    parts = [
        table.column(name) if name in table.column_names else pa.chunked_array([pa.nulls(table.num_rows)])
        for table in tables
    ]
    try:
        chunks = [_exactly(chunk, field.type) for part in parts for chunk in part.chunks]
    except _REFUSED:
        chunks = [_exactly(chunk, pa.string()) for part in parts for chunk in part.chunks]
    return pa.chunked_array(chunks, chunks[0].type if chunks else field.type)


def _wider_field(a: pa.Field, b: pa.Field) -> pa.Field:
    if a.type.equals(b.type, check_metadata=True):
        return a
    if pa.types.is_null(a.type) or pa.types.is_null(b.type):
        return b if pa.types.is_null(a.type) else a
    return pa.field(a.name, _wider(a.type, b.type))


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """Return the type for values of both, where they have one; text otherwise."""
    a, b = _plain_type(a), _plain_type(b)
    if a.equals(b):
        return a
    for kind, other in ((a, b), (b, a)):
        if pa.types.is_null(kind):
            return other
    if _is_number(a) and _is_number(b):
        return _wider_number(a, b)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _wider_struct(a, b)
    if is_list(a) and is_list(b):
        return pa.list_(_wider(a.value_type, b.value_type))
    for alike, wide in ((is_text, pa.large_string()), (is_bytes, pa.large_binary())):
        if alike(a) and alike(b):
            return wide
    return _wider_time(a, b) or pa.string()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind
    return kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _wider_number(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if pa.types.is_floating(a) or pa.types.is_floating(b):
        narrow = pa.types.is_floating(a) and pa.types.is_floating(b) and not {a, b} & {pa.float64()}
        return pa.float32() if narrow else pa.float64()
    (left, scale), (right, other) = _digits(a), _digits(b)
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        signed = pa.types.is_signed_integer(a), pa.types.is_signed_integer(b)
        bits = max(
            kind.bit_width * (1 if all(signed) or not any(signed) or is_signed else 2)
            for kind, is_signed in zip((a, b), signed, strict=True)
        )
        if bits <= 64:
            return getattr(pa, f"{'int' if any(signed) else 'uint'}{bits}")()
    precision = max(left - scale, right - other) + max(scale, other)
    if precision > 76:
        return pa.string()
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, max(scale, other))


def _digits(kind: pa.DataType) -> tuple[int, int]:
    """Return precision and scale of the decimal that holds a number; a negative scale as zeros that are there."""
    if pa.types.is_integer(kind):
        return len(str(2 ** (kind.bit_width - pa.types.is_signed_integer(kind)) - 1)), 0
    return (kind.precision, kind.scale) if kind.scale >= 0 else (kind.precision - kind.scale, 0)


def _wider_time(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """Of days, timestamps, times of day and durations, the finer unit; None where the two mean different things."""
    if pa.types.is_date(a) and pa.types.is_date(b):
        return pa.date32()
    for kind, other in ((a, b), (b, a)):
        if pa.types.is_date(kind) and pa.types.is_timestamp(other) and other.tz is None:
            return other
    units = list(PER_SECOND)
    for alike in (pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration):
        if alike(a) and alike(b):
            unit = max(a.unit, b.unit, key=units.index)
            if alike is pa.types.is_duration:
                return pa.duration(unit)
            if alike is pa.types.is_time:
                return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
            if (a.tz is None) != (b.tz is None):
                return None
            return pa.timestamp(unit, a.tz if a.tz == b.tz else "UTC")
    return None


def _wider_struct(a: pa.StructType, b: pa.StructType) -> pa.DataType:
    fields = {field.name: field for field in a}
    if len(fields) < a.num_fields or len({field.name for field in b}) < b.num_fields:
        return pa.string()
    for field in b:
        fields[field.name] = _wider_field(fields[field.name], field) if field.name in fields else field
    return pa.struct(list(fields.values()))


def _exactly(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return an array as another type.

    Raises:
        ValueError, pyarrow.ArrowException: a value would not be the same.
    """
    if array.type.equals(kind):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), kind)
    array = _unwrapped(array)
    if pa.types.is_string(kind) and not is_text(array.type):
        return pa.array(texts(array), kind)
    if pa.types.is_struct(kind):
        children = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
        parts = [_exactly(children.get(field.name, pa.nulls(len(array))), field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=array.is_null())
    if is_list(kind):
        return with_items(array, _exactly(array.flatten(), kind.value_type)).cast(kind)
    found = array.cast(kind, safe=False)
    if not _reads_back(array, found):
        raise ValueError(f"{array.type} does not fit {kind}")
    return found


def _reads_back(array: pa.Array, found: pa.Array) -> bool:
    """Return whether a value of each kind that may be rounded or overflow is the same after the way there and back."""
    before, after = array.type, found.type
    if pa.types.is_floating(after) and pa.types.is_decimal(before):
        numbers = zip(array.to_pylist(), found.to_pylist(), strict=True)
        return all(number is None or Decimal(repr(near)) == number for number, near in numbers)
    if pa.types.is_floating(after) and pa.types.is_integer(before):
        largest = 2.0**before.bit_width
        inside = pc.all(
            pc.less(pc.abs(found.cast(pa.float64())), largest / 2 if pa.types.is_signed_integer(before) else largest)
        )
        return bool(inside.as_py()) and bool(found.cast(before, safe=False).equals(array))
    if pa.types.is_temporal(before) or pa.types.is_decimal(before):
        return bool(found.cast(before, safe=False).equals(array))
    return True


def _with_distinct_names(table: pa.Table) -> pa.Table:
    names = table.column_names
    return table if len(set(names)) == len(names) else table.rename_columns(distinct(names))


# -- from text --------------------------------------------------------------------------------------------------------

INFINITE = ("infinity", "-infinity")


def infinities(texts: Sequence[str], arrow_type: pa.DataType) -> pa.Array:
    """Return infinite days or instants: the largest number of their type, and the smallest.

    >>> infinities(["-infinity"], pa.date32()).cast(pa.int32()).to_pylist()
    [-2147483648]
    """
    kind = np.int32 if pa.types.is_date32(arrow_type) else np.int64
    limits = np.iinfo(kind)
    numbers = np.array([limits.max if text == "infinity" else limits.min for text in texts], kind)
    return pa.array(numbers).view(arrow_type)


_DAY_US = 86_400_000_000
_DATE_PARTS = r"^(?P<year>\d{1,7})-(?P<month>\d\d)-(?P<day>\d\d)"
_TIME_PARTS = r" (?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,6}))?(?:\+00)?"
_BC = r"(?P<bc> BC)?$"


def times_of(texts: pa.Array, arrow_type: pa.DataType) -> pa.Array:
    """Return days or instants of PostgreSQL's texts in any year that it has; null where a text is none that fits.

    >>> times_of(pa.array(["0001-01-01 BC", "infinity", "?"]), pa.date32()).cast(pa.int32()).to_pylist()
    [-719528, 2147483647, None]
    """
    infinite = pc.is_in(texts, pa.array(list(INFINITE), texts.type))
    if infinite.true_count:
        array = times_of(pc.if_else(infinite, pa.scalar(None, texts.type), texts), arrow_type)
        found = texts.filter(infinite).to_pylist()
        return pc.replace_with_mask(array, infinite.fill_null(False), infinities(found, arrow_type))
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
        return pa.array(days.astype(np.int32), mask=~valid).view(arrow_type)
    seconds = (number("hour") * 60 + number("minute")) * 60 + number("second")
    fraction = pc.utf8_rpad(pc.struct_field(parts, "fraction").fill_null(""), 6, "0").cast(pa.int64()).to_numpy()
    # Times after the year 294247 do not fit 64 bits of microseconds since 1970.
    last = 2**63 - 1 - (seconds * 1_000_000 + fraction)
    fits = valid & (days <= last // _DAY_US)
    micros = np.where(fits, days, 0) * _DAY_US + seconds * 1_000_000 + fraction
    return pa.array(micros, mask=~fits).view(arrow_type)
