"""The contract of a log: durable topics, and small named records, changed together in transactions.

A topic is a sequence of rows with offsets 0, 1, 2, …; it is stored as entries, each one Arrow record batch.
Rows of several topics that were appended together form a **slice**: slices are numbered in the order of their
commits, and the rows inside one slice are ordered by their positions. What a source captured is appended so that
slices follow the database's commit order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

from headrace.errors import LogError, TopicInUse

_P = TypeVar("_P", bound="Placed")


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored record batch of one topic.

    Attributes:
        topic: its topic.
        slice: number of the slice it belongs to; grows with every append, never reused.
        offset: offset of its first row in the topic.
        records: the rows, as `headrace.batch` lays them out.
        complete: whether the slice ends where a transaction of the source ends. A large transaction is
            appended as several slices, and only the last is complete.
        ts_us: when it was appended (wall clock, microseconds), information only.
    """

    topic: str
    slice: int
    offset: int
    records: pa.RecordBatch
    complete: bool
    ts_us: int


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic, as its log knows it: ``first`` is the oldest offset still held, ``end`` the next to be written."""

    name: str
    first: int
    end: int
    bytes: int
    entries: int
    first_ts_us: int
    last_ts_us: int

    @property
    def rows(self) -> int:
        """Rows still held."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of one entry in its topic, without its rows."""

    offset: int
    rows: int
    bytes: int
    ts_us: int


class Transaction(Protocol):
    """All or nothing: what was written is durable when the ``with`` block ends without an error, else undone.

    Used by the one thread that is inside the block, never after it. A method that raises has spoilt the transaction:
    what was meant is done again in another one, from the beginning; nothing of this one will have happened.
    """

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """Add rows at the topic's end, in this transaction's current slice; returns the first row's offset.

        Zero rows change nothing and make no topic. All appends to one slice say the same of ``complete``.
        """
        ...

    def oversized(self, topic: str, records: pa.RecordBatch) -> dict[int, str]:
        """Return rows that this log cannot hold in the topic, and why; `append` would refuse the whole batch."""
        ...

    def next_slice(self) -> None:
        """Begin a new slice: what is appended from here on belongs to it."""
        ...

    def stage(self, topic: str, records: pa.RecordBatch) -> None:
        """Store rows durably but invisibly: part of a source's transaction whose commit has not been seen.

        Each call's slice follows `next_slice` as for `append`. Staged rows are dropped when the log is opened
        for writing, since the source sends an uncommitted transaction again from its start.
        """
        ...

    def publish(self) -> None:
        """Append everything staged, in the order of staging and in its slices; the last slice is complete."""
        ...

    def discard_staged(self) -> None:
        """Forget everything staged."""
        ...

    def put(self, kind: str, name: str, value: bytes | Sequence[bytes | memoryview]) -> None:
        """Store a named record (a source's position, a consumer's positions, a checkpoint, a model version).

        A large value may be given in pieces: a log may keep pieces that several records share only once.
        """
        ...

    def delete(self, kind: str, name: str) -> None:
        """Remove a named record; nothing happens when there is none."""
        ...

    def restore_slice(self, number: int) -> None:
        """Begin a slice with the number that it has in another log: what is appended from here on belongs to it.

        Numbers grow; a later `next_slice` goes on after the last one. For `headrace.log.copy` only: positions and the
        records of steps name slices.
        """
        ...

    def restore_topic(self, topic: str, *, offset: int) -> None:
        """Let a topic that this log does not know begin at an offset above 0: what lay before it was pruned."""
        ...

    def create_topic(self, topic: str, *, partitions: int | None = None) -> None:
        """Make a topic without rows; the first `append` makes one as well.

        A topic of a name that was dropped goes on at the offset where the old one ended: no offset is given twice, and
        no reader takes new rows for old ones. On a cluster its topic is made at once, and stays when the transaction is
        undone: it is then nobody's, and the next one of this name.

        Args:
            partitions: of a cluster's topic, as the log's location says by default; other logs have none.

        Raises:
            LogError: there is one.
        """
        ...

    def drop_topic(self, topic: str) -> None:
        """Remove a topic and its rows; one of the same name may be made in a later transaction.

        Whoever still needs its rows is the caller's business. On a cluster its topic is deleted after the commit, which
        cannot be undone; a crash between the two leaves a topic that is nobody's.

        Raises:
            LogError: there is none, or others write it.
        """
        ...


