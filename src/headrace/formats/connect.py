"""Schemas of Kafka Connect in JSON, as its JsonConverter writes them: from Arrow, and to Arrow.

Types and semantic names are those of Debezium's connector for PostgreSQL
(https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-data-types), and what they
become here is what the native capture gives for the same column of the database, wherever the schema tells enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from headrace.errors import FormatError
from headrace.formats import connect_values as values
from headrace.formats import debezium, decimals
from headrace.formats.coerce import POSTGRES_TYPE, Convert, Reading, is_array_text, reading, to, to_field, to_type
from headrace.plain_values import is_bytes, is_list, is_text

Schema = dict[str, Any]

DECIMAL = "org.apache.kafka.connect.data.Decimal"
NO_SCHEMA = "the schema is not one of Kafka Connect"
_UNIT_NAMES = {"s": "", "ms": "", "us": "Micro", "ns": "Nano"}
_DEEPEST = 64
_SHOWN = 60
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

# --- from Arrow ---


def struct_schema(fields: Sequence[pa.Field], name: str | None, *, optional: bool = False) -> Schema:
    """The Connect schema of a record of these columns.

    >>> struct_schema([pa.field("id", pa.int32(), nullable=False)], "t.Key")["fields"]
    [{'type': 'int32', 'optional': False, 'field': 'id'}]
    """
    schema: Schema = {"type": "struct", "fields": [field_schema(field) for field in fields], "optional": optional}
    return schema if name is None else {**schema, "name": name}


def field_schema(field: pa.Field) -> Schema:
    """The Connect schema of one column.

    Raises:
        FormatError: Connect has no type for it.

    >>> field_schema(pa.field("at", pa.timestamp("us", "UTC")))
    {'type': 'string', 'optional': True, 'name': 'io.debezium.time.ZonedTimestamp', 'version': 1, 'field': 'at'}
    """
    schema = _of_type(field.type, (field.metadata or {}).get(POSTGRES_TYPE, b"").decode(), field.name)
    return {"type": schema.pop("type"), "optional": field.nullable, **schema, "field": field.name}


def _of_type(kind: pa.DataType, postgres: str, column: str) -> Schema:
    for matches, schema in _TYPES:
        if matches(kind):
            return schema(kind, postgres, column)
    raise FormatError(
        f"column «{column}»: Kafka Connect has no type for {kind}", advice="Cast the column, or drop it before writing."
    )


def _plain(name: str) -> Callable[[pa.DataType, str, str], Schema]:
    return lambda *_: {"type": name}


def _named(kind: str, name: str, **more: Any) -> Schema:
    return {"type": kind, "name": name, "version": 1, **more}


_TEXTS = {"uuid": "Uuid", "json": "Json", "jsonb": "Json", "xml": "Xml", "ltree": "Ltree"}


def _text(_: pa.DataType, postgres: str, __: str) -> Schema:
    name = _TEXTS.get(postgres)
    return _named("string", f"io.debezium.data.{name}") if name else {"type": "string"}


def _time(kind: pa.DataType, _: str, __: str) -> Schema:
    width = "int32" if kind.unit in ("s", "ms") else "int64"
    return _named(width, f"io.debezium.time.{_UNIT_NAMES[kind.unit]}Time")


def _timestamp(kind: pa.DataType, _: str, __: str) -> Schema:
    if kind.tz:
        return _named("string", "io.debezium.time.ZonedTimestamp")
    return _named("int64", f"io.debezium.time.{_UNIT_NAMES[kind.unit]}Timestamp")


def _duration(kind: pa.DataType, _: str, __: str) -> Schema:
    prefix = _UNIT_NAMES[kind.unit]
    return _named("int64", f"io.debezium.time.{prefix}Duration") if prefix else {"type": "int64"}


def _decimal(kind: pa.DataType, _: str, __: str) -> Schema:
    parameters = {"scale": str(kind.scale), "connect.decimal.precision": str(kind.precision)}
    return {"type": "bytes", "name": DECIMAL, "version": 1, "parameters": parameters}


def _array(kind: pa.DataType, _: str, column: str) -> Schema:
    item = kind.value_field
    return {"type": "array", "items": {**_of_type(item.type, "", column), "optional": item.nullable}}


def _struct(kind: pa.DataType, _: str, column: str) -> Schema:
    return {"type": "struct", "fields": [field_schema(field) for field in kind]}


def _map(kind: pa.DataType, _: str, column: str) -> Schema:
    keys = {**_of_type(kind.key_type, "", column), "optional": False}
    return {"type": "map", "keys": keys, "values": {**_of_type(kind.item_type, "", column), "optional": True}}


def _unsigned64(kind: pa.DataType, _: str, column: str) -> Schema:
    # Connect has no unsigned types. Beyond 63 bits its reader would wrap silently.
    raise FormatError(
        f"column «{column}»: Kafka Connect has no type for {kind}", advice="Cast it to decimal128(20, 0)."
    )


_TYPES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.DataType, str, str], Schema]], ...] = (
    (pa.types.is_boolean, _plain("boolean")),
    (pa.types.is_int8, _plain("int8")),
    (lambda kind: pa.types.is_int16(kind) or pa.types.is_uint8(kind), _plain("int16")),
    (lambda kind: pa.types.is_int32(kind) or pa.types.is_uint16(kind), _plain("int32")),
    (lambda kind: pa.types.is_int64(kind) or pa.types.is_uint32(kind), _plain("int64")),
    (pa.types.is_uint64, _unsigned64),
    (lambda kind: pa.types.is_float16(kind) or pa.types.is_float32(kind), _plain("float")),
    (pa.types.is_float64, _plain("double")),
    (is_text, _text),
    (is_bytes, _plain("bytes")),
    (pa.types.is_decimal, _decimal),
    (pa.types.is_date, lambda *_: _named("int32", "io.debezium.time.Date")),
    (pa.types.is_time, _time),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_duration, _duration),
    (is_list, _array),
    (pa.types.is_struct, _struct),
    (pa.types.is_map, _map),
    # A column that never had a value: null goes with any optional type.
    (pa.types.is_null, _plain("string")),
    (
        lambda kind: pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind),
        lambda kind, postgres, column: _of_type(kind.value_type, postgres, column),
    ),
    (
        lambda kind: isinstance(kind, pa.BaseExtensionType),
        lambda kind, postgres, column: _of_type(kind.storage_type, postgres, column),
    ),
)

_SNAPSHOTS = "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"
_TRANSACTION_BLOCK = [
    pa.field(name, kind, nullable=False)
    for name, kind in (("id", pa.string()), ("total_order", pa.int64()), ("data_collection_order", pa.int64()))
]
_TIMES = [pa.field(name, pa.int64()) for name in ("ts_ms", "ts_us", "ts_ns")]


def envelope_schema(fields: Sequence[pa.Field], topic: str) -> Schema:
    """The schema of Debezium's change event for a table of these columns.

    >>> [field["field"] for field in envelope_schema([pa.field("id", pa.int32())], "t")["fields"]]
    ['before', 'after', 'source', 'transaction', 'op', 'ts_ms', 'ts_us', 'ts_ns']
    """
    row = struct_schema(fields, f"{topic}.Value", optional=True)
    transaction = struct_schema(_TRANSACTION_BLOCK, "event.block", optional=True)
    source = struct_schema(debezium.SOURCE_BLOCK, "io.debezium.connector.postgresql.Source")
    source["fields"] = [_snapshot() if field["field"] == "snapshot" else field for field in source["fields"]]
    return {
        "type": "struct",
        "fields": [
            {**row, "field": "before"},
            {**row, "field": "after"},
            {**source, "version": 1, "field": "source"},
            {**transaction, "version": 1, "field": "transaction"},
            *map(field_schema, [pa.field("op", pa.string(), nullable=False), *_TIMES]),
        ],
        "optional": False,
        "name": f"{topic}.Envelope",
        "version": 2,
    }


def _snapshot() -> Schema:
    enum = _named("string", "io.debezium.data.Enum", parameters={"allowed": _SNAPSHOTS})
    return {**enum, "optional": True, "default": "false", "field": "snapshot"}


# --- to Arrow ---


def row_fields(schema: Schema) -> list[Schema] | None:
    """The fields of the row in a value's schema: those of ``after`` where it is an envelope; None where it is no row.

    >>> row_fields({"type": "struct", "fields": [{"type": "int32", "field": "id"}]})
    [{'type': 'int32', 'field': 'id'}]
    """
    if schema.get("type") != "struct":
        return None
    fields: list[Schema] = schema.get("fields") or []
    if is_envelope(schema):
        inside = {field.get("field"): field for field in fields}
        row = inside.get("after") or inside.get("before") or {}
        return row.get("fields") or []
    return fields


def is_envelope(schema: Schema) -> bool:
    """Return whether a value's schema is that of Debezium's change events."""
    names = {field.get("field") for field in schema.get("fields") or []}
    return "op" in names and bool({"before", "after"} & names) and "source" in names


@lru_cache(maxsize=256)
def read_schema(text: bytes) -> Schema | str:
    """Parse a schema's text, or say what is wrong with it; texts repeat for thousands of messages: they are kept."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return NO_SCHEMA
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        return NO_SCHEMA
    try:
        _check(found, 0)
        for field in row_fields(found) or ():
            reading_of(field)
    except FormatError as error:
        return error.message
    return found


