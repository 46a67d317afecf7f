"""Tables that join a capture that runs: those that were made later, or were given a name that `tables=` matches.

    publication ──▶ wait for who was at work ──▶ snapshot of the table ──▶ its rows, between two transactions ──▶ stream

1. The table is put into the publication: changes that are made from then on will be streamed. What comes of it before
   its snapshot is left out.
2. A transaction that was open then may have changed it before; those changes are not streamed. All such transactions
   are waited for, while the stream goes on.
3. A snapshot is taken. Which transactions it saw is known by their numbers
   (https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT), which the stream names, too:
   of these, changes of the table are left out, wherever they come.
4. The rows are read by a thread, and put aside, while the stream goes on. Changes of the table that it brings are held.
5. The rows, and behind them what was held, are handed out as one transaction that stands behind everything that is in
   the log, and before everything that is not. A truncate is before them where the topic has rows of a former life: of
   a table of the same name that was dropped, or of this one before it left.

Rows of other tables that the snapshot's moment already had come a little later: it lies ahead of the log by as much as
the log is behind the server.
"""

from __future__ import annotations

import contextlib
import logging
import math
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psycopg
import pyarrow as pa

from headrace.batch import Batch
from headrace.capture.base import Log, Piece
from headrace.capture.postgres import catalog, checks, drift, parts
from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.decode import Decoder, Known, Seen
from headrace.capture.postgres.drift import Began, Captured
from headrace.capture.postgres.parts import Parts, part_of
from headrace.capture.postgres.snapshot import Converter, OnProgress, Snapshot, SnapshotStale, pieces
from headrace.capture.postgres.startup import PATIENCE_S, Declared, Startup
from headrace.capture.postgres.table import Events, topic_of, truncates
from headrace.capture.postgres.types import Vectors
from headrace.errors import SourceError, SourceRefused
from headrace.event_log import event
from headrace.faults import fault
from headrace.position import Lsn

logger = logging.getLogger("headrace")

_NUMBERS = 1 << 32
_LOCK_MS = 500  # no longer than this the stream waits for a lock on a table that joins
_AGAIN_S = 1.0
_ASIDE_BYTES = 32 << 20
_HELD_BYTES = 256 << 20
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
    with connection.transaction():
        there = {oid for (oid,) in connection.execute(query, [publication])}
        lacking = [table for table in tables if table.oid not in there]
        if lacking:
            names = ", ".join(table.only_sql for table in lacking)
            listed = ", ".join(table.only_sql + part_of(wanted, table).clause for table in lacking)
            connection.execute(f"ALTER PUBLICATION {quote(publication)} ADD TABLE {listed}".encode())
            # A name may be another table's by now.
            if {oid for (oid,) in connection.execute(query, [publication])} != there | {t.oid for t in lacking}:
                raise psycopg.errors.UndefinedTable(f"one of {names} is another table now")
    fault("join.published")
    return number(connection, "xmax")


def number(connection: SqlConnection, which: str) -> int:
    """Return ``xmin`` or ``xmax`` of a snapshot that is taken now."""
    query = f"SELECT pg_snapshot_{which}(pg_current_snapshot())::text::bigint"
    (found,) = connection.execute(query.encode()).fetchone() or (0,)
    return int(found)


@dataclass(frozen=True, slots=True)
class _Held:
    """Rows of the stream that wait for those of their table's snapshot."""

    topic: str
    batch: Batch


