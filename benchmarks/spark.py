"""The engine of Spark beside the local one, on the same topics: dear models, cheap rows, one row, Spark's own k-means.

Pipelines run in processes of their own and are timed by their own log: from the first commit of the run to the last, so
that the start of Python and of the JVM is in none of them ("warm, to the commit"). Everything is one run; what is
compared with what stands in each figure's name. What processes of this machine gain is `benchmarks workers`.

Run it by `.venv-spark/bin/python -m benchmarks spark`: it needs pyspark and Java.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer

from headrace.testing.servers import KafkaBroker

WORKLOAD = "from benchmarks.spark_workload import main; main()"
CHEAP_TRAIN = 20  # rows that are predicted for each that is learned
LEARNED_BEFORE = 2_000


def run(rows: int) -> list[dict[str, Any]]:
    """Return the figures; ``rows`` are those of the cheap model, the expensive ones get a hundredth."""
    dear = max(4_096, rows // 100)
    with KafkaBroker() as broker:
        work = Workloads(broker)
        return [
            work.compared(
                "expensive, computed: local[2] against local[1]", "computes", dear, ("local[2]", "local[1]"), 1.6
            ),
            work.compared(
                "waits 50 ms a block: local[4] against local[1]", "waits", dear, ("local[4]", "local[1]"), 3.3
            ),
            *work.cheap(rows),
            work.one_row(),
            *work.width(max(100_000, rows // 5)),
            work.training(rows),
        ]


class Workloads:
    """Runs of one pipeline on different engines."""

    def __init__(self, broker: KafkaBroker) -> None:
        self.broker = broker
        self.number = 0

    def topics(self, rows: int, learned: int, partitions: int = 1) -> str:
        """Fill topics of their own; return their prefix."""
        self.number += 1
        prefix = f"bench{self.number}"
        for topic, count, first in ((f"{prefix}-train", LEARNED_BEFORE + learned, 0), (f"{prefix}-test", rows, 1)):
            self.broker.create_topic(topic, partitions if topic.endswith("-test") else 1)
            fill(self.broker.bootstrap, topic, count, first)
        return prefix

    def measure(self, prefix: str, kind: str, engine: str, rows: int) -> dict[str, Any]:
        """Run the pipeline once: rows a second, and the CPU seconds of its own process."""
        name = f"{prefix}-{kind}-{engine}".translate(str.maketrans("[]=*", "----"))
        command = [sys.executable, "-c", WORKLOAD, self.broker.bootstrap, name, prefix, kind, engine, str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=Path.cwd())
        if done.returncode:
            raise RuntimeError(f"{engine}: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def compared(self, name: str, kind: str, rows: int, engines: tuple[str, str], target: float) -> dict[str, Any]:
        """Compare two engines on a model that costs."""
        prefix = self.topics(rows, 0)
        ours, other = (self.measure(prefix, kind, engine, rows) for engine in engines)
        details = {"ours": ours, "other": other}
        return _figure(name, ours["rows_s"], other["rows_s"], "rows/s", details, target=target)

    def cheap(self, rows: int) -> list[dict[str, Any]]:
        """Compare a cheap model's steady state with `local` and Spark's own way, and what the driver spends on a row.

        Spark's own way is foreachBatch and StreamingKMeansModel, which is not exactly once.
        """
        prefix = self.topics(rows, rows // CHEAP_TRAIN)
        self.broker.create_topic(f"{prefix}-usual")
        spark, local, usual = (self.measure(prefix, "cheap", engine, rows) for engine in ("local[2]", "local", "usual"))
        details = {"spark": spark, "local": local, "usual": usual}
        return [
            _figure(
                "cheap model, steady: Spark against local",
                spark["rows_s"],
                local["rows_s"],
                "rows/s",
                details,
                target=0.5,
            ),
            _figure(
                "CPU of a cheap row: driver against local", spark["cpu_us"], local["cpu_us"], "us", details, at_most=0.5
            ),
            _figure(
                "cheap model, steady: Spark against foreachBatch with StreamingKMeansModel",
                spark["rows_s"],
                usual["rows_s"],
                "rows/s",
                details,
                target=5.0,
            ),
        ]

    def one_row(self) -> dict[str, Any]:
        """Compare how long one row takes until its prediction is readable."""
        prefix = self.topics(100, 0)
        spark, local = (self.measure(prefix, "one", engine, 100) for engine in ("local[2]", "local"))
        name = "one row, until its prediction is readable: Spark against local"
        details = {"spark": spark, "local": local}
        return _figure(name, spark["p50_ms"], local["p50_ms"], "ms", details, at_most=1.5)

    def width(self, rows: int) -> list[dict[str, Any]]:
        """Compare a row's cost where there are many partitions, and many models, with one."""
        narrow, wide = self.topics(rows, 0), self.topics(rows, 0, partitions=100)
        one = self.measure(narrow, "cheap", "local[2]", rows)
        hundred = self.measure(wide, "cheap", "local[2]", rows)
        models = self.measure(narrow, "cheap*20", "local[2]", rows)
        compared = (
            ("a row of 100 partitions: of one", hundred, hundred["rows_s"]),
            ("a row's prediction by 20 models: by one", models, 20 * models["rows_s"]),
        )
        return [
            _figure(name, rate, one["rows_s"], "rows/s", {"ours": ours, "one": one}, target=0.8)
            for name, ours, rate in compared
        ]

    def training(self, rows: int) -> dict[str, Any]:
        """Compare the longest wait for a prediction, while a model is trained on all rows, with that training."""
        found = self.measure(self.topics(rows, 0), "training", "local[2]", rows)
        name = "the longest wait for a prediction while a model is trained: the training"
        return _figure(name, found["longest_ms"], found["training_ms"], "ms", found, at_most=0.5)


def _figure(name: str, ours: float, other: float, unit: str, details: dict[str, Any], **limit: float) -> dict[str, Any]:
    """Return one figure; ``limit`` is the ``target`` that its ratio has to reach, or what it is ``at_most``."""
    ratio = ours / other if other else float("nan")
    return {"name": name, "ours": ours, "reference": other, "ratio": ratio, "unit": unit, "details": details, **limit}


def fill(bootstrap: str, topic: str, count: int, seed: int) -> None:
    """Send rows of four numbers."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "queue.buffering.max.messages": 1_000_000})
    values = np.random.default_rng(seed).normal(4, 3, (count, 4)).round(4).tolist()
    for number, (a, b, c, d) in enumerate(values):
        while True:
            try:
                producer.produce(topic, b'{"id":%d,"a":%r,"b":%r,"c":%r,"d":%r}' % (number, a, b, c, d))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0
