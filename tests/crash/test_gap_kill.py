"""SIGKILL at every edge of a start that goes on behind a gap: the log has passed it whole, or stands before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace.capture.postgres.gaps import passed_gaps
from headrace.log import open_log
from tests.databases import Database
from tests.processes import HEADRACE, Child

LAST = "log.after-commit:2"
EDGES = {
    "snapshot": (
        *("resync.begun", "snapshot.slot-created", "snapshot.piece-staged", "snapshot.before-publish"),
        *("log.before-commit:3", "log.after-commit:3", "snapshot.after-publish"),
    ),
    "accept": ("snapshot.slot-created", "log.before-commit:1", "log.after-commit:1", "log.before-commit:2", LAST),
}


def run(dsn: str, log: Path, policy: str, fault: str = "") -> str:
    """Capture until caught up; return what was said on standard error."""
    words = [HEADRACE, "capture", dsn, "--tables", r"public\.t", "--prefix", "p", "--log", str(log)]
    words += ["--until-caught-up", "--on-gap", policy]
    child = Child(words, env={**os.environ, "HEADRACE_FAULT": fault}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = child.communicate(timeout=120)
    expected = -signal.SIGKILL if fault else 0
    assert child.returncode == expected, f"{fault}: {said.decode()}"
    return said.decode()


def held(log: Path) -> tuple[list[Any], list[str]]:
    """The ids of events, and how the log has passed gaps."""
    with_log = open_log(str(log), writer=False)
    try:
        entries = with_log.read_topic("p.public.t", limit=10_000)
        ids = [value for entry in entries for value in entry.records.column("id").to_pylist()]
        return ids, [gap.handled for gap in passed_gaps(with_log, "p")]
    finally:
        with_log.close()


@pytest.mark.parametrize("policy", EDGES)
def test_a_kill_at_an_edge_of_a_gap(policy: str, database: Database, tmp_path: Path) -> None:
    log, dsn = tmp_path / "p.headrace", database.dsn
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    database.execute("INSERT INTO t VALUES (1)")
    run(dsn, log, "fail")
    for number, edge in enumerate(EDGES[policy], 2):
        # As long as the log stands before the gap, what was killed has not passed it.
        database.drop_slots()
        database.execute("INSERT INTO t VALUES (%s)", number)
        before = held(log)
        run(dsn, log, policy, edge)
        after = held(log)
        passed = len(after[1]) > len(before[1])
        assert passed == (edge == EDGES[policy][-1]), edge
        assert (after[0] != before[0]) == (passed and policy == "snapshot"), edge
        if not passed:
            with pytest.raises(AssertionError, match="--on-gap snapshot"):
                run(dsn, log, "fail")
    database.drop_slots()
    database.execute("INSERT INTO t VALUES (100)")
    said = run(dsn, log, policy)
    assert "Missing may be changes of public.t" in said
    database.execute("INSERT INTO t VALUES (101)")
    run(dsn, log, "fail")
    ids, passed_all = held(log)
    assert set(passed_all) == {policy}
    assert len(ids) == len(set(ids))
    last = [*range(1, len(EDGES[policy]) + 2), 100, 101] if policy == "snapshot" else [1, 101]
    assert sorted(ids) == last
    status = [HEADRACE, "capture", "status", "--log", str(log), "--json"]
    shown = Child(status, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert {gap["handled"] for gap in json.loads(shown.communicate(timeout=60)[0])["gaps"]} == {policy}
