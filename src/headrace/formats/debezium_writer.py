"""Captured rows as the events that Debezium's PostgreSQL connector emits for them, as lines of JSON.

https://debezium.io/documentation/reference/3.6/connectors/postgresql.html#postgresql-events and
https://debezium.io/documentation/reference/3.6/transformations/event-flattening.html. A batch is written a column at a
time; how a column is written is in `headrace.formats.debezium_types`.

A line is ``{"topic":…,"key":…,"value":…}``, with ``"headers":[[name, text]…]`` where there are any; the value of a
tombstone is null. Where each change lies in the WAL, and its transaction's number, is in ``__headrace_change``; a log
that was captured before there was such a column has the commit's LSN in their place, and no ``txId``. Where a
transaction was replicated from is in ``__headrace_origin``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import CHANGE, ORIGIN, Batch
from headrace.formats.debezium_types import (
    Column,
    Schema,
    TypeOptions,
    avro_name,
    binary_kind,
    columns,
    field_schema,
    java_string,
    quoted,
)
from headrace.formats.json_text import TEXT, Part, Shared, in_quotes, joined
from headrace.formats.transforms.chain import Chain, Refusal, flattening_alone, printed
from headrace.formats.transforms.records import Column as Values
from headrace.formats.transforms.records import Leaf, Records, Struct, parsed, struct_text

FACTS = b"postgres.facts"
_NOT_IN_TOPICS = re.compile(r"[^A-Za-z0-9._-]")
VERSION = "3.6.3.Final"
_SNAPSHOT = {
    "type": "string",
    "name": "io.debezium.data.Enum",
    "version": 1,
    "parameters": {"allowed": "true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},
}
# Fields of the source block: type, and whether one may be null.
_SOURCE: dict[str, tuple[str, bool]] = {
    "version": ("string", False),
    "connector": ("string", False),
    "name": ("string", False),
    "ts_ms": ("int64", False),
    "snapshot": ("string", True),
    "db": ("string", False),
    "sequence": ("string", True),
    "ts_us": ("int64", True),
    "ts_ns": ("int64", True),
    "schema": ("string", False),
    "table": ("string", False),
    "txId": ("int64", True),
    "lsn": ("int64", True),
    "xmin": ("int64", True),
    "origin": ("string", True),
    "origin_lsn": ("int64", True),
}
_ENVELOPE = {"op": ("string", False), "ts_ms": ("int64", True), "ts_us": ("int64", True), "ts_ns": ("int64", True)}
_BLOCK = {"id": ("string", False), "total_order": ("int64", False), "data_collection_order": ("int64", False)}


@dataclass(frozen=True, slots=True)
class Flattening:
    """ExtractNewRecordState: what is left of an event, and what is added to it.

    Attributes:
        deletes: ``delete.tombstone.handling.mode``.
        fields, headers: (place, name) of what is added; a place is ``op``, ``source.lsn`` and so on.
        null_as_default: ``replace.null.with.default``.
    """

    deletes: str
    fields: tuple[tuple[str, str], ...]
    headers: tuple[tuple[str, str], ...]
    null_as_default: bool = True

    @classmethod
    def of(cls, properties: Mapping[str, str], name: str) -> Flattening:
        """Return what the transform of a name says."""
        own = {key.removeprefix(f"transforms.{name}."): value for key, value in properties.items()}
        return cls(
            own.get("delete.tombstone.handling.mode", "tombstone"),
            tuple(_added(own.get("add.fields", ""), own.get("add.fields.prefix", "__"))),
            tuple(_added(own.get("add.headers", ""), own.get("add.headers.prefix", "__"))),
            own.get("replace.null.with.default", "true").lower() == "true",
        )

    @property
    def copies(self) -> bool:
        """Return whether rows are copied, by which a NULL becomes the default."""
        return self.marks or bool(self.fields)

    @property
    def marks(self) -> bool:
        """Return whether rows say whether they were deleted."""
        return self.deletes.startswith("rewrite")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _added(text: str, prefix: str) -> list[tuple[str, str]]:
    """Return (place, name) of fields to add: ``op``, ``source.lsn``, ``lsn:MY_LSN``.

    >>> _added("op,lsn,source.ts_ms:at", "__")
    [('op', '__op'), ('source.lsn', '__lsn'), ('source.ts_ms', '__at')]
    """
    found = []
    for item in _names(text):
        place, _, renamed = item.partition(":")
        struct, _, last = place.rpartition(".")
        name = renamed or (f"{struct}_{last}" if struct else last)
        if not struct and last not in ("op", "ts_ms", "ts_us", "ts_ns", "before", "after"):
            place = f"source.{last}"
        found.append((place, f"{prefix}{name}"))
    return found


@dataclass(frozen=True, slots=True)
class EventOptions:
    """A connector's properties that change its events.

    Attributes:
        tombstones: ``tombstones.on.delete``.
        skipped: letters of ``skipped.operations``; ``unsent``: it is the server that leaves them out, as it does where
            the property is there.
        keys: patterns of ``schema.table.column``, of ``message.key.columns``.
        schemas: schemas stand beside keys and values.
        transactions: ``provide.transaction.metadata``.
        changes_only: ``skip.messages.without.change``.
        schema_names: ``schema.name.adjustment.mode``.
        delimiter: ``topic.delimiter``; ``transaction_topic``: ``topic.transaction``.
        flattening: where it is all that the ``transforms`` chain does; None for envelopes.
        chain: any other ``transforms`` chain. Nulls of rows are then null until it is through with them.
        null_as_default: they are written as the column's default.
        tolerant: ``errors.tolerance=all``: records that the chain cannot take are left out.
    """

    types: TypeOptions
    tombstones: bool = True
    skipped: frozenset[str] = frozenset("t")
    unsent: bool = False
    keys: tuple[re.Pattern[str], ...] = ()
    schemas: bool = False
    transactions: bool = False
    changes_only: bool = False
    schema_names: str = "none"
    delimiter: str = "."
    transaction_topic: str = "transaction"
    flattening: Flattening | None = None
    chain: Chain | None = None
    null_as_default: bool = True
    tolerant: bool = False

    @property
    def row_types(self) -> TypeOptions:
        """Return how the values of rows are written."""
        flattening = self.flattening
        if flattening is None or not flattening.copies or not flattening.null_as_default:
            return self.types
        return replace(self.types, null_as_default=True)

    @classmethod
    def of(cls, properties: Mapping[str, str], *, schemas: bool = False) -> EventOptions:
        """Return the options that properties of a connector say."""
        keys = []
        for entry in filter(None, (part.strip() for part in properties.get("message.key.columns", "").split(";"))):
            table, _, listed = entry.partition(":")
            keys += [re.compile(f"{table.strip()}.{name}", re.IGNORECASE) for name in _names(listed)]
        types, alone = TypeOptions.of(properties), flattening_alone(properties)
        chain = None if alone else Chain.of(properties)
        return cls(
            types if chain is None else replace(types, null_as_default=False),
            tombstones=properties.get("tombstones.on.delete", "true").lower() == "true",
            skipped=frozenset(_names(properties.get("skipped.operations", "t"))) - {"none"},
            unsent="skipped.operations" in properties,
            keys=tuple(keys),
            schemas=schemas or properties.get("value.converter.schemas.enable", "false").lower() == "true",
            transactions=properties.get("provide.transaction.metadata", "false").lower() == "true",
            schema_names=properties.get("schema.name.adjustment.mode", "none").lower(),
            delimiter=properties.get("topic.delimiter", "."),
            transaction_topic=properties.get("topic.transaction", "transaction"),
            changes_only=properties.get("skip.messages.without.change", "false").lower() == "true",
            flattening=Flattening.of(properties, alone) if alone else None,
            chain=chain,
            null_as_default=types.null_as_default,
            tolerant=properties.get("errors.tolerance", "none").lower() == "all",
        )


_UNCOUNTED = 3  # place of an event that is not written and that its transaction does not count; tombstones have 1


@dataclass(slots=True)
class Lines:
    """Events of a batch in their order, with the positions of the rows that they are of.

    Attributes:
        rows: whose event each is, in the batch.
        texts: each one's JSON with the line's end; null of an event that is not written, where transactions are told:
            one begins and ends with it.
        counted: which of them transactions count: all but tombstones.
        table: ``schema.table``.
        refusals: events that a transform could not take.
    """

    rows: Ints
    texts: pa.Array
    counted: Mask
    table: str
    refusals: Sequence[Refusal] = ()


class Changes:
    """Where the changes of a batch lie in the WAL, and their transactions' numbers and origins."""

    def __init__(self, batch: Batch) -> None:
        self.lsn, self.number, self.after = pa.array(batch.lsn), None, None
        if CHANGE in batch.schema.names:
            self.lsn, self.number, self.after = batch.column(CHANGE).flatten()
        self.origin, self.origin_lsn = None, None
        if ORIGIN.name in batch.schema.names:
            self.origin, self.origin_lsn = batch.column(ORIGIN.name).flatten()


