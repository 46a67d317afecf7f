"""A training within a model's step: the swap at the row that set it off, and what is told of it."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from headrace.errors import HeadraceError
from headrace.faults import fault
from headrace.grade.metrics import Metric
from headrace.learn.base import Learner
from headrace.plain_values import json_texts
from headrace.plan.task import ModelTask
from headrace.position import Position
from headrace.step.events import Merged, Swap, Train
from headrace.step.learning import end_version
from headrace.step.operators import Raised
from headrace.step.state import PendingTraining, State
from headrace.step.training import Chosen, Fresh, Moment, Reader, Trained, choose, train

Line = dict[str, Any]


def retrain(
    task: ModelTask,
    state: State,
    raised: Raised,
    merged: Merged,
    reader: Reader | None,
    fresh: Callable[[], Fresh],
) -> list[Line]:
    """Train because of a row; rows after it are the new model's, or the old one's until the new one is ready.

    Or, where the row is the one with which enough is known of a model that was tried out, decide.
    """
    place, row = raised
    position = Position(int(merged.lsn[place]), int(merged.index[place]))
    if row is None:
        return [_decided(task, state, position, int(merged.ts_us[place]))]
    cause = json_texts(row.rows.slice(0, 1))[0]
    moment = Moment(int(row.ts_us[0]), int(merged.slices[place]), reader, fresh)
    return _begin(task, state, position, moment, cause=cause)


def _decided(task: ModelTask, state: State, position: Position, at_us: int) -> Line:
    """The model that was tried out takes over if it was no worse."""
    assert task.retrain is not None and state.shadow is not None
    line: Line = {"by": None, "cause": None, "place": (position.lsn, position.index, at_us)}
    old, new = (math.fsum(each) / len(each) for each in zip(*state.shadow_errors, strict=True))
    metric = _metric(task)
    better = new >= old if metric is not None and metric.greater_is_better else new <= old
    about: Line = {"metric": metric.name if metric else None, "old_score": old, "new_score": new}
    if better:
        return promote(task, state, position, {**line, **about})
    training = dict(state.shadow.training)
    reason = f"{new:.6g} over {len(state.shadow_errors)} rows, {old:.6g} of the current one"
    state.shadow = state.shadowing = None
    state.shadow_errors = []
    return _told(task, state, {**line, **about}, {**training, **about, "status": "worse", "reason": reason})


def _metric(task: ModelTask) -> Metric | None:
    """What its answers are graded by."""
    return next((metric for node in task.nodes if (metric := node.operator.metric) is not None), None)


def promote(task: ModelTask, state: State, position: Position, line: Line) -> Line:
    """The model that was tried out takes over."""
    assert state.shadow is not None
    swap, learner = state.shadow, state.shadowing
    state.shadow = state.shadowing = None
    state.shadow_errors = []
    about: Line = {**swap.training}
    about |= {name: line[name] for name in ("old_score", "new_score") if name in line}
    begun = dataclasses.replace(swap, version=state.version + 1, parent=state.version, position=position)
    _begin_version(state, begun, learner)
    return _told(task, state, line, {**about, "status": "promoted", "version": state.version, "previous": begun.parent})


def ask_now(task: ModelTask, state: State, event: Train, reader: Reader | None) -> list[Line]:
    """Train because somebody asks; or let a model that is tried out take over."""
    flow = state.flow
    position = state.position or Position(0, 0)
    if flow is not None and flow.at != (0, 0):
        position = Position(*flow.at)
    if event.promote:
        line: Line = {"by": event.by or None, "cause": None, "place": (position.lsn, position.index, event.ts_us)}
        if state.shadow is None:
            return [_told(task, state, line, {"status": "failed", "reason": "no model is tried out"})]
        return [promote(task, state, position, line)]
    kept = None if flow is None else flow.training_rows
    at_us = kept.newest_us if kept is not None and len(kept) else event.ts_us
    return _begin(task, state, position, Moment(at_us, event.until, reader, dict), by=event.by)


def _begin(
    task: ModelTask, state: State, position: Position, moment: Moment, *, by: str = "", cause: str = ""
) -> list[Line]:
    plan = task.retrain
    assert plan is not None
    line: Line = {"by": by or None, "cause": cause or None, "place": (position.lsn, position.index, moment.at_us)}
    if state.training is not None:
        return [_told(task, state, line, {"status": "skipped", "reason": "another training has not ended yet"})]
    try:
        chosen = choose(task, state, moment)
    except HeadraceError as error:
        return [_told(task, state, line, {"status": "failed", "reason": error.message})]
    if plan.swap == "when_ready":
        state.training = PendingTraining(chosen.rows, chosen.about, position, moment.at_us, by, cause)
        return [_told(task, state, line, {"status": "started", **chosen.about})]
    trained = train(task, state, chosen, plan=plan)
    fault("train.trained")
    told = _taken(task, state, trained, position, line)
    fault("train.swapped")
    return [told]


def trained_beside(task: ModelTask, state: State) -> Trained:
    """Do the training that a state waits for. Called outside the step, on a copy of what it needs."""
    assert state.training is not None
    return train(task, state, Chosen(state.training.rows, state.training.about), plan=task.retrain)


def answer_training(task: ModelTask, state: State, event: Swap) -> list[Line]:
    """A training that ran beside the pipeline has ended: its model takes over here, or it is told why not."""
    asked, state.training = state.training, None
    if asked is None:
        return []
    at = state.flow.at if state.flow is not None else (asked.position.lsn, asked.position.index)
    line: Line = {"by": asked.by or None, "cause": asked.cause or None, "place": (*at, asked.at_us)}
    about = dict(event.training)
    if event.refused:
        return [_told(task, state, line, {"status": "failed", "reason": event.refused, **about})]
    learner = None
    if about.get("status") == "trained":
        learner = copy.deepcopy(task.learner)
        learner.restore(dict(event.state))
    trained = Trained(learner, about.pop("words", {}), about.pop("sizes", {}), about)
    return [_taken(task, state, trained, Position(*at), line)]


def _taken(task: ModelTask, state: State, trained: Trained, position: Position, line: Line) -> Line:
    """The trained model takes the old one's place."""
    about = dict(trained.about)
    previous = state.version
    if trained.learner is not None:
        assert task.retrain is not None
        state.trained_on = str(about["hash"])
        known = {column: len(found) for column, found in trained.words.items()}
        rows = int(about.get("learned", about["rows"]))
        state.words.update({column: list(found) for column, found in trained.words.items()})
        state.sizes.update(trained.sizes)
        if trained.words:
            about["words"] = {column: list(found) for column, found in trained.words.items()}
        swap = Swap(previous + 1, previous, {}, position, rows, known, by=line["by"] or "pipeline", training=about)
        about["version"] = swap.version
        if task.retrain.shadow:
            state.shadow = dataclasses.replace(swap, state=trained.learner.state())
            state.shadowing, state.shadow_errors = trained.learner, []
            about["status"] = "shadow"
        else:
            _begin_version(state, swap, trained.learner)
    return _told(task, state, line, {**about, "previous": previous})


def _begin_version(state: State, swap: Swap, learner: Learner | None) -> None:
    """The old version ends, and this one begins with its own learner."""
    assert learner is not None
    end_version(state, dataclasses.replace(swap, state={}))
    state.learner, state.at_cut, state.shown = learner, None, None
    state.diverged = ""
    state.version, state.position, state.lineage_rows = swap.version, swap.position, swap.rows
    state.known = dict(swap.known)
    state.counters.learned += swap.rows


def _told(task: ModelTask, state: State, line: Line, about: Mapping[str, Any]) -> Line:
    return {"model": task.name, "previous": state.version, **line, **about}
