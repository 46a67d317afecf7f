"""Rows that a window holds: their times, numbers, order of arrival, and the columns that its aggregates need.

A chunk is never changed, so copies of a window share it. `Held` is what one window still has of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask

NO_NUMBER = -1


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
        """Rows from ``start`` to ``end``; nothing is copied."""
        if start == 0 and end == len(self):
            return self
        columns = [one.slice(start, end - start) for one in self.columns]
        return Chunk(self.time_us[start:end], self.arrival[start:end], self.number[start:end], columns)

    def take(self, rows: Ints) -> Chunk:
        """Some rows, in that order, copied."""
        picked = pa.array(rows)
        columns = [one.take(picked) for one in self.columns]
        return Chunk(self.time_us[rows], self.arrival[rows], self.number[rows], columns)

    def by_time(self) -> Chunk:
        """The rows in the order of their times, then of arrival where they were in that order."""
        if len(self) < 2 or bool((self.time_us[1:] >= self.time_us[:-1]).all()):
            return self
        return self.take(np.argsort(self.time_us, kind="stable"))

    def find(self, numbers: Ints) -> tuple[Ints, Ints]:
        """Which of ``numbers`` are here, and at which rows: two arrays of one length."""
        if self._by_number is None:
            order = np.argsort(self.number, kind="stable")
            self._by_number = order, self.number[order]
        order, ordered = self._by_number
        where = np.searchsorted(ordered, numbers)
        found = np.flatnonzero(ordered[np.minimum(where, len(ordered) - 1)] == numbers) if len(ordered) else where[:0]
        return found, order[where[found]]


def joined(chunks: Sequence[Chunk], types: Sequence[pa.DataType]) -> Chunk:
    """Chunks one after the other, their columns as ``types``."""
    if len(chunks) == 1:
        (only,) = chunks
        return Chunk(only.time_us, only.arrival, only.number, _cast(only.columns, types))
    if not chunks:
        none = np.zeros(0, np.int64)
        return Chunk(none, none, none, [pa.nulls(0, one) for one in types])
    parts = [_cast(chunk.columns, types) for chunk in chunks]
    return Chunk(
        np.concatenate([chunk.time_us for chunk in chunks]),
        np.concatenate([chunk.arrival for chunk in chunks]),
        np.concatenate([chunk.number for chunk in chunks]),
        [pa.concat_arrays([part[i] for part in parts]) for i in range(len(types))],
    )


def _cast(columns: Sequence[pa.Array], types: Sequence[pa.DataType]) -> list[pa.Array]:
    return [one if one.type == kind else one.cast(kind) for one, kind in zip(columns, types, strict=True)]


class Held(NamedTuple):
    """What a window has of a chunk that is in the order of its times: rows from ``start``, without those taken out."""

    chunk: Chunk
    start: int = 0
    alive: Mask | None = None  # of the whole chunk; None: all of them

    def rows(self, before_us: int | None = None) -> Chunk:
        """The rows held; with ``before_us`` those of earlier times."""
        end = len(self.chunk) if before_us is None else int(np.searchsorted(self.chunk.time_us, before_us))
        if self.alive is None:
            return self.chunk.slice(self.start, max(end, self.start))
        return self.chunk.take(self.start + np.flatnonzero(self.alive[self.start : end]))

    def since(self, time_us: int) -> Held:
        """Without the rows of earlier times, and beginning with one that was not taken out."""
        start = max(self.start, int(np.searchsorted(self.chunk.time_us, time_us)))
        if self.alive is not None and start < len(self.chunk):
            start += int(np.argmax(self.alive[start:])) if self.alive[start:].any() else len(self.chunk) - start
        return self if start == self.start else self._replace(start=start)

    def without(self, rows: Ints) -> Held:
        """Without some rows of the chunk."""
        alive = np.ones(len(self.chunk), np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return self._replace(alive=alive)

    def has(self, rows: Ints) -> Mask:
        """Whether rows of the chunk are among those held."""
        return (rows >= self.start) & (True if self.alive is None else self.alive[rows])

    def compact(self) -> Held:
        """The same rows; the chunk is given back where less than half of it is held."""
        if 2 * self.most >= len(self.chunk):
            return self
        return Held(self.chunk.take(self.start + np.arange(self.most)), alive=self._alive_now())

    def _alive_now(self) -> Mask | None:
        return None if self.alive is None else self.alive[self.start :]

    @property
    def most(self) -> int:
        """At most so many rows are held."""
        return len(self.chunk) - self.start

    @property
    def first_us(self) -> int:
        """The earliest time; the window drops a chunk of which nothing is held, so there is one."""
        return int(self.chunk.time_us[self.start])
