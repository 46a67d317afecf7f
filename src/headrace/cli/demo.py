"""``headrace demo``: live demonstrations, with servers of their own."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from headrace.cli.arguments import JsonOption
from headrace.cli.ascii import spell
from headrace.cli.console import talk
from headrace.cli.events import shown_on, with_events
from headrace.engines.settings import EngineName
from headrace.inspect.messages import to_json

if TYPE_CHECKING:
    from headrace.demos.servers import ServerOptions

WATCHED_PAUSE = 3.0
drawn = functools.partial(with_events, quiet=True)
demo = typer.Typer(help="Live demonstrations, with a real PostgreSQL of their own.", no_args_is_help=True)


DigitModel = Literal["mlp", "keras", "torch", "cnn", "river"]
UiOption = Annotated[
    bool, typer.Option("--ui", help="Show the dashboard; in a terminal it stays until Ctrl-C. Slow enough to watch.")
]
PauseOption = Annotated[
    float | None, typer.Option(min=0, help="Seconds between steps, for an audience; with --ui 3, else 0.")
]
NoOpenOption = Annotated[bool, typer.Option("--no-open", help="With --ui: do not open the browser.")]
DemoLog = Annotated[
    str | None,
    typer.Option("--log", help="A path, kafka for a broker of its own, kafka://host:port; a fresh file by default."),
]


@demo.command("iris")
@drawn
def demo_iris(
    engine: Annotated[
        EngineName, typer.Option(help="Who runs it: this process, or Spark or Flink with a cluster of the demo's own.")
    ] = "local",
    master: Annotated[
        str | None, typer.Option("--master", help="Of Spark: an existing cluster, or local[2], in place of its own.")
    ] = None,
    jobmanager: Annotated[
        str | None,
        typer.Option("--jobmanager", help="Of Flink: host:8081 of an existing cluster, in place of its own."),
    ] = None,
    flavour: Annotated[
        Literal["flink", "spark"] | None,
        typer.Option(help="Flink ML's or Spark MLlib's published k-means; as the engine says, else flink."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="A directory with train1.csv, train2.csv and test.csv.")] = None,
    postgres: Annotated[
        str | None, typer.Option(help="An existing server's DSN; its iris tables are replaced.")
    ] = None,
    log: DemoLog = None,
    source: Annotated[
        Literal["postgres", "debezium"], typer.Option(help="Who captures: Headrace, or Debezium in Kafka Connect.")
    ] = "postgres",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running.")] = False,
    pause: PauseOption = None,
    ui: UiOption = False,
    no_open: NoOpenOption = False,
    write_sql: Annotated[Path | None, typer.Option("--write-sql", help="Only write the SQL files there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Iris rows are inserted, learned and classified while you watch: 5, then 7, then 9 of 11.

    Spark's table is 5, 8, 11 of 11. On Spark and Flink the log is on Kafka, and their own pages show the work.

    Example: headrace demo iris --flavour spark
    """
    from headrace.demos.iris import play
    from headrace.demos.iris.scene import Options
    from headrace.engines.settings import engine_settings

    if write_sql is not None:
        written = [str(path) for path in play.write_sql(write_sql, data)]
        print(to_json(written) if as_json else "\n".join(written))
        return
    engine_settings(engine, master=master, jobmanager=jobmanager)
    if ui and engine == "flink":
        raise typer.BadParameter("--ui is not for --engine flink, whose job runs elsewhere: headrace ui shows its log")
    chosen = flavour or (engine if engine != "local" else "flink")
    options = Options(
        log=log, postgres=postgres, keep=keep, engine=engine, place=master or jobmanager, flavour=chosen,
        data=data, source=source, pause=_pause(pause, ui), ui=ui, opens=not no_open,
    )  # fmt: skip
    _play(play.play, options, as_json)


