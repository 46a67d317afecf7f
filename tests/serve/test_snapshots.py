"""Snapshots never change, predict the bits that the pipeline predicts, and are published when they should be."""

from __future__ import annotations

import copy
import dataclasses
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headrace as hr
from headrace.batch import Batch
from headrace.engines.local.serving.snapshots import ModelSnapshot, SnapshotPublisher, describe
from headrace.learn.linear import LinearRegression
from headrace.plan.task import Cut, ModelTask, StreamPlan
from headrace.serve.models import NotReady, RowRefused, TooSlow
from headrace.step.events import Part, Rows
from headrace.step.state import State, initial_state
from headrace.step.step import predict_batch, step

FEATURES: dict[str, tuple[Any, ...]] = {
    "numbers": ("a", "b"),
    "a growing category": ("a", hr.category("w")),
    "a fixed category": (hr.category("w", known=["x", "y"]), "a"),
    "others are ignored": ("a", "b", hr.category("w", known=["x", "y", "z"], unseen="ignore")),
    "treatment coding": (hr.category("w", known=["x", "y", "z"], coding="treatment"), "a"),
    "categories only": (hr.category("w", known=["x", "y"]),),
}
NUMBERS = st.one_of(st.none(), st.floats(-1e6, 1e6), st.sampled_from([float("nan"), float("inf"), -0.0, 1e308]))
WORDS = st.sampled_from([None, "x", "y", "z", "", "ü"])


def learned(features: tuple[Any, ...]) -> tuple[ModelTask, State]:
    """A model that has learned 30 rows."""
    task = ModelTask("m", LinearRegression(), features, "y", Cut(transaction=True), (StreamPlan("t"),))
    state = initial_state(task)
    rng = np.random.default_rng(7)
    feed(task, state, rng, 30)
    return task, state


def feed(task: ModelTask, state: State, rng: np.random.Generator, n: int, lsn: int = 10) -> None:
    words = rng.choice(["x", "y"], n)
    columns = {"a": rng.normal(size=n), "b": rng.normal(size=n), "w": words, "y": rng.normal(size=n)}
    batch = Batch.of(pa.RecordBatch.from_pydict(columns), lsn=lsn)
    step(task, state, Rows((Part("t", batch, np.full(n, lsn), 0),), True))


def frozen(task: ModelTask, state: State) -> ModelSnapshot:
    published = SnapshotPublisher(task, lambda version: version)
    published.publish(state)
    assert published.newest is not None
    return published.newest


@pytest.mark.parametrize("name", FEATURES)
@given(rows=st.lists(st.tuples(NUMBERS, NUMBERS, WORDS), min_size=1, max_size=64))
def test_values_and_batches_give_the_same_bits(name: str, rows: list[tuple[Any, Any, Any]]) -> None:
    """What writes rows of the matrix from values agrees with what makes them from columns, refusals included."""
    task, state = learned(FEATURES[name])
    snapshot = frozen(task, state)
    columns = {
        "a": pa.array([item[0] for item in rows], pa.float64()),
        "b": pa.array([item[1] for item in rows], pa.float64()),
        "w": pa.array([item[2] for item in rows], pa.string()),
    }
    batch = pa.RecordBatch.from_pydict(columns)
    expected = predict_batch(task, state, Batch.of(batch)).output()
    whole = snapshot.predict_batch(batch)
    assert whole.batch.column("prediction").equals(expected.column("prediction"))
    place = {"a": 0, "b": 1, "w": 2}
    names = [column.name for column in describe(task).columns]
    found = snapshot.predict([[row[place[name]] for name in names] for row in rows], wait=True)
    for i, item in enumerate(found):
        if isinstance(item, RowRefused):
            # Where several values are wrong, either of them may be named.
            value = rows[i][place[item.column]]
            assert item.message == whole.reasons[i] or value is None or not np.isfinite(value)
            assert expected.column("status")[i].as_py() == "invalid"
        else:
            assert np.float64(item).tobytes() == np.float64(expected.column("prediction")[i].as_py()).tobytes()


