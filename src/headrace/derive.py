"""One event's rows on their way through a task's nodes: predictions meet labels, windows close, alarms are raised.

Which prediction meets which label depends on keys and times alone, so it is known before anything is predicted. Then
rows are taken in the order of their places, as far as they are answered. Where an alarm begins a training, what was
done after its row is taken back, and done again with the new model's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.answers import Query
from headrace.batch import OPS, Batch
from headrace.errors import HeadraceError
from headrace.event_time import event_times
from headrace.events import Ints, Merged, order_of
from headrace.faults import fault
from headrace.flow import ARRIVAL, GRADED, Alarms, Drifts, Grade, Node, Predicted, Read, StreamPlan, Windows
from headrace.flow_state import NEVER, FlowState, KeptRows
from headrace.grade.alarm import Alarm
from headrace.grade.compare import graded_rows
from headrace.grade.drift import Drift
from headrace.grade.join import Arrivals, Found, Join
from headrace.grade.window import Lines, Window
from headrace.labels import new_examples
from headrace.transform.expressions import Operation, operate

Streams = Callable[[StreamPlan, str], list[Batch]]
Refuse = Callable[[str, Batch, Sequence[str], str], None]
Raised = tuple[int, Batch | None]
_EDGES = {
    Read: "derive.read",
    Grade: "derive.joined",
    Windows: "derive.windowed",
    Alarms: "derive.alarmed",
    Drifts: "derive.drifted",
}
NO_ROWS = np.empty(0, np.int64)


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
class Compared:
    """A comparison's outcomes of one event, and the rows that they are about."""

    found: Found
    left: Side
    queries: list[Query]


@dataclass(slots=True)
class Trial:
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


