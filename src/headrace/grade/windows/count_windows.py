"""Windows over the newest rows of each group: sliding by count."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from headrace.arrays import Ints
from headrace.grade.columns import Key, grouped
from headrace.grade.operator_logic import START, Results
from headrace.grade.windows.layout import Chunk, Layout, WindowRows, joined

_PIECES = 64  # small pushes that are joined at once


class _Group(NamedTuple):
    """The newest rows of a group, oldest first, and how many came since its last line, or what makes one due."""

    pieces: tuple[Chunk, ...]
    held: int
    since: int


class CountWindows:
    """The newest rows of each group. See `headrace.grade.windows.window.Window` for what its methods do."""

    deadline_us = None
    late = 0

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.time_us = START
        self.watermark_us = START
        self._rows, self._every = layout.spec.rows, layout.spec.every_rows
        self._arrived = 0
        self._groups: dict[Key, _Group] = {}

    def copy_groups(self) -> None:
        """Have a dictionary of its own; what is in it is never changed."""
        self._groups = dict(self._groups)

    def push(self, rows: Chunk, place: Ints, supersedes: Ints | None) -> Results:
        """Take rows (their ``arrival`` is not read), and for each the number of the row that it corrects, or -1."""
        n = len(rows)
        self.time_us = max(self.time_us, int(rows.time_us.max()))
        rows = Chunk(rows.time_us, np.arange(self._arrived, self._arrived + n), rows.number, rows.columns)
        self._arrived += n
        named = np.full(n, -1) if supersedes is None else supersedes
        cuts = np.flatnonzero(named >= 0).tolist()
        parts = []
        for start, end in pairwise([*([0] if cuts[:1] != [0] else []), *cuts, n]):
            if named[start] >= 0:
                self._take_out(int(named[start]))
            parts.append(self._push(rows.slice(start, end), place[start:end]))
        return Results.joined(parts)

    def advance(self, watermark_us: int) -> Results:
        """Time closes none of these."""
        self.watermark_us = max(self.watermark_us, watermark_us)
        return self.layout.none()

    def rows(self) -> Chunk:
        """Return all that is held, in the order of arrival."""
        found = joined([piece for group in self._groups.values() for piece in group.pieces], self.layout.types)
        return found.take(np.argsort(found.arrival))

    def since(self) -> Ints:
        """For each group, in the order of the first rows of `rows`: rows since its last line."""
        first = {key: int(group.pieces[0].arrival[0]) for key, group in self._groups.items()}
        return np.array([self._groups[key].since for key in sorted(first, key=first.__getitem__)], np.int64)

    def restore(self, rows: Chunk, since: Ints) -> None:
        """Hold these rows, which are in the order of arrival."""
        rows = Chunk(rows.time_us, np.arange(len(rows)), rows.number, rows.columns)
        self._arrived = len(rows)
        groups = zip(grouped(rows.columns[: self.layout.by], len(rows)), since.tolist(), strict=True)
        self._groups = {key: _Group((rows.take(row),), len(row), count) for (key, row), count in groups}

    # -- a push without corrections -------------------------------------------------------------------------------

    def _push(self, rows: Chunk, place: Ints) -> Results:
        windows, starts, ends, at, offset = [], [], [], [], 0
        groups = grouped(rows.columns[: self.layout.by], len(rows))
        for key, row in groups:
            own = rows if len(groups) == 1 else rows.take(row)
            group = self._groups.get(key) or _Group((), 0, self._every)
            # Results come at the group's rows of these numbers, counted from 1.
            due = np.arange(max(self._rows - group.held, self._every - group.since, 1), len(own) + 1, self._every)
            pieces = (*group.pieces, own)
            if len(due):
                window = joined(pieces, self.layout.types)
                windows.append(window)
                ends.append(offset + group.held + due)
                starts.append(ends[-1] - self._rows)
                at.append(row[due - 1])
                offset += len(window)
                pieces = (window,)
            since = len(own) - int(due[-1]) if len(due) else min(group.since + len(own), self._every)
            self._groups[key] = self._kept(pieces, group.held + len(own), since)
        if not windows:
            return self.layout.none()
        return self._lines(rows, joined(windows, self.layout.types), (starts, ends, at), place)

    def _lines(
        self, rows: Chunk, windows: Chunk, found: tuple[list[Ints], list[Ints], list[Ints]], place: Ints
    ) -> Results:
        start, end, at = (np.concatenate(arrays) for arrays in found)
        order = np.argsort(at, kind="stable")
        start, end, at = start[order], end[order], at[order]
        time = windows.time_us
        cut = WindowRows(windows, start, end, rows.columns, at, time[start], time[end - 1], place[at], rows.time_us[at])
        return self.layout.lines(cut)

    def _kept(self, pieces: tuple[Chunk, ...], held: int, since: int) -> _Group:
        """Return the newest rows of some pieces."""
        while held - len(pieces[0]) >= self._rows:
            held -= len(pieces[0])
            pieces = pieces[1:]
        first, over = pieces[0], held - self._rows
        if over > self._rows:
            # Copied: a slice would hold the whole piece. A shorter piece is left behind soon.
            pieces, held = (first.take(np.arange(over, len(first))), *pieces[1:]), self._rows
        elif over > 0:
            pieces, held = (first.slice(over, len(first)), *pieces[1:]), self._rows
        if len(pieces) > _PIECES:
            pieces = (joined(pieces, self.layout.types),)
        return _Group(pieces, held, since)

    def _take_out(self, number: int) -> None:
        """Take the row with this number out, wherever it is; a group without rows is forgotten."""
        for key, group in self._groups.items():
            for i, piece in enumerate(group.pieces):
                found = np.flatnonzero(piece.number == number)
                if len(found):
                    left = piece.take(np.delete(np.arange(len(piece)), found[0]))
                    pieces = (*group.pieces[:i], *([left] if len(left) else []), *group.pieces[i + 1 :])
                    self._groups[key] = _Group(pieces, group.held - 1, group.since)
                    if not pieces:
                        del self._groups[key]
                    return
