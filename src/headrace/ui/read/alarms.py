"""Alarms and drifts, as pages show them: what, when, why, how often, and what came of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.batch import Batch
from headrace.errors import LogError
from headrace.ui.read.flows import ALARM, DRIFT, Node
from headrace.ui.read.moment import Moment
from headrace.ui.read.relations import Finder, Link, found_row, training_text, why_text

LISTED = 200


@dataclass(frozen=True, slots=True)
class AlarmLine:
    """An alarm.

    Attributes:
        ts_us: its event time; ``logged_us``: when it came into the log.
        trainings: what it brought about.
    """

    topic: str
    offset: int
    ts_us: int
    logged_us: int
    why: str
    group: str
    trainings: list[Link] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Reason:
    """Alarms of one kind.

    Attributes:
        about: the condition; ``group``: of which group of rows, where they are told apart.
        count: how often it was raised; of the newest `LISTED` alarms of its topic.
        newest: its newest alarms, the newest first.
    """

    topic: str
    about: str
    group: str
    model: str | None
    count: int
    newest: list[AlarmLine]


def reasons_of(moment: Moment) -> tuple[list[Reason], list[str]]:
    """Return alarms grouped by reason, that of the newest alarm first; and conditions whose alarms go to no topic."""
    finder = Finder(moment)
    found: list[Reason] = []
    silent = []
    for node in finder.flows.alarms():
        if not node.topics:
            silent.append(f"{node.task}: {node.about}")
        for topic in node.topics:
            groups: dict[str, list[AlarmLine]] = {}
            for alarm in _newest(finder, node, topic):
                groups.setdefault(alarm.group, []).append(alarm)
            model = finder.flows.model_above(node)
            groups = groups or {"": []}
            found += [Reason(topic, node.about, of, model, len(lines), lines[:20]) for of, lines in groups.items()]
    found.sort(key=lambda reason: reason.newest[0].logged_us if reason.newest else 0, reverse=True)
    return found, silent


def _newest(finder: Finder, node: Node, topic: str) -> list[AlarmLine]:
    end = finder.moment.end(topic)
    lines = []
    for alarm, logged_us in finder.newest(topic, end, LISTED):
        trainings = [training.link(training_text(training)) for training in finder.trainings_of(alarm, node)]
        group = ", ".join(f"{name} {alarm.values.get(name)}" for name in node.by)
        ts_us = int(Batch(alarm.records).ts_us[0])
        lines.append(AlarmLine(topic, alarm.offset, ts_us, logged_us, why_text(node, alarm.values), group, trainings))
    return lines


def alarm_of(moment: Moment, topic: str, offset: int) -> tuple[Node, str, int]:
    """Return the condition that an alarm was raised by, why it was raised, and its event time.

    Raises:
        LogError: there is no such alarm.
    """
    finder = Finder(moment)
    node = finder.flows.writer(topic, ALARM, DRIFT)
    row = found_row(moment, topic, offset) if node is not None else None
    if node is None or row is None:
        raise LogError(f"«{topic}» holds no alarm {offset}", advice="The page of alarms shows which there are.")
    return node, why_text(node, row.values), int(Batch(row.records).ts_us[0])
