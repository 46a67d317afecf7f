"""Curves of a model: every extreme is there, whatever the buckets; groups, scores, delays, marks, and as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headrace as hr
from headrace.log import open_log
from headrace.log.base import Log
from headrace.ui.read.curves import POINTS, Chart, Tables, bucketed, curves_of
from headrace.ui.read.models import model_of
from headrace.ui.read.moment import moment_at, now
from headrace.ui.read.relations import relations_of


@pytest.mark.parametrize("time", [False, True])
def test_no_extreme_is_hidden_by_buckets(time: bool) -> None:
    random = np.random.default_rng(7)
    x, y = np.sort(random.uniform(0, 1e6, 100_000)), random.normal(size=100_000)
    y[[5, 70_000]] = 99.0, -99.0
    y[17] = np.nan
    at, mean, least, most = bucketed(x, y, time=time)
    assert len(at) <= POINTS and (least <= mean).all() and (mean <= most).all()
    assert (most.max(), least.min()) == (99.0, -99.0)
    assert most[int(np.searchsorted(at, x[5], "right")) - 1] == 99.0


@pytest.fixture(scope="module")
def log(fish_log: Path) -> Iterator[Log]:
    held = open_log(str(fish_log), writer=False)
    yield held
    held.close()


def chart_of(charts: list[Chart], title: str) -> Chart:
    return next(chart for chart in charts if chart.title.startswith(title))


def test_errors_of_the_fish_with_what_happened(log: Log) -> None:
    found = curves_of(Tables(), now(log), "weight", time=False)
    errors = chart_of(found.charts, "Error of each prediction")
    assert len(errors.values[1]) == 180
    assert [(mark["kind"], mark["x"]) for mark in errors.marks] == [
        ("alarm", 85.0),
        ("training", 85.0),
        ("version", 91.0),
    ]
    assert chart_of(found.charts, "Label delay").values[1][:3] == [10.0, 10.0, 10.0]
    windows = chart_of(found.charts, "ErrorAvg")
    assert windows.names == ["event time", "ErrorAvg", "alarm above"]
    assert max(value for value in windows.values[1] if value is not None) == pytest.approx(0.7019, abs=1e-4)
    assert [(line.version, line.rows) for line in found.by_version] == [(2, 89), (1, 91)]
    assert found.pending == 0
    assert not any(chart.title.startswith("Fish_Id") for chart in found.charts)


def test_curves_end_where_the_log_was_then_though_more_is_known(log: Log) -> None:
    tables = Tables()
    curves_of(tables, now(log), "weight", time=True)
    found = curves_of(tables, moment_at(log, "weight-diff:40"), "weight", time=True)
    errors = chart_of(found.charts, "Error of each prediction")
    assert (len(errors.values[1]), errors.marks, errors.time) == (41, [], True)
    assert [line.version for line in found.by_version] == [1]
    assert found.pending is not None and found.pending > 0


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Log]:
    """A classifier that learns online, with scores, and windows by group."""
    path = str(tmp_path_factory.mktemp("scored") / "scored.headrace")
    app = hr.App("scored", log=path)
    rows = app.topic("rows", append=True)
    model = app.model("signs", hr.KMeans(k=2, initial_centers=[[-1.0], [1.0]]), features=["x"])
    model.learn(rows, every=10)
    predicted = model.predict(rows).to("signs-predicted")
    truth = app.topic("truth", append=True)
    graded = predicted.grade(truth, on="id", within="1 h", metric=hr.metrics.absolute_error, target="y")
    windows = graded.to("signs-graded").window("1 s", by="side", time="at")
    windows.agg(wrong=hr.metrics.mean("error")).to("signs-windows")
    app.topic("signs-graded").window(5).agg(m=hr.metrics.mean("error")).above(-1.0, column="m").to("signs-alarms")
    with app.start() as running:
        for start in range(0, 60, 20):
            numbers = range(start, start + 20)
            times = [f"2026-01-01T00:00:{number:02d}Z" for number in numbers]
            xs = [1.0 if number % 2 else -1.0 for number in numbers]
            rows_ = [{"id": n, "x": x, "side": "<b>" if x < 0 else "right", "at": at}
                     for n, x, at in zip(numbers, xs, times, strict=True)]  # fmt: skip
            running.append("rows", rows_)
            running.append("truth", [{"id": n, "y": float(x > 0)} for n, x in zip(numbers, xs, strict=True)])
            running.wait()
    held = open_log(path, writer=False)
    yield held
    held.close()


def test_windows_have_a_curve_for_each_group(scored: Log) -> None:
    found = curves_of(Tables(), now(scored), "signs", time=True)
    windows = chart_of(found.charts, "wrong")
    assert sorted(windows.names[1:]) == ["<b>", "right"]
    for column in windows.values[1:]:
        assert {value for value in column if value is not None} == {0.0}


def test_an_alarm_over_a_window_without_a_topic_leads_to_its_rows_and_back(scored: Log) -> None:
    alarm = {relation.title: relation for relation in relations_of(now(scored), "signs-alarms", 7)}
    assert [link.parts for link in alarm["Grades"].links] == [("topics", "signs-graded", n) for n in range(42, 47)]
    assert [link.parts for link in alarm["Model"].links] == [("models", "signs")]
    graded = {relation.title: relation for relation in relations_of(now(scored), "signs-graded", 44)}
    assert [link.parts for link in graded["Alarm"].links] == [("alarms", "signs-alarms", 7)]


def test_a_table_of_newest_rows_takes_in_only_what_came_since(scored: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, moment = Tables(), now(scored)
    first = tables.newest(moment, "signs-graded", ["error"])
    read: list[Any] = []
    monkeypatch.setattr(type(moment), "rows", lambda self, topic, first, end: iter(read.append((first, end)) or ()))
    again = tables.newest(moment, "signs-graded", ["error"])
    assert again.equals(first) and read == [(60, 60)]


def test_curves_are_drawn_with_a_table_beside_each(page: Any, fish_dashboard: str) -> None:
    page.goto(f"{fish_dashboard}/models/weight")
    page.locator("#charts .uplot canvas").nth(2).wait_for()
    page.get_by_role("link", name="over time").click()
    page.locator("#charts [aria-current=true]", has_text="over time").wait_for()
    page.get_by_text("Numbers").first.click()
    page.locator("#charts details[open] td time", has_text="2021-06-10 00:00:10").wait_for()


def test_scores_and_the_confusion_matrix_of_then(tmp_path: Path) -> None:
    app = hr.App("scored", log=str(tmp_path / "scored.headrace"))
    rows = app.topic("rows", append=True)
    model = app.model("signs", hr.LinearRegression(), features=["x"], target="y")
    model.learn(rows, every=10)
    model.evaluate(rows, metrics=["mae", "rmse"], every=5)
    with app.start() as running:
        for start in (0, 20, 40):
            running.append("rows", [{"x": float(n), "y": 2.0 * n} for n in range(start, start + 20)])
            running.wait()
        moment = now(running.log)
        (scores,) = model_of(moment, "signs")[0].scores
        assert [name for name, _, _ in scores.metrics] == ["mae", "rmse"]
        charts = curves_of(Tables(), moment, "signs", time=False).charts
        assert [chart.title for chart in charts] == [f"mae of {scores.stream}", f"rmse of {scores.stream}"]
        assert charts[0].names == ["rows scored", "mae, all rows", "newest rows"]
