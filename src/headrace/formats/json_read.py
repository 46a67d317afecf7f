"""JSON messages to rows: with and without schemas, with and without envelopes, all in one topic if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.formats import connect, debezium, json_columns, json_shapes
from headrace.formats.base import Decoded, Preceding
from headrace.formats.change_events import ChangeEvents
from headrace.formats.coerce import Reading, reading, to_type
from headrace.formats.debezium import Events
from headrace.formats.headers import Cells
from headrace.formats.json_columns import Column
from headrace.formats.json_keys import KeyReader
from headrace.formats.json_parse import Bad, Lines, Parsed, encoded_columns, object_names, parse, raw_types
from headrace.wire import WireMessages

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
    keys: KeyReader
    placeholder: str
    preceding: Preceding
    events: ChangeEvents = field(init=False)
    nulls: list[Ints] = field(default_factory=list)  # messages without a value, beside those of the broker
    schemas: list[list[connect.Schema]] = field(default_factory=list)  # of rows, as the messages have them
    decided: Column | None = field(init=False)  # the topic's columns so far, where no schema is asked for
    keyed: Mask | None = None  # deletes whose row is their key's, read among the other rows

    def __post_init__(self) -> None:
        self.decided = None if self.schema is not None else self.preceding.columns
        self.events = ChangeEvents(
            self.messages,
            self.schema,
            self.keys,
            replace(self.preceding, enveloped=self.preceding.enveloped or self.envelope),
            reading_of=_key_reading,
            header_readings=lambda row, _: self._readings_in_headers(row),
            placeholder=self.placeholder,
        )

    def decode(self) -> Decoded:
        """Return the events of all messages."""
        messages = self.messages
        if not len(messages) or messages.topic.startswith(_HEARTBEATS):
            return Decoded(preceding=self.preceding)
        values = self._values()
        valued = np.arange(len(values))
        if None in values:
            valued = np.array([i for i, value in enumerate(values) if value is not None], np.int64)
        if valued.size:
            chosen = values if valued.size == len(values) else [values[i] for i in valued.tolist()]
            self._read(chosen, valued)  # type: ignore[arg-type]  # no None is left
        if self.decided is not None:
            own = [column for column in self.decided.schema if not debezium.is_used(column.name)]
            self.events.decided = pa.schema(own if self.decided.fields else [])
        if valued.size < len(values) or self.nulls:
            empty = np.setdiff1d(np.arange(len(values)), valued, assume_unique=True)
            self.events.add_nulls(np.concatenate([empty, *self.nulls]))
        if self.keyed is not None:
            self.events.delete_keyed(self.keyed)
        decoded = self.events.decoded()
        return replace(decoded, preceding=replace(decoded.preceding, columns=self.decided))

    def _values(self) -> Cells:
        """Values of the messages; of our deletes, the row that stands in a header.

        Connect's JsonConverter without schemas writes the text ``null`` for a record whose value is null and whose
        schema is not: every delete of Debezium's flattening in its default mode.
        """
        values = self.messages.values
        if NULL in values:
            values = [None if value == NULL else value for value in values]
        if self.events.headers is None or self.events.headers.row is None:
            return values if self.decided is None or self.envelope or None not in values else self._with_keys(values)
        return [row if value is None else value for value, row in zip(values, self.events.headers.row, strict=True)]

    def _with_keys(self, values: Cells) -> Cells:
        """The rows of deletes that are nothing but a key: they decide what columns are in their turn."""
        keys = self.messages.keys
        ours = np.zeros(len(values), bool) if self.events.headers is None else self.events.headers.ours
        found = [value is None and not own and _is_row(key) for value, key, own in zip(values, keys, ours, strict=True)]
        self.keyed = np.array(found)
        return [key if keyed else value for value, key, keyed in zip(values, keys, found, strict=True)]

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
        in_order = self.decided is not None and (self.events.headers is None or self.events.headers.row is None)
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
                self.events.bad += [(row, found) for row in where.tolist()]
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
                self.events.bad += [
                    (row, f"a payload of type {schema.get('type')}, not a struct") for row in where.tolist()
                ]
            else:
                self.schemas.append(fields)
                self._rows(found, Lines(found), where, fields)

    def _rows(self, values: Sequence[bytes], lines: Lines, rows: Ints, fields: list[connect.Schema] | None) -> None:
        in_headers = fields is None and self.events.headers is not None and self._are_in_headers(rows)
        readings = self._readings_in_headers(values[0]) if in_headers else self._readings(fields)
        if readings is None and self.decided is not None and not in_headers:
            parts, bad, self.decided = json_columns.decode(values, self.decided, lines=lines)
            self._take_rows(parts, bad, rows, lines, None)
            return
        types, whole, by_row = raw_types(readings)
        if types is not None and self.schema is not None and b"__" in lines.data:
            names = set(types.names)
            types = pa.schema([*types, *(one for one in _ADDED if one.name not in names)])
        parts, bad = parse(values, types, whole=whole, by_row=by_row, lines=lines, encoded=encoded_columns(readings))
        self._take_rows(parts, bad, rows, lines, readings)

    def _take_rows(
        self, parts: list[Parsed], bad: Bad, rows: Ints, lines: Lines, readings: list[Reading] | None
    ) -> None:
        self.events.bad += [(int(rows[i]), why) for i, why in bad]
        keep = frozenset() if self.schema is None else frozenset(self.schema.names)
        for part in parts:
            columns = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
            events = debezium.flattened(columns, rows[part.rows], keep)
            plain = all(_is_number(one.type) for one in part.columns.schema)
            self._add(events, readings, not plain and self._hidden(lines.data, readings))

    def _are_in_headers(self, rows: Ints) -> bool:
        """Whether the rows stand in headers: written without a schema, whatever the values have."""
        values = self.messages.values
        return all(values[row] is None for row in rows.tolist())

    def _envelopes(
        self, values: Sequence[bytes], lines: Lines, rows: Ints, fields: list[connect.Schema] | None
    ) -> None:
        self.events.saw_envelopes(rows)
        readings = self._readings(fields)
        if readings is None and self.decided is not None:
            parts, bad, self.decided = json_columns.decode(values, self.decided, enveloped=True, lines=lines)
            self._take_envelopes(parts, bad, rows, lines, None)
            return
        row_types, whole, by_row = raw_types(readings)
        row = None if row_types is None else pa.struct(list(row_types))
        full = (
            None if readings is None else pa.struct([(one.field.name, one.wire or one.field.type) for one in readings])
        )
        parts, bad = parse(
            values, debezium.envelope_types(row), whole=whole and row is not None, by_row=by_row,
            full=None if full is None else debezium.envelope_types(full),
            deep=() if whole and row is not None else ("before", "after"), lines=lines,
            encoded=encoded_columns(readings),
        )  # fmt: skip
        self._take_envelopes(parts, bad, rows, lines, readings)

    def _take_envelopes(
        self, parts: list[Parsed], bad: Bad, rows: Ints, lines: Lines, readings: list[Reading] | None
    ) -> None:
        self.events.bad += [(int(rows[i]), why) for i, why in bad]
        for part in parts:
            for events in debezium.envelopes(part.columns, rows[part.rows], declared=readings is not None):
                self._add(events, readings, self._hidden(lines.data, readings))

    def _add(self, events: Events, readings: list[Reading] | None, hidden: bool) -> None:
        if readings is not None and self.schema is not None:  # without what flattening added
            readings = [column for column in readings if column.field.name in self.schema.names]
        elif readings is not None and not events.enveloped:
            readings = [column for column in readings if column.field.name in events.columns]
        self.events.add(events, readings, hidden=hidden)

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


def _is_row(key: bytes | None) -> bool:
    """Whether a key is a JSON object without a schema."""
    return key is not None and key[:1] == b"{" and not key.startswith(b'{"schema":') and bool(object_names(key))


def _key_reading(field: pa.Field) -> Reading:
    return Reading(field, None, lambda array: to_type(array, field.type))


def _is_number(wire: pa.DataType | None) -> bool:
    return wire is not None and (pa.types.is_primitive(wire) or pa.types.is_decimal(wire))
