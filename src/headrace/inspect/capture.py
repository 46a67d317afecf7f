"""How far a capture has come, as its log and its process say it: for ``headrace capture status``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from headrace.capture.postgres.drift import Began
from headrace.capture.postgres.gaps import PassedGap, passed_gaps
from headrace.capture.postgres.slot_binding import OWNER, SourceRecord, known_sources
from headrace.capture.postgres.snapshot_progress import Progress as SnapshotProgress
from headrace.capture.postgres.table import topic_of
from headrace.errors import DeclarationError, near
from headrace.inspect.health import Status, read_status
from headrace.log.base import Log, TopicInfo
from headrace.position import format_lsn

CaptureState = Literal["snapshot", "streaming", "stopped"]


@dataclass(frozen=True, slots=True)
class TableStatus:
    """A captured table.

    Attributes:
        rows: events of it in the log; during the first snapshot the rows that were read.
        estimated: rows that the first snapshot is to have, while it is taken.
        last_commit: when the newest event of it committed.
        lag: seconds that the log is behind its database; None where that is not known, as when nothing runs.
    """

    topic: str
    rows: int
    estimated: int | None
    last_commit: datetime | None
    lag: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``headrace capture status --json`` prints it."""
        when = None if self.last_commit is None else self.last_commit.isoformat()
        about = {"topic": self.topic, "rows": self.rows, "last_commit": when, "lag": self.lag}
        return about if self.estimated is None else {**about, "estimated": self.estimated}


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """A database that a log captures.

    Attributes:
        lsn: everything committed before it is in the log.
        lag_bytes: WAL that the server has written and the log does not hold; None where that is not known.
        text: what it does now, for people.
        gaps: those that it went on behind; see `headrace.capture.postgres.gaps`.
    """

    source: str
    state: CaptureState
    lsn: str
    tables: dict[str, TableStatus]
    lag_bytes: int | None
    text: str
    gaps: tuple[PassedGap, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``headrace capture status --json`` prints it."""
        return {
            "state": self.state,
            "lsn": self.lsn,
            "tables": {name: table.as_dict() for name, table in self.tables.items()},
            "source": self.source,
            "lag_bytes": self.lag_bytes,
            "gaps": [gap.as_dict() for gap in self.gaps],
        }


def capture_status(log: Log, source: str | None = None) -> CaptureStatus:
    """Return how far the capture of a database has come.

    Args:
        source: its prefix, where the log captures several.

    Raises:
        DeclarationError: the log captures no database, several and none is named, or none of this name.
    """
    known = known_sources(log)
    names = sorted({*known, *(name for name in log.records(OWNER) if name)})
    if not names:
        raise DeclarationError("the log captures no database", advice="«headrace capture» begins one.")
    if source is not None and source not in names:
        raise DeclarationError(
            f"the log has no source «{source}»{near(source, names)}", advice=f"It has {', '.join(names)}."
        )
    if source is None and len(names) > 1:
        raise DeclarationError("the log captures several databases", advice=f"Give --source: {', '.join(names)}.")
    return _status(log, source or names[0], known.get(source or names[0]), read_status(log))


def _status(log: Log, source: str, record: SourceRecord | None, status: Status) -> CaptureStatus:
    said = [part.status for part in status.parts if part.kind == "source" and part.name == source]
    lag_bytes = _gauge(status, "source_lag_bytes", source)
    if not status.runs:
        state: CaptureState = "stopped"
    else:
        state = "snapshot" if record is None or SnapshotProgress.load(log, source).begins else "streaming"
    topics = log.topics()
    lag = _gauge(status, "source_lag_seconds", source) if status.runs else None
    tables = _snapshotted(source, status) if record is None else _tables(log, source, record, topics, lag)
    return CaptureStatus(
        source,
        state,
        "0/0" if record is None else format_lsn(record.acknowledged),
        tables,
        None if lag_bytes is None or not status.runs else int(lag_bytes),
        said[0] if said and status.runs else state,
        tuple(passed_gaps(log, source)),
    )


def _tables(
    log: Log, source: str, record: SourceRecord, topics: Mapping[str, TopicInfo], lag: float | None
) -> dict[str, TableStatus]:
    """Return the tables that a log has, under the names that they had when the capture began."""
    began = Began.load(log, source)
    labels = [(table.schema, table.name) for table in began.tables] if began is not None else []
    named = {".".join(label): topic_of(source, label) for label in labels}
    # A log made before the tables' parts were kept has their names as one text.
    named = named or {name: topic_of(source, name.split(".", 1)) for name in record.tables}
    found = {}
    for name, topic in sorted(named.items()):
        info = topics.get(topic)
        when = None if info is None or not info.end else datetime.fromtimestamp(info.last_ts_us / 1e6, UTC)
        found[name] = TableStatus(topic, 0 if info is None else info.rows, None, when, lag)
    return found


def _snapshotted(source: str, status: Status) -> dict[str, TableStatus]:
    """Return the tables of which a first snapshot has read rows; they are in the log when it has all."""
    said: dict[str, list[int]] = status.figures.get("snapshot") or {}
    return {
        name: TableStatus(topic_of(source, name.split(".", 1)), rows, estimated, None, None)
        for name, (rows, estimated) in said.items()
    }


def _gauge(status: Status, name: str, source: str) -> float | None:
    for gauge in status.figures.get("gauges") or ():
        if gauge["name"] == name and gauge["labels"].get("source") == source:
            return float(gauge["value"])
    return None
