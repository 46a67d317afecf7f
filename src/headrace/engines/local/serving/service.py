"""The models of a pipeline in this process, for the HTTP side; and what both kinds of providers have in common.

`LocalModels` publishes a snapshot of each model after each commit, from the engine's thread, and requests read it.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from headrace.engines.local.append_source import AppendSource
from headrace.engines.local.engine import Engine
from headrace.engines.local.running import Running
from headrace.engines.local.serving.health import engine_metrics, health_of
from headrace.engines.local.serving.metrics import foreseen_metrics, model_metrics, operator_metrics, topic_metrics
from headrace.engines.local.serving.served_rows import FOLDER, ServedRowsReceiver
from headrace.engines.local.serving.snapshots import ModelSnapshot, SnapshotPublisher, describe
from headrace.engines.local.sink_runner import SinkStatus
from headrace.engines.local.tasks import TaskRunner
from headrace.errors import HeadraceError, WaitTimeout
from headrace.learn.state import load_state as load_values
from headrace.log import file_of
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.position import Position
from headrace.registry.requests import Request
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.lineage import kept_state
from headrace.serve.models import AtLeast, Busy, Change, ComponentHealth, Description, Gauge, NoModel
from headrace.serve.parameters import Endpoint
from headrace.step.model_version import ModelVersion, Vocabulary

if TYPE_CHECKING:
    import socket

    from headrace.serve.keys import KeyFile
    from headrace.serve.models import Models
    from headrace.serve.server import Server
    from headrace.serve.settings import ServeSettings

KEPT_VERSIONS = 8
LONGEST_NUMBER = 18


class VersionCache:
    """Versions that are not the current one, as their log keeps them; the last few that were asked for stay here."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._loaded: OrderedDict[tuple[str, int], ModelSnapshot] = OrderedDict()
        self._loading = threading.Lock()

    def numbers(self, current: ModelSnapshot) -> list[str]:
        """Versions that can be asked for: the current one, and those whose state is kept."""
        versions = VersionList.read(self._log, current.info.model)
        return [str(version.version) for version in versions if version.kept or version.version == current.info.version]

    def find(self, published: SnapshotPublisher, wanted: str) -> ModelSnapshot:
        """A version by its number or tag.

        Raises:
            NoModel: there is none, or its state is not kept.
        """
        current = published.newest
        assert current is not None
        name = current.info.model
        if wanted == str(current.info.version):
            return current
        if wanted.isdecimal() and len(wanted) > LONGEST_NUMBER:
            raise NoModel(f"«{name}» has no version of that number")
        with self._loading:
            if wanted.isdecimal() and (name, int(wanted)) in self._loaded:
                return self._loaded[name, int(wanted)]
            try:
                version = VersionList.read(self._log, name).find(wanted)
                if version.version == current.info.version:
                    return current
                data = kept_state(self._log, version)
            except HeadraceError as error:
                raise NoModel(error.message, advice=error.advice) from error
            found = _frozen(published, version, data)
            self._loaded[name, version.version] = found
            while len(self._loaded) > KEPT_VERSIONS:
                self._loaded.popitem(last=False)
            return found


def _frozen(published: SnapshotPublisher, version: VersionRecord, data: bytes) -> ModelSnapshot:
    learner = copy.deepcopy(published.task.learner)
    learner.restore(dict(load_values(data)))
    position = Position.parse(version.position) if version.position else None
    assert published.newest is not None
    words = {column: list(words) for column, words in published.words.items()}
    vocabulary = Vocabulary(words, dict(published.newest.by.sizes))
    by = ModelVersion(learner, version.version, position, version.rows, version.known, vocabulary)
    return published.freeze(by, learner)


