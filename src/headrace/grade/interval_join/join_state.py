"""The join's state: what is pending on each side, by key, by slot and by time, and the keys that have departed.

A row that is pending has a slot: a place in arrays that hold its number, event time and grade. A key is found in a dict
that gives its slot; a key of several rows has a list of slots besides. Dicts are filled and asked by C loops
(``map(dict.get, keys)``), so that a batch costs no Python per row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints
from headrace.grade.interval_join.departed_keys import DepartedKeys
from headrace.grade.interval_join.keys import pack_keys, unpack_keys
from headrace.grade.interval_join.outcomes import (
    COLUMNS,
    ROW_COLUMNS,
    STATUSES,
    OutcomeBuilder,
    OutcomeColumns,
    Outcomes,
    Reason,
    Status,
    reasons,
)
from headrace.grade.interval_join.pending import PendingRows
from headrace.grade.operator_logic import START

# What a key gives that has no row, or several.
NONE = -2
MANY = -1
# A row without a grade; a label without use.
NOT_YET = -1
USED = 1
Entries = tuple[Ints, Ints, Ints]
Snapshot = dict[str, npt.NDArray[Any] | int | str]
FAR = 2**62
HEAP_ROWS = 4_096
FEW_DUE = 64
Entry = tuple[int, int, int]


class _Run:
    """Entries in order of (time, seq), of which those before ``head`` were taken."""

    __slots__ = ("head", "seqs", "slots", "times")

    def __init__(self, times: Ints, seqs: Ints, slots: Ints) -> None:
        self.times, self.seqs, self.slots = times, seqs, slots
        self.head = 0

    def __len__(self) -> int:
        return len(self.times) - self.head

    def rest(self) -> Entries:
        """Return what was not taken."""
        return self.times[self.head :], self.seqs[self.head :], self.slots[self.head :]

    def due(self, before: int) -> int:
        """Return how many entries are over."""
        return int(np.searchsorted(self.times[self.head :], before))

    def cut(self, count: int) -> Entries:
        """Take the first entries."""
        start, stop = self.head, self.head + count
        found = self.times[start:stop], self.seqs[start:stop], self.slots[start:stop]
        self.head = stop
        if self.head > len(self):
            self.times, self.seqs, self.slots = (array.copy() for array in self.rest())
            self.head = 0
        return found


class ExpiryQueue:
    """Entries (time, seq, slot) by time, so that those that are over are found without looking at the rest.

    Sorted runs of growing size (a log-structured merge, https://doi.org/10.1007/s002360050048) and a heap for rows that
    come one at a time: adding costs O(log n) amortised, taking what is over costs what is taken. Of entries of one time
    the smaller seq is first.

    Entries are added with growing seq. An entry whose seq is not its slot's any more is stale: its row has left early.

    Attributes:
        first: the smallest time, that of a stale entry possibly; `FAR` where there is none.

    >>> order = ExpiryQueue()
    >>> order.add(30, 0, 0)
    >>> order.add_many(np.array([20, 10]), np.array([1, 2]), np.array([1, 2]))
    >>> [array.tolist() for array in order.pop(30)], order.first
    ([[10, 20], [2, 1], [2, 1]], 30)
    """

    __slots__ = ("_heap", "_runs", "first")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._runs: list[_Run] = []
        self.first = FAR

    def add(self, time: int, seq: int, slot: int) -> None:
        """Add an entry."""
        heappush(self._heap, (time, seq, slot))
        self.first = min(self.first, time)
        if len(self._heap) > HEAP_ROWS:
            self._flush()

    def add_many(self, times: Ints, seqs: Ints, slots: Ints) -> None:
        """Add entries."""
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

    def pop(self, before: int) -> Entries:
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
        """Return likewise a list, for a row that comes alone; None where there are too many for that."""
        due = [run.due(before) for run in self._runs]
        if sum(due) > FEW_DUE:
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


def _merged(parts: list[Entries]) -> Entries:
    """Return entries of several parts in one order; the parts themselves are in the order of their seqs."""
    if not parts:
        none = np.empty(0, np.int64)
        return none, none, none
    if len(parts) == 1:
        return parts[0]
    times, seqs, slots = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if not (times[1:] < times[:-1]).any():
        return times, seqs, slots
    by = np.argsort(times, kind="stable")
    return times[by], seqs[by], slots[by]


class KeySlots:
    """The slots of keys.

    Attributes:
        at: the slot of each key's row, or `MANY`.
        many: the slots of such a key, in order of their numbers.
    """

    __slots__ = ("at", "many")

    def __init__(self) -> None:
        self.at: dict[Any, int] = {}
        self.many: dict[Any, list[int]] = {}

    def find(self, keys: list[Any]) -> Ints:
        """Return the slot of each key's row, `MANY` or `NONE`."""
        if not self.at:
            return np.full(len(keys), NONE)
        return np.fromiter(map(self.at.get, keys, repeat(NONE)), np.int64, len(keys))

    def enter(self, keys: list[Any], slots: Ints) -> Ints:
        """Give each key that has no row this slot. Returns what each key has: another slot where it had one."""
        return np.fromiter(map(self.at.setdefault, keys, slots.tolist()), np.int64, len(keys))

    def take_out(self, keys: list[Any], slots: Ints, *, surely: bool) -> None:
        """Take keys out whose rows leave.

        Args:
            surely: each of them has its key, alone or with others; else some may have been unlinked before.
        """
        if surely and not self.many:
            deque(map(self.at.__delitem__, keys), maxlen=0)
            return
        alone = self.find(keys) == slots
        for key in keys if alone.all() else [keys[i] for i in np.flatnonzero(alone).tolist()]:
            del self.at[key]
        for i in np.flatnonzero(~alone).tolist():
            self.unlink(keys[i], int(slots[i]))

    def slots_of(self, key: Any) -> list[int]:
        """Return the slots of a key's rows, in order of their numbers."""
        held = self.at.get(key)
        if held is None:
            return []
        return [held] if held >= 0 else self.many[key]

    def link(self, key: Any, slot: int) -> None:
        """Let a key have one more row, the newest."""
        held = self.at.setdefault(key, slot)
        if held == slot:
            return
        if held >= 0:
            self.at[key] = MANY
            self.many[key] = [held, slot]
        else:
            self.many[key].append(slot)

    def unlink(self, key: Any, slot: int) -> None:
        """Let a key have one row less, if it has it."""
        held = self.at.get(key)
        if held == slot:
            del self.at[key]
        elif held == MANY and slot in (chain := self.many[key]):
            chain.remove(slot)
            if len(chain) == 1:
                self.at[key] = chain[0]
                del self.many[key]


class JoinSide:
    """Predictions, or labels.

    Attributes:
        by_key: the slots of keys; ``order``: those of event times.
        seq, time, truth, grade, key: of each slot; the seq of a free slot is -1. A prediction's grade is the number of
            its newest grade, and its truth the code of that label's; a label's grade says whether it was of use.
        live: how many rows are pending.
        next_seq: number of the next row, whether it will be pending or not.
        time_us: the largest event time so far.
        rows: what the rows hold.
    """

    def __init__(self) -> None:
        self.by_key = KeySlots()
        self.order = ExpiryQueue()
        self.rows = PendingRows()
        self.live = 0
        self.next_seq = 0
        self.time_us = START
        self.left_few: list[int] = []  # numbers of rows that have left since the last `settle`
        self.left_many: list[Ints] = []
        self._stale = 0
        self._oldest: list[tuple[int, int]] = []
        self._arrays(0)

    def _arrays(self, capacity: int) -> None:
        self.seq = np.full(capacity, -1, np.int64)
        self.time = np.empty(capacity, np.int64)
        self.truth = np.zeros(capacity, np.int64)
        self.grade = np.full(capacity, NOT_YET, np.int64)
        self.key: npt.NDArray[Any] = np.empty(capacity, object)
        self._free = np.arange(capacity)[::-1].copy()
        self._free_count = capacity

    @property
    def capacity(self) -> int:
        """The number of slots."""
        return len(self.seq)

    def allocate(self, count: int) -> Ints:
        """Return free slots for so many rows, which are theirs now."""
        if count > self._free_count:
            self._grow(count - self._free_count)
        self._free_count -= count
        return self._free[self._free_count : self._free_count + count][::-1].copy()

    def _grow(self, missing: int) -> None:
        old = self.capacity
        new = max(64, old * 5 // 4, old + missing)
        for name, fill in (("seq", -1), ("time", 0), ("truth", 0), ("grade", NOT_YET), ("key", None)):
            array = getattr(self, name)
            grown = np.full(new, fill, array.dtype)
            grown[:old] = array
            setattr(self, name, grown)
        free = np.empty(new, np.int64)
        free[: new - old] = np.arange(old, new)[::-1]
        free[new - old : new - old + self._free_count] = self._free[: self._free_count]
        self._free = free
        self._free_count += new - old

    def release(self, slots: Ints) -> None:
        """Give slots back; their rows have left, and their keys were taken out."""
        self.left_many.append(self.seq[slots])
        self.seq[slots] = -1
        self.key[slots] = None
        self.grade[slots] = NOT_YET
        self._free[self._free_count : self._free_count + len(slots)] = slots
        self._free_count += len(slots)

    def store(self, key: Any, time: int, seq: int, truth: int, grade: int) -> None:
        """Let one row be pending."""
        if not self._free_count:
            self._grow(1)
        self._free_count -= 1
        slot = int(self._free[self._free_count])
        self.seq[slot], self.time[slot], self.truth[slot], self.grade[slot] = seq, time, truth, grade
        self.key[slot] = key
        self.by_key.link(key, slot)
        self.order.add(time, seq, slot)
        self.live += 1

    def remove(self, slot: int) -> None:
        """Let one row leave."""
        self.by_key.unlink(self.key[slot], slot)
        self.left_few.append(int(self.seq[slot]))
        self.seq[slot] = -1
        self.key[slot] = None
        self.grade[slot] = NOT_YET
        self._free[self._free_count] = slot
        self._free_count += 1
        self.live -= 1

    def over(self, before: int) -> Entries:
        """Take what has an event time before this one: its times, numbers and slots, in order."""
        times, seqs, slots = self.order.pop(before)
        if self._stale:
            waits = self.seq[slots] == seqs
            self._stale -= len(waits) - int(waits.sum())
            return times[waits], seqs[waits], slots[waits]
        return times, seqs, slots

    def few_over(self, before: int) -> list[tuple[int, int, int]] | None:
        """Return likewise a list; None, and nothing taken, where it would be long."""
        found = self.order.pop_few(before)
        if found and self._stale:
            waits = [entry for entry in found if self.seq[entry[2]] == entry[1]]
            self._stale -= len(found) - len(waits)
            return waits
        return found

    def pop_oldest(self) -> int:
        """Return the slot of the row with the smallest number, which is to be removed before its time."""
        while True:
            if not self._oldest:
                slots = np.flatnonzero(self.seq >= 0)
                by = slots[np.argsort(-self.seq[slots])]
                self._oldest = list(zip(self.seq[by].tolist(), by.tolist(), strict=True))
            seq, slot = self._oldest.pop()
            if self.seq[slot] == seq:
                self._stale += 1
                return slot

    def drop_stale(self) -> None:
        """Keep entries of rows that left early from growing in number."""
        if self._stale > 1_024 and self._stale > self.live:
            self.order.drop_stale(self.seq)
            self._stale = 0

    def first_time(self) -> int | None:
        """Return the smallest event time of what is pending."""
        if not self.live:
            return None
        if self._stale:
            self.order.drop_stale_heads(self.seq)
        return self.order.first

    def settle(self) -> None:
        """Drop what rows hold that have left."""
        gone = [*self.left_many, np.array(self.left_few, np.int64)] if self.left_few else self.left_many
        self.left_few, self.left_many = [], []
        for seqs in [np.concatenate(gone)] if len(gone) > 1 else gone:
            if len(seqs):
                self.rows.drop(seqs)

    def snapshot(self) -> Snapshot:
        """Return all that is pending, as arrays and numbers."""
        slots = np.flatnonzero(self.seq >= 0)
        slots = slots[np.argsort(self.seq[slots])]
        gone = np.concatenate([np.array(self.left_few, np.int64), *self.left_many])
        return {
            "keys": pack_keys(self.key[slots].tolist()),
            "seq": self.seq[slots],
            "time": self.time[slots],
            "truth": self.truth[slots],
            "grade": self.grade[slots],
            "gone": gone,
            "next_seq": self.next_seq,
            "time_us": self.time_us,
            **{f"rows.{name}": value for name, value in self.rows.snapshot().items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of; the side is new."""
        keys, seqs = unpack_keys(state["keys"]), np.asarray(state["seq"], np.int64)
        n = len(keys)
        slots = self.allocate(n)
        self.seq[slots] = seqs
        for name in ("time", "truth", "grade"):
            getattr(self, name)[slots] = state[name]
        self.key[slots] = object_array(keys)
        held = self.by_key.enter(keys, slots)
        for i in np.flatnonzero(held != slots).tolist():
            self.by_key.link(keys[i], int(slots[i]))
        self.order.add_many(np.asarray(state["time"], np.int64), seqs, slots)
        self.live = n
        self.left_many = [np.asarray(state["gone"], np.int64)]
        self.next_seq, self.time_us = int(state["next_seq"]), int(state["time_us"])
        self.rows.restore(
            {name.removeprefix("rows."): value for name, value in state.items() if name.startswith("rows.")}
        )


def object_array(keys: list[Any]) -> npt.NDArray[Any]:
    """Return keys as an array of objects: a tuple is one of them, not a row of a matrix."""
    return np.fromiter(keys, object, len(keys))


class JoinState:
    """Predictions and labels that are pending, keys that have departed, and how many outcomes there were."""

    def __init__(self, within_us: int, lateness_us: int, limit: int, remember_us: int) -> None:
        self.within, self.lateness, self.limit = within_us, lateness_us, limit
        self.left, self.right = JoinSide(), JoinSide()
        self.departed = DepartedKeys(keep_us=within_us + remember_us, limit=limit)
        self.number = 0
        # Outcomes by their status; ``duplicate`` counts those orphans that came again.
        self.counts = dict.fromkeys((*STATUSES, "duplicate"), 0)
        self.reasons = reasons(limit)
        self._nothing = Outcomes.of(dict.fromkeys(COLUMNS, ()), self.reasons)

    @property
    def watermark(self) -> int:
        """The time that both sides have reached, less the lateness."""
        return min(self.left.time_us, self.right.time_us) - self.lateness

    def expiries(self, left: Entries, right: Entries) -> OutcomeColumns:
        """Return outcomes, without places, of rows that leave: of those that met nothing, in order of their time."""
        lefts = self.left.grade[left[2]] == NOT_YET
        rights = self.right.grade[right[2]] == NOT_YET
        a, b = int(lefts.sum()), int(rights.sum())
        none_a, none_b = np.full(a, -1), np.full(b, -1)
        columns = {
            "status": np.repeat([Status.EXPIRED, Status.ORPHAN], [a, b]),
            "left": np.concatenate([left[1][lefts], none_b]),
            "right": np.concatenate([none_a, right[1][rights]]),
            "time_us": np.concatenate([left[0][lefts], right[0][rights]]),
            "delay_us": np.zeros(a + b, np.int64),
            "supersedes": np.full(a + b, -1),
            "reason": np.repeat([Reason.NO_LABEL, Reason.NO_PREDICTION], [a, b]),
            "slot": np.full(a + b, -1),
        }
        if a and b:
            by = np.argsort(columns["time_us"], kind="stable")
            return {name: column[by] for name, column in columns.items()}
        return columns

    def let_predictions_go(self, entries: Entries) -> None:
        """Let predictions leave together, in this order; their keys are remembered."""
        times, _, slots = entries
        if len(slots):
            keys = self.left.key[slots].tolist()
            self.departed.publish(keys, self.departed.append(times))
            self._go(self.left, keys, slots)

    def let_labels_go(self, entries: Entries) -> None:
        """Let labels leave together."""
        slots = entries[2]
        if len(slots):
            self._go(self.right, self.right.key[slots].tolist(), slots)

    def _go(self, side: JoinSide, keys: list[Any], slots: Ints) -> None:
        side.by_key.take_out(keys, slots, surely=True)
        side.release(slots)
        side.live -= len(slots)

    def outcomes_of(self, out: OutcomeBuilder) -> Outcomes:
        """Return outcomes in the order in which they came; quickly, where they are few."""
        if not out.few:
            return self.outcomes(out.columns())
        if not out.rows:
            return self._nothing
        first, self.number = self.number, self.number + len(out.rows)
        for row in out.rows:
            self.counts[STATUSES[row[1]]] += 1
            self.counts["duplicate"] += row[7] == Reason.AGAIN
        columns: dict[str, Any] = dict(zip(ROW_COLUMNS, zip(*out.rows, strict=True), strict=True))
        columns["number"] = range(first, self.number)
        return Outcomes.of(columns, self.reasons)

    def outcomes(self, columns: OutcomeColumns) -> Outcomes:
        """Return outcomes in their order, numbered and counted."""
        n = len(columns["place"])
        numbers = np.arange(self.number, self.number + n)
        self.number += n
        found = Outcomes.of(
            {**{name: columns[name] for name in COLUMNS if name != "number"}, "number": numbers}, self.reasons
        )
        if n:
            for code, count in enumerate(np.bincount(found.status, minlength=len(STATUSES)).tolist()):
                self.counts[STATUSES[code]] += count
            self.counts["duplicate"] += int((found.reason == Reason.AGAIN).sum())
        return found
