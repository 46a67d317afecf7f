"""What a running pipeline says of itself, about once a second, for the processes that look at its log.

Beside a file it is ``<log>.health``, which goes when the pipeline ends in good order, and ``<log>.history`` with it,
where figures of the last hour are. On a cluster it is a record of the log, `headrace.log.topic_metadata.STATUS` APP,
which goes with rounds that commit; its last says how it has ended.

==================  ================================================================================================
field               holds
==================  ================================================================================================
``ts``, ``pid``     when it was said, in seconds, and by which process
``parts``           its sources, sinks and engine: `headrace.serve.models.ComponentHealth`
``figures``         `Status.figures`
``host``            the machine of the process (on a cluster)
``state``           ``running``, ``stopped`` or ``failed`` (on a cluster)
``within``          seconds within which more is said, while it runs (on a cluster)
==================  ================================================================================================
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from headrace.log import file_of
from headrace.log.base import Log
from headrace.log.topic_metadata import STATUS
from headrace.serve.models import ComponentHealth

FILE = ".health"
HISTORY = ".history"
SILENT_SECONDS = 5.0
# A pipeline on a cluster that has said nothing for so long has committed nothing since.
QUIET_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class Status:
    """What was said last.

    Attributes:
        parts: its sources, sinks and engine, older by the time that has passed.
        figures: ``rounds`` and ``rounds_s``; ``busy``: share of the time that each task, ``capture`` and ``commit``
            took; ``p50_ms`` and ``p99_ms`` from a row's commit in its database to the commit of its predictions;
            ``memory``: bytes of the process; ``gauges``: name, labels and value, as `GET /metrics` has them.
        age: seconds since then.
        within: seconds within which it says more, while it runs.
        where: process and machine, where they were said.
        stopped: whether it has said that it was stopped.
    """

    parts: list[ComponentHealth] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    age: float = 0.0
    within: float = 0.0
    where: str = ""
    stopped: bool = False

    @property
    def silent(self) -> bool:
        """Return whether it has said that it runs, and nothing more for longer than it would."""
        return bool(self.parts) and not self.failed and self.age >= self.within + SILENT_SECONDS

    @property
    def failed(self) -> bool:
        """Return whether it has said that it ended by an error."""
        return any(part.ended for part in self.parts)

    @property
    def runs(self) -> bool:
        """Return whether a pipeline says that it runs, and said so just now."""
        return bool(self.parts) and not self.silent and not self.failed


class Sample(NamedTuple):
    """Figures of a pipeline at one time; None where none runs."""

    ts: float
    p50_ms: float | None
    p99_ms: float | None
    rounds_s: float | None
    memory: int | None


def read_history(log: Log) -> list[Sample]:
    """Read what the pipeline of another process has said of itself in the last hour, a sample every 5 s.

    Returns:
        Nothing where no pipeline runs, and of a log that is no file.
    """
    path = file_of(log, HISTORY)
    try:
        return [] if path is None else [Sample(*sample) for sample in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def read_status(log: Log) -> Status:
    """Read what the pipeline of another process says of itself on a log.

    Returns:
        Nothing where no process says anything: it has ended in good order, or is of an engine or a version of Headrace
        that says nothing on a cluster.
    """
    path = file_of(log, FILE)
    if path is None:
        return status_of(log.records(STATUS).values())
    try:
        return _status(json.loads(path.read_text()))
    except FileNotFoundError:
        return Status()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _unreadable(error, str(path))


def status_of(said: Iterable[bytes]) -> Status:
    """Return the newest of what was said in a log on a cluster."""
    try:
        found = [_status(json.loads(value)) for value in said]
    except (ValueError, KeyError, TypeError) as error:
        return _unreadable(error, "status")
    return min(found, key=lambda status: status.age, default=Status())


def _unreadable(error: Exception, where: str) -> Status:
    return Status([ComponentHealth("engine", where, 0.0, f"its health cannot be read: {error}", ended=True)])


def _status(about: dict[str, Any]) -> Status:
    age = max(0.0, time.time() - float(about["ts"]))
    where = f"process {about['pid']} on {about['host']}" if "host" in about else ""
    if about.get("state") == "stopped":
        return Status(age=age, where=where, stopped=True)
    figures, within = dict(about.get("figures") or {}), float(about.get("within", 0.0))
    if within and age >= QUIET_SECONDS:
        figures |= {"rounds_s": 0.0, "busy": dict.fromkeys(figures.get("busy", ()), 0.0)}
    # What was away then is taken to be away still, and the rounds of a process that is silent grow old.
    parts = [ComponentHealth(**part) for part in about["parts"]]
    parts = [
        replace(part, seconds=part.seconds + age) if part.seconds or part.kind == "engine" else part for part in parts
    ]
    return Status(parts, figures, age, within, where)


def read_health(log: Log) -> list[ComponentHealth]:
    """Read the health of the pipeline that another process runs on a log; see `read_status`."""
    return read_status(log).parts
