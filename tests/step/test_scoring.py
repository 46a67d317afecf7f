"""Scores, weights, categories, missing numbers and versions in `step`, whatever the rows are grouped in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.metrics import accuracy_score, f1_score

import headrace as hr
from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.learn.state import state_hash
from headrace.plan.task import ModelTask
from headrace.step.events import Part, Rows, Tick
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step

RNG = np.random.default_rng(7)
N = 300
X = RNG.normal(size=(N, 2))
Y = (X[:, 0] + X[:, 1] > 0).astype(np.int64)


def rows(n: int = N, **more: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"id": np.arange(n), "a": X[:n, 0], "b": X[:n, 1], "y": Y[:n], **more})


def digits(**options: Any) -> tuple[hr.App, Any]:
    app = hr.App("shop", log="memory://")
    learner = options.pop("learner", SGDClassifier())
    classes = options.pop("classes", [0, 1])
    features = options.pop("features", ["a", "b"])
    model = app.model("m", learner, features=features, target="y", classes=classes, **options)
    return app, model


def task_of(app: hr.App) -> ModelTask:
    plan = app.plan()
    plan.check()
    (task,) = plan.tasks
    assert isinstance(task, ModelTask)
    return task


def play(task: ModelTask, records: pa.RecordBatch, sizes: list[int], *, transaction: int = 10) -> tuple[State, Any]:
    """Feed a topic's rows in events of some sizes; every so many rows are one transaction."""
    state, outputs, at, turn = initial_state(task), [], 0, 0
    lsn = 1 + np.arange(records.num_rows) // transaction
    while at < records.num_rows:
        end = min(records.num_rows, at + sizes[turn % len(sizes)])
        turn += 1
        part = Batch.of(
            records.slice(at, end - at),
            lsn=lsn[at:end].astype(np.uint64),
            index=np.arange(at, end) % transaction,
            ts_us=lsn[at:end] * 1_000_000,
            key=["id"],
        )
        complete = end == records.num_rows or lsn[end] != lsn[end - 1]
        event = Rows((Part("t", part, np.full(end - at, turn), at),), complete)
        for topic, batch in step(task, state, event):
            pairs = zip(batch.records.to_pylist(), batch.ts_us.tolist(), strict=True)
            outputs += [(topic, row | {"at_us": at_us}) for row, at_us in pairs]
        state = load_state(task, dump_state(state))
        at = end
    return state, outputs


def lines(outputs: Any) -> list[dict[str, Any]]:
    return [row for topic, row in outputs if topic == "m-metrics"]


