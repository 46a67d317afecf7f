"""The snapshot against `COPY … (FORMAT binary)` of the same table to /dev/null."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import workload
from headrace.testing.servers import PostgresServer, postgres


def run(rows: int) -> list[dict[str, Any]]:
    """Rows a second into the durable log, from nothing to visible."""
    with postgres(settings={"max_wal_size": "8GB"}) as server:
        server.execute(f"create table numbers ({workload.NUMBERS})")
        workload.fill(server, "numbers", workload.NUMBER_VALUES, rows, per_transaction=100_000)
        return [measured(server, "snapshot", "numbers", rows)]


def measured(server: PostgresServer, name: str, table: str, rows: int) -> dict[str, Any]:
    """Return rows a second of a table, in pairs one after another."""
    server.execute(f"vacuum analyze {table}")
    reference, ours = [], []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(workload.REPEATS):
            reference.append(copied(server, table))
            app = workload.capture_app(server, f"{table}{i}", Path(directory), rf"public\.{table}")
            ours.append(workload.catch_up(app))
            assert len(app.topic(f"b.public.{table}").read()) == rows
    return workload.rate(name, rows, reference, ours, "psql COPY (FORMAT binary) to /dev/null")


def copied(server: PostgresServer, table: str) -> float:
    """Return the seconds that a table takes in binary to /dev/null."""
    command = [str(server.bin / "psql"), "-q", "-d", server.dsn]
    command += ["-c", f"\\copy {table} to /dev/null with (format binary)"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started
