"""The words a user writes. They build a `Plan`; nothing happens until the app runs.

`App`, `Database`, `Stream` and `Model` only describe; `App.run` and `App.start` hand the plan to an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.batch import Batch
from headrace.codec import checked_format, codec_for
from headrace.errors import DeclarationError
from headrace.learn.base import Learner
from headrace.log import open_log
from headrace.log.base import Log
from headrace.plan import (
    Cut,
    Formats,
    ModelTask,
    OutputPlan,
    Plan,
    PredictPlan,
    SourcePlan,
    StreamPlan,
    StreamTask,
    Task,
    TopicsPlan,
    check_columns,
    parse_cut,
)
from headrace.rows import Rows, read_rows
from headrace.transform.expressions import Filter, Operation, Select, Transform, WithColumns, check

if TYPE_CHECKING:
    from headrace.engines.local.running import Running


class App:
    """A pipeline: sources, models, and a log that holds everything.

    Args:
        name: names the pipeline; its slot, publication and internal topics derive from it.
        log: a path (default ``./NAME.headrace``), ``kafka://host:port[,host:port]``, or ``memory://``.
        keep: how long topics keep rows: ``"7 days"``, ``"500 MB"``, or None for ever. Rows that a model's recovery
            still needs stay in any case.
        format: how rows are written to a Kafka log where nothing else is said: ``"json"`` (one flattened object a row),
            ``"json+schema"``, ``"json+envelope"``, ``"avro"``, ``"arrow"`` (one message a batch), and others.
        registry: URL of the schema registry, for formats that need one (or ``HEADRACE_SCHEMA_REGISTRY_URL``).

    Raises:
        DeclarationError: what is declared cannot work; raised before anything runs.

    >>> app = App("shop", log="memory://")
    >>> print(app.plan())
    shop   log: memory://
    """

    def __init__(
        self,
        name: str,
        log: str | Path | None = None,
        *,
        keep: str | timedelta | None = None,
        format: str = "json",
        registry: str | None = None,
    ) -> None:
        if not name or "/" in name or name != name.strip():
            raise DeclarationError(f"{name!r} cannot name an app", advice="Give a word such as «iris».")
        self.name = name
        self.log = str(log) if log is not None else f"{name}.headrace"
        self.keep = keep
        self.starting = "starting"
        self._format = checked_format(format)
        self._registry = registry
        self._formats: dict[str, str] = {}
        self._prefixes: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._topics: list[TopicsPlan] = []
        self._sources: list[SourcePlan] = []
        self._models: list[Model] = []
        self._streams: list[tuple[StreamPlan, OutputPlan]] = []
        self._open: Log | None = None
        self._running: Running | None = None

    # -- declaring ------------------------------------------------------------------------------------------------

    def postgres(
        self,
        dsn: str,
        *,
        tables: str | Sequence[str],
        prefix: str | None = None,
        slot: str | None = None,
        publication: str | None = None,
        snapshot: Literal["initial", "never"] = "initial",
        format: str | None = None,
    ) -> Database:
        """Capture tables of a PostgreSQL database from its write-ahead log.

        Args:
            dsn: a libpq connection string or URL.
            tables: regular expressions that match the whole of ``schema.table`` (Debezium's ``table.include.list``).
            prefix: first part of the topics' names; the app's name by default.
            slot, publication: names of existing ones to use; made and named after the app by default.
            snapshot: ``"initial"`` reads the rows that are there before streaming; ``"never"`` streams only.
            format: how a Kafka log's topics of these tables are written; as the app says by default.

        >>> app = App("shop", log="memory://")
        >>> app.postgres("postgresql://localhost/shop", tables=r"public\\.o.*")["public.orders"]
        Stream(shop.public.orders)
        """
        patterns = (tables,) if isinstance(tables, str) else tuple(tables)
        if not patterns:
            raise DeclarationError("tables=[] captures nothing", advice=r"Give a pattern such as r'public\.orders'.")
        if snapshot not in ("initial", "never"):
            raise DeclarationError(f"snapshot={snapshot!r}", advice='Give "initial" or "never".')
        source = SourcePlan(prefix or self.name, dsn, patterns, slot, publication, snapshot)
        check_patterns(source.tables)
        if any(other.prefix == source.prefix for other in self._sources):
            raise DeclarationError(
                f"two sources have the prefix «{source.prefix}»", advice="Give each its own prefix=."
            )
        self._sources.append(source)
        if format is not None:
            self._prefixes[source.prefix] = checked_format(format)
        return Database(self, source)

    def debezium(
        self,
        kafka: str | None = None,
        *,
        prefix: str,
        tables: str | Sequence[str] = ".*",
        transactions: bool | None = None,
        format: str | None = None,
    ) -> Topics:
        """Read the topics that Debezium writes: envelopes or flattened, JSON or Avro, as they are.

        Args:
            kafka: ``kafka://host:port`` of the cluster; the log's own by default.
            prefix: Debezium's ``topic.prefix``.
            tables: regular expressions that match the whole of ``schema.table``; only topics that are used are read.
            transactions: order rows by ``<prefix>.transaction`` (Debezium's ``provide.transaction.metadata``); None:
                when that topic is there. Otherwise the order between topics is that of their arrival, once and for all.
            format: the messages' format, where they do not show it themselves.

        >>> app = App("iris", log="kafka://broker:9092")
        >>> app.debezium(prefix="flink", tables=r"public\\.iris_.*")["public.iris_train"]
        Stream(flink.public.iris_train)
        """
        patterns = (tables,) if isinstance(tables, str) else tuple(tables)
        where = kafka or ""
        if not where and not self.log.startswith("kafka://"):
            raise DeclarationError(
                "debezium() needs to know where Kafka is, since the log is elsewhere",
                advice='Write app.debezium("kafka://host:port", prefix=…).',
            )
        plan = TopicsPlan(f"debezium:{prefix}", where, prefix, patterns, transactions)
        check_patterns(patterns)
        if any(other.prefix == prefix for other in self._topics) or any(s.prefix == prefix for s in self._sources):
            raise DeclarationError(f"two sources have the prefix «{prefix}»", advice="Give each its own prefix=.")
        self._topics.append(plan)
        if format is not None:
            self._prefixes[prefix] = checked_format(format)
        return Topics(self, plan)

    def topic(self, name: str, *, format: str | None = None) -> Stream:
        """A topic of the log, to read now or to use in the pipeline.

        On a Kafka log it may be anybody's topic of the cluster: its messages are taken in as they arrive.

        Args:
            name: the topic's.
            format: its messages' format, where they do not show it themselves (``"csv"``, ``"string"``, ``"bytes"``).
        """
        if format is not None:
            self._formats[name] = checked_format(format)
        return Stream(self, StreamPlan(name))

    def model(
        self,
        name: str,
        learner: Learner,
        *,
        features: Sequence[str] | Callable[[Batch], Any],
        target: str | None = None,
    ) -> Model:
        """Declare a model.

        Args:
            name: its name in the registry.
            learner: what learns and predicts; it is copied, never changed.
            features: column names, or a function Batch -> array of shape (n, d).
            target: the column to be predicted, for learners that need it.
        """
        if any(model.name == name for model in self._models):
            raise DeclarationError(f"two models are named «{name}»", advice="Give each a name of its own.")
        if not isinstance(learner, Learner):
            raise DeclarationError(
                f"«{name}»: {type(learner).__name__} is not a learner",
                advice="A learner has learn, predict, ready, parameters, state and restore (headrace.Learner).",
            )
        if not callable(features):
            features = check_columns(features, f"features of «{name}»")
            if not features:
                raise DeclarationError(f"the model «{name}» has no features", advice="Name columns in features=[…].")
        model = Model(self, name, learner, features, target)
        self._models.append(model)
        return model

    def plan(self) -> Plan:
        """The pipeline as declared so far, as data; printing it draws it."""
        tasks: list[Task] = [model._task() for model in self._models]
        grouped: dict[StreamPlan, list[OutputPlan]] = {}
        for stream, output in self._streams:
            grouped.setdefault(stream, []).append(output)
        tasks += [StreamTask(f"stream:{s.topic}→{o[0].topic}", s, tuple(o)) for s, o in grouped.items()]
        formats = Formats(self._format, dict(self._formats), dict(self._prefixes), dict(self._keys), self._registry)
        return Plan(self.name, self.log, tuple(self._sources), tuple(tasks), tuple(self._topics), formats)

    # -- running --------------------------------------------------------------------------------------------------

    def start(self) -> Running:
        """Run in the background: ``with app.start() as running: …``.

        Raises:
            DeclarationError: the plan, or a model's fingerprint against the log.
            SourceError: a database cannot be reached, or cannot be captured as it is.
            LogError: the log is locked by another process, or damaged.
        """
        from headrace.engines.local.start import start

        if self.running is not None:
            raise DeclarationError(f"the app «{self.name}» is running already", advice="Stop it first.")
        self._running = start(self)
        return self._running

    def run(self, *, until: Literal["caught-up"] | None = None) -> None:
        """Run until SIGINT or SIGTERM, or until everything committed before this call is dealt with.

        Args:
            until: ``"caught-up"`` returns when all that was committed before the call is captured, answered and,
                in complete cuts, learned.
        """
        if until not in (None, "caught-up"):
            raise DeclarationError(f"until={until!r}", advice='Give "caught-up" or nothing.')
        # A signal that comes while the pipeline is still starting ends it there, as cleanly.
        from headrace.engines.local.signals import Signals, Stopped

        with Signals() as signals:
            try:
                with self.start() as running:
                    signals.stop = running.engine.stop
                    if until is None:
                        while not running.join(0.2):
                            pass
                    else:
                        running.wait(None)
            except Stopped:
                if self.running is not None:
                    self.running.stop()

    def tick(self, model: Model | str | None = None, *, timeout: float | None = 30.0) -> None:
        """Close a model's cut now, as a recorded tick; where nothing is pending, an empty cut is learned.

        Args:
            model: which one; every model that learns, when left out.
            timeout: seconds to wait until it is recorded.
        """
        if self.running is None:
            raise DeclarationError(f"the app «{self.name}» is not running", advice="Tick inside `with app.start()`.")
        chosen = [one.name for one in self._models if one._learns] if model is None else [model]
        for one in chosen:
            self.running.tick(one if isinstance(one, str) else one.name, timeout=timeout)

    @property
    def running(self) -> Running | None:
        """The pipeline that `start` or `run` runs now."""
        return self._running if self._running is not None and self._running.alive else None

    # -- the log, for streams that are read now ---------------------------------------------------------------------

    def _reading(self) -> tuple[Log, bool]:
        """A log to read from, and whether the caller closes it."""
        if self._open is not None:
            return self._open, False
        if self.running is not None:
            return self.running.log, False
        return open_log(self.log, writer=False, name=self.name, codec=codec_for(self.plan().formats)), True


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


class Model:
    """A declared model."""

    def __init__(
        self, app: App, name: str, learner: Learner, features: tuple[str, ...] | Callable[..., Any], target: str | None
    ) -> None:
        self._app = app
        self.name = name
        self._learner = learner
        self._features = features
        self._target = target
        self._cut: Cut | None = None
        self._learns: list[StreamPlan] = []
        self._predicts: list[tuple[StreamPlan, list[OutputPlan]]] = []

    def learn(self, stream: Stream, *, every: str | int | timedelta = "transaction") -> Model:
        """Learn from a stream.

        Args:
            stream: rows to learn, in commit order.
            every: where learning is cut: ``"transaction"``, a row count, or a duration of commit time (``"1 s"``).
        """
        cut = parse_cut(every)
        if self._cut is not None and self._cut != cut:
            raise DeclarationError(
                f"«{self.name}» is cut every {self._cut} and every {cut}", advice="Give all learn(…) the same every=."
            )
        self._cut = cut
        self._learns.append(self._input(stream))
        return self

    def predict(self, stream: Stream) -> Stream:
        """Answer every row of a stream; ``.to(topic)`` says where the answers go."""
        plan = self._input(stream)
        self._predicts.append((plan, []))
        return Stream(self._app, StreamPlan(plan.topic), (self, len(self._predicts) - 1))

    def _input(self, stream: Stream) -> StreamPlan:
        if not isinstance(stream, Stream):
            raise DeclarationError(
                f"«{self.name}» wants a stream, got {type(stream).__name__}", advice='For example db["public.orders"].'
            )
        if stream._predicted is not None:
            raise DeclarationError(
                f"«{self.name}» reads predictions that go nowhere", advice="Write them to a topic first: .to(topic)."
            )
        return stream._plan

    def _task(self) -> ModelTask:
        return ModelTask(
            name=self.name,
            learner=self._learner,
            features=self._features,
            target=self._target,
            cut=self._cut or Cut(transaction=True),
            learn=tuple(self._learns),
            predict=tuple(PredictPlan(stream, tuple(outputs)) for stream, outputs in self._predicts),
        )

    def __repr__(self) -> str:
        return f"Model({self.name}, {self._learner!r})"


def topic_name(table: str) -> str:
    """A table's part of its topic's name: other characters than Kafka allows become ``_`` (Debezium).

    >>> topic_name("My Schema.täble")
    'My_Schema.t_ble'
    """
    import re

    return re.sub(r"[^A-Za-z0-9._-]", "_", table)


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse what is no regular expression."""
    import re

    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DeclarationError(f"tables={pattern!r} is not a regular expression: {error}") from error
