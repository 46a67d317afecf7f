"""Rows of a topic for which a condition in SQL holds, found a chunk at a time in the order of the page.

A chunk's columns that the condition may mean become a table of DuckDB's, which reads Arrow in place. Beside the
columns there are ``op``, ``position``, ``ts`` and ``offset``, and, as structs, ``key`` and ``headers``; a column of
the topic's own comes before one of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import META_FIELDS, Batch, is_meta, present, take_records
from headrace.errors import LogError
from headrace.inspect.query import Bounds, for_duckdb
from headrace.log.base import TopicInfo
from headrace.ui.read.moment import Moment
from headrace.ui.read.topics import cells_of, offset_numbers, table_of

CHUNK_ROWS = 131_072
FIRST_ROWS = 8_192
ROW = "__row"
OURS = ("op", "position", "ts", "headers")
_LINE = re.compile(r"^LINE (\d+):", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """What one chunk gave.

    Attributes:
        looked: rows looked at until now, of ``of``.
        found: offset of each row that was found, and the row, in the order of the page.
        cells: gives their offsets and cells, by columns that a page shows.
    """

    looked: int
    of: int
    found: Sequence[tuple[int | str, object]]
    cells: Callable[[Sequence[str]], Sequence[tuple[int | str, list[str]]]]


@dataclass(frozen=True, slots=True)
class Search:
    """A condition, over the rows of a topic at a moment.

    Args:
        condition: of SQL, as it stands after ``where``.
        first, end: the rows that are looked at.
        newest_first: the order.
        bounds: of the query.
    """

    moment: Moment
    topic: TopicInfo
    condition: str
    first: int
    end: int
    newest_first: bool
    bounds: Bounds

    def steps(self, most: int) -> Iterator[Step]:
        """Look at one chunk after the other, small ones first, until so many rows are found.

        Raises:
            LogError: the condition is wrong, with its place; or it was cancelled.
        """
        with self.bounds.connection() as connection:
            condition = Condition(connection, self.condition, self._shape(), self.bounds)
            looked, of, rows = 0, self.end - self.first, FIRST_ROWS
            while looked < of and most > 0:
                count = min(rows, of - looked)
                start = self.end - looked - count if self.newest_first else self.first + looked
                parts = condition.matching(self.moment.rows(self.topic.name, start, start + count))
                found = list(self._first(parts, most))
                most -= len(found)
                looked, rows = looked + count, CHUNK_ROWS
                if found and most <= 0:
                    last = found[-1][0]
                    looked = self.end - last if self.newest_first else last - self.first + 1
                yield Step(looked, of, found, partial(_cells, found))

    def place(self, looked: int) -> int:
        """Return where to look on after so many rows."""
        return self.end - looked - 1 if self.newest_first else self.first + looked

    def _first(self, parts: Iterator[tuple[pa.RecordBatch, Ints]], most: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield the first rows of a chunk in the order of the page."""
        taken = list(parts)
        for records, numbers in reversed(taken) if self.newest_first else taken:
            rows = range(records.num_rows)
            for row in (rows[::-1] if self.newest_first else rows)[:most]:
                yield int(numbers[row]), records.slice(row, 1)
                most -= 1

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows that are found, the oldest first, as people read them."""
        with self.bounds.connection() as connection:
            condition = Condition(connection, self.condition, self._shape(), self.bounds)
            for start in range(self.first, self.end, CHUNK_ROWS):
                parts = self.moment.rows(self.topic.name, start, min(self.end, start + CHUNK_ROWS))
                for records, numbers in condition.matching(parts):
                    yield _numbered(present(records), pa.array(numbers))

    def _shape(self) -> pa.Schema:
        return all_columns(self.moment, self.topic)


def _cells(found: Sequence[tuple[int, pa.RecordBatch]], columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    return [cells_of(table_of([row]), columns)[0] for row in found]


def _numbered(table: pa.Table, numbers: pa.Array) -> pa.Table:
    name = "offset"
    while name in table.column_names:
        name = f"__{name}"
    return table.add_column(0, name, numbers)


def all_columns(moment: Moment, topic: TopicInfo) -> pa.Schema:
    """Return all columns that rows of a topic have had, with the newest type of each."""
    found: dict[str, pa.Field] = {}
    metadata = None
    for _, schema in moment.log.schemas(topic.name):
        found |= {field.name: field for field in schema}
        metadata = schema.metadata
    own = [field for name, field in found.items() if not is_meta(name)]
    return pa.schema([*own, *(field for name, field in found.items() if is_meta(name))], metadata)


class Condition:
    """A condition that is asked of many tables.

    Raises:
        LogError: it is wrong.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, text: str, shape: pa.Schema, bounds: Bounds) -> None:
        self._connection = connection
        self._bounds = bounds
        self._text = text
        self._shape = shape
        low = text.lower()
        everything = "*" in text
        self._named: Callable[[str], bool] = lambda name: everything or name.lower() in low
        keys = Batch(pa.RecordBatch.from_pylist([], shape)).key_columns if len(shape) else ()
        self._keys = [name for name in keys if name in shape.names] if self._named("key") else []
        self._query = self._made()
        self._checked()

    def _made(self) -> str:
        names = [name.lower() for name in self._shape.names]
        extra = ""
        if self._keys and "key" not in names:
            extra += f", struct_pack({', '.join(f'{_quoted(name)} := {_quoted(name)}' for name in self._keys)}) as key"
        if self._named("headers") and "headers" not in names and self._is_events:
            extra += ", struct_pack(op := op, position := position, ts := ts) as headers"
        # The condition has lines of its own, so that messages tell its place.
        return f"select {ROW} from (select *{extra} from chunk) where (\n{self._text}\n)"

    @property
    def _is_events(self) -> bool:
        return {field.name for field in META_FIELDS} <= set(self._shape.names)

    def _checked(self) -> None:
        if not self._text.strip():
            raise LogError("the filter is empty", advice="Write a condition: price > 3 and op = 'c'.")
        try:
            statements = self._connection.extract_statements(self._query)
            if len(statements) != 1:
                raise LogError("the filter holds a semicolon", advice="Write one condition.")
            self._bounds.refuse(statements[0])
            self.rows(pa.RecordBatch.from_pylist([], self._shape))
        except duckdb.Error:
            self._named = lambda _: True  # the message then names all columns that there are
            try:
                self.rows(pa.RecordBatch.from_pylist([], self._shape))
            except duckdb.Error as fuller:
                error = fuller
            raise self._refusal(error) from error

    def matching(self, parts: Iterator[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        """Yield the rows for which it holds, with their offsets; rows of one schema are asked together."""
        run: list[tuple[int, pa.RecordBatch]] = []
        for part in parts:
            self._bounds.check()
            if run and not part[1].schema.equals(run[-1][1].schema, check_metadata=True):
                yield from self._found(run)
                run = []
            run.append(part)
        if run:
            yield from self._found(run)

    def _found(self, run: list[tuple[int, pa.RecordBatch]]) -> Iterator[tuple[pa.RecordBatch, Ints]]:
        table = pa.Table.from_batches([records for _, records in run]).combine_chunks()
        records = table.to_batches()[0] if table.num_rows else run[0][1]
        offsets = np.concatenate([np.arange(start, start + part.num_rows) for start, part in run])
        try:
            rows = self.rows(records, offsets)
        except duckdb.Error as error:
            raise self._refusal(error) from error
        if len(rows):
            yield take_records(records, rows), offsets[rows]

    def rows(self, records: pa.RecordBatch, offsets: Ints | None = None) -> Ints:
        """Return the numbers of the rows for which it holds."""
        events = self._is_events and any(map(self._named, OURS))
        wanted = [field for field in self._shape if self._named(field.name) or field.name in self._keys]
        wanted += [field for field in self._shape if events and is_meta(field.name) and field not in wanted]
        columns = {
            field.name: records.column(field.name)
            if field.name in records.schema.names
            else pa.nulls(records.num_rows, field.type)
            for field in wanted
        }
        count = records.num_rows
        numbers = offset_numbers(0, count) if offsets is None else pa.array(offsets)
        table = pa.table({**columns, ROW: offset_numbers(0, count)})
        table = present(table) if events else table
        if "offset" not in (name.lower() for name in table.column_names):
            table = table.append_column("offset", numbers)
        self._connection.register("chunk", for_duckdb(table))
        try:
            found = self._connection.sql(self._query)
            return np.asarray(found.to_arrow_table().column(0)) if count else np.array([], np.int64)
        finally:
            self._connection.unregister("chunk")

    def _refusal(self, error: duckdb.Error) -> LogError:
        self._bounds.check()
        if isinstance(error, duckdb.OutOfMemoryException):
            return self._bounds.too_much()
        text = _LINE.sub(lambda found: f"LINE {max(1, int(found[1]) - 1)}:", str(error)).strip()
        return LogError(f"the filter is wrong: {text}", advice="It is a condition of SQL: price > 3 and op = 'c'.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
