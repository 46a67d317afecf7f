"""Columns of rows as operators ask for them: numbers, groups told apart by values, and columns as bytes of a state.

NULL is a group like any other, and so is NaN; 0.0 and -0.0 are one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arrays import Bytes, Floats, Ints, Mask
from headrace.batch import from_ipc, to_ipc
from headrace.errors import DeclarationError, HeadraceError
from headrace.plain_values import is_text

Key = tuple[Hashable, ...]
NUMERIC = {b"postgres.type": b"numeric"}
_NUMBER = re.compile(
    r"\s*(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,6})?|[+-]?inf(?:inity)?|nan)\s*", re.ASCII | re.IGNORECASE
)
# PostgreSQL's numeric has up to 131,072 digits before the point.
_EXPONENT = 200_000
_NAN = float("nan")  # one object: a dictionary finds it by identity


def is_numeric(field: pa.Field) -> bool:
    """Return whether a column is one of numbers that are held as their text: numeric without a scale."""
    return is_text(plain(field.type)) and (field.metadata or {}).get(b"postgres.type", b"").startswith(b"numeric")


def number_of(text: str) -> Decimal | None:
    """Return the number that a text is, exactly; None where it is none.

    >>> number_of("1.50"), number_of("-Infinity"), number_of("1_000"), number_of("many")
    (Decimal('1.50'), Decimal('-Infinity'), None, None)
    """
    if _NUMBER.fullmatch(text) is None:
        return None
    found = Decimal(text.strip())
    return found if not found.is_finite() or abs(found.adjusted()) <= _EXPONENT else None


def no_numbers(values: pa.Array, name: str) -> dict[int, str]:
    """Return rows of a column of texts that are no numbers, and why; of other columns none: their type says it."""
    if not is_text(plain(values.type)):
        return {}
    texts = plain_values.values(values)
    wrong = {text for text in set(texts) - {None} if number_of(text) is None}
    return {row: f"«{name}» is {text!r}, which is no number" for row, text in enumerate(texts) if text in wrong}


def column_index(schema: pa.Schema, name: str, who: str) -> int:
    """Return the index of a column.

    Raises:
        DeclarationError: there is none of that name, or several; ``who`` needs it.
    """
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        raise DeclarationError(
            f"{who} needs a column «{name}», and its rows have {'several' if found else 'none'}",
            advice=f"Their columns: {', '.join(schema.names)}.",
        )
    return int(found[0])


def group_columns(records: pa.RecordBatch, names: Sequence[str], who: str) -> list[pa.Array]:
    """Return the columns that tell groups apart, dictionaries decoded.

    Raises:
        DeclarationError: as for `column_index`, or a column holds lists or the like.
    """
    columns = [records.column(column_index(records.schema, name, who)) for name in names]
    for name, column in zip(names, columns, strict=True):
        refuse_nested(name, column.type, who)
    return [_decoded(column) for column in columns]


def _decoded(column: pa.Array) -> pa.Array:
    return column.cast(plain(column.type)) if pa.types.is_dictionary(column.type) else column


def refuse_nested(name: str, kind: pa.DataType, who: str) -> None:
    """Refuse groups by what is no plain value."""
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DeclarationError(f"{who} by «{name}», which is {kind}", advice="Group by plain values.")


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary's values; another type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def wider(name: str, before: pa.DataType, now: pa.DataType, who: str) -> pa.DataType:
    """Return the type that holds both: int and float are float, null and any are any.

    Raises:
        DeclarationError: there is none.
    """
    if before == now:
        return now
    try:
        schemas = [pa.schema([(name, kind)]) for kind in (before, now)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DeclarationError(
            f"the column «{name}» of {who} was {before} and is {now} now", advice="Cast it before."
        ) from error


def numbers(records: pa.RecordBatch, name: str, who: str) -> Floats:
    """Return a column as float64, null as NaN.

    Raises:
        DeclarationError: as for `column_index`, or it holds no numbers.

    >>> numbers(pa.record_batch({"error": [1, None]}), "error", "an alarm").tolist()
    [1.0, nan]
    """
    values = _decoded(records.column(column_index(records.schema, name, who)))
    kind = values.type
    if is_text(kind):
        return _of_texts(values, name)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise DeclarationError(f"{who} on «{name}», which is {kind}", advice="It takes a column of numbers.")
    found = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)


def _of_texts(values: pa.Array, name: str) -> Floats:
    for reason in no_numbers(values, name).values():
        raise HeadraceError(reason)
    texts = plain_values.values(values)
    return np.array([np.nan if text is None else float(number_of(text) or 0) for text in texts], np.float64)


def exceeds(values: pa.Array, near: Floats, bound: float, *, under: bool = False) -> Mask:
    """Return which values are above a bound, to the last digit; with ``under`` below it.

    Args:
        values: a column; ``near``: its values as floats.

    >>> whole = pa.array([2**53, 2**53 + 1])
    >>> exceeds(whole, whole.to_numpy().astype(np.float64), float(2**53)).tolist()
    [False, True]
    """
    found: Mask = near < bound if under else near > bound
    kind = plain(values.type)
    whole = pa.types.is_integer(kind) and abs(bound) < 2**53
    if whole or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or not np.isfinite(bound):
        return found
    for row in np.flatnonzero(np.abs(near - bound) <= 1e-9 * max(1.0, abs(bound))).tolist():
        exact: Any = plain_values.value(values[row])
        exact = number_of(exact) if isinstance(exact, str) else exact
        found[row] = exact < bound if under else exact > bound
    return found


def to_bytes(columns: Sequence[pa.Array], schema: pa.Schema) -> Bytes:
    """Return columns as an IPC stream of Arrow.

    >>> from_bytes(to_bytes([pa.array([1])], pa.schema([("x", pa.int64())]))).column("x").to_pylist()
    [1]
    """
    return np.frombuffer(to_ipc(pa.RecordBatch.from_arrays(list(columns), schema=schema)), np.uint8)


def from_bytes(data: npt.ArrayLike) -> pa.RecordBatch:
    """Return what `to_bytes` was given."""
    return from_ipc(np.ascontiguousarray(data, np.uint8))


# -- groups -----------------------------------------------------------------------------------------------------------


def group_codes(columns: Sequence[pa.Array], rows: int) -> tuple[Ints, Ints]:
    """Return each row's group, shape (rows,), from 0 in the order of first appearance; and each group's first row.

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
    """Return the values of some rows as keys of a dictionary; of a single row, that one.

    >>> group_keys([pa.array(["b", "a"]), pa.array([1, None])], np.array([1, 0]))
    [('a', None), ('b', 1)]
    """
    if not columns:
        return [()] * len(rows)
    if len(columns[0]) > 1:
        picked = pa.array(rows)
        columns = [column.take(picked) for column in columns]
    return list(zip(*(_key_values(column) for column in columns), strict=True))


