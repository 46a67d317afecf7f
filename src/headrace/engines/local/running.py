"""A running pipeline, as its user holds it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arguments import checked_methods
from headrace.batch import Batch, as_records
from headrace.capture.base import SourcePosition
from headrace.engines.contract import StoppedAtExit
from headrace.engines.local.append_source import AppendSource
from headrace.engines.local.engine import Engine
from headrace.engines.local.sink_runner import SinkRunners, SinkStatus
from headrace.engines.local.tasks import TaskRunner
from headrace.errors import DeclarationError, HeadraceError, LearnError, WaitTimeout
from headrace.learn.base import learner_text, offers_probabilities, traits_of
from headrace.learn.features import feature_text
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.plan.task import ModelTask
from headrace.registry.requests import Request, whoami
from headrace.step.step import predict_batch

if TYPE_CHECKING:
    from headrace.serve.server import Server


_collected = False


class RunningModel:
    """A model as it is now: predictions on rows of the caller's own, outside any topic.

    ``running["name"]`` returns it. It may be kept: each call asks the model as it is then.
    """

    def __init__(self, engine: Engine, runner: TaskRunner, task: ModelTask) -> None:
        self._engine = engine
        self._runner = runner
        self._task = task

    def predict(self, rows: Any) -> npt.NDArray[Any]:
        """Return predictions, one a row, by the model that has learned every complete cut so far.

        Args:
            rows: a list of dicts, an Arrow table or record batch, a pandas DataFrame (columns by name), or an
                array of shape (n, d) with columns in the order of ``features``.

        Raises:
            HeadraceError: the model has learned nothing yet, or a row cannot be predicted.
        """
        return np.asarray(self._predicted(rows).column("prediction").to_numpy(zero_copy_only=False))

    def predict_proba(self, rows: Any) -> npt.NDArray[np.float64]:
        """Return probabilities of shape (rows, classes), in the order of `classes`, as the model gives them.

        Args:
            rows: as for `predict`.

        Raises:
            DeclarationError: the model gives no probabilities.
            HeadraceError: as for `predict`.
        """
        if not offers_probabilities(self._task.learner):
            raise DeclarationError(
                f"«{self._task.name}» gives no probabilities: {learner_text(self._task.learner)} has no predict_proba",
                advice="Take a classifier that has it, such as SGDClassifier(loss='log_loss'); or call predict.",
            )
        chances = self._predicted(rows, proba=True).column("probability")
        return np.asarray(chances.flatten().to_numpy()).reshape(len(chances), -1 if len(chances) else len(self.classes))

    @property
    def classes(self) -> list[Any]:
        """Return the labels of a classifier, sorted; none of another model."""
        classes = traits_of(self._task.learner).classes
        return [] if classes is None else np.asarray(classes).tolist()

    def _predicted(self, rows: Any, *, proba: bool = False) -> Batch:
        batch = Batch.of(_as_records(rows, self._task))
        with self._engine.guard:
            predictions = predict_batch(self._task, self._runner.state, batch, proba=proba)
            found = predictions.output()
        bad = np.flatnonzero(np.asarray(found.column("status")) != "ok")
        if len(bad):
            raise self._no_prediction(int(bad[0]), found.column("status")[int(bad[0])].as_py(), predictions.reasons)
        return found

    def _no_prediction(self, row: int, status: str, reasons: Mapping[int, str]) -> HeadraceError:
        name = self._task.name
        what = f"the model «{name}» cannot predict row {row}: {status}"
        if status == "not_ready":
            return HeadraceError(f"{what}, it has learned nothing yet", advice="Let it learn a row first, and wait().")
        if status == "diverged":
            advice = f"It needs smaller numbers, or another learner; then: headrace models reset {name}."
            return HeadraceError(f"{what}, {self.diverged}", advice=advice)
        columns = ", ".join(self._task.feature_names)
        return HeadraceError(
            f"{what}, {reasons.get(row, 'no finite prediction')}", advice=f"Its features: {columns}." if columns else ""
        )

    def __repr__(self) -> str:
        state = f"diverged: {self.diverged}" if self.diverged else f"up to {self.position or 'nothing'}"
        parts = [f"{self._task.name} version {self.version}", f"{self.learned} rows learned", state]
        return f"RunningModel({', '.join([*parts, learner_text(self._task.learner)])})"

    @property
    def version(self) -> int:
        return self._runner.state.version

    @property
    def position(self) -> str | None:
        """Return the position of the last row it has learned in a complete cut."""
        return self._runner.progress.position

    @property
    def hash(self) -> str | None:
        """Of the learner's state, after the last step at which it was taken."""
        return self._runner.progress.hash

    @property
    def learned(self) -> int:
        """Return the number of rows learned."""
        return self._runner.state.counters.learned

    @property
    def counters(self) -> dict[str, int]:
        """Return rows learned, predicted, rejected, ignored, unlabelled, and cuts."""
        return dict(self._runner.progress.counters)

    @property
    def diverged(self) -> str:
        """Return why it gives no predictions any more: its own numbers became infinite. Empty while it does."""
        return self._runner.progress.diverged


