"""The one record that ties a log to a replication slot, and the checks that they still belong together.

The log keeps it under (``source``, prefix). It is published in the log transaction that makes the snapshot's rows
visible, and changed only by storing a new acknowledged LSN.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from headrace.capture.base import Log
from headrace.capture.postgres.catalog import Slot
from headrace.errors import LogCorrupt, SourceRefused
from headrace.position import format_lsn, parse_lsn

KIND = "source"


@dataclass(frozen=True, slots=True)
class Identity:
    """Which history of which cluster LSNs belong to, and the database in it."""

    system_identifier: str
    timeline: int
    database: str

    def __str__(self) -> str:
        return f"system {self.system_identifier}, timeline {self.timeline}, database «{self.database}»"


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a log knows of its source.

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
        """The record as it is stored; ``acknowledged`` stands last.

        >>> identity = Identity("7", 1, "shop")
        >>> SourceRecord(identity, "s", "p", ("public.t",), 16, 32, (24, 5)).to_json()[-79:]
        b'"consistent_point": "0/10", "last_commit": ["0/18", 5], "acknowledged": "0/20"}'
        """
        return self.head() + self.rest(self.acknowledged, self.last)

    @staticmethod
    def rest(acknowledged: int, last: tuple[int, int] | None) -> bytes:
        """The end of the stored form, the only part that changes from commit to commit."""
        commit = f', "last_commit": ["{format_lsn(last[0])}", {last[1]}]' if last is not None else ""
        return f'{commit}, "acknowledged": "{format_lsn(acknowledged)}"}}'.encode()

    def head(self) -> bytes:
        """The stored form up to where it changes from commit to commit."""
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
        """The log's record of the source of this name, or None.

        Raises:
            LogCorrupt: it is there and cannot be read.
        """
        stored = log.records(KIND, prefix).get(prefix)
        if stored is None:
            return None
        try:
            fields = json.loads(stored)
            identity = Identity(fields["system_identifier"], int(fields["timeline"]), fields["database"])
            points = parse_lsn(fields["consistent_point"]), parse_lsn(fields["acknowledged"])
            commit = fields.get("last_commit")
            last = None if commit is None else (parse_lsn(commit[0]), int(commit[1]))
            return cls(identity, fields["slot"], fields["publication"], tuple(fields["tables"]), *points, last)
        except (ValueError, KeyError, TypeError) as error:
            raise LogCorrupt(f"the log's record of source «{prefix}» cannot be read: {stored!r}") from error

    def with_acknowledged(self, lsn: int) -> SourceRecord:
        return replace(self, acknowledged=lsn)


def derived_name(app: str, prefix: str) -> str:
    """Name of our own slot and publication: a PostgreSQL identifier of at most 63 characters.

    >>> derived_name("iris", "iris"), derived_name("Iris demo", "flink")
    ('headrace_iris', 'headrace_iris_demo_flink')
    """
    plain = app if app == prefix else f"{app}_{prefix}"
    name = "headrace_" + re.sub(r"[^a-z0-9_]", "_", plain.lower())
    if len(name) <= 63:
        return name
    return f"{name[:54]}_{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


ANEW = "Capture into a new log (log=…): it begins with a new snapshot."


def check_slot(record: SourceRecord, slot: Slot | None) -> None:
    """Refuse to go on where the slot cannot give what follows the log.

    Raises:
        SourceRefused: it is missing, invalidated, another's, or ahead of the log.
    """
    where = f"slot «{record.slot}» of database «{record.identity.database}»"
    stored = format_lsn(record.acknowledged)
    if slot is None:
        raise SourceRefused(
            f"{where} is gone, and the log holds its rows up to {stored}: what was committed since may be lost",
            advice=ANEW,
        )
    check_foreign(slot, record.identity.database)
    if slot.lost:
        raise SourceRefused(
            f"{where} was invalidated by the server ({slot.lost}): changes after {stored} are no longer kept",
            advice=f"Raise max_slot_wal_keep_size (or idle_replication_slot_timeout), drop the slot. {ANEW}",
        )
    if slot.confirmed_flush > record.acknowledged:
        raise SourceRefused(
            f"{where} stands at {format_lsn(slot.confirmed_flush)}, but the log ends at {stored}: the log is an old "
            "copy, or another program reads this slot; what lies between will not come again",
            advice=f"Use the newest copy of the log, or drop the slot: {ANEW}",
        )


def check_names(record: SourceRecord, slot: str, publication: str) -> None:
    """Refuse to go on with another slot or publication than the log's.

    Raises:
        SourceRefused: naming both.
    """
    for kind, had, wanted in (("slot", record.slot, slot), ("publication", record.publication, publication)):
        if had != wanted:
            raise SourceRefused(
                f"the log was captured through {kind} «{had}», not «{wanted}»",
                advice=f"Name it with {kind}={had!r}. {ANEW}",
            )


def named_slot(name: str) -> SourceRefused:
    """The error for a slot that the user named, when the log has no rows yet and a snapshot is wanted."""
    return SourceRefused(
        f"slot «{name}» was named, but a snapshot can only be taken by the connection that makes the slot",
        advice='Leave out slot=… and have one made, or say snapshot="never" to begin where the slot stands.',
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
            advice="Choose another name with slot=…, or drop it if nobody needs it.",
        )
    if slot.two_phase:
        raise SourceRefused(
            f"slot «{slot.name}» was made with two_phase: the server sends rows of prepared transactions through it "
            "that may still be rolled back",
            advice="Make it without (pg_create_logical_replication_slot(…, 'pgoutput')); rows of prepared transactions "
            "then come when they are committed.",
        )


def check_identity(record: SourceRecord, identity: Identity) -> None:
    """Refuse another cluster, timeline or database than the log's.

    Raises:
        SourceRefused: naming both.
    """
    if record.identity != identity:
        raise SourceRefused(
            f"the log belongs to another database: it was captured from {record.identity}; this is {identity} "
            "(after a restore, an upgrade or a failover positions no longer compare)",
            advice=f"Connect to the database it was captured from. {ANEW}",
        )


def check_tables(had: Sequence[str], *, new: Sequence[str], left: Sequence[str]) -> None:
    """Refuse a table set that the log has not had from its beginning.

    Args:
        had: the tables that the log has; ``new`` match beside them, ``left`` are there and match no longer.

    Raises:
        SourceRefused: naming them.
    """
    if new:
        raise SourceRefused(
            f"tables match that the log does not have: {', '.join(sorted(new))}; their earlier rows would never arrive",
            advice=f"Narrow tables=… to those captured until now ({', '.join(sorted(had))}). {ANEW}",
        )
    if left:
        raise SourceRefused(
            f"tables=… no longer matches {', '.join(sorted(left))}, of which the log has rows: what is committed in "
            "it from now on would be missing there without a word",
            advice=f"Widen tables=… to all that were captured until now ({', '.join(sorted(had))}). {ANEW}",
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


def restored(record: SourceRecord, why: str) -> SourceRefused:
    """The error for a server whose history is not the one that the log was captured from."""
    return SourceRefused(
        f"the server of database «{record.identity.database}» was restored from an older copy: {why}",
        advice=f"Rows of the log may not be in this database any more, and rows of it not in the log. {ANEW}",
    )
