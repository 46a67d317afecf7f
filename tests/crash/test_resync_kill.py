"""SIGKILL at every edge of a resync: the log has it whole, or has nothing of it and is resynced again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

import headrace as hr
from headrace.errors import HeadraceError
from headrace.testing.servers import KafkaBroker
from tests.crash.harness import verify
from tests.databases import Database
from tests.processes import HEADRACE, Child

EDGES = (
    *("resync.begun", "snapshot.slot-created", "snapshot.piece-staged", "snapshot.before-publish"),
    *("log.before-commit:3", "log.after-commit:3", "snapshot.after-publish"),
)
"""The first commits are those of the pending record, of what was staged before, of the claim."""


def resync(log: str, fault: str = "") -> tuple[int, str]:
    """The exit code of the command, and its standard output."""
    command = [HEADRACE, "capture", "resync", "--log", log, "--json"]
    child = Child(command, env={**os.environ, "HEADRACE_FAULT": fault}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, words = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), words.decode()
    return child.returncode, out.decode()


def events(app: hr.App) -> list[tuple[Any, ...]]:
    rows = app.topic(f"{app.name}.public.t").read().to_arrow().to_pylist()
    return [(row["op"], row["id"], row["x"], row["position"]) for row in rows]


def test_a_kill_at_an_edge_of_a_resync(database: Database, tmp_path: Path) -> None:
    killed_at_every_edge(database, str(tmp_path / "killed.headrace"))


@pytest.mark.slow
def test_a_kill_at_an_edge_of_a_resync_on_a_cluster(database: Database, broker: KafkaBroker) -> None:
    killed_at_every_edge(database, f"kafka://{broker.bootstrap}/{database.name}")


def killed_at_every_edge(database: Database, log: str) -> None:
    """Kill one resync at each edge, one after the other, while the table changes; the last one is whole."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, x float8)")
    database.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1, 10) i")
    app = hr.App(database.name, log=log)
    db = app.postgres(database.dsn, tables=r"public\.t")
    model = app.model("m", hr.KMeans(k=2), features=["x"])
    model.learn(db["public.t"], every=4)
    model.predict(db["public.t"]).to(f"{database.name}-predicted")
    app.run(until="caught-up")
    before = events(app)
    database.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    for number, edge in enumerate(EDGES, 1):
        database.execute("UPDATE t SET x = %s WHERE id <= 2", number)
        database.execute("DELETE FROM t WHERE id = %s", 2 + number)
        database.execute("INSERT INTO t VALUES (%s, 0)", 100 + number)
        assert resync(app.log, edge)[0] == -signal.SIGKILL, f"nothing passes {edge}"
        assert (events(app) != before) == (edge == EDGES[-1]), edge
        if edge == EDGES[1]:
            with pytest.raises(HeadraceError, match=f"was not finished.*\n.*capture resync --log {app.log}"):
                app.run(until="caught-up")
    n = len(EDGES)
    ops = [*(("c", 100 + i) for i in range(1, n + 1)), *(("d", 2 + i) for i in range(1, n + 1)), ("u", 1), ("u", 2)]
    assert sorted(event[:2] for event in events(app)[len(before) :]) == ops
    assert len({position for *_, position in events(app)}) == len(events(app))
    assert json.loads(resync(app.log)[1])["sources"][0]["needed"] is False
    database.execute("INSERT INTO t VALUES (1000, 0), (1001, 0), (1002, 0)")
    with app.start() as running:
        running.wait(timeout=60)
        assert running["m"].learned == (10 + n + 3) // 4 * 4
    verify(app)
