"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.testing.servers import PostgresServer, postgres


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole session (per xdist worker); tests use a database of their own in it."""
    with postgres() as running:
        yield running


@pytest.fixture
def shared_data() -> Path:
    """The real data beside the checkout; skips where that folder is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.exists():
        pytest.skip("../shared/data is not there")
    return folder
