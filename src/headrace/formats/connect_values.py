"""Values of Connect's and Debezium's named types in the forms that the native capture of PostgreSQL gives them."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, Inexact, localcontext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats import base64_columns, decimals, timestamps
from headrace.formats.coerce import (
    Convert,
    Reading,
    struct_field,
    to_type,
    variable_scale_text,
    with_entries,
    with_fields,
)
from headrace.formats.column_text import plain_float_text
from headrace.formats.json_parse import MARKED_NUMBER
from headrace.formats.json_text import joined
from headrace.plain_values import is_list, is_text, with_items

UNBOUNDED = 2_147_483_647  # Debezium's length of a bit string that has none
LONGEST_BITS = 83_886_080  # PostgreSQL's longest bit string
_BITS_AT_ONCE = 1 << 26


def millis(array: pa.Array) -> pa.Array:
    """Return numbers of milliseconds since 1970-01-01 as timestamp[us].

    >>> millis(pa.array([1])).cast(pa.int64()).to_pylist()
    [1000]
    """
    return pc.multiply_checked(array.cast(pa.int64()), 1000).view(pa.timestamp("us"))


def time_in(unit: str) -> Convert:
    """From numbers of a unit since midnight to a time as PostgreSQL prints it."""
    return lambda array: array if is_text(array.type) else timestamps.time_text(array, unit)


def zoned_timestamp(kind: pa.DataType) -> Convert:
    """From ISO texts to instants; PostgreSQL's infinity is the last one that there is, -infinity the first.

    >>> zoned_timestamp(pa.timestamp("us", "UTC"))(pa.array(["infinity", None])).cast(pa.int64()).to_pylist()
    [9223372036854775807, None]
    """
    return lambda array: _with_infinity(array, kind)


def _with_infinity(array: pa.Array, kind: pa.DataType) -> pa.Array:
    texts = _texts(array)
    last, first = (np.asarray(pc.fill_null(pc.equal(texts, item), False)) for item in ("infinity", "-infinity"))
    if not last.any() and not first.any():
        return to_type(texts, kind)
    endless = last | first
    numbers = to_type(pc.if_else(pa.array(endless), pa.scalar(None, texts.type), texts), kind).view(pa.int64())
    limits = pa.array(np.where(last, np.iinfo(np.int64).max, np.iinfo(np.int64).min))
    return pc.if_else(pa.array(endless), limits, numbers).view(kind)


def zoned_time(array: pa.Array) -> pa.Array:
    """ISO times with a zone as PostgreSQL prints ``time with time zone`` in UTC.

    >>> zoned_time(pa.array(["10:34:56.1Z"])).to_pylist()
    ['10:34:56.1+00']
    """
    return pc.replace_substring_regex(_texts(array), r"Z$", "+00")


def iso_date(array: pa.Array) -> pa.Array:
    """``2024-02-29Z`` (time.precision.mode=isostring) as a date."""
    return to_type(pc.utf8_rtrim(_texts(array), "Z"), pa.date32())


def iso_time(array: pa.Array) -> pa.Array:
    """``12:34:56Z`` as PostgreSQL prints a time."""
    return pc.utf8_rtrim(_texts(array), "Z")


def _texts(array: pa.Array) -> pa.Array:
    if not is_text(array.type):
        raise ValueError("is not text")
    return array


def decimal(array: pa.Array, scale: int, kind: pa.DataType) -> pa.Array:
    """Connect's Decimal: base64 of the unscaled value, or a number where the converter says decimal.format=NUMERIC."""
    if is_text(array.type):
        written = pc.fill_null(pc.starts_with(array, MARKED_NUMBER), False)
        if pc.any(written).as_py():  # decimal.format=NUMERIC, among values that are not
            if not pc.all(pc.or_(written, array.is_null())).as_py():
                raise ValueError("is a number among others that are base64")
            texts = _scaled(pc.utf8_slice_codeunits(array, len(MARKED_NUMBER)), scale)
        else:
            texts = decimals.from_bytes(base64_columns.decode(array), scale)
    elif pa.types.is_integer(array.type) or pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        texts = _scaled(to_type(array, pa.large_string()), scale)
    else:
        raise ValueError("is no number")
    return texts.cast(pa.string()) if is_text(kind) else decimals.from_text(texts, kind)


def _scaled(texts: pa.Array, scale: int) -> pa.Array:
    """Numbers as JSON has them with as many decimals as the scale says; seldom, and value by value."""
    found: list[str | None] = []
    with localcontext() as context:
        context.prec = 10_000
        context.traps[Inexact] = True
        for text in texts.to_pylist():
            try:
                number = None if text is None else Decimal(text).quantize(Decimal(1).scaleb(-scale))
            except ArithmeticError:
                raise ValueError(f"has more decimals than the scale {scale}") from None
            found.append(None if number is None else f"{number:f}")
    return pa.array(found, pa.large_string())


