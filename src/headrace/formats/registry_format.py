"""Formats whose schemas are in a registry, Avro, JSON Schema and Protobuf: what they have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch
from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.formats import debezium, decimals, timestamps
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.change_events import ChangeEvents
from headrace.formats.coerce import Reading, columns_of, reading, renamed, to_field, to_type, with_entries, with_fields
from headrace.formats.debezium import Columns
from headrace.formats.headers import topic_source
from headrace.formats.json_keys import KEY_FORMATS, in_one, names_in, write_keys
from headrace.formats.json_parse import Bad, without_columns
from headrace.formats.key_changes import row_messages
from headrace.formats.registry import RegisteredSchema, SchemaId, SchemaRegistry
from headrace.formats.registry_framing import WIRES, Framed, Role, Wire, frame, id_headers, known, prefix
from headrace.plain_values import is_bytes, is_list, is_text, with_items
from headrace.wire import Encoded, WireMessages

# A group's payloads as structs of their columns, with the places in the group that each row came from; and the places
# that cannot be decoded, with the reason.
Structs = tuple[list[tuple[pa.StructArray, Ints]], dict[int, str]]
Decoder = Callable[[Framed, RegisteredSchema], Structs]
# Debezium's transaction markers and logical messages: understood, and no rows of a table.
_NO_ROWS = (frozenset({"status", "id", "event_count", "data_collections"}), frozenset({"op", "source", "message"}))
Subject = Literal["topic", "record", "topic-record"]
SUBJECTS: tuple[Subject, ...] = ("topic", "record", "topic-record")
Prepared = TypeVar("Prepared")
Parsed = TypeVar("Parsed")
Record = Literal["Key", "Value", "Envelope"]
Extra = list[tuple[str, bytes]]
# Rows of one kind of record as payloads, and the headers that go with each of them.
Write = Callable[[Role, Record, pa.StructArray, Sequence[str]], tuple[list[bytes], Extra]]
# Debezium's source block, without the parts that only its connector has.
SOURCE = pa.struct([field for field in debezium.SOURCE_BLOCK if not field.name.startswith("origin")])


@dataclass(frozen=True, slots=True)
class Foretold:
    """The columns of rows that are still to come, as a schema in the registry says them.

    Attributes:
        schema: the columns.
        others: rows may have others too: a JSON Schema says little of what it does not name.
    """

    schema: pa.Schema
    others: bool


class SchemaDecoder(Generic[Parsed]):
    """Decode payloads by their schemas; each schema is parsed once."""

    def __init__(self) -> None:
        self._parsed: dict[RegisteredSchema, Parsed | str] = {}

    def __call__(self, group: Framed, schema: RegisteredSchema) -> Structs:
        parsed = self._parsed.get(schema)
        if parsed is None:
            try:
                parsed = self.parse(schema)
            except FormatError as error:
                parsed = error.message
            self._parsed[schema] = parsed
        if isinstance(parsed, str):
            return [], dict.fromkeys(range(len(group.rows)), f"{group.schema_id}: {parsed}")
        return self.structs(group, parsed)

    def parse(self, schema: RegisteredSchema) -> Parsed:
        """Return what `structs` reads by; raise FormatError where the schema is none of a row."""
        raise NotImplementedError

    def structs(self, group: Framed, parsed: Parsed) -> Structs:
        """Return the payloads' columns."""
        raise NotImplementedError


