"""A Kafka cluster beside its messages: topics, their limits and offsets; and its errors as ours."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from typing import Any, TypeVar

from headrace.errors import LogError, LogLocked, LogTruncated, LogUnavailable
from headrace.event_log import event
from headrace.kafka.settings import KafkaLocation
from headrace.retry import FIRST_ANSWER_SECONDS, Backoff, due

logger = logging.getLogger("headrace")

_T = TypeVar("_T")
REQUEST_SECONDS = 10.0
PATIENCE_SECONDS = 30.0
METADATA_SECONDS = 30.0
LAST_PATIENCE = 3.0  # seconds that a broker still has when the pipeline is stopped
TICK_SECONDS = 0.05
VISIBLE_SECONDS = 10.0
GONE_SECONDS = 3.0
FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
COMPACTED = {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.3", "segment.bytes": str(32 << 20)}


class Cluster:
    """One cluster. Any thread may use it; calls wait for a broker that is away, up to half a minute.

    Args:
        location: where it is.
        patience: seconds to wait for a broker that is away.

    Attributes:
        on_wait: called with a line for people while the broker is away, and with "" afterwards.
        interrupted: whether nobody wants to wait long any more; see `interrupt`.
    """

    def __init__(self, location: KafkaLocation, *, patience: float = PATIENCE_SECONDS) -> None:
        from confluent_kafka.admin import AdminClient

        self.location = location
        self._patience = patience
        self.on_wait: Callable[[str], None] = lambda _: None
        self._interrupted_at: float | None = None
        self._answered = False
        self._asked_at: float | None = None
        self._admin = AdminClient(location.client(socket_timeout_ms=10_000))
        self._partitions: dict[str, tuple[int, float]] = {}
        self._limits: dict[str, int] = {}
        self._lock = threading.Lock()

    def interrupt(self) -> None:
        """Give a broker that is away a last few seconds: the pipeline ends. From any thread."""
        self._interrupted_at = self._interrupted_at or time.monotonic()

    @property
    def interrupted(self) -> bool:
        return self._interrupted_at is not None

    def out_of_patience(self, deadline: float) -> bool:
        """Return whether a deadline (`time.monotonic`) has come, which an interruption brings near.

        While no broker has answered, the time in which a pipeline is to start is one too (`headrace.retry.due`). What
        else starts before it (a JVM) takes nothing of the two seconds that a broker has to answer.
        """
        now, at = time.monotonic(), self._interrupted_at
        asked = now if self._asked_at is None else self._asked_at
        if not self._answered and now >= max(due(), asked + FIRST_ANSWER_SECONDS):
            return True
        return now >= deadline or (at is not None and now >= at + LAST_PATIENCE)

    def breakable(self, what: str, call: Callable[[], _T]) -> _T:
        """Make a call of the client that cannot be broken off, in a thread of its own.

        A signal ends waiting for it at once, where the main thread waits; `interrupted` does after a last patience.

        Raises:
            LogUnavailable: it had not returned by then.
        """
        outcome: Future[_T] = Future()

        def run() -> None:
            try:
                outcome.set_result(call())
            except BaseException as error:  # raised where it is waited for
                outcome.set_exception(error)

        threading.Thread(target=run, name="headrace-kafka-call", daemon=True).start()
        return self._awaited(what, outcome)

    def _awaited(self, what: str, outcome: Future[_T]) -> _T:
        while True:
            try:
                return outcome.result(TICK_SECONDS)
            except FutureTimeout:
                if outcome.done():
                    return outcome.result()
            if self.out_of_patience(math.inf):
                if not self.interrupted:
                    raise LogUnavailable(
                        f"{self.location.url} cannot be reached ({what})",
                        advice="Is the broker running, and are host and port right?",
                    )
                raise LogUnavailable(f"stopped while {what}: {self.location.url} is away")

    def patiently(self, what: str, call: Callable[[], _T], *, patience: float | None = None) -> _T:
        """Call again, with backoff, while the broker is away.

        Raises:
            LogUnavailable: it stayed away.
            LogError: it refused.
        """
        from confluent_kafka import KafkaException

        if self._asked_at is None:
            self._asked_at = time.monotonic()
        deadline = time.monotonic() + (self._patience if patience is None else patience)
        backoff, waited = Backoff(first=0.05, most=1.0), False
        try:
            while True:
                try:
                    found = call()
                    self._answered = True
                    return found
                except KafkaException as error:
                    failure = self.translate(error, what)
                    if not failure.retry or self.out_of_patience(deadline):
                        raise failure from error
                    logger.info("%s; trying again", failure.message, extra=event("waiting"))
                    self.on_wait(f"waiting for {self.location.url} ({what}); trying again")
                waited = True
                time.sleep(backoff.next())
        finally:
            if waited:
                self.on_wait("")

    def _answers(
        self,
        what: str,
        ask: Callable[[], Mapping[Any, Future[Any]]],
        *,
        harmless: Callable[[Any], bool] = lambda _: False,
    ) -> dict[Any, Any]:
        """Ask the brokers, and return their answers by what was asked for; a harmless refusal is none."""
        from confluent_kafka import KafkaException

        def once() -> dict[Any, Any]:
            found = {}
            for name, future in ask().items():
                try:
                    found[name] = self._awaited(what, future)
                except KafkaException as error:
                    if not harmless(error.args[0]):
                        raise
            return found

        return self.patiently(what, once)

    def topics(self, *, patience: float | None = None) -> dict[str, int]:
        """Return every topic of the cluster, with the number of its partitions.

        Args:
            patience: seconds to wait for a broker that is away, other than the cluster's.
        """
        once = REQUEST_SECONDS if patience is None else min(REQUEST_SECONDS, max(1.0, patience))

        def list_topics() -> Any:
            return self.breakable("listing topics", lambda: self._admin.list_topics(timeout=once))

        found = self.patiently("listing topics", list_topics, patience=patience)
        return {name: len(topic.partitions) for name, topic in sorted(found.topics.items()) if topic.error is None}

    def partitions(self, topic: str) -> int:
        """Return how many partitions a topic has, 0 when there is no such topic; asked again every half minute."""
        known, until = self._partitions.get(topic, (0, 0.0))
        if not known or time.monotonic() >= until:
            known = len(described.partitions) if (described := self._described([topic]).get(topic)) else 0
            self._partitions[topic] = (known, time.monotonic() + METADATA_SECONDS)
        return known

    def create(self, topic: str, *, partitions: int, config: Mapping[str, str]) -> None:
        """Make a topic; nothing happens where there is one.

        Raises:
            LogError: the broker refused, with its reason.
        """
        from confluent_kafka import KafkaError
        from confluent_kafka.admin import NewTopic

        new = NewTopic(topic, partitions, self.location.replication, config=dict(config))
        self._answers(
            f"making the topic «{topic}»",
            lambda: self._admin.create_topics([new], request_timeout=REQUEST_SECONDS),
            harmless=lambda error: bool(error.code() == KafkaError.TOPIC_ALREADY_EXISTS),
        )
        self._wait(lambda: self._known_anew(topic) > 0, f"the new topic «{topic}» to be known")

    def delete(self, topic: str) -> None:
        """Remove a topic; nothing happens where there is none.

        Raises:
            LogError: the broker refused, with its reason.
        """
        self._answers(
            f"deleting the topic «{topic}»",
            lambda: self._admin.delete_topics([topic], request_timeout=REQUEST_SECONDS),
            harmless=is_unknown,
        )
        self._limits.pop(topic, None)
        self._wait(lambda: not self._known_anew(topic), f"the topic «{topic}» to be gone")

    def _known_anew(self, topic: str) -> int:
        self._partitions.pop(topic, None)
        return self.partitions(topic)

    def _wait(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._patience
        while not reached():
            if self.out_of_patience(deadline):
                raise LogUnavailable(f"waited {self._patience:.0f} s for {what} on {self.location.url}")
            time.sleep(0.02)

    def identities(self, topics: Sequence[str]) -> dict[str, str]:
        """Return the ids of the topics that are there; one that is deleted and made anew has another (KIP-516)."""
        return {name: str(topic.topic_id) for name, topic in self._described(topics).items()}

    def _described(self, topics: Sequence[str]) -> dict[str, Any]:
        """Return the topics that are there, as the broker describes them.

        `list_topics` must not be asked about one topic: a broker that makes topics on demand would make it.
        """
        from confluent_kafka import TopicCollection

        def ask() -> Any:
            return self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=REQUEST_SECONDS)

        return self._answers("describing topics", ask, harmless=is_unknown) if topics else {}

    def gone(self, topic: str) -> bool:
        """Return whether a topic of which a client says that it is unknown is not there.

        A broker that has just started, and a client that has just come back to it, know no topics for a moment.
        """
        deadline = time.monotonic() + GONE_SECONDS
        while not self._known_anew(topic):
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.1)
        return False

    def largest_message(self, topic: str) -> int:
        """Return a topic's ``max.message.bytes``."""
        from confluent_kafka.admin import ConfigResource, ResourceType

        if topic not in self._limits:
            resource = ConfigResource(ResourceType.TOPIC, topic)

            def ask() -> Any:
                return self._admin.describe_configs([resource], request_timeout=REQUEST_SECONDS)

            found = self._answers(f"asking for the limits of «{topic}»", ask)[resource]
            self._limits[topic] = int(found["max.message.bytes"].value)
        return self._limits[topic]

    def ends(self, topic: str) -> dict[int, int]:
        """Return each partition's next offset: of what is committed."""
        from confluent_kafka import IsolationLevel
        from confluent_kafka.admin import OffsetSpec

        return self._offsets(topic, OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)

    def beginnings(self, topic: str) -> dict[int, int]:
        """Return each partition's oldest offset."""
        from confluent_kafka import IsolationLevel
        from confluent_kafka.admin import OffsetSpec

        return self._offsets(topic, OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)

    def _offsets(self, topic: str, spec: Any, level: Any) -> dict[int, int]:
        from confluent_kafka import KafkaException, TopicPartition

        asked = {TopicPartition(topic, number): spec for number in range(self.partitions(topic))}
        if not asked:
            return {}

        def ask() -> dict[int, int]:
            found = self._admin.list_offsets(asked, isolation_level=level, request_timeout=REQUEST_SECONDS)
            try:
                what = f"asking for the offsets of «{topic}»"
                return {where.partition: int(self._awaited(what, future).offset) for where, future in found.items()}
            except KafkaException:
                # A broker that has come back leads in a new epoch, which the client does not ask for by itself.
                with contextlib.suppress(KafkaException):
                    self._admin.list_topics(topic, timeout=1.0)
                raise

        return self.patiently(f"asking for the offsets of «{topic}»", ask)

    def delete_before(self, topic: str, offsets: Mapping[int, int]) -> None:
        """Let the broker forget messages below an offset of each partition."""
        from confluent_kafka import TopicPartition

        asked = [TopicPartition(topic, partition, offset) for partition, offset in offsets.items()]

        def ask() -> Any:
            return self._admin.delete_records(asked, request_timeout=REQUEST_SECONDS)

        if asked:
            self._answers(f"deleting old records of «{topic}»", ask)

    def translate(self, error: Any, what: str) -> LogError:
        """Return what librdkafka's error means for the log; raise it ``from`` the original."""
        return translate(error.args[0], what, self.location.url)


