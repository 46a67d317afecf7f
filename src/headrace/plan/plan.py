"""The frozen description of a pipeline: what the user declared, checked, with no I/O.

A plan is a set of tasks (`headrace.plan.task`), with where their rows come from and where the log is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import DeclarationError, near
from headrace.formats.topic_formats import Formats
from headrace.learn.base import learner_text, traits_of
from headrace.plan.attachments import attachments, legacy
from headrace.plan.graph import Graph
from headrace.plan.operators import lines_of, name_of, topics_behind
from headrace.plan.picture import laid_out, svg
from headrace.plan.sinks import SinkPlan, check_sinks
from headrace.plan.task import ModelTask, OperatorTask, OutputPlan, StreamTask, Task
from headrace.serve.parameters import Endpoint
from headrace.transform.expressions import Text

if TYPE_CHECKING:
    from headrace.capture.postgres.snapshot_options import SnapshotOptions

INTERNAL = "__headrace"


def steps_topic_of(app: str) -> str:
    """Return the topic in which every commit of a pipeline records what it consumed."""
    return f"{INTERNAL}.{app}.steps"


def served_topic(app: str, topic: str) -> str:
    """Return the topic in which predictions given over HTTP wait for the task that writes theirs.

    >>> served_topic("fish", "weight-prediction")
    '__headrace.fish.served.weight-prediction'
    """
    return f"{INTERNAL}.{app}.served.{topic}"


def without_password(location: str) -> str:
    """Return a location of a log as it may be shown: what it holds of a user and a password is left out.

    >>> without_password("kafka://me:secret@broker:9092/iris")
    'kafka://…@broker:9092/iris'
    """
    scheme, separator, rest = location.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}…@{host.rpartition('@')[2]}{slash}{path}" if "@" in host else location


def _few(names: Sequence[str], most: int = 3) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


ARRIVAL = "each partition in its order, between them as they arrive (recorded, and replayed so)"


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A PostgreSQL database to capture."""

    prefix: str
    dsn: str = field(repr=False)
    tables: tuple[str, ...]
    slot: str | None = None
    publication: str | None = None
    snapshot: str = "initial"
    allow_failing_updates: bool = False
    first: tuple[str, ...] = ()
    """Tables that a snapshot reads before the others, where no model of the plan says so."""
    debezium: tuple[tuple[str, str], ...] | None = None
    """Properties of Debezium's connector by which its events can be written from the log; None: they cannot."""
    makes_publication: bool = True
    """A publication that is not there is made; else it is refused."""
    messages: tuple[str, ...] = ()
    """Patterns of prefixes of what `pg_logical_emit_message` writes and is captured."""
    heartbeat_ms: int = 0
    """How often a heartbeat is due; 0 for never."""
    heartbeat_topic: str = ""
    heartbeat_query: str = field(default="", repr=False)
    """What the database is asked to do with each."""
    failover: bool = False
    """Standbys keep the slot, too."""
    reselects: tuple[str, ...] = ()
    """Patterns of ``schema.table:column``: values that are read again where an update did not send them."""
    carries: bool = False
    """Such values are carried forward from the log."""
    on_gap: Literal["fail", "snapshot", "accept"] = "fail"
    """What a start does where the slot has lost rows that the log does not have."""
    snapshots: SnapshotOptions | None = None
    """How rows are read that are there already; None: as is usual."""
    parts: tuple[tuple[str, tuple[str, ...], str], ...] = ()
    """Of tables that are not published as a whole: name, columns (none: all) and SQL that rows meet (nothing: all)."""

    @property
    def pushed_down(self) -> list[str]:
        """What the server leaves out of tables, a sentence for each."""
        found = []
        for table, columns, where in self.parts:
            said = [f"columns {', '.join(columns)}"] if columns else []
            found.append(f"{table}: {'; '.join([*said, *([f'rows WHERE {where}'] if where else [])])}")
        return found

    def matches(self, table: str) -> bool:
        """Return whether ``schema.table`` is captured (anchored, as Debezium's ``table.include.list``)."""
        return any(re.fullmatch(pattern, table, re.IGNORECASE) for pattern in self.tables)

    def captures(self, topic: str) -> bool:
        """Return whether a topic is one of its captured tables', that of its messages, or that of its heartbeats."""
        if (self.messages and topic == f"{self.prefix}.message") or (
            self.heartbeat_ms and topic == self.heartbeat_topic
        ):
            return True
        table = topic.removeprefix(f"{self.prefix}.")
        return table != topic and self.matches(table)

    @property
    def patterns(self) -> str:
        """Its tables as people wrote them."""
        from headrace.capture.debezium.expressions import readable

        return ", ".join(map(readable, self.tables))

    @property
    def where(self) -> str:
        """The database, without user and password."""
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            parts = conninfo_to_dict(self.dsn)
        except ProgrammingError:
            return "postgresql"
        host, port = parts.get("host") or "localhost", parts.get("port") or 5432
        return f"{host}:{port}/{parts.get('dbname') or ''}"


