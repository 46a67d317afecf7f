"""Workers of an engine: hands that predict and train beside it. They have no effects, so that any work may be repeated.

What is sent to them and what they do with it is the same wherever they are: a learner as it was declared, the state it
had, rows. An engine decides only how it gets there: pipes to processes (`headrace.engines.local.pool`), a cluster.
"""

from __future__ import annotations

import pickle
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.arrays import Array
from headrace.learn.base import Learner, pinned
from headrace.learn.state import load_state
from headrace.plan.task import ModelTask
from headrace.step.ahead import Method, Predicted, Predictors
from headrace.step.predictions import predict_rows
from headrace.step.retraining import Trained
from headrace.step.state import State

KEPT_LEARNERS = 4


class Workers(Predictors, Protocol):
    """The contract of an engine with its hands; calls come from the engine's thread."""

    def train(self, task: ModelTask, state: State) -> Callable[[], Trained | None]:
        """Begin the training that a state says is pending; nothing of the state is changed.

        Returns:
            What waits for its outcome; None where whoever trained has died of it.
        """
        ...

    def close(self) -> None:
        """Let go of everything; what was begun may be left undone."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class KnownState:
    """A model's state on its way to workers.

    Attributes:
        task: the model's name.
        digest: of the state.
        data: the state itself where it is small, else the file that holds it.
    """

    task: str
    digest: str
    data: bytes | Path


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


def predict(known: KnownState, method: Method, X: Array, width: int) -> tuple[Predicted, float]:
    """Predict rows; return also the seconds it took."""
    learner = learner_of(known)
    begun = time.perf_counter()
    with pinned(learner):
        found = predict_rows(getattr(learner, method), X, width=width)
    return found, time.perf_counter() - begun
