"""A model's predictions beside the truth: rows of the topic ``<model>-metrics``.

A line stands at the place of a row: it holds what was scored up to there, and is written at the end of a transaction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import OPS, Batch
from headrace.grade.scores import LINE_TYPES, Scores
from headrace.learn.base import scored_as, traits_of
from headrace.learn.features import Targets, matrix, resolved, targets_of
from headrace.plain_values import values
from headrace.plan.task import EvaluatePlan, ModelTask
from headrace.step.events import Merged, order_of
from headrace.step.model_version import ModelVersion
from headrace.step.predictions import PredictionBatch, predict_rows
from headrace.step.state import State

LARGEST_GAP = 1000
_ANSWER = "__answer"


LinePlace = tuple[int, int, int]
"""LSN, index and time of a row."""
Line = tuple[int, LinePlace, dict[str, Any]]
"""A row's place among those of the event and in the log, and the line that stands there."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows of one batch of a stream that a model is scored on.

    Attributes:
        name: who waits for their labels (`headrace.step.labels.named`).
        predictions: of rows of it; ``late``: of those that may have had none before their label came.
    """

    plan: EvaluatePlan
    name: str
    batch: Batch
    predictions: PredictionBatch | None
    late: PredictionBatch | None

    @property
    def batches(self) -> tuple[PredictionBatch, ...]:
        return tuple(batch for batch in (self.predictions, self.late) if batch is not None)


Refuse = Callable[[str, Batch, Sequence[str], str], None]
"""Takes rows that are refused: their topic, the rows, the reasons, the stage."""


def scored(
    task: ModelTask, state: State, what: Scored, merged: Merged, refuse: Refuse, *, open_end: bool
) -> list[Line]:
    """Compare predictions with the truth, each row's once, when its first label is there; the lines that are due.

    Args:
        refuse: takes rows whose label no prediction can be compared with, where no learning refuses them too.
        open_end: whether the last row's transaction may go on, so that no line may stand there yet.
    """
    plan = what.plan
    scores = state.scores[plan.spec.name]
    rows, truth, by = _scorable(what, task, state, refuse)
    if not rows.num_rows:
        return []
    answers = rows.column(_ANSWER).to_numpy(zero_copy_only=False)
    truth, answers = scores.coded(truth, answers)
    order = order_of(rows)
    transactions = merged.transactions[order]
    ends = np.flatnonzero(np.append(transactions[1:] != transactions[:-1], not open_end)) + 1
    lines: list[Line] = []
    done, before = 0, scores.rows
    while done < len(order):
        due = scores.told_at + (plan.every or _gap(scores.told_at)) - before
        following = ends[np.searchsorted(ends, max(due, done + 1)) :]
        end = int(following[0]) if len(following) else len(order)
        scores.add_coded(truth[done:end], answers[done:end])
        if len(following):
            scores.told_at = scores.rows
            at = int(order[end - 1])
            place = (int(merged.lsn[at]), int(merged.index[at]), int(merged.ts_us[at]))
            lines.append((at, place, _line(task, scores, by[at])))
        done = end
    return lines


def _scorable(
    what: Scored, task: ModelTask, state: State, refuse: Refuse
) -> tuple[Batch, npt.NDArray[Any], dict[int, ModelVersion]]:
    """Return predicted rows whose first label is here, in order; their labels; which version predicts there.

    The prediction is the one that was made when the row came, else the one at its label.
    """
    batch, target = what.batch, str(task.target)
    order = order_of(batch)
    answer, asks = _predicted(what.predictions, order)
    meta = [name for name in batch.schema.names if name.startswith("__")]
    beside = Batch(batch.records.select([target, *meta]).append_column(_ANSWER, answer))
    waiting = state.memory.waiting(what.name, partial=bool(what.plan.stream and what.plan.stream.operations))
    rows = waiting.examples(beside, target, [_ANSWER], nulls=True, absent={_ANSWER: ~asks})
    if not rows.num_rows:
        return rows, np.empty(0), {}
    lacks = np.asarray(rows.column(_ANSWER).is_null()) & (rows.op == OPS["u"])
    if lacks.any():
        later, _ = _predicted(what.late, order_of(rows))
        filled = pc.if_else(pa.array(lacks), *_alike(later, rows.column(_ANSWER)))
        index = rows.schema.get_field_index(_ANSWER)
        rows = Batch(rows.records.set_column(index, _ANSWER, filled))
    found = truths(rows, task)
    _refuse_labels(what, task, order_of(rows), found, refuse)
    keep = found.valid & np.asarray(rows.column(_ANSWER).is_valid())
    rows, truth = rows.filter(keep), found.y[keep]
    by: dict[int, ModelVersion] = {}
    for predictions in what.batches:
        counts = [count for count, _, _ in predictions.runs]
        who = [version for _, version, _ in predictions.runs]
        numbers = np.repeat(np.arange(len(counts)), counts).tolist()
        by |= {place: who[number] for place, number in zip(predictions.order.tolist(), numbers, strict=True)}
    return rows, truth, by


def _predicted(predictions: PredictionBatch | None, order: Ints) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """Return the valid predictions for rows at some places, null where there is none, and which were asked for."""
    if predictions is None or not len(predictions.order):
        return pa.nulls(len(order)), np.zeros(len(order), np.bool_)
    asks = np.isin(order, predictions.order)
    where = np.searchsorted(predictions.order, order)
    where[~asks] = 0
    good = asks & predictions.valid[where]
    column = predictions.column()
    if column.null_count == len(column):
        return pa.nulls(len(order)), asks
    return column.take(pa.array(where, mask=~good)), asks


def _alike(array: pa.Array, other: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return two arrays of one type."""
    if pa.types.is_null(array.type):
        return array.cast(other.type), other
    return array, other if other.type.equals(array.type) else other.cast(array.type)


