"""What happens before a source streams: everything is checked, then publication, slot and first snapshot are made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.capture.base import Log
from headrace.capture.postgres import catalog, drift, owner, provision, slot_binding
from headrace.capture.postgres.catalog import Publication, SqlConnection, Table
from headrace.capture.postgres.client import CommandError, Replication, Server
from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.owner import Owner
from headrace.capture.postgres.slot_binding import Identity, SourceRecord
from headrace.capture.postgres.snapshot import Progress, Snapshot, SnapshotStale, stage_snapshot
from headrace.errors import SourceError
from headrace.faults import fault

_SNAPSHOT_ATTEMPTS = 3
_DUPLICATE = "42710"  # SQLSTATE duplicate_object


@dataclass(frozen=True, slots=True)
class Declared:
    """What the user declared of a source; see `PostgresSource`.

    Attributes:
        own_slot, own_publication: the name is derived, not the user's: the object is ours to change.
        left_out: tables (schema, name) that are not captured though they match.
        place: where the log is, for others to read.
        take_over: a slot that belongs to another log is given to this one.
        allow_failing_updates: tables may be published whose UPDATE and DELETE the server refuses from then on.
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
    place: str = owner.MEMORY
    take_over: bool = False
    allow_failing_updates: bool = False


class Opening:
    """The way from a declaration to a record in the log from which streaming goes on.

    Attributes:
        tables: what is captured, in snapshot order, with columns as the catalog has them.
        identities: columns that identify an old row, by the table's OID; None: all.
        resumes: the log has rows of the source already.
        changes: the publication has updates or deletes, not only inserts.
        failing: why the server refuses UPDATE and DELETE while they are captured, by the table's OID.
        began: what the capture began with; None for a log that is new, until `open`.
        doing: what takes time now, for people.
        reading: that is the snapshot, which is at work and waits for nobody.
        owner: the log as others can see it, after `open`.
    """

    def __init__(self, declared: Declared, progress: Progress) -> None:
        self.tables: list[Table] = []
        self.identities: dict[int, frozenset[str] | None] = {}
        self.changes = True
        self.resumes = False
        self.failing: dict[int, str] = {}
        self.began: Began | None = None
        self.doing = ""
        self.reading = False
        self.owner = Owner("", declared.place, "", declared.app)
        self._declared = declared
        self._progress = progress
        self._identity = Identity("", 0, "")

    def check(self, log: Log) -> None:
        """See `PostgresSource.check`."""
        declared, server = self._declared, self._declared.server
        known = SourceRecord.load(log, declared.name)
        self.resumes = known is not None
        self.doing = f"connecting to {server}"
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            self.doing = f"looking at tables, publication and slot of {server}"
            provision.check_server(connection, server)
            with contextlib.closing(Replication.open(server)) as replication:
                self._identity = provision.identify(replication)
            if known is not None:
                slot_binding.check_identity(known, self._identity)
                self.began = Began.load(log, declared.name)
                chosen = self._known(connection, log, known)
            else:
                self._check_owner(connection, log, None)
                chosen = provision.choose_tables(connection, server, declared.patterns, declared.left_out)
            publication = catalog.publication(connection, declared.publication)
            self.tables = self._in_order(catalog.with_columns(connection, chosen, publication))
            provision.check_columns(self.tables)
            self.identities = catalog.identities(connection, self.tables)
            self.tables = [table.told_by(self.identities[table.oid]) for table in self.tables]
            self.changes = publication is None or bool(publication.operations & {"update", "delete"})
            if self.changes:
                self.failing = catalog.failing_updates(connection, [table.oid for table in self.tables])
            if known is None:
                # Of a publication of the user's they fail already, whatever we do.
                if declared.own_publication and not declared.allow_failing_updates:
                    provision.check_updates(self.tables, self.failing, server)
                self._check_new(connection, publication)
            if publication and not declared.own_publication:
                provision.check_publication(publication, self.tables, server)
        self.done()

    def _check_owner(self, connection: SqlConnection, log: Log, known: SourceRecord | None) -> None:
        """See that the slot, if it is there, is this log's, or that the user wants it to be."""
        declared = self._declared
        self.owner = Owner.here(log, place=declared.place, app=declared.app)
        slot = catalog.replication_slot(connection, declared.slot)
        if slot is None:
            return
        slot_binding.check_foreign(slot, self._identity.database)
        owners = owner.noted(connection, declared.publication)
        owner.check_reader(slot, self.owner, owners)
        if declared.take_over:
            return
        if known is not None:
            owner.check_known(slot, known, self.owner, owners)
        else:
            claimed = owner.claimed(log, declared.name) == slot.name
            owner.check_new(slot, self.owner, owners, claimed=claimed, derived=declared.own_slot)

    def _known(self, connection: SqlConnection, log: Log, known: SourceRecord) -> list[Table]:
        """The tables that the log has, after it was seen that nothing has gone by it."""
        slot_binding.check_names(known, self._declared.slot, self._declared.publication)
        self._check_owner(connection, log, known)
        slot_binding.check_slot(known, catalog.replication_slot(connection, known.slot))
        slot_binding.check_position(known, catalog.insert_lsn(connection))
        if self.began is None:
            self.began = self._taken_up(connection, known)
        drift.check(self.began, drift.look_again(connection, self.began), own=self._declared.own_publication)
        return provision.known_tables(connection, self._declared.patterns, self.began, self._declared.left_out)

    def _taken_up(self, connection: SqlConnection, known: SourceRecord) -> Began:
        """What a capture began with whose log has only the tables' names: what has these names now.

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
            provision.check_room(connection, server)
        if not declared.own_slot and declared.with_snapshot:
            raise slot_binding.named_slot(declared.slot)
        now = drift.look(connection, declared.publication)
        mends = declared.own_publication and not provision.right_shape(now, self.tables)
        publishes = mends or publication is None
        provision.check_rights(connection, server, self.tables, reads=declared.with_snapshot, publishes=publishes)

    def _in_order(self, tables: Sequence[Table]) -> list[Table]:
        """Tables that models learn from first, then the others, each in name order."""
        first = {name.lower() for name in self._declared.first_tables}
        return sorted(tables, key=lambda table: str(table).lower() not in first)

    def open(self, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Make publication, slot and snapshot where the log has none; the log's record.

        Raises:
            SourceUnavailable, SourceRefused: as `PostgresSource.start`.
        """
        declared, server = self._declared, self._declared.server
        if not self.tables:
            self.check(log)
        known = SourceRecord.load(log, declared.name)
        self.doing = f"connecting to {server}"
        with contextlib.closing(server.sql()) as connection, server.translated("a catalog query"):
            if known is None:
                self.doing = f"making publication «{declared.publication}»"
                now = provision.ensure_publication(
                    connection, server, declared.publication, self.tables, own=declared.own_publication
                )
                self.began = now.began((table.oid, table.schema, table.name) for table in self.tables)
                known = self._begin(connection, log, cancelled)
            else:
                self.owner = owner.claim(log, self.owner, declared.name, known.slot)
                if Began.load(log, declared.name) is None:
                    self._put(log, known)
            owner.note(connection, declared.publication, declared.slot, self.owner)
            provision.wait_until_free(connection, declared.slot, cancelled, self._say)
        self.done()
        return known

    def _say(self, doing: str) -> None:
        self.doing = doing

    def done(self) -> None:
        """Nothing takes time any more."""
        self.doing, self.reading = "", False

    def _begin(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """A slot, and the snapshot when it is wanted, published with the record."""
        if not self._declared.own_slot:
            slot = catalog.replication_slot(connection, self._declared.slot)
            if slot is not None:
                self.owner = owner.claim(log, self.owner, self._declared.name, slot.name)
                return self._put(log, self._new_record(slot.confirmed_flush))
        attempt = 1
        while True:
            try:
                return self._begin_anew(connection, log, cancelled)
            except SnapshotStale:
                if attempt == _SNAPSHOT_ATTEMPTS:
                    raise
            attempt += 1

    def _begin_anew(self, connection: SqlConnection, log: Log, cancelled: Callable[[], bool]) -> SourceRecord:
        """Our own slot without a record has lost its snapshot: drop it and make it anew."""
        declared, server = self._declared, self._declared.server
        if provision.wait_until_free(connection, declared.slot, cancelled, self._say) is not None:
            provision.drop_slot(connection, server, declared.slot)
        with contextlib.closing(Replication.open(server, cancelled=cancelled)) as replication:
            self.doing = f"making slot «{declared.slot}», which waits for the transactions that are open now"
            self.owner = owner.claim(log, self.owner, declared.name, declared.slot)
            try:
                lsn, exported = provision.create_slot(replication, declared.slot, cancelled)
            except CommandError as error:
                if error.code == _DUPLICATE:
                    owner.unclaim(log, declared.name)
                raise
            fault("snapshot.slot-created")
            owner.note(connection, declared.publication, declared.slot, self.owner)
            if not declared.with_snapshot:
                return self._put(log, self._new_record(lsn))
            self.doing = "locking the tables to read them as they were"
            with Snapshot(server, exported, self.tables, declared.publication) as snapshot:
                replication.close()
                self.tables = snapshot.tables
                return self._store_snapshot(snapshot, log, lsn)

    def _store_snapshot(self, snapshot: Snapshot, log: Log, lsn: int) -> SourceRecord:
        self._discard_staged(log)
        self.reading = True
        try:
            stage_snapshot(snapshot, log, prefix=self._declared.name, lsn=lsn, progress=self._report)
        except SourceError:
            self._discard_staged(log)
            raise
        fault("snapshot.before-publish")
        new = self._put(log, self._new_record(lsn), publish=True)
        fault("snapshot.after-publish")
        return new

    @staticmethod
    def _discard_staged(log: Log) -> None:
        with log.transaction() as transaction:
            transaction.discard_staged()

    def _report(self, table: str, rows: int, estimated: int) -> None:
        self.doing = f"snapshot of {table}: {rows:,} of about {estimated:,} rows"
        self._progress(table, rows, estimated)

    def _new_record(self, lsn: int) -> SourceRecord:
        declared = self._declared
        names = tuple(sorted(str(table) for table in self.tables))
        return SourceRecord(self._identity, declared.slot, declared.publication, names, lsn, lsn, (0, 0))

    def _put(self, log: Log, new: SourceRecord, *, publish: bool = False) -> SourceRecord:
        assert self.began is not None
        with log.transaction() as transaction:
            if publish:
                transaction.publish()
            transaction.put(slot_binding.KIND, self._declared.name, new.to_json())
            transaction.put(drift.KIND, self._declared.name, self.began.to_json())
        return new