class Join:
    """The snapshot of tables that join, as pieces for the log.

    Args:
        declared: the source.
        again: labels that others had before, or that were theirs.
        on_read: called when all rows are read, by another thread.

    Attributes:
        tables: with their columns as of the snapshot.
        seen: the transactions that it saw.
        size: bytes of the stream's rows that are held.
    """

    def __init__(
        self,
        declared: Declared,
        tables: Sequence[Table],
        again: frozenset[tuple[str, str]],
        on_read: Callable[[], None],
    ) -> None:
        self._declared, self._again, self._on_read = declared, again, on_read
        self._held: list[_Held] = []
        self.size = 0
        server, publication = declared.server, declared.publication
        types = declared.types if declared.debezium is not None else None
        with contextlib.closing(server.sql()) as connection, server.translated("a snapshot"):
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            query = "SELECT pg_export_snapshot(), pg_current_snapshot()::text"
            exported, text = connection.execute(query).fetchone() or ("", "")
            self._snapshot = Snapshot(server, exported, tables, publication, types=types, patience_ms=_LOCK_MS)
        try:
            self._look(text)
        except BaseException:
            self._snapshot.close()
            raise
        self._topics = {table.stream_table(declared.name).topic for table in self.tables}
        self._aside = [(table, Aside(table)) for table in self.tables]
        self._failed: BaseException | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._read, name="headrace-join", daemon=True)

    def _look(self, text: str) -> None:
        """Read where the server's log ends, all that the snapshot saw being before; and the publication's entries."""
        server = self._declared.server
        self.tables = self._snapshot.streamed
        with contextlib.closing(server.sql()) as connection, server.translated("the end of the server's log"):
            until = catalog.insert_lsn(connection)
            now = drift.look(connection, self._declared.publication, oids=[table.oid for table in self.tables])
        self.seen = Seen(text, until)
        labels = ((table.oid, *table.label) for table in self.tables)
        self._found = now.began(labels, self._declared.parts).tables

    def captured(self, at: Lsn) -> tuple[Captured, ...]:
        """Return what the log's record is to have of the tables whose rows stand before an LSN."""
        vectors = {table.oid: table.vectors for table in self.tables}
        return tuple(
            replace(t, seen=self.seen.text, until=self.seen.until, since=at, vectors=vectors[t.oid])
            for t in self._found
        )

    # --- while the stream goes on ---

    def begin(self) -> None:
        """Begin to read."""
        self._thread.start()

    def _read(self) -> None:
        try:
            with self._snapshot as snapshot:
                for table, aside in self._aside if self._declared.with_snapshot else ():
                    with contextlib.closing(aside.writing()) as writing:
                        next(writing)
                        for records in snapshot.read(table):
                            writing.send(records)
                            if self._given_up.is_set():
                                return
        except BaseException as error:
            self._failed = error
        fault("join.aside")
        self._on_read()

    @property
    def read(self) -> bool:
        """Return whether all rows are read.

        Raises:
            SourceError: they cannot be.
        """
        if self._thread.is_alive():
            return False
        if self._failed is not None:
            raise self._failed
        return True

    @property
    def full(self) -> bool:
        """Return whether so much of the stream is held that no more is to be read of it before the rows are."""
        return self.size >= _HELD_BYTES and self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait until all rows are read, or for so long."""
        self._thread.join(seconds)

    def hold(self, piece: Piece[Lsn]) -> Piece[Lsn]:
        """Return a piece of the stream without the rows of tables that join; these are kept."""
        batches = [item for item in piece.batches if item[0] in self._topics]
        letters = [item for item in piece.rejected if item[0].removesuffix(".dlq") in self._topics]
        if not batches and not letters:
            return piece
        held = [_Held(topic, batch) for topic, batch in (*batches, *letters)]
        self._held += held
        self.size += sum(item.batch.records.get_total_buffer_size() for item in held)
        return replace(
            piece,
            batches=tuple(item for item in piece.batches if item not in batches),
            rejected=tuple(item for item in piece.rejected if item not in letters),
        )

    # --- when all is read ---

    def pieces(self, at: Lsn, on_progress: OnProgress) -> Iterator[Piece[Lsn]]:
        """Yield the rows as one transaction, in pieces; the last has the position, and no rows.

        Args:
            at: everything committed before this LSN is in the log, and nothing that was committed later.
        """
        index, begun = 0, False
        # Behind all rows that are in the log: their commits' records are longer than a byte.
        lsn, ts_us = at - 1, self._snapshot.ts_us
        for table, aside in self._aside:
            converter = Converter(table, self._declared.name, lsn=lsn, ts_us=ts_us)
            if table.label in self._again and self._declared.debezium is None:
                yield Piece(
                    ((converter.topic, _truncate(table, self._declared.name, lsn, index, ts_us)),),
                    continued=begun,
                    open=True,
                )
                index, begun = index + 1, True
            begin = index
            for part in pieces(aside.batches()):
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
        for held in self._held:
            item = (held.topic, _renumbered(held.batch, lsn, index))
            index += held.batch.num_rows
            letter = held.topic not in self._topics
            yield Piece(() if letter else (item,), (item,) if letter else (), continued=begun, open=True)
            begun = True
        fault("join.read")
        yield Piece(position=at, continued=begun)

    def close(self) -> None:
        """Give the snapshot up; the thread that reads it closes it."""
        self._given_up.set()
        if not self._thread.ident:
            self._snapshot.close()


class Aside:
    """A table's rows as its snapshot gave them: in memory, or in a temporary file where they are many."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._file = tempfile.SpooledTemporaryFile(max_size=_ASIDE_BYTES)  # noqa: SIM115  # its user closes it
        self._written = False

    def writing(self) -> Generator[None, pa.RecordBatch, None]:
        """Take batches that are sent, until it is closed."""
        writer: pa.RecordBatchStreamWriter | None = None
        try:
            while True:
                records = yield
                if writer is None:
                    options = pa.ipc.IpcWriteOptions(compression="lz4")
                    writer = pa.ipc.new_stream(pa.PythonFile(self._file, "w"), records.schema, options=options)
                    self._written = True
                writer.write_batch(records)
        except OSError as error:
            raise SourceRefused(
                f"rows of table {self._table} cannot be put aside in {tempfile.gettempdir()}: {error}",
                advice="A table that joins lies there until all of it is read; set TMPDIR to a directory with room.",
            ) from error
        finally:
            if writer is not None:
                writer.close()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what was put aside, once, and let it go."""
        with self._file as file:
            if self._written:
                file.seek(0)
                yield from pa.ipc.open_stream(pa.PythonFile(file, "r"))


def _truncate(table: Table, prefix: str, lsn: int, index: int, ts_us: int) -> Batch:
    """Return the event that ends the former life of a topic."""
    place = Events(np.zeros(1, np.int64), np.array([lsn], np.uint64), np.array([index]), np.array([ts_us]))
    return truncates(None, table.stream_table(prefix), place)


def _renumbered(batch: Batch, lsn: int, index: int) -> Batch:
    """Return rows of the stream at another position."""
    records = batch.records
    for name, numbers in (
        ("__lsn", np.full(batch.num_rows, lsn, np.uint64)),
        ("__index", np.arange(index, index + batch.num_rows)),
    ):
        place = records.schema.get_field_index(name)
        records = records.set_column(place, records.schema.field(place), pa.array(numbers))
    return Batch(records)


class Joins:
    """The tables that join a capture: the thread that looks at the catalog prepares them, the one that polls goes on.

    Attributes:
        running: pieces of the tables that join now.
        after: an LSN that the log must have passed before others join.
        waiting: tables are published, and transactions that were at work then are at work still.
        published: OIDs of tables that were put into the publication to join.
    """

    def __init__(self, after: int, on_progress: OnProgress, wake: Callable[[], None]) -> None:
        self.running: Iterator[Piece[Lsn]] | None = None
        self.after = after
        self.waiting = False
        self._limit = 0
        self._said_at = math.inf
        self._lock = threading.Lock()
        self._on_progress, self._wake = on_progress, wake
        self._published: tuple[Table, ...] = ()
        self._join: Join | None = None
        self._joined: tuple[Captured, ...] = ()  # all of it is handed out
        self._storing = False
        self._at = 0
        self._again_at = 0.0
        self._refused: dict[int, str] = {}
        self._unreadable: set[int] = set()
        self._unseen = False
        self.published: frozenset[int] = frozenset()

    @property
    def due(self) -> bool:
        """Return whether tables can join, or join now."""
        return self.pending and not self.waiting and not self._joined

    @property
    def pending(self) -> bool:
        """Return whether tables are published that have not joined."""
        return bool(self._published)

    @property
    def unsettled(self) -> bool:
        """Return whether there are such tables, or may be: nobody looks for others while some join."""
        return self._unseen or self.pending

    @property
    def handed_out(self) -> bool:
        """Return whether all rows of tables that join are handed out: what is stored next has them."""
        return bool(self._joined)

    def prepare(self, connection: SqlConnection, declared: Declared, startup: Startup, decoder: Decoder) -> None:
        """Publish tables that match and are not captured, and see whether they can be read. From any thread.

        Raises:
            psycopg.Error, SourceError: the server cannot be asked, or refuses.
        """
        with self._lock:
            self._unseen = True
            if not self.pending and startup.began is not None:
                new, all_seen = self._new(connection, declared, startup.began, decoder)
                for table in new:
                    decoder.await_join(table.oid)
                self.published |= {table.oid for table in new}
                try:
                    if new:
                        own = declared.own_publication
                        self._limit = publish(connection, declared.publication, new if own else (), declared.parts)
                except psycopg.errors.UndefinedTable:
                    new, all_seen = [], False  # dropped since; the others are seen at the next look
                if new:
                    if {table.label for table in new} & {table.label for table in startup.began.tables}:
                        # Rows of a topic's former life are to be in the log before.
                        self.after = max(self.after, catalog.insert_lsn(connection))
                    self._published, self.waiting = tuple(new), True
                    self._said_at = time.monotonic() + PATIENCE_S
                self._unseen = not all_seen
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

    def _new(
        self, connection: SqlConnection, declared: Declared, began: Began, decoder: Decoder
    ) -> tuple[list[Table], bool]:
        """Return tables that can join, and whether these are all that there are now."""
        meant = declared.meant(connection) - {table.oid for table in began.active} - self._unreadable
        if meant and not declared.own_publication:
            meant = self._published_by_user(connection, declared, meant)
        if not meant:
            return [], True
        existing = catalog.all_tables(connection)
        publication = None if declared.own_publication else catalog.publication(connection, declared.publication)
        found = catalog.with_columns(connection, [table for table in existing if table.oid in meant], publication)
        found = catalog.not_dropped(connection, found)
        vectors, before = declared.vectors(connection), {table.label: table.vectors for table in began.tables}
        # A topic that has texts of vectors goes on with such.
        found = [replace(table, vectors=vectors if before.get(table.label, vectors) else ()) for table in found]
        failing = {}
        if not declared.allow_failing_updates:
            failing = catalog.failing_updates(connection, [table.oid for table in found])
        # One that was dropped since is seen to be so at the next look.
        there = {table.oid for table in existing}
        dropped = {table.label for table in began.active if table.oid not in there}
        kept: list[Table] = []
        refused: dict[int, tuple[str, str]] = {}
        for table in found:
            if table.label in dropped:
                continue
            other = taken(declared.name, began, table.label) or _same_topic(declared.name, kept, table)
            why = _refusal(table, failing, other, by_root=bool(began.options.get("pubviaroot")))
            why = why or self._unfit(connection, declared, table)
            if why:
                refused[table.oid] = str(table), why
                decoder.leave_out(table.oid)
            else:
                self._refused.pop(table.oid, None)
                kept.append(table)
        self._refuse(refused, declared.name)
        return kept, not dropped

    def _published_by_user(
        self, connection: SqlConnection, declared: Declared, meant: frozenset[int]
    ) -> frozenset[int]:
        """Return those of tables that the user's publication sends; the others are said, once."""
        now = drift.look(connection, declared.publication, oids=list(meant))
        published = frozenset(oid for oid in meant if now.publishes(oid))
        why = f"publication «{declared.publication}» does not send it; it joins when it is added"
        lacking = {oid: (str(now.tables.get(oid, f"relation {oid}")), why) for oid in sorted(meant - published)}
        self._refuse(lacking, declared.name)
        return published

    def refuses(self, oid: int) -> bool:
        """Return whether a table cannot join."""
        return oid in self._refused

    def _refuse(self, found: Mapping[int, tuple[str, str]], source: str) -> None:
        """Tell people, once, why tables do not join now: by OID, what each is called and the reason."""
        news = {name: why for oid, (name, why) in found.items() if self._refused.get(oid) != why}
        self._refused.update({oid: why for oid, (_, why) in found.items()})
        for subject, why in checks.by_reason(news):
            text = f"{subject} matches tables=… and is not captured: {why}"
            logger.warning("%s", text, extra=event("catalog", source=source))

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
        if self._join is None:
            if time.monotonic() >= self._again_at:
                self._begin(declared, startup, decoder)
            return []
        if self.running is None:
            if not self._join.read:
                return []
            self._at = at
            self.running = self._join.pieces(at, self._on_progress)
        piece = next(self.running)
        if piece.position is not None:
            self.running = None
            self._joined = self._join.captured(at)
            for table in self._joined:
                decoder.seen[table.oid] = replace(self._join.seen, since=at)
        return [piece]

    def _begin(self, declared: Declared, startup: Startup, decoder: Decoder) -> None:
        """Take the snapshot; none where a table is locked, or where it did not see what was left out."""
        assert startup.began is not None
        again = frozenset(table.label for table in startup.began.tables)
        try:
            join = Join(declared, self._published, again, self._wake)
        except SnapshotStale as error:
            self._again_at = time.monotonic() + _AGAIN_S
            self.give_up(declared, error)
            return
        except SourceRefused as error:
            self.give_up(declared, error)
            return
        if not all(decoder.may_join(table.oid, join.seen) for table in join.tables):
            join.close()  # a commit is streamed before others see it
            return
        for table in join.tables:
            decoder.join(table.oid, known(table.label, table, table.vectors), join.seen)
        self._join = join
        join.begin()

    def give_up(self, declared: Declared, error: SourceError) -> None:
        """Prepare tables again of which one was dropped or renamed; say of those that we may not read that it is so."""
        with contextlib.closing(declared.server.sql()) as connection, declared.server.translated("a catalog query"):
            query = """SELECT c.oid::bigint, n.nspname, c.relname FROM pg_class c
                JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s)"""
            rows = connection.execute(query, [[table.oid for table in self._published]])
            there = {(oid, schema, name) for oid, schema, name in rows}
        same = there == {(table.oid, table.schema, table.name) for table in self._published}
        with self._lock:
            if same and not isinstance(error, SourceRefused):
                return
            tables = self._published if same else ()
            self._unreadable.update(table.oid for table in tables)
            self._refuse({table.oid: (str(table), error.message) for table in tables}, declared.name)
            self._published, self._unseen = (), True

    # --- what the stream brings meanwhile ---

    @property
    def full(self) -> bool:
        """Return whether the stream has to wait for the rows of tables that join."""
        return self._join is not None and self._join.full

    def wait(self, seconds: float) -> None:
        """Wait until rows are read, or for so long."""
        if self._join is not None:
            self._join.wait(seconds)

    def hold(self, pieces_: Sequence[Piece[Lsn]]) -> list[Piece[Lsn]]:
        """Return pieces of the stream without what has to come behind the rows of tables that join."""
        if self._join is None or self._joined:
            return list(pieces_)
        return [self._join.hold(piece) for piece in pieces_]

    # --- what is stored ---

    def with_tables(self, began: Began) -> Began:
        """Return a source's record with the tables that join; it is being stored."""
        self._storing = True
        return began.with_tables(self._joined)

    def stored(self, startup: Startup) -> None:
        """Note that what was being stored is durable."""
        if not self._storing or self._join is None:
            return
        startup.joined(self._join.tables, self._joined)
        names = [str(table) for table in self._join.tables]
        have = "it has" if len(names) == 1 else "they have"
        text = f"{', '.join(names)}: captured from now on, with the rows that {have}"
        logger.info("%s", text, extra=event("tables_joined", tables=names))
        self.after = max(self.after, self._at)
        with self._lock:
            self._joined, self._join, self._published, self._storing = (), None, (), False

    def undo(self, decoder: Decoder) -> None:
        """Forget what was handed out of tables and is not stored: they join again."""
        if self._join is None:
            return
        if self.running is not None:
            self.running.close()  # type: ignore[attr-defined]  # it is a generator
        self._join.close()
        for table in self._join.tables:
            decoder.unjoin(table.oid)
        self.running, self._joined, self._join, self._storing = None, (), None, False

    def close(self) -> None:
        """Read no more."""
        if self._join is not None:
            self._join.close()


