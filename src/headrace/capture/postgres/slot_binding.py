"""The one record that ties a log to a replication slot, and the checks that they still belong together.

The log keeps it under (``source``, prefix). It is published in the log transaction that makes the snapshot's rows
visible, and changed only by storing a new acknowledged LSN.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from headrace.capture.base import KIND, Log
from headrace.capture.postgres.catalog import Slot, SqlConnection, quote
from headrace.capture.postgres.gaps import Gap
from headrace.errors import LogCorrupt, SourceRefused
from headrace.position import format_lsn, parse_lsn

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Identity:
    """The history of a cluster that LSNs belong to, and the database in it."""

    system_identifier: str
    timeline: int
    database: str

    def __str__(self) -> str:
        return f"system {self.system_identifier}, timeline {self.timeline}, database «{self.database}»"


def read_record(log: Log, kind: str, name: str, what: str, parse: Callable[[dict[str, Any]], _T]) -> _T | None:
    """Return a record of the log as `parse` makes it of its JSON, None where there is none.

    Raises:
        LogCorrupt: it is there and cannot be read.
    """
    stored = log.records(kind, name).get(name)
    if stored is None:
        return None
    try:
        return parse(json.loads(stored))
    except (ValueError, KeyError, TypeError) as error:
        raise LogCorrupt(f"the log's record of {what} cannot be read: {stored!r}") from error


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """The record that a log keeps of its source.

    Attributes:
        tables: the tables captured, as ``schema.table``.
        consistent_point: where the snapshot ends and the stream begins.
        acknowledged: everything committed before this LSN is in the log.
        last: commit LSN and time (microseconds) of the last transaction of which rows are in the log, (0, 0) when
            there was none since the snapshot; None where that is not known, as in logs made before it was kept.
    """

    identity: Identity
    slot: str
    publication: str
    tables: tuple[str, ...]
    consistent_point: int
    acknowledged: int
    last: tuple[int, int] | None = None

    def to_json(self) -> bytes:
        """Return the record as it is stored; ``acknowledged`` stands last.

        >>> identity = Identity("7", 1, "shop")
        >>> SourceRecord(identity, "s", "p", ("public.t",), 16, 32, (24, 5)).to_json()[-79:]
        b'"consistent_point": "0/10", "last_commit": ["0/18", 5], "acknowledged": "0/20"}'
        """
        return self.head() + self.rest(self.acknowledged, self.last)

    @staticmethod
    def rest(acknowledged: int, last: tuple[int, int] | None) -> bytes:
        """Return the end of the stored form, the only part that changes from commit to commit."""
        commit = f', "last_commit": ["{format_lsn(last[0])}", {last[1]}]' if last is not None else ""
        return f'{commit}, "acknowledged": "{format_lsn(acknowledged)}"}}'.encode()

    def head(self) -> bytes:
        """Return the stored form up to where it changes from commit to commit."""
        fields = {
            **asdict(self.identity),
            "slot": self.slot,
            "publication": self.publication,
            "tables": list(self.tables),
            "consistent_point": format_lsn(self.consistent_point),
        }
        return json.dumps(fields, ensure_ascii=False)[:-1].encode()

    @classmethod
    def load(cls, log: Log, prefix: str) -> SourceRecord | None:
        """Return the log's record of the source of this name, or None.

        Raises:
            LogCorrupt: it is there and cannot be read.
        """

        def parse(fields: dict[str, Any]) -> SourceRecord:
            identity = Identity(fields["system_identifier"], int(fields["timeline"]), fields["database"])
            points = parse_lsn(fields["consistent_point"]), parse_lsn(fields["acknowledged"])
            commit = fields.get("last_commit")
            last = None if commit is None else (parse_lsn(commit[0]), int(commit[1]))
            return cls(identity, fields["slot"], fields["publication"], tuple(fields["tables"]), *points, last)

        return read_record(log, KIND, prefix, f"source «{prefix}»", parse)

    def with_acknowledged(self, lsn: int) -> SourceRecord:
        return replace(self, acknowledged=lsn)

    def gap(self, until: int = 0) -> Gap:
        """Return what the log may not have where its slot sends nothing from before an LSN, or nothing at all."""
        return Gap(self.tables, self.acknowledged, self.last[1] if self.last else 0, until)


def known_sources(log: Log) -> dict[str, SourceRecord]:
    """Return the databases that a log has captured, by prefix."""
    found = {}
    for name, stored in log.records(KIND).items():
        if b'"system_identifier"' in stored:
            record = SourceRecord.load(log, name)
            found.update({name: record} if record else {})
    return found


OURS = "headrace_"  # begins the names of slots and publications that we make


def derived_name(app: str, prefix: str) -> str:
    """Return the name of our own slot and publication: a PostgreSQL identifier of at most 63 characters.

    >>> derived_name("iris", "iris"), derived_name("Iris demo", "flink")
    ('headrace_iris', 'headrace_iris_demo_flink')
    """
    plain = app if app == prefix else f"{app}_{prefix}"
    name = OURS + re.sub(r"[^a-z0-9_]", "_", plain.lower())
    if len(name) <= 63:
        return name
    return f"{name[:54]}_{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


class Stranded(SourceRefused):
    """The log cannot go on from its slot, and a resync can take it on: ``headrace capture resync``.

    Args:
        message: why it cannot.
        first: what else can be done; said first.
        declared: what is declared now is wanted (tables, names), so that the command needs the pipeline's file.
        force: a start does not see it, so that the command has to be told.
        take_over: the slot is another log's.
        gap: what the log may not have, where a start can be told to go on nevertheless (``on_gap``).
    """

    def __init__(
        self,
        message: str,
        *,
        first: str = "",
        declared: bool = False,
        force: bool = False,
        take_over: bool = False,
        gap: Gap | None = None,
    ) -> None:
        super().__init__(f"{message}. Missing may be {gap}" if gap is not None else message)
        self.gap = gap
        self._first = f"{first} " if first else ""
        self._options = " FILE.py" * declared + " --force" * force + " --take-over" * take_over
        self.at("")

    def at(self, place: str) -> None:
        """Name the log in the advice."""
        if place.startswith(MEMORY):
            self.advice = f"{self._first}Start the app anew: a log in memory begins with a new snapshot."
            return
        self.advice = (
            f"{self._first}`headrace capture resync{self._options} --log {place or 'PATH'}` takes a new snapshot into "
            "this log: rows that changed meanwhile are appended as updates, rows that are gone as deletes; models, "
            "history and positions stay."
        )
        if self.plain:
            self.advice += " A start with --on-gap snapshot does it by itself"
            accepts = "; --on-gap accept goes on without what is missing, and the log says so"
            self.advice += f"{accepts if self.gap is not None else ''}."

    @property
    def plain(self) -> bool:
        """Return whether a resync takes the log on that is told nothing else."""
        return not self._options


RESYNC = "resync"  # a record of this kind: a resync of the source was begun, and not finished


def check_whole(log: Log, prefix: str) -> None:
    """Refuse to go on where a resync was not finished: the slot is a new one, and the log has not met it.

    Raises:
        Stranded: saying when it began.
    """
    begun = log.records(RESYNC, prefix).get(prefix)
    if begun is not None:
        at, known = json.loads(begun).get("at", ""), SourceRecord.load(log, prefix)
        raise Stranded(
            f"a resync of source «{prefix}», begun at {at}, was not finished: the log is as it was before",
            gap=known.gap() if known is not None else None,
        )


def check_slot(record: SourceRecord, slot: Slot | None) -> None:
    """Refuse to go on where the slot cannot give what follows the log.

    Raises:
        Stranded: it is missing, invalidated, or ahead of the log; SourceRefused: it is another's.
    """
    where = f"slot «{record.slot}» of database «{record.identity.database}»"
    stored = format_lsn(record.acknowledged)
    if slot is None:
        raise Stranded(
            f"{where} is gone, and the log holds its rows up to {stored}: what was committed since may be lost",
            gap=record.gap(),
        )
    check_foreign(slot, record.identity.database)
    if slot.lost:
        raise Stranded(
            f"{where} was invalidated by the server ({slot.lost}): changes after {stored} are no longer kept",
            first="Raise max_slot_wal_keep_size (or idle_replication_slot_timeout).",
            gap=record.gap(),
        )
    if slot.confirmed_flush > record.acknowledged:
        raise Stranded(
            f"{where} stands at {format_lsn(slot.confirmed_flush)}, but the log ends at {stored}: the log is an old "
            "copy, another program reads this slot, or it was made again or advanced by hand; what lies between will "
            "not come again",
            first="Use the newest copy of the log. Where there is none:",
            gap=record.gap(slot.confirmed_flush),
        )


def check_names(record: SourceRecord, slot: str, publication: str) -> None:
    """Refuse to go on with another slot or publication than the log's.

    Raises:
        SourceRefused: naming both.
    """
    for kind, had, wanted in (("slot", record.slot, slot), ("publication", record.publication, publication)):
        if had != wanted:
            raise Stranded(
                f"the log was captured through {kind} «{had}», not «{wanted}»",
                first=f"Name it with {kind}={had!r}. Where it is to be the other one:",
                declared=True,
            )


def named_slot(name: str) -> SourceRefused:
    """Return the error for a slot that the user named and that is there, when the log is new and wants a snapshot."""
    return SourceRefused(
        f"slot «{name}» is there already, and a snapshot can only be taken by the connection that makes the slot",
        advice='Name one that is not there, or leave out slot=…, and it is made; or say snapshot="never" '
        "(snapshot.mode=no_data) to begin where the slot stands.",
    )


def check_foreign(slot: Slot, database: str) -> None:
    """Refuse a slot of another plugin or database, or one that sends what is not committed.

    Raises:
        SourceRefused: it is one.
    """
    kind = f"plugin «{slot.plugin}»" if slot.plugin else "no plugin: a physical slot"
    if slot.plugin != "pgoutput" or slot.database != database:
        raise SourceRefused(
            f"slot «{slot.name}» is not ours: {kind}, database «{slot.database}», wanted pgoutput and «{database}»",
            advice="Choose another name with slot=…, or drop it if nobody needs it (headrace slots drop).",
        )
    if slot.two_phase:
        raise SourceRefused(
            f"slot «{slot.name}» was made with two_phase: the server sends rows of prepared transactions through it "
            "that may still be rolled back",
            advice="Make it without (pg_create_logical_replication_slot(…, 'pgoutput')); rows of prepared transactions "
            "then come when they are committed.",
        )


def check_identity(
    record: SourceRecord, identity: Identity, switches: Mapping[int, int], *, read_until: int
) -> SourceRecord:
    """Return the record as it goes on with a server: that of a standby that was promoted has another timeline.

    A log goes on there where it holds no rows that the standby had not received when it was promoted. What the log has
    acknowledged behind that point was of other tables, or of none: it goes on from that point.

    Args:
        switches: where the timelines ended that are in the server's history, as `startup.timelines` says.
        read_until: before this LSN tables were read that joined later; what they had then is in the log.

    Raises:
        Stranded: it is another cluster, timeline or database than the log's; naming both.
    """
    was = record.identity
    if was == identity:
        return record
    if (was.system_identifier, was.database) == (identity.system_identifier, identity.database):
        switch = switches.get(was.timeline)
        known = max(record.consistent_point, read_until)
        held = record.acknowledged if record.last is None else record.last[0] + 1
        if switch is not None and max(known, min(held, record.acknowledged)) <= switch:
            return replace(record, identity=identity, acknowledged=min(record.acknowledged, switch))
        if switch is not None:
            raise Stranded(
                f"the server is a standby, promoted at {format_lsn(switch)}, and the log holds what its primary "
                f"had committed before {format_lsn(record.acknowledged)}: rows of the log may not be in the database, "
                "and positions no longer compare",
                first="List standbys in synchronized_standby_slots: then nothing is captured that they have not.",
                gap=record.gap(),
            )
    raise Stranded(
        f"the log belongs to another database: it was captured from {was}; this is {identity} "
        "(after a restore, an upgrade or a failover positions no longer compare)",
        first="Connect to the database it was captured from. Where this one has taken its place:",
        gap=record.gap(),
    )


def check_position(record: SourceRecord, insert_lsn: int) -> None:
    """Refuse a server whose log ends before what was acknowledged to it: it only acknowledges what it has on disk.

    Raises:
        SourceRefused: it was restored from an older copy.
    """
    if insert_lsn < record.acknowledged:
        raise restored(
            record,
            f"it writes its log at {format_lsn(insert_lsn)}, and the log here has everything committed before "
            f"{format_lsn(record.acknowledged)}",
        )


def restored(record: SourceRecord, why: str, *, force: bool = False) -> SourceRefused:
    """Return the error for a server whose history is not the one that the log was captured from."""
    return Stranded(
        f"the server of database «{record.identity.database}» was restored from an older copy: {why}",
        first="Rows of the log may not be in this database any more, and rows of it not in the log.",
        force=force,
        gap=None if force else record.gap(),
    )


# --- whose a slot is: it belongs to one log, and another log is refused, not adopted ---
#
# A log has an identity: the record (``owner``, ""), made when it first captures and kept for ever, also in a copy.
# Before a slot is made, the record (``owner``, prefix) says that this log is making it; so a start that was killed in
# the middle knows the slot it left behind.
#
# On the server the owner stands in the comment of the publication, which is ours or belongs to our role: slots carry no
# notes. A role that only reads cannot write there. Then a slot of a derived name is still refused, without saying whose
# it is; one that the user named is taken where it stands, as long as nobody reads it.

OWNER = "owner"
MEMORY = "memory://"
_MARK = "headrace: "  # the comments of the user's own are left alone
_NAME_BYTES = 63  # what PostgreSQL keeps of an application name
_SHORT = 8


@dataclass(frozen=True, slots=True)
class Owner:
    """A log that has a slot, as others can see it.

    Attributes:
        log: its identity; "" of a log that has none yet.
        place, host: where it was opened last.
        app: the application that captures into it.
        seen: when it was last started, in UTC.
    """

    log: str
    place: str
    host: str
    app: str
    seen: str = ""

    @classmethod
    def here(cls, log: Log, *, place: str, app: str) -> Owner:
        """Return the log that is about to capture."""
        return cls(_identity(log), place, socket.gethostname(), app)

    @property
    def application(self) -> str:
        """Return what its connections are called, so that others see in pg_stat_activity which log reads a slot.

        >>> Owner("3f9a1c2e" + 24 * "0", "/srv/iris.headrace", "db1", "iris").application
        'headrace iris, log 3f9a1c2e /srv/iris.headrace'
        """
        name = f"headrace {self.app[:20]}"
        if self.log:
            name += f", log {self.log[:_SHORT]} "
            name += self.place[-max(0, _NAME_BYTES - len(name.encode())) :]
        return name.encode("ascii", "replace")[:_NAME_BYTES].decode()

    def reads(self, slot: Slot) -> bool:
        """Return whether the slot's reader is a connection of this log's, perhaps of a process that was killed."""
        return bool(self.log) and f", log {self.log[:_SHORT]} " in slot.reader

    def replaced_by(self, other: Owner) -> bool:
        """Return whether the other log lies where this one lay, which is therefore gone."""
        if self.host != other.host:
            return False
        return self.place == other.place or (self.place.startswith(MEMORY) and not _alive(self.place))

    def __str__(self) -> str:
        parts = [f"app «{self.app}»", f"host «{self.host}»", f"last started {self.seen}" if self.seen else ""]
        return f"{self.place} ({', '.join(part for part in parts if part)}; log {self.log[:_SHORT]})"


def _identity(log: Log) -> str:
    return read_record(log, OWNER, "", "its identity", lambda found: str(found["log"])) or ""


@dataclass(frozen=True, slots=True)
class Claim:
    """The slot that a log has made, or was making when it was stopped, and what a later command has to know of it.

    Attributes:
        address: the connection string without its secrets; "" in logs made before it was kept.
        snapshot: whether the log was to begin with the rows that were there.
    """

    slot: str = ""
    address: str = ""
    snapshot: bool = True

    @classmethod
    def load(cls, log: Log, prefix: str) -> Claim:
        """Return the log's claim for the source of this name; an empty one where it has none."""
        stored = log.records(OWNER, prefix).get(prefix) if prefix else None
        found = json.loads(stored) if stored else {}
        return cls(found.get("slot", ""), found.get("address", ""), found.get("snapshot", True))

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def claim(log: Log, owner: Owner, prefix: str, wanted: Claim) -> Owner:
    """Have the log know itself and its slot; writes only what is not there."""
    known = replace(owner, log=owner.log or uuid.uuid4().hex)
    if known.log != owner.log or Claim.load(log, prefix) != wanted:
        with log.transaction() as transaction:
            transaction.put(OWNER, "", json.dumps({"log": known.log}).encode())
            transaction.put(OWNER, prefix, wanted.to_json())
    return known


