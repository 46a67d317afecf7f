"""What a task knows between two events, and how it is saved."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Array
from headrace.batch import Batch
from headrace.grade.scores import Scores
from headrace.learn.base import Learner
from headrace.learn.features import growing
from headrace.learn.handover import Handover
from headrace.plan.task import ModelTask, OperatorTask, StreamPlan, StreamTask, Task
from headrace.position import Position
from headrace.step.events import Swap
from headrace.step.labels import Memory, named
from headrace.step.operator_state import (
    OperatorState,
    as_bytes,
    dump_operators,
    from_bytes,
    initial_operators,
    load_operators,
)
from headrace.step.operators import below


@dataclass(slots=True)
class Counters:
    """What a task did with its rows since its log began."""

    learned: int = 0
    predicted: int = 0
    rejected: int = 0
    ignored: int = 0
    unlabelled: int = 0
    cuts: int = 0


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of an incomplete cut: features of shape (n, d), and targets and weights of shape (n,) where there are.

    Attributes:
        origin: shape (n, 2) or (n, 4): where each row is found should it be refused (`headrace.step.learning.origins`).
    """

    X: Array
    y: Array | None
    weight: Array | None = None
    origin: Array | None = None

    def __len__(self) -> int:
        return len(self.X)

    def slice(self, start: int, end: int) -> Samples:
        return self._each(lambda array: array[start:end])

    def taken(self, by: npt.NDArray[Any]) -> Samples:
        """Rows by their numbers, or by a mask; C-contiguous."""
        return self._each(lambda array: array[by])

    def _each(self, some: Callable[[Array], Array]) -> Samples:
        y, weight, origin = self.y, self.weight, self.origin
        return Samples(
            some(self.X),
            None if y is None else some(y),
            None if weight is None else some(weight),
            None if origin is None else some(origin),
        )

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Several as one, C-contiguous."""
        if len(parts) == 1:
            return parts[0]._each(np.array)
        X = np.ascontiguousarray(np.concatenate([one.X for one in parts]))
        columns = ([one.y for one in parts], [one.weight for one in parts], [one.origin for one in parts])
        known = ([array for array in column if array is not None] for column in columns)
        return cls(X, *(np.concatenate(column) if column else None for column in known))


@dataclass(frozen=True, slots=True)
class Ended:
    """A version as it was when the next one began.

    Attributes:
        state: of its learner.
        position: of the last row it learned; ``rows``: how many, those of the versions it goes back to included.
        reach: topic -> offset after the last row it took.
        metrics: what it was scored, where it was.
        known: words of each category that it knew.
        swap: what took its place; None where the next version goes on from it.
    """

    version: int
    state: Mapping[str, Any]
    position: Position | None
    rows: int
    reach: Mapping[str, int]
    metrics: Mapping[str, Any]
    known: Mapping[str, int]
    swap: Swap | None = None


@dataclass(frozen=True, slots=True)
class Answering:
    """The model that answers now, and what it has learned to; ``rows``: how many it has learned.

    Attributes:
        diverged: why it gives no answers; empty where it does.
    """

    learner: Learner
    position: Position | None
    version: int
    rows: int
    words: Mapping[str, Sequence[str]]
    sizes: Mapping[str, int]
    diverged: str = ""


@dataclass(frozen=True, slots=True)
class PendingTraining:
    """A training that was begun and has not ended, while the old model goes on answering.

    Attributes:
        rows: to train on; ``about``: how they were chosen.
        position: of the row that set it off; ``at_us``: its event time.
        by: who asked, where somebody did; ``cause``: the row, as JSON.
    """

    rows: Batch
    about: dict[str, Any]
    position: Position
    at_us: int
    by: str = ""
    cause: str = ""


@dataclass(slots=True)
class State:
    """Everything a task knows between two events.

    Attributes:
        learner: has learned every complete cut, and the pieces of an incomplete one.
        at_cut: the model at the last complete cut, while ``learner`` is pieces ahead of it.
        shown: the model that answers while cuts of an open transaction are complete but not to be seen.
        position: of the last row of the last complete cut; ``shown_position`` likewise for ``shown``.
        pending: rows of the incomplete cut that no piece has taken yet; ``pending_rows`` counts those of the pieces
            too, ``pending_refused`` those that its learner failed on, ``pending_position`` is the last one's.
        lineage_rows: rows that the learner has learned, those of versions it goes back to included.
        reach: topic -> offset after the last row of the last complete cut; ``pending_reach``: of the rows consumed.
        words: category -> words in the order of their columns; ``known``: how many of them the learner knew at its
            last complete cut; ``shown_known`` likewise for ``shown``. ``sizes``: vector -> its length.
        swap: another version that waits for the end of the cut.
        scores: what was scored so far (`headrace.step.scoring`).
        ended: versions that ended in the last event, for whoever runs it to store; not part of the saved state.
        open_key: transaction of the last row, when it may go on.
        watermark_us: running maximum of commit times; ``window``: the pending rows' duration.
        memory: what is known of the topics' rows: those whose label has not come, and what was predicted of each
            (`headrace.step.labels`).
        emitted: topic -> offset below which answers were already given (a model that learns again).
        flow: what is derived from its rows (`headrace.step.operator_state`).
        trained_on: hash of the rows of the last training; ``training``: one that runs; ``shadow``: a trained model that
            answers beside the one that counts, with ``shadow_errors``, both models' errors since.
        written: topic -> offset after the last row that the task has written to it.
        shadowing: the learner of ``shadow``.
        diverged: why the learner gives no sound numbers any more; empty while it does. ``at_cut_diverged`` and
            ``shown_diverged`` likewise for those.
        handover: hands rows to ``learner``; not part of the saved state.
        began_with: what it was trained on before its first row; not part of the saved state.
    """

    learner: Learner | None = None
    version: int = 1
    at_cut: Learner | None = None
    shown: Learner | None = None
    position: Position | None = None
    shown_position: Position | None = None
    shown_version: int = 1
    shown_rows: int = 0
    shown_known: dict[str, int] = field(default_factory=dict)
    pending: list[Samples] = field(default_factory=list)
    pending_rows: int = 0
    pending_refused: int = 0
    pending_position: Position | None = None
    open_key: tuple[int, int] | None = None
    watermark_us: int = -(2**62)
    window: int = 0
    memory: Memory = field(default_factory=Memory)
    emitted: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    lineage_rows: int = 0
    reach: dict[str, int] = field(default_factory=dict)
    pending_reach: dict[str, int] = field(default_factory=dict)
    words: dict[str, list[str]] = field(default_factory=dict)
    known: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    swap: Swap | None = None
    scores: dict[str, Scores] = field(default_factory=dict)
    ended: list[Ended] = field(default_factory=list)
    flow: OperatorState | None = None
    trained_on: str = ""
    training: PendingTraining | None = None
    shadow: Swap | None = None
    shadow_errors: list[list[float]] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)
    began_with: dict[str, Any] = field(default_factory=dict)

    shadowing: Learner | None = None
    diverged: str = ""
    at_cut_diverged: str = ""
    shown_diverged: str = ""
    handover: Handover | None = None

    @property
    def beside(self) -> Answering | None:
        """The model that is tried out, where one is."""
        if self.shadow is None or self.shadowing is None:
            return None
        swap = self.shadow
        words = {column: found[: swap.known.get(column, 0)] for column, found in self.words.items()}
        return Answering(self.shadowing, swap.position, swap.version, swap.rows, words, self.sizes)

    @property
    def answering(self) -> Answering:
        """The model that answers now, and what it has learned to."""
        learner = self.shown or self.at_cut or self.learner
        assert learner is not None
        shown = self.shown is not None
        known = self.shown_known if shown else self.known
        words = {column: found[: known.get(column, 0)] for column, found in self.words.items()} if self.words else {}
        if shown:
            about = (self.shown_position, self.shown_version, self.shown_rows, words, self.sizes)
            return Answering(learner, *about, self.shown_diverged)
        diverged = self.diverged if self.at_cut is None else self.at_cut_diverged
        return Answering(learner, self.position, self.version, self.cut_rows, words, self.sizes, diverged)

    @property
    def cut_rows(self) -> int:
        """Rows learned in complete cuts, those of versions it goes back to included."""
        if self.at_cut is None:
            return self.lineage_rows
        ahead = self.pending_rows - sum(map(len, self.pending)) - self.pending_refused
        return self.lineage_rows - ahead


def initial_state(task: Task, version: int = 1) -> State:
    """The state before the first event; the plan's own learner is never touched."""
    if isinstance(task, StreamTask):
        return State(version=version)
    if isinstance(task, OperatorTask):
        return State(version=version, flow=initial_operators(task.nodes))
    selection = task.retrain.rows if task.retrain else None
    flow = initial_operators(task.nodes, selection) if task.nodes or task.retrain else None
    scores = {one.spec.name: Scores(one.spec) for one in task.evaluate}
    words = {one.column: list(one.words) for one in growing(task.features)}
    known = {column: len(found) for column, found in words.items()}
    return State(copy.deepcopy(task.learner), version, scores=scores, words=words, known=known, flow=flow)


