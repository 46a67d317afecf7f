"""The contract of a learner: what an online model is to the rest of the house.

The engine calls a learner from one thread at a time. It decides where batches are cut; what is done with a batch
is the learner's. Arrays are C-contiguous, of the declared dtype; ``X`` has shape (n, d).
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol, TypeGuard, cast, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import HeadraceError, LearnError

State = dict[str, "npt.NDArray[Any] | int | float | str | bool | None"]


Method = Literal["predict_proba", "fit", "unlearn", "partial", "merge", "pinned", "largest", "adopt", "declared_with"]
OPTIONAL_METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnerTraits:
    """Abilities of a learner beyond its six methods, and what may be relied on. `headrace.testing.learners` checks it.

    Attributes:
        deterministic: learning the same rows again gives the same bits. Of a learner that does not, the state is stored
            with every commit that publishes predictions of it.
        splits: ``"exact"``: a cut learned in one call or in several leaves the same bits. ``"different"`` promises
            nothing: each call is an update of its own.
        part_rows: with ``partial`` and ``merge``: parts of which each but the last holds a multiple of so many rows,
            merged in order, leave the bits that ``learn`` of the whole cut leaves. None: only the same up to rounding.
        classes: every label there is, sorted; rows with another one are refused before the learner sees them. None:
            it predicts numbers, or clusters.
        prediction_type: Arrow type of its predictions, for a column that is written before the first of them.
        needs_target: it learns from a target, and nothing without one.
        takes_sample_weight: ``learn`` takes a third argument of this name, shape (n,). None: by the names of its
            arguments.
        accepts_nan: NaN in ``X`` is a missing value, not a bad row.
        rowwise: a prediction has the same bits whatever rows are beside it.
        stores_beginning: its state before the first row is another one in each process, and is stored before anything
            is learned.
        cannot_learn: why it cannot learn as rows arrive, in words; empty where it can.
        offers: which of these optional methods it has:

            ``predict_proba(X)``: probabilities of shape (n, classes), in the order of ``classes``;
            ``fit(X, y)``: train anew, on these rows alone;
            ``unlearn(X, y)``: take rows out of the model exactly;
            ``partial(X, y)`` and ``merge(parts)``: learn from sufficient statistics that were computed elsewhere;
            ``pinned()``: a context that is entered once around many calls, where each of them would enter it;
            ``largest()``: the largest absolute number in what it has learned, infinite where one is NaN; a row that
            takes it beyond 1e150 is refused;
            ``adopt(state)``, or ``adopt(state, parameters)``: take over the state of a learner of its class that was
            declared with other parameters (these), and keep its own; raises LearnError where the numbers of the state
            mean something else by its own;
            ``declared_with(parameters)``: a learner as it was declared with other parameters, which has learned
            nothing; raises LearnError where it cannot be made of this one. Steps that were taken before `adopt` are
            repeated by it, where a log alone does not say how the learner was declared.
    """

    deterministic: bool = True
    splits: Literal["exact", "different"] = "different"
    part_rows: int | None = None
    classes: Array | None = None
    prediction_type: pa.DataType | None = None
    needs_target: bool = False
    takes_sample_weight: bool | None = None
    accepts_nan: bool = False
    rowwise: bool = False
    stores_beginning: bool = False
    cannot_learn: str = ""
    offers: frozenset[Method] = frozenset()

    def __deepcopy__(self, memo: dict[int, Any]) -> LearnerTraits:
        return self  # nothing in it changes, and learners are copied often


_ABSENT = object()
_NAMES = tuple(field.name for field in fields(LearnerTraits) if field.name != "offers")


@runtime_checkable
class Learner(Protocol):
    """An online model.

    It may say more of itself in an attribute ``traits``, a `LearnerTraits`; without one it has that class's defaults,
    except for what it says in attributes of its own that are named as those of `LearnerTraits`, and optional methods
    that it has. In an attribute ``width`` it may say how many features it has seen.
    """

    def learn(self, X: Array, y: Array | None = None) -> None:
        """Learn one cut. ``X`` may be empty (a recorded tick on an idle stream).

        Whatever it raises, the pipeline goes on: rows that fail are refused (`headrace.learn.handover`).

        Raises:
            BadRows: NaN, infinite values, wrong width or type; nothing has been learned.
        """
        ...

    def predict(self, X: Array) -> Array:
        """Return one prediction a row. Changes nothing; calls are made in fixed padded blocks of rows.

        Raises:
            BadRows: as for ``learn``.
        """
        ...

    @property
    def ready(self) -> bool:
        """Return whether it can predict: something was learned, or an initial state was given."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Return the declared parameters as JSON values: part of the model's fingerprint."""
        ...

    def state(self) -> State:
        """Return everything that ``learn`` has changed, as NumPy arrays and plain values; copies, not views."""
        ...

    def restore(self, state: State) -> None:
        """Take over a ``state``: afterwards the learner continues bit for bit."""
        ...


