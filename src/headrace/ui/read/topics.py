"""Topics and their rows, as pages show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import Batch, present
from headrace.errors import LogError
from headrace.inspect.topics import seen_row
from headrace.log.base import TopicInfo
from headrace.log.kafka_view import KafkaView
from headrace.plain_values import united, values
from headrace.row_tables import cell
from headrace.ui.read.moment import Moment, moment_at, slice_at, time_of
from headrace.units import bytes_text, time_text

ROWS = 100
MOST_COLUMNS = 30
OFFSET = "offset"
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TopicLine:
    """A topic in the list.

    Attributes:
        bytes: 0 where they are not known.
        pipeline: whose log it belongs to; "" where others write it, or where there is one log only.
        partitions: of a cluster; 0 of a file.
        groups: consumer groups on a cluster, each with what it has still to read.
    """

    name: str
    rows: int
    first: int
    end: int
    bytes: int
    last_ts_us: int
    partitions: int = 0
    pipeline: str = ""
    groups: tuple[tuple[str, int], ...] = ()

    @property
    def internal(self) -> bool:
        return self.name.startswith("__")

    @property
    def dead(self) -> bool:
        """Return whether it holds dead letters."""
        return self.name.endswith(".dlq")

    @property
    def size(self) -> str:
        return bytes_text(self.bytes) if self.bytes else "–"

    @property
    def newest(self) -> str:
        return time_text(self.last_ts_us)


def topic_lines(moment: Moment) -> list[TopicLine]:
    """Return the topics of a log, internal ones last."""
    found = [_line(info) for info in moment.topics().values()]
    return sorted(found, key=lambda line: (line.internal, line.dead, line.name))


def _line(info: TopicInfo) -> TopicLine:
    return TopicLine(info.name, info.rows, info.first, info.end, info.bytes, info.last_ts_us if info.rows else 0)


def cluster_lines(view: KafkaView) -> list[TopicLine]:
    """Return the topics of a cluster, whoever writes them, internal ones last."""
    found = []
    try:
        lags = view.lags()
    except LogError:  # whoever may not see groups sees the topics
        lags = {}
    for seen in view.seen_all(view.names(internal=True), LOOK_SECONDS):
        name = seen.topic
        about = seen_row(seen)
        last = seen.info.last_ts_us if seen.info is not None and seen.info.rows else 0
        first, newest = about["first_offset"] or 0, about["last_offset"]
        end = 0 if newest is None else newest + 1
        size = seen.info.bytes if seen.info is not None else 0
        groups = tuple(lags.get(name, {}).items())
        found.append(TopicLine(name, seen.rows, first, end, size, last, len(seen.end), seen.pipeline, groups))
    return sorted(found, key=lambda line: (line.internal, line.dead, line.name))


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a topic.

    Attributes:
        columns: names of those that are shown; ``all_columns``: of all that there are.
        rows: offset, and cells as texts, in the order of the page.
        before, after: offset to ask for, where the order has more rows on a side; None where it has not.
        first, end: of the topic at that moment.
    """

    columns: list[str]
    all_columns: list[str]
    rows: list[tuple[int, list[str]]]
    before: int | None
    after: int | None
    first: int
    end: int


def page_of(
    moment: Moment,
    topic: TopicInfo,
    *,
    offset: int | None = None,
    count: int = ROWS,
    columns: Sequence[str] = (),
    newest_first: bool = True,
) -> Page:
    """Return rows of a topic.

    Args:
        offset: of the first row of the page; None: where the order begins.
        columns: those to show, in order; none: the first `MOST_COLUMNS`.
        newest_first: the order.
    """
    before: int | None
    after: int | None
    if newest_first:
        last = topic.end - 1 if offset is None else min(offset, topic.end - 1)
        first, end = max(topic.first, last - count + 1), last + 1
        before = min(topic.end - 1, last + count) if last < topic.end - 1 else None
        after = first - 1 if first > topic.first else None
    else:
        first = topic.first if offset is None else max(offset, topic.first)
        end = min(topic.end, first + count)
        before = max(topic.first, first - count) if first > topic.first else None
        after = end if end < topic.end else None
    table = table_of(moment.rows(topic.name, first, end))
    if not table.num_rows and topic.rows:
        table = table_of(moment.rows(topic.name, topic.end - 1, topic.end)).slice(0, 0)
    shown, everything = chosen(table, columns)
    found = cells_of(table, shown)
    return Page(shown, everything, found[::-1] if newest_first else found, before, after, topic.first, topic.end)


