"""Identities of rows: a number that follows a table's row when its key moves, and ends with it.

A row gets its number with its insert (or its snapshot read), keeps it through updates of its key, and loses it when it
is deleted, truncated, or another row is inserted under its key. What is known of rows (whether a label came, what was
predicted) is kept by that number, so that it belongs to the row and not to a key.

The numbers stand in the column ``__headrace_row`` while a step runs: positive where the row was known before the event,
negative (``~number``) where an update shows it for the first time, 0 where nothing identifies it: in a table without a
key, of a truncate, of the delete of a row that was never seen. Odd numbers are of rows that an update showed first.

Rows are found by 64 bits of a hash of their key. Of each table the newest `LIMIT` rows are remembered: a row is
forgotten when so many others have come after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints, Mask, lasting, lasting_zeros
from headrace.batch import OPS, Batch, inserted
from headrace.step.state_codec import below
from headrace.value_hashes import Hashes, hashes

LIMIT = 1_000_000
ROW = "__headrace_row"
# Keys in order, each once; and their numbers.
_Run = tuple[Hashes, Ints]
_PIECE = 32_768


# -- values by a row's number --------------------------------------------------------------------------------------


class Numbered:
    """A 64-bit value for each number of a stretch; 0 where none was put.

    >>> values = Numbered()
    >>> values.put(np.array([5, 7]), np.array([1, 2], np.uint64))
    >>> values.get(np.array([5, 6, 7, 800])).tolist()
    [1, 0, 2, 0]
    """

    __slots__ = ("_first", "_floor", "_size", "_values")

    def __init__(self) -> None:
        self._first = self._size = self._floor = 0
        self._values = np.zeros(0, np.uint64)

    @property
    def values(self) -> Hashes:
        """Of all numbers from `first` on."""
        return self._values[: self._size]

    @property
    def first(self) -> int:
        return self._first

    def get(self, numbers: Ints) -> Hashes:
        at = numbers - self._first
        inside = (at >= 0) & (at < self._size)
        if inside.all():
            return self._values[at]
        found = np.zeros(len(numbers), np.uint64)
        found[inside] = self._values[at[inside]]
        return found

    def put(self, numbers: Ints, values: Hashes) -> None:
        """Later ones of a number win; those that were forgotten are left out."""
        if not len(numbers):
            return
        least = int(numbers.min())
        if least < self._floor:
            kept = numbers >= self._floor
            self.put(numbers[kept], values[kept])
            return
        if not self._size:
            self._first = least
        elif least < self._first:
            size = self._first - least + self._size
            earlier = lasting_zeros(size, np.uint64)
            earlier[self._first - least :] = self.values
            self._values, self._first, self._size = earlier, least, size
        at = numbers - self._first
        end = int(at.max()) + 1
        if end > len(self._values):
            grown = lasting_zeros(max(end, 2 * self._size, 64), np.uint64)
            grown[: self._size] = self.values
            self._values = grown
        self._size = max(self._size, end)
        self._values[at] = values

    def forget(self, before: int) -> None:
        """Let the values of numbers before one go, once they are as many as the others."""
        self._floor = max(self._floor, before)
        gone = min(before - self._first, self._size)
        if gone > 0 and 2 * gone >= self._size:
            self._values = lasting(self.values[gone:])
            self._first, self._size = self._first + gone, self._size - gone

    def clear(self) -> None:
        self._values[: self._size] = 0

    def state(self, begin: int) -> dict[str, Any]:
        """Return flat values, of the numbers from one on."""
        first = max(self._first, begin)
        return {"first": first, "values": self.values[first - self._first :].copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        self._first = int(state["first"])
        self._values = lasting(np.asarray(state["values"], np.uint64))
        self._size = len(self._values)


# -- rows by their keys ---------------------------------------------------------------------------------------------


class _Index:
    """Numbers by keys, in sorted runs, of which each is at least twice as long as the next: 16 bytes a key."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, keys: Hashes, numbers: Ints, forgotten: int) -> None:
        """Later ones of a key win; 0 takes a key out.

        Args:
            forgotten: the largest number (without its last bit) that nobody looks for any more.
        """
        if not len(keys):
            return
        self._runs.append(_sorted(keys, numbers))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            older, newer = self._runs[-2:]
            self._runs[-2:] = [_merged(older, newer, max(forgotten, 0) if len(self._runs) == 2 else None)]

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._runs)

    def find(self, keys: Hashes) -> Ints:
        """Return the number of each key; 0 where there is none."""
        found = np.zeros(len(keys), np.int64)
        rest = np.arange(len(keys))
        for run, numbers in reversed(self._runs):
            if not len(rest):
                break
            if not len(run):
                continue
            at = np.searchsorted(run, keys[rest])
            at[at == len(run)] = 0
            hit = run[at] == keys[rest]
            found[rest[hit]] = numbers[at[hit]]
            rest = rest[~hit]
        return found


