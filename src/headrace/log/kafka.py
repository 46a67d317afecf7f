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
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.errors import DeclarationError, LogError, LogLocked, LogMissing, LogTruncated
from headrace.kafka.cluster import COMPACTED, FOR_EVER, Cluster
from headrace.kafka.fetch import Fetcher
from headrace.kafka.producer import TransactionalProducer
from headrace.kafka.settings import KafkaPlace
from headrace.log.base import Entry, Extent, TopicInfo
from headrace.log.changelog import Changelog
from headrace.log.kafka_codec import INTERNAL_PREFIX, Codec, Codecs
from headrace.log.kafka_index import PartitionReader, SliceIndex
from headrace.log.kafka_load import Loader
from headrace.log.kafka_topics import COPYING, FORM, HEAD, OURS, TOPIC, Form, Head, heads
from headrace.log.kafka_writer import STAGED_IN_MEMORY, Cached, KafkaTransaction, Staged
from headrace.log.slices import Stored

logger = logging.getLogger("headrace")

TAIL_BYTES = 32 << 20
TAIL_ENTRIES = 20_000


class KafkaLog:
    """A `Log` on Kafka.

    Args:
        place: cluster, name and settings.
        writer: whether to write. A new writer takes over from an earlier one, whose next commit fails.
        codec: the formats of the topics; without one, batches go as Arrow messages.
        clock: says when an entry was appended.
        half_copied: whether a log may be opened that a copy has begun and not ended.

    Raises:
        LogUnavailable: the cluster cannot be reached.
        LogError: it does not let us in, or (reading) holds no such log.
    """

    def __init__(
        self,
        place: KafkaPlace,
        *,
        writer: bool,
        codec: Codec | None = None,
        clock: Clock | None = None,
        half_copied: bool = False,
    ) -> None:
        if not place.name:
            raise DeclarationError(f"{place.location} names no pipeline", advice=f"Write {place.location}/NAME.")
        self.place = place
        self.clock = clock or SystemClock()
        self.codecs = Codecs(codec)
        self.cluster = Cluster(place)
        prefix = f"{INTERNAL_PREFIX}.{place.name}"
        self.slices_topic, self.changelog_topic = f"{prefix}.slices", f"{prefix}.changelog"
        self.staging = f"{prefix}.staged"
        self.status = ""
        self.changelog = Changelog()
        self.heads: dict[str, Head] = {}
        self.forms: dict[int, Form] = {}
        self.form_numbers: dict[tuple[str, bytes], int] = {}
        self.staged: list[Staged] = []
        self.last_slice = 0
        self._tail: list[Cached] = []
        self._tail_bytes = 0
        self._evicted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._current: KafkaTransaction | None = None
        self._thread = 0
        self._closed = False
        self._producer: TransactionalProducer | None = None
        self._index = SliceIndex(place, self.cluster, self.slices_topic)
        self._records = PartitionReader(place, self.cluster, self.changelog_topic)
        self._loader = Loader(Fetcher(place, self.cluster), self.codecs, self.forms)
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
                    f"there is no log of «{self.place.name}» on {self.place.bootstrap}",
                    advice="Check the name, or run the pipeline that writes it.",
                )
            self.cluster.create(self.slices_topic, partitions=1, config=FOR_EVER)
            self.cluster.create(self.changelog_topic, partitions=1, config=COMPACTED)
        if writer:
            self.cluster.on_wait = self._say
            self._producer = TransactionalProducer(self.place, self.cluster, self._say)
        self._records.seek(self.cluster.beginnings(self.changelog_topic)[0])
        self._follow()
        if writer:
            # From here on it knows what it writes; a consumer left there would fetch it all the same.
            self._records.close()
        self._refuse_replaced()
        self._evicted = {topic: head.last_slice for topic, head in self.heads.items()}

    def _refuse_half_copied(self) -> None:
        for origin in self.changelog.records(COPYING).values():
            raise LogError(
                f"the log {self.place.location} is half of a copy of {origin.decode()}, which was broken off",
                advice=f"Go on with it: headrace topics copy --from {origin.decode()} --to {self.place.location}",
            )

    def _say(self, status: str) -> None:
        if status and not self.status:
            logger.warning("%s", status)
        self.status = status

    def _follow(self) -> None:
        """Read the changelog to its committed end."""
        changed = False
        for chunk in self._records.new_messages():
            changed = True
            for message in chunk:
                self.changelog.apply(message.key(), message.value())
        if changed:
            known, self.heads = self.heads, heads(self.changelog.records(TOPIC))
            # A consumer that stands in a topic that is gone would complain of the next one of its name.
            if any(head.born != known.get(name, head).born for name, head in self.heads.items()):
                self._loader.close()
            for number, value in self.changelog.records(FORM).items():
                if int(number) not in self.forms:
                    self._learn_form(int(number), Form.from_json(value))
            self.last_slice = int(self.changelog.records(HEAD).get("", b"0"))

    def _learn_form(self, number: int, form: Form) -> None:
        self.forms[number] = form
        self.form_numbers[form.key] = number

    def _refuse_replaced(self) -> None:
        """A topic that was deleted, or deleted and made anew, is not the one whose offsets we know."""
        mine = {topic: head.identity for topic, head in self.heads.items() if head.identity and head.rows}
        now = self.cluster.identities(list(mine))
        for topic, identity in mine.items():
            if now.get(topic) != identity:
                what = "was deleted and made anew" if topic in now else "is not there any more"
                raise LogTruncated(
                    f"the topic «{topic}» on {self.place.bootstrap} {what}; rows of it are in the log of "
                    f"«{self.place.name}»",
                    advice="Restore it, or begin a log with another app name.",
                )

    @property
    def producer(self) -> TransactionalProducer:
        """The writing client.

        Raises:
            LogLocked: the log is open for reading only.
        """
        if self._producer is None:
            raise LogLocked(f"the log {self.place.location} is open for reading only", advice="Open it to write.")
        return self._producer

    # -- writing --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[KafkaTransaction]:
        """See `Log.transaction`. A thread that asks while another one writes waits for it."""
        if self._own is not None:
            raise LogError("a log transaction is already open in this thread", advice="Use that one.")
        self._check_open()
        producer = self.producer
        with self._writing:
            self._check_open()
            transaction = KafkaTransaction(self)
            self._current, self._thread = transaction, threading.get_ident()
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                producer.abort()
                raise
            else:
                self._commit(transaction)
            finally:
                transaction.end()
                self._current, self._thread = None, 0
        self._delete(transaction)

    def _commit(self, transaction: KafkaTransaction) -> None:
        """Take in what has become durable."""
        for number, form in transaction.forms.items():
            self._learn_form(number, form)
        for one in transaction.staged:
            one.sent = None
        waiting = 0
        for one in transaction.staged:
            waiting += one.records.nbytes if one.records is not None else 0
            if waiting > STAGED_IN_MEMORY:
                one.records = None
        if self.staged and not transaction.staged:
            last = max((one.place.last for one in self.staged if one.place is not None), default=-1)
            transaction.deletions[self.staging] = {0: last + 1}
        with self._lock:
            self.staged = transaction.staged
            self.heads = {**self.heads, **{name: head for name, head in transaction.heads.items() if head.known}}
            self.last_slice = transaction.last_slice
            for cached in transaction.entries:
                cached.sent = cached.staged = None
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
                one = tail[drop]
                self._tail_bytes -= one.records.nbytes if one.records is not None else 0
                self._evicted[one.stored.topic] = slice_
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
            self._loader.close()

    def make_staging(self) -> None:
        """Make the topic where rows wait, once; what an earlier run left in it is nobody's."""
        if not self.cluster.partitions(self.staging):
            self.cluster.create(self.staging, partitions=1, config=FOR_EVER)

    def staged_records(self, staged: Staged) -> pa.RecordBatch:
        """Rows that wait for their publication."""
        assert staged.place is not None
        return self._loader.staged(self.staging, staged.place, staged.form)

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
        chosen: list[Cached] = []
        rows = 0
        with contextlib.closing(self._after(after, names)) as found:
            for one in found:
                stored = one.stored
                if until is not None and stored.slice > until:
                    break
                if names is not None and stored.topic not in names:
                    continue
                if chosen and rows >= limit and stored.slice != chosen[-1].stored.slice:
                    break
                chosen.append(one)
                rows += stored.rows
        return self._loader.load(chosen)

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """See `Log.read_topic`."""
        self._check_open()
        chosen: list[Cached] = []
        rows = 0
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            for one in found:
                chosen.append(one)
                rows += one.stored.rows
                if rows >= limit:
                    break
        return self._loader.load(chosen)

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """See `Log.extents`."""
        self._check_open()
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            return [one.stored.extent for one in itertools.islice(found, limit)]

    def entries_of(self, topic: str, offset: int) -> Generator[Stored]:
        """A topic's entries from an offset on, without rows."""
        with contextlib.closing(self._of_topic(topic, offset)) as found:
            yield from (one.stored for one in found)

    def follow(self, topics: Collection[str], after: int, *, limit: int = 65_536) -> tuple[list[Followed], int]:
        """Entries of later slices with the places of their messages, for whoever reads them in this log's order.

        Whole slices; waits until it is past the last message of each.

        Returns:
            The entries, and the last slice looked at.
        """
        self._check_open()
        chosen: list[Cached] = []
        rows, last = 0, after
        with contextlib.closing(self._index.after(after)) as found:
            for stored in found:
                if rows >= limit and stored.slice != last:
                    break
                last = stored.slice
                if stored.topic in topics:
                    chosen.append(Cached(stored))
                    rows += stored.rows
        known = self._current_heads()
        chosen = [one for one in chosen if one.stored.end > known.get(one.stored.topic, _NO_HEAD).born]
        entries = self._loader.load(chosen)
        formats = [self.forms[one.stored.form].format for one in chosen]
        return [Followed(e, c.stored, f) for e, c, f in zip(entries, chosen, formats, strict=True)], last

    def newest_slice(self) -> int:
        """The last slice that is committed now."""
        self._current_heads()
        return self.last_slice

    def topics(self) -> dict[str, TopicInfo]:
        """See `Log.topics`."""
        self._check_open()
        own = self._own
        heads = {**self._current_heads(), **(own.heads if own is not None else {})}
        return {name: head.info(name) for name, head in sorted(heads.items()) if head.visible}

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """See `Log.records`."""
        self._check_open()
        self._current_heads()
        found = self.changelog.records(kind, prefix)
        own = self._own
        for (of, name), value in own.puts.items() if own is not None else ():
            if of == kind and name.startswith(prefix):
                found.pop(name, None)
                if value is not None:
                    found[name] = value if isinstance(value, bytes) else b"".join(value)
        return dict(sorted(found.items()))

    def kinds(self) -> list[str]:
        """See `Log.kinds`."""
        self._current_heads()
        return [kind for kind in self.changelog.kinds() if not kind.startswith(OURS)]

    def prune(self, topic: str, *, before_offset: int) -> int:
        """See `Log.prune`."""
        if self._own is not None:
            return self._own.prune(topic, before_offset)
        with self.transaction() as transaction:
            return transaction.prune(topic, before_offset)

    def _current_heads(self) -> dict[str, Head]:
        """Where topics begin and end: the writer knows, a reader looks."""
        if self._producer is None:
            with self._lock:
                self._follow()
        return self.heads

    @property
    def _own(self) -> KafkaTransaction | None:
        return self._current if self._thread == threading.get_ident() else None

    def _live(self, own: KafkaTransaction | None, after: int) -> list[Cached]:
        """What is in memory of later slices: the tail, and this thread's own transaction."""
        with self._lock:
            start = bisect.bisect_right(self._tail, after, key=lambda one: one.stored.slice)
            tail = self._tail[start:]
        return [*tail, *(one for one in own.entries if one.stored.slice > after)] if own is not None else tail

    def _after(self, after: int, names: set[str] | None) -> Generator[Cached]:
        """Entries of later slices, in order."""
        own = self._own
        heads = {**self._current_heads(), **(own.heads if own is not None else {})}
        live = self._live(own, after)
        wanted = self._evicted if names is None else {name: self._evicted.get(name, 0) for name in names}
        if self._producer is None or any(slice_ > after for slice_ in wanted.values()):
            first = live[0].stored.slice if live else self.last_slice + 1
            through = self.last_slice if self._producer is None else max(wanted.values())
            with contextlib.closing(self._index.after(after, through=through)) as found:
                for stored in found:
                    if self._producer is not None and stored.slice >= first:
                        break
                    if stored.end > _first(heads, stored.topic):
                        yield Cached(stored)
        for one in live:
            if one.stored.end > _first(heads, one.stored.topic):
                yield one

    def _of_topic(self, topic: str, offset: int) -> Generator[Cached]:
        """A topic's entries from the one that holds an offset on."""
        own = self._own
        head = (own.heads.get(topic) if own is not None else None) or self._current_heads().get(topic)
        if head is None or max(offset, head.first) >= head.end:
            return
        offset = max(offset, head.first)
        live = [one for one in self._live(own, 0) if one.stored.topic == topic]
        committed = self.heads.get(topic)
        if committed is not None and (not live or live[0].stored.offset > offset):
            # The index holds no slice of this thread's own transaction, and must not be asked to wait for one.
            last = committed.last_slice
            first = live[0].stored.slice if live else last + 1
            start = last if offset >= committed.last_offset else committed.first_slice
            with contextlib.closing(self._index.from_offset(topic, offset, start, last)) as found:
                for stored in found:
                    if stored.slice >= first:
                        break
                    yield Cached(stored)
        yield from (one for one in live if one.stored.end > offset)

    # -- the end --------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End waiting for a broker that is away; from any thread."""
        self.cluster.interrupt()

    def close(self) -> None:
        """See `Log.close`."""
        if self._own is not None:
            raise LogError(
                f"the log {self.place.location} is inside a transaction", advice="Close it after the with block."
            )
        self._closed = True
        self._index.close()
        self._records.close()
        self._loader.close()
        if self._producer is not None:
            self._producer.close()
            self._producer = None

    def _check_open(self) -> None:
        if self._closed:
            raise LogError(f"the log {self.place.location} is closed", advice="Open it again.")


class Followed(NamedTuple):
    """An entry as `KafkaLog.follow` gives it: with where its messages lie and their format."""

    entry: Entry
    stored: Stored
    format: str


_NO_HEAD = Head()


def _first(heads: dict[str, Head], topic: str) -> int:
    head = heads.get(topic)
    return head.first if head is not None else 0
