"""Servers, tables and rows that the benchmarks share."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import headrace as hr
from headrace.testing.servers import PostgresServer

NUMBERS = "id bigint, a int, b float8, c float8, d float8, e float8"
NUMBER_VALUES = "i, i % 1000, i * 0.5, sin(i), cos(i), i / 7.0::float8"
REPEATS = 3
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


def capture_app(
    server: PostgresServer, name: str, directory: Path, tables: str, compat: Literal["sane", "debezium"] = "sane"
) -> hr.App:
    """An app that only captures."""
    app = hr.App(name, log=directory / f"{name}.headrace")
    app.postgres(server.dsn, tables=tables, prefix="b", allow_failing_updates=True, compat=compat)
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


def clear(server: PostgresServer) -> None:
    """Leave a server without slots that nobody reads, publications and tables."""
    for (slot,) in server.execute("select slot_name from pg_replication_slots where not active"):
        server.execute("select pg_drop_replication_slot(%s)", slot)
    for (publication,) in server.execute("select pubname from pg_publication"):
        server.execute(f"drop publication {publication}")
    server.execute("drop schema public cascade; create schema public")


def rate(name: str, rows: int, reference: list[float], ours: list[float], against: str) -> dict[str, Any]:
    """Return the figure of rows a second, from the seconds of pairs of runs."""
    return {
        "name": name,
        "reference": rows / statistics.median(reference),
        "ours": rows / statistics.median(ours),
        "ratio": statistics.median(r / o for r, o in zip(reference, ours, strict=True)),
        "unit": "rows/s",
        "details": {"rows": rows, "reference": against, "pairs": [reference, ours]},
    }


@dataclass
class Case:
    """A workload that identical slots decode, for `pg_recvlogical -f /dev/null` and for us, in pairs.

    Attributes:
        name: of the figure.
        rows: events that ``work`` makes.
        setup: makes the tables, in schema public.
        work: makes the events that are measured.
        target: what the ratio is to be.
        binary: asked of the reference; ours chooses for itself.
        catch_up: has an app take in all there is, and returns the seconds.
    """

    name: str
    rows: int
    setup: str
    work: Callable[[PostgresServer], object]
    target: float | None = None
    binary: bool = True
    compat: Literal["sane", "debezium"] = "sane"
    catch_up: Callable[[hr.App], float] = catch_up

    def measure(self, server: PostgresServer) -> dict[str, Any]:
        """Return events a second of both; the server is as it was before."""
        short = self.name.replace("-", "_")
        server.execute(self.setup)
        with tempfile.TemporaryDirectory() as directory:
            apps = [
                capture_app(server, f"{short}{i}", Path(directory), r"public\..*", self.compat) for i in range(REPEATS)
            ]
            for i, app in enumerate(apps):
                prepare(app)
                reference_slot(server, f"ref_{short}{i}")
            self.work(server)
            server.execute("checkpoint")
            made = server.execute("select pubname from pg_publication order by pubname")
            reference, ours = [], []
            for i, app in enumerate(apps):
                reference.append(pg_recvlogical(server, f"ref_{short}{i}", made[0][0], binary=self.binary))
                ours.append(self.catch_up(app))
        clear(server)
        figure = rate(self.name, self.rows, reference, ours, "pg_recvlogical -f /dev/null")
        return figure if self.target is None else {**figure, "target": self.target}
