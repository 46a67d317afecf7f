"""One comparison of predictions with the truth, in one event: who meets whom, and the rows that come of it.

Whom a prediction meets depends on keys and times alone, so it is known before anything is predicted; what comes of it
is made when the predictions are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import UPDATE, Batch
from headrace.errors import HeadraceError
from headrace.event_time import event_times
from headrace.grade.compare import faults, graded_rows
from headrace.grade.interval_join.join import Arrivals, Found, Join
from headrace.grade.interval_join.keys import converter, kind_of, matching_keys, reconverted
from headrace.grade.interval_join.pending import PendingRows, ascends, picked
from headrace.plain_values import united
from headrace.plan.operators import ARRIVAL, Grade
from headrace.step.events import Merged, order_of
from headrace.step.labels import Truths
from headrace.step.operator_state import NEVER, OperatorState
from headrace.step.predictions import PredictionBatch
from headrace.step.row_identity import ROW

Refuse = Callable[[str, Batch, Sequence[str], str], None]
NO_ROWS = np.empty(0, np.int64)
# Keys that stand for rows are below those that anybody has.
_ROWS = -(2**62)


@dataclass(slots=True)
class Side:
    """Rows of one side of a comparison, in order.

    Attributes:
        batches: with their places; ``order`` of all of them.
        first: sequence number of the first.
    """

    batches: list[Batch] = field(default_factory=list)
    order: Ints = field(default_factory=lambda: NO_ROWS)
    first: int = 0


@dataclass(slots=True)
class ChallengerErrors:
    """A model that answers beside the current one.

    Attributes:
        errors: of both, for each graded row, the current one's first.
        decided: the place of the row with which there are enough.
    """

    version: int
    needed: int
    errors: list[list[float]]
    decided: int | None = None

    def take(self, columns: Mapping[str, pa.Array], place: Ints) -> None:
        """Grades, in order."""
        self.decided = None
        mine = pc.equal(columns["shadow_version"], self.version).fill_null(False)
        mine = pc.and_(mine, pc.and_(columns["error"].is_valid(), columns["shadow_error"].is_valid()))
        mine = pc.and_(mine, pc.equal(columns["status"], "graded"))
        rows = np.flatnonzero(mine.to_numpy(zero_copy_only=False))
        room = self.needed - len(self.errors)
        for row in rows[: max(room, 0)].tolist():
            self.errors.append([float(columns["error"][row].as_py()), float(columns["shadow_error"][row].as_py())])
        if 0 < room <= len(rows):
            self.decided = int(place[rows[room - 1]])


@dataclass(frozen=True, slots=True)
class Entering:
    """What a comparison takes in one event.

    Attributes:
        predictions: with their places; ``queries``: where the task's own model makes them, as far as it has.
        labels: batches of the truth's stream.
        topic: of the predictions, where those that cannot take part are told of; ``output``: of the grades.
        shadows: whether answers of a second model stand beside; None: where the rows have such columns.
        same_table: whether the labels are columns of the very rows that are predicted.
    """

    predictions: list[Batch]
    queries: list[PredictionBatch]
    labels: list[Batch]
    topic: str
    output: str
    same_table: bool = False
    shadows: bool | None = None


class Comparison:
    """One comparison in one event.

    Args:
        number: of its node; ``flow``: what the task's nodes know, changed in place.
        merged: the event's rows in order.
        refuse: takes rows that cannot be handled, with their reasons.
    """

    def __init__(
        self, number: int, what: Grade, flow: OperatorState, merged: Merged, entering: Entering, refuse: Refuse
    ) -> None:
        self.number, self.what, self.flow, self.merged = number, what, flow, merged
        self._entering, self._refuse = entering, refuse
        self._made: tuple[tuple[list[int], list[pa.Array]], pa.Table] | None = None
        join = self.join
        on, time = what.compare, what.time
        predictions, labelled = self._of_one_kind(entering.predictions, self._labels(entering.labels))
        self.left, arrivals = self._side(predictions, on.on_left, time[0], 0, entering.topic)
        self.left.first = join.next_left
        topic = what.truth.topic
        right, labels = self._side(labelled, on.on_right, time[1], 1, topic)
        for batch in right.batches:
            _put(join.right_rows, plain(batch))
        self.found = join.match(arrivals, labels, end=2 * merged.rows)

    @property
    def join(self) -> Join:
        join = self.flow.running[self.number]
        assert isinstance(join, Join)
        return join

    def _labels(self, batches: list[Batch]) -> list[Batch]:
        """Rows that bring a label, or another one."""
        what, target = self.what, self.what.compare.target
        truths = self.flow.labels.setdefault(self.number, Truths())
        found = []
        for batch in batches:
            if target not in batch.schema.names:
                if batch.num_rows:
                    reason = f"there is no column «{target}» to compare predictions with"
                    self._refuse(what.truth.topic, batch, [reason] * batch.num_rows, "grade")
                continue
            brings, again = truths.brought(batch, target)
            self.flow.count("ignored", int((~brings).sum()))
            batch = Batch(batch.records.append_column(UPDATE, pa.array(again)))
            found.append(batch if brings.all() else batch.filter(brings))
        return [batch for batch in found if batch.num_rows]

    def _of_one_kind(self, predictions: list[Batch], labels: list[Batch]) -> tuple[list[Batch], list[Batch]]:
        """The rows of both sides whose keys may match what the other side has shown; the others are refused."""
        compare = self.what.compare
        sides, on = (predictions, labels), (compare.on_left, compare.on_right)
        topics = (self._entering.topic, self.what.truth.topic)
        if self.number not in self.flow.key_kinds and (predictions or labels):
            self._meet_old_keys(sides, on)
        known = self.flow.key_kinds.setdefault(self.number, [[[] for _ in on[0]] for _ in on])
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
        """Rows before whose place the other side has shown their kind, or none."""
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
                self._refuse(topics[0], batch.filter(wrong), [reason] * int(wrong.sum()), "grade")
            found.append(batch.filter(~wrong) if wrong.any() else batch)
        return [batch for batch in found if batch.num_rows]

    def _meet_old_keys(self, sides: tuple[list[Batch], list[Batch]], on: tuple[tuple[str, ...], ...]) -> None:
        """Keys of a state from before numbers were told from their text become those that they are now."""
        join = self.join
        if not any(join.waiting) and not join.next_left:
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

    def _side(
        self,
        batches: list[Batch],
        on: tuple[str, ...],
        time: str | None,
        side: int,
        topic: str,
    ) -> tuple[Side, Arrivals]:
        """Keys, times and places of one side; rows that lack one of them are refused."""
        kept: list[Batch] = []
        keys: list[Any] = []
        times: list[Ints] = []
        for batch in batches:
            found, valid, reasons = self._times(batch, on, time)
            if not valid.all():
                bad = np.flatnonzero(~valid)
                self._refuse(topic, batch.take(bad), [reasons[row] for row in bad.tolist()], "grade")
                batch, found = batch.filter(valid), found[valid]
            if batch.num_rows:
                kept.append(batch)
                keys += _row_keys(batch, on) if self._same_rows(batch) else keys_of(batch, on)
                times.append(found)
        order = np.concatenate([order_of(one) for one in kept]) if kept else NO_ROWS
        when = np.concatenate(times) if times else NO_ROWS
        if not ascends(order):
            # Predictions of several topics: those that were asked for elsewhere come between the others.
            by = np.argsort(order)
            order, when, keys = order[by], when[by], [keys[row] for row in by.tolist()]
        seen = self.flow.seen.setdefault(self.number, [NEVER, NEVER])
        if len(when):
            seen[side] = max(seen[side], int(when.max()))
        update = truth = None
        if side:
            update = np.concatenate([np.asarray(one.column(UPDATE)) for one in kept]) if kept else None
            truth = _as_one([one.column(self.what.compare.target) for one in kept])
        # A row of one topic may be on both sides: as a prediction it comes first.
        return Side(kept, order), Arrivals(keys, when, 2 * order + side, update, truth)

    def _same_rows(self, batch: Batch) -> bool:
        """Whether predictions and labels are rows of one table, told apart by its key."""
        on = self.what.compare
        if not self._entering.same_table or ROW not in batch.schema.names or on.on_left != on.on_right:
            return False
        return set(on.on_left) in (set(batch.key_columns), set(batch.identity_columns))

    def _times(
        self, batch: Batch, on: tuple[str, ...], time: str | None
    ) -> tuple[Ints, npt.NDArray[np.bool_], dict[int, str]]:
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
        for part in self.merged.parts:
            if part.arrived_us is not None and np.isin(order, order_of(part.batch)).all():
                return part.arrived_us[np.searchsorted(order_of(part.batch), order)]
        return batch.ts_us

    # -- examples that a model learns from what it is graded on ----------------------------------------------------

    def examples(self) -> list[Batch]:
        """Rows of a comparison's predictions with the label beside them, at the places where the label is known."""
        found = self.found
        chosen = np.flatnonzero(found.status == 0)
        if not len(chosen):
            return []
        left = self._rows_of(found.left[chosen], answered=False)
        right = self.join.right_rows.take(found.right[chosen])
        target = self.what.compare.target
        names = [name for name in left.column_names if not name.startswith("__") and name != target]
        columns = {name: whole(left.column(name)) for name in names}
        columns[target] = whole(right.column(target))
        place = found.place[chosen] // 2
        return [events(self.merged, columns, place, found.time_us[chosen])]

    def _rows_of(self, sequence: Ints, *, answered: bool) -> pa.Table:
        """Rows of predictions by their numbers: of earlier events, and of this one as far as they are answered."""
        join = self.join
        now = self._left_table(answered=answered) if self.left.batches else None
        fresh = sequence >= self.left.first
        old = (sequence >= 0) & ~fresh
        if now is None or not now.num_columns:
            return _filled(join.left_rows.take(sequence), len(sequence))
        at = sequence - self.left.first
        if not old.any():
            return picked(now, at) if fresh.all() else now.take(pa.array(at, mask=~fresh))
        stored = join.left_rows.take(sequence[old])
        if ascends(sequence) and sequence[0] >= 0:
            # Labels in the order of their predictions: those of earlier events are the first.
            return united([stored, picked(now, at[fresh])])
        both = united([stored, now])
        where = np.where(fresh, at + stored.num_rows, 0)
        where[old] = np.arange(stored.num_rows)
        return both.take(pa.array(where, mask=sequence < 0))

    def _left_table(self, *, answered: bool) -> pa.Table:
        """Rows of this event's predictions in order, all of them or those that are answered so far."""
        if answered and self._entering.queries:
            return self._answered_table()
        return _in_order([(plain(batch), order_of(batch)) for batch in self.left.batches])

    def _answered_table(self) -> pa.Table:
        """Rows that are answered so far; made once for the same answers, which a query only ever replaces whole."""
        queries = self._entering.queries
        answers = [query.done for query in queries], [part for query in queries for part in query.predictions]
        if self._made is not None:
            (done, parts), table = self._made
            same = done == answers[0] and len(parts) == len(answers[1])
            if same and all(one is other for one, other in zip(parts, answers[1], strict=True)):
                return table
        found = [(query.output().records, query.order[: query.done]) for query in queries]
        if not self._all_take_part:
            found = [_those_in(records, order, self.left.order) for records, order in found]
        table = _in_order(found)
        self._made = answers, table
        return table

    @property
    def _all_take_part(self) -> bool:
        return len(self.left.order) == sum(len(query.order) for query in self._entering.queries)

    # -- outcomes ---------------------------------------------------------------------------------------------------

    def grades(self, begin: int, place: int, challenger: ChallengerErrors | None) -> list[Batch]:
        """The outcomes at places from one to another, whose predictions are there."""
        found, what = self.found, self.what
        start, end = np.searchsorted(found.place, [2 * begin, 2 * place])
        if start == end:
            return []
        part = found.take(slice(int(start), int(end)))
        left = self._rows_of(part.left, answered=True)
        right = _filled(self.join.right_rows.take(part.right), len(part))
        graded: list[Batch] = []
        for outcomes, rows in self._compared(part, left, right):
            columns = {name: rows.column(name) for name in rows.schema.names}
            # Without a second model such columns are the user's own.
            if self._entering.shadows is not False and {"shadow_prediction", "shadow_version"} <= columns.keys():
                columns["shadow_error"] = errors_of(columns, "shadow_prediction", what)
                if challenger is not None:
                    challenger.take(columns, outcomes.place // 2)
            key = what.compare.on_left
            graded.append(events(self.merged, columns, outcomes.place // 2, outcomes.time_us, key=key))
        return graded

    def _compared(self, part: Found, left: pa.Table, right: pa.Table) -> list[tuple[Found, pa.RecordBatch]]:
        """Outcomes as rows, without those that the metric fails on, which are refused."""
        try:
            return [(part, self._as_before(part, left, right))]
        except Exception as error:  # whatever a metric of somebody's own raises
            reason = error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"
        bad = faults(left, right, self.what.compare)
        if not bad and len(part) > 1:
            # Each row by itself is taken, or what fails is no metric.
            half = len(part) // 2
            first = self._compared(part.take(slice(0, half)), left.slice(0, half), right.slice(0, half))
            return first + self._compared(part.take(slice(half, None)), left.slice(half), right.slice(half))
        bad = bad or {0: reason}
        rows = np.array(sorted(bad))
        names = [name for name in left.column_names if not name.startswith("__")]
        known = {name: whole(left.column(name).take(pa.array(rows))) for name in names}
        refused = events(self.merged, known, part.place[rows] // 2, part.time_us[rows])
        self._refuse(self._entering.output, refused, [bad[row] for row in rows.tolist()], "grade")
        good = np.setdiff1d(np.arange(len(part)), rows)
        picked_rows = pa.array(good)
        return self._compared(part.take(good), left.take(picked_rows), right.take(picked_rows)) if len(good) else []

    def _as_before(self, part: Found, left: pa.Table, right: pa.Table) -> pa.RecordBatch:
        """Grades with the columns that earlier ones had; where a column's type has changed, as they are."""
        what, schema = self.what, self.flow.schemas.get(self.number)
        known = None if schema is None else pa.schema([one for one in schema if not pa.types.is_null(one.type)])
        try:
            rows = graded_rows(part, left, right, what.compare, schema=known)
        except HeadraceError:
            if known is None:
                raise
            rows = graded_rows(part, left, right, what.compare)
        self.flow.schemas[self.number] = rows.schema
        return rows

    def finish(self) -> None:
        """Keep what waits, with its answers, and let go of what does not."""
        if self.left.batches:
            for one in self._left_table(answered=True).combine_chunks().to_batches():
                _put(self.join.left_rows, one)
        self.join.settle()


def _in_order(found: list[tuple[pa.RecordBatch, Ints]]) -> pa.Table:
    """Rows of several batches in the order of their places."""
    tables = [pa.Table.from_batches([records]) for records, _ in found]
    table = tables[0] if len(tables) == 1 else united(tables)
    order = np.concatenate([order for _, order in found])
    return table if ascends(order) else table.take(pa.array(np.argsort(order)))


def _those_in(records: pa.RecordBatch, order: Ints, wanted: Ints) -> tuple[pa.RecordBatch, Ints]:
    """Rows at some of the places."""
    takes = np.isin(order, wanted)
    return records.filter(pa.array(takes)), order[takes]


def events(
    merged: Merged, columns: dict[str, Any] | pa.RecordBatch, place: Ints, time_us: Ints, *, key: Sequence[str] = ()
) -> Batch:
    """Rows at the places, and with the positions, of those that brought them about."""
    rows = Batch.of(columns, lsn=merged.lsn[place], index=merged.index[place], ts_us=time_us, key=key)
    return placed(rows, place)


def _put(rows: PendingRows, records: pa.RecordBatch) -> None:
    """Keep rows; values of a column whose type is another one than before cannot be kept beside them."""
    try:
        rows.add(records)
    except HeadraceError:
        names = [
            name for name in records.schema.names if name.startswith("__") or rows.takes(records.schema.field(name))
        ]
        rows.add(records.select(names))


def errors_of(columns: Mapping[str, pa.Array], prediction: str, what: Grade) -> pa.Array:
    """The metric of another column of predictions; NULL where one of the two values is."""
    answers, truth = columns[prediction], columns[what.compare.target]
    both = pc.and_(answers.is_valid(), truth.is_valid()).to_numpy(zero_copy_only=False)
    found = np.full(len(both), np.nan)
    rows = [np.flatnonzero(both)] if both.any() else []
    while rows:
        some = rows.pop()
        try:
            values = (one.take(pa.array(some)).to_numpy(zero_copy_only=False) for one in (answers, truth))
            found[some] = np.asarray(what.compare.metric(*values), np.float64)
        except Exception:  # whatever a metric of somebody's own raises: the other rows have theirs
            both[some] = len(some) > 1
            rows += [half for half in np.array_split(some, 2) if len(some) > 1]
    return pa.array(found, mask=~both)


def _filled(table: pa.Table, n: int) -> pa.Table:
    """A table of so many rows, even if it has no columns: one of NULLs then."""
    return table if table.num_columns else pa.table({"__op": pa.nulls(n, pa.uint8())})


def keys_of(batch: Batch, on: Sequence[str]) -> list[Any]:
    """The values that a prediction and its label share; None where one is NULL."""
    return matching_keys([(batch.schema.field(name), batch.column(name)) for name in on])


def _first_of_kinds(known: list[str], batches: list[Batch], name: str, side: int) -> dict[str, int]:
    """Which kinds of keys a side has shown, each with the place of the first row."""
    first = dict.fromkeys(known, NEVER)
    for batch in batches:
        kind = kind_of(batch.schema.field(name)) if name in batch.schema.names and batch.num_rows else None
        if kind is not None:
            first[kind] = min(first.get(kind, 2**62), 2 * int(order_of(batch)[0]) + side)
    return first


def _row_keys(batch: Batch, on: Sequence[str]) -> list[Any]:
    """What a prediction and its label share where both are rows of one table: the row itself, whatever its key is.

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


def placed(batch: Batch, order: Ints) -> Batch:
    """Rows with their places."""
    if "__order" in batch.schema.names:
        return batch
    return Batch(batch.records.append_column("__order", pa.array(order)))


def plain(batch: Batch) -> pa.RecordBatch:
    """Its records without the columns that only an event has."""
    return batch.stored.records


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_one(arrays: list[pa.Array]) -> pa.Array | None:
    if not arrays:
        return None
    if any(not one.type.equals(arrays[0].type) for one in arrays):
        return whole(united([pa.table({"": one}) for one in arrays]).column(0))
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
