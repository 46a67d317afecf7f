"""A pipeline is killed while predictions wait, windows are open and a model is trained: nothing shows it afterwards."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.log import open_log
from headrace.replay.verify import verify
from tests.processes import run_python

from . import fish, harness
from .test_kill import ROUNDS

PROGRAM = Path(__file__).parent / "fish.py"
# Each names a passage in the middle, where something waits, is open or has just begun.
EDGES = {
    "derive.joined": (60, 150),
    "derive.windowed": (100,),
    "derive.alarmed": (130,),
    "derive.drifted": (120,),
    "train.trained": (1,),
    "train.swapped": (1,),
    "engine.stepped": (40, 125),
    "log.before-commit": (128,),
    "log.after-commit": (90, 131),
}
CASES = [f"{edge}:{passage}" for edge, passages in EDGES.items() for passage in passages]
CASES = CASES if ROUNDS >= 100 else CASES[::4]


def run(log: Path, fault: str = "", *more: str) -> int:
    import os

    environment = {**os.environ, "HEADRACE_FAULT": fault}
    done = run_python([sys.executable, PROGRAM, log, *more], env=environment, timeout=120, check=False)
    return done.returncode


def contents(log: Path) -> dict[str, list[dict[str, Any]]]:
    """Every output, without the times at which rows were taken in."""
    return harness.rows_written(log, fish.OUTPUTS, timed=["grades"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = tmp_path_factory.mktemp("whole") / "fish.headrace"
    assert run(log) == 0
    return log


def test_the_run_has_all_that_can_be_killed(whole: Path) -> None:
    found = contents(whole)
    assert {row["status"] for row in found["grades"]} == {"graded", "corrected", "late", "expired"}
    assert all(found.values())
    assert "trained" in [row["status"] for row in found["weight-training"]]


@pytest.mark.parametrize("fault", CASES)
def test_killed_and_started_again_it_is_as_if_it_had_never_been(fault: str, whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "fish.headrace"
    assert run(log, fault) == -signal.SIGKILL
    assert run(log) == 0
    assert contents(log) == contents(whole)
    held = open_log(str(log), writer=False)
    try:
        assert verify(fish.build(str(log)).plan(), held).result == "equal"
    finally:
        held.close()


@pytest.mark.parametrize("fault", ["log.before-commit:131", "log.after-commit:140"][: 2 if ROUNDS >= 100 else 1])
def test_a_training_beside_the_pipeline_survives(fault: str, tmp_path: Path) -> None:
    """Where its swap falls is timing's business; that it falls once, and is replayed, is ours."""
    log = tmp_path / "fish.headrace"
    assert run(log, fault, "when_ready") == -signal.SIGKILL
    assert run(log, "", "when_ready") == 0
    statuses = [row["status"] for row in contents(log)["weight-training"]]
    assert statuses[:2] == ["started", "trained"] and statuses.count("started") == statuses.count("trained")
    held = open_log(str(log), writer=False)
    try:
        assert verify(fish.build(str(log), "when_ready").plan(), held).result == "equal"
    finally:
        held.close()
