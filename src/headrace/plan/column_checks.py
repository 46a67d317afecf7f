"""Checks of a plan against the columns that its topics have: catalogs, rows of the log, and what follows from both.

What is derived has the columns that its operations make. Where nobody knows them before rows come, they are checked at
the topic's first rows, by the same checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa

from headrace.batch import told_apart
from headrace.errors import DeclarationError
from headrace.grade.interval_join.keys import kind_of
from headrace.learn.base import traits_of
from headrace.learn.features import unfit, unfit_target
from headrace.plan.columns import UNKNOWN, Columns, Doubt, after, probe
from headrace.plan.operators import Grade, Node, Predicted
from headrace.plan.plan import Plan
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import (
    PREDICTION_COLUMNS,
    SHADOW_COLUMNS,
    EvaluatePlan,
    ModelTask,
    OperatorTask,
    OutputPlan,
    PredictPlan,
    StreamPlan,
    StreamTask,
    Task,
)
from headrace.serve.parameters import Endpoint

_SHADOW = dict(zip(SHADOW_COLUMNS, (UNKNOWN, pa.int64(), pa.float64()), strict=True))
_KIND_OF = {"text": "text", "integer": "a number", "number": "a number"}


def check_columns(plan: Plan, known: Mapping[str, Columns]) -> list[Doubt]:
    """Check every column that a plan names.

    Args:
        known: the columns of topics that are captured, or that the log holds.

    Returns:
        Mistakes by the rows there were so far, which rows to come may undo.

    Raises:
        DeclarationError: the first mistake that they cannot.
    """
    checks = _Checks(plan, known)
    checks.run()
    for mistake in checks.found.values():
        if not isinstance(mistake, Doubt):
            raise mistake
    return [mistake for mistake in checks.found.values() if isinstance(mistake, Doubt)]


def known_columns(plan: Plan, known: Mapping[str, Columns]) -> dict[str, Columns]:
    """Return the columns of a plan's topics, as far as they follow from those that are known."""
    checks = _Checks(plan, known)
    topics = dict.fromkeys([*known, *(output.topic for task in plan.tasks for output in task.outputs)])
    return {topic: columns for topic in topics if (columns := checks.of_topic(topic)) is not None}


