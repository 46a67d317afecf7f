"""Learning and answering a stream with `model.evaluate` at its default cadence, against the same without it.

Through `step`, as every engine calls it: transactions of 50 rows, 2,000 rows an event, learned every 500 rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

import headrace as hr
from headrace.batch import Batch
from headrace.plan.task import ModelTask
from headrace.step.events import Part, Rows
from headrace.step.state import initial_state
from headrace.step.step import step

PAIRS = 5
EVENT, TRANSACTION, CUT = 2_000, 50, 500
MODELS: dict[str, tuple[int, Callable[[], Any]]] = {
    "SGDClassifier, 10 features": (10, lambda: SGDClassifier(random_state=0)),
    "MLPClassifier, 64 features": (64, lambda: MLPClassifier((32,), random_state=0)),
}


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second with evaluation, and without."""
    return [_measure(name, width, make, rows) for name, (width, make) in MODELS.items()]


def _measure(name: str, width: int, make: Callable[[], Any], rows: int) -> dict[str, Any]:
    events = _events(width, rows)
    pairs = []
    for _ in range(PAIRS):
        plain = _seconds(_task(width, make, evaluate=False), events)
        pairs.append((plain, _seconds(_task(width, make, evaluate=True), events)))
    return {
        "name": name,
        "reference": rows / statistics.median(plain for plain, _ in pairs),
        "ours": rows / statistics.median(evaluated for _, evaluated in pairs),
        "ratio": statistics.median(plain / evaluated for plain, evaluated in pairs),
        "unit": "rows/s",
        "target": 0.9,
        "details": {"event": EVENT, "transaction": TRANSACTION, "cut": CUT},
    }


def _events(width: int, rows: int) -> list[Rows]:
    chance = np.random.default_rng(3)
    found = []
    for start in range(0, rows, EVENT):
        X = chance.normal(size=(EVENT, width))
        columns = {f"x{i}": X[:, i] for i in range(width)} | {"y": (X[:, :3].sum(axis=1) > 0).astype(np.int64)}
        place = np.arange(start, start + EVENT)
        batch = Batch.of(
            pa.RecordBatch.from_pydict(columns),
            lsn=(1 + place // TRANSACTION).astype(np.uint64),
            index=place % TRANSACTION,
        )
        found.append(Rows((Part("t", batch, np.full(EVENT, 1 + start), start),), True))
    return found


def _task(width: int, make: Callable[[], Any], *, evaluate: bool) -> ModelTask:
    app = hr.App("bench", log="memory://")
    model = app.model("m", make(), features=[f"x{i}" for i in range(width)], target="y", classes=[0, 1])
    model.learn(app.topic("t"), every=CUT)
    model.predict(app.topic("t")).to("answers")
    if evaluate:
        model.evaluate(app.topic("t"))
    (task,) = app.plan().models
    return task


def _seconds(task: ModelTask, events: list[Rows]) -> float:
    state = initial_state(task)
    began = time.perf_counter()
    for event in events:
        step(task, state, event)
    return time.perf_counter() - began
