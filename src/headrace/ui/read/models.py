"""Models and their versions, as pages show them: now, or as they were at a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import LogError
from headrace.inspect.models import metrics_of, model_rows
from headrace.plain_values import values
from headrace.plan.fingerprint import core
from headrace.registry import models as registry
from headrace.registry.requests import read_requests
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.version_state import newest_scores
from headrace.ui.read.flows import ALARM, DRIFT, GRADE, WINDOW, Flows, Node, flows_of
from headrace.ui.read.moment import Moment
from headrace.ui.read.relations import (
    Finder,
    Link,
    Relation,
    alarm_link,
    trained_links,
    training_text,
    training_topic,
    versions_of,
    why_text,
)
from headrace.ui.read.states import step_then

LISTED = 200
ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model in the list; what is not known of an earlier moment is None."""

    name: str
    version: int
    position: str | None
    learned: int | None
    predicted: int | None
    waiting: int | None
    versions: int
    tags: dict[str, int]
    hash: str | None
    diverged: str = ""


def model_lines(moment: Moment, flows: Flows) -> list[ModelLine]:
    """Return the models that there were."""
    if moment.live:
        return [
            ModelLine(
                row["model"], row["version"], row["position"], row["rows"], row["predicted"], row["pending"],
                row["versions"], row["tags"], row["hash"], row["diverged"],
            )
            for row in model_rows(moment.log)
        ]  # fmt: skip
    found = []
    for name in moment.log.records("model"):
        versions = versions_of(moment, name)
        if versions.current is None:
            continue
        topics = flows.predictions.get(name, ())
        predicted = moment.end(topics[0]) if topics else None
        position = position_then(moment, flows, name)
        number, tags = versions.current.version, versions.tags
        found.append(ModelLine(name, number, position, None, predicted, None, len(versions), tags, None))
    return found


def position_then(moment: Moment, flows: Flows, model: str) -> str | None:
    """Return the position that a model had learned up to, as its newest prediction says; None where there is none."""
    for topic in flows.predictions.get(model, ()):
        end = moment.end(topic)
        for _, records in moment.rows(topic, max(0, end - 1), end):
            if "model_position" in records.schema.names:
                position: str | None = values(records.column("model_position"))[-1]
                return position
    return None


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version in the list of its model's.

    Attributes:
        ended_us: None for the one that was there.
        trained: links to the rows that it was trained on; ``training``: to what was told of that.
        scores: metrics in a line.
    """

    number: int
    ts_us: int
    ended_us: int | None
    parent: int | None
    reason: str
    by: str
    rows: int | None
    position: str | None
    hash: str | None
    size: int
    tags: tuple[str, ...]
    kept: bool
    scores: str
    trained: list[Link] = field(default_factory=list)
    training: Link | None = None

    @property
    def current(self) -> bool:
        """Return whether it predicted at the moment."""
        return self.ended_us is None


def version_lines(finder: Finder, model: str, numbers: Sequence[int] = ()) -> list[VersionLine]:
    """Return versions of a model, the newest first, at most `LISTED`.

    Args:
        numbers: those that are wanted; none: the newest.
    """
    versions = finder.versions(model)
    wanted = [version for version in versions if not numbers or version.version in numbers]
    return [_version_line(finder, version, versions) for version in reversed(wanted[-LISTED:])]


def _version_line(finder: Finder, version: VersionRecord, versions: VersionList) -> VersionLine:
    moment = finder.moment
    ended, rows = version.ended_us, None
    if ended is None and not moment.live:
        step = step_then(moment, version.model)
        position, known = (None, None) if step is None else (step.position, step.hash)
        if position == version.began.get("position"):
            rows = version.began.get("rows")
    elif ended is None:
        progress = registry.read_progress(moment.log, version.model) or registry.Progress()
        rows, position, known = progress.model_rows, progress.position, progress.hash
    else:
        rows, position, known = version.rows, version.position, version.hash
    told = finder.training_of(version)
    return VersionLine(
        version.version,
        version.ts_us,
        ended,
        version.parent,
        version.reason,
        version.by,
        rows,
        position,
        known,
        version.size,
        tuple(version.tags),
        version.kept,
        scores_text(version.metrics) if ended is not None else "",
        trained_links(version),
        None if told is None else told.link(training_text(told)),
    )


def scores_text(metrics: dict[str, Any]) -> str:
    """Return metrics by streams in a line.

    >>> scores_text({"test": {"rows": 9, "accuracy": 0.75, "labels": []}})
    'test: accuracy 0.75'
    """
    lines = []
    for stream, figures in metrics.items():
        if isinstance(figures, dict):
            own = {name: value for name, value in metrics_of(figures).items() if isinstance(value, int | float)}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in own.items() if not name.startswith("window_"))
            lines.append(f"{stream}: {shown}")
    return "; ".join(lines)


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to a model.

    Attributes:
        kind: ``version``, ``tag``, ``rollback``, ``training``, ``alarm`` or ``drift``.
        ts_us: when it came into the log; ``slice``: the log's slice then, 0 where that is not known.
        parts: of the address of its page.
    """

    kind: str
    ts_us: int
    text: str
    parts: tuple[object, ...] = ()
    slice: int = 0


