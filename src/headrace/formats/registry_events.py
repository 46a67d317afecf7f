"""The events of messages whose schemas are in a registry: Avro, JSON Schema and Protobuf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.formats import debezium
from headrace.formats.base import Decoded, Preceding
from headrace.formats.change_events import ChangeEvents
from headrace.formats.coerce import reading
from headrace.formats.debezium import Columns
from headrace.formats.json_keys import names_in
from headrace.formats.json_parse import Bad, columns_of
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_columns import Structs, typed_reading
from headrace.formats.registry_framing import Framed, Role, Wire, frame, known
from headrace.wire import WireMessages

Decoder = Callable[[Framed, RegisteredSchema], Structs]
# Debezium's transaction markers and logical messages: understood, and no rows of a table.
_NO_ROWS = (frozenset({"status", "id", "event_count", "data_collections"}), frozenset({"op", "source", "message"}))


def decode(
    messages: WireMessages,
    schema: pa.Schema | None,
    preceding: Preceding,
    registry: SchemaRegistry,
    decoders: Mapping[str, Decoder],
    *,
    wire: Wire = "confluent",
    envelope: bool = False,
) -> Decoded:
    """Return the events of messages whose schemas are in a registry.

    Args:
        decoders: for each kind of schema (``AVRO``, ``JSON``, ``PROTOBUF``); a message of another kind is bad.
        envelope: the topic has envelopes: a null that nobody explains is a tombstone, never a delete.

    Raises:
        RegistryUnavailable: nothing was decoded; the same call again is right once the registry answers.
    """
    payloads = Payloads(messages, registry, decoders, wire)
    preceding = replace(preceding, enveloped=preceding.enveloped or envelope)
    events = ChangeEvents(messages, schema, payloads, preceding, reading_of=typed_reading)
    structs, empty, bad = payloads.structs("value")
    events.bad += bad
    for struct, rows in structs:
        _add(events, struct, rows)
    empty = np.setdiff1d(empty, _add_rows_in_headers(events, empty))
    ours = np.zeros(len(messages), np.bool_) if events.headers is None else events.headers.ours
    # What has neither value nor key says nothing of any row; a truncation of ours has no key either.
    events.add_nulls(empty[[bool(ours[row]) or messages.keys[row] is not None for row in empty.tolist()]])
    return events.decoded()


@dataclass(frozen=True, slots=True)
class Payloads:
    """The payloads of some messages, and the messages' keys, by the schemas that they name."""

    messages: WireMessages
    registry: SchemaRegistry
    decoders: Mapping[str, Decoder]
    wire: Wire

    def structs(self, role: Role, rows: Ints | None = None) -> tuple[list[tuple[pa.StructArray, Ints]], Ints, Bad]:
        """Decode the payloads of each schema; also return the messages without one, and the bad ones.

        Args:
            rows: of which messages; None: of all.
        """
        messages = self.messages if rows is None else self.messages.take(rows)
        at = np.arange(len(messages)) if rows is None else rows
        frames = frame(
            messages.values if role == "value" else messages.keys, messages.headers, wire=self.wire, role=role
        )
        groups, unknown = known(frames, self.registry)
        bad = [(int(at[row]), reason) for row, reason in unknown]
        found: list[tuple[pa.StructArray, Ints]] = []
        for group, registered in groups:
            decoder = self.decoders.get(registered.kind)
            where = at[group.rows]
            if decoder is None:
                read_as = ", ".join(self.decoders)
                reason = f"{group.schema_id} is a {registered.kind} schema; this topic is read as {read_as}"
                bad += [(row, reason) for row in where.tolist()]
                continue
            structs, reasons = decoder(group, registered)
            bad += [(int(where[place]), reason) for place, reason in reasons.items()]
            found += [(struct, where[places]) for struct, places in structs]
        return found, at[frames.empty], bad

    def names_of(self, rows: Ints, schema: pa.Schema) -> tuple[str, ...]:
        """Return the key's columns, as the first message with a key has them; none where it does not name any."""
        keys = self.messages.keys
        first = next((i for i, key in enumerate(keys) if key is not None), None)
        if first is None:
            return ()
        structs, _, _ = self.structs("key", np.array([first]))
        # A key may be JSON beside a value with a schema in the registry.
        names = [field.name for struct, _ in structs for field in struct.type] or names_in(keys[first] or b"")
        return tuple(name for name in names if name in schema.names)

    def columns_of(self, rows: Ints, schema: pa.Schema | None) -> tuple[Columns, Ints, Bad]:
        """Return the columns of these messages' keys."""
        structs, without, bad = self.structs("key", rows)
        bad = [(row, f"the tombstone's key: {reason}") for row, reason in bad]
        columns: dict[str, list[pa.Array]] = {}
        names = list(dict.fromkeys(field.name for struct, _ in structs for field in struct.type))
        for name in names:
            types = {struct.type.field(name).type for struct, _ in structs if struct.type.get_field_index(name) >= 0}
            kind = types.pop() if len(types) == 1 else pa.large_string()
            columns[name] = [
                struct.field(name).cast(kind) if struct.type.get_field_index(name) >= 0 else pa.nulls(len(struct), kind)
                for struct, _ in structs
            ]
            columns[name].append(pa.nulls(len(without), kind))
        where = np.concatenate([*(at for _, at in structs), without])
        order = np.argsort(where, kind="stable")
        at = pa.array(order)
        return {name: pa.concat_arrays(arrays).take(at) for name, arrays in columns.items()}, where[order], bad


