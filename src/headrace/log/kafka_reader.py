"""Reading a log on Kafka: a partition to its committed end, the slices in it, and entries with their rows.

`PartitionReader` reads an internal topic, `SliceIndex` finds entries by slice and by offset, `Loader` fetches and
decodes their rows, many entries at a time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import LogTruncated, LogUnavailable
from headrace.kafka.cluster import REQUEST_SECONDS, Cluster, lasting
from headrace.kafka.fetch import Fetcher, consumer_properties, receive, wire_messages
from headrace.kafka.producer import Sent
from headrace.kafka.ranges import TopicRange, unpack_spread
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import Entry
from headrace.log.kafka_codec import Codecs, Form
from headrace.log.slices import IndexEntry, load_slices

PATIENCE_SECONDS = 60.0
PROBE_SLICES = 500


class PartitionReader:
    """A reader of one partition of a topic, from an offset to what is committed now, and later on from there.

    Used by one thread at a time.
    """

    def __init__(self, location: KafkaLocation, cluster: Cluster, topic: str, partition: int = 0) -> None:
        self.topic = topic
        self._partition = partition
        self._location = location
        self._cluster = cluster
        self._consumer: Any = None
        self._end = 0
        self.next = -1

    def seek(self, offset: int) -> None:
        """Read from an offset on."""
        from confluent_kafka import Consumer, TopicPartition

        fresh = self._consumer is None
        if fresh:
            self._consumer = Consumer(consumer_properties(self._location, enable_partition_eof=True))
        if fresh or offset != self.next:
            self._consumer.assign([TopicPartition(self.topic, self._partition, offset)])
            self.next, self._end = offset, 0

    def seek_time(self, ts: int) -> None:
        """Read from the first message on whose timestamp is not below; from the end where there is none."""
        from confluent_kafka import TopicPartition

        if self._consumer is None:
            self.seek(self._cluster.beginnings(self.topic)[self._partition])
        # Asked first: what is committed between the two questions must not be passed over.
        end = self._cluster.ends(self.topic)[self._partition]
        where = [TopicPartition(self.topic, self._partition, ts)]

        what = f"looking for a time in «{self.topic}»"

        def ask() -> int:
            found = self._cluster.breakable(
                what, lambda: self._consumer.offsets_for_times(where, timeout=REQUEST_SECONDS)
            )
            return int(found[0].offset)

        offset = self._cluster.patiently(what, ask)
        self.seek(offset if offset >= 0 else end)

    def new_messages(self) -> Iterator[list[Any]]:
        """Yield what lies between the reader and the committed end, in chunks.

        Raises:
            LogTruncated: messages there were deleted.
            LogUnavailable: the broker stays away.
        """
        if self._consumer is None:
            self.seek(self.next)
        end = self._cluster.ends(self.topic)[self._partition]
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
        failure = lasting(self._cluster, error, f"reading «{self.topic}»", self.topic)
        if failure is not None:
            raise failure

    def rest(self) -> None:
        """Leave the cluster for a while; what comes next is read from where this one stands."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None

    def close(self) -> None:
        """Leave the cluster."""
        self.rest()
        self.next = -1


class SliceIndex:
    """The committed entries, found by slice and by offset. Any thread may call it; one is served at a time."""

    def __init__(self, location: KafkaLocation, cluster: Cluster, topic: str) -> None:
        self._reader = PartitionReader(location, cluster, topic)
        self._lock = threading.RLock()

    def after(self, slice_: int, *, through: int = 0) -> Generator[IndexEntry]:
        """Yield committed entries of later slices, in order; close the iterator to let other threads have their turn.

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
                        yield from (entry for entry in entries if entry.slice > slice_)
                if last >= through:
                    return
                if time.monotonic() >= deadline:
                    raise LogTruncated(
                        f"«{self._reader.topic}» ends at slice {last}, the log knows of slice {through}",
                        advice="The topic lost records: restore it, or begin a log with another app name.",
                    )
                time.sleep(0.002)

    def from_offset(self, topic: str, offset: int, first: int, last: int) -> Generator[IndexEntry]:
        """Yield a topic's entries from the entry that holds an offset on.

        Args:
            first, last: slices between which the topic's entries lie.
        """
        start = self._bisect(topic, offset, first, last)
        with contextlib.closing(self.after(start - 1, through=last)) as entries:
            yield from (entry for entry in entries if entry.topic == topic and entry.end > offset)

    def _bisect(self, topic: str, offset: int, first: int, last: int) -> int:
        """Return a slice not behind the entry that holds an offset, and not far before it."""
        while last - first > 4 * PROBE_SLICES:
            middle = (first + last) // 2
            found = self._probe(topic, middle)
            if found is None or found.offset > offset:
                last = middle
            else:
                first = found.slice
        return first

    def _probe(self, topic: str, slice_: int) -> IndexEntry | None:
        """Return the first entry of a topic in the slices from entry on, if there is entry soon."""
        with contextlib.closing(self.after(slice_ - 1, through=slice_)) as entries:
            for entry in entries:
                if entry.topic == topic:
                    return entry
                if entry.slice > slice_ + PROBE_SLICES:
                    break
        return None

    def close(self) -> None:
        """Leave the cluster."""
        with self._lock:
            self._reader.close()


OURS = "__position"


@dataclass(slots=True)
class Cached:
    """An entry, and its rows where they are in memory.

    Attributes:
        staged: where its rows lie in the staging topic, while nobody else has them.
        sent: its messages on their way, until the transaction ends.
        passing: the rows in memory lack columns, and go with the transaction.
    """

    stored: IndexEntry
    records: pa.RecordBatch | None = None
    staged: tuple[TopicRange, int] | None = None
    sent: Sent | None = None
    passing: bool = False

    @property
    def slice(self) -> int:
        """Its slice's number."""
        return self.stored.slice

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return self.stored.rows


