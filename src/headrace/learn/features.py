"""From a batch's columns to the matrix a learner receives, and the reasons for rows that cannot be in it.

A feature is the name of a column of numbers, an `image`, a `vector` or a `category`; or one function makes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch
from headrace.learn.base import Learner, traits_of
from headrace.learn.category import Category, is_word
from headrace.learn.images import Image, Vector, refuse_rows
from headrace.plain_values import texts


@runtime_checkable
class Feature(Protocol):
    """A maker of some columns of the matrix from a column of the table."""

    @property
    def column(self) -> str:
        """The table's column."""
        ...

    @property
    def dtype(self) -> type:
        """``np.float32`` or ``np.float64``; a matrix all of whose features are float32 is one."""
        ...

    def block(self, array: pa.Array, valid: npt.NDArray[np.bool_], reasons: dict[int, str]) -> npt.NDArray[Any]:
        """Return features of shape (n, k); rows that cannot be made are marked."""
        ...

    def describe(self) -> Any:
        """JSON values: part of the model's fingerprint."""
        ...


Features = tuple["str | Feature", ...] | Callable[[Batch], Any]


def column_of(feature: str | Feature) -> str:
    """Return the table's column that a feature reads."""
    return feature if isinstance(feature, str) else feature.column


def feature_text(features: Features) -> str:
    """Return features for people: the columns, or the name of the function that makes them."""
    if callable(features):
        return getattr(features, "__qualname__", type(features).__qualname__)  # what is called need not be a function
    return ", ".join(map(column_of, features))


def depend_on_the_log(features: Features) -> bool:
    """Return whether rows that were learned decide what the columns of the matrix are."""
    return bool(growing(features) or unsized(features))


def growing(features: Features) -> list[Category]:
    """Return categories whose words the log decides."""
    return (
        []
        if callable(features)
        else [feature for feature in features if isinstance(feature, Category) and feature.grows]
    )


def unsized(features: Features) -> list[Vector]:
    """Return vectors whose length the log decides."""
    return (
        []
        if callable(features)
        else [feature for feature in features if isinstance(feature, Vector) and feature.size is None]
    )


def resolved(
    features: Features, words: Mapping[str, Sequence[str]], sizes: Mapping[str, int], *, refuse: bool
) -> Features:
    """Return features with what the log has decided so far.

    Args:
        words, sizes: by column.
        refuse: whether a word that has no column is refused; else it has zeros.
    """
    if not depend_on_the_log(features) or callable(features):
        return features
    found: list[str | Feature] = []
    for feature in features:
        if isinstance(feature, Category) and feature.grows:
            found.append(feature.knowing(words.get(feature.column, feature.words), refuse=refuse))
        elif isinstance(feature, Vector) and feature.size is None:
            found.append(replace(feature, size=sizes.get(feature.column)))
        else:
            found.append(feature)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Matrix:
    """Features of a batch.

    Attributes:
        X: shape (n, d), float64 or float32, C-contiguous; rows that are not valid hold anything.
        valid: shape (n,), which rows can be learned or predicted.
        reasons: row -> why it is not valid.
    """

    X: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    reasons: dict[int, str]


FUNCTION = ""
"""Stands for a function where sizes are noted by the names of columns."""


def matrix(
    batch: Batch,
    features: Features,
    target: str | None = None,
    *,
    missing: str = "reject",
    width: int | None = None,
) -> Matrix:
    """Return the feature matrix of a batch; a function never sees the target column.

    Args:
        width: how many columns a function makes, where that is known; rows for which it makes others are refused.
        missing: ``"pass"`` leaves NULL and NaN as NaN, where a number is missing; ``"reject"`` refuses the row.

    >>> m = matrix(Batch.of({"a": [1.5, None], "b": [2, 3]}), ("a", "b"))
    >>> m.X[m.valid].tolist(), m.reasons
    ([[1.5, 2.0]], {1: 'the feature «a» is NULL'})
    """
    passing = missing == "pass"
    if callable(features):
        return _asked(batch, features, target, passing, width)
    if not all(isinstance(feature, str) for feature in features):
        return _of_blocks(batch, features, missing)
    X = np.empty((batch.num_rows, len(features)))
    valid = np.ones(batch.num_rows, np.bool_)
    reasons: dict[int, str] = {}
    names = set(batch.schema.names)
    for j, name in enumerate(map(column_of, features)):
        if name not in names:
            refuse_rows(np.arange(batch.num_rows), f"there is no column «{name}»", valid, reasons)
            X[:, j] = 0.0
            continue
        X[:, j], null, wrong = numbers(batch.column(name), batch.schema.field(name))
        if wrong:
            refuse_rows(np.flatnonzero(~null), f"the feature «{name}» is {wrong}, not a number", valid, reasons)
        if null.any() and passing:
            X[null, j] = np.nan
        elif null.any():
            refuse_rows(np.flatnonzero(null), f"the feature «{name}» is NULL", valid, reasons)
    _refuse_not_finite(X, [column_of(feature) for feature in features], valid, reasons, passing)
    return Matrix(X, valid, reasons)


