"""A database for each test, on the server that a session shares."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from headrace.testing.servers import PostgresServer

DEBIAN = Path("/usr/lib/postgresql/15/bin")
"""Debian's PostgreSQL 15, where it is installed: with contrib extensions and TLS, which the embedded one has not."""


def debian_binaries() -> Path:
    """Return where it is; the tests that ask for it skip where it is not."""
    if not (DEBIAN / "initdb").exists():
        pytest.skip("postgresql-15 of Debian is not installed")
    return DEBIAN


class Database:
    """One database of a server. Its replication slots go with it."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server, self.name = server, name
        self.dsn = server.dsn.replace("/postgres?", f"/{name}?")

    @classmethod
    def create(cls, server: PostgresServer, name: str = "test", options: str = "") -> Self:
        """Make an empty database; its name begins with this one, and is no other's."""
        plain = re.sub(r"\W", "_", name).strip("_").lower()[:40]
        name = f"{plain}_{secrets.token_hex(4)}"
        server.execute(f"CREATE DATABASE {name} {options}")
        return cls(server, name)

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own; its rows, if it has any."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def drop_slots(self) -> None:
        """Drop its replication slots, and end who reads them."""
        slots = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s"
        for slot, pid in self.server.execute(slots, self.name):
            if pid is not None:
                self.server.execute("SELECT pg_terminate_backend(%s, 10000)", pid)
            self.server.execute("SELECT pg_drop_replication_slot(%s)", slot)

    def drop(self) -> None:
        """Drop it, with its slots and whoever is connected."""
        self.drop_slots()
        self.server.execute(f"DROP DATABASE {self.name} WITH (FORCE)")


@contextlib.contextmanager
def fresh_database(server: PostgresServer, name: str = "test", options: str = "") -> Iterator[Database]:
    """A database as long as a block lasts."""
    made = Database.create(server, name, options)
    try:
        yield made
    finally:
        made.drop()
