"""A look at a cluster: every topic on it, whoever writes it. Nothing is changed, nothing is written.

What a pipeline of ours writes is read through its log, in the log's order and with its offsets. Everything else
(Debezium's topics, anybody's) is read as it lies there, partition after partition, a page at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.errors import DeclarationError, LogError, LogMissing
from headrace.kafka.cluster import PATIENCE_SECONDS, Cluster, bounds_of, group_offsets, lasting, offsets_since
from headrace.kafka.fetch import Fetcher, consumer_properties, errors_among, receive, wire_messages
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import TopicInfo
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_codec import Codec
from headrace.log.kafka_reader import PartitionReader, in_order
from headrace.log.slices import IndexEntry
from headrace.log.topic_metadata import TopicMetadata
from headrace.log.topic_owners import Known, TopicOwners, pipelines_among
from headrace.wire import WireMessages

ROWS_AT_ONCE = 8_192
LAST_MESSAGES = 50
LIST_SECONDS = 1.0
REST_SECONDS = 30.0
AWAKE = 4


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
    """A look at a cluster. Any thread may use it.

    What pipelines there are, and which topics they have, is read without opening their logs; a log is opened when
    somebody asks for it, and leaves the cluster while nobody does.

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
        self._opening = threading.Lock()
        self._fetcher = Fetcher(location, self._cluster)
        self._owners = TopicOwners(location, self._cluster)
        self._closed = threading.Event()
        self._resting: threading.Thread | None = None
        self._found: list[str] = []
        self._found_at = -LIST_SECONDS
        try:
            if location.name:
                self.opened(location.name)
            else:
                self.pipelines()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> KafkaView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- pipelines ------------------------------------------------------------------------------------------------

    def pipelines(self, *, producers: bool = True) -> list[str]:
        """Return names of the pipelines that have a log, those that `headrace produce` writes among them.

        Args:
            producers: whether those are wanted.
        """
        if self.location.name:
            return [self.location.name]
        if time.monotonic() - self._found_at > LIST_SECONDS:
            self._found, self._found_at = pipelines(self._cluster), time.monotonic()
        return [name for name in self._found if producers or not name.startswith(PRODUCERS)]

    def known(self, patience: float = PATIENCE_SECONDS) -> dict[str, Known]:
        """Return what the pipelines' changelogs say of their topics, and of the pipelines, by their names.

        Args:
            patience: seconds until what is not read yet is left for the next call.

        Raises:
            LogUnavailable: the broker does not give them.
        """
        names = self.pipelines()
        found = self._owners.look(names, patience)
        self._attend()
        return found

    @property
    def warnings(self) -> list[str]:
        """What was found of pipelines that cannot be read: their topics are shown as those of others."""
        return [f"the log of «{name}» is left out: {reason}" for name, reason in self._owners.unreadable.items()]

    def opened(self, pipeline: str) -> KafkaLog:
        """Return the log of a pipeline.

        Raises:
            LogMissing: there is none of this name.
            LogError: it cannot be read.
        """
        with self._opening:
            log = self._logs.get(pipeline)
            if log is None:
                location = replace(self.location, name=pipeline)
                log = KafkaLog(location, writer=False, codec=self._codec, cluster=self._cluster)
                self._logs[pipeline] = log
            log.used_at = time.monotonic()
        self._attend()
        return log

    @property
    def log(self) -> KafkaLog:
        """The log of the one pipeline that is meant. Topics that `headrace produce` fills are nobody's pipeline.

        Raises:
            LogMissing: there is none.
            DeclarationError: there are several.
        """
        names = self.pipelines(producers=False)
        if not names:
            raise LogMissing(
                f"no pipeline has a log on {self.location.bootstrap}", advice="Run one with this --log, or check it."
            )
        if len(names) > 1:
            raise DeclarationError(
                f"{len(names)} pipelines have logs on {self.location.bootstrap}: {', '.join(names)}",
                advice=f"Say which: --log {self.location.url}/{names[0]}",
            )
        return self.opened(names[0])

    def readers(self, topic: str) -> list[str]:
        """Return the pipelines whose logs have a topic, those that only read it among them."""
        return [name for name, known in self.known().items() if topic in known.topics and known.topics[topic].visible]

    def owner(self, topic: str) -> KafkaLog | None:
        """Return the log that a topic belongs to, None where others write it."""
        name = _writer(topic, self.known()) if not self.location.name else self.location.name
        log = self.opened(name) if name else None
        about = metadata_of(log, topic) if log is not None else None
        return log if about is not None and not about.foreign else None

    # -- topics ---------------------------------------------------------------------------------------------------

    def names(self, *, internal: bool = False) -> list[str]:
        """Return every topic of the cluster, or those of the named pipeline's log; ours and Kafka's own last."""
        known = self._cluster.topics()
        if self.location.name:
            mine = self.opened(self.location.name)
            kept = {*mine.topics(), mine.slices_topic, mine.changelog_topic, mine.staging}
            known = {name: count for name, count in known.items() if name in kept}
        shown = [name for name in known if not name.startswith("__")]
        return shown + ([name for name in known if name.startswith("__")] if internal else [])

    def topics(self) -> dict[str, None]:
        """Return names of every topic, ours and Kafka's own included."""
        return dict.fromkeys(self._cluster.topics())

    def seen(self, topic: str) -> TopicView:
        """Return one topic.

        Raises:
            LogError: the cluster has none of this name.
        """
        found = self.seen_all([topic])
        if not found:
            known = ", ".join(self.names()) or "none"
            raise LogError(f"{self.location.url} has no topic «{topic}»", advice=f"Its topics: {known}.")
        return found[0]

    def seen_all(self, topics: Sequence[str], patience: float = PATIENCE_SECONDS) -> list[TopicView]:
        """Return topics that the cluster has, in a few questions for all of them.

        Args:
            patience: seconds until a topic whose pipeline is not known yet is shown as one of others.
        """
        partitions = self._cluster.topics()
        offsets = bounds_of(self._cluster, {topic: partitions[topic] for topic in topics if topic in partitions})
        known = self.known(patience)
        found = []
        for topic in topics:
            if topic in offsets:
                pipeline = _writer(topic, known)
                info = known[pipeline].topics[topic].info(topic) if pipeline else None
                found.append(TopicView(topic, pipeline, info, *offsets[topic]))
        return found

    def lags(self) -> dict[str, dict[str, int]]:
        """Return the consumer groups of each topic, with the messages that each has still to read (at most)."""
        found: dict[str, dict[str, int]] = {}
        groups_of = group_offsets(self._cluster)
        offsets = bounds_of(self._cluster, {topic: self._cluster.partitions(topic) for topic in groups_of})
        for topic, (firsts, ends) in offsets.items():
            for group, read in groups_of[topic].items():
                left = (max(0, end - max(read.get(number, 0), firsts.get(number, 0))) for number, end in ends.items())
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
        about = metadata_of(log, topic) if log is not None else None
        if log is None or about is None:
            return ""
        newest = list(log.entries_of(topic, about.last_offset))
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
            yield from self.partition(topic, number, max(first, offset), ends[number])
        if follow:
            yield from self._following(topic, {number: max(end, offset) for number, end in ends.items()})

    def partition(self, topic: str, number: int, first: int, end: int) -> Iterator[WireMessages]:
        """Yield one partition from an offset to an end that is known."""
        if first >= end:
            return
        with contextlib.closing(PartitionReader(self.location, self._cluster, topic, number)) as reader:
            reader.seek(first)
            for chunk in reader.new_messages():
                messages = [message for message in chunk if message.offset() < end]
                if messages:
                    yield wire_messages(topic, messages)
                if reader.next >= end:
                    return

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

    # -- the end --------------------------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Let what nobody asks any more leave the cluster, in a thread that a look at a whole cluster has."""
        if self._resting is None and not self.location.name:
            self._resting = threading.Thread(target=self._let_rest, name="headrace-view", daemon=True)
            self._resting.start()

    def _let_rest(self) -> None:
        rested: dict[KafkaLog | TopicOwners, float] = {}
        while not self._closed.wait(REST_SECONDS / 10):
            newest_first = sorted(self._logs.copy().values(), key=lambda log: log.used_at, reverse=True)
            readers: list[KafkaLog | TopicOwners] = [*newest_first, self._owners]
            now = time.monotonic()
            for place, held in enumerate(readers):
                least = REST_SECONDS if place < AWAKE else REST_SECONDS / 10
                if now - held.used_at > least and rested.get(held) != held.used_at:
                    rested[held] = held.used_at
                    held.rest()

    def close(self) -> None:
        """Leave the cluster."""
        self._closed.set()
        if self._resting is not None:
            self._resting.join()
        for log in self._logs.values():
            log.close()
        self._owners.rest()
        self._fetcher.close()