def _check(schema: Any, depth: int) -> None:
    """Refuse what is no schema in its outlines.

    Raises:
        FormatError: says what is wrong, and of which field.
    """
    if not isinstance(schema, dict):
        raise FormatError(f"{NO_SCHEMA}: {json.dumps(schema)[:_SHOWN]} stands where a type has to")
    if depth > _DEEPEST:
        raise FormatError(f"{NO_SCHEMA}: nested more than {_DEEPEST} deep")
    kind = schema.get("type")
    for part in {"array": ("items",), "map": ("keys", "values")}.get(str(kind), ()):
        if part in schema:
            _check(schema[part], depth + 1)
    if kind != "struct" or ("fields" not in schema and schema.get("name") in _BY_NAME):
        return
    fields = schema.get("fields")
    if not isinstance(fields, list):
        raise FormatError(f"{NO_SCHEMA}: a struct without a list of fields")
    names: set[str] = set()
    for field in fields:
        _check(field, depth + 1)
        name = field.get("field")
        if not isinstance(name, str):
            raise FormatError(f"{NO_SCHEMA}: a field without a name")
        if name in names:
            raise FormatError(f"{NO_SCHEMA}: two fields are named «{name}»")
        names.add(name)


def reading_of(field: Schema) -> Reading:
    """Return how to read a column whose schema came with the message.

    A name that is not known says nothing: the column is what its plain type is.

    Raises:
        FormatError: there is no such type, or a named type's parameters say none.

    >>> reading_of({"type": "int32", "name": "io.debezium.time.Date", "field": "d"}).field
    pyarrow.Field<d: date32[day]>
    """
    wire, arrow, convert = _known(field)
    number = is_text(arrow) and field.get("name") in _NUMBERS_AS_TEXT
    metadata = {POSTGRES_TYPE: b"numeric"} if number else None
    return Reading(pa.field(str(field.get("field")), arrow, metadata=metadata), wire, convert, _is_encoded(field))


