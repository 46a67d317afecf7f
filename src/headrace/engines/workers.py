"""Workers of an engine: hands that predict and train beside it. They have no effects, so that any work may be repeated.

What is sent to them and what they do with it is the same wherever they are: a learner as it was declared, the state it
had, rows. An engine decides only how it gets there: pipes to processes (`headrace.engines.local.pool`), a cluster.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
import sys
import sysconfig
import time
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from headrace.arrays import Array, Ints
from headrace.capture.base import Source
from headrace.event_log import event
from headrace.foreseen import Method, Predicted, joined
from headrace.learn.base import Learner, pinned, traits_of
from headrace.learn.state import dump_pieces, load_state
from headrace.plan.task import ModelTask
from headrace.step.absent import Performers, Schedule
from headrace.step.ahead import Predictors
from headrace.step.model_version import ModelVersion
from headrace.step.outputs import Emission
from headrace.step.predictions import BLOCK_ROWS, predict_rows
from headrace.step.retraining import Trained, train_pending
from headrace.step.state import State
from headrace.wire import EncodedRows

logger = logging.getLogger("headrace")

KEPT_LEARNERS = 4
PARTS = 4  # for each worker: whoever is done early takes another one
INLINE_BYTES = 65_536
WHILE_THEY_BEGIN_S = 0.05  # so long is predicted here between two looks whether workers are there
GAIN = 1.5  # sending is to save at least so many times what it costs
MEASUREMENTS = 4  # the newest ones, of which the quickest counts


class Workers(Predictors, Performers, Protocol):
    """The contract of an engine with its hands; calls come from the engine's thread.

    Attributes:
        sent: rows that were sent to be predicted since the start.
    """

    sent: int

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """Begin the training that a state says is pending; nothing of the state is changed.

        Returns:
            What waits for its outcome; None where whoever trained has died of it.
        """
        ...

    def attend(self, sources: Sequence[Source[Any]]) -> None:
        """Offer to read for sources, before these start."""
        ...

    def performed(self) -> list[tuple[str, EncodedRows]]:
        """Return the messages of rows that were left elsewhere and performed since the last call, by topic."""
        ...

    def close(self) -> None:
        """Let go of everything; what was begun may be left undone."""
        ...


class Readable(Protocol):
    """A large state where workers find it: a file, a broadcast of a cluster."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class KnownState:
    """A model's state on its way to workers.

    Attributes:
        task: the model's name.
        digest: of the learner as it was declared, and of the state.
        data: the state itself where it is small, else where it is found.
    """

    task: str
    digest: str
    data: bytes | Readable


@dataclass(frozen=True, slots=True)
class Sending:
    """The costs of sending work away.

    Attributes:
        seconds: of anything at all.
        bytes_per_s: of rows on their way.
        shortest_s: how long a part is to take at least.
    """

    seconds: float
    bytes_per_s: float
    shortest_s: float


@dataclass(slots=True)
class Cost:
    """Measured seconds: of one row's prediction in a full block, and of writing down the model's state.

    The first prediction is not counted: libraries compile and load then. Of the last ones the quickest counts:
    a machine that does something else meanwhile makes no model expensive.
    """

    state_s: float = 0.0
    _newest: deque[float] = field(default_factory=lambda: deque(maxlen=MEASUREMENTS))
    _begun: bool = False

    def measured(self, rows: int, seconds: float) -> None:
        """Take a measurement in."""
        if rows and self._begun:
            self._newest.append(seconds / rows)
        self._begun = self._begun or rows > 0

    @property
    def row_s(self) -> float | None:
        """Seconds a row; None while they are not known."""
        return min(self._newest) if len(self._newest) > 1 else None


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """Rows that one version predicts elsewhere, in parts of whole blocks.

    Attributes:
        number: of the version; ``width``: of a prediction, where it is a list.
    """

    known: KnownState
    number: int
    method: Method
    parts: Sequence[Array]
    width: int

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(map(len, self.parts))


Measured = tuple[Predicted, float]


class WorkersAway(Exception):
    """Nobody takes work now."""


