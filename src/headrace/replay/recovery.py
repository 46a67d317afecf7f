"""A task's state as the log says it: what it begins with, its newest checkpoint, and the recorded steps after it.

Any engine recovers so; nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from headrace.batch import Batch
from headrace.errors import DeclarationError, HeadraceError, LearnError, LogCorrupt, SourceError
from headrace.learn.base import pinned
from headrace.learn.state import load_state as load_values
from headrace.log.base import Log
from headrace.plan.attachments import AsDeclared
from headrace.plan.operators import Initial
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask, Task
from headrace.registry.models import Progress, beginning, newest_checkpoint
from headrace.registry.versions import VersionList
from headrace.replay.lineage import kept_state, recorded_change
from headrace.replay.steps import LogReader, StepRecord, load_rows, read_steps
from headrace.replay.task_history import TaskHistory, refuse_unknown
from headrace.step.ahead import Predictors
from headrace.step.events import Event, Redeclared, Tick, Train
from headrace.step.outputs import Output
from headrace.step.retraining import Chosen, as_batch, rows_now, train
from headrace.step.state import State, initial_state, load_state, stored_learner
from headrace.step.stepper import Stepper


def restore(log: Log, history: TaskHistory, progress: Progress) -> tuple[State, Progress]:
    """Return the newest stored state at or before where a task is, or that with which its life began."""
    found = newest_checkpoint(log, history.task.name, progress.step)
    if found is not None:
        return restore_from(history, found[1])
    return first_state(history, progress)


def first_state(history: TaskHistory, progress: Progress) -> tuple[State, Progress]:
    """Return the state with which a task's life began, as it was declared."""
    start, predicted = beginning(progress)
    state = initial_state(history.at(start.step).task, start.version)
    state.offsets.predicted = predicted
    return state, start


def restore_from(history: TaskHistory, data: bytes) -> tuple[State, Progress]:
    """Return the state and the progress of one checkpoint."""
    values: dict[str, Any] = dict(load_values(data))
    progress = Progress.from_json(values.pop("progress"))
    return load_state(history.at(progress.step).task, values), progress


def replay(
    log: Log, plan: Plan, history: TaskHistory, state: State, start: Progress, until_step: int, *, exact: bool = True
) -> Iterator[tuple[StepRecord, list[Output]]]:
    """Repeat recorded steps after a checkpoint, yielding each with the outputs it gives now; writes nothing.

    Each is repeated by the declaration of its time.

    Args:
        exact: refuse steps of a model that was trained anew then in a way that is not known any more; else trainings
            are left out, which is right where each that has changed the model is in a checkpoint.

    Raises:
        LogCorrupt: a recorded step, or the rows it consumed, are not in the log any more.
        DeclarationUnknown: how the task was declared then cannot be made again.
    """
    done, name = start.step, history.task.name
    stepper = stepper_of(log, history.at(done).task, state)
    for record in read_steps(log, plan.steps_topic, name, start.steps_offset):
        if record.step <= done:
            continue
        if record.step > until_step or done >= until_step:
            break
        if record.step != done + 1:
            raise LogCorrupt(f"step {done + 1} of «{name}» is missing in {plan.steps_topic}")
        declared = declared_at(history, record)
        if exact:
            refuse_unknown(declared, record.step)
        stepper.declare(declared.task)
        yield record, stepper.apply(recorded_event(log, history, record))
        stepper.wrote(record.outputs)
        done = record.step
    if done < until_step:
        raise LogCorrupt(
            f"{plan.steps_topic} ends at step {done} of «{name}», its outputs at step {until_step}",
            advice="The log lost rows. Restore it, or learn again: headrace models reset.",
        )


def stepper_of(log: Log, task: Task, state: State | None = None, predictors: Predictors | None = None) -> Stepper:
    """Return what takes a task's events; its trainings read this log."""

    def reader_of(task: Task, state: State) -> LogReader | None:
        return LogReader(log, task, state) if isinstance(task, ModelTask) else None

    return Stepper(task, state, readers=reader_of, predictors=predictors)


