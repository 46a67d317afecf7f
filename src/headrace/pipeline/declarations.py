"""Everything that a user has declared so far, and the plan that is made of it.

Streams and models write down here what they are asked for, and know of each other only what is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from headrace.batch import Batch
from headrace.formats.topic_formats import Formats, checked_format, codec_for
from headrace.learn.base import Learner
from headrace.learn.features import Features
from headrace.log import open_log
from headrace.log.base import Log, newest_schema
from headrace.plan.columns import Columns
from headrace.plan.operators import Initial, Node, OperatorPlan, OutputPlan, Predicted, RetrainPlan
from headrace.plan.plan import Plan, SourcePlan, TopicsPlan, served_topic
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import (
    Cut,
    EvaluatePlan,
    ModelTask,
    OperatorTask,
    PredictPlan,
    StreamPlan,
    StreamTask,
    Task,
    Versions,
)
from headrace.plan.topic_columns import TopicColumns
from headrace.serve.parameters import Endpoint
from headrace.transform.expressions import Operation

if TYPE_CHECKING:
    from headrace.engines.contract import RunningPipeline


@dataclass(eq=False, slots=True)
class DeclaredNode:
    """One thing that is derived.

    Attributes:
        task: the task that derives it: a model's, whose predictions it is made of, or one of operators alone.
        value: the column that a condition is about, where there is just one.
        by: of windows and alarms, the columns that they are grouped by.
        span_us, span_rows: of windows, how long one is: after an alarm the next one raises none.
    """

    task: DeclaredTask
    what: OperatorPlan
    source: DeclaredNode | None = None
    operations: tuple[Operation, ...] = ()
    value: str | None = None
    by: tuple[str, ...] = ()
    span_us: int = 0
    span_rows: int = 0
    outputs: list[OutputPlan] = field(default_factory=list)

    def __str__(self) -> str:
        what = str(self.what)
        if isinstance(self.what, Predicted):
            what = f"{what} by «{self.task.name}»"
        if self.source is None:
            return what
        before = self.source.outputs[0].topic if self.source.outputs else str(self.source)
        return f"{what} ◀── {' │ '.join([before, *map(str, self.operations)])}"

    @property
    def number(self) -> int:
        """The place among the nodes of its task."""
        return self.task.nodes.index(self)


# A node that rows come from, and what is done to them after that.
Root = tuple[DeclaredNode, tuple[Operation, ...]]


@dataclass(eq=False, repr=False)
class DeclaredTask:
    """A task that derives rows from topics, with its nodes in the order of their declaration."""

    name: str
    nodes: list[DeclaredNode] = field(default_factory=list, init=False)

    def add(
        self,
        what: OperatorPlan,
        root: Root | None = None,
        *,
        value: str | None = None,
        by: tuple[str, ...] = (),
        span_us: int = 0,
        span_rows: int = 0,
    ) -> DeclaredNode:
        """Add a node, which takes its rows from a root; the arguments are as for `DeclaredNode`."""
        source, operations = (None, ()) if root is None else root
        node = DeclaredNode(self, what, source, operations, value, by, span_us, span_rows)
        self.nodes.append(node)
        return node

    def plans(self) -> tuple[Node, ...]:
        """Return the nodes as a task holds them."""
        return tuple(
            Node(node.what, None if node.source is None else node.source.number, node.operations, tuple(node.outputs))
            for node in self.nodes
        )

    def task(self, app: str) -> Task:
        """Return the frozen task."""
        return OperatorTask(self.name, self.plans())


@dataclass(eq=False, slots=True)
class DeclaredPredictions:
    """The predictions of one stream's rows by a model, and where they go."""

    model: DeclaredModel
    number: int
    stream: StreamPlan
    proba: bool
    outputs: list[OutputPlan] = field(default_factory=list)
    _node: DeclaredNode | None = None

    def __str__(self) -> str:
        return f"{Predicted(self.number, self.stream)} by «{self.model.name}»"

    @property
    def node(self) -> DeclaredNode:
        """The node with which everything that is derived from these predictions begins."""
        if self._node is None:
            self._node = self.model.add(Predicted(self.number, self.stream), value="prediction")
        return self._node

    def plan(self, app: str) -> PredictPlan:
        """Return the frozen description."""
        logged = {endpoint.log_to for endpoint in self.model.endpoints}
        served = [output.topic for output in self.outputs if output.topic in logged]
        plan = StreamPlan(served_topic(app, served[0])) if served else None
        return PredictPlan(self.stream, tuple(self.outputs), self.proba, plan)


