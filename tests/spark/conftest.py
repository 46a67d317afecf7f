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
    """Topics of two pipelines; see `pipelines.prepare`."""
    return pipelines.prepare(broker, topic_prefix)
