"""The demos' pipelines on Spark and on Flink: byte for byte what `local` writes, and the very models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from datetime import timedelta

import pytest

import headrace as hr
from headrace.demos.fish import events, pipeline
from headrace.demos.mnist.digits import read_data, rows
from headrace.demos.mnist.pipeline import PREDICTIONS
from headrace.demos.mnist.recipes import CLASSES, recipe
from headrace.testing.servers import KafkaBroker

from .engine_runs import Change, Comparison, Database, Options, Transaction

MODELS = ("mlp", "river", *(("keras",) if importlib.util.find_spec("jax") else ()))


@pytest.fixture(params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("spark", "flink")])
def cluster(request: pytest.FixtureRequest) -> Options:
    """What `App.start` needs to run a pipeline on an engine that many tests share."""
    if request.param == "spark":
        return {"engine": "spark", "master": "local[2]"}
    return {"engine": "flink", "jobmanager": request.getfixturevalue("flink_cluster").place}


@pytest.fixture(scope="module")
def other() -> Iterator[KafkaBroker]:
    """A broker that has the same topics, for the engine that is compared with."""
    with KafkaBroker() as running:
        yield running


@pytest.mark.timeout(1200)
def test_fish(cluster: Options, broker: KafkaBroker, other: KafkaBroker, topic_prefix: str) -> None:
    """A model is trained on 100 fish and predicts 180; errors rise, and it is trained anew; another learns each one."""
    data = events.read_data()
    transactions: list[Transaction] = []
    for event in data.events():
        sent = data.sent[event.machine].rows.slice(event.row, 1).to_pylist()[0]
        when = events.BEGINNING + timedelta(microseconds=event.time_us - events.BEGINNING.timestamp() * 10**6)
        table = dict(zip((pipeline.MEASUREMENT, pipeline.WEIGHT), pipeline.TABLES, strict=True))[event.machine]
        transactions.append([Change(table, {**sent, events.TIME: events.iso(when)})])
    assert len(transactions) == 2 * 180

    def build(log: str) -> hr.App:
        app = hr.App(f"fish-{topic_prefix}", log=log)
        db = app.debezium(prefix=topic_prefix, tables=r"public\.machine_.*")
        measured, weighed = (db[f"public.{table}"] for table in pipeline.TABLES)
        return pipeline.factory(app, measured, weighed, data.training, online=True)

    database = Database([broker, other], topic_prefix, dict.fromkeys(pipeline.TABLES, 1))
    found = Comparison(build, database, cluster).check(transactions)
    assert sum(row["status"] == "graded" for row in found.rows["weight-diff"]) == 180
    (alarm,) = found.rows["weight-retrain"]
    assert (alarm["Fish_Id_Start"], alarm["Fish_Id_End"]) == ("56", "85")
    assert found.models["weight"][1] == 2
    assert found.models["weight-online"][4]["learned"] == 280


@pytest.mark.timeout(1200)
def test_mnist(cluster: Options, broker: KafkaBroker, other: KafkaBroker, topic_prefix: str) -> None:
    """Real digits, as bytes in messages with schemas: scikit-learn, River and Keras learn in cuts, and read others."""
    data = read_data()
    numbered = [{"id": i, **row} for i, row in enumerate(rows(data.train).to_pylist()[:600])]
    asked = [{"id": i, **row} for i, row in enumerate(rows(data.test).to_pylist()[:120])]
    transactions: list[Transaction] = []
    for part in range(12):
        transactions.append([Change("mnist_train", row) for row in numbered[part * 50 : part * 50 + 50]])
        transactions.append([Change("mnist_test", row) for row in asked[part * 10 : part * 10 + 10]])

    def build(log: str) -> hr.App:
        app = hr.App(f"mnist-{topic_prefix}", log=log)
        db = app.debezium(prefix=topic_prefix, tables=r"public\.mnist_.*")
        for name in MODELS:
            chosen = recipe(name)
            digits = app.model(name, chosen.make(), features=chosen.features, target="labels", classes=CLASSES)
            digits.learn(db["public.mnist_train"], every=32)
            digits.predict(db["public.mnist_test"]).to(f"{PREDICTIONS}_{name}")
            digits.evaluate(rows(data.test).slice(120, 40), metrics=["accuracy"], every=100)
        return app

    database = Database([broker, other], topic_prefix, {"mnist_train": 1, "mnist_test": 1}, schemas=True)
    found = Comparison(build, database, cluster).check(transactions)
    for name in MODELS:
        answers = found.rows[f"{PREDICTIONS}_{name}"]
        assert [row["status"] for row in answers] == ["ok"] * 120, answers[0]
        assert sum(row["prediction"] == row["labels"] for row in answers[60:]) > 30, name
        assert found.models[name][4]["learned"] == 576 and found.rows[f"{name}-metrics"]