class Log(Protocol):
    """Durable topics. One process writes, any number of processes read.

    Any thread reads, at any time, and gets the same entries for the same slices and offsets until they are pruned. What
    another process has committed is seen by the next call. A thread that wants to write waits for the one that does; on
    a log that was not opened for writing it gets `LogLocked`. Errors with ``retry`` pass: whoever called calls again.
    """

    def transaction(self) -> AbstractContextManager[Transaction]:
        """Return a write transaction. Inside it, reads through the same log object see what it has appended."""
        ...

    def read(
        self,
        topics: Sequence[str] | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int = 65_536,
    ) -> list[Entry]:
        """Return entries of ``topics`` (every topic when None) with ``after`` < slice ≤ ``until``, in slice order.

        Whole slices: returns at least one slice where there is one, then more until ``limit`` rows are reached.
        Inside a slice entries come in the order of their appends. A resume starts at the last slice read.

        Raises:
            LogCorrupt: an entry's checksum does not match; the message names topic and offset.
        """
        ...

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """Return entries of one topic from the one that holds ``offset`` on, until ``limit`` rows are reached.

        At least one, where there is one; the first may start before ``offset``. An unknown topic has none.
        """
        ...

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """Return what `read_topic` would find, at most ``limit`` entries, without reading their rows."""
        ...

    def schemas(self, topic: str) -> list[tuple[int, pa.Schema]]:
        """Return the schemas that a topic's rows have, each with the offset of the first row that has it from there on.

        No rows are read. Of an unknown topic there are none.
        """
        ...

    def topics(self) -> dict[str, TopicInfo]:
        """Return the visible topics, by name, sorted."""
        ...

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """Return the named records of a kind whose names begin with ``prefix``, sorted by name."""
        ...

    def newest_slice(self) -> int:
        """Return the number of the last slice, also where retention has dropped its rows; 0 when there is none."""
        ...

    def kinds(self) -> list[str]:
        """Return the kinds of named records that there are, sorted."""
        ...

    def prune(self, topic: str, *, before_offset: int) -> int:
        """Drop whole entries that lie wholly before the offset; returns the rows dropped."""
        ...

    def close(self) -> None:
        """Release the writer's lock and the file. Calling it twice is harmless."""
        ...


def walk(log: Log, topic: str, offset: int = 0) -> Iterator[Entry]:
    """Yield all entries of a topic from an offset on, a chunk of the log at a time; the first may start before it."""
    while entries := log.read_topic(topic, offset=offset):
        yield from entries
        offset = entries[-1].offset + entries[-1].records.num_rows


def schema_runs(entries: Iterable[tuple[int, pa.Schema]]) -> list[tuple[int, pa.Schema]]:
    """Return offset and schema of the entries, in order, that have another schema than the one before."""
    found: list[tuple[int, pa.Schema]] = []
    for offset, schema in entries:
        if not found or not (schema is found[-1][1] or schema.equals(found[-1][1], check_metadata=True)):
            found.append((offset, schema))
    return found


def newest_schema(log: Log, topic: str) -> pa.Schema | None:
    """Return the schema of a topic's newest rows; None where it holds none."""
    info = log.topics().get(topic)
    entries = [] if info is None else log.read_topic(topic, offset=max(info.first, info.end - 1))
    return entries[-1].records.schema if entries else None


def rows_between(log: Log, topic: str, first: int, end: int) -> list[pa.RecordBatch]:
    """Return the rows of a topic from an offset to another, as their entries hold them."""
    found = []
    while first < end and (entries := log.read_topic(topic, offset=first, limit=end - first)):
        for entry in entries:
            start, stop = max(first, entry.offset), min(end, entry.offset + entry.records.num_rows)
            if start < stop:
                found.append(entry.records.slice(start - entry.offset, stop - start))
        first = entries[-1].offset + entries[-1].records.num_rows
    return found


def topic_exists(topic: str, where: str = "the log") -> TopicInUse:
    """Return the refusal to make a topic twice."""
    return TopicInUse(f"{where} has the topic «{topic}» already", advice="Choose another name, or delete it first.")


def no_such_topic(topic: str) -> LogError:
    """Return the refusal to remove what is not there."""
    return LogError(f"the log has no topic «{topic}»", advice="headrace topics list shows its topics.")


class Placed(Protocol):
    """An entry of any log, with its rows or without."""

    @property
    def slice(self) -> int: ...
    @property
    def rows(self) -> int: ...


def first_entries(found: Iterable[_P], limit: int, *, whole_slices: bool = False) -> tuple[list[_P], bool]:
    """Return the first of some entries, at least one where there is one, until ``limit`` rows are reached.

    Args:
        whole_slices: the slice of the last one is not left before its end.

    Returns:
        The entries, and whether there are no more.
    """
    chosen: list[_P] = []
    rows = 0
    for entry in found:
        if chosen and rows >= limit and not (whole_slices and entry.slice == chosen[-1].slice):
            return chosen, False
        chosen.append(entry)
        rows += entry.rows
    return chosen, True
