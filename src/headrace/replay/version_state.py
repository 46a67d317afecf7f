"""States of versions as a log holds them, without the pipeline's file; and how two of them differ."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from headrace.errors import LogError
from headrace.learn.state import load_state as load_values
from headrace.learn.state import state_hash
from headrace.log.base import Log
from headrace.plan.fingerprint import core
from headrace.plan.task import ModelTask
from headrace.position import Position
from headrace.registry.models import Progress, differences, newest_checkpoint, read_progress
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.lineage import kept_state, metrics_in
from headrace.replay.rebuild import Place, Rebuilt
from headrace.step.model_version import ModelVersion, Vocabulary
from headrace.step.state import stored_learner, stored_version

LOOKED_AT = 10_000
_NOT_SHOWN = ("fingerprint", "declared", "tagged")
Rebuild = Callable[[Place], Rebuilt]


def state_of(log: Log, version: VersionRecord, rebuild: Rebuild) -> dict[str, Any]:
    """Return the learner's state of a version: of the current one as it is now.

    Args:
        rebuild: makes the current one again where its newest checkpoint is older.

    Raises:
        LogError: the state is not kept.
    """
    if version.ended_us is not None:
        return dict(load_values(kept_state(log, version)))
    stored = newest_state(log, version.model)
    return rebuild(Place(end=True)).state if stored is None else stored


def newest_state(log: Log, model: str) -> dict[str, Any] | None:
    """Return the learner's state of a model as it is now, None where the newest checkpoint is older."""
    progress = read_progress(log, model)
    found = None if progress is None else newest_checkpoint(log, model, progress.step)
    if progress is None or found is None:
        return None
    state = stored_learner(load_values(found[1]))
    # A model that is trained now and then is the same for many steps after its checkpoint.
    if found[0] != progress.step and state_hash(state) != progress.hash:
        return None
    return state


def version_of(log: Log, task: ModelTask, version: VersionRecord) -> ModelVersion:
    """Return a version of a model that can predict: as it ended; of the current one as the newest checkpoint has it.

    Args:
        task: how the model is declared; what hangs on it does not matter.

    Raises:
        LogError: the state is not kept.
    """
    checkpoint = newest_checkpoint(log, task.name, 2**62)
    if checkpoint is None:
        raise LogError(f"the log holds no state of «{task.name}» yet", advice="It has one when its pipeline has run.")
    newest = stored_version(task, load_values(checkpoint[1]))
    if version.ended_us is None:
        return newest
    learner = copy.deepcopy(task.learner)
    learner.restore(dict(load_values(kept_state(log, version))))
    position = Position.parse(version.position) if version.position else None
    words = newest.vocabulary.words | dict(version.training.get("words") or {})
    vocabulary = Vocabulary(words, newest.vocabulary.sizes)
    return ModelVersion(learner, version.version, position, version.rows, version.known, vocabulary)


def about(log: Log, versions: VersionList, version: VersionRecord) -> dict[str, Any]:
    """Return what is known of a version; of the current one as it is now."""
    found = {key: value for key, value in version.to_dict().items() if key not in _NOT_SHOWN}
    if version.ended_us is None:
        progress = read_progress(log, version.model) or Progress()
        found |= {"position": progress.position, "rows": progress.model_rows, "hash": progress.hash}
        found |= {"learned": progress.learned, "size": progress.size}
        found["metrics"] = metrics_in(newest_scores(log, version.model))
    return found | {"current": version is versions.current}


def newest_scores(log: Log, model: str, *, end: int | None = None) -> list[dict[str, Any]]:
    """Return the last line of each stream or fixed set in the model's metrics topic, by its name.

    Args:
        end: offset after the last line that is looked at; None: all that there are.
    """
    info = log.topics().get(f"{model}-metrics")
    if info is None:
        return []
    end = info.end if end is None else min(end, info.end)
    found: dict[str, dict[str, Any]] = {}
    for entry in log.read_topic(info.name, offset=max(info.first, end - LOOKED_AT), limit=LOOKED_AT):
        if entry.offset >= end:
            break
        records = entry.records.slice(0, end - entry.offset)
        records = records.select([name for name in records.schema.names if not name.startswith("__")])
        for line in records.to_pylist():
            found[line["stream"]] = line
    return [found[name] for name in sorted(found)]


def diff(log: Log, versions: VersionList, a: VersionRecord, b: VersionRecord, rebuild: Rebuild) -> dict[str, Any]:
    """Return how two versions differ: metrics, positions, parameters, and how far each array of the state has moved."""
    states = state_of(log, a, rebuild), state_of(log, b, rebuild)
    described = described_diff(versions, a, b, about(log, versions, a), about(log, versions, b))
    return {**described, "state": state_diff(*states)}


def described_diff(
    versions: VersionList, a: VersionRecord, b: VersionRecord, left: Mapping[str, Any], right: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how two versions differ, but for their states, which need not be kept.

    Args:
        left, right: what is known of them, see `about`.
    """
    return {
        "model": a.model,
        "a": a.version,
        "b": b.version,
        "metrics": _changes(left["metrics"], right["metrics"]),
        "positions": {
            name: {"a": left[name], "b": right[name]} for name in ("position", "rows", "learned", "hash", "size")
        },
        "parameters": differences(core(versions.fingerprint(a)), core(versions.fingerprint(b))),
    }


def state_diff(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each array of two learners' states: its shapes, whether it changed, and by how much."""
    return [_moved(name, a.get(name), b.get(name)) for name in sorted({*a, *b})]


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers of both, by the stream they were scored on."""
    found: dict[str, Any] = {}
    for stream in sorted({*a, *b}):
        names = sorted({*a.get(stream, {}), *b.get(stream, {})})
        both = {name: (a.get(stream, {}).get(name), b.get(stream, {}).get(name)) for name in names}
        found[stream] = {name: _change(*pair) for name, pair in both.items()}
    return found


def _change(a: Any, b: Any) -> dict[str, Any]:
    numbers = all(isinstance(number, int | float) for number in (a, b))
    return {"a": a, "b": b, "change": b - a if numbers else None}


def _moved(name: str, a: Any, b: Any) -> dict[str, Any]:
    """Return one value of a state: its shapes, whether it changed, and by how much."""
    arrays = [None if array is None else np.asarray(array) for array in (a, b)]
    shapes = [None if array is None else list(array.shape) for array in arrays]
    found: dict[str, Any] = {"name": name, "a": shapes[0], "b": shapes[1], "max_abs": None, "norm": None}
    left, right = arrays
    if left is None or right is None or left.shape != right.shape or left.dtype != right.dtype:
        return found | {"changed": left is not right}
    found["changed"] = left.tobytes() != right.tobytes()
    if left.dtype.kind in "fiub" and left.size:
        apart = right.astype(np.float64) - left.astype(np.float64)
        found |= {"max_abs": float(np.abs(apart).max()), "norm": float(np.linalg.norm(apart))}
    return found
