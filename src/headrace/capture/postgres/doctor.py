"""The doctor of a database: facts are read in a few queries, `checks` makes findings of them, and some are repaired."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.capture.base import Log
from headrace.capture.postgres import catalog, checks, drift, slot_binding, startup
from headrace.capture.postgres.catalog import Publication, Role, SqlConnection, Table, UniqueIndex
from headrace.capture.postgres.checks import BeatenTable, Heartbeat, KeptWal, OpenTransaction, Standbys, WideTable
from headrace.capture.postgres.client import Replication, Server
from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.gaps import passed_gaps
from headrace.capture.postgres.slot_binding import Claim, SourceRecord
from headrace.errors import SourceError, SourceRefused
from headrace.findings import Finding, Severity

APPLICATION = "headrace doctor"
LOCAL = frozenset({"localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Examination:
    """A database to be looked at, and what is captured of it, as far as that is known.

    Attributes:
        patterns: regular expressions of which one matches the whole of ``schema.table``; none: every table.
        slot, publication: their names; "" where they are not known.
        own_publication: it may be made by whoever starts.
        snapshot: tables are read before the stream begins.
        failing_updates: tables may be published whose UPDATE and DELETE fail.
        failover: the slot is to be kept by standbys.
        heartbeat: of a Debezium configuration.
        log, source: a log that captures it, and the source's name there.
        place: where that log is.
    """

    server: Server
    patterns: tuple[str, ...] = ()
    slot: str = ""
    publication: str = ""
    own_publication: bool = True
    snapshot: bool = True
    failing_updates: bool = False
    failover: bool = False
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    log: Log | None = field(default=None, repr=False)
    source: str = ""
    place: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to know of a database and its server, at one moment.

    Attributes:
        where: the server, for people.
        settings: of the server, by name.
        senders: walsenders that are in use; ``made``: slots that there are, temporary ones too.
        existing: all tables; ``tables`` those that are meant, with all their columns.
        failing, indexes, wide: of all tables; see `checks.updates`, `checks.wide_values`.
        publications: by name; of the database.
        beaten: the heartbeat's table.
        standbys: what the server says of its standbys.
    """

    where: str
    version: int
    settings: Mapping[str, str]
    role: Role
    standby: bool
    encoding: str
    pooled: bool
    encrypted: bool
    local: bool
    senders: int
    made: int
    existing: tuple[Table, ...]
    tables: tuple[Table, ...]
    failing: Mapping[int, str]
    indexes: Mapping[int, UniqueIndex]
    wide: tuple[WideTable, ...]
    publications: Mapping[str, Publication]
    slots: tuple[KeptWal, ...]
    transactions: tuple[OpenTransaction, ...]
    beaten: BeatenTable | None = None
    standbys: Standbys = field(default_factory=lambda: Standbys({}))

    @property
    def limit(self) -> int | None:
        """Return how much WAL is kept for a slot, in bytes; None without a limit."""
        kept = int(self.settings["max_slot_wal_keep_size"])
        return None if kept < 0 else kept * checks.MB


def examine(examination: Examination) -> list[Finding]:
    """Look at a database; return what was found, the worst first in each of its parts.

    A server that cannot be reached is a finding, too. Nothing is changed.
    """
    server = replace(examination.server, application=APPLICATION)
    found: list[Finding] = []
    with _refused(found, "connection"), contextlib.closing(server.sql()) as connection:
        with server.translated("a catalog query"):
            if not catalog.pooled(connection):
                # Somebody may hold a table, and the doctor need not wait for it.
                connection.execute("SET lock_timeout = '10s'")
            facts = read_facts(connection, examination)
        found += diagnose(facts, examination)
        if not any(finding.check in ("wal_senders", "replication", "standby", "pooler") for finding in found):
            with (
                _refused(found, "replication_connection"),
                contextlib.closing(Replication.open(server)) as replication,
                server.translated("a catalog query"),
            ):
                startup.identify(replication)
                if examination.log is not None:
                    found += _of_log(connection, replication, examination, examination.log)
    return [replace(finding, where=str(examination.server)) for finding in found]


