"""Random transactions of every kind on a few tables: rows, COPY, savepoints, rollbacks, DDL, renames, moves, swaps.

Beside those that are there from the beginning, whose events are known one by one, there are some that come and go.

A writer looks at the catalog before each transaction, so that it can go on after a crash of the server as after
anything else. A statement that the server refuses (a deadlock, a lock time-out) is a rollback.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

SETUP = """
CREATE SCHEMA s2;
CREATE TABLE r_learned (id bigint PRIMARY KEY, x float8, y float8, note text);
CREATE TABLE r_a (id bigint PRIMARY KEY, x float8, note text);
CREATE TABLE r_b (id bigint PRIMARY KEY, x float8, note text);
CREATE TABLE r_c (id bigint PRIMARY KEY, x float8, note text);
CREATE TABLE unlike (id bigint PRIMARY KEY, x float8, note text);
CREATE SEQUENCE numbers;
INSERT INTO r_learned SELECT nextval('numbers'), random(), random(), 'first' FROM generate_series(1, 20);
INSERT INTO r_a SELECT nextval('numbers'), random(), 'first' FROM generate_series(1, 5);
"""
CAPTURED = ("r_learned", "r_a", "r_b", "r_c")
# Types of columns that come and go, as format_type names them, and a random value of each.
TYPES = {
    "integer": "(random() * 1e9)::int",
    "text": "md5(random()::text)",
    "numeric(12,3)": "(random() * 1e8)::numeric(12,3)",
    "boolean": "random() < 0.5",
    "bytea": "decode(md5(random()::text), 'hex')",
    "timestamp with time zone": "now() - random() * interval '9 years'",
    "real": "random()::real",
    "character varying(30)": "left(md5(random()::text), 30)",
    "smallint": "(random() * 3e4)::smallint",
}
_STATE = """
SELECT c.oid, quote_ident(n.nspname), quote_ident(c.relname),
       (SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisprimary),
       (SELECT jsonb_object_agg(a.attname, format_type(a.atttypid, a.atttypmod)) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY(%s) ORDER BY c.oid
"""


POOL = ("r_m1", "r_m2", "r_m3")
_MORTAL = _STATE.replace(
    "c.oid = ANY(%s)", r"c.relname ~ '^r_[mf]' AND NOT c.relispartition AND c.relkind IN ('r', 'p')"
)


@dataclass
class Table:
    """A table as it is now; ``learned`` is the one that a model reads, whose columns stay."""

    oid: int
    schema: str
    name: str
    key: str
    columns: dict[str, str]
    learned: bool

    @property
    def free(self) -> list[str]:
        """Columns that come and go."""
        fixed = {self.key, "x", "note", *(("id", "y") if self.learned else ())}
        return sorted(self.columns.keys() - fixed)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


class Writer:
    """Random transactions on one connection; `run` goes on until it is told to stop."""

    def __init__(self, dsn: str, oids: list[int], seed: int) -> None:
        self._dsn, self._oids = dsn, oids
        self._chance = random.Random(seed)
        self._connection: psycopg.Connection[Any] | None = None
        self.committed = 0

    def run(self, stop: threading.Event) -> None:
        """Write until stopped, making the connection again when the server is back."""
        while not stop.is_set():
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = psycopg.connect(self._dsn, autocommit=True)
                    self._connection.execute("SET lock_timeout = '500ms'")
                    self._connection.execute("SET logical_decoding_work_mem = '64kB'")
                self.transaction(self._connection)
            except psycopg.OperationalError:
                time.sleep(0.05)
            except psycopg.Error:
                pass
            stop.wait(0.002)
        if self._connection is not None:
            self._connection.close()

    def transaction(self, connection: psycopg.Connection[Any]) -> None:
        """One transaction; one in six is rolled back."""
        chance = self._chance
        if chance.random() < 0.2:
            self._mortal(connection)
            self.committed += 1
            return
        connection.execute(f"SET synchronous_commit = {'off' if chance.random() < 0.2 else 'on'}")
        tables = [Table(*row, learned=row[0] == self._oids[0]) for row in connection.execute(_STATE, [self._oids])]
        with connection.transaction() as current:
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                self._pick(connection, tables)()
            if chance.random() < 1 / 6:
                raise psycopg.Rollback(current)
        self.committed += 1

    def _mortal(self, connection: psycopg.Connection[Any]) -> None:
        """One transaction on tables that come and go: of a few names that come again, and of names that come once."""
        chance = self._chance

        def sql(text: str) -> None:
            connection.execute(text.encode())

        found = [Table(*row, learned=False) for row in connection.execute(_MORTAL)]
        with connection.transaction() as current:
            for _ in range(chance.choice((1, 1, 2, 3))):
                table = chance.choice(found) if found else None
                kind = chance.random()
                if table is None or (kind < 0.15 and len(found) < 8):
                    found.append(self._make(sql, chance.choice((*POOL, f"r_f{chance.randrange(10**9)}"))))
                elif kind < 0.25:
                    sql(f"DROP TABLE {table}")
                    found.remove(table)
                    if chance.random() < 0.6 and table.name in POOL:
                        found.append(self._make(sql, table.name))
                elif kind < 0.32 and table.name not in POOL:
                    # Its old name is nobody's any more: a new one of that name would take the place of this one.
                    sql(f"ALTER TABLE {table} RENAME TO r_f{chance.randrange(10**9)}")
                    found.remove(table)
                elif kind < 0.36:
                    sql(f"TRUNCATE {table}")
                elif kind < 0.42:
                    self._columns(sql, table)
                    found.remove(table)
                elif kind < 0.47:
                    sql(f"ALTER TABLE {table} REPLICA IDENTITY {chance.choice(('FULL', 'DEFAULT'))}")
                elif kind < 0.55:
                    sql(f"DELETE FROM {table} WHERE {table.key} % 4 = 0")
                elif kind < 0.75:
                    sql(f"UPDATE {table} SET x = random() WHERE {table.key} % 3 = {chance.randint(0, 2)}")
                else:
                    self._insert(sql, table, chance.choice((1, 3, 40, 1000)))
            if chance.random() < 1 / 6:
                raise psycopg.Rollback(current)

    def _make(self, sql: Callable[[str], None], name: str) -> Table:
        columns = {"id": "bigint", "x": "double precision", "note": "text"}
        made = Table(0, "public", name, "id", columns, learned=False)
        declared = ", ".join(f"{column} {kind}" for column, kind in columns.items())
        if self._chance.random() < 0.3:
            sql(f"CREATE TABLE {made} ({declared}, PRIMARY KEY (id)) PARTITION BY HASH (id)")
            for number in range(2):
                part = f"{name}_p{self._chance.randrange(10**9)}"
                sql(f"CREATE TABLE {part} PARTITION OF {made} FOR VALUES WITH (MODULUS 2, REMAINDER {number})")
        else:
            sql(f"CREATE TABLE {made} ({declared}, PRIMARY KEY (id))")
        if self._chance.random() < 0.8:
            self._insert(sql, made, self._chance.choice((1, 10, 500)))
        return made

    def _pick(self, connection: psycopg.Connection[Any], tables: list[Table]) -> Callable[[], None]:
        chance, table = self._chance, self._chance.choice(tables)

        def sql(text: str, *values: object) -> None:
            connection.execute(text.encode(), values or None)

        kinds: list[tuple[int, Callable[[], None]]] = [
            (30, lambda: self._insert(sql, table, chance.randint(1, 5))),
            (10, lambda: sql(f"UPDATE {table} SET x = random() WHERE {table.key} % 7 = {chance.randint(0, 6)}")),
            (6, lambda: sql(f"UPDATE {table} SET note = {chance.choice(_NOTES)} WHERE {table.key} % 5 = 0")),
            (6, lambda: self._move_key(sql, table)),
            (6, lambda: self._fill(sql, table)),
            (8, lambda: sql(f"DELETE FROM {table} WHERE {table.key} = (SELECT min({table.key}) FROM {table})")),
            (1, lambda: sql(f"TRUNCATE {', '.join(map(str, chance.sample(tables, chance.randint(1, 2))))}")),
            (4, lambda: self._copy(connection, table)),
            (6, lambda: self._savepoints(connection, table)),
            (2, lambda: self._insert(sql, table, chance.randint(500, 3000))),
            (2, lambda: sql("INSERT INTO unlike SELECT nextval('numbers') FROM generate_series(1, 1000)")),
            (6, lambda: self._columns(sql, table)),
            (8, lambda: self._names(sql, table, chance.choice(tables))),
            (2, lambda: sql(f"ALTER TABLE {table} REPLICA IDENTITY {chance.choice(('FULL', 'DEFAULT'))}")),
        ]
        weights = [weight for weight, _ in kinds]
        return chance.choices([kind for _, kind in kinds], weights)[0]

    def _insert(self, sql: Callable[..., None], table: Table, rows: int) -> None:
        note = self._chance.choice(_NOTES)
        filled = {name: TYPES[table.columns[name]] for name in table.free if self._chance.random() < 0.7}
        filled |= {table.key: "nextval('numbers')", "x": "random()", "note": note}
        filled |= {"y": "random()"} if table.learned else {}
        names = ", ".join(filled)
        source = f"SELECT {', '.join(filled.values())} FROM generate_series(1, {rows})"
        sql(f"INSERT INTO {table} ({names}) {source}")

    def _fill(self, sql: Callable[..., None], table: Table) -> None:
        """Other values in a column that comes and goes."""
        for name in table.free[:1]:
            value = self._chance.choice((TYPES[table.columns[name]], "NULL"))
            sql(f"UPDATE {table} SET {name} = {value} WHERE {table.key} % 3 = 0")

    def _move_key(self, sql: Callable[..., None], table: Table) -> None:
        key = table.key
        sql(f"UPDATE {table} SET {key} = nextval('numbers') WHERE {key} = (SELECT max({key}) FROM {table})")

    def _copy(self, connection: psycopg.Connection[Any], table: Table) -> None:
        rows = self._chance.randint(10, 300)
        numbers = connection.execute(f"SELECT nextval('numbers') FROM generate_series(1, {rows})".encode()).fetchall()
        with connection.cursor().copy(f"COPY {table} ({table.key}, x, note) FROM STDIN".encode()) as copy:
            for (number,) in numbers:
                copy.write_row((number, self._chance.random(), None if number % 3 else "copied"))

    def _savepoints(self, connection: psycopg.Connection[Any], table: Table) -> None:
        """Three levels: what is in the inner ones is released or rolled back, large or small."""

        def sql(text: str) -> None:
            connection.execute(text.encode())

        def level(depth: int) -> None:
            with connection.transaction() as current:
                self._insert(sql, table, self._chance.choice((1, 3, 1500)))
                if depth:
                    level(depth - 1)
                    self._insert(sql, table, 2)
                if self._chance.random() < 0.4:
                    raise psycopg.Rollback(current)

        level(self._chance.randint(0, 2))

    def _columns(self, sql: Callable[..., None], table: Table) -> None:
        """Add, drop, retype and rename columns; those that the model reads stay."""
        chance, free = self._chance, table.free
        wanted, kind = chance.choice(sorted(TYPES)), chance.random()
        if not free or kind < 0.4:
            sql(f"ALTER TABLE {table} ADD n{chance.randrange(10**9)} {wanted}")
        elif kind < 0.6:
            sql(f"ALTER TABLE {table} DROP {chance.choice(free)}")
        elif kind < 0.8 and not table.learned:
            sql(f"ALTER TABLE {table} ALTER {chance.choice(free)} TYPE {wanted} USING {TYPES[wanted]}")
        elif kind < 0.9 or table.learned:
            sql(f"ALTER TABLE {table} RENAME {chance.choice(free)} TO n{chance.randrange(10**9)}")
        else:
            sql(f"ALTER TABLE {table} RENAME {table.key} TO k{chance.randrange(10**9)}")

    def _names(self, sql: Callable[..., None], table: Table, other: Table) -> None:
        """Another name, there and back, with rows between; another schema; two tables that exchange their names."""
        chance, away = self._chance, f"away{self._chance.randrange(10**9)}"
        kind = chance.random()
        if kind < 0.4:
            moved = Table(table.oid, table.schema, away, table.key, table.columns, table.learned)
            sql(f"ALTER TABLE {table} RENAME TO {away}")
            self._insert(sql, moved, 2)
            sql(f"ALTER TABLE {moved} RENAME TO {table.name}")
            self._insert(sql, table, 1)
        elif kind < 0.6:
            sql(f"ALTER TABLE {table} RENAME TO {away}")
        elif kind < 0.8:
            sql(f"ALTER TABLE {table} SET SCHEMA {'s2' if table.schema == 'public' else 'public'}")
        elif table.schema == other.schema and table.oid != other.oid:
            sql(f"ALTER TABLE {table} RENAME TO {away}")
            sql(f"ALTER TABLE {other} RENAME TO {table.name}")
            sql(f"ALTER TABLE {table.schema}.{away} RENAME TO {other.name}")


_NOTES = ("'short'", "NULL", "(SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200))")
