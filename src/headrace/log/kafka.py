"""A log on a Kafka cluster: topics that every Kafka client reads, and beside them a pipeline's order and state.

=======================================  =====================================================================
topic                                    holds
=======================================  =====================================================================
as the user or the source names it       rows, a message each by default (`headrace.formats`)
``__headrace.NAME.slices``               which messages make up which slice (`headrace.log.slices`)
``__headrace.NAME.changelog``            positions, versions, checkpoints; compacted (`headrace.log.changelog`)
``__headrace.NAME.staged``               rows of a source's transaction that is not complete
=======================================  =====================================================================

A transaction of the log is one Kafka transaction over all of them. Consumer groups' offsets are not used: Kafka
forgets them after a week, and the positions must stand where the outputs stand.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.errors import DeclarationError, LogError, LogLocked, LogMissing, LogTruncated
from headrace.event_log import event
from headrace.faults import fault
from headrace.kafka.cluster import COMPACTED, FOR_EVER, Cluster, await_visible
from headrace.kafka.fetch import Fetcher
from headrace.kafka.producer import Sent, TransactionalProducer, too_large
from headrace.kafka.ranges import MessageRange, TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import Entry, Extent, TopicInfo, first_entries, no_such_topic, schema_runs, topic_exists
from headrace.log.changelog import Changelog, Value
from headrace.log.kafka_codec import INTERNAL_FORMAT, INTERNAL_PREFIX, Codec, Codecs, Form
from headrace.log.kafka_reader import Cached, Loader, PartitionReader, SliceIndex
from headrace.log.message import MessageFormat
from headrace.log.slices import IndexEntry, dump_slices
from headrace.log.topic_metadata import COPYING, CREATED, FORM, HEAD, OURS, TOPIC, TopicMetadata, topic_metadata
from headrace.log.transaction import OpenTransaction, WritingTurn
from headrace.wire import Encoded, EncodedRows

logger = logging.getLogger("headrace")

TAIL_BYTES = 32 << 20
TAIL_ENTRIES = 20_000
STAGED_IN_MEMORY = 32 << 20
FOLLOWED_ROWS = 65_536
OVERHEAD_BYTES = 200  # of a message's own fields and of the batch around it
_UNKNOWN = TopicMetadata()
_NOWHERE = IndexEntry(0, 0, "", 0, 0, 0, 0, True, 0, ())


@dataclass(slots=True)
class Staged:
    """Rows of a source's transaction whose commit has not been seen."""

    group: int
    topic: str
    rows: int
    form: int
    records: pa.RecordBatch | None
    sent: Sent | None
    span: MessageRange | None = None


