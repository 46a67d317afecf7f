"""The pipeline of a log: its graph, and for each part of it the numbers that move.

Numbers are keyed ``PART/NAME`` (``topic:orders/rows``, ``model:size/version``); `Numbers` makes them from two looks at
the log, one after the other, and says them as people read them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.inspect.health import Status, read_status
from headrace.log.base import Log, TopicInfo
from headrace.plan.graph import Graph
from headrace.plan.plan import INTERNAL
from headrace.registry.models import Progress, read_model, read_progress
from headrace.registry.plans import read_plans
from headrace.ui.read.units import age_text, bytes_text, rate_text

IDLE, BUSY, HELD, FAILED = "idle", "busy", "held", "failed"
HELD_SECONDS = 3.0
DEAD = ".dlq"
RATE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a log holds at one time.

    Attributes:
        at: by the monotonic clock; ``now_us`` by the wall's.
        progress: of tasks, models among them.
    """

    at: float
    now_us: int
    slice: int
    topics: Mapping[str, TopicInfo]
    progress: Mapping[str, Progress]
    status: Status


def look(log: Log) -> Look:
    """Look at a log."""
    progress = {name: found for name in log.records("position") if (found := read_progress(log, name)) is not None}
    return Look(time.monotonic(), time.time_ns() // 1000, log.newest_slice(), log.topics(), progress, read_status(log))


def graph_of(log: Log) -> Graph:
    """Return the graph of the pipelines that ran on a log; of logs of earlier versions their models and topics."""
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
    for name in log.topics():
        if name.endswith(DEAD) and f"topic:{name.removesuffix(DEAD)}" in found.parts:
            found.add_dead_letters(name)
    return found


@dataclass(slots=True)
class Numbers:
    """Numbers of a pipeline by their keys, from one look to the next.

    Attributes:
        graph: the parts that have numbers.
    """

    graph: Graph
    _looks: list[Look] = field(default_factory=list)
    _moved: dict[str, float] = field(default_factory=dict)

    def take(self, now: Look) -> dict[str, str]:
        """Return all numbers by their keys, as people read them."""
        self._looks = [*(before for before in self._looks if now.at - before.at <= RATE_SECONDS), now]
        found: dict[str, str] = {}
        for topic, info in now.topics.items():
            if not topic.startswith(INTERNAL):
                found |= self._topic(topic, info, now)
        readers = self._readers()
        for name, progress in now.progress.items():
            found |= self._task(name, progress, now, readers.get(name, ()))
        for part in now.status.parts:
            key = f"{part.kind}:{part.name}"
            state = FAILED if part.ended else HELD if part.seconds and part.kind != "engine" else BUSY
            found |= {f"{key}/state": state, f"{key}/status": part.status}
        found |= self._gauges(now)
        letters = sum(info.end for topic, info in now.topics.items() if topic.endswith(DEAD))
        runs = now.status.runs
        figures = now.status.figures
        return found | {
            "log/state": "running" if runs else "stopped",
            "log/slice": f"{now.slice:,}",
            "log/letters": f"{letters:,}",
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
        if not now.status.runs:
            return found
        for gauge in now.status.figures.get("gauges", ()):
            for kind in ("source", "sink"):
                if kind in gauge["labels"]:
                    name = gauge["name"].removeprefix(f"{kind}_")
                    text = bytes_text(int(gauge["value"])) if "bytes" in name else f"{gauge['value']:,.0f}"
                    found[f"{kind}:{gauge['labels'][kind]}/{name}"] = text
        return found
