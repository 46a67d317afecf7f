"""States that an earlier Headrace stored: they load, and go on as if they had never been stored.

The files in ``states/`` were written by the first format of states (Headrace of November 2026), each at the moment that
its scenario calls "before".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.errors import LogVersionError
from headrace.learn.state import load_state as load_values
from headrace.plan.task import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, Task, Versions
from headrace.position import Position
from headrace.step import learning
from headrace.step.events import Event, Part, Rows, Tick, Train
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step

STATES = Path(__file__).with_name("states")
SECOND = 1_000_000
Scenario = tuple[Task, list[Event], list[Event]]


class Average:
    """Predicts the sum of the features plus the mean of what it learned."""

    deterministic = True
    ready = True

    def __init__(self) -> None:
        self.total = 0.0
        self.rows = 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        self.total += float(X.sum() if y is None else (y - X.sum(axis=1)).sum())
        self.rows += len(X)

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(X.sum(axis=1) + self.total / max(1, self.rows))

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.rows = float(state["total"]), int(state["rows"])


class Events:
    """Rows in slices of their own, with running positions, offsets and times of two seconds each."""

    def __init__(self) -> None:
        self._slice = 0
        self._offsets: dict[str, int] = {}

    def of(
        self, topic: str, columns: dict[str, Any], *, op: str = "c", lsn: int | None = None, complete: bool = True
    ) -> Rows:
        """Return an event of some rows of one topic, all of one transaction."""
        self._slice += 1
        size = len(next(iter(columns.values())))
        batch = Batch.of(
            columns,
            op=op,
            lsn=100 + self._slice if lsn is None else lsn,
            index=self._slice * 1000 + np.arange(size),
            ts_us=2 * self._slice * SECOND,
            key=["id"],
        )
        offset = self._offsets.get(topic, 0)
        self._offsets[topic] = offset + size
        return Rows((Part(topic, batch, np.full(size, self._slice), offset),), complete)


def numbers(cut: Cut, **more: Any) -> ModelTask:
    predict = PredictPlan(StreamPlan("test"), (OutputPlan("out"),))
    return ModelTask("m", Average(), ("x",), cut=cut, learn=(StreamPlan("train"),), predict=(predict,), **more)


def rows_of(events: Events, topic: str, *values: float, **more: Any) -> Rows:
    return events.of(topic, {"id": list(range(len(values))), "x": [float(value) for value in values]}, **more)


def open_transaction() -> Scenario:
    """Cuts of a transaction that goes on are learned and not to be seen yet; a row waits for its cut."""
    events = Events()
    before: list[Event] = [
        rows_of(events, "train", 1, 2, 3),
        rows_of(events, "train", 4, 5, 6, 7, lsn=200, complete=False),
        rows_of(events, "test", 0, lsn=200, complete=False),
    ]
    after: list[Event] = [
        rows_of(events, "train", 7, lsn=200, complete=True),
        rows_of(events, "test", 1, lsn=300),
        rows_of(events, "train", 8, 9, lsn=301),
        rows_of(events, "test", 2, lsn=302),
    ]
    return numbers(Cut(rows=2), versions=Versions(every=3)), before, after


def pieces() -> Scenario:
    """A long cut is learned ahead in pieces, while the model at its beginning predicts."""
    events = Events()
    before: list[Event] = [
        rows_of(events, "train", 1, 2),
        rows_of(events, "train", *range(10), lsn=200, complete=False),
    ]
    after: list[Event] = [
        rows_of(events, "test", 0, lsn=200, complete=False),
        rows_of(events, "train", *range(7), lsn=200, complete=True),
        rows_of(events, "test", 0, lsn=300),
    ]
    return numbers(Cut(transaction=True)), before, after


def rollback() -> Scenario:
    """Another version waits for the end of a cut."""
    events = Events()
    task = numbers(Cut(rows=4))
    old = {"total": 7.0, "rows": 2}
    before: list[Event] = [
        rows_of(events, "train", 1, 2, 3, 4, 5),
        another_version(task, old, number=2, parent=1, position=Position(50, 1), rows=2),
    ]
    after: list[Event] = [
        rows_of(events, "test", 0),
        rows_of(events, "train", 6, 7, 8),
        rows_of(events, "test", 0),
        rows_of(events, "train", *range(4)),
        rows_of(events, "test", 0),
    ]
    return task, before, after


def another_version(
    task: ModelTask, state: dict[str, Any], *, number: int, parent: int, position: Position, rows: int
) -> Event:
    learner = Average()
    learner.restore(state)
    return VersionChange(ModelVersion(learner, number, position, rows), parent, "m/000001", "me")


def words() -> Scenario:
    """Words and lengths that rows have shown; rows that wait for their labels; scores."""
    app = hr.App("shop", log="memory://")
    features = ["x", hr.category("word", capacity=4), hr.vector("v")]
    model = app.model("m", Average(), features=features, target="y")
    table = app.topic("t", append=True)
    model.learn(table, every=3)
    model.predict(table).to("out")
    model.evaluate(table, window=4)
    (task,) = app.plan().models
    events = Events()

    def some(first: int, word: Sequence[str], labels: Sequence[float | None], op: str = "c") -> Rows:
        size = len(word)
        vectors = pa.array([[float(i), 1.0] for i in range(size)])
        columns = {"id": list(range(first, first + size)), "x": [float(i) for i in range(size)]}
        return events.of("t", {**columns, "word": word, "v": vectors, "y": pa.array(labels, pa.float64())}, op=op)

    before: list[Event] = [
        some(0, ["carp", "pike", "carp", "eel"], [1.0, None, 3.0, 4.0]),
        some(4, ["bass"], [5.0]),
        some(5, ["rudd", "pike"], [None, 2.0]),
    ]
    after: list[Event] = [
        some(1, ["pike"], [6.0], "u"),
        some(5, ["rudd"], [7.0], "u"),
        some(7, ["eel", "tench", "pike"], [1.0, 2.0, 3.0]),
        some(3, ["eel"], [4.0], "d"),
    ]
    return task, before, after


def fish(numbers_of: range, events: Events, **more: Any) -> list[Event]:
    """Fish that are measured, and weighed five fish later; from the 40th on they weigh 5 more."""
    found: list[Event] = []
    for i in numbers_of:
        found.append(events.of("measured", {"id": [f"f{i}"], "x": [float(i % 7)], **more}))
        if i >= 5:
            weight = float((i - 5) % 7) + (5.0 if i - 5 >= 40 else 0.0)
            found.append(events.of("weighed", {"id": [f"f{i - 5}"], "y": [weight]}))
    return found


def factory(**retrain: Any) -> ModelTask:
    app = hr.App("fish", log="memory://")
    model = app.model("m", Average(), features=["x"], target="y")
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    predicted = model.predict(measured).to("predictions")
    graded = predicted.grade(weighed, on="id", within="60 s", metric=hr.metrics.absolute_error).to("grades")
    alarm = graded.window("1 min").mean("error").above(1.0).to("alarms")
    model.retrain(on=alarm, rows=graded.last(20), **retrain)
    (task,) = app.plan().models
    return task


def challenger() -> Scenario:
    """A model is tried out beside the current one."""
    events = Events()
    before = fish(range(72), events)
    return factory(shadow=True, promote=30), before, fish(range(72, 120), events)


def training() -> Scenario:
    """A training runs beside the pipeline; somebody asks for another one."""
    events = Events()
    before = fish(range(72), events)
    return factory(swap="when_ready"), before, [*fish(range(72, 80), events), Train(0, 2**62, "me")]


def trained() -> Scenario:
    """Trained on rows that a second training would take again."""
    events = Events()
    before: list[Event] = [*fish(range(50), events), Train(0, 2**62, "me")]
    idle = Tick(0, idle_us={"measured": 90 * SECOND, "weighed": 90 * SECOND})
    return factory(), before, [Train(0, 2**62, "me"), *fish(range(50, 60), events), idle]


def operators() -> Scenario:
    """Operators without a model."""
    app = hr.App("fish", log="memory://")
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    graded = measured.grade(weighed, on="id", within="60 s", target="y", metric=hr.metrics.absolute_error).to("grades")
    graded.window("1 min").mean("error").to("windows").above(1.0).to("alarms")
    (task,) = app.plan().tasks
    events = Events()
    idle = Tick(0, idle_us={"measured": 90 * SECOND, "weighed": 90 * SECOND})
    more = {"prediction": [2.0], "model": ["m"], "model_version": [1], "model_position": ["0/A:1"], "status": ["ok"]}
    return task, fish(range(55), events, **more), [*fish(range(55, 80), events, **more), idle]


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    piece.__name__: piece
    for piece in (open_transaction, pieces, rollback, words, challenger, training, trained, operators)
}


def play(task: Task, state: State, events: Sequence[Event]) -> list[Any]:
    return [
        (topic, batch.records.to_pylist(), str(batch.schema))
        for event in events
        for topic, batch in step(task, state, event)
    ]


def values(state: State) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in dump_state(state).items()
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_stored_state_of_before_goes_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "PIECE_ROWS", 4)
    task, before, after = SCENARIOS[name]()
    fresh = initial_state(task)
    play(task, fresh, before)
    if fresh.open_batch.rows:
        # States of before do not say when an open cut's last row was committed: not after the newest row.
        fresh.open_batch.time_us = fresh.watermark_us
    loaded = load_state(task, load_values((STATES / f"{name}.state").read_bytes()))
    assert values(loaded) == values(fresh)
    expected = play(task, fresh, after)
    assert expected
    assert play(task, loaded, after) == expected
    assert values(loaded) == values(fresh)


def test_a_state_of_a_later_format_is_refused() -> None:
    task = numbers(Cut(rows=2))
    with pytest.raises(LogVersionError, match="format 3"):
        load_state(task, {**dump_state(initial_state(task)), "format": 3})


def test_a_field_that_a_stored_state_lacks_is_its_default() -> None:
    task, before, after = rollback()
    state = initial_state(task)
    play(task, state, before)
    flat = dump_state(state)
    meta = json.loads(flat["meta"])
    del meta["trained_on"], meta["current"]["diverged"]
    loaded = load_state(task, {**flat, "meta": json.dumps(meta), "unknown": 1})
    assert play(task, loaded, after) == play(task, state, after)
