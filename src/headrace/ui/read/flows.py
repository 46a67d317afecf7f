"""Where the rows of a log's tasks go: from a model to its predictions, their grades, windows, alarms and trainings.

A log keeps how each task was declared (`headrace.registry.models.Declaration`); of this the nodes are read, with the
topics that they write. Everything that leads from one row to another one follows them, down and up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.plan.graph import Graph
from headrace.registry.models import Declaration, read_declarations, read_model
from headrace.registry.plans import read_plans
from headrace.ui.read.moment import Moment

PREDICTED, READ, GRADE, WINDOW, ALARM, DRIFT = "predicted", "read", "grade", "window", "alarm", "drift"
KINDS = (PREDICTED, READ, GRADE, WINDOW, ALARM, DRIFT)
STREAM = " │ "


@dataclass(frozen=True, slots=True)
class Node:
    """What a task makes of rows.

    Attributes:
        kind: one of `KINDS`.
        spec: how it is declared; of a ``read`` the topic's name.
        about: the same in words.
        source: number of the node whose rows it takes; None where rows enter.
        topics: those that it writes.
        time: column of event times, of a window that has one of its own.
        direct: whether it takes its source's rows as they are.
    """

    task: str
    number: int
    kind: str
    spec: Any = None
    about: str = ""
    source: int | None = None
    topics: tuple[str, ...] = ()
    time: str | None = None
    direct: bool = True

    @property
    def by(self) -> tuple[str, ...]:
        """Return the columns whose values tell groups apart."""
        return tuple(self.spec.get("by") or ()) if isinstance(self.spec, Mapping) else ()


@dataclass(slots=True)
class Flows:
    """Nodes by task and number; and models with what they read and write.

    Attributes:
        predictions: model -> topics that it writes predictions to; ``inputs``: topic of predictions -> where its rows
            come from.
        labels: topic of grades -> topic of their labels.
        trained_on: model -> node whose rows it is trained on; ``begun_by``: model -> node that begins a training.
        trains: models that are trained anew -> on what; ``shadows``: of these, where the new one is tried out first.
    """

    nodes: dict[tuple[str, int], Node] = field(default_factory=dict)
    predictions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    trained_on: dict[str, Node] = field(default_factory=dict)
    begun_by: dict[str, Node] = field(default_factory=dict)
    trains: dict[str, str] = field(default_factory=dict)
    shadows: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def writer(self, topic: str, *kinds: str) -> Node | None:
        """Return the node that writes a topic, of some kinds where they are given."""
        found = (node for node in self.nodes.values() if topic in node.topics)
        return next((node for node in found if not kinds or node.kind in kinds), None)

    def model_of(self, topic: str) -> str | None:
        """Return the model that writes its predictions to a topic."""
        return next((model for model, topics in self.predictions.items() if topic in topics), None)

    def above(self, node: Node) -> Iterator[Node]:
        """Yield the nodes whose rows a node is made of, the nearest first; a topic that is read leads to its writer."""
        seen: set[tuple[str, int]] = set()
        while (node.task, node.number) not in seen:
            seen.add((node.task, node.number))
            if node.kind == READ:
                writer = self.writer(str(node.spec))
                if writer is None:
                    return
                following = writer
            elif node.source is None:
                return
            else:
                following = self.nodes[node.task, node.source]
            yield following
            node = following

    def source(self, node: Node) -> Node | None:
        """Return the node whose rows one takes; where that only reads a topic, the one that writes it."""
        return next((above for above in self.above(node) if above.kind != READ), None)

    def source_topics(self, node: Node) -> tuple[str, ...]:
        """Return the topics in which the rows that a node takes are found."""
        for above in self.above(node):
            if above.kind == PREDICTED:
                return self.predictions.get(above.task, ())
            if above.topics:
                return above.topics
        entry = self.nodes.get((node.task, node.source)) if node.source is not None else None
        return (str(entry.spec),) if entry is not None and entry.kind == READ else ()

    def below(self, node: Node, kind: str) -> list[Node]:
        """Return the nodes of a kind that are made of a node's rows."""
        return [other for other in self.nodes.values() if other.kind == kind and node in self.above(other)]

    def of_model(self, model: str, kind: str) -> list[Node]:
        """Return the nodes of a kind that are made of a model's predictions."""
        own = set(self.predictions.get(model, ()))

        def mine(node: Node) -> bool:
            return any(
                (each.kind == PREDICTED and each.task == model) or (each.kind == READ and str(each.spec) in own)
                for each in (node, *self.above(node))
            )

        return [node for node in self.nodes.values() if node.kind == kind and mine(node)]

    def model_above(self, node: Node) -> str | None:
        """Return the model whose predictions a node's rows are made of."""
        for each in (node, *self.above(node)):
            if each.kind == PREDICTED:
                return each.task
            if each.kind == READ and (model := self.model_of(str(each.spec))) is not None:
                return model
        return None

    def alarms(self) -> list[Node]:
        """Return the nodes that raise alarms, and those that find drifts."""
        return [node for node in self.nodes.values() if node.kind in (ALARM, DRIFT)]


def flows_of(moment: Moment) -> Flows:
    """Return where rows go, as tasks were declared then."""
    flows = Flows()
    log = moment.log
    plans = [Graph.from_dict(values) for values in read_plans(log).values()]
    abouts = {part.id: part.about for graph in plans for part in graph.parts.values() if part.kind == "operator"}
    names = sorted({name.rpartition("/")[0] for name in log.records("declaration")})
    for task in names:
        declared = _then(read_declarations(log, task), moment)
        if declared is not None:
            _add(flows, task, declared.attached, abouts, model=read_model(log, task) is not None)
    return flows


def _then(declared: list[Declaration], moment: Moment) -> Declaration | None:
    """Return the newest declaration that was there; else the first."""
    until = moment.ts_us
    known = [each for each in declared if until is None or each.ts_us <= until]
    return known[-1] if known else declared[0] if declared else None


def _add(flows: Flows, task: str, attached: Mapping[str, Any], abouts: Mapping[str, str], *, model: bool) -> None:
    predicts = attached.get("predict") or []
    if model:
        flows.models.append(task)
        flows.predictions[task] = tuple(output["topic"] for plan in predicts for output in plan["outputs"])
    for plan in predicts:
        for output in plan["outputs"]:
            flows.inputs[output["topic"]] = plan["stream"].partition(STREAM)[0]
    for number, declared in enumerate(attached.get("nodes") or []):
        kind = next((each for each in KINDS if each in declared), "")
        spec = declared.get(kind)
        topics = tuple(output["topic"] for output in declared.get("outputs") or [])
        if kind == GRADE:
            flows.labels |= dict.fromkeys(topics, str(spec).partition(STREAM)[0])
            spec = {key: value for key, value in declared.items() if key not in ("outputs", "source", "after")}
        elif kind == READ:
            spec = str(spec).partition(STREAM)[0]
        about = abouts.get(f"operator:{task}/{number}", kind)
        time = declared.get("time") if kind == WINDOW else None
        flows.nodes[task, number] = Node(
            task, number, kind, spec, about, declared.get("source"), topics, time, not declared.get("after")
        )
    retrain = attached.get("retrain")
    if model and retrain:
        flows.trains[task] = str(retrain.get("rows") or "")
        flows.shadows += [task] if retrain.get("shadow") is not None else []
        for place, found in (("node", flows.trained_on), ("on", flows.begun_by)):
            if retrain.get(place) is not None and (node := flows.nodes.get((task, retrain[place]))) is not None:
                found[task] = node
