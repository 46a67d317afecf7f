"""What the dashboard looks at: one log, or a cluster with the logs of its pipelines and the topics of others."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.errors import LogError
from headrace.inspect.health import Status, read_status
from headrace.log.base import Log
from headrace.log.kafka_view import KafkaView
from headrace.registry.models import read_model
from headrace.ui.read.moment import Moment, moment_at


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

    def logs(self) -> dict[str, Log]:
        """Return the logs by their pipelines' names; one that is a file, or in memory, under ""."""
        return dict(self.held.logs) if isinstance(self.held, KafkaView) else {"": self.held}

    @property
    def log(self) -> Log | None:
        """Return the log that is meant where a page is of one: the first that a pipeline of models has written."""
        logs = self.logs()
        return next(iter(logs.values()), None)

    def log_of(self, topic: str) -> Log | None:
        """Return the log that a topic belongs to; None where others write it."""
        if isinstance(self.held, KafkaView):
            return self.held.owner(topic)
        return self.held

    def log_of_model(self, model: str) -> Log | None:
        """Return the log that a model is in."""
        return next((log for log in self.logs().values() if read_model(log, model) is not None), None)

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
        return moment_at(log, at)

    def status(self) -> Status:
        """Return what the pipeline says of itself."""
        return Status() if self.log is None else read_status(self.log)
