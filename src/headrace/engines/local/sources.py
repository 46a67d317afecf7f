"""The sources that a plan reads from: databases, and topics that others write."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from headrace.capture.base import Source
from headrace.capture.postgres.gaps import OnGap
from headrace.capture.postgres.heartbeats import HeartbeatOptions
from headrace.capture.postgres.parts import Part
from headrace.capture.postgres.snapshot import OnProgress
from headrace.capture.postgres.source import PostgresSource
from headrace.capture.topics.reader import TopicsReader
from headrace.capture.topics.source import MakeReader, TopicSource
from headrace.capture.topics.transactions import TransactionOrder
from headrace.engines.local.pipeline_source import PipelineSource
from headrace.errors import DeclarationError, FormatError, RegistryUnavailable
from headrace.event_log import event
from headrace.formats.topic_formats import ForeignFormats, TopicCodec, codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import newest_messages, owners
from headrace.plan.columns import Absent, Columns
from headrace.plan.plan import Plan, TopicsPlan

logger = logging.getLogger("headrace")


def databases(
    plan: Plan, on_progress: OnProgress, *, take_over: bool = False, on_gap: OnGap | None = None
) -> list[PostgresSource]:
    """Make the sources of a plan's databases.

    Args:
        take_over: take their slots where they belong to another log.
        on_gap: what to do where a slot has lost rows, in place of what the plan says.
    """
    place = KafkaLocation.parse(plan.log, name=plan.app).url if plan.on_kafka else plan.log
    return [
        PostgresSource(
            declared.dsn,
            app=plan.app,
            prefix=declared.prefix,
            tables=declared.tables,
            slot=declared.slot,
            publication=declared.publication,
            snapshot="never" if declared.snapshot == "never" else "initial",
            first_tables=plan.first_tables(declared.prefix),
            place=place,
            take_over=take_over,
            allow_failing_updates=declared.allow_failing_updates,
            debezium=None if declared.debezium is None else dict(declared.debezium),
            makes_publication=declared.makes_publication,
            messages=declared.messages,
            heartbeat=HeartbeatOptions(declared.heartbeat_ms, declared.heartbeat_topic, declared.heartbeat_query),
            failover=declared.failover,
            reselects=declared.reselects,
            carries=declared.carries,
            on_gap=on_gap or declared.on_gap,
            snapshots=declared.snapshots,
            parts={table: Part(columns, where) for table, columns, where in declared.parts},
            on_progress=on_progress,
        )
        for declared in plan.sources
    ]


_TOPIC_CHARACTERS = 249  # of Kafka


def check_apart(captured: Sequence[PostgresSource], *, on_kafka: bool) -> None:
    """See that each table, and its dead letters, have a topic of their own, after the sources were checked.

    A topic's name has ``_`` for every character that Kafka's have not, as Debezium's topics do; and a dot in a name is
    no other than the dot between names. On a cluster a dot and ``_`` may not tell two topics apart either.

    Raises:
        DeclarationError: two tables would share a topic, or a name is too long for Kafka.
    """
    found: dict[str, str] = {}
    for source in captured:
        for (schema, table), topic in source.captured.items():
            who = f"table «{schema}».«{table}» of «{source.name}»"
            for name, what in ((topic, who), (f"{topic}.dlq", f"the dead letters of {who}")):
                if on_kafka and len(name) > _TOPIC_CHARACTERS:
                    raise DeclarationError(
                        f"{what} would have a topic of {len(name)} characters, and Kafka's have {_TOPIC_CHARACTERS}",
                        advice="Give the source a shorter prefix=….",
                    )
                other = found.setdefault(name.replace(".", "_") if on_kafka else name, what)
                if other == what:
                    continue
                if source.resumes:
                    logger.warning(
                        "%s and %s share the topic «%s»; in a new log that is refused",
                        other,
                        what,
                        name,
                        extra=event("shared_topic", topic=name),
                    )
                    continue
                raise DeclarationError(
                    f"{other} and {what} would share the topic «{name}»",
                    advice="Rename one of them, narrow tables=… to one, or capture them by two sources with a prefix=… "
                    "each.",
                )


def foreign_topics(plan: Plan, log: Log, tables: Mapping[str, object]) -> dict[TopicsPlan, list[str]]:
    """Return the topics that the plan reads and that others write, by what reads them.

    Args:
        tables: topics that the plan's databases write.
    """
    others = {topic for topic, known in log.metadata.items() if known.foreign} if isinstance(log, KafkaLog) else set()
    ours = log.topics().keys() - others
    found: dict[TopicsPlan, list[str]] = {}
    for topic in plan.read:
        if topic in plan.written or topic in tables or topic.endswith(".dlq"):
            continue
        declared = next((topics for topics in plan.topics if topics.matches(topic)), None)
        if declared is None and plan.on_kafka and topic not in ours:
            declared = TopicsPlan("topics")
        if declared is not None:
            found.setdefault(declared, []).append(topic)
    return found


def topic_sources(
    plan: Plan, topics: Mapping[TopicsPlan, Sequence[str]], reader: MakeReader = TopicsReader
) -> list[Source[Any]]:
    """Make a source for each cluster and prefix that foreign topics are read from, and for each pipeline followed.

    Args:
        reader: makes what reads foreign topics.

    Raises:
        LogUnavailable: a cluster does not answer.
    """
    codec = codec_for(plan.formats)
    found: list[Source[Any]] = []
    followed: dict[str, tuple[KafkaLocation, list[str]]] = {}
    for declared, names in topics.items():
        location = KafkaLocation.parse(declared.kafka or plan.log, name=plan.app)
        # Topics that another pipeline of ours writes are read in the order of that pipeline's log.
        pipelines = {declared.pipeline: names} if declared.pipeline else owners(location, Cluster(location), names)
        for pipeline, theirs in pipelines.items():
            place = replace(location, name=pipeline)
            followed.setdefault(place.url, (place, []))[1].extend(theirs)
        names = [name for name in names if not any(name in theirs for theirs in pipelines.values())]
        if names:
            order = TransactionOrder(declared.prefix, names) if _in_transactions(declared, location) else None
            decode = ForeignFormats(codec, _named(codec, plan, names), numbered=order is None)
            source = TopicSource(location, name=declared.name, topics=names, decode=decode, order=order, reader=reader)
            source.check()
            found.append(source)
    for place, theirs in followed.values():
        found.append(PipelineSource(KafkaLog(place, writer=False, codec=codec), theirs))
    return found


def registered_columns(plan: Plan, topics: Mapping[TopicsPlan, Sequence[str]]) -> dict[str, Columns]:
    """Return the columns of topics of others whose schemas a registry has; one that is away is said, and asked no more.

    Raises:
        DeclarationError: a topic is declared in a format that needs a registry, and none is given.
        LogUnavailable: a cluster does not answer.
        MissingExtra: a schema is Protobuf's, and the extra is not installed.
    """
    codec = codec_for(plan.formats)
    found: dict[str, Columns] = {}
    for declared, names in topics.items():
        location = KafkaLocation.parse(declared.kafka or plan.log, name=plan.app)
        named, cluster = _named(codec, plan, names), Cluster(location)
        for topic in names:
            try:
                newest = partial(newest_messages, location, cluster, topic)
                told = codec.foretell(topic, named.get(topic, ""), newest)
            except FormatError as error:
                logger.warning(
                    "%s. The columns of «%s» are checked at its first row",
                    error.message,
                    topic,
                    extra=event("registry_unasked", app=plan.app, topic=topic, advice=error.advice),
                )
                if isinstance(error, RegistryUnavailable):
                    return found
                continue
            if told is not None:
                absent = Absent.DOUBT if told.others else Absent.MISTAKE
                found[topic] = Columns(topic, told.schema, absent=absent)
    return found


def _in_transactions(declared: TopicsPlan, location: KafkaLocation) -> bool:
    """Return whether Debezium's transaction topic orders these topics: as declared, or where it is there."""
    if declared.transactions is not None or not declared.prefix:
        return bool(declared.transactions)
    return f"{declared.prefix}.transaction" in Cluster(location).topics()


def _named(codec: TopicCodec, plan: Plan, topics: Sequence[str]) -> dict[str, str]:
    """Return formats that the user names; the others are seen from the messages."""
    named = {*plan.formats.topics, *(t for t in topics if any(t.startswith(f"{p}.") for p in plan.formats.prefixes))}
    return {topic: codec.format_of(topic) for topic in topics if topic in named}
