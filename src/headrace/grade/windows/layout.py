"""The layout of windows and of their results: columns, types and aggregates."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.errors import DeclarationError
from headrace.grade.columns import NUMERIC, column_index, is_numeric, plain, refuse_nested, wider
from headrace.grade.metrics import Aggregate
from headrace.grade.operator_logic import Results
from headrace.plain_values import is_text

TIME = pa.timestamp("us", tz="UTC")
FINAL, CHANGES = "final", "changes"
NO_NUMBER = -1
_WHO = "a window"
_OWN = ("window_start", "window_end", "rows", FINAL)
OF_NUMBERS = frozenset({"mean", "median", "quantile", "sum", "std"})
_OF_PLAIN = frozenset({"min", "max", "unique"})
_AS_COLUMN = frozenset({"min", "max", "first", "last"})


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """A window: over time, or over the newest rows.

    Attributes:
        size_us: microseconds; windows are aligned to the epoch, ``[k * every_us, k * every_us + size_us)``.
        every_us: ``size_us`` (tumbling) unless it is given; smaller for hopping windows.
        rows: in place of a size: a line is over the newest ``rows`` rows of a group, the first as soon as there are so
            many, then one each ``every_rows`` rows.
        lateness_us: how long a window over time waits for rows that are behind the newest one.
        by: columns whose values tell groups apart; windows over time have one watermark for all groups.
        aggregates: output names and what is computed; without rows that have a value it is null.
        emit: ``"final"``: each window once; ``"changes"``: windows over time also give a line whenever rows came, and
            all lines say in a column ``final`` which they are.

    Raises:
        DeclarationError: it cannot be; says why.

    >>> WindowSpec(size_us=60_000_000).every_us
    60000000
    """

    size_us: int = 0
    every_us: int = 0
    rows: int = 0
    every_rows: int = 1
    lateness_us: int = 0
    by: tuple[str, ...] = ()
    aggregates: tuple[tuple[str, Aggregate], ...] = ()
    emit: str = FINAL

    def __post_init__(self) -> None:
        if min(self.size_us, self.every_us, self.rows, self.lateness_us) < 0 or self.every_rows < 1:
            raise DeclarationError(f"a length below zero in {self}", advice="Give positive durations and counts.")
        if bool(self.size_us) == bool(self.rows):
            raise DeclarationError("a window is over time or over rows", advice="Give it a duration or a count.")
        if self.every_us > self.size_us:
            raise DeclarationError(
                f"a window of {self.size_us} µs each {self.every_us} µs would leave rows out",
                advice="every= is at most the window's size.",
            )
        if self.emit not in (FINAL, CHANGES):
            raise DeclarationError(f"emit={self.emit!r}", advice='Take "final" or "changes".')
        names = [*_OWN, *self.by, *(name for name, _ in self.aggregates)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DeclarationError(f"two columns of a window are called {', '.join(twice)}", advice="Rename one.")
        object.__setattr__(self, "every_us", self.every_us or self.size_us)


class Chunk:
    """Some rows; all arrays have one length.

    Attributes:
        time_us: event times.
        arrival: the order in which the rows came, ascending over all chunks of a window.
        number: names of rows, which a correction may name; `NO_NUMBER` where a row has none.
        columns: Arrow arrays.
    """

    __slots__ = ("_by_number", "arrival", "columns", "number", "time_us")

    def __init__(self, time_us: Ints, arrival: Ints, number: Ints, columns: Sequence[pa.Array]) -> None:
        self.time_us = time_us
        self.arrival = arrival
        self.number = number
        self.columns = columns
        self._by_number: tuple[Ints, Ints] | None = None

    def __len__(self) -> int:
        return len(self.time_us)

    def slice(self, start: int, end: int) -> Chunk:
        """Return rows from ``start`` to ``end``; nothing is copied."""
        if start == 0 and end == len(self):
            return self
        columns = [column.slice(start, end - start) for column in self.columns]
        return Chunk(self.time_us[start:end], self.arrival[start:end], self.number[start:end], columns)

    def take(self, rows: Ints) -> Chunk:
        """Return some rows, in that order, copied."""
        picked = pa.array(rows)
        columns = [column.take(picked) for column in self.columns]
        return Chunk(self.time_us[rows], self.arrival[rows], self.number[rows], columns)

    def by_time(self) -> Chunk:
        """Return the rows in the order of their times, then of arrival where they were in that order."""
        if len(self) < 2 or bool((self.time_us[1:] >= self.time_us[:-1]).all()):
            return self
        return self.take(np.argsort(self.time_us, kind="stable"))

    def find(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Return which of ``numbers`` are here, and at which rows: two arrays of one length."""
        if self._by_number is None:
            order = np.argsort(self.number, kind="stable")
            self._by_number = order, self.number[order]
        order, ordered = self._by_number
        where = np.searchsorted(ordered, numbers)
        found = np.flatnonzero(ordered[np.minimum(where, len(ordered) - 1)] == numbers) if len(ordered) else where[:0]
        return found, order[where[found]]


