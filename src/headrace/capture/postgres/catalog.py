"""The server's catalog, asked for tables, slots and publications: queries only, nothing is changed.

The system views are those of https://www.postgresql.org/docs/current/catalogs.html and
https://www.postgresql.org/docs/current/views.html.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pyarrow as pa

from headrace.capture.debezium.expressions import readable
from headrace.capture.postgres.facts import Types, table_facts
from headrace.capture.postgres.messages import Column as StreamColumn
from headrace.capture.postgres.messages import Relation
from headrace.capture.postgres.table import Table as StreamTable
from headrace.capture.postgres.table import table as stream_table
from headrace.capture.postgres.types import Vectors, binary_decodable
from headrace.plain_values import is_list

_ATTEMPTS = 20
SqlConnection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the stream sends it.

    Attributes:
        output: the SQL name of its type's output function; ``declared``: its type in words, with what a domain is over.
    """

    name: str
    type_oid: int
    typmod: int
    output: str
    declared: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to capture.

    Attributes:
        key: its primary key, else the columns of its replica identity index, else nothing.
        identity: replica identity: ``d`` default, ``f`` full, ``i`` an index, ``n`` nothing.
        row_filter: the publication's WHERE, as SQL.
        missing: what the role lacks: ``SELECT``, ``owner``, ``USAGE`` of the schema, ``rows`` that row security hides.
        captured_as: schema and name when its capture began, which its topic is called after; None: as it is called.
        identity_columns: of the replica identity, where that is another index than the key's.
        ancestors: OIDs of the partitioned tables that it is in.
        facts: what else the catalog says of it (`headrace.capture.postgres.facts`), where that is wanted.
        whole: a snapshot reads rows of tables that inherit from it, too.
    """

    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    identity: str
    estimated_rows: int
    columns: tuple[Column, ...] = ()
    key: tuple[str, ...] = ()
    row_filter: str | None = None
    missing: tuple[str, ...] = ()
    captured_as: tuple[str, str] | None = None
    identity_columns: tuple[str, ...] = ()
    ancestors: tuple[int, ...] = ()
    facts: str = ""
    whole: bool = False
    vectors: Vectors = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def told_by(self, columns: frozenset[str] | None) -> Table:
        """Return the table with the columns of its replica identity, where that is another index than the key's."""
        other = self.identity == "i" and columns and columns != set(self.key)
        return replace(self, identity_columns=tuple(sorted(columns))) if other and columns else self

    @property
    def label(self) -> tuple[str, str]:
        return self.captured_as or (self.schema, self.name)

    @property
    def partitioned(self) -> bool:
        """Return whether its rows are those of its partitions."""
        return self.kind == "p"

    @property
    def only_sql(self) -> str:
        """Return its name in SQL, as it stands for its own rows: without those of tables that inherit from it."""
        return self.sql if self.partitioned else f"ONLY {self.sql}"

    @property
    def sql(self) -> str:
        return f"{quote(self.schema)}.{quote(self.name)}"

    @property
    def relation(self) -> Relation:
        """Return the Relation message that describes it."""
        names = self.identity_columns or self.key
        columns = tuple(StreamColumn(c.name, c.type_oid, c.typmod, c.name in names) for c in self.columns)
        return Relation(self.oid, self.schema, self.name, "i" if self.identity_columns else "d", columns)

    def with_facts(self, connection: SqlConnection, known: Types) -> Table:
        """Return the table with what else the catalog says of it; ``known`` types are not asked for again."""
        return replace(self, facts=table_facts(connection, replace(self.relation, identity=self.identity), known))

    def stream_table(self, prefix: str) -> StreamTable:
        """Return topic and schema of its events, as the decoder makes them from the stream's Relation message."""
        return stream_table(self.relation, prefix, self.key, self.label, self.facts, self.vectors)

    def declared(self, schema: pa.Schema) -> pa.Schema:
        """Return a schema with each column's type as the catalog names it, where the stream knows a number only."""
        known = {column.name: column.declared for column in self.columns}
        fields = [
            field.with_metadata({**(field.metadata or {}), b"postgres.declared": known[field.name].encode()})
            if known.get(field.name)
            else field
            for field in schema
        ]
        return pa.schema(fields, metadata=schema.metadata)

    @property
    def binary(self) -> bool:
        """Return whether all of its columns are understood in their binary form."""
        fields = self.stream_table("").fields
        columns = zip(self.columns, fields, strict=True)
        return all(binary_decodable(column.type_oid) or is_list(field.type) for column, field in columns)


