"""Decoded columns to events: Debezium's envelope, what headers say, messages without a value, a table's own columns.

======================================  =====================================================================
message                                 event
======================================  =====================================================================
an envelope                             its op; the row of ``after``, of ``before`` where it is a delete
a row alone                             an insert, or the op that the headers say
null, headers with the row (`headers`)  that delete or truncation
null behind an envelope                 none: the tombstone of a delete
null, a key                             a delete of the row that the key names
======================================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.formats import assemble, coerce, debezium
from headrace.formats.assemble import Rows
from headrace.formats.base import Decoded
from headrace.formats.debezium import Events
from headrace.formats.headers import EventHeaders, read_event_headers, topic_source, unchanged_lists
from headrace.formats.json_keys import names_in
from headrace.formats.registry import RegisteredSchema, SchemaRegistry
from headrace.formats.registry_columns import Columns, conformed, json_columns
from headrace.formats.registry_framing import Framed, Role, Wire, frame, known
from headrace.wire import WireMessages

Decoder = Callable[[Framed, RegisteredSchema], Columns]
# Debezium's transaction markers and logical messages: understood, and no rows of a table.
_NO_ROWS = (frozenset({"status", "id", "event_count", "data_collections"}), frozenset({"op", "source", "message"}))


@dataclass(frozen=True, slots=True)
class _Task:
    """One call of `decode`: what its parts need to know, and the messages found bad so far."""

    messages: WireMessages
    schema: pa.Schema | None
    registry: SchemaRegistry
    decoders: Mapping[str, Decoder]
    wire: Wire
    told: EventHeaders | None
    bad: list[tuple[int, str]] = field(default_factory=list)


def decode(
    messages: WireMessages,
    schema: pa.Schema | None,
    registry: SchemaRegistry,
    decoders: Mapping[str, Decoder],
    *,
    wire: Wire = "confluent",
    envelope: bool = False,
) -> Decoded:
    """Rows of messages whose schemas are in a registry.

    Args:
        decoders: for each kind of schema (``AVRO``, ``JSON``, ``PROTOBUF``); a message of another kind is bad.
        envelope: the topic has envelopes: a null that nobody explains is a tombstone, never a delete.

    Raises:
        RegistryUnavailable: nothing was decoded; the same call again is right once the registry answers.
    """
    task = _Task(messages, schema, registry, decoders, wire, read_event_headers(messages))
    found, empty = _columns(task, "value", messages)
    rows = [part for struct, at in found for part in _events(task, struct, at)]
    if len(empty):
        enveloped = envelope or any(_is_envelope(struct.type) for struct, _ in found)
        rows += _without_value(task, empty, rows, tombstones=enveloped)
    names = _key_names(task) if rows else ()
    for one in rows:
        one.key = tuple(name for name in names if name in one.records.schema.names)
    return Decoded(assemble.parts(rows, messages.ts_ms * 1000), sorted(task.bad))


def _key_names(task: _Task) -> tuple[str, ...]:
    """The key's columns, as the first message with a key has them; none where it does not name any."""
    keys = task.messages.keys
    first = next((i for i, key in enumerate(keys) if key is not None), None)
    if first is None:
        return ()
    asked = replace(task, messages=task.messages.take([first]), bad=[])
    found, _ = _columns(asked, "key", asked.messages)
    # A key may be JSON beside a value with a schema in the registry.
    return tuple(one.name for struct, _ in found for one in struct.type) or names_in(keys[first] or b"")


def _columns(task: _Task, role: Role, messages: WireMessages) -> tuple[list[tuple[pa.StructArray, Ints]], Ints]:
    """The decoded payloads of each schema, and the messages without one."""
    values = messages.values if role == "value" else messages.keys
    frames = frame(values, messages.headers, wire=task.wire, role=role)
    groups, unknown = known(frames, task.registry)
    task.bad.extend(unknown)
    found: list[tuple[pa.StructArray, Ints]] = []
    for group, registered in groups:
        decoder = task.decoders.get(registered.kind)
        if decoder is None:
            reason = (
                f"{group.schema_id} is a {registered.kind} schema; this topic is read as {', '.join(task.decoders)}"
            )
            task.bad.extend((row, reason) for row in group.rows.tolist())
            continue
        structs, reasons = decoder(group, registered)
        task.bad.extend((int(group.rows[place]), reason) for place, reason in reasons.items())
        found += [(struct, group.rows[places]) for struct, places in structs]
    return found, frames.empty


def _is_envelope(kind: pa.StructType) -> bool:
    return debezium.is_envelope([one.name for one in kind])


def _events(task: _Task, struct: pa.StructArray, at: Ints, *, op: str | None = None) -> list[Rows]:
    """Events of decoded values; ``op`` is what they are where only their keys or headers were decoded."""
    names = [one.name for one in struct.type]
    if any(markers <= set(names) for markers in _NO_ROWS) or not len(at):
        return []
    if op is not None:
        pieces = [debezium.blank(dict(zip(names, struct.flatten(), strict=True)), at, op)]
    elif _is_envelope(struct.type):
        records = pa.RecordBatch.from_arrays(struct.flatten(), names=names)
        pieces = debezium.envelopes(records, at)
    else:
        own = frozenset(task.schema.names) if task.schema is not None else frozenset[str]()
        pieces = [debezium.flattened(dict(zip(names, struct.flatten(), strict=True)), at, own)]
    if op is None and any(_may_hide(array.type) for piece in pieces for array in piece.columns.values()):
        placeholder = debezium.PLACEHOLDER.encode()
        if any(placeholder in (task.messages.values[i] or b"") for i in at.tolist()):
            pieces = [debezium.mark_unchanged(piece, debezium.PLACEHOLDER) for piece in pieces]
    for piece in pieces:
        task.bad.extend(piece.bad)
    return [_rows(task, piece) for piece in pieces if len(piece.rows)]


