"""A database of its own for each test, with Iris tables in it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from headrace.testing.servers import PostgresServer


@dataclass
class Database:
    """One database of the session's server."""

    server: PostgresServer
    name: str

    @property
    def dsn(self) -> str:
        return self.server.dsn.replace("/postgres?", f"/{self.name}?")

    def execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    name = f"test_{uuid.uuid4().hex[:10]}"
    server.execute(f'create database "{name}"')
    yield Database(server, name)
    for slot, pid in server.execute("select slot_name, active_pid from pg_replication_slots where database = %s", name):
        if pid is not None:
            server.execute("select pg_terminate_backend(%s, 10000)", pid)
        server.execute("select pg_drop_replication_slot(%s)", slot)
    server.execute(f'drop database "{name}" with (force)')
