"""Fixtures that many tests share, and the rules of a test run: groups, examples, seconds."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from headrace.testing.servers import (
    FlinkCluster,
    JavaCluster,
    JavaMissing,
    JavaServer,
    KafkaBroker,
    KafkaConnect,
    MongoDbServer,
    PostgresServer,
    SchemaRegistryServer,
    SparkCluster,
    postgres,
)
from tests.databases import Database, fresh_database
from tests.processes import worked

# Tests that use one of these run in one worker of pytest-xdist (`--dist loadgroup`): a JVM takes 0.3 GB and a core.
JAVA_FIXTURES = frozenset({"broker", "connect", "registry", "spark_cluster", "flink_cluster"})
# Marks of tests that need an engine's packages, in an environment of its own.
ENGINE_PACKAGES = {"spark": "pyspark", "flink": "pyflink"}
# Theirs start clusters and jobs, each of which takes a minute of a machine that does other things too.
ENGINE_SECONDS = 1200
Server = TypeVar("Server", bound=JavaServer | JavaCluster)
Query = Callable[..., list[tuple[Any, ...]]]


# What an unmarked test should take, and what fails: twice as much, for the same test takes 9 s of one machine and 11 of
# another.
LIMIT_SECONDS = 10.0
FAILING_SECONDS = 2 * LIMIT_SECONDS
ADVICE = """this test took {seconds:.1f} s of the machine, and an unmarked one should take {limit:.0f} s at most.
Share what is dear with other tests (a server of the session, one run that all compare with, a chain of kills in one
life, `tests.processes` instead of an interpreter of its own), or mark it slow: then `make test-long` runs it."""

settings.register_profile("short", max_examples=60, deadline=None)
settings.register_profile("long", max_examples=400, deadline=None)


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples a property is tried with: more of them in the long form."""
    # Without xdist nobody else knows its mark.
    config.addinivalue_line("markers", "xdist_group(name): tests that one worker runs, one after another")
    settings.load_profile("long" if _long(config) else "short")


def _long(config: pytest.Config) -> bool:
    """Return whether this run is the long form: it chooses tests that are marked slow."""
    return "slow" in str(config.getoption("markexpr")).replace("not slow", "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests with a JVM into one group, before xdist reads the groups into the tests' ids.

    What needs an engine's packages skips where they are not installed, and has longer until it is taken to hang.
    """
    for item in items:
        if any(item.get_closest_marker(mark) for mark in ENGINE_PACKAGES) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(ENGINE_SECONDS))
        for engine, package in ENGINE_PACKAGES.items():
            if item.get_closest_marker(engine) is not None and find_spec(package) is None:
                item.add_marker(pytest.mark.skip(reason=f"{package} is not installed: make test-{engine}"))
        if JAVA_FIXTURES & set(getattr(item, "fixturenames", ())) and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("kafka"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Warn of an unmarked test that takes too long, and fail one that takes twice as long.

    The long form, where properties have more examples, is free.
    What counts is the larger of two: the seconds in which no process of the machine waited for a processor, and the
    processor's time of this process and of children that have ended. Other work on the machine makes a test last
    longer, but makes neither grow much; a test that sleeps, or that computes, cannot hide in it. What fixtures take is
    not counted.
    """
    wall, stalled, worked = time.monotonic(), _stalled(), _worked()
    result = yield
    seconds = max(time.monotonic() - wall - (_stalled() - stalled), _worked() - worked)
    marked = any(item.get_closest_marker(mark) is not None for mark in ("slow", *ENGINE_PACKAGES))
    free = marked or _long(item.config) or sys.gettrace() is not None
    if seconds > LIMIT_SECONDS and not free:
        advice = ADVICE.format(seconds=seconds, limit=LIMIT_SECONDS)
        if seconds > FAILING_SECONDS:
            pytest.fail(advice, pytrace=False)
        item.warn(pytest.PytestWarning(advice))
    return result


def _stalled() -> float:
    """The seconds in which something waited for a processor, since the machine started.

    The kernel counts them for all processes (https://docs.kernel.org/accounting/psi.html), or at least for this one.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _worked() -> float:
    """The processor's time, in seconds, of this process, its children that have ended, and those that were forked."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system + worked()


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole session (per xdist worker); tests use a database of their own in it.

    A kill of the server loses nothing that was written without `fsync`; only a power cut would.
    """
    with postgres(settings={"fsync": "off", "full_page_writes": "off"}) as running:
        yield running


@pytest.fixture
def database(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database of the session's server."""
    with fresh_database(server, request.node.originalname.removeprefix("test_")) as made:
        yield made


@pytest.fixture
def dsn(database: Database) -> str:
    """Where the test's database is."""
    return database.dsn


@pytest.fixture
def query(database: Database) -> Query:
    """Run one statement in the test's database."""
    return database.execute


@pytest.fixture(scope="session")
def mongo() -> Iterator[MongoDbServer]:
    """One server of MongoDB's protocol for the whole session; tests use databases of their own in it."""
    pytest.importorskip("pymongo")
    with started(MongoDbServer) as running:
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


@pytest.fixture(scope="session")
def spark_cluster() -> Iterator[SparkCluster]:
    """A master and two workers of Spark for the whole session; `make test-spark`."""
    with started(SparkCluster) as running:
        yield running


@pytest.fixture(scope="session")
def flink_cluster() -> Iterator[FlinkCluster]:
    """A job manager and two task managers of Flink for the whole session; `make test-flink`."""
    with started(FlinkCluster) as running:
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
