"""The command line: parse, call, print. Data on standard output, talk on standard error.

Exit codes: 0 done, 1 a failure while running, 2 a wrong declaration or wrong arguments, 3 (`verify`) not comparable.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import time
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.text import Text

from headrace import cli_produce, cli_topics
from headrace.app import App
from headrace.cli_log import JsonOption, LogOption, looking, reading, writing
from headrace.console import (
    model_line,
    model_rows,
    print_csv,
    print_table,
    replay_progress,
    running_line,
    short_model,
    talk,
)
from headrace.errors import DeclarationError, HeadraceError, LogError
from headrace.log.base import Log
from headrace.log.kafka_view import KafkaView
from headrace.messages import to_json
from headrace.registry import models as registry

app = typer.Typer(
    help="Machine learning on live database changes.", no_args_is_help=True, pretty_exceptions_enable=False
)
demo = typer.Typer(help="Live demonstrations, with a real PostgreSQL of their own.", no_args_is_help=True)
models = typer.Typer(help="Look at a log's models, and reset them.", no_args_is_help=True)
app.add_typer(demo, name="demo")
app.add_typer(cli_topics.topics, name="topics")
app.add_typer(models, name="models")
app.command("produce")(cli_produce.produce)


class Flavour(StrEnum):
    """Whose k-means the demo reproduces."""

    flink = "flink"
    spark = "spark"


class Source(StrEnum):
    """Who captures the demo's tables."""

    postgres = "postgres"
    debezium = "debezium"


class Start(StrEnum):
    """Where a reset model begins."""

    earliest = "earliest"
    latest = "latest"


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


