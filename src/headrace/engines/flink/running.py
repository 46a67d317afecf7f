"""A pipeline that Flink runs, as its user holds it: what its log says, and what Flink says of the job."""

from __future__ import annotations

import json
import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.capture.base import KIND, Source
from headrace.capture.topics.reader import Offsets, TopicsReader, Where
from headrace.capture.topics.source import TopicSource
from headrace.engines.contract import StoppedAtExit
from headrace.engines.flink.job import error_of
from headrace.engines.limits import REQUESTS
from headrace.engines.local.pipeline_source import PipelineSource
from headrace.errors import HeadraceError, LogMissing, WaitTimeout
from headrace.event_log import event
from headrace.formats.topic_formats import codec_for
from headrace.kafka.cluster import Cluster
from headrace.log import open_log
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.registry.models import Progress, read_progress

if TYPE_CHECKING:
    from headrace.engines.flink.graph import Submitted

logger = logging.getLogger("headrace")

LOOK_S = 0.1
RESTART_LOOK_S = 1.0
CANCEL_S = 60.0
SUFFIX = ".dlq"


class LogWatch:
    """The pipeline's log, read from beside it; from any thread. Before the job has made it, it says nothing."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._log: Log | None = None
        self._lock = threading.RLock()
        self._closed = False

    @property
    def log(self) -> Log | None:
        """The open log; None while there is none."""
        with self._lock:
            if self._log is None and not self._closed:
                codec = codec_for(self._plan.formats)
                with suppress(LogMissing):
                    self._log = open_log(self._plan.log, writer=False, name=self._plan.app, codec=codec)
            return self._log

    def offsets(self, source: str) -> dict[Where, int]:
        """Return the next offset of each partition that a source of topics has stored."""
        record = self._record(source)
        found = {} if record is None else record["offsets"]
        return {(topic, int(number)): at for topic, some in found.items() for number, at in some.items()}

    def slice(self, source: str) -> int:
        """Return the slice of another pipeline that a source has stored."""
        record = self._record(source)
        return 0 if record is None else int(record["slice"])

    def _record(self, source: str) -> dict[str, Any] | None:
        with self._lock:
            value = None if self.log is None else self.log.records(KIND, source).get(source)
        return None if value is None else dict(json.loads(value))

    def progress(self, task: str) -> Progress:
        """Return how far a task is."""
        with self._lock:
            return Progress() if self.log is None else read_progress(self.log, task) or Progress()

    def ends(self) -> dict[str, int]:
        """Return topic -> rows that it ever held."""
        with self._lock:
            return {} if self.log is None else {name: info.end for name, info in self.log.topics().items()}

    @property
    def stepped(self) -> bool:
        """True where every task has consumed what the log holds."""
        with self._lock:
            log = self.log
            if log is None:
                return False
            return not any(log.read(t.topics, after=self.progress(t.name).slice, limit=1) for t in self._plan.tasks)

    def close(self) -> None:
        """Close the log; calling it twice is harmless."""
        with self._lock:
            self._closed = True
            if self._log is not None:
                self._log.close()
                self._log = None


class FollowedModel:
    """A model of a pipeline that runs elsewhere, as the log has it now. It may be kept."""

    def __init__(self, plan: Plan, name: str, watch: LogWatch) -> None:
        self._task = next(model for model in plan.models if model.name == name)
        self._plan = plan
        self._watch = watch

    def __repr__(self) -> str:
        return f"FollowedModel({self._task.name} version {self.version}, {self.learned} rows learned)"

    @property
    def version(self) -> int:
        """Return the current version's number."""
        return self._watch.progress(self._task.name).version

    @property
    def hash(self) -> str | None:
        """Of the learner's state, after the last step at which it was taken."""
        return self._watch.progress(self._task.name).hash

    @property
    def position(self) -> str | None:
        """Return the position of the last row it has learned in a complete cut."""
        return self._watch.progress(self._task.name).position

    @property
    def counters(self) -> dict[str, int]:
        """Return rows learned, predicted, rejected, ignored, unlabelled, and cuts."""
        return dict(self._watch.progress(self._task.name).counters)

    @property
    def learned(self) -> int:
        """Return the number of rows learned."""
        return self.counters.get("learned", 0)

    @property
    def diverged(self) -> str:
        """Return why it gives no predictions any more. Empty while it does."""
        return self._watch.progress(self._task.name).diverged


