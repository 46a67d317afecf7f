"""Our operators as Flink calls them, in its Python workers."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyflink.datastream import FlatMapFunction

from headrace.engines.flink.ahead import AheadOperator
from headrace.engines.flink.job import FlinkJob
from headrace.engines.flink.operators import EngineOperator


class EngineFunction(FlatMapFunction):  # type: ignore[misc]  # pyflink is not installed where types are checked
    """`EngineOperator` as Flink calls it."""

    def __init__(self, job: FlinkJob) -> None:
        self._job = job
        self._operator: EngineOperator | None = None

    def open(self, context: Any) -> None:
        """Start the engine; called with the first frame."""
        end_with_java()
        operator = self._operator = EngineOperator(self._job)
        operator.start()
        group = context.get_metrics_group().add_group("headrace")
        for name in ("rows", "learned", "predicted", "deadLetters", "commits"):
            group.gauge(name, lambda name=name: operator.numbers.get(name, 0))

    def flat_map(self, value: Any) -> Iterator[bytes]:
        """Take in a frame."""
        assert self._operator is not None
        yield from self._operator.take(bytes(value))

    def close(self) -> None:
        """Stop the engine."""
        if self._operator is not None:
            self._operator.stop()


class AheadFunction(FlatMapFunction):  # type: ignore[misc]  # as above
    """`AheadOperator` as Flink calls it."""

    def __init__(self, job: FlinkJob, *, alone: bool) -> None:
        self._job = job
        self._alone = alone
        self._operator: AheadOperator | None = None

    def open(self, context: Any) -> None:
        """Begin with what the log says; called with the first frame."""
        end_with_java()
        self._operator = AheadOperator(self._job, alone=self._alone)

    def flat_map(self, value: Any) -> Iterator[bytes]:
        """Decode and predict a frame."""
        assert self._operator is not None
        yield self._operator.take(bytes(value))

    def close(self) -> None:
        """Let the log go."""
        if self._operator is not None:
            self._operator.close()


_ended = threading.Lock()
_watching = False


def end_with_java() -> None:
    """End this process when the JVM that it works for has ended: a killed one cannot stop it."""
    global _watching
    with _ended:
        if _watching:
            return
        _watching = True
    java = _java()
    if java is not None:
        threading.Thread(target=_watch, args=(java,), name="headrace-java", daemon=True).start()


def _java() -> int | None:
    """Return the process among our ancestors that runs Java."""
    pid = os.getppid()
    while pid > 1:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        name, rest = text.rpartition(")")[0].partition("(")[2], text.rpartition(")")[2].split()
        if name == "java":
            return pid
        pid = int(rest[1])
    return None


def _watch(pid: int) -> None:
    with suppress(OSError):
        select.select([os.pidfd_open(pid)], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
