"""Columns as JSON has them, turned into the Arrow types that a table's schema asks for.

`to_type` converts a whole column or raises; `fitting` finds the rows that do not fit. What a JSON value means depends
on the type asked for:

=======================  ==========================================================================
asked for                taken
=======================  ==========================================================================
integers, floats         numbers; texts of numbers, "NaN", "Infinity", "-Infinity"
decimal                  numbers and texts, digit for digit; base64 of the unscaled value
string                   strings; of other values their JSON, of arrays PostgreSQL's text if so declared
binary                   base64
date                     days since 1970-01-01; ISO text
time, timestamp          a number of the type's unit (of milliseconds where that is seconds); ISO text
duration                 a number of the type's unit
list, struct, map        arrays; objects; objects or arrays of [key, value]
=======================  ==========================================================================

A column of decimals is read as base64 when any of its values is no plain number: "1234" alone is a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import take
from headrace.formats import base64_columns, decimals, json_parse, json_text, timestamps
from headrace.formats.column_text import array_text, plain_text
from headrace.formats.json_text import TEXT
from headrace.plain_values import PER_SECOND, is_bytes, is_list, is_text, list_offsets, with_items

Convert = Callable[[pa.Array], pa.Array]

_SHOWN = 60  # characters of a refused value in a reason
POSTGRES_TYPE = b"postgres.type"


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading of one column of JSON as one of Arrow.

    Attributes:
        field: the column that results.
        wire: the type that Arrow's JSON reader is told; None where it has none, so that the values decide.
        convert: from whatever the values are to the field's type; raises ValueError or ArrowInvalid.
        encoded: texts are base64, so that no other value's JSON may pass for one (`json_parse.marked`).
    """

    field: pa.Field
    wire: pa.DataType | None
    convert: Convert
    encoded: bool = False


def reading(field: pa.Field) -> Reading:
    """Return how to read a column whose type is known and whose JSON says nothing of itself."""
    text_of_array = is_array_text(field)
    wire = None if text_of_array else wire_type(field.type)
    return Reading(field, wire, lambda array: to_field(array, field, as_array_text=text_of_array))


def to_field(array: pa.Array, field: pa.Field, *, as_array_text: bool = False) -> pa.Array:
    """`to_type` for a column of PostgreSQL's, whose texts have PostgreSQL's form.

    >>> to_field(pa.array([True]), pa.field("b", pa.string(), metadata={"postgres.type": "bit(1)"})).to_pylist()
    ['1']
    """
    postgres = (field.metadata or {}).get(POSTGRES_TYPE, b"")
    if postgres.startswith(b"bit") and is_text(field.type) and pa.types.is_boolean(array.type):
        array = pc.if_else(array, "1", "0")  # Debezium makes booleans of bit(1)
    return to_type(array, field.type, as_array_text=as_array_text or postgres.endswith(b"[]"))


def is_array_text(field: pa.Field) -> bool:
    """Return whether a column holds PostgreSQL arrays in their text form."""
    return is_text(field.type) and (field.metadata or {}).get(POSTGRES_TYPE, b"").endswith(b"[]")


