"""One event's rows on their way through a task's nodes: predictions meet labels, windows close, alarms are raised.

Which prediction meets which label depends on keys and times alone, so it is known before anything is predicted. Then
rows are taken in the order of their places, as far as they are answered. Where an alarm begins a training, what was
done after its row is taken back, and done again with the new model's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import DeclarationError, HeadraceError
from headrace.event_time import event_times
from headrace.faults import fault
from headrace.grade.alarm import Alarm
from headrace.grade.drift import Drift
from headrace.grade.interval_join.join import Found
from headrace.grade.windows.columns import no_numbers
from headrace.grade.windows.window import Lines, Window
from headrace.grade.windows.window_results import OF_NUMBERS
from headrace.plan.operators import GRADED, Alarms, Drifts, Grade, Node, Predicted, Read, StreamPlan, Windows
from headrace.plan.task import PredictPlan
from headrace.step.events import Merged, order_of
from headrace.step.grade_join import ChallengerErrors, Comparison, Entering, Refuse, events, placed, plain
from headrace.step.operator_state import OperatorState, TrainingRows
from headrace.step.predictions import PredictionBatch
from headrace.transform.expressions import Operation, operate

Streams = Callable[[StreamPlan, str], list[Batch]]
Raised = tuple[int, Batch | None]
_EDGES = {
    Predicted: "derive.predicted",
    Read: "derive.read",
    Grade: "derive.joined",
    Windows: "derive.windowed",
    Alarms: "derive.alarmed",
    Drifts: "derive.drifted",
}


class OperatorRun:
    """One event's rows on their way.

    Args:
        nodes: the task's; ``flow``: what they know, changed in place.
        merged: the event's rows in order.
        streams: gives a stream's batches of this event.
        refuse: takes rows that cannot be handled, with their reasons.
        queries: of each `Predicted` number, its rows and, as far as they are given, their answers.
        keep: the node whose rows are kept for a training, and what is done to them.
        stop: the node whose rows begin a training at once, and what is done to them.
        predicted: what each `Predicted` number stands for; ``features``: the model's columns, for texts.
        shadows: whether answers of a second model stand beside; None: where the rows have such columns.
        challenger: the errors so far of the current model and of the one that predicts beside it.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        flow: OperatorState,
        merged: Merged,
        *,
        streams: Streams,
        refuse: Refuse,
        queries: Mapping[int, list[PredictionBatch]] | None = None,
        keep: tuple[int, tuple[Operation, ...]] | None = None,
        stop: tuple[int, tuple[Operation, ...]] | None = None,
        challenger: ChallengerErrors | None = None,
        shadows: bool | None = None,
        predicted: Sequence[PredictPlan] = (),
        features: Sequence[str] = (),
    ) -> None:
        self.nodes = nodes
        self.flow = flow
        self.merged = merged
        self._streams, self._refuse_now = streams, refuse
        # Rows that a run refuses are refused once it stands: it may be taken back.
        self._refused: list[tuple[str, Batch, Sequence[str], str]] = []
        self._queries = dict(queries or {})
        self._predicted, self._features = predicted, features
        self._keep, self._stop, self.challenger = keep, stop, challenger
        self._shadows = shadows
        self._done = 0
        self.rows: list[list[Batch]] = [[] for _ in nodes]
        self.out: list[list[Batch]] = [[] for _ in nodes]
        # Of windows: how far a tick moves their time.
        self.close_at: dict[int, int] = {}
        self._read: dict[int, list[Batch]] = {}
        self._compared: dict[int, Comparison] = {}
        for i, node in enumerate(nodes):
            if isinstance(node.what, Read):
                self._read[i] = streams(node.what.stream, "derive")
            elif isinstance(node.what, Grade):
                self._compared[i] = self._match(i, node, node.what)
        if merged.rows:
            flow.at = (int(merged.lsn[-1]), int(merged.index[-1]))
        self._tell_refused()

    # -- who meets whom -------------------------------------------------------------------------------------------

    def _match(self, i: int, node: Node, what: Grade) -> Comparison:
        queries, batches = self._left(node)
        source, topic, same = self.nodes[node.source or 0].what, self._topic(node.source or 0), False
        if isinstance(source, Predicted) and source.number < len(self._predicted):
            plan = self._predicted[source.number]
            topic = plan.stream.topic
            # Answers that were given elsewhere are of no row that the log knows.
            same = topic == what.truth.topic and plan.served is None
        entering = Entering(
            batches, queries, self._streams(what.truth, "grade"), topic, self._topic(i), same, self._shadows
        )
        return Comparison(i, what, self.flow, self.merged, entering, self._refuse)

    def _refuse(self, topic: str, batch: Batch, reasons: Sequence[str], stage: str) -> None:
        self._refused.append((topic, batch, reasons, stage))

    def _left(self, node: Node) -> tuple[list[PredictionBatch], list[Batch]]:
        """Rows that are predicted, or predictions that a topic holds."""
        assert node.source is not None
        source = self.nodes[node.source].what
        if isinstance(source, Predicted):
            queries = self._queries.get(source.number, [])
            return queries, [placed(query.batch, query.order) for query in queries]
        return [], self._after(node.operations, self._read[node.source], node.source)

    # -- examples that a model learns from what it is graded on -----------------------------------------------------

    def graded_examples(self, i: int) -> list[Batch]:
        """Rows of a comparison's predictions with the label beside them, at the places where the label is known."""
        return self._compared[i].examples()

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
        self._tell_refused()
        if place <= self._done:
            return None
        if self._stop is None and self.challenger is None:
            self._run(place)
            raised = None
        else:
            raised = self._run_to_the_first(place)
        self._tell_refused()
        return raised

    def _run_to_the_first(self, place: int) -> Raised | None:
        """Run up to a place; where a row before it may change who answers, only up to that row."""
        begun, running = self._done, self._copies()
        errors = None if self.challenger is None else list(self.challenger.errors)
        kept = None if self.flow.kept is None else self.flow.kept.copy()
        schemas = dict(self.flow.schemas)
        lengths = [len(batches) for batches in self.out]
        self._run(place)
        raised = self._raised()
        if raised is None or raised[0] + 1 >= place:
            return raised
        for i, before in running.items():
            self.flow.running[i] = before
        self.flow.kept, self.flow.schemas, self._done = kept, schemas, begun
        if self.challenger is not None:
            self.challenger.errors = errors or []
        for i, length in enumerate(lengths):
            del self.out[i][length:]
        self._refused.clear()
        self._run(raised[0] + 1)
        return raised

    def _tell_refused(self) -> None:
        refused, self._refused = self._refused, []
        for one in refused:
            self._refuse_now(*one)

    def _raised(self) -> Raised | None:
        """The first row that begins a training, or at which it is decided between two models."""
        alarm, decided = self._alarmed(), None if self.challenger is None else self.challenger.decided
        if decided is not None and (alarm is None or decided <= alarm[0]):
            return decided, None
        return alarm

    def _alarmed(self) -> tuple[int, Batch] | None:
        if self._stop is None:
            return None
        number, operations = self._stop
        rows = self._after(operations, self.rows[number], number)
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
                self.rows[i] = self._answered(what.number, place)
            elif isinstance(what, Read):
                self.rows[i] = [one for batch in self._read[i] if (one := self._between(batch, place)).num_rows]
            elif isinstance(what, Grade):
                self.rows[i] = self._compared[i].grades(self._done, place, self.challenger)
            else:
                self.rows[i] = self._derived(i, node)
            # Predictions have outputs of their own.
            self.out[i] += [] if isinstance(what, Predicted) else self.rows[i]
            fault(_EDGES[type(what)])
        if self._keep is not None and self.flow.kept is not None:
            number, operations = self._keep
            _keep(self.flow.kept, self._after(operations, self.rows[number], number))
        self._done = place

    def _answered(self, number: int, place: int) -> list[Batch]:
        """Rows of a stream as they are answered, in order; those that were answered elsewhere among them."""
        found: list[Batch] = []
        for query in self._queries.get(number, []):
            rows = query.output().records
            order = query.order[: rows.num_rows]
            start, end = np.searchsorted(order, [self._done, place]).tolist()
            if end > start:
                rows = rows.slice(start, end - start)
                answered = Batch(rows.append_column("__order", pa.array(order[start:end])))
                # Without a second model such columns are the user's own.
                found += [answered] if self._shadows is False else _by_columns(answered)
        return _in_turn(found)

    def _between(self, batch: Batch, place: int) -> Batch:
        order = order_of(batch)
        start, end = np.searchsorted(order, [self._done, place])
        return batch.slice(int(start), int(end - start))

    def _derived(self, i: int, node: Node) -> list[Batch]:
        assert node.source is not None
        source = self.nodes[node.source]
        rows = self.rows[node.source]
        found = []
        for batch in self._after(node.operations, _counted(source, rows), node.source):
            for lines in self._pushed(i, node, batch):
                found += self._lines(i, lines)
        running = self.flow.running[i]
        if i in self.close_at and isinstance(running, Window):
            found += self._lines(i, running.advance(self.close_at[i]))
        return found

    def _pushed(self, i: int, node: Node, batch: Batch) -> list[Lines]:
        """What comes of rows; those that cannot be taken are refused, and change nothing.

        Where rows fail together, each half of them is tried by itself, so that only those at fault are refused. What
        comes of the others does not depend on how they were put together.
        """
        time, reasons = _unplaceable(node, batch)
        rows = np.setdiff1d(np.arange(batch.num_rows), np.fromiter(reasons, np.int64, len(reasons)))
        found: list[Lines] = []
        parts = [rows] if len(rows) else []
        while parts:
            rows = parts.pop()
            part = batch if len(rows) == batch.num_rows else batch.take(rows)
            running = self.flow.running[i]
            assert isinstance(running, Window | Alarm | Drift)
            before = running.copy()
            try:
                found.append(_push(running, node, part, time[rows]))
            except Exception as error:  # whatever Arrow, NumPy or a detector of somebody's own raises
                self.flow.running[i] = before
                # What a column is called or of which type it is holds for all of its rows.
                if len(rows) > 1 and not isinstance(error, DeclarationError):
                    parts += np.array_split(rows, 2)[::-1]
                else:
                    reasons |= dict.fromkeys(rows.tolist(), reason_of(error))
        if reasons:
            bad = np.array(sorted(reasons))
            topic = self._topic(node.source or 0)
            self._refuse(topic, batch.take(bad), [reasons[row] for row in bad.tolist()], "derive")
        return found

    def _lines(self, i: int, lines: Lines) -> list[Batch]:
        """Lines as rows; those with a value that does not fit its type are refused."""
        if not lines.records.num_rows:
            return []
        rows = events(self.merged, lines.records, lines.place, lines.time_us)
        if not lines.refused:
            return [rows]
        bad = np.array(sorted(lines.refused))
        self._refuse(self._topic(i), rows.take(bad), [lines.refused[row] for row in bad.tolist()], "derive")
        good = rows.take(np.setdiff1d(np.arange(rows.num_rows), bad))
        return [good] if good.num_rows else []

    def _after(self, operations: tuple[Operation, ...], batches: list[Batch], number: int) -> list[Batch]:
        """Rows of a node after operations; those that these fail on are refused."""
        if not operations:
            return batches
        found: list[Batch] = []
        for batch in batches:
            good, bad = operate(batch, operations, self._features)
            found += [one for one in good if one.num_rows]
            for one, reason in bad:
                self._refuse(self._topic(number), one, [reason], "transform")
        return found

    def _topic(self, number: int) -> str:
        """Where rows of a node that cannot be handled are told of: their own topic, or the next before it."""
        node = self.nodes[number]
        if isinstance(node.what, Read):
            return node.what.stream.topic
        if node.outputs:
            return node.outputs[0].topic
        if isinstance(node.what, Predicted) and node.what.number < len(self._predicted):
            plan = self._predicted[node.what.number]
            return plan.outputs[0].topic if plan.outputs else plan.stream.topic
        return "derived" if node.source is None else self._topic(node.source)

    # -- at the end of the event --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Keep what waits, with its answers, and let go of what does not."""
        for comparison in self._compared.values():
            comparison.finish()


