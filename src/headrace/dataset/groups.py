"""Positions of groups in topics, kept so that the next data set of a group goes on where the last one ended.

==============================  ================================================================================
the topic is                    its groups' positions are
==============================  ================================================================================
of a log in a file              in ``<log>.groups`` beside it: a running pipeline alone may write the log itself
of a log in memory              with the log, as long as it lives
a pipeline's, on Kafka          the group's offsets on the cluster, with the exact row as their metadata
anybody's, on Kafka             the group's offsets on the cluster
==============================  ================================================================================

On Kafka they are what every tool shows and may reset (``kafka-consumer-groups.sh --reset-offsets``).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from headrace.arrays import Ints
from headrace.errors import LogError
from headrace.kafka.ranges import unpack_spread
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import Log

if TYPE_CHECKING:
    import apsw

    from headrace.log.kafka import KafkaLog
    from headrace.log.slices import IndexEntry

T = TypeVar("T")

LOOK_AT_ENTRIES = 200
COMMIT_SECONDS = 0.5
BUSY_MILLISECONDS = 10_000
ROW = 0
_TABLE = """CREATE TABLE IF NOT EXISTS positions (
    "group" TEXT NOT NULL, topic TEXT NOT NULL, "offset" INTEGER NOT NULL, ts_us INTEGER NOT NULL,
    PRIMARY KEY ("group", topic)
) STRICT, WITHOUT ROWID"""
_STORE = """INSERT INTO positions VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT ("group", topic) DO UPDATE SET "offset" = ?3, ts_us = ?4"""


class Positions(Protocol):
    """One group's position in one topic: next offsets by partition. Used by one thread at a time."""

    def read(self) -> Mapping[int, int] | None:
        """Return the group's position; None where it has read nothing yet."""
        ...

    def commit(self, position: Mapping[int, int]) -> None:
        """Take down that the group has consumed everything before a position. May be kept back for a moment."""
        ...

    def flush(self) -> None:
        """Make durable what was kept back."""
        ...

    def close(self) -> None:
        """Flush, and close what is open."""
        ...


def open_positions(where: Log | KafkaLocation, topic: str, group: str) -> Positions:
    """Return the positions of a group in a topic of a log, or in a topic of a cluster that others write."""
    if isinstance(where, KafkaLocation):
        return MessagePositions(where, topic, group)
    from headrace.log.sqlite import SqliteLog

    if isinstance(where, SqliteLog):
        return FilePositions(where.path.with_name(where.path.name + ".groups"), topic, group)
    if hasattr(where, "cluster"):
        return RowPositions(where, topic, group)  # type: ignore[arg-type]  # only a log on Kafka has a cluster
    return MemoryPositions(where, topic, group)


_IN_MEMORY: weakref.WeakKeyDictionary[Log, dict[tuple[str, str], dict[int, int]]] = weakref.WeakKeyDictionary()


class MemoryPositions:
    """Positions in a log in memory, kept with the log's object.

    >>> from headrace.log import open_log
    >>> log = open_log("memory://", writer=True)
    >>> MemoryPositions(log, "iris", "g").commit({0: 7})
    >>> MemoryPositions(log, "iris", "g").read(), MemoryPositions(log, "iris", "h").read()
    ({0: 7}, None)
    """

    def __init__(self, log: Log, topic: str, group: str) -> None:
        self._kept = _IN_MEMORY.setdefault(log, {})
        self._key = (group, topic)

    def read(self) -> Mapping[int, int] | None:
        """See `Positions.read`."""
        return self._kept.get(self._key)

    def commit(self, position: Mapping[int, int]) -> None:
        """See `Positions.commit`."""
        self._kept[self._key] = dict(position)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """Do nothing: nothing is open."""


