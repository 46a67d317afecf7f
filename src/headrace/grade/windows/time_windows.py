"""Windows over time: tumbling and hopping, closed by a watermark.

Rows of open windows are held in chunks that are in the order of their times, so that a window is a slice of each; small
chunks merge into larger ones (a log-structured merge, https://doi.org/10.1007/s002360050048), which keeps their number
and the cost of a row flat. What a push gives follows from three indexes in the push: where a row came, where a
correction took it out, and where a window closed; no row is looked at by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.grade.columns import group_codes, runs
from headrace.grade.operator_logic import START, Results
from headrace.grade.windows.layout import CHANGES, Chunk, Layout, WindowRows, joined

_TAIL = 256  # small pushes that are merged at once
_TAIL_ROWS = 1 << 16
_MERGED_ROWS = 1 << 20  # no chunk of more rows than these is made by merging
_PAIRS = 1 << 20  # rows times windows that are put in order at once


class Moves(NamedTuple):
    """Rows, and where in a push each came (-1: before it) and was taken out (its length or more: not in it)."""

    rows: Chunk
    came: Ints
    gone: Ints


class Pairs(NamedTuple):
    """Rows in their windows, in the order of windows, groups, arrival; a segment is one window and group."""

    row: Ints
    window: Ints
    segments: Ints


class Held(NamedTuple):
    """The part of a chunk that a window has: rows from ``start`` in the order of times, without those taken out."""

    chunk: Chunk
    start: int = 0
    alive: Mask | None = None  # of the whole chunk; None: all of them

    def rows(self, before_us: int | None = None) -> Chunk:
        """Return the rows held; with ``before_us`` those of earlier times."""
        end = len(self.chunk) if before_us is None else int(np.searchsorted(self.chunk.time_us, before_us))
        if self.alive is None:
            return self.chunk.slice(self.start, max(end, self.start))
        return self.chunk.take(self.start + np.flatnonzero(self.alive[self.start : end]))

    def since(self, time_us: int) -> Held:
        """Return it without the rows of earlier times, beginning with one that was not taken out."""
        start = max(self.start, int(np.searchsorted(self.chunk.time_us, time_us)))
        if self.alive is not None and start < len(self.chunk):
            start += int(np.argmax(self.alive[start:])) if self.alive[start:].any() else len(self.chunk) - start
        return self if start == self.start else self._replace(start=start)

    def without(self, rows: Ints) -> Held:
        """Return it without some rows of the chunk."""
        alive = np.ones(len(self.chunk), np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return self._replace(alive=alive)

    def has(self, rows: Ints) -> Mask:
        """Return whether rows of the chunk are among those held."""
        return (rows >= self.start) & (True if self.alive is None else self.alive[rows])

    def compact(self) -> Held:
        """Return the same rows; the chunk is given back where less than half of it is held."""
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


class TimeWindows:
    """Open windows over time. See `headrace.grade.windows.window.Window` for what its methods do."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.time_us = START
        self.watermark_us = START
        self.late = 0
        self.deadline_us: int | None = None
        self._size, self._every = layout.spec.size_us, layout.spec.every_us
        self._arrived = 0
        # Tuples, and chunks are never changed: copies share them.
        self._held: tuple[Held, ...] = ()
        self._tail: tuple[Chunk, ...] = ()
        self._tail_rows = 0

    def push(self, rows: Chunk, place: Ints, supersedes: Ints | None) -> Results:
        """Take rows (their ``arrival`` is not read), and for each the number of the row that it corrects, or -1."""
        if self.layout.spec.emit != CHANGES:
            return self._push(rows, place, supersedes)[0]
        bounds, parts = runs(place).tolist(), []
        for start, end in pairwise(bounds):
            part = None if supersedes is None else supersedes[start:end]
            lines, joins, taken = self._push(rows.slice(start, end), place[start:end], part)
            parts += [lines, self._touched(joins, taken, int(place[start]))]
        return Results.joined(parts)

    def advance(self, watermark_us: int) -> Results:
        """Take a tick: windows that end by then close at place 0."""
        if watermark_us <= self.watermark_us:
            return self.layout.none()
        if self.deadline_us is None or watermark_us < self.deadline_us:
            self.watermark_us = watermark_us
            return self.layout.none()
        self._settle()
        none = self.layout.no_rows
        moves = Moves(none, none.arrival, none.arrival)
        lines = self._close(moves, np.array([watermark_us]), np.zeros(1, np.int64))
        self._leave(watermark_us)
        return lines

    def rows(self) -> Chunk:
        """Return all that is held, in the order of arrival."""
        found = joined([*(held.rows() for held in self._held), *self._tail], self.layout.types)
        return found.take(np.argsort(found.arrival))

    def restore(self, rows: Chunk) -> None:
        """Hold these rows, which are in the order of arrival, and nothing else."""
        self._arrived = len(rows)
        self._tail, self._tail_rows = (), 0
        self._held = (Held(Chunk(rows.time_us, np.arange(len(rows)), rows.number, rows.columns).by_time()),)
        self._leave(self.watermark_us)

    # -- a push ---------------------------------------------------------------------------------------------------

    def _push(self, rows: Chunk, place: Ints, supersedes: Ints | None) -> tuple[Results, Chunk, Chunk]:
        """Results, the rows that are in a window now, and those that were taken out."""
        n = len(rows)
        newest = np.maximum.accumulate(rows.time_us)
        watermark = np.maximum(np.maximum(newest, self.time_us) - self.layout.spec.lateness_us, self.watermark_us)
        new, came = self._joining(rows, watermark)
        self.time_us, now = max(self.time_us, int(newest[-1])), int(watermark[-1])
        first = self._closes(int(new.time_us.min())) if len(new) else now + 1
        corrects = supersedes is not None and bool((supersedes >= 0).any())
        if not corrects and now < first and (self.deadline_us is None or now < self.deadline_us):
            self._append(new, first, now)
            return self.layout.none(), new, self.layout.no_rows
        self._settle()
        moves, old = Moves(new, came, np.full(len(new), n)), self.layout.no_rows
        if corrects and supersedes is not None:
            moves, old = self._corrected(moves, supersedes)
        lines = self._close(moves, watermark, place)
        stays = moves.gone[: len(new)] >= n
        taken = old
        if not stays.all():
            taken = joined([old, new.take(np.flatnonzero(~stays))], self.layout.types)
            new = new.take(np.flatnonzero(stays))
        self._add(new)
        self._leave(now)
        return lines, new, taken

    def _joining(self, rows: Chunk, watermark: Ints) -> tuple[Chunk, Ints]:
        """Return the rows that find a window open, with their order of arrival, and their indexes; count the others."""
        n = len(rows)
        new = Chunk(rows.time_us, np.arange(self._arrived, self._arrived + n), rows.number, rows.columns)
        self._arrived += n
        came = np.flatnonzero(rows.time_us // self._every * self._every + self._size > watermark)
        self.late += n - len(came)
        return (new if len(came) == n else new.take(came)), came

    def _closes(self, time_us: int) -> int:
        """Return where the first window that is open and holds this time ends; the time has such a window."""
        k = max(time_us - self._size, self.watermark_us - self._size) // self._every + 1
        return k * self._every + self._size

    def _append(self, new: Chunk, first: int, now: int) -> None:
        """Hold rows while nothing closes."""
        self.watermark_us = now
        if not len(new):
            return
        self.deadline_us = first if self.deadline_us is None else min(first, self.deadline_us)
        self._tail += (new,)
        self._tail_rows += len(new)
        if len(self._tail) >= _TAIL or self._tail_rows >= _TAIL_ROWS:
            self._settle()

    def _corrected(self, moves: Moves, supersedes: Ints) -> tuple[Moves, Chunk]:
        """Return the moves with what the corrections take out, and the rows taken that had come before this push."""
        at = np.flatnonzero(supersedes >= 0)
        order = np.lexsort((at, supersedes[at]))
        at, named = at[order], supersedes[at][order]
        numbers, begin = np.unique(named, return_index=True)
        held, old, gone = [], [], []
        for part in self._held:
            which, rows = part.chunk.find(numbers)
            has = part.has(rows)
            held.append(part.without(rows[has]) if has.any() else part)
            old.append(part.chunk.take(rows[has]))
            gone.append(at[begin[which[has]]])
        self._held = tuple(held)
        # A row of this push is taken out by the first correction after it.
        rank = np.repeat(np.arange(len(numbers)), np.diff(np.append(begin, len(named))))
        width = len(supersedes) + 1
        which, rows = moves.rows.find(numbers)
        after = np.searchsorted(rank * width + at, which * width + moves.came[rows] + 1)
        has = (after < len(at)) & (rank[np.minimum(after, len(at) - 1)] == which)
        new_gone = moves.gone.copy()
        new_gone[rows[has]] = at[after[has]]
        taken = joined(old, self.layout.types)
        both = joined([moves.rows, taken], self.layout.types)
        came = np.concatenate([moves.came, np.full(len(taken), -1)])
        return Moves(both, came, np.concatenate([new_gone, *gone])), taken

    # -- closing --------------------------------------------------------------------------------------------------

    def _close(self, moves: Moves, watermark: Ints, place: Ints) -> Results:
        """Return lines of the windows that end by the last watermark, each closed by the first row that reaches it."""
        last = (int(watermark[-1]) - self._size) // self._every
        moves = self._gathered(moves, last * self._every + self._size, len(watermark))
        time = moves.rows.time_us
        windows = self._windows(time, (self.watermark_us - self._size) // self._every + 1, last)
        ends = windows * self._every + self._size
        closed_by = np.searchsorted(watermark, ends)
        parts = []
        for block in self._blocks(time, windows):
            pairs = self._pairs(moves, windows[block], closed_by[block])
            if len(pairs.row):
                parts.append(self._lines(moves.rows, pairs, windows[block], place[closed_by[block]]))
        return Results.joined(parts) if parts else self.layout.none()

    def _gathered(self, moves: Moves, before_us: int, n: int) -> Moves:
        """Return all rows of earlier times, those held before the push first, in the order of their times."""
        old = [held.rows(before_us) for held in self._held if held.first_us < before_us]
        early = np.flatnonzero(moves.rows.time_us < before_us)
        own = moves.rows if len(early) == len(moves.rows) else moves.rows.take(early)
        rows = joined([*old, own], self.layout.types)
        held = len(rows) - len(early)
        came = np.concatenate([np.full(held, -1), moves.came[early]])
        gone = np.concatenate([np.full(held, n), moves.gone[early]])
        if bool((rows.time_us[1:] >= rows.time_us[:-1]).all()):
            return Moves(rows, came, gone)
        order = np.argsort(rows.time_us, kind="stable")
        return Moves(rows.take(order), came[order], gone[order])

    def _windows(self, time: Ints, low: int, high: int) -> Ints:
        """Numbers of the windows from ``low`` to ``high`` that may hold one of these times, which ascend."""
        panes = time // self._every
        panes = panes[runs(panes)[:-1]]
        begin = np.maximum(panes - (-(-self._size // self._every) - 1), low)
        end = np.minimum(panes, high)
        begin[1:] = np.maximum(begin[1:], end[:-1] + 1)
        return _ranges(begin, np.maximum(end - begin + 1, 0))

    def _spans(self, time: Ints, windows: Ints) -> tuple[Ints, Ints]:
        """Return where the rows of each window begin, and how many they are."""
        begin = np.searchsorted(time, windows * self._every)
        return begin, np.searchsorted(time, windows * self._every + self._size) - begin

    def _blocks(self, time: Ints, windows: Ints) -> Iterator[slice]:
        """Windows, as many at a time as their rows allow."""
        bounds = runs(np.cumsum(self._spans(time, windows)[1]) // _PAIRS).tolist()
        for start, end in pairwise(bounds):
            yield slice(start, end)

    def _pairs(self, moves: Moves, windows: Ints, closed_by: Ints) -> Pairs:
        """Return the rows of each window that were in it when it closed."""
        begin, counts = self._spans(moves.rows.time_us, windows)
        row, window = _ranges(begin, counts), np.repeat(np.arange(len(windows)), counts)
        by = closed_by[window]
        keep = (moves.came[row] < by) & (moves.gone[row] >= by)
        if not keep.all():
            row, window = row[keep], window[keep]
        return self._ordered(moves.rows, row, window)

    def _ordered(self, rows: Chunk, row: Ints, window: Ints) -> Pairs:
        arrival = rows.arrival[row]
        if not bool(((arrival[1:] > arrival[:-1]) | (window[1:] > window[:-1])).all()):
            order = np.lexsort((arrival, window))
            row, window = row[order], window[order]
        if not self.layout.by:
            return Pairs(row, window, runs(window))
        codes, first = group_codes(rows.columns[: self.layout.by], len(rows))
        # Numbers in the order of first appearance, so those of a window stand together, its first group first.
        codes, _ = group_codes([pa.array(window * len(first) + codes[row])], len(row))
        if not bool((codes[1:] >= codes[:-1]).all()):
            order = np.argsort(codes, kind="stable")
            row, window, codes = row[order], window[order], codes[order]
        return Pairs(row, window, runs(codes))

    def _lines(self, rows: Chunk, pairs: Pairs, windows: Ints, place: Ints) -> Results:
        """Return a line for each segment."""
        bounds = pairs.segments
        group, of = pairs.row[bounds[:-1]], pairs.window[bounds[:-1]]
        start = windows[of] * self._every
        end = start + self._size
        own = _picked(rows, pairs.row)
        return self.layout.lines(
            WindowRows(own, bounds[:-1], bounds[1:], rows.columns, group, start, end, place[of], time_us=end)
        )

    # -- changes --------------------------------------------------------------------------------------------------

    def _touched(self, joins: Chunk, taken: Chunk, place: int) -> Results:
        """Return a line for each open window and group that rows joined or were taken out of, as it is now."""
        self._settle()
        moved = joined([joins, taken], self.layout.types)
        closed = (self.watermark_us - self._size) // self._every
        time = np.unique(moved.time_us)
        windows = self._windows(time, closed + 1, int(time[-1]) // self._every if len(time) else closed)
        if not len(windows):
            return self.layout.none()
        low, high = int(windows[0]) * self._every, int(windows[-1]) * self._every + self._size
        held = [part.since(low).rows(high) for part in self._held]
        rows = joined([*held, taken], self.layout.types).by_time()
        begin, counts = self._spans(rows.time_us, windows)
        pairs = self._ordered(rows, _ranges(begin, counts), np.repeat(np.arange(len(windows)), counts))
        touched = np.isin(rows.arrival, moved.arrival)
        counted = ~np.isin(rows.arrival, taken.arrival)
        return self._standing(rows, pairs, windows, (touched, counted), place)

    def _standing(self, rows: Chunk, pairs: Pairs, windows: Ints, which: tuple[Mask, ...], place: int) -> Results:
        """Results of the segments with a touched row, over their rows that count: there may be none left."""
        touched, counted = (flag[pairs.row] for flag in which)
        begin = pairs.segments[:-1]
        if not len(begin):
            return self.layout.none()
        segments = np.flatnonzero(np.logical_or.reduceat(touched, begin))
        sizes = np.add.reduceat(counted.astype(np.int64), begin)
        ends = np.cumsum(sizes)[segments]
        of, group = pairs.window[begin[segments]], pairs.row[begin[segments]]
        start = windows[of] * self._every
        end = start + self._size
        own = _picked(rows, pairs.row[counted])
        places = np.full(len(segments), place)
        cut = WindowRows(own, ends - sizes[segments], ends, rows.columns, group, start, end, places, time_us=end)
        return self.layout.lines(cut, final=False)

    # -- what is held ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Put the small pushes in the order of their times."""
        if self._tail:
            tail, self._tail, self._tail_rows = self._tail, (), 0
            self._add(joined(tail, self.layout.types))

    def _add(self, rows: Chunk) -> None:
        if not len(rows):
            return
        held = [*self._held, Held(rows.by_time())]
        while len(held) > 1 and held[-2].most <= 2 * held[-1].most <= 2 * _MERGED_ROWS - 2 * held[-2].most:
            both = joined([held[-2].rows(), held[-1].rows()], self.layout.types)
            held[-2:] = [Held(both.by_time())]
        self._held = tuple(held)

    def _leave(self, watermark_us: int) -> None:
        """Forget the rows whose windows have all closed."""
        self.watermark_us = watermark_us
        open_us = ((watermark_us - self._size) // self._every + 1) * self._every
        held = [part.since(open_us) for part in self._held]
        self._held = tuple(part.compact() for part in held if part.most)
        self.deadline_us = min((self._closes(part.first_us) for part in self._held), default=None)


def _ranges(begin: Ints, counts: Ints) -> Ints:
    """Ranges one after the other: ``begin[i]``, ``begin[i] + 1``, … ``counts[i]`` times."""
    total = int(counts.sum())
    if len(begin) == 1:
        return np.arange(int(begin[0]), int(begin[0]) + total)
    return np.arange(total) + np.repeat(begin - np.cumsum(counts) + counts, counts)


def _picked(rows: Chunk, row: Ints) -> Chunk:
    """Return the rows in that order; a slice where they stand together."""
    if len(row) and int(row[-1]) - int(row[0]) == len(row) - 1 and bool((row[1:] > row[:-1]).all()):
        return rows.slice(int(row[0]), int(row[-1]) + 1)
    return rows.take(row)
