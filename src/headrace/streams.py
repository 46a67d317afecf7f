"""What a pipeline is declared of: captured databases, topics of others, and streams of rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from headrace.batch import Batch
from headrace.codec import checked_format
from headrace.errors import DeclarationError
from headrace.plan import OutputPlan, SourcePlan, StreamPlan, TopicsPlan, check_columns
from headrace.rows import Rows, read_rows
from headrace.transform.expressions import Filter, Operation, Select, Transform, WithColumns, check

if TYPE_CHECKING:
    from headrace.app import App
    from headrace.model import Model


class Database:
    """A captured database; ``db["schema.table"]`` is a table's stream of changes."""

    def __init__(self, app: App, source: SourcePlan) -> None:
        self._app = app
        self._source = source

    def __getitem__(self, table: str) -> Stream:
        if "." not in table:
            raise DeclarationError(
                f"«{table}» names no schema", advice=f"Write schema.table, for example public.{table}."
            )
        if not self._source.matches(table):
            raise DeclarationError(
                f"no pattern of source «{self._source.prefix}» matches the table {table}: "
                f"{', '.join(self._source.tables)}",
                advice="Patterns match the whole of schema.table; widen tables=….",
            )
        return Stream(self._app, StreamPlan(f"{self._source.prefix}.{topic_name(table)}"))

    def __repr__(self) -> str:
        return f"Database({self._source.prefix}, {self._source.where})"


class Topics:
    """Debezium's topics; ``topics["schema.table"]`` is a table's stream of changes."""

    def __init__(self, app: App, plan: TopicsPlan) -> None:
        self._app = app
        self._plan = plan

    def __getitem__(self, table: str) -> Stream:
        topic = f"{self._plan.prefix}.{topic_name(table)}"
        if not self._plan.matches(topic):
            raise DeclarationError(
                f"no pattern of «{self._plan.prefix}» matches {table}: {', '.join(self._plan.tables)}",
                advice="Patterns match the whole of schema.table; widen tables=….",
            )
        return Stream(self._app, StreamPlan(topic))

    def __repr__(self) -> str:
        return f"Topics({self._plan.prefix})"


class Stream:
    """Rows of a topic, and what is to be done with them. Every method returns a new stream."""

    def __init__(self, app: App, plan: StreamPlan, predicted: tuple[Model, int] | None = None) -> None:
        self._app = app
        self._plan = plan
        self._predicted = predicted

    def filter(self, expression: Any) -> Stream:
        """Keep rows for which an expression (`pyarrow.compute`, or a function of a Batch) is true."""
        check(expression, "filter")
        return self._with(Filter(expression))

    def select(self, *columns: str, **computed: Any) -> Stream:
        """Keep the named columns, in order, and compute others: ``.select("id", note=hr.text("{id} is new"))``."""
        for name, expression in computed.items():
            check(expression, f"select({name}=…)")
        return self._with(Select(check_columns(columns, "select"), computed))

    def with_columns(self, **computed: Any) -> Stream:
        """Add or replace columns."""
        for name, expression in computed.items():
            check(expression, f"with_columns({name}=…)")
        return self._with(WithColumns(computed))

    def transform(self, function: Callable[[Batch], Batch]) -> Stream:
        """A function of your own, Batch -> Batch, which depends on each row alone."""
        if not callable(function):
            raise DeclarationError(f"transform({function!r}): not a function")
        return self._with(Transform(function))

    def to(self, topic: str, *, format: str | None = None, key_format: str | None = None) -> Stream:
        """Write the rows to a topic; returns that topic's stream.

        Args:
            topic: its name.
            format: how a Kafka log writes it (``"json"``, ``"json+schema"``, ``"avro"``, ``"arrow"``, …); as the app
                says by default.
            key_format: the keys' format, where it is not the values': ``"json"``, ``"json+schema"``, ``"string"``,
                ``"bytes"``, or ``"none"``.
        """
        if not topic or topic != topic.strip():
            raise DeclarationError(f"{topic!r} cannot name a topic")
        if format is not None:
            self._app._formats[topic] = checked_format(format)
        if key_format is not None:
            checked_format(self._app._formats.get(topic, self._app._format), key=key_format)
            self._app._keys[topic] = key_format
        if self._predicted is not None:
            model, number = self._predicted
            model._predicts[number][1].append(OutputPlan(topic, self._plan.operations))
        else:
            self._app._streams.append((StreamPlan(self._plan.topic), OutputPlan(topic, self._plan.operations)))
        return Stream(self._app, StreamPlan(topic))

    def read(self) -> Rows:
        """The rows that the log holds now, at once."""
        if self._predicted is not None:
            raise DeclarationError("predictions are read from their topic", advice='Read app.topic("…") instead.')
        log, close = self._app._reading()
        try:
            return read_rows(log, self._plan)
        finally:
            if close:
                log.close()

    def _with(self, operation: Operation) -> Stream:
        plan = StreamPlan(self._plan.topic, (*self._plan.operations, operation))
        return Stream(self._app, plan, self._predicted)

    def __repr__(self) -> str:
        return f"Stream({self._plan})"


def topic_name(table: str) -> str:
    """A table's part of its topic's name: other characters than Kafka allows become ``_`` (Debezium).

    >>> topic_name("My Schema.täble")
    'My_Schema.t_ble'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", table)
