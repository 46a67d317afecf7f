"""Runs the sinks of a pipeline: each in a thread of its own, with a reader of its own, from a position of its own.

A sink sees what is committed. It reads its topic after each of the engine's rounds, applies the stream's operations and
hands the rows on in parts; an error of the destination closes it, and it starts again, after a pause, where the
destination (or the log) says it is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.arrays import Ints
from headrace.batch import OPS, Batch, dead_letters
from headrace.errors import HeadraceError, SinkError, WaitTimeout
from headrace.event_log import event
from headrace.faults import fault
from headrace.log.base import Entry, Log
from headrace.plan.sinks import SinkPlan, key_sources
from headrace.retry import Backoff
from headrace.sinks.base import (
    ORDER,
    ROW_ERRORS,
    Reason,
    Sink,
    SinkBatch,
    Stopped,
    error_text,
    left_rows,
    unreadable,
)
from headrace.transform.expressions import Filter, Operation, Select, Transform, WithColumns, evaluate, operate

if TYPE_CHECKING:
    from headrace.engines.local.engine import Engine

logger = logging.getLogger("headrace")

KIND = "sink"
LOOK_S = 0.02
STOP_S = 5.0
EVERYTHING = 1 << 62


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """The state of a sink that runs, for others to look at.

    Attributes:
        status: one line for people: running, what it waits for, or that it has stopped.
        position: the offset of the first row of the topic that is not delivered; None before it is known.
        delivered, refused: rows since the start.
        waiting: whether the destination, not the topic, is what it waits for; ``waiting_since`` by the monotonic clock.
    """

    name: str
    topic: str
    where: str
    status: str = "starting"
    position: int | None = None
    delivered: int = 0
    refused: int = 0
    waiting: bool = False
    waiting_since: float = 0.0

    @property
    def waiting_seconds(self) -> float:
        """Return how long the destination has been away."""
        return time.monotonic() - self.waiting_since if self.waiting else 0.0


class _RowsAtFault(Exception):
    """A library failed on what rows hold: they are delivered in smaller parts, and the one at fault is refused."""

    def __init__(self, part: SinkBatch, error: Exception) -> None:
        super().__init__(error_text(error))
        self.first, self.rows = part.first, part.end - part.first


class LogSinkContext:
    """The log's side of one sink; see `headrace.sinks.base.SinkContext`.

    Its record (``sink`` APP/SINK/TOPIC) holds ``next``, and ``refused``: offsets of rows that are in the dead letters
    already while the destination's position may still be before them.
    """

    def __init__(self, engine: Engine, plan: SinkPlan, log_id: str, runner: SinkRunner) -> None:
        self.app = engine.plan.app
        self.sink = plan.name
        self.topic = plan.stream.topic
        self.log_id = log_id
        self._engine = engine
        self._runner = runner
        self._name = f"{self.app}/{self.sink}/{self.topic}"
        known = engine.log.records(KIND, self._name).get(self._name)
        self._record: dict[str, object] = json.loads(known) if known else {}

    @property
    def position(self) -> int:
        """See `SinkContext.position`."""
        return int(str(self._record.get("next", 0)))

    def refuse(self, part: SinkBatch, reasons: Sequence[Reason]) -> None:
        """See `SinkContext.refuse`."""
        found = self._record.get("refused")
        known = {offset for offset in found if offset >= part.first} if isinstance(found, list) else set()
        new = [(row, reason) for row, reason in reasons if int(part.offsets[row]) not in known]
        if new:
            offsets = sorted(known | {int(part.offsets[row]) for row, _ in new})
            self._write([self._letters(part, new)], {**self._record, "refused": offsets})
            self._runner.count_refused(len(new))

    def keep(
        self,
        position: int,
        *,
        outputs: Iterable[tuple[str, Batch]] = (),
        refused: tuple[SinkBatch, Sequence[Reason]] | None = None,
    ) -> None:
        """See `SinkContext.keep`."""
        topics = [*outputs, *([self._letters(*refused)] if refused else [])]
        self._write(topics, {**self._record, "next": position})
        if refused:
            self._runner.count_refused(len(refused[1]))

    def pause(self, seconds: float, why: str) -> None:
        """See `SinkContext.pause`."""
        self._runner.pause(seconds, why)

    def _letters(self, part: SinkBatch, reasons: Sequence[Reason]) -> tuple[str, Batch]:
        rows = part.take(np.array([row for row, _ in reasons], np.int64))
        texts = [f"{self.sink}: {reason}" for _, reason in reasons]
        return f"{part.topic}.dlq", dead_letters(rows.batch, texts, stage="sink")

    def _write(self, topics: Sequence[tuple[str, Batch]], record: dict[str, object]) -> None:
        pending = self._engine.write_soon(topics, [(KIND, self._name, json.dumps(record).encode())])
        pending.done.wait()
        if not pending.written:
            raise Stopped
        self._record = record


class SinkRunner:
    """One sink, running. `start`, `stop` and what looks at it belong to other threads than its own.

    Args:
        reader: gives a log to read from, and whether it is to be closed.
        late: is called before the destination is opened for the first time; an error is one of the destination.
    """

    def __init__(
        self,
        plan: SinkPlan,
        engine: Engine,
        log_id: str,
        reader: Callable[[], tuple[Log, bool]],
        late: Callable[[], None] | None = None,
    ) -> None:
        self.plan = plan
        self._late = late
        self.status = SinkStatus(plan.name, plan.stream.topic, plan.spec.where)
        self._engine = engine
        self._log_id = log_id
        self._reader = reader
        self._changed = threading.Condition()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._hurry = 0
        self._since: float | None = None
        self._sink: Sink | None = None
        self._context: LogSinkContext | None = None
        self._limit: int | None = None
        self._doomed: tuple[int, str] | None = None
        # Of a copy of a captured table, the columns of the table that its key is.
        copied = plan.spec.key and any(source.captures(plan.stream.topic) for source in engine.plan.sources)
        self._source_key = (key_sources(plan.stream.operations, plan.spec.key) or []) if copied else []
        self._operations = tuple(
            _keeping_order(operation, copies=bool(plan.spec.key)) for operation in plan.stream.operations
        )
        self._thread = threading.Thread(target=self._run, name=f"headrace-sink-{plan.name}", daemon=True)

    # -- others -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver."""
        self._thread.start()

    def look(self) -> None:
        """See at once whether a round has committed something."""
        self._wake.set()

    def hurry(self, position: int) -> None:
        """Do not wait for more rows before those up to a position are delivered."""
        self._hurry = max(self._hurry, position)
        self._wake.set()

    def wait(self, position: int, timeout: float) -> bool:
        """Wait until everything before a position is delivered; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: (self.status.position or 0) >= position, timeout)

    def stop(self) -> None:
        """Ask it to end. What a sink has held back for larger files is written first."""
        self._stop.set()
        self.hurry(EVERYTHING)

    def join(self, deadline: float) -> None:
        """Wait for its end; a call that waits for the destination is broken off at half the time."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()) / 2)
        sink = self._sink
        if self._thread.is_alive() and sink is not None:
            sink.cancel()
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            logger.warning(
                "the sink «%s» does not end: its destination does not answer",
                self.plan.name,
                extra=event("sink_stuck", sink=self.plan.name),
            )

    # -- its own thread -----------------------------------------------------------------------------------------------

    def count_refused(self, rows: int) -> None:
        """Rows that went to the dead letters."""
        self._say(refused=self.status.refused + rows)

    def pause(self, seconds: float, why: str) -> None:
        """Wait for the destination, and say so.

        Raises:
            Stopped: the pipeline ends meanwhile.
        """
        if why != self.status.status.removeprefix("waiting: "):
            logger.warning(
                "the sink «%s» waits: %s", self.plan.name, why, extra=event("sink_waits", sink=self.plan.name)
            )
        since = self.status.waiting_since if self.status.waiting else time.monotonic()
        self._say(status=f"waiting: {why}", waiting=True, waiting_since=since)
        if self._stop.wait(seconds):
            raise Stopped

    def _say_again(self) -> None:
        """Say that the destination is there again, where it was waited for."""
        if self.status.waiting and self.status.waiting_since is not None:
            seconds = time.monotonic() - self.status.waiting_since
            about = event("sink_goes_on", sink=self.plan.name, seconds=round(seconds, 3))
            logger.info("the sink «%s» goes on after %.1f s", self.plan.name, seconds, extra=about)

    def _say(self, **changes: object) -> None:
        with self._changed:
            self.status = replace(self.status, **changes)  # type: ignore[arg-type]  # fields of the status, by name
            self._changed.notify_all()

    def _run(self) -> None:
        backoff = Backoff()
        while True:
            try:
                try:
                    self._follow(backoff)
                    break
                except HeadraceError as error:
                    self.pause(backoff.next(), error.message + (f" ({error.advice})" if error.advice else ""))
                except Stopped:
                    raise
                except _RowsAtFault as error:
                    self._narrow(error)
                except Exception as error:
                    # Nothing of it is known: it is said, and tried again, as for any destination.
                    logger.exception(
                        "the sink «%s» failed", self.plan.name, extra=event("sink_failed", sink=self.plan.name)
                    )
                    self.pause(backoff.next(), f"{type(error).__name__}: {error}")
            except Stopped:
                break
        self._say(status="stopped", waiting=False)

    def _narrow(self, error: _RowsAtFault) -> None:
        """Deliver less at once from where the sink is; a row that fails alone is refused."""
        if self._doomed is not None and self._doomed[0] == error.first:
            self._doomed = None  # it failed without any row: it is not the row's fault
            self.pause(1.0, str(error))
        elif error.rows > 1:
            self._limit = max(1, error.rows // 2)
        else:
            self._doomed = (error.first, str(error))

    def _follow(self, backoff: Backoff) -> None:
        """Open the destination and deliver until the pipeline stops."""
        with contextlib.ExitStack() as stack:
            reader, ours = self._reader()
            if ours:
                stack.callback(reader.close)
            self._context = LogSinkContext(self._engine, self.plan, self._log_id, self)
            self._sink = sink = self.plan.spec.sink(self._context)
            stack.callback(sink.close)
            if self._late is not None:
                self._late()
            position = sink.open()
            self._late = None
            self._check(reader, position)
            self._say_again()
            self._say(position=position, status="running", waiting=False)
            self._since = None
            seen = -1
            while True:
                stopping = self._stop.is_set()
                rounds = self._engine.progress.rounds
                if rounds == seen and self._since is None and not stopping:
                    self._wake.wait(LOOK_S)
                    self._wake.clear()
                    continue
                entries = self._due(sink, reader, position) if not stopping or sink.linger else []
                if entries:
                    position = self._deliver(sink, entries, position)
                    backoff.reset()
                    continue
                if stopping:
                    return
                # On a cluster a reader sees a commit a little later than its writer.
                seen = rounds if self._end(self._engine.log) <= position else -1
                if seen < 0 or self._since is not None:
                    self._wake.wait(LOOK_S)
                    self._wake.clear()

    def _check(self, reader: Log, position: int) -> None:
        # What a reader does not see yet, the writer knows.
        end = max(self._end(reader), self._end(self._engine.log))
        info = reader.topics().get(self.plan.stream.topic)
        if position > end:
            raise SinkError(
                f"{self.plan.spec.where} has rows up to offset {position} of {self.plan.stream.topic}, which in this "
                f"log ends at {end}: the log was put back to an earlier state",
                advice="Give the sink another name=… and an empty destination.",
            )
        if info is not None and position < info.first:
            logger.warning(
                "the sink «%s» stands at offset %d of %s, whose rows before %d are not kept any more",
                self.plan.name, position, info.name, info.first, extra=event("rows_not_kept", sink=self.plan.name),
            )  # fmt: skip

    def _end(self, log: Log) -> int:
        info = log.topics().get(self.plan.stream.topic)
        return 0 if info is None else info.end

    def _due(self, sink: Sink, reader: Log, position: int) -> list[Entry]:
        """Entries to deliver now; none where there are none, or where a larger part is waited for."""
        if sink.linger:
            pending = self._end(reader) - position
            if pending <= 0:
                self._since = None
                return []
            now = time.monotonic()
            self._since = now if self._since is None else self._since
            if (
                self._limit is None
                and pending < sink.rows
                and now - self._since < sink.linger
                and self._hurry <= position
            ):
                return []
        self._since = None
        rows = self._rows(sink, position)
        found = reader.read_topic(self.plan.stream.topic, offset=position, limit=rows)
        behind = position - found[0].offset if found else 0
        if sink.linger and behind > 0:
            # The first entry begins before the position: so many more make a whole part.
            found = reader.read_topic(self.plan.stream.topic, offset=position, limit=rows + behind)
        return found

    def _rows(self, sink: Sink, position: int) -> int:
        """Return how many rows of the topic are delivered at once."""
        if self._doomed is not None and self._doomed[0] == position:
            return 1
        return sink.rows if self._limit is None else min(sink.rows, self._limit)

    def _deliver(self, sink: Sink, entries: Sequence[Entry], position: int) -> int:
        fault("sink.read")
        assert self._context is not None
        topic = self.plan.stream.topic
        batch, end = _joined(entries, position, self._rows(sink, position))
        untold = _untold(batch, self._source_key) if self._source_key else {}
        if untold:
            rows = np.array(sorted(untold), np.int64)
            part = SinkBatch(topic, position, end, *_rows([batch.take(rows)], batch))
            self._context.refuse(part, [(i, untold[row]) for i, row in enumerate(rows.tolist())])
            batch = batch.take(left_rows(batch.num_rows, untold))
        good, bad = operate(_with_old_keys(batch, self.plan), self._operations)
        if bad:
            whole = SinkBatch(topic, position, end, *_rows([row for row, _ in bad], batch))
            self._context.refuse(whole, [(i, reason) for i, (_, reason) in enumerate(bad)])
        for part in _parts(topic, position, end, good, batch):
            refused = self.status.refused
            try:
                sink.deliver(self._readable(part))
            except ROW_ERRORS as error:
                raise _RowsAtFault(part, error) from error
            fault("sink.delivered")
            taken = part.batch.num_rows - (self.status.refused - refused)
            self._say(position=part.end, delivered=self.status.delivered + taken, status="running", waiting=False)
        self._doomed = None
        self._limit = None if self._limit is None or self._limit >= sink.rows else 2 * self._limit
        return end

    def _readable(self, part: SinkBatch) -> SinkBatch:
        """The part without rows that no destination can be given, which are refused."""
        wrong = unreadable(part.batch.rows)
        if self._doomed is not None and self._doomed[0] == part.first:
            wrong = dict.fromkeys(range(part.batch.num_rows), self._doomed[1])
        if not wrong:
            return part
        assert self._context is not None
        self._context.refuse(part, sorted(wrong.items()))
        return part.take(left_rows(part.batch.num_rows, wrong))


class SinkRunners:
    """All sinks of a pipeline.

    Args:
        reader: gives a log to read from, and whether it is to be closed.
        late: what is checked of a sink before it is opened, because it could not be at the start.
    """

    def __init__(
        self,
        plans: Sequence[SinkPlan],
        engine: Engine,
        log: Log,
        reader: Callable[[], tuple[Log, bool]],
        *,
        late: Callable[[SinkPlan], Callable[[], None] | None] = lambda plan: None,
    ) -> None:
        self._engine = engine
        log_id = _identity(log) if plans else ""
        self.runners = [SinkRunner(plan, engine, log_id, reader, late(plan)) for plan in plans]

    def start(self) -> None:
        """Start them all; the engine's thread writes what they want written, and wakes them after each round."""
        for runner in self.runners:
            runner.start()
            # A round begins when the one before it is done: what that one committed is there to be delivered.
            self._engine.each_round.append(runner.look)

    @property
    def status(self) -> dict[str, SinkStatus]:
        """By the sinks' names."""
        return {runner.plan.name: runner.status for runner in self.runners}

    def needed(self) -> Mapping[str, int]:
        """Topic -> the oldest offset that is not delivered everywhere; 0 while a position is not known."""
        needed: dict[str, int] = {}
        for runner in self.runners:
            topic, position = runner.plan.stream.topic, runner.status.position or 0
            needed[topic] = min(needed.get(topic, position), position)
        return needed

    def wait(self, log: Log, deadline: float | None, failed: Callable[[], bool]) -> None:
        """Until what the topics hold now is delivered.

        Args:
            deadline: on the monotonic clock; None: never.
            failed: whether the pipeline has ended, so that there is nothing to wait for.

        Raises:
            WaitTimeout: the deadline came first; the message says which sink waits for what.
        """
        topics = log.topics()
        wanted = [
            (runner, topics[runner.plan.stream.topic].end)
            for runner in self.runners
            if runner.plan.stream.topic in topics
        ]
        for runner, end in wanted:
            runner.hurry(end)
        for runner, end in wanted:
            while not runner.wait(end, 0.05 if deadline is None else min(0.05, max(0.0, deadline - time.monotonic()))):
                if failed():
                    raise HeadraceError("the pipeline was stopped before its sinks had delivered everything")
                if deadline is not None and time.monotonic() >= deadline:
                    now = runner.status
                    raise WaitTimeout(
                        f"the sink «{now.name}» has delivered {now.topic} up to offset {now.position or 0} of {end} "
                        f"({now.status})"
                    )

    def stop(self) -> None:
        """End them all, within some seconds."""
        for runner in self.runners:
            runner.stop()
        deadline = time.monotonic() + STOP_S
        for runner in self.runners:
            runner.join(deadline)


def _identity(log: Log) -> str:
    """The log's own name, made when its first sink is declared: positions in destinations are positions in this log."""
    known = log.records(KIND, "log").get("log")
    if known is None:
        known = uuid.uuid4().hex.encode()
        with log.transaction() as txn:
            txn.put(KIND, "log", known)
    return known.decode()


def _joined(entries: Sequence[Entry], position: int, limit: int) -> tuple[Batch, int]:
    """Rows from a position on, of the first entries that have one schema; with their offsets in ``__order``."""
    schema = entries[0].records.schema
    found: list[pa.RecordBatch] = []
    rows, offset = 0, max(position, entries[0].offset)
    for entry in entries:
        if rows >= limit or not entry.records.schema.equals(schema):
            break
        part = entry.records.slice(max(0, position - entry.offset), limit - rows)
        found.append(part)
        rows += part.num_rows
    records = _whole(found)
    names = plain_values.distinct(records.schema.names)
    if names != records.schema.names:
        records = records.rename_columns(names).replace_schema_metadata(schema.metadata)
    return Batch(_numbered(records, np.arange(offset, offset + rows, dtype=np.int64))), offset + rows


def _numbered(records: pa.RecordBatch, offsets: Ints) -> pa.RecordBatch:
    kept = records.drop_columns([ORDER]) if ORDER in records.schema.names else records
    return kept.append_column(ORDER, pa.array(offsets))


def _whole(records: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return records[0] if len(records) == 1 else pa.Table.from_batches(records).combine_chunks().to_batches()[0]


def _rows(batches: Sequence[Batch], like: Batch) -> tuple[Batch, Ints]:
    """Rows of one schema, and their offsets; none of ``like`` where there are none."""
    whole = _whole([batch.records for batch in batches] or [like.records.slice(0, 0)])
    return Batch(whole.drop_columns([ORDER])), np.asarray(whole.column(ORDER)).astype(np.int64)


def _parts(topic: str, first: int, end: int, good: Sequence[Batch], like: Batch) -> Iterator[SinkBatch]:
    """Yield what came of the rows, in batches of one schema each; together they cover all offsets."""
    filled = (batch for batch in good if batch.num_rows)
    runs = [list(run) for _, run in itertools.groupby(filled, key=lambda batch: batch.schema)]
    for number, run in enumerate(runs or [[]]):
        batch, offsets = _rows(run, like)
        following = runs[number + 1][0] if number + 1 < len(runs) else None
        until = end if following is None else int(following.column(ORDER)[0].as_py())
        yield SinkBatch(topic, first, until, batch, offsets)
        first = until


def _keeping_order(operation: Operation, *, copies: bool) -> Operation:
    """The same operation; a function of the user's own that drops the rows' offsets gets them back.

    Where it drops rows too, nobody knows which: it is then applied to each row by itself (`operate` halves what fails).

    Args:
        copies: the destination has rows by key: a filter does not keep deletes and truncates from it, whose other
            columns are not known.
    """
    if isinstance(operation, Filter) and copies:
        return Transform(partial(_filtered, operation))
    if not isinstance(operation, Transform):
        return operation
    function = operation.function

    def numbered(batch: Batch) -> Batch:
        result = function(batch)
        if not isinstance(result, Batch) or ORDER in result.schema.names:
            return result
        offsets = np.asarray(batch.column(ORDER)).astype(np.int64)
        if result.num_rows != batch.num_rows:
            if batch.num_rows > 1:
                raise ValueError("rows were dropped or added")
            offsets = np.repeat(offsets, result.num_rows)
        return Batch(_numbered(result.records, offsets))

    return Transform(numbered)


def _filtered(operation: Filter, batch: Batch) -> Batch:
    kept = np.isin(batch.op, (OPS["d"], OPS["t"]))
    rest = np.flatnonzero(~kept)
    if rest.size:
        kept[rest] = np.asarray(pc.fill_null(evaluate(operation.expression, batch.take(rest)), False))
    return batch.filter(kept)


def _untold(batch: Batch, key: Sequence[str]) -> dict[int, str]:
    """Updates of which nobody knows the key that the row had: the replica identity was changed meanwhile."""
    told = batch.identity_columns
    if set(key) <= set(told):
        return {}
    known = np.zeros(batch.num_rows, np.bool_)
    before = batch.before
    if before is not None and all(before.type.get_field_index(name) >= 0 for name in key):
        valid = {field.name: np.asarray(pc.struct_field(before, field.name).is_valid()) for field in before.type}
        whole = [valid[name] for name in valid if name not in told]
        # A whole old row tells the key also where it was null: it was in no copy then.
        known = np.logical_and.reduce([valid[name] for name in key]) | np.logical_or.reduce(whole)
    reason = (
        f"the replica identity tells only «{', '.join(told)}» of the row that was: its place in the copy is not known"
    )
    return dict.fromkeys(np.flatnonzero((batch.op == OPS["u"]) & ~known).tolist(), reason)


def _with_old_keys(batch: Batch, plan: SinkPlan) -> Batch:
    """The batch with the keys that updated rows had as the operations make them: they name and compute columns."""
    key, before = plan.spec.key, batch.before
    computing = [operation for operation in plan.stream.operations if isinstance(operation, Select | WithColumns)]
    if (
        not key
        or before is None
        or not computing
        or any(isinstance(operation, Transform) for operation in plan.stream.operations)
    ):
        return batch
    rows = np.flatnonzero(np.asarray(before.is_valid()))
    some = before.take(pa.array(rows))
    old = Batch(_numbered(Batch.of(pa.RecordBatch.from_struct_array(some)).records, rows.astype(np.int64)))
    # An old row may hold its key only: where an operation needs more, nobody knows what the key was.
    parts, _ = operate(old, computing)
    parts = [part for part in parts if all(name in part.column_names for name in key)]
    keys, found = _rows([Batch(part.records.select([*key, ORDER])) for part in parts], old) if parts else (None, rows)
    if keys is None:
        return Batch(batch.records.drop_columns(["__before"]))
    where = np.zeros(batch.num_rows, np.int64)
    known = np.zeros(batch.num_rows, np.bool_)
    where[found], known[found] = np.arange(found.size), True
    structs = keys.records.select(list(key)).to_struct_array().take(pa.array(where, mask=~known))
    place = batch.records.schema.get_field_index("__before")
    return Batch(batch.records.set_column(place, "__before", structs))
