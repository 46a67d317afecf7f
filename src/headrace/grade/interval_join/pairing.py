"""What the join holds, and what one row does to it: the rules of `headrace.grade.interval_join.join`, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints
from headrace.grade.interval_join.join_side import NOT_YET, Entries, JoinSide
from headrace.grade.interval_join.outcomes import (
    AGAIN,
    CHANGED,
    COLUMNS,
    CORRECTED,
    CROWDED,
    EXPIRED,
    GRADED,
    LATE,
    NO_LABEL,
    NO_PREDICTION,
    NO_REASON,
    ORPHAN,
    OVER,
    STATUSES,
    TOO_LATE,
    Found,
    reasons,
)
from headrace.grade.interval_join.remembered import Remembered

USED = 1
# place, status, left, right, time, delay, supersedes, reason, slot of the prediction
Row = tuple[int, int, int, int, int, int, int, int, int]
ROW_COLUMNS = ("place", "status", "left", "right", "time_us", "delay_us", "supersedes", "reason", "slot")


class Rows:
    """Outcomes as they come about, one at a time or many.

    A grade has a token at once: its number, or, where the outcomes will be put in order later (``later``), a negative
    number that says which of these rows it is.
    """

    __slots__ = ("_base", "_parts", "_sign", "count", "rows")

    def __init__(self, number: int, *, later: bool = False) -> None:
        self._base, self._sign = (-3, -1) if later else (number, 1)
        self._parts: list[dict[str, Ints]] = []
        self.rows: list[Row] = []
        self.count = 0

    def add(
        self,
        place: int,
        status: int,
        left: int,
        right: int,
        time: int,
        delay: int,
        supersedes: int,
        reason: int,
        slot: int = -1,
    ) -> int:
        """One outcome. Returns its token."""
        self.rows.append((place, status, left, right, time, delay, supersedes, reason, slot))
        self.count += 1
        return self._base + self._sign * (self.count - 1)

    def add_many(self, columns: dict[str, Ints]) -> None:
        self._close()
        self._parts.append(columns)
        self.count += len(columns["place"])

    def _close(self) -> None:
        if self.rows:
            self._parts.append(dict(zip(ROW_COLUMNS, np.array(self.rows, np.int64).T, strict=True)))
            self.rows = []

    def columns(self) -> dict[str, Ints]:
        """All outcomes, in the order in which they came."""
        self._close()
        if len(self._parts) == 1:
            return self._parts[0]
        none = [np.empty(0, np.int64)]
        return {name: np.concatenate([one[name] for one in self._parts] or none) for name in ROW_COLUMNS}

    @property
    def few(self) -> bool:
        """Whether all outcomes came one at a time, and are few."""
        return not self._parts and len(self.rows) < 64

    @staticmethod
    def row_of(tokens: Ints) -> Ints:
        """Which rows tokens mean that were given for later."""
        return -3 - tokens


class Pairing:
    """Predictions and labels that wait, keys that are remembered, and how many outcomes there were."""

    def __init__(self, within_us: int, lateness_us: int, limit: int, remember_us: int) -> None:
        self.within, self.lateness, self.limit = within_us, lateness_us, limit
        self.left, self.right = JoinSide(), JoinSide()
        self.remembered = Remembered(keep_us=within_us + remember_us, limit=limit)
        self.number = 0
        self.counts = dict.fromkeys((*STATUSES, "duplicate"), 0)
        self.reasons = reasons(limit)
        self._nothing = Found.of(dict.fromkeys(COLUMNS, ()), self.reasons)

    @property
    def watermark(self) -> int:
        return min(self.left.time_us, self.right.time_us) - self.lateness

    def on_prediction(
        self, out: Rows, place: int, key: Any, time: int, seq: int, watermark: int, slot: int = -1
    ) -> tuple[int, int]:
        """What a prediction meets when it comes. Returns its grade and the code of the label's truth.

        It is to wait unless its time is over.
        """
        right = self.right
        for label in reversed(right.by_key.slots_of(key)):
            label_time = int(right.time[label])
            if label_time + self.within < watermark:
                continue
            if abs(label_time - time) <= self.within:
                both = max(time, label_time)
                right.grade[label] = USED
                token = out.add(place, GRADED, seq, int(right.seq[label]), both, label_time - time, -1, NO_REASON, slot)
                return token, int(right.truth[label])
            break
        if watermark > time + self.within:
            out.add(place, EXPIRED, seq, -1, time, 0, -1, OVER)
        return NOT_YET, 0

    def on_label(
        self,
        out: Rows,
        place: int,
        key: Any,
        time: int,
        seq: int,
        watermark: int,
        *,
        update: bool,
        truth: int,
        departed: int,
    ) -> tuple[bool, int]:
        """What a label meets when it comes. Returns whether it is to stay, unless its time is over, and its use."""
        left, within = self.left, self.within
        met, told, too_old, late_by = False, False, -1, 0
        for slot in left.by_key.slots_of(key):
            of = int(left.time[slot])
            delay = time - of
            if of + within < watermark or delay < -within:
                continue
            prediction = int(left.seq[slot])
            if delay > within:
                too_old, late_by = prediction, delay
                continue
            met = True
            earlier = int(left.grade[slot])
            if earlier == NOT_YET:
                status, reason = GRADED, NO_REASON
            elif update or int(left.truth[slot]) != truth:
                status, reason = CORRECTED, CHANGED
            else:
                continue
            told = True
            left.grade[slot] = out.add(place, status, prediction, seq, max(of, time), delay, earlier, reason, slot)
            left.truth[slot] = truth
        if met:
            if not told:
                out.add(place, ORPHAN, -1, seq, time, 0, -1, AGAIN)
            return True, USED
        if too_old >= 0:
            out.add(place, LATE, too_old, seq, time, late_by, -1, TOO_LATE)
            return False, NOT_YET
        if self.remembered.older(key, time, watermark, departed):
            out.add(place, LATE, -1, seq, time, 0, -1, TOO_LATE)
            return False, NOT_YET
        if watermark > time + within:
            out.add(place, ORPHAN, -1, seq, time, 0, -1, OVER)
        return True, NOT_YET

    def evict(self, out: Rows, place: int, *, left: bool) -> None:
        """The oldest row of a side leaves, since too many wait."""
        side = self.left if left else self.right
        slot = side.pop_oldest()
        seq, time = int(side.seq[slot]), int(side.time[slot])
        if side.grade[slot] == NOT_YET:
            out.add(place, EXPIRED if left else ORPHAN, seq if left else -1, -1 if left else seq, time, 0, -1, CROWDED)
        if left:
            self.remembered.add(side.key[slot], time)
        side.remove(slot)
        side.drop_stale()

    def expire(self, out: Rows, place: int, before: int) -> None:
        """Everything with an event time before this one leaves."""
        lefts, rights = self.left.few_over(before), self.right.few_over(before)
        if lefts is None or rights is None:
            left = self.left.over(before) if lefts is None else _entries(lefts)
            right = self.right.over(before) if rights is None else _entries(rights)
            columns = self.expiries(left, right)
            out.add_many({**columns, "place": np.full(len(columns["left"]), place)})
            self.let_predictions_go(left)
            self.let_labels_go(right)
            return
        both = [(time, 0, seq, slot) for time, seq, slot in lefts]
        if rights:
            both = sorted([*both, *((time, 1, seq, slot) for time, seq, slot in rights)])
        for time, side, seq, slot in both:
            if side:
                if self.right.grade[slot] == NOT_YET:
                    out.add(place, ORPHAN, -1, seq, time, 0, -1, NO_PREDICTION)
                self.right.remove(slot)
            else:
                if self.left.grade[slot] == NOT_YET:
                    out.add(place, EXPIRED, seq, -1, time, 0, -1, NO_LABEL)
                self.remembered.add(self.left.key[slot], time)
                self.left.remove(slot)

    def expiries(self, left: Entries, right: Entries) -> dict[str, Ints]:
        """Outcomes, without their places, of rows that leave: of those that met nothing, in order of their time."""
        lefts = self.left.grade[left[2]] == NOT_YET
        rights = self.right.grade[right[2]] == NOT_YET
        a, b = int(lefts.sum()), int(rights.sum())
        none_a, none_b = np.full(a, -1), np.full(b, -1)
        columns = {
            "status": np.repeat([EXPIRED, ORPHAN], [a, b]),
            "left": np.concatenate([left[1][lefts], none_b]),
            "right": np.concatenate([none_a, right[1][rights]]),
            "time_us": np.concatenate([left[0][lefts], right[0][rights]]),
            "delay_us": np.zeros(a + b, np.int64),
            "supersedes": np.full(a + b, -1),
            "reason": np.repeat([NO_LABEL, NO_PREDICTION], [a, b]),
            "slot": np.full(a + b, -1),
        }
        if a and b:
            by = np.argsort(columns["time_us"], kind="stable")
            return {name: one[by] for name, one in columns.items()}
        return columns

    def let_predictions_go(self, entries: Entries) -> None:
        """Predictions leave together, in this order; their keys are remembered."""
        times, _, slots = entries
        if len(slots):
            keys = self.left.key[slots].tolist()
            self.remembered.publish(keys, self.remembered.append(times))
            self._go(self.left, keys, slots)

    def let_labels_go(self, entries: Entries) -> None:
        """Labels leave together."""
        slots = entries[2]
        if len(slots):
            self._go(self.right, self.right.key[slots].tolist(), slots)

    def _go(self, side: JoinSide, keys: list[Any], slots: Ints) -> None:
        side.by_key.take_out(keys, slots, surely=True)
        side.release(slots)
        side.live -= len(slots)

    def found_one_by_one(self, out: Rows) -> Found:
        """Outcomes in the order in which they came; quickly, where they are few."""
        if not out.few:
            return self.found(out.columns())
        if not out.rows:
            return self._nothing
        first, self.number = self.number, self.number + len(out.rows)
        for row in out.rows:
            self.counts[STATUSES[row[1]]] += 1
            self.counts["duplicate"] += row[7] == AGAIN
        columns: dict[str, Any] = dict(zip(ROW_COLUMNS, zip(*out.rows, strict=True), strict=True))
        columns["number"] = range(first, self.number)
        return Found.of(columns, self.reasons)

    def found(self, columns: dict[str, npt.NDArray[Any]]) -> Found:
        """Outcomes in their order, numbered and counted."""
        n = len(columns["place"])
        numbers = np.arange(self.number, self.number + n)
        self.number += n
        found = Found.of(
            {**{name: columns[name] for name in COLUMNS if name != "number"}, "number": numbers}, self.reasons
        )
        if n:
            for code, count in enumerate(np.bincount(found.status, minlength=len(STATUSES)).tolist()):
                self.counts[STATUSES[code]] += count
            self.counts["duplicate"] += int((found.reason == AGAIN).sum())
        return found


def _entries(few: list[tuple[int, int, int]]) -> Entries:
    times, seqs, slots = np.array(few, np.int64).reshape(-1, 3).T.copy()
    return times, seqs, slots
