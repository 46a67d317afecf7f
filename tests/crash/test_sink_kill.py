"""SIGKILL around delivery and position: what the destination holds ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pytest

from headrace.batch import OPS, Batch
from headrace.log import open_log
from headrace.log.base import walk
from headrace.testing.servers import PostgresServer
from tests.databases import fresh_database
from tests.processes import Child

from ..sinks.receiver import Receiver
from . import harness
from .test_kill import ROUNDS

PROGRAM = Path(__file__).parent / "delivering.py"
EDGES = ("sink.read", "sink.written", "sink.committed", "sink.delivered", "log.before-commit", "log.after-commit")
KINDS = ("table", "rows", "parquet", "mongo", "http")
POISON = "poison"
Rows = list[Any]


@dataclass
class Destination:
    """Where a pipeline delivers to, and what is there."""

    where: str
    contents: Callable[[], Rows]


@pytest.fixture
def table(server: PostgresServer) -> Iterator[Callable[[bool], str]]:
    """Makes a table, with a key or without, in a database of its own."""
    with contextlib.ExitStack() as stack:

        def make(key: bool) -> str:
            database = stack.enter_context(fresh_database(server, "sink"))
            unique = "primary key" if key else ""
            database.execute(f"create table out (id bigint {unique}, x text check (x <> '{POISON}'), y float8)")
            return database.dsn

        yield make


@pytest.fixture
def make(
    request: pytest.FixtureRequest, table: Callable[[bool], str], tmp_path: Path
) -> Iterator[Callable[[str], Destination]]:
    """A fresh destination of a kind."""
    receivers: list[Receiver] = []

    def fresh(kind: str) -> Destination:
        if kind in ("table", "rows"):
            dsn = table(kind == "table")
            return Destination(f"{kind}:{dsn}", lambda: in_table(dsn))
        if kind == "parquet":
            folder = tmp_path / uuid.uuid4().hex
            return Destination(f"{kind}:{folder}", lambda: in_files(folder))
        if kind == "mongo":
            uri, name = request.getfixturevalue("mongo").uri, f"d{uuid.uuid4().hex[:10]}"
            return Destination(f"{kind}:{uri}/{name}", lambda: in_collection(uri, name))
        receiver = Receiver()
        receiver.script = lambda one: 422 if one.row["x"] == POISON else 200
        receiver.__enter__()
        receivers.append(receiver)
        return Destination(f"{kind}:{receiver.url}", lambda: received(receiver))

    yield fresh
    for receiver in receivers:
        receiver.__exit__()


def in_table(dsn: str) -> Rows:
    with psycopg.connect(dsn) as connection:
        columns = connection.execute("select attname from pg_attribute where attrelid = 'out'::regclass and attnum > 0")
        names = sorted(name for (name,) in columns)
        return [
            names,
            *connection.execute("select to_jsonb(o) from out o order by id, x, to_jsonb(o)::text").fetchall(),
        ]


def in_files(folder: Path) -> Rows:
    source = f"read_parquet('{folder}/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    return duckdb.sql(f'select id, x, y, "__op", "__offset" from {source} order by "__offset"').fetchall()


def in_collection(uri: str, database: str) -> Rows:
    import pymongo

    with pymongo.MongoClient[dict[str, Any]](uri) as client:
        return sorted((row["id"], row["x"], row.get("y")) for row in client[database]["out"].find())


def received(receiver: Receiver) -> Rows:
    """Requests as a receiver that knows its keys takes them; one that comes again must be the same."""
    taken: dict[str, bytes] = {}
    for request in receiver.requests:
        assert taken.setdefault(request.key, request.body) == request.body
    return list(taken.items())


def written(log: Path, topic: str) -> Rows:
    """Rows of a topic; where two rows of one position are written, both."""
    held = open_log(log, writer=False)
    try:
        return [row for entry in walk(held, topic) for row in entry.records.to_pylist()]
    finally:
        held.close()


def fill(log: Path, *, deletes: bool) -> None:
    """Inserts, updates and deletes; a part ends wherever the columns change. Some rows are refused everywhere."""
    chance = random.Random(3)
    held = open_log(log, writer=True)
    try:
        for number in range(12):
            n = chance.randint(1, 30)
            ids = [chance.randint(0, 40) for _ in range(n)]
            columns: dict[str, Any] = {"id": ids, "x": [chance.choice(["a", "b", "c", POISON]) for _ in range(n)]}
            if number % 2:
                columns["y"] = [chance.random() for _ in range(n)]
            ops = np.array([OPS[chance.choice("cuud" if deletes else "cu")] for _ in range(n)], np.uint8)
            batch = Batch.of(pa.RecordBatch.from_pydict(columns), op=ops)
            with held.transaction() as txn:
                txn.append("in", batch.records)
    finally:
        held.close()


def start(where: str, log: Path, *more: str, fault: str = "") -> subprocess.Popen[bytes]:
    command = [sys.executable, str(PROGRAM), where, str(log), *more]
    variables = {**os.environ, "HEADRACE_FAULT": fault}
    return Child(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


# Each start takes a second: a few edges of each kind, all of them in the long form (`make crash`).
SHORT = {("table", "sink.committed"), ("table", "log.after-commit"), *((kind, "sink.written") for kind in KINDS)}
SHORT |= {("parquet", "sink.committed"), ("rows", "sink.committed"), ("http", "log.after-commit")}
CASES = [(kind, edge) for kind in KINDS for edge in EDGES if ROUNDS >= 100 or (kind, edge) in SHORT]


@pytest.mark.parametrize(("kind", "edge"), CASES)
def test_a_kill_around_a_delivery_changes_nothing(
    kind: str, edge: str, make: Callable[[str], Destination], tmp_path: Path
) -> None:
    killed, whole = make(kind), make(kind)
    logs = tmp_path / "killed.headrace", tmp_path / "whole.headrace"
    for log in logs:
        fill(log, deletes=kind in ("table", "mongo", "parquet"))
    kills = 0
    for passage in (1, 3):
        kills += harness.finish(start(killed.where, logs[0], fault=f"{edge}:{passage}")) == -signal.SIGKILL
    assert kills, f"no run passed the fault point {edge}"
    for destination, log in zip((killed, whole), logs, strict=True):
        assert harness.finish(start(destination.where, log)) == 0
    assert killed.contents() == whole.contents()
    assert whole.contents(), "nothing was delivered"
    for topic in ("in.dlq", "answers"):
        assert written(logs[0], topic) == written(logs[1], topic)
    assert bool(written(logs[0], "in.dlq")) == (kind in ("table", "rows", "http")), "who refuses what changed"


@pytest.mark.parametrize("kind", ["table", "rows", "parquet", "http"])
def test_kills_at_random_while_rows_come(kind: str, make: Callable[[str], Destination], tmp_path: Path) -> None:
    destination, log, rows = make(kind), tmp_path / "log.headrace", 400
    chance = random.Random(int(os.environ.get("HEADRACE_CRASH_SEED", "7")))
    for _ in range(max(2, ROUNDS // 5)):
        harness.kill_after(start(destination.where, log, str(rows)), chance.uniform(0.05, 0.8))
    assert harness.finish(start(destination.where, log, str(rows))) == 0
    ids = list(range(rows))
    found = destination.contents()
    if kind in ("table", "rows"):
        assert [row["id"] for (row,) in found[1:]] == ids
    elif kind == "parquet":
        assert [row[0] for row in found] == ids
    else:
        assert [key for key, _ in found] == [f"crash/in/{number}" for number in ids]
