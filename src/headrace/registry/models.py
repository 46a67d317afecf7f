"""Models as the log remembers them: declarations, versions, positions and checkpoints, as named records.

=================  =======================  ==========================================================
kind               name                     value
=================  =======================  ==========================================================
``model``          NAME                     app, fingerprint, current version, blueprint (JSON)
``version``        NAME/000001              a version (`headrace.registry.versions`)
``position``       NAME                     last step, last slice, offsets, counters, hash (JSON)
``checkpoint``     NAME/000000000012        the whole state after that step (`headrace.learn.state`)
``declaration``    NAME/000000000012        how the task was declared from that step on (`Declaration`)
``continue``       NAME                     who lets the model go on under another declaration (JSON)
=================  =======================  ==========================================================

A stream that is written without a model has a position only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired, TypedDict

from headrace.registry.versions import PIPELINE, Pieces, Reads, VersionList, VersionRecord, Writes, put_version

KEPT_CHECKPOINTS = 2
SPARSE_STEPS = 10_000


@dataclass(slots=True)
class Progress:
    """The progress of a task; written in the same transaction as its outputs.

    Attributes:
        step: number of its last step, counted from 1; ``steps_offset``: the next offset of the steps topic.
        slice: last slice of the log that it consumed; ``offsets``: topic -> next offset.
        version, position, pending, counters, hash, size: of its model, as `headrace models list` shows them.
        bytes_since: bytes of rows consumed since the newest checkpoint.
        needed: what that checkpoint still needs: topic -> offset of the first row after it.
        origin: where the model began: all zero, or where `headrace models reset` left it.
        rows, learned: of its model: rows that it has learned, and topic -> offset after the last of them.
        declared: of what is derived without a model: how.
        diverged: why its model gives no answers any more; empty while it does.
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
    rows: int | None = None
    learned: dict[str, int] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    diverged: str = ""

    @property
    def model_rows(self) -> int:
        """Rows that the model has learned, those of versions that it goes back to included."""
        return self.counters.get("learned", 0) if self.rows is None else self.rows

    def to_json(self) -> str:
        """Return the text that every commit stores: `dataclasses.asdict`, a deep copy, takes ten times as long."""
        return json.dumps({name: getattr(self, name) for name in type(self).__slots__})

    @classmethod
    def from_json(cls, text: str | bytes) -> Progress:
        """Return what `to_json` was made of."""
        return cls(**json.loads(text))


def read_progress(log: Reads, task: str) -> Progress | None:
    """Return a task's progress, None when it has never run on this log."""
    value = log.records("position", task).get(task)
    return None if value is None else Progress.from_json(value)


def beginning(progress: Progress) -> tuple[Progress, dict[str, int]]:
    """Return where a model's life began, and topic -> offset below which it had predicted in an earlier life."""
    origin = dict(progress.origin)
    emitted = origin.pop("emitted", {})
    return Progress(**origin, origin=progress.origin), emitted


def reset(
    log: Reads,
    txn: Writes,
    name: str,
    *,
    relearn: bool,
    ts_us: int,
    by: str = PIPELINE,
    state: Pieces | None = None,
) -> int:
    """Forget what a model has learned; it begins a new version.

    Args:
        relearn: learn again from the log's beginning (rows already answered are not answered again);
            otherwise begin after the rows consumed so far.
        by: who asks for it.
        state: of its learner as it is now, in pieces, so that one can go back to it; None where it is not known.

    Returns:
        The new version.

    Raises:
        KeyError: the log has no such model.
    """
    model = read_model(log, name)
    if model is None:
        raise KeyError(name)
    old = read_progress(log, name) or Progress()
    _end_current(VersionList.read(log, name), txn, old, state, ts_us)
    version = int(model["version"]) + 1
    origin: dict[str, Any] = {"step": old.step, "steps_offset": old.steps_offset, "version": version}
    if relearn:
        # One that was reset before, and has not come so far again, had answered more.
        _, answered = beginning(old)
        origin["emitted"] = {
            topic: max(old.offsets.get(topic, 0), answered.get(topic, 0)) for topic in old.offsets | answered
        }
    else:
        origin |= {"slice": old.slice, "offsets": old.offsets}
    fresh, _ = beginning(Progress(origin=origin))
    write_progress(txn, name, fresh)
    for step in checkpoint_steps(log, name):
        txn.delete("checkpoint", f"{name}/{step:012d}")
    for declaration in read_declarations(log, name):
        txn.delete("declaration", f"{name}/{declaration.step:012d}")
    reason = "reset: learns again from the log" if relearn else "reset: begins after what was consumed"
    record = VersionRecord(name, version, reason=reason, ts_us=ts_us, by=by)
    record.began = {"position": None, "rows": 0, "offsets": {} if relearn else dict(old.offsets), "artifact": None}
    write_version(txn, record, model.get("app", ""))
    return version


def _end_current(versions: VersionList, txn: Writes, progress: Progress, state: Pieces | None, ts_us: int) -> None:
    current = versions.current
    if current is not None:
        versions.end(
            txn,
            current.version,
            state,
            ended_us=ts_us,
            position=progress.position,
            learned=progress.learned,
            rows=progress.model_rows,
            hash=progress.hash,
            size=sum(map(len, state)) if state else 0,
        )


def write_progress(txn: Writes, task: str, progress: Progress) -> None:
    txn.put("position", task, progress.to_json().encode())


