"""Finding a stream's topic: in the app's log, or on its cluster, where other pipelines and others write too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.dataset.reading import LogReader, MessageReader, Reader, no_topic
from headrace.errors import LogError, LogMissing
from headrace.formats.topic_formats import ForeignFormats, TopicCodec, codec_for
from headrace.kafka.settings import SCHEME, KafkaPlace
from headrace.log import open_log
from headrace.log.base import Log
from headrace.plan.plan import Plan

if TYPE_CHECKING:
    from headrace.kafka.cluster import Cluster
    from headrace.pipeline.app import App

OURS = "__position"  # a header of every message that a pipeline writes
RECEIVE_SECONDS = 0.1


class Finder:
    """Looks for one topic, as often as asked, until it is there.

    Args:
        app: whose log it is. A reader has the log's file or the cluster open for itself, whatever the pipeline does.
        topic: the topic.
    """

    def __init__(self, app: App, topic: str) -> None:
        self._app = app
        self._topic = topic
        self._plan: Plan = app.plan()
        self._log: Log | None = None
        self._on_cluster: ClusterFinder | None = None
        self._close: Callable[[], None] = lambda: None

    def find(self, *, wait: bool) -> Reader | None:
        """Its reader, None while it is not there. The reader is the caller's to close, this object too.

        Args:
            wait: whether the caller will ask again.

        Raises:
            LogError: the log is there and cannot be read.
        """
        if self._plan.log.startswith(SCHEME):
            if self._on_cluster is None:
                self._on_cluster = ClusterFinder(self._plan, self._topic)
            return self._on_cluster.find(wait=wait)
        if self._log is None:
            self._open()
        if self._log is None or self._topic not in self._log.topics():
            return None
        reader, self._log = LogReader(self._log, self._topic, self._close), None
        return reader

    def _open(self) -> None:
        if self._plan.log.startswith("memory:"):
            running = self._app.running
            self._log = self._app._open or (running.log if running is not None else None)
            return
        try:
            self._log = open_log(self._plan.log, writer=False)
        except LogMissing:
            return
        self._close = self._log.close

    def missing(self) -> LogError:
        """What to raise when nobody waits for the topic."""
        if self._plan.log.startswith(SCHEME):
            return no_topic(self._topic, [], self._plan.log)
        if self._log is None:
            return LogMissing(
                f"there is no log at {self._plan.log}",
                advice="Check it, or run the pipeline that writes it; to wait for it: wait=True.",
            )
        return no_topic(self._topic, list(self._log.topics()), self._plan.log)

    def close(self) -> None:
        """Leave the log, where no reader was made of it."""
        if self._log is not None:
            self._close()
            self._log = None


class ClusterFinder:
    """Looks for a topic on a cluster: in the app's own log, then in those of other pipelines, then as it lies."""

    def __init__(self, plan: Plan, topic: str) -> None:
        declared = next((one for one in plan.topics if one.matches(topic) and one.kafka), None)
        self._place = KafkaPlace.parse(declared.kafka if declared is not None else plan.log, name=plan.app)
        self._topic = topic
        self._codec: TopicCodec = codec_for(plan.formats)
        prefixes = any(topic.startswith(f"{one}.") for one in plan.formats.prefixes)
        named = topic in plan.formats.topics or prefixes
        self._cluster: Cluster | None = None
        self._named = {topic: self._codec.format_of(topic)} if named else {}

    def find(self, *, wait: bool) -> Reader | None:
        """Its reader, None while it is not there, or holds nothing yet by which it could be known whose it is."""
        from headrace.kafka.cluster import Cluster
        from headrace.log.kafka_view import owners

        # One client for as long as is waited: making one costs threads and connections.
        cluster = self._cluster = self._cluster or Cluster(self._place)
        if not cluster.partitions(self._topic):
            return None
        reader = self._in_log_of(self._place.name)
        if reader is not None:
            return reader
        for name in owners(self._place, cluster, [self._topic]):
            reader = self._in_log_of(name)
            if reader is not None:
                return reader
        if self._is_of_others(cluster, empty=not wait):
            return MessageReader(self._place, self._topic, ForeignFormats(self._codec, self._named))
        return None

    def _in_log_of(self, name: str) -> Reader | None:
        from headrace.log.kafka import KafkaLog

        try:
            log = KafkaLog(replace(self._place, name=name), writer=False, codec=self._codec)
        except LogMissing:
            return None
        head = log.heads.get(self._topic)
        if head is None or head.foreign:
            log.close()
            return None
        return LogReader(log, self._topic, log.close)

    def _is_of_others(self, cluster: Cluster, *, empty: bool) -> bool:
        """Whether its oldest message is not a pipeline's, whose log then only has to be found.

        Such a log may not be visible yet: a topic is made before the first transaction ends.

        Args:
            empty: what is said of a topic without messages.
        """
        from headrace.capture.topics.reader import Offsets, TopicsReader

        reader = TopicsReader(self._place, cluster, [self._topic], {}, {})
        ends = Offsets({(self._topic, number): offset for number, offset in cluster.ends(self._topic).items()})
        try:
            while not reader.read() >= ends or not reader.positions():
                for messages in reader.receive(RECEIVE_SECONDS).values():
                    return all(name != OURS for name, _ in messages[0].headers() or ())
            return empty
        finally:
            reader.close()
