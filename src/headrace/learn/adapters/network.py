"""What is common to the networks of all libraries: what goes in, what their outputs mean, how a cut is split.

Sources: https://keras.io/api/losses/, https://docs.pytorch.org/docs/stable/nn.html#loss-functions
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.adapters.estimator import Estimator, codes_of, numbers_of, targets_of
from headrace.learn.base import LearnerTraits, Method, State, as_features

Coding = Literal["integers", "one_hot", "binary", "number"]
Scale = Literal["softmax", "sigmoid", "exp", "as they are"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The meaning of a network's outputs, and what its loss takes.

    Attributes:
        classes: every label, sorted; None where the output is a number.
        coding: labels as ``integers`` of shape (n,), ``one_hot`` (n, classes), ``binary`` 0 and 1 (n, 1), or a
            ``number`` (n, 1).
        scale: what makes probabilities of the outputs; None where nothing does.
        threshold: an output above it is the second of two classes, where there is one output.
    """

    classes: Array | None
    coding: Coding
    scale: Scale | None = None
    threshold: float = 0.5

    def check_number(self, outputs: int, name: str) -> None:
        """Raise DeclarationError where there are not as many outputs as the loss and the classes ask for."""
        if self.classes is None:
            if outputs != 1:
                raise DeclarationError(f"{name} has {outputs} outputs for one number", advice="End with one output.")
        elif self.coding == "binary":
            if outputs != 1 or len(self.classes) != 2:
                raise DeclarationError(
                    f"the loss of {name} tells two classes apart by one output; here are {len(self.classes)} classes "
                    f"and {outputs} outputs",
                    advice="Take a categorical cross-entropy, and an output for each class.",
                )
        elif outputs != len(self.classes):
            raise DeclarationError(
                f"{name} has {outputs} outputs for {len(self.classes)} classes",
                advice="End with an output for each class, and name every class in classes=[…].",
            )

    def targets(self, y: Array | None, n: int, name: str) -> Array:
        """Return labels or numbers as the loss takes them.

        Raises:
            BadRows: there are none, one is none of the classes, or no finite number.
        """
        y = targets_of(y, n, name)
        if self.classes is None:
            return numbers_of(y, np.float32).reshape(n, 1)
        codes = codes_of(y, self.classes)
        if self.coding == "integers":
            return codes
        if self.coding == "binary":
            return codes.astype(np.float32).reshape(n, 1)
        return np.eye(len(self.classes), dtype=np.float32)[codes]

    def predictions(self, outputs: Array) -> Array:
        """Return a label or a number a row, of outputs of shape (n, k)."""
        if self.classes is None:
            return outputs[:, 0].astype(np.float64)
        if self.coding == "binary":
            return np.asarray(self.classes[(outputs[:, 0] > self.threshold).astype(np.int64)])
        return np.asarray(self.classes[outputs.argmax(axis=1)])

    def probabilities(self, outputs: Array) -> Array:
        """Return probabilities of shape (n, classes), in the order of ``classes``."""
        outputs = outputs.astype(np.float64)
        if self.scale == "softmax":
            outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return np.asarray(outputs / outputs.sum(axis=1, keepdims=True))
        if self.scale == "sigmoid":
            outputs = np.exp(-np.logaddexp(0.0, -outputs))
        elif self.scale == "exp":
            outputs = np.exp(outputs)
        return np.hstack([1.0 - outputs, outputs]) if self.coding == "binary" else outputs


