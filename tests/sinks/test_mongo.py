"""to_mongo: a collection follows a topic."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import headrace as hr
from headrace.testing.servers import MongoDbServer, free_port

from .events import app_on, events, letters, write
from .test_table import CASES

pymongo = pytest.importorskip("pymongo")


@pytest.fixture
def database(mongo: MongoDbServer) -> Iterator[Any]:
    """A fresh database."""
    client: Any = pymongo.MongoClient(mongo.uri, tz_aware=True)
    for name in client.list_database_names():
        if name.startswith("sinks"):
            client.drop_database(name)
    yield client["sinks"]
    client.close()


@pytest.mark.parametrize("case", CASES)
def test_a_collection_by_key_is_what_its_source_is(
    case: str, mongo: MongoDbServer, database: Any, tmp_path: Path
) -> None:
    grid, expected = CASES[case]
    write(tmp_path / "log", events(grid))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, "sinks.out", key="id")
    app.run(until="caught-up")
    found = [{name: value for name, value in item.items() if name != "_id"} for item in database["out"].find()]
    names = ("id", "x", "y")
    assert sorted(tuple(item[name] for name in names if name in item) for item in found) == expected
    assert letters(tmp_path / "log") == []


def test_without_a_key_a_row_is_known_by_its_offset(mongo: MongoDbServer, database: Any, tmp_path: Path) -> None:
    write(tmp_path / "log", events(CASES["deleted and there again"][0]))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, database="sinks", collection="out")
    app.run(until="caught-up")
    database["headrace_sinks"].delete_many({})  # as if it had been killed before the position
    app.run(until="caught-up")
    assert list(database["out"].find()) == [
        {"_id": "shop/in/0", "id": 1, "x": "a"},
        {"_id": "shop/in/2", "id": 1, "x": "b"},
    ]
    (position,) = database["headrace_sinks"].find()
    spec = app.plan().sinks[0].spec
    spec.forget("shop", "another log's")
    assert database["headrace_sinks"].count_documents({}) == 1
    spec.forget("shop", position["log"])
    assert database["headrace_sinks"].count_documents({}) == 0
    assert (position["_id"], position["next"]) == ("shop/mongo:sinks.out/in", 3)


def test_values_have_types_of_bson(mongo: MongoDbServer, database: Any, tmp_path: Path) -> None:
    moment = dt.datetime(2021, 6, 10, 1, 2, 3, 4000, dt.UTC)
    columns = {
        "id": pa.array([1]),
        "price": pa.array([Decimal("1.10")]),
        "day": pa.array([dt.date(2021, 6, 10)]),
        "at": pa.array([moment], pa.timestamp("us", "UTC")),
        "time": pa.array([dt.time(1, 2)]),
        "took": pa.array([dt.timedelta(seconds=2.5)]),
        "raw": pa.array([b"\x00\xff"]),
        "nested": pa.array([{"a": [dt.date(2021, 6, 10)], "b": None}]),
    }
    write(tmp_path / "log", hr.Batch.of(pa.RecordBatch.from_pydict(columns)))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, "sinks.out", key="id")
    app.run(until="caught-up")
    (found,) = database["out"].find({}, {"_id": False})
    day = dt.datetime(2021, 6, 10, tzinfo=dt.UTC)
    assert found.pop("price").to_decimal() == Decimal("1.10")
    assert found == {
        "id": 1, "day": day, "at": moment, "time": "01:02:00", "took": 2.5, "raw": b"\x00\xff",
        "nested": {"a": [day], "b": None},
    }  # fmt: skip


def test_rows_that_it_refuses_go_to_the_dead_letters_once(mongo: MongoDbServer, database: Any, tmp_path: Path) -> None:
    database["out"].create_index("x", unique=True)
    large = pa.RecordBatch.from_pydict({"id": pa.array([4, 1 << 63], pa.uint64()), "x": ["d", "e"]})
    write(tmp_path / "log", events("op id x\nc 1 a\nc 2 a\nc - c"), hr.Batch.of(large), events("op id $x\nc 6 f"))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, "sinks.out", key="id")
    for _ in range(2):
        app.run(until="caught-up")
    assert {row["id"]: row["x"] for row in database["out"].find()} == {1: "a", 4: "d"}
    found = letters(tmp_path / "log")
    words = ("duplicate key", "the key column «id» is null", "8-byte ints", "«$x» cannot be a field")
    assert len(found) == len(words)
    for word, one in zip(words, found, strict=True):
        assert word in one, one


@pytest.mark.slow
def test_a_server_that_comes_later_gets_everything(tmp_path: Path, mongo: MongoDbServer) -> None:
    port = free_port()
    write(tmp_path / "log", events("op id x\nc 1 a\nc 2 b"))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(f"mongodb://me:secret@127.0.0.1:{port}/?authSource=admin", "sinks.out", key="id", name="later")
    with app.start() as running:
        while not running.sinks["later"].waiting:
            running.join(0.05)
        assert "cannot be reached" in running.sinks["later"].status
        assert "secret" not in running.sinks["later"].status
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(f"mongodb://127.0.0.1:{port}", "sinks.out", key="id", name="later")
    with app.start() as running:
        while not running.sinks["later"].waiting:
            running.join(0.05)
        with MongoDbServer(port=port) as server:
            running.wait(60)
            client: Any = pymongo.MongoClient(server.uri)
            assert client["sinks"]["out"].count_documents({}) == 2
            client.close()


def test_a_document_that_is_too_large_holds_up_no_other(mongo: MongoDbServer, database: Any, tmp_path: Path) -> None:
    rows = {"id": [1, 2, 3], "x": ["a", "x" * (16 << 20), "c"]}
    write(tmp_path / "log", hr.Batch.of(rows, key=["id"]))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, "sinks.out", key="id")
    app.run(until="caught-up")
    assert sorted(row["id"] for row in database["out"].find({}, ["id"])) == [1, 3]
    assert ["MongoDB takes 16,777,216" in letter for letter in letters(tmp_path / "log")] == [True]


def test_a_column_with_the_name_of_ours_names_no_document(mongo: MongoDbServer, database: Any, tmp_path: Path) -> None:
    write(tmp_path / "log", hr.Batch.of({"_id": [7, 7, None], "x": ["a", "b", "c"]}))
    app, stream = app_on(tmp_path / "log")
    stream.to_mongo(mongo.uri, "sinks.out")
    app.run(until="caught-up")
    found = sorted((row["_id"], row["_id_input"], row["x"]) for row in database["out"].find())
    assert found == [("shop/in/0", 7, "a"), ("shop/in/1", 7, "b"), ("shop/in/2", None, "c")]
