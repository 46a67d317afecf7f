"""Errors of predictions, row by row; and aggregates of a column, for windows.

Use it as ``hr.metrics``: ``metric=hr.metrics.relative_error``, ``.agg(ErrorAvg=hr.metrics.mean("error"))``. Of the
aggregates some are named like functions of Python: import the module, not its names.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arguments import checked
from headrace.arrays import Array
from headrace.errors import DeclarationError, HeadraceError
from headrace.grade.columns import number_of
from headrace.plain_values import is_text

Function = Callable[[Array, Array], Any]
KINDS = ("mean", "median", "quantile", "count", "min", "max", "sum", "std", "unique", "first", "last")
METRICS = ("relative_error", "absolute_error", "squared_error", "correct", "incorrect", "log_loss")
_EXACT = Context(prec=600_000, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
_EPSILON = float(np.finfo(np.float64).eps)


def __dir__() -> list[str]:
    return [*METRICS, *KINDS, "Metric", "Aggregate"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure for each row, of its prediction and its truth.

    Called with two arrays of one length, whose rows all have both values; gives an array of that length.

    Attributes:
        name: as it is shown, and as it stands in a model's fingerprint.
        function: (prediction, truth) -> an array of their length.
        greater_is_better: of two models the one with the greater mean is the better one.

    Raises:
        HeadraceError: the function does not give one value for each row.

    >>> relative_error(np.array([1.1, 2.0]), np.array([1.0, 4.0])).round(3).tolist()
    [0.1, 0.5]
    """

    name: str
    function: Function = field(repr=False)
    greater_is_better: bool = False

    def __call__(self, prediction: Array, truth: Array) -> Array:
        found = np.asarray(self.function(prediction, truth))
        if found.shape != (len(truth),):
            raise HeadraceError(
                f"the metric «{self.name}» was given {len(truth)} rows and gave an array of shape {found.shape}",
                advice="It takes the arrays (prediction, truth), and gives an array with a value for each row.",
            )
        return found


@dataclass(frozen=True, slots=True)
class LogLoss(Metric):
    """-log of the probability that the model gave to the truth, clipped as in scikit-learn's `log_loss`.

    The prediction is a matrix with a probability for each class, or an array with that of the second class (of 1, or
    true, where no classes are named). The truth is a class; where none are named, its index.

    Attributes:
        classes: in the order of the probabilities.

    >>> log_loss(np.array([0.9, 0.1]), np.array([1, 0])).round(4).tolist()
    [0.1054, 0.1054]
    >>> named = log_loss.of(["setosa", "virginica"])
    >>> named(np.array([[0.25, 0.75]]), np.array(["setosa"], object)).round(4).tolist()
    [1.3863]
    """

    classes: tuple[Any, ...] | None = None

    def of(self, classes: Sequence[Any]) -> LogLoss:
        """Return the same for a model with these classes."""
        named = tuple(classes)
        return replace(self, classes=named, function=lambda prediction, truth: _log_loss(prediction, truth, named))


def _numbers(prediction: Array, truth: Array, metric: str) -> tuple[Array, Array]:
    try:
        return prediction.astype(np.float64), truth.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise HeadraceError(
            f"the metric «{metric}» is of numbers, and the prediction or the truth is not one: {error}",
            advice="For classes there are hr.metrics.incorrect, hr.metrics.correct and hr.metrics.log_loss.",
        ) from error


def _relative_error(prediction: Array, truth: Array) -> Array:
    p, t = _numbers(prediction, truth, "relative_error")
    off = np.abs(p - t)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Nothing was missed where both are 0; anything else is infinitely far from 0.
        return np.asarray(np.where(off == 0, 0.0, off / np.abs(t)))


def _absolute_error(prediction: Array, truth: Array) -> Array:
    p, t = _numbers(prediction, truth, "absolute_error")
    return np.asarray(np.abs(p - t))


def _squared_error(prediction: Array, truth: Array) -> Array:
    p, t = _numbers(prediction, truth, "squared_error")
    return (p - t) ** 2


def _correct(prediction: Array, truth: Array) -> Array:
    same = np.asarray(prediction == truth)
    # A vector is correct where all of it is.
    if same.ndim > 1:
        same = np.asarray(same.all(axis=tuple(range(1, same.ndim))))
    return same.astype(np.float64)


def _incorrect(prediction: Array, truth: Array) -> Array:
    return 1.0 - _correct(prediction, truth)


def _log_loss(prediction: Array, truth: Array, classes: tuple[Any, ...] | None) -> Array:
    try:
        chances = np.asarray(prediction.tolist(), np.float64)
    except (TypeError, ValueError) as error:
        raise HeadraceError(
            f"the metric «log_loss» is of probabilities, and the prediction holds none: {error}",
            advice="Predict with proba=True, and grade the column «probability».",
        ) from error
    if not len(truth):
        return np.empty(0)
    if chances.ndim == 1:
        chances = np.stack([1.0 - chances, chances], axis=1)
    index = _class_index(truth, classes, chances.shape[1])
    chosen = chances[np.arange(len(truth)), index]
    return np.asarray(-np.log(np.clip(chosen, _EPSILON, 1.0 - _EPSILON)))


