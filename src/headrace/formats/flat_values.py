"""Rows of messages whose values have columns and nothing else: what an event was, headers and keys say.

A header also has the row where the value does not say all of it (`headers`, ``__row``). It counts where it has the very
columns that are asked for: what somebody else wrote is read the same with and without a schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import OPS, Batch
from headrace.formats import assemble, debezium
from headrace.formats.assemble import Rows
from headrace.formats.base import Decoded, Encoded
from headrace.formats.coerce import fitting, reading
from headrace.formats.headers import EventHeaders, event_headers, read_event_headers, topic_source
from headrace.formats.json_keys import KeyReader, names_in, write_keys
from headrace.formats.key_changes import with_old_keys
from headrace.formats.registry_columns import json_columns
from headrace.wire import WireMessages

Bad = list[tuple[int, str]]
Cells = Sequence[bytes | None]
Part = tuple[dict[str, pa.Array], Ints]


def encode_texts(topic: str, batch: Batch, texts: pa.Array, key: str, *, whole: bool = True) -> Encoded:
    """A value for every row but deletes and truncates; before a row whose key changed a null for the old one.

    Args:
        whole: whether the texts say all of the rows; else headers have them too.
    """
    op = batch.op
    nulls = (op == OPS["d"]) | (op == OPS["t"])
    values: list[bytes | None] = texts.cast(pa.large_binary()).to_pylist()
    keys = write_keys(topic, batch, key)
    for row in np.flatnonzero(nulls).tolist():
        values[row] = None
        if op[row] == OPS["t"]:
            keys[row] = None
    told = event_headers(batch, topic=topic, null_values=nulls if whole else np.ones(batch.num_rows, bool))
    encoded = Encoded(keys, values, told, np.arange(batch.num_rows))
    return with_old_keys(batch, encoded, lambda old: (write_keys(topic, old, key), ()))


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
    key: str | None,
    parse: Callable[[Sequence[bytes]], tuple[list[Part], Bad]],
    *,
    single: pa.DataType | None = None,
) -> Decoded:
    """Rows of values that `parse` makes columns of, with what headers and keys say; ``single``: of one column."""
    if not len(messages):
        return Decoded()
    told = read_event_headers(messages)
    metadata = {} if schema is None else schema.metadata or {}
    known = json.loads(metadata[b"headrace.key"]) if b"headrace.key" in metadata else None
    keys = KeyReader(messages, known, key)
    values: Cells = messages.values
    found: list[Rows] = []
    bad: Bad = []
    asked = pa.schema([("key", single), ("value", single)]) if schema is None and single is not None else schema
    in_headers = _in_headers(messages, told, asked, found, bad)
    if single is not None and not pa.types.is_binary(single):
        odd = _keys_that_are_no_text(messages)
        bad += odd
        in_headers |= {i for i, _ in odd}
    valued = np.array([i for i, value in enumerate(values) if value is not None and i not in in_headers], np.int64)
    parts, wrong = parse([values[i] or b"" for i in valued.tolist()]) if valued.size else ([], [])
    bad += [(int(valued[i]), why) for i, why in wrong]
    for columns, where in parts:
        rows = valued[where]
        if single is not None:
            columns = _with_key(columns, messages, rows, single, schema)
        _finish(columns, rows, schema, told, messages, found, bad)
    empty = np.array([i for i, value in enumerate(values) if value is None and i not in in_headers], np.int64)
    if told is not None and told.tombstone is not None:
        empty = empty[~told.tombstone[empty]]
    if empty.size:
        _deletes(messages, empty, schema, told, keys, single, found, bad)
    for one in found:
        one.key = keys.names_of(one.events.rows, one.records.schema)
        if single is not None and known is None and "key" in one.records.schema.names:
            one.key = ("key",)
    return Decoded(assemble.parts(found, messages.ts_ms * 1000), sorted(bad))


def _in_headers(
    messages: WireMessages, told: EventHeaders | None, asked: pa.Schema | None, found: list[Rows], bad: Bad
) -> set[int]:
    """Take the rows that headers have with the columns asked for; whose they are."""
    cells = None if told is None else told.row
    if cells is None or asked is None:
        return set()
    at = np.array([i for i, cell in enumerate(cells) if cell is not None], np.int64)
    if set(names_in(cells[int(at[0])] or b"")) != set(asked.names):
        return set()
    structs, wrong = json_columns([cells[i] or b"" for i in at.tolist()], [reading(one) for one in asked], whole=True)
    bad += [(int(at[place]), f"the header __row: {why}") for place, why in wrong.items()]
    for struct, places in structs:
        columns = dict(zip([one.name for one in struct.type], struct.flatten(), strict=True))
        _finish(columns, at[places], asked, told, messages, found, bad)
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


def _with_key(
    columns: dict[str, pa.Array], messages: WireMessages, rows: Ints, kind: pa.DataType, schema: pa.Schema | None
) -> dict[str, pa.Array]:
    """The column ``key``, where any message has one."""
    if schema is not None and "key" not in schema.names:
        return columns
    keys = [messages.keys[i] for i in rows.tolist()]
    if not any(one is not None for one in keys):
        return columns
    return {"key": pa.array(keys, pa.binary()).cast(kind), **columns}


def _finish(
    columns: dict[str, pa.Array],
    rows: Ints,
    schema: pa.Schema | None,
    told: EventHeaders | None,
    messages: WireMessages,
    found: list[Rows],
    bad: Bad,
    op: str = "c",
) -> None:
    if not rows.size:
        return
    events = debezium.blank({}, rows, op)
    events.source = topic_source(messages.topic)
    if told is not None:
        own = told.take(rows)
        events.op = np.where(own.op > 0, own.op, events.op).astype(np.uint8)
        events.lsn = np.where(own.ours, own.lsn, events.lsn)
        events.order = np.where(own.ours, own.index, events.order)
        events.ts_us = np.where(own.ts_us >= 0, own.ts_us, events.ts_us)
        events.source = told.source if told.source is not None else events.source
        if own.unchanged is not None:
            events.unchanged = [None if one is None else json.loads(one) for one in own.unchanged]
    fields = list(schema) if schema is not None else [pa.field(name, array.type) for name, array in columns.items()]
    arrays = []
    wrong: dict[int, str] = {}
    for one in fields:
        raw = columns.get(one.name)
        if raw is None:
            arrays.append(pa.nulls(rows.size, one.type))
            continue
        array, misfits = (raw, []) if raw.type.equals(one.type) else fitting(raw, reading(one))
        arrays.append(array)
        wrong.update(misfits)
    if not arrays:
        return
    before = None if told is None else _old_rows(told.take(rows).before, fields)
    done = Rows(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), events, before)
    if wrong:
        bad += [(int(rows[row]), why) for row, why in wrong.items()]
        done = assemble.take(done, np.setdiff1d(np.arange(rows.size), np.array(list(wrong))))
    found.append(done)


def _old_rows(cells: Cells | None, fields: Sequence[pa.Field]) -> pa.StructArray | None:
    """Old rows that headers have, where they are rows of these columns."""
    first = next((cell for cell in cells or () if cell is not None), None)
    if cells is None or first is None or not set(names_in(first)) <= {one.name for one in fields}:
        return None
    structs, _ = json_columns([cell or b"{}" for cell in cells], [reading(one) for one in fields], whole=True)
    if len(structs) != 1 or len(structs[0][1]) != len(cells):
        return None
    struct = structs[0][0]
    mask = pa.array([cell is None for cell in cells])
    return pa.StructArray.from_arrays(struct.flatten(), fields=list(struct.type), mask=mask)


def _deletes(
    messages: WireMessages,
    rows: Ints,
    schema: pa.Schema | None,
    told: EventHeaders | None,
    keys: KeyReader,
    single: pa.DataType | None,
    found: list[Rows],
    bad: Bad,
) -> None:
    """Messages without a value: the columns that their keys name."""
    if single is not None:
        columns = _with_key({}, messages, rows, single, schema)
        columns.setdefault("value", pa.nulls(rows.size, single))
    else:
        columns, rows, wrong = keys.columns_of(rows, schema)
        bad += wrong
    if schema is None and found and set(columns) <= set(found[0].records.schema.names):
        like = found[0].records.schema
        columns = {one.name: columns.get(one.name, pa.nulls(rows.size, one.type)) for one in like}
        schema = like
    _finish(columns, rows, schema, told, messages, found, bad, "d")
