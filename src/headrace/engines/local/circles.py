"""Tables that a pipeline both writes and reads: refused, or left out of capture, before anything runs.

Whether a sink's database is a source's is not read from connection strings: the source's connection holds an advisory
lock of a random number, and the sink's connection sees it or does not. What a write reaches (through views, partitions,
inheritance, foreign keys) is asked of the catalogue.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from headrace.capture.postgres.source import PostgresSource
from headrace.errors import DeclarationError, SinkError
from headrace.event_log import event
from headrace.plan.plan import Plan, SourcePlan
from headrace.plan.sinks import SinkPlan, key_sources
from headrace.plan.task import StreamTask
from headrace.plan.topic_columns import TopicColumns
from headrace.sinks.table import Reach, TableSpec

logger = logging.getLogger("headrace")

WRITABLE = ("", "r", "p", "v")


@dataclass(frozen=True, slots=True)
class End:
    """A table that a sink writes, and the source (if one is) in whose database it lies."""

    sink: SinkPlan
    spec: TableSpec
    reach: Reach
    source: PostgresSource | None
    plan: SourcePlan | None

    def __str__(self) -> str:
        return f"the sink «{self.sink.name}» writes the table {self.reach} ({self.spec.where})"

    @property
    def ours(self) -> bool:
        """Return whether the table is there for the sink: not made yet, or written by it before."""
        return not self.reach.kind or self.reach.known


class Circles:
    """The ends of a plan's table sinks.

    Attributes:
        unseen: sinks whose database could not be asked, and why: `late` is for when it can be.
    """

    def __init__(self, plan: Plan, sources: Sequence[PostgresSource]) -> None:
        self._plan = plan
        self._sources = sources
        self._ends: list[End] = []
        self.unseen: dict[str, SinkError] = {}

    def look(self) -> None:
        """Ask the databases, and leave tables that are ours out of capture: before the sources are checked."""
        sinks = [sink for sink in self._plan.sinks if isinstance(sink.spec, TableSpec)]
        self._ends, self.unseen = self._found(sinks)

    def check(self, columns: TopicColumns) -> None:
        """Refuse what goes in a circle or cannot fit: after the sources were checked.

        Args:
            columns: of topics, as far as they are known before rows come.

        Raises:
            DeclarationError: naming both ends.
        """
        for end in self._ends:
            _refuse(self._plan, end, columns)
        for source in self._sources:
            _check_identities(self._plan, source)

    def late(self, sink: SinkPlan) -> Callable[[], None] | None:
        """Return what to call before a sink is opened whose database could not be asked at the start."""
        if sink.name not in self.unseen:
            return None

        def check() -> None:
            ends, unseen = self._found([sink])
            for error in unseen.values():
                raise error
            for end in ends:
                _refuse(self._plan, end, TopicColumns(self._plan, lambda topic: None))

        return check

    def _found(self, sinks: Iterable[SinkPlan]) -> tuple[list[End], dict[str, SinkError]]:
        ends, unseen = [], dict[str, SinkError]()
        with contextlib.ExitStack() as stack:
            marks: dict[int, PostgresSource] = {}
            if sinks:
                marks = {stack.enter_context(source.marked()): source for source in self._sources}
            for sink in sinks if marks else ():
                spec = sink.spec
                assert isinstance(spec, TableSpec)
                try:
                    reach = spec.reach(self._plan.app, sink.name, sink.stream.topic)
                except SinkError as error:
                    unseen[sink.name] = error
                    continue
                same = [source for mark, source in marks.items() if mark in reach.marks]
                plans = {plan.prefix: plan for plan in self._plan.sources}
                found = [End(sink, spec, reach, source, plans[source.name]) for source in same]
                for end in found:
                    _leave_out(end)
                ends += found or [End(sink, spec, reach, None, None)]
        return ends, unseen


def _leave_out(end: End) -> None:
    """Leave a table out that the sink makes or has made, where the source's patterns match it by the way."""
    if end.source is None or end.plan is None or not end.plan.matches(str(end.reach)) or not end.ours:
        return
    end.source.leave_out(end.reach.schema, end.reach.name)
    logger.info(
        "%s, which is therefore left out of the tables of source «%s»", end, end.plan.prefix, extra=event("left_out")
    )


