"""From a plan to a running pipeline: check everything, then open, snapshot, recover, run."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.capture.base import Source
from headrace.capture.postgres.source import PostgresSource
from headrace.capture.topics.reader import TopicsReader
from headrace.capture.topics.source import MakeReader
from headrace.clock import Clock
from headrace.engines.local.append_source import AppendSource
from headrace.engines.local.circles import Circles
from headrace.engines.local.engine import Engine
from headrace.engines.local.first_rows import FirstRows, check_known, check_queries
from headrace.engines.local.pool import ProcessPool
from headrace.engines.local.running import Running
from headrace.engines.local.serving.health import (
    HealthWriter,
    HistoryWriter,
    StartReport,
    StatusRecord,
    StatusReport,
    engine_metrics,
)
from headrace.engines.local.serving.service import LocalModels, ServerBinding, receive_served_rows, serve_running
from headrace.engines.local.sink_runner import SinkRunners
from headrace.engines.local.sources import check_apart, databases, foreign_topics, registered_columns, topic_sources
from headrace.engines.local.tasks import OnStep
from headrace.engines.local.tracing import trace_rounds
from headrace.engines.settings import RunSettings
from headrace.engines.workers import Workers
from headrace.errors import DeclarationError, FingerprintError, LogMissing
from headrace.event_log import event
from headrace.formats.topic_formats import TopicCodec, codec_for
from headrace.inspect.health import FILE, HISTORY, read_history
from headrace.kafka.settings import KafkaLocation
from headrace.log import file_of, open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.log.retention import FOREVER, Keep
from headrace.plan.blueprint import blueprint
from headrace.plan.columns import Columns
from headrace.plan.fingerprint import declaration_differences
from headrace.plan.plan import Plan, TopicsPlan
from headrace.plan.task import ModelTask
from headrace.plan.topic_columns import TopicColumns
from headrace.registry.models import ModelRecord, declare, read_model, read_progress, reset
from headrace.registry.plans import record_plan
from headrace.registry.requests import CONTINUE, read_continue
from headrace.replay.continuation import refused_everything, ways_on, why_not_continue
from headrace.replay.environment import environment_fingerprint, libraries_of, record_environment
from headrace.replay.known_tasks import with_known_names
from headrace.serve.models import Gauge

logger = logging.getLogger("headrace")

SAY_SECONDS = 5.0


MakeWorkers = Callable[[Plan], Workers | None]


def start(
    plan: Plan,
    settings: RunSettings | None = None,
    *,
    make_workers: MakeWorkers | None = None,
    reader: MakeReader = TopicsReader,
) -> Running:
    """Start a plan; raises before anything is written when it cannot work.

    Args:
        reader: makes what reads topics that others write.
        make_workers: of another engine; called once the plan has been checked against the log. None: processes of this
            machine, as the settings say.

    Raises:
        DeclarationError: the plan, or a model's fingerprint against the log.
        SourceError: a database cannot be reached, or cannot be captured as it is.
        LogError: the log is locked by another process, or damaged.
    """
    settings = settings or RunSettings()
    plan.check()
    place = ServerBinding.of(plan, settings.serve, ui=settings.ui) if settings.serve or settings.ui else None
    try:
        return _start(plan, settings, place, make_workers or functools.partial(_processes, settings), reader)
    except BaseException:
        if place is not None:
            place.close()
        raise


def _processes(settings: RunSettings, plan: Plan) -> Workers | None:
    return ProcessPool(settings.workers, plan.models) if settings.workers > 1 else None


def _start(
    plan: Plan, settings: RunSettings, place: ServerBinding | None, make_workers: MakeWorkers, reader: MakeReader
) -> Running:
    keep = Keep.parse(plan.keep) if plan.keep is not None else None

    starting = StartReport(plan.app)

    def on_progress(table: str, rows: int, estimated: int) -> None:
        starting.read(table, rows, estimated)
        settings.on_read(table, rows, estimated)

    captured = databases(plan, on_progress, take_over=settings.take_over, on_gap=settings.on_gap)
    circles = Circles(plan, captured)
    codec = codec_for(plan.formats)
    checked: Checked | None = None
    if settings.log is None and (plan.on_kafka or not Path(plan.log).exists()):
        # A declaration that is refused leaves no empty log behind, and stops nobody who writes this one.
        with _as_it_stands(plan, codec) as held:
            checked = _check(plan, captured, held, circles)
    with contextlib.ExitStack() as undo:
        workers = make_workers(plan)
        if workers is not None:
            undo.callback(workers.close)
        log = settings.log or open_log(plan.log, writer=True, name=plan.app, codec=codec)
        if settings.log is None:
            undo.callback(log.close)
        if checked is None or log.newest_slice() != checked.slice:
            checked = _check(plan, captured, log, circles)
        sources = _sources(plan, captured, log, checked, reader)
        for source in sources:
            undo.callback(source.stop)
        if workers is not None:
            workers.attend(sources)
        plan = with_known_names(plan, log)
        engine = Engine(plan, log, sources, keep=keep, clock=settings.clock, workers=workers)
        engine.first_rows = FirstRows(plan, _tables(captured), checked.known, log)
        _declare_models(plan, log, settings.clock)
        for warning in [warning for source in sources for warning in source.traits.warnings]:
            logger.warning("%s", warning, extra=event("source_warning", app=plan.app))
        undo.callback(metrics := _metrics(engine, settings, started := []))
        ends = {topic: info.end for topic, info in log.topics().items()}
        with starting.beside(file_of(log, FILE)):
            for source in sources:
                source.start(log, engine.waker)
            engine.dead_letters.look(log, ends)
            engine.recover(_repeating(settings.on_status))
        sinking = SinkRunners(plan.sinks, engine, log, lambda: _reader(plan, log, codec), late=circles.late)
        engine.holders.append(sinking.needed)
        models = LocalModels(engine) if place else None
        trace_rounds(engine)
        undo.pop_all()
    stays_open = settings.log is not None or plan.log.startswith("memory:")
    running = Running(engine, log, close_log=not stays_open, sinking=sinking)
    started.append(running)
    running.closing.append(metrics)
    logger.info("%s", _about(plan), extra=event("running", app=plan.app, log=plan.log))
    _warn_of_untrained(plan, log)
    _tell_health(running)
    receive_served_rows(running, plan.endpoints)
    if models and place:
        serve_running(running, models, place, location=location_of(plan))
    return running


def _metrics(engine: Engine, settings: RunSettings, running: Sequence[Running]) -> Callable[[], None]:
    """Serve numbers for Prometheus from now on, where that is wanted; return what ends it.

    Args:
        running: the pipeline, once it runs: it knows its sinks.

    Raises:
        HeadraceError: the port cannot be had.
    """
    if settings.metrics is None:
        return lambda: None
    from headrace.serve.metrics import MetricsServer

    def gauges() -> list[Gauge]:
        return engine_metrics(engine, [sink for each in running for sink in each.sinks.values()])

    server = MetricsServer(gauges, *settings.metrics)
    logger.info("metrics at %s", server.url, extra=event("metrics", app=engine.plan.app, url=server.url))
    return server.close


def checked_sources(plan: Plan) -> list[Source[Any]]:
    """Refuse what cannot run, as `start` does; return the sources that would read, not started.

    Raises:
        DeclarationError, SourceError, LogError: as `start`.
    """
    plan.check()
    codec = codec_for(plan.formats)
    captured = databases(plan, lambda table, rows, estimated: None)
    with _as_it_stands(plan, codec) as held:
        return _sources(plan, captured, held, _check(plan, captured, held, Circles(plan, captured)))


def _about(plan: Plan) -> str:
    models = ", ".join(model.name for model in plan.models)
    return f"running, log {plan.log}" + (f", models {models}" if models else "")


def _repeating(on_status: Callable[[str], None]) -> OnStep:
    """Say how far the repeating of recorded steps has come: on the live line, and now and then in a line of its own."""
    began = said = time.monotonic()

    def on_step(task: str, step: int, last: int) -> None:
        nonlocal said
        line = f"«{task}»: repeating step {step:,} of {last:,}"
        on_status(line)
        now = time.monotonic()
        if now - said >= SAY_SECONDS:
            said = now
            logger.warning(
                "%s, for %.0f s now", line, now - began, extra=event("replaying", task=task, step=step, last=last)
            )

    return on_step


def _warn_of_untrained(plan: Plan, log: Log) -> None:
    """Say which models predict nothing until somebody asks for their first training: what begins one comes after it."""
    for task in plan.models:
        progress = read_progress(log, task.name)
        trained = task.initial is not None or task.learner.ready or (progress is not None and progress.model_rows > 0)
        if task.retrain is None or trained:
            continue
        where = location_of(plan)
        logger.warning(
            "«%s» is not trained, and predicts nothing until it is: give it initial=…, or ask for its first training: "
            "headrace models retrain %s --log %s",
            task.name, task.name, where,
            extra=event("untrained", app=plan.app, model=task.name),
        )  # fmt: skip


def _tell_health(running: Running) -> None:
    """Let processes that follow the log know how its pipeline is."""
    path, history, engine = file_of(running.log, FILE), file_of(running.log, HISTORY), running.engine
    if path is None and not isinstance(running.log, KafkaLog):
        return
    report = StatusReport(engine, lambda: list(running.sinks.values()))
    running.closing.append(report.close)
    if path is not None and history is not None:
        told = HealthWriter(path, report, HistoryWriter(history, read_history(running.log)))
        engine.each_round.append(told.write)
        running.closing.append(told.remove)
    else:
        record = StatusRecord(engine, engine.plan.app, report)
        engine.at_end.append(record.at_end)
        engine.each_commit.append(record.in_round)
        engine.each_round.append(record.idle)


def _reader(plan: Plan, log: Log, codec: TopicCodec) -> tuple[Log, bool]:
    """A log to read from beside the engine, and whether whoever reads closes it."""
    if plan.log.startswith("memory:"):
        return log, False
    return open_log(plan.log, writer=False, name=plan.app, codec=codec), True


@contextlib.contextmanager
def _as_it_stands(plan: Plan, codec: TopicCodec) -> Iterator[Log]:
    """The log that is there, to be looked at; an empty one where there is none."""
    held: Log | None = None
    if plan.on_kafka:
        with contextlib.suppress(LogMissing):
            held = open_log(plan.log, writer=False, name=plan.app, codec=codec)
    held = held or open_log("memory://", writer=True)
    try:
        yield held
    finally:
        held.close()


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of a plan that can run.

    Attributes:
        known: the columns of topics, as they are known.
        foreign: topics that others write, by what reads them.
        slice: the last one of the log that it was checked against.
    """

    known: dict[str, Columns]
    foreign: dict[TopicsPlan, list[str]]
    slice: int


