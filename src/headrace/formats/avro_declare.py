"""Avro schemas for Arrow columns, in Debezium's and Kafka Connect's names, and the columns as those want them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats import decimals, timestamps

_DATA = "org.apache.kafka.connect.data."
_TIME = "io.debezium.time."
# PostgreSQL types whose text Debezium marks, so that its sinks make the same type again.
_TEXTS = {b"uuid": "io.debezium.data.Uuid", b"json": "io.debezium.data.Json", b"jsonb": "io.debezium.data.Json"}


def record(fields: Iterable[pa.Field], *, name: str, namespace: str, required: Iterable[str] = ()) -> dict[str, Any]:
    """The Avro record of a table's row or key.

    Args:
        fields: its columns.
        name, namespace: ``Value`` and the topic, in Debezium's naming.
        required: columns that are never null whatever their field says (a key's).

    Raises:
        FormatError: a column of a type that Avro cannot hold, or two columns whose Avro names are the same.

    >>> value = record([pa.field("a b", pa.int16(), nullable=False)], name="Value", namespace="shop.public.t")
    >>> value["fields"]
    [{'name': 'a_b', 'type': {'type': 'int', 'connect.type': 'int16'}, 'headrace.name': 'a b'}]
    """
    space = adjusted(namespace, dots=True)
    taken: dict[str, str] = {}
    declared: list[dict[str, Any]] = []
    never_null = set(required)
    for field in fields:
        avro_name = adjusted(field.name)
        if avro_name in taken:
            raise FormatError(
                f"the columns «{taken[avro_name]}» and «{field.name}» of {namespace} are both «{avro_name}» in Avro",
                advice="Rename one of them.",
            )
        taken[avro_name] = field.name
        kind = _type(field, f"{space}.{name}", avro_name)
        one: dict[str, Any] = {"name": avro_name, "type": kind}
        if field.nullable and field.name not in never_null and kind != "null":
            one |= {"type": ["null", kind], "default": None}
        if avro_name != field.name:
            one["headrace.name"] = field.name
        declared.append(one)
    full = f"{space}.{name}" if space else name
    return {"type": "record", "name": name, "namespace": space, "fields": declared, "connect.name": full}


def envelope(kind: pa.StructType, topic: str) -> dict[str, Any]:
    """Debezium's envelope, from a struct as `registry_messages.envelopes` makes it."""
    space = adjusted(topic, dots=True)
    fields = {field.name: field for field in kind}
    row = record(fields["after"].type, name="Value", namespace=topic)
    source = record(fields["source"].type, name="Source", namespace="io.debezium.connector.postgresql")
    declared: list[dict[str, Any]] = [
        {"name": "before", "type": ["null", row], "default": None},
        {"name": "after", "type": ["null", row["connect.name"]], "default": None},
        {"name": "source", "type": source},
        {"name": "op", "type": "string"},
    ]
    rest = [name for name in fields if name not in ("before", "after", "source", "op")]
    declared += [{"name": name, "type": ["null", "long"], "default": None} for name in rest]
    named = {"type": "record", "name": "Envelope", "namespace": space, "fields": declared}
    return {**named, "connect.version": 2, "connect.name": f"{space}.Envelope"}


def adjusted(name: str, *, dots: bool = False) -> str:
    """A name as Avro allows it: Debezium's ``field.name.adjustment.mode=avro``, every other character an underscore.

    >>> adjusted("2nd größe"), adjusted("my-db.public.t", dots=True)
    ('_2nd_gr__e', 'my_db.public.t')
    """
    if dots:
        return ".".join(adjusted(part) for part in name.split("."))
    clean = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return clean if re.match(r"[A-Za-z_]", clean) else f"_{clean}"


def _type(field: pa.Field, namespace: str, name: str) -> Any:
    kind = field.type
    if pa.types.is_dictionary(kind):
        return _type(field.with_type(kind.value_type), namespace, name)
    plain = _PLAIN.get(kind)
    if plain is not None:
        return plain
    if _is_text(kind):
        marked = _TEXTS.get((field.metadata or {}).get(b"postgres.type", b""))
        return {"type": "string", "connect.version": 1, "connect.name": marked} if marked else "string"
    if _is_bytes(kind):
        return "bytes"
    if pa.types.is_decimal(kind):
        return _decimal(kind)
    if pa.types.is_timestamp(kind):
        return _timestamp(kind)
    if pa.types.is_time(kind):
        return _semantic("long", f"{_TIME}MicroTime", "time-micros")
    if pa.types.is_duration(kind):
        return _semantic("long", f"{_TIME}MicroDuration")
    return _nested(field, namespace, name)


def _nested(field: pa.Field, namespace: str, name: str) -> Any:
    kind = field.type
    if pa.types.is_struct(kind):
        return record(kind, name=name, namespace=namespace)
    if _is_list(kind):
        return {"type": "array", "items": _optional(kind.value_field, namespace, name)}
    if pa.types.is_map(kind) and _is_text(kind.key_type):
        return {"type": "map", "values": _optional(kind.item_field, namespace, name)}
    raise FormatError(
        f"the column «{field.name}» is {kind}, which Avro cannot hold",
        advice="Cast it, to text for example, before it goes to this topic.",
    )


def _optional(field: pa.Field, namespace: str, name: str) -> Any:
    kind = _type(field, namespace, name)
    return ["null", kind] if field.nullable and kind != "null" else kind


def _semantic(kind: str, connect_name: str, logical: str | None = None, **further: Any) -> dict[str, Any]:
    named = {"type": kind, **further, "connect.version": 1, "connect.name": connect_name}
    return named | {"logicalType": logical} if logical else named


def _decimal(kind: pa.DataType) -> Any:
    if not 0 <= kind.scale <= kind.precision:
        return "string"
    parameters = {"scale": str(kind.scale), "connect.decimal.precision": str(kind.precision)}
    further = {"scale": kind.scale, "precision": kind.precision, "connect.parameters": parameters}
    return _semantic("bytes", f"{_DATA}Decimal", "decimal", **further)


def _timestamp(kind: pa.DataType) -> Any:
    if kind.tz is not None:
        return _semantic("string", f"{_TIME}ZonedTimestamp")
    if kind.unit == "ns":
        return _semantic("long", f"{_TIME}NanoTimestamp")
    return _semantic("long", f"{_TIME}MicroTimestamp", "local-timestamp-micros")


def physical(array: pa.Array) -> pa.Array:
    """A column in the types that its Avro schema is written from: days, microseconds, bytes.

    Raises:
        FormatError: a value that does not fit (an unsigned 64-bit number above 2**63, a time outside of a day).
    """
    try:
        return _physical(array)
    except pa.ArrowInvalid as error:
        raise FormatError(f"{array.type} does not fit into its Avro type: {error}") from error


def _physical(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _physical(array.dictionary_decode())
    if pa.types.is_date(kind):
        return array.cast(pa.date32()).view(pa.int32())
    if pa.types.is_timestamp(kind):
        return _physical_timestamp(array)
    if pa.types.is_time(kind):
        return array.cast(pa.time64("us")).view(pa.int64())
    if pa.types.is_duration(kind):
        return array.cast(pa.duration("us")).view(pa.int64())
    if pa.types.is_decimal(kind):
        return decimals.to_text(array) if _decimal(kind) == "string" else decimals.to_bytes(array)
    if kind == pa.uint64():
        return array.cast(pa.int64())
    if pa.types.is_struct(kind):
        # `flatten` puts a struct's own nulls into its fields; what is null for a missing struct is never written.
        columns = [_physical(array.field(i)) for i in range(kind.num_fields)]
        fields = [pa.field(kind.field(i).name, column.type) for i, column in enumerate(columns)]
        if not fields:
            return array
        return pa.StructArray.from_arrays(columns, fields=fields, mask=pc.is_null(array))
    if pa.types.is_map(kind):
        whole = _unsliced(array)
        keys, items = whole.keys.cast(pa.string()), _physical(whole.items)
        return pa.MapArray.from_arrays(whole.offsets, keys, items, mask=pc.is_null(whole))
    if _is_list(kind):
        whole = _unsliced(array.cast(pa.list_(kind.value_type)))
        return pa.ListArray.from_arrays(whole.offsets, _physical(whole.values), mask=pc.is_null(whole))
    return array


def _physical_timestamp(array: pa.Array) -> pa.Array:
    kind = array.type
    if kind.tz is None:
        return (array if kind.unit == "ns" else array.cast(pa.timestamp("us"))).view(pa.int64())
    return timestamps.to_iso(array if kind.unit == "ns" else array.cast(pa.timestamp("us", tz="UTC")))


def _unsliced(array: pa.Array) -> pa.Array:
    """A copy whose offsets begin at 0 and whose nulls are empty."""
    return array.take(pa.array(np.arange(len(array))))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(check(kind) for check in checks)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


_PLAIN: dict[pa.DataType, Any] = {
    pa.null(): "null",
    pa.bool_(): "boolean",
    pa.int8(): {"type": "int", "connect.type": "int8"},
    pa.int16(): {"type": "int", "connect.type": "int16"},
    pa.int32(): "int",
    pa.uint8(): {"type": "int", "connect.type": "int16"},
    pa.uint16(): "int",
    pa.uint32(): "long",
    pa.int64(): "long",
    pa.uint64(): "long",
    pa.float16(): "float",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.date32(): _semantic("int", f"{_DATA}Date", "date"),
    pa.date64(): _semantic("int", f"{_DATA}Date", "date"),
}
