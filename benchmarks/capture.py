"""Capture against `pg_recvlogical -f /dev/null` on an identical slot; into the durable log."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import workload
from headrace.testing.servers import PostgresServer, postgres

REPEATS = 3


def run(rows: int) -> list[dict[str, Any]]:
    """Binary, text mode, and a 20-column mixed table."""
    with postgres(settings={"max_wal_size": "8GB", "checkpoint_timeout": "1h"}) as server:
        found = [_case(server, "capture", "numbers", workload.NUMBERS, workload.NUMBER_VALUES, rows, binary=True)]
        # A column of a type that has no binary decoder puts the whole stream into text mode.
        text = workload.NUMBERS + ", w interval"
        values = workload.NUMBER_VALUES + ", null::interval"
        found.append(_case(server, "capture-text", "texts", text, values, rows, binary=False))
        mixed = (workload.MIXED, workload.MIXED_VALUES)
        found.append(_case(server, "capture-mixed", "mixed", *mixed, rows // 2, binary=True))
    return found


def _case(
    server: PostgresServer, name: str, table: str, columns: str, values: str, rows: int, *, binary: bool
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        server.execute(f"create table {table} ({columns})")
        apps = [
            workload.capture_app(server, f"{table}{i}", Path(directory), rf"public\.{table}") for i in range(REPEATS)
        ]
        for app in apps:
            workload.prepare(app)
        for i in range(REPEATS):
            workload.reference_slot(server, f"ref_{table}{i}")
        workload.fill(server, table, values, rows)
        server.execute("checkpoint")
        publication = server.execute("select pubname from pg_publication where pubname like %s", f"%{table}0%")[0][0]
        reference, ours = [], []
        for i, app in enumerate(apps):
            reference.append(workload.pg_recvlogical(server, f"ref_{table}{i}", publication, binary=binary))
            ours.append(workload.catch_up(app))
        for (slot,) in server.execute("select slot_name from pg_replication_slots where not active"):
            server.execute("select pg_drop_replication_slot(%s)", slot)
        server.execute(f"drop table {table}")
    return {
        "name": name,
        "reference": rows / statistics.median(reference),
        "ours": rows / statistics.median(ours),
        "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
        "unit": "rows/s",
        "details": {"rows": rows, "reference": "pg_recvlogical -f /dev/null", "pairs": [reference, ours]},
    }
