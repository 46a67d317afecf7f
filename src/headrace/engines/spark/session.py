"""The connection to a Spark cluster: the one that is there, or a new one."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from headrace.errors import DeclarationError, HeadraceError, MissingExtra

if TYPE_CHECKING:
    from pyspark import SparkContext

# Delays and limits that help jobs of Spark's usual size, and hurt those that take 30 ms.
SETTINGS = {
    "spark.locality.wait": "0",
    "spark.driver.maxResultSize": "0",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
}
# A machine's two cores are better used by Python than by a compiler and a collector that expect more of them.
SMALL_JVM = "-XX:+UseSerialGC -XX:TieredStopAtLevel=1"
_LOCAL = re.compile(r"local(?:\[(\d+|\*)\])?")
_TRIES = 8  # of a task; «local[2]» allows a single one


def master_of(master: str) -> str:
    """Return a master as Spark takes it: tasks of this machine are tried again too, as those of a cluster are.

    >>> master_of("local[2]"), master_of("local"), master_of("local[2,3]"), master_of("spark://a:7077")
    ('local[2,8]', 'local[1,8]', 'local[2,3]', 'spark://a:7077')
    """
    local = _LOCAL.fullmatch(master)
    return f"local[{local[1] or 1},{_TRIES}]" if local else master


def connect(app: str, master: str | None, properties: Mapping[str, str]) -> tuple[SparkContext, bool]:
    """Return the context of this process, and whether it was made here, and is to be stopped here.

    Args:
        master: None: the context that is there, or what `spark-submit` says.
        properties: of Spark, for a new context.

    Raises:
        MissingExtra: PySpark is not installed.
        HeadraceError: Spark does not start, or its master cannot be reached.
    """
    try:
        from pyspark import SparkContext
    except ImportError as error:
        raise MissingExtra("spark", "engine='spark'") from error
    there = SparkContext._active_spark_context
    if there is not None:
        if master is not None and master_of(master) not in (there.master, master_of(there.master)):
            raise DeclarationError(
                f"master={master!r}, and this process has a session with {there.master} already",
                advice="Leave master out, or stop that session.",
            )
        return there, False
    # In a thread of its own: PySpark takes SIGINT over in the main thread, where it is ours.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_connected, app, master, properties).result(), True


def _connected(app: str, master: str | None, properties: Mapping[str, str]) -> SparkContext:
    from py4j.protocol import Py4JError
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = SparkConf()
    conf.setAppName(f"headrace {app}")
    if master is not None:
        conf.setMaster(master_of(master))
    for name, value in properties.items():
        conf.set(name, value)
    for name, value in SETTINGS.items():
        conf.setIfMissing(name, value)
    if (os.cpu_count() or 1) <= 4:
        conf.setIfMissing("spark.driver.extraJavaOptions", SMALL_JVM)
    where = conf.get("spark.master") or "no master"
    try:
        return SparkContext.getOrCreate(conf)
    except (Py4JError, PySparkException, OSError) as error:
        raise HeadraceError(
            f"Spark does not start ({where}): {_reason(error)}",
            advice="It needs Java 17 or newer (JAVA_HOME), a master that answers, and master=… or spark-submit.",
        ) from error


def _reason(error: Exception) -> str:
    """Return what Java says in a line."""
    text = str(getattr(error, "java_exception", "") or error)  # Py4J's errors hold Java's
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