@app.command()
def run(
    file: Annotated[str, typer.Argument(help="A Python file with one App in it, or FILE:NAME.")],
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when everything committed before now is dealt with.")
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="A path or kafka://host:port/NAME, in place of the file's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline in a file until SIGINT or SIGTERM.

    Example: headrace run iris.py --until-caught-up
    """
    pipeline = load_app(file)
    pipeline.log = log or pipeline.log
    if not as_json:
        talk.print(str(pipeline.plan()), markup=False, highlight=False, soft_wrap=True)
    live = Live(get_renderable=lambda: running_line(pipeline), console=talk, refresh_per_second=4, transient=True)
    with live if talk.is_terminal and not as_json else nullcontext():
        pipeline.run(until="caught-up" if until_caught_up else None)
    with reading(pipeline.log, name=pipeline.name, formats=pipeline.plan().formats) as held:
        models = model_rows(held)
    if as_json:
        print(to_json({"app": pipeline.name, "log": pipeline.log, "models": models}))
    else:
        for model in models:
            talk.print(model_line(model), markup=False, highlight=False)


@demo.command("iris")
def demo_iris(
    flavour: Annotated[Flavour, typer.Option(help="Flink ML's or Spark MLlib's published k-means.")] = Flavour.flink,
    data: Annotated[Path | None, typer.Option(help="A directory with train1.csv, train2.csv and test.csv.")] = None,
    postgres: Annotated[
        str | None, typer.Option(help="An existing server's DSN; its iris tables are replaced.")
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            "--log", help="A path, kafka for a broker of its own, kafka://host:port; a fresh file by default."
        ),
    ] = None,
    source: Annotated[Source, typer.Option(help="Who captures: Headrace, or Debezium in Kafka Connect.")] = (
        Source.postgres
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the servers running.")] = False,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between steps, for an audience.")] = 0.0,
    write_sql: Annotated[Path | None, typer.Option("--write-sql", help="Only write the SQL files there.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Iris rows are inserted, learned and classified while you watch: 5, then 7, then 9 of 11.

    Example: headrace demo iris --flavour spark
    """
    from headrace.demos.iris import play

    if write_sql is not None:
        written = [str(path) for path in play.write_sql(write_sql, data)]
        print(to_json(written) if as_json else "\n".join(written))
        return
    result = play.play(
        play.Options(flavour.value, data, postgres, log, source.value, keep, pause),
        show=not as_json,
        console=Console(),
    )
    if as_json:
        print(to_json(result))


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
    from headrace.query import query_topics, topic_table

    with looking(log) as held:
        if isinstance(held, KafkaView):
            table = query_topics(held, query, cli_topics.view_table)
        else:
            table = query_topics(held, query, topic_table)
    if csv:
        print_csv(table)
    elif as_json:
        print(to_json(table.to_pylist()))
    else:
        print_table(table.to_pylist(), columns=table.column_names, title=f"{table.num_rows} rows")


@models.command("list")
def models_list(log: LogOption = None, as_json: JsonOption = False) -> None:
    """Version, position, rows learned, size and hash of every model.

    Example: headrace models list --log iris.headrace
    """
    with reading(log) as held:
        found = model_rows(held)
    if as_json:
        print(to_json(found))
    else:
        print_table([short_model(row) for row in found], title="models")


@models.command("show")
def models_show(name: Annotated[str, typer.Argument()], log: LogOption = None, as_json: JsonOption = False) -> None:
    """One model: figures, declaration, versions, checkpoints.

    Example: headrace models show species --log iris.headrace
    """
    with reading(log) as held:
        about = next((row for row in model_rows(held) if row["model"] == name), None)
        if about is None:
            raise _no_model(held, name)
        declared = registry.read_model(held, name) or {}
        versions = [{k: v for k, v in one.items() if k != "fingerprint"} for one in registry.read_versions(held, name)]
        checkpoints = registry.checkpoint_steps(held, name)
    about |= {"declared": declared.get("fingerprint", {}), "versions": versions, "checkpoints": checkpoints}
    if as_json:
        print(to_json(about))
    else:
        print_table([{"": key, "value": to_json(value)} for key, value in about.items()], title=name)


@models.command("reset")
def models_reset(
    name: Annotated[str, typer.Argument()],
    log: LogOption = None,
    start: Annotated[
        Start, typer.Option("--from", help="earliest: learn again from the log; latest: begin with new rows.")
    ] = Start.earliest,
    as_json: JsonOption = False,
) -> None:
    """Forget what a model has learned: it begins a new version. Rows already answered are not answered again.

    Example: headrace models reset species --log iris.headrace
    """
    with writing(log) as held:
        try:
            with held.transaction() as txn:
                version = registry.reset(held, txn, name, relearn=start is Start.earliest, ts_us=time.time_ns() // 1000)
        except KeyError:
            raise _no_model(held, name) from None
    if as_json:
        print(to_json({"model": name, "version": version, "from": start.value}))
    else:
        talk.print(f"{name}: version {version} begins from the {start.value} row")


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
    from headrace.engines.local.verify import verify as replay_and_compare

    pipeline = load_app(file)
    plan = pipeline.plan()
    with reading(log or pipeline.log, name=pipeline.name, formats=plan.formats) as held:
        report = replay_and_compare(plan, held, on_step=None if as_json else replay_progress())
    if as_json:
        print(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        for task in report.tasks:
            talk.print(
                f"{task.task}: {task.steps} steps from step {task.from_step}, {task.hashes} hashes, "
                f"{task.checkpoints} checkpoints, {task.rows} rows written: {task.result}",
                highlight=False,
            )
            for line in task.differences:
                talk.print(f"    {line}", highlight=False)
        print(f"{report.result}{f': {report.reason}' if report.reason else ''}")
    raise typer.Exit(report.exit_code)


# -- finding things ---------------------------------------------------------------------------------------------------


def load_app(file: str) -> App:
    """The one App in a Python file; ``file.py:name`` chooses among several.

    Raises:
        DeclarationError: no such file, no App, or several and none chosen.
    """
    path, _, name = file.partition(".py:")
    source = Path(f"{path}.py" if name else file)
    if not source.is_file():
        raise DeclarationError(f"there is no file {source}")
    spec = importlib.util.spec_from_file_location("__headrace_app__", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["__headrace_app__"] = module
    sys.path.insert(0, str(source.resolve().parent))
    spec.loader.exec_module(module)
    apps = {key: value for key, value in vars(module).items() if isinstance(value, App)}
    if name:
        if name not in apps:
            raise DeclarationError(
                f"{source} has no App named «{name}»", advice=f"It has: {', '.join(apps) or 'none'}."
            )
        return apps[name]
    distinct = {id(value): value for value in apps.values()}
    if len(distinct) != 1:
        raise DeclarationError(
            f"{source} holds {len(distinct)} Apps", advice=f"Choose one as {source}:NAME ({', '.join(apps) or 'none'})."
        )
    return next(iter(distinct.values()))


def _no_model(log: Log, name: str) -> LogError:
    known = ", ".join(log.records("model")) or "none"
    return LogError(f"the log has no model «{name}»", advice=f"Its models: {known}.")