class FlinkRunning(StoppedAtExit):
    """A pipeline that a job of Flink's runs; leave the ``with`` block, or call `stop`, to cancel the job.

    A `headrace.engines.contract.RunningPipeline`. What it knows is in the log: rows that are committed.

    Attributes:
        page: address of Flink's page, and of its REST interface.
        job: the job's id.
    """

    def __init__(
        self,
        plan: Plan,
        submitted: Submitted,
        sources: Sequence[Source[Any]],
        watch: LogWatch,
        before: Mapping[str, int],
    ) -> None:
        """Hold a job that was submitted; ``before``: topic -> rows that the log held then."""
        self.at_end: Callable[[Log], None] | None = None
        self.page, self.job = submitted.page, submitted.id
        self._plan = plan
        self._client = submitted.client
        self._sources = sources
        self._watch = watch
        self._before = before
        self._after: dict[str, int] | None = None
        self._error: BaseException | None = None
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._troubled = ""
        self._awaiting = threading.Thread(target=self._await_end, name=f"headrace-flink-{plan.app}", daemon=True)
        self._looking = threading.Thread(target=self._look, name=f"headrace-restarts-{plan.app}", daemon=True)
        self._cancelling = threading.Thread(target=self._cancel, name=f"headrace-cancel-{plan.app}", daemon=True)
        self._awaiting.start()
        self._looking.start()
        self._cancelling.start()

    # -- the job ---------------------------------------------------------------------------------------------------

    def _await_end(self) -> None:
        try:
            self._client.get_job_execution_result().result()
        except Exception as error:  # whatever Java says
            text = str(error)
            if not self._cancelled.is_set():
                self._error = error_of(text) or HeadraceError(
                    f"the job {self.job} on Flink has ended: {_cause(text)}", advice=f"Look at {self.page}."
                )
        self._ended.set()
        self._cancelled.set()

    def _look(self) -> None:
        """Say why Flink begins the job again, where it does."""
        known = 0
        while not self._ended.wait(RESTART_LOOK_S):
            found = self._ask(f"/jobs/{self.job}/exceptions?maxExceptions=1")
            entries = (found or {}).get("exceptionHistory", {}).get("entries", [])
            if entries and entries[0]["timestamp"] > known:
                known = entries[0]["timestamp"]
                cause = _cause(entries[0].get("stacktrace", ""))
                self._troubled = cause
                about = event("flink_restart", app=self._plan.app, job=self.job, cause=cause)
                logger.warning("Flink begins the job %s again: %s", self.job, cause, extra=about)
            if self._troubled and ((self._ask(f"/jobs/{self.job}") or {}).get("state")) == "RUNNING":
                self._troubled = ""

    def _ask(self, path: str) -> dict[str, Any] | None:
        """Ask Flink's REST interface; None while it does not answer."""
        with suppress(OSError, ValueError), urllib.request.urlopen(self.page + path, timeout=5) as response:
            return dict(json.load(response))
        return None

    def _cancel(self) -> None:
        self._cancelled.wait()
        if self._ended.is_set():
            return
        try:
            self._client.cancel().result()
        except Exception as error:
            if not self._ended.is_set():
                logger.warning("the job %s was not cancelled: %s", self.job, _cause(str(error)), extra=event("cancel"))

    @property
    def server(self) -> None:
        """Return None: predictions over HTTP are another process's, which follows the log."""
        return None

    @property
    def log(self) -> Log | None:
        """The log, open for reading; None before the job has made it."""
        return self._watch.log

    @property
    def tables(self) -> Mapping[str, pa.Schema]:
        """No table is captured here."""
        return {}

    @property
    def models(self) -> list[str]:
        """Names of the app's models."""
        return [task.name for task in self._plan.models]

    def __getitem__(self, model: str) -> FollowedModel:
        if model not in self.models:
            raise KeyError(f"there is no model «{model}»; there are: {', '.join(self.models)}")
        return FollowedModel(self._plan, model, self._watch)

    @property
    def alive(self) -> bool:
        """Whether the job has not ended."""
        return not self._ended.is_set()

    @property
    def status(self) -> str:
        """One line for people."""
        if self._ended.is_set():
            return "ended"
        return f"on Flink, {self.page}" + (f"; begun again: {self._troubled}" if self._troubled else "")

    @property
    def captured(self) -> dict[str, int]:
        """Return rows taken in since the start, by topic."""
        read = set(self._plan.read) - self._plan.written.keys()
        return self._since(lambda topic: topic in read)

    @property
    def dead_letters(self) -> dict[str, int]:
        """Return rows that went to dead letters since the start, by their topic."""
        return self._since(lambda topic: topic.endswith(SUFFIX))

    def _since(self, counts: Callable[[str], bool]) -> dict[str, int]:
        ends = self._after if self._after is not None else self._watch.ends()
        found = {topic: end - self._before.get(topic, 0) for topic, end in ends.items() if counts(topic)}
        return {topic: rows for topic, rows in found.items() if rows}

    @property
    def learned(self) -> int:
        """Return rows that its models have learned."""
        return sum(self[name].learned for name in self.models)

    # -- waiting ---------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = 30.0) -> None:
        """Wait until everything committed before now is taken in, predicted and, in complete cuts, learned.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            WaitTimeout: the deadline came first.
            HeadraceError: the job has failed, or was cancelled.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        behind: list[SourceTarget] | None = None
        text = ""
        while True:
            ended = self._ended.is_set()
            try:
                if behind is None:
                    behind = [SourceTarget.of(source, self._watch) for source in self._sources]
                behind = [target for target in behind if not target.reached(deadline)]
                if not behind and self._watch.stepped:
                    return
                text = "; ".join(map(str, behind)) or "the models have not taken all rows"
            except HeadraceError as error:
                if not error.retry:
                    raise
                text = error.message  # a broker that is away; the job waits for it too
            self._raise()
            if ended:
                raise HeadraceError("the job was cancelled before it had caught up")
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"not caught up after {timeout} s: {text} ({self.status})")
            self._ended.wait(LOOK_S)

    def tick(self, model: str, *, timeout: float | None = 30.0) -> None:
        """Refuse: the engine is another process, which nobody can ask yet."""
        raise REQUESTS.refusal("flink", [f"«{model}»"])

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it ends by itself; False when the time-out came first. Raises what it died of."""
        if not self._ended.wait(timeout):
            return False
        self._raise()
        return True

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def interrupt(self) -> None:
        """Cancel the job; returns at once."""
        self._cancelled.set()

    def stop(self) -> None:
        """Cancel the job, and wait for that; raises what it died of. Calling it twice is harmless."""
        self._cancelled.set()
        self._ended.wait(CANCEL_S)
        if self._after is None:
            with suppress(HeadraceError):
                self._after = self._watch.ends()
        if self.at_end is not None and self._error is None and self._watch.log is not None:
            self.at_end(self._watch.log)
            self.at_end = None
        self._watch.close()
        for source in self._sources:
            source.stop()
        self._raise()

    def __repr__(self) -> str:
        error = self._error
        state = f"failed: {' '.join(str(error).split())}" if error is not None else self.status
        return f"FlinkRunning({self._plan.app}, job {self.job}, {state})"


