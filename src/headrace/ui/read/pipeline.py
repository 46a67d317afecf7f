"""The pipeline of a log: its graph, and for each part of it the numbers that move.

Numbers are keyed ``PART/NAME`` (``topic:orders/rows``, ``model:size/version``); `Numbers` makes them from two looks at
the log, one after the other, and says them as people read them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.inspect.doctor import DEAD, RETAINED, tasks_of
from headrace.inspect.health import Status, read_status
from headrace.log import file_of
from headrace.log.base import Log, TopicInfo
from headrace.plan.graph import Graph
from headrace.plan.picture import SPARE
from headrace.plan.plan import INTERNAL
from headrace.registry.models import Progress, read_model
from headrace.registry.plans import read_plans
from headrace.units import age_text, bytes_text, rate_text

IDLE, BUSY, HELD, FAILED = "idle", "busy", "held", "failed"
HELD_SECONDS = 3.0
RATE_SECONDS = 5.0
RAISING = ("alarm", "drift")
# Gauges that are worth a word in the picture.
WAITING = "waiting_predictions"
NOTES = {
    RETAINED.removeprefix("source_"): "of WAL kept",
    "lag_rows": "rows behind",
    WAITING: "wait for labels",
    "window_late_rows": "rows too late",
}


@dataclass(frozen=True, slots=True)
class Look:
    """What a log holds at one time.

    Attributes:
        at: by the monotonic clock; ``now_us`` by the wall's.
        progress: of tasks, models among them.
        mute: whether its pipeline says nothing of itself, though it may run: of an engine, or a version of Headrace,
            that does not on a cluster.
    """

    at: float
    now_us: int
    slice: int
    topics: Mapping[str, TopicInfo]
    progress: Mapping[str, Progress]
    status: Status
    mute: bool = False


def look(log: Log) -> Look:
    """Look at a log."""
    progress = tasks_of(log)
    status = read_status(log)
    return Look(
        time.monotonic(),
        time.time_ns() // 1000,
        log.newest_slice(),
        log.topics(),
        progress,
        status,
        file_of(log) is None and not status.parts and not status.stopped,
    )


def state_of(status: Status, mute: bool) -> str:
    """Return how a pipeline is, in words; of one that says nothing of itself only that it is quiet."""
    if status.failed:
        return "failed"
    if status.silent:
        return f"not heard of for {age_text(status.age)}"
    return "running" if status.runs else "quiet" if mute else "stopped"


def graph_of(log: Log, topics: Iterable[str] | None = None) -> Graph:
    """Return the graph of the pipelines that ran on a log; of logs of earlier versions their models and topics.

    Args:
        topics: that there are; None: those of now.
    """
    plans = read_plans(log)
    found = Graph()
    for values in plans.values():
        graph = Graph.from_dict(values)
        found.parts |= graph.parts
        found.arrows |= graph.arrows
    if not plans:
        for name in log.records("model"):
            known = read_model(log, name)
            found.add_known_model(name, sorted(known["fingerprint"].get("inputs", [])) if known is not None else [])
    for name in log.topics() if topics is None else topics:
        if name.endswith(DEAD) and f"topic:{name.removesuffix(DEAD)}" in found.parts:
            found.add_dead_letters(name)
    return found


def _brief(text: str) -> str:
    """Return a text as a part of the plan has room for it; the page Health has all of it.

    >>> _brief("streaming from db.example:5432/shop")
    'streaming from db.e…'
    """
    return text if len(text) <= SPARE else f"{text[: SPARE - 1]}…"


@dataclass(slots=True)
class Numbers:
    """Numbers of a pipeline by their keys, from one look to the next.

    Attributes:
        graph: the parts that have numbers.
        figures: of the pipeline, where it runs; see `headrace.inspect.health.Status`.
    """

    graph: Graph
    figures: Mapping[str, Any] = field(default_factory=dict)
    _looks: list[Look] = field(default_factory=list)
    _moved: dict[str, float] = field(default_factory=dict)

    def take(self, now: Look) -> dict[str, str]:
        """Return all numbers by their keys, as people read them."""
        self._looks = [*(before for before in self._looks if now.at - before.at <= RATE_SECONDS), now]
        found: dict[str, str] = {}
        for topic, info in now.topics.items():
            if not topic.startswith(INTERNAL):
                found |= self._topic(topic, info, now)
        for node in self.graph.parts.values():
            if node.kind == "topic" and f"{node.id}/rows" not in found:
                found |= {f"{node.id}/rows": "0", f"{node.id}/rate": "0/s"}
        readers = self._readers()
        for name, progress in now.progress.items():
            found |= self._task(name, progress, now, readers.get(name, ()))
        for part in now.status.parts:
            key = f"{part.kind}:{part.name}"
            state = FAILED if part.ended else HELD if part.seconds and part.kind != "engine" else BUSY
            found |= {f"{key}/state": state, f"{key}/status": _brief(part.status)}
        found |= self._gauges(now)
        alarms = sum(info.end for topic, info in now.topics.items() if topic in self._alarms())
        letters = sum(info.end for topic, info in now.topics.items() if topic.endswith(DEAD))
        runs, moves = now.status.runs, now.slice != self._looks[0].slice
        figures = now.status.figures
        self.figures = figures if runs else {}
        return found | {
            "log/state": "running" if now.mute and moves else state_of(now.status, now.mute),
            "log/slice": f"{now.slice:,}",
            "log/letters": f"{letters:,}",
            "log/alarms": f"{alarms:,}",
            "log/p50": f"{figures['p50_ms']:,.1f} ms" if runs and "p50_ms" in figures else "–",
            "log/p99": f"{figures['p99_ms']:,.1f} ms" if runs and "p99_ms" in figures else "–",
            "log/rounds": rate_text(figures.get("rounds_s", 0.0)) if runs else "–",
            "log/memory": bytes_text(int(figures.get("memory", 0))) if runs else "–",
        }

    def rate(self, topic: str) -> float:
        """Return rows a second that came to a topic in the newest looks."""
        first, last = self._looks[0], self._looks[-1]
        before, after = first.topics.get(topic), last.topics.get(topic)
        if after is None or last.at <= first.at:
            return 0.0
        return (after.end - (before.end if before is not None else 0)) / (last.at - first.at)

    def _topic(self, topic: str, info: TopicInfo, now: Look) -> dict[str, str]:
        key, rate = f"topic:{topic}", self.rate(topic)
        return {
            f"{key}/rows": f"{info.rows:,}",
            f"{key}/bytes": bytes_text(info.bytes),
            f"{key}/end": f"{info.end:,}",
            f"{key}/rate": rate_text(rate),
            f"{key}/age": age_text((now.now_us - info.last_ts_us) / 1e6) if info.rows else "–",
            f"{key}/state": BUSY if rate else IDLE,
        }

    def _alarms(self) -> set[str]:
        """Return the topics that alarms and drifts go to."""
        raising = {
            part.id for part in self.graph.parts.values() if part.kind == "operator" and part.operation in RAISING
        }
        ends = {arrow.end for arrow in self.graph.arrows.values() if arrow.start in raising}
        return {end.removeprefix("topic:") for end in ends if end.startswith("topic:")}

    def _readers(self) -> dict[str, set[str]]:
        """Return the topics that each task reads."""
        found: dict[str, set[str]] = {}
        for arrow in self.graph.arrows.values():
            kind, _, topic = arrow.start.partition(":")
            part, _, name = arrow.end.partition(":")
            if kind == "topic" and part in ("model", "operator", "training"):
                found.setdefault(name.partition("/")[0], set()).add(topic)
        return found

    def _task(self, name: str, progress: Progress, now: Look, topics: set[str] | tuple[()]) -> dict[str, str]:
        key = f"model:{name}"
        ends = {topic: info.end for topic, info in now.topics.items()}
        waiting = sum(max(0, ends.get(topic, 0) - progress.offsets.get(topic, 0)) for topic in topics)
        before = self._looks[0].progress.get(name)
        if before is None or before.offsets != progress.offsets or not waiting:
            self._moved[name] = now.at
        stuck = now.at - self._moved.get(name, now.at) > HELD_SECONDS
        moving = before is not None and before.offsets != progress.offsets
        state = FAILED if progress.diverged else HELD if waiting and stuck else BUSY if moving else IDLE
        busy = now.status.figures.get("busy", {}).get(name, 0.0) if now.status.runs else 0.0
        return {
            f"{key}/version": f"v{progress.version}",
            f"{key}/learned": f"{progress.model_rows:,}",
            f"{key}/waiting": f"{waiting:,}",
            f"{key}/pending": f"{progress.pending:,}",
            f"{key}/busy": f"{busy:.0%}",
            f"{key}/position": progress.position or "nothing",
            f"{key}/state": state,
        }

    def _gauges(self, now: Look) -> dict[str, str]:
        found: dict[str, str] = {}
        gauges = now.status.figures.get("gauges", ()) if now.status.runs else ()
        notes: dict[str, list[str]] = {}
        for gauge in gauges:
            labels, name, value = gauge["labels"], gauge["name"], float(gauge["value"])
            for kind in ("source", "sink"):
                if kind in labels:
                    short = name.removeprefix(f"{kind}_")
                    text = bytes_text(int(value)) if "bytes" in short else f"{value:,.0f}"
                    found[f"{kind}:{labels[kind]}/{short}"] = text
                    if short in NOTES and value:
                        notes.setdefault(f"{kind}:{labels[kind]}", []).append(f"{text} {NOTES[short]}")
            if "node" in labels and name in NOTES and value:
                notes.setdefault(f"operator:{labels['task']}/{labels['node']}", []).append(
                    f"{value:,.0f} {NOTES[name]}"
                )
        found |= {f"{part}/note": " · ".join(said) for part, said in notes.items()}
        kept = [float(gauge["value"]) for gauge in gauges if gauge["name"] == RETAINED]
        waiting = sum(float(gauge["value"]) for gauge in gauges if gauge["name"] == WAITING)
        found["log/unlabelled"] = f"{waiting:,.0f}" if gauges else "–"
        found["log/kept"] = bytes_text(int(sum(kept))) if kept else "–"
        return found
