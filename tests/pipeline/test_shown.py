"""What a user sees of objects: one informative line, tables in a notebook, and no secret anywhere."""

from __future__ import annotations

import html.parser
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from river import drift, forest, linear_model, optim, preprocessing
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.learn.base import learner_text
from headrace.row_tables import SHOWN_COLUMNS, html_table, text_table
from headrace.serve.keys import KeyFile
from headrace.serve.settings import ServeSettings

SECRET = "s3cret"
DSN = f"postgresql://me:{SECRET}@db/shop"


def shop(log: str | Path = "memory://") -> tuple[hr.App, dict[str, Any]]:
    """An app with one of everything, and what its user holds of it."""
    app = hr.App("shop", log=log)
    db = app.postgres(DSN, tables=r"public\..*")
    orders, labels = db["public.orders"], db["public.labels"]
    model = app.model("days", SGDRegressor(alpha=0.1), features=["x", hr.category("c")], target="y")
    model.learn(orders, every=32)
    predicted = model.predict(orders)
    promised = predicted.to("promised")
    graded = promised.grade(labels, on="id", within="1 min").to("kept")
    windowed = graded.window("1 min", every="10 s", by="c")
    windows = windowed.agg(a=hr.metrics.mean("error"), q=hr.metrics.quantile("error", 0.9))
    alarms = windows.above(2.0, column="a", consecutive=2)
    alarms.to("alarms")
    drifts = graded.drift("error", drift.ADWIN()).to("drifts")
    model.evaluate(orders)
    model.evaluate([{"x": 1.0, "c": "a", "y": 2.0}], name="held")
    model.serve("/days", log_to="promised")
    orders.to_table(DSN, "copy", key="id")
    alarms_http = app.topic("alarms").to_http(f"https://me:{SECRET}@h/a?token={SECRET}", secret=SECRET)
    held = {
        "app": app, "db": db, "orders": orders, "model": model, "predicted": predicted, "graded": graded,
        "windowed": windowed, "windows": windows, "alarms": alarms, "drifts": drifts, "told": alarms_http,
        "last": graded.last(50), "all": orders.all(), "plan": app.plan(),
        "dataset": orders.dataset(64, features=["x"], target="y", epochs=3, group="g"),
    }  # fmt: skip
    return app, held


EXPECTED = {
    "app": "App(shop, log memory://, source shop, model days, sinks postgres:copy, http:https://h/a, not running)",
    "db": "Database(shop, db:5432/shop)",
    "orders": "Stream(shop.public.orders)",
    "model": "Model(days, SGDRegressor(alpha=0.1, random_state=0), learns shop.public.orders, predicts "
    "shop.public.orders, evaluated on shop.public.orders, 1 row as «held», served at /days)",
    "predicted": "Stream(predictions of shop.public.orders by «days»)",
    "graded": "Stream(kept)",
    "windowed": "Windowed(windows of 60 s every 10 s by c ◀── kept)",
    "windows": "Stream(windows of 60 s every 10 s by c: a=mean(error), q=quantile(error) ◀── kept)",
    "alarms": "Stream(alarms: a above 2, 2 in a row ◀── windows of 60 s every 10 s by c: a=mean(error), "
    "q=quantile(error) ◀── kept)",
    "drifts": "Stream(drifts)",
    "told": "Stream(alarms)",
    "last": "Rowset(the last 50 rows of kept)",
    "all": "Rowset(all rows of shop.public.orders)",
    "plan": "Plan(shop, log memory://, source shop, model days, sinks postgres:copy, http:https://h/a)",
    "dataset": "Dataset(shop.public.orders, batches of 64, x → y, 3 epochs, group g)",
}


def test_everything_that_is_declared_says_in_one_line_what_it_is() -> None:
    _, held = shop()
    assert {name: repr(thing) for name, thing in held.items()} == EXPECTED


def test_no_secret_is_in_a_line_or_in_a_plan(tmp_path: Path) -> None:
    app, held = shop()
    plan = app.plan()
    said = [repr(thing) for thing in held.values()]
    said += [
        str(plan),
        plan._repr_html_(),
        repr(plan.to_dict()),
        repr(plan.sources),
        repr(plan.sinks),
        repr(plan.tasks),
    ]
    elsewhere = hr.App("x", log=f"kafka://me:{SECRET}@broker:9092/x", registry=f"http://me:{SECRET}@registry")
    elsewhere.topic("a").to("b")
    other = hr.App("y", log="memory://")
    other.debezium(f"kafka://me:{SECRET}@broker:9092", prefix="p")
    for its in (elsewhere, other):
        said += [repr(its), str(its.plan()), repr(its.plan()), repr(its.plan().to_dict()), repr(its.plan().formats)]
    _, text = KeyFile(tmp_path / "keys").create("till", ["predict"])
    said.append(repr(ServeSettings(jwt_secret=SECRET * 8)))
    said.append(repr(KeyFile(tmp_path / "keys").all()))
    assert not [line for line in said if SECRET in line or text.rpartition("_")[2] in line]


def test_evaluations_and_paths_are_in_the_plan() -> None:
    lines = str(shop()[0].plan()).splitlines()
    assert "│    shop.public.orders ──evaluate──▶ «days» ──▶ days-metrics" in lines
    assert "│    1 row as «held» ──evaluate──▶ «days» ──▶ days-metrics" in lines
    assert "│    GET /days ──predict──▶ «days» ──▶ promised" in lines
    app = hr.App("fish", log="memory://")
    days = app.model("m", hr.LinearRegression(), features=["x"], target="y")
    graded = days.predict(app.topic("a", append=True)).to("p").grade(app.topic("b"), on="id", within="1 s").to("g")
    days.learn(graded.filter(len))
    assert "│    g │ filter len() ──learn, cut every transaction──▶ «m»" in str(app.plan()).splitlines()


