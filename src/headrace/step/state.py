"""The state of a task between two events, and how it is stored."""

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
from headrace.errors import LogVersionError
from headrace.grade.scores import Scores
from headrace.learn.base import Learner
from headrace.learn.features import growing
from headrace.learn.handover import Handover
from headrace.plan.operators import label_topics
from headrace.plan.task import ModelTask, OperatorTask, StreamPlan, StreamTask, Task
from headrace.position import Position
from headrace.step.labels import Memory, named
from headrace.step.model_version import Challenger, ModelVersion, VersionChange, VersionEnd, Vocabulary
from headrace.step.operator_state import OperatorState, dump_operators, initial_operators, load_operators
from headrace.step.state_codec import APART, below, dump, load

FORMAT = 2
BEGINNING_US = -(2**62)
"""Before any commit time."""


@dataclass(slots=True)
class Counters:
    """Counts of what a task did with its rows since its log began."""

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
        """Return rows by their numbers, or by a mask; C-contiguous."""
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
        """Return several as one, C-contiguous."""
        if len(parts) == 1:
            return parts[0]._each(np.array)
        X = np.ascontiguousarray(np.concatenate([part.X for part in parts]))
        columns = ([part.y for part in parts], [part.weight for part in parts], [part.origin for part in parts])
        known = ([array for array in column if array is not None] for column in columns)
        return cls(X, *(np.concatenate(column) if column else None for column in known))


@dataclass(slots=True)
class OpenBatch:
    """The incomplete cut.

    Attributes:
        rows: so many have come; ``position``: of the last one; ``time_us``: the newest commit time up to it.
        pieces: rows that the learner has not got yet; ``learned``: how many of the others it has learned.
        learner: ahead of the current version's by those; None while there are none. ``diverged``: as of a version.
        window: the duration that the rows belong to.
    """

    rows: int = 0
    position: Position | None = None
    pieces: list[Samples] = field(default_factory=list)
    learned: int = 0
    learner: Learner | None = None
    diverged: str = ""
    window: int = 0
    time_us: int = BEGINNING_US

    @property
    def kept(self) -> int:
        """Number of rows that the learner has not got yet."""
        return sum(map(len, self.pieces))


@dataclass(slots=True)
class Offsets:
    """Offsets of topics.

    Attributes:
        learned: after the last row of the last complete cut; ``consumed``: after the last row of the last event.
        predicted: below which rows have their predictions from an earlier life of the model, which learns again.
        written: after the last row that the task has written, where a training may read the topic.
    """

    learned: dict[str, int] = field(default_factory=dict)
    consumed: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, int] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PendingTraining:
    """A training that was begun and has not ended, while the old model goes on predicting.

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
        current: the model at its last complete cut; None of a task without one.
        visible: the model that predicts while cuts of an open transaction are complete but not to be seen.
        challenger: a trained model that is tried out beside the current one.
        open_batch: the incomplete cut, with the learner where it is ahead.
        operators: what is known of the rows that are derived (`headrace.step.operator_state`).
        memory: what is known of the topics' rows: those whose label has not come, and what was predicted of each
            (`headrace.step.labels`).
        vocabulary: what rows have shown of the features.
        scores: what was scored so far (`headrace.step.scoring`).
        open_key: transaction of the last row, when it may go on.
        watermark_us: running maximum of commit times.
        change: another version that waits for the end of the cut.
        training: one that runs; ``trained_on``: hash of the rows of the last one.
        ended: versions that ended in the last event; not stored, like those below.
        refused_again: (topic, rows, why the first of them) of rows of the last event that a model which learns again
            refuses, and whose dead letters were written in its life before, if any were.
        began_with: what the model was trained on before its first row.
        handover: hands rows to the learner.
    """

    current: ModelVersion | None = None
    visible: ModelVersion | None = None
    challenger: Challenger | None = None
    open_batch: OpenBatch = field(default_factory=OpenBatch)
    operators: OperatorState | None = field(default=None, metadata=APART)
    memory: Memory = field(default_factory=Memory, metadata=APART)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    scores: dict[str, Scores] = field(default_factory=dict, metadata=APART)
    offsets: Offsets = field(default_factory=Offsets)
    counters: Counters = field(default_factory=Counters)
    open_key: tuple[int, int] | None = None
    watermark_us: int = BEGINNING_US
    change: VersionChange | None = None
    training: PendingTraining | None = None
    trained_on: str = ""
    ended: list[VersionEnd] = field(default_factory=list, metadata=APART)
    refused_again: list[tuple[str, int, str]] = field(default_factory=list, metadata=APART)
    began_with: dict[str, Any] = field(default_factory=dict, metadata=APART)
    handover: Handover | None = field(default=None, metadata=APART)

    @property
    def active(self) -> ModelVersion:
        """The model that predicts now."""
        found = self.visible or self.current
        assert found is not None
        return found

    @property
    def tried(self) -> ModelVersion | None:
        """The model that predicts beside it, where one is tried out."""
        return None if self.challenger is None else self.challenger.version

    @property
    def learner(self) -> Learner | None:
        """The learner that has learned every complete cut, and the pieces of the open one."""
        ahead = self.open_batch.learner
        return ahead if ahead is not None or self.current is None else self.current.learner

    @property
    def diverged(self) -> str:
        """The reason why the learner gives no sound numbers any more; empty while it does."""
        if self.current is None:
            return ""
        return self.current.diverged if self.open_batch.learner is None else self.open_batch.diverged

    @property
    def version(self) -> int:
        """The current version's number."""
        return 1 if self.current is None else self.current.number

    @property
    def position(self) -> Position | None:
        """The position of the last row of the last complete cut."""
        return None if self.current is None else self.current.position

    @property
    def learned_rows(self) -> int:
        """Number of rows that the learner has learned, those of the versions it goes back to included."""
        return 0 if self.current is None else self.current.rows + self.open_batch.learned


