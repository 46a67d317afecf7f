"""The command line: parse, call, print. Data on standard output, talk on standard error.

Exit codes: 0 done; 1 a failure while running; 2 a wrong declaration or wrong arguments; 3 (`verify`) not comparable;
128 and the signal's number (130 for Ctrl-C, 143 for SIGTERM) where a signal came before a command had done its work.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from importlib.metadata import version
from typing import Annotated, Any, Literal

import pyarrow as pa
import typer

from headrace.cli import capture, demo, doctor, models, produce, serve, slots, snapshot, topics, ui
from headrace.cli.arguments import (
    START_SECONDS,
    JsonOption,
    LogOption,
    MetricsOption,
    OnGapOption,
    StartTimeoutOption,
    WideOption,
    load_app,
    location,
    looking,
    metrics_place,
    properties,
    reading,
)
from headrace.cli.ascii import fall_back_to_ascii
from headrace.cli.console import (
    DrawnLine,
    RunningLine,
    model_line,
    print_csv,
    print_table,
    replay_progress,
    report,
    talk,
)
from headrace.cli.events import as_lines, show_events, tell, tell_failure, with_events
from headrace.engines.contract import RunningPipeline
from headrace.engines.local.dead_letters import letters_summary, refuse_letters
from headrace.engines.local.signals import Signals, run_in_foreground
from headrace.engines.separate_capture import capture_of
from headrace.engines.settings import EngineName
from headrace.errors import HeadraceError
from headrace.inspect.messages import to_json
from headrace.inspect.models import model_rows
from headrace.inspect.topics import view_shape, view_table
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
app.command("doctor")(doctor.doctor)
app.command("snapshot")(snapshot.snapshot)
app.add_typer(serve.keys, name="keys")
app.command("serve")(with_events(serve.serve))
app.command("ui")(with_events(ui.ui))
app.command("produce")(with_events(produce.produce))
app.command("explain")(models.explain)


def main() -> None:
    """Run a command. Errors of ours are printed as they are, signals end it, and neither shows a traceback."""
    fall_back_to_ascii(sys.stdout, sys.stderr)
    show_events()
    with Signals(to_the_end=True) as signals:
        try:
            code = _exit_code()
        except BaseException:
            # What a library makes of being interrupted is not what happened.
            if not signals.came:
                raise
            code = 1
    raise SystemExit(128 + signals.came if signals.came else code)


def _exit_code() -> int:
    """Run a command, and say of an error what it was."""
    try:
        try:
            app()
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):
                raise end.__context__ from None
            sys.stdout.flush()
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    except HeadraceError as error:
        tell_failure(error)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read it has enough. What is still buffered goes nowhere, or the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        tell_failure(HeadraceError(f"{error.strerror or error}{file}"))
        return 1
    raise AssertionError("a command ends with SystemExit")


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
@with_events
def run(
    file: Annotated[str, typer.Argument(help="A Python file with one App in it, or FILE:NAME.")],
    engine: Annotated[
        EngineName, typer.Option("--engine", help="Who runs it; the log is on Kafka, but for local.")
    ] = "local",
    master: Annotated[str | None, typer.Option("--master", help="Of Spark: local[2], spark://host:7077, yarn.")] = None,
    jobmanager: Annotated[
        str | None, typer.Option("--jobmanager", help="Of Flink: host:8081; a mini cluster of its own if left out.")
    ] = None,
    conf: Annotated[
        list[str] | None, typer.Option("--conf", metavar="NAME=VALUE", help="A property of Spark, or option of Flink.")
    ] = None,
    only: Annotated[
        Literal["capture"] | None,
        typer.Option("--only", help="capture: write the tables to the cluster for other processes, and run no model."),
    ] = None,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when everything committed before now is dealt with.")
    ] = False,
    log: Annotated[
        str | None, typer.Option("--log", help="A path or kafka://host:port/NAME, in place of the file's.")
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the replication slot of another log, which can never go on then.")
    ] = False,
    on_gap: OnGapOption = None,
    metrics: MetricsOption = None,
    ui: Annotated[
        bool, typer.Option("--ui", help="Show the dashboard, at http://127.0.0.1:8080/ui/ or on the next free port.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, help="Processes that expensive models predict and train in; on Flink the parallelism."
        ),
    ] = 1,
    start_timeout: StartTimeoutOption = START_SECONDS,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 1 where rows have gone to dead letters.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the pipeline in a file until SIGINT or SIGTERM.

    Either ends it with exit code 0, the work that was done being kept; a round that takes longer than a second is cut
    off and done again by the next start (130 or 143). A server that is lost while it runs is tried again for ever.

    On Spark this process is the driver, and executors predict and train; on Flink it submits a job and watches it. What
    comes out is the same, and a pipeline that was stopped goes on with another engine. With --only capture the tables
    are written to topics of the cluster under a log of their own, NAME-capture, and the pipeline reads those.

    Example: headrace run iris.py --until-caught-up
    """
    pipeline = load_app(file)
    pipeline.log = pipeline.log if log is None else location(log)
    if not as_json and not as_lines():
        report(str(capture_of(pipeline.plan()) if only else pipeline.plan()))
    live = DrawnLine(talk, get_renderable=RunningLine(pipeline), refresh_per_second=4)
    models: list[dict[str, Any]] = []
    started: list[RunningPipeline] = []
    chosen, served_at = properties(conf), metrics_place(metrics)

    def start() -> RunningPipeline:
        started.append(
            pipeline.start(
                engine=engine,
                master=master,
                jobmanager=jobmanager,
                conf=chosen,
                only=only,
                ui=ui,
                take_over=take_over,
                on_gap=on_gap,
                metrics=served_at,
                workers=workers,
            )
        )
        return started[-1]

    with live if not as_lines() and not as_json else nullcontext():
        # Before the log is closed: opening it once more could wait for a broker that has gone.
        run_in_foreground(
            start,
            lambda: pipeline.running,
            until_caught_up=until_caught_up,
            at_end=lambda held: models.extend(model_rows(held)),
            patience=start_timeout,
        )
    counts = started[-1].dead_letters if started else {}
    if as_json:
        print(to_json({"app": pipeline.name, "log": pipeline.log, "models": models, "dead_letters": counts}))
    else:
        for model in models:
            tell(model_line(model), "model", **model)
    if strict:
        refuse_letters(counts, pipeline.log)
    if counts and not as_json:
        tell(letters_summary(counts, pipeline.log), "dead_letters", topics=counts)


