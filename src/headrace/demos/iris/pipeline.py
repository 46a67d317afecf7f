"""The Iris pipeline, as a user would write it."""

from __future__ import annotations

from pathlib import Path

import headrace as hr

CENTERS = [[6.0, 3.0, 1.0, 0.0], [6.0, 3.0, 2.0, 1.0], [6.0, 3.0, 3.0, 2.0]]


def flink(dsn: str, log: str | Path) -> hr.App:
    """As in Flink ML: a global batch of 32 rows, and nothing remembered of the batches before."""
    return _iris(dsn, log, hr.KMeans(k=3, initial_centers=CENTERS, initial_weights=[0, 0, 0], decay=0.0), every=32)


def spark(dsn: str, log: str | Path) -> hr.App:
    """As in Spark MLlib: every transaction is a micro-batch, everything is remembered, dying clusters are revived."""
    learner = hr.KMeans(k=3, initial_centers=CENTERS, initial_weights=[0, 0, 0], decay=1.0, split_dying=True)
    return _iris(dsn, log, learner, every="transaction")


def _iris(dsn: str, log: str | Path, learner: hr.KMeans, *, every: int | str) -> hr.App:
    app = hr.App("iris", log=log)
    db = app.postgres(dsn, tables=r"public\.iris_.*", prefix="flink" if every == 32 else "spark")

    species = app.model(
        "species",
        learner,
        features=["sepal_length", "sepal_width", "petal_length", "petal_width"],
    )
    species.learn(db["public.iris_train"], every=every)
    predicted = species.predict(db["public.iris_test"])
    predicted.to("iris_predictions")
    predicted.select(sentence=hr.text("{features} is classified as {prediction}")).to("iris_sentences")
    return app
