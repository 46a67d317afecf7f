"""Pipelines that are declared differently on a log that has run: they go on, say so, and can be replayed."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from river import linear_model, optim, preprocessing
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import headrace as hr
from headrace.engines.local.serving.replica import Replica
from headrace.errors import DeclarationError, FingerprintError, LearnError
from headrace.formats.topic_formats import codec_for
from headrace.learn.state import state_hash
from headrace.log import open_log
from headrace.registry.models import read_declarations, read_progress, reset
from headrace.registry.requests import put_continue
from headrace.registry.versions import VersionList
from headrace.replay.explain import explain
from headrace.replay.rebuild import Place, rebuild
from headrace.replay.verify import Report, verify
from tests.waiting import wait_until

from . import pipeline_of_before as before
from .test_before import WRITTEN

Log = Path


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return tmp_path / "shop.headrace"


def report(app: hr.App) -> Report:
    held = open_log(app.log, writer=False, codec=codec_for())
    try:
        return verify(app.plan(), held)
    finally:
        held.close()


def weights(
    log: Log,
    *,
    limit: float = 0.1,
    more: Callable[[hr.Stream], object] | None = None,
    first: bool = False,
    copies: tuple[str, ...] = (),
) -> hr.App:
    """Weights are predicted and graded; every fifth grade's mean may be an alarm."""
    app = hr.App("shop", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    model = app.model("weight", hr.LinearRegression(), features=["a", "b"], target="y")
    predictions = model.predict(measured)
    graded = predictions.to("predicted").grade(weighed, on="id", within="1 min").to("graded")
    for topic in copies:
        predictions.to(topic)
    model.learn(graded)
    if more is not None and first:
        more(graded)
    graded.window(5).mean("error").to("lines").above(limit).to("alarms")
    if more is not None and not first:
        more(graded)
    return app


def feed(app: hr.App, first: int, count: int = 10) -> None:
    with app.start() as running:
        numbers = range(first, first + count)
        running.append("measured", [{"id": i, "a": float(i % 7), "b": float(i % 5)} for i in numbers])
        running.append("weighed", [{"id": i, "y": 2.0 * (i % 7) + i % 5 + i % 4 / 8} for i in numbers])
        running.wait(60)


def rows(app: hr.App, topic: str) -> int:
    return app.topic(topic).read().to_arrow().num_rows


def test_another_bound_goes_on_where_the_pipeline_was_and_is_said(
    log: Log, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("headrace"), "propagate", True)
    feed(weights(log), 0)
    app = weights(log, limit=0.3)
    feed(app, 10)
    # A record is captured twice where the logger did not propagate when the test began.
    (said,) = {id(record): text for record in caplog.records if "begins anew" in (text := record.getMessage())}.values()
    assert re.fullmatch(
        r"«weight»: alarm «alarms»: above 0\.1 -> 0\.3; begins anew \(from step \d+ on, after 0/0:9\)", said
    )
    assert rows(app, "predicted") == rows(app, "graded") == 20
    # The window has not changed: it knows the grades of before.
    assert rows(app, "lines") == 16
    assert report(app).result == "equal"
    feed(app, 20)
    held = open_log(log, writer=False)
    with_changes = [declaration.changes for declaration in read_declarations(held, "weight")]
    held.close()
    assert with_changes == [[], ["alarm «alarms»: above 0.1 -> 0.3; begins anew"]]


def test_what_is_added_begins_there_or_with_the_first_row(log: Log) -> None:
    feed(weights(log, copies=("gone",)), 0)

    def more(graded: hr.Stream) -> None:
        graded.window(2).mean("error").to("new")
        graded.window(2, start="earliest").mean("error").to("all").above(0.0, cooldown=0, start="earliest").to(
            "all-alarms"
        )
        graded.to("copy", start="earliest")

    # Before the others in the file: what was there before keeps what it knows, whatever its number is now.
    app = weights(log, more=more, first=True, copies=("late",))
    feed(app, 10)
    assert {topic: rows(app, topic) for topic in ("lines", "new", "all", "copy", "gone", "late")} == {
        "lines": 16, "new": 9, "all": 19, "copy": 20, "gone": 10, "late": 10,
    }  # fmt: skip
    errors = app.topic("all").read().to_arrow().column("error")
    assert rows(app, "all-alarms") == pc.sum(pc.greater(errors, 0.0)).as_py()
    assert report(app).result == "equal"
    # And away again.
    app = weights(log)
    feed(app, 20)
    assert rows(app, "lines") == 26 and rows(app, "new") == 9
    assert report(app).result == "equal"


def test_rows_without_a_topic_cannot_begin_with_the_first() -> None:
    app = hr.App("shop", log="memory://")
    model = app.model("m", hr.LinearRegression(), features=["a"], target="y")
    predictions = model.predict(app.topic("measured"))
    with pytest.raises(DeclarationError, match="rows that have no topic"):
        predictions.to("p", start="earliest")
    with pytest.raises(DeclarationError, match="start='latest'"):
        app.topic("rows").window(3, start="latest")  # type: ignore[arg-type]  # what a user may write


def test_what_is_derived_from_topics_is_found_again_when_others_come_before_it(log: Log) -> None:
    def old(app: hr.App) -> None:
        app.topic("rows").window(2).count().to("twos")
        app.topic("rows").filter(pc.field("id") > 1).to("large")

    def new(app: hr.App) -> None:
        app.topic("rows").window(3).count().to("threes")
        app.topic("rows").to("all")
        app.topic("rows").window(2).count().to("twos")
        app.topic("rows").filter(pc.field("id") > 1).to("large")

    for first, declare in ((0, old), (5, new), (10, new), (15, old)):
        app = hr.App("shop", log=log)
        app.topic("rows", append=True)
        declare(app)
        with app.start() as running:
            running.append("rows", [{"id": i} for i in range(first, first + 5)])
            running.wait(60)
        assert report(app).result == "equal"
    # Nothing was derived twice; what is new began with the first row, or, as one more copy, where the copies were.
    assert [rows(app, topic) for topic in ("twos", "large", "threes", "all")] == [19, 18, 13, 10]


def test_evaluations_come_and_go(log: Log) -> None:
    def build(*names: str, metrics: Any = None) -> hr.App:
        app = hr.App("shop", log=log)
        measured = app.topic("rows", append=True)
        model = app.model("m", SGDClassifier(random_state=0), features=["a"], target="k", classes=[0, 1])
        model.learn(measured, every=3)
        for name in names:
            model.evaluate(measured, name=name, metrics=metrics)
        return app

    def run(app: hr.App, first: int) -> list[tuple[str, int]]:
        with app.start() as running:
            running.append("rows", [{"a": float(i), "k": i % 2} for i in range(first, first + 3)])
            running.append("rows", [{"a": float(i), "k": i % 2} for i in range(first + 3, first + 6)])
            running.wait(60)
        assert report(app).result == "equal"
        found = app.topic("m-metrics").read().to_arrow()
        return list(zip(found.column("stream").to_pylist(), found.column("rows").to_pylist(), strict=True))

    assert run(build("x"), 0)[-1] == ("x", 3)  # the first three were not ready
    assert dict(run(build("x", "y"), 6)) == {"x": 9, "y": 6}
    assert dict(run(build("y", metrics=["balanced_accuracy"]), 12)) == {"x": 9, "y": 6}


def test_what_was_predicted_before_an_evaluation_is_graded_from_the_first_row_on(log: Log, tmp_path: Path) -> None:
    """An evaluation begins where it was declared; grades tell the same of all predictions that the log holds."""

    def app(at: Path, *, evaluated: bool, graded: bool = False) -> hr.App:
        made = hr.App("shop", log=at)
        rows = made.topic("measured", append=True)
        model = made.model("weight", hr.LinearRegression(), features=["a"], target="y")
        model.learn(rows)
        predictions = model.predict(rows).to("predicted")
        if evaluated:
            model.evaluate(rows, metrics=["mae"])
        if graded:
            grades = predictions.grade(
                rows, on="id", within="1 min", metric=hr.metrics.absolute_error, start="earliest"
            )
            grades.to("graded")
        return made

    def ten(made: hr.App, first: int) -> None:
        with made.start() as running:
            numbers = range(first, first + 10)
            running.append("measured", [{"id": i, "a": float(i % 7), "y": 2.0 * (i % 7) + i % 3} for i in numbers])
            running.wait(60)

    def scores(made: hr.App) -> tuple[int, float]:
        newest = made.topic("weight-metrics").read().to_arrow().to_pylist()[-1]
        return newest["rows"], newest["mae"]

    ten(always := app(tmp_path / "always.headrace", evaluated=True), 0)
    for first in (10, 20):
        ten(always, first)
    for first in (0, 10):
        ten(app(log, evaluated=False), first)
    ten(late := app(log, evaluated=True, graded=True), 20)
    assert (scores(always)[0], scores(late)[0]) == (20, 10)
    errors = late.topic("graded").read().to_arrow().column("error").drop_null()
    assert (len(errors), pc.mean(errors).as_py()) == (20, pytest.approx(scores(always)[1]))
    assert report(late).result == "equal"


def test_a_log_of_before_whose_alarm_changes_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "before.headrace"
    path.write_bytes(gzip.decompress(WRITTEN.read_bytes()))

    app = before.build(path, limit=0.2)
    with app.start() as running:
        assert (running["weight"].learned, running["kind"].learned) == (12, 14)
        before.measure(running, 18, 18)
        assert (running["weight"].learned, running["kind"].learned) == (24, 35)
    held = open_log(path, writer=False)
    changes = read_declarations(held, "weight")[-1].changes
    held.close()
    assert changes == ["alarm «alarms»: above 0.1 -> 0.2; begins anew"]
    # Bits are compared where machine and libraries are those that wrote it.
    found = report(app)
    assert found.result in ("equal", "not comparable"), found


def test_one_who_follows_goes_over_the_change(log: Log) -> None:
    feed(weights(log), 0)
    follower = Replica.of(weights(log).plan())
    try:
        follower.start()
        app = weights(log, limit=0.3, more=lambda graded: graded.window(2).count().to("new"), first=True)
        feed(app, 10)
        held = open_log(log, writer=False)
        progress = read_progress(held, "weight")
        held.close()
        assert progress is not None
        wait_until(lambda: state_hash(follower.current("weight").by.learner.state()) == progress.hash)
    finally:
        follower.stop()


@pytest.mark.parametrize("times", [1, 2])
def test_a_reset_begins_anew_as_it_is_declared_then(times: int, log: Log) -> None:
    feed(weights(log), 0)
    feed(weights(log, limit=0.3), 10)
    held = open_log(log, writer=True)
    for _ in range(times):
        with held.transaction() as txn:
            reset(held, txn, "weight", relearn=True, ts_us=1)
    held.close()
    app = weights(log, limit=0.5)
    feed(app, 20)
    assert (rows(app, "predicted"), report(app).result) == (30, "equal")


# -- what sets a training off -----------------------------------------------------------------------------------------


def retrained(log: Log, metric: Any = None, limit: float = 3.0) -> hr.App:
    app = hr.App("shop", log=log)
    measured, weighed = app.topic("measured", append=True), app.topic("weighed", append=True)
    model = app.model("weight", hr.LinearRegression(), features=["a", "b"], target="y")
    graded = model.predict(measured).to("predicted").grade(weighed, on="id", within="1 min", metric=metric)
    alarm = graded.to("graded").window(3).mean("error").above(limit).to("alarms")
    model.retrain(on=alarm, rows=graded.last(8))
    return app


def test_trainings_are_replayed_by_the_declaration_of_their_time(log: Log) -> None:
    def feed_retrained(app: hr.App, first: int) -> None:
        with app.start() as running:
            if first == 0:
                feed_rows(running, 0, 8)
                running.retrain("weight")
            feed_rows(running, first + 8, 12)

    def feed_rows(running: Any, first: int, count: int) -> None:
        for numbers in (range(first, first + count // 2), range(first + count // 2, first + count)):
            running.append("measured", [{"id": i, "a": float(i % 7), "b": float(i % 5)} for i in numbers])
            running.append("weighed", [{"id": i, "y": (i // 6) * (i % 7) + i % 5 + i % 4 / 8} for i in numbers])
        running.wait(60)

    feed_retrained(retrained(log, limit=1.0), 0)
    versions = retrained(log).topic("weight-training").read().to_arrow().num_rows
    assert versions > 1
    app = retrained(log, limit=2.0)
    feed_retrained(app, 20)
    assert report(app).result == "equal"

    def odd(prediction: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.abs(prediction - truth) + 1

    feed_retrained(retrained(log, metric=odd, limit=2.0), 40)
    app = retrained(log, limit=4.0)
    feed_retrained(app, 60)  # a pipeline goes on, whatever it was
    found = report(app)
    # What trained the model for a while was a function, which is gone: nobody can say whether the bits are right.
    assert (found.result, found.exit_code) == ("not comparable", 3)
    assert "how the model was trained anew then is not known any more" in found.reason


# -- what the model is ------------------------------------------------------------------------------------------------


def species(log: Log, learner: Any = None, *, features: tuple[str, ...] = ("a", "b"), every: Any = 4) -> hr.App:
    app = hr.App("iris", log=log)
    measured = app.topic("measured", append=True)
    model = app.model("species", learner or hr.KMeans(k=3), features=list(features))
    model.learn(measured, every=every)
    model.predict(measured).to("predictions")
    return app


def classifier(log: Log, estimator: Any) -> hr.App:
    app = hr.App("iris", log=log)
    measured = app.topic("measured", append=True)
    model = app.model("species", estimator, features=["a", "b"], target="k", classes=[0, 1])
    model.learn(measured, every=4)
    model.predict(measured).to("predictions")
    return app


def feed_species(app: hr.App, first: int, count: int = 11) -> None:
    with app.start() as running:
        values = [
            {"a": i * 7 % 11 / 3, "b": i * 5 % 7 / 2, "c": 1.0, "k": i * 7 % 11 // 6}
            for i in range(first, first + count)
        ]
        for value in (values[:4], values[4:]):
            running.append("measured", value)
        running.wait(60)


def let(app: hr.App) -> None:
    held = open_log(app.log, writer=True)
    with held.transaction() as txn:
        put_continue(txn, "species", "me@here", 1)
    held.close()


def refusal(app: hr.App) -> str:
    with pytest.raises(FingerprintError) as refused, app.start():
        pass
    return str(refused.value)


def test_a_refusal_shows_what_differs_and_the_ways_on(log: Log) -> None:
    feed_species(species(log), 0)
    told = refusal(species(log, hr.KMeans(k=4), features=("a", "b", "c"), every=5))
    assert told.splitlines()[1:4] == ["    KMeans k: 3 -> 4", "    features: + c", "    every: 4 rows -> 5 rows"]
    assert "initial_centers" not in told and "models continue" not in told
    assert "it has learned 2 features, and 3 are declared" in told
    assert f"headrace models reset species --log {log} --from latest" in told
    assert f"headrace models continue species --log {log}\n" in refusal(species(log, every=5))
    assert "it has learned 3 centers, and k=4 is declared" in refusal(species(log, hr.KMeans(k=4)))


@pytest.mark.parametrize("typo", ["features", "target"])
def test_a_model_that_has_only_refused_rows_begins_anew(typo: str, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """A name was mistyped: every row was refused. Once it is right, all of them are learned; each is answered once."""

    def app(features: list[str], target: str) -> hr.App:
        made = hr.App("fish", log=log)
        measured = made.topic("measured", append=True)
        model = made.model("weight", hr.LinearRegression(), features=features, target=target)
        model.learn(measured)
        model.predict(measured).to("predictions")
        return made

    rows = [{"a": float(i), "b": 1.0 / (i + 1), "y": 2.0 * i} for i in range(5)]
    wrong = app(["a", "bb"], "y") if typo == "features" else app(["a", "b"], "yy")
    with wrong.start() as running:
        for row in rows:
            running.append("measured", row)
        running.wait()
        assert running["weight"].learned == 0
    right = app(["a", "b"], "y")
    with caplog.at_level(logging.INFO, "headrace"), right.start() as running:
        running.append("measured", {"a": 9.0, "b": 0.5, "y": 18.0})
        running.wait()
        assert running["weight"].learned == 6
    assert "has only refused rows so far: it begins anew" in caplog.text
    held = open_log(log, writer=False, codec=codec_for())
    try:
        found = [row for entry in held.read_topic("predictions", limit=100) for row in entry.records.to_pylist()]
        assert [row["a"] for row in found] == [0.0, 1.0, 2.0, 3.0, 4.0, 9.0]
        assert (found[-1]["prediction"], found[-1]["model_version"]) == (pytest.approx(18.0), 2)
    finally:
        held.close()
    assert report(right).result == "equal"


def test_a_model_goes_on_as_a_new_version_and_all_of_it_can_be_replayed(log: Log) -> None:
    feed_species(species(log), 0)
    app = species(log, hr.KMeans(k=3, decay=0.5), every=2)
    let(app)
    feed_species(app, 11)
    assert report(app).result == "equal"
    held = open_log(log, writer=False, codec=codec_for())
    try:
        versions = VersionList.read(held, "species")
        assert [(version.version, version.parent) for version in versions] == [(1, None), (2, 1)]
        second = versions.find(2)
        assert second.reason == "continues: KMeans decay: 0.0 -> 0.5; every: 4 rows -> 2 rows"
        assert second.by == "me@here"
        assert (versions.find(1).rows, second.began["rows"]) == (11, 11)  # the open cut was learned first
        assert explain(held, "predictions", 20)["learned"][0]["version"] == 1
        plan = app.plan()
        for at in ("0/0:3", "0/0:10"):  # before and at the change
            rebuilt = rebuild(plan, plan.models[0], held, Place.parse(at))
            assert rebuilt.version.number == (1 if at == "0/0:3" else 2) and rebuilt.verified is not False
    finally:
        held.close()
    assert "models continue" in refusal(species(log, every=9))  # it was let go on once


def test_a_start_that_changes_nothing_uses_up_what_was_let_go_on(log: Log) -> None:
    feed_species(species(log), 0)
    let(species(log))
    feed_species(species(log), 11)
    assert "models continue" in refusal(species(log, every=9))


def test_what_was_let_go_on_and_does_not_fit_is_refused_still(log: Log) -> None:
    feed_species(species(log), 0)
    app = species(log, features=("b", "a"))
    let(app)
    assert "what it has learned is of other features (features: a, b -> b, a)" in refusal(app)


def test_scikit_learn_goes_on_with_other_rates_and_refuses_other_meanings(log: Log) -> None:
    feed_species(classifier(log, SGDClassifier(random_state=0)), 0)
    assert "«loss» of SGDClassifier" in refusal(classifier(log, SGDClassifier(random_state=0, loss="log_loss")))
    assert "another" in refusal(classifier(log, make_pipeline(StandardScaler(), SGDClassifier(random_state=0))))
    app = classifier(log, SGDClassifier(random_state=0, learning_rate="constant", eta0=0.5))
    let(app)
    feed_species(app, 11)
    assert report(app).result == "equal"


def logistic(rate: float) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.SGD(rate))


def of_river(model: Any) -> bool:
    return type(model).__module__.startswith("river")


def test_a_pipelines_step_and_a_networks_rate_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KEY_FILE", str(tmp_path / "key"))
    for number, (old, new, told) in enumerate(
        [
            (
                SGDClassifier(random_state=0),
                SGDClassifier(random_state=0, alpha=0.01),
                "alpha: 0.0001 -> 0.01",
            ),
            (MLPClassifier((4,)), MLPClassifier((4,), learning_rate_init=0.1), "learning_rate_init: 0.001 -> 0.1"),
            (logistic(0.01), logistic(0.5), "learning_rate: 0.01 -> 0.5"),
        ]
    ):
        at = tmp_path / f"{number}.headrace"
        old, new = (model if of_river(model) else make_pipeline(StandardScaler(), model) for model in (old, new))
        feed_species(classifier(at, old), 0)
        app = classifier(at, new)
        assert told in refusal(app)
        let(app)
        feed_species(app, 11)
        assert report(app).result == "equal"


class Slow:
    """A learner of one's own, as a file has it: a mean that moves by a share of what each row differs from it."""

    prediction_type = pa.float64()

    def __init__(self, share: float, about: str = "a") -> None:
        self.share, self.about, self.mean, self.ready = share, about, 0.0, False

    def learn(self, X: Any, y: Any = None) -> None:
        for value in X[:, 0].tolist():
            self.mean += self.share * (value - self.mean)
            self.ready = True

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.mean)

    def parameters(self) -> dict[str, Any]:
        return {"share": self.share, "about": self.about}

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean, "ready": self.ready}

    def restore(self, state: Any) -> None:
        self.mean, self.ready = float(state["mean"]), bool(state["ready"])


class SlowAdopting(Slow):
    """One that says what fits, and what it was before."""

    def adopt(self, state: Any, parameters: Any) -> None:
        if parameters["about"] != self.about:
            raise LearnError(f"it is a mean of {parameters['about']}")
        self.restore(state)

    def declared_with(self, parameters: Any) -> Any:
        return SlowAdopting(**parameters)


def test_a_learner_of_ones_own_says_what_fits_and_what_it_was(log: Log, tmp_path: Path) -> None:
    feed_species(species(log, SlowAdopting(0.1)), 0)
    assert "it is a mean of a" in refusal(species(log, SlowAdopting(0.5, "b")))
    app = species(log, SlowAdopting(0.5))
    let(app)
    feed_species(app, 11)
    assert report(app).result == "equal"
    other = tmp_path / "other.headrace"
    feed_species(species(other, Slow(0.1)), 0)
    assert "its log alone does not say how it was declared" in refusal(species(other, Slow(0.5)))
