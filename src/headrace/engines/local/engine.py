"""The local engine: one loop, one writing thread, one log transaction for everything that one round does.

A round takes what the sources have received, appends it, lets every task step over what is new to it, and commits:
captured rows, outputs, positions, records of the steps and due states become durable together. Only then are the
sources told that the rows are safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headrace.batch import OPS, Batch
from headrace.capture.base import Origin, Piece, Source, SourcePosition, SourceStatus, Waker
from headrace.clock import Clock, SystemClock
from headrace.engines.local.admin_requests import AdminRequest, AdminRequests, apply
from headrace.engines.local.announcements import Announcements
from headrace.engines.local.dead_letters import DeadLetters
from headrace.engines.local.first_rows import FirstRows
from headrace.engines.local.tasks import OnStep, TaskRunner
from headrace.engines.local.write_queue import PendingWrite, WriteQueue
from headrace.engines.workers import Workers
from headrace.errors import HeadraceError, LogError, LogFull, LogLocked
from headrace.event_log import event
from headrace.faults import fault
from headrace.log.base import Log, Transaction
from headrace.log.kafka import KafkaLog, KafkaTransaction
from headrace.log.retention import Keep, apply_retention
from headrace.plan.plan import Plan
from headrace.registry.requests import Request
from headrace.replay.steps import StepRecord, append_fitting, steps_batch
from headrace.step.absent import whole_schema
from headrace.step.events import Tick

logger = logging.getLogger("headrace")

IDLE_POLL = 0.2
RETENTION_EVERY = 60.0
FULL_DISK_WAIT = 1.0
DELAYS = 1000

# Each source has positions of its own kind; an engine hands them back to it, and compares them with each other.
_Polled = tuple[Source[Any], Sequence[Piece[Any]]]


@dataclass(slots=True)
class EngineProgress:
    """The state that others may look at while the engine runs; replaced, never changed, by the engine's thread.

    Attributes:
        captured: rows appended since the start, by topic.
        done: source -> position up to which everything committed is captured, predicted and, in complete cuts,
            learned.
        caught_up: whether every task has consumed what the log holds.
        rounds: commits since the start.
        status: one line for people.
    """

    captured: dict[str, int] = field(default_factory=dict)
    done: dict[str, SourcePosition] = field(default_factory=dict)
    caught_up: bool = False
    rounds: int = 0
    status: str = "starting"


class RoundTimes:
    """Where the time of rounds goes. Written by the engine's thread, read by any.

    Attributes:
        seconds: spent since the start in ``capture``, in each task, and in ``commit``.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._delays: deque[float] = deque(maxlen=DELAYS)
        self.seconds: dict[str, float] = {}

    def spent(self, part: str, since: float) -> float:
        """Count the time since then as a part's; return what time it is."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - since
        return now

    def committed(self, captured: Sequence[_Polled]) -> None:
        """Note how old the newest captured rows are, whose predictions have just become durable."""
        now_us = self._clock.now_us()
        for _, pieces in captured:
            batches = [batch for piece in pieces for _, batch in piece.batches if batch.num_rows]
            if batches and batches[-1].op[-1] != OPS["r"]:
                self._delays.append(float(now_us - batches[-1].ts_us[-1]) / 1e3)

    def latency(self) -> dict[str, float]:
        """Return ``p50_ms`` and ``p99_ms`` of the newest rounds with rows; nothing where there were none."""
        delays = list(self._delays)
        if not delays:
            return {}
        p50, p99 = np.percentile(delays, (50, 99)).tolist()
        return {"p50_ms": round(p50, 3), "p99_ms": round(p99, 3)}


def _adopt(txn: Transaction, topic: str, batch: Batch, origin: Origin, *, complete: bool) -> list[tuple[str, int, int]]:
    """Take rows in where their messages lie; return topic, first offset and number of rows."""
    assert isinstance(txn, KafkaTransaction)
    about: dict[str, Any] = {"format_": origin.format, "spread": origin.spread, "complete": complete}
    schema = whole_schema(batch.schema)
    return [(topic, txn.adopt(topic, batch.records, origin.ranges, schema=schema, **about), batch.num_rows)]


class Engine:
    """Runs a plan's tasks on a log. `run` belongs to one thread; the other methods may be called from any."""

    def __init__(
        self,
        plan: Plan,
        log: Log,
        sources: Sequence[Source[Any]],
        *,
        keep: Keep | None = None,
        clock: Clock | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.plan = plan
        self.log = log
        self.sources = list(sources)
        self.clock = clock or SystemClock()
        self.dead_letters = DeadLetters(plan.app, plan.log)
        self.runners = [TaskRunner(plan, task, log, self.clock, workers) for task in plan.tasks]
        for runner in self.runners:
            runner.letters = self.dead_letters.take
        self.keep = keep
        self.progress = EngineProgress()
        self._announcements = Announcements(plan.app)
        self.waker = Waker()
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self.guard = threading.Lock()
        # Called by the engine's thread after each commit, and with True in each idle round.
        self.after_commit: list[Callable[[bool], None]] = []
        # Called by the engine's thread in each transaction of a round, and in the last one, when it ends or has failed.
        self.each_commit: list[Callable[[Transaction], None]] = []
        self.at_end: list[Callable[[Transaction], None]] = []
        # Called by the engine's thread when a round begins.
        self.each_round: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self.workers = workers
        self._requests = AdminRequests(log, [model.name for model in plan.models], self.sources)
        self._write_queue = WriteQueue()
        self.holders: list[Callable[[], Mapping[str, int]]] = []
        self.first_rows: FirstRows | None = None
        self._caught_up = False
        self._ignoring: set[str] = set()
        read = {topic for task in plan.tasks for topic in task.topics}
        self._read_here = read & plan.written.keys()
        self._adopted: set[str] = (
            set()
        )  # sources on the log's own cluster, which takes in their messages where they lie
        if isinstance(log, KafkaLog):
            self.waker.on_interrupt(log.interrupt)
            here = log.location.bootstrap
            self._adopted = {source.name for source in self.sources if source.traits.cluster == here}
        self._pruned_at = self.clock.monotonic()
        self._round_at = time.monotonic()
        self.round_seconds = 0.0
        self.times = RoundTimes(self.clock)

    @property
    def round_age(self) -> float:
        """Return seconds since the last round began."""
        return time.monotonic() - self._round_at

    def recover(self, on_step: OnStep | None = None) -> None:
        """Bring every task to where the log says it is.

        Args:
            on_step: called with (task, step, last step) while recorded steps are repeated.
        """
        for runner in self.runners:
            runner.recover(on_step)
        self._requests.recover()
        fresh = [runner for runner in self.runners if runner.lacks_beginning]
        undeclared = [runner for runner in self.runners if runner.undeclared]
        if fresh or undeclared:
            with self.log.transaction() as txn:
                for runner in fresh:
                    runner.store_beginning(txn)
                declared = [(runner, runner.declare(txn)) for runner in undeclared]
                self._record(txn, [(runner, record) for runner, record in declared if record is not None])
                fault("engine.declared")
            fault("engine.declaring")

    def run(self) -> None:
        """Run rounds until `stop`; the error that ended it otherwise is kept in ``error`` and raised."""
        try:
            while not self._stop.is_set():
                self._round()
            self._save_at_end()
        except BaseException as error:
            self.error = error
            self._tell_failure(error)
            raise
        finally:
            self._end()

    def stop(self) -> None:
        """End after the current round."""
        self._stop.set()
        self.waker.interrupt()

    def request(self, request: Request) -> AdminRequest:
        """Ask for another version, a tag, or a tick after everything that is there.

        What is returned has an event, set when it is recorded or refused.
        """
        wanted = AdminRequest(request)
        self._requests.add(wanted)
        self.waker.wake()
        return wanted

    def write_soon(
        self, topics: Sequence[tuple[str, Batch]], records: Sequence[tuple[str, str, bytes]]
    ) -> PendingWrite:
        """Have rows and records (kind, name, value) written in the next round, in its transaction.

        What is returned has an event, set when they are durable or the engine has ended before. Any thread may call it.
        """
        pending = self._write_queue.add(topics, records)
        self.waker.wake()
        return pending

    def wait_for(self, predicate: Callable[[EngineProgress], bool], timeout: float | None) -> bool:
        """Wait until the progress satisfies a predicate; raises the engine's error when it has died of one."""
        with self.changed:
            reached = self.changed.wait_for(
                lambda: predicate(self.progress) or self.error is not None or self.finished.is_set(), timeout
            )
        if self.error is not None:
            raise self.error
        return reached and predicate(self.progress)

    # -- one round ------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        self._round_at = time.monotonic()
        for call in self.each_round:
            call()
        captured = self._poll()
        statuses = {source.name: source.status for source in self.sources}
        self._say_status(statuses)
        idle = all(piece.idle for _, pieces in captured for piece in pieces)
        if not idle or not self._caught_up or self._requested or self._ticks_due() or self._trained():
            begun = time.monotonic()
            self._announcements.busy()
            self._commit_until_done(captured)
            self.round_seconds = time.monotonic() - begun
        else:
            self._announcements.idle(sum(self.progress.captured.values()))
            self._store_idle(captured)
            for call_idle in self.after_commit:
                call_idle(True)
        self._prune()
        if self._caught_up:
            self._publish_done({name: status.position for name, status in statuses.items()})

    def _poll(self) -> list[_Polled]:
        self._requests.look(self.clock)
        busy = not self._caught_up or self._requested
        timeout = 0.0 if busy else IDLE_POLL / max(1, len(self.sources))
        if not self.sources and not busy:
            self._stop.wait(IDLE_POLL)
        polled = [(source, source.poll(timeout)) for source in self.sources]
        return [(source, pieces) for source, pieces in polled if pieces]

    @property
    def _requested(self) -> bool:
        return bool(self._requests) or bool(self._write_queue)

    def _trained(self) -> bool:
        # Each is asked: that is what begins a training.
        ended = [runner.trained for runner in self.runners]
        return any(ended)

    def _commit_until_done(self, captured: Sequence[_Polled]) -> None:
        """Commit a round; what undoes it for now (a full disk, a broker or a registry that is away) is waited for.

        The round is tried again, with the same rows.
        """
        while True:
            requests = self._requests.take()
            try:
                self._commit(captured, requests)
                return
            except HeadraceError as error:
                self._announcements.undone()
                self._requests.give_back(requests)
                self._write_queue.give_back()
                self.dead_letters.undo()
                self._wait_for(error)

    def _wait_for(self, error: HeadraceError) -> None:
        """Wait a little, and come to where the log says we are; until that works, or the pipeline is stopped."""
        while True:
            if not error.retry:
                raise error
            self._say_waiting(error)
            if self._stop.wait(FULL_DISK_WAIT):
                raise error
            try:
                self.recover()
                return
            except HeadraceError as another:
                error = another

    def _commit(self, captured: Sequence[_Polled], requests: Sequence[AdminRequest]) -> None:
        counts = dict(self.progress.captured)
        with self.guard, self.log.transaction() as txn:
            begun = time.perf_counter()
            for source, pieces in captured:
                for piece in pieces:
                    self._append(txn, source, piece, counts)
            self.times.spent("capture", begun)
            stored = _store(txn, captured)
            self._write_queue.write(txn, self.dead_letters.take)
            fault("engine.captured")
            more = self._step_all(txn, requests)
            for call_in in self.each_commit:
                call_in(txn)
            fault("engine.stepped")
            begun = time.perf_counter()
        self.times.spent("commit", begun)
        fault("engine.committed")
        self.times.committed(captured)
        self.dead_letters.commit()
        for call in self.after_commit:
            call(False)
        for source in stored:
            source.acknowledge()
        fault("engine.acknowledged")
        self._write_queue.finish()
        for request in requests:
            request.finish()
        self._announcements.committed()
        self._say_ignored()
        self._caught_up = not more
        old = self.progress
        self.progress = replace(old, captured=counts, caught_up=False, rounds=old.rounds + 1)

    def _append(self, txn: Transaction, source: Source[Any], piece: Piece[Any], counts: dict[str, int]) -> None:
        if piece.rewound:
            txn.discard_staged()
        if piece.rewound or piece.idle:
            return
        txn.next_slice()
        whole = not piece.open and not piece.continued
        origins = piece.origins if source.name in self._adopted else ()
        for i, (topic, batch) in enumerate((*piece.batches, *piece.rejected)):
            appended: list[tuple[str, int, int]] = []
            if i < len(origins):
                appended = _adopt(txn, topic, batch, origins[i], complete=piece.complete)
            elif whole:
                letters = self.dead_letters.take
                appended = append_fitting(txn, topic, batch, stage="capture", complete=piece.complete, letters=letters)
            else:
                txn.stage(topic, batch.records)
                if i >= len(piece.batches):
                    self.dead_letters.take(topic, batch)
            if i < len(piece.foreseen) and appended and appended == [(topic, appended[0][1], batch.num_rows)]:
                for runner in self.runners:
                    runner.foresee(topic, appended[0][1], piece.foreseen[i])
            counts[topic] = counts.get(topic, 0) + batch.num_rows
            if self.first_rows is not None and topic in self.first_rows.awaited:
                self.first_rows.take(topic, whole_schema(batch.schema) or batch.schema)
        if piece.continued and not piece.open:
            txn.publish()

    def _step_all(self, txn: Transaction, requests: Sequence[AdminRequest]) -> bool:
        """Let every task step once, and tick where time has passed; whether there is more to do at once.

        Other versions that were asked for come first: rows that have come meanwhile are theirs, where no cut is open.
        """
        stepped: list[tuple[TaskRunner, StepRecord]] = []
        begun = time.perf_counter()
        for runner in self.runners:
            mine = [wanted for wanted in requests if wanted.request.model == runner.task.name]
            done = [apply(txn, runner, wanted) for wanted in mine if wanted.request.action != "tick"]
            stepped += [(runner, record) for record in done if record is not None]
            if runner.trained:
                stepped.append((runner, runner.take_trained(txn)))
            record = runner.advance(txn)
            if record is not None:
                stepped.append((runner, record))
            stepped += [(runner, runner.tick(txn, tick)) for tick in self._ticks_for(runner, mine, record)]
            begun = self.times.spent(runner.task.name, begun)
        self._record(txn, stepped)
        return any(runner.more or self._read_here & record.outputs.keys() for runner, record in stepped)

    def _record(self, txn: Transaction, stepped: Sequence[tuple[TaskRunner, StepRecord]]) -> None:
        """Append the records of steps, and write where the tasks are after them."""
        if stepped:
            txn.next_slice()
            first = txn.append(self.plan.steps_topic, steps_batch([record for _, record in stepped]))
            for runner, _ in stepped:
                runner.announce(self._announcements)
            ends = {id(runner): first + i + 1 for i, (runner, _) in enumerate(stepped)}
            for runner in dict.fromkeys(runner for runner, _ in stepped):
                runner.save(txn, ends[id(runner)])

    def _ticks_for(
        self, runner: TaskRunner, requests: Sequence[AdminRequest], stepped: StepRecord | None
    ) -> list[Tick]:
        """Return ticks that were asked for, and the one that closes an idle cut: only where no row has just come."""
        now = self.clock.now_us()
        ticks = [Tick(now, explicit=True) for wanted in requests if wanted.request.action == "tick"]
        due = None if stepped else runner.due_tick(now)
        return ticks or ([due] if due is not None else [])

    def _ticks_due(self) -> bool:
        now = self.clock.now_us()
        return any(runner.due_tick(now) is not None for runner in self.runners)

    def _store_idle(self, captured: Sequence[_Polled]) -> None:
        """Let the origin forget what was of no interest here: store the position, then acknowledge it."""
        for polled in captured:
            try:
                with self.log.transaction() as txn:
                    stored = _store(txn, [polled])
                    for call in self.each_commit:
                        call(txn)
            except HeadraceError as error:
                if not error.retry:
                    raise
                # Nothing is lost: the source hands the position out again.
                self._say_waiting(error)
                return
            for source in stored:
                source.acknowledge()

    def _prune(self) -> None:
        if self.keep is None or self.clock.monotonic() - self._pruned_at < RETENTION_EVERY:
            return
        self._pruned_at = self.clock.monotonic()
        apply_retention(self.log, self.keep, self.needed(), self.clock.now_us())

    def needed(self) -> Mapping[str, int]:
        """Return topic -> the oldest offset that a task's recovery still reads, or a sink has not delivered."""
        needed: dict[str, int] = {}
        for runner in self.runners:
            for topic in (*runner.task.topics, self.plan.steps_topic):
                offset = runner.progress.needed.get(topic, 0)
                needed[topic] = min(needed.get(topic, offset), offset)
        for holder in self.holders:
            for topic, offset in holder().items():
                needed[topic] = min(needed.get(topic, offset), offset)
        return needed

    def _save_at_end(self) -> None:
        """Store every state: the next start repeats nothing."""
        unsaved = [runner for runner in self.runners if runner.unsaved]
        if not unsaved and not self.at_end:
            return
        try:
            with self.log.transaction() as txn:
                for runner in unsaved:
                    runner.save_at_end(txn)
                for call in self.at_end:
                    call(txn)
        except HeadraceError as error:
            if unsaved:
                # Nothing is lost: what was done since the last checkpoint is repeated at the next start.
                logger.warning(
                    "the models' states were not stored at the end: %s", error.message, extra=event("not_stored")
                )

    def _tell_failure(self, error: BaseException) -> None:
        """Have the log say that the pipeline has failed, where the log itself is not what has."""
        if not self.at_end or isinstance(error, LogLocked) or (isinstance(error, HeadraceError) and error.retry):
            return
        self.waker.interrupt()  # a broker that goes away now is not waited for
        try:
            with self.log.transaction() as txn:
                for call in self.at_end:
                    call(txn)
        except HeadraceError as another:
            logger.debug("the log does not say that the pipeline failed: %s", another.message)

    # -- telling others --------------------------------------------------------------------------------------------

    def _publish_done(self, done: Mapping[str, SourcePosition]) -> None:
        old = self.progress
        if not old.caught_up or any(old.done.get(name) != position for name, position in done.items()):
            with self.changed:
                self.progress = replace(old, done={**old.done, **done}, caught_up=True)
                self.changed.notify_all()

    def _say_status(self, statuses: Mapping[str, SourceStatus]) -> None:
        self._announcements.sources(statuses)
        self._show("; ".join(f"{name}: {status}" for name, status in statuses.items()) or "running")

    def _show(self, text: str) -> None:
        """Show one line to people who look at the running pipeline."""
        if text != self.progress.status:
            self.progress = replace(self.progress, status=text)

    def _say_waiting(self, error: HeadraceError) -> None:
        what = "disk space" if isinstance(error, LogFull) else "the log" if isinstance(error, LogError) else "a server"
        text = f"waiting for {what}: {error.message}; trying again"
        self._announcements.waiting(text)
        self._show(text)

    def _say_ignored(self) -> None:
        """Say once for each model that updates and deletes of learned rows are not taken out of it."""
        for runner in self.runners:
            ignored = runner.state.counters.ignored
            if ignored and runner.task.name not in self._ignoring:
                self._ignoring.add(runner.task.name)
                logger.warning(
                    "the model «%s» cannot unlearn: updates, deletes and truncates of rows it learned are ignored, "
                    "and counted (%d so far)",
                    runner.task.name,
                    ignored,
                    extra=event("ignored", app=self.plan.app, model=runner.task.name, rows=ignored),
                )

    def _end(self) -> None:
        self._requests.end()
        if self.workers is not None:
            self.workers.close()
        self._write_queue.end()
        for source in self.sources:
            try:
                source.stop()
            except HeadraceError as error:
                logger.warning("%s: %s", source.name, error.message, extra=event("source_end", source=source.name))
        with self.changed:
            self.finished.set()
            self.changed.notify_all()


def _store(txn: Transaction, captured: Iterable[_Polled]) -> list[Source[Any]]:
    """Put into a transaction how far sources have come with it; return those that then wait for its end."""
    stored = []
    for source, pieces in captured:
        reached = [piece.position for piece in pieces if piece.position is not None]
        if reached:
            source.store(txn, reached[-1])
            stored.append(source)
    return stored
