"""What waits, in the order of its event time, so that what is over is found without looking at the rest.

Sorted runs of growing size (a log-structured merge, https://doi.org/10.1007/s002360050048) and a heap for rows that
come one at a time: adding costs O(log n) amortised, taking what is over costs what is taken.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np

from headrace.arrays import Ints

FAR = 2**62
HEAP_ROWS = 4_096
FEW = 64
Entry = tuple[int, int, int]


class _Run:
    """Entries in order of (time, seq), of which those before ``head`` were taken."""

    __slots__ = ("head", "seqs", "slots", "times")

    def __init__(self, times: Ints, seqs: Ints, slots: Ints) -> None:
        self.times, self.seqs, self.slots = times, seqs, slots
        self.head = 0

    def __len__(self) -> int:
        return len(self.times) - self.head

    def rest(self) -> tuple[Ints, Ints, Ints]:
        return self.times[self.head :], self.seqs[self.head :], self.slots[self.head :]

    def due(self, before: int) -> int:
        return int(np.searchsorted(self.times[self.head :], before))

    def cut(self, count: int) -> tuple[Ints, Ints, Ints]:
        """Take the first entries."""
        start, stop = self.head, self.head + count
        found = self.times[start:stop], self.seqs[start:stop], self.slots[start:stop]
        self.head = stop
        if self.head > len(self):
            self.times, self.seqs, self.slots = (one.copy() for one in self.rest())
            self.head = 0
        return found


class ExpiryQueue:
    """Entries (time, seq, slot); of entries of one time the smaller seq is first.

    Entries are added with growing seq. An entry whose seq is not its slot's any more is stale: its row has left early.

    Attributes:
        first: the smallest time, that of a stale entry possibly; `FAR` where there is none.

    >>> order = ExpiryQueue()
    >>> order.add(30, 0, 0)
    >>> order.add_many(np.array([20, 10]), np.array([1, 2]), np.array([1, 2]))
    >>> [one.tolist() for one in order.pop(30)], order.first
    ([[10, 20], [2, 1], [2, 1]], 30)
    """

    __slots__ = ("_heap", "_runs", "first")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._runs: list[_Run] = []
        self.first = FAR

    def add(self, time: int, seq: int, slot: int) -> None:
        heappush(self._heap, (time, seq, slot))
        self.first = min(self.first, time)
        if len(self._heap) > HEAP_ROWS:
            self._flush()

    def add_many(self, times: Ints, seqs: Ints, slots: Ints) -> None:
        if not len(times):
            return
        self._flush()
        if (times[1:] < times[:-1]).any():
            by = np.argsort(times, kind="stable")
            times, seqs, slots = times[by], seqs[by], slots[by]
        self._push(_Run(times, seqs, slots))
        self.first = min(self.first, int(times[0]))

    def _flush(self) -> None:
        """Make a run of the heap. Its entries are older than those that come next, and newer than all runs."""
        if self._heap:
            self._heap.sort()
            times, seqs, slots = np.array(self._heap, np.int64).T.copy()
            self._heap = []
            self._push(_Run(times, seqs, slots))

    def _push(self, run: _Run) -> None:
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            newer = self._runs.pop().rest()
            older = self._runs.pop().rest()
            self._runs.append(_Run(*_merged([older, newer])))

    def pop(self, before: int) -> tuple[Ints, Ints, Ints]:
        """Take the entries with a time before this one, in order."""
        parts = [run.cut(count) for run in self._runs if (count := run.due(before))]
        heap = []
        while self._heap and self._heap[0][0] < before:
            heap.append(heappop(self._heap))
        if heap:
            times, seqs, slots = np.array(heap, np.int64).T
            parts.append((times, seqs, slots))
        self._look()
        return _merged(parts)

    def pop_few(self, before: int) -> list[Entry] | None:
        """Likewise as a list, for a row that comes alone; None where there are too many for that."""
        due = [run.due(before) for run in self._runs]
        if sum(due) > FEW:
            return None
        found: list[Entry] = []
        for run, count in zip(self._runs, due, strict=True):
            if count:
                times, seqs, slots = run.cut(count)
                found.extend(zip(times.tolist(), seqs.tolist(), slots.tolist(), strict=True))
        while self._heap and self._heap[0][0] < before:
            found.append(heappop(self._heap))
        found.sort()
        self._look()
        return found

    def drop_stale_heads(self, seq_of: Ints) -> None:
        """Make ``first`` the time of an entry that is not stale."""
        for run in self._runs:
            while len(run) and seq_of[run.slots[run.head]] != run.seqs[run.head]:
                run.head += 1
        while self._heap and seq_of[self._heap[0][2]] != self._heap[0][1]:
            heappop(self._heap)
        self._look()

    def drop_stale(self, seq_of: Ints) -> None:
        """Let all stale entries go."""
        self._flush()
        parts = [run.rest() for run in self._runs]
        self._runs, self.first = [], FAR
        times, seqs, slots = _merged(parts)
        kept = seq_of[slots] == seqs
        self.add_many(times[kept], seqs[kept], slots[kept])

    def _look(self) -> None:
        if any(not len(run) for run in self._runs):
            self._runs = [run for run in self._runs if len(run)]
        self.first = min((int(run.times[run.head]) for run in self._runs), default=FAR)
        if self._heap:
            self.first = min(self.first, self._heap[0][0])


def _merged(parts: list[tuple[Ints, Ints, Ints]]) -> tuple[Ints, Ints, Ints]:
    """Entries of several parts in one order; the parts themselves are in the order of their seqs."""
    if not parts:
        none = np.empty(0, np.int64)
        return none, none, none
    if len(parts) == 1:
        return parts[0]
    times, seqs, slots = (np.concatenate(one) for one in zip(*parts, strict=True))
    if not (times[1:] < times[:-1]).any():
        return times, seqs, slots
    by = np.argsort(times, kind="stable")
    return times[by], seqs[by], slots[by]