def _sorted(keys: Hashes, numbers: Ints) -> tuple[Hashes, Ints]:
    order = np.argsort(keys, kind="stable")
    keys, numbers = keys[order], numbers[order]
    last = np.append(keys[1:] != keys[:-1], True)
    return (keys, numbers) if last.all() else (keys[last], numbers[last])


def _without(run: _Run, forgotten: int) -> _Run:
    kept = run[1] >> 1 > forgotten
    return run[0][kept], run[1][kept]


def _merged(older: _Run, newer: _Run, forgotten: int | None) -> _Run:
    """Return one run of two, of which the newer wins; without what is taken out or forgotten, where this is said.

    It is made piece by piece: what is needed for a moment is as small as a piece, however long the runs are.
    """
    size = len(older[0]) + len(newer[0])
    if size <= _PIECE:
        run = _sorted(np.concatenate([older[0], newer[0]]), np.concatenate([older[1], newer[1]]))
        return run if forgotten is None else _without(run, forgotten)
    keys, numbers, used = lasting_zeros(size, np.uint64), lasting_zeros(size, np.int64), 0
    ends = np.append(np.arange(_PIECE, len(older[0]), _PIECE), len(older[0]))
    begins = np.append(0, ends[:-1])
    other_ends = np.append(np.searchsorted(newer[0], older[0][ends[:-1]]), len(newer[0]))
    other_begins = np.append(0, other_ends[:-1])
    for begin, end, low, high in np.stack([begins, ends, other_begins, other_ends], axis=1).tolist():
        piece = _sorted(
            np.concatenate([older[0][begin:end], newer[0][low:high]]),
            np.concatenate([older[1][begin:end], newer[1][low:high]]),
        )
        piece = piece if forgotten is None else _without(piece, forgotten)
        count = len(piece[0])
        keys[used : used + count], numbers[used : used + count] = piece
        used += count
    return keys[:used], numbers[:used]


