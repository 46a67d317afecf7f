"""The servers of the Iris demo: started where none is given, stopped at the end, or left running."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from headrace.demos.servers import (
    Say,
    Scene,
    ServerOptions,
    broker,
    clean_up,
    engine_servers,
    make_table,
    postgres,
    stage,
    stopped,
)
from headrace.engines.settings import EngineName
from headrace.engines.startup import require_packages
from headrace.errors import DeclarationError, HeadraceError
from headrace.kafka.settings import SCHEME, KafkaLocation
from headrace.testing.servers import KafkaConnect

APP = "iris"
CONNECTOR_NAME = "iris-connector"
SLOT = "headrace_iris_debezium"
# As the article has it, with its own database and topics, https://debezium.io/blog/2023/09/23/flink-spark-online-learning/
CONNECTOR = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "tasks.max": "1",
    "table.include.list": "public.iris_.*",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
}
STOP_SECONDS = 30.0
TABLE_COLUMNS = (
    "id SERIAL NOT NULL PRIMARY KEY, sepal_length float, sepal_width float, petal_length float, petal_width float, "
    "iris_class int"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(ServerOptions):
    """See `headrace.cli.demo.demo_iris`.

    Attributes:
        place: the engine's master or job manager; a cluster of the demo's own where it is None.
    """

    engine: EngineName = "local"
    place: str | None = None
    flavour: str = "flink"
    data: Path | None = None
    source: str = "postgres"
    pause: float = 0.0


@contextlib.contextmanager
def scene(options: Options, say: Say) -> Iterator[Scene]:
    """Everything that the demo needs, running; Debezium, where it captures, in a Kafka Connect of the demo's own.

    Raises:
        DeclarationError: there is a log, or a topic of the demo's, already.
        JavaMissing: a broker or Kafka Connect is needed, and there is no Java.
    """
    debezium, prefix, keep = options.source == "debezium", options.flavour, options.keep
    on_kafka = debezium or options.engine != "local"
    _check_engine(options)
    options = replace(options, log=options.log or ("kafka" if on_kafka else None))
    topics = (f"{prefix}.public.iris_train", f"{prefix}.public.iris_test", "iris_predictions", "iris_sentences")
    # As the broker of Debezium's images: whoever writes to a topic makes it.
    makes = {"auto.create.topics.enable": "true"}
    with contextlib.ExitStack() as stack:
        found = stack.enter_context(stage(APP, options, say, database=False, topics=topics, settings=makes))
        if debezium and found.log.startswith(SCHEME):
            found.kafka = f"{SCHEME}{_place(found.log).bootstrap}"
        elif debezium:
            found.kafka = f"{SCHEME}{stack.enter_context(broker(keep, found.kept, say, settings=makes)).bootstrap}"
        found.dsn = stack.enter_context(postgres(options.postgres, keep, found.kept, say))
        with psycopg.connect(found.dsn, autocommit=True) as database:
            create_tables(database)
        if debezium:
            own_broker = not (options.log or "").startswith(SCHEME)
            stack.enter_context(_connect(found, prefix, own_broker, keep, say))
        if options.engine != "local":
            servers = engine_servers(options.engine, options.place, keep, found.kept, say)
            found.engine = stack.enter_context(servers)
        yield found


def _check_engine(options: Options) -> None:
    """Refuse what would be refused when all servers run."""
    require_packages(options.engine)
    if options.engine != "local" and not (options.log or "kafka").startswith("kafka"):
        raise DeclarationError(
            f"--engine {options.engine} needs a log on Kafka, and this one is {options.log}",
            advice="Leave --log out for a broker of the demo's own, or give --log kafka://host:9092.",
        )
    if options.engine == "flink" and options.flavour == "spark":
        raise DeclarationError(
            "--flavour spark ticks at the end of each interval, and a job on Flink takes no ticks yet",
            advice="Leave --flavour out, or run it with --engine spark.",
        )


def start_connector(found: Scene, connect: KafkaConnect, prefix: str, own_broker: bool) -> None:
    """Register the article's connector, pointed at the demo's database."""
    with psycopg.connect(found.dsn) as database:
        info = database.info
        host = "127.0.0.1" if info.host.startswith("/") else info.host
        settings = {
            "database.hostname": host,
            "database.port": str(info.port),
            "database.user": info.user,
            "database.password": info.password or "postgres",
            "database.dbname": info.dbname,
        }
    # The article's database has the plug-in that Debezium asks for by default; others have PostgreSQL's own.
    settings |= {"plugin.name": "pgoutput", "slot.name": SLOT, "publication.name": SLOT, "topic.prefix": prefix}
    if not own_broker:
        # A broker need not make topics by itself.
        settings |= {"topic.creation.default.replication.factor": "-1", "topic.creation.default.partitions": "1"}
    connect.create(CONNECTOR_NAME, {**CONNECTOR, **settings})
    connect.wait_running(CONNECTOR_NAME)


def create_tables(database: psycopg.Connection[Any]) -> None:
    """The two tables, empty."""
    for table in ("iris_train", "iris_test"):
        make_table(database, table, sql.SQL(TABLE_COLUMNS))


def _place(log: str) -> KafkaLocation:
    return KafkaLocation.parse(log, name=APP)


@contextlib.contextmanager
def _connect(found: Scene, prefix: str, own_broker: bool, keep: bool, say: Say) -> Iterator[None]:
    say("starting Kafka Connect with Debezium")
    connect = KafkaConnect(_place(found.kafka).bootstrap, ("debezium-postgres",))
    connect.outlives = keep
    with stopped(connect, keep):
        start_connector(found, connect, prefix, own_broker)
        found.kept.append(f"Kafka Connect at {connect.url} (pid {connect.pid})")
        yield
        if not keep:
            _leave(found, connect)


def _leave(found: Scene, connect: KafkaConnect) -> None:
    """Take the connector away, and wait until it has let go of its slot."""
    connect.delete(CONNECTOR_NAME)
    deadline = time.monotonic() + STOP_SECONDS
    query = "select count(*) from pg_replication_slots where slot_name = %s and active"
    with psycopg.connect(found.dsn, autocommit=True) as database:
        while database.execute(query, [SLOT]).fetchone() != (0,):
            if time.monotonic() > deadline:
                raise HeadraceError(f"Debezium still holds the slot {SLOT}")
            time.sleep(0.05)
        clean_up(database, APP)
