"""Everything Headrace raises, in one tree.

::

    HeadraceError
    ├── DeclarationError          the user's pipeline is wrong; nothing has run        (exit code 2)
    │   ├── FingerprintError      a model's declaration differs from the one in the log
    │   └── DeclarationUnknown    how a task was declared once cannot be made again
    ├── MissingExtra              an optional package is not installed                 (exit code 2)
    ├── SourceError               the database or its replication slot
    │   ├── SourceUnavailable     cannot be reached now; the only one that is retried
    │   ├── SourceRefused         reached, but cannot be captured as it is (wal_level, rights, slot)
    │   └── DecodeError           bytes from the replication stream that the protocol does not allow
    ├── LogError                  the durable log
    │   ├── LogMissing            there is none at this place
    │   ├── LogLocked             another process writes this log
    │   ├── TopicInUse            a topic is there already, or is used by somebody
    │   ├── LogVersionError       the file was written by a newer Headrace
    │   ├── LogCorrupt            the file is torn, truncated or not a log
    │   ├── LogTruncated          rows that somebody needs were deleted behind the log's back
    │   ├── LogUnavailable        the broker cannot be reached now; retried
    │   └── LogFull               no space left; nothing torn, goes on after space is back
    ├── FormatError               rows that a topic's format cannot hold, or a schema registry refuses
    │   └── RegistryUnavailable   the schema registry cannot be reached now; retried
    ├── SinkError                 where results go: a destination refuses what the sink asks for
    │   └── SinkUnavailable       the destination cannot be reached now; retried
    ├── LearnError                what a learner refuses
    │   └── BadRows               rows that cannot be learned; carries their indexes
    └── WaitTimeout               `running.wait()` reached its deadline

Every message says what happened, where (table, topic, offset, LSN) and what to do next. Errors of
drivers (psycopg, ADBC, SQLite) are translated where they enter, with ``raise … from``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def __dir__() -> list[str]:
    return [name for name, kind in globals().items() if isinstance(kind, type) and issubclass(kind, HeadraceError)]


class HeadraceError(Exception):
    """Root of the tree.

    Args:
        message: what happened and where.
        advice: what to do next; shown after the message.

    >>> print(HeadraceError("topic «x» is gone", advice="Create it again."))
    topic «x» is gone
      → Create it again.
    """

    exit_code = 1
    retry = False

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.advice}" if self.advice else self.message


class DeclarationError(HeadraceError):
    """The declared pipeline is wrong; raised before anything runs."""

    exit_code = 2


class FingerprintError(DeclarationError):
    """A model is declared differently from the one whose state the log holds."""


class DeclarationUnknown(DeclarationError):
    """A task was declared differently once, in a way that neither the log nor the pipeline's file tells any more."""


class MissingExtra(HeadraceError):
    """An optional package is needed and not installed.

    Args:
        extra: of Headrace's own.
        what: needs it.
        first: a package that must be installed before the extra, since its pins exclude newer versions that run.
    """

    exit_code = 2

    def __init__(self, extra: str, what: str, *, first: str = "") -> None:
        before = f"pip install '{first}', and then " if first else ""
        super().__init__(f"{what} needs the extra «{extra}»", advice=f"{before}pip install 'headrace[{extra}]'")


class SourceError(HeadraceError):
    """The database, its connection or its replication slot."""


class SourceUnavailable(SourceError):
    """The database cannot be reached now. Retried with backoff while a pipeline runs."""

    retry = True


class SourceRefused(SourceError):
    """The database was reached and cannot be captured as it stands."""

    exit_code = 2


class DecodeError(SourceError):
    """A message of the replication stream that the protocol does not allow."""


class LogError(HeadraceError):
    """The durable log."""


class LogMissing(LogError):
    """There is no log at this place."""


class LogLocked(LogError):
    """Another process holds the writer's lock of this log."""


class TopicInUse(LogError):
    """A topic that is to be made is there already, or one that is to be deleted is used by somebody."""


class LogVersionError(LogError):
    """The log was written in a newer format than this Headrace reads."""


class LogCorrupt(LogError):
    """The log's file is torn, truncated or not a Headrace log."""


class LogTruncated(LogError):
    """Rows that a position or a recovery needs were deleted or truncated by somebody else."""


class LogUnavailable(LogError):
    """The broker cannot be reached now, or has undone a transaction. Nothing was written; tried again."""

    retry = True


class LogFull(LogError):
    """The disk is full. The failed transaction left nothing behind."""

    retry = True


class FormatError(HeadraceError):
    """Rows that a format cannot hold, or a schema that the registry refuses."""


class RegistryUnavailable(FormatError):
    """The schema registry cannot be reached now; what needs it waits."""

    retry = True


class SinkError(HeadraceError):
    """A destination of results refuses what its sink asks for; that sink waits, the pipeline goes on."""


class SinkUnavailable(SinkError):
    """The destination cannot be reached now. Its sink tries again with backoff."""

    retry = True


class LearnError(HeadraceError):
    """Rows or states that a learner refuses."""


class BadRows(LearnError):
    """Rows that cannot be learned or predicted.

    Args:
        message: what is wrong with them.
        rows: their indexes in the batch given.

    >>> BadRows("a feature is NaN", rows=[3]).rows
    (3,)
    """

    def __init__(self, message: str, *, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


class WaitTimeout(HeadraceError):
    """`running.wait()` reached its deadline; the message says what was still to do."""


def near(name: str, known: Iterable[str]) -> str:
    """Return the known name that was meant perhaps, as a question; nothing where none is alike.

    >>> near("amout", ["id", "amount"]), near("x", ["id"])
    (' (did you mean «amount»?)', '')
    """
    names = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f" (did you mean «{names[close[0]]}»?)" if close else ""
