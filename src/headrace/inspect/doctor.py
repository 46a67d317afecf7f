"""What the doctor finds of a log: how its pipeline is, what it takes, and how the databases are that it captures."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.capture.postgres import doctor
from headrace.capture.postgres.client import Server
from headrace.capture.postgres.doctor import Examination
from headrace.capture.postgres.slot_binding import known_sources
from headrace.findings import Finding, Severity, worst_first
from headrace.inspect.health import SILENT_SECONDS, Status, read_status
from headrace.log import file_of
from headrace.log.base import Log
from headrace.registry.models import Progress, read_progress
from headrace.units import age_text, bytes_text

DEAD = ".dlq"
SHORT_BYTES = 1_000_000_000
BEHIND_BYTES = 1_000_000_000
RETAINED = "source_slot_retained_bytes"  # a gauge
ENDINGS = ("", "-wal", "-shm")
# What libpq takes the server from where a connection string does not name it.
ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
NO_LOGIN = re.compile("no password supplied|authentication failed")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a log takes.

    Attributes:
        bytes: of its rows; ``file``: of its files, 0 where it is none; ``free``: of the disk they are on.
        dropped: rows that retention has dropped.
        first_us, last_us: when its oldest row that is held, and its newest one, were appended; 0 without rows.
    """

    topics: int
    rows: int
    bytes: int
    dropped: int
    first_us: int
    last_us: int
    file: int = 0
    free: int = 0
    path: str = ""


def stored_of(log: Log) -> Stored:
    """Return what a log takes."""
    topics = log.topics().values()
    held = [info for info in topics if info.rows]
    path = file_of(log)
    size, free = 0, 0
    if path is not None:
        files = [path.with_name(path.name + ending) for ending in ENDINGS]
        size = sum(file.stat().st_size for file in files if file.exists())
        free = shutil.disk_usage(path.parent).free
    return Stored(
        topics=len(topics),
        rows=sum(info.rows for info in topics),
        bytes=sum(info.bytes for info in topics),
        dropped=sum(info.first for info in topics),
        first_us=min((info.first_ts_us for info in held), default=0),
        last_us=max((info.last_ts_us for info in held), default=0),
        file=size,
        free=free,
        path=str(path or ""),
    )


def tasks_of(log: Log) -> dict[str, Progress]:
    """Return the progress of a log's tasks, by their names."""
    return {name: found for name in log.records("position") if (found := read_progress(log, name)) is not None}


def log_findings(log: Log) -> list[Finding]:
    """Return what somebody should look at of a log and its pipeline; no database is asked."""
    return findings_of(log, read_status(log), tasks_of(log), stored_of(log))


def findings_of(log: Log, status: Status, tasks: Mapping[str, Progress], stored: Stored) -> list[Finding]:
    """Return what somebody should look at, of what is known of a log; see `log_findings`."""
    return [*_of_parts(status), *_of_tasks(tasks), *_of_letters(log), *_of_disk(stored)]


def _of_parts(status: Status) -> Iterator[Finding]:
    for part in status.parts:
        if part.ended:
            yield Finding("ended", Severity.ERROR, f"{part.kind} «{part.name}»: {part.status}")
    if status.silent:
        by = f" ({status.where})" if status.where else ""
        said = f"the pipeline{by} has said nothing for {age_text(status.age)}: it was killed, or hangs"
        yield Finding("silent", Severity.ERROR, said, advice="Start it again: it goes on where it was.")
    if not status.runs:
        return
    for part in status.parts:
        if part.kind != "engine" and part.seconds > SILENT_SECONDS:
            said = f"{part.kind} «{part.name}» is away for {age_text(part.seconds)}: {part.status}"
            yield Finding("away", Severity.WARNING, said)
    for gauge in status.figures.get("gauges", ()):
        if gauge["name"] == RETAINED and gauge["value"] > BEHIND_BYTES:
            kept, source = bytes_text(int(gauge["value"])), gauge["labels"].get("source", "")
            said = f"the slot of «{source}» keeps {kept} of WAL on its server"
            yield Finding("retained", Severity.WARNING, said)


def _of_tasks(tasks: Mapping[str, Progress]) -> Iterator[Finding]:
    for name, progress in tasks.items():
        if progress.diverged:
            said = f"«{name}» predicts nothing: {progress.diverged}"
            yield Finding("diverged", Severity.ERROR, said, advice=f"Go back: headrace models rollback {name}")


def _of_letters(log: Log) -> Iterator[Finding]:
    for name, info in log.topics().items():
        if name.endswith(DEAD) and info.rows:
            advice = f"See why: headrace topics cat {name}"
            yield Finding("dead_letters", Severity.WARNING, f"{info.rows:,} dead letters in «{name}»", advice=advice)


def _of_disk(stored: Stored) -> Iterator[Finding]:
    if stored.path and stored.free < SHORT_BYTES:
        said = f"the disk of {stored.path} has {bytes_text(stored.free)} left"
        yield Finding("disk", Severity.ERROR, said, advice="Make room, or keep less: keep=… of topics.")


# --- the databases of a log ---


def database_findings(log: Log, place: str) -> list[Finding]:
    """Ask the databases that a log captures, and return what is found, the worst first; it takes as long as they take.

    Args:
        place: where the log is, for commands.
    """
    return worst_first(finding for name in known_sources(log) for finding in _of_database(log, name, place))


def _of_database(log: Log, name: str, place: str) -> list[Finding]:
    examination = examination_of(log, name, place)
    if examination is None:
        said = f"the log does not say where the database of source «{name}» is"
        advice = "headrace doctor DSN --log LOG asks it; or set PGHOST."
        return [Finding("address", Severity.NOTE, said, advice=advice, where=place)]
    return [_without_login(finding) for finding in doctor.examine(examination)]


def examination_of(log: Log, name: str, place: str, dsn: str = "") -> Examination | None:
    """Return the database of a log's source; None where nobody says where it is.

    Args:
        dsn: a connection string in place of the log's, which has no password.
    """
    given = dsn or _wary(doctor.address_of(log, name))
    if not given and any(os.environ.get(variable) for variable in ENVIRONMENT):
        given = f"dbname={known_sources(log)[name].identity.database}"
    return doctor.examination_of(log, name, given, place) if given else None


def _wary(address: str) -> str:
    """Return an address of a log's so that nobody gets a password of ours who only wrote it there."""
    if not address or pq.version() < 160000:
        return address
    return make_conninfo(address, require_auth=conninfo_to_dict(address).get("require_auth") or "!password")


def _without_login(finding: Finding) -> Finding:
    """Return a finding; where only a password is missing, that says nothing of the pipeline, which has one."""
    if finding.check != "connection" or not NO_LOGIN.search(finding.message):
        return finding
    advice = "The log keeps no passwords: PGPASSWORD, ~/.pgpass or headrace doctor DSN --log LOG give it."
    return replace(finding, severity=Severity.NOTE, advice=advice)


def source_of(log: Log, server: Server) -> str:
    """Return the source of a log that captures a database; "" where none, or more than one, can be meant."""
    known = known_sources(log)
    same = [name for name in known if (at := doctor.address_of(log, name)) and str(Server(at)) == str(server)]
    chosen = same or list(known)
    return chosen[0] if len(chosen) == 1 else ""