def _gap(told_at: int) -> int:
    """Return after how many rows a line is due: at once up to 100 rows, then each hundredth more, at most 1,000."""
    return max(1, min(told_at // 100, LARGEST_GAP))


def _refuse_labels(what: Scored, task: ModelTask, order: Ints, found: Targets, refuse: Refuse) -> None:
    """Refuse labels that no prediction can be compared with, unless learning refuses them."""
    assert what.plan.stream is not None
    topic = what.plan.stream.topic
    labelled = dict(zip(order_of(what.batch).tolist(), range(what.batch.num_rows), strict=True))
    bad = {labelled[int(order[row])]: reason for row, reason in found.reasons.items() if int(order[row]) in labelled}
    wrong = [row for row in sorted(bad) if what.batch.column(str(task.target))[row].is_valid]
    if wrong and all(stream.topic != topic for stream in task.learn):
        refuse(topic, what.batch.take(np.array(wrong, np.int64)), [bad[row] for row in wrong], "evaluate")


def truths(batch: Batch, task: ModelTask) -> Targets:
    """Return the labels of a batch in the form of its model's predictions, and which can be compared with one."""
    name = str(task.target)
    labelled = np.asarray(batch.column(name).is_valid())
    if scored_as(task.learner) == "classification" and traits_of(task.learner).classes is None:
        # Clusters: any labels can stand beside them.
        labels = np.empty(batch.num_rows, object)
        labels[:] = values(batch.column(name))
        return Targets(labels, labelled, {})
    return targets_of(batch, name, task.learner)


def held_out(task: ModelTask, state: State, plan: EvaluatePlan, at: int, place: LinePlace) -> list[Line]:
    """Score the model that learns, which need not be the one that predicts yet, on the fixed set, if a line is due."""
    scores = state.scores[plan.spec.name]
    learned = state.learned_rows
    by = state.current
    assert by is not None
    if not by.learner.ready or by.diverged or (plan.every and learned < scores.told_at + plan.every):
        return []
    X, truth = _fixed(task, plan, by)
    # Each line is about the whole set, not about more and more of it.
    fresh = Scores(plan.spec)
    answers, failed = predict_rows(by.learner.predict, X)
    if answers is None:
        return []
    keep = np.setdiff1d(np.arange(len(X)), list(failed))
    fresh.add(truth[keep], answers[keep])
    fresh.told_at = learned
    state.scores[plan.spec.name] = fresh
    return [(at, place, _line(task, fresh, by))]


def _fixed(task: ModelTask, plan: EvaluatePlan, by: ModelVersion) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    assert plan.rows is not None
    features = resolved(task.features, by.words, by.sizes, refuse=False)
    found = matrix(plan.rows, features, task.target, missing=task.missing)
    truth = truths(plan.rows, task)
    keep = found.valid & truth.valid
    return found.X[keep], truth.y[keep]


def _line(task: ModelTask, scores: Scores, by: ModelVersion) -> dict[str, Any]:
    line: dict[str, Any] = {
        "stream": scores.spec.name,
        "rows": scores.rows,
        "learned": by.rows,
        "window": len(scores.newest[0]),
        **scores.values(),
        "model": task.name,
        "model_version": by.number,
        "model_position": str(by.position) if by.position else None,
    }
    if scores.spec.kind == "classification":
        line |= {"labels": list(map(str, scores.labels)), "confusion": scores.confusion.reshape(-1).tolist()}
    return line


def in_order(lines: list[Line]) -> list[Batch]:
    """Return lines in the order of their places; those with the same columns that follow each other as one batch."""
    ordered = sorted(lines, key=lambda one: one[0])
    return [_batch(list(run)) for _, run in itertools.groupby(ordered, key=lambda one: tuple(one[2]))]


def _batch(lines: list[Line]) -> Batch:
    names = list(lines[0][2])
    columns = {name: pa.array([line[name] for *_, line in lines], LINE_TYPES.get(name, pa.float64())) for name in names}
    return batch_at(columns, [place for _, place, _ in lines])


def batch_at(columns: Mapping[str, pa.Array], places: Sequence[LinePlace]) -> Batch:
    """Return rows that stand at places of the log."""
    lsn, index, ts_us = zip(*places, strict=True) if places else ((), (), ())
    return Batch.of(
        columns, lsn=np.array(lsn, np.uint64), index=np.array(index, np.int64), ts_us=np.array(ts_us, np.int64)
    )


def reused(plan: EvaluatePlan, task: ModelTask) -> int | None:
    """Return the number of the declared predictions that serve too: the same rows are not predicted twice."""
    for number, predict in enumerate(task.predict):
        if plan.stream is not None and predict.stream == plan.stream:
            return number
    return None
