"""Trainings in a running pipeline: by alarm, by request, beside it, on rows of topics; and what a log tells of them."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import headrace as hr
from headrace.log import open_log
from headrace.registry.versions import VersionList
from headrace.replay.explain import explain
from headrace.replay.verify import verify

RELEASE = threading.Event()


class Mean:
    """Predicts the mean of what it learned; waits for `RELEASE` where it is told to."""

    deterministic = True

    def __init__(self, waits: bool = False) -> None:
        self.waits = waits
        self.total, self.rows = 0.0, 0

    @property
    def ready(self) -> bool:
        return self.rows > 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        assert y is not None
        if self.waits and self.rows == 0 and len(y) != 2:
            assert RELEASE.wait(30)
        self.total, self.rows = self.total + float(y.sum()), self.rows + len(y)

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.full(len(X), self.total / self.rows)

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"total": self.total, "rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.total, self.rows = float(state["total"]), int(state["rows"])


def first_rows(tmp_path: Path) -> Any:
    path = tmp_path / "first.csv"
    path.write_text("X,y\n1,1.0\n2,1.0\n")
    return hr.csv(path, rename=str.lower)


def declare(tmp_path: Path, log: str, rows: str = "last", **retrain: Any) -> tuple[hr.App, hr.testing.learners.Any]:
    app = hr.App("trained", log=log)
    asked, told = app.topic("asked", append=True), app.topic("told", append=True)
    learner = Mean(waits=retrain.get("swap") == "when_ready")
    model = app.model("m", learner, features=["x"], target="y", initial=first_rows(tmp_path))
    grades = model.predict(asked).to("answers").grade(told, on="id", within="1 h").to("grades")
    alarm = grades.window(4, every=4).mean("error").above(1.0).to("alarms")
    chosen = {
        "last": lambda: grades.last(4),
        "since": lambda: grades.since("1 h"),
        "all": lambda: app.topic("told").all(),
        "query": lambda: 'select x, y from grades order by "offset" desc limit 3',
    }[rows]()
    model.retrain(on=alarm, rows=chosen, **retrain)
    return app, model


def feed(running: Any, start: int, count: int, y: float) -> None:
    for i in range(start, start + count):
        running.append("asked", {"id": i, "x": float(i)})
        running.append("told", {"id": i, "x": float(i), "y": y}, key=["id"])


def read(app: hr.App, topic: str) -> list[dict[str, Any]]:
    return list(app.topic(topic).read().to_arrow().to_pylist())


@pytest.mark.parametrize(
    ("rows", "learned", "prediction"), [("last", 4, 5.0), ("since", 4, 5.0), ("all", 4, 5.0), ("query", 3, 5.0)]
)
def test_an_alarm_trains_on_the_rows_that_were_chosen(
    tmp_path: Path, rows: str, learned: int, prediction: float
) -> None:
    log = str(tmp_path / "t.headrace")
    app, _ = declare(tmp_path, log, rows)
    with app.start() as running:
        feed(running, 0, 4, 5.0)
        feed(running, 4, 2, 5.0)
        running.wait()
        answers = read(app, "answers")
        (line,) = read(app, "m-training")
    assert [row["prediction"] for row in answers] == [1.0] * 4 + [prediction] * 2
    assert [row["model_version"] for row in answers] == [1] * 4 + [2] * 2
    assert (line["status"], line["rows"], line["version"]) == ("trained", learned, 2)
    with contextlib.closing(open_log(log, writer=False)) as held:
        first, second = VersionList.read(held, "m")
        assert (first.training["rows"], second.training["rows"], second.parent) == (2, learned, 1)
        about = explain(held, "answers", 5)
        assert sum(part["count"] for part in about["learned"]) == learned
        assert verify(app.plan(), held).result == "equal"


def test_one_asks_for_a_training(tmp_path: Path) -> None:
    app, _ = declare(tmp_path, str(tmp_path / "t.headrace"))
    with app.start() as running:
        with pytest.raises(hr.errors.LearnError, match="no rows to train on"):
            running.retrain("m")
        feed(running, 0, 2, 1.5)
        running.wait()
        told = running.retrain("m")
        assert (told["status"], told["version"], told["rows"]) == ("trained", 2, 2)
        with pytest.raises(hr.errors.LearnError, match="those of the last training"):
            running.retrain("m")
        assert running["m"].predict([{"x": 1.0}]).tolist() == [1.5]
    assert verify(app.plan(), open_log(str(tmp_path / "t.headrace"), writer=False)).result == "equal"


def test_a_model_that_nothing_trains_first_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An alarm comes of predictions, and there are none before a training."""
    app = hr.App("waits", log=tmp_path / "t.headrace")
    asked, told = app.topic("asked", append=True), app.topic("told", append=True)
    model = app.model("m", Mean(), features=["x"], target="y")
    grades = model.predict(asked).to("answers").grade(told, on="id", within="1 h").to("grades")
    model.retrain(on=grades.window(4).mean("error").above(1.0), rows=app.topic("told").all())
    with app.start() as running:
        running.append("told", {"id": 1, "x": 1.0, "y": 2.0})
        running.wait()
        assert f"ask for its first training: headrace models retrain m --log {tmp_path / 't.headrace'}" in caplog.text
        running.retrain("m")
    caplog.clear()
    with app.start():
        pass
    with declare(tmp_path, str(tmp_path / "first.headrace"))[0].start():
        pass
    assert "first training" not in caplog.text


