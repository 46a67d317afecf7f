"""Answers: predictions beside the rows they answer, in blocks whose shape does not depend on traffic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch
from headrace.errors import BadRows, LearnError
from headrace.events import Ints
from headrace.learn.base import Classifier
from headrace.learn.features import Matrix, depend_on_the_log, matrix, resolved
from headrace.state import Answering
from headrace.task import PREDICTION_COLUMNS, ModelTask, StreamPlan

BLOCK_ROWS = 64
Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


class Query:
    """Rows of one batch that are to be answered, as the timeline passes them.

    Attributes:
        predictions: for each run of rows, of which ``answered`` says the length and the model.
        valid, reasons: which rows can be answered, and why the others cannot.
    """

    def __init__(
        self, batch: Batch, order: Ints, task: ModelTask, *, proba: bool = False, stream: StreamPlan | None = None
    ) -> None:
        self.batch = batch
        self.stream = stream
        self.order = order
        self.task = task
        self.proba = proba
        self.done = 0
        self.predictions: list[pa.Array] = []
        self.probabilities: list[pa.Array] = []
        self.answered: list[tuple[int, Answering, bool]] = []
        # What a model that is tried out answers beside, and its version; None where there is none.
        self.shadows: list[pa.Array] = []
        self.shadow_versions: list[int | None] = []
        self.valid = np.ones(batch.num_rows, np.bool_)
        self.reasons: dict[int, str] = {}
        self._varies = depend_on_the_log(task.features)
        self._matrix: Matrix | None = None

    def answer_until(self, place: int, by: Answering, shadow: Answering | None = None) -> None:
        """Answer the rows before a place with this model; ``shadow`` answers beside it."""
        end = int(np.searchsorted(self.order, place, "left"))
        if end == self.done:
            return
        X, valid = self._features(end, by)
        learner = by.learner
        ready = learner.ready
        answers = ready and bool(valid.any())
        self.predictions.append(self._predict(learner.predict, X, valid) if answers else pa.nulls(end - self.done))
        self._answer_beside(end, shadow)
        if self.proba:
            self.probabilities.append(self._chances(cast(Classifier, learner), X, valid, answers))
        self.answered.append((end - self.done, by, ready))
        self.done = end

    def _answer_beside(self, end: int, shadow: Answering | None) -> None:
        self.shadow_versions.append(None if shadow is None else shadow.version)
        if shadow is None:
            self.shadows.append(pa.nulls(end - self.done))
            return
        X, valid = self._features(end, shadow)
        answers = self._predict(shadow.learner.predict, X, valid) if valid.any() else pa.nulls(end - self.done)
        self.shadows.append(answers)

    def _features(self, end: int, by: Answering) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """The matrix of the next rows, and which of them can be answered."""
        task = self.task
        if self._varies:
            # What this model knew when it had learned: words that came later have no column.
            features = resolved(task.features, by.words, _sizes(task, by), refuse=False)
            found = matrix(self.batch.slice(self.done, end - self.done), features, task.target, missing=task.missing)
            self.valid[self.done : end] = found.valid
            self.reasons.update({self.done + row: reason for row, reason in found.reasons.items()})
            return found.X, found.valid
        if self._matrix is None:
            self._matrix = matrix(self.batch, task.features, task.target, missing=task.missing)
            self.valid, self.reasons = self._matrix.valid, self._matrix.reasons
        return self._matrix.X[self.done : end], self.valid[self.done : end]

    def _chances(
        self, learner: Classifier, X: npt.NDArray[Any], valid: npt.NDArray[np.bool_], answers: bool
    ) -> pa.Array:
        if answers:
            return self._predict(learner.predict_proba, X, valid)
        return pa.nulls(len(X), pa.list_(pa.float64(), len(learner.classes)))

    def _predict(self, predict: Predict, X: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> pa.Array:
        try:
            values = predict_in_blocks(predict, X if valid.all() else X[valid])
        except BadRows as error:
            raise LearnError(f"the model «{self.task.name}» refuses a row it was to answer: {error}") from error
        found = pa.array(values) if values.ndim == 1 else _lists(values)
        if valid.all():
            return found
        where = np.zeros(len(valid), np.int64)
        where[valid] = np.arange(int(valid.sum()))
        return found.take(pa.array(where, mask=~valid))

    def forget(self, place: int) -> None:
        """Take back the answers to rows from a place on: another model answers them."""
        end = int(np.searchsorted(self.order, place, "left"))
        while self.done > end:
            count, by, ready = self.answered.pop()
            kept = max(0, count - (self.done - end))
            columns = [self.predictions, self.shadows, *([self.probabilities] if self.proba else [])]
            version = self.shadow_versions.pop()
            for column in columns:
                last = column.pop()
                if kept:
                    column.append(last.slice(0, kept))
            if kept:
                self.answered.append((kept, by, ready))
                self.shadow_versions.append(version)
            self.done -= count - kept

    def output(self) -> Batch:
        """The input rows that were answered so far, with their answers beside them."""
        n = self.done
        counts = [count for count, _, _ in self.answered]
        versions = [by.version for _, by, _ in self.answered]
        positions = [str(by.position) if by.position else None for _, by, _ in self.answered]
        answers = {
            "prediction": self.column(),
            "status": self._status(counts),
            "model": pa.repeat(self.task.name, n),
            "model_version": _spread(versions, counts, pa.int64()),
            "model_position": _spread(positions, counts, pa.string()),
        }
        if self.proba:
            width = len(cast(Classifier, self.task.learner).classes)
            none = pa.nulls(0, pa.list_(pa.float64(), width))
            answers["probability"] = pa.concat_arrays(self.probabilities or [none])
        if any(version is not None for version in self.shadow_versions):
            answers["shadow_prediction"] = self._joined(self.shadows)
            answers["shadow_version"] = _spread(self.shadow_versions, counts, pa.int64())
        return _beside(self.batch if n == self.batch.num_rows else self.batch.slice(0, n), answers)

    def column(self) -> pa.Array:
        """The predictions of all rows; null where there is none."""
        return self._joined(self.predictions)

    def _joined(self, parts: list[pa.Array]) -> pa.Array:
        kinds = [one.type for one in parts if not pa.types.is_null(one.type)]
        kind = kinds[0] if kinds else getattr(self.task.learner, "prediction_type", pa.float64())
        found = [one if one.type.equals(kind) else one.cast(kind) for one in parts]
        return found[0] if len(found) == 1 else pa.concat_arrays(found or [pa.nulls(0, kind)])

    def _status(self, counts: list[int]) -> pa.Array:
        status = _spread(["ok" if ready else "not_ready" for _, _, ready in self.answered], counts, pa.string())
        valid = self.valid[: self.done]
        return status if valid.all() else pc.if_else(pa.array(valid), status, "invalid")


class Given(Query):
    """Rows that were answered already, elsewhere, by a model of this task."""

    def answer_until(self, place: int, by: Answering, shadow: Answering | None = None) -> None:
        """They keep the answers that they have."""
        self.done = max(self.done, int(np.searchsorted(self.order, place, "left")))

    def forget(self, place: int) -> None:
        """They are taken later."""
        self.done = min(self.done, int(np.searchsorted(self.order, place, "left")))

    def output(self) -> Batch:
        """The rows so far."""
        records = self.batch.records
        own = [name for name in ("__order",) if name in records.schema.names]
        return Batch((records.drop_columns(own) if own else records).slice(0, self.done))


def _sizes(task: ModelTask, by: Answering) -> Mapping[str, int]:
    """Lengths of vectors; a model that was trained before the log began says its only one's."""
    width = getattr(by.learner, "width", None)
    if by.sizes or width is None or len(task.feature_names) != 1:
        return by.sizes
    return {task.feature_names[0]: width}