_LETTERS = pa.array([java_string(chr(code)) for code in range(128)], TEXT)


class _Metadata:
    """What the events of a batch say beside their rows: the operation, times, the source block.

    Rows that follow one another mostly say the same but for their place in the WAL: it is written once for all of them.
    """

    def __init__(self, writer: EventWriter, batch: Batch, markers: pa.Array | None) -> None:
        self.writer, self.batch, self.markers = writer, batch, markers
        self.changes = changes = Changes(batch)
        differs = np.zeros(max(batch.num_rows - 1, 0), bool)
        of_transaction = (changes.number, changes.after, changes.origin, changes.origin_lsn)
        for told in (batch.column("__op"), batch.column("__ts"), *of_transaction, markers):
            if told is not None:
                differs |= _differs(told)
        self._first = np.append(0, np.flatnonzero(differs) + 1)[: batch.num_rows]
        self._run = np.append(0, np.cumsum(differs))

    def _told(self, texts: pa.Array, rows: Ints) -> Part:
        """Return texts of runs as those of rows."""
        if len(texts) == 1:
            only: str | None = texts[0].as_py()
            return "null" if only is None else only
        return Shared(texts, pa.array(self._run[rows]))

    def ops(self, rows: Ints) -> Part:
        """Return letters in quotes."""
        return self._told(_LETTERS.take(pa.array(self.batch.op[self._first])), rows)

    def times(self, rows: Ints) -> dict[str, Part]:
        """Return ``ts_ms``, ``ts_us`` and ``ts_ns``."""
        us = self.batch.ts_us[self._first]
        found = {"ts_ms": us // 1000, "ts_us": us, "ts_ns": us * 1000}
        return {name: self._told(pa.array(numbers).cast(TEXT), rows) for name, numbers in found.items()}

    def source(self, rows: Ints, schema: str, table: str) -> dict[str, list[Part]]:
        """Return the source block's fields, each as its parts."""
        # The struct has none while it streams: it is the converter that writes the default.
        snapshot: Part = '"false"' if self.writer.options.types.null_as_default else "null"
        if self.markers is not None:
            snapshot = self._told(in_quotes(self.markers.take(pa.array(self._first))), rows)
        fixed = {
            "version": java_string(VERSION),
            "connector": '"postgresql"',
            "name": java_string(self.writer.name),
            "snapshot": snapshot,
            "db": java_string(self.writer.database),
            "schema": java_string(schema),
            "table": java_string(table),
            **self.times(rows),
        }
        known = {name: [part] for name, part in fixed.items()} | self._places(rows)
        return {name: known.get(name, ["null"]) for name in _SOURCE}

    def _places(self, rows: Ints) -> dict[str, list[Part]]:
        """Return ``sequence``, ``txId``, ``lsn`` and the origin."""
        lsn = _chosen(self.changes.lsn, rows).cast(TEXT)
        number: Part = "null"
        after: Part = "null"
        first = pa.array(self._first)
        if self.changes.number is not None and self.changes.after is not None:
            number = self._told(self.changes.number.take(first).cast(TEXT), rows)
            quote = pa.scalar('\\"', TEXT)
            before = self.changes.after.take(first).cast(TEXT)
            after = self._told(pc.binary_join_element_wise(quote, before, quote, pa.scalar("", TEXT)), rows)
        found = {"sequence": ['"[', after, ',\\"', lsn, '\\"]"'], "txId": [number], "lsn": [lsn]}
        if self.changes.origin is not None and self.changes.origin_lsn is not None:
            there = self.changes.origin_lsn.take(first).view(pa.int64()).cast(TEXT)  # Java's long
            found["origin"] = [self._told(quoted(self.changes.origin.take(first)), rows)]
            found["origin_lsn"] = [self._told(there, rows)]
        return found


def _differs(array: pa.Array) -> Mask:
    """Return which values are not the one before them, without the first."""
    own, before = array[1:], array[:-1]
    values = pc.not_equal(own, before).fill_null(False)
    return np.asarray(pc.or_(values, pc.xor(own.is_valid(), before.is_valid())))


def _chosen(array: pa.Array, rows: Ints) -> pa.Array:
    """Return the values of some rows, which are in order: of all of them without a copy."""
    return array if rows.size == len(array) else array.take(pa.array(rows))


@dataclass(frozen=True)
class _Table:
    """How a table's rows are written."""

    facts: Mapping[str, Any]
    columns: Sequence[Column]
    key: Sequence[Column]
    topic: str

    @property
    def full(self) -> bool:
        """Return whether old rows are known as a whole."""
        return bool(self.facts["identity"] == "f")


@dataclass
class EventWriter:
    """Writes the events of one connector.

    Args:
        name: ``topic.prefix``.
        database: the database's name.
        options: what the connector's properties say.
    """

    name: str
    database: str
    options: EventOptions
    _tables: dict[bytes, _Table] = field(default_factory=dict)

    def lines(self, records: pa.RecordBatch, markers: pa.Array | None = None) -> Lines:
        """Return the events of a batch.

        Args:
            records: rows with ``postgres.facts`` in their schema's metadata.
            markers: ``source.snapshot`` of each row; ``false`` where left out.
        """
        raw, batch = records.schema.metadata[FACTS], Batch(records)
        kind = json.loads(raw)
        if "messages" in kind or "heartbeats" in kind:
            schemas = self.options.schemas or self.options.chain is not None
            if "messages" in kind:
                return self._through(_messages(self, batch, schemas=schemas))
            return self._through(_heartbeats(batch, kind["heartbeats"], schemas=schemas))
        events = _Events if self.options.chain is None else _EventRecords
        return events(self, self._table(raw), batch, markers).lines()

    def _through(self, lines: Lines) -> Lines:
        """Return lines that were written with schemas as the chain of transforms leaves them, where there is one."""
        if self.options.chain is None:
            return lines
        found, refusals = transformed(self.options.chain, lines.texts.drop_null().to_pylist(), self.options)
        kept = np.array([number for number, _ in found], np.int64)
        texts = pa.array([text for _, text in found], TEXT)
        return Lines(lines.rows[kept], texts, lines.counted[kept], lines.table, refusals)

    def _table(self, raw: bytes) -> _Table:
        known = self._tables.get(raw)
        if known is None:
            facts = json.loads(raw)
            named = f"{facts['schema']}.{facts['table']}"
            written = columns(facts, self.options.row_types)
            by_name = {column.name: column for column in columns(facts, self.options.row_types.of_keys)}
            chosen = self._chosen_key(named, list(by_name))
            key = [by_name[name] for name in chosen or facts["key"] if name in by_name]
            # A table that was given another name has another topic from then on.
            topic = _NOT_IN_TOPICS.sub("_", self.options.delimiter.join([self.name, facts["schema"], facts["table"]]))
            known = self._tables[raw] = _Table(facts, written, key, topic)
        return known

    def _chosen_key(self, table: str, names: Sequence[str]) -> list[str]:
        """Return the columns that ``message.key.columns`` names, in its order; none where it names none."""
        found = {n: n for pattern in self.options.keys for n in names if pattern.fullmatch(f"{table}.{n}")}
        return list(found)


class _Events:
    """The events of one batch on their way to text."""

    def __init__(self, writer: EventWriter, table: _Table, batch: Batch, markers: pa.Array | None) -> None:
        self.writer, self.table, self.batch, self.markers = writer, table, batch, markers
        self.options = writer.options
        self.op = batch.op
        self.n = batch.num_rows
        self.told = _Metadata(writer, batch, markers)

    def lines(self) -> Lines:
        """Return all events, in order: an update of a key is a delete, its tombstone and an insert."""
        op, every = self.op, np.arange(self.n)
        skipped = np.isin(op, [ord(letter) for letter in self.options.skipped])
        unseen = np.zeros(self.n, bool) if self.options.unsent else skipped
        if self.options.changes_only:
            idle = self._idle() & ~skipped
            skipped, unseen = skipped | idle, unseen | idle
        deleted, truncated = op == ord("d"), op == ord("t")
        rekeyed, old, new = self._rekeyed(skipped)
        usual = ~skipped & ~deleted & ~truncated
        usual[rekeyed] = False
        parts = [(rows, 0, self._rows(rows, None, None)) for rows in _some(every[usual])]
        for gone in _some(every[deleted & ~skipped]):
            keys = self._keys(gone, unknown=True)
            parts += [
                (gone, 0, self._deletes(gone, self._own_rows(gone), keys, None)),
                (gone, 1, self._tombstones(gone, keys, None)),
            ]
        parts += [(rows, 0, self._truncates(rows)) for rows in _some(every[truncated & ~skipped])]
        if self.options.transactions:
            parts += [(rows, _UNCOUNTED, pa.nulls(rows.size, TEXT)) for rows in _some(every[unseen])]
        if rekeyed.size:
            to = self._key_header("__debezium.newkey", new)
            since = self._key_header("__debezium.oldkey", old)
            if "d" not in self.options.skipped:
                parts += [
                    (rekeyed, 0, self._deletes(rekeyed, self._before_rows(rekeyed), [old], to)),
                    (rekeyed, 1, self._tombstones(rekeyed, [old], to)),
                ]
            if "c" not in self.options.skipped:
                parts.append((rekeyed, 2, self._rows(rekeyed, "c", since)))
        return self._in_order([part for part in parts if part[2] is not None])

    @property
    def _named(self) -> str:
        return f"{self.table.facts['schema']}.{self.table.facts['table']}"

    def _key_header(self, name: str, keys: pa.Array) -> Any:
        return _header(name, _struct(keys, self.key_schema))

    def _idle(self) -> Mask:
        """Return which updates left all columns as they were, of those that are written."""
        found = np.zeros(self.n, bool)
        if self.table.full and "__before" in self.batch.schema.names:
            updates = np.flatnonzero((self.op == ord("u")) & np.asarray(self._column("__before").is_valid()))
            if updates.size:
                own = {column.name: self._column(column.name) for column in self.table.columns}
                before = _Events._objects(self, self._before(), updates, unknown=True, before=True)
                after = _Events._objects(self, own, updates, unknown=True)
                found[updates] = np.asarray(pc.equal(joined(before, updates.size), joined(after, updates.size)))
        return found

    def _in_order(self, parts: Sequence[tuple[Ints, int, Any]]) -> Lines:
        if not parts:
            return Lines(np.zeros(0, np.int64), pa.array([], TEXT), np.zeros(0, bool), self._named)
        row = np.concatenate([rows for rows, _, _ in parts])
        place = np.concatenate([np.full(rows.size, place) for rows, place, _ in parts])
        counted = ~np.isin(place, (1, _UNCOUNTED))
        if len(parts) == 1:
            return Lines(row, parts[0][2], counted, self._named)
        order = np.lexsort((place, row))
        texts = pa.concat_arrays([texts for _, _, texts in parts]).take(pa.array(order))
        return Lines(row[order], texts, counted[order], self._named)

    # --- rows and keys ---

    def _column(self, name: str) -> pa.Array:
        return self.batch.records.column(name)

    def _own_rows(self, rows: Ints) -> Any:
        """Return the rows' own columns; of a delete they are those of the old row."""
        return self._objects({c.name: self._column(c.name) for c in self.table.columns}, rows, unknown=True)

    def _before(self) -> dict[str, pa.Array]:
        """Return the columns of old rows."""
        before = self._column("__before")
        return dict(zip([part.name for part in before.type], before.flatten(), strict=True))

    def _before_rows(self, rows: Ints) -> Any:
        return self._objects(self._before(), rows, unknown=True, before=True)

    def _objects(
        self, arrays: Mapping[str, pa.Array], rows: Ints, *, unknown: bool = False, before: bool = False
    ) -> list[Part]:
        parts: list[Part] = []
        for place, column in enumerate(self.table.columns):
            parts += [f"{',' if place else '{'}{java_string(column.field)}:"]
            own = _chosen(arrays[column.name], rows)
            parts += [self._cells(column, own, rows, unknown=unknown, before=before)]
        if self.options.flattening is None:
            parts.append("}" if self.table.columns else "{}")
        return parts

    def _cells(self, column: Column, array: pa.Array, rows: Ints, *, unknown: bool, before: bool) -> pa.Array:
        cells = column.cells(array, unknown=unknown, read=self.markers is not None)
        nan = self.batch.nan(column.name, before=before)
        if nan is not None:
            cells = pc.if_else(pa.array(nan[rows]), pa.scalar(column.nan, TEXT), cells)
        left_out = None if unknown else self._left_out(column.name)
        if left_out is not None and left_out[rows].any():
            cells = pc.if_else(pa.array(left_out[rows]), pa.scalar(column.toast, TEXT), cells)
        return cells

    def _left_out(self, name: str) -> Mask | None:
        """Return where a column's value was not sent, as it was not changed."""
        if "__unchanged" not in self.batch.schema.names:
            return None
        lists = self._column("__unchanged")
        found = np.zeros(self.n, bool)
        where = pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), name))
        found[np.asarray(where)] = True
        return found

    def _keys(self, rows: Ints, *, unknown: bool = False) -> list[Part]:
        arrays = {column.name: self._column(column.name) for column in self.table.key}
        return self._key_objects(arrays, rows, unknown=unknown)

    def _key_objects(
        self, arrays: Mapping[str, pa.Array], rows: Ints, *, unknown: bool, before: bool = False
    ) -> list[Part]:
        """Return keys as JSON; null of a table without one."""
        if not self.table.key:
            return ["null"]
        parts: list[Part] = []
        for place, column in enumerate(self.table.key):
            parts += [f"{',' if place else '{'}{java_string(column.field)}:"]
            cells = column.cells(_chosen(arrays[column.name], rows), unknown=unknown, read=self.markers is not None)
            nan = self.batch.nan(column.name, before=before)
            parts.append(cells if nan is None else pc.if_else(pa.array(nan[rows]), pa.scalar(column.nan, TEXT), cells))
        return [*parts, "}"]

    def _rekeyed(self, skipped: Mask) -> tuple[Ints, pa.Array, pa.Array]:
        """Return the updates that changed the key, the old keys and the new ones, as JSON."""
        updates = np.zeros(0, np.int64)
        if self.table.key and "__before" in self.batch.schema.names:
            known = np.asarray(self._column("__before").is_valid())
            updates = np.flatnonzero(known & (self.op == ord("u")) & ~skipped)
        if not updates.size:
            return updates, pa.array([], TEXT), pa.array([], TEXT)
        old = joined(self._key_objects(self._before(), updates, unknown=True, before=True), updates.size)
        new = joined(self._keys(updates), updates.size)
        moved = pc.not_equal(old, new)
        return updates[np.asarray(moved)], old.filter(moved), new.filter(moved)

    # --- events ---

    def _rows(self, rows: Ints, op: str | None, headers: pa.Array | None) -> pa.Array | None:
        """Return inserts, reads and updates; ``op`` in place of the rows' own."""
        after = self._objects({c.name: self._column(c.name) for c in self.table.columns}, rows)
        keys, ops = self._keys(rows), self._ops(rows, op)
        if self.options.flattening is not None:
            return self._line(rows, keys, self._flattened(rows, after, ops, deleted=False), ops, headers)
        before: list[Part] = ["null"]
        if op is None and self.table.full and "__before" in self.batch.schema.names:
            known = _chosen(self._column("__before"), rows).is_valid()
            if known.true_count:
                before = self._before_rows(rows)
            if known.true_count and known.false_count:
                before = [pc.if_else(known, joined(before, rows.size), pa.scalar(None, TEXT))]
        return self._line(rows, keys, self._envelope(rows, before, after, ops), ops, headers)

    def _ops(self, rows: Ints, op: str | None) -> Part:
        return self.told.ops(rows) if op is None else java_string(op)

    def _deletes(self, rows: Ints, before: list[Part], keys: list[Part], headers: pa.Array | None) -> pa.Array | None:
        ops = self._ops(rows, "d")
        flattening = self.options.flattening
        if flattening is None:
            return self._line(rows, keys, self._envelope(rows, before, ["null"], ops), ops, headers)
        if flattening.deletes == "drop":
            return self._unwritten(rows)
        if flattening.marks:
            return self._line(rows, keys, self._flattened(rows, before, ops, deleted=True), ops, headers)
        schemaless = flattening.deletes == "delete-to-tombstone"
        return self._line(rows, keys, None, ops, headers, schemaless=schemaless)

    def _tombstones(self, rows: Ints, keys: list[Part], headers: pa.Array | None) -> pa.Array | None:
        flattening = self.options.flattening
        if not self.options.tombstones or (flattening is not None and flattening.deletes != "rewrite-with-tombstone"):
            return None
        return self._line(rows, keys, None, self._ops(rows, "d"), headers, tombstone=True)

    def _unwritten(self, rows: Ints) -> pa.Array | None:
        """Return what stands for events that flattening drops: transactions count them."""
        return pa.nulls(rows.size, TEXT) if self.options.transactions else None

    def _truncates(self, rows: Ints) -> pa.Array | None:
        if self.options.flattening is not None:
            return self._unwritten(rows)
        ops = self._ops(rows, "t")
        return self._line(rows, None, self._envelope(rows, ["null"], ["null"], ops), ops, None)

    def _envelope(self, rows: Ints, before: list[Part], after: list[Part], ops: Part) -> list[Part]:
        parts: list[Part] = ['{"before":', *before, ',"after":', *after, ',"source":', *_block(self._source(rows))]
        parts += [',"transaction":null,"op":', ops]
        for name, cells in self.told.times(rows).items():
            parts += [f',"{name}":', cells]
        return [*parts, "}"]

    def _flattened(self, rows: Ints, row: list[Part], ops: Part, *, deleted: bool) -> list[Part]:
        flattening = self.options.flattening
        assert flattening is not None
        parts: list[Part] = [*row]
        begun = bool(self.table.columns)
        if flattening.marks:
            parts.append(f'{"," if begun else "{"}"__deleted":"{str(deleted).lower()}"')
            begun = True
        for place, name in flattening.fields:
            parts += [f"{',' if begun else '{'}{java_string(name)}:", *self._place(place, rows, ops)]
            begun = True
        return [*parts, "}" if begun else "{}"]

    # --- what an event says beside its row ---

    def _place(self, place: str, rows: Ints, ops: Part) -> list[Part]:
        """Return a field of an envelope as JSON, as flattening adds it."""
        if place == "op":
            return [ops]
        if place in _ENVELOPE:
            return [self.told.times(rows)[place]]
        name = place.removeprefix("source.")
        if name == "snapshot" and self.markers is None:
            return ["null"]
        return self._source(rows).get(name, ["null"])

    def _source(self, rows: Ints) -> dict[str, list[Part]]:
        return self.told.source(rows, self.table.facts["schema"], self.table.facts["table"])

    def _line(
        self,
        rows: Ints,
        keys: list[Part] | None,
        values: list[Part] | None,
        ops: Part,
        headers: pa.Array | None,
        *,
        schemaless: bool = False,
        tombstone: bool = False,
    ) -> pa.Array:
        """Return whole lines.

        Args:
            keys, values: None where they are null.
            schemaless: a null value has no schema either.
            tombstone: it has the headers of its delete, to which flattening adds the operation once more.
        """
        flattening = self.options.flattening
        shown: list[Part] = [] if headers is None else [headers]
        added = () if flattening is None else flattening.headers
        again = [(place, name) for place, name in added if tombstone and place == "op"]
        for place, name in (*added, *again):
            cells = _in_header(self._place(place, rows, ops))
            shown += [f"{', ' if shown else ''}[{java_string(name)}, ", *cells, "]"]
        parts: list[Part] = [f'{{"topic":{java_string(self.table.topic)},"key":', *self._keyed(keys)]
        parts += [',"value":', *self._valued(values, schemaless=schemaless or tombstone)]
        if shown:
            parts += [',"headers":[', *shown, "]"]
        return joined([*parts, "}\n"], rows.size)

    def _keyed(self, keys: list[Part] | None) -> list[Part]:
        if keys is None or not self.options.schemas or not self.table.key:
            return keys or ["null"]
        return [f'{{"schema":{_dumped(self.key_schema)},"payload":', *keys, "}"]

    def _valued(self, values: list[Part] | None, *, schemaless: bool) -> list[Part]:
        if not self.options.schemas or schemaless:
            return values or ["null"]
        schema = self.value_schema
        if values is None:
            # A delete that is a tombstone has the schema that the new row would have had.
            row = [column.schema for column in self.table.columns]
            schema = {**schema, "fields": row, "optional": True}
        return [f'{{"schema":{_dumped(schema)},"payload":', *(values or ["null"]), "}"]

    # --- schemas ---

    @property
    def key_schema(self) -> Schema:
        """Return the schema of keys."""
        fields = [column.schema for column in self.table.key]
        return {"type": "struct", "fields": fields, "optional": False, "name": self._schema_name("Key")}

    @property
    def value_schema(self) -> Schema:
        """Return the schema of values."""
        flattening = self.options.flattening
        row = {"type": "struct", "fields": [column.schema for column in self.table.columns]}
        named: Schema = {"optional": True, "name": self._schema_name("Value")}
        if flattening is not None:
            added = [{"type": "string", "optional": True, "field": "__deleted"}] if flattening.marks else []
            added += [_place_schema(place, name) for place, name in flattening.fields]
            return {**row, "fields": [*row["fields"], *added], **named, "optional": False}
        fields = [
            {**row, **named, "field": "before"},
            {**row, **named, "field": "after"},
            {**_struct_schema(_SOURCE), "optional": False, **_SOURCE_SCHEMA},
            {**_struct_schema(_BLOCK), "optional": True, **_BLOCK_SCHEMA},
            *_struct_schema(_ENVELOPE)["fields"],
        ]
        named = {"optional": False, "name": self._schema_name("Envelope"), "version": 2}
        return {"type": "struct", "fields": fields, **named}

    def _schema_name(self, what: str) -> str:
        return avro_name(f"{self.table.topic}.{what}", self.options.schema_names, dots=True)