def bounds_of(cluster: Cluster, topics: Mapping[str, int]) -> dict[str, tuple[dict[int, int], dict[int, int]]]:
    """Return the oldest and the next offset of each partition of several topics, in two questions.

    Args:
        topics: with the numbers of their partitions, as `Cluster.topics` gives them; one that is gone is left out.
    """
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    places = [TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)]
    if not places:
        return {}

    def answers(spec: Any, level: Any) -> dict[Any, Any]:
        ask = partial(
            cluster._admin.list_offsets,
            dict.fromkeys(places, spec),
            isolation_level=level,
            request_timeout=REQUEST_SECONDS,
        )
        return cluster._answers("asking for offsets", ask, harmless=is_unknown)

    found: dict[str, tuple[dict[int, int], dict[int, int]]] = {}
    oldest = answers(OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)
    for where, next_ in answers(OffsetSpec.latest(), IsolationLevel.READ_COMMITTED).items():
        if where in oldest:
            firsts, ends = found.setdefault(where.topic, ({}, {}))
            firsts[where.partition], ends[where.partition] = int(oldest[where].offset), int(next_.offset)
    return found


def await_visible(cluster: Cluster, topics: Sequence[str]) -> None:
    """Wait until readers see what was committed to topics: a broker answers a commit before it writes its markers.

    Gives up where a broker is away.
    """
    from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
    from confluent_kafka.admin import OffsetSpec

    def ends(level: Any) -> dict[Any, int]:
        asked = cluster._admin.list_offsets(
            dict.fromkeys(places, OffsetSpec.latest()), isolation_level=level, request_timeout=REQUEST_SECONDS
        )
        return {at: int(cluster._awaited("asking what is visible", end).offset) for at, end in asked.items()}

    deadline, backoff = time.monotonic() + VISIBLE_SECONDS, Backoff(first=0.001, most=0.1)
    with contextlib.suppress(KafkaException, LogError):
        places = [TopicPartition(topic, number) for topic in topics for number in range(cluster.partitions(topic))]
        written, visible = ends(IsolationLevel.READ_UNCOMMITTED), ends(IsolationLevel.READ_COMMITTED)
        while any(visible[at] < end for at, end in written.items()) and time.monotonic() < deadline:
            time.sleep(backoff.next())
            visible = ends(IsolationLevel.READ_COMMITTED)