def dump_state(state: State) -> dict[str, Any]:
    """The state as flat values for `headrace.learn.state`."""
    flat: dict[str, Any] = {}
    for name, learner in (("learner", state.learner), ("at_cut", state.at_cut), ("shown", state.shown)):
        if learner is not None:
            flat.update({f"{name}.{key}": value for key, value in learner.state().items()})
    for i, rows in enumerate(state.pending):
        named = {"X": rows.X, "y": rows.y, "weight": rows.weight, "origin": rows.origin}
        flat.update({f"pending.{i}.{name}": one for name, one in named.items() if one is not None})
    for i, scores in enumerate(state.scores.values()):
        flat.update({f"scores.{i}.{key}": value for key, value in scores.state().items()})
    if state.swap is not None:
        flat.update({f"swap.{key}": value for key, value in state.swap.state.items()})
    if state.flow is not None:
        flat.update({f"flow.{key}": value for key, value in dump_operators(state.flow).items()})
    if state.training is not None:
        flat["training.rows"] = as_bytes(state.training.rows.records)
    if state.shadow is not None:
        flat.update({f"shadowed.{key}": value for key, value in state.shadow.state.items()})
    flat.update({f"memory.{key}": value for key, value in state.memory.state().items()})
    flat["meta"] = json.dumps(
        {
            "version": state.version,
            "copies": [name for name in ("at_cut", "shown") if getattr(state, name) is not None],
            "position": str(state.position) if state.position else None,
            "shown_position": str(state.shown_position) if state.shown_position else None,
            "pending": len(state.pending),
            "pending_rows": state.pending_rows,
            "pending_refused": state.pending_refused,
            "diverged": [state.diverged, state.at_cut_diverged, state.shown_diverged],
            "pending_position": str(state.pending_position) if state.pending_position else None,
            "open_key": state.open_key,
            "watermark_us": state.watermark_us,
            "window": state.window,
            "emitted": state.emitted,
            "shown_version": state.shown_version,
            "shown_rows": state.shown_rows,
            "shown_known": state.shown_known,
            "lineage_rows": state.lineage_rows,
            "reach": state.reach,
            "pending_reach": state.pending_reach,
            "words": state.words,
            "known": state.known,
            "sizes": state.sizes,
            "swap": None if state.swap is None else _swap_meta(state.swap),
            "scores": list(state.scores),
            "trained_on": state.trained_on,
            "training": None if state.training is None else _asked_meta(state.training),
            "shadow_swap": None if state.shadow is None else _swap_meta(state.shadow),
            "shadow_errors": state.shadow_errors,
            "written": state.written,
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
        state.learner.restore(below("learner.", flat))
        for name in meta["copies"]:
            ahead = copy.deepcopy(task.learner)
            ahead.restore(below(f"{name}.", flat))
            setattr(state, name, ahead)
    state.position = Position.parse(meta["position"]) if meta["position"] else None
    state.shown_position = Position.parse(meta["shown_position"]) if meta["shown_position"] else None
    state.pending = [
        Samples(flat[f"pending.{i}.X"], *(flat.get(f"pending.{i}.{name}") for name in ("y", "weight", "origin")))
        for i in range(meta["pending"])
    ]
    if isinstance(task, ModelTask):
        state.pending = [rows if rows.origin is not None else _of_nowhere(rows, task) for rows in state.pending]
    state.diverged, state.at_cut_diverged, state.shown_diverged = meta.get("diverged", ("", "", ""))
    state.pending_rows = meta["pending_rows"]
    state.pending_position = Position.parse(meta["pending_position"]) if meta["pending_position"] else None
    state.open_key = tuple(meta["open_key"]) if meta["open_key"] else None
    state.watermark_us, state.window = meta["watermark_us"], meta["window"]
    if "memory.names" in flat:
        state.memory.restore(below("memory.", flat))
    # States of versions that knew rows by their keys only.
    for i, topic in enumerate(meta.get("unlabelled", ())):
        streams = task.learn if isinstance(task, ModelTask) else ()
        for name, stream in zip(named_uses(task, "learn"), streams, strict=True):
            if stream.topic == topic:
                late = state.memory.waiting(name, partial=bool(stream.operations))
                late.hashes = set(flat[f"unlabelled.{i}"].tolist())
    state.emitted = meta["emitted"]
    state.counters = Counters(**meta["counters"])
    for name in _SINCE_VERSIONS & meta.keys():
        setattr(state, name, meta[name])
    if "lineage_rows" not in meta:
        state.lineage_rows = state.counters.learned
    if meta.get("swap"):
        state.swap = _swap(meta["swap"], below("swap.", flat))
    if meta.get("shadow_swap"):
        state.shadow = _swap(meta["shadow_swap"], below("shadowed.", flat))
        assert isinstance(task, ModelTask)
        state.shadowing = copy.deepcopy(task.learner)
        state.shadowing.restore(dict(state.shadow.state))
    if meta.get("training"):
        state.training = _asked(meta["training"], Batch(from_bytes(np.asarray(flat["training.rows"], np.uint8))))
    if state.flow is not None and "flow.meta" in flat:
        rows = task.retrain.rows if isinstance(task, ModelTask) and task.retrain else None
        state.flow = load_operators(getattr(task, "nodes", ()), rows, below("flow.", flat))
    for i, name in enumerate(meta.get("scores", ())):
        if name in state.scores:
            state.scores[name].restore(below(f"scores.{i}.", flat))
    return state


def _of_nowhere(rows: Samples, task: ModelTask) -> Samples:
    """Rows that were stored before it was, where they are found."""
    origin = np.zeros((len(rows), 4 if task.learn_nodes else 2), np.int64)
    origin[:, 0] = len(task.learn)
    return replace(rows, origin=origin)


def named_uses(task: Task, use: str) -> list[str]:
    """Names of what a model's streams wait for, or remember: of those that it learns, predicts or is scored on."""
    streams = [plan if isinstance(plan, StreamPlan) else plan.stream for plan in getattr(task, use, ())]
    topics = [stream.topic if stream is not None else "" for stream in streams]
    return [named(use, topics, number) for number in range(len(topics))]


# States written before there were versions have none of these.
_SINCE_VERSIONS = {
    "pending_refused",
    "shown_version",
    "shown_rows",
    "shown_known",
    "lineage_rows",
    "reach",
    "pending_reach",
    "words",
    "known",
    "sizes",
    "trained_on",
    "shadow_errors",
    "written",
}


def _swap_meta(swap: Swap) -> dict[str, Any]:
    position = str(swap.position) if swap.position else None
    about = {"version": swap.version, "parent": swap.parent, "rows": swap.rows, "known": dict(swap.known)}
    more = {"training": dict(swap.training)} if swap.training else {}
    return {**about, "position": position, "artifact": swap.artifact, "by": swap.by, **more}


def _swap(meta: Mapping[str, Any], state: Mapping[str, Any]) -> Swap:
    position = Position.parse(meta["position"]) if meta["position"] else None
    about = (meta["version"], meta["parent"], state, position, meta["rows"], meta["known"])
    return Swap(*about, meta.get("artifact", ""), meta.get("by", ""), meta.get("training", {}))


def _asked_meta(asked: PendingTraining) -> dict[str, Any]:
    about = {"about": asked.about, "position": str(asked.position), "at_us": asked.at_us}
    return {**about, "by": asked.by, "cause": asked.cause}


def _asked(meta: Mapping[str, Any], rows: Batch) -> PendingTraining:
    position = Position.parse(meta["position"])
    return PendingTraining(rows, meta["about"], position, meta["at_us"], meta["by"], meta["cause"])
