"""Replay a log and compare: the model's hash at every step and checkpoint, and every output row.

Needs no database. A replay starts at the oldest checkpoint whose rows the log still holds, or at the beginning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.batch import OPS, Batch
from headrace.errors import DeclarationUnknown, HeadraceError
from headrace.learn.state import state_hash
from headrace.log.base import Log, rows_between
from headrace.plain_values import keys as keys_of
from headrace.plain_values import united, values
from headrace.plan.attachments import AsDeclared
from headrace.plan.fingerprint import declaration_differences
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask, StreamTask, Task
from headrace.registry.models import Progress, beginning, checkpoint_steps, differences, read_model, read_progress
from headrace.replay.environment import environment_fingerprint, foreign_environments
from headrace.replay.known_tasks import with_known_names
from headrace.replay.recovery import first_state, replay, restore, restore_from
from headrace.replay.steps import StepRecord, read_steps
from headrace.replay.task_history import TaskHistory
from headrace.step.outputs import Output
from headrace.step.state import State, initial_state

MOST_RECOUNTED = 1_000_000
EQUAL, DIFFERENT, NOT_COMPARABLE = "equal", "different", "not comparable"


@dataclass(slots=True)
class TaskReport:
    """The result of one task's replay."""

    task: str
    from_step: int = 0
    steps: int = 0
    hashes: int = 0
    checkpoints: int = 0
    rows: int = 0
    result: str = EQUAL
    differences: list[str] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)

    def left_out(self, topic: str, declared: AsDeclared) -> None:
        """Note a topic some of whose rows were not compared: what made them is not known any more."""
        self.not_compared.setdefault(topic, "; ".join(declared.unknown))

    def differs(self, what: str) -> None:
        self.result = DIFFERENT
        if len(self.differences) < 10:
            self.differences.append(what)


@dataclass(slots=True)
class Report:
    """The verdict: ``equal``, ``different`` or ``not comparable``."""

    app: str
    result: str
    tasks: list[TaskReport]
    reason: str = ""

    @property
    def exit_code(self) -> int:
        return {EQUAL: 0, DIFFERENT: 1, NOT_COMPARABLE: 3}[self.result]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(plan: Plan, log: Log, *, on_step: Callable[[str, int, int], None] | None = None) -> Report:
    """Replay every task of a plan that has run on the log.

    Args:
        on_step: called with (task, step, last step), for a progress bar.
    """
    foreign = foreign_environments(log, plan.app, environment_fingerprint())
    if foreign:
        changed = "; ".join(differences(foreign[0], environment_fingerprint()))
        return Report(plan.app, NOT_COMPARABLE, [], f"the log was written under another machine or library: {changed}")
    reports: list[TaskReport] = []
    plan = with_known_names(plan, log)
    for task in plan.tasks:
        reason = _not_comparable(task, log)
        if reason:
            return Report(plan.app, NOT_COMPARABLE, reports, reason)
        try:
            reports.append(_verify_task(plan, task, log, on_step))
        except DeclarationUnknown as error:
            return Report(plan.app, NOT_COMPARABLE, reports, error.message)
    different = any(report.result == DIFFERENT for report in reports)
    return Report(plan.app, DIFFERENT if different else EQUAL, reports)


def _not_comparable(task: Task, log: Log) -> str:
    if not isinstance(task, ModelTask):
        return ""
    known = read_model(log, task.name)
    if known is None:
        return f"the log has no model «{task.name}»"
    if not known["fingerprint"]:
        return ""
    changed = declaration_differences(known["fingerprint"], task.fingerprint())
    return f"«{task.name}» is declared differently: {'; '.join(changed)}" if changed else ""


