"""Tables by OID and the publication that a capture began with, compared with what the catalog says now.

The log keeps it under (``captured``, prefix), written in the transaction that ties the log to its slot. It is compared
at every start, at every new connection, every few seconds while the stream runs, and before
`PostgresSource.end` returns. The publication's ``xmin`` and the OIDs of its entries tell also what was changed
and set back in between:
https://www.postgresql.org/docs/current/catalog-pg-publication.html,
https://www.postgresql.org/docs/current/catalog-pg-publication-rel.html
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from headrace.capture.base import Log
from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.parts import WHOLE, Part, Parts, part_of
from headrace.capture.postgres.slot_binding import Stranded, read_record
from headrace.capture.postgres.types import Vectors

KIND = "captured"
# The columns of pg_publication that say what is published. One that a newer server has beside these is compared too.
_OPERATIONS = {"pubinsert": "inserts", "pubupdate": "updates", "pubdelete": "deletes", "pubtruncate": "truncates"}
_NOT_OPTIONS = frozenset({"oid", "pubname", "pubowner", "xmin"})
# Rows of a partition are those of the table that is captured: of its root, where that is.
OPTIONS: Mapping[str, object] = {"puballtables": False, "pubviaroot": True, **dict.fromkeys(_OPERATIONS, True)}
# Why a table that was captured is so no more; rows of it that were published before may still come.
DROPPED = "dropped"
UNPUBLISHED = "unpublished"
ATTACHED = "attached"
# It joins again at once: a partition was attached, with rows that it had before.
GROWN = "grown"
# Rows that still come are left out: it was not to be captured any more.
NARROWED = "narrowed"


_NO_PARTS: Mapping[Any, Part] = {}


@dataclass(frozen=True, slots=True)
class Captured:
    """A table that is captured.

    Attributes:
        schema, name: what it was called when its capture began, which its topic is called after.
        entry: OID of its entry in the publication, 0 where the publication has its schema or all tables.
        columns: numbers of the columns that are published, as text; None for all.
        row_filter: a hash of the entry's WHERE as the server keeps it, None without.
        seen, until, since: of a table that joined later, what its snapshot saw
            (`headrace.capture.postgres.decode.Seen`).
        left: why it is captured no more; "" as long as it is.
        streamed: its changes are published; those of a partitioned table may be its partitions'.
        partitions: OIDs of the tables that have its rows, where it is partitioned; None in logs made before.
        part: what the user wants of it (`headrace.capture.postgres.parts.Part.text`).
        vectors: types whose values its topic has as lists; none in logs made before.
    """

    oid: int
    schema: str
    name: str
    entry: int
    columns: str | None
    row_filter: str | None
    seen: str | None = None
    until: int = 0
    since: int = 0
    left: str = ""
    streamed: bool = True
    partitions: Sequence[int] | None = None
    part: str = ""
    vectors: Vectors = ()

    @property
    def label(self) -> tuple[str, str]:
        return self.schema, self.name

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def _captured(fields: dict[str, Any]) -> Captured:
    parts = fields.pop("partitions", None)
    vectors = tuple((oid, name) for oid, name in fields.pop("vectors", ()))
    return Captured(**fields, partitions=None if parts is None else tuple(parts), vectors=vectors)


@dataclass(frozen=True, slots=True)
class Began:
    """The tables that a capture began with or that joined it, and the publication that they come through.

    Attributes:
        publication: its name; ``oid``, ``xmin`` and ``owner`` of its row in the catalog.
        options: operations and whatever else the row says.
        tables: those too that have left.
    """

    publication: str
    oid: int
    xmin: str
    owner: str
    options: Mapping[str, object]
    tables: tuple[Captured, ...]

    @property
    def active(self) -> tuple[Captured, ...]:
        """Return the tables that have not left."""
        return tuple(table for table in self.tables if not table.left)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the tables that have not left."""
        return tuple(sorted({str(table) for table in self.active}))

    def with_tables(self, joined: Sequence[Captured]) -> Began:
        """Return it with tables that join, each in the place of its own former life, if it had one.

        One whose name another one has taken was dropped. Rows of it may still be sent once more; not those of its
        own predecessor.
        """
        oids, labels = {table.oid for table in joined}, {table.label for table in joined}
        kept: list[Captured] = []
        for table in self.tables:
            if table.oid in oids:
                continue
            if table.label in labels and table.left in ("", DROPPED):
                kept = [other for other in kept if other.label != table.label or other.left != DROPPED]
                table = replace(table, left=DROPPED)
            kept.append(table)
        return replace(self, tables=(*kept, *joined))

    def with_vectors(self, tables: Iterable[Table]) -> Began:
        """Return it with what tables say of types whose values are lists."""
        told = {table.oid: table.vectors for table in tables}
        return replace(self, tables=tuple(replace(t, vectors=told.get(t.oid, t.vectors)) for t in self.tables))

    def without(self, left: Mapping[int, str]) -> Began:
        """Return it without tables that leave: why, by OID."""
        tables = tuple(
            replace(table, left=left[table.oid]) if table.oid in left and not table.left else table
            for table in self.tables
        )
        return replace(self, tables=tables)

    def with_partitions(self, partitions: Mapping[int, tuple[int, ...]]) -> Began:
        """Return it with other partitions of tables, by OID."""
        tables = tuple(
            replace(table, partitions=partitions[table.oid]) if table.oid in partitions else table
            for table in self.tables
        )
        return replace(self, tables=tables)

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def load(cls, log: Log, prefix: str) -> Began | None:
        """Return the log's record for the source of this name; None in a log made before it was kept.

        Raises:
            LogCorrupt: it is there and cannot be read.
        """

        def parse(fields: dict[str, Any]) -> Began:
            tables = tuple(_captured(table) for table in fields.pop("tables"))
            return cls(tables=tables, **fields)

        return read_record(log, KIND, prefix, f"the tables of «{prefix}»", parse)


