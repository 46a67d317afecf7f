"""What else goes wrong beside a Kafka log and topics of others: brokers that die, zombies, poison, truncation."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import psutil
import psycopg
import pyarrow as pa
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import NewPartitions

import headrace as hr
from headrace.errors import LogLocked, LogTruncated, LogUnavailable
from headrace.formats.topic_formats import codec_for
from headrace.kafka import fetch
from headrace.kafka.cluster import Cluster
from headrace.kafka.producer import TransactionalProducer
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.testing.servers import JavaMissing, KafkaBroker, SchemaRegistryServer
from tests.processes import HEADRACE, Child
from tests.waiting import wait_until

from . import foreign, harness, pipeline
from .harness import write
from .test_kafka_kill import fresh, produce, same_foreign

pytestmark = pytest.mark.xdist_group("kafka-crash")
ROUNDS = max(1, int(os.environ.get("HEADRACE_CRASH_ROUNDS", "1")) // 40)  # a broker takes ten seconds to come back
POINTS = "f.public.points"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaBroker]:
    try:
        broker = KafkaBroker()
    except JavaMissing as error:
        pytest.skip(str(error))
    with broker:
        yield broker


@pytest.fixture
def broker(cluster: KafkaBroker) -> KafkaBroker:
    cluster.start()  # where a test left it dead
    return fresh(cluster)


def send(broker: KafkaBroker, topic: str, *values: bytes | None, partition: int = -1, key: bytes | None = None) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 1})
    for value in values:
        producer.produce(topic, value, key, partition)
        producer.poll(0)
    assert producer.flush(30) == 0


def points(first: int, count: int) -> list[bytes]:
    return [json.dumps({"id": i, "x": float(i % 9), "y": float(i % 5)}).encode() for i in range(first, first + count)]


def topics(broker: KafkaBroker, *names: str, partitions: int = 1) -> str:
    for name in names or (POINTS, "f.public.names"):
        broker.create_topic(name, partitions)
    return f"kafka://{broker.bootstrap}"


def ids(broker: KafkaBroker, topic: str) -> list[int]:
    return [row["id"] for row in harness.committed(broker.bootstrap, topic) if row]


def rows(log: str, topic: str, name: str = "foreign") -> list[dict[str, Any]]:
    held = open_log(log, writer=False, name=name, codec=codec_for())
    try:
        found = [pa.Table.from_batches([e.records]) for e in held.read_topic(topic, limit=10**9)]
        return [row for table in found for row in table.to_pylist()]
    finally:
        held.close()


# -- a broker that dies --------------------------------------------------------------------------------------------


def test_a_broker_that_dies_under_the_log_comes_back(dsn: str, tmp_path: Path, broker: KafkaBroker) -> None:
    log, whole = f"kafka://{broker.bootstrap}", tmp_path / "whole.headrace"
    harness.run(dsn, whole, name="whole")
    with pipeline.build(dsn, log).start() as running:
        for seed in range(ROUNDS):
            write(dsn, seed, 30)
            broker.kill()
            write(dsn, seed + 10, 30)
            wait_until(lambda: "again" in running.status, "noticing that the broker is gone")
            broker.start()
            running.wait(60)
            wait_until(lambda: "again" not in running.status, "taking the status back")
    harness.run(dsn, whole, name="whole")
    assert harness.contents(log) == harness.contents(whole)
    assert ids(broker, "counted_out") == [row["id"] for row in harness.contents(whole)["counted_out"]]
    harness.verify(pipeline.build(dsn, log))


SIGNALLED = """
import headrace as hr
app = hr.App("signalled", log={log!r})
model = app.model("m", hr.KMeans(k=2, initial_centers=[[0.0], [5.0]]), features=["x"])
model.learn(app.topic({topic!r}))
model.predict(app.topic({topic!r})).to("signalled_out")
"""
ENDS_SECONDS = 10.0


@pytest.mark.slow
def test_a_signal_ends_a_pipeline_whose_broker_answers_nothing(broker: KafkaBroker, tmp_path: Path) -> None:
    """While it starts, while it waits to commit, and while it ends; a second signal ends it at once."""
    file = tmp_path / "signalled.py"
    file.write_text(SIGNALLED.format(log=topics(broker, "signalled", "signalled_out"), topic="signalled"))

    def begin(**more: Any) -> subprocess.Popen[bytes]:
        command = [HEADRACE, "run", str(file)]
        return Child(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **more)

    def ended(child: subprocess.Popen[bytes], *signals: int) -> tuple[int, float]:
        begun = time.monotonic()
        for number in signals:
            child.send_signal(number)
            time.sleep(0.2)
        return child.wait(60), time.monotonic() - begun

    send(broker, "signalled", *points(0, 100))
    running = begin()
    wait_until(lambda: len(ids(broker, "signalled_out")) == 100, "predicting what is there")
    # Stopped before: one that starts would become the log's writer in place of the one that runs.
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        starting = begin()
        wait_until(lambda: connections(starting.pid), "looking for the broker")
        code, seconds = ended(starting, signal.SIGTERM)
        assert (code in (0, 143), seconds < ENDS_SECONDS) == (True, True), (code, seconds)
        another = begin()
        wait_until(lambda: connections(another.pid), "looking for the broker once more")
        assert ended(another, signal.SIGINT, signal.SIGTERM)[1] < ENDS_SECONDS
        code, seconds = ended(running, signal.SIGTERM)
        assert seconds < ENDS_SECONDS
        assert code in (0, 143)
    finally:
        os.kill(broker.pid, signal.SIGCONT)


def connections(pid: int) -> int:
    """How many connections a process has open."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return len(psutil.Process(pid).net_connections("tcp"))
    return 0


