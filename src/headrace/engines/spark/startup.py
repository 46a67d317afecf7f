"""From a plan to a pipeline on Spark: the local engine in this process, the driver, with executors as its workers."""

from __future__ import annotations

import logging

from headrace.engines.local import startup as local
from headrace.engines.local.running import Running
from headrace.engines.settings import RunSettings, SparkEngine
from headrace.engines.spark.jobs import Jobs
from headrace.engines.spark.session import connect
from headrace.engines.spark.workers import SparkWorkers
from headrace.event_log import event
from headrace.plan.plan import Plan

logger = logging.getLogger("headrace")


def start(plan: Plan, settings: RunSettings) -> Running:
    """Start a plan that was checked, on the engine in ``settings.engine``; see `headrace.engines.local.startup.start`.

    Raises:
        MissingExtra: PySpark is not installed.
        HeadraceError: Spark does not start.
    """
    spark = settings.engine
    assert isinstance(spark, SparkEngine)

    page = ""

    def workers(checked: Plan) -> SparkWorkers:
        nonlocal page
        settings.on_status(f"connecting to Spark{f' ({spark.master})' if spark.master else ''}")
        context, made = connect(plan.app, spark.master, spark.conf)
        page = context.uiWebUrl or ""
        return SparkWorkers(Jobs(context, plan.app, stops=made), checked)

    running = local.start(plan, settings, make_workers=workers)
    running.page = page
    if page:
        logger.info("Spark's page: %s", page, extra=event("spark_page", app=plan.app, page=page))
    return running
