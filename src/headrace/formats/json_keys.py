"""Keys of messages: which columns they name, and the columns of messages that have nothing but a key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import OPS, Batch
from headrace.errors import DeclarationError
from headrace.formats import connect, json_shapes
from headrace.formats.coerce import fitting
from headrace.formats.column_text import plain_text
from headrace.formats.debezium import Columns
from headrace.formats.json_parse import Lines, parse
from headrace.formats.json_text import Known, cells, joined, objects, unwrapped
from headrace.plain_values import is_bytes, is_text
from headrace.wire import WireMessages

KEY_FORMATS = ("json", "json+schema", "string", "bytes", "none")


def check_key_format(key: str | None) -> None:
    """Refuse a key format that there is none of."""
    if key is not None and key not in KEY_FORMATS:
        raise DeclarationError(f"there is no key format «{key}»", advice=f"Choose one of {', '.join(KEY_FORMATS)}.")


# --- writing ---


def write_keys(topic: str, batch: Batch, key: str, *, known: Known | None = None) -> list[bytes | None]:
    """The keys of a batch's messages; None where the batch has no key columns, or not all of them, and of truncations.

    Args:
        topic: its name, which the key's schema bears.
        batch: the rows.
        key: one of KEY_FORMATS. «string» and «bytes» write one column as it is, several as their JSON.
        known: JSON of columns that is there already, as `objects` takes it.

    >>> write_keys("t", Batch.of({"id": [7], "name": ["x"]}, key=["id"]), "json")
    [b'{"id":7}']
    """
    names = batch.key_columns
    present = set(batch.records.schema.names)
    if key == "none" or not names or any(name not in present for name in names):
        return [None] * batch.num_rows
    columns = [(name, batch.column(name)) for name in names]
    if key in ("string", "bytes") and len(columns) == 1:
        array = unwrapped(columns[0][1])
        as_it_is = is_text(array.type) or (key == "bytes" and is_bytes(array.type))
        return _of_rows(batch, array if as_it_is else plain_text(array))
    binary_decimals = key == "json+schema"
    texts = objects(columns, batch.num_rows, binary_decimals=binary_decimals, known=known)
    if binary_decimals:
        fields = [batch.records.schema.field(name).with_nullable(False) for name in names]
        schema = json.dumps(connect.struct_schema(fields, f"{topic}.Key"), ensure_ascii=False, separators=(",", ":"))
        texts = joined([f'{{"schema":{schema},"payload":', texts, "}"], batch.num_rows)
    return _of_rows(batch, texts)


def _of_rows(batch: Batch, texts: pa.Array) -> list[bytes | None]:
    keys = cells(texts)
    for row in np.flatnonzero(batch.op == OPS["t"]).tolist():
        keys[row] = None
    return keys


# --- reading ---


class KeyReader:
    """The keys of some messages.

    Args:
        messages: whose they are.
        names: the key's columns where they are known; the keys are then looked at for deletes only.
        key: how keys are written; None: a JSON object says columns, anything else none.
    """

    def __init__(self, messages: WireMessages, names: Sequence[str] | None, key: str | None) -> None:
        self.messages, self.known, self.key = messages, names, key

    def names_of(self, rows: Ints, schema: pa.Schema) -> tuple[str, ...]:
        """The key columns of these messages, as the first key among them names them."""
        if self.known is not None:
            return tuple(self.known)
        if self.key in ("string", "bytes", "none"):
            return ()
        first = next((key for i in rows if (key := self.messages.key(int(i))) is not None), None)
        names = names_in(first) if first is not None else ()
        return names if set(names) <= set(schema.names) else ()

    def columns_of(self, rows: Ints, schema: pa.Schema | None) -> tuple[Columns, Ints, list[tuple[int, str]]]:
        """Columns of the keys of these messages, the messages that have some, and what is wrong with others.

        A message without any key stays: a row of a table without a key was deleted.
        """
        keys = self.messages.keys
        with_key = [i for i in rows.tolist() if keys[i] is not None]
        if not with_key or self.key == "none":
            return {}, rows, []
        values = [keys[i] for i in with_key]
        if (
            self.known is not None
            and len(self.known) == 1
            and (self.key in ("string", "bytes") or not names_in(values[0]))
        ):
            return self._plain(rows, values, schema)
        columns, kept, bad = _parsed([value for value in values if value is not None])
        wrong = {with_key[i]: why for i, why in bad}
        good = np.array([row for row in rows.tolist() if row not in wrong], np.int64)
        place = {with_key[i]: at for at, i in enumerate(kept)}
        indices = pa.array([place.get(row) for row in good.tolist()], pa.int64())
        return {name: array.take(indices) for name, array in columns.items()}, good, list(wrong.items())

    def _plain(
        self, rows: Ints, values: Sequence[bytes | None], schema: pa.Schema | None
    ) -> tuple[Columns, Ints, list[tuple[int, str]]]:
        """A key that is its only column's value."""
        keys = self.messages.keys
        name = (self.known or ("",))[0]
        kind = schema.field(name).type if schema is not None and name in schema.names else pa.string()
        raw = pa.array([keys[i] for i in rows.tolist()], pa.binary())
        if is_bytes(kind):
            return {name: raw.cast(kind)}, rows, []
        try:
            return {name: raw.cast(pa.string())}, rows, []
        except pa.ArrowInvalid:
            bad = [(row, "a key that is not UTF-8") for row in rows.tolist() if not _is_utf8(keys[row])]
            wrong = {row for row, _ in bad}
            good = np.array([row for row in rows.tolist() if row not in wrong], np.int64)
            texts = pa.array([keys[i] for i in good.tolist()], pa.binary()).cast(pa.string())
            return {name: texts}, good, bad


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def names_in(key: bytes) -> tuple[str, ...]:
    """The columns that a key of JSON names, with or without a schema; none where it is no object.

    >>> names_in(b'{"id":7}'), names_in(b"7")
    (('id',), ())
    """
    try:
        found: Any = json.loads(key)
    except (ValueError, RecursionError):
        return ()
    if isinstance(found, dict) and set(found) == {"schema", "payload"}:
        found = found["payload"]
    return tuple(found) if isinstance(found, dict) else ()


