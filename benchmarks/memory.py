"""The resident set while 10,000,000 rows stream through a pipeline: flat after the first million."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

import headrace as hr
from benchmarks import workload
from headrace.testing.servers import postgres


def run(rows: int) -> list[dict[str, Any]]:
    """Largest resident set after the first million rows against the one at the end of that million."""
    with (
        postgres(settings={"max_wal_size": "2GB", "fsync": "off"}) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        server.execute(f"create table m_rows ({workload.NUMBERS})")
        app = hr.App("memory", log=Path(directory) / "memory.headrace", keep="1 GB")
        db = app.postgres(server.dsn, tables=r"public\.m_.*", prefix="b")
        model = app.model("m", hr.KMeans(k=3, decay=1.0), features=["b", "c", "d", "e"])
        model.learn(db["public.m_rows"], every=1000)
        with app.start() as running:
            workload.fill(server, "m_rows", workload.NUMBER_VALUES, min(rows, 1_000_000))
            running.wait(600)
            base = psutil.Process().memory_info().rss
            with Peak() as peak:
                workload.fill(server, "m_rows", workload.NUMBER_VALUES, rows - min(rows, 1_000_000), start=1_000_000)
                running.wait(1800)
            assert running["m"].learned == rows
    return [figure("memory", base, peak.most, rows)]


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
    """The largest resident set of this process, sampled ten times a second."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.1):
            self.most = max(self.most, process.memory_info().rss)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
