"""scikit-learn's estimators as learners: the contract, what is refused, and what a pipeline makes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA, IncrementalPCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from tests.learners import contract

import headrace as hr
from headrace.errors import DeclarationError, LearnError
from headrace.learn.adapters import adapted
from headrace.learn.adapters.skops_state import from_state, to_state

RNG = np.random.default_rng(7)
X = np.abs(RNG.normal(size=(96, 5)))
LABELS = (X[:, 0] + X[:, 1] > 1.5).astype(np.int64) + (X[:, 2] > 1)
WORDS = np.array(["few", "some", "many"], object)[LABELS]


def make(estimator: Callable[..., Any], *, classes: Any = None, **parameters: Any) -> hr.Learner:
    return adapted(estimator(**parameters), classes=classes)


def scaled_classifier() -> Any:
    return make_pipeline(StandardScaler(), FunctionTransformer(), SGDClassifier(loss="log_loss"))


def reduced_clusters() -> Any:
    return make_pipeline(IncrementalPCA(2), MiniBatchKMeans(3))


CASES: dict[str, tuple[Callable[[], hr.Learner], Any]] = {
    "MiniBatchKMeans": (partial(make, MiniBatchKMeans, n_clusters=3), None),
    "SGDClassifier": (partial(make, SGDClassifier, classes=range(3)), LABELS),
    "SGDClassifier, averaged, with texts": (partial(make, SGDClassifier, average=True, classes=WORDS), WORDS),
    "SGDRegressor": (partial(make, SGDRegressor), X[:, 0] * 2),
    "MultinomialNB": (partial(make, MultinomialNB, classes=range(3)), LABELS),
    "GaussianNB": (partial(make, GaussianNB, classes=range(3)), LABELS),
    "MLPClassifier": (partial(make, MLPClassifier, hidden_layer_sizes=(8,), classes=range(3)), LABELS),
    "MLPRegressor": (partial(make, MLPRegressor, hidden_layer_sizes=(8,)), X[:, 0]),
    "a scaler before a classifier": (partial(make, scaled_classifier, classes=range(3)), LABELS),
    "components before clusters": (partial(make, reduced_clusters), None),
}


@pytest.mark.parametrize("check", contract({case: (build, X, y) for case, (build, y) in CASES.items()}))
def test_contract(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("estimator", "classes", "words"),
    [
        (SGDClassifier(), None, "must know all labels"),
        (SGDClassifier(), [1], "two classes or more"),
        (SGDRegressor(), [0, 1], "no classifier"),
        (make_pipeline(StandardScaler()), None, "does not predict"),
        (object(), None, "is not a learner"),
    ],
    ids=("no classes", "one class", "classes of a regressor", "no predictor", "no model"),
)
def test_what_cannot_learn_is_refused_when_it_is_declared(estimator: Any, classes: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        hr.App("x", log="memory://").model("m", estimator, features=["a"], classes=classes)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (RandomForestClassifier(), "RandomForestClassifier has no partial_fit"),
        (make_pipeline(PCA(2), SGDClassifier()), "PCA has no partial_fit"),
    ],
    ids=("a forest", "a step"),
)
def test_who_cannot_learn_as_rows_arrive_is_not_asked_to(estimator: Any, words: str) -> None:
    app = hr.App("x", log="memory://")
    model = app.model("m", estimator, features=["a", "b"], target="y", classes=[0, 1])
    with pytest.raises(DeclarationError, match=words) as caught:
        model.learn(app.topic("t"))
    assert "retrain" in str(caught.value)


def test_who_was_trained_before_answers() -> None:
    trained = RandomForestClassifier(5, random_state=1).fit(X, LABELS)
    learner = adapted(trained)
    assert learner.ready and learner.traits.stores_beginning
    fresh = adapted(trained)
    fresh.restore(learner.state())
    assert (fresh.predict(X) == trained.predict(X)).all()
    assert not adapted(RandomForestClassifier(5), classes=range(3)).ready


def test_a_learner_equals_the_library_called_directly() -> None:
    mine = make(SGDClassifier, classes=range(3))
    theirs = SGDClassifier(random_state=0)
    for start in range(0, 96, 16):
        mine.learn(X[start : start + 16], LABELS[start : start + 16])
        theirs.partial_fit(X[start : start + 16], LABELS[start : start + 16], classes=range(3))
    assert mine.state()["estimator.tree"] == to_state(theirs)["tree"]
    assert (mine.predict(X) == theirs.predict(X)).all()


def test_a_pipeline_is_updated_step_by_step() -> None:
    mine, scaler, last = (
        make(scaled_classifier, classes=range(3)),
        StandardScaler(),
        SGDClassifier("log_loss", random_state=0),
    )
    for start in range(0, 96, 16):
        rows, y = X[start : start + 16], LABELS[start : start + 16]
        mine.learn(rows, y)
        last.partial_fit(scaler.partial_fit(rows).transform(rows), y, classes=range(3))
    assert (mine.predict(X) == last.predict(scaler.transform(X))).all()


def test_a_stored_model_makes_nothing_but_estimators() -> None:
    """A state that names a function of the system is refused before anything of it is made."""
    state = to_state(SGDClassifier())
    tree = (
        str(state["tree"])
        .replace('"SGDClassifier"', '"Popen"')
        .replace("sklearn.linear_model._stochastic_gradient", "subprocess")
    )
    with pytest.raises(LearnError, match=r"subprocess\.Popen"):
        from_state(state | {"tree": tree})
