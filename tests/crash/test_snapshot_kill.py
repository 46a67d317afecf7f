"""SIGKILL at every edge of a chunk, of an incremental snapshot or a large first one: it goes on behind the last one."""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import headrace as hr
from headrace.log import open_log
from tests.capture.test_incremental import events, replayed
from tests.crash.harness import verify
from tests.databases import Database
from tests.processes import HEADRACE, Child

EDGES = (
    "chunk.window-opened",
    "chunk.read",
    "log.before-commit:4",
    "chunk.stored:2",
    "chunk.window-closed",
    "source.before-acknowledge:2",
    "source.after-acknowledge:2",
)
PROGRAM = """
import headrace as hr
app = hr.App({name!r}, log={log!r})
db = app.postgres({dsn!r}, tables=r"public\\.t.*", snapshot="never", compat="debezium", properties={{
    "incremental.snapshot.chunk.size": "4", "signal.data.collection": "public.t_signals"}})
model = app.model("m", hr.KMeans(k=2), features=["x"])
model.learn(db["public.t"], every=3)
model.predict(db["public.t"]).to("{name}-predicted")
"""


def run(file: Path, fault: str = "") -> int:
    command = [HEADRACE, "run", str(file), "--until-caught-up"]
    child = Child(command, env={**os.environ, "HEADRACE_FAULT": fault}, stderr=subprocess.PIPE)
    _, words = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), words.decode()
    return child.returncode


@pytest.mark.slow
def test_a_kill_at_an_edge_of_a_chunk(database: Database, tmp_path: Path) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("CREATE TABLE t_signals (id varchar(42) PRIMARY KEY, type varchar(32), data varchar(2048))")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 60) i")
    log = str(tmp_path / "killed.headrace")
    file = tmp_path / "app.py"
    file.write_text(PROGRAM.format(name=database.name, log=log, dsn=database.dsn))
    assert run(file) == 0
    wanted = json.dumps({"data-collections": ["public.t"]})
    database.execute("INSERT INTO t_signals VALUES ('s', 'execute-snapshot', %s)", wanted)
    for number, edge in enumerate(EDGES, 1):
        database.execute("UPDATE t SET x = %s WHERE id %% 5 = 0", number)
        database.execute("DELETE FROM t WHERE id = %s", 6 * number)
        database.execute("INSERT INTO t VALUES (%s, 0)", 100 + number)
        assert run(file, edge) == -signal.SIGKILL, f"nothing passes {edge}"
    assert run(file) == 0
    app: hr.App = runpy.run_path(str(file))["app"]
    left: dict[int, float] = {}
    newest: dict[int, float] = {}
    read: list[int] = []
    for row in app.topic(f"{database.name}.public.t").read().to_arrow().to_pylist():
        left.pop(row["id"], None)
        if row["op"] == "d":
            continue
        left[row["id"]] = row["x"]
        assert row["x"] >= newest.get(row["id"], 0), "older than what is in the log"
        newest[row["id"]] = row["x"]
        read += [row["id"]] if row["op"] == "r" else []
    assert left == dict(database.execute("SELECT id, x FROM t"))
    assert read == sorted(set(read)) and len(read) >= 40, "each chunk once, in order"
    verify(app)


FIRST_EDGES = (
    "snapshot.after-publish",  # nothing of it is there yet
    "chunk.read:3",
    "log.before-commit:5",
    "chunk.stored:2",
    "source.after-acknowledge:2",
)
FIRST = """
import headrace as hr
from headrace.capture.postgres import chunks, startup
startup.LARGE_BYTES, startup.PIECE_ROWS, chunks.CHUNK_ROWS = 0, 7, 7
app = hr.App({name!r}, log={log!r})
db = app.postgres({dsn!r}, tables=r"public\\.t.*"{more})
model = app.model("m", hr.KMeans(k=2), features=["x"])
model.learn(db["public.t"], every=3)
model.predict(db["public.t2"]).to("{name}-predicted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("edge", ["snapshot.after-publish", "snapshot.chunk:3", "snapshot.table"])
@pytest.mark.parametrize("more", ["", ", compat='debezium'"])
def test_a_kill_in_a_large_first_snapshot(database: Database, tmp_path: Path, edge: str, more: str) -> None:
    for table in ("t", "t2"):
        database.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x float8)")
        database.execute(f"INSERT INTO {table} SELECT i, 0 FROM generate_series(1, 80) i")
    database.execute("CREATE TABLE t0 (id int); ALTER TABLE t0 REPLICA IDENTITY FULL; INSERT INTO t0 VALUES (1)")
    log = str(tmp_path / "killed.headrace")
    file = tmp_path / "app.py"
    file.write_text(FIRST.format(name=database.name, log=log, dsn=database.dsn, more=more))
    for number, fault in enumerate((edge, *FIRST_EDGES[1:]), 1):
        assert run(file, fault) == -signal.SIGKILL, f"nothing passes {fault}"
        for table in ("t", "t2"):
            database.execute(f"UPDATE {table} SET x = %s WHERE id %% 5 = 0", number)
            database.execute(f"DELETE FROM {table} WHERE id = %s OR id = %s", 6 * number, 81 - number)
            database.execute(f"INSERT INTO {table} VALUES (%s, 0), (%s, 0)", -number, 100 + number)
            database.execute(f"UPDATE {table} SET id = id + 1000 WHERE id = %s", 3 + number)
    app: hr.App = runpy.run_path(str(file))["app"]
    assert run(file) == 0
    with contextlib.closing(open_log(log, writer=False)) as held:
        for table in ("t", "t2"):
            found = events(held, f"{database.name}.public.{table}")
            rows = database.execute(f"SELECT id, x FROM {table}")
            assert replayed(found) == {id_: {"id": id_, "x": x} for id_, x in rows}
            begun = Counter(event["id"] for event in found if event["op"] in "cr")
            assert max(begun.values()) == 1, "no row is there twice"
            assert sum(event["op"] == "r" for event in found) > 40
    assert [row["id"] for row in app.topic(f"{database.name}.public.t0").read().to_arrow().to_pylist()] == [1]
    verify(app)
