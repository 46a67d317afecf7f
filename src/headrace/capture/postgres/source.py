"""A PostgreSQL database as a source: check, snapshot once, then stream, resuming where the log ends.

One record in the log ties it to a replication slot (`slot_binding`). An LSN is acknowledged to
the server only after the log holds everything committed before it, durably.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import psycopg

from headrace.batch import OPS
from headrace.capture.base import (
    KIND,
    Log,
    Measurement,
    Piece,
    SourceState,
    SourceStatus,
    SourceTraits,
    Transaction,
    Waker,
)
from headrace.capture.postgres import catalog, checks, drift, slot_binding, startup
from headrace.capture.postgres.carried_values import CarriedValues
from headrace.capture.postgres.catalog import SqlConnection
from headrace.capture.postgres.client import CommandError, Replication, Server
from headrace.capture.postgres.decode import (
    Decoder,
    HistoryDiffers,
    Known,
    NeedsTextMode,
    Resent,
    Seen,
    Stranger,
    UnknownRelation,
)
from headrace.capture.postgres.drift import Began, Captured
from headrace.capture.postgres.facts import table_facts
from headrace.capture.postgres.gaps import OnGap, whole_since
from headrace.capture.postgres.heartbeats import HeartbeatOptions, Heartbeats
from headrace.capture.postgres.incremental import IncrementalSnapshots, Reply
from headrace.capture.postgres.joins import Joins, known, known_from, taken
from headrace.capture.postgres.logical_messages import LogicalMessages
from headrace.capture.postgres.messages import Frame, Relation
from headrace.capture.postgres.parts import Parts
from headrace.capture.postgres.receiver import Receiver
from headrace.capture.postgres.reconnect import ReconnectingStream
from headrace.capture.postgres.resync import Acceptance, Resync
from headrace.capture.postgres.slot_binding import SourceRecord, Stranded
from headrace.capture.postgres.snapshot import OnProgress
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.capture.postgres.startup import Declared, Startup, WaitReporter
from headrace.capture.postgres.stream import ReplicationStream, Wake
from headrace.capture.postgres.table import topic_of
from headrace.capture.postgres.unsent import Reselect
from headrace.capture.postgres.wire import WireStream
from headrace.clock import Clock, SystemClock
from headrace.errors import SourceError, SourceRefused, SourceUnavailable
from headrace.event_log import event
from headrace.faults import fault
from headrace.position import Lsn, parse_lsn

logger = logging.getLogger("headrace")

_ACKNOWLEDGE_S = 0.1  # status updates are sent no more often
_ASK_S = 1.0  # the server is asked for a keepalive at least so often
_ASK_AGAIN_S = 0.005  # while somebody waits for progress
_IDLE_S = 1.0  # what only other tables wrote is acknowledged so often,
_IDLE_BYTES = 16 << 20  # or when it is so much
_LATE_BYTES = 1 << 20  # so much WAL may be of other tables, or of no table at all, between two keepalives
_LOOK_S = 3.0  # so often it is looked whether the catalog is as it was
_IN_USE = "55006"  # SQLSTATE object_in_use


_NO_HEARTBEAT = HeartbeatOptions()


def _silent(_table: str, _rows: int, _estimated: int) -> None:
    """Report no progress."""


class PostgresSource:
    """Captures the tables of one database into one log: a `headrace.capture.base.Source` whose positions are LSNs.

    `check` comes before `start`, and says what cannot be captured before anything is written.

    Args:
        dsn: connection string; the role needs REPLICATION and, for the snapshot, SELECT.
        app: the application's name; slot and publication are called ``headrace_<app>`` (and ``_<prefix>``).
        prefix: first part of the topics' names, and this source's name.
        tables: regular expressions of which one matches the whole of ``schema.table``, whatever the case.
        slot, publication: names in place of the derived ones; a slot named so that is there already needs
            ``snapshot="never"``.
        snapshot: whether a new log begins with the rows that are there already.
        first_tables: tables (``schema.table``) that models learn from, read first in the snapshot.
        place: where the log is; says to others whose the slot is.
        take_over: take a slot that belongs to another log; without it that is refused.
        allow_failing_updates: capture tables whose UPDATE and DELETE the server then refuses, as they have no usable
            replica identity; without it that is refused where the publication is ours.
        debezium: properties of Debezium's connector by which its events are to be written from the log; they are
            kept in it. None: the log need not hold what such events say beside the rows.
        makes_publication: make the publication where it is not there; without it that is refused.
        messages: regular expressions of which one matches the whole prefix, whatever the case, of what
            `pg_logical_emit_message` writes and is captured, into the topic ``<prefix>.message``.
        heartbeat: rows that say that the capture is there, and a query that the database runs as often.
        failover: make the slot so that standbys keep it too, and the capture goes on when one is promoted
            (PostgreSQL 17); a slot that is there becomes one.
        reselects: patterns of ``schema.table:column``, whatever the case: values that are read again where an update
            did not send them. ``carries``: they are carried forward from the log instead.
        on_gap: what to do where the slot has lost rows that the log does not have: ``"fail"``; ``"snapshot"``, read the
            tables anew and append what differs; ``"accept"``, go on without them.
        snapshots: how rows are read that are there already, and who may ask for them.
        max_open_rows: rows of an unfinished transaction beyond which it is handed out in pieces.
        on_progress: called with table, rows until now, rows estimated: for each table before a snapshot begins, in the
            order in which they are read, for the first once more, and after each piece.

    Attributes:
        name: the prefix.
        traits: with the tables, their schemas and what the user should know of them, after `check`.
    """

    def __init__(
        self,
        dsn: str,
        *,
        app: str,
        prefix: str,
        tables: Sequence[str],
        slot: str | None = None,
        publication: str | None = None,
        snapshot: Literal["initial", "never"] = "initial",
        first_tables: Sequence[str] = (),
        place: str = slot_binding.MEMORY,
        take_over: bool = False,
        allow_failing_updates: bool = False,
        debezium: Mapping[str, str] | None = None,
        makes_publication: bool = True,
        messages: Sequence[str] = (),
        heartbeat: HeartbeatOptions = _NO_HEARTBEAT,
        failover: bool = False,
        reselects: Sequence[str] = (),
        carries: bool = False,
        on_gap: OnGap = "fail",
        snapshots: SnapshotOptions | None = None,
        parts: Parts | None = None,
        max_open_rows: int = 65_536,
        on_progress: OnProgress = _silent,
        clock: Clock | None = None,
    ) -> None:
        self.name = prefix
        self.traits: SourceTraits[Lsn] = SourceTraits(
            parse_position=Lsn.parse,
            measure=self.measure,
            measure_lag=self.measure_lag,
            want_snapshot=self.want_snapshot,
        )
        derived = slot_binding.derived_name(app, prefix)
        server = Server(dsn, f"headrace {app}")
        self._reporter = WaitReporter(server, lambda: "" if self._startup.reading else f"{prefix}: {self.status}")
        self._declared = Declared(
            server=dataclasses.replace(server, connected=self._reporter.connected),
            name=prefix,
            patterns=tuple(tables),
            slot=slot or derived,
            own_slot=slot is None,
            publication=publication or derived,
            own_publication=publication is None,
            with_snapshot=snapshot == "initial",
            first_tables=tuple(first_tables),
            app=app,
            place=slot_binding.where(place),
            take_over=take_over,
            allow_failing_updates=allow_failing_updates,
            debezium=debezium,
            makes_publication=makes_publication,
            failover=failover,
            snapshots=snapshots or SnapshotOptions(),
            parts=parts or {},
        )
        self._on_gap = on_gap
        self._reselects = tuple(reselects)
        self._reselect: Reselect | None = None
        self._carries = carries
        self._carried: CarriedValues | None = None
        self._since: dict[str, int] = {}
        self._since_of: Began | None = None
        self._read_rows: dict[str, int] = {}

        def noted(table: str, rows: int, estimated: int) -> None:
            self._read_rows[table] = rows
            on_progress(table, rows, estimated)

        self._on_progress = noted
        self._startup = Startup(self._declared, self._on_progress)
        self._max_open_rows = max_open_rows
        self._messages = _logical_messages(prefix, tuple(messages), described=debezium is not None)
        self._clock = clock or SystemClock()
        self._heartbeats = Heartbeats(prefix, heartbeat, server, self._clock)
        self._wake = Wake()
        self._joins = Joins(0, self._on_progress, self._wake.set)
        self._began_stored: Began | None = None
        self._began_storing: Began | None = None
        self._snapshots = self._incremental()
        self._connection = ReconnectingStream(self._declared.server, self._wake, self._attach, self._clock)
        self._decoder = Decoder(prefix)
        self._know_nothing()

    def _know_nothing(self) -> None:
        """Be as a source is before it begins."""
        self._record: SourceRecord | None = None
        self._head = b""
        self._last: tuple[int, int] | None = None
        self._storing_last: tuple[int, int] | None = None
        self._rows_at: list[tuple[int, int]] = []
        self._refused: SourceRefused | None = None
        self._said: set[str] = set()
        self._ending = threading.Event()
        self._look_now = threading.Event()
        self._watching: threading.Thread | None = None
        self._binary = True
        self._open = False
        self._polled = self._storing = self._stored = self._sent = 0
        self._received = Lsn(0)
        self._sent_at = self._asked_at = self._stored_at = 0.0
        self._wanted = 0
        self._short_of: Lsn | None = None
        self._looked = False
        self._newest_us = 0
        self._sql: SqlConnection | None = None
        self._sql_lock = threading.Lock()

    def _incremental(self) -> IncrementalSnapshots:
        return IncrementalSnapshots(
            self._declared,
            self._declared.snapshots,
            tables=lambda: self._startup.tables,
            end=self._beyond_joins,
            wake=self._wake.set,
        )

    # --- before anything runs ---

    def check(self, log: Log) -> None:
        """See that the capture can begin, or go on where this log ends. Writes nothing.

        Raises:
            SourceUnavailable: the server cannot be reached.
            SourceRefused: it cannot be captured as it stands, or slot and log do not belong together any more.
        """
        with self._reporter, self._telling():
            self._check(log)
        tables, failing = self._startup.tables, self._startup.failing
        unlogged = self._startup.unlogged
        described = [(table, table.stream_table(self.name)) for table in (*tables, *unlogged)]
        self.traits = dataclasses.replace(
            self.traits,
            tables={stream.topic: table.declared(stream.schema()) for table, stream in described}
            | ({} if self._messages is None else {self._messages.topic: self._messages.schema})
            | ({self._heartbeats.topic: self._heartbeats.schema} if self._heartbeats.topic else {}),
            warnings=(
                *_failing({str(t): failing[t.oid] for t in tables if t.oid in failing}, self._declared.publication),
                *checks.unlogged(unlogged, str(self._declared.server)),
            ),
        )

    def _check(self, log: Log) -> None:
        """Check the start, or that which goes on behind a gap as it was declared."""
        self._startup = Startup(self._declared, self._on_progress)
        try:
            self._startup.check(log)
        except Stranded as error:
            known = SourceRecord.load(log, self.name)
            if known is None or not self._passes(error):
                raise
            gap, reason = error.gap or known.gap(), error.message
        else:
            return
        text = f"{self.name}: {reason}"
        if self._on_gap == "snapshot":
            place = self._declared.place
            directory = None if "://" in place else Path(place).parent
            self._startup = Resync(
                self._declared,
                known,
                self._on_progress,
                gap=(gap, reason),
                force=True,
                directory=directory,
                quiet=True,
            )
            text += ". The tables are read anew, and what differs is appended (on_gap=snapshot)"
        else:
            self._startup = Acceptance(self._declared, known, self._on_progress, gap=(gap, reason))
            text += ". The capture goes on without it (on_gap=accept), and the log says so"
        self._startup.check(log)
        self._startup.resumes = True
        logger.warning("%s", text, extra=event("gap", source=self.name, on_gap=self._on_gap))

    def _passes(self, error: Stranded) -> bool:
        """Return whether a start goes on behind what an error says, as it was declared.

        What an altered publication left out is not known from positions: only tables that are read anew have it.
        """
        return error.plain if self._on_gap == "snapshot" else self._on_gap == "accept" and error.gap is not None

    def identities(self) -> dict[str, frozenset[str] | None]:
        """Return by topic the columns that the stream says of an old row that was updated or deleted; None: all."""
        found = self._startup.identities
        return {t.stream_table(self.name).topic: found.get(t.oid, frozenset()) for t in self._startup.tables}

    @property
    def resumes(self) -> bool:
        """Return whether the log has rows of this source already, after `check`."""
        return self._startup.resumes

    @property
    def declared(self) -> Declared:
        """Return the source as it was declared."""
        return self._declared

    @property
    def captured(self) -> dict[tuple[str, str], str]:
        """Return the tables captured, as of `check`: schema and name, and the topic."""
        tables = (*self._startup.tables, *self._startup.unlogged)
        return {(t.schema, t.name): t.stream_table(self.name).topic for t in tables}

    def leave_out(self, schema: str, name: str) -> None:
        """Do not capture a table though it matches: this pipeline's own sink writes it. From any thread."""
        self._declared.left_out.add((schema, name))

    @contextlib.contextmanager
    def marked(self) -> Iterator[int]:
        """Yield the number of an advisory lock that a connection of ours holds: others who see it are in this database.

        Raises:
            SourceUnavailable, SourceRefused: the server cannot be asked.
        """
        number = secrets.randbits(62)
        server = self._declared.server
        with contextlib.closing(server.sql()) as connection, server.translated("an advisory lock"):
            connection.execute("SELECT pg_advisory_lock(%s)", [number])
            yield number

    # --- start ---

    def start(self, log: Log, waker: Waker | None = None) -> None:
        """Make publication and slot, take the snapshot when the log has none, and begin to stream.

        Can be called again after `SourceUnavailable`. What takes longer than a few seconds, apart from the snapshot
        itself, is said on standard error, with whom it waits for.

        Raises:
            SourceUnavailable, SourceRefused: as `check`; also when the slot stays in use for 30 s.
        """
        waker = waker or Waker()
        waker.on_wake(self._wake.set)
        with self._reporter, self._telling():
            self._start(log, lambda: waker.interrupted)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Name the log where a refusal names a command for it."""
        try:
            yield
        except Stranded as error:
            error.at(self._declared.place)
            raise

    def _start(self, log: Log, cancelled: Callable[[], bool]) -> None:
        resumed = SourceRecord.load(log, self.name) is not None
        known = self._startup.open(log, cancelled)
        self._set_record(known)
        # From here on our connections are called by the log, so that another one sees whose the slot is.
        server = dataclasses.replace(self._declared.server, application=self._startup.owner.application)
        self._declared = dataclasses.replace(self._declared, server=server)
        self._connection = ReconnectingStream(server, self._wake, self._attach, self._clock)
        self._snapshots = self._incremental()
        if self._reselects:
            self._reselect = Reselect(
                server, known.publication, self.name, lambda: self._startup.tables, self._reselects, self._say
            )
        if self._carries:
            self._carried = CarriedValues(log, whole_since(log, self.name), self._captured_since)
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            self._snapshots.load(log, connection, at=known.acknowledged)
        if resumed and self._declared.snapshots.always:
            self._snapshots.again()
        assert self._startup.began is not None
        self._began_stored = self._startup.began
        joined = [table for table in self._startup.began.tables if table.seen is not None]
        self._decoder = Decoder(
            self.name,
            known=self._known_tables(log),
            seen={table.oid: Seen(table.seen or "", table.until, table.since) for table in joined},
            meet=self._meet,
            describe=self._describe if self._declared.debezium is not None else None,
            messages=self._messages,
            tells_changes=self._declared.debezium is not None,
            listener=self._snapshots.streamed,
            skip_below=known.acknowledged,
            max_open_rows=self._max_open_rows,
        )
        for oid in self._startup.coming:
            self._decoder.await_join(oid)
        self._joins = Joins(
            max([known.consistent_point, *(table.since or table.until for table in joined)]),
            self._on_progress,
            self._wake.set,
        )
        self._binary = all(table.binary for table in self._startup.tables)
        if not self._declared.snapshots.streams:
            self._startup.done()
            self._looked = True
            return
        self._connect(cancelled)
        self._watching = threading.Thread(target=self._watch, name="headrace-catalog", daemon=True)
        self._watching.start()
        self._heartbeats.start()
        self._snapshots.listen()

    def _set_record(self, known: SourceRecord) -> None:
        self._record = known
        self._head = known.head()
        self._last = self._storing_last = known.last
        self._polled = self._storing = self._stored = self._sent = known.acknowledged
        self._received = Lsn(known.acknowledged)

    def _known_tables(self, log: Log) -> dict[int, Known]:
        """Return all tables that the log has, those too that were dropped: rows of them may still come.

        The catalog has no key of those any more; the log has it with their newest rows.
        """
        assert self._startup.began is not None
        tables = {table.oid: table for table in self._startup.tables}
        found = {}
        for captured in self._startup.began.tables:
            if captured.left != drift.NARROWED:
                table, label, vectors = tables.get(captured.oid), captured.label, captured.vectors
                found[captured.oid] = (
                    known(label, table, vectors) if table else known_from(log, self.name, label, vectors)
                )
        return found

    def _meet(self, relation: Relation, lsn: int) -> Known | Stranger:
        """Say what to do with a table that the log does not have, whose rows come."""
        declared, began = self._declared, self._startup.began
        assert began is not None
        name = (relation.schema, relation.table)
        if any(table.oid == relation.oid and table.left == drift.NARROWED for table in began.tables):
            return Stranger.LEFT_OUT
        wanted = name not in declared.left_out and catalog.matches(".".join(name), declared.patterns)
        if not wanted and declared.own_publication and not began.options.get("puballtables"):
            with self._sql_lock, declared.server.translated("a catalog query"):
                there = catalog.is_there(self._connected(), relation.oid)
            return Stranger.REFUSED if there else Stranger.LEFT_OUT
        if not wanted or catalog.is_ours(*name):
            return Stranger.LEFT_OUT
        if declared.debezium is None:
            return Stranger.LEFT_OUT if self._joins.refuses(relation.oid) else Stranger.AWAITED
        return self._take_up(relation, lsn)

    def _see_dropped(self, label: tuple[str, str]) -> None:
        """Note that the table of a topic was dropped, where that is so and nobody has looked since."""
        assert self._startup.began is not None
        had = [table.oid for table in self._startup.began.active if table.label == label]
        with self._sql_lock, self._declared.server.translated("a catalog query"):
            gone = [oid for oid in had if not catalog.is_there(self._connected(), oid)]
        if gone:
            self._startup.leave(dict.fromkeys(gone, drift.DROPPED), {})

    def _take_up(self, relation: Relation, lsn: int) -> Known | Stranger:
        """Capture a table from a commit on, as Debezium does: without the rows that it had."""
        assert self._startup.began is not None
        label = (relation.schema, relation.table)
        self._see_dropped(label)
        if other := taken(self.name, self._startup.began, label):
            self._say(f"table {'.'.join(label)} is not captured: its topic is that of {other}")
            return Stranger.LEFT_OUT
        with self._sql_lock, self._declared.server.translated("a catalog query"):
            tables = catalog.all_tables(self._connected(), relation.oid)
        captured = Captured(relation.oid, *label, 0, None, None, seen="", since=lsn)
        self._startup.joined(tables, (captured,))
        logger.info("%s: captured from now on", ".".join(label), extra=event("tables_joined", tables=[".".join(label)]))
        return known(label, tables[0] if tables else None)

    def _describe(self, relation: Relation) -> str:
        """Return what the catalog says of a table now.

        Raises:
            SourceUnavailable: it cannot be asked; the Relation message comes again with the next connection.
        """
        with self._sql_lock, self._declared.server.translated("a catalog query"):
            return table_facts(self._connected(), relation, self._declared.types)

    def _connect(self, cancelled: Callable[[], bool]) -> None:
        """Stream now, or say why not: at the start a server that is away is an error."""
        with contextlib.ExitStack() as stack:
            self._startup.doing = f"starting the stream of slot «{self._declared.slot}»"
            replication = Replication.open(self._declared.server, cancelled=cancelled)
            stack.callback(replication.close)
            self._connection.begin(replication)
            stack.pop_all()
        self._startup.done()

    def _attach(self, replication: Replication) -> Receiver:
        """Check that this is still our server and slot, then start the stream where the log ends."""
        assert self._record is not None
        replication.set_up()
        known = dataclasses.replace(self._record, acknowledged=self._stored, last=self._last)
        known = startup.followed(replication, known, self._startup.began)
        if known.identity != self._record.identity:
            self._set_record(known)
            self._say(f"{self._declared.server} is a promoted standby ({known.identity}): the capture goes on")
        server = self._declared.server
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            slot = catalog.replication_slot(connection, known.slot)
            slot_binding.check_slot(known, slot)
            slot_binding.check_position(known, catalog.insert_lsn(connection))
            self._check_catalog(connection)
        since = self._sent = slot.confirmed_flush if slot else known.acknowledged
        self._decoder.resume(self._stored, Resent(since, self._stored, self._last) if self._last is not None else None)
        try:
            way = WireStream if replication.plain else ReplicationStream
            stream = way.start(
                replication,
                slot=known.slot,
                # From where the slot stands: what the server sends again says whether it is the server that it was.
                lsn=since,
                publication=known.publication,
                binary=self._binary,
                messages=self._messages is not None,
            )
        except CommandError as error:
            if error.code == _IN_USE:
                raise SourceUnavailable(error.message) from error
            raise
        return Receiver(stream, self._wake)

    # --- while it runs ---

    def poll(self, timeout: float) -> list[Piece[Lsn]]:
        """Return what has been committed; see `headrace.capture.base.Source.poll`.

        Raises:
            SourceRefused: the server will not go on (slot gone or invalidated, another server).
            DecodeError: what came cannot be understood.
        """
        with self._telling():
            try:
                return self._poll(timeout)
            except Stranded as error:
                if self._passes(error):
                    # A start goes on behind it as it was declared: whoever supervises the process begins one.
                    error.exit_code = 1
                raise

    def _poll(self, timeout: float) -> list[Piece[Lsn]]:
        if not self._declared.snapshots.streams:
            self._wake.wait(timeout)
            self._wake.clear()
            return []
        if self._refused is not None:
            raise self._refused
        self._send_due()
        if self._joins.due and not self._snapshots.holds and (pieces := self._join()):
            return pieces
        if self._joins.full:
            self._joins.wait(min(timeout, self._until_due()))
            return []
        if self._snapshots.due and (pieces := self._read()):
            return pieces
        if self._snapshots.holds and self._connection.stream is not None:
            self._wake.wait(min(timeout, self._until_due()))
            self._wake.clear()
            return []
        frame = self._connection.read(min(timeout, self._until_due()) if self._connection.stream else timeout)
        if self._connection.lost:
            return self._rewind()
        try:
            pieces = self._decode(frame) if frame is not None else []
            pieces = pieces if self._reselect is None else self._reselect.fill(pieces)
            if self._connection.stream is not None:
                self._decoder.passed(self._connection.stream.wal_end)
        except SourceUnavailable as error:
            self._connection.drop(error.message)
            return self._rewind()
        except NeedsTextMode as error:
            self._binary = False
            self._connection.drop(error.message, at_once=True)
            return self._rewind()
        except HistoryDiffers as error:
            assert self._record is not None
            raise slot_binding.restored(self._record, error.message, force=True) from error
        pieces = self._with_values(self._joins.hold(pieces))
        self._note_received(pieces)
        return self._beat(pieces) or self._idle()

    def _decode(self, frame: Frame) -> list[Piece[Lsn]]:
        try:
            return self._decoder.feed(frame)
        except UnknownRelation as error:
            raise Stranded(
                f"{error.message}: publication «{self._declared.publication}» got it behind the capture's back, "
                "or it was given a name that tables=… matches; its earlier rows would never arrive",
                declared=True,
                force=True,
            ) from error

    def _join(self) -> list[Piece[Lsn]]:
        """Return the next rows of tables that join; none where they cannot join now."""
        if self._joins.running is None and (
            self._connection.stream is None
            or self._open
            or self._polled > self._stored
            or self._stored <= max(self._joins.after, self._snapshots.at)
        ):
            return []
        try:
            pieces = self._joins.next(self._declared, self._startup, self._decoder, Lsn(self._stored))
        except SourceError as error:
            self._joins.undo(self._decoder)
            if isinstance(error, SourceRefused):  # the others go on
                self._joins.give_up(self._declared, error)
            self._connection.drop(error.message)
            return self._rewind()
        pieces = self._with_values(pieces)
        self._note_received(pieces, joins=True)
        return pieces

    def _read(self) -> list[Piece[Lsn]]:
        """Return rows of an incremental snapshot; none where they have to wait."""
        joining = self._joins.running is not None or self._joins.handed_out
        if self._connection.stream is None or self._open or joining or self._polled > self._stored:
            return []
        pieces = self._with_values(self._snapshots.next(Lsn(max(self._received, self._stored)), self._joins.after))
        self._wanted = max(self._wanted, self._snapshots.until)
        self._note_received(pieces)
        return pieces

    def _with_values(self, pieces: list[Piece[Lsn]]) -> list[Piece[Lsn]]:
        """Return what is handed out next with the values that are carried forward."""
        return pieces if self._carried is None else self._carried.fill(pieces)

    def _captured_since(self) -> dict[str, int]:
        """Return by topic the LSN before which its rows are not those of the table that it has now."""
        began = self._startup.began
        assert began is not None
        if self._since_of is not began:
            # The rows that a table had when it joined stand right before the LSN at which it did.
            joined = {table.label: table.since - 1 for table in began.active if table.since}
            self._since = {topic_of(self.name, label): lsn for label, lsn in joined.items()}
            self._since_of = began
        return self._since

    def _rewind(self) -> list[Piece[Lsn]]:
        self._joins.undo(self._decoder)
        self._snapshots.undo()
        if self._carried is not None:
            self._carried.rewound(self._stored)
        self._connection.lost = False
        self._decoder.reset()
        self._open = False
        self._rows_at = []
        self._polled = self._stored
        self._received = Lsn(self._stored)
        return [Piece(rewound=True)]

    def _note_received(self, pieces: Sequence[Piece[Lsn]], *, joins: bool = False) -> None:
        """Note how far pieces reach; rows of tables that join are no transaction's that the server will send again."""
        if pieces:
            self._open = pieces[-1].open
            if pieces[-1].batches:
                self._newest_us = int(pieces[-1].batches[-1][1].ts_us[-1])
            messages = None if self._messages is None else self._messages.topic
            self._rows_at += [at for piece in pieces if (at := _last_row(piece, messages)) is not None and not joins]
        for piece in pieces:
            if piece.position is not None:
                self._received = max(self._received, piece.position)
                # What has no rows need not be stored by whoever got it: `_idle` hands it out again.
                self._polled = self._polled if piece.idle else max(self._polled, piece.position)
        if self._connection.stream is not None:
            self._received = Lsn(max(self._received, self._connection.stream.wal_end))

    def _beat(self, pieces: list[Piece[Lsn]]) -> list[Piece[Lsn]]:
        """Return the pieces with a heartbeat behind them, when one is due and no transaction is open."""
        if self._heartbeats.until_due() > 0 or self._open or self._connection.stream is None:
            return pieces
        self._polled = max(self._polled, self._received)
        return [*pieces, self._heartbeats.piece(self._received)]

    def _idle(self) -> list[Piece[Lsn]]:
        """Return a position to store although nothing was captured: without it other tables' changes would pile up WAL.

        Nothing unless everything polled is stored, no transaction is open, and a second or 16 MB have passed.
        """
        if self._connection.stream is None or self._open or self._polled > self._stored:
            return []
        behind = self._received - self._stored
        long_ago = self._joins.due or self._clock.monotonic() - self._stored_at >= _IDLE_S
        return [Piece(position=self._received)] if behind > 0 and (long_ago or behind >= _IDLE_BYTES) else []

    def _until_due(self) -> float:
        """Return seconds until a status update has to be sent."""
        due = self._sent_at + _ACKNOWLEDGE_S if self._stored > self._sent else self._asked_at + _ASK_S
        if self._received < self._wanted:
            due = min(due, self._asked_at + _ASK_AGAIN_S)
        return min(max(0.0, due - self._clock.monotonic()), self._heartbeats.until_due())

    def _send_due(self) -> None:
        if self._connection.stream is None:
            return
        now = self._clock.monotonic()
        wanted = self._received < self._wanted and now >= self._asked_at + _ASK_AGAIN_S
        if wanted or now >= self._asked_at + _ASK_S:
            self._send(now, ask=True)
        elif self._stored > self._sent and now >= self._sent_at + _ACKNOWLEDGE_S:
            self._send(now)

    def _send(self, now: float, *, ask: bool = False) -> None:
        """Send a standby status update: the server learns what is stored."""
        resent = self._decoder.resent
        # The slot stays where it is until the server has proved to be the one that it was.
        received, flushed = (resent.since, resent.since) if resent else (self._received, self._stored)
        news = flushed > self._sent
        if news:
            fault("source.before-acknowledge")
        if ask:
            self._asked_at = now
        if self._connection.send_status(received=received, flushed=flushed, ask=ask):
            self._sent, self._sent_at = flushed, now
            if news:
                fault("source.after-acknowledge")

    def store(self, txn: Transaction, position: Lsn) -> None:
        """Put the source's record into the transaction that appends everything committed before an LSN."""
        ended = [self._last or (0, 0), *(at for at in self._rows_at if at[0] < position)]
        self._storing_last = max(ended) if self._last is not None or len(ended) > 1 else None
        began = self._startup.began
        assert began is not None
        if self._joins.handed_out:
            began = self._joins.with_tables(began)
        if began is not self._began_stored:
            assert self._record is not None
            self._record = dataclasses.replace(self._record, tables=began.names)
            self._head = self._record.head()
            txn.put(drift.KIND, self.name, began.to_json())
        self._began_storing = began
        self._snapshots.store(txn)
        txn.put(KIND, self.name, self._head + SourceRecord.rest(position, self._storing_last))
        self._storing = position

    def acknowledge(self) -> None:
        """Tell the server what is durable, at most ten times a second."""
        self._stored = max(self._stored, self._storing)
        self._began_stored = self._began_storing
        self._joins.stored(self._startup)
        self._snapshots.stored()
        if self._carried is not None:
            self._carried.stored(self._stored)
        if self._joins.unsettled and not self._joins.pending:
            self._look_now.set()
        self._settle()
        self._last = self._storing_last
        self._rows_at = [at for at in self._rows_at if at[0] >= self._stored]
        self._stored_at = self._clock.monotonic()
        self._send_due()

    def want_snapshot(self, tables: Sequence[str], where: str, surrogate: str, request: str, reply: Reply) -> None:
        """Append the rows that tables have, while the stream goes on; see `IncrementalSnapshots.request`.

        Args:
            tables: regular expressions of which one matches the whole of ``schema.table``, or such names.
            where: SQL over a table's columns; "" for all rows.
            surrogate: a column by which tables without a key are read.
            request: an id; ``reply`` is called with the tables when the request is in the log.

        Raises:
            SourceRefused: none of them is captured, or one cannot be read so.
        """
        self._snapshots.request(tables, where, surrogate, request, reply, at=self._received)
        self._wake.set()

    # --- from any thread ---

    def end(self, until: Lsn | None = None) -> Lsn:
        """Return the LSN before which everything is committed that is committed now; see `Source.end`.

        It is the insert position: asynchronous commits run ahead of what is written. When the last records are not
        flushed, an empty logical message is committed, because nothing else might flush them on an idle server.

        Raises:
            SourceUnavailable, SourceRefused: the server cannot be asked, or rows may have gone by the log.
        """
        if not self._declared.snapshots.streams:
            return self._received
        with self._telling():
            until = self._insert_lsn() if until is None else until
        self._wanted = max(self._wanted, until)
        if self._unsettled:
            self._stop_short(until)
        self._wake.set()
        return until

    def _insert_lsn(self) -> Lsn:
        with self._sql_lock:
            for attempt in range(2):
                connection = self._connected()
                try:
                    lsn = _insert_lsn(connection)
                    # What was committed until now can only be told to be in the log while the publication has it.
                    self._check_catalog(connection)
                    if self._watching is not None:
                        self._look_for_new(connection)
                    if self._unsettled or self._snapshots.pending:
                        # An end that nobody has seen yet: what is left out until they join may have passed this one.
                        self._stop_short(lsn)
                        connection.execute(_FLUSH)
                        lsn = _insert_lsn(connection)
                    return Lsn(lsn)
                except psycopg.Error as error:
                    connection.close()
                    if attempt:
                        raise self._declared.server.lost(error) from error
        raise AssertionError("unreachable")

    def _beyond_joins(self, connection: SqlConnection) -> int:
        """Return an LSN behind all commits that are visible now, and behind all rows of tables that joined."""
        lsn = _insert_lsn(connection)
        while lsn <= self._joins.after:
            connection.execute(_FLUSH)
            lsn = _insert_lsn(connection)
        return lsn

    def _connected(self) -> SqlConnection:
        if self._sql is None or self._sql.closed:
            self._sql = self._declared.server.sql()
        return self._sql

    @property
    def status(self) -> SourceStatus:
        """Return what the source is doing."""
        connection, doing = self._connection, self._startup.doing
        return SourceStatus(
            SourceState.STARTING if doing else connection.state,
            doing or self._snapshots.doing or connection.doing,
            self._come,
            connection.away_since,
            connection.reconnects,
        )

    @property
    def _come(self) -> Lsn:
        """Return the LSN before which everything is handed out, of tables that join and of snapshots too."""
        come, short_of = int(self._received), self._short_of
        if short_of is not None and self._unsettled:
            come = min(come, short_of - 1)
        if self._snapshots.pending:
            come = min(come, self._snapshots.asked_at)
        return Lsn(come)

    @property
    def _unsettled(self) -> bool:
        """Return whether there are tables, or may be, that match and have not joined."""
        return self._joins.unsettled or not self._looked

    def _stop_short(self, lsn: int) -> None:
        """Have nobody told that an LSN is reached before tables have joined, whose rows were committed before, too.

        Several may wait: the first one's is what counts.
        """
        before = self._short_of
        self._short_of = Lsn(lsn if before is None else min(before, lsn))

    def _settle(self) -> None:
        """Forget who waits for tables to join, where all have."""
        if not self._unsettled:
            self._short_of = None

    def measure(self) -> list[Measurement]:
        """Return what was received since the start, and what snapshots have read of each table."""
        about = "Rows that snapshots have read since the start"
        return [
            Measurement("bytes", "Bytes of changes received since the start", float(self._connection.bytes)),
            *(Measurement("snapshot_rows", about, float(rows), table) for table, rows in list(self._read_rows.items())),
        ]

    def measure_lag(self) -> list[Measurement]:
        """Ask how far the log is behind the server, and how much WAL the slot keeps; nothing while it is away."""
        if self._connection.stream is None or self._record is None:
            return []
        query = """SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_insert_lsn() - restart_lsn
            FROM pg_replication_slots WHERE slot_name = %s"""
        try:
            with self._sql_lock:
                found = self._connected().execute(query, (self._record.slot,)).fetchone()
        except (psycopg.Error, SourceUnavailable):
            return []
        if found is None or found[1] is None:
            return []
        behind = max(0, parse_lsn(found[0]) - max(self._stored, self._received))
        late = behind > _LATE_BYTES and self._newest_us
        age = max(0.0, self._clock.now_us() / 1e6 - self._newest_us / 1e6) if late else 0.0
        return [
            Measurement("lag_bytes", "WAL that the server has written and the log does not hold yet", float(behind)),
            Measurement(
                "lag_seconds", "Age of the newest captured commit, while there is WAL that is not captured", age
            ),
            Measurement("slot_retained_bytes", "WAL that the replication slot keeps", float(found[1])),
        ]

    # --- the catalog ---

    def _check_catalog(self, connection: SqlConnection) -> None:
        """See that rows cannot have gone by the log since it began; what is found ends the stream too.

        Raises:
            SourceRefused: they can.
        """
        began = self._startup.began
        if began is None:
            return
        now = drift.look_again(connection, began)
        declared = self._declared
        own, by_name = declared.own_publication, declared.by_name(began)
        try:
            coming = self._joins.published | self._startup.coming
            drift.check(began, now, own=own, coming=lambda: declared.meant(connection) | coming, by_name=by_name)
        except SourceRefused as error:
            self._refused = error
            self._wake.set()
            raise
        left = drift.leaving(began, now, own=own, by_name=by_name)
        for text in drift.said(began, now, left):
            self._say(text)
        self._startup.leave(left, drift.repartitioned(began, now, left))

    def _check_updates(self, connection: SqlConnection) -> None:
        """Say loudly when a table lost its replica identity: the user's own statements fail since then."""
        tables = {table.oid: str(table) for table in self._startup.tables if self._startup.changes}
        failing = catalog.failing_updates(connection, list(tables))
        news = {tables[oid]: why for oid, why in failing.items() if self._startup.failing.get(oid) != why}
        for text in _failing(news, self._declared.publication):
            logger.error("%s", text, extra=event("failing_updates"))
        self._startup.failing = failing

    def _watch(self) -> None:
        """Look at the catalog now and then, in a thread of its own; a server that is away is left to the stream."""
        connection: SqlConnection | None = None
        pause = 0.0
        while True:
            self._look_now.wait(pause)
            self._look_now.clear()
            if self._ending.is_set() or self._refused is not None:
                break
            pause = _ACKNOWLEDGE_S if self._joins.waiting or not self._looked else _LOOK_S
            if self._connection.stream is None:
                continue
            with contextlib.suppress(SourceError, psycopg.Error):
                if connection is None or connection.closed:
                    connection = self._declared.server.sql()
                self._check_catalog(connection)
                self._look_for_new(connection)
                self._snapshots.visible(connection)
                self._looked = True
                self._settle()
                self._wake.set()
                self._check_updates(connection)
        if connection is not None:
            connection.close()

    def _look_for_new(self, connection: SqlConnection) -> None:
        """Have tables join that match and were made since the capture began; say of those that cannot."""
        assert self._startup.began is not None
        if self._declared.by_name(self._startup.began):
            return  # such tables are taken up as their rows come
        self._joins.prepare(connection, self._declared, self._startup, self._decoder)
        if self._joins.pending:
            self._wake.set()

    def _say(self, text: str) -> None:
        """Warn of something once."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text, extra=event("catalog", source=self.name))

    # --- the end ---

    def stop(self) -> None:
        """Acknowledge what is stored and close everything; calling it twice is harmless."""
        self._ending.set()
        self._heartbeats.stop()
        self._look_now.set()
        self._joins.close()
        if self._connection.stream is not None:
            self._send(self._clock.monotonic())
        self._connection.close()
        if self._reselect is not None:
            self._reselect.close()
        self._snapshots.stop()
        if self._watching is not None:
            self._watching.join(0.5)
        with self._sql_lock:
            if self._sql is not None:
                self._sql.close()


def _logical_messages(prefix: str, patterns: tuple[str, ...], *, described: bool) -> LogicalMessages | None:
    if not patterns:
        return None
    return LogicalMessages(prefix, lambda name: catalog.matches(name, patterns), described)


def _last_row(piece: Piece[Lsn], messages: str | None) -> tuple[int, int] | None:
    """Commit LSN and time of the last transaction of which a piece has rows of tables.

    Args:
        messages: the topic of logical messages, of which some are no transaction's.
    """
    last: tuple[int, int] | None = None
    for topic, batch in (*piece.batches, *piece.rejected):
        lsn = int(batch.lsn[-1])
        if (last is None or lsn > last[0]) and topic != messages and batch.op[0] != OPS["r"]:  # no transaction's
            last = lsn, int(batch.ts_us[-1])
    return last


def _failing(reasons: Mapping[str, str], publication: str) -> list[str]:
    """Say of tables why their UPDATE and DELETE fail, of those for one reason together."""
    return [
        f"{subject}: {reason}, so PostgreSQL refuses UPDATE and DELETE on it as long as publication "
        f"«{publication}» has it, also while the capture is stopped; ALTER TABLE … REPLICA IDENTITY FULL (or USING "
        "INDEX) allows them"
        for subject, reason in checks.by_reason(reasons)
    ]


_FLUSH = "SELECT pg_logical_emit_message(true, 'headrace', '')"


def _insert_lsn(connection: SqlConnection) -> int:
    query = """SELECT pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,
        (SELECT setting::int FROM pg_settings WHERE name = 'wal_block_size'),
        (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size')"""
    insert, flush, block, segment = connection.execute(query).fetchone() or ("0/0", "0/0", 8192, 1 << 24)
    lsn = before_page_header(parse_lsn(insert), block, segment)
    if parse_lsn(flush) < lsn:
        connection.execute("SET synchronous_commit = local")
        connection.execute(_FLUSH)
    return lsn


def before_page_header(lsn: int, block: int, segment: int) -> int:
    """Return an insert position just behind a page header as the page's start, where the last record's end is seen.

    Page headers have 24 bytes, a segment's first 40
    (https://github.com/postgres/postgres/blob/master/src/include/access/xlog_internal.h).

    >>> [hex(before_page_header(lsn, 0x2000, 0x1000000)) for lsn in (0x3002018, 0x3000028, 0x3002028)]
    ['0x3002000', '0x3000000', '0x3002028']
    """
    header = 40 if lsn % segment < block else 24
    return lsn - header if lsn % block == header else lsn
