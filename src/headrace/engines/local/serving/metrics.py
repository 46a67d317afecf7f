"""Numbers about a running pipeline, for those who watch it: models, topics, waiting labels, errors, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace.grade.operator_logic import Measure
from headrace.log.base import Log, TopicInfo, rows_between
from headrace.plain_values import united
from headrace.plan.task import ModelTask, Task
from headrace.registry.models import Progress
from headrace.serve.models import Gauge
from headrace.step.ahead import ForeseenRows
from headrace.step.state import State

_COUNTERS = {
    "learned": "Rows learned",
    "predicted": "Rows of topics predicted",
    "rejected": "Rows refused to dead letters",
    "ignored": "Updates, deletes and truncates of rows that were learned, which are not taken back",
    "unlabelled": "Rows that came without a label",
    "cuts": "Cuts learned",
}


def model_metrics(progress: Progress, state: State, model: str) -> list[Gauge]:
    """Return numbers about one model."""
    labels = {"model": model}
    found = [Gauge("model_version", "The model's current version", state.version, labels)]
    position = state.position
    if position is not None:
        found.append(Gauge("model_position_lsn", "LSN of the last row learned, as a number", position.lsn, labels))
    waiting = sum(len(late) for name, late in list(state.memory.late.items()) if name.startswith("learn:"))
    found.append(Gauge("model_pending_rows", "Rows that wait for their cut to be complete", progress.pending, labels))
    found.append(Gauge("model_unlabelled_keys", "Rows to learn whose label has not come yet", waiting, labels))
    for name, text in _COUNTERS.items():
        found.append(Gauge(f"model_{name}", text, progress.counters.get(name, 0), labels))
    for stream, scores in list(state.scores.items()):
        for metric, value in scores.values().items():
            if isinstance(value, int | float):
                about = {**labels, "stream": stream, "metric": metric}
                found.append(Gauge("model_score", "What the model was scored", float(value), about))
    return found


def foreseen_metrics(foreseen: ForeseenRows, model: str) -> list[Gauge]:
    """Return how many rows of a model were predicted ahead of their step, where some were, and how many of use."""
    if not foreseen.offered:
        return []
    labels = {"model": model}
    return [
        Gauge("model_foreseen_rows", "Rows that were predicted ahead of their step", foreseen.offered, labels),
        Gauge("model_foreseen_taken", "Rows whose prediction the step took over", foreseen.taken, labels),
    ]


def operator_metrics(log: Log, task: Task, state: State) -> list[Gauge]:
    """Return numbers about what is derived from a task's rows: labels that are waited for, errors, alarms."""
    if state.operators is None:
        return []
    topics = log.topics()
    found: list[Gauge] = []
    for operator in state.operators.operators:
        node = {"task": task.name, "node": str(operator.number)}
        found += [_gauge(measure, node) for measure in operator.measures()]
        for output in operator.node.outputs:
            if (topic := topics.get(output.topic)) is not None and topic.rows:
                rows = newest(log, topic, operator.looks_at)
                found += [_gauge(measure, {"topic": topic.name}) for measure in operator.measures_of(rows, topic.end)]
    return found


def _gauge(measure: Measure, labels: Mapping[str, str]) -> Gauge:
    return Gauge(measure.name, measure.text, measure.value, {**labels, **measure.labels})


def newest(log: Log, topic: TopicInfo, rows: int) -> pa.Table:
    """The last rows of a topic."""
    if not rows:
        return pa.table({})
    found = rows_between(log, topic.name, max(topic.first, topic.end - rows), topic.end)
    return united([pa.Table.from_batches([records]) for records in found])


def topic_metrics(log: Log, tasks: Sequence[ModelTask], offsets: Mapping[str, Mapping[str, int]]) -> list[Gauge]:
    """Return each model's offsets in the topics that it reads, and how many rows are before it; dead letters.

    Args:
        offsets: model -> topic -> the next offset that it reads.
    """
    ends = {name: info.end for name, info in log.topics().items()}
    found: list[Gauge] = []
    for task in tasks:
        for topic in task.topics:
            labels, at = {"model": task.name, "topic": topic}, offsets.get(task.name, {}).get(topic, 0)
            found.append(Gauge("model_offset", "Next offset of the topic that the model reads", at, labels))
            behind = max(0, ends.get(topic, 0) - at)
            found.append(Gauge("model_lag_rows", "Rows in the topic that the model has not read", behind, labels))
    for topic, end in ends.items():
        if topic.endswith(".dlq"):
            found.append(Gauge("dead_letters", "Rows in a dead-letter topic since it began", end, {"topic": topic}))
    return found