def joined(chunks: Sequence[Chunk], types: Sequence[pa.DataType]) -> Chunk:
    """Return chunks one after the other, their columns as ``types``."""
    if len(chunks) == 1:
        (only,) = chunks
        return Chunk(only.time_us, only.arrival, only.number, _cast(only.columns, types))
    if not chunks:
        none = np.zeros(0, np.int64)
        return Chunk(none, none, none, [pa.nulls(0, kind) for kind in types])
    parts = [_cast(chunk.columns, types) for chunk in chunks]
    return Chunk(
        np.concatenate([chunk.time_us for chunk in chunks]),
        np.concatenate([chunk.arrival for chunk in chunks]),
        np.concatenate([chunk.number for chunk in chunks]),
        [pa.concat_arrays([part[i] for part in parts]) for i in range(len(types))],
    )


def _cast(columns: Sequence[pa.Array], types: Sequence[pa.DataType]) -> list[pa.Array]:
    return [column if column.type == kind else column.cast(kind) for column, kind in zip(columns, types, strict=True)]


@dataclass(frozen=True, slots=True)
class WindowRows:
    """Rows of several lines one after the other, before their aggregates are computed.

    Attributes:
        rows: with the layout's columns; a line's rows are in the order of their arrival.
        start, end: where each line's rows are in ``rows``, shape (lines,).
        groups: columns, of which the first are those of the groups.
        group: an index in ``groups`` that has the line's group, shape (lines,).
        window_start, window_end, place, time_us: of each line.
    """

    rows: Chunk
    start: Ints
    end: Ints
    groups: Sequence[pa.Array]
    group: Ints
    window_start: Ints
    window_end: Ints
    place: Ints
    time_us: Ints