@pytest.mark.parametrize("declared", ["predicted too", "learned only", "learned elsewhere"])
def test_scores_are_those_of_the_answers(declared: str) -> None:
    app, model = digits()
    stream = app.topic("t")
    if declared != "learned elsewhere":
        model.learn(stream)
    else:
        model.learn(stream.filter(pc.field("id") < 100))
    model.evaluate(stream, window=50)
    if declared == "predicted too":
        model.predict(stream).to("answers")
    _, outputs = play(task_of(app), rows(), [70])
    last = lines(outputs)[-1]
    if declared == "predicted too":
        given = [row for topic, row in outputs if topic == "answers" and row["prediction"] is not None]
        truth, answers = [row["y"] for row in given], [row["prediction"] for row in given]
        assert last["rows"] == len(given) == N - 10
        assert last["accuracy"] == accuracy_score(truth, answers)
        assert last["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))
        assert last["window_accuracy"] == accuracy_score(truth[-50:], answers[-50:])
        assert sum(last["confusion"]) == last["rows"]
    assert last["accuracy"] > 0.8 and last["model"] == "m"


@pytest.mark.parametrize("sizes", [[300], [10], [20, 50, 30]], ids=["whole", "tens", "mixed"])
def test_lines_do_not_depend_on_how_rows_come(sizes: list[int]) -> None:
    app, model = digits()
    stream = app.topic("t")
    model.learn(stream, every=16)
    model.predict(stream).to("answers")
    model.evaluate(stream)
    state, outputs = play(task_of(app), rows(), sizes)
    whole, expected = play(task_of(app), rows(), [300])
    assert lines(outputs) == lines(expected)
    assert state_hash(state.learner.state()) == state_hash(whole.learner.state())  # type: ignore[union-attr]  # a model


def test_a_line_for_each_transaction_at_first_and_every_thousand_rows_later() -> None:
    app, model = digits(learner=SGDClassifier().fit(X, Y))
    model.evaluate(app.topic("t"))
    many = pa.RecordBatch.from_pydict(
        {"id": np.arange(120_000), "a": np.tile(X[:, 0], 400), "b": np.tile(X[:, 1], 400), "y": np.tile(Y, 400)}
    )
    _, outputs = play(task_of(app), many, [40_000], transaction=1)
    counts = [line["rows"] for line in lines(outputs)]
    assert counts[:5] == [1, 2, 3, 4, 5]
    gaps = np.diff(counts)
    assert gaps.max() == 1000 and all(gap <= max(1, at // 100) for gap, at in zip(gaps, counts, strict=False))


def test_a_fixed_set_is_answered_after_every_cut() -> None:
    app, model = digits()
    model.learn(app.topic("t"), every=50)
    model.evaluate(rows(100), metrics=["accuracy", accuracy_score])
    state, outputs = play(task_of(app), rows(), [300])
    assert [line["learned"] for line in lines(outputs)] == [50, 100, 150, 200, 250, 300]
    assert {line["rows"] for line in lines(outputs)} == {100}
    learner = state.learner
    assert learner is not None
    assert lines(outputs)[-1]["accuracy"] == (learner.predict(X[:100]) == Y[:100]).mean()


@pytest.mark.parametrize("every", [16, "3 s", "transaction"])
@pytest.mark.parametrize("sizes", [[3], [10], [20, 7, 50]], ids=["threes", "tens", "mixed"])
def test_a_fixed_sets_lines_do_not_depend_on_how_rows_come(every: Any, sizes: list[int]) -> None:
    """Not their time either, which is that of the cut's last row, wherever events divide a transaction."""
    app, model = digits()
    model.learn(app.topic("t"), every=every)
    model.evaluate(rows(100))
    _, outputs = play(task_of(app), rows(), sizes)
    _, expected = play(task_of(app), rows(), [300])
    assert lines(outputs) == lines(expected)
    ends = {16: 16, "3 s": 20, "transaction": 10}[every]
    assert lines(expected)[0]["at_us"] == 1_000_000 * (1 + (ends - 1) // 10)


def test_evaluating_changes_nothing_of_the_model() -> None:
    plain, evaluated = digits(), digits()
    for app, model in (plain, evaluated):
        model.learn(app.topic("t"), every=32)
    evaluated[1].evaluate(evaluated[0].topic("t"))
    evaluated[1].evaluate(rows(50))
    states = [play(task_of(app), rows(), [64])[0] for app, _ in (plain, evaluated)]
    hashes = {state_hash(state.learner.state()) for state in states if state.learner is not None}
    assert len(hashes) == 1
    assert task_of(plain[0]).fingerprint() == task_of(evaluated[0]).fingerprint()


def test_regression_is_scored_by_errors() -> None:
    app, model = digits(learner=SGDRegressor(), classes=None)
    model.learn(app.topic("t"))
    model.evaluate(app.topic("t"), metrics=["mae", "rmse", "r2"])
    _, outputs = play(task_of(app), rows(), [64])
    last = lines(outputs)[-1]
    assert 0 < last["mae"] <= last["rmse"] and last["r2"] < 1 and "confusion" not in last


REFUSED = {
    "no target": (lambda app: app.model("n", hr.KMeans(2), features=["a"]).evaluate(app.topic("t")), "no target"),
    "no such metric": (lambda app: digits()[1].evaluate(rows(5), metrics=["auroc"]), "no metric «auroc»"),
    "twice": (lambda app: [m := digits()[1], m.evaluate(rows(5)), m.evaluate(rows(5))], "twice"),
    "weights": (
        lambda app: app.model("n", hr.KMeans(2), features=["a"]).learn(app.topic("t"), sample_weight="w"),
        "no sample_weight",
    ),
    "nan": (lambda app: digits(missing="pass"), "takes no NaN"),
    "nothing known": (lambda app: hr.category("a", unseen="error"), "knows no word"),
    "versions": (lambda app: digits(versions=0), "versions=0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_declaration(case: str) -> None:
    declare, said = REFUSED[case]
    with pytest.raises(DeclarationError, match=said):
        declare(hr.App("shop", log="memory://"))


# -- weights ------------------------------------------------------------------------------------------------------


def test_weights_are_learned_and_bad_ones_refused() -> None:
    weight = np.where(np.arange(N) % 3 == 0, 2.0, 0.5)
    listed: list[float | None] = weight.tolist()
    listed[5], listed[6] = None, -1.0
    app, model = digits()
    model.learn(app.topic("t"), every=30, sample_weight="w")
    state, outputs = play(task_of(app), rows(w=pa.array(listed)), [44])
    reasons = [row["reason"] for topic, row in outputs if topic == "t.dlq"]
    assert reasons == ["the weight «w» is None", "the weight «w» is -1.0"]
    keep = np.delete(np.arange(N), [5, 6])
    bare = SGDClassifier(random_state=0)
    for start in range(0, len(keep) - len(keep) % 30, 30):
        some = keep[start : start + 30]
        bare.partial_fit(X[some], Y[some], classes=[0, 1], sample_weight=weight[some])
    learner: Any = state.learner
    assert np.array_equal(learner._estimator.coef_, bare.coef_)


# -- categories ---------------------------------------------------------------------------------------------------

WORDS = np.array(["Bream", "Pike", "Roach", "Perch"])[np.minimum(np.arange(N) // 60, 3)]


@pytest.mark.parametrize("coding", ["one_hot", "treatment"])
@pytest.mark.parametrize("sizes", [[300], [1], [17, 50]], ids=["whole", "single", "mixed"])
def test_the_log_decides_what_a_category_knows(coding: Any, sizes: list[int]) -> None:
    def run(sizes: list[int]) -> tuple[State, Any]:
        feature = hr.category("word", coding=coding, capacity=3)
        app, model = digits(learner=SGDClassifier(), features=["a", feature])
        model.learn(app.topic("t"), every=25)
        model.predict(app.topic("t"), proba=False).to("answers")
        return play(task_of(app), rows(word=pa.array(WORDS)), sizes)

    state, outputs = run(sizes)
    expected, wanted = run([300])
    assert state.vocabulary.words == {"word": ["Bream", "Pike", "Roach"]}
    assert sorted(map(str, outputs)) == sorted(map(str, wanted))
    assert state_hash(state.learner.state()) == state_hash(expected.learner.state())  # type: ignore[union-attr]  # a model
    refused = [row for topic, row in outputs if topic == "t.dlq"]
    assert len(refused) == N - 180 and "is 'Perch', which is not known" in refused[0]["reason"]
    answered = [row for topic, row in outputs if topic == "answers"]
    assert [row["status"] for row in answered].count("ok") == N - 30  # an unknown word is zeros to who answers


def test_known_words_are_fixed_columns() -> None:
    one = hr.category("word", known=["Bream", "Pike"], unseen="ignore")
    app, model = digits(features=[one])
    model.predict(app.topic("t")).to("answers")
    model.learn(app.topic("t"))
    state, _ = play(task_of(app), rows(word=pa.array(WORDS)), [50])
    learner: Any = state.learner
    assert learner.width == 2 and state.vocabulary.words == {}


def test_a_vectors_length_is_the_first_rows() -> None:
    listed = [[float(i), 1.0] if i != 20 else [1.0] for i in range(N)]
    app, model = digits(features=[hr.vector("v")])
    model.learn(app.topic("t"), every=7)
    model.predict(app.topic("t")).to("answers")
    state, outputs = play(task_of(app), rows(v=pa.array(listed)), [13])
    assert state.vocabulary.sizes == {"v": 2}
    assert [row["reason"] for topic, row in outputs if topic == "t.dlq"] == ["the vector «v» has 1 numbers, not 2"] * 2


# -- missing numbers ----------------------------------------------------------------------------------------------


class Means:
    """Learns column means of what is there."""

    deterministic, splits, accepts_nan = True, "exact", True
    prediction_type = pa.float64()

    def __init__(self) -> None:
        self.sums, self.counts = np.zeros(2), np.zeros(2)

    ready = property(lambda self: bool(self.counts.any()))

    def learn(self, X: Any, y: Any = None) -> None:
        self.sums, self.counts = self.sums + np.nansum(X, axis=0), self.counts + (~np.isnan(X)).sum(axis=0)

    def predict(self, X: Any) -> Any:
        return np.where(np.isnan(X), self.sums / self.counts, X).sum(axis=1)

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"sums": self.sums.copy(), "counts": self.counts.copy()}

    def restore(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = state["sums"], state["counts"]


def test_missing_numbers_are_passed_to_who_takes_them() -> None:
    a: list[float | None] = X[:, 0].tolist()
    a[3] = None
    app, model = digits(learner=Means(), classes=None, missing="pass")
    model.learn(app.topic("t"))
    model.predict(app.topic("t")).to("answers")
    state, outputs = play(
        task_of(app), pa.RecordBatch.from_pydict({"id": np.arange(N), "a": a, "b": X[:, 1], "y": Y}), [9]
    )
    learner: Any = state.learner
    assert learner.counts.tolist() == [N - 1, N]
    assert not [topic for topic, _ in outputs if topic == "t.dlq"]
    assert "missing" in task_of(app).fingerprint()


# -- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[300], [10], [40, 20]], ids=["whole", "tens", "mixed"])
def test_a_version_ends_with_every_so_many_rows(sizes: list[int]) -> None:
    def run(sizes: list[int]) -> tuple[list[Any], Any]:
        app, model = digits(versions=100)
        model.learn(app.topic("t"), every=30)
        model.predict(app.topic("t")).to("answers")
        task, ended = task_of(app), []
        state, outputs, at = initial_state(task), [], 0
        records = rows()
        turn = 0
        while at < N:
            end = min(N, at + sizes[turn % len(sizes)])
            part = Batch.of(records.slice(at, end - at), lsn=1 + at, index=np.arange(at, end), key=["id"])
            lsn = (1 + np.arange(at, end) // 10).astype(np.uint64)
            part = Batch.of(records.slice(at, end - at), lsn=lsn, index=np.arange(at, end) % 10, key=["id"])
            event = Rows((Part("t", part, np.full(end - at, turn), at),), True)
            outputs += [row for topic, batch in step(task, state, event) for row in batch.records.to_pylist()]
            ended += [
                (was.number, was.rows, str(was.position), dict(end.learned_offsets), state_hash(dict(end.state)))
                for end in state.ended
                for was in [end.version]
            ]
            at, turn = end, turn + 1
        return ended, [(row["id"], row["model_version"], row["model_position"]) for row in outputs]

    ended, answers = run(sizes)
    whole, expected = run([300])
    assert ended == whole and answers == expected
    assert [(version, n) for version, n, *_ in ended] == [(1, 120), (2, 210), (3, 300)]
    assert [reach for *_, reach, _ in ended] == [{"t": 120}, {"t": 210}, {"t": 300}]


def test_another_version_takes_over_between_two_cuts() -> None:
    app, model = digits()
    model.learn(app.topic("t"), every=40)
    task = task_of(app)
    at_80, _ = play(task, rows(80), [80])
    assert at_80.learner is not None
    old = copy.deepcopy(at_80.learner.state())

    def event(start: int, end: int) -> Rows:
        part = Batch.of(rows().slice(start, end - start), lsn=1 + start, index=np.arange(end - start), key=["id"])
        return Rows((Part("t", part, np.full(end - start, start), start),), True)

    def version(number: int) -> ModelVersion:
        learner = copy.deepcopy(task.learner)
        learner.restore(old)
        return ModelVersion(learner, number, at_80.position, 80)

    state = initial_state(task)
    step(task, state, event(0, 100))  # 20 rows wait for their cut
    step(task, state, VersionChange(version(2), 1))
    assert state.version == 1 and state.open_batch.rows == 20
    state = load_state(task, dump_state(state))
    step(task, state, event(100, 120))
    assert state.version == 2 and state.learned_rows == 80 and state.open_batch.rows == 0
    assert [(end.version.number, end.version.rows) for end in state.ended] == [(1, 120)]
    assert state.learner is not None and state_hash(state.learner.state()) == state_hash(old)
    step(task, state, VersionChange(version(3), 1))  # between two cuts: at once
    assert state.version == 3
    step(task, state, Tick(0))