class MeasuredWorkers(ABC):
    """Workers that get what is worth it: what a row costs is measured as rows are predicted, and compared with sending.

    Rows go in parts of whole blocks, so that they are the blocks that the engine itself would have predicted; the state
    of a model goes with them where it is small, and is put where workers find it, once, where it is large.

    Args:
        hands: how many predict at once.
        models: whose learners they get to know.

    Attributes:
        sent: rows that were sent to them since the start.
    """

    def __init__(self, hands: int, models: Sequence[ModelTask], sending: Sending) -> None:
        self.sent = 0
        self._hands = hands
        self._sending = sending
        self._declared = {task.name: data for task in models if (data := _declaration(task)) is not None}
        # Models that workers cannot make, as it turned out: what was sent before is done here.
        self._refused: set[str] = set()
        self._costs: dict[tuple[str, Method], Cost] = {}
        self._known: dict[str, tuple[ModelVersion, KnownState]] = {}

    def predict(
        self, task: ModelTask, by: ModelVersion, method: Method, X: Array, *, width: int = 0, last: bool = True
    ) -> Callable[[], Predicted]:
        """See `headrace.step.ahead.Predictors.predict`."""
        cost = self._costs.setdefault((task.name, method), Cost())
        done: list[tuple[Ints, Predicted]] = []
        at = 0
        while at < len(X) and (rows := self._rows_here(task, by, cost, X[at:], last)):
            found = self._here(by, method, X[at : at + rows], width, cost)
            done.append((np.arange(at, at + rows), found))
            at += rows
        if at == len(X):
            return lambda: joined(done, len(X))
        parts = self._parts(X[at:], cost)
        job = PredictionJob(self._state(task, by, cost), by.number, method, parts, width)
        try:
            gather = self._send(job)
        except WorkersAway:
            done.append((np.arange(at, len(X)), self._here(by, method, X[at:], width, cost)))
            return lambda: joined(done, len(X))
        self.sent += job.rows

        def predicted() -> Predicted:
            start = at
            for part, (found, seconds) in zip(parts, gather(), strict=True):
                cost.measured(_slots(by, len(part)), seconds)
                done.append((np.arange(start, start + len(part)), found))
                start += len(part)
            return joined(done, len(X))

        return predicted

    def _rows_here(self, task: ModelTask, by: ModelVersion, cost: Cost, X: Array, last: bool) -> int:
        """Return how many of some rows are to be predicted here now; 0: all of them are to be sent."""
        if cost.row_s is None:
            # The first blocks say what a row costs.
            return min(len(X), BLOCK_ROWS)
        if task.name not in self._declared or task.name in self._refused or not self._worth(by, cost, X, last):
            return len(X)
        if self._there():
            return 0
        return min(len(X), max(1, int(WHILE_THEY_BEGIN_S / cost.row_s) // BLOCK_ROWS) * BLOCK_ROWS)

    def _there(self) -> bool:
        """Return whether workers take work: there is some, and those that are not there yet are to begin."""
        return True

    def attend(self, sources: Sequence[Source[Any]]) -> None:
        """See `Workers.attend`."""
        return

    def perform(self, schedule: Schedule) -> Callable[[], Emission]:
        """See `headrace.step.absent.Performers.perform`."""
        raise NotImplementedError("these workers hold no rows")

    def performed(self) -> list[tuple[str, EncodedRows]]:
        """See `Workers.performed`."""
        return []

    @abstractmethod
    def _send(self, job: PredictionJob) -> Callable[[], list[Measured]]:
        """Begin a job.

        Returns:
            What waits for the predictions of each part, and the seconds that they took.

        Raises:
            WorkersAway: it is to be done here.
        """

    @abstractmethod
    def _put(self, name: str, data: bytes) -> Readable:
        """Put a large state where workers find it, for as long as what is returned lives."""

    def _worth(self, by: ModelVersion, cost: Cost, X: Array, last: bool) -> bool:
        """Return whether sending rows saves more than it costs.

        One block that is waited for at once gains nothing by being elsewhere. One of many (cuts of a few rows) does:
        the next ones are predicted meanwhile.
        """
        slots = _slots(by, len(X))
        if cost.row_s is None or (last and slots <= BLOCK_ROWS):
            return False
        saved = slots * cost.row_s * (1 - 1 / max(2, self._hands))
        return saved > GAIN * (self._sending.seconds + X.nbytes / self._sending.bytes_per_s + cost.state_s)

    def _here(self, by: ModelVersion, method: Method, X: Array, width: int, cost: Cost) -> Predicted:
        begun = time.perf_counter()
        found = predict_rows(getattr(by.learner, method), X, width=width)
        cost.measured(_slots(by, len(X)), time.perf_counter() - begun)
        return found

    def _parts(self, X: Array, cost: Cost) -> list[Array]:
        """Return rows in parts of whole blocks."""
        assert cost.row_s is not None
        least = max(1, int(self._sending.shortest_s / max(cost.row_s, 1e-9)))
        rows = max(least, -(-len(X) // (PARTS * self._hands)))
        rows = -(-rows // BLOCK_ROWS) * BLOCK_ROWS
        return [np.ascontiguousarray(X[start : start + rows]) for start in range(0, len(X), rows)]

    def _state(self, task: ModelTask, by: ModelVersion, cost: Cost) -> KnownState:
        """Return a version's state as workers get it; written down once: a version is one place of a model's life."""
        held = self._known.get(task.name)
        if held is not None and held[0] is by:
            return held[1]
        begun = time.perf_counter()
        data = b"".join(dump_pieces(by.learner.state()))
        declared = hashlib.blake2b(self._declared[task.name], digest_size=8).hexdigest()
        digest = f"{declared}-{data[4:20].hex()}"
        large = len(data) > INLINE_BYTES
        known = KnownState(
            task.name, digest, self._put(f"{task.name.encode().hex()}-{digest}", data) if large else data
        )
        cost.state_s = time.perf_counter() - begun
        self._known[task.name] = by, known
        return known

    def _predict_here(self, job: PredictionJob, part: Array) -> Measured:
        """Predict what workers have died over, as they would have done it."""
        declare({job.known.task: self._declared[job.known.task]})
        return predict(job.known, job.method, part, job.width)


def _slots(by: ModelVersion, rows: int) -> int:
    """Return for how many rows a model computes when it predicts some: blocks are padded."""
    return rows if traits_of(by.learner).rowwise else -(-rows // BLOCK_ROWS) * BLOCK_ROWS


def _declaration(task: ModelTask) -> bytes | None:
    """Return a model's learner as it was declared, for other processes; None where it cannot be sent."""
    try:
        data = pickled(task.learner)
        pickle.loads(data)  # what cannot be made here, cannot there
        return data
    except Exception as error:  # whatever a learner of one's own holds: locks, sockets, handles
        reason = f"{type(error).__name__}: {error}"
        about = event("worker_refused", model=task.name, reason=reason)
        logger.warning(
            "«%s» is predicted in this process: its learner cannot be sent (%s)", task.name, reason, extra=about
        )
        return None


def pickled(value: Any) -> bytes:
    """Return a value for another process, with the user's own classes and functions in it.

    Modules that are installed nowhere are not found there: the file of the app, and what lies beside it.
    """
    import cloudpickle

    own = [module for name, module in list(sys.modules.items()) if _is_users_own(name, module)]
    for module in own:
        cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(cloudpickle.dumps(value))
    finally:
        for module in own:
            cloudpickle.unregister_pickle_by_value(module)


def pickled_training(task: ModelTask, state: State) -> bytes:
    """Return the training that a state waits for, with what is needed of the state as it is now."""
    needed = State(
        current=state.current,
        visible=state.visible,
        vocabulary=state.vocabulary,
        training=state.training,
        trained_on=state.trained_on,
    )
    return pickled((task, needed))


_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def _is_users_own(name: str, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)  # namespace packages and built-in ones have none
    if file is None or name != module.__name__ or name.partition(".")[0] in ("headrace", "__main__"):
        return False
    return not _is_installed(file)


@functools.cache
def _is_installed(file: str) -> bool:
    return "site-packages" in file or str(Path(file).resolve()).startswith(_INSTALLED)


# -- what a worker does ------------------------------------------------------------------------------------------------

_declared: dict[str, bytes] = {}
_learners: OrderedDict[tuple[str, str], Learner] = OrderedDict()


def declare(learners: dict[str, bytes]) -> None:
    """Tell a worker the learners as they were declared, pickled, by their models' names."""
    _declared.update(learners)


def learner_of(known: KnownState) -> Learner:
    """Return the learner in a state; a worker keeps the ones it used last."""
    key = known.task, known.digest
    if key in _learners:
        _learners.move_to_end(key)
        return _learners[key]
    learner: Learner = pickle.loads(_declared[known.task])
    learner.restore(load_state(known.data if isinstance(known.data, bytes) else known.data.read_bytes()))
    _learners[key] = learner
    while len(_learners) > KEPT_LEARNERS:
        _learners.popitem(last=False)
    return learner


def predict(known: KnownState, method: Method, X: Array, width: int) -> Measured:
    """Predict rows; return also the seconds it took."""
    learner = learner_of(known)
    begun = time.perf_counter()
    with pinned(learner), np.errstate(all="ignore"):
        found = predict_rows(getattr(learner, method), X, width=width)
    return found, time.perf_counter() - begun


def train(training: bytes) -> Trained:
    """Do a training that `pickled_training` has pickled."""
    return train_here(*pickle.loads(training))


def train_here(task: ModelTask, state: State) -> Trained:
    """Do the training that a state waits for."""
    with pinned(task.learner), np.errstate(all="ignore"):
        return train_pending(task, state)
