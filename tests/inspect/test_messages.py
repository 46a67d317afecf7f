"""Rows as JSON lines, and SQL over topics."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.errors import LogError
from headrace.inspect.messages import messages, rows, to_json
from headrace.inspect.query import query_topics
from headrace.log.memory import MemoryLog

COLUMNS = {
    "id": [1, 2],
    "price": pa.array([Decimal("1.50"), Decimal("123456789012345678.9")], pa.decimal128(20, 2)),
    "raw": [b"\x00\xff", None],
    "day": [datetime.date(2024, 2, 29), None],
    "op": ["mine", "too"],
    "x": [float("nan"), -0.0],
}


def log() -> MemoryLog:
    made = MemoryLog()
    with made.transaction() as txn:
        txn.append("t", Batch.of(COLUMNS, lsn=26421800, ts_us=1_700_000_000_123_456, key=["id"]).records)
        txn.append("s.t", Batch.of({"id": [5]}, op="d", lsn=26421801).records)
        txn.append("s.t", Batch.of({"id": [6], "new": ["x"]}, lsn=26421802).records)
    return made


def test_flat_rows() -> None:
    (entry,) = log().read_topic("t")
    first, second = rows(entry, 0, 2)
    assert first == {
        "id": 1,
        "price": 1.5,
        "raw": "AP8=",
        "day": "2024-02-29",
        "op": "mine",
        "x": "NaN",
        "__op": "c",
        "position": "0/1932A28:0",
        "ts": "2023-11-14T22:13:20.123456+00:00",
    }
    assert second["price"] == "123456789012345678.90"
    assert json.loads(to_json(second)) == second


def test_messages_as_kcat_prints_them() -> None:
    entry = log().read_topic("s.t")[0]
    (message,) = messages(entry, 0, 1)
    assert message == {
        "topic": "s.t",
        "partition": 0,
        "offset": 0,
        "tstype": "create",
        "ts": 0,
        "headers": ["op", "d", "position", "0/1932A29:0"],
        "key": None,
        "payload": {"id": 5, "op": "d", "position": "0/1932A29:0", "ts": "1970-01-01T00:00:00+00:00"},
    }


def test_sql_joins_topics_and_bridges_schema_changes() -> None:
    found = query_topics(
        log(), 'select t.id, u.id i, u.new, u.op, u."offset" from "s.t" u, t where t.id = 1 order by i'
    )
    assert found.to_pylist() == [
        {"id": 1, "i": 5, "new": None, "op": "d", "offset": 0},
        {"id": 1, "i": 6, "new": "x", "op": "c", "offset": 1},
    ]


def test_sql_that_names_no_topic_says_what_there_is() -> None:
    with pytest.raises(LogError, match="the query failed") as refused:
        query_topics(log(), "select * from nobody")
    assert '"s.t"' in refused.value.advice


def test_a_batch_is_built_and_taken_apart() -> None:
    batch = Batch.of({"id": [1, 2, 3]}, op=np.frombuffer(b"cud", np.uint8), lsn=9, ts_us=5)
    assert [chr(op) for op in batch.op] == ["c", "u", "d"]
    assert batch.take(np.array([2])).rows.to_pylist() == [{"id": 3}]
    assert batch.ts_us.tolist() == [5, 5, 5]
    assert repr(batch) == "Batch(3 rows: id)"
