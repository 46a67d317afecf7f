"""Rows as tables for people, in text and in HTML: the first rows and columns of them, and how many more there are."""

from __future__ import annotations

import html
from itertools import islice
from typing import Any

import pyarrow as pa

from headrace.plain_values import repr_text, values

SHOWN_ROWS = 10
SHOWN_COLUMNS = 40
LONGEST = 40


def text_table(table: pa.Table, *, limit: int = SHOWN_ROWS) -> str:
    """Return the first rows as aligned text.

    >>> print(text_table(pa.table({"id": [1, 2, 3], "name": ["a", None, "c"]}), limit=2))
    id  name
    1   a
    2   –
    … 1 more of 3 rows
    """
    shown = _first(table, limit)
    columns = [[name, *cells] for name, cells in shown]
    widths = [max(map(len, column)) for column in columns]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]
    return "\n".join([*lines, *_left_out(table, limit)])


def html_table(table: pa.Table, *, limit: int = SHOWN_ROWS) -> str:
    """Return the first rows as an HTML table: a fragment, of escaped text and elements without attributes."""
    shown = _first(table, limit)
    head = "".join(f"<th>{html.escape(name)}</th>" for name, _ in shown)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
        for row in zip(*(cells for _, cells in shown), strict=True)
    )
    more = "".join(f"<p>{html.escape(line)}</p>" for line in _left_out(table, limit))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def summary(table: pa.Table | pa.RecordBatch, *, most: int = 12) -> str:
    """Return how many rows there are, and of which columns.

    >>> summary(pa.table({"id": [1], "name": ["a"]}))
    '1 row: id, name'
    """
    names = [_short(name) for name in table.schema.names]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return f"{table.num_rows:,} row{'' if table.num_rows == 1 else 's'}: {', '.join([*names[:most], *more])}"


def cell(value: Any) -> str:
    """Return one value, short."""
    if value is None:
        return "–"
    text = value.isoformat(sep=" ") if hasattr(value, "isoformat") and hasattr(value, "hour") else repr_text(value)
    return _short(text)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _first(table: pa.Table, limit: int) -> list[tuple[str, list[str]]]:
    """Return the columns that are shown, each with the cells of the first rows."""
    columns = islice(zip(table.column_names, table.slice(0, limit).columns, strict=True), SHOWN_COLUMNS)
    return [(_short(name), [cell(value) for value in values(column)]) for name, column in columns]


def _left_out(table: pa.Table, limit: int) -> list[str]:
    rows, columns = table.num_rows, table.num_columns
    lines = [f"… {rows - limit:,} more of {rows:,} rows"] if rows > limit else [] if rows else ["no rows"]
    return lines + ([f"… {columns - SHOWN_COLUMNS:,} more of {columns:,} columns"] if columns > SHOWN_COLUMNS else [])