def metadata_of(log: KafkaLog, topic: str) -> TopicMetadata | None:
    """Return what a log knows of a topic now, also of one that others write; None where it is none of its topics."""
    log.newest_slice()  # looks
    return log.metadata.get(topic)


def _writer(topic: str, known: Mapping[str, Known]) -> str:
    """Return the pipeline that writes a topic; "" where others do."""
    for name, about in known.items():
        metadata = about.topics.get(topic)
        if metadata is not None and not metadata.foreign:
            return name
    return ""


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


def offsets_at(view: KafkaView, topic: str, ts_ms: int) -> dict[int, int]:
    """Return, of each partition that has one, the offset of the first message written at a time or later."""
    return offsets_since(view._cluster, topic, ts_ms)


def message_time(view: KafkaView, topic: str, offset: int) -> int:
    """Return when the message at an offset was written, in microseconds: of several partitions' the newest one.

    Raises:
        LogError: no partition holds one there.
    """
    times = []
    for number, first in view.seen(topic).first.items():
        for page in view.partition(topic, number, max(first, offset), offset + 1):
            times += (page.ts_ms * 1000).tolist()
    if not times:
        raise LogError(f"«{topic}» holds no message {offset}", advice="Its page shows which offsets it holds.")
    return int(max(times))


PRODUCERS = "produce."
"""The beginning of the name of a log that `headrace produce` writes."""


def pipelines(cluster: Cluster) -> list[str]:
    """Return names of the pipelines that have a log on a cluster."""
    return pipelines_among(list(cluster.topics()))


def owners(location: KafkaLocation, cluster: Cluster, topics: Sequence[str]) -> dict[str, list[str]]:
    """Return pipelines that write some of these topics, and which; from all their changelogs, read side by side.

    Raises:
        LogUnavailable: the broker does not give them.
    """
    names = [name for name in pipelines(cluster) if name != location.name]
    held = TopicOwners(location, cluster)
    try:
        found = {}
        for name, known in (held.look(names) if names else {}).items():
            theirs = [topic for topic in topics if topic in known.topics and not known.topics[topic].foreign]
            if theirs:
                found[name] = theirs
        return found
    finally:
        held.rest()


def partitions_of(messages: WireMessages, rows: Ints) -> tuple[Ints, Ints]:
    """Return partition and offset of each row, by the message that it came from."""
    at = np.asarray(rows, np.int64)
    return messages.partitions[at], messages.offsets[at]
