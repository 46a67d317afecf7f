"""The frozen description of a pipeline: what the user declared, checked, with no I/O.

A plan is a set of **tasks**. A task reads topics, runs one `headrace.step`, and writes topics; it has positions of
its own in the log, so it can be stopped, moved and replayed by itself. A model is a task (what it learns, what it
predicts, what is derived from its predictions); a stream written to a topic without a model is a task too.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headrace.batch import is_meta
from headrace.errors import DeclarationError
from headrace.learn.base import Learner
from headrace.learn.features import Feature, Features, column_of
from headrace.transform.expressions import Operation, Text, WithColumns

INTERNAL = "__headrace"
ARRIVAL = "each partition in its order, between them as they arrive (recorded, and replayed so)"
PREDICTION_COLUMNS = ("prediction", "status", "model", "model_version", "model_position")


@dataclass(frozen=True, slots=True)
class Cut:
    """Where learning is cut: exactly one of the three is set, or none for `tick` only.

    Attributes:
        rows: after so many accepted rows.
        duration_us: at multiples of a duration of commit time.
        transaction: at each commit.
    """

    rows: int = 0
    duration_us: int = 0
    transaction: bool = False

    def __str__(self) -> str:
        if self.transaction:
            return "transaction"
        return f"{self.rows} rows" if self.rows else f"{self.duration_us / 1e6:g} s"


@dataclass(frozen=True, slots=True)
class SourcePlan:
    """A PostgreSQL database to capture."""

    prefix: str
    dsn: str = field(repr=False)
    tables: tuple[str, ...]
    slot: str | None = None
    publication: str | None = None
    snapshot: str = "initial"

    def matches(self, table: str) -> bool:
        """Whether ``schema.table`` is captured (anchored, as Debezium's ``table.include.list``)."""
        return any(re.fullmatch(pattern, table, re.IGNORECASE) for pattern in self.tables)

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
    """

    name: str
    kafka: str = ""
    prefix: str = ""
    tables: tuple[str, ...] = ()
    transactions: bool | None = None

    def matches(self, topic: str) -> bool:
        """Whether a topic is one of these."""
        table = topic.removeprefix(f"{self.prefix}.")
        return table != topic and any(re.fullmatch(pattern, table, re.IGNORECASE) for pattern in self.tables)


@dataclass(frozen=True, slots=True)
class Formats:
    """How topics are written to a cluster, and read from it where they do not show it themselves.

    Attributes:
        default: of topics that are not named.
        topics, prefixes, keys: by topic, by a source's prefix; of keys by topic.
        registry: the schema registry's URL, which may hold a password.
    """

    default: str = "json"
    topics: Mapping[str, str] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    registry: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A topic and what is done to its batches."""

    topic: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return " │ ".join([self.topic, *(str(one) for one in self.operations)])


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Rows that go to a topic, after some operations."""

    topic: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        return " │ ".join([*(str(one) for one in self.operations), self.topic])


@dataclass(frozen=True, slots=True)
class PredictPlan:
    """A stream that a model answers, and where the answers go."""

    stream: StreamPlan
    outputs: tuple[OutputPlan, ...] = ()
    proba: bool = False


@dataclass(frozen=True, slots=True)
class ModelTask:
    """One model: what it learns from, what it answers."""

    name: str
    learner: Learner
    features: Features
    target: str | None = None
    cut: Cut = Cut(transaction=True)
    learn: tuple[StreamPlan, ...] = ()
    predict: tuple[PredictPlan, ...] = ()

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics it reads, each once."""
        streams = [*self.learn, *(one.stream for one in self.predict)]
        return tuple(dict.fromkeys(stream.topic for stream in streams))

    @property
    def outputs(self) -> tuple[OutputPlan, ...]:
        return tuple(output for one in self.predict for output in one.outputs)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns that features are made of; none where a function makes them."""
        return () if callable(self.features) else tuple(map(column_of, self.features))

    def fingerprint(self) -> dict[str, Any]:
        """What the model's state depends on, as JSON values."""
        features = self.features
        learner = type(self.learner)
        return {
            "learner": f"{learner.__module__}.{learner.__qualname__}",
            "parameters": json.loads(json.dumps(self.learner.parameters(), default=str)),
            "features": getattr(features, "__qualname__", repr(features))
            if callable(features)
            else [one if isinstance(one, str) else one.describe() for one in features],
            "target": self.target,
            "cut": str(self.cut),
            "inputs": sorted(str(stream) for stream in self.learn),
        }


@dataclass(frozen=True, slots=True)
class StreamTask:
    """A stream written to topics without a model."""

    name: str
    stream: StreamPlan
    outputs: tuple[OutputPlan, ...]

    @property
    def topics(self) -> tuple[str, ...]:
        return (self.stream.topic,)


Task = ModelTask | StreamTask


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole pipeline. `check` refuses what can be refused without asking a database."""

    app: str
    log: str
    sources: tuple[SourcePlan, ...] = ()
    tasks: tuple[Task, ...] = ()
    topics: tuple[TopicsPlan, ...] = ()
    formats: Formats = field(default_factory=Formats)

    @property
    def on_kafka(self) -> bool:
        """Whether the log is on a cluster, where others may write topics too."""
        return self.log.startswith("kafka:")

    @property
    def models(self) -> tuple[ModelTask, ...]:
        return tuple(task for task in self.tasks if isinstance(task, ModelTask))

    @property
    def steps_topic(self) -> str:
        """Where every commit records what it consumed."""
        return f"{INTERNAL}.{self.app}.steps"

    @property
    def written(self) -> dict[str, str]:
        """Topic -> task that writes it."""
        return {output.topic: task.name for task in self.tasks for output in task.outputs}

    @property
    def foreign(self) -> tuple[str, ...]:
        """Topics of the log's cluster that nobody in this plan writes, as far as the plan alone can tell."""
        if not self.on_kafka:
            return ()
        read = dict.fromkeys(topic for task in self.tasks for topic in task.topics)
        prefixes = [source.prefix for source in self.sources]
        return tuple(
            topic
            for topic in read
            if topic not in self.written
            and not topic.endswith(".dlq")
            and not any(topic.startswith(f"{prefix}.") for prefix in prefixes)
            and not any(one.matches(topic) for one in self.topics)
        )

    def first_tables(self, prefix: str) -> tuple[str, ...]:
        """Tables (``schema.table``) of a source that models learn from: a snapshot reads them first."""
        topics = [stream.topic for model in self.models for stream in model.learn]
        return tuple(dict.fromkeys(t.removeprefix(f"{prefix}.") for t in topics if t.startswith(f"{prefix}.")))

    def check(self) -> None:
        """Raises DeclarationError for the first mistake found."""
        _check_tasks(self)
        for task in self.tasks:
            for topic in task.topics:
                self._check_captured(topic, task.name)

    def check_topics(self, tables: Mapping[str, pa.Schema], existing: Iterable[str]) -> None:
        """With what the sources and the log know: every topic read is written by somebody, every column exists."""
        known = {*tables, *existing, *self.written}
        for task in self.tasks:
            for topic in task.topics:
                if topic not in known:
                    raise DeclarationError(
                        f"«{task.name}» reads the topic «{topic}», which nobody writes{_near(topic, known)}",
                        advice="Check the name; a table's topic is <prefix>.<schema>.<table>.",
                    )
            if isinstance(task, ModelTask):
                _check_columns(task, tables)

    def _check_captured(self, topic: str, reader: str) -> None:
        for source in self.sources:
            table = topic.removeprefix(f"{source.prefix}.")
            if table != topic and "." in table and not source.matches(table) and topic not in self.written:
                raise DeclarationError(
                    f"«{reader}» reads {topic}, but no pattern of source «{source.prefix}» matches the table {table}: "
                    f"{', '.join(source.tables)}",
                    advice="Patterns match the whole of schema.table; widen tables=….",
                )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "app": self.app,
            "log": self.log,
            "sources": [
                {"prefix": s.prefix, "database": s.where, "tables": list(s.tables), "snapshot": s.snapshot}
                for s in self.sources
            ],
            "topics": [
                {"prefix": t.prefix, "kafka": t.kafka or self.log, "tables": list(t.tables), "order": _order(t)}
                for t in self.topics
            ]
            + [{"topic": topic, "kafka": self.log, "order": ARRIVAL} for topic in self.foreign],
            "models": [
                {
                    "name": m.name,
                    **m.fingerprint(),
                    "predict": [
                        {"input": str(p.stream), "outputs": [str(output) for output in p.outputs]} for p in m.predict
                    ],
                }
                for m in self.models
            ],
            "streams": [
                {"input": str(t.stream), "outputs": [str(output) for output in t.outputs]}
                for t in self.tasks
                if isinstance(t, StreamTask)
            ],
        }

    def __str__(self) -> str:
        lines = [f"{self.app}   log: {self.log}"]
        for source in self.sources:
            lines.append(f"├─ postgres «{source.prefix}»  {source.where}  {', '.join(source.tables)}")
        for topics in self.topics:
            where = topics.kafka or self.log
            lines.append(f"├─ debezium «{topics.prefix}»  {where}  {', '.join(topics.tables)}; {_order(topics)}")
        for topic in self.foreign:
            lines.append(f"├─ topic {topic}: {ARRIVAL}; in its own order where another pipeline of ours writes it")
        for task in self.tasks:
            lines += _draw(task)
        return "\n".join(lines)


