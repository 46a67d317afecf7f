"""Topics of a cluster that no pipeline of ours writes: their messages from any place, filtered, followed, as they were.

Such a topic has an order in each partition only. A place in it is an offset for each partition, as an address says it
(``0:120,1:98``; one number is meant for all of them), or a time; a message is ``PARTITION:OFFSET``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import present, take_records
from headrace.errors import DeclarationError, LogError
from headrace.formats.topic_formats import ForeignFormats, codec_for
from headrace.inspect.query import Bounds, with_numbers
from headrace.kafka.fetch import RangeReader, wire_messages
from headrace.kafka.ranges import TopicRange
from headrace.log.kafka_view import KafkaView, message_time, offsets_at
from headrace.plain_values import rows as plain_rows
from headrace.plain_values import united
from headrace.ui.read.moment import moment_at, time_of
from headrace.ui.read.search import CHUNK_ROWS, FIRST_ROWS, Condition, Step
from headrace.ui.read.topics import ROWS, cells_of, chosen

Places = dict[int, int]
SAMPLE = 50
PARTITION = "partition"
LONGEST_LIST = 100_000
# The last one counts first.
_ORDER = (attrgetter("offsets"), attrgetter("partitions"), attrgetter("ts_ms"))
_PLACES = re.compile(r"\d{1,9}:\d{1,18}(,\d{1,9}:\d{1,18})*")


@dataclass(frozen=True, slots=True)
class ForeignTopic:
    """A topic of others at a moment.

    Attributes:
        first, end: of each partition.
        text: the moment, as an address says it; "" as it is now. ``ts_us``: its time, where it has one.
    """

    name: str
    first: Places
    end: Places
    text: str = ""
    ts_us: int | None = None

    @property
    def live(self) -> bool:
        """Return whether it is now."""
        return not self.text

    @property
    def rows(self) -> int:
        """Return how many messages there are at most: ends of transactions take offsets too."""
        return sum(max(0, end - self.first[number]) for number, end in self.end.items())

    def within(self, places: Places) -> Places:
        """Return places of all partitions, none of them outside the topic."""
        return {number: min(max(places.get(number, 0), self.first[number]), end) for number, end in self.end.items()}


def foreign_topic(view: KafkaView, name: str, at: str = "") -> ForeignTopic:
    """Return a topic of others, as it is now or as it was.

    Raises:
        DeclarationError: the moment is none that such a topic has.
        LogError: there is no such topic, or row.
    """
    seen, at = view.seen(name), at.strip()
    if not at:
        return ForeignTopic(name, seen.first, seen.end)
    topic, _, number = at.rpartition(":")
    ts_us: int | None
    if number.isdecimal() and topic in view.topics():
        owner = view.owner(topic)
        ts_us = moment_at(owner, at).ts_us if owner is not None else message_time(view, topic, int(number))
    else:
        ts_us = time_of(at)
    if ts_us is None:
        raise DeclarationError(
            f"«{name}», which others write, has no positions", advice="Give a time, or TOPIC:OFFSET."
        )
    then = offsets_at(view, name, ts_us // 1000 + 1)
    ended = {number: max(seen.first[number], min(end, then.get(number, end))) for number, end in seen.end.items()}
    return ForeignTopic(name, seen.first, ended, at, ts_us)


def places_of(view: KafkaView, topic: ForeignTopic, text: str) -> Places | None:
    """Return the places that an address names; None where it names none.

    Raises:
        DeclarationError: it is no offset, no list of them, and no time.
    """
    text = text.strip()
    if not text:
        return None
    if text.isdecimal() and len(text) < 19:
        return topic.within(dict.fromkeys(topic.end, int(text)))
    if len(text) < LONGEST_LIST and _PLACES.fullmatch(text):
        pairs = (part.split(":") for part in text.split(","))
        return topic.within({int(number): int(offset) for number, offset in pairs})
    ts_us = time_of(text)
    if ts_us is None:
        raise DeclarationError(
            f"«{topic.name}», which others write, has no positions", advice="Give an offset or a time."
        )
    return topic.within({**topic.end, **offsets_at(view, topic.name, ts_us // 1000)})


def text_of(places: Places) -> str:
    """Return places as an address says them.

    >>> text_of({0: 12, 1: 3})
    '0:12,1:3'
    """
    return ",".join(f"{number}:{offset}" for number, offset in sorted(places.items()))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one schema, with where their messages lie and when they were written."""

    records: pa.RecordBatch
    partitions: Ints
    offsets: Ints
    ts_ms: Ints

    def take(self, rows: Ints) -> Part:
        """Return some of them."""
        return Part(take_records(self.records, rows), self.partitions[rows], self.offsets[rows], self.ts_ms[rows])

    @property
    def place(self) -> str:
        """Return where the first row lies."""
        return f"{self.partitions[0]}:{self.offsets[0]}"

    def with_partition(self) -> pa.RecordBatch:
        """Return the rows with their partitions as a column, where they have none of that name."""
        if PARTITION in self.records.schema.names:
            return self.records
        schema = self.records.schema.append(pa.field(PARTITION, pa.int64()))
        return pa.RecordBatch.from_arrays([*self.records.columns, pa.array(self.partitions)], schema=schema)

    def numbered(self) -> pa.Table:
        """Return the rows as people read them, with partition and offset, for a file."""
        numbers = {PARTITION: pa.array(self.partitions), "offset": pa.array(self.offsets)}
        return with_numbers(present(self.records), **numbers)

    def placed(self) -> pa.Table:
        """Return the rows as people read them; the first column says where each lies."""
        places = [f"{number}:{offset}" for number, offset in zip(self.partitions, self.offsets, strict=True)]
        table = present(self.records)
        name = "offset"
        while name in table.column_names:
            name = f"__{name}"
        return table.add_column(0, name, pa.array(places, pa.string()))