def taken(prefix: str, began: Began, label: tuple[str, str]) -> str:
    """Return the table whose topic a new one would have: another name's, or one's that is still captured; else ""."""
    topic = topic_of(prefix, label)
    others = [table for table in began.tables if topic_of(prefix, table.label) == topic]
    return next((str(table) for table in others if table.label != label or not table.left), "")


def _same_topic(prefix: str, kept: Sequence[Table], table: Table) -> str:
    topic = topic_of(prefix, table.label)
    return next((str(other) for other in kept if topic_of(prefix, other.label) == topic), "")


def known(label: tuple[str, str], table: Table | None, vectors: Vectors = ()) -> Known:
    """Return what the decoder knows of a table; None of one that was dropped."""
    columns = tuple(column.name for column in table.columns) if table else ()
    return Known(label, table.key if table else None, columns, vectors)


def known_from(log: Log, prefix: str, label: tuple[str, str], vectors: Vectors = ()) -> Known:
    """Return what a log knows of a table that was dropped, by its newest row."""
    topic = topic_of(prefix, label)
    held = log.topics().get(topic)
    entries = log.read_topic(topic, offset=held.end - 1) if held and held.first < held.end else []
    if not entries:
        return Known(label, vectors=vectors)
    rows = Batch(entries[-1].records)
    return Known(label, rows.key_columns, tuple(rows.column_names), vectors)


def _refusal(table: Table, failing: Mapping[int, str], taken: str, *, by_root: bool) -> str:
    """Return why a table cannot join.

    Args:
        taken: whose topic it would have.
        by_root: the publication sends rows of partitions as their root's.
    """
    findings = [*checks.kind(table, ""), *checks.columns(table)]
    if findings:
        return findings[0].message
    if table.missing:
        return f"the role lacks {', '.join(table.missing)} of it"
    if table.partitioned and not by_root:
        return "it is partitioned; stop the pipeline and have it taken in by headrace capture resync"
    if table.oid in failing:
        return f"{failing[table.oid]}, so the application's own UPDATE and DELETE on it would fail"
    return f"its topic is that of {taken}" if taken else ""
