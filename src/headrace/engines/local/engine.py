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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from headrace.batch import Batch
from headrace.clock import Clock, SystemClock
from headrace.engines.local.admin_requests import Asked, Requests, apply
from headrace.engines.local.tasks import OnStep, TaskRunner
from headrace.engines.local.write_queue import Note, Outbox
from headrace.errors import HeadraceError, LogError, LogFull
from headrace.faults import fault
from headrace.log.base import Log, Transaction
from headrace.log.retention import Keep, apply_retention
from headrace.plan.plan import Plan
from headrace.registry.requests import Request
from headrace.replay.steps import StepRecord, append_fitting, steps_batch
from headrace.step.events import Tick

logger = logging.getLogger("headrace")

IDLE_POLL = 0.2
RETENTION_EVERY = 60.0
FULL_DISK_WAIT = 1.0


class CapturedPiece(Protocol):
    """What a source hands out: rows of whole transactions, or of a part of a large one."""

    @property
    def batches(self) -> tuple[tuple[str, Any], ...]: ...
    @property
    def rejected(self) -> tuple[tuple[str, Any], ...]: ...
    @property
    def rows(self) -> int: ...
    @property
    def continued(self) -> bool: ...
    @property
    def open(self) -> bool: ...
    @property
    def end_lsn(self) -> int: ...


