"""Avro schemas as trees, parsed once for each schema id, for the reader and the writer; those of Arrow columns.

Follows https://avro.apache.org/docs/1.12.0/specification/. What Kafka Connect's AvroConverter adds to a schema
(``connect.name``, ``connect.type``, ``connect.parameters``) stays in `Node.attributes`.

Columns get schemas in Debezium's and Kafka Connect's names: ``connect.name`` and, where no reader stumbles over both,
``logicalType``. Connect's converter and sinks read the first, Python's readers the second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import FormatError
from headrace.formats import decimals, timestamps
from headrace.formats.coerce import unsliced
from headrace.plain_values import is_bytes, is_list, is_text, with_items

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})


@dataclass(frozen=True, slots=True)
class Node:
    """One type of a schema.

    Attributes:
        kind: ``int``, ``string``, …, ``fixed``, ``enum``, ``array``, ``map``, ``record`` or ``union``.
        attributes: every other attribute the schema gives to the type.
        name: the full name of a record, an enum or a fixed; the type's own name otherwise.
        names: a record's field names, an enum's symbols.
        children: a record's field types, a union's branches, the element type of an array or a map.
        size: bytes of a fixed.
    """

    kind: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    names: tuple[str, ...] = ()
    children: tuple[Node, ...] = ()
    size: int = 0

    @property
    def nullable(self) -> bool:
        """Return whether this is a union of null and exactly one other type."""
        return self.kind == "union" and len(self.children) == 2 and any(c.kind == "null" for c in self.children)

    @property
    def value(self) -> Node:
        """The type of what is not null."""
        return next(c for c in self.children if c.kind != "null") if self.nullable else self

    @property
    def null_branch(self) -> int:
        """The branch of a union that is null, -1 where none is."""
        return next((i for i, c in enumerate(self.children) if c.kind == "null"), -1)

    def child(self, name: str) -> Node:
        """The type of one of a record's fields."""
        return self.children[self.names.index(name)]


def parse(text: str, references: Sequence[str] = ()) -> Node:
    """The tree of a schema; ``references`` are the schemas whose names it uses, innermost first.

    Raises:
        FormatError: not a schema, or one that a table cannot hold (a record inside itself).

    >>> node = parse('{"type": "record", "name": "V", "fields": [{"name": "a", "type": ["null", "int"]}]}')
    >>> node.names, node.child("a").nullable, node.child("a").value.kind
    (('a',), True, 'int')
    """
    named: dict[str, Node | None] = {}
    try:
        for reference in references:
            _node(json.loads(reference), "", named)
        return _node(json.loads(text), "", named)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"not an Avro schema ({type(error).__name__}: {error}): {text[:200]}") from error


def _node(schema: Any, namespace: str, named: dict[str, Node | None]) -> Node:
    if isinstance(schema, list):
        return Node("union", name="union", children=tuple(_node(branch, namespace, named) for branch in schema))
    if isinstance(schema, str):
        return _named(schema, namespace, named)
    kind = schema["type"]
    if not isinstance(kind, str):
        return _node(kind, namespace, named)
    attributes = {key: value for key, value in schema.items() if key not in ("type", "fields", "items", "values")}
    if kind == "array":
        return Node(kind, attributes, kind, children=(_node(schema["items"], namespace, named),))
    if kind == "map":
        return Node(kind, attributes, kind, children=(_node(schema["values"], namespace, named),))
    if kind in ("record", "error", "enum", "fixed"):
        return _definition(schema, kind, attributes, namespace, named)
    found = _named(kind, namespace, named)
    return Node(kind, attributes, kind) if kind in PRIMITIVES else found


def _definition(
    schema: dict[str, Any], kind: str, attributes: dict[str, Any], namespace: str, named: dict[str, Node | None]
) -> Node:
    name = str(schema["name"])
    space = name.rpartition(".")[0] if "." in name else str(schema.get("namespace", namespace) or "")
    full = name if "." in name or not space else f"{space}.{name}"
    named[full] = None  # being defined: a use of it inside itself has no Arrow type
    if kind == "enum":
        node = Node(kind, attributes, full, names=tuple(schema["symbols"]))
    elif kind == "fixed":
        node = Node(kind, attributes, full, size=int(schema["size"]))
    else:
        fields = schema["fields"]
        children = tuple(_node(_with_attributes(column), space, named) for column in fields)
        node = Node("record", attributes, full, names=tuple(_field_name(child) for child in fields), children=children)
    named[full] = node
    return node


def _field_name(one: dict[str, Any]) -> str:
    """A field's name; ours may carry a column's name that Avro would not allow."""
    return str(one.get("headrace.name", one["name"]))


def _with_attributes(one: dict[str, Any]) -> Any:
    """A field's type; some writers put ``logicalType`` beside the type instead of inside it."""
    kind = one["type"]
    if isinstance(kind, str) and kind in PRIMITIVES and "logicalType" in one:
        return {key: value for key, value in one.items() if key not in ("name", "default", "doc")}
    return kind


def _named(name: str, namespace: str, named: dict[str, Node | None]) -> Node:
    if name in PRIMITIVES:
        return Node(name, name=name)
    full = name if "." in name or not namespace else f"{namespace}.{name}"
    if full not in named:
        full = name
    if full not in named:
        raise FormatError(f"the Avro schema uses «{name}» and nothing defines it")
    node = named[full]
    if node is None:
        raise FormatError(f"the Avro record «{full}» contains itself; columns cannot hold that")
    return node


# -- the schemas of Arrow columns, and the columns as those want them --

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
    for column in fields:
        avro_name = adjusted(column.name)
        if avro_name in taken:
            raise FormatError(
                f"the columns «{taken[avro_name]}» and «{column.name}» of {namespace} are both «{avro_name}» in Avro",
                advice="Rename one of them.",
            )
        taken[avro_name] = column.name
        kind = _type(column, f"{space}.{name}", avro_name)
        found: dict[str, Any] = {"name": avro_name, "type": kind}
        if column.nullable and column.name not in never_null and kind != "null":
            found |= {"type": ["null", kind], "default": None}
        if avro_name != column.name:
            found["headrace.name"] = column.name
        declared.append(found)
    full = f"{space}.{name}" if space else name
    return {"type": "record", "name": name, "namespace": space, "fields": declared, "connect.name": full}


def envelope(kind: pa.StructType, topic: str) -> dict[str, Any]:
    """Debezium's envelope, from a struct as `registry_format.envelopes` makes it."""
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
    if is_text(kind):
        marked = _TEXTS.get((field.metadata or {}).get(b"postgres.type", b""))
        return {"type": "string", "connect.version": 1, "connect.name": marked} if marked else "string"
    if is_bytes(kind):
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
    if is_list(kind):
        return {"type": "array", "items": _optional(kind.value_field, namespace, name)}
    if pa.types.is_map(kind) and is_text(kind.key_type):
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
        whole = unsliced(array)
        keys, items = whole.keys.cast(pa.string()), _physical(whole.items)
        return pa.MapArray.from_arrays(whole.offsets, keys, items, mask=pc.is_null(whole))
    if is_list(kind):
        return with_items(array, _physical(array.flatten()))
    return array


def _physical_timestamp(array: pa.Array) -> pa.Array:
    kind = array.type
    if kind.tz is None:
        return (array if kind.unit == "ns" else array.cast(pa.timestamp("us"))).view(pa.int64())
    return timestamps.to_iso(array if kind.unit == "ns" else array.cast(pa.timestamp("us", tz="UTC")))


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
