"""Whether a model that is declared differently can go on from what it has learned, and what else can be done."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Mapping
from typing import Any

from headrace.errors import HeadraceError
from headrace.learn.base import adopt
from headrace.learn.state import load_state as load_values
from headrace.plan.blueprint import task_before
from headrace.plan.fingerprint import core, declaration_differences
from headrace.plan.task import ModelTask
from headrace.registry.models import newest_checkpoint, read_model, read_progress
from headrace.registry.versions import Reads
from headrace.step.state import stored_learner

# What the numbers that a model has learned are about: places of features, and the meaning of a prediction.
_MEANING = ("learner", "features", "target")


def why_not_continue(log: Reads, task: ModelTask) -> str:
    """Return why a model cannot go on from the state that a log holds, as it is declared now; empty where it can."""
    known = read_model(log, task.name)
    if known is None or not known["fingerprint"]:
        return "the log holds no state of it"
    before, after = core(known["fingerprint"]), task.fingerprint()
    for part in _MEANING:
        if before.get(part) != after.get(part):
            return _other_meaning(part, before, after)
    if task_before(task, before, known.get("blueprint")) is None:
        return "its log alone does not say how it was declared (classes of your own, functions, transformed streams)"
    progress = read_progress(log, task.name)
    stored = None if progress is None else newest_checkpoint(log, task.name, progress.step)
    if stored is None:
        return "" if progress is None or not progress.step else "the log holds no state of it"
    try:
        adopt(copy.deepcopy(task.learner), stored_learner(load_values(stored[1])), before["parameters"])
    except HeadraceError as error:
        return error.message
    except Exception as error:  # whatever a learner of somebody's own raises
        return f"its state does not fit: {type(error).__name__}: {error}"
    return ""


def refused_everything(log: Reads, name: str) -> bool:
    """Return whether a model has refused rows and learned none, as with a mistyped name: it may begin anew."""
    progress = read_progress(log, name)
    return progress is not None and not progress.model_rows and progress.counters.get("rejected", 0) > 0


def _other_meaning(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    then, now = before.get(part), after.get(part)
    if part == "features" and isinstance(then, list) and isinstance(now, list) and len(then) != len(now):
        return f"it has learned {len(then)} features, and {len(now)} are declared"
    what = {"learner": "another learner", "features": "other features", "target": "another target"}[part]
    return f"what it has learned is of {what} ({'; '.join(declaration_differences({part: then}, {part: now}))})"


def ways_on(log: str, name: str, reason: str) -> str:
    """Return what can be done with a model that is declared differently, with commands as they are to be typed.

    Args:
        reason: why it cannot go on from what it has learned; empty where it can.

    >>> print(ways_on("shop.headrace", "m", ""))
    One of these, and start again:
        headrace models continue m --log shop.headrace
            goes on from what it has learned, as a new version
        headrace models reset m --log shop.headrace
            learns again from the rows of the log, as a new version
        headrace models reset m --log shop.headrace --from latest
            forgets what it has learned, and begins with new rows
    Or give it a new name (both are kept then), or undo the change.
    """
    where = f"{shlex.quote(name)} --log {shlex.quote(log)}"
    # On a cluster nobody can tell whether a pipeline runs.
    stopped = " --stopped" if log.startswith("kafka:") else ""
    lines = [
        "One of these, and start again:",
        f"    headrace models continue {where}{stopped}",
        "        goes on from what it has learned, as a new version",
    ]
    if reason:
        lines = [f"It cannot go on from what it has learned: {reason}.", lines[0]]
    lines += [
        f"    headrace models reset {where}",
        "        learns again from the rows of the log, as a new version",
        f"    headrace models reset {where} --from latest",
        "        forgets what it has learned, and begins with new rows",
        "Or give it a new name (both are kept then), or undo the change.",
    ]
    return "\n".join(lines)
