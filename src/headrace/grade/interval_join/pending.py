"""The rows that wait: what a prediction or a label holds, kept until its outcome is known.

Rows are known by consecutive numbers. They lie in chunks of Arrow record batches: chunks of few rows are merged as
they come (each row is copied about three times, whatever the size of the events), and a chunk of which half has left
is rewritten without it. A row that stays for long therefore holds back only itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.plain_values import united

# Chunks below a size are merged once there are MERGED of them at the end.
SIZES = (64, 2_048, 65_536)
MERGED = 32
# Bytes that a piece of something larger may keep from being given back, until it is merged.
PINNED = 16_384
# Between a column's name and the number of a further kind of its values.
KIND = "\0"
TEXT = pa.table({"x": pa.array([], pa.string())})


@dataclass(slots=True)
class _Chunk:
    """Rows with ascending numbers; ``seqs`` is None where they are ``first``, ``first + 1``, …"""

    first: int
    records: pa.RecordBatch
    seqs: Ints | None
    gone: Mask | None
    live: int

    @property
    def size(self) -> int:
        return int(self.records.num_rows)

    def numbers(self) -> Ints:
        return np.arange(self.first, self.first + self.size) if self.seqs is None else self.seqs

    def where(self, seqs: Ints) -> Ints:
        """Places of rows in the chunk.

        Raises:
            KeyError: one is not there.
        """
        at = seqs - self.first if self.seqs is None else np.searchsorted(self.seqs, seqs)
        inside = at < self.size
        if not inside.all() or (self.seqs is not None and (self.seqs[at] != seqs).any()):
            raise KeyError("a row that is asked for has left")
        if self.gone is not None and self.gone[at].any():
            raise KeyError("a row that is asked for has left")
        return at


class PendingRows:
    """Rows by their numbers.

    >>> rows = PendingRows()
    >>> rows.add(pa.record_batch({"id": [7, 8]})), rows.add(pa.record_batch({"id": [9.5]}))
    (0, 2)
    >>> rows.drop(np.array([0]))
    >>> rows.take(np.array([2, -1, 1])).column("id").to_pylist(), len(rows)
    ([9.5, None, 8.0], 2)
    >>> rows.add(pa.record_batch({"id": ["n/a"]}))
    3
    >>> rows.take(np.array([2, 1])).column("id").to_pylist(), rows.take(np.array([3, 2])).column("id").to_pylist()
    ([9.5, 8.0], ['n/a', '9.5'])
    """

    __slots__ = ("_chunks", "_firsts", "next", "schema")

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._firsts: list[int] = []
        self.next = 0
        self.schema = pa.schema([])

    def __len__(self) -> int:
        return sum(chunk.live for chunk in self._chunks)

    @property
    def nbytes(self) -> int:
        """Bytes that the chunks hold, those of rows that have left and are not given back yet included."""
        return sum(chunk.records.nbytes for chunk in self._chunks)

    def add(self, records: pa.RecordBatch) -> int:
        """Keep rows. Returns the number of the first; the others follow it.

        A column whose type cannot be one with what it had before is kept beside it, for these rows only (decision 29).
        """
        records = self.told_apart(records)
        first = self.next
        n = records.num_rows
        if n:
            self._chunks.append(_Chunk(first, self._conformed(_own(records)), None, None, n))
            self._firsts.append(first)
            self.next += n
            self._merge_tail(n)
        return first

    def _widened(self, columns: Iterable[pa.Field]) -> pa.Schema:
        # A row that is not there is a row of nulls.
        fields = [pa.field(column.name, column.type) for column in columns]
        return pa.unify_schemas([self.schema, pa.schema(fields)], promote_options="permissive")

    def _widen(self, schema: pa.Schema) -> None:
        """Take new columns and wider types into the common schema: it depends on the rows, not on their chunks."""
        if schema.equals(self.schema):
            return
        self.schema = self._widened(schema)

    def told_apart(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows whose columns have the names under which their types are kept, which the schema then has."""
        if not self.takes(records.schema):
            names = []
            for field in records.schema:
                name, number = field.name, 0
                while not self.takes([field.with_name(name)]):
                    number += 1
                    name = f"{field.name}{KIND}{number}"
                names.append(name)
            records = records.rename_columns(names)
        self._widen(records.schema)
        return records

    def takes(self, columns: Iterable[pa.Field]) -> bool:
        """Return whether the types of columns can be one with what they had before."""
        if columns == self.schema:
            return True
        try:
            self._widened(columns)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return False
        return True

    def _merge_tail(self, size: int) -> None:
        for most in (most for most in SIZES if most > size):
            count = 0
            while count < len(self._chunks) and self._chunks[-1 - count].size < most:
                count += 1
            if count < MERGED:
                return
            self._replace(len(self._chunks) - count, len(self._chunks))

    def _replace(self, start: int, stop: int) -> None:
        """Make one chunk of some neighbours, without the rows that have left."""
        merged = self._merged(self._chunks[start:stop])
        self._chunks[start:stop] = merged
        self._firsts[start:stop] = [chunk.first for chunk in merged]

    def _merged(self, chunks: list[_Chunk]) -> list[_Chunk]:
        parts, numbers = [], []
        for chunk in chunks:
            kept = None if chunk.gone is None else ~chunk.gone
            records = chunk.records if kept is None else chunk.records.filter(pa.array(kept))
            parts.append(self._conformed(records))
            numbers.append(chunk.numbers() if kept is None else chunk.numbers()[kept])
        seqs = np.concatenate(numbers)
        if not len(seqs):
            return []
        records = parts[0] if len(parts) == 1 else pa.concat_batches(parts)
        first, last = int(seqs[0]), int(seqs[-1])
        dense = last - first + 1 == len(seqs)
        return [_Chunk(first, records, None if dense else seqs, None, len(seqs))]

    def _conformed(self, records: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows under the common schema: columns that are not theirs are null."""
        if records.schema.equals(self.schema):
            return records
        own = dict(zip(records.schema.names, records.columns, strict=True))
        columns = [
            _as_type(own[field.name], field.type) if field.name in own else pa.nulls(records.num_rows, field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema) if columns else records

    def take(self, seqs: Ints) -> pa.Table:
        """Return rows by their numbers, in that order, under one schema; -1 gives a row of nulls.

        A column that has values of several kinds in these rows (numbers and text) is text.

        Raises:
            KeyError: a row was dropped, or never there.
        """
        return of_one_kind(self.take_apart(seqs))

    def take_apart(self, seqs: Ints) -> pa.Table:
        """Return rows likewise; a column that has had several kinds of values is several, see `alike`."""
        seqs = np.asarray(seqs, np.int64)
        if len(seqs) == 1 and seqs[0] >= 0:
            return self._one(seqs)
        absent = seqs < 0
        if absent.all():
            return self._nulls(len(seqs))
        some = bool(absent.any())
        of = np.searchsorted(np.array(self._firsts), seqs, "right") - 1
        if ((of < 0) & ~absent).any():
            raise KeyError("a row that is asked for has left")
        wanted = np.unique(of[~absent] if some else of)
        if len(wanted) == 1 and not some:
            chunk = self._chunks[wanted[0]]
            return self._table(picked(chunk.records, chunk.where(seqs)))
        at = np.zeros(len(seqs), np.int64)
        parts, begin = [], 0
        for number in wanted:
            rows = np.flatnonzero((of == number) & ~absent)
            chunk = self._chunks[number]
            parts.append(self._conformed(picked(chunk.records, chunk.where(seqs[rows]))))
            at[rows] = np.arange(begin, begin + len(rows))
            begin += len(rows)
        joined = pa.concat_batches(parts)
        if some or not ascends(at):
            joined = joined.take(pa.array(at, mask=absent) if some else pa.array(at))
        return self._table(joined)

    def _one(self, seqs: Ints) -> pa.Table:
        """Return one row, as a piece of its chunk."""
        i = bisect_right(self._firsts, int(seqs[0])) - 1
        if i < 0:
            raise KeyError("a row that is asked for has left")
        chunk = self._chunks[i]
        return self._table(chunk.records.slice(int(chunk.where(seqs)[0]), 1))

    def _table(self, records: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([self._conformed(records)], schema=self.schema)

    def _nulls(self, n: int) -> pa.Table:
        return pa.table([pa.nulls(n, field.type) for field in self.schema], schema=self.schema)

    def drop(self, seqs: Ints) -> None:
        """Let rows go; each at most once.

        Raises:
            KeyError: a row was dropped before, or never there.
        """
        if len(seqs) == 1:
            self._drop_from(bisect_right(self._firsts, int(seqs[0])) - 1, seqs)
            return
        seqs = np.sort(seqs)
        # From the end: a chunk that disappears moves those behind it.
        bounds = np.searchsorted(seqs, np.array([*self._firsts, np.iinfo(np.int64).max]))
        for i in np.flatnonzero(np.diff(bounds))[::-1].tolist():
            self._drop_from(i, seqs[bounds[i] : bounds[i + 1]])

    def _drop_from(self, i: int, seqs: Ints) -> None:
        if i < 0:
            raise KeyError("a row that is to leave has left")
        chunk = self._chunks[i]
        if len(seqs) == chunk.live == chunk.size:
            chunk.where(seqs)
            self._chunks.pop(i)
            self._firsts.pop(i)
            return
        at = chunk.where(seqs)
        if chunk.gone is None:
            chunk.gone = np.zeros(chunk.size, np.bool_)
        chunk.gone[at] = True
        chunk.live -= len(seqs)
        if 2 * chunk.live > chunk.size:
            return
        before = self._chunks[i - 1] if i else None
        # What few rows are left of neighbours lie together, else a few that stay long would be as many chunks.
        both = before is not None and before.live <= 4 * chunk.size and before.live + chunk.live <= SIZES[-1] // 2
        self._replace(i - both, i + 1)

    def snapshot(self) -> dict[str, npt.NDArray[Any] | int | str]:
        """Return all rows: their numbers, and an Arrow IPC stream of them."""
        merged = self._merged(self._chunks) if self._chunks else []
        table = pa.Table.from_batches([chunk.records for chunk in merged], schema=self.schema)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.schema) as writer:
            writer.write_table(table)
        seqs = merged[0].numbers() if merged else np.empty(0, np.int64)
        return {"next": self.next, "seqs": seqs, "rows": np.frombuffer(sink.getvalue(), np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[Any] | int | str]) -> None:
        """Become what `snapshot` was taken of."""
        reader = pa.ipc.open_stream(pa.py_buffer(np.ascontiguousarray(state["rows"], np.uint8)))
        self.schema = reader.schema
        self.next = int(state["next"])
        seqs = np.asarray(state["seqs"], np.int64)
        self._chunks, begin = [], 0
        for whole in reader:
            for start in range(0, whole.num_rows, SIZES[-1]):
                records = whole.slice(start, SIZES[-1])
                numbers = seqs[begin : begin + records.num_rows]
                begin += records.num_rows
                dense = int(numbers[-1]) - int(numbers[0]) + 1 == len(numbers)
                own = None if dense else numbers.copy()
                self._chunks.append(_Chunk(int(numbers[0]), _own(records), own, None, len(numbers)))
        self._firsts = [chunk.first for chunk in self._chunks]


def alike(*tables: pa.Table) -> Iterator[slice]:
    """Yield the runs of rows that have values of one kind in each column; see `PendingRows.take_apart`.

    Args:
        tables: columns of the same rows.
    """
    size = len(tables[0])
    begins = np.zeros(size, np.bool_)
    begins[:1] = True
    for table in tables:
        for names in _kinds(table).values():
            kind = np.zeros(size, np.int64)
            for number, name in enumerate(names):
                kind[table.column(name).is_valid().to_numpy()] = number
            begins[1:] |= np.diff(kind) != 0
    starts = np.flatnonzero(begins).tolist()
    yield from map(slice, starts, [*starts[1:], size])


def of_one_kind(table: pa.Table) -> pa.Table:
    """Return rows with each column under its own name, of the kind that it has in them; text where it has several."""
    found = {}
    for plain, names in _kinds(table).items():
        there = [name for name in names if table.column(name).null_count < len(table)]
        if len(there) < 2:
            found[plain] = table.column(there[0] if there else names[0])
        else:
            texts = [united([table.select([name]).rename_columns(["x"]), TEXT]).column("x") for name in there]
            found[plain] = pc.coalesce(*texts)
    if not found:
        return table
    names = list(dict.fromkeys(name.partition(KIND)[0] for name in table.column_names))
    return pa.table([found[name] if name in found else table.column(name) for name in names], names)


def _kinds(table: pa.Table) -> dict[str, list[str]]:
    """Return the columns that have several kinds of values, with the names of those that hold each."""
    found: dict[str, list[str]] = {}
    for name in table.column_names:
        if KIND in name:
            plain = name.partition(KIND)[0]
            found.setdefault(plain, [plain] if plain in table.column_names else []).append(name)
    return found


def picked(records: pa.RecordBatch | pa.Table, rows: Ints) -> Any:
    """Return some of the rows; a slice where they stand together, as where labels come in the predictions' order.

    >>> picked(pa.table({"a": [4, 5, 6]}), np.array([1, 2])).to_pydict()
    {'a': [5, 6]}
    """
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and ascends(rows):
        return records.slice(int(rows[0]), len(rows))
    return records.take(pa.array(rows))


def ascends(numbers: Ints) -> bool:
    """Return whether each is greater than the one before."""
    return bool((numbers[1:] > numbers[:-1]).all())


def _as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    return values if values.type.equals(kind) else values.cast(kind, safe=False)


def _own(records: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows in memory of their own, where they are a small piece of something larger, without metadata."""
    records = records.replace_schema_metadata(None)
    held = records.get_total_buffer_size()
    if held > PINNED and held > 2 * records.nbytes:
        return records.take(pa.array(np.arange(records.num_rows)))
    return records
