"""Dataclasses as flat values, by the types of their fields, and back.

Flat values are what `headrace.learn.state` stores. What JSON can hold is one text, ``meta``; arrays, rows and learners'
states stand beside it, under the paths of their fields. A field that is not there is its default: a class may get
fields, and what was stored before can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.batch import Batch, from_ipc, to_ipc
from headrace.errors import LogCorrupt
from headrace.learn.base import Learner
from headrace.position import Position

T = TypeVar("T")
SHARED = {"shared": True}
"""Metadata of a field that is the same object everywhere: it is given when a value is loaded."""
APART = {"apart": True}
"""Metadata of a field that is not stored, or not by its type."""


def dump(value: Any) -> dict[str, Any]:
    """Return a dataclass as flat values.

    >>> @dataclass
    ... class Pair:
    ...     count: int
    ...     at: Position | None
    >>> dump(Pair(3, Position(10, 1)))
    {'meta': '{"count": 3, "at": "0/A:1"}'}
    """
    flat: dict[str, Any] = {}
    flat["meta"] = json.dumps(_of_fields(type(value)).dump(value, "", flat))
    return flat


def load(kind: type[T], flat: Mapping[str, Any], *, learner: Callable[[], Learner], shared: object = None) -> T:
    """Return the value that `dump` was given.

    Args:
        learner: makes a learner as it was declared; its state is restored.
        shared: what fields with the metadata ``SHARED`` are.
    """
    found: T = _of_fields(kind).load(json.loads(flat["meta"]), "", _Stored(flat, learner, shared))
    return found


def below(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class _Stored:
    """The parts that a state is loaded from; see `load`."""

    flat: Mapping[str, Any]
    learner: Callable[[], Learner]
    shared: object


@dataclass(frozen=True, slots=True)
class _Codec:
    """The stored form of values of one type; None is stored as it is.

    Attributes:
        dump: takes a value, its path and the flat values, which get what JSON cannot hold; returns what JSON holds.
        load: takes what JSON held, the path and what is loaded from.
    """

    dump: Callable[[Any, str, dict[str, Any]], Any]
    load: Callable[[Any, str, _Stored], Any]


def _codec_of(kind: Any) -> _Codec | None:
    """Return how values of a type are stored; None where JSON holds them as they are."""
    parts = get_args(kind)
    if NoneType in parts:
        return _codec_of(parts[0])
    if kind in _CODECS:
        return _CODECS[kind]
    if is_dataclass(kind):
        return _of_fields(kind)
    origin = get_origin(kind)
    if origin is np.ndarray:
        return _ARRAY
    if origin is tuple:
        return _TUPLE
    inner = _codec_of(parts[0]) if origin is list else None
    return None if inner is None else _items(inner)


def _of_fields(kind: Any) -> _Codec:
    if kind not in _CODECS:
        _CODECS[kind] = _compiled(kind)
    return _CODECS[kind]


def _compiled(kind: Any) -> _Codec:
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind) if field.metadata not in (APART, SHARED)]
    codecs = [(name, _codec_of(hints[name])) for name in names]
    shared = [field.name for field in fields(kind) if field.metadata == SHARED]
    absent = object()

    def dump(value: Any, at: str, flat: dict[str, Any]) -> dict[str, Any]:
        return {
            name: own if codec is None or own is None else codec.dump(own, f"{at}{name}.", flat)
            for name, codec in codecs
            for own in (getattr(value, name),)
        }

    def load(plain: Any, at: str, stored: _Stored) -> Any:
        given = {
            name: own if codec is None or own is None else codec.load(own, f"{at}{name}.", stored)
            for name, codec in codecs
            if (own := plain.get(name, absent)) is not absent
        }
        return kind(**given, **dict.fromkeys(shared, stored.shared))

    return _Codec(dump, load)


def _items(codec: _Codec) -> _Codec:
    return _Codec(
        lambda value, at, flat: [codec.dump(item, f"{at}{i}.", flat) for i, item in enumerate(value)],
        lambda plain, at, stored: [codec.load(item, f"{at}{i}.", stored) for i, item in enumerate(plain)],
    )


def _beside(value: Any, at: str, flat: dict[str, Any]) -> bool:
    flat[at[:-1]] = value
    return True


def _dump_learner(learner: Learner, at: str, flat: dict[str, Any]) -> bool:
    flat.update({at + name: value for name, value in learner.state().items()})
    return True


def _load_learner(_: Any, at: str, stored: _Stored) -> Learner:
    learner = stored.learner()
    learner.restore(below(at, stored.flat))
    return learner


def as_bytes(records: pa.RecordBatch) -> npt.NDArray[np.uint8]:
    """Return rows as a state holds them."""
    return np.frombuffer(to_ipc(records), np.uint8).copy()


def from_bytes(data: npt.NDArray[np.uint8]) -> pa.RecordBatch:
    """Return rows that a state holds; the inverse of `as_bytes`."""
    try:
        return from_ipc(np.ascontiguousarray(data))
    except pa.ArrowInvalid as error:
        raise LogCorrupt(f"rows in a stored state cannot be read: {error}") from error


_ARRAY = _Codec(_beside, lambda _, at, stored: stored.flat[at[:-1]])
_TUPLE = _Codec(lambda value, *_: value, lambda plain, *_: tuple(plain))
_CODECS: dict[Any, _Codec] = {
    Position: _Codec(lambda value, *_: str(value), lambda plain, *_: Position.parse(plain)),
    Learner: _Codec(_dump_learner, _load_learner),
    Batch: _Codec(
        lambda value, at, flat: _beside(as_bytes(value.records), at, flat),
        lambda _, at, stored: Batch(from_bytes(np.asarray(stored.flat[at[:-1]], np.uint8))),
    ),
}