class _Checks:
    """One run over a plan.

    Attributes:
        found: mistakes, by their messages.
    """

    def __init__(self, plan: Plan, known: Mapping[str, Columns]) -> None:
        self.plan = plan
        self.found: dict[str, DeclarationError] = {}
        self._known = known
        self._topics: dict[str, Columns | None] = {}
        self._nodes: dict[tuple[str, int], Columns | None] = {}
        self._writers = {output.topic: task for task in plan.tasks for output in task.outputs}

    def run(self) -> None:
        """Check all that the plan does."""
        for task in self.plan.tasks:
            if isinstance(task, ModelTask):
                self._check_model(task)
            if not isinstance(task, StreamTask):
                for number in range(len(task.nodes)):
                    self.of_node(task, number)
            for output in task.outputs:
                self.of_topic(output.topic)
        for sink in self.plan.sinks:
            self._check_sink(sink)
        for endpoint in self.plan.endpoints:
            with self._noting():
                self._check_endpoint(endpoint)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except DeclarationError as mistake:
            self.found.setdefault(mistake.message, mistake)

    # -- what is known ------------------------------------------------------------------------------------------------

    def of_topic(self, topic: str) -> Columns | None:
        """Return the columns of a topic's rows; None where nobody knows before they come."""
        if topic not in self._topics:
            self._topics[topic] = None  # while it is looked for: a topic that is made of itself is refused elsewhere
            writer = self._writers.get(topic)
            made = None if writer is None else self._written(writer, topic)
            if made is not None:
                made = made.of(made.schema, topic)
            self._topics[topic] = made if made is not None else self._known.get(topic)
        return self._topics[topic]

    def of_stream(self, stream: StreamPlan, who: str) -> Columns | None:
        """Return the columns of a stream's rows."""
        columns = self.of_topic(stream.topic)
        with self._noting():
            return after(columns, stream.operations, who)
        return None

    def of_node(self, task: ModelTask | OperatorTask, number: int) -> Columns | None:
        """Return the columns of the rows that a node of a task gives."""
        place = (task.name, number)
        if place not in self._nodes:
            self._nodes[place] = None
            with self._noting():
                self._nodes[place] = self._made(task, task.nodes[number])
        return self._nodes[place]

    def _made(self, task: ModelTask | OperatorTask, node: Node) -> Columns | None:
        who, operator = f"«{task.name}»", node.operator
        if isinstance(operator, Predicted) and isinstance(task, ModelTask):
            plan = next((p for n, p in enumerate(task.predict) if n == operator.number), PredictPlan(operator.stream))
            return self._predicted(task, plan)
        if node.source is None:
            return None if operator.stream is None else self.of_stream(operator.stream, who)
        rows = after(self.of_node(task, node.source), node.operations, who)
        labels = None if operator.labels is None else self.of_stream(operator.labels, f"{who}: grade(…)")
        made = operator.columns(rows, labels, task.name)
        shadow = isinstance(task, ModelTask) and task.retrain is not None and task.retrain.shadow
        return _with_shadow(made) if made is not None and shadow and isinstance(operator, Grade) else made

    def _predicted(self, task: ModelTask, plan: PredictPlan) -> Columns | None:
        """Return the columns of predictions: the rows', then those of the prediction."""
        rows = self.of_stream(plan.stream, f"predict of «{task.name}»")
        if rows is None:
            return None
        traits = traits_of(task.learner)
        types = {"prediction": traits.prediction_type or UNKNOWN, "model_version": pa.int64()}
        made = [pa.field(name, types.get(name, pa.string())) for name in PREDICTION_COLUMNS]
        if plan.proba:
            made.append(pa.field("probability", pa.list_(pa.float64())))
        reserved = {*PREDICTION_COLUMNS, *(field.name for field in made)}
        if task.retrain is not None and task.retrain.shadow:
            reserved |= set(SHADOW_COLUMNS)
            made += [pa.field(name, _SHADOW[name]) for name in SHADOW_COLUMNS[:2]]
        names = told_apart(rows.names, reserved)
        fields = [rows.wanted(name, "").with_name(other) for name, other in zip(rows.names, names, strict=True)]
        return rows.of([*fields, *made], f"the predictions of «{task.name}»")

    def _written(self, task: Task, topic: str) -> Columns | None:
        """Return the columns of a topic that a task writes."""
        columns, outputs = self._rows_written(task, topic)
        for output in outputs:
            if output.topic == topic:
                with self._noting():
                    return after(columns, output.operations, f"«{topic}»")
        if isinstance(task, ModelTask) and topic == task.metrics_topic and task.evaluate:
            return _of_metrics(task.evaluate, topic)
        return None

    def _rows_written(self, task: Task, topic: str) -> tuple[Columns | None, Sequence[OutputPlan]]:
        """Return the rows that a task writes to a topic, as they are before the output's operations."""
        if isinstance(task, StreamTask):
            return self.of_stream(task.stream, f"«{topic}»"), task.outputs
        if isinstance(task, ModelTask):
            for plan in task.predict:
                if _writes(plan.outputs, topic):
                    return self._predicted(task, plan), plan.outputs
        for number, node in enumerate(task.nodes):
            if _writes(node.outputs, topic):
                return self.of_node(task, number), node.outputs
        return None, ()

    # -- what is wanted -----------------------------------------------------------------------------------------------

    def _check_model(self, task: ModelTask) -> None:
        own = tuple(name for name in (task.target, task.sample_weight) if name)
        for stream in task.learn:
            self._check_rows(task, self.of_stream(stream, f"learn of «{task.name}»"), own)
        for number, operations in task.learn_nodes:
            with self._noting():
                self._check_rows(task, after(self.of_node(task, number), operations, f"learn of «{task.name}»"), own)
        for plan in task.predict:
            self._check_rows(task, self.of_stream(plan.stream, f"predict of «{task.name}»"), ())
        for scored in task.evaluate:
            rows = None if scored.rows is None else Columns(f"the fixed set «{scored.spec.name}»", scored.rows.schema)
            if scored.stream is not None:
                rows = self.of_stream(scored.stream, f"evaluate of «{task.name}»")
            self._check_rows(task, rows, own[:1] if task.target else ())
        self._check_training(task)

    def _check_training(self, task: ModelTask) -> None:
        target = (task.target,) if task.target else ()
        beginning = None if task.initial is None else task.initial.stream
        if beginning is not None:
            self._check_rows(task, self.of_stream(beginning, f"initial= of «{task.name}»"), target)
        if task.retrain is None:
            return
        rows = task.retrain.rows
        if rows.stream is not None:
            self._check_rows(task, self.of_stream(rows.stream, f"retrain of «{task.name}»"), target)
        elif rows.node is not None:
            with self._noting():
                found = after(self.of_node(task, rows.node), rows.operations, f"retrain of «{task.name}»")
                self._check_rows(task, found, target)
        if task.retrain.on is not None:
            with self._noting():
                after(self.of_node(task, task.retrain.on), task.retrain.operations, f"retrain(on=…) of «{task.name}»")

    def _check_rows(self, task: ModelTask, columns: Columns | None, more: Sequence[str]) -> None:
        if columns is not None:
            with self._noting():
                check_rows(task, columns, more)

    def _check_sink(self, sink: SinkPlan) -> None:
        columns = self.of_stream(sink.stream, f"the sink «{sink.name}»")
        if columns is None:
            return
        with self._noting():
            for name in sink.spec.columns:
                columns.wanted(name, f"the sink «{sink.name}»")

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        """Refuse served predictions whose grades would never find a label: without the key, or one of another kind."""
        task = next(model for model in self.plan.models if model.name == endpoint.model)
        taken = {parameter.column: parameter for parameter in endpoint.parameters}
        logged = {n for n, plan in enumerate(task.predict) if endpoint.log_to in [o.topic for o in plan.outputs]}
        for node in task.nodes if endpoint.log_to else ():
            before = None if node.source is None else task.nodes[node.source].operator
            if not isinstance(node.operator, Grade) or not isinstance(before, Predicted) or before.number not in logged:
                continue
            compare, truth = node.operator.compare, node.operator.truth
            labels = self.of_stream(truth, f"«{task.name}»: grade(…)")
            for mine, theirs in zip(compare.on_left, compare.on_right, strict=True):
                field = None if labels is None else labels.field(theirs)
                kind = None if field is None else kind_of(field)
                wanted = f'inputs={{…, "{mine.lower()}": ("{mine}", {"int" if kind == "a number" else "str"})}}'
                where = f"serve({endpoint.path!r}, log_to={endpoint.log_to!r}) of «{task.name}»"
                if mine not in taken:
                    raise DeclarationError(
                        f"{where} takes no «{mine}», by which predictions in {endpoint.log_to} are graded with "
                        f"{truth.topic}: no label would ever meet those that are served",
                        advice=f"Let it come with the question: {wanted}.",
                    )
                given = _KIND_OF[taken[mine].type]
                if labels is not None and kind in _KIND_OF.values() and kind != given:
                    raise labels.mistake(
                        f"{where} takes «{mine}» as {given}, and «{theirs}» of {truth.topic} is {kind}: no label would "
                        "ever meet those that are served",
                        f"Say its type: {wanted}.",
                    )


