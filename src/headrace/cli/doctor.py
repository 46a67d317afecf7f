"""``headrace doctor``: what is wrong with a database, a log, or the way from the one into the other; and its repair."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from headrace.capture.debezium.configuration import read_configuration
from headrace.capture.debezium.options import examination_of as configured
from headrace.capture.postgres import doctor as database
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import APPLICATION, Examination
from headrace.capture.postgres.slot_binding import derived_name, known_sources
from headrace.cli.arguments import JsonOption, load_app, looking
from headrace.cli.ascii import spelled
from headrace.cli.console import print_table, report, talk
from headrace.errors import DeclarationError, HeadraceError
from headrace.findings import ORDER, Finding, Severity, worst_first
from headrace.inspect.doctor import database_findings, examination_of, log_findings, source_of
from headrace.inspect.messages import to_json
from headrace.log.base import Log
from headrace.log.kafka_view import KafkaView
from headrace.pipeline.app import App

COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}


def doctor(
    where: Annotated[
        str | None,
        typer.Argument(
            metavar="[DSN|FILE]",
            envvar="HEADRACE_DSN",
            help="A connection string, or a pipeline's file; or HEADRACE_DSN.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="A Debezium connector: JSON, or .properties; DSN goes before it.")
    ] = None,
    log: Annotated[
        str | None, typer.Option("--log", help="A log, and whether it can go on; without DSN its databases too.")
    ] = None,
    tables: Annotated[
        list[str] | None,
        typer.Option("--tables", metavar="REGEX", help="Of schema.table, matched as a whole; all if left out."),
    ] = None,
    slot: Annotated[str | None, typer.Option("--slot", help="The replication slot that is used.")] = None,
    publication: Annotated[str | None, typer.Option("--publication", help="The publication that is used.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Run what is safe of the SQL, after showing it and asking.")
    ] = False,
    fix_as: Annotated[
        str | None,
        typer.Option("--fix-as", metavar="DSN", help="Whose connection repairs, where the role itself may not."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong, or will go wrong, with capturing a database, and say the SQL that repairs it.

    Exit code 0: nothing, or warnings and notes only; 1: an error, which stops capture or endangers it.

    Looked at are the server (wal_level, slots, walsenders, poolers, standbys, encoding, TLS), the role's rights, tables
    (keys, replica identity, TOAST, unlogged ones), publications, slots and the WAL that they keep, heartbeats, and with
    --log whether the log can go on. A start refuses the same errors in the same words. Nothing is changed without
    --fix, and with it nothing that loses data, locks a table for long or needs a restart.

    Example: headrace doctor postgresql://localhost/shop --tables 'public\\.orders'
    """
    options = _Options(where, config, log, tuple(tables or ()), slot or "", publication or "")
    found = _examined(options)
    fixed: list[dict[str, Any]] = []
    if fix and database.statements(found):
        _confirm(found, yes=yes)
        with _subjects(options) as (_, examinations):
            fixed = [about for examination in examinations for about in _repaired(examination, found, fix_as)]
        found = _examined(options)
    _show(found, fixed, as_json=as_json, fix=fix)
    raise typer.Exit(int(any(finding.severity is Severity.ERROR for finding in found)))


@dataclass(frozen=True, slots=True)
class _Options:
    where: str | None
    config: Path | None
    log: str | None
    tables: tuple[str, ...]
    slot: str
    publication: str

    def named(self, examination: Examination) -> Examination:
        """Return a examination as the options say, where they say it."""
        return replace(
            examination,
            patterns=self.tables or examination.patterns,
            slot=self.slot or examination.slot,
            publication=self.publication or examination.publication,
            own_publication=not self.publication and examination.own_publication,
        )


def _check(options: _Options) -> None:
    """Refuse options that name nothing, or patterns that are none.

    Raises:
        DeclarationError: saying which.
    """
    if not (options.where or options.config or options.log):
        raise DeclarationError(
            "there is nothing to look at: neither a database nor a log was named",
            advice="Give postgresql://HOST/DATABASE, a pipeline's file, --config FILE, or --log LOG.",
        )
    for pattern in options.tables:
        try:
            re.compile(pattern)
        except re.error as error:
            raise DeclarationError(
                f"--tables {pattern!r} is no regular expression: {error}", advice=r"Write public\.orders, for example."
            ) from error


def _examined(options: _Options) -> list[Finding]:
    """Return what is found of all that the options name, the worst first."""
    with _subjects(options) as (logs, examinations):
        found = [
            replace(finding, where=place, advice=_about(finding.advice, place))
            for place, log in logs.items()
            for finding in (log if isinstance(log, list) else log_findings(log))
        ]
        readable = _readable(logs)
        if options.where or options.config:
            found += [finding for examination in examinations for finding in database.examine(examination)]
        else:
            found += [finding for place, log in readable.items() for finding in database_findings(log, place)]
    return worst_first(found)


def _about(advice: str, place: str) -> str:
    """Return an advice whose command names the log that it is about."""
    return f"{advice} --log {shlex.quote(place)}" if "headrace " in advice else advice


@contextmanager
def _subjects(options: _Options) -> Iterator[tuple[_Logs, list[Examination]]]:
    """Open what is to be looked at: logs by their places, and databases."""
    _check(options)
    app = load_app(options.where) if options.where and _is_file(options.where) else None
    place = options.log or (app.log if app is not None and Path(app.log).exists() else None)
    with ExitStack() as stack:
        logs = _logs(stack.enter_context(looking(place)), place) if place else {}
        yield logs, [options.named(examination) for examination in _examinations(options, app, _readable(logs))]


