"""What a row led to, and what it came of: prediction, label, grade, window, alarm, training and version, each a link.

Rows are found by what they have in common: positions (a grade names those of its prediction and of its label), event
times (a window has its start and its end), and values (an alarm is the line that raised it).

Rows of a table, and what is derived of them, are in the order of their positions: a row at a position is found by
halves. Else rows are looked through, from the slice on in which what is sought can have begun: what is close to it
among `LOOKED_AT` rows; a label may come much later, and is sought for `SECONDS`. Where that does not do, a page says
how far it has looked, and leads to the search of the topic, which goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Mask
from headrace.batch import Batch
from headrace.errors import HeadraceError
from headrace.event_time import event_times
from headrace.plain_values import json_texts, rows, values
from headrace.position import Position
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.position_index import entry_of, find_row
from headrace.row_tables import cell
from headrace.serve.models import TAKES_OVER
from headrace.ui.read.flows import ALARM, DRIFT, GRADE, WINDOW, Flows, Node, flows_of
from headrace.ui.read.moment import Moment

LOOKED_AT = 20_000
SECONDS, MORE_SECONDS = 2.0, 0.1
FEWEST_READ, MOST_READ = 1024, 65_536
SHOWN = 50
TRAININGS = 2_000


@dataclass(frozen=True, slots=True)
class Link:
    """A link to a page: the parts of its path, and its query."""

    text: str
    parts: tuple[object, ...]
    query: Mapping[str, object] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """Rows, or what is made of them, that a row has to do with.

    Attributes:
        note: what there is to say besides, or instead.
    """

    title: str
    links: list[Link] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A row that was found.

    Attributes:
        values: of all columns, those of ours included.
        records: the row alone.
    """

    topic: str
    offset: int
    slice: int
    values: dict[str, Any]
    records: pa.RecordBatch

    @property
    def position(self) -> str:
        """Return its position as grades name it."""
        return str(Position(int(self.values.get("__lsn", 0)), int(self.values.get("__index", self.offset))))

    @property
    def own(self) -> dict[str, Any]:
        """Return the columns that are not ours."""
        return {name: value for name, value in self.values.items() if not name.startswith("__")}

    def link(self, about: str = "") -> Link:
        """Return a link to its page."""
        return Link(f"{self.topic} {self.offset:,}", ("topics", self.topic, self.offset), about=about)


