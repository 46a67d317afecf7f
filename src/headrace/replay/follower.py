"""A task that another process runs, as its log has it: the newest checkpoint, and the steps that are recorded after it.

It is repeated as recovery does, and goes on as steps are recorded: its state is that of the process that writes, to the
bit. Nothing is written.
"""

from __future__ import annotations

import time
from dataclasses import replace

from headrace.errors import HeadraceError
from headrace.learn.base import traits_of
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.registry.models import Progress, checkpoint_steps, read_progress
from headrace.replay.recovery import replay, restore
from headrace.replay.task_history import TaskHistory
from headrace.step.state import State

# Steps that are repeated between two looks at the time; each further run has twice as many.
FEWEST, MOST = 64, 2048


class Follower:
    """A model that is followed. Used by one thread at a time.

    Args:
        seconds: after which it stops repeating steps, and goes on when it is called again; None: when it is there.

    Attributes:
        state: as after the steps that were repeated so far.
        progress: where the task is in the log.
        beginnings: how often it had to begin with a checkpoint.
    """

    def __init__(self, plan: Plan, task: ModelTask, log: Log, *, seconds: float | None = None) -> None:
        self._plan, self._log = plan, log
        self._history = TaskHistory(log, task)
        self._seconds = seconds
        self._at = Progress()
        self.task = task
        self.state: State
        self.progress = Progress()
        self.beginnings = 0
        self._begin()

    @property
    def there(self) -> bool:
        """Return whether all steps were repeated that the log had when it was looked at."""
        return self._at.step >= self.progress.step

    def advance(self) -> bool:
        """Repeat what was recorded since; return whether there was anything."""
        new, old = read_progress(self._log, self.task.name), self.progress
        if new is None or (new.step == old.step and new.origin == old.origin and self.there):
            if not self.state.active.learner.ready and checkpoint_steps(self._log, self.task.name):
                # What it begins with was stored after this process had looked.
                self._begin()
            return False
        if new.origin != old.origin or new.step < old.step or not traits_of(self.task.learner).deterministic:
            # A reset, or a learner whose state is only in checkpoints.
            self._begin()
            return True
        try:
            self._repeat(new)
        except HeadraceError:
            # Rows that were pruned behind a slow follower: the newest checkpoint does not need them.
            self._begin()
        return True

    def _begin(self) -> None:
        """Come to where the log says the model is."""
        self._history.read()
        progress = read_progress(self._log, self.task.name) or Progress()
        self.state, self._at = restore(self._log, self._history, progress)
        self.beginnings += 1
        self._repeat(progress)

    def _repeat(self, until: Progress) -> None:
        ends = None if self._seconds is None else time.monotonic() + self._seconds
        self.progress, count = until, FEWEST
        while self._at.step < until.step and (ends is None or time.monotonic() < ends):
            last = until.step if ends is None else min(until.step, self._at.step + count)
            for _ in replay(self._log, self._plan, self._history, self.state, self._at, last):
                pass
            # Where the steps after it begin is known of the last one only.
            self._at = until if last == until.step else replace(self._at, step=last)
            count = min(2 * count, MOST)
