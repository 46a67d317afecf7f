"""``headrace snapshot``: the rows that a table has, appended while its capture runs, or when it is started."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from headrace.capture.debezium.expressions import python_expression
from headrace.capture.postgres.catalog import matches
from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.slot_binding import known_sources
from headrace.capture.postgres.snapshot_progress import KIND, Wanted
from headrace.capture.postgres.snapshot_progress import Progress as SnapshotProgress
from headrace.cli.arguments import JsonOption, LogOption, location, reading, writing
from headrace.cli.console import report, talk
from headrace.cli.events import with_events
from headrace.cli.models import StoppedOption
from headrace.engines.local.admin_requests import chosen_source
from headrace.errors import DeclarationError, LogLocked, near
from headrace.inspect.health import read_status
from headrace.inspect.messages import to_json
from headrace.log.base import Log
from headrace.registry.requests import FOLDER, Request, ask, whoami
from headrace.replay.model_changes import refuse_running_cluster

LOOK_SECONDS = 0.2


@with_events
def snapshot(
    tables: Annotated[list[str], typer.Argument(metavar="TABLE…", help="schema.table, or a regular expression of it.")],
    log: LogOption = None,
    where: Annotated[str, typer.Option("--where", metavar="SQL", help="Only the rows of which this is true.")] = "",
    surrogate_key: Annotated[
        str, typer.Option("--surrogate-key", metavar="COLUMN", help="Read tables by it that have no primary key.")
    ] = "",
    source: Annotated[str, typer.Option("--source", help="Prefix of one source, where there are several.")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Ask, and do not wait for the rows.")] = False,
    stopped: StoppedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Append the rows that tables have now, as reads (op r), while the capture goes on: an incremental snapshot.

    Rows are read in chunks, in the order of the primary key. A row that is changed while its chunk is read is left out:
    its newer image is in the log. The stream is not held up, nothing is written to the database, and a pipeline that is
    killed goes on behind the last chunk. Where no pipeline runs, the rows are read when it is started.

    Names of functions and types in --where need their schema, but for PostgreSQL's own.

    Example: headrace snapshot public.orders --where "placed > '2026-01-01'" --log shop.headrace
    """
    place = location(log)
    request = secrets.token_hex(8)
    about = {"tables": tables, "where": where, "surrogate": surrogate_key, "id": request}
    done: dict[str, tuple[int, str]] = {}
    refuse_running_cluster(place, stopped)
    try:
        with writing(log) as held:
            names, runs = _leave(held, source, about), False
    except LogLocked:
        asked = Request("snapshot", source, 0, whoami(), snapshot=about)
        names, runs = ask(Path(f"{Path(place).resolve()}{FOLDER}"), asked)["tables"], True
    if runs and not no_wait:
        done = _wait(log, request, show=not as_json)
    if as_json:
        print(to_json({"log": place, "tables": names, "running": runs, "request": request, "ended": done}))
    elif not runs:
        report(f"{', '.join(names)}: no pipeline runs on {place}; the rows are read when it is started")
    elif no_wait:
        report(f"{', '.join(names)}: the rows are being read")
    for name, (rows, reason) in done.items():
        report(f"{name}: {rows:,} rows read{f', and it ended early: {reason}' if reason else ''}")
    if any(reason for _, reason in done.values()):
        raise typer.Exit(1)


def _leave(log: Log, source: str, about: dict[str, Any]) -> list[str]:
    """Leave a request for the pipeline's next start; return the tables."""
    known = known_sources(log)
    name = chosen_source({name: name for name in known}, source)
    began = Began.load(log, name)
    captured = {str(table): table.oid for table in (began.tables if began is not None else ())}
    patterns = [python_expression(pattern) for pattern in about["tables"]]
    found = [table for table in captured if table in about["tables"] or matches(table, patterns)]
    if not found:
        raise DeclarationError(
            f"no table that is captured matches {', '.join(about['tables'])}{near(about['tables'][0], captured)}",
            advice=f"Captured are {', '.join(list(captured)[:10])}.",
        )
    wanted = [Wanted(about["id"], captured[table], table, about["where"], about["surrogate"]) for table in found]
    with log.transaction() as txn:
        txn.put(KIND, name, SnapshotProgress.load(log, name).with_wanted(wanted).to_json())
    return found


def _wait(log: str | None, request: str, *, show: bool) -> dict[str, tuple[int, str]]:
    """Wait until the rows are in the log, or the pipeline has ended; show a bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    shown = show and talk.is_interactive
    with Progress(*columns, TimeRemainingColumn(), console=talk, transient=True, disable=not shown) as bar:
        task = bar.add_task("waiting", total=None)
        while True:
            with reading(log) as held:
                found = [SnapshotProgress.load(held, name) for name in held.records(KIND)]
                runs = read_status(held).runs
            queued = [wanted for progress in found for wanted in progress.queue if wanted.request == request]
            if not queued or not runs:
                if queued:
                    report("the pipeline has ended; it goes on with the rows when it is started again")
                ended = [entry for progress in found for entry in progress.ended if entry.request == request]
                return {entry.table: (entry.rows, entry.reason) for entry in ended}
            first = queued[0]
            total = first.estimated if first.estimated >= first.rows > 0 else None
            bar.update(task, description=first.table, completed=first.rows, total=total)
            time.sleep(LOOK_SECONDS)
