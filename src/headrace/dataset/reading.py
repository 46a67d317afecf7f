"""A topic's rows a chunk at a time, from an offset to an offset: of a log, or of a cluster's topic that others write.

A *place* is the next offset by partition. The rows of a log's topic have one sequence of offsets, kept as partition 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.capture.topics.reader import Offsets, TopicsReader
from headrace.dataset.groups import Positions, open_positions
from headrace.errors import LogError
from headrace.formats.topic_formats import ForeignFormats
from headrace.kafka.cluster import Cluster
from headrace.kafka.fetch import wire_messages
from headrace.kafka.settings import KafkaPlace
from headrace.log.base import Entry, Log
from headrace.wire import WireMessages

Place = Mapping[int, int]
Start = Literal["earliest", "latest"] | int
CHUNK_ROWS = 16_384
CHUNK_BYTES = 8 << 20
ROW = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one schema.

    Attributes:
        batch: the rows.
        before: the place where they begin.
        partition: theirs.
        offsets: of each row.
        bad: messages before or among them that could not be decoded: where, and why.
    """

    batch: Batch
    before: Place
    partition: int
    offsets: Ints
    bad: Sequence[tuple[str, str]] = ()

    def after(self, row: int) -> Place:
        """The place behind a row."""
        return {**self.before, self.partition: int(self.offsets[row]) + 1}


class Reader(Protocol):
    """Reads one topic. Used by one thread at a time.

    Attributes:
        place: behind everything that `read` has given.
    """

    place: Place

    def begin(self, start: Start) -> Place:
        """Where reading starts."""
        ...

    def end(self) -> Place:
        """Where the rows end that are there now."""
        ...

    def held(self, place: Place) -> Place | None:
        """A group's place, moved to the oldest row where that is later; None: it is no place of this topic."""
        ...

    def seek(self, place: Place) -> None:
        """Read from a place on."""
        ...

    def read(self, until: Place | None, wait: float) -> list[Chunk]:
        """Rows before a place, or up to the end there is; none where nothing has come in so many seconds.

        Raises:
            LogError: the log cannot be read, or rows are gone.
        """
        ...

    def reached(self, place: Place) -> bool:
        """Whether everything before a place has been given."""
        ...

    def positions(self, group: str) -> Positions:
        """Where the group's positions in this topic are kept."""
        ...

    def close(self) -> None:
        """Leave the log or the cluster."""
        ...


