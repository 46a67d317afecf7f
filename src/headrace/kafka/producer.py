"""The writing client of a log on Kafka: transactions, and where what was sent came to lie."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from headrace.arrays import Ints
from headrace.errors import LogTruncated, LogUnavailable
from headrace.kafka.cluster import Cluster, translate
from headrace.kafka.partition import partitions_of
from headrace.kafka.ranges import MessageRange, pack_spread
from headrace.kafka.settings import KafkaLocation
from headrace.wire import Headers

logger = logging.getLogger("headrace")

TRANSACTION_MILLISECONDS = 300_000  # publishing a large source transaction takes a while
DELIVERY_MILLISECONDS = 60_000
SETTLE_SECONDS = 1.0
# Between two such calls it is looked at whether the pipeline is to end.
CALL_SECONDS = 1.0
# A transaction that follows the last one at once finds the broker still writing that one's markers, and librdkafka asks
# again after 20 ms only.
GAP_SECONDS = 0.006


class Sent:
    """Messages of one topic on their way; `ranges` is known when they have been delivered."""

    def __init__(self, topic: str, partitions: Ints) -> None:
        self.topic = topic
        self._partitions = partitions
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}

    def first(self, error: Any, message: Any) -> None:
        """Delivery report of a partition's first message."""
        if error is None:
            self._first[message.partition()] = message.offset()

    def last(self, error: Any, message: Any) -> None:
        """Delivery report of a partition's last message."""
        if error is None:
            self._last[message.partition()] = message.offset()

    def only(self, error: Any, message: Any) -> None:
        """Delivery report of a partition's only message."""
        self.first(error, message)
        self.last(error, message)

    @property
    def ranges(self) -> tuple[MessageRange, ...]:
        """Return where they lie.

        Raises:
            LogUnavailable: not all were delivered.
        """
        numbers, counts = np.unique(self._partitions, return_counts=True)
        try:
            return tuple(
                MessageRange(number, self._first[number], self._last[number], count)
                for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            )
        except KeyError as error:
            raise LogUnavailable(f"messages of «{self.topic}» were not delivered") from error

    @property
    def spread(self) -> bytes:
        """The partition of each message, where there are several."""
        several = len(self._partitions) > 0 and bool((self._partitions != self._partitions[0]).any())
        return pack_spread(self._partitions) if several else b""


