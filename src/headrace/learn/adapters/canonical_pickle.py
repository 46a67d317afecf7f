"""Pickles that are equal for equal object graphs, in every process.

A plain pickle depends on which equal texts happen to be one object, and on the order of sets. Here texts are told apart
by value, sets are sorted, tuples are never shared, and arrays and random generators are written as their numbers.
"""

from __future__ import annotations

import io
import pickle
import random
import sys
from array import array
from collections import ChainMap
from copyreg import dispatch_table
from typing import Any, ClassVar

import numpy as np

_OPS: Any = pickle
_Python: Any = _OPS._Pickler
_UNDRAWN = random.Random(0)
_DEEP = 100_000  # trees and neighbours' graphs nest deeper than Python's limit of 1000


def dumps(value: Any, *, but_random: bool = False) -> bytes:
    """Return the pickle of a graph of objects.

    Args:
        value: what is to be written.
        but_random: leave the states of random generators out, to compare models apart from them.

    >>> dumps({"b", "a"}) == dumps({"a", "b"})
    True
    >>> pickle.loads(dumps([np.ones(2), {3, 1}]))
    [array([1., 1.]), {1, 3}]
    """
    stream = io.BytesIO()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, _DEEP))
    try:
        _Pickler(stream, but_random).dump(value)
    finally:
        sys.setrecursionlimit(limit)
    return stream.getvalue()


def _random(kind: type[random.Random], version: int, words: bytes, gauss: float | None) -> random.Random:
    made = kind()
    made.setstate((version, tuple(array("I", words)), gauss))
    return made


def _array(dtype: str, shape: tuple[int, ...], data: bytes) -> Any:
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _number(dtype: str, data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


def _reduced_random(generator: random.Random) -> Any:
    version, words, gauss = generator.getstate()
    return _random, (type(generator), version, array("I", words).tobytes(), gauss)


def _reduced_array(value: Any) -> Any:
    if value.dtype.hasobject or value.dtype.names:
        return value.__reduce__()
    if isinstance(value, np.generic):
        return _number, (value.dtype.str, value.tobytes())
    return _array, (value.dtype.str, value.shape, value.tobytes())


_NUMBERS = {kind: _reduced_array for kind in {np.ndarray, *np.sctypeDict.values()} if kind is not np.object_}
_STATES: dict[type, Any] = {random.Random: _reduced_random}
_NONE: dict[type, Any] = {kind: lambda _: (int, ()) for kind in (random.Random, np.random.RandomState)}


def _reduced_distribution(value: Any) -> Any:
    """Reduce an object as pickle does; generators of trees' distributions, open and never drawn from, are all alike."""
    made, arguments, state, *more = value.__reduce_ex__(4)
    if getattr(value, "seed", None) is None and isinstance(state, dict) and "_rng" in state:
        state = {**state, "_rng": _UNDRAWN}
    return made, arguments, state, *more


def _distributions() -> dict[type, Any]:
    from river import proba

    return {kind: _reduced_distribution for kind in vars(proba).values() if isinstance(kind, type)}


class _Pickler(_Python):  # type: ignore[misc]  # typeshed hides it
    """The one in Python: the one in C asks nobody about texts, sets and tuples."""

    dispatch: ClassVar[Any] = dict(_Python.dispatch)

    def __init__(self, stream: io.BytesIO, but_random: bool) -> None:
        super().__init__(stream, 4)
        self.dispatch_table: Any = ChainMap(
            _NONE if but_random else _STATES, _NUMBERS, _distributions(), dispatch_table
        )
        self._known: dict[str | bytes, Any] = {}

    def _save_by_value(self, value: Any) -> None:
        one = self._known.setdefault(value, value)
        found = self.memo.get(id(one))
        if found is not None:
            self.write(self.get(found[0]))
        else:
            _Python.dispatch[type(one)](self, one)

    def _save_tuple(self, value: tuple[Any, ...]) -> None:
        _Python.dispatch[tuple](self, value)
        found = self.memo.get(id(value))
        if found is not None:  # written again when it is met again, under its number nobody asks for
            del self.memo[id(value)]
            self.memo[("tuple", found[0])] = found

    def _save_set(self, value: set[Any]) -> None:
        self.write(_OPS.EMPTY_SET)
        self.memoize(value)
        self.write(_OPS.MARK)
        for item in _sorted(value):
            self.save(item)
        self.write(_OPS.ADDITEMS)

    def _save_frozenset(self, value: frozenset[Any]) -> None:
        self.save_reduce(frozenset, (_sorted(value),), obj=value)

    dispatch[str] = dispatch[bytes] = _save_by_value
    dispatch[tuple] = _save_tuple
    dispatch[set] = _save_set
    dispatch[frozenset] = _save_frozenset


def _sorted(values: set[Any] | frozenset[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda item: (type(item).__qualname__, repr(item)))
