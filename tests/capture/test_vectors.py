"""pgvector's columns: lists of numbers from the snapshot, from the stream, and wherever else rows are read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import headrace as hr
from headrace.batch import Batch
from headrace.capture.postgres import drift
from headrace.capture.postgres.values import Malformed, vectors_sent
from headrace.log.base import Log
from headrace.log.memory import MemoryLog

from .conftest import Capture, CapturedDatabase
from .test_unsent import each

THREE, ANY = pa.list_(pa.float32(), 3), pa.list_(pa.float32())


@pytest.fixture
def database(database: CapturedDatabase) -> CapturedDatabase:
    """The test's database, with pgvector."""
    if not database.execute("SELECT name FROM pg_available_extensions WHERE name = 'vector'"):
        pytest.skip("pgvector is not installed")
    database.execute("CREATE EXTENSION vector")
    return database


def columns(log: Log, topic: str, name: str = "e") -> tuple[list[Any], set[pa.DataType]]:
    entries = log.read_topic(topic, limit=1_000_000)
    values = [value for entry in entries for value in entry.records.column(name).to_pylist()]
    return values, {entry.records.schema.field(name).type for entry in entries}


@pytest.mark.parametrize("other", ["bigint", "sparsevec(4)"], ids=["binary", "text"])
def test_in_snapshot_and_stream(database: CapturedDatabase, capture: Capture, other: str) -> None:
    """The stream is in text where a column's binary form is not understood, as of sparse vectors."""
    each(
        database,
        f"CREATE TABLE tv (k int PRIMARY KEY, e vector(3), h halfvec(2), any_size vector, s {other}, n int)",
        "INSERT INTO tv VALUES (1, '[1,-0.1,3e-45]', '[0.1,65504]', '[7]', NULL, 0)",
        "INSERT INTO tv (k) VALUES (2)",
    )
    engine = capture()
    each(
        database,
        "INSERT INTO tv SELECT k + 10, e, h, any_size, s, n FROM tv",
        "ALTER TABLE tv REPLICA IDENTITY FULL",
        "UPDATE tv SET e = '[3.4028235e38,0,-1]', any_size = '[1,2,3]' WHERE k = 1",
        "DELETE FROM tv WHERE k = 11",
    )
    engine.catch_up()
    topic = database.topic("tv")
    first = [float(np.float32(number)) for number in (1, -0.1, 3e-45)]
    large = [float(np.float32(3.4028235e38)), 0.0, -1.0]
    assert columns(engine.log, topic) == ([first, None, first, None, large, first], {THREE})
    half = [0.0999755859375, 65504.0]
    assert columns(engine.log, topic, "h") == ([half, None, half, None, half, half], {pa.list_(pa.float32(), 2)})
    sizes, kinds = columns(engine.log, topic, "any_size")
    assert sizes == [[7.0], None, [7.0], None, [1.0, 2.0, 3.0], [7.0]] and kinds == {pa.list_(pa.float32())}
    assert engine.source._binary == (other == "bigint")
    (updated,) = [b for e in engine.log.read_topic(topic) if (b := Batch(e.records)).before is not None]
    assert updated.before is not None and updated.before.field("e")[0].as_py() == first
    told = {name: updated.schema.field(name).metadata[b"postgres.type"] for name in ("e", "h", "any_size")}
    assert told == {"e": b"vector(3)", "h": b"halfvec(2)", "any_size": b"vector"}


def test_a_row_that_arrow_cannot_hold(database: CapturedDatabase, capture: Capture) -> None:
    """Its dead letter has the vector as numbers, from the snapshot and from the stream."""
    each(database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(2), at timestamp)")
    each(database, "INSERT INTO tv VALUES (1, '[0.5,-1]', '294276-12-31'), (2, '[2,3]', NULL)")
    engine = capture()
    each(database, "INSERT INTO tv VALUES (3, '[0.5,-1]', '294276-12-31'), (4, NULL, '294276-12-31')")
    engine.catch_up()
    letters = [json.loads(text) for text in columns(engine.log, f"{database.topic('tv')}.dlq", "row")[0]]
    assert [(row["k"], row["e"]) for row in letters] == [(1, "[0.5, -1.0]"), (3, "[0.5, -1.0]"), (4, None)]
    assert columns(engine.log, database.topic("tv")) == ([[2.0, 3.0]], {pa.list_(pa.float32(), 2)})


