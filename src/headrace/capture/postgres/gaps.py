"""Gaps between what a log holds and what its slot will send: what is missing, what was done about it, and who says so.

A gap is never passed over in silence. What a start does with one is declared (``on_gap``): it fails; or the tables are
read anew and compared, so that the log ends equal to them (`headrace.capture.postgres.resync`); or the capture goes on
where the slot is. The last two leave a record in the log, of kind `KIND` under the source's name, in the transaction
with which the log goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from headrace.capture.base import Log
from headrace.errors import LogCorrupt
from headrace.position import format_lsn, parse_lsn

OnGap = Literal["fail", "snapshot", "accept"]
KIND = "gaps"
_NAMED = 5  # tables in a message; the record has them all


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes that a log may not have, and that its slot will not send.

    Attributes:
        tables: whose changes they are.
        since: everything committed before this LSN is in the log.
        since_us: when the newest transaction committed of which the log has rows, in microseconds; 0 where that is not
            known.
        until: the LSN from which on changes would come; 0 where none would.
    """

    tables: Sequence[str]
    since: int
    since_us: int = 0
    until: int = 0

    def __str__(self) -> str:
        named = ", ".join(self.tables[:_NAMED])
        named += f" and {len(self.tables) - _NAMED} more tables" if len(self.tables) > _NAMED else ""
        when = f" (the newest that the log has: {_time(self.since_us)})" if self.since_us else ""
        until = f"before {format_lsn(self.until)}" if self.until else "until now"
        return f"changes of {named} that were committed from {format_lsn(self.since)} on{when} and {until}"


@dataclass(frozen=True, slots=True)
class PassedGap:
    """A gap that a log went on behind, as the log keeps it.

    Attributes:
        at: when it went on, in UTC.
        reason: why the log could not go on as it was.
        since, until: LSNs; ``until`` is where it went on, perhaps those of another server.
        since_time: when the newest transaction before it committed; "" where that is not known.
        handled: ``accept``: its changes are missing in the log; ``snapshot``: the log was made equal to the tables.
    """

    at: str
    reason: str
    tables: tuple[str, ...]
    since: str
    until: str
    since_time: str
    handled: str = "accept"

    @classmethod
    def of(cls, gap: Gap, *, reason: str, until: int, handled: str) -> PassedGap:
        """Return what the log keeps of a gap that it goes on behind now."""
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        when = _time(gap.since_us) if gap.since_us else ""
        return cls(now, reason, tuple(gap.tables), format_lsn(gap.since), format_lsn(until), when, handled)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "at": self.at,
            "reason": self.reason,
            "tables": list(self.tables),
            "since": self.since,
            "since_time": self.since_time,
            "until": self.until,
            "handled": self.handled,
        }


def passed_gaps(log: Log, source: str) -> list[PassedGap]:
    """Return the gaps that a log went on behind, the oldest first.

    Raises:
        LogCorrupt: the log's record of them cannot be read.
    """
    stored = log.records(KIND, source).get(source)
    if stored is None:
        return []
    try:
        return [PassedGap(**{**found, "tables": tuple(found["tables"])}) for found in json.loads(stored)]
    except (ValueError, KeyError, TypeError) as error:
        raise LogCorrupt(f"the log's record of gaps of «{source}» cannot be read: {stored!r}") from error


def whole_since(log: Log, source: str) -> int | None:
    """Return the LSN from which on the log has all changes; None where its LSNs are those of two servers."""
    gaps = [(parse_lsn(gap.since), parse_lsn(gap.until), gap.handled) for gap in passed_gaps(log, source)]
    if any(until < since for since, until, _ in gaps):
        return None
    return max((until for _, until, handled in gaps if handled == "accept"), default=0)


def with_gap(log: Log, source: str, passed: PassedGap) -> bytes:
    """Return a log's record of gaps with another one."""
    return json.dumps([gap.as_dict() for gap in (*passed_gaps(log, source), passed)], ensure_ascii=False).encode()


def _time(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
