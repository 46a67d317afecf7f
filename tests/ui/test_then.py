"""Models as they were at a place of a log, though much has come since; and as they are, seen from another process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

import headrace as hr
from headrace.errors import LogError
from headrace.log import open_log
from headrace.log.base import Log
from headrace.registry.models import checkpoint_steps, read_progress
from headrace.registry.requests import Request
from headrace.registry.versions import VersionRecord
from headrace.replay import model_changes
from headrace.ui.read.models import marks_of, model_of
from headrace.ui.read.moment import moment_at, now
from headrace.ui.read.parameters import comparison_of, parameters_of
from headrace.ui.read.predictor import Predictor
from headrace.ui.read.states import States

ROUNDS = 6
ASKED = pa.table({"x": [10.0]})


def line(path: Path) -> hr.App:
    """A line that is learned row by row, with a new version after each four rows."""
    app = hr.App("line", log=path)
    model = app.model("line", hr.LinearRegression(), features=["x"], target="y", versions=4)
    model.learn(app.topic("points", append=True), every=2)
    model.predict(app.topic("asked", append=True)).to("answers")
    return app


def change(path: Path, action: str, version: str, tag: str = "") -> None:
    """Change a model as `headrace models` does, whether its pipeline runs or not."""
    model_changes.change(
        str(path),
        lambda: contextlib.closing(open_log(str(path), writer=True)),
        Request(action, "line", version, "me", tag),  # type: ignore[arg-type]  # one of its actions
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line whose slope was another in each round: it has predicted once after each, as offset of ``answers``."""
    path = tmp_path_factory.mktemp("line") / "line.headrace"
    with line(path).start() as running:
        for number in range(ROUNDS):
            running.append("points", [{"x": x, "y": (number + 1.0) * x} for x in (1.0, 2.0)])
            running.wait()
            running.append("asked", ASKED)
            running.wait()
            if number == 2:
                change(path, "tag", "1", "good")
            elif number == 3:
                change(path, "tag", "2", "good")
                change(path, "rollback", "1")
    return path


@pytest.fixture
def log(path: Path) -> Iterator[Log]:
    held = open_log(str(path), writer=False)
    yield held
    held.close()


@dataclass
class Answer:
    prediction: float
    version: int
    position: str | None


def answers(log: Log) -> list[Answer]:
    rows = [row for entry in log.read_topic("answers") for row in entry.records.to_pylist()]
    return [Answer(row["prediction"], row["model_version"], row["model_position"]) for row in rows]


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_model_that_learns_predicts_as_it_did_then(log: Log, number: int) -> None:
    """To the bit, with the version and the position that the prediction of then names, and the numbers of then."""
    answer, moment, states = answers(log)[number], moment_at(log, f"answers:{number}"), States()
    asked = Predictor(None, states).ask(moment, "line", {"x": "10"})
    assert (float(asked.prediction), asked.version, asked.position) == (
        answer.prediction,
        answer.version,
        answer.position,
    )
    assert asked.note == "exactly as it was"
    found = parameters_of(states, moment, "line")
    slope = next(number for number in found.numbers if number.name == "x")
    intercept = next(number for number in found.numbers if number.name == "(Intercept)")
    assert intercept.values[0] + 10 * slope.values[0] == pytest.approx(answer.prediction)
    assert (found.version, found.position) == (answer.version, answer.position)
    (current, *_) = model_of(moment, "line")[0].versions
    assert (current.number, current.position, current.current) == (answer.version, answer.position, True)


def test_two_versions_side_by_side_as_they_were(log: Log) -> None:
    """Version 2 had learned two rows less than it has in the end; and version 3 was not there yet."""
    states, then = States(), moment_at(log, "answers:2")
    assert answers(log)[2].version == 2
    both, ended = comparison_of(states, then, "line", "1", "2"), comparison_of(states, now(log), "line", "1", "2")
    assert {name: b for name, _, b in both.positions}["position"] == answers(log)[2].position
    assert {name: b for name, _, b in ended.positions}["position"] != answers(log)[2].position
    assert both.notes == ["version 2: exactly as it was"] and not ended.notes
    norms = [next(each["norm"] for each in side.moved if each["norm"]) for side in (both, ended)]
    assert norms[0] != norms[1]
    with pytest.raises(LogError, match="no version «3»"):
        comparison_of(states, then, "line", "1", "3")