def _some(rows: Ints) -> list[Ints]:
    """Return rows, in nothing if there are none."""
    return [rows] if rows.size else []


def _block(fields: Mapping[str, Sequence[Part]]) -> list[Part]:
    """Return the parts of a JSON object of these fields."""
    parts: list[Part] = []
    for name, cells in fields.items():
        parts += [f'{"," if parts else "{"}"{name}":', *cells]
    return [*parts, "}"]


_SOURCE_SCHEMA = {"name": "io.debezium.connector.postgresql.Source", "version": 1, "field": "source"}
_BLOCK_SCHEMA = {"name": "event.block", "version": 1, "field": "transaction"}


class _EventRecords(_Events):
    """The events of one batch on their way through a chain of transforms."""

    def _key_header(self, name: str, keys: pa.Array) -> Any:
        return name, Leaf({**self.key_schema, "optional": False}, keys)

    def _in_order(self, parts: Sequence[tuple[Ints, int, Any]]) -> Lines:
        if not parts:
            return super()._in_order([])
        row = np.concatenate([rows for rows, _, _ in parts])
        place = np.concatenate([np.full(rows.size, place) for rows, place, _ in parts])
        order = np.lexsort((place, row))
        number = np.empty(row.size, np.int64)
        number[order] = np.arange(row.size)
        ends = np.cumsum([rows.size for rows, _, _ in parts])
        records = [
            replace(found, order=number[end - rows.size : end])
            for (rows, _, found), end in zip(parts, ends.tolist(), strict=True)
        ]
        assert self.options.chain is not None
        made, refusals = self.options.chain.apply(records, sharing=True)
        lines = printed(made, schemas=self.options.schemas, defaults=self.options.null_as_default)
        kept = order[np.array([number for number, _ in lines], np.int64)]
        row, counted, texts = row[kept], place[kept] != 1, pa.array([text for _, text in lines], TEXT)
        return Lines(row, texts, counted, self._named, refusals)

    def _objects(
        self, arrays: Mapping[str, pa.Array], rows: Ints, *, unknown: bool = False, before: bool = False
    ) -> Any:
        fields: dict[str, Values] = {}
        for column in self.table.columns:
            own = _chosen(arrays[column.name], rows)
            cells = self._cells(column, own, rows, unknown=unknown, before=before)
            fields[column.field] = _leaf(column.schema, cells)
        return Struct({"type": "struct", "optional": True, "name": self._schema_name("Value")}, fields, rows.size)

    def _rows(self, rows: Ints, op: str | None, headers: Any) -> Any:
        after = self._objects({c.name: self._column(c.name) for c in self.table.columns}, rows)
        before = self._none(rows)
        if op is None and self.table.full and "__before" in self.batch.schema.names:
            known = _chosen(self._column("__before"), rows).is_valid()
            before = replace(self._before_rows(rows), valid=known)
        value = self._envelope(rows, before, after, self._ops(rows, op))
        return self._record(rows, self._keys(rows), value, headers)

    def _deletes(self, rows: Ints, before: Any, keys: list[Part], headers: Any) -> Any:
        return self._record(rows, keys, self._envelope(rows, before, self._none(rows), self._ops(rows, "d")), headers)

    def _tombstones(self, rows: Ints, keys: list[Part], headers: Any) -> Any:
        return self._record(rows, keys, None, headers) if self.options.tombstones else None

    def _truncates(self, rows: Ints) -> Any:
        none = self._none(rows)
        return self._record(rows, None, self._envelope(rows, none, none, self._ops(rows, "t")), None)

    def _none(self, rows: Ints) -> Struct:
        """Return rows that are not there."""
        fields: dict[str, Values] = {c.field: _leaf(c.schema, pa.nulls(rows.size, TEXT)) for c in self.table.columns}
        schema = {"type": "struct", "optional": True, "name": self._schema_name("Value")}
        return Struct(schema, fields, rows.size, pa.repeat(pa.scalar(False), rows.size))

    def _envelope(self, rows: Ints, before: Any, after: Any, ops: Part) -> Any:
        n = rows.size
        known: dict[str, Part] = {"op": ops, "transaction": "null", **self.told.times(rows)}
        fields: dict[str, Values] = {}
        for schema in self.value_schema["fields"]:
            name = schema["field"]
            if name in ("before", "after"):
                fields[name] = before if name == "before" else after
            elif name == "source":
                of = {part["field"]: part for part in schema["fields"]}
                places = self._source(rows).items()
                source: dict[str, Values] = {place: _leaf(of[place], joined(cells, n)) for place, cells in places}
                fields[name] = Struct(_own_schema(schema), source, n)
            else:
                fields[name] = _leaf(schema, joined([known[name]], n))
        return Struct(_own_schema(self.value_schema), fields, n)

    def _record(self, rows: Ints, keys: list[Part] | None, value: Values | None, headers: Any) -> Records:
        key = None if keys is None or not self.table.key else Leaf(self.key_schema, joined(keys, rows.size))
        topics = pa.repeat(pa.scalar(self.table.topic, TEXT), rows.size)
        return Records(rows, topics, key, value, () if headers is None else (headers,))


