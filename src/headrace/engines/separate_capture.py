"""Capture as a pipeline of its own: it writes a plan's tables into topics of the cluster, and the models read those.

An engine on a cluster has no place for a replication slot: it belongs to one process, is read in commit order, and is
acknowledged after a commit. ``headrace run FILE --only capture`` is that process. Its log, ``<name>-capture``, is
fenced apart from the pipeline's; the pipeline follows it slice by slice, which is the database's commit order. See
docs/decisions/0076-capture-beside-an-engine.md.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from headrace.capture.base import KIND
from headrace.errors import DeclarationError, LogMissing
from headrace.event_log import event
from headrace.formats.topic_formats import codec_for
from headrace.kafka.cluster import Cluster
from headrace.kafka.settings import KafkaLocation
from headrace.log import open_log
from headrace.log.kafka_view import pipelines
from headrace.plan.plan import Plan, TopicsPlan

logger = logging.getLogger("headrace")

SUFFIX = "-capture"


def capture_of(plan: Plan) -> Plan:
    """Return the part of a plan that captures its databases, as a pipeline of its own.

    Raises:
        DeclarationError: there is no database, or the log is not on Kafka.
    """
    if not plan.sources:
        raise DeclarationError(
            f"--only capture: «{plan.app}» captures no database", advice="Declare one with app.postgres(…)."
        )
    if not plan.on_kafka:
        raise DeclarationError(
            f"--only capture needs a log on Kafka, and this one is {plan.log}",
            advice="Nobody else could read what is captured; give --log kafka://host:9092.",
        )
    return replace(
        plan,
        app=plan.app + SUFFIX,
        log=_capture_log(plan),
        # The snapshot reads the tables in the order that the models ask for.
        sources=tuple(replace(source, first=plan.first_tables(source.prefix)) for source in plan.sources),
        tasks=(),
        topics=(),
        appended=(),
        sinks=(),
        endpoints=(),
    )


def check_uncaptured(plan: Plan) -> None:
    """Refuse to capture beside a pipeline that has captured the same tables itself: its log owns their topics.

    Raises:
        DeclarationError: it has.
        LogUnavailable: the cluster does not answer.
    """
    try:
        log = open_log(plan.log, writer=False, name=plan.app, codec=codec_for(plan.formats))
    except LogMissing:
        return
    try:
        own = [source.prefix for source in plan.sources if source.prefix in log.records(KIND)]
    finally:
        log.close()
    if own:
        named = ", ".join(f"«{prefix}»" for prefix in own)
        raise DeclarationError(
            f"--only capture: «{plan.app}» has captured {named} itself, and its log owns the topics",
            advice="Run it without --only; or begin a new log, as --log kafka://host:9092/NAME, on another cluster.",
        )


def following(plan: Plan) -> Plan:
    """Return a plan that reads what its separate capture has written, where there is one; else the plan itself.

    Raises:
        LogUnavailable: the cluster does not answer.
    """
    if not plan.on_kafka or not plan.sources:
        return plan
    location = KafkaLocation.parse(plan.log, name=plan.app)
    name = location.name + SUFFIX
    if name not in pipelines(Cluster(location)):
        return plan
    text = f"the tables are captured by «{name}», whose topics are read in commit order"
    logger.info("%s", text, extra=event("following_capture", app=plan.app, pipeline=name))
    read = [
        TopicsPlan(f"capture:{source.prefix}", "", source.prefix, source.tables, pipeline=name)
        for source in plan.sources
    ]
    return replace(plan, sources=(), topics=(*plan.topics, *read))


def _capture_log(plan: Plan) -> str:
    place, mark, options = plan.log.partition("?")
    location = KafkaLocation.parse(place, name=plan.app)
    return f"{location.url}{SUFFIX}{mark}{options}"
