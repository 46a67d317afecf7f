"""The columns of a plan's topics: of those that are known, and of what the plan makes of them.

Derived once, for all who ask: checks of the declaration (`headrace.plan.column_checks`), and whoever shows a topic
before its first row. Nothing is described twice: the operators' own logic says what it makes of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from headrace.batch import Batch, dead_letters, is_meta, told_apart
from headrace.errors import DeclarationError
from headrace.grade.scores import line_schema
from headrace.learn.base import probabilities_type, traits_of
from headrace.plan.columns import UNKNOWN, Columns, after, unknown
from headrace.plan.operators import Grade, Node, Predicted
from headrace.plan.plan import Plan
from headrace.plan.task import (
    PREDICTION_COLUMNS,
    SHADOW_COLUMNS,
    TRAINING_COLUMNS,
    ModelTask,
    OperatorTask,
    PredictPlan,
    StreamPlan,
    StreamTask,
    Task,
)
from headrace.transform.expressions import Operation

_SHADOW = dict(zip(SHADOW_COLUMNS, (UNKNOWN, pa.int64(), pa.float64()), strict=True))


class TopicColumns:
    """The columns of the topics of a plan, as far as they are known before rows come.

    Args:
        known: gives the columns of topics that are captured, or that the log holds.
        supposed: for people, who see that there are no rows (`Columns`); what the log holds then comes before what
            the plan makes.

    Attributes:
        mistakes: those that were met on the way, by their messages.
    """

    def __init__(self, plan: Plan, known: Callable[[str], Columns | None], *, supposed: bool = False) -> None:
        self.plan = plan
        self.mistakes: dict[str, DeclarationError] = {}
        self._known = known
        self._supposed = supposed
        self._topics: dict[str, Columns] = {}
        self._nodes: dict[tuple[str, int], Columns] = {}
        self._writers = {output.topic: task for task in plan.tasks for output in task.outputs}

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note a mistake, and go on."""
        try:
            yield
        except DeclarationError as mistake:
            self.mistakes.setdefault(mistake.message, mistake)

    def of_topic(self, topic: str) -> Columns:
        """Return the columns of a topic's rows."""
        if topic not in self._topics:
            # While it is looked for: a model may learn what is made of its own predictions.
            self._topics[topic] = self._unknown(topic)
            self._topics[topic] = replace(self._found(topic), topic=topic, supposed=self._supposed)
        return self._topics[topic]

    def of_stream(self, stream: StreamPlan, who: str) -> Columns:
        """Return the columns of a stream's rows; ``who`` reads them, for people."""
        return self.after(self.of_topic(stream.topic), stream.operations, who)

    def of_node(self, task: ModelTask | OperatorTask, number: int) -> Columns:
        """Return the columns of the rows that a node of a task gives."""
        place = (task.name, number)
        if place not in self._nodes:
            self._nodes[place] = unknown(f"the rows of «{task.name}»", supposed=self._supposed)
            with self.noting():
                self._nodes[place] = self._made(task, task.nodes[number])
        return self._nodes[place]

    def after(self, columns: Columns, operations: Sequence[Operation], who: str) -> Columns:
        """Return the columns after some operations; a mistake in one of them is noted."""
        with self.noting():
            return after(columns, operations, who)
        return unknown(columns.topic, supposed=self._supposed)

    def _found(self, topic: str) -> Columns:
        known, writer = self._known(topic), self._writers.get(topic)
        if writer is None or (known is not None and self._supposed):
            return self._unknown(topic) if known is None else known
        made = self._written(writer, topic)
        return known if known is not None and made.open else made

    def _unknown(self, topic: str) -> Columns:
        if topic.endswith(".dlq"):
            columns = unknown(topic, supposed=self._supposed)
            return columns.of(dead_letters(Batch.of({}), [], stage="").rows.schema)
        return unknown(topic, self._named(topic) if self._supposed else (), supposed=self._supposed)

    def _named(self, topic: str) -> Iterator[str]:
        """Yield the columns of a topic that the plan names."""
        for task in self.plan.tasks:
            if isinstance(task, ModelTask):
                read = [*task.learn, *(plan.stream for plan in task.predict)]
                if any(stream.topic == topic for stream in read):
                    yield from filter(None, (*task.feature_names, task.target, task.sample_weight))
            for node in () if isinstance(task, StreamTask) else task.nodes:
                if isinstance(node.operator, Grade) and node.operator.truth.topic == topic:
                    yield from (*node.operator.compare.on_right, node.operator.compare.target)

    def _written(self, task: Task, topic: str) -> Columns:
        """Return the columns of a topic that a task writes."""
        if isinstance(task, ModelTask) and topic == task.training_topic:
            return Columns(topic, TRAINING_COLUMNS)
        if isinstance(task, ModelTask) and topic == task.metrics_topic:
            lines = [field for plan in task.evaluate for field in line_schema(plan.spec)]
            return Columns(topic, pa.schema(list({field.name: field for field in lines}.values())))
        operations = next(output.operations for output in task.outputs if output.topic == topic)
        return self.after(self._rows_written(task, topic), operations, f"«{topic}»")

    def _rows_written(self, task: Task, topic: str) -> Columns:
        """Return the columns of what a task writes to a topic, before the output's operations."""
        if isinstance(task, StreamTask):
            return self.of_stream(task.stream, f"«{topic}»")
        for plan in task.predict if isinstance(task, ModelTask) else ():
            if any(output.topic == topic for output in plan.outputs):
                assert isinstance(task, ModelTask)
                return self._predicted(task, plan)
        nodes = (n for n, node in enumerate(task.nodes) if any(output.topic == topic for output in node.outputs))
        return self.of_node(task, next(nodes))

    def _made(self, task: ModelTask | OperatorTask, node: Node) -> Columns:
        who, operator = f"«{task.name}»", node.operator
        if isinstance(operator, Predicted) and isinstance(task, ModelTask):
            plan = next((p for n, p in enumerate(task.predict) if n == operator.number), PredictPlan(operator.stream))
            return self._predicted(task, plan)
        if node.source is None:
            assert operator.stream is not None
            return self.of_stream(operator.stream, who)
        rows = after(self.of_node(task, node.source), node.operations, who)
        labels = None if operator.labels is None else self.of_stream(operator.labels, f"{who}: grade(…)")
        made = operator.columns(rows, labels, task.name)
        return self._with_shadow(made) if isinstance(operator, Grade) and self._shadows(task) else made

    def _predicted(self, task: ModelTask, plan: PredictPlan) -> Columns:
        """Return the columns of predictions: the rows', then those of the prediction."""
        rows = self.of_stream(plan.stream, f"predict of «{task.name}»")
        kind = traits_of(task.learner).prediction_type or (pa.float64() if self._supposed else UNKNOWN)
        types = {"prediction": kind, "model_version": pa.int64()}
        made = [pa.field(name, types.get(name, pa.string())) for name in PREDICTION_COLUMNS]
        if plan.proba:
            made.append(pa.field("probability", probabilities_type(task.learner)))
        reserved = {*PREDICTION_COLUMNS, *(field.name for field in made)}
        if task.retrain is not None and task.retrain.shadow:
            reserved |= set(SHADOW_COLUMNS)
        if self._shadows(task):
            made += [pa.field(name, _SHADOW[name]) for name in SHADOW_COLUMNS[:2]]
        own = [field for field in rows.schema if not is_meta(field.name)]
        names = told_apart([field.name for field in own], reserved)
        told = [field.with_name(name) for field, name in zip(own, names, strict=True)]
        return rows.of([*told, *made], f"the predictions of «{task.name}»")

    def _shadows(self, task: ModelTask | OperatorTask) -> bool:
        """Return whether rows may have what a second model predicts beside the first; there is none at the start."""
        if self._supposed or not isinstance(task, ModelTask):
            return False
        return task.retrain is not None and task.retrain.shadow

    @staticmethod
    def _with_shadow(graded: Columns) -> Columns:
        more = [pa.field(name, kind) for name, kind in _SHADOW.items() if graded.field(name) is None]
        return graded.of([*graded.schema, *more])
