"""``headrace capture …``: what concerns the way from a database into a log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
import typer.core
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.capture.debezium.configuration import read_configuration
from headrace.capture.postgres.snapshot import OnProgress
from headrace.cli import connector
from headrace.cli.arguments import JsonOption, LogOption, load_app, location, reading, writing
from headrace.cli.console import print_table, report, talk
from headrace.cli.events import with_events
from headrace.engines.local.resync import ResyncOptions, SourceResync, resyncs
from headrace.errors import DeclarationError
from headrace.inspect.capture import capture_status
from headrace.inspect.messages import to_json
from headrace.kafka.settings import SCHEME
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.pipeline.app import App

_NO_COMMAND = re.compile("-|.*[=/]").match  # an option, or a connection string; what else there is was misspelt


class _Group(typer.core.TyperGroup):
    """Commands of which one needs not be named: what is no command is an argument or an option of it."""

    unnamed = "run"

    # The context's class is Click's, or that which Typer brings along, by its version.
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's word in front where it was left out."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names and _NO_COMMAND(args[0]):
            args = [self.unnamed, *args]
        return super().parse_args(ctx, args)


capture = typer.Typer(help="Capture a database's changes into a log.", no_args_is_help=True, cls=_Group)
capture.command("run")(connector.capture_run)
capture.command("explain")(connector.capture_explain)


@capture.callback()
def _group() -> None:
    """Capture a database's changes into a log.

    What is no command is run: headrace capture --config connector.json --log shop.headrace
    """


@capture.command("resync")
@with_events
def capture_resync(
    file: Annotated[
        str | None,
        typer.Argument(help="The pipeline's file, FILE:NAME, or a connector's; left out, the log says what it has."),
    ] = None,
    log: LogOption = None,
    dsn: Annotated[
        str | None,
        typer.Option("--dsn", envvar="HEADRACE_DSN", help="The database, in place of the file's or the log's."),
    ] = None,
    source: Annotated[str | None, typer.Option("--source", help="Prefix of one source; left out, all.")] = None,
    unknown_rows: Annotated[
        str | None,
        typer.Option(
            "--unknown-rows",
            help="append or leave: rows that the log does not know, where it does not hold all that it once had.",
        ),
    ] = None,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Take the slot of another log, which can never go on then.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where the log could go on as it is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be appended: nothing is changed, nowhere.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Give a log whose slot was lost a new slot, and what it has missed: a new snapshot into the same log.

    Each table is compared with the newest rows that the log knows. A row that is equal is not appended again; one that
    changed is appended as an update with the old row as `before`, one that is gone as a delete, a new one as an insert:
    all in one transaction at the new snapshot's position. Models, history and positions stay, and the pipeline goes on.
    The changes between the two states are lost, where a row changed more than once.

    Rows of a table without a key are compared as wholes: each is appended, or deleted, as often as it is missing or
    too many. Stop the pipeline first. A resync that was killed is simply done again.

    With --dry-run the tables are compared as they are now. Slot, publication and log stay as they are.

    Example: headrace capture resync --log iris.headrace --dry-run
    """
    if unknown_rows not in (None, "append", "leave"):
        raise typer.BadParameter("--unknown-rows is append or leave")
    options = ResyncOptions(dsn, source, unknown_rows, force, take_over)  # type: ignore[arg-type]  # it is one of them
    app = _declared(file, log) if file else None
    where = log or (app.log if app is not None else location(None))
    opened = _opened(where, app, changing=not dry_run)
    with opened as held, _progress("comparing" if dry_run else "making the slot", show=not as_json) as on_progress:
        found = resyncs(held, _place(held, where), app.plan() if app is not None else None, on_progress, options)
        due = [source for source in found if source.reason or force]
        for needed in due:
            _confirm(needed, yes=yes or dry_run)
        run = SourceResync.compare if dry_run else _run
        done = [run(source, held) if source in due else source.about() for source in found]
    if as_json:
        print(to_json({"log": where, "dry_run": dry_run, "sources": done}))
        return
    for about in done:
        _say(about)
    if due and dry_run:
        report("Nothing was changed: this is what would be appended without --dry-run.")
    elif due:
        report(f"The pipeline goes on: headrace run {file or 'FILE.py'} --log {where}")


