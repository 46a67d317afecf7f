"""What a log knows of a table, compared with the rows that the table has: inserts, updates and deletes between them.

    events of the topic ──▶ spread by key ──▶ newest row of each key ──┐
    rows of the table   ──▶ spread by key ─────────────────────────────┴──▶ what differs, one part after another

Both sides are spread by a hash of their key over parts on disk, of which one at a time is in memory; a key's events and
its row are in parts of one number. Keys and rows are compared by their values, never by hashes.

Rows without a key are compared as wholes: how often the log has each, and how often the table has it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, record_batch, take_records
from headrace.errors import LogError
from headrace.plain_values import is_list, list_offsets, whole
from headrace.value_hashes import hashes

PART_BYTES = 24 << 20
MOST_PARTS = 200  # each side has a file for each, and a process may have 1,024
COMPACT_BYTES = 128 << 20  # events of a part beyond which only what they leave is kept: one key may change for ever
_PUT, _REMOVE = 1, 0
_KIND, _UNSENT, _REFUSED = "__kind", "__unsent", "__refused"


@dataclass(frozen=True, slots=True)
class Difference:
    """Rows that differ in one way: ``c`` only the table has them, ``d`` only the log, ``u`` both, and not alike.

    Attributes:
        rows: as the table has them; of ``d`` as the log has them.
        before: of ``u``, as the log has them. A value that the log was never sent is null.
    """

    op: str
    rows: pa.RecordBatch
    before: pa.RecordBatch | None = None


@dataclass(slots=True)
class Counts:
    """The rows of one table: known to the log, in the table, and what came of comparing them."""

    known: int = 0
    now: int = 0
    equal: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    def add(self, difference: Difference) -> None:
        """Count the rows of a difference."""
        n = difference.rows.num_rows
        self.inserted += n if difference.op == "c" else 0
        self.updated += n if difference.op == "u" else 0
        self.deleted += n if difference.op == "d" else 0


class Comparison:
    """Compares one table with its topic: `note` what the log has, in its order, then `meet` what the table has.

    Args:
        schema: the table's columns as its events have them now.
        key: columns that identify a row, () where nothing does.
        size: bytes of the larger side, estimated; decides how many parts there are.
        directory: where the parts lie. They have no names there, and go with the process, however that ends.

    >>> rows = Comparison(pa.schema([("id", pa.int64()), ("x", pa.float64())]), ["id"])
    >>> rows.note(Batch.of({"id": [1, 2, 3], "x": [0.5, 1.5, 2.5]}, key=["id"]))
    >>> rows.meet(pa.record_batch({"id": [1, 3, 4], "x": [0.5, 9.0, 1.0]}))
    >>> sorted((found.op, found.rows.to_pylist()) for found in rows.differences())
    [('c', [{'id': 4, 'x': 1.0}]), ('d', [{'id': 2, 'x': 1.5}]), ('u', [{'id': 3, 'x': 9.0}])]
    >>> rows.counts
    Counts(known=3, now=3, equal=1, inserted=1, updated=1, deleted=1)
    """

    def __init__(self, schema: pa.Schema, key: Sequence[str], *, size: int = 0, directory: Path | None = None) -> None:
        self._schema = schema.remove_metadata()
        self._key = tuple(key)
        self._count = min(MOST_PARTS, 1 + size // PART_BYTES)
        self._directory = directory
        self._noted_by = self._key
        self._width = (len(schema) + 7) // 8
        self._events = self._parts(pa.field(_KIND, pa.uint8()), pa.field(_UNSENT, pa.binary(self._width)))
        self._rows = self._parts(pa.field(_REFUSED, pa.bool_()))
        self.counts = Counts()

    def _parts(self, *own: pa.Field) -> Parts:
        return Parts(pa.schema([*self._schema, *own]), self._count, self._directory)

    # --- the two sides ---

    def note(self, batch: Batch) -> None:
        """Take events of the topic in, which follow those that were noted before.

        Raises:
            LogError: the topic's rows were identified by a column that the table does not have any more.
        """
        ends = np.flatnonzero(batch.op == OPS["t"])
        if ends.size:
            self._events.clear()
            batch = batch.slice(int(ends[-1]) + 1)
        if not batch.num_rows:
            return
        fitted = Fitted.of(batch, self._schema)
        key = tuple(fitted.names.get(name, name) for name in batch.identity_columns)
        if not set(key) <= set(self._schema.names):
            gone = ", ".join(f"«{name}»" for name in batch.identity_columns)
            raise LogError(f"its rows in the log are identified by {gone}, which the table does not have any more")
        self._note_by(key)
        self._put(_events_of(batch, fitted, self._schema, key or self._schema.names, self._width))

    def _note_by(self, key: tuple[str, ...]) -> None:
        """Have what follows identified by these columns: what was noted so far is spread anew."""
        if set(key) == set(self._noted_by):
            return
        before, by = self._events, self._noted_by
        self._events = self._parts(*list(before.schema)[-2:])
        self._noted_by = key
        for number in range(self._count):
            known = Known.of(before.read(number), by, self._schema)
            self._put(known.as_events(self._width))
        before.close()

    def _put(self, events: pa.RecordBatch) -> None:
        if not events.num_rows:
            return
        self._events.add(events, self._spread(events, self._noted_by))
        for number in np.flatnonzero(self._events.sizes > self._events.limits).tolist():
            known = Known.of(self._events.read(number), self._noted_by, self._schema)
            self._events.replace(number, known.as_events(self._width))

    def meet(self, rows: pa.RecordBatch, refused: pa.RecordBatch | None = None) -> None:
        """Take rows of the table in.

        Args:
            refused: rows that it has and that no event can hold, of which the key alone counts: the log keeps what it
                knows of them.
        """
        self._note_by(self._key)
        for records, is_refused in ((rows, False), (refused, True)):
            if records is None or not records.num_rows or (is_refused and not self._key):
                continue
            self.counts.now += 0 if is_refused else records.num_rows
            flags = pa.array(np.full(records.num_rows, is_refused))
            made = pa.RecordBatch.from_arrays([*records.columns, flags], schema=self._rows.schema)
            self._rows.add(made, self._spread(made, self._key))

    def _spread(self, records: pa.RecordBatch, key: Sequence[str]) -> Ints:
        if self._count == 1:
            return np.zeros(records.num_rows, np.int64)
        found = hashes([records.column(name) for name in key or self._schema.names])
        return (found % np.uint64(self._count)).astype(np.int64)

    # --- what differs ---

    def differences(self) -> Iterator[Difference]:
        """Yield what differs, a part at a time; `counts` is right at the end."""
        self._note_by(self._key)
        compare = _compared if self._key else _counted
        for number in range(self._count):
            events, rows = self._events.read(number), self._rows.read(number)
            codes = Codes.of(events, rows, self._key or self._schema.names)
            for difference in compare(events, rows, codes, self._schema, self.counts):
                if difference.rows.num_rows:
                    self.counts.add(difference)
                    yield difference

    def close(self) -> None:
        """Let the parts go."""
        self._events.close()
        self._rows.close()


# --- parts on disk ---


class Parts:
    """Rows of one schema, spread over files without names: written one after another, then read.

    Attributes:
        sizes: bytes of the rows of each part, about; ``limits``: where they are looked through.
    """

    def __init__(self, schema: pa.Schema, count: int, directory: Path | None) -> None:
        self.schema = schema
        self.sizes = np.zeros(count, np.int64)
        self.limits = np.full(count, COMPACT_BYTES, np.int64)
        self._directory = directory
        self._files: list[IO[bytes] | None] = [None] * count
        self._writers: list[pa.ipc.RecordBatchStreamWriter | None] = [None] * count

    def add(self, records: pa.RecordBatch, parts: Ints) -> None:
        """Write each row to its part."""
        order = np.argsort(parts, kind="stable")
        bounds = np.searchsorted(parts[order], np.arange(len(self._files) + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            mine = order[bounds[number] : bounds[number + 1]]
            part = records if len(mine) == records.num_rows else take_records(records, mine)
            self._writer(number).write_batch(part)
            self.sizes[number] += part.nbytes

    def _writer(self, number: int) -> pa.ipc.RecordBatchStreamWriter:
        writer = self._writers[number]
        if writer is None:
            file = self._files[number] = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            writer = self._writers[number] = pa.ipc.new_stream(file, self.schema, options=options)
        return writer

    def read(self, number: int) -> pa.RecordBatch:
        """Return the rows of one part, in the order in which they were written; it can be replaced then, not added to.

        Raises:
            LogError: they are more than fit in memory together.
        """
        file, writer = self._files[number], self._writers[number]
        if file is None or writer is None:
            return record_batch(self.schema.empty_table())
        writer.close()
        file.seek(0)
        with pa.ipc.open_stream(file) as reader:
            table = reader.read_all()
        found = record_batch(table)
        if found.num_rows != table.num_rows:
            raise LogError(f"{table.num_rows:,} rows of one part have more than 2 GB of text: they cannot be compared")
        return found

    def replace(self, number: int, records: pa.RecordBatch) -> None:
        """Let a part that was read hold these rows only; what it may grow to follows from how large they are."""
        file = self._files[number]
        if file is not None:
            file.close()
        self._files[number] = self._writers[number] = None
        self.sizes[number] = 0
        self.add(records, np.full(records.num_rows, number))
        self.limits[number] = max(COMPACT_BYTES, 2 * self.sizes[number])

    def clear(self) -> None:
        """Forget all rows."""
        self.close()

    def close(self) -> None:
        """Close the files, which are gone then."""
        for writer in self._writers:
            if writer is not None:
                writer.close()
        for file in self._files:
            if file is not None:
                file.close()
        self._files, self._writers = [None] * len(self._files), [None] * len(self._writers)
        self.sizes[:] = 0


# --- events as rows that are put and removed ---


@dataclass(frozen=True, slots=True)
class Fitted:
    """The columns of a batch as the table has them now.

    Attributes:
        columns: in the table's order; null where the batch has no such column.
        names: names that columns had, and have now: another name at the same place, of the same type, is a renaming.
        unknown: columns whose values do not fit the type that they have now.
    """

    columns: list[pa.Array]
    names: Mapping[str, str]
    unknown: frozenset[str]

    @classmethod
    def of(cls, batch: Batch, schema: pa.Schema) -> Fitted:
        """Fit the rows of a batch."""
        rows = batch.rows
        names = _renamings(rows.schema, schema)
        return cls.fit(dict(zip(rows.schema.names, rows.columns, strict=True)), names, schema, batch.num_rows)

    @classmethod
    def fit(cls, given: Mapping[str, pa.Array], names: Mapping[str, str], schema: pa.Schema, n: int) -> Fitted:
        """Fit columns by their names."""
        were = {now: was for was, now in names.items()}
        columns, unknown = [], set()
        for field in schema:
            column = given.get(were.get(field.name, field.name))
            try:
                column = pa.nulls(n, field.type) if column is None else whole(column)
                columns.append(column if column.type == field.type else column.cast(field.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                columns.append(pa.nulls(n, field.type))
                unknown.add(field.name)
        return cls(columns, names, frozenset(unknown))


def _renamings(old: pa.Schema, new: pa.Schema) -> dict[str, str]:
    gone, come = set(old.names) - set(new.names), set(new.names) - set(old.names)
    pairs = zip(old, new, strict=False)
    return {a.name: b.name for a, b in pairs if a.name in gone and b.name in come and a.type == b.type}


def _events_of(batch: Batch, fitted: Fitted, schema: pa.Schema, key: Sequence[str], width: int) -> pa.RecordBatch:
    """Return what a batch puts and removes; the row that an update moves away from its key is removed before."""
    kinds = np.where(batch.op == OPS["d"], _REMOVE, _PUT).astype(np.uint8)
    unsent = _unsent(batch, fitted, schema, width)
    made = _made(fitted.columns, kinds, unsent, schema, width)
    before = batch.before
    if before is None or before.null_count == len(before):
        return made
    fields = {field.name: before.field(i) for i, field in enumerate(before.type)}
    old = Fitted.fit(fields, fitted.names, schema, batch.num_rows)
    moved = np.zeros(batch.num_rows, np.bool_)
    for name in key:
        at = schema.get_field_index(name)
        moved |= ~same(old.columns[at], fitted.columns[at])
    moved &= np.asarray(before.is_valid())
    if not moved.any():
        return made
    rows = np.flatnonzero(moved)
    removed = take_records(_made(old.columns, np.zeros_like(kinds), None, schema, width), rows)
    order = np.argsort(np.concatenate([2 * rows, 2 * np.arange(batch.num_rows) + 1]), kind="stable")
    return take_records(record_batch(pa.Table.from_batches([removed, made])), order)


def _made(
    columns: Sequence[pa.Array], kinds: Ints | np.ndarray, unsent: Mask | None, schema: pa.Schema, width: int
) -> pa.RecordBatch:
    kind, bits = pa.field(_KIND, pa.uint8()), pa.field(_UNSENT, pa.binary(width))
    flags = pa.nulls(len(kinds), bits.type) if unsent is None else _packed(unsent, bits.type)
    return pa.RecordBatch.from_arrays([*columns, pa.array(kinds), flags], schema=pa.schema([*schema, kind, bits]))


def _packed(matrix: Mask, kind: pa.DataType) -> pa.Array:
    packed = np.packbits(matrix, axis=1, bitorder="little")
    return pa.Array.from_buffers(kind, len(matrix), [None, pa.py_buffer(np.ascontiguousarray(packed))])


def _unsent(batch: Batch, fitted: Fitted, schema: pa.Schema, width: int) -> Mask | None:
    """Return which values of each row the log was not sent: as the server left them out, or none that fits."""
    unchanged = batch.unchanged
    if unchanged is None and not fitted.unknown:
        return None
    matrix = np.zeros((batch.num_rows, 8 * width), np.bool_)
    for name in fitted.unknown:
        matrix[:, schema.get_field_index(name)] = True
    if unchanged is not None and len(unchanged.flatten()):
        rows = np.repeat(np.arange(batch.num_rows), np.asarray(pc.list_value_length(unchanged).fill_null(0)))
        named = unchanged.flatten().dictionary_encode()
        places = [schema.get_field_index(fitted.names.get(name, name)) for name in named.dictionary.to_pylist()]
        columns = np.array(places)[np.asarray(named.indices)]
        matrix[rows[columns >= 0], columns[columns >= 0]] = True
    return matrix


# --- one part in memory ---


@dataclass(frozen=True, slots=True)
class Known:
    """The rows that are left of a part's events.

    Attributes:
        rows: with the values that each was sent last.
        unsent: which values no event has, (rows, columns); None where all are known.
    """

    rows: pa.RecordBatch
    unsent: Mask | None

    @classmethod
    def of(cls, events: pa.RecordBatch, key: Sequence[str], schema: pa.Schema) -> Known:
        """Return what is left of events; without a key each row as often as it was put and not removed."""
        columns = key or schema.names
        codes = coded([events.column(name) for name in columns]) if events.num_rows else np.zeros(0, np.int64)
        if key:
            return newest(events, codes, int(codes.max(initial=-1)) + 1, schema)[0]
        last, times = _standing(events, codes, int(codes.max(initial=-1)) + 1)
        rows = np.repeat(last[times > 0], times[times > 0])
        return cls(take_records(events.select(schema.names), rows), None)

    def as_events(self, width: int) -> pa.RecordBatch:
        """Return events that put these rows."""
        kinds = np.full(self.rows.num_rows, _PUT, np.uint8)
        unsent = self.unsent
        if unsent is not None:
            unsent = np.pad(unsent, ((0, 0), (0, 8 * width - unsent.shape[1])))
        return _made(self.rows.columns, kinds, unsent, self.rows.schema, width)


def newest(events: pa.RecordBatch, codes: Ints, count: int, schema: pa.Schema) -> tuple[Known, Ints]:
    """Return the newest row of each key that has one, and the keys' codes."""
    n = events.num_rows
    puts = np.asarray(events.column(_KIND)) == _PUT
    at = np.arange(n)
    last = _last(codes, at, count)
    keys = np.flatnonzero((last >= 0) & puts[last] if n else np.zeros(count, np.bool_))
    rows = take_records(events.select(schema.names), last[keys])
    flags = events.column(_UNSENT)
    if flags.null_count == n:
        return Known(rows, None), keys
    bits = _unpacked(flags, len(schema))
    removed = _last(codes[~puts], at[~puts], count)
    unknown = np.zeros((len(keys), len(schema)), np.bool_)
    columns = list(rows.columns)
    for column in np.flatnonzero(bits.any(axis=0)).tolist():
        sent = puts & ~bits[:, column]
        source = _last(codes[sent], at[sent], count)
        source = np.where(source > removed, source, -1)[keys]
        unknown[:, column] = source < 0
        columns[column] = events.column(column).take(pa.array(source, mask=source < 0))
    return Known(pa.RecordBatch.from_arrays(columns, schema=schema), unknown), keys


