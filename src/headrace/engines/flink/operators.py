"""The operator that runs the engine, in a Python worker of Flink's.

What arrives is put in the order in which it was read; the engine runs in a thread of the worker, on the pipeline's log.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import suppress

from headrace.engines.flink.ahead import read_ahead
from headrace.engines.flink.frames import Frame
from headrace.engines.flink.job import FlinkJob, verdict
from headrace.engines.flink.reader import FlinkFeed
from headrace.engines.local.running import Running
from headrace.engines.local.startup import start
from headrace.errors import HeadraceError

logger = logging.getLogger("headrace")


class FramesInOrder:
    """Puts frames of parallel operators back into the order in which they were read.

    Aligned barriers let none behind that was read before them, so nothing waits here at a checkpoint.
    """

    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._waiting: dict[int, dict[int, Frame]] = {}

    def take(self, frame: Frame) -> Iterator[Frame]:
        """Take one in; yield those whose turn it is now."""
        waiting = self._waiting.setdefault(frame.source, {})
        waiting[frame.number] = frame
        while (due := waiting.pop(self._next.get(frame.source, 0), None)) is not None:
            self._next[frame.source] = due.number + 1
            yield due


class EngineOperator:
    """The pipeline's engine, fed by Flink."""

    def __init__(self, job: FlinkJob) -> None:
        self._job = job
        self._feed = FlinkFeed()
        self._frames = FramesInOrder()
        self._running: Running | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Come to where the log is, and run. What can never work is said with the first frame: then for good."""
        os.environ.update(self._job.environment)
        plan = pickle.loads(self._job.plan)
        try:
            self._running = start(plan, reader=self._feed.reader)
        except HeadraceError as error:
            if error.retry:
                raise
            self._error = error

    def take(self, data: bytes) -> list[bytes]:
        """Take in what Flink has read; return why the job has to end, if it has to."""
        error = self._error
        if error is None and self._running is not None:
            for frame in self._frames.take(read_ahead(data)):
                self._feed.put(self._job.clusters[frame.source], frame.arrived)
            error = self._running.engine.error
        if error is None:
            return []
        if isinstance(error, HeadraceError) and error.retry:
            raise error
        return [verdict(error)]

    @property
    def numbers(self) -> dict[str, int]:
        """Return what Flink's metrics show."""
        running = self._running
        if running is None:
            return {}
        models = [running[name].counters for name in running.models]
        return {
            "rows": sum(running.captured.values()),
            "learned": sum(counters.get("learned", 0) for counters in models),
            "predicted": sum(counters.get("predicted", 0) for counters in models),
            "deadLetters": sum(running.dead_letters.values()),
            "commits": running.engine.progress.rounds,
        }

    def stop(self) -> None:
        """End after the current round."""
        running, self._running = self._running, None
        if running is not None:
            with suppress(Exception):  # what it died of was said
                running.stop()