def _order(topics: TopicsPlan) -> str:
    """Which order of rows is possible, in words."""
    if topics.transactions:
        return "in commit order, by its transaction topic"
    return ARRIVAL if topics.transactions is False else f"in commit order where a transaction topic is; else {ARRIVAL}"


def _draw(task: Task) -> list[str]:
    if isinstance(task, StreamTask):
        return [f"├─ {task.stream} ──▶ {output}" for output in task.outputs]
    lines = [f"├─ model «{task.name}»  {task.learner!r}"]
    lines += [f"│    {stream} ──learn, cut every {task.cut}──▶ «{task.name}»" for stream in task.learn]
    for one in task.predict:
        lines += [f"│    {one.stream} ──predict──▶ «{task.name}» ──▶ {output}" for output in one.outputs]
    return lines


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean «{close[0]}»?)" if close else ""


def _check_tasks(plan: Plan) -> None:
    names: set[str] = set()
    for task in plan.tasks:
        if task.name in names:
            raise DeclarationError(f"two models are named «{task.name}»", advice="Give each a name of its own.")
        names.add(task.name)
        if isinstance(task, ModelTask):
            _check_model(task)
    seen: dict[str, str] = {}
    for task in plan.tasks:
        for output in task.outputs:
            if output.topic in seen:
                raise DeclarationError(
                    f"the topic «{output.topic}» is written twice, by «{seen[output.topic]}» and «{task.name}»",
                    advice="Give each stream a topic of its own.",
                )
            seen[output.topic] = task.name
            _check_output(plan, output)
    if not plan.tasks and not plan.sources and not plan.topics:
        raise DeclarationError(
            f"the app «{plan.app}» declares nothing to do",
            advice="Capture a database, let a model learn or predict a stream, or write a stream with .to(topic).",
        )


