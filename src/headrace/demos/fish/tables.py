"""The tables of the fish demo: made, and filled row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.demos.fish.events import FIELDS, TIME, FishData
from headrace.demos.fish.pipeline import MEASUREMENT, TABLES, WEIGHT
from headrace.demos.servers import insertion, make_table

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TABLE = dict(zip((MEASUREMENT, WEIGHT), TABLES, strict=True))


def create_tables(database: psycopg.Connection[Any], data: FishData) -> None:
    """The two tables, empty: a pipeline is declared on tables that are there.

    They have no key, since files may weigh a fish again; with the old rows in the WAL a weight can be corrected, too.
    """
    for machine, table in TABLE.items():
        columns = sql.SQL(", ").join(
            sql.SQL("{} {} NOT NULL").format(sql.Identifier(name), sql.SQL(_type(name, data.sent[machine].rows)))
            for name in (*FIELDS[machine], TIME)
        )
        make_table(database, table, columns, whole_old_rows=True)


def _type(name: str, rows: pa.RecordBatch) -> str:
    if name == TIME:
        return "timestamptz"
    kind = rows.schema.field(name).type
    return "bigint" if pa.types.is_integer(kind) else "double precision" if pa.types.is_floating(kind) else "text"


def insert(database: psycopg.Connection[Any], data: FishData, machine: str, row: int) -> None:
    """One row, in a transaction of its own."""
    sent, names = data.sent[machine], FIELDS[machine]
    values = [sent.rows.column(name)[row].as_py() for name in names]
    # PostgreSQL would read a time without a zone in the session's; here it is UTC.
    when = EPOCH + timedelta(microseconds=int(sent.times_us[row]))
    database.execute(insertion(TABLE[machine], (*names, TIME)), [*values, when])
