"""A model trained anew on chosen rows: when, on which rows, what comes of it, and whether it takes the old one's place.

Nothing here knows a clock or reads a log: rows that the state does not hold come from a `Reader`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import OPS, Batch
from headrace.errors import HeadraceError
from headrace.faults import fault
from headrace.learn.base import Learner, offers_fit
from headrace.learn.features import Matrix, matrix, resolved, targets_of
from headrace.learn.handover import concerns_the_whole, holds
from headrace.learn.state import dump_state, load_state
from headrace.plain_values import json_texts, united, values, whole
from headrace.plan.operators import RetrainPlan, Selection, StreamPlan
from headrace.plan.task import TRAINING_COLUMNS, ModelTask
from headrace.position import Position
from headrace.registry.versions import ranges_of
from headrace.step.events import Merged, Train
from headrace.step.labels import unsent
from headrace.step.learning import Fresh, Reader, end_version, see
from headrace.step.model_version import Challenger, ModelVersion, VersionChange, Vocabulary
from headrace.step.operators import Raised
from headrace.step.predictions import predict_rows
from headrace.step.row_identity import Identity
from headrace.step.scoring import batch_at
from headrace.step.state import OpenBatch, PendingTraining, State
from headrace.transform.expressions import operate

SMALLEST_HOLDOUT = 10
MOST_TRAININGS = 100
"""The number of times that rows on which a learner fails are looked for by training it without them."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The condition on which a training begins.

    Attributes:
        at_us: the event time of what sets it off; ``until``: the slice that holds it.
        reader: gives rows of the log; ``fresh``: those that the step has made since, by topic.
    """

    at_us: int
    until: int
    reader: Reader | None
    fresh: Callable[[], Fresh]


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of a training.

    Attributes:
        learner: trained; None where nothing came of it.
        words, sizes: what its features know.
        about: rows and where they are from, for the version's record; ``status`` and ``reason`` say what came of it.
    """

    learner: Learner | None
    words: Mapping[str, list[str]]
    sizes: Mapping[str, int]
    about: dict[str, Any]

    @property
    def known(self) -> dict[str, int]:
        """Words of each category."""
        return {column: len(found) for column, found in self.words.items()}

    @property
    def rows(self) -> int:
        """Rows that it has learned."""
        return int(self.about.get("learned", self.about["rows"]))

    def shown(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """Put what its features know into a vocabulary; return what it was trained on, for the version's record."""
        words = {column: list(found) for column, found in self.words.items()}
        vocabulary.words.update(words)
        vocabulary.sizes.update(self.sizes)
        return {**self.about, **({"words": {column: list(found) for column, found in words.items()}} if words else {})}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows to train on, with the plan they were chosen by, as a state holds them while a training runs."""

    rows: Batch
    about: dict[str, Any]


Line = dict[str, Any]
"""The outcome of a training: a row of the topic ``<model>-training``, with its ``place`` (LSN, index, time)."""


# -- when -------------------------------------------------------------------------------------------------------------


def retrain(
    task: ModelTask,
    state: State,
    raised: Raised,
    merged: Merged,
    reader: Reader | None,
    fresh: Callable[[], Fresh],
) -> list[Line]:
    """Train because of a row; rows after it are the new model's, or the old one's until the new one is ready.

    Or, where the row is the one with which enough is known of a challenger, decide.
    """
    place, row = raised
    position = Position(int(merged.lsn[place]), int(merged.index[place]))
    if row is None:
        return [_decide(task, state, position, int(merged.ts_us[place]))]
    cause = json_texts(row.rows.slice(0, 1))[0]
    moment = Moment(int(row.ts_us[0]), int(merged.slices[place]), reader, fresh)
    return _begin(task, state, position, moment, cause=cause)


def train_now(task: ModelTask, state: State, event: Train, reader: Reader | None) -> list[Line]:
    """Train because somebody asks; or promote the challenger."""
    operators = state.operators
    position = state.position or Position(0, 0)
    if operators is not None and operators.at != (0, 0):
        position = Position(*operators.at)
    if event.promote:
        line: Line = {"by": event.by or None, "cause": None, "place": (position.lsn, position.index, event.ts_us)}
        if state.challenger is None:
            return [_line(task, state, line, {"status": "failed", "reason": "no model is tried out"})]
        return [_promote(task, state, state.challenger, position, line)]
    kept = None if operators is None else operators.training_rows
    at_us = kept.newest_us if kept is not None and len(kept) else event.ts_us
    return _begin(task, state, position, Moment(at_us, event.until, reader, dict), by=event.by)


def _begin(
    task: ModelTask, state: State, position: Position, moment: Moment, *, by: str = "", cause: str = ""
) -> list[Line]:
    plan = task.retrain
    assert plan is not None
    line: Line = {"by": by or None, "cause": cause or None, "place": (position.lsn, position.index, moment.at_us)}
    if state.training is not None:
        return [_line(task, state, line, {"status": "skipped", "reason": "another training has not ended yet"})]
    try:
        chosen = choose(task, state, moment)
    except HeadraceError as error:
        return [_line(task, state, line, {"status": "failed", "reason": error.message})]
    if plan.swap == "when_ready":
        state.training = PendingTraining(chosen.rows, chosen.about, position, moment.at_us, by, cause)
        return [_line(task, state, line, {"status": "started", **chosen.about})]
    trained = train(task, state, chosen, plan=plan)
    fault("train.trained")
    ended = _take(task, state, trained, position, line)
    fault("train.swapped")
    return [ended]


def train_pending(task: ModelTask, state: State) -> Trained:
    """Do the training that a state waits for; outside the step, on a copy of what it needs."""
    assert state.training is not None
    return train(task, state, Chosen(state.training.rows, state.training.about), plan=task.retrain)


def end_training(task: ModelTask, state: State, event: VersionChange) -> list[Line]:
    """End a training that ran beside the pipeline: its model takes over here, or it is told why not."""
    pending, state.training = state.training, None
    if pending is None:
        return []
    position = pending.position if state.operators is None else Position(*state.operators.at)
    place = (position.lsn, position.index, pending.at_us)
    line: Line = {"by": pending.by or None, "cause": pending.cause or None, "place": place}
    about = dict(event.training)
    if event.refused:
        return [_line(task, state, line, {"status": "failed", "reason": event.refused, **about})]
    learner = None if event.to is None else event.to.learner
    trained = Trained(learner, about.pop("words", {}), about.pop("sizes", {}), about)
    return [_take(task, state, trained, position, line)]


# -- what takes the old model's place ----------------------------------------------------------------------------------


def _take(task: ModelTask, state: State, trained: Trained, position: Position, line: Line) -> Line:
    """Let a trained model take the old one's place, or predict beside it first."""
    about = dict(trained.about)
    previous = state.version
    if trained.learner is not None:
        assert task.retrain is not None
        state.trained_on = str(about["hash"])
        about = trained.shown(state.vocabulary)
        to = ModelVersion(trained.learner, previous + 1, position, trained.rows, trained.known, state.vocabulary)
        change = VersionChange(to, previous, by=line["by"] or "pipeline", training=about)
        about["version"] = to.number
        if task.retrain.shadow:
            state.challenger = Challenger(change)
            about["status"] = "shadow"
        else:
            _begin_version(state, change, to)
    return _line(task, state, line, {**about, "previous": previous})


def _decide(task: ModelTask, state: State, position: Position, at_us: int) -> Line:
    """Promote the challenger if it was no worse; else let it go."""
    challenger = state.challenger
    assert task.retrain is not None and challenger is not None
    line: Line = {"by": None, "cause": None, "place": (position.lsn, position.index, at_us)}
    old, new = (math.fsum(each) / len(each) for each in zip(*challenger.errors, strict=True))
    # What the model's predictions are graded by.
    metric = next((metric for node in task.nodes if (metric := node.operator.metric) is not None), None)
    better = new >= old if metric is not None and metric.greater_is_better else new <= old
    about: Line = {"metric": metric.name if metric else None, "old_score": old, "new_score": new}
    if better:
        return _promote(task, state, challenger, position, {**line, **about})
    reason = f"{new:.6g} over {len(challenger.errors)} rows, {old:.6g} of the current one"
    state.challenger = None
    told = {**challenger.change.training, **about, "status": "worse", "reason": reason}
    return _line(task, state, {**line, **about}, told)


def _promote(task: ModelTask, state: State, challenger: Challenger, position: Position, line: Line) -> Line:
    """Let the challenger take over."""
    state.challenger = None
    about: Line = {**challenger.change.training}
    about |= {name: line[name] for name in ("old_score", "new_score") if name in line}
    previous = state.version
    to = replace(challenger.version, number=previous + 1, position=position)
    _begin_version(state, replace(challenger.change, to=to, parent=previous), to)
    return _line(task, state, line, {**about, "status": "promoted", "version": to.number, "previous": previous})


def _begin_version(state: State, change: VersionChange, version: ModelVersion) -> None:
    """End the old version, and begin this one with its own learner; a model that is retrained has no open batch."""
    end_version(state, change)
    state.current, state.visible, state.open_batch = version, None, OpenBatch()
    state.counters.learned += version.rows


def _line(task: ModelTask, state: State, line: Line, about: Mapping[str, Any]) -> Line:
    """Return a row of the topic ``<model>-training``."""
    return {"model": task.name, "previous": state.version, **line, **about}


# -- on which rows --------------------------------------------------------------------------------------------------


def choose(task: ModelTask, state: State, moment: Moment) -> Chosen:
    """Return the rows that a training takes now."""
    assert task.retrain is not None
    selection = task.retrain.rows
    rows = _selected(selection, state, moment)
    about: dict[str, Any] = {"selection": str(selection), "rows": rows.num_rows}
    if pa.types.is_integer(rows.schema.field("grade").type) if "grade" in rows.schema.names else False:
        about["grades"] = ranges_of(values(rows.column("grade")))
    outputs = task.nodes[selection.node].outputs if selection.node is not None else ()
    if outputs:
        about["topic"] = outputs[0].topic
    return Chosen(rows, about)


def _selected(selection: Selection, state: State, moment: Moment) -> Batch:
    if selection.kind in ("last", "since"):
        assert state.operators is not None and state.operators.training_rows is not None
        since = moment.at_us - selection.span_us if selection.kind == "since" else None
        return as_batch(state.operators.training_rows.table(since_us=since))
    if moment.reader is None:
        raise HeadraceError("rows of a log are wanted, and there is none")
    if selection.stream is not None:
        changes = moment.reader.rows(selection.stream, moment.until, moment.fresh())
        return rows_now(changes, selection.stream)
    return as_batch(moment.reader.query(selection.query, moment.until, moment.fresh()))


def rows_now(changes: Sequence[Batch], stream: StreamPlan) -> Batch:
    """Return a table's rows as its changes leave it: each as its newest event shows it, whatever its key was."""
    if not changes:
        return as_batch(pa.table({}))
    rows = Identity(limit=2**62)
    given = np.concatenate([rows.follow(batch) for batch in changes])
    number = np.where(given < 0, ~given, given)
    plain = [pa.Table.from_batches([batch.records.select([*batch.column_names, "__op", "__ts"])]) for batch in changes]
    table = _sent(united(plain).combine_chunks(), changes, number)
    op = np.asarray(table.column("__op"))
    # Rows without a key are what their events say; nobody knows which of them an update or a delete is about.
    keep = (op != OPS["d"]) & (op != OPS["t"])
    emptied = np.flatnonzero(op == OPS["t"])
    if len(emptied):
        keep[: emptied[-1] + 1] = False
    newest = dict(zip(number.tolist(), range(len(number)), strict=True))
    last = number == 0
    last[np.fromiter(newest.values(), np.int64, len(newest))] = True
    keep &= last & ((number == 0) | rows.alive(number))
    good, _ = operate(as_batch(table.filter(pa.array(keep))), stream.operations)
    return good[0] if len(good) == 1 else as_batch(united([pa.Table.from_batches([g.records]) for g in good]))


def _sent(table: pa.Table, changes: Sequence[Batch], number: Ints) -> pa.Table:
    """Return the events with the values that were not sent (TOAST), which are those of their rows' events before."""
    order = np.argsort(number, kind="stable")
    first = np.append(True, number[order][1:] != number[order][:-1])[: len(order)]
    place = np.arange(len(order))
    begin = np.maximum.accumulate(np.where(first, place, 0))
    for name in dict.fromkeys(name for batch in changes if batch.unchanged is not None for name in batch.column_names):
        masks = [unsent(batch, name) if name in batch.schema.names else None for batch in changes]
        if all(mask is None for mask in masks):
            continue
        pairs = zip(changes, masks, strict=True)
        missing = np.concatenate([np.zeros(own.num_rows, np.bool_) if mask is None else mask for own, mask in pairs])
        newest = np.maximum.accumulate(np.where(missing[order], -1, place))
        at = np.empty(len(order), np.int64)
        at[order] = order[np.where(newest >= begin, newest, place)]
        table = table.set_column(table.column_names.index(name), name, table.column(name).take(pa.array(at)))
    return table


def as_batch(table: pa.Table) -> Batch:
    """Return rows without the columns of an event but their times."""
    times = table.column("__ts").cast(pa.int64()).to_numpy() if "__ts" in table.column_names else None
    names = [name for name in table.column_names if not name.startswith("__")]
    plain = table.select(names)
    columns = [whole(column) for column in plain.columns]
    rows = pa.RecordBatch.from_arrays(columns, schema=plain.schema.remove_metadata())
    return Batch.of(rows, ts_us=0 if times is None else np.asarray(times, np.int64))


# -- training ---------------------------------------------------------------------------------------------------------


def train(task: ModelTask, state: State, chosen: Chosen, *, plan: RetrainPlan | None = None) -> Trained:
    """Train a fresh learner on the rows; what speaks against it stands in ``about``.

    Nothing is raised, whatever a learner does with the rows: the old model stays then, and it is told.
    """
    words = {column: list(found) for column, found in state.vocabulary.words.items()}
    sizes = dict(state.vocabulary.sizes)
    about = dict(chosen.about)
    try:
        learner = _train(task, chosen.rows, words, sizes, about, plan, state)
    except Exception as error:  # a learner of one's own may raise whatever it likes
        text = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        return Trained(None, words, sizes, about | {"status": "failed", "reason": text})
    return Trained(learner, words, sizes, {"status": "trained", "reason": None, **about})


def _train(
    task: ModelTask,
    rows: Batch,
    words: dict[str, list[str]],
    sizes: dict[str, int],
    about: dict[str, Any],
    plan: RetrainPlan | None,
    state: State,
) -> Learner | None:
    target = str(task.target)
    if not rows.num_rows:
        raise HeadraceError("no rows to train on")
    if task.target is not None:
        if target not in rows.schema.names:
            raise HeadraceError(f"the rows to train on have no column «{target}»")
        rows = rows.filter(np.asarray(rows.column(target).is_valid()))
    see(task.features, Vocabulary(words, sizes), [(rows, np.arange(rows.num_rows))])
    found = matrix(rows, resolved(task.features, words, sizes, refuse=True), task.target, missing=task.missing)
    valid, reasons, y = found.valid, found.reasons, None
    if task.target is not None:
        labels = targets_of(rows, target, task.learner)
        valid, reasons, y = valid & labels.valid, labels.reasons | reasons, labels.y[valid & labels.valid]
    rows, X = rows.filter(valid), np.ascontiguousarray(found.X[valid])
    about |= {"rows": rows.num_rows, "refused": len(reasons), "hash": _hash_of(X, y)}
    if not rows.num_rows:
        reason = next(iter(reasons.values()), "") or "there are none"
        raise HeadraceError(f"no rows to train on: {reason}")
    if plan is not None and about["hash"] == state.trained_on:
        about |= {"status": "skipped", "reason": "the rows are those of the last training"}
        return None
    epochs = plan.epochs if plan else 1
    if plan is None or plan.gate is None:
        trained: Learner | None
        trained, bad = fitted_without_bad(task.learner, X, y, epochs)
        about |= {"rows": about["rows"] - bad, "refused": about["refused"] + bad}
    else:
        trained = _gated(task, plan, state, rows, X, y, about)
    if trained is not None:
        # What cannot be stored, or not be read again, is told here, not when it predicts already.
        copy.deepcopy(task.learner).restore(load_state(dump_state(trained.state())))
    return trained


def fitted(declared: Learner, X: npt.NDArray[Any], y: npt.NDArray[Any] | None, epochs: int = 1) -> Learner:
    """Return a copy of a declared learner, trained on rows and nothing else."""
    learner = copy.deepcopy(declared)
    if offers_fit(learner):
        learner.fit(X, y)
        return learner
    for _ in range(epochs):
        learner.learn(X, y)
    return learner


def fitted_without_bad(
    declared: Learner, X: npt.NDArray[Any], y: npt.NDArray[Any] | None, epochs: int
) -> tuple[Learner, int]:
    """Return a copy of a declared learner trained on the rows that it does not fail on, and how many it fails on.

    Halves are tried until one can be trained on; to it are added as many of the others as it can be trained on with
    them. So a row that fails by itself because it is alone (one class) is none that is bad.

    Raises:
        Exception: what the learner raises for all rows, where no few rows are at fault.
    """
    failure: list[Exception] = []
    left = MOST_TRAININGS

    def trained(rows: npt.NDArray[np.int64]) -> Learner | None:
        nonlocal left
        left -= 1
        try:
            learner = fitted(declared, np.ascontiguousarray(X[rows]), None if y is None else y[rows], epochs)
            if not holds(learner):
                raise HeadraceError("the trained model has diverged: its numbers are infinite or none")
            return learner
        except Exception as error:
            if concerns_the_whole(error) and not isinstance(error, HeadraceError):
                raise
            failure.append(error)
            return None

    everything = np.arange(len(X))
    found = trained(everything)
    if found is not None:
        return found, 0
    tried = deque(np.array_split(everything, 2))
    good: npt.NDArray[np.int64] = np.empty(0, np.int64)
    others: list[npt.NDArray[np.int64]] = []
    while tried and found is None and left > 0:
        rows = tried.popleft()
        found = trained(rows) if len(rows) else None
        if found is not None:
            good, others = rows, [*tried, *others]
        elif len(rows) > 1:
            tried.extend(np.array_split(rows, 2))
        else:
            others.append(rows)
    bad = 0
    while others and found is not None and left > 0:
        rows = others.pop()
        more = trained(np.sort(np.concatenate([good, rows])))
        if more is not None:
            found, good = more, np.concatenate([good, rows])
        elif len(rows) > 1:
            others += np.array_split(rows, 2)
        else:
            bad += 1
    if found is None or others:
        raise failure[0]
    return found, bad


def _gated(
    task: ModelTask,
    plan: RetrainPlan,
    state: State,
    rows: Batch,
    X: npt.NDArray[Any],
    y: npt.NDArray[Any] | None,
    about: dict[str, Any],
) -> Learner | None:
    """Train on all but the newest rows, and compare old and new there as if it had been live.

    Of the older rows only those are learned whose labels were known when the first of the newest was predicted.
    """
    assert plan.gate is not None and y is not None
    known_us = rows.ts_us
    asked_us = known_us - _delays(rows)
    order = np.argsort(asked_us, kind="stable")
    held = order[len(order) - int(len(order) * plan.holdout) :]
    about |= {"metric": plan.gate.name, "holdout": len(held)}
    if len(held) < SMALLEST_HOLDOUT:
        about |= {"status": "worse", "reason": f"{len(held)} rows decide too little: at least {SMALLEST_HOLDOUT}"}
        return None
    begins = int(asked_us[held].min())
    learns = np.setdiff1d(order[: len(order) - len(held)], np.flatnonzero(known_us > begins))
    if not len(learns):
        about |= {"status": "worse", "reason": "no label was known before the newest rows"}
        return None
    learns = np.sort(learns)
    candidate, bad = fitted_without_bad(task.learner, np.ascontiguousarray(X[learns]), y[learns], plan.epochs)
    by = state.active
    features = resolved(task.features, by.words, by.sizes, refuse=False)
    then = matrix(rows.take(held), features, task.target, missing=task.missing)
    old = _score(plan, by.learner, then, y[held]) if by.learner.ready else float("nan")
    new = _score(plan, candidate, Matrix(X[held], np.ones(len(held), np.bool_), {}), y[held])
    if np.isnan(new):
        raise HeadraceError("the trained model has no finite answer to each of the newest rows")
    about |= {
        "learned": len(learns) - bad,
        "refused": about["refused"] + bad,
        "old_score": _number(old),
        "new_score": _number(new),
    }
    better = new >= old if plan.gate.greater_is_better else new <= old
    if not better and not np.isnan(old):
        about |= {"status": "worse", "reason": f"{plan.gate.name} {new:.6g} on the newest rows, {old:.6g} before"}
        return None
    return candidate


def _score(plan: RetrainPlan, learner: Learner, found: Matrix, truth: npt.NDArray[Any]) -> float:
    assert plan.gate is not None
    answers, failed = predict_rows(learner.predict, np.ascontiguousarray(found.X[found.valid]))
    if answers is None or failed or not len(answers):
        return float("nan")
    return float(np.mean(np.asarray(plan.gate(answers, truth[found.valid]), np.float64)))


def _delays(rows: Batch) -> npt.NDArray[np.int64]:
    """Return how long after its row was predicted a label was known, in microseconds; 0 where nothing is said."""
    if "label_delay" not in rows.schema.names:
        return np.zeros(rows.num_rows, np.int64)
    seconds = pc.fill_null(rows.column("label_delay").cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return np.asarray(np.rint(np.maximum(seconds, 0.0) * 1e6), np.int64)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _hash_of(X: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> str:
    found = hashlib.blake2b(np.ascontiguousarray(X).tobytes(), digest_size=16)
    found.update(json.dumps([list(X.shape), None if y is None else y.tolist()], default=str).encode())
    return found.hexdigest()


# -- telling -----------------------------------------------------------------------------------------------------------


def training_rows(lines: Sequence[Mapping[str, Any]]) -> Batch:
    """Return lines as rows of the topic ``<model>-training``."""
    columns = {
        column.name: pa.array([line.get(column.name) for line in lines], column.type) for column in TRAINING_COLUMNS
    }
    return batch_at(columns, [line["place"] for line in lines])