class RegistryReader:
    """A format whose schemas are in a registry, to read. Safe to use from any thread.

    Args:
        name: the format's.
        registry: a client, or the registry's URL.
        decoders: for each kind of schema; a message of another kind is bad.
        envelope: the topic has envelopes: a null that nobody explains is a tombstone, never a delete.
        wire: see `headrace.formats.registry_framing`.
    """

    advice = "Write it as avro or jsonschema."

    def __init__(
        self,
        name: str,
        registry: SchemaRegistry | str,
        decoders: Mapping[str, Decoder],
        *,
        envelope: bool = False,
        wire: Wire = "confluent",
    ) -> None:
        if wire not in WIRES:
            raise DeclarationError(f"wire={wire!r} is none of {', '.join(WIRES)}")
        self._name = f"{name}+envelope" if envelope else name
        self._registry = SchemaRegistry(registry) if isinstance(registry, str) else registry
        self._decoders = decoders
        self._envelope = envelope
        self._wire = wire

    @property
    def name(self) -> str:
        return self._name

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Return the events of the messages; see `Format.decode`.

        Raises:
            RegistryUnavailable: a schema is not in memory and the registry does not answer: nothing was decoded, and
                the same call again is right once it does.
            MissingExtra: the schemas are Protobuf's and the extra «protobuf» is not installed.
        """
        payloads = Payloads(messages, self._registry, self._decoders, self._wire)
        preceding = replace(preceding, enveloped=preceding.enveloped or self._envelope)
        events = ChangeEvents(messages, schema, payloads, preceding, reading_of=typed_reading)
        structs, empty, bad = payloads.structs("value")
        events.bad += bad
        for struct, rows in structs:
            _add(events, struct, rows)
        empty = np.setdiff1d(empty, _add_rows_in_headers(events, empty))
        events.add_nulls(empty)
        return events.decoded()

    def foretell(self, topic: str, newest: WireMessages) -> Foretold | None:
        """Return the columns of a topic's rows to come; None where no schema says them.

        Args:
            newest: messages of the topic, in their order, of which the last with a schema counts; where none has one,
                the newest schema of the subject ``<topic>-value`` does.

        Raises:
            FormatError: the registry refuses.
            RegistryUnavailable: it does not answer.
            MissingExtra: as for `decode`.
        """
        groups, _ = known(frame(newest.values, newest.headers, wire=self._wire), self._registry)
        group, registered = max(groups, key=lambda found: int(found[0].rows[-1]), default=(None, None))
        registered = registered or self._registry.newest(f"{topic}-value")
        if registered is None or registered.kind not in self._decoders:
            return None
        # Of a file of Protobuf, payloads say which of its messages they are; else a schema says what holds for all.
        by_payload = group is not None and registered.kind == "PROTOBUF"
        asked = group if group is not None and by_payload else _emptiest(registered.kind)
        structs, _ = self._decoders[registered.kind](asked, registered)
        row = _row_type(structs[-1][0].type) if structs else None
        return None if row is None else Foretold(pa.schema(row), registered.kind != "AVRO" and not by_payload)

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Refuse: this format only reads.

        Raises:
            DeclarationError: always.
        """
        raise DeclarationError(f"topic «{topic}»: «{self.name}» only reads", advice=self.advice)