@pytest.mark.slow
def test_a_broker_that_is_away_for_longer_than_a_delivery_may_take(
    dsn: str, tmp_path: Path, broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages' time is over, so the transaction is undone, and tried again as a new one."""
    monkeypatch.setattr("headrace.kafka.producer.DELIVERY_MILLISECONDS", 1500)
    log, whole = f"kafka://{broker.bootstrap}", tmp_path / "whole.headrace"
    harness.run(dsn, whole, name="whole")
    with pipeline.build(dsn, log).start() as running:
        write(dsn, 1, 30)
        running.wait(60)
        broker.kill()
        write(dsn, 2, 30)
        wait_until(lambda: "not delivered" in running.status, "giving the transaction up")
        broker.start()
        running.wait(60)
    harness.run(dsn, whole, name="whole")
    assert harness.contents(log) == harness.contents(whole)
    harness.verify(pipeline.build(dsn, log))


def test_a_message_after_one_that_was_not_delivered_undoes_the_transaction(broker: KafkaBroker) -> None:
    """It comes to light wherever the client is asked next: by a report, or as another message is sent."""
    broker.create_topic("late", config={"max.message.bytes": "1000"})
    location = KafkaLocation.parse(f"kafka://{broker.bootstrap}/late")
    with contextlib.closing(TransactionalProducer(location, Cluster(location), lambda _: None)) as producer:
        refused = producer.send("late", [None], [os.urandom(5000)], [()])
        producer.deliver()
        with pytest.raises(LogUnavailable, match="not delivered"):
            _ = refused.ranges
        with pytest.raises(LogUnavailable, match="did not take"):
            producer.send("late", [None], [b"after it"], [()])
        for _ in range(5):  # the first one after it may find that the broker has never seen what was refused
            producer.abort()
            with contextlib.suppress(LogUnavailable):
                producer.send("late", [None], [b"again"], [()])
                producer.commit()
                break
    assert harness.committed(broker.bootstrap, "late", at=lambda message: message.value()) == [b"again"]


def test_leaving_a_broker_that_is_away_with_a_transaction_open_takes_seconds(broker: KafkaBroker) -> None:
    location = KafkaLocation.parse(f"kafka://{broker.bootstrap}/left")
    broker.create_topic("left")
    producer = TransactionalProducer(location, Cluster(location), lambda _: None)
    producer.send("left", [None], [b"undone"], [()])
    producer.deliver()
    broker.kill()
    producer.send("left", [None], [b"on its way"], [()])
    leaving = threading.Thread(target=producer.close, daemon=True)
    leaving.start()
    leaving.join(30)
    assert not leaving.is_alive()
    broker.start()
    with contextlib.closing(TransactionalProducer(location, Cluster(location), lambda _: None)) as after:
        after.send("left", [None], [b"committed"], [()])
        after.commit()
    assert harness.committed(broker.bootstrap, "left", at=lambda message: message.value()) == [b"committed"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kafka", "sqlite"])
def test_a_broker_that_dies_under_topics_of_others_comes_back(kind: str, tmp_path: Path, broker: KafkaBroker) -> None:
    kafka = topics(broker)
    log = kafka if kind == "kafka" else str(tmp_path / "killed.headrace")
    with foreign.build(kafka, log).start() as running:
        for seed in range(ROUNDS):
            produce(broker, seed, 100, first=1000 * seed)
            running.wait(60)
            broker.kill()
            wait_until(lambda: "again" in running.status, "noticing that the broker is gone")
            broker.start()
            produce(broker, seed + 5, 100, first=1000 * seed + 500)
            running.wait(60)
    harness.run(kafka, tmp_path / "whole.headrace", name="whole", program=harness.FOREIGN)
    same_foreign(broker, log, tmp_path / "whole.headrace")


# -- transactions that others end ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_zombie_is_fenced(dsn: str, tmp_path: Path, broker: KafkaBroker) -> None:
    log, whole = f"kafka://{broker.bootstrap}", tmp_path / "whole.headrace"
    harness.run(dsn, whole, name="whole")
    kafka = topics(broker)
    app = foreign.build(kafka, kafka)
    with pytest.raises(LogLocked, match="taken over") as caught, app.start() as older:
        produce(broker, 1, 50)
        older.wait(60)
        harness.run(kafka, kafka, program=harness.FOREIGN)
        produce(broker, 2, 50, first=100)
        assert older.join(60) is False
    assert caught.value.exit_code == 1
    harness.run(kafka, kafka, program=harness.FOREIGN)
    harness.run(kafka, whole := tmp_path / "other.headrace", name="whole", program=harness.FOREIGN)
    same_foreign(broker, log, whole)


@pytest.mark.slow
def test_a_process_that_was_stopped_for_longer_than_its_transaction_may_last(
    tmp_path: Path, broker: KafkaBroker
) -> None:
    """The broker undoes what it had begun; it tries again or ends, and a restart is exact."""
    kafka = topics(broker)
    produce(broker, 1, 50)
    harness.run(kafka, kafka, program=harness.FOREIGN)
    chance = random.Random(3)
    for number in range(1 + ROUNDS):
        environment = {"HEADRACE_KAFKA_TRANSACTION_TIMEOUT_MS": "1000"}
        child = harness.start(kafka, kafka, program=harness.FOREIGN, environment=environment)
        produce(broker, number, 200, first=1000 * (number + 1))
        deadline = time.monotonic() + chance.uniform(0.8, 1.6)
        wait_until(lambda at=deadline: time.monotonic() > at, "the moment to stop it")
        if child.poll() is None:
            child.send_signal(signal.SIGSTOP)  # no error where it has ended just now
            deadline = time.monotonic() + 3
            wait_until(lambda at=deadline: time.monotonic() > at, "the transaction's end")
            child.send_signal(signal.SIGCONT)
        _, words = child.communicate(timeout=60)
        assert child.returncode == 0 or b"Log" in words, words.decode()
    harness.run(kafka, kafka, program=harness.FOREIGN)
    harness.run(kafka, tmp_path / "whole.headrace", name="whole", program=harness.FOREIGN)
    same_foreign(broker, kafka, tmp_path / "whole.headrace")


# -- partitions ----------------------------------------------------------------------------------------------------


def test_partitions_are_added_in_the_middle(broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.capture.topics.reader.LOOK_FOR_PARTITIONS_S", 0.2)
    monkeypatch.setattr("headrace.kafka.cluster.METADATA_SECONDS", 0.2)
    kafka = topics(broker, POINTS, "f.public.names", partitions=2)
    app = foreign.build(kafka, f"{kafka}?partitions=3")
    with app.start() as running:
        produce(broker, 1, 200)
        running.wait(60)
        more = [NewPartitions(POINTS, 5), NewPartitions("answered", 6)]
        admin = broker.admin()
        for future in admin.create_partitions(more).values():
            future.result(30)
        wait_until(
            lambda: len(broker.admin().list_topics(POINTS, 10).topics[POINTS].partitions) == 5, "the new partitions"
        )
        produce(broker, 2, 400, first=200)
        wait_until(lambda: len(app.topic(POINTS).read()) == 600, "reading all partitions")
        running.wait(60)
        total = 600

        def written_to_new_ones() -> bool:
            """When the producer hears of the output's partitions is the client's business: rows go on until then."""
            nonlocal total
            produce(broker, 3, 50, first=total)
            total += 50
            wait_until(lambda: len(app.topic(POINTS).read()) == total, "reading all partitions")
            running.wait(60)
            return len(set(harness.committed(broker.bootstrap, "answered", at=lambda one: one.partition()))) > 3

        wait_until(written_to_new_ones, "using the new partitions of the output")
    assert sorted(row["id"] for row in rows(kafka, "answered")) == list(range(total))
    assert sorted(ids(broker, "answered")) == list(range(total))
    harness.verify(app)


# -- messages ------------------------------------------------------------------------------------------------------


def test_poison_goes_to_the_dead_letters_and_the_rest_goes_on(broker: KafkaBroker) -> None:
    kafka = topics(broker)
    poison = [b"{not json", b"\xff\x00\x01", b'{"id": 1', b"[1, 2]"]
    with foreign.build(kafka, kafka).start() as running:
        send(broker, POINTS, *points(0, 20))
        for value in poison:
            send(broker, POINTS, value, *points(100, 5), key=b"k")
        running.wait(60)
    letters = rows(kafka, f"{POINTS}.dlq")
    assert [row["value"] for row in letters] == poison
    assert [(row["topic"], row["partition"], row["offset"], row["key"]) for row in letters] == [
        (POINTS, 0, 20 + 6 * i, b"k") for i in range(4)
    ]
    assert all(row["reason"] for row in letters)
    assert len(ids(broker, "answered")) == 40
    harness.verify(foreign.build(kafka, kafka))


def test_a_hundred_thousand_tombstones(broker: KafkaBroker) -> None:
    kafka = topics(broker)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "queue.buffering.max.messages": 300_000})
    for i in range(100_000):
        producer.produce(POINTS, None, json.dumps({"id": i}).encode())
    assert producer.flush(60) == 0
    send(broker, POINTS, *points(7, 3))
    with foreign.build(kafka, kafka).start() as running:
        running.wait(60)
    assert ids(broker, "answered") == [7, 8, 9]
    assert f"{POINTS}.dlq" not in broker.admin().list_topics(timeout=10).topics
    harness.verify(foreign.build(kafka, kafka))


def test_a_row_over_the_limit_of_a_message_is_a_dead_letter(dsn: str, broker: KafkaBroker) -> None:
    log = f"kafka://{broker.bootstrap}"
    app = pipeline.build(dsn, log)
    with app.start() as running, psycopg.connect(dsn, autocommit=True) as connection:
        for size in (1, 10 << 20, 1):
            connection.execute("insert into c_train (x, y, note) values (1, 2, repeat('x', %s))", [size])
        running.wait(60)
    assert ids(broker, "c.public.c_train") == [1, 3]
    (letter,) = rows(log, "c.public.c_train.dlq", "crash")
    assert "max.message.bytes" in letter["reason"] and json.loads(letter["row"]) == {"id": 2}
    harness.verify(app)


def test_an_output_over_the_limit_of_a_message_is_a_dead_letter(broker: KafkaBroker) -> None:
    kafka = topics(broker, "in")
    app = hr.App("large", log=kafka)
    long = pa.scalar(1_100_000)
    app.topic("in").with_columns(text=lambda batch: _padded(batch, long)).to("out")
    with app.start() as running:
        send(broker, "in", *points(0, 3))
        running.wait(60)
    assert ids(broker, "out") == [0, 2]
    assert len(rows(kafka, "out.dlq", "large")) == 1


def _padded(batch: Any, length: pa.Scalar) -> pa.Array:
    return pa.array(["x" * length.as_py() if value == 1 else "" for value in batch.column("id").to_pylist()])


# -- a schema registry that is away ---------------------------------------------------------------------------------

POINT = {
    "type": "record",
    "name": "Point",
    "fields": [{"name": "id", "type": "long"}, {"name": "x", "type": "double"}, {"name": "y", "type": "double"}],
}


def avro(registry: SchemaRegistryServer, topic: str, first: int, count: int, schema: dict[str, Any]) -> list[bytes]:
    """Messages in Confluent's wire format, with a schema that was registered for them."""
    body = json.dumps({"schema": json.dumps(schema)}).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    request = urllib.request.Request(f"{registry.url}/subjects/{topic}-value/versions", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        number = json.load(answer)["id"]
    values = []
    for i in range(first, first + count):
        buffer = io.BytesIO(struct.pack(">bI", 0, number))
        buffer.seek(0, io.SEEK_END)
        row = {"id": i, "x": float(i % 9), "y": float(i % 5), "note": "n"}
        fastavro.schemaless_writer(buffer, schema, row)
        values.append(buffer.getvalue())
    return values


@pytest.mark.slow
def test_a_schema_registry_that_is_away_is_waited_for(broker: KafkaBroker) -> None:
    """At the start, and when a schema comes in mid-stream that nobody has seen; nothing becomes a dead letter."""
    kafka = topics(broker)
    app = foreign.build(kafka, kafka)
    with SchemaRegistryServer(keep=True) as registry:
        app._declared.registry = registry.url
        first = avro(registry, POINTS, 0, 20, POINT)
        more = {**POINT, "fields": [*POINT["fields"], {"name": "note", "type": "string", "default": ""}]}
        later = avro(registry, POINTS, 20, 20, more)
        registry.stop()
        send(broker, POINTS, *first)
        with app.start() as running:
            wait_until(lambda: "registry" in running.status and "again" in running.status, "noticing that it is away")
            registry.start()
            running.wait(60)
            assert ids(broker, "answered") == list(range(20))
            registry.stop()
            send(broker, POINTS, *later)
            wait_until(lambda: "registry" in running.status and "again" in running.status, "noticing that it is away")
            registry.start()
            running.wait(60)
        assert ids(broker, "answered") == list(range(40))
        assert f"{POINTS}.dlq" not in broker.admin().list_topics(timeout=10).topics
        harness.verify(app)


# -- topics that change behind our back -----------------------------------------------------------------------------


def delete(broker: KafkaBroker, topic: str) -> None:
    admin = broker.admin()  # held: its futures fail when it is collected
    admin.delete_topics([topic])[topic].result(30)
    wait_until(lambda: topic not in broker.admin().list_topics(timeout=10).topics, "the topic's end")


def truncate(broker: KafkaBroker, topic: str, before: int) -> None:
    admin = broker.admin()
    for future in admin.delete_records([TopicPartition(topic, 0, before)]).values():
        future.result(30)


def remade(broker: KafkaBroker, topic: str) -> None:
    delete(broker, topic)
    broker.create_topic(topic)
    send(broker, topic, *points(0, 500))


CHANGES = {
    "deleted": (delete, "is not there any more"),
    "made anew": (remade, "was deleted and made anew"),
    "truncated": (lambda broker, topic: truncate(broker, topic, -1), "does not hold"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_topic_of_others_that_changed_while_we_were_away_is_refused(change: str, broker: KafkaBroker) -> None:
    kafka = topics(broker)
    do, words = CHANGES[change]
    send(broker, POINTS, *points(0, 50))
    with foreign.build(kafka, kafka).start() as first:
        first.wait(60)
    send(broker, POINTS, *points(50, 50))
    do(broker, POINTS)
    with pytest.raises(LogTruncated, match=words), foreign.build(kafka, kafka).start() as second:
        second.wait(60)


@pytest.mark.parametrize("change", ["deleted", "made anew"])
def test_a_topic_of_others_that_changes_under_a_running_pipeline_is_refused(
    change: str, broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.capture.topics.reader.LOOK_FOR_PARTITIONS_S", 0.2)
    kafka = topics(broker)
    do, _ = CHANGES[change]
    send(broker, POINTS, *points(0, 50))
    # It may look in the moment between the old topic and the new one, or ask the new one for what the old one had.
    words = "was deleted and made anew|is not there any more|does not hold offset 50 any more"
    with pytest.raises(LogTruncated, match=words), foreign.build(kafka, kafka).start() as running:
        running.wait(60)
        do(broker, POINTS)
        wait_until(lambda: not running.alive, "noticing it")


@pytest.mark.parametrize("change", ["deleted", "made anew"])
def test_a_topic_of_ours_that_changes_behind_our_back_is_refused(change: str, broker: KafkaBroker) -> None:
    kafka = topics(broker)
    send(broker, POINTS, *points(0, 50))
    harness.run(kafka, kafka, program=harness.FOREIGN)
    do, words = CHANGES[change]
    do(broker, "answered")
    with pytest.raises(LogTruncated, match=words), foreign.build(kafka, kafka).start():
        pass
    with pytest.raises(LogTruncated, match=words):
        rows(kafka, "answered")


def test_reading_what_was_deleted_from_a_topic_of_ours_is_refused(broker: KafkaBroker) -> None:
    kafka = topics(broker)
    send(broker, POINTS, *points(0, 50))
    harness.run(kafka, kafka, program=harness.FOREIGN)
    truncate(broker, "answered", 10)
    with pytest.raises(LogTruncated, match="«answered»"):
        rows(kafka, "answered")


# -- order, and memory ---------------------------------------------------------------------------------------------


def test_a_reader_sees_commit_order_however_fetches_interleave(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One topic's messages come late, again and again; rows of two topics are read in the order of their commits."""
    location = f"kafka://{broker.bootstrap}/order"
    log = open_log(location, writer=True, codec=codec_for())
    number = 0
    for _ in range(40):
        with log.transaction() as txn:
            for topic in ("slow", "fast"):
                txn.append(topic, pa.RecordBatch.from_pydict({"id": [number, number + 1]}))
                number += 2
    log.close()
    receive, late = fetch.receive, []

    def delayed(consumer: Any, timeout: float) -> list[Any]:
        found = receive(consumer, timeout)
        ready, late[:] = late[:], [m for m in found if m.topic() == "slow"]
        return [*ready, *(m for m in found if m.topic() != "slow")]

    monkeypatch.setattr(fetch, "receive", delayed)
    reader = open_log(location, writer=False, codec=codec_for())
    try:
        seen: list[int] = []
        after = 0
        while entries := reader.read(["slow", "fast"], after=after, limit=7):
            seen += [value for entry in entries for value in entry.records.column("id").to_pylist()]
            after = entries[-1].slice
    finally:
        reader.close()
    assert seen == list(range(number))


@pytest.mark.slow
def test_reading_a_large_topic_in_pages_keeps_memory_flat(broker: KafkaBroker) -> None:
    location = f"kafka://{broker.bootstrap}/large"
    log = open_log(location, writer=True, codec=codec_for())
    for part in range(6):
        with log.transaction() as txn:
            numbers = range(part * 50_000, (part + 1) * 50_000)
            for at in range(0, 50_000, 10_000):
                txn.append("many", pa.RecordBatch.from_pydict({"id": list(numbers[at : at + 10_000])}))
    log.close()
    reader = open_log(location, writer=False, codec=codec_for())
    resident: list[float] = []
    try:
        offset = 0
        while entries := reader.read_topic("many", offset=offset, limit=10_000):
            assert entries[0].records.column("id")[0].as_py() == offset
            offset = entries[-1].offset + entries[-1].records.num_rows
            resident.append(_resident_mb())
            del entries
    finally:
        reader.close()
    assert offset == 300_000
    assert max(resident) - resident[len(resident) // 6] < 60, resident


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
