"""From a plan to a pipeline on Spark: the local engine in this process, the driver, with executors as its workers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from headrace.engines.local import startup as local
from headrace.engines.local.running import Running
from headrace.engines.settings import RunSettings, SparkEngine
from headrace.engines.spark.gauges import Gauges
from headrace.engines.spark.jobs import Jobs
from headrace.engines.spark.session import connect
from headrace.engines.spark.workers import SparkWorkers
from headrace.event_log import event
from headrace.plan.plan import Plan

if TYPE_CHECKING:
    from pyspark import SparkContext

logger = logging.getLogger("headrace")


def start(plan: Plan, settings: RunSettings) -> Running:
    """Start a plan that was checked, on the engine in ``settings.engine``; see `headrace.engines.local.startup.start`.

    Raises:
        MissingExtra: PySpark is not installed.
        HeadraceError: Spark does not start.
    """
    spark = settings.engine
    assert isinstance(spark, SparkEngine)
    contexts: list[SparkContext] = []

    def workers(checked: Plan) -> SparkWorkers:
        settings.on_status(f"connecting to Spark{f' ({spark.master})' if spark.master else ''}")
        context, made = connect(plan.app, spark.master, spark.conf)
        contexts.append(context)
        return SparkWorkers(Jobs(context, plan.app, stops=made), checked)

    running = local.start(plan, settings, make_workers=workers)
    context = contexts[-1]
    running.closing.append(Gauges(context, running).close)
    page = context.uiWebUrl or ""
    running.page = running.page or page
    if page:
        logger.info("Spark's page: %s", page, extra=event("spark_page", app=plan.app, page=page))
    return running
