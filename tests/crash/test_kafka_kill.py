"""SIGKILL at every edge of a commit, and at random, with Kafka as the log or as the source.

What the killed runs leave is compared with one run that nobody killed, on another kind of log; our log reads it, and a
consumer that has nothing to do with us, and a replay.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Producer

from headrace.testing.servers import JavaMissing, KafkaBroker

from . import foreign, harness, pipeline
from .harness import write

ROUNDS = max(3, int(os.environ.get("HEADRACE_CRASH_ROUNDS", "3")) // 5)
LOG_EDGES = ("log.before-commit", "log.delivered", "log.sent", "log.after-commit")
ENGINE_EDGES = ("engine.captured", "engine.stepped", "engine.committed", "engine.acknowledged")
SOURCE_EDGES = ("source.before-acknowledge", "source.after-acknowledge")
SNAPSHOT_EDGES = ("snapshot.piece-staged", "snapshot.before-publish", "snapshot.after-publish")


pytestmark = pytest.mark.xdist_group("kafka-crash")


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    """A broker as others set it up: it makes topics on demand, of three partitions."""
    try:
        broker = KafkaBroker(settings={"auto.create.topics.enable": "true", "num.partitions": "3"})
    except JavaMissing as error:
        pytest.skip(str(error))
    with broker:
        yield broker


def fresh(broker: KafkaBroker) -> KafkaBroker:
    """The broker without the topics of the tests before."""
    admin = broker.admin()
    names = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__consumer")]
    names = [name for name in names if not name.startswith("__transaction")]
    for future in admin.delete_topics(names).values() if names else ():
        future.result(30)
    return broker


@pytest.fixture
def broker(cluster: KafkaBroker) -> KafkaBroker:
    return fresh(cluster)


def same(broker: KafkaBroker, log: str, reference: Path, *, positions: bool = True) -> None:
    """The Kafka log holds what the reference holds; so says our log, somebody else's consumer, and a replay."""
    killed = harness.contents(log, positions=positions)
    whole = harness.contents(reference, positions=positions)
    assert whole["counted_out"], "nothing was predicted"
    for name in whole:
        assert killed[name] == whole[name], name
    for topic in harness.OUTPUTS:
        rows = [row for row in whole[topic] if row["__op"] != ord("d")]
        seen = [row for row in harness.committed(broker.bootstrap, topic) if row and not _deleted(row)]
        assert [_comparable(row) for row in seen] == [_comparable(row) for row in rows], topic
    harness.verify(pipeline.build("postgresql://nowhere/none", log))


def _deleted(row: dict[str, Any]) -> bool:
    return row.get("__deleted") in (True, "true")


def _comparable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in ("id", "x", "y", "prediction", "status", "note")}


@pytest.mark.parametrize("edges", [*harness.chains(*LOG_EDGES), *harness.chains(*ENGINE_EDGES, *SOURCE_EDGES)])
def test_a_kill_at_an_edge_changes_nothing_on_a_kafka_log(
    dsn: str, edges: tuple[str, ...], tmp_path: Path, broker: KafkaBroker
) -> None:
    log, whole = f"kafka://{broker.bootstrap}", tmp_path / "whole.headrace"
    harness.run(dsn, log)
    harness.run(dsn, whole, name="whole")
    for number, edge in enumerate(edges):
        # A run that takes everything in with one commit ends before it passes an edge for the second time.
        for passage in (2, 1) if edge in LOG_EDGES and number % 2 else (1,):
            write(dsn, seed=number, transactions=10)
            if harness.finish(harness.start(dsn, log, fault=f"{edge}:{passage}")) == -signal.SIGKILL:
                break
        else:
            pytest.fail(f"no run passed {edge}")
    write(dsn, seed=99, transactions=5)
    harness.run(dsn, log)
    harness.run(dsn, whole, name="whole")
    same(broker, log, whole)


@pytest.mark.parametrize("edges", harness.chains(*SNAPSHOT_EDGES))
@pytest.mark.slow
def test_a_kill_in_the_snapshot_starts_it_again_on_a_kafka_log(
    dsn: str, edges: tuple[str, ...], tmp_path: Path, broker: KafkaBroker
) -> None:
    log, whole = f"kafka://{broker.bootstrap}", tmp_path / "whole.headrace"
    write(dsn, seed=1, transactions=40)
    for edge in edges:
        assert harness.finish(harness.start(dsn, log, fault=edge)) == -signal.SIGKILL
    harness.run(dsn, log)
    harness.run(dsn, whole, name="whole")
    same(broker, log, whole, positions=False)


@pytest.mark.slow
def test_kills_at_random_while_a_writer_writes_to_a_kafka_log(dsn: str, tmp_path: Path, broker: KafkaBroker) -> None:
    log, whole = f"kafka://{broker.bootstrap}?partitions=3", tmp_path / "whole.headrace"
    harness.run(dsn, log)
    harness.run(dsn, whole, name="whole")
    chance = random.Random(int(os.environ.get("HEADRACE_CRASH_SEED", "7")))
    done = threading.Event()

    def keep_writing() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            mine = random.Random(5)
            while not done.wait(0.01):
                harness.transaction(connection, mine)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(ROUNDS):
            harness.kill_after(harness.start(dsn, log), chance.uniform(0.2, 2.0))
    finally:
        done.set()
        writer.join()
    harness.run(dsn, log)
    harness.run(dsn, whole, name="whole")
    killed, expected = harness.contents(log), harness.contents(whole)
    assert killed["counted_out"], "the writer wrote nothing"
    for name in expected:
        assert killed[name] == expected[name], name
    ids = sorted(row["id"] for row in harness.committed(broker.bootstrap, "counted_out"))
    assert ids == sorted(row["id"] for row in expected["counted_out"])
    harness.verify(pipeline.build("postgresql://nowhere/none", log))


