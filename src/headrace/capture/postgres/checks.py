"""What can be wrong with a server, its tables, publications and slots: pure functions from facts to findings.

A start refuses the errors among those that it asks for (`refuse`), `headrace doctor` lists them all: both say the same.
``where`` is the server as people know it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.batch import is_meta
from headrace.capture.debezium.expressions import readable
from headrace.capture.postgres import catalog
from headrace.capture.postgres.catalog import Publication, Role, Slot, Table, UniqueIndex, quote
from headrace.capture.postgres.gaps import PassedGap
from headrace.capture.postgres.slots import WARN_BYTES
from headrace.errors import SourceRefused
from headrace.findings import Finding, Severity
from headrace.units import age_text, bytes_text

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE
OLDEST_VERSION = 140000
FAILOVER_VERSION = 170000
MB = 1 << 20
RELOAD = "SELECT pg_reload_conf();"
NARROW = "narrow tables=… to leave it out."


def refuse(found: Iterable[Finding]) -> None:
    """Refuse what a finding says that is an error.

    Raises:
        SourceRefused: with the first of them.
    """
    for finding in found:
        if finding.severity is ERROR:
            raise SourceRefused(finding.message, advice=finding.ways)


# --- the server ---


def version(number: int, where: str) -> list[Finding]:
    """Find a server that is too old."""
    if number >= OLDEST_VERSION:
        return []
    said = f"PostgreSQL at {where} has version {number // 10000}; capture needs {OLDEST_VERSION // 10000} or newer"
    return [Finding("version", ERROR, said, advice="Upgrade the server.")]


def failover_version(number: int, where: str) -> list[Finding]:
    """Find a server that cannot have its slots kept by standbys, where that is wanted."""
    if number >= FAILOVER_VERSION:
        return []
    said = (
        f"PostgreSQL at {where} has version {number // 10000}, and standbys keep slots from version "
        f"{FAILOVER_VERSION // 10000} on"
    )
    return [Finding("failover", ERROR, said, advice="Upgrade the server, or leave failover out.")]


def wal_level(level: str, where: str) -> list[Finding]:
    """Find a server whose log has too little in it."""
    if level == "logical":
        return []
    return [
        Finding(
            "wal_level",
            ERROR,
            f"PostgreSQL at {where} has wal_level «{level}»; capture needs «logical»",
            ("ALTER SYSTEM SET wal_level = logical;",),
            "then restart the server.",
        )
    ]


def standby(in_recovery: bool, where: str) -> list[Finding]:
    """Find a server on which neither a publication nor the snapshot's slot can be made."""
    if not in_recovery:
        return []
    said = f"PostgreSQL at {where} is a standby: publications are made, and positions known, on its primary alone"
    return [Finding("standby", ERROR, said, advice="Name the primary in the connection string.")]


def pooler(*, pooled: bool, where: str) -> list[Finding]:
    """Find a connection pooler between us and the server."""
    if not pooled:
        return []
    return [
        Finding(
            "pooler",
            ERROR,
            f"between here and PostgreSQL at {where} is a connection pooler (PgBouncer or the like): settings of a "
            "session are not kept there, and it passes no replication connection",
            advice="Name the server itself in the connection string: its own host and port.",
        )
    ]


def output_plugin(libraries: str | None, where: str) -> list[Finding]:
    """Find a server that lets nobody use `pgoutput`.

    Args:
        libraries: ``output_plugin_libraries``, which newer minor releases have; None where there is no such setting.

    >>> output_plugin("test_decoding, wal2json", "db:5432/shop")[0].sql[0]
    'ALTER SYSTEM SET output_plugin_libraries = pgoutput, "test_decoding", "wal2json";'
    >>> output_plugin(None, ""), output_plugin("test_decoding,pgoutput", "")
    ([], [])
    """
    names = [name.strip().strip('"') for name in (libraries or "").split(",") if name.strip()]
    if libraries is None or "pgoutput" in names:
        return []
    # A list: in one pair of quotes it would be one name.
    listed = ", ".join(["pgoutput", *map(quote, names)])
    return [
        Finding(
            "output_plugin_libraries",
            ERROR,
            f"PostgreSQL at {where} does not trust pgoutput: output_plugin_libraries is «{libraries}»",
            (f"ALTER SYSTEM SET output_plugin_libraries = {listed};", RELOAD),
        )
    ]


