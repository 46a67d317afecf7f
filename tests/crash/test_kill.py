"""SIGKILL at every edge of a commit, and at random: the log ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path

import psycopg
import pytest

from . import harness
from .harness import write

ROUNDS = int(os.environ.get("HEADRACE_CRASH_ROUNDS", "12"))
EDGES = (
    "log.before-commit",
    "log.after-commit",
    "engine.captured",
    "engine.stepped",
    "engine.committed",
    "engine.acknowledged",
    "source.before-acknowledge",
    "source.after-acknowledge",
)
SNAPSHOT_EDGES = (
    "snapshot.slot-created",
    "snapshot.piece-staged",
    "snapshot.before-publish",
    "snapshot.after-publish",
)


@pytest.mark.parametrize("edges", harness.chains(*EDGES))
def test_a_kill_at_an_edge_of_the_commit_changes_nothing(dsn: str, edges: tuple[str, ...], tmp_path: Path) -> None:
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    for number, edge in enumerate(edges):
        write(dsn, seed=number, transactions=30)
        killed = 0
        for passage in (1, 2):
            child = harness.start(dsn, tmp_path / "killed.headrace", fault=f"{edge}:{passage}")
            killed += harness.finish(child) == -signal.SIGKILL
            write(dsn, seed=100 * number + passage, transactions=5)
        assert killed, f"no run passed the fault point {edge}"
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    killed_log, whole = (harness.contents(tmp_path / f"{name}.headrace") for name in ("killed", "whole"))
    for name in whole:
        assert killed_log[name] == whole[name], name


@pytest.mark.parametrize("edges", harness.chains(*SNAPSHOT_EDGES))
def test_a_kill_in_the_snapshot_starts_it_again(dsn: str, edges: tuple[str, ...], tmp_path: Path) -> None:
    write(dsn, seed=1, transactions=40)
    for edge in edges:
        assert harness.finish(harness.start(dsn, tmp_path / "killed.headrace", fault=edge)) == -signal.SIGKILL
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    killed = harness.contents(tmp_path / "killed.headrace", positions=False)
    assert killed == harness.contents(tmp_path / "whole.headrace", positions=False)
    assert [row["id"] for row in killed["c.public.c_train"]] == sorted({r["id"] for r in killed["c.public.c_train"]})


def test_kills_at_random_while_a_writer_writes(dsn: str, tmp_path: Path) -> None:
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    chance = random.Random(int(os.environ.get("HEADRACE_CRASH_SEED", "7")))
    done = threading.Event()

    def keep_writing() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            mine = random.Random(5)
            while not done.wait(0.01):
                harness.transaction(connection, mine)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for _ in range(ROUNDS):
            # Most kills fall behind the start, which takes a tenth of a second; some into it.
            harness.kill_after(harness.start(dsn, tmp_path / "killed.headrace"), chance.uniform(0.05, 0.8))
    finally:
        done.set()
        writer.join()
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    killed, whole = (harness.contents(tmp_path / f"{name}.headrace") for name in ("killed", "whole"))
    assert killed["counted_out"], "the writer wrote nothing"
    for name in whole:
        assert killed[name] == whole[name], name