def marks_of(finder: Finder, model: str) -> list[Mark]:
    """Return what happened to a model, oldest first: versions, tags, rollbacks, trainings, alarms and drifts."""
    marks = [
        Mark(
            ROLLBACK if version.reason.startswith(ROLLBACK) else "version",
            version.ts_us,
            f"version {version.version}, {version.reason}",
            ("models", model, version.version),
        )
        for version in list(finder.versions(model))[-LISTED:]
    ]
    marks += _tag_marks(finder, model)
    topics = finder.moment.log.topics()
    told: list[tuple[str, str, Node | None]] = [("training", training_topic(model), None)]
    for raised in [*finder.flows.of_model(model, ALARM), *finder.flows.of_model(model, DRIFT)]:
        told += [(raised.kind, topic, raised) for topic in raised.topics]
    for kind, topic, node in [each for each in told if each[1] in topics]:
        for row, ts_us in finder.newest(topic, finder.moment.end(topic), LISTED):
            text = training_text(row) if node is None else why_text(node, row.values)
            place = ("topics" if node is None else "alarms", topic, row.offset)
            marks.append(Mark(kind, ts_us, text, place, row.slice))
    return sorted(marks, key=lambda mark: mark.ts_us)


def _tag_marks(finder: Finder, model: str) -> list[Mark]:
    until, marks = finder.moment.ts_us, []
    for version in finder.versions(model):
        for change in version.tagged:
            if until is None or change["ts_us"] <= until:
                told = "is called" if change["given"] else "is no longer called"
                text = f"version {version.version} {told} {change['tag']}"
                marks.append(Mark("tag", change["ts_us"], text, ("models", model, version.version)))
    return marks[-LISTED:]


@dataclass(frozen=True, slots=True)
class Scores:
    """The newest scores of one stream.

    Attributes:
        metrics: name, over all rows, over the newest.
        labels, counts: of a classifier: its confusion matrix; rows are the truth, columns the predictions.
    """

    stream: str
    rows: int
    window: int
    metrics: list[tuple[str, float | None, float | None]]
    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True, slots=True)
class Model:
    """A model's page.

    Attributes:
        declared: what it is declared to be, in pairs.
        parts: topics that it has to do with: what they are, and their names.
        trains: whether it is trained anew; ``selection``: on what; ``shadow``: the new one is tried out first.
        wishes: what its pipeline does when it starts.
    """

    name: str
    line: ModelLine
    versions: list[VersionLine]
    all_versions: int
    trainings: list[tuple[Link, int, Link | None]]
    declared: list[tuple[str, Any]]
    parts: list[tuple[str, list[str]]]
    scores: list[Scores]
    trains: bool
    selection: str = ""
    shadow: bool = False
    wishes: list[str] = field(default_factory=list)


def model_of(moment: Moment, model: str) -> tuple[Model, Finder]:
    """Return a model as it was, and what finds rows that have to do with it.

    Raises:
        LogError: there was none of this name.
    """
    finder = Finder(moment)
    line = next((line for line in model_lines(moment, finder.flows) if line.name == model), None)
    if line is None:
        raise no_model(moment, model)
    found = Model(
        model,
        line,
        version_lines(finder, model),
        len(finder.versions(model)),
        trainings_of(finder, model),
        declared_pairs(finder.versions(model)),
        _parts(finder.flows, model, moment),
        scores_of(moment, model),
        model in finder.flows.trains,
        finder.flows.trains.get(model, ""),
        model in finder.flows.shadows,
        wishes_of(moment, model) if moment.live else [],
    )
    return found, finder


def wishes_of(moment: Moment, model: str) -> list[str]:
    """Return what people have asked for that waits for the pipeline's start, a line each."""
    return [
        f"{wish.action}{f' to version {wish.version}' if wish.version else ''} when its pipeline starts ({wish.by})"
        for wish in read_requests(moment.log)
        if wish.model == model
    ]


def no_model(moment: Moment, model: str) -> LogError:
    """Return the error that there is no such model."""
    known = ", ".join(moment.log.records("model")) or "none"
    then = "" if moment.live else " then"
    return LogError(f"the log has no model «{model}»{then}", advice=f"Its models: {known}.")


def declared_pairs(versions: VersionList) -> list[tuple[str, Any]]:
    """Return how a model's newest version is declared."""
    if versions.current is None:
        return []
    fingerprint = versions.fingerprint(versions.current)
    return [(name, value) for name, value in core(fingerprint).items() if value not in (None, [], {}, "")]


def trainings_of(finder: Finder, model: str, most: int = 20) -> list[tuple[Link, int, Link | None]]:
    """Return what was told of trainings, the newest first, when that was, and the alarm that began each."""
    topic = training_topic(model)
    if topic not in finder.moment.log.topics():
        return []
    end = finder.moment.end(topic)
    found = []
    for row, ts_us in finder.newest(topic, end, most):
        alarm = finder.alarm_of(row, model)
        cause = None if alarm is None else alarm_link(finder, alarm)
        found.append((row.link(training_text(row)), ts_us, cause))
    return found