def found_row(moment: Moment, topic: str, offset: int) -> Found | None:
    """Return a row of a topic; None where it held none there."""
    if not 0 <= offset < moment.end(topic):
        return None
    entry = entry_of(moment.log, topic, offset)
    if entry is None or entry.offset > offset:
        return None
    records = entry.records.slice(offset - entry.offset, 1)
    return Found(topic, offset, entry.slice, rows(records)[0], records)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A search that has ended before its topic.

    Attributes:
        rows: that were looked at; ``left``: that were not.
    """

    topic: str
    rows: int
    left: int


class Finder:
    """Finds rows that belong to others, at one moment of a log.

    Attributes:
        unfinished: searches that took too long.
    """

    def __init__(self, moment: Moment) -> None:
        self.moment = moment
        self.unfinished: list[Unfinished] = []
        self._ends: float | None = None
        self.flows: Flows = flows_of(moment)
        self._versions: dict[str, VersionList] = {}
        self._trainings: dict[str, dict[int | None, Found]] = {}

    # -- rows ---------------------------------------------------------------------------------------------------------

    def at(self, topic: str, position: str | None, near: Found) -> Found | None:
        """Return the row of a topic at a position.

        Args:
            near: a row that came about when that one did, where the topic is not in the order of positions.
        """
        if not position:
            return None
        place = Position.parse(position)
        offset = find_row(self.moment.log, topic, place, most=LOOKED_AT)
        if offset is not None:
            return found_row(self.moment, topic, offset)
        same = _at_place(place.lsn, place.index)
        earlier = self._before(topic, near.slice, same, 1, within=LOOKED_AT)
        return next(iter(earlier), None) or next(self.after(topic, near.slice, same), None)

    def after(self, topic: str, slice_: int, fits: Callable[[pa.RecordBatch], Mask]) -> Iterator[Found]:
        """Yield rows of a topic that came in a slice or soon after it, oldest first."""
        first, end = self.begin(topic, slice_), self.moment.end(topic)
        yield from self._among(topic, first, min(end, first + LOOKED_AT), fits)

    def ever_after(self, topic: str, slice_: int, fits: Callable[[pa.RecordBatch], Mask], most: int) -> list[Found]:
        """Return rows of a topic that came in a slice or at any time after it, oldest first.

        Args:
            most: of them; when there is one, others are sought for `MORE_SECONDS`.
        """
        begin, end = self.begin(topic, slice_), self.moment.end(topic)
        found: list[Found] = []
        first, size, ends = begin, FEWEST_READ, 0.0
        while first < end and len(found) < most:
            last = min(end, first + size)
            some = list(self._among(topic, first, last, fits))
            if some and not found:
                ends = time.monotonic() + MORE_SECONDS
            found += some
            first, size = last, min(2 * size, MOST_READ)
            if found and time.monotonic() > ends and first > found[0].offset + LOOKED_AT:
                break
            if first < end and self._late():
                if not found:
                    self.unfinished.append(Unfinished(topic, first - begin, end - first))
                break
        return found[:most]

    def _before(
        self,
        topic: str,
        slice_: int,
        fits: Callable[[pa.RecordBatch], Mask],
        most: int,
        *,
        within: int | None = None,
    ) -> list[Found]:
        """Return the newest rows of a topic that came in a slice or earlier, oldest first.

        Args:
            within: so many rows; None: all of them.
        """
        info = self.moment.log.topics().get(topic)
        if info is None:
            return []
        last = min(self.begin(topic, slice_ + 1), self.moment.end(topic))
        begin = info.first if within is None else max(info.first, last - within)
        found: list[Found] = []
        end, size = last, FEWEST_READ
        while end > begin and len(found) < most:
            first = max(begin, end - size)
            found = [*self._among(topic, first, end, fits), *found]
            end, size = first, min(2 * size, MOST_READ)
            if end > begin and self._late():
                if len(found) < most:
                    self.unfinished.append(Unfinished(topic, last - end, end - begin))
                break
        return found[-most:]

    def _late(self) -> bool:
        """Return whether searches have taken long; the time counts from the first one that might."""
        if self._ends is None:
            self._ends = time.monotonic() + SECONDS
        return time.monotonic() > self._ends

    def newest(self, topic: str, end: int, most: int) -> list[tuple[Found, int]]:
        """Return the newest rows of a topic, the newest first, with the times when they came into the log."""
        found = []
        for offset, records in self.moment.rows(topic, max(0, end - most), end):
            entry = entry_of(self.moment.log, topic, offset)
            assert entry is not None
            for row, found_values in enumerate(rows(records)):
                found.append(
                    (Found(topic, offset + row, entry.slice, found_values, records.slice(row, 1)), entry.ts_us)
                )
        return found[::-1]

    def begin(self, topic: str, slice_: int) -> int:
        """Return the offset of the first row that came in a slice or later."""
        later = self.moment.log.read([topic], after=slice_ - 1, limit=1)
        if later:
            return later[0].offset
        info = self.moment.log.topics().get(topic)
        return 0 if info is None else info.end

    def _among(self, topic: str, first: int, end: int, fits: Callable[[pa.RecordBatch], Mask]) -> Iterator[Found]:
        while first < end:
            entries = self.moment.log.read_topic(topic, offset=first, limit=end - first)
            if not entries:
                return
            for entry in entries:
                for row in np.flatnonzero(fits(entry.records)).tolist():
                    offset = entry.offset + row
                    if first <= offset < end:
                        records = entry.records.slice(row, 1)
                        yield Found(topic, offset, entry.slice, rows(records)[0], records)
            first = entries[-1].offset + entries[-1].records.num_rows

    # -- what belongs together ----------------------------------------------------------------------------------------

    def grades_of(self, prediction: Found, model: str) -> list[Found]:
        """Return the grades of a prediction."""
        own = _equal("prediction_position", prediction.position, model=model)
        topics = [topic for node in self.flows.of_model(model, GRADE) for topic in node.topics]
        return [grade for topic in topics for grade in self.ever_after(topic, prediction.slice, own, 5)]

    def windows_of(self, row: Found, node: Node) -> list[Found]:
        """Return the lines of windows that a row of a node fell into."""
        return [
            line
            for window in self._next(node, WINDOW)
            for topic in window.topics
            for line in self.ever_after(topic, row.slice, self._holds(window, row), 5)
        ]

    def alarms_of(self, row: Found, node: Node) -> list[Found]:
        """Return the alarms that a row of a node raised."""
        alarms = [found for kind in (ALARM, DRIFT) for found in self._next(node, kind)]
        topics = [topic for alarm in alarms for topic in alarm.topics]
        return [alarm for topic in topics for alarm in _some(self.after(topic, row.slice, _same_place(row)), 1)
                if _agree(alarm.own, row.own)]  # fmt: skip

    def alarms_over(self, row: Found, node: Node) -> list[Found]:
        """Return the alarms of windows that go to no topic: each is the line of one that a row of a node is in."""
        found = []
        for window in [window for window in self._next(node, WINDOW) if not window.topics]:
            alarms = [alarm for kind in (ALARM, DRIFT) for alarm in self._next(window, kind)]
            for topic in [topic for alarm in alarms for topic in alarm.topics]:
                found += self.ever_after(topic, row.slice, self._holds(window, row), 1)
        return found

    def _next(self, node: Node, kind: str) -> list[Node]:
        """Return nodes of a kind that take the rows of a node, with none of these kinds between."""
        return [other for other in self.flows.below(node, kind) if self.flows.source(other) == node]

    def rows_of(self, line: Found, window: Node) -> list[Found]:
        """Return the newest rows of a window's line, `SHOWN` at the most, oldest first."""
        count = int(line.values.get("rows") or 0)
        fits = self._within(window, line)
        return [
            row
            for topic in self.flows.source_topics(window)
            for row in self._before(topic, line.slice, fits, min(count, SHOWN))
        ]

    def line_of(self, alarm: Found, node: Node) -> Found | None:
        """Return the row that raised an alarm."""
        for topic in self.flows.source_topics(node):
            near = self._before(topic, alarm.slice, _same_place(alarm), 64, within=LOOKED_AT)
            fitting = [line for line in near if _agree(alarm.own, line.own)]
            if fitting:
                return fitting[-1]
        return None

    def trainings_of(self, alarm: Found, node: Node) -> list[Found]:
        """Return what came of the trainings that an alarm began."""
        cause = json_texts(_without_ours(alarm.records))[0]

        def fits(records: pa.RecordBatch) -> Mask:
            return np.array([_caused(text, cause) for text in _column(records, "cause")], bool)

        models = [model for model, begun_by in self.flows.begun_by.items() if begun_by == node]
        return [line for model in models for line in _some(self.after(training_topic(model), alarm.slice, fits), 3)]

    def alarm_of(self, training: Found, model: str) -> Found | None:
        """Return the alarm that began a training."""
        node, cause = self.flows.begun_by.get(model), str(training.values.get("cause") or "")
        for topic in node.topics if node is not None and cause else ():
            near = self._before(topic, training.slice, lambda records: np.ones(records.num_rows, bool), 64, within=64)
            for alarm in reversed(near):
                if _caused(cause, json_texts(_without_ours(alarm.records))[0]):
                    return alarm
        return None

    def training_of(self, version: VersionRecord) -> Found | None:
        """Return what was told of the training that a version came of."""
        model, topic = version.model, training_topic(version.model)
        if not version.training or topic not in self.moment.log.topics():
            return None
        if model not in self._trainings:
            told = [row for row, _ in self.newest(topic, self.moment.end(topic), TRAININGS)]
            took_over = [row for row in told if row.values.get("status") in TAKES_OVER]
            self._trainings[model] = {row.values.get("version"): row for row in took_over}
        return self._trainings[model].get(version.version)

    def versions(self, model: str) -> VersionList:
        """Return the versions of a model that there were."""
        if model not in self._versions:
            self._versions[model] = versions_of(self.moment, model)
        return self._versions[model]

    def _holds(self, window: Node, row: Found) -> Callable[[pa.RecordBatch], Mask]:
        """Return what tells the lines of a window that a row fell into."""
        at = _time_of(row.records, window)

        def fits(records: pa.RecordBatch) -> Mask:
            start, end = (_us(records, name) for name in ("window_start", "window_end"))
            inside = (start <= at) & (at < end)
            if window.spec.get("rows"):  # rows of one commit have one time: their places tell them apart
                inside = (start <= at) & (at <= end) & ~_before(records, row.values)
            return _group(records, window, row.values, np.asarray(inside, bool))

        return fits

    def _within(self, window: Node, line: Found) -> Callable[[pa.RecordBatch], Mask]:
        """Return what tells the rows that a window's line is made of."""
        start, end = (int(_us(line.records, name)[0]) for name in ("window_start", "window_end"))
        by_count = bool(window.spec.get("rows"))

        def fits(records: pa.RecordBatch) -> Mask:
            at = _times(records, window)
            inside = (at >= start) & (at < end)
            if by_count:
                inside = (at >= start) & (at <= end) & (_before(records, line.values) | _same_place(line)(records))
            if "status" in records.schema.names and "grade" in records.schema.names:
                inside &= _equal_any(records, "status", ("graded", "corrected"))
            return _group(records, window, line.values, np.asarray(inside, bool))

        return fits


