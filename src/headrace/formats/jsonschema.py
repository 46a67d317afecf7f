"""JSON whose JSON Schemas are in a registry, and those schemas as Kafka Connect's, both ways.

``title`` is a type's Connect name; ``connect.type``, ``connect.parameters``, ``connect.version`` are what JSON Schema
has no word for; ``oneOf`` with null makes it optional:
https://docs.confluent.io/platform/current/schema-registry/connect.html#json-schema
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from headrace.errors import FormatError
from headrace.formats import coerce, connect, json_text
from headrace.formats.coerce import columns_of
from headrace.formats.registry import RegisteredSchema
from headrace.formats.registry_format import Record, RegistryFormat, SchemaDecoder, Structs
from headrace.formats.registry_framing import Framed

Schema = dict[str, Any]


class JsonSchemaDecoder(SchemaDecoder[list[coerce.Reading]]):
    """Decode JSON payloads: columns have the types that their JSON Schema tells, others those of their values."""

    def parse(self, schema: RegisteredSchema) -> list[coerce.Reading]:
        """Return how to read the schema's columns."""
        fields = to_connect(schema.text, schema.references)
        readings = [connect.reading_of(field) for field in fields]
        for inside in (inner for field in fields for inner in connect.row_fields(field) or ()):
            connect.reading_of(inside)
        return readings

    def structs(self, group: Framed, parsed: list[coerce.Reading]) -> Structs:
        """Read the payloads' columns."""
        return columns_of(group.payloads(), parsed)


class JsonSchemaFormat(RegistryFormat[None]):
    """Rows as JSON objects. The arguments are those of `RegistryFormat`; a record's name is the schema's ``title``.

    Values have the forms of Debezium's JSON (days, microseconds, base64), the schemas the names of Kafka Connect for
    them, as Confluent's JsonSchemaConverter writes both.

    >>> JsonSchemaFormat("http://127.0.0.1:8081").name
    'jsonschema'
    """

    own_name = "jsonschema"
    kind = "JSON"
    decoder = JsonSchemaDecoder

    def declare(self, topic: str, name: Record, kind: pa.StructType, required: Sequence[str]) -> tuple[str, str, None]:
        """Return the schema's text and its title."""
        declared = from_connect(_connect_schema(topic, name, kind, required))
        text = json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **declared}, separators=(",", ":"))
        return text, declared["title"], None

    def payloads(self, prepared: None, rows: pa.StructArray, prefix: bytes) -> list[bytes]:
        """Return an object for each row."""
        named = [(field.name, column) for field, column in zip(rows.type, rows.flatten(), strict=True)]
        texts = json_text.objects(named, len(rows), binary_decimals=True)
        return [prefix + text for text in texts.cast(pa.large_binary()).to_pylist()]


def _connect_schema(topic: str, name: Record, kind: pa.StructType, required: Sequence[str]) -> Schema:
    fields = list(kind)
    if name == "Envelope":
        return connect.envelope_schema(list(kind.field("after").type), topic)
    declared = [field.with_nullable(field.nullable and field.name not in required) for field in fields]
    return connect.struct_schema(declared, f"{topic}.{name}")


_PLAIN: Mapping[str, Schema] = {
    "boolean": {"type": "boolean"},
    "string": {"type": "string"},
    "bytes": {"type": "string", "connect.type": "bytes"},
    **{name: {"type": "integer", "connect.type": name} for name in ("int8", "int16", "int32", "int64")},
    "float": {"type": "number", "connect.type": "float32"},
    "double": {"type": "number", "connect.type": "float64"},
}
_TYPES = {"integer": "int64", "number": "float64", "string": "string", "boolean": "boolean"}
_FORMATS = {
    "date-time": "io.debezium.time.ZonedTimestamp",
    "date": "io.debezium.time.IsoDate",
    "time": "io.debezium.time.IsoTime",
}
_DEEPEST = 50


def from_connect(schema: Schema) -> Schema:
    """The JSON Schema of a Connect schema.

    >>> from_connect({"type": "int32", "optional": True, "name": "io.debezium.time.Date", "version": 1})["oneOf"][1]
    {'type': 'integer', 'connect.type': 'int32', 'title': 'io.debezium.time.Date', 'connect.version': 1}
    """
    kind = schema["type"]
    if kind == "struct":
        properties = {
            field["field"]: {"connect.index": i, **from_connect(field)} for i, field in enumerate(schema["fields"])
        }
        found: Schema = {"type": "object", "properties": properties}
    elif kind == "array":
        found = {"type": "array", "items": from_connect(schema["items"])}
    elif kind == "map":
        if schema["keys"]["type"] != "string":
            raise FormatError(
                "JSON Schema has no maps with keys other than text", advice="Cast the map's keys to text."
            )
        found = {"type": "object", "additionalProperties": from_connect(schema["values"]), "connect.type": "map"}
    else:
        found = dict(_PLAIN[kind])
    for ours, theirs in (("name", "title"), ("version", "connect.version"), ("parameters", "connect.parameters")):
        if ours in schema:
            found[theirs] = schema[ours]
    return {"oneOf": [{"type": "null"}, found]} if schema.get("optional") else found


