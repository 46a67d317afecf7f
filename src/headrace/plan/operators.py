"""Operators of a task as frozen descriptions: grades, windows, alarms, and the trainings that they set off.

A task's nodes are numbered so that each comes after the one whose rows it takes. They run in the task's own step: an
alarm is raised at the row that causes it, and the row after it may already be predicted by the model trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import pyarrow as pa

from headrace.errors import DeclarationError
from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.drift import DriftSpec
from headrace.grade.interval_join.keys import kind_of
from headrace.grade.metrics import Metric
from headrace.grade.windows.window import WindowSpec
from headrace.transform.expressions import Operation

ARRIVAL = "arrival"
GRADED = ("graded", "corrected")


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A topic and what is done to its batches."""

    topic: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return " │ ".join([self.topic, *map(str, self.operations)])


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Rows that go to a topic, after some operations."""

    topic: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return " │ ".join([*map(str, self.operations), self.topic])


FieldOf = Callable[[StreamPlan, str], pa.Field | None]


@dataclass(frozen=True, slots=True)
class OperatorPlan:
    """An operator of a task: what is done with the rows of the node before it, or where rows enter.

    A new operator is a class like those below, the logic in `headrace.grade` that it describes
    (`headrace.grade.operator_logic`), and their registration in `headrace.step.operators`.

    Attributes:
        kind: its name, in the text of a plan and in a fingerprint.
        edge: the point where a test may kill the process when it has run.
    """

    kind: ClassVar[str] = ""
    edge: ClassVar[str] = ""

    @property
    def stream(self) -> StreamPlan | None:
        """The stream whose rows it gives, where rows enter."""
        return None

    @property
    def labels(self) -> StreamPlan | None:
        """The stream of labels that it meets rows with."""
        return None

    @property
    def metric(self) -> Metric | None:
        """The metric of predictions' errors, where it finds some."""
        return None

    @property
    def streams(self) -> tuple[StreamPlan, ...]:
        """The streams that it reads itself."""
        return tuple(stream for stream in (self.stream, self.labels) if stream is not None)

    def name(self, number: int) -> str:
        """Return its name in the text of a plan, where its rows go to no topic."""
        return f"{self.kind} {number}"

    def __str__(self) -> str:
        return self.kind

    def describe(self) -> dict[str, Any]:
        """Return JSON values: part of a fingerprint."""
        raise NotImplementedError

    def check(self, left: StreamPlan | None, field_of: FieldOf, task: str) -> None:
        """Refuse columns of captured tables that cannot be.

        Args:
            left: the stream that its rows come from, where it is known.
            field_of: gives a column of a stream; None where it is not known before rows come.

        Raises:
            DeclarationError: a column is not there, or of a wrong type.
        """


@dataclass(frozen=True, slots=True)
class Predicted(OperatorPlan):
    """Rows of a stream as the task's model predicts them; ``number`` is that of its `PredictPlan`."""

    number: int
    predicted: StreamPlan

    kind: ClassVar[str] = "predicted"
    edge: ClassVar[str] = "derive.predicted"

    @property
    def stream(self) -> StreamPlan:
        return self.predicted

    def __str__(self) -> str:
        return f"predictions of {self.predicted}"

    def describe(self) -> dict[str, Any]:
        return {self.kind: self.number}


@dataclass(frozen=True, slots=True)
class Read(OperatorPlan):
    """Rows of a topic."""

    source: StreamPlan

    kind: ClassVar[str] = "read"
    edge: ClassVar[str] = "derive.read"

    @property
    def stream(self) -> StreamPlan:
        return self.source

    def name(self, number: int) -> str:
        return str(self.source)

    def __str__(self) -> str:
        return str(self.source)

    def describe(self) -> dict[str, Any]:
        return {self.kind: str(self.source)}


