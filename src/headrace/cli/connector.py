"""``headrace capture run`` and ``explain``: a connector's configuration, run natively, and what it does here."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.capture.debezium.configuration import Configuration, read_configuration
from headrace.capture.debezium.explanation import Line, everything, explain
from headrace.capture.debezium.options import events_of
from headrace.capture.debezium.properties import refused
from headrace.cli.arguments import (
    START_SECONDS,
    JsonOption,
    MetricsOption,
    OnGapOption,
    StartTimeoutOption,
    WideOption,
    metrics_place,
    properties,
)
from headrace.cli.console import DrawnLine, RunningLine, print_table, report, talk
from headrace.cli.events import as_lines, tell, with_events
from headrace.engines.contract import RunningPipeline
from headrace.engines.local.dead_letters import letters_summary
from headrace.engines.local.signals import run_in_foreground
from headrace.errors import DeclarationError
from headrace.event_log import name_app
from headrace.formats.transforms.chain import problems
from headrace.inspect.messages import to_json
from headrace.log.base import Log
from headrace.pipeline.app import App

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PROPERTY=VALUE", help="A property of Debezium's, in place of the file's."),
]


@with_events
def capture_run(
    dsn: Annotated[
        str | None, typer.Argument(help="The database: postgresql://USER@HOST/DATABASE; with --config in its place.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A connector of Debezium's: Kafka Connect's JSON, or .properties.")
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--tables", metavar="REGEX", help="Matches the whole of schema.table; may be given again."),
    ] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="First part of the topics' names.")] = None,
    log: Annotated[
        str | None, typer.Option("--log", envvar="HEADRACE_LOG", help="A path, or kafka://host:port/NAME.")
    ] = None,
    settings: SetOption = None,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="End when everything committed before now is captured.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the replication slot of another log, which can never go on then.")
    ] = False,
    on_gap: OnGapOption = None,
    metrics: MetricsOption = None,
    start_timeout: StartTimeoutOption = START_SECONDS,
    as_json: JsonOption = False,
) -> None:
    """Capture a database into a log, as a connector of Debezium's is configured, until SIGINT or SIGTERM.

    The word run may be left out. It is a pipeline without models: rows are snapshotted, then streamed, each once and in
    commit order; the same command goes on where the log ends. Everything in the configuration that cannot be done here
    is refused, at once, before anything runs: «headrace capture explain» says why. A signal ends it with exit code 0.

    Without a file: headrace capture postgresql://ann@db/shop --tables 'public[.]o.*' --prefix shop --log shop.headrace

    Example: headrace capture run --config connector.json --log shop.headrace
    """
    configuration = _configuration(config, dsn, tables=tables, prefix=prefix, settings=settings)
    pipeline = connector_app(configuration, log, dsn=dsn)
    if not as_json and not as_lines():
        report(str(pipeline.plan()))
    options = pipeline.plan().sources[0].snapshots
    until_caught_up = until_caught_up or (options is not None and not options.streams)
    live = DrawnLine(talk, get_renderable=RunningLine(pipeline), refresh_per_second=4)
    started: list[RunningPipeline] = []

    def start() -> RunningPipeline:
        started.append(pipeline.start(take_over=take_over, on_gap=on_gap, metrics=metrics_place(metrics)))
        return started[-1]

    rows: dict[str, int] = {}

    def count(held: Log) -> None:
        captured = pipeline.plan().sources[0].captures
        rows.update((topic, info.rows) for topic, info in held.topics().items() if captured(topic))

    with live if not as_lines() and not as_json else nullcontext():
        run_in_foreground(
            start, lambda: pipeline.running, until_caught_up=until_caught_up, at_end=count, patience=start_timeout
        )
    if not started:
        return
    new, letters = sum(started[-1].captured.values()), started[-1].dead_letters
    if as_json:
        about = {"app": pipeline.name, "log": pipeline.log, "topics": rows, "streamed": new, "dead_letters": letters}
        print(to_json(about))
        return
    line = f"{pipeline.log} holds {sum(rows.values()):,} rows of {len(rows)} tables, {new:,} streamed since the start"
    tell(line, "captured", topics=rows, streamed=new)
    if letters:
        tell(letters_summary(letters, pipeline.log), "dead_letters", topics=letters)


def connector_app(configuration: Configuration, log: str | None, *, dsn: str | None = None) -> App:
    """Return the app that a connector's configuration declares.

    Raises:
        DeclarationError: it cannot be run here.
    """
    name = configuration.get("name") or configuration.get("topic.prefix") or "capture"
    made = App(name.replace("/", "_"), log)
    name_app(made.name)
    made.debezium(configuration, dsn=dsn)
    return made


def _configuration(
    config: Path | None,
    dsn: str | None,
    *,
    tables: Sequence[str] | None,
    prefix: str | None,
    settings: Sequence[str] | None,
) -> Configuration:
    """Return the configuration that arguments and file say together.

    Raises:
        DeclarationError: neither a file nor a database is named, or the file cannot be read.
    """
    if config is None and dsn is None:
        raise DeclarationError(
            "there is nothing to capture",
            advice="Write headrace capture --config connector.json, or headrace capture DSN --tables … --prefix ….",
        )
    base = read_configuration(config) if config is not None else Configuration(_NATIVE, "the command line")
    given = properties(settings, option="--set")
    if tables:
        given["table.include.list"] = ",".join(table.replace(",", "\\,") for table in tables)
    if prefix is not None:
        given["topic.prefix"] = prefix
    return base.with_properties(given)


_NATIVE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    # Without a connector's file there are no schemas in the messages.
    "key.converter.schemas.enable": "false",
    "value.converter.schemas.enable": "false",
}


def capture_explain(
    file: Annotated[
        Path | None, typer.Argument(help="Kafka Connect's JSON, or .properties; left out, every property there is.")
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    wide: WideOption = False,
) -> None:
    """Say what each property of a connector of Debezium's does here.

    States: done, it does here what it says; harmless, it has no meaning here, and why; refused, and what to do instead;
    not yet. Converters and transforms are shown in the order in which rows go through them. Exit code 0: it can be run
    as it is; 2: something is refused, or not supported yet.

    Example: headrace capture explain connector.json
    """
    if file is None:
        _print(list(everything()), as_json=as_json, wide=wide)
        return
    lines = _with_problems(read_configuration(file).with_properties(properties(settings, option="--set")))
    _print([(_section(line), line) for line in lines], as_json=as_json, wide=wide)
    stopping = sum(not line.state.runs for line in lines)
    if stopping:
        if not as_json:
            report(f"{file} cannot be run here as it is: {stopping} of {len(lines)} properties stop it.")
        raise typer.Exit(2)
    if not as_json:
        report(f"{file} can be run here as it is: headrace capture --config {file}")


def _with_problems(configuration: Configuration) -> list[Line]:
    """Return the lines of a configuration, with what is wrong with its transforms as a whole."""
    lines = explain(configuration)
    if any(not line.state.runs for line in lines):
        return lines
    wrong = {f"transforms.{name}.type": said for name, said in problems(dict(events_of(configuration))).items()}
    return [replace(line, meaning=refused(wrong[line.name])) if line.name in wrong else line for line in lines]


def _section(line: Line) -> str:
    if not line.part:
        return "The connector"
    return {"key.converter": "Converters", "value.converter": "Converters"}.get(
        line.part, "Transforms, in their order" if line.part.startswith("transforms.") else "Other components"
    )


def _print(found: Iterable[tuple[str, Line]], *, as_json: bool, wide: bool) -> None:
    if as_json:
        print(to_json([line.as_dict() for _, line in found]))
        return
    sections: dict[str, list[dict[str, Any]]] = {}
    for section, line in found:
        row: dict[str, Any] = line.as_dict()
        if line.value is None:  # of the table of all
            row = {
                "property": line.name,
                "default": line.default or "",
                "state": row["state"],
                "meaning": row["meaning"],
            }
        else:
            del row["default"]
        sections.setdefault(section, []).append(row)
    if not sys.stdout.isatty():
        print_table([row for rows in sections.values() for row in rows])
        return
    for section, rows in sections.items():
        print_table(rows, title=section, wide=wide, text=str)
