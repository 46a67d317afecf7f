"""Processes of this machine as workers: expensive models predict beside the engine, on the other cores.

They are begun when a model turns out to be expensive enough, by a thread of their own: a pipeline of cheap models has
none, and no row waits for them. As long as they are not there the engine predicts as without them.

A process that dies is replaced, and what it was doing is done again, here in the end: work has no effects.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.engines import workers
from headrace.engines.workers import Measured, MeasuredWorkers, PredictionJob, Readable, Sending, WorkersAway
from headrace.event_log import event
from headrace.plan.task import ModelTask
from headrace.step.retraining import Trained
from headrace.step.state import State

logger = logging.getLogger("headrace")

PIPES = Sending(seconds=0.002, bytes_per_s=5e8, shortest_s=0.005)
ATTEMPTS = 2  # of processes at a piece of work; then it is done here
MOST_LOSSES = 3  # without anything that was done; then all is done here
START_S = 60.0  # for processes to begin
LOOK_S = 0.3  # between two looks of a process whether the engine is alive


@dataclass(frozen=True, slots=True, weakref_slot=True)
class StateFile:
    """A large state in a file, which goes when nobody here holds it any more."""

    path: Path

    def read_bytes(self) -> bytes:
        """Return the state."""
        return self.path.read_bytes()


class Processes:
    """One life of the processes: from their start, in a thread, until one of them dies, or all are ended.

    Args:
        count: how many.
        declared: learners as they were declared, pickled, by their models' names.
        folder: of large states; goes when the engine is killed.
    """

    def __init__(self, count: int, declared: dict[str, bytes], folder: Path) -> None:
        self._count = count
        self._arguments = (declared, folder, os.getpid())
        self._executor: Any = None
        self._there = threading.Event()
        self._failure: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._begin, name="headrace-workers", daemon=True)
        self._thread.start()

    def _begin(self) -> None:
        from loky import ProcessPoolExecutor

        # What this thread lets wait, its processes let wait too: the terminal's Ctrl-C, and a supervisor's SIGTERM to
        # the whole group, are for the engine, which ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            self._executor = ProcessPoolExecutor(self._count, initializer=settle_in, initargs=self._arguments)
            for _ in range(self._count):
                self._executor.submit(os.getpid).add_done_callback(self._began)
        except Exception as error:  # no memory, no processes left: whatever it is, the engine goes on
            self._failed(error)

    def _began(self, future: Future[int]) -> None:
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._there.set()
        else:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._there.set()

    def wait(self, timeout: float = START_S) -> bool:
        """Wait until one of them takes work; return whether one does.

        Raises:
            BrokenProcessPool: none will.
        """
        if self._there.wait(timeout) and self._failure is not None:
            raise BrokenProcessPool(f"{type(self._failure).__name__}: {self._failure}") from self._failure
        return self._there.is_set()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Begin some work.

        Raises:
            BrokenProcessPool: one of them has died.
        """
        try:
            future: Future[Any] = self._executor.submit(work, *arguments)
        except RuntimeError as error:  # loky says so of processes that were ended
            raise BrokenProcessPool(str(error)) from error
        return future

    def end(self) -> None:
        """Kill them, whatever they do; calling it twice is harmless."""
        self._thread.join()
        if not self._ended and self._executor is not None:
            self._ended = True
            self._executor.shutdown(wait=True, kill_workers=True)