def unclaim(log: Log, prefix: str) -> None:
    """Forget a claim: the slot could not be made, as it is another's."""
    with log.transaction() as transaction:
        transaction.put(OWNER, prefix, Claim().to_json())


def noted(connection: SqlConnection, publication: str) -> dict[str, Owner]:
    """Return owners of slots as the publication's comment says, by slot."""
    query = "SELECT coalesce(obj_description(oid, 'pg_publication'), '') FROM pg_publication WHERE pubname = %s"
    row = connection.execute(query, [publication]).fetchone()
    return _parsed(row[0] if row else "")


def all_noted(connection: SqlConnection) -> dict[str, Owner]:
    """Return owners of slots as the comments of all of the database's publications say, by slot."""
    query = "SELECT obj_description(oid, 'pg_publication') FROM pg_publication"
    comments = [row[0] for row in connection.execute(query) if row[0]]
    return {slot: owner for comment in comments for slot, owner in _parsed(comment).items()}


def _parsed(comment: str) -> dict[str, Owner]:
    """
    >>> _parsed('headrace: {"s": {"log": "3f", "place": "/a", "host": "h", "app": "x", "later": 1}}')["s"].place
    '/a'
    >>> _parsed("for the warehouse"), _parsed("headrace: [")
    ({}, {})
    """
    if not comment.startswith(_MARK):
        return {}
    names = [field.name for field in fields(Owner)]
    try:
        found = json.loads(comment.removeprefix(_MARK))
        return {slot: Owner(*(str(about.get(name, "")) for name in names)) for slot, about in found.items()}
    except (ValueError, AttributeError):
        return {}


