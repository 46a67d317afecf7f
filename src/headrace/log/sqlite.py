"""The embedded log: one SQLite file in WAL mode, one writing process, any number of readers.

A commit is one SQLite transaction with `synchronous=FULL`: durable when it returns. Readers see whole transactions
only, never wait for the writer, and hold a read transaction no longer than one call. The writer's connection alone
moves the WAL into the file. See `headrace.log.layout` for the tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import apsw
import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.errors import LogCorrupt, LogError, LogLocked
from headrace.log.base import Entry, Extent, TopicInfo
from headrace.log.layout import DROPPED, connect_reader, seal, translate, unverified
from headrace.log.lease import Lease, refuse_network_filesystem
from headrace.log.message import MessageFormat
from headrace.log.sqlite_records import read_records
from headrace.log.sqlite_writer import SqliteTransaction, SqliteWriter

_ENDLESS = 2**63 - 1
_COLUMNS = "e.slice, e.seq, t.name, e.offset, e.rows, e.complete, e.ts_us, e.schema, e.body, e.crc32"
_OF_ALL = f"""SELECT {_COLUMNS} FROM entries e CROSS JOIN topics t ON t.id = e.topic
    WHERE e.slice > ? AND e.slice <= ? ORDER BY e.slice, e.seq"""
_OF_TOPIC = f"""SELECT {_COLUMNS} FROM topics t CROSS JOIN entries e INDEXED BY entries_by_slice ON e.topic = t.id
    WHERE t.name = ? AND e.slice > ? AND e.slice <= ? ORDER BY e.slice, e.seq"""
_HELD_FROM = """FROM topics t CROSS JOIN entries e INDEXED BY entries_by_offset ON e.topic = t.id
    WHERE t.name = ?1 AND e.offset + e.rows > ?2
    AND e.offset >= (SELECT coalesce(max(offset), 0) FROM entries WHERE topic = t.id AND offset <= ?2)
    ORDER BY e.offset"""
_FROM_OFFSET = f"SELECT {_COLUMNS} {_HELD_FROM}"
_TOTALS = "SELECT id, first_offset, end_offset FROM topics WHERE name = ?"
_BEFORE = """SELECT offset + rows FROM entries INDEXED BY entries_by_slice
    WHERE topic = ? AND slice <= ? ORDER BY slice DESC, seq DESC LIMIT 1"""
_EXTENTS = f"SELECT e.offset, e.rows, e.bytes, e.ts_us {_HELD_FROM} LIMIT ?3"


class _Stored(NamedTuple):
    """An entry as it lies in the file; sorts by its place."""

    slice: int
    seq: int
    topic: str
    offset: int
    rows: int
    complete: int
    ts_us: int
    schema: int
    body: int
    crc32: int


class SqliteLog:
    """A `Log` in one SQLite file.

    Args:
        path: the file; made when missing and opened for writing.
        writer: whether to take the writer's lease; without it only reading works, also beside a writer.
        clock: says when an entry was appended.

    Raises:
        LogLocked: another process writes this log.
        LogError: the path cannot be used; LogCorrupt, LogVersionError: what lies there cannot.
    """

    def __init__(self, path: Path | str, *, writer: bool, clock: Clock | None = None) -> None:
        self.path = Path(path).resolve()
        self._lease: Lease | None = None
        self._writer: SqliteWriter | None = None
        self._readers = _Readers(self.path)
        self._schemas: dict[int, MessageFormat] = {}
        if writer:
            refuse_network_filesystem(self.path)
            self._lease = Lease(self.path)
        try:
            if writer:
                self._writer = SqliteWriter(self.path, clock or SystemClock())
            with self._reading():
                pass
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """See `Log.transaction`. A thread that asks while another one writes waits for it."""
        if self._writer is None:
            raise LogLocked(f"the log {self.path} is open for reading only", advice="Open it with writer=True.")
        try:
            with self._writer.transaction() as transaction:
                yield transaction
        except BaseException:
            self._schemas.clear()  # may hold one that was undone, whose number is then given out again
            raise

    def read(
        self,
        topics: Sequence[str] | None = None,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int = 65_536,
    ) -> list[Entry]:
        """See `Log.read`."""
        last = _ENDLESS if until is None else until
        with self._reading() as connection:
            if topics is None:
                cursors = [connection.execute(_OF_ALL, (after, last))]
            else:
                cursors = [connection.execute(_OF_TOPIC, (name, after, last)) for name in dict.fromkeys(topics)]
            chosen, ended = _first(cursors, limit, whole_slices=True)
            self._refuse_gaps(connection, chosen, topics, after=after, ended=ended and until is None)
            loaded = self._load(connection, chosen)
        return [self._entry(*one) for one in loaded]

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """See `Log.read_topic`."""
        with self._reading() as connection:
            cursors = [connection.execute(_FROM_OFFSET, (topic, offset))]
            chosen, ended = _first(cursors, limit, whole_slices=False)
            self._refuse_missing(connection, topic, offset, [(one.offset, one.rows) for one in chosen], ended=ended)
            loaded = self._load(connection, chosen)
        return [self._entry(*one) for one in loaded]

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """See `Log.extents`."""
        with self._reading() as connection:
            found = [Extent(*row) for row in connection.execute(_EXTENTS, (topic, offset, limit))]
            held = [(one.offset, one.rows) for one in found]
            self._refuse_missing(connection, topic, offset, held, ended=len(found) < limit)
            return found

    def topics(self) -> dict[str, TopicInfo]:
        """See `Log.topics`."""
        with self._reading() as connection:
            found = connection.execute(
                """SELECT name, first_offset, end_offset, bytes, entries, first_ts_us, last_ts_us
                FROM topics WHERE last_ts_us != ? ORDER BY name""",
                (DROPPED,),
            )
            return {str(row[0]): TopicInfo(*row) for row in found}

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]:
        """See `Log.records`."""
        with self._reading() as connection:
            return read_records(connection, kind, prefix)

    def newest_slice(self) -> int:
        """See `Log.newest_slice`."""
        with self._reading() as connection:
            query = "SELECT max(slice, (SELECT coalesce(max(slice), 0) FROM entries)) FROM head"
            return int(connection.execute(query).get)

    def kinds(self) -> list[str]:
        """See `Log.kinds`."""
        with self._reading() as connection:
            return [str(kind) for (kind,) in connection.execute("SELECT DISTINCT kind FROM records ORDER BY kind")]

    def prune(self, topic: str, *, before_offset: int) -> int:
        """See `Log.prune`. Outside a transaction it commits every thousand entries, so that the WAL stays small."""
        if self._writer is not None and self._writer.current is not None:
            return self._writer.current.prune(topic, before_offset)
        dropped = 0
        while True:
            with self.transaction() as transaction:
                rows = transaction.prune(topic, before_offset, most=1000)
            if not rows:
                return dropped
            dropped += rows

    def close(self) -> None:
        """See `Log.close`."""
        if self._writer is not None and self._writer.current is not None:
            raise LogError(f"the log {self.path} is inside a transaction", advice="Close it after the with block.")
        self._readers.close()  # first: SQLite tidies up when its last connection goes, if that one may write
        if self._writer is not None:
            self._writer.close()
        if self._lease is not None:
            self._lease.release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        """A connection that sees one state of the log: this thread's open transaction, or else the last commit."""
        writer = self._writer
        if writer is not None and writer.current is not None:
            try:
                yield writer.connection
            except apsw.Error as error:
                raise writer.translated(error) from error
            return
        with self._readers.borrow() as connection:
            yield connection

    def _load(
        self, connection: apsw.Connection, chosen: Sequence[_Stored]
    ) -> list[tuple[_Stored, MessageFormat, bytes]]:
        """All that decoding needs, so that the read transaction can end before it."""
        query = "SELECT body FROM bodies WHERE id = ?"
        forms = [self._form(connection, stored.schema) for stored in chosen]
        with unverified(connection):
            bodies = [connection.execute(query, (stored.body,)).get or b"" for stored in chosen]
        return list(zip(chosen, forms, bodies, strict=True))

    def _refuse_gaps(
        self,
        connection: apsw.Connection,
        chosen: Sequence[_Stored],
        topics: Sequence[str] | None,
        *,
        after: int,
        ended: bool,
    ) -> None:
        """Refuse entries that do not follow each other: a topic's offsets are dense, so one that is missing is damage.

        Args:
            chosen: entries of later slices than ``after``, in order.
            topics: those that were read; None: all.
            ended: whether these are the last ones.

        Raises:
            LogCorrupt: an entry is missing.
        """
        held: dict[str, list[_Stored]] = {}
        for entry in chosen:
            held.setdefault(entry.topic, []).append(entry)
        for topic in held if topics is None else dict.fromkeys(topics):
            known = connection.execute(_TOTALS, (topic,)).get
            if known is None:
                continue
            number, first, end = known
            before = connection.execute(_BEFORE, (number, after)).get
            at = int(first if before is None else before)
            for entry in held.get(topic, ()):
                if entry.offset != at:
                    raise self._gap(topic, at)
                at += entry.rows
            if ended and at != end:
                raise self._gap(topic, at)

    def _refuse_missing(
        self, connection: apsw.Connection, topic: str, offset: int, held: Sequence[tuple[int, int]], *, ended: bool
    ) -> None:
        """Refuse entries of one topic, as (offset, rows), that do not hold every row from an offset on.

        Raises:
            LogCorrupt: an entry is missing.
        """
        known = connection.execute(_TOTALS, (topic,)).get
        if known is None:
            return
        _, first, end = known
        at = max(offset, int(first))
        for number, (start, rows) in enumerate(held):
            if start > at or (number and start != at):
                raise self._gap(topic, at)
            at = start + rows
        if ended and at < end:
            raise self._gap(topic, at)

    def _gap(self, topic: str, offset: int) -> LogCorrupt:
        return LogCorrupt(
            f"{self.path}: rows of topic «{topic}» from offset {offset} on are missing",
            advice="Restore the log from a copy.",
        )

    def _form(self, connection: apsw.Connection, number: int) -> MessageFormat:
        known = self._schemas.get(number)
        if known is not None:
            return known
        sha256, ipc = connection.execute("SELECT sha256, ipc FROM schemas WHERE id = ?", (number,)).get or (b"", b"")
        if hashlib.sha256(ipc).digest() != sha256:
            raise LogCorrupt(f"{self.path}: the schema {number} is damaged", advice="Restore the log from a copy.")
        form = self._schemas[number] = MessageFormat(pa.ipc.read_schema(pa.py_buffer(ipc)))
        return form

    def _entry(self, stored: _Stored, form: MessageFormat, body: bytes) -> Entry:
        slice_number, seq, topic, *place = stored[:8]
        if seal(zlib.crc32(body), topic, slice_number, seq, *place) != stored.crc32:
            raise self._damaged(stored)
        try:
            records = form.decode(body)
        except pa.ArrowException as error:
            raise self._damaged(stored) from error
        return Entry(topic, slice_number, stored.offset, records, bool(stored.complete), stored.ts_us)

    def _damaged(self, stored: _Stored) -> LogCorrupt:
        return LogCorrupt(
            f"{self.path}: the entry of topic «{stored.topic}» at offset {stored.offset} is damaged",
            advice="Restore the log from a copy; if nobody needs these rows any more, prune the topic past them.",
        )


