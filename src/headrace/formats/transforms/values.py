"""Transforms of values: their types, their times, vectors.

Sources: ``Cast`` and ``TimestampConverter`` of apache/kafka 4.1, ``TimezoneConverter`` and ``VectorToJsonConverter`` of
Debezium 3.6.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Context, Decimal
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats.debezium_types import Schema, java_double, java_string
from headrace.formats.json_text import TEXT, in_quotes
from headrace.formats.transforms.fields import part_of
from headrace.formats.transforms.java_values import date_printer, date_reader
from headrace.formats.transforms.records import Column, Leaf, Records, RowsRefused, Struct, dumped, mapped, opened
from headrace.formats.transforms.sides import (
    Options,
    Transform,
    all_refused,
    on_structs,
    side_of,
    structs_of,
    with_side,
)

_CONNECT = "org.apache.kafka.connect.data."
_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
# Names of Kafka Connect's schemas, and of types in ``spec``.
_TYPES = {
    **{name: name for name in _BITS},
    "float32": "float",
    "float64": "double",
    "boolean": "boolean",
    "string": "string",
}
_SOURCES = frozenset({*_TYPES.values(), "bytes"})
_DAY_MS = 86_400_000


def cast(options: Options) -> Transform:
    """Give fields, or a whole key or value, another type."""
    _refuse(check_cast(options.own["spec"]))
    spec = [item.partition(":") for item in options.listed("spec")]
    casts = {name.strip(): _TYPES[kind.strip().lower()] for name, colon, kind in spec if colon}
    whole = next((_TYPES[name.strip().lower()] for name, colon, _ in spec if not colon), None)

    def change(records: Records, structs: Struct) -> Column:
        copied = structs.copied(defaults=options.defaults)
        fields = {
            name: _cast(records, column, casts[name]) if name in casts else column
            for name, column in copied.fields.items()
        }
        optional = bool(structs.schema.get("optional"))
        return copied.with_fields(fields).with_schema(optional=optional, default=structs.schema.get("default"))

    def transform(records: Records) -> list[Records]:
        if whole is None:
            return on_structs(records, options.side, change, purpose="type casting", keeps_null=True)
        column = side_of(records, options.side)
        if column is None or column.is_null.all():
            return [records]
        return [with_side(records, options.side, _cast(records, column, whole, keeps_name=True))]

    return transform


def _refuse(problem: str) -> None:
    if problem:
        raise ValueError(problem)


def check_cast(spec: str) -> str:
    """Return what is wrong with a ``spec``; nothing where it is right.

    >>> check_cast("a:int32,b:date")
    'Invalid type found in casting spec: date'
    """
    items = [item.split(":") for item in spec.split(",") if item.strip()]
    if not items:
        return "Must specify at least one field to cast."
    for item in items:
        if len(item) > 2:
            return f"Invalid rename mapping: {':'.join(item)}"
        if item[-1].strip().lower() not in _TYPES:
            return f"Invalid type found in casting spec: {item[-1].strip()}"
    if len(items) > 1 and any(len(item) == 1 for item in items):
        return "A type for the entire value may only stand alone in spec"
    return ""


def _cast(records: Records, column: Column, target: str, *, keeps_name: bool = False) -> Column:
    """Return a column as another type.

    Raises:
        RowsRefused: its type cannot become that one, or the values of some rows.
    """
    source = "struct" if isinstance(column, Struct) else column.schema["type"]
    reason = "" if source in _SOURCES else f"Cast transformation does not support casting from {source.upper()}"
    is_plain = not str(column.schema.get("name", "")).startswith(_CONNECT)
    if source == "bytes" and target != "string" and is_plain:
        reason = "Unexpected type in Cast transformation: bytes"
    there = ~column.is_null
    if reason and there.any():
        raise RowsRefused(there, reason, order=records.order[there])
    if isinstance(column, Struct) or reason:
        column = Leaf({**column.schema, "type": "string"}, pa.nulls(len(column), TEXT))
    convert = _converter(column.schema, target)
    schema: Schema = {"type": target, "optional": bool(column.schema.get("optional"))}
    if keeps_name:
        schema |= {
            part: column.schema[part] for part in ("name", "version", "doc", "parameters") if part in column.schema
        }
    if "default" in column.schema:
        try:
            schema["default"] = json.loads(convert(dumped(column.schema["default"])))
        except ValueError as error:
            raise all_refused(records, str(error)) from error
    if source in _BITS and target in _BITS and _BITS[target] >= _BITS[source]:
        return Leaf(schema, column.texts)
    if source in _BITS and target == "string" and is_plain:
        return Leaf(schema, in_quotes(column.texts))
    return Leaf(schema, mapped(column.texts, convert))


def _converter(schema: Schema, target: str) -> Callable[[str], str]:
    """Return what makes of a value's JSON that of another type; it raises `ValueError`."""
    source, name = schema["type"], str(schema.get("name", ""))

    def read(text: str) -> Any:
        if source == "bytes" and name == f"{_CONNECT}Decimal":
            return _decimal(json.loads(text), int(schema.get("parameters", {}).get("scale", 0)))
        value = json.loads(text)
        return float(np.float32(value)) if source == "float" and target != "string" else value

    def convert(text: str) -> str:
        value = read(text)
        if target == "string":
            return java_string(_as_text(value, text, schema))
        if target == "boolean":
            return "true" if _as_boolean(value) else "false"
        if target in _BITS:
            return str(_as_integer(value, _BITS[target]))
        return _as_float(value, single=target == "float")

    return convert


