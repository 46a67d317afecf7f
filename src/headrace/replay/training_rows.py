"""Rows of the log for a training: as they were when a slice had been written, whatever has come since.

A topic that the task itself writes is taken as far as the task had written it, and what its step has made since, so
that a training does not depend on how rows were grouped into steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from headrace.batch import Batch, present
from headrace.inspect.query import joined, query_topics, with_numbers
from headrace.log.base import Log, walk
from headrace.plan.operators import StreamPlan
from headrace.plan.task import ModelTask
from headrace.step.state import State

Fresh = Mapping[str, Sequence[Batch]]


class LogReader:
    """What a model's training reads; see `headrace.step.retraining.Reader`.

    Args:
        task: the model's; ``state``: its, which knows how far it has written.
    """

    def __init__(self, log: Log, task: ModelTask, state: State) -> None:
        self._log = log
        self._own = {output.topic for output in task.outputs}
        self._state = state

    def at(self, topic: str, offsets: Sequence[int]) -> list[tuple[list[int], Batch]]:
        """Rows of a topic by their offsets, ascending: batches with their rows' offsets, without rows that are gone."""
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
                    found.append((inside.tolist(), _as_events(records)))
                if not len(wanted):
                    break
            if not entries:
                break
        return found

    def rows(self, stream: StreamPlan, until: int, fresh: Fresh) -> list[Batch]:
        """Changes of a topic, oldest first."""
        return [batch for batch, _ in self._batches(stream.topic, until, fresh)]

    def query(self, sql: str, until: int, fresh: Fresh) -> pa.Table:
        """What a query over topics gives.

        Raises:
            LogError: the SQL is wrong, or names a topic that is not there.
        """
        names = _Names({*self._log.topics(), *fresh})
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
            found.append((_as_events(records), entry.offset))
        for batch in fresh.get(topic, ()):
            found.append((batch, end))
            end += batch.num_rows
        return found


def _as_events(records: pa.RecordBatch) -> Batch:
    return Batch(records) if "__op" in records.schema.names else Batch.of(records)


class _Names:
    """The topics a query may name."""

    def __init__(self, names: set[str]) -> None:
        self._names = dict.fromkeys(sorted(names))

    def topics(self) -> Mapping[str, object]:
        return self._names
