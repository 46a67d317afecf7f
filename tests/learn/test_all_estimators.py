"""Every estimator of scikit-learn that answers: fitted, stored, hashed, restored, the same in another process.

What cannot be stored stands in `CANNOT` with its reason, and is refused at declaration; this test finds no others.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from headrace.errors import DeclarationError
from headrace.learn.adapters import adapted
from headrace.learn.adapters.skops_state import CANNOT
from headrace.learn.state import dump_state, load_state, state_hash

SAMPLE = (
    *("RandomForestClassifier", "GradientBoostingRegressor", "IsolationForest", "HistGradientBoostingClassifier"),
    *("KNeighborsClassifier", "GaussianProcessRegressor", "MLPRegressor", "RidgeClassifier", "VotingClassifier"),
)
FEW = {"n_estimators": 5}
SMALL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("RandomForestClassifier", "GradientBoostingRegressor", "IsolationForest"), FEW),
    "HistGradientBoostingClassifier": {"max_iter": 5},
    "CCA": {"n_components": 1},
    "PLSCanonical": {"n_components": 1},
}
RNG = np.random.default_rng(4)
X = np.abs(RNG.normal(size=(60, 3)))
NUMBERS = X @ [1.0, 2.0, 3.0] + RNG.normal(size=60) * 0.1
LABELS = np.array(np.median(NUMBERS) < NUMBERS, int)


def made(name: str) -> Any:
    """An estimator as it comes, with another one inside where it wants some."""
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.utils import all_estimators

    kind = dict(all_estimators())[name]
    inner = LinearRegression() if "Regress" in name else LogisticRegression()
    ways: tuple[dict[str, Any], ...] = (
        {"estimator": inner},
        {"estimators": [("one", inner)]},
        {"estimator": inner, "param_grid": {"fit_intercept": [True, False]}},
        {"estimator": inner, "param_distributions": {"fit_intercept": [True, False]}, "n_iter": 2},
        {"estimator": inner, "param_distributions": {"fit_intercept": [True, False]}},
        {"steps": [("one", inner)]},
        {"base_estimator": inner},
    )
    if name == "SelfTrainingClassifier":
        return kind(estimator=inner)
    for more in (SMALL.get(name, {}), *ways):
        try:
            return kind(**more)
        except TypeError:
            continue
    raise AssertionError(f"{name} cannot be made")


def learner_of(estimator: Any) -> Any:
    labels = estimator.__sklearn_tags__().estimator_type == "classifier"
    return adapted(estimator, classes=[0, 1] if labels else None)


def answered() -> None:
    """In another process: what models answer that are restored from their states."""
    warnings.simplefilter("ignore")
    found = {}
    for name, state in pickle.load(sys.stdin.buffer).items():
        learner = learner_of(made(name))
        learner.restore(load_state(state))
        found[name] = (state_hash(learner.state()), learner.predict(_rows(name)))
    sys.stdout.buffer.write(pickle.dumps(found))


def _rows(name: str) -> Any:
    return X[:, :1] if name == "IsotonicRegression" else X


def _conforms(names: list[str]) -> None:
    states, expected = {}, {}
    for name in names:
        learner = learner_of(made(name))
        labels = learner.classes is not None
        learner.fit(_rows(name), LABELS if labels else NUMBERS)
        state = learner.state()
        states[name] = dump_state(state)
        expected[name] = state_hash(state), learner.predict(_rows(name))
        other = learner_of(made(name))
        other.restore(load_state(states[name]))
        assert state_hash(other.state()) == expected[name][0], name
        assert np.isfinite(expected[name][1]).all(), name
    code = f"import runpy, sys; sys.path[:] = {sys.path}; runpy.run_path({__file__!r})['answered']()"
    child = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(states), capture_output=True, timeout=600)
    assert child.returncode == 0, child.stderr.decode()[-2000:]
    for name, (hashed, answers) in pickle.loads(child.stdout).items():
        assert hashed == expected[name][0], name
        assert np.asarray(answers).tobytes() == np.asarray(expected[name][1]).tobytes(), name


@pytest.mark.filterwarnings("ignore")
def test_fitted_estimators_are_stored_and_answer_alike_in_another_process() -> None:
    _conforms(list(SAMPLE))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_estimator_that_answers_is_stored_or_refused_at_declaration() -> None:
    from sklearn.utils import all_estimators

    kept, refused = [], {}
    for name, kind in all_estimators():
        if hasattr(kind, "predict"):
            try:
                learner_of(made(name))
                kept.append(name)
            except DeclarationError as error:
                refused[name] = error.message
    several = {name for name, reason in refused.items() if "several targets" in reason}
    nothing = {name for name, reason in refused.items() if "does not predict" in reason}
    assert several == {
        *("ClassifierChain", "MultiOutputClassifier", "MultiOutputRegressor", "MultiTaskElasticNet", "RegressorChain"),
        *("MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"),
    }
    assert nothing == {"LocalOutlierFactor"}
    assert refused.keys() - several - nothing == CANNOT.keys()
    assert len(kept) > 90
    _conforms(kept)


def test_a_wrong_parameter_is_refused_at_declaration() -> None:
    from sklearn.linear_model import SGDRegressor
    from sklearn.pipeline import make_pipeline

    with pytest.raises(DeclarationError, match="loss"):
        adapted(SGDRegressor(loss="log_loss"))
    with pytest.raises(DeclarationError, match="alpha"):
        adapted(make_pipeline(SGDRegressor(alpha=-1.0)))
