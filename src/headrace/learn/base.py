"""The contract of a learner: what an online model is to the rest of the house.

The engine calls a learner from one thread at a time. It decides where batches are cut; what is done with a batch
is the learner's. Arrays are C-contiguous, of the declared dtype; ``X`` has shape (n, d).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Array

State = dict[str, "npt.NDArray[Any] | int | float | str | bool | None"]


@runtime_checkable
class Learner(Protocol):
    """An online model.

    Two optional pairs are offered by learners that can: ``unlearn(X, y)`` takes rows out of the model exactly;
    ``partial(X, y)`` and ``merge(parts)`` learn from sufficient statistics computed elsewhere.

    A learner may also say: ``splits`` (``"exact"`` where a batch learned in parts gives the same bits), ``part_rows``
    (parts of so many rows merge bit for bit), ``classes`` (every label there is; rows with another one are refused
    before it sees them), ``takes_sample_weight`` (its ``learn`` takes a third argument of that name, shape (n,)),
    ``cannot_learn`` (why not, in words, where it only answers), ``predict_proba(X)`` (shape (n, classes)),
    ``accepts_nan``, ``rowwise`` (a row's prediction has the same bits whatever rows are beside it), ``fit(X, y)``
    (trains anew, on these rows alone), ``prediction_type`` (the Arrow type of an answer, for answers before the first),
    ``width`` (features it has seen), ``pinned()`` (a context that is entered once around many calls, where each of them
    would enter it), ``largest()`` (the largest absolute number in what it has learned, infinite where one is NaN: a row
    that takes it beyond 1e150 is refused), ``stores_beginning`` (its state before the first row is another one in each
    process, and is stored before anything is learned). `headrace.testing.learners` checks it.

    Attributes:
        deterministic: False for a learner whose ``learn`` may give other bits when repeated; its state is then
            stored with every commit that publishes predictions of it.
    """

    deterministic: bool

    def learn(self, X: Array, y: Array | None = None) -> None:
        """Learn one cut. ``X`` may be empty (a recorded tick on an idle stream).

        Whatever it raises, the pipeline goes on: rows that fail are refused (`headrace.learn.handover`).

        Raises:
            BadRows: NaN, infinite values, wrong width or type; nothing has been learned.
        """
        ...

    def predict(self, X: Array) -> Array:
        """One prediction a row. Changes nothing; calls are made in fixed padded blocks of rows.

        Raises:
            BadRows: as for ``learn``.
        """
        ...

    @property
    def ready(self) -> bool:
        """Whether ``predict`` can answer: something was learned, or an initial state was given."""
        ...

    def parameters(self) -> dict[str, Any]:
        """The declared parameters as JSON values: part of the model's fingerprint."""
        ...

    def state(self) -> State:
        """Everything that ``learn`` has changed, as NumPy arrays and plain values; copies, not views."""
        ...

    def restore(self, state: State) -> None:
        """The inverse of ``state``: afterwards the learner continues bit for bit."""
        ...


class Classifier(Learner, Protocol):
    """A learner that says how likely each label is."""

    @property
    def classes(self) -> Array:
        """Every label, sorted."""
        ...

    def predict_proba(self, X: Array) -> Array:
        """Shape (n, classes), in the order of ``classes``."""
        ...


def offers_probabilities(learner: Learner) -> bool:
    """Whether it is a `Classifier`."""
    return callable(getattr(learner, "predict_proba", None)) and getattr(learner, "classes", None) is not None


def takes_sample_weight(learner: Learner) -> bool:
    """Whether ``learn`` takes ``sample_weight``; a learner may say so itself, in an attribute of this name."""
    told = getattr(learner, "takes_sample_weight", None)
    return "sample_weight" in inspect.signature(learner.learn).parameters if told is None else bool(told)


def scored_as(learner: Learner) -> str:
    """How its answers are compared with the truth: ``"classification"`` or ``"regression"``."""
    if getattr(learner, "classes", None) is not None:
        return "classification"
    kind = getattr(learner, "prediction_type", None)
    return "regression" if kind is None or pa.types.is_floating(kind) else "classification"


def pinned(learner: Learner | None) -> AbstractContextManager[None]:
    """What is entered around many calls of a learner."""
    enter = getattr(learner, "pinned", None)
    return nullcontext() if enter is None else enter()


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