def _verify_task(plan: Plan, task: Task, log: Log, on_step: Callable[[str, int, int], None] | None) -> TaskReport:
    report = TaskReport(task.name)
    progress = read_progress(log, task.name)
    if progress is None:
        return report
    history = TaskHistory(log, task)
    state, start = _oldest(plan, log, history, progress)
    report.from_step = start.step
    stored = set(checkpoint_steps(log, task.name))
    try:
        for record, outputs in replay(log, plan, history, state, start, progress.step):
            report.steps += 1
            _compare_hash(report, record, state)
            if record.step in stored:
                _compare_checkpoint(report, log, history, record.step, state)
            _compare_outputs(report, log, record, outputs, history.at(record.step))
            if on_step is not None:
                on_step(task.name, record.step, progress.step)
    except DeclarationUnknown:
        raise
    except HeadraceError as error:
        report.differs(error.message)
    if isinstance(task, ModelTask) and (wrong := _recount(log, task, progress)):
        report.differs(wrong)
    return report


def _oldest(plan: Plan, log: Log, history: TaskHistory, progress: Progress) -> tuple[State, Progress]:
    """Return the earliest state from which the log still holds every row: the beginning, else the oldest checkpoint."""
    topics, task, read = log.topics(), history.task, history.topics()

    def held(offsets: dict[str, int]) -> bool:
        return all(name not in topics or topics[name].first <= offsets.get(name, 0) for name in read)

    start, _ = beginning(progress)
    drawn = isinstance(task, ModelTask) and task.stores_beginning
    if held(start.offsets) and not drawn:
        return first_state(history, progress)
    if isinstance(task, StreamTask):
        return initial_state(task), _first_held(plan, log, task, progress)
    for value in log.records("checkpoint", f"{task.name}/").values():
        state, at = restore_from(history, value)
        if held(at.offsets):
            return state, at
    return restore(log, history, progress)


def _first_held(plan: Plan, log: Log, task: Task, progress: Progress) -> Progress:
    """Return the first step whose rows are there: a stream without a model has no state to begin with."""
    topics = log.topics()
    for record in read_steps(log, plan.steps_topic, task.name, 0):
        if all(name in topics and topics[name].first <= first for name, (first, _) in record.inputs.items()):
            return Progress(step=record.step - 1)
    return progress


def _compare_hash(report: TaskReport, record: StepRecord, state: State) -> None:
    if record.hash is None or state.learner is None:
        return
    report.hashes += 1
    now = state_hash(state.learner.state())
    if now != record.hash:
        report.differs(f"step {record.step}: the model's hash is {now}, recorded was {record.hash}")


def _compare_checkpoint(report: TaskReport, log: Log, history: TaskHistory, step: int, state: State) -> None:
    name = f"{history.task.name}/{step:012d}"
    data = log.records("checkpoint", name).get(name)
    if data is None:
        return  # a pipeline that runs has thinned its checkpoints meanwhile
    stored, _ = restore_from(history, data)
    report.checkpoints += 1
    if stored.learner is None or state.learner is None:
        return
    was, now = state_hash(stored.learner.state()), state_hash(state.learner.state())
    if was != now:
        report.differs(f"step {step}: the replayed model's hash is {now}, the checkpoint's {was}")


def _compare_outputs(
    report: TaskReport, log: Log, record: StepRecord, outputs: Sequence[Output], declared: AsDeclared
) -> None:
    outputs = [(topic, batch) for topic, batch in outputs if declared.compared(topic)]
    for topic, (first, end) in record.outputs.items():
        if not declared.compared(topic):
            report.left_out(topic, declared)
            continue
        held = log.topics().get(topic)
        if held is not None and held.first > first:
            continue
        stored = _rows(log, topic, first, end)
        mine = [pa.Table.from_batches([batch.records]) for name, batch in outputs if name == topic]
        now = united(mine) if mine else None
        report.rows += end - first
        if stored is None or now is None or not _same(stored, now):
            report.differs(f"step {record.step}: rows {first} to {end - 1} of {topic} are not what the replay gives")
    for topic in {name for name, _ in outputs} - record.outputs.keys():
        report.differs(f"step {record.step}: the replay writes {topic}, the log did not")


def _rows(log: Log, topic: str, first: int, end: int) -> pa.Table | None:
    tables = [pa.Table.from_batches([records]) for records in rows_between(log, topic, first, end)]
    return united(tables) if tables else None