class RegistryFormat(RegistryReader, Generic[Prepared]):
    """A format whose schemas are in a registry, to read and write; a subclass declares schemas and writes payloads.

    Args:
        registry, envelope, wire: see `RegistryReader`; ``envelope``: also write envelopes. Reading takes either.
        subject: under which name schemas are registered: ``topic`` (``<topic>-value``), ``record`` (the record's
            full name) or ``topic-record`` (``<topic>-<full name>``).
        key: the format's own name (or None): the key columns as a record; or one of `json_keys.KEY_FORMATS`.
        register: register schemas; False only takes those that the subject already has.

    Attributes:
        own_name: the format's, without an envelope.
        kind: of the schemas: ``AVRO``, ``JSON``.
        decoder: reads payloads.
    """

    own_name: ClassVar[str]
    kind: ClassVar[str]
    decoder: ClassVar[type[SchemaDecoder[Any]]]

    def __init__(
        self,
        registry: SchemaRegistry | str,
        *,
        envelope: bool = False,
        subject: Subject = "topic",
        key: str | None = None,
        wire: Wire = "confluent",
        register: bool = True,
    ) -> None:
        name = self.own_name
        for what, given, allowed in (("subject", subject, SUBJECTS), ("key", key or name, (name, *KEY_FORMATS))):
            if given not in allowed:
                raise DeclarationError(f"{what}={given!r} is none of {', '.join(allowed)}")
        super().__init__(name, registry, {self.kind: self.decoder()}, envelope=envelope, wire=wire)
        self._subject = subject
        self._key = None if key == name else key
        self._register = register
        self._lock = threading.Lock()
        self._declared: dict[tuple[object, ...], tuple[Prepared, int]] = {}

    def declare(
        self, topic: str, name: Record, kind: pa.StructType, required: Sequence[str]
    ) -> tuple[str, str, Prepared]:
        """Return the schema's text, the record's full name, and what `payloads` needs to write by it."""
        raise NotImplementedError

    def payloads(self, prepared: Prepared, rows: pa.StructArray, prefix: bytes) -> list[bytes]:
        """Return a payload for each row, behind ``prefix``."""
        raise NotImplementedError

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Return messages for the rows; see `messages` for deletes.

        Raises:
            FormatError: a column that the format cannot hold, or a schema that the registry refuses.
            RegistryUnavailable: a schema is new and the registry does not answer; nothing was written.
        """

        def write(role: Role, name: Record, rows: pa.StructArray, required: Sequence[str]) -> tuple[list[bytes], Extra]:
            try:
                prepared, number = self._declaration(topic, role, name, rows.type, tuple(required))
                found = self.payloads(prepared, rows, prefix(number, self._wire))
            except RegistryUnavailable:
                raise
            except FormatError as error:
                raise FormatError(f"topic «{topic}»: {error.message}", advice=error.advice) from error
            return found, id_headers(number, wire=self._wire, role=role)

        return messages(topic, batch, write, envelope=self._envelope, key=self._key)

    def _declaration(
        self, topic: str, role: Role, name: Record, kind: pa.StructType, required: tuple[str, ...]
    ) -> tuple[Prepared, int]:
        """Return what writes by the schema, and its id; declared and registered once for each Arrow schema."""
        # Equal Arrow types may differ in their metadata, which says what a text is.
        key = (topic, name, pa.schema(list(kind)).serialize().to_pybytes(), required)
        with self._lock:
            declared = self._declared.get(key)
        if declared is not None:
            return declared
        text, full, prepared = self.declare(topic, name, kind, required)
        subject = {"topic": f"{topic}-{role}", "record": full, "topic-record": f"{topic}-{full}"}[self._subject]
        find = self._registry.register if self._register else self._registry.lookup
        number = find(subject, text, self.kind)
        with self._lock:
            return self._declared.setdefault(key, (prepared, number))


# -- reading --


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
        pieces = [pa.RecordBatch.from_struct_array(struct) for struct, _ in structs]
        columns = in_one([*pieces, without_columns(len(without))])
        where = np.concatenate([*(at for _, at in structs), without])
        order = np.argsort(where, kind="stable")
        return {name: array.take(pa.array(order)) for name, array in columns.items()}, where[order], bad


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


def _emptiest(kind: str) -> Framed:
    """Return a payload with nothing in it, where there is one: decoded, it has the columns of its schema."""
    payload = {"JSON": b"{}", "PROTOBUF": b"\0"}.get(kind, b"")
    at = np.zeros(1 if payload else 0, np.int64)
    return Framed(SchemaId("id", 0), payload, at, at, at + len(payload))


def _row_type(struct: pa.StructType) -> list[pa.Field] | None:
    """Return the columns of the rows that payloads of a type become; None where they are no rows, or do not say."""
    names = [field.name for field in struct]
    if any(markers <= set(names) for markers in _NO_ROWS):
        return None
    if not debezium.is_envelope(names):
        return [field for field in struct if not debezium.is_used(field.name)]
    rows = [field.type for field in struct if field.name in ("after", "before") and pa.types.is_struct(field.type)]
    return list(rows[-1]) if rows else None


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


# -- typed columns, as payloads have them, to the types that a table declares --


def good_rows(struct: pa.StructArray, reasons: dict[int, str]) -> Structs:
    """Return the columns without the rows that have a reason not to be there."""
    if not reasons:
        return [(struct, np.arange(len(struct)))], reasons
    good = np.ones(len(struct), np.bool_)
    good[list(reasons)] = False
    return [(struct.filter(pa.array(good)), np.flatnonzero(good))], reasons


def typed_reading(field: pa.Field) -> Reading:
    """Read a column of a known field from one that has a type of its own.

    >>> typed_reading(pa.field("a", pa.int64())).convert(pa.array(["1"])).to_pylist()
    [1]
    """
    return Reading(field, None, lambda array: _in_field(array, field))


def _in_field(array: pa.Array, field: pa.Field) -> pa.Array:
    """Return the column in the field's type; what becomes text gets the form that the JSON formats give it."""
    if not is_text(field.type) or is_text(array.type) or pa.types.is_null(array.type):
        return _typed(array, field.type)
    return to_field(array, field, as_array_text=is_list(array.type))