class KafkaLog:
    """A `Log` on Kafka.

    Args:
        location: cluster, name and settings.
        writer: whether to write. A new writer takes over from an earlier one, whose next commit fails.
        codec: the formats of the topics; without one, batches go as Arrow messages.
        clock: says when an entry was appended.
        half_copied: whether a log may be opened that a copy has begun and not ended.
        cluster: where it is, for logs that are read side by side; of its own if left out.

    Attributes:
        used_at: when something was asked of it last, by the monotonic clock.

    Raises:
        LogUnavailable: the cluster cannot be reached.
        LogError: it does not let us in, or (reading) holds no such log.
    """

    def __init__(
        self,
        location: KafkaLocation,
        *,
        writer: bool,
        codec: Codec | None = None,
        clock: Clock | None = None,
        half_copied: bool = False,
        cluster: Cluster | None = None,
    ) -> None:
        if not location.name:
            raise DeclarationError(f"{location.url} names no pipeline", advice=f"Write {location.url}/NAME.")
        self.location = location
        self.clock = clock or SystemClock()
        self.codecs = Codecs(codec)
        self.cluster = cluster or Cluster(location)
        self.used_at = time.monotonic()
        prefix = f"{INTERNAL_PREFIX}.{location.name}"
        self.slices_topic, self.changelog_topic = f"{prefix}.slices", f"{prefix}.changelog"
        self.staging = f"{prefix}.staged"
        self.status = ""
        self.changelog = Changelog()
        self.metadata: dict[str, TopicMetadata] = {}
        self.forms: dict[int, Form] = {}
        self.form_numbers: dict[tuple[str, bytes], int] = {}
        self.staged: list[Staged] = []
        self.last_slice = 0
        self._tail: list[Cached] = []
        self._tail_bytes = 0
        self._evicted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._turn: WritingTurn[KafkaTransaction] = WritingTurn()
        self._closed = False
        self._producer: TransactionalProducer | None = None
        self._index = SliceIndex(location, self.cluster, self.slices_topic)
        self._records = PartitionReader(location, self.cluster, self.changelog_topic)
        self.loader = Loader(Fetcher(location, self.cluster), self.codecs, self.forms)
        try:
            self._open(writer)
            if not half_copied:
                self._refuse_half_copied()
        except BaseException:
            self.close()
            raise

    def _open(self, writer: bool) -> None:
        if not self.cluster.partitions(self.changelog_topic):
            if not writer:
                raise LogMissing(
                    f"there is no log of «{self.location.name}» on {self.location.bootstrap}",
                    advice="Check the name, or run the pipeline that writes it.",
                )
            self.cluster.create(self.slices_topic, partitions=1, config=FOR_EVER)
            self.cluster.create(self.changelog_topic, partitions=1, config=COMPACTED)
        if writer:
            self.cluster.on_wait = self._say
            self._producer = TransactionalProducer(self.location, self.cluster, self._say)
        self._records.seek(self.cluster.beginnings(self.changelog_topic)[0])
        self._follow()
        if writer:
            # From here on it knows what it writes; a consumer left there would fetch it all the same.
            self._records.close()
        self._refuse_replaced()
        self._evicted = {topic: about.last_slice for topic, about in self.metadata.items()}

    def _refuse_half_copied(self) -> None:
        for origin in self.changelog.records(COPYING).values():
            raise LogError(
                f"the log {self.location.url} is half of a copy of {origin.decode()}, which was broken off",
                advice=f"Go on with it: headrace topics copy --from {origin.decode()} --to {self.location.url}",
            )

    def _say(self, status: str) -> None:
        if status and not self.status:
            logger.warning("%s", status, extra=event("waiting"))
        self.status = status

    def _follow(self) -> None:
        """Read the changelog to its committed end."""
        changed = False
        for chunk in self._records.new_messages():
            changed = True
            for message in chunk:
                self.changelog.apply(message.key(), message.value())
        if changed:
            before, self.metadata = self.metadata, topic_metadata(self.changelog.records(TOPIC))
            # A consumer that stands in a topic that is gone would complain of the next one of its name.
            if any(topic.born != before.get(name, topic).born for name, topic in self.metadata.items()):
                self.loader.close()
            for number, value in self.changelog.records(FORM).items():
                if int(number) not in self.forms:
                    self._learn_form(int(number), Form.from_json(value))
            self.last_slice = int(self.changelog.records(HEAD).get("", b"0"))

    def _learn_form(self, number: int, form: Form) -> None:
        self.forms[number] = form
        self.form_numbers[form.key] = number

    def _refuse_replaced(self) -> None:
        """Refuse a topic that was deleted, or made anew: it is not the one whose offsets we know."""
        mine = {topic: about.identity for topic, about in self.metadata.items() if about.identity and about.rows}
        now = self.cluster.identities(list(mine))
        for topic, identity in mine.items():
            if now.get(topic) != identity:
                what = "was deleted and made anew" if topic in now else "is not there any more"
                raise LogTruncated(
                    f"the topic «{topic}» on {self.location.bootstrap} {what}; rows of it are in the log of "
                    f"«{self.location.name}»",
                    advice="Restore it, or begin a log with another app name.",
                )

    @property
    def producer(self) -> TransactionalProducer:
        """The writing client.

        Raises:
            LogLocked: the log is open for reading only.
        """
        if self._producer is None:
            raise LogLocked(f"the log {self.location.url} is open for reading only", advice="Open it to write.")
        return self._producer

    # -- writing --------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"KafkaLog({self.location.url})"

    @contextlib.contextmanager
    def transaction(self) -> Iterator[KafkaTransaction]:
        """See `Log.transaction`. A thread that asks while another one writes waits for it."""
        self._check_open()
        producer = self.producer

        def begin() -> KafkaTransaction:
            self._check_open()
            return KafkaTransaction(self)

        with self._turn.taken(begin) as transaction:
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                producer.abort()
                raise
            self._commit(transaction)
        self._delete(transaction)

    def _commit(self, transaction: KafkaTransaction) -> None:
        """Take in what has become durable."""
        for number, form in transaction.forms.items():
            self._learn_form(number, form)
        for staged in transaction.staged:
            staged.sent = None
        waiting = 0
        for staged in transaction.staged:
            waiting += staged.records.nbytes if staged.records is not None else 0
            if waiting > STAGED_IN_MEMORY:
                staged.records = None
        if self.staged and not transaction.staged:
            last = max((staged.span.last for staged in self.staged if staged.span is not None), default=-1)
            transaction.deletions[self.staging] = {0: last + 1}
        with self._lock:
            self.staged = transaction.staged
            self.metadata = {
                **self.metadata,
                **{name: about for name, about in transaction.metadata.items() if about.is_known},
            }
            self.last_slice = transaction.last_slice
            for cached in transaction.entries:
                cached.sent = cached.staged = None
                if cached.passing:
                    cached.records = None
                self._tail_bytes += cached.records.nbytes if cached.records is not None else 0
            self._tail += transaction.entries
            self._evict()

    def _evict(self) -> None:
        """Forget the oldest slices of the tail when it is too large; they are read from Kafka from now on."""
        drop = 0
        tail = self._tail
        while drop < len(tail) and (self._tail_bytes > TAIL_BYTES or len(tail) - drop > TAIL_ENTRIES):
            slice_ = tail[drop].stored.slice
            while drop < len(tail) and tail[drop].stored.slice == slice_:
                cached = tail[drop]
                self._tail_bytes -= cached.records.nbytes if cached.records is not None else 0
                self._evicted[cached.stored.topic] = slice_
                drop += 1
        if drop:
            self._tail = tail[drop:]

    def _delete(self, transaction: KafkaTransaction) -> None:
        for topic, offsets in transaction.deletions.items():
            if topic not in transaction.dropped:
                self.cluster.delete_before(topic, offsets)
        for topic in sorted(transaction.dropped):
            self.cluster.delete(topic)
        if transaction.dropped:
            self.loader.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def read(
        self,
        topics: Sequence[str] | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int = 65_536,
    ) -> list[Entry]:
        """See `Log.read`."""
        self._check_open()
        names = None if topics is None else set(topics)
        with contextlib.closing(self._after(after, names)) as found:
            wanted = itertools.takewhile(lambda cached: until is None or cached.slice <= until, found)
            of_topics = (cached for cached in wanted if names is None or cached.stored.topic in names)
            chosen, _ = first_entries(of_topics, limit, whole_slices=True)
        return self.loader.load(chosen)

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """See `Log.read_topic`."""
        self._check_open()
        chosen: list[Cached] = []
        rows = 0
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            for cached in found:
                chosen.append(cached)
                rows += cached.rows
                if rows >= limit:  # the entry after it may be one to wait for
                    break
        return self.loader.load(chosen)

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """See `Log.extents`."""
        self._check_open()
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            return [cached.stored.extent for cached in itertools.islice(found, limit)]

    def entries_of(self, topic: str, offset: int) -> Generator[IndexEntry]:
        """Yield a topic's entries from an offset on, without rows."""
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            yield from (cached.stored for cached in found)

    def follow(self, topics: Collection[str], after: int) -> tuple[list[FollowedEntry], int]:
        """Return entries of later slices with where their messages lie, for whoever reads them in this log's order.

        Whole slices; waits until it is past the last message of each.

        Returns:
            The entries, and the last slice looked at.
        """
        self._check_open()
        chosen: list[Cached] = []
        rows, last = 0, after
        # The index may show a transaction a moment before the changelog does, which has its forms.
        known, newest = self._current_metadata(), self.last_slice
        with contextlib.closing(self._index.after(after, through=newest)) as found:
            for stored in found:
                if stored.slice > newest or (rows >= FOLLOWED_ROWS and stored.slice != last):
                    break
                last = stored.slice
                if stored.topic in topics:
                    chosen.append(Cached(stored))
                    rows += stored.rows
        chosen = [cached for cached in chosen if cached.stored.end > known.get(cached.stored.topic, _UNKNOWN).born]
        entries = self.loader.load(chosen)
        formats = [self.forms[cached.stored.form].format for cached in chosen]
        return [FollowedEntry(e, c.stored, f) for e, c, f in zip(entries, chosen, formats, strict=True)], last

    def newest_slice(self) -> int:
        """Return the last slice that is committed now."""
        self._check_open()
        self._current_metadata()
        return self.last_slice

    def schemas(self, topic: str) -> list[tuple[int, pa.Schema]]:
        """See `Log.schemas`."""
        self._check_open()
        return schema_runs((entry.offset, self.forms[entry.form].schema) for entry in self.entries_of(topic, 0))

    def topics(self) -> dict[str, TopicInfo]:
        """See `Log.topics`."""
        self._check_open()
        own = self._turn.own
        metadata = {**self._current_metadata(), **(own.metadata if own is not None else {})}
        return {name: about.info(name) for name, about in sorted(metadata.items()) if about.visible}

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """See `Log.records`."""
        self._check_open()
        self._current_metadata()
        found = self.changelog.records(kind, prefix)
        own = self._turn.own
        for (of, name), value in own.puts.items() if own is not None else ():
            if of == kind and name.startswith(prefix):
                found.pop(name, None)
                if value is not None:
                    found[name] = value if isinstance(value, bytes) else b"".join(value)
        return dict(sorted(found.items()))

    def kinds(self) -> list[str]:
        """See `Log.kinds`."""
        self._check_open()
        self._current_metadata()
        return [kind for kind in self.changelog.kinds() if not kind.startswith(OURS)]

    def prune(self, topic: str, *, before_offset: int) -> int:
        """See `Log.prune`."""
        if self._turn.own is not None:
            return self._turn.own.prune(topic, before_offset)
        with self.transaction() as transaction:
            return transaction.prune(topic, before_offset)

    def _current_metadata(self) -> dict[str, TopicMetadata]:
        """Return where topics begin and end: the writer knows, a reader looks."""
        self.used_at = time.monotonic()
        if self._producer is None:
            with self._lock:
                self._follow()
        return self.metadata

    def _live(self, own: KafkaTransaction | None, after: int) -> list[Cached]:
        """Return what is in memory of later slices: the tail, and this thread's own transaction."""
        with self._lock:
            start = bisect.bisect_right(self._tail, after, key=lambda cached: cached.stored.slice)
            tail = self._tail[start:]
        return [*tail, *(cached for cached in own.entries if cached.stored.slice > after)] if own is not None else tail

    def _after(self, after: int, names: set[str] | None) -> Generator[Cached]:
        """Yield entries of later slices, in order."""
        own = self._turn.own
        metadata = {**self._current_metadata(), **(own.metadata if own is not None else {})}
        live = self._live(own, after)
        wanted = self._evicted if names is None else {name: self._evicted.get(name, 0) for name in names}
        if self._producer is None or any(slice_ > after for slice_ in wanted.values()):
            first = live[0].stored.slice if live else self.last_slice + 1
            through = self.last_slice if self._producer is None else max(wanted.values())
            with contextlib.closing(self._index.after(after, through=through)) as found:
                for stored in found:
                    if self._producer is not None and stored.slice >= first:
                        break
                    if stored.end > _first(metadata, stored.topic):
                        yield Cached(stored)
        for cached in live:
            if cached.stored.end > _first(metadata, cached.stored.topic):
                yield cached

    def _of_topic(self, topic: str, offset: int) -> Generator[Cached]:
        """Yield a topic's entries from the cached that holds an offset on."""
        own = self._turn.own
        known = (own.metadata.get(topic) if own is not None else None) or self._current_metadata().get(topic)
        if known is None or max(offset, known.first) >= known.end:
            return
        offset = max(offset, known.first)
        live = [cached for cached in self._live(own, 0) if cached.stored.topic == topic]
        committed = self.metadata.get(topic)
        if committed is not None and (not live or live[0].stored.offset > offset):
            # The index holds no slice of this thread's own transaction, and must not be asked to wait for it.
            last = committed.last_slice
            first = live[0].stored.slice if live else last + 1
            start = last if offset >= committed.last_offset else committed.first_slice
            with contextlib.closing(self._index.from_offset(topic, offset, start, last)) as found:
                for stored in found:
                    if stored.slice >= first:
                        break
                    yield Cached(stored)
        yield from (cached for cached in live if cached.stored.end > offset)

    # -- the end --------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End waiting for a broker that is away; from any thread."""
        self.cluster.interrupt()

    def rest(self) -> None:
        """Leave the cluster until something is asked of this log again, which is open for reading."""
        with self._lock:
            self._records.rest()
        self._index.close()
        self.loader.close()

    def close(self) -> None:
        """See `Log.close`."""
        if self._turn.own is not None:
            raise LogError(
                f"the log {self.location.url} is inside a transaction", advice="Close it after the with block."
            )
        self._closed = True
        self._index.close()
        self._records.close()
        self.loader.close()
        if self._producer is not None:
            committed = self._producer.committed
            self._producer.close()
            self._producer = None
            if committed:
                await_visible(self.cluster, [self.slices_topic, self.changelog_topic])

    def _check_open(self) -> None:
        self.used_at = time.monotonic()
        if self._closed:
            raise LogError(f"the log {self.location.url} is closed", advice="Open it again.")


