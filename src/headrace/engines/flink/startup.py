"""From a plan to a job of Flink's: check everything here, then submit, and watch the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from headrace.capture.base import Source
from headrace.capture.topics.source import TopicSource
from headrace.engines.flink.job import FlinkJob, TopicDecoder
from headrace.engines.flink.running import FlinkRunning, LogWatch
from headrace.engines.local.pipeline_source import PipelineSource
from headrace.engines.local.startup import checked_sources
from headrace.engines.settings import FlinkEngine, RunSettings
from headrace.errors import DeclarationError
from headrace.event_log import event
from headrace.formats.topic_formats import ForeignFormats
from headrace.kafka.settings import KafkaLocation
from headrace.plan.plan import Plan

logger = logging.getLogger("headrace")


def start(plan: Plan, settings: RunSettings) -> FlinkRunning:
    """Start a plan as a job of Flink's; raises before anything is submitted when it cannot work.

    Raises:
        DeclarationError: the plan, or a model's fingerprint against the log.
        LogError: the cluster of topics cannot be reached.
    """
    from headrace.engines.flink import graph

    engine = settings.engine
    assert isinstance(engine, FlinkEngine)
    sources = checked_sources(plan)
    watch = LogWatch(plan)
    try:
        read = job_sources(plan, sources, watch)
        decoders = [source_decoder(source) for source in sources if isinstance(source, TopicSource)]
        job = FlinkJob.of(plan, [source.location.bootstrap for source in read], decoders)
        # Asked before: the time that a start has to find its servers is over when Java has come up.
        before = watch.ends()
        settings.on_status("submitting the job")
        names = [operator_name(plan), *(source.name for source in sources)]
        submitted = graph.submit(job, names, read, engine, f"headrace: {plan.app}", settings.workers)
        said = event("flink_job", app=plan.app, job=submitted.id, page=submitted.page)
        logger.info("job %s on Flink: %s", submitted.id, submitted.page, extra=said)
        return FlinkRunning(plan, submitted, sources, watch, before)
    except BaseException:
        watch.close()
        for source in sources:
            source.stop()
        raise


def job_sources(plan: Plan, sources: Sequence[Source[Any]], watch: LogWatch) -> list[Any]:
    """Return what Flink reads: the topics of each cluster, from where the log is."""
    from headrace.engines.flink.graph import JobSource

    topics: dict[str, dict[str, None]] = {}
    locations: dict[str, KafkaLocation] = {}
    offsets: dict[str, dict[tuple[str, int], int]] = {}
    for source in sources:
        if isinstance(source, TopicSource):
            location, names = source.location, source.read_topics
        elif isinstance(source, PipelineSource):
            # It reads by itself, in the other pipeline's order; its topics are what wakes the job.
            location, names = KafkaLocation.parse(plan.log, name=plan.app), source.topics
        else:
            raise DeclarationError(f'engine="flink" cannot read «{source.name}»', advice='Run it with engine="local".')
        at = location.bootstrap
        locations.setdefault(at, location)
        topics.setdefault(at, {}).update(dict.fromkeys(names))
        if isinstance(source, TopicSource):
            offsets.setdefault(at, {}).update(watch.offsets(source.name))
    return [JobSource(locations[at], list(topics[at]), offsets.get(at, {})) for at in topics]


def source_decoder(source: TopicSource) -> TopicDecoder:
    """Return how a source decodes its topics."""
    decode = source.decode
    assert isinstance(decode, ForeignFormats)
    return TopicDecoder(source.location.bootstrap, source.topics, dict(decode.named), decode.numbered)


def operator_name(plan: Plan) -> str:
    """Return what the operator that runs the engine is called on Flink's page: what the plan calls its tasks."""
    models = [f"«{model.name}»" for model in plan.models]
    others = [task.name for task in plan.tasks if task not in plan.models]
    return (
        f"{'models' if len(models) > 1 else 'model'} {', '.join(models)}" if models else ", ".join(others) or plan.app
    )
