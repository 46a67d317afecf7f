"""Arrow tables for people: in a terminal and in a notebook."""

from __future__ import annotations

import html
from typing import Any

import pyarrow as pa

from headrace.plain_values import repr_text, values

SHOWN_ROWS = 10


def text_table(table: pa.Table, *, limit: int = SHOWN_ROWS) -> str:
    """The first rows as aligned text."""
    shown = table.slice(0, limit)
    columns = [
        [name, *(cell(value) for value in values(column))]
        for name, column in zip(table.column_names, shown.columns, strict=True)
    ]
    widths = [max(len(text) for text in column) for column in columns]
    lines = [
        "  ".join(column[row].ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()
        for row in range(shown.num_rows + 1)
    ]
    if table.num_rows > limit:
        lines.append(f"… {table.num_rows} rows")
    return "\n".join(lines)


def html_table(table: pa.Table, *, limit: int = SHOWN_ROWS) -> str:
    """The first rows as an HTML table."""
    shown = table.slice(0, limit)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.column_names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in zip(*(values(column) for column in shown.columns), strict=True)
    )
    more = f"<p>… {table.num_rows} rows</p>" if table.num_rows > limit else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def cell(value: Any) -> str:
    """One value, short."""
    if value is None:
        return "–"
    text = value.isoformat(sep=" ") if hasattr(value, "isoformat") and hasattr(value, "hour") else repr_text(value)
    return text if len(text) <= 40 else text[:39] + "…"
