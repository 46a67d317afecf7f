"""The start of a capture: everything is checked, then publication, slot and first snapshot are made."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import psycopg

from headrace.capture.base import KIND, Log, Transaction
from headrace.capture.postgres import catalog, checks, drift, parts, slot_binding, slots
from headrace.capture.postgres.catalog import Publication, Slot, SqlConnection, Table, quote
from headrace.capture.postgres.chunk_key import Key
from headrace.capture.postgres.client import CommandError, Replication, Server
from headrace.capture.postgres.drift import Began, Captured, Look
from headrace.capture.postgres.facts import Types
from headrace.capture.postgres.parts import Parts, part_of
from headrace.capture.postgres.slot_binding import Claim, Identity, Owner, SourceRecord
from headrace.capture.postgres.snapshot import (
    PIECE_ROWS,
    Converter,
    OnProgress,
    Snapshot,
    SnapshotStale,
    stage,
    stage_snapshot,
)
from headrace.capture.postgres.snapshot_options import SnapshotOptions
from headrace.capture.postgres.snapshot_progress import KIND as PROGRESS
from headrace.capture.postgres.snapshot_progress import Progress, Wanted
from headrace.capture.postgres.types import Vectors
from headrace.errors import SourceError, SourceRefused
from headrace.event_log import event
from headrace.faults import fault
from headrace.position import parse_lsn

logger = logging.getLogger("headrace")

LARGE_BYTES = 256 << 20  # from a table of this size on, rows of a first snapshot are appended as they come
_SIZES = "SELECT oid::bigint, pg_relation_size(oid) FROM pg_class WHERE oid = ANY(%s)"
_SNAPSHOT_ATTEMPTS = 3
_DUPLICATE = "42710"  # SQLSTATE duplicate_object


@dataclass(frozen=True, slots=True)
class Declared:
    """A source as the user declared it; see `PostgresSource`.

    Attributes:
        own_slot, own_publication: the name is derived, not the user's: the object is ours to change.
        left_out: tables (schema, name) that are not captured though they match.
        place: where the log is, for others to read.
        take_over: a slot that belongs to another log is given to this one.
        allow_failing_updates: tables may be published whose UPDATE and DELETE the server refuses from then on.
        debezium: properties of Debezium's connector by which its events are written; None where they are not.
        types: what the catalog said of types, once.
        snapshots: how rows are read that are there already.
        makes_publication: a publication that is not there is made.
        failover: the slot is one that standbys keep too.
        parts: what our own publication has of tables that are not published as a whole, by ``schema.table``.
    """

    server: Server
    name: str
    patterns: tuple[str, ...]
    slot: str
    own_slot: bool
    publication: str
    own_publication: bool
    with_snapshot: bool
    first_tables: tuple[str, ...]
    left_out: set[tuple[str, str]] = field(default_factory=set)
    app: str = ""
    place: str = slot_binding.MEMORY
    take_over: bool = False
    allow_failing_updates: bool = False
    makes_publication: bool = True
    failover: bool = False
    parts: Parts = field(default_factory=dict)
    debezium: Mapping[str, str] | None = None
    types: Types = field(default_factory=dict)
    snapshots: SnapshotOptions = field(default_factory=SnapshotOptions)

    @property
    def by_leaf(self) -> bool:
        """Return whether rows of partitioned tables are those of their partitions, as Debezium has it by default."""
        properties = self.debezium
        return properties is not None and properties.get("publish.via.partition.root", "false").lower() != "true"

    def vectors(self, connection: SqlConnection) -> Vectors:
        """Return the types whose values are lists; where Debezium's events are written, which are of texts, none."""
        return catalog.vectors(connection) if self.debezium is None else ()

    @property
    def wants_all_tables(self) -> bool:
        """Return whether a publication that is made is to have all tables, as Debezium's has by default."""
        properties = self.debezium
        mode = "" if properties is None else properties.get("publication.autocreate.mode", "all_tables")
        return mode.lower() == "all_tables"

    def by_name(self, began: Began) -> bool:
        """Return whether whatever comes of a table that matches is captured, from its first commit on.

        So it is with Debezium: nothing is read of a table that was made later.
        """
        return self.debezium is not None and (bool(began.options.get("puballtables")) or not self.own_publication)

    def meant(self, connection: SqlConnection) -> frozenset[int]:
        """Return the OIDs of all tables that match now."""
        found = catalog.matching_names(connection, self.patterns, by_leaf=self.by_leaf)
        return frozenset(oid for oid, name in found.items() if name not in self.left_out)


DEBEZIUM = "debezium"  # kind of the record that holds a connector's properties, under its source's name


