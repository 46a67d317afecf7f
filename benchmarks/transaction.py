"""The resident set while one transaction of 5,000,000 rows is captured and learned: it spills to the log."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psutil

import headrace as hr
from benchmarks import workload
from benchmarks.memory import Peak, figure
from headrace.testing.servers import postgres


def run(rows: int) -> list[dict[str, Any]]:
    """Largest resident set during the transaction against the one after a million rows in small ones."""
    with (
        postgres(settings={"max_wal_size": "4GB", "fsync": "off"}) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        server.execute(f"create table m_rows ({workload.NUMBERS})")
        app = hr.App("transaction", log=Path(directory) / "transaction.headrace")
        db = app.postgres(server.dsn, tables=r"public\.m_.*", prefix="b", allow_failing_updates=True)
        model = app.model("m", hr.KMeans(k=3, decay=1.0), features=["b", "c", "d", "e"])
        model.learn(db["public.m_rows"], every=1000)
        with app.start() as running:
            workload.fill(server, "m_rows", workload.NUMBER_VALUES, 1_000_000)
            running.wait(600)
            base = psutil.Process().memory_info().rss
            with Peak() as peak:
                workload.fill(server, "m_rows", workload.NUMBER_VALUES, rows, per_transaction=rows)
                running.wait(1800)
            assert running["m"].learned == rows + 1_000_000
    return [figure("transaction", base, peak.most, rows)]
