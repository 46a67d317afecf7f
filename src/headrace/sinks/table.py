"""Results in a PostgreSQL table: inserted, updated and deleted by key, exactly once.

One transaction of the database holds the rows of a part and the position after them, a row of ``headrace.sinks``. Rows
go by COPY into a temporary table and from there by one INSERT … ON CONFLICT. The schema ``headrace`` holds nothing
else, and is never captured.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pyarrow import csv
from pyarrow.types import is_nested

from headrace import plain_values
from headrace.batch import OPS, Batch
from headrace.errors import DeclarationError, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.halves import by_halves
from headrace.plain_values import is_bytes
from headrace.sinks.base import (
    ROW_ERRORS,
    Reason,
    SinkBatch,
    SinkContext,
    SinkSpec,
    check_names,
    error_text,
    left_rows,
    nothing_kept,
    other_log,
    refuse_values,
)
from headrace.sinks.changes import Rows, fold, nan_as_text, unsent, without_key
from headrace.sinks.json_row import json_of

SCHEMA = "headrace"
POSITIONS = sql.Identifier(SCHEMA, "sinks")
# Where earlier versions kept positions: beside the table.
OLD_POSITIONS = "headrace_sinks"
LONGEST_NAME = 63
CONNECT_SECONDS = 5
SYSTEM_COLUMNS = frozenset({"tableoid", "ctid", "xmin", "cmin", "xmax", "cmax"})
# Classes of SQLSTATE: the rows are at fault (data, constraints, a limit that one row passes, what a trigger of the
# user's raises, two keys that are the same to the table only).
ROWS_AT_FAULT = ("21", "22", "23", "44", "54", "P0")
# The connection, a conflict with others, resources, an operator who stops the server.
PASSING = ("08", "40", "53", "55", "57", "58")


@dataclass(frozen=True, slots=True)
class TableSpec(SinkSpec):
    """A table, as declared.

    Raises:
        DeclarationError: the connection string, the table's name or the key cannot be.

    >>> spec = TableSpec("postgresql://me:secret@db/shop", "predictions", ("id",))
    >>> spec.where, spec
    ('db:5432/shop', TableSpec(table='predictions', key=('id',)))
    """

    dsn: str = field(repr=False)
    table: str
    key: tuple[str, ...] = ()
    kind = "postgres"

    def __post_init__(self) -> None:
        parts = self.table.split(".")
        if len(parts) > 2 or not all(part.strip() for part in parts):
            raise DeclarationError(f"{self.table!r} names no table", advice="Give TABLE or SCHEMA.TABLE.")
        for name in (*parts, *self.key):
            if reason := _no_name(name):
                raise DeclarationError(
                    f"to_table({self.table!r}): {name!r} cannot be a name in PostgreSQL", advice=f"It {reason}."
                )
        if parts[:-1] == [SCHEMA] or parts[-1] == OLD_POSITIONS:
            raise DeclarationError(f"to_table({self.table!r}): that place is Headrace's own", advice="Choose another.")
        self._parts()

    def _parts(self) -> dict[str, Any]:
        try:
            return dict(conninfo_to_dict(self.dsn))
        except psycopg.ProgrammingError:
            # What it says quotes the string, password included.
            raise DeclarationError(
                f"to_table({self.table!r}): the connection string cannot be read",
                advice="Give postgresql://USER@HOST:PORT/DATABASE, or KEY=VALUE pairs as libpq reads them.",
            ) from None

    @property
    def where(self) -> str:
        """The database, without user and password."""
        parts = self._parts()
        return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"

    @property
    def positions(self) -> str:
        """See `SinkSpec.positions`."""
        return f"{SCHEMA}.sinks"

    def forget(self, app: str, log_id: str) -> None:
        """See `SinkSpec.forget`. The table goes with its last row, and the schema when nothing else is in it."""
        try:
            with psycopg.connect(self.conninfo()) as connection:
                if not _exists(connection, POSITIONS):
                    return
                mine = sql.SQL("DELETE FROM {} WHERE app = %s AND log = %s").format(POSITIONS)
                gone = connection.execute(mine, [app, log_id]).rowcount
                if not gone or connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(POSITIONS)).fetchone():
                    return
                connection.execute(sql.SQL("DROP TABLE {}").format(POSITIONS))
                others = "SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = %s"
                if connection.execute(others, [SCHEMA]).fetchone() is None:
                    connection.execute(sql.SQL("DROP SCHEMA {}").format(sql.Identifier(SCHEMA)))
        except psycopg.Error as error:
            text = " ".join(str(error).split())
            raise SinkError(f"positions of sinks in {self.where} cannot be deleted: {text}") from error

    def conninfo(self) -> str:
        """For libpq: the user's own, a bounded wait for the server, and a name that an operator recognises."""
        ours: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "headrace sink"}
        return make_conninfo(**{**ours, **self._parts(), "client_encoding": "utf8"})

    def reach(self, app: str, sink: str, topic: str) -> Reach:
        """See what a write to the table reaches.

        Raises:
            SinkUnavailable, SinkError: the database cannot be asked now, or does not answer this user.
        """
        try:
            with psycopg.connect(self.conninfo(), autocommit=True) as connection:
                return _reach(connection, self, (app, sink, topic))
        except psycopg.Error as error:
            state, said = (
                error.sqlstate or "",
                f"the table {self.table} ({self.where}) cannot be looked at: {_words(error)}",
            )
            if isinstance(error, psycopg.OperationalError):
                raise SinkUnavailable(said) from error
            raise SinkError(said, advice=_advice(state, self)) from error

    def sink(self, context: SinkContext) -> TableSink:
        """See `SinkSpec.sink`."""
        return TableSink(self, context)


