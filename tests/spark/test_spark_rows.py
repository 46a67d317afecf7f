"""Rows that executors fetch, decode and predict: the driver knows their order, and the outputs are the same."""

from __future__ import annotations

from typing import Any

import pytest

import headrace as hr
from headrace.testing.servers import KafkaBroker
from tests.crash import harness

from . import pipelines
from .outcomes import jobs, outcome

pytestmark = pytest.mark.spark
ROWS = 20_000


def build(log: str, name: str, prefix: str) -> hr.App:
    app = hr.App(name, log=log)
    model = app.model("species", hr.KMeans(k=3, initial_centers=pipelines.CENTERS, decay=0.5), features=["x", "y"])
    model.learn(app.topic(f"{prefix}-train"), every=32)
    model.predict(app.topic(f"{prefix}-test")).to(f"{name}-out")
    return app


@pytest.fixture
def prefix(broker: KafkaBroker, topic_prefix: str) -> str:
    for name in ("train", "test"):
        broker.create_topic(f"{topic_prefix}-{name}")
    return topic_prefix


def run(broker: KafkaBroker, name: str, prefix: str, **options: Any) -> dict[str, int]:
    with build(f"kafka://{broker.bootstrap}", name, prefix).start(**options) as running:
        running.wait(120)
        return running["species"].counters


def test_rows_that_are_only_predicted_stay_on_executors(context: Any, broker: KafkaBroker, prefix: str) -> None:
    both = ((f"{prefix}-l", {}), (f"{prefix}-s", {"engine": "spark"}))
    pipelines.send(broker.bootstrap, f"{prefix}-train", 0, 1000)
    pipelines.send(broker.bootstrap, f"{prefix}-test", 0, 10)
    for name, options in both:
        run(broker, name, prefix, **options)
    before = len(jobs(context))
    pipelines.send(broker.bootstrap, f"{prefix}-test", 10, ROWS)
    local, spark = (run(broker, name, prefix, **options) for name, options in both)
    assert local == spark
    assert outcome(broker, f"{prefix}-s") == outcome(broker, f"{prefix}-l")
    shown = jobs(context)[: -before or None]
    assert any(text.startswith(f"decode {prefix}-test: ") for text in shown), shown
    assert any(text.startswith("predict species: ") for text in shown), shown
    harness.verify(build(f"kafka://{broker.bootstrap}", f"{prefix}-s", prefix))
