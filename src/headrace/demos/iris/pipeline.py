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


# Of flattened topics nothing shows where transactions end: what has come when the interval ends, a tick, is a batch.
CUTS: dict[tuple[str, str], int | str] = {
    ("flink", "postgres"): 32,
    ("flink", "debezium"): 32,
    ("spark", "postgres"): "transaction",
    ("spark", "debezium"): 100_000,
}


def captured(flavour: str, dsn: str, log: str | Path) -> hr.App:
    """As in ``flink`` or ``spark``, captured by Headrace."""
    app = hr.App("iris", log=log)
    return _iris(app, app.postgres(dsn, tables=TABLES, prefix=flavour), flavour, CUTS[flavour, "postgres"])


def from_debezium(flavour: str, log: str | Path, kafka: str | None = None) -> hr.App:
    """As in ``flink`` or ``spark``, from Debezium's topics."""
    app = hr.App("iris", log=log)
    return _iris(app, app.debezium(kafka, prefix=flavour, tables=TABLES), flavour, CUTS[flavour, "debezium"])


def _iris(app: hr.App, db: Any, flavour: str, every: int | str) -> hr.App:
    species = app.model(
        "species",
        SPARK if flavour == "spark" else FLINK,
        features=["sepal_length", "sepal_width", "petal_length", "petal_width"],
    )
    species.learn(db["public.iris_train"], every=every)
    predicted = species.predict(db["public.iris_test"])
    predicted.to("iris_predictions")
    predicted.select(sentence=hr.text("{features} is classified as {prediction}")).to("iris_sentences")
    return app