def _parsed(values: Sequence[bytes]) -> tuple[Columns, list[int], list[tuple[int, str]]]:
    """Raw columns of JSON keys; which keys they are of; which are none, and why."""
    bad: list[tuple[int, str]] = []
    pieces: list[tuple[list[int], pa.RecordBatch]] = []
    if not any(value.startswith(b'{"schema":') for value in values):
        _collect(values, list(range(len(values))), None, pieces, bad)
    else:
        codes = json_shapes.shapes(values, Lines(values))
        for start, end in json_shapes.runs(codes):
            if codes[start] != json_shapes.CONNECT:
                _collect(values[start:end], list(range(start, end)), None, pieces, bad)
                continue
            for a, b, schema, found in json_shapes.payloads(values[start:end]):
                where = list(range(start + a, start + b))
                if isinstance(found, str):
                    bad += [(i, f"key: {found}") for i in where]
                else:
                    _collect(found, where, schema, pieces, bad)
    return in_one([records for _, records in pieces]), [i for where, _ in pieces for i in where], bad


def _collect(
    values: Sequence[bytes],
    where: list[int],
    schema: connect.Schema | None,
    pieces: list[tuple[list[int], pa.RecordBatch]],
    bad: list[tuple[int, str]],
) -> None:
    fields = None if schema is None else connect.row_fields(schema)
    readings = None if fields is None else [connect.reading_of(field) for field in fields]
    types = (
        None
        if readings is None
        else pa.schema([(column.field.name, column.wire) for column in readings if column.wire])
    )
    parts, wrong = parse(values, types, whole=False)
    bad += [(where[i], f"key: {why}") for i, why in wrong]
    for part in parts:
        columns = part.columns
        if readings is not None:
            found = dict(zip(columns.schema.names, columns.columns, strict=True))
            done = [
                (known.field.name, fitting(found[known.field.name], known)[0])
                for known in readings
                if known.field.name in found
            ]
            columns = pa.RecordBatch.from_arrays([array for _, array in done], names=[name for name, _ in done])
        pieces.append(([where[i] for i in part.rows.tolist()], columns))


def in_one(pieces: Sequence[pa.RecordBatch]) -> Columns:
    """Return keys of several types in one; where they contradict each other, as texts."""
    columns = {}
    for name in dict.fromkeys(name for records in pieces for name in records.schema.names):
        found = [(records.schema.get_field_index(name), records) for records in pieces]
        arrays = [pa.nulls(len(records)) if at < 0 else records.column(at) for at, records in found]
        kinds = {array.type for array in arrays if not pa.types.is_null(array.type)} or {pa.null()}
        kind = kinds.pop() if len(kinds) == 1 else pa.large_string()
        columns[name] = pa.concat_arrays([array if array.type.equals(kind) else _to(array, kind) for array in arrays])
    return columns


def _to(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    return array.cast(kind) if is_text(array.type) else plain_text(array)
