"""Rows handed to a learner, whatever it does with them: a row that it fails on is refused, the others are learned.

A library may raise anything, halfway through a batch, or predict NaN. So:

* **Learning.** When a block of rows fails, the learner is what it was before that block, and the rows that fail by
  themselves are looked for by halves, each half on a copy. The others are learned as one block: what comes of it
  depends only on which rows are bad. Where the rest fails together though no part of it fails alone (a model that
  diverges), halves are learned in turn, and the single rows that fail then are refused; the others are learned as one
  block again if that is possible now, else as they were in turn.
* **Overflow counts as failure.** After each block the learner is asked for the largest number that it holds
  (`largest`, where it can say); beyond `LIMIT` the block has failed. A row of ordinary numbers that makes a model
  overflow says that the model has *diverged*, which holds until it learns a row again.
* **Predicting.** Rows for which nothing can be predicted, and predictions that are no finite number, are told apart row
  by row.

The learner before a block is not copied for each block, which would cost a tenth of a small update, or as much as the
update: a copy is kept with the blocks since, and renewed so that copying takes about a twentieth of the time. Learning
is repeatable, or else the learner says so (``deterministic``) and is copied each time.

`docs/decisions/0023-rows-that-a-learner-fails-on.md` has the reasons.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from headrace.arrays import Array
from headrace.errors import BadRows, HeadraceError, LearnError
from headrace.learn.base import Learner, largest, traits_of

LIMIT = 1e150
"""A model that holds a larger number cannot go on: its square is none."""
ORDINARY = 1e30
"""A row whose numbers are not larger is not at fault when a model overflows."""
_SHARE = 20
_KEPT_BYTES = 1 << 25
_TEXT = 300


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that are learned as one: features of shape (n, d); targets and weights of shape (n,), where there are."""

    X: Array
    y: Array | None = None
    weight: Array | None = None

    def __len__(self) -> int:
        return len(self.X)

    def taken(self, rows: Array) -> Block:
        """Return some of its rows, C-contiguous."""
        y, weight = self.y, self.weight
        return Block(self.X[rows], None if y is None else y[rows], None if weight is None else weight[rows])

    @property
    def nbytes(self) -> int:
        return int(sum(array.nbytes for array in (self.X, self.y, self.weight) if array is not None))

    def ordinary(self, row: int) -> bool:
        """Return whether a row holds no number so large that it alone explains an overflow."""
        numbers = [self.X[row]]
        numbers += [array[row] for array in (self.y, self.weight) if array is not None and array.dtype.kind in "fiu"]
        return all(bool((np.abs(np.nan_to_num(np.asarray(array, np.float64))) <= ORDINARY).all()) for array in numbers)


