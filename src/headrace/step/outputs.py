"""Rows on their way to topics: after operations, and as dead letters where these fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.batch import Batch, dead_letters
from headrace.plan.task import ModelTask, OutputPlan, PredictPlan, StreamPlan
from headrace.step.events import Merged
from headrace.step.learning import Reader, Refused
from headrace.step.predictions import PredictionBatch
from headrace.step.state import Samples, State
from headrace.transform.expressions import operate

Output = tuple[str, Batch]


def refused(topic: str, batch: Batch, reasons: Sequence[str], stage: str, model: str | None = None) -> Output:
    """Return rows that could not be handled, with the reasons."""
    return f"{topic}.dlq", dead_letters(batch.stored, reasons, stage=stage, model=model)


def unlearned(task: ModelTask, state: State, reader: Reader | None, blocks: Sequence[Refused]) -> list[Output]:
    """Return dead letters of rows that the learner has failed on, and that may have come long before.

    The rows are read again from the log, however near they are, so that a letter does not depend on it. Of those that
    are not there (made of predictions and labels, or pruned by force) a letter holds the features and the target.
    """
    outputs: list[Output] = []
    for block in blocks:
        state.counters.rejected += len(block.reasons)
        origin = block.rows.origin
        assert origin is not None
        for number in np.unique(origin[:, 0]).tolist():
            mine = np.flatnonzero(origin[:, 0] == number)
            mine = mine[np.argsort(origin[mine, 1], kind="stable")]
            topic = task.learn[number if number < len(task.learn) else 0].topic if number >= 0 else "graded"
            if 0 <= number < len(task.learn):
                mine = mine[origin[mine, 1] >= state.offsets.predicted.get(topic, 0)]
            reasons = [block.reasons[row] for row in mine.tolist()]
            if 0 <= number < len(task.learn) and reader is not None:
                told = dict(zip(origin[mine, 1].tolist(), reasons, strict=True))
                for offsets, batch in reader.at(topic, list(told)):
                    shown = _as_learned(task.learn[number], batch)
                    outputs.append(refused(topic, shown, [told.pop(offset) for offset in offsets], "learn", task.name))
                mine, reasons = mine[np.isin(origin[mine, 1], list(told))], list(told.values())
            if len(mine):
                outputs.append(_of_values(task, topic, block.rows.taken(mine), origin[mine], reasons))
    return outputs


def _as_learned(stream: StreamPlan, batch: Batch) -> Batch:
    """Return rows of a topic as they were learned; as they are in the topic, should that not be known any more."""
    good, _ = operate(batch, stream.operations)
    return good[0] if len(good) == 1 and good[0].num_rows == batch.num_rows else batch


def _of_values(
    task: ModelTask, topic: str, rows: Samples, origin: npt.NDArray[np.int64], reasons: Sequence[str]
) -> Output:
    """Return dead letters that hold what was given to the learner, at the rows' positions where these are known."""
    names = task.feature_names if len(task.feature_names) == rows.X.shape[1] else None
    texts = []
    for row, features in enumerate(rows.X.tolist()):
        shown = dict(zip(names, features, strict=True)) if names else {"features": features}
        texts.append(json.dumps(shown if rows.y is None else {**shown, task.target: rows.y[row].item()}, default=str))
    known = origin[:, 1:] if origin.shape[1] == 4 and (origin[:, 0] < 0).all() else np.zeros((len(rows), 3), np.int64)
    where = np.ascontiguousarray(known.T)
    batch = Batch.of({"reason": list(reasons)}, lsn=where[0].astype(np.uint64), index=where[1], ts_us=where[2])
    return f"{topic}.dlq", dead_letters(batch, reasons, stage="learn", model=task.name, rows=texts)


def emitted(plans: Sequence[OutputPlan], batch: Batch, features: Sequence[str]) -> list[Output]:
    """Return rows to the topics of some outputs.

    Args:
        features: the model's columns, where it has some.
    """
    outputs: list[Output] = []
    for plan in plans:
        good, bad = operate(batch, plan.operations, features)
        outputs += [refused(plan.topic, rows, [reason], "transform") for rows, reason in bad]
        outputs += [(plan.topic, rows) for rows in good if rows.num_rows]
    return outputs


@dataclass(frozen=True, slots=True)
class Emission:
    """What becomes of rows that were predicted.

    Attributes:
        rejected: how many of them have no prediction.
        letters: dead letters of these; ``outputs``: rows to the outputs' topics.
    """

    rejected: int
    letters: list[Output]
    outputs: list[Output]


def emission(task: ModelTask, plan: PredictPlan, predictions: PredictionBatch) -> Emission:
    """Return what becomes of rows once they were predicted; the same wherever that is."""
    invalid = np.flatnonzero(~predictions.valid)
    letters: list[Output] = []
    if len(invalid):
        reasons = [predictions.reasons[i] for i in invalid.tolist()]
        letters = [refused(plan.stream.topic, predictions.batch.take(invalid), reasons, "predict", task.name)]
    return Emission(len(invalid), letters, emitted(plan.outputs, predictions.output(), task.feature_names))


def batches_of(merged: Merged, stream: StreamPlan, refuse: Callable[[str, Batch, str], None]) -> list[Batch]:
    """Return a stream's batches; refuse rows that its operations fail on."""
    batches: list[Batch] = []
    for part in merged.parts:
        if part.topic == stream.topic:
            good, bad = operate(part.batch, stream.operations)
            batches += good
            for batch, reason in bad:
                refuse(part.topic, batch, reason)
    return batches