@dataclass(frozen=True, slots=True)
class Entry:
    """A table's entry in a publication; see `Captured`."""

    oid: int
    columns: str | None
    row_filter: str | None


@dataclass(frozen=True, slots=True)
class There:
    """A table as the catalog has it now.

    Attributes:
        namespace: OID of its schema.
        publishable: it is a logged table.
        partitioned: its rows are those of its partitions.
        ancestors: OIDs of the partitioned tables that it is in.
        partitions: OIDs of the tables that have its rows, each with whether it was attached, perhaps
            with rows.
    """

    schema: str
    name: str
    namespace: int
    publishable: bool
    partitioned: bool
    ancestors: Sequence[int]
    partitions: Sequence[tuple[int, bool]] = ()

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Look:
    """The catalog at one moment: a publication, and tables that were asked for.

    Attributes:
        row: the publication's row, None where there is none of this name.
        entries: entries of single tables in it, by the table's OID.
        namespaces: OIDs of the schemas that it has.
        tables: by OID.
    """

    publication: str
    row: Mapping[str, Any] | None
    entries: Mapping[int, Entry] = field(default_factory=dict)
    namespaces: frozenset[int] = frozenset()
    tables: Mapping[int, There] = field(default_factory=dict)

    def publishes(self, oid: int) -> bool:
        """Return whether it sends the changes of a table that was asked for, and under its own OID."""
        there = self.tables.get(oid)
        if self.row is None or there is None or not there.publishable:
            return False
        everything = bool(self.row["puballtables"]) or there.namespace in self.namespaces
        in_root = everything or any(ancestor in self.entries for ancestor in there.ancestors)
        if self.row.get("pubviaroot") and there.ancestors and in_root:
            return False
        if there.partitioned and not self.row.get("pubviaroot"):
            return False
        return everything or oid in self.entries or in_root

    @property
    def options(self) -> dict[str, object]:
        return {name: value for name, value in (self.row or {}).items() if name not in _NOT_OPTIONS}

    def only_ours(self, wanted: Mapping[str, object] = OPTIONS, parts: Mapping[int, Part] = _NO_PARTS) -> bool:
        """Return whether it sends of single tables what is wanted, as a publication that a capture makes.

        Args:
            wanted: its options.
            parts: what is wanted, by OID; everything of the others.
        """
        plain = all(
            (entry.columns is None, entry.row_filter is None) == (not part.columns, not part.where)
            for oid, entry in self.entries.items()
            for part in [parts.get(oid, WHOLE)]
        )
        unlike = [name for name, value in self.options.items() if value != wanted.get(name, value)]
        generated = self.options.get("pubgencols", "n") in ("n", False)
        return self.row is not None and plain and not unlike and generated and not self.namespaces

    def began(self, tables: Iterable[tuple[int, str, str]], parts: Parts = _NO_PARTS) -> Began:
        """Return what a capture of tables (OID, schema, name) begins with."""
        assert self.row is not None
        none = Entry(0, None, None)
        found = [(table, self.entries.get(table[0], none)) for table in tables]
        captured = tuple(
            Captured(
                *table,
                entry.oid,
                entry.columns,
                entry.row_filter,
                partitions=self.partitions(table[0]),
                part=parts.get(f"{table[1]}.{table[2]}", WHOLE).text,
            )
            for table, entry in found
        )
        row = self.row
        return Began(self.publication, int(row["oid"]), row["xmin"], str(row["pubowner"]), self.options, captured)

    def partitions(self, oid: int) -> tuple[int, ...]:
        """Return OIDs of the tables that have a table's rows, where it is partitioned."""
        there = self.tables.get(oid)
        return tuple(sorted(part for part, _ in there.partitions)) if there is not None else ()

    def snapshot_only(self, began: Began) -> Began:
        """Return it with those tables marked whose changes are not published under their own names."""
        tables = tuple(replace(table, streamed=self.publishes(table.oid)) for table in began.tables)
        return replace(began, tables=tables)


