"""The local engine on scripted sources: exactly once, recovery, ticks, large transactions, retention."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.engines.local.engine import Engine
from headrace.engines.local.tasks import REPLAY_SECONDS, TaskRunner
from headrace.learn.kmeans import KMeans
from headrace.log.memory import MemoryLog
from headrace.log.retention import Keep, apply_retention
from headrace.plan.plan import Plan
from headrace.plan.task import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, StreamTask
from headrace.registry import models as registry
from headrace.registry.requests import Request
from headrace.registry.versions import VersionRecord
from headrace.replay.steps import load_rows
from headrace.replay.verify import verify
from headrace.testing.clock import SettableClock
from headrace.testing.source import ScriptedSource

TRAIN, TEST = "db.public.train", "db.public.test"


def plan(cut: Cut) -> Plan:
    learner = KMeans(k=2, initial_centers=[[0.0], [10.0]], decay=1.0)
    model = ModelTask(
        "m", learner, ("x",), None, cut, (StreamPlan(TRAIN),), (PredictPlan(StreamPlan(TEST), (OutputPlan("out"),)),)
    )
    copied = StreamTask("stream:out→again", StreamPlan("out"), (OutputPlan("again"),))
    return Plan("app", "memory://", (), (model, copied))


def engine(log: MemoryLog, source: ScriptedSource, cut: Cut, clock: SettableClock | None = None) -> Engine:
    source.start(log)
    made = Engine(plan(cut), log, [source], clock=clock or SettableClock())
    registry_write(made, log)
    made.recover()
    return made


def registry_write(made: Engine, log: MemoryLog) -> None:
    with log.transaction() as txn:
        for task in made.plan.models:
            if registry.read_model(log, task.name) is None:
                registry.write_version(txn, VersionRecord(task.name, 1, fingerprint=task.fingerprint()), "app")


def rounds(made: Engine, count: int = 12) -> None:
    for _ in range(count):
        made._round()


def rows(log: MemoryLog, topic: str) -> list[dict[str, Any]]:
    return [row for entry in log.read_topic(topic, limit=10**9) for row in entry.records.to_pylist()]


def feed(source: ScriptedSource, transactions: int = 6) -> None:
    for i in range(transactions):
        source.commit({TRAIN: [{"x": float(i)}, {"x": 10.0 - i}], TEST: [{"x": float(i)}]}, ts_us=i * 400_000)


def everything(log: MemoryLog) -> dict[str, Any]:
    progress = registry.read_progress(log, "m")
    assert progress is not None
    return {
        "out": rows(log, "out"),
        "again": rows(log, "again"),
        "train": rows(log, TRAIN),
        "model": (progress.hash, progress.counters, progress.position, progress.pending),
    }


@pytest.fixture(params=[Cut(transaction=True), Cut(rows=3), Cut(duration_us=1_000_000)], ids=str)
def cut(request: pytest.FixtureRequest) -> Cut:
    return request.param  # type: ignore[no-any-return]


class Slow:
    """A clock that says of each step that it took a second."""

    def __init__(self) -> None:
        self._asked = 0

    def now_us(self) -> int:
        return 0

    def monotonic(self) -> float:
        self._asked += 1
        return float(self._asked)


def repeated(made: Engine) -> int:
    """How many steps a recovery repeats now."""
    steps: list[int] = []
    made.recover(lambda task, step, last: steps.append(step))
    return len(steps)


def test_a_clean_stop_leaves_no_steps_to_repeat(cut: Cut) -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    made = engine(log, source, cut)
    for runner in made.runners:
        runner._due = lambda: False  # type: ignore[method-assign]  # as with a state larger than the log so far
    feed(source)
    rounds(made)
    assert repeated(made) > 0
    before = everything(log)
    made.stop()
    made.run()
    assert repeated(made) == 0
    assert everything(log) == before
    assert verify(made.plan, log).result == "equal"
    made.run()
    progress = registry.read_progress(log, "m")
    assert progress is not None
    assert registry.checkpoint_steps(log, "m")[-1] == progress.step


def test_a_recovery_is_bounded_by_time_where_states_are_large() -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    made = engine(log, source, Cut(transaction=True), Slow())  # type: ignore[arg-type]  # a clock of its own kind
    (runner,) = [item for item in made.runners if item.task.name == "m"]
    feed(source, 1)
    rounds(made, 3)
    runner.progress.size = 1 << 40
    behind = []
    for _ in range(40):
        feed(source, 1)
        rounds(made, 1)
        behind.append(runner.progress.step - (runner.checkpoints or [0])[-1])
        runner.progress.size = 1 << 40
    assert REPLAY_SECONDS - 2 <= max(behind) <= REPLAY_SECONDS + 2


def test_outputs_name_the_model_they_come_from(cut: Cut) -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    rounds(engine(log, source, cut))
    out = rows(log, "out")
    assert len(out) == 6
    assert {row["status"] for row in out} == {"ok"}
    assert {row["model_version"] for row in out} == {1}
    assert out[0]["model_position"] is None
    assert out[-1]["model_position"] is not None
    assert [row["x"] for row in rows(log, "again")] == [row["x"] for row in out]
    assert source.acknowledged == source.end()


def test_a_restart_after_every_round_changes_nothing(cut: Cut) -> None:
    whole, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    rounds(engine(whole, source, cut), 30)
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    for _ in range(30):
        rounds(engine(log, source, cut), 1)
    assert everything(log) == everything(whole)


def test_a_lost_connection_changes_nothing(cut: Cut) -> None:
    whole, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    rounds(engine(whole, source, cut), 30)
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    made = engine(log, source, cut)
    for _ in range(30):
        rounds(made, 1)
        source.lose_connection()
    assert everything(log) == everything(whole)


def test_a_transaction_in_pieces_is_one_transaction(cut: Cut) -> None:
    logs = []
    for pieces in (1, 4):
        log, source = MemoryLog(), ScriptedSource("db")
        source.commit({TRAIN: [{"x": 1.0}]})
        source.commit({TRAIN: [{"x": float(i)} for i in range(9)], TEST: [{"x": 3.0}] * 3}, pieces=pieces)
        source.commit({TEST: [{"x": 3.0}]}, ts_us=2_000_000)
        made = engine(log, source, cut)
        rounds(made, 3)
        if pieces == 4:
            assert len(rows(log, TRAIN)) == 1, "a part of a transaction is visible"
        rounds(made, 12)
        logs.append(everything(log))
    assert logs[0] == logs[1]


def test_a_large_transaction_is_learned_after_a_crash_in_its_middle() -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    source.commit({TRAIN: [{"x": float(i)} for i in range(9)]}, pieces=3)
    rounds(engine(log, source, Cut(rows=3)), 2)
    source.commit({TEST: [{"x": 3.0}]})
    made = engine(log, source, Cut(rows=3))
    rounds(made)
    assert len(rows(log, TRAIN)) == 9
    assert rows(log, "out")[0]["model_position"] == "0/A:8"


def test_ticks_are_recorded_and_replayed() -> None:
    log, source, clock = MemoryLog(), ScriptedSource("db"), SettableClock(100_000)
    source.commit({TRAIN: [{"x": 1.0}]}, ts_us=100_000)
    made = engine(log, source, Cut(duration_us=1_000_000), clock)
    rounds(made, 3)
    assert made.runners[0].state.open_batch.rows == 1
    clock.advance(1.0)
    rounds(made, 2)
    assert made.runners[0].state.counters.cuts == 1
    request = made.request(Request("tick", "m", 0, "test"))
    rounds(made, 1)
    assert request.done.is_set()
    assert made.runners[0].state.counters.cuts == 2
    again = engine(log, source, Cut(duration_us=1_000_000), clock)
    assert again.runners[0].state.counters.cuts == 2
    assert verify(made.plan, log).result == "equal"


def test_verify_finds_what_was_changed(cut: Cut) -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    made = engine(log, source, cut)
    rounds(made, 30)
    report = verify(made.plan, log)
    assert (report.result, report.exit_code) == ("equal", 0)
    assert report.tasks[0].rows == 6
    assert report.tasks[0].hashes > 0
    with log.transaction() as txn:
        progress = registry.read_progress(log, "m")
        assert progress is not None
        progress.step += 1
        registry.write_progress(txn, "m", progress)
    assert verify(made.plan, log).exit_code == 1


def test_checkpoints_may_be_thinned_while_a_log_is_verified(cut: Cut) -> None:
    """Its pipeline runs, and keeps the newest ones."""
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    made = engine(log, source, cut)
    rounds(made, 30)
    made.stop()
    made.run()
    known = verify(made.plan, log).tasks[0].checkpoints

    def thin(task: str, step: int, last: int) -> None:
        with log.transaction() as txn:
            for name in log.records("checkpoint", f"{task}/"):
                txn.delete("checkpoint", name)

    report = verify(made.plan, log, on_step=thin)
    assert report.result == "equal"
    assert report.tasks[0].checkpoints < known


def test_a_reset_model_learns_again_and_answers_nothing_twice(cut: Cut) -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source)
    rounds(engine(log, source, cut), 30)
    before = everything(log)
    with log.transaction() as txn:
        assert registry.reset(log, txn, "m", relearn=True, ts_us=0) == 2
    made = engine(log, source, cut)
    rounds(made, 5)
    after = everything(log)
    assert after["model"][0] == before["model"][0]
    assert after["out"] == before["out"]
    source.commit({TEST: [{"x": 1.0}]}, ts_us=9_000_000)
    rounds(made, 5)
    assert [row["model_version"] for row in rows(log, "out")] == [1] * 6 + [2]
    assert verify(made.plan, log).result == "equal"


def test_rows_that_are_refused_by_a_model_that_learns_again_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Their dead letters, if any, were written in the model's first life: silence would look like nothing to learn."""
    app = hr.App("again", log="memory://")
    model = app.model("m", hr.KMeans(2), features=["x"])
    model.learn(app.topic("rows", append=True), every=2)
    model.predict(app.topic("rows")).to("out")
    with app.start() as running:
        running.append("rows", [{"x": 1.0}, {"x": 2.0}, {"x": None}, {"x": "many"}, {"x": 3.0}])
        running.wait()
        log = running.log
    letters = len(app.topic("rows.dlq").read())
    with log.transaction() as txn:
        registry.reset(log, txn, "m", relearn=True, ts_us=0)
    caplog.clear()
    with app.start() as running:
        running.wait()
    said = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "refused_again"]
    text = "model m: learns again, and a row of «rows» cannot be used as it is declared now: the feature «x» is NULL"
    assert said == [text]
    assert len(app.topic("rows.dlq").read()) == letters


