"""One consumer over all partitions of some topics, from offsets of ours; it waits for topics that are not there yet."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import LogTruncated, LogUnavailable, near
from headrace.foreseen import Foreseen
from headrace.kafka.cluster import Cluster, translate
from headrace.kafka.fetch import consumer_properties, errors_among, make_known, receive, truncated, wire_messages
from headrace.kafka.ranges import TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.wire import WireMessages

LOOK_FOR_TOPICS_S = 0.5
LOOK_FOR_PARTITIONS_S = 5.0
LOOK_FOR_BROKERS_S = 0.2
MANY = 1_000  # received at once: more may be waiting


Where = tuple[str, int]


class DecodedLike(Protocol):
    """Messages as `headrace.formats` decodes them; see `headrace.formats.base.Decoded`."""

    @property
    def parts(self) -> Sequence[tuple[Batch, Ints]]: ...
    @property
    def bad(self) -> Sequence[tuple[int, str]]: ...
    @property
    def formats(self) -> Sequence[str]: ...
    @property
    def foreseen(self) -> tuple[tuple[Foreseen, ...], ...]: ...


class Offsets:
    """The next offset of every partition, as far as topics have been read. One is ≥ another when it is in all of them.

    >>> here = Offsets({("a", 0): 5, ("a", 1): 2})
    >>> here >= Offsets({("a", 0): 5}), here >= Offsets({("a", 0): 5, ("a", 1): 3}), here.by_topic()
    (True, False, {'a': {'0': 5, '1': 2}})
    """

    __slots__ = ("_next",)

    def __init__(self, offsets: Mapping[Where, int]) -> None:
        self._next = dict(offsets)

    def __ge__(self, other: Offsets) -> bool:
        return all(self._next.get(where, 0) >= offset for where, offset in other._next.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Offsets) and self._next == other._next

    __hash__ = None  # type: ignore[assignment]  # as Python itself says of a class with __eq__

    def items(self) -> Iterable[tuple[Where, int]]:
        """Return each partition's next offset."""
        return self._next.items()

    def by_topic(self) -> dict[str, dict[str, int]]:
        """Return the same as JSON has it: topic -> partition -> offset, sorted."""
        found: dict[str, dict[str, int]] = {}
        for (topic, number), offset in sorted(self._next.items()):
            found.setdefault(topic, {})[str(number)] = offset
        return found

    def capped(self, limits: Mapping[Where, int]) -> Offsets:
        """Return the same with some partitions no further than they may be."""
        return Offsets({where: min(offset, limits.get(where, offset)) for where, offset in self._next.items()})

    def __str__(self) -> str:
        return ", ".join(f"{topic}/{number}:{offset}" for (topic, number), offset in sorted(self._next.items()))

    __repr__ = __str__


def awaited(topics: Iterable[str], there: Iterable[str]) -> tuple[str, ...]:
    """Return the topics that are not there yet, each with the one that was meant perhaps.

    >>> awaited(["shop.order", "shop.items"], ["shop.items", "shop.orders", "__offsets"])
    ('shop.order (did you mean «shop.orders»?)',)
    """
    wanted, known = list(topics), set(there)
    missing = [topic for topic in wanted if topic not in known]
    others = [topic for topic in known.difference(wanted) if not topic.startswith("__")] if missing else []
    return tuple(topic + near(topic, others) for topic in missing)


class MessageReader(Protocol):
    """The contract of `TopicSource` with what reads its topics, each partition in the order of its offsets.

    One thread calls `receive`, `hold` and `commit`; the other methods may be called from any.

    Attributes:
        identities: the broker's ids of the topics that are read.
        missing: topics that are not there yet, each with the one that was meant perhaps.
        away, away_since: why nothing can be read now, or "", and since when.
    """

    identities: dict[str, str]
    missing: tuple[str, ...]
    away: str
    away_since: float

    def receive(self, timeout: float) -> dict[Where, WireMessages]:
        """Return messages that have arrived, by partition; waits for the first."""
        ...

    def hold(self, ahead: set[Where]) -> None:
        """Read some partitions no further for now, and all others on."""
        ...

    def commit(self, position: Offsets) -> None:
        """Let the cluster's tools see how far we are."""
        ...

    def positions(self) -> dict[Where, int]:
        """Return the next offset of every partition, as a start needs them."""
        ...

    def read(self) -> Offsets:
        """Return how far everything has been read, markers of transactions included."""
        ...

    def ends(self) -> Offsets:
        """Return where the topics end now."""
        ...

    def close(self) -> None:
        """Leave the cluster."""
        ...


