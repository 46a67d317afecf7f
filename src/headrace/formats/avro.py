"""Avro with a schema registry: Confluent's and Apicurio's wire forms, Debezium's naming."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from headrace.formats import avro_schema, debezium
from headrace.formats.avro_reader import AvroReader, check, finished
from headrace.formats.avro_schema import Node, parse
from headrace.formats.avro_writer import write
from headrace.formats.registry import RegisteredSchema
from headrace.formats.registry_format import Record, RegistryFormat, SchemaDecoder, Structs, good_rows
from headrace.formats.registry_framing import Framed


class AvroDecoder(SchemaDecoder[Node]):
    """Decode payloads of Avro."""

    def parse(self, schema: RegisteredSchema) -> Node:
        """Return the schema's tree."""
        node = parse(schema.text, [reference.text for reference in schema.references])
        check(node)
        return node

    def structs(self, group: Framed, parsed: Node) -> Structs:
        """Read all payloads at once, field by field."""
        reader = AvroReader(group.buffer, group.starts, group.ends, finish=finished, unread=_unread(parsed))
        values = reader.read(parsed)
        if not pa.types.is_struct(values.type):
            values = pa.StructArray.from_arrays([values], names=["value"])
        return good_rows(values, reader.reasons)


def _unread(node: Node) -> dict[str, frozenset[str]]:
    """Name the fields of an envelope's source that make no event: most of it is the same text in every message."""
    if node.kind != "record" or not debezium.is_envelope(node.names) or "source" not in node.names:
        return {}
    source = node.child("source").value
    return {source.name: frozenset(source.names) - {field.name for field in debezium.SOURCE}}


class AvroFormat(RegistryFormat[Node]):
    """Rows as Avro records. The arguments are those of `RegistryFormat`.

    >>> AvroFormat("http://127.0.0.1:8081", envelope=True).name
    'avro+envelope'
    """

    own_name = "avro"
    kind = "AVRO"
    decoder = AvroDecoder

    def declare(self, topic: str, name: Record, kind: pa.StructType, required: Sequence[str]) -> tuple[str, str, Node]:
        """Return the schema's text, its full name and its tree."""
        if name == "Envelope":
            declared = avro_schema.envelope(kind, topic)
        else:
            declared = avro_schema.record(kind, name=name, namespace=topic, required=required)
        text = json.dumps(declared, separators=(",", ":"))
        return text, declared["connect.name"], parse(text)

    def payloads(self, prepared: Node, rows: pa.StructArray, prefix: bytes) -> list[bytes]:
        """Return a record for each row."""
        found: list[bytes] = write(prepared, avro_schema.physical(rows), prefix=prefix).to_pylist()
        return found
