"""Settings of one run of a plan, and of the engine that runs it: values that are said anew at each start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, get_args

from headrace.clock import Clock, SystemClock
from headrace.errors import DeclarationError, near
from headrace.log.base import Log

if TYPE_CHECKING:
    from headrace.serve.settings import ServeSettings

EngineName: TypeAlias = Literal["local", "spark", "flink"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """This process, with more of them where `RunSettings.workers` says so."""

    name: ClassVar[EngineName] = "local"


@dataclass(frozen=True, slots=True)
class SparkEngine:
    """Spark: this process is the driver, and Spark's executors predict, decode and train.

    Attributes:
        master: ``local[N]``, ``spark://host:port``, ``yarn``, …; None: as ``spark-submit`` or Spark's own settings say.
        conf: Spark's properties (https://spark.apache.org/docs/latest/configuration.html).
    """

    name: ClassVar[EngineName] = "spark"
    master: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FlinkEngine:
    """Flink: a job of the cluster runs the pipeline, and this process watches it.

    `RunSettings.workers` is the parallelism of what can be spread.

    Attributes:
        jobmanager: ``host:port`` of its REST interface; None: a mini cluster in this process.
        conf: Flink's options (https://nightlies.apache.org/flink/flink-docs-stable/docs/deployment/config/).
    """

    name: ClassVar[EngineName] = "flink"
    jobmanager: str | None = None
    conf: Mapping[str, str] = field(default_factory=dict)


EngineSettings: TypeAlias = LocalEngine | SparkEngine | FlinkEngine

# The option that only one engine has.
_BELONGS: Mapping[str, EngineName] = {"master": SparkEngine.name, "jobmanager": FlinkEngine.name}
# https://spark.apache.org/docs/latest/submitting-applications.html#master-urls
_MASTER = re.compile(
    r"local(\[(\*|[1-9]\d*)(,\s*[1-9]\d*)?\])?|local-cluster\[\d+,\d+,\d+\]|spark://[^\s/]+:\d+(,[^\s/]+:\d+)*|yarn|k8s://\S+"
)
_ADDRESS = re.compile(r"([^\s:/@]+|\[[0-9a-fA-F:]+\]):\d{1,5}")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings of one run of a plan: they are said anew at each start, and are no part of its description.

    Attributes:
        engine: who runs it.
        only: ``"capture"``: the plan's databases are captured for other processes, and no model runs.
        serve: predict over HTTP too, as these settings say, or (True) the environment.
        ui: serve, and say where the dashboard is. The port is 8080 or the next free one, where nothing says another.
        take_over: take replication slots that belong to another log.
        metrics: host and port at which numbers about the pipeline are served for Prometheus, without a server.
        on_gap: what to do where a slot has lost rows that the log does not have, in place of what the plan says.
        workers: processes that predict and train beside this one; none where it is 1. On Flink: its parallelism.
        log: the plan's log where it is open already: it stays open at the end.
        clock: what time it is.
        on_status: called while the pipeline starts, with a line for people.
        on_read: called while the first snapshot is read: table, rows until now, rows estimated.
    """

    engine: EngineSettings = field(default_factory=LocalEngine)
    only: Literal["capture"] | None = None
    serve: bool | ServeSettings = False
    ui: bool | ServeSettings = False
    take_over: bool = False
    on_gap: Literal["fail", "snapshot", "accept"] | None = None
    metrics: tuple[str, int] | None = None
    workers: int = 1
    log: Log | None = None
    clock: Clock = field(default_factory=SystemClock)
    on_status: Callable[[str], None] = lambda line: None
    on_read: Callable[[str, int, int], None] = lambda table, rows, estimated: None


def engine_settings(
    engine: str = LocalEngine.name,
    *,
    master: str | None = None,
    jobmanager: str | None = None,
    conf: Mapping[str, str] | None = None,
) -> EngineSettings:
    """Return the engine that options choose.

    Raises:
        DeclarationError: there is no such engine, an option belongs to another one, or says nothing to it.

    >>> engine_settings("spark", master="local[2]")
    SparkEngine(master='local[2]', conf={})
    >>> engine_settings(master="local[2]")
    Traceback (most recent call last):
    headrace.errors.DeclarationError: master='local[2]' says nothing to engine="local" (did you mean engine="spark"?)
      → master= belongs to engine="spark"; leave it out, or choose that engine.
    """
    if engine not in ENGINES:
        raise DeclarationError(
            f"there is no engine «{engine}»{near(engine, ENGINES)}", advice=f"Choose {', '.join(ENGINES)}."
        )
    for name, value in (("master", master), ("jobmanager", jobmanager)):
        owner = _BELONGS[name]
        if value is not None and engine != owner:
            raise DeclarationError(
                f'{name}={value!r} says nothing to engine="{engine}" (did you mean engine="{owner}"?)',
                advice=f'{name}= belongs to engine="{owner}"; leave it out, or choose that engine.',
            )
    conf = dict(conf or {})
    if engine == LocalEngine.name:
        if conf:
            raise DeclarationError(
                f'conf={conf!r} says nothing to engine="local"',
                advice='conf= has properties of Spark or Flink: choose engine="spark" or engine="flink".',
            )
        return LocalEngine()
    if engine == SparkEngine.name:
        _check_master(master)
        strange = next((name for name in conf if not name.startswith("spark.")), None)
        if strange is not None:
            raise DeclarationError(
                f"conf: «{strange}» is no property of Spark", advice=f"Their names begin so: spark.{strange}."
            )
        return SparkEngine(master, conf)
    _check_jobmanager(jobmanager)
    return FlinkEngine(jobmanager, conf)


def _check_master(master: str | None) -> None:
    if master is None or _MASTER.fullmatch(master):
        return
    meant = f" (did you mean «spark://{master}»?)" if _ADDRESS.fullmatch(master) else ""
    raise DeclarationError(
        f"master={master!r} is no master of Spark{meant}", advice="Write local[2], spark://host:7077, yarn or k8s://…."
    )


def _check_jobmanager(jobmanager: str | None) -> None:
    if jobmanager is None or _ADDRESS.fullmatch(jobmanager):
        return
    bare = jobmanager.partition("://")[2].rstrip("/")
    meant = f" (did you mean «{bare}»?)" if _ADDRESS.fullmatch(bare) else ""
    raise DeclarationError(
        f"jobmanager={jobmanager!r} is no address{meant}",
        advice="Write host:8081, where the job manager's REST interface and its page are.",
    )
