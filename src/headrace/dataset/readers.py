"""Finding a topic, and reading its rows in chunks: of a log, or of a cluster's topic that others write.

A position in a topic is the next offset by partition. The rows of a log's topic have one sequence of offsets, kept as
partition 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch, as_events
from headrace.capture.topics.reader import Offsets, TopicsReader
from headrace.dataset.groups import Positions, open_positions
from headrace.errors import LogError, LogMissing
from headrace.formats.topic_formats import ForeignFormats, TopicCodec, codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.log import open_log
from headrace.log.base import Entry, Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import owners
from headrace.plan.plan import Plan
from headrace.wire import WireMessages

TopicPosition = Mapping[int, int]
Start = Literal["earliest", "latest"] | int
CHUNK_ROWS = 16_384
CHUNK_BYTES = 8 << 20
ROW = 0
RECEIVE_SECONDS = 0.1
OURS = "__position"  # a header of every message that a pipeline writes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of one schema.

    Attributes:
        batch: the rows.
        before: the position at which they begin.
        partition: theirs.
        offsets: of each row.
        bad: messages before or among them that could not be decoded: where, and why.
    """

    batch: Batch
    before: TopicPosition
    partition: int
    offsets: Ints
    bad: Sequence[tuple[str, str]] = ()

    def after(self, row: int) -> TopicPosition:
        """Return the position behind a row."""
        return {**self.before, self.partition: int(self.offsets[row]) + 1}


class ChunkReader(Protocol):
    """Reads one topic. Used by one thread at a time.

    Attributes:
        position: behind everything that `read` has given.
    """

    position: TopicPosition

    def begin(self, start: Start) -> TopicPosition:
        """Return the position at which reading starts."""
        ...

    def end(self) -> TopicPosition:
        """Return the end of the rows that are there now."""
        ...

    def held(self, position: TopicPosition) -> TopicPosition | None:
        """Return a group's position, moved to the oldest row where that is later; None: it is none of this topic."""
        ...

    def seek(self, position: TopicPosition) -> None:
        """Go on reading at a position."""
        ...

    def read(self, until: TopicPosition | None, wait: float) -> list[Chunk]:
        """Return rows before a position, or up to the end there is; none where nothing came in so many seconds.

        Raises:
            LogError: the log cannot be read, or rows are gone.
        """
        ...

    def reached(self, position: TopicPosition) -> bool:
        """Return whether everything before a position has been given."""
        ...

    def positions(self, group: str) -> Positions:
        """Return the group's positions in this topic, as they are kept."""
        ...

    def close(self) -> None:
        """Close the log or the cluster's consumer."""
        ...


