"""One transaction on a log on Kafka: rows, the slices record that orders them, and records, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.errors import LogError
from headrace.faults import fault
from headrace.kafka.fetch import Range
from headrace.kafka.place import Place
from headrace.kafka.producer import Sent, too_large
from headrace.log.base import checked_slice
from headrace.log.changelog import Value
from headrace.log.kafka_codec import INTERNAL_FORMAT, Messages
from headrace.log.kafka_topics import FORM, HEAD, TOPIC, Form
from headrace.log.message import MessageFormat
from headrace.log.slices import Stored, dump_slices
from headrace.log.topic_metadata import TransactionTopics

if TYPE_CHECKING:
    from headrace.log.kafka import KafkaLog

OVERHEAD_BYTES = 200  # of a message's own fields and of the batch around it
STAGED_IN_MEMORY = 32 << 20


@dataclass(slots=True)
class Cached:
    """An entry, and its rows where they are in memory.

    Attributes:
        staged: where its rows lie in the staging topic, while nobody else has them.
        sent: its messages on their way, until the transaction ends.
    """

    stored: Stored
    records: pa.RecordBatch | None = None
    staged: tuple[Range, int] | None = None
    sent: Sent | None = None


@dataclass(slots=True)
class Staged:
    """Rows of a source's transaction whose commit has not been seen."""

    group: int
    topic: str
    rows: int
    form: int
    records: pa.RecordBatch | None
    sent: Sent | None
    place: Place | None = None