class Layout:
    """The columns of its rows that a window needs, and the columns of its lines.

    The types are those of the rows so far; where they change, the wider one is taken (int to float, null to any).
    """

    def __init__(self, spec: WindowSpec) -> None:
        self.spec = spec
        wanted = [*spec.by, *(aggregate.column for _, aggregate in spec.aggregates if aggregate.column is not None)]
        self.names = tuple(dict.fromkeys(wanted))
        self.types: tuple[pa.DataType, ...] = tuple(pa.null() for _ in self.names)
        self.of_numbers = frozenset(
            aggregate.column
            for _, aggregate in spec.aggregates
            if aggregate.kind in OF_NUMBERS and aggregate.column is not None
        )
        # Columns of numbers that are held as their text.
        self.numeric: frozenset[str] = frozenset()
        self._where = [
            None if aggregate.column is None else self.names.index(aggregate.column) for _, aggregate in spec.aggregates
        ]
        self._read: tuple[pa.Schema, list[int]] | None = None
        self._retype()

    def copy(self) -> Layout:
        return copy.copy(self)

    @property
    def by(self) -> int:
        """The first so many columns are those of the groups."""
        return len(self.spec.by)

    def select(self, rows: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns that the window needs, dictionaries decoded.

        Raises:
            DeclarationError: one is missing, or its type does not go with that of the rows before.
            ArrowInvalid: a value does not fit the type that the column has had, exactly.
        """
        schema = rows.schema
        if self._read is None or not self._read[0].equals(schema, check_metadata=True):
            indices = [column_index(schema, name, _WHO) for name in self.names]
            self._meet([schema.field(i) for i in indices])
            self._read = schema, indices
        columns = [rows.column(i) for i in self._read[1]]
        return _cast(columns, self.types)

    def remember(self, schema: pa.Schema) -> None:
        """Take the types of a state's columns."""
        self.types = tuple(schema.types)
        self.numeric = frozenset(field.name for field in schema if is_numeric(field))
        self._read = None
        self._retype()

    @property
    def schema(self) -> pa.Schema:
        """The schema of the columns that the window needs, as their types are now."""
        named = zip(self.names, self.types, strict=True)
        return pa.schema([pa.field(name, kind, metadata=self._metadata(name)) for name, kind in named])

    def _metadata(self, name: str | None) -> dict[bytes, bytes] | None:
        return NUMERIC if name in self.numeric else None

    def _meet(self, fields: Sequence[pa.Field]) -> None:
        types = [plain(field.type) for field in fields]
        numeric = self.numeric | {field.name for field in fields if is_numeric(field)}
        if tuple(types) == self.types and numeric == self.numeric:
            return
        for name, kind in zip(self.spec.by, types, strict=False):
            refuse_nested(name, kind, _WHO)
        for _, aggregate in self.spec.aggregates:
            if aggregate.column is not None:
                _refuse_impossible(aggregate.kind, aggregate.column, types[self.names.index(aggregate.column)])
        met = [wider(*column, _WHO) for column in zip(self.names, self.types, types, strict=True)]
        self.types, self.numeric = tuple(met), frozenset(numeric)
        self._retype()

    def _retype(self) -> None:
        """Derive what follows from the types."""
        self._schema = self._described()
        none = np.zeros(0, np.int64)
        arrays = [pa.nulls(0, kind) for kind in self._schema.types]
        self._none = Results(pa.RecordBatch.from_arrays(arrays, schema=self._schema), none, none)
        self.no_rows = joined([], self.types)

    def _described(self) -> pa.Schema:
        """Return the schema of the lines."""
        fields = [pa.field("window_start", TIME), pa.field("window_end", TIME), *self.schema][: 2 + self.by]
        fields.append(pa.field("rows", pa.int64()))
        for (name, aggregate), where in zip(self.spec.aggregates, self._where, strict=True):
            kind = _type_of(aggregate.kind, pa.int64() if where is None else self.types[where])
            as_text = is_text(kind) and aggregate.kind in (*_AS_COLUMN, "sum")
            fields.append(pa.field(name, kind, metadata=self._metadata(aggregate.column) if as_text else None))
        if self.spec.emit == CHANGES:
            fields.append(pa.field(FINAL, pa.bool_()))
        return pa.schema(fields)

    def lines(self, cut: WindowRows, *, final: bool = True) -> Results:
        """Return the lines, with their aggregates."""
        sizes = cut.end - cut.start
        picked = pa.array(cut.group)
        columns = [pa.array(cut.window_start).view(TIME), pa.array(cut.window_end).view(TIME)]
        columns += [column.take(picked) for column in cut.groups[: self.by]]
        columns.append(pa.array(sizes))
        spans = list(zip(cut.start.tolist(), sizes.tolist(), strict=True))
        refused: dict[int, str] = {}
        for (_, aggregate), where in zip(self.spec.aggregates, self._where, strict=True):
            over = pa.array(cut.rows.arrival) if where is None else cut.rows.columns[where]
            if aggregate.column in self.numeric:
                aggregate = aggregate.of_numbers()
            columns.append(_values_of(aggregate, over, spans, self._schema.field(len(columns)), refused))
        if self.spec.emit == CHANGES:
            columns.append(pa.array(np.full(len(sizes), final)))
        return Results(pa.RecordBatch.from_arrays(columns, schema=self._schema), cut.place, cut.time_us, refused)

    def none(self) -> Results:
        """No lines, of the right schema."""
        return self._none


def _values_of(
    aggregate: Aggregate, over: pa.Array, spans: Sequence[tuple[int, int]], field: pa.Field, refused: dict[int, str]
) -> pa.Array:
    """Return an aggregate of each line; null, and told in ``refused``, where it cannot be or does not fit the type."""
    kind = over.type
    if aggregate.kind != "count" and pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        # As numbers, which Python holds whatever the year.
        numbers = over.view(pa.int32() if kind.bit_width == 32 else pa.int64())
        held = pa.field(field.name, pa.list_(numbers.type) if aggregate.kind == "unique" else numbers.type)
        found = _values_of(aggregate, numbers, spans, held, refused)
        if aggregate.kind != "unique":
            return found.view(field.type)
        return pa.ListArray.from_arrays(found.offsets, found.values.view(kind), type=field.type)
    try:
        return pa.array([aggregate.of(over.slice(start, size)) for start, size in spans], field.type)
    except Exception:  # whatever Arrow or Python says of one line's values: the others have theirs
        parts = [_value_of(aggregate, over.slice(*span), field, refused, line) for line, span in enumerate(spans)]
        return pa.concat_arrays(parts)


def _value_of(aggregate: Aggregate, over: pa.Array, field: pa.Field, refused: dict[int, str], line: int) -> pa.Array:
    try:
        return pa.array([aggregate.of(over)], field.type)
    except Exception as error:  # as above
        refused.setdefault(line, f"«{field.name}», the {aggregate.kind} of «{aggregate.column}»: {error}")
        return pa.nulls(1, field.type)


def _refuse_impossible(kind: str, name: str, column: pa.DataType) -> None:
    """Refuse an aggregate before rows are held that it could not take."""
    number = pa.types.is_floating(column) or pa.types.is_integer(column) or pa.types.is_decimal(column)
    number = number or is_text(column)
    if kind in OF_NUMBERS and not (number or pa.types.is_boolean(column) or pa.types.is_null(column)):
        raise DeclarationError(f"the {kind} of «{name}» of a window is one of numbers, and the column is {column}")
    if kind in _OF_PLAIN and not _compares(kind, column):
        raise DeclarationError(f"the {kind} of «{name}» of a window is one of plain values, and the column is {column}")


def _compares(kind: str, column: pa.DataType) -> bool:
    """Return whether Arrow has the aggregate for a type."""
    if pa.types.is_temporal(column) and not pa.types.is_interval(column):
        return True
    if pa.types.is_nested(column) or isinstance(column, pa.BaseExtensionType):
        return False
    try:
        (pc.unique if kind == "unique" else pc.min_max)(pa.nulls(0, column))
    except pa.ArrowNotImplementedError:
        return False
    return True


def _type_of(kind: str, column: pa.DataType) -> pa.DataType:
    """Return the type of an aggregate over a column of this type."""
    if kind in _AS_COLUMN:
        return column
    if kind == "count":
        return pa.int64()
    if kind == "unique":
        return pa.list_(column)
    if kind == "sum" and (pa.types.is_integer(column) or pa.types.is_boolean(column)):
        return pa.int64()
    if kind == "sum" and is_text(column):
        return pa.string()
    if kind == "sum" and pa.types.is_decimal(column):
        return pa.decimal128(38, column.scale)
    return pa.float64()