class ModelProvider(ABC):
    """The part that every provider has: the newest snapshots, other versions, descriptions, training one at a time."""

    def __init__(self, plan: Plan, log: Log, published: Mapping[str, SnapshotPublisher]) -> None:
        self.plan = plan
        self.log = log
        self.descriptions: Mapping[str, Description] = {
            task.name: describe(task, databases=bool(plan.sources)) for task in plan.models
        }
        self.published = published
        self.offsets: Mapping[str, Mapping[str, int]] = {}
        self._shelves = VersionCache(log)
        self._training: dict[str, threading.Lock] = {name: threading.Lock() for name in published}

    def ready(self, model: str | None = None) -> bool:
        """Return whether a model, or every one, can predict."""
        chosen = self.published.values() if model is None else [self._named(model)]
        return all(published.newest is not None and published.newest.ready for published in chosen)

    def current(self, model: str) -> ModelSnapshot:
        """Return the model that predicts now."""
        newest = self._named(model).newest
        assert newest is not None
        return newest

    def version(self, model: str, version: str) -> ModelSnapshot:
        """A version, by its number or a tag."""
        return self._shelves.find(self._named(model), version)

    def versions(self, model: str) -> list[str]:
        """Numbers of the versions that can be asked for."""
        return self._shelves.numbers(self.current(model))

    def _named(self, model: str) -> SnapshotPublisher:
        found = self.published.get(model)
        if found is None:
            raise NoModel(f"there is no model «{model}»", advice=f"There are: {', '.join(self.published) or 'none'}.")
        return found

    def _is_read(self, model: str, wanted: AtLeast) -> None:
        """Refuse what can never be reached.

        Raises:
            HeadraceError: the model does not read that topic, or no database is captured.
        """
        topics = self.descriptions[self._named(model).task.name].topics
        if wanted.lsn is None and wanted.topic not in topics:
            raise HeadraceError(
                f"«{model}» does not read the topic «{wanted.topic}»", advice=f"It reads: {', '.join(topics)}."
            )
        if wanted.lsn is not None and not self.plan.sources:
            raise HeadraceError("this pipeline captures no database: an LSN says nothing", advice="Give TOPIC:OFFSET.")

    @contextlib.contextmanager
    def _train_alone(self, model: str) -> Iterator[None]:
        lock = self._training[self._named(model).task.name]
        if not lock.acquire(blocking=False):
            raise Busy(f"the model «{model}» is being trained: a request of POST /train is still running")
        try:
            yield
        finally:
            lock.release()

    def reached(self, model: str, wanted: AtLeast) -> ModelSnapshot | None:
        """Return the model that predicts now, when it has learned that far."""
        self._is_read(model, wanted)
        if wanted.lsn is None:
            there = self.offsets[model].get(wanted.topic, 0) > wanted.offset
        else:
            there = self._databases_at(wanted.lsn)
        published = self._named(model)
        if published.behind:
            published.wanted = True
            return None
        return self.current(model) if there else None

    @abstractmethod
    def _databases_at(self, lsn: int) -> bool:
        """Return whether everything that the databases had committed at an LSN is learned."""


class LocalModels(ModelProvider):
    """The models of an engine in this process; see `headrace.serve.models.Models`.

    Args:
        engine: recovered, and not running yet.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.running: Running | None = None
        self._runners = {runner.task.name: runner for runner in engine.runners if isinstance(runner.task, ModelTask)}
        published = {name: _published(runner) for name, runner in self._runners.items()}
        super().__init__(engine.plan, engine.log, published)
        self._publish(idle=True)
        engine.after_commit.append(self._publish)

    def _publish(self, idle: bool = False) -> None:
        for name, runner in self._runners.items():
            self.published[name].publish(runner.state, idle=idle)
        # After the snapshots: who reads the offsets first, and then takes a snapshot, has one that is as new.
        self.offsets = {name: dict(runner.progress.offsets) for name, runner in self._runners.items()}

    def _databases_at(self, lsn: int) -> bool:
        there, done = True, self.engine.progress.done
        for source in self.engine.sources:
            parse = source.traits.parse_position
            if parse is None:
                continue
            wanted, reached = parse(lsn), done.get(source.name)
            if reached is None or not reached >= wanted:
                there = False
                source.end(wanted)
        return there

    def train(self, model: str, timeout: float) -> dict[str, Any]:
        """Train a new version now."""
        assert self.running is not None
        with self._train_alone(model):
            return self.running.retrain(model, timeout=timeout)

    def change(
        self, model: str, action: Change, timeout: float, *, by: str, version: str, tag: str, delete: bool
    ) -> dict[str, Any]:
        """Change a model as a person asks."""
        assert self.running is not None
        wanted = self.running.engine.request(Request(action, model, version, by, tag, delete))
        if not wanted.done.wait(timeout):
            raise WaitTimeout(f"the {action} of «{model}» was not recorded within {timeout:g} s, and stays asked for")
        if wanted.error is not None:
            raise wanted.error
        return wanted.result

    def record(self, topic: str, rows: pa.RecordBatch, timeout: float) -> None:
        """Append predictions that were made to a topic."""
        assert self.running is not None
        self.running.append(topic, rows, timeout=timeout)

    def append(
        self, topic: str, rows: pa.RecordBatch, *, key: Sequence[str], producer_id: str, sequence: int, timeout: float
    ) -> int:
        """Append rows of a person's to a topic that is declared with ``append=True``."""
        assert self.running is not None
        return self.running.append(topic, rows, key=key, producer_id=producer_id, sequence=sequence, timeout=timeout)

    def metrics(self) -> list[Gauge]:
        """Return numbers about the pipeline."""
        found = [
            gauge
            for name, runner in self._runners.items()
            for gauge in model_metrics(runner.progress, runner.state, name)
        ]
        for runner in self.engine.runners:
            found += foreseen_metrics(runner.foreseen, runner.task.name)
            found += operator_metrics(self.log, runner.task, runner.state)
        return [
            *found,
            *topic_metrics(self.log, self.plan.models, self.offsets),
            *engine_metrics(self.engine, self._sinks()),
        ]

    def health(self) -> list[ComponentHealth]:
        """Return the health of sources, sinks and the engine."""
        return health_of(self.engine, self._sinks())

    def _sinks(self) -> list[SinkStatus]:
        return [] if self.running is None else list(self.running.sinks.values())


