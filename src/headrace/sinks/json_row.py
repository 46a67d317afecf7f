"""A row as JSON, for receivers that know nothing of Arrow."""

from __future__ import annotations

import base64
from datetime import timedelta
from decimal import Decimal
from typing import Any

import orjson


def as_json(value: Any) -> bytes:
    """A value of Python as JSON.

    Times are in ISO 8601, durations in seconds, bytes in base64, decimals as texts (a double would change them). NaN
    and infinities are null.

    >>> as_json({"id": 7, "price": Decimal("1.10"), "raw": b"ab", "gone": float("nan")})
    b'{"id":7,"price":"1.10","raw":"YWI=","gone":null}'
    """
    return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    # Integers beyond 64 bits, and what a user's own column may hold.
    return str(value)