def _own_schema(schema: Schema) -> Schema:
    return {part: value for part, value in schema.items() if part not in ("field", "fields")}


def _leaf(schema: Schema, texts: pa.Array) -> Leaf:
    """Return a column of JSON in which ``null`` is null."""
    own = {part: value for part, value in schema.items() if part != "field"}
    return Leaf(own, pc.if_else(pc.equal(texts, "null"), pa.scalar(None, TEXT), texts))


def transformed(
    chain: Chain, lines: Sequence[str], options: EventOptions
) -> tuple[list[tuple[int, str]], list[Refusal]]:
    """Return the lines that a chain makes of lines with schemas, each with its number, and what it could not take."""
    made, refusals = chain.apply(parsed(lines), sharing=True)
    return printed(made, schemas=options.schemas, defaults=options.null_as_default), refusals


def _struct_schema(fields: Mapping[str, tuple[str, bool]]) -> Schema:
    return {"type": "struct", "fields": [_of_field(name, *about) for name, about in fields.items()]}


def _of_field(name: str, kind: str, optional: bool) -> Schema:
    if name == "snapshot":
        return field_schema(_SNAPSHOT, name, optional=True, default='"false"')
    return field_schema({"type": kind}, name, optional=optional)


def _place_schema(place: str, name: str) -> Schema:
    last = place.removeprefix("source.")
    kind, _ = _SOURCE[last] if place.startswith("source.") else _ENVELOPE[place]
    return field_schema(_SNAPSHOT if last == "snapshot" else {"type": kind}, name, optional=True)


