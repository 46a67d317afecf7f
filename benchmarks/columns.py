"""The cost of a cell where a table has 6, 82 and 1,000 columns: streamed, and in the snapshot."""

from __future__ import annotations

from typing import Any

from benchmarks import workload
from benchmarks.snapshot import measured
from benchmarks.workload import Case
from headrace.testing.servers import postgres

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
            server.execute(made)
            workload.fill(server, table, values, rows, per_transaction=1_000)
            figures.append(_of_cells(measured(server, f"snapshot-{table}", table, rows), columns))
            workload.clear(server)
    return figures


def _of_cells(figure: dict[str, Any], columns: int) -> dict[str, Any]:
    """Return a figure of rows as one of cells."""
    numbers = {side: figure[side] * columns for side in ("reference", "ours")}
    return {**figure, **numbers, "unit": "cells/s"}
