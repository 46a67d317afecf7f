"""Executors as workers: the outputs are those of the local engine, whatever becomes of a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.testing.servers import KafkaBroker
from tests.waiting import wait_until

from . import pipelines
from .outcomes import gauges, jobs, outcome

pytestmark = pytest.mark.spark
MASTER = "local[2]"
POINTS, ROWS = 2_000, 20_000


def run(broker: KafkaBroker, name: str, prefix: str, context: Any = None, **options: Any) -> None:
    with pipelines.build(f"kafka://{broker.bootstrap}", name, prefix).start(**options) as running:
        running.wait(120)
        if context is not None:
            captured = sum(running.captured.values())
            wait_until(lambda: gauges(context, name) == {"rows": captured, "lag": 0}, "the metrics on Spark's page")


def test_outputs_and_states_are_those_of_the_local_engine(context: Any, broker: KafkaBroker, prefix: str) -> None:
    both = ((f"{prefix}-l", {}), (f"{prefix}-s", {"engine": "spark", "master": MASTER}))
    before = len(jobs(context))
    pipelines.send(broker.bootstrap, f"{prefix}-points", 10, POINTS)
    pipelines.send(broker.bootstrap, f"{prefix}-test", 10, ROWS)
    for name, options in both:
        run(broker, name, prefix, context if options else None, **options)
    local, spark = (outcome(broker, name, prefix) for name, _ in both)
    assert (len(local["out rows"]), len(local["cheap rows"])) == (POINTS + 10, ROWS + 10)
    for what in local:
        assert spark[what] == local[what], what
    shown = jobs(context)[: -before or None]
    for beginning in ("predict species: ", "predict cheap: "):
        assert any(text.startswith(beginning) for text in shown), shown
    # Rows of the other topic may wait beside these, and are decoded by the same job.
    assert any(text.startswith("decode ") and f"{prefix}-test: " in text for text in shown), shown


@pytest.mark.parametrize("strike", ["kill", "fail"])
def test_a_task_that_dies_is_done_again(
    context: Any, broker: KafkaBroker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strike: str
) -> None:
    pipelines.send(broker.bootstrap, f"{prefix}-points", 10, POINTS)
    run(broker, f"{prefix}-l", prefix)
    monkeypatch.setenv(pipelines.STRIKES, str(tmp_path))
    (tmp_path / strike).touch()
    run(broker, f"{prefix}-s", prefix, engine="spark", master=MASTER)
    assert not (tmp_path / strike).exists(), "nobody was struck"
    assert outcome(broker, f"{prefix}-s", prefix) == outcome(broker, f"{prefix}-l", prefix)


def test_a_pipeline_moves_to_spark_and_back(context: Any, broker: KafkaBroker, prefix: str) -> None:
    spark = {"engine": "spark", "master": MASTER}
    for number, options in enumerate(({}, spark, {}, spark)):
        pipelines.send(broker.bootstrap, f"{prefix}-points", 10 + number * 700, 700)
        pipelines.send(broker.bootstrap, f"{prefix}-test", 10 + number * 5000, 5000)
        run(broker, f"{prefix}-s", prefix, **options)
    run(broker, f"{prefix}-l", prefix)
    moved, stayed = outcome(broker, f"{prefix}-s", prefix), outcome(broker, f"{prefix}-l", prefix)
    for what in stayed:
        assert moved[what] == stayed[what], what