@app.command()
@with_events
def sql(
    query: Annotated[str, typer.Argument(help='SQL (DuckDB); topics are tables: "flink.public.iris_train".')],
    log: LogOption = None,
    as_json: JsonOption = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV on standard output.")] = False,
    wide: WideOption = False,
) -> None:
    """SQL over the log's topics: whatever DuckDB can, several statements included. Topics are only read.

    Each query's rows are shown; as JSON and as CSV those of the last one. Beside a row's own columns there are op,
    position, ts and offset.

    Example: headrace sql 'select prediction, count(*) from iris_predictions group by 1' --log iris.headrace
    """
    from headrace.inspect.query import query_results

    table = pa.table({})
    with looking(log) as held:
        cluster = isinstance(held, KafkaView)
        read = (lambda view, topic: view_table(view, topic, report)) if cluster else None
        for table in query_results(held, query, read, view_shape if cluster else None):
            if not csv and not as_json:
                found = rows(table)
                names = list(found[0]) if found else table.column_names
                print_table(found, columns=names, title=f"{table.num_rows} rows", wide=wide)
    if csv:
        print_csv(table)
    elif as_json:
        print(to_json(rows(table)))


@app.command()
@with_events
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
            for topic, reason in task.not_compared.items():
                report(f"    {topic}: not all rows were compared: {reason}")
        print(f"{found.result}{f': {found.reason}' if found.reason else ''}")
    raise typer.Exit(found.exit_code)