def _last(codes: Ints, at: Ints, count: int) -> Ints:
    """Return the last place of each code, -1 where it has none."""
    found = np.full(count, -1, np.int64)
    np.maximum.at(found, codes, at)
    return found


def _unpacked(flags: pa.Array, columns: int) -> Mask:
    width = flags.type.byte_width
    held = flags.fill_null(bytes(width)).buffers()[1]
    packed = np.frombuffer(held, np.uint8)[flags.offset * width :][: len(flags) * width].reshape(len(flags), width)
    return np.unpackbits(packed, axis=1, bitorder="little")[:, :columns].astype(np.bool_)


@dataclass(frozen=True, slots=True)
class Codes:
    """The keys of a part, as whole numbers from 0 on: of its events and of the table's rows.

    Attributes:
        count: how many keys there are.
        there: where the table has each key, -1 where it does not.
    """

    events: Ints
    rows: Ints
    count: int
    there: Ints

    @classmethod
    def of(cls, events: pa.RecordBatch, rows: pa.RecordBatch, key: Sequence[str]) -> Codes:
        """Number the keys of both sides together."""
        codes = coded([pa.concat_arrays([events.column(name), rows.column(name)]) for name in key])
        mine, theirs = np.split(codes, [events.num_rows])
        count = int(codes.max(initial=-1)) + 1
        return cls(mine, theirs, count, _last(theirs, np.arange(rows.num_rows), count))


