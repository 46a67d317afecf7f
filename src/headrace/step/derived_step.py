"""What is derived in a step: of a task without a model, of a model's task when time passes, and what may stop there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from headrace.batch import Batch
from headrace.plan.operators import Grade
from headrace.plan.task import ModelTask, OperatorTask, StreamPlan
from headrace.step.events import Event, Rows, Tick, merge
from headrace.step.grade_join import ChallengerErrors
from headrace.step.idleness import idle
from headrace.step.operator_run import OperatorRun
from headrace.step.outputs import Output, batches_of, derived, made, refused
from headrace.step.retraining import retrain
from headrace.step.state import State
from headrace.step.training import Reader


def kept_and_stopped(task: ModelTask) -> dict[str, Any]:
    """Rows that are kept for a training, those that begin one, and whether a second model answers beside the first."""
    plan = task.retrain
    if plan is None:
        return {"shadows": False}
    keep = None if plan.rows.node is None else (plan.rows.node, plan.rows.operations)
    stop = None if plan.on is None else (plan.on, plan.operations)
    return {"keep": keep, "stop": stop, "shadows": plan.shadow}


def challenger(task: ModelTask, state: State) -> ChallengerErrors | None:
    """A model that answers beside the current one, where there is one."""
    if task.retrain is None or state.shadow is None:
        return None
    return ChallengerErrors(state.shadow.version, task.retrain.promote, list(state.shadow_errors))


def time_passed(
    task: ModelTask, state: State, event: Tick, reader: Reader | None
) -> tuple[list[Output], list[dict[str, Any]]]:
    """What time alone brings about: labels that will not come any more, windows that close, alarms."""
    if not event.idle_us or state.flow is None:
        return [], []
    letters: list[Output] = []

    def refuse(topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        letters.append(refused(topic, batch, reasons, stage, task.name))

    topics = [one.stream.topic for one in task.predict]
    derive, raised = idle(task.nodes, state.flow, event, topics, refuse, **kept_and_stopped(task))
    fresh = functools.partial(made, task, derive, ())
    lines = [] if raised is None else retrain(task, state, raised, derive.merged, reader, fresh)
    return letters + derived(task, derive), lines


def flow_step(task: OperatorTask, state: State, event: Event) -> list[Output]:
    """Rows derived from topics without a model."""
    assert state.flow is not None
    letters: list[Output] = []

    def refuse(topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        state.counters.rejected += batch.num_rows
        letters.append(refused(topic, batch, reasons, stage))

    if isinstance(event, Tick) and event.idle_us:
        derive, _ = idle(task.nodes, state.flow, event, [], refuse)
        return letters + derived(task, derive)
    if not isinstance(event, Rows):
        return []
    truths = {node.what.truth.topic for node in task.nodes if isinstance(node.what, Grade)}
    merged = merge(event, state.open_key).numbered(truths, state.memory.follow)

    def streams(stream: StreamPlan, stage: str) -> list[Batch]:
        return batches_of(merged, stream, lambda topic, batch, reason: refuse(topic, batch, [reason], stage))

    derive = OperatorRun(task.nodes, state.flow, merged, streams=streams, refuse=refuse)
    derive.advance(merged.rows)
    derive.finish()
    state.memory.settle()
    state.open_key = None if event.complete else merged.last_key
    state.watermark_us = max(state.watermark_us, int(merged.ts_us.max()))
    return letters + derived(task, derive)
