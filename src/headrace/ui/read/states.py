"""States of a model's versions, made of the log alone: as they are, and as they were at a moment.

A version that has ended is as the log keeps it. The one that predicts, or predicted then, is made again by repeating
its recorded steps, where the log says how the model is declared; one that is only trained now and then is the same from
its beginning to its end. Where neither is so, it is the nearest state that the log holds, and that is said.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.errors import HeadraceError, LogError
from headrace.log.base import Log
from headrace.plan.blueprint import declared_by_log
from headrace.plan.plan import steps_topic_of
from headrace.plan.task import ModelTask
from headrace.registry.models import ModelRecord, checkpoint_steps, read_model
from headrace.registry.versions import VersionRecord
from headrace.replay.follower import Follower
from headrace.replay.rebuild import Place, rebuild
from headrace.replay.steps import StepRecord, first_step, last_step
from headrace.replay.version_state import version_of
from headrace.step.model_version import ModelVersion
from headrace.ui.read.moment import Moment
from headrace.ui.read.relations import versions_of

SECONDS = 8.0
KEPT, FOLLOWED = 6, 16


@dataclass(slots=True)
class VersionState:
    """A version that can predict.

    Attributes:
        note: which state of it this is, where it is not plainly the one that is, or was, there; "" where it is.
        lock: of whoever predicts with it: the learner is one, and may be learning on.
    """

    task: ModelTask
    by: ModelVersion
    note: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def position(self) -> str | None:
        """Return the position that it has learned up to."""
        return str(self.by.position) if self.by.position else None


@dataclass(slots=True)
class _Followed:
    lock: threading.RLock = field(default_factory=threading.RLock)
    follower: Follower | None = None


class States:
    """Makes states for pages; those that were made last are kept, and models that learn are followed.

    Args:
        follows: whether a model's steps are repeated as they are recorded; else it is as its newest checkpoint has it.
            Beside a pipeline, which has the model itself, its learning would be done twice.
    """

    def __init__(self, *, follows: bool = True) -> None:
        self._follows = follows
        self._made: OrderedDict[tuple[object, ...], VersionState] = OrderedDict()
        self._followed: dict[tuple[Log, str], _Followed] = {}
        self._lock = threading.Lock()

    def of(self, moment: Moment, model: str, number: str = "") -> VersionState:
        """Return a version of a model.

        Args:
            number: or a tag; empty: the one that predicts, or predicted then.

        Raises:
            HeadraceError: there was no such model or version, or its state is not kept.
        """
        versions = versions_of(moment, model)
        chosen = versions.find(number) if number else versions.current
        known = read_model(moment.log, model)
        if chosen is None or known is None:
            raise LogError(f"the log has no model «{model}»{'' if moment.live else ' then'}")
        log = moment.log
        if chosen.ended_us is not None:
            key: tuple[object, ...] = (log, model, chosen.version, chosen.ended_us)
            return self._once(key, lambda: _kept(log, known, chosen))
        if moment.live:
            return self._now(log, known, chosen)
        step = step_then(moment, model)
        key = (log, model, chosen.version, "step", None if step is None else step.step)
        return self._once(key, lambda: _then(log, known, chosen, step))

    def _now(self, log: Log, known: ModelRecord, version: VersionRecord) -> VersionState:
        """Return the version that predicts: as the newest recorded step has left it, else as it was stored last."""
        found = self._after_newest_step(log, known, version.model) if self._follows else None
        if found is not None:
            return found
        topic, model = _steps_topic(known), version.model
        step = last_step(log, topic, model, _end(log, topic))
        position = None if step is None else step.position
        key = (log, model, version.version, position, *checkpoint_steps(log, model)[-1:])
        return self._once(key, lambda: _nearest(log, known, version, step))

    def _after_newest_step(self, log: Log, known: ModelRecord, model: str) -> VersionState | None:
        """Return a model that was followed up to the end of the record; None where its steps cannot be repeated."""
        with self._lock:
            followed = self._followed.pop((log, model), None) or _Followed()
            self._followed[log, model] = followed  # the last one
            while len(self._followed) > FOLLOWED:
                del self._followed[next(iter(self._followed))]
        with followed.lock:
            try:
                if followed.follower is None:
                    plan, task = declared_by_log(model, known, repeats=True)
                    followed.follower = Follower(plan, task, log, seconds=SECONDS)
                else:
                    followed.follower.advance()
            except HeadraceError:
                followed.follower = None
                return None
            follower = followed.follower
            note = "" if follower.there else "the record goes on: ask again, and it has come further"
            return VersionState(follower.task, follower.state.active, note, followed.lock)

    def _once(self, key: tuple[object, ...], make: Callable[[], VersionState]) -> VersionState:
        with self._lock:
            found = self._made.get(key)
        if found is None:
            found = make()
        with self._lock:
            self._made[key] = found
            self._made.move_to_end(key)
            while len(self._made) > KEPT:
                self._made.popitem(last=False)
        return found


def step_then(moment: Moment, model: str) -> StepRecord | None:
    """Return the record of the last step whose outputs were there; None where there was none, or it is far away."""
    known = read_model(moment.log, model)
    topic = _steps_topic(known) if known is not None else ""
    end = moment.end(topic) if known is not None else 0
    found = last_step(moment.log, topic, model, end)
    if moment.live:
        return found
    # The slice of a step's record comes after those of its outputs.
    following = first_step(moment.log, topic, model, end)
    if following is not None and any(first < moment.end(name) for name, (first, _) in following.outputs.items()):
        return following
    return found


def _steps_topic(known: ModelRecord) -> str:
    return steps_topic_of(known["app"])


def _end(log: Log, topic: str) -> int:
    info = log.topics().get(topic)
    return 0 if info is None else info.end


def _kept(log: Log, known: ModelRecord, version: VersionRecord) -> VersionState:
    """Return a version that has ended."""
    task = declared_by_log(version.model, known, repeats=False)[1]
    return VersionState(task, version_of(log, task, version))


def _learns(known: ModelRecord) -> bool:
    """Return whether a model learns rows one after the other; else each version is the same from beginning to end."""
    made = known.get("blueprint") or {}
    return bool(made.get("learn")) or "learns_derived" in known["fingerprint"]


def _then(log: Log, known: ModelRecord, version: VersionRecord, step: StepRecord | None) -> VersionState:
    """Return a version as it was after a step."""
    model = version.model
    now = next(each for each in versions_of(Moment(log), model) if each.version == version.version)
    if not _learns(known):
        task = declared_by_log(model, known, repeats=False)[1]
        return VersionState(task, version_of(log, task, now))
    if step is not None:
        ends = time.monotonic() + SECONDS

        def on_step(repeated: int, last: int) -> None:
            if time.monotonic() > ends:
                raise LogError(f"repeating the steps up to {step.step} takes long")

        try:
            plan, task = declared_by_log(model, known, repeats=True)
            made = rebuild(plan, task, log, Place(step=step.step), on_step=on_step)
            return VersionState(task, made.version, "exactly as it was")
        except HeadraceError:
            pass
    return _nearest(log, known, now, step)


def _nearest(log: Log, known: ModelRecord, version: VersionRecord, step: StepRecord | None) -> VersionState:
    """Return the nearest state of a version that the log holds, and say how far it is from what was there."""
    found = _kept(log, known, version)
    wanted = step.position if step is not None else None
    if found.by.number != version.version or (found.position != wanted and wanted is not None):
        which = "as it ended" if version.ended_us is not None else "the newest state that the log holds"
        found.note = f"{which}, while the version stood at {wanted or 'nothing'}"
    return found