def offsets_since(cluster: Cluster, topic: str, ts_ms: int) -> dict[int, int]:
    """Return, of each partition that has one, the offset of the first message that was written at a time or later."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import OffsetSpec

    spec = OffsetSpec.for_timestamp(ts_ms)
    asked = {TopicPartition(topic, number): spec for number in range(cluster.partitions(topic))}

    def ask() -> Any:
        return cluster._admin.list_offsets(asked, request_timeout=REQUEST_SECONDS)

    found = cluster._answers(f"looking for a time in «{topic}»", ask, harmless=is_unknown) if asked else {}
    return {where.partition: int(at.offset) for where, at in found.items() if at.offset >= 0}


def group_offsets(cluster: Cluster) -> dict[str, dict[str, dict[int, int]]]:
    """Return how far each consumer group is that commits offsets: topic -> group -> partition -> next offset."""
    from confluent_kafka import ConsumerGroupTopicPartitions

    what = "listing consumer groups"
    listed = cluster._answers(what, lambda: {"": cluster._admin.list_consumer_groups(request_timeout=REQUEST_SECONDS)})
    found: dict[str, dict[str, dict[int, int]]] = {}
    for group in sorted(each.group_id for each in listed[""].valid):
        ask = partial(
            cluster._admin.list_consumer_group_offsets,
            [ConsumerGroupTopicPartitions(group)],
            request_timeout=REQUEST_SECONDS,
        )
        answers = cluster._answers(
            f"asking for the offsets of the group «{group}»",
            ask,
            harmless=lambda error: not error.retriable(),  # it has just gone, or is not ours to see
        )
        for place in [place for answer in answers.values() for place in answer.topic_partitions]:
            if place.offset >= 0:
                found.setdefault(place.topic, {}).setdefault(group, {})[place.partition] = place.offset
    return found


def is_unknown(error: Any) -> bool:
    """Return whether a client says that there is no such topic; a broker that has just started says it of any."""
    from confluent_kafka import KafkaError

    return bool(error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC))


def lasting(cluster: Cluster, error: Any, what: str, topic: str) -> LogError | None:
    """Return a consumer's error as one of ours; None where it passes, or a topic is unknown that is there."""
    failure = translate(error, what, cluster.location.url)
    return None if failure.retry or (is_unknown(error) and not cluster.gone(topic)) else failure


