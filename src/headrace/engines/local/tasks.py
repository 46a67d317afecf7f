"""One task on a log: read its next rows, step, write outputs, progress and, when due, the state; and recover all of it.

A step's outputs, positions and record are written in one log transaction. The state joins it when the bytes read since
the last checkpoint exceed a constant times the state's size: small states nearly always, large ones seldom; when the
steps since then took long; and when the pipeline ends in good order.
Recovery loads the newest checkpoint and repeats the recorded steps after it without writing anything.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from headrace import event_log
from headrace.batch import Batch
from headrace.clock import Clock, SystemClock
from headrace.engines.local.announcements import Announcements
from headrace.engines.workers import Workers
from headrace.foreseen import Foreseen
from headrace.learn.base import pinned, traits_of
from headrace.learn.state import dump_pieces, load_state
from headrace.log.base import Log, Transaction
from headrace.log.kafka import KafkaTransaction
from headrace.plan.attachments import changes
from headrace.plan.blueprint import blueprint
from headrace.plan.fingerprint import declaration_differences
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask, StreamTask, Task
from headrace.registry.models import (
    Declaration,
    Progress,
    beginning,
    checkpoint_steps,
    put_declaration,
    put_model,
    read_model,
    read_progress,
    write_checkpoint,
    write_progress,
)
from headrace.registry.requests import CONTINUE, read_continue
from headrace.registry.versions import PIPELINE, Pieces, artifact_name
from headrace.replay.lineage import Lineage, change_event
from headrace.replay.recovery import begin, replay, restore, stepper_of
from headrace.replay.steps import StepRecord, append_fitting, load_rows
from headrace.replay.task_history import TaskHistory
from headrace.step.ahead import ForeseenRows
from headrace.step.events import Redeclared, Tick, Train
from headrace.step.learning import oldest_kept
from headrace.step.model_version import ModelVersion, VersionChange
from headrace.step.operator_run import due, watched
from headrace.step.outputs import Output
from headrace.step.retraining import Trained, train_pending
from headrace.step.state import State
from headrace.wire import EncodedRows

logger = logging.getLogger("headrace")

CHECKPOINT_FACTOR = 4
ROWS_AT_ONCE = 65_536
# Repeating steps takes about as long as they took: a recovery is not to take longer than this, unless storing the state
# takes more than a tenth of it.
REPLAY_SECONDS = 10.0
STORING_SHARE = 10.0
HASHED_EVERY_STEP = 65_536
# Between two rows of a stream that flows no time passes but theirs.
SILENCE_S = 2.0
_NEVER = (-1, -1, -1)
OnStep = Callable[[str, int, int], None]


class TaskRunner:
    """Runs one task of a plan on a log, from the writing thread only.

    Attributes:
        letters: told of dead letters, with their topic.
    """

    def __init__(
        self, plan: Plan, task: Task, log: Log, clock: Clock | None = None, workers: Workers | None = None
    ) -> None:
        self.plan = plan
        self.task = task
        self.log = log
        self.clock = clock or SystemClock()
        self._workers = workers
        self._stepper = stepper_of(log, task, predictors=workers)
        self.lineage = Lineage(task, log) if isinstance(task, ModelTask) else None
        self.history = TaskHistory(log, task)
        self.progress = Progress()
        self.checkpoints: list[int] = []
        self.more = False
        self._hashed_at = _NEVER
        self._saves = False
        # Seconds that the steps since the last checkpoint took, and that storing it took.
        self._work_s = 0.0
        self._storing_s = 0.0
        # Predictions that were made elsewhere are of a stream, which is then not silent.
        plans = task.predict if isinstance(task, ModelTask) else ()
        self._served = {plan.served.topic: plan.stream.topic for plan in plans if plan.served is not None}
        self._nodes = getattr(task, "nodes", ())
        self._watched = watched(self._nodes)
        # When rows of each topic came last, or all were dealt with for the first time.
        self._came: dict[str, float] = {}
        self._trainer: Trainer | None = None
        self._made: list[tuple[Sequence[Output], int]] = []
        self._again: list[tuple[str, int, str]] = []
        self.foreseen = ForeseenRows()
        self.letters: Callable[[str, Batch], None] = lambda topic, batch: None

    @property
    def state(self) -> State:
        """The task's state, as its last event has left it."""
        return self._stepper.state

    def recover(self, on_step: OnStep | None = None) -> None:
        """Come to where the log says this task is.

        Args:
            on_step: called with (task, step, last step) while recorded steps are repeated.
        """
        name = self.task.name
        progress = read_progress(self.log, name) or Progress()
        self.checkpoints = checkpoint_steps(self.log, name)
        self.history.read()
        state, start = restore(self.log, self.history, progress)
        begun = self.clock.monotonic()
        # A training that has changed the model is in a checkpoint: an unknown one need not be done again.
        repeated = replay(self.log, self.plan, self.history, state, start, progress.step, exact=False)
        for record, _ in () if isinstance(self.task, StreamTask) else repeated:
            if on_step is not None:
                on_step(name, record.step, progress.step)
        self._work_s = self.clock.monotonic() - begun
        self._stepper.go_on(state)
        self.progress = progress
        self._hashed_at = _NEVER
        self._saves = False
        self._came = {}
        self._trainer = None
        self._made, self._again = [], []
        self.foreseen.forget()
        if isinstance(self.task, ModelTask) and self.task.initial is not None and self.lacks_beginning:
            begin(self.plan, self.task, self.log, self.state)
        if self.lineage is not None:
            self.lineage.read()

    @property
    def lacks_beginning(self) -> bool:
        """True where the state that it begins with would be another one in the next process, and is not stored."""
        return self._stores_beginning and not self.checkpoints and self.progress.step == self._beginning

    @property
    def _stores_beginning(self) -> bool:
        return isinstance(self.task, ModelTask) and self.task.stores_beginning

    @property
    def _beginning(self) -> int:
        return int(self.progress.origin.get("step", 0))

    def store_beginning(self, txn: Transaction) -> None:
        """Store the state before the first step: recovery and `verify` begin with it."""
        start, _ = beginning(self.progress)
        pieces = self._stepper.dump(progress=start.to_json())
        self.checkpoints = write_checkpoint(txn, self.task.name, start.step, pieces, [])
        if self.lineage is not None and isinstance(self.task, ModelTask) and self.task.initial is not None:
            self.lineage.began_with(txn, self.state)

    @property
    def undeclared(self) -> bool:
        """True where the log does not know that the task is declared as it is now."""
        return not self.history.recorded or self.history.changed

    def declare(self, txn: Transaction) -> StepRecord | None:
        """Note how the task is declared; where it was declared otherwise before, take the step from which on it is."""
        history, name = self.history, self.task.name
        if not history.recorded:
            put_declaration(txn, name, history.newest if history.changed else self._declaration(self._beginning))
        record = self._redeclare(txn) if history.changed else None
        history.recorded = history.declarations = [*history.declarations]
        return record

    def _declaration(self, step: int, **about: Any) -> Declaration:
        made = blueprint(self.task) if isinstance(self.task, ModelTask) else None
        return replace(self.history.now(step), blueprint=made, ts_us=self.clock.now_us(), **about)

    def _redeclare(self, txn: Transaction) -> StepRecord:
        history, name, progress = self.history, self.task.name, self.progress
        old = history.newest
        lets = read_continue(self.log, name) or {}
        ends = {topic: info.end for topic, info in self.log.topics().items()}
        written = {output.topic: ends.get(output.topic, 0) for output in self.task.outputs}
        before, by = history.at(progress.step).task, str(lets.get("by", ""))
        change = Redeclared(self.clock.now_us(), before, by, written)
        outputs = self._stepper.apply(change)
        told = changes(old.attached, history.now(0).attached)
        if isinstance(self.task, ModelTask):
            model = declaration_differences(old.fingerprint, self.task.fingerprint())
            told = [*(f"the model goes on: {line}" for line in model), *told]
            if lets:
                txn.delete(CONTINUE, name)
        self._saves = True
        progress.offsets = {topic: self._offset(topic) for topic in self.task.topics}
        declared = {"ts_us": change.ts_us, "by": by, "written": written}
        record = self._record(txn, outputs, after=progress.slice, inputs={}, event={"declared": declared})
        now = self._declaration(progress.step, changes=told, by=str(lets.get("by") or PIPELINE))
        put_declaration(txn, name, now)
        if isinstance(self.task, ModelTask) and (known := read_model(self.log, name)) is not None:
            more = {"fingerprint": now.fingerprint, "blueprint": now.blueprint, "version": self.state.version}
            put_model(txn, name, {**known, **more})
        where = f"from step {record.step} on, after {progress.position or 'nothing'}"
        for line in told:
            about = event_log.event("redeclared", app=self.plan.app, task=name, change=line, step=record.step)
            logger.warning("«%s»: %s (%s)", name, line, where, extra=about)
        history.declarations = [*history.declarations, now]
        return record

    def _offset(self, topic: str) -> int:
        """Return the offset of the first row of a topic that the next step may take."""
        if topic in self.progress.offsets:
            return self.progress.offsets[topic]
        following = self.log.read([topic], after=self.progress.slice, limit=1)
        info = self.log.topics().get(topic)
        return following[0].offset if following else 0 if info is None else info.end

    def foresee(self, topic: str, offset: int, foreseen: Sequence[Foreseen]) -> None:
        """Take predictions that were made ahead of rows of a topic, which begin at an offset."""
        if isinstance(self.task, ModelTask) and topic in self.task.topics:
            self.foreseen.add(topic, offset, foreseen)

    def advance(self, txn: Transaction) -> StepRecord | None:
        """Take a step on the next rows, if there are any; append its outputs."""
        topics, arrivals = self.task.topics, bool(self._nodes)
        begun = self.clock.monotonic()
        load = load_rows(self.log, topics, after=self.progress.slice, limit=ROWS_AT_ONCE, arrivals=arrivals)
        self.more = load is not None and (load.rows >= ROWS_AT_ONCE or not load.event.complete)
        if load is None:
            return None
        event = self.foreseen.on(load.event)
        outputs = self._stepper.apply(event)
        self.foreseen.count(event)
        self._work_s += self.clock.monotonic() - begun
        if self._watched:
            came = {self._served.get(topic, topic) for topic in load.inputs}
            self._came.update(dict.fromkeys(came & set(self._watched), self.clock.monotonic()))
        self.progress.bytes_since += load.bytes
        before, self.progress.slice = self.progress.slice, load.slice
        for topic, (_, end) in load.inputs.items():
            self.progress.offsets[topic] = end
        return self._record(txn, outputs, after=before, inputs=load.inputs)

    def tick(self, txn: Transaction, tick: Tick) -> StepRecord:
        """Take a step that consumes time only."""
        outputs = self._stepper.apply(tick)
        self.progress.bytes_since += 1
        event = {"idle": dict(tick.idle_us)} if tick.idle_us else None
        return self._record(txn, outputs, after=self.progress.slice, inputs={}, tick=tick, event=event)

    def train(self, txn: Transaction, by: str, *, promote: bool = False) -> tuple[StepRecord, dict[str, Any]]:
        """Take a step in which somebody asks for a training, or for the challenger; return also what came of it."""
        event = Train(self.clock.now_us(), max(self.progress.slice, self.log.newest_slice()), by, promote)
        outputs = self._stepper.apply(event)
        self._saves = True
        about = {"train": {"until": event.until, "by": by, "ts_us": event.ts_us, "promote": promote}}
        record = self._record(txn, outputs, after=self.progress.slice, inputs={}, event=about)
        told = {name: value for name, value in outputs[-1][1].rows.to_pylist()[0].items() if value is not None}
        return record, told

    @property
    def trained(self) -> bool:
        """True when a training that runs beside the pipeline has ended; begins the one that is waited for."""
        if not isinstance(self.task, ModelTask) or self.state.training is None:
            self._trainer = None
            return False
        if self._trainer is None:
            self._trainer = Trainer(self.task, self.state, self._workers)
        return self._trainer.done

    def take_trained(self, txn: Transaction) -> StepRecord:
        """Take a step in which the model trained beside the pipeline takes over, or it is told why not."""
        assert self._trainer is not None
        change, pieces = self._trainer.result(self.progress.step)
        if pieces is not None:
            txn.put("artifact", change.artifact, pieces)
        return self.change_version(txn, change)

    def change_version(self, txn: Transaction, change: VersionChange) -> StepRecord:
        """Take a step in which another version is asked for; its checkpoint follows."""
        outputs = self._stepper.apply(change)
        self._saves = True
        event = change_event(change, self.clock.now_us())
        return self._record(txn, outputs, after=self.progress.slice, inputs={}, event=event)

    def due_tick(self, now_us: int) -> Tick | None:
        """Return the tick that closes an idle duration cut, or what is derived, when its time has come."""
        idle_us = self._idle()
        if idle_us and self.state.operators is not None and due(self.state.operators, idle_us):
            return Tick(now_us, idle_us=idle_us)
        if not isinstance(self.task, ModelTask) or not self.task.cut.duration_us or not self.state.open_batch.rows:
            return None
        end = (self.state.open_batch.window + 1) * self.task.cut.duration_us
        return Tick(now_us) if now_us >= end else None

    def _idle(self) -> dict[str, int]:
        """Return topic -> microseconds since its last row came, while this process had dealt with all there was."""
        if not self._watched:
            return {}
        now = self.clock.monotonic()
        silent = {topic: now - self._came.setdefault(topic, now) for topic in self._watched}
        return {topic: int(for_s * 1e6) for topic, for_s in silent.items() if for_s >= SILENCE_S}

    def save(self, txn: Transaction, steps_offset: int) -> None:
        """Write the progress, and the state when it is due; ``steps_offset`` follows this step's own record."""
        self.progress.steps_offset = steps_offset
        if isinstance(self.task, StreamTask):
            self.progress.needed = dict(self.progress.offsets)
        elif self._due():
            self._checkpoint(txn)
        write_progress(txn, self.task.name, self.progress)

    def _due(self) -> bool:
        learner = self.state.learner
        never_again_the_same = learner is not None and not traits_of(learner).deterministic
        long = self._work_s > max(REPLAY_SECONDS, STORING_SHARE * self._storing_s)
        grown = self.progress.bytes_since > CHECKPOINT_FACTOR * self.progress.size
        return self._saves or never_again_the_same or grown or long

    @property
    def unsaved(self) -> bool:
        """True where a recovery would have steps to repeat."""
        stored = self.checkpoints[-1] if self.checkpoints else self._beginning
        return not isinstance(self.task, StreamTask) and self.progress.step > stored

    def save_at_end(self, txn: Transaction) -> None:
        """Store the state, so that the next start has nothing to repeat; and its hash, also of a large one."""
        if self.state.learner is not None and self.progress.hash is None:
            self.progress.hash = self._stepper.hash
        self._checkpoint(txn)
        write_progress(txn, self.task.name, self.progress)

    def _checkpoint(self, txn: Transaction) -> None:
        progress = self.progress
        begun = self.clock.monotonic()
        self._saves = False
        progress.bytes_since = 0
        progress.needed = {**progress.offsets, self.plan.steps_topic: progress.steps_offset}
        if isinstance(self.task, ModelTask):
            progress.needed |= oldest_kept(self.task, self.state)
        data = self._stepper.dump(progress=progress.to_json())
        progress.size = sum(map(len, data))
        stays = [self._beginning] if self._stores_beginning else []
        self.checkpoints = write_checkpoint(txn, self.task.name, progress.step, data, self.checkpoints, keep=stays)
        self._work_s, self._storing_s = 0.0, self.clock.monotonic() - begun

    def announce(self, announcements: Announcements) -> None:
        """Hand over what the steps since the last call have made."""
        made, self._made = self._made, []
        for outputs, version in made:
            announcements.stepped(self.task, outputs, version)
        again, self._again = self._again, []
        announcements.refused_again(self.task.name, again)

    def _record(
        self,
        txn: Transaction,
        outputs: Sequence[Output],
        *,
        after: int,
        inputs: dict[str, list[int]],
        tick: Tick | None = None,
        event: dict[str, Any] | None = None,
    ) -> StepRecord:
        performed = [] if self._workers is None else self._workers.performed()
        written = _append(txn, outputs, self.letters, performed)
        self._made.append((outputs, self.state.version))
        self._again += self.state.refused_again
        state, progress = self.state, self.progress
        self._stepper.wrote(written)
        # A training is not done twice where its result can be kept.
        self._saves = self._saves or any(end.change is not None and end.change.training for end in state.ended)
        if self.lineage is not None:
            self.lineage.store(txn, state, outputs, self.clock.now_us())
        progress.step += 1
        progress.version, progress.rows, progress.learned = state.version, state.learned_rows, state.offsets.learned
        progress.position = str(state.position) if state.position else None
        progress.pending, progress.diverged = state.open_batch.rows, state.diverged
        progress.counters = {name: getattr(state.counters, name) for name in type(state.counters).__slots__}
        self._hash()
        return StepRecord(
            task=self.task.name,
            step=progress.step,
            after_slice=after,
            slice=progress.slice,
            inputs=inputs,
            outputs=written,
            tick_us=None if tick is None else tick.ts_us,
            explicit=tick is not None and tick.explicit,
            hash=progress.hash,
            position=progress.position,
            event=event,
        )

    def _hash(self) -> None:
        """Hash the learner where it changed and is small; a large one is hashed with its checkpoints."""
        state, progress = self.state, self.progress
        now = (state.counters.learned, state.counters.cuts, state.version)
        if state.learner is None or self._hashed_at == now:
            return
        self._hashed_at = now
        progress.hash = None
        if progress.size <= HASHED_EVERY_STEP or self._due():
            progress.hash = self._stepper.hash


