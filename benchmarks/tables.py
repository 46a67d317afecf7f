"""The cost of a row where a capture has 1, 100 and 1,000 tables, against `pg_recvlogical -f /dev/null`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.workload import NUMBER_VALUES, NUMBERS, Case
from headrace.testing.servers import PostgresServer, postgres

TABLES = (1, 100, 1_000)
_SETTINGS = {"max_wal_size": "8GB", "checkpoint_timeout": "1h", "max_locks_per_transaction": "4096"}
# A transaction writes so many rows, to as many tables as there are.
_AT_ONCE = 1_000


def run(rows: int) -> list[dict[str, Any]]:
    """Measure each number of tables, and what a row of many costs beside a row of one."""
    with postgres(settings=_SETTINGS) as server:
        figures = [_case(tables, rows).measure(server) for tables in TABLES]
    one = figures[0]
    costs = [
        {
            "name": f"cost of a row, {tables:,} tables",
            "reference": 1e6 / one["ours"],
            "ours": 1e6 / figure["ours"],
            "ratio": one["ours"] / figure["ours"],
            "unit": "us",
            "at_most": 1.25 * one["reference"] / figure["reference"],
            "details": "the reference is a row of one table; the server itself is slower by what stands in the target",
        }
        for tables, figure in zip(TABLES[1:], figures[1:], strict=True)
    ]
    return [*figures, *costs]


def _case(tables: int, rows: int) -> Case:
    made = "; ".join(f"create table t{n} ({NUMBERS}, primary key (id))" for n in range(tables))
    return Case(f"tables-{tables}", rows, made, _work(tables, rows))


def _work(tables: int, rows: int) -> Callable[[PostgresServer], object]:
    return partial(_spread, tables=tables, rows=rows)


def _spread(server: PostgresServer, tables: int, rows: int) -> None:
    """Write transactions whose rows go to every table in turn, as many to each."""
    each = max(1, _AT_ONCE // tables)
    insert = f"insert into t%s select {NUMBER_VALUES.replace('%', '%%')} from generate_series(%s, %s) i"
    server.execute(
        f"do $$ begin for k in 0..{rows // (each * tables) - 1} loop for n in 0..{tables - 1} loop "
        f"execute format('{insert}', n, k * {each}, k * {each} + {each - 1}); "
        "end loop; commit; end loop; end $$"
    )
