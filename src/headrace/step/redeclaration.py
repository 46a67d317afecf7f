"""A task that is declared differently from one step on: what it knows of what is the same stays, the rest begins anew.

It is a step like any other: recorded, repeated by a recovery and by a replay. What hung on a model may change freely.
What the model itself is changes only where somebody lets it go on from what it has learned
(`headrace.learn.base.adopt`): its open cut is learned as it was declared, and a new version begins.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from headrace.learn.base import adopt
from headrace.plan.attachments import attachments, kept_nodes, same_evaluations, same_training, same_training_rows
from headrace.plan.fingerprint import declaration_differences
from headrace.plan.task import ModelTask, StreamTask, Task
from headrace.step.events import Redeclared
from headrace.step.learning import Reader, close_cut, end_version
from headrace.step.model_version import VersionChange
from headrace.step.operator_state import carry_over
from headrace.step.outputs import Output, unlearned
from headrace.step.state import State, followed_topics, initial_state, named_uses


def redeclare(task: Task, state: State, event: Redeclared, reader: Reader | None) -> list[Output]:
    """Let a task go on as it is declared now; return dead letters of rows that its open cut could not learn."""
    if isinstance(task, StreamTask) or isinstance(event.before, StreamTask):
        return []
    before, outputs = event.before, list[Output]()
    old, new = attachments(before), attachments(task)
    if isinstance(task, ModelTask) and isinstance(before, ModelTask) and before.fingerprint() != task.fingerprint():
        outputs = _continue(before, task, state, event, reader)
    fresh = initial_state(task)
    if state.operators is not None and fresh.operators is not None:
        rows = same_training_rows(old, new)
        carry_over(state.operators, fresh.operators, kept_nodes(old, new), training_rows=rows)
    state.operators = fresh.operators
    names: dict[str, str] = {}
    for use in ("learn", "predict", "evaluate") if isinstance(task, ModelTask) else ():
        names |= _named_before(before, task, use)
    state.memory.retain(followed_topics(task), names)
    same = same_evaluations(old, new)
    state.scores = {name: state.scores[name] if name in same else scores for name, scores in fresh.scores.items()}
    if not same_training(old, new):
        state.challenger = state.training = None
        state.offsets.written = dict(event.written)
    return outputs


def _named_before(before: Task, task: Task, use: str) -> dict[str, str]:
    """Return who waits for rows of a stream now -> how it was named before, of streams that are the same."""
    old: dict[str, list[str]] = {}
    for plan, name in zip(getattr(before, use), named_uses(before, use), strict=True):
        old.setdefault(_text(plan), []).append(name)
    pairs = zip(getattr(task, use), named_uses(task, use), strict=True)
    return {name: old[_text(plan)].pop(0) for plan, name in pairs if old.get(_text(plan))}


def _text(plan: object) -> str:
    return str(getattr(plan, "stream", plan))  # of what is learned the stream itself is the plan


def _continue(
    before: ModelTask, task: ModelTask, state: State, event: Redeclared, reader: Reader | None
) -> list[Output]:
    """Let the model go on from what it has learned: its open cut ends, and with it the version."""
    outputs: list[Output] = []
    batch = state.open_batch
    if batch.rows or batch.learner is not None or state.visible is not None:
        known = {column: len(words) for column, words in state.vocabulary.words.items()}
        refused = close_cut(before, state, seen=True, known=known, reach=lambda: state.offsets.consumed)
        outputs = unlearned(before, state, reader, refused)
        state.offsets.learned = dict(state.offsets.consumed)
    current = state.current
    assert current is not None
    learner = copy.deepcopy(task.learner)
    adopt(learner, current.learner.state(), before.learner.parameters())
    to = replace(current, learner=learner, number=current.number + 1)
    lines = declaration_differences(before.fingerprint(), task.fingerprint())
    change = VersionChange(to, current.number, by=event.by, declared="; ".join(lines))
    end_version(state, change)
    state.current, state.visible, state.handover, state.change = to, None, None, None
    state.open_batch.window = 0
    if task.cut.duration_us:
        state.open_batch.window = state.watermark_us // task.cut.duration_us
    return outputs
