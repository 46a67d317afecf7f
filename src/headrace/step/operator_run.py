"""One event's rows on their way through a task's operators: predictions meet labels, windows close, alarms are raised.

Which prediction meets which label depends on keys and times alone, so it is known before anything is predicted. Then
rows are taken in the order of their places, as far as they are predicted. Where an alarm begins a training, what was
done after its row is taken back, and done again with the new model's predictions.

Time passes without rows, too: what is pending for too long is given up, and the last window closes. A tick says how
long each topic has been silent while everything that had come was dealt with. The time of what is derived goes on by
that from the newest row's own, so that event times of any year are moved by the right amount.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.batch import Batch
from headrace.faults import fault
from headrace.plan.operators import Node, label_topics, topics_behind
from headrace.plan.task import ModelTask, OperatorTask, StreamPlan
from headrace.step.events import Event, Merged, Rows, Tick, merge, order_of
from headrace.step.learning import Reader
from headrace.step.operator_state import OperatorState
from headrace.step.operators import ChallengerErrors, OperatorEvent, Raised, Refuse, Streams
from headrace.step.outputs import Output, batches_of, emitted, refused
from headrace.step.predictions import PredictionBatch
from headrace.step.retraining import retrain
from headrace.step.state import State


class OperatorRun:
    """One event's rows on their way.

    Args:
        task: whose operators they go through; ``state``: what these know, changed in place.
        merged: the event's rows in order.
        streams: gives a stream's batches of this event.
        refuse: takes rows that cannot be handled, with their reasons.
        queries: of each `Predicted` number, its rows and, as far as they are given, their predictions.
        challenger: of a model that predicts beside the current one: how it has done so far.
        idle_us: of a tick: topic -> how long it has been silent.
    """

    def __init__(
        self,
        task: ModelTask | OperatorTask,
        state: OperatorState,
        merged: Merged,
        *,
        streams: Streams,
        refuse: Refuse,
        queries: Mapping[int, Sequence[PredictionBatch]] | None = None,
        challenger: ChallengerErrors | None = None,
        idle_us: Mapping[str, int] | None = None,
    ) -> None:
        self.task, self.state, self.merged = task, state, merged
        self._refuse_now = refuse
        # Rows that a run refuses are refused once it stands: it may be taken back.
        self._refused: list[tuple[str, Batch, Sequence[str], str]] = []
        self.event = OperatorEvent(merged, state.operators, streams, self._refuse, state.counts, challenger=challenger)
        self.event.rows = [[] for _ in task.nodes]
        self.event.predictions = queries or {}
        if isinstance(task, ModelTask):
            self.event.predicted, self.event.features = task.predict, task.feature_names
            self.event.shadows = task.retrain is not None and task.retrain.shadow
        self._retrain = task.retrain if isinstance(task, ModelTask) else None
        self.out: list[list[Batch]] = [[] for _ in task.nodes]
        for operator in state.operators:
            operator.begin(self.event)
        for operator in state.operators if idle_us else ():
            operator.advance(idle_us or {})
        if merged.rows:
            state.at = (int(merged.lsn[-1]), int(merged.index[-1]))
        self._tell_refused()

    def _refuse(self, topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        self._refused.append((topic, batch, reasons, stage))

    def _tell_refused(self) -> None:
        refused, self._refused = self._refused, []
        for about in refused:
            self._refuse_now(*about)

    # -- in the order of places -------------------------------------------------------------------------------------

    def advance(self, place: int) -> Raised | None:
        """Take the rows before a place, which are predicted; stop at the first one that may change who predicts.

        Returns:
            The place of that row, and what raised it, or None where it is to be decided between two models; nothing
            after it was taken. None where all were.
        """
        self._tell_refused()
        if place <= self.event.done:
            return None
        trains = self._retrain is not None and self._retrain.on is not None
        if not trains and self.event.challenger is None:
            self._run(place)
            raised = None
        else:
            raised = self._run_to_the_first(place)
        self._tell_refused()
        return raised

    def _run_to_the_first(self, place: int) -> Raised | None:
        """Run up to a place; where a row before it may change who predicts, only up to that row."""
        event, state = self.event, self.state
        begun, marks = event.done, [operator.mark() for operator in state.operators]
        errors = None if event.challenger is None else list(event.challenger.errors)
        retained = None if state.training_rows is None else state.training_rows.copy()
        lengths = [len(batches) for batches in self.out]
        self._run(place)
        raised = self._raised()
        if raised is None or raised[0] + 1 >= place:
            return raised
        for operator, mark in zip(state.operators, marks, strict=True):
            operator.rewind(mark)
        state.training_rows, event.done = retained, begun
        if event.challenger is not None:
            event.challenger.errors = errors or []
        for batches, length in zip(self.out, lengths, strict=True):
            del batches[length:]
        self._refused.clear()
        self._run(raised[0] + 1)
        return raised

    def _raised(self) -> Raised | None:
        """Return the first row that begins a training, or at which it is decided between two models."""
        challenger = self.event.challenger
        alarm, decided = self._alarmed(), None if challenger is None else challenger.decided
        if decided is not None and (alarm is None or decided <= alarm[0]):
            return decided, None
        return alarm

    def _alarmed(self) -> tuple[int, Batch] | None:
        if self._retrain is None or self._retrain.on is None:
            return None
        number = self._retrain.on
        rows = self.event.after(self._retrain.operations, self.event.rows[number], number)
        if not rows:
            return None
        first = min(rows, key=lambda batch: int(order_of(batch)[0]))
        at = int(order_of(first)[0])
        return at, first.slice(0, 1)

    def _run(self, place: int) -> None:
        event = self.event
        for number, operator in enumerate(self.state.operators):
            event.rows[number] = operator.push(event, place)
            if operator.emits:
                self.out[number] += event.rows[number]
            fault(operator.node.operator.edge)
        if self.state.training_rows is not None and self._retrain is not None and self._retrain.rows.node is not None:
            selection, node = self._retrain.rows, self._retrain.rows.node
            for batch in event.after(selection.operations, event.rows[node], node):
                self.state.training_rows.push(batch)
        event.done = place

    # -- at the end of the event --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Keep what is pending, with its predictions, and let go of what is not."""
        for operator in self.state.operators:
            operator.finish()

    def outputs(self) -> list[Output]:
        """Return rows of the nodes, to their topics."""
        return [
            output
            for node, batches in zip(self.task.nodes, self.out, strict=True)
            for batch in (batches if node.outputs else ())
            for output in emitted(node.outputs, batch.stored, self.event.features)
        ]

    def made(self, asked: Sequence[PredictionBatch], last: int = 0) -> dict[str, list[Batch]]:
        """Return what the step has made for its topics, up to a place."""
        found: dict[str, list[Batch]] = {}
        for topic, batch in self.outputs():
            found.setdefault(topic, []).append(batch)
        for query in asked:
            for plan in self.event.predicted:
                if query.stream == plan.stream:
                    rows = query.output().slice(0, int(np.searchsorted(query.order, last, "right")))
                    for topic, batch in emitted(plan.outputs, rows, self.event.features):
                        found.setdefault(topic, []).append(batch)
        return found


