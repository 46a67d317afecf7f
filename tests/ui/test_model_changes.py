"""Retrain, promote, tag, roll back and reset from a page: of a stopped pipeline, and of one that runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

import headrace as hr
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.log.kafka import KafkaLog
from headrace.log.topic_metadata import STATUS
from headrace.registry.requests import read_requests
from headrace.registry.versions import VersionList
from headrace.serve.keys import KeyFile
from headrace.serve.settings import ServeSettings
from headrace.testing import KafkaBroker
from tests.serve.client import Client
from tests.ui.conftest import cluster_dashboard, dashboard_of


@pytest.fixture
def own_log(fish_log: Path, tmp_path: Path) -> Path:
    """A copy of the fish's log, which a test may change."""
    return Path(shutil.copy(fish_log, tmp_path / "fish.headrace"))


SAME_SITE = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}


def post(client: Client, path: str, key: str = "", **values: str) -> str:
    """Return the status and the page of an answer."""
    headers = SAME_SITE | ({"X-Api-Key": key} if key else {})
    got = client.post(f"/ui/models/{path}", urlencode(values).encode(), headers)
    return f"{got.status} {got.body.decode()}"


def test_changes_of_a_stopped_pipeline_are_done_or_wait_in_its_log(page: Any, own_log: Path) -> None:
    with dashboard_of(own_log) as url:
        page.goto(f"{url}/models/weight/1")
        page.get_by_role("button", name="Tag…").click()
        page.get_by_text("The state of a version with a tag is kept").wait_for()
        page.get_by_role("textbox", name="Tag").fill("best")
        page.get_by_role("button", name="Tag it").click()
        page.get_by_text("Version 1 of weight: best.").wait_for()
        page.get_by_role("button", name="Close").locator("visible=true").click()
        page.get_by_role("button", name="Roll back…").click()
        page.get_by_text("weight goes on from version 1: a new version begins").wait_for()
        page.get_by_role("button", name="Roll back to version 1").click()
        page.get_by_text("weight goes on from version 1 when its pipeline starts.").wait_for()
        page.goto(f"{url}/models/weight")
        page.get_by_text("rollback to version 1 when its pipeline starts").wait_for()
        page.get_by_role("button", name="Retrain…").click()
        page.get_by_text("(the last 50 rows)").locator("visible=true").first.wait_for()
        page.get_by_role("button", name="Retrain now").click()
        page.get_by_text("weight is trained anew when its pipeline starts.").wait_for()
        page.goto(f"{url}/models/weight")
        page.get_by_role("button", name="Reset…").click()
        page.get_by_label("begin with new rows").check()
        page.get_by_role("button", name="Forget and begin anew").click()
        page.get_by_text("weight begins anew, as version 3, when its pipeline starts.").wait_for()
        page.goto(f"{url}/models/weight?at=weight-prediction:40")
        page.get_by_role("heading", name="weight", exact=True).wait_for()
        assert page.get_by_role("button", name="Reset…").count() == 0  # the past is not changed
    log = open_log(str(own_log), writer=False)
    versions = VersionList.read(log, "weight")
    assert versions.find("best").version == 1 and versions.current is not None
    assert versions.current.reason == "reset: begins after what was consumed"
    assert [wish.action for wish in read_requests(log)] == ["retrain"]
    log.close()


def test_what_cannot_be_done_says_why_and_what_to_do(own_log: Path) -> None:
    with dashboard_of(own_log) as url:
        client = Client(url.removesuffix("/ui"))
        assert "is the current one" in post(client, "weight/rollback", version="2")
        assert "cannot be a tag" in post(client, "weight/tag", version="1", tag="7")
        assert "It has: 1 to 2." in post(client, "weight/tag", version="<b>", tag="x")
        assert "there is no model" in post(client, "nobody/retrain")
        assert post(client, "weight/explode").startswith("404")
        assert client.post("/ui/models/weight/retrain", b"", {"Sec-Fetch-Site": "cross-site"}).status == 403
        client.close()


