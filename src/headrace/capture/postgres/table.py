"""Row messages of one table as a Batch: cells to columns, old rows, unchanged columns, refused rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import META_FIELDS, Batch, dead_letters, is_meta
from headrace.capture.postgres import arrays, rejects, text, values
from headrace.capture.postgres.cells import BINARY, TEXT, UNCHANGED, Cells, Tuples, tuples
from headrace.capture.postgres.messages import Bytes, Frame, Ints, Longs, Mask, Relation
from headrace.capture.postgres.types import arrow_field, binary_decodable
from headrace.errors import DecodeError

_OPS = np.zeros(256, np.uint8)
for _kind, _op in zip("IUDT", "cudt", strict=True):
    _OPS[ord(_kind)] = ord(_op)
_LIST = pa.list_(pa.string())
_NOT_IN_TOPICS = re.compile(r"[^A-Za-z0-9._-]")


class NeedsTextMode(DecodeError):
    """A binary value of a type whose binary form is not decoded: reconnect with ``binary 'false'``."""


@dataclass(frozen=True, slots=True)
class Events:
    """Row events of one table: their messages in the frame and their places in the log."""

    message: Ints
    lsn: Longs
    index: Ints
    ts_us: Ints

    def take(self, rows: Ints | slice | Mask) -> Events:
        return Events(self.message[rows], self.lsn[rows], self.index[rows], self.ts_us[rows])


@dataclass(slots=True)
class Table:
    """What is derived from a Relation message once: the topic and the Arrow schema of its batches."""

    relation: Relation
    prefix: str
    key: tuple[str, ...]
    topic: str = field(init=False)
    fields: list[pa.Field] = field(init=False)
    _schemas: dict[tuple[bool, bool], pa.Schema] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        relation = self.relation
        self.topic = _NOT_IN_TOPICS.sub("_", f"{self.prefix}.{relation.schema}.{relation.table}")
        self.fields = [arrow_field(one.name, one.type_oid, one.typmod) for one in relation.columns]

    def schema(self, before: bool, unchanged: bool) -> pa.Schema:
        """The schema of a batch with or without ``__before`` and ``__unchanged``."""
        schema = self._schemas.get((before, unchanged))
        if schema is None:
            extra = [pa.field("__before", pa.struct(self.fields))] if before else []
            extra += [pa.field("__unchanged", _LIST)] if unchanged else []
            metadata = {
                b"headrace.key": json.dumps(list(self.key)).encode(),
                b"headrace.source": self.prefix.encode(),
            }
            schema = pa.schema([*self.fields, *META_FIELDS, *extra], metadata=metadata)
            self._schemas[before, unchanged] = schema
        return schema


def table(relation: Relation, prefix: str, key: Sequence[str] | None) -> Table:
    """Prepare a relation; its key is the one given, else the columns of its replica identity."""
    reserved = [one.name for one in relation.columns if is_meta(one.name)]
    if reserved:
        raise DecodeError(
            f"table «{relation.schema}.{relation.table}» has a column «{reserved[0]}», a name that events use",
            advice="Leave it out with a column list of the publication, or rename it.",
        )
    if key is None:
        key = [one.name for one in relation.columns if one.key]
    return Table(relation, prefix, tuple(key))


def truncates(table: Table, events: Events) -> Batch:
    """Truncate events: rows of nulls."""
    n = events.message.size
    nulls = [pa.nulls(n, one.type) for one in table.fields]
    ops = np.full(n, ord("t"), np.uint8)
    return Batch(pa.RecordBatch.from_arrays([*nulls, *_meta(ops, events)], schema=table.schema(False, False)))


def rows(frame: Frame, table: Table, events: Events) -> tuple[Batch, Batch | None]:
    """Insert, Update and Delete events as a batch, and dead letters for those Arrow cannot hold."""
    columns = table.relation.columns
    found = tuples(frame, events.message, len(columns))
    if found.old_rows is not None:
        _fill_unchanged(found)
    decoded, bad = _decode(frame, table, found.new, events.message)
    ops = _OPS[frame.kind[events.message]]
    before = _before(frame, table, found, events) if found.old_rows is not None else None
    unchanged = _unchanged(table, found.new)
    extra = [one for one in (before, unchanged) if one is not None]
    schema = table.schema(before is not None, unchanged is not None)
    records = pa.RecordBatch.from_arrays([*decoded, *_meta(ops, events), *extra], schema=schema)
    if not bad:
        return Batch(records), None
    lost = np.logical_or.reduce(list(bad.values()))
    where = np.flatnonzero(lost).tolist()
    why = rejects.reasons(table.fields, bad, found.new, where)
    json_rows = [rejects.as_json(columns, decoded, bad, found.new, row) for row in where]
    letters = dead_letters(Batch(records).filter(lost), why, stage="capture", rows=json_rows)
    return Batch(records).filter(~lost), letters


def _meta(ops: Bytes, events: Events) -> list[pa.Array]:
    columns = (ops, events.lsn, events.index, events.ts_us)
    return [arrays.of_numbers(np.ascontiguousarray(c), f.type, None) for c, f in zip(columns, META_FIELDS, strict=True)]


def _decode(
    frame: Frame, table: Table, cells: Sequence[Cells], messages: Ints
) -> tuple[list[pa.Array], dict[int, Mask]]:
    """All columns, and for those with values that Arrow cannot hold, in which rows."""
    decoded, bad = [], {}
    for index, (cell, arrow) in enumerate(zip(cells, table.fields, strict=True)):
        try:
            array, lost = _column(cell, table.relation.columns[index].type_oid, arrow)
        except values.Malformed as error:
            message = int(messages[error.row])
            at = _offset(frame, cell, error.row, message)
            raise frame.error(message, at, f"column «{arrow.name}»: {error}") from error
        decoded.append(array)
        if lost is not None:
            bad[index] = lost
    return decoded, bad


def _offset(frame: Frame, cell: Cells, row: int, message: int) -> int:
    """The byte of a message at which a cell's value starts."""
    if cell.buffer is frame.buffer:
        return int(cell.start[row] - frame.start[message])
    return int(cell.start[row]) % cell.stride