# Not pg_publication_tables: it locks the tables, and would wait for whoever rewrites one.
_LOOK = """
SELECT (SELECT to_jsonb(p) || jsonb_build_object('xmin', p.xmin::text) FROM pg_publication p WHERE pubname = %(name)s),
  (SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM pg_publication_rel r
   JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(name)s),
  {namespaces},
  (SELECT coalesce(jsonb_agg(jsonb_build_array(c.oid::bigint, n.nspname, c.relname, n.oid::bigint,
     pg_relation_is_publishable(c.oid), c.relkind = 'p',
     ARRAY(SELECT a.relid::bigint FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid),
     CASE WHEN c.relkind = 'p' THEN {partitions} ELSE '[]' END)), '[]')
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p') AND (c.oid = ANY(%(oids)s) OR c.relname = ANY(%(names)s)))
"""
# Not pg_partition_tree, which locks them. What is created as a partition has its type from the same transaction.
_PARTITIONS = """(WITH RECURSIVE part AS (
       SELECT i.inhrelid, l.relkind, t.xmin <> i.xmin AS attached
       FROM pg_inherits i JOIN pg_class l ON l.oid = i.inhrelid JOIN pg_type t ON t.oid = l.reltype
       WHERE i.inhparent = c.oid AND NOT i.inhdetachpending
       UNION ALL
       SELECT i.inhrelid, l.relkind, part.attached OR t.xmin <> i.xmin
       FROM part JOIN pg_inherits i ON i.inhparent = part.inhrelid
       JOIN pg_class l ON l.oid = i.inhrelid JOIN pg_type t ON t.oid = l.reltype WHERE NOT i.inhdetachpending)
     SELECT coalesce(jsonb_agg(jsonb_build_array(inhrelid::bigint, attached)), '[]') FROM part WHERE relkind <> 'p')"""
_NAMESPACES = """ARRAY(SELECT s.pnnspid::bigint FROM pg_publication_namespace s
   JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = %(name)s)"""


def look(connection: SqlConnection, publication: str, *, oids: Sequence[int] = (), names: Sequence[str] = ()) -> Look:
    """Read a publication and the tables that have one of these OIDs or plain names, all at one moment."""
    parameters = {"name": publication, "oids": list(oids), "names": list(names)}
    modern = connection.info.server_version >= 150000
    query = _LOOK.format(namespaces=_NAMESPACES if modern else "ARRAY[]::bigint[]", partitions=_PARTITIONS)
    row, entries, namespaces, tables = connection.execute(query.encode(), parameters).fetchone() or (None, [], [], [])
    return Look(
        publication,
        row,
        {int(entry["prrelid"]): _entry(entry) for entry in entries if not entry.get("prexcept")},
        frozenset(namespaces),
        {oid: There(*there) for oid, *there in tables},
    )


def look_again(connection: SqlConnection, began: Began) -> Look:
    """Look again at what a capture began with."""
    tables = began.tables
    oids, names = [table.oid for table in tables], sorted({table.name for table in tables})
    return look(connection, began.publication, oids=oids, names=names)


