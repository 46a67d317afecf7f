"""Running a pipeline in a child process, killing it, and comparing what its log holds with another's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa

from headrace.log import open_log
from headrace.log.base import walk
from headrace.registry.models import read_progress
from headrace.testing.servers import PostgresServer

PIPELINE = Path(__file__).parent / "pipeline.py"
OUTPUTS = ("counted_out", "each_out", "copied", "c.public.c_train", "c.public.c_test")


def database(server: PostgresServer, name: str) -> str:
    """A fresh database with the pipeline's tables; returns its DSN."""
    server.execute(f'drop database if exists "{name}"')
    server.execute(f'create database "{name}"')
    dsn = server.dsn.replace("/postgres?", f"/{name}?")
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in ("c_train", "c_test"):
            connection.execute(f"create table {table} (id serial primary key, x float8, y float8, note text)")
    return dsn


def drop(server: PostgresServer, name: str) -> None:
    """Drop a database and the slots in it."""
    slots = server.execute("select slot_name, active_pid from pg_replication_slots where database = %s", name)
    for slot, pid in slots:
        if pid is not None:
            server.execute("select pg_terminate_backend(%s, 10000)", pid)
        server.execute("select pg_drop_replication_slot(%s)", slot)
    server.execute(f'drop database "{name}" with (force)')


def transaction(connection: psycopg.Connection[Any], chance: random.Random) -> None:
    """One random transaction: inserts, updates and deletes in both tables, some values missing, some rolled back."""
    with connection.transaction() as current:
        for _ in range(chance.randint(1, 12)):
            table = chance.choice(("c_train", "c_test"))
            kind = chance.random()
            x, y = chance.gauss(3, 4), chance.choice((None, chance.gauss(2, 2)))
            if kind < 0.8:
                y = y if chance.random() < 0.2 else chance.gauss(2, 2)
                connection.execute(f"insert into {table} (x, y, note) values (%s, %s, %s)", [x, y, "n" * chance.randint(0, 9)])  # noqa: E501  # fmt: skip
            elif kind < 0.9:
                connection.execute(f"update {table} set x = %s where id = (select max(id) from {table})", [x])
            else:
                connection.execute(f"delete from {table} where id = (select min(id) from {table})")
        if chance.random() < 0.1:
            raise psycopg.Rollback(current)


def start(dsn: str, log: Path, *, fault: str = "", name: str = "") -> subprocess.Popen[bytes]:
    """The pipeline in a child process."""
    environment = {**os.environ, "HEADRACE_FAULT": fault}
    command = [sys.executable, str(PIPELINE), dsn, str(log), *([name] if name else [])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(child: subprocess.Popen[bytes], timeout: float = 120) -> int:
    """Wait for a child; a death by anything but SIGKILL or success is an error with its words."""
    try:
        _, words = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        raise
    if child.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(f"the pipeline failed ({child.returncode}):\n{words.decode()}")
    return child.returncode


def run(dsn: str, log: Path, *, name: str = "") -> None:
    """Run the pipeline until it has caught up."""
    assert finish(start(dsn, log, name=name)) == 0


def kill_after(child: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGKILL a child after some time, if it is still there."""
    deadline = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if child.poll() is None:
        child.kill()
    finish(child)


def contents(log: Path, *, positions: bool = True) -> dict[str, Any]:
    """Everything that two runs of one pipeline must agree on."""
    held = open_log(log, writer=False)
    try:
        found: dict[str, Any] = {}
        for topic in (*OUTPUTS, *(f"{one}.dlq" for one in OUTPUTS)):
            rows = []
            for entry in walk(held, topic):
                rows += pa.Table.from_batches([entry.records]).to_pylist()
            if topic.endswith(".dlq"):
                # Two models refuse rows of one topic: each in order, the two in any.
                rows.sort(key=lambda row: (row["model"], row["__lsn"], row["__index"]))
            found[topic] = rows if positions else [_without_position(row) for row in rows]
        for model in ("counted", "each"):
            progress = read_progress(held, model)
            assert progress is not None
            found[model] = (progress.hash, progress.counters, progress.pending)
            found[model] += (progress.position,) if positions else ()
        return found
    finally:
        held.close()


def _without_position(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("__lsn", "__ts", "model_position")}
