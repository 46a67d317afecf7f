"""Row messages of one table as a Batch: cells to columns, old rows, unchanged columns; refused rows as dead letters."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Bytes, Ints, Mask
from headrace.batch import CHANGE as CHANGE_COLUMN
from headrace.batch import META_FIELDS, NAN, ORIGIN, Batch, dead_letters, is_meta, told_apart
from headrace.capture.postgres import types, values
from headrace.capture.postgres.cells import BINARY, TEXT, UNCHANGED, Cells, Templates, Tuples, tuples
from headrace.capture.postgres.messages import Column, Frame, Longs, Relation, gather
from headrace.errors import DecodeError
from headrace.plain_values import date_text, instant_text, is_list, texts
from headrace.plain_values import value as plain_value

_OPS = np.zeros(256, np.uint8)
for _kind, _op in zip("IUDT", "cudt", strict=True):
    _OPS[ord(_kind)] = ord(_op)
_META_TYPES = [column.type for column in META_FIELDS]
_BLOCK_ROWS, _BLOCK_BYTES = 4096, 2 << 20
_LIST = pa.list_(pa.string())
FACTS = b"postgres.facts"
CHANGE = pa.field(CHANGE_COLUMN, pa.struct({"lsn": pa.uint64(), "number": pa.uint32(), "after": pa.uint64()}))
_NOT_IN_TOPICS = re.compile(r"[^A-Za-z0-9._-]")


class NeedsTextMode(DecodeError):
    """A binary value of a type whose binary form is not decoded: reconnect with ``binary 'false'``."""


def topic_of(prefix: str, label: Sequence[str]) -> str:
    """Return the topic of a table, by schema and name.

    >>> topic_of("shop", ("public", "größe"))
    'shop.public.gr__e'
    """
    return _NOT_IN_TOPICS.sub("_", f"{prefix}.{'.'.join(label)}")


@dataclass(frozen=True, slots=True)
class Events:
    """Row events of one table: their messages in the frame and their places in the log.

    Attributes:
        number: of their transactions, below 0 for an event that belongs to none; ``after``: where the commit before
            each one's transaction ended, 0 where that is not known. None: nobody wants to know.
        origin: which of ``origins`` its transaction was replicated from, below 0 for one that began here; None: all
            did, or nobody wants to know.
    """

    message: Ints
    lsn: Longs
    index: Ints
    ts_us: Ints
    number: Ints | None = None
    after: Longs | None = None
    origin: Ints | None = None
    origins: pa.StructArray | None = None

    def take(self, rows: Ints | slice | Mask) -> Events:
        number = None if self.number is None else self.number[rows]
        after = None if self.after is None else self.after[rows]
        origin = None if self.origin is None else self.origin[rows]
        places = self.message[rows], self.lsn[rows], self.index[rows], self.ts_us[rows]
        return Events(*places, number, after, origin, self.origins)

    def change(self, frame: Frame, lsns: Longs | None = None) -> pa.StructArray:
        """Return where each event lies in the WAL, its transaction's number, and where the commit before that ended.

        Args:
            lsns: where they lie, where that was read already.
        """
        assert self.number is not None and self.after is not None
        lsn = values.of_numbers(_lsns(frame, self.message) if lsns is None else lsns, pa.uint64(), None)
        inside, known = self.number >= 0, self.after > 0
        number = values.of_numbers(self.number.astype(np.uint32), pa.uint32(), None if inside.all() else inside)
        after = values.of_numbers(self.after.copy(), pa.uint64(), None if known.all() else known)
        return pa.StructArray.from_arrays([lsn, number, after], fields=list(CHANGE.type))

    def told(self, frame: Frame, lsns: Longs | None = None) -> dict[str, pa.StructArray]:
        """Return what the log is to keep of each event beside its row and its place; see `change` for ``lsns``."""
        found = {} if self.number is None else {"change": self.change(frame, lsns)}
        if self.origin is not None and self.origins is not None and (self.origin >= 0).any():
            found["origin"] = self.origins.take(pa.array(self.origin, mask=self.origin < 0))
        return found


def _lsns(frame: Frame, messages: Ints) -> Longs:
    found: Longs = frame.gather(frame.start[messages] + 1, ">u8")
    return found


@dataclass(slots=True)
class Table:
    """The topic and the Arrow schema of a table's batches, derived from a Relation message once.

    ``label`` is the schema and name that the topic has: the table's when its capture began, whatever it is called now.
    ``facts`` is what the catalog says of it besides (`headrace.capture.postgres.facts`), where that is wanted;
    ``vectors`` are the types whose values are lists, but for keys. Tables of one ``layout`` have the same columns.
    """

    relation: Relation
    prefix: str
    key: tuple[str, ...]
    label: tuple[str, str]
    facts: str = ""
    vectors: types.Vectors = ()
    topic: str = field(init=False)
    fields: list[pa.Field] = field(init=False)
    templates: Templates = field(init=False, default_factory=dict)
    layout: tuple[object, ...] = field(init=False)
    _schemas: dict[tuple[bool, ...], pa.Schema] = field(init=False, default_factory=dict)
    _metadata: pa.KeyValueMetadata | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        relation = self.relation
        self.topic = topic_of(self.prefix, self.label)
        told = set(self.key) | {column.name for column in relation.columns if column.key and relation.identity == "i"}
        vectors = {column.name: () if column.name in told else self.vectors for column in relation.columns}
        self.fields = [types.arrow_field(c.name, c.type_oid, c.typmod, vectors[c.name]) for c in relation.columns]
        columns = zip(relation.columns, self.fields, strict=True)
        self.layout = tuple((column.name, column.type_oid, column.typmod, field.type) for column, field in columns)

    def schema(
        self,
        *,
        before: bool = False,
        unchanged: bool = False,
        nan: bool = False,
        change: bool = False,
        origin: bool = False,
    ) -> pa.Schema:
        """Return the schema of a batch with or without what an event may have besides, in this order."""
        schema = self._schemas.get((before, unchanged, nan, change, origin))
        if schema is None:
            extra = [pa.field("__before", pa.struct(self.fields))] if before else []
            extra += [pa.field("__unchanged", _LIST)] if unchanged else []
            extra += [*([NAN] if nan else []), *([CHANGE] if change else []), *([ORIGIN] if origin else [])]
            metadata = {
                b"headrace.key": json.dumps(list(self.key)).encode(),
                b"headrace.source": self.prefix.encode(),
            }
            # Old rows are told by another index than the key's: those who follow rows must know.
            identity = [column.name for column in self.relation.columns if column.key]
            if self.relation.identity == "i" and set(identity) != set(self.key):
                metadata[b"headrace.identity"] = json.dumps(identity).encode()
            if self.facts:
                metadata[FACTS] = self.facts.encode()
            schema = pa.schema([*self.fields, *META_FIELDS, *extra], metadata=metadata)
            self._schemas[before, unchanged, nan, change, origin] = schema
        return schema

    @property
    def metadata(self) -> pa.KeyValueMetadata:
        """Return the metadata that all its schemas have."""
        if self._metadata is None:
            self._metadata = pa.KeyValueMetadata(self.schema().metadata)
        return self._metadata


def table(
    relation: Relation,
    prefix: str,
    key: Sequence[str] | None,
    label: tuple[str, str] | None = None,
    facts: str = "",
    vectors: types.Vectors = (),
) -> Table:
    """Prepare a relation; its key is the one given, else the columns of its replica identity.

    A table with a column that has a name of an event's own is refused at the start. One that is given such a column
    while it is captured goes on, with the column under another name: its rows are in the server's log already.
    """
    reserved = {column.name for column in relation.columns if is_meta(column.name)}
    if reserved:
        names = told_apart([column.name for column in relation.columns], reserved)
        columns = tuple(replace(c, name=name) for c, name in zip(relation.columns, names, strict=True))
        relation = replace(relation, columns=columns)
    if key is None:
        key = [column.name for column in relation.columns if column.key]
    return Table(relation, prefix, tuple(key), label or (relation.schema, relation.table), facts, vectors)


def truncates(frame: Frame | None, table: Table, events: Events) -> Batch:
    """Return Truncate events: rows of nulls."""
    n = events.message.size
    nulls = [pa.nulls(n, column.type) for column in table.fields]
    ops = np.full(n, ord("t"), np.uint8)
    told = {} if frame is None else events.told(frame)
    schema = table.schema(**dict.fromkeys(told, True))
    return Batch(pa.RecordBatch.from_arrays([*nulls, *meta_arrays(ops, events), *told.values()], schema=schema))


def rows(frame: Frame, table: Table, events: Events) -> tuple[Batch, Batch | None]:
    """Return Insert, Update and Delete events as a batch, and dead letters for those Arrow cannot hold.

    Decoded in blocks of rows that stay in the processor's cache, which are then put together.
    """
    n = events.message.size
    size = int(frame.end[events.message[-1]] - frame.start[events.message[0]])
    step = max(_BLOCK_ROWS, _BLOCK_BYTES * n // size) if n > _BLOCK_ROWS else n
    blocks, lsns = [], []
    for at in range(0, n, step):
        blocks.append(_block(frame, table, events.message[at : at + step]))
        if events.number is not None:  # now, while the block is in the cache
            lsns.append(_lsns(frame, events.message[at : at + step]))
    block = blocks[0] if len(blocks) == 1 else _concatenated(table, blocks)
    optional = {"before": block.before, "unchanged": block.unchanged, "nan": block.nan}
    optional |= events.told(frame, np.concatenate(lsns) if lsns else None)
    extra = [column for column in optional.values() if column is not None]
    schema = table.schema(**{name: column is not None for name, column in optional.items()})
    arrays_of = [*block.columns, *meta_arrays(_OPS[frame.kind[events.message]], events), *extra]
    batch = Batch(pa.RecordBatch.from_arrays(arrays_of, schema=schema))
    if block.lost is None:
        return batch, None
    letters = dead_letters(batch.filter(block.lost), block.reasons, stage="capture", rows=block.json)
    return batch.filter(~block.lost), letters


def rows_of_alike(frame: Frame, parts: Sequence[tuple[Table, Ints]], events: Events) -> list[Batch] | None:
    """Return the batches of tables that have one layout, as `rows` makes them, decoded all at once.

    What a batch costs beside its rows is then about 10 us in place of 80.

    Args:
        parts: each table with its rows among the events.

    Returns:
        None where Arrow cannot hold a row: its dead letter is its own table's.
    """
    own = np.concatenate([rows_of for _, rows_of in parts])
    order = own.argsort(kind="stable")  # values are read in the order in which they lie in the frame
    batch, letters = rows(frame, parts[0][0], events.take(own[order]))
    if letters is not None:
        return None
    back = np.empty(order.size, np.int64)
    back[order] = np.arange(order.size)
    records = batch.records.take(pa.array(back))
    optional = {name: _told(records.column(name)) for name in _OPTIONAL if name in records.schema.names}
    batches, at = [], 0
    for alike, rows_of in parts:
        stop = at + rows_of.size
        lacking = [name for name, told in optional.items() if not told[at:stop].any()]
        part = records.slice(at, rows_of.size)
        part = part.drop_columns(lacking) if lacking else part
        batches.append(Batch(part.replace_schema_metadata(alike.metadata)))
        at = stop
    return batches


_OPTIONAL = ("__before", "__unchanged", NAN.name, ORIGIN.name)


def _told(column: pa.Array) -> Mask:
    """Return which rows say something in a column that a batch has where one of its rows does."""
    if pa.types.is_list(column.type):
        return np.diff(np.asarray(column.offsets)) > 0
    return np.asarray(column.is_valid())


@dataclass(slots=True)
class _Block:
    """Decoded rows: columns, what the batch has besides, and which rows are refused, why, and their JSON."""

    rows: int
    columns: list[pa.Array]
    before: pa.StructArray | None
    unchanged: pa.ListArray | None
    nan: pa.ListArray | None = None
    lost: Mask | None = None
    reasons: list[str] = field(default_factory=list)
    json: list[str] = field(default_factory=list)


def _block(frame: Frame, table: Table, messages: Ints) -> _Block:
    found = tuples(frame, messages, len(table.fields), table.templates)
    before: pa.StructArray | None = None
    nan: list[tuple[str, bool, Mask]] = []
    if found.old_rows is not None and table.fields:
        _fill_unchanged(found)
        before, nan = _before(frame, table, found, messages)
    columns, bad, own = _decode(frame, table, found.new, messages)
    nan = [(table.fields[index].name, False, mask) for index, mask in own.items()] + nan
    block = _Block(messages.size, columns, before, _unchanged(table, found.new), nans(nan, messages.size))
    if bad:
        block.lost = np.logical_or.reduce(list(bad.values()))
        where = block.lost.nonzero()[0].tolist()
        told = bad | {index: mask | bad.get(index, False) for index, mask in own.items()}
        block.reasons = reasons(table.fields, told, found.new, where)
        block.json = [as_json(table.relation.columns, columns, told, found.new, row) for row in where]
    return block


def _concatenated(table: Table, blocks: Sequence[_Block]) -> _Block:
    """Return one block of several; optional columns are there when one of them has them."""
    columns = [pa.concat_arrays(parts) for parts in zip(*(block.columns for block in blocks), strict=True)]
    before, unchanged, nan, lost = None, None, None, None
    if any(block.before is not None for block in blocks):
        kind = pa.struct(table.fields)
        before = pa.concat_arrays([pa.nulls(b.rows, kind) if b.before is None else b.before for b in blocks])
    if any(block.unchanged is not None for block in blocks):
        parts = [pa.array([[]] * b.rows, _LIST) if b.unchanged is None else b.unchanged for b in blocks]
        unchanged = pa.concat_arrays(parts)
    if any(block.nan is not None for block in blocks):
        nan = pa.concat_arrays([nans([], b.rows, always=True) if b.nan is None else b.nan for b in blocks])
    if any(block.lost is not None for block in blocks):
        lost = np.concatenate([np.zeros(b.rows, bool) if b.lost is None else b.lost for b in blocks])
    reasons = [reason for block in blocks for reason in block.reasons]
    json_rows = [text for block in blocks for text in block.json]
    return _Block(sum(block.rows for block in blocks), columns, before, unchanged, nan, lost, reasons, json_rows)


def meta_arrays(ops: Bytes, events: Events) -> list[pa.Array]:
    """Return the columns that every event has."""
    columns: tuple[npt.NDArray[Any], ...] = (ops, events.lsn, events.index, events.ts_us)
    return [values.of_numbers(column, kind, None) for column, kind in zip(columns, _META_TYPES, strict=True)]


def _decode(
    frame: Frame, table: Table, cells: Sequence[Cells], messages: Ints
) -> tuple[list[pa.Array], dict[int, Mask], dict[int, Mask]]:
    """Return all columns; for those with values that Arrow cannot hold, in which rows; and for those with a NaN."""
    decoded, bad, nan = [], {}, {}
    for index, (cell, arrow) in enumerate(zip(cells, table.fields, strict=True)):
        try:
            array, lost = _column(cell, table.relation.columns[index].type_oid, arrow)
        except values.Malformed as error:
            message = int(messages[error.row])
            at = _offset(frame, cell, error.row, message)
            raise frame.error(message, at, f"column «{arrow.name}»: {error}") from error
        if lost is None and pa.types.is_string(array.type):
            lost = values.not_utf8(array)
            array = array if lost is None else values.without(array, lost)
        decoded.append(array)
        if lost is not None and pa.types.is_decimal(arrow.type):
            not_numbers = lost & _is_nan(cell)
            lost = lost & ~not_numbers
            if not_numbers.any():
                nan[index] = not_numbers
        if lost is not None and lost.any():
            bad[index] = lost
    return decoded, bad, nan


_NAN_SIGN, _NAN_TEXT = 0xC000, int.from_bytes(b"NaN", "big")


def _is_nan(cells: Cells) -> Mask:
    """Return which values of numeric are NaN, in either form."""
    kinds, start = cells.kinds, cells.start
    binary = (kinds == BINARY) & (cells.lengths >= 8)
    textual = (kinds == TEXT) & (cells.lengths == 3)
    sign = gather(cells.buffer, np.where(binary, start + 4, 0), ">u2")
    text = gather(cells.buffer, np.where(textual, start, 0), ">u4") >> 8
    return np.asarray((binary & (sign == _NAN_SIGN)) | (textual & (text == _NAN_TEXT)))


def nans(found: Sequence[tuple[str, bool, Mask]], n: int, *, always: bool = False) -> pa.ListArray | None:
    """Return the names of the columns that are NaN, for each row; None when there are none.

    Args:
        found: column, whether it is the old row's, and in which rows.
        always: lists that are empty rather than None.
    """
    if not found and not always:
        return None
    names = pa.array([name for name, _, _ in found], pa.string())
    olds = pa.array([old for _, old, _ in found], pa.bool_())
    items = pa.StructArray.from_arrays([names, olds], fields=list(NAN.type.value_type))
    return _listed([mask for _, _, mask in found], items, n, NAN.type)


def _offset(frame: Frame, cell: Cells, row: int, message: int) -> int:
    """Return the byte of a message at which a cell's value starts."""
    if cell.buffer is frame.buffer:
        return int(cell.start[row] - frame.start[message])
    return int(cell.start[row]) % cell.stride