@dataclass(frozen=True, slots=True)
class Grade(OperatorPlan):
    """Predictions beside the truth.

    Attributes:
        truth: the stream of labels.
        within_us, lateness_us, limit: as for `headrace.grade.interval_join.join.Join`.
        time: columns of event times of both sides; None: the commit's; ``"arrival"``: when the log took the row in.
        compare: columns and metric.
    """

    truth: StreamPlan
    within_us: int
    compare: CompareSpec
    lateness_us: int = 0
    limit: int = 2_000_000
    time: tuple[str | None, str | None] = (None, None)

    kind: ClassVar[str] = "grade"
    edge: ClassVar[str] = "derive.joined"

    def __str__(self) -> str:
        on, within = ", ".join(self.compare.on_left), span_text(self.within_us)
        return f"grades with {self.truth} on {on} within {within}: {self.compare.metric.name}"

    @property
    def labels(self) -> StreamPlan:
        return self.truth

    @property
    def metric(self) -> Metric:
        return self.compare.metric

    def describe(self) -> dict[str, Any]:
        compare = self.compare
        return {
            self.kind: str(self.truth),
            "on": [list(compare.on_left), list(compare.on_right)],
            "within": self.within_us,
            "lateness": self.lateness_us,
            "limit": self.limit,
            "time": list(self.time),
            "metric": [compare.metric.name, compare.round],
            "target": compare.target,
        }

    def check(self, left: StreamPlan | None, field_of: FieldOf, task: str) -> None:
        compare, truth = self.compare, self.truth
        right = [field_of(truth, name) for name in (*compare.on_right, compare.target)]
        for mine, name, label in zip(compare.on_left, compare.on_right, right, strict=False):
            prediction = None if left is None else field_of(left, mine)
            kinds = [None if column is None else kind_of(column) for column in (prediction, label)]
            if None not in kinds and kinds[0] != kinds[1] and left is not None:
                raise DeclarationError(
                    f"«{task}»: grade(on=…) compares «{mine}» of {left.topic}, which is {kinds[0]}, with «{name}» "
                    f"of {truth.topic}, which is {kinds[1]}: no label would ever be found",
                    advice="Give both one type, in the table or by .with_columns(…).",
                )


@dataclass(frozen=True, slots=True)
class Windows(OperatorPlan):
    """Rows put together by time or by count; ``time``: a column of event times, else the rows' own."""

    spec: WindowSpec
    time: str | None = None

    kind: ClassVar[str] = "window"
    edge: ClassVar[str] = "derive.windowed"

    def __str__(self) -> str:
        return window_text(self.spec)

    def describe(self) -> dict[str, Any]:
        return {self.kind: _fields(self.spec), "time": self.time}


@dataclass(frozen=True, slots=True)
class Alarms(OperatorPlan):
    """Rows that say that something is wrong."""

    spec: AlarmSpec

    kind: ClassVar[str] = "alarm"
    edge: ClassVar[str] = "derive.alarmed"

    def __str__(self) -> str:
        spec = self.spec
        bounds = [("below", spec.below), ("above", spec.above)]
        text = " or ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
        return f"alarms: {spec.column} {text}" + (f", {spec.consecutive} in a row" if spec.consecutive > 1 else "")

    def describe(self) -> dict[str, Any]:
        return {self.kind: _fields(self.spec)}


@dataclass(frozen=True, slots=True)
class Drifts(OperatorPlan):
    """Rows at which a detector says that a column has changed."""

    spec: DriftSpec

    kind: ClassVar[str] = "drift"
    edge: ClassVar[str] = "derive.drifted"

    def __str__(self) -> str:
        return f"drifts of {self.spec.column} by {type(self.spec.detector).__name__}"

    def describe(self) -> dict[str, Any]:
        detector = self.spec.detector
        name = f"{type(detector).__module__}.{type(detector).__qualname__}"
        # River's way to ask for what a detector was made with; detectors of somebody's own may lack it.
        parameters: dict[str, Any] = getattr(detector, "_get_params", dict)()
        own = {key: value for key, value in _fields(self.spec).items() if key != "detector"}
        return {self.kind: {**own, "detector": name, "parameters": _plain(parameters)}}


def window_text(spec: WindowSpec) -> str:
    """Return windows in a line: how long each is, and what is made of it.

    >>> window_text(WindowSpec(size_us=60_000_000, every_us=10_000_000, by=("Species",)))
    'windows of 60 s every 10 s by Species'
    """
    size = f"{spec.rows} rows" if spec.rows else span_text(spec.size_us)
    every = ("row" if spec.every_rows == 1 else f"{spec.every_rows} rows") if spec.rows else span_text(spec.every_us)
    made = [f"{name}={kind.kind}({kind.column or ''})" for name, kind in spec.aggregates]
    return (
        f"windows of {size}"
        + (f" every {every}" if every != size else "")
        + (f" by {', '.join(spec.by)}" if spec.by else "")
        + (f": {', '.join(made)}" if made else "")
    )


def span_text(span_us: int) -> str:
    """Return a duration for people.

    >>> span_text(90_000_000)
    '90 s'
    """
    return f"{span_us / 1e6:g} s"


