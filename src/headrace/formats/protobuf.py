"""Reading Protobuf whose schemas are in a registry.

Messages become Arrow columns in `ptars` (Rust) by the whole group: 1.2 microseconds a message of 15 fields, where
google.protobuf's own classes need 5 to parse it, before anybody has looked at a field. A group with a broken message is
halved until that message is alone.

Enums are their names (a number that the schema does not know: its digits), ``google.protobuf.Timestamp`` is
timestamp[us, UTC], messages are structs, wrappers nullable values, maps maps; uint64 stays uint64. A message inside
itself is its bytes. A field without presence (proto3) that was not sent has its default value, as Protobuf means it.

Wire form: https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import DeclarationError, FormatError, MissingExtra
from headrace.formats import protobuf_schema
from headrace.formats.base import FIRST, Decoded, Encoded, Preceding
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_columns import Structs
from headrace.formats.registry_events import decode
from headrace.formats.registry_framing import Framed, Wire
from headrace.wire import WireMessages

_Bodies = tuple[list[int], list[bytes]]  # places and payloads
_MOST_INDEXES = 32


class ProtobufDecoder:
    """Payloads of one Protobuf schema to columns; remembers what it has compiled."""

    def __init__(self) -> None:
        self._files: dict[RegisteredSchema, Any] = {}
        self._handlers: dict[tuple[RegisteredSchema, tuple[int, ...]], Any] = {}

    def __call__(self, group: Framed, schema: RegisteredSchema) -> Structs:
        """Structs of the messages; a schema that cannot be used makes all of them bad.

        Raises:
            MissingExtra: the extra «protobuf» is not installed.
        """
        payloads = group.payloads()
        # Without Confluent's prefix nothing names the message: it is the schema's first.
        indexed = group.schema_id.scheme == "id"
        kinds, reasons = _by_message(payloads) if indexed else ({(0,): (list(range(len(payloads))), payloads)}, {})
        found: list[tuple[pa.StructArray, Ints]] = []
        for indexes, (places, bodies) in kinds.items():
            try:
                handler = self._handler(schema, indexes)
            except FormatError as error:
                reasons |= dict.fromkeys(places, f"{group.schema_id}: {error.message}")
                continue
            _convert(handler, bodies, np.array(places, np.int64), found, reasons)
        return found, reasons

    def _handler(self, schema: RegisteredSchema, indexes: tuple[int, ...]) -> Any:
        known = self._handlers.get((schema, indexes))
        if known is not None:
            return known
        try:
            import ptars
        except ImportError as error:
            raise MissingExtra("protobuf", "Protobuf from a schema registry") from error
        file = self._files.get(schema)
        if file is None:
            file = self._files[schema] = protobuf_schema.descriptor(schema)
        kind = protobuf_schema.message(file, indexes)
        options = ptars.PtarsConfig(timestamp_unit="us", time_unit="us", duration_unit="us", enum_repr="string")
        handler = ptars.HandlerPool([file], options).get_for_message(kind)
        return self._handlers.setdefault((schema, indexes), handler)


def _by_message(payloads: Sequence[bytes]) -> tuple[dict[tuple[int, ...], _Bodies], dict[int, str]]:
    """Messages behind their indexes, by the type that these name; and the places without any.

    >>> kinds, bad = _by_message([b"\\0ab", b"\\4\\2\\0cd", b""])
    >>> kinds, list(bad)
    ({(0,): ([0], [b'ab']), (1, 0): ([1], [b'cd'])}, [2])
    """
    if all(payload[:1] == b"\0" for payload in payloads):
        return {(0,): (list(range(len(payloads))), [payload[1:] for payload in payloads])}, {}
    kinds: dict[tuple[int, ...], _Bodies] = {}
    bad: dict[int, str] = {}
    for i, payload in enumerate(payloads):
        try:
            indexes, size = _indexes(payload)
        except (IndexError, ValueError):
            bad[i] = "no Protobuf message indexes behind the schema id"
            continue
        places, bodies = kinds.setdefault(indexes, ([], []))
        places.append(i)
        bodies.append(payload[size:])
    return kinds, bad


def _indexes(payload: bytes) -> tuple[tuple[int, ...], int]:
    count, at = _varint(payload, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= _MOST_INDEXES:
        raise ValueError("not a count of indexes")
    found = []
    for _ in range(count):
        index, at = _varint(payload, at)
        found.append(index)
    return tuple(found), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    bits = shift = 0
    while True:
        byte = data[at]
        at += 1
        bits |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (bits >> 1) ^ -(bits & 1), at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _convert(
    handler: Any,
    payloads: list[bytes],
    places: Ints,
    found: list[tuple[pa.StructArray, Ints]],
    reasons: dict[int, str],
) -> None:
    if not payloads:
        return
    try:
        records = handler.list_to_record_batch(payloads)
    except ValueError as error:
        if len(payloads) == 1:
            reasons[int(places[0])] = str(error)
            return
        half = len(payloads) // 2
        _convert(handler, payloads[:half], places[:half], found, reasons)
        _convert(handler, payloads[half:], places[half:], found, reasons)
        return
    struct = pa.array([{}] * len(payloads), pa.struct([])) if not records.num_columns else records.to_struct_array()
    found.append((struct, places))


class ProtobufFormat:
    """Protobuf messages whose schemas are in a registry, to read. Safe to use from any thread.

    Args:
        registry: a client, or the registry's URL.
        wire: see `headrace.formats.registry_framing`.

    >>> ProtobufFormat("http://127.0.0.1:8081").name
    'protobuf'
    """

    def __init__(self, registry: SchemaRegistry | str, *, wire: Wire = "confluent") -> None:
        self._registry = SchemaRegistry(registry) if isinstance(registry, str) else registry
        self._wire = wire
        self._decoder = ProtobufDecoder()

    @property
    def name(self) -> str:
        return "protobuf"

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Rows of the messages; see `Format.decode`.

        Raises:
            RegistryUnavailable: a schema is not in memory and the registry does not answer; nothing was decoded.
            MissingExtra: the extra «protobuf» is not installed.
        """
        return decode(messages, schema, preceding, self._registry, {"PROTOBUF": self._decoder}, wire=self._wire)

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Not there: field numbers are a promise that columns cannot make.

        Raises:
            DeclarationError: always.
        """
        raise DeclarationError(
            f"topic «{topic}»: Headrace reads Protobuf and does not write it", advice="Write it as avro or jsonschema."
        )