@dataclass(frozen=True, slots=True)
class TopicsPlan:
    """Topics that others write.

    Attributes:
        name: names the source in the log.
        kafka: the cluster's location; the log's own where it is empty.
        prefix, tables: of Debezium: first part of the topics' names, and patterns of ``schema.table``.
        transactions: whether Debezium's transaction topic gives the order; None: where it is there.
        pipeline: the pipeline of ours that captures them, whose log gives the order; nobody writes them otherwise.
    """

    name: str
    kafka: str = ""
    prefix: str = ""
    tables: tuple[str, ...] = ()
    transactions: bool | None = None
    pipeline: str = ""

    def matches(self, topic: str) -> bool:
        """Return whether a topic is one of these."""
        table = topic.removeprefix(f"{self.prefix}.")
        return table != topic and any(re.fullmatch(pattern, table, re.IGNORECASE) for pattern in self.tables)


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """A whole pipeline. `check` refuses what can be refused without asking a database."""

    app: str
    log: str
    sources: tuple[SourcePlan, ...] = ()
    tasks: tuple[Task, ...] = ()
    topics: tuple[TopicsPlan, ...] = ()
    formats: Formats = field(default_factory=Formats)
    appended: tuple[str, ...] = ()
    """Topics that the program itself appends to."""
    sinks: tuple[SinkPlan, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    """Paths at which models predict over HTTP."""
    keep: str | timedelta | None = None
    """The time for which topics keep their rows; None: for ever."""

    @property
    def on_kafka(self) -> bool:
        """True where the log is on a cluster, where others may write topics too."""
        return self.log.startswith("kafka:")

    @property
    def models(self) -> tuple[ModelTask, ...]:
        return tuple(task for task in self.tasks if isinstance(task, ModelTask))

    @property
    def steps_topic(self) -> str:
        """The topic in which every commit records what it consumed."""
        return steps_topic_of(self.app)

    @property
    def served(self) -> dict[str, str]:
        """Topic -> the topic in which predictions given over HTTP wait for the model's task, which writes it."""
        plans = [plan for model in self.models for plan in model.predict if plan.served is not None]
        return {
            output.topic: plan.served.topic
            for plan in plans
            for output in plan.outputs
            if plan.served is not None and plan.served.topic == served_topic(self.app, output.topic)
        }

    @property
    def appending(self) -> tuple[str, ...]:
        """Topics that the program appends to, as they are called in the log."""
        served = self.served
        return tuple(dict.fromkeys(served.get(topic, topic) for topic in self.appended))

    @property
    def written(self) -> dict[str, str]:
        """Topic -> task that writes it; «append» for those that the program itself appends to."""
        own = {topic: sink.name for sink in self.sinks for topic in sink.spec.writes}
        own |= dict.fromkeys(self.appending, "append")
        return own | {output.topic: task.name for task in self.tasks for output in task.outputs}

    @property
    def read(self) -> tuple[str, ...]:
        """Topics that tasks, trainings and sinks read."""
        by_tasks = (topic for task in self.tasks for topic in task.topics)
        retrains = (model.retrain for model in self.models if model.retrain is not None)
        trained_on = (retrain.rows.stream.topic for retrain in retrains if retrain.rows.stream is not None)
        return tuple(dict.fromkeys([*by_tasks, *trained_on, *(sink.stream.topic for sink in self.sinks)]))

    @property
    def foreign(self) -> tuple[str, ...]:
        """Topics of the log's cluster that nobody in this plan writes, as far as the plan alone can tell."""
        if not self.on_kafka:
            return ()
        prefixes = [source.prefix for source in self.sources]
        return tuple(
            topic
            for topic in self.read
            if topic not in self.written
            and not topic.endswith(".dlq")
            and not any(topic.startswith(f"{prefix}.") for prefix in prefixes)
            and not any(source.matches(topic) for source in self.topics)
        )

    def first_tables(self, prefix: str) -> tuple[str, ...]:
        """Return tables (``schema.table``) of a source that models learn from: a snapshot reads them first."""
        topics = [stream.topic for model in self.models for stream in model.learn]
        first = [table for source in self.sources if source.prefix == prefix for table in source.first]
        first += [topic.removeprefix(f"{prefix}.") for topic in topics if topic.startswith(f"{prefix}.")]
        return tuple(dict.fromkeys(first))

    def check(self) -> None:
        """Raise DeclarationError for the first mistake found."""
        _check_tasks(self)
        for task in self.tasks:
            for topic in task.topics:
                self._check_captured(topic, task.name)
        check_sinks(self.sinks, replace(self, sinks=()).written)
        for sink in self.sinks:
            self._check_captured(sink.stream.topic, sink.name)
            for topic in sink.spec.writes:
                _check_output(self, OutputPlan(topic))
        _check_circles(self)

    def check_topics(self, existing: Iterable[str]) -> None:
        """Check against sources and log that every topic that is read is written by somebody."""
        known = {*existing, *self.written}
        wanted = [(f"«{task.name}» reads", topic) for task in self.tasks for topic in task.topics]
        delivered = [(f"«{sink.name}» delivers", sink.stream.topic) for sink in self.sinks]
        wanted += [(reader, topic) for reader, topic in delivered if not topic.endswith(".dlq")]
        for reader, topic in wanted:
            if topic not in known:
                raise DeclarationError(
                    f"{reader} the topic «{topic}», which nobody writes{near(topic, known)}",
                    advice="Check the name; a table's topic is <prefix>.<schema>.<table>.",
                )

    def _check_captured(self, topic: str, reader: str) -> None:
        for source in self.sources:
            table = topic.removeprefix(f"{source.prefix}.")
            if table != topic and "." in table and not source.matches(table) and topic not in self.written:
                raise DeclarationError(
                    f"«{reader}» reads {topic}, but no pattern of source «{source.prefix}» matches the table {table}: "
                    f"{source.patterns}",
                    advice="Patterns match the whole of schema.table; widen tables=….",
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {
            "app": self.app,
            "log": without_password(self.log),
            "sources": [
                {
                    "prefix": s.prefix,
                    "database": s.where,
                    "tables": list(s.tables),
                    "snapshot": s.snapshot,
                    **({"pushed_down": s.pushed_down} if s.parts else {}),
                }
                for s in self.sources
            ],
            "topics": [
                {"prefix": t.prefix, "kafka": self._cluster(t), "tables": list(t.tables), "order": _order(t)}
                for t in self.topics
            ]
            + [{"topic": topic, "kafka": without_password(self.log), "order": ARRIVAL} for topic in self.foreign],
            "models": [
                {
                    "name": m.name,
                    **m.fingerprint(),
                    **legacy(attachments(m)),
                    "predict": [
                        {"input": str(p.stream), "outputs": [str(output) for output in p.outputs]} for p in m.predict
                    ],
                    "evaluate": [{"input": str(e), "output": m.metrics_topic} for e in m.evaluate],
                    "serve": [endpoint.path for endpoint in self.endpoints if endpoint.model == m.name],
                }
                for m in self.models
            ],
            "streams": [
                {"input": str(t.stream), "outputs": [str(output) for output in t.outputs]}
                for t in self.tasks
                if isinstance(t, StreamTask)
            ],
            "sinks": [sink.to_dict() for sink in self.sinks],
        }

    def _cluster(self, topics: TopicsPlan) -> str:
        return without_password(topics.kafka or self.log)

    @property
    def summary(self) -> str:
        """One line: the log, and what is declared."""
        counted = (
            ("source", [*(source.prefix for source in self.sources), *(topics.prefix for topics in self.topics)]),
            ("model", [model.name for model in self.models]),
            ("sink", [sink.name for sink in self.sinks]),
        )
        said = [f"{word}{'s' if len(names) > 1 else ''} {_few(names)}" for word, names in counted if names]
        return ", ".join([self.app, f"log {without_password(self.log)}", *said])

    def __repr__(self) -> str:
        return f"Plan({self.summary})"

    def graph(self) -> Graph:
        """Return what there is, and where rows go.

        >>> import headrace as hr
        >>> app = hr.App("shop", log="memory://")
        >>> model = app.model("size", hr.LinearRegression(), features=["x"], target="y")
        >>> _ = model.predict(app.topic("orders", append=True)).to("predicted")
        >>> [(arrow.start, arrow.end) for arrow in app.plan().graph().arrows.values()]
        [('topic:orders', 'model:size'), ('model:size', 'topic:predicted')]
        """
        graph = Graph()
        for source in self.sources:
            graph.add_source(source.prefix, f"PostgreSQL {source.where}", filter(source.captures, self.read))
        for topics in self.topics:
            about = f"topics on {self._cluster(topics)}"
            graph.add_source(topics.prefix or topics.name, about, filter(topics.matches, self.read))
        for topic in self.appended:
            graph.add_topic(topic, "appended to by the program")
        for topic in self.foreign:
            graph.add_topic(topic, "written by others")
        for task in self.tasks:
            graph.add_task(task)
        for endpoint in self.endpoints:
            graph.add_endpoint(endpoint)
        for sink in self.sinks:
            graph.add_sink(sink)
        return graph

    def _repr_html_(self) -> str:
        return svg(laid_out(self.graph()))

    def __str__(self) -> str:
        lines = [f"{self.app}   log: {without_password(self.log)}"]
        for source in self.sources:
            lines.append(f"├─ postgres «{source.prefix}»  {source.where}  {source.patterns}")
            lines += [f"│    pushed down to the publication: {said}" for said in source.pushed_down]
        for topics in self.topics:
            tables = ", ".join(topics.tables)
            lines.append(f"├─ debezium «{topics.prefix}»  {self._cluster(topics)}  {tables}; {_order(topics)}")
        lines += [f"├─ topic {topic}: appended to by the program" for topic in self.appended]
        for topic in self.foreign:
            lines.append(f"├─ topic {topic}: {ARRIVAL}; in its own order where another pipeline of ours writes it")
        for task in self.tasks:
            lines += _draw(task)
            for endpoint in self.endpoints:
                if endpoint.model == task.name:
                    logged = f" ──▶ {endpoint.log_to}" if endpoint.log_to else ""
                    lines.append(f"│    GET {endpoint.path} ──predict──▶ «{task.name}»{logged}")
        lines += [f"├─ {sink}" for sink in self.sinks]
        return "\n".join(lines)


def _order(topics: TopicsPlan) -> str:
    """Return the order of rows that is possible, in words."""
    if topics.pipeline:
        return f"in commit order, by the log of «{topics.pipeline}»"
    if topics.transactions:
        return "in commit order, by its transaction topic"
    return ARRIVAL if topics.transactions is False else f"in commit order where a transaction topic is; else {ARRIVAL}"


def _draw(task: Task) -> list[str]:
    if isinstance(task, StreamTask):
        return [f"├─ {task.stream} ──▶ {output}" for output in task.outputs]
    if isinstance(task, OperatorTask):
        return [f"├─ {task.name}", *(f"│    {line}" for line in lines_of(task.nodes))]
    lines = [f"├─ model «{task.name}»  {learner_text(task.learner)}"]
    learned = [str(stream) for stream in task.learn]
    for number, operations in task.learn_nodes:
        learned.append(" │ ".join([name_of(task.nodes, number), *map(str, operations)]))
    lines += [f"│    {stream} ──learn, cut every {task.cut}──▶ «{task.name}»" for stream in learned]
    for plan in task.predict:
        lines += [f"│    {plan.stream} ──predict──▶ «{task.name}» ──▶ {output}" for output in plan.outputs]
    lines += [f"│    {plan} ──evaluate──▶ «{task.name}» ──▶ {task.metrics_topic}" for plan in task.evaluate]
    lines += [f"│    {line}" for line in lines_of(task.nodes)]
    if task.retrain is not None:
        on = "when asked" if task.retrain.on is None else f"on each row of {name_of(task.nodes, task.retrain.on)}"
        lines.append(f"│    «{task.name}» ◀──trained anew on {task.retrain.rows}, {on}")
    return lines


def _check_tasks(plan: Plan) -> None:
    names: set[str] = set()
    for task in plan.tasks:
        if task.name in names:
            raise DeclarationError(f"two models are named «{task.name}»", advice="Give each a name of its own.")
        names.add(task.name)
        if isinstance(task, ModelTask):
            _check_model(task)
        if not isinstance(task, StreamTask):
            _check_nodes(task)
    seen = dict.fromkeys(plan.appending, "append")
    for topic in plan.appending:
        if topic not in plan.served.values():
            _check_output(plan, OutputPlan(topic))
    for task in plan.tasks:
        for output in task.outputs:
            if output.topic in seen:
                raise DeclarationError(
                    f"the topic «{output.topic}» is written twice, by «{seen[output.topic]}» and «{task.name}»",
                    advice="Give each stream a topic of its own.",
                )
            seen[output.topic] = task.name
            _check_output(plan, output)
    if not (plan.tasks or plan.sources or plan.topics or plan.appended or plan.sinks):
        raise DeclarationError(
            f"the app «{plan.app}» declares nothing to do",
            advice="Capture a database, let a model learn or predict a stream, or write a stream with .to(topic).",
        )


def _check_output(plan: Plan, output: OutputPlan) -> None:
    topic = output.topic
    if topic.startswith(INTERNAL) or topic.endswith(".dlq"):
        raise DeclarationError(f"the topic name «{topic}» is Headrace's own", advice="Choose another name.")
    for source in plan.sources:
        if source.captures(topic):
            raise DeclarationError(
                f"the topic «{topic}» is where source «{source.prefix}» writes the table "
                f"{topic.removeprefix(f'{source.prefix}.')}",
                advice="Choose another name.",
            )
    for topics in plan.topics:
        if topics.matches(topic):
            raise DeclarationError(
                f"the topic «{topic}» is read from {topics.kafka or plan.log} as Debezium's («{topics.prefix}»)",
                advice="Choose another name: what is written there would come back as input.",
            )


def _check_circles(plan: Plan) -> None:
    """Refuse rows that would come back to what they were made of, again and again."""
    made: dict[str, set[str]] = {}
    for task in plan.tasks:
        for source, outputs in _made_of(task):
            made.setdefault(source, set()).update(output.topic for output in outputs)
    for sink in plan.sinks:
        made.setdefault(sink.stream.topic, set()).update(sink.spec.writes)
    for start in made:
        way, seen = [[start]], set[str]()
        while way:
            path = way.pop()
            for topic in sorted(made.get(path[-1], ())):
                if topic == start:
                    raise DeclarationError(
                        f"rows of the topic «{start}» come back to it: {' ──▶ '.join([*path, topic])}",
                        advice="Write to a topic of another name: each row would be made anew without end.",
                    )
                if topic not in seen:
                    seen.add(topic)
                    way.append([*path, topic])


def _made_of(task: Task) -> list[tuple[str, Sequence[OutputPlan]]]:
    """Return topics of which each row is a cause of rows in others; what is only learned is none."""
    if isinstance(task, StreamTask):
        return [(task.stream.topic, task.outputs)]
    predict = task.predict if isinstance(task, ModelTask) else ()
    found: list[tuple[str, Sequence[OutputPlan]]] = [(plan.stream.topic, plan.outputs) for plan in predict]
    for number, node in enumerate(task.nodes):
        found += [(topic, node.outputs) for topic in dict.fromkeys(topics_behind(task.nodes, number))]
    return found


def _check_model(task: ModelTask) -> None:
    if not callable(task.features) and not task.features:
        raise DeclarationError(f"the model «{task.name}» has no features", advice="Name columns in features=[…].")
    if not task.learn and not task.predict and not task.evaluate:
        raise DeclarationError(
            f"the model «{task.name}» neither learns nor predicts",
            advice=f"Say {task.name}.learn(stream) or {task.name}.predict(stream).to(topic).",
        )
    learns = bool(task.learn or task.learn_nodes or task.retrain)
    if task.target is None and learns and traits_of(task.learner).needs_target:
        raise DeclarationError(
            f"the model «{task.name}» learns from a target, and declares none",
            advice='Name the column in app.model(…): target="…".',
        )
    if task.target is not None and task.target in task.feature_names:
        raise DeclarationError(f"«{task.target}» is both a feature and the target of «{task.name}»")
    for plan in task.predict:
        if not plan.outputs:
            raise DeclarationError(
                f"the predictions of «{task.name}» on {plan.stream.topic} go nowhere", advice="Add .to(topic)."
            )
    _check_texts(task)


def _check_nodes(task: ModelTask | OperatorTask) -> None:
    """Check that what is derived is written, or something is made of it."""
    used = {node.source for node in task.nodes}
    if isinstance(task, ModelTask):
        used |= {number for number, _ in task.learn_nodes}
        used |= {task.retrain.on, task.retrain.rows.node} if task.retrain is not None else set()
    for number, node in enumerate(task.nodes):
        if not node.outputs and number not in used and node.source is not None:
            raise DeclarationError(
                f"«{task.name}»: rows of a {node.operator.kind} go nowhere", advice="Add .to(topic)."
            )


def _check_texts(task: ModelTask) -> None:
    if task.feature_names:
        return
    for output in task.outputs:
        for operation in output.operations:
            computed = getattr(operation, "computed", {})
            if any(isinstance(text, Text) and "features" in text.fields for text in computed.values()):
                raise DeclarationError(
                    f"{{features}} in the text for «{output.topic}» needs features named as columns",
                    advice="Name the columns in the template.",
                )
