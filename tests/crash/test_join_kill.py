"""SIGKILL at every edge of a table's joining: the log has it whole, or nothing of it, and it joins again."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.crash.harness import verify
from tests.databases import Database
from tests.processes import HEADRACE, Child

EDGES = ("join.published", "join.read", "log.before-commit:3", "source.before-acknowledge", "source.after-acknowledge")
"""The first commits of a run are those of what was staged before, and of the claim."""
PROGRAM = """
import headrace as hr
app = hr.App({name!r}, log={log!r})
db = app.postgres({dsn!r}, tables=r"public\\.t.*")
model = app.model("m", hr.KMeans(k=2), features=["x"])
model.learn(db["public.t"], every=4)
model.predict(db["public.t"]).to("{name}-predicted")
"""


def run(file: Path, fault: str = "") -> int:
    command = [HEADRACE, "run", str(file), "--until-caught-up"]
    child = Child(command, env={**os.environ, "HEADRACE_FAULT": fault}, stderr=subprocess.PIPE)
    _, words = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), words.decode()
    return child.returncode


def test_a_kill_at_an_edge_of_a_join(database: Database, tmp_path: Path) -> None:
    killed_at_every_edge(database, tmp_path, str(tmp_path / "killed.headrace"))


@pytest.mark.slow
def test_a_kill_at_an_edge_of_a_join_on_a_cluster(database: Database, tmp_path: Path, broker: KafkaBroker) -> None:
    killed_at_every_edge(database, tmp_path, f"kafka://{broker.bootstrap}/{database.name}")


def killed_at_every_edge(database: Database, directory: Path, log: str) -> None:
    """A table joins while its rows change; each run is killed at the next edge."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
    file = directory / "app.py"
    file.write_text(PROGRAM.format(name=database.name, log=log, dsn=database.dsn))
    assert run(file) == 0
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO tn SELECT i, 0 FROM generate_series(1, 10) i")
    for number, edge in enumerate(EDGES, 1):
        database.execute("UPDATE tn SET x = %s WHERE id <= 2", number)
        database.execute("DELETE FROM tn WHERE id = %s", 2 + number)
        database.execute("INSERT INTO tn VALUES (%s, 0)", 100 + number)
        database.execute("INSERT INTO t VALUES (%s, 0)", 100 + number)
        assert run(file, edge) == -signal.SIGKILL, f"nothing passes {edge}"
    database.execute("INSERT INTO tn VALUES (1000, 0)")
    assert run(file) == 0
    app: hr.App = runpy.run_path(str(file))["app"]
    left: dict[int, float] = {}
    begun: Counter[int] = Counter()
    for row in app.topic(f"{database.name}.public.tn").read().to_arrow().to_pylist():
        begun[row["id"]] += row["op"] in "cr"
        left.pop(row["id"], None)
        if row["op"] != "d":
            left[row["id"]] = row["x"]
    assert left == dict(database.execute("SELECT id, x FROM tn"))
    assert set(begun.values()) == {1}
    ids = [row["id"] for row in app.topic(f"{database.name}.public.t").read().to_arrow().to_pylist()]
    assert ids == [*range(1, 11), *(100 + number for number in range(1, len(EDGES) + 1))]
    verify(app)
