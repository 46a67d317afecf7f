"""The contract of an engine: what comes of a pipeline is what `step` gives, whoever runs it, however often it stops.

Each pipeline runs on a log on Kafka, on an engine, in two lives; rows come meanwhile. What it has written is then

* what a replay gives for the recorded slices, byte for byte, with every hash (`verify`);
* what `local` gives in memory, in one life: rows with positions depend on nothing else.

An engine whose packages are not here skips: `make test-spark` and `make test-flink` have environments of their own.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from tests.waiting import wait_until

import headrace as hr
from headrace.demos import iris
from headrace.demos.iris.pipeline import FLINK, SPARK
from headrace.engines.contract import RunningPipeline
from headrace.replay.verify import verify
from headrace.testing.servers import KafkaBroker

from .engine_runs import SECONDS, Change, Database, Declare, Options, Outcome, Row, Transaction, opened, outcome


@pytest.fixture(
    params=[
        pytest.param({}, id="local"),
        pytest.param({"engine": "spark", "master": "local[2]"}, id="spark", marks=pytest.mark.spark),
        pytest.param({"engine": "flink"}, id="flink", marks=pytest.mark.flink),
    ]
)
def engine(request: pytest.FixtureRequest) -> Options:
    """What `App.start` needs to run a pipeline on the engine."""
    found: Options = request.param
    return found


def check(
    declare: Declare,
    transactions: Sequence[Transaction],
    engine: Options,
    broker: KafkaBroker,
    prefix: str,
    *,
    until: Callable[[RunningPipeline], bool] | None = None,
) -> Outcome:
    """Run a pipeline in two lives, and compare; return what came of it.

    Args:
        until: what is waited for in each life, too. When it comes about is in the record, and a replay obeys that,
            while another run has a record of its own.
    """
    database = Database([broker], prefix)
    half = len(transactions) // 2

    def made(name: str, log: str) -> hr.App:
        app = hr.App(name, log=log)
        declare(app, app.debezium(f"kafka://{broker.bootstrap}", prefix=prefix, tables=r"public\..*"))
        return app

    database.commit(transactions[:half])
    for some in (transactions[half:-1], transactions[-1:]):
        app = made(f"{prefix}_a", f"kafka://{broker.bootstrap}")
        with app.start(**engine) as running:
            running.wait(SECONDS)
            database.commit(some)
            running.wait(SECONDS)
            if until is not None:
                wait_until(lambda: until(running), timeout=SECONDS)
    with opened(app) as log:
        report = verify(app.plan(), log)
        assert report.result == "equal", report
        assert sum(task.hashes for task in report.tasks) > 0
        found = outcome(app, log)
    if until is not None:
        return found
    alone = made(f"{prefix}_a", "memory://")
    with alone.start() as running:
        running.wait(SECONDS)
        running.stop()
        expected = outcome(alone, running.log)
    assert found.models == expected.models
    assert found.rows.keys() == expected.rows.keys()
    for topic, rows in expected.rows.items():
        assert found.rows[topic] == rows, topic
    return found


# -- pipelines ---------------------------------------------------------------------------------------------------------

CENTERS = [[1.0, 1.0], [5.0, 5.0], [9.0, 1.0]]


def numbers(count: int, first: int = 0) -> list[Row]:
    """Rows; one in 17 has no «x», which a model refuses."""
    chance = np.random.default_rng(first + 1)
    points = chance.uniform(0, 9, (count, 2)).round(3).tolist()
    return [
        {"id": i, "x": None if i % 17 == 3 else x, "z": z, "label": int(x > 5), "kind": "abcd"[i // 40 % 4]}
        for i, (x, z) in enumerate(points, first)
    ]


def learned_and_predicted() -> list[Transaction]:
    """Transactions of one to seven rows of both tables."""
    chance, rows = np.random.default_rng(3), numbers(400)
    found: list[Transaction] = []
    while rows:
        some, rows = rows[: (size := int(chance.integers(1, 8)))], rows[size:]
        found.append([Change("train" if row["id"] % 2 else "test", row) for row in some])
    return found


def test_cuts_of_every_kind(engine: Options, broker: KafkaBroker, topic_prefix: str) -> None:
    """Predictions, evaluations, derived topics and dead letters of models whose learning is cut in each way."""
    from sklearn.linear_model import SGDClassifier

    def declare(app: hr.App, db: hr.Topics) -> None:
        train, test = db["public.train"], db["public.test"]
        for name, every in {"transactions": "transaction", "rows": 32, "seconds": "1 s"}.items():
            learner = hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5)
            model = app.model(name, learner, features=["x", "z"], versions=100 if name == "rows" else None)
            model.learn(train, every=every)
            predicted = model.predict(test)
            predicted.to(f"{app.name}-{name}")
        predicted.select(sentence=hr.text("{features} is {prediction}")).to(f"{app.name}-sentences")
        features = ["x", "z", hr.category("kind", capacity=4)]
        model = app.model("sgd", SGDClassifier(loss="log_loss"), features=features, target="label", classes=[0, 1])
        model.learn(train, every=50)
        model.predict(test, proba=True).to(f"{app.name}-chances")
        model.evaluate(train, metrics=["accuracy"], every=40)
        test.filter(pc.field("x") > 3).to(f"{app.name}-right")

    found = check(declare, learned_and_predicted(), engine, broker, topic_prefix)
    assert {name: len(rows) for name, rows in found.rows.items() if name.startswith("-")} == {
        "-transactions": 200, "-rows": 200, "-seconds": 200, "-sentences": 200, "-chances": 200,
        "-right": sum(1 for row in numbers(400) if row["id"] % 2 == 0 and row["x"] is not None and row["x"] > 3),
    }  # fmt: skip
    assert found.rows["sgd-metrics"]
    assert found.rows[f"{topic_prefix}.public.test.dlq"] and found.rows[f"{topic_prefix}.public.train.dlq"]
    assert found.models["rows"][1] > 1


def asked_and_told(rows: Sequence[Row], slopes: Sequence[float]) -> list[Transaction]:
    """Twenty rows that are asked about, their labels, twenty more: a label is «z» by the slope of its row."""
    asked = [[Change("asked", {name: row[name] for name in ("id", "x", "z")})] for row in rows]
    told = [[Change("told", {"id": row["id"], "y": slope * row["z"]})] for row, slope in zip(rows, slopes, strict=True)]
    found: list[Transaction] = []
    for start in range(0, len(rows), 20):
        found += [*asked[start : start + 20], *told[start : start + 20]]
    return found


def graded(app: hr.App, db: hr.Topics, folder: Path) -> tuple[hr.Model, hr.Stream, hr.Stream]:
    """Declare a model that was trained on four rows; itself, its grades, and the alarms when they are bad."""
    (folder / "first.csv").write_text("x,z,y\n1,2,3\n2,1,3\n3,5,8\n4,1,5\n")
    learner = hr.LinearRegression()
    model = app.model("m", learner, features=["x", "z"], target="y", initial=hr.csv(folder / "first.csv"))
    predicted = model.predict(db["public.asked"]).to(f"{app.name}-out")
    grades = predicted.grade(db["public.told"], on="id", within="1 h").to(f"{app.name}-grades")
    means = grades.window(40, every=20).mean("error").to(f"{app.name}-means")
    return model, grades, means.above(4.0).to(f"{app.name}-alarms")


def test_grades_windows_alarms_drift_and_trainings(
    engine: Options, broker: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """Labels that come later; what the world is like changes twice, and the model is trained anew each time."""
    from river.drift import ADWIN

    rows = numbers(360)
    world = [1.0 if row["id"] < 120 else 4.0 if row["id"] < 240 else -2.0 for row in rows]

    def declare(app: hr.App, db: hr.Topics) -> None:
        model, grades, alarm = graded(app, db, tmp_path)
        grades.drift("error", ADWIN()).to(f"{app.name}-drift")
        model.retrain(on=alarm, rows=grades.last(60))

    found = check(declare, asked_and_told(rows, world), engine, broker, topic_prefix)
    assert len(found.rows["-out"]) == 360 and len(found.rows["-grades"]) >= 330
    assert found.rows["-alarms"] and found.rows["-means"]
    assert found.models["m"][1] > 2 and found.rows["m-training"]


def test_a_training_that_nobody_waits_for(
    engine: Options, broker: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    """Rows go on being predicted while the model is trained anew; where it took over is in the record."""
    rows = [row | {"x": row["x"] or 0.0} for row in numbers(240)]
    transactions = asked_and_told(rows, [1.0 if row["id"] < 80 else 4.0 for row in rows])

    def declare(app: hr.App, db: hr.Topics) -> None:
        model, grades, alarm = graded(app, db, tmp_path)
        model.retrain(on=alarm, rows=grades.last(60), swap="when_ready")

    found = check(declare, transactions, engine, broker, topic_prefix, until=lambda app: app["m"].version > 1)
    assert len(found.rows["-out"]) == 240 and found.rows["-alarms"]
    assert found.models["m"][1] > 1 and found.rows["m-training"]


def declared_by_chance(chance: random.Random, app: hr.App, db: hr.Topics) -> None:
    """Models of all kinds, each learning and predicting streams that are filtered and cut in some way."""
    from river import linear_model, preprocessing
    from sklearn.linear_model import SGDClassifier, SGDRegressor
    from sklearn.naive_bayes import GaussianNB

    scaled = preprocessing.StandardScaler() | linear_model.PARegressor()
    regression = [hr.LinearRegression(), SGDRegressor(eta0=0.001), scaled]
    classification = [SGDClassifier(loss="log_loss"), GaussianNB()]
    kinds = chance.sample(["clusters", "number", "class", "class", "number"], 4)
    for i, kind in enumerate(kinds):
        train, test = db["public.train"], db["public.test"]
        if chance.random() < 0.4:
            train = train.filter(pc.field("z") > chance.uniform(0, 4))
        if chance.random() < 0.4:
            test = test.with_columns(w=pc.multiply(pc.field("z"), 2.0))
        features: list[Any] = ["x", "z"]
        more: dict[str, Any] = {}
        if kind == "clusters":
            learner: Any = hr.KMeans(k=3, initial_centers=CENTERS, decay=chance.choice([0.0, 0.5, 1.0]))
        elif kind == "number":
            learner, more = chance.choice(regression), {"target": "label"}
        else:
            learner, more = chance.choice(classification), {"target": "label", "classes": [0, 1]}
            features += [hr.category("kind", capacity=4)] if chance.random() < 0.5 else []
        versions = chance.choice([None, 40])
        model = app.model(f"m{i}", learner, features=features, versions=versions, **more)
        model.learn(train, every=chance.choice(["transaction", 1, 7, 32, "1 s", "5 s"]))
        predicted = model.predict(test, proba=kind == "class" and chance.random() < 0.5).to(f"{app.name}-out{i}")
        if kind != "clusters" and chance.random() < 0.5:
            model.evaluate(db["public.train"], every=chance.choice([1, 25]))
        if kind == "number":
            graded = predicted.grade(db["public.test"], on="id", within="1 h").to(f"{app.name}-grades{i}")
            means = graded.window(chance.choice([5, 20])).mean("error").to(f"{app.name}-means{i}")
            means.above(0.2).to(f"{app.name}-alarms{i}")


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_pipelines_by_chance(seed: int, engine: Options, broker: KafkaBroker, topic_prefix: str) -> None:
    found = check(
        lambda app, db: declared_by_chance(random.Random(seed), app, db),
        learned_and_predicted(), engine, broker, topic_prefix,
    )  # fmt: skip
    assert [len(rows) for name, rows in found.rows.items() if name.startswith("-out")] == [200] * 4


IRIS = Path(iris.__file__).parent / "data"


def flowers(name: str, table: str, first: int) -> Transaction:
    with (IRIS / f"{name}.csv").open(newline="") as file:
        rows = [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]
    return [Change(table, {"id": i, **row}) for i, row in enumerate(rows, first)]


def test_iris(engine: Options, broker: KafkaBroker, topic_prefix: str) -> None:
    """The flowers of the published example: so many of 11 are right after each training; and by the other model."""
    names = ("train1", "test", "train2", "test", "train2", "test")
    transactions = [flowers(name, "test" if name == "test" else "train", i * 1000) for i, name in enumerate(names)]
    features = ["sepal_length", "sepal_width", "petal_length", "petal_width"]

    def declare(app: hr.App, db: hr.Topics) -> None:
        for name, learner, every in (("flink", FLINK, 32), ("spark", SPARK, "transaction")):
            model = app.model(name, learner, features=features).learn(db["public.train"], every=every)
            model.predict(db["public.test"]).to(f"{app.name}-{name}")

    found = check(declare, transactions, engine, broker, topic_prefix)
    rows = found.rows["-flink"]
    hits = [row["id"] // 2000 for row in rows if row["prediction"] == row["iris_class"]]
    assert [hits.count(part) for part in range(3)] == [5, 7, 9] and len(found.rows["-spark"]) == 33
