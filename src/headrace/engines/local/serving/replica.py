"""The models of a pipeline that another process runs, followed by its log.

Each is followed by the steps that are recorded (`headrace.replay.follower`).
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.engines.local.running import trained
from headrace.engines.local.serving.metrics import model_metrics, operator_metrics, topic_metrics
from headrace.engines.local.serving.served_rows import ServedRowsSender
from headrace.engines.local.serving.service import ModelProvider
from headrace.engines.local.serving.snapshots import SnapshotPublisher
from headrace.engines.local.startup import check_fingerprint
from headrace.errors import LogError, LogLocked
from headrace.event_log import event
from headrace.formats.topic_formats import codec_for
from headrace.inspect.health import read_health
from headrace.log import file_of, open_log
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.position import parse_lsn
from headrace.registry.models import Progress
from headrace.registry.requests import FOLDER, Request, ask, whoami
from headrace.registry.versions import VersionList
from headrace.replay.follower import Follower
from headrace.serve.models import TAKES_OVER, Change, ComponentHealth, Gauge
from headrace.step.state import State

logger = logging.getLogger("headrace")

LOOK_SECONDS = 0.02
AFTER_ERROR = 1.0


class ReplicaTask:
    """One model as the log has it, and what is published of it. Used by one thread."""

    def __init__(self, plan: Plan, task: ModelTask, log: Log) -> None:
        self._log = log
        self._info: dict[int, int] = {}
        self.task = task
        self.published = SnapshotPublisher(task, self._time_of)
        self._follower = Follower(plan, task, log)
        self.published.publish(self.state, idle=True)

    @property
    def state(self) -> State:
        return self._follower.state

    @property
    def progress(self) -> Progress:
        return self._follower.progress

    def advance(self) -> bool:
        """Repeat what was recorded since; returns whether there was anything."""
        before = self._follower.beginnings
        moved = self._follower.advance()
        self.published.publish(self.state, idle=not moved or self._follower.beginnings != before)
        return moved

    @property
    def unread(self) -> bool:
        """Return whether the log holds rows that the model has not consumed."""
        return bool(self._log.read(self.task.topics, after=self.progress.slice, limit=1))

    def _time_of(self, version: int) -> int:
        if version not in self._info:
            self._info = {version.version: version.ts_us for version in VersionList.read(self._log, self.task.name)}
        return self._info.get(version, 0)


class Replica(ModelProvider):
    """Models that follow a log; see `headrace.serve.models.Models`. `start` begins, `stop` ends and closes the log."""

    def __init__(self, plan: Plan, log: Log) -> None:
        self._tasks = {task.name: ReplicaTask(plan, task, log) for task in plan.models}
        super().__init__(plan, log, {name: task.published for name, task in self._tasks.items()})
        self._databases: Mapping[str, int] = {}
        self._ended = threading.Event()
        self._handing = ServedRowsSender(log)
        self._thread = threading.Thread(target=self._run, name=f"headrace-follow-{plan.app}", daemon=True)
        self._look()

    @classmethod
    def of(cls, plan: Plan) -> Replica:
        """Follow the log of a pipeline that another process runs.

        Raises:
            LogError: there is no log, or none that another process could write.
            FingerprintError: a model is declared differently in the log.
        """
        plan.check()
        log = open_log(plan.log, writer=False, name=plan.app, codec=codec_for(plan.formats))
        try:
            for task in plan.models:
                check_fingerprint(plan, task, log)
            return cls(plan, log)
        except BaseException:
            log.close()
            raise

    def start(self) -> None:
        """Follow, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End; calling it twice is harmless."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self.log.close()

    def _run(self) -> None:
        wait = LOOK_SECONDS
        while not self._ended.wait(wait):
            try:
                wait = 0.0 if self._look() else LOOK_SECONDS
            except Exception as error:  # whatever it is, what was published goes on answering
                logger.warning("following the log: %s", error, extra=event("following"))
                wait = AFTER_ERROR

    def _look(self) -> bool:
        """Come to where the log is; returns whether there was anything new."""
        databases = self._stored_positions()
        moved = [task.advance() for task in self._tasks.values()]
        if databases != self._databases and not any(task.unread for task in self._tasks.values()):
            self._databases = databases
        self.offsets = {name: dict(task.progress.offsets) for name, task in self._tasks.items()}
        return any(moved)

    def _stored_positions(self) -> dict[str, int]:
        """Database -> the LSN up to which the log has everything that was committed."""
        found = {name: json.loads(value) for name, value in self.log.records("source").items()}
        return {name: parse_lsn(at["acknowledged"]) for name, at in found.items() if "acknowledged" in at}

    def _databases_at(self, lsn: int) -> bool:
        return all(self._databases.get(source.prefix, 0) >= lsn for source in self.plan.sources)

    def train(self, model: str, timeout: float) -> dict[str, Any]:
        """Have the process that writes the log train a new version; it has been followed when this returns."""
        until = time.monotonic() + timeout
        with self._train_alone(model):
            told = trained(model, ask(self._folder(), Request("retrain", model, 0, whoami()), timeout=timeout))
        if told["status"] in TAKES_OVER:
            while self.current(model).info.version < told["version"]:
                if self._ended.wait(LOOK_SECONDS / 4) or time.monotonic() > until:
                    break
        return told

    def _folder(self) -> Path:
        folder = file_of(self.log, FOLDER)
        if folder is None:
            raise LogError("only a pipeline whose log is a file can be asked from another process")
        return folder

    def change(
        self, model: str, action: Change, timeout: float, *, by: str, version: str, tag: str, delete: bool
    ) -> dict[str, Any]:
        """Refuse to change a model: this process only follows."""
        raise LogLocked(f"«{model}» is changed by the process that runs its pipeline, and this one follows it")

    def record(self, topic: str, rows: pa.RecordBatch, timeout: float) -> None:
        """Hand predictions that were made over to the process that writes the log."""
        self._handing.append(topic, rows, timeout)

    def append(
        self, topic: str, rows: pa.RecordBatch, *, key: Sequence[str], producer_id: str, sequence: int, timeout: float
    ) -> int:
        """Refuse rows of a person's: this process only follows."""
        raise LogLocked(
            f"«{topic}» is written by the process that runs the pipeline, and this one follows it",
            advice="Append there: headrace run FILE --ui, or running.append(…).",
        )

    def health(self) -> list[ComponentHealth]:
        """Return the health that the process that writes the log tells."""
        return read_health(self.log)

    def metrics(self) -> list[Gauge]:
        """Return numbers about the pipeline."""
        found: list[Gauge] = []
        for name, task in self._tasks.items():
            found += [
                *model_metrics(task.progress, task.state, name),
                *operator_metrics(self.log, task.task, task.state),
            ]
        return [*found, *topic_metrics(self.log, self.plan.models, self.offsets)]
