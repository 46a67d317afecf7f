"""Learning in cuts: rows are kept until their cut is complete, then the learner gets them as one.

Rows that the learner fails on are refused, wherever their cut began: `Refused` says where each of them is found.
They stay counted in their cut, so that no cut depends on them.

What changes a task's state lies here; which rows are taken, and where cuts are, is said by `headrace.step.step`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.learn.base import width_of
from headrace.learn.handover import Block, Handover
from headrace.plan.task import ModelTask
from headrace.step.events import Swap, Tick
from headrace.step.state import Ended, Samples, State

PIECE_ROWS = 100_000


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


class EarlierRows(Protocol):
    """Gives rows of the log that were read before."""

    def at(self, topic: str, offsets: Sequence[int]) -> list[tuple[list[int], Batch]]:
        """Rows of a topic by their offsets, ascending: batches with their rows' offsets, without rows that are gone."""
        ...


# Origins are rows of whole numbers: (which of the streams that are learned, offset in its topic), with two zeros where
# others have four; or (GRADED, commit LSN, index, time) of a row that is made of answers and labels.
GRADED = -1


def origins(stream: int, offset: Ints, width: int) -> Ints:
    """Where rows of a stream are found, for `Samples.origin`."""
    found = np.zeros((len(offset), width), np.int64)
    found[:, 0], found[:, 1] = stream, offset
    return found


def origins_of_graded(batch: Batch) -> Ints:
    """Likewise of rows that no topic need hold."""
    where = (np.full(batch.num_rows, GRADED), batch.lsn.astype(np.int64), batch.index, batch.ts_us)
    return np.ascontiguousarray(np.column_stack(where).astype(np.int64))


def oldest_kept(task: ModelTask, state: State) -> dict[str, int]:
    """Topic -> the lowest offset of the rows that are kept: the log holds them as long as they may be refused."""
    found: dict[str, int] = {}
    for rows in state.pending:
        for number, stream in enumerate(task.learn):
            assert rows.origin is not None
            mine = rows.origin[rows.origin[:, 0] == number, 1]
            if len(mine):
                found[stream.topic] = min(found.get(stream.topic, int(mine.min())), int(mine.min()))
    return found


def joined(parts: list[Examples]) -> Examples:
    """Examples of several batches in one order."""
    if not parts:
        return Examples(np.empty(0, np.int64), Samples(np.empty((0, 0)), None))
    if len(parts) == 1:
        return parts[0]
    order = np.concatenate([one.order for one in parts])
    by = np.argsort(order, kind="stable")
    # Empty batches of a feature function have a width of their own.
    width = max(one.rows.X.shape[1] for one in parts)
    rows = Samples.joined([one.rows for one in parts if one.rows.X.shape[1] == width])
    return Examples(order[by], rows.taken(by))


def absorb(state: State, rows: Samples) -> list[Refused]:
    """Add rows to the incomplete cut; of a long one, whole pieces are learned ahead of what answers."""
    at, refused = 0, list[Refused]()
    while len(rows) - at > (room := PIECE_ROWS - sum(map(len, state.pending))):
        _keep(state, rows.slice(at, at + room))
        at += room
        if state.at_cut is None:
            state.at_cut = copy.deepcopy(state.learner)
            state.at_cut_diverged = state.diverged
        refused += _learn_pending(state)
    _keep(state, rows.slice(at, len(rows)))
    return refused


def _keep(state: State, rows: Samples) -> None:
    if len(rows):
        state.pending.append(rows)
        state.pending_rows += len(rows)


def _learn_pending(state: State) -> list[Refused]:
    """Give the kept rows to the learner, as one piece; those that it fails on."""
    assert state.learner is not None
    if not state.pending:
        return []
    rows = Samples.joined(state.pending)
    state.pending = []
    bad = _hand_over(state, Block(rows.X, rows.y, rows.weight))
    learned = len(rows) - len(bad)
    state.counters.learned += learned
    state.lineage_rows += learned
    state.pending_refused += len(bad)
    return [Refused(rows.taken(np.fromiter(bad, np.int64, len(bad))), list(bad.values()))] if bad else []


