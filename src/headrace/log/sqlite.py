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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import pyarrow as pa

from headrace.clock import Clock, SystemClock
from headrace.errors import LogCorrupt, LogError, LogLocked
from headrace.faults import fault
from headrace.log.base import Entry, Extent, TopicInfo, first_entries, no_such_topic, topic_exists
from headrace.log.layout import (
    BUSY_MILLISECONDS,
    DROPPED,
    closed_on_error,
    connect_reader,
    connect_writer,
    open_record,
    seal,
    seal_record,
    translate,
    unverified,
)
from headrace.log.lease import Lease, refuse_network_filesystem
from headrace.log.message import MessageFormat
from headrace.log.transaction import OpenTransaction, WritingTurn

CHECKPOINT_PAGES = 2048
RESTART_PAGES = 32768
RESTART_MILLISECONDS = 200
PRUNED_BYTES = 256 << 20  # in one transaction: SQLite walks through every page that it frees
LARGEST_BODY = 256 << 20  # SQLite's own limit is a gigabyte; a reader holds at least one body in memory
INLINE_BYTES = 65_536

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
# Where a schema begins: of the entries of a topic in their order, those that have another one than the entry before.
_SCHEMAS = f"""SELECT offset, schema FROM (
    SELECT e.offset, e.schema, lag(e.schema) OVER (ORDER BY e.offset) AS before {_HELD_FROM})
    WHERE before IS NULL OR before != schema ORDER BY offset"""
_ENTER_TOPIC = """INSERT INTO topics (name, first_offset, end_offset, bytes, entries, first_ts_us, last_ts_us)
    VALUES (?1, 0, ?2, ?3, 1, ?4, ?4) ON CONFLICT (name) DO UPDATE SET
    end_offset = end_offset + ?2, bytes = bytes + ?3, entries = entries + 1,
    first_ts_us = CASE entries WHEN 0 THEN ?4 ELSE first_ts_us END, last_ts_us = ?4 RETURNING id, end_offset"""
_LEAVE_TOPIC = """UPDATE topics SET
    first_offset = first_offset + ?2, bytes = bytes - ?3, entries = entries - ?4, first_ts_us = coalesce(
        (SELECT ts_us FROM entries WHERE topic = topics.id ORDER BY offset LIMIT 1), last_ts_us) WHERE name = ?1"""
_CREATE_TOPIC = f"""INSERT INTO topics (name, first_offset, end_offset, bytes, entries, first_ts_us, last_ts_us)
    VALUES (?1, 0, 0, 0, 0, ?2, ?2) ON CONFLICT (name) DO UPDATE SET first_ts_us = ?2, last_ts_us = ?2
    WHERE last_ts_us = {DROPPED} RETURNING id"""
_DROP_STAGED = "DELETE FROM bodies WHERE id IN (SELECT body FROM staged); DELETE FROM staged"
_HASH = 16

Run = Callable[..., apsw.Cursor]


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
        if self.path.is_dir():
            raise LogError(f"{self.path} is a directory, and a log is a file", advice="Name a file in it.")
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

    def __repr__(self) -> str:
        return f"SqliteLog({self.path})"

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
        return [self._entry(*parts) for parts in loaded]

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> list[Entry]:
        """See `Log.read_topic`."""
        with self._reading() as connection:
            cursors = [connection.execute(_FROM_OFFSET, (topic, offset))]
            chosen, ended = _first(cursors, limit, whole_slices=False)
            self._refuse_missing(
                connection, topic, offset, [(stored.offset, stored.rows) for stored in chosen], ended=ended
            )
            loaded = self._load(connection, chosen)
        return [self._entry(*parts) for parts in loaded]

    def extents(self, topic: str, *, offset: int = 0, limit: int = 10_000) -> list[Extent]:
        """See `Log.extents`."""
        with self._reading() as connection:
            found = [Extent(*row) for row in connection.execute(_EXTENTS, (topic, offset, limit))]
            held = [(extent.offset, extent.rows) for extent in found]
            self._refuse_missing(connection, topic, offset, held, ended=len(found) < limit)
            return found

    def schemas(self, topic: str) -> list[tuple[int, pa.Schema]]:
        """See `Log.schemas`."""
        with self._reading() as connection:
            found: list[Any] = connection.execute(_SCHEMAS, (topic, 0)).fetchall()
            return [(offset, self._form(connection, number).schema) for offset, number in found]

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
            query = "SELECT name, value, pieces FROM records WHERE kind = ? AND name >= ? ORDER BY name"
            found: dict[str, bytes] = {}
            for name, value, pieces in connection.execute(query, (kind, prefix)):
                if not name.startswith(prefix):
                    break
                content = open_record(kind, name, value)
                if pieces:
                    content = b"".join(_piece(connection, kind, name, digest) for digest in _hashes(content))
                found[name] = content
            return found

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
        """Return a connection that sees one state of the log: this thread's open transaction, or the last commit."""
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
        """Return all that decoding needs, so that the read transaction can end before it."""
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


