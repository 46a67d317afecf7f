"""The replication slots of a server as people look after them: whose they are, what they keep, dropping them.

A slot is ours by its name, or because a publication's comment says whose it is (`slot_binding`). Slots are of the whole
cluster and comments of one database, so each database that has slots is asked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headrace.capture.postgres import slot_binding
from headrace.capture.postgres.catalog import SqlConnection, quote
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.slot_binding import Owner
from headrace.errors import SourceError, SourceRefused
from headrace.units import bytes_text

# Less is what any slot keeps for a while: nobody is warned of it.
WARN_BYTES = 64 << 20

_SLOTS = """
SELECT slot_name::text, coalesce(database::text, ''), active_pid,
  (CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END - restart_lsn)::bigint,
  coalesce(wal_status, ''), coalesce(a.application_name, ''),
  coalesce(left(to_jsonb(s) ->> 'inactive_since', 19), '')
FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid ORDER BY slot_name
"""


@dataclass(frozen=True, slots=True)
class KeptSlot:
    """A slot, what it keeps, and whose it is.

    Attributes:
        pid: of the server process that sends its changes to a reader; None while nobody reads.
        retained_bytes: WAL that the server keeps for it; None where it keeps none any more.
        wal_status: as ``pg_replication_slots`` has it; ``lost`` where the WAL is gone.
        idle_since: when its last reader left, in the server's time (from version 17 on).
        owner: the log that it belongs to; None where nothing says so.
    """

    name: str
    database: str
    pid: int | None
    retained_bytes: int | None
    wal_status: str
    reader: str
    idle_since: str
    owner: Owner | None = None

    @property
    def ours(self) -> bool:
        """Return whether Headrace made it, or reads it."""
        return self.owner is not None or self.name.startswith(slot_binding.OURS)


def slots_of(server: Server) -> list[KeptSlot]:
    """Return all slots of a server, by name.

    Raises:
        SourceUnavailable, SourceRefused: it cannot be asked.
    """
    with contextlib.closing(server.sql()) as connection, server.translated("to list the replication slots"):
        found = [KeptSlot(*row) for row in connection.execute(_SLOTS)]
        here = connection.info.dbname
        owners = {here: slot_binding.all_noted(connection)}
    for database in sorted({slot.database for slot in found if slot.database} - {here}):
        # Where our role may not look, nobody says whose its slots are.
        with contextlib.suppress(SourceError):
            owners[database] = _noted_in(replace(server, dsn=server.conninfo(dbname=database)))
    return [replace(slot, owner=owners.get(slot.database, {}).get(slot.name)) for slot in found]


def _noted_in(server: Server) -> dict[str, Owner]:
    with contextlib.closing(server.sql()) as connection, server.translated("to read comments of publications"):
        return slot_binding.all_noted(connection)


def idle_warning(connection: SqlConnection, server: Server, own: str) -> str:
    """Return a line about slots of ours that nobody reads and that keep much WAL; "" when there are none.

    Args:
        own: the slot that is about to be read.
    """
    slots = [KeptSlot(*row) for row in connection.execute(_SLOTS)]
    idle = [slot for slot in slots if slot.ours and slot.pid is None and slot.name != own]
    kept = sum(slot.retained_bytes or 0 for slot in idle)
    if kept < WARN_BYTES:
        return ""
    names = ", ".join(slot.name for slot in idle[:3]) + (f" and {len(idle) - 3} more" if len(idle) > 3 else "")
    what = "a replication slot" if len(idle) == 1 else f"{len(idle)} replication slots"
    return (
        f"{server} has {what} of Headrace that nobody reads, for which it keeps up to {bytes_text(kept)} of WAL "
        f"({names}): headrace slots list DSN says whose they are"
    )


def find_slot(server: Server, name: str, *, force: bool = False) -> KeptSlot:
    """Return a slot that may be dropped.

    Args:
        force: also one that is not ours.

    Raises:
        SourceRefused: there is none of this name, somebody reads it, or it is not ours.
    """
    slots = {slot.name: slot for slot in slots_of(server)}
    slot = slots.get(name)
    if slot is None:
        ours = ", ".join(slot.name for slot in slots.values() if slot.ours) or "none"
        raise SourceRefused(f"{server} has no replication slot «{name}»", advice=f"Headrace's there: {ours}.")
    check_idle(slot, server)
    if not slot.ours and not force:
        raise SourceRefused(
            f"slot «{name}» of {server} is not Headrace's: another program may need it, and cannot go on without it",
            advice="--force drops it nevertheless.",
        )
    return slot


def check_idle(slot: KeptSlot, server: Server) -> None:
    """Refuse to drop a slot that somebody reads.

    Raises:
        SourceRefused: naming the reader.
    """
    if slot.pid is not None:
        reader = f" («{slot.reader}»)" if slot.reader else ""
        raise SourceRefused(
            f"slot «{slot.name}» of {server} is being read, by server process {slot.pid}{reader}",
            advice="Stop the pipeline that reads it first.",
        )


def drop_slot(server: Server, name: str) -> None:
    """Drop a slot.

    Raises:
        SourceRefused: the server refuses; SourceUnavailable: it cannot be reached.
    """
    with contextlib.closing(server.sql()) as connection, server.translated(f"to drop slot «{name}»"):
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])


def drop_publication(server: Server, name: str) -> None:
    """Drop a publication.

    Raises:
        SourceRefused: the server refuses; SourceUnavailable: it cannot be reached.
    """
    with contextlib.closing(server.sql()) as connection, server.translated(f"to drop publication «{name}»"):
        connection.execute(f"DROP PUBLICATION IF EXISTS {quote(name)}".encode())


def publications_of(server: Server, names: Sequence[str]) -> list[str]:
    """Return which of these publications the database has."""
    query = "SELECT pubname::text FROM pg_publication WHERE pubname = ANY(%s) ORDER BY pubname"
    with contextlib.closing(server.sql()) as connection, server.translated("to list the publications"):
        return [name for (name,) in connection.execute(query, [list(names)])]
