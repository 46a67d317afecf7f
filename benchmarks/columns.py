"""The cost of a cell where a table has 6, 82 and 1,000 columns: streamed, and in the snapshot."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.snapshot import copied
from benchmarks.workload import Case
from headrace.testing.servers import PostgresServer, postgres

COLUMNS = (6, 82, 1_000)


def run(cells: int) -> list[dict[str, Any]]:
    """Measure tables of so many columns with as many cells in all."""
    figures = []
    with postgres(settings={"max_wal_size": "16GB", "checkpoint_timeout": "1h"}) as server:
        for columns in COLUMNS:
            rows = max(1_000, cells // columns // 1_000 * 1_000)
            table = f"wide{columns}"
            listed = ", ".join(f"c{n} {'float8' if n % 2 else 'int'}" for n in range(columns))
            values = ", ".join(f"i * 0.5 + {n}" if n % 2 else f"i + {n}" for n in range(columns))
            made = f"create table {table} ({listed}, primary key (c0))"
            case = Case(
                f"columns-{columns}",
                rows,
                made,
                lambda server, table=table, values=values, rows=rows: workload.fill(  # type: ignore[misc]
                    server, table, values, rows, per_transaction=100
                ),
            )
            figures.append(_of_cells(case.measure(server), columns))
            figures.append(_of_cells(_snapshot(server, table, made, values, rows), columns))
    return figures


def _snapshot(server: PostgresServer, table: str, made: str, values: str, rows: int) -> dict[str, Any]:
    server.execute(made)
    workload.fill(server, table, values, rows, per_transaction=1_000)
    server.execute(f"vacuum analyze {table}")
    reference, ours = [], []
    with tempfile.TemporaryDirectory() as directory:
        for i in range(workload.REPEATS):
            reference.append(copied(server, table))
            ours.append(
                workload.catch_up(workload.capture_app(server, f"{table}{i}", Path(directory), "public.wide.*"))
            )
    for (slot,) in server.execute("select slot_name from pg_replication_slots where not active"):
        server.execute("select pg_drop_replication_slot(%s)", slot)
    for (publication,) in server.execute("select pubname from pg_publication"):
        server.execute(f"drop publication {publication}")
    server.execute(f"drop table {table}")
    return {
        "name": f"snapshot-{table}",
        "reference": rows / statistics.median(reference),
        "ours": rows / statistics.median(ours),
        "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
        "unit": "rows/s",
        "details": {"rows": rows, "reference": "psql COPY (FORMAT binary) to /dev/null", "pairs": [reference, ours]},
    }


def _of_cells(figure: dict[str, Any], columns: int) -> dict[str, Any]:
    """Return a figure of rows as one of cells."""
    numbers = {side: figure[side] * columns for side in ("reference", "ours")}
    return {**figure, **numbers, "unit": "cells/s"}
