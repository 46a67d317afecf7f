"""The step: what happens to rows, the one composition of the stages, for every engine.

`step(task, state, event)` predicts, cuts and learns, and returns what goes to topics. It does no I/O, knows no
clock and starts no thread; `state` is changed in place and can be saved and restored whole.

The rules (``docs/decisions/0003-order-and-cuts.md``): rows are taken in the order of their positions. A row is
predicted by the model that has learned exactly the cuts that were complete before the row's own transaction, so
rows of one transaction never see each other, and the order of declarations means nothing. None of this depends on
how rows were grouped into events: the same rows and ticks give the same outputs and the same state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, inserted
from headrace.learn.base import pinned, width_of
from headrace.learn.features import FUNCTION, Matrix, depend_on_the_log, matrix, resolved, targets_of
from headrace.plain_values import value, whole
from headrace.plan.task import (
    PREDICTION_COLUMNS,
    ModelTask,
    OperatorTask,
    PredictPlan,
    StreamPlan,
    StreamTask,
    Task,
)
from headrace.position import Position
from headrace.step import row_identity
from headrace.step.absent import AbsentPredictions, Performers, whole_schema
from headrace.step.ahead import Memo, Predictors, memos
from headrace.step.events import Event, Happening, Redeclared, Rows, Tick, Train, merge, order_of
from headrace.step.labels import NO_LABEL, Changes
from headrace.step.learning import (
    GRADED,
    Examples,
    Reader,
    absorb,
    apply_change,
    change_version,
    close_cut,
    joined,
    origins,
    origins_of_graded,
    see,
    tick,
)
from headrace.step.operator_run import OperatorRun, challenger, operator_step, time_passed
from headrace.step.operators import rows_at
from headrace.step.outputs import Output, batches_of, emission, emitted, refused, unlearned
from headrace.step.predictions import PredictionBatch, ServedPredictions
from headrace.step.redeclaration import redeclare
from headrace.step.retraining import end_training, retrain, train_now, training_rows
from headrace.step.row_identity import ROW
from headrace.step.scoring import Line, Scored, held_out, in_order, reused, scored
from headrace.step.state import Samples, State, followed_topics, named_uses
from headrace.transform.expressions import operate

_NONE = np.empty(0, np.int64)


def step(
    task: Task, state: State, event: Event, reader: Reader | None = None, predictors: Predictors | None = None
) -> list[Output]:
    """Apply one event; returns (topic, rows) in the order they are to be appended.

    Args:
        reader: gives rows of the log to a training that wants some.
        predictors: may predict rows beside it; what they give is what would be computed here.
    """
    state.ended = []
    state.refused_again = []
    if isinstance(event, Redeclared):
        return redeclare(task, state, event, reader)
    if isinstance(task, StreamTask):
        return _copy(task, event)
    if isinstance(task, OperatorTask):
        return operator_step(task, state, event)
    # Numbers that overflow are refused where they come out, row by row.
    with pinned(state.learner), np.errstate(all="ignore"):
        return _step(task, state, event, reader, predictors)


def _step(
    task: ModelTask, state: State, event: Happening, reader: Reader | None, predictors: Predictors | None
) -> list[Output]:
    if isinstance(event, Rows):
        return _ModelStep(task, state, event, reader, predictors).run()
    cuts = state.counters.cuts
    outputs: list[Output] = []
    lines: list[dict[str, Any]] = []
    if isinstance(event, Train):
        lines = train_now(task, state, event, reader)
    elif isinstance(event, Tick):
        letters = unlearned(task, state, reader, tick(task, state, event))
        outputs, lines = time_passed(task, state, event, reader)
        outputs = letters + outputs
    elif event.training or event.refused:
        lines = end_training(task, state, event)
    else:
        change_version(state, event)
    held = _held_out(task, state, 0, state.watermark_us) if state.counters.cuts > cuts else []
    outputs += [(task.metrics_topic, batch) for batch in in_order(held)]
    return outputs + ([(task.training_topic, training_rows(lines))] if lines else [])


def predict_batch(task: ModelTask, state: State, batch: Batch, *, proba: bool = False) -> PredictionBatch:
    """Predict rows that came from no topic with the active model; nothing is changed."""
    predictions = PredictionBatch(batch, np.arange(batch.num_rows), task, proba=proba)
    predictions.predict_until(batch.num_rows, state.active)
    return predictions


# -- rows that operations fail on --------------------------------------------------------------------------------


def _copy(task: StreamTask, event: Event) -> list[Output]:
    outputs: list[Output] = []
    for part in event.parts if isinstance(event, Rows) else ():
        good, bad = operate(part.batch, task.stream.operations)
        outputs += [refused(part.topic, batch, [reason], "transform") for batch, reason in bad]
        for batch in good:
            outputs += emitted(task.outputs, batch, ())
    return outputs


def _held_out(task: ModelTask, state: State, at: int, time_us: int) -> list[Line]:
    """Score what the last complete cut has made of the model on the fixed sets.

    Args:
        time_us: commit time of the cut's last row, or when it was ended without one.
    """
    position = state.position
    place = (position.lsn if position else 0, position.index if position else 0, max(time_us, 0))
    return [line for plan in task.evaluate if plan.rows is not None for line in held_out(task, state, plan, at, place)]


# -- the model's step ---------------------------------------------------------------------------------------------


class _ModelStep:
    """One event of one model, taken apart: merge, extract, cut, then walk the cuts in order."""

    def __init__(
        self,
        task: ModelTask,
        state: State,
        event: Rows,
        reader: Reader | None = None,
        predictors: Predictors | None = None,
    ) -> None:
        self.task = task
        self.state = state
        self.reader = reader
        self.predictors = predictors
        self.complete = event.complete
        self.merged = merge(event, state.open_key).numbered(followed_topics(task), state.memory.follow)
        # Place of the last row of the last complete cut; category -> places of the rows that showed its new words.
        self.closed: int | None = None
        self.births: dict[str, Ints] = {}
        self.outputs: list[Output] = []
        self.lines: list[Line] = []
        self.operators: OperatorRun | None = None
        self.trainings: list[dict[str, Any]] = []
        # Places of events of rows that nothing identifies.
        self._nameless: list[Ints] = []
        # The running maximum of commit times at each place.
        self._times = np.maximum.accumulate(np.concatenate([[state.watermark_us], self.merged.ts_us]))[1:]

    def run(self) -> list[Output]:
        state, merged = self.state, self.merged
        names = zip(self.task.predict, named_uses(self.task, "predict"), strict=True)
        predicted = [predictions for plan, name in names for predictions in self._prediction_batches(plan, name)]
        if self.task.nodes and state.operators is not None:
            self.operators = self._deriving(predicted)
        examples = self._examples()
        compared = [rows for number in range(len(self.task.evaluate)) for rows in self._scored(number, predicted)]
        own, more = [own for _, own in predicted], [more for rows in compared for more in rows.batches]
        batches = list(dict.fromkeys(own + more))
        windows = self._windows()
        if state.visible is not None:
            self._end_open_transaction(batches)
        learned = 0
        for end, place in self._cuts(examples, windows):
            self._learn(examples, learned, end)
            learned = end
            seen = place < merged.rows or self.complete
            if seen:
                self._predict(batches, place)
            self._close(examples, end, seen=seen)
        self._learn(examples, learned, len(examples))
        self._predict(batches, merged.rows)
        self._finish(examples, windows)
        for predict, predictions in predicted:
            self._emit(predict, predictions)
        if self.operators is not None:
            self.operators.finish()
            self.outputs += self.operators.outputs()
        for rows in compared:
            self.lines += scored(self.task, state, rows, merged, self._refuse, open_end=not self.complete)
        self._forget()
        self.outputs += [(self.task.metrics_topic, batch) for batch in in_order(self.lines)]
        return self.outputs + ([(self.task.training_topic, training_rows(self.trainings))] if self.trainings else [])

    def _deriving(self, predicted: Sequence[tuple[PredictPlan, PredictionBatch]]) -> OperatorRun:
        assert self.state.operators is not None
        by_number = {
            number: [predictions for own, predictions in predicted if own is plan]
            for number, plan in enumerate(self.task.predict)
        }
        return OperatorRun(
            self.task,
            self.state.operators,
            self.merged,
            streams=self._stream,
            refuse=self._refuse,
            queries=by_number,
            challenger=challenger(self.task, self.state),
        )

    def _end_open_transaction(self, batches: Sequence[PredictionBatch]) -> None:
        """End the transaction left open by the last event: here, at the end of these rows, or later still."""
        place = self.merged.after(0)
        if place < self.merged.rows or self.complete:
            self._predict(batches, place)
            self.state.visible = None
            if not self.state.open_batch.rows:
                apply_change(self.state)

    # Rows are added to a cut before earlier places are predicted: pieces learned ahead keep the model that predicts.
    def _learn(self, examples: Examples, start: int, end: int) -> None:
        if end > start:
            if blocks := absorb(self.state, examples.rows.slice(start, end)):
                self.outputs += unlearned(self.task, self.state, self.reader, blocks)
            last = int(examples.order[end - 1])
            self.state.open_batch.position = Position(int(self.merged.lsn[last]), int(self.merged.index[last]))
            self.state.open_batch.time_us = int(self._times[last])

    def _close(self, examples: Examples, end: int, *, seen: bool) -> None:
        """Close a cut whose last row is the one before ``end``; none of these rows where that is 0."""
        state = self.state
        last = int(examples.order[end - 1]) if end else -1
        known = {
            column: len(words) - int((self.births.get(column, _NONE) > last).sum())
            for column, words in state.vocabulary.words.items()
        }
        self.closed = last
        time_us = state.open_batch.time_us
        refused_rows = close_cut(self.task, state, seen=seen, known=known, reach=lambda: self._reach(last))
        self.outputs += unlearned(self.task, state, self.reader, refused_rows)
        if self.task.evaluate:
            self.lines += _held_out(self.task, state, max(last, 0), time_us)

    def _reach(self, last: int | None = None) -> dict[str, int]:
        """Return topic -> offset after the last row up to a place, of topics that are learned; without one of all."""
        reach = dict(self.state.offsets.consumed)
        learned = {stream.topic for stream in self.task.learn}
        for part in self.merged.parts:
            if part.topic in learned:
                rows = part.batch.num_rows
                taken = rows if last is None else int(np.searchsorted(order_of(part.batch), last, "right"))
                if taken:
                    reach[part.topic] = part.offset + taken
        return reach

    def _predict(self, batches: Sequence[PredictionBatch], place: int) -> None:
        state = self.state
        for batch in batches:
            batch.predict_until(place, state.active, state.tried)
        # What is derived is looked at where it may change who predicts next, else once for all rows.
        if self.operators is None or (self.task.retrain is None and place < self.merged.rows):
            return
        while (raised := self.operators.advance(place)) is not None:
            before = (state.current, state.challenger)
            self._note_challenger()
            fresh = functools.partial(self.operators.made, batches, raised[0])
            self.trainings += retrain(self.task, self.state, raised, self.merged, self.reader, fresh)
            self.operators.event.challenger = challenger(self.task, self.state)
            if state.current is not before[0] or state.challenger is not before[1]:
                for batch in batches:
                    batch.forget(raised[0] + 1)
                    batch.predict_until(place, state.active, state.tried)
        self._note_challenger()

    def _note_challenger(self) -> None:
        assert self.operators is not None
        compared = self.operators.event.challenger
        if compared is not None and self.state.challenger is not None:
            self.state.challenger.errors = compared.errors

    def _finish(self, examples: Examples, windows: Ints | None) -> None:
        state, merged = self.state, self.merged
        if self.closed is not None:
            everything = not state.open_batch.rows and self.closed == merged.rows - 1
            state.offsets.learned = self._reach(None if everything else self.closed)
        state.offsets.consumed = self._reach()
        state.open_key = None if self.complete else merged.last_key
        state.watermark_us = int(self._times[-1])
        if windows is not None and len(examples):
            state.open_batch.window = int(windows[examples.order[-1]])

    def _windows(self) -> Ints | None:
        """Return each place's window where cuts are durations."""
        if not self.task.cut.duration_us:
            return None
        return np.asarray(self._times // self.task.cut.duration_us, np.int64)

    def _cuts(self, examples: Examples, windows: Ints | None) -> list[tuple[int, int]]:
        """Complete cuts, as (number of examples before its end, first place that may see it)."""
        cut, merged, waiting = self.task.cut, self.merged, self.state.open_batch.rows
        if cut.rows:
            ends = np.arange(cut.rows - waiting, len(examples) + 1, cut.rows)
            last = merged.transactions[examples.order[ends - 1]]
            places = np.searchsorted(merged.transactions, last, "right")
            return list(zip(ends.tolist(), places.tolist(), strict=True))
        clock = merged.transactions if windows is None else windows
        mine = clock[examples.order]
        keys = np.unique(mine)
        if waiting:
            keys = np.union1d(keys, [0 if windows is None else self.state.open_batch.window])
        ends = np.searchsorted(mine, keys, "right")
        places = np.searchsorted(clock, keys, "right")
        closed = places < merged.rows
        if windows is None and self.complete:
            closed[:] = True
        return list(zip(ends[closed].tolist(), places[closed].tolist(), strict=True))

    def _examples(self) -> Examples:
        streams = enumerate(zip(self.task.learn, named_uses(self.task, "learn"), strict=True))
        fresh = [(i, batch) for i, named in streams for batch in self._fresh(*named) if batch.num_rows]
        if self.operators is not None:
            fresh += [(GRADED, batch) for batch in self._graded(self.operators)]
        if depend_on_the_log(self.task.features):
            self.births = see(self.task.features, self.state.vocabulary, [(rows, order_of(rows)) for _, rows in fresh])
        accepted = [self._accept(number, batch) for number, batch in fresh]
        self.state.counters.ignored += self._count_revised(accepted)
        return joined(accepted)

    def _graded(self, operators: OperatorRun) -> Iterator[Batch]:
        """Yield rows that were predicted, where their labels are known."""
        for number, operations in self.task.learn_nodes:
            for batch in operators.state.operators[number].examples():
                good, bad = operate(batch, operations)
                for refused_rows, reason in bad:
                    self._refuse("graded", refused_rows, [reason], "transform")
                yield from (item for item in good if item.num_rows)

    def _fresh(self, stream: StreamPlan, name: str) -> Iterator[Batch]:
        """Yield rows of a stream to be learned, each when it has the label that is wanted.

        Count those without one, and events that change or end rows that were learned before.
        """
        counters, task = self.state.counters, self.task
        for batch in self._stream(stream, "learn"):
            fresh = inserted(batch)
            if task.target is None or task.target not in batch.schema.names:
                if task.target is None:
                    counters.ignored += int(self._revised(batch, fresh).sum())
                    self._note_nameless(batch, fresh)
                batch = batch if fresh.all() else batch.filter(fresh)
                if task.target is None:
                    yield batch
                elif batch.num_rows:
                    reason = f"there is no column «{task.target}» to learn"
                    self._refuse(stream.topic, batch, [reason] * batch.num_rows, "learn")
                continue
            late = self.state.memory.waiting(name, partial=bool(stream.operations))
            columns = None if callable(task.features) else task.feature_names
            found = late.examples(batch, task.target, columns, nulls=task.missing == "pass", revisions=True)
            counters.unlabelled += int((fresh & ~np.asarray(batch.column(task.target).is_valid())).sum())
            self._note_nameless(batch, fresh)
            yield found

    def _revised(self, batch: Batch, fresh: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which events change or end rows that a model without a target learned when they came."""
        if ROW not in batch.schema.names:
            return np.zeros(batch.num_rows, np.bool_)
        row = np.asarray(batch.column(ROW))
        # Even numbers are of rows that came as an insert, or in a snapshot.
        return np.asarray(~fresh & (row > 0) & (row & 1 == 0))

    def _note_nameless(self, batch: Batch, fresh: npt.NDArray[np.bool_]) -> None:
        """Note events that change or end rows, and nobody knows which: any of those that were learned."""
        if fresh.all():
            return
        op = batch.op
        named = ROW in batch.schema.names and row_identity.identifying(batch)
        events = op == OPS["t"] if named else ~fresh
        if events.any():
            self._nameless.append(order_of(batch)[events])

    def _count_revised(self, accepted: Sequence[Examples]) -> int:
        """Return how many events change or end rows that were learned before."""
        late = self.state.memory.late
        found = sum(late[name].settle() for name in named_uses(self.task, "learn") if name in late)
        if self._nameless:
            places = [int(examples.order.min()) for examples in accepted if len(examples)]
            before = self.state.counters.learned or self.state.open_batch.rows
            first = -1 if before else min(places, default=self.merged.rows)
            found += int((np.concatenate(self._nameless) > first).sum())
        return found

    def _forget(self) -> None:
        """Let go rows that have ended, or are too many to be remembered: they wait for no label any more."""
        memory = self.state.memory
        memory.settle()
        for name, late in memory.late.items():
            use, _, topic = name.split(":", 2)
            rows = memory.rows.get(topic)
            if rows is None or rows.forgotten < 1:
                continue
            numbers, kept = late.too_old(rows.forgotten)
            if use == "learn" and len(numbers):
                self._refuse_too_old(topic, numbers, kept)

    def _refuse_too_old(self, topic: str, numbers: Ints, kept: pa.Table) -> None:
        """Refuse rows whose label did not come in time, at the places of those that came so much later."""
        ended = self.state.memory.rows[topic].was_ended(numbers)
        numbers, kept = numbers[~ended], kept.filter(pa.array(~ended))
        if not len(numbers):
            return
        came, places = [], []
        for part in self.merged.parts:
            if part.topic == topic:
                row = np.asarray(part.batch.column(ROW))
                new = (row < 0) | (inserted(part.batch) & (row > 0))
                came.append(np.where(row < 0, ~row, row)[new] >> 1)
                places.append(order_of(part.batch)[new])
        place = np.concatenate(places)[np.searchsorted(np.concatenate(came), numbers + row_identity.LIMIT)]
        columns = {name: whole(kept.column(name)) for name in kept.column_names}
        batch = rows_at(self.merged, columns, place, self.merged.ts_us[place])
        self._refuse(topic, batch, [NO_LABEL.format(limit=row_identity.LIMIT)] * len(numbers), "learn")

    def _accept(self, number: int, batch: Batch) -> Examples:
        """Return the rows of a batch that can be learned; refuse the others."""
        task, state = self.task, self.state
        topic = task.learn[number].topic if number >= 0 else "graded"
        features = resolved(task.features, state.vocabulary.words, state.vocabulary.sizes, refuse=True)
        width = state.vocabulary.sizes.get(FUNCTION) or width_of(state.learner)
        found = matrix(batch, features, task.target, missing=task.missing, width=width)
        if callable(features) and found.valid.any():
            state.vocabulary.sizes.setdefault(FUNCTION, found.X.shape[1])
        valid, reasons = found.valid.copy(), dict(found.reasons)
        y = None
        if task.target is not None:
            labels = targets_of(batch, task.target, task.learner)
            y, reasons = labels.y, {**labels.reasons, **reasons}
            valid &= labels.valid
        weight = self._weights(batch, valid, reasons)
        if not valid.all():
            bad = np.flatnonzero(~valid)
            self._refuse(topic, batch.take(bad), [reasons[i] for i in bad.tolist()], "learn")
            if number >= 0 and task.target is not None and ROW in batch.schema.names:
                row = np.asarray(batch.column(ROW))[bad]
                name = named_uses(task, "learn")[number]
                late = state.memory.waiting(name, partial=bool(task.learn[number].operations))
                late.refuse(np.where(row < 0, ~row, row))
        rows = Samples(found.X, y, weight, self._origins(number, batch))
        return Examples(order_of(batch), rows) if valid.all() else Examples(order_of(batch)[valid], rows.taken(valid))

    def _origins(self, number: int, batch: Batch) -> Ints:
        """Return where rows are found again should the learner fail on them, when their cut ends."""
        if number == GRADED:
            return origins_of_graded(batch)
        return origins(number, self.merged.offset[order_of(batch)], 4 if self.task.learn_nodes else 2)

    def _weights(self, batch: Batch, valid: npt.NDArray[np.bool_], reasons: dict[int, str]) -> npt.NDArray[Any] | None:
        name = self.task.sample_weight
        if name is None:
            return None
        found = matrix(batch, (name,))
        weight = found.X[:, 0]
        for row in np.flatnonzero(~found.valid | (weight < 0)).tolist():
            shown = value(batch.column(name)[row]) if name in batch.schema.names else "no column"
            reasons.setdefault(row, f"the weight «{name}» is {shown}")
            valid[row] = False
        return np.ascontiguousarray(weight)

    def _prediction_batches(self, plan: PredictPlan, name: str) -> list[tuple[PredictPlan, PredictionBatch]]:
        predicted: list[tuple[PredictPlan, PredictionBatch]] = []
        for batch in self._stream(plan.stream, "predict"):
            if whole_schema(batch.schema) is not None:
                predicted += self._absent(plan, batch)
                continue
            wanted, made = self._wanted(batch, name)
            offset = self.state.offsets.predicted.get(plan.stream.topic, 0)
            if offset:
                wanted &= self.merged.offset[order_of(batch)] >= offset
            if wanted.any():
                names = self.state.memory.names.setdefault(name, {})
                about: dict[str, Any] = {"proba": plan.proba, "stream": plan.stream, "names": names}
                predictions = self._prediction_batch(plan.stream.topic, batch, wanted, made, **about)
                predicted.append((plan, predictions))
        for batch in self._stream(plan.served, "predict") if plan.served is not None else ():
            missing = next((name for name in PREDICTION_COLUMNS if name not in batch.schema.names), None)
            if missing is None:
                predicted.append((plan, ServedPredictions(batch, order_of(batch), self.task, stream=plan.stream)))
            else:
                self._refuse(
                    plan.stream.topic, batch, [f"no answer: no column «{missing}»"] * batch.num_rows, "predict"
                )
        return predicted

    def _absent(self, plan: PredictPlan, batch: Batch) -> list[tuple[PredictPlan, PredictionBatch]]:
        """Return rows that lie elsewhere, to be predicted there."""
        assert isinstance(self.predictors, Performers)
        first = self.state.offsets.predicted.get(plan.stream.topic, 0)
        batch = batch.slice(int(np.searchsorted(self.merged.offset[order_of(batch)], first, "left")))
        if not batch.num_rows:
            return []
        number = next(i for i, predict in enumerate(self.task.predict) if predict is plan)
        rows = AbsentPredictions(
            batch, order_of(batch), self.task, by=self.predictors, stream=plan.stream, predict=number
        )
        return [(plan, rows)]

    def _scored(self, number: int, predicted: Sequence[tuple[PredictPlan, PredictionBatch]]) -> Iterator[Scored]:
        """Yield the predictions that are compared with the truth: those that are made anyway, where there are some."""
        plan, target = self.task.evaluate[number], self.task.target
        if plan.stream is None or target is None:
            return
        name, topic = named_uses(self.task, "evaluate")[number], plan.stream.topic
        reuses = None if self.state.offsets.predicted else reused(plan, self.task)
        mine = None if reuses is None else self.task.predict[reuses]
        given = [
            predictions
            for predict, predictions in predicted
            if predict is mine and not isinstance(predictions, ServedPredictions)
        ]
        for batch in self._stream(plan.stream, None):
            if target not in batch.schema.names:
                batch = batch.filter(inserted(batch))
                if batch.num_rows:
                    reason = f"there is no column «{target}» to compare answers with"
                    self._refuse(plan.stream.topic, batch, [reason] * batch.num_rows, "evaluate")
                continue
            if reuses is None:
                wanted, made = self._wanted(batch, name)
                predictions = self._prediction_batch(topic, batch, wanted, made) if wanted.any() else None
            else:
                places = order_of(batch)
                predictions = next(
                    (predictions for predictions in given if np.isin(predictions.order[:1], places).all()), None
                )
            # Where a row had no prediction before its label came, it is predicted then.
            late = (batch.op == OPS["u"]) & np.asarray(batch.column(target).is_valid())
            then = self._prediction_batch(topic, batch, late) if late.any() else None
            yield Scored(plan, name, batch, predictions, then)

    def _prediction_batch(
        self, topic: str, batch: Batch, wanted: Mask, made: Matrix | None = None, **options: Any
    ) -> PredictionBatch:
        """Return the rows that ask for a prediction, with their features where these are made."""
        options |= {"predictors": self.predictors, "memos": self._memos(topic)}
        if wanted.all():
            return PredictionBatch(batch, order_of(batch), self.task, made=made, **options)
        if made is not None:
            where = np.cumsum(wanted) - 1
            reasons = {int(where[row]): reason for row, reason in made.reasons.items() if wanted[row]}
            made = Matrix(np.ascontiguousarray(made.X[wanted]), made.valid[wanted], reasons)
        batch = batch.filter(wanted)
        return PredictionBatch(batch, order_of(batch), self.task, made=made, **options)

    def _memos(self, topic: str) -> list[Memo]:
        """Return what was predicted ahead of the rows of a topic."""
        parts = [part for part in self.merged.parts if part.topic == topic and part.foreseen]
        return [memo for part in parts for memo in memos(part.foreseen, order_of(part.batch))]

    def _wanted(self, batch: Batch, name: str) -> tuple[npt.NDArray[np.bool_], Matrix | None]:
        """Return which events ask for a prediction: inserts, snapshot reads, updates that may change a feature.

        Returns:
            Them, and the features of all rows where a function makes them: only what it gives tells a change.
        """
        task = self.task
        changes = self.state.memory.changes.setdefault(name, Changes())
        if not callable(task.features):
            columns = {column: batch.column(column) for column in task.feature_names if column in batch.schema.names}
            return changes.changed(batch, columns), None
        rows = inserted(batch) | (batch.op == OPS["u"])
        if not rows.all() or not batch.num_rows:
            # Deletes and truncates have no features.
            some = batch.filter(rows)
            wanted = np.zeros(batch.num_rows, np.bool_)
            if some.num_rows:
                wanted[rows] = self._wanted(some, name)[0]
            return wanted, None
        made = matrix(batch, task.features, task.target, missing=task.missing)
        flat = pa.array(made.X.reshape(-1))
        width = made.X.shape[1]
        lists = pa.FixedSizeListArray.from_arrays(flat, width) if width else pa.nulls(batch.num_rows)
        return changes.changed(batch, {"()": pc.if_else(pa.array(made.valid), lists, None)}), made

    def _stream(self, stream: StreamPlan, stage: str | None) -> list[Batch]:
        """Return a stream's batches; refuse rows that its operations fail on, unless another stage does that."""

        def refuse(topic: str, batch: Batch, reason: str) -> None:
            if stage is not None:
                self._refuse(topic, batch, [reason], stage)

        return batches_of(self.merged, stream, refuse)

    def _refuse(self, topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        self.state.counters.rejected += batch.num_rows
        offset = self.state.offsets.predicted.get(topic, 0)
        if offset:
            keep = self.merged.offset[order_of(batch)] >= offset
            if not keep.all():
                again = int((~keep).sum())
                self.state.refused_again.append((topic, again, reasons[int(np.flatnonzero(~keep)[0])]))
            reasons = [reason for reason, kept in zip(reasons, keep.tolist(), strict=True) if kept]
            batch = batch.filter(keep)
        if batch.num_rows:
            self.outputs.append(refused(topic, batch, reasons, stage, self.task.name))

    def _emit(self, plan: PredictPlan, predictions: PredictionBatch) -> None:
        if isinstance(predictions, AbsentPredictions):
            made = predictions.emission()
        else:
            made = emission(self.task, plan, predictions)
        self.state.counters.predicted += predictions.batch.num_rows
        self.state.counters.rejected += made.rejected
        self.outputs += [*made.letters, *made.outputs]
