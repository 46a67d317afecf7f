"""The servers of the demos: a database and a broker of their own, and a log in a file."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from headrace.capture.postgres.client import Server
from headrace.engines.local.signals import at_cut_off
from headrace.engines.settings import EngineName
from headrace.errors import DeclarationError
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.testing.servers import (
    FlinkCluster,
    KafkaBroker,
    KafkaConnect,
    PostgresServer,
    SparkCluster,
    free_directory,
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Options of every demo.

    Attributes:
        log: a path, ``kafka`` for a broker of the demo's own, or ``kafka://host:port[/NAME]``.
        postgres: an existing server's DSN.
        keep: leave the servers running.
        ui: show the dashboard; ``opens``: in a browser.
    """

    log: str | None = None
    postgres: str | None = None
    keep: bool = False
    ui: bool = False
    opens: bool = True


@dataclass(slots=True)
class Scene:
    """The stage of the demo.

    Attributes:
        dsn: the database's; "" where rows come from topics.
        log: the log's location.
        kafka: the cluster that Debezium writes to, as a location; "" without Debezium.
        engine: the master of Spark, or the job manager of Flink; "" where the demo's own process runs the pipeline.
        pictures: the directory for pictures.
        stopped: whether the log ends with the demo, because its broker does.
        kept: what goes on afterwards, a line each.
    """

    dsn: str = ""
    log: str = ""
    kafka: str = ""
    engine: str = ""
    pictures: Path = field(default_factory=Path.cwd)
    stopped: bool = False
    kept: list[str] = field(default_factory=list)


@contextlib.contextmanager
def stopped(
    server: KafkaBroker | KafkaConnect | PostgresServer | SparkCluster | FlinkCluster, keep: bool
) -> Iterator[None]:
    """Start a server, and remove it at the end: also when it is to be kept, but something went wrong."""
    at_cut_off.append(server.remove)
    try:
        try:
            server.start()
            yield
        except BaseException:
            server.remove()
            raise
        if not keep:
            server.remove()
    finally:
        at_cut_off.remove(server.remove)


@contextlib.contextmanager
def broker(
    keep: bool, kept: list[str], say: Say, *, settings: Mapping[str, str] | None = None
) -> Iterator[KafkaBroker]:
    """A broker of the demo's own; a line in ``kept`` says where it is."""
    say("starting Kafka")
    server = KafkaBroker(settings=dict(settings or {}))
    server.outlives = keep
    with stopped(server, keep):
        kept.append(f"Kafka at {server.bootstrap} (pid {server.pid})")
        yield server


@contextlib.contextmanager
def engine_servers(engine: EngineName, place: str | None, keep: bool, kept: list[str], say: Say) -> Iterator[str]:
    """Give the master of Spark, or the job manager of Flink: the place that is given, else a cluster of the demo's own.

    Raises:
        MissingExtra: the engine's packages are not installed.
        JavaMissing: a cluster is needed, and there is no Java.
    """
    if place is None or place.startswith("local"):
        # The driver's page and ports are on loopback only, as everything that the demo starts.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if place is not None:
        yield place
        return
    say(f"starting {engine.title()}, with two workers")
    cluster = SparkCluster() if engine == "spark" else FlinkCluster()
    cluster.outlives = keep
    with stopped(cluster, keep):
        kept.append(f"{engine.title()} at {cluster.page} (pid {cluster.pid})")
        yield cluster.place


@contextlib.contextmanager
def postgres(dsn: str | None, keep: bool, kept: list[str], say: Say) -> Iterator[str]:
    """The DSN of the server that is given, else of one of the demo's own.

    Raises:
        SourceError: the one that is given cannot be reached, or does not let us in.
    """
    if dsn is not None:
        Server(dsn, "headrace demo").sql().close()
        yield dsn
        return
    say("starting PostgreSQL")
    server = PostgresServer(free_directory("headrace-demo-pg-"))
    with stopped(server, keep):
        kept.append(f"PostgreSQL at {server.dsn} (pid {server.pid})")
        yield server.dsn


