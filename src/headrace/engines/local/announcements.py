"""What a running pipeline says of itself: connections lost and made again, alarms, trainings, that it has caught up."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace import plain_values
from headrace.capture.base import SourceState, SourceStatus
from headrace.event_log import event
from headrace.plan.operators import Alarms
from headrace.plan.task import ModelTask, StreamTask, Task
from headrace.row_tables import cell
from headrace.step.outputs import Output

logger = logging.getLogger("headrace")

AGAIN_SECONDS = 60.0
SILENT_SECONDS = 1.0
VERSION_SECONDS = 10.0
SHOWN_COLUMNS = 4


@dataclass(slots=True)
class _Trouble:
    """Since when something is waited for, and when that was said last."""

    since: float
    said: float


@dataclass(slots=True)
class Announcements:
    """Says each thing once, and what lasts once a minute. Used by one thread, the engine's.

    Args:
        app: the pipeline's name.
    """

    app: str
    _troubles: dict[str, _Trouble] = field(default_factory=dict)
    _connected: set[str] = field(default_factory=set)
    _pending: list[tuple[int, str, dict[str, object]]] = field(default_factory=list)
    _versions: dict[str, tuple[int, float]] = field(default_factory=dict)
    _again: set[tuple[str, str]] = field(default_factory=set)
    _behind: bool = True
    _busy_at: float = field(default_factory=time.monotonic)

    def sources(self, statuses: Mapping[str, SourceStatus]) -> None:
        """Say which sources have lost their origin, and which have it again."""
        for name, status in statuses.items():
            where = "" if name == self.app else f"{name}: "
            if status.troubled:
                lost = status.state is SourceState.RETRYING
                since = time.monotonic() if status.away_since is None else status.away_since
                self._trouble(name, f"{where}{status.text}", "connection_lost" if lost else "waiting", since)
            elif status.state is SourceState.CONNECTED:
                seconds = self._over(name)
                if seconds is not None:
                    text = f"{where}connected again after {seconds:.1f} s, {status.text}"
                    self._say(logging.INFO, text, "connected_again", source=name, seconds=round(seconds, 3))
                elif name not in self._connected:
                    self._say(logging.INFO, f"{where}{status.text}", "connected", source=name)
                self._connected.add(name)

    def waiting(self, text: str) -> None:
        """Say that a round cannot be committed, and why."""
        self._trouble("", text, "waiting", time.monotonic())

    def going_on(self) -> None:
        """Say that rounds are committed again, where they could not be."""
        seconds = self._over("")
        if seconds is not None:
            self._say(logging.INFO, f"goes on after {seconds:.1f} s", "going_on", seconds=round(seconds, 3))

    def busy(self) -> None:
        """Note that rows have come."""
        self._busy_at = time.monotonic()

    def idle(self, rows: int) -> None:
        """Say that nothing is left to be done, where there was something; ``rows`` were captured since the start."""
        if self._behind and not self._troubles and time.monotonic() - self._busy_at >= SILENT_SECONDS:
            self._behind = False
            captured = f", {rows:,} rows captured since the start" if rows else ""
            self._say(logging.INFO, f"caught up{captured}", "caught_up", rows=rows)

    # -- steps --------------------------------------------------------------------------------------------------------

    def stepped(self, task: Task, outputs: Sequence[Output], version: int) -> None:
        """Note what a step has made; `committed` says it."""
        nodes = () if isinstance(task, StreamTask) else task.nodes
        alarms = {
            output.topic: node.operator.spec.column
            for node in nodes
            if isinstance(node.operator, Alarms)
            for output in node.outputs
        }
        for topic, batch in outputs:
            if topic in alarms and batch.num_rows:
                row = _first(batch.records, alarms[topic])
                text = f"alarm in {topic}: {', '.join(f'{name} {cell(value)}' for name, value in row.items())}"
                text += f", and {batch.num_rows - 1} more" if batch.num_rows > 1 else ""
                self._note(logging.WARNING, text, "alarm", topic=topic, rows=batch.num_rows, row=row)
        if isinstance(task, ModelTask):
            trained = [batch for topic, batch in outputs if task.retrain and topic == task.training_topic]
            for line in [line for batch in trained for line in batch.records.to_pylist()]:
                self._training(task.name, line)
            self._version(task.name, version, said=bool(trained))

    def refused_again(self, model: str, refused: Sequence[tuple[str, int, str]]) -> None:
        """Note rows that a model which learns again refuses: no dead letter says so a second time."""
        for topic, rows, reason in refused:
            if (model, topic) not in self._again:
                self._again.add((model, topic))
                what = f"{rows:,} rows of «{topic}»" if rows > 1 else f"a row of «{topic}»"
                text = f"model {model}: learns again, and {what} cannot be used as it is declared now: {reason}"
                about = {"topic": topic, "rows": rows, "reason": reason}
                self._note(logging.WARNING, text, "refused_again", model=model, **about)

    def committed(self) -> None:
        """Say what the steps of a round have made: it is durable now."""
        self.going_on()
        pending, self._pending = self._pending, []
        for level, text, extra in pending:
            logger.log(level, "%s", text, extra=extra)

    def undone(self) -> None:
        """Forget what the steps of a round have made: the round is done again."""
        self._pending.clear()

    def _training(self, model: str, line: Mapping[str, Any]) -> None:
        fields = {name: line.get(name) for name in ("status", "version", "previous", "rows", "selection", "reason")}
        known = {name: value for name, value in fields.items() if value is not None}
        if line["status"] == "trained":
            text = f"model {model}: version {line['version']} trained on {line['rows']} rows ({line['selection']})"
            self._note(logging.INFO, text, "version_trained", model=model, **known)
        else:
            reason = f": {line['reason']}" if line.get("reason") else ""
            self._note(
                logging.WARNING, f"model {model}: training {line['status']}{reason}", "training", model=model, **known
            )

    def _version(self, model: str, version: int, *, said: bool) -> None:
        before, at = self._versions.get(model, (version, -VERSION_SECONDS))
        now = time.monotonic()
        if version != before and not said and now - at >= VERSION_SECONDS:
            self._note(
                logging.INFO, f"model {model}: version {version} begins", "version", model=model, version=version
            )
            at = now
        self._versions[model] = version, at

    # -- how ----------------------------------------------------------------------------------------------------------

    def _trouble(self, name: str, text: str, event_name: str, since: float) -> None:
        now, known = time.monotonic(), self._troubles.get(name)
        if known is None:
            known = self._troubles[name] = _Trouble(since, now)
            self._behind = True
        elif now - known.said < AGAIN_SECONDS:
            return
        else:
            text = f"{text} (for {now - known.since:.0f} s now)"
        known.said = now
        self._say(logging.WARNING, text, event_name, source=name, seconds=round(now - known.since, 3))

    def _over(self, name: str) -> float | None:
        """Return how long a trouble lasted that is over now; None where there was none."""
        trouble = self._troubles.pop(name, None)
        return None if trouble is None else time.monotonic() - trouble.since

    def _say(self, level: int, text: str, name: str, **fields: object) -> None:
        logger.log(level, "%s", text, extra=event(name, app=self.app, **fields))

    def _note(self, level: int, text: str, name: str, **fields: object) -> None:
        self._pending.append((level, text, event(name, app=self.app, **fields)))


def _first(records: Any, column: str) -> dict[str, Any]:
    """Return the first columns of a first row, without ours; the one that the alarm is about is always among them."""
    names = [name for name in records.schema.names if not name.startswith("__")]
    shown = names[:SHOWN_COLUMNS]
    if column in names[SHOWN_COLUMNS:]:
        shown[-1] = column
    return plain_values.rows(records.slice(0, 1).select(shown))[0]