def _same(a: pa.Table, b: pa.Table) -> bool:
    """Equal to the bit: NaN equals NaN here."""
    if a.num_rows != b.num_rows or a.column_names != b.column_names:
        return False
    return all(
        a.column(name).combine_chunks().equals(b.column(name).combine_chunks())
        or str(values(a.column(name))) == str(values(b.column(name)))
        for name in a.column_names
    )


# -- a second count ---------------------------------------------------------------------------------------------------
#
# A replay repeats what the code does, mistakes included. How often the rows of a table came to their first label is
# counted once more here, row by row and with nothing of what the step uses.


def _recount(log: Log, task: ModelTask, progress: Progress) -> str:
    """Return what is wrong with the number of rows learned, where topics alone tell it; else nothing."""
    plain = all(not stream.operations for stream in task.learn)
    learns_rows = bool(task.learn) and not task.learn_nodes and task.initial is None and task.retrain is None
    if not (plain and learns_rows and task.target) or progress.origin or progress.version != 1:
        return ""
    counted = 0
    for stream in task.learn:
        labels = _first_labels(log, stream.topic, task.target, progress.offsets.get(stream.topic, 0))
        if labels is None:
            return ""
        counted += labels
    refused = any(info.rows for info in map(log.topics().get, [f"{s.topic}.dlq" for s in task.learn]) if info)
    taken = progress.counters.get("learned", 0) + progress.pending
    if taken > counted:
        return f"{taken:,} rows were learned, in the topics {counted:,} rows have come to a label"
    if taken < counted and not refused:
        return f"{taken:,} rows were learned, in the topics {counted:,} rows have come to a label, and none was refused"
    return ""


def _first_labels(log: Log, topic: str, target: str, until: int) -> int | None:
    """Return how many rows of a table have come to a first label; None where that cannot be told."""
    info = log.topics().get(topic)
    if info is None or not until:
        return 0
    if info.first or until > MOST_RECOUNTED:
        return None
    rows: dict[Any, list[bool]] = {}
    # A row that takes the key of one which gives it up later in the same transaction.
    displaced: dict[Any, list[bool]] = {}
    found = at = 0
    while at < until:
        for entry in log.read_topic(topic, offset=at, limit=65_536):
            labels = _count_entry(Batch(entry.records).slice(at - entry.offset, until - at), target, rows, displaced)
            if labels is None:
                return None
            found, at = found + labels, entry.offset + entry.records.num_rows
            if at >= until:
                break
    return found


def _known_by(batch: Batch) -> tuple[list[Any], list[Any]] | None:
    """Return what each event's row is known by after it and before it; None where that cannot be told."""
    metadata = batch.schema.metadata or {}
    named = json.loads(metadata.get(b"headrace.identity", b"null")) or list(batch.key_columns)
    if not named or set(named) - set(batch.column_names):
        return None
    keys = list(zip(*(keys_of(batch.column(name)) for name in named), strict=True))
    before = batch.before
    if before is None:
        return keys, keys
    places = [before.type.get_field_index(name) for name in named]
    if min(places) < 0:
        return None
    olds = zip(*(keys_of(before.field(place)) for place in places), strict=True)
    told = np.asarray(before.is_valid()).tolist()
    return keys, [old if known else key for old, known, key in zip(olds, told, keys, strict=True)]


def _count_entry(
    batch: Batch, target: str, rows: dict[Any, list[bool]], displaced: dict[Any, list[bool]]
) -> int | None:
    known = _known_by(batch) if target in batch.column_names else None
    if known is None:
        return None
    labelled = np.asarray(batch.column(target).is_valid()).tolist()
    found = 0
    for op, key, old, has_label in zip(batch.op.tolist(), *known, labelled, strict=True):
        if op == OPS["t"]:
            rows.clear()
            displaced.clear()
        elif op == OPS["d"]:
            displaced.pop(key, None) or rows.pop(key, None)
        else:
            if op == OPS["u"]:
                row = displaced.pop(old, None) or rows.pop(old, None)
                if row is None:
                    return None  # a row that this log has never shown: whether it had a label is not known
            else:
                row = [False]
            if key in rows:
                displaced[key] = rows[key]
            rows[key] = row
            if has_label and not row[0]:
                row[0] = True
                found += 1
    return found
