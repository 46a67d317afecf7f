"""JSON messages to rows: with and without schemas, with and without envelopes, all in one topic if need be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, is_meta, take, take_records
from headrace.formats import assemble, connect, debezium, json_columns, json_shapes
from headrace.formats.assemble import Rows
from headrace.formats.base import Decoded
from headrace.formats.coerce import Reading, fitting, reading, to_type
from headrace.formats.debezium import Events
from headrace.formats.headers import EventHeaders, read_event_headers, topic_source
from headrace.formats.json_columns import Column
from headrace.formats.json_keys import KeyReader
from headrace.formats.json_parse import Bad, Lines, Parsed, object_names, parse
from headrace.wire import WireMessages

Cells = Sequence[bytes | None]

_ADDED = pa.schema(
    [(name, pa.string()) for name in ("__deleted", "__op", "__sequence", "__source_sequence")]
    + [
        (name, pa.int64())
        for name in ("__ts_ms", "__ts_us", "__source_ts_ms", "__source_ts_us", "__lsn", "__source_lsn", "__txId")
    ]
)
_HEARTBEATS = "__debezium-heartbeat"
_BOM = b"\xef\xbb\xbf"
NULL = b"null"


@dataclass(slots=True)
class Reader:
    """Decodes the messages of one call; `formats.json.JsonFormat` says what the arguments mean."""

    messages: WireMessages
    schema: pa.Schema | None
    envelope: bool
    placeholder: str
    keys: KeyReader
    decided: Column | None = None  # what the topic's columns are so far, where no schema is asked for
    told: EventHeaders | None = None
    found: list[Rows] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    nulls: list[Ints] = field(default_factory=list)  # messages without a value, beside those of the broker
    enveloped: bool = False
    schemas: list[list[connect.Schema]] = field(default_factory=list)  # of rows, as the messages have them
    keyed: Mask | None = None  # deletes whose row is their key's, read among the other rows

    def decode(self) -> Decoded:
        """Rows of all messages."""
        messages = self.messages
        if not len(messages) or messages.topic.startswith(_HEARTBEATS):
            return Decoded()
        self.told = read_event_headers(messages)
        values = self._values()
        valued = np.arange(len(values))
        if None in values:
            valued = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        if valued.size:
            chosen = values if valued.size == len(values) else [values[i] for i in valued.tolist()]
            self._read(chosen, valued)  # type: ignore[arg-type]  # no None is left
        if valued.size < len(values) or self.nulls:
            self._tombstones(values)
        if self.keyed is not None:
            self._keyed_deletes(self.keyed)
        for one in self.found:
            one.key = self.keys.names_of(one.events.rows, one.records.schema)
        parts = assemble.parts(self.found, messages.ts_ms * 1000)
        return Decoded(parts, sorted(self.bad))

    def _values(self) -> Cells:
        """Values of the messages; of our deletes, the row that stands in a header.

        Connect's JsonConverter without schemas writes the text ``null`` for a record whose value is null and whose
        schema is not: every delete of Debezium's flattening in its default mode.
        """
        values = self.messages.values
        if NULL in values:
            values = [None if value == NULL else value for value in values]
        if self.told is None or self.told.row is None:
            return values if self.decided is None or self.envelope or None not in values else self._with_keys(values)
        return [row if value is None else value for value, row in zip(values, self.told.row, strict=True)]

    def _with_keys(self, values: Cells) -> Cells:
        """The rows of deletes that are nothing but a key: they decide what columns are in their turn."""
        keys = self.messages.keys
        ours = np.zeros(len(values), bool) if self.told is None else self.told.ours
        found = [value is None and not own and _is_row(key) for value, key, own in zip(values, keys, ours, strict=True)]
        self.keyed = np.array(found)
        return [key if keyed else value for value, key, keyed in zip(values, keys, found, strict=True)]

    def _keyed_deletes(self, keyed: Mask) -> None:
        """Make deletes of those rows; one behind the delete of its own key, or among envelopes, is no event."""
        for one in self.found:
            one.events.op = np.where(keyed[one.events.rows], OPS["d"], one.events.op).astype(np.uint8)
        wanted = np.zeros(0, np.int64) if self.enveloped else self._not_behind_deletes(np.flatnonzero(keyed), keyed)
        dropped = keyed.copy()
        dropped[wanted] = False
        if dropped.any():
            self.found = [assemble.take(one, np.flatnonzero(~dropped[one.events.rows])) for one in self.found]

    def _read(self, values: Sequence[bytes], rows: Ints) -> None:
        if json_shapes.share_a_schema(values):
            # Most of such a message is its schema: it is compared where it lies, and never copied.
            self._with_schemas(values, rows)
            return
        lines = Lines(values)
        if _BOM in lines.data:
            values = [value.removeprefix(_BOM) for value in values]
            lines = Lines(values)
        codes = json_shapes.shapes(values, lines)
        runs = list(json_shapes.runs(codes))
        in_order = self.decided is not None and (self.told is None or self.told.row is None)
        for start, end in () if in_order else runs:  # first: their schemas also say what rows in headers are
            if codes[start] == json_shapes.CONNECT:
                self._with_schemas(values[start:end], rows[start:end])
        for start, end in runs:
            run, where, code = values[start:end], rows[start:end], codes[start]
            if in_order and code == json_shapes.CONNECT:
                self._with_schemas(run, where)
                continue
            joined = lines if end - start == len(values) else Lines(run)
            if code == json_shapes.ENVELOPE:
                self._envelopes(run, joined, where, None)
            elif code == json_shapes.ROW:
                self._rows(run, joined, where, None)

    def _with_schemas(self, values: Sequence[bytes], rows: Ints) -> None:
        for start, end, schema, found in json_shapes.payloads(values):
            where = rows[start:end]
            if isinstance(found, str):
                self.bad += [(row, found) for row in where.tolist()]
                continue
            if NULL in found:
                missing = np.array([payload == NULL for payload in found])
                self.nulls.append(where[missing])
                found, where = [one for one in found if one != NULL], where[~missing]
            if not found:
                continue
            if schema is None:
                self._read(found, where)
            elif str(schema.get("name")).startswith("io.debezium.connector."):
                continue  # a logical message, a transaction, a heartbeat: no row
            elif connect.is_envelope(schema):
                self._envelopes(found, Lines(found), where, connect.row_fields(schema))
            elif (fields := connect.row_fields(schema)) is None:
                self.bad += [(row, f"a payload of type {schema.get('type')}, not a struct") for row in where.tolist()]
            else:
                self.schemas.append(fields)
                self._rows(found, Lines(found), where, fields)

    def _rows(self, values: Sequence[bytes], lines: Lines, rows: Ints, fields: list[connect.Schema] | None) -> None:
        in_headers = fields is None and self.told is not None and self._are_in_headers(rows)
        readings = self._readings_in_headers(values[0]) if in_headers else self._readings(fields)
        if readings is None and self.decided is not None and not in_headers:
            parts, bad, self.decided = json_columns.decode(values, self.decided, lines=lines)
            self._take_rows(parts, bad, rows, lines, None)
            return
        types, whole, by_row = _types(readings)
        if types is not None and self.schema is not None and b"__" in lines.data:
            names = set(types.names)
            types = pa.schema([*types, *(one for one in _ADDED if one.name not in names)])
        parts, bad = parse(values, types, whole=whole, by_row=by_row, lines=lines, encoded=_encoded(readings))
        self._take_rows(parts, bad, rows, lines, readings)

    def _take_rows(
        self, parts: list[Parsed], bad: Bad, rows: Ints, lines: Lines, readings: list[Reading] | None
    ) -> None:
        self.bad += [(int(rows[i]), why) for i, why in bad]
        keep = frozenset() if self.schema is None else frozenset(self.schema.names)
        for part in parts:
            columns = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
            events = debezium.flattened(columns, rows[part.rows], keep)
            plain = all(_is_number(one.type) for one in part.columns.schema)
            self._finish(events, readings, not plain and self._hidden(lines.data, readings))

    def _are_in_headers(self, rows: Ints) -> bool:
        """Whether the rows stand in headers: written without a schema, whatever the values have."""
        values = self.messages.values
        return all(values[row] is None for row in rows.tolist())

    def _envelopes(
        self, values: Sequence[bytes], lines: Lines, rows: Ints, fields: list[connect.Schema] | None
    ) -> None:
        self.enveloped = True
        readings = self._readings(fields)
        if readings is None and self.decided is not None:
            parts, bad, self.decided = json_columns.decode(values, self.decided, enveloped=True, lines=lines)
            self._take_envelopes(parts, bad, rows, lines, None)
            return
        row_types, whole, by_row = _types(readings)
        row = None if row_types is None else pa.struct(list(row_types))
        full = (
            None if readings is None else pa.struct([(one.field.name, one.wire or one.field.type) for one in readings])
        )
        parts, bad = parse(
            values, debezium.envelope_types(row), whole=whole and row is not None, by_row=by_row,
            full=None if full is None else debezium.envelope_types(full),
            deep=() if whole and row is not None else ("before", "after"), lines=lines, encoded=_encoded(readings),
        )  # fmt: skip
        self._take_envelopes(parts, bad, rows, lines, readings)

    def _take_envelopes(
        self, parts: list[Parsed], bad: Bad, rows: Ints, lines: Lines, readings: list[Reading] | None
    ) -> None:
        self.bad += [(int(rows[i]), why) for i, why in bad]
        for part in parts:
            for events in debezium.envelopes(part.columns, rows[part.rows], declared=readings is not None):
                self.bad += events.bad
                if events.rows.size:
                    self._finish(events, readings, self._hidden(lines.data, readings))

    def _hidden(self, data: bytes, readings: list[Reading] | None) -> bool:
        """Whether some value may stand for one that the source did not send."""
        if readings is not None and all(_is_number(one.wire) for one in readings):
            return False
        return any(mark in data for mark in debezium.placeholder_marks(self.placeholder))

    def _readings(self, fields: list[connect.Schema] | None, *, text_decimals: bool = False) -> list[Reading] | None:
        """How each column is read: as the schema asked for says, else as the messages' schema says; else None."""
        declared = {} if fields is None else {str(one.get("field")): one for one in fields}
        if self.schema is None:
            if fields is None:
                return None
            found = [connect.reading_of(one) for one in declared.values()]
            if not text_decimals:
                return found
            natural = zip(declared.values(), found, strict=True)
            return [connect.reading_as(told, one.field, text_decimals=True) for told, one in natural]
        asked = [
            connect.reading_as(declared[one.name], one, text_decimals=text_decimals)
            if one.name in declared
            else reading(one)
            for one in self.schema
        ]
        # What flattening added is read too.
        names = set(self.schema.names)
        added = [connect.reading_of(one) for name, one in declared.items() if name not in names and name[:2] == "__"]
        return asked + added

    def _readings_in_headers(self, row: bytes) -> list[Reading] | None:
        """How rows in headers are read: those messages with a schema that have the same columns say it."""
        names = object_names(row)
        same = [one for one in self.schemas if [field.get("field") for field in one] == names]
        return self._readings(same[-1] if same else None, text_decimals=True)

    def _finish(self, events: Events, readings: list[Reading] | None, hidden: bool) -> None:
        """Raw columns to the final ones."""
        if any(map(is_meta, events.columns)):
            events = self._without_our_names(events)
        told = None if self.told is None else self.told.take(events.rows)
        if hidden and (told is None or not told.ours.all()):
            events = debezium.mark_unchanged(events, self.placeholder)
        old = self._tell(events, told) if told is not None else None
        if not events.source:
            events.source = self._source()
        if readings is not None:
            names = None if self.schema is None else set(self.schema.names)
            readings = [
                one
                for one in readings
                if (names is not None and one.field.name in names)
                or (names is None and (one.field.name in events.columns or events.enveloped))
            ]
        self._convert(events, readings, old if old is not None else readings)

    def _without_our_names(self, events: Events) -> Events:
        """Envelopes of a table that has a column of a name of Headrace's own: rows with a value there are refused."""
        named = [name for name in events.columns if is_meta(name)]
        for name in named:
            found = np.flatnonzero(np.asarray(events.columns[name].is_valid()))
            reason = f"a column «{name}», a name of Headrace's own"
            self.bad += [(int(events.rows[row]), reason) for row in found.tolist()]
            events = events.take(np.setdiff1d(np.arange(events.rows.size), found)) if found.size else events
        events.columns = {name: array for name, array in events.columns.items() if name not in named}
        if events.before is not None:
            events.before = {name: array for name, array in events.before.items() if name not in named}
        return events

    def _source(self) -> str:
        if self.told is not None and self.told.source is not None:
            return self.told.source
        return topic_source(self.messages.topic)

    def _tell(self, events: Events, told: EventHeaders) -> list[Reading] | None:
        """What the headers say goes before what the values say; how old rows in headers are read."""
        events.op = np.where(told.op > 0, told.op, events.op).astype(np.uint8)
        events.lsn = np.where(told.ours, told.lsn, events.lsn)
        events.order = np.where(told.ours, told.index, events.order)
        events.ts_us = np.where(told.ts_us >= 0, told.ts_us, events.ts_us)
        if told.source is not None:
            events.source = told.source
        if told.unchanged is not None:
            lists = [None if one is None else json.loads(one) for one in told.unchanged]
            known = events.unchanged or [None] * len(lists)
            events.unchanged = [new or old for new, old in zip(lists, known, strict=True)]
        return None if told.before is None else self._old_rows(events, told.before)

    def _old_rows(self, events: Events, before: Cells) -> list[Reading] | None:
        where = np.array([i for i, one in enumerate(before) if one is not None], np.int64)
        if not where.size:
            return None
        readings = self._readings_in_headers(next(one for one in before if one is not None))
        types, whole, by_row = _types(readings)
        parts, bad = parse([one for one in before if one is not None], types, whole=whole, by_row=by_row)
        self.bad += [(int(events.rows[where[i]]), f"header «__before»: {why}") for i, why in bad]
        if not parts:
            return None
        found: list[tuple[pa.RecordBatch, Ints]] = []
        for part in parts:
            columns, kept, wrong = _in_final_types(part.columns, readings, found[0][0].schema if found else None)
            self.bad += [(int(events.rows[where[part.rows[i]]]), f"header «__before»: {why}") for i, why in wrong]
            found.append((columns, where[part.rows[kept]]))
        rows = np.concatenate([at for _, at in found])
        table = pa.Table.from_batches([columns for columns, _ in found]).combine_chunks()
        n = events.rows.size
        at = np.zeros(n, np.int64)
        has = np.zeros(n, bool)
        at[rows], has[rows] = np.arange(rows.size), True
        events.before = {one.name: _spread(table.column(one.name), at, has) for one in table.schema}
        events.has_before = has
        return None if readings is None else [Reading(one.field, None, lambda array: array) for one in readings]

    def _convert(self, events: Events, readings: list[Reading] | None, old: list[Reading] | None = None) -> None:
        n = events.rows.size
        if readings is None:
            records = _records(list(events.columns.items()), n)
            self.found.append(Rows(records, events, _natural_before(events, records)))
            return
        columns: list[tuple[pa.Field, pa.Array]] = []
        reasons: dict[int, str] = {}
        for one in readings:
            raw = events.columns.get(one.field.name)
            array, bad = (pa.nulls(n, one.field.type), []) if raw is None else fitting(raw, one)
            columns.append((one.field, array))
            for row, why in bad:
                reasons[row] = f"{reasons[row]}; {why}" if row in reasons else why
        before = _before(events, readings if old is None else old, reasons)
        if not reasons:
            self.found.append(Rows(_of_fields(columns, n), events, before))
            return
        self.bad += [(int(events.rows[row]), reasons[row]) for row in sorted(reasons)]
        odd = np.array(sorted(reasons), np.int64)
        if odd.size < n:
            kept = np.setdiff1d(np.arange(n), odd)
            self.found.append(assemble.take(Rows(_of_fields(columns, n), events, before), kept))

    # --- messages without a value ---

    def _tombstones(self, values: Cells) -> None:
        silent = None if self.told is None else self.told.tombstone
        none = [i for i, value in enumerate(values) if value is None] if None in values else []
        empty = [np.array(none, np.int64), *self.nulls]
        rows = np.sort(np.concatenate(empty))
        if silent is not None:
            rows = rows[~silent[rows]]
        if not rows.size:
            return
        ours = np.zeros(rows.size, bool) if self.told is None else self.told.ours[rows]
        foreign = rows[~ours]
        foreign = foreign[:0] if self.envelope or self.enveloped else self._not_behind_deletes(foreign)
        rows = np.sort(np.concatenate([rows[ours], foreign]))
        for group, where in self._neighbours(rows):
            self._deletes(where, group)

    def _not_behind_deletes(self, rows: Ints, themselves: Mask | None = None) -> Ints:
        """Those whose predecessor in their partition is not the delete of the same key; ``themselves`` are none."""
        if not rows.size or not self.found:
            return rows
        n = len(self.messages)
        deleted = np.zeros(n, bool)
        for one in self.found:
            deleted[one.events.rows[one.events.op == OPS["d"]]] = True
        if themselves is not None:
            deleted &= ~themselves
        if not deleted.any():
            return rows
        order = np.argsort(self.messages.partitions, kind="stable")
        previous = np.full(n, -1)
        same = self.messages.partitions[order[1:]] == self.messages.partitions[order[:-1]]
        previous[order[1:][same]] = order[:-1][same]
        keys = self.messages.keys
        candidates = (previous[rows] >= 0) & deleted[previous[rows]]
        behind = np.array(
            [bool(c) and keys[i] == keys[p] for i, p, c in zip(rows, previous[rows], candidates, strict=True)]
        )
        kept: Ints = rows[~behind]
        return kept

    def _neighbours(self, rows: Ints) -> list[tuple[Rows | None, Ints]]:
        """The rows without a value by the group of rows before them, or else behind them, whose columns they share."""
        groups = list(self.found)
        if not groups or self.schema is not None:
            return [(groups[0] if groups else None, rows)] if rows.size else []
        message = np.concatenate([one.events.rows for one in groups])
        group = np.repeat(np.arange(len(groups)), [one.events.rows.size for one in groups])
        order = np.argsort(message, kind="stable")
        at = np.maximum(np.searchsorted(message[order], rows) - 1, 0)
        nearest = group[order][at]
        return [(groups[int(one)], rows[nearest == one]) for one in np.unique(nearest)]

    def _deletes(self, rows: Ints, like: Rows | None) -> None:
        """Deletes (and our truncates) of which there is nothing but a key."""
        columns, rows, bad = self.keys.columns_of(rows, self.schema)
        self.bad += bad
        if not rows.size:
            return
        events = debezium.blank(columns, rows, "d")
        events.source = self._source() if like is None else like.events.source
        if self.told is not None:
            self._tell(events, self.told.take(rows))
        events.before = events.has_before = None
        schema = self.schema if self.schema is not None else None if like is None else like.records.schema
        if self.schema is None and self.decided is not None and columns:
            schema = None  # keys with a schema of their own say their types
        elif self.schema is None and self.decided is not None and self.decided.fields:
            schema = pa.schema([one for one in self.decided.schema if not debezium.is_used(one.name)])
        if schema is None:
            self._convert(events, None)
            return
        arrays, wrong = [], {}
        for one in schema:
            raw = columns.get(one.name)
            array, misfits = (pa.nulls(rows.size, one.type), []) if raw is None else fitting(raw, _key_reading(one))
            arrays.append((one, array))
            wrong.update({row: f"key: {why}" for row, why in misfits})
        done = Rows(_of_fields(arrays, rows.size), events)
        if wrong:
            self.bad += [(int(rows[row]), why) for row, why in wrong.items()]
            done = assemble.take(done, np.setdiff1d(np.arange(rows.size), np.array(list(wrong))))
        self.found.append(done)