def _column(cells: Cells, type_oid: int, arrow: pa.Field) -> values.Decoded:
    """Return one column; in one stream its cells are all binary or all text, but for nulls."""
    binary, textual = cells.of_kind(BINARY), cells.of_kind(TEXT)
    if binary is False and textual is False:
        return pa.nulls(cells.n, arrow.type), None
    if binary is False:
        return values.text(cells, _mask(textual), type_oid, arrow.type)
    if not (types.binary_decodable(type_oid) or is_list(arrow.type)):
        kind = arrow.metadata[b"postgres.type"].decode()
        raise NeedsTextMode(f"column «{arrow.name}» has type {kind}, whose binary form is not decoded")
    if textual is False:
        return values.binary(cells, _mask(binary), type_oid, arrow.type)
    first, first_bad = values.binary(cells, _mask(binary), type_oid, arrow.type)
    second, second_bad = values.text(cells, _mask(textual), type_oid, arrow.type)
    bad = first_bad if second_bad is None else second_bad if first_bad is None else first_bad | second_bad
    return pc.coalesce(first, second), bad


def _mask(valid: Mask | bool) -> Mask | None:
    return None if isinstance(valid, bool) else valid


def _fill_unchanged(found: Tuples) -> None:
    """Take values of unchanged columns from the old tuple, where it has them (REPLICA IDENTITY FULL)."""
    assert found.old_rows is not None
    for index, (new, old) in enumerate(zip(found.new, found.old, strict=True)):
        if new.of_kind(UNCHANGED) is False:
            continue
        kind, start, length = new.kinds.copy(), new.start.copy(), new.lengths.copy()
        old_kind = old.kinds
        use = (kind[found.old_rows] == UNCHANGED) & ((old_kind == TEXT) | (old_kind == BINARY))
        where = found.old_rows[use]
        kind[where], start[where], length[where] = old_kind[use], old.start[use], old.lengths[use]
        found.new[index] = Cells(new.buffer, new.n, kind, length, start)