def _decimal(encoded: str, scale: int) -> Any:
    unscaled = int.from_bytes(base64.b64decode(encoded), "big", signed=True)
    return Decimal(unscaled).scaleb(-scale, Context(prec=max(28, len(str(unscaled)) + 2)))


def _as_text(value: Any, text: str, schema: Schema) -> str:
    kind, name = schema["type"], str(schema.get("name", ""))
    if name.startswith(_CONNECT) and not name.endswith("Decimal"):
        return _date_text(value, name.removeprefix(_CONNECT))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if kind in ("float", "double"):
        return java_double(np.float32(value) if kind == "float" else value)
    return text if kind in _BITS else str(value)


def _date_text(value: int, name: str) -> str:
    """Return a date of Kafka Connect as its ``Values`` prints it."""
    ms = value * _DAY_MS if name == "Date" else value
    if ms < _DAY_MS:  # whatever is before 1970, too
        return date_printer("HH:mm:ss.SSSX")(ms)
    return date_printer("yyyy-MM-dd'T'HH:mm:ss.SSSX" if ms % _DAY_MS else "yyyy-MM-dd")(ms)


def _as_boolean(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() == "true"
    return _truncated(value, 64) != 0


def _as_integer(value: Any, bits: int) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[+-]?[0-9]+", value) or not -(2 ** (bits - 1)) <= int(value) < 2 ** (bits - 1):
            raise ValueError(f"Value ({value}) was out of range for requested data type")
        return int(value)
    return _truncated(value, bits)


def _truncated(value: Any, bits: int) -> int:
    """Return a number as Java narrows it: floats to the nearest that there is, integers by their lowest bits."""
    if isinstance(value, float):
        most = float(2 ** ((64 if bits == 64 else 32) - 1))
        value = 0 if math.isnan(value) else int(max(-most, min(most, value))) - (value >= most)
    whole = int(value) & (2**bits - 1)
    return int(whole - 2**bits if whole >> (bits - 1) else whole)


def _as_float(value: Any, *, single: bool) -> str:
    if isinstance(value, str):
        found = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[fFdD]?|[+-]?(NaN|Infinity)", value.strip())
        if found is None:
            raise ValueError(f"Value ({value}) was out of range for requested data type")
        value = found[1] or found[0]
    number = float(value)
    number = float(np.float32(number)) if single else number
    if not math.isfinite(number):
        return '"NaN"' if math.isnan(number) else '"Infinity"' if number > 0 else '"-Infinity"'
    return java_double(np.float32(number) if single else number)


# -- times ------------------------------------------------------------------------------------------------------------


def timestamp_converter(options: Options) -> Transform:
    """Convert times between texts, Unix time and Kafka Connect's own types."""
    path, target = options.text("field"), options.text("target.type").lower()
    form = options.own.get("format", "")
    if target == "string" and not form.strip():
        raise ValueError("TimestampConverter requires format option to be specified when using string timestamps")
    read, printed = (date_reader(form), date_printer(form)) if form.strip() else (None, None)
    precision = options.text("unix.precision", "milliseconds").lower()

    def convert(records: Records, column: Column) -> Column:
        null = side_of(records, options.side)
        there = np.ones(len(records), bool) if null is None else ~null.is_null
        to_ms = _time_reader(column.schema, read, precision)
        if isinstance(to_ms, str) and there.any():
            raise RowsRefused(there, to_ms, order=records.order[there])
        if isinstance(column, Struct) or isinstance(to_ms, str):
            column, to_ms = Leaf(column.schema, pa.nulls(len(column), TEXT)), int
        schema, write = _time_writer(target, printed, precision)
        schema["optional"] = bool(column.schema.get("optional"))
        return Leaf(schema, mapped(column.texts, lambda text: write(to_ms(json.loads(text)))))

    def change(records: Records, structs: Struct) -> Column:
        copied = structs.copied(defaults=options.defaults)
        fields = dict(copied.fields)
        if path in fields:
            fields[path] = convert(records, part_of(structs, path, defaults=options.defaults))
        optional = bool(structs.schema.get("optional"))
        return copied.with_fields(fields).with_schema(optional=optional, default=structs.schema.get("default"))

    def transform(records: Records) -> list[Records]:
        column = side_of(records, options.side)
        if column is None:
            return [records]
        if not path:
            return [with_side(records, options.side, convert(records, column))]
        structs = structs_of(records, options.side, "converting timestamp formats")
        return [with_side(records, options.side, change(records, structs))]

    return transform


def _time_reader(schema: Schema, read: Callable[[str], int] | None, precision: str) -> Callable[[Any], int] | str:
    """Return what makes milliseconds of a value; a text says why nothing does."""
    kind, name = schema["type"], str(schema.get("name", ""))
    if name == f"{_CONNECT}Date":
        return lambda days: int(days) * _DAY_MS
    if name in (f"{_CONNECT}Timestamp", f"{_CONNECT}Time"):
        return int
    if kind == "string":
        return read or "TimestampConverter requires format option to be specified when using string timestamps"
    if kind == "int64":
        # TimeUnit cuts towards zero.
        return lambda number: int(number) * 1000 if precision == "seconds" else _cut(number, _PER_MS[precision])
    return f"a schema of type {kind} does not correspond to a known timestamp type format"


_PER_MS = {"milliseconds": 1, "microseconds": 1000, "nanoseconds": 1_000_000}


def _cut(number: int, by: int) -> int:
    return number // by if number >= 0 else -(-number // by)


def _time_writer(
    target: str, printed: Callable[[int], str] | None, precision: str
) -> tuple[Schema, Callable[[int], str]]:
    if target == "string":
        assert printed is not None
        return {"type": "string"}, lambda ms: java_string(printed(ms))
    if target == "unix":
        if precision == "seconds":
            return {"type": "int64"}, lambda ms: str(_cut(ms, 1000))
        return {"type": "int64"}, lambda ms: str(ms * _PER_MS[precision])
    kind, name = {"date": ("int32", "Date"), "time": ("int32", "Time"), "timestamp": ("int64", "Timestamp")}[target]
    writers: dict[str, Callable[[int], str]] = {
        "date": lambda ms: str(ms // _DAY_MS),
        "time": lambda ms: str(ms % _DAY_MS),
        "timestamp": str,
    }
    return {"type": kind, "name": f"{_CONNECT}{name}", "version": 1}, writers[target]


# -- time zones -------------------------------------------------------------------------------------------------------

_ZONED = "io.debezium.time.Zoned"
_ZONED_UNITS = {
    "io.debezium.time.Timestamp": 1_000,
    "io.debezium.time.MicroTimestamp": 1_000_000,
    "io.debezium.time.NanoTimestamp": 1_000_000_000,
    f"{_CONNECT}Timestamp": 1_000,
}
_EPOCHS = {"ts_ms": 1_000, "ts_us": 1_000_000, "ts_ns": 1_000_000_000}


def zone_of(name: str) -> Any:
    """Return a time zone of Java's.

    Raises:
        ValueError: there is none of that name.
    """
    offset = re.fullmatch(r"([+-])(\d\d):(\d\d)(?::(\d\d))?", name)
    if offset is not None:
        seconds = int(offset[2]) * 3600 + int(offset[3]) * 60 + int(offset[4] or 0)
        return timezone(timedelta(seconds=-seconds if offset[1] == "-" else seconds))
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"«{name}» is no time zone: give one such as Europe/Vienna, or +01:00") from None


def timezone_converter(options: Options) -> Transform:
    """Move times to another time zone."""
    zone = zone_of(options.text("converted.timezone"))
    include, exclude = options.listed("include.list"), options.listed("exclude.list")
    _refuse("Both include and exclude lists are specified. Please specify only one." if include and exclude else "")
    rules = _rules(include or exclude)

    def transform(records: Records) -> list[Records]:
        if not records.is_envelope or records.value is None:
            return [records]
        tombstones, rest = records.split(records.is_tombstone)
        found = [tombstones] if len(tombstones) else []
        for part in _by_table(rest):
            envelope = structs_of(part, "value", "converting time zones")
            topic = part.topics[0].as_py()
            wanted = _wanted(rules, _table(envelope), topic, include=bool(include), exclude=bool(exclude))
            value = envelope if wanted is None else _moved(part, envelope, wanted, zone)
            found.append(replace(part, value=value))
        return found

    return transform


def _by_table(records: Records) -> list[Records]:
    """Return records by topics, which are those of one table each."""
    return [
        records.take(np.asarray(pc.equal(records.topics, topic))) for topic in pc.unique(records.topics).to_pylist()
    ]


def _table(envelope: Struct) -> str | None:
    source = envelope.fields.get("source")
    if not isinstance(source, Struct) or "table" not in source.fields or not len(source):
        return None
    text = source.fields["table"].json(defaults=True)[0].as_py()
    return None if text is None else str(json.loads(text))


_Rules = dict[str, dict[str, set[str]]]


def _rules(items: list[str]) -> _Rules:
    """Return names of fields by what a rule is about (``topic``, ``source``, nothing) and the name that it matches."""
    found: _Rules = {"topic": {}, "source": {}, "": {}}
    common = ""
    for item in items:
        parts = item.split(":")
        prefix = parts[0].lower() if len(parts) > 1 and parts[0].lower() in ("topic", "source") else ""
        match, *field = parts[1:] if prefix else parts
        common = prefix or common
        found[common].setdefault(match, set()).update(field[:1])
    return found


def _wanted(
    rules: _Rules, table: str | None, topic: str, *, include: bool, exclude: bool
) -> Callable[[str, str], bool] | None:
    """Return what says whether a field of ``before``, ``after`` or ``source`` is converted; None: nothing is."""
    known = [
        fields
        for about, name in (("topic", topic), ("source", table), ("", topic), ("", table))
        if name is not None and (fields := rules[about].get(name)) is not None
    ]
    fields = known[0] if known else None
    if not include and not exclude:
        return lambda part, _: part != "source"
    if fields is None:
        return None if include else (lambda part, _: part != "source")
    if not fields:
        return (lambda part, _: part != "source") if include else None

    def named(part: str, name: str) -> bool:
        plain = part != "source" and name in fields
        return plain or f"{part}.{name}" in fields

    if include:
        return named
    of_source = any(name.startswith("source.") for name in fields)
    return lambda part, name: (part != "source" or of_source) and not named(part, name)


def _moved(records: Records, envelope: Struct, wanted: Callable[[str, str], bool], zone: Any) -> Struct:
    fields: dict[str, Column] = dict(envelope.fields)
    for part in ("before", "after", "source"):
        image = fields.get(part)
        if not isinstance(image, Struct):
            continue
        columns = {
            name: _zoned(records, part, name, column, zone) if wanted(part, name) else column
            for name, column in image.fields.items()
        }
        fields[part] = image.with_fields(columns)
    return envelope.with_fields(fields)


def _zoned(records: Records, part: str, name: str, column: Column, zone: Any) -> Column:
    if isinstance(column, Struct):
        return column
    about = str(column.schema.get("name", ""))
    texts = column.with_default().texts
    if about == f"{_ZONED}Timestamp":
        return Leaf(column.schema, mapped(texts, lambda text: java_string(zoned_timestamp(json.loads(text), zone))))
    if about == f"{_ZONED}Time":
        return Leaf(column.schema, mapped(texts, lambda text: java_string(zoned_time(json.loads(text), zone))))
    if about in _ZONED_UNITS:
        unit = _ZONED_UNITS[about]
        return Leaf(
            column.schema, mapped(texts, lambda text: str(int(text) - _local_offset(int(text), unit, zone) * unit))
        )
    if not about and part == "source" and name in _EPOCHS:
        unit = _EPOCHS[name]
        return Leaf(
            column.schema, mapped(texts, lambda text: str(int(text) + _offset_at(int(text) // unit, zone) * unit))
        )
    return column


def _offset_at(seconds: int, zone: Any) -> int:
    """Return the seconds east of Greenwich at an instant; those of years that `datetime` has not are its nearest."""
    seconds = min(max(seconds, -62_135_510_400), 253_402_214_400)
    moment = datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)
    return int((moment.astimezone(zone).utcoffset() or timedelta()).total_seconds())


def _local_offset(number: int, unit: int, zone: Any) -> int:
    """Return the seconds east of Greenwich at a local time, which stands as if it were UTC."""
    seconds = min(max(number // unit, -62_135_510_400), 253_402_214_400)
    local = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    return int((local.replace(tzinfo=zone).utcoffset() or timedelta()).total_seconds())


_ISO = re.compile(r"([+-]?\d{4,})-(\d\d)-(\d\d)T(\d\d:\d\d(?::\d\d(?:\.\d+)?)?)(Z|[+-]\d\d:\d\d(?::\d\d)?)")


def zoned_timestamp(text: str, zone: Any) -> str:
    """Return the same instant with the offset that a zone has at that local time.

    >>> zoned_timestamp("2024-07-01T22:30:00.5Z", zone_of("Europe/Vienna"))
    '2024-07-02T00:30:00.5+02:00'
    """
    found = _ISO.fullmatch(text)
    if found is None or len(found[1]) > 4:
        raise ValueError(f"Text '{text}' could not be parsed")
    moment = datetime.fromisoformat(f"{found[1]}-{found[2]}-{found[3]}T{found[4][:8]}{found[5].replace('Z', '+00:00')}")
    fraction = found[4][8:]
    offset = moment.replace(tzinfo=zone).utcoffset() or timedelta()
    moved = moment.astimezone(timezone(offset))
    return moved.strftime("%Y").zfill(4) + moved.strftime("-%m-%dT%H:%M:%S") + _trimmed(fraction) + _suffix(offset)


def zoned_time(text: str, zone: Any) -> str:
    """Return the same time of day with the offset that a zone has now, as Debezium does."""
    found = re.fullmatch(r"(\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?(Z|[+-]\d\d:\d\d)", text)
    if found is None:
        raise ValueError(f"Text '{text}' could not be parsed")
    offset = datetime.now(UTC).astimezone(zone).utcoffset() or timedelta()
    theirs = timedelta() if found[5] == "Z" else zone_of(found[5]).utcoffset(None)
    seconds = int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)
    seconds = (seconds + int((offset - theirs).total_seconds())) % 86_400
    return (
        f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{_trimmed(found[4] or '')}{_suffix(offset)}"
    )


def _trimmed(fraction: str) -> str:
    return fraction.rstrip("0").rstrip(".")


def _suffix(offset: timedelta) -> str:
    seconds = int(offset.total_seconds())
    if not seconds:
        return "Z"
    sign, seconds = "-" if seconds < 0 else "+", abs(seconds)
    rest = f":{seconds % 60:02d}" if seconds % 60 else ""
    return f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}{rest}"


# -- vectors ----------------------------------------------------------------------------------------------------------

_JSON: Schema = {"type": "string", "name": "io.debezium.data.Json", "version": 1}
_VECTORS = ("io.debezium.data.DoubleVector", "io.debezium.data.FloatVector")
_SPARSE = "io.debezium.data.SparseDoubleVector"


def vector_to_json(_: Options) -> Transform:
    """Write pgvector's values as JSON texts."""

    def change(_: Records, structs: Struct) -> Column:
        return _jsoned(structs)

    return lambda records: on_structs(records, "value", change, purpose="Value should be a struct", keeps_null=True)


def _jsoned(column: Column) -> Column:
    name = column.schema.get("name")
    if name in _VECTORS or name == _SPARSE:
        texts = column.json(defaults=False)
        schema = {**_JSON, "optional": bool(column.schema.get("optional"))}
        return Leaf(schema, mapped(texts, _sparse if name == _SPARSE else _dense))
    if isinstance(opened(column), Struct):
        structs = opened(column)
        assert isinstance(structs, Struct)
        return structs.with_fields({part: _jsoned(inner.with_default()) for part, inner in structs.fields.items()})
    return column


def _dense(text: str) -> str:
    numbers = ", ".join(part.strip().strip('"') for part in text.strip("[]").split(",") if part.strip())
    return java_string(f'{{ "values": [{numbers}] }}')


def _sparse(text: str) -> str:
    value = json.loads(text, parse_float=str)
    pairs = value["vector"].items() if isinstance(value["vector"], dict) else value["vector"]
    shown = ", ".join(f'"{place}": {number}' for place, number in sorted((int(p), n) for p, n in pairs))
    return java_string(f'{{ "dimensions": {value["dimensions"]}, "vector": {{ {shown} }} }}')
