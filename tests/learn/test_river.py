"""River's models as learners: the contract, what is refused, and whose states are loaded."""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import (
    anomaly,
    cluster,
    compose,
    ensemble,
    forest,
    linear_model,
    multiclass,
    naive_bayes,
    optim,
    preprocessing,
    tree,
)
from tests.learners import contract

import headrace as hr
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.adapters import adapted
from headrace.learn.adapters.river import RiverLearner
from headrace.learn.base import adopt
from headrace.learn.state import state_hash

RNG = np.random.default_rng(7)
X = np.abs(RNG.normal(size=(96, 4)))
LABELS = (X[:, 0] + X[:, 1] > 1.5).astype(np.int64) + (X[:, 2] > 1)
WORDS = np.array(["some", "few", "many"], object)[LABELS]
TRUE = X[:, 0] > 0.7


@pytest.fixture(autouse=True)
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "of" / "mine" / "key"
    monkeypatch.setenv("HEADRACE_KEY_FILE", str(path))
    return path


def make(model: Callable[..., Any], *, classes: Any = None, **parameters: Any) -> hr.Learner:
    return adapted(model(**parameters), classes=classes)


def scaled() -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression()


CASES: dict[str, tuple[Callable[[], hr.Learner], Any]] = {
    "LogisticRegression": (partial(make, linear_model.LogisticRegression, classes=[False, True]), TRUE),
    "HoeffdingTree": (partial(make, tree.HoeffdingTreeClassifier, grace_period=10, classes=range(3)), LABELS),
    "HoeffdingTree, texts": (partial(make, tree.HoeffdingTreeClassifier, grace_period=10, classes=WORDS), WORDS),
    "ARFClassifier": (partial(make, forest.ARFClassifier, n_models=3, grace_period=10, classes=WORDS), WORDS),
    "HalfSpaceTrees": (partial(make, anomaly.HalfSpaceTrees, n_trees=3, height=4, window_size=10), None),
    "LinearRegression": (partial(make, linear_model.LinearRegression), X[:, 0] * 2),
    "KMeans": (partial(make, cluster.KMeans, n_clusters=3), None),
    "a scaler before a classifier": (partial(make, scaled, classes=["no", "yes"]), np.where(TRUE, "yes", "no")),
}


