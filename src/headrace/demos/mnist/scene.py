"""The servers of the MNIST demo and its log: started where none is given, stopped at the end, or left running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from headrace.demos.mnist.digits import CREATE
from headrace.demos.servers import Say, Scene, stage
from headrace.errors import DeclarationError
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation

APP = "mnist"
TABLES = ("mnist_train", "mnist_test")


@contextlib.contextmanager
def scene(
    *, log: str | None, keep: bool, say: Say, postgres: str | None = None, database: bool = True, resumes: bool = False
) -> Iterator[Scene]:
    """Everything that the demo needs, running.

    Args:
        log: a path, ``kafka`` for a broker of the demo's own, or ``kafka://host:port[/NAME]``.
        keep: leave the servers running.
        postgres: an existing server's DSN.
        database: whether one is needed.
        resumes: whether a log that is there already is gone on with; else it is refused.

    Raises:
        DeclarationError: there is a log already.
        JavaMissing: a broker is needed, and there is no Java.
    """
    refuse = None if resumes else _refuse_taken
    with stage(APP, log=log, keep=keep, say=say, database=database, dsn=postgres, refuse=refuse) as found:
        yield found


def create_tables(database: psycopg.Connection[Any]) -> None:
    """The two tables, empty: a table that is made later is not captured before a restart.

    They have no key, as the article's: without the old rows in the WAL, PostgreSQL would refuse to change them.
    """
    for table in TABLES:
        name = sql.Identifier(table)
        database.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
        database.execute(CREATE.format(table).encode())
        database.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(name))


def _refuse_taken(place: KafkaLocation) -> None:
    there = Cluster(place, patience=5).topics()
    taken = [
        topic
        for topic in (f"__headrace.{place.name}.changelog", *(f"tf.public.{table}" for table in TABLES))
        if topic in there
    ]
    if taken:
        raise DeclarationError(
            f"{place.bootstrap} has the topic{'s' if len(taken) > 1 else ''} {', '.join(taken)} already; the demo "
            "starts a log of its own",
            advice="Give another cluster, or --log kafka for a broker of the demo's own.",
        )
