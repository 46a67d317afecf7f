"""Operators in a step: what each node of a task knows between two events, and what it makes of rows in one.

An operator is built from its node's plan, by what is registered in `headrace.step.operator_state`. Those over the rows
of one stream (windows, alarms, drift detectors) are a `RowOperator` around their logic (`headrace.grade`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.event_time import event_times
from headrace.grade.columns import no_numbers
from headrace.grade.operator_logic import START, Measure, OperatorLogic, Results
from headrace.halves import reason_of, tried_by_halves
from headrace.plan.operators import Node, Predicted, StreamPlan, topics_behind
from headrace.plan.task import PredictPlan
from headrace.step.events import Merged, order_of
from headrace.step.predictions import PredictionBatch
from headrace.step.state_codec import below
from headrace.transform.expressions import Operation, operate

Streams = Callable[[StreamPlan, str], list[Batch]]
Refuse = Callable[[str, Batch, Sequence[str], str], None]
# The place of a row that may change which model predicts, and the row that begins a training (None: a decision).
Raised = tuple[int, Batch | None]


class Entering(NamedTuple):
    """Rows of an event that enter at a node, before anything is predicted.

    Attributes:
        batches: with their places; ``predictions`` of them, as far as they are given, where a model makes some.
        predicted: the topic whose very rows the model predicts; None: others may be among them, or there is no model.
    """

    batches: list[Batch]
    predictions: Sequence[PredictionBatch] = ()
    predicted: str | None = None


@dataclass(slots=True)
class ChallengerErrors:
    """A model that predicts beside the current one.

    Attributes:
        errors: of both, for each graded row, the current one's first.
        decided: the place of the row with which there are enough.
    """

    version: int
    needed: int
    errors: list[list[float]]
    decided: int | None = None

    def take(self, columns: Mapping[str, pa.Array], place: Ints) -> None:
        """Take grades, in order."""
        self.decided = None
        mine = pc.equal(columns["shadow_version"], self.version).fill_null(False)
        mine = pc.and_(mine, pc.and_(columns["error"].is_valid(), columns["shadow_error"].is_valid()))
        mine = pc.and_(mine, pc.equal(columns["status"], "graded"))
        rows = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
        room = self.needed - len(self.errors)
        for row in rows[: max(room, 0)].tolist():
            self.errors.append([float(columns["error"][row].as_py()), float(columns["shadow_error"][row].as_py())])
        if 0 < room <= len(rows):
            self.decided = int(place[rows[room - 1]])


@dataclass(slots=True)
class OperatorEvent:
    """One event as operators see it.

    Attributes:
        merged: the event's rows in order.
        operators: of the task's nodes, in their order.
        streams: gives a stream's batches of this event.
        refuse: takes rows that cannot be handled, with their reasons.
        counts: what happened, by name; changed in place.
        predicted: what each `Predicted` number stands for; ``predictions``: of each number its rows and, as far as
            they are given, their predictions.
        features: the model's columns, for texts.
        shadows: whether predictions of a second model stand beside; None: where the rows have such columns.
        challenger: the second model's errors so far, where there is one.
        done: the place up to which rows were pushed; ``rows``: what each node gave from there on.
    """

    merged: Merged
    operators: Sequence[Operator]
    streams: Streams
    refuse: Refuse
    counts: dict[str, int]
    predicted: Sequence[PredictPlan] = ()
    predictions: Mapping[int, Sequence[PredictionBatch]] = field(default_factory=dict)
    features: Sequence[str] = ()
    shadows: bool | None = None
    challenger: ChallengerErrors | None = None
    done: int = 0
    rows: list[list[Batch]] = field(default_factory=list)

    def after(self, operations: tuple[Operation, ...], batches: list[Batch], number: int) -> list[Batch]:
        """Return rows of a node after operations; those that these fail on are refused."""
        if not operations:
            return batches
        found: list[Batch] = []
        for batch in batches:
            good, bad = operate(batch, operations, self.features)
            found += [part for part in good if part.num_rows]
            for part, reason in bad:
                self.refuse(self.topic(number), part, [reason], "transform")
        return found

    def topic(self, number: int) -> str:
        """Return the topic beside which rows of a node that cannot be handled are told of."""
        operator = self.operators[number]
        if (own := operator.topic(self)) is not None:
            return own
        return "derived" if operator.node.source is None else self.topic(operator.node.source)

    def count(self, name: str, rows: int) -> None:
        """Count rows to which something has happened."""
        if rows:
            self.counts[name] = self.counts.get(name, 0) + rows


class Operator:
    """A node of a task in the step: its state between two events, and its work in one.

    Called by `headrace.step.operator_run.OperatorRun` in the engine's thread, the nodes in their order. In an event:
    `begin` once, before anything is predicted; `advance` once, where the event is that time has passed; `push` as often
    as more rows are predicted, each time for those up to a further place; `finish` once. What `push` has changed since
    `mark` is taken back by `rewind`. Between events: `due`, `snapshot`, `restore`, `measures`.

    Attributes:
        number: of its node; ``node``: where its rows come from, and go to.
        topics: that its rows come from; those of the rows it takes are the first.
        emits: whether its rows go to the node's topics.
    """

    emits = True
    looks_at = 0

    def __init__(self, number: int, nodes: Sequence[Node]) -> None:
        self.number, self.node = number, nodes[number]
        self.topics = tuple(topics_behind(nodes, number))

    def begin(self, event: OperatorEvent) -> None:
        """Let rows enter that do not depend on predictions."""

    def entering(self, event: OperatorEvent) -> Entering:
        """Return the event's rows that enter here; asked only where rows do."""
        raise NotImplementedError

    def push(self, event: OperatorEvent, place: int) -> list[Batch]:
        """Return what comes of rows from the last place to this one, which are predicted."""
        raise NotImplementedError

    def examples(self) -> list[Batch]:
        """Return rows of the event's predictions whose label is known, with it beside them: a model may learn them."""
        return []

    def mark(self) -> Any:
        """Return what `rewind` needs; anything that only this operator understands."""

    def rewind(self, mark: Any) -> None:
        """Take back what was pushed since `mark`."""

    def counted(self, rows: list[Batch]) -> list[Batch]:
        """Return those of its rows that others are made of."""
        return rows

    def topic(self, event: OperatorEvent) -> str | None:
        """Return the topic beside which rows that cannot be handled are told of; None: that of the node before."""
        return self.node.outputs[0].topic if self.node.outputs else None

    def advance(self, idle_us: Mapping[str, int]) -> None:
        """Let time go on without rows: topics have been silent for so long."""

    def due(self, idle_us: Mapping[str, int]) -> bool:
        """Return whether such a silence would bring anything about."""
        return False

    def finish(self) -> None:
        """Let go of the event."""

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that is known: values by keys with the node's number, and JSON values by names without it."""
        return {}, {}

    def restore(self, flat: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        """Become what `snapshot` was taken of, by this version or an earlier one.

        Args:
            flat: values of all nodes. about: JSON values of this one.
        """

    def measures(self) -> list[Measure]:
        """Return numbers about what is known, for those who watch."""
        return []

    def measures_of(self, newest: pa.Table, end: int) -> list[Measure]:
        """Return numbers about a topic of its rows: from the newest ``looks_at`` of them, and how many it ever had."""
        return []


class Predictions(Operator):
    """Rows as the task's model predicts them, in order; those that were predicted elsewhere among them."""

    emits = False  # predictions have outputs of their own

    def __init__(self, number: int, nodes: Sequence[Node]) -> None:
        super().__init__(number, nodes)
        plan = self.node.operator
        assert isinstance(plan, Predicted)
        self.predict = plan.number
        self.stream = plan.stream

    def entering(self, event: OperatorEvent) -> Entering:
        predictions = event.predictions.get(self.predict, ())
        served = [plan.served for plan in event.predicted[self.predict : self.predict + 1]]
        # Predictions that were made elsewhere are of no row that the log knows.
        own = self.stream.topic if served == [None] else None
        return Entering([placed(rows.batch, rows.order) for rows in predictions], predictions, own)

    def push(self, event: OperatorEvent, place: int) -> list[Batch]:
        """Return the rows that are predicted."""
        found: list[Batch] = []
        for predictions in event.predictions.get(self.predict, ()):
            rows = predictions.output().records
            order = predictions.order[: rows.num_rows]
            start, end = np.searchsorted(order, [event.done, place]).tolist()
            if end > start:
                rows = rows.slice(start, end - start)
                predicted = Batch(rows.append_column("__order", pa.array(order[start:end])))
                # Without a second model such columns are the user's own.
                found += [predicted] if event.shadows is False else _by_columns(predicted)
        return _in_turn(found)

    def topic(self, event: OperatorEvent) -> str | None:
        if self.node.outputs or self.predict >= len(event.predicted):
            return super().topic(event)
        plan = event.predicted[self.predict]
        return plan.outputs[0].topic if plan.outputs else plan.stream.topic


class TopicRows(Operator):
    """Rows of a topic."""

    def __init__(self, number: int, nodes: Sequence[Node]) -> None:
        super().__init__(number, nodes)
        stream = self.node.operator.stream
        assert stream is not None
        self.stream = stream
        self._batches: list[Batch] = []

    def begin(self, event: OperatorEvent) -> None:
        self._batches = event.streams(self.stream, "derive")

    def entering(self, event: OperatorEvent) -> Entering:
        return Entering(self._batches)

    def push(self, event: OperatorEvent, place: int) -> list[Batch]:
        """Return the topic's rows from the last place to this one."""
        found: list[Batch] = []
        for batch in self._batches:
            start, end = np.searchsorted(order_of(batch), [event.done, place]).tolist()
            if end > start:
                found.append(batch.slice(start, end - start))
        return found

    def topic(self, event: OperatorEvent) -> str:
        return self.stream.topic

    def finish(self) -> None:
        self._batches = []


class RowOperator(Operator):
    """Rows of one node through the logic of windows, an alarm or a drift detector."""

    def __init__(self, number: int, nodes: Sequence[Node], logic: OperatorLogic) -> None:
        super().__init__(number, nodes)
        assert self.node.source is not None
        self.source, self.logic = self.node.source, logic
        self.looks_at = logic.looks_at
        # How far a tick moves the time.
        self._until = START

    def push(self, event: OperatorEvent, place: int) -> list[Batch]:
        """Return what the rows of the node before bring about, and then the time that has passed."""
        rows = event.operators[self.source].counted(event.rows[self.source])
        found: list[Batch] = []
        for batch in event.after(self.node.operations, rows, self.source):
            for results in self._pushed(event, batch):
                found += self._rows(event, results)
        if self._until > START:
            found += self._rows(event, self.logic.advance(self._until))
        return found

    def _pushed(self, event: OperatorEvent, batch: Batch) -> list[Results]:
        """Return what comes of rows; those that cannot be taken are refused, and change nothing.

        What comes of the others does not depend on how they were put together.
        """
        time, reasons = self._unplaceable(batch)
        placeable = np.setdiff1d(np.arange(batch.num_rows), np.fromiter(reasons, np.int64, len(reasons)))
        found: list[Results] = []

        def attempt(start: int, stop: int) -> None:
            rows = placeable[start:stop]
            part = batch if len(rows) == batch.num_rows else batch.take(rows)
            records = plain(part).select(part.column_names) if self.logic.keeps_rows else part.records
            before = self.logic.copy()
            try:
                found.append(self.logic.push(records, time[rows], order_of(part)))
            except Exception:
                self.logic = before
                raise

        # What a column is called or of which type it is holds for all of its rows.
        failed = tried_by_halves(len(placeable), attempt, of_all=(DeclarationError,))
        reasons |= {int(placeable[row]): reason_of(error) for row, error in failed.items()}
        if reasons:
            bad = np.array(sorted(reasons))
            texts = [reasons[row] for row in bad.tolist()]
            event.refuse(event.topic(self.source), batch.take(bad), texts, "derive")
        return found

    def _unplaceable(self, batch: Batch) -> tuple[Ints, dict[int, str]]:
        """Return when rows were, and which cannot be placed: without a time, or with a text that is no number."""
        time, _, reasons = event_times(batch, self.logic.time)
        for name in self.logic.numbers:
            if len(batch.schema.get_all_field_indices(name)) == 1:
                reasons = no_numbers(batch.column(name), name) | reasons
        return time, reasons

    def _rows(self, event: OperatorEvent, results: Results) -> list[Batch]:
        """Return results as rows; those with a value that does not fit its type are refused."""
        if not results.records.num_rows:
            return []
        rows = rows_at(event.merged, results.records, results.place, results.time_us)
        if not results.refused:
            return [rows]
        bad = np.array(sorted(results.refused))
        texts = [results.refused[row] for row in bad.tolist()]
        event.refuse(event.topic(self.number), rows.take(bad), texts, "derive")
        good = rows.take(np.setdiff1d(np.arange(rows.num_rows), bad))
        return [good] if good.num_rows else []

    def mark(self) -> OperatorLogic:
        return self.logic.copy()

    def rewind(self, mark: OperatorLogic) -> None:
        self.logic = mark

    def _watermark(self, idle_us: Mapping[str, int]) -> int:
        """Return its time: while one of the topics that its rows come from is silent, no rows come."""
        return self.logic.watermark_after(max(idle_us.get(topic, 0) for topic in self.topics))

    def advance(self, idle_us: Mapping[str, int]) -> None:
        """Let the next push move the time."""
        self._until = self._watermark(idle_us)

    def due(self, idle_us: Mapping[str, int]) -> bool:
        deadline = self.logic.deadline_us
        return deadline is not None and self._watermark(idle_us) >= deadline

    def finish(self) -> None:
        self._until = START

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {f"{self.number}.{key}": value for key, value in self.logic.snapshot().items()}, {}

    def restore(self, flat: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.logic.restore(below(f"{self.number}.", flat))

    def measures(self) -> list[Measure]:
        return self.logic.measures()

    def measures_of(self, newest: pa.Table, end: int) -> list[Measure]:
        return self.logic.measures_of(newest, end)


def rows_at(
    merged: Merged, rows: dict[str, pa.Array] | pa.RecordBatch, place: Ints, time_us: Ints, *, key: Sequence[str] = ()
) -> Batch:
    """Return rows at the places, and with the positions, of those that brought them about."""
    batch = Batch.of(rows, lsn=merged.lsn[place], index=merged.index[place], ts_us=time_us, key=key)
    return placed(batch, place)


def placed(batch: Batch, order: Ints) -> Batch:
    """Return rows with their places."""
    if "__order" in batch.schema.names:
        return batch
    return Batch(batch.records.append_column("__order", pa.array(order)))


def plain(batch: Batch) -> pa.RecordBatch:
    """Return the records without the columns that only an event has."""
    return batch.stored.records


def _by_columns(predicted: Batch) -> list[Batch]:
    """Return rows beside which another model predicted, and rows without columns of one, each by themselves.

    Which columns a row has does not depend on the rows that were predicted together with it.
    """
    if "shadow_version" not in predicted.schema.names:
        return [predicted]
    beside = np.asarray(predicted.column("shadow_version").is_valid())
    bounds = [0, *(np.flatnonzero(beside[1:] != beside[:-1]) + 1).tolist(), len(beside)]
    parts = [predicted.slice(start, end - start) for start, end in pairwise(bounds)]
    own = ["shadow_prediction", "shadow_version"]
    return [
        part if beside[start] else Batch(part.records.drop_columns(own))
        for part, start in zip(parts, bounds, strict=False)
    ]


def _in_turn(batches: list[Batch]) -> list[Batch]:
    """Return rows of several batches in the order of their places, in as few batches as their columns allow."""
    batches = sorted(batches, key=lambda batch: int(order_of(batch)[0]))
    if all(order_of(before)[-1] < order_of(after)[0] for before, after in pairwise(batches)):
        return batches
    order = np.concatenate([order_of(batch) for batch in batches])
    by = np.argsort(order)
    if all(batch.schema.equals(batches[0].schema, check_metadata=True) for batch in batches):
        return [Batch(pa.concat_batches([batch.records for batch in batches]).take(pa.array(by)))]
    of = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])[by]
    bounds = [0, *(np.flatnonzero(of[1:] != of[:-1]) + 1).tolist(), len(of)]
    taken = [0] * len(batches)
    found = []
    for start, end in pairwise(bounds):
        i = int(of[start])
        found.append(batches[i].slice(taken[i], end - start))
        taken[i] += end - start
    return found