def log_file(log: str | None, app: str, *, resumes: bool = False) -> str:
    """The log's path; one in a directory of its own where none is given.

    Raises:
        DeclarationError: it is there already, and is not to be gone on with.
    """
    if log is None:
        return str(Path(tempfile.mkdtemp(prefix="headrace-demo-")) / f"{app}.headrace")
    path = Path(log).absolute()
    if path.exists() and not resumes:
        raise DeclarationError(
            f"{path} is there already; the demo starts a log of its own", advice="Give another --log, or none."
        )
    return str(path)


def refuse_taken(location: KafkaLocation, topics: Sequence[str]) -> None:
    """Refuse a cluster that holds a log of that name, or one of the topics.

    Raises:
        DeclarationError: it does.
    """
    there = Cluster(location, patience=5).topics()
    taken = [topic for topic in topics if topic in there]
    if f"__headrace.{location.name}.changelog" in there:
        problem = f"there is a log of «{location.name}» on {location.bootstrap} already; the demo starts one of its own"
    elif taken:
        problem = f"{location.bootstrap} has the topic{'s' if len(taken) > 1 else ''} {', '.join(taken)} already"
    else:
        return
    raise DeclarationError(problem, advice="Give another cluster, or --log kafka for a broker of the demo's own.")


def clean_up(database: psycopg.Connection[Any], app: str) -> None:
    """A slot that nobody reads keeps the server's WAL for ever: the demo takes its own away."""
    mine = [f"headrace\\_{app}%"]
    found = database.execute("select slot_name from pg_replication_slots where slot_name like %s", mine)
    for (slot,) in found.fetchall():
        database.execute("select pg_drop_replication_slot(%s)", [slot])
    found = database.execute("select pubname from pg_publication where pubname like %s", mine)
    for (publication,) in found.fetchall():
        database.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(publication)))


def make_table(
    database: psycopg.Connection[Any], table: str, columns: sql.Composable, *, whole_old_rows: bool = False
) -> None:
    """Make a table anew, empty.

    Args:
        whole_old_rows: of a table without a key: without them in the WAL, PostgreSQL would refuse to change its rows.
    """
    name = sql.Identifier(table)
    database.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(name))
    database.execute(sql.SQL("CREATE TABLE {} ({})").format(name, columns))
    if whole_old_rows:
        database.execute(sql.SQL("ALTER TABLE {} REPLICA IDENTITY FULL").format(name))


def insertion(table: str, columns: Sequence[str]) -> sql.Composed:
    """Return the statement that inserts a row."""
    return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
    )


@contextlib.contextmanager
def stage(
    app: str,
    options: ServerOptions,
    say: Say,
    *,
    database: bool = True,
    topics: Sequence[str] = (),
    resumes: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Scene]:
    """A demo's log and servers, running.

    Args:
        app: the demo's; names its log.
        database: whether one is needed.
        topics: the demo's, which a cluster must not have yet.
        resumes: whether a log that is there already is gone on with; else it is refused.
        settings: of a broker of the demo's own.

    Raises:
        DeclarationError: there is a log, or a topic of the demo's, already.
        JavaMissing: a broker is needed, and there is no Java.
    """
    found, log, keep = Scene(), options.log, options.keep
    with contextlib.ExitStack() as stack:
        if log == "kafka":
            server = stack.enter_context(broker(keep, found.kept, say, settings=settings))
            found.log, found.stopped = f"{SCHEME}{server.bootstrap}/{app}", not keep
        elif log is not None and log.startswith(SCHEME):
            location = KafkaLocation.parse(log, name=app)
            found.log = f"{SCHEME}{location.bootstrap}/{location.name}"
            if not resumes:
                refuse_taken(location, topics)
        else:
            found.log = log_file(log, app, resumes=resumes)
            found.pictures = Path(found.log).parent
        if database:
            found.dsn = stack.enter_context(postgres(options.postgres, keep, found.kept, say))
        yield found
