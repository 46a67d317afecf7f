"""Models as they were after a commit: copies that never change, for requests that must not wait for the engine.

The engine learns in place. After each commit that changed a model a copy of it is published; whoever answers takes the
newest copy once, and takes no lock of the engine's.
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import plain_values
from headrace.batch import Batch, is_meta, told_apart
from headrace.errors import HeadraceError
from headrace.learn.base import learner_text, offers_probabilities, traits_of
from headrace.learn.category import Category
from headrace.learn.features import resolved
from headrace.plan.task import ModelTask, served_column
from headrace.serve.models import Description, NotReady, PredictedRows, RowRefused, TooSlow, VersionInfo
from headrace.step.model_version import ModelVersion, Vocabulary
from headrace.step.predictions import BLOCK_ROWS, PredictionBatch, predict_rows
from headrace.step.state import State

SLOW_SECONDS = 0.002
COSTLY_SECONDS = 0.02
Coder = Callable[[npt.NDArray[Any], int, Sequence[Any]], None]
Outcome = Any


def describe(task: ModelTask, *, databases: bool = False) -> Description:
    """A model for those who ask it over HTTP.

    Args:
        databases: whether its pipeline captures any.
    """
    learner = task.learner
    traits = traits_of(learner)
    served = {prediction.served.topic for prediction in task.predict if prediction.served is not None}
    return Description(
        task.name,
        type(learner).__name__,
        () if callable(task.features) else tuple(served_column(feature, task.missing) for feature in task.features),
        task.target,
        traits.prediction_type or pa.float64(),
        tuple(np.asarray(traits.classes).tolist()) if offers_probabilities(learner) else None,
        tuple(topic for topic in task.topics if topic not in served),
        databases,
        learner_text(learner),
    )


class Pace:
    """The time a model takes for a block: the shortest of its last few; a busy machine makes any of them longer."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=4)

    def took(self, seconds: float) -> None:
        """One block took so long. Called from any thread."""
        self._last.append(seconds)

    @property
    def seconds(self) -> float:
        """For a block; 0 while none is known."""
        return min(tuple(self._last), default=0.0)

    @property
    def slow(self) -> bool:
        """Return whether a loop that serves others too should not wait for it."""
        return self.seconds > SLOW_SECONDS