def training_topic(model: str) -> str:
    """Return the topic in which a model's trainings are told of."""
    return f"{model}-training"


def versions_of(moment: Moment, model: str) -> VersionList:
    """Return the versions of a model that there were, each as it was."""
    found = VersionList.read(moment.log, model)
    return found if moment.ts_us is None else found.then(moment.ts_us)


# -- conditions -------------------------------------------------------------------------------------------------------


def _some(found: Iterable[Found], most: int) -> list[Found]:
    """Return the first few."""
    kept: list[Found] = []
    for row in found:
        kept.append(row)
        if len(kept) == most:
            break
    return kept


def _column(records: pa.RecordBatch, name: str) -> list[Any]:
    return values(records.column(name)) if name in records.schema.names else [None] * records.num_rows


def _equal(name: str, value: str, **others: str) -> Callable[[pa.RecordBatch], Mask]:
    """Return what tells rows with these values."""

    def fits(records: pa.RecordBatch) -> Mask:
        found = _equal_any(records, name, (value,))
        for other, wanted in others.items():
            found &= _equal_any(records, other, (wanted,))
        return found

    return fits


def _equal_any(records: pa.RecordBatch, name: str, wanted: tuple[str, ...]) -> Mask:
    column = records.column(name) if name in records.schema.names else None
    if column is None or not pa.types.is_string(column.type):
        return np.array([value in wanted for value in _column(records, name)], bool)
    return np.asarray(pc.is_in(column, pa.array(wanted, pa.string())), bool)