def _is_row(key: bytes | None) -> bool:
    """Whether a key is a JSON object without a schema."""
    return key is not None and key[:1] == b"{" and not key.startswith(b'{"schema":') and bool(object_names(key))


def _key_reading(field: pa.Field) -> Reading:
    return Reading(field, None, lambda array: to_type(array, field.type))


def _types(readings: list[Reading] | None) -> tuple[pa.Schema | None, bool, bool]:
    """What Arrow's reader is told: raw types, whether they are all there is, and whether it cannot read them at all."""
    if readings is None:
        return None, False, False
    known = [(one.field.name, one.wire) for one in readings if one.wire is not None]
    types = pa.schema(known)
    by_row = any(_has_map(one.field.type) for one in readings)
    if by_row:  # rows are read one by one, guided by the types that result
        types = pa.schema([(one.field.name, one.wire or one.field.type) for one in readings])
        return types, True, True
    return types, len(known) == len(readings) or not readings, False


def _encoded(readings: list[Reading] | None) -> frozenset[str]:
    return frozenset(one.field.name for one in readings or () if one.encoded)


def _is_number(wire: pa.DataType | None) -> bool:
    return wire is not None and (pa.types.is_primitive(wire) or pa.types.is_decimal(wire))


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_map(kind.value_type)
    return pa.types.is_map(kind) or any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def _in_final_types(
    raw: pa.RecordBatch, readings: list[Reading] | None, schema: pa.Schema | None
) -> tuple[pa.RecordBatch, Ints, list[tuple[int, str]]]:
    """Rows in their final types, or else in those of ``schema``; which rows fit, and why the others do not."""
    if readings is None:
        readings = [reading(one) for one in (raw.schema if schema is None else schema)]
    reasons: dict[int, str] = {}
    columns = []
    for one in readings:
        known = one.field.name in raw.schema.names
        array, bad = fitting(raw.column(one.field.name), one) if known else (pa.nulls(len(raw), one.field.type), [])
        columns.append((one.field, array))
        reasons.update(bad)
    kept = np.setdiff1d(np.arange(len(raw)), np.array(list(reasons), np.int64))
    records = _of_fields(columns, len(raw))
    return take_records(records, kept) if reasons else records, kept, list(reasons.items())