def table_spec(dsn: str, table: str, *, key: str | Sequence[str] | None = None) -> TableSpec:
    """A table as a user declares it."""
    return TableSpec(str(dsn), table, () if key is None else check_names(key, "key"))


@dataclass(frozen=True, slots=True)
class Reach:
    """Everything that writing a table touches, as the server that holds it says.

    Attributes:
        marks: numbers of the advisory locks that are held in this database: who holds one can be told to be in it too.
        schema, name: the table, with the schema that the connection's ``search_path`` gives where none was named.
        kind: PostgreSQL's letter for what it is; empty where there is no such table yet.
        known: a sink of this app has written it before; ``made``: it was a sink of this app that made it.
        columns: by name.
        touched: every table (schema, name) that a write may change: the table itself, what is below a view, partitions
            and children, parents, and what foreign keys change with it.
    """

    marks: frozenset[int]
    schema: str
    name: str
    kind: str
    known: bool
    made: bool
    columns: tuple[str, ...]
    touched: frozenset[tuple[str, str]]

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


_LOCKS = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# Downwards (d) go views to what they show, rules to what they change, parents to children, keys to what cascades from
# them; upwards (u) children to parents, whose rows theirs are too.
_TOUCHED = """
WITH RECURSIVE touched(oid, way) AS (
    SELECT %(table)s::regclass::oid, way FROM (VALUES ('d'), ('u')) AS ways(way)
    UNION
    SELECT found.oid, found.way FROM touched t CROSS JOIN LATERAL (
        SELECT inhrelid, 'd' FROM pg_inherits WHERE inhparent = t.oid AND t.way = 'd'
        UNION ALL SELECT inhparent, 'u' FROM pg_inherits WHERE inhrelid = t.oid AND t.way = 'u'
        UNION ALL SELECT d.refobjid, ways.way FROM pg_rewrite r
            JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                AND d.refclassid = 'pg_class'::regclass
            CROSS JOIN (VALUES ('d'), ('u')) AS ways(way) WHERE r.ev_class = t.oid AND t.way = 'd'
        UNION ALL SELECT conrelid, 'd' FROM pg_constraint
            WHERE confrelid = t.oid AND contype = 'f' AND t.way = 'd'
                AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd'))
    ) AS found(oid, way))
SELECT DISTINCT n.nspname::text, c.relname::text FROM touched t JOIN pg_class c ON c.oid = t.oid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'f', 'm')
"""


def _reach(connection: psycopg.Connection[Any], spec: TableSpec, who: tuple[str, str, str]) -> Reach:
    marks = frozenset(int(mark) for (mark,) in connection.execute(_LOCKS))
    schema, name, kind = _place(connection, spec)
    touched = frozenset({(schema, name)})
    columns: tuple[str, ...] = ()
    if kind:
        table = sql.Identifier(schema, name)
        touched |= {(str(a), str(b)) for a, b in connection.execute(_TOUCHED, {"table": table.as_string(connection)})}
        columns = tuple(_columns(connection, table))
    known = made = False
    if _exists(connection, POSITIONS):
        look = sql.SQL("SELECT count(*) > 0, bool_or(made) FROM {} WHERE app = %s AND destination = %s").format(
            POSITIONS
        )
        ((known, made),) = connection.execute(look, [who[0], _destination(schema, name)]).fetchall()
    old = _old_positions(connection, spec)
    if old is not None and not known:
        look = sql.SQL("SELECT count(*) > 0 FROM {} WHERE app = %s AND sink = %s AND topic = %s").format(old)
        ((known,),) = connection.execute(look, who).fetchall()
        made = known
    return Reach(marks, schema, name, kind, known, bool(made), columns, touched)


