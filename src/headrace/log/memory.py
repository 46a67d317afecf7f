"""A log in memory, for tests and for trying a pipeline: same contract, nothing survives the object.

Rows are kept as the bytes of their messages, as the embedded log keeps them: nobody can change an array
afterwards, and what is read has gone through the same encoding.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.errors import LogError
from headrace.log.base import Entry, Extent, TopicInfo, first_entries, no_such_topic, schema_runs, topic_exists
from headrace.log.message import MessageFormat
from headrace.log.transaction import OpenTransaction, WritingTurn


class _Stored(NamedTuple):
    """An entry; sorts by its place."""

    slice: int
    seq: int
    topic: str
    offset: int
    rows: int
    complete: bool
    ts_us: int
    form: MessageFormat
    body: bytes

    def entry(self) -> Entry:
        return Entry(self.topic, self.slice, self.offset, self.form.decode(self.body), self.complete, self.ts_us)


class _Staged(NamedTuple):
    group: int
    topic: str
    rows: int
    form: MessageFormat
    body: bytes


@dataclass
class _State:
    """The state that one commit left behind.

    A list of entries is shared by all states and may have grown since: the first ``topics[name].entries`` count.
    """

    slice: int = 0
    topics: dict[str, TopicInfo] = field(default_factory=dict)
    entries: dict[str, list[_Stored]] = field(default_factory=dict)
    records: dict[tuple[str, str], bytes] = field(default_factory=dict)
    staged: list[_Staged] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)  # of topics that were dropped

    def copy(self) -> _State:
        topics, entries, records = dict(self.topics), dict(self.entries), dict(self.records)
        return _State(self.slice, topics, entries, records, list(self.staged), dict(self.ends))

    def of(self, topic: str) -> tuple[list[_Stored], int]:
        """Return a topic's entries, and how many of them count."""
        info = self.topics.get(topic)
        return (self.entries[topic], info.entries) if info else ([], 0)


class MemoryTransaction(OpenTransaction):
    """A `Transaction` on a copy of the log's state."""

    def __init__(self, state: _State, clock: Clock) -> None:
        super().__init__(state.slice)
        self.state = state
        self._clock = clock

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """See `Transaction.append`."""
        self._check()
        if not records.num_rows:
            info = self.state.topics.get(topic)
            return info.end if info else self.state.ends.get(topic, 0)
        form = MessageFormat(records.schema)
        return self._enter(topic, records.num_rows, form, form.encode(records).to_pybytes(), complete)

    def stage(self, topic: str, records: pa.RecordBatch) -> None:
        """See `Transaction.stage`."""
        self._check()
        if not records.num_rows:
            return
        staged = self.state.staged
        group = staged[-1].group if staged else 0
        form = MessageFormat(records.schema)
        body = form.encode(records).to_pybytes()
        staged.append(_Staged(group if self._group_open else group + 1, topic, records.num_rows, form, body))
        self._group_open = True

    def publish(self) -> None:
        """See `Transaction.publish`."""
        self._check()
        staged, self.state.staged = self.state.staged, []
        group = None
        for rows in staged:
            if rows.group != group:
                self.next_slice()
                group = rows.group
            self._enter(rows.topic, rows.rows, rows.form, rows.body, rows.group == staged[-1].group)
        self.next_slice()

    def discard_staged(self) -> None:
        """See `Transaction.discard_staged`."""
        self._check()
        self.state.staged = []
        self._group_open = False

    def oversized(self, topic: str, records: pa.RecordBatch) -> dict[int, str]:
        """See `Transaction.oversized`: memory takes any row."""
        self._check()
        return {}

    def put(self, kind: str, name: str, value: bytes | Sequence[bytes | memoryview]) -> None:
        """See `Transaction.put`."""
        self._check()
        self.state.records[kind, name] = bytes(value) if isinstance(value, bytes) else b"".join(value)

    def delete(self, kind: str, name: str) -> None:
        """See `Transaction.delete`."""
        self._check()
        self.state.records.pop((kind, name), None)

    def restore_slice(self, number: int) -> None:
        """See `Transaction.restore_slice`."""
        self._check()
        self._slices.restore(number)
        self.state.slice = number

    def restore_topic(self, topic: str, *, offset: int) -> None:
        """See `Transaction.restore_topic`."""
        self._check()
        if topic in self.state.topics:
            raise LogError(f"the log has the topic «{topic}» already")
        self._make(topic, offset)

    def create_topic(self, topic: str, *, partitions: int | None = None) -> None:
        """See `Transaction.create_topic`."""
        self._check()
        if topic in self.state.topics:
            raise topic_exists(topic)
        self._make(topic, self.state.ends.get(topic, 0))

    def _make(self, topic: str, offset: int) -> None:
        now_us = self._clock.now_us()
        self.state.topics[topic] = TopicInfo(topic, offset, offset, 0, 0, now_us, now_us)
        self.state.entries[topic] = []

    def drop_topic(self, topic: str) -> None:
        """See `Transaction.drop_topic`."""
        self._check()
        if topic not in self.state.topics:
            raise no_such_topic(topic)
        self.state.ends[topic] = self.state.topics.pop(topic).end
        # The list itself is shared with the state before.
        self.state.entries.pop(topic)

    def prune(self, topic: str, before_offset: int) -> int:
        """Drop whole entries before the offset; returns their rows."""
        self._check()
        entries, count = self.state.of(topic)
        keep = 0
        while keep < count and entries[keep].offset + entries[keep].rows <= before_offset:
            keep += 1
        if not keep:
            return 0
        dropped, kept = entries[:keep], entries[keep:count]
        info = self.state.topics[topic]
        rows = sum(entry.rows for entry in dropped)
        self.state.entries[topic] = kept
        self.state.topics[topic] = replace(
            info,
            first=info.first + rows,
            bytes=info.bytes - sum(len(entry.body) for entry in dropped),
            entries=len(kept),
            first_ts_us=kept[0].ts_us if kept else info.last_ts_us,
        )
        return rows

    def _enter(self, topic: str, rows: int, form: MessageFormat, body: bytes, complete: bool) -> int:
        place = self._slices.enter()
        self.state.slice = self._slices.last
        now_us = self._clock.now_us()
        if topic not in self.state.topics:
            self._make(topic, self.state.ends.get(topic, 0))
        info, entries = self.state.topics[topic], self.state.entries[topic]
        entries.append(_Stored(*place, topic, info.end, rows, complete, now_us, form, body))
        self.state.topics[topic] = replace(
            info,
            end=info.end + rows,
            bytes=info.bytes + len(body),
            entries=info.entries + 1,
            first_ts_us=info.first_ts_us if info.entries else now_us,
            last_ts_us=now_us,
        )
        return info.end