@checked_methods
class Running(StoppedAtExit):
    """A pipeline that runs in the background; leave the ``with`` block, or call `stop`, to end it.

    `App.start` returns it. ``running["name"]`` is a model of it, as it is now.
    """

    def __init__(self, engine: Engine, log: Log, *, close_log: bool = True, sinking: SinkRunners | None = None) -> None:
        self.engine = engine
        self.log = log
        self._close_log = close_log
        self.server: Server | None = None
        self.page = ""
        self.closing: list[Callable[[], None]] = []
        self.at_end: Callable[[Log], None] | None = None
        self._sinking = sinking or SinkRunners((), engine, log, lambda: (log, False))
        self._thread = threading.Thread(target=self._run, name=f"headrace-{engine.plan.app}", daemon=True)
        try:
            self._thread.start()
            self._sinking.start()
        except BaseException:  # a signal, while this thread waits for the other one to have begun
            self.stop()
            raise

    def _run(self) -> None:
        # What was imported and declared stays: the collector need not look at it again with every batch. Looking at all
        # of it takes 0.1 s, which is worth it once.
        global _collected
        if not _collected:
            gc.collect()
            _collected = True
        gc.freeze()
        try:
            self.engine.run()
        except BaseException:
            # Kept in engine.error and raised to whoever waits or stops.
            return
        finally:
            gc.unfreeze()

    def wait(self, timeout: float | None = 30.0, *, lsn: str | int | None = None, sinks: bool = True) -> None:
        """Wait until everything committed before now is captured, predicted and, in complete cuts, learned.

        What came of it is then delivered too, where the app has sinks.

        Args:
            timeout: seconds; None waits for ever.
            lsn: wait for everything committed before this LSN (text or integer) instead.
            sinks: whether to wait for the sinks, whose destinations may be away.

        Raises:
            WaitTimeout: the deadline came first.
            HeadraceError: the pipeline has failed.
        """
        targets: dict[str, SourcePosition] = {}
        for source in self.engine.sources:
            targets[source.name] = source.end()
            parse = source.traits.parse_position
            if lsn is not None and parse is not None:
                # Topics have no such position: for them it is what they hold now.
                targets[source.name] = source.end(parse(lsn))
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._reached(targets):
            left = 0.05 if deadline is None else min(0.05, deadline - time.monotonic())
            if left <= 0:
                raise WaitTimeout(self._unfinished(targets, timeout))
            self.engine.wait_for(lambda _: self._reached(targets), left)
            if self.engine.finished.is_set() and not self._reached(targets):
                raise HeadraceError("the pipeline was stopped before it had caught up")
        if sinks:
            self._sinking.wait(self.log, deadline, self._failed)

    def _failed(self) -> bool:
        """Return whether it has ended; raises what it died of."""
        if self.engine.error is not None:
            raise self.engine.error
        return self.engine.finished.is_set()

    def _reached(self, targets: Mapping[str, SourcePosition]) -> bool:
        return self.engine.progress.caught_up and not self._behind(targets)

    def _behind(self, targets: Mapping[str, SourcePosition]) -> list[tuple[str, SourcePosition | None]]:
        """Return the sources that have not come to their positions, and where they are."""
        done = self.engine.progress.done
        reached = [(name, done.get(name), target) for name, target in targets.items()]
        return [(name, at) for name, at, target in reached if at is None or not at >= target]

    def _unfinished(self, targets: Mapping[str, SourcePosition], timeout: float | None) -> str:
        behind = [f"{name} at {at or 'its start'}, waiting for {targets[name]}" for name, at in self._behind(targets)]
        return f"not caught up after {timeout} s: {'; '.join(behind)} ({self.engine.progress.status})"

    def append(
        self,
        topic: str,
        rows: Any,
        *,
        key: str | Sequence[str] = (),
        producer_id: str | None = None,
        sequence: int | None = None,
        timeout: float | None = 30.0,
    ) -> int:
        """Append rows to a topic that was declared with ``append=True``; returns when they are durable.

        The rows of one call are one transaction: they are written together, and in the same transaction of the log
        models learn and predict them. May be called from any thread but the engine's.

        Args:
            topic: its name.
            rows: Arrow, a list of dicts, a dict, or a DataFrame.
            key: columns that identify a row.
            producer_id: under this name the log keeps how many rows this producer has appended to the topic
                (`appended`), in the transaction that writes them; ``headrace produce --producer-id`` knows it too.
            sequence: how many rows of the producer come before these. Rows that are there already are skipped: after a
                crash the same calls can be made again, and each row is there once.
            timeout: seconds; None waits for ever.

        Returns:
            How many rows were new.

        Raises:
            DeclarationError: the topic is not declared so, or the rows have no columns.
            LogError: rows before these are missing, or other rows are given again than those that were written.
            WaitTimeout: they are not durable yet, and stay queued.
        """
        if isinstance(rows, dict):
            rows = [rows]
        own = isinstance(rows, list | tuple) and bool(rows) and all(isinstance(row, dict) for row in rows)
        try:
            given = rows if own else as_records(rows)
        except TypeError as error:
            raise DeclarationError(f"append: {error}", advice="Give Arrow, dicts, or a DataFrame.") from error
        queue = self._appending(topic)
        key = (key,) if isinstance(key, str) else key
        new, number = queue.append(topic, given, key=key, producer_id=producer_id, sequence=sequence)
        self.engine.waker.wake()
        try:
            queue.wait(number, timeout)
        except HeadraceError as error:
            raise self.engine.error or error from None
        return new

    def appended(self, topic: str, producer_id: str) -> int:
        """Return the rows that a producer has appended to a topic, also in earlier runs and by ``headrace produce``."""
        return self._appending(topic).position(topic, producer_id)

    def _appending(self, topic: str) -> AppendSource:
        for source in self.engine.sources:
            if isinstance(source, AppendSource):
                return source
        raise DeclarationError(
            f"«{topic}» is not declared to be appended to", advice=f'Declare app.topic("{topic}", append=True).'
        )

    def tick(self, model: str, *, timeout: float | None = 30.0) -> None:
        """Close the model's cut after everything that has arrived, as a recorded tick; an empty cut counts."""
        self._ask(Request("tick", model, 0, whoami()), timeout)

    def rollback(self, model: str, version: int | str, *, timeout: float | None = 30.0) -> int:
        """Let a model go on from an earlier version, as a recorded step; returns when that is durable.

        It begins a new version with that one's state: at once where no cut is open, else when the open cut is complete.
        Rows are learned from there on; those that were learned between the two are not learned again.

        Args:
            model: its name.
            version: its number, or a tag.
            timeout: seconds; None waits for ever.

        Returns:
            The new version's number.

        Raises:
            HeadraceError: there is no such version, its state is not kept, or it is the current one.
            WaitTimeout: it is not recorded yet, and stays asked for.
        """
        return int(self._ask(Request("rollback", model, version, whoami()), timeout)["version"])

    def retrain(self, model: str, *, timeout: float | None = 300.0) -> dict[str, Any]:
        """Train a model anew now, as a recorded step; returns when that is durable.

        Args:
            model: its name; it was declared with `Model.retrain`.
            timeout: seconds; None waits for ever.

        Returns:
            ``status`` (``trained``; ``started`` with ``swap="when_ready"``), the new ``version``, ``rows`` and how they
            were chosen.

        Raises:
            LearnError: nothing came of it, and why; or another training runs.
            WaitTimeout: it is not recorded yet, and stays asked for.
        """
        return trained(model, self._ask(Request("retrain", model, 0, whoami()), timeout))

    def promote(self, model: str, *, timeout: float | None = 30.0) -> dict[str, Any]:
        """Let the model that predicts beside the current one (``retrain(…, shadow=True)``) take over now.

        Raises:
            LearnError: there is none.
            WaitTimeout: it is not recorded yet, and stays asked for.
        """
        return trained(model, self._ask(Request("promote", model, 0, whoami()), timeout))

    def _ask(self, request: Request, timeout: float | None) -> dict[str, Any]:
        """Ask the engine, and wait until what it did is durable."""
        self._check_model(request.model)
        admin_request = self.engine.request(request)
        self._wait_for(admin_request.done, f"the {request.action} of «{request.model}»", timeout)
        if admin_request.error is not None:
            raise admin_request.error
        return admin_request.result

    def _check_model(self, model: str) -> None:
        if model not in self.models:
            raise DeclarationError(f"there is no model «{model}» in this app")

    def _wait_for(self, done: threading.Event, what: str, timeout: float | None) -> None:
        """Wait until something is recorded; raise what the engine dies of meanwhile."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done.wait(0.05):
            if self.engine.error is not None:
                raise self.engine.error
            if deadline is not None and time.monotonic() > deadline:
                raise WaitTimeout(f"{what} was not recorded within {timeout} s")

    def __getitem__(self, model: str) -> RunningModel:
        for runner in self.engine.runners:
            if runner.task.name == model and isinstance(runner.task, ModelTask):
                return RunningModel(self.engine, runner, runner.task)
        raise KeyError(f"there is no model «{model}»; there are: {', '.join(self.models)}")

    @property
    def models(self) -> list[str]:
        """Return names of the app's models."""
        return [task.name for task in self.engine.plan.models]

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def status(self) -> str:
        """Return one line for people. While a log waits for its broker in the middle of a round, it says so itself."""
        waiting = self.log.status if isinstance(self.log, KafkaLog) else ""
        return waiting or self.engine.progress.status

    @property
    def sinks(self) -> dict[str, SinkStatus]:
        """Of each sink, by its name: status, position, rows delivered and refused since the start."""
        return self._sinking.status

    @property
    def tables(self) -> dict[str, pa.Schema]:
        """Return columns of captured tables, by their topics."""
        return {topic: schema for source in self.engine.sources for topic, schema in source.traits.tables.items()}

    @property
    def captured(self) -> dict[str, int]:
        """Return rows captured since the start, by topic."""
        return dict(self.engine.progress.captured)

    @property
    def learned(self) -> int:
        """Return rows that its models have learned."""
        return sum(self[name].learned for name in self.models)

    @property
    def dead_letters(self) -> dict[str, int]:
        """Return rows that went to dead letters since the start, by their topic."""
        return dict(self.engine.dead_letters.counts)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it ends by itself; False when the time-out came first. Raises what it died of."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            return False
        if self.engine.error is not None:
            raise self.engine.error
        return True

    def interrupt(self) -> None:
        """Let it end after the current round; returns at once."""
        self.engine.stop()

    def stop(self) -> None:
        """End after the current round and release the log; raises what the pipeline died of, if it did."""
        while self.closing:
            self.closing.pop()()
        # First: what they have refused or answered is written by the engine.
        self._sinking.stop()
        self.engine.stop()
        if self._thread.ident is not None:
            self._thread.join()
        if self.at_end is not None and self.engine.error is None:
            self.at_end(self.log)
            self.at_end = None
        if self._close_log:
            self.log.close()
        if self.engine.error is not None:
            raise self.engine.error

    def __repr__(self) -> str:
        error = self.engine.error
        state = f"failed: {' '.join(str(error).split())}" if error is not None else self.status
        rows = f"{sum(self.captured.values())} rows captured"
        models = [f"{name} version {self[name].version}: {self[name].learned} learned" for name in self.models]
        ended = state if self.alive or error is not None else "stopped"
        return f"Running({', '.join([self.engine.plan.app, rows, *models, ended])})"


