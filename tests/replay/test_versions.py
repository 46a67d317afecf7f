"""Versions of a model on the local engine: those that end, going back to one, beginnings that are stored."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from headrace.errors import HeadraceError
from headrace.learn.kmeans import KMeans
from headrace.learn.state import load_state, state_hash
from headrace.plan.plan import Plan
from headrace.plan.task import Cut, Versions
from headrace.registry import models as registry
from headrace.registry.requests import Request, put_request, read_requests
from headrace.registry.versions import read_artifact
from headrace.replay.verify import verify

from .bench import CUTS, TRAIN, A, B, Bench, C, learner, task, tick


@pytest.fixture(params=CUTS, ids=str)
def cut(request: pytest.FixtureRequest) -> Cut:
    return request.param  # type: ignore[no-any-return]  # pytest's own type


def test_a_version_ends_after_every_so_many_rows(cut: Cut) -> None:
    bench = Bench(task(cut, Versions(every=8)))
    bench.feed([*A, *B, *C, *A])
    tick(bench)
    versions = bench.versions
    assert len(versions) >= 4
    for one in list(versions)[:-1]:
        following = bench.version(one.version + 1)
        assert (following.parent, following.reason) == (one.version, "every 8 rows")
        assert following.began["position"] == one.position
        assert following.began["offsets"] == one.learned
        assert one.ended_us is not None and one.kept
        data = read_artifact(bench.log, one.artifact)
        assert data is not None
        assert state_hash(load_state(data)) == one.hash
        assert one.size == len(data)
        assert set(one.libraries) == {"python", "numpy"}
    assert versions.current is not None and versions.current.ended_us is None
    assert versions.fingerprint(versions.current) == bench.plan.models[0].fingerprint()
    assert {row["model_version"] for row in bench.answers()} <= set(versions.versions)
    assert registry.read_model(bench.log, "m")["version"] == versions.current.version  # type: ignore[index]  # it is there
    assert verify(bench.plan, bench.log).result == "equal"


def test_restarts_store_the_same_versions(cut: Cut) -> None:
    whole, broken = (Bench(task(cut, Versions(every=6))) for _ in range(2))
    whole.feed([*A, *B])
    for i in range(0, 16, 4):
        broken.feed([*A, *B][i : i + 4])
        broken.start()
    for one in whole.versions:
        other = broken.version(one.version)
        assert (one.hash, one.position, one.rows, one.learned) == (
            other.hash,
            other.position,
            other.rows,
            other.learned,
        )
    assert len(whole.versions) == len(broken.versions)


def test_only_the_newest_those_with_tags_and_those_gone_back_to_keep_their_states() -> None:
    bench = Bench(task(Cut(transaction=True), Versions(every=2, last=2)))
    bench.feed(A[:4])
    tagging = bench.engine.request(Request("tag", "m", 1, "me@here", tag="best"))
    bench.rounds(1)
    assert tagging.result == {"model": "m", "version": 1, "tags": ["best"]}
    bench.ask(2)
    bench.feed([*A, *B])
    kept = [one.version for one in bench.versions if one.kept]
    newest = max(bench.versions.versions)
    assert kept == [1, 2, newest - 2, newest - 1]
    assert set(bench.log.records("artifact")) == {f"m/{number:06d}" for number in kept}
    gone = bench.ask(4)
    assert gone.error is not None
    assert "not kept" in gone.error.message


def test_after_a_rollback_the_model_is_as_if_the_rows_between_had_never_come(cut: Cut) -> None:
    bench = Bench(task(cut, Versions(every=8)))
    bench.feed(A)
    tick(bench)
    first = bench.version(1)
    assert first.rows == 8
    bench.feed(B)
    tick(bench)
    before = bench.state.version
    asked = bench.ask(1)
    assert asked.error is None
    assert asked.result["begun"]
    now = bench.state
    assert now.version == before + 1 == asked.result["version"]
    assert (str(now.position), now.learned_rows) == (first.position, first.rows)
    assert registry.read_progress(bench.log, "m").hash == first.hash  # type: ignore[union-attr]  # it is there
    began = bench.version(now.version)
    assert (began.parent, began.reason, began.by) == (1, "rollback to version 1", "me@here")
    assert began.began["artifact"] == "m/000001"
    bench.feed(C)
    tick(bench)

    fresh = learner()
    for i in range(0, 8, 2) if cut.transaction else range(0, 8, 4):
        fresh.learn(np.array(A[i : i + (2 if cut.transaction else 4)]).reshape(-1, 1))
    if not cut.duration_us:
        for i in range(0, 8, 2) if cut.transaction else range(0, 8, 4):
            fresh.learn(np.array(C[i : i + (2 if cut.transaction else 4)]).reshape(-1, 1))
        fresh_and_tick = copy.deepcopy(fresh)
        assert state_hash(bench.state.learner.state()) in (
            state_hash(fresh.state()),
            state_hash(fresh_and_tick.state()),
        )
    report = verify(bench.plan, bench.log)
    assert report.result == "equal", report
    again = bench.start()
    assert state_hash(again.runners[0].state.learner.state()) == state_hash(now.learner.state())  # type: ignore[union-attr]  # it has one


def test_the_same_as_a_pipeline_that_never_saw_the_rows_between(cut: Cut) -> None:
    """Rollback to version 1, then C: the hash of a model that learned A, then C."""
    other = Bench(task(cut, Versions(every=8)))
    other.feed(A)
    tick(other)
    bench = Bench(task(cut, Versions(every=8)))
    bench.feed(A)
    tick(bench)
    bench.feed(B)
    tick(bench)
    bench.ask(1)
    # The same instants for both, so that a duration cuts C in the same places.
    other.clock.advance((bench.clock.now_us() - other.clock.now_us()) / 1e6)
    for item in (bench, other):
        item.feed(C)
        tick(item)
    assert state_hash(bench.state.learner.state()) == state_hash(other.state.learner.state())
    assert bench.state.learned_rows == other.state.learned_rows == 16
    assert bench.answers()[-1]["prediction"] == other.answers()[-1]["prediction"]


def test_a_rollback_waits_for_the_end_of_an_open_cut() -> None:
    bench = Bench(task(Cut(rows=4), Versions(every=4)))
    bench.feed([*A, *B[:2]])
    assert bench.state.open_batch.rows == 2
    asked = bench.ask(1)
    assert not asked.result["begun"]
    assert bench.state.version == 3
    for restart in (False, True):
        if restart:
            bench.start()
        assert bench.state.change is not None
    bench.feed(B[2:4])
    assert bench.state.version == 4
    assert bench.version(3).rows == 12
    assert (bench.version(4).parent, bench.version(4).by) == (1, "me@here")
    assert bench.version(4).began["offsets"] == {TRAIN: 12}
    assert bench.state.learned_rows == 4
    assert verify(bench.plan, bench.log).result == "equal"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (3, "is the current one"),
        (7, "no version «7»"),
        ("best", "no version «best»"),
    ],
    ids=["current", "unknown", "unknown tag"],
)
def test_what_cannot_be_gone_back_to_is_refused_and_nothing_stops(version: int | str, words: str) -> None:
    bench = Bench(task(Cut(transaction=True), Versions(every=4)))
    bench.feed(A)
    asked = bench.ask(version)
    assert isinstance(asked.error, HeadraceError)
    assert words in str(asked.error)
    bench.feed(B)
    assert bench.state.counters.learned == 16


def test_a_request_in_the_log_is_taken_up_at_the_next_start() -> None:
    bench = Bench(task(Cut(transaction=True), Versions(every=4)))
    bench.feed(A)
    with bench.log.transaction() as txn:
        put_request(txn, Request("rollback", "m", 1, "me@here"))
    bench.source.commit({TRAIN: [{"x": 3.0}] * 2}, ts_us=1)
    bench.start()
    bench.rounds(2)
    assert read_requests(bench.log) == []
    assert bench.version(4).parent == 1
    assert bench.state.learned_rows == 6
    assert verify(bench.plan, bench.log).result == "equal"


def test_a_request_that_makes_no_sense_does_not_keep_a_pipeline_from_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(task(Cut(transaction=True)))
    bench.feed(A)
    with bench.log.transaction() as txn:
        put_request(txn, Request("rollback", "m", 9, "me@here"))
    bench.start()
    bench.rounds(2)
    assert "no version «9»" in caplog.text
    assert read_requests(bench.log) == []
    bench.feed(B)
    assert bench.state.counters.learned == 16


def test_a_version_that_was_declared_otherwise_is_refused() -> None:
    bench = Bench(task(Cut(transaction=True), Versions(every=4)))
    bench.feed(A)
    with bench.log.transaction() as txn:
        registry.reset(bench.log, txn, "m", relearn=False, ts_us=5)
    other = KMeans(k=2, initial_centers=[[0.0], [10.0]], decay=0.5)
    bench.plan = Plan("app", "memory://", (), (task(Cut(transaction=True), Versions(every=4), other),))
    with bench.log.transaction() as txn:
        registry.declare(bench.log, txn, "m", bench.plan.models[0].fingerprint(), 6, "app", None)
    bench.start()
    asked = bench.ask(1)
    assert "declared differently: KMeans decay: 1.0 -> 0.5" in str(asked.error)


def test_going_back_before_a_reset() -> None:
    bench = Bench(task(Cut(transaction=True), Versions(every=4)))
    bench.feed(A)
    with bench.log.transaction() as txn:
        assert registry.reset(bench.log, txn, "m", relearn=False, ts_us=5) == 4
    bench.start()
    bench.feed(B[:2])
    assert (bench.version(4).parent, bench.version(4).began["offsets"][TRAIN]) == (None, 8)
    bench.ask(2)
    assert bench.state.learned_rows == 8
    assert verify(bench.plan, bench.log).result == "equal"


class Drawn:
    """A learner that begins with weights that no other process has."""

    deterministic = True
    stores_beginning = True

    def __init__(self) -> None:
        self.weight = float(np.random.default_rng().random())
        self.rows = 0

    def learn(self, X: Any, y: Any = None) -> None:
        self.weight = self.weight * 0.9 + float(X.sum())
        self.rows += len(X)

    def predict(self, X: Any) -> Any:
        return X[:, 0] * self.weight

    @property
    def ready(self) -> bool:
        return True

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight, self.rows = state["weight"], state["rows"]


def test_a_beginning_that_is_drawn_is_stored_before_the_first_step() -> None:
    bench = Bench(task(Cut(transaction=True), model=Drawn()))
    began = bench.state.learner.weight
    # Another process draws other weights.
    bench.plan = Plan("app", "memory://", (), (task(Cut(transaction=True), model=Drawn()),))
    bench.start()
    assert bench.state.learner.weight == began
    bench.feed([*A, *B])
    hashed = state_hash(bench.state.learner.state())
    bench.plan = Plan("app", "memory://", (), (task(Cut(transaction=True), model=Drawn()),))
    report = verify(bench.plan, bench.log)
    assert (report.result, report.tasks[0].from_step) == ("equal", 0)
    assert registry.checkpoint_steps(bench.log, "m")[0] == 0
    bench.start()
    assert state_hash(bench.state.learner.state()) == hashed


@pytest.mark.parametrize("relearn", [True, False], ids=["earliest", "latest"])
def test_a_reset_makes_a_new_beginning(relearn: bool) -> None:
    bench = Bench(task(Cut(transaction=True), model=Drawn()))
    bench.feed(A)
    steps = bench.engine.runners[0].progress.step
    with bench.log.transaction() as txn:
        registry.reset(bench.log, txn, "m", relearn=relearn, ts_us=5)
    bench.plan = Plan("app", "memory://", (), (task(Cut(transaction=True), model=Drawn()),))
    began = bench.plan.models[0].learner.weight  # type: ignore[attr-defined]  # a Drawn
    bench.start()
    assert registry.checkpoint_steps(bench.log, "m") == [steps]
    assert bench.state.learner.weight == began
    bench.feed([*B, *C])
    assert steps in registry.checkpoint_steps(bench.log, "m")
    bench.plan = Plan("app", "memory://", (), (task(Cut(transaction=True), model=Drawn()),))
    report = verify(bench.plan, bench.log)
    assert (report.result, report.tasks[0].from_step) == ("equal", steps)
