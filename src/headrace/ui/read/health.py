"""How a log's pipeline is: its parts, where its time goes, what is stored, and what somebody should look at."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.findings import Finding
from headrace.inspect.doctor import Stored, findings_of, stored_of, tasks_of
from headrace.inspect.health import read_status
from headrace.log.base import Log
from headrace.registry.models import Progress
from headrace.registry.plans import read_plans
from headrace.serve.models import ComponentHealth
from headrace.units import bytes_text


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """How far a sink's destination is, as the log knows it."""

    name: str
    position: str


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps of its rows.

    Attributes:
        keep: for how long, or up to which size, as it was declared; "" where that is not known.
        oldest_us: when the oldest row that is held was appended; 0 without rows.
        dropped: rows that are not held any more.
    """

    topic: str
    keep: str
    rows: int
    bytes: int
    oldest_us: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Health:
    """How the pipeline of one log is.

    Attributes:
        runs: whether it says that it runs.
        where: which process said so, or that it was stopped; "" where that is not said.
        stopped_us: when it was stopped; 0 where that is not said.
        busy: share of the time of each part of a round, the largest first.
        gauges: name, labels in one text, value as people read it, what it is.
        tasks: by their names: checkpoints and offsets.
        machines: libraries and processors that the app ran with.
        retention: of each topic, the largest first.
        findings: what somebody should look at; none where all is well.
    """

    runs: bool
    where: str
    stopped_us: int
    figures: Mapping[str, Any]
    parts: list[ComponentHealth]
    busy: list[tuple[str, float]]
    gauges: list[tuple[str, str, str, str]]
    tasks: dict[str, Progress]
    sinks: list[SinkPosition]
    stored: Stored
    machines: list[tuple[str, dict[str, str]]]
    retention: list[Retention] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def health_of(log: Log) -> Health:
    """Return how the pipeline of a log is now."""
    status = read_status(log)
    figures = status.figures if status.runs else {}
    shares = sorted(figures.get("busy", {}).items(), key=lambda item: item[1], reverse=True)
    tasks = tasks_of(log)
    stored = stored_of(log)
    return Health(
        runs=status.runs,
        where=status.where,
        stopped_us=int((time.time() - status.age) * 1e6) if status.stopped else 0,
        figures=figures,
        parts=status.parts,
        busy=shares,
        gauges=[_gauge(gauge) for gauge in figures.get("gauges", ())],
        tasks=tasks,
        sinks=[SinkPosition(name, value.decode(errors="replace")) for name, value in log.records("sink").items()],
        stored=stored,
        machines=_machines(log),
        retention=retention_of(log),
        findings=findings_of(log, status, tasks, stored),
    )


def retention_of(log: Log) -> list[Retention]:
    """Return what each topic of a log keeps, the largest first."""
    plans = read_plans(log)
    kept = {part["title"]: str(plan.get("keep", "")) for plan in plans.values() for part in plan["parts"]}
    others = {str(plan.get("keep", "")) for plan in plans.values()}
    rest = others.pop() if len(others) == 1 else ""  # topics that no plan names are of the only one
    found = [
        Retention(
            name,
            kept.get(name, rest),
            info.rows,
            info.bytes,
            info.first_ts_us if info.rows else 0,
            info.first,
        )
        for name, info in log.topics().items()
    ]
    return sorted(found, key=lambda each: each.bytes, reverse=True)


def _gauge(gauge: Mapping[str, Any]) -> tuple[str, str, str, str]:
    name, value = gauge["name"], float(gauge["value"])
    text = bytes_text(int(value)) if name.endswith("bytes") else f"{value:,.3f}".rstrip("0").rstrip(".")
    return name, ", ".join(f"{key} {label}" for key, label in gauge["labels"].items()), text, gauge.get("help", "")


def _machines(log: Log) -> list[tuple[str, dict[str, str]]]:
    found = []
    for name, value in log.records("machine").items():
        about = json.loads(value)
        flat = {key: _listed(part) for key, part in about.items()}
        found.append((name.partition("/")[0], flat))
    return found


def _listed(value: object) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)
