"""Debezium's topics in commit order, in whatever pieces and in whatever order they arrive."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.capture.topics.transactions import TransactionOrder
from headrace.errors import DecodeError
from headrace.formats.topic_formats import ForeignFormats, TopicCodec
from headrace.kafka.ranges import unpack_spread
from headrace.wire import WireMessages

TABLES = ("p.public.a", "p.public.b")
DECODE = ForeignFormats(TopicCodec(), numbered=False)


def event(table: str, number: int, transaction: int, order: int, op: str = "c") -> bytes:
    source = {"lsn": 1000 + number, "sequence": json.dumps([str(transaction * 10), str(1000 + number)]), "ts_ms": 5}
    envelope = {"before": None, "after": {"id": number}, "source": source, "op": op, "ts_ms": 5}
    envelope["transaction"] = (
        None
        if op == "r"
        else {"id": f"{transaction}:{1000 + number}", "total_order": order + 1, "data_collection_order": 1}
    )
    return json.dumps(envelope).encode()


def written(transactions: list[list[int]], snapshot: int = 0) -> tuple[dict[str, list[bytes | None]], list[bytes]]:
    """Messages of both tables, and of the transaction topic; a transaction is a list of table numbers."""
    topics: dict[str, list[bytes | None]] = {table: [] for table in TABLES}
    ends = []
    number = 0
    for _ in range(snapshot):
        topics[TABLES[number % 2]].append(event(TABLES[number % 2], number, 0, 0, "r"))
        number += 1
    for transaction, tables in enumerate(transactions, 1):
        ends.append(json.dumps({"status": "BEGIN", "id": f"{transaction}:1"}).encode())
        for order, table in enumerate(tables):
            topics[TABLES[table]].append(event(TABLES[table], number, transaction, order))
            number += 1
        counts = [
            {"data_collection": TABLES[table].removeprefix("p."), "event_count": tables.count(table)}
            for table in sorted(set(tables))
        ]
        end = {"status": "END", "id": f"{transaction}:2", "event_count": len(tables), "data_collections": counts}
        ends.append(json.dumps(end).encode())
    return topics, ends


def messages(topic: str, values: list[Any], start: int, stop: int) -> WireMessages:
    return WireMessages(topic, values[start:stop], offsets=np.arange(start, stop))


def taken(order: TransactionOrder) -> list[int]:
    """Ids of what can be handed out now, in the order of positions within each piece."""
    found: list[int] = []
    for piece in order.pieces():
        rows = []
        for _, batch in piece.batches:
            ids = batch.column("id").to_pylist()
            rows += list(zip(batch.lsn.tolist(), batch.index.tolist(), ids, strict=True))
        found += [one for _, _, one in (rows if all(not lsn for lsn, _, _ in rows) else sorted(rows))]
    return found


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=4), max_size=8),
    st.integers(0, 5),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.booleans()), max_size=60),
)
def test_rows_come_in_commit_order_however_they_arrive(
    transactions: list[list[int]], snapshot: int, arrivals: list[tuple[int, int, bool]]
) -> None:
    """Also where what waits is stored, and another process goes on with it."""
    topics, ends = written(transactions, snapshot)
    order = TransactionOrder("p", TABLES)
    at = dict.fromkeys(range(3), 0)
    found: list[int] = []

    def arrive(which: int, count: int) -> None:
        topic = order.topic if which == 2 else TABLES[which]
        values: list[Any] = ends if which == 2 else topics[topic]
        some = messages(topic, values, at[which], min(len(values), at[which] + count))
        at[which] += len(some)
        if not len(some):
            return
        if which == 2:
            order.take_ends(some)
        else:
            order.take((topic, 0), some, *DECODE(some))
        found.extend(taken(order))
        # A start at these positions would hand out exactly what is missing: nothing taken is read again.
        positions = order.positions({})
        for table in TABLES:
            if (table, 0) in positions:
                waits = json.loads(topics[table][positions[table, 0]] or b"")["after"]["id"]
                assert waits not in found

    for which, count, moves in arrivals:
        arrive(which, count)
        if moves:
            stored, order = order.dump(), TransactionOrder("p", TABLES)
            order.load(stored, DECODE)
            assert order.dump() == stored
    for which in (2, 0, 1):
        arrive(which, 1000)
    rows = sum(len(transaction) for transaction in transactions)
    assert sorted(found) == list(range(snapshot + rows))
    assert [item for item in found if item >= snapshot] == list(range(snapshot, snapshot + rows))


def test_a_message_that_cannot_be_read_counts_as_an_event() -> None:
    topics, ends = written([[0, 0, 1], [0]])
    topics[TABLES[0]][1] = b"{torn"
    order = TransactionOrder("p", TABLES)
    order.take_ends(messages(order.topic, ends, 0, len(ends)))
    for table in TABLES:
        some = messages(table, topics[table], 0, len(topics[table]))
        order.take((table, 0), some, *DECODE(some))
    pieces = list(order.pieces())
    assert [batch.column("id").to_pylist() for piece in pieces for _, batch in piece.batches] == [[0], [2], [3]]
    ((topic, refused),) = [item for piece in pieces for item in piece.rejected]
    assert topic == "p.public.a.dlq" and refused.column("value").to_pylist() == [b"{torn"]


def test_partitions_of_a_topic_are_told_apart_by_the_transactions_ids() -> None:
    topics, ends = written([[0], [0], [0], [0]])
    order = TransactionOrder("p", TABLES[:1])
    # Odd transactions in one partition, even ones in the other, and the first partition comes last.
    for partition in (1, 0):
        values = topics[TABLES[0]][partition::2]
        some = messages(TABLES[0], values, 0, len(values))
        order.take((TABLES[0], partition), some, *DECODE(some))
    order.take_ends(messages(order.topic, ends, 0, len(ends)))
    assert taken(order) == [0, 1, 2, 3]


def test_what_waits_is_stored_whole() -> None:
    """Keys, headers and times are in positions of rows, and in dead letters; of several events, those that are left."""
    topics, ends = written([[0, 0], [0]])
    values = [topics[TABLES[0]][0], b"{torn", topics[TABLES[0]][2]]
    about: dict[str, Any] = {"keys": [b"k", None, b"\xff"], "partitions": np.full(3, 3)}
    about |= {"headers": [[("a", None)], [("b", b"1"), ("b", b"2")], ()]}
    wire = WireMessages(TABLES[0], values, offsets=np.array([5, 7, 9]), ts_ms=np.array([1, 2, 3]), **about)
    straight, moved = TransactionOrder("p", TABLES), TransactionOrder("p", TABLES)
    for order in (straight, moved):
        order.take((TABLES[0], 3), wire, *DECODE(wire))
        order.take_ends(messages(order.topic, ends, 0, 2))
    stored = moved.dump()
    moved = TransactionOrder("p", TABLES)
    moved.load(stored, DECODE)
    shown = [
        [
            (topic, batch.records.to_pylist())
            for piece in order.pieces()
            for topic, batch in (*piece.batches, *piece.rejected)
        ]
        for order in (straight, moved)
    ]
    assert shown[0] == shown[1] and [topic for topic, _ in shown[0]] == [TABLES[0], f"{TABLES[0]}.dlq"]
    assert moved.positions({(TABLES[0], 3): 10}) == straight.positions({(TABLES[0], 3): 10}) == {(TABLES[0], 3): 9}
    empty = TransactionOrder("p", TABLES)
    empty.load(TransactionOrder("p", TABLES).dump(), DECODE)
    assert not list(empty.pieces())


def test_events_of_several_partitions_are_in_commit_order() -> None:
    """One batch, and one place for each: a pipeline is to see them in the same order whatever else it reads."""
    topics, ends = written([[0, 0, 0, 0, 0], [0, 0]])
    order = TransactionOrder("p", TABLES[:1])
    order.take_ends(messages(order.topic, ends, 0, len(ends)))
    for partition, mine in ((1, [1, 4, 5]), (0, [0, 2, 3, 6])):
        values = [topics[TABLES[0]][i] for i in mine]
        some = WireMessages(TABLES[0], values, offsets=np.array(mine) * 2, partitions=np.full(len(mine), partition))
        order.take((TABLES[0], partition), some, *DECODE(some))
    first, second = order.pieces()
    ((_, batch),) = first.batches
    assert batch.column("id").to_pylist() == [0, 1, 2, 3, 4] and batch.index.tolist() == [0, 1, 2, 3, 4]
    assert unpack_spread(first.origins[0].spread).tolist() == [0, 1, 0, 0, 1]
    assert [(lies.partition, lies.first, lies.last) for lies in first.origins[0].ranges] == [(0, 0, 6), (1, 2, 8)]
    assert [batch.column("id").to_pylist() for _, batch in second.batches] == [[5], [6]]


def test_what_is_no_transaction_topic_is_refused() -> None:
    order = TransactionOrder("p", TABLES)
    with pytest.raises(DecodeError, match=r"p\.transaction.*offset 0"):
        order.take_ends(messages(order.topic, [b'{"hello": 1}'], 0, 1))
