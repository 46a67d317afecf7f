"""Sources of a log that are resynced: as the pipeline's file declares them, or as the log itself knows them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.gaps import passed_gaps
from headrace.capture.postgres.parts import Part
from headrace.capture.postgres.resync import Resync, Unknown
from headrace.capture.postgres.slot_binding import Claim, SourceRecord, Stranded, derived_name, known_sources
from headrace.capture.postgres.snapshot import OnProgress
from headrace.capture.postgres.source import PostgresSource
from headrace.capture.postgres.startup import DEBEZIUM, Startup
from headrace.engines.local.circles import Circles
from headrace.engines.local.sources import databases
from headrace.errors import DeclarationError, SourceRefused
from headrace.log import file_of
from headrace.log.base import Log
from headrace.plan.plan import INTERNAL, Plan
from headrace.position import format_lsn

# What libpq takes the server from where a connection string does not name it.
_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
_NO_LOGIN = re.compile("no password supplied|authentication failed")


@dataclass(frozen=True, slots=True)
class ResyncOptions:
    """Options of a resync; see `headrace capture resync`.

    Attributes:
        dsn: the connection string, in place of the declared or the kept one; of one source.
        source: prefix of the only source that is meant; None: all.
    """

    dsn: str | None = None
    source: str | None = None
    unknown: Unknown | None = None
    force: bool = False
    take_over: bool = False


@dataclass(slots=True)
class SourceResync:
    """One source of a log that may be resynced.

    Attributes:
        reason: why the log cannot go on from its slot; "" where it can.
    """

    resync: Resync
    reason: str

    @property
    def name(self) -> str:
        return self.resync.declared.name

    def run(self, log: Log) -> dict[str, Any]:
        """Do it; return what came of it, as JSON values."""
        record = self.resync.open(log, lambda: False)
        return {**self.about(), "position": format_lsn(record.consistent_point), "tables": self._tables()}

    def compare(self, log: Log) -> dict[str, Any]:
        """Return what would come of it, as JSON values; nothing is changed."""
        lsn = self.resync.compare(log)
        return {**self.about(), "position": format_lsn(lsn), "tables": self._tables()}

    def about(self) -> dict[str, Any]:
        """Return what is known of the source before, as JSON values."""
        declared = self.resync.declared
        return {
            "source": self.name,
            "database": str(declared.server),
            "slot": declared.slot,
            "needed": bool(self.reason),
            "reason": self.reason or None,
        }

    def _tables(self) -> list[dict[str, Any]]:
        found = []
        for compared in self.resync.compared:
            counts = compared.counts
            figures = {name: getattr(counts, name) for name in type(counts).__slots__}
            row = {"table": compared.table, "topic": compared.topic, **figures}
            found.append({**row, "dead_letters": compared.dead_letters, "captured": not compared.gone})
        return found


def resyncs(
    log: Log, place: str, plan: Plan | None, on_progress: OnProgress, options: ResyncOptions
) -> list[SourceResync]:
    """Look at the sources of a log: which can go on, which cannot and can be resynced. Writes nothing.

    Args:
        place: where the log is, as others find it.
        plan: the pipeline's declaration; None: what the log knows.

    Raises:
        DeclarationError: it is not known which source, or where its database is.
        SourceError: a source cannot be resynced.
    """
    known = known_sources(log)
    if not known:
        raise DeclarationError(
            "the log has captured no database yet", advice="headrace run begins, with a snapshot; nothing is lost."
        )
    sources = _declared(plan, options, known) if plan is not None else _kept(log, place, options, known)
    if not sources:
        raise DeclarationError(
            f"the log has no source «{options.source}»" if options.source else "the file captures nothing of this log",
            advice=f"It has {', '.join(known)}.",
        )
    directory = file.parent if (file := file_of(log)) else None
    return [_looked_at(log, source, known[source.name], on_progress, options, directory) for source in sources]


def _looked_at(
    log: Log,
    source: PostgresSource,
    known: SourceRecord,
    on_progress: OnProgress,
    options: ResyncOptions,
    directory: Path | None,
) -> SourceResync:
    reason, gap = "", None
    try:
        Startup(replace(source.declared, take_over=False), on_progress).check(log)
    except SourceRefused as error:
        reason = error.message
        gap = (error.gap, reason) if isinstance(error, Stranded) and error.gap is not None else None
    if not reason and passed_gaps(log, source.name):
        gap = known.gap(), "what a start went on without is taken in"
    resync = Resync(
        source.declared,
        known,
        on_progress,
        gap=gap,
        unknown=options.unknown,
        force=options.force,
        directory=directory,
    )
    found = SourceResync(resync, reason)
    if not reason and not options.force:
        return found
    try:
        resync.check(log)
    except SourceRefused as error:
        if _NO_LOGIN.search(error.message) and source.declared.server.dsn == Claim.load(log, source.name).address:
            error.advice = "The log keeps no passwords: PGPASSWORD, ~/.pgpass, --dsn or the pipeline's file give it."
        raise
    return found


def _declared(plan: Plan, options: ResyncOptions, known: dict[str, SourceRecord]) -> list[PostgresSource]:
    """Return the sources of a plan that the log has, without the tables that its own sinks write."""
    if options.dsn is not None:
        named = _the_one([source.prefix for source in plan.sources], options)
        sources = (replace(s, dsn=options.dsn) if s.prefix == named else s for s in plan.sources)
        plan = replace(plan, sources=tuple(sources))
    found = databases(plan, _silent, take_over=options.take_over)
    Circles(plan, found).look()
    return [source for source in found if source.name in known and options.source in (None, source.name)]


def _kept(log: Log, place: str, options: ResyncOptions, known: dict[str, SourceRecord]) -> list[PostgresSource]:
    """Return the sources that the log has, with exactly the tables that it has."""
    names = [name for name in known if options.source in (None, name)]
    chosen = _the_one(names, options) if options.dsn is not None and names else ""
    app = _app(log)
    made = []
    for name in names:
        record = known[name]
        dsn = options.dsn if name == chosen and options.dsn is not None else _address(log, name, record)
        derived = derived_name(app or name, name)
        properties, began = log.records(DEBEZIUM).get(name), Began.load(log, name)
        made.append(
            PostgresSource(
                dsn,
                app=app or name,
                prefix=name,
                tables=[f"(?-i:{re.escape(table)})" for table in record.tables],  # patterns take any case
                slot=None if record.slot == derived else record.slot,
                publication=None if record.publication == derived else record.publication,
                place=place,
                take_over=options.take_over,
                allow_failing_updates=True,  # they were captured so
                debezium=None if properties is None else json.loads(properties),
                parts={} if began is None else {str(table): Part.parse(table.part) for table in began.tables},
            )
        )
    return made


def _the_one(names: Sequence[str], options: ResyncOptions) -> str:
    """Return the source that ``--dsn`` is meant for.

    Raises:
        DeclarationError: there are several.
    """
    if options.source is not None:
        return options.source
    if len(names) != 1:
        raise DeclarationError(
            f"--dsn is of one database, and the log has {len(names)} sources",
            advice=f"Choose one with --source ({', '.join(names)}).",
        )
    return names[0]


def _address(log: Log, name: str, record: SourceRecord) -> str:
    """Return the connection string that the log keeps, or one that leaves everything to the environment.

    Raises:
        DeclarationError: neither says where the server is.
    """
    address = Claim.load(log, name).address
    if address:
        return address
    if any(os.environ.get(variable) for variable in _ENVIRONMENT):
        return f"dbname={record.identity.database}" if not os.environ.get("PGDATABASE") else ""
    raise DeclarationError(
        f"the log does not say where the database «{record.identity.database}» of source «{name}» is",
        advice="Give the pipeline's file, --dsn postgresql://…, or HEADRACE_DSN or PGHOST in the environment.",
    )


def _app(log: Log) -> str:
    """Return the app whose log it is, "" where it shows none or several."""
    steps = [name.split(".", 1)[1] for name in log.topics() if name.startswith(f"{INTERNAL}.")]
    apps = {name.removesuffix(".steps") for name in steps if name.endswith(".steps")}
    return apps.pop() if len(apps) == 1 else ""


def _silent(_table: str, _rows: int, _estimated: int) -> None:
    """Report no progress."""