@dataclass(slots=True)
class Learned:
    """The outcome of a block.

    Attributes:
        learner: what has learned it; another object than before where some of it failed.
        refused: row of the block -> why it was not learned.
        diverged: why the model is to be called diverged; empty where it is not.
    """

    learner: Learner
    refused: dict[int, str] = field(default_factory=dict)
    diverged: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason a block was not learned; ``rows``: those that the learner names; ``overflow``: its numbers end."""

    reason: str
    rows: tuple[int, ...] = ()
    overflow: bool = False


class Handover:
    """Hands blocks to one learner and can always tell what it was before the newest one.

    Args:
        learner: learns from here on through `learn` only.

    >>> class Shy:
    ...     deterministic, ready, seen = True, True, 0
    ...     def learn(self, X, y=None):
    ...         self.seen += len(X)
    ...         if (X < 0).any():
    ...             raise ValueError("negative")
    >>> found = Handover(Shy()).learn(Block(np.array([[1.0], [-1.0], [2.0]])))
    >>> found.learner.seen, found.refused
    (2, {1: 'ValueError: negative'})
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        # One whose numbers are at an end already, and that predicts all the same, is not judged by them.
        self._beyond = not holds(learner)
        self._renew()

    def learn(self, block: Block) -> Learned:
        """Learn a block, except for the rows that fail."""
        if self._stale:
            self._renew()
        begun = time.perf_counter()
        failure = self._given(self.learner, block)
        if failure is not None:
            return self._settled(block, failure)
        self._beyond = self._beyond and not holds(self.learner)
        self._since.append(block)
        self._bytes += block.nbytes
        self._spent += time.perf_counter() - begun
        return Learned(self.learner)

    @property
    def _stale(self) -> bool:
        """Return whether copying the learner now is cheap beside what was learned since the last copy, or must be."""
        repeats = traits_of(self.learner).deterministic
        return bool(self._since) and (
            not repeats or self._spent > _SHARE * self._cost or self._bytes > _KEPT_BYTES or len(self._since) > 4096
        )

    def _renew(self) -> None:
        begun = time.perf_counter()
        self._base = copy.deepcopy(self.learner)
        self._cost = time.perf_counter() - begun
        self._since: list[Block] = []
        self._spent, self._bytes = 0.0, 0

    def _before(self) -> Learner:
        """Return the learner as it was before the newest block."""
        learner = copy.deepcopy(self._base)
        for block in self._since:
            _give(learner, block)
        return learner

    def _settled(self, block: Block, failure: Failure) -> Learned:
        """Learn what can be learned of a block that has failed."""
        before = self._before()
        refused = self._bad_alone(before, block, failure)
        rows = _without(np.arange(len(block)), refused)
        if not len(rows):
            self.learner = before
            if self._since:
                self._renew()
            return self._told(block, refused, rows)
        learner = copy.deepcopy(before)
        if self._given(learner, block.taken(rows)) is not None:
            learner, more = self._in_turn(before, block, rows)
            refused |= more
            rows = _without(rows, more)
            again = copy.deepcopy(before)
            if more and len(rows) and self._given(again, block.taken(rows)) is None:
                learner = again
        self.learner = learner
        self._renew()
        return self._told(block, refused, rows)

    def _bad_alone(self, before: Learner, block: Block, failure: Failure) -> dict[int, Failure]:
        """Return rows that fail by themselves, or that the learner names."""
        bad: dict[int, Failure] = {}
        waiting = [(np.arange(len(block)), failure)]
        while waiting:
            rows, failed = waiting.pop()
            named = [int(rows[row]) for row in failed.rows if row < len(rows)]
            if named or len(rows) == 1:
                bad |= dict.fromkeys(named or [int(rows[0])], failed)
                parts = [np.setdiff1d(rows, named)] if named else []
            else:
                parts = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
            for part in parts:
                again = self._given(copy.deepcopy(before), block.taken(part)) if len(part) else None
                if again is not None:
                    waiting.append((part, again))
        return bad

    def _in_turn(self, before: Learner, block: Block, rows: Array) -> tuple[Learner, dict[int, Failure]]:
        """Halves learned one after the other; single rows that fail on what has been learned so far are left out."""
        learner, bad = before, dict[int, Failure]()
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            tried = copy.deepcopy(learner)
            failed = self._given(tried, block.taken(part))
            if failed is None:
                learner = tried
            elif len(part) == 1:
                bad[int(part[0])] = failed
            else:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
        return learner, bad

    def _given(self, learner: Learner, block: Block) -> Failure | None:
        """Let a learner learn a block; why it has not, where it has not. It may hold anything then."""
        try:
            _give(learner, block)
        except Exception as error:
            if concerns_the_whole(error):
                raise
            rows = error.rows if isinstance(error, BadRows) else ()
            overflow = isinstance(error, OverflowError | FloatingPointError) or "overflow" in str(error).lower()
            return Failure(reason_of(error), rows, overflow or not self._holds(learner))
        if not self._holds(learner):
            return Failure(
                "the model cannot learn it: its own numbers become infinite or none (scale the features, or lower the "
                "learning rate)",
                overflow=True,
            )
        return None

    def _holds(self, learner: Learner) -> bool:
        return self._beyond or holds(learner)

    def _told(self, block: Block, refused: Mapping[int, Failure], rows: Array) -> Learned:
        overflowed = [row for row, failure in refused.items() if failure.overflow and block.ordinary(row)]
        last = max(overflowed, default=-1)
        diverged = refused[last].reason if overflowed and (not len(rows) or last > int(rows[-1])) else ""
        return Learned(self.learner, {row: refused[row].reason for row in sorted(refused)}, diverged)


def _without(rows: Array, some: Collection[int]) -> Array:
    return np.asarray(np.setdiff1d(rows, np.fromiter(some, np.int64, len(some))))


def _give(learner: Learner, block: Block) -> None:
    if block.weight is None:
        learner.learn(block.X, block.y)
    else:
        learner.learn(block.X, block.y, sample_weight=block.weight)  # type: ignore[call-arg]  # it was checked


def holds(learner: Learner) -> bool:
    """Return whether a learner's numbers are no larger than `LIMIT`, as far as it can say."""
    return largest(learner) <= LIMIT


def concerns_the_whole(error: Exception) -> bool:
    """Return whether an error is about more than the rows: memory that is out, a package that is missing."""
    return isinstance(error, MemoryError) or (isinstance(error, HeadraceError) and not isinstance(error, LearnError))


def reason_of(error: Exception) -> str:
    """Return an error as the reason of a dead letter: one line."""
    text = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}…"


def predictions_by_row(ask: Callable[[Array], Array], X: Array, rows: int) -> tuple[list[Array | None], dict[int, str]]:
    """Return predictions where all rows at once have failed: for each row alone, or in blocks that do not fail.

    Args:
        ask: gives one prediction a row, whatever the others are.
        rows: of a block to begin with.

    Returns:
        Runs of predictions, each followed by as many None as there are refused rows; and row -> why.
    """
    runs: list[Array | None] = []
    reasons: dict[int, str] = {}
    waiting = [(start, min(start + rows, len(X))) for start in range(0, len(X), rows)][::-1]
    while waiting:
        start, end = waiting.pop()
        try:
            runs.append(ask(X[start:end]))
        except Exception as error:
            if concerns_the_whole(error):
                raise
            if end - start == 1:
                runs.append(None)
                reasons[start] = reason_of(error)
            else:
                middle = (start + end) // 2
                waiting += [(middle, end), (start, middle)]
    return runs, reasons
