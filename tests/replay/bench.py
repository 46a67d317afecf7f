"""An engine on a log in memory and a scripted database, for tests of versions and of going back to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.engines.local.admin_requests import AdminRequest
from headrace.engines.local.engine import Engine
from headrace.learn.kmeans import KMeans
from headrace.log.memory import MemoryLog
from headrace.plan.plan import Plan
from headrace.plan.task import Cut, ModelTask, OutputPlan, PredictPlan, StreamPlan, Versions
from headrace.registry import models as registry
from headrace.registry.requests import Request
from headrace.registry.versions import VersionList, VersionRecord
from headrace.testing.clock import SettableClock
from headrace.testing.source import ScriptedSource

TRAIN, TEST = "db.public.train", "db.public.test"
CUTS = [Cut(transaction=True), Cut(rows=4), Cut(duration_us=1_000_000)]


def learner() -> KMeans:
    return KMeans(k=2, initial_centers=[[0.0], [10.0]], decay=1.0)


def task(cut: Cut, versions: Versions | None = None, model: Any = None) -> ModelTask:
    answers = PredictPlan(StreamPlan(TEST), (OutputPlan("out"),))
    chosen = versions or Versions()
    return ModelTask("m", model or learner(), ("x",), None, cut, (StreamPlan(TRAIN),), (answers,), versions=chosen)


class Bench:
    """An engine on a log in memory that can be started again."""

    def __init__(self, one: ModelTask) -> None:
        self.plan = Plan("app", "memory://", (), (one,))
        self.log, self.source, self.clock = MemoryLog(), ScriptedSource("db"), SettableClock(1)
        self.engine = self.start()

    def start(self) -> Engine:
        self.source.start(self.log)
        self.engine = Engine(self.plan, self.log, [self.source], clock=self.clock)
        with self.log.transaction() as txn:
            for model in self.plan.models:
                if registry.read_model(self.log, model.name) is None:
                    registry.declare(self.log, txn, model.name, model.fingerprint(), 0, "app", None)
        self.engine.recover()
        return self.engine

    def feed(self, values: Sequence[float], *, size: int = 2) -> None:
        for i in range(0, len(values), size):
            rows = [{"x": float(value)} for value in values[i : i + size]]
            self.source.commit({TRAIN: rows, TEST: [{"x": float(values[i])}]}, ts_us=self.clock.now_us())
            self.clock.advance(0.4)
        self.rounds(len(values) // size + 3)

    def rounds(self, count: int = 3) -> None:
        for _ in range(count):
            self.engine._round()

    def ask(self, version: int | str) -> AdminRequest:
        asked = self.engine.request(Request("rollback", "m", version, "me@here"))
        self.rounds(1)
        assert asked.done.is_set()
        return asked

    @property
    def state(self) -> Any:
        return self.engine.runners[0].state

    @property
    def versions(self) -> VersionList:
        return VersionList.read(self.log, "m")

    def version(self, number: int) -> VersionRecord:
        return self.versions.versions[number]

    def answers(self, first: int = 0) -> list[dict[str, Any]]:
        entries = self.log.read_topic("out", limit=10**9)
        return [row for entry in entries for row in entry.records.to_pylist()][first:]


A = [1.0, 2.0, 9.0, 8.0, 3.0, 7.0, 2.5, 8.5]
B = [5.0, 5.5, 6.0, 4.0, 4.5, 6.5, 5.2, 4.8]
C = [0.5, 9.5, 1.5, 10.5, 0.2, 9.9, 1.1, 9.1]


def tick(bench: Bench) -> None:
    """Close an open cut, were it a duration's."""
    bench.engine.request(Request("tick", "m", 0, "test"))
    bench.rounds(1)
