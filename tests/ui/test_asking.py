"""Asking a model from its page: of a log alone, by a version, as it was, and live while a pipeline learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.log import open_log
from headrace.log.base import Log
from headrace.serve.models import Column
from headrace.serve.settings import ServeSettings
from headrace.ui.read.flows import flows_of
from headrace.ui.read.moment import moment_at, now
from headrace.ui.read.predictor import Predictor, parsed
from headrace.ui.read.states import States

WALLEYE = {"Species": "walleye", "Length": "87.021", "Height": "17.094"}


@pytest.fixture(scope="module")
def log(fish_log: Path) -> Iterator[Log]:
    held = open_log(str(fish_log), writer=False)
    yield held
    held.close()


def test_a_model_is_asked_from_its_log_alone(log: Log) -> None:
    asked = Predictor(None, States()).ask(now(log), "weight", WALLEYE)
    assert (asked.version, asked.position, asked.reason) == (2, "0/0:85", "")
    assert float(asked.prediction) == pytest.approx(2.4, abs=0.4)  # a walleye, of which version 1 knew nothing


def test_a_prediction_by_a_version_is_to_the_bit_that_of_then(log: Log) -> None:
    by_number = Predictor(None, States()).ask(now(log), "weight", WALLEYE, "1")
    then = Predictor(None, States()).ask(moment_at(log, "weight-prediction:80"), "weight", WALLEYE)
    assert (by_number.version, then.version) == (1, 1)
    assert by_number.prediction == then.prediction == "4.507924535210249"  # row 80 of weight-prediction


def test_the_form_has_the_newest_row_and_the_versions_of_then(log: Log) -> None:
    moment = moment_at(log, "weight-prediction:80")
    form = Predictor(None, States()).form(moment, flows_of(moment), "weight", {})
    assert {field.column.name: field.text for field in form.fields} == WALLEYE
    assert form.versions == ["1"]


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("", "the feature «Length» is NULL"),
        ("x", "Length: x is no number"),
        ("nan", "Length: it is no finite number"),
        ("1e999", "Length: it is no finite number"),
        ("<script>", "Length: <script> is no number"),
    ],
)
def test_what_is_no_value_says_why(log: Log, length: str, reason: str) -> None:
    assert Predictor(None, States()).ask(now(log), "weight", WALLEYE | {"Length": length}).reason == reason


def test_bytes_and_vectors_are_read_from_texts() -> None:
    assert parsed(Column("image", "bytes"), "AAEC") == bytes([0, 1, 2])
    assert parsed(Column("vector", "numbers"), "[1, 2.5]") == [1.0, 2.5]
    with pytest.raises(ValueError, match="base64"):
        parsed(Column("image", "bytes"), "…")


def test_a_fish_that_a_person_types_in_is_predicted(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/models/weight")
    page.get_by_label("Species").fill("walleye")
    page.get_by_label("Length").fill("87.021")
    page.get_by_label("Height").fill("17.094")
    page.get_by_role("button", name="Predict").click()
    page.locator("#asked output", has_text="2.4").wait_for()
    page.get_by_label("by version", exact=True).select_option("1")
    page.locator("#asked output", has_text="4.507924535210249").wait_for()
    page.get_by_label("Length").fill("long")
    page.get_by_text("long is no number").wait_for()


def test_what_is_asked_changes_as_the_model_learns(page: Any, tmp_path: Path) -> None:
    app = hr.App("line", log=str(tmp_path / "line.headrace"))
    rows = app.topic("points", append=True)
    line = app.model("line", hr.LinearRegression(), features=["x"], target="y")
    line.learn(rows, every=2)
    line.predict(app.topic("asked", append=True)).to("answers")
    with app.start(serve=ServeSettings(port=0)) as running:
        running.append("points", [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}])
        running.wait()
        assert running.server is not None
        page.goto(f"{running.server.url}/ui/models/line")
        page.get_by_label("x", exact=True).fill("10")
        page.locator("#asked output", has_text="20").wait_for()
        page.locator("body[data-stream=open]").wait_for()
        page.locator("#asked", has_text="0/0:1").wait_for()
        running.append("points", [{"x": 1.0, "y": 102.0}, {"x": 2.0, "y": 104.0}])
        page.locator("#asked", has_text="0/0:3").wait_for()
        page.locator("#asked output", has_text="70").wait_for()
        assert page.get_by_label("x", exact=True).input_value() == "10"
