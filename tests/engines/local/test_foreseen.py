"""Predictions that a source's reader has made ahead: from the piece to the step, and what they were good for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import headrace as hr
from headrace.capture.base import Piece
from headrace.engines.local.engine import Engine
from headrace.engines.local.serving.metrics import foreseen_metrics
from headrace.log.memory import MemoryLog
from headrace.plan.plan import Plan
from headrace.position import Lsn
from headrace.step.model_version import ModelVersion
from headrace.step.predictions import foresee
from headrace.testing.clock import SettableClock
from headrace.testing.source import ScriptedSource


class Foreseeing(ScriptedSource):
    """Predicts rows of «test» ahead, by a version that it is told of."""

    def __init__(self, name: str, plan: Plan, by: Callable[[], ModelVersion]) -> None:
        super().__init__(name)
        self.task, self.by = plan.models[0], by

    def poll(self, timeout: float) -> list[Piece[Lsn]]:
        return [replace(piece, foreseen=self.of(piece)) for piece in super().poll(timeout)]

    def of(self, piece: Piece[Lsn]) -> Any:
        stream = self.task.predict[0].stream
        return tuple(
            tuple(foresee(self.task, stream, self.by(), batch)) if topic == stream.topic else ()
            for topic, batch in piece.batches
        )


def declared() -> hr.App:
    app = hr.App("a", log="memory://")
    features = ["x", hr.category("color", capacity=4)]
    m = app.model("m", hr.KMeans(k=2, initial_centers=[[0] * 5, [9] * 5]), features=features)
    m.learn(app.topic("train"), every=4)
    m.predict(app.topic("test")).to("out")
    return app


def fed(source: ScriptedSource, engine: Engine, log: MemoryLog) -> dict[str, Any]:
    source.start(log)
    engine.recover()
    for i in range(12):
        rows = [{"x": float(i + j) if (i + j) % 5 else None, "color": "abc"[(i + j) % 3]} for j in range(6)]
        source.commit({"train": rows[:2], "test": rows} if i % 3 else {"test": rows}, pieces=2 if i == 8 else 1)
        engine._round()
        engine._round()
        if i == 5:
            source.lose_connection()
    rows_of = {
        topic: [row for entry in log.read_topic(topic) for row in entry.records.to_pylist()] for topic in log.topics()
    }
    return {**rows_of, "positions": log.records("position"), "checkpoints": log.records("checkpoint")}


def known(engines: list[Engine], first: list[ModelVersion], newest: bool) -> ModelVersion:
    """The model as it is now, or as it was at first."""
    now = engines[0].runners[0].state.active
    first[:] = first or [replace(now, learner=copy.deepcopy(now.learner))]
    return now if newest else first[0]


def test_what_was_predicted_ahead_is_taken_and_changes_nothing() -> None:
    """By the model as it is, all are taken that no cut comes before; by the first one, those before the first cut."""
    plan, log = declared().plan(), MemoryLog()
    plain = ScriptedSource("db")
    expected = fed(plain, Engine(plan, log, [plain], clock=SettableClock()), log)
    taken = []
    for newest in (True, False):
        log = MemoryLog()
        engines: list[Engine] = []
        first: list[ModelVersion] = []

        def by(
            engines: list[Engine] = engines, first: list[ModelVersion] = first, newest: bool = newest
        ) -> ModelVersion:
            now = engines[0].runners[0].state.active
            first[:] = first or [replace(now, learner=copy.deepcopy(now.learner))]
            return now if newest else first[0]

        source = Foreseeing("db", plan, by)
        engines.append(Engine(plan, log, [source], clock=SettableClock()))
        assert fed(source, engines[0], log) == expected
        foreseen = engines[0].runners[0].foreseen
        taken.append(foreseen.taken)
        assert 0 < foreseen.taken <= foreseen.offered
        gauges = {gauge.name: gauge.value for gauge in foreseen_metrics(foreseen, "m")}
        assert gauges == {"model_foreseen_rows": foreseen.offered, "model_foreseen_taken": foreseen.taken}
    assert taken[0] > 2 * taken[1]
