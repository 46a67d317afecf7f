"""From a batch's columns to the matrix a learner receives, and the reasons for rows that cannot be in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch

Features = "tuple[str, ...] | Callable[[Batch], Any]"


@dataclass(frozen=True, slots=True)
class Matrix:
    """Features of a batch.

    Attributes:
        X: shape (n, d), float64, C-contiguous; rows that are not valid hold anything.
        valid: shape (n,), which rows can be learned or predicted.
        reasons: row -> why it is not valid.
    """

    X: npt.NDArray[np.float64]
    valid: npt.NDArray[np.bool_]
    reasons: dict[int, str]


def matrix(batch: Batch, features: tuple[str, ...] | Callable[[Batch], Any], target: str | None = None) -> Matrix:
    """The feature matrix of a batch; a function never sees the target column.

    >>> m = matrix(Batch.of({"a": [1.5, None], "b": [2, 3]}), ("a", "b"))
    >>> m.X[m.valid].tolist(), m.reasons
    ([[1.5, 2.0]], {1: 'the feature «a» is NULL'})
    """
    if callable(features):
        return _from_function(batch, features, target)
    X = np.empty((batch.num_rows, len(features)))
    valid = np.ones(batch.num_rows, np.bool_)
    reasons: dict[int, str] = {}
    names = set(batch.schema.names)
    for j, name in enumerate(features):
        if name not in names:
            _refuse(np.arange(batch.num_rows), f"there is no column «{name}»", valid, reasons)
            X[:, j] = 0.0
            continue
        X[:, j], null, wrong = numbers(batch.column(name), batch.schema.field(name))
        if wrong:
            _refuse(np.flatnonzero(~null), f"the feature «{name}» is {wrong}, not a number", valid, reasons)
        if null.any():
            _refuse(np.flatnonzero(null), f"the feature «{name}» is NULL", valid, reasons)
    _refuse_not_finite(X, features, valid, reasons)
    return Matrix(X, valid, reasons)


def numbers(array: pa.Array, field: pa.Field) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], str]:
    """A column as float64, where it is NULL, and the name of its type when that is no number."""
    kind = array.type
    nothing = np.zeros(len(array), np.bool_)
    null = nothing if array.null_count == 0 else np.asarray(array.is_null())
    postgres_type = (field.metadata or {}).get(b"postgres.type", b"")
    if pa.types.is_float64(kind) and array.null_count == 0:
        return array.to_numpy(zero_copy_only=True), null, ""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        plain = array.cast(pa.int8()) if pa.types.is_boolean(kind) else array
        return _filled(plain.cast(pa.float64(), safe=False)), null, ""
    if pa.types.is_decimal(kind):
        # Through text: the nearest double of the decimal's digits, as PostgreSQL's own cast gives.
        return _filled(array.cast(pa.string()).cast(pa.float64())), null, ""
    if pa.types.is_string(kind) and postgres_type.startswith(b"numeric"):
        return _filled(array.cast(pa.float64())), null, ""
    if pa.types.is_null(kind):
        return np.zeros(len(array)), np.ones(len(array), np.bool_), ""
    word = "text" if pa.types.is_string(kind) else (postgres_type.decode() or str(kind))
    return np.zeros(len(array)), null, word


def _filled(array: pa.Array) -> npt.NDArray[np.float64]:
    whole = pc.fill_null(array, 0.0) if array.null_count else array
    return np.asarray(whole.to_numpy(zero_copy_only=False), np.float64)


def _refuse_not_finite(
    X: npt.NDArray[np.float64], names: Sequence[str], valid: npt.NDArray[np.bool_], reasons: dict[int, str]
) -> None:
    finite = np.isfinite(X)
    if finite.all():
        return
    for row in np.flatnonzero(~finite.all(axis=1) & valid).tolist():
        name = names[int(np.argmin(finite[row]))]
        reasons[row] = f"the feature «{name}» is {X[row, int(np.argmin(finite[row]))]}"
    valid &= finite.all(axis=1)


def _refuse(rows: npt.NDArray[np.int64], reason: str, valid: npt.NDArray[np.bool_], reasons: dict[int, str]) -> None:
    for row in rows.tolist():
        reasons.setdefault(row, reason)
    valid[rows] = False


def _from_function(batch: Batch, function: Callable[[Batch], Any], target: str | None) -> Matrix:
    shown = batch
    if target is not None and target in batch.schema.names:
        shown = Batch(batch.records.drop_columns([target]))
    X = np.ascontiguousarray(function(shown), np.float64)
    if X.ndim == 1:
        X = X.reshape(-1, 1)
    if X.ndim != 2 or len(X) != batch.num_rows:
        raise ValueError(f"the feature function gave shape {X.shape} for {batch.num_rows} rows")
    valid = np.ones(len(X), np.bool_)
    reasons: dict[int, str] = {}
    _refuse_not_finite(X, [str(j) for j in range(X.shape[1])], valid, reasons)
    return Matrix(X, valid, reasons)