def _before(
    frame: Frame, table: Table, found: Tuples, messages: Ints
) -> tuple[pa.StructArray, list[tuple[str, bool, Mask]]]:
    """Return old rows of updates; null where there is none, or where Arrow cannot hold it (a dead letter itself).

    Also returns in which of them, by column, there is a NaN.
    """
    assert found.old_rows is not None
    decoded, bad, nan = _decode(frame, table, found.old, messages[found.old_rows])
    kept = np.ones(found.old_rows.size, bool)
    for lost in bad.values():
        kept &= ~lost
    where = np.zeros(messages.size, np.int64)
    where[found.old_rows] = np.arange(found.old_rows.size)
    has = np.zeros(messages.size, bool)
    has[found.old_rows] = kept
    structs = pa.StructArray.from_arrays(decoded, fields=table.fields)
    of_all = [(table.fields[index].name, True, mask[where] & has) for index, mask in nan.items()]
    return structs.take(pa.array(where, mask=~has)), of_all


def _unchanged(table: Table, cells: Sequence[Cells]) -> pa.ListArray | None:
    """Return names of the columns that were not sent, for each row; None when all were."""
    found = [(index, cell.of_kind(UNCHANGED)) for index, cell in enumerate(cells)]
    found = [(index, mask) for index, mask in found if mask is not False]
    if not found:
        return None
    names = pa.array([table.fields[index].name for index, _ in found])
    return _listed([mask for _, mask in found], names, cells[0].n, _LIST)


