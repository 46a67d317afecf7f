"""From a plan to a running pipeline, on the engine that its settings choose."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from headrace.engines.contract import RunningPipeline
from headrace.engines.limits import check_limits, check_log
from headrace.engines.separate_capture import capture_of, check_uncaptured, following
from headrace.engines.settings import EngineName, FlinkEngine, LocalEngine, RunSettings, SparkEngine
from headrace.errors import DeclarationError, MissingExtra
from headrace.plan.plan import Plan

# Flink's packages ask for versions of Arrow that are older than ours, and run with ours.
FIRST: Mapping[EngineName, str] = {FlinkEngine.name: "apache-flink>=2.3,<2.4"}
PACKAGES: Mapping[EngineName, str] = {SparkEngine.name: "pyspark", FlinkEngine.name: "pyflink"}


def start(plan: Plan, settings: RunSettings) -> RunningPipeline:
    """Start a plan; raises before anything is written when it cannot work.

    Raises:
        DeclarationError: the plan, a model's fingerprint against the log, or what the engine cannot do.
        MissingExtra: the engine's packages are not installed.
        SourceError: a database cannot be reached, or cannot be captured as it is.
        LogError: the log is locked by another process, or damaged.
    """
    engine = settings.engine
    plan.check()
    check_log(plan, engine)
    if settings.only == "capture":
        if not isinstance(engine, LocalEngine):
            raise DeclarationError(
                f'only="capture" runs in this process, and not on engine="{engine.name}"',
                advice="Leave engine= out; the models run there, beside it.",
            )
        capture = capture_of(plan)
        check_uncaptured(plan)
        plan = capture
    else:
        require_packages(engine.name)
        plan = following(plan)
        check_limits(plan, settings)
    if isinstance(engine, SparkEngine):
        from headrace.engines.spark import startup as spark

        return spark.start(plan, settings)
    if isinstance(engine, FlinkEngine):
        from headrace.engines.flink import startup as flink

        return flink.start(plan, settings)
    from headrace.engines.local import startup as local

    return local.start(plan, settings)


def require_packages(engine: EngineName) -> None:
    """Refuse an engine whose packages are not here.

    Raises:
        MissingExtra: with the command that installs them.
    """
    package = PACKAGES.get(engine)
    if package is not None and find_spec(package) is None:
        raise MissingExtra(engine, f'engine="{engine}"', first=FIRST.get(engine, ""))