def reading_as(field: Schema, asked: pa.Field, *, text_decimals: bool = False) -> Reading:
    """Return how to read a column whose schema came with the message, into the type asked for.

    Args:
        field: the schema that came.
        asked: the column that results.
        text_decimals: decimals are plain texts all the same (in the headers of our own messages).

    >>> day = reading_as({"type": "int32", "name": "io.debezium.time.Date"}, pa.field("d", pa.string()))
    >>> day.convert(pa.array([19782])).to_pylist()
    ['2024-02-29']
    """
    wire, convert = _asked(field, asked, text_decimals)
    return Reading(asked, wire, convert, _is_encoded(field) and not text_decimals)


def _is_encoded(schema: Schema) -> bool:
    return schema.get("type") == "bytes" or schema.get("name") in (DECIMAL, "io.debezium.data.Bits")


def _asked(schema: Schema, asked: pa.Field, text_decimals: bool) -> tuple[pa.DataType | None, Convert]:
    """Straight to the type asked for where both sides have the same units; else by way of what the schema says."""
    kind, target = schema.get("type"), asked.type
    name = str(schema.get("name") or "")
    wire, arrow, convert = _known(schema)
    if name == _ZONED and pa.types.is_timestamp(target):
        return wire, values.zoned_timestamp(target)
    if (text_decimals and name == DECIMAL) or _same_units(name, target):
        return wire, to(target)
    if kind == "array" and is_list(target):
        inner = _asked(schema.get("items") or {}, target.value_field, text_decimals)[1]
        raw = pa.list_(target.value_type)
        return wire, lambda array: to_type(values.each_item(array, raw, inner), target)
    if kind == "struct" and pa.types.is_struct(target) and name not in _BY_NAME:
        declared = {str(item.get("field")): item for item in schema.get("fields") or []}
        fields = [
            reading_as(declared[item.name], item, text_decimals=text_decimals)
            if item.name in declared
            else reading(item)
            for item in target
        ]
        return wire, lambda array: values.each_field(array, fields)
    if kind == "map" and pa.types.is_map(target):
        keys = _asked(schema.get("keys") or {}, target.key_field, text_decimals)[1]
        items = _asked(schema.get("values") or {}, target.item_field, text_decimals)[1]
        return None, lambda array: values.each_entry(array, target, keys, items)
    as_array_text = is_array_text(asked) or (is_text(target) and is_list(arrow))
    return wire, lambda array: to_field(convert(array), asked, as_array_text=as_array_text)