def test_tags_and_roll_backs_are_those_of_then(log: Log) -> None:
    def tags(at: str) -> dict[str, int]:
        return model_of(moment_at(log, at), "line")[0].line.tags

    assert [tags(at) for at in ("answers:2", "answers:3", "answers:4", "")] == [
        {},
        {"good": 1},
        {"good": 2},
        {"good": 2},
    ]
    states = States()
    assert parameters_of(states, moment_at(log, "answers:3"), "line", "good").version == 1
    assert parameters_of(states, now(log), "line", "good").version == 2
    with pytest.raises(LogError, match="no version «good»"):
        parameters_of(states, moment_at(log, "answers:2"), "line", "good")
    marks = marks_of(model_of(now(log), "line")[1], "line")
    assert [mark.text for mark in marks if mark.kind == "tag"] == [
        "version 1 is called good",
        "version 1 is no longer called good",
        "version 2 is called good",
    ]
    assert [mark.text for mark in marks if mark.kind == "rollback"] == ["version 4, rollback to version 1"]
    earlier = marks_of(model_of(moment_at(log, "answers:3"), "line")[1], "line")
    assert [mark.kind for mark in earlier].count("tag") == 1


def test_a_tag_of_before_tags_had_times_has_been_there_all_the_time() -> None:
    record = VersionRecord("m", 1, ts_us=5, tags=["old"], ended_us=50, rows=7, kept=True)
    assert record.then(10).tags == ["old"]
    assert (record.then(10).ended_us, record.then(10).rows, record.then(10).kept) == (None, 0, False)
    record.tagged = [{"tag": "gone", "ts_us": 20, "given": False}, {"tag": "new", "ts_us": 30, "given": True}]
    record.tags = ["new", "old"]
    assert [record.then(at).tags for at in (10, 20, 29, 30)] == [["gone", "old"], ["old"], ["old"], ["new", "old"]]
    assert VersionRecord.from_dict(record.to_dict()) == record
    assert record.then(60).rows == 7


def test_seen_from_another_process_it_has_learned_what_is_recorded(tmp_path: Path) -> None:
    """Its newest checkpoint is older: the steps after it are repeated, and only those that are new the next time."""
    path = tmp_path / "line.headrace"
    with line(path).start() as running:
        running.append("points", [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 4.0}])
        running.wait()
        held, states = open_log(str(path), writer=False), States()
        for slope in (3.0, 5.0):
            running.append("points", [{"x": x, "y": slope * x} for x in (1.0, 2.0)])
            running.wait()
            asked = Predictor(None, states).ask(now(held), "line", {"x": "10"})
            assert (asked.reason, asked.note) == ("", "")
            assert float(asked.prediction) == running["line"].predict([{"x": 10.0}])[0]
            progress = read_progress(held, "line")
            assert progress is not None and asked.position == progress.position
            assert max(checkpoint_steps(held, "line"), default=0) < progress.step
            assert asked.version == progress.version
        held.close()


def test_what_cannot_be_repeated_says_which_state_it_is(tmp_path: Path) -> None:
    """A model that learns what it is graded on: its file says how, its log does not."""
    path = tmp_path / "graded.headrace"
    app = hr.App("graded", log=path)
    model = app.model("line", hr.LinearRegression(), features=["x"], target="y")
    predicted = model.predict(app.topic("asked", append=True)).to("answers")
    model.learn(predicted.grade(app.topic("truth", append=True), on="id", within="1 h").to("graded"), every=1)
    with app.start() as running:
        for number in range(4):
            running.append("asked", [{"id": number, "x": 3.0 + number}])
            running.append("truth", [{"id": number, "y": 9.0}])
            running.wait()
    held, states = open_log(str(path), writer=False), States()
    moment = moment_at(held, "answers:2")
    asked = Predictor(None, states).ask(moment, "line", {"x": "3"})
    stood = answers(held)[2].position
    assert asked.note == f"the newest state that the log holds, while the version stood at {stood}"
    assert asked.position == read_progress(held, "line").position  # type: ignore[union-attr]  # it has run
    assert parameters_of(states, moment, "line").note == asked.note
    assert model_of(moment, "line")[0].versions[0].position == stood
    held.close()
