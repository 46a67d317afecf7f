"""The versions of a running model as the log keeps them: a record of each, and the states of those that ended.

A version that ends during a step is stored in the transaction of that step. A replay stores nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import HeadraceError, LearnError, LogCorrupt
from headrace.learn.state import dump_pieces, state_hash
from headrace.learn.state import load_state as load_values
from headrace.log.base import Log, Transaction
from headrace.plan.fingerprint import core, declaration_differences
from headrace.plan.task import ModelTask
from headrace.position import Position
from headrace.registry.models import move_on
from headrace.registry.requests import Request
from headrace.registry.versions import VersionList, VersionRecord, artifact_name, put_version, read_artifact
from headrace.replay.environment import libraries_of
from headrace.step.model_version import ModelVersion, VersionChange, VersionEnd
from headrace.step.outputs import Output
from headrace.step.state import State

# Of a fingerprint: what a learner's state does not depend on.
_ELSEWHERE = ("cut", "inputs", "learns_derived", "sample_weight", "versions")


class Lineage:
    """The versions of one model of a plan, on its log.

    Args:
        task: the model's.
        log: where it runs.
    """

    def __init__(self, task: ModelTask, log: Log) -> None:
        self._task = task
        self._log = log
        self.versions = VersionList(task.name, [])

    def read(self) -> None:
        """Come to where the log is."""
        self.versions = VersionList.read(self._log, self._task.name)

    def began_with(self, txn: Transaction, state: State) -> None:
        """Note what the version that is there now was trained on before its first row."""
        current = self.versions.current
        if current is None:
            return
        current.training = dict(state.began_with)
        current.began = {**current.began, "rows": state.learned_rows}
        put_version(txn, current)

    # -- versions that end ----------------------------------------------------------------------------------------

    def store(self, txn: Transaction, state: State, outputs: Sequence[Output], now_us: int) -> None:
        """Store what ended during the last step, and what began."""
        if not state.ended:
            return
        scored = [batch for topic, batch in outputs if topic == self._task.metrics_topic]
        lines = [line for batch in scored for line in batch.records.to_pylist()]
        following = [end.version.number for end in state.ended[1:]] + [state.version]
        for end, number in zip(state.ended, following, strict=True):
            ended, pieces = end.version, dump_pieces(dict(end.state))
            mine = [line for line in lines if line["model_version"] == ended.number]
            self.versions.end(
                txn,
                ended.number,
                pieces,
                ended_us=now_us,
                position=str(ended.position) if ended.position else None,
                learned=dict(end.learned_offsets),
                rows=ended.rows,
                hash=state_hash(dict(end.state)),
                size=sum(map(len, pieces)),
                metrics={**end.metrics, **metrics_in(mine)},
                known=dict(ended.known),
                libraries=libraries_of(self._task.learner),
            )
            self.versions.begin(txn, self._following(end, number, now_us))
        self.versions.prune(txn, self._task.versions.last)
        move_on(self._log, txn, self._task.name, state.version)

    def _following(self, end: VersionEnd, number: int, now_us: int) -> VersionRecord:
        """Return the record of the version that begins where one ended."""
        change = end.change
        begins = end.version if change is None or change.to is None else change.to
        following = VersionRecord(self._task.name, number, ts_us=now_us, cut=str(self._task.cut))
        if change is not None and change.declared:
            following.fingerprint, following.declared = self._task.fingerprint(), number
        following.libraries = libraries_of(self._task.learner)
        following.began = {
            "position": str(begins.position) if begins.position else None,
            "rows": begins.rows,
            "offsets": dict(end.learned_offsets),
            "artifact": None if change is None else change.artifact or None,
        }
        if change is None:
            following.parent, following.reason = end.version.number, f"every {self._task.versions.every} rows"
        else:
            following.parent, following.reason, following.by = change.parent, _reason(change), change.by
            following.training = dict(change.training)
        return following

    # -- what is asked for ----------------------------------------------------------------------------------------

    def asked(self, txn: Transaction, request: Request, state: State, given: bytes | None) -> VersionChange:
        """Return the change that a request for a rollback means; a rebuilt state that comes with it is stored.

        Raises:
            HeadraceError: there is no such version, its state is not kept, it is the current one, or it is of another
                declaration. Nothing was written.
        """
        version = self.versions.find(request.version)
        rebuilt = request.rebuilt
        refuse_current(version, state.version, rebuilt)
        self._refuse_another_declaration(version)
        key = artifact_name(self._task.name, version.version, rebuilt.get("position") or "0" if rebuilt else "")
        data = given if rebuilt and given is not None else kept_state(self._log, version, key)
        of = rebuilt or version.to_dict()
        about = {"version": state.version + 1, **{name: of.get(name) for name in ("position", "rows", "known")}}
        try:
            to = _stored_version(self._task, about, data)
        except HeadraceError:
            raise
        except Exception as error:  # whatever a learner of one's own raises on another one's state
            raise LearnError(
                f"the state of version {version.version} does not fit «{self._task.name}»: {error}"
            ) from error
        if rebuilt and given is not None:
            txn.put("artifact", key, given)
        return VersionChange(to, version.version, key, request.by)

    def _refuse_another_declaration(self, version: VersionRecord) -> None:
        then, now = self.versions.fingerprint(version), self._task.fingerprint()
        if not then:
            return
        old, new = ({key: value for key, value in core(each).items() if key not in _ELSEWHERE} for each in (then, now))
        changed = declaration_differences(old, new)
        if changed:
            raise LearnError(
                f"version {version.version} of «{self._task.name}» was declared differently: {'; '.join(changed)}",
                advice="A state fits only the model that it was learned by.",
            )


def metrics_in(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the last lines of a metrics topic by the stream that was scored: rows scored, metrics, confusion."""
    return {
        line["stream"]: {
            key: value for key, value in line.items() if key not in _PLACE and key[:2] != "__" and value is not None
        }
        for line in lines
    }


