"""What the log remembers of models: declarations, versions, positions and checkpoints, as named records.

=================  =======================  ==========================================================
kind               name                     value
=================  =======================  ==========================================================
``model``          NAME                     app, fingerprint, current version (JSON)
``version``        NAME/000001              why and where a version began (JSON)
``position``       NAME                     last step, last slice, offsets, counters, hash (JSON)
``checkpoint``     NAME/000000000012        the whole state after that step (`headrace.learn.state`)
=================  =======================  ==========================================================

A stream that is written without a model has a position only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

KEPT_CHECKPOINTS = 2
SPARSE_STEPS = 10_000


class Writes(Protocol):
    """The part of a log's transaction that the registry needs."""

    def put(self, kind: str, name: str, value: bytes | Sequence[bytes | memoryview]) -> None: ...

    def delete(self, kind: str, name: str) -> None: ...


class Reads(Protocol):
    """The part of a log that the registry needs."""

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...


@dataclass(slots=True)
class Progress:
    """How far a task has come; written in the same transaction as its outputs.

    Attributes:
        step: number of its last step, counted from 1; ``steps_offset``: the next offset of the steps topic.
        slice: last slice of the log that it consumed; ``offsets``: topic -> next offset.
        version, position, pending, counters, hash, size: of its model, as `headrace models list` shows them.
        bytes_since: bytes of rows consumed since the newest checkpoint.
        needed: what that checkpoint still needs: topic -> offset of the first row after it.
        origin: where the model began: all zero, or where `headrace models reset` left it.
    """

    step: int = 0
    steps_offset: int = 0
    slice: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    version: int = 1
    position: str | None = None
    pending: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    hash: str | None = None
    size: int = 0
    bytes_since: int = 0
    needed: dict[str, int] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As stored, in every commit: `dataclasses.asdict`, which copies deeply, would take ten times as long."""
        return json.dumps({name: getattr(self, name) for name in type(self).__slots__})

    @classmethod
    def from_json(cls, text: str | bytes) -> Progress:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


def read_progress(log: Reads, task: str) -> Progress | None:
    """A task's progress, None when it has never run on this log."""
    value = log.records("position", task).get(task)
    return None if value is None else Progress.from_json(value)


def beginning(progress: Progress) -> tuple[Progress, dict[str, int]]:
    """Where a model's life began, and topic -> offset below which it had answered in an earlier life."""
    origin = dict(progress.origin)
    emitted = origin.pop("emitted", {})
    return Progress(**origin, origin=progress.origin), emitted


def reset(log: Reads, txn: Writes, name: str, *, relearn: bool, ts_us: int) -> int:
    """Forget what a model has learned; it begins a new version.

    Args:
        relearn: learn again from the log's beginning (rows already answered are not answered again);
            otherwise begin after the rows consumed so far.

    Returns:
        The new version.

    Raises:
        KeyError: the log has no such model.
    """
    model = read_model(log, name)
    if model is None:
        raise KeyError(name)
    old = read_progress(log, name) or Progress()
    version = int(model["version"]) + 1
    origin: dict[str, Any] = {"step": old.step, "steps_offset": old.steps_offset, "version": version}
    if relearn:
        origin["emitted"] = old.offsets
    else:
        origin |= {"slice": old.slice, "offsets": old.offsets}
    fresh, _ = beginning(Progress(origin=origin))
    write_progress(txn, name, fresh)
    for step in checkpoint_steps(log, name):
        txn.delete("checkpoint", f"{name}/{step:012d}")
    reason = "reset: learns again from the log" if relearn else "reset: begins after what was consumed"
    write_version(txn, name, version=version, fingerprint={}, reason=reason, ts_us=ts_us, app=model.get("app", ""))
    return version


def write_progress(txn: Writes, task: str, progress: Progress) -> None:
    txn.put("position", task, progress.to_json().encode())


def read_model(log: Reads, name: str) -> dict[str, Any] | None:
    """A model's declaration as the log knows it."""
    value = log.records("model", name).get(name)
    return None if value is None else dict(json.loads(value))


def write_version(
    txn: Writes,
    name: str,
    *,
    version: int,
    fingerprint: Mapping[str, Any],
    reason: str,
    ts_us: int,
    app: str = "",
) -> None:
    """Declare a model's current version."""
    about = {"model": name, "version": version, "reason": reason, "ts_us": ts_us}
    txn.put("version", f"{name}/{version:06d}", json.dumps({**about, "fingerprint": fingerprint}).encode())
    txn.put("model", name, json.dumps({"app": app, "version": version, "fingerprint": fingerprint}).encode())


def read_versions(log: Reads, name: str) -> list[dict[str, Any]]:
    """All versions of a model, oldest first."""
    return [json.loads(value) for value in log.records("version", f"{name}/").values()]


def newest_checkpoint(log: Reads, task: str, until_step: int) -> tuple[int, bytes] | None:
    """The newest checkpoint at or before a step, as (step, state)."""
    found = [(int(name.rpartition("/")[2]), value) for name, value in log.records("checkpoint", f"{task}/").items()]
    at = [one for one in found if one[0] <= until_step]
    return max(at) if at else None


def checkpoint_steps(log: Reads, task: str) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return [int(name.rpartition("/")[2]) for name in log.records("checkpoint", f"{task}/")]


def write_checkpoint(
    txn: Writes, task: str, step: int, state: Sequence[bytes | memoryview], older: list[int]
) -> list[int]:
    """Store a state, given in pieces, and thin the older ones: the newest two stay, and one in 10,000 steps.

    Returns:
        The steps that have a checkpoint now.
    """
    txn.put("checkpoint", f"{task}/{step:012d}", state)
    steps = [*older, step]
    keep = set(steps[-KEPT_CHECKPOINTS:]) | {one for one in steps if one % SPARSE_STEPS == 0}
    for one in steps:
        if one not in keep:
            txn.delete("checkpoint", f"{task}/{one:012d}")
    return sorted(keep)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two fingerprints, a line each.

    >>> differences({"features": ["a"], "cut": "32 rows"}, {"features": ["a", "b"], "cut": "32 rows"})
    ["features: ['a'] → ['a', 'b']"]
    """
    lines = []
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            lines += [f"{key}.{line}" for line in differences(was, now)]
        elif was != now:
            lines.append(f"{key}: {was} → {now}")
    return lines
