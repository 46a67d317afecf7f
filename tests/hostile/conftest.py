"""Rows of every column type, captured once from a real server: each by the snapshot and then by the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.log import open_log
from headrace.log.base import walk
from headrace.testing.servers import PostgresServer
from tests.databases import fresh_database

from .values import ODD_ARRAYS, OWN, columns

TEXTS = 5


@dataclass
class Captured:
    """What capture made of the rows.

    Attributes:
        log: a file with the topics ``h.public.…``.
        topics: by column type.
        batches, dead: of each column type: the rows, and reasons of dead letters.
        inserted: how many rows of each.
    """

    log: Path
    topics: dict[str, str] = field(default_factory=dict)
    batches: dict[str, list[Batch]] = field(default_factory=dict)
    dead: dict[str, list[str]] = field(default_factory=dict)
    inserted: dict[str, int] = field(default_factory=dict)

    def kinds(self, *, every: bool) -> list[str]:
        """Types of columns that have rows; unless every one is wanted, few of those that are just text in Arrow."""
        found, texts = [], 0
        for kind, batches in self.batches.items():
            if not batches or (kind.endswith("[]") and kind not in ODD_ARRAYS):
                continue
            plain = pa.types.is_string(batches[0].schema.field("v").type) and not kind.startswith("numeric")
            texts += plain
            if every or not plain or texts <= TEXTS or kind in ODD_ARRAYS:
                found.append(kind)
        return found

    def each(self) -> Iterator[tuple[str, Batch]]:
        """Every batch with its column's type."""
        for kind, batches in self.batches.items():
            for batch in batches:
                yield kind, batch


@pytest.fixture(scope="session")
def captured(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Captured]:
    """Every value of `values.columns`, captured."""
    with fresh_database(server, "hostile") as database:
        found = Captured(tmp_path_factory.mktemp("hostile") / "captured.headrace")
        with psycopg.connect(database.dsn, autocommit=True) as connection:
            connection.execute(OWN.encode())
            for i, kind in enumerate(columns()):
                connection.execute(f"create table h{i} (id int primary key, v {kind}, x float8, y float8)".encode())
                connection.execute(f"alter table h{i} replica identity full".encode())
                found.topics[kind] = f"h.public.h{i}"
            _insert(connection, found, first=0)
            app = hr.App("captured", log=found.log)
            app.postgres(database.dsn, tables=r"public\..*", prefix="h")
            with app.start() as running:
                _insert(connection, found, first=100)
                running.wait(120)
        with contextlib.closing(open_log(found.log, writer=False)) as log:
            for kind, topic in found.topics.items():
                found.batches[kind] = (
                    [Batch(entry.records) for entry in walk(log, topic)] if topic in log.topics() else []
                )
                letters = walk(log, f"{topic}.dlq") if f"{topic}.dlq" in log.topics() else []
                found.dead[kind] = [
                    reason for entry in letters for reason in entry.records.column("reason").to_pylist()
                ]
        yield found


def _insert(connection: psycopg.Connection, found: Captured, *, first: int) -> None:
    with connection.transaction():
        for i, (kind, values) in enumerate(columns().items()):
            rows = ", ".join(f"({first + n}, {value}, {n}, {2 * n})" for n, value in enumerate(values))
            connection.execute(f"insert into h{i} values {rows}".encode())
            found.inserted[kind] = found.inserted.get(kind, 0) + len(values)
