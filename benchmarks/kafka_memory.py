"""The resident set while 10,000,000 messages of a topic are learned: flat after the second million."""

from __future__ import annotations

import statistics
import time
from typing import Any

import psutil

import headrace as hr
from benchmarks.kafka_debezium import PLAIN_PATTERN, TABLE, fill
from benchmarks.kafka_profile import Sampler
from headrace.testing.servers import KafkaBroker

PARTS = 10
GROWTH = 1.10


def run(rows: int, *, profile: bool = False) -> list[dict[str, Any]]:
    """The resident set while the last tenth is learned against the one while the second was."""
    rows = max(1, rows // (1000 * PARTS)) * 1000 * PARTS
    with KafkaBroker() as broker:
        topic = f"memory.public.{TABLE}"
        fill(broker, topic, PLAIN_PATTERN, rows)
        app = hr.App("memory", log=f"kafka://{broker.bootstrap}")
        model = app.model("m", hr.KMeans(k=3, decay=1.0), features=["b", "c", "d", "e"])
        model.learn(app.debezium(prefix="memory")[f"public.{TABLE}"], every=1000)
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        with Sampler(wanted=profile) as sampler, app.start() as running:
            samples = _sample(running, rows)
            seconds = time.perf_counter() - started
            running.wait(600)
        size = sum(file.stat().st_size for file in (broker.directory / "data").glob(f"{topic}-0/*.log"))
    medians = [statistics.median(some) / 1e6 for some in samples]
    return [
        {
            "name": "kafka-memory",
            "reference": medians[1],
            "ours": medians[-1],
            "ratio": medians[-1] / medians[1],
            "at_most": GROWTH,
            "unit": "MB",
            "picture": _picture(samples, rows),
            "details": {
                "rows": rows,
                "reference": "while the second tenth was learned",
                "before": before / 1e6,
                "each tenth, MB: median and peak": [
                    (m, max(some) / 1e6) for m, some in zip(medians, samples, strict=True)
                ],
                "rows/s": rows / seconds,
                "topic on disk, MB": size / 1e6,
            },
            "profile": sampler.text,
        }
    ]


def _sample(running: Any, rows: int) -> list[list[int]]:
    """Resident sets of each tenth, fifty times a second, until everything is learned."""
    process = psutil.Process()
    found: list[list[int]] = [[] for _ in range(PARTS)]
    while (learned := running["m"].learned) < rows:
        found[learned * PARTS // rows].append(process.memory_info().rss)
        if running.join(0.02):
            raise RuntimeError("the pipeline has ended")
    # A run of few rows may pass a tenth between two samples.
    now = process.memory_info().rss
    return [some or [now] for some in found]


def _picture(samples: list[list[int]], rows: int) -> str:
    lines = []
    for number, some in enumerate(samples):
        middle, most = statistics.median(some) / 1e6, max(some) / 1e6
        lines.append(f"  to {rows // PARTS * (number + 1):>11,} rows: median {middle:7.1f} MB, peak {most:7.1f} MB")
    return "\n".join(lines)
