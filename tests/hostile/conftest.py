"""A database of a test's own, as the integration tests have it."""

from tests.integration.conftest import database

__all__ = ["database"]
