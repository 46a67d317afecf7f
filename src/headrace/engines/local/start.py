"""From a declared app to a running pipeline: check everything, then open, snapshot, recover, run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.capture.postgres.source import PostgresSource
from headrace.clock import SystemClock
from headrace.engines.local.engine import Engine
from headrace.engines.local.machine import machine_fingerprint, record_machine
from headrace.engines.local.running import Running
from headrace.errors import DeclarationError, FingerprintError
from headrace.log import open_log
from headrace.log.base import Log
from headrace.log.retention import Keep
from headrace.plan import ModelTask, Plan
from headrace.registry.models import differences, read_model, read_progress, write_version

if TYPE_CHECKING:
    from headrace.app import App

logger = logging.getLogger("headrace")


def start(app: App) -> Running:
    """Start an app; raises before anything is written when its declaration cannot work."""
    plan = app.plan()
    plan.check()
    keep = Keep.parse(app.keep) if app.keep is not None else None
    sources = [_source(app, plan, i) for i in range(len(plan.sources))]
    fresh = app._open is None and not plan.log.startswith("memory:") and not Path(plan.log).exists()
    if fresh:
        # A declaration that is refused leaves no empty log behind.
        _check(plan, sources, open_log("memory://", writer=True))
    log = app._open or open_log(plan.log, writer=True)
    try:
        _check(plan, sources, log)
        engine = Engine(plan, log, sources, keep=keep)
        _declare_models(plan, log)
        for warning in [one for source in sources for one in source.warnings]:
            logger.warning("%s", warning)
        for source in sources:
            source.start(log)
        engine.recover()
    except BaseException:
        for source in sources:
            source.stop()
        if app._open is None:
            log.close()
        raise
    if plan.log.startswith("memory:"):
        app._open = log
    return Running(engine, log, close_log=app._open is None)


def _source(app: App, plan: Plan, number: int) -> PostgresSource:
    declared = plan.sources[number]

    def on_progress(table: str, rows: int, estimated: int) -> None:
        app.starting = f"snapshot of {table}: {rows:,} of about {max(rows, estimated):,} rows"

    return PostgresSource(
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


def _check(plan: Plan, sources: list[PostgresSource], log: Log) -> None:
    for model in plan.models:
        _check_fingerprint(plan, model, log)
    for source in sources:
        source.check(log)
    tables = {topic: schema for source in sources for topic, schema in source.tables().items()}
    plan.check_topics(tables, log.topics())


def _check_fingerprint(plan: Plan, task: ModelTask, log: Log) -> None:
    known = read_model(log, task.name)
    if known is not None and known["app"] not in ("", plan.app):
        raise DeclarationError(
            f"the model «{task.name}» in this log belongs to the app «{known['app']}», not «{plan.app}»",
            advice="Give the model another name, or the app a log of its own.",
        )
    if known is None or not known["fingerprint"]:
        return
    changed = differences(known["fingerprint"], task.fingerprint())
    if changed:
        raise FingerprintError(
            f"the model «{task.name}» is declared differently from the one in this log (version {known['version']}):\n"
            + "\n".join(f"    {line}" for line in changed),
            advice=f"`headrace models reset {task.name} --log …` learns again from the log (add --from latest to begin "
            "with new rows); or give the model a new name; or undo the change.",
        )


def _declare_models(plan: Plan, log: Log) -> None:
    clock = SystemClock()
    with log.transaction() as txn:
        record_machine(log, txn, plan.app, machine_fingerprint())
        for task in plan.models:
            known = read_model(log, task.name)
            if known is None or not known["fingerprint"]:
                progress = read_progress(log, task.name)
                version = known["version"] if known else progress.version if progress else 1
                reason = "declared" if known is None else "reset"
                write_version(
                    txn,
                    task.name,
                    version=version,
                    fingerprint=task.fingerprint(),
                    reason=reason,
                    ts_us=clock.now_us(),
                    app=plan.app,
                )