def _unplaceable(node: Node, batch: Batch) -> tuple[Ints, dict[int, str]]:
    """When rows were, and which cannot be placed: without a time, or with a text that is no number."""
    what = node.what
    if not isinstance(what, Windows):
        assert isinstance(what, Alarms | Drifts)
        names = [what.spec.column]
        time, _, reasons = event_times(batch, None)
    else:
        names = [one.column for _, one in what.spec.aggregates if one.column is not None and one.kind in OF_NUMBERS]
        time, _, reasons = event_times(batch, what.time)
    for name in names:
        if len(batch.schema.get_all_field_indices(name)) == 1:
            reasons = no_numbers(batch.column(name), name) | reasons
    return time, reasons


def _push(running: Any, node: Node, batch: Batch, time: Ints) -> Lines:
    order = order_of(batch)
    if isinstance(running, Window):
        number = supersedes = None
        if is_graded(batch.schema):
            number = _numbers(batch.column("grade"))
            supersedes = _numbers(batch.column("supersedes"))
        return running.push(batch.records, time, order, number=number, supersedes=supersedes)
    assert isinstance(running, Alarm | Drift)
    return running.push(plain(batch).select(batch.column_names), time, order)


def is_graded(schema: pa.Schema) -> bool:
    """Whether rows are grades, which a later one may correct: their numbers are whole ones."""
    names = [name for name in ("grade", "supersedes") if schema.get_field_index(name) >= 0]
    return len(names) == 2 and all(
        pa.types.is_integer(schema.field(name).type) or pa.types.is_null(schema.field(name).type) for name in names
    )