def _compared(
    events: pa.RecordBatch, rows: pa.RecordBatch, codes: Codes, schema: pa.Schema, counts: Counts
) -> Iterator[Difference]:
    """Yield what differs between the newest rows of events and a table's rows, key by key."""
    known, keys = newest(events, codes.events, codes.count, schema)
    counts.known += len(keys)
    there = codes.there
    place = np.full(codes.count, -1, np.int64)
    place[keys] = np.arange(len(keys))
    values, refused = rows.select(schema.names), np.asarray(rows.column(_REFUSED))
    yield Difference("d", take_records(known.rows, np.flatnonzero(there[keys] < 0)))
    both = keys[there[keys] >= 0]
    both = both[~refused[there[both]]] if len(both) else both
    old, new = take_records(known.rows, place[both]), take_records(values, there[both])
    differs = np.zeros(len(both), np.bool_)
    for a, b in zip(old.columns, new.columns, strict=True):
        differs |= ~same(a, b)
    if known.unsent is not None:
        differs |= known.unsent[place[both]].any(axis=1)
    counts.equal += int((~differs).sum())
    changed = np.flatnonzero(differs)
    yield Difference("u", take_records(new, changed), take_records(old, changed))
    fresh = (place[codes.rows] < 0) & ~refused
    yield Difference("c", take_records(values, np.flatnonzero(fresh)))