@capture.command("status")
def capture_state(
    log: LogOption = None,
    source: Annotated[
        str | None, typer.Option("--source", help="Prefix of one source, where there are several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say how far a capture has come, from another process, while it runs or when it was stopped.

    The state is snapshot, streaming or stopped. Everything that committed in the database before the LSN is in the log.
    Of each table there are the rows in the log, when the newest of them committed, and the lag: seconds that the log is
    behind the database, where the capture has said so within the last seconds. On a Kafka log a capture says that it
    runs when its first snapshot is there.

    Example: headrace capture status --log shop.headrace
    """
    with reading(log) as held:
        found = capture_status(held, source)
    if as_json:
        print(to_json(found.as_dict()))
        return
    rows = [{"table": name, **table.as_dict()} for name, table in found.tables.items()]
    print_table(rows, columns=["table", "topic", "rows", "last_commit", "lag"], title=f"{found.source}: {found.state}")
    behind = "" if found.lag_bytes is None else f", {found.lag_bytes:,} bytes of WAL behind"
    for gap in found.gaps:
        done = "the tables were read anew" if gap.handled == "snapshot" else "the log misses what lies between"
        report(f"{found.source}: gap from {gap.since} to {gap.until}, passed on {gap.at}: {done} ({gap.reason})")
    report(f"{found.source}: {found.text}; everything before {found.lsn} is in the log{behind}")


def _declared(file: str, log: str | None) -> App:
    """Return the app of a Python file, or that of a connector's configuration."""
    if file.endswith((".json", ".properties")):
        return connector.connector_app(read_configuration(file), log)
    return load_app(file)


def _run(source: SourceResync, log: Log) -> dict[str, Any]:
    try:
        return source.run(log)
    except KeyboardInterrupt:
        report(f"source {source.name}: interrupted; the log is as it was, and the same command begins again")
        raise


def _place(log: Log, where: str) -> str:
    return log.location.url if isinstance(log, KafkaLog) else where


@contextmanager
def _opened(where: str, app: App | None, *, changing: bool) -> Iterator[Log]:
    if where.startswith("memory:"):
        raise DeclarationError(
            "a log in memory begins with a new snapshot whenever its app starts", advice="Start the app."
        )
    formats = app.plan().formats if app is not None else None
    name = app.name if app is not None and where.startswith(SCHEME) else ""
    with (writing if changing else reading)(where, name=name, formats=formats) as held:
        yield held


def _confirm(found: SourceResync, *, yes: bool) -> None:
    """Ask where the database is another one than the log's, since rows that it does not have will be deleted.

    Raises:
        DeclarationError: nobody can be asked.
    """
    what = found.resync.elsewhere
    if what and yes:
        report(f"source «{found.name}»: {what}")
    if not what or yes:
        return
    if not talk.is_terminal:
        raise DeclarationError(
            f"source «{found.name}»: {what}; rows of the log that it does not have would be appended as deletes",
            advice="--yes says that it has taken the other one's place.",
        )
    report(f"source «{found.name}»: {what}. Rows of the log that it does not have will be appended as deletes.")
    typer.confirm("Has it taken the other one's place?", abort=True, err=True)


@contextmanager
def _progress(first: str, *, show: bool) -> Iterator[OnProgress]:
    """Show a bar on standard error, where that is a terminal: how far a table, or its topic, was read."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    with Progress(
        *columns, TimeRemainingColumn(), console=talk, transient=True, disable=not (show and talk.is_interactive)
    ) as bar:
        task = bar.add_task(first, total=None)
        reading = ""

        def on_progress(what: str, done: int, total: int) -> None:
            nonlocal reading
            if what != reading:
                reading = what
                bar.reset(task, description=what)
            bar.update(task, completed=done, total=total)

        yield on_progress


def _say(about: dict[str, Any]) -> None:
    name = f"source {about['source']} ({about['database']})"
    if "tables" not in about:
        report(f"{name}: slot {about['slot']} is in order, and the log goes on as it is (--force: compare)")
        return
    shown = []
    for table in about["tables"]:
        if not table["captured"]:
            report(f"{name}: table {table['table']} is not captured any more; its topic {table['topic']} stays")
            continue
        names = ("known", "now", "equal", "inserted", "updated", "deleted")
        row = {"table": table["table"], **{name: table[name] for name in names}}
        shown.append(row | ({"dead letters": table["dead_letters"]} if table["dead_letters"] else {}))
    if about["reason"]:
        report(f"{name}: {about['reason']}")
    print_table(shown, title=f"{about['source']}, compared at {about['position']}")
