"""A training beside the pipeline runs on an executor, and its model takes over."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from sklearn.linear_model import SGDRegressor

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.crash import harness
from tests.waiting import wait_until

from .outcomes import jobs

pytestmark = pytest.mark.spark


def build(log: str, name: str, first: Path) -> hr.App:
    app = hr.App(name, log=log)
    asked, told = app.topic(f"{name}-asked", append=True), app.topic(f"{name}-told", append=True)
    learner = SGDRegressor(learning_rate="constant", eta0=0.01, random_state=3)
    model = app.model("price", learner, features=["x"], target="y", initial=hr.csv(first))
    grades = model.predict(asked).to(f"{name}-out").grade(told, on="id", within="1 h").to(f"{name}-grades")
    alarm = grades.window(4, every=4).mean("error").above(1.0).to(f"{name}-alarms")
    model.retrain(on=alarm, rows=grades.last(8), swap="when_ready")
    return app


def test_a_training_runs_on_an_executor(context: Any, broker: KafkaBroker, topic_prefix: str, tmp_path: Path) -> None:
    first = tmp_path / "first.csv"
    with first.open("w", newline="") as file:
        csv.writer(file).writerows([["x", "y"], *([float(i), 1.0] for i in range(4))])
    log = f"kafka://{broker.bootstrap}"
    before = len(jobs(context))
    with build(log, topic_prefix, first).start(engine="spark", master="local[2]") as running:
        for i in range(8):
            running.append(f"{topic_prefix}-asked", {"id": i, "x": float(i)})
            running.append(f"{topic_prefix}-told", {"id": i, "x": float(i), "y": 9.0}, key=["id"])
        wait_until(lambda: running["price"].version > 1, "the new version")
        running.wait(60)
    shown = jobs(context)[: -before or None]
    assert any(text.startswith("learn price, cut ") for text in shown), shown
    harness.verify(build(log, topic_prefix, first))