def _same_place(row: Found) -> Callable[[pa.RecordBatch], Mask]:
    """Return what tells rows at the position of a row: what is derived from one row has its position."""
    return _at_place(row.values.get("__lsn"), row.values.get("__index"))


def _at_place(lsn: int | None, index: int | None) -> Callable[[pa.RecordBatch], Mask]:
    def fits(records: pa.RecordBatch) -> Mask:
        if lsn is None or "__lsn" not in records.schema.names:
            return np.ones(records.num_rows, bool)
        same = np.asarray(records.column("__lsn")) == np.uint64(lsn)
        return np.asarray(same & (np.asarray(records.column("__index")) == index), bool)

    return fits


def _before(records: pa.RecordBatch, row: Mapping[str, Any]) -> Mask:
    """Return which rows have a position before that of a row."""
    if "__lsn" not in records.schema.names or row.get("__lsn") is None:
        return np.zeros(records.num_rows, bool)
    lsn, index = np.asarray(records.column("__lsn"), np.uint64), np.asarray(records.column("__index"), np.int64)
    place = np.uint64(row["__lsn"])
    return np.asarray((lsn < place) | ((lsn == place) & (index < row["__index"])), bool)


def _agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Return whether two rows have the same values in the columns that both have."""
    shared = a.keys() & b.keys()
    return bool(shared) and all(repr(a[name]) == repr(b[name]) for name in shared)


def _caused(text: str | None, cause: str) -> bool:
    """Return whether a training names this cause; what it names may lack columns that operations have added since."""
    if not text or text == cause:
        return text == cause
    try:
        named, row = json.loads(text), json.loads(cause)
    except ValueError:
        return False
    return isinstance(named, dict) and isinstance(row, dict) and _agree(named, row)


def _without_ours(records: pa.RecordBatch) -> pa.RecordBatch:
    return records.select([name for name in records.schema.names if not name.startswith("__")])


def _us(records: pa.RecordBatch, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return a column of times as microseconds; far in the past where there is none."""
    if name not in records.schema.names:
        return np.full(records.num_rows, np.iinfo(np.int64).min)
    times, valid, _ = event_times(Batch.of({"at": records.column(name)}), "at")
    return np.where(valid, times, np.iinfo(np.int64).min)