@dataclass(slots=True)
class Messages:
    """Reads messages of one topic, a range of each partition at a time; leaves the cluster at the end of its block.

    Attributes:
        format: that the newest have shown.
        bad: partition, offset and reason of those that cannot be decoded, the first ones.
    """

    view: KafkaView
    topic: str
    format: str = ""
    bad: list[tuple[int, int, str]] = field(default_factory=list)
    _formats: ForeignFormats = field(default_factory=lambda: ForeignFormats(codec_for()))
    _reader: RangeReader | None = None

    def __enter__(self) -> Messages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._reader is not None:
            self._reader.close()

    def raw(self, number: int, first: int, end: int) -> list[Any]:
        """Return the visible messages of a range of a partition."""
        if first >= end:
            return []
        if self._reader is None:
            self._reader = RangeReader(self.view.location)
        return self._reader.read(TopicRange(self.topic, number, first, end - 1))

    def read(self, ranges: Mapping[int, tuple[int, int]]) -> list[Part]:
        """Return the rows of a range of each partition, in the order of partitions and offsets."""
        found = []
        for number, (first, end) in sorted(ranges.items()):
            wire = wire_messages(self.topic, self.raw(number, first, end), partition=number)
            if not len(wire):
                continue
            name, decoded = self._formats(wire)
            self.format = name.lstrip("~")
            for batch, at in decoded.parts:
                where = np.asarray(at, np.int64)
                found.append(Part(batch.records, wire.partitions[where], wire.offsets[where], wire.ts_ms[where]))
            self.bad += [(number, int(wire.offsets[i]), reason) for i, reason in decoded.bad[: ROWS - len(self.bad)]]
        return found


def _sorted(parts: Sequence[Part], most: int, *, newest_first: bool) -> list[Part]:
    """Return the first rows, one by one, in the order of their times, then of partitions and offsets."""
    if not parts:
        return []
    order = np.lexsort([np.concatenate([column(part) for part in parts]) for column in _ORDER])
    ends = np.cumsum([part.records.num_rows for part in parts])
    rows = []
    for row in (order[::-1] if newest_first else order)[:most].tolist():
        number = int(np.searchsorted(ends, row, "right"))
        rows.append(parts[number].take(np.array([row - (ends[number] - parts[number].records.num_rows)])))
    return rows


