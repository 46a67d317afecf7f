"""What a task knows between two events, and how it is saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.learn.base import Learner
from headrace.plan import ModelTask, Task
from headrace.position import Position


@dataclass(slots=True)
class Counters:
    """What a task did with its rows since its log began."""

    learned: int = 0
    predicted: int = 0
    rejected: int = 0
    ignored: int = 0
    unlabelled: int = 0
    cuts: int = 0


@dataclass(slots=True)
class State:
    """Everything a task knows between two events.

    Attributes:
        learner: has learned every complete cut, and the pieces of an incomplete one.
        at_cut: the model at the last complete cut, while ``learner`` is pieces ahead of it.
        shown: the model that answers while cuts of an open transaction are complete but not to be seen.
        position: of the last row of the last complete cut; ``shown_position`` likewise for ``shown``.
        pending: rows of the incomplete cut that no piece has taken yet, as (X, y) blocks; ``pending_rows``
            counts those of the pieces too, ``pending_position`` is the last one's.
        open_key: transaction of the last row, when it may go on.
        watermark_us: running maximum of commit times; ``window``: the pending rows' duration.
        unlabelled: topic -> hashes of the keys of rows whose label has not come yet (`headrace.labels`).
        emitted: topic -> offset below which answers were already given (a model that learns again).
    """

    learner: Learner | None = None
    version: int = 1
    at_cut: Learner | None = None
    shown: Learner | None = None
    position: Position | None = None
    shown_position: Position | None = None
    pending: list[tuple[npt.NDArray[Any], npt.NDArray[Any] | None]] = field(default_factory=list)
    pending_rows: int = 0
    pending_position: Position | None = None
    open_key: tuple[int, int] | None = None
    watermark_us: int = -(2**62)
    window: int = 0
    unlabelled: dict[str, set[int]] = field(default_factory=dict)
    emitted: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)

    @property
    def answering(self) -> tuple[Learner, Position | None]:
        """The model that answers now, and what it has learned to."""
        learner = self.shown or self.at_cut or self.learner
        assert learner is not None
        return learner, self.shown_position if self.shown is not None else self.position


def initial_state(task: Task, version: int = 1) -> State:
    """The state before the first event; the plan's own learner is never touched."""
    return State(learner=copy.deepcopy(task.learner) if isinstance(task, ModelTask) else None, version=version)


def dump_state(state: State) -> dict[str, Any]:
    """The state as flat values for `headrace.learn.state`."""
    flat: dict[str, Any] = {}
    for name, learner in (("learner", state.learner), ("at_cut", state.at_cut), ("shown", state.shown)):
        if learner is not None:
            flat.update({f"{name}.{key}": value for key, value in learner.state().items()})
    for i, (X, y) in enumerate(state.pending):
        flat[f"pending.{i}.X"] = X
        if y is not None:
            flat[f"pending.{i}.y"] = y
    waiting = {topic: keys for topic, keys in sorted(state.unlabelled.items()) if keys}
    flat.update({f"unlabelled.{i}": np.sort(np.fromiter(keys, np.int64)) for i, keys in enumerate(waiting.values())})
    flat["meta"] = json.dumps(
        {
            "version": state.version,
            "copies": [name for name in ("at_cut", "shown") if getattr(state, name) is not None],
            "position": str(state.position) if state.position else None,
            "shown_position": str(state.shown_position) if state.shown_position else None,
            "pending": len(state.pending),
            "pending_rows": state.pending_rows,
            "pending_position": str(state.pending_position) if state.pending_position else None,
            "open_key": state.open_key,
            "watermark_us": state.watermark_us,
            "window": state.window,
            "unlabelled": list(waiting),
            "emitted": state.emitted,
            "counters": {name: getattr(state.counters, name) for name in Counters.__slots__},
        }
    )
    return flat


def load_state(task: Task, flat: Mapping[str, Any]) -> State:
    """The inverse of `dump_state`."""
    meta = json.loads(flat["meta"])
    state = initial_state(task, meta["version"])
    if isinstance(task, ModelTask):
        assert state.learner is not None
        state.learner.restore(_below("learner.", flat))
        for name in meta["copies"]:
            ahead = copy.deepcopy(task.learner)
            ahead.restore(_below(f"{name}.", flat))
            setattr(state, name, ahead)
    state.position = Position.parse(meta["position"]) if meta["position"] else None
    state.shown_position = Position.parse(meta["shown_position"]) if meta["shown_position"] else None
    state.pending = [(flat[f"pending.{i}.X"], flat.get(f"pending.{i}.y")) for i in range(meta["pending"])]
    state.pending_rows = meta["pending_rows"]
    state.pending_position = Position.parse(meta["pending_position"]) if meta["pending_position"] else None
    state.open_key = tuple(meta["open_key"]) if meta["open_key"] else None
    state.watermark_us, state.window = meta["watermark_us"], meta["window"]
    state.unlabelled = {
        topic: set(flat[f"unlabelled.{i}"].tolist()) for i, topic in enumerate(meta.get("unlabelled", ()))
    }
    state.emitted = meta["emitted"]
    state.counters = Counters(**meta["counters"])
    return state


def _below(prefix: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}
