"""``headrace produce``: rows of a file, of labelled images or of standard input, appended to a topic."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from headrace.cli.arguments import JsonOption, LogOption, location
from headrace.cli.console import talk
from headrace.cli.events import tell
from headrace.engines.local.signals import Signals
from headrace.errors import DeclarationError
from headrace.event_log import event
from headrace.formats.topic_formats import TopicCodec, checked_format, codec_for
from headrace.inspect.messages import to_json
from headrace.log.kafka import KafkaLog
from headrace.plan.plan import INTERNAL
from headrace.produce.inputs import Input
from headrace.produce.producer import Appender, EventColumns, Throttle, append_all, open_for, parse_rate

logger = logging.getLogger("headrace")


def produce(
    topic: Annotated[str, typer.Argument(help="The topic; made where it is not there.")],
    file: Annotated[Path | None, typer.Option("--file", help="JSON lines, CSV or Parquet, by its ending.")] = None,
    idx: Annotated[
        Path | None, typer.Option("--idx", help="A directory with IDX files: columns id, pixels and label.")
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="JSON lines from standard input, as they come.")] = False,
    rate: Annotated[str | None, typer.Option("--rate", help="At most so fast: 100/s, 6000/min.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="The first so many rows of the input only, earlier runs' included.")
    ] = None,
    key: Annotated[list[str] | None, typer.Option("--key", help="A column of the key; may be repeated.")] = None,
    time_column: Annotated[
        str | None, typer.Option("--time-column", help="The column with each row's event time; else it is now.")
    ] = None,
    producer_id: Annotated[
        str | None, typer.Option("--producer-id", help="Started again with it: goes on behind the rows written.")
    ] = None,
    column_major: Annotated[
        bool, typer.Option("--column-major", help="The IDX files hold images column by column, as EMNIST's.")
    ] = False,
    format_: Annotated[str, typer.Option("--format", help="How rows are written to a cluster.")] = "json",
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Write into the log of a pipeline on a cluster; it must be stopped.")
    ] = False,
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append rows to a topic, throttled. With --producer-id each row is there once, however often this is restarted.

    Example: headrace produce digits --idx data/mnist --rate 100/s --log mnist.headrace
    """
    if sum((file is not None, idx is not None, stdin)) != 1:
        raise typer.BadParameter("give one of --file, --idx and --stdin")
    if topic.startswith(INTERNAL):
        raise DeclarationError(f"«{topic}» is a name of Headrace's own", advice=f"Begin it without «{INTERNAL}».")
    throttle = Throttle(parse_rate(rate) if rate is not None else None)
    codec = TopicCodec(checked_format(format_), registry=codec_for().registry)
    source = Input(file, idx, column_major)
    where = location(log)
    total = source.total(limit)  # before a log is made: refuses an input that is not there
    since = time.monotonic()
    with closing(open_for(where, topic, codec, take_over=take_over)) as held, Signals() as signals:
        signals.stop = source.stopped.set
        appender = Appender(held, topic, producer_id, EventColumns(tuple(key or ()), time_column))
        source.column = appender.column
        with _progress(total, appender.done, show=not as_json) as reporter:
            ended = append_all(source, appender, throttle, limit, reporter)
        place = held.location.url if isinstance(held, KafkaLog) else where
    result = {"topic": topic, "log": place, **appender.figures(), "ended": ended}
    earlier = f" behind {appender.skipped} that were there" if appender.skipped else ""
    words = {"input": "the input ended", "limit": "the limit is reached", "stopped": "stopped"}[ended]
    result["seconds"] = round(time.monotonic() - since, 3)
    if as_json:
        print(to_json(result))
    else:
        tell(f"{topic}: {appender.written} rows written{earlier}; {words}", "produced", **result)


@dataclass(frozen=True)
class _Bar:
    """A progress bar as `append_all` reports to it."""

    progress: Progress
    task: TaskID

    def advance(self, done: int) -> None:
        self.progress.update(self.task, completed=done)

    def report(self, message: str) -> None:
        logger.warning("%s", message, extra=event("waiting"))


@contextmanager
def _progress(total: int | None, done: int, *, show: bool) -> Iterator[_Bar]:
    """Show a bar on standard error, where that is a terminal."""
    columns = (TextColumn("producing"), BarColumn(), TextColumn("{task.completed} rows"), TimeRemainingColumn())
    with Progress(*columns, console=talk, transient=True, disable=not (show and talk.is_interactive)) as bar:
        yield _Bar(bar, bar.add_task("rows", total=total, completed=done))