def _typed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast where both sides are values of the same sort; read texts as JSON's are read."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if pa.types.is_time(kind) and is_text(array.type):
        day = pc.binary_join_element_wise("1970-01-01T", array.cast(pa.string()), "")
        return timestamps.from_iso(day, "us").cast(pa.time64("us")).cast(kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        return with_fields(array, kind, lambda child, field: _typed(child, field.type))
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        return renamed(with_items(array, _typed(array.flatten(), kind.value_type)), kind)
    if pa.types.is_map(kind) and pa.types.is_map(array.type):
        return with_entries(
            array, kind, lambda keys: _typed(keys, kind.key_type), lambda items: _typed(items, kind.item_type)
        )
    if pa.types.is_decimal(array.type) and is_text(kind):
        return decimals.to_text(array).cast(kind)
    if is_text(array.type) and not is_bytes(kind):
        return to_type(array, kind)
    return array.cast(kind)


# -- writing --


def messages(topic: str, batch: Batch, write: Write, *, envelope: bool, key: str | None) -> Encoded:
    """Make the messages of a batch; see `row_messages`.

    Args:
        write: makes payloads; its last argument names the columns that are never null.
        envelope: with Debezium's envelope or the row alone.
        key: None for keys whose schema is in the registry too; else as `json_keys.write_keys` takes it.
    """
    valued = np.ones(batch.num_rows, np.bool_) if envelope else (batch.op != OPS["d"]) & (batch.op != OPS["t"])

    def payloads(at: pa.Array) -> tuple[list[bytes], Extra]:
        if envelope:
            return write("value", "Envelope", envelopes(topic, batch), ())
        return write("value", "Value", struct_of(batch.rows.take(at)), ())

    values, extra = _of_some(valued, payloads)
    return row_messages(
        topic, batch, values, lambda rows: _keys(topic, rows, write, key), extra=extra, envelope=envelope
    )


def _of_some(chosen: Mask, write: Callable[[pa.Array], tuple[list[bytes], Extra]]) -> tuple[list[bytes | None], Extra]:
    """Return the payloads of the rows that have one, None for the others."""
    at = np.flatnonzero(chosen)
    payloads, extra = write(pa.array(at)) if len(at) else ([], [])
    found = dict(zip(at.tolist(), payloads, strict=True))
    return [found.get(row) for row in range(chosen.size)], extra


def _keys(topic: str, batch: Batch, write: Write, key: str | None) -> tuple[list[bytes | None], Extra]:
    """Return the keys of the rows; a truncation has none."""
    if key is not None:
        return write_keys(topic, batch, key), []
    names = [name for name in batch.key_columns if name in batch.column_names]
    if not names:
        return [None] * batch.num_rows, []

    def payloads(at: pa.Array) -> tuple[list[bytes], Extra]:
        columns = batch.rows.select(names).take(at)
        # A primary key has no nulls; the unique index that stands in for one may.
        required = [name for name in names if not columns.column(name).null_count]
        return write("key", "Key", struct_of(columns), required)

    return _of_some(batch.op != OPS["t"], payloads)


def struct_of(rows: pa.RecordBatch) -> pa.StructArray:
    """Return columns as one column of structs."""
    if not rows.num_columns:
        return pa.array([{}] * rows.num_rows, pa.struct([]))
    return pa.StructArray.from_arrays(rows.columns, fields=list(rows.schema))


def envelopes(topic: str, batch: Batch) -> pa.StructArray:
    """Make Debezium's envelopes of the events.

    >>> envelopes("s.public.t", Batch.of({"id": [7]}, op="d")).field("before").to_pylist()
    [{'id': 7}]
    """
    rows, n = struct_of(batch.rows), batch.num_rows
    is_delete, is_truncate = (pa.array(batch.op == OPS[name]) for name in "dt")
    absent = pa.nulls(n, rows.type)
    before = absent if batch.before is None else batch.before.cast(rows.type)
    ops = pa.array([chr(code) for code in range(128)]).take(pa.array(batch.op))
    times = _times(batch)
    columns = {
        "before": pc.if_else(is_delete, rows, before),
        "after": pc.if_else(pc.or_(is_delete, is_truncate), absent, rows),
        "source": _source(topic, batch, times),
        "op": ops,
        **times,
    }
    required = {"source", "op"}
    fields = [pa.field(name, column.type, nullable=name not in required) for name, column in columns.items()]
    return pa.StructArray.from_arrays(list(columns.values()), fields=fields)


def _times(batch: Batch) -> dict[str, pa.Array]:
    micros = batch.ts_us
    return {"ts_ms": pa.array(micros // 1000), "ts_us": pa.array(micros), "ts_ns": pa.array(micros * 1000)}


def _source(topic: str, batch: Batch, times: dict[str, pa.Array]) -> pa.StructArray:
    n = batch.num_rows
    *_, schema, table = ("", *topic.split("."))
    constant = {
        "version": "headrace",
        "connector": "postgresql",
        "name": batch.source or topic_source(topic),
        "db": "",
        "schema": schema,
        "table": table,
    }
    columns = {
        **{name: pa.repeat(pa.scalar(value), n) for name, value in constant.items()},
        **times,
        "lsn": pa.array(batch.lsn.astype(np.int64)),
        "snapshot": pc.if_else(pa.array(batch.op == OPS["r"]), "true", "false"),
    }
    arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in SOURCE]
    return pa.StructArray.from_arrays(arrays, fields=list(SOURCE))