def repair(server: Server, found: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """Run the statements of findings that are safe; yield each, and why it failed: "" where it did not.

    Raises:
        SourceUnavailable, SourceRefused: the server cannot be reached.
    """
    with contextlib.closing(replace(server, application=APPLICATION).sql()) as connection:
        for statement in statements(found):
            try:
                with server.translated(f"«{statement}»"):
                    connection.execute(statement.encode())
            except SourceRefused as error:
                yield statement, error.message
            else:
                yield statement, ""


def statements(found: Sequence[Finding]) -> list[str]:
    """Return the statements of findings that are safe, each once."""
    return list(dict.fromkeys(statement for finding in found if finding.safe for statement in finding.sql))


@contextlib.contextmanager
def _refused(found: list[Finding], check: str) -> Iterator[None]:
    """Make a finding of an error of the block."""
    try:
        yield
    except SourceError as error:
        named = next((name for said, name in _SAID.items() if re.search(said, error.message)), check)
        found.append(Finding(named, Severity.ERROR, error.message, advice=error.advice))


# What errors are about, by what they say.
_SAID = {
    "unsupported startup parameter": "pooler",
    "SSL|certificate": "ssl",
    "max_wal_senders": "wal_senders",
    "pg_hba.conf": "pg_hba",
}


# --- from facts to findings ---


def diagnose(facts: Facts, examination: Examination) -> list[Finding]:
    """Return what is found of facts."""
    where, settings = facts.where, facts.settings
    return [
        *checks.version(facts.version, where),
        *checks.pooler(pooled=facts.pooled, where=where),
        *checks.standby(facts.standby, where),
        *(checks.keeping_slots(settings, where) if facts.standby else _of_failover(facts, examination)),
        *checks.wal_level(settings["wal_level"], where),
        *checks.output_plugin(settings.get("output_plugin_libraries"), where),
        *checks.replication_right(facts.role, where),
        *_of_room(facts, examination),
        *_of_tables(facts, examination),
        *_of_publications(facts, examination),
        *_of_slots(facts, examination),
        *checks.wal_limit(facts.limit, where),
        *checks.idle_timeout(int(settings.get("idle_replication_slot_timeout", 0)), where),
        *checks.transactions(facts.transactions, where),
        *checks.encoding(facts.encoding, where),
        *checks.encryption(encrypted=facts.encrypted, local=facts.local, where=where),
    ]


def _of_room(facts: Facts, examination: Examination) -> list[Finding]:
    """Find what is full: slots where one is to be made, walsenders where none reads yet."""
    own = next((kept.slot for kept in facts.slots if kept.slot.name == examination.slot), None)
    found = []
    if own is None:
        most = int(facts.settings["max_replication_slots"])
        found += checks.room(used=facts.made, most=most, where=facts.where)
    if own is None or own.active_pid is None:
        found += checks.senders(used=facts.senders, most=int(facts.settings["max_wal_senders"]), where=facts.where)
    return found


def _of_failover(facts: Facts, examination: Examination) -> list[Finding]:
    own = next((kept.slot for kept in facts.slots if kept.slot.name == examination.slot), None)
    wanted = examination.failover
    return checks.failover(own, wanted=wanted, version=facts.version, standbys=facts.standbys, where=facts.where)


def _of_tables(facts: Facts, examination: Examination) -> list[Finding]:
    where, tables = facts.where, facts.tables
    if not tables:
        return checks.nothing_matches(facts.existing, examination.patterns or (".*",), where)
    captured = [table for table in tables if not checks.kind(table, where)]
    found = [finding for table in tables for finding in checks.kind(table, where, alone=not captured)]
    found += [finding for table in captured for finding in checks.columns(table)]
    if examination.snapshot:
        found += checks.reading(facts.role, captured, where)
    if not examination.failing_updates:
        found += checks.updates(captured, facts.failing, facts.indexes, where)
    found += checks.keys(captured, facts.indexes, where)
    found += checks.wide_values(captured, facts.wide, where)
    return found


def _of_publications(facts: Facts, examination: Examination) -> list[Finding]:
    where = facts.where
    captured = [table for table in facts.tables if not checks.kind(table, where)]
    named = facts.publications.get(examination.publication)
    found = []
    if examination.publication and (named is not None or not examination.own_publication):
        found += checks.publication(named, examination.publication, captured, where)
    elif not any(known.tables.keys() >= {table.oid for table in captured} for known in facts.publications.values()):
        name = examination.publication or f"{slot_binding.OURS}{facts.role.database}"
        found += checks.publishing(facts.role, captured, name, where)
    if named is not None:
        found += checks.publication_parts(named, captured, where)
    found += checks.heartbeat(examination.heartbeat, facts.beaten, named, captured, facts.role, where)
    told = {table.oid for table in captured if not examination.failing_updates}
    others = [table for table in facts.existing if table.oid not in told]
    for known in facts.publications.values():
        found += checks.published_updates(known, others, facts.failing, facts.indexes, where)
    return found


def _of_slots(facts: Facts, examination: Examination) -> list[Finding]:
    found: list[Finding] = []
    resync = f"headrace capture resync --log {examination.place or 'PATH'}"
    for kept in facts.slots:
        own = kept.slot.name == examination.slot
        if own:
            with _refused(found, "slot"):
                slot_binding.check_foreign(kept.slot, facts.role.database)
        wanted = own or (not examination.slot and kept.slot.database == facts.role.database)
        found += checks.slot(kept, own=own, wanted=wanted, limit=facts.limit, resync=resync, where=facts.where)
    return found


def _of_log(connection: SqlConnection, replication: Replication, examination: Examination, log: Log) -> list[Finding]:
    """Find why a log cannot go on from its slot, as a start would refuse it; and what it misses."""
    found = checks.accepted_gaps(passed_gaps(log, examination.source), examination.place)
    with _refused(found, "log"):
        try:
            slot_binding.check_whole(log, examination.source)
            record = SourceRecord.load(log, examination.source)
            if record is None:
                return found
            began = Began.load(log, examination.source)
            record = startup.followed(replication, record, began)
            slot_binding.check_slot(record, catalog.replication_slot(connection, record.slot))
            slot_binding.check_position(record, catalog.insert_lsn(connection))
            if began is not None:
                now = drift.look_again(connection, began)
                # Others in it may be about to join: only the pipeline's file says which tables are meant.
                drift.check(began, now, own=examination.own_publication, coming=lambda: now.entries)
        except slot_binding.Stranded as error:
            error.at(examination.place)
            raise
    return found


# --- examinations ---


def examination_of(log: Log, name: str, dsn: str, place: str) -> Examination:
    """Return the database of a log's source.

    Args:
        dsn: the connection string; the log keeps none with a password.
    """
    record = slot_binding.known_sources(log)[name]
    return Examination(
        Server(dsn, APPLICATION),
        tuple(f"(?-i:{re.escape(table)})" for table in record.tables),  # patterns take any case
        record.slot,
        record.publication,
        own_publication=record.publication.startswith(slot_binding.OURS),
        snapshot=False,  # it was taken
        log=log,
        source=name,
        place=place,
    )


def address_of(log: Log, name: str) -> str:
    """Return the connection string that a log keeps of a source, without a password; "" where it keeps none."""
    return Claim.load(log, name).address


# --- facts ---

_SETTINGS = (
    "wal_level",
    "max_replication_slots",
    "max_wal_senders",
    "max_slot_wal_keep_size",
    "idle_replication_slot_timeout",
    "output_plugin_libraries",
    "synchronized_standby_slots",
    "sync_replication_slots",
    "hot_standby_feedback",
    "primary_slot_name",
)
_SERVER = """
SELECT pg_is_in_recovery(), pg_encoding_to_char(encoding), (SELECT count(*) FROM pg_stat_replication),
  (SELECT count(*) FROM pg_replication_slots)
FROM pg_database WHERE datname = current_database()
"""
# Columns that may be stored out of line, but those of keys, and how much is: fixed-size and short types never are.
_WIDE = """
SELECT c.oid, array_agg(a.attname::text ORDER BY a.attnum), pg_relation_size(c.reltoastrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.oid = ANY(%s) AND c.reltoastrelid <> 0 AND a.attlen = -1 AND a.attstorage IN ('x', 'e')
  AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND a.attnum = ANY(i.indkey))
GROUP BY c.oid ORDER BY c.oid
"""
_KEPT = """
SELECT slot_name::text, coalesce(wal_status, ''),
  ({now} - s.restart_lsn)::bigint, ({now} - s.confirmed_flush_lsn)::bigint, safe_wal_size,
  extract(epoch FROM r.flush_lag)::float8,
  extract(epoch FROM now() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8
FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON r.pid = s.active_pid
WHERE NOT s.temporary ORDER BY slot_name
"""
_NOW = "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END"
_TRANSACTIONS = """
SELECT format('server process %s (%s, user %s, %s)', pid, coalesce(nullif(application_name, ''), '?'), usename, state),
  extract(epoch FROM now() - xact_start)::float8, format('SELECT pg_terminate_backend(%s);', pid)
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database()
UNION ALL
SELECT format('prepared transaction %L', gid), extract(epoch FROM now() - prepared)::float8,
  format('ROLLBACK PREPARED %L;', gid)
FROM pg_prepared_xacts WHERE database = current_database()
"""
_BEATEN = """
SELECT c.oid, has_table_privilege(c.oid, %s) FROM pg_class c
WHERE c.oid = to_regclass(%s)
"""


def read_facts(connection: SqlConnection, examination: Examination) -> Facts:
    """Read what there is to know. Nothing is changed, and no table is read."""
    standby, encoding, senders, made = connection.execute(_SERVER).fetchone() or (False, "", 0, 0)
    existing = catalog.all_tables(connection)
    oids = [table.oid for table in existing]
    chosen = catalog.matching(existing, examination.patterns) if examination.patterns else existing
    host = connection.info.host or ""
    settings = catalog.settings(connection, *_SETTINGS)
    return Facts(
        where=str(examination.server),
        version=connection.info.server_version,
        settings=settings,
        role=catalog.role(connection),
        standby=standby,
        encoding=encoding,
        pooled=catalog.pooled(connection),
        encrypted=bool(connection.pgconn.ssl_in_use),
        local=host.startswith(("/", "127.")) or host in LOCAL,
        senders=senders,
        made=made,
        existing=tuple(existing),
        tables=tuple(catalog.with_columns(connection, chosen, None)),
        failing=catalog.failing_updates(connection, oids),
        indexes=catalog.unique_indexes(connection, oids),
        wide=tuple(WideTable(oid, tuple(names), size) for oid, names, size in connection.execute(_WIDE, [oids])),
        publications=_publications(connection),
        slots=tuple(_slots(connection)),
        transactions=tuple(OpenTransaction(*row) for row in connection.execute(_TRANSACTIONS.encode())),
        beaten=_beaten(connection, examination.heartbeat, existing),
        standbys=_standbys(connection, settings),
    )


def _standbys(connection: SqlConnection, settings: Mapping[str, str]) -> Standbys:
    slots = connection.execute(
        "SELECT slot_name::text, active FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT temporary"
    )
    listed = (name.strip().strip('"') for name in settings.get("synchronized_standby_slots", "").split(","))
    return Standbys(dict(slots.fetchall()), tuple(name for name in listed if name))


def _publications(connection: SqlConnection) -> dict[str, Publication]:
    names = [name for (name,) in connection.execute("SELECT pubname::text FROM pg_publication ORDER BY pubname")]
    found = {name: catalog.publication(connection, name) for name in names}
    return {name: known for name, known in found.items() if known is not None}


def _slots(connection: SqlConnection) -> Iterator[KeptWal]:
    owners = slot_binding.all_noted(connection)
    rows: list[tuple[Any, ...]] = connection.execute(_KEPT.format(now=_NOW).encode()).fetchall()
    for name, status, retained, behind, safe, late, idle in rows:
        slot = catalog.replication_slot(connection, name)
        if slot is not None:
            owner = str(owners[name]) if name in owners else ""
            yield KeptWal(slot, status, retained, behind, safe, late, idle, owner)


def _beaten(connection: SqlConnection, given: Heartbeat, existing: Sequence[Table]) -> BeatenTable | None:
    if not given.table:
        return None
    name = given.table if "." in given.table else f"public.{given.table}"  # our session's search_path is another
    row = connection.execute(_BEATEN, [given.right, name]).fetchone()
    table = None if row is None else next((table for table in existing if table.oid == row[0]), None)
    return BeatenTable(table, row is not None and bool(row[1]))
