"""SIGKILL at every edge of a commit, and at random: the log ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from headrace.testing.servers import PostgresServer

from . import harness

ROUNDS = int(os.environ.get("HEADRACE_CRASH_ROUNDS", "20"))
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


@pytest.fixture
def dsn(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"crash_{abs(hash(request.node.name)) % 10**8}"
    yield harness.database(server, name)
    harness.drop(server, name)


def write(dsn: str, seed: int, transactions: int) -> None:
    chance = random.Random(seed)
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(transactions):
            harness.transaction(connection, chance)


@pytest.mark.parametrize("edge", EDGES)
def test_a_kill_at_an_edge_of_the_commit_changes_nothing(dsn: str, edge: str, tmp_path: Path) -> None:
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    write(dsn, seed=len(edge), transactions=30)
    killed = 0
    for passage in (1, 2):
        child = harness.start(dsn, tmp_path / "killed.headrace", fault=f"{edge}:{passage}")
        killed += harness.finish(child) == -signal.SIGKILL
        write(dsn, seed=passage, transactions=5)
    assert killed, f"no run passed the fault point {edge}"
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    assert harness.contents(tmp_path / "killed.headrace") == harness.contents(tmp_path / "whole.headrace")


@pytest.mark.parametrize("edge", SNAPSHOT_EDGES)
def test_a_kill_in_the_snapshot_starts_it_again(dsn: str, edge: str, tmp_path: Path) -> None:
    write(dsn, seed=1, transactions=40)
    child = harness.start(dsn, tmp_path / "killed.headrace", fault=edge)
    assert harness.finish(child) == -signal.SIGKILL
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
            # An import takes half a second: most kills fall after it, some into the start.
            harness.kill_after(harness.start(dsn, tmp_path / "killed.headrace"), chance.uniform(0.4, 1.6))
    finally:
        done.set()
        writer.join()
    harness.run(dsn, tmp_path / "killed.headrace")
    harness.run(dsn, tmp_path / "whole.headrace", name="whole")
    killed, whole = (harness.contents(tmp_path / f"{name}.headrace") for name in ("killed", "whole"))
    assert killed["counted_out"], "the writer wrote nothing"
    for name in whole:
        assert killed[name] == whole[name], name