def note(connection: SqlConnection, publication: str, slot: str, owner: Owner) -> None:
    """Say in the publication's comment whose the slot is, where our role may and the comment is not the user's own."""
    try:
        with connection.transaction():
            # Two pipelines that share a publication may start at the same moment.
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('headrace ' || %s, 0))", [publication])
            query = """SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC'),
                coalesce(obj_description(p.oid, 'pg_publication'), ''), ARRAY(SELECT slot_name::text FROM
                pg_replication_slots WHERE database = current_database()), pg_has_role(p.pubowner, 'USAGE')
                FROM pg_publication p WHERE pubname = %s"""
            row = connection.execute(query, [publication]).fetchone()
            if row is None or not row[3] or (row[1] and not row[1].startswith(_MARK)):
                return
            seen, comment, slots, _ = row
            owners = {name: known for name, known in _parsed(comment).items() if name in slots}
            owners[slot] = replace(owner, seen=seen)
            text = _MARK + json.dumps({name: asdict(known) for name, known in owners.items()})
            text = text.replace("'", "''")
            connection.execute(f"COMMENT ON PUBLICATION {quote(publication)} IS '{text}'".encode())
    except psycopg.errors.InsufficientPrivilege:
        return


_WAYS = (
    "Go on with that log (log=… or --log); or give this one a slot of its own (another name of the App, prefix=… or "
    "slot=…); or, when that log is not needed any more, take its slot over: headrace run --take-over, or "
    "app.run(take_over=True). This log then begins with a new snapshot, and that one can never go on."
)


