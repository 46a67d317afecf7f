"""SIGKILL at every edge of the commit that goes back to a version: the log ends as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from headrace.log import open_log
from headrace.registry.requests import Request, put_request, read_requests
from headrace.registry.versions import VersionList, read_artifact
from headrace.replay.verify import verify

from . import harness
from .harness import write
from .rolled import build

PROGRAM = Path(__file__).parent / "rolled.py"
MODELS = ("counted", "each")
EDGES = ("log.before-commit", "log.after-commit", "engine.captured", "engine.stepped", "engine.committed")


def run(dsn: str, log: Path, fault: str = "") -> int:
    return harness.finish(harness.start(dsn, log, fault=fault, name=log.stem, program=PROGRAM))


def ask(log: Path, version: int) -> None:
    """What `headrace models rollback` leaves in the log of a pipeline that is stopped."""
    held = open_log(log, writer=True)
    with held.transaction() as txn:
        for model in MODELS:
            put_request(txn, Request("rollback", model, version, "somebody@here"))
    held.close()


def versions(log: Path) -> dict[str, Any]:
    """All versions, but for when they began, and the bytes of the states that are kept."""
    held = open_log(log, writer=False)
    try:
        assert not read_requests(held)
        found: dict[str, Any] = {}
        for model in MODELS:
            for version in VersionList.read(held, model):
                about = {key: value for key, value in version.to_dict().items() if key not in ("ts_us", "ended_us")}
                found[f"{model} {version.version}"] = (about, read_artifact(held, version.artifact))
        return found
    finally:
        held.close()


@pytest.mark.parametrize("edge", EDGES)
def test_a_kill_around_a_rollback_changes_nothing(dsn: str, edge: str, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed.headrace", tmp_path / "whole.headrace"
    logs = (killed, whole)
    for log in logs:
        run(dsn, log)
    write(dsn, seed=len(edge), transactions=30)
    for log in logs:
        run(dsn, log)
        ask(log, 1)
    write(dsn, seed=3, transactions=4)
    deaths = 0
    for passage in (1, 2, 3):
        deaths += run(dsn, killed, f"{edge}:{passage}") == -signal.SIGKILL
        run(dsn, whole)
        write(dsn, seed=10 + passage, transactions=4)
    assert deaths, f"no run passed the fault point {edge}"
    for log in logs:
        run(dsn, log)
    outputs = ("counted_out", "each_out", "c.public.c_train", "c.public.c_test")
    same = [harness.contents(log, name=log.stem, outputs=outputs, models=MODELS) for log in logs]
    assert same[0] == same[1]
    assert versions(killed) == versions(whole)
    reasons = [about["reason"] for about, _ in versions(killed).values()]
    assert reasons.count("rollback to version 1") == 2
    plan = build(dsn, killed, "killed").plan()
    held = open_log(killed, writer=False)
    assert verify(plan, held).result == "equal"
    held.close()
