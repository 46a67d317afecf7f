"""Predictions beside the rows that they are for, in blocks whose shape does not depend on traffic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Array, Ints, Mask
from headrace.batch import OPS, Batch, inserted, is_meta, told_apart
from headrace.errors import LearnError
from headrace.foreseen import Foreseen, Method, Predicted, joined, row_hashes
from headrace.learn.base import offers_probabilities, pinned, probabilities_type, traits_of, width_of
from headrace.learn.features import Matrix, depend_on_the_log, matrix, resolved
from headrace.learn.handover import concerns_the_whole, predictions_by_row
from headrace.plain_values import at_rows
from headrace.plan.task import PREDICTION_COLUMNS, SHADOW_COLUMNS, ModelTask, StreamPlan
from headrace.step.ahead import Memo, Predictors, identity_of
from headrace.step.model_version import ModelVersion
from headrace.transform.expressions import operate

BLOCK_ROWS = 64
Predict = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
_Column = tuple[pa.Array, dict[int, str]]  # predictions of all rows of a run, and why some have none


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows that one state of a model predicts, and what waits for their predictions."""

    start: int
    found: Callable[[], _Column]
    beside: Callable[[], _Column]
    chances: Callable[[], _Column] | None


class PredictionBatch:
    """Rows of one batch that are to be predicted, as the timeline passes them.

    Args:
        made: their features, where these are made already.
        names: what columns with names of ours were called before; changed in place.
        predictors: predict where that is worth it, while the timeline goes on.
        memos: predictions that were made ahead.

    Attributes:
        runs: for each run of rows that were passed, its length, its model, and whether that could predict.
    """

    def __init__(
        self,
        batch: Batch,
        order: Ints,
        task: ModelTask,
        *,
        proba: bool = False,
        stream: StreamPlan | None = None,
        made: Matrix | None = None,
        names: dict[str, str] | None = None,
        predictors: Predictors | None = None,
        memos: Sequence[Memo] = (),
    ) -> None:
        self.batch = batch
        self.names = {} if names is None else names
        self.stream = stream
        self.order = order
        self.task = task
        self.proba = proba
        self.done = 0
        self._predictors = predictors
        self._memos = memos
        # A challenger's predictions are other ones: what is stale for it is not for the model.
        self._memos_beside = [Memo(memo.foreseen, memo.places) for memo in memos]
        self._open: list[_Run] = []
        self._predictions: list[pa.Array] = []
        self._probabilities: list[pa.Array] = []
        self.runs: list[tuple[int, ModelVersion, bool]] = []
        # What a challenger predicts beside, and its version; None where there is none.
        self._challenger_predictions: list[pa.Array] = []
        self._challenger_versions: list[int | None] = []
        self._valid = np.ones(batch.num_rows, np.bool_)
        self._reasons: dict[int, str] = {}
        # Rows whose features are sound and that the model has no prediction for.
        self._failed: dict[int, str] = {}
        self._varies = depend_on_the_log(task.features)
        self._matrix = made
        if made is not None:
            self._valid, self._reasons = made.valid, made.reasons

    @property
    def predictions(self) -> list[pa.Array]:
        """Return the predictions of each run; null where there is none."""
        self._settle()
        return self._predictions

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Return which rows can be predicted."""
        self._settle()
        return self._valid

    @property
    def reasons(self) -> dict[int, str]:
        """Return why the other rows cannot be predicted."""
        self._settle()
        return self._reasons

    def predict_until(self, place: int, by: ModelVersion, challenger: ModelVersion | None = None) -> None:
        """Predict the rows before a place with this model; ``challenger`` predicts beside it."""
        end = int(np.searchsorted(self.order, place, "left"))
        if end == self.done:
            return
        X, valid = self._features(end, by)
        ready = by.learner.ready
        predicts = ready and not by.diverged and bool(valid.any())
        last = end == len(self.order) and challenger is None and not self.proba
        found = self._begun(by, "predict", X, valid, last=last) if predicts else _nothing(end - self.done)
        beside = self._beside(end, challenger)
        chances = None
        if self.proba:
            kind = probabilities_type(by.learner)
            none = _nothing(end - self.done, kind)
            chances = self._begun(by, "predict_proba", X, valid, kind.list_size) if predicts else none
        self._open.append(_Run(self.done, found, beside, chances))
        self._challenger_versions.append(None if challenger is None else challenger.number)
        self.runs.append((end - self.done, by, ready))
        self.done = end

    def _begun(
        self,
        by: ModelVersion,
        method: Method,
        X: Array,
        valid: Mask,
        width: int = 0,
        *,
        beside: bool = False,
        last: bool = True,
    ) -> Callable[[], _Column]:
        """Begin to predict the next rows; predict them where nobody else does."""
        asked = X if valid.all() else X[valid]
        memos = self._memos_beside if beside else self._memos
        known = self._known(memos, by, method, asked, valid, width) if memos else []
        if not known:
            begun = self._asked(by, method, asked, width, last)
            return lambda: _column(begun(), valid)
        missing = np.ones(len(asked), np.bool_)
        for rows, _ in known:
            missing[rows] = False
        rest = np.flatnonzero(missing)
        if not len(rest):
            return lambda: _column(joined(known, len(asked)), valid)
        begun = self._asked(by, method, np.ascontiguousarray(asked[rest]), width, last)
        return lambda: _column(joined([*known, (rest, begun())], len(asked)), valid)

    def _asked(self, by: ModelVersion, method: Method, X: Array, width: int, last: bool) -> Callable[[], Predicted]:
        """Let predictors predict, or do it now."""
        if self._predictors is not None:
            return self._predictors.predict(self.task, by, method, X, width=width, last=last)
        found = predict_rows(getattr(by.learner, method), X, width=width)
        return lambda: found

    def _known(
        self, memos: Sequence[Memo], by: ModelVersion, method: Method, X: Array, valid: Mask, width: int
    ) -> list[tuple[Ints, Predicted]]:
        """Return which of some rows were predicted ahead, each once, with their predictions."""
        places = self.order[self.done : self.done + len(valid)][valid]
        hashes = functools.cache(lambda: row_hashes(X))
        left = np.ones(len(X), np.bool_)
        found: list[tuple[Ints, Predicted]] = []
        for memo in memos:
            taken = memo.take(by, method, places, hashes, width)
            if taken is not None and left[taken[0]].all():
                left[taken[0]] = False
                found.append(taken)
        return found

    def _beside(self, end: int, challenger: ModelVersion | None) -> Callable[[], _Column]:
        if challenger is None:
            return _nothing(end - self.done)
        X, valid = self._features(end, challenger)
        if not valid.any():
            return _nothing(end - self.done)
        return self._begun(challenger, "predict", X, valid, beside=True, last=end == len(self.order))

    def _settle(self) -> None:
        """Wait for the predictions of all runs."""
        for run in self._open:
            found, failed = run.found()
            self._challenger_predictions.append(run.beside()[0])
            if run.chances is not None:
                chances, more = run.chances()
                kind = probabilities_type(self.task.learner)
                self._probabilities.append(pa.nulls(len(chances), kind) if pa.types.is_null(chances.type) else chances)
                found, failed = _without(found, more), {**more, **failed}
            self._predictions.append(found)
            for row, reason in failed.items():
                self._failed[run.start + row] = self._reasons[run.start + row] = reason
                self._valid[run.start + row] = False
        self._open.clear()

    def _features(self, end: int, by: ModelVersion) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return the matrix of the next rows, and which of them can be predicted."""
        task = self.task
        if self._varies:
            # What this model knew when it had learned: words that came later have no column.
            features = resolved(task.features, by.words, _sizes(task, by), refuse=False)
            found = matrix(self.batch.slice(self.done, end - self.done), features, task.target, missing=task.missing)
            self._valid[self.done : end] = found.valid
            self._reasons.update({self.done + row: reason for row, reason in found.reasons.items()})
            return found.X, found.valid
        if self._matrix is None:
            self._matrix = matrix(self.batch, task.features, task.target, missing=task.missing)
            self._valid, self._reasons = self._matrix.valid, self._matrix.reasons
        return self._matrix.X[self.done : end], self._valid[self.done : end]

    def forget(self, place: int) -> None:
        """Take back the predictions of rows from a place on: another model predicts them."""
        self._settle()
        end = int(np.searchsorted(self.order, place, "left"))
        while self.done > end:
            count, by, ready = self.runs.pop()
            kept = max(0, count - (self.done - end))
            columns = [self._predictions, self._challenger_predictions, *([self._probabilities] if self.proba else [])]
            version = self._challenger_versions.pop()
            for column in columns:
                last = column.pop()
                if kept:
                    column.append(last.slice(0, kept))
            if kept:
                self.runs.append((kept, by, ready))
                self._challenger_versions.append(version)
            self.done -= count - kept
        for row in [row for row in self._failed if row >= self.done]:
            del self._failed[row], self._reasons[row]
            self._valid[row] = True

    def output(self) -> Batch:
        """Return the input rows that were predicted so far, with their predictions beside them."""
        self._settle()
        n = self.done
        counts = [count for count, _, _ in self.runs]
        versions = [by.number for _, by, _ in self.runs]
        positions = [str(by.position) if by.position else None for _, by, _ in self.runs]
        columns = {
            "prediction": self.column(),
            "status": self._status(counts),
            "model": pa.repeat(self.task.name, n),
            "model_version": _spread(versions, counts, pa.int64()),
            "model_position": _spread(positions, counts, pa.string()),
        }
        if self.proba:
            none = pa.nulls(0, probabilities_type(self.task.learner))
            columns["probability"] = pa.concat_arrays(self._probabilities or [none])
        if any(version is not None for version in self._challenger_versions):
            columns["shadow_prediction"] = self._joined(self._challenger_predictions)
            columns["shadow_version"] = _spread(self._challenger_versions, counts, pa.int64())
        reserved = (*PREDICTION_COLUMNS, *(SHADOW_COLUMNS if self.task.retrain and self.task.retrain.shadow else ()))
        batch = self.batch if n == self.batch.num_rows else self.batch.slice(0, n)
        return _with_predictions(batch, columns, reserved, self.names)

    def column(self) -> pa.Array:
        """Return the predictions of all rows; null where there is none."""
        return self._joined(self.predictions)

    def _joined(self, parts: list[pa.Array]) -> pa.Array:
        kinds = [part.type for part in parts if not pa.types.is_null(part.type)]
        kind = kinds[0] if kinds else traits_of(self.task.learner).prediction_type or pa.float64()
        found = [part if part.type.equals(kind) else part.cast(kind) for part in parts]
        return found[0] if len(found) == 1 else pa.concat_arrays(found or [pa.nulls(0, kind)])

    def _status(self, counts: list[int]) -> pa.Array:
        states = ["diverged" if by.diverged else "ok" if ready else "not_ready" for _, by, ready in self.runs]
        status = _spread(states, counts, pa.string())
        valid = self._valid[: self.done]
        return status if valid.all() else pc.if_else(pa.array(valid), status, "invalid")