@dataclass(frozen=True, slots=True)
class Node:
    """An operator in its place.

    Attributes:
        source: number of the node whose rows it takes; None where rows enter.
        operations: what is done to those rows first.
        outputs: topics that its own rows go to.
    """

    operator: OperatorPlan
    source: int | None = None
    operations: tuple[Operation, ...] = ()
    outputs: tuple[OutputPlan, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return JSON values: part of a fingerprint."""
        after = [str(operation) for operation in self.operations]
        return {**self.operator.describe(), "source": self.source, "after": after}


def topics_behind(nodes: Sequence[Node], number: int) -> list[str]:
    """Return the topics that a node's rows come from; those of the rows it takes come first."""
    node = nodes[number]
    before = [] if node.source is None else topics_behind(nodes, node.source)
    return [*before, *(stream.topic for stream in node.operator.streams)]


def name_of(nodes: Sequence[Node], number: int) -> str:
    """Return a node's name in the text of a plan: its topic, or what it is."""
    node = nodes[number]
    return node.outputs[0].topic if node.outputs else node.operator.name(number)


def lines_of(nodes: Sequence[Node]) -> list[str]:
    """Return nodes as text, each with what it takes its rows from."""
    lines = []
    for number, node in enumerate(nodes):
        if node.source is not None:
            beside = f" with {node.operator.labels}" if node.operator.labels else ""
            outputs = ", ".join(str(output) for output in node.outputs) or name_of(nodes, number)
            lines.append(f"{name_of(nodes, node.source)}{beside} ──{node.operator.kind}──▶ {outputs}")
    return lines


def topics_of(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Return the topics that nodes read themselves."""
    return tuple(dict.fromkeys(stream.topic for node in nodes for stream in node.operator.streams))


def label_topics(nodes: Sequence[Node]) -> set[str]:
    """Return the topics of labels that nodes meet rows with."""
    return {node.operator.labels.topic for node in nodes if node.operator.labels is not None}


# -- training anew ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows to train on, as they are when a training begins.

    Attributes:
        kind: ``"last"`` so many ``rows`` of a node, ``"since"`` a ``span_us`` before the training of a node, ``"all"``
            rows of a table as it is then, or what a ``query`` says.
        node: where the rows come from, and what is done to them; of a table its ``stream``.
    """

    kind: str
    node: int | None = None
    operations: tuple[Operation, ...] = ()
    rows: int = 0
    span_us: int = 0
    stream: StreamPlan | None = None
    query: str = ""

    def __str__(self) -> str:
        if self.kind == "last":
            return f"the last {self.rows} rows"
        if self.kind == "since":
            return f"the last {span_text(self.span_us)}"
        return f"all rows of {self.stream}" if self.stream is not None else self.query

    def describe(self) -> dict[str, Any]:
        """Return JSON values: part of a fingerprint."""
        after = [str(operation) for operation in self.operations]
        return {"rows": str(self), "node": self.node, "after": after}


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """A model's training anew: when, and on what.

    Attributes:
        on: the node each of whose rows begins a training; None: only when asked.
        swap: ``"barrier"`` or ``"when_ready"``.
        gate: what the new model must not be worse in; ``holdout``: share of the newest rows that decides.
        shadow: the new model predicts beside the current one until it was better over ``promote`` graded rows.
    """

    rows: Selection
    on: int | None = None
    operations: tuple[Operation, ...] = ()
    swap: str = "barrier"
    gate: Metric | None = None
    holdout: float = 0.2
    shadow: bool = False
    promote: int = 0
    epochs: int = 1

    def describe(self) -> dict[str, Any]:
        """Return JSON values: part of the model's fingerprint."""
        return {
            **self.rows.describe(),
            "on": self.on,
            "swap": self.swap,
            "gate": [self.gate.name, self.holdout] if self.gate else None,
            "shadow": self.promote if self.shadow else None,
            "epochs": self.epochs,
        }


@dataclass(frozen=True, slots=True)
class Initial:
    """A model's beginning: what it is trained on, or what it is, before its first event.

    Attributes:
        text: what it is, as JSON values: part of the model's fingerprint.
        read: gives rows of a file; ``stream``: a table's or a topic's; ``query``: SQL over topics.
        version: name and version, or tag, of a model in the log; ``state``: a fitted learner's.
    """

    text: Any
    read: Callable[[], Any] | None = field(default=None, repr=False, compare=False)
    stream: StreamPlan | None = None
    query: str = ""
    version: tuple[str, str] | None = None
    state: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


def _fields(spec: WindowSpec | AlarmSpec | DriftSpec) -> dict[str, Any]:
    return {field.name: _plain(getattr(spec, field.name)) for field in fields(spec)}


def _plain(value: Any) -> Any:
    """Return a specification's value as JSON has it."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value)
