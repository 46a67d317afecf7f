"""What is common to the models of other libraries: classes, targets, and parameters as JSON values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Array
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.base import one_line


class Estimator:
    """The part of a learner that is the same for a model of any library.

    Attributes:
        classes: every label, sorted; None where the model gives a number or a cluster.
    """

    classes: Array | None
    _learned: bool
    _width: int | None

    @property
    def ready(self) -> bool:
        return self._learned

    @property
    def width(self) -> int | None:
        """Features it has seen."""
        return self._width

    @property
    def _labels(self) -> list[Any] | None:
        """The classes as JSON values."""
        return None if self.classes is None else list(self.classes.tolist())


def classes_of(classes: Iterable[Any] | None, name: str, *, classifier: bool) -> Array | None:
    """Return every label once, sorted; None of a model that is no classifier.

    Raises:
        DeclarationError: there are none for a classifier, fewer than two, or some for another model.
    """
    if not classifier:
        if classes is not None:
            raise DeclarationError(f"{name} is no classifier, and classes= is given", advice="Leave it out.")
        return None
    if classes is None:
        raise DeclarationError(
            f"{name} must know all labels before the first row", advice="Say classes=[…] in app.model(…)."
        )
    return sorted_classes(classes, name)


def sorted_classes(classes: Iterable[Any], name: str) -> Array:
    """Return every label once.

    Raises:
        DeclarationError: fewer than two.
    """
    found = np.unique(np.asarray(list(classes)))
    if len(found) < 2:
        raise DeclarationError(f"classes={found.tolist()} of {name}", advice="A classifier has two classes or more.")
    return found


def targets_of(y: Array | None, n: int, name: str) -> Array:
    """Return the targets of so many rows.

    Raises:
        BadRows: there are none.
    """
    if y is None or len(y) != n:
        raise BadRows(f"{name} learns from a target, and there is none")
    return np.asarray(y)


def codes_of(y: Array, classes: Array) -> npt.NDArray[np.int32]:
    """Return the places of labels among the sorted classes.

    Raises:
        BadRows: one is none of them.
    """
    text = classes.dtype.kind == "U"
    if y.dtype.kind == "O":
        y = y.astype(str) if text else np.array(y.tolist())
    if (y.dtype.kind == "U") != text or y.ndim != 1:
        raise BadRows(f"labels of type {y.dtype}, the classes are of type {classes.dtype}", rows=range(len(y)))
    codes = np.minimum(np.searchsorted(classes, y), len(classes) - 1)
    unknown = np.flatnonzero(classes[codes] != y)
    if len(unknown):
        raise BadRows(f"{y[unknown[0]].item()!r} is none of the classes", rows=unknown.tolist())
    return codes.astype(np.int32)


def numbers_of(y: Array, dtype: npt.DTypeLike) -> Array:
    """Return finite numbers of a type.

    Raises:
        BadRows: one is no number, or not finite.
    """
    if y.dtype.kind not in "fiub" or y.ndim != 1:
        raise BadRows(f"targets must be numbers, one a row, got {y.dtype} of shape {y.shape}", rows=range(len(y)))
    with np.errstate(over="ignore"):
        taken = y.astype(dtype)
    if not np.isfinite(taken).all():
        raise BadRows("a target that is no finite number", rows=np.flatnonzero(~np.isfinite(taken)).tolist())
    return taken


def class_name(value: Any) -> str:
    """Return the full name of a value's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def described(value: Any, options: Callable[[Any], Mapping[str, Any] | None]) -> Any:
    """Return a model as JSON values, those inside it included; functions are named, not compared.

    Args:
        options: gives a model's parameters; None of what is no model.
    """
    own = options(value)
    if own is not None:
        return {"class": class_name(value), **{name: described(option, options) for name, option in own.items()}}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): described(item, options) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((described(item, options) for item in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [described(item, options) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__qualname__", type(value).__qualname__)


def differences(before: Any, now: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield where two descriptions differ: the path of keys and places, the value before and the one now.

    >>> list(differences({"a": [1, {"b": 2}], "c": 0}, {"a": [1, {"b": 3}], "c": 0}))
    [(('a', '1', 'b'), 2, 3)]
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from differences(before.get(key), now.get(key), (*path, str(key)))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (was, is_) in enumerate(zip(before, now, strict=True)):
            yield from differences(was, is_, (*path, str(place)))
    elif before != now:
        yield path, before, now


def refuse_other_meaning(
    before: Mapping[str, Any], now: Mapping[str, Any], goes_on: Callable[[tuple[str, ...]], bool], name: str
) -> None:
    """Refuse parameters under which numbers that were learned with others mean something else.

    Args:
        goes_on: says of the path of a difference that it only decides how learning goes on.
        name: of the model, for the message.

    Raises:
        LearnError: naming the first of them, as it was and as it is declared.
    """
    for path, was, is_ in differences(before, now):
        if goes_on(path):
            continue
        if path[0] == "classes":
            raise LearnError(f"it has learned the classes {before['classes']}, and {now['classes']} are declared")
        raise LearnError(
            f"«{'.'.join(path)}» of {name} decides what the numbers it has learned mean: "
            f"{_short(was, is_)} -> {_short(is_, was)}"
        )


def _short(value: Any, other: Any) -> str:
    """Return a value in one line; of a text of several lines, those that the other does not have."""
    if isinstance(value, str) and isinstance(other, str) and "\n" in value + other:
        known = other.splitlines()
        value = " ".join(line.strip() for line in value.splitlines() if line not in known)
    return one_line("nothing" if value is None else str(value), 80)