def _append(
    txn: Transaction,
    outputs: Sequence[Output],
    letters: Callable[[str, Batch], None],
    performed: Sequence[tuple[str, EncodedRows]],
) -> dict[str, list[int]]:
    written: dict[str, list[int]] = {}
    if outputs or performed:
        txn.next_slice()
    for topic, batch in outputs:
        for name, offset, rows in append_fitting(txn, topic, batch, stage="log", letters=letters):
            first = written.get(name, [offset])[0]
            written[name] = [first, offset + rows]
    for topic, encoded in performed:
        assert isinstance(txn, KafkaTransaction)
        offset = txn.append_encoded(topic, encoded)
        written[topic] = [written.get(topic, [offset])[0], offset + encoded.rows]
    return written


class Trainer:
    """One training, which begins at once.

    Args:
        task: the model's; ``state``: its, whose ``training`` says on what. What is needed of it is taken now.
        workers: train where there are some; a thread of this process otherwise.
    """

    def __init__(self, task: ModelTask, state: State, workers: Workers | None = None) -> None:
        self._task = task
        self._elsewhere = None if workers is None else workers.train(task, state)
        self._state = copy.copy(state)
        self._found: Trained | None = None
        self._thread = threading.Thread(target=self._run, name=f"headrace-train-{task.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._elsewhere is not None:
            self._found = self._elsewhere()
            return
        with pinned(self._task.learner):
            self._found = train_pending(self._task, self._state)

    @property
    def done(self) -> bool:
        """True when it has ended."""
        return not self._thread.is_alive()

    def result(self, step: int) -> tuple[VersionChange, Pieces | None]:
        """Return the change to be recorded, and the new model's state in pieces, where there is one.

        Args:
            step: the last one recorded, which tells this training's state from others'.
        """
        found, previous, pending = self._found, self._state.version, self._state.training
        assert pending is not None
        if found is None:
            return VersionChange(None, previous, by=pending.by, refused="the training died"), None
        about = dict(found.about)
        if found.learner is None:
            reason = str(about.get("reason") or "nothing came of it")
            return VersionChange(None, previous, by=pending.by, training=about, refused=reason), None
        about |= {"words": {name: list(words) for name, words in found.words.items()}, "sizes": dict(found.sizes)}
        pieces = dump_pieces(found.learner.state())
        # As a replay will read it.
        learner = copy.deepcopy(self._task.learner)
        learner.restore(dict(load_state(b"".join(pieces))))
        to = ModelVersion(learner, previous + 1, pending.position, found.rows, found.known)
        artifact = artifact_name(self._task.name, to.number, f"trained-{step}")
        return VersionChange(to, previous, artifact, pending.by, about), pieces
