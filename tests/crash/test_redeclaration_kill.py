"""A pipeline is killed around the step from which on it is declared differently: nothing shows it afterwards."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.log import open_log
from headrace.registry.models import read_declarations
from headrace.replay.verify import verify
from tests.processes import run_python

from . import harness, redeclaration
from .test_kill import ROUNDS

PROGRAM = Path(__file__).parent / "redeclaration.py"
# Within the transaction of the change, and when it is durable; afterwards.
EDGES = ("engine.declared:1", "engine.declaring:1")
LATER = ("log.before-commit:2", "log.after-commit:9", "train.trained:1")
CHAINS = [EDGES, *((edge,) for edge in (*EDGES, *LATER))] if ROUNDS >= 100 else [EDGES]


def run(log: Path, half: str, fault: str = "", *more: str) -> int:
    environment = {**os.environ, "HEADRACE_FAULT": fault, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = run_python([sys.executable, PROGRAM, log, half, *more], env=environment, timeout=120, check=False)
    return done.returncode


def contents(log: Path) -> dict[str, list[dict[str, Any]]]:
    return harness.rows_written(log, redeclaration.OUTPUTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    log = tmp_path_factory.mktemp("whole") / "fish.headrace"
    assert run(log, "before") == 0
    assert run(log, "after") == 0
    return log


def test_both_halves_train_by_their_own_alarm_and_can_be_verified(whole: Path) -> None:
    found = contents(whole)
    assert all(found.values()), {topic: len(rows) for topic, rows in found.items()}
    selections = {row["selection"] for row in found["weight-training"] if row["status"] == "trained"}
    assert selections == {"the last 15 rows", "the last 10 rows"}
    held = open_log(str(whole), writer=False)
    try:
        report = verify(redeclaration.build(str(whole)).plan(), held)
        (first, second) = read_declarations(held, "weight")
    finally:
        held.close()
    # What the drift detector found is not compared: how it was made is not told by the log. All else is.
    assert report.result == "equal", report
    assert first.step == 0 and any(change.startswith("alarm «alarms»: above 1.0 -> 0.2") for change in second.changes)
    assert "drifts" in {topic for task in report.tasks for topic in task.not_compared}


@pytest.mark.parametrize("faults", CHAINS, ids="-".join)
def test_killed_around_the_change_it_is_as_if_it_had_never_been(
    faults: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    log = tmp_path / "fish.headrace"
    assert run(log, "before", "", "kill") == -signal.SIGKILL
    for fault in faults:
        assert run(log, "after", fault) == -signal.SIGKILL
    assert run(log, "after") == 0
    assert contents(log) == contents(whole)
    held = open_log(str(log), writer=False)
    try:
        assert verify(redeclaration.build(str(log)).plan(), held).result == "equal"
        assert len(read_declarations(held, "weight")) == 2
    finally:
        held.close()
