"""What a plan reads from, as sources that run: databases, and topics that others write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from headrace.capture.postgres.source import PostgresSource
from headrace.capture.topics.source import TopicSource
from headrace.capture.topics.transactions import TransactionOrder
from headrace.codec import ForeignFormats, TopicCodec, codec_for
from headrace.engines.local.appended import AppendedSource
from headrace.engines.local.followed import FollowedSource
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaPlace
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.kafka_view import owners
from headrace.plan import Plan, TopicsPlan

Captured = PostgresSource | TopicSource | FollowedSource | AppendedSource
OnProgress = Callable[[str, int, int], None]


def databases(plan: Plan, on_progress: OnProgress, *, take_over: bool = False) -> list[PostgresSource]:
    """The databases of a plan; ``take_over`` their slots where they belong to another log."""
    place = KafkaPlace.parse(plan.log, name=plan.app).location if plan.on_kafka else plan.log
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
            on_progress=on_progress,
        )
        for declared in plan.sources
    ]


def foreign_topics(plan: Plan, log: Log, tables: Mapping[str, object]) -> dict[TopicsPlan, list[str]]:
    """Topics that the plan reads and that others write, by what reads them.

    Args:
        tables: topics that the plan's databases write.
    """
    read = dict.fromkeys([*(topic for task in plan.tasks for topic in task.topics), *plan.delivered])
    ours = {topic for topic, head in _heads(log).items() if not head}
    found: dict[TopicsPlan, list[str]] = {}
    for topic in read:
        if topic in plan.written or topic in tables or topic.endswith(".dlq"):
            continue
        declared = next((one for one in plan.topics if one.matches(topic)), None)
        if declared is None and plan.on_kafka and topic not in ours:
            declared = TopicsPlan("topics")
        if declared is not None:
            found.setdefault(declared, []).append(topic)
    return found


def _heads(log: Log) -> dict[str, bool]:
    """Topics that the log knows, and whether others write them."""
    heads = getattr(log, "heads", {})
    return {name: bool(getattr(heads.get(name), "foreign", False)) for name in log.topics()}


def topic_sources(plan: Plan, topics: Mapping[TopicsPlan, Sequence[str]]) -> list[TopicSource | FollowedSource]:
    """A source for each cluster and prefix that foreign topics are read from, and for each pipeline followed."""
    codec = codec_for(plan.formats)
    found: list[TopicSource | FollowedSource] = []
    for declared, names in topics.items():
        place = KafkaPlace.parse(declared.kafka or plan.log, name=plan.app)
        followed = followed_sources(place, codec, names)
        found += followed
        names = [name for name in names if not any(name in one.topics for one in followed)]
        if not names:
            continue
        order = TransactionOrder(declared.prefix, names) if _in_transactions(declared, place) else None
        decode = ForeignFormats(codec, _named(codec, plan, names), numbered=order is None)
        found.append(TopicSource(place, name=declared.name, topics=names, decode=decode, order=order))
    return found


def followed_sources(place: KafkaPlace, codec: TopicCodec, topics: Sequence[str]) -> list[FollowedSource]:
    """Topics that another pipeline of ours writes on the cluster are read in the order of that pipeline's log."""
    return [
        FollowedSource(KafkaLog(replace(place, name=name), writer=False, codec=codec), theirs)
        for name, theirs in owners(place, Cluster(place), topics).items()
    ]


def _in_transactions(declared: TopicsPlan, place: KafkaPlace) -> bool:
    """Whether Debezium's transaction topic orders these topics: as declared, or where it is there."""
    if declared.transactions is not None or not declared.prefix:
        return bool(declared.transactions)
    return f"{declared.prefix}.transaction" in Cluster(place).topics()


def _named(codec: TopicCodec, plan: Plan, topics: Sequence[str]) -> dict[str, str]:
    """Formats that the user names; the others are seen from the messages."""
    named = {*plan.formats.topics, *(t for t in topics if any(t.startswith(f"{p}.") for p in plan.formats.prefixes))}
    return {topic: codec.format_of(topic) for topic in topics if topic in named}