def foresee(
    task: ModelTask, stream: StreamPlan, by: ModelVersion, batch: Batch, *, proba: bool = False
) -> list[Foreseen]:
    """Predict rows of a topic ahead of the step, as it would do it by this version.

    Args:
        stream: of the plan that predicts them: its operations are done here too.
        batch: rows as their source gives them; nothing of it is changed.
        proba: whether probabilities are wanted too.
    """
    if not by.learner.ready or by.diverged:
        return []
    changes = inserted(batch) | (batch.op == OPS["u"])
    number = pa.array(np.flatnonzero(changes))
    batch = batch if changes.all() else batch.filter(changes)
    good, _ = operate(Batch(batch.records.append_column("__order", number)), stream.operations)
    return [found for rows in good if rows.num_rows and (found := _foreseen(task, by, rows, proba)) is not None]


def _foreseen(task: ModelTask, by: ModelVersion, batch: Batch, proba: bool) -> Foreseen | None:
    features = task.features
    if depend_on_the_log(features):
        features = resolved(features, by.words, _sizes(task, by), refuse=False)
    made = matrix(batch, features, task.target, missing=task.missing)
    if not made.valid.any():
        return None
    X = made.X if made.valid.all() else np.ascontiguousarray(made.X[made.valid])
    with pinned(by.learner), np.errstate(all="ignore"):
        found: dict[Method, Predicted] = {"predict": predict_rows(by.learner.predict, X)}
        if proba and offers_probabilities(by.learner):
            width = probabilities_type(by.learner).list_size
            found["predict_proba"] = predict_rows(by.learner.predict_proba, X, width=width)
    rows = np.asarray(batch.column("__order"))[made.valid]
    return Foreseen(identity_of(by), rows, row_hashes(X), found)


