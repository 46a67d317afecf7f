"""A pipeline with a model that is slow enough to be sent away and one whose rows stay away, and a program that runs it.

The program is `python -c PROGRAM LOG NAME PREFIX ENGINE [MASTER [CONF]]`: it catches up and ends. Cuts are by rows of
one topic in one partition, and the cheap model has learned before its rows come: so what comes out depends on the order
of each topic alone, whatever arrives together.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

import headrace as hr
from headrace.testing.servers import KafkaBroker

Array = npt.NDArray[Any]
CENTERS = [[0.0, 0.0], [5.0, 5.0], [9.0, 1.0]]
PROGRAM = "from tests.spark.pipelines import main; main()"
STRIKES = "HEADRACE_TEST_STRIKES"
"""Names a directory: a worker that finds a file in it takes it away, and does what its name says."""


class Slow(hr.KMeans):
    """Waits a millisecond for each row that it predicts; in a worker of Spark's it may be struck, once."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.strikes = os.environ.get(STRIKES, "")

    def predict(self, X: Array) -> Array:
        strike(self.strikes)
        time.sleep(0.001 * len(X))
        return super().predict(X)


def strike(folder: str) -> None:
    """In a worker of Spark's: die, fail or take long, as often as there are files that say so."""
    if not folder or "pyspark.worker" not in sys.modules:
        return
    for name in ("kill", "fail", "sleep"):
        try:
            (Path(folder) / name).unlink()
        except FileNotFoundError:
            continue
        if name == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "sleep":
            time.sleep(20)
        if name == "fail":
            raise MemoryError("once")


def build(log: str, name: str, prefix: str) -> hr.App:
    """Declare both models: «species» predicts each row before the cut that holds it, «cheap» rows of another topic."""
    app = hr.App(name, log=log)
    slow = app.model("species", Slow(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    points = app.topic(f"{prefix}-points")
    slow.learn(points, every=512)
    slow.predict(points).to(f"{name}-out")
    cheap = app.model("cheap", hr.KMeans(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    cheap.learn(app.topic(f"{prefix}-train"), every=32)
    cheap.predict(app.topic(f"{prefix}-test")).to(f"{name}-cheap")
    return app


def send(bootstrap: str, topic: str, first: int, count: int) -> None:
    """Send some points; one in fifty has no «y»."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 0})
    chance = np.random.default_rng(first)
    for number, (x, y) in enumerate(chance.normal(4, 3, (count, 2)).tolist(), first):
        value = {"id": number, "x": x, "y": None if number % 50 == 7 else y}
        producer.produce(topic, json.dumps(value).encode())
        producer.poll(0)
    assert producer.flush(60) == 0


def prepare(broker: KafkaBroker, prefix: str) -> str:
    """Make topics of two pipelines, PREFIX-l and PREFIX-s, whose «cheap» has learned all that comes."""
    for name in ("points", "train", "test"):
        broker.create_topic(f"{prefix}-{name}")
    for names in (("train",), ("points", "test")):
        for name in names:
            send(broker.bootstrap, f"{prefix}-{name}", 0, 1000 if name == "train" else 10)
        for app in ("l", "s"):
            with build(f"kafka://{broker.bootstrap}", f"{prefix}-{app}", prefix).start() as running:
                running.wait(60)
    return prefix


def main() -> None:
    """Run the pipeline as the arguments say."""
    log, name, prefix, engine, *more = sys.argv[1:]
    options: dict[str, Any] = {"engine": engine}
    if more:
        options["master"] = more[0]
    if more[1:]:
        options["conf"] = json.loads(more[1])
    build(log, name, prefix).run(until="caught-up", **options)
