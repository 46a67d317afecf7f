"""Columns of topics before their first row: what a plan makes of tables whose columns are known.

Nothing is described twice: rows go through the operators of a step, and there are none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa

from headrace.batch import Batch, dead_letters
from headrace.grade.compare import graded_rows
from headrace.grade.interval_join.outcomes import COLUMNS, REASONS, Outcomes
from headrace.plan.operators import Alarms, Drifts, Grade, Node, OperatorPlan, Predicted, Windows
from headrace.plan.task import ModelTask, OperatorTask, OutputPlan, PredictPlan, StreamPlan, StreamTask, Task
from headrace.step.operator_state import OPERATORS
from headrace.step.operators import RowOperator, plain
from headrace.step.predictions import PredictionBatch
from headrace.step.retraining import training_rows
from headrace.step.scoring import no_lines
from headrace.transform.expressions import Operation

_NONE = np.empty(0, np.int64)


class TopicSchemas:
    """Columns of the topics that tasks read and write.

    Args:
        tasks: of a plan.
        known: gives the schema of a topic's events, as `headrace.batch` lays them out; None where that is not known.
    """

    def __init__(self, tasks: Sequence[Task], known: Callable[[str], pa.Schema | None]) -> None:
        self._tasks = tasks
        self._known = known
        self._asked: set[str] = set()

    def no_rows(self, topic: str) -> Batch:
        """Return no rows of a topic, with the columns that its rows will have.

        Of a topic whose columns nobody knows before its first row they are those that the plan names, of type null.
        """
        schema = self._known(topic)
        if schema is not None:
            return Batch(_empty(schema))
        if topic.endswith(".dlq"):
            return dead_letters(Batch.of({}), [], stage="")
        self._asked.add(topic)
        try:
            found = next(filter(None, (self._written(task, topic) for task in self._tasks)), None)
        finally:
            self._asked.discard(topic)
        return Batch.of(_nulls(self._named(topic))) if found is None else found.stored

    def _written(self, task: Task, topic: str) -> Batch | None:
        if isinstance(task, StreamTask):
            output = _to(topic, task.outputs)
            return None if output is None else after(self._stream(task.stream), output.operations)
        if isinstance(task, ModelTask):
            if task.evaluate and topic == task.metrics_topic:
                return no_lines(task.evaluate[0].spec)
            if task.retrain is not None and topic == task.training_topic:
                return training_rows([])
            for plan in task.predict:
                if (output := _to(topic, plan.outputs)) is not None:
                    return after(self._predictions(task, plan), output.operations)
        for number, node in enumerate(task.nodes):
            if (output := _to(topic, node.outputs)) is not None:
                return after(self._node(task, number), output.operations)
        return None

    def _stream(self, stream: StreamPlan) -> Batch:
        topic = stream.topic
        # A model may learn what is made of its own predictions: nothing is asked for within itself.
        rows = Batch.of(_nulls(self._named(topic))) if topic in self._asked else self.no_rows(topic)
        return after(rows, stream.operations)

    def _predictions(self, task: ModelTask, plan: PredictPlan) -> Batch:
        return PredictionBatch(self._stream(plan.stream), _NONE, task, proba=plan.proba).output()

    def _node(self, task: ModelTask | OperatorTask, number: int) -> Batch:
        node = task.nodes[number]
        if isinstance(node.operator, Predicted):
            assert isinstance(task, ModelTask)
            return self._predictions(task, task.predict[node.operator.number])
        if node.source is None:
            assert node.operator.stream is not None
            return self._stream(node.operator.stream)
        rows = after(self._node(task, node.source), node.operations)
        if isinstance(node.operator, Grade):
            return self._grades(node.operator, rows)
        return _of_rows(task.nodes, number, rows)

    def _grades(self, plan: Grade, predictions: Batch) -> Batch:
        none = Outcomes.of({name: [] for name in COLUMNS}, REASONS)
        left, right = (
            pa.Table.from_batches([_having(batch.stored, names).records])
            for batch, names in (
                (predictions, plan.compare.on_left),
                (self._stream(plan.truth), (*plan.compare.on_right, plan.compare.target)),
            )
        )
        return Batch.of(graded_rows(none, left, right, plan.compare), key=plan.compare.on_left)

    def _named(self, topic: str) -> list[str]:
        """Return the columns of a topic that the plan names."""
        names: list[str] = []
        for task in self._tasks:
            if isinstance(task, ModelTask):
                read = [*task.learn, *(plan.stream for plan in task.predict)]
                if any(stream.topic == topic for stream in read):
                    names += [name for name in (*task.feature_names, task.target, task.sample_weight) if name]
            for node in () if isinstance(task, StreamTask) else task.nodes:
                if isinstance(node.operator, Grade) and node.operator.truth.topic == topic:
                    names += [*node.operator.compare.on_right, node.operator.compare.target]
        return list(dict.fromkeys(names))


def _to(topic: str, outputs: Iterable[OutputPlan]) -> OutputPlan | None:
    return next((output for output in outputs if output.topic == topic), None)


def _of_rows(nodes: Sequence[Node], number: int, rows: Batch) -> Batch:
    """Return what windows, an alarm or a drift detector make of no rows."""
    plan = nodes[number].operator
    rows = _having(rows, _columns_of(plan))
    operator = OPERATORS[type(plan)](plan, number, nodes)
    assert isinstance(operator, RowOperator)
    keeps = operator.logic.keeps_rows
    records = plain(rows).select(rows.column_names) if keeps else rows.records
    return Batch.of(operator.logic.push(records, _NONE, _NONE).records)


def _columns_of(plan: OperatorPlan) -> list[str]:
    if isinstance(plan, Windows):
        columns = [aggregate.column for _, aggregate in plan.spec.aggregates]
        return [*plan.spec.by, *(column for column in columns if column is not None)]
    return [plan.spec.column, *plan.spec.by] if isinstance(plan, Alarms | Drifts) else []


def _having(rows: Batch, names: Iterable[str]) -> Batch:
    """Return rows with columns that they may come to have."""
    return rows.with_columns(_nulls(name for name in names if name not in rows.schema.names).items())


def _nulls(names: Iterable[str]) -> dict[str, pa.Array]:
    return dict.fromkeys(names, pa.nulls(0))


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], schema=schema)


def after(rows: Batch, operations: Iterable[Operation]) -> Batch:
    """Return rows after operations; those that fail without rows (a user's function may) are passed over."""
    for operation in operations:
        try:
            rows = operation.apply(rows)
        except Exception:  # whatever a function of somebody's own raises where there is no row
            continue
    return rows