class TransactionalProducer:
    """An idempotent producer with a transactional id of its own: whoever has it last is the only one who commits.

    Opening it ends every other run's transactions (KIP-98, "zombie fencing"). Used by the writing thread only.

    Args:
        location, cluster: the log's.
        on_wait: called with a line for people while the broker is away, and with "" when it is back.

    Raises:
        LogUnavailable: the broker stays away.
        LogError: it does not let us write.
    """

    def __init__(self, location: KafkaLocation, cluster: Cluster, on_wait: Callable[[str], None]) -> None:
        from confluent_kafka import Producer

        self._location = location
        self._cluster = cluster
        self._on_wait = on_wait
        self._open = False
        self._turn = 0
        self._committed_at = 0.0
        self._counts: dict[str, int] = {}
        defaults = {"transaction.timeout.ms": TRANSACTION_MILLISECONDS, "compression.type": "lz4"}
        self._producer: Any = Producer(
            {
                **defaults,
                **location.client(
                    transactional_id=f"headrace.{location.name}",
                    message_timeout_ms=DELIVERY_MILLISECONDS,
                    message_max_bytes=1_000_000_000,
                    queue_buffering_max_messages=200_000,
                    queue_buffering_max_kbytes=262_144,
                    linger_ms=2,
                    batch_size=1 << 20,
                ),
            }
        )
        # Before it knows a broker, librdkafka looks for the coordinator twice a second only.
        self._ask("looking for brokers", lambda: self._producer.list_topics(timeout=10.0))
        # The call that waits here also waits for an earlier run's transaction to be undone.
        self._ask("becoming the log's writer", lambda: self._producer.init_transactions(10.0))

    def _ask(self, what: str, call: Callable[[], Any]) -> None:
        self._cluster.patiently(what, lambda: self._cluster.breakable(what, call))

    @property
    def open(self) -> bool:
        """Return whether a transaction has begun."""
        return self._open

    @property
    def committed(self) -> bool:
        """Return whether a transaction has been committed."""
        return self._committed_at > 0

    def send(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        headers: Iterable[Headers],
        *,
        timestamp: int = 0,
    ) -> Sent:
        """Queue messages of a topic in the current transaction, which begins with the first.

        Raises:
            LogError: the client refuses.
        """
        from confluent_kafka import KafkaException

        self._begin()
        count = self._partitions(topic)
        self._turn += 1
        partitions = partitions_of(keys, count, keyless=self._turn % max(1, count))
        sent = Sent(topic, partitions)
        reports = _reports(sent, partitions)
        produce = self._producer.produce
        for i, (value, key, number, pairs) in enumerate(zip(values, keys, partitions.tolist(), headers, strict=True)):
            report = reports.get(i)
            try:  # here, since a call more for each message costs as much as the client's own
                produce(topic, value, key, number, report, None, timestamp, pairs or None)
            except (BufferError, KafkaException):
                self._produce(topic, value, key, number, report, timestamp, pairs)
        self._serve(self._producer.poll, 0)
        return sent

    def _partitions(self, topic: str) -> int:
        """Return how many there are. The client itself learns of new ones half a minute later, with its next look."""
        count = self._cluster.partitions(topic)
        if self._counts.setdefault(topic, count) != count:
            self._ask("asking for new partitions", lambda: self._producer.list_topics(topic, 5.0))
            self._counts[topic] = count
        return count

    def _produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None,
        partition: int,
        report: Callable[[Any, Any], None] | None,
        timestamp: int,
        headers: Headers,
    ) -> None:
        """Queue a message that was not taken at once: wait for room, or say why not."""
        from confluent_kafka import KafkaError, KafkaException

        since = time.monotonic()
        while True:
            try:
                self._producer.produce(topic, value, key, partition, report, None, timestamp, headers or None)
                return
            except BufferError:
                # The queue is full: what was queued is being sent meanwhile.
                self._serve(self._producer.poll, 0.05)
                self._waiting(since, f"writing to «{topic}»")
            except KafkaException as error:
                if error.args[0].code() == KafkaError._STATE:
                    # Messages before this one were not delivered: nothing but undoing is allowed then.
                    raise LogUnavailable(
                        f"{self._location.url} did not take a transaction's messages",
                        advice="It is tried again.",
                    ) from error
                failure = self._cluster.translate(error, f"writing to «{topic}»")
                if isinstance(failure, LogTruncated) and not self._cluster.gone(topic):
                    # The transaction is undone, and tried again with what the client knows by then.
                    with contextlib.suppress(KafkaException):
                        self._producer.list_topics(topic, 5.0)
                    failure = LogUnavailable(f"{self._location.url} did not know «{topic}» for a moment")
                raise failure from error

    def _serve(self, call: Callable[[float], int], seconds: float) -> int:
        """Call `poll` or `flush`. A fatal error comes out of these too, once; commit and abort raise it again.

        Where a delivery report was due at the same moment, the client wraps it into a SystemError.
        """
        from confluent_kafka import KafkaException

        try:
            return call(seconds)
        except (KafkaException, SystemError) as error:
            logger.debug("%s", error)
            return 1

    def _begin(self) -> None:
        if not self._open:
            left = self._committed_at + GAP_SECONDS - time.monotonic()
            if left > 0:
                time.sleep(left)
            self._producer.begin_transaction()
            self._open = True

    def deliver(self) -> None:
        """Wait until everything sent has its offset.

        Raises:
            LogUnavailable: the cluster was interrupted meanwhile.
        """
        since = time.monotonic()
        while self._serve(self._producer.flush, 0.5):
            self._waiting(since, "delivering messages")
        self._on_wait("")

    def commit(self) -> None:
        """Make the transaction durable and visible. Waits as long as the broker is away: the outcome is known then.

        Raises:
            LogUnavailable: the broker has undone it, or the cluster was interrupted while nobody knows.
            LogLocked: another run has taken over.
        """
        if self._open:
            self._end("committing", self._producer.commit_transaction)
            self._committed_at = time.monotonic()
        self._on_wait("")

    def abort(self) -> None:
        """Undo the transaction, if one has begun.

        Raises:
            LogError: as for `commit`.
        """
        if self._open:
            # Undone while it is being sent, one in fifty ends fatally: librdkafka issue 4849.
            self._serve(self._producer.flush, SETTLE_SECONDS)
            self._end("undoing a transaction", self._producer.abort_transaction)
        self._on_wait("")

    def _end(self, what: str, call: Callable[[float], None]) -> None:
        from confluent_kafka import KafkaException

        since = time.monotonic()
        while self._open:
            try:
                call(CALL_SECONDS)
                self._open = False
            except KafkaException as error:
                self._after(error, what, since)

    def _after(self, exception: Any, what: str, since: float) -> None:
        """Handle an error of a commit or an abort: it is undone, fatal, or to be asked again."""
        error = exception.args[0]
        if error.fatal():
            self._open = False
            raise translate(error, what, self._location.url) from exception
        if error.txn_requires_abort():
            if what == "committing":
                self.abort()
                raise LogUnavailable(
                    f"{self._location.url} has undone a transaction: {error.str()}", advice="It is tried again."
                ) from exception
            return
        if not error.retriable():
            raise translate(error, what, self._location.url) from exception
        self._waiting(since, what)

    def _waiting(self, since: float, what: str) -> None:
        waited = time.monotonic() - since
        if self._cluster.out_of_patience(math.inf):
            raise LogUnavailable(f"stopped while {what}: {self._location.url} is away")
        if waited > 2:
            self._on_wait(f"waiting for {self._location.url} ({what}); trying again")

    def close(self) -> None:
        """Leave the cluster; an open transaction is undone by whoever writes next."""
        if self._producer is None:
            return
        if self._open:
            settle, undo = (0.0, 0.5) if self._cluster.interrupted else (SETTLE_SECONDS, 2.0)
            try:
                self._serve(self._producer.flush, settle)
                self._producer.abort_transaction(undo)
                self._open = False
            except Exception as error:  # librdkafka's own; the next writer's opening undoes it
                logger.debug("%s", error)
        if not self._open:
            self._producer.close()
        # The client's own `close` waits for a transaction's end, which a broker that is away never confirms. Let go, it
        # ends at once.
        self._producer = None


def _reports(sent: Sent, partitions: Ints) -> dict[int, Callable[[Any, Any], None]]:
    """Return which messages report their delivery: the first and the last of each partition."""
    reports: dict[int, Callable[[Any, Any], None]] = {}
    if len(partitions) == 1:
        return {0: sent.only}
    for number in np.unique(partitions).tolist():
        at = np.flatnonzero(partitions == number)
        first, last = int(at[0]), int(at[-1])
        if first == last:
            reports[first] = sent.only
        else:
            reports[first], reports[last] = sent.first, sent.last
    return reports


def too_large(size: int, limit: int, topic: str) -> str:
    """Return the reason for a row that a topic does not take."""
    return f"the message has {size:,} bytes, more than the {limit:,} that the topic «{topic}» takes (max.message.bytes)"
