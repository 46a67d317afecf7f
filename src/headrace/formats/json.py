"""The JSON formats: flattened rows or Debezium's envelopes, with or without schemas, all in one topic if need be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch
from headrace.formats import connect, debezium, json_columns, json_shapes
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.change_events import ChangeEvents
from headrace.formats.coerce import Reading, encoded_columns, raw_types, reading, to
from headrace.formats.debezium import PLACEHOLDER, Events
from headrace.formats.flat_values import encode_texts
from headrace.formats.headers import Cells
from headrace.formats.json_columns import Column
from headrace.formats.json_keys import KeyReader, check_key_format, write_keys
from headrace.formats.json_parse import Bad, Lines, Parsed, object_names, parse
from headrace.formats.json_text import TEXT, Known, cells, joined, objects, quoted
from headrace.formats.key_changes import row_messages
from headrace.wire import Encoded, WireMessages


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """JSON as Kafka Connect's JsonConverter and Debezium write it.

    Values have Debezium's forms (`formats.json_text` has the table). What an event was travels in headers
    (`formats.headers`), so that a batch comes back from its messages without loss.

    Reading recognises each message: one topic may hold flattened rows, envelopes, and either with a schema. Without a
    schema, neither asked for nor sent along, types are what the values look like (`formats.json_parse`). A null value
    is the delete of its key, unless it stands behind a delete; in a topic that holds envelopes (this format says so,
    or one of the messages is one) it is no event.

    Args:
        schemas: write the schema with every value and key.
        envelope: write change events with ``before``, ``after`` and ``source``; in a topic of such events a null value
            is no event.
        tombstones: write a null value behind every delete of an envelope.
        key: how keys are written, one of «json», «json+schema», «string», «bytes», «none»; None: as the values,
            without an envelope. Reading takes any of the JSON forms by itself.
        placeholder: what Debezium writes for a value that the source did not send.

    >>> batch = Batch.of({"id": [7], "name": ["x"]}, lsn=26421800, key=["id"])
    >>> encoded = JsonFormat().encode("t", batch)
    >>> encoded.keys, encoded.values
    ([b'{"id":7}'], [b'{"id":7,"name":"x"}'])
    """

    schemas: bool = False
    envelope: bool = False
    tombstones: bool = True
    key: str | None = None
    placeholder: str = PLACEHOLDER

    def __post_init__(self) -> None:
        check_key_format(self.key)

    @property
    def name(self) -> str:
        """``json``, ``json+schema``, ``json+envelope`` or ``json+envelope+schema``."""
        return "json" + ("+envelope" if self.envelope else "") + ("+schema" if self.schemas else "")

    def decode(self, messages: WireMessages, schema: pa.Schema | None = None, preceding: Preceding = FIRST) -> Decoded:
        """Return the events of the messages; ``headrace.key`` in the schema's metadata says the key columns.

        Where no schema came along, types are those that ``preceding.columns`` had, as these rows change them
        (`formats.json_columns`); without those, what the values look like.
        """
        names = None if schema is None else (schema.metadata or {}).get(b"headrace.key")
        keys = KeyReader(messages, None if names is None else json.loads(names), self.key)
        return JsonReader(messages, schema, self.envelope, keys, self.placeholder, preceding).decode()

    def encode(self, topic: str, batch: Batch) -> Encoded:
        """Messages for the rows."""
        key = self.key or ("json+schema" if self.schemas else "json")
        if self.envelope:
            return enveloped(topic, batch, schemas=self.schemas, key=key, tombstones=self.tombstones)
        return flattened(topic, batch, schemas=self.schemas, key=key)


# -- reading --

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
class JsonReader:
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
            if code in (json_shapes.ROW, json_shapes.ENVELOPE):
                self._take(run, joined, where, None, enveloped=code == json_shapes.ENVELOPE)

    def _with_schemas(self, values: Sequence[bytes], rows: Ints) -> None:
        for start, end, schema, found in json_shapes.payloads(values):
            where = rows[start:end]
            if isinstance(found, str):
                self.events.bad += [(row, found) for row in where.tolist()]
                continue
            if NULL in found:
                missing = np.array([payload == NULL for payload in found])
                self.nulls.append(where[missing])
                found, where = [payload for payload in found if payload != NULL], where[~missing]
            if not found:
                continue
            if schema is None:
                self._read(found, where)
            elif str(schema.get("name")).startswith("io.debezium.connector."):
                continue  # a logical message, a transaction, a heartbeat: no row
            elif connect.is_envelope(schema):
                self._take(found, Lines(found), where, connect.row_fields(schema), enveloped=True)
            elif (fields := connect.row_fields(schema)) is None:
                self.events.bad += [
                    (row, f"a payload of type {schema.get('type')}, not a struct") for row in where.tolist()
                ]
            else:
                self.schemas.append(fields)
                self._take(found, Lines(found), where, fields)

    def _take(
        self,
        values: Sequence[bytes],
        lines: Lines,
        rows: Ints,
        fields: list[connect.Schema] | None,
        *,
        enveloped: bool = False,
    ) -> None:
        """Add the events of messages of one shape, rows or envelopes, with or without a schema."""
        if enveloped:
            self.events.saw_envelopes(rows)
        # Rows in headers are written without a schema, whatever the values have.
        in_headers = not (enveloped or fields is not None or self.events.headers is None) and self._are_empty(rows)
        readings = self._readings_in_headers(values[0]) if in_headers else self._readings(fields)
        if readings is None and self.decided is not None and not in_headers:
            parts, bad, self.decided = json_columns.decode(values, self.decided, enveloped=enveloped, lines=lines)
        else:
            parts, bad = (self._parsed_envelopes if enveloped else self._parsed_rows)(values, lines, readings)
        self.events.bad += [(int(rows[i]), why) for i, why in bad]
        keep = frozenset() if self.schema is None else frozenset(self.schema.names)
        for part in parts:
            where = rows[part.rows]
            if enveloped:
                found, plain = debezium.envelopes(part.columns, where, declared=readings is not None), False
            else:
                columns = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
                found = [debezium.flattened(columns, where, keep)]
                plain = all(_is_number(column.type) for column in part.columns.schema)
            for events in found:
                self._add(events, readings, not plain and self._hidden(lines.data, readings))

    def _are_empty(self, rows: Ints) -> bool:
        values = self.messages.values
        return all(values[row] is None for row in rows.tolist())

    def _parsed_rows(
        self, values: Sequence[bytes], lines: Lines, readings: list[Reading] | None
    ) -> tuple[list[Parsed], Bad]:
        types, whole, by_row = raw_types(readings)
        if types is not None and self.schema is not None and b"__" in lines.data:
            names = set(types.names)
            types = pa.schema([*types, *(item for item in _ADDED if item.name not in names)])
        return parse(values, types, whole=whole, by_row=by_row, lines=lines, encoded=encoded_columns(readings))

    def _parsed_envelopes(
        self, values: Sequence[bytes], lines: Lines, readings: list[Reading] | None
    ) -> tuple[list[Parsed], Bad]:
        row_types, whole, by_row = raw_types(readings)
        row = None if row_types is None else pa.struct(list(row_types))
        full = None
        if readings is not None:
            full = pa.struct([(column.field.name, column.wire or column.field.type) for column in readings])
        whole = whole and row is not None
        return parse(
            values, debezium.envelope_types(row), whole=whole, by_row=by_row,
            full=None if full is None else debezium.envelope_types(full),
            deep=() if whole else ("before", "after"), lines=lines, encoded=encoded_columns(readings),
        )  # fmt: skip

    def _add(self, events: Events, readings: list[Reading] | None, hidden: bool) -> None:
        if readings is not None and self.schema is not None:  # without what flattening added
            readings = [column for column in readings if column.field.name in self.schema.names]
        elif readings is not None and not events.enveloped:
            readings = [column for column in readings if column.field.name in events.columns]
        self.events.add(events, readings, hidden=hidden)

    def _hidden(self, data: bytes, readings: list[Reading] | None) -> bool:
        """Return whether some value may stand for one that the source did not send."""
        if readings is not None and all(_is_number(column.wire) for column in readings):
            return False
        return any(mark in data for mark in debezium.placeholder_marks(self.placeholder))

    def _readings(self, fields: list[connect.Schema] | None, *, text_decimals: bool = False) -> list[Reading] | None:
        """Return how to read each column: as the schema asked for says, else as the messages' own; else None."""
        declared = {} if fields is None else {str(child.get("field")): child for child in fields}
        if self.schema is None:
            if fields is None:
                return None
            found = [connect.reading_of(value) for value in declared.values()]
            if not text_decimals:
                return found
            natural = zip(declared.values(), found, strict=True)
            return [connect.reading_as(declaration, one.field, text_decimals=True) for declaration, one in natural]
        asked = [
            connect.reading_as(declared[column.name], column, text_decimals=text_decimals)
            if column.name in declared
            else reading(column)
            for column in self.schema
        ]
        # What flattening added is read too.
        names = set(self.schema.names)
        added = [connect.reading_of(one) for name, one in declared.items() if name not in names and name[:2] == "__"]
        return asked + added

    def _readings_in_headers(self, row: bytes) -> list[Reading] | None:
        """Return how to read rows in headers: messages with a schema that have the same columns say it."""
        names = object_names(row)
        same = [choice for choice in self.schemas if [field.get("field") for field in choice] == names]
        return self._readings(same[-1] if same else None, text_decimals=True)


