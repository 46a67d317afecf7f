"""A look at a cluster: every topic on it, whoever writes it. Nothing is changed, nothing is written.

What a pipeline of ours writes is read through its log, in the log's order and with its offsets. Everything else
(Debezium's topics, anybody's) is read as it lies there, partition after partition, a page at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.errors import DeclarationError, LogError, LogMissing, LogUnavailable
from headrace.kafka.cluster import PATIENCE_SECONDS, Cluster, group_offsets, lasting
from headrace.kafka.fetch import Fetcher, consumer_properties, errors_among, receive, wire_messages
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import TopicInfo
from headrace.log.changelog import Changelog
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_codec import INTERNAL_PREFIX, Codec
from headrace.log.kafka_reader import PartitionReader, in_order
from headrace.log.slices import IndexEntry
from headrace.log.topic_metadata import TOPIC, topic_metadata
from headrace.wire import WireMessages

ROWS_AT_ONCE = 8_192
LAST_MESSAGES = 50


@dataclass(frozen=True, slots=True)
class TopicView:
    """A topic as it lies on the cluster.

    Attributes:
        pipeline: whose log it belongs to, "" where others write it.
        info: what that log knows of it; None where others write it.
        first, end: by partition, the oldest offset and the next one.
    """

    topic: str
    pipeline: str
    info: TopicInfo | None
    first: dict[int, int]
    end: dict[int, int]

    @property
    def rows(self) -> int:
        """Rows of a pipeline's topic; of another at most so many messages: ends of transactions take offsets too."""
        if self.info is not None:
            return self.info.rows
        return sum(self.end[number] - first for number, first in self.first.items())


