"""`to_table`: rows a second into an embedded PostgreSQL, against one COPY of the same rows into the same table."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

import headrace as hr
from headrace.batch import OPS, Batch
from headrace.log import open_log
from headrace.testing.servers import PostgresServer, postgres

ENTRY_ROWS = 10_000
WANTED = 50_000
COLUMNS = "id bigint {}, a bigint, b float8, c float8, species text, status text, model_position text"


def run(rows: int) -> list[dict[str, Any]]:
    """Inserts and updates by key, the same without a key, and every row updated once more."""
    with (
        postgres(settings={"max_wal_size": "8GB", "checkpoint_timeout": "1h"}) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        log = Path(directory) / "sinks.headrace"
        _fill(log, rows)
        copied = {key: _copied(server, rows, unique) for key, unique in (("id", "primary key"), (None, ""))}
        keyed = _delivered(server, log, "keyed", rows, key="id")
        plain = _delivered(server, log, "plain", rows, key=None)
        again = _delivered(server, log, "keyed", rows, key="id", name="again")
    return [
        _figure("to_table by key", keyed, copied["id"]),
        _figure("to_table, append", plain, copied[None]),
        _figure("to_table, updates", again, copied["id"]),
    ]


def _figure(name: str, ours: float, reference: float) -> dict[str, Any]:
    found = {"name": name, "ours": ours, "reference": reference, "unit": "rows/s", "ratio": ours / reference}
    return {**found, "target": WANTED / reference}


def _columns(start: int, rows: int) -> dict[str, Any]:
    ids = np.arange(start, start + rows)
    texts = np.array(["Salmon", "Walleye", "Bream"])[ids % 3]
    numbers = {"id": ids, "a": ids % 1000, "b": np.sin(ids), "c": ids / 7}
    return {**numbers, "species": texts, "status": ["ok"] * rows, "model_position": ids.astype(str)}


def _fill(log: Path, rows: int) -> None:
    import pyarrow as pa

    held = open_log(log, writer=True)
    try:
        for start in range(0, rows, ENTRY_ROWS):
            columns = pa.RecordBatch.from_pydict(_columns(start, min(ENTRY_ROWS, rows - start)))
            batch = Batch.of(columns, op=np.full(columns.num_rows, OPS["c"], np.uint8))
            with held.transaction() as txn:
                txn.append("rows", batch.records)
    finally:
        held.close()


def _delivered(
    server: PostgresServer, log: Path, table: str, rows: int, *, key: str | None, name: str | None = None
) -> float:
    """Rows a second from the start of the pipeline until everything is in the table."""
    app = hr.App("sinks", log=log)
    app.topic("rows").to_table(server.dsn, table, key=key, name=name)
    started = time.perf_counter()
    app.run(until="caught-up")
    seconds = time.perf_counter() - started
    assert server.execute(f"select count(*) from {table}") == [(rows,)]
    return rows / seconds


def _copied(server: PostgresServer, rows: int, unique: str) -> float:
    """Rows a second of a COPY from memory, which knows neither keys that are there nor positions."""
    import pyarrow as pa
    from pyarrow import csv

    server.execute(f"create table copied ({COLUMNS.format(unique)})")
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(_columns(0, rows)), sink, csv.WriteOptions(include_header=False))
    data = memoryview(sink.getvalue())
    started = time.perf_counter()
    with psycopg.connect(server.dsn, autocommit=True) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY copied FROM STDIN (FORMAT csv)") as copy:
            copy.write(data)
        seconds = time.perf_counter() - started
        cursor.execute("drop table copied")
    return rows / seconds