def _class_index(truth: Array, classes: tuple[Any, ...] | None, width: int) -> npt.NDArray[np.int64]:
    known = {label: i for i, label in enumerate(range(width) if classes is None else classes)}
    index = np.array([known.get(label, -1) for label in truth.tolist()], np.int64)
    if len(known) != width or (index < 0).any():
        strange = {label for label in truth.tolist() if label not in known}
        raise HeadraceError(
            f"the metric «log_loss» has {width} probabilities for {len(known)} classes"
            + (f", and the truth holds {builtins.min(map(repr, strange))} besides" if strange else ""),
            advice="Name the classes in the order of the probabilities: hr.metrics.log_loss.of([…]).",
        )
    return index


relative_error = Metric("relative_error", _relative_error)
"""How far a prediction is off, as a share of the truth: 0 where both are 0, infinite where only the truth is."""
absolute_error = Metric("absolute_error", _absolute_error)
"""How far a prediction is off, in the unit of the truth."""
squared_error = Metric("squared_error", _squared_error)
"""The square of how far a prediction is off; its mean is the MSE."""
incorrect = Metric("incorrect", _incorrect)
"""1 where the class is wrong, else 0; its mean is the error rate."""
correct = Metric("correct", _correct, greater_is_better=True)
"""1 where the class is right, else 0; its mean is the accuracy."""
log_loss = LogLoss("log_loss", lambda prediction, truth: _log_loss(prediction, truth, None))
"""-log of the probability that the model gave to the truth: see `LogLoss`."""


