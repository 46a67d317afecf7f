"""A log at one of its slices: what each topic held then. Every page reads through one, of now or of before.

A moment is a slice, the log's own clock: all that its transaction wrote is there, nothing later is. It is named by a
time (of the commit to the log), an LSN or a position (everything up to there is captured and predicted), or a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa

from headrace.errors import DeclarationError, LogError
from headrace.log.base import Log, TopicInfo
from headrace.replay.position_index import entry_of, place_of
from headrace.replay.rebuild import Place

SLICE = "slice:"


@dataclass(frozen=True, slots=True)
class Moment:
    """A log as it is now, or as it was after a slice.

    Attributes:
        slice: the last one that is there; None: as it is, and goes on.
        ts_us: when that slice was appended; None as it is now.
        text: as an address says it; "" as it is now.
    """

    log: Log
    slice: int | None = None
    ts_us: int | None = None
    text: str = ""

    @property
    def live(self) -> bool:
        """Return whether it is now."""
        return self.slice is None

    def end(self, topic: str) -> int:
        """Return the offset after the last row that a topic held."""
        if self.slice is not None:
            # The first row that came later stands where the topic ended.
            later = self.log.read([topic], after=self.slice, limit=1)
            if later:
                return later[0].offset
        info = self.log.topics().get(topic)
        return 0 if info is None else info.end

    def newest_us(self) -> int:
        """Return when its last slice was appended; 0 where there is none."""
        if self.ts_us is not None:
            return self.ts_us
        return max((info.last_ts_us for info in self.log.topics().values() if info.rows), default=0)

    def topics(self) -> dict[str, TopicInfo]:
        """Return the topics that were there, as they were; of an earlier moment without their bytes (0)."""
        found = self.log.topics()
        if self.slice is None:
            return found
        return {name: then for name, info in found.items() if (then := self._then(info)) is not None}

    def topic(self, name: str) -> TopicInfo | None:
        """Return one topic as it was; None where there was none."""
        info = self.log.topics().get(name)
        return info if info is None or self.slice is None else self._then(info)

    def _then(self, info: TopicInfo) -> TopicInfo | None:
        end = self.end(info.name)
        if not end:
            return None
        last = entry_of(self.log, info.name, end - 1) if end > info.first else None
        last_ts_us = last.ts_us if last is not None else info.first_ts_us
        return replace(info, first=min(info.first, end), end=end, bytes=0, entries=0, last_ts_us=last_ts_us)

    def rows(self, topic: str, first: int, end: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield rows between two offsets, as their entries hold them: offset of the first, and the rows."""
        while first < end:
            entries = self.log.read_topic(topic, offset=first, limit=min(end - first, 65_536))
            for entry in entries:
                start, stop = max(first, entry.offset), min(end, entry.offset + entry.records.num_rows)
                if start < stop:
                    yield start, entry.records.slice(start - entry.offset, stop - start)
                first = max(first, stop)
            if not entries:
                return


def now(log: Log) -> Moment:
    """Return a log as it is."""
    return Moment(log)


def moment_at(log: Log, text: str) -> Moment:
    """Return a log at a place that an address names.

    Args:
        text: ``TOPIC:OFFSET``, a position, an LSN, a time (without a date it is today's, without a zone UTC), or
            ``slice:NUMBER``; empty: now.

    Raises:
        DeclarationError: it is none of these. LogError: the log has no such row.
    """
    text = text.strip()
    if not text:
        return now(log)
    topic, _, number = text.rpartition(":")
    if number.isdecimal() and topic in log.topics():
        return _after(log, _slice_of_row(log, topic, int(number)), text)
    if text.startswith(SLICE) and number.isdecimal():
        return _after(log, min(int(number), log.newest_slice()), text)
    place = Place.parse(_dated(text))
    if place.ts_us is not None:
        return _after(log, slice_at(log, place.ts_us), text, place.ts_us)
    if place.position is not None:
        return _after(log, _slice_of_position(log, (place.position.lsn, place.position.index)), text)
    assert place.lsn is not None
    return _after(log, _slice_of_position(log, (place.lsn, 2**63 - 1)), text)


def moment_since(log: Log, ts_us: int, text: str) -> Moment:
    """Return a log as it was at a time.

    Args:
        text: how an address says it.
    """
    return _after(log, slice_at(log, ts_us), text, ts_us)


def time_of(text: str) -> int | None:
    """Return the time that a text says, in microseconds; None where it says a position or an LSN.

    Raises:
        DeclarationError: it is none of these.
    """
    return Place.parse(_dated(text)).ts_us


def _after(log: Log, number: int, text: str, ts_us: int | None = None) -> Moment:
    return Moment(log, number, time_of_slice(log, number) if ts_us is None else ts_us, text)


def _dated(text: str) -> str:
    """Return a time of day as one of today."""
    try:
        clock = datetime.strptime(text, "%H:%M:%S" if text.count(":") == 2 else "%H:%M").replace(tzinfo=UTC)
    except ValueError:
        return text
    return datetime.combine(datetime.now(UTC).date(), clock.timetz()).isoformat()


def time_of_slice(log: Log, number: int) -> int:
    """Return when a slice was appended, or the next one that the log still holds; 0 where it holds none."""
    for after in (number - 1, 0):
        found = log.read(after=after, limit=1)
        if found:
            return found[0].ts_us
    return 0


def slice_at(log: Log, ts_us: int) -> int:
    """Return the last slice that was appended at a time or before; 0 where there is none."""
    low, high = 0, log.newest_slice()
    while low < high:
        middle = (low + high) // 2
        found = log.read(after=middle, limit=1)
        if found and found[0].ts_us <= ts_us:
            low = found[0].slice
        else:
            high = middle
    return low


def _slice_of_row(log: Log, topic: str, offset: int) -> int:
    entry = entry_of(log, topic, offset)
    if entry is None or not entry.offset <= offset:
        raise LogError(f"«{topic}» holds no row {offset}", advice="Its page shows which offsets it holds.")
    return entry.slice


def _slice_of_position(log: Log, place: tuple[int, int]) -> int:
    """Return the last slice in which a topic has a row at a position or before it.

    Topics that a source fills, and what is derived from them row by row, are in the order of positions.
    """
    slices = [found for info in log.topics().values() if (found := _last_before(log, info, place)) is not None]
    if not slices:
        raise DeclarationError("no row of this log has such a position", advice="Give a time, or TOPIC:OFFSET.")
    return max(slices)


def _last_before(log: Log, info: TopicInfo, place: tuple[int, int]) -> int | None:
    low, high, found = info.first, info.end, None
    while low < high:
        entry = entry_of(log, info.name, (low + high) // 2)
        if entry is None:
            return None
        key = place_of(entry.records, 0)
        if not key[0]:
            return None  # rows that no database gave a position
        if key <= place:
            low, found = entry.offset + entry.records.num_rows, entry.slice
        else:
            high = entry.offset
    return found
