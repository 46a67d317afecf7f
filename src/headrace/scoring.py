"""A model's answers beside the truth: rows of the topic ``<model>-metrics``.

A line stands at the place of a row: it holds what was scored up to there, and is written at the end of a transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.answers import Query, predict_in_blocks
from headrace.batch import OPS, Batch
from headrace.events import Ints, Merged
from headrace.grade.scores import Scores
from headrace.learn.features import matrix, resolved
from headrace.state import Answering, State
from headrace.task import EvaluatePlan, ModelTask

LARGEST_GAP = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line of the metrics topic stands."""

    lsn: int
    index: int
    ts_us: int


def scored(task: ModelTask, state: State, plan: EvaluatePlan, query: Query, merged: Merged, *, open_end: bool) -> Batch:
    """Compare a query's answers with the truth; the lines that are due.

    Args:
        open_end: whether the last row's transaction may go on, so that no line may stand there yet.
    """
    scores = state.scores[plan.spec.name]
    rows = _scorable(query, task)
    if not len(rows):
        return _lines([])
    truth = query.batch.column(str(task.target)).take(pa.array(rows)).to_numpy(zero_copy_only=False)
    answers = query.column().take(pa.array(rows)).to_numpy(zero_copy_only=False)
    transactions = merged.transactions[query.order[rows]]
    ends = np.flatnonzero(np.append(transactions[1:] != transactions[:-1], not open_end)) + 1
    by = np.repeat(np.arange(len(query.answered)), [count for count, _, _ in query.answered])[rows]
    lines: list[Batch] = []
    done, before = 0, scores.rows
    while done < len(rows):
        due = scores.told_at + (plan.every or _gap(scores.told_at)) - before
        following = ends[np.searchsorted(ends, max(due, done + 1)) :]
        end = int(following[0]) if len(following) else len(rows)
        scores.add(truth[done:end], answers[done:end])
        if len(following):
            scores.told_at = scores.rows
            at = int(query.order[rows[end - 1]])
            place = Place(int(merged.lsn[at]), int(merged.index[at]), int(merged.ts_us[at]))
            lines.append(_line(task, scores, query.answered[int(by[end - 1])][1], place))
        done = end
    return _lines(lines)


def _gap(told_at: int) -> int:
    """A line for each transaction up to 100 rows, then at each hundredth more, and at least every 1,000 rows."""
    return max(1, min(told_at // 100, LARGEST_GAP))


def _scorable(query: Query, task: ModelTask) -> Ints:
    """Rows that are new, have a label and an answer."""
    if task.target not in query.batch.schema.names or not query.batch.num_rows:
        return np.empty(0, np.int64)
    op = query.batch.op
    fit = (op == OPS["c"]) | (op == OPS["r"])
    fit &= (
        np.asarray(query.batch.column(str(task.target)).is_valid())
        & np.asarray(query.column().is_valid())
        & query.valid
    )
    return np.flatnonzero(fit)


def held_out(task: ModelTask, state: State, plan: EvaluatePlan, place: Place) -> Batch:
    """The fixed set, answered by the model as it is now, if a line is due."""
    scores = state.scores[plan.spec.name]
    learned = state.lineage_rows
    by = state.answering
    if not by.learner.ready or (plan.every and learned < scores.told_at + plan.every):
        return _lines([])
    X, truth = _fixed(task, plan, by)
    # Each line is about the whole set, not about more and more of it.
    fresh = Scores(plan.spec)
    fresh.add(truth, predict_in_blocks(by.learner.predict, X))
    fresh.told_at = learned
    state.scores[plan.spec.name] = fresh
    return _lines([_line(task, fresh, by, place)])


def _fixed(task: ModelTask, plan: EvaluatePlan, by: Answering) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    assert plan.rows is not None
    features = resolved(task.features, by.words, by.sizes, refuse=False)
    found = matrix(plan.rows, features, task.target, missing=task.missing)
    keep = found.valid & np.asarray(plan.rows.column(str(task.target)).is_valid())
    truth = plan.rows.column(str(task.target)).filter(pa.array(keep)).to_numpy(zero_copy_only=False)
    return found.X[keep], truth


def _line(task: ModelTask, scores: Scores, by: Answering, place: Place) -> Batch:
    values = scores.values()
    columns: dict[str, Any] = {
        "stream": pa.array([scores.spec.name]),
        "rows": pa.array([scores.rows], pa.int64()),
        "learned": pa.array([by.rows], pa.int64()),
        "window": pa.array([len(scores.newest[0])], pa.int64()),
        **{name: pa.array([value], pa.float64()) for name, value in values.items()},
        "model": pa.array([task.name]),
        "model_version": pa.array([by.version], pa.int64()),
        "model_position": pa.array([str(by.position) if by.position else None], pa.string()),
    }
    if scores.spec.kind == "classification":
        k = len(scores.labels)
        columns["labels"] = pa.array([[str(one) for one in scores.labels]], pa.list_(pa.string()))
        columns["confusion"] = pa.array([scores.confusion.reshape(k * k).tolist()], pa.list_(pa.int64()))
    at = np.array([place.index], np.int64)
    return Batch.of(columns, lsn=place.lsn, index=at, ts_us=place.ts_us)


def _lines(lines: list[Batch]) -> Batch:
    if not lines:
        return Batch.of({})
    return Batch(pa.concat_batches([line.records for line in lines]))


def reused(plan: EvaluatePlan, task: ModelTask) -> int | None:
    """Which declared prediction gives the answers too: the same rows are not answered twice."""
    for number, one in enumerate(task.predict):
        if plan.stream is not None and one.stream == plan.stream:
            return number
    return None
