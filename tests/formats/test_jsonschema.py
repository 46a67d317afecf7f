"""JSON Schemas in Connect's terms and back, and the columns they make; no registry and no Java here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.errors import FormatError
from headrace.formats import connect
from headrace.formats.jsonschema import JsonSchemaDecoder, from_connect, to_connect
from headrace.formats.registry import RegisteredSchema, SchemaId
from headrace.formats.registry_framing import Framed

OPEN: dict[str, Any] = {}


def read(schema: dict[str, Any], *payloads: bytes) -> Any:
    lengths = np.array([len(payload) for payload in payloads])
    ends = np.cumsum(lengths)
    group = Framed(SchemaId("id", 1), b"".join(payloads), np.arange(len(payloads)), ends - lengths, ends)
    return JsonSchemaDecoder()(group, RegisteredSchema("JSON", json.dumps(schema)))


@pytest.mark.parametrize(
    ("declared", "value", "kind"),
    [
        ({"type": "integer"}, 1, pa.int64()),
        ({"type": "integer", "connect.type": "int16"}, 1, pa.int16()),
        ({"type": "number"}, 1, pa.float64()),
        ({"type": "boolean"}, True, pa.bool_()),
        ({"type": ["null", "string"]}, "x", pa.string()),
        ({"type": "string", "format": "date-time"}, "2024-02-29T00:00:00Z", pa.timestamp("us", "UTC")),
        ({"type": "string", "format": "date"}, "2024-02-29", pa.date32()),
        ({"type": "string", "connect.type": "bytes"}, "eA==", pa.binary()),
        ({"oneOf": [{"type": "null"}, {"type": "integer"}]}, 5, pa.int64()),
        ({"$ref": "#/definitions/D"}, {"a": 1}, pa.struct([("a", pa.int64())])),
        ({"type": "array", "items": {"type": "integer"}}, [1], pa.list_(pa.int64())),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"k": 1}, pa.map_(pa.string(), pa.int64())),
        ({"type": "integer", "title": "io.debezium.time.Date", "connect.type": "int32"}, 1, pa.date32()),
        ({"type": "integer", "title": "A nice number"}, 1, pa.int64()),
        (OPEN, 1.5, pa.float64()),
        ({"$ref": "#/definitions/Gone"}, "x", pa.string()),
        ({"$ref": "#/properties/v"}, "x", pa.string()),
    ],
)
def test_types_that_a_schema_tells(declared: dict[str, Any], value: Any, kind: pa.DataType) -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"v": declared}, "definitions": {"D": inner}}
    ((struct, _),), bad = read(schema, json.dumps({"v": value}).encode())
    assert not bad and struct.type.field("v").type == kind and struct.field("v").null_count == 0


def test_values_against_the_schema_are_bad_and_the_others_are_not() -> None:
    schema = {"type": "object", "properties": {"v": {"type": "integer"}}}
    ((struct, places),), bad = read(schema, b'{"v":1}', b'{"v":"x"}', b"[]", b'{"v":', b'{"v":2,"more":true}')
    assert [row["v"] for row in struct.to_pylist()] == [1, 2] and places.tolist() == [0, 4] and sorted(bad) == [1, 2, 3]


@pytest.mark.parametrize("text", ["[]", "{", '{"type": "string"}', "7"])
def test_what_is_no_objects_schema_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="JSON Schema"):
        to_connect(text)


def test_connects_schemas_come_back() -> None:
    fields = [
        pa.field("b", pa.int16()),
        pa.field("a", pa.timestamp("us"), nullable=False),
        pa.field("price", pa.decimal128(10, 2)),
        pa.field("m", pa.map_(pa.string(), pa.float64())),
        pa.field("s", pa.struct([("x", pa.date32())])),
        pa.field("l", pa.list_(pa.timestamp("us", "UTC"))),
    ]
    found = to_connect(json.dumps(from_connect(connect.struct_schema(fields, "t.Value"))))
    assert [(item.field.name, item.field.type) for item in map(connect.reading_of, found)] == [
        (f.name, f.type) for f in fields
    ]
