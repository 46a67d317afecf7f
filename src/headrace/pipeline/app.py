"""The words a user writes. They build a `Plan`; nothing happens until the app runs.

`App`, `Database`, `Stream` and `Model` only describe; `App.run` and `App.start` hand the plan to an engine.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from headrace.arguments import checked, checked_methods
from headrace.arrays import Array
from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.event_log import show_by_default
from headrace.formats.topic_formats import checked_format
from headrace.learn.adapters import adapted
from headrace.learn.base import traits_of
from headrace.pipeline.declarations import Declarations, DeclaredModel
from headrace.pipeline.model import Model, initial_of
from headrace.pipeline.stream import Database, Stream, Topics, check_topic, microseconds
from headrace.plan.plan import Plan, SourcePlan, TopicsPlan
from headrace.plan.task import StreamPlan, Versions, check_columns, check_features

if TYPE_CHECKING:
    from headrace.capture.debezium.configuration import Configuration
    from headrace.capture.postgres.snapshot_options import SnapshotOptions
    from headrace.engines.contract import RunningPipeline
    from headrace.engines.local.running import Running
    from headrace.engines.settings import EngineName
    from headrace.learn.features import Feature
    from headrace.serve.settings import ServeSettings


@checked_methods
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

    @checked
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
        self.starting = "starting"
        self.reading: tuple[str, int, int] | None = None  # of the first snapshot: table, rows, rows estimated
        self.tables_read: dict[str, tuple[int, int]] = {}  # of all its tables, in their order: rows, rows estimated
        location = str(log) if log is not None else f"{name}.headrace"
        self._declared = Declarations(name, location, keep, format, registry)

    @property
    def name(self) -> str:
        """The pipeline's name. Like the log and `keep` it can be set until the pipeline starts."""
        return self._declared.name

    @name.setter
    def name(self, name: str) -> None:
        self._declared.name = name

    @property
    def log(self) -> str:
        """The log's location."""
        return self._declared.log

    @log.setter
    def log(self, location: str) -> None:
        self._declared.log = location

    @property
    def keep(self) -> str | timedelta | None:
        """The time, or the bytes, for which topics keep rows; None: for ever."""
        return self._declared.keep

    @keep.setter
    def keep(self, keep: str | timedelta | None) -> None:
        self._declared.keep = keep

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
        compat: Literal["sane", "debezium"] = "sane",
        properties: Mapping[str, str] | None = None,
        messages: str | Sequence[str] | None = None,
        heartbeat: str | None = None,
        heartbeat_query: str | None = None,
        failover: bool = False,
        toast: Literal["mark", "reselect", "last"] = "mark",
        on_gap: Literal["fail", "snapshot", "accept"] = "fail",
        signals: str | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        where: Mapping[str, str] | None = None,
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
            compat: ``"debezium"`` keeps in the log what Debezium's events say beside the rows, so that
                ``headrace topics cat --format debezium-json`` writes them; and, as Debezium, it captures tables without
                a usable replica identity.
            properties: of Debezium's connector, which change how those events are written.
            messages: regular expressions that match the whole prefix of what ``pg_logical_emit_message`` writes and is
                captured, into the topic ``<prefix>.message``; ``".*"`` for all. Left out, with ``compat="debezium"`` as
                ``message.prefix.include.list`` and ``….exclude.list`` say, else none.
            heartbeat: how often (``"10s"``) a row says in the topic ``__debezium-heartbeat.<prefix>`` that the capture
                is there.
            heartbeat_query: SQL that the database runs as often, on a connection of its own; its failure is said.
            failover: make the slot so that standbys keep it too, and the capture goes on, each row once, when one of
                them is promoted (PostgreSQL 17); name all of them in the connection string
                (``host=a,b target_session_attrs=read-write``).
            toast: what becomes of values that an update did not send, as they are large and did not change (TOAST):
                ``"mark"`` leaves them null, and ``__unchanged`` names them; ``"reselect"`` reads them again by the
                row's key when the update is read, as Debezium's ReselectColumns does: a value that has changed since is
                the newer one, and of a row that is gone by then they stay marked. ``"last"`` carries them forward from
                the row's event before, which the log has: exactly what the row had; where the log does not have it
                (``snapshot="never"``, ``keep``) they stay marked. Tables whose replica identity is full send them all.
            on_gap: what a start does where the slot has lost rows that the log does not have (it was dropped or
                invalidated, made again or advanced by hand; another server is there): ``"fail"``; ``"snapshot"`` reads
                the tables anew and appends what differs; ``"accept"`` goes on without those rows, and the log says so.
            signals: ``schema.table`` of a table, one of those that are captured, whose inserted rows ask for
                incremental snapshots as signals of Debezium's do. ``headrace snapshot`` asks for one without it.
            columns: by ``schema.table``, the columns that are captured; of other tables all. With PostgreSQL 15 and
                newer the publication has them, so that the others never leave the server. They have to be all of the
                replica identity (the primary key, where nothing else is said).
            where: by ``schema.table``, SQL that is true for the rows that are captured, in the snapshot and in the
                stream; the publication has it. It may need only columns of the replica identity, since the server could
                not tell for an update or a delete. An update by which a row comes to meet it is an insert, one by which
                it ceases to is a delete.

        >>> app = App("shop", log="memory://")
        >>> app.postgres("postgresql://localhost/shop", tables=r"public\\.o.*")["public.orders"]
        Stream(shop.public.orders)
        """
        patterns = (tables,) if isinstance(tables, str) else tuple(tables)
        _check_database(dsn, slot)
        if not patterns:
            raise DeclarationError("tables=[] captures nothing", advice=r"Give a pattern such as r'public\.orders'.")
        if snapshot not in ("initial", "never"):
            raise DeclarationError(f"snapshot={snapshot!r}", advice='Give "initial" or "never".')
        if compat not in ("sane", "debezium"):
            raise DeclarationError(f"compat={compat!r}", advice='Give "sane" or "debezium".')
        if properties is not None and compat != "debezium":
            raise DeclarationError("properties=… are of Debezium's connector", advice='Give compat="debezium" too.')
        if properties:
            from headrace.formats.transforms.chain import check_chain

            check_chain(properties)
        if toast not in ("mark", "reselect", "last"):
            raise DeclarationError(f"toast={toast!r}", advice='Give "mark", "reselect" or "last".')
        source = SourcePlan(
            prefix or self.name,
            dsn,
            patterns,
            slot,
            publication,
            snapshot,
            allow_failing_updates or compat == "debezium",
            debezium=tuple((properties or {}).items()) if compat == "debezium" else None,
            messages=_messages(messages, properties or {}, compat),
            failover=failover,
            reselects=(".*",) if toast == "reselect" else (),
            carries=toast == "last",
            on_gap=on_gap,
            snapshots=_snapshots(compat, properties or {}, signals),
            parts=_parts(columns or {}, where or {}),
        )
        _check_parts(source)
        source = _with_heartbeat(source, heartbeat, heartbeat_query, properties or {})
        if signals is not None and not source.matches(signals):
            raise DeclarationError(
                f"signals={signals!r} is none of the tables that are captured", advice="Have tables=… match it too."
            )
        self._check_source(source, format)
        self._declared.sources.append(source)
        return Database(self._declared, source)

    @overload
    def debezium(
        self,
        kafka: str | None = None,
        *,
        prefix: str,
        tables: str | Sequence[str] = ".*",
        transactions: bool | None = None,
        format: str | None = None,
    ) -> Topics: ...

    @overload
    def debezium(
        self, kafka: str | Path | Mapping[str, Any] | Configuration, *, dsn: str | None = None
    ) -> Database: ...

    def debezium(
        self,
        kafka: str | Path | Mapping[str, Any] | Configuration | None = None,
        *,
        prefix: str | None = None,
        tables: str | Sequence[str] = ".*",
        transactions: bool | None = None,
        format: str | None = None,
        dsn: str | None = None,
    ) -> Topics | Database:
        """Capture what a connector of Debezium's would, by its configuration; or read the topics that Debezium writes.

        With the file of a connector, or its configuration as a dict, the database is captured natively, as `postgres`
        does: ``headrace capture explain connector.json`` says what each property does. With a ``prefix=`` the topics
        of a Debezium that runs elsewhere are read as they are: envelopes or flattened, JSON or Avro.

        Args:
            kafka: a connector's configuration: a path (JSON as Kafka Connect takes it, or ``.properties``) or a dict.
                With ``prefix=``: ``kafka://host:port`` of the cluster; the log's own by default.
            prefix: Debezium's ``topic.prefix``, of topics that are read.
            tables: regular expressions that match the whole of ``schema.table``; only topics that are used are read.
            transactions: order rows by ``<prefix>.transaction`` (Debezium's ``provide.transaction.metadata``); None:
                when that topic is there. Otherwise the order between topics is that of their arrival, once and for all.
            format: the messages' format, where they do not show it themselves.
            dsn: a connection string in place of the configuration's ``database.…``.

        Raises:
            DeclarationError: a property cannot be used; the message has all of them.

        >>> app = App("iris", log="kafka://broker:9092")
        >>> app.debezium(prefix="flink", tables=r"public\\.iris_.*")["public.iris_train"]
        Stream(flink.public.iris_train)
        >>> connector = {"connector.class": "io.debezium.connector.postgresql.PostgresConnector"}
        >>> connector |= {"database.hostname": "db", "database.user": "ann", "database.dbname": "shop"}
        >>> connector |= {"topic.prefix": "shop", "table.include.list": "public.o.*"}
        >>> App("shop", log="memory://").debezium(connector)["public.orders"]
        Stream(shop.public.orders)
        """
        if prefix is None and kafka is not None and not (isinstance(kafka, str) and kafka.startswith("kafka://")):
            return self._connector(kafka, dsn)
        if prefix is None or not isinstance(kafka, str | None):
            raise DeclarationError(
                "debezium() needs a connector's configuration, or the prefix of topics that Debezium writes",
                advice='Write app.debezium("connector.json"), or app.debezium("kafka://host:port", prefix=…).',
            )
        patterns = (tables,) if isinstance(tables, str) else tuple(tables)
        where = kafka or ""
        if not where and not self.log.startswith("kafka://"):
            raise DeclarationError(
                "debezium() needs to know where Kafka is, since the log is elsewhere",
                advice='Write app.debezium("kafka://host:port", prefix=…).',
            )
        plan = TopicsPlan(f"debezium:{prefix}", where, prefix, patterns, transactions)
        self._check_source(plan, format)
        self._declared.topics.append(plan)
        return Topics(self._declared, plan)

    def _connector(self, source: str | Path | Mapping[str, Any] | Configuration, dsn: str | None) -> Database:
        from headrace.capture.debezium.configuration import read_configuration
        from headrace.capture.debezium.options import options_of
        from headrace.formats.transforms.chain import check_chain

        options = options_of(read_configuration(source), dsn=dsn, on_kafka=self.log.startswith("kafka://"))
        check_chain(dict(options.events))
        _check_database(options.dsn, options.slot)
        plan = SourcePlan(
            options.prefix,
            options.dsn,
            options.tables,
            options.slot,
            options.publication,
            options.snapshot,
            allow_failing_updates=True,  # as Debezium does
            debezium=options.events,
            makes_publication=options.makes_publication,
            messages=options.messages,
            heartbeat_ms=options.heartbeat.interval_ms,
            heartbeat_topic=options.heartbeat.topic,
            heartbeat_query=options.heartbeat.query,
            failover=options.failover,
            snapshots=options.snapshots,
            reselects=options.reselects,
        )
        self._check_source(plan, options.format)
        if options.registry is not None and self._declared.registry is None:
            self._declared.registry = options.registry
        self._declared.sources.append(plan)
        return Database(self._declared, plan)

    def _check_source(self, source: SourcePlan | TopicsPlan, format: str | None) -> None:
        check_patterns(source.tables)
        known = [*(own.prefix for own in self._declared.sources), *(own.prefix for own in self._declared.topics)]
        if source.prefix in known:
            raise DeclarationError(
                f"two sources have the prefix «{source.prefix}»", advice="Give each its own prefix=."
            )
        if format is not None:
            self._declared.source_formats[source.prefix] = checked_format(format)

    def topic(self, name: str, *, format: str | None = None, append: bool = False) -> Stream:
        """Return the stream of a topic of the log, to read now or to use in the pipeline.

        On a Kafka log it may be anybody's topic of the cluster: its messages are taken in as they arrive.

        Args:
            name: the topic's.
            format: its messages' format, where they do not show it themselves (``"csv"``, ``"string"``, ``"bytes"``).
            append: this program appends rows to it itself, by `Running.append`.
        """
        check_topic(name)
        if append:
            self._declared.append_to(name)
        if format is not None:
            self._declared.formats[name] = checked_format(format)
        return Stream(self._declared, StreamPlan(name))

    def model(
        self,
        name: str,
        learner: Any,
        *,
        features: Sequence[str | Feature] | Callable[[Batch], Array],
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
        if not name or name != name.strip() or target == "":
            what = f"{name!r} cannot name a model" if target != "" else f"«{name}»: target={target!r} names no column"
            raise DeclarationError(what, advice="Give a word such as «species».")
        classes = _checked_classes(name, classes)
        if any(model.name == name for model in self._declared.models):
            raise DeclarationError(f"two models are named «{name}»", advice="Give each a name of its own.")
        names: list[str] | None = None
        if not callable(features):
            features = check_features(features, f"features of «{name}»")
            if not features:
                raise DeclarationError(f"the model «{name}» has no features", advice="Name columns in features=[…].")
            plain = [feature for feature in features if isinstance(feature, str)]
            names = plain if len(plain) == len(features) else None
        try:
            learner = adapted(learner, classes=classes, names=names)
        except DeclarationError as error:
            raise DeclarationError(f"«{name}»: {error.message}", advice=error.advice) from error
        if missing not in ("reject", "pass"):
            raise DeclarationError(f"missing={missing!r}", advice='Give "reject" or "pass".')
        if missing == "pass" and not traits_of(learner).accepts_nan:
            raise DeclarationError(
                f"«{name}»: {type(learner).__name__} takes no NaN", advice='Leave missing="pass" out.'
            )
        if (versions is not None and versions < 1) or keep_versions < 1:
            raise DeclarationError(
                f"«{name}»: versions={versions}, keep_versions={keep_versions}: give positive numbers"
            )
        kept = Versions(versions or 0, keep_versions)
        begins = None if initial is None else initial_of(initial, learner, classes=classes, names=names)
        model = DeclaredModel(name, learner, features, target, missing=missing, versions=kept, initial=begins)
        self._declared.models.append(model)
        return Model(self._declared, model)

    def plan(self) -> Plan:
        """Return the pipeline as declared so far, as data; printing it draws it."""
        return self._declared.plan()

    def __repr__(self) -> str:
        return f"App({self.plan().summary}, {'not running' if self.running is None else 'running'})"

    # -- running --------------------------------------------------------------------------------------------------

    @overload
    def start(
        self,
        *,
        engine: Literal["local", "spark"] = "local",
        master: str | None = None,
        conf: Mapping[str, str] | None = None,
        only: Literal["capture"] | None = None,
        serve: bool | ServeSettings = False,
        ui: bool | ServeSettings = False,
        take_over: bool = False,
        on_gap: Literal["fail", "snapshot", "accept"] | None = None,
        metrics: tuple[str, int] | None = None,
        workers: int = 1,
    ) -> Running: ...

    @overload
    def start(
        self,
        *,
        engine: EngineName,
        master: str | None = None,
        jobmanager: str | None = None,
        conf: Mapping[str, str] | None = None,
        only: Literal["capture"] | None = None,
        serve: bool | ServeSettings = False,
        ui: bool | ServeSettings = False,
        take_over: bool = False,
        on_gap: Literal["fail", "snapshot", "accept"] | None = None,
        metrics: tuple[str, int] | None = None,
        workers: int = 1,
    ) -> RunningPipeline: ...

    def start(
        self,
        *,
        engine: EngineName = "local",
        master: str | None = None,
        jobmanager: str | None = None,
        conf: Mapping[str, str] | None = None,
        only: Literal["capture"] | None = None,
        serve: bool | ServeSettings = False,
        ui: bool | ServeSettings = False,
        take_over: bool = False,
        on_gap: Literal["fail", "snapshot", "accept"] | None = None,
        metrics: tuple[str, int] | None = None,
        workers: int = 1,
    ) -> RunningPipeline:
        """Run in the background: ``with app.start() as running: …``.

        Args:
            engine: who runs it: ``"local"``, this process; ``"spark"``; ``"flink"``. With the last two the log is on
                Kafka, and predictions, models and positions are the same as on the first.
            master: of Spark: ``"local[2]"``, ``"spark://host:7077"``, ``"yarn"``; as ``spark-submit`` says if left out.
            jobmanager: of Flink: ``"host:8081"``; a mini cluster of this program's own, if left out.
            conf: properties of Spark, or options of Flink.
            only: ``"capture"``: the databases are captured for other processes, and no model runs; the log is on Kafka.
                The pipeline that is started without it then reads what this one writes, on any engine.
            serve: predict over HTTP too, as `headrace.serve.settings.ServeSettings` says, or the environment.
            ui: serve, with the dashboard at ``/ui``; ``running.page`` is its address. The port is 8080 or the next free
                one, where neither ``HEADRACE_SERVE_PORT`` nor ``serve`` says another.
            take_over: take replication slots that belong to another log, which can then never go on; this log begins
                with a new snapshot. Without it that is refused.
            on_gap: what to do where a slot has lost rows, in place of what `postgres` was told.
            metrics: host and port at which ``/metrics`` is served for Prometheus, from before the first snapshot on,
                without a server; anybody who can reach it may read it.
            workers: processes that expensive models predict and train in, beside this one; on Flink the parallelism.
                The bits stay the same.

        Raises:
            DeclarationError: the plan, a model's fingerprint against the log, or what the engine cannot do.
            MissingExtra: the engine's packages are not installed.
            SourceError: a database cannot be reached, or cannot be captured as it is.
            LogError: the log is locked by another process, or damaged.
        """
        from headrace.engines.settings import RunSettings, engine_settings
        from headrace.engines.startup import start

        if self.running is not None:
            raise DeclarationError(f"the app «{self.name}» is running already", advice="Stop it first.")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise DeclarationError(f"workers={workers!r}", advice="Give a number of processes, 1 or more.")
        settings = RunSettings(
            engine_settings(engine, master=master, jobmanager=jobmanager, conf=conf),
            only=only,
            serve=serve,
            ui=ui,
            take_over=take_over,
            on_gap=on_gap,
            workers=workers,
            metrics=metrics,
            log=self._declared.open_log,
            on_status=self._say_starting,
            on_read=self._say_read,
        )
        running = self._declared.running = start(self.plan(), settings)
        self.reading = None
        if self.log.startswith("memory:"):
            self._declared.open_log = running.log
        return running

    def _say_starting(self, line: str) -> None:
        self.starting, self.reading = line, None

    def _say_read(self, table: str, rows: int, estimated: int) -> None:
        self.reading = table, rows, estimated
        self.tables_read[table] = rows, estimated

    def run(
        self,
        *,
        engine: EngineName = "local",
        master: str | None = None,
        jobmanager: str | None = None,
        conf: Mapping[str, str] | None = None,
        only: Literal["capture"] | None = None,
        until: Literal["caught-up"] | None = None,
        serve: bool | ServeSettings = False,
        ui: bool | ServeSettings = False,
        take_over: bool = False,
        on_gap: Literal["fail", "snapshot", "accept"] | None = None,
        metrics: tuple[str, int] | None = None,
        workers: int = 1,
        strict: bool = False,
    ) -> None:
        """Run until SIGINT or SIGTERM, or until everything committed before this call is dealt with.

        Where the program has not set up logging, events are lines on standard error (HEADRACE_LOG_LEVEL,
        HEADRACE_LOG_FORMAT). What has not ended 1.2 s after SIGINT, or 8 s after SIGTERM, is cut off with the process,
        whose exit code is then 128 + the signal's number: what had not committed is done again by the next start.

        Args:
            engine: who runs it: ``"local"``, ``"spark"`` or ``"flink"``; see `start`.
            master: of Spark; see `start`.
            jobmanager: of Flink; see `start`.
            conf: properties of Spark, or options of Flink.
            only: ``"capture"``: no model runs; see `start`.
            until: ``"caught-up"`` returns when all that was committed before the call is captured, predicted and,
                in complete cuts, learned.
            serve: predict over HTTP too; see `start`.
            ui: show the dashboard; see `start`.
            take_over: take replication slots that belong to another log; see `start`.
            on_gap: what to do where a slot has lost rows; see `postgres`.
            metrics: where ``/metrics`` is served; see `start`.
            workers: processes for expensive models, or Flink's parallelism; see `start`.
            strict: end in an error where rows have gone to dead letters since the start.

        Raises:
            HeadraceError: what it died of; or, with ``strict``, dead letters.
        """
        if until not in (None, "caught-up"):
            raise DeclarationError(f"until={until!r}", advice='Give "caught-up" or nothing.')
        from headrace.engines.local.dead_letters import refuse_letters
        from headrace.engines.local.signals import run_in_foreground

        show_by_default(self.name)
        run_in_foreground(
            lambda: self.start(
                engine=engine,
                master=master,
                jobmanager=jobmanager,
                conf=conf,
                only=only,
                serve=serve,
                ui=ui,
                take_over=take_over,
                on_gap=on_gap,
                metrics=metrics,
                workers=workers,
            ),
            lambda: self.running,
            until_caught_up=until is not None,
        )
        if strict and self._declared.running is not None:
            refuse_letters(self._declared.running.dead_letters, self.log)

    def tick(self, model: Model | str | None = None, *, timeout: float | None = 30.0) -> None:
        """Close a model's cut now, as a recorded tick; where nothing is pending, an empty cut is learned.

        Args:
            model: which one; every model that learns, when left out.
            timeout: seconds to wait until it is recorded.
        """
        if self.running is None:
            raise DeclarationError(f"the app «{self.name}» is not running", advice="Tick inside `with app.start()`.")
        if model is None:
            names = [declared.name for declared in self._declared.models if declared.learn]
        else:
            names = [model if isinstance(model, str) else model.name]
        for name in names:
            self.running.tick(name, timeout=timeout)

    @property
    def running(self) -> RunningPipeline | None:
        """The pipeline that `start` or `run` runs now."""
        running = self._declared.running
        return running if running is not None and running.alive else None


def _snapshots(compat: str, properties: Mapping[str, str], signals: str | None) -> SnapshotOptions | None:
    """Return how rows are read that are there already; None: as is usual."""
    if compat == "sane" and signals is None:
        return None
    if compat == "debezium":
        from headrace.capture.debezium.configuration import Configuration
        from headrace.capture.debezium.options import snapshots_of

        given = dict(properties) if signals is None else {**properties, "signal.data.collection": signals}
        return snapshots_of(Configuration(given, "properties=…"))
    from headrace.capture.postgres.snapshot_options import SnapshotOptions

    return SnapshotOptions(signals=signals or "")


def _parts(
    columns: Mapping[str, Sequence[str]], where: Mapping[str, str]
) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """Return what is captured of tables that are not captured as a whole.

    Raises:
        DeclarationError: a list names nothing, or a filter is empty.
    """
    for table, names in columns.items():
        check_columns(names, f"columns of {table}")
        if not names or isinstance(names, str):
            raise DeclarationError(f"columns={{{table!r}: {names!r}}}", advice='Give a list, such as ["id", "price"].')
    for table, sql in where.items():
        if not sql.strip() or ";" in sql or "\0" in sql:
            raise DeclarationError(
                f"where={{{table!r}: {sql!r}}}", advice='Give SQL that is true or false: "id > 100".'
            )
    tables = dict.fromkeys([*columns, *where])
    return tuple((table, tuple(columns.get(table, ())), where.get(table, "").strip()) for table in tables)


def _check_parts(source: SourcePlan) -> None:
    """Refuse parts of tables that are not captured, or that a publication of the user's would have to have.

    Raises:
        DeclarationError: naming the table.
    """
    if source.parts and source.publication is not None:
        raise DeclarationError(
            f"columns= and where= are said to a publication that is made here, and «{source.publication}» is yours",
            advice="Say them in it: ALTER PUBLICATION … SET TABLE … (columns) WHERE (…); or leave publication= out.",
        )
    for table, _, _ in source.parts:
        if not source.matches(table):
            raise DeclarationError(
                f"columns= or where= name {table}, which no pattern matches: {source.patterns}",
                advice="Write schema.table, as it is called in the database.",
            )


def _check_database(dsn: str, slot: str | None) -> None:
    """Refuse what is no connection string, and what cannot name a slot. A connection string is not shown."""
    # What libpq makes of it is seen when the pipeline starts: declaring one needs no driver.
    if dsn and "=" not in dsn.partition("://")[0] and not re.match("postgres(ql)?://", dsn):
        raise DeclarationError(
            "postgres(dsn=…) is no connection string of PostgreSQL",
            advice="Write postgresql://USER:PASSWORD@HOST:5432/DATABASE, or host=… port=… dbname=… user=….",
        )
    if slot is not None and not re.fullmatch("[a-z0-9_]{1,63}", slot):
        raise DeclarationError(
            f"slot={slot!r} cannot name a replication slot",
            advice="Give lower-case letters, digits and _, at most 63; or leave it out: a slot is made.",
        )


def _checked_classes(name: str, classes: Iterable[Any] | None) -> list[Any] | None:
    """Return a classifier's labels, which are of one kind."""
    if classes is None:
        return None
    labels = [] if isinstance(classes, str) else list(classes)
    kinds = {
        "text" if isinstance(label, str) else type(label).__name__ if not _is_number(label) else "number"
        for label in labels
    }
    if isinstance(classes, str) or len(kinds) > 1 or None in labels:
        what = f"are of several kinds: {', '.join(sorted(kinds))}" if len(kinds) > 1 else "are one text"
        raise DeclarationError(
            f"«{name}»: classes={classes!r} {what}", advice='List the labels as the column has them: ["no", "yes"].'
        )
    return labels


def _is_number(label: Any) -> bool:
    return isinstance(label, numbers.Real) and not isinstance(label, bool)


def _messages(given: str | Sequence[str] | None, properties: Mapping[str, str], compat: str) -> tuple[str, ...]:
    """Return patterns of the prefixes of messages that are captured."""
    if given is None:
        if compat != "debezium":
            return ()
        from headrace.capture.debezium.configuration import Configuration
        from headrace.capture.debezium.options import messages_of

        return messages_of(Configuration(dict(properties), "properties="))
    patterns = (given,) if isinstance(given, str) else tuple(given)
    check_patterns(patterns, "messages")
    return patterns


def _with_heartbeat(
    source: SourcePlan, interval: str | None, query: str | None, properties: Mapping[str, str]
) -> SourcePlan:
    """Return the source with its heartbeat, as the words say, or else the connector's properties."""
    if interval is None and query is not None:
        raise DeclarationError("heartbeat_query=… without how often", advice='Give heartbeat="10s" too.')
    if interval is None and "heartbeat.interval.ms" not in properties:
        return source
    from headrace.capture.debezium.configuration import Configuration
    from headrace.capture.debezium.options import heartbeat_of

    told = heartbeat_of(Configuration(dict(properties), "properties="), source.prefix)
    milliseconds = told.interval_ms if interval is None else microseconds(interval, "heartbeat") // 1000
    return replace(source, heartbeat_ms=milliseconds, heartbeat_topic=told.topic, heartbeat_query=query or told.query)


def check_patterns(patterns: Sequence[str], word: str = "tables") -> None:
    """Refuse what is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DeclarationError(f"{word}={pattern!r} is not a regular expression: {error}") from error
