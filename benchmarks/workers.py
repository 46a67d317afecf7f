"""A model that is expensive, predicted by the engine alone and by workers beside it: `app.run(workers=…)`.

The whole pipeline on a log in a file, warm: rows are appended, predicted in order, learned every 2,000 rows, and are
durable at the end. One model computes 300 microseconds a row, on as many cores as there are workers; the other one
waits 50 ms for each block of 64 rows, as one does that asks another machine.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr
from headrace.arrays import Array
from headrace.engines.local.pool import ProcessPool
from headrace.step.predictions import BLOCK_ROWS

ROW_S, BLOCK_S = 300e-6, 0.05
CUT, AT_ONCE = 2_000, 1_000
PAIRS = 3


class Expensive:
    """Predicts by what it was given to do for each row; learns a sum."""

    deterministic, ready = True, True

    def __init__(self, turns: int = 0, wait_s: float = 0.0) -> None:
        self.turns, self.wait_s, self.total = turns, wait_s, 0.0

    def learn(self, X: Array, y: Array | None = None) -> None:
        """Add rows."""
        self.total += float(X.sum())

    def predict(self, X: Array) -> Array:
        """Compute, or wait."""
        time.sleep(self.wait_s)
        return np.array([_computed(value, self.turns) for value in (X[:, 0] + self.total).tolist()])

    def parameters(self) -> dict[str, Any]:
        """Return what it was made with."""
        return {"turns": self.turns, "wait_s": self.wait_s}

    def state(self) -> dict[str, Any]:
        """Return the sum."""
        return {"total": self.total}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a sum."""
        self.total = state["total"]


def _computed(value: float, turns: int) -> float:
    for _ in range(turns):
        value = math.sin(value + 0.1)
    return value


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second with workers, and in one process."""
    began = time.perf_counter()
    _computed(1.0, 1_000_000)
    turns = max(1, int(ROW_S / (time.perf_counter() - began) * 1_000_000))
    return [
        _measure("computes, 2 workers", Expensive(turns=turns), 2, rows, 1.7),
        _measure("waits, 4 workers", Expensive(wait_s=BLOCK_S), 4, rows, 3.3),
    ]


def _measure(name: str, learner: Expensive, workers: int, rows: int, target: float) -> dict[str, Any]:
    pairs = [(_seconds(learner, 1, rows), _seconds(learner, workers, rows)) for _ in range(PAIRS)]
    return {
        "name": name,
        "reference": rows / statistics.median(alone for alone, _ in pairs),
        "ours": rows / statistics.median(beside for _, beside in pairs),
        "ratio": statistics.median(alone / beside for alone, beside in pairs),
        "unit": "rows/s",
        "target": target,
        "details": {"row_s": ROW_S, "block_s": BLOCK_S, "block_rows": BLOCK_ROWS, "cut": CUT, "pairs": PAIRS},
    }


def _seconds(learner: Expensive, workers: int, rows: int) -> float:
    """Seconds from the first row appended to the last one predicted and durable, where workers have begun."""
    with tempfile.TemporaryDirectory() as folder:
        app = hr.App("bench", log=Path(folder) / "bench.headrace")
        given = app.topic("t", append=True)
        model = app.model("m", learner, features=["x"])
        model.learn(given, every=CUT)
        model.predict(given).to("out")
        with app.start(workers=workers) as running:
            _append(running, 0, 2 * AT_ONCE)
            if isinstance(pool := running.engine.workers, ProcessPool):
                pool.begin()
            began = time.perf_counter()
            _append(running, 2 * AT_ONCE, rows)
            return time.perf_counter() - began


def _append(running: hr.Running, start: int, rows: int) -> None:
    """Append rows as one transaction, which the engine takes as one event, and wait for it."""
    running.append("t", [{"x": float(i)} for i in range(start, start + rows)])
    running.wait(None)
