"""River's models and pipelines as learners: each row is a dictionary, learned and predicted by itself.

``learn_many`` of River averages over a batch, so that what is learned would depend on where batches are cut; it is not
used. Nothing but a pickle holds River's structures. Theirs is written canonically, so that equal models have equal
states and equal hashes, and signed with the key of this installation: **a state from another installation is refused**,
unless they share their key (`installation_key`).
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import DeclarationError, LearnError
from headrace.learn.adapters import canonical_pickle
from headrace.learn.adapters.estimator import (
    Estimator,
    classes_of,
    codes_of,
    described,
    numbers_of,
    refuse_other_meaning,
    targets_of,
)
from headrace.learn.adapters.installation_key import is_ours, key_file, signature
from headrace.learn.base import LearnerTraits, State, as_features, as_json, one_line

_PURPOSE = "headrace.river"
_PREDICTIONS = {"clusterer": np.dtype(np.int64), "regressor": np.dtype(np.float64), "anomaly": np.dtype(np.float64)}

# Parameters that only say how a model goes on, beside those that River calls mutable: its own set is incomplete.
_GOING_ON = frozenset(
    [(kind, "alpha") for kind in ("BernoulliNB", "ComplementNB", "MultinomialNB")]
    + [(kind, "C") for kind in ("PAClassifier", "PARegressor")]
    + [("OneVsRestClassifier", "classifier"), ("PredClipper", "regressor")]
    + [(kind, "regressor") for kind in ("TargetTransformRegressor", "TargetStandardScaler", "TargetMinMaxScaler")]
)
_WEIGHTS = ("weight_pos", "weight_neg")


class RiverLearner(Estimator):
    """One model of River, or one pipeline.

    Open seeds become 0. A model that predicts nothing for a row (None) gives the first class, NaN, or -1 for a cluster;
    probabilities are then equal. A model with two classes learns False and True, and labels that are text are learned
    as their numbers in the order of ``classes``: the order of a set of texts differs between processes.

    Args:
        model: copied, never changed; what it has learned already is kept.
        classes: every label there is, for a classifier.
        names: of the features, in their order; without them "0", "1", ….

    Raises:
        DeclarationError: it is none that learns and predicts, ``classes`` is missing, or it cannot be stored.

    >>> from river.linear_model import LogisticRegression
    >>> learner = RiverLearner(LogisticRegression(), classes=["no", "yes"])
    >>> learner.learn(np.array([[-1.0], [1.0]]), np.array(["no", "yes"]))
    >>> learner.predict(np.array([[3.0]])).tolist()
    ['yes']
    """

    def __init__(self, model: Any, *, classes: Iterable[Any] | None = None, names: Sequence[str] | None = None) -> None:
        self._kind = _kind(model)
        self.classes = _classes(model, self._kind, classes)
        self._model, self._learned = _taken(model)
        self.traits = _traits(self._model, self._kind, self.classes, learned=self._learned)
        self._declared = described(self._model, _options)
        self._names = None if names is None else _named(names)
        self._width = None if names is None else len(names)
        labels = self._labels or []
        if labels and not _last(model)._multiclass:
            self._fed: list[Any] = [False, True]
        else:
            self._fed = list(range(len(labels))) if labels and isinstance(labels[0], str) else labels
        self._number = {label: i for i, label in enumerate(self._fed)}

    def __repr__(self) -> str:
        return one_line(_text(self._model))

    def largest(self) -> float:
        """Return the largest absolute number that a step itself holds: weights, means, variances; no trees are read."""
        found = 0.0
        for held in self._holders():
            values = (held.intercept,) if hasattr(held, "intercept") else ()
            for name in ("_weights", "means", "vars"):
                many = getattr(held, name, None)
                values = (*values, *many.values()) if many else values
            for value in values:
                if isinstance(value, float):
                    found = max(found, abs(value)) if value == value else math.inf
        return found

    def _holders(self) -> list[Any]:
        """Return steps that hold numbers by themselves."""
        known: tuple[Any, list[Any]] | None = self.__dict__.get("_held")
        if known is None or known[0] is not self._model:
            names = ("intercept", "_weights", "means", "vars")
            steps = [step for step in _all_steps(self._model) if any(hasattr(step, name) for name in names)]
            self._held = known = (self._model, steps)
        return known[1]

    def unlearned(self) -> RiverLearner:
        """Return the same declaration without what it has learned."""
        return RiverLearner(_pinned(self._model), classes=self.classes, names=self._names)

    def learn(self, X: Array, y: Array | None = None) -> None:
        """Call ``learn_one`` for each row; an empty batch changes nothing."""
        X = self._checked(X)
        if not len(X):
            return
        targets = self._targets(y, len(X)) if self._kind in ("classifier", "regressor") else None
        self._width, self._learned = X.shape[1], True
        learn_one, at = self._model.learn_one, 0
        try:
            if targets is None:
                for at, row in enumerate(self._rows(X)):  # noqa: B007 (named in the error)
                    learn_one(row)
            else:
                for at, (row, target) in enumerate(zip(self._rows(X), targets, strict=True)):  # noqa: B007
                    learn_one(row, target)
        except Exception as error:  # whatever a model of somebody's own raises
            name = type(_last(self._model)).__name__
            raise LearnError(f"{name} failed at row {at} of a cut: {type(error).__name__}: {error}") from error

    def predict(self, X: Array) -> Array:
        """Return one label, number, cluster or anomaly score a row."""
        found = self._called("score_one" if self._kind == "anomaly" else "predict_one", X)
        if self.classes is not None:
            return np.asarray(self.classes[np.array([self._number.get(label, 0) for label in found], np.int64)])
        if self._kind == "clusterer":
            found = [-1 if cluster is None else cluster for cluster in found]
        return np.array(found, _PREDICTIONS[self._kind])

    def predict_proba(self, X: Array) -> Array:
        """Return probabilities of shape (n, classes), in the order of ``classes``: the model's own, uncalibrated.

        Offered where the model has its own.
        """
        found = self._called("predict_proba_one", X)
        equal = [1 / len(self._fed)] * len(self._fed)
        listed = [[chances.get(label, 0.0) for label in self._fed] if chances else equal for chances in found]
        return np.array(listed, np.float64).reshape(len(found), len(self._fed))

    def _called(self, how: str, X: Array) -> list[Any]:
        if not self.ready:
            raise LearnError(f"{type(_last(self._model)).__name__} has learned nothing yet")
        method = getattr(self._model, how)
        return [method(row) for row in self._rows(self._checked(X))]

    def parameters(self) -> dict[str, Any]:
        return {"model": self._declared, "classes": self._labels, "names": self._names}

    def state(self) -> State:
        data = canonical_pickle.dumps(self._model)
        signed = signature(_PURPOSE, data)
        return {
            "pickle": np.frombuffer(data, np.uint8).copy(),
            "@signature": signed,
            "width": self._width,
            "learned": self._learned,
        }

    def restore(self, state: State) -> None:
        """Take over a ``state``.

        Raises:
            LearnError: this installation did not write it, nothing of it has been made then; or it is of another River.
        """
        model = _loaded(state)
        if type(model) is not type(self._model):
            raise LearnError(f"a stored model is a {type(model).__name__}, not a {type(self._model).__name__}")
        self._model = model
        width = state["width"]
        self._width = None if width is None else int(width)
        self._learned = bool(state["learned"])

    def adopt(self, state: State, parameters: Mapping[str, Any]) -> None:
        """Take over the state of a model with other parameters, where River says that they may change while it learns.

        Raises:
            LearnError: steps, classes or names differ, or a parameter that River calls immutable; or as for `restore`.
                Nothing has been changed then.
        """
        refuse_other_meaning(parameters, as_json(self.parameters()), lambda path: path[0] == "model", repr(self))
        model = _loaded(state)
        _go_on_with(model, self._model)
        width = state["width"]
        self._model, self._learned = model, bool(state["learned"])
        self._width = None if width is None else int(width)

    def __deepcopy__(self, memo: dict[int, Any]) -> RiverLearner:
        made = copy.copy(self)
        made._model = pickle.loads(canonical_pickle.dumps(self._model))
        return made

    # -- checks ---------------------------------------------------------------------------------------------------

    def _checked(self, X: Array) -> Array:
        return as_features(X, self._width if len(X) else None)

    def _rows(self, X: Array) -> list[dict[str, float]]:
        names = self._names or [str(i) for i in range(X.shape[1])]
        return [dict(zip(names, row)) for row in X.tolist()]  # noqa: B905 (widths are checked; strict costs a tenth)

    def _targets(self, y: Array | None, n: int) -> list[Any]:
        y = targets_of(y, n, type(_last(self._model)).__name__)
        if self.classes is None:
            return list(numbers_of(y, np.float64).tolist())
        return [self._fed[code] for code in codes_of(y, self.classes).tolist()]


def made_again(state: State, *, classes: Iterable[Any] | None, names: Sequence[str] | None) -> RiverLearner:
    """Return the learner whose state this is, as it was declared.

    Raises:
        LearnError: as for `RiverLearner.restore`.
    """
    return RiverLearner(_loaded(state), classes=classes, names=names)


def _loaded(state: State) -> Any:
    """Return the model in a state that this installation wrote; nothing of another one is read."""
    data = np.asarray(state.get("pickle", ()), np.uint8).tobytes()
    if not is_ours(_PURPOSE, data, str(state.get("@signature"))):
        raise LearnError(
            f"a stored River model was not written by this installation (key {key_file()})",
            advice="Loading it could run anything. Copy the key of the machine that wrote it, or learn it again.",
        )
    try:
        model = pickle.loads(data)
    except Exception as error:  # whatever another version's classes raise
        raise LearnError(f"a stored River model cannot be read by this River: {error}") from error
    return model


def _traits(model: Any, kind: str, classes: Array | None, *, learned: bool) -> LearnerTraits:
    from river.base import Classifier

    probabilities = classes is not None and type(_last(model)).predict_proba_one is not Classifier.predict_proba_one
    return LearnerTraits(
        splits="exact",
        classes=classes,
        prediction_type=pa.array(classes).type if classes is not None else pa.from_numpy_dtype(_PREDICTIONS[kind]),
        needs_target=kind in ("classifier", "regressor"),
        takes_sample_weight=False,
        stores_beginning=learned,  # one that was trained elsewhere may be another one in the next process
        offers=frozenset({"largest", "adopt", "predict_proba"} if probabilities else {"largest", "adopt"}),
    )


def _all_steps(model: Any) -> list[Any]:
    parts = _parts(model)
    return [model] if parts is None else [step for part in parts.values() for step in _all_steps(part)]


def _last(model: Any) -> Any:
    while hasattr(model, "steps"):
        model = list(model.steps.values())[-1]
    return model


def _kind(model: Any) -> str:
    from river import base

    last = _last(model)
    kinds = {"classifier": base.Classifier, "regressor": base.Regressor, "clusterer": base.Clusterer}
    for kind, of in kinds.items():
        if isinstance(last, of):
            return kind
    if hasattr(last, "score_one") and not last._supervised:
        return "anomaly"
    raise DeclarationError(
        f"{type(last).__name__} predicts for no rows",
        advice="Take a classifier, a regressor, a clusterer or an unsupervised anomaly detector, last in a pipeline.",
    )


def _classes(model: Any, kind: str, classes: Iterable[Any] | None) -> Array | None:
    name = type(_last(model)).__name__
    if classes is not None and kind == "classifier":
        classes = [label.item() if isinstance(label, np.generic) else label for label in classes]
        kinds = {type(label) for label in classes}
        if len(kinds) > 1 or not kinds <= {bool, int, str}:
            raise DeclarationError(f"classes={classes}", advice="Labels are all bool, all int or all text.")
    found = classes_of(classes, name, classifier=kind == "classifier")
    if found is not None and len(found) > 2 and not _last(model)._multiclass:
        raise DeclarationError(f"{name} tells two classes apart, not {len(found)}", advice="multiclass.OneVsRest(…)")
    return found


def _taken(model: Any) -> tuple[Any, bool]:
    """Return a copy with every open seed 0, and whether it has learned something."""
    try:
        pinned = _pinned(model)
        own = canonical_pickle.dumps(model)
        fresh = canonical_pickle.dumps(pinned)
        same = _unseeded(model) == _unseeded(model.clone())
    except Exception as error:  # pickle and River have no common class for what they cannot write or clone
        raise DeclarationError(
            f"{type(model).__name__} cannot be stored: {error}",
            advice="Use functions of a module, no lambdas, in a model.",
        ) from error
    if same or own == fresh:
        return pickle.loads(fresh), False
    if described(model, _options) != described(pinned, _options):
        raise DeclarationError(
            f"{type(model).__name__} has drawn numbers or learned, and its seed is open", advice="Say seed=…."
        )
    return pickle.loads(own), True


def _unseeded(model: Any) -> bytes:
    return canonical_pickle.dumps(model, but_random=True)


def _pinned(value: Any) -> Any:
    """Return a new model with the same parameters: an open seed would be another one in each run."""
    from river.base import Base

    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_pinned(item) for item in value)
    if type(value) is dict:
        return {name: _pinned(item) for name, item in value.items()}
    if not isinstance(value, Base):
        return value
    parts = _parts(value)
    if parts is not None:
        return type(value)(*[(name, _pinned(part)) for name, part in parts.items()])
    return value.clone(
        {n: 0 if n == "seed" and option is None else _pinned(option) for n, option in _own(value).items()}
    )


def _go_on_with(learned: Any, declared: Any) -> None:
    """Give a model that has learned the parameters of one that is declared.

    What an optimizer knows of each weight stays, unless it is one of another class.

    Raises:
        LearnError: it is another model, or a parameter decides what the numbers it has learned mean.
    """
    name = type(declared).__name__
    if type(learned) is not type(declared):
        raise LearnError(f"it has learned as {type(learned).__name__}, and {name} is declared")
    parts, others = _parts(declared), _parts(learned)
    if parts is not None:
        if list(parts) != list(others):
            raise LearnError(f"it has learned with the steps {list(others)}, and {list(parts)} are declared")
        for step, part in parts.items():
            _go_on_with(others[step], part)
        return
    for parameter, option in _own(declared).items():
        was = getattr(learned, parameter, None)
        if described(was, _options) == described(option, _options):
            continue
        inside = hasattr(option, "_get_params") and type(was) is type(option)
        if not (_may_change(declared, parameter, was, option) or (inside and parameter == "loss")):
            raise LearnError(
                f"«{parameter}» of {name} decides what the numbers it has learned mean: "
                f"{one_line(_text(was), 80)} -> {one_line(_text(option), 80)}"
            )
        if inside:
            for copied in (was, *_copies(learned, parameter)):
                _go_on_with(copied, option)
        else:
            setattr(learned, parameter, copy.deepcopy(option))


def _may_change(owner: Any, parameter: str, was: Any, now: Any) -> bool:
    """Return whether a parameter only says how a model goes on learning."""
    from river.optim.base import Initializer, Loss, Optimizer, Scheduler

    if isinstance(owner, Loss):
        return parameter in _WEIGHTS
    if isinstance(owner, Optimizer | Scheduler | Initializer):
        return True
    if parameter in ("l1", "l2"):  # what a penalty needs is made at the beginning
        return parameter in owner._mutable_attributes and (parameter == "l2" or bool(was) == bool(now))
    if (type(owner).__name__, parameter) in _GOING_ON:
        return True
    return parameter in owner._mutable_attributes and parameter != "loss"


def _copies(owner: Any, parameter: str) -> Iterator[Any]:
    """Yield what an owner has made of one of its models, and learns in its place."""
    if (type(owner).__name__, parameter) == ("OneVsRestClassifier", "classifier"):
        yield from owner.classifiers.values()


def _parts(model: Any) -> Any:
    """Return steps of a pipeline, transformers of a union."""
    found = getattr(model, "steps", None) or getattr(model, "transformers", None)
    return found if isinstance(found, dict) else None


def _own(model: Any) -> dict[str, Any]:
    """Return parameters, with models inside as they are."""
    return {name: getattr(model, name, default) for name, default in model._get_params().items()}


def _named(names: Sequence[str]) -> list[str]:
    listed = list(names)
    if len(set(listed)) != len(listed) or not all(isinstance(name, str) for name in listed):
        raise DeclarationError(f"names={listed}", advice="Each feature has a name of its own.")
    return listed


def _text(value: Any) -> str:
    """Return a model as one would write it: with the parameters that are not as they are by default."""
    if not hasattr(value, "_get_params"):
        return str(getattr(value, "__qualname__", None) or repr(value))
    parts = _parts(value)
    if parts is not None:
        return f" {'|' if hasattr(value, 'steps') else '+'} ".join(map(_text, parts.values()))
    try:
        usual = {name: _text(option) for name, option in _own(type(value)()).items()}
    except Exception:  # a class of somebody's own may want parameters, or anything
        usual = {}
    own = {name: _text(option) for name, option in _own(value).items()}
    said = [f"{name}={text}" for name, text in own.items() if usual.get(name) != text]
    return f"{type(value).__name__}({', '.join(said)})"


def _options(value: Any) -> dict[str, Any] | None:
    if not hasattr(value, "_get_params"):
        return None
    parts = _parts(value)
    return dict(sorted(_own(value).items())) if parts is None else {"steps": list(parts.items())}