class Classifier(Learner, Protocol):
    """A learner that offers ``predict_proba``."""

    def predict_proba(self, X: Array) -> Array: ...


class Refittable(Learner, Protocol):
    """A learner that offers ``fit``."""

    def fit(self, X: Array, y: Array | None = None) -> None: ...


class Bounded(Learner, Protocol):
    """A learner that offers ``largest``."""

    def largest(self) -> float: ...


class Pinnable(Learner, Protocol):
    """A learner that offers ``pinned``."""

    def pinned(self) -> AbstractContextManager[None]: ...


class Adopting(Learner, Protocol):
    """A learner that offers ``adopt``."""

    def adopt(self, state: State) -> None: ...


class AdoptingByParameters(Learner, Protocol):
    """A learner that offers ``adopt``, and must know what was declared before to tell."""

    def adopt(self, state: State, parameters: Mapping[str, Any]) -> None: ...


class Redeclared(Learner, Protocol):
    """A learner that offers ``declared_with``."""

    def declared_with(self, parameters: Mapping[str, Any]) -> Learner: ...


def traits_of(learner: Learner) -> LearnerTraits:
    """Return a learner's traits; see `Learner`.

    >>> class Mine:
    ...     accepts_nan = True
    ...     def fit(self, X, y=None): ...
    >>> traits = traits_of(Mine())
    >>> traits.accepts_nan, traits.deterministic, sorted(traits.offers)
    (True, True, ['fit'])
    """
    traits: LearnerTraits | None = getattr(learner, "traits", None)  # optional: learners of users have none
    if traits is not None:
        return traits
    said: dict[str, Any] = {name: value for name in _NAMES if (value := getattr(learner, name, _ABSENT)) is not _ABSENT}
    # A method that is None where the model has no such thing is not offered.
    offers = frozenset(name for name in OPTIONAL_METHODS if callable(getattr(learner, name, None)))
    return LearnerTraits(**said, offers=offers)


def offers_probabilities(learner: Learner) -> TypeGuard[Classifier]:
    """Return whether it is a `Classifier`."""
    traits = traits_of(learner)
    return "predict_proba" in traits.offers and traits.classes is not None


def probabilities_type(learner: Learner) -> pa.DataType:
    """Return the type of the probabilities that a classifier gives a row: a list of one for each class."""
    classes = traits_of(learner).classes
    return pa.list_(pa.float64(), 0 if classes is None else len(classes))


def offers_fit(learner: Learner) -> TypeGuard[Refittable]:
    """Return whether it can be trained anew."""
    return "fit" in traits_of(learner).offers


def takes_sample_weight(learner: Learner) -> bool:
    """Return whether ``learn`` takes ``sample_weight``."""
    said = traits_of(learner).takes_sample_weight
    return "sample_weight" in inspect.signature(learner.learn).parameters if said is None else said


def scored_as(learner: Learner) -> Literal["classification", "regression"]:
    """Return how its predictions are compared with the truth."""
    traits = traits_of(learner)
    if traits.classes is not None:
        return "classification"
    kind = traits.prediction_type
    return "regression" if kind is None or pa.types.is_floating(kind) else "classification"


def pinned(learner: Learner | None) -> AbstractContextManager[None]:
    """Return the context that is entered around many calls of a learner."""
    if learner is None or "pinned" not in traits_of(learner).offers:
        return nullcontext()
    return cast("Pinnable", learner).pinned()