def _of_blocks(batch: Batch, features: tuple[str | Feature, ...], missing: str) -> Matrix:
    """Put numbers and richer features side by side."""
    valid = np.ones(batch.num_rows, np.bool_)
    reasons: dict[int, str] = {}
    blocks: list[npt.NDArray[Any]] = []
    for feature in features:
        if isinstance(feature, str):
            plain = matrix(batch, (feature,), missing=missing)
            blocks.append(plain.X)
            for row, reason in plain.reasons.items():
                reasons.setdefault(row, reason)
            valid &= plain.valid
        elif feature.column not in batch.schema.names:
            refuse_rows(np.arange(batch.num_rows), f"there is no column «{feature.column}»", valid, reasons)
            blocks.append(feature.block(pa.nulls(batch.num_rows, pa.null()), np.zeros(batch.num_rows, bool), {}))
        else:
            blocks.append(feature.block(batch.column(feature.column), valid, reasons))
    if len(blocks) == 1:
        return Matrix(np.ascontiguousarray(blocks[0]), valid, reasons)
    return Matrix(np.ascontiguousarray(np.concatenate(blocks, axis=1)), valid, reasons)


def numbers(array: pa.Array, field: pa.Field) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], str]:
    """Return a column as float64, where it is NULL, and the name of its type when that is no number."""
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
    return np.zeros(len(array)), null, _kind_of(field)


@dataclass(frozen=True, slots=True)
class Targets:
    """Features, targets and weights of some rows to learn.

    Attributes:
        y: shape (n,): numbers, or labels as the learner's classes have them; anything where a row is not valid.
        valid: shape (n,), which rows have a target that can be learned.
        reasons: row -> why it cannot be.
    """

    y: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]
    reasons: dict[int, str]


def targets_of(batch: Batch, name: str, learner: Learner) -> Targets:
    """Return the targets of a batch as a learner takes them.

    One that says neither its classes nor that it gives numbers may learn labels of any kind: it gets what is no number
    as text.
    """
    traits = traits_of(learner)
    classes, kind = traits.classes, traits.prediction_type
    found = targets(batch, name, classes)
    if classes is not None or (kind is not None and pa.types.is_floating(kind)) or name not in batch.schema.names:
        return found
    array, field = batch.column(name), batch.schema.field(name)
    if not _plain_numbers(array.slice(0, 0), field)[1]:
        return found
    labels = np.array([text or "" for text in texts(array)], str)
    valid = np.asarray(array.is_valid())
    return Targets(labels, valid, dict.fromkeys(np.flatnonzero(~valid).tolist(), f"the target «{name}» is NULL"))


def targets(batch: Batch, name: str, classes: Any = None) -> Targets:
    """Return the targets of a batch, as learning, training and scoring take them: numbers, or one of some classes.

    A label is a class where it is equal to one: the numeric 2.00 is the class 2, the text "2" is not.

    Args:
        classes: every label there is, sorted; None for numbers.

    >>> found = targets(Batch.of({"y": [1.5, None, float("inf")]}), "y")
    >>> found.y[found.valid].tolist(), found.reasons
    ([1.5], {1: 'the target «y» is NULL', 2: 'the target «y» is inf, no finite number'})
    """
    n = batch.num_rows
    valid, reasons = np.ones(n, np.bool_), dict[int, str]()
    if name not in batch.schema.names:
        refuse_rows(np.arange(n), f"there is no column «{name}»", valid, reasons)
        return Targets(np.zeros(n), valid, reasons)
    array, field = batch.column(name), batch.schema.field(name)
    if array.null_count:
        refuse_rows(np.flatnonzero(np.asarray(array.is_null())), f"the target «{name}» is NULL", valid, reasons)
    if classes is not None:
        return Targets(_labels(array, field, name, np.unique(np.asarray(classes)), valid, reasons), valid, reasons)
    y, wrong = _plain_numbers(array, field)
    if wrong:
        refuse_rows(np.flatnonzero(valid), f"the target «{name}» is {wrong}, not a number", valid, reasons)
    for row in np.flatnonzero(~np.isfinite(y) & valid).tolist() if y.dtype.kind == "f" else ():
        reasons[row] = f"the target «{name}» is {y[row]}, no finite number"
        valid[row] = False
    return Targets(y, valid, reasons)