class Identity:
    """The rows of one topic.

    Args:
        limit: how many of the newest are remembered; `LIMIT` by default.

    >>> import pyarrow as pa
    >>> rows = Identity()
    >>> rows.follow(Batch.of({"id": [1, 2]}, key=["id"])).tolist()
    [2, 4]
    >>> before = pa.array([{"id": 1}, None])
    >>> rows.follow(Batch.of({"id": [3, 2]}, op="u", key=["id"], before=before)).tolist()
    [2, 4]
    >>> rows.follow(Batch.of({"id": [3, 1]}, op="u", key=["id"])).tolist()
    [2, -8]
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        # How many numbers were given, and the key of each row that has one; of ended rows 0.
        self.given = 0
        self._keys = Numbered()
        # Keys of rows from here on are in no run of the index yet.
        self._indexed = 1
        self._index = _Index()
        # 1 for those that an update showed first.
        self._late = Numbered()
        # Rows whose key another row took within one transaction, whose constraint is checked at its end: key -> rows.
        self._displaced: dict[int, list[int]] = {}
        self._displaced_in = 0
        # Rows that ended since `ended` was asked, and up to which all did.
        self._ended: list[Ints] = []
        self._truncated = 0

    def follow(self, batch: Batch) -> Ints:
        """Return the number of each event's row, as the module's docstring says; remember what events do to rows."""
        names = identifying(batch)
        n = batch.num_rows
        if not names or not n:
            return np.zeros(n, np.int64)
        op = batch.op
        fresh = inserted(batch)
        new = nonzero(hashes([batch.column(name) for name in names]))
        if fresh.all() and not self._displaced:
            return self._insert(new)
        old, told = new.copy(), told_by(batch, names)
        if told is not None:
            before = batch.before
            assert before is not None
            old[told] = nonzero(hashes([before.field(name) for name in names]))[told]
        moved = (op == OPS["u"]) & (old != new)
        self._consolidate()
        plain = not moved.any() and not (op == OPS["t"]).any() and not self._displaced
        found = self._follow_together(op, fresh, new) if plain else None
        return self._follow_one_by_one(batch, old, new) if found is None else found

    def alive(self, numbers: Ints) -> Mask:
        """Return which rows have not ended, and are remembered."""
        self._consolidate()
        found = self._keys.get(numbers >> 1) != 0
        displaced = [row for rows in self._displaced.values() for row in rows]
        if displaced:
            found |= np.isin(numbers, displaced)
        return np.asarray(found & ((numbers >> 1) > self.given - self.limit))

    @property
    def empty(self) -> bool:
        """True where it has nothing to remember."""
        return not self.given

    def was_ended(self, places: Ints) -> Mask:
        """Return which rows had ended, by their numbers without the last bit, as far as these are still known."""
        self._consolidate()
        return np.asarray(self._keys.get(places) == 0)

    @property
    def limit(self) -> int:
        return LIMIT if self._limit is None else self._limit

    @property
    def forgotten(self) -> int:
        """The largest number (without its last bit) that is not remembered any more."""
        return self.given - self.limit

    def _insert(self, keys: Hashes) -> Ints:
        places = self.given + 1 + np.arange(len(keys))
        self._keys.put(places, keys)
        self.given += len(keys)
        self._keys.forget(self.forgotten + 1)
        return 2 * places

    def _consolidate(self) -> None:
        """Index the rows that came since, which end those that had their keys."""
        first = max(self._indexed, self._keys.first)
        keys = self._keys.values[first - self._keys.first :]
        self._indexed = self.given + 1
        if not len(keys):
            return
        places = first + np.arange(len(keys))
        there = keys != 0
        keys, places = keys[there], places[there]
        before = self._index.find(keys)
        run, last = _sorted(keys, places)
        replaced = np.concatenate([before[before > 0] >> 1, np.setdiff1d(places, last, assume_unique=True)])
        if len(replaced):
            self._end(replaced)
        self._index.add(run, 2 * last + self._late.get(last).astype(np.int64), self.forgotten)

    def ended(self) -> tuple[Ints, int]:
        """Return numbers of rows that ended since the last call, and the one up to which all have (no last bit)."""
        found = 2 * np.concatenate(self._ended) if self._ended else np.empty(0, np.int64)
        truncated, self._ended, self._truncated = self._truncated, [], 0
        return found, truncated

    def _end(self, places: Ints) -> None:
        self._ended.append(places)
        self._keys.put(places, np.zeros(len(places), np.uint64))

    def _follow_together(self, op: npt.NDArray[np.uint8], fresh: Mask, keys: Hashes) -> Ints | None:
        """Inserts, updates and deletes whose keys stay; None where a row is near its end by `LIMIT`."""
        n = len(keys)
        if n > self.limit:
            return None
        order = np.argsort(keys, kind="stable")
        known = self._index.find(keys[order])
        known[known >> 1 <= self.forgotten] = 0
        if known.any() and int(known[known > 0].min()) >> 1 <= self.forgotten + n:
            return None
        starts = np.append(True, keys[order][1:] != keys[order][:-1])
        deletes, inserts = op[order] == OPS["d"], fresh[order]
        there = np.append(False, ~deletes[:-1])
        there[starts] = known[starts] > 0
        shown = ~deletes & ~inserts & ~there
        gives = inserts | shown
        # Numbers are given in the order of the events.
        given = np.zeros(n, np.int64)
        given[order] = gives
        given = self.given + np.cumsum(given)
        number = 2 * given[order] + shown
        begin = np.maximum.accumulate(np.where(starts, np.arange(n), 0))
        last = np.maximum.accumulate(np.where(gives, np.arange(n), -1))
        own = last >= begin
        current = np.where(own, number[last], known)
        current[deletes & ~there] = 0
        ended = np.where(deletes & there, current, 0)
        replaced = inserts & there
        ended[replaced] = np.where(starts, known, np.append(0, current[:-1]))[replaced]
        self._keys.put(given[order][gives], keys[order][gives])
        if shown.any():
            self._late.put(given[order][shown], np.ones(int(shown.sum()), np.uint64))
        self.given = int(given.max(initial=self.given))
        self._indexed = self.given + 1
        self._end(ended[ended > 0] >> 1)
        ends = np.append(starts[1:], True)
        self._index.add(keys[order][ends], np.where(deletes, 0, current)[ends], self.forgotten)
        self._keys.forget(self.forgotten + 1)
        self._late.forget(self.forgotten + 1)
        found = np.empty(n, np.int64)
        found[order] = np.where(shown, ~current, current)
        return found

    def _follow_one_by_one(self, batch: Batch, old: Hashes, new: Hashes) -> Ints:
        """Follow events some of which move keys, or end all rows."""
        keys = np.unique(np.concatenate([old, new]))
        walk = _Walk(self, dict(zip(keys.tolist(), self._index.find(keys).tolist(), strict=True)))
        found = np.zeros(batch.num_rows, np.int64)
        events = zip(batch.op.tolist(), old.tolist(), new.tolist(), batch.lsn.tolist(), strict=True)
        for row, (op, was, now, lsn) in enumerate(events):
            found[row] = walk.event(chr(op), was, now, lsn)
        walk.settle()
        return found

    def state(self) -> dict[str, Any]:
        """Return flat values."""
        self._consolidate()
        begin = max(self.forgotten + 1, 1)
        flat: dict[str, Any] = {"given": self.given}
        flat.update({f"keys.{name}": value for name, value in self._keys.state(begin).items()})
        late = self._late.values
        if late.any():
            flat["late"] = (self._late.first + np.flatnonzero(late)).astype(np.int64)
        if self._displaced:
            pairs = [(key, row) for key, rows in self._displaced.items() for row in rows]
            flat["displaced_in"] = self._displaced_in
            flat["displaced"] = np.array([key for key, _ in pairs], np.uint64)
            flat["displaced_rows"] = np.array([row for _, row in pairs], np.int64)
        return flat

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take flat values that `state` returned."""
        self.given, self._displaced_in = int(state["given"]), int(state.get("displaced_in", 0))
        self._keys.restore(below("keys.", state))
        late = np.asarray(state.get("late", ()), np.int64)
        self._late.put(late, np.ones(len(late), np.uint64))
        rows = np.asarray(state.get("displaced_rows", ()), np.int64).tolist()
        for key, row in zip(np.asarray(state.get("displaced", ()), np.uint64).tolist(), rows, strict=True):
            self._displaced.setdefault(key, []).append(row)


