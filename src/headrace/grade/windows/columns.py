"""Columns that a window, an alarm or a drift detector asks of its rows, and columns as bytes of a state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.errors import DeclarationError, HeadraceError

NUMERIC = {b"postgres.type": b"numeric"}
_NUMBER = re.compile(
    r"\s*(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,6})?|[+-]?inf(?:inity)?|nan)\s*", re.ASCII | re.IGNORECASE
)
# PostgreSQL's numeric has up to 131,072 digits before the point.
_EXPONENT = 200_000


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_numeric(field: pa.Field) -> bool:
    """Whether a column is one of numbers that are held as their text: numeric without a scale."""
    return is_text(plain(field.type)) and (field.metadata or {}).get(b"postgres.type", b"").startswith(b"numeric")


def number_of(text: str) -> Decimal | None:
    """The number that a text is, exactly; None where it is none.

    >>> number_of("1.50"), number_of("-Infinity"), number_of("1_000"), number_of("many")
    (Decimal('1.50'), Decimal('-Infinity'), None, None)
    """
    if _NUMBER.fullmatch(text) is None:
        return None
    found = Decimal(text.strip())
    return found if not found.is_finite() or abs(found.adjusted()) <= _EXPONENT else None


def no_numbers(values: pa.Array, name: str) -> dict[int, str]:
    """Rows of a column of texts that are no numbers, and why; of other columns none: their type says what they are."""
    if not is_text(plain(values.type)):
        return {}
    texts = plain_values.values(values)
    wrong = {text for text in set(texts) - {None} if number_of(text) is None}
    return {row: f"«{name}» is {text!r}, which is no number" for row, text in enumerate(texts) if text in wrong}


def column_index(schema: pa.Schema, name: str, who: str) -> int:
    """Where a column is.

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
    """Columns that tell groups apart, dictionaries decoded.

    Raises:
        DeclarationError: as for `column_index`, or a column holds lists or the like.
    """
    columns = [records.column(column_index(records.schema, name, who)) for name in names]
    for name, one in zip(names, columns, strict=True):
        refuse_nested(name, one.type, who)
    return [one.cast(plain(one.type)) if pa.types.is_dictionary(one.type) else one for one in columns]


def refuse_nested(name: str, kind: pa.DataType, who: str) -> None:
    """Refuse groups by what is no plain value."""
    if pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise DeclarationError(f"{who} by «{name}», which is {kind}", advice="Group by plain values.")


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of a dictionary's values; another type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def wider(name: str, before: pa.DataType, now: pa.DataType, who: str) -> pa.DataType:
    """The type that holds both: int and float are float, null and any are any.

    Raises:
        DeclarationError: there is none.
    """
    if before == now:
        return now
    try:
        fields = [pa.schema([(name, one)]) for one in (before, now)]
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DeclarationError(
            f"the column «{name}» of {who} was {before} and is {now} now", advice="Cast it before."
        ) from error


def numbers(records: pa.RecordBatch, name: str, who: str) -> npt.NDArray[np.float64]:
    """A column as float64, null as NaN.

    Raises:
        DeclarationError: as for `column_index`, or it holds no numbers.

    >>> numbers(pa.record_batch({"error": [1, None]}), "error", "an alarm").tolist()
    [1.0, nan]
    """
    values = records.column(column_index(records.schema, name, who))
    values = values.cast(plain(values.type)) if pa.types.is_dictionary(values.type) else values
    kind = values.type
    if is_text(kind):
        return _of_texts(values, name)
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise DeclarationError(f"{who} on «{name}», which is {kind}", advice="It takes a column of numbers.")
    found = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)


def _of_texts(values: pa.Array, name: str) -> npt.NDArray[np.float64]:
    for reason in no_numbers(values, name).values():
        raise HeadraceError(reason)
    texts = plain_values.values(values)
    return np.array([np.nan if text is None else float(number_of(text) or 0) for text in texts], np.float64)


def exceeds(
    values: pa.Array, near: npt.NDArray[np.float64], bound: float, *, under: bool = False
) -> npt.NDArray[np.bool_]:
    """Which values are above a bound, to the last digit; with ``under`` below it.

    Args:
        values: a column; ``near``: its values as floats.

    >>> whole = pa.array([2**53, 2**53 + 1])
    >>> exceeds(whole, whole.to_numpy().astype(np.float64), float(2**53)).tolist()
    [False, True]
    """
    found: npt.NDArray[np.bool_] = near < bound if under else near > bound
    kind = plain(values.type)
    whole = pa.types.is_integer(kind) and abs(bound) < 2**53
    if whole or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or not np.isfinite(bound):
        return found
    for row in np.flatnonzero(np.abs(near - bound) <= 1e-9 * max(1.0, abs(bound))).tolist():
        exact: Any = plain_values.value(values[row])
        exact = number_of(exact) if isinstance(exact, str) else exact
        found[row] = exact < bound if under else exact > bound
    return found


def to_bytes(columns: Sequence[Any], schema: pa.Schema) -> npt.NDArray[np.uint8]:
    """Columns as an IPC stream of Arrow."""
    batch = pa.RecordBatch.from_arrays(list(columns), schema=schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(batch)
    return np.frombuffer(sink.getvalue(), np.uint8)


def from_bytes(data: npt.ArrayLike) -> pa.RecordBatch:
    """The inverse of `to_bytes`.

    >>> from_bytes(to_bytes([pa.array([1])], pa.schema([("x", pa.int64())]))).column("x").to_pylist()
    [1]
    """
    with pa.ipc.open_stream(pa.py_buffer(np.ascontiguousarray(data, np.uint8))) as reader:
        (batch,) = list(reader)
    return batch