class LogReader:
    """Reads a topic of a log.

    Args:
        log: the log.
        topic: a topic of it.
        close: what to call at the end.
    """

    def __init__(self, log: Log, topic: str, close: Callable[[], None]) -> None:
        self._log = log
        self._topic = topic
        self._close = close
        self._ahead: list[Entry] = []
        self._limit = 0
        self.place: Place = {ROW: 0}

    def begin(self, start: Start) -> Place:
        """See `Reader.begin`."""
        info = self._log.topics()[self._topic]
        if isinstance(start, int):
            return {ROW: max(start, info.first)}
        return {ROW: info.first if start == "earliest" else info.end}

    def end(self) -> Place:
        """See `Reader.end`."""
        return {ROW: self._log.topics()[self._topic].end}

    def held(self, place: Place) -> Place | None:
        """See `Reader.held`."""
        info = self._log.topics()[self._topic]
        return {ROW: max(place[ROW], info.first)} if place.get(ROW, info.end + 1) <= info.end else None

    def seek(self, place: Place) -> None:
        """See `Reader.seek`."""
        self.place = {ROW: place[ROW]}
        self._ahead = []

    def read(self, until: Place | None, wait: float) -> list[Chunk]:
        """See `Reader.read`."""
        if not self._ahead:
            self._ahead = self._log.read_topic(self._topic, offset=self.place[ROW], limit=self._rows_at_once())
        stop = None if until is None else until[ROW]
        run = self._run(stop)
        if not run:
            if wait:
                time.sleep(wait)
            return []
        records = run[0].records if len(run) == 1 else pa.concat_batches([one.records for one in run])
        first = max(self.place[ROW], run[0].offset)
        last = run[-1].offset + run[-1].records.num_rows
        records = records.slice(first - run[0].offset, (last if stop is None else min(last, stop)) - first)
        self._limit = max(1, CHUNK_BYTES * records.num_rows // max(1, records.nbytes))
        before, self.place = {ROW: first}, {ROW: first + records.num_rows}
        offsets = np.arange(first, first + records.num_rows, dtype=np.int64)
        return [Chunk(as_events(records), before, ROW, offsets)]

    def _run(self, stop: int | None) -> list[Entry]:
        """The next entries that follow each other and have one schema, taken from those read ahead."""
        run: list[Entry] = []
        while self._ahead:
            one = self._ahead[0]
            if stop is not None and one.offset >= stop:
                break
            if run and (
                one.offset != run[-1].offset + run[-1].records.num_rows
                or not one.records.schema.equals(run[-1].records.schema, check_metadata=True)
            ):
                break
            run.append(self._ahead.pop(0))
        return run

    def _rows_at_once(self) -> int:
        """As many as hold 8 MB: as the last chunk's rows, or the topic's, are in size."""
        if not self._limit:
            info = self._log.topics().get(self._topic)
            self._limit = CHUNK_BYTES * info.rows // max(1, info.bytes) if info is not None and info.rows else 1
        return min(CHUNK_ROWS, max(1, self._limit))

    def reached(self, place: Place) -> bool:
        """See `Reader.reached`."""
        if self.place[ROW] >= place[ROW]:
            return True
        # Retention, or somebody who dropped the topic, may have taken the rest away.
        info = self._log.topics().get(self._topic)
        return info is None or (info.first >= place[ROW] and not self._ahead)

    def positions(self, group: str) -> Positions:
        """See `Reader.positions`."""
        return open_positions(self._log, self._topic, group)

    def close(self) -> None:
        """See `Reader.close`."""
        self._close()


class MessageReader:
    """Reads a topic of a cluster that others write: what its messages mean, each partition in its own order.

    Args:
        place: the cluster.
        topic: its topic.
        decode: what makes rows of messages.
    """

    def __init__(self, place: KafkaPlace, topic: str, decode: ForeignFormats) -> None:
        self._where = place
        self._topic = topic
        self._decode = decode
        self._cluster = Cluster(place)
        self._reader: TopicsReader | None = None
        self.place: Place = {}

    def begin(self, start: Start) -> Place:
        """See `Reader.begin`; an offset is that of every partition."""
        if start == "latest":
            return self.end()
        oldest, end = self._cluster.beginnings(self._topic), self.end()
        if start == "earliest":
            return oldest
        return {number: min(end[number], max(first, start)) for number, first in oldest.items()}

    def end(self) -> Place:
        """See `Reader.end`."""
        return self._cluster.ends(self._topic)

    def held(self, place: Place) -> Place | None:
        """See `Reader.held`."""
        oldest, end = self._cluster.beginnings(self._topic), self.end()
        if any(offset > end.get(number, -1) for number, offset in place.items()):
            return None
        return {number: max(place.get(number, first), first) for number, first in oldest.items()}

    def seek(self, place: Place) -> None:
        """See `Reader.seek`."""
        self._leave()
        self.place = dict(place)
        positions = {(self._topic, number): offset for number, offset in place.items()}
        self._reader = TopicsReader(self._where, self._cluster, [self._topic], positions, {})

    def read(self, until: Place | None, wait: float) -> list[Chunk]:
        """See `Reader.read`."""
        assert self._reader is not None
        chunks: list[Chunk] = []
        for (_, number), messages in self._reader.receive(wait).items():
            if until is not None:
                messages = [one for one in messages if one.offset() < until.get(number, 0)]
            if messages:
                chunks += self._chunks(number, wire_messages(self._topic, messages, partition=number))
        return chunks

    def _chunks(self, number: int, messages: WireMessages) -> list[Chunk]:
        _, decoded = self._decode(messages)
        where = f"«{self._topic}» partition {number} offset "
        bad = [(f"{where}{messages.offsets[at]}", reason) for at, reason in decoded.bad]
        chunks = []
        for batch, at in decoded.parts:
            chunks.append(Chunk(as_events(batch.records), dict(self.place), number, messages.offsets[at], bad))
            bad = []
        if bad:
            nothing = Batch.of(pa.RecordBatch.from_pydict({}))
            chunks.append(Chunk(nothing, dict(self.place), number, np.empty(0, np.int64), bad))
        self.place = {**self.place, number: int(messages.offsets[-1]) + 1}
        return chunks

    def reached(self, place: Place) -> bool:
        """See `Reader.reached`: markers of transactions take offsets too, and are no rows."""
        assert self._reader is not None
        return self._reader.read() >= Offsets({(self._topic, number): offset for number, offset in place.items()})

    def positions(self, group: str) -> Positions:
        """See `Reader.positions`."""
        return open_positions(self._where, self._topic, group)

    def _leave(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """See `Reader.close`."""
        self._leave()


def as_events(records: pa.RecordBatch) -> Batch:
    """Rows as change events; rows that say nothing of it are inserts."""
    return Batch(records) if "__op" in records.schema.names else Batch.of(records)


def no_topic(topic: str, names: Sequence[str], where: str) -> LogError:
    """The refusal when a topic is not there and nobody waits for it."""
    known = ", ".join(name for name in names if not name.startswith("__")) or "none"
    return LogError(
        f"there is no topic «{topic}» in {where}", advice=f"Its topics: {known}. To wait for it: wait=True."
    )
