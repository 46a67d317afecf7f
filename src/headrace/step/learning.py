"""Learning in cuts: rows are kept until their cut is complete, then the learner gets them as one.

Rows that the learner fails on are refused, wherever their cut began: `Refused` says where each of them is found.
They stay counted in their cut, so that no cut depends on them.

What changes a task's state lies here; which rows are taken, and where cuts are, is said by `headrace.step.step`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.learn.base import width_of
from headrace.learn.category import new_words
from headrace.learn.features import Features, growing, unsized
from headrace.learn.handover import Block, Handover
from headrace.plan.operators import StreamPlan
from headrace.plan.task import ModelTask
from headrace.step.events import Tick
from headrace.step.model_version import ModelVersion, VersionChange, VersionEnd, Vocabulary
from headrace.step.state import OpenBatch, Samples, State

PIECE_ROWS = 100_000
Fresh = Mapping[str, Sequence[Batch]]


@dataclass(frozen=True, slots=True)
class Examples:
    """Accepted rows to learn, and their places, in order."""

    order: Ints
    rows: Samples

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True, slots=True)
class Refused:
    """Rows of a block that the learner has failed on.

    Attributes:
        rows: what it was given; ``reasons``: why it has not learned them.
    """

    rows: Samples
    reasons: list[str]


class Reader(Protocol):
    """The log as a step reads it, which is seldom: rows to train on, and rows of an earlier event that are refused."""

    def rows(self, stream: StreamPlan, until: int, fresh: Fresh) -> list[Batch]:
        """Changes of a topic as they were when a slice had been written; a stream's operations are not done yet."""
        ...

    def query(self, sql: str, until: int, fresh: Fresh) -> pa.Table:
        """Return what a query over topics gives."""
        ...

    def at(self, topic: str, offsets: Sequence[int]) -> list[tuple[list[int], Batch]]:
        """Return rows of a topic by their offsets, ascending: batches with their rows' offsets; rows may be gone."""
        ...


# Origins are rows of whole numbers: (which of the streams that are learned, offset in its topic), with two zeros where
# others have four; or (GRADED, commit LSN, index, time) of a row that is made of predictions and labels.
GRADED = -1


def origins(stream: int, offset: Ints, width: int) -> Ints:
    """Return where rows of a stream are found, for `Samples.origin`."""
    found = np.zeros((len(offset), width), np.int64)
    found[:, 0], found[:, 1] = stream, offset
    return found


def origins_of_graded(batch: Batch) -> Ints:
    """Return the same of rows that no topic need hold."""
    where = (np.full(batch.num_rows, GRADED), batch.lsn.astype(np.int64), batch.index, batch.ts_us)
    return np.ascontiguousarray(np.column_stack(where).astype(np.int64))


def oldest_kept(task: ModelTask, state: State) -> dict[str, int]:
    """Return topic -> the lowest offset of the rows of the open batch: the log holds them while they may be refused."""
    found: dict[str, int] = {}
    for rows in state.open_batch.pieces:
        for number, stream in enumerate(task.learn):
            assert rows.origin is not None
            mine = rows.origin[rows.origin[:, 0] == number, 1]
            if len(mine):
                found[stream.topic] = min(found.get(stream.topic, int(mine.min())), int(mine.min()))
    return found


def see(features: Features, vocabulary: Vocabulary, found: Sequence[tuple[Batch, Ints]]) -> dict[str, Ints]:
    """Give what rows to learn show for the first time its columns, in the rows' order.

    Args:
        found: rows, and the place of each.

    Returns:
        Category -> places of the rows that showed its new words.
    """
    first: dict[str, dict[str, int]] = {}
    sized: dict[str, list[tuple[int, int]]] = {}
    for batch, order in found:
        for vector in unsized(features):
            if vector.column in batch.schema.names and vector.column not in vocabulary.sizes:
                size = vector.sized(batch.column(vector.column))
                if size is not None:
                    sized.setdefault(vector.column, []).append((int(order[size[0]]), size[1]))
        for word in growing(features):
            if word.column in batch.schema.names:
                seen = first.setdefault(word.column, {})
                known = vocabulary.words.setdefault(word.column, list(word.words))
                for text, row in new_words(known, batch.column(word.column)):
                    seen[text] = min(seen.get(text, int(order[row])), int(order[row]))
    vocabulary.sizes |= {column: min(places)[1] for column, places in sized.items()}
    births: dict[str, Ints] = {}
    for word in growing(features):
        table = vocabulary.words.setdefault(word.column, list(word.words))
        came = sorted(first.get(word.column, {}).items(), key=lambda item: item[1])[: word.width - len(table)]
        table += [text for text, _ in came]
        births[word.column] = np.array([place for _, place in came], np.int64)
    return births


def joined(parts: list[Examples]) -> Examples:
    """Return examples of several batches in one order."""
    if not parts:
        return Examples(np.empty(0, np.int64), Samples(np.empty((0, 0)), None))
    if len(parts) == 1:
        return parts[0]
    order = np.concatenate([part.order for part in parts])
    by = np.argsort(order, kind="stable")
    # Empty batches of a feature function have a width of their own.
    width = max(part.rows.X.shape[1] for part in parts)
    rows = Samples.joined([part.rows for part in parts if part.rows.X.shape[1] == width])
    return Examples(order[by], rows.taken(by))