def initial_state(task: Task, version: int = 1) -> State:
    """Return the state before the first event; the plan's own learner is never touched."""
    if isinstance(task, StreamTask):
        return State()
    if isinstance(task, OperatorTask):
        return State(operators=initial_operators(task.nodes))
    operators = None
    if task.nodes or task.retrain:
        operators = initial_operators(task.nodes, task.retrain.rows if task.retrain else None)
    vocabulary = Vocabulary({feature.column: list(feature.words) for feature in growing(task.features)})
    known = {column: len(words) for column, words in vocabulary.words.items()}
    current = ModelVersion(copy.deepcopy(task.learner), version, known=known, vocabulary=vocabulary)
    scores = {plan.spec.name: Scores(plan.spec) for plan in task.evaluate}
    return State(current, vocabulary=vocabulary, scores=scores, operators=operators)


def dump_state(state: State) -> dict[str, Any]:
    """Return the state as flat values for `headrace.learn.state`."""
    flat = dump(state)
    flat["scores"] = json.dumps(list(state.scores))
    for i, scores in enumerate(state.scores.values()):
        flat.update({f"scores.{i}.{key}": value for key, value in scores.state().items()})
    if state.operators is not None:
        flat.update({f"operators.{key}": value for key, value in dump_operators(state.operators).items()})
    flat.update({f"memory.{key}": value for key, value in state.memory.state().items()})
    flat["format"] = FORMAT
    return flat


def load_state(task: Task, flat: Mapping[str, Any]) -> State:
    """Return the state that `dump_state` was given, also as an earlier Headrace did it.

    Raises:
        LogVersionError: a later Headrace stored it.
    """
    flat = _as_now(flat, model=isinstance(task, ModelTask))
    fresh = initial_state(task)
    vocabulary = fresh.vocabulary
    state = load(State, flat, learner=lambda: _fresh_learner(task), shared=vocabulary)
    vocabulary.words, vocabulary.sizes = state.vocabulary.words, state.vocabulary.sizes
    state.vocabulary, state.scores, state.operators = vocabulary, fresh.scores, fresh.operators
    for i, name in enumerate(json.loads(flat["scores"])):
        if name in state.scores:
            state.scores[name].restore(below(f"scores.{i}.", flat))
    if state.operators is not None and "operators.meta" in flat:
        rows = task.retrain.rows if isinstance(task, ModelTask) and task.retrain else None
        state.operators = load_operators(getattr(task, "nodes", ()), rows, below("operators.", flat))
    if "memory.names" in flat:
        state.memory.restore(below("memory.", flat))
    if isinstance(task, ModelTask):
        _complete(state, task, flat)
    return state


