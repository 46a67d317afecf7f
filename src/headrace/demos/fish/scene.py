"""The log of the fish demo and its servers: started where none is given, stopped at the end, or left running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pyarrow as pa
from psycopg import sql

from headrace.demos.fish.events import FIELDS, TIME, FishData
from headrace.demos.fish.pipeline import MEASUREMENT, TABLES, WEIGHT
from headrace.demos.servers import Say, Scene, stage
from headrace.errors import DeclarationError
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation

APP = "fish"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TABLE = dict(zip((MEASUREMENT, WEIGHT), TABLES, strict=True))


@contextlib.contextmanager
def scene(*, log: str | None, keep: bool, say: Say, database: bool, postgres: str | None) -> Iterator[Scene]:
    """Everything that the demo needs, running.

    Args:
        log: a path, ``kafka`` for a broker of the demo's own, or ``kafka://host:port[/NAME]``. One that is there
            already is gone on with where rows come from topics; where they come from tables, it is refused.
        keep: leave the servers running.
        database: whether rows come from tables.
        postgres: an existing server's DSN.

    Raises:
        DeclarationError: there is a log already.
        JavaMissing: a broker is needed, and there is no Java.
    """
    refuse = _refuse_taken if database else None
    with stage(APP, log=log, keep=keep, say=say, database=database, dsn=postgres, refuse=refuse) as found:
        yield found


def _refuse_taken(place: KafkaLocation) -> None:
    if f"__headrace.{place.name}.changelog" in Cluster(place, patience=5).topics():
        raise DeclarationError(
            f"there is a log of «{place.name}» on {place.bootstrap} already; from tables the demo starts its own",
            advice="Give another cluster, or --log kafka for a broker of the demo's own.",
        )


# -- tables -------------------------------------------------------------------------------------------------------


def create_tables(database: psycopg.Connection[Any], data: FishData) -> None:
    """The two tables, empty: a table that is made later is not captured before a restart.

    They have no key, since files may weigh a fish again; with the old rows in the WAL a weight can be corrected, too.
    """
    for machine, table in TABLE.items():
        columns = sql.SQL(", ").join(
            sql.SQL("{} {} NOT NULL").format(sql.Identifier(name), sql.SQL(_type(name, data.sent[machine].rows)))
            for name in (*FIELDS[machine], TIME)
        )
        database.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(table)))
        database.execute(sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(table), columns))
        database.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(sql.Identifier(table)))


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
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(TABLE[machine]),
        sql.SQL(", ").join(map(sql.Identifier, (*names, TIME))),
        sql.SQL(", ").join([sql.Placeholder()] * (len(names) + 1)),
    )
    database.execute(statement, [*values, when])