def _plain_numbers(array: pa.Array, field: pa.Field) -> tuple[npt.NDArray[Any], str]:
    """Integers and booleans as they are, where none is NULL; everything else as float64."""
    if (pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)) and not array.null_count:
        return np.asarray(array.to_numpy(zero_copy_only=False)), ""
    y, _, wrong = numbers(array, field)
    return y, wrong


def _labels(
    array: pa.Array,
    field: pa.Field,
    name: str,
    classes: npt.NDArray[Any],
    valid: npt.NDArray[np.bool_],
    reasons: dict[int, str],
) -> npt.NDArray[Any]:
    """Return each row's class; rows whose label is none of them are refused."""
    if classes.dtype.kind in "biuf":
        values, wrong = _plain_numbers(array, field)
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        values, wrong = np.asarray(pc.fill_null(array, "").to_numpy(zero_copy_only=False), str), ""
    else:
        values, wrong = np.zeros(len(array), classes.dtype), _kind_of(field)
    codes = np.minimum(np.searchsorted(classes, values), len(classes) - 1)
    unknown = valid & (np.ones(len(array), np.bool_) if wrong else classes[codes] != values)
    if unknown.any():
        told = texts(array)
        for row in np.flatnonzero(unknown).tolist():
            kind = f" ({wrong})" if wrong else ""
            reasons[row] = f"the target «{name}» is {told[row]}{kind}, none of the classes"
        valid &= ~unknown
    return np.asarray(classes[codes])


def _kind_of(field: pa.Field) -> str:
    """Return a column's type as its database names it, or Arrow."""
    about = field.metadata or {}
    told = (about.get(DECLARED) or about.get(b"postgres.type", b"")).decode()
    return told or ("text" if pa.types.is_string(field.type) else str(field.type))


DECLARED = b"postgres.declared"
"""In a field's metadata: its type as a catalog names it, where the stream knows a number only."""


def unfit(feature: str | Feature, field: pa.Field) -> tuple[str, str] | None:
    """Say why a column can never be this feature, and what to write instead; None where it can.

    >>> unfit("born", pa.field("born", pa.date32()))[0]
    '«born» is date32[day], not a number'
    """
    name, kind, told = column_of(feature), field.type, _kind_of(field)
    if pa.types.is_null(kind):
        return None
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if isinstance(feature, Vector):
        return _unfit_vector(name, kind, told)
    if isinstance(feature, Image):
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            return None
        return f"the image «{name}» is {told}, no bytes", "Store images in a bytea column."
    if isinstance(feature, Category):
        if texts or is_word(kind):
            return None
        return f"the category «{name}» is {told}, no words", "Take a column of words, numbers or booleans."
    if not isinstance(feature, str) or not numbers(pa.array([], kind), field)[2]:
        return None
    return f"«{name}» is {told}, not a number", _instead(name, kind, told)


def unfit_target(learner: Learner, field: pa.Field) -> tuple[str, str] | None:
    """Say why no row of a column can be a learner's target, and what to write instead; None where one can."""
    traits = traits_of(learner)
    classes, kind = traits.classes, traits.prediction_type
    number = unfit(field.name, field)
    if classes is None:
        return number if kind is not None and pa.types.is_floating(kind) else None
    labels = np.asarray(classes)
    shown = ", ".join(map(repr, labels.tolist()[:3])) + (", …" if len(labels) > 3 else "")
    if labels.dtype.kind in "biuf":
        return number and (f"{number[0]}, and the classes are {shown}", "Say the classes as the column has them.")
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type) or pa.types.is_null(field.type):
        return None
    told = f"«{field.name}» is {_kind_of(field)}, and the classes are {shown}"
    example = "classes=[False, True]" if pa.types.is_boolean(field.type) else "classes=[0, 1] of numbers, for example"
    return told, f"Say the classes as the column has them: {example}."


def _unfit_vector(name: str, kind: pa.DataType, told: str) -> tuple[str, str] | None:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    plain = told.removesuffix("[]").partition("(")[0]
    written = told in ("text", "json", "jsonb") or told.startswith(("oid ", "character", "vector", "halfvec"))
    of_numbers = plain in _NUMBERS and told.endswith("[]")
    if listed or of_numbers or (pa.types.is_string(kind) and (written or "." in told)):
        return None
    return f"the vector «{name}» is {told}, no array of numbers", "Take an array of numbers, or pgvector's type."


