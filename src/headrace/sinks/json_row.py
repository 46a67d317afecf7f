"""Rows as JSON, for receivers that know nothing of Arrow."""

from __future__ import annotations

import base64
import math
from datetime import timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace import plain_values
from headrace.batch import Batch, not_numbers
from headrace.sinks.changes import unsent


def json_rows(batch: Batch) -> list[bytes]:
    """Each row as a JSON object; what the source did not send (unchanged TOAST) is not in it.

    >>> json_rows(Batch.of({"id": [7, 8], "x": [0.5, float("nan")]}))
    [b'{"id":7,"x":0.5}', b'{"id":8,"x":"NaN"}']
    """
    return [as_json(row) for row in sent_rows(batch)]


def sent_rows(batch: Batch) -> list[dict[str, Any]]:
    """Each row as a dictionary, without the columns whose values the source did not send."""
    rows = plain_values.rows(batch.rows)
    for row, nan in zip(rows, not_numbers(batch.records), strict=True):
        row |= {name: "NaN" for name, before in nan if not before}
    if batch.unchanged is not None:
        for row, names in zip(rows, unsent(batch, np.arange(batch.num_rows)), strict=True):
            for name in names:
                row.pop(name, None)
    if any(_may_be_infinite(field.type) for field in batch.rows.schema):
        return [_finite(row) for row in rows]
    return rows


def json_of(array: pa.Array) -> list[str | None]:
    """Each value of a column as JSON; None where it is null."""
    found = [_finite(plain_value) for plain_value in plain_values.values(array)]
    return [None if value is None else as_json(value).decode() for value in found]


def as_json(value: Any) -> bytes:
    """A value of Python as JSON.

    Times are in ISO 8601 (those that Python has no type for, as PostgreSQL prints them), durations in seconds, bytes in
    base64, decimals as texts (a double would change them).

    >>> as_json({"id": 7, "price": Decimal("1.10"), "raw": b"ab"})
    b'{"id":7,"price":"1.10","raw":"YWI="}'
    """
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, timedelta):
        return seconds(value)
    if isinstance(value, tuple):
        return list(value)
    # What a user's own column may hold.
    return plain_values.repr_text(value)


def seconds(span: timedelta) -> float | str:
    """A duration in seconds; as PostgreSQL prints it where a double would round its microseconds.

    >>> seconds(timedelta(days=1, microseconds=5)), seconds(timedelta(days=999_999_999, microseconds=1))
    (86400.000005, '23999999976:00:00.000001')
    """
    micros = span // timedelta(microseconds=1)
    found = span.total_seconds()
    return found if Decimal(repr(found)) * 1_000_000 == micros else plain_values.clock_text(micros, "us")


def _may_be_infinite(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_nested(kind) or pa.types.is_dictionary(kind))


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinities: they are texts, as PostgreSQL's own JSON has them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else plain_values.number_text(value)
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    return [_finite(element) for element in value] if isinstance(value, list | tuple) else value
