"""The decoder against a real PostgreSQL: what the stream decodes to is what SELECT gives.

Every workload is read through two temporary slots at once, one in binary and one in text mode.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from psycopg import pq

from headrace.batch import Batch, dead_letters
from headrace.capture.postgres.decode import Decoder, NeedsTextMode, Piece
from headrace.errors import DecodeError
from headrace.position import parse_lsn
from headrace.testing.servers import PostgresServer

# --- reading a real stream ---

_SETTINGS = "-c datestyle=ISO -c timezone=UTC -c bytea_output=hex -c intervalstyle=postgres"


class Stream:
    """One replication connection on a temporary slot that begins now."""

    def __init__(self, server: PostgresServer, database: str, slot: str, binary: bool) -> None:
        dsn = f"host={server.directory} port={server.port} user=postgres dbname={database} replication=database"
        self.connection = pq.PGconn.connect(f"{dsn} options='{_SETTINGS}'".encode())
        assert self.connection.status == pq.ConnStatus.OK, self.connection.error_message
        self._run(f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        options = f"proto_version '1', publication_names 'p', binary '{str(binary).lower()}', messages 'true'"
        self._run(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})")

    def _run(self, command: str) -> None:
        result = self.connection.exec_(command.encode())
        assert result.status in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COPY_BOTH), result.error_message

    def until(self, lsn: int) -> list[bytes]:
        """All XLogData messages until the server says that it has sent everything below an LSN."""
        messages: list[bytes] = []
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            size, data = self.connection.get_copy_data(1)
            if size > 0:
                payload = bytes(data)
                if payload[:1] == b"w":
                    messages.append(payload)
                elif struct.unpack_from(">Q", payload, 1)[0] >= lsn:
                    return messages
                continue
            self.connection.put_copy_data(struct.pack(">cQQQQB", b"r", 0, 0, 0, 0, 1))
            self.connection.flush()
            select.select([self.connection.socket], [], [], 0.05)
            self.connection.consume_input()
        raise TimeoutError(f"the server did not reach {lsn}")


class Database:
    """A database of its own with a publication of all tables."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server, self.name = server, name
        self.connection = psycopg.connect(
            host=str(server.directory), port=server.port, user="postgres", dbname=name, autocommit=True
        )
        self.execute("CREATE PUBLICATION p FOR ALL TABLES")

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def captured(self) -> Iterator[dict[bool, list[bytes]]]:
        """Messages of what is done inside, by binary or not; filled at the end."""
        streams = {binary: Stream(self.server, self.name, f"s_{self.name}_{binary}".lower(), binary) for binary in (True, False)}
        result: dict[bool, list[bytes]] = {}
        yield result
        lsn = parse_lsn(self.execute("SELECT pg_current_wal_flush_lsn()::text")[0][0])
        for binary, stream in streams.items():
            result[binary] = stream.until(lsn)
            stream.connection.finish()


@pytest.fixture
def database(server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[Database]:
    name = f"d{abs(hash(request.node.nodeid)) % 10**10}"
    server.execute(f"CREATE DATABASE {name}")
    one = Database(server, name)
    yield one
    one.connection.close()
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def decode(messages: Sequence[bytes], **options: Any) -> list[Piece]:
    return Decoder("shop", **options).feed(messages)


def by_topic(pieces: Sequence[Piece], *, rejected: bool = False) -> dict[str, list[pa.RecordBatch]]:
    found: dict[str, list[pa.RecordBatch]] = {}
    for piece in pieces:
        for topic, batch in piece.rejected if rejected else piece.batches:
            batch.records.validate(full=True)
            found.setdefault(topic, []).append(batch.records)
    return found


def rows(pieces: Sequence[Piece], topic: str) -> list[dict[str, Any]]:
    """Rows of a topic as dicts without the event columns, commit order checked."""
    batches = by_topic(pieces).get(topic, [])
    positions = [pair for one in batches for pair in zip(Batch(one).lsn.tolist(), Batch(one).index.tolist(), strict=True)]
    assert positions == sorted(positions) and len(set(positions)) == len(positions)
    return [row for one in batches for row in Batch(one).rows.to_pylist()]


def events(pieces: Sequence[Piece], topic: str) -> list[tuple[str, dict[str, Any]]]:
    """(op, row) of a topic."""
    batches = [Batch(one) for one in by_topic(pieces)[topic]]
    return [(chr(op), row) for b in batches for op, row in zip(b.op.tolist(), b.rows.to_pylist(), strict=True)]


def same(first: Sequence[Piece], second: Sequence[Piece]) -> None:
    """Both decoded to equal rows, schemas, events and dead letters, however they are cut."""
    for rejected in (False, True):
        one, two = by_topic(first, rejected=rejected), by_topic(second, rejected=rejected)
        assert one.keys() == two.keys()
        for topic in one:
            assert _runs(one[topic]) == _runs(two[topic])
    assert sum(p.rows for p in first) == sum(p.rows for p in second)
    assert sum(p.commits for p in first) == sum(p.commits for p in second)


def _runs(batches: list[pa.RecordBatch]) -> list[str]:
    """Rows with their field types as text: optional columns may be there or not, NaN equals NaN."""
    texts = []
    for batch in batches:
        types = [(f.name, str(f.type), f.metadata) for f in batch.schema if not f.name.startswith("__")]
        plain = batch
        for index, one in enumerate(batch.schema):
            if pa.types.is_temporal(one.type):
                plain = plain.set_column(index, one.name, batch.column(index).view(pa.int32() if pa.types.is_date(one.type) else pa.int64()))
        for row in plain.to_pylist():
            row["__unchanged"] = row.get("__unchanged") or []
            row["__before"] = str(row.get("__before"))
            texts.append(f"{types} {sorted(row.items())}")
    return texts


# --- tests ---


def test_types_quick(database: Database) -> None:
    database.execute("CREATE TABLE t(id int primary key, f float8, s text, n numeric(10,2), m numeric, ts timestamptz, d date, b bool, u uuid, y bytea, j jsonb)")
    with database.captured() as messages:
        database.execute("INSERT INTO t SELECT i, i/3.0, 'x'||i, i*1.5, i/7.0, now(), current_date, i%2=0, gen_random_uuid(), decode(md5(i::text),'hex'), '{\"a\":1}' FROM generate_series(1,1000) i")
        database.execute("INSERT INTO t(id) VALUES (0)")
    pieces = decode(messages[True])
    same(pieces, decode(messages[False]))
    print(pieces[0].batches[0][1].records.slice(0,2).to_pylist())
