"""A task as it goes on, event by event, without a log: what engines, replays and followers do with one.

It lies below all of them, so that `headrace.replay` and each engine use the same one. Where rows come from, where
outputs go and when the state is stored is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from headrace.learn.state import dump_pieces, state_hash
from headrace.learn.state import load_state as load_values
from headrace.plan.task import ModelTask, Task
from headrace.step.ahead import Predictors
from headrace.step.events import Event
from headrace.step.learning import Reader
from headrace.step.outputs import Output
from headrace.step.state import State, dump_state, initial_state, load_state
from headrace.step.step import step

Readers = Callable[[Task, State], Reader | None]


class Stepper:
    """One task and its state. Used by one thread.

    Args:
        task: as it is declared; one that is declared otherwise later is told of by `declare`.
        state: to go on from; None: the one before the first event.
        readers: makes what reads rows of a log for trainings; None: a training that wants some fails, and says so.
        predictors: may predict rows beside the step.

    >>> from headrace.batch import Batch
    >>> from headrace.learn.kmeans import KMeans
    >>> from headrace.plan.task import Cut, ModelTask, StreamPlan
    >>> from headrace.step.events import Part, Rows
    >>> import numpy as np
    >>> task = ModelTask("m", KMeans(k=1, initial_centers=[[0]]), ("x",), None, Cut(rows=2), (StreamPlan("t"),))
    >>> rows = Batch.of({"x": [1.0, 3.0]}, op="c", lsn=1, index=np.arange(2), ts_us=0)
    >>> stepper = Stepper(task)
    >>> _ = stepper.apply(Rows((Part("t", rows, np.array([1, 1]), 0),), complete=True))
    >>> other = Stepper(task)
    >>> _ = other.load(b"".join(stepper.dump()))
    >>> other.state.learned_rows, other.hash == stepper.hash
    (2, True)
    """

    def __init__(
        self,
        task: Task,
        state: State | None = None,
        *,
        readers: Readers | None = None,
        predictors: Predictors | None = None,
    ) -> None:
        self.task = task
        self._readers = readers
        self._predictors = predictors
        self.go_on(initial_state(task) if state is None else state)

    def go_on(self, state: State) -> None:
        """Go on from another state."""
        self.state = state
        self._reader = None if self._readers is None else self._readers(self.task, state)

    def declare(self, task: Task) -> None:
        """Take the next events by another declaration of the task; the event that says so is one of them."""
        if task is not self.task:
            self.task = task
            self.go_on(self.state)

    def apply(self, event: Event) -> list[Output]:
        """Take one event; returns (topic, rows) in the order they are to be appended."""
        return step(self.task, self.state, event, self._reader, self._predictors)

    def wrote(self, outputs: Mapping[str, Sequence[int]]) -> None:
        """Remember how far the task has written its topics ([first, next] offset), where trainings read them."""
        task = self.task
        if isinstance(task, ModelTask) and task.retrain is not None and task.retrain.rows.kind in ("all", "query"):
            self.state.offsets.written.update({topic: end for topic, (_, end) in outputs.items()})

    @property
    def hash(self) -> str | None:
        """Of the learner's state; None of a task without one."""
        return None if self.state.learner is None else state_hash(self.state.learner.state())

    def dump(self, **more: Any) -> list[bytes | memoryview]:
        """Return the whole state in pieces, with some plain values beside it."""
        return dump_pieces({**dump_state(self.state), **more})

    def load(self, data: bytes, *more: str) -> list[Any]:
        """Go on from a state that was dumped, by the declaration that it has now; return the named values beside it."""
        values: dict[str, Any] = dict(load_values(data))
        beside = [values.pop(name) for name in more]
        self.go_on(load_state(self.task, values))
        return beside