_NUMBERS = frozenset(
    ("smallint", "integer", "bigint", "real", "double precision", "numeric", "oid", "text", "character varying")
)


def _instead(name: str, kind: pa.DataType, told: str) -> str:
    """Return what to write where a number is wanted."""
    computed = f".with_columns({name}_number={{}})"
    if told.endswith("[]") or pa.types.is_list(kind):
        return f'hr.vector("{name}", size=…) makes features of an array.'
    if pa.types.is_binary(kind):
        return f'hr.image("{name}", shape=(…)) makes features of bytes.'
    if told in ("text", "name", "uuid", '"char"') or told.startswith(("character", "bpchar", "oid ")):
        how = computed.format(f'pc.cast(pc.field("{name}"), "float64")')
        return f'hr.category("{name}") makes features of words. Where they are numbers in text: {how}'
    if told.startswith("domain"):
        how = computed.format(f'lambda batch: batch.column("{name}").cast("float64")')
        return f"The stream sends a domain's values as text. Where they are numbers: {how}"
    if pa.types.is_date(kind):
        how = computed.format(f'lambda batch: batch.column("{name}").cast("int32")')
        return f"Compute one: {how}, days since 1970."
    if pa.types.is_timestamp(kind):
        how = computed.format(f'lambda batch: batch.column("{name}").cast("int64")')
        return f"Compute one: {how}, microseconds since 1970."
    return f"Compute one: {computed.format('<function of a Batch>')}, or store a number beside it."


def _filled(array: pa.Array) -> npt.NDArray[np.float64]:
    whole = pc.fill_null(array, 0.0) if array.null_count else array
    return np.asarray(whole.to_numpy(zero_copy_only=False), np.float64)


def _refuse_not_finite(
    X: npt.NDArray[Any],
    names: Sequence[str],
    valid: npt.NDArray[np.bool_],
    reasons: dict[int, str],
    passing: bool = False,
) -> None:
    finite = ~np.isinf(X) if passing else np.isfinite(X)
    if finite.all():
        return
    for row in np.flatnonzero(~finite.all(axis=1) & valid).tolist():
        name = names[int(np.argmin(finite[row]))]
        reasons[row] = f"the feature «{name}» is {X[row, int(np.argmin(finite[row]))]}"
    valid &= finite.all(axis=1)


def _asked(
    batch: Batch, function: Callable[[Batch], Any], target: str | None, passing: bool, width: int | None
) -> Matrix:
    """Return what a function makes; one that fails is called row by row, so that only the rows at fault are refused."""
    try:
        return _from_function(batch, function, target, passing, width)
    except Exception as error:
        if batch.num_rows == 1:
            return Matrix(np.zeros((1, 1)), np.zeros(1, np.bool_), {0: f"{type(error).__name__}: {error}"})
    rows: list[Matrix] = []
    for i in range(batch.num_rows):
        rows.append(_asked(batch.slice(i, 1), function, target, passing, width))
        if width is None and rows[-1].valid[0]:
            width = rows[-1].X.shape[1]
    width = width or 1
    X = np.concatenate([row.X if row.valid[0] else np.zeros((1, width)) for row in rows])
    reasons = {i: row.reasons[0] for i, row in enumerate(rows) if row.reasons}
    return Matrix(X, np.array([bool(row.valid[0]) for row in rows]), reasons)


def _from_function(
    batch: Batch, function: Callable[[Batch], Any], target: str | None, passing: bool, width: int | None
) -> Matrix:
    shown = batch
    if target is not None and target in batch.schema.names:
        shown = Batch(batch.records.drop_columns([target]))
    X = np.ascontiguousarray(function(shown), np.float64)
    if X.ndim == 1:
        X = X.reshape(-1, 1)
    if X.ndim != 2 or len(X) != batch.num_rows:
        raise ValueError(f"the feature function gave shape {X.shape} for {batch.num_rows} rows")
    if width is not None and len(X) and X.shape[1] != width:
        raise ValueError(f"the feature function gave {X.shape[1]} columns, not {width}")
    valid = np.ones(len(X), np.bool_)
    reasons: dict[int, str] = {}
    _refuse_not_finite(X, [str(j) for j in range(X.shape[1])], valid, reasons, passing)
    return Matrix(X, valid, reasons)