class ServedPredictions(PredictionBatch):
    """Rows that were predicted already, elsewhere, by a model of this task."""

    def predict_until(self, place: int, by: ModelVersion, challenger: ModelVersion | None = None) -> None:
        """Pass rows: they keep the predictions that they have."""
        self.done = max(self.done, int(np.searchsorted(self.order, place, "left")))

    def forget(self, place: int) -> None:
        """Take back rows: they are passed later."""
        self.done = min(self.done, int(np.searchsorted(self.order, place, "left")))

    def output(self) -> Batch:
        """Return the rows so far."""
        return self.batch.stored.slice(0, self.done)


def _sizes(task: ModelTask, by: ModelVersion) -> Mapping[str, int]:
    """Lengths of vectors; a model that was trained before the log began says its only one's."""
    if not by.learner.ready:
        # A length that rows to be learned have shown is known when they are, however they came.
        return {}
    width = width_of(by.learner)
    if by.sizes or width is None or len(task.feature_names) != 1:
        return by.sizes
    return {task.feature_names[0]: width}


def _spread(values: list[Any], counts: list[int], kind: pa.DataType) -> pa.Array:
    """Return one value for each run of rows; usually there is one run."""
    if not counts:
        return pa.nulls(0, kind)
    if len(counts) == 1:
        return pa.repeat(pa.scalar(values[0], kind), counts[0])
    return pa.array(values, kind).take(pa.array(np.repeat(np.arange(len(counts)), counts)))


