"""Keys as they are stored: Python values in, bytes out, and the same values back.

Whole numbers, text, bytes and floats are stored as an Arrow column, tuples as a column for each place. What does not
fit one column (mixed types, whole numbers beyond 64 bits) is stored as JSON that says each value's type.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_TYPES: dict[type, pa.DataType] = {
    int: pa.int64(),
    str: pa.large_string(),
    bytes: pa.large_binary(),
    float: pa.float64(),
    bool: pa.bool_(),
}
_JSON = b"headrace.keys"


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