class ModelSnapshot:
    """A model after one commit; see `headrace.serve.models.Snapshot`.

    Args:
        by: a copy that nobody else has.
        pace: of this model, shared by its snapshots.
    """

    def __init__(self, task: ModelTask, by: ModelVersion, info: VersionInfo, pace: Pace) -> None:
        self.by = by
        self._info = info
        self._task = task
        self._pace = pace
        self._predicting = threading.Lock()
        self._width, self._dtype, self._code = _coder(task, by)

    @property
    def info(self) -> VersionInfo:
        return self._info

    @property
    def ready(self) -> bool:
        """Return whether it can predict."""
        return self.by.learner.ready and not self.by.diverged

    def predict(self, rows: Sequence[Sequence[Any]], *, wait: bool = False) -> list[Outcome]:
        """The predictions for at most 64 rows of values, in one block: the same bits as `answer` gives for each.

        Args:
            rows: values of the columns of the model's description, in their order.
            wait: whether the caller may be held up; else `TooSlow` says that it would be.

        Returns:
            For each row its prediction, or the `RowRefused` that says why there is none.

        Raises:
            NotReady: the model has learned nothing yet, or has diverged.
            TooSlow: see ``wait``.
        """
        if not self.by.learner.ready:
            raise NotReady(f"the model «{self._info.model}» has learned nothing yet")
        if self.by.diverged:
            raise NotReady(f"the model «{self._info.model}» has diverged: {self.by.diverged}")
        if not wait and (self._pace.slow or self._code is None):
            raise TooSlow(f"the model «{self._info.model}» takes {self._pace.seconds * 1000:.1f} ms")
        if self._code is None:
            return [self._by_batch(row) for row in rows]
        if not self._predicting.acquire(blocking=wait):
            raise TooSlow(f"the model «{self._info.model}» is answering")
        try:
            return self._in_block(rows, self._code)
        finally:
            self._predicting.release()

    def _in_block(self, rows: Sequence[Sequence[Any]], code: Coder) -> list[Outcome]:
        block = np.empty((BLOCK_ROWS, self._width), self._dtype)
        found: list[Outcome] = []
        good = 0
        for row in rows:
            try:
                code(block, good, row)
            except RowRefused as refusal:
                found.append(refusal)
                continue
            found.append(None)
            good += 1
        if not good:
            return found
        started = time.perf_counter()
        values, failed = predict_rows(self.by.learner.predict, block[:good])
        self._pace.took(time.perf_counter() - started)
        listed: list[Outcome] = [None] * good if values is None else values.tolist()
        for at, reason in failed.items():
            listed[at] = RowRefused(reason)
        answers = iter(listed)
        return [next(answers) if outcome is None else outcome for outcome in found]

    def _by_batch(self, row: Sequence[Any]) -> Outcome:
        """A row whose features need Arrow: a vector, bytes."""
        names = self._task.feature_names
        answer = self.predict_batch(
            pa.RecordBatch.from_pydict({name: [value] for name, value in zip(names, row, strict=True)})
        )
        if answer.reasons:
            return RowRefused(answer.reasons[0])
        return plain_values.value(answer.batch.column("prediction")[0])

    def predict_batch(self, rows: pa.RecordBatch, *, probabilities: bool = False) -> PredictedRows:
        """Predict rows, in blocks; waits for other callers of this snapshot.

        Raises:
            HeadraceError: a column has a name of Headrace's own.
        """
        for name in filter(is_meta, rows.schema.names):
            raise HeadraceError(f"the rows have a column «{name}», a name of Headrace's own", advice="Rename it.")
        query = PredictionBatch(Batch.of(rows), np.arange(rows.num_rows), self._task, proba=probabilities)
        with self._predicting:
            query.predict_until(rows.num_rows, self.by)
        if not rows.num_rows:
            return PredictedRows(_nothing(rows, self._task, probabilities), self._info, {})
        return PredictedRows(query.output().rows, self._info, query.reasons)


def _nothing(rows: pa.RecordBatch, task: ModelTask, probabilities: bool) -> pa.RecordBatch:
    """Return no rows, with the columns that predictions have."""
    text, number = pa.string(), pa.int64()
    kinds = {"prediction": describe(task).answers, "status": text, "model": text, "model_version": number}
    kinds["model_position"] = text
    if probabilities:
        kinds["probability"] = pa.list_(pa.float64(), len(describe(task).classes or ()))
    names = told_apart(rows.schema.names, kinds)
    own = [field.with_name(name) for field, name in zip(rows.schema, names, strict=True)]
    return pa.RecordBatch.from_pylist(
        [], schema=pa.schema([*own, *(pa.field(name, kind) for name, kind in kinds.items())])
    )


# -- values of one row to a row of the matrix -------------------------------------------------------------------------


def _coder(task: ModelTask, by: ModelVersion) -> tuple[int, Any, Coder | None]:
    """Width and type of the matrix, and what writes a row of it; None where only Arrow can make it.

    It does for values what `headrace.learn.features.matrix` does for columns; a test holds the two together.
    """
    features = resolved(task.features, by.words, by.sizes, refuse=False)
    if callable(features) or not all(isinstance(feature, str | Category) for feature in features):
        return 0, np.float64, None
    parts: list[tuple[str, int, Category | None, Mapping[str, int]]] = []
    at = 0
    for feature in features:
        if isinstance(feature, str):
            parts.append((feature, at, None, {}))
            at += 1
        elif isinstance(feature, Category):
            skipped = 1 if feature.coding == "treatment" else 0
            parts.append((feature.column, at, feature, {word: i - skipped for i, word in enumerate(feature.words)}))
            at += feature.width - skipped
    numbers = any(category is None for _, _, category, _ in parts)
    missing = np.nan if task.missing == "pass" else None
    code = _writer(parts, missing)
    return at, np.float64 if numbers else np.float32, code