def _check_output(plan: Plan, output: OutputPlan) -> None:
    topic = output.topic
    if topic.startswith(INTERNAL) or topic.endswith(".dlq"):
        raise DeclarationError(f"the topic name «{topic}» is Headrace's own", advice="Choose another name.")
    for source in plan.sources:
        table = topic.removeprefix(f"{source.prefix}.")
        if table != topic and source.matches(table):
            raise DeclarationError(
                f"the topic «{topic}» is where source «{source.prefix}» writes the table {table}",
                advice="Choose another name.",
            )


def _check_model(task: ModelTask) -> None:
    if not callable(task.features) and not task.features:
        raise DeclarationError(f"the model «{task.name}» has no features", advice="Name columns in features=[…].")
    if not task.learn and not task.predict:
        raise DeclarationError(
            f"the model «{task.name}» neither learns nor predicts",
            advice=f"Say {task.name}.learn(stream) or {task.name}.predict(stream).to(topic).",
        )
    if task.target is not None and task.target in task.feature_names:
        raise DeclarationError(f"«{task.target}» is both a feature and the target of «{task.name}»")
    for one in task.predict:
        if not one.outputs:
            raise DeclarationError(
                f"the predictions of «{task.name}» on {one.stream.topic} go nowhere", advice="Add .to(topic)."
            )
    _check_texts(task)


