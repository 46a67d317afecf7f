"""Metrics and aggregates, against scikit-learn, statistics and plain Python."""

from __future__ import annotations

import math
import pickle
import statistics
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss

from headrace.errors import DeclarationError, HeadraceError
from headrace.grade import metrics
from headrace.grade.metrics import Aggregate, Metric

NAN, INF = math.nan, math.inf
METRICS = {
    "relative": (
        metrics.relative_error,
        [1.1, 3.0, 0.0, 1.0, -2.0],
        [1.0, 4.0, 0.0, 0.0, -1.0],
        [0.1, 0.25, 0, INF, 1],
    ),
    "absolute": (metrics.absolute_error, [1.0, 3.0], [2.0, -1.0], [1.0, 4.0]),
    "squared": (metrics.squared_error, [1.0, 3.0], [2.0, -1.0], [1.0, 16.0]),
    "incorrect": (metrics.incorrect, ["a", "b"], ["a", "c"], [0.0, 1.0]),
    "correct": (metrics.correct, [1, 2], [1, 3], [1.0, 0.0]),
    "correct vectors": (metrics.correct, [[1, 2], [1, 2]], [[1, 2], [1, 3]], [1.0, 0.0]),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_rows(name: str) -> None:
    metric, prediction, truth, expected = METRICS[name]
    found = metric(np.array(prediction), np.array(truth))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.dtype == np.float64


def test_log_loss_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    chances = random.dirichlet([1, 1, 1], 50)
    chances[0] = [0, 0, 1]
    words = np.array(["a", "b", "c"], object)
    truth = random.integers(0, 3, 50)
    truth[0] = 0
    for metric, labels in ((metrics.log_loss, truth), (metrics.log_loss.of(words.tolist()), words[truth])):
        assert metric(chances, labels).mean() == pytest.approx(sklearn_log_loss(truth, chances, labels=[0, 1, 2]))
    positive = random.random(50)
    assert metrics.log_loss(positive, truth == 1).mean() == pytest.approx(sklearn_log_loss(truth == 1, positive))


def test_log_loss_of_a_class_that_is_not_named() -> None:
    with pytest.raises(HeadraceError, match=r"3 probabilities for 2 classes.*'c'"):
        metrics.log_loss.of(["a", "b"])(np.ones((1, 3)) / 3, np.array(["c"], object))


def test_a_function_of_the_users() -> None:
    def too_low(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
        return truth > prediction

    metric = metrics.as_metric(too_low)
    assert (metric.name, metric.greater_is_better) == ("too_low", False)
    assert metric(np.array([1, 2]), np.array([2, 1])).tolist() == [True, False]
    assert metrics.as_metric(metric) is metric
    assert metrics.as_metric(metrics.correct).greater_is_better


@pytest.mark.parametrize(
    "function",
    [lambda p, t: 1.0, lambda p, t: p[:1], lambda p, t: np.ones((len(p), 2))],
    ids=["a number", "too short", "a matrix"],
)
def test_a_function_that_gives_the_wrong_shape(function: Any) -> None:
    with pytest.raises(HeadraceError, match=r"was given 2 rows and gave an array of shape"):
        metrics.as_metric(function)(np.array([1.0, 2.0]), np.array([1.0, 2.0]))


def test_what_is_no_metric() -> None:
    with pytest.raises(DeclarationError, match="not 'mse'"):
        metrics.as_metric("mse")
    with pytest.raises(HeadraceError, match="is of numbers"):
        metrics.absolute_error(np.array(["a"], object), np.array(["b"], object))


@pytest.mark.parametrize(
    "one", [metrics.relative_error, metrics.correct, metrics.mean("x")], ids=lambda one: repr(one)[:20]
)
def test_descriptions_are_values(one: Metric | Aggregate) -> None:
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(one) == hash(pickle.loads(pickle.dumps(one)))


VALUES = [3.0, None, 1.0, 2.0, 1.0]
AGGREGATES = [
    (metrics.mean("x"), VALUES, 1.75),
    (metrics.median("x"), VALUES, 1.5),
    (metrics.quantile("x", 0.75), VALUES, 2.25),
    (metrics.count(), VALUES, 5),
    (metrics.count("x"), VALUES, 4),
    (metrics.min("x"), VALUES, 1.0),
    (metrics.max("x"), VALUES, 3.0),
    (metrics.sum("x"), VALUES, 7.0),
    (metrics.std("x"), VALUES, statistics.stdev([3, 1, 2, 1])),
    (metrics.unique("x"), VALUES, [3.0, 1.0, 2.0]),
    (metrics.first("x"), [None, 4, 5], 4),
    (metrics.last("x"), [4, 5, None], 5),
    (metrics.std("x"), [1.0], None),
    (metrics.sum("x"), [2**62, 2**62, 1], 2**63 + 1),
    (metrics.mean("x"), [0.1] * 10, 0.1),
    (metrics.sum("x"), [1e308, 1e308], INF),
    (metrics.mean("x"), [True, False], 0.5),
    (metrics.sum("x"), [Decimal("0.10"), Decimal("0.20")], Decimal("0.30")),
    (metrics.min("x"), ["b", "a"], "a"),
    (metrics.unique("x"), ["b", None, "a", "b"], ["b", "a"]),
]


@pytest.mark.parametrize(
    ("aggregate", "values", "expected"), AGGREGATES, ids=[f"{i} {a[0].kind}" for i, a in enumerate(AGGREGATES)]
)
def test_an_aggregate(aggregate: Aggregate, values: list[Any], expected: Any) -> None:
    assert aggregate.of(pa.array(values)) == expected
    if isinstance(values[0], str):
        assert aggregate.of(pa.array(values).dictionary_encode()) == expected


@pytest.mark.parametrize("kind", metrics.KINDS)
@pytest.mark.parametrize("values", [[], [None, None]], ids=["nothing", "nulls"])
def test_an_aggregate_of_nothing(kind: str, values: list[None]) -> None:
    found = Aggregate(kind, "x", 0.5 if kind == "quantile" else None).of(pa.array(values, pa.float64()))
    assert found == {"count": 0, "unique": []}.get(kind)


@given(st.lists(st.floats(-1e9, 1e9), min_size=2, max_size=60))
def test_sums_are_rounded_once(values: list[float]) -> None:
    array = pa.array([0.5, *values]).slice(1)
    assert metrics.sum("x").of(array) == math.fsum(values)
    assert metrics.mean("x").of(array) == math.fsum(values) / len(values)
    assert metrics.std("x").of(array) == pytest.approx(statistics.stdev(values), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "column", "q"),
    [("mode", "x", None), ("mean", None, None), ("quantile", "x", None), ("quantile", "x", 1.5), ("mean", "x", 0.5)],
    ids=["no such kind", "no column", "no q", "q too large", "q for a mean"],
)
def test_a_wrong_aggregate_is_refused(kind: str, column: str | None, q: float | None) -> None:
    with pytest.raises(DeclarationError):
        Aggregate(kind, column, q)


def test_a_mean_of_words() -> None:
    with pytest.raises(HeadraceError, match="the mean of «x» is one of numbers"):
        metrics.mean("x").of(pa.array([b"a"]))
    with pytest.raises(HeadraceError, match="texts that are no numbers"):
        metrics.mean("x").of(pa.array(["a"]))
