"""Checks of a plan against the columns that its topics have: catalogs, rows of the log, and what follows from both.

Where nobody knows them before rows come, they are checked at the topic's first rows, by the same checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.errors import DeclarationError
from headrace.grade.interval_join.keys import kind_of
from headrace.learn.features import unfit, unfit_target
from headrace.plan.columns import Columns, Doubt, probe
from headrace.plan.operators import Grade, Predicted
from headrace.plan.plan import Plan
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import ModelTask, StreamTask
from headrace.plan.topic_columns import TopicColumns
from headrace.serve.parameters import Endpoint

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
    columns = TopicColumns(plan, known.get)
    _Checks(columns).run()
    doubts: list[Doubt] = []
    for mistake in columns.mistakes.values():
        if not isinstance(mistake, Doubt):
            raise mistake
        doubts.append(mistake)
    return doubts


class _Checks:
    """One run over a plan, whose mistakes its columns note."""

    def __init__(self, columns: TopicColumns) -> None:
        self.plan = columns.plan
        self.columns = columns

    def run(self) -> None:
        """Check all that the plan does."""
        for task in self.plan.tasks:
            if isinstance(task, ModelTask):
                self._check_model(task)
            if not isinstance(task, StreamTask):
                for number in range(len(task.nodes)):
                    self.columns.of_node(task, number)
            for output in task.outputs:
                self.columns.of_topic(output.topic)
        for sink in self.plan.sinks:
            self._check_sink(sink)
        for endpoint in self.plan.endpoints:
            with self.columns.noting():
                self._check_endpoint(endpoint)

    def _check_model(self, task: ModelTask) -> None:
        own = tuple(name for name in (task.target, task.sample_weight) if name)
        for stream in task.learn:
            self._check_rows(task, self.columns.of_stream(stream, f"learn of «{task.name}»"), own)
        for number, operations in task.learn_nodes:
            rows = self.columns.after(self.columns.of_node(task, number), operations, f"learn of «{task.name}»")
            self._check_rows(task, rows, own)
        for plan in task.predict:
            self._check_rows(task, self.columns.of_stream(plan.stream, f"predict of «{task.name}»"), ())
        for scored in task.evaluate:
            target = own[:1] if task.target else ()
            if scored.stream is not None:
                self._check_rows(task, self.columns.of_stream(scored.stream, f"evaluate of «{task.name}»"), target)
            elif scored.rows is not None:
                fixed = Columns(f"the fixed set «{scored.spec.name}»", scored.rows.schema)
                self._check_rows(task, fixed, target)
        self._check_training(task)

    def _check_training(self, task: ModelTask) -> None:
        target = (task.target,) if task.target else ()
        beginning = None if task.initial is None else task.initial.stream
        if beginning is not None:
            self._check_rows(task, self.columns.of_stream(beginning, f"initial= of «{task.name}»"), target)
        if task.retrain is None:
            return
        rows = task.retrain.rows
        if rows.stream is not None:
            self._check_rows(task, self.columns.of_stream(rows.stream, f"retrain of «{task.name}»"), target)
        elif rows.node is not None:
            taken = self.columns.of_node(task, rows.node)
            found = self.columns.after(taken, rows.operations, f"retrain of «{task.name}»")
            self._check_rows(task, found, target)
        if task.retrain.on is not None:
            alarms = self.columns.of_node(task, task.retrain.on)
            self.columns.after(alarms, task.retrain.operations, f"retrain(on=…) of «{task.name}»")

    def _check_rows(self, task: ModelTask, columns: Columns, more: Sequence[str]) -> None:
        with self.columns.noting():
            check_rows(task, columns, more)

    def _check_sink(self, sink: SinkPlan) -> None:
        columns = self.columns.of_stream(sink.stream, f"the sink «{sink.name}»")
        with self.columns.noting():
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
            labels = self.columns.of_stream(truth, f"«{task.name}»: grade(…)")
            for mine, theirs in zip(compare.on_left, compare.on_right, strict=True):
                field = labels.field(theirs)
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
                if kind in _KIND_OF.values() and kind != given:
                    raise labels.mistake(
                        f"{where} takes «{mine}» as {given}, and «{theirs}» of {truth.topic} is {kind}: no label would "
                        "ever meet those that are served",
                        f"Say its type: {wanted}.",
                    )


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