def _spread(column: pa.ChunkedArray, at: Ints, has: Mask) -> pa.Array:
    """Values at the rows that have one, nulls between."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
    pieces = []
    for start, end in json_shapes.runs(has):
        pieces.append(take(array, at[start:end]) if has[start] else pa.nulls(end - start, array.type))
    return pa.concat_arrays(pieces)


def _records(columns: Sequence[tuple[str, pa.Array]], n: int) -> pa.RecordBatch:
    return _of_fields([(pa.field(name, array.type), array) for name, array in columns], n)


def _of_fields(columns: Sequence[tuple[pa.Field, pa.Array]], n: int) -> pa.RecordBatch:
    if not columns:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * n, pa.struct([])))
    return pa.RecordBatch.from_arrays([array for _, array in columns], schema=pa.schema([one for one, _ in columns]))


def _natural_before(events: Events, records: pa.RecordBatch) -> pa.StructArray | None:
    if events.before is None or events.has_before is None or not records.num_columns:
        return None
    n = events.rows.size
    children = []
    for name, array in zip(records.schema.names, records.columns, strict=True):
        old = events.before.get(name, pa.nulls(n))
        children.append(pa.nulls(n, array.type) if pa.types.is_null(old.type) else old)
    fields = [pa.field(name, child.type) for name, child in zip(records.schema.names, children, strict=True)]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(~events.has_before))


def _before(events: Events, readings: list[Reading], reasons: dict[int, str]) -> pa.StructArray | None:
    """Old rows of updates in the final types; one that does not fit makes its event odd."""
    if events.before is None or events.has_before is None or not readings:
        return None
    n = events.rows.size
    children = []
    for one in readings:
        raw = events.before.get(one.field.name)
        array, bad = (pa.nulls(n, one.field.type), []) if raw is None else fitting(raw, one)
        children.append(array)
        for row, why in bad:
            if events.has_before[row]:
                reasons[row] = f"{reasons[row]}; before: {why}" if row in reasons else f"before: {why}"
    fields = [one.field for one in readings]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(~events.has_before))
