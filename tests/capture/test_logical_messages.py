"""What pg_logical_emit_message writes is captured once, in its place; each change says where it lies, and in what."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.capture.test_decode import Database, feed

from headrace.batch import CHANGE
from headrace.capture.base import Piece
from headrace.capture.postgres.decode import Decoder
from headrace.capture.postgres.logical_messages import LogicalMessages
from headrace.errors import DecodeError
from headrace.formats.debezium_writer import EventOptions
from headrace.inspect.debezium import event_lines
from headrace.log.base import Log
from headrace.log.sqlite import SqliteLog
from headrace.position import Lsn
from headrace.testing.servers import PostgresServer

from .conftest import Capture, CapturedDatabase


def emit(transactional: bool, prefix: str, content: str) -> str:
    return f"SELECT pg_logical_emit_message({transactional}, '{prefix}', '{content}')"


def run(database: CapturedDatabase, *statements: str) -> None:
    for statement in statements:
        database.execute(statement)


def told(log: Log, topic: str) -> list[tuple[Any, ...]]:
    """Return LSN, index, prefix, content and whether it belongs to its transaction, of each message."""
    names = ("__lsn", "__index", "prefix", "content", "transactional")
    columns = [[v for e in log.read_topic(topic) for v in e.records.column(name).to_pylist()] for name in names]
    return list(zip(*columns, strict=True))


def places(pieces: list[Piece[Lsn]]) -> list[tuple[Any, ...]]:
    """Return topic, place and WAL's place of each event, in the log's order."""
    found = []
    for piece in pieces:
        for topic, batch in piece.batches:
            changes = batch.column(CHANGE).to_pylist()
            found += [
                (lsn, index, topic, change["lsn"], change["number"])
                for lsn, index, change in zip(batch.lsn.tolist(), batch.index.tolist(), changes, strict=True)
            ]
    return sorted(found, key=lambda place: place[:2])


def decoder(**options: Any) -> Decoder:
    return Decoder("shop", messages=LogicalMessages("shop", described=True), tells_changes=True, **options)


def test_messages_are_the_same_however_the_stream_is_cut(server: PostgresServer) -> None:
    database = Database(server, "logical_messages")
    statements = ["CREATE TABLE a (id int PRIMARY KEY)"]
    chance = random.Random(7)
    for number in range(120):
        inside = [
            chance.choice([f"INSERT INTO a VALUES ({number * 10 + at})", emit(bool(at % 2), f"p{at}", "ä" * number)])
            for at in range(chance.randint(1, 4))
        ]
        end = "ROLLBACK" if chance.random() < 0.2 else "COMMIT"
        statements += ["BEGIN", *inside, end] if chance.random() < 0.6 else inside[:1]
    messages = database.sql(*statements)[True]
    whole = places(decoder().feed(messages))
    assert len({(topic) for _, _, topic, *_ in whole}) == 2 and len(whole) > 150
    # In the order of their places, events that belong to no transaction are where they lie in the WAL.
    assert len({place[:2] for place in whole}) == len(whole)
    assert [lsn for lsn, *_, number in whole if number is None] == [
        at - 2 for *_, at, number in whole if number is None
    ]
    for most, rows in ((1, 65_536), (3, 2), (40, 1)):
        pieces = feed(decoder(max_open_rows=rows), messages, most, seed=most)
        assert places(pieces) == whole
        assert all(not (piece.open and piece.position) for piece in pieces)
    stop = whole[len(whole) // 2][0]
    assert places(decoder(skip_below=stop).feed(messages)) == [place for place in whole if place[0] >= stop]
    database.connection.close()


@pytest.mark.parametrize(("at", "value"), [(34, b"\xff" * 7), (25, b"M\x00"), (36, b"\x00\x00\x00\x09")])
def test_a_message_that_is_not_as_long_as_it_says_is_an_error(at: int, value: bytes) -> None:
    good = b"w" + bytes(24) + b"M\x00" + (64).to_bytes(8, "big") + b"p\x00" + (2).to_bytes(4, "big") + b"hi"
    ((_, batch),) = decoder().feed([good])[0].batches
    assert batch.rows.to_pylist() == [{"prefix": "p", "content": b"hi", "transactional": False}]
    bad = (good[:at] + value + good[at + len(value) :]) if at != 25 else good[:-1]
    with pytest.raises(DecodeError, match="not as long as it says"):
        decoder().feed([bad])


def test_each_message_once(database: CapturedDatabase, capture: Capture, tmp_path: Path) -> None:
    topic, options = f"{database.name}.message", {"messages": ["P.*", ""], "debezium": {}}
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log, **options)
    run(database, emit(True, "pä''", "in"), emit(False, "p2", ""), emit(True, "q", "unwanted"), emit(True, "", ""))
    run(database, emit(True, "headrace", ""), emit(False, "pheadrace", "x"))
    engine.catch_up()
    first = told(log, topic)
    assert [row[2:] for row in first] == [
        ("pä'", b"in", True),
        ("p2", b"", False),
        ("", b"", True),
        ("pheadrace", b"x", False),
    ]
    database.execute(emit(False, "p3", "lost with the process"))
    while not any(piece.rows for piece in engine.source.poll(0.1)):
        pass
    engine.source.stop()
    log.close()
    log = SqliteLog(tmp_path / "log", writer=True)
    engine = capture(log, **options)
    database.execute(emit(False, "p4", "\\x00ff"))
    engine.catch_up()
    rows = told(log, topic)
    assert rows[:4] == first and [row[2] for row in rows[4:]] == ["p3", "p4"]
    assert [row[:2] for row in rows] == sorted({row[:2] for row in rows})
    log.close()


def test_without_being_asked_for_there_are_none(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture()
    run(database, emit(True, "p", "x"), "INSERT INTO t VALUES (1, 1)", emit(False, "p", "x"))
    engine.catch_up()
    assert list(engine.log.topics()) == [database.topic()]
    assert CHANGE not in engine.log.read_topic(database.topic())[0].records.schema.names


def test_the_source_block_is_of_the_change(database: CapturedDatabase, capture: Capture) -> None:
    engine = capture(debezium={"provide.transaction.metadata": "true"}, messages=[".*"])
    numbers = []
    with psycopg.connect(database.dsn) as connection:
        for at in range(3):
            connection.execute("INSERT INTO t VALUES (%s, 1), (%s, 2)", [2 * at, 2 * at + 1])
            connection.execute("SAVEPOINT s")
            connection.execute("UPDATE t SET x = 3 WHERE id = %s", [2 * at])
            connection.execute(emit(True, "p", "x").encode())
            connection.execute(emit(False, "p", "apart").encode())
            row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
            numbers += [] if row is None else [row[0]]
            connection.commit()
    engine.catch_up()
    options = EventOptions.of({"provide.transaction.metadata": "true"})
    lines = [json.loads(line) for line in event_lines(engine.log, options=options)]
    of_transactions = [line["value"] for line in lines if line["topic"].endswith(".transaction")]
    events = [line["value"] for line in lines if not line["topic"].endswith(".transaction")]
    apart = [event for event in events if event["source"]["txId"] is None]
    inside = [event for event in events if event["source"]["txId"] is not None]
    assert [event["source"]["txId"] for event in inside] == [number for number in numbers for _ in range(4)]
    lsns = [event["source"]["lsn"] for event in inside]
    assert lsns == sorted(set(lsns))
    assert len(apart) == 3 and all(event["transaction"] is None for event in apart)
    blocks = [event["transaction"] for event in inside]
    assert [block["id"] for block in blocks] == [f"{e['source']['txId']}:{e['source']['lsn']}" for e in inside]
    assert [block["total_order"] for block in blocks] == [1, 2, 3, 4] * 3
    assert [value["id"].split(":")[0] for value in of_transactions] == [str(n) for n in numbers for _ in range(2)]
    assert [value["event_count"] for value in of_transactions] == [None, 4] * 3
    counts = {part["data_collection"]: part["event_count"] for part in of_transactions[1]["data_collections"]}
    assert counts == {"public.t": 3, "LOGICAL_DECODING_MESSAGE": 1}
    sequences = [json.loads(event["source"]["sequence"]) for event in events]
    assert [int(own) for _, own in sequences] == [event["source"]["lsn"] for event in events]
    after = [int(before) for before, _ in sequences]
    assert after == sorted(after) and len(set(after)) == 6
