"""Every learner against the one conformance suite. A further learner is one line of `CASES`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.learners import contract

from headrace.errors import BadRows
from headrace.learn.base import LearnerTraits, traits_of
from headrace.learn.kmeans import KMeans
from headrace.learn.linear import LinearRegression
from headrace.testing.learners import check_learner, learner_checks

RNG = np.random.default_rng(20)
FLOWERS = RNG.normal(size=(150, 4)) + RNG.integers(0, 3, size=(150, 1)) * 3.0
WIDE = RNG.normal(size=(300, 64)) + 1e9  # far from zero, and wide enough for matrix products
CENTERS = [[6, 3, 1, 0], [6, 3, 2, 1], [6, 3, 3, 2]]
WEIGHTS = FLOWERS @ [0.5, -1.0, 2.0, 0.0] + RNG.normal(size=150)

CASES: dict[str, tuple[Callable[[], Any], Any, Any]] = {
    "kmeans as Flink ML": (partial(KMeans, 3, initial_centers=CENTERS), FLOWERS, None),
    "kmeans as Spark": (partial(KMeans, 3, initial_centers=CENTERS, decay=1, split_dying=True), FLOWERS, None),
    "kmeans by points": (partial(KMeans, 3, initial_centers=CENTERS, decay=0.9, time_unit="points"), FLOWERS, None),
    "kmeans++": (partial(KMeans, 5, decay=1, seed=3), FLOWERS, None),
    "kmeans++, waiting": (partial(KMeans, 70, decay=0.5), FLOWERS, None),
    "kmeans, one cluster": (partial(KMeans, 1, decay=1), FLOWERS, None),
    "kmeans, wide": (partial(KMeans, 16, decay=1), WIDE, None),
    "linear regression": (LinearRegression, FLOWERS, WEIGHTS),
    "linear regression, no intercept": (partial(LinearRegression, intercept=False), FLOWERS, WEIGHTS),
    "linear regression, aliased": (LinearRegression, np.hstack([FLOWERS, FLOWERS[:, 1:] > 3.0]), WEIGHTS),
    "linear regression, far": (partial(LinearRegression, tolerance=1e-12), WIDE[:, :6] + 1e12, WIDE[:, 7] - 1e9),
}


@pytest.mark.parametrize("check", contract(CASES))
def test_contract(check: Callable[[], None]) -> None:
    check()


class Counting:
    """A learner that is right: the number of rows and the running sum; its subclasses each break one promise."""

    deterministic = True
    splits = "exact"

    def __init__(self) -> None:
        self.rows, self.width = 0, 4

    def learn(self, X: Any, y: Any = None) -> None:
        self.rows += len(self._checked(X))

    def predict(self, X: Any) -> Any:
        return np.full(len(self._checked(X)), self.rows)

    def unlearn(self, X: Any, y: Any = None) -> None:
        self.rows -= len(X)

    @property
    def ready(self) -> bool:
        return self.rows > 0

    def parameters(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def restore(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def _checked(self, X: Any) -> Any:
        if X.dtype.kind != "f" or X.shape[1:] != (self.width,):
            raise BadRows("shape", rows=range(len(X)))
        if not np.isfinite(X).all():
            raise BadRows("not finite", rows=np.flatnonzero(~np.isfinite(X).all(axis=1)).tolist())
        return X


class LearnsWhenAsked(Counting):
    def predict(self, X: Any) -> Any:
        self.rows += len(X)
        return super().predict(X)


class Remembers(Counting):
    calls = 0

    def learn(self, X: Any, y: Any = None) -> None:
        super().learn(X)
        Remembers.calls += 1
        self.rows += Remembers.calls

    splits = "different"


class CountsCalls(Counting):
    def learn(self, X: Any, y: Any = None) -> None:
        super().learn(X)
        self.rows += 1


class LooksAtTheBlock(Counting):
    def predict(self, X: Any) -> Any:
        return super().predict(X) + np.arange(len(X))


class TakesAnything(Counting):
    def _checked(self, X: Any) -> Any:
        return X


class HalfLearns(Counting):
    def learn(self, X: Any, y: Any = None) -> None:
        self.rows += 1
        super().learn(X)
        self.rows -= 1


class ForgetsToUnlearn(Counting):
    def unlearn(self, X: Any, y: Any = None) -> None:
        pass


class NotJson(Counting):
    def parameters(self) -> dict[str, Any]:
        return {"rate": {1.0}}


class MergesTwice(KMeans):
    def merge(self, parts: Any) -> None:
        super().merge([*parts, *parts])


class SharesItsState(KMeans):
    def state(self) -> Any:
        return self._arrays()


class Traited(Counting):
    """Says what it does in `LearnerTraits`."""

    traits = LearnerTraits(splits="exact", prediction_type=pa.int64(), offers=frozenset({"unlearn"}))


class Plain(Counting):
    """Says nothing of itself: it has the defaults."""

    traits = LearnerTraits()


class OffersTooMuch(Counting):
    traits = LearnerTraits(offers=frozenset({"fit"}))


class PredictsOtherNumbers(Counting):
    traits = LearnerTraits(prediction_type=pa.float64())


class PredictsOtherClasses(Counting):
    traits = LearnerTraits(classes=np.array([-2, -1]))


class TakesNoNan(Counting):
    traits = LearnerTraits(accepts_nan=True)


class IsNotRowwise(LooksAtTheBlock):
    traits = LearnerTraits(rowwise=True)


class TakesNoWeight(Counting):
    traits = LearnerTraits(takes_sample_weight=True)


class IsInfinite(Counting):
    traits = LearnerTraits(offers=frozenset({"largest"}))

    def largest(self) -> float:
        return float("inf")


class GivesChancesOfNothing(Counting):
    def predict_proba(self, X: Any) -> Any:
        return np.full((len(X), 2), 0.5)


class LearnsOnAfterFit(Counting):
    def fit(self, X: Any, y: Any = None) -> None:
        self.learn(X, y)


def test_traits_are_said_in_one_value_or_in_attributes_of_their_names() -> None:
    assert (traits_of(Counting()).splits, traits_of(Counting()).offers) == ("exact", {"unlearn"})
    assert traits_of(Traited()) is Traited.traits
    assert copy.deepcopy(Traited.traits) is Traited.traits
    assert traits_of(Plain()).deterministic
    assert not traits_of(Plain()).offers


@pytest.mark.parametrize("make", [Counting, Traited, Plain])
def test_the_suite_accepts_a_learner_that_keeps_its_promises(make: Callable[[], Any]) -> None:
    for name, check in learner_checks(make, FLOWERS):
        if "another process" not in name:  # this module cannot be imported there
            check()


@pytest.mark.parametrize(
    ("make", "caught_by"),
    [
        (LearnsWhenAsked, "predicts without change"),
        (Remembers, "learns the same bits again"),
        (CountsCalls, "learns a cut in pieces bit for bit"),
        (LooksAtTheBlock, "predicts a row alike among any neighbours"),
        (TakesAnything, "refuses bad rows and changes nothing"),
        (HalfLearns, "refuses bad rows and changes nothing"),
        (ForgetsToUnlearn, "unlearns what it learned"),
        (OffersTooMuch, "offers what the contract names"),
        (PredictsOtherNumbers, "predicts one value a row"),
        (PredictsOtherClasses, "predicts one value a row"),
        (TakesNoNan, "refuses bad rows and changes nothing"),
        (IsNotRowwise, "predicts a row alike among any neighbours"),
        (TakesNoWeight, "offers what the contract names"),
        (IsInfinite, "says its largest number"),
        (GivesChancesOfNothing, "gives probabilities of its classes"),
        (LearnsOnAfterFit, "is trained anew by fit"),
        (partial(MergesTwice, 3, decay=1), "merges parts to what learn gives"),
        (partial(SharesItsState, 3, decay=1), "gives copies of its state"),
    ],
)
def test_the_suite_catches_a_learner_that_breaks_one(make: Callable[[], Any], caught_by: str) -> None:
    with pytest.raises((AssertionError, BadRows)):
        dict(learner_checks(make, FLOWERS))[caught_by]()


def test_the_failing_check_is_named() -> None:
    with pytest.raises(TypeError) as failure:
        check_learner(NotJson, FLOWERS)
    assert "offers what the contract names" in failure.value.__notes__[0]


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="16 rows"):
        list(learner_checks(Counting, FLOWERS[:3]))
