"""What happens to rows: the one composition of the stages, for every engine.

`step(task, state, event)` answers, cuts and learns, and returns what goes to topics. It does no I/O, knows no
clock and starts no thread; `state` is changed in place and can be saved and restored whole.

The rules (``docs/decisions/0003-order-and-cuts.md``): rows are taken in the order of their positions. A row is
answered by the model that has learned exactly the cuts that were complete before the row's own transaction, so
rows of one transaction never see each other, and the order of declarations means nothing. None of this depends on
how rows were grouped into events: the same rows and ticks give the same outputs and the same state.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from headrace.answers import Query
from headrace.batch import OPS, Batch, dead_letters
from headrace.errors import BadRows, HeadraceError, LearnError
from headrace.events import Event, Ints, Rows, Tick, merge, order_of
from headrace.labels import filled_in
from headrace.learn.features import Matrix, matrix
from headrace.plan import ModelTask, OutputPlan, PredictPlan, StreamPlan, StreamTask, Task
from headrace.position import Position
from headrace.state import State

PIECE_ROWS = 100_000

Output = tuple[str, Batch]


def step(task: Task, state: State, event: Event) -> list[Output]:
    """Apply one event; returns (topic, rows) in the order they are to be appended."""
    if isinstance(task, StreamTask):
        return _copy(task, event)
    if isinstance(event, Tick):
        _tick(task, state, event)
        return []
    return _ModelStep(task, state, event).run()


def answer(task: ModelTask, state: State, batch: Batch) -> Batch:
    """Rows that came from no topic, with the answers of the model that answers now; nothing is changed."""
    learner, position = state.answering
    query = Query(batch, np.arange(batch.num_rows), _features(batch, task), task)
    query.answer_until(batch.num_rows, learner, position, state.version)
    return query.output()


# -- operations, and rows they fail on ---------------------------------------------------------------------------


def _operate(
    batch: Batch, operations: Sequence[Any], features: Sequence[str] = ()
) -> tuple[list[Batch], list[tuple[Batch, str]]]:
    """Apply operations; when they fail, row by row, so that only the rows at fault are refused."""
    if not operations:
        return [batch], []
    try:
        result = batch
        for operation in operations:
            result = operation.apply(result, features=features)
        return [result], []
    except HeadraceError:
        raise
    except Exception as error:
        if batch.num_rows <= 1:
            return [], [(batch, f"{type(error).__name__}: {error}")]
    good: list[Batch] = []
    bad: list[tuple[Batch, str]] = []
    for row in range(batch.num_rows):
        done, refused = _operate(batch.slice(row, 1), operations, features)
        good += done
        bad += refused
    return good, bad


def _features(batch: Batch, task: ModelTask) -> Matrix:
    """The matrix of a batch; a feature function that fails is asked again row by row."""
    try:
        return matrix(batch, task.features, task.target)
    except Exception as error:
        if batch.num_rows == 1:
            return Matrix(np.zeros((1, 1)), np.zeros(1, np.bool_), {0: f"{type(error).__name__}: {error}"})
    rows = [_features(batch.slice(i, 1), task) for i in range(batch.num_rows)]
    width = max(one.X.shape[1] for one in rows)
    X = np.concatenate([one.X if one.valid[0] else np.zeros((1, width)) for one in rows])
    reasons = {i: one.reasons[0] for i, one in enumerate(rows) if one.reasons}
    return Matrix(X, np.array([bool(one.valid[0]) for one in rows]), reasons)


def _refused(topic: str, batch: Batch, reasons: Sequence[str], stage: str, model: str | None = None) -> Output:
    rows = Batch(batch.records.drop_columns(["__order"])) if "__order" in batch.schema.names else batch
    return f"{topic}.dlq", dead_letters(rows, reasons, stage=stage, model=model)


def _copy(task: StreamTask, event: Event) -> list[Output]:
    if isinstance(event, Tick):
        return []
    outputs: list[Output] = []
    for part in event.parts:
        good, bad = _operate(part.batch, task.stream.operations)
        outputs += [_refused(part.topic, batch, [reason], "transform") for batch, reason in bad]
        for batch in good:
            outputs += _emit(task.outputs, batch, ())
    return outputs


def _emit(plans: Sequence[OutputPlan], batch: Batch, features: Sequence[str]) -> list[Output]:
    outputs: list[Output] = []
    for plan in plans:
        good, bad = _operate(batch, plan.operations, features)
        outputs += [_refused(plan.topic, one, [reason], "transform") for one, reason in bad]
        outputs += [(plan.topic, one) for one in good if one.num_rows]
    return outputs


# -- learning ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Examples:
    """Accepted rows to learn, in order."""

    order: Ints
    X: npt.NDArray[np.float64]
    y: npt.NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.order)


def _absorb(state: State, X: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> None:
    """Add rows to the incomplete cut; of a long one, whole pieces are learned ahead of what answers."""
    at = 0
    while len(X) - at > (room := PIECE_ROWS - sum(len(one) for one, _ in state.pending)):
        _keep(state, X[at : at + room], None if y is None else y[at : at + room])
        at += room
        if state.at_cut is None:
            state.at_cut = copy.deepcopy(state.learner)
        _learn_pending(state)
    _keep(state, X[at:], None if y is None else y[at:])


def _keep(state: State, X: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> None:
    if len(X):
        state.pending.append((X, y))
        state.pending_rows += len(X)


def _learn_pending(state: State) -> None:
    """Give the kept rows to the learner, as one piece."""
    assert state.learner is not None
    if not state.pending:
        return
    X = np.concatenate([one for one, _ in state.pending])
    ys = [one for _, one in state.pending if one is not None]
    state.pending = []
    state.learner.learn(np.ascontiguousarray(X), np.concatenate(ys) if ys else None)
    state.counters.learned += len(X)


def _close_cut(state: State, *, seen: bool) -> None:
    """The incomplete cut is complete: learn what is left of it.

    Args:
        seen: whether its transaction is over; else the model before it goes on answering.
    """
    if not seen and state.shown is None:
        state.shown = state.at_cut or copy.deepcopy(state.learner)
        state.shown_position = state.position
    _learn_pending(state)
    state.at_cut = None
    state.position = state.pending_position or state.position
    state.pending_rows, state.pending_position = 0, None
    state.counters.cuts += 1
    if seen:
        state.shown = state.shown_position = None


def _tick(task: ModelTask, state: State, tick: Tick) -> None:
    state.watermark_us = max(state.watermark_us, tick.ts_us)
    if tick.explicit:
        if state.pending_rows == 0 and state.learner is not None and task.feature_names:
            state.learner.learn(np.empty((0, len(task.feature_names))))
        _close_cut(state, seen=True)
    elif task.cut.duration_us and state.pending_rows and state.watermark_us // task.cut.duration_us > state.window:
        _close_cut(state, seen=True)


# -- the model's step ---------------------------------------------------------------------------------------------


class _ModelStep:
    """One event of one model, taken apart: merge, extract, cut, then walk the cuts in order."""

    def __init__(self, task: ModelTask, state: State, event: Rows) -> None:
        self.task = task
        self.state = state
        self.complete = event.complete
        self.merged = merge(event, state.open_key)
        self.outputs: list[Output] = []

    def run(self) -> list[Output]:
        state, merged = self.state, self.merged
        examples = self._examples()
        queries = [query for plan in self.task.predict for query in self._queries(plan)]
        asked = [query for _, query in queries]
        windows = self._windows()
        if state.shown is not None:
            self._end_open_transaction(asked)
        learned = 0
        for end, place in self._cuts(examples, windows):
            self._learn(examples, learned, end)
            learned = end
            seen = place < merged.rows or self.complete
            if seen:
                self._answer(asked, place)
            self._close(seen=seen)
        self._learn(examples, learned, len(examples))
        self._answer(asked, merged.rows)
        self._finish(examples, windows)
        for plan, query in queries:
            self._emit(plan, query)
        return self.outputs

    def _end_open_transaction(self, asked: Sequence[Query]) -> None:
        """The transaction left open by the last event ends here, or at the end of these rows, or later still."""
        place = self.merged.after(0)
        if place < self.merged.rows or self.complete:
            self._answer(asked, place)
            self.state.shown = self.state.shown_position = None

    # Rows are added to a cut before earlier places are answered: pieces learned ahead keep the model that answers.
    def _learn(self, examples: _Examples, start: int, end: int) -> None:
        if end > start:
            y = None if examples.y is None else examples.y[start:end]
            with self._refusals():
                _absorb(self.state, examples.X[start:end], y)
            last = int(examples.order[end - 1])
            self.state.pending_position = Position(int(self.merged.lsn[last]), int(self.merged.index[last]))

    def _close(self, *, seen: bool) -> None:
        with self._refusals():
            _close_cut(self.state, seen=seen)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except BadRows as error:
            raise LearnError(
                f"the model «{self.task.name}» refuses rows of the cut that ends at or after "
                f"{self.state.pending_position}: {error}",
                advice="A learner must accept every finite row of its width.",
            ) from error

    def _answer(self, asked: Sequence[Query], place: int) -> None:
        learner, position = self.state.answering
        for query in asked:
            query.answer_until(place, learner, position, self.state.version)

    def _finish(self, examples: _Examples, windows: Ints | None) -> None:
        state, merged = self.state, self.merged
        state.open_key = None if self.complete else merged.last_key
        state.watermark_us = max(state.watermark_us, int(merged.ts_us.max()))
        if windows is not None and len(examples):
            state.window = int(windows[examples.order[-1]])

    def _windows(self) -> Ints | None:
        """For a duration: each place's window, by the running maximum of commit times."""
        if not self.task.cut.duration_us:
            return None
        running = np.maximum.accumulate(np.concatenate([[self.state.watermark_us], self.merged.ts_us]))[1:]
        return np.asarray(running // self.task.cut.duration_us, np.int64)

    def _cuts(self, examples: _Examples, windows: Ints | None) -> list[tuple[int, int]]:
        """Complete cuts, as (number of examples before its end, first place that may see it)."""
        cut, merged, waiting = self.task.cut, self.merged, self.state.pending_rows
        if cut.rows:
            ends = np.arange(cut.rows - waiting, len(examples) + 1, cut.rows)
            last = merged.transactions[examples.order[ends - 1]]
            places = np.searchsorted(merged.transactions, last, "right")
            return list(zip(ends.tolist(), places.tolist(), strict=True))
        clock = merged.transactions if windows is None else windows
        mine = clock[examples.order]
        keys = np.unique(mine)
        if waiting:
            keys = np.union1d(keys, [0 if windows is None else self.state.window])
        ends = np.searchsorted(mine, keys, "right")
        places = np.searchsorted(clock, keys, "right")
        closed = places < merged.rows
        if windows is None and self.complete:
            closed[:] = True
        return list(zip(ends[closed].tolist(), places[closed].tolist(), strict=True))

    def _examples(self) -> _Examples:
        orders, Xs, ys = [], [], []
        for stream in self.task.learn:
            for batch in self._stream(stream, "learn"):
                order, X, y = self._accept(stream.topic, batch)
                orders.append(order)
                Xs.append(X)
                ys.append(y)
        if not orders:
            return _Examples(np.empty(0, np.int64), np.empty((0, 0)), None)
        if len(orders) == 1:
            return _Examples(orders[0], Xs[0], ys[0])
        order = np.concatenate(orders)
        by = np.argsort(order, kind="stable")
        y = None if self.task.target is None else np.concatenate([one for one in ys if one is not None])[by]
        width = max(one.shape[1] for one in Xs)
        X = np.concatenate([one for one in Xs if one.shape[1] == width])
        return _Examples(order[by], np.ascontiguousarray(X[by]), y)

    def _accept(self, topic: str, batch: Batch) -> tuple[Ints, npt.NDArray[np.float64], npt.NDArray[Any] | None]:
        """The rows of a batch that can be learned; the others are counted or refused."""
        counters = self.state.counters
        fresh = (batch.op == OPS["c"]) | (batch.op == OPS["r"])
        target = self.task.target
        if target is not None and batch.num_rows and target in batch.schema.names:
            fresh |= filled_in(batch, target, self.state.unlabelled.setdefault(topic, set()))
        counters.ignored += int((~fresh).sum())
        if not fresh.all():
            batch = batch.filter(fresh)
        if target is not None and batch.num_rows and target in batch.schema.names:
            labelled = np.asarray(batch.column(target).is_valid())
            counters.unlabelled += int((~labelled).sum())
            batch = batch if labelled.all() else batch.filter(labelled)
        features = _features(batch, self.task)
        if not features.valid.all():
            rows = np.flatnonzero(~features.valid)
            self._refuse(topic, batch.take(rows), [features.reasons[i] for i in rows.tolist()], "learn")
            batch = batch.filter(features.valid)
        X = features.X if features.valid.all() else features.X[features.valid]
        if target is None:
            return order_of(batch), X, None
        y = np.asarray(batch.column(target).to_numpy(zero_copy_only=False))
        classes = getattr(self.state.learner, "classes", None)
        known = np.ones(len(y), bool) if classes is None else np.isin(y, classes)
        if not known.all():
            rows = np.flatnonzero(~known)
            reasons = [f"the target «{target}» is {y[i]}, none of the classes" for i in rows.tolist()]
            self._refuse(topic, batch.take(rows), reasons, "learn")
            batch, X, y = batch.filter(known), X[known], y[known]
        return order_of(batch), X, y

    def _queries(self, plan: PredictPlan) -> list[tuple[PredictPlan, Query]]:
        queries = []
        for batch in self._stream(plan.stream, "predict"):
            batch = batch.filter(self._asks(batch)) if not (batch.op == OPS["c"]).all() else batch
            offset = self.state.emitted.get(plan.stream.topic, 0)
            if offset:
                batch = batch.filter(self.merged.offset[order_of(batch)] >= offset)
            if batch.num_rows:
                features = _features(batch, self.task)
                queries.append((plan, Query(batch, order_of(batch), features, self.task, proba=plan.proba)))
        return queries

    def _asks(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Inserts and snapshot reads ask for an answer, and updates that change a feature or may have."""
        asks = (batch.op == OPS["c"]) | (batch.op == OPS["r"]) | (batch.op == OPS["u"])
        before, names = batch.before, self.task.feature_names
        if before is None or not names:
            return np.asarray(asks)
        had = {before.type.field(i).name for i in range(before.type.num_fields)}
        same = np.asarray(before.is_valid()) & (batch.op == OPS["u"])
        for name in names:
            if name not in had or name not in batch.schema.names:
                return np.asarray(asks)
            old, new = before.field(name), batch.column(name)
            equal = old.is_null().to_numpy(False) & new.is_null().to_numpy(False)
            equal |= pc.equal(old, new).fill_null(False).to_numpy(False)
            same &= equal
        return np.asarray(asks & ~same)

    def _stream(self, stream: StreamPlan, stage: str) -> list[Batch]:
        batches: list[Batch] = []
        for part in self.merged.parts:
            if part.topic == stream.topic:
                good, bad = _operate(part.batch, stream.operations)
                batches += good
                for batch, reason in bad:
                    self._refuse(part.topic, batch, [reason], stage)
        return batches

    def _refuse(self, topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        self.state.counters.rejected += batch.num_rows
        offset = self.state.emitted.get(topic, 0)
        if offset:
            keep = self.merged.offset[order_of(batch)] >= offset
            reasons = [reason for reason, one in zip(reasons, keep.tolist(), strict=True) if one]
            batch = batch.filter(keep)
        if batch.num_rows:
            self.outputs.append(_refused(topic, batch, reasons, stage, self.task.name))

    def _emit(self, plan: PredictPlan, query: Query) -> None:
        self.state.counters.predicted += query.batch.num_rows
        invalid = np.flatnonzero(~query.features.valid)
        if len(invalid):
            reasons = [query.features.reasons[i] for i in invalid.tolist()]
            self._refuse(plan.stream.topic, query.batch.take(invalid), reasons, "predict")
        self.outputs += _emit(plan.outputs, query.output(), self.task.feature_names)