def _place(connection: psycopg.Connection[Any], spec: TableSpec) -> tuple[str, str, str]:
    """Schema and name of the table, and its kind (empty where it is not there)."""
    *named, name = spec.table.split(".")
    find = (
        "SELECT n.nspname::text, c.relname::text, c.relkind::text FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)"
    )
    found = connection.execute(find, [sql.Identifier(*named, name).as_string(connection)]).fetchone()
    if found is not None:
        return str(found[0]), str(found[1]), str(found[2])
    if named:
        return named[0], name, ""
    (schema,) = connection.execute("SELECT current_schema()::text").fetchone() or (None,)
    if schema is None:
        raise psycopg.errors.InvalidSchemaName("search_path names no schema that is there")
    return str(schema), name, ""


def _destination(schema: str, name: str) -> str:
    return f"{schema}.{name}"


def _columns(connection: psycopg.Connection[Any], table: sql.Identifier) -> dict[str, str]:
    """Return the columns of a table, with their types."""
    found = connection.execute(
        "SELECT attname, typname FROM pg_attribute JOIN pg_type t ON t.oid = atttypid"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [table.as_string(connection)],
    ).fetchall()
    return {str(name): str(kind) for name, kind in found}


def _exists(connection: psycopg.Connection[Any], table: sql.Identifier) -> bool:
    found = connection.execute("SELECT to_regclass(%s)", [table.as_string(connection)]).fetchone()
    return found is not None and found[0] is not None


def _old_positions(connection: psycopg.Connection[Any], spec: TableSpec) -> sql.Identifier | None:
    """The table in which an older version kept the position; None where there is none."""
    table = sql.Identifier(*spec.table.split(".")[:-1], OLD_POSITIONS)
    if not _exists(connection, table):
        return None
    ours = {"app", "sink", "topic", "log", "next_offset"}
    return table if ours <= _columns(connection, table).keys() else None


