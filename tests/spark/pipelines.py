"""Pipelines whose models are slow enough to be sent away, and a program that runs one.

The program is `python -c PROGRAM LOG NAME TOPIC ENGINE [MASTER]`: it catches up and ends. Cuts are by rows of one topic
in one partition, so that what is learned depends on its order alone.
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


def build(log: str, name: str, topic: str = "points", *, every: int = 512) -> hr.App:
    """Each row is predicted by the model before the cut that holds it."""
    app = hr.App(name, log=log)
    model = app.model("species", Slow(k=3, initial_centers=CENTERS, decay=0.5), features=["x", "y"])
    points = app.topic(topic)
    model.learn(points, every=every)
    model.predict(points).to(f"{name}-out")
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


def main() -> None:
    """Run a pipeline as the arguments say."""
    log, name, topic, engine, *master = sys.argv[1:]
    options: dict[str, Any] = {"engine": engine, "master": master[0]} if master else {}
    build(log, name, topic).run(until="caught-up", **options)
