"""Predictions await their labels: the join of two streams on a key, in event time.

The rules, row by row in the order of the rows' places. A row's *time is over* once the watermark is above its event
time plus ``within``; the watermark is the smaller one of the two sides' largest event times so far, less the lateness.

* A row first moves the watermark, then everything leaves whose time is over by that, in the order of (time,
  predictions first, number), then the row is handled.
* A prediction waits until its time is over, graded or not; then it is ``expired`` if it had no grade. Its key is
  remembered for longer. A prediction whose key's newest label waits and is within reach is graded at once. One whose
  time is over when it comes, and for which no such label waits, is expired at once.
* A label grades all predictions of its key within reach; those that have a grade it corrects, if it is an update or its
  truth is another than the one that graded them. If it does neither it came again: an orphan. It waits until its
  time is over, for later predictions; then it is an orphan if it met none.
* A label that no prediction within reach waits for is ``late`` if one that is too old for it waits, or one not newer
  than it has left and is remembered. Otherwise it waits, or is an orphan at once if its time is over.
* Reach is inclusive and in both directions, as in ksqlDB's WITHIN
  (https://docs.ksqldb.io/en/latest/developer-guide/joins/join-streams-and-tables/).
* A NULL key meets nothing. Where more than ``limit`` rows of a side wait, the oldest leaves before its time.

The outcomes do not depend on how the rows were put into events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints, Mask
from headrace.grade.interval_join.batch_matcher import BatchMatcher
from headrace.grade.interval_join.join_state import JoinState, Snapshot
from headrace.grade.interval_join.keys import pack_keys, truth_codes, unpack_keys
from headrace.grade.interval_join.outcomes import REASONS, STATUSES, OutcomeBuilder, Outcomes
from headrace.grade.interval_join.row_matcher import RowMatcher

__all__ = ["REASONS", "STATUSES", "Arrivals", "Join", "Outcomes"]

LIMIT = 2_000_000
# As many rows are as fast one by one as together.
FEW = 48
# Near the size limit: so many one by one, before it is looked at again.
SOME = 256


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Rows of one side that one event brings, in order.

    Attributes:
        keys: str, int, bytes, float, bool or tuples of them, one for each row; None is NULL.
        time_us: event times.
        place: ascending places in the event's order; those of the two sides are different.
        update: which labels are updates of a label; None where none is. Labels only.
        truth: the labels' values, which tell whether two say the same; None where all do. Labels only.
    """

    keys: list[Any]
    time_us: Ints
    place: Ints
    update: Mask | None = None
    truth: pa.Array | None = None

    @classmethod
    def none(cls) -> Arrivals:
        """No rows."""
        return cls([], np.empty(0, np.int64), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)