class TableSink:
    """A table, open; see `headrace.sinks.base.Sink`."""

    rows = 65_536
    linger = 0.0

    def __init__(self, spec: TableSpec, context: SinkContext) -> None:
        self.spec = spec
        self.context = context
        self._table = sql.Identifier(*spec.table.split("."))
        self._destination = spec.table
        self._made = False
        self._connection: psycopg.Connection[Any] | None = None
        self._cancelled = False
        self._stages: dict[tuple[str, ...], str] = {}
        self._columns: dict[str, str] | None = None
        self._takes = False

    @property
    def _place(self) -> str:
        return f"the table {self.spec.table} ({self.spec.where})"

    @property
    def _db(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._cancelled:
            raise SinkUnavailable(f"{self._place}: the connection is closed")
        return self._connection

    # -- opening and closing --------------------------------------------------------------------------------------

    def open(self) -> int:
        """See `Sink.open`: connects, makes ``headrace.sinks`` and this sink's row in it."""
        with self._translated():
            self._connection = psycopg.connect(self.spec.conninfo(), autocommit=True)
            with self._db.transaction():
                self._make_positions()
                schema, name, kind = _place(self._db, self.spec)
                if kind == "f":
                    raise _foreign(self._place)
                # From now on with its schema: whatever becomes of search_path, it is this table.
                self._table, self._destination = sql.Identifier(schema, name), _destination(schema, name)
                return self._position(there=bool(kind))

    def cancel(self) -> None:
        """See `Sink.cancel`: whatever waits for the server gets an error."""
        self._cancelled = True
        connection = self._connection
        if connection is not None:
            # Of a copy of the descriptor: the connection itself belongs to its thread.
            with (
                contextlib.suppress(psycopg.Error, OSError),
                socket.socket(fileno=os.dup(connection.fileno())) as line,
            ):
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See `Sink.close`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _make_positions(self) -> None:
        # Two that make the same table at once would stumble over each other in the catalogue.
        self._db.execute("SELECT pg_advisory_xact_lock(hashtext('headrace sinks'))")
        for schema in (SCHEMA, *self.spec.table.split(".")[:-1]):
            known = self._db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
            if known is None:
                try:
                    self._db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
                except psycopg.errors.InsufficientPrivilege as error:
                    raise SinkError(
                        f"{self._place} cannot be written: the user may not make the schema {schema}",
                        advice=f"Say once, as the database's owner: CREATE SCHEMA {schema} AUTHORIZATION the user; "
                        f"positions of sinks are kept in the schema {SCHEMA}.",
                    ) from error
        if not _exists(self._db, POSITIONS):
            self._db.execute(
                sql.SQL(
                    "CREATE TABLE {} (app text, sink text, topic text, log text, destination text NOT NULL,"
                    " next_offset bigint NOT NULL, made boolean NOT NULL, updated timestamptz NOT NULL DEFAULT now(),"
                    " PRIMARY KEY (app, sink, topic, log))"
                ).format(POSITIONS)
            )

    def _position(self, *, there: bool) -> int:
        """This sink's position, made where there is none; ``there``: whether the table is."""
        self._take_old(there)
        if not there:
            forget = sql.SQL("UPDATE {} SET made = false WHERE app = %s AND destination = %s").format(POSITIONS)
            self._db.execute(forget, [self.context.app, self._destination])
        look = sql.SQL("SELECT next_offset FROM {} WHERE {} FOR UPDATE").format(POSITIONS, self._mine)
        found = self._db.execute(look, self._who).fetchone()
        if found is None:
            self._begin()
        else:
            name = sql.SQL("UPDATE {} SET destination = %s WHERE {}").format(POSITIONS, self._mine)
            self._db.execute(name, [self._destination, *self._who])
        made = sql.SQL("SELECT bool_or(made) FROM {} WHERE app = %s AND destination = %s").format(POSITIONS)
        ((self._made,),) = self._db.execute(made, [self.context.app, self._destination]).fetchall()
        return 0 if found is None else int(found[0])

    def _begin(self) -> None:
        """Begin at the first row, where no other log has put rows that cannot be told from ours."""
        who = [*self._who, self._destination]
        other = sql.SQL(
            "FROM {} WHERE app = %s AND sink = %s AND topic = %s AND log <> %s AND destination = %s"
        ).format(POSITIONS)
        found = self._db.execute(sql.SQL("SELECT bool_or(made) {}").format(other), who).fetchone() or (None,)
        if found[0] is not None and not self.spec.key:
            raise other_log(
                self._place,
                self.context,
                advice=f"Empty the table and delete the sink's row in {SCHEMA}.sinks, or give the sink another name=…; "
                "with key=… rows would be updated.",
            )
        # Rows by key: those of the new log take the place of the old ones.
        self._db.execute(sql.SQL("DELETE {}").format(other), who)
        insert = (
            "INSERT INTO {} (app, sink, topic, log, destination, next_offset, made) VALUES (%s, %s, %s, %s, %s, 0, %s)"
        )
        self._db.execute(sql.SQL(insert).format(POSITIONS), [*who, bool(found[0])])

    def _take_old(self, there: bool) -> None:
        """Move the position that an older version kept beside the table."""
        old = _old_positions(self._db, self.spec)
        if old is None:
            return
        take = sql.SQL("DELETE FROM {} WHERE app = %s AND sink = %s AND topic = %s RETURNING log, next_offset")
        for log, position in self._db.execute(take.format(old), self._who[:3]).fetchall():
            self._db.execute(
                sql.SQL(
                    "INSERT INTO {} (app, sink, topic, log, destination, next_offset, made)"
                    " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
                ).format(POSITIONS),
                [*self._who[:3], log, self._destination, position, there],
            )

    _mine = sql.SQL("app = %s AND sink = %s AND topic = %s AND log = %s")

    @property
    def _who(self) -> list[str]:
        return [self.context.app, self.context.sink, self.context.topic, self.context.log_id]

    # -- delivering -----------------------------------------------------------------------------------------------

    def deliver(self, part: SinkBatch) -> None:
        """See `Sink.deliver`: rows and position in one transaction."""
        with self._translated():
            with self._db.transaction():
                self._move(part)
                refused = self._put(part)
                if refused:
                    self.context.refuse(part, refused)
                fault("sink.written")
            fault("sink.committed")

    def _move(self, part: SinkBatch) -> None:
        """Take the position from this part's beginning to its end; nobody else can until the commit."""
        move = "UPDATE {} SET next_offset = %s, updated = now() WHERE {} AND next_offset = %s"
        moved = self._db.execute(sql.SQL(move).format(POSITIONS, self._mine), [part.end, *self._who, part.first])
        if moved.rowcount != 1:
            raise SinkUnavailable(f"{self._place}: another process has moved the position of «{self.context.sink}»")

    def _put(self, part: SinkBatch) -> list[Reason]:
        """Write the rows; those that the table refuses, with the reasons."""
        self._takes = False
        told = nan_as_text(part.batch)
        refused = dict(without_key(told, self.spec.key)) | finer(part.batch.rows)
        left = left_rows(part.batch.num_rows, refused)
        if not self.spec.key:
            left = left[~np.isin(part.batch.op[left], (OPS["d"], OPS["t"]))]
            refused |= _unknown_values(part.batch, left)
            left = np.setdiff1d(left, list(refused))
        for row, reason in self._fit(part.batch.take(left)) if left.size else ():
            refused[int(left[row])] = reason
        left = np.setdiff1d(left, list(refused)).astype(np.int64)
        if left.size:
            batch = told if left.size == told.num_rows else told.take(left)
            wrong = by_halves(batch.num_rows, lambda start, stop: self._attempt(batch, start, stop))
            refused |= {int(left[row]): reason for row, reason in wrong.items()}
        return sorted(refused.items())

    def _attempt(self, batch: Batch, start: int, stop: int) -> str | None:
        """Write some rows, all or none; None, or why the table does not take them."""
        try:
            with self._db.transaction():
                self._write(batch.slice(start, stop - start))
                # What is checked at the commit is checked now, while it is known which rows are at fault.
                self._db.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except _NothingKept as error:
            self._stages.clear()
            return str(error)
        except ROW_ERRORS as error:
            self._stages.clear()
            return error_text(error)
        except psycopg.Error as error:
            # Those made in here are undone with the rest.
            self._stages.clear()
            if not self._at_fault(error, batch, start, stop):
                raise
            return _words(error)
        return None

    def _at_fault(self, error: psycopg.Error, batch: Batch, start: int, stop: int) -> bool:
        """Return whether an error is one of some rows, not of the table or the server.

        Where the error does not say (a policy on rows refuses with the words of a missing right), it is one of some
        rows if the table takes another one.
        """
        state = error.sqlstate or ""
        if state[:2] in ROWS_AT_FAULT or self._takes:
            return state[:2] not in PASSING and bool(state)
        if not state or state[:2] in PASSING or self._connection is None or self._connection.closed:
            return False
        self._takes = any(self._would_take(batch.slice(row, 1)) for row in _spread(start, stop) if stop - start > 1)
        return self._takes

    def _would_take(self, row: Batch) -> bool:
        try:
            with self._db.transaction(force_rollback=True):
                self._write(row)
        except (psycopg.Error, _NothingKept):
            return False
        finally:
            self._stages.clear()
        return True

    def _write(self, batch: Batch) -> None:
        if not self.spec.key:
            self._copy(self._table, self._known(batch.rows))
            return
        for change in fold(batch, self.spec.key):
            if change.clear:
                self._db.execute(sql.SQL("DELETE FROM {}").format(self._table))
            for rows in change.rows:
                if rows.was is not None:
                    self._keep(rows)
            if change.gone.num_rows:
                self._delete(change.gone)
            for rows in change.rows:
                self._upsert(self._known(rows.records))

    def _keep(self, rows: Rows) -> None:
        """Bring the rows of which some values stay under their new keys, where the values wait for the others."""
        assert rows.was is not None
        new = rows.records.select(list(self.spec.key))
        stage = self._paired(rows.was, new)
        numbers = range(len(self.spec.key))
        old_key = sql.SQL(", ").join(sql.Identifier(f"old{i}") for i in numbers)
        new_key = sql.SQL(", ").join(sql.Identifier(f"new{i}") for i in numbers)
        own_key = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in self.spec.key)
        parts = {"table": self._table, "stage": stage, "old": old_key, "new": new_key, "own": own_key}
        absent = sql.SQL(
            "SELECT 1 FROM {stage} WHERE NOT EXISTS (SELECT FROM {table} t WHERE ({own}) = ({old})) LIMIT 1"
        ).format(**parts)
        if self._db.execute(absent).fetchone() is not None:
            raise _NothingKept(rows.kept)
        moved = sql.SQL("FROM {stage} s WHERE ({old}) IS DISTINCT FROM ({new})").format(**parts)
        self._db.execute(
            sql.SQL("DELETE FROM {table} t WHERE ({own}) IN (SELECT {new} {moved})").format(**parts, moved=moved)
        )
        sets = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(f"new{i}"))
            for i, name in enumerate(self.spec.key)
        )
        self._db.execute(
            sql.SQL("UPDATE {table} t SET {sets} {moved} AND ({own}) = ({old})").format(**parts, sets=sets, moved=moved)
        )

    def _paired(self, old: pa.RecordBatch, new: pa.RecordBatch) -> sql.Identifier:
        """Keys before and after, in a temporary table of the key's types."""
        stage, key = sql.Identifier("pg_temp", "headrace_keys"), self.spec.key
        names = [*(f"old{i}" for i in range(len(key))), *(f"new{i}" for i in range(len(key)))]
        columns = sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(sql.Identifier(column), sql.Identifier(name))
            for column, name in zip([*key, *key], names, strict=True)
        )
        self._db.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(stage))
        make = sql.SQL("CREATE TEMP TABLE headrace_keys ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA")
        self._db.execute(make.format(columns, self._table))
        self._copy(stage, pa.RecordBatch.from_arrays([*old.columns, *new.columns], names=names))
        return stage

    def _delete(self, keys: pa.RecordBatch) -> None:
        stage = self._staged(keys)
        same = sql.SQL(" AND ").join(
            sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in keys.schema.names
        )
        self._db.execute(sql.SQL("DELETE FROM {} t USING {} s WHERE {}").format(self._table, stage, same))

    def _upsert(self, rows: pa.RecordBatch) -> None:
        stage = self._staged(rows)
        names = rows.schema.names
        others = [sql.Identifier(name) for name in names if name not in self.spec.key]
        sets = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(other) for other in others)
        what = sql.SQL("UPDATE SET {}").format(sets) if others else sql.SQL("NOTHING")
        self._db.execute(
            sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} ON CONFLICT ({}) DO {}").format(
                self._table, stage, _joined(self.spec.key), what, columns=_joined(names)
            )
        )

    def _staged(self, rows: pa.RecordBatch) -> sql.Identifier:
        """Rows in a temporary table whose columns are those of the table itself: values are parsed as its types."""
        names = tuple(rows.schema.names)
        known = names in self._stages
        name = self._stages.setdefault(names, f"headrace_stage_{len(self._stages)}")
        stage = sql.Identifier("pg_temp", name)
        if known:
            # It is empty at a transaction's begin. TRUNCATE would rewrite its row of the catalog for each delivery, and
            # what a replication slot still needs of the catalog, no vacuum takes away.
            self._db.execute(sql.SQL("DELETE FROM {}").format(stage))
        else:
            self._db.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(stage))
            make = sql.SQL("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA")
            self._db.execute(make.format(sql.Identifier(name), _joined(names), self._table))
        self._copy(stage, rows)
        return stage

    def _copy(self, table: sql.Identifier, rows: pa.RecordBatch) -> None:
        if not rows.num_columns:
            return
        command = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv)").format(table, _joined(rows.schema.names))
        with self._db.cursor() as cursor, cursor.copy(command) as copy:
            copy.write(memoryview(csv_bytes(self._with_vectors(rows))))

    def _with_vectors(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows with lists as pgvector's text, where the table has its types."""
        for index, name in enumerate(rows.schema.names):
            if _is_list(rows.column(index).type) and (self._columns or {}).get(name) in _VECTORS:
                rows = rows.set_column(index, name, _array_text(rows.column(index), "[]"))
        return rows

    # -- the table's shape ----------------------------------------------------------------------------------------

    def _fit(self, batch: Batch) -> list[Reason]:
        """Make the table, or add the columns that it lacks.

        A table that was there before the sinks of this app is the user's, and stays as it is.

        Returns:
            Rows that hold a value for which there can be no column, with the reasons.
        """
        wanted = {name: sql_type(batch.schema.field(name).type) for name in batch.column_names}
        if self._columns is None and _exists(self._db, self._table):
            self._columns = _columns(self._db, self._table)
        missing = {name: kind for name, kind in wanted.items() if kind and name not in (self._columns or ())}
        if self._columns is not None and not missing:
            return []
        wrong = {name: f"the column «{name}» {_no_name(name)}" for name in missing if _no_name(name)}
        able = {name: kind for name, kind in missing.items() if name not in wrong}
        if self._columns is not None and not self._made:
            wrong |= {name: self._lacking(name, kind) for name, kind in able.items()}
        elif able or self._columns is None:
            wrong |= self._extend(able)
        # A transaction that is undone takes this back with it: the sink is then closed.
        self._columns = _columns(self._db, self._table)
        refused: dict[int, str] = {}
        for name, reason in wrong.items():
            refused = refuse_values(batch.column(name), reason) | refused
        return sorted(refused.items())

    def _lacking(self, name: str, kind: str) -> str:
        add = sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(self._table, sql.Identifier(name), sql.SQL(kind))
        return (
            f"the table {self._destination}, which Headrace has not made, has no column «{name}»: "
            f"{add.as_string(self._db)}; or leave it out with select(…)"
        )

    def _extend(self, columns: Mapping[str, str]) -> dict[str, str]:
        """Make the table or add columns; those that it cannot have (there are too many), with the reasons."""
        first = [name for name in columns if name in self.spec.key] if self._columns is None else []
        others = [name for name in columns if name not in first]
        defined = {name: sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in columns.items()}
        if self._columns is None:
            parts = [defined[name] for name in first]
            parts += [sql.SQL("PRIMARY KEY ({})").format(_joined(self.spec.key))] if self.spec.key else []
            self._db.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(parts)))
            self._note_made()

        def attempt(start: int, stop: int) -> str | None:
            added = sql.SQL(", ").join(sql.SQL("ADD COLUMN ") + defined[name] for name in others[start:stop])
            try:
                with self._db.transaction():
                    self._db.execute(sql.SQL("ALTER TABLE {} {}").format(self._table, added))
            except psycopg.Error as error:
                if (error.sqlstate or "")[:2] != "54":
                    raise
                return f"the table {self._destination} cannot have the column: {_words(error)}"
            return None

        return {others[i]: f"«{others[i]}»: {reason}" for i, reason in by_halves(len(others), attempt).items()}

    def _note_made(self) -> None:
        note = sql.SQL("UPDATE {} SET made = true WHERE {}").format(POSITIONS, self._mine)
        self._db.execute(note, self._who)
        self._made = True

    def _known(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Without columns that hold nothing yet and that the table does not have, by name."""
        names = [name for name in rows.schema.names if name in (self._columns or ())]
        return rows if len(names) == len(rows.schema.names) else rows.select(names)

    # -- errors ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            state = error.sqlstate or ""
            lost = self._cancelled or self._connection is None or self._connection.closed
            if lost or state[:2] in PASSING or (not state and isinstance(error, psycopg.OperationalError)):
                raise SinkUnavailable(f"{self._place} cannot be written now: {_words(error)}") from error
            raise SinkError(
                f"{self._place} cannot be written: {_words(error)}", advice=_advice(state, self.spec)
            ) from error


def _advice(state: str, spec: TableSpec) -> str:
    if state == "42P10":
        keys = ", ".join(spec.key)
        return f"The table has no unique index on its key: CREATE UNIQUE INDEX ON {spec.table} ({keys})."
    if state == "42501":
        return (
            "Grant the user CREATE on the schema, and SELECT, INSERT, UPDATE and DELETE on "
            f"{spec.table} and {SCHEMA}.sinks."
        )
    if state[:2] == "28" or state[:2] == "3D":
        return "Check user, password and database; the sink tries again."
    return "The sink tries again; correct the table, or give the sink another one."


def _words(error: psycopg.Error) -> str:
    """Return the server's message, in one line."""
    diagnosis = error.diag
    said = diagnosis.message_primary or str(error).strip() or type(error).__name__
    found = " ".join(said.split())
    return f"{found} ({' '.join(diagnosis.message_detail.split())})" if diagnosis.message_detail else found


class _NothingKept(Exception):
    """An update whose values the source did not send, of a row that the table does not have."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(nothing_kept(names, "the table has no such row"))


def _unknown_values(batch: Batch, rows: npt.NDArray[np.int64]) -> dict[int, str]:
    """Rows with values that the source did not send, where there is no key to find them by."""
    found = zip(rows.tolist(), unsent(batch, rows), strict=True)
    return {row: nothing_kept(names, "without key=… there is no row to take it from") for row, names in found if names}


def _spread(start: int, stop: int) -> list[int]:
    """Up to eight rows of a range."""
    return sorted({*np.linspace(start, stop - 1, 8).astype(int).tolist()})


def _foreign(place: str) -> SinkError:
    return SinkError(
        f"{place} is a foreign table: its rows and their position would not be in one transaction",
        advice="Name the table where it is, with that server's connection string.",
    )


def _no_name(name: str) -> str:
    """Return why a name can be none of a column in PostgreSQL, which would cut a longer one silently; or nothing."""
    if not name:
        return "has an empty name"
    if "\0" in name:
        return "has a zero character in its name"
    if name in SYSTEM_COLUMNS:
        return "has a name that every table's own columns have"
    if len(name.encode(errors="surrogatepass")) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} bytes, which PostgreSQL would cut"
    return ""


def _joined(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


# -- Arrow columns as PostgreSQL takes them ----------------------------------------------------------------------------
#
# The type that a column is made with, and its values as text for COPY. The CSV writer of Arrow does most of the work:
# it quotes every string and leaves NULL empty, which is what COPY's CSV format means by them.


_VECTORS = frozenset({"vector", "halfvec"})
"""pgvector's types, whose text is a list in brackets."""

_TYPES: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "boolean"),
    (lambda kind: kind in (pa.int8(), pa.uint8(), pa.int16()), "smallint"),
    (lambda kind: kind in (pa.uint16(), pa.int32()), "integer"),
    (lambda kind: kind in (pa.uint32(), pa.int64()), "bigint"),
    (pa.types.is_uint64, "numeric(20)"),
    (lambda one: pa.types.is_float16(one) or pa.types.is_float32(one), "real"),
    (pa.types.is_float64, "double precision"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (pa.types.is_duration, "interval"),
    (pa.types.is_interval, "interval"),
)