def _times(records: pa.RecordBatch, window: Node) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the event times of rows as a window takes them."""
    own = window.time if window.time in records.schema.names else None
    return _us(records, own or "__ts")


def _time_of(records: pa.RecordBatch, window: Node) -> int:
    return int(_times(records, window)[0])


def _group(records: pa.RecordBatch, window: Node, row: Mapping[str, Any], among: Mask) -> Mask:
    """Return which of some rows are of the group that a row is of."""
    rows_ = np.flatnonzero(among)
    for name in window.by:
        if len(rows_) and name in row and name in records.schema.names:
            wanted = repr(row[name])
            some = values(records.column(name).take(pa.array(rows_)))
            rows_ = rows_[np.array([repr(value) == wanted for value in some], bool)]
    found = np.zeros(records.num_rows, bool)
    found[rows_] = True
    return found


# -- relations of a row -----------------------------------------------------------------------------------------------


def relations_of(moment: Moment, topic: str, offset: int) -> list[Relation]:
    """Return what a row has to do with."""
    finder = Finder(moment)
    row = found_row(moment, topic, offset)
    if row is None:
        return []
    try:
        found = [relation for relation in _relations(finder, row) if relation.links or relation.note]
        return found + [_unfinished(search) for search in dict.fromkeys(finder.unfinished)]
    except HeadraceError as error:
        return [Relation("Where it belongs", note=f"cannot be found now: {error.message}")]


def _unfinished(search: Unfinished) -> Relation:
    """Return what is said of a search that took too long."""
    note = (
        f"Not found among {search.rows:,} rows; {search.left:,} more were not looked at. Its page searches all of them."
    )
    return Relation("Further away", [Link(search.topic, ("topics", search.topic))], note)


def _relations(finder: Finder, row: Found) -> Iterator[Relation]:
    flows, topic = finder.flows, row.topic
    model = flows.model_of(topic)
    if model is not None:
        yield from _of_prediction(finder, row, model)
    node = flows.writer(topic, GRADE, WINDOW, ALARM, DRIFT)
    if node is not None and node.kind == GRADE:
        yield from _of_grade(finder, row, node)
    elif node is not None and node.kind == WINDOW:
        yield from _of_window(finder, row, node)
    elif node is not None:
        yield from _of_alarm(finder, row, node)
    trained = next((name for name in flows.models if training_topic(name) == topic), None)
    if trained is not None:
        yield from _of_training(finder, row, trained)
    yield from _of_input(finder, row)


def _of_prediction(finder: Finder, row: Found, model: str) -> Iterator[Relation]:
    number = row.values.get("model_version")
    if number is not None:
        yield _maker(finder, model, int(number), row)
    yield from _found("Input", [finder.at(finder.flows.inputs.get(row.topic, ""), row.position, row)])
    graded = finder.flows.of_model(model, GRADE)
    if not graded:
        return
    grades = finder.grades_of(row, model)
    if not any(node.topics for node in graded):
        yield Relation("Grade", note="Grades of this model go to no topic (.to(…)).")
        return
    if not grades:
        yield from _not_graded(finder, row, graded)
        return
    yield Relation("Grade", [grade.link(_grade_text(grade)) for grade in grades])
    yield from _found("Label", [_label(finder, grade) for grade in grades])
    for grade in grades[:1]:
        node = finder.flows.writer(grade.topic, GRADE)
        if node is not None:
            yield from _consequences(finder, grade, node)


def _not_graded(finder: Finder, row: Found, graded: Sequence[Node]) -> Iterator[Relation]:
    topics = {topic for node in graded for topic in node.topics}
    far = [search for search in finder.unfinished if search.topic in topics]
    if not far:
        yield Relation("Grade", note="No label has come yet: it is pending.")
    for search in far:
        finder.unfinished.remove(search)
        sought = {"filter": f"prediction_position = '{row.position}'", "order": "oldest"}
        link = Link(f"search all of {search.topic}", ("topics", search.topic), sought)
        yield Relation("Grade", [link], f"Not among the {search.rows:,} rows that came next.")


def _of_grade(finder: Finder, row: Found, node: Node) -> Iterator[Relation]:
    model = finder.flows.model_above(node)
    if model is not None:
        topics = finder.flows.predictions.get(model, ())
        made = [finder.at(topic, _text(row, "prediction_position"), row) for topic in topics]
        yield from _found("Prediction", [found for found in made if found and "prediction" in found.values])
        if row.values.get("model_version") is not None:
            number = int(row.values["model_version"])
            yield _maker(finder, model, number, row)
    yield from _found("Label", [_label(finder, row)])
    yield from _consequences(finder, row, node)
    if model is not None:
        taught = [version for version in finder.versions(model) if _was_taught(version, row)]
        yield Relation("Versions that were trained on it", [_trained_link(version) for version in taught])


def _label(finder: Finder, grade: Found) -> Found | None:
    return finder.at(finder.flows.labels.get(grade.topic, ""), _text(grade, "label_position"), grade)


def _consequences(finder: Finder, row: Found, node: Node) -> Iterator[Relation]:
    """Yield the windows and alarms that a row fell into."""
    lines = finder.windows_of(row, node)
    if lines:
        yield Relation("Window", [line.link(_span_text(line)) for line in lines])
    alarms = finder.alarms_of(row, node) + finder.alarms_over(row, node)
    for line in lines:
        window = finder.flows.writer(line.topic, WINDOW)
        alarms += finder.alarms_of(line, window) if window is not None else []
    yield Relation("Alarm", [alarm_link(finder, alarm) for alarm in alarms])


def _of_window(finder: Finder, row: Found, node: Node) -> Iterator[Relation]:
    yield _rows_relation(finder, row, node)
    yield Relation("Alarm", [alarm_link(finder, alarm) for alarm in finder.alarms_of(row, node)])


def _rows_relation(finder: Finder, row: Found, window: Node) -> Relation:
    """Return the rows that a window's line is made of."""
    made_of = finder.rows_of(row, window)
    total = int(row.values.get("rows") or len(made_of))
    note = f"The last {len(made_of)} of {total:,} rows" if total > len(made_of) else ""
    graded = any("grade" in line.values for line in made_of)
    return Relation("Grades" if graded else "Rows", [line.link(_row_text(line)) for line in made_of], note)