class _Readers:
    """Reading connections of one process, lent to one thread at a time; a few wait for the next borrower."""

    _IDLE = 4

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[apsw.Connection] = []
        self._process = os.getpid()
        self._closed = False

    @contextlib.contextmanager
    def borrow(self) -> Iterator[apsw.Connection]:
        """A connection inside a read transaction that ends with the block."""
        connection: apsw.Connection | None = None
        try:
            connection = self._take()
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except apsw.Error as error:
            raise translate(error, self._path, connection.system_errno if connection else 0) from error
        finally:
            if connection is not None:
                self._give(connection)

    def close(self) -> None:
        """Close the idle ones now and the others when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self) -> apsw.Connection:
        with self._lock:
            if self._closed:
                raise LogError(f"the log {self._path} is closed", advice="Open it again.")
            if self._process != os.getpid():
                self._idle, self._process = [], os.getpid()  # SQLite's connections do not survive a fork
            if self._idle:
                return self._idle.pop()
        return connect_reader(self._path)

    def _give(self, connection: apsw.Connection) -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < self._IDLE and not connection.in_transaction
            if keep:
                self._idle.append(connection)
        if not keep:
            connection.close(True)


def _first(cursors: Sequence[apsw.Cursor], limit: int, *, whole_slices: bool) -> tuple[list[_Stored], bool]:
    """The first entries of several ordered cursors, at least one, until ``limit`` rows are reached; closes them.

    Returns:
        The entries, and whether there are no more.

    A statement that has not come to its end would hold the read transaction open.
    """
    chosen: list[_Stored] = []
    rows = 0
    try:
        for stored in map(_Stored._make, heapq.merge(*cursors)):
            if chosen and rows >= limit and not (whole_slices and stored.slice == chosen[-1].slice):
                return chosen, False
            chosen.append(stored)
            rows += stored.rows
    finally:
        for cursor in cursors:
            cursor.close(True)
    return chosen, True
