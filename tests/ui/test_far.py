"""What a row led to is linked however far away it is; how many predictions wait for labels is counted exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.inspect.health import read_status
from headrace.log import open_log
from headrace.log.base import Log
from headrace.ui.read import relations
from headrace.ui.read.curves import Tables
from headrace.ui.read.moment import moment_at, now
from headrace.ui.read.pipeline import Numbers, graph_of, look
from headrace.ui.read.relations import Finder, Relation, found_row, relations_of
from tests.waiting import wait_until

COUNT, ASIDE = 3 * relations.LOOKED_AT, 7


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Predictions whose labels come when all are made, the last ones never; one label is corrected. It runs on."""
    path = tmp_path_factory.mktemp("far") / "far.headrace"
    app = hr.App("far", log=path)
    model = app.model("size", hr.LinearRegression(), features=["x"], target="y")
    predicted = model.predict(app.topic("points", append=True)).to("sizes")
    truth = app.topic("truth", append=True)
    graded = predicted.grade(truth, on="id", within="30 d", metric=hr.metrics.absolute_error).to("graded")
    model.retrain(rows=graded.last(1000))
    ids = np.arange(COUNT)
    with app.start() as running:
        running.append("points", pa.table({"id": ids, "x": ids / 7}))
        running.wait()
        running.append("truth", pa.table({"id": ids[:-ASIDE], "y": ids[:-ASIDE] / 3}))
        running.append("truth", pa.table({"id": [0], "y": [5.0]}))
        running.wait()
        yield path


@pytest.fixture(scope="module")
def log(path: Path) -> Iterator[Log]:
    held = open_log(str(path), writer=False)
    yield held
    held.close()


def links(found: list[Relation]) -> dict[str, list[str]]:
    return {relation.title: [link.text for link in relation.links] or [relation.note] for relation in found}


def test_a_label_and_its_grade_are_linked_though_many_rows_lie_between(log: Log) -> None:
    found = links(relations_of(now(log), "sizes", 5))
    assert found["Grade"] == ["graded 5"] and found["Label"] == ["truth 5"] and found["Input"] == ["points 5"]
    first = links(relations_of(now(log), "sizes", 0))
    assert first["Grade"] == ["graded 0", f"graded {COUNT - ASIDE:,}"]
    last = links(relations_of(now(log), "sizes", COUNT - 1))
    assert last["Grade"] == ["No label has come yet: it is pending."]
    back = links(relations_of(now(log), "truth", COUNT - ASIDE - 1))
    assert back["Grade"] == [f"graded {COUNT - ASIDE - 1:,}"]
    grade = links(relations_of(now(log), "graded", 41_234))
    assert (grade["Prediction"], grade["Label"]) == (["sizes 41,234"], ["truth 41,234"])
    then = links(relations_of(moment_at(log, f"sizes:{COUNT - 1}"), "sizes", 5))
    assert then["Grade"] == ["No label has come yet: it is pending."]


def test_a_search_that_takes_long_says_so_and_leads_on(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relations, "SECONDS", -1.0)
    found = relations_of(now(log), "sizes", COUNT - 1)
    (grade,) = (relation for relation in found if relation.title == "Grade")
    assert grade.note == "Not among the 1,024 rows that came next."
    (link,) = grade.links
    assert link.query["filter"] == f"prediction_position = '0/0:{COUNT - 1}'"
    row = found_row(now(log), "sizes", COUNT - 1)
    assert row is not None
    finder = Finder(now(log))
    assert not finder.grades_of(row, "size") and finder.unfinished[0].left > 0


def test_predictions_that_wait_are_counted_and_those_that_may_change_are_not(log: Log) -> None:
    assert Tables().waiting(Finder(now(log)), "size", "graded") == ASIDE
    tables, then = Tables(), moment_at(log, f"sizes:{COUNT - 1}")
    assert tables.waiting(Finder(then), "size", "graded") == COUNT
    assert tables.waiting(Finder(now(log)), "size", "graded") == ASIDE

    def gauges() -> dict[str, float]:
        return {gauge["name"]: gauge["value"] for gauge in read_status(log).figures.get("gauges", ())}

    wait_until(lambda: gauges().get("waiting_predictions") == ASIDE, "the gauge counts them")
    assert gauges()["pending_labels"] == COUNT
    numbers = Numbers(graph_of(log)).take(look(log))
    assert numbers["log/unlabelled"] == str(ASIDE)
    assert numbers["operator:size/1/note"] == f"{ASIDE} wait for labels"
