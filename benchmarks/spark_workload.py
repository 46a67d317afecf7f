"""What `benchmarks.spark` measures, in a process of its own: one pipeline, or Spark's own way, once."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Producer, TopicPartition

import headrace as hr
from benchmarks.spark import LEARNED_BEFORE
from headrace.registry.versions import VersionList

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
    """Declare a pipeline; ``cheap*20`` has twenty models."""
    app = hr.App(name, log=f"kafka://{bootstrap}")
    if kind == "training":
        first = Path(tempfile.mkdtemp()) / "first.csv"
        first.write_text("a,b,c,d\n1,2,3,4\n2,3,5,1\n0,1,0,3\n4,4,1,1\n")
        model = app.model("species", hr.LinearRegression(), features=FEATURES[:3], target="d", initial=hr.csv(first))
        model.predict(app.topic(f"{prefix}-train")).to(f"{name}-out")
        model.retrain(rows=app.topic(f"{prefix}-test").all(), swap="when_ready")
        return app
    kind, _, models = kind.partition("*")
    for number in range(int(models or 1)):
        learner = KINDS[kind](k=3, initial_centers=CENTERS, decay=0.5)
        model = app.model(f"species{number or ''}", learner, features=FEATURES)
        model.learn(app.topic(f"{prefix}-train"), every=32)
        model.predict(app.topic(f"{prefix}-test")).to(f"{name}-out{number or ''}")
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
        if kind == "training":
            found = training(running, bootstrap, name, prefix, int(rows))
        else:
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
    rows = OneByOne(bootstrap, f"{prefix}-test", f"{name}-out")
    found = [rows.milliseconds() for _ in range(60)]
    return {"p50_ms": statistics.median(found[10:]), "p95_ms": float(np.percentile(found[10:], 95))}


def training(running: Any, bootstrap: str, name: str, prefix: str, rows: int) -> dict[str, Any]:
    """How long rows wait for their predictions while the model is trained on all rows of a topic."""
    running.wait(600)
    some = OneByOne(bootstrap, f"{prefix}-train", f"{name}-out")
    before = [some.milliseconds() for _ in range(60)][10:]
    begun, version, found = time.monotonic(), running["species"].version, []
    told = running.retrain("species", timeout=600)
    assert told["status"] == "started", told
    while running["species"].version == version:
        found.append(some.milliseconds())
        _alive(running)
    seconds = time.monotonic() - begun
    current = VersionList.read(running.log, "species").current
    assert current is not None and current.training["rows"] >= rows, current
    return {
        "training_ms": 1000 * seconds,
        "before_ms": statistics.median(before),
        "during_ms": statistics.median(found),
        "longest_ms": max(found),
        "rows": len(found),
    }


class OneByOne:
    """Sends a row, and waits for its prediction."""

    def __init__(self, bootstrap: str, topic: str, output: str) -> None:
        settings = {"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed"}
        self._consumer = Consumer(settings)
        end = self._consumer.get_watermark_offsets(TopicPartition(output, 0), 10)[1]
        self._consumer.assign([TopicPartition(output, 0, end)])
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._topic = topic
        self._number = LEARNED_BEFORE

    def milliseconds(self) -> float:
        begun = time.perf_counter()
        self._producer.produce(self._topic, b'{"id":%d,"a":1.0,"b":1.0,"c":1.0,"d":1.0}' % self._number)
        self._number += 1
        self._producer.flush(10)
        while (message := self._consumer.poll(1.0)) is None or message.error() is not None:
            pass
        return 1000 * (time.perf_counter() - begun)
