"""Capture of PostgreSQL into Kafka as flattened JSON, against Debezium in Kafka Connect, into the same broker.

Each is up and has captured rows before; then rows are inserted in transactions of 1,000, and the clock runs from the
first insert until a consumer has read the last message. The two take turns: while one captures the other is away.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import headrace as hr
from benchmarks import workload
from benchmarks.kafka_consumer import Reader, count
from benchmarks.kafka_debezium import COLUMNS, FLAT, NO_SCHEMAS, first_message, wait_until
from benchmarks.kafka_profile import Sampler
from headrace.testing.servers import (
    KafkaBroker,
    KafkaConnect,
    PostgresServer,
    debezium_source,
    kafka_connect,
    postgres,
)

REPEATS = 3
WARM = 20_000
# Larger batches and queues than its defaults (2,048 and 8,192), no waiting, and a producer that fills its batches.
TUNED = {
    "max.batch.size": "16384",
    "max.queue.size": "65536",
    "poll.interval.ms": "10",
    "producer.override.batch.size": "1048576",
    "producer.override.linger.ms": "5",
    "producer.override.buffer.memory": "134217728",
    "producer.override.compression.type": "lz4",
}


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """Rows a second from the first insert to the last message read."""
    settings = {"max_wal_size": "8GB", "checkpoint_timeout": "1h"}
    with (
        postgres(settings=settings) as server,
        KafkaBroker() as broker,
        kafka_connect(broker.bootstrap, ("debezium-postgres",), heap="1g") as connect,
    ):
        server.execute(f"create table alone ({COLUMNS})")
        inserting = _fill(server, "alone", rows, start=0)
        reference, ours = [], []
        sampler = Sampler(wanted=False)
        for number in range(REPEATS):
            table = f"rows{number}"
            server.execute(f"create table {table} ({COLUMNS})")
            sampler = Sampler(wanted=profile and number == REPEATS - 1)
            ours.append(_ours(server, broker, table, rows, sampler))
            reference.append(_debezium(server, broker, connect, table, rows))
    details = {"rows": rows, "reference": "Debezium in Kafka Connect, tuned", "pairs": [reference, ours]}
    details["inserting alone, s"] = inserting
    return [
        {
            "name": "kafka-capture",
            "reference": rows / statistics.median(reference),
            "ours": rows / statistics.median(ours),
            "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
            "target": 3.0,
            "unit": "rows/s",
            "details": details,
            "profile": sampler.text,
        }
    ]


def _fill(server: PostgresServer, table: str, rows: int, *, start: int) -> float:
    before = time.monotonic()
    workload.fill(server, table, workload.NUMBER_VALUES, rows, start=start)
    return time.monotonic() - before


def _ours(server: PostgresServer, broker: KafkaBroker, table: str, rows: int, sampler: Sampler) -> float:
    app = hr.App(f"ours-{table}", log=f"kafka://{broker.bootstrap}", format="json")
    app.postgres(server.dsn, tables=rf"public\.{table}", prefix="ours", allow_failing_updates=True)
    topic = f"ours.public.{table}"
    with app.start() as running:
        running.wait(60)
        workload.fill(server, table, workload.NUMBER_VALUES, WARM)
        running.wait(60)
        with sampler:
            seconds = _captured(server, broker, topic, table, rows, start=WARM)
    drop_slots(server)
    return seconds


def _debezium(server: PostgresServer, broker: KafkaBroker, connect: KafkaConnect, table: str, rows: int) -> float:
    name = f"debezium{table}"
    config = debezium_source(server, prefix="debezium", tables=f"public.{table}", slot=name)
    connect.create(name, config | FLAT | NO_SCHEMAS | TUNED | {"snapshot.mode": "no_data"})
    connect.wait_running(name)
    wait_until(lambda: streams(server, name), f"Debezium's slot «{name}»")
    topic = f"debezium.public.{table}"
    start = WARM + rows
    workload.fill(server, table, workload.NUMBER_VALUES, WARM, start=start)
    first_message(broker.bootstrap, topic)
    wait_until(lambda: _messages(broker, topic) >= WARM, "Debezium's first messages")
    seconds = _captured(server, broker, topic, table, rows, start=start + WARM)
    connect.delete(name)
    wait_until(lambda: not streams(server, name), f"the end of Debezium's slot «{name}»")
    drop_slots(server)
    return seconds


def _captured(server: PostgresServer, broker: KafkaBroker, topic: str, table: str, rows: int, *, start: int) -> float:
    reader = Reader(count, broker.bootstrap, topic, rows)
    before = time.monotonic()
    _fill(server, table, rows, start=start)
    _, last = reader.finish()
    return float(last - before)


def _messages(broker: KafkaBroker, topic: str) -> int:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "ends"})
    try:
        return int(consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)[1])
    finally:
        consumer.close()


def streams(server: PostgresServer, slot: str) -> bool:
    """Return whether somebody reads a slot."""
    found = server.execute("select active from pg_replication_slots where slot_name = %s", slot)
    return bool(found and found[0][0])


def drop_slots(server: PostgresServer) -> None:
    """A slot that nobody reads holds the write-ahead log back."""
    for (slot,) in server.execute("select slot_name from pg_replication_slots where not active"):
        server.execute("select pg_drop_replication_slot(%s)", slot)
