"""The servers that other tests stand on: they start, keep what they were given, and leave nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest

import headrace as hr
from headrace.errors import HeadraceError
from headrace.testing.servers import (
    JavaMissing,
    KafkaBroker,
    KafkaConnect,
    PostgresServer,
    SchemaRegistryServer,
    ServerFailed,
    avro_converters,
    debezium_source,
)
from headrace.testing.servers.jars import jars
from headrace.testing.servers.java import java
from tests.connectors import ARTICLE, NAME
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

# The same keys by Java's own producer, which puts them where its default partitioner says.
JAVA_PRODUCER = """
import java.util.Properties;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.*;

public class Produce {
    public static void main(String[] arguments) throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        try (var producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (int i = 2; i < arguments.length; i++) {
                byte[] key = java.util.HexFormat.of().parseHex(arguments[i]);
                producer.send(new ProducerRecord<>(arguments[1], key, key)).get();
            }
        }
    }
}
"""


def produce(bootstrap: str, topic: str, messages: list[tuple[bytes, bytes]], **settings: str) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, **settings})
    for key, value in messages:
        producer.produce(topic, value, key)
    assert producer.flush(30) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[Any]:
    """The first messages of a topic, which may still have to come into being; no group, which takes seconds to form."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic})
    found: list[Any] = []

    def partitions() -> list[int]:
        return list(consumer.list_topics(timeout=10).topics[topic].partitions)

    def complete() -> bool:
        message = consumer.poll(0.5)
        if message is not None and message.error() is None:
            found.append(message)
        return len(found) >= count

    try:
        wait_until(lambda: topic in consumer.list_topics(timeout=10).topics, f"{topic} is there")
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions()])
        wait_until(complete, f"{count} messages in {topic}")
    finally:
        consumer.close()
    return found


def values(bootstrap: str, topic: str, count: int) -> list[tuple[bytes, bytes]]:
    return [(message.key(), message.value()) for message in consume(bootstrap, topic, count)]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


def gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent has not buried yet has."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# -- the broker -----------------------------------------------------------------------------------------------------


def test_a_broker_takes_and_gives_messages(broker: KafkaBroker, topic_prefix: str) -> None:
    broker.create_topic(topic_prefix)
    sent = [(b"%d" % i, b"row %d" % i) for i in range(100)]
    produce(broker.bootstrap, topic_prefix, sent)
    assert values(broker.bootstrap, topic_prefix, 100) == sent


def test_a_topic_is_as_it_was_asked_for(broker: KafkaBroker, topic_prefix: str) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource

    broker.create_topic(topic_prefix, 3, config={"cleanup.policy": "compact"})
    admin = broker.admin()
    assert len(admin.list_topics(topic_prefix, timeout=10).topics[topic_prefix].partitions) == 3
    resource = ConfigResource("topic", topic_prefix)
    assert admin.describe_configs([resource])[resource].result(10)["cleanup.policy"].value == "compact"
    with pytest.raises(KafkaException, match="already exists"):
        broker.create_topic(topic_prefix)


def test_a_broker_makes_no_topic_by_itself(broker: KafkaBroker, topic_prefix: str) -> None:
    from confluent_kafka import KafkaError, KafkaException, Producer

    failed: list[Any] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap, "topic.metadata.propagation.max.ms": 0})
    try:
        producer.produce(topic_prefix, b"x", on_delivery=lambda error, _: failed.append(error.code()))
    except KafkaException as error:  # where the client has heard of the broker's topics by then
        failed.append(error.args[0].code())
    producer.flush(30)
    assert failed in ([KafkaError._UNKNOWN_TOPIC], [KafkaError.UNKNOWN_TOPIC_OR_PART])


@pytest.mark.slow
@pytest.mark.usefixtures("broker")  # skips without Java; and these brokers come after that one has its memory
def test_a_killed_broker_comes_back_with_its_data(tmp_path: Path) -> None:
    with KafkaBroker(tmp_path / "kafka") as mine:
        mine.create_topic("rows")
        produce(mine.bootstrap, "rows", [(b"a", b"1")])
        place, pid = mine.bootstrap, mine.pid
        mine.kill()
        assert gone(pid)
        assert not mine.running
        with pytest.raises(ServerFailed, match="not running"):
            _ = mine.pid
        mine.start()
        assert mine.bootstrap == place
        produce(mine.bootstrap, "rows", [(b"b", b"2")])
        assert values(mine.bootstrap, "rows", 2) == [(b"a", b"1"), (b"b", b"2")]
        mine.restart()
        assert mine.pid != pid
        assert mine.admin().list_topics(timeout=10).topics["rows"].partitions.keys() == {0}
    assert not (tmp_path / "kafka").exists()