def _counted(
    events: pa.RecordBatch, rows: pa.RecordBatch, codes: Codes, schema: pa.Schema, counts: Counts
) -> Iterator[Difference]:
    """Yield rows that a table has more often, or less often, than events leave them."""
    last, times = _standing(events, codes.events, codes.count)
    now = np.bincount(codes.rows, minlength=codes.count)
    counts.known += int(times.sum())
    counts.equal += int(np.minimum(times, now).sum())
    less, more = np.maximum(times - now, 0), np.maximum(now - times, 0)
    yield Difference("d", take_records(events.select(schema.names), np.repeat(last, less)))
    yield Difference("c", take_records(rows.select(schema.names), np.repeat(codes.there, more)))


def _standing(events: pa.RecordBatch, codes: Ints, count: int) -> tuple[Ints, Ints]:
    """Return where each row was put last, and how often it stands; rows removed unseen are none."""
    puts = np.asarray(events.column(_KIND)) == _PUT
    last = _last(codes[puts], np.flatnonzero(puts), count)
    times = np.zeros(count, np.int64)
    order = np.argsort(codes, kind="stable")
    if order.size:
        begins = np.flatnonzero(np.diff(codes[order], prepend=-1))
        sums = np.cumsum(np.where(puts, 1, -1)[order])
        before = np.concatenate([[0], sums[begins[1:] - 1]])
        lowest = np.minimum.reduceat(sums, begins) - before
        total = sums[np.append(begins[1:], order.size) - 1] - before
        times[codes[order[begins]]] = total - np.minimum(lowest, 0)
    return last, times