class FollowedEntry(NamedTuple):
    """An entry as `KafkaLog.follow` gives it: with where its messages lie and their format."""

    entry: Entry
    stored: IndexEntry
    format: str


class TransactionTopics(OpenTransaction):
    """Changes that a `KafkaTransaction` makes to topics as a whole.

    Attributes:
        topic_metadata: of the topics that it has touched.
        dropped: what the cluster deletes after the commit.
    """

    def __init__(self, log: KafkaLog) -> None:
        super().__init__(log.last_slice)
        self._log = log
        self.metadata: dict[str, TopicMetadata] = {}
        self.dropped: set[str] = set()

    def known(self, topic: str) -> TopicMetadata:
        """Return a topic as this transaction sees it."""
        return self.metadata.get(topic) or self._log.metadata.get(topic) or TopicMetadata()

    def _make_topic(self, topic: str) -> None:
        """Make it where it is missing; remember which one it is, so that another of its name is noticed."""
        if self.known(topic).identity:
            return
        if topic in self.dropped:
            raise LogError(f"«{topic}» was dropped in this transaction", advice="Make it again in the next one.")
        cluster, location = self._log.cluster, self._log.location
        if not cluster.partitions(topic):
            partitions = 1 if topic.startswith(INTERNAL_PREFIX) else location.partitions
            cluster.create(topic, partitions=partitions, config=FOR_EVER)
        identity = cluster.identities([topic]).get(topic, "?")
        self.metadata[topic] = replace(self.known(topic), identity=identity, foreign=False)

    def restore_topic(self, topic: str, *, offset: int) -> None:
        """See `Transaction.restore_topic`."""
        self._check()
        if self.known(topic).end:
            raise LogError(f"the log has the topic «{topic}» already")
        if not offset:
            self._make_topic(topic)
        mark = "" if offset else CREATED
        self.metadata[topic] = replace(self.known(topic), first=offset, end=offset, mark=mark)

    def create_topic(self, topic: str, *, partitions: int | None = None) -> None:
        """See `Transaction.create_topic`."""
        self._check()
        cluster, location = self._log.cluster, self._log.location
        if self.known(topic).visible or cluster.partitions(topic):
            raise topic_exists(topic, location.url)
        cluster.create(topic, partitions=partitions or location.partitions, config=FOR_EVER)
        self._make_topic(topic)
        now_us = self._log.clock.now_us()
        self.metadata[topic] = replace(self.known(topic), mark=CREATED, first_ts_us=now_us, last_ts_us=now_us)

    def drop_topic(self, topic: str) -> None:
        """See `Transaction.drop_topic`."""
        self._check()
        known = self.known(topic)
        if not known.visible:
            raise no_such_topic(topic)
        if known.foreign:
            raise LogError(
                f"others write the topic «{topic}»; the log holds only the order of its messages",
                advice="Delete it with their tools.",
            )
        self.metadata[topic] = known.dropped()
        self.dropped.add(topic)


