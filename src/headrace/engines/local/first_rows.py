"""Checks of the columns that a plan names: at the start, by what the log holds, and at a topic's first rows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pyarrow as pa

from headrace.errors import DeclarationError, LogError
from headrace.event_log import event
from headrace.inspect.query import Names, empty_topic, query_topics
from headrace.log.base import Log, walk
from headrace.plan.column_checks import check_columns, check_rows
from headrace.plan.columns import Columns, Doubt, told_schema
from headrace.plan.plan import Plan
from headrace.plan.task import ModelTask
from headrace.plan.topic_columns import TopicColumns

logger = logging.getLogger("headrace")

_SAMPLES = 16


def known_in_log(log: Log, topics: Iterable[str], fixed: Collection[str], *, whole: bool = False) -> dict[str, Columns]:
    """Return the columns that topics of the log have had.

    Args:
        topics: those that are asked for; the log may lack some.
        fixed: whose columns stay as they are, as far as this pipeline goes.
        whole: look at all their rows, and not at some from the first to the newest.
    """
    there = log.topics()
    found: dict[str, Columns] = {}
    for topic in topics:
        info = there.get(topic)
        if info is None or not info.rows:
            continue
        if whole:
            schemas = dict.fromkeys(entry.records.schema for entry in walk(log, topic, info.first))
        else:
            offsets = np.unique(np.linspace(info.first, info.end - 1, _SAMPLES).astype(np.int64)).tolist()
            parts = [log.read_topic(topic, offset=offset, limit=1) for offset in offsets]
            schemas = dict.fromkeys(entry.records.schema for part in parts for entry in part)
        found[topic] = Columns(topic, told_schema(list(schemas)), fixed=topic in fixed)
    return found


def check_known(plan: Plan, fixed: Mapping[str, Columns], log: Log, changing: Collection[str]) -> dict[str, Columns]:
    """Check the plan's columns before anything runs; say what is wrong by rows so far where others may come.

    Args:
        fixed: the columns of tables, and of topics whose schemas a registry has.
        changing: topics whose rows come from elsewhere while the pipeline runs: other columns may come with them.

    Returns:
        The columns of topics, as they are known.

    Raises:
        DeclarationError: a column is not there, or of another type than is wanted.
    """
    asked = (set(plan.read) - plan.written.keys()) | set(changing)
    asked -= fixed.keys()
    stay = {topic for topic in asked - set(changing) if not topic.endswith(".dlq")}
    for whole in (False, True):  # before a refusal: some rows may have what those that are looked at first have not
        known = {**known_in_log(log, asked, stay, whole=whole), **fixed}
        try:
            doubts = check_columns(plan, known)
            break
        except DeclarationError:
            if whole:
                raise
    for mistake in doubts:
        say(plan, mistake)
    return known


def check_queries(plan: Plan, known: Mapping[str, Columns], topics: Collection[str]) -> None:
    """Check the SQL that models are trained on, by tables without rows.

    Args:
        known: the columns of topics.
        topics: those that there are.

    Raises:
        DeclarationError: it is wrong, or lacks a column that the model needs.
    """
    columns = TopicColumns(plan, known.get)
    for task in plan.models:
        beginning = "" if task.initial is None else task.initial.query
        again = "" if task.retrain is None else task.retrain.rows.query
        for query, word in ((beginning, "initial=…"), (again, "retrain(rows=…)")):
            if query:
                _check_query(task, query, f"{word} of «{task.name}»", columns, {*topics, *plan.written})


def _check_query(task: ModelTask, query: str, who: str, known: TopicColumns, topics: set[str]) -> None:
    read: list[Columns] = []

    def empty(_: object, topic: str) -> pa.Table:
        read.append(known.of_topic(topic))
        return empty_topic(read[-1].batch().records)

    try:
        schema = query_topics(Names(topics), query, empty).schema
    except LogError as error:
        if any(columns.open for columns in read):  # nobody knows the columns of a topic that it names
            return
        raise DeclarationError(f"{who}: {error.message}", advice=error.advice) from error
    if all(columns.known for columns in read):
        check_rows(task, Columns(f"the query of {who}", schema), (task.target,) if task.target else ())


def say(plan: Plan, mistake: DeclarationError) -> None:
    """Tell people of a mistake by the rows so far."""
    logger.warning(
        "%s. %s The pipeline runs, since rows to come may be others; until then they go to dead letters",
        mistake.message,
        mistake.advice,
        extra=event("declaration_doubted", app=plan.app, advice=mistake.advice),
    )


class FirstRows:
    """Checks topics whose columns nobody knew at the start, when their first rows come; once each.

    Called by the engine's thread.

    Args:
        captured: topics of tables.
        known: the columns of topics, as `check_known` found them.
    """

    def __init__(self, plan: Plan, captured: Collection[str], known: Mapping[str, Columns], log: Log) -> None:
        self._plan = plan
        there = log.topics()
        self._said: set[str] = set()
        self.awaited = {
            topic
            for topic in set(plan.read) - set(captured)
            if topic not in plan.written or topic in plan.appending
            if topic not in there or not there[topic].rows
        }
        # Nothing is refused any more by rows of topics.
        self._known = {
            topic: columns if topic in captured else replace(columns, fixed=False) for topic, columns in known.items()
        }

    def take(self, topic: str, schema: pa.Schema) -> None:
        """Check what the plan wants of a topic that is awaited, by its rows' columns."""
        self.awaited.discard(topic)
        self._known[topic] = Columns(topic, schema, fixed=False)
        try:
            mistakes: list[Doubt] = check_columns(self._plan, self._known)
        except DeclarationError as error:
            mistakes = [Doubt(error.message, advice=error.advice)]
        for mistake in mistakes:
            if mistake.message not in self._said:
                self._said.add(mistake.message)
                say(self._plan, mistake)