def trained(model: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return what came of a training, where something did.

    Raises:
        LearnError: nothing came of it, and why.
    """
    if outcome["status"] not in ("trained", "started", "shadow", "promoted"):
        raise LearnError(f"the training of «{model}» came to nothing ({outcome['status']}): {outcome.get('reason')}")
    return outcome


def _as_records(rows: Any, task: ModelTask) -> pa.RecordBatch:
    try:
        return as_records(rows)
    except TypeError:
        pass
    names = task.feature_names
    if callable(task.features) or any(not isinstance(feature, str) for feature in task.features):
        raise DeclarationError(
            f"«{task.name}» has features that are no plain numbers",
            advice=f"Give rows by the names of columns: {', '.join(names) or feature_text(task.features)}.",
        )
    try:
        array = np.asarray(None if rows is None or isinstance(rows, str) else rows, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(())
    if not array.ndim:
        raise DeclarationError(
            f"«{task.name}» takes no {type(rows).__name__} of this kind",
            advice="Give a list of dicts, Arrow, a DataFrame, or an array of numbers of shape (rows, features).",
        )
    array = array.reshape(0, len(names)) if not array.size and array.ndim == 1 else np.atleast_2d(array)
    if array.shape[1] != len(names):
        raise DeclarationError(
            f"«{task.name}» has {len(names)} features, got rows of {array.shape[1]}", advice=f"In order: {names}"
        )
    return pa.RecordBatch.from_arrays([np.ascontiguousarray(array[:, j]) for j in range(len(names))], list(names))
