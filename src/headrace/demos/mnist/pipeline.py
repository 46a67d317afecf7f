"""The pipelines of the demo, as a user would write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr

TABLES = r"public\.mnist_.*"
PREDICTIONS = "mnist_predictions"
DIGITS = "mnist"
PIXELS = hr.image("pixels", shape=(28, 28), scale=1 / 255)


def pooled(batch: hr.Batch) -> npt.NDArray[np.float64]:
    """Means over 2 x 2 pixels: 196 features in place of 784, for models that take a row at a time."""
    pixels = np.frombuffer(b"".join(batch.column("pixels").to_pylist()), np.uint8)
    return np.asarray(pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196) / 255)


def capture(dsn: str, log: str | Path) -> tuple[hr.App, Any]:
    """Captures both tables; returns the stream of the rows to learn too."""
    app = hr.App("mnist", log=log)
    db = app.postgres(dsn, tables=TABLES, prefix="tf")
    return app, db["public.mnist_train"]


def classify(dsn: str, log: str | Path, trained: Any, features: Any, classes: Any) -> hr.App:
    """Captures both tables, and predicts the rows to be tested with a model that has learned already."""
    app = hr.App("mnist", log=log)
    db = app.postgres(dsn, tables=TABLES, prefix="tf")
    digits = app.model("digits", trained, features=features, target="labels", classes=classes)
    digits.predict(db["public.mnist_test"]).to(PREDICTIONS)
    return app


def online(log: str | Path, learner: Any, features: Any, classes: Any, tested: Any, *, every: int) -> hr.App:
    """Learns a topic that the program appends to, and is tested on the same rows after every cut."""
    app = hr.App("mnist", log=log)
    images = app.topic(DIGITS, append=True)
    digits = app.model("digits", learner, features=features, target="label", classes=classes)
    digits.learn(images, every=every)
    digits.evaluate(tested, metrics=["accuracy"])
    return app