def _spread(values: list[Any], counts: list[int], kind: pa.DataType) -> pa.Array:
    """One value for each run of rows; usually there is one run."""
    if not counts:
        return pa.nulls(0, kind)
    if len(counts) == 1:
        return pa.repeat(pa.scalar(values[0], kind), counts[0])
    return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(counts)), counts)))


def _beside(batch: Batch, answers: Mapping[str, pa.Array]) -> Batch:
    """Input columns, then answers; an input column with an answer's name gets ``_input``."""
    records = batch.records
    if "__order" in records.schema.names:
        records = records.drop_columns(["__order"])
    taken = {*PREDICTION_COLUMNS, *answers}
    if any(name in taken for name in records.schema.names):
        names = [f"{name}_input" if name in taken else name for name in records.schema.names]
        fields = [records.schema.field(i).with_name(name) for i, name in enumerate(names)]
        schema = pa.schema(fields, metadata=records.schema.metadata)
        records = pa.RecordBatch.from_arrays(records.columns, schema=schema)
    return Batch(records).with_columns(answers.items())


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    """Rows of a matrix as lists of one length."""
    flat = pa.array(np.ascontiguousarray(values, np.float64).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def predict_in_blocks(predict: Predict, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Predictions in fixed padded blocks, so that a row's bits do not depend on its neighbours.

    BLAS chooses its kernels by shape: the same row alone and among 1,000 differs in its last bits. Blocks of one
    shape, padded with the first row, take the shape out of it. A learner that computes each row by itself, whatever the
    others are (``rowwise``), needs none.
    """
    n = len(X)
    if n and getattr(getattr(predict, "__self__", None), "rowwise", False):
        return np.asarray(predict(np.ascontiguousarray(X)))
    results = []
    for start in range(0, n, BLOCK_ROWS):
        block = X[start : start + BLOCK_ROWS]
        if len(block) < BLOCK_ROWS:
            padded = np.empty((BLOCK_ROWS, X.shape[1]), X.dtype)
            padded[: len(block)] = block
            padded[len(block) :] = block[0]
            results.append(np.asarray(predict(padded))[: len(block)])
        else:
            results.append(np.asarray(predict(np.ascontiguousarray(block))))
    return np.concatenate(results) if results else np.empty(0)
