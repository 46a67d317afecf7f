"""Processes of this machine as workers: expensive models predict beside the engine, on the other cores.

A prediction is sent away where that is worth it: what a row costs is measured as rows are predicted, and compared with
what sending costs. Rows go in parts of whole blocks, so that they are the blocks that the engine itself would have
predicted; the state of a model goes with them where it is small, and by a file, once, where it is large.

A process that dies is replaced, and what it was doing is done again, here in the end: work has no effects.
"""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.engines import workers
from headrace.engines.workers import KnownState
from headrace.event_log import event
from headrace.learn.base import pinned
from headrace.learn.state import dump_pieces
from headrace.plan.task import ModelTask
from headrace.step.ahead import Method, Predicted
from headrace.step.model_version import ModelVersion
from headrace.step.predictions import BLOCK_ROWS, predict_rows
from headrace.step.retraining import Trained, train_pending
from headrace.step.state import State

logger = logging.getLogger("headrace")

PARTS = 4  # for each process: whoever is done early takes another one
SHORTEST_S = 0.005  # of a part
SENDING_S = 0.002  # of anything at all
BYTES_PER_S = 5e8
INLINE_BYTES = 65_536
GAIN = 1.5  # sending is to save at least so many times what it costs
FORGETTING = 0.3  # weight of the newest measurement


@dataclass(slots=True)
class _Cost:
    """Measured seconds: of one row's prediction, and of writing down the model's state."""

    row_s: float | None = None
    state_s: float = 0.0

    def measured(self, rows: int, seconds: float) -> None:
        if rows:
            new = seconds / rows
            self.row_s = new if self.row_s is None else (1 - FORGETTING) * self.row_s + FORGETTING * new