# -- time that passes without rows ------------------------------------------------------------------------------------


def watched(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return the topics whose silence moves the time of what is derived."""
    return tuple(dict.fromkeys(topic for number in range(len(nodes)) for topic in topics_behind(nodes, number)))


def due(state: OperatorState, idle_us: Mapping[str, int]) -> bool:
    """Return whether a tick with these silences would bring anything about."""
    return any(operator.due(idle_us) for operator in state.operators)


def _idle(
    task: ModelTask | OperatorTask, state: OperatorState, tick: Tick, refuse: Refuse
) -> tuple[OperatorRun, Raised | None]:
    """Let a tick bring about what is due. Returns what came of it, and the row that begins a training."""
    lsn, index = state.at
    zero = np.zeros(1, np.int64)
    merged = Merged((), zero, zero + tick.ts_us, np.array([lsn], np.uint64), zero + index, zero, zero, (lsn, 0))
    run = OperatorRun(task, state, merged, streams=lambda _, __: [], refuse=refuse, idle_us=tick.idle_us)
    raised = run.advance(1)
    run.finish()
    return run, raised


def time_passed(
    task: ModelTask, state: State, event: Tick, reader: Reader | None
) -> tuple[list[Output], list[dict[str, Any]]]:
    """Return what time alone brings about: labels that will not come any more, windows that close, alarms."""
    if not event.idle_us or state.operators is None:
        return [], []
    letters: list[Output] = []

    def refuse(topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        letters.append(refused(topic, batch, reasons, stage, task.name))

    run, raised = _idle(task, state.operators, event, refuse)
    lines = [] if raised is None else retrain(task, state, raised, run.merged, reader, functools.partial(run.made, ()))
    return letters + run.outputs(), lines


def challenger(task: ModelTask, state: State) -> ChallengerErrors | None:
    """Return how a model that predicts beside the current one has done, where there is one."""
    if task.retrain is None or state.challenger is None:
        return None
    tried = state.challenger
    return ChallengerErrors(tried.version.number, task.retrain.promote, list(tried.errors))


def operator_step(task: OperatorTask, state: State, event: Event) -> list[Output]:
    """Derive rows from topics, without a model."""
    assert state.operators is not None
    letters: list[Output] = []

    def refuse(topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        state.counters.rejected += batch.num_rows
        letters.append(refused(topic, batch, reasons, stage))

    if isinstance(event, Tick) and event.idle_us:
        run, _ = _idle(task, state.operators, event, refuse)
        return letters + run.outputs()
    if not isinstance(event, Rows):
        return []
    merged = merge(event, state.open_key).numbered(label_topics(task.nodes), state.memory.follow)

    def streams(stream: StreamPlan, stage: str) -> list[Batch]:
        return batches_of(merged, stream, lambda topic, batch, reason: refuse(topic, batch, [reason], stage))

    run = OperatorRun(task, state.operators, merged, streams=streams, refuse=refuse)
    run.advance(merged.rows)
    run.finish()
    state.memory.settle()
    state.open_key = None if event.complete else merged.last_key
    state.watermark_us = max(state.watermark_us, int(merged.ts_us.max()))
    return letters + run.outputs()