class Derive:
    """One event's rows on their way.

    Args:
        nodes: the task's; ``flow``: what they know, changed in place.
        merged: the event's rows in order.
        streams: gives a stream's batches of this event.
        refuse: takes rows that cannot be handled, with their reasons.
        queries: of each `Predicted` number, its rows and, as far as they are given, their answers.
        keep: the node whose rows are kept for a training, and what is done to them.
        stop: the node whose rows begin a training at once, and what is done to them.
        trial: of a model that answers beside the current one: its version, after how many grades it is decided, and
            the errors of both so far.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        flow: FlowState,
        merged: Merged,
        *,
        streams: Streams,
        refuse: Refuse,
        queries: Mapping[int, list[Query]] | None = None,
        keep: tuple[int, tuple[Operation, ...]] | None = None,
        stop: tuple[int, tuple[Operation, ...]] | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.nodes = nodes
        self.flow = flow
        self.merged = merged
        self._streams, self._refuse = streams, refuse
        self._queries = dict(queries or {})
        self._keep, self._stop, self.trial = keep, stop, trial
        self._done = 0
        self.rows: list[list[Batch]] = [[] for _ in nodes]
        self.out: list[list[Batch]] = [[] for _ in nodes]
        # Of windows: how far a tick moves their time.
        self.close_at: dict[int, int] = {}
        self._read: dict[int, list[Batch]] = {}
        self._compared: dict[int, Compared] = {}
        for i, node in enumerate(nodes):
            if isinstance(node.what, Read):
                self._read[i] = streams(node.what.stream, "derive")
            elif isinstance(node.what, Grade):
                self._compared[i] = self._match(i, node, node.what)
        if merged.rows:
            flow.at = (int(merged.lsn[-1]), int(merged.index[-1]))

    # -- who meets whom -------------------------------------------------------------------------------------------

    def _match(self, i: int, node: Node, what: Grade) -> Compared:
        join = _join(self.flow, i)
        queries, batches = self._left(node)
        topic = queries[0].stream.topic if queries and queries[0].stream else _named(self.nodes[node.source or 0])
        left, arrivals = self._side(batches, what.compare.on_left, what.time[0], 0, i, topic)
        left.first = join.next_left
        labelled, topic = self._labels(i, what), what.truth.topic
        right, labels = self._side(labelled, what.compare.on_right, what.time[1], 1, i, topic, what)
        for batch in right.batches:
            join.right_rows.add(_plain(batch))
        found = join.match(arrivals, labels, end=2 * self.merged.rows)
        return Compared(found, left, queries)

    def _left(self, node: Node) -> tuple[list[Query], list[Batch]]:
        """Rows that are predicted, or predictions that a topic holds."""
        assert node.source is not None
        source = self.nodes[node.source].what
        if isinstance(source, Predicted):
            queries = self._queries.get(source.number, [])
            return queries, [_placed(query.batch, query.order) for query in queries]
        return [], self._after(node.operations, self._read[node.source], node)

    def _labels(self, i: int, what: Grade) -> list[Batch]:
        """Rows that bring a label, or another one."""
        target = what.compare.target
        waiting = self.flow.labels.setdefault(i, set())
        found = []
        for batch in self._streams(what.truth, "grade"):
            if target not in batch.schema.names:
                if batch.num_rows:
                    reason = f"there is no column «{target}» to compare predictions with"
                    self._refuse(what.truth.topic, batch, [reason] * batch.num_rows, "grade")
                continue
            fresh = new_examples(batch, target, waiting)
            brings = (fresh | _changed(batch, target)) & np.asarray(batch.column(target).is_valid())
            self.flow.count("ignored", int((~brings).sum()))
            batch = batch.with_columns([("__update", pa.array(~fresh))])
            found.append(batch if brings.all() else batch.filter(brings))
        return [batch for batch in found if batch.num_rows]

    def _side(
        self,
        batches: list[Batch],
        on: tuple[str, ...],
        time: str | None,
        side: int,
        i: int,
        topic: str,
        labels: Grade | None = None,
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
                keys += keys_of(batch, on)
                times.append(found)
        order = np.concatenate([order_of(one) for one in kept]) if kept else NO_ROWS
        when = np.concatenate(times) if times else NO_ROWS
        seen = self.flow.seen.setdefault(i, [NEVER, NEVER])
        if len(when):
            seen[side] = max(seen[side], int(when.max()))
        update = truth = None
        if labels is not None:
            update = np.concatenate([np.asarray(one.column("__update")) for one in kept]) if kept else None
            truth = _as_one([one.column(labels.compare.target) for one in kept])
        # A row of one topic may be on both sides: as a prediction it comes first.
        return Side(kept, order), Arrivals(keys, when, 2 * order + side, update, truth)

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

    # -- examples that a model learns from what it is graded on -----------------------------------------------------

    def graded_examples(self, i: int) -> list[Batch]:
        """Rows of a comparison's predictions with the label beside them, at the places where the label is known."""
        node = self.nodes[i]
        assert isinstance(node.what, Grade)
        compared = self._compared[i]
        found = compared.found
        chosen = np.flatnonzero(found.status == 0)
        if not len(chosen):
            return []
        left = self._rows_of(i, found.left[chosen], answered=False)
        right = _join(self.flow, i).right_rows.take(found.right[chosen])
        target = node.what.compare.target
        names = [name for name in left.column_names if not name.startswith("__") and name != target]
        columns = {name: _whole(left.column(name)) for name in names}
        columns[target] = _whole(right.column(target))
        place = found.place[chosen] // 2
        rows = self._events(columns, place, found.time_us[chosen])
        return [rows]

    def _rows_of(self, i: int, sequence: Ints, *, answered: bool) -> pa.Table:
        """Rows of predictions by their numbers: of earlier events, and of this one as far as they are answered."""
        compared, join = self._compared[i], _join(self.flow, i)
        now = self._left_table(compared, answered=answered) if compared.left.batches else None
        fresh = sequence >= compared.left.first
        old = (sequence >= 0) & ~fresh
        if now is None or not now.num_columns:
            return _filled(join.left_rows.take(sequence), len(sequence))
        at = sequence - compared.left.first
        if not old.any():
            return now.take(pa.array(at, mask=~fresh))
        stored = join.left_rows.take(sequence[old])
        both = pa.concat_tables([stored, now], promote_options="permissive")
        where = np.where(fresh, at + stored.num_rows, 0)
        where[old] = np.arange(stored.num_rows)
        return both.take(pa.array(where, mask=sequence < 0))

    def _left_table(self, compared: Compared, *, answered: bool) -> pa.Table:
        if not compared.queries or not answered:
            tables = [_plain(batch) for batch in compared.left.batches]
        else:
            tables = self._answered(compared)
        return pa.concat_tables([pa.Table.from_batches([one]) for one in tables], promote_options="permissive")

    def _answered(self, compared: Compared) -> list[pa.RecordBatch]:
        """Answered rows that take part: those that lack a key or a time do not."""
        found = []
        for query in compared.queries:
            records = query.output().records
            takes = np.isin(query.order[: query.done], compared.left.order)
            found.append(records if takes.all() else records.filter(pa.array(takes)))
        return found

    def expire(self, i: int, found: Found) -> None:
        """What time alone brought about."""
        self._compared[i].found = found

    # -- in the order of places -------------------------------------------------------------------------------------

    def advance(self, place: int) -> Raised | None:
        """Take the rows before a place, which are answered; stop at the first one that may change who answers.

        Returns:
            The place of that row, and what raised it, or None where it is to be decided between two models; nothing
            after it was taken. None where all were.
        """
        if place <= self._done:
            return None
        if self._stop is None and self.trial is None:
            self._run(place)
            return None
        begun, running = self._done, self._copies()
        errors = None if self.trial is None else list(self.trial.errors)
        kept = None if self.flow.kept is None else self.flow.kept.copy()
        lengths = [len(one) for one in self.out]
        self._run(place)
        raised = self._raised()
        if raised is None:
            return None
        at, rows = raised
        if at + 1 < place:
            for i, one in running.items():
                self.flow.running[i] = one
            self.flow.kept, self._done = kept, begun
            if self.trial is not None:
                self.trial.errors = errors or []
            for i, length in enumerate(lengths):
                del self.out[i][length:]
            self._run(at + 1)
        return at, rows

    def _raised(self) -> Raised | None:
        """The first row that begins a training, or at which it is decided between two models."""
        alarm, decided = self._alarmed(), None if self.trial is None else self.trial.decided
        if decided is not None and (alarm is None or decided <= alarm[0]):
            return decided, None
        return alarm

    def _alarmed(self) -> tuple[int, Batch] | None:
        if self._stop is None:
            return None
        number, operations = self._stop
        rows = self._after(operations, self.rows[number], self.nodes[number])
        if not rows:
            return None
        first = min(rows, key=lambda one: int(order_of(one)[0]))
        at = int(order_of(first)[0])
        return at, first.slice(0, 1)

    def _copies(self) -> dict[int, Any]:
        running = enumerate(self.flow.running)
        return {i: one.copy() for i, one in running if isinstance(one, Window | Alarm | Drift)}

    def _run(self, place: int) -> None:
        for i, node in enumerate(self.nodes):
            what = node.what
            if isinstance(what, Predicted):
                continue
            if isinstance(what, Read):
                self.rows[i] = [one for batch in self._read[i] if (one := self._between(batch, place)).num_rows]
            elif isinstance(what, Grade):
                self.rows[i] = self._grades(i, what, place)
            else:
                self.rows[i] = self._derived(i, node)
            self.out[i] += self.rows[i]
            fault(_EDGES[type(what)])
        if self._keep is not None and self.flow.kept is not None:
            number, operations = self._keep
            keep_rows(self.flow.kept, self._after(operations, self.rows[number], self.nodes[number]))
        self._done = place

    def _between(self, batch: Batch, place: int) -> Batch:
        order = order_of(batch)
        start, end = np.searchsorted(order, [self._done, place])
        return batch.slice(int(start), int(end - start))

    def _grades(self, i: int, what: Grade, place: int) -> list[Batch]:
        found = self._compared[i].found
        start, end = np.searchsorted(found.place, [2 * self._done, 2 * place])
        if start == end:
            return []
        part = found.take(slice(int(start), int(end)))
        left = self._rows_of(i, part.left, answered=True)
        right = _filled(_join(self.flow, i).right_rows.take(part.right), len(part))
        try:
            rows = self._graded_as_before(i, what, part, left, right)
        except HeadraceError as error:
            names = [name for name in left.column_names if not name.startswith("__")]
            refused = self._events({name: _whole(left.column(name)) for name in names}, part.place // 2, part.time_us)
            self._refuse(_named(self.nodes[i]), refused, [error.message] * len(part), "grade")
            return []
        columns = {name: rows.column(name) for name in rows.schema.names}
        if "shadow_prediction" in columns:
            columns["shadow_error"] = errors_of(columns, "shadow_prediction", what)
            if self.trial is not None:
                self.trial.take(columns, part.place // 2)
        return [self._events(columns, part.place // 2, part.time_us, key=what.compare.on_left)]

    def _graded_as_before(self, i: int, what: Grade, part: Found, left: pa.Table, right: pa.Table) -> pa.RecordBatch:
        """Grades with the columns that earlier ones had; where a column's type has changed, as they are."""
        schema = self.flow.schemas.get(i)
        known = None if schema is None else pa.schema([one for one in schema if not pa.types.is_null(one.type)])
        try:
            rows = graded_rows(part, left, right, what.compare, schema=known)
        except HeadraceError:
            if known is None:
                raise
            rows = graded_rows(part, left, right, what.compare)
        self.flow.schemas[i] = rows.schema
        return rows

    def _derived(self, i: int, node: Node) -> list[Batch]:
        assert node.source is not None
        source = self.nodes[node.source]
        rows = self.rows[node.source]
        found = []
        for batch in self._after(node.operations, _counted(source, rows), source):
            order = order_of(batch)
            lines = self._pushed(i, node, batch, order)
            if lines is not None and lines.records.num_rows:
                found.append(self._lines(lines))
        running = self.flow.running[i]
        if i in self.close_at and isinstance(running, Window):
            lines = running.advance(self.close_at[i])
            found += [self._lines(lines)] if lines.records.num_rows else []
        return found

    def _pushed(self, i: int, node: Node, batch: Batch, order: Ints) -> Lines | None:
        """What comes of rows; those that cannot be taken are refused, and change nothing."""
        running = self.flow.running[i]
        assert isinstance(running, Window | Alarm | Drift)
        before = running.copy()
        try:
            return _push(running, node, batch, order)
        except HeadraceError as error:
            self.flow.running[i] = before
            self._refuse(_named(node), batch, [error.message] * batch.num_rows, "derive")
            return None

    def _lines(self, lines: Lines) -> Batch:
        columns = {name: lines.records.column(name) for name in lines.records.schema.names}
        return self._events(columns, lines.place, lines.time_us)

    def _events(self, columns: dict[str, Any], place: Ints, time_us: Ints, *, key: Sequence[str] = ()) -> Batch:
        """Rows at the places, and with the positions, of those that brought them about."""
        merged = self.merged
        rows = Batch.of(columns, lsn=merged.lsn[place], index=merged.index[place], ts_us=time_us, key=key)
        return _placed(rows, place)

    def _after(self, operations: tuple[Operation, ...], batches: list[Batch], node: Node) -> list[Batch]:
        """Rows after operations; those that these fail on are refused."""
        if not operations:
            return batches
        found: list[Batch] = []
        for batch in batches:
            good, bad = operate(batch, operations)
            found += [one for one in good if one.num_rows]
            for one, reason in bad:
                self._refuse(_named(node), one, [reason], "transform")
        return found

    # -- at the end of the event --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Keep what waits, with its answers, and let go of what does not."""
        for i, compared in self._compared.items():
            join = _join(self.flow, i)
            records = self._answered(compared) if compared.queries else [_plain(one) for one in compared.left.batches]
            for one in records:
                join.left_rows.add(one)
            join.settle()


def errors_of(columns: Mapping[str, pa.Array], prediction: str, what: Grade) -> pa.Array:
    """The metric of another column of predictions; NULL where one of the two values is."""
    answers, truth = columns[prediction], columns[what.compare.target]
    both = pc.and_(answers.is_valid(), truth.is_valid()).to_numpy(zero_copy_only=False)
    found = np.full(len(both), np.nan)
    if both.any():
        chosen = pa.array(np.flatnonzero(both))
        values = (one.take(chosen).to_numpy(zero_copy_only=False) for one in (answers, truth))
        found[both] = np.asarray(what.compare.metric(*values), np.float64)
    return pa.array(found, mask=~both)


def _filled(table: pa.Table, n: int) -> pa.Table:
    """A table of so many rows, even if it has no columns: one of NULLs then."""
    return table if table.num_columns else pa.table({"__op": pa.nulls(n, pa.uint8())})


def _push(running: Any, node: Node, batch: Batch, order: Ints) -> Lines:
    what = node.what
    if isinstance(what, Windows):
        assert isinstance(running, Window)
        time = batch.ts_us
        if what.time is not None:
            time, valid, _ = event_times(batch, what.time)
            if not valid.all():
                batch, time, order = batch.filter(valid), time[valid], order[valid]
        names = batch.schema.names
        number = supersedes = None
        if "grade" in names and "supersedes" in names:
            number = _numbers(batch.column("grade"))
            supersedes = _numbers(batch.column("supersedes"))
        return running.push(batch.records, time, order, number=number, supersedes=supersedes)
    assert isinstance(running, Alarm | Drift)
    return running.push(_plain(batch).select(batch.column_names), batch.ts_us, order)


def _numbers(array: pa.Array) -> Ints:
    return np.asarray(pc.fill_null(array, -1).to_numpy(zero_copy_only=False), np.int64)


def _counted(source: Node, rows: list[Batch]) -> list[Batch]:
    """Of grades those that have a truth; of other rows all."""
    if not isinstance(source.what, Grade):
        return rows
    found = []
    for batch in rows:
        takes = pc.is_in(batch.column("status"), value_set=pa.array(GRADED)).to_numpy(zero_copy_only=False)
        found.append(batch if takes.all() else batch.filter(takes))
    return [one for one in found if one.num_rows]


def keep_rows(kept: KeptRows, rows: list[Batch]) -> None:
    """Remember rows for a training: of grades those that have a truth."""
    for batch in rows:
        if "status" in batch.schema.names and "grade" in batch.schema.names:
            takes = pc.is_in(batch.column("status"), value_set=pa.array(GRADED)).to_numpy(zero_copy_only=False)
            batch = batch if takes.all() else batch.filter(takes)
        if batch.num_rows:
            kept.add(Batch(_plain(batch)))


def keys_of(batch: Batch, on: Sequence[str]) -> list[Any]:
    """The values that a prediction and its label share, as Python has them; None where one is NULL."""
    columns = [batch.column(name).to_pylist() for name in on]
    if len(columns) == 1:
        return list(columns[0])
    return [None if None in key else key for key in zip(*columns, strict=True)]


def _changed(batch: Batch, target: str) -> npt.NDArray[np.bool_]:
    """Updates that give a row another label, as far as they tell."""
    updates: npt.NDArray[np.bool_] = batch.op == OPS["u"]
    before = batch.before
    if before is None or not updates.any() or before.type.get_field_index(target) < 0:
        return updates
    told = np.asarray(before.is_valid())
    same = pc.equal(before.field(target), batch.column(target)).fill_null(False).to_numpy(zero_copy_only=False)
    return np.asarray(updates & ~(told & same))


def _join(flow: FlowState, i: int) -> Join:
    join = flow.running[i]
    assert isinstance(join, Join)
    return join


def _named(node: Node) -> str:
    """Where rows of a node that cannot be handled are told of."""
    if isinstance(node.what, Read):
        return node.what.stream.topic
    return node.outputs[0].topic if node.outputs else "derived"


def _placed(batch: Batch, order: Ints) -> Batch:
    if "__order" in batch.schema.names:
        return batch
    return Batch(batch.records.append_column("__order", pa.array(order)))


def _plain(batch: Batch) -> pa.RecordBatch:
    """Without the columns that only an event has."""
    own = [name for name in ("__order", "__update") if name in batch.schema.names]
    return batch.records.drop_columns(own) if own else batch.records


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _as_one(arrays: list[pa.Array]) -> pa.Array | None:
    if not arrays:
        return None
    if any(not one.type.equals(arrays[0].type) for one in arrays):
        table = pa.concat_tables([pa.table({"": one}) for one in arrays], promote_options="permissive")
        return _whole(table.column(0))
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)
