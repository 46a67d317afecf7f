"""The pipeline of the fish factory, as a user would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import headrace as hr

MEASUREMENT, WEIGHT = "machine-measurement", "machine-weight"
TABLES = ("machine_measurement", "machine_weight")
THRESHOLD = 0.15
TRAINED_ON = 50
FEATURES = ("Length", "Height", hr.category("Species"))


def from_topics(log: str | Path, training: Path, *, online: bool = False) -> hr.App:
    """Both machines append to topics."""
    app = hr.App("fish", log=log)
    measured, weighed = app.topic(MEASUREMENT, append=True), app.topic(WEIGHT, append=True)
    return factory(app, measured, weighed, training, online)


def from_tables(dsn: str, log: str | Path, training: Path, *, online: bool = False) -> hr.App:
    """Both machines insert rows into tables."""
    app = hr.App("fish", log=log)
    db = app.postgres(dsn, tables=[rf"public\.{table}" for table in TABLES])
    measured, weighed = db["public.machine_measurement"], db["public.machine_weight"]
    return factory(app, measured, weighed, training, online)


def factory(app: hr.App, measured: Any, weighed: Any, training: Path, online: bool) -> hr.App:
    """Predict what is measured, grade it when it is weighed, and train anew when errors are too large."""
    weight = _model(app, "weight", training)
    predicted = weight.predict(measured).to("weight-prediction")
    graded = _graded(predicted, weighed).to("weight-diff")
    errors = (
        graded.window("1 min")
        .agg(
            ErrorAvg=hr.metrics.mean("error"),
            Fish_Id_Start=hr.metrics.first("Fish_Id"),
            Fish_Id_End=hr.metrics.last("Fish_Id"),
            Species=hr.metrics.unique("Species"),
        )
        .to("weight-error")
    )
    alarm = errors.above(THRESHOLD, column="ErrorAvg").to("weight-retrain")
    weight.retrain(on=alarm, rows=graded.last(TRAINED_ON))
    if online:
        _learned_online(app, measured, weighed, training)
    return app


def _learned_online(app: hr.App, measured: Any, weighed: Any, training: Path) -> None:
    """The same model beside it, which learns every fish as soon as it is weighed."""
    weight = _model(app, "weight-online", training)
    predicted = weight.predict(measured).to("weight-online-prediction")
    weight.learn(_graded(predicted, weighed).to("weight-online-diff"))


def _model(app: hr.App, name: str, training: Path) -> Any:
    return app.model(
        name,
        hr.LinearRegression(),
        features=FEATURES,
        target="Weight",
        initial=hr.csv(training, rename=str.capitalize),
        keep_versions=100,  # the demo tells the coefficients of all that were trained
    )


def _graded(predicted: Any, weighed: Any) -> Any:
    return predicted.grade(weighed, on="Fish_Id", within="1 min", metric=hr.metrics.relative_error, time="Timestamp")