def translate(error: Any, what: str, where: str) -> LogError:
    """Return a `KafkaError` as one of ours.

    Args:
        error: what librdkafka reported.
        what: what was being done, as in "committing".
        where: the log's location.
    """
    from confluent_kafka import KafkaError as Code

    code, reason = error.code(), _without_secrets(error.str())
    if code in (Code._FENCED, Code.INVALID_PRODUCER_EPOCH, Code.PRODUCER_FENCED, Code.INVALID_PRODUCER_ID_MAPPING):
        return LogLocked(
            f"another run of this pipeline has taken over the log {where} ({what})",
            advice="One run of a pipeline writes at a time. What this one had not committed is undone.",
        )
    if code in (Code._AUTHENTICATION, Code.SASL_AUTHENTICATION_FAILED, Code._SSL):
        return LogError(
            f"{where} does not let us in ({what}): {reason}",
            advice="Check security.protocol, sasl.* and ssl.* (HEADRACE_KAFKA_… or the file HEADRACE_KAFKA_CONFIG).",
        )
    if code in (Code.TOPIC_AUTHORIZATION_FAILED, Code.CLUSTER_AUTHORIZATION_FAILED, Code.GROUP_AUTHORIZATION_FAILED):
        return LogError(f"no right for {what} on {where}: {reason}", advice="Ask for the ACL that the broker names.")
    if code == Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
        return LogError(
            f"no right to write in transactions on {where}: {reason}",
            advice="Allow Write and Describe on transactional ids that begin with «headrace.».",
        )
    if code in (Code.OFFSET_OUT_OF_RANGE, Code._AUTO_OFFSET_RESET, Code.UNKNOWN_TOPIC_OR_PART, Code._UNKNOWN_TOPIC):
        return LogTruncated(
            f"{what}: {where} does not hold these messages any more ({reason})",
            advice="They were deleted, by retention or by hand. Restore them, or begin a log with another app name.",
        )
    if code in (Code._STATE, Code.INVALID_TXN_STATE, Code.INVALID_CONFIG, Code.INVALID_REPLICATION_FACTOR):
        return LogError(f"{what} failed on {where}: {reason}")
    if error.retriable() or code in _away() or code < 0:
        return LogUnavailable(
            f"{where} cannot be reached ({what}: {reason})",
            advice="Is the broker running, and are host and port right?",
        )
    return LogError(f"{what} failed on {where}: {reason}")


@functools.cache
def _away() -> frozenset[int]:
    """Return the broker's own codes for «not now»; made when first asked, since librdkafka is imported late."""
    from confluent_kafka import KafkaError as Code

    return frozenset(
        {
            Code.BROKER_NOT_AVAILABLE,
            Code.CONCURRENT_TRANSACTIONS,
            Code.COORDINATOR_LOAD_IN_PROGRESS,
            Code.COORDINATOR_NOT_AVAILABLE,
            Code.FENCED_LEADER_EPOCH,
            Code.LEADER_NOT_AVAILABLE,
            Code.NETWORK_EXCEPTION,
            Code.NOT_COORDINATOR,
            Code.UNKNOWN_LEADER_EPOCH,
            Code.NOT_LEADER_FOR_PARTITION,
            Code.REQUEST_TIMED_OUT,
        }
    )


def _without_secrets(text: str) -> str:
    """Return a reason as the broker or the library gives it, with nothing in it that looks like a credential."""
    return re.sub(r"(?i)(password|secret|token)=\S+", r"\1=…", text)