def _may_hide(kind: pa.DataType) -> bool:
    """Whether values of a type may be Debezium's placeholder: not numbers, booleans, times."""
    return not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _rows(task: _Task, events: Events) -> Rows:
    """Events with what their headers say, in the columns that were asked for."""
    events = _with_headers(task, events)
    events.source = events.source or topic_source(task.messages.topic)
    n = len(events.rows)
    records = _records(events.columns, n)
    before = None if events.before is None else _records(events.before, n)
    reasons: dict[int, str] = {}
    if task.schema is not None:
        records, reasons = conformed(records, task.schema)
        task.bad.extend((int(events.rows[place]), reason) for place, reason in reasons.items())
        before = None if before is None else conformed(before, task.schema)[0]
    rows = Rows(records, events, None if before is None else _structs(before, events))
    return assemble.take(rows, np.setdiff1d(np.arange(n), list(reasons))) if reasons else rows


def _records(columns: Mapping[str, pa.Array], n: int) -> pa.RecordBatch:
    if columns:
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return pa.RecordBatch.from_struct_array(pa.array([{}] * n, pa.struct([])))


def _structs(before: pa.RecordBatch, events: Events) -> pa.StructArray:
    absent = None if events.has_before is None else pa.array(~events.has_before)
    return pa.StructArray.from_arrays(before.columns, fields=list(before.schema), mask=absent)


def _with_headers(task: _Task, events: Events) -> Events:
    """What the headers say of the rows, in place of what their values do."""
    if task.told is None:
        return events
    told = task.told.take(events.rows)
    found = replace(
        events,
        op=np.where(told.op != 0, told.op, events.op).astype(np.uint8),
        lsn=np.where(told.ours, told.lsn, events.lsn).astype(np.uint64),
        order=np.where(told.ours, told.index, events.order),
        ts_us=np.where(told.ts_us >= 0, told.ts_us, events.ts_us),
        source=told.source or events.source,
    )
    if told.unchanged is not None and any(one is not None for one in told.unchanged):
        found.unchanged = unchanged_lists(told.unchanged).to_pylist()
    if events.before is None and told.before is not None and any(one is not None for one in told.before):
        types = task.schema if task.schema is not None else _records(events.columns, len(events.rows)).schema
        readings = [coerce.reading(one) for one in types]
        old, _ = json_columns([one or b"{}" for one in told.before], readings, whole=True)
        if len(old) == 1 and len(old[0][1]) == len(events.rows):
            names = [one.name for one in old[0][0].type]
            found.before = dict(zip(names, old[0][0].flatten(), strict=True))
            found.has_before = np.array([one is not None for one in told.before])
    return found


def _without_value(task: _Task, empty: Ints, decoded: list[Rows], *, tombstones: bool) -> list[Rows]:
    """Events of messages whose value is null."""
    told = task.told
    if told is not None and told.tombstone is not None:
        empty = empty[~told.tombstone[empty]]
    ours = np.zeros(len(empty), np.bool_) if told is None else told.ours[empty]
    parts: list[Rows] = []
    if told is not None and ours.any():
        fields = list(task.schema) if task.schema is not None else _fields(decoded)
        parts += _from_headers(task, told, empty[ours], fields)
    keyed = empty[~ours]
    if not tombstones and len(keyed):
        keyed = keyed[[task.messages.keys[i] is not None for i in keyed.tolist()]]
        parts += [_like(rows, decoded) for rows in _from_keys(task, keyed)]
    return parts


def _like(rows: Rows, decoded: list[Rows]) -> Rows:
    """Rows of which there is only a key, with the columns of the rows that came with them, null."""
    fields = {one.name: one for one in _fields(decoded)}
    if not set(rows.records.schema.names) <= set(fields):
        return rows
    records, wrong = conformed(rows.records, pa.schema(list(fields.values())))
    return rows if wrong else replace(rows, records=records)


def _fields(decoded: list[Rows]) -> list[pa.Field]:
    """The columns of rows that came with the same messages."""
    return list(decoded[-1].records.schema) if decoded else []


def _from_headers(task: _Task, told: EventHeaders, at: Ints, fields: list[pa.Field]) -> list[Rows]:
    """Deletes and truncations that Headrace wrote: the row is in a header, or there is none."""
    cells = [None if told.row is None else told.row[i] for i in at.tolist()]
    readings = [coerce.reading(one) for one in fields]
    structs, reasons = json_columns([cell or b"{}" for cell in cells], readings, whole=bool(fields))
    task.bad.extend((int(at[place]), f"the header __row: {reason}") for place, reason in reasons.items())
    return [part for struct, places in structs for part in _events(task, struct, at[places], op="d")]


def _from_keys(task: _Task, at: Ints) -> list[Rows]:
    """Deletes of the rows that keys name."""
    if not len(at):
        return []
    asked = replace(task, messages=task.messages.take(at), bad=[])
    found, _ = _columns(asked, "key", asked.messages)
    task.bad.extend((int(at[place]), f"the tombstone's key: {reason}") for place, reason in asked.bad)
    return [part for struct, places in found for part in _events(task, struct, at[places], op="d")]
