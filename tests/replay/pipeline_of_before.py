"""The pipeline that wrote `log_of_before.headrace.gz`, with the Headrace of 2026-11-29 (commit 00c5f22)."""

from __future__ import annotations

from typing import Any

from sklearn.linear_model import SGDClassifier

import headrace as hr


def build(log: Any, limit: float = 0.1) -> hr.App:
    app = hr.App("before", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    weight = app.model("weight", hr.LinearRegression(), features=["a", "b", hr.category("s")], target="y")
    predicted = weight.predict(measured).to("predicted")
    graded = predicted.grade(weighed, on="id", within="1 min", metric=hr.metrics.absolute_error).to("graded")
    weight.learn(graded)
    lines = graded.window(5).agg(m=hr.metrics.mean("error"), u=hr.metrics.unique("s")).to("lines")
    lines.above(limit, column="m").to("alarms")
    kind = app.model("kind", SGDClassifier(random_state=0), features=["a", "b"], target="k", classes=[0, 1])
    kind.learn(measured, every=7)
    kind.predict(measured).to("kinds")
    kind.evaluate(measured)
    return app


def measure(running: Any, first: int, count: int) -> None:
    for i in range(first, first + count):
        row = {"id": i, "a": float(i % 7), "b": float(i % 5), "s": "xz"[i % 2], "k": i % 2}
        running.append("measured", [row])
        if i % 3:
            running.append("weighed", [{"id": i, "y": 2.0 * (i % 7) + i % 5 + i % 4 / 8}])
    running.wait(60)