def room(*, used: int, most: int, where: str) -> list[Finding]:
    """Find a server on which no slot is free for one that is to be made."""
    if used < most:
        return []
    return [
        Finding(
            "replication_slots",
            ERROR,
            f"all {most} replication slots of {where} are taken",
            advice="Drop one that nobody needs (pg_replication_slots), or raise max_replication_slots and restart.",
        )
    ]


def senders(*, used: int, most: int, where: str) -> list[Finding]:
    """Find a server that takes no further replication connection."""
    if used < most:
        return []
    return [
        Finding(
            "wal_senders",
            ERROR,
            f"all {most} walsenders of {where} are in use: it takes no further replication connection",
            (f"ALTER SYSTEM SET max_wal_senders = {most + 10};",),
            "then restart the server; or end a reader that nobody needs (pg_stat_replication).",
        )
    ]


# --- the role ---


def replication_right(role: Role, where: str) -> list[Finding]:
    """Find a role that may not read the server's log."""
    if role.replicates:
        return []
    own = f"ALTER ROLE {quote(role.name)} REPLICATION;"
    sql = f"GRANT {quote(role.managed)} TO {quote(role.name)};" if role.managed else own
    said = f"role «{role.name}» of {where} may not replicate: it has not the attribute REPLICATION"
    return [Finding("replication", ERROR, said, (sql,), safe=True)]


def reading(role: Role, tables: Sequence[Table], where: str) -> list[Finding]:
    """Find tables that a role may not read for a snapshot, or sees some rows of only."""
    unreadable = [table for table in tables if "SELECT" in table.missing]
    closed = [table for table in tables if "USAGE" in table.missing]
    hidden = [table for table in tables if "rows" in table.missing]
    grantee, found = quote(role.name), []
    if unreadable or closed:
        schemas = dict.fromkeys(quote(table.schema) for table in closed)
        sql = [f"GRANT USAGE ON SCHEMA {', '.join(schemas)} TO {grantee};"] if schemas else []
        if unreadable:
            sql.append(f"GRANT SELECT ON {', '.join(table.sql for table in unreadable)} TO {grantee};")
        named = dict.fromkeys(map(str, (*unreadable, *closed)))
        said = f"role «{role.name}» may not read {', '.join(named)} of {where}"
        found.append(Finding("select", ERROR, said, tuple(sql), safe=True))
    if hidden:
        said = f"row security hides rows of {', '.join(map(str, hidden))} of {where} from role «{role.name}»"
        sql = [f"ALTER ROLE {grantee} BYPASSRLS;"]
        found.append(Finding("row_security", ERROR, said, tuple(sql), "lets the snapshot read them all."))
    return found


def publishing(role: Role, tables: Sequence[Table], name: str, where: str) -> list[Finding]:
    """Find why a role may not make a publication of tables."""
    foreign = [table for table in tables if "owner" in table.missing]
    found = []
    if foreign:
        names = ", ".join(table.sql for table in tables)
        said = f"role «{role.name}» does not own {', '.join(map(str, foreign))} of {where} and so cannot publish them"
        sql = f"CREATE PUBLICATION {quote(name)} FOR TABLE {names};"
        advice = "as their owner, and name it with publication=…."
        found.append(Finding("publication_right", ERROR, said, (sql,), advice))
    if not role.may_create:
        said = f"role «{role.name}» may not create a publication in {where}"
        sql = f"GRANT CREATE ON DATABASE {quote(role.database)} TO {quote(role.name)};"
        advice = "or name an existing one with publication=…."
        found.append(Finding("publication_right", ERROR, said, (sql,), advice, safe=True))
    return found


# --- tables ---


def nothing_matches(existing: Sequence[Table], patterns: Sequence[str], where: str) -> list[Finding]:
    """Say that no table matches the patterns, and which ones may have been meant."""
    near = catalog.near_misses(existing, patterns)
    hint = f"There are {', '.join(near)}. " if near else "There are no tables at all. "
    wanted = ", ".join(f"«{readable(pattern)}»" for pattern in patterns)
    return [
        Finding(
            "tables",
            ERROR,
            f"no table of {where} matches {wanted}",
            advice=f"{hint}A pattern is a regular expression that matches the whole of schema.table.",
        )
    ]


