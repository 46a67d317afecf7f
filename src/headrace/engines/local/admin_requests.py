"""Requests on their way to the engine: from this process, from the log, from commands beside it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from headrace.capture.base import Source
from headrace.clock import Clock
from headrace.engines.local.tasks import TaskRunner
from headrace.errors import HeadraceError, LearnError, LogError
from headrace.event_log import event
from headrace.log import file_of
from headrace.log.base import Log, Transaction
from headrace.plan.task import ModelTask
from headrace.registry.requests import FOLDER, KIND, Inbox, Request, read_requests
from headrace.replay.lineage import tag_version
from headrace.replay.steps import StepRecord

logger = logging.getLogger("headrace")

LOOK_EVERY = 0.2


@dataclass(slots=True, eq=False)
class AdminRequest:
    """A request about a model's versions, and what came of it.

    Attributes:
        state: a rebuilt state that comes with it.
        done: set when it is recorded, or refused.
        result, error: one of the two, then.
        stored: whether it lies in the log, from where it goes with the step that does it.
    """

    request: Request
    state: bytes | None = None
    stored: bool = False
    reply: Callable[[dict[str, Any] | HeadraceError], None] | None = None
    done: threading.Event = field(default_factory=threading.Event)
    result: dict[str, Any] = field(default_factory=dict)
    error: HeadraceError | None = None

    def finish(self) -> None:
        """Tell whoever asked; what was to be done is durable."""
        if self.reply is not None:
            self.reply(self.error or self.result)
        elif self.error is not None and self.stored:
            logger.warning(
                "a request for «%s» was refused: %s",
                self.request.model,
                self.error.message,
                extra=event("refused", model=self.request.model),
            )
        self.done.set()


class AdminRequests:
    """Requests that wait. `add` may be called from any thread, the rest by the engine.

    Args:
        log: a log in a file has a folder of requests beside it.
        models: the plan's.
        sources: who can be asked for snapshots.
    """

    def __init__(self, log: Log, models: Sequence[str], sources: Sequence[Source[Any]] = ()) -> None:
        self._log = log
        self._models = set(models)
        self._sources = {source.name: source for source in sources if source.traits.want_snapshot is not None}
        self._waiting: deque[AdminRequest] = deque()
        self._inbox = Inbox(file_of(log, FOLDER))
        self._looked_at = -LOOK_EVERY

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: AdminRequest) -> None:
        """Queue a request of this process's own."""
        self._waiting.append(request)

    def recover(self) -> None:
        """Take those that lie in the log, as it is."""
        others = [waiting for waiting in self._waiting if not waiting.stored]
        known = [request for request in read_requests(self._log) if request.model in self._models]
        stored = [AdminRequest(request, stored=True) for request in known]
        self._waiting = deque([*stored, *others])

    def look(self, clock: Clock) -> None:
        """Take what commands have asked since, not more often than every 0.2 s."""
        if clock.monotonic() - self._looked_at < LOOK_EVERY:
            return
        first, self._looked_at = self._looked_at < 0, clock.monotonic()
        if first:
            self._inbox.clear()
        for name, request, state in self._inbox.take():
            received = AdminRequest(request, state, reply=partial(self._inbox.reply, name))
            if request.action == "snapshot":
                self._want_snapshot(received)
            elif request.model not in self._models:
                received.error = LogError(f"the pipeline that runs has no model «{request.model}»")
                received.finish()
            else:
                self._waiting.append(received)

    def _want_snapshot(self, wanted: AdminRequest) -> None:
        """Hand a request to the source that it is about, which answers when it is in the log."""
        about, reply = wanted.request.snapshot, wanted.reply
        assert reply is not None
        try:
            want = chosen_source(self._sources, wanted.request.model).traits.want_snapshot
            assert want is not None
            want(about["tables"], about["where"], about["surrogate"], about["id"], reply)
        except HeadraceError as error:
            reply(error)

    def take(self) -> list[AdminRequest]:
        """Take all of them; those that cannot be recorded now are to be given back."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def give_back(self, requests: Sequence[AdminRequest]) -> None:
        """Queue requests again whose transaction was undone. Those in the log come again by `recover`."""
        self._waiting.extendleft(request for request in reversed(requests) if not request.stored)

    def end(self) -> None:
        """Tell whoever waits that the engine has ended."""
        for request in self.take():
            if not request.stored:
                request.error = HeadraceError("the pipeline has ended before the request was recorded")
                request.finish()


_Found = TypeVar("_Found")


def chosen_source(sources: Mapping[str, _Found], name: str) -> _Found:
    """Return the source of a name, "" for the only one.

    Raises:
        LogError: there is none, or there are several.
    """
    if not name and len(sources) == 1:
        return next(iter(sources.values()))
    if name in sources:
        return sources[name]
    names = ", ".join(sorted(sources)) or "none"
    what = f"no database «{name}» is captured" if name else "it is not said which database is meant"
    raise LogError(what, advice=f"Name it with --source. There are: {names}.")


def apply(txn: Transaction, runner: TaskRunner, wanted: AdminRequest) -> StepRecord | None:
    """Do what is wanted, in the transaction; a rollback is a recorded step. A refusal is kept in its ``error``."""
    assert runner.lineage is not None
    request = wanted.request
    wanted.error, wanted.result = None, {}
    record = None
    try:
        if request.action == "tag":
            version = tag_version(runner.lineage.versions, txn, request, runner.clock.now_us())
            wanted.result = {"model": version.model, "version": version.version, "tags": version.tags}
        elif request.action in ("retrain", "promote"):
            refuse_training(runner)
            record, wanted.result = runner.train(txn, request.by, promote=request.action == "promote")
        else:
            change = runner.lineage.asked(txn, request, runner.state, wanted.state)
            record = runner.change_version(txn, change)
            begun, to = runner.state.change is None, change.to
            assert to is not None
            wanted.result = {"model": request.model, "version": to.number, "parent": change.parent, "begun": begun}
            wanted.result |= {"position": str(to.position) if to.position else None, "rows": to.rows}
    except HeadraceError as error:
        if error.retry:
            raise
        wanted.error = error
    if wanted.stored:
        txn.delete(KIND, request.model)
    return record


def refuse_training(runner: TaskRunner) -> None:
    """Refuse to train a model anew that is not declared so, or is being trained.

    Raises:
        LearnError: it is not, or a training runs.
    """
    name, task = runner.task.name, runner.task
    if not isinstance(task, ModelTask) or task.retrain is None:
        raise LearnError(f"«{name}» is never trained anew", advice="Declare model.retrain(rows=…).")
    if runner.state.training is not None:
        raise LearnError(f"«{name}» is being trained", advice="Ask again when that has ended.")
