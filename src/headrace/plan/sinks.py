"""Sinks as they are declared: the rows of a stream go to a destination outside the log; and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import DeclarationError
from headrace.plan.task import StreamPlan
from headrace.sinks.base import SinkSpec
from headrace.transform.expressions import Filter, Operation, Select, WithColumns

OWN = "__headrace"


@dataclass(frozen=True, slots=True)
class SinkPlan:
    """A stream whose rows are delivered somewhere.

    Attributes:
        name: unique in the pipeline; the destination knows the sink's position by it.
    """

    name: str
    stream: StreamPlan
    spec: SinkSpec

    def __str__(self) -> str:
        key = f", key {', '.join(self.spec.key)}" if self.spec.key else ""
        return f"{self.stream} ──▶ {self.name}  {self.spec.where}{key}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; no secret is among them."""
        where, key = self.spec.where, list(self.spec.key)
        return {"name": self.name, "input": str(self.stream), "to": self.spec.kind, "where": where, "key": key}


def check_sinks(sinks: Sequence[SinkPlan], written: Mapping[str, str]) -> None:
    """Raise DeclarationError for names that are there twice, and topics that cannot be.

    Args:
        written: topic -> who writes it, sinks left out.
    """
    names: set[str] = set()
    for sink in sinks:
        if sink.name in names:
            raise DeclarationError(
                f"two sinks are named «{sink.name}»", advice="Give one of them name=…: its position is stored under it."
            )
        names.add(sink.name)
        if sink.stream.topic.startswith(OWN):
            raise DeclarationError(f"«{sink.name}»: the topic {sink.stream.topic} is Headrace's own")
        for topic in sink.spec.writes:
            if topic in written:
                raise DeclarationError(
                    f"«{sink.name}» writes the topic «{topic}», which «{written[topic]}» writes",
                    advice="Give the responses a topic of their own.",
                )


def key_sources(operations: Sequence[Operation], key: Sequence[str]) -> list[str] | None:
    """Return the columns of a topic that a key's columns are; None where an operation computes one of them.

    >>> key_sources([Select((), {"number": "id"}), Filter("big")], ["number"])
    ['id']
    """
    found = list(key)
    for operation in reversed(operations):
        if isinstance(operation, Select | WithColumns):
            computed = operation.computed
            if any(not isinstance(computed.get(name, ""), str) for name in found):
                return None
            found = [computed.get(name, name) for name in found]
        elif not isinstance(operation, Filter):
            return None
    return found
