"""Processes of this machine as workers: expensive models predict beside the engine, on the other cores.

A process that dies is replaced, and what it was doing is done again, here in the end: work has no effects.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.arrays import Array
from headrace.engines import workers
from headrace.engines.workers import Measured, MeasuredWorkers, PredictionJob, Readable, Sending, WorkersAway
from headrace.event_log import event
from headrace.plan.task import ModelTask
from headrace.step.retraining import Trained
from headrace.step.state import State

logger = logging.getLogger("headrace")

PIPES = Sending(seconds=0.002, bytes_per_s=5e8, shortest_s=0.005)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StateFile:
    """A large state in a file, which goes when nobody here holds it any more."""

    path: Path

    def read_bytes(self) -> bytes:
        """Return the state."""
        return self.path.read_bytes()


class ProcessPool(MeasuredWorkers):
    """Some processes that predict and train; a `headrace.engines.workers.Workers`.

    Args:
        processes: how many.
        models: whose learners they get to know.
    """

    def __init__(self, processes: int, models: Sequence[ModelTask]) -> None:
        super().__init__(processes, models, PIPES)
        self.processes = processes
        self._pool: Any = None
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-states-", ignore_cleanup_errors=True)

    def _send(self, job: PredictionJob) -> Callable[[], list[Measured]]:
        """See `MeasuredWorkers`."""
        try:
            sent = [self._submit(workers.predict, job.known, job.method, part, job.width) for part in job.parts]
        except BrokenProcessPool:
            raise WorkersAway from None
        return lambda: [self._gathered(job, part, future) for part, future in zip(job.parts, sent, strict=True)]

    def _gathered(self, job: PredictionJob, part: Array, future: Future[Measured]) -> Measured:
        """Wait for a part; what a process has died over is done by another one, then here, as without workers."""
        for _ in range(2):
            try:
                return future.result()
            except BrokenProcessPool as error:
                self._broken(error)
            try:
                future = self._submit(workers.predict, job.known, job.method, part, job.width)
            except BrokenProcessPool:
                break
        return self._predict_here(job, part)

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """See `headrace.engines.workers.Workers.train`."""
        training = workers.pickled_training(task, state)
        try:
            future = self._submit(workers.train, training)
        except BrokenProcessPool:
            return lambda: workers.train(training)

        def outcome() -> Trained | None:
            try:
                found: Trained | None = future.result()
            except BrokenProcessPool as error:
                self._broken(error)
                return None
            return found

        return outcome

    def _put(self, name: str, data: bytes) -> Readable:
        """See `MeasuredWorkers`."""
        file = StateFile(Path(self._folder.name) / name)
        file.path.write_bytes(data)
        weakref.finalize(file, file.path.unlink, missing_ok=True)
        return file

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._pool is None:
            from loky import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(self.processes, initializer=workers.declare, initargs=(self._declared,))
        future: Future[Any] = self._pool.submit(work, *arguments)
        return future

    def _broken(self, error: BrokenProcessPool) -> None:
        """Begin anew with other processes."""
        if self._pool is not None:
            reason = str(error).splitlines()[0] if str(error) else "no reason is known"
            logger.warning("a worker process has ended: %s; others take its work", reason, extra=event("worker_lost"))
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None

    def close(self) -> None:
        """See `headrace.engines.workers.Workers.close`."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, kill_workers=True)
            self._pool = None
        self._folder.cleanup()
