"""Rows that hold what Arrow cannot, as dead letters: their values as PostgreSQL would print them, in JSON.

Only for the few rows that are refused, so cell by cell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.capture.postgres import types
from headrace.capture.postgres.cells import BINARY, TEXT, Cells
from headrace.capture.postgres.messages import Column, Mask

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
    return timestamp_text(number + 10_957 * _DAY_US, zone)


def _plain(scalar: pa.Scalar) -> Any:
    """A value that JSON can say."""
    if not scalar.is_valid:
        return None
    if pa.types.is_date(scalar.type):
        return date_text(scalar.value)
    if pa.types.is_timestamp(scalar.type):
        return timestamp_text(scalar.value, "+00" if scalar.type.tz else "")
    if pa.types.is_string(scalar.type):
        return scalar.as_buffer().to_pybytes().decode(errors="replace")
    value = scalar.as_py()
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, bool | int | float) else str(value)


def date_text(days: int) -> str:
    """A day since 1970-01-01 as PostgreSQL prints it, for any year.

    Source: https://howardhinnant.github.io/date_algorithms.html#civil_from_days

    >>> date_text(19782), date_text(-719529), date_text(4000000)
    ('2024-02-29', '0002-12-31 BC', '12921-08-18')
    """
    return "{}{}".format(*_date(days))


def timestamp_text(micros: int, zone: str) -> str:
    """Microseconds since 1970-01-01 as PostgreSQL prints them.

    >>> timestamp_text(1709210096700000, "+00"), timestamp_text(-62135596800000001 - 86400000000 * 366, "")
    ('2024-02-29 12:34:56.7+00', '0002-12-31 23:59:59.999999 BC')
    """
    days, rest = divmod(micros, _DAY_US)
    seconds, fraction = divmod(rest, 1_000_000)
    date, bc = _date(days)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    decimals = f".{fraction:06d}".rstrip("0") if fraction else ""
    return f"{date} {clock}{decimals}{zone}{bc}"


def _date(days: int) -> tuple[str, str]:
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = era * 400 + year_of_era + (month <= 2)
    return f"{year if year > 0 else 1 - year:04d}-{month:02d}-{day:02d}", "" if year > 0 else " BC"