def kind(table: Table, where: str, *, alone: bool = True) -> list[Finding]:
    """Find why the changes of a table cannot be captured.

    Args:
        alone: no other table is captured, so that there is nothing to stream.
    """
    if table.persistence != "p":
        said = _unlogged(f"table {table}", where) + ("" if alone else _SNAPSHOT_ALONE)
        return [
            Finding(
                "unlogged", ERROR if alone else WARNING, said, (f"ALTER TABLE {table.sql} SET LOGGED;",), f"or {NARROW}"
            )
        ]
    return []


_SNAPSHOT_ALONE = ", and only a first snapshot reads it"


def _unlogged(subject: str, where: str) -> str:
    return f"{subject} of {where} is unlogged or temporary: its changes are not in the server's log"


def unlogged(tables: Sequence[Table], where: str) -> list[str]:
    """Say of unlogged tables, of all together, that only a snapshot reads them."""
    return [_unlogged(subject_of(list(map(str, tables))), where) + _SNAPSHOT_ALONE] if tables else []


_NAMED = 3


def subject_of(tables: Sequence[str]) -> str:
    """Return what a sentence that holds for each of some tables begins with; a few of many are named.

    >>> subject_of(["a"]), subject_of(["a", "b"])
    ('table a', 'each of 2 tables (a, b)')
    >>> subject_of([f"t{n}" for n in range(1, 1001)])
    'each of 1,000 tables (t1, t2, t3 and 997 more)'
    """
    if len(tables) == 1:
        return f"table {tables[0]}"
    more = len(tables) - _NAMED
    return f"each of {len(tables):,} tables ({', '.join(tables[:_NAMED])}{f' and {more:,} more' if more > 0 else ''})"