@pytest.mark.parametrize("check", contract({case: (build, X, y) for case, (build, y) in CASES.items()}))
def test_contract(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    ("model", "classes", "words"),
    [
        (linear_model.LogisticRegression(), None, "must know all labels"),
        (linear_model.LogisticRegression(), [1], "two classes or more"),
        (linear_model.LogisticRegression(), [1, 2, 3], "two classes apart"),
        (linear_model.LogisticRegression(), [1, "a"], "all int or all text"),
        (linear_model.LinearRegression(), [0, 1], "no classifier"),
        (preprocessing.StandardScaler(), None, "predicts for no rows"),
        (compose.FuncTransformer(lambda x: x) | linear_model.LinearRegression(), None, "cannot be stored"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_cannot_learn_is_refused_when_it_is_declared(model: Any, classes: Any, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        adapted(model, classes=classes)


def test_a_learner_equals_the_library_called_directly() -> None:
    names = ["a", "b", "c", "d"]
    mine, theirs = RiverLearner(scaled(), classes=[False, True], names=names), scaled()
    rows = [dict(zip(names, row, strict=True)) for row in X.tolist()]
    mine.learn(X, TRUE)
    for row, label in zip(rows, TRUE.tolist(), strict=True):
        theirs.learn_one(row, label)
    assert mine.predict(X).tolist() == [theirs.predict_one(row) for row in rows]
    assert mine.predict_proba(X)[:, 1].tolist() == [theirs.predict_proba_one(row)[True] for row in rows]


def test_what_a_model_has_learned_is_kept() -> None:
    model = linear_model.LinearRegression()
    model.learn_one({"0": 1.0}, 2.0)
    learner = RiverLearner(model)
    assert learner.ready
    assert learner.predict(np.array([[3.0]])).tolist() == [model.predict_one({"0": 3.0})]


def test_a_label_that_is_no_class_is_refused() -> None:
    learner = make(tree.HoeffdingTreeClassifier, classes=[0, 1])
    with pytest.raises(BadRows, match="none of the classes") as refused:
        learner.learn(X[:3], np.array([0, 7, 1]))
    assert refused.value.rows == (1,)
    assert not learner.ready


class Malicious:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return Path.touch, (self.touched,)


def test_a_state_that_others_wrote_is_refused_before_anything_of_it_is_made(tmp_path: Path) -> None:
    learner, touched = make(linear_model.LinearRegression), tmp_path / "touched"
    own = learner.state()
    evil = pickle.dumps(Malicious(touched))
    pickle.loads(evil)
    assert touched.exists()  # it would work
    touched.unlink()
    theirs = hmac.digest(b"x" * 32, b"headrace.river\0" + evil, "sha256").hex()
    for signed in (own["@signature"], theirs, "", None, "é"):
        with pytest.raises(LearnError, match="not written by this installation"):
            learner.restore({**own, "pickle": np.frombuffer(evil, np.uint8), "@signature": signed})
    assert not touched.exists()
    assert state_hash(learner.state()) == state_hash(own)


def test_a_state_of_another_installation_is_refused(key: Path) -> None:
    learner = make(linear_model.LinearRegression)
    own = learner.state()
    learner.restore(own)
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    assert list(key.parent.iterdir()) == [key]
    key.unlink()
    with pytest.raises(LearnError, match="not written by this installation"):
        learner.restore(own)


@pytest.mark.parametrize(("mode", "data", "words"), [(0o644, b"k" * 32, "others can read"), (0o600, b"k", "no key")])
def test_a_key_that_is_none_is_refused(key: Path, mode: int, data: bytes, words: str) -> None:
    key.parent.mkdir(parents=True)
    key.write_bytes(data)
    key.chmod(mode)
    with pytest.raises(LearnError, match=words):
        make(linear_model.LinearRegression).state()


# -- going on under other parameters --------------------------------------------------------------------------------


def glm(**parameters: Any) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(**parameters)


def sgd(rate: float) -> Any:
    return optim.SGD(rate)


GOES_ON: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a rate": (lambda: glm(optimizer=sgd(0.01)), lambda: glm(optimizer=sgd(0.5))),
    "another schedule": (
        lambda: glm(optimizer=sgd(0.01)),
        lambda: glm(optimizer=optim.SGD(optim.schedulers.InverseScaling(0.5))),
    ),
    "another optimizer": (lambda: glm(optimizer=sgd(0.01)), lambda: glm(optimizer=optim.Adam(0.1))),
    "a penalty": (lambda: glm(l2=0.0), lambda: glm(l2=0.1)),
    "weights of a loss": (lambda: glm(), lambda: glm(loss=optim.losses.Log(weight_pos=3.0))),
    "a tree's patience": (
        lambda: tree.HoeffdingTreeClassifier(grace_period=200),
        lambda: tree.HoeffdingTreeClassifier(grace_period=10, delta=1e-3),
    ),
    "aggressiveness": (lambda: linear_model.PAClassifier(C=1.0), lambda: linear_model.PAClassifier(C=0.01)),
    "smoothing": (lambda: naive_bayes.BernoulliNB(alpha=1.0), lambda: naive_bayes.BernoulliNB(alpha=0.1)),
    "one of several": (
        lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression(optimizer=sgd(0.01))),
        lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression(optimizer=sgd(0.5))),
    ),
}


@pytest.mark.parametrize("case", GOES_ON)
def test_parameters_that_say_how_it_goes_on_may_change(case: str) -> None:
    """What was learned stays; what is learned then is learned as it is declared now."""
    old, new = GOES_ON[case]
    before, now = (RiverLearner(build(), classes=[False, True]) for build in (old, new))
    before.learn(X[:60], TRUE[:60])
    adopt(now, before.state(), before.parameters())
    if case != "smoothing":
        assert now.predict_proba(X).tolist() == before.predict_proba(X).tolist()
    stored = RiverLearner(new(), classes=[False, True])
    stored.restore(now.state())
    assert stored.parameters() == now.parameters() != before.parameters()
    for learner in (before, now, stored):
        learner.learn(X[60:], TRUE[60:])
    assert now.state()["pickle"].tolist() == stored.state()["pickle"].tolist()
    if "patience" not in case:
        assert now.predict_proba(X).tolist() != before.predict_proba(X).tolist()


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "a loss": (glm(), glm(loss=optim.losses.Hinge()), "«loss» of LogisticRegression"),
    "a step less": (glm(), linear_model.LogisticRegression(), "as Pipeline, and LogisticRegression is declared"),
    "another step": (
        glm(),
        preprocessing.MinMaxScaler() | linear_model.LogisticRegression(),
        r"with the steps \['StandardScaler', .* and \['MinMaxScaler'",
    ),
    "a scaler's window": (
        glm(),
        preprocessing.StandardScaler(with_std=False) | linear_model.LogisticRegression(),
        "«with_std» of StandardScaler .* True -> False",
    ),
    "a penalty that had no state": (glm(), glm(l1=0.1), "«l1» of LogisticRegression"),
    "models in copies": (
        ensemble.BaggingClassifier(linear_model.LogisticRegression(optimizer=sgd(0.01)), seed=1),
        ensemble.BaggingClassifier(linear_model.LogisticRegression(optimizer=sgd(0.5)), seed=1),
        "«model» of BaggingClassifier",
    ),
    "a seed": (forest.ARFClassifier(3, seed=1), forest.ARFClassifier(3, seed=2), "«seed» of ARFClassifier"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_decide_what_was_learned_are_refused(case: str) -> None:
    old, new, words = REFUSED[case]
    before, now = (RiverLearner(model, classes=[False, True]) for model in (old, new))
    before.learn(X[:20], TRUE[:20])
    fresh = now.state()
    with pytest.raises(LearnError, match=words):
        adopt(now, before.state(), before.parameters())
    assert now.state()["pickle"].tolist() == fresh["pickle"].tolist() and not now.ready


def test_other_classes_and_names_are_refused() -> None:
    before = RiverLearner(glm(), classes=["no", "yes"], names=["a", "b", "c", "d"])
    before.learn(X[:20], np.where(TRUE, "yes", "no")[:20])
    for more, words in (
        ({"classes": ["no", "perhaps"], "names": ["a", "b", "c", "d"]}, r"the classes \['no', 'yes'\], and \['no', 'p"),
        ({"classes": ["no", "yes"], "names": ["a", "b", "d", "c"]}, "«names.2» .* c -> d"),
    ):
        with pytest.raises(LearnError, match=words):
            adopt(RiverLearner(glm(l2=0.1), **more), before.state(), before.parameters())
