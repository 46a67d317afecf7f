"""What becomes of predictions and labels: each outcome is a row with a number.

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

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Ints, Mask

Codes = npt.NDArray[np.int8]

STATUSES = ("graded", "corrected", "late", "expired", "orphan")
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
NO_REASON, CHANGED, TOO_LATE, NO_LABEL, NO_PREDICTION, OVER, AGAIN, NULL_KEY, CROWDED = range(len(REASONS))


@dataclass(frozen=True, slots=True)
class Found:
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

    def take(self, rows: Ints | Mask | slice) -> Found:
        """Some of the outcomes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    @classmethod
    def of(cls, columns: dict[str, Any], reasons: tuple[str, ...]) -> Found:
        """Outcomes of columns of any integer type."""
        arrays: dict[str, Any] = {name: np.array(columns[name], kind) for name, kind in _KINDS.items()}
        return cls(**arrays, reasons=reasons)


COLUMNS = tuple(one.name for one in fields(Found) if one.name != "reasons")
_KINDS = {name: np.int8 if name in ("status", "reason") else np.int64 for name in COLUMNS}


def reasons(limit: int) -> tuple[str, ...]:
    """The reasons' texts where so many rows may wait.

    >>> reasons(500)[CROWDED]
    'more than 500 rows were waiting'
    """
    return tuple(one.format(limit=limit) for one in REASONS)
