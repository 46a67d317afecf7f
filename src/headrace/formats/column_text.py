"""Columns as text: as JSON has them without quotes, and lists as PostgreSQL prints an array."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.formats import base64_columns, decimals, json_text, timestamps
from headrace.formats.json_text import TEXT, enclosed, in_quotes
from headrace.plain_values import is_bytes, is_list, is_text

_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def plain_text(array: pa.Array) -> pa.Array:
    """Values as text: what JSON would put in quotes without them, anything else as its JSON.

    >>> plain_text(pa.array([19782], pa.int32()).view(pa.date32())).to_pylist(), plain_text(pa.array([1.5])).to_pylist()
    (['2024-02-29'], ['1.5'])
    """
    kind = array.type
    if pa.types.is_decimal(kind):
        return decimals.to_text(array)
    if is_bytes(kind):
        return base64_columns.encode(array)
    if pa.types.is_timestamp(kind):
        return timestamps.to_iso(array)
    if pa.types.is_date(kind):
        return timestamps.to_iso_days(array)
    return array.cast(TEXT) if pa.types.is_time(kind) else json_text.fragments(array)


_BARE = r'^[^{}",\\\s]+$'


def array_text(array: pa.Array) -> pa.Array:
    r"""Lists in PostgreSQL's text form of an array.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO

    >>> array_text(pa.array([["a", None, "b c", "NULL", '"'], []])).to_pylist()
    ['{a,NULL,"b c","NULL","\\""}', '{}']
    """
    items = _element_text(array.flatten()).cast(TEXT).fill_null("NULL")
    return enclosed("{", array, items, "}")


def _element_text(items: pa.Array) -> pa.Array:
    if is_list(items.type):
        return array_text(items)
    if pa.types.is_boolean(items.type):
        return pc.if_else(items, "t", "f")
    if pa.types.is_floating(items.type):
        return plain_float_text(items)
    if pa.types.is_timestamp(items.type):
        items = _postgres_instants(items)
    elif is_bytes(items.type):
        items = _hexadecimal(items)
    elif not is_text(items.type):
        return plain_text(items)
    bare = pc.and_(pc.match_substring_regex(items, _BARE), pc.invert(pc.match_substring_regex(items, "(?i)^null$")))
    escaped = pc.replace_substring(pc.replace_substring(items.cast(TEXT), "\\", "\\\\"), '"', '\\"')
    return pc.if_else(bare, items.cast(TEXT), in_quotes(escaped))


def _hexadecimal(array: pa.Array) -> pa.Array:
    """Bytes as PostgreSQL prints a bytea: ``\\x00ff``."""
    data, _, length = base64_columns.spans(array)
    pairs = np.stack([_HEX[data >> 4], _HEX[data & 15]], axis=1).reshape(-1)
    digits = base64_columns.of_spans(pairs, length * 2, TEXT, array.is_valid())
    return pc.binary_join_element_wise(pa.scalar("\\x", TEXT), digits, pa.scalar("", TEXT))


def _postgres_instants(array: pa.Array) -> pa.Array:
    texts = array.view(pa.timestamp(array.type.unit)).cast(TEXT)
    trimmed = pc.replace_substring_regex(texts, r"\.?0+$", "") if array.type.unit != "s" else texts
    zone = pa.scalar("+00" if array.type.tz else "", TEXT)
    return pc.binary_join_element_wise(trimmed, zone, pa.scalar("", TEXT))


def plain_float_text(array: pa.Array) -> pa.Array:
    """Floats as PostgreSQL prints them: whole numbers without a decimal point.

    >>> plain_float_text(pa.array([1.0, -2.25, float("inf")])).to_pylist()
    ['1', '-2.25', 'Infinity']
    """
    texts = pc.replace_substring_regex(array.cast(TEXT), r"^(-?)inf$", r"\1Infinity")
    return pc.if_else(pc.equal(texts, "nan"), pa.scalar("NaN", TEXT), texts)
