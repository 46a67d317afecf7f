"""JSON whose JSON Schemas are in a registry: Confluent's and Apicurio's wire forms around the JSON formats."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.formats import coerce, connect, json_text
from headrace.formats.base import FIRST, Decoded, Encoded, Preceding
from headrace.formats.json_keys import KEY_FORMATS
from headrace.formats.json_parse import columns_of
from headrace.formats.jsonschema_types import Schema, from_connect, to_connect
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_columns import Structs
from headrace.formats.registry_events import decode
from headrace.formats.registry_framing import WIRES, Framed, Role, Wire, id_headers, prefix
from headrace.formats.registry_messages import Extra, Record, messages
from headrace.wire import WireMessages


class JsonSchemaDecoder:
    """JSON payloads to columns of the types that their JSON Schema tells; others by what their values look like."""

    def __init__(self) -> None:
        self._readings: dict[RegisteredSchema, list[coerce.Reading] | str] = {}

    def __call__(self, group: Framed, schema: RegisteredSchema) -> Structs:
        readings = self._readings.get(schema)
        if readings is None:
            try:
                fields = to_connect(schema.text, schema.references)
                readings = [connect.reading_of(field) for field in fields]
                for inside in (one for field in fields for one in connect.row_fields(field) or ()):
                    connect.reading_of(inside)
            except FormatError as error:
                readings = error.message
            self._readings[schema] = readings
        if isinstance(readings, str):
            return [], dict.fromkeys(range(len(group.rows)), f"{group.schema_id}: {readings}")
        return columns_of(group.payloads(), readings)


class JsonSchemaFormat:
    """Rows as JSON objects whose JSON Schemas are in a registry. Safe to use from any thread.

    Values have the forms of Debezium's JSON (days, microseconds, base64), the schemas the names of Kafka Connect for
    them, as Confluent's JsonSchemaConverter writes both.

    Args:
        registry: a client, or the registry's URL.
        envelope: write Debezium's envelope. Reading takes either.
        subject: see `AvroFormat`; a record's name is the schema's ``title``.
        key: ``jsonschema``: the key columns as an object with a schema; or one of `json_keys.KEY_FORMATS`.
        wire: see `headrace.formats.registry_framing`.

    >>> JsonSchemaFormat("http://127.0.0.1:8081").name
    'jsonschema'
    """

    def __init__(
        self,
        registry: SchemaRegistry | str,
        *,
        envelope: bool = False,
        subject: Literal["topic", "record", "topic-record"] = "topic",
        key: str = "jsonschema",
        wire: Wire = "confluent",
    ) -> None:
        for what, given, allowed in (
            ("subject", subject, ("topic", "record", "topic-record")),
            ("key", key, ("jsonschema", *KEY_FORMATS)),
            ("wire", wire, WIRES),
        ):
            if given not in allowed:
                raise DeclarationError(f"{what}={given!r} is none of {', '.join(allowed)}")
        self._registry = SchemaRegistry(registry) if isinstance(registry, str) else registry
        self._envelope = envelope
        self._subject = subject
        self._key = None if key == "jsonschema" else key
        self._wire = wire
        self._decoder = JsonSchemaDecoder()
        self._lock = threading.Lock()
        self._ids: dict[tuple[Any, ...], int] = {}

    @property
    def name(self) -> str:
        return "jsonschema+envelope" if self._envelope else "jsonschema"

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Rows of the messages; see `Format.decode`.

        Raises:
            RegistryUnavailable: a schema is not in memory and the registry does not answer; nothing was decoded.
        """
        return decode(
            messages,
            schema,
            preceding,
            self._registry,
            {"JSON": self._decoder},
            wire=self._wire,
            envelope=self._envelope,
        )

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows; see `registry_messages` for deletes.

        Raises:
            FormatError: a column JSON cannot hold, or a schema that the registry refuses.
            RegistryUnavailable: a schema is new and the registry does not answer; nothing was written.
        """

        def write_rows(
            role: Role, name: Record, rows: pa.StructArray, required: Sequence[str]
        ) -> tuple[list[bytes], Extra]:
            try:
                number = self._number(topic, role, name, rows.type, tuple(required))
                named = [(field.name, column) for field, column in zip(rows.type, rows.flatten(), strict=True)]
                texts = json_text.objects(named, len(rows), binary_decimals=True)
            except RegistryUnavailable:
                raise
            except FormatError as error:
                raise FormatError(f"topic «{topic}»: {error.message}", advice=error.advice) from error
            front = prefix(number, self._wire)
            payloads = [front + text for text in texts.cast(pa.large_binary()).to_pylist()]
            return payloads, id_headers(number, wire=self._wire, role=role)

        return messages(topic, batch, write_rows, envelope=self._envelope, key=self._key)

    def _number(self, topic: str, role: Role, name: Record, kind: pa.StructType, required: tuple[str, ...]) -> int:
        """The schema's id; made and registered once for each Arrow schema."""
        key = (topic, name, pa.schema(list(kind)).serialize().to_pybytes(), required)
        with self._lock:
            known = self._ids.get(key)
        if known is not None:
            return known
        declared = from_connect(_connect_schema(topic, name, kind, required))
        subjects = {
            "topic": f"{topic}-{role}",
            "record": declared["title"],
            "topic-record": f"{topic}-{declared['title']}",
        }
        text = json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **declared}, separators=(",", ":"))
        number = self._registry.register(subjects[self._subject], text, "JSON")
        with self._lock:
            return self._ids.setdefault(key, number)


def _connect_schema(topic: str, name: Record, kind: pa.StructType, required: Sequence[str]) -> Schema:
    fields = list(kind)
    if name == "Envelope":
        return connect.envelope_schema(list(kind.field("after").type), topic)
    declared = [field.with_nullable(field.nullable and field.name not in required) for field in fields]
    return connect.struct_schema(declared, f"{topic}.{name}")