def check_new(slot: Slot, own: Owner, owners: Mapping[str, Owner], *, claimed: bool, derived: bool) -> None:
    """Refuse to take a slot that is there for a log that has captured nothing through it.

    Args:
        own: the log that asks.
        owners: as `noted`.
        claimed: this log was making the slot when it was stopped.
        derived: its name is ours; one that the user named may have been made for this log.

    Raises:
        SourceRefused: naming the log that has it, or whoever reads it.
    """
    owner = owners.get(slot.name)
    if owner is None:
        if claimed or not derived:
            return
    elif owner.log == own.log or owner.replaced_by(own):
        return
    raise _taken(slot, owner)


def check_known(slot: Slot | None, record: SourceRecord, own: Owner, owners: Mapping[str, Owner]) -> None:
    """Refuse to go on with a log whose slot was given to another one since.

    Raises:
        SourceRefused: naming that one.
    """
    owner = owners.get(record.slot)
    if owner is not None and owner.log != own.log and slot is not None and not (owner.replaced_by(own) and not own.log):
        raise Stranded(
            f"slot «{record.slot}» belongs to another log now: {owner}; what was committed after "
            f"{format_lsn(record.acknowledged)}, where this log ends, went there",
            first="Go on with that log. Where it is not needed any more, and can never go on:",
            take_over=True,
        )


