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
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace.capture.base import Log
from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.parts import WHOLE, Part, Parts, part_of
from headrace.capture.postgres.slot_binding import Stranded, read_record

KIND = "captured"
# The columns of pg_publication that say what is published. One that a newer server has beside these is compared too.
_OPERATIONS = {"pubinsert": "inserts", "pubupdate": "updates", "pubdelete": "deletes", "pubtruncate": "truncates"}
_NOT_OPTIONS = frozenset({"oid", "pubname", "pubowner", "xmin"})
OPTIONS: Mapping[str, object] = {"puballtables": False, "pubviaroot": False, **dict.fromkeys(_OPERATIONS, True)}


_NO_PARTS: Mapping[Any, Part] = {}


@dataclass(frozen=True, slots=True)
class Captured:
    """A table that is captured.

    Attributes:
        schema, name: what it was called when its capture began, which its topic is called after.
        entry: OID of its entry in the publication, 0 where the publication has its schema or all tables.
        columns: numbers of the columns that are published, as text; None for all.
        row_filter: a hash of the entry's WHERE as the server keeps it, None without.
        seen, until: of a table that joined later, what its snapshot saw (`headrace.capture.postgres.decode.Seen`).
        part: what the user wants of it (`headrace.capture.postgres.parts.Part.text`).
    """

    oid: int
    schema: str
    name: str
    entry: int
    columns: str | None
    row_filter: str | None
    seen: str | None = None
    until: int = 0
    part: str = ""

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


