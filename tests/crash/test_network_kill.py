"""A network is killed at the edges of a commit: weights, moments and Dropout go on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from . import harness
from .harness import write

os.environ.setdefault("KERAS_BACKEND", "jax")
pytest.importorskip("keras")
pytest.importorskip("jax")
PROGRAM = Path(__file__).parent / "network.py"
EDGES = ("engine.stepped", "log.after-commit", "engine.captured", "log.before-commit")


def contents(log: Path) -> object:
    return harness.contents(log, outputs=("network_out", "c.public.c_train"), models=("network",))


@pytest.mark.slow  # each start of Keras takes two seconds
@pytest.mark.parametrize("edges", harness.chains(*EDGES))
def test_a_network_killed_goes_on_as_one_that_was_not(
    dsn: str, edges: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_NETWORK_SEED", "3")
    killed, whole = tmp_path / "killed.headrace", tmp_path / "whole.headrace"
    harness.run(dsn, killed, program=PROGRAM)
    harness.run(dsn, whole, name="whole", program=PROGRAM)
    for number, edge in enumerate(edges):
        write(dsn, seed=number, transactions=18)
        assert harness.finish(harness.start(dsn, killed, fault=f"{edge}:1", program=PROGRAM)) == -signal.SIGKILL
        write(dsn, seed=100 + number, transactions=6)
    harness.run(dsn, killed, program=PROGRAM)
    harness.run(dsn, whole, name="whole", program=PROGRAM)
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_weights_that_no_other_process_has_are_in_the_log(dsn: str, tmp_path: Path) -> None:
    """The first weights are stored before the first row is learned: a replay in a process with others is equal."""
    log = tmp_path / "network.headrace"
    write(dsn, seed=1, transactions=6)
    assert harness.finish(harness.start(dsn, log, fault="log.after-commit:3", program=PROGRAM)) == -signal.SIGKILL
    harness.run(dsn, log, program=PROGRAM)
    write(dsn, seed=2, transactions=6)
    harness.run(dsn, log, program=PROGRAM)
    sys.modules.pop("network", None)
    from .network import build

    harness.verify(build(dsn, log))