def cells(rows: Sequence[Part], columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return places and cells of rows, by columns that a page shows."""
    found: list[tuple[str, list[str]]] = []
    for row in rows:
        found += [(str(place), texts) for place, texts in cells_of(row.placed(), columns)]
    return found


@dataclass(frozen=True, slots=True)
class ForeignPage:
    """Some messages of a topic of others, as `headrace.ui.read.topics.Page` has rows.

    Attributes:
        format: that they show.
        rows: place and cells, in the order of the page.
        before, after: places to ask for, where there is more on that side; None where there is not.
        bad: partition, offset and reason of those that cannot be decoded.
    """

    format: str
    columns: list[str]
    all_columns: list[str]
    rows: list[tuple[str, list[str]]]
    before: str | None
    after: str | None
    bad: list[tuple[int, int, str]]


def foreign_page(
    view: KafkaView,
    topic: ForeignTopic,
    begin: Places | None = None,
    *,
    columns: Sequence[str] = (),
    newest_first: bool = True,
    count: int = ROWS,
) -> ForeignPage:
    """Return messages of a topic of others.

    Args:
        begin: where the page begins: the newest first those before these places, else those from there on.
        count: 0: the columns alone.
    """
    begin = (topic.end if newest_first else topic.first) if begin is None else begin
    size = count or SAMPLE
    ranges = {
        number: (max(topic.first[number], at - size), at) if newest_first else (at, min(topic.end[number], at + size))
        for number, at in begin.items()
    }
    with Messages(view, topic.name) as messages:
        parts = messages.read(ranges)
    rows = _sorted(parts, size, newest_first=newest_first)
    table = united([row.placed() for row in rows]) if rows else pa.table({"offset": pa.array([], pa.string())})
    shown, everything = chosen(table, columns)
    after = _left(ranges, parts, rows, newest_first=newest_first)
    more = any(at > topic.first[n] if newest_first else at < topic.end[n] for n, at in after.items())
    return ForeignPage(
        messages.format, shown, everything, cells(rows, shown) if count else [], None,
        text_of(after) if more else None, messages.bad,
    )  # fmt: skip


def _left(
    ranges: Mapping[int, tuple[int, int]], parts: Sequence[Part], rows: Sequence[Part], *, newest_first: bool
) -> Places:
    """Return where the next page begins: behind what this one shows, and behind what it has found to be empty."""
    read: dict[int, set[int]] = {number: set() for number in ranges}
    for part in parts:
        read[int(part.partitions[0])] |= set(part.offsets.tolist())
    taken: dict[int, set[int]] = {number: set() for number in ranges}
    for row in rows:
        taken[int(row.partitions[0])].add(int(row.offsets[0]))
    found = {}
    for number, (first, end) in ranges.items():
        left = read[number] - taken[number]
        if newest_first:
            found[number] = max(left) + 1 if left else first
        else:
            found[number] = min(left) if left else end
    return found


@dataclass(slots=True)
class ForeignSearch:
    """A condition, over the messages of a topic of others; see `headrace.ui.read.search.Search`.

    Beside the columns there are ``partition`` and ``offset``. Rows come a chunk of each partition at a time: in the
    order of their times inside a chunk.
    """

    view: KafkaView
    topic: ForeignTopic
    condition: str
    first: Places
    end: Places
    newest_first: bool
    bounds: Bounds
    _next: Places = field(init=False)

    def __post_init__(self) -> None:
        self._next = dict(self.end if self.newest_first else self.first)

    def steps(self, most: int) -> Iterator[Step]:
        """Look at one chunk after the other, small ones first, until so many rows are found.

        Raises:
            LogError: the condition is wrong, with its place; or it was cancelled.
        """
        with Messages(self.view, self.topic.name) as messages, self.bounds.connection() as connection:
            condition = Condition(connection, self.condition, self._shape(messages), self.bounds)
            of, looked = sum(max(0, end - self.first[n]) for n, end in self.end.items()), 0
            for ranges in self._chunks(FIRST_ROWS):
                self.bounds.check()
                parts = list(self._matching(condition, messages.read(ranges)))
                found = _sorted(parts, most, newest_first=self.newest_first)
                self._next |= _left(ranges, parts, found, newest_first=self.newest_first)
                looked += sum(end - first for first, end in ranges.values())
                most -= len(found)
                if most <= 0 and any(self._next[n] != (self.first[n] if self.newest_first else end)
                                     for n, end in self.end.items()):  # fmt: skip
                    looked = min(looked, of - 1)
                yield Step(looked, of, [(row.place, row) for row in found], partial(cells, found))
                if most <= 0:
                    return

    def _chunks(self, size: int) -> Iterator[dict[int, tuple[int, int]]]:
        """Yield a range of each partition that has more, until none has.

        Args:
            size: offsets of the first ones together.
        """
        left = {number: (self.first[number], end) for number, end in self.end.items() if self.first[number] < end}
        while left:
            each = max(1, size // len(left))
            ranges = {
                number: (max(first, end - each), end) if self.newest_first else (first, min(end, first + each))
                for number, (first, end) in left.items()
            }
            yield ranges
            size = CHUNK_ROWS
            for number, (first, end) in ranges.items():
                begin, last = left[number]
                left[number] = (begin, first) if self.newest_first else (end, last)
            left = {number: (first, end) for number, (first, end) in left.items() if first < end}

    def _matching(self, condition: Condition, parts: Sequence[Part]) -> Iterator[Part]:
        for part in parts:
            rows = condition.rows(part.with_partition(), part.offsets)
            if len(rows):
                yield part.take(rows)

    def _shape(self, messages: Messages) -> pa.Schema:
        """Return the columns that a condition may name: of the oldest and the newest messages of each partition."""
        found: dict[str, pa.Field] = {}
        metadata = None
        for ends in (
            {n: (first, min(self.topic.end[n], first + SAMPLE)) for n, first in self.topic.first.items()},
            {n: (max(self.topic.first[n], end - SAMPLE), end) for n, end in self.topic.end.items()},
        ):
            for part in messages.read(ends):
                records = part.with_partition()
                found |= {each.name: each for each in records.schema}
                metadata = records.schema.metadata
        messages.bad.clear()
        return pa.schema(list(found.values()), metadata)

    def place(self, looked: int) -> str:
        """Return where to look on."""
        del looked
        return text_of(self._next)

    def tables(self) -> Iterator[pa.Table]:
        """Yield all rows that are found, as a file has them."""
        with Messages(self.view, self.topic.name) as messages, self.bounds.connection() as connection:
            condition = (
                Condition(connection, self.condition, self._shape(messages), self.bounds) if self.condition else None
            )
            for ranges in self._chunks(CHUNK_ROWS):
                self.bounds.check()
                parts = messages.read(ranges)
                for part in parts if condition is None else self._matching(condition, parts):
                    yield part.numbered()


def shape_of(tables: Iterator[pa.Table]) -> pa.Table:
    """Return none of the rows of tables, with all columns that any of them has."""
    schemas: dict[pa.Schema, None] = {}
    for table in tables:
        schemas.setdefault(table.schema.remove_metadata())
    return united([schema.empty_table() for schema in schemas]) if schemas else pa.table({})


class Follower:
    """Reads what comes to a topic of others, from places on. Used by one thread at a time."""

    def __init__(self, view: KafkaView, topic: str, after: Places) -> None:
        self._view = view
        self._places = dict(after)
        self._messages = Messages(view, topic)

    @property
    def text(self) -> str:
        """Return the places up to which everything was given."""
        return text_of(self._places)

    def rows(self, columns: Sequence[str], most: int) -> list[tuple[str, list[str]]]:
        """Return what has come since, oldest first; of each partition so much at the most."""
        seen = foreign_topic(self._view, self._messages.topic)
        self._places = {number: max(first, self._places.get(number, first)) for number, first in seen.first.items()}
        ranges = {n: (at, min(seen.end[n], at + most)) for n, at in self._places.items() if at < seen.end[n]}
        if not ranges:
            return []
        parts = self._messages.read(ranges)
        self._messages.bad.clear()
        self._places |= {number: end for number, (_, end) in ranges.items()}
        return cells(_sorted(parts, LONGEST_LIST, newest_first=False), columns)

    def close(self) -> None:
        """Leave the cluster."""
        self._messages.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class ForeignRow:
    """One message in full.

    Attributes:
        values: by column, as Python's; none where it cannot be decoded, and why.
        about: where it lies, when it was written, its key and its headers, as texts.
    """

    topic: str
    place: str
    values: dict[str, Any]
    about: dict[str, Any]
    reason: str = ""


def foreign_row(view: KafkaView, topic: str, number: int, offset: int) -> ForeignRow:
    """Return one message.

    Raises:
        LogError: there is none.
    """
    seen = view.seen(topic)
    with Messages(view, topic) as messages:
        held = seen.first.get(number, 0) <= offset < seen.end.get(number, 0)
        found = messages.raw(number, offset, offset + 1) if held else []
        if not found:
            raise LogError(f"«{topic}» holds no message {number}:{offset}", advice="Its page shows which it holds.")
        # What a topic is, its older messages say; see `ForeignFormats`.
        parts = messages.read({number: (max(seen.first[number], offset - SAMPLE), offset + 1)})
    wire = wire_messages(topic, found, partition=number)
    about: dict[str, Any] = {"partition": number, "offset": offset, "written": int(wire.ts_ms[0])}
    about["key"] = _text(wire.key(0))
    about |= {f"header {name}": _text(value) for name, value in wire.headers[0]}
    values: dict[str, Any] = {}
    for part in parts:
        at = np.flatnonzero(part.offsets == offset)
        if len(at):
            values = plain_rows(present(take_records(part.records, at[:1])))[0]
    reason = next((why for of, at_, why in messages.bad if (of, at_) == (number, offset)), "")
    if reason:
        about["value"] = _text(wire.values[0])
    return ForeignRow(topic, f"{number}:{offset}", values, about, reason)


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode()
    return value
