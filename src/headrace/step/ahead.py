"""Predictions that others make for a step: beside it, by a state that it knows; or ahead of it, by one they know.

Neither changes what a step gives. Beside it, predictors get a state and rows and return what the step would have
computed by itself. What was predicted ahead is taken only where the model that predicts *is* the one that predicted
ahead: a stale memo costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from headrace.arrays import Array, Ints
from headrace.learn.state import state_hash
from headrace.plan.task import ModelTask
from headrace.step.model_version import ModelVersion

Method = Literal["predict", "predict_proba"]
# As `headrace.step.predictions.predict_rows` gives it: one prediction for each row, and why rows have none.
Predicted = tuple[Array | None, dict[int, str]]


class Predictors(Protocol):
    """Whoever predicts beside the step: processes of this machine, executors of a cluster.

    Work may be repeated: it has no effects.
    """

    def predict(
        self, task: ModelTask, by: ModelVersion, method: Method, X: Array, *, width: int = 0
    ) -> Callable[[], Predicted]:
        """Begin to predict rows by a version as it is now; its learner may go on learning meanwhile.

        Where that is better (a cheap model, few rows) they are predicted before this returns.

        Args:
            X: of shape (n, d), C-contiguous; never changed afterwards.
            width: of a prediction, where it is a list.

        Returns:
            What waits for the predictions: the bits that `headrace.step.predictions.predict_rows` gives.
        """
        ...


@dataclass(frozen=True, slots=True)
class Foreseen:
    """Predictions of rows of one part that were made ahead, by the model as it was known then.

    Attributes:
        identity: of that model (`identity_of`).
        predict: number of the `PredictPlan` that they are for.
        rows: numbers of the rows within the part, ascending: those whose features were sound.
        found: what `predict_rows` gave them, by method.
    """

    identity: str
    predict: int
    rows: Ints
    found: Mapping[Method, Predicted]


def identity_of(version: ModelVersion) -> str:
    """Return what tells a model's predictions from any other's: its learner's state, and the words it knows.

    A version is a model at one place between two cuts: asked again about the same one, it is known.
    """
    known = _known.get(id(version))
    if known is not None and known[0] is version:
        return known[1]
    words = json.dumps([{name: list(some) for name, some in version.words.items()}, dict(version.sizes)])
    state = state_hash(version.learner.state())
    identity = hashlib.blake2b(f"{state} {words}".encode(), digest_size=16).hexdigest()
    while len(_known) >= _KEPT:
        del _known[next(iter(_known))]
    _known[id(version)] = version, identity
    return identity


_KEPT = 8
_known: dict[int, tuple[ModelVersion, str]] = {}


@dataclass(slots=True)
class Memo:
    """Predictions made ahead, by the places of their rows in an event.

    Attributes:
        places: of the rows, ascending.
        stale: whether it was seen that another model predicts now. It is not looked at again then: comparing states for
            each cut would cost more than predicting.
    """

    foreseen: Foreseen
    places: Ints
    stale: bool = False

    def take(self, by: ModelVersion, method: Method, places: Ints) -> Predicted | None:
        """Return the predictions of rows at some places by a model; None where they are not known."""
        found = self.foreseen.found.get(method)
        if found is None or self.stale or not len(places):
            return None
        values, failed = found
        at = np.searchsorted(self.places, places)
        if at[-1] >= len(self.places) or not np.array_equal(self.places[at], places):
            return None
        if values is not None and len(values) != len(self.places):
            return None
        if identity_of(by) != self.foreseen.identity:
            self.stale = True
            return None
        where = {int(row): number for number, row in enumerate(at.tolist())} if failed else {}
        mine = {where[row]: reason for row, reason in failed.items() if row in where}
        return (None if values is None else values[at]), mine


def memos(foreseen: Sequence[Foreseen], order: npt.NDArray[np.int64], predict: int) -> list[Memo]:
    """Return what was foreseen of a part for one declared prediction, by the places of the part's rows."""
    mine = [known for known in foreseen if known.predict == predict]
    good = [known for known in mine if not len(known.rows) or int(known.rows[-1]) < len(order)]
    return [Memo(known, order[known.rows]) for known in good]