@pytest.mark.usefixtures("broker")
def test_a_broker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)kafka (ended|cannot format).*log\.retention\.hours"):
        KafkaBroker(tmp_path / "kafka", settings={"log.retention.hours": "soon"}).__enter__()
    assert not (tmp_path / "kafka").exists()


# A thread starts it and ends; then the process dies without a chance to stop anything.
CARELESS = """
import os, signal, sys, threading
from pathlib import Path
from headrace.testing.servers import KafkaBroker

broker = KafkaBroker(Path(sys.argv[1]))
starter = threading.Thread(target=broker.start)
starter.start()
starter.join()
assert broker.running and broker.admin().list_topics(timeout=10).brokers
print(broker.pid, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("broker")
def test_a_broker_dies_with_the_process_that_started_it_not_with_the_thread(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CARELESS, str(tmp_path / "kafka")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as careless:
        assert careless.stdin is not None and careless.stdout is not None
        pid = int(careless.stdout.readline())
        assert not gone(pid)
        careless.stdin.close()
        assert careless.wait(30) == -signal.SIGKILL
    wait_until(lambda: gone(pid), "the broker is gone")


# -- partitions -----------------------------------------------------------------------------------------------------


def test_librdkafkas_murmur2_is_javas_default_partitioner(
    broker: KafkaBroker, topic_prefix: str, tmp_path: Path
) -> None:
    if "jdk.compiler" not in subprocess.run([java(), "--list-modules"], capture_output=True, text=True).stdout:
        pytest.skip("this Java has no compiler")
    keys = [f"key-{i}".encode() for i in range(40)]
    # Of each length modulo 4, bytes above 127, and as Debezium writes keys.
    keys += [b"\xff", b"\x80\x81", b"\x00\x00\x00", "Zürich".encode(), "鍵".encode(), bytes(range(256))]
    keys += [json.dumps({"id": i}).encode() for i in range(4)]
    assert len(keys) == 50
    for name in ("java", "python"):
        broker.create_topic(f"{topic_prefix}.{name}", 7)
    source = tmp_path / "Produce.java"
    source.write_text(JAVA_PRODUCER)
    command = [java(), "-Dlog4j2.level=ERROR", "-cp", f"{jars('kafka')}/*", source, broker.bootstrap]
    subprocess.run([*command, f"{topic_prefix}.java", *(key.hex() for key in keys)], check=True, timeout=120)
    sent = [(key, key) for key in keys]
    produce(broker.bootstrap, f"{topic_prefix}.python", sent, partitioner="murmur2_random")
    by_java, by_python = (
        {message.key(): message.partition() for message in consume(broker.bootstrap, f"{topic_prefix}.{name}", 50)}
        for name in ("java", "python")
    )
    assert by_java == by_python
    assert set(by_java.values()) == set(range(7))


def test_kcat_reads_what_was_written(broker: KafkaBroker, topic_prefix: str) -> None:
    kcat = shutil.which("kcat")
    if kcat is None:
        pytest.skip("kcat is not on PATH")
    broker.create_topic(topic_prefix)
    produce(broker.bootstrap, topic_prefix, [(b"1", b"one"), (b"2", b"two")])
    command = [kcat, "-q", "-b", broker.bootstrap, "-C", "-t", topic_prefix, "-e", "-f", "%k=%s\\n"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["1=one", "2=two"]


# -- Connect --------------------------------------------------------------------------------------------------------


@pytest.fixture
def iris(server: PostgresServer) -> Iterator[PostgresServer]:
    """Two rows in the article's table, which is dropped at the end."""
    server.execute("create table public.iris_train (id serial primary key, sepal_length float, iris_class int)")
    server.execute("insert into public.iris_train (sepal_length, iris_class) values (5.1, 0), (7.0, 1)")
    try:
        yield server
    finally:
        server.execute("drop table public.iris_train")


def _slot_dropped(server: PostgresServer, slot: object) -> bool:
    drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = %s"
    try:
        server.execute(drop, slot)
    except psycopg.errors.ObjectInUse:
        return False
    return True


