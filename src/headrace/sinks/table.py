"""Results in a PostgreSQL table: inserted, updated and deleted by key, exactly once.

One transaction of the database holds the rows of a part and the position after them, a row of ``headrace_sinks``. Rows
go by COPY into a temporary table and from there by one INSERT … ON CONFLICT.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.batch import OPS, Batch
from headrace.errors import DeclarationError, SinkError, SinkUnavailable
from headrace.faults import fault
from headrace.sinks.changes import fold, without_key
from headrace.sinks.delivery import Journal, Part, Reason, check_names, other_log, settle
from headrace.sinks.table_text import csv_bytes, sql_type

POSITIONS = "headrace_sinks"
LONGEST_NAME = 63
CONNECT_SECONDS = 5
# Classes of SQLSTATE: the values are at fault (data, constraints, a limit that one row passes).
VALUES_AT_FAULT = ("22", "23", "54")
# The connection, a conflict with others, resources, an operator who stops the server.
PASSING = ("08", "40", "53", "55", "57", "58")


@dataclass(frozen=True, slots=True)
class TableTarget:
    """A table, as declared.

    Raises:
        DeclarationError: the connection string, the table's name or the key cannot be.

    >>> target = TableTarget("postgresql://me:secret@db/shop", "predictions", ("id",))
    >>> target.where, target
    ('db:5432/shop', TableTarget(table='predictions', key=('id',)))
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
            _check_name(name, f"to_table({self.table!r})")
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
    def columns(self) -> tuple[str, ...]:
        """See `Target.columns`."""
        return self.key

    @property
    def where(self) -> str:
        """The database, without user and password."""
        parts = self._parts()
        return f"{parts.get('host') or 'localhost'}:{parts.get('port') or 5432}/{parts.get('dbname') or ''}"

    @property
    def writes(self) -> tuple[str, ...]:
        """None: see `Target.writes`."""
        return ()

    def conninfo(self) -> str:
        """For libpq: the user's own, a bounded wait for the server, and a name that an operator recognises."""
        ours: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "application_name": "headrace sink"}
        return make_conninfo(**{**ours, **self._parts()})

    def sink(self, journal: Journal) -> TableSink:
        """See `Target.sink`."""
        return TableSink(self, journal)


def table_target(dsn: str, table: str, *, key: str | Sequence[str] | None = None) -> TableTarget:
    """A table as a user declares it."""
    return TableTarget(str(dsn), table, () if key is None else check_names(key, "key"))


