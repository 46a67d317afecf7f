"""Predictions written transactionally, a transaction every 100 ms, against a producer without transactions.

Both write the same messages with the same settings of librdkafka; ours through the log's own producer.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import pyarrow as pa

from benchmarks.kafka_profile import Sampler
from headrace.batch import Batch
from headrace.formats.base import Encoded
from headrace.formats.factory import format_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.producer import DELIVERY_MILLISECONDS, TransactionalProducer
from headrace.kafka.settings import KafkaLocation
from headrace.testing.servers import KafkaBroker

REPEATS = 3
CHUNK = 1_000
EVERY_S = 0.1


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """Messages a second, from the first to the last one durable."""
    messages = predictions(CHUNK)
    chunks = max(1, rows // CHUNK)
    reference, ours, commits = [], [], 0
    with KafkaBroker() as broker:
        _plainly(broker, "warm", messages, 20)
        for number in range(REPEATS):
            reference.append(_plainly(broker, f"plain{number}", messages, chunks))
            seconds, commits = _in_transactions(broker, f"transactions{number}", messages, chunks)
            ours.append(seconds)
        with Sampler(wanted=profile, threads="MainThread") as sampler:
            if profile:
                _in_transactions(broker, "profiled", messages, chunks)
    details = {"rows": chunks * CHUNK, "reference": "the same producer without transactions"}
    return [
        {
            "name": "kafka-transactions",
            "reference": chunks * CHUNK / statistics.median(reference),
            "ours": chunks * CHUNK / statistics.median(ours),
            "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
            "target": 0.7,
            "unit": "rows/s",
            "details": details | {"pairs": [reference, ours], "transactions": commits},
            "profile": sampler.text,
        }
    ]


def predictions(rows: int) -> Encoded:
    """Messages as a pipeline writes them for predicted rows of six columns."""
    numbers = range(rows)
    columns = {
        "id": pa.array(numbers, pa.int64()),
        "a": pa.array([i % 1000 for i in numbers], pa.int32()),
        **{name: pa.array([i / divisor for i in numbers]) for name, divisor in (("b", 2), ("c", 3), ("d", 7))},
        "prediction": pa.array([i % 3 for i in numbers], pa.int64()),
        "status": pa.array(["ok"] * rows),
        "model_version": pa.array([1] * rows, pa.int64()),
    }
    return format_for("json").encode("predicted", Batch.of(columns))


def _in_transactions(broker: KafkaBroker, name: str, messages: Encoded, chunks: int) -> tuple[float, int]:
    """Seconds, and the number of transactions."""
    broker.create_topic(name)
    place = KafkaLocation.parse(f"kafka://{broker.bootstrap}/{name}")
    producer = TransactionalProducer(place, Cluster(place), lambda line: None)
    started = begun = time.perf_counter()
    commits = 0
    for _ in range(chunks):
        producer.send(name, messages.keys, messages.values, messages.headers)
        if time.perf_counter() - begun >= EVERY_S:
            producer.commit()
            commits += 1
            begun = time.perf_counter()
    producer.commit()
    seconds = time.perf_counter() - started
    producer.close()
    return seconds, commits + 1


def _plainly(broker: KafkaBroker, name: str, messages: Encoded, chunks: int) -> float:
    from confluent_kafka import Producer

    broker.create_topic(name)
    place = KafkaLocation.parse(f"kafka://{broker.bootstrap}/{name}")
    producer = Producer(
        place.client(
            compression_type="lz4",
            enable_idempotence=True,
            message_timeout_ms=DELIVERY_MILLISECONDS,
            message_max_bytes=1_000_000_000,
            queue_buffering_max_messages=200_000,
            queue_buffering_max_kbytes=262_144,
            linger_ms=2,
            batch_size=1 << 20,
        )
    )
    rows = list(zip(messages.keys, messages.values, messages.headers, strict=True))
    started = time.perf_counter()
    for _ in range(chunks):
        for key, value, headers in rows:
            while True:
                try:
                    producer.produce(name, value, key, 0, headers=list(headers) or None)
                    break
                except BufferError:
                    producer.poll(0.05)
        producer.poll(0)
    assert producer.flush(60) == 0
    return time.perf_counter() - started