@dataclass(frozen=True, slots=True)
class Version:
    """A version's page.

    Attributes:
        began: what it began with, in pairs; ``libraries``: under which it learned.
        lineage: it and those that it goes on from, oldest first.
        relations: the training that it came of, what began that, and the rows it was trained on.
    """

    model: str
    line: VersionLine
    began: list[tuple[str, Any]]
    declared: list[tuple[str, Any]]
    libraries: dict[str, str]
    lineage: list[VersionLine]
    relations: list[Relation]
    newest: int


def version_of(moment: Moment, model: str, number: str) -> Version:
    """Return a version of a model, by its number or a tag.

    Raises:
        LogError: there was no such model, or version.
    """
    finder = Finder(moment)
    versions = finder.versions(model)
    if versions.current is None:
        raise no_model(moment, model)
    version = versions.find(number)
    lineage = [each.version for each in versions.lineage(version)]
    fingerprint = versions.fingerprint(version)
    told = finder.training_of(version)
    relations = []
    if told is not None:
        alarm = finder.alarm_of(told, model)
        by = told.values.get("by")
        relations.append(Relation("Why it was trained", [] if alarm is None else [alarm_link(finder, alarm)],
                                  f"{by} asked for it." if by else ""))  # fmt: skip
        relations.append(Relation("Training", [told.link(training_text(told))]))
    links = trained_links(version)
    if version.training:
        chosen = f"{version.training.get('selection')}: {version.training.get('rows'):,} rows"
        relations.append(Relation("Rows that it was trained on", links, chosen))
    return Version(
        model,
        version_lines(finder, model, [version.version])[0],
        [(name, value) for name, value in version.began.items() if value not in (None, {}, "")],
        [(name, value) for name, value in core(fingerprint).items() if value not in (None, [], {}, "")],
        version.libraries,
        version_lines(finder, model, lineage)[::-1],
        relations,
        versions.current.version,
    )


def _parts(flows: Flows, model: str, moment: Moment) -> list[tuple[str, list[str]]]:
    topics = moment.log.topics()
    predictions = flows.predictions.get(model, ())
    found = {
        "predicts": sorted({flows.inputs[topic] for topic in predictions if topic in flows.inputs}),
        "predictions": list(predictions),
        "learns from": sorted({text.partition(" │ ")[0] for text in _inputs(moment, model)} & set(topics)),
        "labels": sorted({flows.labels[topic] for topic in _topics(flows, model, "grade") if topic in flows.labels}),
        "grades": _topics(flows, model, "grade"),
        "windows": _topics(flows, model, "window"),
        "alarms": [*_topics(flows, model, "alarm"), *_topics(flows, model, "drift")],
        "trainings": [training_topic(model)],
        "metrics": [f"{model}-metrics"],
    }
    return [(what, shown) for what, names in found.items() if (shown := [name for name in names if name in topics])]


def _inputs(moment: Moment, model: str) -> list[str]:
    versions = versions_of(moment, model)
    return list(versions.fingerprint(versions.current).get("inputs", [])) if versions.current is not None else []


def topics_of(moment: Moment, model: str) -> dict[str, list[str]]:
    """Return the topics whose rows a model's page changes with.

    They are by what is in them: ``graded`` grades and windows, ``scored`` scores, ``told`` trainings, alarms, drifts.
    """
    flows = flows_of(moment)
    told = [training_topic(model), *_topics(flows, model, ALARM), *_topics(flows, model, DRIFT)]
    graded = [*_topics(flows, model, GRADE), *_topics(flows, model, WINDOW)]
    return {"graded": graded, "scored": [f"{model}-metrics"], "told": told}


def _topics(flows: Flows, model: str, kind: str) -> list[str]:
    return [topic for node in flows.of_model(model, kind) for topic in node.topics]


def scores_of(moment: Moment, model: str) -> list[Scores]:
    """Return the newest scores of each stream that a model was scored on; labels in their own order."""
    found = []
    for line in newest_scores(moment.log, model, end=moment.end(f"{model}-metrics")):
        labels, counts, matrix = line.get("labels") or [], line.get("confusion") or [], []
        if labels and len(counts) == len(labels) ** 2:
            numbers = all(label.lstrip("-").isdigit() for label in labels)
            order = sorted(range(len(labels)), key=lambda i: (int(labels[i]) if numbers else 0, labels[i]))
            matrix = [[int(counts[i * len(labels) + j]) for j in order] for i in order]
            labels = [labels[i] for i in order]
        figures = {name: value for name, value in metrics_of(line).items() if value is not None}
        names = dict.fromkeys(name.removeprefix("window_") for name in figures)
        metrics = [(name, figures.get(name), figures.get(f"window_{name}")) for name in names]
        found.append(Scores(line["stream"], int(line["rows"]), int(line["window"]), metrics, labels, matrix))
    return found


def target_of(moment: Moment, model: str) -> str:
    """Return the column that a model predicts; "" where it has none."""
    known = registry.read_model(moment.log, model)
    return str((known["fingerprint"] if known else {}).get("target") or "")
