"""SIGKILL at every edge of a table's joining: the log has it whole, or nothing of it, and it joins again."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.crash.harness import verify
from tests.databases import Database
from tests.processes import HEADRACE, Child

EDGES = (
    *("join.published", "join.aside", "join.read"),
    *("log.before-commit:3", "source.before-acknowledge", "source.after-acknowledge"),
)
"""The first commits of a run are those of what was staged before, and of the claim."""
PROGRAM = """
import headrace as hr
app = hr.App({name!r}, log={log!r})
db = app.postgres({dsn!r}, tables={tables!r})
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
    """A table joins while its rows change, is made anew, leaves and comes back; each run is killed at the next edge."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
    file = directory / "app.py"
    program = PROGRAM.format(name=database.name, log=log, dsn=database.dsn, tables=r"public\.t.*")
    file.write_text(program)
    assert run(file) == 0
    make(database)
    joins_at_every_edge(database, file, 0)
    first = life(file, database)
    database.execute("UPDATE tn SET x = -1 WHERE id = 1")
    database.execute("DROP TABLE tn")
    make(database)
    joins_at_every_edge(database, file, 10)
    assert life(file, database)[: len(first)] == first
    narrow = PROGRAM.format(name=database.name, log=log, dsn=database.dsn, tables=r"public\.t")
    for edge in ("leave.stored", "leave.unpublished", ""):
        database.execute("INSERT INTO tn VALUES (%s, 0)", 3000 + len(edge))
        file.write_text(narrow)
        assert run(file, edge) == (-signal.SIGKILL if edge else 0), edge
    assert database.execute("SELECT tablename FROM pg_publication_tables") == [("t",)]
    file.write_text(program)
    joins_at_every_edge(database, file, 20)
    verify(runpy.run_path(str(file))["app"])


def make(database: Database) -> None:
    database.execute("CREATE TABLE tn (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO tn SELECT i, 0 FROM generate_series(1, 50) i")


def joins_at_every_edge(database: Database, file: Path, since: int) -> None:
    """Run until every edge has killed: the log has the table's last life, each row once, and all rows of ``t``."""
    for number, edge in enumerate(EDGES, since + 1):
        database.execute("UPDATE tn SET x = %s WHERE id <= 2", number)
        database.execute("DELETE FROM tn WHERE id = %s", 2 + number)
        database.execute("INSERT INTO tn VALUES (%s, 0)", 100 + number)
        database.execute("INSERT INTO t VALUES (%s, 0)", 100 + number)
        assert run(file, edge) == -signal.SIGKILL, f"nothing passes {edge}"
    database.execute("INSERT INTO tn VALUES (%s, 0)", 1000 + since)
    assert run(file) == 0
    left: dict[int, float] = {}
    begun: Counter[int] = Counter()
    for row in life(file, database):
        if row["op"] == "t":
            left, begun = {}, Counter()
            continue
        begun[row["id"]] += row["op"] in "cr"
        left.pop(row["id"], None)
        if row["op"] != "d":
            left[row["id"]] = row["x"]
    assert left == dict(database.execute("SELECT id, x FROM tn"))
    assert set(begun.values()) == {1}
    ids = [row["id"] for row in life(file, database, "t")]
    assert ids == [row[0] for row in database.execute("SELECT id FROM t ORDER BY id")]


def life(file: Path, database: Database, table: str = "tn") -> list[dict[str, Any]]:
    """Return the rows of a table's topic."""
    app: hr.App = runpy.run_path(str(file))["app"]
    found: list[dict[str, Any]] = app.topic(f"{database.name}.public.{table}").read().to_arrow().to_pylist()
    return found
