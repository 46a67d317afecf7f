"""Real destinations: a database of its own for each test, a collection's server, a receiver on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from headrace.testing.servers import JavaMissing, MongoDbServer, PostgresServer

from .receiver import Receiver

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def dsn(server: PostgresServer) -> Iterator[str]:
    """A fresh database."""
    name = f"sinks_{uuid.uuid4().hex[:10]}"
    server.execute(f'create database "{name}"')
    yield server.dsn.replace("/postgres?", f"/{name}?")
    server.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def query(dsn: str) -> Query:
    """Run one statement in it."""

    def run(statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture(scope="session")
def mongo() -> Iterator[MongoDbServer]:
    """One server of MongoDB's protocol for the session; tests use databases of their own in it."""
    try:
        server = MongoDbServer()
        with server:
            yield server
    except JavaMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running