def sql_type(kind: pa.DataType) -> str | None:
    """The PostgreSQL type of a column made for an Arrow type; None where nothing is known of it yet (all null).

    >>> sql_type(pa.int64()), sql_type(pa.list_(pa.float64())), sql_type(pa.struct([("a", pa.int8())]))
    ('bigint', 'double precision[]', 'jsonb')
    """
    kind = _plain_type(kind)
    if pa.types.is_null(kind):
        return None
    for matches, name in _TYPES:
        if matches(kind):
            return name
    if pa.types.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})" if kind.scale >= 0 else "numeric"
    if pa.types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    if is_bytes(kind):
        return "bytea"
    if _is_list(kind):
        inner = _plain_type(kind.value_type)
        return "jsonb" if is_nested(inner) or is_bytes(inner) else f"{sql_type(inner) or 'text'}[]"
    return "jsonb" if is_nested(kind) else "text"


def csv_bytes(rows: pa.RecordBatch) -> pa.Buffer:
    """Rows in the format of ``COPY … FROM STDIN (FORMAT csv)``, without a header.

    >>> bytes(csv_bytes(pa.RecordBatch.from_pydict({"a": ["", None, 'x"y'], "b": [[1, None], [], None]})))
    b'"","{1,NULL}"\\n,"{}"\\n"x""y",\\n'
    """
    columns = [_cells(column) for column in rows.columns]
    # A row of one NULL would be an empty line, which COPY takes for a NULL too.
    table = pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))])
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, batch_size=max(1, rows.num_rows)))
    return sink.getvalue()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _cells(column: pa.Array) -> pa.Array:
    """A column as the CSV writer and PostgreSQL both take it."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.string())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32())
    if pa.types.is_timestamp(kind):
        # The zone is only how a time is shown.
        return plain_values.cast_texts(column.cast(pa.timestamp(kind.unit, "UTC" if kind.tz else None)))
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return plain_values.cast_texts(column)
    if pa.types.is_duration(kind):
        return pa.array(plain_values.texts(column), pa.string())
    if pa.types.is_interval(kind):
        spans = [
            None if plain_value is None else _interval(*plain_value) for plain_value in plain_values.values(column)
        ]
        return pa.array(spans, pa.string())
    if pa.types.is_decimal256(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if is_bytes(kind):
        return _hexadecimal(column)
    if _is_list(kind) and not is_nested(_plain_type(kind.value_type)) and not is_bytes(kind.value_type):
        return _array_text(column)
    return pa.array(json_of(column), pa.string()) if is_nested(kind) else column


def _hexadecimal(column: pa.Array) -> pa.Array:
    """bytea's text: ``\\x`` and two digits a byte, made of the whole buffer at once."""
    filled = pc.fill_null(column.cast(pa.large_binary()), b"")
    offsets = np.frombuffer(filled.buffers()[1], np.int64)[filled.offset : filled.offset + len(filled) + 1]
    digits = binascii.hexlify(memoryview(filled.buffers()[2] or b"")[offsets[0] : offsets[-1]])
    texts = pa.LargeStringArray.from_buffers(
        len(filled), pa.py_buffer((offsets - offsets[0]) * 2), pa.py_buffer(digits)
    )
    joined = pc.binary_join_element_wise(pa.scalar("\\x", texts.type), texts, pa.scalar("", texts.type))
    return pc.if_else(column.is_valid(), joined, pa.scalar(None, texts.type))


