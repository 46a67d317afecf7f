"""`POST /train`: a new version of a model that is declared to be trained anew, here and from a follower."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.engines.local.running import Running
from headrace.errors import LearnError
from tests.waiting import wait_until

from .client import FISH, SEEDS, Client, following, serving
from .factory import factory
from .test_endpoint import Slow


def weigh(running: Running, first: int, last: int) -> None:
    """Measure some fish, and weigh them."""
    rows = [{**FISH[i % 6], "Fish_Id": i, "Length": 50.0 + i} for i in range(first, last)]
    running.append("measured", [{name: value for name, value in row.items() if name != "Weight"} for row in rows])
    running.append("weighed", [{"Fish_Id": row["Fish_Id"], "Weight": row["Length"] / 20} for row in rows])
    running.wait()


@contextlib.contextmanager
def asking(app: Any, other: bool, log: Path) -> Iterator[tuple[Running, Client]]:
    """The pipeline, and a client of its own server, or of a follower's."""
    with serving(app()) as (running, client):
        if not other:
            yield running, client
            return
        with following(app()) as theirs:
            yield running, theirs


WHERE = pytest.mark.parametrize("other", [False, True], ids=["here", "from a follower"])


@WHERE
def test_the_version_and_its_time_change(tmp_path: Path, other: bool) -> None:
    log = tmp_path / "fish.headrace"
    with asking(lambda: factory(log), other, log) as (running, client):
        before = client.get("/prediction", **SEEDS)
        assert (before.status, before.headers["headrace-version"]) == (200, "1")
        refused = client.post("/train")
        assert refused.status == 409, "there are no grades yet"
        weigh(running, 0, 30)
        # The time has whole seconds.
        wait_until(lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S") > before.json["ModelTime"])
        got = client.post("/train")
        assert (got.status, got.json["status"], got.json["version"], got.json["rows"]) == (200, "trained", 2, 30)
        after = client.get("/prediction", **SEEDS)
        assert after.headers["headrace-version"] == got.headers["headrace-version"] == "2"
        assert after.json["ModelTime"] == got.json["ModelTime"] > before.json["ModelTime"]
        assert after.json["Weight"] == pytest.approx(86.37 / 20)
        again = client.post("/train")
        assert (again.status, again.json["version"]) == (409, 2)
        assert "the rows are those of the last training" in again.json["detail"]
        assert running["weight"].version == 2
        weigh(running, 30, 40)
        assert client.post("/train").json["version"] == 3


@WHERE
def test_a_long_training_answers_meanwhile_and_is_busy(tmp_path: Path, other: bool) -> None:
    log = tmp_path / "fish.headrace"
    Slow.may_end.set()
    with asking(lambda: factory(log, learner=Slow(), swap="when_ready"), other, log) as (running, client):
        weigh(running, 0, 30)
        Slow.begun.clear()
        Slow.may_end.clear()
        try:
            got = client.post("/train")
            assert (got.status, got.json["status"]) == (202, "started")
            wait_until(Slow.begun.is_set)
            busy = client.post("/train")
            assert busy.status == 409
            assert "is being trained" in busy.json["detail"]
            assert (busy.json["model"], busy.json["version"]) == ("weight", 1)
            with pytest.raises(LearnError, match="is being trained"):
                running.retrain("weight")
            assert client.get("/prediction", **SEEDS).headers["headrace-version"] == "1"
        finally:
            Slow.may_end.set()
        wait_until(lambda: client.get("/prediction", **SEEDS).headers["headrace-version"] == "2")
        assert client.get("/prediction", **SEEDS).json["Weight"] == pytest.approx(86.37 / 20)


def test_rows_of_a_topic_that_the_model_does_not_read(tmp_path: Path) -> None:
    app = hr.App("fish", log=tmp_path / "fish.headrace")
    measured, collected = app.topic("measured", append=True), app.topic("collected", append=True)
    model = app.model("weight", hr.LinearRegression(), features=["Length", "Height"], target="Weight")
    model.predict(measured).to("answers")
    model.retrain(rows=collected.all())
    model.serve()
    with serving(app) as (running, client):
        running.append("collected", FISH)
        got = client.post("/train")
        assert (got.status, got.json["rows"]) == (200, 6), got.body
        assert client.get("/prediction", length=86.0, height=18.7).status == 200
        running.append("collected", FISH[:2])
        assert running.retrain("weight")["rows"] == 8


def test_two_who_ask_at_once_get_two_answers(tmp_path: Path) -> None:
    """One trains, the others are told so: nobody waits in line, nothing is trained twice."""
    with serving(factory(tmp_path / "fish.headrace")) as (running, client):
        weigh(running, 0, 30)
        found: list[int] = []

        def ask() -> None:
            mine = Client(client.url)
            found.append(mine.post("/train").status)
            mine.close()

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(found) == [200] + [409] * 5
        assert running["weight"].version == 2
