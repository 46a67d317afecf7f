"""Rows that a running pipeline has written since the last look, for those who watch."""

from __future__ import annotations

import time
from collections.abc import Iterator

from headrace.demos.fish.outcome import MODEL, Row, is_graded
from headrace.demos.fish.show import Show
from headrace.engines.local.running import Running
from headrace.registry.versions import VersionList

LOOK_SECONDS = 0.1


class Follower:
    """Hands new rows of the pipeline's topics to the view, a few times a second.

    What an earlier run has written is read when the first look is taken, and shown as if it had just come.
    """

    def __init__(self, running: Running, view: Show) -> None:
        self._log = running.log
        self._running = running
        self._view = view
        self._seen: dict[str, int] = {}
        self._version = 0
        self._next = 0.0

    def look(self, *, now: bool = False) -> None:
        """Show what is new; ``now``: even where the last look was just before."""
        if not self._view.shown or (not now and time.monotonic() < self._next):
            return
        view, topics = self._view, self._log.topics()
        if "weight-diff" in topics:
            view.graded.extend(row for row in self._rows("weight-diff") if is_graded(row))
        if "weight-online-diff" in topics:
            view.online.extend(row["error"] for row in self._rows("weight-online-diff") if is_graded(row))
        for topic, take in (
            ("weight-error", view.window),
            ("weight-retrain", view.alarm),
            ("weight-training", view.training),
        ):
            if topic in topics:
                for row in self._rows(topic):
                    take(row)
        self._look_at_model()
        self._next = time.monotonic() + LOOK_SECONDS

    def _rows(self, topic: str) -> Iterator[Row]:
        seen = self._seen.get(topic, 0)
        for entry in self._log.read_topic(topic, offset=seen):
            yield from entry.records.slice(max(0, seen - entry.offset)).to_pylist()
            seen = entry.offset + entry.records.num_rows
        self._seen[topic] = seen

    def _look_at_model(self) -> None:
        version = self._running[MODEL].version
        if version != self._version:
            known = VersionList.read(self._log, MODEL).versions.get(version)
            if known is not None:
                self._version = version
                self._view.answers(version, known.ts_us)