def absorb(state: State, rows: Samples) -> list[Refused]:
    """Add rows to the open batch; of a long one, whole pieces are learned ahead of what predicts."""
    batch = state.open_batch
    at, refused = 0, list[Refused]()
    while len(rows) - at > (room := PIECE_ROWS - batch.kept):
        _keep(batch, rows.slice(at, at + room))
        at += room
        if batch.learner is None and (current := state.current) is not None:
            batch.learner, batch.diverged = current.learner, current.diverged
            state.current = replace(current, learner=copy.deepcopy(current.learner))
        refused += _learn_pieces(state)
    _keep(batch, rows.slice(at, len(rows)))
    return refused


def _keep(batch: OpenBatch, rows: Samples) -> None:
    if len(rows):
        batch.pieces.append(rows)
        batch.rows += len(rows)


def _learn_pieces(state: State) -> list[Refused]:
    """Give the kept rows to the learner, as one piece; return those that it fails on."""
    batch = state.open_batch
    if not batch.pieces:
        return []
    rows = Samples.joined(batch.pieces)
    batch.pieces = []
    bad = _hand_over(state, Block(rows.X, rows.y, rows.weight))
    learned = len(rows) - len(bad)
    state.counters.learned += learned
    batch.learned += learned
    return [Refused(rows.taken(np.fromiter(bad, np.int64, len(bad))), list(bad.values()))] if bad else []


def _hand_over(state: State, block: Block) -> Mapping[int, str]:
    """Let the learner learn a block; return row -> why it was not learned."""
    batch, learner, diverged = state.open_batch, state.learner, state.diverged
    assert learner is not None
    if state.handover is None or state.handover.learner is not learner:
        state.handover = Handover(learner)
    found = state.handover.learn(block)
    batch.learner = found.learner
    batch.diverged = found.diverged if found.diverged or len(found.refused) < len(block) else diverged
    return found.refused


def close_cut(
    task: ModelTask, state: State, *, seen: bool, known: Mapping[str, int], reach: Callable[[], Mapping[str, int]]
) -> list[Refused]:
    """Complete the open batch: learn what is left of it; return what was refused.

    Args:
        seen: whether its transaction is over; else the model before it goes on predicting.
        known: how many words of each category its rows have shown, and all before them.
        reach: gives topic -> offset after the last row that it has taken; asked where a version ends, which is seldom.
    """
    before, batch = state.current, state.open_batch
    assert before is not None
    if not seen and state.visible is None:
        ahead = batch.learner is not None
        state.visible = before if ahead else replace(before, learner=copy.deepcopy(before.learner))
    refused = _learn_pieces(state)
    learner = before.learner if batch.learner is None else batch.learner
    position, rows = batch.position or before.position, before.rows + batch.learned
    current = ModelVersion(learner, before.number, position, rows, known, state.vocabulary, state.diverged)
    state.current, state.open_batch = current, OpenBatch(window=batch.window)
    state.counters.cuts += 1
    every = task.versions.every
    due = every and rows // every > before.rows // every
    if due or state.change is not None:
        state.offsets.learned = dict(reach())
    if seen:
        state.visible = None
        if state.change is not None:
            apply_change(state)
            return refused
    if due:
        end_version(state)
        state.current = replace(current, number=current.number + 1)
    return refused


def end_version(state: State, change: VersionChange | None = None) -> None:
    """Remember what a version was when it ended; whoever runs the step stores it."""
    version, learner = state.current, state.learner
    assert version is not None and learner is not None
    scored = {name: {"rows": scores.rows, **scores.values()} for name, scores in state.scores.items() if scores.rows}
    ended = replace(version, rows=state.learned_rows)
    state.ended.append(VersionEnd(ended, learner.state(), dict(state.offsets.learned), scored, change))


def apply_change(state: State) -> None:
    """Let another version take the model's place, if one is waiting."""
    change, before = state.change, state.current
    if change is None or change.to is None or before is None:
        return
    state.change = None
    end_version(state, change)
    # While it waited, versions may have begun by themselves: numbers are never given twice.
    number = max(change.to.number, before.number + 1)
    state.current = replace(change.to, number=number, vocabulary=state.vocabulary)


def change_version(state: State, event: VersionChange) -> None:
    """Take another version at the next place between two cuts; at once when this is one."""
    state.change = event
    batch = state.open_batch
    if not batch.rows and batch.learner is None and state.visible is None and state.open_key is None:
        apply_change(state)


def tick(task: ModelTask, state: State, event: Tick) -> list[Refused]:
    """Let time pass: an idle duration's cut is complete, or any cut that a user closes."""
    batch = state.open_batch
    state.watermark_us = max(state.watermark_us, event.ts_us)
    duration = task.cut.duration_us
    if not (event.explicit or (duration and batch.rows and state.watermark_us // duration > batch.window)):
        return []
    if batch.rows == 0 and state.learner is not None and task.feature_names:
        width = width_of(state.learner) or len(task.feature_names)
        _hand_over(state, Block(np.empty((0, width))))
    known = {column: len(words) for column, words in state.vocabulary.words.items()}
    refused = close_cut(task, state, seen=True, known=known, reach=lambda: state.offsets.consumed)
    state.offsets.learned = dict(state.offsets.consumed)
    return refused