def _dumped(schema: Schema) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _header(name: str, texts: pa.Array) -> pa.Array:
    return joined([f"[{java_string(name)}, ", texts, "]"], len(texts))


def _in_header(cells: list[Part]) -> list[Part]:
    """Return a value as a header has it, in which a number is a text.

    >>> _in_header(["7"]), _in_header(['"a"']), _in_header(["null"]), _in_header(['"[', "7", ']"'])
    (['"7"'], ['"a"'], ['null'], ['"[', '7', ']"'])
    """
    if len(cells) != 1:
        return cells  # a text of several parts
    (cell,) = cells
    if isinstance(cell, str):
        return [cell if cell == "null" or cell.startswith('"') else f'"{cell}"']
    texts = cell.texts if isinstance(cell, Shared) else cell
    bare = pc.invert(pc.or_(pc.equal(texts, "null"), pc.starts_with(texts, '"')))
    quoted_ = pc.if_else(bare, in_quotes(texts), texts)
    return [Shared(quoted_, cell.of) if isinstance(cell, Shared) else quoted_]


def _struct(keys: pa.Array, schema: Schema) -> pa.Array:
    """Return keys as Java prints a Struct, as JSON strings."""
    return pa.array([java_string(struct_text(json.loads(text), schema)) for text in keys.to_pylist()], TEXT)


