"""Predictions asked over HTTP are predictions of the model: written to its topic and graded like any other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.engines.local.append_source import AppendSource
from headrace.engines.local.running import Running
from headrace.engines.local.serving.replica import Replica
from headrace.errors import DeclarationError
from headrace.log import open_log
from headrace.replay.verify import verify
from tests.processes import HEADRACE, run_python
from tests.waiting import wait_until

from .client import following, serving
from .factory import factory
from .test_following import clients_of, command, write_file

SALMON: dict[str, Any] = {"length": 86.37, "height": 18.74, "species": "salmon"}


def measurement(fish: int) -> dict[str, Any]:
    return {"Fish_Id": fish, "Length": 80.0 + fish / 10, "Height": 18.0, "Species": "salmon"}


def weigh(running: Running, *fish: int) -> None:
    running.append("weighed", [{"Fish_Id": fish_id, "Weight": 4.0} for fish_id in fish])
    running.wait()


def grades(app: hr.App) -> dict[int, dict[str, Any]]:
    """The grade of each fish; there is one."""
    rows = app.topic("weight-diff").read().to_arrow().to_pylist()
    found = {row["Fish_Id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def verified(log: Path) -> None:
    """What the log holds is what a replay gives: every hash, every row."""
    held = open_log(str(log), writer=False)
    try:
        report = verify(factory(log).plan(), held)
    finally:
        held.close()
    assert report.result == "equal", report
    assert sum(task.rows for task in report.tasks) > 0


def test_an_answer_is_graded_when_its_label_comes(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    app = factory(log)
    with serving(app) as (running, client):
        got = client.get("/prediction", **SALMON, fish=1)
        assert got.status == 200, got.body
        running.append("measured", [measurement(2)])
        assert client.get("/prediction", **SALMON, fish=3).status == 200
        weigh(running, 3, 2, 1)
        found = grades(app)
        assert {row["status"] for row in found.values()} == {"graded"}
        answered = got.json["Weight"]
        assert found[1]["prediction"] == found[3]["prediction"] == answered
        assert found[1]["error"] == pytest.approx(abs(answered - 4.0) / 4.0, rel=1e-12)
        rows = app.topic("weight-prediction").read().to_arrow()
        assert rows.column("Fish_Id").to_pylist() == [1, 2, 3]
        # What waits for the task is no topic to be asked about.
        assert client.get("/prediction", **SALMON, at_least="__headrace.fish.served.weight-prediction:0").status == 422
    verified(log)


def test_several_in_one_round(tmp_path: Path) -> None:
    """The engine is held up; requests and rows gather meanwhile, and are dealt with together."""
    log = tmp_path / "fish.headrace"
    app = factory(log)
    with serving(app) as (running, client), ThreadPoolExecutor(30) as threads, clients_of(*[client.url] * 20) as many:
        queue = next(source for source in running.engine.sources if isinstance(source, AppendSource))
        with running.engine.guard:
            asked = [threads.submit(item.get, "/prediction", None, **SALMON, fish=i) for i, item in enumerate(many)]
            appended = [threads.submit(running.append, "measured", [measurement(100 + i)]) for i in range(8)]
            wait_until(lambda: queue._queued >= 9)
            asked += [threads.submit(running.append, "weighed", [{"Fish_Id": 100, "Weight": 4.0}])]
            wait_until(lambda: queue._queued >= 10)
        answers = [future.result(20) for future in asked[:-1]]
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        for future in appended:
            future.result(20)
        weigh(running, *range(20), *range(101, 108))
        found = grades(app)
        assert found.keys() == {*range(20), *range(100, 108)}
        assert {row["status"] for row in found.values()} == {"graded"}
        assert {found[i]["prediction"] for i in range(20)} == {answers[0].json["Weight"]}
        steps = running.log.topics()["__headrace.fish.served.weight-prediction"]
        assert steps.entries < 20  # they came together
    verified(log)


def test_after_a_restart_they_still_wait(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    with serving(factory(log)) as (running, client):
        first = client.get("/prediction", **SALMON, fish=1)
        running.append("measured", [measurement(2)])
    app = factory(log)
    with serving(app) as (running, client):
        second = client.get("/prediction", **SALMON, fish=3)
        assert second.json == first.json
        weigh(running, 1, 2, 3)
        assert {fish: row["status"] for fish, row in grades(app).items()} == dict.fromkeys((1, 2, 3), "graded")
    verified(log)


def test_a_training_takes_them_too(tmp_path: Path) -> None:
    """What was asked is trained on; its grade names the version that answered, whatever came meanwhile."""
    log = tmp_path / "fish.headrace"
    app = factory(log)
    with serving(app) as (running, client):
        before = client.get("/prediction", **SALMON, fish=1)
        for i in range(2, 8):
            assert (
                client.get("/prediction", **(SALMON | {"length": 80 + i, "height": 18 + i % 3}), fish=i).status == 200
            )
        weigh(running, *range(2, 8))
        got = client.post("/train")
        assert (got.status, got.json["version"], got.json["rows"]) == (200, 2, 6), got.body
        after = client.get("/prediction", **SALMON, fish=8)
        assert after.headers["headrace-version"] == "2"
        assert after.json["Weight"] != before.json["Weight"]
        weigh(running, 1, 8)
        found = grades(app)
        assert (found[1]["model_version"], found[8]["model_version"]) == (1, 2)
        assert (found[1]["prediction"], found[8]["prediction"]) == (before.json["Weight"], after.json["Weight"])
    verified(log)


def test_from_a_follower(tmp_path: Path) -> None:
    """Another process answers; the one that runs the pipeline, and need not be served itself, writes and grades."""
    log = tmp_path / "fish.headrace"
    app = factory(log)
    with app.start() as running:
        file = str(write_file(tmp_path, f"factory({str(log)!r})", more="from serve.factory import factory"))
        with command(file, "--json", "--no-run") as (_, url), clients_of(url) as (client,):
            got = client.get("/prediction", **SALMON, fish=1)
            assert got.status == 200, got.body
            running.append("measured", [measurement(2)])
            assert client.get("/prediction", **SALMON, fish=3).status == 200
            weigh(running, 1, 2, 3)
            found = grades(app)
            assert {fish: row["status"] for fish, row in found.items()} == dict.fromkeys((1, 2, 3), "graded")
            assert found[1]["prediction"] == found[3]["prediction"] == got.json["Weight"]
    done = run_python([HEADRACE, "verify", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_from_here_and_from_a_follower_at_once(tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    app = factory(log)
    with serving(app) as (running, client), following(factory(log)) as other:
        for fish in range(0, 12, 3):
            assert client.get("/prediction", **SALMON, fish=fish).status == 200
            assert other.get("/prediction", **SALMON, fish=fish + 1).status == 200
            running.append("measured", [measurement(fish + 2)])
        weigh(running, *range(12))
        assert {fish: row["status"] for fish, row in grades(app).items()} == dict.fromkeys(range(12), "graded")
        assert client.post("/train").status == 200
        # The follower repeats what was recorded, grades and training too, to the bit.
        wait_until(lambda: other.get("/prediction", **SALMON, fish=90).headers["headrace-version"] == "2")
        here, there = client.get("/prediction", **SALMON, fish=91), other.get("/prediction", **SALMON, fish=92)
        assert here.body == there.body
    verified(log)


def test_a_follower_that_dies_leaves_what_it_handed_over(tmp_path: Path) -> None:
    """Nobody writes at the moment: the row is withdrawn, and said not to be there; nothing of it is graded later."""
    log = tmp_path / "fish.headrace"
    with serving(factory(log)):
        pass
    follower = Replica.of(factory(log).plan())
    try:
        made = follower.current("weight")
        assert made.ready
        with pytest.raises(hr.errors.HeadraceError, match="took no rows"):
            follower.record("weight-prediction", pa.RecordBatch.from_pylist([{"Fish_Id": 1, "prediction": 4.0}]), 0.05)
    finally:
        follower.stop()
    app = factory(log)
    with serving(app) as (running, _):
        running.wait()
        assert "weight-prediction" not in running.log.topics()


def test_a_topic_of_another_model_is_refused() -> None:
    app = hr.App("two", log="memory://")
    rows = app.topic("rows", append=True)
    one = app.model("one", hr.LinearRegression(), features=["x"], target="y")
    one.learn(rows)
    one.predict(rows).to("answers")
    two = app.model("two", hr.LinearRegression(), features=["x"], target="y")
    two.learn(rows).serve(log_to="answers")
    with pytest.raises(DeclarationError, match="answers"):
        app.start()