class Mine:
    """A learner of a user's own, which says nothing of itself."""

    ready = True

    def learn(self, X: Any, y: Any = None) -> None: ...
    def predict(self, X: Any) -> Any:
        return np.zeros(len(X))

    def parameters(self) -> dict[str, Any]:
        return {"rate": 0.5, "name": "ö"}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None: ...


LEARNERS = {
    "KMeans(k=2, decay=0.0, time_unit='batches', split_dying=False)": (hr.KMeans(k=2), None),
    "SGDClassifier(alpha=0.1, random_state=0)": (SGDClassifier(alpha=0.1), ["a", "b"]),
    "Pipeline(steps=[('standardscaler', StandardScaler()), ('sgdregressor', SGDRegressor(random_state=0))])": (
        make_pipeline(StandardScaler(), SGDRegressor()),
        None,
    ),
    "StandardScaler() | LogisticRegression(optimizer=SGD(lr=Constant(learning_rate=0.1)))": (
        preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1)),
        ["a", "b"],
    ),
    "ARFClassifier(n_models=3, seed=1)": (forest.ARFClassifier(n_models=3, seed=1), ["a", "b"]),
    "Mine(rate=0.5, name='ö')": (Mine(), None),
}


@pytest.mark.parametrize("text", LEARNERS)
def test_a_learner_is_shown_as_one_would_write_it(text: str) -> None:
    learner, classes = LEARNERS[text]
    model = hr.App("a", log="memory://").model("m", learner, features=["x"], target="y", classes=classes)
    assert repr(model) == f"Model(m, {text})"
    wide = SGDClassifier(class_weight={f"a class of a long name {number}": 1.0 for number in range(100)})
    assert len(learner_text(hr.adapters.adapted(wide, classes=["a", "b"]))) <= 200  # type: ignore[attr-defined]


def test_what_runs_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    app = hr.App("t", log="memory://")
    rows = app.topic("r", append=True)
    model = app.model("k", hr.KMeans(k=2), features=["x"])
    model.learn(rows)
    model.predict(rows).to("o")
    kmeans = "KMeans(k=2, decay=0.0, time_unit='batches', split_dying=False)"
    with caplog.at_level(logging.CRITICAL), app.start() as running:
        assert repr(app) == "App(t, log memory://, model k, running)"
        assert repr(running["k"]) == f"RunningModel(k version 1, 0 rows learned, up to nothing, {kmeans})"
        running.append("r", [{"x": float(number)} for number in range(25)])
        running.wait()
        assert repr(running).startswith("Running(t, 25 rows captured, k version 1: 25 learned, ")
        assert repr(running["k"]) == f"RunningModel(k version 1, 25 rows learned, up to 0/0:24, {kmeans})"
        found = app.topic("o").select("x", "prediction").read()
    assert repr(running) == "Running(t, 25 rows captured, k version 1: 25 learned, stopped)"
    assert repr(found) == "Rows(25 rows: x, prediction, op, position, ts)"
    assert str(found).splitlines()[0].split() == ["x", "prediction", "op", "position", "ts"]
    assert str(found).splitlines()[-1] == "… 15 more of 25 rows"
    assert found._repr_html_().endswith("<p>… 15 more of 25 rows</p>")


class Fragment(html.parser.HTMLParser):
    """The elements and the text of a fragment."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_table_in_a_notebook_is_escaped_and_bounded() -> None:
    hostile = "<script>alert(1)</script>"
    columns: dict[str, Any] = {f"c{number}": [0] * 1000 for number in range(100)}
    table = pa.table({hostile: [hostile] * 1000, "&": ["x" * 10_000] * 1000, **columns})
    found = Fragment(html_table(table))
    assert found.tags == {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert hostile in found.texts
    assert found.texts[-2:] == ["… 990 more of 1,000 rows", f"… {102 - SHOWN_COLUMNS} more of 102 columns"]
    assert max(map(len, found.texts)) <= 40 and len(html_table(table)) < 20_000
    assert text_table(table).splitlines()[-2:] == found.texts[-2:]
    assert html_table(pa.table({})) == "<table><thead><tr></tr></thead><tbody></tbody></table><p>no rows</p>"
    assert text_table(pa.table({"id": pa.array([], pa.int64())})) == "id\nno rows"
    batch = hr.Batch.of({"id": [1, 2], "name": [hostile, None]})
    assert repr(batch) == "Batch(2 rows: id, name)"
    assert hostile in Fragment(batch._repr_html_()).texts


def test_odd_values_are_shown_too() -> None:
    table = pa.table(
        {
            "huge": pa.array([2**63 - 1, None]),
            "bytes": pa.array([b"\xff\x00" * 100, b""]),
            "nested": pa.array([{"a": [float("nan"), float("inf")]}, None]),
            "day": pa.array([2**31 - 1, -(2**31)], pa.date32()),
            "": pa.array(["\n\t", "ö"]),
        }
    )
    lines = text_table(table).splitlines()
    assert len(lines) == 3 and all("0x7f" not in line for line in lines)
    assert "9223372036854775807" in html_table(table)