@demo.command("mnist")
@drawn
def demo_mnist(
    online: Annotated[
        bool, typer.Option("--online", help="Learn while digits are appended to a topic; no database.")
    ] = False,
    model: Annotated[
        DigitModel | None, typer.Option(help="mlp needs no extra; online the default is cnn where Keras is.")
    ] = None,
    idx: Annotated[
        Path | None, typer.Option("--idx", help="A directory with MNIST's IDX files; 10,000 digits are in the package.")
    ] = None,
    log: DemoLog = None,
    postgres: Annotated[
        str | None, typer.Option(help="An existing server's DSN; its mnist tables are replaced.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="How often the rows are learned, by replay; not with --online.")
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Online: digits of an update.")] = None,
    delay_ms: Annotated[
        float | None, typer.Option("--delay-ms", min=0, help="Online: milliseconds between digits; 10 by default.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="The directory for pictures; beside the log.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running.")] = False,
    pause: PauseOption = None,
    ui: UiOption = False,
    no_open: NoOpenOption = False,
    write_sql: Annotated[
        Path | None, typer.Option("--write-sql", help="Only write mnist_train.sql and mnist_test.sql there.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Handwritten digits: BYTEA rows are learned by replay, and others are recognised while they are inserted.

    With --online they are learned while they are appended; given the same --log again, it goes on where it was.

    Example: headrace demo mnist --model cnn
    """
    from headrace.demos.mnist import digits
    from headrace.demos.mnist.options import Options

    if write_sql is not None:
        written = [str(path) for path in digits.write_sql(write_sql, idx)]
        print(to_json(written) if as_json else "\n".join(written))
        return
    _refuse_mixed(online, {"--postgres": postgres, "--epochs": epochs}, {"--every": every, "--delay-ms": delay_ms})
    if online:
        from headrace.demos.mnist.online import play
    else:
        from headrace.demos.mnist.replayed import play
    options = Options(
        log=log, postgres=postgres, keep=keep, model=model, idx=idx, epochs=epochs,
        every=every, delay_ms=delay_ms, png=png, pause=_pause(pause, ui), ui=ui, opens=not no_open,
    )  # fmt: skip
    _play(play, options, as_json)


@demo.command("fish")
@drawn
def demo_fish(
    source: Annotated[
        Literal["topics", "postgres"], typer.Option(help="Where the machines send their rows.")
    ] = "topics",
    data: Annotated[
        Path | None, typer.Option(help="A directory with training.csv, measurement.jsonl and weight.jsonl.")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds of event time in a second: 4 with --ui, 60 with a live view, else 0, as fast as it can.",
        ),
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="As --speed 1.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="A second model beside it, which learns every fish that is weighed.")
    ] = False,
    log: DemoLog = None,
    postgres: Annotated[
        str | None,
        typer.Option(help="An existing server's DSN, for --source postgres; its machine tables are replaced."),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="The directory for the picture; beside the log.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running.")] = False,
    ui: UiOption = False,
    no_open: NoOpenOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fish are measured, their weights predicted, and weighed later: a new species comes, and the model is retrained.

    From topics, given the same --log again, it goes on where it was.

    Example: headrace demo fish --online
    """
    from headrace.demos.fish.play import Options, play

    if realtime and speed is not None:
        raise typer.BadParameter("--realtime is --speed 1: give one of them")
    if postgres is not None and source != "postgres":
        raise typer.BadParameter("--postgres is for --source postgres")
    pace = 1.0 if realtime else speed
    options = Options(
        log=log, postgres=postgres, keep=keep, source=source, data=data, speed=pace, online=online, png=png,
        ui=ui, opens=not no_open,
    )  # fmt: skip
    _play(play, options, as_json)


def _pause(pause: float | None, ui: bool) -> float:
    return (WATCHED_PAUSE if ui else 0.0) if pause is None else pause


def _play(play: Callable[..., dict[str, Any]], options: ServerOptions, as_json: bool) -> None:
    """Play a demo, and print its result for scripts."""
    console = Console()
    if not as_json:
        spell(sys.stdout)
    # Two consoles would tear each other's lines: the one that draws shows events too.
    with shown_on(console if console.is_interactive and not as_json else talk):
        result = play(options, show=not as_json, console=console)
    if as_json:
        print(to_json(result))


def _refuse_mixed(online: bool, batch_only: dict[str, object], online_only: dict[str, object]) -> None:
    for name, value in (batch_only if online else online_only).items():
        if value is not None:
            raise typer.BadParameter(f"{name} is {'not for' if online else 'for'} --online")
