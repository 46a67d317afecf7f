"""Columns of the user's that have the names of ours: told apart by one rule, wherever we add columns."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tests.step.test_late_labels import Recorder

import headrace as hr
from headrace.batch import Batch, present, told_apart
from headrace.capture.postgres.messages import Column, Relation
from headrace.capture.postgres.table import table
from headrace.inspect.query import query_topics
from headrace.log import open_log
from headrace.plan.task import ModelTask
from headrace.replay.verify import verify
from headrace.step.events import Part, Rows
from headrace.step.state import dump_state, initial_state, load_state
from headrace.step.step import step

OURS = [
    *("prediction", "status", "model", "model_version", "model_position", "probability", "shadow_prediction"),
    *("shadow_version", "shadow_error", "ts", "op", "position", "error", "label_delay", "grade", "supersedes"),
    *("prediction_position", "label_position", "window_start", "window_end", "rows", "mean", "final", "detector"),
    *("reason", "stage", "row", "Prediction", "STATUS", "__offset"),
]
SUFFIXES = ["", "_input", "_input_input", "_left", "_right"]


def task_of(app: hr.App) -> ModelTask:
    (task,) = app.plan().tasks
    assert isinstance(task, ModelTask)
    return task


def test_a_name_of_ours_gets_a_suffix_as_often_as_it_takes() -> None:
    assert told_apart(["prediction", "prediction_input"], {"prediction"}) == [
        "prediction_input_input",
        "prediction_input",
    ]
    names = [f"{name}{suffix}" for name in OURS for suffix in SUFFIXES]
    for suffix in ("_input", "_left"):
        found = told_apart(names, OURS, suffix=suffix)
        assert len(set(found)) == len(names) and not set(found) & set(OURS)


def test_every_column_of_a_row_is_in_its_answer_and_its_grade() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=["u"], target="y")
    stream = app.topic("t")
    graded = model.predict(stream).to("answers").grade(stream, on="id", within="1 h").to("grades")
    graded.window(1).mean("error").above(-1.0).to("alarms")
    task = task_of(app)
    own = {f"{name}{suffix}": [f"{name}{suffix}"] for name in OURS for suffix in SUFFIXES}
    row = {"id": [1], "u": [1.0], "y": [2.0], **own}
    part = Part("t", Batch.of(row, lsn=7, key=["id"]), np.array([1]), 0)
    outputs = dict(step(task, initial_state(task), Rows((part,), True)))
    (answer,) = outputs["answers"].rows.to_pylist()
    assert answer["status"] == "ok" and answer["prediction"] == 0.0 and answer["model"] == "m"
    assert {value for value in answer.values() if isinstance(value, str)} >= set(own)
    (grade,) = outputs["grades"].rows.to_pylist()
    assert grade["status"] == "graded" and grade["error"] == 2.0
    kept = {value for value in grade.values() if isinstance(value, str)}
    assert {name for name in own if not name.startswith("__")} - kept == set()
    assert outputs["alarms"].num_rows == 1
    shown = present(Batch.of({"op": [1], "__op_": [1], "position": [1], "ts": [1]}).records)
    assert shown.column_names == ["op", "__op_", "position", "ts", "__op", "__position", "__ts"]
    shown = present(Batch.of({"position": [1], "__position": [2]}).records)
    assert shown.column_names == ["position", "__position", "op", "____position", "ts"]


def test_a_name_once_given_stays_when_columns_come_later() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", Recorder(), features=["u"], target="y")
    model.predict(app.topic("t")).to("answers")
    task = task_of(app)
    state, seen = initial_state(task), []
    columns: dict[str, Any] = {"u": [1.0], "y": [None]}
    for number, added in enumerate(["note", "model", "model_input", "model_input_input", "status_input", "status"]):
        columns[added] = [added]
        part = Part("t", Batch.of(columns, lsn=number + 1), np.array([number + 1]), number)
        (_, answers), *_ = step(task, state, Rows((part,), True))
        seen.append(answers.rows.to_pylist()[0])
        state = load_state(task, dump_state(state))
    for before, after in itertools.pairwise(seen):
        assert {name: after[name] for name in before} == before
    assert seen[-1]["model_input"] == "model" and seen[-1]["status_input"] == "status_input"


def test_a_chain_of_models_and_what_is_made_of_it(tmp_path: Path) -> None:
    def declared() -> hr.App:
        app = hr.App("chain", log=tmp_path / "chain.headrace")
        stream: Any = app.topic("rows", append=True)
        for name in ("a", "b", "c"):
            stream = app.model(name, Recorder(), features=["u"], target="y").predict(stream).to(name)
            stream = app.topic(name)
        app.topic("c").to_parquet(tmp_path / "files")
        return app

    row = {"u": 1.0, "y": None, "prediction": "p", "op": "o", "__offset": 4}
    app = declared()
    with app.start() as running:
        running.append("rows", [{"id": 1, **row}], key=["id"])
        running.wait()
        (answer,) = app.topic("c").read().to_arrow().to_pylist()
    given = [answer[name] for name in ("model", "model_input", "model_input_input")]
    assert sorted(given) == ["a", "b", "c"] and answer["model"] == "c"
    assert "p" in answer.values() and answer["op"] == "o" and answer["__op"] == "c"
    with contextlib.closing(open_log(str(tmp_path / "chain.headrace"), writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"
        assert query_topics(held, 'select count(*) as n from "c"').to_pylist() == [{"n": 1}]
    with declared().start() as running:
        running.append("rows", [{"id": 2, **row}], key=["id"])
        running.wait()
    (written,) = {len(pq.read_table(path).column_names) for path in (tmp_path / "files").rglob("*.parquet")}
    assert written


def test_a_captured_table_that_gets_such_a_column_goes_on() -> None:
    names = ["id", "__op", "__order", "__op_input"]
    columns = tuple(Column(name, 23, -1, name == "id") for name in names)
    prepared = table(Relation(1, "public", "t", "d", columns), "db", ["id"])
    assert [field.name for field in prepared.fields] == ["id", "__op_input_input", "__order_input", "__op_input"]
