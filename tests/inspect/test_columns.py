"""`headrace topics show`: the columns of a topic's life, not those of its newest rows alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.serve.client import headrace

from headrace.batch import Batch
from headrace.inspect.topics import columns_of
from headrace.log import open_log


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A log with a topic whose columns came, went and changed their types."""
    where = str(tmp_path / "shop.headrace")
    held = open_log(where, writer=True)
    for columns in (
        {"id": [1, 2], "größe": [1.5, 2.5]},
        {"id": [3], "größe": [1.0], "note": ["x"]},
        {"id": pa.array([4], pa.int32()), "note": ["y"]},
        {"id": [5], "größe": [2.0], "note": [None]},
    ):
        with held.transaction() as transaction:
            transaction.append("orders", Batch.of(columns, key=["id"]).records)  # type: ignore[arg-type]  # of any kind
    with held.transaction() as transaction:
        transaction.create_topic("empty")
    held.close()
    return where


def test_every_column_that_ever_was_is_listed(log: str, capfd: pytest.CaptureFixture[str]) -> None:
    about: dict[str, Any] = json.loads(headrace(capfd, "topics", "show", "orders", "--log", log, "--json").stdout)
    own = [tuple(column.values()) for column in about["columns"] if not column["column"].startswith("__")]
    assert list(about["columns"][0]) == ["column", "type", "from", "to"]
    assert own == [
        ("id", "int64", 0, None),
        ("größe", "double", 0, None),
        ("note", "string", 2, 3),
        ("id", "int32", 3, 3),
        ("note", "null", 4, None),
    ]
    assert (about["rows"], about["key"]) == (5, ["id"])
    shown = headrace(capfd, "topics", "show", "orders", "--log", log).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert ["größe", "double", "0", "now"] in lines and ["id", "int32", "3", "3"] in lines
    assert "__lsn" not in shown
    assert json.loads(headrace(capfd, "topics", "show", "empty", "--log", log, "--json").stdout)["columns"] == []


def test_what_was_pruned_begins_with_the_first_row_that_is_held(log: str) -> None:
    held = open_log(log, writer=True)
    held.prune("orders", before_offset=3)
    found = {
        (column["column"], column["type"]): (column["from"], column["to"]) for column in columns_of(held, "orders")
    }
    held.close()
    assert found["id", "int32"] == (3, 3) and found["id", "int64"] == (4, None)
    assert found["größe", "double"] == (4, None)