def to_connect(text: str, references: Sequence[tuple[str, str]] = ()) -> list[Schema]:
    """Fields in Connect's terms, of those properties of a JSON Schema whose types it tells.

    Raises:
        FormatError: not the schema of an object.

    >>> to_connect('{"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}}')
    [{'type': 'int64', 'field': 'a'}]
    """
    try:
        root = json.loads(text)
        resolver = _Resolver(root, {name: json.loads(reference) for name, reference in references})
        fields = resolver.fields(root, 0)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise FormatError(f"not a JSON Schema ({type(error).__name__}: {error}): {text[:200]}") from error
    if fields is None:
        raise FormatError(f"a JSON Schema that is not one of an object: {text[:200]}")
    return fields


class _Resolver:
    """Follows ``$ref`` in a schema and in those it refers to."""

    def __init__(self, root: Any, others: Mapping[str, Any]) -> None:
        self._root = root
        self._others = others

    def fields(self, schema: Any, depth: int) -> list[Schema] | None:
        schema = self._resolved(schema, depth)
        if not isinstance(schema, dict) or not isinstance(schema.get("properties"), dict):
            return [] if isinstance(schema, dict) and schema.get("type") == "object" else None
        found = []
        properties = schema["properties"].items()
        for name, one in sorted(properties, key=lambda item: _index(item[1])):
            known = self._connect(one, depth + 1)
            if known is not None:
                found.append({**known, "field": name})
        return found

    def _connect(self, schema: Any, depth: int) -> Schema | None:
        """One type in Connect's terms; None where the schema leaves it open."""
        schema = self._resolved(schema, depth)
        if not isinstance(schema, dict):
            return None
        kind = schema.get("type")
        if isinstance(kind, list):
            left = [choice for choice in kind if choice != "null"]
            kind = left[0] if len(left) == 1 else None
        named = self._named(schema)
        if kind == "array":
            items = self._connect(schema.get("items"), depth + 1)
            return None if items is None else {"type": "array", "items": items}
        if kind == "object":
            return self._object(schema, named, depth)
        base = schema.get("connect.type", _TYPES.get(str(kind)))
        return None if base is None or base == "map" else {"type": base, **named}

    def _object(self, schema: Schema, named: Schema, depth: int) -> Schema | None:
        if "properties" in schema:
            fields = self.fields(schema, depth)
            # All or nothing: a struct without one of its fields would lose it.
            whole = fields is not None and len(fields) == len(schema["properties"])
            return {"type": "struct", "fields": fields, **named} if whole else None
        values = self._connect(schema.get("additionalProperties"), depth + 1)
        return None if values is None else {"type": "map", "keys": {"type": "string"}, "values": values}

    def _named(self, schema: Schema) -> Schema:
        found: Schema = {}
        name = schema.get("title") if "connect.type" in schema or "connect.version" in schema else None
        name = name or (_FORMATS.get(str(schema.get("format"))) if schema.get("type") != "integer" else None)
        if name:
            found["name"] = name
        if "connect.parameters" in schema:
            found["parameters"] = schema["connect.parameters"]
        return found

    def _resolved(self, schema: Any, depth: int) -> Any:
        """The schema behind references and behind the choice between null and one other."""
        for _ in range(_DEEPEST):
            if depth > _DEEPEST or not isinstance(schema, dict):
                return None
            choices = schema.get("oneOf") or schema.get("anyOf")
            if "$ref" in schema:
                schema = self._target(str(schema["$ref"]))
            elif isinstance(choices, list):
                left = [choice for choice in choices if not (isinstance(choice, dict) and choice.get("type") == "null")]
                if len(left) != 1:
                    return None
                schema = left[0]
            else:
                return schema
        return None

    def _target(self, reference: str) -> Any:
        document, _, path = reference.partition("#")
        found = self._others.get(document) if document else self._root
        for part in path.split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
        return found


def _index(schema: Any) -> float:
    """Return the place at which Connect had the field; properties of others stay in their order behind those."""
    if not isinstance(schema, dict):
        return float("inf")
    inner = [schema, *(choice for choice in schema.get("oneOf") or () if isinstance(choice, dict))]
    return next((float(item["connect.index"]) for item in inner if "connect.index" in item), float("inf"))
