"""Steps on a log: what each consumed and wrote, the rows that they and trainings read, rows appended as they fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import Batch, as_events, dead_letters, present
from headrace.inspect.query import Names, joined, query_topics, with_numbers
from headrace.log.base import Entry, Log, Transaction, rows_between, walk
from headrace.plain_values import json_texts, rows
from headrace.plan.operators import StreamPlan
from headrace.plan.task import ModelTask
from headrace.step.events import Part, Rows
from headrace.step.state import State

# The last step of a task is sought among so many records, from the end on.
NEAR, LOOKED_AT = 256, 65_536
STEPS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("step", pa.int64()),
        ("after_slice", pa.int64()),
        ("slice", pa.int64()),
        ("inputs", pa.string()),
        ("outputs", pa.string()),
        ("tick_us", pa.int64()),
        ("explicit", pa.bool_()),
        ("hash", pa.string()),
        ("position", pa.string()),
        ("event", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One row of the steps topic: what a step consumed, in which order, and what it wrote.

    Attributes:
        after_slice, slice: it consumed the slices after the one and up to the other.
        inputs, outputs: topic -> [first offset, next offset].
        tick_us, explicit: a tick, which consumed nothing.
        hash: of the learner afterwards, where it was taken.
        event: ``{"swap": …}`` of a step in which another version was asked for (`headrace.replay.lineage`),
            ``{"train": …}`` of one in which a training was, ``{"idle": …}`` of a tick.
    """

    task: str
    step: int
    after_slice: int
    slice: int
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    tick_us: int | None
    explicit: bool
    hash: str | None
    position: str | None
    event: dict[str, Any] | None = None


