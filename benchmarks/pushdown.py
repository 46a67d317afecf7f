"""A row filter that one row of a hundred meets, in the publication: against the capture of all rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workload
from headrace.pipeline.app import App
from headrace.testing.servers import PostgresServer, postgres

WHERE = {"pushed down": {"public.numbers": "id % 100 = 0"}, "here": {}}


def run(rows: int) -> list[dict[str, Any]]:
    """Rows of the table a second, streamed, where 1 % of them are wanted."""
    seconds, kept = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for how, where in WHERE.items():
            with postgres(settings={"max_wal_size": "8GB"}) as server:
                seconds[how], kept[how] = _streamed(server, Path(directory) / f"{len(seconds)}.headrace", where, rows)
    return [
        {
            "name": "pushdown",
            "reference": rows / seconds["here"],
            "ours": rows / seconds["pushed down"],
            "ratio": seconds["here"] / seconds["pushed down"],
            "unit": "rows/s",
            "details": {"rows": rows, "selectivity": 0.01, "reference": "all rows captured"},
        },
        {
            "name": "pushdown, bytes of the log",
            "reference": kept["here"],
            "ours": kept["pushed down"],
            "ratio": kept["here"] / kept["pushed down"],
            "unit": "bytes",
            "details": {"rows": rows, "selectivity": 0.01, "reference": "all rows captured"},
        },
    ]


def _streamed(server: PostgresServer, log: Path, where: dict[str, str], rows: int) -> tuple[float, int]:
    """Return how long a backlog takes, and the bytes of the log that it becomes."""
    server.execute(f"create table numbers ({workload.NUMBERS}, primary key (id))")
    app = App("b", log=str(log))
    app.postgres(server.dsn, tables=r"public\.numbers", prefix="b", where=where)
    app.run(until="caught-up")
    workload.fill(server, "numbers", workload.NUMBER_VALUES, rows, per_transaction=100_000)
    started = time.perf_counter()
    app.run(until="caught-up")
    taken = time.perf_counter() - started
    assert len(app.topic("b.public.numbers").read()) == (rows // 100 if where else rows)
    return taken, log.stat().st_size
