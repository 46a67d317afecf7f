"""A task's state from its newest checkpoint and the recorded steps after it, for any engine; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headrace.errors import LogCorrupt
from headrace.learn.state import load_state as load_values
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask, Task
from headrace.registry.models import Progress, beginning, newest_checkpoint
from headrace.replay.lineage import recorded_change
from headrace.replay.steps import StepRecord, load_rows, read_steps
from headrace.replay.training_rows import LogReader
from headrace.step.events import Event, Tick, Train
from headrace.step.outputs import Output
from headrace.step.state import State, initial_state, load_state
from headrace.step.step import step


def restore(log: Log, task: Task, progress: Progress) -> tuple[State, Progress]:
    """The newest checkpoint at or before where a task is, or where its life began."""
    found = newest_checkpoint(log, task.name, progress.step)
    if found is not None:
        return restore_from(task, found[1])
    start, emitted = beginning(progress)
    state = initial_state(task, start.version)
    state.offsets.predicted = emitted
    return state, start


def restore_from(task: Task, data: bytes) -> tuple[State, Progress]:
    """State and progress of one checkpoint."""
    values: dict[str, Any] = dict(load_values(data))
    progress = Progress.from_json(values.pop("progress"))
    return load_state(task, values), progress


def replay(
    log: Log, plan: Plan, task: Task, state: State, start: Progress, until_step: int
) -> Iterator[tuple[StepRecord, list[Output]]]:
    """Repeat recorded steps after a checkpoint, yielding each with the outputs it gives now; writes nothing.

    Raises:
        LogCorrupt: a recorded step, or the rows it consumed, are not in the log any more.
    """
    done = start.step
    reader = LogReader(log, task, state) if isinstance(task, ModelTask) else None
    for record in read_steps(log, plan.steps_topic, task.name, start.steps_offset):
        if record.step <= done:
            continue
        if record.step > until_step or done >= until_step:
            break
        if record.step != done + 1:
            raise LogCorrupt(f"step {done + 1} of «{task.name}» is missing in {plan.steps_topic}")
        yield record, step(task, state, recorded_event(log, task, record), reader)
        note_written(task, state, record.outputs)
        done = record.step
    if done < until_step:
        raise LogCorrupt(
            f"{plan.steps_topic} ends at step {done} of «{task.name}», its outputs at step {until_step}",
            advice="The log lost rows. Restore it, or learn again: headrace models reset.",
        )


def recorded_event(log: Log, task: Task, record: StepRecord) -> Event:
    """Return the event of a recorded step, with its rows from the log.

    Raises:
        LogCorrupt: the rows it consumed are not in the log any more.
    """
    if record.tick_us is not None:
        return Tick(record.tick_us, record.explicit, (record.event or {}).get("idle", {}))
    if record.event is not None and "train" in record.event:
        return Train(**record.event["train"])
    if record.event is not None and isinstance(task, ModelTask):
        return recorded_change(log, task, record.event)
    arrivals = bool(getattr(task, "nodes", ()))
    load = load_rows(log, task.topics, after=record.after_slice, until=record.slice, limit=2**62, arrivals=arrivals)
    if load is None or load.inputs != record.inputs:
        raise LogCorrupt(
            f"step {record.step} of «{task.name}» consumed {record.inputs}, the log holds "
            f"{load.inputs if load else 'nothing'} there",
            advice="Rows that a checkpoint needs were pruned or lost.",
        )
    return load.event


def note_written(task: Task, state: State, outputs: Mapping[str, Sequence[int]]) -> None:
    """Remember how far a model has written its topics, where a training may read them."""
    if isinstance(task, ModelTask) and task.retrain is not None and task.retrain.rows.kind in ("all", "query"):
        state.offsets.written.update({topic: end for topic, (_, end) in outputs.items()})
