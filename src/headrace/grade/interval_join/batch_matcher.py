"""The join of many rows at once, to the same outcomes as row by row.

What makes that possible: when a row leaves depends on event times alone. The watermark at each row of the event is
known before anything is matched, and with it which rows are there when another comes. Keys that have one prediction and
one label at most, those of the event and those that are pending, are matched as arrays; the rows of other keys are
handled one by one, in order. Then all outcomes are put in order and numbered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.arrays import Ints, Mask
from headrace.grade.interval_join.join_state import (
    MANY,
    NONE,
    NOT_YET,
    USED,
    Entries,
    JoinSide,
    JoinState,
    object_array,
)
from headrace.grade.interval_join.outcomes import ROW_COLUMNS, OutcomeBuilder, OutcomeColumns, Reason, Status
from headrace.grade.interval_join.row_matcher import RowMatcher


class _Coming:
    """Rows of one side that come in the event.

    Attributes:
        rank: each row's place among the event's rows of both sides, counted without gaps.
        watermark: when the row is handled.
        over: rows whose time is over when they come.
        slow: rows that are handled one by one.
        slots: each row's slot, whether it will be pending or not; ``seqs``: its number.
    """

    __slots__ = ("first", "keys", "over", "rank", "seqs", "slots", "slow", "times", "watermark")

    def __init__(self, keys: list[Any], times: Ints, rank: Ints) -> None:
        self.keys, self.times, self.rank = keys, times, rank
        self.slow = np.zeros(len(keys), np.bool_)

    def __len__(self) -> int:
        return len(self.keys)

    def enter(self, side: JoinSide, watermarks: Ints, within: int, truths: Ints | None) -> None:
        """Give the rows numbers and slots."""
        n = len(self)
        self.watermark = watermarks[self.rank]
        self.over = self.watermark > self.times + within
        self.first = side.next_seq
        self.seqs = np.arange(self.first, self.first + n)
        side.next_seq += n
        slots = self.slots = side.allocate(n)
        side.seq[slots], side.time[slots] = self.seqs, self.times
        side.grade[slots] = NOT_YET
        side.key[slots] = object_array(self.keys)
        if truths is not None:
            side.truth[slots] = truths


class BatchMatcher:
    """One event's rows, matched at once.

    Args:
        left, right: keys, event times and places of predictions and labels.
        updates: which labels are updates; ``truths``: the codes of their truths.
    """

    def __init__(
        self,
        state: JoinState,
        left: tuple[list[Any], Ints, Ints],
        right: tuple[list[Any], Ints, Ints],
        updates: Mask,
        truths: Ints,
    ) -> None:
        self.state = state
        self.within = state.within
        self.updates, self.truths = updates, truths
        ranks = _ranks(left[2], right[2])
        self.left, self.right = _Coming(left[0], left[1], ranks[0]), _Coming(right[0], right[1], ranks[1])
        self.places = np.empty(len(self.left) + len(self.right), np.int64)
        self.places[ranks[0]], self.places[ranks[1]] = left[2], right[2]
        self.watermarks = self._watermarks()
        self.parts: list[OutcomeColumns] = []
        self.slow_outcomes = OutcomeBuilder(0, later=True)
        self.row_matcher = RowMatcher(state, self.slow_outcomes)

    def match(self) -> OutcomeColumns:
        """Return the outcomes in order; the state is what it is after the event."""
        self._enter()
        self._foresee()
        self._labels()
        self._predictions()
        self._slow_rows()
        rights, refused = self._leaving_labels()
        self._expire(rights)
        columns = self._ordered()
        self._leave(rights, refused)
        return columns

    def _watermarks(self) -> Ints:
        """Return the watermark at each row; the sides' times become what they are after the event."""
        running = []
        for side, rows in ((self.state.left, self.left), (self.state.right, self.right)):
            times = np.full(len(self.places), side.time_us)
            times[rows.rank] = np.maximum(rows.times, side.time_us)
            running.append(np.maximum.accumulate(times))
            side.time_us = int(running[-1][-1])
        return np.minimum(*running) - self.state.lateness

    def _enter(self) -> None:
        """Put the rows' keys where they are found, and find what is there for each."""
        lefts, rights = self.state.left, self.state.right
        left, right = self.left, self.right
        left.enter(lefts, self.watermarks, self.within, None)
        right.enter(rights, self.watermarks, self.within, self.truths)
        self.labels_before = rights.by_key.find(left.keys)
        held_left = lefts.by_key.enter(left.keys, left.slots)
        self.predictions = lefts.by_key.find(right.keys)
        shared = np.flatnonzero(self.predictions >= 0)
        # One object for the key of both: a key that is found is in the processor's cache, and takes memory once.
        rights.key[right.slots[shared]] = lefts.key[self.predictions[shared]]
        right.keys = rights.key[right.slots].tolist()
        held_right = rights.by_key.enter(right.keys, right.slots)
        several_left = (held_left != left.slots) | (self.labels_before == MANY)
        several_right = (held_right != right.slots) | (self.predictions == MANY)
        slow = {left.keys[i] for i in np.flatnonzero(several_left).tolist()}
        slow |= {right.keys[i] for i in np.flatnonzero(several_right).tolist()}
        if None in lefts.by_key.at or None in rights.by_key.at:
            slow.add(None)
        self.slow = slow
        for side, rows in ((lefts, left), (rights, right)):
            if slow:
                rows.slow = np.fromiter(map(slow.__contains__, rows.keys), np.bool_, len(rows))
            for key in slow:
                # These rows are entered in their turn.
                if (held := side.by_key.at.get(key, NONE)) >= 0 and side.seq[held] >= rows.first:
                    del side.by_key.at[key]

    def _foresee(self) -> None:
        """Find which predictions leave in this event, in order; their keys are remembered, but not visible yet."""
        side, rows, end = self.state.left, self.left, int(self.watermarks[-1])
        old = side.over(end - self.within)
        at_once = rows.over
        passing = ~at_once & (rows.times + self.within < end)
        self.left_stays = ~(at_once | passing)
        if None in self.slow:
            keyed = np.fromiter((key is not None for key in rows.keys), np.bool_, len(rows))
            at_once, passing, self.left_stays = at_once & keyed, passing & keyed, self.left_stays & keyed
        self.lefts_in_time = _joined(old, self._some(rows, passing))
        side.live += int(self.left_stays.sum()) - len(old[0])
        times, _, slots = self.lefts_in_time
        order = np.searchsorted(self.watermarks, times + self.within, "right") * 2
        if at_once.any():
            # What comes too late leaves after those that leave because of it.
            times = np.concatenate([times, rows.times[at_once]])
            slots = np.concatenate([slots, rows.slots[at_once]])
            order = np.concatenate([order, rows.rank[at_once] * 2 + 1])
            by = np.argsort(order, kind="stable")
            times, slots, order = times[by], slots[by], order[by]
        self.leaving = slots
        self.leaving_keys = side.key[slots].tolist()
        self.leaving_rank = order >> 1
        self.departed_before = self.state.departed.count
        self.state.departed.append(times)
        self.ordinal = np.empty(side.capacity, np.int64)
        self.ordinal[slots] = np.arange(self.departed_before, self.departed_before + len(slots))

    def _some(self, rows: _Coming, which: Mask) -> Entries:
        return rows.times[which], rows.seqs[which], rows.slots[which]

    def _departed(self, rank: Ints) -> Ints:
        """Return how many predictions have left when the rows of these ranks are handled."""
        return self.departed_before + np.searchsorted(self.leaving_rank, rank, "right")

    def _labels(self) -> None:
        """Match labels whose key has one prediction at most."""
        side, rows = self.state.left, self.right
        j = np.flatnonzero(~rows.slow)
        slot = self.predictions[j]
        safe = np.maximum(slot, 0)
        of = side.seq[safe] if side.capacity else np.full(len(j), -1)
        new = of - self.left.first
        is_new = (slot >= 0) & (new >= 0)
        came = np.where(is_new, self.left.rank[np.where(is_new, new, 0)] if len(self.left) else -1, -1)
        before = (slot >= 0) & (came < rows.rank[j])
        time = np.where(before, side.time[safe] if side.capacity else 0, 0)
        delay = rows.times[j] - time
        there = before & (rows.watermark[j] <= time + self.within)
        hit = there & (np.abs(delay) <= self.within)
        too_late = there & (delay > self.within)
        rest = ~(hit | too_late)
        forgotten = rest & self._too_late_for_remembered(j, rest, before & ~there, safe)
        over = rest & ~forgotten & rows.over[j]
        self.label_stays = ~rows.over
        self.label_stays[j] = (hit | (rest & ~forgotten)) & ~rows.over[j]
        self._grade(j[hit], safe[hit], delay[hit])
        self._tell(j[too_late], Status.LATE, Reason.TOO_LATE, left=of[too_late], delay=delay[too_late])
        self._tell(j[forgotten], Status.LATE, Reason.TOO_LATE)
        self._tell(j[over], Status.ORPHAN, Reason.OVER)
        self.state.right.grade[rows.slots[j[hit]]] = USED
        # Predictions that come after their label, by the label.
        after = is_new & ~before & self.label_stays[j]
        self.labels_before[new[after]] = rows.slots[j[after]]

    def _too_late_for_remembered(self, j: Ints, rest: Mask, left_now: Mask, slot: Ints) -> Mask:
        """Return which labels without a prediction are of a key whose prediction has left.

        Args:
            j: the labels; ``rest``: those of them that are asked for.
            left_now: those whose prediction leaves in this event, before them; ``slot``: its slot.
        """
        departed, rows = self.state.departed, self.right
        ordinals = np.full(len(j), -1)
        asked = np.flatnonzero(rest & ~left_now)
        if len(asked):
            keys = rows.keys if len(asked) == len(rows) else [rows.keys[i] for i in j[asked].tolist()]
            ordinals[asked] = departed.ordinals(keys)
        now = rest & left_now
        ordinals[now] = self.ordinal[slot[now]]
        known = np.flatnonzero(ordinals >= 0)
        found = np.zeros(len(j), np.bool_)
        if len(known):
            at, of = j[known], departed.times(ordinals[known])
            kept = ordinals[known] >= self._departed(rows.rank[at]) - departed.limit
            in_time = rows.watermark[at] <= of + departed.keep_us
            found[known] = kept & in_time & (of <= rows.times[at])
        return found

    def _grade(self, j: Ints, slot: Ints, delay: Ints) -> None:
        """Add outcomes of labels that meet their prediction: a grade, a correction, or the same again."""
        side, rows = self.state.left, self.right
        earlier = side.grade[slot]
        graded = earlier == NOT_YET
        corrected = ~graded & (self.updates[j] | (side.truth[slot] != self.truths[j]))
        again = ~graded & ~corrected
        tells = ~again
        side.truth[slot] = self.truths[j]
        # That it has one; its number is known once all outcomes are in order.
        side.grade[slot[graded]] = USED
        self._add(
            rows.rank[j],
            status=np.where(again, Status.ORPHAN, np.where(graded, Status.GRADED, Status.CORRECTED)),
            left=np.where(tells, side.seq[slot], -1),
            right=rows.seqs[j],
            time_us=np.where(tells, np.maximum(rows.times[j], side.time[slot]), rows.times[j]),
            delay_us=np.where(tells, delay, 0),
            supersedes=np.where(corrected, earlier, -1),
            reason=np.where(again, Reason.AGAIN, np.where(graded, Reason.NONE, Reason.CHANGED)),
            slot=np.where(tells, slot, -1),
        )

    def _tell(self, j: Ints, status: int, reason: int, *, left: Ints | int = -1, delay: Ints | int = 0) -> None:
        """Add outcomes of labels without a grade."""
        rows = self.right
        self._add(
            rows.rank[j],
            status=status,
            left=left,
            right=rows.seqs[j],
            time_us=rows.times[j],
            delay_us=delay,
            supersedes=-1,
            reason=reason,
            slot=-1,
        )

    def _add(self, rank: Ints, **columns: Ints | int) -> None:
        if len(rank):
            n = len(rank)
            full = {name: np.broadcast_to(np.asarray(column, np.int64), (n,)) for name, column in columns.items()}
            # At one row what expires is told before what the row brings.
            self.parts.append({**full, "place": rank * 2 + 1})

    def _predictions(self) -> None:
        """Match predictions whose key has one label at most, which came before."""
        side, rows = self.state.right, self.left
        i = np.flatnonzero(~rows.slow)
        slot = self.labels_before[i]
        safe = np.maximum(slot, 0)
        time = side.time[safe] if side.capacity else np.zeros(len(i), np.int64)
        delay = time - rows.times[i]
        there = (slot >= 0) & (rows.watermark[i] <= time + self.within)
        hit = there & (np.abs(delay) <= self.within)
        at, label = i[hit], safe[hit]
        side.grade[label] = USED
        lefts = self.state.left
        lefts.truth[rows.slots[at]], lefts.grade[rows.slots[at]] = side.truth[label], USED
        self._add(
            rows.rank[at],
            status=Status.GRADED,
            left=rows.seqs[at],
            right=side.seq[label],
            time_us=np.maximum(rows.times[at], time[hit]),
            delay_us=delay[hit],
            supersedes=-1,
            reason=Reason.NONE,
            slot=rows.slots[at],
        )
        missed = i[~hit & rows.over[i]]
        self._add(
            rows.rank[missed],
            status=Status.EXPIRED,
            left=rows.seqs[missed],
            right=-1,
            time_us=rows.times[missed],
            delay_us=0,
            supersedes=-1,
            reason=Reason.OVER,
            slot=-1,
        )

    def _slow_rows(self) -> None:
        """Match rows of keys that have several, one by one and in order."""
        if not self.slow:
            return
        left, right = self.left, self.right
        rows = [(int(left.rank[i]), 0, i) for i in np.flatnonzero(left.slow).tolist()]
        rows += [(int(right.rank[j]), 1, j) for j in np.flatnonzero(right.slow).tolist()]
        rows.sort()
        for rank, is_label, at in rows:
            if is_label:
                self._slow_label(rank, at)
            else:
                self._slow_prediction(rank, at)

    def _slow_prediction(self, rank: int, i: int) -> None:
        rows, side = self.left, self.state.left
        key, time, seq, slot = rows.keys[i], int(rows.times[i]), int(rows.seqs[i]), int(rows.slots[i])
        if key is None:
            self.slow_outcomes.add(rank, Status.EXPIRED, seq, -1, time, 0, -1, Reason.NULL_KEY)
            return
        watermark = int(rows.watermark[i])
        self._unlink_left(key, watermark)
        grade, truth = self.row_matcher.on_prediction(rank, key, time, seq, watermark, slot)
        side.grade[slot], side.truth[slot] = grade, truth
        if rows.over[i]:
            self.state.departed.show(key, int(self.ordinal[slot]))
        else:
            side.by_key.link(key, slot)

    def _slow_label(self, rank: int, j: int) -> None:
        rows, side = self.right, self.state.right
        key, time, seq, slot = rows.keys[j], int(rows.times[j]), int(rows.seqs[j]), int(rows.slots[j])
        if key is None:
            self.slow_outcomes.add(rank, Status.ORPHAN, -1, seq, time, 0, -1, Reason.NULL_KEY)
            self.label_stays[j] = False
            return
        watermark = int(rows.watermark[j])
        self._unlink_left(key, watermark)
        departed = self.departed_before + int(np.searchsorted(self.leaving_rank, rank, "right"))
        stays, use = self.row_matcher.on_label(
            rank,
            key,
            time,
            seq,
            watermark,
            update=bool(self.updates[j]),
            truth=int(self.truths[j]),
            departed=departed,
        )
        side.grade[slot] = use
        self.label_stays[j] = stays and not rows.over[j]
        if self.label_stays[j]:
            side.by_key.link(key, slot)

    def _unlink_left(self, key: Any, watermark: int) -> None:
        """Take the key's predictions out that have left since its last row; the last of them is departed."""
        side = self.state.left
        gone = [slot for slot in side.by_key.slots_of(key) if side.time[slot] + self.within < watermark]
        for slot in gone:
            side.by_key.unlink(key, slot)
        if gone:
            self.state.departed.show(key, max(int(self.ordinal[slot]) for slot in gone))

    def _leaving_labels(self) -> tuple[Entries, Ints]:
        """Return labels whose time is over in this event, in order; and the slots of those that do not stay at all."""
        rows, end = self.right, int(self.watermarks[-1])
        old = self.state.right.over(end - self.within)
        passing = self.label_stays & (rows.times + self.within < end)
        self.right_stays = self.label_stays & ~passing
        self.state.right.live += int(self.right_stays.sum()) - len(old[0])
        return _joined(old, self._some(rows, passing)), rows.slots[~self.label_stays]

    def _expire(self, rights: Entries) -> None:
        columns = self.state.expiries(self.lefts_in_time, rights)
        if len(columns["left"]):
            rank = np.searchsorted(self.watermarks, columns["time_us"] + self.within, "right")
            self.parts.append({**columns, "place": rank * 2})

    def _ordered(self) -> OutcomeColumns:
        """Return all outcomes in their order; what was a token becomes a number."""
        slow = self.slow_outcomes.columns()
        if len(slow["place"]):
            self.parts.append({**slow, "place": slow["place"] * 2 + 1})
        if not self.parts:
            return slow
        columns = {name: np.concatenate([part[name] for part in self.parts]) for name in ROW_COLUMNS}
        order = columns["place"]
        if (order[1:] < order[:-1]).any():
            by = np.argsort(order, kind="stable")
            columns = {name: column[by] for name, column in columns.items()}
        else:
            by = np.arange(len(order))
        columns["place"] = self.places[columns["place"] >> 1]
        first = self.state.number
        self._resolve(columns["supersedes"], by, len(order) - len(slow["place"]), first)
        graded = np.flatnonzero(columns["slot"] >= 0)
        # Of a prediction with several grades the last one is its grade.
        self.state.left.grade[columns["slot"][graded]] = graded + first
        return columns

    def _resolve(self, supersedes: Ints, by: Ints, slow_begin: int, first: int) -> None:
        """Put numbers where tokens of rows handled one by one are."""
        tokens = np.flatnonzero(supersedes < NOT_YET)
        if len(tokens):
            where = np.empty(len(by), np.int64)
            where[by] = np.arange(len(by))
            supersedes[tokens] = where[slow_begin + OutcomeBuilder.row_of(supersedes[tokens])] + first

    def _leave(self, rights: Entries, refused: Ints) -> None:
        """Let go what has left, and put what stays in the order of time."""
        state, left, right = self.state, self.left, self.right
        lefts, labels = state.left, state.right
        surely = not self.slow
        lefts.by_key.take_out(self.leaving_keys, self.leaving, surely=surely)
        gone = np.concatenate([rights[2], refused])
        labels.by_key.take_out(labels.key[gone].tolist(), gone, surely=surely)
        state.departed.publish(self.leaving_keys, self.departed_before)
        lefts.release(self.leaving)
        if None in self.slow:
            lefts.release(left.slots[[key is None for key in left.keys]])
        labels.release(gone)
        for side, rows, stays in ((lefts, left, self.left_stays), (labels, right, self.right_stays)):
            side.order.add_many(*self._some(rows, stays))


def _ranks(left: Ints, right: Ints) -> tuple[Ints, Ints]:
    """Return places of both sides, counted without gaps."""
    return (
        np.arange(len(left)) + np.searchsorted(right, left),
        np.arange(len(right)) + np.searchsorted(left, right),
    )


def _joined(old: Entries, new: Entries) -> Entries:
    """Return entries in order of (time, seq): those that were pending are in order, those that came in that of seqs."""
    times, seqs, slots = (np.concatenate(pair) for pair in zip(old, new, strict=True))
    if (times[1:] < times[:-1]).any():
        by = np.argsort(times, kind="stable")
        return times[by], seqs[by], slots[by]
    return times, seqs, slots
