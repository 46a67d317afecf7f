"""Columns that a window, an alarm or a drift detector asks of its rows, and columns as bytes of a state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.errors import DeclarationError


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
    if pa.types.is_nested(kind):
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
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        values = values.cast(pa.int8())
    elif not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise DeclarationError(f"{who} on «{name}», which is {kind}", advice="It takes a column of numbers.")
    found = pc.cast(values, pa.float64(), safe=False)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)


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