def grouped(columns: Sequence[pa.Array], rows: int) -> list[tuple[Key, Ints]]:
    """Return the groups in the order of first appearance, each with the indexes of its rows.

    >>> [(key, found.tolist()) for key, found in grouped([pa.array(["b", "a", "b"])], 3)]
    [(('b',), [0, 2]), (('a',), [1])]
    """
    codes, first = group_codes(columns, rows)
    keys = group_keys(columns, first)
    if len(keys) <= 1:
        return [(key, np.arange(rows)) for key in keys]
    order = np.argsort(codes, kind="stable")
    return list(zip(keys, np.split(order, runs(codes[order])[1:-1]), strict=True))


def _key_values(column: pa.Array) -> list[Hashable]:
    """Return values as Python has them; times, which it may lack, as their `keys`; bytes for what is no text."""
    if _is_time(column.type):
        return plain_values.keys(column)
    try:
        return [value if value == value else _NAN for value in column.to_pylist()]
    except UnicodeDecodeError:
        return [
            None if value is None else value.decode(errors="surrogateescape")
            for value in column.cast(pa.large_binary()).to_pylist()
        ]


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_temporal(kind)) and not pa.types.is_interval(kind)


def _of_key_values(found: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return values of which `_key_values` made keys, as a column of a type."""
    if _is_time(kind):
        return plain_values.of_instant_keys(found, kind)
    try:
        return pa.array(found, kind)
    except UnicodeEncodeError:
        raw = [None if text is None else text.encode(errors="surrogateescape") for text in found]
        return pa.array(raw, pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()).view(kind)


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
        types = [column.type for column in columns]
        if types != self.schema.types:
            named = zip(self.schema.names, self.schema.types, types, strict=True)
            self.schema = pa.schema([(name, wider(name, before, now, who)) for name, before, now in named])

    def dump(self, keys: Sequence[Key]) -> Bytes:
        """Return keys as bytes."""
        values = zip(*keys, strict=True) if keys else [()] * len(self.schema)
        return to_bytes(
            [_of_key_values(value, kind) for value, kind in zip(values, self.schema.types, strict=True)], self.schema
        )

    def load(self, data: npt.ArrayLike, count: int) -> list[Key]:
        """Return what `dump` was given: so many keys."""
        batch = from_bytes(data)
        self.schema = batch.schema
        return group_keys(batch.columns, np.arange(count))


def runs(values: npt.NDArray[Any]) -> Ints:
    """Return where runs of equal values begin, and the length last, shape (runs + 1,).

    >>> runs(np.array([7, 7, 3, 7])).tolist(), runs(np.array([])).tolist()
    ([0, 2, 3, 4], [0])
    """
    if not len(values):
        return np.zeros(1, np.int64)
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1, [len(values)]))