def _with_predictions(
    batch: Batch, columns: Mapping[str, pa.Array], reserved: Collection[str], given: dict[str, str]
) -> Batch:
    """Return input columns, then predictions; an input column with a name of theirs gets ``_input`` (`told_apart`)."""
    records = batch.stored.records
    taken = {*reserved, *columns}
    if given or any(name in taken for name in records.schema.names):
        own = [name for name in records.schema.names if not is_meta(name)]
        renamed = dict(zip(own, told_apart(own, taken, given=given), strict=True))
        records = batch.stored.renamed(renamed).records
    return Batch(records).with_columns(columns.items())


def _nothing(rows: int, kind: pa.DataType | None = None) -> Callable[[], _Column]:
    """Return what stands for the predictions of rows where no model predicts."""
    return lambda: (pa.nulls(rows) if kind is None else pa.nulls(rows, kind), {})


def _column(found: Predicted, valid: npt.NDArray[np.bool_]) -> _Column:
    """Return a prediction for each valid row, else null; and rows for which the model has none, with the reasons.

    Args:
        found: what `predict_rows` gave the valid rows.
    """
    values, failed = found
    if valid.all() and not failed and values is not None and values.ndim == 1 and values.dtype.kind in "fiub":
        return pa.array(values), failed
    rows = np.flatnonzero(valid)
    failed = {int(rows[row]): reason for row, reason in failed.items()}
    if values is None:
        return pa.nulls(len(valid)), failed
    try:
        column = pa.array(values) if values.ndim == 1 else _lists(values)
    except (pa.ArrowException, TypeError, ValueError) as error:
        return pa.nulls(len(valid)), dict.fromkeys(rows.tolist(), f"the model's answers are no column: {error}")
    if column.null_count:
        nothing = np.flatnonzero(np.asarray(column.is_null()))
        failed = dict.fromkeys(rows[nothing].tolist(), "the model has no answer") | failed
    if not valid.all():
        column = at_rows(column, valid)
    return _without(column, failed), failed


def _without(found: pa.Array, failed: Mapping[int, str]) -> pa.Array:
    """Return predictions, null where one failed."""
    if not failed:
        return found
    where = np.arange(len(found))
    mask = np.zeros(len(found), np.bool_)
    mask[list(failed)] = True
    return found.take(pa.array(where, mask=mask))


def predict_rows(predict: Predict, X: npt.NDArray[Any], *, width: int = 0) -> Predicted:
    """Predict rows in fixed padded blocks; return also why rows have no prediction, or one that is no finite number.

    Whatever a model raises, it raises for some rows: these are looked for by halves. Whether a row has a prediction
    depends on no other row.

    Args:
        width: of a prediction, where it is a list.

    Returns:
        Predictions of shape (n,) or (n, k), anything where there is none; None where there is not one at all.
    """

    def ask(part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        found = predict_in_blocks(predict, part)
        if len(found) != len(part) or (width and found.shape[1:] != (width,)):
            raise LearnError(f"the model gave answers of shape {found.shape} to {len(part)} rows")
        return found

    failed: dict[int, str] = {}
    try:
        values: npt.NDArray[Any] | None = ask(X)
    except Exception as error:
        if concerns_the_whole(error):
            raise
        values, failed = _put_together(*predictions_by_row(ask, X, BLOCK_ROWS))
    if values is not None and values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        each = finite if values.ndim == 1 else finite.all(axis=tuple(range(1, values.ndim)))
        for row in np.flatnonzero(~each).tolist():
            shown = values[row] if values.ndim == 1 else "a list with NaN or infinity"
            failed.setdefault(row, f"the model's answer is {shown}, no finite number")
    return values, failed


def _put_together(
    runs: Sequence[npt.NDArray[Any] | None], failed: dict[int, str]
) -> tuple[npt.NDArray[Any] | None, dict[int, str]]:
    """Runs of predictions as one array; None stands for one row, which has none."""
    good = next((run for run in runs if run is not None), None)
    if good is None:
        return None, failed
    empty = np.zeros((1, *good.shape[1:]), good.dtype)
    return np.concatenate([empty if run is None else run for run in runs]), failed


def _lists(values: npt.NDArray[Any]) -> pa.Array:
    """Return rows of a matrix as lists of one length."""
    flat = pa.array(np.ascontiguousarray(values, np.float64).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def predict_in_blocks(predict: Predict, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Predict in fixed padded blocks, so that a row's bits do not depend on its neighbours.

    BLAS chooses its kernels by shape: the same row alone and among 1,000 differs in its last bits. Blocks of one
    shape, padded with the first row, take the shape out of it. A learner that computes each row by itself, whatever the
    others are (``rowwise``), needs none.
    """
    n = len(X)
    learner = getattr(predict, "__self__", None)  # of a learner's own method; a function has none
    if n and learner is not None and traits_of(learner).rowwise:
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
