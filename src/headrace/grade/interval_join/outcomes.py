"""Outcomes: what becomes of predictions and labels; each is a row with a number.

==============  =======================================================================================
status          meaning
==============  =======================================================================================
``graded``      a prediction met its label
``corrected``   a label that changed met a prediction that had a grade; ``supersedes`` is that grade's number
``late``        a label came when the time of its key's prediction was over
``expired``     a prediction whose label did not come in time
``orphan``      a label that no prediction was there for, or that came again
==============  =======================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints, Mask

Codes = npt.NDArray[np.int8]

STATUSES = ("graded", "corrected", "late", "expired", "orphan")


class Status:
    """Codes into `STATUSES`."""

    GRADED, CORRECTED, LATE, EXPIRED, ORPHAN = range(len(STATUSES))


REASONS = (
    "",
    "the label changed",
    "the label came when its prediction's time was over",
    "no label came in time",
    "no prediction came in time",
    "its time was over when it came",
    "the label came again",
    "the key is NULL",
    "more than {limit} rows were waiting",
)


class Reason:
    """Codes into `REASONS`."""

    NONE, CHANGED, TOO_LATE, NO_LABEL, NO_PREDICTION, OVER, AGAIN, NULL_KEY, CROWDED = range(len(REASONS))


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Outcomes in order; arrays of one length.

    Attributes:
        place: of the row that brought it about, in the event's order.
        status: code into `STATUSES`.
        left, right: numbers of the prediction's and the label's row, -1 where there is none.
        time_us: event time: of a grade the later one of the two rows'.
        delay_us: the label's time less the prediction's; 0 where one of the two is not there.
        number: of the outcome, from 0 since the beginning.
        supersedes: number of the grade that it takes the place of, or -1.
        reason: code into ``reasons``.
        reasons: their texts; the first is that of a grade, which needs none.
    """

    place: Ints
    status: Codes
    left: Ints
    right: Ints
    time_us: Ints
    delay_us: Ints
    number: Ints
    supersedes: Ints
    reason: Codes
    reasons: tuple[str, ...] = REASONS

    def __len__(self) -> int:
        return len(self.place)

    def take(self, rows: Ints | Mask | slice) -> Outcomes:
        """Return some of the outcomes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def joined(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """Return outcomes one after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return cls.of(columns, parts[0].reasons)

    @classmethod
    def of(cls, columns: dict[str, Any], reasons: tuple[str, ...]) -> Outcomes:
        """Return outcomes of columns of any integer type."""
        arrays: dict[str, Any] = {name: np.array(columns[name], kind) for name, kind in _KINDS.items()}
        return cls(**arrays, reasons=reasons)


COLUMNS = tuple(column.name for column in fields(Outcomes) if column.name != "reasons")
_KINDS = {name: np.int8 if name in ("status", "reason") else np.int64 for name in COLUMNS}


def reasons(limit: int) -> tuple[str, ...]:
    """Return the reasons' texts where so many rows may be pending.

    >>> reasons(500)[Reason.CROWDED]
    'more than 500 rows were waiting'
    """
    return tuple(text.format(limit=limit) for text in REASONS)


# place, status, left, right, time, delay, supersedes, reason, slot of the prediction
Row = tuple[int, int, int, int, int, int, int, int, int]
OutcomeColumns = dict[str, Ints]
ROW_COLUMNS = ("place", "status", "left", "right", "time_us", "delay_us", "supersedes", "reason", "slot")


class OutcomeBuilder:
    """Takes outcomes as they come about, one at a time or many.

    A grade has a token at once: its number, or, where the outcomes will be put in order later (``later``), a negative
    number that says which of these rows it is.
    """

    __slots__ = ("_base", "_parts", "_sign", "count", "rows")

    def __init__(self, number: int, *, later: bool = False) -> None:
        self._base, self._sign = (-3, -1) if later else (number, 1)
        self._parts: list[OutcomeColumns] = []
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
        """Add an outcome. Returns its token."""
        self.rows.append((place, status, left, right, time, delay, supersedes, reason, slot))
        self.count += 1
        return self._base + self._sign * (self.count - 1)

    def add_many(self, columns: OutcomeColumns) -> None:
        """Add outcomes."""
        self._close()
        self._parts.append(columns)
        self.count += len(columns["place"])

    def _close(self) -> None:
        if self.rows:
            self._parts.append(dict(zip(ROW_COLUMNS, np.array(self.rows, np.int64).T, strict=True)))
            self.rows = []

    def columns(self) -> OutcomeColumns:
        """Return all outcomes, in the order in which they came."""
        self._close()
        if len(self._parts) == 1:
            return self._parts[0]
        none = [np.empty(0, np.int64)]
        return {name: np.concatenate([part[name] for part in self._parts] or none) for name in ROW_COLUMNS}

    @property
    def few(self) -> bool:
        """True where all outcomes came one at a time, and are few."""
        return not self._parts and len(self.rows) < 64

    @staticmethod
    def row_of(tokens: Ints) -> Ints:
        """Return which rows tokens mean that were given for later."""
        return -3 - tokens
