"""What a pipeline is declared of: captured databases, topics of others, and streams of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import checked_format
from headrace.inspect.rows import Rows, read_rows
from headrace.pipeline.declared import Declared, Host, Root
from headrace.pipeline.delivered import Delivered
from headrace.pipeline.derivable import Derivable
from headrace.plan.operators import Read
from headrace.plan.plan import SourcePlan, TopicsPlan
from headrace.plan.task import OutputPlan, StreamPlan, check_columns, check_features
from headrace.transform.expressions import Filter, Operation, Select, Transform, WithColumns, check

if TYPE_CHECKING:
    from headrace.dataset import Dataset
    from headrace.learn.features import Feature
    from headrace.pipeline.app import App
    from headrace.pipeline.model import Model


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


class Stream(Derivable, Delivered):
    """Rows of a topic, and what is to be done with them. Every method returns a new stream."""

    def __init__(
        self,
        app: App,
        plan: StreamPlan,
        predicted: tuple[Model, int] | None = None,
        *,
        node: Declared | None = None,
        origin: Root | None = None,
    ) -> None:
        self._app = app
        self._plan = plan
        self._predicted = predicted
        # Derived rows that have no topic yet; or, of a topic, what this app derives its rows from.
        self._node = node
        self._origin = origin

    def _stream_of(self, node: Declared) -> Stream:
        return Stream(self._app, StreamPlan(""), node=node)

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
        output = OutputPlan(topic, self._plan.operations)
        if self._predicted is not None:
            model, number = self._predicted
            model._predicts[number][1].append(output)
            return Stream(self._app, StreamPlan(topic), origin=(model._predicted_node(number), output.operations))
        if self._node is not None:
            self._node.outputs.append(output)
            return Stream(self._app, StreamPlan(topic), origin=(self._node, output.operations))
        self._app._streams.append((StreamPlan(self._plan.topic), output))
        return Stream(self._app, StreamPlan(topic))

    def read(self) -> Rows:
        """The rows that the log holds now, at once."""
        self._refuse_unwritten()
        log, close = self._app._reading()
        try:
            return read_rows(log, self._plan)
        finally:
            if close:
                log.close()

    def dataset(
        self,
        batch_size: int = 64,
        *,
        features: Sequence[str | Feature] | Callable[[Batch], Any] | None = None,
        target: str | None = None,
        group: str | None = None,
        wait: bool = False,
        idle_timeout: str | float | timedelta | None = None,
        start: Literal["earliest", "latest"] | int = "earliest",
        epochs: int = 1,
        shuffle: int | bool | None = None,
        until: Literal["caught-up"] | None = None,
        seed: int = 0,
        drop_remainder: bool = False,
    ) -> Dataset:
        """The rows as batches, in constant memory: ``for X, y in …``, ``model.fit(….keras())``, ``….torch()``.

        The rows are those that a model would learn: inserts and rows of a snapshot, and the update that gives a row its
        label. By default they are the rows that exist when iterating begins; with ``wait`` or ``idle_timeout`` the data
        set is live and goes on as rows arrive. The pipeline may be running, here or elsewhere, or not. On Kafka it may
        be anybody's topic.

        Args:
            batch_size: rows of each batch; the last one of an epoch is smaller.
            features: as for `App.model`. ``X`` has shape (n, d), or (n, *shape) where the only feature is an
                `headrace.image`. Without features a batch is an Arrow record batch.
            target: the column of ``y``; without one a batch is ``X`` alone.
            group: keeps how far it has read under this name: the next data set of the group goes on there, another
                group reads all again. A batch counts as consumed when the next one is asked for or the iteration ends
                by itself: after ``break``, an error or a crash, the batch in hand is given again.
            wait: wait for a topic that is not there yet; without, it is an error.
            idle_timeout: ends a live data set after so long without rows (``"9 s"``, seconds, or a timedelta); also
                the wait for the topic. Without one it goes on for ever.
            start: ``"earliest"``, ``"latest"`` or an offset, where the group has no position. Offsets are the topic's,
                whatever is filtered. A topic that was waited for is read from its first row.
            epochs: how often the rows are given: each time from the same start to where the first epoch ended. A
                group's position moves in the last one.
            shuffle: rows shuffled together: so many, or 10,000 for True; a topic that is not longer is permuted as a
                whole. A group's position then moves by whole buffers. Not for live data sets.
            until: ``"caught-up"``: only the rows that exist when iterating begins (or when the topic is there).
            seed: decides, with the epoch, how rows are shuffled.
            drop_remainder: leave out the smaller batch at the end; a group keeps it for later.

        Raises:
            DeclarationError: the arguments make no sense together.

        >>> import headrace as hr
        >>> app = hr.App("digits", log="memory://")
        >>> app.topic("digits").dataset(batch_size=2, features=["width"], target="label").batch_size
        2
        """
        # What reads topics is not needed for declaring a pipeline.
        from headrace.dataset import Dataset, ReadOptions, shuffle_rows

        self._refuse_unwritten()
        if features is not None and not callable(features):
            features = check_features(features, f"features of a data set of {self._plan.topic}")
            if not features:
                raise DeclarationError("a data set with features=[]", advice="Name columns, or leave features out.")
        options = ReadOptions.of(
            group=group, wait=wait, idle_timeout=idle_timeout, start=start, epochs=epochs, until=until
        )
        return Dataset(
            self._app.plan(),
            self._plan,
            self._app._log_in_memory,
            batch_size,
            features,
            target,
            options,
            shuffle=shuffle_rows(shuffle),
            seed=seed,
            drop_remainder=drop_remainder,
        )

    def _root(self) -> Root:
        """What the rows come from, and what is done to them after that."""
        root = self._derived_from()
        if root is not None:
            return root
        host = self._app._flow(self._plan.topic)
        return host.add(Declared(host, Read(self._plan))), ()

    def _derived_from(self) -> Root | None:
        """What this app derives the rows from, and what is done to them after that; None where a topic gives them."""
        if self._predicted is not None:
            model, number = self._predicted
            return model._predicted_node(number), self._plan.operations
        if self._node is not None:
            return self._node, self._plan.operations
        if self._origin is not None:
            node, operations = self._origin
            return node, (*operations, *self._plan.operations)
        return None

    def _refuse_unwritten(self) -> None:
        if self._predicted is not None:
            raise DeclarationError("predictions are read from their topic", advice='Read app.topic("…") instead.')
        if self._node is not None:
            raise DeclarationError("these rows have no topic", advice="Write them to one first: .to(topic).")

    def _with(self, operation: Operation) -> Stream:
        plan = StreamPlan(self._plan.topic, (*self._plan.operations, operation))
        return Stream(self._app, plan, self._predicted, node=self._node, origin=self._origin)

    def __repr__(self) -> str:
        return f"Stream({self._plan})"


class Flow(Host):
    """Things derived from a topic, without a model."""

    def __init__(self, app: App, name: str) -> None:
        super().__init__(name)
        self.app = app


def topic_name(table: str) -> str:
    """A table's part of its topic's name: other characters than Kafka allows become ``_`` (Debezium).

    >>> topic_name("My Schema.täble")
    'My_Schema.t_ble'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", table)
