"""What the dashboard looks at: one log, or a cluster with the logs of its pipelines and the topics of others."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from headrace.errors import LogError
from headrace.inspect.health import Status, read_status
from headrace.log.base import Log
from headrace.log.kafka_view import PRODUCERS, KafkaView, message_time
from headrace.registry.models import read_model
from headrace.ui.read.moment import Moment, moment_at, moment_since

PIPELINE: ContextVar[str] = ContextVar("pipeline", default="")
"""The pipeline of a cluster that a request's address names (``?pipeline=``); "" where it names none."""

TOGETHER = 4


@dataclass(slots=True)
class Subject:
    """A log or a cluster.

    Attributes:
        held: it.
        title: for people; without a password.
        location: as a command takes it.
    """

    held: Log | KafkaView
    title: str
    location: str

    @property
    def view(self) -> KafkaView | None:
        """Return the cluster, where it is one."""
        return self.held if isinstance(self.held, KafkaView) else None

    @property
    def pipelines(self) -> list[str]:
        """Return the pipelines among which a person may choose; none where there is one log."""
        view = self.view
        return view.pipelines(producers=False) if view is not None and not view.location.name else []

    @property
    def undecided(self) -> bool:
        """Return whether a page of pipelines waits for the choice of one: they are too many to be shown together."""
        return not PIPELINE.get() and len(self.pipelines) > TOGETHER

    def logs(self, pipeline: str | None = None) -> Mapping[str, Log]:
        """Return the logs that a page is of by their pipelines' names; one that is a file, or in memory, under "".

        On a cluster it is that of the pipeline which was chosen; where none was, those of all, if they are few.

        Args:
            pipeline: which one was chosen; as the request's address says, if left out.

        Raises:
            LogMissing: there is none of this name.
        """
        view = self.view
        if view is None:
            assert not isinstance(self.held, KafkaView)
            return {"": self.held}
        chosen = (PIPELINE.get() if pipeline is None else pipeline) or view.location.name
        if chosen:
            return {chosen: view.opened(chosen)}
        names = view.pipelines(producers=False)
        found: dict[str, Log] = {}
        for name in names if len(names) <= TOGETHER else ():
            try:
                found[name] = view.opened(name)
            except LogError as error:
                if error.retry:
                    raise
                # One that cannot be read does not hide the others; whoever chooses it is told why.
        return found

    @property
    def log(self) -> Log | None:
        """Return the log that is meant where a page is of one: the first that a pipeline of models has written."""
        return next(iter(self.logs().values()), None)

    def log_of(self, topic: str) -> Log | None:
        """Return the log that a topic belongs to; None where others write it."""
        view = self.view
        return view.owner(topic) if view is not None else self.log

    def readers(self, topic: str) -> list[Log]:
        """Return the logs of pipelines that have rows of a topic, whoever writes it; where one was chosen, its log."""
        view = self.view
        if view is None or view.location.name or PIPELINE.get():
            return list(self.logs().values())
        names = [name for name in view.readers(topic) if not name.startswith(PRODUCERS)]
        return [view.opened(name) for name in names[:TOGETHER]]

    def log_of_model(self, model: str) -> Log | None:
        """Return the log that a model is in."""
        return next((log for log in self.logs().values() if read_model(log, model) is not None), None)

    def moment_of(self, log: Log, at: str) -> Moment:
        """Return one of the logs at a place, which may be a row of a topic that is in another log of the cluster.

        Raises:
            DeclarationError: it is no place. LogError: there is no such row.
        """
        view, (topic, _, number) = self.view, at.strip().rpartition(":")
        if view is None or not number.isdecimal() or topic in log.topics() or topic not in view.topics():
            return moment_at(log, at)
        other = view.owner(topic)
        ts_us = message_time(view, topic, int(number)) if other is None else moment_at(other, at).ts_us
        return moment_since(log, ts_us or 0, at)

    def moment(self, topic: str, at: str) -> Moment:
        """Return the log of a topic at a place.

        Raises:
            LogError: there is no such topic.
        """
        log = self.log_of(topic)
        if log is None:
            raise LogError(
                f"«{topic}» is in no log of a pipeline on {self.location}", advice="Its messages are on its own page."
            )
        return self.moment_of(log, at)

    def status(self) -> Status:
        """Return what the pipeline says of itself."""
        return Status() if self.log is None else read_status(self.log)
