"""Reading the internal topics of a log on Kafka: one partition to its committed end, and the slices in it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from headrace.errors import LogTruncated, LogUnavailable
from headrace.kafka.cluster import REQUEST_SECONDS, Cluster, translate
from headrace.kafka.fetch import consumer_properties, is_unknown, receive
from headrace.kafka.settings import KafkaPlace
from headrace.log.slices import Stored, load_slices

PATIENCE_SECONDS = 60.0
PROBE_SLICES = 500


class PartitionReader:
    """Reads partition 0 of a topic, from an offset to what is committed now, and later on from there.

    Used by one thread at a time.
    """

    def __init__(self, place: KafkaPlace, cluster: Cluster, topic: str) -> None:
        self.topic = topic
        self._place = place
        self._cluster = cluster
        self._consumer: Any = None
        self._end = 0
        self.next = -1

    def seek(self, offset: int) -> None:
        """Read from an offset on."""
        from confluent_kafka import Consumer, TopicPartition

        if self._consumer is None:
            self._consumer = Consumer(consumer_properties(self._place, enable_partition_eof=True))
        if offset != self.next:
            self._consumer.assign([TopicPartition(self.topic, 0, offset)])
            self.next, self._end = offset, 0

    def seek_time(self, ts: int) -> None:
        """Read from the first message on whose timestamp is not below; from the end where there is none."""
        from confluent_kafka import TopicPartition

        if self._consumer is None:
            self.seek(self._cluster.beginnings(self.topic)[0])
        # Asked first: what is committed between the two questions must not be passed over.
        end = self._cluster.ends(self.topic)[0]
        where = [TopicPartition(self.topic, 0, ts)]

        what = f"looking for a time in «{self.topic}»"

        def ask() -> int:
            found = self._cluster.breakable(
                what, lambda: self._consumer.offsets_for_times(where, timeout=REQUEST_SECONDS)
            )
            return int(found[0].offset)

        offset = self._cluster.patiently(what, ask)
        self.seek(offset if offset >= 0 else end)

    def new_messages(self) -> Iterator[list[Any]]:
        """What lies between the reader and the committed end, in chunks.

        Raises:
            LogTruncated: messages there were deleted.
            LogUnavailable: the broker stays away.
        """
        end = self._cluster.ends(self.topic)[0]
        if end < self.next:
            raise LogTruncated(
                f"«{self.topic}» ends at offset {end}, we have read up to {self.next}: it was deleted or made anew",
                advice="Restore it, or begin a log with another app name.",
            )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._end < end:
            chunk = []
            for message in receive(self._consumer, 0.2):
                if message.error() is None:
                    chunk.append(message)
                    self.next = message.offset() + 1
                else:
                    self._heed(message)
            if chunk:
                deadline = time.monotonic() + PATIENCE_SECONDS
                yield chunk
            elif self._cluster.out_of_patience(deadline):
                raise LogUnavailable(f"«{self.topic}» does not give its messages up to offset {end}")

    def _heed(self, message: Any) -> None:
        from confluent_kafka import KafkaError

        error = message.error()
        if error.code() == KafkaError._PARTITION_EOF:
            self._end = self.next = max(self._end, int(message.offset()))
            return
        failure = translate(error, f"reading «{self.topic}»", self._place.location)
        if not failure.retry and not (is_unknown(error) and not self._cluster.gone(self.topic)):
            raise failure

    def close(self) -> None:
        """Leave the cluster."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer, self.next = None, -1


class SliceIndex:
    """Finds entries by slice and by offset. Any thread may call it; one is served at a time."""

    def __init__(self, place: KafkaPlace, cluster: Cluster, topic: str) -> None:
        self._reader = PartitionReader(place, cluster, topic)
        self._lock = threading.RLock()

    def after(self, slice_: int, *, through: int = 0) -> Generator[Stored]:
        """Committed entries of later slices, in order; close the iterator to let other threads have their turn.

        Args:
            through: a slice that is known to be committed and is waited for: a broker says so a moment before it shows
                what was committed.

        Raises:
            LogTruncated, LogUnavailable: as for `PartitionReader.new_messages`.
        """
        with self._lock:
            self._reader.seek_time(slice_ + 1)
            deadline = time.monotonic() + PATIENCE_SECONDS
            last = slice_
            while True:
                for chunk in self._reader.new_messages():
                    for message in chunk:
                        entries = load_slices(message.value())
                        last = entries[-1].slice if entries else last
                        yield from (one for one in entries if one.slice > slice_)
                if last >= through:
                    return
                if time.monotonic() >= deadline:
                    raise LogTruncated(
                        f"«{self._reader.topic}» ends at slice {last}, the log knows of slice {through}",
                        advice="The topic lost records: restore it, or begin a log with another app name.",
                    )
                time.sleep(0.002)

    def from_offset(self, topic: str, offset: int, first: int, last: int) -> Generator[Stored]:
        """A topic's entries from the one that holds an offset on.

        Args:
            first, last: slices between which the topic's entries lie.
        """
        start = self._bisect(topic, offset, first, last)
        with contextlib.closing(self.after(start - 1, through=last)) as entries:
            yield from (one for one in entries if one.topic == topic and one.end > offset)

    def _bisect(self, topic: str, offset: int, first: int, last: int) -> int:
        """A slice not behind the entry that holds an offset, and not far before it."""
        while last - first > 4 * PROBE_SLICES:
            middle = (first + last) // 2
            found = self._probe(topic, middle)
            if found is None or found.offset > offset:
                last = middle
            else:
                first = found.slice
        return first

    def _probe(self, topic: str, slice_: int) -> Stored | None:
        """The first entry of a topic in the slices from one on, if there is one soon."""
        with contextlib.closing(self.after(slice_ - 1, through=slice_)) as entries:
            for one in entries:
                if one.topic == topic:
                    return one
                if one.slice > slice_ + PROBE_SLICES:
                    break
        return None

    def close(self) -> None:
        """Leave the cluster."""
        with self._lock:
            self._reader.close()