def variable_scale(array: pa.Array) -> pa.Array:
    """Debezium's VariableScaleDecimal as plain text."""
    return variable_scale_text(array).cast(pa.string()) if pa.types.is_struct(array.type) else _texts(array)


def bits(array: pa.Array, length: int) -> pa.Array:
    """Bit strings from little-endian bytes, the first bit of the string being the highest.

    Debezium cuts zero bytes off the end, and with them what says how long a ``bit varying`` was: without a length the
    string begins at its first 1.

    >>> bits(pa.array(["Fg==", ""]), 5).to_pylist(), bits(pa.array(["BQ==", ""]), UNBOUNDED).to_pylist()
    (['10110', '00000'], ['101', ''])
    """
    data, start, size = base64_columns.spans(base64_columns.decode(_texts(array)))
    width = length if length < UNBOUNDED else 8 * int(size.max(initial=0))
    if width < 8 * int(size.max(initial=0)) - 7:
        raise ValueError(f"has more than {width} bits")
    if width * size.size > _BITS_AT_ONCE and size.size > 1:
        half = size.size // 2
        return pa.concat_arrays([bits(array.slice(0, half), length), bits(array.slice(half), length)])
    room = np.zeros((size.size, (width + 7) // 8 or 1), np.uint8)
    row = np.repeat(np.arange(size.size), size)
    room[row, np.arange(data.size) - np.repeat(start, size)] = data
    shown = np.unpackbits(room, axis=1, bitorder="little")[:, :width][:, ::-1]
    kept = np.ones(shown.shape, bool)
    if length >= UNBOUNDED:
        kept = np.logical_or.accumulate(shown != 0, axis=1) if width else kept
    valid = np.asarray(array.is_valid())
    kept &= valid[:, None]
    text = base64_columns.of_spans(shown[kept] + ord("0"), kept.sum(axis=1), pa.large_string(), array.is_valid())
    return text.cast(pa.string())


def point(array: pa.Array) -> pa.Array:
    """Debezium's Point as PostgreSQL prints one.

    >>> point(pa.array([{"x": 1.5, "y": -2.0}])).to_pylist()
    ['(1.5,-2)']
    """
    x, y = (plain_float_text(to_type(struct_field(array, name), pa.float64())) for name in ("x", "y"))
    if x.null_count > array.null_count or y.null_count > array.null_count:
        raise ValueError("has not both x and y")
    return _where_valid(array, joined(["(", x, ",", y, ")"], len(array)))


def sparse_vector(array: pa.Array) -> pa.Array:
    """pgvector's text of a sparsevec, its indices in order.

    >>> sparse_vector(pa.array([{"dimensions": 5, "vector": [[4, 2.0], [1, 1.5]]}])).to_pylist()
    ['{1:1.5,4:2}/5']
    """
    texts: list[str | None] = []
    for item in array.to_pylist():  # a map whose keys are numbers comes as pairs; seldom, and never long
        if item is None:
            texts.append(None)
            continue
        pairs = sorted((int(index), value) for index, value in item["vector"] or [])
        values = plain_float_text(pa.array([float(value) for _, value in pairs], pa.float64())).to_pylist()
        inside = ",".join(f"{index}:{value}" for (index, _), value in zip(pairs, values, strict=True))
        texts.append(f"{{{inside}}}/{item['dimensions']}")
    return pa.array(texts, pa.string())


def _where_valid(array: pa.Array, texts: pa.Array) -> pa.Array:
    return pc.if_else(array.is_valid(), texts, pa.scalar(None, texts.type)).cast(pa.string())


def each_item(array: pa.Array, kind: pa.DataType, convert: Convert) -> pa.Array:
    """Return a list with every item converted."""
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    if not is_list(array.type):
        raise ValueError("is not an array")
    return with_items(array, _converted(array.flatten(), kind.value_type, convert))


def each_entry(array: pa.Array, kind: pa.MapType, key: Convert, item: Convert) -> pa.Array:
    """Return a map with every key and value converted."""
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    return with_entries(
        array,
        kind,
        lambda keys: _converted(keys, kind.key_type, key),
        lambda items: _converted(items, kind.item_type, item),
    )


def each_field(array: pa.Array, fields: Sequence[Reading]) -> pa.Array:
    """Return a struct with every field converted."""
    kind = pa.struct([child.field for child in fields])
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), kind)
    converts = {column.field.name: column.convert for column in fields}
    return with_fields(array, kind, lambda child, field: _converted(child, field.type, converts[field.name]))


def _converted(array: pa.Array, kind: pa.DataType, convert: Convert) -> pa.Array:
    return pa.nulls(len(array), kind) if pa.types.is_null(array.type) else convert(array)
