"""Chunks of a table, in the order of its key: each is read in a snapshot of its own, whose transactions are known.

    (last key, end] of the key ──▶ REPEATABLE READ, pg_current_snapshot() ──▶ rows, and what the snapshot saw

The bounds are kept as the text of their values. The server compares them: its order of a key is the only one that there
is. Two connections are kept open: one says what there is and where a chunk ends, the other reads it by COPY.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import psycopg
import pyarrow as pa

from headrace.capture.postgres import catalog
from headrace.capture.postgres.catalog import SqlConnection, Table
from headrace.capture.postgres.chunk_key import Key, Unreadable
from headrace.capture.postgres.decode import Seen
from headrace.capture.postgres.snapshot import Connections, SnapshotStale
from headrace.capture.postgres.snapshot_options import CHUNK_ROWS
from headrace.capture.postgres.snapshot_progress import Ended, Progress, Wanted
from headrace.errors import SourceError
from headrace.faults import fault

if TYPE_CHECKING:
    from headrace.capture.postgres.startup import Declared

_REWRITTEN = """
SELECT oid::regclass::text FROM pg_class WHERE relfilenode <> pg_relation_filenode(oid)
    AND oid IN (SELECT %s::oid UNION SELECT relid FROM pg_partition_tree(%s))
"""
_NOW = 'to_char(now(), \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')'
_INSERT = "INSERT INTO {table} VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"


@dataclass(frozen=True)
class Chunk:
    """Rows of one table, as they were when a snapshot saw them.

    Attributes:
        seen: the transactions that the snapshot saw.
        table: None where there were no more rows in any table.
        batches: the rows, as `headrace.capture.postgres.snapshot.select` gives them.
        ts_us: the server's time of the snapshot.
        identity: columns by which the stream tells the row that an update or delete is about.
        progress: how far the snapshots are when the rows are in the log.
        ended: tables that have no more rows, or cannot be read so.
    """

    seen: Seen
    table: Table | None
    batches: tuple[pa.RecordBatch, ...]
    ts_us: int
    identity: tuple[str, ...]
    progress: Progress
    ended: tuple[Ended, ...] = ()


class ChunkReader:
    """Reads chunks, one after another, from one thread at a time.

    Args:
        declared: the source.
        chunk_rows: rows of a chunk; more where rows share a key that is not unique.
        window: the table into which the rows are inserted that enclose chunks; None: nothing is written.
        end: returns an LSN behind all commits that are visible now, which the stream will pass.
    """

    def __init__(
        self,
        declared: Declared,
        chunk_rows: int,
        window: Callable[[], Table | None],
        end: Callable[[SqlConnection], int],
    ) -> None:
        self._declared, self._chunk_rows, self._window, self._end = declared, chunk_rows, window, end
        self._connections = Connections(declared.server)
        self._held: tuple[Seen, int] | None = None

    def read(self, progress: Progress, tables: Sequence[Table], *, fresh: bool = True) -> Chunk:
        """Return the next chunk of the first table that has one; tables that have none are done.

        Args:
            fresh: in a snapshot of its own; else in that of the chunk before, where it was of a blocking one.

        Raises:
            SourceError: the server is away or refuses; the connections are closed.
        """
        try:
            return self._read(progress, {table.oid: table for table in tables}, fresh=fresh)
        except (psycopg.Error, SourceError):
            self.close()
            with self._declared.server.translated("a chunk of a snapshot"):
                raise

    def _read(self, progress: Progress, tables: dict[int, Table], *, fresh: bool) -> Chunk:
        sql = self._connections.sql()
        if fresh:
            self._let_go(sql)
        if progress.window:
            self._close_window(sql, progress.window)
            progress = replace(progress, window="")
        if progress.running and not progress.queue[0].first and not progress.blocks:
            progress = replace(progress, window=self._open_window(sql))
        found: tuple[Table, tuple[pa.RecordBatch, ...]] | None = None
        ended: list[Ended] = []
        identity: tuple[str, ...] = ()
        seen, ts_us = self._held or self._begin(sql)
        try:
            while progress.running and found is None:
                wanted, table = progress.queue[0], tables.get(progress.queue[0].oid)
                try:
                    if table is None:
                        raise Unreadable("it is not captured any more")
                    progress, found, identity = self._of_table(sql, progress, wanted, table)
                except Unreadable as error:
                    progress = progress.done(str(error))
                ended += progress.ended[-1:] if found is None else []
            if progress.blocks:
                self._held = (seen if seen.until else self._until(seen), ts_us)
        finally:
            if not progress.blocks:
                self._let_go(sql)
        if self._held is not None:
            seen = self._held[0]
        elif not seen.until:
            seen = Seen(seen.text, self._end(sql))
        table, batches = found or (None, ())
        return Chunk(seen, table, batches, ts_us, identity, progress, tuple(ended))

    def _until(self, seen: Seen) -> Seen:
        """Return what a snapshot saw whose transaction stays open, with the LSN behind it."""
        with contextlib.closing(self._declared.server.sql()) as other:
            return Seen(seen.text, self._end(other))

    def _let_go(self, sql: SqlConnection) -> None:
        """End the snapshot."""
        self._held = None
        with contextlib.suppress(psycopg.Error):
            sql.execute("ROLLBACK")

    def _begin(self, sql: SqlConnection) -> tuple[Seen, int]:
        """Begin a snapshot; the LSN behind it is not known yet."""
        sql.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        query = """SELECT pg_export_snapshot(), pg_current_snapshot()::text,
            (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"""
        self._exported, text, ts_us = sql.execute(query).fetchone() or ("", "", 0)
        return Seen(str(text), 0), int(ts_us)

    def _of_table(
        self, sql: SqlConnection, progress: Progress, wanted: Wanted, table: Table
    ) -> tuple[Progress, tuple[Table, tuple[pa.RecordBatch, ...]] | None, tuple[str, ...]]:
        """Return what comes after the next chunk of a table, and the chunk; None where there is none."""
        table = self._looked_up(sql, table)
        key = Key.of(sql, table, wanted)
        maximum = wanted.maximum
        if maximum is None:
            maximum = key.maximum(sql)
            if maximum is None:
                return progress.done(), None, ()
            wanted = replace(wanted, maximum=maximum, estimated=max(0, table.estimated_rows))
            progress = progress.with_first(wanted)
        rows = CHUNK_ROWS if wanted.first else self._chunk_rows
        end = key.end(sql, wanted, rows) or maximum
        batches = self._copied(key.chunk(wanted, end)) if wanted.last != maximum else ()
        rows = sum(batch.num_rows for batch in batches)
        if not rows:
            return progress.done(), None, ()
        fault("chunk.read")
        progress = progress.with_first(replace(wanted, last=end, rows=wanted.rows + rows))
        told = catalog.identities(sql, [table])[table.oid]
        names = [column.name for column in table.columns]
        whole = tuple(names) if not table.key else table.key
        return progress, (table, batches), tuple(n for n in names if n in told) if told else whole

    def _looked_up(self, sql: SqlConnection, table: Table) -> Table:
        """Return the table as the snapshot has it; it cannot be rewritten until the transaction ends."""
        named = catalog.as_named_now(sql, table)
        if named is None:
            raise Unreadable("it was dropped")
        table = named
        try:
            sql.execute(f"LOCK TABLE {table.only_sql} IN ACCESS SHARE MODE".encode())
        except psycopg.errors.UndefinedTable:
            raise SnapshotStale(f"table {table} was renamed, moved or dropped") from None
        if sql.execute(_REWRITTEN, [table.oid, table.oid]).fetchone():
            raise SnapshotStale(f"table {table} was rewritten while a chunk of it was about to be read")
        (found,) = catalog.with_columns(sql, [table], catalog.publication(sql, self._declared.publication))
        return found.with_facts(sql, self._declared.types) if self._declared.debezium is not None else found

    def _copied(self, query: str) -> tuple[pa.RecordBatch, ...]:
        """Return rows by COPY, in the snapshot that the other connection has."""
        reader = self._connections.reader()
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            reader.execute(f"SET TRANSACTION SNAPSHOT '{self._exported}'")
            return tuple(reader.read(query))
        finally:
            with contextlib.suppress(SourceError):
                reader.execute("ROLLBACK")

    def _open_window(self, sql: SqlConnection) -> str:
        """Insert the row that begins a window; return what its end has to say: nothing where none is wanted."""
        table = self._window()
        if table is None:
            return ""
        name, opened = str(uuid.uuid4()), self._now(sql)
        data = json.dumps({"openWindowTimestamp": opened})
        sql.execute(_INSERT.format(table=table.sql).encode(), [f"{name}-open", "snapshot-window-open", data])
        fault("chunk.window-opened")
        return json.dumps([name, opened])

    def _close_window(self, sql: SqlConnection, window: str) -> None:
        table = self._window()
        if table is not None:
            name, opened = json.loads(window)
            data = json.dumps({"openWindowTimestamp": opened, "closeWindowTimestamp": self._now(sql)})
            sql.execute(_INSERT.format(table=table.sql).encode(), [f"{name}-close", "snapshot-window-close", data])
            fault("chunk.window-closed")

    @staticmethod
    def _now(sql: SqlConnection) -> str:
        (now,) = sql.execute(f"SELECT {_NOW}".encode()).fetchone() or ("",)
        return str(now)

    def cancel(self) -> None:
        """End what is being read, with an error. From any thread."""
        self._connections.cancel()

    def close(self) -> None:
        """Close the connections; they are opened again when they are needed."""
        self._held = None
        self._connections.close()