class MemoryLog:
    """A `Log` in memory, of one process.

    Args:
        clock: says when an entry was appended.

    >>> log = MemoryLog()
    >>> with log.transaction() as transaction:
    ...     transaction.append("iris", pa.RecordBatch.from_pydict({"id": [1, 2]}))
    0
    >>> log.topics()["iris"].rows
    2
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._turn = WritingTurn[MemoryTransaction]()
        self._committed = _State()
        self._closed = False

    def __repr__(self) -> str:
        return f"MemoryLog({len(self.topics())} topics)"

    @contextlib.contextmanager
    def transaction(self) -> Iterator[MemoryTransaction]:
        """See `Log.transaction`. A thread that asks while another one writes waits for it."""
        with self._turn.taken(lambda: MemoryTransaction(self._state().copy(), self._clock)) as transaction:
            try:
                yield transaction
                self._committed = transaction.state
            finally:
                self._forget_uncommitted()

    def read(
        self,
        topics: Sequence[str] | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int = 65_536,
    ) -> list[Entry]:
        """See `Log.read`."""
        state = self._state()
        names = state.topics if topics is None else dict.fromkeys(topics)
        found = heapq.merge(*(_after_slice(*state.of(name), after) for name in names))
        wanted = itertools.takewhile(lambda stored: until is None or stored.slice <= until, found)
        chosen, _ = first_entries(wanted, limit, whole_slices=True)
        return [stored.entry() for stored in chosen]

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """See `Log.read_topic`."""
        chosen, _ = first_entries(self._from_offset(topic, offset), limit)
        return [stored.entry() for stored in chosen]

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """See `Log.extents`."""
        found = list(self._from_offset(topic, offset))[:limit]
        return [Extent(stored.offset, stored.rows, len(stored.body), stored.ts_us) for stored in found]

    def schemas(self, topic: str) -> list[tuple[int, pa.Schema]]:
        """See `Log.schemas`."""
        return schema_runs((stored.offset, stored.form.schema) for stored in self._from_offset(topic, 0))

    def topics(self) -> dict[str, TopicInfo]:
        """See `Log.topics`."""
        return dict(sorted(self._state().topics.items()))

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """See `Log.records`."""
        found = sorted(self._state().records.items())
        return {name: value for (of, name), value in found if of == kind and name.startswith(prefix)}

    def newest_slice(self) -> int:
        """See `Log.newest_slice`."""
        return self._state().slice

    def kinds(self) -> list[str]:
        """See `Log.kinds`."""
        return sorted({kind for kind, _ in self._state().records})

    def prune(self, topic: str, *, before_offset: int) -> int:
        """See `Log.prune`."""
        if self._turn.own is not None:
            return self._turn.own.prune(topic, before_offset)
        with self.transaction() as transaction:
            return transaction.prune(topic, before_offset)

    def close(self) -> None:
        """See `Log.close`. What it held is gone."""
        if self._turn.own is not None:
            raise LogError("the log is inside a transaction", advice="Close it after the with block.")
        self._closed = True
        self._committed = _State()

    def _state(self) -> _State:
        if self._closed:
            raise LogError("the log is closed", advice="A memory log does not survive its closing.")
        return self._turn.own.state if self._turn.own is not None else self._committed

    def _from_offset(self, topic: str, offset: int) -> Iterable[_Stored]:
        entries, count = self._state().of(topic)
        start = bisect.bisect_right(entries, offset, hi=count, key=lambda stored: stored.offset + stored.rows)
        return (entries[index] for index in range(start, count))

    def _forget_uncommitted(self) -> None:
        """Take out of the shared lists what an undone transaction added: the next one appends there."""
        for name, entries in self._committed.entries.items():
            del entries[self._committed.topics[name].entries :]


def _after_slice(entries: list[_Stored], count: int, after: int) -> Iterator[_Stored]:
    start = bisect.bisect_right(entries, after, hi=count, key=lambda stored: stored.slice)
    return (entries[index] for index in range(start, count))