class KafkaView:
    """A look at a cluster.

    Args:
        location: where; with a name, that pipeline is meant where one has to be.
        codec: the formats of pipelines' topics.

    Raises:
        LogUnavailable: the cluster cannot be reached.
        LogMissing: there is no pipeline of the name given.
    """

    def __init__(self, location: KafkaLocation, *, codec: Codec) -> None:
        self.location = location
        self._codec = codec
        self._cluster = Cluster(location)
        self._logs: dict[str, KafkaLog] = {}
        self._fetcher = Fetcher(location, self._cluster)
        self.warnings: list[str] = []
        try:
            for name in [location.name] if location.name else pipelines(self._cluster):
                self._open(name)
        except BaseException:
            self.close()
            raise

    def _open(self, name: str) -> None:
        try:
            self._logs[name] = KafkaLog(replace(self.location, name=name), writer=False, codec=self._codec)
        except LogError as error:
            if self.location.name or error.retry:
                raise
            # One that cannot be read does not hide the others; its topics are shown as they lie there.
            self.warnings.append(f"the log of «{name}» is left out: {error.message}")

    def __enter__(self) -> KafkaView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> KafkaLog:
        """The log of the one pipeline that is meant. Topics that `headrace produce` fills are nobody's pipeline.

        Raises:
            LogMissing: there is none.
            DeclarationError: there are several.
        """
        named = self.location.name
        logs = {name: log for name, log in self._logs.items() if name == named or not name.startswith(PRODUCERS)}
        if not logs:
            raise LogMissing(
                f"no pipeline has a log on {self.location.bootstrap}", advice="Run one with this --log, or check it."
            )
        if len(logs) > 1:
            raise DeclarationError(
                f"{len(logs)} pipelines have logs on {self.location.bootstrap}: {', '.join(logs)}",
                advice=f"Say which: --log {self.location.url}/{next(iter(logs))}",
            )
        return next(iter(logs.values()))

    @property
    def logs(self) -> dict[str, KafkaLog]:
        """The logs that it reads, by their pipelines' names."""
        return dict(self._logs)

    def names(self, *, internal: bool = False) -> list[str]:
        """Return every topic of the cluster, or those of the named pipeline's log; ours and Kafka's own last."""
        known = self._cluster.topics()
        if self.location.name:
            mine = self._logs[self.location.name]
            kept = {*mine.topics(), mine.slices_topic, mine.changelog_topic, mine.staging}
            known = {name: count for name, count in known.items() if name in kept}
        shown = [name for name in known if not name.startswith("__")]
        return shown + ([name for name in known if name.startswith("__")] if internal else [])

    def topics(self) -> dict[str, None]:
        """Return names of every topic, ours and Kafka's own included."""
        return dict.fromkeys(self._cluster.topics())

    def owner(self, topic: str) -> KafkaLog | None:
        """Return the log that a topic belongs to, None where others write it."""
        for log in self._logs.values():
            known = log.metadata.get(topic)
            if known is not None and not known.foreign:
                return log
        return None

    def seen(self, topic: str) -> TopicView:
        """Return one topic.

        Raises:
            LogError: the cluster has none of this name.
        """
        if not self._cluster.partitions(topic):
            known = ", ".join(self.names()) or "none"
            raise LogError(f"{self.location.url} has no topic «{topic}»", advice=f"Its topics: {known}.")
        log = self.owner(topic)
        info = log.topics().get(topic) if log is not None else None
        pipeline = log.location.name if log is not None else ""
        return TopicView(topic, pipeline, info, self._cluster.beginnings(topic), self._cluster.ends(topic))

    def lags(self) -> dict[str, dict[str, int]]:
        """Return the consumer groups of each topic, with the messages that each has still to read (at most)."""
        found: dict[str, dict[str, int]] = {}
        for topic, groups in group_offsets(self._cluster).items():
            ends, firsts = self._cluster.ends(topic), self._cluster.beginnings(topic)
            for group, offsets in groups.items():
                left = (
                    max(0, end - max(offsets.get(number, 0), firsts.get(number, 0))) for number, end in ends.items()
                )
                found.setdefault(topic, {})[group] = sum(left)
        return found

    # -- messages -------------------------------------------------------------------------------------------------

    def messages(self, topic: str, *, offset: int = 0, follow: bool = False) -> Iterator[WireMessages]:
        """Return a topic's messages as they lie there, a page at a time; an empty page while nothing new has come.

        Args:
            offset: the first row of a pipeline's topic; of another one the first offset in each partition.
            follow: go on with what comes.
        """
        log = self.owner(topic)
        if log is None:
            return self._foreign(topic, offset, follow)
        return self._owned(log, topic, offset, follow)

    def last(self, topic: str) -> WireMessages:
        """Return the newest messages of a topic's fullest partition, a few."""
        self.seen(topic)
        return newest_messages(self.location, self._cluster, topic)

    def format_of(self, topic: str) -> str:
        """In which format a pipeline wrote the newest rows of its topic; "" of a topic of others."""
        log = self.owner(topic)
        if log is None:
            return ""
        newest = list(log.entries_of(topic, log.metadata[topic].last_offset))
        return log.forms[newest[-1].form].format if newest else ""

    def _owned(self, log: KafkaLog, topic: str, offset: int, follow: bool) -> Iterator[WireMessages]:
        while True:
            with contextlib.closing(log.entries_of(topic, offset)) as entries:
                chosen: list[IndexEntry] = []
                while sum(entry.rows for entry in chosen) < ROWS_AT_ONCE and (entry := next(entries, None)):
                    chosen.append(entry)
            found = self._fetched(chosen, offset)
            if not chosen and not follow:
                return
            offset = chosen[-1].end if chosen else offset
            yield wire_messages(topic, found)

    def _fetched(self, chosen: Sequence[IndexEntry], offset: int) -> list[Any]:
        ranges = [span.of(stored.topic) for stored in chosen for span in stored.ranges]
        fetched = iter(self._fetcher.fetch(ranges))
        found: list[Any] = []
        for entry in chosen:
            messages = in_order(entry, [next(fetched) for _ in entry.ranges])
            skip = offset - entry.offset if len(messages) == entry.rows else 0
            found += messages[max(0, skip) :]
        return found

    def _foreign(self, topic: str, offset: int, follow: bool) -> Iterator[WireMessages]:
        ends = self._cluster.ends(topic)
        for number, first in self._cluster.beginnings(topic).items():
            yield from self._partition(topic, number, max(first, offset), ends[number])
        if follow:
            yield from self._following(topic, {number: max(end, offset) for number, end in ends.items()})

    def _partition(self, topic: str, number: int, first: int, end: int) -> Iterator[WireMessages]:
        """Yield one partition from an offset to an end that is known."""
        if first >= end:
            return
        with contextlib.closing(PartitionReader(self.location, self._cluster, topic, number)) as reader:
            reader.seek(first)
            for chunk in reader.new_messages():
                messages = [message for message in chunk if message.offset() < end]
                if messages:
                    yield wire_messages(topic, messages)

    def _following(self, topic: str, first: dict[int, int]) -> Iterator[WireMessages]:
        from confluent_kafka import Consumer, TopicPartition

        with contextlib.closing(Consumer(consumer_properties(self.location))) as consumer:
            consumer.assign([TopicPartition(topic, number, offset) for number, offset in first.items()])
            while True:
                received = receive(consumer, 0.2)
                for message in errors_among(received):
                    failure = lasting(self._cluster, message.error(), f"reading «{topic}»", topic)
                    if failure is not None:
                        raise failure
                yield wire_messages(topic, [message for message in received if message.error() is None])

    def close(self) -> None:
        """Leave the cluster."""
        for log in self._logs.values():
            log.close()
        self._fetcher.close()


