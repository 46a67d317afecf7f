"""How a log's pipeline is: its parts, where its time goes, what is stored, and what somebody should look at."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.inspect.health import SILENT_SECONDS, Status, read_status
from headrace.log import file_of
from headrace.log.base import Log
from headrace.registry.models import Progress, read_progress
from headrace.serve.models import ComponentHealth
from headrace.ui.read.pipeline import DEAD
from headrace.ui.read.units import age_text, bytes_text

SHORT_BYTES = 1_000_000_000
BEHIND_BYTES = 1_000_000_000
ENDINGS = ("", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a log takes.

    Attributes:
        bytes: of its rows; ``file``: of its files, 0 where it is none; ``free``: of the disk they are on.
        dropped: rows that retention has dropped.
        first_us, last_us: when its oldest row that is held, and its newest one, were appended; 0 without rows.
    """

    topics: int
    rows: int
    bytes: int
    dropped: int
    first_us: int
    last_us: int
    file: int = 0
    free: int = 0
    path: str = ""


@dataclass(frozen=True, slots=True)
class SinkPosition:
    """How far a sink's destination is, as the log knows it."""

    name: str
    position: str


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
    findings: list[str] = field(default_factory=list)


def health_of(log: Log) -> Health:
    """Return how the pipeline of a log is now."""
    status = read_status(log)
    figures = status.figures if status.runs else {}
    shares = sorted(figures.get("busy", {}).items(), key=lambda item: item[1], reverse=True)
    tasks = {name: found for name in log.records("position") if (found := read_progress(log, name)) is not None}
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
        findings=findings_of(log, status, tasks, stored),
    )


def stored_of(log: Log) -> Stored:
    """Return what a log takes."""
    topics = log.topics().values()
    held = [info for info in topics if info.rows]
    path = file_of(log)
    size, free = 0, 0
    if path is not None:
        files = [path.with_name(path.name + ending) for ending in ENDINGS]
        size = sum(file.stat().st_size for file in files if file.exists())
        free = shutil.disk_usage(path.parent).free
    return Stored(
        topics=len(topics),
        rows=sum(info.rows for info in topics),
        bytes=sum(info.bytes for info in topics),
        dropped=sum(info.first for info in topics),
        first_us=min((info.first_ts_us for info in held), default=0),
        last_us=max((info.last_ts_us for info in held), default=0),
        file=size,
        free=free,
        path=str(path or ""),
    )


def findings_of(log: Log, status: Status, tasks: Mapping[str, Progress], stored: Stored) -> list[str]:
    """Return what somebody should look at."""
    found = [f"{part.kind} «{part.name}»: {part.status}" for part in status.parts if part.ended]
    if status.silent:
        by = f" ({status.where})" if status.where else ""
        found.append(f"the pipeline{by} has said nothing for {age_text(status.age)}: it was killed, or hangs")
    if status.runs:
        found += [
            f"{part.kind} «{part.name}» is away for {age_text(part.seconds)}: {part.status}"
            for part in status.parts
            if part.kind != "engine" and part.seconds > SILENT_SECONDS
        ]
    for gauge in status.figures.get("gauges", ()) if status.runs else ():
        if gauge["name"] == "source_slot_retained_bytes" and gauge["value"] > BEHIND_BYTES:
            kept = bytes_text(int(gauge["value"]))
            found.append(f"the slot of «{gauge['labels'].get('source', '')}» keeps {kept} of WAL on its server")
    found += [
        f"«{name}» predicts nothing: {progress.diverged}" for name, progress in tasks.items() if progress.diverged
    ]
    for name, info in log.topics().items():
        if name.endswith(DEAD) and info.rows:
            found.append(f"{info.rows:,} dead letters in «{name}»")
    if stored.path and stored.free < SHORT_BYTES:
        found.append(f"the disk of {stored.path} has {bytes_text(stored.free)} left")
    return found


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
