"""The command line: parse, call, print. Data on standard output, talk on standard error.

Exit codes: 0 done, 1 a failure while running, 2 a wrong declaration or wrong arguments, 3 (`verify`) not comparable.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.logging import RichHandler
from rich.text import Text

from headrace.cli import capture, demo, models, produce, serve, slots, topics
from headrace.cli.arguments import JsonOption, LogOption, load_app, looking, reading
from headrace.cli.console import model_line, print_csv, print_table, replay_progress, report, running_line, talk
from headrace.engines.local.signals import run_in_foreground
from headrace.errors import HeadraceError
from headrace.inspect.messages import to_json
from headrace.inspect.models import model_rows
from headrace.inspect.topics import view_table
from headrace.log.kafka_view import KafkaView
from headrace.plain_values import rows

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
app.add_typer(demo.demo, name="demo")
app.add_typer(topics.topics, name="topics")
app.add_typer(models.models, name="models")
app.add_typer(capture.capture, name="capture")
app.add_typer(slots.slots, name="slots")
app.command("down")(slots.down)
app.add_typer(serve.keys, name="keys")
app.command("serve")(serve.serve)
app.command("produce")(produce.produce)
app.command("explain")(models.explain)


def main() -> None:
    """Run a command; an error of ours is printed as it is, without a traceback."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=talk, show_path=False)]
    )
    try:
        app()
    except HeadraceError as error:
        talk.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"headrace {version('headrace')}")
        raise typer.Exit


@app.callback()
def headrace(
    _: Annotated[
        bool,
        typer.Option("--version", "-V", help="Print the version, and end.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Machine learning on live database changes."""


@app.command()
def run(
    file: Annotated[str, typer.Argument(help="A Python file with one App in it, or FILE:NAME.")],
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when everything committed before now is dealt with.")
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="A path or kafka://host:port/NAME, in place of the file's.")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the replication slot of another log, which can never go on then.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline in a file until SIGINT or SIGTERM.

    Example: headrace run iris.py --until-caught-up
    """
    pipeline = load_app(file)
    pipeline.log = log or pipeline.log
    if not as_json:
        report(str(pipeline.plan()))
    live = Live(get_renderable=lambda: running_line(pipeline), console=talk, refresh_per_second=4, transient=True)
    models: list[dict[str, Any]] = []
    with live if talk.is_terminal and not as_json else nullcontext():
        # Before the log is closed: opening it once more could wait for a broker that has gone.
        run_in_foreground(
            lambda: pipeline.start(take_over=take_over),
            lambda: pipeline.running,
            until_caught_up=until_caught_up,
            at_end=lambda held: models.extend(model_rows(held)),
        )
    if as_json:
        print(to_json({"app": pipeline.name, "log": pipeline.log, "models": models}))
    else:
        for model in models:
            report(model_line(model))


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help='SQL (DuckDB); topics are tables: "flink.public.iris_train".')],
    log: LogOption = None,
    as_json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
) -> None:
    """SQL over the log's topics.

    Example: headrace sql 'select prediction, count(*) from iris_predictions group by 1' --log iris.headrace
    """
    from headrace.inspect.query import query_topics, topic_table

    with looking(log) as held:
        if isinstance(held, KafkaView):
            table = query_topics(held, query, lambda view, topic: view_table(view, topic, report))
        else:
            table = query_topics(held, query, topic_table)
    if csv:
        print_csv(table)
    elif as_json:
        print(to_json(rows(table)))
    else:
        found = rows(table)
        names = list(found[0]) if found else table.column_names
        print_table(found, columns=names, title=f"{table.num_rows} rows")


@app.command()
def verify(
    file: Annotated[str, typer.Argument(help="The pipeline's file, or FILE:NAME.")],
    log: LogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay the log and compare every model hash and every prediction. Needs no database.

    Exit code 0: equal; 1: different; 3: not comparable (another machine, library or declaration).

    Example: headrace verify iris.py
    """
    from headrace.replay.verify import verify as replay_and_compare

    pipeline = load_app(file)
    plan = pipeline.plan()
    with reading(log or pipeline.log, name=pipeline.name, formats=plan.formats) as held:
        found = replay_and_compare(plan, held, on_step=None if as_json else replay_progress())
    if as_json:
        print(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        for task in found.tasks:
            report(
                f"{task.task}: {task.steps} steps from step {task.from_step}, {task.hashes} hashes, "
                f"{task.checkpoints} checkpoints, {task.rows} rows written: {task.result}"
            )
            for line in task.differences:
                report(f"    {line}")
        print(f"{found.result}{f': {found.reason}' if found.reason else ''}")
    raise typer.Exit(found.exit_code)