_PLACE = ("stream", "learned", "window", "model", "model_version", "model_position")


def tag_version(versions: VersionList, txn: Transaction, request: Request, ts_us: int) -> VersionRecord:
    """Give or take a tag.

    Raises:
        LogError: there is no such version, or no such tag on it.
    """
    version = versions.find(request.version)
    if request.delete:
        versions.untag(txn, version, request.tag, ts_us)
    else:
        versions.tag(txn, version, request.tag, ts_us)
    return version


def refuse_current(version: VersionRecord, current: int, rebuilt: Mapping[str, Any]) -> None:
    """Going back to what is there already makes no sense.

    Raises:
        LearnError: it is the current version.
    """
    if version.version == current and not rebuilt:
        raise LearnError(
            f"version {current} of «{version.model}» is the current one",
            advice="Name an earlier one, or a place in this one: headrace models rollback NAME --at POSITION.",
        )


def kept_state(log: Log, version: VersionRecord, key: str = "") -> bytes:
    """Return the stored state of an ended version.

    Raises:
        LogCorrupt: it is not kept.
    """
    data = read_artifact(log, key or version.artifact)
    if data is None:
        where = f"--at {version.position}" if version.position else "--at POSITION"
        raise LogCorrupt(
            f"the state of version {version.version} of «{version.model}» is not kept any more",
            advice=f"Rebuild it from the log: {where}. Tags keep states: headrace models tag.",
        )
    return data


def _reason(change: VersionChange) -> str:
    if change.declared:
        return f"continues: {change.declared}"
    if change.training:
        return f"trained on {change.training['selection']}"
    at = f" at {change.to.position}" if change.to is not None and "@" in change.artifact else ""
    return f"rollback to version {change.parent}{at}"


# -- as recorded ------------------------------------------------------------------------------------------------------


def change_event(change: VersionChange, ts_us: int) -> dict[str, Any]:
    """Return a change for the record of its step."""
    to = change.to
    about: dict[str, Any] = {"version": to.number if to else 0, "parent": change.parent, "artifact": change.artifact}
    about |= {"by": change.by, "position": str(to.position) if to and to.position else None}
    about |= {"rows": to.rows if to else 0, "known": dict(to.known) if to else {}}
    about |= {"training": dict(change.training)} if change.training else {}
    about |= {"refused": change.refused} if change.refused else {}
    return {"swap": {**about, "ts_us": ts_us}}


def recorded_change(log: Log, task: ModelTask, event: Mapping[str, Any]) -> VersionChange:
    """Return the change of a recorded step, with its learner's state from the log; the inverse of `change_event`.

    Raises:
        LogCorrupt: the state is not there.
    """
    about = event["swap"]
    more = {name: about.get(name, none) for name, none in (("training", {}), ("refused", ""))}
    to, artifact = None, about["artifact"]
    if artifact:  # else a training that came to nothing
        data = read_artifact(log, artifact)
        if data is None:
            raise LogCorrupt(
                f"the state of «{task.name}» that was gone back to ({artifact}) is not in the log",
                advice="Restore the log from a copy.",
            )
        to = _stored_version(task, about, data)
    return VersionChange(to, about["parent"], artifact, about.get("by", ""), **more)


def _stored_version(task: ModelTask, about: Mapping[str, Any], data: bytes) -> ModelVersion:
    """Return a version whose learner's state is stored.

    Raises:
        LogCorrupt: the bytes are no state.
    """
    position = Position.parse(about["position"]) if about["position"] else None
    learner = copy.deepcopy(task.learner)
    learner.restore(dict(load_values(data)))
    return ModelVersion(learner, about["version"], position, about["rows"] or 0, dict(about.get("known") or {}))
