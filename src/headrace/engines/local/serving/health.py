"""Health of a running pipeline: its sources, its sinks, the engine's rounds; and how a follower learns of it.

The engine's process knows by looking at its parts. Beside a log that is a file it also writes what it sees, about once
a second, for the processes that follow the log: ``<log>.health``, which goes when the pipeline ends in good order.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.engines.local.sink_runner import SinkStatus
from headrace.log import file_of
from headrace.log.base import Log
from headrace.serve.models import ComponentHealth, Gauge

if TYPE_CHECKING:
    from headrace.engines.local.engine import Engine

FILE = ".health"
WRITE_SECONDS = 1.0


def health_of(engine: Engine, sinks: Sequence[SinkStatus] = ()) -> list[ComponentHealth]:
    """Return the health of a pipeline that runs in this process."""
    found = []
    for source in engine.sources:
        now = source.status
        found.append(ComponentHealth("source", source.name, now.away_seconds, now.text))
    found += [ComponentHealth("sink", sink.name, sink.waiting_seconds, sink.status) for sink in sinks]
    status = engine.progress.status
    if engine.error is not None:
        status = f"ended: {engine.error}"
    elif engine.finished.is_set():
        status = "ended"
    return [
        *found,
        ComponentHealth("engine", engine.plan.app, engine.round_age, status, ended=engine.finished.is_set()),
    ]


def engine_metrics(engine: Engine, sinks: Sequence[SinkStatus] = ()) -> list[Gauge]:
    """Return numbers about sources, sinks and rounds."""
    found = []
    for source in engine.sources:
        labels, status, traits = {"source": source.name}, source.status, source.traits
        away = status.away_seconds
        found.append(Gauge("source_connected", "Whether the source is connected", float(away == 0), labels))
        found.append(Gauge("source_away_seconds", "For how long it is not", away, labels))
        found.append(Gauge("source_reconnects", "Connections made again since the start", status.reconnects, labels))
        lag = traits.measure_lag() if traits.measure_lag is not None else ()
        found += [Gauge(f"source_{measured.name}", measured.about, measured.value, labels) for measured in lag]
    ends = {name: info.end for name, info in engine.log.topics().items()} if sinks else {}
    for sink in sinks:
        labels = {"sink": sink.name, "topic": sink.topic}
        behind = max(0, ends.get(sink.topic, 0) - (sink.position or 0))
        found.append(Gauge("sink_delivered", "Rows delivered since the start", sink.delivered, labels))
        found.append(Gauge("sink_refused", "Rows refused to dead letters since the start", sink.refused, labels))
        found.append(Gauge("sink_lag_rows", "Rows of the topic that are not delivered", behind, labels))
        found.append(Gauge("sink_waiting_seconds", "How long the destination is away", sink.waiting_seconds, labels))
    if engine.workers is not None:
        found.append(Gauge("worker_rows", "Rows that were sent to workers to be predicted", engine.workers.sent))
    return [
        *found,
        Gauge("rounds", "Rounds committed since the start", engine.progress.rounds),
        Gauge("round_age_seconds", "Since the engine's last round began", engine.round_age),
        Gauge("round_seconds", "How long the last round that committed took", engine.round_seconds),
    ]


class HealthWriter:
    """Writes `health_of` beside a log. Called by the engine's thread, in each round."""

    def __init__(self, path: Path, health: Callable[[], list[ComponentHealth]]) -> None:
        self._path = path
        self._health = health
        self._written_at = -WRITE_SECONDS

    def write(self) -> None:
        """Write it, at most once a second. A disk that takes nothing is no reason to stop."""
        now = time.monotonic()
        if now - self._written_at < WRITE_SECONDS:
            return
        self._written_at = now
        about = {"ts": time.time(), "pid": os.getpid(), "parts": [asdict(part) for part in self._health()]}
        draft = self._path.with_name(f"{self._path.name}.draft")
        with contextlib.suppress(OSError):
            draft.write_text(json.dumps(about))
            draft.replace(self._path)

    def remove(self) -> None:
        """Take it away: the pipeline has ended in good order."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_health(log: Log) -> list[ComponentHealth]:
    """Read the health of the pipeline that another process runs on a log, as it wrote it last, and older since then.

    Returns:
        Nothing where no process says anything: it has ended in good order, or the log is no file.
    """
    path = file_of(log, FILE)
    try:
        about: dict[str, Any] = json.loads(path.read_text()) if path is not None else {"parts": [], "ts": 0.0}
        found = [ComponentHealth(**part) for part in about["parts"]]
        age = max(0.0, time.time() - float(about["ts"]))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [ComponentHealth("engine", str(path), 0.0, f"its health cannot be read: {error}", ended=True)]
    # What was away then is taken to be away still, and the rounds of a process that is silent grow old.
    return [
        replace(part, seconds=part.seconds + age) if part.seconds or part.kind == "engine" else part for part in found
    ]
