"""A stepper that is stored and loaded anywhere goes on as one that was never touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.learn.category import category
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.plan.task import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, StreamTask, Task
from headrace.step.events import Event, Part, Rows, Tick
from headrace.step.stepper import Stepper

OUT = (OutputPlan("out"),)
TASKS: list[Task] = [
    ModelTask("m", KMeans(k=2, initial_centers=[[0.0], [5.0]]), ("x",), None, Cut(rows=5), (StreamPlan("a"),),
              (PredictPlan(StreamPlan("b"), OUT),)),
    ModelTask("m", KMeans(k=2, initial_centers=[[0.0], [5.0]]), ("x",), None, Cut(duration_us=7), (StreamPlan("a"),),
              (PredictPlan(StreamPlan("a"), OUT), PredictPlan(StreamPlan("b"), OUT))),
    ModelTask("m", LinearRegression(), ("x", category("c", capacity=3)), "y", Cut(transaction=True), (StreamPlan("a"),),
              (PredictPlan(StreamPlan("b"), OUT),)),
    StreamTask("s", StreamPlan("a"), OUT),
]  # fmt: skip
Given = list[tuple[str, int | None, str, int | None]]
ROWS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([None, 0, 1, 4, 9]), st.sampled_from("pqrs"),
              st.sampled_from([None, 2, 3])), min_size=1, max_size=12,
)  # fmt: skip


def event(rows: Given, start: int, offsets: dict[str, int], complete: bool) -> Rows:
    """Rows as one slice, in transactions of four."""
    parts = []
    for topic in "ab":
        mine = [(start + i, x, c, y) for i, (name, x, c, y) in enumerate(rows) if name == topic]
        if mine:
            at, x, c, y = zip(*mine, strict=True)
            where = np.array(at)
            columns = {"x": pa.array(x, pa.float64()), "c": list(c), "y": pa.array(y, pa.float64())}
            batch = Batch.of(columns, op="c", lsn=where // 4 + 1, index=where, ts_us=where)
            parts.append(Part(topic, batch, np.full(len(at), start + 1), offsets.get(topic, 0)))
            offsets[topic] = offsets.get(topic, 0) + len(at)
    return Rows(tuple(parts), complete)


@given(
    st.sampled_from(TASKS),
    st.lists(st.tuples(ROWS, st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=8),
)
def test_stored_and_loaded_anywhere(task: Task, given_rows: list[tuple[Given, bool, bool, bool]]) -> None:
    straight, moved = Stepper(task), Stepper(task)
    start, offsets = 0, dict[str, int]()
    for rows, complete, ticks, stored in given_rows:
        wanted = [row for row in rows if row[0] in task.topics]
        happening: list[Event] = [event(wanted, start, offsets, complete)] if wanted else []
        happening += [Tick(start + len(rows), explicit=True)] if ticks else []
        start += len(rows)
        for item in happening:
            assert told(straight.apply(item)) == told(moved.apply(item))
        assert straight.hash == moved.hash
        if stored:
            pieces = moved.dump(place=start)
            moved = Stepper(task)
            assert moved.load(b"".join(pieces), "place") == [start]
    assert b"".join(straight.dump()) == b"".join(moved.dump())
    assert (straight.hash is None) == isinstance(task, StreamTask)


def told(outputs: list[Any]) -> list[Any]:
    return [(topic, batch.records.to_pylist()) for topic, batch in outputs]