def adopt(learner: Learner, state: State, parameters: Mapping[str, Any]) -> None:
    """Take over the state of a learner of the same class that was declared with some parameters.

    Raises:
        LearnError: it does not fit, or the learner cannot tell.
    """
    before = as_json(parameters)
    if as_json(learner.parameters()) == before:
        learner.restore(state)
    elif "adopt" in traits_of(learner).offers:
        adopting = cast("Adopting", learner)
        if "parameters" in inspect.signature(adopting.adopt).parameters:
            cast("AdoptingByParameters", learner).adopt(state, before)
        else:
            adopting.adopt(state)
    else:
        raise LearnError(
            f"{type(learner).__name__} does not say whether what was learned with other parameters fits",
            advice="A learner of your own says so by a method adopt(state).",
        )


def declared_with(learner: Learner, parameters: Mapping[str, Any]) -> Learner | None:
    """Return a learner as it was declared with other parameters; None where it cannot be made of this one."""
    if "declared_with" not in traits_of(learner).offers:
        return None
    try:
        return cast("Redeclared", learner).declared_with(as_json(parameters))
    except HeadraceError:
        return None


def as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as a log keeps them."""
    return dict(json.loads(json.dumps(parameters, default=str)))


def largest(learner: Learner) -> float:
    """Return the largest absolute number that a learner says it holds; 0 where it cannot say."""
    return cast("Bounded", learner).largest() if "largest" in traits_of(learner).offers else 0.0


def width_of(learner: Learner | None) -> int | None:
    """Return how many features a learner has seen; None where it has seen none, or does not say (``width``)."""
    width: int | None = getattr(learner, "width", None)  # optional: it changes with what is learned, and is no trait
    return width


def learner_text(learner: Learner) -> str:
    """Return a learner for people, in one line; of a class that says nothing of itself, its name and parameters."""
    if type(learner).__repr__ is not object.__repr__:
        return one_line(repr(learner))
    said = (f"{name}={value!r}" for name, value in learner.parameters().items())
    return one_line(f"{type(learner).__name__}({', '.join(said)})")


def one_line(text: str, longest: int = 200) -> str:
    """Return a description of a learner, or of a part of one, for a line that says more.

    >>> one_line(" SGDClassifier(alpha=0.1,   eta0=1.0)")
    'SGDClassifier(alpha=0.1, eta0=1.0)'
    """
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def largest_in(arrays: Iterable[Any]) -> float:
    """About the largest absolute number in some arrays, never less; infinite where one is NaN.

    Of float32 only whether all are finite; what holds no floats counts nothing.

    >>> largest_in([np.array([0.0, -3.0]), np.array(["a"]), None])
    3.0
    """
    found = 0.0
    for array in arrays:
        dtype = getattr(array, "dtype", None)
        if dtype is None or dtype.kind != "f" or not array.size:
            continue
        # One call for each: the root of the squares' sum is beyond a limit when a number is.
        total = float(np.vdot(array, array)) if dtype.itemsize == 8 else float(array.sum(dtype=np.float64))
        if not math.isfinite(total):
            return math.inf
        found = max(found, math.sqrt(total) if dtype.itemsize == 8 else 0.0)
    return found


def as_features(X: Array, width: int | None, dtype: npt.DTypeLike = np.float64) -> Array:
    """Check a feature matrix: two-dimensional, ``width`` columns, numeric, finite.

    Raises:
        BadRows: naming the first offending row.

    >>> as_features(np.array([[1, 2]]), 2).dtype.name
    'float64'
    """
    from headrace.errors import BadRows

    try:
        array = np.atleast_1d(np.asarray(X))
    except ValueError as error:
        raise BadRows(f"features must be a matrix: {error}") from error
    if array.dtype.kind not in "fiub":
        raise BadRows(f"features must be numbers, got {array.dtype}", rows=range(len(array)))
    if array.ndim != 2 or (width is not None and array.shape[1] != width):
        expected = "2 dimensions" if width is None else f"shape (n, {width})"
        raise BadRows(f"features must have {expected}, got {array.shape}", rows=range(len(array)))
    array = np.ascontiguousarray(array, dtype)
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise BadRows(f"row {bad[0]} has a feature that is NaN or infinite", rows=bad.tolist())
    return array
