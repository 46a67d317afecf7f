"""Rows that hold what Arrow cannot, as dead letters: their values as PostgreSQL would print them, in JSON.

Only for the few rows that are refused, so cell by cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.arrays import Mask
from headrace.capture.postgres import types
from headrace.capture.postgres.cells import BINARY, TEXT, Cells
from headrace.capture.postgres.messages import Column
from headrace.plain_values import date_text, instant_text, texts
from headrace.plain_values import value as plain_value

_DAY_US = 86_400_000_000
_NUMERIC_SIGNS = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def reasons(fields: Sequence[pa.Field], bad: dict[int, Mask], cells: Sequence[Cells], rows: Sequence[int]) -> list[str]:
    """Why each of these rows is refused: ``column «price»: numeric(10,2) «NaN» does not fit decimal128(10, 2)``."""
    texts = []
    for row in rows:
        why = []
        for index, mask in bad.items():
            if mask[row]:
                field = fields[index]
                kind = field.metadata[b"postgres.type"].decode()
                value = refused_text(cells[index], row, kind)
                why.append(f"column «{field.name}»: {kind} «{value}» does not fit {field.type}")
        texts.append("; ".join(why))
    return texts


def as_json(
    columns: Sequence[Column], arrays: Sequence[pa.Array], bad: dict[int, Mask], cells: Sequence[Cells], row: int
) -> str:
    """One refused row as JSON: numbers, booleans and texts as such, everything else in PostgreSQL's text."""
    values: dict[str, Any] = {}
    for index, (column, array) in enumerate(zip(columns, arrays, strict=True)):
        refused = index in bad and bad[index][row]
        name = types.type_name(column.type_oid, column.typmod)
        values[column.name] = refused_text(cells[index], row, name) if refused else _plain(array[row])
    return json.dumps(values)


def refused_text(cells: Cells, row: int, type_name: str) -> str:
    """PostgreSQL's text of a value that Arrow cannot hold."""
    kind, value = cells.at(row)
    if kind == TEXT:
        return value.decode(errors="replace")
    if kind != BINARY:
        return ""
    if type_name.startswith("numeric"):
        return _NUMERIC_SIGNS.get(int.from_bytes(value[4:6], "big"), "more digits than its type has")
    number = int.from_bytes(value, "big", signed=True)
    bits = 8 * len(value)
    if number in (-(1 << bits - 1), (1 << bits - 1) - 1):
        return "infinity" if number > 0 else "-infinity"
    if type_name == "date":
        return date_text(number + 10_957)
    zone = "+00" if type_name.endswith("with time zone") else ""
    return instant_text(number + 10_957 * _DAY_US, "us", zone)


def _plain(scalar: pa.Scalar) -> Any:
    """A value that JSON can say."""
    if not scalar.is_valid:
        return None
    if pa.types.is_date(scalar.type) or pa.types.is_timestamp(scalar.type):
        return texts(pa.array([scalar]))[0]
    value = plain_value(scalar)
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, bool | int | float) else str(value)