def newest_messages(location: KafkaLocation, cluster: Cluster, topic: str) -> WireMessages:
    """Return the newest messages of a topic's fullest partition, a few; none where there is no such topic.

    Raises:
        LogUnavailable: the broker stays away.
    """
    oldest, ends = cluster.beginnings(topic), cluster.ends(topic)
    sizes = {number: end - oldest[number] for number, end in ends.items() if number in oldest}
    number = max(sizes, key=lambda number: sizes[number], default=0)
    if not sizes.get(number):
        return wire_messages(topic, [])
    with contextlib.closing(PartitionReader(location, cluster, topic, number)) as reader:
        reader.seek(max(oldest[number], ends[number] - LAST_MESSAGES))
        return wire_messages(topic, [message for chunk in reader.new_messages() for message in chunk])


PRODUCERS = "produce."
"""The beginning of the name of a log that `headrace produce` writes."""


def pipelines(cluster: Cluster) -> list[str]:
    """Return names of the pipelines that have a log on a cluster."""
    before, after = f"{INTERNAL_PREFIX}.", ".changelog"
    topics = [topic for topic in cluster.topics() if topic.startswith(before) and topic.endswith(after)]
    return [topic.removeprefix(before).removesuffix(after) for topic in topics]


def owners(location: KafkaLocation, cluster: Cluster, topics: Sequence[str]) -> dict[str, list[str]]:
    """Return pipelines that write some of these topics, and which; from all their changelogs, read side by side.

    Raises:
        LogUnavailable: the broker does not give them.
    """
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

    logs = {f"{INTERNAL_PREFIX}.{name}.changelog": name for name in pipelines(cluster) if name != location.name}
    if not logs:
        return {}
    found: dict[str, Changelog] = {topic: Changelog() for topic in logs}
    unread = set(logs)
    consumer = Consumer(consumer_properties(location, enable_partition_eof=True))
    deadline = time.monotonic() + PATIENCE_SECONDS
    try:
        consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING) for topic in logs])
        while unread:
            for message in receive(consumer, 0.2):
                if message.error() is None:
                    found[message.topic()].apply(message.key(), message.value())
                elif message.error().code() in (KafkaError._PARTITION_EOF, KafkaError.UNKNOWN_TOPIC_OR_PART):
                    unread.discard(message.topic())
            if time.monotonic() >= deadline:
                raise LogUnavailable(f"{location.url} does not give {', '.join(sorted(unread))}")
    finally:
        consumer.close()
    wanted = {}
    for topic, changelog in found.items():
        known = topic_metadata(changelog.records(TOPIC))
        theirs = [name for name in topics if name in known and not known[name].foreign]
        if theirs:
            wanted[logs[topic]] = theirs
    return wanted


def partitions_of(messages: WireMessages, rows: Ints) -> tuple[Ints, Ints]:
    """Return partition and offset of each row, by the message that it came from."""
    at = np.asarray(rows, np.int64)
    return messages.partitions[at], messages.offsets[at]