@contextlib.contextmanager
def run(connect: KafkaConnect, server: PostgresServer, name: str, config: Mapping[str, object]) -> Iterator[None]:
    """A connector while a test runs; its slot and publication are gone afterwards, for the next test."""
    try:
        connect.create(name, config)
        connect.wait_running(name)
        yield
    finally:
        connect.delete(name)
        slot = config.get("slot.name", "debezium")
        # A task that is being stopped may take its slot once more: nobody is sure of it before it is gone.
        wait_until(lambda: _slot_dropped(server, slot), f"Debezium lets go of its slot {slot}")
        server.execute(f"drop publication if exists {config.get('publication.name', 'dbz_publication')}")


@pytest.fixture
def published(broker: KafkaBroker, connect: KafkaConnect, iris: PostgresServer) -> Iterator[str]:
    """The article's connector as it was published, but for the database's address; gives the topic."""
    topic = "flink.public.iris_train"
    # The article's broker makes topics when somebody writes to them; ours does not.
    broker.create_topic(topic)
    here = {
        "database.hostname": "127.0.0.1",
        "database.port": iris.port,
        # Debezium's default, decoderbufs, comes with Debezium's image of PostgreSQL; no other server has it.
        "plugin.name": "pgoutput",
    }
    with run(connect, iris, NAME, ARTICLE | here):
        yield topic


def test_the_published_connector_delivers_rows(published: str, broker: KafkaBroker, iris: PostgresServer) -> None:
    iris.execute("insert into public.iris_train (sepal_length, iris_class) values (6.3, 2)")
    found = [(json.loads(key), json.loads(value)) for key, value in values(broker.bootstrap, published, 3)]
    assert [key["payload"] for key, _ in found] == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert [tuple(value["payload"].values()) for _, value in found] == [(1, 5.1, 0), (2, 7.0, 1), (3, 6.3, 2)]
    fields = found[2][1]["schema"]["fields"]
    assert [(field["field"], field["type"]) for field in fields] == [
        ("id", "int32"),
        ("sepal_length", "double"),
        ("iris_class", "int32"),
    ]


@pytest.mark.slow
def test_a_killed_worker_goes_on_where_it_was(
    broker: KafkaBroker, connect: KafkaConnect, iris: PostgresServer, topic_prefix: str
) -> None:
    topic = f"{topic_prefix}.public.iris_train"
    config = debezium_source(
        iris, prefix=topic_prefix, tables="public.iris_.*", slot=topic_prefix, slot__drop__on__stop=False
    )
    with run(connect, iris, topic_prefix, config):
        assert len(consume(broker.bootstrap, topic, 2)) == 2
        connect.kill()
        iris.execute("insert into public.iris_train (sepal_length, iris_class) values (6.3, 2)")
        connect.start()
        connect.wait_running(topic_prefix)
        wait_until(lambda: 3 in ids(broker, topic), "the row that was committed while the worker was dead")
        assert set(ids(broker, topic)) == {1, 2, 3}


