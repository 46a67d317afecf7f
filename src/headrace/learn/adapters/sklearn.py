"""Estimators of scikit-learn with ``partial_fit``, and pipelines of them, as learners.

`sklearn.pipeline.Pipeline` has no ``partial_fit``. Its steps are updated in their order here: a step learns, then
transforms, then the next one learns what came out. Steps that need no fitting (`FunctionTransformer`, `Normalizer`)
only transform.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import DeclarationError, LearnError
from headrace.learn.adapters.estimator import Estimator, classes_of, codes_of, described, numbers_of, targets_of
from headrace.learn.adapters.skops_state import CANNOT, from_state, to_state, types_within
from headrace.learn.adapters.threads import one_thread
from headrace.learn.base import LearnerTraits, Method, State, as_features, largest_in, one_line

_OWN = "estimator."


# Parameters that say how an estimator goes on learning, and not what the numbers mean that it has learned.
GOING_ON = frozenset(
    {"C", "alpha", "batch_size", "class_weight", "early_stopping", "epsilon", "eta0", "l1_ratio", "learning_rate",
     "learning_rate_init", "max_iter", "max_no_improvement", "n_iter_no_change", "n_jobs", "penalty", "power_t",
     "random_state", "reassignment_ratio", "shuffle", "tol", "validation_fraction", "verbose", "warm_start"}
)  # fmt: skip


class SklearnLearner(Estimator):
    """One estimator, or one pipeline of estimators. One without ``partial_fit`` predicts by what it learned before.

    Its random states are pinned where the user left them open, and its calls run on one thread: then the same rows give
    the same bits. Estimators that need several rows for their first update (`MiniBatchKMeans`) get them together.

    Args:
        estimator: copied, never changed; what it has learned already is kept.
        classes: every label there is, for a classifier.

    Raises:
        DeclarationError: it does not predict, ``classes`` is missing, or it cannot be stored.

    >>> from sklearn.linear_model import SGDClassifier
    >>> learner = SklearnLearner(SGDClassifier(), classes=["no", "yes"])
    >>> learner.learn(np.array([[0.0], [1.0]]), np.array(["no", "yes"]))
    >>> learner.predict(np.array([[3.0]])).tolist()
    ['yes']
    """

    def __init__(self, estimator: Any, *, classes: Iterable[Any] | None = None) -> None:
        self._estimator = copy.deepcopy(estimator)
        self._steps = _steps(self._estimator)
        last = self._steps[-1]
        self._kind = _kind(last)
        if classes is None and self._kind == "classifier":
            classes = getattr(last, "classes_", None)
        self.classes = classes_of(classes, type(last).__name__, classifier=self._kind == "classifier")
        _pin(self._estimator)
        _check_parameters(self._steps)
        self._declared = described(self._estimator, _options)
        _refuse_what_cannot_be_stored(self._steps)
        try:
            self._trusted = types_within(self._estimator)
        except LearnError as error:
            raise DeclarationError(error.message, advice=error.advice) from error
        self._width = _width(self._steps)
        self._learned = _is_fitted(self._steps[-1])
        self.traits = _traits(self._steps, self._kind, self.classes, learned=self._learned)
        self._fewest = int(getattr(self._steps[-1], "n_clusters", None) or 1)
        self._waiting: list[tuple[Array, Array | None]] = []

    pinned = staticmethod(one_thread)

    def __repr__(self) -> str:
        return one_line(repr(self._estimator))

    def largest(self) -> float:
        """Return the largest absolute number in what its steps have learned; 0 where they predict all the same."""
        if not self._learned:
            return 0.0
        found = largest_in(_learned_numbers(self._steps))
        if math.isfinite(found) or all(np.isfinite(array).all() for array in _learned_numbers(self._steps)):
            return found
        return 0.0 if self._predicts_still() else math.inf

    def _predicts_still(self) -> bool:
        """Return whether a row of zeros gets finite numbers: what is not finite may have no part in a prediction."""
        how = next(
            (method for method in ("decision_function", "predict_proba") if hasattr(self._steps[-1], method)), "predict"
        )
        try:
            found = self._called(how, np.zeros((1, self._width or 1)))
            return found.dtype.kind != "f" or bool(np.isfinite(found).all())
        except Exception:
            return False

    def unlearned(self) -> SklearnLearner:
        """Return the same declaration without what it has learned."""
        from sklearn.base import clone

        return SklearnLearner(clone(self._estimator), classes=self.classes)

    def learn(self, X: Array, y: Array | None = None, sample_weight: Array | None = None) -> None:
        """Call ``partial_fit`` of each step; an empty batch changes nothing.

        Raises:
            LearnError: a step has no ``partial_fit``.
        """
        if self.traits.cannot_learn:
            raise LearnError(self.traits.cannot_learn)
        X = self._checked(X)
        if not len(X):
            return
        if self._kind in ("classifier", "regressor"):
            y = self._targets(y, len(X))
        self._width = X.shape[1]
        if not self._learned and self._fewest > 1:
            self._waiting.append((X.copy(), None if sample_weight is None else sample_weight.copy()))
            if sum(len(rows) for rows, _ in self._waiting) < self._fewest:
                return
            X = np.concatenate([rows for rows, _ in self._waiting])
            weights = [weight for _, weight in self._waiting if weight is not None]
            sample_weight = np.concatenate(weights) if weights else None
            self._waiting = []
        with one_thread():
            self._partial_fit(X, y, sample_weight)
        self._learned = True

    def _partial_fit(self, X: Array, y: Array | None, sample_weight: Array | None) -> None:
        *before, last = self._steps
        for step in before:
            if hasattr(step, "partial_fit"):
                step.partial_fit(X, y)
            X = step.transform(X)
        more: dict[str, Any] = {} if sample_weight is None else {"sample_weight": sample_weight}
        if self._kind == "classifier":
            more["classes"] = self.classes
        last.partial_fit(X, y, **more)

    def fit(self, X: Array, y: Array | None = None) -> None:
        """Train anew on these rows alone, as the estimator's own ``fit`` does."""
        X = self._checked(X)
        if self._kind in ("classifier", "regressor"):
            y = self._targets(y, len(X))
        with one_thread():
            self._estimator.fit(X, y)
        self._width, self._learned, self._waiting = X.shape[1], True, []

    def predict(self, X: Array) -> Array:
        """Return one prediction a row."""
        return self._called("predict", X)

    def predict_proba(self, X: Array) -> Array:
        """Return probabilities of shape (n, classes), in the order of ``classes``: the model's own, uncalibrated.

        Offered where the estimator has it.
        """
        return self._called("predict_proba", X)

    def _called(self, how: str, X: Array) -> Array:
        if not self.ready:
            raise LearnError(f"{type(self._steps[-1]).__name__} has learned nothing yet")
        X = self._checked(X)
        if not len(X):
            number = np.int64 if self._kind == "clusterer" else np.float64
            return np.empty(0, number if self.classes is None else self.classes.dtype)
        with one_thread():
            for step in self._steps[:-1]:
                X = step.transform(X)
            found = np.asarray(getattr(self._steps[-1], how)(X))
        if len(found) != len(X):
            raise LearnError(f"{type(self._steps[-1]).__name__} gave {len(found)} predictions for {len(X)} rows")
        if how == "predict_proba" and self.classes is not None and found.shape[1] != len(self.classes):
            found = self._spread(found, self.classes)
        return found.astype(np.int64) if self._kind == "clusterer" else found

    def _spread(self, found: Array, classes: Array) -> Array:
        """Return probabilities of an estimator that was fitted on rows of some of the classes only."""
        whole = np.zeros((len(found), len(classes)))
        whole[:, np.searchsorted(classes, self._steps[-1].classes_)] = found
        return whole

    @property
    def estimator(self) -> Any:
        """The estimator itself: not to be changed."""
        return self._estimator

    def parameters(self) -> dict[str, Any]:
        return {"estimator": self._declared, "classes": self._labels}

    def state(self) -> State:
        state: State = {f"{_OWN}{name}": value for name, value in to_state(self._estimator).items()}
        state |= {f"waiting.{i:06d}": X for i, (X, _) in enumerate(self._waiting)}
        state |= {f"weight.{i:06d}": weight for i, (_, weight) in enumerate(self._waiting) if weight is not None}
        return state | {"width": self._width, "learned": self._learned}

    def restore(self, state: State) -> None:
        own = {name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)}
        self._estimator = from_state(own, self._trusted)
        self._steps = _steps(self._estimator)
        self._width = None if state["width"] is None else int(state["width"])
        self._learned = bool(state["learned"])
        names = sorted(name for name in state if name.startswith("waiting."))
        weights = [state.get(name.replace("waiting", "weight")) for name in names]
        self._waiting = [
            (np.array(state[name]), None if weight is None else np.array(weight))
            for name, weight in zip(names, weights, strict=True)
        ]

    def adopt(self, state: State) -> None:
        """Take over the state of an estimator with other parameters, if these only say how it goes on learning.

        Raises:
            LearnError: the classes differ, or a parameter that decides what its numbers mean.
        """
        declared, classes = self._estimator, self.classes
        own = declared.get_params()
        self.restore(state)
        found = self._estimator.get_params()
        kinds = [[type(step) for step in _steps(estimator)] for estimator in (declared, self._estimator)]
        if kinds[0] != kinds[1] or own.keys() != found.keys():
            raise LearnError("what it has learned is of another estimator")
        learned = getattr(self._steps[-1], "classes_", None)  # a classifier has it when it is fitted
        if learned is not None and classes is not None and list(learned) != list(classes):
            raise LearnError(f"it has learned the classes {list(learned)}, and {list(classes)} are declared")
        plain = {key: value for key, value in own.items() if not _holds_estimators(value)}
        changed = {key: value for key, value in plain.items() if not _equal(value, found[key])}
        wrong = [key for key in changed if key.rpartition("__")[2] not in GOING_ON]
        if wrong:
            raise LearnError(f"«{wrong[0]}» of {type(declared).__name__} decides what the numbers it has learned mean")
        self._estimator.set_params(**changed)
        for step in self._steps:
            # A network's optimizer was made with the rate that was declared then.
            optimizer = getattr(step, "_optimizer", None)
            if optimizer is not None and hasattr(step, "learning_rate_init"):
                optimizer.learning_rate_init = optimizer.learning_rate = float(step.learning_rate_init)

    # -- checks ---------------------------------------------------------------------------------------------------

    def _checked(self, X: Array) -> Array:
        if self.traits.accepts_nan and np.asarray(X).dtype.kind == "f":
            as_features(np.where(np.isnan(X), 0.0, X), self._seen(X))
            return np.ascontiguousarray(X)
        kind = np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64
        return as_features(X, self._seen(X), kind)

    def _seen(self, X: Array) -> int | None:
        return self._width if len(X) else None

    def _targets(self, y: Array | None, n: int) -> Array:
        y = targets_of(y, n, type(self._steps[-1]).__name__)
        if self.classes is None:
            return numbers_of(y, y.dtype)
        codes_of(y, self.classes)
        return y