_Logs = dict[str, Log | list[Finding]]
"""Logs by their places; of one that cannot be read, what was found."""


def _logs(held: Log | KafkaView, place: str) -> _Logs:
    if not isinstance(held, KafkaView):
        return {place: held}
    found: _Logs = {}
    for name in held.pipelines():
        try:
            log = held.opened(name)
            log_findings(log)
            found[log.location.url] = log
        except HeadraceError as error:  # others are to be looked at all the same
            found[f"{place.rstrip('/')}/{name}"] = [Finding("log", Severity.ERROR, error.message, advice=error.advice)]
    return found


def _readable(logs: _Logs) -> dict[str, Log]:
    return {place: log for place, log in logs.items() if not isinstance(log, list)}


def _is_file(where: str) -> bool:
    return where.endswith(".py") or ".py:" in where or Path(where).is_file()


class _Source(NamedTuple):
    """A source of a log, and where that is."""

    log: Log
    name: str
    place: str


def _examinations(options: _Options, app: App | None, logs: Mapping[str, Log]) -> Iterator[Examination]:
    """Yield the databases that are meant: of a file, a configuration, a connection string, or those of the logs."""
    if app is not None:
        yield from _declared(app, logs)
    elif options.config is not None:
        examination = configured(read_configuration(options.config), options.where or "")
        for source in _sources(logs, examination.server):
            examination = replace(examination, snapshot=False, log=source.log, source=source.name, place=source.place)
        yield examination
    elif options.where:
        server = Server(options.where, APPLICATION)
        captured = [examination_of(*source, options.where) for source in _sources(logs, server)]
        yield captured[0] or Examination(server) if captured else Examination(server)
    else:
        named = [_Source(log, name, place) for place, log in logs.items() for name in known_sources(log)]
        yield from (found for source in named if (found := examination_of(*source)) is not None)


def _declared(app: App, logs: Mapping[str, Log]) -> Iterator[Examination]:
    """Yield the databases that a pipeline's file declares, with its log where that has captured them."""
    plan = app.plan()
    for source in plan.sources:
        derived = derived_name(plan.app, source.prefix)
        examination = Examination(
            Server(source.dsn, APPLICATION),
            source.tables,
            source.slot or derived,
            source.publication or derived,
            own_publication=source.publication is None,
            snapshot=source.snapshot != "never",
            failing_updates=source.allow_failing_updates,
            failover=source.failover,
        )
        for place, log in logs.items():
            if source.prefix in known_sources(log):
                examination = replace(examination, snapshot=False, log=log, source=source.prefix, place=place)
        yield examination


def _sources(logs: Mapping[str, Log], server: Server) -> list[_Source]:
    """Return the sources of logs that capture a database."""
    return [_Source(log, name, place) for place, log in logs.items() if (name := source_of(log, server))]


def _confirm(found: Sequence[Finding], *, yes: bool) -> None:
    """Show the statements that would be run, and ask.

    Raises:
        DeclarationError: nobody can be asked.
    """
    wanted = database.statements(found)
    if not yes and not talk.is_terminal:
        raise DeclarationError(f"this would run {' '.join(wanted)}", advice="--yes does it without asking.")
    for finding in found if not yes else ():
        if finding.safe and finding.sql:
            report(f"{finding.message}\n  to be run: {' '.join(finding.sql)}")
    if not yes:
        typer.confirm("Run?", abort=True, err=True)


def _repaired(examination: Examination, found: Sequence[Finding], fix_as: str | None) -> Iterator[dict[str, Any]]:
    """Repair one database; yield what was run, and why it failed."""
    own = [finding for finding in found if finding.where == str(examination.server)]
    server = Server(fix_as, APPLICATION) if fix_as else examination.server
    for statement, failure in database.repair(server, own):
        report(f"failed: {statement}\n  {failure}" if failure else f"done: {statement}")
        yield {"sql": statement, "error": failure or None}


# -- what is printed --------------------------------------------------------------------------------------------------


def _show(found: Sequence[Finding], fixed: Sequence[dict[str, Any]], *, as_json: bool, fix: bool) -> None:
    counts = {f"{severity}s": sum(finding.severity is severity for finding in found) for severity in ORDER}
    if as_json:
        print(to_json({**counts, "findings": [finding.to_dict() for finding in found], "fixed": list(fixed)}))
        return
    if not sys.stdout.isatty():
        print_table([finding.to_dict() for finding in found], columns=list(_COLUMNS))
    for finding in found if sys.stdout.isatty() else ():
        _print(finding)
    report(", ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items()))
    safe = database.statements(found)
    if safe and not fix:
        report(f"--fix runs {len(safe)} of these statements, after asking; the others are for you to decide.")


_COLUMNS = ("check", "severity", "where", "message", "sql", "advice", "safe")


def _print(finding: Finding) -> None:
    """Print a finding for people: what is the matter, then the statements, each in a line of its own to be copied."""
    console = Console()
    head = Text.assemble((f"{finding.severity}", COLOURS[finding.severity]), f"  {finding.check}: {finding.message}")
    lines = [head, *(Text(f"    {statement}", style="bold") for statement in finding.sql)]
    lines += [Text(f"    {finding.advice}", style="dim")] if finding.advice else []
    for line in lines:
        with console.capture() as captured:
            console.print(line, soft_wrap=True, highlight=False)
        sys.stdout.write(spelled(captured.get(), sys.stdout.encoding))
