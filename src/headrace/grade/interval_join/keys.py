"""Keys: what a prediction and its label share, by value; and as they are stored, bytes that give the same values back.

Values match whatever their types are, as `headrace.plain_values.keys` says: 1 and 1.0, a numeric with a scale and
without one, an instant with a zone and without, char(n) with its padding and text. NaN matches NaN, and NULL nothing.
Whole numbers, text, bytes and floats are stored as an Arrow column, tuples as a column for each place. What does not
fit one column (mixed types, whole numbers beyond 64 bits) is stored as JSON that says each value's type.

Truths: whether two labels say the same, for 8 bytes a label. Numbers are told apart by their value, whatever their
type: 5 and 5.0 are one truth, and so are two NULLs, and two NaNs. Anything else is told apart by 64 bits of a hash of
it: two different labels look the same once in 10^19.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import plain_values
from headrace.arrays import Bytes, Ints
from headrace.batch import from_ipc, to_ipc
from headrace.plain_values import values, whole

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
# No number has these bits: quiet NaNs with a payload of ours.
_NULL = np.int64(0x7FF8_0000_0000_0001)
_NAN = np.int64(0x7FF8_0000_0000_0000)
# Whole numbers beyond this are not all floats.
_EXACT = 2**53
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
    """Return what a column's values are, for a key; those of two kinds never match. None where there are only NULLs.

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
    """Return what makes keys of a column's text; None where it is its own key."""
    declared = (field.metadata or {}).get(b"postgres.type", b"")
    if declared.startswith(b"numeric") and pa.types.is_string(field.type):
        return _number
    return (lambda text: text.rstrip(" ")) if declared.startswith((b"character(", b"bpchar")) else None


def _number(text: str) -> Any:
    plain = text.rstrip("0").rstrip(".") if "." in text else text
    try:
        return ("numeric", plain) if len(plain) > _DIGITS else plain_values.number_key(Decimal(plain))
    except InvalidOperation:
        return plain


def matching_keys(columns: Sequence[tuple[pa.Field, pa.Array]]) -> list[Any]:
    """Return the keys of rows by their columns; None where one is NULL.

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
    """Return a key that was stored as the text of its columns, as it is now."""
    parts = key if len(converters) > 1 and type(key) is tuple and len(key) == len(converters) else (key,)
    found = [_converted([part], convert)[0] for part, convert in zip(parts, converters, strict=False)]
    return tuple(found) if len(found) > 1 else found[0]


def pack_keys(keys: list[Any]) -> Bytes:
    """Return keys as an Arrow IPC stream.

    >>> unpack_keys(pack_keys([("a", 1), ("b", 2)])), unpack_keys(pack_keys(["a", 7, b"x", (1.5, None)]))
    ([('a', 1), ('b', 2)], ['a', 7, b'x', (1.5, None)])
    """
    columns = _columns(keys)
    if columns is None:
        columns, kind = [pa.array([json.dumps(_tagged(key)) for key in keys], pa.large_string())], b"json"
    else:
        kind = b"tuples" if keys and type(keys[0]) is tuple else b"values"
    schema = pa.schema([(str(i), column.type) for i, column in enumerate(columns)], metadata={_JSON: kind})
    return np.frombuffer(to_ipc(pa.RecordBatch.from_arrays(columns, schema=schema)), np.uint8)


def unpack_keys(packed: Bytes) -> list[Any]:
    """Return the keys that `pack_keys` stored."""
    records = from_ipc(np.ascontiguousarray(packed, np.uint8))
    kind = records.schema.metadata[_JSON]
    parts = [column.to_pylist() for column in records.columns]
    if kind == b"json":
        return [_value(json.loads(text)) for text in parts[0]]
    return list(zip(*parts, strict=True)) if kind == b"tuples" else parts[0]


def _columns(keys: list[Any]) -> list[pa.Array] | None:
    """Return the keys as columns of one type each; None where they are not."""
    kinds = set(map(type, keys))
    if kinds == {tuple}:
        widths = set(map(len, keys))
        if len(widths) > 1 or widths == {0}:
            return None
        parts = [_column(list(part)) for part in zip(*keys, strict=True)]
        return None if any(part is None for part in parts) else parts
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
    """Return a value as JSON that keeps its type.

    Raises:
        TypeError: it is of a type that no key has.
    """
    if value is None or type(value) in (str, bool):
        return value
    if type(value) is tuple:
        return [_tagged(part) for part in value]
    if type(value) is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if type(value) is int:
        return {"int": str(value)}
    if type(value) is float:
        return {"float": value.hex()}
    raise TypeError(f"a key is text, a number, bytes or a tuple of those, not {type(value).__name__}")


def _value(tagged: Any) -> Any:
    if isinstance(tagged, list):
        return tuple(_value(part) for part in tagged)
    if not isinstance(tagged, dict):
        return tagged
    ((kind, text),) = tagged.items()
    if kind == "bytes":
        return base64.b64decode(text)
    return int(text) if kind == "int" else float.fromhex(text)


# -- truths ----------------------------------------------------------------------------------------------------------


def truth_codes(truth: pa.Array) -> Ints:
    """Return a code for each label; equal labels have equal codes, in this run and in every other.

    >>> codes = truth_codes(pa.array([5, 6, None])), truth_codes(pa.array([5.0, 7.0, None]))
    >>> (codes[0] == codes[1]).tolist()
    [True, False, True]
    """
    truth = whole(truth)
    kind = truth.type
    if pa.types.is_float64(kind) and not truth.null_count:
        return _floats(truth.to_numpy())
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return _numbers(truth)
    return _hashes(truth)


def _floats(numbers: npt.NDArray[np.float64]) -> Ints:
    floats = numbers + 0.0  # -0.0 is 0.0
    codes: Ints = floats.view(np.int64)
    nan = floats != floats
    if nan.any():
        codes[nan] = _NAN
    return codes


def _numbers(truth: pa.Array) -> Ints:
    none = np.asarray(truth.is_null()) if truth.null_count else None
    filled = truth.fill_null(False if pa.types.is_boolean(truth.type) else 0) if none is not None else truth
    numbers = filled.to_numpy(zero_copy_only=False)
    floats = numbers.astype(np.float64)
    codes = _floats(floats)
    if pa.types.is_integer(truth.type):
        for i in np.flatnonzero(np.abs(floats) >= _EXACT).tolist():
            whole = int(numbers[i])
            if whole != int(floats[i]):
                codes[i] = _hash(whole)
    if none is not None:
        codes[none] = _NULL
    return codes


def _hashes(truth: pa.Array) -> Ints:
    """Hash each distinct value once, where Arrow can tell them apart."""
    try:
        encoded = truth if pa.types.is_dictionary(truth.type) else truth.dictionary_encode()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return np.array([_NULL if value is None else _hash(value) for value in values(truth)], np.int64)
    distinct = [_NULL if value is None else _hash(value) for value in values(encoded.dictionary)]
    codes = np.array([*distinct, _NULL], np.int64)
    where = encoded.indices.fill_null(len(distinct)).to_numpy(zero_copy_only=False)
    found: Ints = codes[where.astype(np.int64)]
    return found


def _hash(value: Any) -> int:
    digest = hashlib.blake2b(f"{type(value).__name__}:{value!r}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)