class _Walk:
    """Events of one batch, row by row.

    Args:
        rows: what is changed. known: the numbers of all keys that the events have, 0 where there is none.
    """

    def __init__(self, rows: Identity, known: dict[int, int]) -> None:
        self.rows, self.known = rows, known
        self._changed: set[int] = set()

    def event(self, op: str, old: int, new: int, lsn: int) -> int:
        rows = self.rows
        if rows._displaced and lsn != rows._displaced_in:
            self._end(*(item for several in rows._displaced.values() for item in several))
            rows._displaced = {}
        if op == "t":
            self._truncate()
            return 0
        if op in "cr":
            if self._at(new):
                self._end(self.known[new])
            return self._give(new, late=False)
        if op == "d":
            return self._delete(old)
        if old == new:
            return self._at(new) or ~self._give(new, late=True)
        return self._move(old, new, lsn)

    def _at(self, key: int) -> int:
        number = self.known[key]
        return number if number >> 1 > self.rows.forgotten else 0

    def _put(self, key: int, number: int) -> None:
        self.known[key] = number
        self._changed.add(key)

    def _give(self, key: int, *, late: bool) -> int:
        rows = self.rows
        rows.given += 1
        place = np.array([rows.given])
        rows._keys.put(place, np.array([key], np.uint64))
        if late:
            rows._late.put(place, np.ones(1, np.uint64))
        self._put(key, 2 * rows.given + late)
        return self.known[key]

    def _taken(self, key: int) -> int:
        """Return the row that leaves a key: the one that was there first, where several are for a moment."""
        waiting = self.rows._displaced.get(key)
        if waiting:
            number = waiting.pop(0)
            if not waiting:
                del self.rows._displaced[key]
            return number if number >> 1 > self.rows.forgotten else 0
        number = self._at(key)
        if number:
            self._put(key, 0)
        return number

    def _delete(self, key: int) -> int:
        number = self._taken(key)
        if number:
            self._end(number)
        return number

    def _move(self, old: int, new: int, lsn: int) -> int:
        rows = self.rows
        number = self._taken(old)
        there = self._at(new)
        if there:
            rows._displaced.setdefault(new, []).append(there)
            rows._displaced_in = lsn
            rows._keys.put(np.array([there >> 1]), np.zeros(1, np.uint64))
        if not number:
            return ~self._give(new, late=True)
        rows._keys.put(np.array([number >> 1]), np.array([new], np.uint64))
        self._put(new, number)
        return number

    def _end(self, *numbers: int) -> None:
        self.rows._end(np.array(numbers, np.int64) >> 1)

    def _truncate(self) -> None:
        rows = self.rows
        rows._truncated = rows.given
        rows._keys.clear()
        rows._displaced = {}
        rows._index = _Index()
        self.known = dict.fromkeys(self.known, 0)
        self._changed.clear()

    def settle(self) -> None:
        """Put the keys that have other rows now into the index."""
        rows = self.rows
        keys = list(self._changed)
        numbers = [self.known[key] for key in keys]
        rows._index.add(np.array(keys, np.uint64), np.array(numbers, np.int64), rows.forgotten)
        rows._indexed = rows.given + 1
        rows._keys.forget(rows.forgotten + 1)
        rows._late.forget(rows.forgotten + 1)


def identifying(batch: Batch) -> tuple[str, ...]:
    """Return the columns that the source names a row by when it changes; none where there are none here."""
    names = batch.identity_columns
    return names if all(name in batch.schema.names for name in names) else ()


def told_by(batch: Batch, names: Sequence[str]) -> Mask | None:
    """Return which updates come with one of some columns that the row had; None where no event has all of them."""
    before = batch.before
    if before is None or any(before.type.get_field_index(name) < 0 for name in names):
        return None
    told = np.asarray(before.is_valid()) & (batch.op == OPS["u"])
    some = np.zeros(len(told), np.bool_)
    for name in names if told.any() else ():
        some |= np.asarray(before.field(name).is_valid())
    return np.asarray(told & some)


def nonzero(values: Hashes) -> Hashes:
    """Return hashes, changed in place, of which none is 0."""
    values[values == 0] = 1
    return values
