"""What is read before the first row: nothing, with the columns and the types that the rows then have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from river import drift
from sklearn.linear_model import SGDClassifier

import headrace as hr
from headrace.errors import LogError

SPECIES = ["salmon", "walleye"]


def fish(app: hr.App, orders: hr.Stream, labels: hr.Stream) -> dict[str, hr.Stream]:
    """Everything that can be made of two streams: of each topic, its stream."""
    model = app.model("m", SGDClassifier(loss="log_loss"), features=["x", "y"], target="species", classes=SPECIES)
    predicted = model.predict(orders, proba=True).to("predicted")
    graded = predicted.grade(labels, on="id", within="1 h").to("graded")
    model.learn(graded)
    windows = graded.window(1, by="prediction").agg(
        mean=hr.metrics.mean("error"), n=hr.metrics.count(), kinds=hr.metrics.unique("species"), top=hr.metrics.max("x")
    )
    return {
        "orders": orders,
        "chosen": orders.filter(lambda batch: batch.column("x")).select("id", note=hr.text("{id} is new")).to("chosen"),
        "predicted": predicted,
        "graded": graded,
        "few": graded.select("id", "error").to("few"),
        "windows": windows.to("windows"),
        "timed": graded.window("1 s", emit="changes").mean("error").to("timed"),
        "alarms": windows.above(-1, column="mean", cooldown=0).to("alarms"),
        "drifts": graded.drift("error", drift.PageHinkley(min_instances=1)).to("drifts"),
        "m-metrics": model.evaluate(orders, name="all"),
        "orders.dlq": app.topic("orders.dlq"),
    }


def schema(stream: hr.Stream) -> list[tuple[str, pa.DataType]]:
    table = stream.read().to_arrow()
    return [(field.name, field.type) for field in table.schema]


def test_every_topic_of_captured_tables_has_its_columns_before_its_first_row(
    dsn: str, query: Callable[..., Any], tmp_path: Path
) -> None:
    query("CREATE TABLE orders (id int PRIMARY KEY, x float8, y real, species text, at timestamptz, n numeric(9,2))")
    query("CREATE TABLE labels (id int PRIMARY KEY, species text, weigher text)")
    app = hr.App("fish", log=tmp_path / "fish.headrace")
    db = app.postgres(dsn, tables=r"public\..*")
    streams = fish(app, db["public.orders"], db["public.labels"])
    del streams["m-metrics"], streams["orders.dlq"]
    retrained = app.model("again", hr.LinearRegression(), features=["x"], target="y")
    streams |= {"again": retrained.predict(db["public.orders"]).to("again")}
    retrained.retrain(rows=streams["graded"].last(10))
    streams |= {"again-training": app.topic("again-training"), "dlq": app.topic("fish.public.orders.dlq")}
    streams["metrics"] = retrained.evaluate(db["public.orders"])
    with app.start() as running:
        running.wait()
        before = {name: schema(stream) for name, stream in streams.items()}
        assert all(len(stream.read()) == 0 for stream in streams.values())
        assert ("n", pa.decimal128(9, 2)) in before["orders"] and ("y", pa.float32()) in before["predicted"]
        with pytest.raises(LogError, match=r"the log has no topic «fish\.public\.other»"):
            db["public.other"].read()
        rows = "(1, 1, 2, 'salmon', now(), 1.5), (2, 2, 1, 'walleye', now(), 2), (3, 3, 1, 'salmon', now(), NULL)"
        query(f"INSERT INTO orders VALUES {rows}, (4, NULL, 1, 'salmon', now(), 1)")
        running.wait()
        query("INSERT INTO labels VALUES (1, 'salmon', 'me'), (2, 'salmon', 'me'), (3, 'walleye', 'you')")
        running.wait()
        query("INSERT INTO orders VALUES (5, 1, 1, 'salmon', now(), 1)")
        running.wait()
        query("INSERT INTO labels VALUES (5, 'walleye', 'me')")
        running.wait()
        came = {name: stream.read() for name, stream in streams.items()}
    filled = {name for name, rows in came.items() if len(rows)}
    assert filled >= {"orders", "chosen", "predicted", "graded", "few", "windows", "alarms", "dlq", "again"}
    for name in sorted(filled):
        table = came[name].to_arrow()
        assert before[name] == [(field.name, field.type) for field in table.schema], name


def test_topics_of_a_program_have_the_columns_that_the_plan_names() -> None:
    app = hr.App("fish", log="memory://")
    streams = fish(app, app.topic("orders", append=True), app.topic("labels", append=True))
    with app.start() as running:
        found = {name: schema(stream) for name, stream in streams.items()}
        names = {name: [column for column, _ in columns] for name, columns in found.items()}
        own = ["op", "position", "ts"]
        assert names["orders"] == ["x", "y", "species", *own]
        assert names["predicted"][:4] == ["x", "y", "species", "prediction"]
        assert dict(found["predicted"])["probability"] == pa.list_(pa.float64(), 2)
        assert dict(found["predicted"])["prediction"] == pa.string()
        assert dict(found["predicted"])["x"] == pa.null(), "nobody knows its type yet"
        assert dict(found["graded"])["error"] == pa.float64() and "label_delay" in names["graded"]
        assert names["windows"] == [
            "window_start",
            "window_end",
            "prediction",
            "rows",
            "mean",
            "n",
            "kinds",
            "top",
            *own,
        ]
        assert names["timed"] == ["window_start", "window_end", "rows", "error", "final", *own]
        assert names["orders.dlq"] == ["reason", "stage", "model", "row", *own]
        assert names["m-metrics"][:6] == ["stream", "rows", "learned", "window", "accuracy", "window_accuracy"]
        frame = streams["graded"].read().to_pandas()
        assert isinstance(frame, pd.DataFrame) and not len(frame) and "error" in frame.columns
        assert frame["error"].mean() != frame["error"].mean(), "an empty column of numbers, whose mean is NaN"
        assert repr(streams["few"].read()) == "Rows(0 rows: id, error, op, position, ts)"
        assert streams["few"].read()._repr_html_().count("<th>") == 5
        with pytest.raises(LogError, match="the log has no topic «nothing»"):
            app.topic("nothing").read()
        rows = [{"id": i, "x": float(i), "y": 1.0, "species": SPECIES[i % 2]} for i in range(6)]
        running.append("orders", rows)
        running.append("labels", [{"id": i, "species": SPECIES[0]} for i in range(6)])
        running.wait()
        metrics = schema(streams["m-metrics"])
        assert metrics == found["m-metrics"]


def test_a_user_s_function_that_fails_without_rows_is_no_error() -> None:
    app = hr.App("a", log="memory://")

    def first(batch: hr.Batch) -> hr.Batch:
        assert batch.num_rows, "no rows"
        return batch

    stream = app.topic("a", append=True).transform(first).to("b")
    with app.start():
        assert repr(stream.read()) == "Rows(0 rows: op, position, ts)"