class Join(JoinState):
    """The join: its state, and what is done with the rows of an event.

    Its rows are numbered, those of each side by themselves, as they come; what they hold is put into ``left.rows``
    and ``right.rows`` by the caller, every row of an event and in the same order, and dropped by `settle`.

    Args:
        within_us: how far apart in time a prediction and its label may be.
        lateness_us: how far the watermark stays behind.
        limit: how many rows of a side may be pending, and how many keys are remembered.
        remember_us: how long the key of a prediction is remembered after its time is over; ten times ``within_us`` by
            default.

    >>> join = Join(60_000_000)
    >>> times = np.array([0, 2_000_000])
    >>> predictions = Arrivals([1, 2], times, np.array([0, 2]))
    >>> labels = Arrivals([2, 1], times + 10_000_000, np.array([3, 4]), truth=pa.array([3.5, 4.0]))
    >>> found = join.match(predictions, labels, end=5)
    >>> [STATUSES[code] for code in found.status], found.left.tolist(), found.delay_us.tolist()
    (['graded', 'graded'], [1, 0], [8000000, 12000000])
    """

    def __init__(
        self, within_us: int, *, lateness_us: int = 0, limit: int = LIMIT, remember_us: int | None = None
    ) -> None:
        if within_us < 0 or lateness_us < 0 or limit < 1:
            raise ValueError("within_us and lateness_us are not negative, and limit is at least 1")
        remember = 10 * within_us if remember_us is None else remember_us
        super().__init__(within_us, lateness_us, limit, remember)

    @property
    def pending(self) -> tuple[int, int]:
        """The numbers of predictions and labels that are pending, those that have a grade included."""
        return self.left.live, self.right.live

    @property
    def waiting(self) -> int:
        """Return the number of predictions that have no outcome yet: each has one grade, or is expired without one."""
        return self.left.next_seq - self.counts["graded"] - self.counts["expired"]

    @property
    def deadline_us(self) -> int | None:
        """The smallest watermark at which something leaves, with an outcome or without; None: nothing is pending."""
        times = [time for side in (self.left, self.right) if (time := side.first_time()) is not None]
        return min(times) + self.within + 1 if times else None

    def match(self, left: Arrivals, right: Arrivals, *, end: int) -> Outcomes:
        """Handle the rows of an event.

        Args:
            left: predictions. right: labels.
            end: the number of places of the event.

        Raises:
            ValueError: places are not ascending, or not below ``end``.
        """
        _check(left, end)
        _check(right, end)
        truths = np.zeros(len(right), np.int64) if right.truth is None else truth_codes(right.truth)
        updates = np.zeros(len(right), np.bool_) if right.update is None else np.asarray(right.update, np.bool_)
        parts: list[Outcomes] = []
        i = j = 0
        while not parts or i + j < len(left) + len(right):
            in_a_batch, stop_i, stop_j = self._piece(left, right, i, j)
            lefts = (left.keys[i:stop_i], left.time_us[i:stop_i], left.place[i:stop_i])
            rights = (right.keys[j:stop_j], right.time_us[j:stop_j], right.place[j:stop_j])
            parts.append(self._matched(lefts, rights, updates[j:stop_j], truths[j:stop_j], in_a_batch=in_a_batch))
            i, j = stop_i, stop_j
        self.departed.forget(self.watermark)
        return Outcomes.joined(parts)

    def _piece(self, left: Arrivals, right: Arrivals, i: int, j: int) -> tuple[bool, int, int]:
        """Return how many of the next rows are matched together: as many as surely stay below the limit."""
        rest = len(left) + len(right) - i - j
        count = min(rest, self.limit - max(self.pending))
        in_a_batch = count > FEW
        if not in_a_batch:
            count = min(rest, SOME)
        if count == rest:
            return in_a_batch, len(left), len(right)
        last = np.partition(np.concatenate([left.place[i:], right.place[j:]]), count - 1)[count - 1]
        stop_i, stop_j = (int(np.searchsorted(side.place, last, "right")) for side in (left, right))
        return in_a_batch, stop_i, stop_j

    def _matched(
        self,
        left: tuple[list[Any], Ints, Ints],
        right: tuple[list[Any], Ints, Ints],
        updates: Mask,
        truths: Ints,
        *,
        in_a_batch: bool,
    ) -> Outcomes:
        if in_a_batch:
            return self.outcomes(BatchMatcher(self, left, right, updates, truths).match())
        out = OutcomeBuilder(self.number)
        RowMatcher(self, out).match(left, right, updates.tolist(), truths)
        return self.outcomes_of(out)

    def advance(self, left_us: int, right_us: int) -> Outcomes:
        """Let time go on without rows: a tick says how far each side is. The outcomes' place is 0."""
        self.left.time_us = max(self.left.time_us, left_us)
        self.right.time_us = max(self.right.time_us, right_us)
        out = OutcomeBuilder(self.number)
        RowMatcher(self, out).expire(0, self.watermark - self.within)
        self.departed.forget(self.watermark)
        return self.outcomes_of(out)

    def settle(self) -> None:
        """Drop what rows hold that have left; called when the outcomes were made into rows."""
        self.left.settle()
        self.right.settle()

    def snapshot(self) -> Snapshot:
        """Return everything, as arrays and numbers."""
        keys, ordinals, times = self.departed.entries()
        found: Snapshot = {
            "number": self.number,
            "departed": self.departed.count,
            "remembered.keys": pack_keys(keys),
            "remembered.ordinals": ordinals,
            "remembered.times": times,
            **{f"counts.{name}": count for name, count in self.counts.items()},
        }
        for name, side in (("left", self.left), ("right", self.right)):
            found.update({f"{name}.{key}": value for key, value in side.snapshot().items()})
        return found

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of. The settings are those that this join was made with."""
        super().__init__(self.within, self.lateness, self.limit, self.departed.keep_us - self.within)
        self.number = int(snapshot["number"])
        for name in self.counts:
            self.counts[name] = int(snapshot[f"counts.{name}"])
        keys = unpack_keys(np.asarray(snapshot["remembered.keys"]))
        ordinals, times = (np.asarray(snapshot[f"remembered.{name}"], np.int64) for name in ("ordinals", "times"))
        self.departed.restore(keys, ordinals, times, int(snapshot["departed"]))
        for name, side in (("left", self.left), ("right", self.right)):
            start = f"{name}."
            side.restore({key.removeprefix(start): value for key, value in snapshot.items() if key.startswith(start)})

    def rekey(self, change: Callable[[Any], Any]) -> None:
        """Change the keys of all that waits or is remembered."""
        snapshot = self.snapshot()
        for name in ("left.keys", "right.keys", "remembered.keys"):
            snapshot[name] = pack_keys([change(key) for key in unpack_keys(np.asarray(snapshot[name]))])
        self.restore(snapshot)


def _check(rows: Arrivals, end: int) -> None:
    place = rows.place
    if not len(rows) == len(place) == len(rows.time_us):
        raise ValueError("a row has a key, an event time and a place")
    if len(place) and (place[0] < 0 or place[-1] >= end or (len(place) > 1 and (place[1:] <= place[:-1]).any())):
        raise ValueError(f"the places of an event's rows are ascending, from 0 to {end - 1}")
