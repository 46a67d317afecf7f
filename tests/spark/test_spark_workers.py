"""Executors as workers: the outputs are those of the local engine, whatever becomes of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.testing.servers import KafkaBroker
from tests.crash import harness

from . import pipelines
from .outcomes import jobs, outcome

pytestmark = pytest.mark.spark
MASTER = "local[2]"
ROWS = 3000


@pytest.fixture
def topic(broker: KafkaBroker, topic_prefix: str) -> str:
    name = f"{topic_prefix}-points"
    broker.create_topic(name)
    pipelines.send(broker.bootstrap, name, 0, ROWS)
    return name


def test_outputs_and_states_are_those_of_the_local_engine(context: Any, broker: KafkaBroker, topic: str) -> None:
    log = f"kafka://{broker.bootstrap}"
    before = len(jobs(context))
    for name, options in ((f"{topic}-l", {}), (f"{topic}-s", {"engine": "spark", "master": MASTER})):
        with pipelines.build(log, name, topic).start(**options) as running:
            running.wait(120)
    local, spark = outcome(broker, f"{topic}-l"), outcome(broker, f"{topic}-s")
    assert len(local[0]) == ROWS
    assert spark == local
    shown = jobs(context)[: -before or None]
    assert shown and all(text.startswith("predict species: ") for text in shown), shown
    harness.verify(pipelines.build(log, f"{topic}-s", topic))


@pytest.mark.parametrize("strike", ["kill", "fail"])
def test_a_task_that_dies_is_done_again(
    context: Any, broker: KafkaBroker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strike: str
) -> None:
    log = f"kafka://{broker.bootstrap}"
    with pipelines.build(log, f"{topic}-l", topic).start() as running:
        running.wait(120)
    monkeypatch.setenv(pipelines.STRIKES, str(tmp_path))
    (tmp_path / strike).touch()
    with pipelines.build(log, f"{topic}-s", topic).start(engine="spark", master=MASTER) as running:
        running.wait(120)
    assert not (tmp_path / strike).exists(), "nobody was struck"
    assert outcome(broker, f"{topic}-s") == outcome(broker, f"{topic}-l")
