"""Fixtures that many tests share."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from headrace.testing.servers import (
    JavaMissing,
    JavaServer,
    KafkaBroker,
    KafkaConnect,
    PostgresServer,
    SchemaRegistryServer,
    postgres,
)

# Tests that use one of these run in one worker of pytest-xdist (`--dist loadgroup`): a JVM takes 0.3 GB and a core.
JAVA_FIXTURES = frozenset({"broker", "connect", "registry"})
Server = TypeVar("Server", bound=JavaServer)


def pytest_configure(config: pytest.Config) -> None:
    """Without xdist nobody else knows its mark."""
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs, one after another")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with a JVM into one group, before xdist reads the groups into the tests' ids."""
    for item in items:
        if JAVA_FIXTURES & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("kafka"))


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole session (per xdist worker); tests use a database of their own in it."""
    with postgres() as running:
        yield running


@pytest.fixture(scope="session")
def broker() -> Iterator[KafkaBroker]:
    """One Kafka for the whole session; tests use topics of their own in it. Skips where there is no Java."""
    with started(KafkaBroker) as running:
        yield running


@pytest.fixture(scope="session")
def connect(broker: KafkaBroker) -> Iterator[KafkaConnect]:
    """One Kafka Connect for the whole session, with Debezium and Avro; tests delete the connectors they make."""
    with started(KafkaConnect, broker.bootstrap, ("debezium-postgres", "debezium-jdbc", "avro")) as running:
        yield running


@pytest.fixture(scope="session")
def registry() -> Iterator[SchemaRegistryServer]:
    """One schema registry for the whole session; tests use subjects of their own in it."""
    with started(SchemaRegistryServer) as running:
        yield running


@contextlib.contextmanager
def started(kind: Callable[..., Server], *arguments: object) -> Iterator[Server]:
    """A server; where it cannot run, the tests that ask for it skip, and say why."""
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(kind(*arguments))
        except JavaMissing as error:
            pytest.skip(str(error))
        yield server


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """The beginning of names of topics, consumer groups or slots that no other test has: `test_some_thing_3f9a1c`."""
    name = re.sub(r"\W+", "_", request.node.name.partition("@")[0]).strip("_").lower()
    return f"{name[:40]}_{secrets.token_hex(3)}"


@pytest.fixture
def shared_data() -> Path:
    """The real data beside the checkout; skips where that folder is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.exists():
        pytest.skip("../shared/data is not there")
    return folder