def wire_type(kind: pa.DataType) -> pa.DataType | None:
    """The type that Arrow's JSON reader is told to get the raw values of a column; None where it has none."""
    if pa.types.is_dictionary(kind):
        return wire_type(kind.value_type)
    if is_list(kind):
        item = wire_type(kind.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(kind):
        children = [(field.name, wire_type(field.type)) for field in kind]
        if any(child is None for _, child in children) or len({name for name, _ in children}) < len(children):
            return None
        return pa.struct(children)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return kind
    if pa.types.is_decimal128(kind) or pa.types.is_decimal256(kind):
        return kind if 0 <= kind.scale <= kind.precision else pa.string()
    if is_text(kind) or is_bytes(kind) or pa.types.is_decimal(kind) or (pa.types.is_timestamp(kind) and kind.tz):
        return pa.string()
    if pa.types.is_date(kind):
        return pa.int32()
    counted = pa.types.is_time(kind) or pa.types.is_timestamp(kind) or pa.types.is_duration(kind)
    return pa.int64() if counted else None


def fitting(array: pa.Array, to: Reading) -> tuple[pa.Array, list[tuple[int, str]]]:
    """A column converted, and for each row that does not fit its index and why; those rows are null.

    >>> fitting(pa.array(["1", "x", None]), reading(pa.field("a", pa.int64())))
    (<pyarrow.lib.Int64Array object at ...>
    [
      1,
      null,
      null
    ], [(1, 'column «a»: "x" does not fit int64')])
    """
    parts: list[pa.Array] = []
    bad: list[tuple[int, str]] = []
    _halve(array, 0, to, parts, bad)
    return (parts[0] if len(parts) == 1 else pa.concat_arrays(parts)), bad


def _halve(array: pa.Array, at: int, to: Reading, parts: list[pa.Array], bad: list[tuple[int, str]]) -> None:
    try:
        parts.append(to.convert(array))
        return
    except (ArithmeticError, LookupError, ValueError, TypeError, AttributeError, pa.ArrowException) as error:
        if len(array) <= 1:
            parts.append(pa.nulls(len(array), to.field.type))
            bad += [(at, f"column «{to.field.name}»: {_why(array, to, error)}") for _ in array]
            return
    half = len(array) // 2
    _halve(array.slice(0, half), at, to, parts, bad)
    _halve(array.slice(half), at + half, to, parts, bad)


def _why(array: pa.Array, to: Reading, error: Exception) -> str:
    value = json_text.fragments(array)[0].as_py() or "null"
    if to.encoded and value.startswith('"\\u0000'):
        value = str(json.loads(value))[len(json_parse.MARKED_NUMBER) :]
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
    own = f" ({error})" if type(error) is ValueError else ""
    return f"{shown} does not fit {to.field.type}{own}"


def converted(
    columns: Mapping[str, pa.Array], readings: Sequence[Reading], n: int
) -> tuple[list[pa.Array], list[tuple[int, str]]]:
    """Return the columns that readings make of ``n`` rows, null where there is none; which rows do not fit, and why."""
    arrays: list[pa.Array] = []
    bad: list[tuple[int, str]] = []
    for column in readings:
        raw = columns.get(column.field.name)
        array, wrong = (pa.nulls(n, column.field.type), []) if raw is None else fitting(raw, column)
        arrays.append(array)
        bad += wrong
    return arrays, bad


def to_type(array: pa.Array, kind: pa.DataType, *, as_array_text: bool = False) -> pa.Array:
    """A column of JSON values in the type asked for.

    Raises:
        ValueError, ArrowInvalid, ArrowNotImplementedError: some value does not fit.

    >>> to_type(pa.array([19782, None]), pa.date32()).to_pylist()
    [datetime.date(2024, 2, 29), None]
    """
    if array.type.equals(kind):
        return array
    if array.null_count == len(array):
        return pa.nulls(len(array), kind)
    if is_text(array.type) and (is_list(kind) or pa.types.is_struct(kind) or pa.types.is_map(kind)):
        array = _parsed(array, kind)
    for matches, convert in _CONVERTERS:
        if matches(kind):
            return convert(array, kind)
    if is_text(kind):
        return _text(array, kind, as_array_text)
    raise ValueError(f"JSON has no form for {kind}")


def to(kind: pa.DataType) -> Convert:
    """Return `to_type` for one type."""
    return lambda array: to_type(array, kind)


def _parsed(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists, structs and maps from texts that hold their JSON."""
    rows, bad = json_parse.load_exactly(
        (i, b'{"":%s}' % (b"null" if text is None else text))
        for i, text in enumerate(texts.cast(pa.large_binary()).to_pylist())
    )
    if bad:
        raise ValueError(bad[0][1])
    array = json_parse.array_of([row[""] for _, row in rows], kind)
    if is_text(array.type):
        raise ValueError("is not the JSON of one")
    return array


def _same_shape(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts that Arrow checks itself, from a value of the same sort."""
    if pa.types.is_boolean(array.type) != pa.types.is_boolean(kind) and not is_text(array.type):
        raise ValueError("of another sort")
    return array.cast(kind)


def _float(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_boolean(array.type):
        raise ValueError("of another sort")
    if pa.types.is_float16(kind):
        return array.cast(pa.float32(), safe=False).cast(kind, safe=False)
    if pa.types.is_integer(array.type):
        return array.cast(kind, safe=False)  # the nearest, as a reader of the number's text gives it
    done = array.cast(kind)
    if pa.types.is_float32(kind) and pa.types.is_float64(array.type):
        beyond = np.isinf(np.asarray(done.fill_null(0))) & np.isfinite(np.asarray(array.fill_null(0)))
        if beyond.any():
            raise ValueError("is beyond 32-bit floats")
    return done


def _decimal(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if not is_text(array.type):
        if pa.types.is_struct(array.type):
            return decimals.from_text(variable_scale_text(array), kind)
        return array.cast(kind) if not pa.types.is_boolean(array.type) else _same_shape(array, kind)
    plain = pc.match_substring_regex(array, decimals.PLAIN)
    texts = array if not plain.false_count else decimals.from_bytes(base64_columns.decode(array), kind.scale)
    return decimals.from_text(texts, kind)


def variable_scale_text(array: pa.StructArray) -> pa.Array:
    """Texts of Debezium's `VariableScaleDecimal`, an object of a scale and an unscaled value, in bytes or base64.

    >>> variable_scale_text(pa.array([{"scale": 1, "value": "Dw=="}, None])).to_pylist()
    ['1.5', None]
    """
    scales, values = struct_field(array, "scale"), struct_field(array, "value")
    if not is_bytes(values.type):
        values = base64_columns.decode(values.cast(pa.string()))
    if not (pa.types.is_integer(scales.type) or pa.types.is_null(scales.type)):
        raise ValueError("has a scale that is no whole number")
    if pc.any(pc.not_equal(scales.is_valid(), values.is_valid())).as_py():
        raise ValueError("has a scale without a value, or a value without one")
    texts = pa.nulls(len(array), TEXT)
    for scale in pc.unique(scales).drop_null().to_pylist():
        if not decimals.SMALLEST_SCALE <= scale <= decimals.LARGEST_SCALE:
            raise ValueError(f"has the scale {scale}")
        mask = pc.fill_null(pc.equal(scales, scale), False)
        texts = pc.if_else(mask, decimals.from_bytes(values, scale), texts)
    return texts


def struct_field(array: pa.StructArray, name: str) -> pa.Array:
    """A field of every struct, null where the struct is; raises ValueError where there is no such field."""
    index = array.type.get_field_index(name) if pa.types.is_struct(array.type) else -1
    if index < 0:
        raise ValueError(f"has no «{name}»")
    return array.flatten()[index]


def _bytes(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if is_bytes(array.type):
        return array.cast(kind)
    if not is_text(array.type):
        raise ValueError("is not base64 text")
    decoded = base64_columns.decode(array)
    # Arrow casts to a fixed width from plain binary only.
    return decoded.cast(pa.binary()).cast(kind) if pa.types.is_fixed_size_binary(kind) else decoded.cast(kind)


def _date(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_temporal(array.type):
        return array.cast(kind)
    if is_text(array.type):
        days = divided(timestamps.from_iso(array, "s"), 86_400, "is not a whole day").cast(pa.int32())
    else:
        days = _whole(array).cast(pa.int32())
    return days.view(pa.date32()).cast(kind)


def divided(numbers: pa.Array, by: int, refusal: str) -> pa.Array:
    """Return whole numbers of a unit that is so many times larger; raise ValueError where one is none."""
    values = np.asarray(pc.fill_null(numbers, 0))
    if (values % by).any():
        raise ValueError(refusal)
    return pa.array(values // by, mask=np.asarray(numbers.is_null()))


def _whole(array: pa.Array) -> pa.Array:
    if pa.types.is_boolean(array.type) or not (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        raise ValueError("of another sort")
    return array.cast(pa.int64())


def _timestamp(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_temporal(array.type):
        return array.cast(kind)
    if is_text(array.type):
        return timestamps.from_iso(array, kind.unit).view(kind)
    return _in_unit(array, kind.unit).view(kind)


def _in_unit(array: pa.Array, unit: str) -> pa.Array:
    """Numbers of a unit; seconds come as milliseconds."""
    numbers = _whole(array)
    return numbers if unit != "s" else divided(numbers, 1000, "is not a whole number of seconds")


def _time(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if is_text(array.type):
        return _time_of_text(array, kind)
    if pa.types.is_time(array.type):
        return array.cast(kind)
    return _checked_time(_in_unit(array, kind.unit), kind)


def _time_of_text(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    dated = pc.binary_join_element_wise(pa.scalar("1970-01-01T", TEXT), texts.cast(TEXT), pa.scalar("", TEXT))
    return _checked_time(timestamps.from_iso(dated, kind.unit), kind)


def _checked_time(numbers: pa.Array, kind: pa.DataType) -> pa.Array:
    values = np.asarray(pc.fill_null(numbers, 0))
    if (values < 0).any() or (values >= 86_400 * PER_SECOND[kind.unit]).any():
        raise ValueError("is not a time of day")
    return numbers.cast(pa.int32()).view(kind) if pa.types.is_time32(kind) else numbers.view(kind)


def _duration(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array.cast(kind) if pa.types.is_duration(array.type) else _whole(array).view(kind)


def _dictionary(array: pa.Array, kind: pa.DataType) -> pa.Array:
    encoded = pc.dictionary_encode(to_type(array, kind.value_type))
    indices = encoded.indices.cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=kind.ordered)


def _run_ends(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.run_end_encode(to_type(array, kind.value_type), run_end_type=kind.run_end_type)


def _extension(array: pa.Array, kind: pa.BaseExtensionType) -> pa.Array:
    return pa.ExtensionArray.from_storage(kind, to_type(array, kind.storage_type))


def _list(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if not is_list(array.type):
        raise ValueError("is not an array")
    items = to_type(array.flatten(), kind.value_type)
    if pa.types.is_fixed_size_list(kind):
        return _fixed_size_list(items, array, kind)
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        mask = array.is_null() if array.null_count else None
        large = pa.LargeListArray.from_arrays(pa.array(list_offsets(array)), items, mask=mask)
        found = renamed(large, pa.large_list(kind.value_field))
    else:
        found = renamed(with_items(array, items), pa.list_(kind.value_field))
    # Arrow's cast of a type to itself spoils lists of nulls.
    return found if found.type.equals(kind) else found.cast(kind)


def renamed(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The same values under a type that differs in the names, metadata or nullability of its children."""
    if array.type.equals(kind, check_metadata=True):
        return array
    return pa.Array.from_buffers(kind, len(array), array.buffers()[:2], children=[array.values])


def _fixed_size_list(items: pa.Array, array: pa.Array, kind: pa.DataType) -> pa.Array:
    size, missing = kind.list_size, np.asarray(array.is_null())
    if (np.diff(list_offsets(array))[~missing] != size).any():
        raise ValueError(f"has not {size} elements")
    present = np.repeat(~missing, size)
    where = np.where(present, np.cumsum(present) - 1, 0)
    if not present.all():
        items = spread(items, where, present)
    mask = pa.array(missing) if missing.any() else None
    return pa.FixedSizeListArray.from_arrays(items, type=kind, mask=mask)


def spread(items: pa.Array, where: Ints, present: Mask) -> pa.Array:
    """Return the item that each place names where one is present, null elsewhere; of any type, as `batch.take`."""
    if not present.size:
        return items
    cuts = [0, *(np.flatnonzero(np.diff(present)) + 1).tolist(), present.size]
    return pa.concat_arrays(
        [take(items, where[a:b]) if present[a] else pa.nulls(b - a, items.type) for a, b in pairwise(cuts)]
    )


def with_fields(
    array: pa.Array, kind: pa.StructType, convert: Callable[[pa.Array, pa.Field], pa.Array]
) -> pa.StructArray:
    """Return the structs of an array with the fields of a type: those that are there converted, the others null."""
    if not pa.types.is_struct(array.type):
        raise ValueError("is not an object")
    given = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
    children = [
        convert(given[field.name], field) if field.name in given else pa.nulls(len(array), field.type) for field in kind
    ]
    if not children:
        return pa.StructArray.from_buffers(kind, len(array), [pa.array(np.asarray(array.is_valid())).buffers()[1]], 0)
    mask = array.is_null() if array.null_count else None
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)


def _child(array: pa.Array, field: pa.Field) -> pa.Array:
    try:
        return to_type(array, field.type, as_array_text=is_array_text(field))
    except ValueError as error:
        raise ValueError(f"field «{field.name}»: {error}") from error


def with_entries(array: pa.Array, kind: pa.MapType, key: Convert, item: Convert) -> pa.MapArray:
    """Return the maps of an array with their keys and values converted; objects are maps where read row by row."""
    if not pa.types.is_map(array.type):
        raise ValueError("is not an object of values")
    offsets = np.asarray(array.offsets)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    # A slice has the entries of the whole: others than its own are none of its rows' business.
    keys, items = key(array.keys.slice(first, size)), item(array.items.slice(first, size))
    mask = pa.array(np.asarray(array.is_null())) if array.null_count else None
    return pa.MapArray.from_arrays(pa.array(offsets - first, pa.int32()), keys, items, type=kind, mask=mask)


def _text(array: pa.Array, kind: pa.DataType, as_array_text: bool) -> pa.Array:
    if is_text(array.type):
        return array.cast(kind)
    if as_array_text and is_list(array.type):
        return array_text(array).cast(kind)
    return plain_text(array).cast(kind)


_CONVERTERS: tuple[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array, pa.DataType], pa.Array]], ...] = (
    (pa.types.is_boolean, _same_shape),
    (pa.types.is_integer, _same_shape),
    (pa.types.is_floating, _float),
    (pa.types.is_decimal, _decimal),
    (is_bytes, _bytes),
    (pa.types.is_date, _date),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_time, _time),
    (pa.types.is_duration, _duration),
    (pa.types.is_dictionary, _dictionary),
    (pa.types.is_run_end_encoded, _run_ends),
    (is_list, _list),
    (pa.types.is_struct, lambda array, kind: with_fields(array, kind, _child)),
    (pa.types.is_map, lambda array, kind: with_entries(array, kind, to(kind.key_type), to(kind.item_type))),
    (lambda kind: isinstance(kind, pa.BaseExtensionType), _extension),
)


# -- JSON to columns of known fields --


def raw_types(readings: Sequence[Reading] | None) -> tuple[pa.Schema | None, bool, bool]:
    """Return raw types for Arrow's reader, whether they are all columns, and whether it cannot read them at all."""
    if readings is None:
        return None, False, False
    known = [(column.field.name, column.wire) for column in readings if column.wire is not None]
    types = pa.schema(known)
    by_row = any(_has_map(column.field.type) for column in readings)
    if by_row:  # rows are read one by one, guided by the types that result
        types = pa.schema([(column.field.name, column.wire or column.field.type) for column in readings])
        return types, True, True
    return types, len(known) == len(readings) or not readings, False


def encoded_columns(readings: Sequence[Reading] | None) -> frozenset[str]:
    """Return the names of columns of base64."""
    return frozenset(column.field.name for column in readings or () if column.encoded)


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_map(kind.value_type)
    return pa.types.is_map(kind) or any(_has_map(kind.field(i).type) for i in range(kind.num_fields))


def columns_of(
    values: Sequence[bytes], readings: Sequence[Reading], *, whole: bool = False
) -> tuple[list[tuple[pa.StructArray, Ints]], dict[int, str]]:
    """Read JSON objects as structs: columns that are known converted, others as they look; and say what is bad.

    Args:
        whole: only the known ones.

    >>> as_int16 = Reading(pa.field("a", pa.int16()), pa.int16(), lambda array: array)
    >>> found, bad = columns_of([b'{"a": 1, "b": "x"}', b"?"], [as_int16])
    >>> found[0][0].to_pylist(), list(bad)
    ([{'a': 1, 'b': 'x'}], [1])
    """
    types = (
        pa.schema([(column.field.name, column.wire or column.field.type) for column in readings]) if readings else None
    )
    by_row = any(column.wire is None for column in readings)
    parts, bad = json_parse.parse(values, types, whole=whole, by_row=by_row)
    reasons = dict(bad)
    found: list[tuple[pa.StructArray, Ints]] = []
    for part in parts:
        given = dict(zip(part.columns.schema.names, part.columns.columns, strict=True))
        n = part.columns.num_rows
        arrays, wrong = converted(given, readings, n)
        good = np.ones(n, np.bool_)
        for place, why in wrong:
            reasons.setdefault(int(part.rows[place]), why)
            good[place] = False
        fields = [column.field for column in readings]
        others = given.keys() - {column.name for column in fields}
        fields += [pa.field(name, array.type) for name, array in given.items() if name in others]
        arrays += [array for name, array in given.items() if name in others]
        struct = pa.StructArray.from_arrays(arrays, fields=fields) if fields else pa.array([{}] * n, pa.struct([]))
        found.append((struct, part.rows) if good.all() else (struct.filter(pa.array(good)), part.rows[good]))
    return found, reasons


def unsliced(array: pa.Array) -> pa.Array:
    """Return a copy whose offsets begin at 0 and whose nulls are empty."""
    return array.take(pa.array(np.arange(len(array))))