def _entry(row: Mapping[str, Any]) -> Entry:
    columns, where = row.get("prattrs"), row.get("prqual")
    hashed = None if where is None else hashlib.sha256(str(where).encode()).hexdigest()[:16]
    return Entry(int(row["oid"]), None if columns is None else str(columns), hashed)


def check(
    began: Began, now: Look, *, own: bool, coming: Callable[[], Iterable[int]] = tuple, by_name: bool = False
) -> None:
    """Refuse where rows may have gone by that the log should have, or where a name means another table now.

    Args:
        by_name: whatever comes of a table that matches is captured, as Debezium does: only the publication itself has
            to be as it was.
        own: the publication is the capture's own: it should have no other tables.
        coming: OIDs of tables that may be in it, as they join.

    Raises:
        Stranded: naming the table, and the ways on.
    """
    what = _of_publication(began, now)
    if by_name:
        if what is not None:
            raise _missing(what)
        return
    left = leaving(began, now, own=own)
    for table in began.active:
        if table.oid not in left and table.streamed:
            what = what or _of_table(began, table, now)
    others = now.entries.keys() - {table.oid for table in began.tables}
    if others and own:
        others -= set(coming())
    if what is None and own and (others or now.namespaces):
        what = f"publication «{began.publication}» has tables that the log does not have ({_names(others, now)})"
    if what is not None:
        raise _missing(what)
    _check_names(began, now)


# What was asked for when logs had the names of tables only.
_WITHOUT_ROOTS = {**OPTIONS, "pubviaroot": False}


def check_named(publication: str, names: Sequence[str], now: Look, *, own: bool) -> None:
    """Refuse to take up a log that has only its tables' names where these may mean others than they meant.

    Raises:
        Stranded: a table or the publication is gone, or something else than these tables is published.
    """
    published = {str(there) for oid, there in now.tables.items() if now.publishes(oid)}
    gone = sorted(set(names) - published)
    what = ""
    if now.row is None:
        what = f"publication «{publication}» is gone"
    elif gone:
        what = f"publication «{publication}» no longer has {', '.join(gone)} (renamed, dropped, or removed from it)"
    elif own and not ((now.only_ours() or now.only_ours(_WITHOUT_ROOTS)) and now.entries.keys() == now.tables.keys()):
        what = f"publication «{publication}» was altered"
    if what:
        raise _missing(what)


def leaving(began: Began, now: Look, *, own: bool, by_name: bool = False) -> dict[int, str]:
    """Return tables that are captured no more from now on, and why, by OID.

    Args:
        own: the publication is the capture's own: who takes a table out of it does so behind the capture's back.
    """
    captured = {table.oid for table in began.active}
    left = {}
    for table in began.active:
        there, entry = now.tables.get(table.oid), now.entries.get(table.oid)
        if there is None:
            left[table.oid] = DROPPED
        elif by_name or not table.streamed:
            continue
        elif now.publishes(table.oid):
            if not own and table.entry and (entry is None or entry.oid != table.entry):
                left[table.oid] = UNPUBLISHED  # and put back: what lies between is not sent
            elif table.partitions is not None and any(
                attached and part not in table.partitions for part, attached in there.partitions
            ):
                left[table.oid] = GROWN
        elif captured & set(there.ancestors) and now.row is not None and now.row.get("pubviaroot"):
            left[table.oid] = ATTACHED
        elif not own and now.row is not None:
            left[table.oid] = UNPUBLISHED
    return left


def _missing(what: str) -> Stranded:
    return Stranded(f"{what}: changes that were committed meanwhile may be missing in the log, and will not come again")


def said(began: Began, now: Look, left: Mapping[int, str]) -> list[str]:
    """Return what to say of tables that are called otherwise now, or have left."""
    texts = []
    for table in began.active:
        there = now.tables.get(table.oid)
        if table.oid in left:
            texts.append(_farewell(table, left[table.oid]))
        elif there is not None and str(there) != str(table):
            texts.append(f"table {table} is called {there} now; its rows go on in the topic of {table}")
        if there is not None and set(table.partitions or ()) - {part for part, _ in there.partitions}:
            texts.append(f"a partition of table {table} was detached or dropped: its rows stay in the topic of {table}")
    return texts


