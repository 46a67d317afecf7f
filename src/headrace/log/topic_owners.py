"""Who writes which topic of a cluster, as the changelogs of its pipelines say: all of them read side by side.

A topic's name does not tell whose it is, and opening the logs of sixty pipelines costs some hundred threads. One client
reads every changelog, and keeps of it what each log knows of its topics, and what its pipeline says of itself.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import LogCorrupt, LogUnavailable
from headrace.kafka.cluster import PATIENCE_SECONDS, Cluster, bounds_of, lasting
from headrace.kafka.fetch import consumer_properties, receive
from headrace.kafka.settings import KafkaLocation
from headrace.log.changelog import Changelog
from headrace.log.kafka_codec import INTERNAL_PREFIX
from headrace.log.topic_metadata import STATUS, TOPIC, TopicMetadata, topic_metadata

ENDING = ".changelog"
KEPT = tuple(b"r" + f"{kind}\x00".encode() for kind in (TOPIC, STATUS))


def changelog_of(pipeline: str) -> str:
    """Return the topic of a pipeline's changelog."""
    return f"{INTERNAL_PREFIX}.{pipeline}{ENDING}"


def pipelines_among(topics: Sequence[str]) -> list[str]:
    """Return names of the pipelines that have a log, by the topics of their cluster."""
    before = f"{INTERNAL_PREFIX}."
    logs = [topic for topic in topics if topic.startswith(before) and topic.endswith(ENDING)]
    return [topic.removeprefix(before).removesuffix(ENDING) for topic in logs]


@dataclass(slots=True)
class Known:
    """What is known of a pipeline.

    Attributes:
        next: offset of the first message of its changelog that was not read.
        topics: of its log; those of others, which it reads, are marked.
        unreadable: why its changelog cannot be read; empty where it can.
    """

    next: int = -1
    topics: dict[str, TopicMetadata] = field(default_factory=dict)
    unreadable: str = ""
    records: Changelog = field(default_factory=Changelog)

    def take(self, chunk: Sequence[Any]) -> None:
        """Take in messages of its changelog."""
        changed = False
        for message in chunk:
            key = message.key() or b""
            if key.startswith(KEPT):
                changed |= key.startswith(KEPT[0])
                self.records.apply(key, message.value())
            self.next = message.offset() + 1
        if changed:
            self.topics = topic_metadata(self.records.records(TOPIC))

    @property
    def status(self) -> list[bytes]:
        """What the pipeline says of itself; see `headrace.inspect.health`."""
        return list(self.records.records(STATUS).values())


class TopicOwners:
    """What the pipelines of a cluster say of their topics. Any thread may call it; one is served at a time."""

    def __init__(self, location: KafkaLocation, cluster: Cluster) -> None:
        self._location = location
        self._cluster = cluster
        self._known: dict[str, Known] = {}
        self._consumer: Any = None
        self._assigned: set[str] = set()
        self._lock = threading.Lock()
        self.used_at = 0.0

    def look(self, names: Sequence[str], patience: float = PATIENCE_SECONDS) -> dict[str, Known]:
        """Return what is known of pipelines by now.

        Args:
            names: theirs.
            patience: seconds until what is not read yet is left for the next look.

        Raises:
            LogUnavailable: the broker does not give the changelogs, where the patience is that for a broker.
        """
        with self._lock:
            self.used_at = time.monotonic()
            self._known = {name: self._known.get(name) or Known() for name in names}
            topics = {changelog_of(name): name for name in names}
            ends = {
                topic: max(end.values(), default=0)
                for topic, (_, end) in bounds_of(self._cluster, dict.fromkeys(topics, 1)).items()
            }
            for topic, end in ends.items():
                if self._known[topics[topic]].next > end:  # it is another one of that name
                    self._known[topics[topic]] = Known()
                    self._assigned.discard(topic)
            unread = {topic for topic, end in ends.items() if self._known[topics[topic]].next < end}
            if unread:
                self._read(topics, unread, ends, patience)
            return dict(self._known)

    def _read(self, topics: dict[str, str], unread: set[str], ends: dict[str, int], patience: float) -> None:
        from confluent_kafka import KafkaError

        self._attend(topics)
        deadline = time.monotonic() + patience
        while unread:
            chunks: dict[str, list[Any]] = {}
            for message in receive(self._consumer, 0.1):
                topic = message.topic()
                if message.error() is None:
                    chunks.setdefault(topic, []).append(message)
                elif message.error().code() == KafkaError._PARTITION_EOF and topic in topics:
                    known = self._known[topics[topic]]
                    self._take(known, chunks.pop(topic, []))
                    known.next = max(known.next, message.offset())
                else:
                    self._heed(message, topics)
            for topic, chunk in chunks.items():
                if topic in topics:
                    self._take(self._known[topics[topic]], chunk)
            unread -= {topic for topic in unread if self._known[topics[topic]].next >= ends[topic]}
            if unread and time.monotonic() >= deadline:
                if patience < PATIENCE_SECONDS:
                    return
                raise LogUnavailable(f"{self._location.url} does not give {', '.join(sorted(unread))}")

    def _take(self, known: Known, chunk: Sequence[Any]) -> None:
        try:
            known.take(chunk)
        except (LogCorrupt, ValueError, TypeError) as error:
            known.unreadable = str(error)
            known.next = max([known.next, *(message.offset() + 1 for message in chunk)])

    def _heed(self, message: Any, topics: dict[str, str]) -> None:
        """Leave a changelog that is gone, as if it were read."""
        topic = message.topic()
        if lasting(self._cluster, message.error(), f"reading «{topic}»", topic) is not None and topic in topics:
            self._known[topics[topic]] = Known(next=1 << 62, unreadable="its changelog is gone")

    def _attend(self, topics: dict[str, str]) -> None:
        """Read each changelog on from where it was read to."""
        from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

        if self._consumer is None:
            self._consumer = Consumer(consumer_properties(self._location, enable_partition_eof=True))
            self._assigned = set()
        if self._assigned != set(topics):
            with contextlib.suppress(KafkaException):  # a broker that is away is waited for where messages are awaited
                self._consumer.list_topics(timeout=1.0)  # by itself it learns of topics half a second later
            places = {topic: self._known[name].next for topic, name in topics.items()}
            self._consumer.assign(
                [TopicPartition(topic, 0, OFFSET_BEGINNING if at < 0 else at) for topic, at in places.items()]
            )
            self._assigned = set(topics)

    @property
    def unreadable(self) -> dict[str, str]:
        """Pipelines whose changelogs were found to be unreadable, and why."""
        return {name: known.unreadable for name, known in self._known.items() if known.unreadable}

    def rest(self) -> None:
        """Leave the cluster; the next look goes on from where this one stands."""
        with self._lock:
            if self._consumer is not None:
                self._consumer.close()
            self._consumer = None
