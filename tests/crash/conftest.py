"""A database with the tables of the pipelines that are killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headrace.testing.servers import PostgresServer

from . import harness


@pytest.fixture
def dsn(server: PostgresServer) -> Iterator[str]:
    made = harness.database(server)
    yield made.dsn
    made.drop()
