"""The servers of the MNIST demo and its log: started where none is given, stopped at the end, or left running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from headrace.demos.mnist.digits import CREATE
from headrace.demos.servers import Say, broker, log_file
from headrace.demos.servers import postgres as database_of
from headrace.errors import DeclarationError
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import SCHEME, KafkaPlace

APP = "mnist"
TABLES = ("mnist_train", "mnist_test")


@dataclass(slots=True)
class Scene:
    """What the demo plays on.

    Attributes:
        dsn: the database's; "" in the online mode, which has none.
        log: the log's location.
        pictures: the directory for pictures.
        stopped: whether the log ends with the demo, because its broker does.
        kept: what goes on afterwards, a line each.
    """

    dsn: str = ""
    log: str = ""
    pictures: Path = field(default_factory=Path.cwd)
    stopped: bool = False
    kept: list[str] = field(default_factory=list)


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
    found = Scene()
    with contextlib.ExitStack() as stack:
        if log == "kafka":
            server = stack.enter_context(broker(keep, found.kept, say))
            found.log, found.stopped = f"{SCHEME}{server.bootstrap}/{APP}", not keep
        elif log is not None and log.startswith(SCHEME):
            place = KafkaPlace.parse(log, name=APP)
            found.log = f"{SCHEME}{place.bootstrap}/{place.name}"
            if not resumes:
                _refuse_taken(place)
        else:
            found.log = log_file(log, APP, resumes=resumes)
            found.pictures = Path(found.log).parent
        if database:
            found.dsn = stack.enter_context(database_of(postgres, keep, found.kept, say))
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


def _refuse_taken(place: KafkaPlace) -> None:
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
