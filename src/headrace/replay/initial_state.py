"""A model before its first row: trained on what its declaration names, or given what was trained already."""

from __future__ import annotations

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
from headrace.step.state import State
from headrace.step.training import Chosen, as_batch, rows_now, train

_END = 2**62


def begin(plan: Plan, task: ModelTask, log: Log, state: State) -> None:
    """Bring a fresh state to where the declaration says it begins.

    Raises:
        HeadraceError: the rows cannot be read, or the learner cannot be trained on them.
    """
    initial = task.initial
    assert initial is not None and state.learner is not None
    if initial.state is not None or initial.version is not None:
        found = dict(initial.state) if initial.state is not None else _saved(log, state, *(initial.version or ("", "")))
        state.learner.restore(found)
        state.began_with = {"selection": _named(initial), "rows": state.lineage_rows}
        return
    rows = _rows(plan, task, log, state, initial)
    with pinned(state.learner):
        trained = train(task, state, Chosen(rows, {"selection": _named(initial), "rows": rows.num_rows}))
    if trained.learner is None:
        raise LearnError(
            f"«{task.name}» cannot begin with {_named(initial)}: {trained.about['reason']}",
            advice="Look at the columns: features and target must be there under their names (rename=…).",
        )
    state.learner = trained.learner
    state.words.update({column: list(words) for column, words in trained.words.items()})
    state.sizes.update(trained.sizes)
    state.known = {column: len(words) for column, words in trained.words.items()}
    state.lineage_rows = state.counters.learned = int(trained.about["rows"])
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


def _saved(log: Log, state: State, model: str, version: str) -> dict[str, Any]:
    """The state of a version in the log."""
    versions = VersionList.read(log, model)
    found = versions.find(version)
    if found.ended_us is not None:
        values = dict(load_state(kept_state(log, found, found.artifact)))
        state.lineage_rows = found.rows
        return values
    newest = newest_checkpoint(log, model, _END)
    if newest is None:
        raise HeadraceError(f"version {found.version} of «{model}» has no stored state yet")
    stored = dict(load_state(newest[1]))
    state.lineage_rows = found.rows
    return {name.removeprefix("learner."): one for name, one in stored.items() if name.startswith("learner.")}
