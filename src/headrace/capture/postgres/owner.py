"""Whose a slot is: a replication slot belongs to one log, and another log is refused, not adopted.

A log has an identity: the record (``owner``, ""), made when it first captures and kept for ever, also in a copy. Before
a slot is made, the record (``owner``, prefix) says that this log is making it; so a start that was killed in the middle
knows the slot it left behind.

On the server the owner stands in the comment of the publication, which is ours or belongs to our role: slots carry no
notes. A role that only reads cannot write there. Then a slot of a derived name is still refused, without saying whose
it is; one that the user named is taken where it stands, as long as nobody reads it.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import psycopg

from headrace.capture.base import Log
from headrace.capture.postgres.catalog import Slot, SqlConnection, quote
from headrace.capture.postgres.slot_binding import SourceRecord
from headrace.errors import LogCorrupt, SourceRefused
from headrace.position import format_lsn

KIND = "owner"
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
        """The log that is about to capture."""
        return cls(_identity(log), place, socket.gethostname(), app)

    @property
    def application(self) -> str:
        """What its connections are called, so that others see in pg_stat_activity which log reads a slot.

        >>> Owner("3f9a1c2e" + 24 * "0", "/srv/iris.headrace", "db1", "iris").application
        'headrace iris, log 3f9a1c2e /srv/iris.headrace'
        """
        name = f"headrace {self.app[:20]}"
        if self.log:
            name += f", log {self.log[:_SHORT]} "
            name += self.place[-max(0, _NAME_BYTES - len(name.encode())) :]
        return name.encode("ascii", "replace")[:_NAME_BYTES].decode()

    def reads(self, slot: Slot) -> bool:
        """Whether the slot's reader is one of this log's connections: ours, perhaps of a process that was killed."""
        return bool(self.log) and f", log {self.log[:_SHORT]} " in slot.reader

    def replaced_by(self, other: Owner) -> bool:
        """Whether the other log lies where this one lay, which is therefore gone."""
        if self.host != other.host:
            return False
        return self.place == other.place or (self.place.startswith(MEMORY) and not _alive(self.place))

    def __str__(self) -> str:
        parts = [f"app «{self.app}»", f"host «{self.host}»", f"last started {self.seen}" if self.seen else ""]
        return f"{self.place} ({', '.join(part for part in parts if part)}; log {self.log[:_SHORT]})"


def _identity(log: Log) -> str:
    stored = log.records(KIND).get("")
    if stored is None:
        return ""
    try:
        return str(json.loads(stored)["log"])
    except (ValueError, KeyError, TypeError) as error:
        raise LogCorrupt(f"the log's record of its identity cannot be read: {stored!r}") from error


def claimed(log: Log, prefix: str) -> str:
    """The slot that this log has made, or was making when it was stopped; "" when it was not."""
    stored = log.records(KIND, prefix).get(prefix)
    return str(json.loads(stored)["slot"]) if stored and prefix else ""


def claim(log: Log, owner: Owner, prefix: str, slot: str) -> Owner:
    """Have the log know itself and its slot; writes only what is not there."""
    known = replace(owner, log=owner.log or uuid.uuid4().hex)
    if known.log != owner.log or claimed(log, prefix) != slot:
        with log.transaction() as transaction:
            transaction.put(KIND, "", json.dumps({"log": known.log}).encode())
            transaction.put(KIND, prefix, json.dumps({"slot": slot}).encode())
    return known


def unclaim(log: Log, prefix: str) -> None:
    """The slot could not be made: it is another's."""
    with log.transaction() as transaction:
        transaction.put(KIND, prefix, json.dumps({"slot": ""}).encode())


def noted(connection: SqlConnection, publication: str) -> dict[str, Owner]:
    """Owners of slots as the publication's comment says, by slot."""
    query = "SELECT coalesce(obj_description(oid, 'pg_publication'), '') FROM pg_publication WHERE pubname = %s"
    row = connection.execute(query, [publication]).fetchone()
    return _parsed(row[0] if row else "")


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
        raise SourceRefused(
            f"slot «{record.slot}» belongs to another log now: {owner}; what was committed after "
            f"{format_lsn(record.acknowledged)}, where this log ends, went there",
            advice="Go on with that log, or capture into a new one with a slot of its own (another name of the App, or "
            "prefix=…): it begins with a new snapshot.",
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
    """A log's place for others to read: a file with its folders, a log in memory with its process."""
    if place.startswith(MEMORY):
        return f"{MEMORY} of process {os.getpid()}"
    return place if "://" in place else str(Path(place).resolve())


def _alive(place: str) -> bool:
    process = place.rpartition(" ")[2]
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except OSError:
        return True
    return True