def _is_row(key: bytes | None) -> bool:
    """Return whether a key is a JSON object without a schema."""
    return key is not None and key[:1] == b"{" and not key.startswith(b'{"schema":') and bool(object_names(key))


def _key_reading(field: pa.Field) -> Reading:
    return Reading(field, None, to(field.type))


def _is_number(wire: pa.DataType | None) -> bool:
    return wire is not None and (pa.types.is_primitive(wire) or pa.types.is_decimal(wire))


# -- writing --


def flattened(topic: str, batch: Batch, *, schemas: bool, key: str) -> Encoded:
    """One message for each row: the columns as an object; deletes and truncates have no value.

    Before a row whose key changed goes a null for the old one (`key_changes`).
    """
    rows = batch.rows
    columns = list(zip(rows.schema.names, rows.columns, strict=True))
    known: Known | None = {} if schemas == (key == "json+schema") else None
    texts = objects(columns, batch.num_rows, binary_decimals=schemas, known=known)
    if schemas:
        texts = _with_schema(topic, rows.schema, texts, envelope=False)
    return encode_texts(topic, batch, texts, key, known=known)


def enveloped(topic: str, batch: Batch, *, schemas: bool, key: str, tombstones: bool) -> Encoded:
    """One change event for each row; where tombstones are wanted, one behind each delete, one for each changed key."""
    rows, n, op = batch.rows, batch.num_rows, batch.op
    columns = list(zip(rows.schema.names, rows.columns, strict=True))
    row = objects(columns, n, binary_decimals=schemas)
    none = pa.scalar(None, TEXT)
    deleted, truncated = op == OPS["d"], op == OPS["t"]
    after = pc.if_else(pa.array(deleted | truncated), none, row) if (deleted | truncated).any() else row
    before: pa.Array | str = pc.if_else(pa.array(deleted), row, none) if deleted.any() else "null"
    if batch.before is not None and batch.before.null_count < n:
        old = _old_rows(batch.before, schemas)
        before = pc.if_else(pa.array(deleted), row, old)
    letters = _LETTERS.take(pa.array(op))
    parts = ['{"before":', before, ',"after":', after, *_source(topic, batch)]
    texts = joined([*parts, ',"transaction":null,"op":"', letters, '"', *_times(batch.ts_us), "}"], n)
    if schemas:
        texts = _with_schema(topic, rows.schema, texts, envelope=True)
    return row_messages(
        topic,
        batch,
        cells(texts),
        lambda some: (write_keys(topic, some, key), ()),
        envelope=True,
        tombstones=tombstones,
    )


