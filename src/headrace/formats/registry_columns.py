"""Columns out of payloads: JSON to known types, typed columns to the types a table declares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arrays import Ints
from headrace.formats import coerce, decimals, json_parse, timestamps
from headrace.plain_values import is_bytes, is_list, is_text

# A group's payloads as structs of their columns, with the places in the group that each row came from; and the places
# that cannot be decoded, with the reason.
Columns = tuple[list[tuple[pa.StructArray, Ints]], dict[int, str]]


def good_rows(struct: pa.StructArray, reasons: dict[int, str]) -> Columns:
    """The columns without the rows that have a reason not to be there."""
    if not reasons:
        return [(struct, np.arange(len(struct)))], reasons
    good = np.ones(len(struct), np.bool_)
    good[list(reasons)] = False
    return [(struct.filter(pa.array(good)), np.flatnonzero(good))], reasons


def json_columns(values: Sequence[bytes], readings: Sequence[coerce.Reading], *, whole: bool = False) -> Columns:
    """Columns of JSON objects: those that are known converted, the others as they look.

    Args:
        whole: only the known ones.

    >>> found, bad = json_columns([b'{"a": 1, "b": "x"}', b"?"], [coerce.reading(pa.field("a", pa.int16()))])
    >>> found[0][0].to_pylist(), list(bad)
    ([{'a': 1, 'b': 'x'}], [1])
    """
    types = pa.schema([(one.field.name, one.wire or one.field.type) for one in readings]) if readings else None
    by_row = any(one.wire is None for one in readings)
    parts, bad = json_parse.parse(values, types, whole=whole, by_row=by_row)
    reasons = dict(bad)
    found: list[tuple[pa.StructArray, Ints]] = []
    for part in parts:
        given = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
        n = part.columns.num_rows
        fields: list[pa.Field] = []
        arrays: list[pa.Array] = []
        good = np.ones(n, np.bool_)
        for one in readings:
            raw = given.pop(one.field.name, None)
            array, wrong = (pa.nulls(n, one.field.type), []) if raw is None else coerce.fitting(raw, one)
            for place, why in wrong:
                reasons.setdefault(int(part.rows[place]), why)
                good[place] = False
            fields.append(one.field)
            arrays.append(array)
        fields += [pa.field(name, array.type) for name, array in given.items()]
        arrays += list(given.values())
        struct = pa.StructArray.from_arrays(arrays, fields=fields) if fields else pa.array([{}] * n, pa.struct([]))
        found.append((struct, part.rows) if good.all() else (struct.filter(pa.array(good)), part.rows[good]))
    return found, reasons


def conformed(records: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, dict[int, str]]:
    """The columns of a schema: those that are missing null, those of other types cast; and the rows that cannot be.

    >>> rows = pa.RecordBatch.from_pydict({"a": ["1", "x"]})
    >>> conformed(rows, pa.schema([("a", pa.int64()), ("b", pa.string())]))[1]
    {1: "column «a»: 'x' is no int64"}
    """
    n = records.num_rows
    reasons: dict[int, str] = {}
    arrays: list[pa.Array] = []
    for field in schema:
        if field.name not in records.schema.names:
            arrays.append(pa.nulls(n, field.type))
            continue
        array, wrong = _cast(records.column(field.name), field)
        for place in wrong:
            value = plain_values.value(records.column(field.name)[place])
            reasons.setdefault(place, f"column «{field.name}»: {value!r:.100} is no {field.type}")
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=schema), reasons


def _cast(array: pa.Array, field: pa.Field, first: int = 0) -> tuple[pa.Array, list[int]]:
    """A cast that leaves out what it cannot do: halves the column around the values that fail."""
    kind = field.type
    if array.type.equals(kind, check_metadata=True):
        return array, []
    try:
        return _in_field(array, field), []
    except (pa.ArrowException, ValueError):
        if len(array) <= 1:
            return pa.nulls(len(array), kind), [first] * len(array)
    half = len(array) // 2
    low, wrong = _cast(array[:half], field, first)
    high, more = _cast(array[half:], field, first + half)
    return pa.concat_arrays([low, high]), wrong + more


def _in_field(array: pa.Array, field: pa.Field) -> pa.Array:
    """As `_typed`; what becomes text gets the form that the JSON formats give it."""
    if not is_text(field.type) or is_text(array.type) or pa.types.is_null(array.type):
        return _typed(array, field.type)
    return coerce.to_field(array, field, as_array_text=is_list(array.type))


def _typed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Arrow's cast where both sides are values of the same sort; what JSON means by the values where one is text."""
    if array.type.equals(kind):
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if pa.types.is_time(kind) and is_text(array.type):
        day = pc.binary_join_element_wise("1970-01-01T", array.cast(pa.string()), "")
        return timestamps.from_iso(day, "us").cast(pa.time64("us")).cast(kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(array.type):
        return _struct(array, kind)
    if pa.types.is_list(kind) and pa.types.is_list(array.type):
        whole = _unsliced(array)
        return pa.ListArray.from_arrays(
            whole.offsets, _typed(whole.values, kind.value_type), kind, mask=whole.is_null()
        )
    if pa.types.is_map(kind) and pa.types.is_map(array.type):
        whole = _unsliced(array)
        keys, items = _typed(whole.keys, kind.key_type), _typed(whole.items, kind.item_type)
        return pa.MapArray.from_arrays(whole.offsets, keys, items, kind, mask=whole.is_null())
    if pa.types.is_decimal(array.type) and is_text(kind):
        return decimals.to_text(array).cast(kind)
    if is_text(array.type) and not is_bytes(kind):
        return coerce.to_type(array, kind)
    return array.cast(kind)


def _struct(array: pa.StructArray, kind: pa.StructType) -> pa.StructArray:
    given = dict(zip([one.name for one in array.type], array.flatten(), strict=True))
    children = [_typed(given.get(one.name, pa.nulls(len(array))), one.type) for one in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())


def _unsliced(array: pa.Array) -> pa.Array:
    """A copy whose offsets begin at 0 and whose nulls are empty."""
    return array.take(pa.array(np.arange(len(array))))