class Loader:
    """A reader of the rows of entries. Any thread may call it.

    Args:
        fetcher: where messages come from.
        codecs: what they mean.
        forms: number -> form, kept up to date by the log.
    """

    def __init__(self, fetcher: Fetcher, codecs: Codecs, forms: Mapping[int, Form]) -> None:
        self._fetcher = fetcher
        self._codecs = codecs
        self._forms = forms

    def load(self, chosen: Sequence[Cached]) -> list[Entry]:
        """Return the entries, in the order given."""
        missing = [cached.stored for cached in chosen if cached.records is None and cached.staged is None]
        loaded = iter(self._fetched(missing))
        entries = []
        for cached in chosen:
            records = cached.records
            if records is None and cached.staged is not None:
                records = self.staged(*cached.staged)
            entries.append(_entry(cached.stored, next(loaded) if records is None else records))
        return entries

    def messages(self, stored: IndexEntry) -> list[Any]:
        """Return an entry's messages, in the order of its rows."""
        return in_order(stored, self._fetcher.fetch([span.of(stored.topic) for span in stored.ranges]))

    def staged(self, span: TopicRange, form: int) -> pa.RecordBatch:
        """Return rows that wait for their publication."""
        messages = self._fetcher.fetch([span])[0]
        return self._codecs.decode(self._forms[form], wire_messages(span.topic, messages))

    def _fetched(self, missing: Sequence[IndexEntry]) -> Iterator[pa.RecordBatch]:
        ranges = [span.of(stored.topic) for stored in missing for span in stored.ranges]
        by_partition = sorted(range(len(ranges)), key=lambda i: (ranges[i].where, ranges[i].first))
        found: list[list[Any]] = [[] for _ in ranges]
        fetched = self._fetcher.fetch([ranges[i] for i in by_partition])
        for i, messages in zip(by_partition, fetched, strict=True):
            found[i] = messages
        each: list[list[Any]] = []
        at = 0
        for stored in missing:
            each.append(in_order(stored, found[at : at + len(stored.ranges)]))
            at += len(stored.ranges)
        yield from self._decoded(missing, each)

    def _decoded(self, missing: Sequence[IndexEntry], each: Sequence[list[Any]]) -> Iterator[pa.RecordBatch]:
        """Yield each entry's rows; consecutive entries of one form are decoded together, if each message is a row."""
        start = 0
        while start < len(missing):
            end = start + 1
            while end < len(missing) and _together(missing[start], missing[end], each[start], each[end]):
                end += 1
            topic, form = missing[start].topic, self._forms[missing[start].form]
            joined = [message for messages in each[start:end] for message in messages]
            records = self._codecs.decode(form, wire_messages(topic, joined))
            first = 0
            for stored in missing[start:end]:
                yield records.slice(first, stored.rows) if end - start > 1 else records
                first += stored.rows
            start = end

    def close(self) -> None:
        """Leave the cluster; `load` comes back to it."""
        self._fetcher.close()


def _together(first: IndexEntry, entry: IndexEntry, messages: list[Any], others: list[Any]) -> bool:
    same = first.topic == entry.topic and first.form == entry.form
    return same and len(messages) == first.rows and len(others) == entry.rows


def in_order(stored: IndexEntry, found: Sequence[list[Any]]) -> list[Any]:
    """Return an entry's messages in the order of its rows.

    Raises:
        LogTruncated: some are missing.
    """
    parts = []
    for span, messages in zip(stored.ranges, found, strict=True):
        if len(messages) > span.messages:
            # Others wrote to the same partition at the same time.
            messages = [message for message in messages if any(name == OURS for name, _ in message.headers() or ())]
        if len(messages) != span.messages:
            raise LogTruncated(
                f"«{stored.topic}» partition {span.partition} holds {len(messages)} of the {span.messages} messages "
                f"of ours between offsets {span.first} and {span.last}",
                advice="They were deleted or compacted. Restore them, or begin a log with another app name.",
            )
        parts.append(messages)
    if not stored.spread:
        return parts[0] if len(parts) == 1 else [message for messages in parts for message in messages]
    by_partition: dict[int, list[Any]] = {}
    for span, messages in zip(stored.ranges, parts, strict=True):
        by_partition.setdefault(span.partition, []).extend(messages)
    spread = unpack_spread(stored.spread)
    ordered: list[Any] = [None] * len(spread)
    for partition, messages in by_partition.items():
        for i, message in zip(np.flatnonzero(spread == partition).tolist(), messages, strict=True):
            ordered[i] = message
    return ordered


def _entry(stored: IndexEntry, records: pa.RecordBatch) -> Entry:
    return Entry(stored.topic, stored.slice, stored.offset, records, stored.complete, stored.ts_us)