def check_reader(slot: Slot, own: Owner, owners: Mapping[str, Owner]) -> None:
    """Refuse at once a slot that another log reads now; our own dead reader, and other programs, are waited for.

    Raises:
        SourceRefused: naming the reader.
    """
    if slot.active_pid is None or ", log " not in slot.reader or own.reads(slot):
        return
    owner = owners.get(slot.name)
    if owner is None or not owner.replaced_by(own):
        raise _taken(slot, owner)


def _taken(slot: Slot, owner: Owner | None) -> SourceRefused:
    now = f"server process {slot.active_pid} «{slot.reader}»" if slot.active_pid is not None else ""
    reads = f", and is read now ({now})" if now else f", idle since {slot.idle_since}" if slot.idle_since else ""
    whose = f"belongs to another log: {owner}" if owner else "was not made for this log: another one may be using it"
    return SourceRefused(f"slot «{slot.name}» {whose}{reads}", advice=_WAYS)


def where(place: str) -> str:
    """Return a log's place for others to read: a file with its folders, a log in memory with its process."""
    if place.startswith(MEMORY):
        return f"{MEMORY} of process {os.getpid()}"
    return place if "://" in place else str(Path(place).resolve())


def log_state(owner: Owner) -> str:
    """Return whether a slot's log is still there, as far as this machine can tell.

    Returns:
        ``there``, ``gone``, ``elsewhere`` (another host) or ``cluster`` (on Kafka).

    >>> log_state(Owner("3f", "/nowhere/at/all.headrace", socket.gethostname(), "x"))
    'gone'
    """
    if "://" in owner.place and not owner.place.startswith(MEMORY):
        return "cluster"
    if owner.host != socket.gethostname():
        return "elsewhere"
    there = _alive(owner.place) if owner.place.startswith(MEMORY) else Path(owner.place).exists()
    return "there" if there else "gone"


def _alive(place: str) -> bool:
    process = place.rpartition(" ")[2]
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