def _writer(parts: Sequence[tuple[str, int, Category | None, Mapping[str, int]]], missing: float | None) -> Coder:
    words = any(category is not None for _, _, category, _ in parts)

    def write(block: npt.NDArray[Any], row: int, values: Sequence[Any]) -> None:
        if words:
            block[row] = 0.0
        for (name, at, category, known), value in zip(parts, values, strict=True):
            if category is None:
                block[row, at] = _number(name, value, missing)
            elif value is None:
                raise RowRefused(f"the category «{name}» is NULL", column=name)
            else:
                place = known.get(value)
                if place is not None:
                    if place >= 0:
                        block[row, at + place] = 1.0
                elif category.unseen == "error":
                    raise RowRefused(f"the category «{name}» is {value!r}, which is not known", column=name)

    return write


def _number(name: str, value: Any, missing: float | None) -> float:
    if value is None or value != value:
        if missing is None:
            raise RowRefused(f"the feature «{name}» is {'NULL' if value is None else 'nan'}", column=name)
        return missing
    number = float(value)
    if number in (np.inf, -np.inf):
        raise RowRefused(f"the feature «{name}» is {number}", column=name)
    return number


# -- publishing -------------------------------------------------------------------------------------------------------


class SnapshotPublisher:
    """The newest snapshot of one model. `publish` is called by the one thread that changes the state.

    A copy is made with every commit that changed the model, so that a request after a commit sees it. Only where copies
    take longer than 20 ms is at most a tenth of the time spent on them, unless somebody waits for one (`wanted`),
    another version has begun, or there is nothing else to do.
    """

    def __init__(self, task: ModelTask, time_of: Callable[[int], int]) -> None:
        self.task = task
        self.pace = Pace()
        self.newest: ModelSnapshot | None = None
        self.words: Mapping[str, tuple[str, ...]] = {}
        self.behind = False
        self.wanted = False
        self._time_of = time_of
        self._key: tuple[Any, ...] | None = None
        self._costs: deque[float] = deque([0.0], maxlen=4)
        self._copied_at = 0.0

    def publish(self, state: State, *, idle: bool = False) -> None:
        """Publish a copy of the model that predicts, if it has changed.

        Args:
            idle: whether there is nothing else to do, so that a copy may take its time.
        """
        by = state.active
        key = (by.number, by.position, by.rows, state.counters.cuts, state.visible is None, len(state.vocabulary.sizes))
        if key == self._key:
            return
        now = time.monotonic()
        new_version = self._key is None or self._key[0] != by.number
        cost = min(self._costs)  # of the last few: a busy machine makes any of them look expensive
        costly = cost > COSTLY_SECONDS and now - self._copied_at < 10 * cost
        if costly and not (idle or self.wanted or new_version):
            self.behind = True
            return
        self.words = {column: tuple(found) for column, found in state.vocabulary.words.items()}
        self.newest = self.freeze(by)
        self._key, self.behind, self.wanted = key, False, False
        self._copied_at = time.monotonic()
        self._costs.append(self._copied_at - now)

    def freeze(self, by: ModelVersion, learner: Any = None) -> ModelSnapshot:
        """A snapshot of a model; the learner is copied where none is given."""
        own = copy.deepcopy(by.learner) if learner is None else learner
        vocabulary = Vocabulary({column: list(words) for column, words in by.words.items()}, dict(by.sizes))
        kept = replace(by, learner=own, vocabulary=vocabulary)
        position = str(by.position) if by.position else None
        info = VersionInfo(self.task.name, by.number, position, self._time_of(by.number))
        return ModelSnapshot(self.task, kept, info, self.pace)
