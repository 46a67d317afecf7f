"""Arrow columns as PostgreSQL takes them: the type that a column is made with, and its values as text for COPY.

The CSV writer of Arrow does most of the work: it quotes every string and leaves NULL empty, which is what COPY's CSV
format means by them.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from headrace import plain_values
from headrace.sinks.json_row import json_of

_TYPES: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "boolean"),
    (lambda one: pa.types.is_int8(one) or pa.types.is_uint8(one) or pa.types.is_int16(one), "smallint"),
    (lambda one: pa.types.is_uint16(one) or pa.types.is_int32(one), "integer"),
    (lambda one: pa.types.is_uint32(one) or pa.types.is_int64(one), "bigint"),
    (pa.types.is_uint64, "numeric(20)"),
    (lambda one: pa.types.is_float16(one) or pa.types.is_float32(one), "real"),
    (pa.types.is_float64, "double precision"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (pa.types.is_duration, "interval"),
    (pa.types.is_interval, "interval"),
)


def sql_type(kind: pa.DataType) -> str | None:
    """The PostgreSQL type of a column made for an Arrow type; None where nothing is known of it yet (all null).

    >>> sql_type(pa.int64()), sql_type(pa.list_(pa.float64())), sql_type(pa.struct([("a", pa.int8())]))
    ('bigint', 'double precision[]', 'jsonb')
    """
    kind = _plain_type(kind)
    if pa.types.is_null(kind):
        return None
    for matches, name in _TYPES:
        if matches(kind):
            return name
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})" if kind.scale >= 0 else "numeric"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if _is_binary(kind):
        return "bytea"
    if _is_list(kind):
        inner = _plain_type(kind.value_type)
        return "jsonb" if _is_nested(inner) or _is_binary(inner) else f"{sql_type(inner) or 'text'}[]"
    return "jsonb" if _is_nested(kind) else "text"


def csv_bytes(rows: pa.RecordBatch) -> pa.Buffer:
    """Rows in the format of ``COPY … FROM STDIN (FORMAT csv)``, without a header.

    >>> bytes(csv_bytes(pa.RecordBatch.from_pydict({"a": ["", None, 'x"y'], "b": [[1, None], [], None]})))
    b'"","{1,NULL}"\\n,"{}"\\n"x""y",\\n'
    """
    columns = [_cells(column) for column in rows.columns]
    # A row of one NULL would be an empty line, which COPY takes for a NULL too.
    table = pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, batch_size=max(1, rows.num_rows)))
    return sink.getvalue()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_nested(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _cells(column: pa.Array) -> pa.Array:
    """A column as the CSV writer and PostgreSQL both take it."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_timestamp(kind):
        # The zone is only how a time is shown.
        return plain_values.cast_texts(column.cast(pa.timestamp(kind.unit, "UTC" if kind.tz else None)))
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return plain_values.cast_texts(column)
    if pa.types.is_duration(kind):
        return pa.array(plain_values.texts(column), pa.string())
    if pa.types.is_interval(kind):
        spans = [None if one is None else _interval(*one) for one in plain_values.values(column)]
        return pa.array(spans, pa.string())
    if pa.types.is_decimal256(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if _is_binary(kind):
        return _hexadecimal(column)
    if _is_list(kind) and not _is_nested(_plain_type(kind.value_type)) and not _is_binary(kind.value_type):
        return _array_text(column)
    return _json(column) if _is_nested(kind) else column


def _hexadecimal(column: pa.Array) -> pa.Array:
    """bytea's text: ``\\x`` and two digits a byte, made of the whole buffer at once."""
    filled = pc.fill_null(column.cast(pa.large_binary()), b"")
    offsets = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset : filled.offset + len(filled) + 1]
    digits = binascii.hexlify(memoryview(filled.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    texts = pa.LargeStringArray.from_buffers(
        len(filled), pa.py_buffer((offsets - offsets[0]) * 2), pa.py_buffer(digits)
    )
    joined = pc.binary_join_element_wise(pa.scalar("\\x", texts.type), texts, pa.scalar("", texts.type))
    return pc.if_else(column.is_valid(), joined, pa.scalar(None, texts.type))


def _array_text(column: pa.Array) -> pa.Array:
    """PostgreSQL's array text: ``{1,NULL,"a \\"b\\""}``."""
    column = column.cast(pa.list_(column.type.value_type))
    values = _cells(column.flatten())
    texts = values.cast(pa.string())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        texts = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
        texts = pc.binary_join_element_wise('"', texts, '"', "")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pc.fill_null(texts, "NULL"))
    joined = pc.binary_join_element_wise("{", pc.binary_join(lists, ","), "}", "")
    return pc.if_else(column.is_valid(), joined, pa.scalar(None, pa.string()))


def _json(column: pa.Array) -> pa.Array:
    """Nested values as JSON."""
    return pa.array(json_of(column), pa.string())


def finer(rows: pa.RecordBatch) -> dict[int, str]:
    """Rows with a time that has nanoseconds: PostgreSQL counts microseconds, and would round it.

    >>> finer(pa.RecordBatch.from_pydict({"at": pa.array([1000, 1001], pa.timestamp("ns"))}))
    {1: '«at» has nanoseconds, and PostgreSQL counts microseconds'}
    """
    found: dict[int, str] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if getattr(column.type, "unit", "") == "ns":
            numbers = np.asarray(pc.fill_null(column.view(pa.int64()), 0))
        elif pa.types.is_interval(column.type):
            numbers = np.array([0 if one is None else one[2] for one in plain_values.values(column)], np.int64)
        else:
            continue
        reason = f"«{name}» has nanoseconds, and PostgreSQL counts microseconds"
        found = dict.fromkeys(np.flatnonzero(numbers % 1000).tolist(), reason) | found
    return found


def _interval(months: int, days: int, nanoseconds: int) -> str:
    return f"{months} months {days} days {nanoseconds // 1000} microseconds"
