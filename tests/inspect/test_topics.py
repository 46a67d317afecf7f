"""Rows of topics line by line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headrace.batch import Batch
from headrace.errors import LogError
from headrace.inspect.topics import READ_ROWS, topic_lines
from headrace.log.memory import MemoryLog


def ids(log: MemoryLog, topic: str | None, start: int = 0) -> list[int]:
    return [json.loads(line)["id"] for line in topic_lines(log, topic, start, report=pytest.fail)]


def test_rows_behind_many_of_our_own_are_there() -> None:
    """A page that holds only rows of Headrace's own topics is no end."""
    log = MemoryLog()
    steps = ("__headrace.app.steps", np.arange(READ_ROWS))
    for topic, rows in (("t", [1, 2]), steps, steps, ("t", [3]), ("u", [4])):
        with log.transaction() as txn:
            txn.append(topic, Batch.of({"id": rows}).records)
    assert ids(log, None) == [1, 2, 3, 4]
    assert ids(log, "t", 1) == [2, 3]
    assert len(ids(log, "__headrace.app.steps")) == 2 * READ_ROWS
    with pytest.raises(LogError, match="has no topic «v»"):
        ids(log, "v")