def _listed(masks: Sequence[Mask | bool], items: pa.Array, n: int, kind: pa.DataType) -> pa.ListArray:
    """Return for each row the items of the masks that it is in."""
    matrix = np.zeros((n, len(masks)), bool)
    for at, mask in enumerate(masks):
        matrix[:, at] = mask
    offsets = np.concatenate([[0], np.cumsum(matrix.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items.take(pa.array(np.nonzero(matrix)[1])), type=kind)


# --- refused rows: the few that hold what Arrow cannot, so cell by cell ---

_DAY_US = 86_400_000_000
_NUMERIC_SIGNS = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def reasons(fields: Sequence[pa.Field], bad: dict[int, Mask], cells: Sequence[Cells], rows: Sequence[int]) -> list[str]:
    """Say why each row is refused: ``column «price»: numeric(10,2) «NaN» does not fit decimal128(10, 2)``."""
    texts = []
    for row in rows:
        why = []
        for index, mask in bad.items():
            if mask[row]:
                field = fields[index]
                kind = field.metadata[b"postgres.type"].decode()
                value = refused_text(cells[index], row, kind)
                why.append(f"column «{field.name}»: {kind} «{value}» {misfit(field.type)}")
        texts.append("; ".join(why))
    return texts


def misfit(kind: pa.DataType) -> str:
    """Say why Arrow cannot hold a value."""
    return "is not UTF-8" if pa.types.is_string(kind) else f"does not fit {kind}"


def as_json(
    columns: Sequence[Column], arrays: Sequence[pa.Array], bad: dict[int, Mask], cells: Sequence[Cells], row: int
) -> str:
    """Return one refused row as JSON: numbers, booleans and texts as such, everything else in PostgreSQL's text."""
    values: dict[str, Any] = {}
    for index, (column, array) in enumerate(zip(columns, arrays, strict=True)):
        refused = index in bad and bad[index][row]
        name = types.type_name(column.type_oid, column.typmod)
        values[column.name] = refused_text(cells[index], row, name) if refused else plain_json(array[row])
    return json.dumps(values)


def refused_text(cells: Cells, row: int, type_name: str) -> str:
    """Return PostgreSQL's text of a value that Arrow cannot hold."""
    kind, value = cells.at(row)
    if kind == TEXT or (kind == BINARY and not type_name.startswith(("numeric", "date", "timestamp"))):
        return value.decode(errors="backslashreplace")
    if kind != BINARY:
        return ""
    if type_name.startswith("numeric"):
        return _NUMERIC_SIGNS.get(int.from_bytes(value[4:6], "big"), "more digits than its type has")
    number = int.from_bytes(value, "big", signed=True)
    bits = 8 * len(value)
    if number in (-(1 << bits - 1), (1 << bits - 1) - 1):
        return "infinity" if number > 0 else "-infinity"
    if type_name == "date":
        return date_text(number + 10_957)
    zone = "+00" if type_name.endswith("with time zone") else ""
    return instant_text(number + 10_957 * _DAY_US, "us", zone)


def plain_json(scalar: pa.Scalar) -> Any:
    """Return a value that JSON can say."""
    if not scalar.is_valid:
        return None
    if pa.types.is_date(scalar.type) or pa.types.is_timestamp(scalar.type):
        return texts(pa.array([scalar]))[0]
    value = plain_value(scalar)
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, bool | int | float) else str(value)
