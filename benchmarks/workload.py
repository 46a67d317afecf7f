"""Servers, tables and rows that the benchmarks share."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import headrace as hr
from headrace.testing.servers import PostgresServer

NUMBERS = "id bigint, a int, b float8, c float8, d float8, e float8"
NUMBER_VALUES = "i, i % 1000, i * 0.5, sin(i), cos(i), i / 7.0::float8"
MIXED = (
    "id bigint primary key, a int, b float8, c float8, d bool, t1 text, t2 text, t3 varchar(40), t4 text, "
    "s1 timestamptz, s2 timestamp, s3 date, n1 int, n2 float8, n3 text, n4 timestamptz, e float8, "
    "f real, g smallint, h text"
)
MIXED_VALUES = (
    "i, i % 1000, i * 0.5, sin(i), i % 2 = 0, 'name ' || i, repeat('x', i % 30), 'city ' || i % 100, 'ünïcode ' || i, "
    "timestamptz '2024-01-01' + i * interval '1 second', timestamp '2024-01-01' + i * interval '1 min', "
    "date '2024-01-01' + i % 1000, case when i % 3 = 0 then null else i end, "
    "case when i % 5 = 0 then null else i * 0.1 end, "
    "case when i % 2 = 0 then null else 'note' end, case when i % 7 = 0 then null else now() end, cos(i), "
    "1.5::real, 7::smallint, 'tail'"
)


def fill(
    server: PostgresServer, table: str, values: str, rows: int, *, per_transaction: int = 1000, start: int = 0
) -> None:
    """Insert rows in transactions of a fixed size."""
    server.execute(
        f"do $$ begin for k in 0..{rows // per_transaction - 1} loop "
        f"insert into {table} select {values} from generate_series({start} + k * {per_transaction}, "
        f"{start} + (k + 1) * {per_transaction} - 1) i; commit; end loop; end $$"
    )


def reference_slot(server: PostgresServer, name: str) -> None:
    server.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", name)


def pg_recvlogical(server: PostgresServer, slot: str, publication: str, *, binary: bool = True) -> float:
    """Seconds that `pg_recvlogical … -f /dev/null` takes for everything on a slot."""
    end = server.execute("select pg_current_wal_lsn()")[0][0]
    command = [str(server.bin / "pg_recvlogical"), "-d", server.dsn, "-S", slot, "--start", "-f", "/dev/null"]
    command += ["-o", "proto_version=1", "-o", f"publication_names={publication}", "--endpos", str(end), "--no-loop"]
    command += ["-o", "binary=true"] if binary else []
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - started


def capture_app(server: PostgresServer, name: str, directory: Path, tables: str) -> hr.App:
    """An app that only captures."""
    app = hr.App(name, log=directory / f"{name}.headrace")
    app.postgres(server.dsn, tables=tables, prefix="b", allow_failing_updates=True)
    return app


def prepare(app: hr.App) -> None:
    """Make the slot, publication and log of an app, before the rows are there."""
    with app.start() as running:
        running.wait(60)


def catch_up(app: hr.App) -> float:
    """Seconds until everything committed before now is in the log."""
    started = time.perf_counter()
    with app.start() as running:
        running.wait(600)
        return time.perf_counter() - started
