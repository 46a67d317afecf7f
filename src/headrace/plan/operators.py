"""What is derived from a task's rows, as frozen descriptions: grades, windows, alarms, and what they set off.

A task's nodes are numbered so that each comes after the one whose rows it takes. They run in the task's own step: an
alarm is raised at the row that causes it, and the row after it may already be answered by the model trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.drift import DriftSpec
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
        return " │ ".join([self.topic, *(str(one) for one in self.operations)])


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Rows that go to a topic, after some operations."""

    topic: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return " │ ".join([*(str(one) for one in self.operations), self.topic])


@dataclass(frozen=True, slots=True)
class Predicted:
    """Rows as the task's model answers them; ``number`` is that of its `PredictPlan`."""

    number: int

    def describe(self) -> Any:
        return {"predicted": self.number}


@dataclass(frozen=True, slots=True)
class Read:
    """Rows of a topic."""

    stream: StreamPlan

    def describe(self) -> Any:
        return {"read": str(self.stream)}


@dataclass(frozen=True, slots=True)
class Grade:
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

    def describe(self) -> Any:
        compare = self.compare
        return {
            "grade": str(self.truth),
            "on": [list(compare.on_left), list(compare.on_right)],
            "within": self.within_us,
            "lateness": self.lateness_us,
            "limit": self.limit,
            "time": list(self.time),
            "metric": [compare.metric.name, compare.round],
            "target": compare.target,
        }


@dataclass(frozen=True, slots=True)
class Windows:
    """Rows put together by time or by count; ``time``: a column of event times, else the rows' own."""

    spec: WindowSpec
    time: str | None = None

    def describe(self) -> Any:
        spec = self.spec
        return {"window": {name: _plain(getattr(spec, name)) for name in spec.__slots__}, "time": self.time}


@dataclass(frozen=True, slots=True)
class Alarms:
    """Rows that say that something is wrong."""

    spec: AlarmSpec

    def describe(self) -> Any:
        return {"alarm": {name: _plain(getattr(self.spec, name)) for name in self.spec.__slots__}}


@dataclass(frozen=True, slots=True)
class Drifts:
    """Rows at which a detector says that a column has changed."""

    spec: DriftSpec

    def describe(self) -> Any:
        detector = self.spec.detector
        kind = f"{type(detector).__module__}.{type(detector).__qualname__}"
        given: dict[str, Any] = getattr(detector, "_get_params", dict)()
        more = {name: _plain(getattr(self.spec, name)) for name in self.spec.__slots__ if name != "detector"}
        return {"drift": {**more, "detector": kind, "parameters": _plain(given)}}


What = Predicted | Read | Grade | Windows | Alarms | Drifts


@dataclass(frozen=True, slots=True)
class Node:
    """One thing that is derived.

    Attributes:
        source: number of the node whose rows it takes; None where rows enter.
        operations: what is done to those rows first.
        outputs: topics that its own rows go to.
    """

    what: What
    source: int | None = None
    operations: tuple[Operation, ...] = ()
    outputs: tuple[OutputPlan, ...] = ()

    def describe(self) -> Any:
        """JSON values: part of a fingerprint."""
        return {**self.what.describe(), "source": self.source, "after": [str(one) for one in self.operations]}


def topics_of(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Topics that nodes read themselves."""
    streams = [node.what.stream for node in nodes if isinstance(node.what, Read)]
    streams += [node.what.truth for node in nodes if isinstance(node.what, Grade)]
    return tuple(dict.fromkeys(stream.topic for stream in streams))


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
            return f"the last {self.span_us / 1e6:g} s"
        return f"all rows of {self.stream}" if self.stream is not None else self.query

    def describe(self) -> Any:
        """JSON values: part of a fingerprint."""
        after = [str(one) for one in self.operations]
        return {"rows": str(self), "node": self.node, "after": after}


@dataclass(frozen=True, slots=True)
class RetrainPlan:
    """When a model is trained anew, and on what.

    Attributes:
        on: the node each of whose rows begins a training; None: only when asked.
        swap: ``"barrier"`` or ``"when_ready"``.
        gate: what the new model must not be worse in; ``holdout``: share of the newest rows that decides.
        shadow: the new model answers beside the current one until it was better over ``promote`` graded rows.
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

    def describe(self) -> Any:
        """JSON values: part of the model's fingerprint."""
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
    """What a model is trained on, or what it is, before its first event.

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


def _plain(value: Any) -> Any:
    """A specification's value as JSON has it."""
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value)
