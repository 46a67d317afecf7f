"""A Quix Streams application that learns k-means from a topic. Runs in an environment of its own: imports nothing here.

`python kafka_quix.py BOOTSTRAP TOPIC ROWS CUT` prints the seconds from the first message to the last. CUT is how many
rows are learned at once: 1 is an update for each message.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import uuid
from typing import Any

import numpy as np
from quixstreams import Application

FEATURES = ("b", "c", "d", "e")


class KMeans:
    """Running means of the rows nearest to each centre."""

    def __init__(self, cut: int) -> None:
        self.cut = cut
        self.centers = np.arange(3.0)[:, None] * np.ones(len(FEATURES))
        self.weights = np.zeros(3)
        self.rows: list[list[float]] = []
        self.count = 0
        self.first = self.last = 0.0

    def learn(self, row: dict[str, float]) -> None:
        if not self.count:
            self.first = time.perf_counter()
        self.count += 1
        if self.cut == 1:
            x = np.array([row[name] for name in FEATURES])
            apart = self.centers - x
            nearest = np.einsum("kd,kd->k", apart, apart).argmin()
            self.weights[nearest] += 1
            self.centers[nearest] += (x - self.centers[nearest]) / self.weights[nearest]
        else:
            self.rows.append([row[name] for name in FEATURES])
            if len(self.rows) == self.cut:
                self._learn_rows()
        self.last = time.perf_counter()

    def _learn_rows(self) -> None:
        X = np.array(self.rows)
        self.rows = []
        nearest = ((X[:, None] - self.centers) ** 2).sum(axis=2).argmin(axis=1)
        for k in range(len(self.centers)):
            mine = X[nearest == k]
            if len(mine):
                self.weights[k] += len(mine)
                self.centers[k] += (mine.mean(axis=0) - self.centers[k]) * (len(mine) / self.weights[k])


def main(bootstrap: str, topic: str, rows: int, cut: int, state: str) -> None:
    app = Application(
        bootstrap,
        consumer_group=f"quix-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        auto_create_topics=False,
        state_dir=state,
        loglevel=logging.WARNING,
        consumer_extra_config={"queued.min.messages": 1_000_000, "fetch.queue.backoff.ms": 5},
    )
    model: Any = KMeans(cut)
    stream = app.dataframe(app.topic(topic, value_deserializer="json"))
    stream.update(model.learn)
    app.run(count=rows, timeout=600)
    assert model.count == rows, f"{model.count} of {rows}"
    print(model.last - model.first)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as state:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), state)
