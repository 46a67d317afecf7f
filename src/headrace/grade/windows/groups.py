"""Rows told apart by the values of some columns: a number for each group, in the order of first appearance.

NULL is a group like any other, and so is NaN; 0.0 and -0.0 are one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.grade.windows.columns import from_bytes, to_bytes, wider
from headrace.plain_values import keys, of_instant_keys

Key = tuple[Hashable, ...]
_NAN = float("nan")  # one object: a dictionary finds it by identity


def group_codes(columns: Sequence[pa.Array], rows: int) -> tuple[Ints, Ints]:
    """Each row's group, shape (rows,), from 0 in the order of first appearance; and each group's first row.

    Args:
        columns: of one length, ``rows``; without any, all rows are one group.

    >>> codes, first = group_codes([pa.array(["b", "a", None, "b"])], 4)
    >>> codes.tolist(), first.tolist()
    ([0, 1, 2, 0], [0, 1, 2])
    """
    if not columns or rows < 2:
        return np.zeros(rows, np.int64), np.zeros(min(rows, 1), np.int64)
    codes, count = _coded(columns[0])
    for column in columns[1:]:
        more, also = _coded(column)
        codes, count = _coded(pa.array(codes * also + more))
    first = np.empty(count, np.int64)
    first[codes[::-1]] = np.arange(rows - 1, -1, -1)  # the last assignment, the first row, stays
    return codes, first


def _coded(column: pa.Array) -> tuple[Ints, int]:
    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # -0.0 becomes 0.0
    found = pc.dictionary_encode(column, null_encoding="encode")
    return np.asarray(found.indices).astype(np.int64), len(found.dictionary)


def group_keys(columns: Sequence[pa.Array], rows: Ints) -> list[Key]:
    """The values of some rows as keys of a dictionary; of a single row, that one.

    >>> group_keys([pa.array(["b", "a"]), pa.array([1, None])], np.array([1, 0]))
    [('a', None), ('b', 1)]
    """
    if not columns:
        return [()] * len(rows)
    if len(columns[0]) > 1:
        picked = pa.array(rows)
        columns = [column.take(picked) for column in columns]
    return list(zip(*(_key_values(column) for column in columns), strict=True))


def _key_values(column: pa.Array) -> list[Hashable]:
    """Values as Python has them; times, which it may not have, as their `keys`, and bytes for what is no text."""
    if _is_time(column.type):
        return keys(column)
    try:
        return [_hashed(one) for one in column.to_pylist()]
    except UnicodeDecodeError:
        return [
            None if one is None else one.decode(errors="surrogateescape")
            for one in column.cast(pa.large_binary()).to_pylist()
        ]


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) and not pa.types.is_interval(kind)


def _of_key_values(found: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The inverse of `_key_values`, of a column's type."""
    if _is_time(kind):
        return of_instant_keys(found, kind)
    try:
        return pa.array(found, kind)
    except UnicodeEncodeError:
        raw = [None if one is None else one.encode(errors="surrogateescape") for one in found]
        return pa.array(raw, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()).view(kind)


def _hashed(value: Any) -> Hashable:
    return value if value == value else _NAN


class KeyedBy:
    """The types of the columns that tell groups apart: their keys go to a state and come back as the same values.

    Where a column's type changes, the wider one is taken.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.schema = pa.schema([(name, pa.null()) for name in names])

    def meet(self, columns: Sequence[pa.Array], who: str) -> None:
        """Take the types of some rows' columns.

        Raises:
            DeclarationError: they do not go with those before.
        """
        types = [one.type for one in columns]
        if types != self.schema.types:
            named = zip(self.schema.names, self.schema.types, types, strict=True)
            self.schema = pa.schema([(name, wider(name, before, now, who)) for name, before, now in named])

    def dump(self, keys: Sequence[Key]) -> npt.NDArray[np.uint8]:
        """Keys as bytes."""
        values = zip(*keys, strict=True) if keys else [()] * len(self.schema)
        return to_bytes(
            [_of_key_values(one, kind) for one, kind in zip(values, self.schema.types, strict=True)], self.schema
        )

    def load(self, data: npt.ArrayLike, count: int) -> list[Key]:
        """The inverse of `dump`, for so many keys."""
        batch = from_bytes(data)
        self.schema = batch.schema
        return group_keys(batch.columns, np.arange(count))


def runs(values: npt.NDArray[Any]) -> Ints:
    """Where runs of equal values begin, and the length last, shape (runs + 1,).

    >>> runs(np.array([7, 7, 3, 7])).tolist(), runs(np.array([])).tolist()
    ([0, 2, 3, 4], [0])
    """
    if not len(values):
        return np.zeros(1, np.int64)
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]))
