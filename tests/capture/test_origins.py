"""Where a transaction was replicated from is said of its changes, and of no other's."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.capture.test_decode import Database, feed
from tests.capture.test_logical_messages import decoder, emit

from headrace.batch import CHANGE, ORIGIN
from headrace.errors import DecodeError
from headrace.inspect.debezium import event_lines
from headrace.log.base import Log
from headrace.log.sqlite import SqliteLog
from headrace.position import parse_lsn
from headrace.testing.servers import PostgresServer

from .conftest import Capture, CapturedDatabase

# A quotation mark and letters of two and four bytes, an LSN that Java's long has below zero, and none at all.
PLACES = {'dc1 "ä"🙂': "0/12345", "dc2": "FFFFFFFF/FFFFFFFE", "dc3": ""}


class Origins:
    """Connections of which each works for a replication origin; origins are of the whole server."""

    def __init__(self, dsn: str, suffix: str) -> None:
        self.dsn, self.suffix, self.made = dsn, suffix, list[str]()

    @contextlib.contextmanager
    def connection(self, name: str | None) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        with psycopg.connect(self.dsn) as connection:
            if name is not None:
                full = self.full(name)
                if full not in self.made:
                    connection.execute("SELECT pg_replication_origin_create(%s)", [full])
                    self.made.append(full)
                connection.execute("SELECT pg_replication_origin_session_setup(%s)", [full])
                connection.commit()
            yield connection

    def full(self, name: str) -> str:
        return f"{name} {self.suffix}"

    def drop(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for name in self.made:
                connection.execute("SELECT pg_replication_origin_drop(%s)", [name])


@pytest.fixture
def origins(database: CapturedDatabase) -> Iterator[Origins]:
    made = Origins(database.dsn, database.name)
    try:
        yield made
    finally:
        made.drop()


def since(connection: psycopg.Connection[tuple[Any, ...]], lsn: str) -> None:
    """Say that the transaction committed there at an LSN."""
    if lsn:
        connection.execute("SELECT pg_replication_origin_xact_setup(%s, now())", [lsn])


def told(log: Log) -> list[tuple[Any, ...]]:
    """Return op, id, origin and its LSN of each event."""
    values = [value for line in event_lines(log) if (value := json.loads(line)["value"]) is not None]
    return [
        (v["op"], (v["after"] or v["before"])["id"], v["source"]["origin"], v["source"]["origin_lsn"])
        if v["op"] != "m"
        else ("m", v["message"]["prefix"], v["source"]["origin"], v["source"]["origin_lsn"])
        for v in values
    ]


def test_the_source_block_says_the_origin(
    database: CapturedDatabase, capture: Capture, origins: Origins, tmp_path: Path
) -> None:
    expected: list[tuple[Any, ...]] = [("r", 0, None, None)]
    options: dict[str, Any] = {"debezium": {}, "messages": [".*"], "max_open_rows": 2}
    with origins.connection("dc0") as connection:
        since(connection, "0/1")
        connection.execute("INSERT INTO t VALUES (0, 1)")
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log, **options)
    for number, (name, lsn) in enumerate(PLACES.items(), 1):
        # What is 0 is not null: the origin is known, and where it committed is not.
        place = origins.full(name), parse_lsn(lsn) - (1 << 64) * lsn.startswith("F") if lsn else 0
        with origins.connection(name) as connection:
            since(connection, lsn)
            connection.execute(
                "INSERT INTO t SELECT i, 0 FROM generate_series(%s::int, %s) i", [number * 10, number * 10 + 4]
            )
            connection.execute("UPDATE t SET x = 2 WHERE id = %s", [number * 10])
            connection.execute(emit(True, "inside", "x").encode())
            connection.execute(emit(False, "apart", "x").encode())
            connection.execute("DELETE FROM t WHERE id = %s", [number * 10])
            connection.commit()
            # Another transaction of the session committed elsewhere there, or at an LSN that nobody gave.
            connection.execute("INSERT INTO t VALUES (%s, 1)", [number * 10 + 5])
        database.execute("INSERT INTO t VALUES (%s, 1)", number * 10 + 6)
        expected += [
            ("m", "apart", None, None),
            *(("c", number * 10 + at, *place) for at in range(5)),
            ("u", number * 10, *place),
            ("m", "inside", *place),
            ("d", number * 10, *place),
            ("c", number * 10 + 5, *place),
            ("c", number * 10 + 6, None, None),
        ]
        if number == 2:  # in the middle of what was written: some of it comes again
            while not any(piece.rows for piece in engine.source.poll(0.1)):
                pass
            engine.source.stop()
            log.close()
            log = SqliteLog(tmp_path / "log", writer=True)
            engine = capture(log, **options)
    engine.catch_up()
    assert told(log) == expected
    flat = [json.loads(line) for line in event_lines(log, topic=database.topic(), schemas=True)]
    fields = {field["field"]: field for field in flat[-1]["value"]["schema"]["fields"][2]["fields"]}
    assert fields["origin"]["type"] == "string" and fields["origin_lsn"]["type"] == "int64"
    log.close()


def test_transactions_that_are_interleaved_have_their_own(
    database: CapturedDatabase, capture: Capture, origins: Origins
) -> None:
    """They are sent whole, one after the other, whatever lies between their changes in the WAL."""
    engine = capture(debezium={}, max_open_rows=3)
    with (
        origins.connection("one") as one,
        origins.connection("two") as two,
        origins.connection(None) as here,
    ):
        since(one, "0/10")
        since(two, "0/20")
        for at in range(6):
            for number, connection in enumerate((one, two, here)):
                connection.execute(f"SAVEPOINT s{at}".encode())
                connection.execute("INSERT INTO t VALUES (%s, 1)", [number * 100 + at])
                if at % 3 == 2:
                    connection.execute(f"ROLLBACK TO SAVEPOINT s{at}".encode())
        two.commit()
        here.commit()
        one.commit()
    engine.catch_up()
    kept = [at for at in range(6) if at % 3 != 2]
    assert told(engine.log) == [
        *(("c", 100 + at, origins.full("two"), 0x20) for at in kept),
        *(("c", 200 + at, None, None) for at in kept),
        *(("c", at, origins.full("one"), 0x10) for at in kept),
    ]


def test_origins_are_the_same_however_the_stream_is_cut(server: PostgresServer) -> None:
    database = Database(server, "origins")
    database.execute("SELECT pg_replication_origin_create('origins a'), pg_replication_origin_create('origins b')")
    statements = ["CREATE TABLE a (id int PRIMARY KEY)"]
    for number in range(60):
        name = (None, "origins a", "origins b")[number % 3]
        if name:
            statements += [f"SELECT pg_replication_origin_session_setup('{name}')"]
        statements += ["BEGIN"]
        if name:
            statements += [f"SELECT pg_replication_origin_xact_setup('0/{number + 1:X}', now())"]
        statements += [f"INSERT INTO a VALUES ({number * 10 + at})" for at in range(number % 5)]
        statements += ["TRUNCATE a"] if number % 7 == 0 else [emit(number % 2 == 0, "p", "x")]
        statements += ["COMMIT", *(["SELECT pg_replication_origin_session_reset()"] if name else [])]
    messages = database.sql(*statements)[True]
    database.execute("SELECT pg_replication_origin_drop('origins a'), pg_replication_origin_drop('origins b')")
    database.connection.close()

    def found(most: int, rows: int) -> list[tuple[Any, ...]]:
        events = []
        for piece in feed(decoder(max_open_rows=rows), messages, most, seed=most):
            for _, batch in piece.batches:
                names = batch.schema.names
                place = batch.column(ORIGIN.name).to_pylist() if ORIGIN.name in names else [None] * batch.num_rows
                assert (ORIGIN.name in names) == any(place)
                numbers = [change["number"] for change in batch.column(CHANGE).to_pylist()]
                events += list(zip(batch.lsn.tolist(), batch.index.tolist(), numbers, map(str, place), strict=True))
        return sorted(events, key=lambda event: event[:2])

    whole = found(len(messages), 65_536)
    # 40 of 60 have one, of which three wrote only what belongs to no transaction; and there is None.
    assert len({place for *_, place in whole}) == 40 - 3 + 1
    assert {place for _, _, number, place in whole if number is None} == {"None"}
    for most, rows in ((1, 65_536), (3, 2), (40, 1)):
        assert found(most, rows) == whole


@pytest.mark.parametrize("body", [b"O", b"O" + bytes(8), b"O" + bytes(8) + b"dc1", b"O" + bytes(8) + b"d\0c\0"])
def test_an_origin_that_does_not_end_where_its_message_does_is_an_error(body: bytes) -> None:
    begin = b"w" + bytes(24) + b"B" + bytes(20)
    with pytest.raises(DecodeError, match="an Origin whose name does not end"):
        decoder(max_open_rows=0).feed([begin, b"w" + bytes(24) + body])
