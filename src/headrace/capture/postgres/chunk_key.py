"""The key by which a table is read in chunks: its bounds, as the text of their values, which the server compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg

from headrace.capture.postgres.catalog import SqlConnection, Table, quote
from headrace.capture.postgres.snapshot import literal, output, select
from headrace.capture.postgres.snapshot_progress import Wanted
from headrace.errors import SourceRefused

# The operators by which a type is ordered may be in another schema than pg_catalog, where ours are looked for.
_OPERATORS = """
SELECT a.attname::text, coalesce((
    SELECT quote_ident(n.nspname) FROM pg_opclass c JOIN pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
    JOIN pg_namespace n ON n.oid = c.opcnamespace
    WHERE c.opcdefault AND c.opcintype = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END), 'pg_catalog'),
    a.attnotnull
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = %s AND a.attname = ANY(%s)
"""


class Unreadable(Exception):
    """A table cannot be read in chunks; the message says why."""


@dataclass(frozen=True)
class Key:
    """The columns by which a table is read in chunks, and the rows that are wanted of it.

    A table without any is one chunk, of a first snapshot and of a blocking one.

    Attributes:
        schemas: of the operators that order each column.
        nullable: rows may have none; they come with the first chunk.
    """

    table: Table
    columns: tuple[str, ...]
    schemas: tuple[str, ...]
    nullable: bool
    condition: str

    @classmethod
    def of(cls, sql: SqlConnection, table: Table, wanted: Wanted) -> Key:
        columns = () if wanted.query else (wanted.surrogate,) if wanted.surrogate else table.key
        if not columns and not wanted.first and not wanted.blocking:
            raise Unreadable("it has no primary key by which it could be read in chunks; a surrogate key can be named")
        about = {name: rest for name, *rest in sql.execute(_OPERATORS, [table.oid, list(columns)])}
        missing = [name for name in columns if name not in about or name not in {c.name for c in table.columns}]
        if missing:
            raise Unreadable(f"it has no column «{missing[0]}» that is captured")
        conditions = [f"({text})" for text in (table.row_filter, wanted.where) if text]
        schemas = tuple(about[name][0] for name in columns)
        schemas = schemas or ("pg_catalog",)
        nullable = bool(columns) and bool(wanted.surrogate) and not about[wanted.surrogate][1]
        return cls(table, columns, schemas, nullable, " AND ".join(conditions))

    @property
    def _texts(self) -> str:
        """Return the key's columns as text."""
        by_name = {column.name: column for column in self.table.columns}
        return ", ".join(output(by_name[name]) for name in self.columns)

    def _order(self, direction: str = "") -> str:
        return ", ".join(f"{quote(name)}{direction}" for name in self.columns)

    def compare(self, operator: str, bound: Sequence[str]) -> str:
        """Return SQL that compares the key with a bound."""
        if set(self.schemas) == {"pg_catalog"}:
            names, values = ", ".join(map(quote, self.columns)), ", ".join(map(literal, bound))
            return f"({names}) {operator} ({values})" if len(bound) > 1 else f"{names} {operator} {values}"
        strict, found = operator[0], ""
        for place in reversed(range(len(bound))):
            schema, name, value = self.schemas[place], quote(self.columns[place]), literal(bound[place])
            last = place == len(bound) - 1
            this = f"{name} OPERATOR({schema}.{operator if last else strict}) {value}"
            found = f"({this} OR ({name} OPERATOR({schema}.=) {value} AND {found}))" if found else this
        return found

    def _where(self, *comparisons: str) -> str:
        """Return the WHERE of rows that are wanted; with NULL keys where nothing bounds it from below."""
        found = [text for text in (self.condition, *comparisons) if text]
        return f" WHERE {' AND '.join(found)}" if found else ""

    def maximum(self, sql: SqlConnection) -> tuple[str, ...] | None:
        """Return the greatest key; None where there is none."""
        if not self.columns:
            return ()
        known = f"{quote(self.columns[0])} IS NOT NULL" if self.nullable else ""
        return self._one(sql, f"{self._where(known)} ORDER BY {self._order(' DESC')} LIMIT 1")

    def end(self, sql: SqlConnection, wanted: Wanted, rows: int) -> tuple[str, ...] | None:
        """Return the key of a chunk's last row; None where there are no more rows than those of one chunk."""
        if not self.columns:
            return None
        assert wanted.maximum is not None
        above = self.compare(">", wanted.last) if wanted.last is not None else ""
        where = self._where(above, self.compare("<=", wanted.maximum))
        return self._one(sql, f"{where} ORDER BY {self._order()} OFFSET {rows - 1} LIMIT 1")

    def chunk(self, wanted: Wanted, end: Sequence[str]) -> str:
        """Return the query of a chunk's rows."""
        if not self.columns:
            return select(replace(self.table, row_filter=self.condition), query=wanted.query)
        until = self.compare("<=", end)
        if wanted.last is not None:
            bounds = [self.compare(">", wanted.last), until]
        else:
            bounds = [f"({until} OR {quote(self.columns[0])} IS NULL)" if self.nullable else until]
        chosen = replace(self.table, row_filter=" AND ".join([*filter(None, [self.condition]), *bounds]))
        return f"{select(chosen)} ORDER BY {self._order()}"

    def _one(self, sql: SqlConnection, rest: str) -> tuple[str, ...] | None:
        query = f"SELECT {self._texts} FROM {self.table.only_sql}{rest}"
        try:
            # The extended protocol takes one statement only, whatever a condition that somebody wrote has in it.
            row = sql.execute(query.encode(), binary=True).fetchone()
        except psycopg.Error as error:
            if isinstance(error, psycopg.OperationalError):
                raise
            raise SourceRefused(
                f"PostgreSQL refuses a chunk of table {self.table}: {error.diag.message_primary or error}",
                advice="Look at the snapshot's condition: it is SQL over the table's columns, and functions need the "
                "name of their schema.",
            ) from error
        return None if row is None else tuple(str(value) for value in row)