class LogReader:
    """Read a topic of a log.

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
        self.position: TopicPosition = {ROW: 0}

    def begin(self, start: Start) -> TopicPosition:
        """See `ChunkReader.begin`."""
        info = self._log.topics()[self._topic]
        if isinstance(start, int):
            return {ROW: max(start, info.first)}
        return {ROW: info.first if start == "earliest" else info.end}

    def end(self) -> TopicPosition:
        """See `ChunkReader.end`."""
        return {ROW: self._log.topics()[self._topic].end}

    def held(self, position: TopicPosition) -> TopicPosition | None:
        """See `ChunkReader.held`."""
        info = self._log.topics()[self._topic]
        return {ROW: max(position[ROW], info.first)} if position.get(ROW, info.end + 1) <= info.end else None

    def seek(self, position: TopicPosition) -> None:
        """See `ChunkReader.seek`."""
        self.position = {ROW: position[ROW]}
        self._ahead = []

    def read(self, until: TopicPosition | None, wait: float) -> list[Chunk]:
        """See `ChunkReader.read`."""
        if not self._ahead:
            self._ahead = self._log.read_topic(self._topic, offset=self.position[ROW], limit=self._rows_at_once())
        stop = None if until is None else until[ROW]
        run = self._run(stop)
        if not run:
            if wait:
                time.sleep(wait)
            return []
        records = run[0].records if len(run) == 1 else pa.concat_batches([entry.records for entry in run])
        first = max(self.position[ROW], run[0].offset)
        last = run[-1].offset + run[-1].records.num_rows
        records = records.slice(first - run[0].offset, (last if stop is None else min(last, stop)) - first)
        self._limit = max(1, CHUNK_BYTES * records.num_rows // max(1, records.nbytes))
        before, self.position = {ROW: first}, {ROW: first + records.num_rows}
        offsets = np.arange(first, first + records.num_rows, dtype=np.int64)
        return [Chunk(as_events(records), before, ROW, offsets)]

    def _run(self, stop: int | None) -> list[Entry]:
        """Take the next entries that follow each other and have one schema from those read ahead."""
        run: list[Entry] = []
        while self._ahead:
            entry = self._ahead[0]
            if stop is not None and entry.offset >= stop:
                break
            if run and (
                entry.offset != run[-1].offset + run[-1].records.num_rows
                or not entry.records.schema.equals(run[-1].records.schema, check_metadata=True)
            ):
                break
            run.append(self._ahead.pop(0))
        return run

    def _rows_at_once(self) -> int:
        """Return how many rows hold 8 MB, by the size of the last chunk's rows, or of the topic's."""
        if not self._limit:
            info = self._log.topics().get(self._topic)
            self._limit = CHUNK_BYTES * info.rows // max(1, info.bytes) if info is not None and info.rows else 1
        return min(CHUNK_ROWS, max(1, self._limit))

    def reached(self, position: TopicPosition) -> bool:
        """See `ChunkReader.reached`."""
        if self.position[ROW] >= position[ROW]:
            return True
        # Retention, or somebody who dropped the topic, may have taken the rest away.
        info = self._log.topics().get(self._topic)
        return info is None or (info.first >= position[ROW] and not self._ahead)

    def positions(self, group: str) -> Positions:
        """See `ChunkReader.positions`."""
        return open_positions(self._log, self._topic, group)

    def close(self) -> None:
        """See `ChunkReader.close`."""
        self._close()


class MessageReader:
    """Read a topic of a cluster that others write: what its messages mean, each partition in its own order.

    Args:
        place: the cluster.
        topic: its topic.
        decode: what makes rows of messages.
    """

    def __init__(self, place: KafkaLocation, topic: str, decode: ForeignFormats) -> None:
        self._where = place
        self._topic = topic
        self._decode = decode
        self._cluster = Cluster(place)
        self._reader: TopicsReader | None = None
        self.position: TopicPosition = {}

    def begin(self, start: Start) -> TopicPosition:
        """See `ChunkReader.begin`; an offset is that of every partition."""
        if start == "latest":
            return self.end()
        oldest, end = self._cluster.beginnings(self._topic), self.end()
        if start == "earliest":
            return oldest
        return {number: min(end[number], max(first, start)) for number, first in oldest.items()}

    def end(self) -> TopicPosition:
        """See `ChunkReader.end`."""
        return self._cluster.ends(self._topic)

    def held(self, position: TopicPosition) -> TopicPosition | None:
        """See `ChunkReader.held`."""
        oldest, end = self._cluster.beginnings(self._topic), self.end()
        if any(offset > end.get(number, -1) for number, offset in position.items()):
            return None
        return {number: max(position.get(number, first), first) for number, first in oldest.items()}

    def seek(self, position: TopicPosition) -> None:
        """See `ChunkReader.seek`."""
        self._leave()
        self.position = dict(position)
        positions = {(self._topic, number): offset for number, offset in position.items()}
        self._reader = TopicsReader(self._where, self._cluster, [self._topic], positions, {})

    def read(self, until: TopicPosition | None, wait: float) -> list[Chunk]:
        """See `ChunkReader.read`."""
        assert self._reader is not None
        chunks: list[Chunk] = []
        for (_, number), messages in self._reader.receive(wait).items():
            if until is not None and messages.offsets[-1] >= until.get(number, 0):
                messages = messages.take(np.flatnonzero(messages.offsets < until.get(number, 0)))
            if len(messages):
                chunks += self._chunks(number, messages)
        return chunks

    def _chunks(self, number: int, messages: WireMessages) -> list[Chunk]:
        _, decoded = self._decode(messages)
        where = f"«{self._topic}» partition {number} offset "
        bad = [(f"{where}{messages.offsets[at]}", reason) for at, reason in decoded.bad]
        chunks = []
        for batch, at in decoded.parts:
            chunks.append(Chunk(as_events(batch.records), dict(self.position), number, messages.offsets[at], bad))
            bad = []
        if bad:
            nothing = Batch.of(pa.RecordBatch.from_pydict({}))
            chunks.append(Chunk(nothing, dict(self.position), number, np.empty(0, np.int64), bad))
        self.position = {**self.position, number: int(messages.offsets[-1]) + 1}
        return chunks

    def reached(self, position: TopicPosition) -> bool:
        """See `ChunkReader.reached`: markers of transactions take offsets too, and are no rows."""
        assert self._reader is not None
        return self._reader.read() >= Offsets({(self._topic, number): offset for number, offset in position.items()})

    def positions(self, group: str) -> Positions:
        """See `ChunkReader.positions`."""
        return open_positions(self._where, self._topic, group)

    def _leave(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """See `ChunkReader.close`."""
        self._leave()


def no_topic(topic: str, names: Sequence[str], where: str) -> LogError:
    """Return the refusal for a topic that is not there and that nobody waits for."""
    known = ", ".join(name for name in names if not name.startswith("__")) or "none"
    return LogError(
        f"there is no topic «{topic}» in {where}", advice=f"Its topics: {known}. To wait for it: wait=True."
    )


# -- finding the topic -------------------------------------------------------------------------------------------------


class TopicFinder:
    """Look for one topic, as often as asked, until it is there: in the pipeline's log, or on its cluster.

    Args:
        plan: the pipeline's. A reader has the log's file or the cluster open for itself, whatever the pipeline does.
        topic: the topic.
        in_memory: gives a log in memory, which only this process has; None while there is none.
    """

    def __init__(self, plan: Plan, topic: str, in_memory: Callable[[], Log | None]) -> None:
        self._plan = plan
        self._topic = topic
        self._in_memory = in_memory
        self._log: Log | None = None
        self._on_cluster: ClusterFinder | None = None
        self._close: Callable[[], None] = lambda: None

    def find(self, *, wait: bool) -> ChunkReader | None:
        """Return its reader, None while it is not there. The reader is the caller's to close, this object too.

        Args:
            wait: whether the caller will ask again.

        Raises:
            LogError: the log is there and cannot be read.
        """
        if self._plan.log.startswith(SCHEME):
            if self._on_cluster is None:
                self._on_cluster = ClusterFinder(self._plan, self._topic)
            return self._on_cluster.find(wait=wait)
        if self._log is None:
            self._open()
        if self._log is None or self._topic not in self._log.topics():
            return None
        reader, self._log = LogReader(self._log, self._topic, self._close), None
        return reader

    def _open(self) -> None:
        if self._plan.log.startswith("memory:"):
            self._log = self._in_memory()
            return
        try:
            self._log = open_log(self._plan.log, writer=False)
        except LogMissing:
            return
        self._close = self._log.close

    def missing(self) -> LogError:
        """Return the refusal for a topic that is not there and that nobody waits for."""
        if self._plan.log.startswith(SCHEME):
            return no_topic(self._topic, [], self._plan.log)
        if self._log is None:
            return LogMissing(
                f"there is no log at {self._plan.log}",
                advice="Check it, or run the pipeline that writes it; to wait for it: wait=True.",
            )
        return no_topic(self._topic, list(self._log.topics()), self._plan.log)

    def close(self) -> None:
        """Close the log, where no reader was made of it."""
        if self._log is not None:
            self._close()
            self._log = None


class ClusterFinder:
    """Look for a topic on a cluster: in the pipeline's own log, then in those of others, then as it lies."""

    def __init__(self, plan: Plan, topic: str) -> None:
        declared = next((topics for topics in plan.topics if topics.matches(topic) and topics.kafka), None)
        self._place = KafkaLocation.parse(declared.kafka if declared is not None else plan.log, name=plan.app)
        self._topic = topic
        self._codec: TopicCodec = codec_for(plan.formats)
        prefixes = any(topic.startswith(f"{prefix}.") for prefix in plan.formats.prefixes)
        named = topic in plan.formats.topics or prefixes
        self._cluster: Cluster | None = None
        self._named = {topic: self._codec.format_of(topic)} if named else {}

    def find(self, *, wait: bool) -> ChunkReader | None:
        """Return its reader, None while it is not there, or holds nothing yet that tells whose it is."""
        # One client for as long as is waited: making one costs threads and connections.
        cluster = self._cluster = self._cluster or Cluster(self._place)
        if not cluster.partitions(self._topic):
            return None
        reader = self._in_log_of(self._place.name)
        if reader is not None:
            return reader
        for name in owners(self._place, cluster, [self._topic]):
            reader = self._in_log_of(name)
            if reader is not None:
                return reader
        if self._is_of_others(cluster, empty=not wait):
            return MessageReader(self._place, self._topic, ForeignFormats(self._codec, self._named))
        return None

    def _in_log_of(self, name: str) -> ChunkReader | None:
        try:
            log = KafkaLog(replace(self._place, name=name), writer=False, codec=self._codec)
        except LogMissing:
            return None
        head = log.metadata.get(self._topic)
        if head is None or head.foreign:
            log.close()
            return None
        return LogReader(log, self._topic, log.close)

    def _is_of_others(self, cluster: Cluster, *, empty: bool) -> bool:
        """Return whether its oldest message is not a pipeline's, whose log then only has to be found.

        Such a log may not be visible yet: a topic is made before the first transaction ends.

        Args:
            empty: what is said of a topic without messages.
        """
        reader = TopicsReader(self._place, cluster, [self._topic], {}, {})
        ends = Offsets({(self._topic, number): offset for number, offset in cluster.ends(self._topic).items()})
        try:
            while not reader.read() >= ends or not reader.positions():
                for messages in reader.receive(RECEIVE_SECONDS).values():
                    return all(name != OURS for name, _ in messages.headers[0])
            return empty
        finally:
            reader.close()