def test_going_back_and_resetting_need_the_scope_admin(own_log: Path, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys")
    _, trainer = keys.create("trainer", ["read", "train"])
    with dashboard_of(own_log, keys=keys) as url:
        client = Client(url.removesuffix("/ui"))
        for action, status in (("retrain", "200"), ("rollback", "403"), ("reset", "403")):
            assert post(client, f"weight/{action}", trainer, version="1").startswith(status), action
        shown = client.get("/ui/models/weight/1", {"X-Api-Key": trainer}).body.decode()
        assert "Tag…" in shown and "Roll back…" not in shown
        client.close()


@pytest.fixture
def running(tmp_path: Path) -> hr.App:
    return declared("line", str(tmp_path / "line.headrace"))


def declared(name: str, log: str) -> hr.App:
    app = hr.App(name, log=log)
    line = app.model("line", hr.LinearRegression(), features=["x"], target="y")
    of = "" if name == "line" else f"{name}."
    truth = app.topic(f"{of}truth", append=True)
    predicted = line.predict(app.topic(f"{of}points", append=True)).to(f"{of}answers")
    graded = predicted.grade(truth, on="id", within="1 h", metric=hr.metrics.absolute_error).to(f"{of}graded")
    line.retrain(rows=graded.last(10))
    return app


def test_a_pipeline_that_runs_is_asked_and_its_answer_shown(running: hr.App) -> None:
    with running.start(serve=ServeSettings(port=0)) as started:
        started.append("points", [{"id": n, "x": float(n)} for n in range(4)])
        started.append("truth", [{"id": n, "y": 2.0 * n} for n in range(4)])
        started.wait()
        assert started.server is not None
        client = Client(started.server.url)
        assert "trained: version 2, on 4 rows" in post(client, "line/retrain")
        assert "Version 2 of line: good." in post(client, "line/tag", version="2", tag="good")
        assert "from version 1" in post(client, "line/rollback", version="1")
        assert "a log has one writer" in post(client, "line/reset")
        client.close()


def test_models_on_a_cluster_are_changed_where_that_ends_no_run(broker: KafkaBroker, topic_prefix: str) -> None:
    where = f"kafka://{broker.bootstrap}"
    with (
        declared(topic_prefix, where).start(serve=ServeSettings(port=0)) as started,
        cluster_dashboard(f"{where}/{topic_prefix}") as elsewhere,
    ):
        started.append(f"{topic_prefix}.points", [{"id": n, "x": float(n)} for n in range(4)])
        started.append(f"{topic_prefix}.truth", [{"id": n, "y": 2.0 * n} for n in range(4)])
        started.wait()
        assert started.server is not None
        client, other = Client(started.server.url), Client(elsewhere.removesuffix("/ui"))
        # Beside the pipeline it is asked; from another process nothing is written while it runs.
        assert "trained: version 2, on 4 rows" in post(client, "line/retrain")
        assert "Version 2 of line: good." in post(client, "line/tag", version="2", tag="good")
        assert "no version «9»" in post(client, "line/tag", version="9", tag="good")
        assert "from version 1" in post(client, "line/rollback", version="1")
        assert "would end it" in post(client, "line/reset") and "would end it" in post(other, "line/retrain")
        client.close()
        started.stop()
        # Stopped, it says so, and the log is written to, or keeps the wish.
        assert "Version 1 of line: old." in post(other, "line/tag", version="1", tag="old")
        assert "line is trained anew when its pipeline starts." in post(other, "line/retrain")
        assert "line begins anew, as version 4, when its pipeline starts." in post(other, "line/reset")
        log = KafkaLog(KafkaLocation.parse(f"{where}/{topic_prefix}"), writer=True)
        with log.transaction() as txn:
            txn.delete(STATUS, topic_prefix)
        log.close()
        assert "whether the pipeline runs is not known" in post(other, "line/tag", version="1", tag="older")
        assert "Version 1 of line: old, older." in post(other, "line/tag", version="1", tag="older", stopped="yes")
        other.close()


def test_a_training_shows_itself_on_an_open_page(page: Any, running: hr.App) -> None:
    with running.start(serve=ServeSettings(port=0)) as started:
        started.append("points", [{"id": n, "x": float(n)} for n in range(4)])
        started.append("truth", [{"id": n, "y": 2.0 * n} for n in range(4)])
        started.wait()
        assert started.server is not None
        page.goto(f"{started.server.url}/ui/models/line")
        page.locator("body[data-stream=open]").wait_for()
        page.locator("[data-live='model:line/version']", has_text="v1").wait_for()
        page.get_by_text("It has not been trained anew yet.").wait_for()
        started.retrain("line")
        page.get_by_role("link", name="trained version 2 on 4 rows (the last 10 rows)", exact=True).wait_for()
        page.get_by_role("region", name="Versions", exact=True).get_by_role("link", name="2", exact=True).wait_for()


def test_each_button_against_a_pipeline_that_runs(page: Any, tmp_path: Path) -> None:
    """Each says what it will do, asks, and shows what came of it; versions that begin are on the page at once."""
    app = hr.App("line", log=str(tmp_path / "line.headrace"))
    line = app.model("line", hr.LinearRegression(), features=["x"], target="y")
    predicted = line.predict(app.topic("points", append=True)).to("answers")
    graded = predicted.grade(app.topic("truth", append=True), on="id", within="1 h", metric=hr.metrics.absolute_error)
    line.retrain(rows=graded.to("graded").last(10), shadow=True, promote=1000)

    def asked(button: str, what: str, do: str, outcome: str) -> None:
        page.get_by_role("button", name=f"{button}…").click()
        dialog = page.get_by_role("dialog", name=button)
        dialog.get_by_text(what).wait_for()
        dialog.get_by_role("button", name=do).click()
        dialog.get_by_text(outcome).wait_for()
        dialog.get_by_role("button", name="Close").click()

    with app.start(serve=ServeSettings(port=0)) as started:
        assert started.server is not None

        def rows(slope: float) -> None:
            first = int(slope) * 10
            started.append("points", [{"id": first + n, "x": float(n)} for n in range(4)])
            started.append("truth", [{"id": first + n, "y": slope * n} for n in range(4)])
            started.wait()

        versions = page.get_by_role("region", name="Versions", exact=True)
        rows(2.0)
        page.goto(f"{started.server.url}/ui/models/line")
        page.locator("body[data-stream=open]").wait_for()
        trains = "Trains line anew, on the rows that its declaration says (the last 10 rows)"
        asked("Retrain", trains, "Retrain now", "Version 2 is tried out beside the current one, on 4 rows.")
        rows(3.0)
        assert versions.get_by_role("link", name="2", exact=True).count() == 0
        asked("Promote", "takes over, without waiting for more grades", "Promote it", "promoted: version 2")
        versions.get_by_role("link", name="2", exact=True).wait_for()
        page.get_by_role("link", name="promoted version 2").first.wait_for()
        asked("Reset", "The pipeline must be stopped.", "Forget and begin anew", "a log has one writer")
        page.goto(f"{started.server.url}/ui/models/line/1")
        page.get_by_role("button", name="Tag…").click()
        page.get_by_role("textbox", name="Tag").fill("good")
        page.get_by_role("button", name="Tag it").click()
        page.get_by_text("Version 1 of line: good.").wait_for()
        page.get_by_role("button", name="Close").locator("visible=true").click()
        asked("Roll back", "line goes on from version 1", "Roll back to version 1", "from version 1.")
        page.goto(f"{started.server.url}/ui/models/line")
        versions.get_by_role("row").filter(has_text="rollback to version 1").wait_for()
        versions.get_by_role("row").filter(has_text="good").wait_for()
        page.locator("[data-live='model:line/version']", has_text="v3").wait_for()
    with dashboard_of(tmp_path / "line.headrace") as url:
        page.goto(f"{url}/models/line")
        asked("Promote", "takes over, without waiting for more grades", "Promote it", "when its pipeline starts.")
        page.goto(f"{url}/models/line")
        page.get_by_text("promote when its pipeline starts").wait_for()