def _writes(outputs: Sequence[OutputPlan], topic: str) -> bool:
    return any(output.topic == topic for output in outputs)


def check_rows(task: ModelTask, columns: Columns, more: Sequence[str]) -> None:
    """Check that features, and target or weight (``more``), are there and can be made of their columns.

    Raises:
        DeclarationError: they cannot.
    """
    who = f"the model «{task.name}»"
    if callable(task.features):
        shown = columns.of(field for field in columns.schema if field.name != task.target)
        probe(task.features, shown, f"the feature function of «{task.name}»")
    fields = {name: columns.wanted(name, who) for name in (*task.feature_names, *more)}
    for feature in () if callable(task.features) else task.features:
        name = feature if isinstance(feature, str) else feature.column
        _refuse(columns, unfit(feature, fields[name]), f"a feature of {who}")
    for name in more:
        if name == task.target:
            _refuse(columns, unfit_target(task.learner, fields[name]), f"the target of {who}")
        else:
            _refuse(columns, unfit(name, fields[name]), f"the weight of {who}")


def _refuse(columns: Columns, found: tuple[str, str] | None, what: str) -> None:
    if found is not None:
        raise columns.mistake(f"{what} from {columns.topic}: {found[0]}", found[1])


def _with_shadow(graded: Columns) -> Columns:
    more = [pa.field(name, kind) for name, kind in _SHADOW.items() if graded.field(name) is None]
    return graded.of([*graded.schema, *more])


def _of_metrics(evaluated: Sequence[EvaluatePlan], topic: str) -> Columns:
    """Return the columns of the topic of a model's evaluations."""
    texts = dict.fromkeys(("stream", "model", "model_position"), pa.string())
    types = {**texts, **dict.fromkeys(("rows", "learned", "window", "model_version"), pa.int64())}
    for plan in evaluated:
        for metric in plan.spec.metrics:
            types |= {metric: pa.float64(), f"window_{metric}": pa.float64()}
        if plan.spec.kind == "classification":
            types |= {"labels": pa.list_(pa.string()), "confusion": pa.list_(pa.int64())}
    return Columns(topic, pa.schema(list(types.items())))