# --- equality ---


def same(a: pa.Array, b: pa.Array) -> Mask:
    """Return which values are the same: both null, or equal; NaN is NaN, and -0.0 is not 0.0, as bits are.

    >>> same(pa.array([1.0, float("nan"), 0.0, None]), pa.array([1.0, float("nan"), -0.0, 1.0])).tolist()
    [True, True, False, False]
    """
    both_null = np.asarray(a.is_null()) & np.asarray(b.is_null())
    found: Mask = np.asarray(pc.equal(_bits(a), _bits(b)).fill_null(False)) | both_null
    return found


def coded(columns: Sequence[pa.Array]) -> Ints:
    """Return whole numbers from 0 on, equal for rows whose values are the same.

    >>> coded([pa.array([7, 7, None, None]), pa.array(["a", "b", None, None])]).tolist()
    [0, 1, 2, 2]
    """
    codes: Ints | None = None
    for column in columns:
        encoded = _bits(column).dictionary_encode(null_encoding="encode")
        next_codes = np.asarray(encoded.indices).astype(np.int64)
        if codes is None:
            codes = next_codes
        else:
            codes = np.unique(codes * (int(next_codes.max(initial=0)) + 1) + next_codes, return_inverse=True)[1]
    assert codes is not None
    return codes


def _bits(array: pa.Array) -> pa.Array:
    """Return floats as their bits, of which NaN has one form; other values as they are."""
    array = whole(array)
    if is_list(array.type):
        return _items_as_bytes(array)
    if not pa.types.is_floating(array.type):
        return array
    numbers = array.fill_null(0).to_numpy(zero_copy_only=False)
    canonical = np.where(np.isnan(numbers), np.array(np.nan, numbers.dtype), numbers)
    bits = canonical.view(f"i{numbers.dtype.itemsize}")
    return pa.array(bits, mask=np.asarray(array.is_null()))


def _items_as_bytes(lists: pa.Array) -> pa.Array:
    """Return lists of numbers as the bytes of their numbers.

    >>> _items_as_bytes(pa.array([[1.0], None], pa.list_(pa.float32()))).to_pylist()
    [b'\\x00\\x00\\x80?', None]
    """
    numbers = np.ascontiguousarray(_bits(lists.flatten()))
    buffers = [None, pa.py_buffer(list_offsets(lists) * numbers.itemsize), pa.py_buffer(numbers)]
    packed = pa.Array.from_buffers(pa.large_binary(), len(lists), buffers)
    return pc.if_else(lists.is_valid(), packed, None)