def _of_alarm(finder: Finder, row: Found, node: Node) -> Iterator[Relation]:
    line = finder.line_of(row, node)
    source = finder.flows.source(node)
    if line is not None:
        title = "Window" if source is not None and source.kind == WINDOW else "Row that raised it"
        yield Relation(title, [line.link(_span_text(line) if title == "Window" else _row_text(line))])
    elif source is not None and source.kind == WINDOW and "window_start" in row.values:
        yield _rows_relation(finder, row, source)
    trainings = finder.trainings_of(row, node)
    if trainings:
        yield Relation("Training", [training.link(training_text(training)) for training in trainings])
        begun = [training for training in trainings if training.values.get("version") is not None]
        links = [_version_link(finder, str(each.values["model"]), int(each.values["version"])) for each in begun]
        yield Relation("New version", links)
    model = finder.flows.model_above(node)
    if model is not None:
        yield Relation("Model", [Link(model, ("models", model))])


def _of_training(finder: Finder, row: Found, model: str) -> Iterator[Relation]:
    alarm = finder.alarm_of(row, model)
    by = row.values.get("by")
    yield Relation("Begun by", [] if alarm is None else [alarm_link(finder, alarm)], f"{by} asked for it" if by else "")
    number = row.values.get("version")
    version = finder.versions(model).versions.get(int(number)) if number is not None else None
    if version is not None:
        yield Relation("New version", [_version_link(finder, model, version.version)])
        yield Relation(
            "Rows that it was trained on", trained_links(version), str(version.training.get("selection") or "")
        )
    if row.values.get("previous") is not None:
        yield Relation("Version before", [_version_link(finder, model, int(row.values["previous"]))])


def _of_input(finder: Finder, row: Found) -> Iterator[Relation]:
    """Yield predictions of a row, and grades that it was the label of."""
    predicted = [
        finder.at(topic, row.position, row) for topic, source in finder.flows.inputs.items() if source == row.topic
    ]
    found = [each for each in predicted if each is not None and "prediction" in each.values]
    yield Relation("Prediction", [each.link(_row_text(each)) for each in found])
    graded = [topic for topic, labels in finder.flows.labels.items() if labels == row.topic]
    fits = _equal("label_position", row.position)
    grades = [grade for topic in graded for grade in finder.ever_after(topic, row.slice, fits, 5)]
    yield Relation("Grade", [grade.link(_grade_text(grade)) for grade in grades])


