"""Predictions and the truth that comes later, as tables of times; windows, alarms and trainings that follow."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace as hr
from headrace.batch import Batch
from headrace.plan.task import ModelTask, Task
from headrace.step.events import Part, Rows, Tick
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step

SECOND = 1_000_000


class Echo:
    """Answers with the feature plus what it was fitted to: the mean of the truth less the feature."""

    deterministic = True
    ready = True

    def __init__(self) -> None:
        self.bias = 0.0
        self.rows = 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        assert y is not None
        for x, truth in zip(X[:, 0], y, strict=True):
            self.rows += 1
            self.bias += (float(truth) - float(x) - self.bias) / self.rows

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(X[:, 0] + self.bias)

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"bias": self.bias, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.bias, self.rows = float(state["bias"]), int(state["rows"])


Row = tuple[str, int, str, float | None, str]


def table(text: str) -> list[Row]:
    """Lines «seconds measured|weighed key value [op]»."""
    found = []
    for line in text.strip().splitlines():
        at, side, key, value, *op = line.split()
        found.append((side, int(float(at) * SECOND), key, None if value == "-" else float(value), *(op or ["c"])))
    return found


def events(rows: list[Row], sizes: list[int] | None = None) -> list[Rows]:
    """Rows in slices of their own, so many to an event."""
    placed = list(enumerate(rows))
    found = []
    offsets = {"measured": 0, "weighed": 0}
    for size in sizes or [1] * len(rows):
        taken, placed = placed[:size], placed[size:]
        parts = []
        for topic in ("measured", "weighed"):
            mine = [(number, row) for number, row in taken if row[0] == topic]
            if mine:
                name = "x" if topic == "measured" else "y"
                batch = Batch.of(
                    {
                        "id": [row[2] if row[2] != "NULL" else None for _, row in mine],
                        name: pa.array([row[3] for _, row in mine], pa.float64()),
                        "note": [f"{topic} {row[2]}" for _, row in mine],
                    },
                    op=np.array([ord(row[4]) for _, row in mine], np.uint8),
                    lsn=np.array([100 + number for number, _ in mine], np.uint64),
                    index=np.zeros(len(mine), np.int64),
                    ts_us=np.array([row[1] for _, row in mine]),
                    key=["id"],
                )
                parts.append(Part(topic, batch, np.array([number + 1 for number, _ in mine]), offsets[topic]))
                offsets[topic] += len(mine)
        found.append(Rows(tuple(parts), True))
    return found


def declared(**retrain: Any) -> tuple[hr.App, Any, Any]:
    app = hr.App("fish", log="memory://")
    model = app.model("m", Echo(), features=["x"], target="y")
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    predicted = model.predict(measured).to("predictions")
    return app, model, predicted.grade(weighed, on="id", within="60 s", metric=hr.metrics.absolute_error, **retrain)


def run(task: Task, state: State, given: list[Any]) -> dict[str, list[dict[str, Any]]]:
    """What goes to each topic; an event that is a number of seconds is a tick after so long a silence."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in given:
        if isinstance(event, int | float):
            event = Tick(0, idle_us=dict.fromkeys(("measured", "weighed"), int(event * SECOND)))
        for topic, batch in step(task, state, event):
            found.setdefault(topic, []).extend(batch.records.to_pylist())
    return found


def told(rows: list[dict[str, Any]]) -> list[str]:
    """Grades as lines «seconds key status prediction truth»."""
    return [
        f"{row['__ts'].timestamp():g} {row['id']} {row['status']} {_short(row['prediction'])} {_short(row['y'])}"
        for row in rows
    ]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


