"""Traces of an engine's rounds, where OpenTelemetry is configured: from a row's commit to what its model made of it."""

from __future__ import annotations

from typing import Any

from headrace.engines.local.engine import Engine
from headrace.engines.local.tasks import TaskRunner
from headrace.plan.task import ModelTask
from headrace.serve.tracing import past_span, tracer


def trace_rounds(engine: Engine) -> None:
    """Trace an engine that is not running yet; nothing where nothing is configured."""
    traced = tracer()
    if traced is not None:
        engine.after_commit.append(Rounds(engine, traced).committed)


class Rounds:
    """A span for each model and commit in which it learned or predicted: from the newest row's own commit to this one.

    Called by the engine's thread, after the log transaction.
    """

    def __init__(self, engine: Engine, traced: Any) -> None:
        self._clock = engine.clock
        self._traced = traced
        self._runners = [runner for runner in engine.runners if isinstance(runner.task, ModelTask)]
        self._seen = {runner.task.name: self._count(runner) for runner in self._runners}

    def committed(self, idle: bool) -> None:
        """Add spans for the round that has ended."""
        if idle:
            return
        now = self._clock.now_us()
        for runner in self._runners:
            name, count = runner.task.name, self._count(runner)
            (learned, predicted), self._seen[name] = self._seen[name], count
            if count == (learned, predicted):
                continue
            state = runner.state
            about = {
                "headrace.model": name,
                "headrace.version": state.version,
                "headrace.position": runner.progress.position or "",
                "headrace.learned": count[0] - learned,
                "headrace.predicted": count[1] - predicted,
            }
            # Rows without a commit time of their own have 0.
            start = state.watermark_us if state.watermark_us > 0 else now
            past_span(self._traced, "commit to prediction", min(start, now), now, about)

    @staticmethod
    def _count(runner: TaskRunner) -> tuple[int, int]:
        return runner.state.counters.learned, runner.state.counters.predicted