def _chunks(connection: SqlConnection, key: Key, wanted: Wanted) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the end of each chunk of a table, and the query of its rows."""
    while wanted.maximum is not None and wanted.last != wanted.maximum:
        end = key.end(connection, wanted, PIECE_ROWS) or wanted.maximum
        yield end, key.chunk(wanted, end)
        wanted = replace(wanted, last=end)


class Startup:
    """The way from a declaration to a record in the log from which streaming goes on.

    Attributes:
        tables: what is captured, in snapshot order, with columns as the catalog has them.
        unlogged: tables that match and do not stream, as the server logs none of their changes: a first snapshot reads
            them.
        identities: columns that identify an old row, by the table's OID; None: all.
        resumes: the log has rows of the source already.
        changes: the publication has updates or deletes, not only inserts.
        failing: why the server refuses UPDATE and DELETE while they are captured, by the table's OID.
        began: what the capture began with; None for a log that is new, until `open`.
        coming: OIDs of tables in our publication that have not joined yet.
        doing: what takes time now, for people.
        reading: that is the snapshot, which is at work and waits for nobody.
        owner: the log as others can see it, after `open`.
    """

    def __init__(self, declared: Declared, on_progress: OnProgress) -> None:
        self.tables: list[Table] = []
        self.unlogged: list[Table] = []
        self.identities: dict[int, frozenset[str] | None] = {}
        self.changes = True
        self.resumes = False
        self.failing: dict[int, str] = {}
        self.began: Began | None = None
        self.coming: frozenset[int] = frozenset()
        self.doing = ""
        self.reading = False
        self.owner = Owner("", declared.place, "", declared.app)
        self._declared = declared
        self._on_progress = on_progress
        self._rows: dict[str, int] = {}
        self._lock = threading.Lock()
        self._identity = Identity("", 0, "")
        self._followed: SourceRecord | None = None  # the log's record, as it goes on with this server
        self._anew = False  # the log does not go on from its record
        self._claims_slot = False  # this log was making its slot when it was stopped
        self._everything = False  # a publication that is made has all tables

    def check(self, log: Log) -> None:
        """See `PostgresSource.check`."""
        try:
            self._check(log)
        except slot_binding.Stranded as error:
            if not self._declared.snapshots.when_needed or self._anew:
                raise
            text = f"{error.message}: the log begins anew, with a new slot and a new snapshot"
            logger.warning("%s", text, extra=event("begins_anew", source=self._declared.name))
            self._anew, self.began = True, None
            self._check(log)

    def _check(self, log: Log) -> None:
        declared, server = self._declared, self._declared.server
        known = self._record(log)
        self.resumes = known is not None
        self._claims_slot = Claim.load(log, declared.name).slot == declared.slot
        self.doing = f"connecting to {server}"
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            self.doing = f"looking at tables, publication and slot of {server}"
            check_server(connection, server)
            check_failover(connection, server, declared)
            began = Began.load(log, declared.name) if known is not None else None
            with contextlib.closing(Replication.open(server)) as replication:
                self._identity = identify(replication)
                if known is not None:
                    known = self._followed = followed(replication, known, began)
            if known is not None:
                self.began = began
                chosen = self._known(connection, log, known)
            else:
                self._check_owner(connection, log, None)
                chosen = self._choose(connection)
            publication = catalog.publication(connection, declared.publication)
            logged = [table for table in chosen if table.persistence == "p"]
            found = catalog.not_dropped(connection, catalog.with_columns(connection, logged, publication))
            self.tables = self._in_order(found)
            self.tables = self._with_vectors(self.tables, declared.vectors(connection))
            others = [table for table in chosen if table.persistence == "u"] if declared.with_snapshot else []
            unlogged = catalog.with_columns(connection, others, publication)
            self.unlogged = catalog.not_dropped(connection, unlogged)
            for table in (*self.tables, *self.unlogged):
                checks.refuse(checks.columns(table))
            self.identities = catalog.identities(connection, self.tables)
            self.tables = [table.told_by(self.identities[table.oid]) for table in self.tables]
            self.changes = publication is None or bool(publication.operations & {"update", "delete"})
            if self.changes:
                self.failing = catalog.failing_updates(connection, [table.oid for table in self.tables])
            if known is None:
                only = declared.allow_failing_updates and declared.debezium is None
                parts.check(connection, self.tables, declared.parts, self.identities, str(server), only_inserts=only)
                # Of a publication of the user's they fail already, whatever we do.
                if declared.own_publication and not declared.allow_failing_updates:
                    indexes = catalog.unique_indexes(connection, list(self.failing))
                    checks.refuse(checks.updates(self.tables, self.failing, indexes, str(server)))
                self._check_new(connection, publication)
            if publication and not declared.own_publication:
                checks.refuse(checks.publication(publication, declared.publication, self._streamed(), str(server)))
        self.done()

    def _streamed(self) -> list[Table]:
        """Return the tables whose changes come under their own names."""
        if self._declared.by_leaf:
            return [table for table in self.tables if not table.partitioned]
        return catalog.without_partitions(self.tables)

    def joined(self, tables: Sequence[Table], captured: Sequence[Captured]) -> None:
        """Note tables that have joined. From any thread."""
        with self._lock:
            assert self.began is not None
            self.began = self.began.with_tables(captured)
            self.tables = [*(table for table in self.tables if table.oid not in {t.oid for t in tables}), *tables]

    def leave(self, left: Mapping[int, str], partitions: Mapping[int, tuple[int, ...]]) -> None:
        """Note tables that have left: why, by OID; and other partitions of those that have not. From any thread."""
        with self._lock:
            if partitions and self.began is not None:
                self.began = self.began.with_partitions(partitions)
            if left and self.began is not None:
                self.began = self.began.without(left)
                self.tables = [table for table in self.tables if table.oid not in left]

    def _with_vectors(self, tables: Sequence[Table], vectors: Vectors) -> list[Table]:
        """Return tables with the types whose values are lists: as the log says of those that it has, else as of now."""
        told = {table.oid: table.vectors for table in self.began.tables} if self.began is not None else {}
        return [replace(table, vectors=told.get(table.oid, vectors)) for table in tables]

    def _record(self, log: Log) -> SourceRecord | None:
        """Return the record from which the capture goes on; None where it begins."""
        if self._anew:
            return None
        slot_binding.check_whole(log, self._declared.name)
        return SourceRecord.load(log, self._declared.name)

    def _choose(self, connection: SqlConnection) -> list[Table]:
        """Return the tables that a capture begins with, without their columns."""
        declared = self._declared
        return choose_tables(
            connection,
            declared.server,
            declared.patterns,
            declared.left_out,
            as_debezium=declared.debezium is not None,
            by_leaf=declared.by_leaf,
        )

    def _check_owner(self, connection: SqlConnection, log: Log, known: SourceRecord | None) -> None:
        """See that the slot, if it is there, is this log's, or that the user wants it to be."""
        declared = self._declared
        self.owner = Owner.here(log, place=declared.place, app=declared.app)
        slot = catalog.replication_slot(connection, declared.slot)
        if slot is None:
            return
        slot_binding.check_foreign(slot, self._identity.database)
        owners = slot_binding.noted(connection, declared.publication)
        slot_binding.check_reader(slot, self.owner, owners)
        if declared.take_over:
            return
        if known is not None:
            slot_binding.check_known(slot, known, self.owner, owners)
        else:
            slot_binding.check_new(slot, self.owner, owners, claimed=self._claims_slot, derived=declared.own_slot)

    def _claim(self, slot: str) -> Claim:
        declared = self._declared
        return Claim(slot, declared.server.address, declared.with_snapshot)

    def _known(self, connection: SqlConnection, log: Log, known: SourceRecord) -> list[Table]:
        """Return the tables that the log has, after it was seen that nothing has gone by it."""
        slot_binding.check_names(known, self._declared.slot, self._declared.publication)
        self._check_owner(connection, log, known)
        slot_binding.check_slot(known, catalog.replication_slot(connection, known.slot))
        slot_binding.check_position(known, catalog.insert_lsn(connection))
        if self.began is None:
            self.began = self._taken_up(connection, known)
        parts.check_unchanged({str(table): table.part for table in self.began.tables}, self._declared.parts)
        declared = self._declared
        # In this order: one that is dropped between is in what was meant, and may be in the publication.
        meant = declared.meant(connection)
        now = drift.look_again(connection, self.began)
        own, by_name = declared.own_publication, declared.by_name(self.began)
        drift.check(self.began, now, own=own, coming=lambda: meant, by_name=by_name)
        left = drift.leaving(self.began, now, own=own, by_name=by_name)
        tables = known_tables(connection, self.began.without(left))
        staying = {table.oid for table in tables if catalog.matches(".".join(table.label), declared.patterns)}
        staying = (staying | meant) - {t.oid for t in tables if (t.schema, t.name) in declared.left_out}
        left |= {table.oid: drift.NARROWED for table in tables if table.oid not in staying}
        if left and not meant and not any(table.oid in staying for table in tables):
            checks.refuse(checks.nothing_matches(tables, declared.patterns, str(declared.server)))
        for text in drift.said(self.began, now, left):
            logger.warning("%s", text, extra=event("tables_left", source=declared.name))
        others = drift.repartitioned(self.began, now, left)
        self.began = self.began.without(left).with_partitions(others)
        self.coming = (frozenset(now.entries) - {table.oid for table in self.began.active}) & meant
        return [table for table in tables if table.oid in staying]

    def _taken_up(self, connection: SqlConnection, known: SourceRecord) -> Began:
        """Return what a capture began with whose log has only the tables' names: that which has these names now.

        Raises:
            SourceRefused: that is ambiguous.
        """
        tables = [table for table in catalog.all_tables(connection) if str(table) in known.tables]
        now = drift.look(connection, known.publication, oids=[table.oid for table in tables])
        drift.check_named(known.publication, known.tables, now, own=self._declared.own_publication)
        return now.began((table.oid, table.schema, table.name) for table in tables)

    def _check_new(self, connection: SqlConnection, publication: Publication | None) -> None:
        declared, server = self._declared, self._declared.server
        slot = catalog.replication_slot(connection, declared.slot)
        if slot is not None:
            slot_binding.check_foreign(slot, self._identity.database)
        else:
            check_room(connection, server)
        if slot is not None and not declared.own_slot and declared.with_snapshot and not self._claims_slot:
            raise slot_binding.named_slot(declared.slot)
        if publication is None and not declared.makes_publication:
            checks.refuse(checks.publication(None, declared.publication, self.tables, str(server)))
        now = drift.look(connection, declared.publication)
        self._everything = declared.wants_all_tables and not declared.parts and catalog.role(connection).superuser
        mends = declared.own_publication and not self.right_shape(now)
        publishes = (mends or publication is None) and not self._everything
        name, reads = declared.publication, declared.with_snapshot
        check_rights(connection, server, self.tables, name, reads=reads, publishes=publishes)
        check_rights(connection, server, self.unlogged, name, reads=reads, publishes=False)

    def right_shape(self, now: Look) -> bool:
        """Return whether our own publication is as we would make it."""
        wanted = {**drift.OPTIONS, "puballtables": self._everything, "pubviaroot": not self._declared.by_leaf}
        of = {table.oid: part_of(self._declared.parts, table) for table in self.tables}
        return now.only_ours(wanted, of) and now.entries.keys() == (set() if self._everything else of.keys())

    def _ensure_publication(self, connection: SqlConnection) -> Look:
        """Have a publication with the tables for a log that is new; our own is made anew when it is not as wanted.

        Returns:
            The publication as it is now.

        Raises:
            SourceRefused: the server refuses, or the user's publication lacks something.
        """
        declared, name, server = self._declared, self._declared.publication, self._declared.server
        existing = catalog.publication(connection, name)
        if existing and not declared.own_publication:
            checks.refuse(checks.publication(existing, name, self._streamed(), str(server)))
        elif declared.parts or not self.right_shape(drift.look(connection, name)):
            everything, by_leaf = self._everything, declared.by_leaf
            statements = drift.recreated(name, self.tables, declared.parts, everything=everything, by_leaf=by_leaf)
            with server.translated(f"to make publication «{name}»"), connection.transaction():
                for statement in statements:
                    connection.execute(statement.encode())
        return drift.look(connection, name, oids=[table.oid for table in self.tables])

    def _in_order(self, tables: Sequence[Table]) -> list[Table]:
        """Return tables that models learn from first, then the others, each in the order of names, or of rows."""
        first = {name.lower() for name in self._declared.first_tables}
        if order := self._declared.snapshots.order:
            tables = sorted(tables, key=lambda table: table.estimated_rows, reverse=order == "descending")
        return sorted(tables, key=lambda table: str(table).lower() not in first)

    def open(self, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Make publication, slot and snapshot where the log has none; return the log's record.

        Raises:
            SourceUnavailable, SourceRefused: as `PostgresSource.start`.
        """
        declared, server = self._declared, self._declared.server
        if not self.tables:
            self.check(log)
        known = self._record(log)
        self.doing = f"connecting to {server}"
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            if known is None:
                self.doing = f"making publication «{declared.publication}»"
                now = self._ensure_publication(connection)
                began_now = now.began(((table.oid, *table.label) for table in self.tables), declared.parts)
                self.began = began_now.with_vectors(self.tables)
                if declared.debezium is not None:
                    self.began = now.snapshot_only(self.began)
                known = self._begin(connection, log, cancelled)
            else:
                began = Claim.load(log, declared.name).snapshot
                wanted = replace(self._claim(known.slot), snapshot=began)
                self.owner = slot_binding.claim(log, self.owner, declared.name, wanted)
                known = self._let_go(connection, log, self._followed or known, moved=known.identity != self._identity)
            slot_binding.note(connection, declared.publication, declared.slot, self.owner)
            slot = wait_until_free(connection, declared.slot, cancelled, self._say)
            able = connection.info.server_version >= checks.FAILOVER_VERSION
            if declared.failover and able and slot is not None and not slot.failover:
                have_failover(server, declared.slot, cancelled)
            if warning := slots.idle_warning(connection, server, declared.slot):
                logger.warning("%s", warning)
        self.done()
        return known

    def _let_go(self, connection: SqlConnection, log: Log, known: SourceRecord, *, moved: bool) -> SourceRecord:
        """Store which tables have left, and take those that are not to be captured out of our own publication.

        Args:
            moved: the log goes on with another server, which is stored too.
        """
        declared, began = self._declared, self.began
        assert began is not None
        before = Began.load(log, declared.name)
        if moved or before != began:
            if before is not None and before != began:
                known = replace(known, tables=began.names)
                if {table.oid for table in before.active} != {table.oid for table in began.active}:
                    # The last transaction may have rows of tables that have left only: it is not looked for again.
                    known = replace(known, last=None)
            self._put(log, known)
            fault("leave.stored")
        gone = {table.oid for table in began.tables if table.left == drift.NARROWED} - self.coming
        if declared.own_publication and gone:
            entries = drift.look(connection, declared.publication).entries
            tables = [table.only_sql for table in catalog.all_tables(connection) if table.oid in gone & entries.keys()]
            if tables:
                statement = f"ALTER PUBLICATION {quote(declared.publication)} DROP TABLE {', '.join(tables)}"
                connection.execute(statement.encode())
                fault("leave.unpublished")
        return known

    def _say(self, doing: str) -> None:
        self.doing = doing

    def done(self) -> None:
        """Note that nothing takes time any more."""
        self.doing, self.reading = "", False

    def _begin(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Make a slot, and the snapshot when it is wanted; both are published with the record that is returned."""
        if not self._declared.own_slot and not self._declared.with_snapshot:
            slot = catalog.replication_slot(connection, self._declared.slot)
            if slot is not None:
                self.owner = slot_binding.claim(log, self.owner, self._declared.name, self._claim(slot.name))
                return self._put(log, self._new_record(slot.confirmed_flush))
        return self._begin_fresh(connection, log, cancelled)

    def _begin_fresh(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Make a new slot, and the snapshot; again where a table was rewritten meanwhile."""
        attempt = 1
        while True:
            try:
                return self._begin_anew(connection, log, cancelled)
            except SnapshotStale:
                if attempt == _SNAPSHOT_ATTEMPTS:
                    raise
            attempt += 1

    def _begin_anew(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Drop our own slot, which has lost its snapshot where there is no record, and make it anew."""
        declared, server = self._declared, self._declared.server
        self._delay(declared.snapshots.delay_s if declared.with_snapshot else 0.0, cancelled)
        if wait_until_free(connection, declared.slot, cancelled, self._say) is not None:
            with server.translated(f"to drop slot «{declared.slot}»"):
                connection.execute("SELECT pg_drop_replication_slot(%s)", [declared.slot])
        with contextlib.closing(Replication.open(server, cancelled=cancelled)) as replication:
            self.doing = f"making slot «{declared.slot}», which waits for the transactions that are open now"
            self.owner = slot_binding.claim(log, self.owner, declared.name, self._claim(declared.slot))
            try:
                lsn, exported = create_slot(replication, declared.slot, cancelled, failover=declared.failover)
            except CommandError as error:
                if error.code == _DUPLICATE:
                    slot_binding.unclaim(log, declared.name)
                raise
            fault("snapshot.slot-created")
            slot_binding.note(connection, declared.publication, declared.slot, self.owner)
            if not declared.with_snapshot:
                return self._put(log, self._new_record(lsn))
            self.doing = "locking the tables to read them as they were"
            types = None if declared.debezium is None else declared.types
            read = self._in_order(sorted([*self.tables, *self.unlogged], key=lambda t: (t.schema, t.name)))
            threads = declared.snapshots.threads
            with Snapshot(server, exported, read, declared.publication, types=types, threads=threads) as snapshot:
                replication.close()
                self.tables = [table for table in snapshot.streamed if table.persistence == "p"]
                return self._store_snapshot(snapshot, log, lsn)

    def _delay(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        """Wait before a snapshot, where that is wanted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not cancelled():
            self.doing = f"waiting {left:.0f} s before the snapshot begins, as snapshot.delay.ms says"
            time.sleep(min(left, 0.2))

    def _store_snapshot(self, snapshot: Snapshot, log: Log, lsn: int) -> SourceRecord:
        self._discard_staged(log)
        self.reading = True
        begun, tables = time.monotonic(), [str(table) for table in snapshot.tables]
        source = self._declared.name
        where = "" if source == self._declared.app else f"{source}: "
        named = ", ".join(tables) if len(tables) <= _NAMED_TABLES else f"{len(tables)} tables"
        text = f"{where}snapshot of {named} begins"
        logger.info("%s", text, extra=event("snapshot_begun", source=source, tables=tables))
        large = self._large(snapshot)
        read = [table for table in snapshot.tables if self._declared.snapshots.reads(str(table))]
        for table in (*read, *read[:1]):  # all that will come, and then where it begins
            self._report(str(table), 0, table.estimated_rows)
        try:
            index = self._stage(snapshot, log, lsn, snapshot.tables[: len(snapshot.tables) - len(large)])
        except SourceError:
            self._discard_staged(log)
            raise
        fault("snapshot.before-publish")
        queue = tuple(Wanted("first", t.oid, str(t), estimated=max(0, t.estimated_rows), first=True) for t in large)
        progress = Progress(queue, lsn=lsn, index=index) if queue else None
        new = self._put(log, self._new_record(lsn), publish=True, progress=progress)
        fault("snapshot.after-publish")
        if progress is not None:
            self._append_chunks(snapshot, log, lsn, large, progress)
        rows, seconds = sum(self._rows.values()), time.monotonic() - begun
        text = f"{where}snapshot ended, {rows:,} rows of {len(tables)} tables in {seconds:.1f} s"
        about = event("snapshot_ended", source=source, tables=tables, rows=rows, seconds=round(seconds, 3))
        logger.info("%s", text, extra=about)
        return new

    def _stage(self, snapshot: Snapshot, log: Log, lsn: int, tables: Sequence[Table]) -> int:
        """Stage what the log is to have of tables at once; return how many rows that were."""
        declared = self._declared
        return stage_snapshot(
            snapshot,
            log,
            prefix=declared.name,
            lsn=lsn,
            on_progress=self._report,
            options=declared.snapshots,
            tables=tables,
        )

    def _large(self, snapshot: Snapshot) -> Sequence[Table]:
        """Return the last tables, from a large one on, whose rows are appended chunk by chunk, as all of them can be.

        The others come at once, before them: the order of tables stays what it is. One without a key is one chunk.
        """
        options, tables = self._declared.snapshots, snapshot.tables
        first = len(tables)
        queries = dict(options.selects)
        while first and options.reads(str(tables[first - 1])):
            if tables[first - 1].partitioned or str(tables[first - 1]) in queries:
                break
            first -= 1
        sizes = dict(snapshot.connection.execute(_SIZES, [[table.oid for table in tables[first:]]]).fetchall())
        while first < len(tables) and sizes[tables[first].oid] < LARGE_BYTES:
            first += 1
        return tables[first:]

    def _append_chunks(
        self, snapshot: Snapshot, log: Log, lsn: int, tables: Sequence[Table], progress: Progress
    ) -> None:
        """Append the rows of tables in the order of their keys; how far that is, is stored with each chunk.

        A start that is killed here is not begun anew: the rest is read beside the stream (`incremental`).
        """
        connection = snapshot.connection
        for table in tables:
            converter = Converter(table, self._declared.name, lsn=lsn, ts_us=snapshot.ts_us)
            wanted = progress.queue[0]
            key = Key.of(connection, table, wanted)
            maximum = key.maximum(connection)
            wanted = replace(wanted, maximum=maximum)
            chunks = _chunks(connection, key, wanted)
            for end, batches in snapshot.read_each(chunks):
                with log.transaction() as transaction:
                    transaction.next_slice()
                    index = progress.index
                    for records in batches:
                        stage(transaction, converter, records, index)
                        index += records.num_rows
                    transaction.publish()
                    rows = wanted.rows + index - progress.index
                    wanted = replace(wanted, last=end, rows=rows)
                    progress = replace(progress.with_first(wanted), index=index)
                    transaction.put(PROGRESS, self._declared.name, progress.to_json())
                fault("snapshot.chunk")
                self._report(str(table), rows, max(rows, table.estimated_rows))
            progress = replace(progress, queue=progress.queue[1:])
            with log.transaction() as transaction:
                transaction.put(PROGRESS, self._declared.name, progress.to_json())
            fault("snapshot.table")

    @staticmethod
    def _discard_staged(log: Log) -> None:
        with log.transaction() as transaction:
            transaction.discard_staged()

    def _report(self, table: str, rows: int, estimated: int) -> None:
        self._rows[table] = rows
        self.doing = f"snapshot of {table}: {rows:,} of about {estimated:,} rows"
        self._on_progress(table, rows, estimated)

    def _new_record(self, lsn: int) -> SourceRecord:
        declared = self._declared
        names = tuple(sorted(".".join(table.label) for table in self.tables))
        return SourceRecord(self._identity, declared.slot, declared.publication, names, lsn, lsn, (0, 0))

    def _put(
        self, log: Log, new: SourceRecord, *, publish: bool = False, progress: Progress | None = None
    ) -> SourceRecord:
        assert self.began is not None
        with log.transaction() as transaction:
            if publish:
                transaction.publish()
            transaction.put(KIND, self._declared.name, new.to_json())
            transaction.put(drift.KIND, self._declared.name, self.began.to_json())
            if self._declared.debezium is not None:
                transaction.put(DEBEZIUM, self._declared.name, json.dumps(dict(self._declared.debezium)).encode())
            transaction.delete(slot_binding.RESYNC, self._declared.name)
            self._put_more(transaction, log, new)
            if progress is not None:
                transaction.put(PROGRESS, self._declared.name, progress.to_json())
        return new

    def _put_more(self, transaction: Transaction, log: Log, new: SourceRecord) -> None:
        """Put what else the log is to keep into the transaction with which it begins, or goes on."""


# --- what a capture needs on the server: checked first, then made (publication and slot) ---

IN_USE_SECONDS = 30.0


def identify(replication: Replication) -> Identity:
    """System identifier, timeline and database of the server at the other end."""
    (row,) = replication.command("IDENTIFY_SYSTEM")
    return Identity(row["systemid"] or "", int(row["timeline"] or 0), row["dbname"] or "")


def timelines(replication: Replication, timeline: int) -> dict[int, int]:
    """Return where the timelines ended that a server's own goes back to: at a promotion, or a recovery.

    https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-TIMELINE-HISTORY
    """
    if timeline <= 1:
        return {}
    (row,) = replication.command(f"TIMELINE_HISTORY {timeline}")
    lines = [line.split() for line in (row["content"] or "").splitlines() if line.strip() and line[0] != "#"]
    return {int(line[0]): parse_lsn(line[1]) for line in lines}


def followed(replication: Replication, known: SourceRecord, began: Began | None) -> SourceRecord:
    """Return the log's record as it goes on with the server at the other end.

    Raises:
        Stranded: its positions mean nothing there.
    """
    identity = identify(replication)
    switches = {} if known.identity == identity else timelines(replication, identity.timeline)
    read_until = max([table.until for table in began.tables] if began is not None else [], default=0)
    return slot_binding.check_identity(known, identity, switches, read_until=read_until)


def check_server(connection: SqlConnection, server: Server) -> None:
    """Refuse a server that cannot do logical replication.

    Raises:
        SourceRefused: it is too old, wal_level is not logical, it is a standby, or a pooler stands before it.
    """
    where = str(server)
    checks.refuse(checks.version(connection.info.server_version, where))
    checks.refuse(checks.pooler(pooled=catalog.pooled(connection), where=where))
    settings = catalog.settings(connection, "wal_level", "output_plugin_libraries", "in_hot_standby")
    checks.refuse(checks.standby(settings["in_hot_standby"] == "on", where))
    checks.refuse(checks.wal_level(settings["wal_level"], where))
    checks.refuse(checks.output_plugin(settings.get("output_plugin_libraries"), where))
    checks.refuse(checks.replication_right(catalog.role(connection), where))


def choose_tables(
    connection: SqlConnection,
    server: Server,
    patterns: Sequence[str],
    left_out: Collection[tuple[str, str]] = (),
    *,
    as_debezium: bool = False,
    by_leaf: bool = False,
) -> list[Table]:
    """Return the tables to capture, in name order, without their columns, unlogged ones among them.

    Args:
        left_out: tables (schema, name) that match and are not captured: this pipeline's sinks write them.
        as_debezium: those that Debezium reads: partitions and the tables that they are of, tables that are not logged,
            and each with the rows of tables that inherit from it.
        by_leaf: rows of partitioned tables are those of their partitions.

    Raises:
        SourceRefused: none matches, or none of which the server logs changes.
    """
    existing = [table for table in catalog.all_tables(connection) if (table.schema, table.name) not in left_out]
    chosen = catalog.matching(existing, patterns, by_leaf=as_debezium)
    if not chosen:
        checks.refuse(checks.nothing_matches(existing, patterns, str(server)))
    if as_debezium:
        chosen = [replace(table, whole=True) for table in chosen if table.persistence != "t"]
    alone = all(table.persistence != "p" for table in chosen)
    for table in chosen if not as_debezium else ():
        checks.refuse(checks.kind(table, str(server), alone=alone))
    if by_leaf:
        checks.refuse(checks.partitions(existing, chosen, str(server)))
    return chosen


def known_tables(connection: SqlConnection, began: Began) -> list[Table]:
    """Return a log's tables, found by OID whatever they are called now, in name order, without their columns."""
    known = {table.oid: table.label for table in began.active}
    found = [table for table in catalog.all_tables(connection) if table.oid in known]
    return [replace(table, captured_as=known[table.oid]) for table in found]


def check_rights(
    connection: SqlConnection, server: Server, tables: Sequence[Table], name: str, *, reads: bool, publishes: bool
) -> None:
    """Refuse what the role may not do: read the tables for a snapshot, make the publication ``name``.

    Raises:
        SourceRefused: with the GRANT that is missing.
    """
    role = catalog.role(connection)
    if reads:
        checks.refuse(checks.reading(role, tables, str(server)))
    if publishes:
        checks.refuse(checks.publishing(role, tables, name, str(server)))


def check_room(connection: SqlConnection, server: Server) -> None:
    """Refuse when no slot is free.

    Raises:
        SourceRefused: max_replication_slots is reached.
    """
    most = int(catalog.settings(connection, "max_replication_slots")["max_replication_slots"])
    (used,) = connection.execute("SELECT count(*) FROM pg_replication_slots").fetchone() or (0,)
    checks.refuse(checks.room(used=used, most=most, where=str(server)))


def wait_until_free(
    connection: SqlConnection,
    name: str,
    cancelled: Callable[[], bool],
    say: Callable[[str], None],
) -> Slot | None:
    """Wait until nobody reads a slot: after a SIGKILL the server holds it until it notices that its reader is dead.

    What is waited for is told to ``say``.

    Raises:
        SourceRefused: it is still in use after 30 seconds.
    """
    until = time.monotonic() + IN_USE_SECONDS
    while True:
        slot = catalog.replication_slot(connection, name)
        if slot is None or slot.active_pid is None:
            return slot
        if time.monotonic() > until or cancelled():
            raise SourceRefused(
                f"slot «{name}» is being read by another connection ({reader(slot)})",
                advice="Stop the other pipeline, or give this one a name of its own (App's name, prefix=… or slot=…).",
            )
        say(f"waiting for slot «{name}», which {reader(slot)} still reads")
        time.sleep(0.05)


def reader(slot: Slot) -> str:
    """Return who reads a slot now."""
    return f"server process {slot.active_pid}{f' («{slot.reader}»)' if slot.reader else ''}"


def check_failover(connection: SqlConnection, server: Server, declared: Declared) -> None:
    """Refuse a server whose standbys cannot keep a slot, where they should. Debezium goes on without; so it is here.

    Raises:
        SourceRefused: it is older than version 17.
    """
    found = checks.failover_version(connection.info.server_version, str(server)) if declared.failover else []
    if found and declared.debezium is not None:
        logger.warning("%s: the slot is none of these", found[0].message, extra=event("no_failover_slot"))
        return
    checks.refuse(found)


def have_failover(server: Server, name: str, cancelled: Callable[[], bool]) -> None:
    """Have standbys keep a slot that nobody reads.

    Raises:
        SourceUnavailable, CommandError: the server refuses.
    """
    with contextlib.closing(Replication.open(server, cancelled=cancelled)) as replication:
        replication.command(f"ALTER_REPLICATION_SLOT {quote(name)} (FAILOVER true)")


def create_slot(
    replication: Replication, name: str, cancelled: Callable[[], bool], *, failover: bool = False
) -> tuple[int, str]:
    """Make a slot for `pgoutput`: its consistent point and the name of its exported snapshot.

    The snapshot can be imported until the connection runs another command or ends. Waits for transactions that are
    open now and have written.

    Args:
        failover: standbys keep it too, from version 17 on.

    Raises:
        CommandError: the server refuses.
    """
    version = replication.pgconn.server_version
    export = "(SNAPSHOT 'export')" if version >= 150000 else "EXPORT_SNAPSHOT"
    if failover and version >= checks.FAILOVER_VERSION:
        export = "(SNAPSHOT 'export', FAILOVER true)"
    command = f"CREATE_REPLICATION_SLOT {quote(name)} LOGICAL pgoutput {export}"
    (row,) = replication.command(command, cancelled=cancelled)
    return parse_lsn(row["consistent_point"] or "0/0"), row["snapshot_name"] or ""


# --- what a start waits for ---
#
# A start that stands still in silence looks like a defect of ours.

PATIENCE_S = 2.0
_NAMED_TABLES = 5
_AGAIN_S = 60.0  # what is still being waited for is said again
_CONNECT_SECONDS = "2"

_BLOCKED = """
SELECT a.pid, coalesce((SELECT CASE l.locktype WHEN 'relation' THEN 'a lock on table ' || l.relation::regclass::text
                                               WHEN 'transactionid' THEN 'the end of a transaction'
                                               ELSE 'a lock (' || l.locktype || ')' END
                        FROM pg_locks l WHERE l.pid = a.pid AND NOT l.granted LIMIT 1), 'a lock'),
       b.pid, coalesce(b.application_name, ''), coalesce(b.usename::text, ''), coalesce(b.state, b.backend_type, ''),
       coalesce(to_char(b.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ'), ''), coalesce(left(b.query, 120), '')
FROM pg_stat_activity a CROSS JOIN LATERAL unnest(pg_blocking_pids(a.pid)) AS blocker
LEFT JOIN pg_stat_activity b ON b.pid = blocker
WHERE a.pid = ANY(%s) ORDER BY a.pid, b.pid LIMIT 5
"""


class WaitReporter:
    """Says on standard error, while its block runs, what the block waits for. It may be entered again after it was
    left.

    A thread looks on. When what is being done has not changed for two seconds, the server is asked, over a connection
    of its own, whom our connections wait for.

    Args:
        server: who is asked; `connected` is to be told of each connection of ours.
        doing: what is being done now, for people; as long as it changes there is progress.
    """

    def __init__(self, server: Server, doing: Callable[[], str]) -> None:
        self._server, self._doing = server, doing
        self._pids: set[int] = set()
        self._left = threading.Event()
        self._thread: threading.Thread | None = None

    def connected(self, pid: int) -> None:
        """Note a connection of ours by its server process."""
        self._pids.add(pid)

    def __enter__(self) -> WaitReporter:
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._left,), name="headrace-waiting", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()

    def _run(self, left: threading.Event) -> None:
        said, quiet, before = "", 0.0, self._doing()
        while not left.wait(PATIENCE_S):
            doing = self._doing()
            if not doing or doing != before:
                said, quiet, before = "", 0.0, doing
                continue
            quiet += PATIENCE_S
            text = f"{doing}{self._for_whom()}"
            if not left.is_set() and (text != said or quiet % _AGAIN_S < PATIENCE_S):
                said = text
                logger.warning("still waiting after %.0f s: %s", quiet, text, extra=event("waiting", seconds=quiet))

    def _for_whom(self) -> str:
        """Return whom our connections wait for on the server; "" when for nobody, or when it cannot be asked."""
        if not self._pids:
            return ""
        with contextlib.suppress(psycopg.Error, SourceError):
            conninfo = self._server.conninfo(connect_timeout=_CONNECT_SECONDS)
            with contextlib.closing(psycopg.connect(conninfo, autocommit=True)) as connection:
                found = connection.execute(_BLOCKED, [list(self._pids)]).fetchall()
            return "".join(f"; {_held(*row)}" for row in found if row[2] not in self._pids)
        return ""


def _held(_pid: int, lock: str, holder: int | None, *about: Any) -> str:
    """Return who holds what one of our connections waits for.

    >>> _held(1, "a lock on table t", 2, "psql", "ann", "idle", "10:00", "LOCK t")
    'it waits for a lock on table t: server process 2 (psql, user ann, idle since 10:00): LOCK t'
    """
    application, user, state, since, query = map(str, about)
    who = ", ".join(
        part
        for part in (application, f"user {user}" if user else "", f"{state} since {since}" if since else state)
        if part
    )
    name = f"server process {holder}" if holder else "a prepared transaction (pg_prepared_xacts)"
    query = " ".join(query.split())
    return f"it waits for {lock}: {name}{f' ({who})' if who else ''}{f': {query}' if query else ''}"
