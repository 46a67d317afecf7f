"""Predictions made ahead: right ones are taken, stale and wrong ones and none change nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.foreseen import Foreseen, joined, row_hashes
from headrace.grade.scores import score_spec
from headrace.learn.category import category
from headrace.learn.state import dump_state as state_bytes
from headrace.plan.task import Cut, EvaluatePlan, ModelTask, OutputPlan, PredictPlan, StreamPlan
from headrace.step.ahead import ForeseenRows, identity_of
from headrace.step.events import Part, Rows, Tick
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.predictions import foresee, predict_rows
from headrace.step.state import State, dump_state, initial_state
from headrace.step.step import step
from headrace.transform.expressions import Filter


class Fussy:
    """Predicts a number that depends on all it has learned; fails on some rows, and has no finite number for others."""

    deterministic, needs_target = True, False
    classes = np.array([0, 1])
    prediction_type = pa.float64()

    def __init__(self, slope: float = 1.5) -> None:
        self.slope, self.total, self.ready = slope, 0.25, True

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        self.total += float(X.sum())

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if (X[:, 0] == 13).any():
            raise ValueError("thirteen")
        return np.where(X[:, 0] == 7, np.nan, X @ np.arange(1, X.shape[1] + 1) * self.slope + self.total)

    def predict_proba(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        chance = 1 / (1 + np.abs(X[:, 0] + self.total))
        return np.column_stack([chance, 1 - chance])

    def parameters(self) -> dict[str, Any]:
        return {"slope": self.slope}

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"]


def task(cut: Cut, *, proba: bool = False, **more: Any) -> ModelTask:
    stream = StreamPlan("t")
    predict = (PredictPlan(stream, (OutputPlan("out"),), proba=proba),)
    features = ("x", category("color", capacity=4, unseen="grow"))
    return ModelTask(name="m", learner=Fussy(), features=features, cut=cut, learn=(stream,), predict=predict, **more)


Row = tuple[int | None, str]
ROWS = st.lists(
    st.tuples(st.sampled_from([None, 0, 1, 2, 3, 7, 13, 20]), st.sampled_from("abcde")), min_size=1, max_size=60
)


def part(rows: Sequence[Row], offset: int) -> Part:
    columns = {"x": pa.array([x for x, _ in rows], pa.float64()), "color": [color for _, color in rows]}
    columns |= {"y": np.arange(len(rows)) * 1.0}
    at = np.arange(offset, offset + len(rows))
    return Part("t", Batch.of(columns, op="c", lsn=at // 3 + 1, index=at, ts_us=0), at // 5 + 1, offset)


@dataclass
class Play:
    """One life of a model, with predictions made ahead as ``kinds`` say, event by event."""

    task: ModelTask
    kinds: Sequence[str] = ()
    stream: StreamPlan = field(default_factory=lambda: StreamPlan("t"))
    state: State = field(init=False)
    outputs: list[Any] = field(default_factory=list)
    waiting: ForeseenRows = field(default_factory=ForeseenRows)
    seen: list[ModelVersion] = field(default_factory=list)
    events: int = 0

    def __post_init__(self) -> None:
        self.state = initial_state(self.task)
        self.seen.append(self.frozen())

    def frozen(self) -> ModelVersion:
        """The model that predicts now, as somebody else would know it."""
        by = self.state.active
        vocabulary = copy.deepcopy(by.vocabulary)
        return replace(by, learner=copy.deepcopy(by.learner), vocabulary=vocabulary)

    def rows(self, rows: Sequence[Row], offset: int, complete: bool) -> None:
        given = part(rows, offset)
        if self.kinds:
            kind = self.kinds[self.events % len(self.kinds)]
            self.waiting.add("t", offset, self.made_ahead(kind, given))
        self.events += 1
        event = self.waiting.on(Rows((given,), complete))
        self.outputs += step(self.task, self.state, event)
        self.waiting.count(event)
        self.seen.append(self.frozen())

    def made_ahead(self, kind: str, given: Part) -> list[Foreseen]:
        batch, stream = given.batch, self.stream
        by = self.frozen()
        if kind == "stale":
            by = self.seen[0]
        elif kind == "another model's":
            by = replace(by, learner=Fussy(slope=9.0))
        elif kind == "other rows":
            others = [
                (5 if x is None else x + 1, color)
                for x, color in zip(batch.column("x").to_pylist(), "abcde" * 99, strict=False)
            ]
            batch = part(others, given.offset).batch
        elif kind == "in halves":
            half = batch.num_rows // 2
            first = foresee(self.task, stream, by, batch.slice(0, half)) if half else []
            return first + [known.moved(half) for known in foresee(self.task, stream, by, batch.slice(half, 99))]
        made = foresee(self.task, stream, by, batch, proba=any(plan.proba for plan in self.task.predict))
        return [spoilt(kind, known) for known in made] * (2 if kind == "twice" else 1)


def spoilt(kind: str, known: Foreseen) -> Foreseen:
    values, failed = known.found["predict"]
    if kind == "too short" and values is not None:
        return replace(known, found={"predict": (values[:-1], failed)})
    if kind == "no features":
        return replace(known, features=known.features[:-1])
    if kind == "out of range":
        return replace(known, rows=known.rows + 1000)
    if kind == "before the first":
        return replace(known, rows=known.rows - 1)
    if kind == "unsorted":
        return replace(known, rows=known.rows[::-1])
    if kind == "a missing row":
        keep = np.arange(len(known.rows)) != 0
        some = None if values is None else values[keep]
        left = {row - 1: why for row, why in failed.items() if row}
        return replace(known, rows=known.rows[keep], features=known.features[keep], found={"predict": (some, left)})
    return known


KINDS = ["right", "stale", "another model's", "other rows", "in halves", "twice", "too short", "no features",
         "out of range", "before the first", "unsorted", "a missing row"]  # fmt: skip


def text(outputs: list[Any]) -> str:
    return "\n".join(f"{topic} {row}" for topic, batch in outputs for row in batch.records.to_pylist())


@given(
    st.lists(st.tuples(ROWS, st.booleans()), min_size=1, max_size=6),
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    st.sampled_from([Cut(rows=4), Cut(rows=32), Cut(transaction=True), Cut()]),
    st.sets(st.integers(0, 5)),
    st.booleans(),
)
def test_whatever_was_made_ahead_changes_nothing(
    events: list[tuple[list[Row], bool]], kinds: list[str], cut: Cut, changes: set[int], proba: bool
) -> None:
    """The model learns, goes back, and is another one between two events; what was made ahead is stale then."""
    plain, ahead = Play(task(cut, proba=proba)), Play(task(cut, proba=proba), kinds)
    offset = 0
    for number, (rows, complete) in enumerate(events):
        for play in (plain, ahead):
            play.rows(rows, offset, complete)
            if number in changes:
                to = replace(play.seen[0], number=play.state.version + 1, vocabulary=play.state.vocabulary)
                to = replace(to, learner=copy.deepcopy(to.learner))
                play.outputs += step(play.task, play.state, VersionChange(to, play.state.version))
                play.outputs += step(play.task, play.state, Tick(0, explicit=True))
        offset += len(rows)
    assert text(plain.outputs) == text(ahead.outputs)
    assert state_bytes(dump_state(plain.state)) == state_bytes(dump_state(ahead.state))


def test_right_ones_are_taken() -> None:
    """Every row whose features are sound, where nothing is learned meanwhile; else those before the first cut's end."""
    rows: list[Row] = [(x, "a") for x in (1, 2, None, 7, 13, 3, 4, 5, 6)]
    fixed = replace(task(Cut()), learn=())
    for made, taken in ((fixed, 8), (task(Cut(rows=3)), 5), (task(Cut(transaction=True)), 2)):
        play = Play(made, ["right"])
        play.rows(rows, 0, True)
        assert (play.waiting.taken, play.waiting.offered) == (taken, 8), made.cut
    halves = Play(fixed, ["in halves"])
    halves.rows(rows, 0, True)
    assert halves.waiting.taken == 8
    for kind in ("stale", "another model's", "unsorted", "too short"):
        play = Play(task(Cut(transaction=True)), ["right", kind])
        play.rows(rows, 0, True)
        before = play.waiting.taken
        play.rows(rows, len(rows), True)
        assert play.waiting.taken == before, kind


