"""Rows of a topic as JSON: flat, or as `kcat -J` prints a message. Of a cluster: the messages themselves."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from headrace import plain_values
from headrace.batch import Batch, not_numbers, present
from headrace.log.base import Entry
from headrace.wire import WireMessages


def to_json(value: Any) -> str:
    """Return one JSON value in one line.

    >>> to_json({"price": Decimal("1.10"), "raw": b"\\x00", "gone": float("nan")})
    '{"price": 1.1, "raw": "AA==", "gone": "NaN"}'
    """
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return a value in JSON's types: bytes as base64, times in ISO 8601, decimals as numbers where they fit a double.

    >>> from uuid import UUID
    >>> plain([UUID(int=0), b"a"])
    ['00000000-0000-0000-0000-000000000000', 'YQ==']
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if value is None or isinstance(value, str | int | float) else plain_values.repr_text(value)


def _number(value: Decimal) -> int | float | str:
    if value == value.to_integral_value() and value.as_tuple().exponent == 0:
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def rows(entry: Entry, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yield rows of an entry, by offset, as flat JSON values."""
    part = entry.records.slice(start - entry.offset, stop - start)
    for row, nan in zip(plain_values.rows(present(part)), not_numbers(part), strict=True):
        for name, before in nan:
            (row["__before"] if before else row)[name] = math.nan
        yield plain(row)


def messages(entry: Entry, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yield rows of an entry, by offset, as `kcat -J` prints messages: ``ts`` in ms, headers as a flat list."""
    batch = Batch(entry.records.slice(start - entry.offset, stop - start))
    keys = batch.key_columns
    for offset, row in enumerate(rows(entry, start, stop), start):
        meta = {name: row.get(name) for name in ("op", "position") if name in row}
        ts = batch.ts_us[offset - start] // 1000 if "__ts" in batch.schema.names else entry.ts_us // 1000
        yield {
            "topic": entry.topic,
            "partition": 0,
            "offset": offset,
            "tstype": "create",
            "ts": int(ts),
            "headers": [text for pair in meta.items() for text in pair],
            "key": {name: row[name] for name in keys if name in row} or None,
            "payload": row,
        }


def wire_lines(messages: WireMessages) -> Iterator[dict[str, Any]]:
    """Yield messages as they lie on a broker, as `kcat -J` prints them; JSON in keys and values is not quoted again.

    What is neither JSON nor UTF-8 is base64, with ``"encoding": "base64"`` beside it.
    """
    columns = (messages.partitions.tolist(), messages.offsets.tolist(), messages.ts_ms.tolist())
    for i, (partition, offset, ts) in enumerate(zip(*columns, strict=True)):
        key, _ = _shown(messages.keys[i])
        payload, readable = _shown(messages.values[i])
        line = {
            "topic": messages.topic,
            "partition": partition,
            "offset": offset,
            "tstype": "create",
            "ts": ts,
            "headers": [part for name, value in messages.headers[i] for part in (name, _text(value))],
            "key": key,
            "payload": payload,
        }
        yield line if readable else {**line, "encoding": "base64"}


def _shown(value: bytes | None) -> tuple[Any, bool]:
    """Return bytes as JSON, text or base64; and whether they could be read."""
    if value is None:
        return None, True
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode(), False
    try:
        return json.loads(text), True
    except ValueError:
        return text, True


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")
