"""Streams: rows of a topic, what is done to them, what is derived from them, and where they are delivered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.arguments import checked_methods
from headrace.arrays import Array
from headrace.batch import Batch
from headrace.clock import duration_us
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import checked_format
from headrace.grade import metrics
from headrace.grade.alarm import AlarmSpec
from headrace.grade.compare import CompareSpec
from headrace.grade.drift import DriftSpec, refuse_unrepeatable
from headrace.grade.metrics import Aggregate, Metric, absolute_error, as_metric, incorrect
from headrace.grade.windows.window import WindowSpec
from headrace.inspect.rows import Rows, read_rows
from headrace.learn.base import scored_as
from headrace.pipeline.declarations import Declarations, DeclaredModel, DeclaredNode, DeclaredPredictions, Root
from headrace.plan.operators import Alarms, Drifts, Grade, Predicted, Read, Selection, Windows, window_text
from headrace.plan.plan import SourcePlan, TopicsPlan
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import OutputPlan, StreamPlan, check_columns, check_features
from headrace.sinks.base import SinkSpec
from headrace.transform.expressions import Expression, Filter, Operation, Select, Sql, Transform, WithColumns, check

if TYPE_CHECKING:
    from headrace.dataset import Dataset
    from headrace.learn.features import Feature

Cooldown = str | int | timedelta | None
Start = Literal["earliest"] | None
On = str | Sequence[str] | Mapping[str, str | Sequence[str]]
# Added to a time, and ten times this long remembered, it stays below 64 bits.
_LONGEST_US = 2**56


@checked_methods
class Database:
    """A captured database; ``db["schema.table"]`` is a table's stream of changes. `App.postgres` returns it.

    >>> import headrace as hr
    >>> def orders(db: hr.Database) -> hr.Stream:
    ...     return db["public.orders"]
    """

    def __init__(self, declared: Declarations, source: SourcePlan) -> None:
        self._declared = declared
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
        return Stream(self._declared, StreamPlan(f"{self._source.prefix}.{topic_name(table)}"))

    def __repr__(self) -> str:
        return f"Database({self._source.prefix}, {self._source.where})"


@checked_methods
class Topics:
    """Debezium's topics; ``topics["schema.table"]`` is a table's stream of changes. `App.debezium` returns it.

    What reads tables either way takes both: ``def orders(db: hr.Database | hr.Topics) -> hr.Stream``.
    """

    def __init__(self, declared: Declarations, plan: TopicsPlan) -> None:
        self._declared = declared
        self._plan = plan

    def __getitem__(self, table: str) -> Stream:
        topic = f"{self._plan.prefix}.{topic_name(table)}"
        if not self._plan.matches(topic):
            raise DeclarationError(
                f"no pattern of «{self._plan.prefix}» matches {table}: {', '.join(self._plan.tables)}",
                advice="Patterns match the whole of schema.table; widen tables=….",
            )
        return Stream(self._declared, StreamPlan(topic))

    def __repr__(self) -> str:
        return f"Topics({self._plan.prefix})"


@checked_methods
class Stream:
    """Rows of a topic, and what is to be done with them. Every method returns a new stream.

    A sink (``to_table`` and so on) follows the stream's topic from a position of its own, in a thread of its own: while
    its destination is away it waits, and holds back nobody else. A row that the destination refuses goes to
    ``<topic>.dlq``, with the reason.
    """

    def __init__(
        self,
        declared: Declarations,
        plan: StreamPlan,
        predictions: DeclaredPredictions | None = None,
        *,
        node: DeclaredNode | None = None,
        origin: Root | None = None,
    ) -> None:
        self._declared = declared
        self._plan = plan
        self._predictions = predictions
        # Derived rows that have no topic yet; or, of a topic, what this app derives its rows from.
        self._node = node
        self._origin = origin

    # -- rows ----------------------------------------------------------------------------------------------------------

    def filter(self, expression: Expression) -> Stream:
        """Keep rows for which an expression (`pyarrow.compute`, or a function of a Batch) is true."""
        check(expression, "filter")
        if isinstance(expression, str) and re.search("[<>=]", expression):
            raise DeclarationError(
                f"filter({expression!r}): a text is the name of a column",
                advice='Write an expression: .filter(pc.field("x") > 1), with pyarrow.compute as pc.',
            )
        return self._with(Filter(expression))

    def where(self, condition: str) -> Stream:
        """Keep rows for which a condition in SQL is true: ``.where("price > 10 AND country IN ('AT', 'CH')")``.

        It is evaluated here, by DuckDB, on whole batches; the topic keeps all rows. What shall not even leave the
        server is said of the source: ``app.postgres(…, where={"public.orders": "…"})``.
        """
        found = Sql(condition)
        found.check()
        return self._with(Filter(found))

    def select(self, *columns: str, **computed: Expression) -> Stream:
        """Keep the named columns, in order, and compute others: ``.select("id", note=hr.text("{id} is new"))``."""
        for name, expression in computed.items():
            check(expression, f"select({name}=…)")
        if not columns and not computed:
            raise DeclarationError("select() leaves no column", advice='Name those to keep: .select("id", "price").')
        return self._with(Select(check_columns(columns, "select"), computed))

    def with_columns(self, **computed: Expression) -> Stream:
        """Add or replace columns."""
        for name, expression in computed.items():
            check(expression, f"with_columns({name}=…)")
        return self._with(WithColumns(computed))

    def transform(self, function: Callable[[Batch], Batch]) -> Stream:
        """Apply a function of your own, Batch -> Batch, which depends on each row alone."""
        if not callable(function):
            raise DeclarationError(f"transform({function!r}): not a function")
        return self._with(Transform(function))

    def to(
        self, topic: str, *, format: str | None = None, key_format: str | None = None, start: Start = None
    ) -> Stream:
        """Write the rows to a topic; returns that topic's stream.

        Args:
            topic: its name.
            format: how a Kafka log writes it (``"json"``, ``"json+schema"``, ``"avro"``, ``"arrow"``, …); as the app
                says by default.
            key_format: the keys' format, where it is not the values': ``"json"``, ``"json+schema"``, ``"string"``,
                ``"bytes"``, or ``"none"``.
            start: ``"earliest"``: a topic that is new in a pipeline that has run begins with the first row that the log
                holds; by default where the pipeline is. Predictions and derived rows need another topic for that.
        """
        check_topic(topic)
        if format is not None:
            self._declared.formats[topic] = checked_format(format)
        if key_format is not None:
            checked_format(self._declared.formats.get(topic, self._declared.default_format), key=key_format)
            self._declared.key_formats[topic] = key_format
        output = OutputPlan(topic, self._plan.operations)
        written = self._predictions or self._node
        if _from_the_beginning(start) or written is None:
            source = StreamPlan(self._plan.topic if written is None else self._topic_from_the_beginning())
            self._declared.streams.append((source, output, start is not None))
            return Stream(self._declared, StreamPlan(topic))
        written.outputs.append(output)
        node = written.node if isinstance(written, DeclaredPredictions) else written
        return Stream(self._declared, StreamPlan(topic), origin=(node, output.operations))

    def read(self) -> Rows:
        """Return the rows that the log holds now, at once; before the first one none, with the columns it will have."""
        self._refuse_unwritten()
        declared, plan = self._declared, self._plan
        with declared.reading() as log:
            return read_rows(log, plan, lambda log: declared.no_rows(log, plan))

    def dataset(
        self,
        batch_size: int = 64,
        *,
        features: Sequence[str | Feature] | Callable[[Batch], Array] | None = None,
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
        """Return the rows as batches, in constant memory: ``for X, y in …``, ``model.fit(….keras())``, ``….torch()``.

        The rows are those that a model would learn: inserts and rows of a snapshot, and the update that gives a row its
        label. By default they are the rows that exist when iterating begins; with ``wait`` or ``idle_timeout`` the data
        set is live and goes on as rows arrive. The pipeline may be running, here or elsewhere, or not. On Kafka it may
        be anybody's topic.

        Args:
            batch_size: rows of each batch; the last one of an epoch is smaller.
            features: as for `App.model`. ``X`` has shape (n, d), or ``(n, *shape)`` where the only feature is an
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
        options = ReadOptions(group, wait, idle_timeout, start, epochs, until)
        return Dataset(
            self._declared.plan(),
            self._plan,
            lambda: self._declared.open_log,
            batch_size,
            features,
            target,
            options,
            shuffle=shuffle_rows(shuffle),
            seed=seed,
            drop_remainder=drop_remainder,
        )

    # -- deriving ------------------------------------------------------------------------------------------------------

    def grade(
        self,
        truth: Stream,
        *,
        on: On,
        within: str | timedelta,
        metric: Metric | Callable[[Array, Array], Array] | None = None,
        time: str | tuple[str | None, str | None] | None = None,
        lateness: str | timedelta | None = None,
        round: int | None = None,
        target: str | None = None,
        limit: int = 2_000_000,
        start: Start = None,
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
                for classifiers whether the prediction was incorrect.
            time: column of event times, or one for each side in a tuple; ``"arrival"``: when the log took the row in.
                By default when the row was committed.
            lateness: how long rows may come out of order.
            round: digits of ``error``.
            target: the label's column; the model's own by default.
            limit: how many rows may wait on each side; beyond that the oldest expire.
            start: as for `window`.
        """
        root = self._graded_root(start)
        task = root[0].task
        of = (self._derived_from() or root)[0].task
        model = of if isinstance(of, DeclaredModel) else None
        target = target or (model.target if model is not None else None)
        if target is None:
            raise DeclarationError("grade(…) does not know which column is the truth", advice='Say target="…".')
        if not isinstance(truth, Stream) or truth._predictions is not None or truth._node is not None:
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
        return self._derived(task.add(what, root, value="error"))

    def window(
        self,
        size: str | int | timedelta,
        *,
        every: str | int | timedelta | None = None,
        lateness: str | timedelta | None = None,
        by: str | Sequence[str] = (),
        time: str | None = None,
        emit: Literal["final", "changes"] = "final",
        start: Start = None,
    ) -> Windowed:
        """Put rows into windows of event time, aligned to 1970-01-01 UTC, or over the newest rows.

        ``window("1 min").mean("error")`` is the mean of each minute.

        Args:
            size: a duration, or a number of rows.
            every: a duration between the starts of windows that overlap; of rows: how many between two lines.
            lateness: how long a window stays open for rows that come out of order.
            by: columns; each group has windows of its own.
            time: a column of event times; the rows' own by default, which of a grade is that of the later row.
            emit: ``"final"``: one line when a window is over, which is when a row past its end comes; ``"changes"``: a
                line whenever it changes, too.
            start: where a window begins that is new in a pipeline that has run. What is made of a model's predictions
                begins where the model is; ``"earliest"``: with the first row that the log holds of the topic of these
                rows. What is made of a topic always begins there.
        """
        spec = window_spec(size, every=every, lateness=lateness, by=by, emit=emit)
        return Windowed(self, self._root(start), spec, time)

    def above(
        self,
        x: float,
        *,
        column: str | None = None,
        consecutive: int = 1,
        cooldown: Cooldown = None,
        start: Start = None,
    ) -> Stream:
        """Select rows whose value is above a limit: an alarm each.

        Args:
            x: the limit.
            column: of what; where a window has just one number, that one.
            consecutive: so many rows in a row must be above it.
            cooldown: after an alarm so many rows, or so long a time, raise none; 0: all may. By default the length of a
                window after an alarm of windows, since predictions of the old model are still being graded.
            start: as for `window`.
        """
        return self._alarm(column, consecutive, cooldown, start, above=x)

    def below(
        self,
        x: float,
        *,
        column: str | None = None,
        consecutive: int = 1,
        cooldown: Cooldown = None,
        start: Start = None,
    ) -> Stream:
        """Select rows whose value is below a limit, as for `above`."""
        return self._alarm(column, consecutive, cooldown, start, below=x)

    def outside(
        self,
        a: float,
        b: float,
        *,
        column: str | None = None,
        consecutive: int = 1,
        cooldown: Cooldown = None,
        start: Start = None,
    ) -> Stream:
        """Select rows whose value is below ``a`` or above ``b``, as for `above`."""
        if a > b:
            raise DeclarationError(f"outside({a}, {b}): nothing is between", advice="Give the smaller one first.")
        return self._alarm(column, consecutive, cooldown, start, below=a, above=b)

    def drift(
        self,
        column: str,
        detector: Any,
        *,
        by: str | Sequence[str] = (),
        cooldown: Cooldown = 0,
        start: Start = None,
    ) -> Stream:
        """Select rows at which a drift detector of River says that a column has changed: an alarm each.

        Args:
            column: of numbers.
            detector: such as ``river.drift.ADWIN()``; it is copied, never changed. KSWIN needs a seed.
            by: columns; each group has a detector of its own.
            cooldown: as for `above`.
            start: as for `window`.
        """
        groups = (by,) if isinstance(by, str) else tuple(by)
        rows, span = _cooldown(cooldown, None)
        try:
            refuse_unrepeatable(detector)
        except ValueError as error:
            raise DeclarationError(f"drift(«{column}»): {error}") from error
        root = self._root(start)
        return self._derived(root[0].task.add(Drifts(DriftSpec(column, detector, groups, rows, span)), root))

    def last(self, rows: int) -> Rowset:
        """Choose the newest rows to train on; of grades those that have a truth."""
        if rows < 1:
            raise DeclarationError(f"last({rows})", advice="Give a positive number of rows.")
        return Rowset(self, "last", rows=rows)

    def since(self, span: str | timedelta) -> Rowset:
        """Choose the rows of so long before now to train on."""
        return Rowset(self, "since", span_us=microseconds(span, "since"))

    def all(self) -> Rowset:
        """Choose all rows of a table, as they are when the training begins."""
        self._refuse_unwritten()
        return Rowset(self, "all")

    # -- delivering ----------------------------------------------------------------------------------------------------

    def to_table(
        self, dsn: str, table: str, *, key: str | Sequence[str] | None = None, name: str | None = None
    ) -> Stream:
        """Keep a PostgreSQL table up to date, exactly once: the position is stored in the rows' transaction.

        The table is made, and gets columns that come later, from the rows' schema; one that is there already stays as
        it is. With a key the newest row of each key is there; deletes and truncates delete. Without one every insert
        and update is added, deletes are left out. A table that the pipeline captures is refused.

        Args:
            dsn: a libpq connection string or URL.
            table: ``TABLE`` or ``SCHEMA.TABLE``.
            key: columns that identify a row; of a captured table within its replica identity. A table that is there
                already needs a unique index on them.
            name: the sink's; ``postgres:TABLE`` by default.

        >>> import headrace as hr
        >>> app = hr.App("shop", log="memory://")
        >>> app.topic("predictions").to_table("postgresql://me:secret@db/shop", "predictions", key="id")
        Stream(predictions)
        >>> print(app.plan())
        shop   log: memory://
        ├─ predictions ──▶ postgres:predictions  db:5432/shop, key id
        """
        from headrace.sinks.table import table_spec

        return self._sink(name or f"postgres:{table}", table_spec(dsn, table, key=key))

    def to_mongo(
        self,
        uri: str,
        database_collection: str | None = None,
        *,
        database: str | None = None,
        collection: str | None = None,
        key: str | Sequence[str] | None = None,
        name: str | None = None,
    ) -> Stream:
        """Keep a MongoDB collection up to date (needs the extra ``mongo``).

        Rows are upserted by key (deletes delete), or, without one, by an ``_id`` made of app, topic and offset: after
        a crash the last rows may be written again, which changes nothing.

        Args:
            uri: ``mongodb://USER:PASSWORD@HOST:PORT``.
            database_collection: ``"Weight.TrainingData"``; or both apart, as ``database=`` and ``collection=``.
            key: fields that identify a document; a unique index on them is made.
            name: the sink's; ``mongo:DATABASE.COLLECTION`` by default.
        """
        from headrace.sinks.mongo import mongo_spec

        spec = mongo_spec(uri, database_collection, database=database, collection=collection, key=key)
        return self._sink(name or f"mongo:{spec.database}.{spec.collection}", spec)

    def to_parquet(
        self,
        directory: str | Path,
        *,
        partition_by: str | Sequence[str] | None = None,
        rows_per_file: int = 250_000,
        every: str | timedelta = "1 min",
        name: str | None = None,
    ) -> Stream:
        """Write Parquet files, whole ones only; every event is one row in one of them, exactly once.

        The rows' columns are followed by ``__op`` (c, u, d, t or r), ``__ts`` and ``__offset``, and, where the source
        did not send some values, by ``__unchanged``, their columns' names.

        Args:
            directory: made when missing.
            partition_by: columns whose values become folders ``column=value``, as Hive, DuckDB and Spark read them.
            rows_per_file: a file is written when so many rows are there; partitions share them.
            every: or after so long; also when the pipeline is waited for, or stops.
            name: the sink's; ``parquet:DIRECTORY`` by default.
        """
        from headrace.sinks.parquet import parquet_spec

        spec = parquet_spec(
            directory, partition_by=partition_by, rows_per_file=rows_per_file, every=every, label=name or ""
        )
        return self._sink(name or f"parquet:{directory}", spec)

    def to_http(
        self,
        url: str,
        *,
        method: Literal["POST", "PUT", "PATCH"] = "POST",
        headers: Mapping[str, str] | None = None,
        secret: str | bytes | None = None,
        success_topic: str | None = None,
        error_topic: str | None = None,
        retries: int | None = None,
        backoff: str | float | timedelta = 0.1,
        timeout: str | float | timedelta = 10.0,
        name: str | None = None,
    ) -> Stream:
        """Send each row as JSON in a request of its own: an alarm to a receiver.

        ``Idempotency-Key: <app>/<topic>/<offset>`` is the same at every attempt. No response, 5xx, 408, 425 and 429 are
        tried again, with growing pauses or after ``Retry-After``. 401, 403, 407 and 3xx hold the sink back, since no
        row would be taken; another 4xx refuses its row.

        Args:
            url: ``http(s)://HOST[:PORT]/PATH``.
            headers: sent with each request.
            secret: signs each: ``Headrace-Signature: t=SECONDS,v1=HEX``, HMAC-SHA256 of ``SECONDS.BODY``.
            success_topic, error_topic: topics for the responses: idempotency key, status, attempts, response, request.
            retries: after so many a row goes to the dead letters; None: never given up.
            backoff: the first pause; doubled each time, up to 15 s.
            timeout: how long the receiver may be silent.
            name: the sink's; ``http:`` and the URL without query by default.
        """
        from headrace.sinks.http import http_spec

        spec = http_spec(
            url, method=method, headers=headers, secret=secret, success_topic=success_topic, error_topic=error_topic,
            retries=retries, backoff=backoff, timeout=timeout,
        )  # fmt: skip
        return self._sink(name or f"http:{spec.where}", spec)

    def to_console(self, *, format: Literal["table", "lines"] | None = None, name: str | None = None) -> Stream:
        """Print the rows on standard output: as tables in a terminal, elsewhere one JSON object a line.

        Args:
            format: which of the two, where it shall not depend on what standard output is.
            name: the sink's; ``console:TOPIC`` by default.
        """
        from headrace.sinks.console import ConsoleSpec

        return self._sink(name or f"console:{self._plan.topic}", ConsoleSpec(format))

    # -- what it is made of --------------------------------------------------------------------------------------------

    def _root(self, start: Start = None) -> Root:
        """Return what the rows come from; where a topic gives them, that begins a task of its own."""
        root, anew = self._derived_from(), _from_the_beginning(start)
        if root is not None and not anew:
            return root
        source = self._plan
        if self._predictions is not None or self._node is not None:
            source = StreamPlan(self._topic_from_the_beginning(), self._plan.operations)
        return self._declared.operator_task(source.topic).add(Read(source)), ()

    def _topic_from_the_beginning(self) -> str:
        """Return the topic that holds predictions or derived rows as they were made."""
        written = self._predictions or self._node
        whole = [] if written is None else [output.topic for output in written.outputs if not output.operations]
        if not whole:
            raise DeclarationError(
                'start="earliest" of rows that have no topic: the log does not hold them',
                advice="Write them to one before: .to(topic).",
            )
        return whole[0]

    def _derived_from(self) -> Root | None:
        """Return what this app derives the rows from; None where a topic gives them."""
        if self._predictions is not None:
            return self._predictions.node, self._plan.operations
        if self._node is not None:
            return self._node, self._plan.operations
        if self._origin is not None:
            node, operations = self._origin
            return node, (*operations, *self._plan.operations)
        return None

    def _refuse_unwritten(self) -> None:
        if self._predictions is not None:
            raise DeclarationError("predictions are read from their topic", advice='Read app.topic("…") instead.')
        if self._node is not None:
            raise DeclarationError("these rows have no topic", advice="Write them to one first: .to(topic).")

    def _with(self, operation: Operation) -> Stream:
        plan = StreamPlan(self._plan.topic, (*self._plan.operations, operation))
        return Stream(self._declared, plan, self._predictions, node=self._node, origin=self._origin)

    def _derived(self, node: DeclaredNode) -> Stream:
        return Stream(self._declared, StreamPlan(""), node=node)

    def __repr__(self) -> str:
        return f"Stream({self})"

    def __str__(self) -> str:
        made = self._predictions or self._node
        return str(self._plan) if made is None else " │ ".join([str(made), *map(str, self._plan.operations)])

    def _alarm(self, column: str | None, consecutive: int, cooldown: Cooldown, start: Start, **limits: float) -> Stream:
        origin, root = self._derived_from(), self._root(start)
        # What a column is called, and how long its windows are, is known of derived rows also where a topic gives them.
        source = root[0] if origin is None else origin[0]
        name = column or source.value
        if name is None:
            raise DeclarationError("an alarm on rows of many columns", advice='Say which: column="…".')
        if consecutive < 1:
            raise DeclarationError(f"consecutive={consecutive}", advice="Give a positive number of rows.")
        rows, span = _cooldown(cooldown, source)
        spec = AlarmSpec(name, consecutive=consecutive, cooldown_us=span, cooldown_rows=rows, by=source.by, **limits)
        return self._derived(root[0].task.add(Alarms(spec), root, value=name, by=source.by))

    def _graded_root(self, start: Start) -> Root:
        """Return what is graded: a model's predictions as they were made, or predictions in a topic."""
        source, operations = self._root(start)
        if isinstance(source.what, Read):
            return source, operations
        if isinstance(source.what, Predicted):
            if any(not isinstance(operation, Select | WithColumns) for operation in operations):
                raise DeclarationError(
                    "predictions are filtered before they are graded",
                    advice="Filter the rows before predict, or grade all and filter the grades.",
                )
            return source, ()
        raise DeclarationError("grade(…) wants predictions", advice="Grade model.predict(stream), or its topic.")

    def _sink(self, name: str, spec: SinkSpec) -> Stream:
        self._refuse_unwritten()
        if not name.strip():
            raise DeclarationError(f"name={name!r} cannot name a sink")
        self._declared.sinks.append(SinkPlan(name, self._plan, spec))
        return self


@checked_methods
class Windowed:
    """Windows over a stream. `agg`, or a word for one aggregate, says what is made of each.

    A window's line has ``window_start``, ``window_end``, the columns it is grouped by, ``rows``, and what was asked.
    """

    def __init__(self, stream: Stream, root: Root, spec: WindowSpec, time: str | None) -> None:
        self._stream = stream
        self._root = root
        self._spec = spec
        self._time = time

    def __repr__(self) -> str:
        return f"Windowed({window_text(self._spec)} ◀── {self._stream})"

    def agg(self, **aggregates: Aggregate) -> Stream:
        """Compute several aggregates, by the names of their columns: ``agg(ErrorAvg=hr.metrics.mean("error"))``."""
        if not aggregates:
            raise DeclarationError("window(…).agg() makes nothing", advice="Name at least one aggregate.")
        for name, aggregate in aggregates.items():
            if not isinstance(aggregate, Aggregate):
                raise DeclarationError(
                    f"agg({name}={aggregate!r}) is no aggregate", advice='For example hr.metrics.mean("error").'
                )
            if name in ("window_start", "window_end", "rows", "final", *self._spec.by):
                raise DeclarationError(f"agg({name}=…): windows have a column of that name", advice="Choose another.")
        spec = replace(self._spec, aggregates=tuple(aggregates.items()))
        value = next(iter(aggregates)) if len(aggregates) == 1 else None
        numbers = [name for name, aggregate in aggregates.items() if aggregate.kind not in ("unique", "first", "last")]
        node = self._root[0].task.add(
            Windows(spec, self._time),
            self._root,
            value=value or (numbers[0] if len(numbers) == 1 else None),
            by=spec.by,
            span_us=spec.size_us,
            span_rows=-(-spec.rows // spec.every_rows) if spec.rows else 0,
        )
        return self._stream._derived(node)

    def mean(self, column: str) -> Stream:
        """Compute the mean of a column, under its own name."""
        return self.agg(**{column: metrics.mean(column)})

    def median(self, column: str) -> Stream:
        """Compute the median of a column."""
        return self.agg(**{column: metrics.median(column)})

    def quantile(self, column: str, q: float) -> Stream:
        """Compute a quantile of a column."""
        return self.agg(**{column: metrics.quantile(column, q)})

    def min(self, column: str) -> Stream:
        """Compute the smallest value of a column."""
        return self.agg(**{column: metrics.min(column)})

    def max(self, column: str) -> Stream:
        """Compute the largest value of a column."""
        return self.agg(**{column: metrics.max(column)})

    def sum(self, column: str) -> Stream:
        """Compute the sum of a column."""
        return self.agg(**{column: metrics.sum(column)})

    def std(self, column: str) -> Stream:
        """Compute the standard deviation of a column."""
        return self.agg(**{column: metrics.std(column)})

    def count(self) -> Stream:
        """Count the rows, as ``count``."""
        return self.agg(count=metrics.count())


class Rowset:
    """Rows to train on, as they are when a training begins."""

    def __init__(self, stream: Stream, kind: str, *, rows: int = 0, span_us: int = 0) -> None:
        self.stream, self.kind, self.rows, self.span_us = stream, kind, rows, span_us

    def __repr__(self) -> str:
        chosen = Selection(self.kind, rows=self.rows, span_us=self.span_us)
        return f"Rowset({'all rows' if self.kind == 'all' else chosen} of {self.stream})"


def check_topic(topic: str) -> None:
    """Refuse what cannot name a topic."""
    if not topic or topic != topic.strip():
        raise DeclarationError(f"{topic!r} cannot name a topic", advice="Give a word such as «predictions».")


# -- what a user may say ----------------------------------------------------------------------------------------------


def _from_the_beginning(start: Start) -> bool:
    """Return whether something new begins with the first row that the log holds.

    Raises:
        DeclarationError: it is no place to begin at.
    """
    if start not in (None, "earliest"):
        raise DeclarationError(f"start={start!r}", advice='Give "earliest", or leave it out.')
    return start is not None


def _sides(on: On) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(on, Mapping):
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


def _metric_of(model: DeclaredModel | None) -> Metric:
    classifies = model is not None and scored_as(model.learner) == "classification"
    return incorrect if classifies else absolute_error


def _cooldown(given: Cooldown, source: DeclaredNode | None) -> tuple[int, int]:
    """Return a cooldown in rows, and in microseconds."""
    if given is None:
        return (source.span_rows, source.span_us) if source is not None else (0, 0)
    if isinstance(given, int) and not isinstance(given, bool):
        if given < 0:
            raise DeclarationError(f"cooldown={given}", advice="Give a number of rows, or a duration.")
        return given, 0
    return 0, microseconds(given, "cooldown")


def microseconds(duration: str | int | timedelta, what: str) -> int:
    """Return a duration that a user gave, in microseconds.

    Raises:
        DeclarationError: it is none.
    """
    try:
        found = duration_us(duration)  # type: ignore[arg-type]  # a number is refused there
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise DeclarationError(f"{what}={duration!r}: {error}", advice='Give one such as "1 min".') from error
    if found > _LONGEST_US:
        raise DeclarationError(f"{what}={duration!r} is longer than 2,283 years", advice='Give one such as "1 min".')
    return found


def window_spec(
    size: str | int | timedelta,
    *,
    every: str | int | timedelta | None,
    lateness: str | timedelta | None,
    by: str | Sequence[str],
    emit: str,
) -> WindowSpec:
    """Check the windows that a user asks for.

    Raises:
        DeclarationError: it makes no sense.
    """
    groups = (by,) if isinstance(by, str) else tuple(by)
    if emit not in ("final", "changes"):
        raise DeclarationError(f"emit={emit!r}", advice='Give "final" or "changes".')
    late = 0 if lateness is None else microseconds(lateness, "lateness")
    more: dict[str, Any] = {"by": groups, "emit": emit, "lateness_us": late}
    if isinstance(size, int) and not isinstance(size, bool):
        step = 1 if every is None else every
        if not isinstance(step, int) or isinstance(step, bool) or step < 1 or size < 1:
            raise DeclarationError(f"window({size}, every={every!r})", advice="Give positive numbers of rows.")
        return WindowSpec(rows=size, every_rows=step, **more)
    if isinstance(every, int):
        raise DeclarationError(f"window({size!r}, every={every})", advice='Give a duration, such as "10 s".')
    span = microseconds(size, "window")
    hop = span if every is None else microseconds(every, "every")
    if hop > span:
        raise DeclarationError(f"window({size!r}, every={every!r}) leaves rows out", advice="Give a shorter every=.")
    return WindowSpec(size_us=span, every_us=hop, **more)


def topic_name(table: str) -> str:
    """Return a table's part of its topic's name: other characters than Kafka allows become ``_`` (Debezium).

    >>> topic_name("My Schema.täble")
    'My_Schema.t_ble'
    """
    return re.sub(r"[^A-Za-z0-9._-]", "_", table)
