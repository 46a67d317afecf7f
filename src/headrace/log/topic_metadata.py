"""The topics of one transaction on Kafka: where they begin and end in it, which it makes, and which it drops."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.errors import LogError
from headrace.kafka.cluster import FOR_EVER
from headrace.log.base import no_such_topic, topic_exists
from headrace.log.kafka_codec import INTERNAL_PREFIX
from headrace.log.kafka_topics import CREATED, Head

if TYPE_CHECKING:
    from headrace.log.kafka import KafkaLog


class TransactionTopics:
    """What a `headrace.log.kafka_writer.KafkaTransaction` does to topics as a whole.

    Attributes:
        heads: of the topics that it has touched.
        dropped: what the cluster deletes after the commit.
    """

    def __init__(self, log: KafkaLog) -> None:
        self._log = log
        self._over = False
        self.heads: dict[str, Head] = {}
        self.dropped: set[str] = set()

    def head(self, topic: str) -> Head:
        """A topic as this transaction sees it."""
        return self.heads.get(topic) or self._log.heads.get(topic) or Head()

    def _make_topic(self, topic: str) -> None:
        """Make it where it is missing; remember which one it is, so that another of its name is noticed."""
        if self.head(topic).identity:
            return
        if topic in self.dropped:
            raise LogError(f"«{topic}» was dropped in this transaction", advice="Make it again in the next one.")
        cluster, place = self._log.cluster, self._log.place
        if not cluster.partitions(topic):
            partitions = 1 if topic.startswith(INTERNAL_PREFIX) else place.partitions
            cluster.create(topic, partitions=partitions, config=FOR_EVER)
        identity = cluster.identities([topic]).get(topic, "?")
        self.heads[topic] = replace(self.head(topic), identity=identity, foreign=False)

    def restore_topic(self, topic: str, *, offset: int) -> None:
        """See `Transaction.restore_topic`."""
        self._check()
        if self.head(topic).end:
            raise LogError(f"the log has the topic «{topic}» already")
        if not offset:
            self._make_topic(topic)
        mark = "" if offset else CREATED
        self.heads[topic] = replace(self.head(topic), first=offset, end=offset, mark=mark)

    def create_topic(self, topic: str, *, partitions: int | None = None) -> None:
        """See `Transaction.create_topic`."""
        self._check()
        cluster, place = self._log.cluster, self._log.place
        if self.head(topic).visible or cluster.partitions(topic):
            raise topic_exists(topic, place.location)
        cluster.create(topic, partitions=partitions or place.partitions, config=FOR_EVER)
        self._make_topic(topic)
        now_us = self._log.clock.now_us()
        self.heads[topic] = replace(self.head(topic), mark=CREATED, first_ts_us=now_us, last_ts_us=now_us)

    def drop_topic(self, topic: str) -> None:
        """See `Transaction.drop_topic`."""
        self._check()
        head = self.head(topic)
        if not head.visible:
            raise no_such_topic(topic)
        if head.foreign:
            raise LogError(
                f"others write the topic «{topic}»; the log holds only the order of its messages",
                advice="Delete it with their tools.",
            )
        self.heads[topic] = head.dropped()
        self.dropped.add(topic)

    def _check(self) -> None:
        if self._over:
            raise LogError("this log transaction is over", advice="Use it inside its with block.")
