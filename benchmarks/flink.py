"""Pipelines on Flink in a mini cluster: what parallelism gains; against `local`, and against Flink's usual Python.

Each case is timed in its steady state, from a tenth of the rows to the last one, by the commits of the log. Needs
apache-flink, Java and the connector's jar: ``make .venv-flink/.installed jars``, then
``.venv-flink/bin/python -m benchmarks flink``.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr
from headrace.testing.servers import KafkaBroker

FEATURES = ["a", "b", "c", "d"]
CENTERS = [[-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
PARTITIONS = 4
SECONDS = 900.0
TURNS = 10_000  # 300 microseconds a row, or more
WAIT_S = 0.05  # a block
LATENCIES = 50


class Computing:
    """A model that computes for each row, in Python."""

    deterministic, classes, ready = True, None, True

    def __init__(self, turns: int = TURNS) -> None:
        self.turns = turns

    def learn(self, X: npt.NDArray[Any], y: npt.NDArray[Any] | None = None) -> None:
        """Learn nothing."""

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn each row's sum over and over."""
        found = np.empty(len(X))
        for i, row in enumerate(X):
            value = float(row.sum())
            for _ in range(self.turns):
                value = math.sin(value)
            found[i] = value
        return found

    def parameters(self) -> dict[str, Any]:
        """Return how it was made."""
        return {"turns": self.turns}

    def state(self) -> dict[str, Any]:
        """Return nothing that changes."""
        return {"turns": self.turns}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` has given."""
        self.turns = state["turns"]


class Waiting(Computing):
    """A model that waits for each block, as one that asks another server."""

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Wait, and return each row's sum."""
        time.sleep(WAIT_S)
        return np.asarray(X.sum(axis=1))


def run(rows: int) -> list[dict[str, Any]]:
    """Return the figures; ``rows`` are those of the cheap model, the others take a fraction of them."""
    dear, waits = max(8_192, rows // 40), max(4_096, rows // 20)
    with KafkaBroker() as broker:
        for topic, count in (("cheap", rows), ("dear", dear), ("waits", waits)):
            broker.create_topic(topic, PARTITIONS)
            produce(broker, topic, count)
        broker.create_topic("one")
        return [
            spread(broker, "computes", "dear", dear, Computing(), 2, 1.6),
            spread(broker, "waits 50 ms a block", "waits", waits, Waiting(), 4, 3.3),
            against_local(broker, rows),
            against_datastream(broker, rows),
            latency(broker),
            *width(broker, max(100_000, rows // 5)),
        ]


def produce(broker: KafkaBroker, topic: str, rows: int, first: int = 0, *, partitions: int = PARTITIONS) -> None:
    """Write rows of four numbers."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 20 if rows > 1 else 0})
    values = np.random.default_rng(first).normal(size=(rows, 4)).round(3).tolist()
    for number, row in enumerate(values, first):
        value = json.dumps({"id": number, **dict(zip(FEATURES, row, strict=True))})
        producer.produce(topic, value.encode(), partition=number % partitions if rows > 1 else 0)
        if number % 10_000 == 0:
            producer.poll(0)
    assert producer.flush(300) == 0


def app_of(
    broker: KafkaBroker, name: str, topic: str, learner: Any, every: int | None = None, *, models: int = 1
) -> hr.App:
    """Return a pipeline that predicts a topic, and learns it where ``every`` says so."""
    app = hr.App(name, log=f"kafka://{broker.bootstrap}")
    rows = app.topic(topic)
    for number in range(models):
        model = app.model(f"m{number or ''}", copy.deepcopy(learner), features=FEATURES)
        if every is not None:
            model.learn(rows, every=every)
        model.predict(rows).to(f"{name}-out{number or ''}")
    return app


def steady(running: Any, rows: int) -> float:
    """Rows a second, from a tenth of them on."""
    begun: tuple[float, int] | None = None
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done = running["m"].counters.get("predicted", 0)
        if begun is None and done >= rows // 10:
            begun = time.perf_counter(), done
        if done >= rows:
            assert begun is not None and done > begun[1], f"{done} of {rows} rows came at once: take more"
            return (done - begun[1]) / (time.perf_counter() - begun[0])
        time.sleep(0.005)
    raise AssertionError(f"{done} of {rows} rows in {SECONDS:.0f} s: {running.status}")


def on_flink(app: hr.App, rows: int, parallelism: int = 1) -> float:
    """Rows a second on Flink."""
    with app.start(engine="flink", workers=parallelism) as running:
        return steady(running, rows)


def spread(
    broker: KafkaBroker, name: str, topic: str, rows: int, learner: Any, parallelism: int, target: float
) -> dict[str, Any]:
    """Compare a parallelism with none."""
    alone = on_flink(app_of(broker, f"{topic}-1", topic, learner), rows)
    several = on_flink(app_of(broker, f"{topic}-{parallelism}", topic, learner), rows, parallelism)
    return figure(f"{name}: parallelism {parallelism} : 1", alone, several, target, rows)


def against_local(broker: KafkaBroker, rows: int) -> dict[str, Any]:
    """Compare with `local` on the same log of Kafka."""
    with app_of(broker, "cheap-local", "cheap", hr.KMeans(k=3, initial_centers=CENTERS), 32).start() as running:
        local = steady(running, rows)
    ours = on_flink(app_of(broker, "cheap-flink", "cheap", hr.KMeans(k=3, initial_centers=CENTERS), 32), rows)
    return figure("k-means, every=32: flink : local", local, ours, 0.6, rows)


def against_datastream(broker: KafkaBroker, rows: int) -> dict[str, Any]:
    """Compare with a function of PyFlink's DataStream that is called for each row: it decodes, predicts and learns."""
    some = max(20_000, rows // 10)
    reference = datastream(broker, some)
    ours = on_flink(app_of(broker, "cheap-again", "cheap", hr.KMeans(k=3, initial_centers=CENTERS), 32), rows)
    return figure("k-means, every=32: flink : DataStream per row", reference, ours, 4.0, rows)


def datastream(broker: KafkaBroker, rows: int) -> float:
    """Rows a second of Flink's usual Python: a `map` over single rows, in a process, with its default bundles.

    From Kafka to Kafka, at least once. It is timed by what has come into its topic.
    """
    from confluent_kafka import Consumer, TopicPartition
    from pyflink.common import Configuration, Types, WatermarkStrategy
    from pyflink.common.serialization import SimpleStringSchema
    from pyflink.datastream import StreamExecutionEnvironment
    from pyflink.datastream.connectors.kafka import (
        KafkaOffsetsInitializer,
        KafkaRecordSerializationSchema,
        KafkaSink,
        KafkaSource,
    )

    from headrace.engines.flink.graph import HOME
    from headrace.engines.flink.jars import job_jars

    options = Configuration()
    jars = job_jars({}, [HOME / "lib"])
    options.set_string("pipeline.jars", ";".join(f"file://{jar}" for jar in jars))
    options.set_string("parallelism.default", "1")
    options.set_string("python.executable", sys.executable)
    env = StreamExecutionEnvironment.get_execution_environment(options)
    source = (
        KafkaSource.builder()
        .set_bootstrap_servers(broker.bootstrap)
        .set_topics("cheap")
        .set_group_id("datastream")
        .set_starting_offsets(KafkaOffsetsInitializer.earliest())
        .set_value_only_deserializer(SimpleStringSchema())
        .build()
    )
    topic = "datastream-out"
    broker.create_topic(topic)
    records = KafkaRecordSerializationSchema.builder().set_topic(topic)
    serializer = records.set_value_serialization_schema(SimpleStringSchema()).build()
    sink = KafkaSink.builder().set_bootstrap_servers(broker.bootstrap).set_record_serializer(serializer).build()
    centers = np.array(CENTERS)

    def predict(text: str) -> str:
        row = json.loads(text)
        point = np.array([row[name] for name in FEATURES])
        nearest = int(((centers - point) ** 2).sum(axis=1).argmin())
        centers[nearest] += (point - centers[nearest]) * 0.001
        return json.dumps({**row, "prediction": nearest})

    rows_in = env.from_source(source, WatermarkStrategy.no_watermarks(), "rows")
    rows_in.map(predict, output_type=Types.STRING()).sink_to(sink)
    job = env.execute_async("datastream")
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "ends"})
    begun: tuple[float, int] | None = None
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        _, done = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=30)
        if begun is None and done >= rows // 10:
            begun = time.perf_counter(), done
        if begun is not None and done >= rows:
            rate: float = (done - begun[1]) / (time.perf_counter() - begun[0])
            break
        time.sleep(0.01)
    else:
        raise AssertionError(f"{done} of {rows} rows in {SECONDS:.0f} s")
    job.cancel().result()
    consumer.close()
    return rate


def width(broker: KafkaBroker, rows: int) -> list[dict[str, Any]]:
    """Compare a row's cost where there are many partitions, and many models, with one."""
    for topic, partitions in (("single", 1), ("hundred", 100)):
        broker.create_topic(topic, partitions)
        produce(broker, topic, rows, partitions=partitions)
    learner = hr.KMeans(k=3, initial_centers=CENTERS)
    one = on_flink(app_of(broker, "w1", "single", learner, 32), rows)
    spread = on_flink(app_of(broker, "w100", "hundred", learner, 32), rows)
    models = on_flink(app_of(broker, "w20", "single", learner, 32, models=20), rows)
    return [
        figure("a row of 100 partitions: of one", one, spread, 0.8, rows),
        figure("a row's prediction by 20 models: by one", one, 20 * models, 0.8, rows),
    ]


def latency(broker: KafkaBroker) -> dict[str, Any]:
    """Milliseconds from a row that is sent to its prediction, read as any consumer reads it."""

    def measured(name: str, start: Callable[[hr.App], Any]) -> float:
        app = app_of(broker, name, "one", Computing(1))
        with start(app) as running:
            produce(broker, "one", 1)
            running.wait(SECONDS)
            return statistics.median(one_by_one(broker, f"{name}-out"))

    local = measured("one-local", lambda app: app.start())
    checkpoints = {"execution.checkpointing.interval": "100 ms"}
    ours = measured("one-flink", lambda app: app.start(engine="flink", conf=checkpoints))
    found = figure("one row, p50: flink : local", local * 1e3, ours * 1e3, None, LATENCIES)
    found["details"]["target, ms"] = 350
    return {**found, "unit": "ms"}


def one_by_one(broker: KafkaBroker, topic: str) -> list[float]:
    """Seconds that each of some rows took."""
    from confluent_kafka import OFFSET_END, Consumer, TopicPartition

    settings = {"bootstrap.servers": broker.bootstrap, "group.id": "latency", "isolation.level": "read_committed"}
    consumer = Consumer({**settings, "fetch.wait.max.ms": 5, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, OFFSET_END)])
    consumer.poll(2.0)
    found = []
    for number in range(1, LATENCIES + 1):
        begun = time.perf_counter()
        produce(broker, "one", 1, number)
        while (message := consumer.poll(10.0)) is not None and json.loads(message.value())["id"] != number:
            continue
        assert message is not None, "no prediction came"
        found.append(time.perf_counter() - begun)
    consumer.close()
    return found


def figure(name: str, reference: float, ours: float, target: float | None, rows: int) -> dict[str, Any]:
    """Return one figure."""
    found: dict[str, Any] = {"name": name, "reference": reference, "ours": ours, "ratio": ours / reference}
    found |= {"unit": "rows/s", "details": {"rows": rows}}
    return found if target is None else {**found, "target": target}