def _hand_over(state: State, block: Block) -> Mapping[int, str]:
    """Let the learner learn a block; row -> why it was not learned."""
    assert state.learner is not None
    if state.handover is None or state.handover.learner is not state.learner:
        state.handover = Handover(state.learner)
    found = state.handover.learn(block)
    state.learner = found.learner
    if found.diverged or len(found.refused) < len(block):
        state.diverged = found.diverged
    return found.refused


def close_cut(
    task: ModelTask, state: State, *, seen: bool, known: Mapping[str, int], reach: Callable[[], Mapping[str, int]]
) -> list[Refused]:
    """The incomplete cut is complete: learn what is left of it; returns what was refused.

    Args:
        seen: whether its transaction is over; else the model before it goes on answering.
        known: how many words of each category its rows have shown, and all before them.
        reach: gives topic -> offset after the last row that it has taken; asked where a version ends, which is seldom.
    """
    if not seen and state.shown is None:
        state.shown = state.at_cut or copy.deepcopy(state.learner)
        state.shown_position, state.shown_version, state.shown_rows = state.position, state.version, state.cut_rows
        state.shown_known = dict(state.known)
        state.shown_diverged = state.diverged if state.at_cut is None else state.at_cut_diverged
    every = task.versions.every
    rows_before = state.cut_rows if every else 0
    refused = _learn_pending(state)
    state.at_cut = None
    state.position = state.pending_position or state.position
    state.known = dict(known)
    state.pending_rows, state.pending_refused, state.pending_position = 0, 0, None
    state.counters.cuts += 1
    due = every and state.lineage_rows // every > rows_before // every
    if due or state.swap is not None:
        state.reach = dict(reach())
    if seen:
        state.shown = state.shown_position = None
        if state.swap is not None:
            apply_swap(task, state)
            return refused
    if due:
        end_version(state)
        state.version += 1
    return refused


def end_version(state: State, by: Swap | None = None) -> None:
    """Remember what a version was when it ended; whoever runs the step stores it."""
    assert state.learner is not None
    state.ended.append(
        Ended(
            state.version,
            state.learner.state(),
            state.position,
            state.lineage_rows,
            dict(state.reach),
            {name: {"rows": one.rows, **one.values()} for name, one in state.scores.items() if one.rows},
            dict(state.known),
            by,
        )
    )


def apply_swap(task: ModelTask, state: State) -> None:
    """Another version takes the model's place, if one is waiting."""
    if state.swap is None:
        return
    swap, state.swap = state.swap, None
    end_version(state, swap)
    learner = copy.deepcopy(task.learner)
    learner.restore(dict(swap.state))
    state.learner, state.diverged = learner, ""
    # While it waited, versions may have begun by themselves: numbers are never given twice.
    state.version = max(swap.version, state.version + 1)
    state.position, state.lineage_rows = swap.position, swap.rows
    state.known = dict(swap.known)


def swap(task: ModelTask, state: State, event: Swap) -> None:
    """Take another version at the next place between two cuts; at once when this is one."""
    state.swap = event
    if not state.pending_rows and state.shown is None and state.at_cut is None and state.open_key is None:
        apply_swap(task, state)


def tick(task: ModelTask, state: State, event: Tick) -> list[Refused]:
    """Time passed: an idle duration's cut is complete, or any cut that a user closes."""
    state.watermark_us = max(state.watermark_us, event.ts_us)
    duration = task.cut.duration_us
    if not (event.explicit or (duration and state.pending_rows and state.watermark_us // duration > state.window)):
        return []
    if state.pending_rows == 0 and state.learner is not None and task.feature_names:
        width = width_of(state.learner) or len(task.feature_names)
        _hand_over(state, Block(np.empty((0, width))))
    known = {column: len(words) for column, words in state.words.items()}
    refused = close_cut(task, state, seen=True, known=known, reach=lambda: state.pending_reach)
    state.reach = dict(state.pending_reach)
    return refused