class Plain(Fussy):
    """Predicts numbers, and gives no probabilities."""

    classes = None
    predict_proba = None


def test_what_operations_leave_of_the_rows_is_taken_and_evaluations_take_it_too() -> None:
    odd = StreamPlan("t", (Filter(lambda batch: np.asarray(batch.column("x")) > 2),))
    rows: list[Row] = [(1, "a"), (3, "a"), (2, "b"), (4, "b")]
    play = Play(replace(task(Cut()), learn=(), predict=(PredictPlan(odd, (OutputPlan("out"),)),)), ["right"], odd)
    play.rows(rows, 0, True)
    assert play.waiting.taken == 2
    scored = EvaluatePlan(score_spec("t", "regression", ["mae"], 10), odd)
    made = replace(task(Cut()), learner=Plain(), target="y", learn=(), evaluate=(scored,), predict=())
    play = Play(made, ["right"], odd)
    play.rows(rows, 0, True)
    assert play.waiting.taken == 2


def test_a_version_is_its_learner_and_its_state() -> None:
    """Not its number; a learner of other parameters, or one that has learned, is another one."""
    first = ModelVersion(Fussy())
    assert identity_of(first) == identity_of(ModelVersion(Fussy(), number=5))
    assert identity_of(first) != identity_of(ModelVersion(Fussy(slope=2.0)))
    learned = Fussy()
    learned.learn(np.ones((1, 1)))
    assert identity_of(first) != identity_of(ModelVersion(learned))


def test_rows_are_told_apart_by_their_bytes_and_their_type() -> None:
    for dtype in (np.float64, np.float32, np.uint8):
        X = np.arange(21).reshape(7, 3).astype(dtype)
        assert len(set(row_hashes(X).tolist())) == 7
        assert (row_hashes(X)[2:5] == row_hashes(X[2:5])).all()
    assert row_hashes(np.zeros((1, 2)))[0] != row_hashes(np.zeros((1, 2), np.int64))[0]
    assert row_hashes(np.zeros((1, 2)))[0] != row_hashes(np.zeros((1, 3)))[0]
    assert len(row_hashes(np.zeros((3, 0)))) == 3
    large = np.random.default_rng(1).normal(size=(500, 300))
    assert (row_hashes(large)[450:] == row_hashes(large[450:])).all()


def test_predictions_of_parts_are_those_of_the_whole() -> None:
    X = np.column_stack([np.array([1.0, 13, 2, 7, 3]), np.ones(5)])
    predict = Fussy().predict
    whole = predict_rows(predict, X)
    for rows in ([0, 2, 4], [1], [1, 3]):
        rest = [row for row in range(5) if row not in rows]
        found = joined([(np.array(some), predict_rows(predict, X[some])) for some in (rows, rest)], 5)
        assert found[1] == whole[1]
        good = [row for row in range(5) if row not in whole[1]]
        assert found[0][good].tolist() == whole[0][good].tolist()
    assert joined([(np.array([0]), (None, {0: "no"}))], 1) == (None, {0: "no"})
