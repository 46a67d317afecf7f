"""What a user has declared so far of things that are derived: each with the one it takes its rows from."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.plan.operators import Node, OutputPlan, What
from headrace.plan.task import OperatorTask
from headrace.transform.expressions import Operation


@dataclass(eq=False, slots=True)
class Declared:
    """One thing that is derived.

    Attributes:
        host: what runs it: a model whose answers it is derived from, or a flow of its own.
        value: the column that a condition is about, where there is just one.
        span_us, rows: of windows, how long one is: after an alarm the next one raises none.
    """

    host: Host
    what: What
    source: Declared | None = None
    operations: tuple[Operation, ...] = ()
    outputs: list[OutputPlan] = field(default_factory=list)
    value: str | None = None
    by: tuple[str, ...] = ()
    span_us: int = 0
    span_rows: int = 0

    @property
    def number(self) -> int:
        return self.host.nodes.index(self)


class Host:
    """What runs derived things, in the order of their declaration."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[Declared] = []

    def add(self, declared: Declared) -> Declared:
        """One more; what it takes its rows from is there already."""
        self.nodes.append(declared)
        return declared

    def plans(self) -> tuple[Node, ...]:
        """As a task holds them."""
        return tuple(
            Node(one.what, None if one.source is None else one.source.number, one.operations, tuple(one.outputs))
            for one in self.nodes
        )

    def task(self) -> OperatorTask:
        """As a task of its own."""
        return OperatorTask(self.name, self.plans())


Root = tuple[Declared, tuple[Operation, ...]]
