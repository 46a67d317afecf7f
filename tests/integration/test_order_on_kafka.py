"""Commit order across topics of a cluster: through another pipeline's log, and by Debezium's transaction topic."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Producer

import headrace as hr
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.pipeline.stream import Stream
from headrace.replay.verify import verify
from headrace.testing import KafkaBroker, KafkaConnect, PostgresServer
from headrace.testing.servers import debezium_source
from tests.waiting import wait_until

TRAIN, TEST = "public.o_train", "public.o_test"
TABLES = r"public\.o_.*"


@pytest.fixture
def dsn(server: PostgresServer) -> Iterator[str]:
    """A database with two tables, one to learn and one to predict."""
    name = f"order_{secrets.token_hex(4)}"
    server.execute(f"CREATE DATABASE {name}")
    dsn = server.dsn.replace("/postgres?", f"/{name}?")
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in (TRAIN, TEST):
            connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x float8, y float8)".encode())
    yield dsn
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for (slot,) in connection.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = %s", [name]
        ).fetchall():
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", [slot]
            )
            deadline = time.monotonic() + 20
            while True:
                try:
                    connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
                    break
                except psycopg.errors.ObjectInUse:
                    assert time.monotonic() < deadline
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def write(dsn: str, seed: int, transactions: int, first: int = 0) -> int:
    """Transactions of some rows of both tables in a random order; returns the next id."""
    chance = random.Random(seed)
    with psycopg.connect(dsn) as connection:
        for _ in range(transactions):
            for _ in range(chance.randint(1, 4)):
                table = chance.choice((TRAIN, TEST))
                values = (first, chance.uniform(0, 9), chance.uniform(0, 9))
                connection.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)".encode(), values)
                first += 1
            connection.commit()
    return first


def model(app: hr.App, train: Stream, test: Stream) -> None:
    """Every transaction moves the centres: a row that is learned too early or too late changes what follows."""
    learner = hr.KMeans(k=3, initial_centers=[[1, 1], [5, 5], [8, 2]], decay=0.3)
    moving = app.model("moving", learner, features=["x", "y"])
    moving.learn(train)
    moving.predict(test).to(f"answers-{app.name}")


def answers(app: hr.App) -> list[tuple[int, int]]:
    table = app.topic(f"answers-{app.name}").read().to_arrow()
    return list(zip(table.column("id").to_pylist(), table.column("prediction").to_pylist(), strict=True))


class Native:
    """A pipeline on the database itself, for comparison."""

    def __init__(self, dsn: str) -> None:
        self.app = hr.App(f"native{secrets.token_hex(3)}", log="memory://")
        db = self.app.postgres(dsn, tables=TABLES, prefix="o")
        model(self.app, db[TRAIN], db[TEST])


def verified(app: hr.App) -> str:
    log = open_log(app.log, writer=False, name=app.name, codec=codec_for())
    try:
        return verify(app.plan(), log).result
    finally:
        log.close()


def test_another_pipeline_reads_topics_in_commit_order(dsn: str, broker: KafkaBroker) -> None:
    one = secrets.token_hex(3)
    capture = hr.App(f"capture{one}", log=f"kafka://{broker.bootstrap}?partitions=3")
    capture.postgres(dsn, tables=TABLES, prefix=f"o{one}")
    reader = hr.App(f"reader{one}", log=f"kafka://{broker.bootstrap}")
    model(reader, reader.topic(f"o{one}.{TRAIN}"), reader.topic(f"o{one}.{TEST}"))
    direct = Native(dsn)
    with direct.app.start() as directly, capture.start() as capturing:
        after = write(dsn, seed=1, transactions=60)
        capturing.wait(60)
        with reader.start() as reading:
            reading.wait(60)
            write(dsn, seed=2, transactions=40, first=after)
            capturing.wait(60)
            reading.wait(60)
        directly.wait(60)
        wanted = answers(direct.app)
    assert len(wanted) > 50
    assert answers(reader) == wanted
    assert verified(reader) == "equal"


@pytest.mark.timeout(180)
def test_debezium_gives_commit_order_by_its_transaction_topic(
    dsn: str, server: PostgresServer, broker: KafkaBroker, connect: KafkaConnect
) -> None:
    prefix = f"d{secrets.token_hex(3)}"
    # Envelopes: flattened events would not say which transaction they belong to.
    config = debezium_source(
        server,
        prefix=prefix,
        tables=TABLES,
        slot=prefix,
        database__dbname=dsn.partition("?")[0].rpartition("/")[2],
        provide__transaction__metadata="true",
        value__converter__schemas__enable="false",
        key__converter__schemas__enable="false",
        poll__interval__ms=10,
    )
    direct = Native(dsn)
    app = hr.App(f"app{prefix}", log=f"kafka://{broker.bootstrap}")
    db = app.debezium(prefix=prefix, tables=TABLES, transactions=True)
    model(app, db[TRAIN], db[TEST])
    connect.create(prefix, config)
    try:
        connect.wait_running(prefix)
        with direct.app.start() as directly, app.start() as running:
            wait_until(lambda: replicated(dsn), "Debezium's slot")
            after = write(dsn, seed=3, transactions=50)
            directly.wait(60)
            wanted = answers(direct.app)
            wait_until(lambda: running["moving"].counters.get("predicted", 0) >= len(wanted), "all answers")
            running.wait(60)
            got = answers(app)
        assert got == wanted
        # A second run goes on where the first one stopped, with transactions that came meanwhile.
        write(dsn, seed=4, transactions=30, first=after)
        with direct.app.start() as directly, app.start() as running:
            directly.wait(60)
            more = answers(direct.app)
            wait_until(
                lambda: running["moving"].counters.get("predicted", 0) >= len(more), "the answers of the second run"
            )
            running.wait(60)
            assert answers(app) == more and len(more) > len(wanted)
    finally:
        connect.delete(prefix)
    assert verified(app) == "equal"


def replicated(dsn: str) -> bool:
    """Whether Debezium streams already: rows written before would come as a snapshot, without transactions."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_replication_slots WHERE active AND database = current_database() "
            "AND slot_name NOT LIKE 'headrace%'"
        ).fetchone()
    return bool(found and found[0])


def test_a_model_is_trained_on_a_topic_of_others_that_nothing_else_reads(broker: KafkaBroker, tmp_path: Path) -> None:
    """Rows that only a training wants are taken into the log like those that a model learns."""
    name = f"trained_{secrets.token_hex(4)}"
    rows, asked = f"{name}-rows", f"{name}-asked"
    for topic in (rows, asked):
        broker.create_topic(topic)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for number in range(20):
        producer.produce(rows, b'{"x":%d.0,"y":%d.0}' % (number, 2 * number))
    assert producer.flush(60) == 0
    (tmp_path / "first.csv").write_text("x,y\n1,2\n2,3\n5,1\n")
    app = hr.App(name, log=f"kafka://{broker.bootstrap}")
    slope = app.model(
        "slope", hr.LinearRegression(), features=["x"], target="y", initial=hr.csv(tmp_path / "first.csv")
    )
    slope.predict(app.topic(asked)).to(f"{name}-out")
    slope.retrain(rows=app.topic(rows).all())
    with app.start() as running:
        running.wait(60)
        assert running.retrain("slope")["rows"] == 20
        assert running["slope"].predict([{"x": 50.0}]) == pytest.approx([100.0])