def stored_estimator(state: State) -> Any:
    """Return the estimator in a stored state, made of scikit-learn's and NumPy's classes only.

    Raises:
        LearnError: it is none, or has other parts.
    """
    return from_state({name.removeprefix(_OWN): value for name, value in state.items() if name.startswith(_OWN)})


def _steps(estimator: Any) -> list[Any]:
    """Return the estimators that learn in turn."""
    if not hasattr(estimator, "steps"):
        chosen = [estimator]
    else:
        chosen = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    for step in chosen:
        if isinstance(step, type):
            raise DeclarationError(
                f"{step.__name__}, a step of the pipeline, is a class", advice=f"Make one of it: {step.__name__}(…)."
            )
        if hasattr(step, "steps"):
            raise DeclarationError("a pipeline within a pipeline", advice="Name all steps in one make_pipeline(…).")
    # A stack of estimators predicts once its last one is fitted.
    if not hasattr(chosen[-1], "predict") and not hasattr(chosen[-1], "final_estimator"):
        raise DeclarationError(
            f"{type(chosen[-1]).__name__} does not predict", advice="End with an estimator that does."
        )
    return chosen


def _learned_numbers(steps: Sequence[Any]) -> Iterator[Any]:
    """Yield arrays that the steps have learned; the logarithm of nothing, minus infinity, is one of its values."""
    for step in steps:
        for name, value in vars(step).items():
            for array in value if type(value) is list else (value,):
                if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                    yield np.where(np.isneginf(array), 0.0, array) if "log" in name else array