def _refuse(plan: Plan, end: End, columns: TopicColumns) -> None:
    if end.reach.kind not in WRITABLE:
        kind = {"f": "a foreign table", "m": "a materialized view"}.get(end.reach.kind, "no table")
        raise DeclarationError(
            f"{end}, which is {kind}: rows and their position cannot be written there in one transaction",
            advice="Name a table, with the connection string of the server that has it.",
        )
    if end.source is not None and end.plan is not None:
        _refuse_circle(plan, end, end.source, end.plan)
    delivered = columns.of_stream(end.sink.stream, str(end))
    lacking = [name for name in delivered.names if name not in end.reach.columns]
    if end.reach.kind and not end.reach.made and lacking:
        listed = ", ".join(lacking)
        raise DeclarationError(
            f"{end}, which is there already and has no column {listed}",
            advice="Headrace adds no columns to a table that it has not made: ALTER TABLE … ADD COLUMN … for each; or "
            "deliver the columns that it has with .select(…); or give the sink a table of its own.",
        )


def _refuse_circle(plan: Plan, end: End, source: PostgresSource, declared: SourcePlan) -> None:
    captured = source.captured
    hit = sorted(table for table in end.reach.touched if table in captured)
    own = (end.reach.schema, end.reach.name)
    if hit:
        other = ".".join(own if own in hit else hit[0])
        through = "" if own in hit else f" and through it {other}"
        raise DeclarationError(
            f"{end}{through}, which source «{source.name}» captures: its rows would come back as input",
            advice="Give the sink a table of its own, or narrow tables=… of the source so that it does not match.",
        )
    topic = f"{declared.prefix}.{end.reach}"
    literal = any(pattern.replace("\\", "").lower() == str(end.reach).lower() for pattern in declared.tables)
    if literal or topic in plan.read:
        raise DeclarationError(
            f"{end}, and the pipeline reads it from source «{source.name}» ({declared.where}): the same table",
            advice=f"Read the topic «{end.sink.stream.topic}» itself, which has the same rows; or another table.",
        )


def _check_identities(plan: Plan, source: PostgresSource) -> None:
    """See that the stream says the key that a row had: else a copy by key cannot follow moved and deleted rows.

    Raises:
        DeclarationError: the replica identity does not tell it.
    """
    identities = source.identities()
    tables = {topic: table for table, topic in source.captured.items()}
    for sink in plan.sinks:
        topic, own = _origin(plan, sink)
        identity = identities.get(topic)
        # Without any identity the server lets no row be updated or deleted.
        if not sink.spec.key or not identity or own is None:
            continue
        if topic != sink.stream.topic and list(sink.spec.key) != own:
            raise DeclarationError(
                f"the sink «{sink.name}» identifies rows of {topic} by another name that «{sink.stream.topic}» has for "
                f"«{own[0]}», under which moved rows are not found",
                advice="Deliver the table's own stream: name the columns with .select(…) right before the sink.",
            )
        unsaid = [name for name in own if name not in identity]
        if unsaid:
            schema, name = tables[topic]
            said = ", ".join(sorted(identity))
            raise DeclarationError(
                f"the sink «{sink.name}» identifies rows of {schema}.{name} by «{unsaid[0]}», but of a row that is "
                f"updated or deleted its replica identity says «{said}» only: moved and deleted rows would stay",
                advice=f'ALTER TABLE "{schema}"."{name}" REPLICA IDENTITY FULL (or DEFAULT, where «{unsaid[0]}» is the '
                f"primary key); or key={sorted(identity)!r}.",
            )


def _origin(plan: Plan, sink: SinkPlan) -> tuple[str, list[str] | None]:
    """Return the topic whose rows a sink's topic repeats, and the columns of it that the sink's key is."""
    made = {
        output.topic: (task.stream, output)
        for task in plan.tasks
        if isinstance(task, StreamTask)
        for output in task.outputs
    }
    topic, operations = sink.stream.topic, sink.stream.operations
    own = key_sources(operations, sink.spec.key)
    while own is not None and topic in made:
        stream, output = made.pop(topic)
        own = key_sources((*stream.operations, *output.operations), own)
        topic = stream.topic
    return topic, own
