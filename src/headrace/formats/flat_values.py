"""Rows of messages whose values have columns and nothing else: what an event was, headers and keys say.

A header also has the row where the value does not say all of it (`headers`, ``__row``). It counts where it has the very
columns that are asked for: what somebody else wrote is read the same with and without a schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.formats import debezium
from headrace.formats.base import Decoded, Preceding
from headrace.formats.change_events import ChangeEvents
from headrace.formats.coerce import Reading, columns_of, reading
from headrace.formats.debezium import Events
from headrace.formats.json_keys import KeyReader, names_in, write_keys
from headrace.formats.json_parse import Bad
from headrace.formats.json_text import Known, cells
from headrace.formats.key_changes import Keys, row_messages
from headrace.wire import Encoded, Headers, WireMessages

ParsedColumns = tuple[dict[str, pa.Array], Ints]


def encode_texts(
    topic: str, batch: Batch, texts: pa.Array, key: str, *, whole: bool = True, known: Known | None = None
) -> Encoded:
    """A value for every row but deletes and truncates; before a row whose key changed a null for the old one.

    Args:
        whole: whether the texts say all of the rows; else headers have them too.
        known: JSON of columns that is there already, as `write_keys` takes it.
    """

    def write(rows: Batch) -> tuple[Keys, Headers]:
        return write_keys(topic, rows, key, known=known if rows is batch else None), ()

    return row_messages(topic, batch, cells(texts), write, whole=whole)


def utf8(values: Sequence[bytes]) -> tuple[list[tuple[int, str]], Bad]:
    texts: list[tuple[int, str]] = []
    bad: Bad = []
    for i, value in enumerate(values):
        try:
            texts.append((i, value.decode()))
        except UnicodeDecodeError as error:
            bad.append((i, f"invalid UTF-8 at byte {error.start}"))
    return texts, bad


def decode_values(
    messages: WireMessages,
    schema: pa.Schema | None,
    preceding: Preceding,
    key: str | None,
    parse: Callable[[Sequence[bytes]], tuple[list[ParsedColumns], Bad]],
    *,
    single: pa.DataType | None = None,
) -> Decoded:
    """Return the events of values that `parse` makes columns of; ``single``: of one column, beside which keys are one.

    A header has the row of a message without a value, or with one that does not say all of it.
    """
    if not len(messages):
        return Decoded(preceding=preceding)
    metadata = {} if schema is None else schema.metadata or {}
    known = json.loads(metadata[b"headrace.key"]) if b"headrace.key" in metadata else None
    own = KeyReader(messages, known, key)
    keys = own if single is None else ValueKeys(messages, single, own)
    events = ChangeEvents(messages, schema, keys, preceding, reading_of=_reading)
    columns_asked = pa.schema([("key", single), ("value", single)]) if schema is None and single is not None else schema
    done = _rows_in_headers(events, columns_asked)
    if single is not None and not pa.types.is_binary(single):
        odd = _keys_that_are_no_text(messages)
        events.bad += odd
        done |= {i for i, _ in odd}
    left = [i for i in range(len(messages)) if i not in done]
    valued = np.array([i for i in left if messages.values[i] is not None], np.int64)
    parts, wrong = parse([messages.values[i] or b"" for i in valued.tolist()]) if valued.size else ([], [])
    events.bad += [(int(valued[i]), why) for i, why in wrong]
    asked = frozenset() if schema is None else frozenset(schema.names)
    for columns, where in parts:
        if isinstance(keys, ValueKeys):
            columns = {**keys.column(valued[where], schema), **columns}
        _add(events, debezium.flattened(columns, valued[where], asked), schema)
    events.add_nulls(np.array([i for i in left if messages.values[i] is None], np.int64))
    return events.decoded()


@dataclass(frozen=True, slots=True)
class ValueKeys:
    """Keys that are a column ``key`` beside the column ``value``."""

    messages: WireMessages
    kind: pa.DataType
    own: KeyReader

    def names_of(self, rows: Ints, schema: pa.Schema) -> tuple[str, ...]:
        """Return ``key`` where the rows have it, and no other name is known."""
        return ("key",) if self.own.known is None and "key" in schema.names else self.own.names_of(rows, schema)

    def columns_of(self, rows: Ints, schema: pa.Schema | None) -> tuple[dict[str, pa.Array], Ints, Bad]:
        """Return the key and a null."""
        return {**self.column(rows, schema), "value": pa.nulls(rows.size, self.kind)}, rows, []

    def column(self, rows: Ints, schema: pa.Schema | None) -> dict[str, pa.Array]:
        """Return the column ``key``, where any message has one."""
        keys = [self.messages.keys[i] for i in rows.tolist()]
        if (schema is not None and "key" not in schema.names) or not any(key is not None for key in keys):
            return {}
        return {"key": pa.array(keys, pa.binary()).cast(self.kind)}


def _reading(field: pa.Field) -> Reading:
    of_text = reading(field)
    return replace(of_text, convert=lambda array: array if array.type.equals(field.type) else of_text.convert(array))


def _add(events: ChangeEvents, found: Events, schema: pa.Schema | None) -> None:
    """Add events; an old row in a header that has other columns than these is somebody else's."""
    fields = list(schema) if schema is not None else [pa.field(name, a.type) for name, a in found.columns.items()]
    if events.headers is not None and events.headers.before is not None:
        first = next((cell for cell in events.headers.before if cell is not None), None)
        if first is None or not set(names_in(first)) <= {column.name for column in fields}:
            events.headers.before = None
    events.add(found, [_reading(column) for column in fields])


def _rows_in_headers(events: ChangeEvents, asked: pa.Schema | None) -> set[int]:
    """Add the rows that headers have with the columns asked for; return their messages."""
    cells = None if events.headers is None else events.headers.row
    if cells is None or asked is None:
        return set()
    at = np.array([i for i, cell in enumerate(cells) if cell is not None], np.int64)
    if set(names_in(cells[int(at[0])] or b"")) != set(asked.names):
        return set()
    structs, wrong = columns_of(
        [cells[i] or b"" for i in at.tolist()], [reading(column) for column in asked], whole=True
    )
    events.bad += [(int(at[place]), f"the header __row: {why}") for place, why in wrong.items()]
    for struct, places in structs:
        columns = dict(zip([column.name for column in struct.type], struct.flatten(), strict=True))
        _add(events, debezium.blank(columns, at[places]), asked)
    return set(at.tolist())


def _keys_that_are_no_text(messages: WireMessages) -> Bad:
    """Messages whose key is not UTF-8, where keys and values are texts: the column does not change for one of them."""
    keys = messages.keys
    try:
        pa.array(keys, pa.binary()).cast(pa.string())
        return []
    except pa.ArrowInvalid:
        at = [i for i, key in enumerate(keys) if key is not None]
        return [(at[i], f"the key: {why}") for i, why in utf8([keys[i] or b"" for i in at])[1]]
