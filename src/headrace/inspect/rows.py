"""Rows of a topic, read at once, and tables of them for people: in a terminal and in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.batch import Batch, present
from headrace.errors import LogError
from headrace.log.base import Log, walk
from headrace.plain_values import beyond, repr_text, united, values
from headrace.plan.task import StreamPlan

if TYPE_CHECKING:
    import pandas as pd

SHOWN_ROWS = 10


class Rows:
    """Rows read from a topic: a table in a notebook, Arrow or pandas on request."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def to_arrow(self) -> pa.Table:
        """Return columns by their names, then ``op``, ``position`` and ``ts``."""
        return self._table

    def to_pandas(self) -> pd.DataFrame:
        """Return the same as a DataFrame (needs pandas).

        A column with a value that Python's types do not hold (a day before the year 1 or after 9999, infinity,
        24:00:00) is one of objects: such a value is the text that PostgreSQL prints, the others are as in `datetime`.
        """
        names, plain = self._table.column_names, self._table
        odd = [i for i, column in enumerate(plain.columns) if beyond(column)]
        if not odd:
            return plain.to_pandas()
        import pandas as pd

        frame = plain.select([i for i in range(len(names)) if i not in odd]).to_pandas()
        for i in odd:
            frame.insert(i, names[i], pd.Series(values(plain.column(i)), dtype=object, index=frame.index))
        return frame

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        return text_table(self._table)

    def _repr_html_(self) -> str:
        return html_table(self._table)


def read_rows(log: Log, plan: StreamPlan) -> Rows:
    """Read a stream's rows, as the log holds them now.

    Raises:
        LogError: the log has no such topic.
    """
    if plan.topic not in log.topics():
        raise no_topic(log, plan.topic)
    tables: list[pa.Table] = []
    for entry in walk(log, plan.topic):
        records = entry.records
        for operation in plan.operations:
            records = operation.apply(Batch(records)).records
        tables.append(present(records))
    return Rows(united(tables))


def no_topic(log: Log, name: str) -> LogError:
    """Return the refusal to read a topic that a log does not have."""
    known = ", ".join(topic for topic in log.topics() if not topic.startswith("__")) or "none"
    return LogError(f"the log has no topic «{name}»", advice=f"Its topics: {known}.")


def text_table(table: pa.Table, *, limit: int = SHOWN_ROWS) -> str:
    """Return the first rows as aligned text."""
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
    """Return the first rows as an HTML table."""
    shown = table.slice(0, limit)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.column_names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(value))}</td>" for value in row) + "</tr>"
        for row in zip(*(values(column) for column in shown.columns), strict=True)
    )
    more = f"<p>… {table.num_rows} rows</p>" if table.num_rows > limit else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"


def cell(value: Any) -> str:
    """Return one value, short."""
    if value is None:
        return "–"
    text = value.isoformat(sep=" ") if hasattr(value, "isoformat") and hasattr(value, "hour") else repr_text(value)
    return text if len(text) <= 40 else text[:39] + "…"
