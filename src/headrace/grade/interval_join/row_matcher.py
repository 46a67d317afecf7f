"""The join row by row: for events of few rows, for keys that have several, and where the size limit is near."""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.grade.interval_join.join_state import NOT_YET, USED, Entries, JoinState
from headrace.grade.interval_join.outcomes import OutcomeBuilder, Reason, Status


class RowMatcher:
    """Applies the rules of `headrace.grade.interval_join.join` to one row after the other.

    Args:
        state: what is pending, changed in place.
        out: is given the outcomes.
    """

    def __init__(self, state: JoinState, out: OutcomeBuilder) -> None:
        self.state, self.out = state, out

    def match(
        self, left: tuple[list[Any], Ints, Ints], right: tuple[list[Any], Ints, Ints], updates: list[bool], truths: Ints
    ) -> None:
        """Handle rows in the order of their places.

        Args:
            left, right: keys, event times and places of predictions and of labels.
            updates: which labels are updates; ``truths``: the codes of their truths.
        """
        keys, times, places = left[0], left[1].tolist(), left[2].tolist()
        label_keys, label_times, label_places = right[0], right[1].tolist(), right[2].tolist()
        codes = truths.tolist()
        i = j = 0
        while i < len(keys) or j < len(label_keys):
            if j == len(label_keys) or (i < len(keys) and places[i] < label_places[j]):
                self._prediction(places[i], keys[i], times[i])
                i += 1
            else:
                self._label(label_places[j], label_keys[j], label_times[j], updates[j], codes[j])
                j += 1

    def _prediction(self, place: int, key: Any, time: int) -> None:
        side = self.state.left
        side.time_us = max(side.time_us, time)
        watermark = self._expire(place)
        seq = side.next_seq
        side.next_seq += 1
        if key is None:
            self.out.add(place, Status.EXPIRED, seq, -1, time, 0, -1, Reason.NULL_KEY)
            side.left_few.append(seq)
            return
        grade, truth = self.on_prediction(place, key, time, seq, watermark)
        if watermark > time + self.state.within:
            side.left_few.append(seq)
            self.state.departed.add(key, time)
            return
        side.store(key, time, seq, truth, grade)
        if side.live > self.state.limit:
            self._evict(place, left=True)

    def _label(self, place: int, key: Any, time: int, update: bool, truth: int) -> None:
        side = self.state.right
        side.time_us = max(side.time_us, time)
        watermark = self._expire(place)
        seq = side.next_seq
        side.next_seq += 1
        if key is None:
            self.out.add(place, Status.ORPHAN, -1, seq, time, 0, -1, Reason.NULL_KEY)
            side.left_few.append(seq)
            return
        departed = self.state.departed.count
        stays, use = self.on_label(place, key, time, seq, watermark, update=update, truth=truth, departed=departed)
        if not stays or watermark > time + self.state.within:
            side.left_few.append(seq)
            return
        side.store(key, time, seq, truth, use)
        if side.live > self.state.limit:
            self._evict(place, left=False)

    def _expire(self, place: int) -> int:
        """Let go what is over. Returns the watermark."""
        watermark = self.state.watermark
        before = watermark - self.state.within
        if self.state.left.order.first < before or self.state.right.order.first < before:
            self.expire(place, before)
        return watermark

    def on_prediction(
        self, place: int, key: Any, time: int, seq: int, watermark: int, slot: int = -1
    ) -> tuple[int, int]:
        """Let a prediction meet what is there when it comes. Returns its grade and the code of the label's truth.

        It is to be pending unless its time is over.
        """
        right = self.state.right
        for label in reversed(right.by_key.slots_of(key)):
            label_time = int(right.time[label])
            if label_time + self.state.within < watermark:
                continue
            if abs(label_time - time) <= self.state.within:
                both = max(time, label_time)
                right.grade[label] = USED
                token = self.out.add(
                    place, Status.GRADED, seq, int(right.seq[label]), both, label_time - time, -1, Reason.NONE, slot
                )
                return token, int(right.truth[label])
            break
        if watermark > time + self.state.within:
            self.out.add(place, Status.EXPIRED, seq, -1, time, 0, -1, Reason.OVER)
        return NOT_YET, 0

    def on_label(
        self,
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
        """Let a label meet what is there. Returns whether it is to stay, unless its time is over, and its use."""
        left, within = self.state.left, self.state.within
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
                status, reason = Status.GRADED, Reason.NONE
            elif update or int(left.truth[slot]) != truth:
                status, reason = Status.CORRECTED, Reason.CHANGED
            else:
                continue
            told = True
            left.grade[slot] = self.out.add(place, status, prediction, seq, max(of, time), delay, earlier, reason, slot)
            left.truth[slot] = truth
        if met:
            if not told:
                self.out.add(place, Status.ORPHAN, -1, seq, time, 0, -1, Reason.AGAIN)
            return True, USED
        if too_old >= 0:
            self.out.add(place, Status.LATE, too_old, seq, time, late_by, -1, Reason.TOO_LATE)
            return False, NOT_YET
        if self.state.departed.older(key, time, watermark, departed):
            self.out.add(place, Status.LATE, -1, seq, time, 0, -1, Reason.TOO_LATE)
            return False, NOT_YET
        if watermark > time + within:
            self.out.add(place, Status.ORPHAN, -1, seq, time, 0, -1, Reason.OVER)
        return True, NOT_YET

    def _evict(self, place: int, *, left: bool) -> None:
        """Let the oldest row of a side leave, since too many are pending."""
        side = self.state.left if left else self.state.right
        slot = side.pop_oldest()
        seq, time = int(side.seq[slot]), int(side.time[slot])
        if side.grade[slot] == NOT_YET:
            self.out.add(
                place,
                Status.EXPIRED if left else Status.ORPHAN,
                seq if left else -1,
                -1 if left else seq,
                time,
                0,
                -1,
                Reason.CROWDED,
            )
        if left:
            self.state.departed.add(side.key[slot], time)
        side.remove(slot)
        side.drop_stale()

    def expire(self, place: int, before: int) -> None:
        """Let everything with an event time before this one leave."""
        lefts, rights = self.state.left.few_over(before), self.state.right.few_over(before)
        if lefts is None or rights is None:
            left = self.state.left.over(before) if lefts is None else _entries(lefts)
            right = self.state.right.over(before) if rights is None else _entries(rights)
            columns = self.state.expiries(left, right)
            self.out.add_many({**columns, "place": np.full(len(columns["left"]), place)})
            self.state.let_predictions_go(left)
            self.state.let_labels_go(right)
            return
        both = [(time, 0, seq, slot) for time, seq, slot in lefts]
        if rights:
            both = sorted([*both, *((time, 1, seq, slot) for time, seq, slot in rights)])
        for time, side, seq, slot in both:
            if side:
                if self.state.right.grade[slot] == NOT_YET:
                    self.out.add(place, Status.ORPHAN, -1, seq, time, 0, -1, Reason.NO_PREDICTION)
                self.state.right.remove(slot)
            else:
                if self.state.left.grade[slot] == NOT_YET:
                    self.out.add(place, Status.EXPIRED, seq, -1, time, 0, -1, Reason.NO_LABEL)
                self.state.departed.add(self.state.left.key[slot], time)
                self.state.left.remove(slot)


def _entries(few: list[tuple[int, int, int]]) -> Entries:
    times, seqs, slots = np.array(few, np.int64).reshape(-1, 3).T.copy()
    return times, seqs, slots