class KafkaTransaction(TransactionTopics):
    """A `Transaction` of a `KafkaLog`. After an error nothing more can be done in it."""

    def __init__(self, log: KafkaLog) -> None:
        super().__init__(log)
        self.forms: dict[int, Form] = {}
        self.entries: list[Cached] = []
        self.staged: list[Staged] = list(log.staged)
        self.puts: dict[tuple[str, str], Value | None] = {}
        self.deletions: dict[str, dict[int, int]] = {}
        self.last_slice = log.last_slice
        self._seq = 0
        self._slice_open = False
        self._group_open = False
        self._announced = False
        self._prepared: tuple[pa.RecordBatch, str, Messages] | None = None

    # -- rows -----------------------------------------------------------------------------------------------------

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """See `Transaction.append`."""
        self._check()
        if not records.num_rows:
            return self.head(topic).end
        return self._append(topic, records, complete, kept=_copied(records))

    def _append(
        self,
        topic: str,
        records: pa.RecordBatch,
        complete: bool,
        *,
        kept: pa.RecordBatch | None,
        staged: tuple[Range, int] | None = None,
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

    def adopt(
        self,
        topic: str,
        records: pa.RecordBatch,
        places: Sequence[Place],
        *,
        format_: str,
        spread: bytes = b"",
        complete: bool = True,
    ) -> int:
        """Take rows that others wrote into the order of this log, where they are: nothing is copied.

        Args:
            records: what their messages mean.
            places: where the messages lie.
            format_: what `Codec.decode` needs to read them again.
            spread: as in `Stored`.
            complete: as for `append`.
        """
        self._check()
        if not records.num_rows:
            return self.head(topic).end
        if topic not in self.heads and not self.head(topic).identity:
            identity = self._log.cluster.identities([topic]).get(topic, "")
            self.heads[topic] = replace(self.head(topic), identity=identity, foreign=True)
        form = self._form(Form(format_, records.schema))
        stored = replace(_NOWHERE, places=tuple(places), spread=spread)
        return self._enter(topic, records.num_rows, records.nbytes, form, complete, Cached(stored, _copied(records)))

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
        if not self._slice_open:
            self.last_slice += 1
            self._seq = 0
            self._slice_open = True
        now_us = self._log.clock.now_us()
        head = self.head(topic)
        cached.stored = Stored(
            self.last_slice,
            self._seq,
            topic,
            head.end,
            rows,
            size,
            form,
            complete,
            now_us,
            cached.stored.places,
            cached.stored.spread,
        )
        self._seq += 1
        self.entries.append(cached)
        self.heads[topic] = head.entered(rows, size, self.last_slice, now_us)
        return head.end

    def oversized(self, topic: str, records: pa.RecordBatch) -> dict[int, str]:
        """See `Transaction.oversized`."""
        self._check()
        if not records.num_rows:
            return {}
        self._make_topic(topic)
        return self._refused(topic, self._encode(topic, records))

    def _refused(self, topic: str, messages: Messages) -> dict[int, str]:
        limit = self._log.cluster.largest_message(topic)
        largest = max(map(len, filter(None, messages.values)), default=0)
        keys = max(map(len, filter(None, messages.keys)), default=0)
        if largest + 2 * keys + OVERHEAD_BYTES <= limit // 2:
            return {}
        refused = {}
        rows = messages.rows.tolist()
        for row, key, value, headers in zip(rows, messages.keys, messages.values, messages.headers, strict=True):
            size = len(value or b"") + len(key or b"") + OVERHEAD_BYTES
            size += sum(len(name) + len(one or b"") for name, one in headers)
            if size > limit:
                refused[row] = too_large(size, limit, topic)
        return refused

    def _encode(self, topic: str, records: pa.RecordBatch) -> Messages:
        """The messages of rows; those of the last ones asked about are kept for their appending."""
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

    def next_slice(self) -> None:
        """See `Transaction.next_slice`."""
        self._check()
        self._slice_open = self._group_open = False

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
        self._log.make_staging()
        messages = self._log.codecs.encode(self._log.staging, INTERNAL_FORMAT, records)
        sent = self._log.producer.send(self._log.staging, messages.keys, messages.values, messages.headers)
        form = self._form(Form(INTERNAL_FORMAT, records.schema))
        self.staged.append(Staged(group, topic, records.num_rows, form, records, sent))

    def publish(self) -> None:
        """See `Transaction.publish`. Rows are read from where they wait, a piece at a time."""
        self._check()
        staged, self.staged = self.staged, []
        group = None
        for one in staged:
            if one.group != group:
                self.next_slice()
                group = one.group
            records = one.records if one.records is not None else self._log.staged_records(one)
            complete = one.group == staged[-1].group
            waits = None
            if one.records is None and one.place is not None:
                waits = (Range(self._log.staging, 0, one.place.first, one.place.last), one.form)
            self._append(one.topic, records, complete, kept=one.records, staged=waits)
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
        self.last_slice, self._seq, self._slice_open = checked_slice(number, self.last_slice), 0, True

    def prune(self, topic: str, before_offset: int) -> int:
        """Forget whole entries before an offset; the broker deletes their messages after the commit."""
        self._check()
        head = self.head(topic)
        dropped: list[Stored] = []
        kept: Stored | None = None
        for one in self._log.entries_of(topic, head.first):
            if one.end > before_offset:
                kept = one
                break
            dropped.append(one)
        if not dropped:
            return 0
        self.heads[topic] = replace(
            head,
            first=dropped[-1].end,
            bytes=head.bytes - sum(one.bytes for one in dropped),
            entries=head.entries - len(dropped),
            first_ts_us=kept.ts_us if kept else head.last_ts_us,
            first_slice=kept.slice if kept else head.last_slice,
        )
        if not head.foreign:
            ends = self.deletions.setdefault(topic, {})
            for place in (place for one in dropped for place in one.places):
                ends[place.partition] = max(ends.get(place.partition, 0), place.last + 1)
        return sum(one.rows for one in dropped)

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.entries or self.puts or self.heads or self.forms or len(self.staged) != len(self._log.staged))

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
                    cached.stored = replace(cached.stored, places=cached.sent.places, spread=cached.sent.spread)
            for one in self.staged:
                if one.sent is not None:
                    one.place = one.sent.places[0]
            fault("log.delivered")
            for last, record in dump_slices(self._slices()):
                producer.send(self._log.slices_topic, [None], [record], [()], timestamp=last)
            fault("log.sent")
            producer.commit()
            for key, value in changes:
                self._log.changelog.apply(key, value)
        fault("log.after-commit")
        self.end()

    def _slices(self) -> list[Stored]:
        """The entries; readers wait for the last slice, and so a restored one without any is an empty entry."""
        stored = [cached.stored for cached in self.entries]
        written = stored[-1].slice if stored else self._log.last_slice
        return stored if self.last_slice <= written else [*stored, replace(_NOWHERE, slice=self.last_slice)]

    def _all_puts(self) -> Mapping[tuple[str, str], Value | None]:
        puts = dict(self.puts)
        for topic, head in self.heads.items():
            if head.known:
                puts[TOPIC, topic] = head.to_json()
        for number, form in self.forms.items():
            puts[FORM, f"{number:06d}"] = form.to_json()
        if self.last_slice != self._log.last_slice:
            puts[HEAD, ""] = str(self.last_slice).encode()
        return puts

    def end(self) -> None:
        """Nothing more can be done in this transaction."""
        self._over = True


def _copied(records: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that nobody else holds: the caller's may change, or be a small part of something large."""
    form = MessageFormat(records.schema)
    return form.decode(form.encode(records).to_pybytes())


_NOWHERE = Stored(0, 0, "", 0, 0, 0, 0, True, 0, ())