def _check(plan: Plan, captured: Sequence[PostgresSource], log: Log, circles: Circles) -> Checked:
    """Refuse what cannot run."""
    last = log.newest_slice()
    for model in plan.models:
        check_fingerprint(plan, model, log, continues=True)
    circles.look()
    for source in captured:
        source.check(log)
    check_apart(captured, on_kafka=plan.on_kafka)
    tables = _tables(captured)
    if plan.on_kafka:
        codec_for(plan.formats).check([*tables, *plan.written])
    foreign = foreign_topics(plan, log, tables)
    others_write = [topic for topics in foreign.values() for topic in topics]
    plan.check_topics([*tables, *log.topics(), *others_write])
    fixed = {topic: Columns(topic, schema) for topic, schema in tables.items()} | registered_columns(plan, foreign)
    known = check_known(plan, fixed, log, {*others_write, *plan.appending})
    check_queries(plan, known, {*tables, *log.topics(), *others_write})
    circles.check(TopicColumns(plan, fixed.get))
    return Checked(known, foreign, last)


def _sources(
    plan: Plan, captured: Sequence[PostgresSource], log: Log, checked: Checked, reader: MakeReader = TopicsReader
) -> list[Source[Any]]:
    """Return the sources that a plan reads from."""
    appended = [AppendSource(log, plan.appending, plan.served)] if plan.appended else []
    return [*captured, *topic_sources(plan, checked.foreign, reader), *appended]


