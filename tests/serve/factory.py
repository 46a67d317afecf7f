"""The fish factory, served: predictions asked over HTTP go where the model's own go, and are graded with them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import headrace as hr

TRAINING = Path(str(files("headrace.demos.fish") / "data/training.csv"))
INPUTS = {"length": "Length", "height": "Height", "species": "Species", "fish": ("Fish_Id", int)}


def factory(log: Path | str, *, learner: Any = None, swap: Any = "barrier") -> hr.App:
    """The issue's pipeline, with ``log_to`` the topic of the model's own predictions."""
    app = hr.App("fish", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    weight = app.model(
        "weight",
        learner or hr.LinearRegression(),
        features=["Length", "Height", hr.category("Species")],
        target="Weight",
        initial=hr.csv(TRAINING, rename=str.capitalize),
    )
    predicted = weight.predict(measured).to("weight-prediction")
    graded = predicted.grade(weighed, on="Fish_Id", within="1 h", metric=hr.metrics.relative_error).to("weight-diff")
    weight.retrain(rows=graded.last(50), swap=swap)
    weight.serve("/prediction", inputs=INPUTS, log_to="weight-prediction")
    return app