def _same_units(name: str, kind: pa.DataType) -> bool:
    """Return whether a named type's numbers or texts are those that `to_type` expects for a type."""
    if name in _ISO_NAMES:
        return bool(pa.types.is_temporal(kind))
    unit = _UNITS.get(name)
    counted = pa.types.is_timestamp(kind) or pa.types.is_time(kind) or pa.types.is_duration(kind)
    return unit is not None and counted and unit == ("ms" if kind.unit == "s" else kind.unit)


def _known(schema: Schema) -> tuple[pa.DataType | None, pa.DataType, Convert]:
    name, kind = schema.get("name"), schema.get("type")
    by_name = _BY_NAME.get(name) if isinstance(name, str) else None
    if by_name is not None:
        known = by_name(schema)
        if known is not None:
            return known
    if kind == "array":
        return _known_array(schema)
    if kind == "map":
        return _known_map(schema)
    if kind == "struct":
        return _known_struct(schema)
    arrow = _BY_TYPE.get(str(kind))
    if arrow is None:
        raise _in_field(schema, FormatError("that is none of Kafka Connect's types"))
    wire = pa.string() if kind == "bytes" else arrow
    return wire, arrow, to(arrow)


_BY_TYPE = {
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "float32": pa.float32(),
    "double": pa.float64(),
    "float64": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
}

Known = tuple[pa.DataType | None, pa.DataType, Convert]


def _known_array(schema: Schema) -> Known:
    wire, arrow, convert = _known(schema.get("items") or {})
    kind = pa.list_(arrow)
    return None if wire is None else pa.list_(wire), kind, lambda array: values.each_item(array, kind, convert)


def _known_map(schema: Schema) -> Known:
    key, item = _known(schema.get("keys") or {}), _known(schema.get("values") or {})
    kind = pa.map_(key[1], item[1])
    return None, kind, lambda array: values.each_entry(array, kind, key[2], item[2])


def _known_struct(schema: Schema) -> Known:
    fields = [reading_of(field) for field in schema.get("fields") or []]
    wires = [(column.field.name, column.wire) for column in fields]
    kind = pa.struct([child.field for child in fields])
    known = all(wire is not None for _, wire in wires)
    return pa.struct(wires) if known else None, kind, lambda array: values.each_field(array, fields)


def _as(wire: pa.DataType, arrow: pa.DataType, convert: Convert | None = None) -> Callable[[Schema], Known | None]:
    return lambda _: (wire, arrow, convert or to(arrow))


def parameter(parameters: Any, name: str) -> int | None:
    """A whole number among the parameters of a named type; None where it is not given.

    Raises:
        FormatError: it is something else.

    >>> parameter({"scale": "2"}, "scale"), parameter(None, "scale")
    (2, None)
    """
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise FormatError(f"its parameters are {json.dumps(parameters)[:_SHOWN]}, not an object")
    found = parameters.get(name)
    if found is None:
        return None
    if isinstance(found, int) and not isinstance(found, bool):
        return found
    if isinstance(found, str) and _WHOLE.fullmatch(found.strip()):
        return int(found)
    raise FormatError(f"its {name} is {json.dumps(found)[:_SHOWN]}, not a whole number")


def _in_field(schema: Schema, error: FormatError) -> FormatError:
    """The refusal of a named type, with the column and the type that it speaks of."""
    kind = schema.get("name") if schema.get("name") in _BY_NAME else schema.get("type")
    column = f"column «{schema['field']}» of " if schema.get("field") else ""
    return FormatError(f"{column}type {str(kind)[:_SHOWN]}: {error.message}")


def _known_decimal(schema: Schema) -> Known:
    """Decimals of a declared precision as such; without one, or beyond 38 digits, as texts of numbers.

    The type follows from the schema alone, never from values. A scale has to be there: values mean nothing without.
    """
    parameters = schema.get("parameters")
    try:
        scale = parameter(parameters, "scale")
        if scale is None:
            raise FormatError("it has no scale")
        decimals.check_scale(scale)
    except FormatError as error:
        raise _in_field(schema, error) from None
    try:
        precision = parameter(parameters, "connect.decimal.precision") or 0
    except FormatError:
        precision = 0  # it takes nothing from the values
    if precision and 0 <= scale <= precision <= 38:
        kind = pa.decimal128(precision, scale)
        return pa.string(), kind, lambda array: values.decimal(array, scale, kind)
    return pa.string(), pa.string(), lambda array: values.decimal(array, scale, pa.string())