@dataclass(frozen=True, slots=True)
class Began:
    """The tables that a capture began with, and the publication that they come through.

    Attributes:
        publication: its name; ``oid``, ``xmin`` and ``owner`` of its row in the catalog.
        options: operations and whatever else the row says.
    """

    publication: str
    oid: int
    xmin: str
    owner: str
    options: Mapping[str, object]
    tables: tuple[Captured, ...]

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
            tables = tuple(Captured(**table) for table in fields.pop("tables"))
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
    """

    schema: str
    name: str
    namespace: int
    publishable: bool
    partitioned: bool
    ancestors: Sequence[int]

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

    def only_ours(self, *, via_root: bool, parts: Mapping[int, Part] = _NO_PARTS) -> bool:
        """Return whether it sends of single tables what is wanted, as a publication that a capture makes.

        Args:
            via_root: it has partitioned tables, whose rows it sends as theirs.
            parts: what is wanted, by OID; everything of the others.
        """
        plain = all(
            (entry.columns is None, entry.row_filter is None) == (not part.columns, not part.where)
            for oid, entry in self.entries.items()
            for part in [parts.get(oid, WHOLE)]
        )
        wanted = {**OPTIONS, "pubviaroot": via_root}
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
                *table, entry.oid, entry.columns, entry.row_filter, part=parts.get(f"{table[1]}.{table[2]}", WHOLE).text
            )
            for table, entry in found
        )
        row = self.row
        return Began(self.publication, int(row["oid"]), row["xmin"], str(row["pubowner"]), self.options, captured)


# Not pg_publication_tables: it locks the tables, and would wait for whoever rewrites one.
_LOOK = """
SELECT (SELECT to_jsonb(p) || jsonb_build_object('xmin', p.xmin::text) FROM pg_publication p WHERE pubname = %(name)s),
  (SELECT coalesce(jsonb_agg(to_jsonb(r)), '[]') FROM pg_publication_rel r
   JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = %(name)s),
  {namespaces},
  (SELECT coalesce(jsonb_agg(jsonb_build_array(c.oid::bigint, n.nspname, c.relname, n.oid::bigint,
     pg_relation_is_publishable(c.oid), c.relkind = 'p',
     ARRAY(SELECT a.relid::bigint FROM pg_partition_ancestors(c.oid) a WHERE a.relid <> c.oid))), '[]')
   FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p') AND (c.oid = ANY(%(oids)s) OR c.relname = ANY(%(names)s)))
"""
_NAMESPACES = """ARRAY(SELECT s.pnnspid::bigint FROM pg_publication_namespace s
   JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = %(name)s)"""


def look(connection: SqlConnection, publication: str, *, oids: Sequence[int] = (), names: Sequence[str] = ()) -> Look:
    """Read a publication and the tables that have one of these OIDs or plain names, all at one moment."""
    parameters = {"name": publication, "oids": list(oids), "names": list(names)}
    modern = connection.info.server_version >= 150000
    query = _LOOK.format(namespaces=_NAMESPACES if modern else "ARRAY[]::bigint[]")
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


def check(began: Began, now: Look, *, own: bool, coming: Callable[[], Iterable[int]] = tuple) -> None:
    """Refuse where rows may have gone by that the log should have, or where a name means another table now.

    Args:
        own: the publication is the capture's own: it should have no other tables.
        coming: OIDs of tables that may be in it, as they join.

    Raises:
        Stranded: naming the table, and the ways on.
    """
    what = _of_publication(began, now)
    for table in began.tables:
        what = what or _of_table(began, table, now)
    others = now.entries.keys() - {table.oid for table in began.tables}
    if others and own:
        others -= set(coming())
    if what is None and own and (others or now.namespaces):
        what = f"publication «{began.publication}» has tables that the log does not have ({_names(others, now)})"
    if what is not None:
        raise _missing(what)
    _check_names(began, now)


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
    elif own and not (now.only_ours(via_root=False) and now.entries.keys() == now.tables.keys()):
        what = f"publication «{publication}» was altered"
    if what:
        raise _missing(what)


def _missing(what: str) -> Stranded:
    return Stranded(f"{what}: changes that were committed meanwhile may be missing in the log, and will not come again")


def renamed(began: Began, now: Look) -> list[str]:
    """Return what to say of tables that are called otherwise now, or are gone."""
    said = []
    for table in began.tables:
        there = now.tables.get(table.oid)
        if there is None:
            said.append(f"table {table} was dropped: its topic ends there")
        elif (there.schema, there.name) != (table.schema, table.name):
            said.append(f"table {table} is called {there} now; its rows go on in the topic of {table}")
    return said


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
    """Refuse where a table that the log does not have has taken the name of one that it has."""
    ours = {table.oid: table for table in began.tables}
    labels = {(table.schema, table.name): table for table in began.tables}
    for oid, there in now.tables.items():
        was = labels.get((there.schema, there.name))
        if oid in ours or was is None:
            continue
        now_called = now.tables.get(was.oid)
        gone = "was dropped" if now_called is None else f"is called {now_called} now"
        back = ""
        if now_called is not None:
            back = f"Give the tables their names back; rows of {was} went on in its topic. Or:"
        raise Stranded(
            f"{was} is another table now (relation {oid}): the one that is captured (relation {was.oid}) {gone}; "
            "rows of the new one are not captured",
            first=back,
        )


def _names(oids: Iterable[int], now: Look) -> str:
    named = [str(now.tables[oid]) if oid in now.tables else f"relation {oid}" for oid in sorted(oids)]
    return ", ".join(named) or "all of a schema"


def recreated(publication: str, tables: Sequence[Table], parts: Parts = _NO_PARTS) -> list[str]:
    """Return the statements that make a publication of our own, whatever there was of its name.

    Rows of partitioned tables are published as theirs, whatever partition they are in, or will be.
    """
    publish = "publish = 'insert, update, delete, truncate'"
    if any(table.partitioned for table in tables):
        publish += ", publish_via_partition_root = true"
    listed = ", ".join(table.only_sql + part_of(parts, table).clause for table in tables)
    return [
        f"DROP PUBLICATION IF EXISTS {quote(publication)}",
        f"CREATE PUBLICATION {quote(publication)} FOR TABLE {listed} WITH ({publish})",
    ]
