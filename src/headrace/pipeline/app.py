"""The words a user writes. They build a `Plan`; nothing happens until the app runs.

`App`, `Database`, `Stream` and `Model` only describe; `App.run` and `App.start` hand the plan to an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.formats.topic_formats import checked_format, codec_for
from headrace.learn.adapters import adapted
from headrace.log import open_log
from headrace.log.base import Log
from headrace.pipeline.initial import initial_of
from headrace.pipeline.model import Model
from headrace.pipeline.stream import Database, Flow, Stream, Topics
from headrace.plan.plan import Formats, Plan, SourcePlan, TopicsPlan
from headrace.plan.sinks import SinkPlan
from headrace.plan.task import OutputPlan, StreamPlan, StreamTask, Task, Versions, check_features

if TYPE_CHECKING:
    from headrace.engines.local.running import Running
    from headrace.learn.features import Feature
    from headrace.serve.settings import ServeSettings


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
        self._appended: list[str] = []
        self._sources: list[SourcePlan] = []
        self._models: list[Model] = []
        self._streams: list[tuple[StreamPlan, OutputPlan]] = []
        self._flows: list[Flow] = []
        self._sinks: list[SinkPlan] = []
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
        allow_failing_updates: bool = False,
    ) -> Database:
        """Capture tables of a PostgreSQL database from its write-ahead log.

        Args:
            dsn: a libpq connection string or URL.
            tables: regular expressions that match the whole of ``schema.table`` (Debezium's ``table.include.list``).
            prefix: first part of the topics' names; the app's name by default.
            slot, publication: names of existing ones to use; made and named after the app by default.
            snapshot: ``"initial"`` reads the rows that are there before streaming; ``"never"`` streams only.
            format: how a Kafka log's topics of these tables are written; as the app says by default.
            allow_failing_updates: capture also tables without a usable replica identity (no primary key, a deferrable
                one, REPLICA IDENTITY NOTHING): PostgreSQL refuses UPDATE and DELETE on them from then on, which is
                harmless where rows are only inserted. Without it such tables are refused.

        >>> app = App("shop", log="memory://")
        >>> app.postgres("postgresql://localhost/shop", tables=r"public\\.o.*")["public.orders"]
        Stream(shop.public.orders)
        """
        patterns = (tables,) if isinstance(tables, str) else tuple(tables)
        if not patterns:
            raise DeclarationError("tables=[] captures nothing", advice=r"Give a pattern such as r'public\.orders'.")
        if snapshot not in ("initial", "never"):
            raise DeclarationError(f"snapshot={snapshot!r}", advice='Give "initial" or "never".')
        source = SourcePlan(prefix or self.name, dsn, patterns, slot, publication, snapshot, allow_failing_updates)
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

    def topic(self, name: str, *, format: str | None = None, append: bool = False) -> Stream:
        """A topic of the log, to read now or to use in the pipeline.

        On a Kafka log it may be anybody's topic of the cluster: its messages are taken in as they arrive.

        Args:
            name: the topic's.
            format: its messages' format, where they do not show it themselves (``"csv"``, ``"string"``, ``"bytes"``).
            append: this program appends rows to it itself, by `Running.append`.
        """
        if append and name not in self._appended:
            self._appended.append(name)
        if format is not None:
            self._formats[name] = checked_format(format)
        return Stream(self, StreamPlan(name))

    def model(
        self,
        name: str,
        learner: Any,
        *,
        features: Sequence[str | Feature] | Callable[[Batch], Any],
        target: str | None = None,
        classes: Iterable[Any] | None = None,
        missing: Literal["reject", "pass"] = "reject",
        versions: int | None = None,
        keep_versions: int = 10,
        initial: Any = None,
    ) -> Model:
        """Declare a model.

        Args:
            name: its name in the registry.
            learner: what learns and predicts: one of Headrace's, a class of your own with their methods, an estimator
                of scikit-learn with ``partial_fit`` or a model of River, pipelines of such included, or a compiled
                Keras model; a PyTorch module as `headrace.adapters.torch` makes it. It is copied, never changed.
            features: column names, `headrace.image`, `headrace.vector`, `headrace.category`; or a function Batch ->
                array of shape (n, d).
            target: the column to be predicted, for learners that need it.
            classes: every label there is, for a classifier.
            missing: a row one of whose numbers is NULL or NaN is refused (``"reject"``: to the dead letters), or NaN
                is given to a learner that takes it (``"pass"``).
            versions: begin a new version with every so many learned rows, so that one can go back to it; else only a
                reset, a rollback or a changed declaration begins one.
            keep_versions: so many ended versions keep their state; those with a tag always do.
            initial: what it is trained on before its first row: `headrace.csv`, a table's stream, SQL over topics; or
                what it then is: ``(name, version)`` of a model in this log, or a fitted estimator. Part of the
                fingerprint.
        """
        if any(model.name == name for model in self._models):
            raise DeclarationError(f"two models are named «{name}»", advice="Give each a name of its own.")
        names: list[str] | None = None
        if not callable(features):
            features = check_features(features, f"features of «{name}»")
            if not features:
                raise DeclarationError(f"the model «{name}» has no features", advice="Name columns in features=[…].")
            plain = [one for one in features if isinstance(one, str)]
            names = plain if len(plain) == len(features) else None
        try:
            learner = adapted(learner, classes=classes, names=names)
        except DeclarationError as error:
            raise DeclarationError(f"«{name}»: {error.message}", advice=error.advice) from error
        if missing not in ("reject", "pass"):
            raise DeclarationError(f"missing={missing!r}", advice='Give "reject" or "pass".')
        if missing == "pass" and not getattr(learner, "accepts_nan", False):
            raise DeclarationError(
                f"«{name}»: {type(learner).__name__} takes no NaN", advice='Leave missing="pass" out.'
            )
        if (versions is not None and versions < 1) or keep_versions < 1:
            raise DeclarationError(
                f"«{name}»: versions={versions}, keep_versions={keep_versions}: give positive numbers"
            )
        kept = Versions(versions or 0, keep_versions)
        begins = None if initial is None else initial_of(initial, learner, classes=classes, names=names)
        model = Model(self, name, learner, features, target, missing=missing, versions=kept, initial=begins)
        self._models.append(model)
        return model

    def plan(self) -> Plan:
        """The pipeline as declared so far, as data; printing it draws it."""
        tasks: list[Task] = [model._task() for model in self._models]
        grouped: dict[StreamPlan, list[OutputPlan]] = {}
        for stream, output in self._streams:
            grouped.setdefault(stream, []).append(output)
        tasks += [flow.task() for flow in self._flows]
        tasks += [StreamTask(f"stream:{s.topic}→{o[0].topic}", s, tuple(o)) for s, o in grouped.items()]
        endpoints = tuple(endpoint for model in self._models for endpoint in model._served)
        formats = Formats(self._format, dict(self._formats), dict(self._prefixes), dict(self._keys), self._registry)
        return Plan(
            self.name, self.log, tuple(self._sources), tuple(tasks), tuple(self._topics), formats,
            tuple(self._appended), tuple(self._sinks), endpoints, self.keep,
        )  # fmt: skip

    def _flow(self, topic: str) -> Flow:
        """What is derived from a topic without a model has a task of its own."""
        name = f"flow:{self.name}:{topic}"
        alike = sum(one.name.split("#")[0] == name for one in self._flows)
        flow = Flow(self, name + (f"#{alike + 1}" if alike else ""))
        self._flows.append(flow)
        return flow

    # -- running --------------------------------------------------------------------------------------------------

    def start(self, *, serve: bool | ServeSettings = False, take_over: bool = False) -> Running:
        """Run in the background: ``with app.start() as running: …``.

        Args:
            serve: answer over HTTP too, as `headrace.serve.settings.ServeSettings` says, or the environment.
            take_over: take replication slots that belong to another log, which can then never go on; this log begins
                with a new snapshot. Without it that is refused.

        Raises:
            DeclarationError: the plan, or a model's fingerprint against the log.
            SourceError: a database cannot be reached, or cannot be captured as it is.
            LogError: the log is locked by another process, or damaged.
        """
        from headrace.engines.local.startup import RunSettings, start

        if self.running is not None:
            raise DeclarationError(f"the app «{self.name}» is running already", advice="Stop it first.")
        settings = RunSettings(serve, take_over, self._open, on_status=self._say_starting)
        self._running = start(self.plan(), settings)
        if self.log.startswith("memory:"):
            self._open = self._running.log
        return self._running

    def _say_starting(self, line: str) -> None:
        self.starting = line

    def run(
        self,
        *,
        until: Literal["caught-up"] | None = None,
        serve: bool | ServeSettings = False,
        take_over: bool = False,
    ) -> None:
        """Run until SIGINT or SIGTERM, or until everything committed before this call is dealt with.

        Args:
            until: ``"caught-up"`` returns when all that was committed before the call is captured, answered and,
                in complete cuts, learned.
            serve: answer over HTTP too; see `start`.
            take_over: take replication slots that belong to another log; see `start`.
        """
        self._run(until, serve, lambda log: None, take_over=take_over)

    def _run(
        self,
        until: Literal["caught-up"] | None,
        serve: bool | ServeSettings,
        at_end: Callable[[Log], None],
        *,
        take_over: bool = False,
    ) -> None:
        """Run; ``at_end`` is given the log before that is closed, where the pipeline had started."""
        if until not in (None, "caught-up"):
            raise DeclarationError(f"until={until!r}", advice='Give "caught-up" or nothing.')
        # A signal that comes while the pipeline is still starting ends it there, as cleanly.
        from headrace.engines.local.signals import Signals, Stopped

        with Signals() as signals:
            try:
                with self.start(serve=serve, take_over=take_over) as running:
                    running.at_end = at_end
                    signals.stop = running.engine.stop
                    if running.server is not None:
                        running.server.announce()
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

    def _log_in_memory(self) -> Log | None:
        return self._open

    def _reading(self) -> tuple[Log, bool]:
        """A log to read from, and whether the caller closes it."""
        if self._open is not None:
            return self._open, False
        if self.running is not None:
            return self.running.log, False
        return open_log(self.log, writer=False, name=self.name, codec=codec_for(self.plan().formats)), True


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse what is no regular expression."""
    import re

    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DeclarationError(f"tables={pattern!r} is not a regular expression: {error}") from error