# -- messages of pg_logical_emit_message ------------------------------------------------------------------------------

MESSAGES = "LOGICAL_DECODING_MESSAGE"  # what transactions count them as
_OF_CONNECTOR = "io.debezium.connector.postgresql"


def _messages(writer: EventWriter, batch: Batch, *, schemas: bool) -> Lines:
    n = batch.num_rows
    every, prefix = np.arange(n), quoted(batch.column("prefix"))
    content = binary_kind(writer.options.types)
    told = _Metadata(writer, batch, None)
    key: list[Part] = ['{"prefix":', prefix, "}"]
    value: list[Part] = ['{"op":"m","ts_ms":', told.times(every)["ts_ms"], ',"source":']
    value += _block(told.source(every, "", ""))
    value += [f',{_NO_MESSAGE_BLOCK}{{"prefix":', prefix, ',"content":', content.write(batch.column("content")), "}}"]
    if schemas:
        key = [f'{{"schema":{_dumped(_MESSAGE_KEY)},"payload":', *key, "}"]
        value = [f'{{"schema":{_dumped(_message_schema(content.schema))},"payload":', *value, "}"]
    topic = java_string(f"{writer.name}.message")
    texts = joined([f'{{"topic":{topic},"key":', *key, ',"value":', *value, "}\n"], n)
    return Lines(every, texts, np.asarray(batch.column("transactional")), MESSAGES)


