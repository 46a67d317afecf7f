"""Fetching messages from given offsets on: one consumer, a few partitions at a time, never more than a bounded number.

A consumer gets messages of all its partitions as they arrive. Here a caller says which messages it wants, by
partition and offsets, and has them when the last of them is there: `Fetcher.fetch` waits until it is past all ranges,
with the partitions that are ahead paused, so that one slow partition neither reorders nor piles up anything.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from headrace.errors import LogTruncated, LogUnavailable
from headrace.kafka.cluster import Cluster, lasting, translate
from headrace.kafka.ranges import TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.wire import WireMessages

_MILLISECONDS = itemgetter(1)
FETCH_SECONDS = 60.0
AT_ONCE = 10_000
SKIPPED = 1_000  # messages that are rather read and left than looked for anew

Where = tuple[str, int]


Wanted = dict[Where, deque[tuple[int, TopicRange]]]


def consumer_properties(location: KafkaLocation, **more: Any) -> dict[str, Any]:
    """Return the properties of a consumer that reads committed messages from offsets of its own, fast.

    librdkafka's own queue limits cap a reader at some 135,000 messages a second, measured on loopback. A look elsewhere
    begins when the fetch that waits at the end of what was read before comes back: it waits 5 ms at most (the idle
    fetches cost 1 % of a core).
    """
    return location.client(
        group_id=f"headrace-{location.name or 'reader'}",
        enable_auto_commit=False,
        enable_auto_offset_store=False,
        auto_offset_reset="error",
        isolation_level="read_committed",
        queued_min_messages=1_000_000,
        queued_max_messages_kbytes=32_768,
        fetch_queue_backoff_ms=5,
        fetch_wait_max_ms=5,
        fetch_message_max_bytes=4 << 20,
        fetch_error_backoff_ms=50,
        **more,
    )


def receive(consumer: Any, timeout: float) -> list[Any]:
    """Return what has arrived, waiting for the first of it only: `consume` alone would wait until there is enough."""
    first = consumer.poll(timeout)
    return [] if first is None else [first, *consumer.consume(AT_ONCE, 0)]


def make_known(consumer: Any, topics: Iterable[str]) -> None:
    """Let a consumer that is connected learn of topics at once: by itself it looks for them once a second."""
    from confluent_kafka import KafkaException

    for topic in topics:
        # A broker that is away is noticed, and waited for, where messages are awaited.
        with contextlib.suppress(KafkaException):
            consumer.list_topics(topic, timeout=1.0)


def errors_among(messages: list[Any]) -> list[Any]:
    """Return events of the consumer among the messages it gave: ends of partitions, and what went wrong."""
    from confluent_kafka import Message

    found = list(map(Message.error, messages))
    if not any(found):
        return []
    return [message for message, error in zip(messages, found, strict=True) if error is not None]


class Fetcher:
    """Reads ranges of messages. Any thread may call it; one is served at a time."""

    def __init__(self, location: KafkaLocation, cluster: Cluster) -> None:
        self._location = location
        self._cluster = cluster
        self._consumer: Any = None
        self._next: dict[Where, int] = {}
        self._ahead: dict[Where, deque[Any]] = {}
        self._known: set[str] = set()
        self._lock = threading.Lock()

    def fetch(self, ranges: Sequence[TopicRange]) -> list[list[Any]]:
        """Return the messages of each range, when all are there.

        Args:
            ranges: of one partition in the order of their offsets.

        Raises:
            LogTruncated: some were deleted.
            LogUnavailable: no message came for a minute.
        """
        if not ranges:
            return []
        with self._lock:
            wanted: Wanted = {}
            for number, range_ in enumerate(ranges):
                wanted.setdefault(range_.where, deque()).append((number, range_))
            self._attend(wanted)
            found: list[list[Any]] = [[] for _ in ranges]
            deadline = time.monotonic() + FETCH_SECONDS
            while self._serve(wanted, found):
                self._leave(where for where, waiting in wanted.items() if not waiting)
                if self._receive(0.1):
                    deadline = time.monotonic() + FETCH_SECONDS
                elif self._cluster.out_of_patience(deadline):
                    raise self._missing(wanted)
                else:
                    self._refuse_truncated(wanted)
            return found

    def _attend(self, wanted: Wanted) -> None:
        """Go on where the consumer is, or have it look elsewhere."""
        from confluent_kafka import Consumer, TopicPartition

        if self._consumer is None:
            self._consumer = Consumer(consumer_properties(self._location))
        firsts = {where: waiting[0][1].first for where, waiting in wanted.items()}
        self._leave(
            where
            for where, next_ in self._next.items()
            if where not in firsts or not 0 <= firsts[where] - next_ <= SKIPPED
        )
        new = {where: first for where, first in firsts.items() if where not in self._next}
        if new:
            make_known(self._consumer, {topic for topic, _ in new} - self._known)
            self._known |= {topic for topic, _ in new}
            self._consumer.incremental_assign([TopicPartition(*where, first) for where, first in new.items()])
        self._next |= new
        self._ahead |= {where: deque() for where in new}

    def _leave(self, done: Iterable[Where]) -> None:
        """Read some partitions no further: those that are ahead must not pile up while others are waited for.

        They are not paused: librdkafka keeps a partition paused beyond its next assignment.
        """
        from confluent_kafka import TopicPartition

        left = [where for where in done if where in self._next]
        if left:
            self._consumer.incremental_unassign([TopicPartition(*where) for where in left])
        for where in left:
            del self._next[where], self._ahead[where]

    def _serve(self, wanted: Wanted, found: list[list[Any]]) -> bool:
        """Hand out what has arrived; whether something is still missing."""
        for where, waiting in wanted.items():
            ahead = self._ahead.get(where, ())
            while waiting and ahead:
                number, range_ = waiting[0]
                offset = ahead[0].offset()
                if offset <= range_.last:
                    message = ahead.popleft()
                    if offset >= range_.first:
                        found[number].append(message)
                if offset >= range_.last:
                    self._next[where] = range_.last + 1
                    waiting.popleft()
        return any(wanted.values())

    def _receive(self, timeout: float) -> int:
        messages = receive(self._consumer, timeout)
        ahead = self._ahead
        for message in messages:
            error = message.error()
            if error is not None:
                self._heed(error, message)
            elif (message.topic(), message.partition()) in ahead:
                ahead[message.topic(), message.partition()].append(message)
        return len(messages)

    def _heed(self, error: Any, message: Any) -> None:
        what = f"reading «{message.topic()}» partition {message.partition()}" if message.topic() else "reading"
        failure = lasting(self._cluster, error, what, message.topic())
        if failure is not None:
            self._drop()
            raise failure

    def _refuse_truncated(self, wanted: Wanted) -> None:
        for (topic, partition), waiting in wanted.items():
            if not waiting:
                continue
            oldest = self._cluster.beginnings(topic).get(partition)
            if oldest is None or oldest > waiting[0][1].first:
                self._drop()
                raise truncated(topic, partition, waiting[0][1].first, oldest, self._location.url)

    def _missing(self, wanted: Wanted) -> LogUnavailable:
        where, waiting = next((where, waiting) for where, waiting in wanted.items() if waiting)
        self._drop()
        return LogUnavailable(
            f"«{where[0]}» partition {where[1]} does not give the messages up to offset {waiting[0][1].last}",
            advice="It is tried again.",
        )

    def _drop(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer, self._next, self._ahead, self._known = None, {}, {}, set()

    def close(self) -> None:
        """Leave the cluster."""
        with self._lock:
            self._drop()


class RangeReader:
    """Reads one range after another, each by itself; for whoever reads seldom, and few messages at a time."""

    def __init__(self, location: KafkaLocation) -> None:
        from confluent_kafka import Consumer

        # The client would fetch far beyond a small range.
        small = {"queued.min.messages": 1_000, "queued.max.messages.kbytes": 4_096, "fetch.message.max.bytes": 1 << 20}
        self._consumer = Consumer(consumer_properties(location, enable_partition_eof=True) | small)
        self._location = location

    def read(self, range_: TopicRange) -> list[Any]:
        """Return the visible messages of a range, whose last offset may be a marker's.

        Raises:
            LogUnavailable: no message came for a minute.
            LogError: the broker refuses.
        """
        from confluent_kafka import KafkaError, TopicPartition

        make_known(self._consumer, [range_.topic])
        self._consumer.incremental_assign([TopicPartition(*range_.where, range_.first)])
        found: list[Any] = []
        deadline = time.monotonic() + FETCH_SECONDS
        try:
            while time.monotonic() < deadline:
                for message in receive(self._consumer, 0.2):
                    deadline = time.monotonic() + FETCH_SECONDS
                    error = message.error()
                    if (message.topic(), message.partition()) != range_.where:
                        continue
                    ends = message.offset() > range_.last
                    if error is not None and error.code() != KafkaError._PARTITION_EOF:
                        raise translate(error, f"reading «{range_.topic}»", self._location.url)
                    if error is None and not ends:
                        found.append(message)
                    if ends or (error is None and message.offset() == range_.last):
                        return found
        finally:
            self._consumer.incremental_unassign([TopicPartition(*range_.where)])
        raise LogUnavailable(f"«{range_.topic}» partition {range_.partition} does not give offset {range_.last}")

    def close(self) -> None:
        """Leave the cluster."""
        self._consumer.close()


def truncated(topic: str, partition: int, wanted: int, oldest: int | None, where: str) -> LogTruncated:
    """Return the refusal when messages that a position needs are gone."""
    held = "the topic is not there" if oldest is None else f"its oldest is {oldest}"
    return LogTruncated(
        f"«{topic}» partition {partition} on {where} does not hold offset {wanted} any more: {held}",
        advice="Restore the topic, or learn again from what is there: headrace models reset NAME, or another app name.",
    )


def wire_messages(topic: str, fetched: Sequence[Any], *, partition: int | None = None) -> WireMessages:
    """librdkafka's messages, column-wise; keys and headers when somebody asks for them.

    Args:
        partition: theirs, where they are all of one.
    """
    from confluent_kafka import Message

    n = len(fetched)
    if partition is None:
        partitions = np.fromiter(map(Message.partition, fetched), np.int64, n)
    else:
        partitions = np.full(n, partition)
    # Mapping the methods themselves takes a third of the time of a loop in Python.
    return WireMessages(
        topic,
        list(map(Message.value, fetched)),
        offsets=np.fromiter(map(Message.offset, fetched), np.int64, n),
        partitions=partitions,
        ts_ms=np.fromiter(map(_MILLISECONDS, map(Message.timestamp, fetched)), np.int64, n),
        keys=lambda: list(map(Message.key, fetched)),
        key=lambda i: fetched[i].key(),
        headers=lambda: _headers(list(map(Message.headers, fetched))),
    )


def _headers(found: list[Any]) -> list[Any]:
    """Return each message's headers; None, where librdkafka found none, is an empty sequence."""
    return [headers or () for headers in found] if any(found) else [()] * len(found)
