"""The pipeline's own numbers among Spark's metrics: on the page of the driver, and wherever Spark's metrics go."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from headrace.capture.topics.reader import Offsets
from headrace.engines.local.running import Running
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from pyspark import SparkContext

logger = logging.getLogger("headrace")

EVERY_S = 1.0
ROWS, LAG = "rows", "lag"
_registered: dict[tuple[str, str], dict[str, Any]] = {}
"""Of each application and pipeline: Spark takes a name once."""


class Gauges:
    """Rows taken in since the start, and rows of topics that were not, as accumulators of Spark's.

    https://spark.apache.org/docs/latest/monitoring.html#component-instance--driver (``LongAccumulatorSource``)
    """

    def __init__(self, context: SparkContext, running: Running) -> None:
        self._running = running
        self._values = _values(context, running.engine.plan.app)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headrace-spark-gauges", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(EVERY_S):
                self._values[ROWS].setValue(sum(self._running.captured.values()))
                self._values[LAG].setValue(self._lag())
        except Exception as error:  # the JVM may end before the pipeline does
            logger.debug("Spark's metrics have no more rows: %s", error)

    def _lag(self) -> int:
        behind = 0
        for source in self._running.engine.sources:
            done = self._running.engine.progress.done.get(source.name)
            try:
                end = source.end()
            except HeadraceError:  # its server is away: the pipeline's status says so
                continue
            if isinstance(end, Offsets):
                read = dict(done.items()) if isinstance(done, Offsets) else {}
                behind += sum(max(0, offset - read.get(where, 0)) for where, offset in end.items())
        return behind

    def close(self) -> None:
        """End the thread, which may be asking a broker that is away."""
        self._ended.set()
        self._thread.join(EVERY_S)


def _values(context: SparkContext, app: str) -> dict[str, Any]:
    """Return accumulators, whose values are Java's, registered as a source of metrics: ``headrace.APP.rows``."""
    key = context.applicationId, app
    if key in _registered:
        return _registered[key]
    jvm, spark = context._jvm, context._jsc.sc()
    assert jvm is not None
    values = {name: spark.longAccumulator(f"headrace.{app}.{name}") for name in (ROWS, LAG)}
    names = jvm.java.util.HashMap()
    for name, value in values.items():
        names.put(f"headrace.{app}.{name}", value)
    found = jvm.org.apache.spark.api.python.PythonUtils.toScalaMap(names)
    source = getattr(jvm.org.apache.spark.metrics.source, "LongAccumulatorSource$")  # Scala's name of its object
    getattr(source, "MODULE$").register(spark, found)
    _registered[key] = values
    return values
