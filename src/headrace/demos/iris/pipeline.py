"""The Iris pipeline, as a user would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import headrace as hr

CENTERS = [[6.0, 3.0, 1.0, 0.0], [6.0, 3.0, 2.0, 1.0], [6.0, 3.0, 3.0, 2.0]]
TABLES = r"public\.iris_.*"

# As in Flink ML: a global batch of 32 rows, and nothing remembered of the batches before.
FLINK = hr.KMeans(k=3, initial_centers=CENTERS, initial_weights=[0, 0, 0], decay=0.0)
# As in Spark MLlib: everything is remembered, dying clusters are revived.
SPARK = hr.KMeans(k=3, initial_centers=CENTERS, initial_weights=[0, 0, 0], decay=1.0, split_dying=True)


def flink(dsn: str, log: str | Path) -> hr.App:
    """Learned in batches of 32 rows, captured by Headrace."""
    app = hr.App("iris", log=log)
    _iris(app, app.postgres(dsn, tables=TABLES, prefix="flink"), FLINK, every=32)
    return app


def spark(dsn: str, log: str | Path) -> hr.App:
    """Every transaction is a micro-batch, captured by Headrace."""
    app = hr.App("iris", log=log)
    _iris(app, app.postgres(dsn, tables=TABLES, prefix="spark"), SPARK, every="transaction")
    return app


def flink_debezium(log: str | Path, kafka: str | None = None) -> hr.App:
    """Learned in batches of 32 rows, from Debezium's topics."""
    app = hr.App("iris", log=log)
    _iris(app, app.debezium(kafka, prefix="flink", tables=TABLES), FLINK, every=32)
    return app


def spark_debezium(log: str | Path, kafka: str | None = None) -> hr.App:
    """A micro-batch is what has come when the interval ends: a tick. Flattened topics do not show transactions."""
    app = hr.App("iris", log=log)
    _iris(app, app.debezium(kafka, prefix="spark", tables=TABLES), SPARK, every=100_000)
    return app


def _iris(app: hr.App, db: Any, learner: hr.KMeans, *, every: int | str) -> None:
    species = app.model(
        "species",
        learner,
        features=["sepal_length", "sepal_width", "petal_length", "petal_width"],
    )
    species.learn(db["public.iris_train"], every=every)
    predicted = species.predict(db["public.iris_test"])
    predicted.to("iris_predictions")
    predicted.select(sentence=hr.text("{features} is classified as {prediction}")).to("iris_sentences")
