"""Avro with a schema registry: Confluent's and Apicurio's wire forms, Debezium's naming."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa

from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.formats import avro_declare, debezium
from headrace.formats.avro_reader import Reader
from headrace.formats.avro_schema import Node, parse
from headrace.formats.avro_types import check, finished
from headrace.formats.avro_writer import write
from headrace.formats.base import FIRST, Decoded, Encoded, Preceding
from headrace.formats.json_keys import KEY_FORMATS
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_columns import Structs, good_rows
from headrace.formats.registry_events import decode
from headrace.formats.registry_framing import WIRES, Framed, Role, Wire, id_headers, prefix
from headrace.formats.registry_messages import Extra, Record, messages
from headrace.wire import WireMessages

Subject = Literal["topic", "record", "topic-record"]


class AvroDecoder:
    """Payloads of one Avro schema to columns; remembers the trees of the schemas it has seen."""

    def __init__(self) -> None:
        self._nodes: dict[RegisteredSchema, Node | str] = {}

    def __call__(self, group: Framed, schema: RegisteredSchema) -> Structs:
        node = self._nodes.get(schema)
        if node is None:
            try:
                node = parse(schema.text, [one.text for one in schema.references])
                check(node)
            except FormatError as error:
                node = error.message
            self._nodes[schema] = node
        if isinstance(node, str):
            reason = f"{group.schema_id}: {node}"
            return [], dict.fromkeys(range(len(group.rows)), reason)
        reader = Reader(group.buffer, group.starts, group.ends, finish=finished, unread=_unread(node))
        values = reader.read(node)
        if not pa.types.is_struct(values.type):
            values = pa.StructArray.from_arrays([values], names=["value"])
        return good_rows(values, reader.reasons)


def _unread(node: Node) -> dict[str, frozenset[str]]:
    """Of an envelope's source only what makes the event is read: most of it is the same text in every message."""
    if node.kind != "record" or not debezium.is_envelope(node.names) or "source" not in node.names:
        return {}
    source = node.child("source").value
    return {source.name: frozenset(source.names) - {one.name for one in debezium.SOURCE}}


class AvroFormat:
    """Rows as Avro records whose schemas are in a registry. Safe to use from any thread.

    Args:
        registry: a client, or the registry's URL.
        envelope: write Debezium's envelope (``before``, ``after``, ``source``, ``op``) instead of the row alone.
            Reading takes either.
        subject: under which name schemas are registered: ``topic`` (``<topic>-value``), ``record`` (the record's
            full name) or ``topic-record`` (``<topic>-<full name>``).
        key: ``avro``: the key columns as an Avro record; or one of `json_keys.KEY_FORMATS`, ``none`` for no keys.
        wire: see `headrace.formats.registry_framing`.
        register: register schemas; False only takes those that the subject already has.

    >>> AvroFormat("http://127.0.0.1:8081", envelope=True).name
    'avro+envelope'
    """

    def __init__(
        self,
        registry: SchemaRegistry | str,
        *,
        envelope: bool = False,
        subject: Subject = "topic",
        key: str = "avro",
        wire: Wire = "confluent",
        register: bool = True,
    ) -> None:
        for what, given, allowed in (
            ("subject", subject, ("topic", "record", "topic-record")),
            ("key", key, ("avro", *KEY_FORMATS)),
            ("wire", wire, WIRES),
        ):
            if given not in allowed:
                raise DeclarationError(f"{what}={given!r} is none of {', '.join(allowed)}")
        self._registry = SchemaRegistry(registry) if isinstance(registry, str) else registry
        self._envelope = envelope
        self._subject = subject
        self._key = None if key == "avro" else key
        self._wire = wire
        self._register = register
        self._decoder = AvroDecoder()
        self._lock = threading.Lock()
        self._declared: dict[tuple[Any, ...], tuple[Node, int]] = {}

    @property
    def name(self) -> str:
        return "avro+envelope" if self._envelope else "avro"

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
            {"AVRO": self._decoder},
            wire=self._wire,
            envelope=self._envelope,
        )

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows; see `registry_messages` for deletes.

        Raises:
            FormatError: a column Avro cannot hold, or a schema that the registry refuses.
            RegistryUnavailable: a schema is new and the registry does not answer; nothing was written.
        """

        def write_rows(
            role: Role, name: Record, rows: pa.StructArray, required: Sequence[str]
        ) -> tuple[list[bytes], Extra]:
            return self._written(topic, role, name, rows, required)

        return messages(topic, batch, write_rows, envelope=self._envelope, key=self._key)

    def _written(
        self, topic: str, role: Role, name: Record, rows: pa.StructArray, required: Sequence[str]
    ) -> tuple[list[bytes], Extra]:
        try:
            node, number = self._declaration(topic, role, name, rows.type, tuple(required))
            payloads = write(node, avro_declare.physical(rows), prefix=prefix(number, self._wire)).to_pylist()
        except RegistryUnavailable:
            raise
        except FormatError as error:
            raise FormatError(f"topic «{topic}»: {error.message}", advice=error.advice) from error
        return payloads, id_headers(number, wire=self._wire, role=role)

    def _declaration(
        self, topic: str, role: Role, name: Record, kind: pa.StructType, required: tuple[str, ...]
    ) -> tuple[Node, int]:
        """The schema's tree and id; declared and registered once for each Arrow schema."""
        # Equal Arrow types may differ in their metadata, which says what a text is.
        key = (topic, name, pa.schema(list(kind)).serialize().to_pybytes(), required)
        with self._lock:
            known = self._declared.get(key)
        if known is not None:
            return known
        if name == "Envelope":
            declared = avro_declare.envelope(kind, topic)
        else:
            declared = avro_declare.record(kind, name=name, namespace=topic, required=required)
        text = json.dumps(declared, separators=(",", ":"))
        full = declared["connect.name"]
        subject = {"topic": f"{topic}-{role}", "record": full, "topic-record": f"{topic}-{full}"}[self._subject]
        number = self._registry.register(subject, text) if self._register else self._registry.lookup(subject, text)
        with self._lock:
            return self._declared.setdefault(key, (parse(text), number))
