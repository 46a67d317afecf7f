"""What an engine cannot do yet: one table, that the refusals at a start and the documentation are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from headrace.engines.settings import (
    ENGINES,
    EngineName,
    EngineSettings,
    FlinkEngine,
    LocalEngine,
    RunSettings,
    SparkEngine,
)
from headrace.errors import DeclarationError
from headrace.plan.plan import Plan

Finder = Callable[[Plan, RunSettings], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Limit:
    """Something that some engines cannot do.

    Attributes:
        what: follows «cannot».
        engines: names of those that cannot.
        reason: why, as a sentence's end.
        instead: what to do, as a sentence; the engine ``local`` can do everything.
        used: returns how a plan and its settings ask for it; nothing where they do not.
    """

    what: str
    engines: tuple[EngineName, ...]
    reason: str
    instead: str
    used: Finder

    def refusal(self, engine: str, used: Iterable[str]) -> DeclarationError:
        """Return the error of a start that asks for it."""
        named = ", ".join(used)
        return DeclarationError(
            f'engine="{engine}" cannot {self.what} yet{f" ({named})" if named else ""}: {self.reason}',
            advice=f'{self.instead} Or run it with engine="local".',
        )


# Asked for while it runs: no plan says so.
REQUESTS = Limit(
    "tick a model when asked",
    (FlinkEngine.name,),
    "whoever asks is another process, and the job alone writes the log",
    "Say when a cut is closed by every=.",
    lambda plan, settings: (),
)
LIMITS: tuple[Limit, ...] = (
    Limit(
        "capture PostgreSQL inside its job",
        (FlinkEngine.name,),
        "a replication slot belongs to one process, which acknowledges what has committed",
        "Run `headrace run FILE --only capture` beside it, and start that first.",
        lambda plan, _: (f"source «{source.prefix}»" for source in plan.sources),
    ),
    Limit(
        "append rows of the program's own",
        (FlinkEngine.name,),
        "the program that submits the job is not where the job runs",
        "Append with `headrace produce`, or let a producer of Kafka write the topic.",
        lambda plan, _: (f"topic «{topic}»" for topic in plan.appended),
    ),
    Limit(
        "predict over HTTP in the same process",
        (FlinkEngine.name,),
        "the model lives in a task of the job",
        "Run `headrace serve FILE` beside it: it follows the log.",
        lambda _, settings: ["serve=…"] if settings.serve else [],
    ),
    Limit(
        "show the dashboard from the same process",
        (FlinkEngine.name,),
        "what the models are lives in tasks of the job",
        "Run `headrace ui --log LOG` beside it, which looks at the log.",
        lambda _, settings: ["ui=…"] if settings.ui else [],
    ),
    Limit(
        "serve metrics from the same process",
        (FlinkEngine.name,),
        "what there is to count lives in tasks of the job",
        "Run `headrace serve FILE` beside it, whose /metrics has what the log says.",
        lambda _, settings: ["metrics=…"] if settings.metrics else [],
    ),
    Limit(
        "spread work over processes of this machine",
        (SparkEngine.name,),
        "its executors do that work",
        "Say how many in master=, as local[4], or to the cluster.",
        lambda _, settings: [f"workers={settings.workers}"] if settings.workers > 1 else [],
    ),
    REQUESTS,
)


def check_log(plan: Plan, engine: EngineSettings) -> None:
    """Refuse a log that an engine cannot use.

    Raises:
        DeclarationError: it is not on Kafka.
    """
    if isinstance(engine, LocalEngine) or plan.on_kafka:
        return
    raise DeclarationError(
        f'engine="{engine.name}" needs a log on Kafka, and this one is {plan.log}',
        advice=f'Write App("{plan.app}", log="kafka://host:9092"), or give --log kafka://host:9092.',
    )


def check_limits(plan: Plan, settings: RunSettings) -> None:
    """Refuse a plan that asks an engine for what it cannot do.

    Raises:
        DeclarationError: by name, with the reason and what to do.
    """
    engine = settings.engine.name
    for limit in LIMITS:
        used = tuple(limit.used(plan, settings)) if engine in limit.engines else ()
        if used:
            raise limit.refusal(engine, used)


def limits_table() -> str:
    """Return the table as Markdown."""
    others = [name for name in ENGINES if name != LocalEngine.name]
    lines = [f"| cannot yet | {' | '.join(others)} | because | instead |", "|---|" + "---|" * (len(others) + 2)]
    for limit in LIMITS:
        marks = " | ".join("no" if name in limit.engines else "yes" for name in others)
        lines.append(f"| {limit.what} | {marks} | {limit.reason} | {limit.instead} |")
    return "\n".join(lines)