class Source(Protocol):
    """What the engine asks of a captured database; see `headrace.capture.postgres.source`."""

    name: str
    rewound: bool

    @property
    def status(self) -> str: ...
    def poll(self, timeout: float) -> Sequence[CapturedPiece]: ...
    def store(self, txn: Any, end_lsn: int) -> None: ...
    def acknowledge(self) -> None: ...
    def idle_lsn(self) -> int | None: ...
    def received_lsn(self) -> Any: ...
    def current_lsn(self) -> Any: ...
    def request_progress(self, until: Any = None) -> None: ...
    def wake(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(slots=True)
class Progress:
    """What others may look at while the engine runs; replaced, never changed, by the engine's thread.

    Attributes:
        captured: rows appended since the start, by topic.
        done: source -> LSN (of topics: offsets) up to which everything committed is captured, answered and, in
            complete cuts, learned.
        caught_up: whether every task has consumed what the log holds.
        rounds: commits since the start.
        status: one line for people.
    """

    captured: dict[str, int] = field(default_factory=dict)
    done: dict[str, Any] = field(default_factory=dict)
    caught_up: bool = False
    rounds: int = 0
    status: str = "starting"


def _adopt(txn: Any, topic: str, batch: Any, placed: Any, complete: bool) -> None:
    """Take rows in where they lie; see `headrace.log.kafka.KafkaTransaction.adopt`."""
    txn.adopt(topic, batch.records, placed.places, format_=placed.format, spread=placed.spread, complete=complete)


@dataclass(slots=True)
class TickRequest:
    """A model's explicit tick, asked for by another thread."""

    model: str
    done: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Runs a plan's tasks on a log. `run` belongs to one thread; the other methods may be called from any."""

    def __init__(
        self, plan: Plan, log: Log, sources: Sequence[Source], *, keep: Keep | None = None, clock: Clock | None = None
    ) -> None:
        self.plan = plan
        self.log = log
        self.sources = list(sources)
        self.clock = clock or SystemClock()
        self.runners = [TaskRunner(plan, task, log, self.clock) for task in plan.tasks]
        self.keep = keep
        self.progress = Progress()
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self.guard = threading.Lock()
        # Called by the engine's thread after each commit, and with True in each idle round.
        self.after_commit: list[Callable[[bool], None]] = []
        # Called by the engine's thread when a round begins.
        self.each_round: list[Callable[[], None]] = []
        self._stop = threading.Event()
        self._ticks: deque[TickRequest] = deque()
        self._requests = Requests(log, [model.name for model in plan.models])
        self._outbox = Outbox()
        self.holders: list[Callable[[], Mapping[str, int]]] = []
        self._caught_up = False
        self._ignoring: set[str] = set()
        read = {topic for task in plan.tasks for topic in task.topics}
        self._read_here = read & plan.written.keys()
        # On the same cluster a log takes in messages where they lie.
        self._cluster = str(getattr(getattr(log, "location", None), "bootstrap", "no cluster"))
        self._pruned_at = self.clock.monotonic()
        self._round_at = time.monotonic()
        self.round_seconds = 0.0

    @property
    def round_age(self) -> float:
        """Seconds since the last round began."""
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
        if fresh:
            with self.log.transaction() as txn:
                for runner in fresh:
                    runner.store_beginning(txn)

    def run(self) -> None:
        """Rounds until `stop`; the error that ended it otherwise is kept in ``error`` and raised."""
        try:
            while not self._stop.is_set():
                self._round()
            self._save_at_end()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._end()

    def stop(self) -> None:
        """End after the current round."""
        self._stop.set()
        for waiting in (self.log, *self.sources):
            # What waits for a broker, which may be away for long.
            interrupt = getattr(waiting, "interrupt", None)
            if interrupt is not None:
                interrupt()
        for source in self.sources:
            source.wake()

    def request_tick(self, model: str) -> TickRequest:
        """Ask for a tick after everything that is there; the request's event tells when it is recorded."""
        request = TickRequest(model)
        self._ticks.append(request)
        for source in self.sources:
            source.wake()
        return request

    def request(self, request: Request) -> Asked:
        """Ask for another version, or a tag; the answer's event tells when it is recorded or refused."""
        asked = Asked(request)
        self._requests.add(asked)
        for source in self.sources:
            source.wake()
        return asked

    def put_soon(self, topics: Sequence[tuple[str, Batch]], records: Sequence[tuple[str, str, bytes]]) -> Note:
        """Have rows and records (kind, name, value) written in the next round, in its transaction.

        The note's event tells when they are durable, or that the engine has ended before. Any thread may call it.
        """
        note = self._outbox.add(topics, records)
        for source in self.sources:
            source.wake()
        return note

    def wait_for(self, predicate: Callable[[Progress], bool], timeout: float | None) -> bool:
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
        for note in self.each_round:
            note()
        captured = self._poll()
        self._say(self._status())
        received = {source.name: source.received_lsn() for source in self.sources}
        if captured or not self._caught_up or self._asked or self._ticks_due() or self._trained():
            begun = time.monotonic()
            self._commit_until_done(captured)
            self.round_seconds = time.monotonic() - begun
        else:
            self._store_idle()
            for told in self.after_commit:
                told(True)
        self._prune()
        if self._caught_up:
            self._tell(received)

    def _poll(self) -> list[tuple[Source, Sequence[CapturedPiece]]]:
        self._requests.look(self.clock)
        busy = not self._caught_up or self._asked
        timeout = 0.0 if busy else IDLE_POLL / max(1, len(self.sources))
        if not self.sources and not busy:
            self._stop.wait(IDLE_POLL)
        polled = [(source, source.poll(timeout)) for source in self.sources]
        return [(source, pieces) for source, pieces in polled if pieces or source.rewound]

    @property
    def _asked(self) -> bool:
        return bool(self._ticks) or bool(self._requests) or bool(self._outbox)

    def _trained(self) -> bool:
        # Each is asked: that is what begins a training.
        ended = [runner.trained for runner in self.runners]
        return any(ended)

    def _commit_until_done(self, captured: list[tuple[Source, Sequence[CapturedPiece]]]) -> None:
        """Commit; what undoes a round for now (a full disk, a broker or a registry that is away) is waited for.

        The round is tried again, with the same rows.
        """
        while True:
            ticks, asked = list(self._ticks), self._requests.take()
            try:
                self._commit(captured, asked)
                return
            except HeadraceError as error:
                self._requests.give_back(asked)
                self._outbox.give_back()
                self._wait_for(error)
                self._ticks.extendleft(reversed(ticks))

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

    def _commit(self, captured: list[tuple[Source, Sequence[CapturedPiece]]], asked: Sequence[Asked]) -> None:
        counts = dict(self.progress.captured)
        ticks = [self._ticks.popleft() for _ in range(len(self._ticks))]
        with self.guard, self.log.transaction() as txn:
            for source, pieces in captured:
                if source.rewound:
                    txn.discard_staged()
                for piece in pieces:
                    self._append(txn, source, piece, counts)
                end_lsn = max((piece.end_lsn for piece in pieces), default=0)
                if end_lsn:
                    source.store(txn, end_lsn)
            self._outbox.write(txn)
            fault("engine.captured")
            more = self._step_all(txn, ticks, asked)
            fault("engine.stepped")
        fault("engine.committed")
        for told in self.after_commit:
            told(False)
        for source, _ in captured:
            source.rewound = False
            source.acknowledge()
        fault("engine.acknowledged")
        self._outbox.finish()
        for request in ticks:
            request.done.set()
        for one in asked:
            one.finish()
        self._say_ignored()
        self._caught_up = not more
        old = self.progress
        self.progress = replace(old, captured=counts, caught_up=False, rounds=old.rounds + 1)

    def _append(self, txn: Transaction, source: Source, piece: CapturedPiece, counts: dict[str, int]) -> None:
        txn.next_slice()
        whole = not piece.open and not piece.continued
        complete = bool(getattr(piece, "complete", True))
        placed = getattr(piece, "placed", ()) if getattr(source, "cluster", "") == self._cluster else ()
        for i, (topic, batch) in enumerate((*piece.batches, *piece.rejected)):
            if i < len(placed):
                _adopt(txn, topic, batch, placed[i], complete)
            elif whole:
                append_fitting(txn, topic, batch, stage="capture", complete=complete)
            else:
                txn.stage(topic, batch.records)
            counts[topic] = counts.get(topic, 0) + batch.num_rows
        if piece.continued and not piece.open:
            txn.publish()

    def _step_all(self, txn: Transaction, requests: Sequence[TickRequest], asked: Sequence[Asked] = ()) -> bool:
        """Let every task step once, and tick where time has passed; whether there is more to do at once.

        Other versions that were asked for come first: rows that have come meanwhile are theirs, where no cut is open.
        """
        stepped: list[tuple[TaskRunner, StepRecord]] = []
        for runner in self.runners:
            wanted = [apply(txn, runner, one) for one in asked if one.request.model == runner.task.name]
            stepped += [(runner, swapped) for swapped in wanted if swapped is not None]
            if runner.trained:
                stepped.append((runner, runner.take_trained(txn)))
            record = runner.advance(txn)
            if record is not None:
                stepped.append((runner, record))
            stepped += [(runner, runner.tick(txn, tick)) for tick in self._ticks_for(runner, requests, record)]
        if stepped:
            txn.next_slice()
            first = txn.append(self.plan.steps_topic, steps_batch([record for _, record in stepped]))
            ends = {id(runner): first + i + 1 for i, (runner, _) in enumerate(stepped)}
            for runner in dict.fromkeys(runner for runner, _ in stepped):
                runner.save(txn, ends[id(runner)])
        return any(runner.more or self._read_here & record.outputs.keys() for runner, record in stepped)

    def _ticks_for(self, runner: TaskRunner, requests: Sequence[TickRequest], stepped: StepRecord | None) -> list[Tick]:
        """Ticks that were asked for, and the one that closes an idle cut: only where no row has just come."""
        now = self.clock.now_us()
        ticks = [Tick(now, explicit=True) for request in requests if request.model == runner.task.name]
        due = None if stepped else runner.due_tick(now)
        return ticks or ([due] if due is not None else [])

    def _ticks_due(self) -> bool:
        now = self.clock.now_us()
        return any(runner.due_tick(now) is not None for runner in self.runners)

    def _store_idle(self) -> None:
        """Let the slot move when only other tables are written: store the position, then acknowledge it."""
        for source in self.sources:
            lsn = source.idle_lsn()
            if lsn is not None:
                try:
                    with self.log.transaction() as txn:
                        source.store(txn, lsn)
                except HeadraceError as error:
                    if not error.retry:
                        raise
                    # Nothing is lost: the next idle round tries again.
                    self._say_waiting(error)
                    return
                source.acknowledge()

    def _prune(self) -> None:
        if self.keep is None or self.clock.monotonic() - self._pruned_at < RETENTION_EVERY:
            return
        self._pruned_at = self.clock.monotonic()
        apply_retention(self.log, self.keep, self.needed(), self.clock.now_us())

    def needed(self) -> Mapping[str, int]:
        """Topic -> the oldest offset that a task's recovery still reads, or a sink has not delivered."""
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
        if not unsaved:
            return
        try:
            with self.log.transaction() as txn:
                for runner in unsaved:
                    runner.save_at_end(txn)
        except HeadraceError as error:
            # Nothing is lost: what was done since the last checkpoint is repeated at the next start.
            logger.warning("the models' states were not stored at the end: %s", error.message)

    # -- telling others --------------------------------------------------------------------------------------------

    def _tell(self, received: Mapping[str, Any]) -> None:
        old = self.progress
        if not old.caught_up or any(old.done.get(name) != lsn for name, lsn in received.items()):
            with self.changed:
                self.progress = replace(old, done={**old.done, **received}, caught_up=True)
                self.changed.notify_all()

    def _say(self, status: str) -> None:
        """One line for people, logged where it changes: a warning when something is being waited for."""
        if status != self.progress.status:
            waiting = "again" in status or "waiting" in status
            logger.log(logging.WARNING if waiting else logging.INFO, "%s", status)
            self.progress = replace(self.progress, status=status)

    def _say_waiting(self, error: HeadraceError) -> None:
        what = "disk space" if isinstance(error, LogFull) else "the log" if isinstance(error, LogError) else "a server"
        self._say(f"waiting for {what}: {error.message}; trying again")

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
                )

    def _status(self) -> str:
        return "; ".join(f"{source.name}: {source.status}" for source in self.sources) or "running"

    def _end(self) -> None:
        self._requests.end()
        self._outbox.end()
        for source in self.sources:
            try:
                source.stop()
            except HeadraceError as error:
                self._say(f"{source.name}: {error.message}")
        with self.changed:
            self.finished.set()
            self.changed.notify_all()
