"""What a running model's versions leave in the log: a record of each, and the states of those that ended.

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
from headrace.plan.task import ModelTask
from headrace.position import Position
from headrace.registry.models import differences, move_on
from headrace.registry.requests import Request
from headrace.registry.versions import PIPELINE, VersionList, VersionRecord, artifact_name, put_version, read_artifact
from headrace.replay.environment import libraries_of
from headrace.step.events import Swap
from headrace.step.outputs import Output
from headrace.step.state import Ended, State

# Of a fingerprint: what a learner's state does not depend on.
_ELSEWHERE = ("cut", "inputs", "sample_weight", "versions")


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
        current.began = {**current.began, "rows": state.lineage_rows}
        put_version(txn, current)

    # -- versions that end ----------------------------------------------------------------------------------------

    def store(self, txn: Transaction, state: State, outputs: Sequence[Output], now_us: int) -> None:
        """Store what ended during the last step, and what began."""
        if not state.ended:
            return
        scored = [batch for topic, batch in outputs if topic == self._task.metrics_topic]
        lines = [line for batch in scored for line in batch.records.to_pylist()]
        for i, ended in enumerate(state.ended):
            following = state.ended[i + 1].version if i + 1 < len(state.ended) else state.version
            pieces = dump_pieces(dict(ended.state))
            self.versions.end(
                txn,
                ended.version,
                pieces,
                ended_us=now_us,
                position=str(ended.position) if ended.position else None,
                learned=dict(ended.reach),
                rows=ended.rows,
                hash=state_hash(dict(ended.state)),
                size=sum(map(len, pieces)),
                metrics={
                    **ended.metrics,
                    **metrics_in([one for one in lines if one["model_version"] == ended.version]),
                },
                known=dict(ended.known),
                libraries=libraries_of(self._task.learner),
            )
            self.versions.begin(txn, self._following(ended, following, now_us))
        self.versions.prune(txn, self._task.versions.last)
        move_on(self._log, txn, self._task.name, state.version)

    def _following(self, ended: Ended, number: int, now_us: int) -> VersionRecord:
        swap = ended.swap
        position, rows = (ended.position, ended.rows) if swap is None else (swap.position, swap.rows)
        began = {
            "position": str(position) if position else None,
            "rows": rows,
            "offsets": dict(ended.reach),
            "artifact": None if swap is None else swap.artifact or None,
        }
        every = self._task.versions.every
        reason = f"every {every} rows" if swap is None else _reason(swap)
        by = PIPELINE if swap is None else swap.by
        parent = ended.version if swap is None else swap.parent
        cut = str(self._task.cut)
        libraries = libraries_of(self._task.learner)
        following = VersionRecord(
            self._task.name, number, parent, reason, now_us, by, cut, began=began, libraries=libraries
        )
        following.training = {} if swap is None else dict(swap.training)
        return following

    # -- what is asked for ----------------------------------------------------------------------------------------

    def asked(self, txn: Transaction, request: Request, state: State, given: bytes | None) -> Swap:
        """The swap that a request for a rollback means; a rebuilt state that comes with it is stored.

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
        swap = swap_of(
            self._task.name,
            data,
            version=state.version + 1,
            parent=version.version,
            artifact=key,
            by=request.by,
            **_of_state(rebuilt or version.to_dict()),
        )
        try:
            copy.deepcopy(self._task.learner).restore(dict(swap.state))
        except HeadraceError:
            raise
        except Exception as error:  # whatever a learner of one's own raises on another one's state
            raise LearnError(
                f"the state of version {version.version} does not fit «{self._task.name}»: {error}"
            ) from error
        if rebuilt and given is not None:
            txn.put("artifact", key, given)
        return swap

    def tag(self, txn: Transaction, request: Request) -> VersionRecord:
        """Give or take a tag.

        Raises:
            LogError: there is no such version, or no such tag on it.
        """
        return tag_version(self.versions, txn, request)

    def _refuse_another_declaration(self, version: VersionRecord) -> None:
        then, now = self.versions.fingerprint(version), self._task.fingerprint()
        if not then:
            return
        old, new = ({key: one for key, one in each.items() if key not in _ELSEWHERE} for each in (then, now))
        changed = differences(old, new)
        if changed:
            raise LearnError(
                f"version {version.version} of «{self._task.name}» was declared differently: {'; '.join(changed)}",
                advice="A state fits only the model that it was learned by.",
            )


def metrics_in(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The last of some lines of a metrics topic, by the stream that was scored: rows scored, metrics, confusion."""
    return {
        line["stream"]: {
            key: one for key, one in line.items() if key not in _PLACE and key[:2] != "__" and one is not None
        }
        for line in lines
    }


_PLACE = ("stream", "learned", "window", "model", "model_version", "model_position")


def tag_version(versions: VersionList, txn: Transaction, request: Request) -> VersionRecord:
    """Give or take a tag; see `Lineage.tag`."""
    version = versions.find(request.version)
    if request.delete:
        versions.untag(txn, version, request.tag)
    else:
        versions.tag(txn, version, request.tag)
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
    """The stored state of an ended version.

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


def _of_state(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"position": values.get("position"), "rows": values.get("rows", 0), "known": values.get("known", {})}


def _reason(swap: Swap) -> str:
    if swap.training:
        return f"trained on {swap.training['selection']}"
    at = f" at {swap.position}" if "@" in swap.artifact else ""
    return f"rollback to version {swap.parent}{at}"


# -- as recorded ------------------------------------------------------------------------------------------------------


def swap_of(
    model: str,
    data: bytes,
    *,
    version: int,
    parent: int,
    artifact: str,
    by: str,
    position: str | None,
    rows: int,
    known: Mapping[str, int],
    training: Mapping[str, Any] | None = None,
) -> Swap:
    """A swap with its state.

    Raises:
        LogCorrupt: the bytes are no state.
    """
    place = Position.parse(position) if position else None
    return Swap(version, parent, load_values(data), place, rows, dict(known), artifact, by, training or {})


def swap_event(swap: Swap, ts_us: int) -> dict[str, Any]:
    """A swap for the record of its step."""
    about: dict[str, Any] = {"version": swap.version, "parent": swap.parent, "artifact": swap.artifact, "by": swap.by}
    about |= {"position": str(swap.position) if swap.position else None, "rows": swap.rows, "known": dict(swap.known)}
    about |= {"training": dict(swap.training)} if swap.training else {}
    about |= {"refused": swap.refused} if swap.refused else {}
    return {"swap": {**about, "ts_us": ts_us}}


def recorded_swap(log: Log, model: str, event: Mapping[str, Any]) -> Swap:
    """The inverse of `swap_event`, with the state from the log.

    Raises:
        LogCorrupt: the state is not there.
    """
    about = {name: value for name, value in event["swap"].items() if name != "ts_us"}
    if not about["artifact"]:  # a training that came to nothing
        return Swap(**{**about, "state": {}, "position": None})
    data = read_artifact(log, about["artifact"])
    if data is None:
        raise LogCorrupt(
            f"the state of «{model}» that was gone back to ({about['artifact']}) is not in the log",
            advice="Restore the log from a copy.",
        )
    return swap_of(model, data, **about)