# -- topics of others ----------------------------------------------------------------------------------------------


def produce(broker: KafkaBroker, seed: int, count: int, *, first: int = 0) -> None:
    """Rows as Debezium writes them flattened: some values are missing, some messages have no value."""
    chance = random.Random(seed)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 1})
    for i in range(first, first + count):
        key = json.dumps({"id": i}).encode()
        point = {"id": i, "x": chance.gauss(3, 4), "y": chance.choice((None, 1.5, chance.gauss(2, 2)))}
        producer.produce("f.public.points", json.dumps(point).encode(), key)
        producer.produce("f.public.names", json.dumps({"id": i, "name": "n" * chance.randint(0, 9)}).encode(), key)
        if chance.random() < 0.1:
            producer.produce("f.public.names", None, key)
    assert producer.flush(30) == 0


def foreign_locations(broker: KafkaBroker, kind: str, tmp_path: Path) -> str:
    return f"kafka://{broker.bootstrap}" if kind == "kafka" else str(tmp_path / "killed.headrace")


def same_foreign(broker: KafkaBroker, log: str, reference: Path) -> None:
    """Each topic, and what was learned. What arrived together is one transaction, and arrival decides anew in each run:
    which model answered a row is compared by the replay.
    """
    found, whole = (
        harness.contents(one, name=name, outputs=foreign.OUTPUTS, models=("counted",))
        for one, name in ((log, "foreign"), (reference, "whole"))
    )
    assert whole["answered"] and whole["copied"], "nothing was written"
    for name in whole:
        assert _topics_own(found[name]) == _topics_own(whole[name]), name
    if log.startswith("kafka://"):
        for topic in ("answered", "copied"):
            seen = [row["id"] for row in harness.committed(broker.bootstrap, topic) if row]
            assert seen == [row["id"] for row in whole[topic] if row["__op"] != ord("d")], topic
    harness.verify(foreign.build(f"kafka://{broker.bootstrap}", log))


def _topics_own(rows: Any) -> Any:
    if not isinstance(rows, list):
        return rows[:3]
    return [{k: v for k, v in harness._without_position(row).items() if k != "prediction"} for row in rows]


EDGES_OF = {
    "kafka": harness.chains(*LOG_EDGES, *ENGINE_EDGES),
    "sqlite": harness.chains("log.before-commit", "log.after-commit", *ENGINE_EDGES),
}


@pytest.mark.parametrize(
    ("kind", "edges"),
    [pytest.param(kind, *item.values, id=f"{kind}-{item.id}") for kind, some in EDGES_OF.items() for item in some],
)
def test_a_kill_at_an_edge_changes_nothing_for_topics_of_others(
    kind: str, edges: tuple[str, ...], tmp_path: Path, broker: KafkaBroker
) -> None:
    broker.create_topic("f.public.points")
    broker.create_topic("f.public.names")
    kafka, log = f"kafka://{broker.bootstrap}", foreign_locations(broker, kind, tmp_path)
    for number, edge in enumerate(edges):
        produce(broker, number, 50, first=100 * number)
        child = harness.start(kafka, log, fault=f"{edge}:{1 + number % 2}", program=harness.FOREIGN)
        produce(broker, number, 50, first=100 * number + 50)
        assert harness.finish(child) in (-signal.SIGKILL, 0)
    harness.run(kafka, log, program=harness.FOREIGN)
    harness.run(kafka, tmp_path / "whole.headrace", name="whole", program=harness.FOREIGN)
    same_foreign(broker, log, tmp_path / "whole.headrace")


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.slow), "sqlite"])
def test_kills_at_random_while_others_write_their_topics(kind: str, tmp_path: Path, broker: KafkaBroker) -> None:
    broker.create_topic("f.public.points")
    broker.create_topic("f.public.names")
    kafka, log = f"kafka://{broker.bootstrap}", foreign_locations(broker, kind, tmp_path)
    chance = random.Random(int(os.environ.get("HEADRACE_CRASH_SEED", "7")))
    done = threading.Event()

    def keep_writing() -> None:
        first = 0
        while not done.wait(0.01):
            produce(broker, first, 20, first=first)
            first += 20

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(ROUNDS):
            harness.kill_after(harness.start(kafka, log, program=harness.FOREIGN), chance.uniform(0.2, 2.0))
    finally:
        done.set()
        writer.join()
    harness.run(kafka, log, program=harness.FOREIGN)
    harness.run(kafka, tmp_path / "whole.headrace", name="whole", program=harness.FOREIGN)
    same_foreign(broker, log, tmp_path / "whole.headrace")
