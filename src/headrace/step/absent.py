"""Rows whose columns lie elsewhere: a step knows their order alone, and writes down which model predicts which of them.

Whoever holds the rows performs that, with the `PredictionBatch` that would have predicted them here, by the models as
they were at each place. So a step can pass rows that it never sees: nothing is learned from them, nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import META_FIELDS, Batch
from headrace.learn.base import Learner
from headrace.learn.state import dump_state, load_state
from headrace.plan.task import ModelTask, StreamPlan
from headrace.position import Position
from headrace.step.model_version import ModelVersion, Vocabulary
from headrace.step.outputs import Emission, emission
from headrace.step.predictions import PredictionBatch

AT = "__headrace_at"
_SCHEMA = b"headrace.absent"


def without_columns(records: pa.RecordBatch, at: int) -> pa.RecordBatch:
    """Return the order of rows alone, with where each of them is found: at a number, and those that follow it."""
    columns = [records.column(field.name) for field in META_FIELDS]
    where = pa.array(np.arange(at, at + records.num_rows))
    metadata = {_SCHEMA: records.schema.serialize().to_pybytes()}
    schema = pa.schema([*META_FIELDS, pa.field(AT, pa.int64())], metadata=metadata)
    return pa.RecordBatch.from_arrays([*columns, where], schema=schema)


def moved(records: pa.RecordBatch, by: int) -> pa.RecordBatch:
    """Return the same, found so many numbers later."""
    at = records.schema.names.index(AT)
    where = pa.array(np.asarray(records.column(at)) + by)
    return records.set_column(at, records.schema.field(at), where)


def whole_schema(schema: pa.Schema) -> pa.Schema | None:
    """Return the schema of rows whose columns lie elsewhere; None where they are here."""
    serialized = (schema.metadata or {}).get(_SCHEMA)
    return None if serialized is None else pa.ipc.read_schema(pa.py_buffer(serialized))


@dataclass(frozen=True, slots=True)
class FrozenVersion:
    """A model's version as it was at a place, so that it predicts the same in another process.

    Attributes:
        state: of its learner, as bytes.
    """

    state: bytes
    number: int
    position: Position | None
    words: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    diverged: str

    @classmethod
    def of(cls, version: ModelVersion) -> FrozenVersion:
        words = {name: tuple(known) for name, known in version.words.items()}
        state = dump_state(version.learner.state())
        return cls(state, version.number, version.position, words, dict(version.sizes), version.diverged)

    def thawed(self, learner: Learner) -> ModelVersion:
        """Return the version, with a learner that takes its state over."""
        learner.restore(load_state(self.state))
        vocabulary = Vocabulary({name: list(words) for name, words in self.words.items()}, dict(self.sizes))
        known = {name: len(words) for name, words in self.words.items()}
        return ModelVersion(learner, self.number, self.position, 0, known, vocabulary, self.diverged)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Rows that lie elsewhere, and who predicts them.

    Attributes:
        task: the model's; ``predict``: which of its declared predictions.
        at: where each row is found.
        runs: so many rows, predicted by that version; in the order of the rows.
    """

    task: ModelTask
    predict: int
    at: Ints
    runs: tuple[tuple[int, FrozenVersion], ...]


@runtime_checkable
class Performers(Protocol):
    """Predictors that have left rows elsewhere: with whoever predicts them."""

    def perform(self, schedule: Schedule) -> Callable[[], Emission]:
        """Begin to predict rows where they lie.

        Returns:
            What waits for what became of them. Rows to topics that are messages already are not in it.
        """
        ...


@dataclass(slots=True)
class _Passing:
    """What was written down so far: the last version, frozen, and the runs."""

    version: ModelVersion | None = None
    frozen: FrozenVersion | None = None
    runs: list[tuple[int, FrozenVersion]] = field(default_factory=list)


class AbsentPredictions(PredictionBatch):
    """Rows of one batch that lie elsewhere, as the timeline passes them.

    Args:
        by: get what was written down, once all rows were passed.
    """

    def __init__(
        self, batch: Batch, order: Ints, task: ModelTask, *, by: Performers, stream: StreamPlan, predict: int
    ) -> None:
        super().__init__(batch, order, task, stream=stream)
        self._performers = by
        self._predict = predict
        self._passing = _Passing()
        self._begun_elsewhere: Callable[[], Emission] | None = None

    def predict_until(self, place: int, by: ModelVersion, challenger: ModelVersion | None = None) -> None:
        """Write down that the rows before a place are predicted by this model."""
        end = int(np.searchsorted(self.order, place, "left"))
        if end == self.done:
            return
        passing = self._passing
        if passing.version is not by or passing.frozen is None:
            passing.version, passing.frozen = by, FrozenVersion.of(by)
        passing.runs.append((end - self.done, passing.frozen))
        self.done = end
        if end == len(self.order):
            at = np.asarray(self.batch.column(AT))
            schedule = Schedule(self.task, self._predict, at, tuple(passing.runs))
            self._begun_elsewhere = self._performers.perform(schedule)

    def emission(self) -> Emission:
        """Wait for what becomes of the rows."""
        assert self._begun_elsewhere is not None
        return self._begun_elsewhere()

    def forget(self, place: int) -> None:
        raise NotImplementedError("rows of a model that is retrained are not left elsewhere")

    def output(self) -> Batch:
        raise NotImplementedError("the rows lie elsewhere")


def predicted(
    task: ModelTask, predict: int, rows: Batch, runs: Sequence[tuple[int, FrozenVersion]], learner: Learner
) -> Emission:
    """Return what becomes of rows by what was written down of them: the work of whoever holds them.

    Args:
        rows: all of them, in order.
        learner: as it was declared; it takes over each version's state in turn.
    """
    plan = task.predict[predict]
    options: dict[str, Any] = {"proba": plan.proba, "stream": plan.stream}
    predictions = PredictionBatch(rows, np.arange(rows.num_rows), task, **options)
    done = 0
    for count, version in runs:
        done += count
        predictions.predict_until(done, version.thawed(learner))
    return emission(task, plan, predictions)