def by_reason(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return for each reason which tables it is of, and the reason.

    >>> by_reason({"a": "it is red", "b": "it is blue", "c": "it is red"})
    [('each of 2 tables (a, c)', 'it is red'), ('table b', 'it is blue')]
    """
    tables: dict[str, list[str]] = {}
    for table, reason in reasons.items():
        tables.setdefault(reason, []).append(table)
    return [(subject_of(own), reason) for reason, own in tables.items()]


def partitions(existing: Sequence[Table], chosen: Sequence[Table], where: str) -> list[Finding]:
    """Find partitioned tables whose rows would come under names of partitions that do not match."""
    oids = {table.oid for table in chosen}
    found = []
    for root in chosen:
        lost = [str(t) for t in existing if root.oid in t.ancestors and not t.partitioned and t.oid not in oids]
        if lost:
            said = (
                f"rows of partitioned table {root} of {where} come under the names of its partitions, and "
                f"{', '.join(lost[:3])} {'does' if len(lost) == 1 else 'do'} not match"
            )
            advice = "Set publish.via.partition.root=true, or have the partitions match (table.include.list)."
            found.append(Finding("partitions", ERROR, said, advice=advice))
    return found


def columns(table: Table) -> list[Finding]:
    """Find a table that has nothing to capture, or a column named as one of ours; its columns are known."""
    reserved = [column.name for column in table.columns if is_meta(column.name)]
    if reserved:
        said = f"table {table} has a column «{reserved[0]}», a name that events use"
        advice = "Rename it, leave it out by a column list of a publication of your own, or leave out the table."
        return [Finding("columns", ERROR, said, advice=advice)]
    if not table.columns:
        return [Finding("columns", ERROR, f"table {table} has no columns", advice=f"N{NARROW[1:]}")]
    return []


def updates(
    tables: Sequence[Table], failing: Mapping[int, str], indexes: Mapping[int, UniqueIndex], where: str
) -> list[Finding]:
    """Find tables whose UPDATE and DELETE fail as soon as they are published.

    Args:
        failing: why, by OID, as `catalog.failing_updates` says.
        indexes: an index that could be the replica identity, by OID, as `catalog.unique_indexes` says.
    """
    named = [table for table in tables if table.oid in failing]
    if not named:
        return []
    said = "; ".join(f"{table}: {failing[table.oid]}" for table in named)
    sql = []
    for table in named:
        if table.partitioned:  # what is said of it begins with the partition
            partition = failing[table.oid].partition(":")[0].removeprefix("partition ")
            sql.append(f"ALTER TABLE {partition} REPLICA IDENTITY FULL;")
        elif table.oid in indexes:
            sql.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY USING INDEX {quote(indexes[table.oid].name)};")
        elif table.identity != "f":  # FULL is no way on where FULL is what fails
            sql.append(f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL;")
    index = "REPLICA IDENTITY USING INDEX a unique index over NOT NULL columns that are not generated"
    ways = f"(or {index})" if sql else f"ALTER TABLE … {index}"
    return [
        Finding(
            "replica_identity",
            ERROR,
            f"capturing these tables of {where} would make the application's own UPDATE and DELETE on them fail "
            f"({said})",
            tuple(sql),
            f"{ways} lets them work. A table that the pipeline does not need: leave it out of tables=…. Where rows are "
            "only ever inserted, say so: app.postgres(…, allow_failing_updates=True).",
            safe=bool(sql),
        )
    ]


# --- publications ---


VIA_ROOT = "publish_via_partition_root = true"


def publication(found: Publication | None, name: str, tables: Sequence[Table], where: str) -> list[Finding]:
    """Find what a publication that the user named lacks of what is to be captured."""
    names = ", ".join(table.sql for table in tables)
    if found is None:
        said = f"{where} has no publication «{name}»"
        via_root = f" WITH ({VIA_ROOT})" if any(table.partitioned for table in tables) else ""
        create = f"CREATE PUBLICATION {quote(name)} FOR TABLE {names}{via_root};"
        return [Finding("publication", ERROR, said, (create,), safe=True)]
    lacking = [table for table in tables if table.oid not in found.tables]
    findings = []
    by_leaf = [table for table in lacking if table.partitioned]
    if by_leaf:
        # Without it pg_publication_tables has partitions in place of their table, and so has the stream.
        said = (
            f"publication «{name}» of {where} does not publish {', '.join(map(str, by_leaf))}, or publishes the rows "
            "under the names of partitions"
        )
        sql = [f"ALTER PUBLICATION {quote(name)} SET ({VIA_ROOT});"]
        if not found.all_tables:
            sql.insert(0, f"ALTER PUBLICATION {quote(name)} ADD TABLE {', '.join(t.sql for t in by_leaf)};")
        findings.append(Finding("publication_root", ERROR, said, tuple(sql), "or narrow tables=… to the partitions."))
    lacking = [table for table in lacking if not table.partitioned]
    if lacking:
        added = ", ".join(table.sql for table in lacking)
        findings.append(
            Finding(
                "publication_tables",
                ERROR,
                f"publication «{name}» of {where} does not have {', '.join(map(str, lacking))}",
                (f"ALTER PUBLICATION {quote(name)} ADD TABLE {added};",),
                "or narrow tables=….",
                safe=True,
            )
        )
    absent = [operation for operation in ("insert", "update", "delete") if operation not in found.operations]
    if absent:
        said = f"publication «{name}» of {where} does not publish {', '.join(f'{operation}s' for operation in absent)}"
        findings.append(
            Finding(
                "publication_operations",
                ERROR if "insert" in absent else WARNING,
                said,
                (f"ALTER PUBLICATION {quote(name)} SET (publish = 'insert, update, delete, truncate');",),
                safe=True,
            )
        )
    return findings


def published_updates(
    found: Publication,
    tables: Sequence[Table],
    failing: Mapping[int, str],
    indexes: Mapping[int, UniqueIndex],
    where: str,
) -> list[Finding]:
    """Find tables of a publication whose UPDATE and DELETE fail now, whether they are captured or not."""
    if not found.operations & {"update", "delete"}:
        return []
    broken = [table for table in tables if table.oid in found.tables]
    why = "; ".join(f"{table}: {failing[table.oid]}" for table in broken if table.oid in failing)
    said = f"publication «{found.name}» of {where} makes the application's own UPDATE and DELETE on these tables fail"
    return [
        replace(finding, message=f"{said} ({why})", advice="") for finding in updates(broken, failing, indexes, where)
    ]


# --- what no start refuses ---


@dataclass(frozen=True, slots=True)
class WideTable:
    """A table with values that may be stored out of line (TOAST), beside its row.

    Attributes:
        columns: that may have such values; ``stored`` bytes of them.
    """

    oid: int
    columns: tuple[str, ...]
    stored: int


@dataclass(frozen=True, slots=True)
class KeptWal:
    """A replication slot, and what it costs its server.

    Attributes:
        retained: bytes of WAL kept for it; None where none is kept any more.
        behind: bytes of WAL that its reader has not confirmed; None of a physical slot.
        safe: bytes that may still be written before it is in danger; None without a limit.
        behind_seconds: for how long what was sent has not been confirmed, of a slot that is read.
        idle_seconds: since its last reader left, where the server knows it (from version 17 on).
        owner: the log that it belongs to; "" where nothing says so.
    """

    slot: Slot
    wal_status: str
    retained: int | None
    behind: int | None
    safe: int | None
    behind_seconds: float | None
    idle_seconds: float | None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A transaction that has written and is not over: of a server process, or a prepared one."""

    who: str
    seconds: float
    sql: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The heartbeat of a Debezium configuration.

    Attributes:
        query: what it does, ``heartbeat.action.query``; "" for nothing.
        interval_ms: ``heartbeat.interval.ms``.
    """

    query: str = ""
    interval_ms: int = 0

    @property
    def table(self) -> str:
        """Return the table that the query writes, as the query names it; "" where it writes none.

        >>> Heartbeat("insert into ops.beat (id) values (1) on conflict …").table
        'ops.beat'
        >>> Heartbeat("SELECT pg_logical_emit_message(false, 'beat', now()::text)").table
        ''
        """
        found = _WRITES.match(self.query)
        return found["table"] if found else ""

    @property
    def right(self) -> str:
        """Return the right that the query needs: ``INSERT``, ``UPDATE``, ``DELETE``."""
        found = _WRITES.match(self.query)
        return found["verb"].split()[0].upper() if found else ""


_WRITES = re.compile(
    r'\s*(?P<verb>insert\s+into|update|delete\s+from)\s+(?:only\s+)?(?P<table>(?:"[^"]+"|\w+)(?:\s*\.\s*(?:"[^"]+"|\w+))?)',
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class BeatenTable:
    """The table that a heartbeat writes, as the server has it.

    Attributes:
        table: None where it is not there.
        allowed: the role has the right that the query needs.
    """

    table: Table | None
    allowed: bool


LARGE_BYTES = 1 << 30
OLD_SECONDS = 600.0
SPARE = 0.2  # of the WAL that a slot may keep: with less left it is in danger


def keys(tables: Sequence[Table], indexes: Mapping[int, UniqueIndex], where: str) -> list[Finding]:
    """Find tables without a key: their events have none, and nothing tells which row one is of."""
    bare = [table for table in tables if not table.key and table.kind == "r"]
    if not bare:
        return []
    said = f"these tables of {where} have no key: {', '.join(map(str, bare))}; their events name no row"
    sql = tuple(
        f"ALTER TABLE {table.sql} ADD PRIMARY KEY ({', '.join(map(quote, indexes[table.oid].columns))});"
        for table in bare
        if table.oid in indexes
    )
    rest = "" if len(sql) == len(bare) else "ALTER TABLE … ADD PRIMARY KEY (…); over columns that tell rows apart."
    return [Finding("no_key", WARNING, said, sql, rest)]


def wide_values(tables: Sequence[Table], wide: Sequence[WideTable], where: str) -> list[Finding]:
    """Find tables whose updates come without the large values that they leave as they are."""
    by_oid = {table.oid: table for table in tables if table.identity != "f" and table.kind == "r"}
    risky = [(by_oid[each.oid], each) for each in wide if each.oid in by_oid]
    found = []
    for severity, chosen, now in (
        (WARNING, [pair for pair in risky if pair[1].stored], "have"),
        (NOTE, [pair for pair in risky if not pair[1].stored], "may have"),
    ):
        if chosen:
            named = "; ".join(f"{table}: {', '.join(each.columns)}" for table, each in chosen)
            said = (
                f"these tables of {where} {now} values that are stored out of line (TOAST): {named}; an update that "
                "leaves such a value as it is comes without it, with NULL in its place and its name in __unchanged"
            )
            sql = tuple(f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL;" for table, _ in chosen)
            found.append(Finding("toast", severity, said, sql, "sends them all, and the old row; it costs WAL."))
    return found


def publication_parts(found: Publication, tables: Sequence[Table], where: str) -> list[Finding]:
    """Say which columns and rows of captured tables a publication leaves out."""
    parts = []
    for table in tables:
        listed, row_filter = found.tables.get(table.oid, (None, None))
        if row_filter is not None:
            parts.append(f"rows of {table} but those WHERE {row_filter}")
        elif listed is not None and {column.name for column in table.columns} - set(listed):
            parts.append(
                f"columns {', '.join(sorted({column.name for column in table.columns} - set(listed)))} of {table}"
            )
    if not parts:
        return []
    return [Finding("publication_parts", NOTE, f"publication «{found.name}» of {where} leaves out {'; '.join(parts)}")]


def slot(kept: KeptWal, *, own: bool, wanted: bool, limit: int | None, resync: str, where: str) -> list[Finding]:
    """Find what is the matter with a slot.

    Args:
        own: it is the one that is captured through; ``wanted``: losing it matters here.
        limit: ``max_slot_wal_keep_size`` in bytes; None for no limit.
        resync: the command that takes a log on which has lost its slot.
    """
    name, drop = kept.slot.name, f"SELECT pg_drop_replication_slot('{kept.slot.name}');"
    what = f"slot «{name}» of {where}"
    status = f" (wal_status {kept.wal_status})" if kept.wal_status not in ("", "reserved") else ""
    size = f"{bytes_text(kept.retained or 0)} of WAL{status}"
    bad = ERROR if wanted else WARNING
    if kept.slot.lost or kept.wal_status == "lost":
        advice = f"Its log is taken on by: {resync}" if wanted else ""
        said = f"{what} was invalidated by the server ({kept.slot.lost}): its WAL is gone, and nobody can go on from it"
        return [Finding("slot_lost", bad, said, () if own else (drop,), advice)]
    found = []
    if kept.wal_status == "unreserved":
        said = f"{what} keeps {size}, more than max_slot_wal_keep_size: the next checkpoint may take it away"
        sql = ("ALTER SYSTEM SET max_slot_wal_keep_size = -1;", RELOAD)
        found.append(Finding("slot_unreserved", bad, said, sql, "and read it now, before the next checkpoint."))
    elif limit and kept.safe is not None and kept.safe < limit * SPARE:
        said = f"{what} is lost after {bytes_text(max(0, kept.safe))} more of WAL: it keeps {size}"
        sql = (f"ALTER SYSTEM SET max_slot_wal_keep_size = '{2 * limit // MB}MB';", RELOAD)
        found.append(Finding("slot_unreserved", bad, said, sql, "or see why its reader is behind."))
    if kept.slot.active_pid is None:
        since = f" for {age_text(kept.idle_seconds)}" if kept.idle_seconds is not None else ""
        said = f"{what} is read by nobody{since}, and keeps {size}"
        much = (kept.retained or 0) >= WARN_BYTES
        said += "" if limit else "; there is no limit to it" if much else ""
        said += f"; it belongs to {kept.owner}" if kept.owner else ""
        advice = "where nobody needs it any more; otherwise start its reader."
        found.append(Finding("slot_idle", WARNING if much or not own else NOTE, said, (drop,), advice))
    elif (kept.behind or 0) > LARGE_BYTES:
        late = f", and {age_text(kept.behind_seconds)}" if kept.behind_seconds else ""
        said = f"the reader of {what} is {bytes_text(kept.behind or 0)} of WAL behind{late}; the server keeps {size}"
        found.append(Finding("slot_lag", WARNING, said, advice="See why it is slow, or held up (headrace ui)."))
    return found


@dataclass(frozen=True, slots=True)
class Standbys:
    """What a primary's slots and settings say of its standbys.

    Attributes:
        physical: physical slots, by name, with whether a standby reads them.
        listed: those in ``synchronized_standby_slots``.
    """

    physical: Mapping[str, bool]
    listed: tuple[str, ...] = ()


def failover(own: Slot | None, *, wanted: bool, version: int, standbys: Standbys, where: str) -> list[Finding]:
    """Find why a capture would not go on with a standby that is promoted.

    Args:
        wanted: it is declared so; else it is found of a slot that standbys keep.
    """
    if not wanted and (own is None or not own.failover):
        return []
    if version < FAILOVER_VERSION:
        return failover_version(version, where)
    found = []
    if own is not None and not own.failover:
        said = f"slot «{own.name}» of {where} is no failover slot yet: no standby keeps it"
        found.append(Finding("failover", WARNING, said, advice="The next start makes it one."))
    if not standbys.physical:
        said = f"{where} has no physical replication slot: a standby needs one to keep the capture's slot"
        sql = "SELECT pg_create_physical_replication_slot('standby');"
        advice = "and primary_slot_name = 'standby' on the standby."
        return [*found, Finding("failover", WARNING, said, (sql,), advice)]
    silent = [name for name in standbys.listed if not standbys.physical.get(name, False)]
    if silent:
        said = (
            f"no standby reads slot «{silent[0]}» of {where}, which synchronized_standby_slots lists: the capture "
            "waits for it, and gets nothing meanwhile"
        )
        advice = "Start that standby, or take the slot out of synchronized_standby_slots."
        found.append(Finding("synchronized_standby_slots", ERROR, said, advice=advice))
    if not standbys.listed:
        listed = ", ".join(sorted(standbys.physical))
        said = (
            f"synchronized_standby_slots of {where} is empty: the capture may get rows that no standby has yet, and is "
            "refused by one that is promoted without them"
        )
        sql = f"ALTER SYSTEM SET synchronized_standby_slots = '{listed}';"
        advice = "with the standbys that may take over."
        found.append(Finding("synchronized_standby_slots", WARNING, said, (sql, RELOAD), advice))
    return found


def keeping_slots(settings: Mapping[str, str], where: str) -> list[Finding]:
    """Find why a standby does not keep the slots of its primary that it could keep.

    Args:
        settings: of the standby, by name; those that its version does not have are missing.
    """
    found = []
    for name in ("sync_replication_slots", "hot_standby_feedback"):
        if settings.get(name, "on") != "on":
            said = f"{name} of the standby {where} is «{settings[name]}»: it keeps no slot of its primary's"
            found.append(Finding("failover", WARNING, said, (f"ALTER SYSTEM SET {name} = on;", RELOAD)))
    if not settings.get("primary_slot_name", "x"):
        said = f"the standby {where} has no primary_slot_name: it keeps no slot of its primary's"
        sql = ("ALTER SYSTEM SET primary_slot_name = 'standby';", RELOAD)
        found.append(Finding("failover", WARNING, said, sql, "with a physical slot that the primary has."))
    return found


def accepted_gaps(passed: Sequence[PassedGap], place: str) -> list[Finding]:
    """Say which changes a log misses because somebody let it go on without them."""
    since = max((at for at, gap in enumerate(passed) if gap.handled == "snapshot"), default=-1)
    return [
        Finding(
            "gap",
            WARNING,
            f"changes of {', '.join(gap.tables)} are missing in the log from {gap.since} to {gap.until}"
            f"{f' (after {gap.since_time})' if gap.since_time else ''}: on {gap.at} it went on without them "
            f"({gap.reason})",
            advice=f"headrace capture resync --force --log {place or 'PATH'} appends what differs from the tables now.",
        )
        for gap in passed[since + 1 :]
    ]


def wal_limit(limit: int | None, where: str) -> list[Finding]:
    """Find a limit of what slots may keep that is missing, or small.

    Args:
        limit: ``max_slot_wal_keep_size`` in bytes; None for no limit.
    """
    if limit is None:
        said = f"{where} keeps WAL for slots without a limit (max_slot_wal_keep_size): an idle one fills its disk"
        sql = ("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';", RELOAD)
        return [Finding("max_slot_wal_keep_size", WARNING, said, sql, "with what the disk has to spare.")]
    if limit < LARGE_BYTES:
        said = (
            f"{where} keeps {bytes_text(limit)} of WAL for a slot (max_slot_wal_keep_size): a short pause may lose it"
        )
        sql = ("ALTER SYSTEM SET max_slot_wal_keep_size = '50GB';", RELOAD)
        return [Finding("max_slot_wal_keep_size", WARNING, said, sql, "or what the disk has to spare.")]
    return []


def idle_timeout(seconds: int, where: str) -> list[Finding]:
    """Find a server that invalidates the slot of a pipeline that is stopped for a while (from version 18 on)."""
    if not seconds:
        return []
    said = f"{where} invalidates a slot that nobody has read for {age_text(seconds)} (idle_replication_slot_timeout)"
    sql = ("ALTER SYSTEM SET idle_replication_slot_timeout = 0;", RELOAD)
    return [Finding("idle_replication_slot_timeout", WARNING, said, sql, "or never stop a pipeline for so long.")]


def transactions(found: Sequence[OpenTransaction], where: str) -> list[Finding]:
    """Find transactions that are open for long: WAL is kept from their beginning on, and a new slot waits for them."""
    return [
        Finding(
            "open_transaction",
            WARNING,
            f"{each.who} of {where} has a transaction open for {age_text(each.seconds)}: WAL is kept from its "
            "beginning on, and a new slot waits for its end",
            (each.sql,),
            "ends it.",
        )
        for each in found
        if each.seconds >= OLD_SECONDS
    ]


def encoding(name: str, where: str) -> list[Finding]:
    """Find a database whose texts are in no encoding."""
    if name != "SQL_ASCII":
        return []
    said = (
        f"{where} has the encoding SQL_ASCII: its texts may be bytes of any kind, and rows that are not UTF-8 are lost"
    )
    return [Finding("encoding", WARNING, said, advice="They go to dead letters. Dump it, and restore it as UTF8.")]


def encryption(*, encrypted: bool, local: bool, where: str) -> list[Finding]:
    """Find a connection over a network that anybody on the way can read."""
    if encrypted or local:
        return []
    said = f"the connection to {where} is not encrypted: rows, and perhaps the password, can be read on their way"
    advice = (
        "Add sslmode=verify-full to the connection string (sslmode=require at the least); the server needs ssl = on."
    )
    return [Finding("ssl", WARNING, said, advice=advice)]


def heartbeat(
    given: Heartbeat,
    beaten: BeatenTable | None,
    found: Publication | None,
    tables: Sequence[Table],
    role: Role,
    where: str,
) -> list[Finding]:
    """Find a heartbeat that has no effect.

    Args:
        beaten: the table that it writes; None where it writes none.
        found: the publication that its rows should come through; None where it is made at the start, of ``tables``.
    """
    findings = []
    if given.query and not given.interval_ms:
        said = "heartbeat.action.query is never run: heartbeat.interval.ms is 0"
        findings.append(Finding("heartbeat", WARNING, said, advice="Set heartbeat.interval.ms=10000, or so."))
    if beaten is None:
        return findings
    if beaten.table is None:
        said = f"the heartbeat writes table {given.table}, which {where} does not have"
        made = f"CREATE TABLE {given.table} (id int PRIMARY KEY, ts timestamptz);"
        return [*findings, Finding("heartbeat", ERROR, said, (made,), "with the columns that the query writes.")]
    table = beaten.table
    if not beaten.allowed:
        said = f"role «{role.name}» may not {given.right} into heartbeat table {table} of {where}"
        sql = (f"GRANT {given.right}, SELECT ON {table.sql} TO {quote(role.name)};",)
        findings.append(Finding("heartbeat", ERROR, said, sql, safe=True))
    if found is not None and table.oid not in found.tables:
        said = (
            f"heartbeat table {table} of {where} is not in publication «{found.name}»: its rows never come through the "
            "slot, which keeps WAL back while nothing else is written"
        )
        sql = (f"ALTER PUBLICATION {quote(found.name)} ADD TABLE {table.sql};",)
        findings.append(Finding("heartbeat", ERROR, said, sql, safe=True))
    elif found is None and table.oid not in {known.oid for known in tables}:
        said = f"heartbeat table {table} of {where} is not captured: a publication that is made at the start has it not"
        advice = "Add it to the tables that are captured (table.include.list, tables=…), or publish it yourself."
        findings.append(Finding("heartbeat", WARNING, said, advice=advice))
    return findings