def _array_text(column: pa.Array, brackets: str = "{}") -> pa.Array:
    """PostgreSQL's array text: ``{1,NULL,"a \\"b\\""}``."""
    column = column.cast(pa.list_(column.type.value_type))
    values = _cells(column.flatten())
    texts = values.cast(pa.string())
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        texts = pc.replace_substring(pc.replace_substring(texts, "\\", "\\\\"), '"', '\\"')
        texts = pc.binary_join_element_wise('"', texts, '"', "")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, pc.fill_null(texts, "NULL"))
    joined = pc.binary_join_element_wise(brackets[0], pc.binary_join(lists, ","), brackets[1], "")
    return pc.if_else(column.is_valid(), joined, pa.scalar(None, pa.string()))


def finer(rows: pa.RecordBatch) -> dict[int, str]:
    """Rows with a time that has nanoseconds: PostgreSQL counts microseconds, and would round it.

    >>> finer(pa.RecordBatch.from_pydict({"at": pa.array([1000, 1001], pa.timestamp("ns"))}))
    {1: '«at» has nanoseconds, and PostgreSQL counts microseconds'}
    """
    found: dict[int, str] = {}
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if getattr(column.type, "unit", "") == "ns":
            numbers = np.asarray(pc.fill_null(column.view(pa.int64()), 0))
        elif pa.types.is_interval(column.type):
            numbers = np.array(
                [0 if plain_value is None else plain_value[2] for plain_value in plain_values.values(column)], np.int64
            )
        else:
            continue
        reason = f"«{name}» has nanoseconds, and PostgreSQL counts microseconds"
        found = dict.fromkeys(np.flatnonzero(numbers % 1000).tolist(), reason) | found
    return found


def _interval(months: int, days: int, nanoseconds: int) -> str:
    return f"{months} months {days} days {nanoseconds // 1000} microseconds"