class SourceTarget:
    """Where a source's origin ended at one moment, and whether the log has come there."""

    def __init__(self, name: str, reached: Callable[[float | None], bool]) -> None:
        self._name = name
        self.reached = reached

    @classmethod
    def of(cls, source: Source[Any], watch: LogWatch) -> SourceTarget:
        """Return where a source's origin ends now."""
        if isinstance(source, PipelineSource):
            end = source.end()
            return cls(source.name, lambda _: watch.slice(source.name) >= end)
        assert isinstance(source, TopicSource)
        return cls(source.name, TopicsTarget(source, watch).reached)

    def __str__(self) -> str:
        return f"{self._name} has not come to its end"


class TopicsTarget:
    """Where topics ended at one moment. At their end may be markers of transactions, which nobody takes in."""

    def __init__(self, source: TopicSource, watch: LogWatch) -> None:
        self._name = source.name
        self._location = source.location
        self._watch = watch
        self._cluster = Cluster(source.location)
        there = self._cluster.topics()
        topics = [topic for topic in source.read_topics if topic in there]
        self._ends: dict[Where, int] = {
            (topic, number): end for topic in topics for number, end in self._cluster.ends(topic).items()
        }
        self._looked_at: dict[Where, int] | None = None

    def reached(self, deadline: float | None) -> bool:
        """Return whether the log has every message that lay before the end."""
        stored = self._watch.offsets(self._name)
        if stored == self._looked_at:
            return False
        behind = {where: end for where, end in self._ends.items() if stored.get(where, 0) < end}
        if not behind:
            return True
        if any(stored.get(where, 0) < end - 1000 for where, end in behind.items()) and stored:
            return False
        self._looked_at = stored
        return not self._holds_messages(stored, behind, deadline)

    def _holds_messages(self, stored: Mapping[Where, int], ends: Mapping[Where, int], deadline: float | None) -> bool:
        topics = list(dict.fromkeys(topic for topic, _ in ends))
        reader = TopicsReader(self._location, self._cluster, topics, dict(stored), {})
        try:
            while not reader.read() >= Offsets(ends):
                for where, messages in reader.receive(LOOK_S).items():
                    if int(messages.offsets[0]) < ends.get(where, 0):
                        return True
                if deadline is not None and time.monotonic() > deadline:
                    return True
            return False
        finally:
            reader.close()


def _cause(text: str) -> str:
    """Return the last cause that an exception of Java's names: of an error in Python its last line.

    >>> _cause("java.lang.Exception: failed\\n at x\\nCaused by: Traceback\\n  File 1\\nKeyError: 'a'\\n\\n at y")
    "KeyError: 'a'"
    """
    lines = text.strip().splitlines()
    python = [i for i, line in enumerate(lines) if line.startswith("  File ")]
    if python:
        after = [line for line in lines[python[-1] + 1 :] if line and not line.startswith((" ", "\t"))]
        return after[0] if after else lines[0]
    causes = [line.strip() for line in lines if line.lstrip().startswith("Caused by:")]
    return causes[-1].removeprefix("Caused by:").strip() if causes else lines[0] if lines else "no reason is known"