@given(st.lists(st.binary(max_size=14) | st.none(), min_size=1, max_size=4), st.sampled_from([THREE, ANY]))
@example([b"\x00\x03\x00\x00" + b"\x3f\x80\x00\x00" * 3, None], THREE)
@example([b"\xff\xff\x00\x00\x00\x00"], ANY)
@example([b"\x00\x00\x00\x00\x00\x00"], ANY)
def test_bytes_that_are_no_vectors(values: list[bytes | None], kind: pa.DataType) -> None:
    """They are an error that says which one; what is a vector has its numbers."""
    sent = pa.array(values, pa.binary())
    bounds = np.cumsum([0, *(len(value or b"") for value in values)])
    held = np.array([value is not None for value in values])
    buffer = np.frombuffer(b"".join(value or b"" for value in values), np.uint8)
    try:
        found = vectors_sent(buffer, bounds[:-1], np.diff(bounds), held, kind)
    except Malformed as error:
        assert values[error.row] is not None
        return
    assert found.is_null().equals(sent.is_null())
    found.validate(full=True)
    for value, numbers in zip(values, found.to_pylist(), strict=True):
        if value is not None:
            count = int.from_bytes(value[:2], "big")
            assert len(numbers) == count and len(value) in (4 + 4 * count, 4 + 2 * count)


def test_columns_and_tables_that_come_later(database: CapturedDatabase, capture: Capture) -> None:
    each(database, "CREATE TABLE tv (k int PRIMARY KEY)", "INSERT INTO tv VALUES (1)")
    log = MemoryLog()
    engine = capture(log)
    each(database, "ALTER TABLE tv ADD e vector(3)", "UPDATE tv SET e = '[1,2,3]'")
    each(database, "CREATE TABLE tlater (k int PRIMARY KEY, e vector(3))", "INSERT INTO tlater VALUES (1, '[4,5,6]')")
    engine.until(lambda: database.topic("tlater") in log.topics())
    engine.catch_up()
    engine.source.stop()
    engine = capture(log)
    each(database, "UPDATE tv SET e = '[7,8,9]'", "UPDATE tlater SET e = NULL")
    answers: list[dict[str, Any]] = []
    engine.source.want_snapshot([r"public\.t.*"], "", "k", "all", answers.append)
    engine.until(lambda: bool(answers) and not engine.source.status.text.startswith("incremental"))
    engine.catch_up()
    assert columns(log, database.topic("tlater")) == ([[4.0, 5.0, 6.0], None, None], {THREE})
    entries = [entry.records for entry in log.read_topic(database.topic("tv"))]
    assert [records.column("e").to_pylist() for records in entries if "e" in records.schema.names] == [
        [[1.0, 2.0, 3.0]],
        [[7.0, 8.0, 9.0]],
        [[7.0, 8.0, 9.0]],
    ]


def test_a_key_of_vectors_is_text(database: CapturedDatabase, capture: Capture) -> None:
    each(database, "CREATE TABLE tv (e vector(2) PRIMARY KEY, f vector(2))", "INSERT INTO tv VALUES ('[1,2]', '[1,2]')")
    engine = capture(carries=True)
    each(database, "UPDATE tv SET e = '[3,4]'", "DELETE FROM tv")
    engine.catch_up()
    assert columns(engine.log, database.topic("tv")) == (["[1,2]", "[3,4]", "[3,4]"], {pa.string()})
    assert columns(engine.log, database.topic("tv"), "f")[0] == [[1.0, 2.0], [1.0, 2.0], None]


def test_a_log_of_before_has_texts_still(database: CapturedDatabase, capture: Capture) -> None:
    """Its record says nothing of vectors; a resync and a table that comes back keep to that too."""
    each(database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(3))", "INSERT INTO tv VALUES (1, '[1,2,3]')")
    log = MemoryLog()
    capture(log).source.stop()
    ((name, record),) = log.records(drift.KIND).items()
    told = json.loads(record)
    assert [table.pop("vectors") for table in told["tables"]] != [[]]
    with log.transaction() as transaction:
        transaction.put(drift.KIND, name, json.dumps(told).encode())
    engine = capture(log)
    each(database, "UPDATE tv SET e = '[4,5,6]'")
    engine.catch_up()
    engine.source.stop()
    database.server.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    each(database, "UPDATE tv SET e = '[7,8,9]'")
    engine = capture(log, on_gap="snapshot")
    each(database, "UPDATE tv SET e = '[0,0,0]'")
    engine.catch_up()
    values, kinds = columns(log, database.topic("tv"))
    assert kinds == {THREE, pa.string()}  # the first snapshot was written before the record was changed
    assert values == [[1.0, 2.0, 3.0], "[4,5,6]", "[7,8,9]", "[0,0,0]"]