class FilePositions:
    """Positions in a small SQLite file of its own; any number of processes write it.

    A commit survives the process at once; a machine that loses power may lose the last ones, whose rows are read again.
    """

    def __init__(self, path: Path, topic: str, group: str) -> None:
        self._path = path
        self._key = (group, topic)
        self._kept: apsw.Connection | None = None

    def read(self) -> Mapping[int, int] | None:
        """See `Positions.read`."""
        with self._connection() as connection:
            query = 'SELECT "offset" FROM positions WHERE "group" = ? AND topic = ?'
            offset = connection.execute(query, self._key).get
        return None if offset is None else {ROW: int(offset)}

    def commit(self, position: Mapping[int, int]) -> None:
        """See `Positions.commit`."""
        with self._connection() as connection:
            connection.execute(_STORE, (*self._key, position[ROW], time.time_ns() // 1000))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[apsw.Connection]:
        import apsw

        try:
            if self._kept is None:
                connection = apsw.Connection(str(self._path))
                connection.set_busy_timeout(BUSY_MILLISECONDS)
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute(_TABLE)
                self._kept = connection
            yield self._kept
        except apsw.Error as error:
            raise LogError(
                f"the groups' positions in {self._path} cannot be used: {error}",
                advice="Check the rights on its folder. Without the file, groups begin anew.",
            ) from error

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def close(self) -> None:
        """See `Positions.close`."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None


class MessagePositions:
    """Positions as Kafka's own: a consumer group's committed offsets.

    Commits are sent twice a second at most, and before the data set waits or ends; what a killed process had not sent
    is read again.
    """

    def __init__(self, place: KafkaLocation, topic: str, group: str) -> None:
        from confluent_kafka import Consumer

        from headrace.kafka.cluster import Cluster

        self._place = place
        self._topic = topic
        self._group = group
        self._cluster = Cluster(place)
        self._consumer = Consumer(
            place.client(group_id=group, enable_auto_commit=False, auto_offset_reset="error", fetch_wait_max_ms=100)
        )
        self._pending: Mapping[int, int] | None = None
        self._sent_at = 0.0

    def read(self) -> Mapping[int, int] | None:
        """See `Positions.read`."""
        return {number: offset for number, (offset, _) in self._committed().items()} or None

    def _committed(self) -> dict[int, tuple[int, str]]:
        """Return offset and metadata of each partition that the group has read."""
        from confluent_kafka import TopicPartition

        asked = [TopicPartition(self._topic, number) for number in range(self._cluster.partitions(self._topic))]
        found = self._ask("asking for", lambda: self._consumer.committed(asked, timeout=10.0))
        return {read.partition: (int(read.offset), read.metadata or "") for read in found if read.offset >= 0}

    def commit(self, position: Mapping[int, int]) -> None:
        """See `Positions.commit`."""
        self._pending = position
        if time.monotonic() - self._sent_at >= COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """See `Positions.flush`."""
        if self._pending is not None:
            self._send(self._pending)
            self._pending, self._sent_at = None, time.monotonic()

    def _send(self, position: Mapping[int, int]) -> None:
        self._commit(dict(position), "")

    def _commit(self, offsets: Mapping[int, int], metadata: str) -> None:
        from confluent_kafka import TopicPartition

        asked = [TopicPartition(self._topic, number, offset, metadata) for number, offset in offsets.items()]
        if asked:
            self._ask("committing", lambda: self._consumer.commit(offsets=asked, asynchronous=False))

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        from confluent_kafka import KafkaError, KafkaException

        def once() -> T:
            try:
                return call()
            except KafkaException as error:
                if error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.ILLEGAL_GENERATION):
                    raise LogError(
                        f"consumers are reading as the group «{self._group}» on {self._place.url} now",
                        advice="Kafka shares its offsets with nobody while they do: give the data set its own group.",
                    ) from error
                raise

        return self._cluster.patiently(f"{what} the offsets of the group «{self._group}»", once)

    def close(self) -> None:
        """See `Positions.close`."""
        try:
            self.flush()
        finally:
            self._consumer.close()


class RowPositions(MessagePositions):
    """Positions in a topic that a pipeline writes to Kafka, where rows have offsets of the log's own.

    The exact row is the commit's metadata; the offsets beside it are those of its message, so that tools show the lag.
    Where somebody has set the offsets since, they count: then the first row behind one of them is next.
    """

    def __init__(self, log: KafkaLog, topic: str, group: str) -> None:
        super().__init__(log.location, topic, group)
        self._log = log

    def read(self) -> Mapping[int, int] | None:
        """See `Positions.read`."""
        committed = self._committed()
        if not committed:
            return None
        rows = {_row_of(metadata) for _, metadata in committed.values()}
        if len(rows) == 1 and (row := rows.pop()) is not None:
            return {ROW: row}
        return {ROW: self._row_at({number: offset for number, (offset, _) in committed.items()})}

    def _send(self, position: Mapping[int, int]) -> None:
        self._commit(self._offsets_of(position[ROW]), json.dumps({"row": position[ROW]}))

    def _offsets_of(self, row: int) -> dict[int, int]:
        """Return each partition's first message that is not before a row; its end where there is none soon."""
        found: dict[int, int] = {}
        ends = self._cluster.ends(self._topic)
        with contextlib.closing(self._log.entries_of(self._topic, row)) as entries:
            for entry in itertools.islice(entries, LOOK_AT_ENTRIES):
                partitions, offsets = _messages(entry)
                first = max(0, row - entry.offset) if len(offsets) == entry.rows else 0
                for number in ends.keys() - found.keys():
                    behind = offsets[first:][partitions[first:] == number]
                    if len(behind):
                        found[number] = int(behind[0])
                if len(found) == len(ends):
                    break
        return {number: found.get(number, end) for number, end in ends.items()}

    def _row_at(self, position: Mapping[int, int]) -> int:
        """Return the first row whose message is not before its partition's offset."""
        info = self._log.topics()[self._topic]
        with contextlib.closing(self._log.entries_of(self._topic, info.first)) as entries:
            for entry in entries:
                partitions, offsets = _messages(entry)
                least = np.array([position.get(number, 0) for number in partitions.tolist()], np.int64)
                behind = np.flatnonzero(offsets >= least)
                if len(behind):
                    return entry.offset + (int(behind[0]) if len(offsets) == entry.rows else 0)
        return info.end


def _messages(stored: IndexEntry) -> tuple[Ints, Ints]:
    """Return partition and offset of an entry's messages, in the order of its rows where each is one."""
    places = [place for place in stored.ranges if place.messages]
    partitions = np.repeat([place.partition for place in places], [place.messages for place in places])
    # Where others write to the partition too, some of ours lie a little later than said here.
    offsets = np.concatenate([place.first + np.arange(place.messages) for place in places] or [_NONE])
    spread = unpack_spread(stored.spread) if stored.spread else _NONE
    if len(spread) != len(offsets):
        return partitions.astype(np.int64), offsets
    order = np.empty(len(spread), np.int64)
    order[np.argsort(spread, kind="stable")] = np.argsort(partitions, kind="stable")
    return spread, offsets[order]


_NONE = np.empty(0, np.int64)


def _row_of(metadata: str) -> int | None:
    """Return the row that a commit of ours names.

    >>> _row_of('{"row": 12}'), _row_of(""), _row_of("[]")
    (12, None, None)
    """
    try:
        known = json.loads(metadata)
        return int(known["row"])
    except (ValueError, KeyError, TypeError):
        return None