def test_a_snapshot_stays_as_it_was() -> None:
    task, state = learned(FEATURES["a growing category"])
    snapshot = frozen(task, state)
    before = snapshot.predict([[1.0, "x"], [2.0, "q"]], wait=True)
    for i in range(5):
        feed(task, state, np.random.default_rng(i), 20, lsn=20 + i)
    assert snapshot.predict([[1.0, "x"], [2.0, "q"]], wait=True) == before
    assert frozen(task, state).predict([[1.0, "x"], [2.0, "q"]], wait=True) != before
    assert snapshot.info.position == "0/A:29"


def test_a_model_is_published_when_it_has_changed() -> None:
    task, state = learned(FEATURES["numbers"])
    published = SnapshotPublisher(task, lambda version: 0)
    published.publish(state)
    first = published.newest
    published.publish(state)
    assert published.newest is first
    feed(task, state, np.random.default_rng(1), 3, lsn=20)
    published.publish(state)
    assert published.newest is not first


class Costly(LinearRegression):
    """A model whose copies take long."""

    def __deepcopy__(self, memo: Any) -> Costly:
        made = Costly()
        made.restore(copy.deepcopy(self.state()))
        threading.Event().wait(0.03)
        return made


def test_copies_that_take_long_are_made_less_often() -> None:
    task = ModelTask("m", Costly(), ("a", "b"), "y", Cut(transaction=True), (StreamPlan("t"),))
    state = initial_state(task)
    published = SnapshotPublisher(task, lambda version: 0)
    for i in range(8):
        feed(task, state, np.random.default_rng(i), 3, lsn=20 + i)
        published.publish(state)
    assert published.behind
    published.wanted = True
    published.publish(state)
    assert not published.behind
    feed(task, state, np.random.default_rng(9), 3, lsn=90)
    published.publish(state)
    assert published.behind
    published.publish(state, idle=True)
    assert published.newest is not None
    assert published.newest.info.position == str(state.position)


def test_a_model_that_has_learned_nothing_says_so() -> None:
    task = ModelTask("m", LinearRegression(), ("a",), "y", Cut(transaction=True), (StreamPlan("t"),))
    snapshot = frozen(task, initial_state(task))
    with pytest.raises(NotReady, match="learned nothing"):
        snapshot.predict([[1.0]])
    assert snapshot.predict_batch(pa.RecordBatch.from_pydict({"a": [1.0]})).batch.column("status").to_pylist() == [
        "not_ready"
    ]


def test_who_must_not_wait_is_told() -> None:
    task, state = learned(FEATURES["numbers"])
    snapshot = frozen(task, state)
    entered, leave = threading.Event(), threading.Event()

    class Held(LinearRegression):
        def predict(self, X: Any) -> Any:
            entered.set()
            leave.wait(10)
            return super().predict(X)

    held = Held()
    held.restore(snapshot.by.learner.state())
    object.__setattr__(snapshot.by, "learner", held)
    asking = threading.Thread(
        target=lambda: snapshot.predict_batch(pa.RecordBatch.from_pydict({"a": [1.0], "b": [2.0]}))
    )
    asking.start()
    assert entered.wait(10)
    with pytest.raises(TooSlow, match="is answering"):
        snapshot.predict([[1.0, 2.0]])
    leave.set()
    asking.join(10)


def test_a_slow_model_holds_nobody_up_twice() -> None:
    class Slow(LinearRegression):
        def predict(self, X: Any) -> Any:
            threading.Event().wait(0.01)
            return super().predict(X)

    task, state = learned(FEATURES["numbers"])
    slow = Slow()
    assert state.learner is not None
    slow.restore(state.learner.state())
    state.current = dataclasses.replace(state.current, learner=slow)
    snapshot = frozen(task, state)
    first = snapshot.predict([[1.0, 2.0]])
    with pytest.raises(TooSlow, match="takes"):
        snapshot.predict([[1.0, 2.0]])
    assert snapshot.predict([[1.0, 2.0]], wait=True) == first