def stored_learner(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of the model's learner at its last complete cut, of a stored state."""
    return below("current.learner.", _as_now(flat, model=True))


def stored_version(task: ModelTask, flat: Mapping[str, Any]) -> ModelVersion:
    """Return the model at its last complete cut, of a stored state, whatever hung on its task then."""
    about = json.loads(_as_now(flat, model=True)["meta"])
    current, words = about["current"], about["vocabulary"]
    learner = _fresh_learner(task)
    learner.restore(stored_learner(flat))
    position = Position.parse(current["position"]) if current["position"] else None
    vocabulary = Vocabulary(words["words"], words["sizes"])
    return ModelVersion(
        learner, current["number"], position, current["rows"], current["known"], vocabulary, current["diverged"]
    )


def named_uses(task: Task, use: str) -> list[str]:
    """Return names of what a model's streams wait for, or remember: of those it learns, predicts or is scored on."""
    streams = [plan if isinstance(plan, StreamPlan) else plan.stream for plan in getattr(task, use, ())]
    topics = [stream.topic if stream is not None else "" for stream in streams]
    return [named(use, topics, number) for number in range(len(topics))]


def followed_topics(task: Task) -> set[str]:
    """Return topics whose rows are told apart: those that are predicted, or whose labels may come later."""
    nodes = () if isinstance(task, StreamTask) else task.nodes
    if not isinstance(task, ModelTask):
        return label_topics(nodes)
    found = {plan.stream.topic for plan in task.predict}
    found |= {plan.stream.topic for plan in task.evaluate if plan.stream is not None}
    found |= {stream.topic for stream in task.learn} if task.target is not None else set()
    return found | label_topics(nodes)


def _fresh_learner(task: Task) -> Learner:
    assert isinstance(task, ModelTask)
    return copy.deepcopy(task.learner)


# -- as earlier versions of Headrace stored states ---------------------------------------------------------------------


def _as_now(flat: Mapping[str, Any], *, model: bool) -> Mapping[str, Any]:
    found = int(flat.get("format", 1))
    if found > FORMAT:
        raise LogVersionError(
            f"a stored state has format {found}, this Headrace reads up to {FORMAT}", advice="Upgrade Headrace."
        )
    return flat if found == FORMAT else _from_1(flat, model=model)


def _from_1(flat: Mapping[str, Any], *, model: bool) -> dict[str, Any]:
    """Return a state of the first format in today's: names have changed, and what belongs together stands together."""
    meta: dict[str, Any] = json.loads(flat["meta"])
    ahead, shown = "at_cut" in meta["copies"], "shown" in meta["copies"]
    prefixes = {"swap": "change.to.learner", "shadowed": "challenger.change.to.learner", "shown": "visible.learner"}
    prefixes |= {"flow": "operators", "pending": "open_batch.pieces", "at_cut": "current.learner"}
    prefixes |= {"learner": "open_batch.learner" if ahead else "current.learner"}
    found: dict[str, Any] = {"scores": json.dumps(meta.get("scores", []))}
    for key, value in flat.items():
        head, dot, rest = key.partition(".")
        found[prefixes.get(head, head) + dot + rest] = value
    kept = sum(len(flat[f"pending.{i}.X"]) for i in range(meta["pending"]))
    learned = meta["pending_rows"] - kept - meta.get("pending_refused", 0) if ahead else 0
    diverged, at_cut_diverged, shown_diverged = meta.get("diverged", ("", "", ""))
    rows = meta.get("lineage_rows", meta["counters"]["learned"]) - learned
    current = {"number": meta["version"], "position": meta["position"], "rows": rows, "known": meta.get("known", {})}
    visible = {"number": meta.get("shown_version", 1), "position": meta["shown_position"]}
    visible |= {"rows": meta.get("shown_rows", 0), "known": meta.get("shown_known", {}), "diverged": shown_diverged}
    shadow = meta.get("shadow_swap")
    new = {
        "current": {**current, "learner": True, "diverged": at_cut_diverged if ahead else diverged} if model else None,
        "visible": {**visible, "learner": True} if shown else None,
        "challenger": {"change": _change_from_1(shadow), "errors": meta["shadow_errors"]} if shadow else None,
        "open_batch": {
            "rows": meta["pending_rows"],
            "position": meta["pending_position"],
            "pieces": [
                {name: True if f"pending.{i}.{name}" in flat else None for name in ("X", "y", "weight", "origin")}
                for i in range(meta["pending"])
            ],
            "learned": learned,
            "learner": True if ahead else None,
            "diverged": diverged if ahead else "",
            "window": meta["window"],
        },
        "vocabulary": {"words": meta.get("words", {}), "sizes": meta.get("sizes", {})},
        "offsets": {
            "learned": meta.get("reach", {}),
            "consumed": meta.get("pending_reach", {}),
            "predicted": meta["emitted"],
            "written": meta.get("written", {}),
        },
        "change": _change_from_1(meta["swap"]) if meta.get("swap") else None,
        "training": {**meta["training"], "rows": True} if meta.get("training") else None,
        "trained_on": meta.get("trained_on", ""),
        **{name: meta[name] for name in ("counters", "open_key", "watermark_us")},
        # Of versions that knew rows by their keys only.
        "unlabelled": meta.get("unlabelled", ()),
    }
    return {**found, "meta": json.dumps(new)}


def _change_from_1(swap: Mapping[str, Any]) -> dict[str, Any]:
    to = {"number": swap["version"], **{name: swap[name] for name in ("position", "rows", "known")}, "learner": True}
    about = {"artifact": swap.get("artifact", ""), "by": swap.get("by", ""), "training": swap.get("training", {})}
    return {"to": to, "parent": swap["parent"], **about}


def _complete(state: State, task: ModelTask, flat: Mapping[str, Any]) -> None:
    """Add what states of earlier versions lack."""
    batch = state.open_batch
    batch.pieces = [rows if rows.origin is not None else _of_nowhere(rows, task) for rows in batch.pieces]
    if batch.rows and batch.time_us == BEGINNING_US:
        batch.time_us = state.watermark_us
    for i, topic in enumerate(json.loads(flat["meta"]).get("unlabelled", ())):
        for name, stream in zip(named_uses(task, "learn"), task.learn, strict=True):
            if stream.topic == topic:
                late = state.memory.waiting(name, partial=bool(stream.operations))
                late.hashes = set(flat[f"unlabelled.{i}"].tolist())


def _of_nowhere(rows: Samples, task: ModelTask) -> Samples:
    """Return rows that were stored before it was, where they are found."""
    origin = np.zeros((len(rows), 4 if task.learn_nodes else 2), np.int64)
    origin[:, 0] = len(task.learn)
    return replace(rows, origin=origin)
