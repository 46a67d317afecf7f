"""Parts of tables that a publication leaves out: column lists and row filters, which PostgreSQL evaluates from 15 on.

https://www.postgresql.org/docs/18/logical-replication-row-filter.html and …/logical-replication-col-lists.html. What is
left out is neither decoded nor sent. The server refuses an UPDATE or DELETE of a table whose filter needs a column that
the replica identity does not have, or whose list lacks one that it has: that is found before anything is published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg

from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.errors import SourceRefused

_SINCE = 150000
# Columns that the row filter of a publication of whole rows names.
_NAMED = """
SELECT r.prrelid::bigint, array_agg(DISTINCT a.attname::text)
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = r.prrelid AND d.refobjsubid > 0
JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = d.refobjsubid
WHERE p.pubname = %s GROUP BY r.prrelid
"""
_ADVICE_IDENTITY = "or filter rows in the pipeline, with stream.where(…), and leave the table out of where=."


@dataclass(frozen=True, slots=True)
class Part:
    """What is published of a table.

    Attributes:
        columns: their names; nothing: all.
        where: SQL that is true for the rows; nothing: all.
    """

    columns: tuple[str, ...] = ()
    where: str = ""

    @property
    def clause(self) -> str:
        """Return what stands behind a table's name in ``CREATE PUBLICATION``.

        >>> Part(("id", "né"), "id > 1").clause
        ' ("id", "né") WHERE (id > 1\\n)'
        """
        listed = f" ({', '.join(map(quote, self.columns))})" if self.columns else ""
        return listed + (f" WHERE ({self.where}\n)" if self.where else "")

    @property
    def text(self) -> str:
        """Return it as the log keeps it; nothing for a whole table."""
        if self == Part():
            return ""
        return json.dumps({"columns": list(self.columns), "where": self.where}, ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return what was kept as `text`.

        >>> Part.parse(Part(("a",), "a = 1").text)
        Part(columns=('a',), where='a = 1')
        """
        if not text:
            return cls()
        found = json.loads(text)
        return cls(tuple(found["columns"]), str(found["where"]))

    def __str__(self) -> str:
        said = [f"columns {', '.join(self.columns)}"] if self.columns else []
        return " of ".join([*said, f"rows WHERE {self.where}" if self.where else "all rows"])


Parts = Mapping[str, Part]
WHOLE = Part()


def part_of(parts: Parts, table: Table) -> Part:
    """Return what is published of a table, by the name that it had when its capture began."""
    return parts.get(".".join(table.label), WHOLE)


def check_unchanged(began: Mapping[str, str], parts: Parts) -> None:
    """Refuse parts that are others than those that a capture began with.

    Args:
        began: what was kept of each table that is captured.

    Raises:
        SourceRefused: rows that the log ought to have would never come, or some that it has would be those of before.
    """
    for table, text in began.items():
        now, then = parts.get(table, WHOLE), Part.parse(text)
        if now != then:
            raise SourceRefused(
                f"of table {table} this log has {then}, and {now} is declared now: what was left out before would be "
                "missing in it",
                advice="Set columns= and where= back, or capture into a new log.",
            )


def check(
    connection: SqlConnection,
    tables: Sequence[Table],
    parts: Parts,
    identities: Mapping[int, frozenset[str] | None],
    where: str,
    *,
    only_inserts: bool,
) -> None:
    """Refuse parts that the server does not take, or with which it would refuse the application's UPDATE and DELETE.

    Args:
        identities: columns that identify an old row, by the table's OID; None: all.
        only_inserts: the user says that rows are only inserted.

    Raises:
        SourceRefused: naming the table, and the ways on.
    """
    chosen = [(table, part_of(parts, table)) for table in tables if part_of(parts, table) != WHOLE]
    if not chosen:
        return
    if connection.info.server_version < _SINCE:
        raise SourceRefused(
            f"{where} is of a version before 15, whose publications have no column lists and row filters",
            advice="Leave out columns= and where=, and use select(…) and where(…) of the stream.",
        )
    for table, part in chosen:
        _check_columns(table, part, identities.get(table.oid), where, only_inserts=only_inserts)
    for table, part in chosen:
        if part.where:
            _check_filter(connection, table, part, identities.get(table.oid), where, only_inserts=only_inserts)


def _check_columns(
    table: Table, part: Part, identity: frozenset[str] | None, where: str, *, only_inserts: bool
) -> None:
    have = [column.name for column in table.columns]
    unknown = [name for name in part.columns if name not in have]
    if unknown:
        raise SourceRefused(
            f"table {table} of {where} has no column «{unknown[0]}» that can be published",
            advice=f"It has {', '.join(have)}.",
        )
    needed = set(have) if identity is None else identity
    lacking = sorted(needed - set(part.columns)) if part.columns and not only_inserts else []
    if lacking:
        raise SourceRefused(
            f"columns= of table {table} of {where} lacks {', '.join(lacking)} of its replica identity: the server "
            "would refuse the application's UPDATE and DELETE",
            advice="Name them too, or leave them out of the replica identity (ALTER TABLE … REPLICA IDENTITY …).",
        )


def _check_filter(
    connection: SqlConnection,
    table: Table,
    part: Part,
    identity: frozenset[str] | None,
    where: str,
    *,
    only_inserts: bool,
) -> None:
    """Publish a table so in a transaction that is rolled back, and look which columns its filter names."""
    trial = "headrace_trial"
    try:
        with connection.transaction(force_rollback=True):
            filtered = f"{table.only_sql} WHERE ({part.where}\n)"
            connection.execute(f"CREATE PUBLICATION {trial} FOR TABLE {filtered}".encode())
            found = connection.execute(_NAMED, [trial]).fetchone()
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        said = error.diag.message_primary or str(error)
        raise SourceRefused(
            f"where= of table {table} of {where} cannot be a publication's: {part.where}: {said}",
            advice=error.diag.message_hint or "It may use the row's own columns and immutable functions alone.",
        ) from error
    named = set(found[1]) if found is not None else set()
    outside = sorted(named - identity) if identity is not None and not only_inserts else []
    if outside:
        raise SourceRefused(
            f"where= of table {table} of {where} needs {', '.join(outside)}, which its replica identity does not have: "
            "the server would refuse the application's UPDATE and DELETE",
            advice=f"ALTER TABLE {table.sql} REPLICA IDENTITY FULL; {_ADVICE_IDENTITY}",
        )