class Network(Estimator):
    """The part of a learner that is the same for a network of any library.

    Args:
        name: for messages.
        outputs: what its outputs mean.
        shape: of one row as the network takes it; the features of a row, flattened, are its numbers in C order.
        dtype: of the rows as the network takes them.
        batch_size: rows of one update; None: a cut is one update.
        epochs: how often a cut is learned.
        learned: whether it can predict already.
        offers: optional methods of the library's part.

    Raises:
        DeclarationError: an option that is no positive number.
    """

    def __init__(
        self,
        name: str,
        outputs: Outputs,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        *,
        batch_size: int | None,
        epochs: int,
        learned: bool,
        offers: frozenset[Method],
    ) -> None:
        for option, value in (("batch_size", batch_size), ("epochs", epochs)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise DeclarationError(f"{option}={value!r} of {name}", advice="Give a number of 1 or more.")
        self._name = name
        self._outputs = outputs
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._batch_size = batch_size
        self._epochs = epochs
        self._learned = learned
        self.classes = classes = outputs.classes
        self.traits = LearnerTraits(
            classes=classes,
            prediction_type=pa.float64() if classes is None else pa.array(classes).type,
            needs_target=True,
            takes_sample_weight=True,
            stores_beginning=True,  # its first weights are drawn, not declared: they are a part of what must be kept
            offers=offers if outputs.scale is None else offers | {"predict_proba"},
        )

    # -- of each library ------------------------------------------------------------------------------------------

    def _update(self, X: Array, y: Array, weights: Array | None) -> None:
        """Make one update by rows that were checked."""
        raise NotImplementedError

    def _forward(self, X: Array) -> Array:
        """Return outputs of shape (n, k) for rows that were checked."""
        raise NotImplementedError

    _declared: Mapping[str, Any]
    """The declaration to the library, as JSON values."""

    # -- the contract ---------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, Any]:
        """Return what is declared, as JSON values."""
        own = {"shape": list(self._shape), "batch_size": self._batch_size, "epochs": self._epochs}
        return copy.deepcopy({**self._declared, "classes": self._labels, **own})

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self._shape)

    def learn(self, X: Array, y: Array | None = None, sample_weight: Array | None = None) -> None:
        """Make one update, or one for each ``batch_size`` rows in their order; an empty batch changes nothing.

        Raises:
            BadRows: as the contract says, or a weight that is negative or not finite; nothing has been learned.
        """
        if not len(X):
            return
        rows = self._rows(X)
        targets = self._outputs.targets(y, len(rows), self._name)
        weights = None if sample_weight is None else _weights(sample_weight, len(rows))
        for _ in range(self._epochs):
            for some in _pieces(len(rows), self._batch_size):
                self._update(rows[some], targets[some], None if weights is None else weights[some])
        self._learned = True

    def predict(self, X: Array) -> Array:
        """Return one label or number a row."""
        return self._outputs.predictions(self._computed(X))

    def predict_proba(self, X: Array) -> Array:
        """Return probabilities of shape (n, classes), in the order of ``classes``: the model's own, uncalibrated.

        Offered for classes, unless the loss makes no probabilities of the outputs (hinge).
        """
        return self._outputs.probabilities(self._computed(X))

    def _computed(self, X: Array) -> Array:
        if not self.ready:
            raise LearnError(f"{self._name} has learned nothing yet", advice="pretrained=True, if it has elsewhere.")
        rows = self._rows(X)
        if not len(rows):
            return np.empty((0, 1 if self.classes is None else len(self.classes)), np.float32)
        return self._forward(rows)

    def _rows(self, X: Array) -> Array:
        if not len(X) and np.ndim(X) == 2:
            return np.empty((0, *self._shape), self._dtype)
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
            taken = as_features(X, self.width, self._dtype if self._dtype.kind == "f" else np.float64)
        if self._dtype.kind != "f":
            taken = _whole(taken, self._dtype, self._name)
        return taken.reshape(len(taken), *self._shape)


def row_shape(shape: Iterable[Any], name: str) -> tuple[int, ...]:
    """Return the shape of one row.

    Raises:
        DeclarationError: a size is open.
    """
    sizes = tuple(shape)
    if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise DeclarationError(f"{name} takes rows of shape {sizes}", advice="Say shape=(…) without open sizes.")
    return sizes


def matching(stored: Mapping[str, Any], own: Mapping[str, Any], name: str) -> State:
    """Return the stored values, where they fit a network's own.

    Raises:
        LearnError: they are of another network: other names, shapes or types.
    """
    missing, more = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
    if missing or more:
        raise LearnError(f"a stored state is not one of {name}: {missing} missing, {more} unknown to it")
    for key, value in own.items():
        if isinstance(value, np.ndarray):
            found = np.asarray(stored[key])
            if (found.shape, found.dtype) != (value.shape, value.dtype):
                raise LearnError(
                    f"«{key}» of a stored state has shape {found.shape} and type {found.dtype}, "
                    f"in {name} {value.shape} and {value.dtype}"
                )
    return dict(stored)


def _pieces(n: int, size: int | None) -> Iterator[slice]:
    size = size or n
    return (slice(start, start + size) for start in range(0, n, size))


def _weights(given: Array, n: int) -> npt.NDArray[np.float32]:
    weights = np.asarray(given, np.float32)
    if weights.shape != (n,):
        raise BadRows(f"{n} rows, and weights of shape {weights.shape}", rows=range(n))
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise BadRows(f"row {bad[0]} has the weight {weights[bad[0]]}", rows=bad.tolist())
    return weights


def _whole(X: Array, dtype: np.dtype[Any], name: str) -> Array:
    bad = np.flatnonzero((np.trunc(X) != X).any(axis=1))
    if len(bad):
        raise BadRows(f"{name} takes whole numbers ({dtype}), row {bad[0]} has others", rows=bad.tolist())
    return X.astype(dtype)