# -- texts ------------------------------------------------------------------------------------------------------------


def _found(title: str, found: Iterable[Found | None]) -> Iterator[Relation]:
    links = [row.link() for row in found if row is not None]
    if links:
        yield Relation(title, links)


def _text(row: Found, name: str) -> str:
    return str(row.values.get(name) or "")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else cell(value)


def _grade_text(grade: Found) -> str:
    parts = [_text(grade, "status")]
    if grade.values.get("error") is not None:
        parts.append(f"error {_number(grade.values['error'])}")
    if grade.values.get("label_delay") is not None:
        parts.append(f"label {grade.values['label_delay']:g} s later")
    return ", ".join(part for part in parts if part)


def _row_text(row: Found) -> str:
    if "grade" in row.values:
        return f"{_keys(row)}{_grade_text(row)}"
    if "prediction" in row.values:
        return f"predicted {_number(row.values['prediction'])}"
    return ""


def _keys(row: Found) -> str:
    """Return the first column of a row, which people most often know it by."""
    names = [name for name in row.own if name.lower().endswith("id")]
    return f"{names[0]} {cell(row.values[names[0]])}, " if names else ""


def _span_text(line: Found) -> str:
    times = [
        cell(line.values[name]).removesuffix("+00:00") for name in ("window_start", "window_end") if name in line.values
    ]
    return " to ".join(times)


def training_text(row: Found) -> str:
    """Return what came of a training, in a line."""
    number = row.values.get("version")
    what = _text(row, "status") + (f" version {number}" if number is not None else "")
    rows_ = row.values.get("rows")
    on = f" on {rows_:,} rows" if rows_ is not None else ""
    chosen = f" ({row.values['selection']})" if row.values.get("selection") else ""
    reason = f": {row.values['reason']}" if row.values.get("reason") else ""
    return f"{what}{on}{chosen}{reason}"


def why_text(node: Node, values: Mapping[str, Any]) -> str:
    """Return why an alarm was raised: the value, and its bound."""
    spec = node.spec if isinstance(node.spec, Mapping) else {}
    column = str(spec.get("column") or "")
    shown = f"{column} {_number(values.get(column))}"
    if node.kind == DRIFT:
        before, after = values.get("mean_before"), values.get("mean_after")
        moved = f", mean from {_number(before)} to {_number(after)}" if after is not None else ""
        return f"{column} has drifted ({values.get('detector') or spec.get('detector')}{moved})"
    above, below, value = spec.get("above"), spec.get("below"), values.get(column)
    too_low = below is not None and isinstance(value, int | float) and value < below
    bound = f"below {below:g}" if too_low else f"above {above:g}" if above is not None else ""
    return f"{shown} is {bound}" if bound else shown


def alarm_link(finder: Finder, alarm: Found) -> Link:
    node = finder.flows.writer(alarm.topic, ALARM, DRIFT)
    about = why_text(node, alarm.values) if node is not None else ""
    return Link(f"{alarm.topic} {alarm.offset:,}", ("alarms", alarm.topic, alarm.offset), about=about)


def _version_link(finder: Finder, model: str, number: int, position: str | None = None) -> Link:
    version = finder.versions(model).versions.get(number)
    about = [] if version is None else [version.reason]
    about += [f"had learned up to {position}"] if position else []
    return Link(f"{model}, version {number}", ("models", model, number), about=", ".join(about))


def _maker(finder: Finder, model: str, number: int, row: Found) -> Relation:
    made_by = _version_link(finder, model, number, row.values.get("model_position"))
    return Relation("Made by", [made_by, Link(model, ("models", model), about="its versions, trainings and errors")])


def _trained_link(version: VersionRecord) -> Link:
    return Link(
        f"{version.model}, version {version.version}", ("models", version.model, version.version), about=version.reason
    )


def _was_taught(version: VersionRecord, row: Found) -> bool:
    training, number = version.training, row.values.get("grade")
    if training.get("topic") != row.topic or number is None:
        return False
    return any(first <= number <= last for first, last in training.get("grades") or ())


def trained_links(version: VersionRecord) -> list[Link]:
    """Return links to the rows that a version was trained on, where they are known by their numbers."""
    topic = version.training.get("topic")
    return [
        Link(f"{topic} {first:,} to {last:,}", ("topics", topic), {"offset": last}, f"{last - first + 1:,} rows")
        for first, last in version.training.get("grades") or ()
        if topic
    ]
