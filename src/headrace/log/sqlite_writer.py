"""The writing side of the embedded log: its one connection, transactions, and moving the WAL into the file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa

from headrace.clock import Clock
from headrace.errors import LogError, LogLocked
from headrace.faults import fault
from headrace.log.base import checked_slice, no_such_topic, topic_exists
from headrace.log.layout import (
    BUSY_MILLISECONDS,
    DROPPED,
    closed_on_error,
    connect_writer,
    seal,
    translate,
    unverified,
)
from headrace.log.message import MessageFormat
from headrace.log.sqlite_records import delete_record, put_record

CHECKPOINT_PAGES = 2048
RESTART_PAGES = 32768
RESTART_MILLISECONDS = 200
PRUNED_BYTES = 256 << 20  # in one transaction: SQLite walks through every page that it frees
LARGEST_BODY = 256 << 20  # SQLite's own limit is a gigabyte; a reader holds at least one body in memory

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


class SqliteTransaction:
    """A `Transaction` on the writer's connection. After an error nothing more can be done in it."""

    def __init__(self, writer: SqliteWriter) -> None:
        self._writer = writer
        self._clock = writer.clock
        self._last_slice = writer.last_slice
        self._seq = 0
        self._slice_open = False
        self._group: int | None = None
        self._group_open = False
        self._over: LogError | None = None

    def append(self, topic: str, records: pa.RecordBatch, *, complete: bool = True) -> int:
        """See `Transaction.append`."""
        if not records.num_rows:
            return int(self._run("SELECT end_offset FROM topics WHERE name = ?", (topic,)).get or 0)
        parts = [self._enter(topic, *stored, complete=complete) for stored in self._store(topic, records)]
        return parts[0]

    def next_slice(self) -> None:
        """See `Transaction.next_slice`."""
        self._slice_open = self._group_open = False

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
        put_record(self._run, kind, name, value)

    def delete(self, kind: str, name: str) -> None:
        """See `Transaction.delete`."""
        delete_record(self._run, kind, name)

    def restore_slice(self, number: int) -> None:
        """See `Transaction.restore_slice`."""
        self._last_slice, self._seq, self._slice_open = checked_slice(number, self._last_slice), 0, True
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
            self._run("UPDATE head SET slice = ?", (self._last_slice,))  # the entries may no longer tell it
        return rows

    def finish(self) -> None:
        """Make it durable.

        Raises:
            LogError: also when a statement failed earlier and its error was swallowed inside the block.
        """
        self._writer.last_slice = self._last_slice  # first: an interrupt may follow the commit
        fault("log.before-commit")
        self._run("COMMIT")
        fault("log.after-commit")
        self.end()

    def end(self) -> None:
        """Nothing more can be done in this transaction."""
        self._over = self._over or LogError("this log transaction is over", advice="Use it inside its with block.")

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
        if not self._slice_open:
            self._last_slice += 1
            self._seq = 0
            self._slice_open = True
        now_us = self._clock.now_us()
        number, end = self._run(_ENTER_TOPIC, (topic, rows, size, now_us)).get
        offset = int(end) - rows
        crc32 = seal(crc32, topic, self._last_slice, self._seq, offset, rows, complete, now_us, schema)
        self._run(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._last_slice, self._seq, number, offset, rows, int(complete), now_us, schema, body, crc32, size),
        )
        self._seq += 1
        return offset

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        """A statement's rows, one by one; what is run meanwhile must leave its tables alone."""
        try:
            yield from self._run(sql, bindings)
        except apsw.Error as error:
            self._over = self._writer.translated(error)
            raise self._over from error

    def _run(self, sql: str, bindings: tuple[Any, ...] = ()) -> apsw.Cursor:
        if self._over is not None:
            raise self._over
        try:
            return self._writer.connection.execute(sql, bindings)
        except apsw.Error as error:
            # SQLite may have undone everything by itself; statements after that would commit one by one.
            self._over = self._writer.translated(error)
            raise self._over from error


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
        self._lock = threading.Lock()
        self._current: SqliteTransaction | None = None
        self._thread = 0
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
        return self._current if self._thread == threading.get_ident() else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[SqliteTransaction]:
        """See `Log.transaction`."""
        if self.current is not None:
            raise LogError("a log transaction is already open in this thread", advice="Use that one.")
        with self._lock:
            transaction = self._begin()
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                self.schemas.clear()
                self._undo()
                raise
            finally:
                transaction.end()
                self._current, self._thread = None, 0
            self._checkpoint()

    def close(self) -> None:
        """Move the WAL into the file and let go of it. Calling it twice is harmless."""
        with self._lock:
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
        """What SQLite's error means for this log."""
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
        self._current = SqliteTransaction(self)
        self._thread = threading.get_ident()
        return self._current

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