@dataclass(frozen=True, slots=True)
class Slot:
    """A row of pg_replication_slots.

    Attributes:
        lost: why the server no longer keeps what it needs.
        two_phase: prepared transactions are sent before they are committed.
        reader: the application name of the connection that reads it, with ``active_pid``.
        idle_since: when the last reader left (from version 17 on).
        failover: standbys keep it too (from version 17 on).
    """

    name: str
    plugin: str
    database: str
    active_pid: int | None
    confirmed_flush: int
    lost: str
    two_phase: bool = False
    reader: str = ""
    idle_since: str = ""
    failover: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """A publication with its tables: OID to (columns or None for all, row filter or None)."""

    name: str
    all_tables: bool
    operations: frozenset[str]
    tables: dict[int, tuple[tuple[str, ...] | None, str | None]]


@dataclass(frozen=True, slots=True)
class Role:
    """The role of a connection, and what it may do.

    Attributes:
        replicates: it may open a replication connection.
        may_create: publications and schemas in the database.
        managed: the role that carries the right to replicate where the server is somebody's service; "" elsewhere.
        superuser: it may publish all tables.
    """

    name: str
    database: str
    replicates: bool
    may_create: bool
    managed: str
    superuser: bool = False


def quote(identifier: str) -> str:
    """Return an identifier in double quotes.

    >>> quote('a"b')
    '"a""b"'
    """
    return '"' + identifier.replace('"', '""') + '"'


def settings(connection: SqlConnection, *names: str) -> dict[str, str]:
    """Return server settings by name, in their base units; one that this version does not have is left out."""
    rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [list(names)])
    return {str(name): str(setting) for name, setting in rows}


