"""SQL over the topics of a log at a moment, bounded: what a page shows of a result."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from headrace.batch import present
from headrace.errors import LogError
from headrace.inspect.messages import plain
from headrace.inspect.query import (
    Bounds,
    Names,
    empty_topic,
    joined,
    query_results,
    topic_shape,
    with_numbers,
)
from headrace.inspect.topics import view_shape
from headrace.log.base import Log
from headrace.log.kafka_view import KafkaView
from headrace.plain_values import values
from headrace.row_tables import cell
from headrace.ui.read.foreign import ForeignSearch, ForeignTopic, foreign_topic
from headrace.ui.read.moment import Moment
from headrace.ui.read.topics import offset_numbers
from headrace.ui.subject import Subject

READ_BYTES = 1 << 30
SHOWN_ROWS = 1_000
CHART_ROWS = 10_000
CHART_SERIES = 8


@dataclass(frozen=True, slots=True)
class Result:
    """What the last query of some statements gave.

    Attributes:
        columns: names and types.
        rows: the first `SHOWN_ROWS`, as texts.
        count: rows in all, as far as they were fetched; ``more``: whether there are others.
        chart: numbers for a picture: names of the columns, and their values; the first is the x axis.
    """

    columns: list[tuple[str, str]]
    rows: list[list[str]]
    count: int
    more: bool
    chart: dict[str, Any] | None


def run(subject: Subject, query: str, at: str, bounds: Bounds) -> pa.Table:
    """Return what the last query among some statements gives.

    Raises:
        LogError: it is wrong, or exceeds its bounds. DeclarationError: there is no such moment.
    """

    def read(_: object, topic: str) -> pa.Table:
        return _table(subject, topic, at, bounds)

    def shape(_: object, topic: str) -> pa.Table:
        return _shape(subject, topic)

    names = set(topics_of(subject))
    found = pa.table({})
    for found in query_results(Names(names), query, read, shape, bounds=bounds):  # noqa: B007 (the last one counts)
        pass
    return found


SHOWN_BESIDE = ("op", "position", "ts", "offset")


def topics_of(subject: Subject) -> list[str]:
    """Return the topics that a query may name."""
    names = subject.held.topics() if subject.view is None else subject.view.names(internal=True)
    return sorted(names, key=lambda name: (name.startswith("__"), name))


def columns_of(subject: Subject, at: str = "") -> dict[str, list[str]]:
    """Return the columns of each topic that is not internal, for completion: those that it has, or had then."""
    found = {}
    for topic in topics_of(subject):
        log = subject.log_of(topic)
        if topic.startswith("__") or log is None:
            continue
        if not at:
            found[topic] = _shape(subject, topic).column_names
        elif end := subject.moment(topic, at).end(topic):
            names = [name for offset, schema in log.schemas(topic) if offset < end for name in schema.names]
            found[topic] = [*dict.fromkeys(name for name in names if not name.startswith("__")), *SHOWN_BESIDE]
    return found


def _shape(subject: Subject, topic: str) -> pa.Table:
    log = subject.log_of(topic)
    if log is None:
        assert isinstance(subject.held, KafkaView)
        return view_shape(subject.held, topic)
    return topic_shape(log, topic)


def _table(subject: Subject, topic: str, at: str, bounds: Bounds) -> pa.Table:
    """Return the rows of a topic at a moment.

    Raises:
        LogError: they are more than a query may take, or nobody waits for them any more.
    """
    log = subject.log_of(topic)
    if log is None:
        assert isinstance(subject.held, KafkaView)
        return joined(list(_messages(foreign_topic(subject.held, topic, at), subject.held, bounds)))
    moment = subject.moment(topic, at)
    return joined(list(_parts(moment, log, topic, bounds))) or empty_topic(None)


def _messages(topic: ForeignTopic, view: KafkaView, bounds: Bounds) -> Iterable[pa.Table]:
    for table in ForeignSearch(view, topic, "", topic.first, topic.end, False, bounds).tables():
        bounds.read += table.nbytes
        if bounds.read > READ_BYTES:
            raise _too_much(topic.name)
        yield table
    if not topic.rows:
        yield view_shape(view, topic.name)


def _too_much(topic: str) -> LogError:
    return LogError(
        f"with «{topic}» the query reads more than {READ_BYTES >> 20} MiB of rows, which is too much here",
        advice="Filter the topic on its own page, or run headrace sql.",
    )


def _parts(moment: Moment, log: Log, topic: str, bounds: Bounds) -> Iterable[pa.Table]:
    info = log.topics().get(topic)
    if info is None:
        return
    found = False
    for offset, records in moment.rows(topic, info.first, moment.end(topic)):
        bounds.check()
        found = True
        bounds.read += records.nbytes
        if bounds.read > READ_BYTES:
            raise _too_much(topic)
        yield with_numbers(present(records), offset=offset_numbers(offset, records.num_rows))
    if not found:
        yield topic_shape(log, topic)


def result_of(table: pa.Table, *, more: bool) -> Result:
    """Return what a page shows of a result."""
    shown = table.slice(0, SHOWN_ROWS)
    texts = [[cell(value) for value in values(column)] for column in shown.columns]
    rows = [list(row) for row in zip(*texts, strict=True)]
    columns = [(field.name, str(field.type)) for field in table.schema]
    return Result(columns, rows, table.num_rows, more, _chart(table.slice(0, CHART_ROWS)))


def _chart(table: pa.Table) -> dict[str, Any] | None:
    """Return a result's numbers: the first column as x, where it is a number or a time, and those of the others."""
    series: list[tuple[str, list[float | None]]] = []
    first = table.column_names[:1]
    for name, column in zip(table.column_names, table.columns, strict=True):
        numbers = _numbers(column)
        if numbers is not None or ([name] == first and not series):
            series.append((name, list(range(len(column))) if numbers is None else numbers))
    if len(series) < 2 or not table.num_rows:
        return None
    names, numbers_of = zip(*series[: CHART_SERIES + 1], strict=True)
    kind = table.schema.field(0).type
    labels = None if _numbers(table.column(0)) is not None else [cell(value) for value in values(table.column(0))]
    return {"names": names, "values": numbers_of, "time": pa.types.is_temporal(kind), "labels": labels}


def _numbers(column: pa.ChunkedArray) -> list[float | None] | None:
    """Return a column as numbers that JSON has, times as seconds; None where it holds something else."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        try:
            column = column.cast(pa.timestamp("us")).cast(pa.int64())
        except pa.ArrowException:
            return None
        return [None if value is None else value / 1e6 for value in values(column)]
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    found = (None if value is None else float(value) for value in values(column))
    return [value if value is not None and math.isfinite(value) else None for value in found]


def json_rows(table: pa.Table) -> Iterable[dict[str, Any]]:
    """Yield the rows of a result in JSON's types."""
    columns = [values(column) for column in table.columns]
    for row in zip(*columns, strict=True):
        yield plain(dict(zip(table.column_names, row, strict=True)))
