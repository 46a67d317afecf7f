"""Running a pipeline in a child process, killing it, and comparing what its log holds with another's."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

import headrace as hr
from headrace.formats.topic_formats import codec_for
from headrace.log import open_log
from headrace.log.base import walk
from headrace.registry.models import read_progress
from headrace.replay.verify import verify as replayed
from headrace.testing.servers import PostgresServer
from tests.databases import Database
from tests.processes import Child

LONG = "HEADRACE_CRASH_ROUNDS" in os.environ
"""The long form, `make crash`."""
PIPELINE = Path(__file__).parent / "pipeline.py"
FOREIGN = Path(__file__).parent / "foreign.py"
Location = str | Path
OUTPUTS = ("counted_out", "each_out", "scored_out", "scored-metrics", "copied", "c.public.c_train", "c.public.c_test")


def chains(*edges: str) -> list[Any]:
    """All edges one after the other in one life of a pipeline; in the long form each also by itself."""
    each = [pytest.param((edge,), id=edge) for edge in edges] if LONG else []
    return [pytest.param(edges, id="all"), *each]


def database(server: PostgresServer, name: str = "crash") -> Database:
    """A fresh database with the pipeline's tables."""
    made = Database.create(server, name)
    for table in ("c_train", "c_test"):
        made.execute(f"create table {table} (id serial primary key, x float8, y float8, note text)")
    return made


def write(dsn: str, seed: int, transactions: int) -> None:
    """Commit so many random transactions, one after another."""
    chance = random.Random(seed)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(transactions):
            transaction(connection, chance)


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


def start(
    source: str,
    log: Location,
    *,
    fault: str = "",
    name: str = "",
    program: Path = PIPELINE,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """A pipeline in a child process: the one on two tables of a database, or the one on topics of others."""
    command = [sys.executable, str(program), source, str(log), *([name] if name else [])]
    variables = {**os.environ, "HEADRACE_FAULT": fault, **(environment or {})}
    return Child(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


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


def run(source: str, log: Location, *, name: str = "", program: Path = PIPELINE) -> None:
    """Run a pipeline until it has caught up."""
    assert finish(start(source, log, name=name, program=program)) == 0


def verify(app: hr.App) -> None:
    """Replay an app's log: every hash and every row must come out again."""
    plan = app.plan()
    held = open_log(plan.log, writer=False, name=plan.app, codec=codec_for(plan.formats))
    try:
        report = replayed(plan, held)
    finally:
        held.close()
    assert report.result == "equal", report
    assert sum(task.rows for task in report.tasks), "nothing was compared"


def committed(bootstrap: str, topic: str, *, at: Any = None) -> list[Any]:
    """What a consumer that has nothing to do with us sees of a topic, with ``read_committed``, partition by partition.

    Args:
        at: a function of each message; by default its value from JSON, None where there is none.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "somebody-else",
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        known = consumer.list_topics(topic, 10).topics[topic]
        assert known.error is None, known.error
        consumer.assign([TopicPartition(topic, number, 0) for number in known.partitions])
        found: dict[int, list[Any]] = {number: [] for number in known.partitions}
        ended: set[int] = set()
        deadline = time.monotonic() + 60
        while ended != set(found):
            assert time.monotonic() < deadline, f"{topic} does not come to its end"
            for message in consumer.consume(10_000, 0.1):
                if message.error() is None:
                    found[message.partition()].append(at(message) if at else json.loads(message.value() or b"null"))
                elif message.error().code() == KafkaError._PARTITION_EOF:
                    ended.add(message.partition())
        return [item for number in sorted(found) for item in found[number]]
    finally:
        consumer.close()


def kill_after(child: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGKILL a child after some time, if it is still there."""
    deadline = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if child.poll() is None:
        child.kill()
    finish(child)


def contents(
    log: Location,
    *,
    positions: bool = True,
    name: str = "crash",
    outputs: Sequence[str] = OUTPUTS,
    models: Sequence[str] = ("counted", "each", "scored"),
) -> dict[str, Any]:
    """Everything that two runs of one pipeline must agree on."""
    held = open_log(log, writer=False, name=name, codec=codec_for())
    try:
        found: dict[str, Any] = {}
        for topic in (*outputs, *(f"{output}.dlq" for output in outputs)):
            rows = []
            for entry in walk(held, topic):
                rows += pa.Table.from_batches([entry.records]).to_pylist()
            if topic.endswith(".dlq"):
                # Two models refuse rows of one topic: each in order, the two in any.
                rows.sort(key=lambda row: (row["model"] or "", row["__lsn"] or 0, row["__index"]))
            found[topic] = rows if positions else [_without_position(row) for row in rows]
        for model in models:
            progress = read_progress(held, model)
            assert progress is not None
            found[model] = (progress.hash, progress.counters, progress.pending)
            found[model] += (progress.position,) if positions else ()
        return found
    finally:
        held.close()


def rows_written(log: Path, topics: Sequence[str], *, timed: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of topics, without the times at which they were taken in but of those in ``timed``."""
    held = open_log(str(log), writer=False)
    try:
        return {
            topic: [
                {name: value for name, value in row.items() if name != "__ts" or topic in timed}
                for entry in walk(held, topic)
                for row in entry.records.to_pylist()
            ]
            for topic in topics
        }
    finally:
        held.close()


def _without_position(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("__lsn", "__ts", "model_position")}