_MESSAGE_KEY = {
    "type": "struct",
    "fields": [field_schema({"type": "string"}, "prefix", optional=True)],
    "optional": False,
    "name": f"{_OF_CONNECTOR}.MessageKey",
    "version": 1,
}


def _message_schema(content: Schema) -> Schema:
    message = {
        "type": "struct",
        "fields": [
            field_schema({"type": "string"}, "prefix", optional=True),
            field_schema(content, "content", optional=True),
        ],
        "optional": False,
        "name": f"{_OF_CONNECTOR}.Message",
        "version": 1,
        "field": "message",
    }
    fields = [
        field_schema({"type": "string"}, "op", optional=False),
        field_schema({"type": "int64"}, "ts_ms", optional=True),
        {**_struct_schema(_SOURCE), "optional": False, **_SOURCE_SCHEMA},
        {**_struct_schema(_BLOCK), "optional": True, **_BLOCK_SCHEMA},
        message,
    ]
    named = {"name": f"{_OF_CONNECTOR}.MessageValue", "version": 1}
    return {"type": "struct", "fields": fields, "optional": False, **named}


# -- heartbeats -------------------------------------------------------------------------------------------------------

_HEARTBEAT = "heartbeat"  # no transaction counts it


def _heartbeats(batch: Batch, topic: str, *, schemas: bool) -> Lines:
    n = batch.num_rows
    key: list[Part] = ['{"serverName":', quoted(batch.column("serverName")), "}"]
    value: list[Part] = ['{"ts_ms":', batch.column("ts_ms").cast(TEXT), "}"]
    if schemas:
        key = [
            f'{{"schema":{_dumped(_heartbeat_schema("ServerNameKey", "string", "serverName"))},"payload":',
            *key,
            "}",
        ]
        value = [f'{{"schema":{_dumped(_heartbeat_schema("Heartbeat", "int64", "ts_ms"))},"payload":', *value, "}"]
    texts = joined([f'{{"topic":{java_string(topic)},"key":', *key, ',"value":', *value, "}\n"], n)
    return Lines(np.arange(n), texts, np.zeros(n, bool), _HEARTBEAT)


