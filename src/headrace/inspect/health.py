"""What a running pipeline says of itself beside its log, about once a second, for the processes that look at it.

``<log>.health`` goes when the pipeline ends in good order. The file holds ``ts`` and ``pid`` of the process, ``parts``
(`headrace.serve.models.ComponentHealth`) and ``figures`` (`Status.figures`).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.log import file_of
from headrace.log.base import Log
from headrace.serve.models import ComponentHealth

FILE = ".health"
SILENT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Status:
    """What was said last.

    Attributes:
        parts: its sources, sinks and engine, older by the time that has passed.
        figures: ``rounds`` and ``rounds_s``; ``busy``: share of the time that each task, ``capture`` and ``commit``
            took; ``p50_ms`` and ``p99_ms`` from a row's commit in its database to the commit of its predictions;
            ``memory``: bytes of the process; ``gauges``: name, labels and value, as `GET /metrics` has them.
        age: seconds since then.
    """

    parts: list[ComponentHealth] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    age: float = 0.0

    @property
    def runs(self) -> bool:
        """Return whether a pipeline says that it runs, and said so just now."""
        return bool(self.parts) and self.age < SILENT_SECONDS and not any(part.ended for part in self.parts)


def read_status(log: Log) -> Status:
    """Read what the pipeline of another process says of itself on a log.

    Returns:
        Nothing where no process says anything: it has ended in good order, or the log is no file.
    """
    path = file_of(log, FILE)
    try:
        about: dict[str, Any] = json.loads(path.read_text()) if path is not None else {"parts": [], "ts": 0.0}
        found = [ComponentHealth(**part) for part in about["parts"]]
        age = max(0.0, time.time() - float(about["ts"]))
        figures = dict(about.get("figures") or {})
    except FileNotFoundError:
        return Status()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Status([ComponentHealth("engine", str(path), 0.0, f"its health cannot be read: {error}", ended=True)])
    # What was away then is taken to be away still, and the rounds of a process that is silent grow old.
    parts = [
        replace(part, seconds=part.seconds + age) if part.seconds or part.kind == "engine" else part for part in found
    ]
    return Status(parts, figures, age)


def read_health(log: Log) -> list[ComponentHealth]:
    """Read the health of the pipeline that another process runs on a log; see `read_status`."""
    return read_status(log).parts