def _traits(steps: Sequence[Any], kind: str, classes: Array | None, *, learned: bool) -> LearnerTraits:
    number = pa.float64() if kind == "regressor" else pa.int64()
    update = getattr(steps[-1], "partial_fit", None)
    offers: set[Method] = {"fit", "pinned", "largest", "adopt"}
    return LearnerTraits(
        classes=classes,
        prediction_type=number if classes is None else pa.array(classes).type,
        needs_target=kind in ("classifier", "regressor"),
        takes_sample_weight=update is not None and "sample_weight" in inspect.signature(update).parameters,
        accepts_nan=all(step.__sklearn_tags__().input_tags.allow_nan for step in steps),
        stores_beginning=learned,  # one that was trained elsewhere may be another one in the next process
        cannot_learn=_cannot_learn(steps),
        offers=frozenset(offers | {"predict_proba"} if hasattr(steps[-1], "predict_proba") else offers),
    )


def _cannot_learn(steps: Sequence[Any]) -> str:
    for step in steps:
        stateless = step is not steps[-1] and not step.__sklearn_tags__().requires_fit
        if not hasattr(step, "partial_fit") and not stateless:
            return f"{type(step).__name__} has no partial_fit: it cannot learn as rows arrive"
    return ""


def _kind(step: Any) -> str:
    return str(step.__sklearn_tags__().estimator_type or "")