def pooled(connection: SqlConnection) -> bool:
    """Return whether a pooler is between us and the server: it gives its own process number in the server's place."""
    (pid,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
    return bool(pid != connection.info.backend_pid)


# Of Amazon RDS, whose master user has no attribute to give.
_ROLE = """
SELECT current_user::text, current_database()::text,
       r.rolreplication OR r.rolsuper OR (m.oid IS NOT NULL AND pg_has_role(m.oid, 'MEMBER')),
       has_database_privilege(current_database(), 'CREATE'), coalesce(m.rolname::text, ''), r.rolsuper
FROM pg_roles r LEFT JOIN pg_roles m ON m.rolname = 'rds_replication' WHERE r.rolname = current_user
"""


def role(connection: SqlConnection) -> Role:
    """Return the role of a connection."""
    return Role(*(connection.execute(_ROLE.encode()).fetchone() or ("", "", False, False, "")))


_NAMED = """
SELECT n.nspname, c.relname, c.relreplident, c.reltuples::bigint
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s
"""
_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, greatest(c.reltuples, 0)::bigint,
       ARRAY(SELECT a.attname::text FROM pg_index i
             JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
             WHERE i.indexrelid = coalesce(
                 (SELECT indexrelid FROM pg_index WHERE indrelid = c.oid AND indisprimary),
                 (SELECT indexrelid FROM pg_index WHERE indrelid = c.oid AND indisreplident))
             ORDER BY array_position(i.indkey::int2[], a.attnum)),
       {ancestors},
       has_table_privilege(c.oid, 'SELECT'), pg_has_role(c.relowner, 'USAGE'),
       has_schema_privilege(n.oid, 'USAGE'), NOT row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
{which}
ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""
_NAMES = """
SELECT c.oid, n.nspname, c.relname, {ancestors}
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace {which}
"""
_ANCESTORS = """
CASE WHEN c.relispartition
     THEN ARRAY(SELECT a.relid::bigint FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid) ELSE '{}' END
"""
_WHICH = """
WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'headrace')
  -- Headrace's own: positions of sinks are in the schema headrace, and were beside the sinks' tables before.
  AND NOT (c.relname = 'headrace_sinks' AND EXISTS
           (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'next_offset' AND NOT attisdropped))
"""

_RIGHTS = ("SELECT", "owner", "USAGE", "rows")

_COLUMNS = """
SELECT a.attrelid, a.attname, a.atttypid, a.atttypmod, quote_ident(n.nspname) || '.' || quote_ident(p.proname),
       CASE WHEN t.typtype = 'd' THEN 'domain ' ELSE '' END || format_type(a.atttypid, a.atttypmod)
       || CASE WHEN t.typtype = 'd' THEN ' over ' || format_type(t.typbasetype, t.typtypmod) ELSE '' END,
       a.attgenerated <> ''
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_proc p ON p.oid = t.typoutput JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE a.attrelid = ANY(%s) AND a.attnum > 0 AND NOT a.attisdropped
  AND (%s OR a.attgenerated = '' OR (a.attrelid::bigint || ' ' || a.attname) = ANY(%s))
ORDER BY a.attrelid, a.attnum
"""


def all_tables(connection: SqlConnection, only: int | None = None) -> list[Table]:
    """Return tables of the database in name order, ordinary and partitioned, without their columns.

    Args:
        only: the OID of the one that is looked for.
    """
    found = []
    which = _WHICH if only is None else f"{_WHICH} AND c.oid = {only}"
    query = _TABLES.format(which=which, ancestors=_ANCESTORS)
    for oid, schema, name, kind, persistence, identity, rows, key, ancestors, *rights in _patiently(
        connection, query, []
    ):
        missing = tuple(right for right, has in zip(_RIGHTS, rights, strict=True) if not has)
        table = Table(oid, schema, name, kind, persistence, identity, rows, key=tuple(key), missing=missing)
        found.append(replace(table, ancestors=tuple(ancestors)))
    return found


def is_there(connection: SqlConnection, oid: int) -> bool:
    """Return whether there is a table, or another relation, of this number."""
    return connection.execute("SELECT 1 FROM pg_class WHERE oid = %s", [oid]).fetchone() is not None


_IDENTITIES = """
SELECT i.indrelid, a.attname FROM pg_class c
JOIN pg_index i ON i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
    AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY(i.indkey)
WHERE c.oid = ANY(%s)
"""


def identities(connection: SqlConnection, tables: Sequence[Table]) -> dict[int, frozenset[str] | None]:
    """Return columns by which the stream identifies the old row of an update or delete, by table; None: all of them."""
    found: dict[int, set[str]] = {}
    for oid, column in connection.execute(_IDENTITIES, [[table.oid for table in tables]]):
        found.setdefault(oid, set()).add(column)
    return {table.oid: None if table.identity == "f" else frozenset(found.get(table.oid, ())) for table in tables}


def matching_names(
    connection: SqlConnection, patterns: Sequence[str], *, by_leaf: bool = False
) -> dict[int, tuple[str, str]]:
    """Return schema and name by OID of the tables that `matching` finds, without looking at their columns."""
    found = connection.execute(_NAMES.format(which=_WHICH, ancestors=_ANCESTORS).encode()).fetchall()
    named = {oid: (schema, name) for oid, schema, name, _ in found if matches(f"{schema}.{name}", patterns)}
    if by_leaf:
        return named
    return {oid: named[oid] for oid, *_, ancestors in found if oid in named and not named.keys() & set(ancestors)}


# As CheckCmdReplicaIdentity and pub_contains_invalid_column decide (src/backend/executor/execReplication.c,
# src/backend/commands/publicationcmds.c); the last from version 18 on.
_FAILING = """
SELECT c.oid, CASE c.relreplident
    WHEN 'n' THEN 'its replica identity is NOTHING'
    WHEN 'i' THEN CASE WHEN i.indexrelid IS NULL THEN 'the index of its replica identity was dropped'
                       ELSE 'the index of its replica identity has a generated column' END
    WHEN 'f' THEN 'its replica identity is FULL and it has a generated column'
    ELSE CASE WHEN i.indexrelid IS NOT NULL THEN 'its primary key has a generated column'
              WHEN EXISTS (SELECT FROM pg_index p WHERE p.indrelid = c.oid AND p.indisprimary)
              THEN 'its primary key is deferrable' ELSE 'it has no primary key' END END
FROM pg_class c LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indimmediate AND i.indisvalid
    AND ((c.relreplident = 'd' AND i.indisprimary) OR (c.relreplident = 'i' AND i.indisreplident))
WHERE c.oid = ANY(%s) AND (
    (c.relreplident <> 'f' AND i.indexrelid IS NULL)
    OR (%s AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> ''
                       AND NOT a.attisdropped AND (c.relreplident = 'f' OR a.attnum = ANY(i.indkey)))))
"""


_LEAVES = """
SELECT c.oid, p.relid::oid::bigint, p.relid::regclass::text
FROM pg_class c LEFT JOIN LATERAL pg_partition_tree(c.oid) p ON p.isleaf AND p.relid <> c.oid
WHERE c.oid = ANY(%s) AND c.relkind = 'p'
"""


def failing_updates(connection: SqlConnection, oids: Sequence[int]) -> dict[int, str]:
    """Return by OID why the server refuses UPDATE and DELETE of tables while a publication of ours has them.

    It asks that of the partition that a row is in, never of a partitioned table.
    """
    generated = connection.info.server_version >= 180000
    leaves = _patiently(connection, _LEAVES, [list(oids)])
    partitioned = {root for root, _, _ in leaves}
    of_leaf = [(leaf, root, name) for root, leaf, name in leaves if leaf is not None]
    asked = {oid for oid in oids if oid not in partitioned} | {leaf for leaf, _, _ in of_leaf}
    failing: dict[int, str] = dict(connection.execute(_FAILING, [list(asked), generated]).fetchall())
    found = {oid: failing[oid] for oid in oids if oid in failing}
    for leaf, root, name in of_leaf:
        if leaf in failing:
            found.setdefault(root, f"partition {name}: {failing[leaf]}")
    return found


_INDEXES = """
SELECT DISTINCT ON (i.indrelid) i.indrelid, c.relname::text, ARRAY(
    SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
    ORDER BY array_position(i.indkey::int2[], a.attnum))
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY(%s) AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL
  AND i.indexprs IS NULL AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid
      AND a.attnum = ANY(i.indkey) AND (NOT a.attnotnull OR a.attgenerated <> ''))
ORDER BY i.indrelid, i.indnkeyatts, c.relname
"""


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """An index that tells the rows of a table apart, and could be its replica identity, or its key."""

    name: str
    columns: tuple[str, ...]


def unique_indexes(connection: SqlConnection, oids: Sequence[int]) -> dict[int, UniqueIndex]:
    """Return such an index by its table's OID; none where there is none, the primary key's among them."""
    rows = connection.execute(_INDEXES.encode(), [list(oids)])
    return {oid: UniqueIndex(name, tuple(columns)) for oid, name, columns in rows}


def matching(tables: Sequence[Table], patterns: Sequence[str], *, by_leaf: bool = False) -> list[Table]:
    """Return tables of which one of the patterns matches the whole ``schema.table``, whatever the case.

    Partitions of a table that is found are not, unless rows are to be those of partitions: their rows are its rows.
    """
    found = [table for table in tables if matches(str(table), patterns)]
    return found if by_leaf else without_partitions(found)


def without_partitions(tables: Sequence[Table]) -> list[Table]:
    """Return tables without those that are partitions of others of them."""
    oids = {table.oid for table in tables}
    return [table for table in tables if not oids & set(table.ancestors)]


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches the whole of a ``schema.table``, whatever the case."""
    return any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in patterns)


def is_ours(schema: str, name: str) -> bool:
    """Return whether a table is one of Headrace's own, as `all_tables` leaves them out."""
    return schema == "headrace" or name == "headrace_sinks"


def near_misses(tables: Sequence[Table], patterns: Sequence[str]) -> list[str]:
    """Return up to five tables that the patterns may have meant."""
    names = [str(table) for table in tables]
    lowered = {name.lower(): name for name in names}
    near: dict[str, None] = {}
    for pattern in patterns:
        plain = re.sub(r"[\\^$*+?()\[\]{}|]", "", readable(pattern)).lower()
        for candidate in (plain, f"public.{plain}"):
            near.update(dict.fromkeys(difflib.get_close_matches(candidate, lowered, n=5, cutoff=0.6)))
    return ([lowered[name] for name in near] or names)[:5]


def as_named_now(connection: SqlConnection, table: Table) -> Table | None:
    """Return a table as it is called now, with its replica identity and about how many rows it has; its topic stays.

    None: it was dropped.
    """
    found = connection.execute(_NAMED, [table.oid]).fetchone()
    if found is None:
        return None
    schema, name, identity, rows = found
    return replace(
        table, schema=schema, name=name, identity=identity, estimated_rows=max(0, rows), captured_as=table.label
    )


def with_columns(
    connection: SqlConnection, tables: Sequence[Table], publication: Publication | None, *, generated: bool = False
) -> list[Table]:
    """Return tables with the columns that the stream will send: the publication's, else all but generated ones.

    Args:
        generated: with all generated columns too.
    """
    published = publication.tables if publication else {}
    listed = {table.oid: published.get(table.oid, (None, None)) for table in tables}
    names = [f"{oid} {column}" for oid, (columns, _) in listed.items() for column in columns or ()]
    columns: dict[int, list[Column]] = {table.oid: [] for table in tables}
    for oid, *rest, is_generated in connection.execute(_COLUMNS, [list(columns), generated, names]):
        chosen = listed[oid][0]
        if chosen is None or rest[0] in chosen or (generated and is_generated):
            columns[oid].append(Column(*rest))
    return [replace(table, columns=tuple(columns[table.oid]), row_filter=listed[table.oid][1]) for table in tables]


def not_dropped(connection: SqlConnection, tables: Sequence[Table]) -> list[Table]:
    """Return tables, with their columns, without those that were dropped while the catalog was read: they have none."""
    return [table for table in tables if table.columns or is_there(connection, table.oid)]


_VECTORS = """
SELECT t.oid::bigint, t.typname::text FROM pg_extension e
JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
JOIN pg_type t ON d.classid = 'pg_type'::regclass AND t.oid = d.objid
WHERE e.extname = 'vector' AND t.typname IN ('vector', 'halfvec') ORDER BY t.oid
"""


def vectors(connection: SqlConnection) -> Vectors:
    """Return pgvector's types of which a value is a list of numbers; none where the extension is absent."""
    return tuple(connection.execute(_VECTORS).fetchall())


def insert_lsn(connection: SqlConnection) -> int:
    """Return where the server writes the next record of its log."""
    (lsn,) = connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint").fetchone() or (0,)
    return int(lsn)


def replication_slot(connection: SqlConnection, name: str) -> Slot | None:
    """Return the slot of this name, of whatever kind and database."""
    query = """SELECT coalesce(plugin, ''), coalesce(database, ''), active_pid,
        coalesce(confirmed_flush_lsn - '0/0', 0)::bigint, coalesce(wal_status, ''),
        coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), coalesce((to_jsonb(s) ->> 'two_phase')::bool, false),
        coalesce((SELECT application_name FROM pg_stat_activity WHERE pid = s.active_pid), ''),
        coalesce(to_jsonb(s) ->> 'inactive_since', ''), coalesce((to_jsonb(s) ->> 'failover')::bool, false)
        FROM pg_replication_slots s WHERE slot_name = %s"""
    row = connection.execute(query, [name]).fetchone()
    if row is None:
        return None
    plugin, database, active_pid, confirmed, wal_status, reason, *rest = row
    lost = reason or ("wal_removed" if wal_status == "lost" else "")
    return Slot(name, plugin, database, active_pid, confirmed, lost, *rest)


def _patiently(connection: SqlConnection, query: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
    """Return the rows of a query that opens tables, and fails where one is dropped while it runs."""
    for attempt in range(_ATTEMPTS):
        try:
            with connection.transaction():
                return connection.execute(query.encode(), parameters).fetchall()
        except (psycopg.errors.InternalError_, psycopg.errors.UndefinedTable):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def publication(connection: SqlConnection, name: str) -> Publication | None:
    """Return the publication of this name with what it publishes."""
    query = """SELECT puballtables, array_remove(ARRAY[CASE WHEN pubinsert THEN 'insert' END,
        CASE WHEN pubupdate THEN 'update' END, CASE WHEN pubdelete THEN 'delete' END,
        CASE WHEN pubtruncate THEN 'truncate' END], NULL) FROM pg_publication WHERE pubname = %s"""
    row = connection.execute(query, [name]).fetchone()
    if row is None:
        return None
    modern = connection.info.server_version >= 150000
    extra = "attnames::text[], rowfilter" if modern else "NULL::text[], NULL::text"
    tables = {}
    # By OID: between this query and the one for the tables, two of them may exchange their names.
    listing = f"""SELECT c.oid, {extra} FROM pg_publication_tables p JOIN pg_namespace n ON n.nspname = p.schemaname
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename WHERE p.pubname = %s"""
    for oid, columns, row_filter in _patiently(connection, listing, [name]):
        tables[oid] = (None if columns is None else tuple(columns), row_filter)
    return Publication(name, row[0], frozenset(row[1]), tables)