def repartitioned(began: Began, now: Look, left: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """Return tables whose partitions are others now, by OID, and which these are."""
    found = {}
    for table in began.active:
        there = now.tables.get(table.oid)
        if there is not None and there.partitioned and table.oid not in left:
            parts = now.partitions(table.oid)
            if table.partitions is None or tuple(table.partitions) != parts:
                found[table.oid] = parts
    return found


def _farewell(table: Captured, why: str) -> str:
    if why == GROWN:
        return f"a partition was attached to table {table}, which joins again, with the rows that the partition had"
    what = {
        DROPPED: "was dropped",
        UNPUBLISHED: "is not in the publication any more",
        ATTACHED: "is a partition of another captured table now, whose rows its rows are",
        NARROWED: "does not match tables=… any more",
    }
    return f"table {table} {what[why]}: its topic ends there, and is kept"


def _of_publication(began: Began, now: Look) -> str | None:
    what = f"publication «{began.publication}»"
    if now.row is None:
        return f"{what} is gone"
    if int(now.row["oid"]) != began.oid:
        return f"{what} was dropped and made again"
    ended = [name for column, name in _OPERATIONS.items() if began.options.get(column) and not now.options.get(column)]
    if ended:
        return f"{what} no longer publishes {', '.join(ended)}"
    changed = sorted(name for name, value in now.options.items() if began.options.get(name, value) != value)
    if changed:
        return f"{what} was altered ({', '.join(f'{name} is {now.options[name]}' for name in changed)})"
    # An owner is another row of the catalog too, and nothing that is published hangs on it.
    if now.row["xmin"] != began.xmin and str(now.row["pubowner"]) == began.owner:
        return f"{what} was altered, and set back to what it was"
    return None


def _of_table(began: Began, table: Captured, now: Look) -> str | None:
    there = now.tables.get(table.oid)
    if there is None:
        return None  # dropped: whatever was committed before is still to come
    named = str(table) if str(there) == str(table) else f"{table} (called {there} now)"
    entry = now.entries.get(table.oid)
    if not now.publishes(table.oid):
        return f"publication «{began.publication}» no longer has table {named}"
    if entry is not None and entry.row_filter != table.row_filter:
        return f"the row filter of table {named} in publication «{began.publication}» was changed"
    if entry is not None and entry.columns != table.columns:
        return f"the column list of table {named} in publication «{began.publication}» was changed"
    if table.entry and (entry is None or entry.oid != table.entry):
        return f"table {named} was taken out of publication «{began.publication}», and put back"
    return None


def _check_names(began: Began, now: Look) -> None:
    """Refuse where a table has taken the name of one that the log has, and that is still there.

    Of one that was dropped the name is free: the new one joins.
    """
    ours = {table.oid for table in began.active}
    labels = {table.label: table for table in began.active}
    for oid, there in now.tables.items():
        was = labels.get((there.schema, there.name))
        now_called = now.tables.get(was.oid) if was is not None else None
        if oid in ours or was is None or now_called is None:
            continue
        raise Stranded(
            f"{was} is another table now (relation {oid}): the one that is captured (relation {was.oid}) is called "
            f"{now_called} now; rows of the new one are not captured",
            first=f"Give the tables their names back; rows of {was} went on in its topic. Or drop the old one, and the "
            "new one joins. Or:",
        )


def _names(oids: Iterable[int], now: Look) -> str:
    named = [str(now.tables[oid]) if oid in now.tables else f"relation {oid}" for oid in sorted(oids)]
    return ", ".join(named) or "all of a schema"


def recreated(
    publication: str, tables: Sequence[Table], parts: Parts = _NO_PARTS, *, everything: bool, by_leaf: bool
) -> list[str]:
    """Return the statements that make a publication of our own, whatever there was of its name.

    Rows of partitioned tables are published as theirs, whatever partition they are in, or will be; also of those that
    will join.

    Args:
        everything: it has all tables, also those that will be made.
        by_leaf: rows of partitioned tables are those of their partitions.
    """
    publish = f"publish = 'insert, update, delete, truncate', publish_via_partition_root = {str(not by_leaf).lower()}"
    listed = ", ".join(table.only_sql + part_of(parts, table).clause for table in tables)
    which = "ALL TABLES" if everything else f"TABLE {listed}"
    return [
        f"DROP PUBLICATION IF EXISTS {quote(publication)}",
        f"CREATE PUBLICATION {quote(publication)} FOR {which} WITH ({publish})",
    ]
