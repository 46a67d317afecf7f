"""The pipeline of `fish.py` before and after it was declared differently, which the crash tests kill around the change.

Run as `python tests/crash/redeclaration.py LOG before|after [kill]`: it sends the rows of that half that have not been
sent yet, catches up and ends, or dies without having stored a state.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from river import drift

import headrace as hr
from tests.crash.fish import rows

OUTPUTS = ("predictions", "grades", "windows", "alarms", "drifts", "weight-training", "short", "all-windows")
HALF = 120


def build(log: str, half: str = "after") -> hr.App:
    """Later the alarm that trains the model has another bound, a window is new, a drift detector gone."""
    app = hr.App("fish", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    first = Path(__file__).with_name("fish.csv")
    features = ["x", hr.category("kind")]
    weight = app.model("weight", hr.LinearRegression(), features=features, target="y", initial=hr.csv(first))
    grades = weight.predict(measured).to("predictions").grade(weighed, on="id", within="30 s", time="at").to("grades")
    if half == "after":
        grades.window("10 s").median("error").to("short")
    windows = grades.window("20 s").mean("error").to("windows")
    alarm = windows.above(1.0 if half == "before" else 0.2).to("alarms")
    if half == "before":
        grades.drift("error", drift.PageHinkley(min_instances=5, threshold=2.0)).to("drifts")
    else:
        app.topic("grades").window(7).count().to("sevens")
    app.topic("grades").window("10 s", every="5 s", by="model_version").count().to("all-windows")
    weight.retrain(on=alarm, rows=grades.last(15 if half == "before" else 10))
    return app


def send(running: Any, half: str) -> None:
    """Send the rows of a half that are missing, one by one."""
    at = {topic: running.appended(topic, "me") for topic in ("measured", "weighed")}
    seen = dict.fromkeys(at, 0)
    for topic, row in rows()[: HALF if half == "before" else None]:
        if seen[topic] >= at[topic]:
            running.append(topic, row, producer_id="me", sequence=seen[topic])
        seen[topic] += 1


if __name__ == "__main__":
    log, half, *more = sys.argv[1:]
    with build(log, half).start() as running:
        send(running, half)
        running.wait(60)
        if more:
            os.kill(os.getpid(), signal.SIGKILL)
