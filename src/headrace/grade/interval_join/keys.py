"""Keys: what a prediction and its label share, by value; and as they are stored, bytes that give the same values back.

Values match whatever their types are, as `headrace.plain_values.keys` says: 1 and 1.0, a numeric with a scale and
without one, an instant with a zone and without, char(n) with its padding and text. NaN matches NaN, and NULL nothing.
Whole numbers, text, bytes and floats are stored as an Arrow column, tuples as a column for each place. What does not
fit one column (mixed types, whole numbers beyond 64 bits) is stored as JSON that says each value's type.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import plain_values

Convert = Callable[[str], Any]
_TYPES: dict[type, pa.DataType] = {
    int: pa.int64(),
    str: pa.large_string(),
    bytes: pa.large_binary(),
    float: pa.float64(),
    bool: pa.bool_(),
}
_JSON = b"headrace.keys"
# A number of more digits equals none of another type.
_DIGITS = 1_000
_KINDS: tuple[tuple[str, tuple[Callable[[pa.DataType], bool], ...]], ...] = (
    ("a truth value", (pa.types.is_boolean,)),
    ("a number", (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)),
    ("text", (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
    ("bytes", (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)),
    ("a day or an instant", (pa.types.is_timestamp, pa.types.is_date)),
    ("a time of day", (pa.types.is_time,)),
    ("a duration", (pa.types.is_duration, pa.types.is_interval)),
)


def kind_of(field: pa.Field) -> str | None:
    """What a column's values are, for a key; those of two kinds never match. None where there are only NULLs.

    >>> kind_of(pa.field("id", pa.int64())), kind_of(pa.field("id", pa.string(), metadata={"postgres.type": "numeric"}))
    ('a number', 'a number')
    """
    kind = field.type
    while isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        kind = kind.storage_type
    if isinstance(kind, pa.UuidType):
        return "text"
    kind = kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind
    if pa.types.is_null(kind):
        return None
    if converter(field) is _number:
        return "a number"
    return next((word for word, tests in _KINDS if any(test(kind) for test in tests)), str(kind))


def converter(field: pa.Field) -> Convert | None:
    """How text of a column becomes its key; None where it is its own."""
    declared = (field.metadata or {}).get(b"postgres.type", b"")
    if declared.startswith(b"numeric") and pa.types.is_string(field.type):
        return _number
    return _unpadded if declared.startswith((b"character(", b"bpchar")) else None


def _number(text: str) -> Any:
    plain = text.rstrip("0").rstrip(".") if "." in text else text
    try:
        return ("numeric", plain) if len(plain) > _DIGITS else plain_values.number_key(Decimal(plain))
    except InvalidOperation:
        return plain


def _unpadded(text: str) -> str:
    return text.rstrip(" ")


def matching_keys(columns: Sequence[tuple[pa.Field, pa.Array]]) -> list[Any]:
    """The keys of rows by their columns; None where one is NULL.

    >>> numeric = pa.field("id", pa.string(), metadata={"postgres.type": "numeric"})
    >>> matching_keys([(numeric, pa.array(["1.00", None, "0.5"]))]), matching_keys([(pa.field("id", pa.int8()),
    ... pa.array([1], pa.int8())), (pa.field("at", pa.date32()), pa.array([1], pa.int32()).cast(pa.date32()))])
    ([1, None, 0.5], [(1, ('instant', 86400000000000))])
    """
    found = [_converted(plain_values.keys(values), converter(field)) for field, values in columns]
    if len(found) == 1:
        return found[0]
    return [None if None in key else key for key in zip(*found, strict=True)]


def _converted(keys: list[Any], convert: Convert | None) -> list[Any]:
    return keys if convert is None else [convert(key) if isinstance(key, str) else key for key in keys]


def reconverted(key: Any, converters: Sequence[Convert | None]) -> Any:
    """A key that was stored as the text of its columns, as it is now."""
    parts = key if len(converters) > 1 and type(key) is tuple and len(key) == len(converters) else (key,)
    found = [_converted([part], convert)[0] for part, convert in zip(parts, converters, strict=False)]
    return tuple(found) if len(found) > 1 else found[0]


def pack_keys(keys: list[Any]) -> npt.NDArray[np.uint8]:
    """Keys as an Arrow IPC stream.

    >>> unpack_keys(pack_keys([("a", 1), ("b", 2)])), unpack_keys(pack_keys(["a", 7, b"x", (1.5, None)]))
    ([('a', 1), ('b', 2)], ['a', 7, b'x', (1.5, None)])
    """
    columns = _columns(keys)
    if columns is None:
        columns, kind = [pa.array([json.dumps(_tagged(one)) for one in keys], pa.large_string())], b"json"
    else:
        kind = b"tuples" if keys and type(keys[0]) is tuple else b"values"
    schema = pa.schema([(str(i), one.type) for i, one in enumerate(columns)], metadata={_JSON: kind})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return np.frombuffer(sink.getvalue(), np.uint8)


def unpack_keys(packed: npt.NDArray[np.uint8]) -> list[Any]:
    """The keys that `pack_keys` stored."""
    table = pa.ipc.open_stream(pa.py_buffer(np.ascontiguousarray(packed, np.uint8))).read_all()
    kind = table.schema.metadata[_JSON]
    values = [column.to_pylist() for column in table.columns]
    if kind == b"json":
        return [_value(json.loads(one)) for one in values[0]]
    return list(zip(*values, strict=True)) if kind == b"tuples" else values[0]


def _columns(keys: list[Any]) -> list[pa.Array] | None:
    """The keys as columns of one type each; None where they are not."""
    kinds = set(map(type, keys))
    if kinds == {tuple}:
        widths = set(map(len, keys))
        if len(widths) > 1 or widths == {0}:
            return None
        parts = [_column(list(part)) for part in zip(*keys, strict=True)]
        return None if any(one is None for one in parts) else parts
    whole = _column(keys)
    return None if whole is None else [whole]


def _column(values: list[Any]) -> pa.Array | None:
    kinds = set(map(type, values))
    if not kinds:
        return pa.array([], pa.int64())
    if len(kinds) > 1 or not kinds <= _TYPES.keys():
        return None
    try:
        return pa.array(values, _TYPES[kinds.pop()])
    except (OverflowError, pa.ArrowInvalid, UnicodeEncodeError):
        return None


def _tagged(value: Any) -> Any:
    """A value as JSON that keeps its type.

    Raises:
        TypeError: it is of a type that no key has.
    """
    if value is None or type(value) in (str, bool):
        return value
    if type(value) is tuple:
        return [_tagged(one) for one in value]
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if type(value) is int:
        return {"int": str(value)}
    if type(value) is float:
        return {"float": value.hex()}
    raise TypeError(f"a key is text, a number, bytes or a tuple of those, not {type(value).__name__}")


def _value(tagged: Any) -> Any:
    if isinstance(tagged, list):
        return tuple(_value(one) for one in tagged)
    if not isinstance(tagged, dict):
        return tagged
    ((kind, text),) = tagged.items()
    if kind == "bytes":
        return base64.b64decode(text)
    return int(text) if kind == "int" else float.fromhex(text)
