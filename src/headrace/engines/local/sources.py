"""What a plan reads from, as sources that run: databases, and topics that others write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headrace.capture.postgres.source import PostgresSource
from headrace.capture.topics.source import TopicSource
from headrace.codec import ForeignFormats, TopicCodec, codec_for
from headrace.kafka.settings import KafkaPlace
from headrace.log.base import Log
from headrace.plan import Plan, TopicsPlan

Captured = PostgresSource | TopicSource
OnProgress = Callable[[str, int, int], None]


def databases(plan: Plan, on_progress: OnProgress) -> list[PostgresSource]:
    """The databases of a plan."""
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
            on_progress=on_progress,
        )
        for declared in plan.sources
    ]


def foreign_topics(plan: Plan, log: Log, tables: Mapping[str, object]) -> dict[TopicsPlan, list[str]]:
    """Topics that the plan reads and that others write, by what reads them.

    Args:
        tables: topics that the plan's databases write.
    """
    read = dict.fromkeys(topic for task in plan.tasks for topic in task.topics)
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


def topic_sources(plan: Plan, topics: Mapping[TopicsPlan, Sequence[str]]) -> list[TopicSource]:
    """A source for each cluster and prefix that foreign topics are read from."""
    codec = codec_for(plan.formats)
    return [
        TopicSource(
            KafkaPlace.parse(declared.kafka or plan.log, name=plan.app),
            name=declared.name,
            topics=names,
            decode=ForeignFormats(codec, _named(codec, plan, names)),
        )
        for declared, names in topics.items()
    ]


def _named(codec: TopicCodec, plan: Plan, topics: Sequence[str]) -> dict[str, str]:
    """Formats that the user names; the others are seen from the messages."""
    named = {*plan.formats.topics, *(t for t in topics if any(t.startswith(f"{p}.") for p in plan.formats.prefixes))}
    return {topic: codec.format_of(topic) for topic in topics if topic in named}
