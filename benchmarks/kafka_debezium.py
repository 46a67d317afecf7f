"""Topics as Debezium fills them: real messages of it, taken as patterns, written by librdkafka as often as wanted."""

from __future__ import annotations

import json
import math
import struct
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from typing import Any

from benchmarks import workload
from headrace.testing.servers import KafkaBroker, PostgresServer, avro_converters, debezium_source, kafka_connect

TABLE = "numbers"
COLUMNS = workload.NUMBERS.replace("id bigint", "id bigint primary key")
FLAT = {"transforms": "unwrap", "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState"}
# A connector that names no converter has the worker's, with the worker's settings.
NO_SCHEMAS = {
    f"{part}.converter{name}": value
    for part in ("key", "value")
    for name, value in {"": "org.apache.kafka.connect.json.JsonConverter", ".schemas.enable": "false"}.items()
}
PLAIN = "json"
ENVELOPE = "json+envelope+schema"
AVRO = "avro"
AVRO_ENVELOPE = "avro+envelope"

Message = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A message of Debezium for a row, and what is needed to write others like it.

    Attributes:
        kind: ``PLAIN``, ``ENVELOPE``, ``AVRO`` or ``AVRO_ENVELOPE``.
        key, value: as they came.
        schemas: in Avro those of key and value.
    """

    kind: str
    key: bytes
    value: bytes
    schemas: tuple[Any, ...] = ()

    def messages(self, start: int, rows: int) -> Iterator[Message]:
        """Key and value of rows ``start``, ``start + 1``, …"""
        make = {PLAIN: _plain, ENVELOPE: self._enveloped, AVRO: self._avro, AVRO_ENVELOPE: self._avro}[self.kind]
        return make(range(start, start + rows))

    def _enveloped(self, numbers: Iterable[int]) -> Iterator[Message]:
        key, value = json.loads(self.key), json.loads(self.value)
        key["payload"], value["payload"]["after"], value["payload"]["source"]["lsn"] = "@key", "@row", "@lsn"
        before, after = _dump(key).split('"@key"')
        head, rest = _dump(value).split('"@row"')
        middle, tail = rest.split('"@lsn"')
        for number, (bare, row) in zip(numbers, _plain(numbers), strict=True):
            text = f"{head}{row.decode()}{middle}{30_000_000 + 150 * number}{tail}"
            yield f"{before}{bare.decode()}{after}".encode(), text.encode()

    def _avro(self, numbers: Iterable[int]) -> Iterator[Message]:
        import fastavro

        schemas = [fastavro.parse_schema(schema) for schema in self.schemas]
        read: list[Any] = [
            fastavro.schemaless_reader(BytesIO(data[5:]), schema, None)
            for data, schema in zip((self.key, self.value), schemas, strict=True)
        ]
        key, value = read
        for number in numbers:
            row = _row(number)
            key["id"] = number
            if self.kind == AVRO_ENVELOPE:
                value["after"] = row
                value["source"]["lsn"] = 30_000_000 + 150 * number
            else:
                value = row
            made = []
            for start, schema, record in zip((self.key, self.value), schemas, (key, value), strict=True):
                buffer = BytesIO()
                buffer.write(start[:5])
                fastavro.schemaless_writer(buffer, schema, record)
                made.append(buffer.getvalue())
            yield made[0], made[1]


def _row(i: int) -> dict[str, float]:
    return {"id": i, "a": i % 1000, "b": i * 0.5, "c": math.sin(i), "d": math.cos(i), "e": i / 7}


def _plain(numbers: Iterable[int]) -> Iterator[Message]:
    for i in numbers:
        yield (
            b'{"id":%d}' % i,
            f'{{"id":{i},"a":{i % 1000},"b":{i * 0.5},"c":{math.sin(i)},"d":{math.cos(i)},"e":{i / 7}}}'.encode(),
        )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


PLAIN_PATTERN = Pattern(PLAIN, b'{"id":1}', next(_plain([1]))[1])


def patterns(broker: KafkaBroker, server: PostgresServer, registry: str) -> dict[str, Pattern]:
    """Messages that Debezium writes of one row, in each kind."""
    server.execute(f"create table {TABLE} ({COLUMNS})")
    server.execute(f"insert into {TABLE} select {workload.NUMBER_VALUES} from generate_series(1, 1) i")
    avro = avro_converters(registry)
    kinds = {PLAIN: FLAT | NO_SCHEMAS, ENVELOPE: {}, AVRO: FLAT | avro, AVRO_ENVELOPE: avro}
    found = {}
    with kafka_connect(broker.bootstrap, ("debezium-postgres", "avro")) as connect:
        for number, (kind, settings) in enumerate(kinds.items()):
            prefix = f"pattern{number}"
            config = debezium_source(server, prefix=prefix, tables=f"public.{TABLE}", slot=prefix)
            connect.create(prefix, config | settings)
            key, value = first_message(broker.bootstrap, f"{prefix}.public.{TABLE}")
            connect.delete(prefix)
            schemas = (_schema(registry, key), _schema(registry, value)) if "avro" in kind else ()
            found[kind] = Pattern(kind, key, value, schemas)
    # What the other benchmarks write without Debezium is what it writes.
    assert json.loads(found[PLAIN].value) == json.loads(PLAIN_PATTERN.value), found[PLAIN].value
    return found


def _schema(registry: str, data: bytes) -> Any:
    (number,) = struct.unpack(">I", data[1:5])
    with urllib.request.urlopen(f"{registry}/schemas/ids/{number}", timeout=30) as answer:
        return json.loads(json.loads(answer.read())["schema"])


def first_message(bootstrap: str, topic: str, *, timeout: float = 90) -> Message:
    """Key and value of a topic's first message; waits for it."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "first", "topic.metadata.refresh.interval.ms": 200}
    )
    try:
        wait_until(lambda: topic in consumer.list_topics(timeout=10).topics, f"the topic {topic}", timeout=timeout)
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(timeout)
        assert message is not None and message.error() is None, f"no message in {topic}: {message and message.error()}"
        return message.key(), message.value()
    finally:
        consumer.close()


def wait_until(condition: Callable[[], bool], what: str, *, timeout: float = 60) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {timeout:.0f} s")
        time.sleep(0.02)


def fill(broker: KafkaBroker, topic: str, pattern: Pattern, rows: int, *, start: int = 0) -> None:
    """Write rows to a topic, made when it is not there, from a process of its own: its memory is none of ours."""
    if topic not in broker.admin().list_topics(timeout=10).topics:
        broker.create_topic(topic, config={"compression.type": "lz4", "max.message.bytes": "16777216"})
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_produce, broker.bootstrap, topic, pattern, start, rows).result()


def _produce(bootstrap: str, topic: str, pattern: Pattern, start: int, rows: int) -> None:
    from confluent_kafka import Producer

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "compression.type": "lz4",
            "linger.ms": 50,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 200_000,
            "queue.buffering.max.kbytes": 262_144,
        }
    )
    failed: list[Any] = []

    def report(error: Any, _: Any) -> None:
        if error is not None:
            failed.append(error)

    messages = pattern.messages(start, rows)
    while chunk := list(islice(messages, 10_000)):
        for key, value in chunk:
            while True:
                try:
                    producer.produce(topic, value, key, partition=0, on_delivery=report)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(120) == 0 and not failed, failed[:1]
