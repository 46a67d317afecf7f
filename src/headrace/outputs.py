"""Rows on their way to topics: after operations, and as dead letters where these fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from headrace.answers import Query
from headrace.batch import Batch, dead_letters
from headrace.comparison import plain
from headrace.derive import Derive
from headrace.events import Merged
from headrace.task import FlowTask, ModelTask, OutputPlan, StreamPlan
from headrace.transform.expressions import operate

Output = tuple[str, Batch]


def refused(topic: str, batch: Batch, reasons: Sequence[str], stage: str, model: str | None = None) -> Output:
    """Rows that could not be handled, with the reasons."""
    return f"{topic}.dlq", dead_letters(Batch(plain(batch)), reasons, stage=stage, model=model)


def emitted(plans: Sequence[OutputPlan], batch: Batch, features: Sequence[str]) -> list[Output]:
    """Rows to the topics of some outputs.

    Args:
        features: the model's columns, where it has some.
    """
    outputs: list[Output] = []
    for plan in plans:
        good, bad = operate(batch, plan.operations, features)
        outputs += [refused(plan.topic, one, [reason], "transform") for one, reason in bad]
        outputs += [(plan.topic, one) for one in good if one.num_rows]
    return outputs


def derived(task: ModelTask | FlowTask, derive: Derive) -> list[Output]:
    """Rows of the nodes, to their topics."""
    features = task.feature_names if isinstance(task, ModelTask) else ()
    outputs: list[Output] = []
    for node, batches in zip(task.nodes, derive.out, strict=True):
        for batch in batches if node.outputs else ():
            outputs += emitted(node.outputs, Batch(batch.records.drop_columns(["__order"])), features)
    return outputs


def made(task: ModelTask, derive: Derive, asked: Sequence[Query], last: int = 0) -> dict[str, list[Batch]]:
    """What a step has made for its topics, up to a place."""
    found: dict[str, list[Batch]] = {}
    for topic, batch in derived(task, derive):
        found.setdefault(topic, []).append(batch)
    for query in asked:
        for plan in task.predict:
            if query.stream == plan.stream:
                rows = query.output().slice(0, int(np.searchsorted(query.order, last, "right")))
                for topic, batch in emitted(plan.outputs, rows, task.feature_names):
                    found.setdefault(topic, []).append(batch)
    return found


def batches_of(merged: Merged, stream: StreamPlan, refuse: Callable[[str, Batch, str], None]) -> list[Batch]:
    """A stream's batches; rows that its operations fail on are refused."""
    batches: list[Batch] = []
    for part in merged.parts:
        if part.topic == stream.topic:
            good, bad = operate(part.batch, stream.operations)
            batches += good
            for batch, reason in bad:
                refuse(part.topic, batch, reason)
    return batches
