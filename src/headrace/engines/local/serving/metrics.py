"""Numbers about a running pipeline, for those who watch it: models, topics, waiting labels, errors, alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.grade.interval_join.join import Join
from headrace.grade.windows.window import Window
from headrace.log.base import Log, TopicInfo
from headrace.plain_values import united
from headrace.plan.operators import Alarms, Drifts, Grade, Node, Windows
from headrace.plan.task import ModelTask, Task
from headrace.registry.models import Progress
from headrace.serve.models import Gauge
from headrace.step.state import State

NEWEST = 50

_COUNTERS = {
    "learned": "Rows learned",
    "predicted": "Rows of topics answered",
    "rejected": "Rows refused to dead letters",
    "ignored": "Updates and deletes not learned",
    "unlabelled": "Rows that came without a label",
    "cuts": "Cuts learned",
}


def model_metrics(progress: Progress, state: State, model: str) -> list[Gauge]:
    """Numbers about one model."""
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


def flow_metrics(log: Log, task: Task, state: State) -> list[Gauge]:
    """Numbers about what is derived from a task's rows: labels that are waited for, errors, alarms."""
    flow = state.flow
    if flow is None:
        return []
    topics = log.topics()
    found: list[Gauge] = []
    for i, node in enumerate(getattr(task, "nodes", ())):
        labels = {"task": task.name, "node": str(i)}
        running = flow.running[i]
        if isinstance(running, Join):
            predictions, truths = running.waiting
            found.append(Gauge("pending_labels", "Predictions that may still be graded", predictions, labels))
            found.append(Gauge("waiting_truths", "Labels that predictions to come may meet", truths, labels))
            for status, count in running.counts.items():
                found.append(Gauge("grades", "Grades by status", count, {**labels, "status": status}))
        if isinstance(running, Window):
            late = running.late
            found.append(Gauge("window_late_rows", "Rows that came when their windows had closed", late, labels))
        for topic in _written(node, topics):
            found += _of_output(log, node, topic)
    return found


def _written(node: Node, topics: Mapping[str, TopicInfo]) -> list[TopicInfo]:
    return [topics[one.topic] for one in node.outputs if one.topic in topics and topics[one.topic].rows]


def _of_output(log: Log, node: Node, topic: TopicInfo) -> list[Gauge]:
    """What the newest rows of a topic say."""
    labels = {"topic": topic.name}
    if isinstance(node.what, Alarms | Drifts):
        return [Gauge("alarms", "Alarms since the topic began", topic.end, labels)]
    if isinstance(node.what, Windows):
        last = newest(log, topic, 1)
        own = [one for one in last.schema if one.name[:2] != "__" and pa.types.is_floating(one.type)]
        values = {one.name: last.column(one.name)[-1].as_py() for one in own}
        return [
            Gauge("window_value", "Of the newest window", value, {**labels, "column": name})
            for name, value in values.items()
            if value is not None
        ]
    return _error_of(newest(log, topic, NEWEST), labels) if isinstance(node.what, Grade) else []


def _error_of(rows: pa.RecordBatch | pa.Table, labels: Mapping[str, str]) -> list[Gauge]:
    if "error" not in rows.schema.names:
        return []
    mean = pc.mean(rows.column("error").drop_null()).as_py()
    text = f"Mean error of the newest {NEWEST} grades"
    return [] if mean is None or not np.isfinite(mean) else [Gauge("windowed_error", text, mean, labels)]


def newest(log: Log, topic: TopicInfo, rows: int) -> pa.Table:
    """The last rows of a topic."""
    start = max(topic.first, topic.end - rows)
    found = [
        pa.Table.from_batches([one.records.slice(max(0, start - one.offset))])
        for one in log.read_topic(topic.name, offset=start, limit=rows)
    ]
    return united(found)


def topic_metrics(log: Log, tasks: Sequence[ModelTask], offsets: Mapping[str, Mapping[str, int]]) -> list[Gauge]:
    """How far each model has come in the topics that it reads, and how many rows are before it; dead letters.

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