class TopicsReader:
    """Reads the topics of one source. Used by the thread that reads ahead; `ends` by any.

    Args:
        location, cluster: where.
        topics: what to read.
        positions: next offset of partitions that were read before; the others begin at their oldest message.
        identities: the broker's ids of the topics that were read before.
    """

    def __init__(
        self,
        location: KafkaLocation,
        cluster: Cluster,
        topics: Sequence[str],
        positions: Mapping[Where, int],
        identities: Mapping[str, str],
    ) -> None:
        self._location = location
        self._cluster = cluster
        self._topics = tuple(topics)
        self.identities = dict(identities)
        self._next = dict(positions)
        self._read: dict[Where, int] = {}
        self._consumer: Any = None
        self._assigned: set[Where] = set()
        self._held: set[Where] = set()
        # Whether many messages may be waiting; and which of them are to be received here, up to where.
        self._behind = True
        self._read_here: dict[Where, int] = {}
        self._look_at = 0.0
        self.missing: tuple[str, ...] = ()
        self.away = ""
        self.away_since = 0.0

    def receive(self, timeout: float) -> dict[Where, WireMessages]:
        """Return messages that have arrived, by partition, each in the order of its offsets; waits for the first.

        Raises:
            LogTruncated: what should be read next was deleted.
        """
        found = self._receive(timeout)
        return {where: wire_messages(where[0], some, partition=where[1]) for where, some in found.items()}

    def _receive(self, timeout: float) -> dict[Where, list[Any]]:
        self._look()
        if self._consumer is None:
            time.sleep(min(timeout, 0.05))
            return {}
        messages = receive(self._consumer, timeout)
        errors = errors_among(messages)
        for message in errors:
            self._heed(message, (message.topic(), message.partition()))
        if errors:
            messages = [message for message in messages if message.error() is None]
        found = self._by_partition(messages)
        found = {where: some for where, some in found.items() if some}
        for where, some in found.items():
            self._next[where] = self._read[where] = some[-1].offset() + 1
        if len(messages) >= MANY and all(self._next.get(where, 0) >= end for where, end in self._read_here.items()):
            self._behind = True
        return found

    def _by_partition(self, messages: list[Any]) -> dict[Where, list[Any]]:
        if not messages:
            return {}
        if len(self._assigned) == 1:
            (where,) = self._assigned
            found = {where: messages}
        else:
            found = {}
            for message in messages:
                found.setdefault((message.topic(), message.partition()), []).append(message)
        # A partition that was taken up again may give some of what was had already.
        return {
            where: some if some[0].offset() >= self._next[where] else self._new(where, some)
            for where, some in found.items()
            if where in self._assigned
        }

    def _new(self, where: Where, messages: list[Any]) -> list[Any]:
        return [message for message in messages if message.offset() >= self._next[where]]

    def _heed(self, message: Any, where: Where) -> None:
        from confluent_kafka import KafkaError

        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            # The end may lie behind markers of transactions, which are no messages.
            self._read[where] = max(self._read.get(where, 0), int(message.offset()))
            return
        if error.code() in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
            oldest = self._cluster.beginnings(where[0]).get(where[1])
            raise truncated(*where, self._next[where], oldest, self._location.url)
        failure = translate(error, f"reading «{where[0]}»" if where[0] else "reading", self._location.url)
        if not failure.retry and not isinstance(failure, LogTruncated):
            raise failure
        # The broker is away, or says that a topic is not there: see which of the two at the next look.
        self._look_at = 0.0

    def _look(self) -> None:
        """See whether topics or partitions have come since; now and then. A broker that is away is waited for."""
        if time.monotonic() < self._look_at:
            return
        try:
            self._look_now()
            self.away = ""
        except LogUnavailable as error:
            self.away_since = self.away_since if self.away else time.monotonic()
            self.away = error.message
            self._look_at = time.monotonic() + LOOK_FOR_BROKERS_S

    def _look_now(self) -> None:
        now = time.monotonic()
        there = self._cluster.topics(patience=0.0)
        topics = [topic for topic in self._topics if topic in there or topic in self.identities]
        self.identities |= identified(self._cluster, self._location.bootstrap, topics, self.identities)
        self.missing = awaited(self._topics, there)
        self._look_at = now + (LOOK_FOR_TOPICS_S if self.missing else LOOK_FOR_PARTITIONS_S)
        new = [(topic, i) for topic in self._topics for i in range(there.get(topic, 0))]
        self._assign([where for where in new if where not in self._assigned])

    def _assign(self, new: Sequence[Where]) -> None:
        from confluent_kafka import Consumer, TopicPartition

        if not new:
            return
        oldest = {topic: self._cluster.beginnings(topic) for topic in {topic for topic, _ in new}}
        assigned = []
        for topic, number in new:
            start = oldest[topic].get(number, 0)
            offset = self._next.get((topic, number), start)
            if offset < start:
                raise truncated(topic, number, offset, start, self._location.url)
            self._next[topic, number] = offset
            self._read.setdefault((topic, number), offset)
            assigned.append(TopicPartition(topic, number, offset))
        if self._consumer is None:
            # Idle, a fetch waits at the broker; what comes is sent at once.
            self._consumer = Consumer(
                consumer_properties(self._location, enable_partition_eof=True) | {"fetch.wait.max.ms": 100}
            )
        make_known(self._consumer, oldest)
        self._consumer.incremental_assign(assigned)
        self._assigned |= set(new)

    def hold(self, ahead: set[Where]) -> None:
        """Read some partitions no further for now, and all others on."""
        from confluent_kafka import TopicPartition

        new, over = ahead - self._held, self._held - ahead
        if new:
            self._consumer.incremental_unassign([TopicPartition(*where) for where in new])
        if over:
            self._consumer.incremental_assign([TopicPartition(*where, self._next[where]) for where in over])
        self._held = set(ahead)

    @property
    def behind(self) -> bool:
        """Return whether many messages may be waiting."""
        return self._behind and self._consumer is not None and not self.away

    def waiting_ranges(self, most: int) -> list[TopicRange]:
        """Return what is committed and was not read, of each partition so much that it is ``most`` in all.

        Until `caught_up` or `read_here` nothing is received meanwhile.
        """
        self._look()
        try:
            ends = self.ends()
        except LogUnavailable:
            return []
        self.hold(self._assigned)
        waiting = [(where, self._next[where], end) for where, end in ends.items() if where in self._assigned]
        waiting = [(where, first, end) for where, first, end in waiting if end > first]
        share = most // max(1, len(waiting))
        return [TopicRange(*where, first, min(end, first + share) - 1) for where, first, end in waiting]

    def pass_over(self, ranges: Iterable[TopicRange]) -> None:
        """Go on behind ranges that were read elsewhere."""
        for range_ in ranges:
            self._next[range_.where] = self._read[range_.where] = range_.last + 1

    def caught_up(self) -> None:
        """Receive what comes from here on."""
        self._behind = False
        self.hold(set())

    def read_here(self, ranges: Iterable[TopicRange]) -> None:
        """Receive these messages; what comes after them may be read elsewhere again."""
        self.caught_up()
        self._read_here = {range_.where: range_.last + 1 for range_ in ranges}

    def commit(self, position: Offsets) -> None:
        """Commit offsets for the consumer group, without waiting: others see there how far we are."""
        from confluent_kafka import TopicPartition

        offsets = [TopicPartition(*where, offset) for where, offset in position.items() if where in self._assigned]
        if self._consumer is not None and offsets:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def positions(self) -> dict[Where, int]:
        """Return the next offset of every partition, as a start needs them."""
        return dict(self._next)

    def read(self) -> Offsets:
        """Return how far everything has been read, markers of transactions included."""
        return Offsets(self._read)

    def ends(self) -> Offsets:
        """Return where the topics end now."""
        found = {}
        for topic in self._topics:
            for number, offset in self._cluster.ends(topic).items():
                found[topic, number] = offset
        return Offsets(found)

    def close(self) -> None:
        """Leave the cluster."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def identified(cluster: Cluster, bootstrap: str, topics: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Return the broker's ids of topics, those that are not there left out.

    Args:
        known: ids of the topics that were read before.

    Raises:
        LogTruncated: such a one was deleted, or made anew.
    """
    unknown = any(topic not in known for topic in topics)
    now = cluster.identities(topics) if topics and (unknown or known) else {}
    for topic in topics:
        if topic in known and now.get(topic) != known[topic]:
            what = "was deleted and made anew" if topic in now else "is not there any more"
            raise LogTruncated(
                f"the topic «{topic}» on {bootstrap} {what}, after messages of it were read",
                advice="Restore it; or read the new one with another app name.",
            )
    return {topic: now[topic] for topic in topics if topic in now}