class ProcessPool(MeasuredWorkers):
    """Some processes that predict and train; a `headrace.engines.workers.Workers`.

    Args:
        processes: how many.
        models: whose learners they get to know.
    """

    def __init__(self, processes: int, models: Sequence[ModelTask]) -> None:
        super().__init__(processes, models, PIPES)
        self.processes = processes
        self._lives: Processes | None = None
        # A training waits for its outcome in a thread of its own.
        self._changing = threading.Lock()
        self._closed = False
        # Lives that ended one after another without having done anything.
        self._losses = 0
        # Of large states; made for the processes, which take it away when the engine is killed.
        self._folder: Path | None = None

    def begin(self) -> None:
        """Begin the processes, and wait until all of them take work.

        Raises:
            BrokenProcessPool: they do not.
        """
        lives = self._begun()
        lives.wait()
        while len({future.result() for future in [lives.submit(rest) for _ in range(self.processes)]}) < self.processes:
            pass

    def _there(self) -> bool:
        """See `MeasuredWorkers`."""
        try:
            lives = self._begun()
            return lives.wait(0.0)
        except WorkersAway:
            return False
        except BrokenProcessPool as error:
            self._lost(lives, error)
            return False

    def _begun(self) -> Processes:
        """Return the processes, which may still be beginning."""
        with self._changing:
            if self._closed or self._losses >= MOST_LOSSES:
                raise WorkersAway
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="headrace-states-"))
            if self._lives is None:
                declared = {name: data for name, data in self._declared.items() if name not in self._refused}
                self._lives = Processes(self.processes, declared, self._folder)
            return self._lives

    def _send(self, job: PredictionJob) -> Callable[[], list[Measured]]:
        """See `MeasuredWorkers`."""
        lives = self._begun()
        try:
            sent = {number: self._predict(lives, job, number) for number in range(len(job.parts))}
        except BrokenProcessPool as error:
            self._lost(lives, error)
            raise WorkersAway from None
        return lambda: self._gathered(job, lives, sent)

    @staticmethod
    def _predict(lives: Processes, job: PredictionJob, number: int) -> Future[Measured]:
        return lives.submit(workers.predict, job.known, job.method, job.parts[number], job.width)

    def _gathered(self, job: PredictionJob, lives: Processes, sent: dict[int, Future[Measured]]) -> list[Measured]:
        """Wait for all parts; those that a process has died over are done by others, then here, as without workers."""
        found: dict[int, Measured] = {}
        for attempt in range(ATTEMPTS):
            failure = _take(sent, found)
            self._losses = 0 if found else self._losses
            if failure is None:
                break
            if not _is_death(failure):
                self._refuse(job.known.task, failure)
                break
            self._lost(lives, failure)
            if attempt + 1 == ATTEMPTS:
                break
            with contextlib.suppress(BrokenProcessPool, WorkersAway):
                lives = self._begun()
                lives.wait()
                sent = {number: self._predict(lives, job, number) for number in sent if number not in found}
        here = (number for number in range(len(job.parts)) if number not in found)
        found |= {number: self._predict_here(job, job.parts[number]) for number in here}
        return [found[number] for number in range(len(job.parts))]

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """See `headrace.engines.workers.Workers.train`."""
        try:
            training = workers.pickled_training(task, state)
        except Exception as error:  # a learner of one's own may hold anything
            self._refuse(task.name, error)
            kept = copy.copy(state)
            return lambda: workers.train_here(task, kept)
        return lambda: self._trained(training)

    def _trained(self, training: bytes) -> Trained | None:
        """Wait for a training; it is done again where it was another one's fault that its process has ended."""
        for _ in range(ATTEMPTS):
            try:
                lives = self._begun()
            except WorkersAway:
                break
            try:
                lives.wait()
                found: Trained | None = lives.submit(workers.train, training).result()
                self._losses = 0
                return found
            except (BrokenProcessPool, CancelledError, RuntimeError) as error:
                if not _is_death(error):
                    raise
                self._lost(lives, error)
        return None

    def _put(self, name: str, data: bytes) -> Readable:
        """See `MeasuredWorkers`."""
        assert self._folder is not None  # nothing is put anywhere before processes begin
        file = StateFile(self._folder / name)
        file.path.write_bytes(data)
        weakref.finalize(file, file.path.unlink, missing_ok=True)
        return file

    def _refuse(self, model: str, error: BaseException) -> None:
        """Predict a model here from now on: what it needs is not where processes are."""
        reason = f"{type(error).__name__}: {error}"
        if model not in self._refused:
            self._refused.add(model)
            about = event("worker_refused", model=model, reason=reason)
            logger.warning("«%s» is predicted in this process, not in workers: %s", model, reason, extra=about)

    def _lost(self, lives: Processes, error: BaseException) -> None:
        """Let other processes take the place of these; say so once."""
        with self._changing:
            if self._lives is not lives:
                return
            self._lives = None
            self._losses += 1
            closed = self._closed
        if not closed:
            reason = (str(error).splitlines() or ["no reason is known"])[0]
            logger.warning("a worker process has ended: %s; others take its work", reason, extra=event("worker_lost"))
        lives.end()

    def close(self) -> None:
        """See `headrace.engines.workers.Workers.close`."""
        with self._changing:
            self._closed = True
            lives, self._lives = self._lives, None
        if lives is not None:
            lives.end()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _take(sent: dict[int, Future[Measured]], found: dict[int, Measured]) -> BaseException | None:
    """Wait for parts that are not found yet; return what one of them has failed of."""
    failure: BaseException | None = None
    for number, future in sent.items():
        if number not in found:
            error = CancelledError() if future.cancelled() else future.exception()
            if error is None:
                found[number] = future.result()
            else:
                failure = error
    return failure


def _is_death(error: BaseException) -> bool:
    """Return whether work has failed because its process was no more."""
    from loky.process_executor import ShutdownExecutorError

    return isinstance(error, BrokenProcessPool | ShutdownExecutorError | CancelledError)


# -- in a process ------------------------------------------------------------------------------------------------------


def settle_in(declared: dict[str, bytes], folder: Path, engine: int) -> None:
    """Begin to be a worker: know the learners, leave signals to the engine, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    workers.declare(declared)
    # Linux would tell (PR_SET_PDEATHSIG), but of the death of the thread that has begun this process.
    threading.Thread(target=_end_with, args=(engine, folder), name="headrace-engine-watch", daemon=True).start()


def rest() -> int:
    """Do nothing for a moment, so that others get work too; return who has done it."""
    time.sleep(0.05)
    return os.getpid()


def _end_with(engine: int, folder: Path) -> None:
    while os.getppid() == engine:
        time.sleep(LOOK_S)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
