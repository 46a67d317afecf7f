"""Predictions beside the truth: the join as an operator, and one comparison in one event.

Whom a prediction meets depends on keys and times alone, so it is known before anything is predicted; what comes of it
is made when the predictions are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import UPDATE, Batch
from headrace.errors import HeadraceError
from headrace.event_time import event_times
from headrace.grade.compare import CompareSpec, faults, graded_rows
from headrace.grade.interval_join.join import Arrivals, Join, Outcomes
from headrace.grade.interval_join.keys import converter, kind_of, matching_keys, reconverted
from headrace.grade.interval_join.pending import PendingRows, alike, ascends, of_one_kind, picked
from headrace.grade.operator_logic import START, Measure
from headrace.halves import reason_of, tried_by_halves
from headrace.plain_values import united, whole
from headrace.plan.operators import ARRIVAL, GRADED, Grade, Node
from headrace.step.events import order_of
from headrace.step.labels import Truths
from headrace.step.operators import Operator, OperatorEvent, plain, rows_at
from headrace.step.row_identity import ROW
from headrace.step.state_codec import below

# How many of the newest grades the mean error is of.
NEWEST = 50
NO_ROWS = np.empty(0, np.int64)
# Keys that stand for rows are below those that anybody has.
_ROWS = -(2**62)


class GradeJoin(Operator):
    """Predictions that await their labels: the join, and what tells which rows are labels and when they were.

    Attributes:
        truths: the newest label of each row of the truth (`headrace.step.labels`).
        seen: the newest event times of the two sides as rows brought them; ticks count from there.
        schema: of its grades so far.
        key_kinds: for each side and each column of the key, what kinds of values were there; None before the first row.
    """

    looks_at = NEWEST

    def __init__(self, number: int, nodes: Sequence[Node]) -> None:
        super().__init__(number, nodes)
        plan = self.node.operator
        assert isinstance(plan, Grade) and self.node.source is not None
        self.plan, self.source = plan, self.node.source
        self.join = Join(plan.within_us, lateness_us=plan.lateness_us, limit=plan.limit)
        self.truths = Truths()
        self.seen = [START, START]
        self.schema: pa.Schema | None = None
        self.key_kinds: list[list[list[str]]] | None = None
        self._comparison: Comparison | None = None

    def begin(self, event: OperatorEvent) -> None:
        self._comparison = Comparison(self, event)

    def push(self, event: OperatorEvent, place: int) -> list[Batch]:
        """Return the outcomes whose predictions are there."""
        assert self._comparison is not None
        return self._comparison.grades(event.done, place)

    def examples(self) -> list[Batch]:
        return [] if self._comparison is None else self._comparison.examples()

    def mark(self) -> pa.Schema | None:
        """Return the schema: all else is known before anything is pushed."""
        return self.schema

    def rewind(self, mark: pa.Schema | None) -> None:
        """Take the schema back."""
        self.schema = mark

    def counted(self, rows: list[Batch]) -> list[Batch]:
        """Return the grades that have a truth."""
        return [batch for batch in map(with_truth, rows) if batch.num_rows]

    def _times(self, idle_us: Mapping[str, int]) -> tuple[int, int]:
        """Return both sides' times after a silence; one that has never had a row goes by the other's."""
        newest = max(self.seen)
        if newest == START:
            return START, START
        left, right = (
            (time if time > START else newest) + idle_us.get(topic, 0)
            for time, topic in zip(self.seen, self.topics, strict=True)
        )
        return left, right

    def advance(self, idle_us: Mapping[str, int]) -> None:
        """Give up what has waited too long."""
        left, right = self._times(idle_us)
        if min(left, right) > START and self._comparison is not None:
            self._comparison.found = self.join.advance(left, right)

    def due(self, idle_us: Mapping[str, int]) -> bool:
        deadline = self.join.deadline_us
        return deadline is not None and min(self._times(idle_us)) - self.plan.lateness_us >= deadline

    def finish(self) -> None:
        """Keep what is pending, with its predictions, and let go of what is not."""
        if self._comparison is not None:
            self._comparison.finish()
            self._comparison = None

    def snapshot(self) -> tuple[dict[str, Any], dict[str, Any]]:
        number = self.number
        flat: dict[str, Any] = {f"{number}.{key}": value for key, value in self.join.snapshot().items()}
        flat |= {f"truths.{number}.{key}": value for key, value in self.truths.state().items()}
        if self.schema is not None:
            flat[f"schemas.{number}"] = np.frombuffer(self.schema.serialize(), np.uint8).copy()
        return flat, {"seen": self.seen, "key_kinds": self.key_kinds}

    def restore(self, flat: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        number = self.number
        self.join.restore(below(f"{number}.", flat))
        if truths := below(f"truths.{number}.", flat):
            self.truths.restore(truths)
        # States of versions that knew rows by their keys only.
        if (keys := flat.get(f"labels.{number}")) is not None:
            self.truths.hashes = set(keys.tolist())
        if (schema := flat.get(f"schemas.{number}")) is not None:
            self.schema = pa.ipc.read_schema(pa.py_buffer(np.ascontiguousarray(schema)))
        self.seen = list(about.get("seen") or (START, START))
        self.key_kinds = about.get("key_kinds")

    def measures(self) -> list[Measure]:
        predictions, labels = self.join.pending
        return [
            Measure("pending_labels", "Predictions that may still be graded", predictions),
            Measure("waiting_predictions", "Predictions that no label has come for yet", self.join.waiting),
            Measure("waiting_truths", "Labels that predictions to come may meet", labels),
            *(
                Measure("grades", "Grades by status", count, {"status": status})
                for status, count in self.join.counts.items()
            ),
        ]

    def measures_of(self, newest: pa.Table, end: int) -> list[Measure]:
        if "error" not in newest.schema.names:
            return []
        mean = pc.mean(newest.column("error").drop_null()).as_py()
        text = f"Mean error of the newest {NEWEST} grades"
        return [] if mean is None or not np.isfinite(mean) else [Measure("windowed_error", text, mean)]


def with_truth(grades: Batch) -> Batch:
    """Return the grades that have a truth."""
    takes = pc.is_in(grades.column("status"), value_set=pa.array(GRADED)).to_numpy(zero_copy_only=False)
    return grades if takes.all() else grades.filter(takes)


class Comparison:
    """One comparison in one event: who meets whom, and the rows that come of it.

    Args:
        known: what stays when the event is over, changed in place.
    """

    def __init__(self, known: GradeJoin, event: OperatorEvent) -> None:
        self.known, self.event, self.plan, self.join = known, event, known.plan, known.join
        self._made: tuple[tuple[list[int], list[pa.Array]], pa.Table] | None = None
        entering = event.operators[known.source].entering(event)
        self._predictions = entering.predictions
        # Labels may be columns of the very rows that are predicted.
        self._same_table = entering.predicted == self.plan.truth.topic
        predictions = event.after(known.node.operations, entering.batches, known.source)
        predictions, labelled = self._of_one_kind(predictions, self._labels(event.streams(self.plan.truth, "grade")))
        # Predictions of this event: their batches, the places of all of them, and the number of the first.
        self._left, self._left_order, arrivals = self._side(predictions, 0)
        self._left_first = self.join.left.next_seq
        right, _, labels = self._side(labelled, 1)
        for batch in right:
            self.join.right.rows.add(plain(batch))
        self.found = self.join.match(arrivals, labels, end=2 * event.merged.rows)

    def _labels(self, batches: list[Batch]) -> list[Batch]:
        """Return the rows that bring a label, or another one."""
        target = self.plan.compare.target
        found = []
        for batch in batches:
            if target not in batch.schema.names:
                if batch.num_rows:
                    reason = f"there is no column «{target}» to compare predictions with"
                    self.event.refuse(self.plan.truth.topic, batch, [reason] * batch.num_rows, "grade")
                continue
            brings, again = self.known.truths.brought(batch, target)
            self.event.count("ignored", int((~brings).sum()))
            batch = Batch(batch.records.append_column(UPDATE, pa.array(again)))
            found.append(batch if brings.all() else batch.filter(brings))
        return [batch for batch in found if batch.num_rows]

    def _of_one_kind(self, predictions: list[Batch], labels: list[Batch]) -> tuple[list[Batch], list[Batch]]:
        """Return the rows of both sides whose keys may match what the other side has shown; others are refused."""
        compare = self.plan.compare
        sides, on = (predictions, labels), (compare.on_left, compare.on_right)
        topics = self.known.topics
        if self.known.key_kinds is None:
            if not predictions and not labels:
                return sides
            self._meet_old_keys(sides, on)
            self.known.key_kinds = [[[] for _ in on[0]] for _ in on]
        known = self.known.key_kinds
        for j in range(len(on[0])):
            first = [_first_of_kinds(known[side][j], sides[side], on[side][j], side) for side in (0, 1)]
            sides = (
                self._matching(sides[0], 0, on[0][j], first[1], (topics[0], topics[1])),
                self._matching(sides[1], 1, on[1][j], first[0], (topics[1], topics[0])),
            )
            for side in (0, 1):
                known[side][j] += sorted(first[side].keys() - set(known[side][j]))
        return sides

    def _matching(
        self, batches: list[Batch], side: int, name: str, others: dict[str, int], topics: tuple[str, str]
    ) -> list[Batch]:
        """Return the rows before whose place the other side has shown their kind, or none."""
        if not others:
            return batches
        earliest, found = min(others.values()), []
        for batch in batches:
            kind = kind_of(batch.schema.field(name)) if name in batch.schema.names else None
            since = others.get(kind, 2**62) if kind is not None else earliest
            place = 2 * order_of(batch) + side
            wrong = (place > earliest) & (place <= since)
            if wrong.any():
                other = next(word for word, at in others.items() if at == earliest)
                reason = f"the key «{name}» is {kind} here, and {other} in {topics[1]}: no two would match"
                self.event.refuse(topics[0], batch.filter(wrong), [reason] * int(wrong.sum()), "grade")
            found.append(batch.filter(~wrong) if wrong.any() else batch)
        return [batch for batch in found if batch.num_rows]

    def _meet_old_keys(self, sides: tuple[list[Batch], list[Batch]], on: tuple[tuple[str, ...], ...]) -> None:
        """Change keys of a state from before numbers were told from their text to those that they are now."""
        join = self.join
        if not any(join.pending) and not join.left.next_seq:
            return
        fields = [
            [batch.schema.field(name) for name in names]
            for batches, names in zip(sides, on, strict=True)
            for batch in batches[:1]
            if set(names) <= set(batch.schema.names)
        ]
        converters = [
            next((found for field in column if (found := converter(field))), None)
            for column in zip(*fields, strict=True)
        ]
        if any(converters):
            join.rekey(lambda key: reconverted(key, converters))

    def _side(self, batches: list[Batch], side: int) -> tuple[list[Batch], Ints, Arrivals]:
        """Return rows of one side, their places, and keys and times; rows that lack one of them are refused."""
        compare = self.plan.compare
        on, time = (compare.on_left, compare.on_right)[side], self.plan.time[side]
        kept: list[Batch] = []
        keys: list[Any] = []
        times: list[Ints] = []
        for batch in batches:
            found, valid, reasons = self._times(batch, on, time)
            if not valid.all():
                bad = np.flatnonzero(~valid)
                texts = [reasons[row] for row in bad.tolist()]
                self.event.refuse(self.known.topics[side], batch.take(bad), texts, "grade")
                batch, found = batch.filter(valid), found[valid]
            if batch.num_rows:
                kept.append(batch)
                keys += _row_keys(batch, on) if self._same_rows(batch) else keys_of(batch, on)
                times.append(found)
        order = np.concatenate([order_of(batch) for batch in kept]) if kept else NO_ROWS
        when = np.concatenate(times) if times else NO_ROWS
        if not ascends(order):
            # Predictions of several topics: those that were asked for elsewhere come between the others.
            by = np.argsort(order)
            order, when, keys = order[by], when[by], [keys[row] for row in by.tolist()]
        seen = self.known.seen
        if len(when):
            seen[side] = max(seen[side], int(when.max()))
        update = truth = None
        if side:
            update = np.concatenate([np.asarray(batch.column(UPDATE)) for batch in kept]) if kept else None
            truth = _as_one([batch.column(compare.target) for batch in kept])
        # A row of one topic may be on both sides: as a prediction it comes first.
        return kept, order, Arrivals(keys, when, 2 * order + side, update, truth)

    def _same_rows(self, batch: Batch) -> bool:
        """Return whether predictions and labels are rows of one table, told apart by its key."""
        on = self.plan.compare
        if not self._same_table or ROW not in batch.schema.names or on.on_left != on.on_right:
            return False
        return set(on.on_left) in (set(batch.key_columns), set(batch.identity_columns))

    def _times(self, batch: Batch, on: tuple[str, ...], time: str | None) -> tuple[Ints, Mask, dict[int, str]]:
        n = batch.num_rows
        missing = [name for name in on if name not in batch.schema.names]
        if missing:
            reason = f"there is no column «{missing[0]}» to find the label by"
            return np.zeros(n, np.int64), np.zeros(n, np.bool_), dict.fromkeys(range(n), reason)
        if time == ARRIVAL:
            return self._arrived(batch), np.ones(n, np.bool_), {}
        return event_times(batch, time)

    def _arrived(self, batch: Batch) -> Ints:
        order = order_of(batch)
        for part in self.event.merged.parts:
            if part.arrived_us is not None and np.isin(order, order_of(part.batch)).all():
                return part.arrived_us[np.searchsorted(order_of(part.batch), order)]
        return batch.ts_us

    # -- examples that a model learns from what it is graded on ----------------------------------------------------

    def examples(self) -> list[Batch]:
        """Return predictions with the label beside them, at the places where the label is known."""
        found = self.found
        chosen = np.flatnonzero(found.status == 0)
        if not len(chosen):
            return []
        target, examples = self.plan.compare.target, []
        left = self._rows_of(found.left[chosen], predicted=False)
        right = self.join.right.rows.take_apart(found.right[chosen])
        for rows in alike(left, right):
            some = of_one_kind(left[rows])
            names = [name for name in some.column_names if not name.startswith("__") and name != target]
            columns = {name: whole(some.column(name)) for name in names} | {
                target: whole(of_one_kind(right[rows]).column(target))
            }
            place, time_us = found.place[chosen[rows]] // 2, found.time_us[chosen[rows]]
            examples.append(rows_at(self.event.merged, columns, place, time_us))
        return examples

    def _rows_of(self, sequence: Ints, *, predicted: bool) -> pa.Table:
        """Return rows of predictions by their numbers: of earlier events, and of this one so far as predicted."""
        join = self.join
        now = self._left_table(predicted=predicted) if self._left else None
        fresh = sequence >= self._left_first
        old = (sequence >= 0) & ~fresh
        if now is None or not now.num_columns:
            return _filled(join.left.rows.take_apart(sequence), len(sequence))
        at = sequence - self._left_first
        if not old.any():
            return picked(now, at) if fresh.all() else now.take(pa.array(at, mask=~fresh))
        stored = join.left.rows.take_apart(sequence[old])
        if ascends(sequence) and sequence[0] >= 0:
            # Labels in the order of their predictions: those of earlier events are the first.
            return united([stored, picked(now, at[fresh])])
        both = united([stored, now])
        where = np.where(fresh, at + stored.num_rows, 0)
        where[old] = np.arange(stored.num_rows)
        return both.take(pa.array(where, mask=sequence < 0))

    def _left_table(self, *, predicted: bool) -> pa.Table:
        """Return rows of this event's predictions in order, all of them or those that are predicted so far."""
        if predicted and self._predictions:
            return self._predicted_table()
        return self._in_order([(plain(batch), order_of(batch)) for batch in self._left])

    def _predicted_table(self) -> pa.Table:
        """Return the rows that are predicted so far; made once for the same ones, which are only replaced whole."""
        batches = self._predictions
        now = [rows.done for rows in batches], [part for rows in batches for part in rows.predictions]
        if self._made is not None:
            (done, parts), table = self._made
            same = done == now[0] and len(parts) == len(now[1])
            if same and all(part is other for part, other in zip(parts, now[1], strict=True)):
                return table
        found = [(rows.output().records, rows.order[: rows.done]) for rows in batches]
        if len(self._left_order) != sum(len(rows.order) for rows in batches):
            # Not all of them take part.
            found = [_those_in(records, order, self._left_order) for records, order in found]
        table = self._in_order(found)
        self._made = now, table
        return table

    def _in_order(self, found: list[tuple[pa.RecordBatch, Ints]]) -> pa.Table:
        """Return rows of several batches in the order of their places.

        Values of another kind than their column's have a column of their own, as where rows are kept.
        """
        kept = self.join.left.rows
        if not all(kept.takes(records.schema) for records, _ in found) or not _of_one_kind(found):
            rows = PendingRows()
            rows.schema = kept.schema
            found = [(rows.told_apart(records), order) for records, order in found]
        return _in_order(found)

    # -- outcomes ---------------------------------------------------------------------------------------------------

    def grades(self, begin: int, place: int) -> list[Batch]:
        """Return the outcomes at places from one to another, whose predictions are there."""
        found, challenger = self.found, self.event.challenger
        start, end = np.searchsorted(found.place, [2 * begin, 2 * place])
        if start == end:
            return []
        part = found.take(slice(int(start), int(end)))
        left = self._rows_of(part.left, predicted=True)
        right = _filled(self.join.right.rows.take_apart(part.right), len(part))
        graded: list[Batch] = []
        compared = (
            self._compared(part.take(rows), of_one_kind(left[rows]), of_one_kind(right[rows]))
            for rows in alike(left, right)
        )
        for outcomes, rows in chain.from_iterable(compared):
            columns = {name: rows.column(name) for name in rows.schema.names}
            # Without a second model such columns are the user's own.
            if self.event.shadows is not False and {"shadow_prediction", "shadow_version"} <= columns.keys():
                columns["shadow_error"] = errors_of(columns, "shadow_prediction", self.plan.compare)
                if challenger is not None:
                    challenger.take(columns, outcomes.place // 2)
            key, merged = self.plan.compare.on_left, self.event.merged
            graded.append(rows_at(merged, columns, outcomes.place // 2, outcomes.time_us, key=key))
        return graded

    def _compared(self, part: Outcomes, left: pa.Table, right: pa.Table) -> list[tuple[Outcomes, pa.RecordBatch]]:
        """Return outcomes as rows, without those that the metric fails on, which are refused."""
        try:
            return [(part, self._as_before(part, left, right))]
        except Exception as error:  # whatever a metric of somebody's own raises
            reason = reason_of(error)
        bad = faults(left, right, self.plan.compare)
        if not bad and len(part) > 1:
            # Each row by itself is taken, or what fails is no metric.
            half = len(part) // 2
            first = self._compared(part.take(slice(0, half)), left.slice(0, half), right.slice(0, half))
            return first + self._compared(part.take(slice(half, None)), left.slice(half), right.slice(half))
        bad = bad or {0: reason}
        rows = np.array(sorted(bad))
        names = [name for name in left.column_names if not name.startswith("__")]
        known = {name: whole(left.column(name).take(pa.array(rows))) for name in names}
        refused = rows_at(self.event.merged, known, part.place[rows] // 2, part.time_us[rows])
        self.event.refuse(self.event.topic(self.known.number), refused, [bad[row] for row in rows.tolist()], "grade")
        good = np.setdiff1d(np.arange(len(part)), rows)
        picked_rows = pa.array(good)
        return self._compared(part.take(good), left.take(picked_rows), right.take(picked_rows)) if len(good) else []

    def _as_before(self, part: Outcomes, left: pa.Table, right: pa.Table) -> pa.RecordBatch:
        """Return grades with the columns that earlier ones had; where a column's type has changed, as they are."""
        compare, schema = self.plan.compare, self.known.schema
        earlier = schema and pa.schema([column for column in schema if not pa.types.is_null(column.type)])
        try:
            rows = graded_rows(part, left, right, compare, schema=earlier)
        except HeadraceError:
            if earlier is None:
                raise
            rows = graded_rows(part, left, right, compare)
        self.known.schema = rows.schema
        return rows

    def finish(self) -> None:
        """Keep what is pending, with its predictions, and let go of what is not."""
        if self._left:
            for records in self._left_table(predicted=True).combine_chunks().to_batches():
                self.join.left.rows.add(records)
        self.join.settle()


def _of_one_kind(found: list[tuple[pa.RecordBatch, Ints]]) -> bool:
    rows = PendingRows()
    for records, _ in found:
        if not rows.takes(records.schema):
            return False
        rows.told_apart(records)
    return True


def _in_order(found: list[tuple[pa.RecordBatch, Ints]]) -> pa.Table:
    """Return rows of several batches in the order of their places."""
    tables = [pa.Table.from_batches([records]) for records, _ in found]
    table = tables[0] if len(tables) == 1 else united(tables)
    order = np.concatenate([order for _, order in found])
    return table if ascends(order) else table.take(pa.array(np.argsort(order)))


def _those_in(records: pa.RecordBatch, order: Ints, wanted: Ints) -> tuple[pa.RecordBatch, Ints]:
    """Return rows at some of the places."""
    takes = np.isin(order, wanted)
    return records.filter(pa.array(takes)), order[takes]


def errors_of(columns: Mapping[str, pa.Array], prediction: str, compare: CompareSpec) -> pa.Array:
    """Return the metric of another column of predictions; NULL where one of the two values is."""
    predictions, truth = columns[prediction], columns[compare.target]
    both = pc.and_(predictions.is_valid(), truth.is_valid()).to_numpy(zero_copy_only=False)
    found = np.full(len(both), np.nan)
    known = np.flatnonzero(both)

    def attempt(start: int, stop: int) -> None:
        rows = known[start:stop]
        values = (side.take(pa.array(rows)).to_numpy(zero_copy_only=False) for side in (predictions, truth))
        found[rows] = np.asarray(compare.metric(*values), np.float64)

    both[known[list(tried_by_halves(len(known), attempt))]] = False
    return pa.array(found, mask=~both)


def _filled(table: pa.Table, n: int) -> pa.Table:
    """Return a table of so many rows, even if it has no columns: one of NULLs then."""
    return table if table.num_columns else pa.table({"__op": pa.nulls(n, pa.uint8())})


def keys_of(batch: Batch, on: Sequence[str]) -> list[Any]:
    """Return the values that a prediction and its label share; None where one is NULL."""
    return matching_keys([(batch.schema.field(name), batch.column(name)) for name in on])


def _first_of_kinds(known: list[str], batches: list[Batch], name: str, side: int) -> dict[str, int]:
    """Return which kinds of keys a side has shown, each with the place of the first row."""
    first = dict.fromkeys(known, START)
    for batch in batches:
        kind = kind_of(batch.schema.field(name)) if name in batch.schema.names and batch.num_rows else None
        if kind is not None:
            first[kind] = min(first.get(kind, 2**62), 2 * int(order_of(batch)[0]) + side)
    return first


def _row_keys(batch: Batch, on: Sequence[str]) -> list[Any]:
    """Return what a prediction and its label share where both are rows of one table: the row, whatever its key is.

    Rows that the log showed first by an update have their values.
    """
    number = np.asarray(batch.column(ROW))
    number = np.where(number < 0, ~number, number)
    keys: list[Any] = (_ROWS - number).tolist()
    plain = np.flatnonzero((number == 0) | (number & 1 == 1))
    if len(plain):
        for row, key in zip(plain.tolist(), keys_of(batch.take(plain), on), strict=True):
            keys[row] = key
    return keys


def _as_one(arrays: list[pa.Array]) -> pa.Array | None:
    if not arrays:
        return None
    return arrays[0] if len(arrays) == 1 else whole(united([pa.table({"": array}) for array in arrays]).column(0))