def reason_of(error: Exception) -> str:
    """What an error says of a row."""
    return error.message if isinstance(error, HeadraceError) else f"{type(error).__name__}: {error}"


def _by_columns(answered: Batch) -> list[Batch]:
    """Rows beside which another model answered, and rows that have no columns of one, each by themselves.

    Which columns a row has does not depend on the rows that were answered together with it.
    """
    if "shadow_version" not in answered.schema.names:
        return [answered]
    beside = np.asarray(answered.column("shadow_version").is_valid())
    bounds = [0, *(np.flatnonzero(beside[1:] != beside[:-1]) + 1).tolist(), len(beside)]
    parts = [answered.slice(start, end - start) for start, end in pairwise(bounds)]
    own = ["shadow_prediction", "shadow_version"]
    return [
        part if beside[start] else Batch(part.records.drop_columns(own))
        for part, start in zip(parts, bounds, strict=False)
    ]


def _in_turn(batches: list[Batch]) -> list[Batch]:
    """Rows of several batches in the order of their places, in as few batches as their columns allow."""
    batches = sorted(batches, key=lambda batch: int(order_of(batch)[0]))
    if all(order_of(before)[-1] < order_of(after)[0] for before, after in pairwise(batches)):
        return batches
    order = np.concatenate([order_of(batch) for batch in batches])
    by = np.argsort(order)
    if all(batch.schema.equals(batches[0].schema, check_metadata=True) for batch in batches):
        return [Batch(pa.concat_batches([batch.records for batch in batches]).take(pa.array(by)))]
    of = np.repeat(np.arange(len(batches)), [batch.num_rows for batch in batches])[by]
    bounds = [0, *(np.flatnonzero(of[1:] != of[:-1]) + 1).tolist(), len(of)]
    taken = [0] * len(batches)
    found = []
    for start, end in pairwise(bounds):
        i = int(of[start])
        found.append(batches[i].slice(taken[i], end - start))
        taken[i] += end - start
    return found


def _numbers(array: pa.Array) -> Ints:
    return np.asarray(pc.fill_null(array, -1).to_numpy(zero_copy_only=False), np.int64)


def _counted(source: Node, rows: list[Batch]) -> list[Batch]:
    """Of grades those that have a truth; of other rows all."""
    if not isinstance(source.what, Grade):
        return rows
    return [one for one in map(_with_truth, rows) if one.num_rows]


def _with_truth(grades: Batch) -> Batch:
    takes = pc.is_in(grades.column("status"), value_set=pa.array(GRADED)).to_numpy(zero_copy_only=False)
    return grades if takes.all() else grades.filter(takes)


def _keep(kept: TrainingRows, rows: list[Batch]) -> None:
    """Remember rows for a training: of grades those that have a truth."""
    for batch in rows:
        if is_graded(batch.schema) and "status" in batch.schema.names:
            batch = _with_truth(batch)
        if batch.num_rows:
            kept.add(Batch(plain(batch)))
