"""From a row to what it led to and what it came of, on the log of a fish demo: links, alarms by reason, versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.log import open_log
from headrace.log.base import Log
from headrace.ui.read.alarms import reasons_of
from headrace.ui.read.models import marks_of, model_lines, model_of, version_of
from headrace.ui.read.moment import moment_at, now
from headrace.ui.read.parameters import comparison_of, parameters_of
from headrace.ui.read.relations import Finder, found_row, relations_of
from headrace.ui.read.states import States
from tests.serve.client import Client


@pytest.fixture(scope="module")
def log(fish_log: Path) -> Iterator[Log]:
    held = open_log(str(fish_log), writer=False)
    yield held
    held.close()


def links_of(log: Log, topic: str, offset: int, at: str = "") -> dict[str, list[tuple[object, ...]]]:
    found = relations_of(moment_at(log, at), topic, offset)
    return {relation.title: [link.parts for link in relation.links] for relation in found}


def test_a_prediction_leads_to_its_version_input_label_grade_window_and_alarm(log: Log) -> None:
    assert links_of(log, "weight-prediction", 80) == {
        "Made by": [("models", "weight", 1), ("models", "weight")],
        "Input": [("topics", "machine-measurement", 80)],
        "Grade": [("topics", "weight-diff", 80)],
        "Label": [("topics", "machine-weight", 80)],
        "Window": [("topics", "weight-error", 2)],
        "Alarm": [("alarms", "weight-retrain", 0)],
    }


def test_an_alarm_leads_to_its_window_and_the_training_and_version_that_came_of_it(log: Log) -> None:
    assert links_of(log, "weight-retrain", 0) == {
        "Window": [("topics", "weight-error", 2)],
        "Training": [("topics", "weight-training", 0)],
        "New version": [("models", "weight", 2)],
        "Model": [("models", "weight")],
    }
    training = links_of(log, "weight-training", 0)
    assert training["Begun by"] == [("alarms", "weight-retrain", 0)]
    assert training["Rows that it was trained on"] == [("topics", "weight-diff")]


def test_a_window_leads_to_exactly_the_rows_that_it_counts(log: Log) -> None:
    finder = Finder(now(log))
    line = found_row(finder.moment, "weight-error", 2)
    window = finder.flows.writer("weight-error")
    assert line is not None and window is not None
    made_of = finder.rows_of(line, window)
    assert len(made_of) == line.values["rows"] == 30
    errors = [row.values["error"] for row in made_of]
    assert sum(errors) / len(errors) == pytest.approx(line.values["ErrorAvg"])
    assert [row.values["Fish_Id"] for row in (made_of[0], made_of[-1])] == ["56", "85"]


def test_inputs_and_labels_lead_to_predictions_and_grades(log: Log) -> None:
    assert links_of(log, "machine-measurement", 80) == {"Prediction": [("topics", "weight-prediction", 80)]}
    assert links_of(log, "machine-weight", 80) == {"Grade": [("topics", "weight-diff", 80)]}


def test_what_came_later_was_not_there_then(log: Log) -> None:
    assert "Grade" in links_of(log, "weight-prediction", 80)
    then = relations_of(moment_at(log, "weight-prediction:80"), "weight-prediction", 80)
    assert [(relation.title, relation.note) for relation in then if not relation.links] == [
        ("Grade", "No label has come yet: it is pending.")
    ]


def test_alarms_are_grouped_by_reason_with_what_came_of_them(log: Log) -> None:
    (reason,), silent = reasons_of(now(log))
    assert (reason.about, reason.count, reason.model, silent) == ("alarms: ErrorAvg above 0.15", 1, "weight", [])
    (alarm,) = reason.newest
    assert alarm.why.startswith("ErrorAvg 0.701912 is above 0.15")
    assert [training.parts for training in alarm.trainings] == [("topics", "weight-training", 0)]
    (before,), _ = reasons_of(moment_at(log, "weight-prediction:40"))
    assert before.count == 0


def test_versions_with_why_they_are_there(log: Log) -> None:
    found, finder = model_of(now(log), "weight")
    assert [(version.number, version.current) for version in found.versions] == [(2, True), (1, False)]
    assert [link.text for link in found.versions[0].trained] == ["weight-diff 36 to 85"]
    assert [mark.kind for mark in marks_of(finder, "weight")] == ["version", "alarm", "training", "version"]
    version = version_of(now(log), "weight", "2")
    why = {relation.title: relation.links[0].parts for relation in version.relations}
    assert why["Why it was trained"] == ("alarms", "weight-retrain", 0)


def test_before_the_retraining_version_1_predicted(log: Log) -> None:
    then = moment_at(log, "weight-prediction:40")
    found, finder = model_of(then, "weight")
    (only,) = found.versions
    assert (only.number, only.current, only.rows, only.position) == (1, True, 100, None)
    assert only.hash == "466dd97f73b8d8e668f0dae33ed0e70d"
    (line,) = model_lines(then, finder.flows)
    assert (line.version, line.predicted) == (1, 41)


def click(page: Any, section: str, text: str) -> None:
    page.locator(".relation", has_text=section).get_by_role("link", name=text, exact=True).first.click()


def test_from_an_alarm_to_the_new_version_in_five_clicks(page: Any, fish_dashboard: str) -> None:
    """A person finds why the model was retrained, and which rows it was trained on, without a search."""
    page.goto(f"{fish_dashboard}/alarms")
    page.locator("main").get_by_text("ErrorAvg 0.701912 is above 0.15").wait_for()
    page.get_by_role("link", name="0", exact=True).click()
    page.get_by_role("heading", name="ErrorAvg 0.701912 is above 0.15").wait_for()
    click(page, "Window", "weight-error 2")
    click(page, "Grades", "weight-diff 75")
    click(page, "Prediction", "weight-prediction 75")
    page.get_by_text("training.csv (100 rows), version 1").wait_for()
    click(page, "Made by", "weight")
    page.get_by_role("link", name="trained version 2 on 50 rows (the last 50 rows)", exact=True).wait_for()
    page.get_by_role("region", name="Versions").get_by_role("link", name="2", exact=True).click()
    page.get_by_role("heading", name="weight, version 2").wait_for()
    page.get_by_role("link", name="weight-retrain 0").wait_for()
    page.get_by_role("link", name="weight-diff 36 to 85").first.click()
    page.locator("#rows tbody tr").nth(49).wait_for()
    assert page.locator("#rows tbody tr th a").first.inner_text() == "85"


def test_what_is_not_there_says_what_is(fish_dashboard: str) -> None:
    client = Client(fish_dashboard.removesuffix("/ui"))
    for place, said in (
        ("models/nobody", "Its models: weight"),
        ("models/weight/9", "It has: 1 to 2."),
        ("alarms/weight-diff/3", "holds no alarm 3"),
        ("models/weight?at=soon", "soon"),
    ):
        got = client.get(f"/ui/{place}", {"Accept": "text/html"})
        assert got.status in (400, 404) and said in got.body.decode(), place
    client.close()


def test_two_versions_side_by_side_and_how_far_their_numbers_moved(page: Any, fish_dashboard: str, log: Log) -> None:
    found = parameters_of(States(), now(log), "weight")
    numbers = {number.name: number for number in found.numbers}
    assert (found.version, found.against) == (2, 1)
    assert numbers["Specieswalleye"].values[0] == pytest.approx(-2.07508, abs=1e-5)
    assert numbers["Specieswalleye"].moved is None  # version 1 knew no walleyes
    apart = numbers["Length"].values[0] - numbers["Length"].before[0]
    assert numbers["Length"].moved == pytest.approx((abs(apart), abs(apart)))
    page.goto(f"{fish_dashboard}/models/weight")
    page.get_by_role("button", name="Side by side").click()
    page.get_by_role("heading", name="weight, versions 1 and 2").wait_for()
    page.get_by_role("region", name="Parameters").get_by_text("Specieswalleye").wait_for()
    both = comparison_of(States(), now(log), "weight", "1", "2")
    assert [name for name, _, _ in both.positions] == ["position", "rows", "learned", "hash", "size"]
    assert any(array["changed"] for array in both.moved) and not both.why_not