def _add(events: ChangeEvents, struct: pa.StructArray, rows: Ints) -> None:
    """Add the events of decoded payloads."""
    names = [field.name for field in struct.type]
    if any(markers <= set(names) for markers in _NO_ROWS) or not len(rows):
        return
    if debezium.is_envelope(names):
        events.saw_envelopes(rows)
        pieces = debezium.envelopes(pa.RecordBatch.from_arrays(struct.flatten(), names=names), rows)
    else:
        own = frozenset(events.schema.names) if events.schema is not None else frozenset[str]()
        pieces = [debezium.flattened(dict(zip(names, struct.flatten(), strict=True)), rows, own)]
    hidden = False
    if any(_may_hide(array.type) for piece in pieces for array in piece.columns.values()):
        placeholder = events.placeholder.encode()
        hidden = any(placeholder in (events.messages.values[i] or b"") for i in rows.tolist())
    readings = None if events.schema is None else [typed_reading(field) for field in events.schema]
    for piece in pieces:
        events.add(piece, readings, hidden=hidden)


def _may_hide(kind: pa.DataType) -> bool:
    """Tell whether values of a type may be Debezium's placeholder: not numbers, booleans, times."""
    return not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _add_rows_in_headers(events: ChangeEvents, empty: Ints) -> Ints:
    """Add the deletes that Headrace wrote: the row is in a header; return their messages."""
    headers = events.headers
    cells = None if headers is None else headers.row
    at = empty[:0] if cells is None else empty[[cells[row] is not None for row in empty.tolist()]]
    if cells is None or not at.size:
        return empty[:0]
    schema = events.schema
    if schema is None and events.found:
        schema = events.found[-1].records.schema
    readings = [reading(field) for field in schema or ()]
    structs, reasons = columns_of([cells[row] or b"{}" for row in at.tolist()], readings, whole=bool(readings))
    events.bad += [(int(at[place]), f"the header __row: {reason}") for place, reason in reasons.items()]
    final = None if schema is None else [typed_reading(field) for field in schema]
    for struct, places in structs:
        columns = dict(zip([field.name for field in struct.type], struct.flatten(), strict=True))
        events.add(debezium.blank(columns, at[places], "d"), final)
    return at
