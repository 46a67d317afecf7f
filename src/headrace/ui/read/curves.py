"""Curves of a model: errors, scores, windows and label delays, over rows and over time, with what happened to it.

A curve has a point for each row as long as there are few. Of more, each point stands for a bucket of rows, or of time:
its mean, and with it the smallest and the largest value, as a band, so that nothing is hidden.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Floats, Ints, Mask
from headrace.grade.columns import is_numeric
from headrace.log.base import Log
from headrace.plain_values import united, values
from headrace.row_tables import cell
from headrace.ui.read.flows import ALARM, GRADE, PREDICTED, WINDOW, Node
from headrace.ui.read.models import Mark, marks_of
from headrace.ui.read.moment import Moment, slice_at
from headrace.ui.read.relations import Finder

POINTS = 400
MOST_ROWS = 200_000
MOST_ENTRIES = 20_000
MOST_GROUPS = 8
MOST_MARKS = 60
KEPT = 16
COUNTED, COUNTING_SECONDS = 65_536, 2.0
NOT_METRICS = frozenset({"rows", "learned", "window", "model_version"})


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture of curves.

    Attributes:
        names: of the horizontal axis, and of the curves; ``values``: of each, null where there is none.
        bands: pairs of curves between which an area is filled.
        marks: where on the axis something happened.
        time: whether the axis is of seconds since 1970.
    """

    title: str
    names: list[str]
    values: list[list[float | None]]
    bands: list[tuple[int, int]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    time: bool = False
    note: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """Return what a picture is drawn of."""
        return {"names": self.names, "values": self.values, "bands": self.bands, "marks": self.marks, "time": self.time}

    @property
    def rows(self) -> list[tuple[float | None, ...]]:
        """Return the rows of the table that stands beside it."""
        return list(zip(*self.values, strict=True))


@dataclass(frozen=True, slots=True)
class VersionErrors:
    """Errors of the rows that a version predicted."""

    version: int
    rows: int
    mean: float
    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Curves:
    """All curves of a model.

    Attributes:
        pending: predictions that no label has come for; None where that is not known, or not yet.
    """

    charts: list[Chart]
    by_version: list[VersionErrors]
    pending: int | None


class Tables:
    """The newest rows of topics, kept from one look to the next; only what came since is read.

    With them how many predictions had an outcome, all rows counted.
    """

    def __init__(self) -> None:
        self._counted: dict[tuple[Log, str], list[tuple[int, int]]] = {}
        self._kept: OrderedDict[tuple[Log, str, tuple[str, ...]], tuple[int, int, pa.Table]] = OrderedDict()
        self._lock = threading.Lock()

    def newest(self, moment: Moment, topic: str, names: Sequence[str]) -> pa.Table:
        """Return some columns of the newest rows that a topic held, with their offsets as ``__offset``.

        Columns that it does not have are missing.
        """
        info, end = moment.log.topics().get(topic), moment.end(topic)
        if info is None or end <= info.first:
            return pa.table({"__offset": pa.array([], pa.int64())})
        each = max(1, info.rows // max(1, info.entries))
        first = max(info.first, end - min(MOST_ROWS, MOST_ENTRIES * each))
        key = (moment.log, topic, tuple(names))
        with self._lock:
            kept = self._kept.get(key)
        if kept is not None and kept[0] <= first <= kept[1]:
            start, table = kept[1], kept[2]
        else:
            start, table = first, None
        parts = [] if table is None else [table]
        for offset, records in moment.rows(topic, start, end):
            own = [name for name in names if name in records.schema.names]
            numbers = pa.array(np.arange(offset, offset + records.num_rows))
            parts.append(pa.table([numbers, *map(records.column, own)], names=["__offset", *own]))
        table = united(parts) if len(parts) > 1 else parts[0]
        table = table.filter(pc.greater_equal(table.column("__offset"), first)).combine_chunks()
        with self._lock:
            if kept is None or end >= kept[1]:
                self._kept[key] = (first, end, table)
                self._kept.move_to_end(key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return table.filter(pc.less(table.column("__offset"), end))

    def waiting(self, finder: Finder, model: str, topic: str) -> int | None:
        """Return how many predictions had no outcome; None where not all of them are graded, or it takes long."""
        node, moment = finder.flows.writer(topic, GRADE), finder.moment
        source = finder.flows.source(node) if node is not None else None
        predictions = finder.flows.predictions.get(model, ())
        if node is None or not node.direct or source is None or source.kind != PREDICTED or len(predictions) != 1:
            return None
        ended = self._outcomes(moment, topic)
        return None if ended is None else max(0, moment.end(predictions[0]) - ended)

    def _outcomes(self, moment: Moment, topic: str) -> int | None:
        info, end = moment.log.topics().get(topic), moment.end(topic)
        if info is None or not end:
            return 0
        if info.first:
            return None
        with self._lock:
            marks = self._counted.setdefault((moment.log, topic), [(0, 0)])
            at, count = marks[bisect.bisect_right(marks, (end, 2**62)) - 1]
        until = time.monotonic() + COUNTING_SECONDS
        while at < end:
            stop = min(end, (at // COUNTED + 1) * COUNTED)
            count, at = count + sum(_outcomes(records) for _, records in moment.rows(topic, at, stop)), stop
            with self._lock:
                if at % COUNTED == 0 and at > marks[-1][0]:
                    marks.append((at, count))
            if at < end and time.monotonic() > until:
                return None
        return count


def floats(table: pa.Table, name: str) -> Floats:
    """Return a column as numbers, times as seconds; NaN where it has none."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    column = table.column(name)
    if pa.types.is_timestamp(column.type):
        return np.asarray(pc.cast(column, pa.timestamp("us", "UTC")).cast(pa.int64()), np.float64) / 1e6
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean)
    if not is_numeric(table.schema.field(name)) and not any(is_kind(column.type) for is_kind in kinds):
        return np.full(table.num_rows, np.nan)
    try:
        found = pc.cast(column, pa.float64(), safe=False)
    except pa.ArrowException:  # an infinity, as PostgreSQL writes it
        return np.full(table.num_rows, np.nan)
    return np.asarray(pc.fill_null(found, np.nan), np.float64)


def bucketed(x: Floats, y: Floats, *, time: bool = False) -> tuple[Floats, Floats, Floats, Floats]:
    """Return where points stand, their means, smallest and largest values; of few rows these are themselves.

    Args:
        time: buckets are of one length on the axis, else of as many rows.

    >>> [part.tolist() for part in bucketed(np.arange(3.0), np.array([1.0, np.nan, 3.0]))]
    [[0.0, 2.0], [1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]
    """
    sound = np.isfinite(x) & np.isfinite(y)
    x, y = x[sound], y[sound]
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if len(x) <= POINTS:
        return x, y, y, y
    if time:
        edges = np.searchsorted(x, np.linspace(x[0], x[-1], POINTS + 1)[:-1])
        starts = np.unique(edges)
    else:
        starts = np.unique(np.linspace(0, len(x), POINTS + 1)[:-1].astype(np.int64))
    counts = np.diff(np.append(starts, len(x)))
    mean = np.add.reduceat(y, starts) / counts
    return x[starts], mean, np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)


def curves_of(tables: Tables, moment: Moment, model: str, *, time: bool) -> Curves:
    """Return the curves of a model, over rows or over time."""
    finder = Finder(moment)
    marks = [mark for mark in marks_of(finder, model) if mark.kind != "version"][-MOST_MARKS:]
    charts: list[Chart] = []
    errors: list[VersionErrors] = []
    pending: int | None = None
    for topic in [topic for node in finder.flows.of_model(model, GRADE) for topic in node.topics]:
        table = tables.newest(moment, topic, _GRADES)
        place = _Place(finder, topic, table, time=time)
        charts += _grade_charts(topic, table, place, place.marks(marks) + place.versions())
        errors += _by_version(table)
        pending = tables.waiting(finder, model, topic) if pending is None else pending
    for node in finder.flows.of_model(model, WINDOW):
        for topic in node.topics:
            charts += _window_charts(tables, finder, node, topic, marks)
    charts += _score_charts(tables, finder, model, marks, time=time)
    return Curves([chart for chart in charts if len(chart.values[0]) > 1], errors, pending)


_GRADES = ("error", "label_delay", "model_version", "status", "prediction_position", "supersedes", "__ts")


class _Place:
    """Where rows of a topic stand on the axis, and with them what happened then."""

    def __init__(self, finder: Finder, topic: str, table: pa.Table, *, time: bool, column: str = "__ts") -> None:
        self.time, self.name = time, "event time" if time else "row"
        self.x = floats(table, column) if time else floats(table, "__offset")
        self._finder, self._topic, self._table = finder, topic, table
        self._offsets = np.asarray(table.column("__offset"), np.int64)

    def marks(self, marks: Sequence[Mark]) -> list[dict[str, Any]]:
        """Return marks where the first row that came with them, or after them, stands."""
        found = []
        for mark in marks:
            number = mark.slice or slice_at(self._finder.moment.log, mark.ts_us)
            row = int(np.searchsorted(self._offsets, self._finder.begin(self._topic, number)))
            if len(self.x) and (row or self._finder.begin(self._topic, number) >= self._offsets[0]):
                x = self.x[min(row, len(self.x) - 1)]
                if np.isfinite(x):
                    found.append({"x": float(x), "text": mark.kind, "kind": mark.kind, "about": mark.text})
        return found

    def versions(self) -> list[dict[str, Any]]:
        """Return marks where versions of the rows begin."""
        numbers = floats(self._table, "model_version")
        rows = np.flatnonzero(np.isfinite(numbers))
        changes = rows[1:][np.diff(numbers[rows]) != 0] if len(rows) else rows
        return [
            {"x": float(self.x[row]), "text": f"v{numbers[row]:.0f}", "kind": "version",
             "about": f"version {numbers[row]:.0f} predicts"}
            for row in changes[-MOST_MARKS:].tolist()
            if np.isfinite(self.x[row])
        ]  # fmt: skip


def _grade_charts(topic: str, table: pa.Table, place: _Place, marks: list[dict[str, Any]]) -> list[Chart]:
    met = _met(table)
    found = []
    for column, title in (("error", f"Error of each prediction ({topic})"), ("label_delay", "Label delay, in seconds")):
        y = np.where(met, floats(table, column), np.nan)
        found.append(_banded(title, place, y, column, marks if column == "error" else []))
    return found


def _met(table: pa.Table) -> Mask:
    """Return which rows are of a prediction that has met its label."""
    if "status" not in table.column_names:
        return np.ones(table.num_rows, bool)
    known = pc.is_in(table.column("status"), pa.array(["graded", "corrected"]))
    return np.asarray(known, bool)


def _banded(title: str, place: _Place, y: Floats, name: str, marks: list[dict[str, Any]]) -> Chart:
    x, mean, least, most = bucketed(place.x, y, time=place.time)
    note = f"{int(np.isfinite(y).sum()):,} rows"
    if len(x) == int(np.isfinite(y).sum()):
        return Chart(title, [place.name, name], [_plain(x), _plain(mean)], [], marks, place.time, note)
    names = [place.name, f"{name}, mean", "smallest", "largest"]
    columns = [_plain(x), _plain(mean), _plain(least), _plain(most)]
    return Chart(title, names, columns, [(3, 2)], marks, place.time, f"{note}, {len(x)} points")


def _plain(numbers: Floats) -> list[float | None]:
    return [float(f"{number:.10g}") if np.isfinite(number) else None for number in numbers.tolist()]


def _by_version(table: pa.Table) -> list[VersionErrors]:
    errors, numbers = floats(table, "error"), floats(table, "model_version")
    sound = _met(table) & np.isfinite(errors) & np.isfinite(numbers)
    found = []
    for version in np.unique(numbers[sound]).tolist():
        own = errors[sound & (numbers == version)]
        figures = (float(own.mean()), float(np.median(own)), float(own.min()), float(own.max()))
        found.append(VersionErrors(int(version), len(own), *figures))
    return found[::-1]


def _outcomes(records: pa.RecordBatch) -> int:
    """Return how many of some grades are the outcome of a prediction: it has one, whatever corrects it."""
    if "status" not in records.schema.names:
        return 0
    return int(np.count_nonzero(pc.is_in(records.column("status"), pa.array(["graded", "expired"]))))


# -- windows ----------------------------------------------------------------------------------------------------------


def _window_charts(tables: Tables, finder: Finder, node: Node, topic: str, marks: Sequence[Mark]) -> list[Chart]:
    """Return the aggregates of windows that are numbers, each with a curve for every group."""
    spec = node.spec if isinstance(node.spec, dict) else {}
    names = [name for name, _ in spec.get("aggregates") or ()]
    table = tables.newest(finder.moment, topic, ["window_end", "final", *node.by, *names])
    if "final" in table.column_names:
        table = table.filter(pc.equal(table.column("final"), True))
    place = _Place(finder, topic, table, time=True, column="window_end")
    shown = place.marks([mark for mark in marks if mark.kind != "training"])
    groups = _groups(table, node.by)
    charts = []
    for name in names:
        y = floats(table, name)
        if np.isfinite(y).any():
            bounds = _bounds(finder, node, name)
            charts.append(_grouped(f"{name} of windows ({topic})", place, y, name, groups, shown, bounds))
    return charts


def _groups(table: pa.Table, by: Sequence[str]) -> dict[str, Mask]:
    """Return which rows are of which group, those with most rows first."""
    if not by:
        return {"": np.ones(table.num_rows, bool)}
    columns = [values(table.column(name)) if name in table.column_names else [None] * table.num_rows for name in by]
    texts = np.array([", ".join(map(cell, row)) for row in zip(*columns, strict=True)], object)
    names, counts = np.unique(texts.astype(str), return_counts=True) if len(texts) else (np.array([]), np.array([]))
    order: Ints = np.argsort(-counts, kind="stable")[:MOST_GROUPS]
    return {str(names[i]): texts == names[i] for i in order.tolist()}


def _bounds(finder: Finder, node: Node, name: str) -> list[tuple[str, float]]:
    """Return the bounds that alarms have for a column."""
    found = []
    for alarm in finder.flows.below(node, ALARM):
        for side in ("above", "below"):
            bound = alarm.spec.get(side) if alarm.spec.get("column") == name else None
            if bound is not None:
                found.append((f"alarm {side}", float(bound)))
    return found


def _grouped(
    title: str,
    place: _Place,
    y: Floats,
    name: str,
    groups: dict[str, Mask],
    marks: list[dict[str, Any]],
    bounds: Sequence[tuple[str, float]],
) -> Chart:
    """Return a curve for each group on one axis, and a level for each bound."""
    parts = {group: bucketed(place.x[mask], y[mask], time=True) for group, mask in groups.items()}
    axis = np.unique(np.concatenate([part[0] for part in parts.values()])) if parts else np.empty(0)
    names, columns = [place.name], [_plain(axis)]
    bands: list[tuple[int, int]] = []

    def spread(x: Floats, numbers: Floats) -> list[float | None]:
        found = np.full(len(axis), np.nan)
        found[np.searchsorted(axis, x)] = numbers
        return _plain(found)

    for group, (x, mean, least, most) in parts.items():
        names.append(group or name)
        columns.append(spread(x, mean))
        if len(x) < int(np.isfinite(y[groups[group]]).sum()) and len(parts) == 1:
            bands.append((len(names) + 1, len(names)))
            names += ["smallest", "largest"]
            columns += [spread(x, least), spread(x, most)]
    for text, bound in bounds:
        names.append(text)
        columns.append([bound] * len(axis))
    return Chart(title, names, columns, bands, marks, True, f"{int(np.isfinite(y).sum()):,} windows")


# -- scores -----------------------------------------------------------------------------------------------------------


def _score_charts(tables: Tables, finder: Finder, model: str, marks: Sequence[Mark], *, time: bool) -> list[Chart]:
    """Return the metrics of each stream that a model is scored on, over rows scored or time."""
    topic = f"{model}-metrics"
    info = finder.moment.log.topics().get(topic)
    entries = [] if info is None else finder.moment.log.read_topic(topic, offset=max(info.first, info.end - 1), limit=1)
    if not entries:
        return []
    metrics = [column.name for column in entries[-1].records.schema
               if pa.types.is_floating(column.type) and column.name not in NOT_METRICS]  # fmt: skip
    table = tables.newest(finder.moment, topic, ["stream", "rows", "learned", "model_version", "__ts", *metrics])
    streams = values(table.column("stream")) if "stream" in table.column_names else []
    charts = []
    for stream in dict.fromkeys(streams):
        own = table.filter(pc.equal(table.column("stream"), stream))
        place = _Place(finder, topic, own, time=time)
        if not time:
            # Of a set that is fixed, what moves is how much was learned.
            fixed = len(set(floats(own, "rows").tolist())) == 1
            place.name = "rows learned" if fixed else "rows scored"
            place.x = floats(own, "learned" if fixed else "rows")
        shown = place.marks(marks) + place.versions()
        for metric in [name for name in metrics if not name.startswith("window_")]:
            charts.append(_score_chart(stream, metric, own, place, shown))
    return charts


def _score_chart(stream: str, metric: str, own: pa.Table, place: _Place, marks: list[dict[str, Any]]) -> Chart:
    """Return a metric over all rows, and over the newest ones."""
    pick: Callable[[str], tuple[Floats, ...]] = lambda name: bucketed(place.x, floats(own, name), time=place.time)  # noqa: E731
    x, mean, _, _ = pick(metric)
    newest_x, newest, least, most = pick(f"window_{metric}")
    axis = np.unique(np.concatenate([x, newest_x]))

    def spread(at: Floats, numbers: Floats) -> list[float | None]:
        found = np.full(len(axis), np.nan)
        found[np.searchsorted(axis, at)] = numbers
        return _plain(found)

    names = [place.name, f"{metric}, all rows", "newest rows"]
    columns = [_plain(axis), spread(x, mean), spread(newest_x, newest)]
    bands: list[tuple[int, int]] = []
    if not np.array_equal(least, most):
        names += ["smallest", "largest"]
        columns += [spread(newest_x, least), spread(newest_x, most)]
        bands.append((4, 3))
    return Chart(f"{metric} of {stream}", names, columns, bands, marks, place.time, f"{own.num_rows:,} lines")
