"""What Flink's Kafka source has read, as a reader of topics: the engine on the log does not know the difference."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headrace.capture.topics.reader import Offsets, Where, awaited, identified
from headrace.errors import LogUnavailable
from headrace.event_log import event
from headrace.kafka.cluster import Cluster
from headrace.kafka.fetch import Fetcher, truncated, wire_messages
from headrace.kafka.ranges import TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.wire import WireMessages

logger = logging.getLogger("headrace")

WAITING_MESSAGES = 65_536
FETCHED = 10_000  # offsets of a gap at once
LOOK_S = 5.0


@dataclass
class FlinkFeed:
    """Where batches of Flink's meet the readers that wait for them.

    Attributes:
        readers: of the sources that the engine has started.
    """

    readers: list[FlinkReader] = field(default_factory=list)

    def reader(
        self,
        location: KafkaLocation,
        cluster: Cluster,
        topics: Sequence[str],
        positions: Mapping[Where, int],
        identities: Mapping[str, str],
    ) -> FlinkReader:
        """Make a reader; the arguments are as for `headrace.capture.topics.reader.TopicsReader`."""
        made = FlinkReader(location, cluster, topics, positions, identities)
        self.readers.append(made)
        return made

    def put(self, bootstrap: str, arrived: Mapping[Where, WireMessages]) -> None:
        """Hand messages of a cluster to the readers of their topics; waits while those have enough."""
        for reader in self.readers:
            mine = {where: messages for where, messages in arrived.items() if where[0] in reader.topics}
            if mine and reader.bootstrap == bootstrap:
                reader.put(mine)


class FlinkReader:
    """Messages that an operator puts in; a `headrace.capture.topics.reader.MessageReader`.

    Where the log is decides what is read. What it has already is left out: Flink has gone back to an older checkpoint.
    What it has not, and Flink does not give, is fetched from the topic: the first message of a partition after a start
    may lie behind the log, because Flink's checkpoint counts what was on its way when a process died.

    Args:
        location, cluster, topics, positions, identities: as for `headrace.capture.topics.reader.TopicsReader`.
    """

    def __init__(
        self,
        location: KafkaLocation,
        cluster: Cluster,
        topics: Sequence[str],
        positions: Mapping[Where, int],
        identities: Mapping[str, str],
    ) -> None:
        self.bootstrap = location.bootstrap
        self.topics = frozenset(topics)
        self.identities = dict(identities)
        self.missing: tuple[str, ...] = ()
        self.away = ""
        self.away_since = 0.0
        self._cluster = cluster
        self._fetcher = Fetcher(location, cluster)
        self._next = dict(positions)
        self._begun: set[Where] = set()
        self._waiting: deque[tuple[Where, WireMessages]] = deque()
        self._messages = 0
        self._changed = threading.Condition()
        self._closed = False
        self._look_at = 0.0

    def put(self, arrived: Mapping[Where, WireMessages]) -> None:
        """Hand in messages that follow the last ones; waits while enough wait. By the operator's thread."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages < WAITING_MESSAGES or self._closed)
            self._waiting.extend(arrived.items())
            self._messages += sum(map(len, arrived.values()))
            self._changed.notify_all()

    def receive(self, timeout: float) -> dict[Where, WireMessages]:
        """See `MessageReader.receive`.

        Raises:
            LogTruncated: messages that the log needs next were deleted.
        """
        self._look()
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout)
            taken = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._messages = 0
            self._changed.notify_all()
        found: dict[Where, WireMessages] = {}
        for i, (where, messages) in enumerate(taken):
            if where in found:
                # One batch of each partition at a time.
                self._give_back(taken[i:])
                break
            fresh = self._fresh(where, messages)
            gap = self._gap(where, fresh)
            if gap is not None:
                self._give_back(taken[i:])
                fresh = gap
            if len(fresh):
                found[where] = fresh
                self._next[where] = int(fresh.offsets[-1]) + 1
            if gap is not None:
                break
        return found

    def _give_back(self, taken: Sequence[tuple[Where, WireMessages]]) -> None:
        with self._changed:
            self._waiting.extendleft(reversed(taken))
            self._messages += sum(len(messages) for _, messages in taken)

    def _fresh(self, where: Where, messages: WireMessages) -> WireMessages:
        """Return the messages that the log has not."""
        known = self._next.get(where, 0)
        if not len(messages) or messages.offsets[0] >= known:
            return messages
        fresh = np.flatnonzero(messages.offsets >= known)
        if where not in self._begun:
            text = "Flink has gone back to offset %d of «%s» partition %d: the log holds what lies before %d"
            first = int(messages.offsets[0])
            about = event("flink_rewound", topic=where[0], partition=where[1], offset=first, held=known)
            logger.info(text, first, *where, known, extra=about)
            self._begun.add(where)
        return messages.take(fresh)

    def _gap(self, where: Where, fresh: WireMessages) -> WireMessages | None:
        """Return messages that lie between the log and the first one that Flink gives; None where there are none."""
        if where in self._begun or not len(fresh):
            return None
        oldest = self._cluster.beginnings(where[0]).get(where[1], 0)
        first, known = int(fresh.offsets[0]), self._next.get(where, oldest)
        if known < oldest:
            raise truncated(*where, known, oldest, self.bootstrap)
        if known >= first:
            self._begun.add(where)
            return None
        last = min(first - 1, known + FETCHED - 1)
        # The message that Flink gives ends a range whose last offsets are markers of transactions.
        (fetched,) = self._fetcher.fetch([TopicRange(*where, known, last)])
        self._next[where] = last + 1
        if fetched:
            text = "fetched %d messages of «%s» partition %d from offset %d on: Flink had read them, the log has not"
            about = event("flink_gap", topic=where[0], partition=where[1], offset=known, messages=len(fetched))
            logger.info(text, len(fetched), *where, known, extra=about)
        return wire_messages(where[0], fetched, partition=where[1])

    def _look(self) -> None:
        """See now and then that the topics are those that were read before."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        try:
            there = self._cluster.topics(patience=0.0)
        except LogUnavailable as error:
            self.away_since = self.away_since if self.away else time.monotonic()
            self.away = error.message
            return
        self.away = ""
        self.missing = awaited(sorted(self.topics), there)
        topics = [topic for topic in self.topics if topic in there or topic in self.identities]
        self.identities |= identified(self._cluster, self.bootstrap, topics, self.identities)

    def hold(self, ahead: set[Where]) -> None:
        """Do nothing: how far ahead Flink reads, back-pressure limits."""

    def commit(self, position: Offsets) -> None:
        """Do nothing: Flink's source commits offsets for the cluster's tools."""

    def positions(self) -> dict[Where, int]:
        """See `MessageReader.positions`."""
        return dict(self._next)

    def read(self) -> Offsets:
        """See `MessageReader.read`."""
        return Offsets(self._next)

    def ends(self) -> Offsets:
        """See `MessageReader.ends`; markers of transactions at the end are never read here."""
        found: dict[Where, int] = {}
        for topic in self.topics:
            found |= {(topic, number): offset for number, offset in self._cluster.ends(topic).items()}
        return Offsets(found)

    def close(self) -> None:
        """See `MessageReader.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._fetcher.close()