def _published(runner: TaskRunner) -> SnapshotPublisher:
    assert isinstance(runner.task, ModelTask)

    def time_of(version: int) -> int:
        found = runner.lineage.versions.versions.get(version) if runner.lineage is not None else None
        return found.ts_us if found is not None else 0

    return SnapshotPublisher(runner.task, time_of)


# -- a server for a pipeline ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServerBinding:
    """A server that is to be: its settings checked and its port bound before anything runs.

    Attributes:
        announces: whether to say where the dashboard is.
    """

    app: str
    settings: ServeSettings
    endpoints: tuple[Endpoint, ...]
    keys: KeyFile | None
    listening: socket.socket
    announces: bool = False

    @classmethod
    def of(
        cls,
        plan: Plan,
        serve: bool | ServeSettings,
        *,
        ui: bool | ServeSettings = False,
        listening: socket.socket | None = None,
    ) -> ServerBinding:
        """Check settings, those of the environment where none are given, and bind the port.

        Args:
            ui: whether to say where the dashboard is, or settings for it where ``serve`` has none.
            listening: a bound socket, in place of one that is opened here.

        Raises:
            HeadraceError: it would be open to others, or the port is taken.
        """
        from headrace.serve.server import open_free_socket, open_keys, open_socket
        from headrace.serve.settings import ServeSettings

        given = next((value for value in (serve, ui) if isinstance(value, ServeSettings)), None)
        settings = ServeSettings() if given is None else given
        keys = open_keys(settings, plan.log)
        settings.check(keys=keys is not None and keys.some())
        if listening is None:
            chosen = bool(serve) or "port" in settings.model_fields_set
            listening = open_socket(settings) if chosen else open_free_socket(settings)
        return cls(plan.app, settings, plan.endpoints, keys, listening, announces=bool(ui))

    def serving(self, models: Models, log: Log, *, location: str) -> Server:
        """The server, with the dashboard at ``/ui``; it is not started yet.

        Args:
            location: of the log, for people.
        """
        from headrace.serve.api import application
        from headrace.serve.server import Server
        from headrace.ui.application import Dashboard
        from headrace.ui.subject import Subject

        subject = Subject(log, self.app, location)
        pages = Dashboard(subject, self.settings, self.keys, models=models)
        app, service = application(models, self.endpoints, self.settings, self.keys, title=self.app, pages=pages)
        return Server(app, self.settings, listening=self.listening, ending=pages.end, ended=service.close)

    def close(self) -> None:
        """Give the port back."""
        self.listening.close()


def serve_running(running: Running, models: LocalModels, place: ServerBinding, *, location: str) -> None:
    """Serve a pipeline that runs, until it is stopped; say where the dashboard is, where somebody has asked for it.

    Args:
        location: of its log, for people.
    """
    models.running = running
    try:
        running.server = place.serving(models, models.log, location=location)
        running.closing.append(running.server.stop)
        running.server.start()
    except BaseException:
        running.stop()
        raise
    if place.announces:
        from headrace.ui.application import announce

        running.page = announce(running.server.url)


def receive_served_rows(running: Running, endpoints: Sequence[Endpoint]) -> None:
    """Take rows that processes which follow the log hand over, where answers are logged at all."""
    folder = file_of(running.log, FOLDER)
    queues = [source for source in running.engine.sources if isinstance(source, AppendSource)]
    if folder is not None and queues and any(endpoint.log_to for endpoint in endpoints):
        handed = ServedRowsReceiver(folder, queues[0])
        running.closing.append(handed.stop)
        handed.start()