CASES = {
    "the label comes later": (
        """
        0  measured a 1
        10 weighed  a 3
        """,
        ["10 a graded 1 3"],
    ),
    "the label is there first": (
        """
        0  weighed  a 3
        10 measured a 1
        """,
        ["10 a graded 1 3"],
    ),
    "within is inclusive": (
        """
        0  measured a 1
        60 weighed  a 3
        """,
        ["60 a graded 1 3"],
    ),
    "too late, and given up": (
        """
        0  measured a 1
        61 measured b 1
        61 weighed  a 3
        """,
        ["0 a expired 1 -", "61 a late - 3"],
    ),
    "no label ever": (
        """
        0  measured a 1
        70 measured b 1
        70 weighed  b 2
        """,
        ["0 a expired 1 -", "70 b graded 1 2"],
    ),
    "a label that nothing was predicted for": (
        """
        0  weighed  a 3
        70 measured b 1
        70 weighed  b 2
        """,
        ["0 a orphan - 3", "70 b graded 1 2"],
    ),
    "the label is corrected": (
        """
        0  measured a 1
        10 weighed  a 3
        20 weighed  a 5 u
        """,
        ["10 a graded 1 3", "20 a corrected 1 5"],
    ),
    "the label comes twice": (
        """
        0  measured a 1
        10 weighed  a 3
        20 weighed  a 3
        """,
        ["10 a graded 1 3", "20 a orphan - 3"],
    ),
    "an unlabelled row is no label until it is filled in": (
        """
        0  measured a 1
        10 weighed  a -
        20 weighed  a 3 u
        """,
        ["20 a graded 1 3"],
    ),
    "no key": (
        """
        0  measured NULL 1
        0  weighed  NULL 1
        """,
        ["0 None expired 1 -", "0 None orphan - 1"],
    ),
    "two predictions of a key have a grade each": (
        """
        0  measured a 1
        5  measured a 2
        10 weighed  a 3
        """,
        ["10 a graded 1 3", "10 a graded 2 3"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_outcome_of_a_label(name: str) -> None:
    text, expected = CASES[name]
    app, _, graded = declared()
    graded.to("grades")
    (task,) = app.plan().models
    rows = table(text)
    assert sorted(told(run(task, initial_state(task), events(rows))["grades"])) == sorted(expected)
    together = run(task, initial_state(task), events(rows, [len(rows)]))
    assert sorted(told(together["grades"])) == sorted(expected)


def test_a_grade_says_what_made_it() -> None:
    app, _, graded = declared()
    graded.to("grades")
    (task,) = app.plan().models
    (row,) = run(task, initial_state(task), events(table("0 measured a 1\n10 weighed a 3.5")))["grades"]
    assert row["error"] == 2.5 and row["label_delay"] == 10.0 and row["grade"] == 0 and row["supersedes"] is None
    assert (row["model"], row["model_version"]) == ("m", 1)
    assert (row["prediction_position"], row["label_position"]) == ("0/64:0", "0/65:0")
    assert (row["note"], row["note_right"]) == ("measured a", "weighed a")
    assert (row["__lsn"], row["__index"]) == (101, 0)


def test_silence_gives_up_what_waits_and_closes_the_last_window() -> None:
    app, _, graded = declared()
    graded = graded.to("grades")
    graded.window("1 min").mean("error").to("windows")
    (task,) = app.plan().models
    rows = table("0 measured a 1\n1 measured b 1\n10 weighed a 3")
    found = run(task, initial_state(task), [*events(rows), 45])
    assert "windows" not in found
    found = run(task, initial_state(task), [*events(rows), 45, 90])
    assert told(found["grades"]) == ["10 a graded 1 3", "1 b expired 1 -"]
    (window,) = found["windows"]
    assert (window["error"], window["rows"], window["window_start"].timestamp()) == (2.0, 1, 0.0)


# -- trainings ----------------------------------------------------------------------------------------------------


def fish(n: int, change: int) -> list[Row]:
    """Measured each 2 s, weighed 10 s later; from ``change`` on everything weighs 5 more."""
    rows: list[Row] = []
    for i in range(n):
        rows.append(("measured", 2 * i * SECOND, f"f{i}", float(i % 7), "c"))
        rows.append(("weighed", (2 * i + 10) * SECOND, f"f{i}", float(i % 7) + (5.0 if i >= change else 0.0), "c"))
    return sorted(rows, key=lambda row: row[1])


def factory(**more: Any) -> ModelTask:
    app, model, graded = declared()
    graded = graded.to("grades")
    alarm = (
        graded.window("1 min")
        .agg(ErrorAvg=hr.metrics.mean("error"), first=hr.metrics.first("id"), ids=hr.metrics.unique("id"))
        .above(1.0, column="ErrorAvg")
        .to("alarms")
    )
    model.retrain(on=alarm, **({"rows": graded.last(20)} | more))
    (task,) = app.plan().models
    return task


def test_an_alarm_trains_and_the_next_row_is_the_new_versions() -> None:
    task = factory()
    found = run(task, initial_state(task), events(fish(120, 60)))
    (alarm,) = found["alarms"]
    assert alarm["window_start"].timestamp() == 120.0
    assert alarm["first"] == "f55"
    (line,) = found["m-training"]
    assert (line["status"], line["version"], line["rows"], line["previous"]) == ("trained", 2, 20, 1)
    at = alarm["__lsn"]
    assert all((row["model_version"] == 2) == (row["__lsn"] > at) for row in found["predictions"])
    last = [row["id"] for row in found["grades"] if row["__lsn"] <= at][-20:]
    assert last[-1] == "f85" and len(last) == 20
    # Two of three of the last twenty are heavier.
    first_new = next(row for row in found["predictions"] if row["model_version"] == 2)
    assert first_new["prediction"] - first_new["x"] == pytest.approx(5.0)


@cache
def predicted_at_once() -> dict[str, list[dict[str, Any]]]:
    """What comes of the factory's rows where all are one event."""
    return run(factory(), initial_state(factory()), events(fish(120, 60)))


# Each example is a run of its own: a quarter of the profile's number.
@settings(max_examples=settings.default.max_examples // 4)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 5))
def test_nothing_depends_on_how_rows_come_in_events(sizes: list[int], saved: int) -> None:
    task = factory()
    rows = fish(120, 60)
    sizes = [*sizes, *[len(rows)]]
    state, found = initial_state(task), {}
    for number, event in enumerate(item for item in events(rows, sizes) if item.parts):
        if number % 6 == saved:
            state = load_state(task, {**dump_state(state)})
        for topic, batch in step(task, state, event):
            found.setdefault(topic, []).extend(batch.records.to_pylist())
    assert found == predicted_at_once()


def test_a_training_that_fails_leaves_the_old_model_and_is_told() -> None:
    class Fails(Echo):
        def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
            raise ValueError("singular")

    import dataclasses

    task = dataclasses.replace(factory(), learner=Fails())
    found = run(task, initial_state(task), events(fish(120, 60)))
    assert {row["model_version"] for row in found["predictions"]} == {1}
    first = found["m-training"][0]
    assert (first["status"], first["reason"]) == ("failed", "ValueError: singular")


def test_the_same_rows_are_not_learned_twice() -> None:
    from headrace.step.events import Train

    task = factory()
    state = initial_state(task)
    run(task, state, events(fish(120, 60)))
    version = state.version
    first = run(task, state, [Train(0, 2**62, "me")])["m-training"][0]
    second = run(task, state, [Train(0, 2**62, "me")])["m-training"][0]
    assert (first["status"], first["by"], second["status"]) == ("trained", "me", "skipped")
    assert state.version == version + 1


def passing(n: int) -> list[Row]:
    """As `fish`, but what is heavier is so from the 60th to the 80th only."""
    return [
        (side, at, key, x - 5.0 if side == "weighed" and int(key[1:]) >= 80 else x, op)
        for side, at, key, x, op in fish(n, 60)
        if x is not None
    ]


def test_a_gate_keeps_a_worse_model_out() -> None:
    app, model, graded = declared()
    graded = graded.to("grades")
    alarm = graded.window("1 min").mean("error").above(1.0).to("alarms")
    model.retrain(on=alarm, rows=graded.last(40), gate=hr.metrics.absolute_error, holdout=0.25)
    (task,) = app.plan().models
    found = run(task, initial_state(task), events(passing(110)))
    (line,) = found["m-training"]
    assert (line["status"], line["holdout"], line["version"]) == ("worse", 10, None)
    assert line["old_score"] == pytest.approx(2.0) and line["new_score"] > 2.0
    assert {row["model_version"] for row in found["predictions"]} == {1}


def test_what_was_graded_can_be_learned_instead() -> None:
    app, model, graded = declared()
    graded = graded.to("grades")
    model.learn(graded)
    (task,) = app.plan().models
    state = initial_state(task)
    found = run(task, state, events(fish(60, 0)))
    assert state.counters.learned == 60
    assert [row["prediction"] - row["x"] for row in found["predictions"]][-1] == pytest.approx(5.0)


def test_mistakes_are_refused_when_declared() -> None:
    app, model, graded = declared()
    with pytest.raises(hr.errors.DeclarationError, match="go nowhere"):
        app.plan().check()
    with pytest.raises(hr.errors.DeclarationError, match="no topic"):
        graded.read()
    written = graded.to("grades")
    model.retrain(rows=written.last(5))
    with pytest.raises(hr.errors.DeclarationError, match="retrained twice"):
        model.retrain(rows=written.last(5))
    with pytest.raises(hr.errors.DeclarationError, match="both learns a stream and is retrained"):
        model.learn(written)


def test_a_shadow_answers_beside_and_takes_over_when_it_was_no_worse() -> None:
    task = factory(shadow=True, promote=10)
    rows = fish(160, 60)
    found = run(task, initial_state(task), events(rows))
    assert [row["status"] for row in found["m-training"]][:2] == ["shadow", "promoted"]
    tried = [row for row in found["predictions"] if row.get("shadow_version") == 2]
    assert {row["model_version"] for row in tried} == {1}
    assert all(row["shadow_prediction"] - row["x"] == pytest.approx(5.0) for row in tried)
    compared = [row for row in found["grades"] if row.get("shadow_error") is not None]
    assert {round(row["shadow_error"], 6) for row in compared} == {0.0}
    promoted = found["m-training"][1]
    assert (promoted["version"], promoted["old_score"], promoted["new_score"]) == (2, 5.0, pytest.approx(0.0))
    later = [row for row in found["predictions"] if row["__lsn"] > promoted["__lsn"]]
    assert {row["model_version"] for row in later} == {2}
    together = run(task, initial_state(task), events(rows, [len(rows)]))
    assert [row["model_version"] for row in together["predictions"]] == [
        row["model_version"] for row in found["predictions"]
    ]


def test_a_shadow_that_is_worse_is_let_go() -> None:
    task = factory(shadow=True, promote=10)
    found = run(task, initial_state(task), events(passing(160)))
    assert [row["status"] for row in found["m-training"]] == ["shadow", "worse"]
    assert {row["model_version"] for row in found["predictions"]} == {1}


def test_a_column_that_changes_its_type_stops_nothing() -> None:
    app, _, graded = declared()
    graded.to("grades")
    (task,) = app.plan().models
    given = events(table("0 measured a 1\n5 measured b 2\n10 weighed a 3\n11 weighed b 4"))
    part = given[1].parts[0]
    numbers = part.batch.with_columns([("note", pa.array([7]))])
    given[1] = Rows((Part(part.topic, numbers, part.slices, part.offset),), True)
    rows = run(task, initial_state(task), given)["grades"]
    assert told(rows) == ["10 a graded 1 3", "11 b graded 2 4"]
    assert [row["note"] for row in rows] == ["measured a", 7]


def changes(rows: list[tuple[int, str, int, float, float | None]]) -> list[Rows]:
    """Changes of one table «seconds, op, id, x, y», whose updates carry the old row (REPLICA IDENTITY FULL)."""
    found: list[Rows] = []
    before: dict[int, tuple[float, float | None]] = {}
    kind = pa.struct([("id", pa.int64()), ("x", pa.float64()), ("y", pa.float64())])
    for number, (at, op, key, x, y) in enumerate(rows):
        old = {"id": key, "x": before[key][0], "y": before[key][1]} if op == "u" else None
        before[key] = (x, y)
        columns = {"id": [key], "x": [x], "y": pa.array([y], pa.float64())}
        batch = Batch.of(columns, op=op, lsn=100 + number, ts_us=at * SECOND, key=["id"], before=pa.array([old], kind))
        found.append(Rows((Part("fish", batch, np.array([number + 1]), number),), True))
    return found


def test_one_table_whose_label_is_filled_in_later() -> None:
    """The row is predicted when it is inserted; the update that brings its label grades it, the next corrects it."""
    app = hr.App("fish", log="memory://")
    model = app.model("m", Echo(), features=["x"], target="y")
    fish_table = app.topic("fish", append=True)
    model.predict(fish_table).to("predictions").grade(fish_table, on="id", within="60 s").to("grades")
    (task,) = app.plan().models
    rows = [(0, "c", 1, 1.0, None), (10, "u", 1, 1.0, 3.0), (20, "u", 1, 1.0, 3.0), (30, "u", 1, 1.0, 4.0)]
    found = run(task, initial_state(task), list(changes(rows)))
    assert len(found["predictions"]) == 1
    assert told(found["grades"]) == ["10 1 graded 1 3", "30 1 corrected 1 4"]
    assert found["grades"][1]["supersedes"] == 0


def test_a_correction_takes_the_place_of_what_it_supersedes_in_a_window_and_in_a_training() -> None:
    app, model, graded = declared()
    graded = graded.to("grades")
    graded.window("1 min").mean("error").to("windows")
    model.retrain(rows=graded.last(5))
    (task,) = app.plan().models
    state = initial_state(task)
    rows = "0 measured a 0\n10 weighed a 9\n20 weighed a 3 u\n70 measured b 0\n70 weighed b 1"
    found = run(task, state, events(table(rows)))
    assert [(row["error"], row["rows"]) for row in found["windows"]] == [(3.0, 1)]
    from headrace.step.events import Train

    (line,) = run(task, state, [Train(0, 2**62, "me")])["m-training"]
    assert (line["rows"], state.learner.state()["bias"]) == (2, 2.0)


# -- what is derived from predictions themselves --------------------------------------------------------------------


class Never:
    """A drift detector that finds a drift at every third value."""

    drift_detected = False

    def __init__(self) -> None:
        self.rows = 0

    def update(self, x: float) -> None:
        self.rows += 1
        self.drift_detected = self.rows % 3 == 0


def words(app: hr.App, rows: Any) -> None:
    """Each word that derives something from rows, and one from what operations make of them."""
    rows.above(2.5, column="prediction", cooldown=0).to("above")
    rows.below(1.5, column="prediction", consecutive=2).to("below")
    rows.outside(1.0, 5.0, column="prediction", cooldown="7 s").to("outside")
    rows.drift("prediction", Never()).to("drift")
    rows.window("10 s").mean("prediction").to("means")
    rows.window("20 s", every="5 s", by="model_version", emit="changes").agg(
        most=hr.metrics.max("prediction"), count=hr.metrics.count()
    ).to("hopping")
    rows.window(5).quantile("prediction", 0.5).above(2.0).to("medians")
    changed = rows.with_columns(twice=lambda batch: np.asarray(batch.column("prediction")) * 2).filter(
        lambda batch: np.asarray(batch.column("x")) > 1
    )
    changed.above(7.0, column="twice").to("changed")
    changed.select("id", "twice").window(2).max("twice").to("chosen")
    changed.transform(lambda batch: batch.with_columns([("late", batch.column("twice"))])).below(
        9.0, column="late", cooldown=0
    ).to("transformed")


DERIVED = ("above", "below", "outside", "drift", "means", "hopping", "medians", "changed", "chosen", "transformed")


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by position; columns of a model that is tried out are there in some events and NULL in others."""
    found = [{name: value for name, value in row.items() if value is not None or "shadow" not in name} for row in rows]
    return sorted(found, key=lambda row: row["__lsn"])


def test_what_is_derived_from_predictions_is_what_is_derived_from_their_topic() -> None:
    app = hr.App("fish", log="memory://")
    model = app.model("m", Echo(), features=["x"], target="y")
    predicted = model.predict(app.topic("measured", append=True)).to("predictions")
    words(app, predicted)
    (task,) = app.plan().models
    rows = [row for row in fish(60, 20) if row[0] == "measured"]
    found = run(task, initial_state(task), events(rows, [7, 20, 60]))
    other = hr.App("fish", log="memory://")
    words(other, other.topic("predictions"))
    state, slices = initial_state(task), 0
    parts: list[Rows] = []
    for event in events(rows):
        for topic, batch in step(task, state, event):
            if topic == "predictions":
                slices += batch.num_rows
                parts.append(Rows((Part(topic, batch, np.full(batch.num_rows, slices), slices - 1),), True))
    for flow in other.plan().tasks:
        again = run(flow, initial_state(flow), list(parts))
        for topic, expected in again.items():
            assert found[topic] == expected, topic
            assert expected
    assert set(DERIVED) <= set(found)


def watched(**retrain: Any) -> ModelTask:
    """A model that an alarm on its own predictions trains anew; answers given over HTTP are among them."""
    app = hr.App("fish", log="memory://")
    model = app.model("m", Echo(), features=["x"], target="y")
    predicted = model.predict(app.topic("measured", append=True)).to("predictions")
    model.serve("/weight", log_to="predictions")
    words(app, predicted)
    graded = predicted.grade(app.topic("weighed", append=True), on="id", within="60 s").to("grades")
    alarm = predicted.filter(lambda batch: batch.column("note").is_valid()).above(
        5.5, column="prediction", cooldown="30 s"
    )
    given: dict[str, Any] = {"rows": graded.last(20), "on": alarm.to("alarm")} | retrain
    if given["rows"] == "predictions":
        given["rows"] = predicted.with_columns(y=lambda batch: np.asarray(batch.column("x")) + 5).last(10)
    model.retrain(**given)
    (task,) = app.plan().models
    return task


def with_served(given: list[Rows], task: ModelTask, every: int = 5) -> list[Rows]:
    """The same events, some of whose measured rows were answered elsewhere."""
    served = task.predict[0].served.topic
    found = []
    for event in given:
        parts: list[Part] = []
        for part in event.parts:
            numbers = np.array([int(key[1:]) for key in part.batch.column("id").to_pylist()])
            elsewhere = (numbers % every == 0) & (part.topic == "measured")
            for topic, mine in ((part.topic, ~elsewhere), (served, elsewhere)):
                if mine.any():
                    batch = part.batch.filter(mine)
                    if topic == served:
                        x = np.asarray(batch.column("x"))
                        answers = {"prediction": x + 0.25, "status": ["ok"] * len(x), "model": ["m"] * len(x)}
                        more = {"model_version": np.full(len(x), 1), "model_position": pa.nulls(len(x), pa.string())}
                        batch = batch.with_columns([(k, pa.array(v)) for k, v in (answers | more).items()])
                    offset = int(numbers[mine][0]) // every if topic == served else part.offset
                    parts.append(Part(topic, batch, part.slices[mine], offset))
        found.append(Rows(tuple(parts), True))
    return found


@pytest.mark.parametrize("retrain", [{}, {"rows": "predictions"}, {"shadow": True, "promote": 5}], ids=str)
@settings(max_examples=4)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 5))
def test_an_alarm_on_predictions_trains_at_once_however_rows_come(
    retrain: dict[str, Any], sizes: list[int], saved: int
) -> None:
    task = watched(**retrain)
    rows = fish(40, 15)
    whole = run(task, initial_state(task), with_served(events(rows), task))
    sizes = [*sizes, *[len(rows)]]
    state, found = initial_state(task), {}
    for number, event in enumerate(item for item in with_served(events(rows, sizes), task) if item.parts):
        if number % 6 == saved:
            state = load_state(task, {**dump_state(state)})
        for topic, batch in step(task, state, event):
            found.setdefault(topic, []).extend(batch.records.to_pylist())
    for name in (*DERIVED, "alarm", "predictions", "grades", "m-training"):
        assert in_order(found[name]) == in_order(whole[name]), name
    at = whole["alarm"][0]["__lsn"]
    (first, *_) = whole["m-training"]
    assert (first["__lsn"], first["status"]) == (at, "shadow" if "shadow" in retrain else "trained")
    if "shadow" not in retrain:
        own = [row for row in whole["predictions"] if row["prediction"] != row["x"] + 0.25]
        assert all((row["model_version"] > 1) == (row["__lsn"] > at) for row in own)


def test_keys_that_were_stored_as_the_text_of_a_numeric_match_by_value_afterwards() -> None:
    app, _, graded = declared()
    graded.to("grades")
    (task,) = app.plan().models
    first, second = events(table("0 measured 1.50 1\n10 weighed 1.5 3"))
    state = initial_state(task)
    step(task, state, first)
    # As a log holds it that was written before keys were compared by value.
    old = {**dump_state(state)}
    meta = json.loads(old["operators.meta"])
    del meta["key_kinds"]
    state = load_state(task, {**old, "operators.meta": json.dumps(meta)})
    (part,) = second.parts
    fields = [f.with_metadata({"postgres.type": "numeric"}) if f.name == "id" else f for f in part.batch.schema]
    records = part.batch.records.cast(pa.schema(fields, metadata=part.batch.schema.metadata))
    second = Rows((Part(part.topic, Batch(records), part.slices, part.offset),), True)
    assert told(run(task, state, [second])["grades"]) == ["10 1.50 graded 1 3"]
