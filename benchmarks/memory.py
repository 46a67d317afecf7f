"""The resident set while 10,000,000 rows stream through a pipeline: flat after the first million."""

from __future__ import annotations

import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

import headrace as hr
from benchmarks import workload
from headrace.testing.servers import postgres

MILLION = 1_000_000


def run(rows: int) -> list[dict[str, Any]]:
    """The resident set while the last million streams against the one while the second did."""
    with (
        postgres(settings={"max_wal_size": "2GB", "fsync": "off"}) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        server.execute(f"create table m_rows ({workload.NUMBERS})")
        app = hr.App("memory", log=Path(directory) / "memory.headrace", keep="1 GB")
        db = app.postgres(server.dsn, tables=r"public\.m_.*", prefix="b", allow_failing_updates=True)
        model = app.model("m", hr.KMeans(k=3, decay=1.0), features=["b", "c", "d", "e"])
        model.learn(db["public.m_rows"], every=1000)
        with app.start() as running:
            peaks = []
            for start in range(0, rows, MILLION):
                with Peak() as peak:
                    workload.fill(server, "m_rows", workload.NUMBER_VALUES, MILLION, start=start)
                    running.wait(600)
                peaks.append(peak)
            assert running["m"].learned == rows
    # Peaks come and go with how much happens to be in flight: what must not grow is the middle.
    found = figure("memory", peaks[1].median, peaks[-1].median, rows)
    found["details"]["each million, MB: median and peak"] = [(p.median // 10**6, p.most // 10**6) for p in peaks]
    return [found]


def figure(name: str, base: int, most: int, rows: int) -> dict[str, Any]:
    """A resident set against the one it started from, in MB."""
    return {
        "name": name,
        "reference": base / 1e6,
        "ours": most / 1e6,
        "ratio": most / base,
        "unit": "MB",
        "details": {"rows": rows, "reference": "resident set before"},
    }


class Peak:
    """The resident set of this process, sampled twenty times a second: the largest, and the median."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.05):
            self.samples.append(process.memory_info().rss)

    @property
    def most(self) -> int:
        return max(self.samples)

    @property
    def median(self) -> int:
        return int(statistics.median(self.samples))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
