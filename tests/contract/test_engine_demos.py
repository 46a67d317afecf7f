"""The fish demo's pipeline on Spark and on Flink: byte for byte what `local` writes, and the very models."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

import headrace as hr
from headrace.demos.fish import events, pipeline
from headrace.testing.servers import KafkaBroker

from .engine_runs import Change, Comparison, Database, Options, Transaction


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


@pytest.mark.timeout(300)
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