def declared_at(history: TaskHistory, record: StepRecord) -> AsDeclared:
    """Return the task by whose declaration a recorded step was taken."""
    if record.event is not None and "declared" in record.event and history.newest.step < record.step:
        history.read()  # somebody else has written it since
    return history.at(record.step)


def recorded_event(log: Log, history: TaskHistory, record: StepRecord) -> Event:
    """Return the event of a recorded step, with its rows from the log.

    Raises:
        LogCorrupt: the rows it consumed are not in the log any more.
    """
    task = history.at(record.step).task
    if record.event is not None and "declared" in record.event:
        return Redeclared(before=history.at(record.step - 1).task, **record.event["declared"])
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


# -- what a model begins with ----------------------------------------------------------------------------------------

_END = 2**62


def begin(plan: Plan, task: ModelTask, log: Log, state: State) -> None:
    """Bring a fresh state to where the declaration says it begins.

    Raises:
        HeadraceError: the rows cannot be read, or the learner cannot be trained on them.
    """
    initial = task.initial
    current = state.current
    assert initial is not None and current is not None
    if initial.state is not None or initial.version is not None:
        found, learned = dict(initial.state or {}), 0
        if initial.version is not None and initial.state is None:
            found, learned = _saved(log, *initial.version)
        current.learner.restore(found)
        state.current = replace(current, rows=learned)
        state.began_with = {"selection": _named(initial), "rows": learned}
        return
    rows = _rows(plan, task, log, state, initial)
    with pinned(current.learner):
        trained = train(task, state, Chosen(rows, {"selection": _named(initial), "rows": rows.num_rows}))
    if trained.learner is None:
        raise LearnError(
            f"«{task.name}» cannot begin with {_named(initial)}: {trained.about['reason']}",
            advice="Look at the columns: features and target must be there under their names (rename=…).",
        )
    about = trained.shown(state.vocabulary)
    state.counters.learned = trained.rows
    state.current = replace(current, learner=trained.learner, rows=trained.rows, known=trained.known)
    state.began_with = {name: value for name, value in about.items() if name not in ("status", "reason")}


def _named(initial: Initial) -> str:
    (kind, what), *rest = initial.text.items()
    if kind == "csv":
        return str(what["csv"])
    return f"{what} version {rest[0][1]}" if kind == "model" else str(what)


def _rows(plan: Plan, task: ModelTask, log: Log, state: State, initial: Initial) -> Batch:
    if initial.read is not None:
        return Batch.of(initial.read())
    reader = LogReader(log, task, state)
    if initial.stream is None:
        return as_batch(reader.query(initial.query, _END, {}))
    topic = initial.stream.topic
    for source in plan.sources:
        if source.captures(topic):
            return rows_now([_table(source.dsn, topic.removeprefix(f"{source.prefix}."))], initial.stream)
    return rows_now(reader.rows(initial.stream, _END, {}), initial.stream)


def _table(dsn: str, table: str) -> Batch:
    """Return a table's rows as they are in its database now, by the columns' own types."""
    from headrace.capture.postgres.snapshot import read_table

    schema, _, name = table.partition(".")
    try:
        rows = read_table(dsn, schema, name)
    except SourceError as error:
        raise DeclarationError(f"the table {table} cannot be read: {error.message}", advice=error.advice) from error
    return as_batch(rows)


def _saved(log: Log, model: str, version: str) -> tuple[dict[str, Any], int]:
    """Return the state of a version in the log, and how many rows it had learned."""
    found = VersionList.read(log, model).find(version)
    if found.ended_us is not None:
        return dict(load_values(kept_state(log, found, found.artifact))), found.rows
    newest = newest_checkpoint(log, model, _END)
    if newest is None:
        raise HeadraceError(f"version {found.version} of «{model}» has no stored state yet")
    return stored_learner(load_values(newest[1])), found.rows