def as_metric(metric: Any, *, greater_is_better: bool = False) -> Metric:
    """Return a metric of ours as it is; a user's function (prediction, truth) -> array as a metric with its name.

    Raises:
        DeclarationError: it is neither.

    >>> def too_low(prediction, truth):
    ...     return truth > prediction
    >>> as_metric(too_low).name, as_metric(too_low)(np.array([1]), np.array([2])).tolist()
    ('too_low', [True])
    """
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        raise DeclarationError(
            f"a metric is one of hr.metrics or a function (prediction, truth) -> array, not {metric!r}",
            advice="For example metric=hr.metrics.absolute_error.",
        )
    name = getattr(metric, "__name__", type(metric).__name__)
    return Metric(str(name), metric, greater_is_better=greater_is_better)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """An aggregate of a column over the rows of a window, in their order. Nulls are left out.

    Attributes:
        kind: one of `KINDS`.
        column: its name; None only for a count, which then counts rows.
        q: of a quantile, between 0 and 1.
        numeric: texts of the column are numbers, which ``min`` and ``max`` compare and ``unique`` tells apart.

    >>> mean("error").of(pa.array([0.1, None, 0.3])), unique("Species").of(pa.array(["b", "a", "b"]))
    (0.2, ['b', 'a'])
    """

    kind: str
    column: str | None = None
    q: float | None = None
    numeric: bool = field(default=False, compare=False, repr=False)

    def of_numbers(self) -> Aggregate:
        """Return the same of a column whose texts are numbers."""
        return replace(self, numeric=True)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DeclarationError(f"no aggregate is called {self.kind!r}", advice=f"There are {', '.join(KINDS)}.")
        if self.column is None and self.kind != "count":
            raise DeclarationError(
                f"the aggregate {self.kind} needs a column", advice=f'hr.metrics.{self.kind}("error")'
            )
        if (self.kind == "quantile") != (self.q is not None) or not 0 <= (self.q or 0) <= 1:
            raise DeclarationError(
                f"a quantile has a q between 0 and 1, and nothing else has: {self.kind}, q={self.q}",
                advice='hr.metrics.quantile("error", 0.9)',
            )

    def of(self, array: pa.Array) -> Any:
        """Return the aggregate of an array, as a Python value; None of no values (0 of a count, [] of a set).

        The same rows in the same order give the same bits, and sums and means are rounded once.

        Raises:
            HeadraceError: it is one of numbers, and the array holds none.
        """
        if self.kind == "count":
            return len(array) if self.column is None else len(array) - array.null_count
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        values = array.drop_null() if array.null_count else array
        if self.numeric and self.kind in ("unique", "min", "max"):
            return self._of_texts(values)
        if self.kind == "unique":
            return plain_values.values(pc.unique(values))
        if not len(values):
            return None
        if self.kind in ("first", "last"):
            return plain_values.value(values[0 if self.kind == "first" else len(values) - 1])
        if self.kind in ("min", "max"):
            return plain_values.value(pc.min_max(values)[self.kind])
        return self._of_numbers(values)

    def _of_numbers(self, values: pa.Array) -> Any:
        kind = values.type
        if is_text(kind):
            return self._of_decimals(_decimals(values, self.column))
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or _is_counted(kind)):
            raise HeadraceError(
                f"the {self.kind} of «{self.column}» is one of numbers, and the column is {kind}",
                advice="hr.metrics.count, unique, first, last, min and max are of any type.",
            )
        if pa.types.is_decimal(kind) and self.kind in ("sum", "mean"):
            total = _decimal_sum(plain_values.values(values))
            return total if self.kind == "sum" else _over(total, len(values))
        if self.kind == "sum":
            return _sum(values)
        if self.kind == "mean":
            return float(_sum(values) / len(values))
        return self._of_floats(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    def _of_floats(self, numbers: Array) -> float | None:
        with np.errstate(all="ignore"):
            if self.kind == "std":
                return _std(numbers)
            return float(np.quantile(numbers, 0.5 if self.q is None else self.q))

    def _of_decimals(self, numbers: list[Decimal]) -> Any:
        """Return the aggregate of numbers that are held as their text: a sum is text too, exactly."""
        if self.kind == "sum":
            return f"{_decimal_sum(numbers):f}"
        if self.kind == "mean":
            return _over(_decimal_sum(numbers), len(numbers))
        return self._of_floats(np.array([float(number) for number in numbers]))

    def _of_texts(self, values: pa.Array) -> Any:
        """Return texts that are numbers, by their values; NaN is above all others, as PostgreSQL has it."""
        texts: list[str] = plain_values.values(values)
        numbers = _decimals(values, self.column)
        if self.kind == "unique":
            first: dict[Any, str] = {}
            for number, text in zip(numbers, texts, strict=True):
                first.setdefault(plain_values.number_key(number), text)
            return list(first.values())
        by = [(number.is_nan(), Decimal(0) if number.is_nan() else number) for number in numbers]
        return texts[by.index(builtins.min(by) if self.kind == "min" else builtins.max(by))]


def _is_counted(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_decimal(kind))


def _sum(values: pa.Array) -> Any:
    """Return the sum, rounded once; exact for whole numbers."""
    numbers = values.to_pylist()
    if not pa.types.is_floating(values.type):
        return builtins.sum(numbers)
    return _float_sum(numbers)


def _decimals(values: pa.Array, name: str | None) -> list[Decimal]:
    found = [number_of(text) for text in plain_values.values(values)]
    if any(number is None for number in found):
        raise HeadraceError(f"«{name}» holds texts that are no numbers")
    return [number for number in found if number is not None]


def _decimal_sum(numbers: list[Decimal]) -> Decimal:
    """Return the sum, to the last digit."""
    total = Decimal(0)
    for number in numbers:
        total = _EXACT.add(total, number)
    return total


def _over(total: Decimal, count: int) -> float:
    """Return a mean, rounded once."""
    if not total.is_finite():
        return float(total)
    try:
        return float(Fraction(total) / count)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def _float_sum(numbers: list[float]) -> float:
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        # Beyond the largest float, or infinities of both signs: plain addition says inf or NaN.
        return builtins.sum(numbers)


def _std(numbers: Array) -> float | None:
    """Return that of a sample (divided by n - 1), as SQL's STDDEV; None of one value."""
    n = len(numbers)
    if n < 2:
        return None
    away = numbers - _float_sum(numbers.tolist()) / n
    return math.sqrt(_float_sum((away * away).tolist()) / (n - 1))


@checked
def mean(column: str) -> Aggregate:
    """Return the mean, rounded once."""
    return Aggregate("mean", column)


@checked
def median(column: str) -> Aggregate:
    """Return the median; of an even number of values the mean of the two in the middle."""
    return Aggregate("median", column)


@checked
def quantile(column: str, q: float) -> Aggregate:
    """Return a quantile, interpolated linearly as NumPy's and as SQL's PERCENTILE_CONT."""
    return Aggregate("quantile", column, q)


@checked
def count(column: str | None = None) -> Aggregate:
    """Return how many rows; of a column, how many values."""
    return Aggregate("count", column)


@checked
def min(column: str) -> Aggregate:
    """Return the smallest value."""
    return Aggregate("min", column)


@checked
def max(column: str) -> Aggregate:
    """Return the largest value."""
    return Aggregate("max", column)


@checked
def sum(column: str) -> Aggregate:
    """Return the sum, rounded once."""
    return Aggregate("sum", column)


@checked
def std(column: str) -> Aggregate:
    """Return the standard deviation of a sample, as SQL's STDDEV."""
    return Aggregate("std", column)


@checked
def unique(column: str) -> Aggregate:
    """Return the values, each once, in the order in which they came first."""
    return Aggregate("unique", column)


@checked
def first(column: str) -> Aggregate:
    """Return the first value."""
    return Aggregate("first", column)


@checked
def last(column: str) -> Aggregate:
    """Return the last value."""
    return Aggregate("last", column)
