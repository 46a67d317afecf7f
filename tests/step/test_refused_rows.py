"""Rows that a learner fails on: refused by themselves, wherever their cut began and however rows were grouped."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.grade.scores import score_spec
from headrace.learn.adapters import adapted
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.learn.state import state_hash
from headrace.plain_values import rows as listed
from headrace.plan.task import Cut, EvaluatePlan, ModelTask, OutputPlan, PredictPlan, StreamPlan
from headrace.step.events import Part, Rows, Tick
from headrace.step.state import Samples, State, dump_state, initial_state, load_state
from headrace.step.step import step
from headrace.transform.expressions import Filter

Outputs = list[tuple[str, dict[str, Any]]]


class Picky:
    """Learns halfway before it fails on a negative number; 7 together with 8 is too much for it as well."""

    deterministic = True
    prediction_type = pa.float64()

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.broken = False

    @property
    def ready(self) -> bool:
        return bool(self.seen)

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        self.broken = True
        self.seen.append([])
        for value in X[:, 0].tolist():
            if value < 0:
                raise ValueError(f"{value} is negative")
            self.seen[-1].append(value)
        if {7.0, 8.0} <= set(self.seen[-1]):
            raise RuntimeError("7 and 8 at once")
        self.broken = False

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        assert not self.broken
        if (X == 6).any():
            raise ValueError("6 has no answer")
        return np.where(X[:, 0] == 5, np.nan, float(len(self.seen)))

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        flat = [value for item in self.seen for value in item]
        return {"flat": np.array(flat), "sizes": np.array([len(item) for item in self.seen], np.int64)}

    def restore(self, state: dict[str, Any]) -> None:
        flat, self.broken = iter(state["flat"].tolist()), False
        self.seen = [[next(flat) for _ in range(size)] for size in state["sizes"].tolist()]


def task(learner: Any, cut: Cut | None = None, **more: Any) -> ModelTask:
    given = {"features": ("x",), "learn": (StreamPlan("rows"),), **more}
    predict = (PredictPlan(StreamPlan("rows"), (OutputPlan("out"),)),)
    return ModelTask(name="m", learner=learner, cut=cut or Cut(transaction=True), predict=predict, **given)


class Written:
    """The topics as a log holds them."""

    def __init__(self, rows: list[Batch]) -> None:
        self.whole = Batch(pa.concat_batches([row.records for row in rows]))

    def at(self, topic: str, offsets: Any) -> list[tuple[list[int], Batch]]:
        return [([offset], self.whole.slice(offset, 1)) for offset in offsets]

    def rows(self, *_: Any) -> list[Batch]:
        raise AssertionError

    query: Any = rows


def play(one: ModelTask, rows: list[Batch], sizes: list[int], ticks: frozenset[int] = frozenset()) -> tuple[State, Any]:
    """Run rows in events of the given sizes, with a tick after some rows; the state is stored between all of them."""
    state, outputs, at, reader = initial_state(one), Outputs(), 0, Written(rows)
    for size in itertools.cycle(sizes):
        if at == len(rows):
            return state, outputs
        size = min([size, len(rows) - at, *(after - at for after in ticks if after > at)])
        end = at + size
        complete = end == len(rows) or rows[end].lsn[0] != rows[end - 1].lsn[0]
        part = Part("rows", Batch(pa.concat_batches([row.records for row in rows[at:end]])), np.arange(at, end) + 1, at)
        made = step(one, state, Rows((part,), complete), reader)
        state = load_state(one, dump_state(state))
        if end in ticks and complete:
            made += step(one, state, Tick(0, explicit=True), reader)
            state = load_state(one, dump_state(state))
        outputs += [(topic, row) for topic, batch in made for row in listed(batch.records)]
        at = end
    raise AssertionError


def column(values: list[Any], transactions: list[int] | None = None, **more: list[Any]) -> list[Batch]:
    """One batch for each row, of a column x and others."""
    lsns = transactions or list(range(10, 10 * len(values) + 10, 10))
    index = [i - lsns.index(lsn) for i, lsn in enumerate(lsns)]
    columns = {"x": values if isinstance(values, pa.Array) else pa.array(values, pa.float64())}
    columns |= {name: value if isinstance(value, pa.Array) else pa.array(value) for name, value in more.items()}
    whole = Batch.of(columns, lsn=np.array(lsns, np.uint64), index=np.array(index))
    return [whole.slice(i, 1) for i in range(whole.num_rows)]


def letters(outputs: Outputs, stage: str) -> list[tuple[str, str]]:
    found = [(row["row"], row["reason"]) for topic, row in outputs if topic.endswith(".dlq") and row["stage"] == stage]
    return sorted(found)


def answered(outputs: Outputs) -> list[tuple[Any, str, Any]]:
    return [(row["x"], row["status"], row["prediction"]) for topic, row in outputs if topic == "out"]


def about(state: State) -> Any:
    """What a state says, however its pending rows came."""
    pending = [] if not state.open_batch.pieces else Samples.joined(state.open_batch.pieces).X.tolist()
    assert state.learner is not None
    return (
        state_hash(state.learner.state()),
        state.counters,
        state.position,
        pending,
        state.open_batch.rows - state.open_batch.kept - state.open_batch.learned,
        state.diverged,
    )


def test_rows_that_fail_leave_no_trace_and_the_others_are_learned_as_one_block() -> None:
    rows = column([1, -1, 2, -2, 3, -3, 4], [10, 10, 10, 20, 30, 30, 30])
    for sizes in ([1], [7], [2], [3, 1]):
        state, outputs = play(task(Picky()), rows, sizes)
        assert state.learner.seen == [[1.0, 2.0], [3.0, 4.0]]  # type: ignore[union-attr]
        assert [reason for _, reason in letters(outputs, "learn")] == [
            f"ValueError: -{i}.0 is negative" for i in (1, 2, 3)
        ]
        assert (state.counters.learned, state.counters.rejected, state.learned_rows) == (4, 3, 4)


def test_rows_that_fail_together_only_are_learned_in_turn() -> None:
    state, outputs = play(task(Picky()), column([7, 1, -1, 8], [10] * 4), [2])
    assert state.learner.seen == [[7.0], [1.0, 8.0]]  # type: ignore[union-attr]
    assert letters(outputs, "learn") == [('{"x": -1.0}', "ValueError: -1.0 is negative")]


def test_rows_without_an_answer_are_told_apart() -> None:
    rows = column([1, 5, 6, 2], [10, 20, 20, 20])
    for sizes in ([1], [4], [3]):
        _, outputs = play(
            task(Picky(), learn=(StreamPlan("rows", (Filter(lambda b: pa.array(b.lsn < 20)),)),)), rows, sizes
        )
        assert answered(outputs) == [(1, "not_ready", None), (5, "invalid", None), (6, "invalid", None), (2, "ok", 1.0)]
        reasons = [reason for _, reason in letters(outputs, "predict")]
        assert reasons == ["the model's answer is nan, no finite number", "ValueError: 6 has no answer"]


@given(
    st.lists(st.tuples(st.sampled_from([-2, -1, 1, 2, 3, 4, 7, 8]), st.booleans()), min_size=1, max_size=14),
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.sampled_from([Cut(transaction=True), Cut(rows=3), Cut()]),
    st.frozensets(st.integers(1, 14), max_size=3),
)
def test_the_same_rows_are_refused_however_they_come(
    drawn: list[tuple[int, bool]], sizes: list[int], cut: Cut, ticks: frozenset[int]
) -> None:
    lsns = list(itertools.accumulate((10 * new for _, new in drawn), initial=10))[1:]
    rows = column([value for value, _ in drawn], lsns)
    ends = frozenset(at for at in ticks if at >= len(lsns) or lsns[at] != lsns[at - 1])
    stream = StreamPlan("rows", (Filter(lambda batch: pa.array(np.asarray(batch.column("x")) != 4)),))
    one = task(Picky(), cut, learn=(stream,))
    state, outputs = play(one, rows, sizes, ends)
    for other in ([1], [len(rows)]):
        again, others = play(one, rows, other, ends)
        assert about(again) == about(state)
        for topic in ("out", "rows.dlq"):
            key = [row for name, row in outputs if name == topic], [row for name, row in others if name == topic]
            assert sorted(map(str, key[0])) == sorted(map(str, key[1]))
    bad = [value for value, _ in drawn if value < 0]
    learned = [value for item in state.learner.seen for value in item]  # type: ignore[union-attr]
    assert not bad or cut != Cut(transaction=True) or len(letters(outputs, "learn")) == len(bad)
    assert all(value > 0 and value != 4 for value in learned)


HOSTILE = [0.0, -0.1, 1e200, 1.0, -1e308, 5e-324, 1e19, 2.0, float(2**53 + 1), 1e120, -3.0, 1.7e308, 0.5]


def _learners() -> dict[str, tuple[Any, str]]:
    from river import linear_model, naive_bayes, preprocessing, tree
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.linear_model import Perceptron, SGDClassifier, SGDRegressor
    from sklearn.naive_bayes import GaussianNB, MultinomialNB
    from sklearn.neural_network import MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = [0, 1]
    return {
        "k-means": (KMeans(2), ""),
        "linear": (LinearRegression(), "number"),
        "sgd": (adapted(SGDRegressor()), "number"),
        "scaled sgd": (adapted(make_pipeline(StandardScaler(), SGDRegressor())), "number"),
        "mlp": (adapted(MLPRegressor(hidden_layer_sizes=(3,))), "number"),
        "multinomial": (adapted(MultinomialNB(), classes=kinds), "label"),
        "gaussian": (adapted(GaussianNB(), classes=kinds), "label"),
        "sgd classifier": (adapted(SGDClassifier(), classes=kinds), "label"),
        "perceptron": (adapted(Perceptron(), classes=kinds), "label"),
        "clusters": (adapted(MiniBatchKMeans(2)), ""),
        "tree": (adapted(tree.HoeffdingTreeRegressor(grace_period=5)), "number"),
        "tree of labels": (adapted(tree.HoeffdingTreeClassifier(grace_period=5), classes=kinds), "label"),
        "river": (adapted(preprocessing.StandardScaler() | linear_model.LinearRegression()), "number"),
        "bayes": (adapted(naive_bayes.GaussianNB(), classes=kinds), "label"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(_learners()))
def test_no_hostile_row_ends_a_step_and_no_answer_is_nan(name: str) -> None:
    learner, target = _learners()[name]
    ordinary = [float(i % 7) for i in range(40)]
    values = ordinary + [value for item in HOSTILE for value in (item, 3.0)] + ordinary
    number = [value * 2 + 1 for value in values]
    label = [int(i % 3 == 0) for i in range(len(values))]
    rows = column(values, number=number, label=label, other=[1.0] * len(values))
    spec = score_spec("rows", "regression" if target == "number" else "classification", None, 100)
    more: dict[str, Any] = {"target": target, "evaluate": (EvaluatePlan(spec, StreamPlan("rows")),)} if target else {}
    for cut in (Cut(transaction=True), Cut(rows=16)):
        one = task(learner, cut, features=("x", "other"), **more)
        state, outputs = play(one, rows, [17])
        assert all(
            (status == "ok") == (prediction is not None) and prediction == prediction
            for _, status, prediction in answered(outputs)
        )
        assert answered(outputs)[-1][1] == "ok", answered(outputs)[-3:]
        again, others = play(one, rows, [50, 3])
        assert about(again) == about(state)
        assert letters(others, "learn") == letters(outputs, "learn")
        assert state.counters.learned > 60


class Exploding(Picky):
    """Each row multiplies its one number: a learning rate that is too high."""

    def __init__(self) -> None:
        self.weight, self.count = 1.0, 0

    @property
    def ready(self) -> bool:
        return self.count > 0

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        for value in X[:, 0].tolist():
            self.weight = self.weight * value if value else 1.0
            self.count += 1

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return X[:, 0] * self.weight

    def largest(self) -> float:
        return abs(self.weight)

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight, "count": self.count}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight, self.count = state["weight"], state["count"]


def test_a_model_that_diverges_says_so_until_it_learns_again() -> None:
    values = [1e12] * 20 + [0.0, 3.0, 2.0] + [1e200, 3.0]
    for transactions in (None, [10] * 20 + [20, 30, 30, 40, 50]):
        rows = column(values, transactions)
        state, outputs = play(task(Exploding()), rows, [100])
        assert (state.learner.weight, state.diverged) == (18.0, "")  # type: ignore[union-attr]
        reasons = [reason for _, reason in letters(outputs, "learn")]
        assert len(reasons) == 9 and all("infinite" in reason for reason in reasons)
        # A row that is too large by itself says nothing of the model.
        rest = answered(outputs)[20:]
        assert [status for _, status, _ in rest] == ["diverged", *["ok"] * 4] and rest[0][2] is None
        assert about(play(task(Exploding()), rows, [3])[0]) == about(state)


LABELS: dict[str, tuple[pa.Array, int]] = {
    "numeric": (pa.array([1, 2, 3], pa.int8()).cast(pa.decimal128(12, 2)), 3),
    "wide numeric": (pa.array([1, 2, 3], pa.int8()).cast(pa.decimal256(60, 2)), 3),
    "NaN": (pa.array([1.0, float("nan"), 3.0]), 2),
    "infinite": (pa.array([float("inf"), 2.0, float("-inf")]), 1),
    "text": (pa.array(["1", "2", "three"]), 0),
    "above int64": (pa.array([1, 2**63 + 1, 3], pa.uint64()), 3),
    "boolean": (pa.array([True, False, True]), 3),
    "date": (pa.array([1, 2, 3], pa.int32()).cast(pa.date32()), 0),
    "infinite date": (pa.array([1, 2**31 - 1, 3], pa.int32()).cast(pa.date32()), 0),
    "bytes": (pa.array([b"1", b"2", b"3"]), 0),
    "list": (pa.array([[1], [2], [3]]), 0),
    "struct": (pa.array([{"a": 1}] * 3), 0),
}


@pytest.mark.parametrize("name", list(LABELS))
@pytest.mark.parametrize("classes", [None, [1, 2, 3], ["1", "2", "three"], [False, True]])
def test_a_target_of_any_type_is_learned_by_its_value_or_refused(name: str, classes: Any) -> None:
    from sklearn.linear_model import SGDClassifier, SGDRegressor

    labels, numbers = LABELS[name]
    learner = adapted(SGDRegressor()) if classes is None else adapted(SGDClassifier(), classes=classes)
    spec = score_spec("rows", "regression" if classes is None else "classification", None, 10)
    plans = (EvaluatePlan(spec, StreamPlan("rows")),)
    one = task(learner, target="y", evaluate=plans)
    state, outputs = play(one, column([1, 2, 3], y=labels), [3])
    refused = letters(outputs, "learn")
    assert state.counters.learned + len(refused) == 3
    if classes is None:
        assert state.counters.learned == numbers
    elif classes == ["1", "2", "three"]:
        assert state.counters.learned == (3 if name == "text" else 0)
    elif name in ("numeric", "wide numeric"):
        assert state.counters.learned == (3 if classes == [1, 2, 3] else 1)
    assert all("the target «y»" in reason for _, reason in refused)


def test_a_numeric_without_a_scale_is_a_number() -> None:
    (plain,) = [Batch(pa.concat_batches([batch.records for batch in column([1.0] * 5, [10] * 5)]))]
    texts = pa.array(["1.5", "NaN", "Infinity", "1" + "0" * 400, "2"])
    field = pa.field("y", pa.string(), metadata={b"postgres.type": b"numeric"})
    whole = Batch(plain.records.append_column(field, texts))
    state, outputs = play(task(LinearRegression(), target="y"), [whole.slice(i, 1) for i in range(5)], [2])
    assert state.counters.learned == 2
    reasons = [reason for _, reason in letters(outputs, "learn")]
    assert sorted(reasons) == [f"the target «y» is {shown}, no finite number" for shown in ("inf", "inf", "nan")]


def test_a_column_that_turns_numeric_or_text_is_taken_by_its_values() -> None:
    whole = [
        *column([1, 2], [10, 20], y=[1, 2]),
        *column([3, 4], [30, 40], y=pa.array([3, 4], pa.int8()).cast(pa.decimal128(8, 2))),
        *column([5], [50], y=["5"]),
        *column([6], [60]),
    ]
    one = task(LinearRegression(), target="y", cut=Cut(rows=3))
    state, outputs = initial_state(one), Outputs()
    for at, batch in enumerate(whole):
        made = step(one, state, Rows((Part("rows", batch, np.array([at + 1]), at),), True))
        outputs += [(topic, row) for topic, rows in made for row in listed(rows.records)]
    assert state.open_batch.rows == 1 and state.counters.learned == 3
    assert [reason for _, reason in letters(outputs, "learn")] == [
        "the target «y» is text, not a number",
        "there is no column «y» to learn",
    ]


# -- vectors ------------------------------------------------------------------------------------------------------

ODD = [
    "{}",
    "{{1,2},{3,4}}",
    "{{1,2}}",
    "[2:3]={5,6}",
    "{NULL,1}",
    "{1,2,3}",
    "{NaN,1}",
    "{a,b}",
    None,
    '{"1","2"}',
    "1,2",
]


@pytest.mark.parametrize("size", [2, None])
@pytest.mark.parametrize("odd", ODD)
def test_only_the_odd_vector_is_refused_however_rows_come(size: int | None, odd: str | None) -> None:
    import headrace as hr

    texts = ["{1,2}", "{2,5}", "{5,1}", odd, "{3,3}"]
    for at in (0, 3):
        order = [texts[(i + 3 - at) % 4] for i in range(4)] + texts[4:]
        rows = column([1.0] * 5, v=pa.array(order, pa.string()), y=[1.0, 2.0, 3.0, 4.0, 5.0])
        if size is None and at == 0 and odd == "{1,2,3}":
            continue  # the first vector says how long they are: it is no odd one
        one = task(LinearRegression(), target="y", features=(hr.vector("v", size=size),))
        found = [play(one, rows, sizes) for sizes in ([5], [1], [2])]
        for state, outputs in found:
            assert state.counters.learned == 4
            assert len(letters(outputs, "learn")) == 1
            assert about(state) == about(found[0][0])
            assert sorted(map(str, outputs)) == sorted(map(str, found[0][1]))


def test_vectors_of_lists_are_taken_row_by_row() -> None:
    import headrace as hr

    for values, learned in (
        (pa.array([[1, 2], [3, None], [], None, [4, 5]], pa.list_(pa.int64())), 2),
        (pa.array([["1", "2"], ["a", "2"], ["3", "4"]], pa.list_(pa.string())), 2),
        (pa.array([[[1, 2]], [[3]]]), 0),
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64(), 2)), 2),
        (pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.large_list(pa.float32())), 2),
        (pa.array([{"a": 1}]), 0),
        (pa.array([1, 2]), 0),
    ):
        rows = column([1.0] * len(values), v=values, y=[1.0] * len(values))
        one = task(LinearRegression(), target="y", features=(hr.vector("v"), "x"))
        for sizes in ([1], [9]):
            state, outputs = play(one, rows, sizes)
            assert state.counters.learned == learned
            assert len(letters(outputs, "learn")) == len(values) - learned


def test_a_function_that_makes_other_columns_costs_its_rows_only() -> None:
    def wide(batch: Batch) -> Any:
        return np.ones((batch.num_rows, 2 if np.asarray(batch.column("x")).max() < 5 else 3))

    rows = column([1.0, 2.0, 7.0, 3.0, 8.0], [10, 10, 20, 20, 30], y=[1.0, 2.0, 3.0, 4.0, 5.0])
    for sizes in ([2], [1]):  # it looks at more than a row, and is asked for single rows where it fails
        state, outputs = play(task(LinearRegression(), target="y", features=wide), rows, sizes)
        assert state.counters.learned == 3
        assert [reason for _, reason in letters(outputs, "learn")] == [
            "ValueError: the feature function gave 3 columns, not 2"
        ] * 2


@pytest.mark.filterwarnings("ignore")
def test_a_training_leaves_out_the_rows_that_it_fails_on() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.naive_bayes import MultinomialNB

    from headrace.step.retraining import fitted_without_bad

    X = np.abs(np.random.default_rng(1).normal(size=(60, 2)))
    y = np.arange(60) // 30  # halves have one class each
    good = adapted(RandomForestClassifier(3), classes=[0, 1])
    assert fitted_without_bad(good, X, y, 1)[1] == 0
    for learner, value in ((good, 1e200), (adapted(MultinomialNB(), classes=[0, 1]), -0.1)):
        spoilt = X.copy()
        spoilt[[3, 40, 41], 1] = value
        trained, bad = fitted_without_bad(learner, spoilt, y, 1)
        again = fitted_without_bad(learner, np.delete(X, [3, 40, 41], 0), np.delete(y, [3, 40, 41]), 1)[0]
        assert bad == 3
        assert state_hash(trained.state()) == state_hash(again.state())
    with pytest.raises(ValueError, match="egative"):
        fitted_without_bad(adapted(MultinomialNB(), classes=[0, 1]), -X, y, 1)


def test_a_label_that_no_answer_can_be_compared_with_is_told() -> None:
    plans = (EvaluatePlan(score_spec("rows", "regression", ["mae"], 10), StreamPlan("rows")),)
    for learn in ((), (StreamPlan("rows"),)):
        one = task(LinearRegression(), target="y", evaluate=plans, learn=learn)
        rows = column([1.0, 2.0, 3.0, 4.0], y=[1.0, float("nan"), None, 2.0])
        for sizes in ([1], [4]):
            _, outputs = play(one, rows, sizes)
            stages = [row["stage"] for topic, row in outputs if topic.endswith(".dlq")]
            assert stages == ["learn" if learn else "evaluate"]