def _column(cells: Cells, type_oid: int, arrow: pa.Field) -> values.Decoded:
    """One column; in one stream its cells are all binary or all text, but for nulls."""
    binary, textual = cells.of_kind(BINARY), cells.of_kind(TEXT)
    if binary is not False and not binary_decodable(type_oid):
        kind = arrow.metadata[b"postgres.type"].decode()
        raise NeedsTextMode(f"column «{arrow.name}» has type {kind}, whose binary form is not decoded")
    if binary is False and textual is False:
        return pa.nulls(cells.n, arrow.type), None
    if textual is False:
        return values.binary(cells, _mask(binary), type_oid, arrow.type)
    if binary is False:
        return text.text(cells, _mask(textual), type_oid, arrow.type)
    first, first_bad = values.binary(cells, _mask(binary), type_oid, arrow.type)
    second, second_bad = text.text(cells, _mask(textual), type_oid, arrow.type)
    bad = first_bad if second_bad is None else second_bad if first_bad is None else first_bad | second_bad
    return pc.coalesce(first, second), bad


def _mask(valid: Mask | bool) -> Mask | None:
    return None if isinstance(valid, bool) else valid


def _fill_unchanged(found: Tuples) -> None:
    """Where the old tuple has the value of an unchanged column (REPLICA IDENTITY FULL), it is the new one's too."""
    assert found.old_rows is not None
    for index, (new, old) in enumerate(zip(found.new, found.old, strict=True)):
        if new.of_kind(UNCHANGED) is False:
            continue
        kind = np.broadcast_to(np.asarray(new.kind, np.uint8), (new.n,)).copy()
        start, length = new.start.copy(), new.lengths.copy()
        old_kind = np.broadcast_to(np.asarray(old.kind, np.uint8), (old.n,))
        use = (kind[found.old_rows] == UNCHANGED) & ((old_kind == TEXT) | (old_kind == BINARY))
        where = found.old_rows[use]
        kind[where], start[where], length[where] = old_kind[use], old.start[use], old.lengths[use]
        found.new[index] = Cells(new.buffer, new.n, kind, length, start=start)


def _before(frame: Frame, table: Table, found: Tuples, events: Events) -> pa.StructArray:
    """Old rows of updates; null where there is none, or where Arrow cannot hold it (it was a dead letter itself)."""
    assert found.old_rows is not None
    decoded, bad = _decode(frame, table, found.old, events.message[found.old_rows])
    kept = np.ones(found.old_rows.size, bool)
    for lost in bad.values():
        kept &= ~lost
    where = np.zeros(events.message.size, np.int64)
    where[found.old_rows] = np.arange(found.old_rows.size)
    has = np.zeros(events.message.size, bool)
    has[found.old_rows] = kept
    structs = pa.StructArray.from_arrays(decoded, fields=table.fields)
    return structs.take(pa.array(where, mask=~has))


def _unchanged(table: Table, cells: Sequence[Cells]) -> pa.ListArray | None:
    """Names of the columns that were not sent, for each row; None when all were."""
    found = [(index, cell.of_kind(UNCHANGED)) for index, cell in enumerate(cells)]
    found = [(index, mask) for index, mask in found if mask is not False]
    if not found:
        return None
    matrix = np.column_stack([np.broadcast_to(np.asarray(mask), (cells[0].n,)) for _, mask in found])
    names = pa.array([table.fields[index].name for index, _ in found])
    offsets = np.concatenate([[0], np.cumsum(matrix.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), names.take(pa.array(np.nonzero(matrix)[1])))
