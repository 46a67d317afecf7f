"""Operators of a task as frozen descriptions: grades, windows, alarms, and the trainings that they set off.

A task's nodes are numbered so that each comes after the one whose rows it takes. They run in the task's own step: an
alarm is raised at the row that causes it, and the row after it may already be predicted by the model trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import pyarrow as pa

from headrace.errors import DeclarationError
from headrace.event_time import holds_times
from headrace.grade.alarm import AlarmSpec
from headrace.grade.columns import group_columns, numbers
from headrace.grade.compare import CompareSpec, graded_rows
from headrace.grade.drift import DriftSpec, with_drift_columns
from headrace.grade.interval_join.keys import kind_of
from headrace.grade.interval_join.outcomes import COLUMNS as OUTCOME_COLUMNS
from headrace.grade.interval_join.outcomes import Outcomes, reasons
from headrace.grade.metrics import Metric
from headrace.grade.windows.layout import Layout
from headrace.grade.windows.window import WindowSpec
from headrace.plan.columns import Absent, Columns
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

    def columns(self, rows: Columns, labels: Columns | None, task: str) -> Columns:
        """Return the columns of its rows.

        Args:
            rows: the columns of the rows that it takes; ``labels``: of those that it meets them with, where it does.
            task: whose operator it is, for people.

        Raises:
            DeclarationError: it wants a column that is not there, or one of another type.
        """
        return rows


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

    def columns(self, rows: Columns, labels: Columns | None, task: str) -> Columns:
        compare, who = self.compare, f"«{task}»: grade(on=…)"
        assert labels is not None
        for mine, theirs in zip(compare.on_left, compare.on_right, strict=True):
            left, right = kind_of(rows.wanted(mine, who)), kind_of(labels.wanted(theirs, who))
            if None not in (left, right) and left != right:
                raise (labels if rows.fixed else rows).mistake(
                    f"{who} compares «{mine}» of {rows.topic}, which is {left}, with «{theirs}» of {labels.topic}, "
                    f"which is {right}: no label would ever be found",
                    "Give both one type, in the table or by .with_columns(…).",
                )
        labels.wanted(compare.target, f"«{task}»: grade(target=…)")
        for side, time in zip((rows, labels), self.time, strict=True):
            _check_time(side, time, f"«{task}»: grade(time=…)")
        wanted = (*compare.on_right, compare.target)
        if rows.open and not rows.supposed:
            # The label's other columns may be called otherwise, beside columns that nobody knows yet.
            labels = labels.of(field for field in labels.schema if field.name in wanted)
        batches = rows.batch(*compare.on_left), labels.batch(*wanted)
        left, right = (pa.Table.from_batches([batch.records]) for batch in batches)
        none = Outcomes.of(dict.fromkeys(OUTCOME_COLUMNS, ()), reasons(self.limit))
        graded = rows.of(graded_rows(none, left, right, compare).schema, f"the grades of «{task}»")
        return replace(graded, fixed=rows.fixed and labels.fixed, absent=max(rows.absent, labels.absent))


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

    def columns(self, rows: Columns, labels: Columns | None, task: str) -> Columns:
        for name in self.spec.by:
            rows.wanted(name, f"«{task}»: window(by=…)")
        for name, aggregate in self.spec.aggregates:
            if aggregate.column is not None:
                rows.wanted(aggregate.column, f"«{task}»: {name}={aggregate.kind}(…) of a window")
        _check_time(rows, self.time, f"«{task}»: window(time=…)")
        layout = Layout(self.spec)
        _tried(lambda: layout.select(rows.batch(*layout.names).records), rows, task)
        return replace(rows.of(layout.none().records.schema, f"the windows of «{task}»"), absent=Absent.MISTAKE)


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

    def columns(self, rows: Columns, labels: Columns | None, task: str) -> Columns:
        _check_numbers(rows, self.spec.column, self.spec.by, f"«{task}»: an alarm")
        return rows


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

    def columns(self, rows: Columns, labels: Columns | None, task: str) -> Columns:
        _check_numbers(rows, self.spec.column, self.spec.by, f"«{task}»: drift(…)")
        return rows.of(with_drift_columns(rows.schema))


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


def _check_time(rows: Columns, name: str | None, who: str) -> None:
    """Refuse a column of event times that is not there, or that holds none."""
    if name in (None, ARRIVAL):
        return
    kind = rows.wanted(str(name), who).type
    if not holds_times(kind):
        raise rows.mistake(
            f"{who} of {rows.topic}: «{name}» is {kind}, no time",
            "Take a timestamp or date, ISO 8601 text, or whole milliseconds since 1970.",
        )


def _check_numbers(rows: Columns, name: str, by: Sequence[str], who: str) -> None:
    """Refuse a column of numbers that is not there or holds none, and groups that are none."""
    for column in (*by, name):
        rows.wanted(column, who)
    records = rows.batch(name, *by).records
    _tried(lambda: (numbers(records, name, who), group_columns(records, by, who)), rows)


def _tried(attempt: Callable[[], object], rows: Columns, task: str = "") -> None:
    """Let an operator's logic take no rows, to see whether it could take some."""
    try:
        attempt()
    except DeclarationError as error:
        who = f"«{task}»: " if task else ""
        raise rows.mistake(f"{who}{error.message}, of {rows.topic}", error.advice) from error


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
