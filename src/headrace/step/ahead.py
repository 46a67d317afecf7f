"""Predictions that others make for a step: beside it, by a state that it knows; or ahead of it, by one they know.

Neither changes what a step gives. Beside it, predictors get a state and rows and return what the step would have
computed by itself. What was predicted ahead is taken only where the model that predicts *is* the one that predicted
ahead, and the rows have the features they had: a stale memo costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from headrace.arrays import Array, Ints, Mask
from headrace.foreseen import Foreseen, Method, Predicted
from headrace.learn.state import state_hash
from headrace.plan.task import ModelTask
from headrace.step.events import Part, Rows
from headrace.step.model_version import ModelVersion


class Predictors(Protocol):
    """Whoever predicts beside the step: processes of this machine, executors of a cluster.

    Work may be repeated: it has no effects.
    """

    def predict(
        self, task: ModelTask, by: ModelVersion, method: Method, X: Array, *, width: int = 0, last: bool = True
    ) -> Callable[[], Predicted]:
        """Begin to predict rows by a version as it is now; its learner may go on learning meanwhile.

        Where that is better (a cheap model, few rows) they are predicted before this returns.

        Args:
            X: of shape (n, d), C-contiguous; never changed afterwards.
            width: of a prediction, where it is a list.
            last: nothing is left to be done before somebody waits for the predictions, as far as is known.

        Returns:
            What waits for the predictions: the bits that `headrace.step.predictions.predict_rows` gives.
        """
        ...


def identity_of(version: ModelVersion) -> str:
    """Return what tells a model's predictions from any other's for the same features: its learner, and its state.

    A version is a model at one place between two cuts: asked again about the same one, it is known.
    """
    known = _known.get(id(version))
    if known is not None and known[0] is version:
        return known[1]
    learner = version.learner
    declared = json.dumps(learner.parameters(), sort_keys=True, default=str)
    text = f"{type(learner).__qualname__} {declared} {state_hash(learner.state())}"
    identity = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    for old in list(_known)[: max(0, len(_known) + 1 - _KEPT)]:
        _known.pop(old, None)
    _known[id(version)] = version, identity
    return identity


_KEPT = 4
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

    def take(
        self, by: ModelVersion, method: Method, places: Ints, hashes: Callable[[], Array], width: int
    ) -> tuple[Ints, Predicted] | None:
        """Return which rows are known here, and their predictions; None where no row is.

        Args:
            places: of the rows that are to be predicted, ascending.
            hashes: gives a hash of the features of each.
            width: of a prediction, where it is a list.
        """
        foreseen, found = self.foreseen, self.foreseen.found.get(method)
        if found is None or self.stale or not len(self.places):
            return None
        values, failed = found
        at = np.minimum(np.searchsorted(self.places, places), len(self.places) - 1)
        hit: Mask = self.places[at] == places
        if not hit.any():
            return None
        if identity_of(by) != foreseen.identity:
            self.stale = True
            return None
        hit &= foreseen.features[at] == hashes()
        if not hit.any() or (values is not None and width and values.shape[1:] != (width,)):
            return None
        rows, at = np.flatnonzero(hit), at[hit]
        if method == "predict":
            foreseen.taken += len(rows)
        where = {int(place): number for number, place in enumerate(at.tolist())} if failed else {}
        mine = {where[row]: reason for row, reason in failed.items() if row in where}
        return rows, (None if values is None else values[at], mine)


def memos(foreseen: Sequence[Foreseen], order: Ints) -> list[Memo]:
    """Return what was foreseen of a part, by the places of its rows; what cannot be of these rows is left out."""
    return [Memo(known, order[known.rows]) for known in foreseen if _sound(known, len(order))]


def _sound(foreseen: Foreseen, rows: int) -> bool:
    numbers = foreseen.rows
    if not len(numbers) or len(foreseen.features) != len(numbers):
        return False
    columns = (values for values, _ in foreseen.found.values() if values is not None)
    inside = int(numbers[0]) >= 0 and int(numbers[-1]) < rows and bool((np.diff(numbers) > 0).all())
    return inside and all(len(values) == len(numbers) for values in columns)


# -- from who reads the rows to the step -------------------------------------------------------------------------------

_MOST_WAITING = 256


@dataclass(slots=True)
class ForeseenRows:
    """Predictions made ahead of a task's rows that wait for the step, and how many of them were of use.

    Attributes:
        taken: rows whose prediction a step has taken from what was made ahead.
        offered: rows of steps that had one.
    """

    taken: int = 0
    offered: int = 0
    _waiting: dict[str, list[tuple[int, Foreseen]]] = field(default_factory=dict)

    def add(self, topic: str, offset: int, foreseen: Sequence[Foreseen]) -> None:
        """Take what was made ahead of the rows of a topic from an offset on.

        Of a task that is far behind the newest is let go of: the model will be another one by then.
        """
        waiting = self._waiting.setdefault(topic, [])
        waiting += [(offset, known) for known in foreseen if len(known.rows)]
        del waiting[_MOST_WAITING:]

    def forget(self) -> None:
        """Let go of everything: the rows come again, or are not to come."""
        self._waiting.clear()

    def on(self, event: Rows) -> Rows:
        """Return the event with what was made ahead of its rows."""
        return replace(event, parts=tuple(map(self._on, event.parts))) if self._waiting else event

    def _on(self, part: Part) -> Part:
        waiting = self._waiting.get(part.topic)
        if not waiting:
            return part
        end = part.offset + part.batch.num_rows
        mine = tuple(known.moved(offset - part.offset) for offset, known in waiting if part.offset <= offset < end)
        self._waiting[part.topic] = [(offset, known) for offset, known in waiting if offset >= end]
        return replace(part, foreseen=mine) if mine else part

    def count(self, event: Rows) -> None:
        """Count what a step has taken of an event."""
        for part in event.parts:
            self.offered += sum(len(known.rows) for known in part.foreseen)
            self.taken += sum(known.taken for known in part.foreseen)
