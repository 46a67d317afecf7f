"""A model as it was at a place of the log: the nearest checkpoint before it, then the recorded steps.

The last step's event is cut at the right row. How rows are grouped into events changes nothing (`step`), so
the state is that of the model which predicted there, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from headrace.errors import DeclarationError, LearnError, LogError
from headrace.learn.base import traits_of
from headrace.learn.state import state_hash
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask, Task
from headrace.position import Position, parse_lsn
from headrace.registry.models import Progress, beginning, read_progress
from headrace.replay.position_index import find_row, last_row
from headrace.replay.recovery import first_state, recorded_event, restore_from, stepper_of
from headrace.replay.steps import StepRecord, read_steps
from headrace.replay.task_history import TaskHistory, refuse_unknown
from headrace.step.events import Event, Merged, Part, Redeclared, Rows, Tick, Train, merge, order_of
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.state import State


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log; exactly one attribute is set.

    Attributes:
        position: of a row that a model learned last, as predictions name it, or of any row.
        lsn: everything committed up to it.
        ts_us: everything committed up to then, and ticks.
        end: what the log holds now.
        step: everything that steps up to this one consumed.
    """

    position: Position | None = None
    lsn: int | None = None
    ts_us: int | None = None
    end: bool = False
    step: int | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Return a place as people write it.

        Raises:
            DeclarationError: it is none of the three.

        >>> Place.parse("0/A:1").position, Place.parse("0/A").lsn, Place.parse("1970-01-01T00:00:01Z").ts_us
        (Position(lsn=10, index=1), 10, 1000000)
        """
        try:
            if "/" in text and ":" in text:
                return cls(position=Position.parse(text))
            if "/" in text:
                return cls(lsn=parse_lsn(text))
            when = datetime.fromisoformat(text)
        except ValueError as error:
            raise DeclarationError(
                f"--at {text!r} is no place in a log",
                advice="Give a position (0/1932A28:3), an LSN (0/1932A28) or a time (2026-01-31T12:00:00Z; without a "
                "zone it is UTC).",
            ) from error
        since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
        return cls(ts_us=(since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


@dataclass(slots=True)
class Rebuilt:
    """A model as it was rebuilt.

    Attributes:
        version: the model that predicts there.
        learned_offsets: topic -> offset after the last row that it had learned.
        from_checkpoint: the step it began with; ``steps``: how many were repeated, the last perhaps in part.
        verified: whether its hash is the recorded one; None where the place is not the end of a step.
    """

    model: str
    version: ModelVersion
    learned_offsets: dict[str, int]
    from_checkpoint: int
    steps: int
    verified: bool | None

    @property
    def state(self) -> dict[str, Any]:
        """Of its learner."""
        return dict(self.version.learner.state())

    @property
    def known(self) -> dict[str, int]:
        """Words of each category that it knew."""
        return {column: len(words) for column, words in self.version.words.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "model": self.model,
            "version": self.version.number,
            "position": str(self.version.position) if self.version.position else None,
            "rows": self.version.rows,
            "hash": state_hash(self.state),
            "learned": self.learned_offsets,
            "from_checkpoint": self.from_checkpoint,
            "steps": self.steps,
            "verified": self.verified,
        }


def rebuild(
    plan: Plan, task: ModelTask, log: Log, place: Place, *, on_step: Callable[[int, int], None] | None = None
) -> Rebuilt:
    """Make the model again as it was at a place of its log; nothing is written.

    Args:
        on_step: called with the step repeated and the last one there is.

    Raises:
        LogError: the place is not in the log, or rows before it are not any more.
        LearnError: the learner gives other bits when it learns again.
    """
    progress = read_progress(log, task.name)
    if progress is None:
        raise LogError(f"the model «{task.name}» has not run on this log yet")
    history = TaskHistory(log, task)
    state, start = _nearest(history, log, place, progress)
    walk = _Walk(log, history.at(start.step).task, state, place)
    walk.look()
    if walk.arrived:
        walk.check(start.hash)
    done = 0
    for record, event in _events(plan, history, log, start, _last_step(place, progress)):
        if walk.arrived:
            break
        declared = history.at(record.step)
        refuse_unknown(declared, record.step)
        if not traits_of(task.learner).deterministic:
            raise LearnError(
                f"the learner of «{task.name}» gives other bits when it learns again",
                advice="Only versions that ended, and stored states, can be gone back to.",
            )
        done += walk.take(declared.task, record, event)
        if on_step is not None:
            on_step(record.step, progress.step)
    walk.end()
    return Rebuilt(task.name, walk.state.active, walk.learned, start.step, done, walk.verified)


def _last_step(place: Place, progress: Progress) -> int:
    return progress.step if place.step is None else min(place.step, progress.step)


def _events(
    plan: Plan, history: TaskHistory, log: Log, start: Progress, until_step: int
) -> Iterator[tuple[StepRecord, Event]]:
    for record in read_steps(log, plan.steps_topic, history.task.name, start.steps_offset):
        if start.step < record.step <= until_step:
            yield record, recorded_event(log, history, record)


def _nearest(history: TaskHistory, log: Log, place: Place, progress: Progress) -> tuple[State, Progress]:
    """Return the newest stored state that has consumed nothing beyond the place."""
    task = history.task
    assert isinstance(task, ModelTask)
    rows = _rows_at(task.name, history.topics(), log, place)
    for value in reversed(log.records("checkpoint", f"{task.name}/").values()):
        state, at = restore_from(history, value)
        if at.step <= progress.step and _before(log, state, at, place, rows):
            return state, at
    start, _ = beginning(progress)
    if place.step is not None and place.step < start.step:
        raise LogError(
            f"step {place.step} of «{task.name}» lies before its last reset, which learns nothing from there"
        )
    if any(start.offsets.get(topic, 0) > offset for topic, offset in rows):
        raise LogError(
            f"{place.position} lies before the last reset of «{task.name}», which learns nothing from there",
            advice="Versions that ended with a reset keep their last state: headrace models show.",
        )
    if task.stores_beginning:
        raise LogError(f"the state that «{task.name}» began with is not in the log")
    return first_state(history, progress)


def _rows_at(name: str, topics: Sequence[str], log: Log, place: Place) -> list[tuple[str, int]]:
    """Return topics and offsets of the rows at a position.

    Raises:
        LogError: there is none.
    """
    if place.position is None:
        return []
    found = [(topic, at) for topic in topics if (at := find_row(log, topic, place.position)) is not None]
    if not found:
        raise LogError(
            f"no row at {place.position} is in the topics that «{name}» reads: {', '.join(topics)}",
            advice="Take the model_position of a prediction, or an LSN or a time.",
        )
    return found


def _before(log: Log, state: State, at: Progress, place: Place, rows: Sequence[tuple[str, int]]) -> bool:
    """Return whether a stored state has consumed nothing beyond a place."""
    if place.end:
        return True
    if place.step is not None:
        return at.step <= place.step
    if place.position is not None:
        # Where it answers with exactly this state, it is there, whatever rows it has consumed.
        there = state.active.position == place.position
        return there or all(at.offsets.get(topic, 0) <= offset for topic, offset in rows)
    if place.ts_us is not None:
        return state.watermark_us <= place.ts_us
    assert place.lsn is not None
    last = [last_row(log, topic, end) for topic, end in at.offsets.items() if end]
    return all(position is not None and position.lsn <= place.lsn for position in last)


class _Walk:
    """Repeats events until a place is reached."""

    def __init__(self, log: Log, task: Task, state: State, place: Place) -> None:
        self._stepper = stepper_of(log, task, state)
        self._place = place
        self._waiting: list[tuple[Task, Event]] = []
        self._there: tuple[State, dict[str, int]] | None = None
        self._cuts = 0
        self.learned = dict(state.offsets.learned)
        self.arrived = False
        self.verified: bool | None = None

    @property
    def state(self) -> State:
        """The state that it has come to."""
        return self._stepper.state

    def take(self, task: Task, record: StepRecord, event: Event) -> int:
        """Repeat an event by the declaration of its time, as far as the place; returns whether any of it was."""
        if not self._waiting:
            self._stepper.declare(task)
        if not isinstance(event, Rows):
            return self._take_moment(task, record, event)
        merged = merge(event, self.state.open_key)
        if self._there is not None:
            self._feel(event, merged, 0)
            return 1
        end = self._end_in(merged)
        if end == 0:
            self.arrived = True
            return 0
        for declared, waiting in self._waiting:
            self._stepper.declare(declared)
            self._step(waiting)
        self._waiting = []
        self._stepper.declare(task)
        if end is None or end == merged.rows:
            self._step(event)
            self._stepper.wrote(record.outputs)
            self.check(record.hash)
        else:
            self._step(_between(event, merged, 0, end))
            self.verified = None
        if end is not None:
            self._reached(event, merged, end)
        return 1

    def _take_moment(self, task: Task, record: StepRecord, event: Tick | VersionChange | Train | Redeclared) -> int:
        at = int((record.event or {})["swap"]["ts_us"]) if isinstance(event, VersionChange) else event.ts_us
        if self._place.ts_us is not None and at > self._place.ts_us:
            self.arrived = True
            return 0
        if self._place.lsn is not None:
            # Whether it belongs to what is before the LSN is known when another row before it comes.
            self._waiting.append((task, event))
            return 1
        self._step(event)
        self.check(record.hash)
        self._notice()
        return 1

    def check(self, recorded: str | None) -> None:
        """Compare with the hash that was recorded, where one was, of the model that predicts."""
        state, current = self.state, self.state.current
        ahead = state.open_batch.learner is not None or state.visible is not None
        if recorded is not None and current is not None and not ahead:
            self.verified = state_hash(current.learner.state()) == recorded
        else:
            self.verified = None

    def _end_in(self, merged: Merged) -> int | None:
        """Return how many of an event's rows lie before the place; None: all, and it may lie further on."""
        place = self._place
        if place.position is not None:
            at = np.flatnonzero((merged.lsn == place.position.lsn) & (merged.index == place.position.index))
            return int(at[0]) + 1 if len(at) else None
        beyond = np.zeros(0, np.int64)
        if place.ts_us is not None:
            beyond = np.flatnonzero(merged.ts_us > place.ts_us)
        elif place.lsn is not None:
            beyond = np.flatnonzero(merged.lsn > np.uint64(place.lsn))
        return int(beyond[0]) if len(beyond) else None

    def _reached(self, event: Rows, merged: Merged, end: int) -> None:
        """Arrive, as the place's row was taken, unless its cut is complete only when later rows have come."""
        wanted = self._place.position
        self.arrived = True
        if wanted is not None and self.state.position != wanted and self.state.open_batch.position == wanted:
            self.arrived = False
            self._there = (copy.deepcopy(self.state), dict(self.learned))
            self._cuts = self.state.counters.cuts + 1
            self._feel(event, merged, end)
        self.look()

    def _feel(self, event: Rows, merged: Merged, start: int) -> None:
        """Go on by transactions, and by their first rows, until a cut has become complete."""
        transactions = merged.transactions
        while start < merged.rows and not self.arrived:
            following = merged.after(int(transactions[start]))
            begins = start == 0 or transactions[start] != transactions[start - 1]
            end = start + 1 if begins and following > start + 1 else following
            self._step(_between(event, merged, start, end))
            self._notice()
            start = end

    def _notice(self) -> None:
        """Arrive where the place is reached, or passed: its row's cut is complete, and ends with another row."""
        self.look()
        if self._there is not None and self.state.counters.cuts >= self._cuts:
            self.arrived = True

    def look(self) -> None:
        """Arrive where the model that has learned up to the place is there, were it not to be seen yet."""
        wanted, state = self._place.position, self.state
        if wanted is None or wanted not in (state.active.position, state.position):
            return
        self._there, self.arrived = None, True
        if state.active.position != wanted:
            state.visible = None
            self.learned = dict(state.offsets.learned)

    def end(self) -> None:
        """Take what was there when the place's row had been taken, where no cut ends at it."""
        if self._there is not None:
            state, self.learned = self._there
            self._stepper.go_on(state)
            self.verified = None

    def _step(self, event: Event) -> None:
        self._stepper.apply(event)
        if self.state.visible is None:
            self.learned = dict(self.state.offsets.learned)


def _between(event: Rows, merged: Merged, start: int, end: int) -> Rows:
    """Return rows of an event from one place to another."""
    parts = []
    for part, placed in zip(event.parts, merged.parts, strict=True):
        a, b = np.searchsorted(order_of(placed.batch), [start, end]).tolist()
        if b > a:
            parts.append(Part(part.topic, part.batch.slice(a, b - a), part.slices[a:b], part.offset + a))
    last = end == merged.rows
    complete = event.complete if last else bool(merged.transactions[end] != merged.transactions[end - 1])
    return Rows(tuple(parts), complete)
