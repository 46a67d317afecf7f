"""Typed columns, as payloads whose schemas are in a registry have them, to the types that a table declares."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.formats import coerce, decimals, timestamps
from headrace.formats.coerce import Reading
from headrace.plain_values import is_bytes, is_list, is_text

# A group's payloads as structs of their columns, with the places in the group that each row came from; and the places
# that cannot be decoded, with the reason.
Structs = tuple[list[tuple[pa.StructArray, Ints]], dict[int, str]]


def good_rows(struct: pa.StructArray, reasons: dict[int, str]) -> Structs:
    """The columns without the rows that have a reason not to be there."""
    if not reasons:
        return [(struct, np.arange(len(struct)))], reasons
    good = np.ones(len(struct), np.bool_)
    good[list(reasons)] = False
    return [(struct.filter(pa.array(good)), np.flatnonzero(good))], reasons


def typed_reading(field: pa.Field) -> Reading:
    """Read a column of a known field from one that has a type of its own.

    >>> column, bad = coerce.fitting(pa.array(["1", "x"]), typed_reading(pa.field("a", pa.int64())))
    >>> column.to_pylist(), bad
    ([1, None], [(1, 'column «a»: "x" does not fit int64')])
    """
    return Reading(field, None, lambda array: _in_field(array, field))


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
