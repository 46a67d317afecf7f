"""A model before its first row: trained on what its declaration names, or given what was trained already."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headrace.batch import Batch
from headrace.errors import DeclarationError, HeadraceError, LearnError, SourceError
from headrace.learn.base import pinned
from headrace.learn.state import load_state
from headrace.log.base import Log
from headrace.plan.operators import Initial
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.registry.models import newest_checkpoint
from headrace.registry.versions import VersionList
from headrace.replay.lineage import kept_state
from headrace.replay.training_rows import LogReader
from headrace.step.retraining import Chosen, as_batch, rows_now, train
from headrace.step.state import State, stored_learner

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
    state.vocabulary.words.update({column: list(words) for column, words in trained.words.items()})
    state.vocabulary.sizes.update(trained.sizes)
    known = {column: len(words) for column, words in trained.words.items()}
    state.counters.learned = int(trained.about["rows"])
    state.current = replace(current, learner=trained.learner, rows=state.counters.learned, known=known)
    state.began_with = {name: one for name, one in trained.about.items() if name not in ("status", "reason")}
    if trained.words:
        state.began_with["words"] = {column: list(words) for column, words in trained.words.items()}


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
        table = topic.removeprefix(f"{source.prefix}.")
        if table != topic and source.matches(table):
            return rows_now([_table(source.dsn, table)], initial.stream)
    return rows_now(reader.rows(initial.stream, _END, {}), initial.stream)


def _table(dsn: str, table: str) -> Batch:
    """A table's rows as they are in its database now, by the columns' own types."""
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
        return dict(load_state(kept_state(log, found, found.artifact))), found.rows
    newest = newest_checkpoint(log, model, _END)
    if newest is None:
        raise HeadraceError(f"version {found.version} of «{model}» has no stored state yet")
    return stored_learner(load_state(newest[1])), found.rows