def _known_bits(schema: Schema) -> Known:
    try:
        length = parameter(schema.get("parameters"), "length")
        if length is not None and length != values.UNBOUNDED and not 0 <= length <= values.LONGEST_BITS:
            raise FormatError(f"its length is {length}")
    except FormatError as error:
        raise _in_field(schema, error) from None
    return pa.string(), pa.string(), lambda array: values.bits(array, values.UNBOUNDED if length is None else length)


_VARIABLE = pa.struct([("scale", pa.int32()), ("value", pa.string())])
_POINT = pa.struct([("x", pa.float64()), ("y", pa.float64()), ("wkb", pa.string()), ("srid", pa.int32())])
_SPARSE = pa.struct([("dimensions", pa.int64()), ("vector", pa.list_(pa.list_(pa.float64())))])
_CONNECT, _TIME, _DATA = "org.apache.kafka.connect.data.", "io.debezium.time.", "io.debezium.data."
_ZONED = f"{_TIME}ZonedTimestamp"
_US, _UTC = pa.timestamp("us"), pa.timestamp("us", tz="UTC")

# What native capture has of a numeric without a scale: its text, and that it is a number.
_NUMBERS_AS_TEXT = frozenset({DECIMAL, "io.debezium.data.VariableScaleDecimal"})
_ISO_NAMES = frozenset(f"{_TIME}{name}" for name in ("ZonedTimestamp", "IsoTimestamp"))
_UNITS = {
    f"{prefix}{name}": unit
    for prefix, name, unit in [
        *((_TIME, f"{long}{kind}", unit) for kind in ("Time", "Timestamp", "Duration") for long, unit in
          (("", "ms"), ("Micro", "us"), ("Nano", "ns"))),
        (_CONNECT, "Time", "ms"),
        (_CONNECT, "Timestamp", "ms"),
    ]
}  # fmt: skip

_BY_NAME: dict[str, Callable[[Schema], Known | None]] = {
    f"{_CONNECT}Decimal": _known_decimal,
    f"{_CONNECT}Date": _as(pa.int32(), pa.date32()),
    f"{_CONNECT}Time": _as(pa.int64(), pa.string(), values.time_in("ms")),
    f"{_CONNECT}Timestamp": _as(pa.int64(), _US, values.millis),
    f"{_TIME}Date": _as(pa.int32(), pa.date32()),
    f"{_TIME}Time": _as(pa.int64(), pa.string(), values.time_in("ms")),
    f"{_TIME}MicroTime": _as(pa.int64(), pa.string(), values.time_in("us")),
    f"{_TIME}NanoTime": _as(pa.int64(), pa.string(), values.time_in("ns")),
    f"{_TIME}Timestamp": _as(pa.int64(), _US, values.millis),
    f"{_TIME}MicroTimestamp": _as(pa.int64(), _US),
    f"{_TIME}NanoTimestamp": _as(pa.int64(), pa.timestamp("ns")),
    _ZONED: _as(pa.string(), _UTC, values.zoned_timestamp(_UTC)),
    f"{_TIME}ZonedTime": _as(pa.string(), pa.string(), values.zoned_time),
    f"{_TIME}MicroDuration": _as(pa.int64(), pa.duration("us")),
    f"{_TIME}NanoDuration": _as(pa.int64(), pa.duration("ns")),
    f"{_TIME}IsoDate": _as(pa.string(), pa.date32(), values.iso_date),
    f"{_TIME}IsoTime": _as(pa.string(), pa.string(), values.iso_time),
    f"{_TIME}IsoTimestamp": _as(pa.string(), _US),
    f"{_TIME}Year": _as(pa.int32(), pa.int32()),
    f"{_DATA}VariableScaleDecimal": _as(_VARIABLE, pa.string(), values.variable_scale),
    f"{_DATA}Bits": _known_bits,
    f"{_DATA}geometry.Point": _as(_POINT, pa.string(), values.point),
    f"{_DATA}SparseDoubleVector": _as(_SPARSE, pa.string(), values.sparse_vector),
    f"{_DATA}SparseVector": _as(_SPARSE, pa.string(), values.sparse_vector),
}
