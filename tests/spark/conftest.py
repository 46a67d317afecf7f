"""Fixtures of the tests with Spark (`make test-spark`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from headrace.testing.servers import KafkaBroker

from . import pipelines


@pytest.fixture(scope="session")
def context() -> Iterator[Any]:
    """The session's connection to Spark, in which every pipeline of this process finds its executors."""
    from headrace.engines.spark.session import connect

    found, _ = connect("tests", "local[2]", {"spark.ui.port": "0"})
    yield found
    found.stop()


@pytest.fixture
def prefix(broker: KafkaBroker, topic_prefix: str) -> str:
    """Topics of two pipelines, PREFIX-l and PREFIX-s, whose «cheap» has learned all it will, and knows the others."""
    for name in ("points", "train", "test"):
        broker.create_topic(f"{topic_prefix}-{name}")
    for names in (("train",), ("points", "test")):
        for name in names:
            pipelines.send(broker.bootstrap, f"{topic_prefix}-{name}", 0, 1000 if name == "train" else 10)
        for app in ("l", "s"):
            with pipelines.build(
                f"kafka://{broker.bootstrap}", f"{topic_prefix}-{app}", topic_prefix
            ).start() as running:
                running.wait(60)
    return topic_prefix
