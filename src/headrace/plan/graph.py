"""A plan as a graph: what there is, and where rows go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from headrace.learn.base import learner_text
from headrace.plan.operators import Node, Predicted, Read, StreamPlan
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import ModelTask, OperatorTask, StreamTask, Task
from headrace.serve.parameters import Endpoint
from headrace.transform.expressions import Operation

KINDS = ("source", "topic", "model", "operator", "training", "endpoint", "sink")


@dataclass(frozen=True, slots=True)
class Part:
    """A node of the graph.

    Attributes:
        id: ``kind:name``, which does not change while its declaration does not.
        kind: one of `KINDS`; of an operator ``operation`` says which.
        title, about: for people: its name, and what it is.
    """

    id: str
    kind: str
    title: str
    about: str = ""
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """Rows, or what is made of them, go from one part to another; ``back``: to what they came from."""

    start: str
    end: str
    text: str = ""
    back: bool = False


@dataclass(slots=True)
class Graph:
    """Parts by their ids, and arrows between them."""

    parts: dict[str, Part] = field(default_factory=dict)
    arrows: dict[tuple[str, str, str], Arrow] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "parts": [asdict(part) for part in self.parts.values()],
            "arrows": [asdict(arrow) for arrow in self.arrows.values()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Graph:
        """Return what `to_dict` was made of."""
        parts = [Part(**about) for about in values["parts"]]
        arrows = [Arrow(**about) for about in values["arrows"]]
        return cls({part.id: part for part in parts}, {(arrow.start, arrow.end, arrow.text): arrow for arrow in arrows})

    # -- what a plan adds --------------------------------------------------------------------------------------------

    def add_source(self, name: str, about: str, topics: Iterable[str]) -> None:
        """Add where topics come from."""
        start = self._add("source", name, about)
        for topic in topics:
            self._join(start, self.add_topic(topic))

    def add_topic(self, name: str, about: str = "") -> str:
        """Add a topic; return its id."""
        return self._add("topic", name, about)

    def add_task(self, task: Task) -> None:
        """Add what a task does with which topics."""
        if isinstance(task, ModelTask):
            self._model(task)
        elif isinstance(task, OperatorTask):
            self._nodes(task.name, task.nodes, "")
        else:
            self._copy(task)

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Add a path at which a model is asked."""
        path = self._add("endpoint", endpoint.path, f"GET {endpoint.path}")
        self._join(path, f"model:{endpoint.model}", "ask")
        if endpoint.log_to:
            self._join(f"model:{endpoint.model}", self.add_topic(endpoint.log_to), "answers")

    def add_sink(self, sink: SinkPlan) -> None:
        """Add where a stream's rows are delivered."""
        self._enter(sink.stream, self._add("sink", sink.name, f"{sink.spec.kind} {sink.spec.where}"))

    def add_known_model(self, name: str, inputs: Iterable[str]) -> None:
        """Add a model of which a log says only what it learns from: topics, and what is done to their rows."""
        model = self._add("model", name)
        for text in inputs:
            topic, _, operations = text.partition(" │ ")
            self._join(self.add_topic(topic), model, f"learn │ {operations}" if operations else "learn")

    def add_dead_letters(self, topic: str) -> None:
        """Add the dead letters of a topic that is there."""
        self._join(f"topic:{topic.removesuffix('.dlq')}", self.add_topic(topic), "refused")

    # -- parts and arrows --------------------------------------------------------------------------------------------

    def _add(self, kind: str, name: str, about: str = "", *, title: str = "", operation: str = "") -> str:
        """Add a part, unless it is there; return its id."""
        part_id = f"{kind}:{name}"
        if part_id not in self.parts or (about and not self.parts[part_id].about):
            self.parts[part_id] = Part(part_id, kind, title or name, about, operation)
        return part_id

    def _join(self, start: str, end: str, text: str = "", *, back: bool = False) -> None:
        """Add an arrow, unless it is there."""
        self.arrows.setdefault((start, end, text), Arrow(start, end, text, back))

    def _enter(self, stream: StreamPlan, end: str, text: str = "", *, back: bool = False) -> None:
        self._join(self.add_topic(stream.topic), end, _after(text, stream.operations), back=back)

    def _copy(self, task: StreamTask) -> None:
        for output in task.outputs:
            text = _after("", [*task.stream.operations, *output.operations])
            self._join(self.add_topic(task.stream.topic), self.add_topic(output.topic), text)

    def _model(self, task: ModelTask) -> None:
        model = self._add("model", task.name, learner_text(task.learner))
        for stream in task.learn:
            self._enter(stream, model, f"learn, cut every {task.cut}")
        for predict in task.predict:
            self._enter(predict.stream, model, "predict")
            for output in predict.outputs:
                self._join(model, self.add_topic(output.topic), _after("", output.operations))
        for evaluate in task.evaluate:
            if evaluate.stream is not None:
                self._enter(evaluate.stream, model, "evaluate")
            self._join(model, self.add_topic(task.metrics_topic), "scores")
        places = self._nodes(task.name, task.nodes, model)
        for number, operations in task.learn_nodes:
            self._join(places[number], model, _after(f"learn, cut every {task.cut}", operations), back=True)
        if task.retrain is not None:
            self._training(task, model, places)

    def _training(self, task: ModelTask, model: str, places: Sequence[str]) -> None:
        retrain = task.retrain
        assert retrain is not None
        training = self._add("training", task.name, f"on {retrain.rows}", title="training")
        if retrain.on is not None:
            self._join(places[retrain.on], training, "begins")
        if retrain.rows.node is not None:
            self._join(places[retrain.rows.node], training, "rows")
        if retrain.rows.stream is not None:
            self._enter(retrain.rows.stream, training, "rows")
        self._join(training, model, "new version", back=True)
        self._join(training, self.add_topic(task.training_topic), "what came of it")

    def _nodes(self, task: str, nodes: Sequence[Node], model: str) -> list[str]:
        """Add operators; return where the rows of each come from."""
        places = list[str]()
        for number, node in enumerate(nodes):
            operator = node.operator
            if isinstance(operator, Predicted):
                place = model
            elif isinstance(operator, Read):
                place = self.add_topic(operator.source.topic)
            else:
                name = f"{task}/{number}"
                place = self._add("operator", name, str(operator), title=operator.kind, operation=operator.kind)
                if node.source is not None:
                    self._join(places[node.source], place, _after("", node.operations))
                if operator.labels is not None:
                    self._enter(operator.labels, place, "labels")
            for output in node.outputs:
                end = self.add_topic(output.topic)
                if end != place:
                    self._join(place, end, _after("", output.operations))
            places.append(place)
        return places


def _after(text: str, operations: Iterable[Operation]) -> str:
    return " │ ".join([*([text] if text else []), *map(str, operations)])