@dataclass(eq=False, repr=False)
class DeclaredModel(DeclaredTask):
    """A model's task as it is declared so far; `ModelTask` says what its parts are."""

    learner: Learner
    features: Features
    target: str | None
    missing: str = "reject"
    versions: Versions = field(default_factory=Versions)
    initial: Initial | None = None
    cut: Cut | None = None
    sample_weight: str | None = None
    learn: list[StreamPlan] = field(default_factory=list)
    learn_nodes: list[Root] = field(default_factory=list)
    predictions: list[DeclaredPredictions] = field(default_factory=list)
    evaluate: list[EvaluatePlan] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    retrain: RetrainPlan | None = None
    training_nodes: list[DeclaredNode] = field(default_factory=list)

    def plans(self) -> tuple[Node, ...]:
        """Return the nodes as the model's task holds them; none where nothing is made of its predictions."""
        plain = all(isinstance(node.what, Predicted) for node in self.nodes)
        return () if plain and not self.training_nodes else super().plans()

    def task(self, app: str) -> ModelTask:
        """Return the frozen task."""
        return ModelTask(
            name=self.name,
            learner=self.learner,
            features=self.features,
            target=self.target,
            cut=self.cut or Cut(transaction=True),
            learn=tuple(self.learn),
            predict=tuple(predictions.plan(app) for predictions in self.predictions),
            evaluate=tuple(self.evaluate),
            sample_weight=self.sample_weight,
            missing=self.missing,
            versions=self.versions,
            nodes=self.plans(),
            learn_nodes=tuple((node.number, operations) for node, operations in self.learn_nodes),
            retrain=self.retrain,
            initial=self.initial,
        )


@dataclass(eq=False, repr=False)
class Declarations:
    """A pipeline as its user has declared it so far.

    Attributes:
        formats: of topics, by their names; `source_formats` by the prefix of a source, `key_formats` of topics' keys.
        streams: streams that are written to a topic without a model, each with that topic, and whether it is a task of
            its own, which begins with the first row: the others of a topic are one task.
        running: the pipeline that was started last.
        open_log: a log in memory, which lives as long as this.
    """

    name: str
    log: str
    keep: str | timedelta | None
    default_format: str
    registry: str | None
    formats: dict[str, str] = field(default_factory=dict)
    source_formats: dict[str, str] = field(default_factory=dict)
    key_formats: dict[str, str] = field(default_factory=dict)
    sources: list[SourcePlan] = field(default_factory=list)
    topics: list[TopicsPlan] = field(default_factory=list)
    appended: list[str] = field(default_factory=list)
    models: list[DeclaredModel] = field(default_factory=list)
    operator_tasks: list[DeclaredTask] = field(default_factory=list)
    streams: list[tuple[StreamPlan, OutputPlan, bool]] = field(default_factory=list)
    sinks: list[SinkPlan] = field(default_factory=list)
    running: RunningPipeline | None = None
    open_log: Log | None = None

    def __post_init__(self) -> None:
        self.default_format = checked_format(self.default_format)

    def operator_task(self, topic: str) -> DeclaredTask:
        """Begin a task of its own for what is derived from a topic without a model."""
        name = f"flow:{self.name}:{topic}"
        alike = sum(task.name.split("#")[0] == name for task in self.operator_tasks)
        task = DeclaredTask(name + (f"#{alike + 1}" if alike else ""))
        self.operator_tasks.append(task)
        return task

    def append_to(self, topic: str) -> None:
        """Note that the program itself appends to a topic."""
        if topic not in self.appended:
            self.appended.append(topic)

    def plan(self) -> Plan:
        """Return the pipeline as a frozen description."""
        grouped: dict[tuple[StreamPlan, str], list[OutputPlan]] = {}
        for stream, output, alone in self.streams:
            grouped.setdefault((stream, output.topic if alone else ""), []).append(output)
        tasks: list[Task] = [task.task(self.name) for task in (*self.models, *self.operator_tasks)]
        tasks += [
            StreamTask(f"stream:{stream.topic}→{outputs[0].topic}", stream, tuple(outputs))
            for (stream, _), outputs in grouped.items()
        ]
        return Plan(
            self.name,
            self.log,
            tuple(self.sources),
            tuple(tasks),
            tuple(self.topics),
            Formats(
                self.default_format,
                dict(self.formats),
                dict(self.source_formats),
                dict(self.key_formats),
                self.registry,
            ),
            tuple(self.appended),
            tuple(self.sinks),
            tuple(endpoint for model in self.models for endpoint in model.endpoints),
            self.keep,
        )

    def no_rows(self, log: Log, stream: StreamPlan) -> Batch | None:
        """Return none of the rows of a stream, with the columns that they will have; None where it is not declared."""
        plan, running = self.plan(), self.running
        tables: Mapping[str, pa.Schema] = {} if running is None else running.tables
        declared = {*tables, *plan.appended, *plan.written, *plan.read}
        if stream.topic.removesuffix(".dlq") not in declared:
            return None

        def known(topic: str) -> Columns | None:
            schema = newest_schema(log, topic) or tables.get(topic)
            return None if schema is None else Columns(topic, schema)

        return TopicColumns(plan, known, supposed=True).of_stream(stream, str(stream)).batch()

    @contextmanager
    def reading(self) -> Iterator[Log]:
        """Give a log to read from now: the one that is open here, or one that is opened for this."""
        running = self.running
        opened = self.open_log or (running.log if running is not None and running.alive else None)
        if opened is not None:
            yield opened
            return
        log = open_log(self.log, writer=False, name=self.name, codec=codec_for(self.plan().formats))
        try:
            yield log
        finally:
            log.close()