def _first(cursors: Sequence[apsw.Cursor], limit: int, *, whole_slices: bool) -> tuple[list[_Stored], bool]:
    """Return the first entries of several ordered cursors, at least one, until ``limit`` rows are reached; closes them.

    Returns:
        The entries, and whether there are no more.

    A statement that has not come to its end would hold the read transaction open.
    """
    try:
        return first_entries(map(_Stored._make, heapq.merge(*cursors)), limit, whole_slices=whole_slices)
    finally:
        for cursor in cursors:
            cursor.close(True)


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
        """Return a connection inside a read transaction that ends with the block."""
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


class SqliteWriter:
    """The one connection that writes a log's file. Whoever makes it holds the lease.

    Args:
        path: the log's file.
        clock: says when an entry was appended.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.schemas: dict[str, tuple[int, MessageFormat]] = {}
        self._turn: WritingTurn[SqliteTransaction] = WritingTurn()
        self._process = os.getpid()
        self._closed = False
        self._wal_pages = 0
        self._restart_at = RESTART_PAGES
        self._checkpoint_error: apsw.Error | None = None
        self.connection = connect_writer(path)
        self.connection.set_wal_hook(self._count_pages)
        with closed_on_error(self.connection, path):
            self._epoch, self.last_slice = self._take_epoch()

    @property
    def current(self) -> SqliteTransaction | None:
        """The open transaction, if it is the calling thread's."""
        return self._turn.own

    @contextlib.contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """See `Log.transaction`."""
        with self._turn.taken(self._begin) as transaction:
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                self.schemas.clear()
                self._undo()
                raise
            self._checkpoint()

    def close(self) -> None:
        """Move the WAL into the file and let go of it. Calling it twice is harmless."""
        with self._turn.lock:
            if self._closed:
                return
            self._closed = True
            self.connection.set_wal_hook(None)
            # Not when a reader is in the way or the disk is full: what is in the WAL is as durable.
            with contextlib.suppress(apsw.Error):
                self.connection.set_busy_timeout(RESTART_MILLISECONDS)
                self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self.connection.close()

    def translated(self, error: apsw.Error) -> LogError:
        """Return what SQLite's error means for this log."""
        return translate(error, self.path, self.connection.system_errno)

    def _take_epoch(self) -> tuple[int, int]:
        """Shut out earlier writers, and drop what they staged: its source sends it again.

        Returns the epoch and the last slice's number.
        """
        with self.connection:
            self.connection.execute(_DROP_STAGED)
            self.connection.execute("UPDATE head SET epoch = epoch + 1")
            query = "SELECT epoch, max(slice, (SELECT coalesce(max(slice), 0) FROM entries)) FROM head"
            ((epoch, last_slice),) = self.connection.execute(query)
        return int(epoch), int(last_slice)

    def _begin(self) -> SqliteTransaction:
        if os.getpid() != self._process:
            raise LogLocked(f"the log {self.path} was opened by the parent process", advice="Open it after the fork.")
        if self._closed:
            raise LogError(f"the log {self.path} is closed", advice="Open it again.")
        try:
            self._undo()  # an interrupt may have struck just outside the block below
            if self._checkpoint_error is not None:
                error, self._checkpoint_error = self._checkpoint_error, None
                raise error
            self.connection.execute("BEGIN IMMEDIATE")
            epoch = self.connection.execute("SELECT epoch FROM head").get
            if epoch != self._epoch:
                raise LogLocked(
                    f"another process has opened the log {self.path} for writing",
                    advice="Stop one of the two; the locks of this file system do not work.",
                )
        except BaseException as error:
            self._undo()
            if isinstance(error, apsw.Error):
                raise self.translated(error) from error
            raise
        return SqliteTransaction(self)

    def _undo(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _count_pages(self, _connection: apsw.Connection, _schema: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Move the WAL into the file when it is long. The commit before is durable: an error is the next one's.

        Readers that follow each other without a gap could keep the WAL from starting anew, so one that has grown
        very long waits for them, for a moment.
        """
        if self._wal_pages < CHECKPOINT_PAGES:
            return
        try:
            self.connection.wal_checkpoint()
            if self._wal_pages >= self._restart_at:
                self._restart_at = self._wal_pages + RESTART_PAGES
                self._restart_wal()
            elif self._wal_pages < RESTART_PAGES:
                self._restart_at = RESTART_PAGES
        except (apsw.FullError, apsw.BusyError):
            pass  # the WAL keeps the pages; the next commit tries again
        except apsw.Error as error:
            self._checkpoint_error = error

    def _restart_wal(self) -> None:
        self.connection.set_busy_timeout(RESTART_MILLISECONDS)
        try:
            self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
        finally:
            self.connection.set_busy_timeout(BUSY_MILLISECONDS)


class SqliteTransaction(OpenTransaction):
    """A `Transaction` on the writer's connection. After an error nothing more can be done in it."""

    def __init__(self, writer: SqliteWriter) -> None:
        super().__init__(writer.last_slice)
        self._writer = writer
        self._clock = writer.clock
        self._group: int | None = None

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """See `Transaction.append`."""
        if not records.num_rows:
            return int(self._run("SELECT end_offset FROM topics WHERE name = ?", (topic,)).get or 0)
        parts = [self._enter(topic, *stored, complete=complete) for stored in self._store(topic, records)]
        return parts[0]

    def stage(self, topic: str, records: pa.RecordBatch) -> None:
        """See `Transaction.stage`."""
        if not records.num_rows:
            return
        if self._group is None:
            self._group = int(self._run("SELECT coalesce(max(slice), 0) FROM staged").get)
        if not self._group_open:
            self._group += 1
            self._group_open = True
        for stored in self._store(topic, records):
            self._run(
                "INSERT INTO staged (slice, topic, rows, schema, body, crc32, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self._group, topic, *stored),
            )

    def publish(self) -> None:
        """See `Transaction.publish`. Moves no bodies, whatever their size."""
        last = self._run("SELECT max(slice) FROM staged").get
        group = None
        query = "SELECT slice, topic, rows, schema, body, crc32, bytes FROM staged ORDER BY id"
        for staged, topic, *stored in self._rows(query):
            if staged != group:
                self.next_slice()
                group = staged
            self._enter(topic, *stored, complete=staged == last)
        self._run("DELETE FROM staged")
        self.next_slice()

    def discard_staged(self) -> None:
        """See `Transaction.discard_staged`."""
        self._run(_DROP_STAGED)
        self._group_open = False

    def oversized(self, topic: str, records: pa.RecordBatch) -> dict[int, str]:
        """See `Transaction.oversized`: a body holds up to 256 MB, and a row of that size is the disk's business."""
        return {}

    def put(self, kind: str, name: str, value: bytes | Sequence[bytes | memoryview]) -> None:
        """See `Transaction.put`."""
        pieces = () if isinstance(value, bytes) or sum(map(len, value)) <= INLINE_BYTES else value
        if pieces:
            value = b"".join([_stored(self._run, piece) for piece in pieces])
        elif not isinstance(value, bytes):
            value = b"".join(value)
        _release(self._run, kind, name)  # after the new ones are counted: what both have in common stays
        self._run(
            """INSERT INTO records (kind, name, value, pieces) VALUES (?, ?, ?, ?)
            ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, pieces = excluded.pieces""",
            (kind, name, seal_record(kind, name, value), len(pieces)),
        )

    def delete(self, kind: str, name: str) -> None:
        """See `Transaction.delete`."""
        _release(self._run, kind, name)
        self._run("DELETE FROM records WHERE kind = ? AND name = ?", (kind, name))

    def restore_slice(self, number: int) -> None:
        """See `Transaction.restore_slice`."""
        self._slices.restore(number)
        self._run("UPDATE head SET slice = ?", (number,))

    def restore_topic(self, topic: str, *, offset: int) -> None:
        """See `Transaction.restore_topic`."""
        self._run("INSERT INTO topics VALUES (NULL, ?1, ?2, ?2, 0, 0, ?3, ?3)", (topic, offset, self._clock.now_us()))

    def create_topic(self, topic: str, *, partitions: int | None = None) -> None:
        """See `Transaction.create_topic`."""
        if self._run(_CREATE_TOPIC, (topic, self._clock.now_us())).get is None:
            raise topic_exists(topic)

    def drop_topic(self, topic: str) -> None:
        """See `Transaction.drop_topic`. A large one is pruned first, piece by piece: this is one transaction."""
        known = self._run("SELECT end_offset, last_ts_us FROM topics WHERE name = ?", (topic,)).get
        if known is None or known[1] == DROPPED:
            raise no_such_topic(topic)
        self.prune(topic, int(known[0]))
        self._run("UPDATE topics SET first_ts_us = ?2, last_ts_us = ?2 WHERE name = ?1", (topic, DROPPED))

    def prune(self, topic: str, before_offset: int, *, most: int = -1) -> int:
        """Drop the topic's oldest entries that lie wholly before the offset, at most ``most``; returns their rows."""
        query = """SELECT e.slice, e.seq, e.rows, e.body, e.bytes FROM topics t CROSS JOIN entries e
            INDEXED BY entries_by_offset ON e.topic = t.id
            WHERE t.name = ?1 AND e.offset < ?2 AND e.offset + e.rows <= ?2 ORDER BY e.offset LIMIT ?3"""
        rows = size = entries = 0
        for slice_number, seq, count, body, length in list(self._rows(query, (topic, before_offset, most))):
            self._run("DELETE FROM entries WHERE slice = ? AND seq = ?", (slice_number, seq))
            with unverified(self._writer.connection):  # a damaged body can be let go of
                self._run("DELETE FROM bodies WHERE id = ?", (body,))
            rows, size, entries = rows + count, size + length, entries + 1
            if most > 0 and size >= PRUNED_BYTES:
                break
        if entries:
            self._run(_LEAVE_TOPIC, (topic, rows, size, entries))
            self._run("UPDATE head SET slice = ?", (self._slices.last,))  # the entries may no longer tell it
        return rows

    def finish(self) -> None:
        """Make it durable.

        Raises:
            LogError: also when a statement failed earlier and its error was swallowed inside the block.
        """
        self._writer.last_slice = self._slices.last  # first: an interrupt may follow the commit
        fault("log.before-commit")
        self._run("COMMIT")
        fault("log.after-commit")
        self.end()

    def _store(self, topic: str, records: pa.RecordBatch) -> Iterator[tuple[int, int, int, int, int]]:
        """Write the body, in several when it is too large for one: rows, schema, body, CRC-32 and size of each."""
        schema, form = self._schema(topic, records.schema)
        encoded = form.encode(records)
        if encoded.size > LARGEST_BODY and records.num_rows > 1:
            half = records.num_rows // 2
            yield from self._store(topic, records.slice(0, half))
            yield from self._store(topic, records.slice(half))
            return
        self._run("INSERT INTO bodies (body) VALUES (?)", (encoded,))
        body = self._writer.connection.last_insert_rowid()
        yield records.num_rows, schema, body, zlib.crc32(encoded), encoded.size

    def _schema(self, topic: str, schema: pa.Schema) -> tuple[int, MessageFormat]:
        known = self._writer.schemas.get(topic)
        if known is not None and known[1].schema.equals(schema, check_metadata=True):
            return known
        ipc = schema.serialize().to_pybytes()
        sha256 = hashlib.sha256(ipc).digest()
        number = int(self._run("SELECT id FROM schemas WHERE sha256 = ?", (sha256,)).get or 0)
        if not number:
            self._run("INSERT INTO schemas (sha256, ipc) VALUES (?, ?)", (sha256, ipc))
            number = self._writer.connection.last_insert_rowid()
        known = self._writer.schemas[topic] = (number, MessageFormat(schema))
        return known

    def _enter(self, topic: str, rows: int, schema: int, body: int, crc32: int, size: int, *, complete: bool) -> int:
        """Make a stored body the topic's next entry; returns its offset."""
        place = self._slices.enter()
        now_us = self._clock.now_us()
        number, end = self._run(_ENTER_TOPIC, (topic, rows, size, now_us)).get
        offset = int(end) - rows
        crc32 = seal(crc32, topic, *place, offset, rows, complete, now_us, schema)
        self._run(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*place, number, offset, rows, int(complete), now_us, schema, body, crc32, size),
        )
        return offset

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield a statement's rows, one by one; what is run meanwhile must leave its tables alone."""
        try:
            yield from self._run(sql, bindings)
        except apsw.Error as error:
            self._over = self._writer.translated(error)
            raise self._over from error

    def _run(self, sql: str, bindings: tuple[Any, ...] = ()) -> apsw.Cursor:
        self._check()
        try:
            return self._writer.connection.execute(sql, bindings)
        except apsw.Error as error:
            # SQLite may have undone everything by itself; statements after that would commit one by one.
            self._over = self._writer.translated(error)
            raise self._over from error


def _stored(run: Run, piece: bytes | memoryview) -> bytes:
    digest = hashlib.blake2b(piece, digest_size=_HASH).digest()
    known = run("UPDATE pieces SET uses = uses + 1 WHERE hash = ? RETURNING uses", (digest,)).get
    if known is None:
        run("INSERT INTO bodies (body) VALUES (?)", (bytes(piece),))
        run("INSERT INTO pieces (hash, uses, body) VALUES (?, 1, last_insert_rowid())", (digest,))
    return digest


def _release(run: Run, kind: str, name: str) -> None:
    row: Any = run("SELECT value FROM records WHERE kind = ? AND name = ? AND pieces > 0", (kind, name)).get
    if row is None:
        return
    for digest in _hashes(open_record(kind, name, row)):
        uses, body = run("UPDATE pieces SET uses = uses - 1 WHERE hash = ? RETURNING uses, body", (digest,)).get or (
            1,
            0,
        )
        if uses == 0:
            run("DELETE FROM pieces WHERE hash = ?", (digest,))
            run("DELETE FROM bodies WHERE id = ?", (body,))


def _hashes(content: bytes) -> list[bytes]:
    return [content[at : at + _HASH] for at in range(0, len(content), _HASH)]


def _piece(connection: apsw.Connection, kind: str, name: str, digest: bytes) -> bytes:
    data = connection.execute(
        "SELECT b.body FROM pieces p JOIN bodies b ON b.id = p.body WHERE p.hash = ?", (digest,)
    ).get
    if data is None or hashlib.blake2b(data, digest_size=_HASH).digest() != digest:
        raise LogCorrupt(
            f"a piece of the record {kind} «{name}» is missing or damaged",
            advice="Restore the log's file from a copy.",
        )
    return bytes(data)
