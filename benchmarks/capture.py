"""Capture against `pg_recvlogical -f /dev/null` on an identical slot; into the durable log."""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import headrace as hr
from benchmarks import workload
from benchmarks.workload import Case
from headrace.inspect.debezium import event_blocks
from headrace.log import open_log
from headrace.testing.servers import PostgresServer, postgres

SETTINGS = {"max_wal_size": "16GB", "checkpoint_timeout": "1h"}


def run(rows: int) -> list[dict[str, Any]]:
    """Measure six numbers, text mode, 20 mixed columns, old rows, one-row transactions, Debezium's JSON."""
    with postgres(settings=SETTINGS) as server:
        return [case.measure(server) for case in cases(rows)]


def cases(rows: int) -> list[Case]:
    """Return what is measured, in order."""
    few, half = max(1, rows // 10), rows // 2
    numbers = f"create table numbers ({workload.NUMBERS})"
    # A column of a type that has no binary decoder puts the whole stream into text mode.
    texts = f"create table texts ({workload.NUMBERS}, w interval)"
    whole = f"create table changed ({workload.NUMBERS}, primary key (id)); alter table changed replica identity full"
    return [
        Case("capture", rows, numbers, lambda server: _fill(server, "numbers", rows), target=0.9),
        Case(
            "capture-text",
            rows,
            texts,
            lambda server: _fill(server, "texts", rows, ", null::interval"),
            target=0.7,
            binary=False,
        ),
        Case(
            "capture-mixed",
            half,
            f"create table mixed ({workload.MIXED})",
            lambda server: workload.fill(server, "mixed", workload.MIXED_VALUES, half),
            target=0.7,
        ),
        Case("capture-before", 2 * half, whole, lambda server: _change(server, half), target=0.8),
        Case(
            "capture-one-row",
            few,
            f"create table tiny ({workload.NUMBERS})",
            lambda server: workload.fill(server, "tiny", workload.NUMBER_VALUES, few, per_transaction=1),
            target=0.7,
        ),
        Case(
            "capture-debezium",
            half,
            f"create table events ({workload.NUMBERS}, primary key (id))",
            lambda server: _fill(server, "events", half),
            target=0.5,
            compat="debezium",
            catch_up=into_json,
        ),
    ]


def _fill(server: PostgresServer, table: str, rows: int, more: str = "") -> None:
    workload.fill(server, table, workload.NUMBER_VALUES + more, rows)


def _change(server: PostgresServer, rows: int) -> None:
    """Insert rows and update each once, in transactions of 1,000."""
    _fill(server, "changed", rows)
    server.execute(
        f"do $$ begin for k in 0..{rows // 1000 - 1} loop update changed set b = b + 1 "
        "where id between k * 1000 and k * 1000 + 999; commit; end loop; end $$"
    )


def into_json(app: hr.App) -> float:
    """Return the seconds until everything is in the log and has been written as Debezium's events."""
    begun = time.perf_counter()
    workload.catch_up(app)
    with closing(open_log(app.log, writer=False)) as log, Path(os.devnull).open("wb") as file:
        file.writelines(event_blocks(log))
    return time.perf_counter() - begun
