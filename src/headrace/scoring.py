"""A model's answers beside the truth: rows of the topic ``<model>-metrics``.

A line stands at the place of a row: it holds what was scored up to there, and is written at the end of a transaction.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.answers import Query, answers_to
from headrace.batch import Batch, inserted
from headrace.events import Ints, Merged
from headrace.grade.scores import Scores
from headrace.learn.base import scored_as
from headrace.learn.features import matrix, resolved, targets
from headrace.plain_values import values
from headrace.state import Answering, State
from headrace.task import EvaluatePlan, ModelTask

LARGEST_GAP = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line of the metrics topic stands."""

    lsn: int
    index: int
    ts_us: int


Line = tuple[int, Place, dict[str, Any]]
"""A row's place among those of the event and in the log, and the line that stands there."""


def scored(
    task: ModelTask, state: State, plan: EvaluatePlan, query: Query, merged: Merged, *, open_end: bool
) -> list[Line]:
    """Compare a query's answers with the truth; the lines that are due.

    Args:
        open_end: whether the last row's transaction may go on, so that no line may stand there yet.
    """
    scores = state.scores[plan.spec.name]
    rows, truth = _scorable(query, task)
    if not len(rows):
        return []
    answers = query.column().take(pa.array(rows)).to_numpy(zero_copy_only=False)
    truth, answers = scores.coded(truth, answers)
    transactions = merged.transactions[query.order[rows]]
    ends = np.flatnonzero(np.append(transactions[1:] != transactions[:-1], not open_end)) + 1
    by = np.repeat(np.arange(len(query.answered)), [count for count, _, _ in query.answered])[rows]
    lines: list[Line] = []
    done, before = 0, scores.rows
    while done < len(rows):
        due = scores.told_at + (plan.every or _gap(scores.told_at)) - before
        following = ends[np.searchsorted(ends, max(due, done + 1)) :]
        end = int(following[0]) if len(following) else len(rows)
        scores.add_coded(truth[done:end], answers[done:end])
        if len(following):
            scores.told_at = scores.rows
            at = int(query.order[rows[end - 1]])
            place = Place(int(merged.lsn[at]), int(merged.index[at]), int(merged.ts_us[at]))
            lines.append((at, place, _line(task, scores, query.answered[int(by[end - 1])][1])))
        done = end
    return lines


def _gap(told_at: int) -> int:
    """A line for each transaction up to 100 rows, then at each hundredth more, and at least every 1,000 rows."""
    return max(1, min(told_at // 100, LARGEST_GAP))


def _scorable(query: Query, task: ModelTask) -> tuple[Ints, npt.NDArray[Any]]:
    """Rows that are new, have an answer, and a label that it can be compared with; and these labels."""
    if task.target not in query.batch.schema.names or not query.batch.num_rows:
        return np.empty(0, np.int64), np.empty(0)
    truth, comparable = truths(query.batch, task)
    rows = np.flatnonzero(inserted(query.batch) & comparable & np.asarray(query.column().is_valid()) & query.valid)
    return rows, truth[rows]


def truths(batch: Batch, task: ModelTask) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """The labels of a batch as its model's answers are, and which of them can be compared with one."""
    name = str(task.target)
    labelled = np.asarray(batch.column(name).is_valid())
    if scored_as(task.learner) == "classification" and getattr(task.learner, "classes", None) is None:
        # Clusters: any labels can stand beside them.
        return np.array(values(batch.column(name)), object), labelled
    found = targets(batch, name, getattr(task.learner, "classes", None))
    return found.y, found.valid


def held_out(task: ModelTask, state: State, plan: EvaluatePlan, at: int, place: Place) -> list[Line]:
    """The fixed set, answered by the model as it is now, if a line is due."""
    scores = state.scores[plan.spec.name]
    learned = state.lineage_rows
    by = state.answering
    if not by.learner.ready or by.diverged or (plan.every and learned < scores.told_at + plan.every):
        return []
    X, truth = _fixed(task, plan, by)
    # Each line is about the whole set, not about more and more of it.
    fresh = Scores(plan.spec)
    answers, failed = answers_to(by.learner.predict, X)
    if answers is None:
        return []
    keep = np.setdiff1d(np.arange(len(X)), list(failed))
    fresh.add(truth[keep], answers[keep])
    fresh.told_at = learned
    state.scores[plan.spec.name] = fresh
    return [(at, place, _line(task, fresh, by))]


def _fixed(task: ModelTask, plan: EvaluatePlan, by: Answering) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    assert plan.rows is not None
    features = resolved(task.features, by.words, by.sizes, refuse=False)
    found = matrix(plan.rows, features, task.target, missing=task.missing)
    truth, comparable = truths(plan.rows, task)
    keep = found.valid & comparable
    return found.X[keep], truth[keep]


def _line(task: ModelTask, scores: Scores, by: Answering) -> dict[str, Any]:
    line: dict[str, Any] = {
        "stream": scores.spec.name,
        "rows": scores.rows,
        "learned": by.rows,
        "window": len(scores.newest[0]),
        **scores.values(),
        "model": task.name,
        "model_version": by.version,
        "model_position": str(by.position) if by.position else None,
    }
    if scores.spec.kind == "classification":
        line |= {"labels": list(map(str, scores.labels)), "confusion": scores.confusion.reshape(-1).tolist()}
    return line


_TYPES = {
    **dict.fromkeys(("stream", "model", "model_position"), pa.string()),
    **dict.fromkeys(("rows", "learned", "window", "model_version"), pa.int64()),
    "labels": pa.list_(pa.string()),
    "confusion": pa.list_(pa.int64()),
}


def in_order(lines: list[Line]) -> list[Batch]:
    """Lines in the order of their places; those with the same columns that follow each other as one batch."""
    ordered = sorted(lines, key=lambda one: one[0])
    return [_batch(list(run)) for _, run in itertools.groupby(ordered, key=lambda one: tuple(one[2]))]


def _batch(lines: list[Line]) -> Batch:
    names = list(lines[0][2])
    columns = {name: pa.array([line[name] for *_, line in lines], _TYPES.get(name, pa.float64())) for name in names}
    places = [place for _, place, _ in lines]
    return Batch.of(
        columns,
        lsn=np.array([place.lsn for place in places], np.uint64),
        index=np.array([place.index for place in places], np.int64),
        ts_us=np.array([place.ts_us for place in places], np.int64),
    )


def reused(plan: EvaluatePlan, task: ModelTask) -> int | None:
    """Which declared prediction gives the answers too: the same rows are not answered twice."""
    for number, one in enumerate(task.predict):
        if plan.stream is not None and one.stream == plan.stream:
            return number
    return None