def ids(broker: KafkaBroker, topic: str) -> list[int]:
    """The rows in a topic now; a worker that was killed repeats what it had not noted down."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": f"{topic}.ids"})
    try:
        _, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [json.loads(item.value())["payload"]["after"]["id"] for item in consumer.consume(high, timeout=10)]
    finally:
        consumer.close()


def test_a_connector_rests_and_goes_on(connect: KafkaConnect, iris: PostgresServer, topic_prefix: str) -> None:
    config = debezium_source(iris, prefix=topic_prefix, tables="public.iris_.*", slot=topic_prefix)

    def state() -> str:
        return str(connect.status(topic_prefix)["tasks"][0]["state"])

    with run(connect, iris, topic_prefix, config):
        connect.pause(topic_prefix)
        wait_until(lambda: state() == "PAUSED", "the task rests")
        connect.resume(topic_prefix)
        wait_until(lambda: state() == "RUNNING", "the task runs")


def test_connect_says_what_it_refuses(connect: KafkaConnect, server: PostgresServer, topic_prefix: str) -> None:
    config = debezium_source(server, tables="public.iris_.*")
    with pytest.raises(HeadraceError, match=r"answers 400 .*topic\.prefix"):
        connect.create(topic_prefix, config | {"topic.prefix": ""})
    with pytest.raises(HeadraceError, match="answers 404"):
        connect.status(topic_prefix)


def test_debezium_in_avro_is_what_confluents_clients_read(
    broker: KafkaBroker, connect: KafkaConnect, registry: SchemaRegistryServer, iris: PostgresServer, topic_prefix: str
) -> None:
    from fastavro import parse_schema, schemaless_reader

    config = debezium_source(iris, prefix=topic_prefix, tables="public.iris_.*", slot=topic_prefix)
    with run(connect, iris, topic_prefix, config | avro_converters(registry.url)):
        message = consume(broker.bootstrap, f"{topic_prefix}.public.iris_train", 2)[1]
    rows = {}
    for part, data in (("key", message.key()), ("value", message.value())):
        # https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format
        assert data[0] == 0
        schema = json.loads(get(f"{registry.url}/schemas/ids/{int.from_bytes(data[1:5])}")["schema"])
        rows[part] = schemaless_reader(io.BytesIO(data[5:]), parse_schema(schema), None)
    assert rows["key"] == {"id": 2}
    assert rows["value"]["after"] == {"id": 2, "sepal_length": 7.0, "iris_class": 1}
    subjects = get(f"{registry.url}/subjects")
    assert {f"{message.topic()}-key", f"{message.topic()}-value"} <= set(subjects)


# -- the registry ---------------------------------------------------------------------------------------------------

POINT = {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "double"}]}


def register(url: str, subject: str, schema: object) -> int:
    data = json.dumps({"schema": json.dumps(schema)}).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    request = urllib.request.Request(f"{url}/subjects/{subject}/versions", data, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(json.loads(answer.read())["id"])


def test_a_registry_keeps_a_schema(registry: SchemaRegistryServer, topic_prefix: str) -> None:
    number = register(registry.url, f"{topic_prefix}-value", POINT)
    assert register(registry.url, f"{topic_prefix}-value", POINT) == number
    assert json.loads(get(f"{registry.url}/schemas/ids/{number}")["schema"]) == POINT


@pytest.mark.slow
@pytest.mark.usefixtures("registry")
def test_a_registry_on_disk_keeps_schemas_over_a_kill() -> None:
    with SchemaRegistryServer(keep=True) as mine:
        number = register(mine.url, "points-value", POINT)
        mine.kill()
        mine.start()
        assert get(f"{mine.url}/subjects") == ["points-value"]
        assert json.loads(get(f"{mine.url}/schemas/ids/{number}")["schema"]) == POINT


# -- machines without Java --------------------------------------------------------------------------------------------


def test_without_java_the_tests_skip_and_say_why(tmp_path: Path) -> None:
    chosen = "a_broker_takes_and_gives or a_registry_keeps"
    command = [sys.executable, "-m", "pytest", __file__, "-k", chosen, "-vv", "-rs", "-p", "no:cacheprovider"]
    command += ["-n", "1", "--dist", "loadgroup"]
    environment = {**os.environ, "PATH": str(tmp_path), "HEADRACE_CACHE": str(tmp_path)}
    environment.pop("JAVA_HOME", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 skipped" in done.stdout
    assert "there is no Java on PATH" in done.stdout
    # They would have run in one worker: xdist knows their group, whichever pytest it works with.
    assert "test_a_broker_takes_and_gives_messages@kafka" in done.stdout


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ('openjdk version "11.0.22" 2024-01-16', "is Java 11"),
        ('java version "1.8.0_402"', "is Java 8"),
        ("Error: could not find libjava.so", "says nothing useful"),
    ],
)
def test_a_java_that_is_of_no_use_is_refused(
    says: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match=message):
        java()


def test_an_import_of_the_servers_brings_no_client() -> None:
    code = "import headrace.testing, headrace.testing.servers, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {"confluent_kafka", "fastavro"} & set(done.stdout.split())


def test_a_temporary_postgresql_is_captured_and_leaves_nothing(tmp_path: Path) -> None:
    server = hr.temporary_postgres()
    with server:
        assert repr(server) == f"PostgresServer({server.dsn})"
        server.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        with server.connect() as connection:
            connection.execute("INSERT INTO orders VALUES (1)")
        app = hr.App("shop", log=tmp_path / "shop.headrace")
        orders = app.postgres(server.dsn, tables=r"public\.orders")["public.orders"]
        with app.start() as running:
            running.wait()
            assert orders.read().to_arrow().column("id").to_pylist() == [1]
    assert not server.directory.exists()
    with pytest.raises(psycopg.OperationalError):
        server.execute("SELECT 1")
    server.remove()  # once more, as at the end of the program