class ProcessPool:
    """Some processes that predict and train; a `headrace.engines.workers.Workers`.

    Args:
        processes: how many.
        models: whose learners they get to know.
    """

    def __init__(self, processes: int, models: Sequence[ModelTask]) -> None:
        import cloudpickle

        self.processes = processes
        self._declared = {task.name: cloudpickle.dumps(task.learner) for task in models}
        self._pool: Any = None
        self._costs: dict[tuple[str, Method], _Cost] = {}
        self._known: dict[str, tuple[ModelVersion, KnownState]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="headrace-states-", ignore_cleanup_errors=True)

    def predict(
        self, task: ModelTask, by: ModelVersion, method: Method, X: Array, *, width: int = 0
    ) -> Callable[[], Predicted]:
        """See `headrace.step.ahead.Predictors.predict`."""
        cost = self._costs.setdefault((task.name, method), _Cost())
        if cost.row_s is None and len(X) > BLOCK_ROWS:
            # The first block says what a row costs.
            first = self._here(by, method, X[:BLOCK_ROWS], width, cost)
            rest = self.predict(task, by, method, X[BLOCK_ROWS:], width=width)
            return lambda: _joined([first(), rest()], [BLOCK_ROWS, len(X) - BLOCK_ROWS])
        if not self._worth(cost, X):
            return self._here(by, method, X, width, cost)
        known = self._state(task, by, cost)
        try:
            parts = self._parts(X, cost)
            sent = [(part, self._submit(workers.predict, known, method, part, width)) for part in parts]
        except BrokenProcessPool:
            return self._here(by, method, X, width, cost)
        return functools.partial(self._gathered, task, known, method, width, cost, sent)

    def _worth(self, cost: _Cost, X: Array) -> bool:
        if cost.row_s is None or len(X) <= BLOCK_ROWS:
            return False
        saved = len(X) * cost.row_s * (1 - 1 / max(2, self.processes))
        return saved > GAIN * (SENDING_S + X.nbytes / BYTES_PER_S + cost.state_s)

    def _here(self, by: ModelVersion, method: Method, X: Array, width: int, cost: _Cost) -> Callable[[], Predicted]:
        begun = time.perf_counter()
        found = predict_rows(getattr(by.learner, method), X, width=width)
        cost.measured(len(X), time.perf_counter() - begun)
        return lambda: found

    def _parts(self, X: Array, cost: _Cost) -> list[Array]:
        """Return rows in parts of whole blocks."""
        assert cost.row_s is not None
        least = max(1, int(SHORTEST_S / max(cost.row_s, 1e-9)))
        rows = max(least, -(-len(X) // (PARTS * self.processes)))
        rows = -(-rows // BLOCK_ROWS) * BLOCK_ROWS
        return [np.ascontiguousarray(X[start : start + rows]) for start in range(0, len(X), rows)]

    def _gathered(
        self,
        task: ModelTask,
        known: KnownState,
        method: Method,
        width: int,
        cost: _Cost,
        sent: Sequence[tuple[Array, Future[tuple[Predicted, float]]]],
    ) -> Predicted:
        found: list[Predicted] = []
        for part, future in sent:
            try:
                predicted, seconds = future.result()
            except BrokenProcessPool as error:
                predicted, seconds = self._again(error, task, known, method, part, width)
            cost.measured(len(part), seconds)
            found.append(predicted)
        return _joined(found, [len(part) for part, _ in sent])

    def _again(
        self, error: BrokenProcessPool, task: ModelTask, known: KnownState, method: Method, part: Array, width: int
    ) -> tuple[Predicted, float]:
        """Predict what a process has died over: by another one, then here, as without workers."""
        self._broken(error)
        try:
            found: tuple[Predicted, float] = self._submit(workers.predict, known, method, part, width).result()
            return found
        except BrokenProcessPool as another:
            self._broken(another)
            workers.declare({task.name: self._declared[task.name]})
            return workers.predict(known, method, part, width)

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """See `headrace.engines.workers.Workers.train`."""
        state = copy.copy(state)
        try:
            future = self._submit(_train, task, state)
        except BrokenProcessPool:
            return lambda: _train(task, state)

        def outcome() -> Trained | None:
            try:
                found: Trained | None = future.result()
            except BrokenProcessPool as error:
                self._broken(error)
                return None
            return found

        return outcome

    def _state(self, task: ModelTask, by: ModelVersion, cost: _Cost) -> KnownState:
        """Return a version's state as workers get it; written down once: a version is one place of a model's life."""
        held = self._known.get(task.name)
        if held is not None and held[0] is by:
            return held[1]
        begun = time.perf_counter()
        data = b"".join(dump_pieces(by.learner.state()))
        digest = data[4:20].hex()
        known = KnownState(task.name, digest, data)
        if len(data) > INLINE_BYTES:
            path = Path(self._folder.name) / f"{task.name.encode().hex()}-{digest}"
            path.write_bytes(data)
            known = KnownState(task.name, digest, path)
            weakref.finalize(known, path.unlink, missing_ok=True)
        cost.state_s = time.perf_counter() - begun
        self._known[task.name] = by, known
        return known

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        if self._pool is None:
            from loky import ProcessPoolExecutor

            self._pool = ProcessPoolExecutor(self.processes, initializer=_begin, initargs=(self._declared,))
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


def _joined(found: Sequence[Predicted], lengths: Sequence[int]) -> Predicted:
    """Return predictions of parts as those of the whole; of a part without any there is something, which failed."""
    starts = np.cumsum([0, *lengths]).tolist()
    failed = {start + row: why for start, (_, some) in zip(starts, found, strict=False) for row, why in some.items()}
    good = next((values for values, _ in found if values is not None), None)
    if good is None:
        return None, failed
    empty = (np.zeros((length, *good.shape[1:]), good.dtype) for length in lengths)
    return np.concatenate([e if v is None else v for (v, _), e in zip(found, empty, strict=True)]), failed


def _begin(declared: dict[str, bytes]) -> None:
    workers.declare(declared)


def _train(task: ModelTask, state: State) -> Trained | None:
    with pinned(task.learner):
        return train_pending(task, state)
