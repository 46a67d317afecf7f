"""What a pipeline is declared of: captured databases, topics of others, and streams of rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.batch import Batch
from headrace.codec import checked_format
from headrace.declared import Declared, Host, Root
from headrace.delivered import Delivered
from headrace.errors import DeclarationError
from headrace.flow import Alarms, Drifts, Grade, Predicted, Read
from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.drift import DriftSpec, refuse_unrepeatable
from headrace.grade.metrics import Metric, absolute_error, as_metric, incorrect
from headrace.learn.base import scored_as
from headrace.plan import SourcePlan, TopicsPlan
from headrace.rows import Rows, read_rows
from headrace.task import OutputPlan, StreamPlan, check_columns, check_features
from headrace.transform.expressions import Filter, Operation, Select, Transform, WithColumns, check
from headrace.windows import Windowed, microseconds, window_spec

if TYPE_CHECKING:
    from headrace.app import App
    from headrace.dataset import Dataset
    from headrace.learn.features import Feature
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


class Stream(Delivered):
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

    @classmethod
    def _derived(cls, app: App, node: Declared) -> Stream:
        return cls(app, StreamPlan(""), node=node)

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
        from headrace.dataset import Dataset, Reading, shuffle_rows

        self._refuse_unwritten()
        if features is not None and not callable(features):
            features = check_features(features, f"features of a data set of {self._plan.topic}")
            if not features:
                raise DeclarationError("a data set with features=[]", advice="Name columns, or leave features out.")
        reading = Reading.of(group=group, wait=wait, idle_timeout=idle_timeout, start=start, epochs=epochs, until=until)
        return Dataset(
            self._app,
            self._plan,
            batch_size,
            features,
            target,
            reading,
            shuffle=shuffle_rows(shuffle),
            seed=seed,
            drop_remainder=drop_remainder,
        )

    # -- what is derived ------------------------------------------------------------------------------------------

    def grade(
        self,
        truth: Stream,
        *,
        on: str | Sequence[str] | tuple[str, str],
        within: str | timedelta,
        metric: Any = None,
        time: str | tuple[str | None, str | None] | None = None,
        lateness: str | timedelta | None = None,
        round: int | None = None,
        target: str | None = None,
        limit: int = 2_000_000,
    ) -> Stream:
        """Compare predictions with the truth, which comes later, or earlier: one row for each outcome.

        A prediction waits for the label of its key until ``within`` is over, by the event times of both streams. The
        column ``status`` says what came of it: ``graded``; ``corrected`` (the label was changed; ``supersedes`` names
        the earlier ``grade``); ``expired`` (no label came); of a label ``late`` (it came after that) and ``orphan``
        (nothing was predicted). An outcome has the columns of the prediction as the model made it, the truth under the
        target's name, the label's other columns, ``error``, ``label_delay`` in seconds, and the positions of both rows.

        Args:
            truth: the stream of labels: a table's, or a topic's.
            on: the column both sides share; several in a list. ``{"left": …, "right": …}`` where names differ.
            within: how far apart both may be, inclusive (ksqlDB's ``WITHIN``).
            metric: of `headrace.metrics`, or a function (prediction, truth) -> array. By default the absolute error,
                for classifiers whether the answer was incorrect.
            time: column of event times, or one for each side in a tuple; ``"arrival"``: when the log took the row in.
                By default when the row was committed.
            lateness: how long rows may come out of order.
            round: digits of ``error``.
            target: the label's column; the model's own by default.
            limit: how many rows may wait on each side; beyond that the oldest expire.
        """
        root = self._graded_root()
        source, operations = root
        model = getattr(source.host, "model", None)
        target = target or (model._target if model is not None else None)
        if target is None:
            raise DeclarationError("grade(…) does not know which column is the truth", advice='Say target="…".')
        if not isinstance(truth, Stream) or truth._predicted is not None or truth._node is not None:
            raise DeclarationError("grade(…) wants a stream of labels", advice="Give a topic's or a table's stream.")
        if limit < 1:
            raise DeclarationError(f"limit={limit}", advice="Give a positive number of rows.")
        left, right = _sides(on)
        times = time if isinstance(time, tuple) else (time, time)
        compare = CompareSpec(
            target=target,
            on_left=left,
            on_right=right,
            metric=as_metric(metric) if metric is not None else _metric_of(model),
            round=round,
        )
        late = 0 if lateness is None else microseconds(lateness, "lateness")
        what = Grade(truth._plan, microseconds(within, "within"), compare, late, limit, times)
        declared = Declared(source.host, what, source, operations, value="error")
        return Stream._derived(self._app, source.host.add(declared))

    def window(
        self,
        size: str | int | timedelta,
        *,
        every: str | int | timedelta | None = None,
        lateness: str | timedelta | None = None,
        by: str | Sequence[str] = (),
        time: str | None = None,
        emit: Literal["final", "changes"] = "final",
    ) -> Windowed:
        """Windows of event time, aligned to 1970-01-01 UTC, or over the newest rows: ``window("1 min").mean("error")``.

        Args:
            size: a duration, or a number of rows.
            every: a duration between the starts of windows that overlap; of rows: how many between two lines.
            lateness: how long a window stays open for rows that come out of order.
            by: columns; each group has windows of its own.
            time: a column of event times; the rows' own by default, which of a grade is that of the later row.
            emit: ``"final"``: one line when a window is over, which is when a row past its end comes; ``"changes"``: a
                line whenever it changes, too.
        """
        return Windowed(self._root(), window_spec(size, every=every, lateness=lateness, by=by, emit=emit), time)

    def above(self, x: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None) -> Stream:
        """Rows whose value is above a limit: an alarm each.

        Args:
            x: the limit.
            column: of what; where a window has just one number, that one.
            consecutive: so many rows in a row must be above it.
            cooldown: after an alarm so many rows, or so long a time, raise none; 0: all may. By default the length of a
                window after an alarm of windows, since predictions of the old model are still being graded.
        """
        return self._alarm(column, consecutive, cooldown, above=x)

    def below(self, x: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None) -> Stream:
        """Rows whose value is below a limit, as for `above`."""
        return self._alarm(column, consecutive, cooldown, below=x)

    def outside(
        self, a: float, b: float, *, column: str | None = None, consecutive: int = 1, cooldown: Any = None
    ) -> Stream:
        """Rows whose value is below ``a`` or above ``b``, as for `above`."""
        if a > b:
            raise DeclarationError(f"outside({a}, {b}): nothing is between", advice="Give the smaller one first.")
        return self._alarm(column, consecutive, cooldown, below=a, above=b)

    def drift(self, column: str, detector: Any, *, by: str | Sequence[str] = (), cooldown: Any = 0) -> Stream:
        """Rows at which a drift detector of River says that a column has changed: an alarm each.

        Args:
            column: of numbers.
            detector: such as ``river.drift.ADWIN()``; it is copied, never changed. KSWIN needs a seed.
            by: columns; each group has a detector of its own.
            cooldown: as for `above`.
        """
        groups = (by,) if isinstance(by, str) else tuple(by)
        rows, span = _cooldown(cooldown, None)
        try:
            refuse_unrepeatable(detector)
        except ValueError as error:
            raise DeclarationError(f"drift(«{column}»): {error}") from error
        source, operations = self._root()
        what = Drifts(DriftSpec(column, detector, groups, rows, span))
        return Stream._derived(self._app, source.host.add(Declared(source.host, what, source, operations)))

    def last(self, rows: int) -> Rowset:
        """The newest rows, to train on; of grades those that have a truth."""
        if rows < 1:
            raise DeclarationError(f"last({rows})", advice="Give a positive number of rows.")
        return Rowset(self, "last", rows=rows)

    def since(self, span: str | timedelta) -> Rowset:
        """The rows of so long before now, to train on."""
        return Rowset(self, "since", span_us=microseconds(span, "since"))

    def all(self) -> Rowset:
        """All rows of a table as they are now, to train on."""
        self._refuse_unwritten()
        return Rowset(self, "all")

    def _alarm(self, column: str | None, consecutive: int, cooldown: Any, **limits: float) -> Stream:
        source, operations = self._root()
        name = column or source.value
        if name is None:
            raise DeclarationError("an alarm on rows of many columns", advice='Say which: column="…".')
        if consecutive < 1:
            raise DeclarationError(f"consecutive={consecutive}", advice="Give a positive number of rows.")
        rows, span = _cooldown(cooldown, source)
        spec = AlarmSpec(name, consecutive=consecutive, cooldown_us=span, cooldown_rows=rows, by=source.by, **limits)
        declared = Declared(source.host, Alarms(spec), source, operations, value=name, by=source.by)
        return Stream._derived(self._app, source.host.add(declared))

    def _root(self) -> Root:
        """What the rows come from, and what is done to them after that."""
        if self._predicted is not None:
            model, number = self._predicted
            return model._predicted_node(number), self._plan.operations
        if self._node is not None:
            return self._node, self._plan.operations
        if self._origin is not None:
            node, operations = self._origin
            return node, (*operations, *self._plan.operations)
        host = self._app._flow(self._plan.topic)
        return host.add(Declared(host, Read(self._plan))), ()

    def _graded_root(self) -> Root:
        """What is compared: a model's answers as they were made, or predictions in a topic."""
        source, operations = self._root()
        if isinstance(source.what, Read):
            return source, operations
        if isinstance(source.what, Predicted):
            if any(not isinstance(one, Select | WithColumns) for one in operations):
                raise DeclarationError(
                    "predictions are filtered before they are graded",
                    advice="Filter the rows before predict, or grade all and filter the grades.",
                )
            return source, ()
        raise DeclarationError("grade(…) wants predictions", advice="Grade model.predict(stream), or its topic.")

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


class Rowset:
    """Rows to train on, as they are when a training begins."""

    def __init__(self, stream: Stream, kind: str, *, rows: int = 0, span_us: int = 0) -> None:
        self.stream, self.kind, self.rows, self.span_us = stream, kind, rows, span_us


def app_of(declared: Declared) -> App:
    """The app that runs it."""
    host: Any = declared.host
    return host.app  # type: ignore[no-any-return]  # both kinds of host have one


class Flow(Host):
    """Things derived from a topic, without a model."""

    def __init__(self, app: App, name: str) -> None:
        super().__init__(name)
        self.app = app


def _sides(on: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(on, dict):
        if set(on) != {"left", "right"}:
            raise DeclarationError(f"on={on!r}", advice='Give a column, or {"left": …, "right": …}.')
        left, right = check_columns(on["left"], "on"), check_columns(on["right"], "on")
        if len(left) != len(right):
            raise DeclarationError(f"on={on!r}: both sides need as many columns")
        return left, right
    names = check_columns(on, "on")
    if not names:
        raise DeclarationError("on=[] finds no label", advice="Name the column that both sides share.")
    return names, names


def _metric_of(model: Model | None) -> Metric:
    classifies = model is not None and scored_as(model._learner) == "classification"
    return incorrect if classifies else absolute_error


def _cooldown(given: Any, source: Declared | None) -> tuple[int, int]:
    """Rows, and microseconds."""
    if given is None:
        return (source.span_rows, source.span_us) if source is not None else (0, 0)
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 0:
            raise DeclarationError(f"cooldown={given}", advice="Give a number of rows, or a duration.")
        return given, 0
    return 0, microseconds(given, "cooldown")


def topic_name(table: str) -> str:
    """A table's part of its topic's name: other characters than Kafka allows become ``_`` (Debezium).

    >>> topic_name("My Schema.täble")
    'My_Schema.t_ble'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", table)
