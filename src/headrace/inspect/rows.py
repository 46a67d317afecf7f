"""Rows of a topic, read at once: Arrow, pandas, a table in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.batch import Batch, present
from headrace.errors import LogError
from headrace.log.base import Log, walk
from headrace.plain_values import beyond, united, values
from headrace.plan.task import StreamPlan
from headrace.row_tables import html_table, summary, text_table

if TYPE_CHECKING:
    import pandas as pd


class Rows:
    """Rows read from a topic: a table where they are printed and in a notebook, Arrow or pandas on request.

    `Stream.read` returns them; where the topic has no row yet, they are none, with the columns that its rows will have.
    """

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
        return f"Rows({summary(self._table)})"

    def __str__(self) -> str:
        return text_table(self._table)

    def _repr_html_(self) -> str:
        return html_table(self._table)


def read_rows(log: Log, plan: StreamPlan, no_rows: Callable[[Log], Batch | None]) -> Rows:
    """Read a stream's rows, as the log holds them now.

    Args:
        no_rows: gives none of the stream's rows, with their columns; None where nobody is to write its topic.

    Raises:
        LogError: the log has no such topic.
    """
    tables: list[pa.Table] = []
    for entry in walk(log, plan.topic):
        records = entry.records
        for operation in plan.operations:
            records = operation.apply(Batch(records)).records
        tables.append(present(records))
    if not tables:
        rows = no_rows(log)
        if rows is None and plan.topic not in log.topics():
            raise no_topic(log, plan.topic)
        tables = [present((rows or Batch.of({})).records)]
    return Rows(united(tables))


def no_topic(log: Log, name: str) -> LogError:
    """Return the refusal to read a topic that a log does not have."""
    known = ", ".join(topic for topic in log.topics() if not topic.startswith("__")) or "none"
    return LogError(f"the log has no topic «{name}»", advice=f"Its topics: {known}.")
