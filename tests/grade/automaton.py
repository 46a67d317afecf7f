"""The rules of the join written down once more, as plainly as they can be: lists, and a loop over the rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NEVER = -(2**62)


@dataclass
class Row:
    """One row, of either side."""

    side: str  # "prediction" or "label"
    key: Any
    time: int
    truth: float = 0.0
    update: bool = False
    seq: int = -1
    grade: int | None = None
    graded_as: float | None = None
    used: bool = False


@dataclass
class Automaton:
    """One row after another; outcomes: place, status, left, right, time, delay, number, supersedes, reason."""

    within: int
    lateness: int
    limit: int
    remember: int
    predictions: list[Row] = field(default_factory=list)
    labels: list[Row] = field(default_factory=list)
    left: list[tuple[Any, int]] = field(default_factory=list)  # key and time of predictions that have left, in order
    times: dict[str, int] = field(default_factory=lambda: {"prediction": NEVER, "label": NEVER})
    seqs: dict[str, int] = field(default_factory=lambda: {"prediction": 0, "label": 0})
    outcomes: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def watermark(self) -> int:
        return min(self.times.values()) - self.lateness

    def tell(
        self,
        place: int,
        status: str,
        reason: str,
        *,
        prediction: Row | None = None,
        label: Row | None = None,
        supersedes: int = -1,
    ) -> int:
        number = len(self.outcomes)
        both = prediction is not None and label is not None
        left, right = (-1 if item is None else item.seq for item in (prediction, label))
        time = max(item.time for item in (prediction, label) if item is not None)
        delay = label.time - prediction.time if both else 0
        self.outcomes.append((place, status, left, right, time, delay, number, supersedes, reason))
        return number

    def over(self, row: Row) -> bool:
        return self.watermark > row.time + self.within

    def near(self, one: Row, other: Row) -> bool:
        return abs(one.time - other.time) <= self.within

    def handle(self, place: int, row: Row) -> None:
        row.seq = self.seqs[row.side]
        self.seqs[row.side] += 1
        self.times[row.side] = max(self.times[row.side], row.time)
        self.expire(place)
        if row.side == "prediction":
            self.prediction(place, row)
        else:
            self.label(place, row)
        for rows in (self.predictions, self.labels):
            if len(rows) > self.limit:
                self.leave(place, min(rows, key=lambda one: one.seq), f"more than {self.limit} rows were waiting")

    def expire(self, place: int) -> None:
        over = [item for item in (*self.predictions, *self.labels) if self.over(item)]
        for item in sorted(over, key=lambda one: (one.time, one.side == "label", one.seq)):
            said = "no label came in time" if item.side == "prediction" else "no prediction came in time"
            self.leave(place, item, said)

    def leave(self, place: int, row: Row, reason: str) -> None:
        if row.side == "prediction":
            self.predictions.remove(row)
            self.left.append((row.key, row.time))
            if row.grade is None:
                self.tell(place, "expired", reason, prediction=row)
        else:
            self.labels.remove(row)
            if not row.used:
                self.tell(place, "orphan", reason, label=row)

    def prediction(self, place: int, row: Row) -> None:
        if row.key is None:
            self.tell(place, "expired", "the key is NULL", prediction=row)
            return
        labels = [label for label in self.labels if label.key == row.key]
        if labels and self.near(labels[-1], row):
            labels[-1].used = True
            row.grade = self.tell(place, "graded", "", prediction=row, label=labels[-1])
            row.graded_as = labels[-1].truth
        elif self.over(row):
            self.tell(place, "expired", "its time was over when it came", prediction=row)
        if self.over(row):
            self.left.append((row.key, row.time))
        else:
            self.predictions.append(row)

    def label(self, place: int, row: Row) -> None:
        if row.key is None:
            self.tell(place, "orphan", "the key is NULL", label=row)
            return
        mine = [prediction for prediction in self.predictions if prediction.key == row.key]
        if matching := [item for item in mine if self.near(item, row)]:
            self.grade(place, row, matching)
        elif self.too_late(place, row, [item for item in mine if row.time > item.time + self.within]):
            return
        elif self.over(row):
            self.tell(place, "orphan", "its time was over when it came", label=row)
        if not self.over(row):
            self.labels.append(row)

    def grade(self, place: int, row: Row, matching: list[Row]) -> None:
        row.used = True
        told = False
        for item in matching:
            if item.grade is None:
                item.grade = self.tell(place, "graded", "", prediction=item, label=row)
            elif row.update or item.graded_as != row.truth:
                item.grade = self.tell(
                    place, "corrected", "the label changed", prediction=item, label=row, supersedes=item.grade
                )
            else:
                continue
            item.graded_as, told = row.truth, True
        if not told:
            self.tell(place, "orphan", "the label came again", label=row)

    def too_late(self, place: int, row: Row, older: list[Row]) -> bool:
        reason = "the label came when its prediction's time was over"
        if older:
            self.tell(place, "late", reason, prediction=older[-1], label=row)
            return True
        # The last `limit` that left, and of each key the last one of those.
        remembered = dict(self.left[-self.limit :])
        time = remembered.get(row.key)
        if time is None or time > row.time or self.watermark > time + self.within + self.remember:
            return False
        self.tell(place, "late", reason, label=row)
        return True

    def advance(self, left: int, right: int) -> None:
        self.times["prediction"] = max(self.times["prediction"], left)
        self.times["label"] = max(self.times["label"], right)
        self.expire(0)