def _heartbeat_schema(name: str, kind: str, column: str) -> Schema:
    fields = [field_schema({"type": kind}, column, optional=False)]
    named = {"name": f"io.debezium.connector.common.{name}", "version": 1}
    return {"type": "struct", "fields": fields, "optional": False, **named}


# -- transactions -----------------------------------------------------------------------------------------------------

_TRANSACTION_KEY = {
    "type": "struct",
    "fields": [field_schema({"type": "string"}, "id", optional=False)],
    "optional": False,
    "name": "io.debezium.connector.common.TransactionMetadataKey",
    "version": 1,
}
_COLLECTION = {
    **_struct_schema({"data_collection": ("string", False), "event_count": ("int64", False)}),
    "name": "event.collection",
    "version": 1,
}
_COLLECTIONS = {"type": "array", "items": field_schema(_COLLECTION, None, optional=True)}
_TRANSACTION_VALUE = {
    "type": "struct",
    "fields": [
        field_schema({"type": "string"}, "status", optional=False),
        field_schema({"type": "string"}, "id", optional=False),
        field_schema({"type": "int64"}, "event_count", optional=True),
        field_schema(_COLLECTIONS, "data_collections", optional=True),
        field_schema({"type": "int64"}, "ts_ms", optional=False),
    ],
    "optional": False,
    "name": "io.debezium.connector.common.TransactionMetadataValue",
    "version": 1,
}
_NO_BLOCK = '"transaction":null,"op":'
_NO_MESSAGE_BLOCK = '"transaction":null,"message":'


@dataclass(frozen=True, slots=True)
class Place:
    """What an event's transaction is known by.

    Attributes:
        commit: LSN of its commit.
        lsn: where the change itself lies.
        number: the transaction's; None where it is not known, and of an event that belongs to none.
        ts_ms: when it was committed.
        table: ``schema.table``.
        counted: it is one of the transaction's events; tombstones are not.
    """

    commit: int
    lsn: int
    number: int | None
    ts_ms: int
    table: str
    counted: bool

    @property
    def apart(self) -> bool:
        """Return whether it belongs to no transaction."""
        return self.table in (MESSAGES, _HEARTBEAT) and not self.counted


def places(batch: Batch, lines: Lines) -> list[Place]:
    """Return what the transactions of events are known by."""
    changes, rows = Changes(batch), pa.array(lines.rows)
    numbers = [None] * len(rows) if changes.number is None else changes.number.take(rows).to_pylist()
    about = zip(
        batch.lsn[lines.rows].tolist(),
        changes.lsn.take(rows).to_pylist(),
        numbers,
        (batch.ts_us[lines.rows] // 1000).tolist(),
        lines.counted.tolist(),
        strict=True,
    )
    return [Place(commit, lsn, number, ts_ms, lines.table, counted) for commit, lsn, number, ts_ms, counted in about]


@dataclass
class TransactionMetadata:
    """What ``provide.transaction.metadata`` adds: BEGIN and END in a topic of their own, and a block in each event.

    An id is the transaction's number and an LSN: the change's in its event, in BEGIN that of the first one, and in END
    the commit's. (Debezium's END has the LSN behind the commit.)
    """

    topic: str
    schemas: bool
    _open: Place | None = None
    _counts: dict[str, int] = field(default_factory=dict)

    def event(self, place: Place, text: str | None) -> list[str]:
        """Return an event with its block, behind what comes before it; only that where it is not written."""
        if place.apart:
            return [*self.end(), *_written(text)]
        before = []
        if self._open is None or place.commit != self._open.commit:
            before = [*self.end(), self._line("BEGIN", place, place.lsn, None)]
            self._open = place
        if not place.counted:
            return [*before, *_written(text)]
        table = place.table
        self._counts[table] = self._counts.get(table, 0) + 1
        block = {
            "id": _id(place, place.lsn),
            "total_order": sum(self._counts.values()),
            "data_collection_order": self._counts[table],
        }
        if text is None:
            return before
        # The last one is the envelope's own: rows come before it.
        none, following = (_NO_MESSAGE_BLOCK, "message") if table == MESSAGES else (_NO_BLOCK, "op")
        head, found, tail = text.rpartition(none)
        return [*before, f'{head}"transaction":{_dumped(block)},"{following}":{tail}' if found else text]

    def end(self) -> list[str]:
        """Return the END of the transaction that is open, if one is."""
        if self._open is None:
            return []
        line = self._line("END", self._open, self._open.commit, self._counts)
        self._open, self._counts = None, {}
        return [line]

    def _line(self, status: str, place: Place, lsn: int, counts: Mapping[str, int] | None) -> str:
        listed = None
        if counts is not None:
            listed = [{"data_collection": table, "event_count": n} for table, n in sorted(counts.items())]
        key: dict[str, Any] = {"id": _id(place, lsn)}
        value: dict[str, Any] = {
            "status": status,
            "id": _id(place, lsn),
            "event_count": None if counts is None else sum(counts.values()),
            "data_collections": listed,
            "ts_ms": place.ts_ms,
        }
        if self.schemas:
            key = {"schema": _TRANSACTION_KEY, "payload": key}
            value = {"schema": _TRANSACTION_VALUE, "payload": value}
        return _dumped({"topic": self.topic, "key": key, "value": value}) + "\n"


def _written(text: str | None) -> list[str]:
    return [] if text is None else [text]


def _id(place: Place, lsn: int) -> str:
    return f"{place.commit if place.number is None else place.number}:{lsn}"
