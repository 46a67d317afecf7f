"""Answers: predictions beside the rows they answer, in blocks whose shape does not depend on traffic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.batch import Batch
from headrace.errors import BadRows, LearnError
from headrace.events import Ints
from headrace.learn.base import Learner
from headrace.learn.features import Matrix
from headrace.plan import PREDICTION_COLUMNS, ModelTask
from headrace.position import Position

BLOCK_ROWS = 64


class Query:
    """Rows of one batch that are to be answered, as the timeline passes them."""

    def __init__(self, batch: Batch, order: Ints, features: Matrix, task: ModelTask) -> None:
        self.batch = batch
        self.order = order
        self.features = features
        self.task = task
        self.done = 0
        self.predictions: list[pa.Array] = []
        self.answered: list[tuple[int, Position | None, int, bool]] = []

    def answer_until(self, place: int, learner: Learner, position: Position | None, version: int) -> None:
        """Answer the rows before a place with this model."""
        end = int(np.searchsorted(self.order, place, "left"))
        if end == self.done:
            return
        valid = self.features.valid[self.done : end]
        X = self.features.X[self.done : end]
        ready = learner.ready
        if not ready or not valid.any():
            self.predictions.append(pa.nulls(end - self.done))
        else:
            self.predictions.append(self._predict(learner, X, valid))
        self.answered.append((end - self.done, position, version, ready))
        self.done = end

    def _predict(self, learner: Learner, X: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> pa.Array:
        try:
            values = predict_in_blocks(learner, X if valid.all() else X[valid])
        except BadRows as error:
            raise LearnError(f"the model «{self.task.name}» refuses a row it was to answer: {error}") from error
        if valid.all():
            return pa.array(values)
        where = np.zeros(len(valid), np.int64)
        where[valid] = np.arange(int(valid.sum()))
        return pa.array(values).take(pa.array(where, mask=~valid))

    def output(self) -> Batch:
        """The input rows with their answers beside them."""
        n = self.batch.num_rows
        kinds = [one.type for one in self.predictions if not pa.types.is_null(one.type)]
        kind = kinds[0] if kinds else getattr(self.task.learner, "prediction_type", pa.float64())
        prediction = pa.concat_arrays([one.cast(kind) for one in self.predictions] or [pa.nulls(0, kind)])
        status = np.full(n, 0)
        positions: list[str | None] = []
        versions = np.zeros(n, np.int64)
        at = 0
        counts = []
        for count, position, version, ready in self.answered:
            status[at : at + count] = 0 if ready else 1
            versions[at : at + count] = version
            positions.append(str(position) if position else None)
            counts.append(count)
            at += count
        status[~self.features.valid] = 2
        segment = np.repeat(np.arange(len(counts)), counts)
        answers = {
            "prediction": prediction,
            "status": pa.array(["ok", "not_ready", "invalid"]).take(pa.array(status)),
            "model": pa.repeat(pa.scalar(self.task.name), n),
            "model_version": pa.array(versions),
            "model_position": pa.array(positions, pa.string()).take(pa.array(segment)),
        }
        return _beside(self.batch, answers)


def _beside(batch: Batch, answers: Mapping[str, pa.Array]) -> Batch:
    """Input columns, then answers; an input column with an answer's name gets ``_input``."""
    records = batch.records
    if "__order" in records.schema.names:
        records = records.drop_columns(["__order"])
    if any(name in PREDICTION_COLUMNS for name in records.schema.names):
        names = [f"{name}_input" if name in PREDICTION_COLUMNS else name for name in records.schema.names]
        fields = [records.schema.field(i).with_name(name) for i, name in enumerate(names)]
        schema = pa.schema(fields, metadata=records.schema.metadata)
        records = pa.RecordBatch.from_arrays(records.columns, schema=schema)
    return Batch(records).with_columns(answers.items())


def predict_in_blocks(learner: Learner, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Predictions in fixed padded blocks, so that a row's bits do not depend on its neighbours.

    BLAS chooses its kernels by shape: the same row alone and among 1,000 differs in its last bits. Blocks of one
    shape, padded with the first row, take the shape out of it.
    """
    n = len(X)
    results = []
    for start in range(0, n, BLOCK_ROWS):
        block = X[start : start + BLOCK_ROWS]
        if len(block) < BLOCK_ROWS:
            padded = np.empty((BLOCK_ROWS, X.shape[1]), X.dtype)
            padded[: len(block)] = block
            padded[len(block) :] = block[0]
            results.append(np.asarray(learner.predict(padded))[: len(block)])
        else:
            results.append(np.asarray(learner.predict(np.ascontiguousarray(block))))
    return np.concatenate(results) if results else np.empty(0)