def _refuse_what_cannot_be_stored(steps: Sequence[Any]) -> None:
    if not steps[-1].__sklearn_tags__().target_tags.single_output:
        raise DeclarationError(
            f"{type(steps[-1]).__name__} predicts several targets, a model has one",
            advice="Take the estimator for one target, and declare a model for each.",
        )
    for step in steps:
        name = next((kind.__name__ for kind in type(step).__mro__ if kind.__name__ in CANNOT), "")
        if name and any(kind.__module__.startswith("sklearn.") for kind in type(step).__mro__):
            raise DeclarationError(
                f"{type(step).__name__} cannot be stored without a pickle: {CANNOT[name]}",
                advice="Use another estimator, or a learner of your own (headrace.Learner).",
            )


def _check_parameters(steps: Sequence[Any]) -> None:
    """Raise at the declaration what scikit-learn would raise at the first row."""
    for step in steps:
        try:
            getattr(step, "_validate_params", lambda: None)()
        except ValueError as error:
            raise DeclarationError(f"{type(step).__name__}: {error}", advice="Change its parameters.") from error


def _pin(estimator: Any) -> None:
    """Set open random states to 0: they would be others in each run."""
    open_ = {
        name: 0
        for name, value in estimator.get_params(deep=True).items()
        if value is None and name.rpartition("__")[2] == "random_state"
    }
    if open_:
        estimator.set_params(**open_)


def _options(value: Any) -> dict[str, Any] | None:
    return dict(sorted(value.get_params(deep=False).items())) if hasattr(value, "get_params") else None


def _is_fitted(step: Any) -> bool:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(step)
    except NotFittedError:
        return False
    return True


def _width(steps: list[Any]) -> int | None:
    width = getattr(steps[0], "n_features_in_", None)
    return None if width is None else int(width)


def _holds_estimators(value: Any) -> bool:
    """Return whether a parameter is an estimator, or a list of named ones."""
    return hasattr(value, "get_params") or (isinstance(value, list) and all(isinstance(step, tuple) for step in value))


def _equal(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else bool(a == b)