class TableSink:
    """A table, open; see `headrace.sinks.delivery.Sink`."""

    rows = 65_536
    linger = 0.0

    def __init__(self, target: TableTarget, journal: Journal) -> None:
        self.target = target
        self.journal = journal
        *schema, self._name = target.table.split(".")
        self._schema: list[str] = schema
        self._table = sql.Identifier(*schema, self._name)
        self._positions = sql.Identifier(*schema, POSITIONS)
        self._connection: psycopg.Connection[Any] | None = None
        self._cancelled = False
        self._stages: dict[tuple[str, ...], str] = {}
        self._columns: tuple[str, ...] | None = None

    @property
    def _place(self) -> str:
        return f"the table {self.target.table} ({self.target.where})"

    @property
    def _db(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._cancelled:
            raise SinkUnavailable(f"{self._place}: the connection is closed")
        return self._connection

    # -- opening and closing --------------------------------------------------------------------------------------

    def open(self) -> int:
        """See `Sink.open`: connects, makes ``headrace_sinks`` and this sink's row in it."""
        with self._translated():
            self._connection = psycopg.connect(self.target.conninfo(), autocommit=True)
            with self._db.transaction():
                self._make_positions()
                return self._position()

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
        for schema in self._schema:
            known = self._db.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
            if known is None:
                self._db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
        if not self._exists(self._positions):
            self._db.execute(
                sql.SQL(
                    "CREATE TABLE {} (app text, sink text, topic text, log text NOT NULL, next_offset bigint NOT NULL,"
                    " updated timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (app, sink, topic))"
                ).format(self._positions)
            )

    def _position(self) -> int:
        journal = self.journal
        look = sql.SQL("SELECT log, next_offset FROM {} WHERE {} FOR UPDATE").format(self._positions, self._mine)
        found = self._db.execute(look, self._who).fetchone()
        if found is None:
            self._db.execute(
                sql.SQL("INSERT INTO {} (app, sink, topic, log, next_offset) VALUES (%s, %s, %s, %s, 0)").format(
                    self._positions
                ),
                [*self._who, journal.log_id],
            )
            return 0
        if found[0] == journal.log_id:
            return int(found[1])
        if not self.target.key:
            raise other_log(
                self._place,
                journal,
                advice=f"Empty the table and delete the sink's row in {POSITIONS}, or give the sink another name=…; "
                "with key=… rows would be updated.",
            )
        # Rows by key: those of the new log take the place of the old ones.
        self._db.execute(
            sql.SQL("UPDATE {} SET log = %s, next_offset = 0 WHERE {}").format(self._positions, self._mine),
            [journal.log_id, *self._who],
        )
        return 0

    _mine = sql.SQL("app = %s AND sink = %s AND topic = %s")

    @property
    def _who(self) -> list[str]:
        return [self.journal.app, self.journal.sink, self.journal.topic]

    def _exists(self, table: sql.Identifier) -> bool:
        found = self._db.execute("SELECT to_regclass(%s)", [table.as_string(self._db)]).fetchone()
        return found is not None and found[0] is not None

    # -- delivering -----------------------------------------------------------------------------------------------

    def deliver(self, part: Part) -> None:
        """See `Sink.deliver`: rows and position in one transaction."""
        with self._translated():
            with self._db.transaction():
                self._move(part)
                refused = self._put(part)
                if refused:
                    self.journal.refuse(part, refused)
                fault("sink.written")
            fault("sink.committed")

    def _move(self, part: Part) -> None:
        """Take the position from this part's beginning to its end; nobody else can until the commit."""
        move = "UPDATE {} SET next_offset = %s, updated = now() WHERE {} AND next_offset = %s AND log = %s"
        moved = self._db.execute(
            sql.SQL(move).format(self._positions, self._mine),
            [part.end, *self._who, part.first, self.journal.log_id],
        )
        if moved.rowcount != 1:
            raise SinkUnavailable(f"{self._place}: another process has moved the position of «{self.journal.sink}»")

    def _put(self, part: Part) -> list[Reason]:
        """Write the rows; those that the table refuses, with the reasons."""
        refused = without_key(part.batch, self.target.key)
        left = np.setdiff1d(np.arange(part.batch.num_rows), [row for row, _ in refused]).astype(np.int64)
        if not self.target.key:
            left = left[~np.isin(part.batch.op[left], (OPS["d"], OPS["t"]))]
        if not left.size:
            return refused
        batch = part.batch if left.size == part.batch.num_rows else part.batch.take(left)
        self._fit(batch)

        def attempt(start: int, stop: int) -> str | None:
            try:
                with self._db.transaction():
                    self._write(batch.slice(start, stop - start))
            except psycopg.Error as error:
                if (error.sqlstate or "")[:2] not in VALUES_AT_FAULT:
                    raise
                # Those made in here are undone with the rest.
                self._stages.clear()
                return _words(error)
            return None

        refused += [(int(left[row]), reason) for row, reason in settle(batch.num_rows, attempt)]
        return sorted(refused)

    def _write(self, batch: Batch) -> None:
        if not self.target.key:
            self._copy(self._table, self._known(batch.rows))
            return
        for change in fold(batch, self.target.key):
            if change.clear:
                self._db.execute(sql.SQL("DELETE FROM {}").format(self._table))
            if change.gone.num_rows:
                self._delete(change.gone)
            for rows in change.rows:
                self._upsert(self._known(rows))

    def _delete(self, keys: pa.RecordBatch) -> None:
        stage = self._staged(keys)
        same = sql.SQL(" AND ").join(
            sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in keys.schema.names
        )
        self._db.execute(sql.SQL("DELETE FROM {} t USING {} s WHERE {}").format(self._table, stage, same))

    def _upsert(self, rows: pa.RecordBatch) -> None:
        stage = self._staged(rows)
        names = rows.schema.names
        others = [sql.Identifier(name) for name in names if name not in self.target.key]
        sets = sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(one) for one in others)
        what = sql.SQL("UPDATE SET {}").format(sets) if others else sql.SQL("NOTHING")
        self._db.execute(
            sql.SQL("INSERT INTO {} ({columns}) SELECT {columns} FROM {} ON CONFLICT ({}) DO {}").format(
                self._table, stage, _joined(self.target.key), what, columns=_joined(names)
            )
        )

    def _staged(self, rows: pa.RecordBatch) -> sql.Identifier:
        """Rows in a temporary table whose columns are those of the table itself: values are parsed as its types."""
        names = tuple(rows.schema.names)
        known = names in self._stages
        name = self._stages.setdefault(names, f"headrace_stage_{len(self._stages)}")
        stage = sql.Identifier("pg_temp", name)
        if known:
            self._db.execute(sql.SQL("TRUNCATE {}").format(stage))
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
            copy.write(memoryview(csv_bytes(rows)))

    # -- the table's shape ----------------------------------------------------------------------------------------

    def _fit(self, batch: Batch) -> None:
        """Make the table, or add the columns that it lacks."""
        wanted = {name: sql_type(batch.schema.field(name).type) for name in batch.column_names}
        if self._columns is None:
            self._columns = self._look()
        missing = {name: kind for name, kind in wanted.items() if kind and name not in (self._columns or ())}
        if self._columns is not None and not missing:
            return
        for name in missing:
            _check_name(name, self._place)
        columns = [sql.SQL("{} {}").format(sql.Identifier(one), sql.SQL(kind)) for one, kind in missing.items()]
        if self._columns is None:
            if self.target.key:
                columns.append(sql.SQL("PRIMARY KEY ({})").format(_joined(self.target.key)))
            self._db.execute(sql.SQL("CREATE TABLE {} ({})").format(self._table, sql.SQL(", ").join(columns)))
        else:
            added = sql.SQL(", ").join(sql.SQL("ADD COLUMN ") + one for one in columns)
            self._db.execute(sql.SQL("ALTER TABLE {} {}").format(self._table, added))
        # A transaction that is undone takes this back with it: the sink is then closed.
        self._columns = self._look()

    def _look(self) -> tuple[str, ...] | None:
        if not self._exists(self._table):
            return None
        found = self._db.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [self._table.as_string(self._db)],
        ).fetchall()
        return tuple(str(name) for (name,) in found)

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
                f"{self._place} cannot be written: {_words(error)}", advice=_advice(state, self.target)
            ) from error


def _advice(state: str, target: TableTarget) -> str:
    if state == "42P10":
        keys = ", ".join(target.key)
        return f"The table has no unique index on its key: CREATE UNIQUE INDEX ON {target.table} ({keys})."
    if state == "42501":
        return f"Grant the user CREATE on the schema, and SELECT, INSERT, UPDATE and DELETE on {target.table}."
    if state[:2] == "28" or state[:2] == "3D":
        return "Check user, password and database; the sink tries again."
    return "The sink tries again; correct the table, or give the sink another one."


def _words(error: psycopg.Error) -> str:
    """What the server says, in one line."""
    diagnosis = error.diag
    said = diagnosis.message_primary or str(error).strip() or type(error).__name__
    found = " ".join(said.split())
    return f"{found} ({' '.join(diagnosis.message_detail.split())})" if diagnosis.message_detail else found


def _check_name(name: str, where: str) -> None:
    """PostgreSQL would cut a longer name without a word."""
    if not name or "\0" in name or len(name.encode()) > LONGEST_NAME:
        raise DeclarationError(
            f"{where}: {name!r} cannot be a name in PostgreSQL", advice=f"Names have 1 to {LONGEST_NAME} bytes."
        )


def _joined(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
