"""The pipeline with grades, windows, alarms and trainings that the crash tests kill.

Run as `python tests/crash/fish.py LOG [barrier|when_ready]`: it sends what has not been sent yet, catches up and ends.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from river import drift

import headrace as hr

OUTPUTS = ("predictions", "grades", "windows", "alarms", "drifts", "weight-training", "all-windows")
ROWS = 120
CHANGE = 50


def build(log: str, swap: Any = "barrier") -> hr.App:
    """Everything weighs more from one row on; a label comes five rows later, some too late, one never, one twice."""
    app = hr.App("fish", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    first = Path(__file__).with_name("fish.csv")
    features = ["x", hr.category("kind")]
    weight = app.model("weight", hr.LinearRegression(), features=features, target="y", initial=hr.csv(first))
    grades = weight.predict(measured).to("predictions").grade(weighed, on="id", within="30 s", time="at").to("grades")
    windows = grades.window("20 s").mean("error").to("windows")
    alarm = windows.above(1.0).to("alarms")
    grades.drift("error", drift.PageHinkley(min_instances=5, threshold=2.0)).to("drifts")
    app.topic("grades").window("10 s", every="5 s", by="model_version").count().to("all-windows")
    weight.retrain(on=alarm, rows=grades.last(15), swap=swap)
    return app


def rows() -> list[tuple[str, dict[str, Any]]]:
    """What is sent, in order."""
    start = datetime(2026, 1, 1, tzinfo=UTC)
    timed: list[tuple[float, str, dict[str, Any]]] = []
    for i in range(ROWS):
        kind = "a" if i < CHANGE else "b"
        timed.append((i, "measured", {"id": i, "x": float(i % 5), "kind": kind}))
        delay = 40 if i % 17 == 0 else 5
        y = 2.0 * (i % 5) + (8.0 if i >= CHANGE else 1.0) + 0.01 * (i % 3)
        if i % 23:
            timed.append((i + delay + 0.5, "weighed", {"id": i, "y": y}))
        if i % 19 == 0:
            timed.append((i + delay + 0.6, "weighed", {"id": i, "y": y + 0.5}))
    timed.sort(key=lambda one: one[0])
    return [(topic, {**row, "at": (start + timedelta(seconds=at)).isoformat()}) for at, topic, row in timed]


def send(running: Any) -> None:
    """Send the rest, in slices of one to three rows of a topic."""
    at = {topic: running.appended(topic, "me") for topic in ("measured", "weighed")}
    seen = dict.fromkeys(at, 0)
    for topic, row in rows():
        if seen[topic] >= at[topic]:
            running.append(topic, row, producer_id="me", sequence=seen[topic])
        seen[topic] += 1


if __name__ == "__main__":
    with build(*sys.argv[1:]).start() as running:
        send(running)
        running.wait(60)
        if running.engine.runners[0].state.training is not None:
            running.engine.wait_for(lambda _: running.engine.runners[0].state.training is None, 60)