@dataclass(frozen=True, slots=True)
class Declaration:
    """How a task was declared from one step on.

    Attributes:
        step: the one that brought it about; where the task's life began, for its first.
        attached: what hung on it (`headrace.plan.attachments`).
        fingerprint, blueprint: of a model.
        ts_us, by, changes: when, who asked for it, and what had changed, in words.
    """

    step: int
    attached: dict[str, Any]
    fingerprint: dict[str, Any] = field(default_factory=dict)
    blueprint: dict[str, Any] | None = None
    ts_us: int = 0
    by: str = PIPELINE
    changes: list[str] = field(default_factory=list)


def put_declaration(txn: Writes, task: str, declaration: Declaration) -> None:
    txn.put("declaration", f"{task}/{declaration.step:012d}", json.dumps(asdict(declaration)).encode())


def read_declarations(log: Reads, task: str) -> list[Declaration]:
    """Return how a task was declared, oldest first; nothing in logs of earlier versions."""
    found = [Declaration(**json.loads(value)) for value in log.records("declaration", f"{task}/").values()]
    return sorted(found, key=lambda declaration: declaration.step)


class ModelRecord(TypedDict):
    """A model's declaration as a log keeps it.

    Attributes:
        app: whose model it is; "" in logs of early versions.
        version: the current one.
        fingerprint: empty where a reset has begun a version that nobody has declared yet.
        blueprint: what the model can be made of again; None, or not there in early versions, where nothing says it.
    """

    app: str
    version: int
    fingerprint: dict[str, Any]
    blueprint: NotRequired[dict[str, Any] | None]


def put_model(txn: Writes, name: str, about: Mapping[str, object]) -> None:
    txn.put("model", name, json.dumps(about).encode())


def read_model(log: Reads, name: str) -> ModelRecord | None:
    """Return a model's declaration as the log knows it."""
    value = log.records("model", name).get(name)
    found: ModelRecord | None = None if value is None else json.loads(value)
    return found


def write_version(txn: Writes, record: VersionRecord, app: str, blueprint: Mapping[str, Any] | None = None) -> None:
    """Declare a model's current version, one that goes on from no other.

    Args:
        blueprint: what the model can be made of again, where it can be.
    """
    record.cut, record.declared = str(record.fingerprint.get("cut", "")), record.version
    record.began = record.began or {"position": None, "rows": 0, "offsets": {}, "artifact": None}
    VersionList(record.model, []).begin(txn, record)
    about = {"app": app, "version": record.version, "fingerprint": record.fingerprint, "blueprint": blueprint}
    put_model(txn, record.model, about)


def declare(
    log: Reads,
    txn: Writes,
    name: str,
    fingerprint: Mapping[str, Any],
    ts_us: int,
    app: str,
    blueprint: Mapping[str, Any] | None,
    libraries: Mapping[str, str] | None = None,
) -> None:
    """Note how a model is declared, where the log does not know it: a first version, or one that a reset has begun."""
    known, current = read_model(log, name), VersionList.read(log, name).current
    if known is None or current is None:
        progress = read_progress(log, name)
        record = VersionRecord(name, progress.version if progress else 1, reason="declared", ts_us=ts_us)
        record.fingerprint, record.libraries = dict(fingerprint), dict(libraries or {})
        write_version(txn, record, app, blueprint)
        return
    if not known["fingerprint"]:
        current.fingerprint, current.declared, current.cut = dict(fingerprint), current.version, str(fingerprint["cut"])
        current.libraries = dict(libraries or {})
        put_version(txn, current)
    about = {"app": app, "version": current.version, "fingerprint": dict(fingerprint), "blueprint": blueprint}
    put_model(txn, name, about)


def move_on(log: Reads, txn: Writes, name: str, version: int) -> None:
    """Say in a model's declaration which version is the current one."""
    about = read_model(log, name)
    if about is not None:
        put_model(txn, name, {**about, "version": version})


def newest_checkpoint(log: Reads, task: str, until_step: int) -> tuple[int, bytes] | None:
    """Return the newest checkpoint at or before a step, as (step, state)."""
    found = [(int(name.rpartition("/")[2]), value) for name, value in log.records("checkpoint", f"{task}/").items()]
    at = [stored for stored in found if stored[0] <= until_step]
    return max(at) if at else None


def checkpoint_steps(log: Reads, task: str) -> list[int]:
    """Return steps that have a checkpoint, oldest first."""
    return [int(name.rpartition("/")[2]) for name in log.records("checkpoint", f"{task}/")]


def write_checkpoint(
    txn: Writes, task: str, step: int, state: Pieces, older: list[int], *, keep: Collection[int] = ()
) -> list[int]:
    """Store a state, given in pieces, and thin the older ones: the newest two stay, and one in 10,000 steps.

    Args:
        keep: others that stay.

    Returns:
        The steps that have a checkpoint now.
    """
    txn.put("checkpoint", f"{task}/{step:012d}", state)
    steps = [*older, step]
    kept = set(steps[-KEPT_CHECKPOINTS:]) | {old for old in steps if old % SPARSE_STEPS == 0 or old in keep}
    for old in steps:
        if old not in kept:
            txn.delete("checkpoint", f"{task}/{old:012d}")
    return sorted(kept)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changed between two fingerprints, a line each.

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
