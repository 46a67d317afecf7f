"""Tables that join a capture that runs: those that were made later, or were given a name that `tables=` matches.

    publication ──▶ wait for who was at work ──▶ snapshot of the table ──▶ its rows, between two transactions ──▶ stream

1. The table is put into the publication: changes that are made from then on will be streamed. What comes of it before
   its snapshot is left out.
2. A transaction that was open then may have changed it before; those changes are not streamed. All such transactions
   are waited for, while the stream goes on.
3. A snapshot is taken. Which transactions it saw is known by their numbers
   (https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT), which the stream names, too:
   of these, changes of the table are left out, wherever they come. All others are streamed after it.
4. The rows are handed out as one transaction that stands behind everything that is in the log, and before everything
   that is not.

Rows of other tables that the snapshot's moment already had come a little later: it lies ahead of the log by as much as
the log is behind the server.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from headrace.batch import Batch
from headrace.capture.base import Piece
from headrace.capture.postgres import catalog, checks, drift, parts
from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.decode import Decoder, Known, Seen
from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.parts import Parts, part_of
from headrace.capture.postgres.slot_binding import SourceRecord
from headrace.capture.postgres.snapshot import Converter, OnProgress, Snapshot, pieces, read_ahead
from headrace.capture.postgres.startup import PATIENCE_S, Declared, Startup
from headrace.capture.postgres.table import topic_of
from headrace.errors import SourceRefused
from headrace.event_log import event
from headrace.faults import fault
from headrace.position import Lsn

logger = logging.getLogger("headrace")

_NUMBERS = 1 << 32
_AT_WORK = """
SELECT pid, application_name, usename, state FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND backend_xid::text::bigint < %s ORDER BY xact_start LIMIT 5
"""


def publish(connection: SqlConnection, publication: str, tables: Sequence[Table], wanted: Parts) -> int:
    """Put tables into a publication, but for those that are in it.

    Returns:
        A transaction's number: those below may have changed the tables without being streamed.
    """
    query = """SELECT r.prrelid::bigint FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = %s"""
    there = {oid for (oid,) in connection.execute(query, [publication])}
    lacking = [table.only_sql + part_of(wanted, table).clause for table in tables if table.oid not in there]
    if lacking:
        connection.execute(f"ALTER PUBLICATION {quote(publication)} ADD TABLE {', '.join(lacking)}".encode())
    fault("join.published")
    return number(connection, "xmax")


def number(connection: SqlConnection, which: str) -> int:
    """Return ``xmin`` or ``xmax`` of a snapshot that is taken now."""
    query = f"SELECT pg_snapshot_{which}(pg_current_snapshot())::text::bigint"
    (found,) = connection.execute(query.encode()).fetchone() or (0,)
    return int(found)


class Join:
    """The snapshot of tables that join, as pieces for the log.

    Args:
        declared: the source.
        at: everything committed before this LSN is in the log, and nothing that was committed later.
    """

    def __init__(self, declared: Declared, tables: Sequence[Table], at: Lsn) -> None:
        self._declared, self._at = declared, at
        server, publication = declared.server, declared.publication
        types = declared.types if declared.debezium is not None else None
        with contextlib.closing(server.sql()) as connection, server.translated("a snapshot"):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            query = "SELECT pg_export_snapshot(), pg_current_snapshot()::text"
            exported, text = connection.execute(query).fetchone() or ("", "")
            self._snapshot = Snapshot(server, exported, tables, publication, types=types)
        try:
            self._look(text)
        except BaseException:
            self.close()
            raise

    def _look(self, text: str) -> None:
        """Read where the server's log ends, all that the snapshot saw being before; and the publication's entries."""
        server = self._declared.server
        self.tables = self._snapshot.tables
        with contextlib.closing(server.sql()) as connection, server.translated("the end of the server's log"):
            lsn = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
            (until,) = connection.execute(lsn).fetchone() or (0,)
            now = drift.look(connection, self._declared.publication, oids=[table.oid for table in self.tables])
        self.seen = Seen(text, int(until))
        labels = ((table.oid, *table.label) for table in self.tables)
        found = now.began(labels, self._declared.parts).tables
        self.captured = tuple(replace(table, seen=text, until=int(until)) for table in found)

    def pieces(self, on_progress: OnProgress) -> Iterator[Piece[Lsn]]:
        """Yield the rows as one transaction, in pieces; the last has the position, and no rows."""
        index, begun = 0, False
        with self._snapshot as snapshot:
            for table in snapshot.tables if self._declared.with_snapshot else ():
                # Behind all rows that are in the log: their commits' records are longer than a byte.
                converter = Converter(table, self._declared.name, lsn=self._at - 1, ts_us=snapshot.ts_us)
                begin = index
                with contextlib.closing(read_ahead(snapshot, table)) as batches:
                    for part in pieces(iter(batches)):
                        batch: list[tuple[str, Batch]] = []
                        letters: list[tuple[str, Batch]] = []
                        for records in part:
                            rows, dead = converter.convert(records, index)
                            index += records.num_rows
                            batch += [(converter.topic, Batch(rows))] if rows.num_rows else []
                            letters += [(f"{converter.topic}.dlq", dead)] if dead is not None else []
                        yield Piece(tuple(batch), tuple(letters), continued=begun, open=True)
                        begun = True
                on_progress(str(table), index - begin, index - begin)
        fault("join.read")
        yield Piece(position=self._at, continued=begun)

    def close(self) -> None:
        """Give the snapshot up."""
        self._snapshot.close()


class Joins:
    """The tables that join a capture: the thread that looks at the catalog prepares them, the one that polls goes on.

    Attributes:
        running: pieces of the tables that join now.
        began: what the capture will have begun with when they are stored; None where none wait for that.
        after: an LSN that the log must have passed before others join.
        waiting: tables are published, and transactions that were at work then are at work still.
    """

    def __init__(self, after: int, on_progress: OnProgress) -> None:
        self.running: Iterator[Piece[Lsn]] | None = None
        self.began: Began | None = None
        self.after = after
        self.waiting = False
        self._limit = 0
        self._said_at = math.inf
        self._lock = threading.Lock()
        self._on_progress = on_progress
        self._published: tuple[Table, ...] = ()
        self._join: Join | None = None
        self._storing = False
        self._refused: set[int] = set()

    @property
    def due(self) -> bool:
        """Return whether tables can join, or join now."""
        return self.pending and not self.waiting and self.began is None

    @property
    def pending(self) -> bool:
        """Return whether tables are published that have not joined."""
        return bool(self._published)

    def prepare(self, connection: SqlConnection, declared: Declared, startup: Startup, decoder: Decoder) -> None:
        """Publish tables that match and are not captured, and see whether they can be read. From any thread.

        Raises:
            psycopg.Error, SourceError: the server cannot be asked, or refuses.
        """
        with self._lock:
            if not self.pending and startup.began is not None:
                new = self._new(connection, declared, startup.began)
                for table in new:
                    decoder.await_join(table.oid)
                if new:
                    self._limit = publish(connection, declared.publication, new, declared.parts)
                    self._published, self.waiting = tuple(new), True
                    self._said_at = time.monotonic() + PATIENCE_S
            if self.waiting:
                self.waiting = number(connection, "xmin") < self._limit
                self._say(connection, declared.name)

    def _say(self, connection: SqlConnection, source: str) -> None:
        """Tell people, once, whom tables wait for."""
        if not self.waiting or self._said_at > time.monotonic():
            return
        self._said_at = math.inf
        rows = connection.execute(_AT_WORK, [self._limit % _NUMBERS]).fetchall()
        who = ", ".join(f"server process {pid} ({name or user}, {state})" for pid, name, user, state in rows)
        names = ", ".join(map(str, self._published))
        text = f"{names}: joins when transactions have ended that were open before: {who or 'nobody is seen'}"
        logger.warning("%s", text, extra=event("tables_wait", source=source))

    def _new(self, connection: SqlConnection, declared: Declared, began: Began) -> list[Table]:
        known = {table.oid for table in began.tables} | self._refused
        meant = declared.meant(connection) - known
        if not meant:
            return []
        found = [table for table in catalog.all_tables(connection) if table.oid in meant]
        found = catalog.with_columns(connection, found, None)
        failing = {}
        if not declared.allow_failing_updates:
            failing = catalog.failing_updates(connection, [table.oid for table in found])
        topics = {topic_of(declared.name, (table.schema, table.name)): str(table) for table in began.tables}
        kept = []
        for table in found:
            why = _refusal(table, failing, topics.get(topic_of(declared.name, table.label)))
            why = why or self._unfit(connection, declared, table)
            if why:
                self._refused.add(table.oid)
                text = f"table {table} matches tables=… and is not captured: {why}"
                logger.warning("%s", text, extra=event("catalog", source=declared.name))
            else:
                kept.append(table)
        return kept

    @staticmethod
    def _unfit(connection: SqlConnection, declared: Declared, table: Table) -> str:
        """Return why a table cannot be published in part as the user wants it; nothing where it can."""
        only = declared.allow_failing_updates and declared.debezium is None
        identities = catalog.identities(connection, [table])
        try:
            parts.check(connection, [table], declared.parts, identities, str(declared.server), only_inserts=only)
        except SourceRefused as error:
            return error.message
        return ""

    def next(self, declared: Declared, startup: Startup, decoder: Decoder, at: Lsn) -> list[Piece[Lsn]]:
        """Return the next piece of the tables that join; none where they have to wait a little longer.

        Args:
            at: everything committed before this LSN is in the log, and nothing else.

        Raises:
            SourceUnavailable: the server is away; `undo` what was handed out.
        """
        if self.running is None:
            join = Join(declared, self._published, at)
            if not all(decoder.may_join(table.oid, join.seen) for table in join.tables):
                join.close()  # a commit is streamed before others see it
                return []
            self._join, self.running = join, join.pieces(self._on_progress)
        piece = next(self.running)
        if piece.position is not None:
            assert self._join is not None and startup.began is not None
            self.running = None
            for table in self._join.tables:
                decoder.join(table.oid, known(table.label, table), self._join.seen)
            self.began = replace(startup.began, tables=(*startup.began.tables, *self._join.captured))
        return [piece]

    def with_tables(self, record: SourceRecord) -> SourceRecord:
        """Return a source's record with the tables that join; it is being stored."""
        assert self._join is not None
        self._storing = True
        names = {*record.tables, *(str(table) for table in self._join.tables)}
        return replace(record, tables=tuple(sorted(names)))

    def stored(self, startup: Startup) -> None:
        """Note that what was being stored is durable."""
        if not self._storing or self._join is None:
            return
        startup.began = self.began
        startup.tables = [*startup.tables, *self._join.tables]
        names = [str(table) for table in self._join.tables]
        have = "it has" if len(names) == 1 else "they have"
        text = f"{', '.join(names)}: captured from now on, with the rows that {have}"
        logger.info("%s", text, extra=event("tables_joined", tables=names))
        self.after = self._join.seen.until
        with self._lock:
            self.began, self._join, self._published, self._storing = None, None, (), False

    def undo(self, decoder: Decoder) -> None:
        """Forget what was handed out of tables and is not stored: they join again."""
        if self._join is None:
            return
        if self.running is not None:
            self.running.close()  # type: ignore[attr-defined]  # it is a generator
        for table in self._join.tables:
            decoder.unjoin(table.oid)
        self.running, self.began, self._join, self._storing = None, None, None, False


def known(label: tuple[str, str], table: Table | None) -> Known:
    """Return what the decoder knows of a table; None of one that was dropped."""
    columns = tuple(column.name for column in table.columns) if table else ()
    return Known(label, table.key if table else None, columns)


def _refusal(table: Table, failing: Mapping[int, str], taken: str | None) -> str:
    """Return why a table cannot join."""
    findings = [*checks.kind(table, ""), *checks.columns(table)]
    if findings:
        return findings[0].message
    if table.missing:
        return f"the role lacks {', '.join(table.missing)} of it"
    if table.partitioned:
        return "it is partitioned; stop the pipeline and have it taken in by headrace capture resync"
    if table.oid in failing:
        return f"{failing[table.oid]}, so the application's own UPDATE and DELETE on it would fail"
    return f"its topic is that of {taken}" if taken else ""