def _tables(captured: Sequence[PostgresSource]) -> dict[str, pa.Schema]:
    """Return the columns of captured tables, by their topics, after the sources were checked."""
    return {topic: schema for source in captured for topic, schema in source.traits.tables.items()}


def check_fingerprint(plan: Plan, task: ModelTask, log: Log, *, continues: bool = False) -> None:
    """Refuse a model that is declared differently from the one in the log.

    Args:
        continues: where somebody has asked that it goes on from what it has learned, it may, if that fits; one that has
            only refused rows may begin anew.
    """
    known = read_model(log, task.name)
    if known is not None and known["app"] not in ("", plan.app):
        raise DeclarationError(
            f"the model «{task.name}» in this log belongs to the app «{known['app']}», not «{plan.app}»",
            advice="Give the model another name, or the app a log of its own.",
        )
    if known is None or not known["fingerprint"]:
        return
    changed = _changed(known, task)
    if changed and continues and refused_everything(log, task.name):
        return
    if not changed or (continues and read_continue(log, task.name) is not None and not why_not_continue(log, task)):
        return
    where = location_of(plan)
    raise FingerprintError(
        f"the model «{task.name}» is declared differently from the one in {plan.log} (version {known['version']}):\n"
        + "\n".join(f"    {line}" for line in changed),
        advice=ways_on(where, task.name, why_not_continue(log, task)),
    )


def location_of(plan: Plan) -> str:
    """Return where a plan's log is, as a command takes it; without a password."""
    return KafkaLocation.parse(plan.log, name=plan.app).url if plan.on_kafka else plan.log


def _changed(known: ModelRecord | None, task: ModelTask) -> list[str]:
    """Return how a model is declared differently from the one that a log knows."""
    return [] if known is None else declaration_differences(known["fingerprint"], task.fingerprint())


def _declare_models(plan: Plan, log: Log, clock: Clock) -> None:
    for task in plan.models:
        known = read_model(log, task.name)
        if known is not None and known["fingerprint"] and _changed(known, task) and refused_everything(log, task.name):
            with log.transaction() as txn:
                reset(log, txn, task.name, relearn=True, ts_us=clock.now_us())
            text = f"the model «{task.name}» is declared differently, and has only refused rows so far: it begins anew"
            logger.info("%s", text, extra=event("began_anew", app=plan.app, model=task.name))
    with log.transaction() as txn:
        record_environment(log, txn, plan.app, environment_fingerprint())
        keep = FOREVER if plan.keep is None else str(plan.keep)
        record_plan(log, txn, plan.app, {**plan.graph().to_dict(), "keep": keep})
        for task in plan.models:
            known, made_of = read_model(log, task.name), blueprint(task)
            undeclared = known is None or not known["fingerprint"]
            if (undeclared or not _changed(known, task)) and read_continue(log, task.name) is not None:
                txn.delete(CONTINUE, task.name)  # it was asked for this start, which did not need it
            if undeclared:
                libraries = libraries_of(task.learner)
                declare(log, txn, task.name, task.fingerprint(), clock.now_us(), plan.app, made_of, libraries)
