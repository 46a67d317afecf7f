"""Findings: what somebody should look at, and how it is repaired. A start refuses some, the doctor lists all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How bad a finding is, the worst first."""

    ERROR = "error"  # it stops capture, or endangers it
    WARNING = "warning"  # it goes wrong some day, or costs something
    NOTE = "note"  # worth knowing


ORDER = {severity: place for place, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or may go wrong.

    Attributes:
        check: what was looked at, in one word that stays: ``wal_level``.
        message: what is the matter, and where.
        sql: statements that repair it.
        advice: what else to do; goes on from the statements, where there are any.
        safe: the statements lose nothing, lock nothing for long and need no restart: ``--fix`` may run them.
        where: the database or the log that it is of.

    >>> Finding("wal_level", Severity.ERROR, "it is «replica»", ("ALTER …;",), "then restart.").ways
    'ALTER …; then restart.'
    """

    check: str
    severity: Severity
    message: str
    sql: tuple[str, ...] = ()
    advice: str = ""
    safe: bool = False
    where: str = ""

    @property
    def ways(self) -> str:
        """Return what to do, in one text."""
        return " ".join([*self.sql, self.advice]).strip()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "check": self.check,
            "severity": str(self.severity),
            "where": self.where,
            "message": self.message,
            "sql": list(self.sql),
            "advice": self.advice,
            "safe": self.safe,
        }


def worst_first(found: Iterable[Finding]) -> list[Finding]:
    """Return findings by severity, and otherwise in their order."""
    return sorted(found, key=lambda finding: ORDER[finding.severity])