def _check_texts(task: ModelTask) -> None:
    if task.feature_names:
        return
    for output in task.outputs:
        for operation in output.operations:
            computed = getattr(operation, "computed", {})
            if any(isinstance(one, Text) and "features" in one.fields for one in computed.values()):
                raise DeclarationError(
                    f"{{features}} in the text for «{output.topic}» needs features named as columns",
                    advice="Name the columns in the template.",
                )


def _check_columns(task: ModelTask, tables: Mapping[str, pa.Schema]) -> None:
    """Columns of captured tables are known before anything runs; those of other topics when rows arrive."""
    streams = [(stream, True) for stream in task.learn] + [(one.stream, False) for one in task.predict]
    for stream, learning in streams:
        if stream.topic not in tables or any(not isinstance(one, WithColumns) for one in stream.operations):
            continue
        have = [name for name in tables[stream.topic].names if not is_meta(name)]
        added = [name for one in stream.operations if isinstance(one, WithColumns) for name in one.computed]
        wanted = [*task.feature_names, *([task.target] if task.target and learning else [])]
        for name in wanted:
            if name not in have and name not in added:
                raise DeclarationError(
                    f"the model «{task.name}» wants the column «{name}», which {stream.topic} does not have"
                    f"{_near(name, have)}",
                    advice=f"Its columns are: {', '.join(have)}.",
                )


def parse_cut(every: object) -> Cut:
    """``every=`` as a `Cut`.

    Raises:
        DeclarationError: not ``"transaction"``, a positive row count, or a duration.

    >>> str(parse_cut("transaction")), str(parse_cut(32)), str(parse_cut("1 min"))
    ('transaction', '32 rows', '60 s')
    """
    from datetime import timedelta

    from headrace.clock import duration_us

    if every == "transaction":
        return Cut(transaction=True)
    if isinstance(every, int) and not isinstance(every, bool) and every > 0:
        return Cut(rows=every)
    if isinstance(every, str | timedelta):
        try:
            return Cut(duration_us=duration_us(every))
        except ValueError as error:
            raise DeclarationError(f"every={every!r}: {error}") from error
    raise DeclarationError(
        f"every={every!r} says nothing", advice='Give "transaction", a number of rows, or a duration such as "1 s".'
    )


def check_columns(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Column names as the user gave them."""
    if isinstance(names, str):
        names = [names]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise DeclarationError(f"{where}: {wrong[0]!r} is not a column's name")
    doubled = [name for name in names if list(names).count(name) > 1]
    if doubled:
        raise DeclarationError(f"{where}: the column «{doubled[0]}» is named twice")
    return tuple(str(name) for name in names)


def check_features(features: Sequence[object], where: str) -> tuple[str | Feature, ...]:
    """Features as the user gave them: names of columns, or what makes features of one."""
    if isinstance(features, str):
        features = [features]
    check_columns([one.column if isinstance(one, Feature) else one for one in features], where)
    return tuple(features)  # type: ignore[arg-type]  # each is one or the other, it was checked
