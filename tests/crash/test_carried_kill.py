"""SIGKILL at edges of the commit, with values that are carried forward from the log: each row has its own after all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from headrace.log import open_log
from tests.capture.test_carried_values import Twins
from tests.databases import Database
from tests.processes import HEADRACE, Child

PROGRAM = """
import headrace as hr
app = hr.App({name!r}, log={log!r})
app.postgres({dsn!r}, tables=r"public\\.t_.*", toast="last")
"""
EDGES = ("log.before-commit:2", "log.after-commit:1")


def run(file: Path, fault: str = "") -> int:
    child = Child(
        [HEADRACE, "run", str(file), "--until-caught-up"],
        env={**os.environ, "HEADRACE_FAULT": fault},
        stderr=subprocess.PIPE,
    )
    _, words = child.communicate(timeout=120)
    assert child.returncode in (0, -signal.SIGKILL), words.decode()
    return child.returncode


@pytest.mark.slow
def test_a_kill_at_an_edge_of_the_commit(database: Database, tmp_path: Path) -> None:
    twins = Twins(database)
    twins.run(
        "INSERT INTO TWIN SELECT g, 'l', repeat(g || ' ', 3000), repeat('b', 4000)::bytea, 0 "
        "FROM generate_series(1, 20) g"
    )
    file, log = tmp_path / "app.py", tmp_path / "killed.headrace"
    file.write_text(PROGRAM.format(name=database.name, log=str(log), dsn=database.dsn))
    assert run(file) == 0
    for number, edge in enumerate(EDGES, 1):
        twins.run("UPDATE TWIN SET v = v + 1")
        twins.run(f"UPDATE TWIN SET a = repeat('{number} ', 4000) WHERE k % 3 = 0", "UPDATE TWIN SET v = v + 1")
        twins.run("UPDATE TWIN SET k = k + 100 WHERE k % 5 = 0", "UPDATE TWIN SET v = -v WHERE k % 2 = 0")
        assert run(file, edge) == -signal.SIGKILL, f"nothing passes {edge}"
    assert run(file) == 0
    with contextlib.closing(open_log(str(log), writer=False)) as held:
        assert twins.check(held) > 120
