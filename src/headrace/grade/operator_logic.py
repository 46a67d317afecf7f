"""The contract of what an operator does with the rows of one stream: windows, alarms and drift detectors keep it.

The model is bytewax's ``StatefulBatchLogic``: rows are pushed, time is advanced, the earliest time at which that would
bring something about is known, and all that is remembered can be stored and restored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints

START = -(2**62)  # the time before the first row


class Measure(NamedTuple):
    """A number about an operator, for those who watch the pipeline."""

    name: str
    text: str
    value: float
    labels: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Results:
    """Rows that an operator gives, in the order in which they came to be.

    Attributes:
        records: of windows: ``window_start`` and ``window_end`` (timestamp[us, UTC]; over rows: the times of the first
            and the last row), the groups' columns, ``rows`` (int64), the aggregates by their names, ``final`` (bool)
            where changes are asked for. Of alarms and drift detectors: rows as they came, with what was seen of them.
        place: for each row the place at which it came to be, shape (n,).
        time_us: its event time, shape (n,).
        refused: rows with a value that does not fit its type, by their indexes, and why; it is null there.
    """

    records: pa.RecordBatch
    place: Ints
    time_us: Ints
    refused: Mapping[int, str] = field(default_factory=dict)

    def filter(self, rows: Ints) -> Results:
        """Return some of the rows, by their indexes."""
        return Results(self.records.take(pa.array(rows)), self.place[rows], self.time_us[rows])

    @classmethod
    def joined(cls, parts: Sequence[Results]) -> Results:
        """Return results one after the other, of one schema."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.place) for part in parts)]).tolist()
        refused = {
            start + row: reason
            for start, part in zip(starts, parts, strict=False)
            for row, reason in part.refused.items()
        }
        return cls(
            pa.concat_batches([part.records for part in parts]),
            np.concatenate([part.place for part in parts]),
            np.concatenate([part.time_us for part in parts]),
            refused,
        )


class OperatorLogic(ABC):
    """The part of an operator that remembers rows of one stream, and makes others of them.

    Pure and deterministic; called from the thread of the step only. How rows are split into pushes changes nothing. A
    copy made before a call is the state before it, also where the call raised.

    Attributes:
        keeps_rows: results are rows as they came; they are pushed without the columns of an event (``__op``, …) then.
        time: column of event times; None: the rows' own times.
        numbers: columns whose values are numbers, or texts of numbers: rows with another text are refused.
        looks_at: how many of the newest rows of a topic of results `measures_of` wants to see.
    """

    keeps_rows: ClassVar[bool] = True
    looks_at: ClassVar[int] = 0
    time: str | None = None
    numbers: frozenset[str] = frozenset()

    @abstractmethod
    def push(self, rows: pa.RecordBatch, time_us: Ints, place: Ints) -> Results:
        """Take rows, and return what they bring about.

        Args:
            rows: in order, shape (n, …).
            time_us: their event times, shape (n,).
            place: in the event's order, ascending, shape (n,).

        Raises:
            DeclarationError: a column is missing or of a wrong type, which holds for all of the rows.
            HeadraceError: rows that cannot be taken are among them.
        """

    @property
    def deadline_us(self) -> int | None:
        """The smallest watermark at which `advance` would bring something about; None: there is none."""
        return None

    def watermark_after(self, idle_us: int) -> int:
        """Return the watermark after so long a silence; `START` where silence says nothing."""
        return START

    def advance(self, watermark_us: int) -> Results:
        """Let time go on by a recorded tick: no row before this time is waited for. Results are at place 0."""
        none = np.zeros(0, np.int64)
        return Results(pa.RecordBatch.from_pylist([]), none, none)

    @abstractmethod
    def copy(self) -> Self:
        """Return another one in this state; neither sees the other's rows. It is made for each push: be quick."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return all that is remembered: plain numbers, texts and arrays, by names that stay."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of; the declaration is the same."""

    def measures(self) -> list[Measure]:
        """Return numbers about what is remembered."""
        return []

    @classmethod
    def measures_of(cls, newest: pa.Table, end: int) -> list[Measure]:
        """Return numbers about a topic of results: from its newest rows, and the number of all it has ever had."""
        return []
