"""A Quix Streams application that joins predictions with labels and averages their error. Imports nothing from here.

`python grade_quix.py BOOTSTRAP PAIRS` prints the seconds from the first message to the last pair that
went into its window, and how many windows have ended.

Both topics hold JSON under the row's id, with the event time as the message's. They meet in Quix's own interval join.
Its windows are of a key, so one over all rows needs `group_by`, which leads through a topic of the cluster, as its
documentation has it. Settings are the defaults, but for the consumer's, which make librdkafka fast.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import uuid
from datetime import timedelta
from typing import Any

from quixstreams import Application
from quixstreams.dataframe.windows.aggregations import Mean

WITHIN = timedelta(minutes=1)


class Clock:
    """Times of the first message and of the last pair."""

    def __init__(self, app: Any, pairs: int) -> None:
        self.app, self.pairs = app, pairs
        self.first = self.last = 0.0
        self.count = self.windows = 0

    def begin(self, _: Any) -> None:
        self.first = self.first or time.perf_counter()

    def window(self, _: Any) -> None:
        self.windows += 1

    def pair(self, _: Any) -> None:
        self.count += 1
        if self.count == self.pairs:
            self.last = time.perf_counter()
            self.app.stop()


def main(bootstrap: str, pairs: int, state: str) -> None:
    app = Application(
        bootstrap,
        consumer_group=f"quix-{uuid.uuid4()}",
        auto_offset_reset="earliest",
        state_dir=state,
        loglevel=logging.WARNING,
        consumer_extra_config={"queued.min.messages": 1_000_000, "fetch.queue.backoff.ms": 5},
    )
    clock = Clock(app, pairs)
    left = app.dataframe(app.topic("measured", value_deserializer="json", key_deserializer="str"))
    right = app.dataframe(app.topic("weighed", value_deserializer="json", key_deserializer="str"))
    left = left.update(clock.begin)
    right = right.update(clock.begin)
    graded = left.join_interval(
        right,
        on_merge=lambda a, b: {**a, "y": b["y"], "error": abs(a["prediction"] - b["y"])},
        grace_ms=WITHIN,
        backward_ms=WITHIN,
        forward_ms=WITHIN,
    )
    graded = graded.group_by(lambda row: "all", name="all", key_serializer="str", key_deserializer="str")
    graded = graded.update(clock.pair)
    # The two topics are not read in one order: a window waits for what is behind.
    windows = graded.tumbling_window(timedelta(minutes=1), grace_ms=WITHIN).agg(error=Mean("error")).final()
    windows.update(clock.window)
    app.run(timeout=60)
    assert clock.count == pairs, f"{clock.count} of {pairs} pairs"
    print(clock.last - clock.first, clock.windows)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(sys.argv[1], int(sys.argv[2]), directory)
