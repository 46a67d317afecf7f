"""The snapshot against `COPY … (FORMAT binary)` of the same table to /dev/null."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workload
from headrace.testing.servers import PostgresServer, postgres

REPEATS = 3


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second into the durable log, from nothing to visible."""
    with postgres(settings={"max_wal_size": "8GB"}) as server, tempfile.TemporaryDirectory() as directory:
        server.execute(f"create table numbers ({workload.NUMBERS})")
        workload.fill(server, "numbers", workload.NUMBER_VALUES, rows, per_transaction=100_000)
        server.execute("vacuum analyze numbers")
        reference, ours = [], []
        for i in range(REPEATS):
            reference.append(copied(server, "numbers"))
            app = workload.capture_app(server, f"snapshot{i}", Path(directory), r"public\.numbers")
            ours.append(workload.catch_up(app))
            assert len(app.topic("b.public.numbers").read()) == rows
    return [
        {
            "name": "snapshot",
            "reference": rows / statistics.median(reference),
            "ours": rows / statistics.median(ours),
            "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
            "unit": "rows/s",
            "details": {
                "rows": rows,
                "reference": "psql COPY (FORMAT binary) to /dev/null",
                "pairs": [reference, ours],
            },
        }
    ]


def copied(server: PostgresServer, table: str) -> float:
    """Return the seconds that a table takes in binary to /dev/null."""
    command = [str(server.bin / "psql"), "-q", "-d", server.dsn]
    command += ["-c", f"\\copy {table} to /dev/null with (format binary)"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started