def _old_rows(before: pa.StructArray, schemas: bool) -> pa.Array:
    children = [(column.name, child) for column, child in zip(before.type, before.flatten(), strict=True)]
    texts = objects(children, len(before), binary_decimals=schemas)
    return pc.if_else(before.is_valid(), texts, pa.scalar(None, TEXT))


_LETTERS = pa.array([chr(code) for code in range(128)], TEXT)


def _source(topic: str, batch: Batch) -> list[str | pa.Array]:
    """Debezium's source block, as far as a batch knows it."""
    ts = batch.ts_us
    lsn = pa.array(batch.lsn.view(np.int64)).cast(TEXT)  # signed, as Java's
    snapshot = batch.op == OPS["r"]
    parts = topic.split(".")
    schema, table = (parts[-2], parts[-1]) if len(parts) > 1 else ("", parts[-1])
    head = f',"source":{{"version":{quoted(_version())},"connector":"postgresql","name":{quoted(batch.source)},"ts_ms":'
    marks = pc.if_else(pa.array(snapshot), "true", "false").cast(TEXT)
    quote = '\\"'
    own = joined(['"[', quote, lsn, f"{quote},{quote}", lsn, quote, ']"'], batch.num_rows)
    snapshot_own = joined([f'"[null,{quote}', lsn, f'{quote}]"'], batch.num_rows)
    sequence = pc.if_else(pa.array(snapshot), snapshot_own, own) if snapshot.any() else own
    return [
        head,
        _millis(ts),
        ',"snapshot":"',
        marks,
        '","db":"","sequence":',
        sequence,
        *_times(ts)[2:],
        f',"schema":{quoted(schema)},"table":{quoted(table)},"txId":null,"lsn":',
        lsn,
        ',"xmin":null,"origin":null,"origin_lsn":null}',
    ]


@lru_cache(maxsize=1)
def _version() -> str:
    return f"headrace {version('headrace')}"


def _times(ts_us: Ints) -> list[str | pa.Array]:
    nanos = ts_us.astype(object) * 1000 if np.abs(ts_us).max(initial=0) > np.iinfo(np.int64).max // 1000 else None
    texts = pa.array(ts_us * 1000 if nanos is None else [str(number) for number in nanos]).cast(TEXT)
    return [',"ts_ms":', _millis(ts_us), ',"ts_us":', pa.array(ts_us).cast(TEXT), ',"ts_ns":', texts]


def _millis(ts_us: Ints) -> pa.Array:
    return pa.array(ts_us // 1000).cast(TEXT)


def _with_schema(topic: str, schema: pa.Schema, payloads: pa.Array, *, envelope: bool) -> pa.Array:
    """Payloads with the Connect schema of a topic's rows or change events; its text is made once for each schema."""
    text = _schema_text(topic, schema.serialize().to_pybytes(), envelope)
    return joined([f'{{"schema":{text},"payload":', payloads, "}"], len(payloads))


@lru_cache(maxsize=256)
def _schema_text(topic: str, serialized: bytes, envelope: bool) -> str:
    fields = list(pa.ipc.read_schema(pa.py_buffer(serialized)))
    found = connect.envelope_schema(fields, topic) if envelope else connect.struct_schema(fields, f"{topic}.Value")
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))