def test_retention_keeps_what_recovery_needs(cut: Cut) -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source, 100)
    made = engine(log, source, cut)
    rounds(made, 140)
    hashed = everything(log)["model"]
    dropped = apply_retention(log, Keep(bytes=1), made.needed(), 0)
    assert dropped[TRAIN] > 0
    again = engine(log, source, cut)
    assert again.runners[0].progress.hash == hashed[0]
    assert verify(made.plan, log).result == "equal"


def test_rows_are_read_in_whole_transactions() -> None:
    log, source = MemoryLog(), ScriptedSource("db")
    feed(source, 3)
    rounds(engine(log, source, Cut(rows=3)))
    load = load_rows(log, (TRAIN, TEST), after=0)
    assert load is not None
    assert load.event.complete
    assert load.inputs == {TRAIN: [0, 6], TEST: [0, 3]}


def test_answers_given_elsewhere_are_no_silence() -> None:
    """A window over predictions does not close while answers over HTTP come, though its stream has no rows."""
    app = hr.App("shop", log="memory://")
    model = app.model("m", hr.KMeans(2), features=["x"])
    scores = model.predict(app.topic("rows", append=True)).to("scores")
    model.serve("/m", log_to="scores")
    scores.window("1 min").mean("x").to("means")
    (task,) = app.plan().models
    clock = SettableClock()
    log = MemoryLog()
    runner = TaskRunner(app.plan(), task, log, clock)
    assert runner.due_tick(0) is None
    clock.advance(100)
    answers = {"x": [1.0], "prediction": [0], "status": ["ok"], "model": ["m"], "model_version": [1]}
    served = Batch.of({**answers, "model_position": pa.nulls(1, pa.string())}, ts_us=1)
    with log.transaction() as txn:
        txn.append(app.plan().served["scores"], served.records)
    with log.transaction() as txn:
        assert runner.advance(txn) is not None
    assert runner.due_tick(0) is None
    clock.advance(61)
    assert runner.due_tick(0) is not None