class KafkaTransaction(TransactionTopics):
    """A `Transaction` of a `KafkaLog`. After an error nothing more can be done in it."""

    def __init__(self, log: KafkaLog) -> None:
        super().__init__(log)
        self.forms: dict[int, Form] = {}
        self.entries: list[Cached] = []
        self.staged: list[Staged] = list(log.staged)
        self.puts: dict[tuple[str, str], Value | None] = {}
        self.deletions: dict[str, dict[int, int]] = {}
        self._announced = False
        self._prepared: tuple[pa.RecordBatch, str, Encoded] | None = None

    @property
    def last_slice(self) -> int:
        """The number of the last slice that it has begun, or of the last one before it."""
        return self._slices.last

    # -- rows -----------------------------------------------------------------------------------------------------

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """See `Transaction.append`."""
        self._check()
        if not records.num_rows:
            return self.known(topic).end
        return self._append(topic, records, complete, kept=_copied(records))

    def _append(
        self,
        topic: str,
        records: pa.RecordBatch,
        complete: bool,
        *,
        kept: pa.RecordBatch | None,
        staged: tuple[TopicRange, int] | None = None,
    ) -> int:
        self._make_topic(topic)
        messages = self._encode(topic, records)
        self._prepared = None
        refused = self._refused(topic, messages)
        if refused:
            raise LogError(f"«{topic}»: row {min(refused)}: {refused[min(refused)]}")
        form = self._form(Form(self._log.codecs.format_of(topic), records.schema))
        self._announce()
        sent = self._log.producer.send(topic, messages.keys, messages.values, messages.headers)
        size = sum(map(len, filter(None, messages.values))) + sum(map(len, filter(None, messages.keys)))
        return self._enter(topic, records.num_rows, size, form, complete, Cached(_NOWHERE, kept, staged, sent))

    def append_encoded(self, topic: str, rows: EncodedRows) -> int:
        """Append rows whose messages were made elsewhere, as `append` makes them; none is too large."""
        self._check()
        self._make_topic(topic)
        form = self._form(Form(self._log.codecs.format_of(topic), rows.schema))
        self._announce()
        sent = self._log.producer.send(topic, *rows.messages.unpacked())
        return self._enter(topic, rows.rows, rows.size, form, True, Cached(_NOWHERE, None, None, sent))

    def adopt(
        self,
        topic: str,
        records: pa.RecordBatch,
        ranges: Sequence[MessageRange],
        *,
        format_: str,
        spread: bytes = b"",
        complete: bool = True,
        schema: pa.Schema | None = None,
    ) -> int:
        """Take rows that others wrote into the order of this log, where they are: nothing is copied.

        Args:
            records: what their messages mean.
            ranges: where the messages lie.
            format_: what `Codec.decode` needs to read them again.
            spread: as in `IndexEntry`.
            complete: as for `append`.
            schema: of the rows, where ``records`` has not all of their columns: it is then read within this
                transaction only.
        """
        self._check()
        if not records.num_rows:
            return self.known(topic).end
        if topic not in self.metadata and not self.known(topic).identity:
            identity = self._log.cluster.identities([topic]).get(topic, "")
            self.metadata[topic] = replace(self.known(topic), identity=identity, foreign=True)
        form = self._form(Form(format_, records.schema if schema is None else schema))
        stored = replace(_NOWHERE, ranges=tuple(ranges), spread=spread)
        cached = Cached(stored, _copied(records)) if schema is None else Cached(stored, records, passing=True)
        return self._enter(topic, records.num_rows, records.nbytes, form, complete, cached)

    def _announce(self) -> None:
        """Have the transaction's partitions known to the broker while rows are on their way.

        The first message to a partition in a transaction waits for the coordinator (KIP-98, AddPartitionsToTxn). The
        slices record can be sent only when the rows have their offsets: an empty one before them spares that wait.
        """
        if self._announced:
            return
        self._announced = True
        producer = self._log.producer
        producer.send(self._log.slices_topic, [None], [b"[]"], [()], timestamp=self.last_slice + 1)
        ((key, value),) = self._log.changelog.changes({(HEAD, ""): str(self.last_slice + 1).encode()})
        producer.send(self._log.changelog_topic, [key], [value], [()])

    def _enter(self, topic: str, rows: int, size: int, form: int, complete: bool, cached: Cached) -> int:
        place = self._slices.enter()
        now_us = self._log.clock.now_us()
        known = self.known(topic)
        lies = cached.stored.ranges, cached.stored.spread
        cached.stored = IndexEntry(*place, topic, known.end, rows, size, form, complete, now_us, *lies)
        self.entries.append(cached)
        self.metadata[topic] = known.with_entry(rows, size, self.last_slice, now_us)
        return known.end

    def oversized(self, topic: str, records: pa.RecordBatch) -> dict[int, str]:
        """See `Transaction.oversized`."""
        self._check()
        if not records.num_rows:
            return {}
        self._make_topic(topic)
        return self._refused(topic, self._encode(topic, records))

    def _refused(self, topic: str, messages: Encoded) -> dict[int, str]:
        limit = self._log.cluster.largest_message(topic)
        largest = max(map(len, filter(None, messages.values)), default=0)
        keys = max(map(len, filter(None, messages.keys)), default=0)
        if largest + 2 * keys + OVERHEAD_BYTES <= limit // 2:
            return {}
        refused = {}
        rows = messages.rows.tolist()
        for row, key, value, headers in zip(rows, messages.keys, messages.values, messages.headers, strict=True):
            size = len(value or b"") + len(key or b"") + OVERHEAD_BYTES
            size += sum(len(name) + len(header or b"") for name, header in headers)
            if size > limit:
                refused[row] = too_large(size, limit, topic)
        return refused

    def _encode(self, topic: str, records: pa.RecordBatch) -> Encoded:
        """Return the messages of rows; those of the last ones asked about are kept for their appending."""
        if self._prepared is not None and self._prepared[0] is records and self._prepared[1] == topic:
            return self._prepared[2]
        codecs = self._log.codecs
        messages = codecs.encode(topic, codecs.format_of(topic), records)
        self._prepared = (records, topic, messages)
        return messages

    def _form(self, form: Form) -> int:
        key = form.key
        for number, known in self.forms.items():
            if known.key == key:
                return number
        known_number = self._log.form_numbers.get(key)
        if known_number is not None:
            return known_number
        number = max([*self._log.forms, *self.forms], default=0) + 1
        self.forms[number] = form
        return number

    # -- staging --------------------------------------------------------------------------------------------------

    def stage(self, topic: str, records: pa.RecordBatch) -> None:
        """See `Transaction.stage`: rows wait in a topic of their own."""
        self._check()
        if not records.num_rows:
            return
        group = self.staged[-1].group if self.staged else 0
        if not self._group_open:
            group += 1
            self._group_open = True
        cluster, topic_of_staged = self._log.cluster, self._log.staging
        if not cluster.partitions(topic_of_staged):  # what an earlier run left in it is nobody's
            cluster.create(topic_of_staged, partitions=1, config=FOR_EVER)
        messages = self._log.codecs.encode(topic_of_staged, INTERNAL_FORMAT, records)
        sent = self._log.producer.send(topic_of_staged, messages.keys, messages.values, messages.headers)
        form = self._form(Form(INTERNAL_FORMAT, records.schema))
        self.staged.append(Staged(group, topic, records.num_rows, form, records, sent))

    def publish(self) -> None:
        """See `Transaction.publish`. Rows are read from where they wait, a piece at a time."""
        self._check()
        staged, self.staged = self.staged, []
        group = None
        for rows in staged:
            if rows.group != group:
                self.next_slice()
                group = rows.group
            records, waits = rows.records, None
            if records is None:
                assert rows.span is not None
                waits = (rows.span.of(self._log.staging), rows.form)
                records = self._log.loader.staged(*waits)
            self._append(rows.topic, records, rows.group == staged[-1].group, kept=rows.records, staged=waits)
        self.next_slice()

    def discard_staged(self) -> None:
        """See `Transaction.discard_staged`."""
        self._check()
        self.staged = []
        self._group_open = False

    # -- records --------------------------------------------------------------------------------------------------

    def put(self, kind: str, name: str, value: Value) -> None:
        """See `Transaction.put`."""
        self._check()
        self.puts[kind, name] = value if isinstance(value, bytes) else [bytes(piece) for piece in value]

    def delete(self, kind: str, name: str) -> None:
        """See `Transaction.delete`."""
        self._check()
        self.puts[kind, name] = None

    def restore_slice(self, number: int) -> None:
        """See `Transaction.restore_slice`."""
        self._check()
        self._slices.restore(number)

    def prune(self, topic: str, before_offset: int) -> int:
        """Forget whole entries before an offset; the broker deletes their messages after the commit."""
        self._check()
        known = self.known(topic)
        dropped: list[IndexEntry] = []
        kept: IndexEntry | None = None
        for entry in self._log.entries_of(topic, known.first):
            if entry.end > before_offset:
                kept = entry
                break
            dropped.append(entry)
        if not dropped:
            return 0
        self.metadata[topic] = replace(
            known,
            first=dropped[-1].end,
            bytes=known.bytes - sum(entry.bytes for entry in dropped),
            entries=known.entries - len(dropped),
            first_ts_us=kept.ts_us if kept else known.last_ts_us,
            first_slice=kept.slice if kept else known.last_slice,
        )
        if not known.foreign:
            ends = self.deletions.setdefault(topic, {})
            for span in (span for entry in dropped for span in entry.ranges):
                ends[span.partition] = max(ends.get(span.partition, 0), span.last + 1)
        return sum(entry.rows for entry in dropped)

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Return whether there is anything to commit."""
        return bool(
            self.entries or self.puts or self.metadata or self.forms or len(self.staged) != len(self._log.staged)
        )

    def finish(self) -> None:
        """Make it durable.

        Raises:
            LogUnavailable: it was undone.
            LogLocked: another run has taken over.
        """
        fault("log.before-commit")
        if self.changed:
            producer = self._log.producer
            # On their way with the rows: a partition's first message in a transaction costs a question of the broker's.
            changes = list(self._log.changelog.changes(self._all_puts()))
            producer.send(
                self._log.changelog_topic,
                [key for key, _ in changes],
                [value for _, value in changes],
                [()] * len(changes),
            )
            if self.entries or self.staged:
                producer.deliver()
            for cached in self.entries:
                if cached.sent is not None:
                    cached.stored = replace(cached.stored, ranges=cached.sent.ranges, spread=cached.sent.spread)
            for rows in self.staged:
                if rows.sent is not None:
                    rows.span = rows.sent.ranges[0]
            fault("log.delivered")
            for last, record in dump_slices(self._index_entries()):
                producer.send(self._log.slices_topic, [None], [record], [()], timestamp=last)
            fault("log.sent")
            producer.commit()
            for key, value in changes:
                self._log.changelog.apply(key, value)
        fault("log.after-commit")
        self.end()

    def _index_entries(self) -> list[IndexEntry]:
        """Return the entries; readers wait for the last slice, and so a restored one without any is an empty entry."""
        stored = [cached.stored for cached in self.entries]
        written = stored[-1].slice if stored else self._log.last_slice
        return stored if self.last_slice <= written else [*stored, replace(_NOWHERE, slice=self.last_slice)]

    def _all_puts(self) -> Mapping[tuple[str, str], Value | None]:
        puts = dict(self.puts)
        for topic, about in self.metadata.items():
            if about.is_known:
                puts[TOPIC, topic] = about.to_json()
        for number, form in self.forms.items():
            puts[FORM, f"{number:06d}"] = form.to_json()
        if self.last_slice != self._log.last_slice:
            puts[HEAD, ""] = str(self.last_slice).encode()
        return puts


def _copied(records: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows that nobody else holds: the caller's may change, or be a small part of something large."""
    form = MessageFormat(records.schema)
    return form.decode(form.encode(records).to_pybytes())


def _first(metadata: dict[str, TopicMetadata], topic: str) -> int:
    known = metadata.get(topic)
    return known.first if known is not None else 0