def test_the_old_model_answers_while_the_new_one_is_trained(tmp_path: Path) -> None:
    log = str(tmp_path / "t.headrace")
    app, _ = declare(tmp_path, log, swap="when_ready")
    RELEASE.clear()
    try:
        with app.start() as running:
            feed(running, 0, 6, 5.0)
            running.wait()
            with pytest.raises(hr.errors.LearnError, match="is being trained"):
                running.retrain("m")
            RELEASE.set()
            running.engine.wait_for(lambda _: running["m"].version == 2, 30)
            feed(running, 6, 2, 5.0)
            running.wait()
            answers = read(app, "answers")
            assert [row["status"] for row in read(app, "m-training")] == ["started", "trained"]
        assert [row["prediction"] for row in answers] == [1.0] * 6 + [5.0] * 2
        assert verify(app.plan(), open_log(log, writer=False)).result == "equal"
    finally:
        RELEASE.set()


def test_a_training_that_was_cut_off_begins_again(tmp_path: Path) -> None:
    log = str(tmp_path / "t.headrace")
    app, _ = declare(tmp_path, log, swap="when_ready")
    RELEASE.clear()
    try:
        with app.start() as running:
            feed(running, 0, 4, 5.0)
            running.wait()
        RELEASE.set()
        app, _ = declare(tmp_path, log, swap="when_ready")
        with app.start() as running:
            running.engine.wait_for(lambda _: running["m"].version == 2, 30)
            assert running["m"].predict([{"x": 1.0}]).tolist() == [5.0]
    finally:
        RELEASE.set()


def test_a_model_begins_with_what_it_is_given(tmp_path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    X = np.array([[1.0], [2.0]])
    fitted = LinearRegression().fit(X, [2.0, 4.0])
    app = hr.App("begun", log="memory://")
    model = app.model("m", LinearRegression(), features=["x"], target="y", initial=fitted)
    model.predict(app.topic("asked", append=True)).to("answers")
    with app.start() as running:
        running.append("asked", [{"x": 5.0}])
        running.wait()
        assert read(app, "answers")[0]["prediction"] == pytest.approx(10.0)
    with pytest.raises(hr.errors.DeclarationError, match="is not fitted"):
        app.model("n", LinearRegression(), features=["x"], target="y", initial=LinearRegression())


def test_a_beginning_that_cannot_be_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text("a,b\n1,2\n")
    app = hr.App("begun", log=str(tmp_path / "b.headrace"))
    model = app.model("m", hr.LinearRegression(), features=["x"], target="y", initial=hr.csv(path))
    model.predict(app.topic("asked", append=True)).to("answers")
    with pytest.raises(hr.errors.LearnError, match=r"cannot begin with wrong.csv.*«y»"):
        app.start()


def test_one_goes_back_to_the_version_before_a_training(tmp_path: Path) -> None:
    log = str(tmp_path / "t.headrace")
    app, _ = declare(tmp_path, log)
    with app.start() as running:
        feed(running, 0, 4, 5.0)
        running.wait()
        assert running["m"].version == 2
        assert running.rollback("m", 1) == 3
        feed(running, 4, 1, 1.0)
        running.wait()
        answers = read(app, "answers")
    assert [row["model_version"] for row in answers] == [1] * 4 + [3]
    assert answers[-1]["prediction"] == 1.0
    with contextlib.closing(open_log(log, writer=False)) as held:
        assert verify(app.plan(), held).result == "equal"


def test_a_linear_model_is_exported_as_r_would_print_it(tmp_path: Path) -> None:
    import json

    from typer.testing import CliRunner

    from headrace.cli.main import app as cli

    path = tmp_path / "first.csv"
    path.write_text("Length,Species,y\n1,a,1\n2,a,2\n1,b,4\n2,b,5\n")
    app = hr.App("linear", log=str(tmp_path / "t.headrace"))
    features = ["Length", hr.category("Species")]
    model = app.model("m", hr.LinearRegression(), features=features, target="y", initial=hr.csv(path))
    model.predict(app.topic("asked", append=True)).to("answers")
    with app.start() as running:
        running.append("asked", {"Length": 3.0, "Species": "b"})
        running.wait()
    done = CliRunner().invoke(cli, ["models", "export", "m", "--to", str(tmp_path / "out"), "--log", app.log])
    assert done.exit_code == 0, done.output
    about = json.loads((tmp_path / "out" / "linear.json").read_text())
    assert about["coefficients"] == {"(Intercept)": 0.0, "Length": 1.0, "Speciesb": 3.0}
    plane = np.load(tmp_path / "out" / "plane.npz")
    row = np.zeros(len(about["columns"]))
    row[0], row[about["columns"].index("Species=b")] = 3.0, 1.0
    assert row @ plane["coefficients"] + plane["intercept"] == pytest.approx(6.0)
