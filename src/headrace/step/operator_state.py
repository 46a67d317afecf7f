"""The state of a task's operators between two events, as a checkpoint holds it; and where operators are registered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import Batch
from headrace.grade.alarm import Alarm
from headrace.grade.drift import Drift
from headrace.grade.operator_logic import START
from headrace.grade.windows.window import Window, is_graded
from headrace.learn.adapters.installation_key import sealed, unsealed
from headrace.plain_values import united
from headrace.plan.operators import Alarms, Drifts, Grade, Node, OperatorPlan, Predicted, Read, Selection, Windows
from headrace.step.grade_join import GradeJoin, with_truth
from headrace.step.operators import Operator, Predictions, RowOperator, TopicRows, plain
from headrace.step.state_codec import as_bytes, below, from_bytes

MOST_ROWS = 1_000_000


# Which operator a plan's node is: whoever adds one registers it here. Each is given a plan of its own class.
OPERATORS: Mapping[type[OperatorPlan], Callable[[Any, int, Sequence[Node]], Operator]] = {
    Predicted: lambda plan, number, nodes: Predictions(number, nodes),
    Read: lambda plan, number, nodes: TopicRows(number, nodes),
    Grade: lambda plan, number, nodes: GradeJoin(number, nodes),
    Windows: lambda plan, number, nodes: RowOperator(number, nodes, Window(plan.spec, plan.time)),
    Alarms: lambda plan, number, nodes: RowOperator(number, nodes, Alarm(plan.spec)),
    Drifts: lambda plan, number, nodes: RowOperator(number, nodes, Drift(plan.spec, dump=sealed, load=unsealed)),
}


class TrainingRows:
    """The newest rows of a node, retained for a training: so many, or those of so long.

    Args:
        rows: how many; ``span_us``: how long, by their ``__ts``, at most 1,000,000 rows.
    """

    def __init__(self, *, rows: int = 0, span_us: int = 0) -> None:
        self._most = rows or MOST_ROWS
        self._span_us = span_us
        self._batches: list[pa.RecordBatch] = []
        self._newest = START

    def __len__(self) -> int:
        return sum(records.num_rows for records in self._batches)

    def push(self, batch: Batch) -> None:
        """Take rows that follow: of grades those that have a truth; a corrected one replaces what it supersedes."""
        if is_graded(batch.schema) and "status" in batch.schema.names:
            batch = with_truth(batch)
        records = plain(batch)
        if not records.num_rows:
            return
        self._batches.append(records)
        # Both may have come at once.
        if "supersedes" in records.schema.names and records.column("supersedes").null_count < records.num_rows:
            self._without(records.column("supersedes").drop_null())
        self._newest = max(self._newest, int(batch.ts_us.max()))
        self.trim()

    def _without(self, numbers: pa.Array) -> None:
        kept = [rows.filter(pc.invert(pc.is_in(rows.column("grade"), value_set=numbers))) for rows in self._batches]
        self._batches = [rows for rows in kept if rows.num_rows]

    def trim(self) -> None:
        """Let go what is too old, or too much."""
        surplus = len(self) - self._most
        while surplus > 0 and surplus >= self._batches[0].num_rows:
            surplus -= self._batches.pop(0).num_rows
        if surplus > 0:
            self._batches[0] = self._batches[0].slice(surplus)
        if self._span_us:
            while self._batches and int(Batch(self._batches[0]).ts_us.max()) < self._newest - self._span_us:
                self._batches.pop(0)
        if len(self._batches) > 64:
            self._batches = list(_joined(self._batches))

    def table(self, *, since_us: int | None = None) -> pa.Table:
        """Return the rows, oldest first, of a moment on where one is given."""
        if not self._batches:
            return pa.table({})
        found = united([pa.Table.from_batches([records]) for records in self._batches])
        if since_us is not None:
            found = found.filter(pc.greater_equal(found.column("__ts").cast(pa.int64()), since_us))
        return found

    @property
    def newest_us(self) -> int:
        """The newest row's event time."""
        return self._newest

    def copy(self) -> TrainingRows:
        """Return another that is changed by itself; the rows are shared."""
        other = TrainingRows(rows=self._most, span_us=self._span_us)
        other._batches, other._newest = list(self._batches), self._newest
        return other

    def snapshot(self) -> dict[str, Any]:
        """Return the rows as flat values."""
        return {"newest": self._newest, **{str(i): as_bytes(rows) for i, rows in enumerate(_joined(self._batches))}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of."""
        self._newest = int(state["newest"])
        self._batches = [from_bytes(state[str(i)]) for i in range(len(state) - 1)]


def _joined(batches: Sequence[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield batches of one schema that follow each other as one."""
    for _, run in itertools.groupby(batches, key=lambda records: records.schema):
        first, *others = run
        yield pa.concat_batches([first, *others]) if others else first


@dataclass(slots=True)
class OperatorState:
    """The state of a task's operators between two events.

    Attributes:
        operators: of the task's nodes, in their order.
        training_rows: rows to train on, where the newest ones of a node are.
        at: position of the last row, where what a tick brings about stands.
        counts: what happened, by name.
    """

    operators: list[Operator]
    training_rows: TrainingRows | None = None
    at: tuple[int, int] = (0, 0)
    counts: dict[str, int] = field(default_factory=dict)


def initial_operators(nodes: Sequence[Node], rows: Selection | None = None) -> OperatorState:
    """Return the state before the first event.

    Args:
        rows: what a training takes, where rows of a node are retained for it.
    """
    retained = None
    if rows is not None and rows.kind in ("last", "since"):
        retained = TrainingRows(rows=rows.rows, span_us=rows.span_us)
    operators = [OPERATORS[type(node.operator)](node.operator, number, nodes) for number, node in enumerate(nodes)]
    return OperatorState(operators, retained)


def carry_over(old: OperatorState, new: OperatorState, kept: Mapping[int, int], *, training_rows: bool) -> None:
    """Give operators what those of an earlier declaration know that are the same.

    Args:
        kept: number in the new state -> number in the old one.
        training_rows: whether the rows that are kept for a training are of the same operator.
    """
    for number, before in kept.items():
        flat, about = old.operators[before].snapshot()
        new.operators[number].restore(_renumbered(flat, str(before), str(number)), about)
    if training_rows and old.training_rows is not None and new.training_rows is not None:
        new.training_rows.restore(old.training_rows.snapshot())
        new.training_rows.trim()
    new.at, new.counts = old.at, dict(old.counts)


def _renumbered(flat: Mapping[str, Any], before: str, now: str) -> dict[str, Any]:
    """Return values of one operator under another number: it is the first part of a key, or the second after a word."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        parts = key.split(".")
        parts[0 if parts[0] == before else 1] = now
        found[".".join(parts)] = value
    return found


def dump_operators(state: OperatorState) -> dict[str, Any]:
    """Return the state as flat values for `headrace.learn.state`."""
    flat: dict[str, Any] = {}
    about: dict[str, dict[str, Any]] = {}
    for operator in state.operators:
        values, named = operator.snapshot()
        flat |= values
        for name, value in named.items():
            about.setdefault(name, {})[str(operator.number)] = value
    if state.training_rows is not None:
        flat.update({f"kept.{key}": value for key, value in state.training_rows.snapshot().items()})
    flat["meta"] = json.dumps({**about, "at": state.at, "counts": state.counts})
    return flat


def load_operators(nodes: Sequence[Node], rows: Selection | None, flat: Mapping[str, Any]) -> OperatorState:
    """Return the state of which `dump_operators` made flat values, in this version or an earlier one."""
    state = initial_operators(nodes, rows)
    meta = json.loads(flat["meta"])
    lsn, index = meta.pop("at")
    state.at, state.counts = (lsn, index), meta.pop("counts")
    for operator in state.operators:
        number = str(operator.number)
        operator.restore(flat, {name: values[number] for name, values in meta.items() if number in values})
    if state.training_rows is not None:
        state.training_rows.restore(below("kept.", flat))
    return state