def steps_batch(records: Sequence[StepRecord]) -> pa.RecordBatch:
    """Step records as rows of the steps topic."""
    values = [_VALUES_OF_STEP(record) for record in records]
    # Column by column: `from_pylist` takes ten times as long for one row, and there is one in every commit.
    arrays = [
        pa.array([json.dumps(value) if isinstance(value, dict) else value for value in column], field.type)
        for column, field in zip(zip(*values, strict=True), STEPS_SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=STEPS_SCHEMA)


def read_steps(log: Log, topic: str, task: str, offset: int) -> Iterator[StepRecord]:
    """Yield a task's step records from an offset of the steps topic on."""
    for entry in walk(log, topic, offset):
        for row in entry.records.slice(max(0, offset - entry.offset)).to_pylist():
            if row["task"] == task:
                yield _step_of(row)


def _step_of(row: dict[str, Any]) -> StepRecord:
    for name in ("inputs", "outputs", "event"):
        row[name] = json.loads(row[name]) if row.get(name) else None  # older logs record no events
    return StepRecord(**row)


def last_step(log: Log, topic: str, task: str, end: int) -> StepRecord | None:
    """Return a task's last step record before an offset of the steps topic; None where none of the last is its own."""
    for first in range(end - NEAR, end - LOOKED_AT, -NEAR):
        own = [record for record in _steps_between(log, topic, max(0, first), first + NEAR) if record.task == task]
        if own or first <= 0:
            return own[-1] if own else None
    return None


def first_step(log: Log, topic: str, task: str, offset: int) -> StepRecord | None:
    """Return a task's first step record from an offset of the steps topic on; None where none of the first is its."""
    found = _steps_between(log, topic, offset, offset + NEAR)
    return next((record for record in found if record.task == task), None)


def _steps_between(log: Log, topic: str, first: int, end: int) -> list[StepRecord]:
    return [_step_of(row) for records in rows_between(log, topic, first, end) for row in rows(records)]


_VALUES_OF_STEP = attrgetter(*STEPS_SCHEMA.names)


@dataclass(frozen=True, slots=True)
class Load:
    """Rows read for one step, and where they came from."""

    event: Rows
    slice: int
    inputs: dict[str, list[int]]
    rows: int
    bytes: int


def load_rows(
    log: Log,
    topics: Sequence[str],
    *,
    after: int,
    until: int | None = None,
    limit: int = 65_536,
    arrivals: bool = False,
) -> Load | None:
    """Return the next slices of some topics as one event, None when there are none.

    Args:
        arrivals: whether it is wanted when each row was taken in.
    """
    entries = log.read(topics, after=after, until=until, limit=limit)
    if not entries:
        return None
    parts: list[Part] = []
    inputs: dict[str, list[int]] = {}
    for topic in topics:
        mine = [entry for entry in entries if entry.topic == topic]
        if mine:
            inputs[topic] = [mine[0].offset, mine[-1].offset + mine[-1].records.num_rows]
            parts += _parts(mine, arrivals)
    complete = entries[-1].complete or _transaction_ends(log, topics, entries[-1])
    rows, size = sum(e.records.num_rows for e in entries), sum(e.records.nbytes for e in entries)
    return Load(Rows(tuple(parts), complete), entries[-1].slice, inputs, rows, size)


def _parts(entries: list[Entry], arrivals: bool) -> Iterator[Part]:
    """Entries of one topic, joined where the schema stays the same."""
    start = 0
    for i in range(1, len(entries) + 1):
        if i == len(entries) or not entries[i].records.schema.equals(
            entries[start].records.schema, check_metadata=True
        ):
            run = entries[start:i]
            records = run[0].records if len(run) == 1 else pa.concat_batches([entry.records for entry in run])
            slices = np.repeat([entry.slice for entry in run], [entry.records.num_rows for entry in run])
            arrived = None
            if arrivals:
                arrived = np.repeat([entry.ts_us for entry in run], [entry.records.num_rows for entry in run])
            yield Part(run[0].topic, as_events(records), slices, run[0].offset, arrived)
            start = i


def _transaction_ends(log: Log, topics: Sequence[str], last: Entry) -> bool:
    """Return whether the rows after an incomplete slice belong to another transaction.

    The rest of a large transaction may lie in other topics only. What is visible is committed, so there is nothing
    to wait for: the next entry decides.
    """
    following = log.read(topics, after=last.slice, limit=1)
    if not following or "__lsn" not in last.records.schema.names:
        return True
    return bool(following[0].records.column("__lsn")[0] != last.records.column("__lsn")[-1])


def append_fitting(
    txn: Transaction,
    topic: str,
    batch: Batch,
    *,
    stage: str,
    complete: bool = True,
    letters: Callable[[str, Batch], None] = lambda topic, batch: None,
) -> list[tuple[str, int, int]]:
    """Append rows; those that the log cannot hold go to the dead-letter topic, without the row that is too large.

    Args:
        letters: told of dead letters among what is appended.

    Returns:
        Topic, first offset and number of rows of each append.
    """
    if topic.endswith(".dlq") and "reason" in batch.schema.names:
        letters(topic, batch)
    refused = txn.oversized(topic, batch.records)
    if not refused:
        return [(topic, txn.append(topic, batch.records, complete=complete), batch.num_rows)]
    rows = np.array(sorted(refused))
    keep = np.ones(batch.num_rows, np.bool_)
    keep[rows] = False
    bad = batch.take(rows)
    keys = pa.RecordBatch.from_pydict({name: bad.column(name) for name in bad.key_columns if name in bad.column_names})
    texts = json_texts(keys) if keys.num_columns else ["{}"] * len(rows)
    made = dead_letters(bad, [refused[row] for row in rows.tolist()], stage=stage, rows=texts)
    letters(f"{topic}.dlq", made)
    kept = batch.filter(keep)
    done = [(topic, txn.append(topic, kept.records, complete=complete), kept.num_rows)] if kept.num_rows else []
    offset = txn.append(f"{topic}.dlq", made.records, complete=complete)
    return [*done, (f"{topic}.dlq", offset, made.num_rows)]


Fresh = Mapping[str, Sequence[Batch]]


class LogReader:
    """Reads rows of the log for a training, as they were when a slice had been written, whatever has come since.

    A topic that the task itself writes is taken as far as the task had written it, and what its step has made since, so
    that a training does not depend on how rows were grouped into steps. See `headrace.step.retraining.Reader`.

    Args:
        task: the model's; ``state``: its, which knows how far it has written.
    """

    def __init__(self, log: Log, task: ModelTask, state: State) -> None:
        self._log = log
        self._own = {output.topic for output in task.outputs}
        self._state = state

    def at(self, topic: str, offsets: Sequence[int]) -> list[tuple[list[int], Batch]]:
        """Return rows of a topic by their offsets, ascending: batches with their rows' offsets; rows may be gone."""
        wanted = np.asarray(offsets, np.int64)
        found: list[tuple[list[int], Batch]] = []
        while len(wanted):
            entries = self._log.read_topic(topic, offset=int(wanted[0]))
            for entry in entries:
                end = entry.offset + entry.records.num_rows
                inside, wanted = wanted[wanted < end], wanted[wanted >= end]
                inside = inside[inside >= entry.offset]
                if len(inside):
                    records = entry.records.take(pa.array(inside - entry.offset))
                    found.append((inside.tolist(), as_events(records)))
                if not len(wanted):
                    break
            if not entries:
                break
        return found

    def rows(self, stream: StreamPlan, until: int, fresh: Fresh) -> list[Batch]:
        """Changes of a topic, oldest first."""
        return [batch for batch, _ in self._batches(stream.topic, until, fresh)]

    def query(self, sql: str, until: int, fresh: Fresh) -> pa.Table:
        """Return what a query over topics gives.

        Raises:
            LogError: the SQL is wrong, or names a topic that is not there.
        """
        names = Names({*self._log.topics(), *fresh})
        return query_topics(names, sql, lambda _, topic: self._table(topic, until, fresh))

    def _table(self, topic: str, until: int, fresh: Fresh) -> pa.Table:
        tables = []
        for batch, offset in self._batches(topic, until, fresh):
            numbers = pa.array(range(offset, offset + batch.num_rows), pa.int64())
            tables.append(with_numbers(present(batch.records), offset=numbers))
        return joined(tables)

    def _batches(self, topic: str, until: int, fresh: Fresh) -> list[tuple[Batch, int]]:
        own = topic in self._own
        end = self._state.offsets.written.get(topic, 0)
        found: list[tuple[Batch, int]] = []
        for entry in walk(self._log, topic):
            if (entry.offset >= end) if own else (entry.slice > until):
                break
            records = entry.records.slice(0, end - entry.offset) if own else entry.records
            found.append((as_events(records), entry.offset))
        for batch in fresh.get(topic, ()):
            found.append((batch, end))
            end += batch.num_rows
        return found