@pytest.mark.parametrize("key", ["k int PRIMARY KEY", "k int"], ids=["by key", "by all columns"])
def test_a_resync_compares_lists(database: CapturedDatabase, capture: Capture, key: str) -> None:
    each(database, f"CREATE TABLE tv ({key}, e vector(3))", "ALTER TABLE tv REPLICA IDENTITY FULL")
    each(database, "INSERT INTO tv VALUES (1, '[1,2,3]'), (2, '[1,2,3]'), (3, NULL), (3, NULL)" if "P" not in key else
         "INSERT INTO tv VALUES (1, '[1,2,3]'), (2, '[1,2,3]'), (3, NULL)")  # fmt: skip
    log = MemoryLog()
    capture(log).source.stop()
    database.server.execute("SELECT pg_drop_replication_slot(%s)", f"headrace_{database.name}")
    each(database, "UPDATE tv SET e = '[1,2,4]' WHERE k = 2", "DELETE FROM tv WHERE k = 3")
    capture(log, on_gap="snapshot").source.stop()
    had = 3 if "P" in key else 4
    values, kinds = columns(log, database.topic("tv"))
    assert kinds == {THREE}
    assert sorted(map(str, values[had:])) == sorted(
        map(str, [[1.0, 2.0, 4.0], None] if "P" in key else [[1.0, 2.0, 4.0], [1.0, 2.0, 3.0], None, None])
    )


@pytest.mark.parametrize("way", [{"carries": True}, {"reselects": [".*"]}], ids=["carried", "read again"])
def test_large_ones_that_were_not_sent(database: CapturedDatabase, capture: Capture, way: dict[str, Any]) -> None:
    each(database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(2000), f vector, n int)")
    some = "(SELECT array_agg(random())::vector FROM generate_series(1, 2000))"
    each(database, f"INSERT INTO tv VALUES (1, {some}, {some}, 0), (2, NULL, NULL, 0)")
    engine = capture(**way)
    each(database, "UPDATE tv SET n = 1", "UPDATE tv SET n = 2")
    engine.catch_up()
    for name in ("e", "f"):
        values, kinds = columns(engine.log, database.topic("tv"), name)
        assert len(kinds) == 1 and len(values[0]) == 2000
        assert sorted(map(str, values)) == sorted(map(str, [values[0], None] * 3))


def test_debezium_s_events_are_of_texts(database: CapturedDatabase, capture: Capture) -> None:
    each(database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(3))", "INSERT INTO tv VALUES (1, '[1,2,3]')")
    engine = capture(debezium={})
    each(database, "UPDATE tv SET e = '[4,5,6]'")
    engine.catch_up()
    assert columns(engine.log, database.topic("tv")) == (["[1,2,3]", "[4,5,6]"], {pa.string()})


def test_a_model_learns_from_them(database: CapturedDatabase) -> None:
    each(
        database, "CREATE TABLE tv (k int PRIMARY KEY, e vector(2))", "INSERT INTO tv VALUES (1, '[0,0]'), (2, '[9,9]')"
    )
    app = hr.App("vectors", log="memory://")
    rows = app.postgres(database.dsn, tables=r"public\.tv")["public.tv"]
    model = app.model("groups", hr.KMeans(k=2, initial_centers=[[0, 0], [9, 9]]), features=[hr.vector("e")])
    model.learn(rows)
    model.predict(rows).to("grouped")
    with app.start() as running:
        each(database, "INSERT INTO tv VALUES (3, '[8,9]'), (4, '[1,0]')")
        running.wait(60)
    found = app.topic("grouped").read().to_arrow()
    assert dict(zip(found.column("k").to_pylist(), found.column("prediction").to_pylist(), strict=True))[3] == 1
    assert found.column("status").to_pylist()[-2:] == ["ok", "ok"]
