"""What `benchmarks.spark` measures, in a process of its own: one pipeline, or Spark's own way, once."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Producer, TopicPartition

import headrace as hr
from benchmarks.spark import LEARNED_BEFORE

Array = npt.NDArray[Any]
CENTERS = [[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 5.0, 5.0], [9.0, 1.0, 9.0, 1.0]]
FEATURES = ["a", "b", "c", "d"]
COMPUTED_S = 300e-6
WAITED_S = 0.05
BLOCK = 64
TASKS = 8


class Computes(hr.KMeans):
    """Computes for 300 microseconds a row."""

    def predict(self, X: Array) -> Array:
        end = time.thread_time() + COMPUTED_S * len(X)
        while time.thread_time() < end:
            pass
        return super().predict(X)


class Waits(hr.KMeans):
    """Waits for 50 ms a block, as for a service."""

    def predict(self, X: Array) -> Array:
        time.sleep(WAITED_S * -(-len(X) // BLOCK))
        return super().predict(X)


KINDS: dict[str, Any] = {"computes": Computes, "waits": Waits, "cheap": hr.KMeans, "one": hr.KMeans}


def build(bootstrap: str, name: str, prefix: str, kind: str) -> hr.App:
    app = hr.App(name, log=f"kafka://{bootstrap}")
    model = app.model("species", KINDS[kind](k=3, initial_centers=CENTERS, decay=0.5), features=FEATURES)
    model.learn(app.topic(f"{prefix}-train"), every=32)
    model.predict(app.topic(f"{prefix}-test")).to(f"{name}-out")
    return app


def options(engine: str) -> dict[str, Any]:
    if engine == "local":
        return {}
    if engine.startswith("workers="):
        return {"workers": int(engine.partition("=")[2])}
    return {"engine": "spark", "master": engine, "conf": {"spark.ui.enabled": "false"}}


def main() -> None:
    bootstrap, name, prefix, kind, engine, rows = sys.argv[1:]
    if engine == "usual":
        from benchmarks.spark_usual import usual

        print(json.dumps(usual(bootstrap, prefix, int(rows))))
        return
    app = build(bootstrap, name, prefix, kind)
    with app.start(**options(engine)) as running:
        found = one(running, bootstrap, name, prefix) if kind == "one" else steady(running, int(rows))
    print(json.dumps(found))


def steady(running: Any, rows: int) -> dict[str, Any]:
    """Rows a second from a tenth of the rows on, to the commit of the last one; and this process's CPU for a row."""
    counters = running["species"]
    warm = 0 if rows < 50_000 else rows // 10
    while counters.counters.get("predicted", 0) <= warm:
        _alive(running)
    first, begun, cpu = counters.counters["predicted"], time.monotonic(), time.process_time()
    while counters.counters["predicted"] < rows:
        _alive(running)
    seconds, done = time.monotonic() - begun, rows - first
    if done <= 0:
        raise SystemExit(f"{rows} rows came in one commit: take more")
    return {"rows_s": done / seconds, "cpu_us": 1e6 * (time.process_time() - cpu) / done, "seconds": seconds}


def _alive(running: Any) -> None:
    time.sleep(0.002)
    if not running.alive:
        running.stop()
        raise SystemExit("the pipeline has ended")


def one(running: Any, bootstrap: str, name: str, prefix: str) -> dict[str, Any]:
    """How long one row takes, from being sent to its prediction being read by a consumer of committed messages."""
    running.wait(120)
    topic = f"{name}-out"
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed"})
    end = consumer.get_watermark_offsets(TopicPartition(topic, 0), 10)[1]
    consumer.assign([TopicPartition(topic, 0, end)])
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    found = []
    for number in range(60):
        begun = time.perf_counter()
        producer.produce(f"{prefix}-test", b'{"id":%d,"a":1.0,"b":1.0,"c":1.0,"d":1.0}' % (LEARNED_BEFORE + number))
        producer.flush(10)
        while (message := consumer.poll(1.0)) is None or message.error() is not None:
            pass
        found.append(1000 * (time.perf_counter() - begun))
    return {"p50_ms": statistics.median(found[10:]), "p95_ms": float(np.percentile(found[10:], 95))}