def offset_of(moment: Moment, topic: TopicInfo, text: str, *, newest_first: bool) -> int | None:
    """Return where a page begins that is asked for by an offset, or by a time, an LSN or a position.

    Of a time that is the first row since then, in the order of offsets; where the newest are first, the last one before
    it.

    Raises:
        DeclarationError: it is none of these.
    """
    text = text.strip()
    if not text:
        return None
    if text.isdecimal() and len(text) < 19:
        return int(text)
    ts_us = time_of(text)
    if ts_us is not None:
        since = slice_at(moment.log, ts_us - 1)
        later = moment.log.read([topic.name], after=since, limit=1)
        first = min(topic.end, later[0].offset if later else topic.end)
    else:
        first = moment_at(moment.log, text).end(topic.name)
    return max(topic.first, first - 1) if newest_first else first


def table_of(parts: Iterable[tuple[int, pa.RecordBatch]]) -> pa.Table:
    """Return rows as people read them, with their offsets as the first column."""
    tables = []
    for offset, records in parts:
        table = present(records)
        numbers = offset_numbers(offset, records.num_rows)
        tables.append(table.add_column(0, _offset_name(table.column_names), numbers))
    return united(tables) if tables else pa.table({OFFSET: pa.array([], pa.int64())})


def offset_numbers(first: int, rows: int) -> pa.Array:
    """Return the offsets of rows that follow one another."""
    return pa.array(np.arange(first, first + rows, dtype=np.int64))


def _offset_name(names: Sequence[str]) -> str:
    """Return the name of the column of offsets beside a topic's own columns."""
    name = OFFSET
    while name in names:
        name = f"__{name}"
    return name


def chosen(table: pa.Table, columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the columns that are shown, and all that there are, without the offset."""
    everything = table.column_names[1:]
    known = set(everything)
    wanted = [name for name in dict.fromkeys(columns) if name in known]
    if wanted:
        return wanted, everything
    meta = [name for name in ("op", "position", "ts") if name in known]
    own = [name for name in everything if name not in meta and not name.startswith("__")]
    return [*own[:MOST_COLUMNS], *meta], everything


def rows_after(
    moment: Moment, topic: str, offset: int, columns: Sequence[str], most: int
) -> list[tuple[int, list[str]]]:
    """Return offset and cells of the rows from an offset on, oldest first, by columns that a page shows already."""
    end = moment.end(topic)
    return cells_of(table_of(moment.rows(topic, offset, min(end, offset + most))), columns)


def cells_of(table: pa.Table, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """Return offset and cells of rows, by columns that a page shows; of those that they have not "–"."""
    names = set(table.column_names)
    offsets = values(table.column(0))
    texts = [
        [cell(value) for value in values(table.column(name))] if name in names else ["–"] * len(offsets)
        for name in columns
    ]
    return list(zip(offsets, map(list, zip(*texts, strict=True)) if texts else [[] for _ in offsets], strict=True))


@dataclass(frozen=True, slots=True)
class Row:
    """One row in full.

    Attributes:
        values: by column, as Python's.
        key: names of the columns of its key.
        headers: what the event was: op, position, time.
    """

    topic: str
    offset: int
    slice: int
    values: dict[str, Any]
    key: tuple[str, ...]
    headers: dict[str, Any]


def row_of(moment: Moment, topic: str, offset: int) -> Row | None:
    """Return one row; None where the topic holds none there."""
    found = moment.log.read_topic(topic, offset=offset, limit=1)
    if not found or found[0].offset > offset or offset >= moment.end(topic):
        return None
    entry = found[0]
    records = entry.records.slice(offset - entry.offset, 1)
    table = present(records)
    row = {name: values(table.column(name))[0] for name in table.column_names}
    headers = {name: row.pop(name) for name in ("op", "position", "ts") if name in row}
    return Row(topic, offset, entry.slice, row, Batch(records).key_columns, headers)
