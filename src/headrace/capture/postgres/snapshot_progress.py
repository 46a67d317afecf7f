"""How far incremental snapshots are: a record of the log, changed in the transaction that appends a chunk.

The log keeps it under (``snapshots``, prefix).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from headrace.capture.base import Log
from headrace.capture.postgres.slot_binding import read_record

KIND = "snapshots"
_REMEMBERED = 100


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table whose rows are wanted.

    Attributes:
        request: the id of who asked.
        where: the rows that are wanted, as SQL; "" for all.
        surrogate: the column by which it is read, where that is not its key.
        last: the key up to which it was read, as text; None at its beginning.
        maximum: the greatest key when it began; None before.
        rows: that were read; ``estimated``: as the catalog guessed when it began.
        first: they are rows of the first snapshot, which was begun in the slot's own and goes on beside the stream.
        blocking: the stream is held until all such tables that follow each other are read, in one snapshot.
        query: of these: rows that are read in the table's place; "" for the table's.
        since: of a first snapshot: the offset in the topic from which on it has rows of the stream; -1: not known.
    """

    request: str
    oid: int
    table: str
    where: str = ""
    surrogate: str = ""
    last: tuple[str, ...] | None = None
    maximum: tuple[str, ...] | None = None
    rows: int = 0
    estimated: int = 0
    first: bool = False
    since: int = -1
    blocking: bool = False
    query: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A table whose snapshot has ended; ``reason`` where that was before its end."""

    request: str
    table: str
    rows: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is wanted, and what has come of it.

    Attributes:
        queue: the first is being read.
        window: the window in the table of signals that is open; "" where none is.
        lsn, index: position of the next row, where it has the LSN of the last one.
        ended: the last tables that have ended.
        channels: of a channel of signals, by its name: what of it was obeyed (`signal_channels`).
    """

    queue: tuple[Wanted, ...] = ()
    paused: bool = False
    window: str = ""
    lsn: int = 0
    index: int = 0
    ended: tuple[Ended, ...] = ()
    channels: Mapping[str, str] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Return whether a chunk is to be read next."""
        return bool(self.queue) and not self.paused

    @property
    def due(self) -> bool:
        """Return whether there is something to do: a chunk to read, or a window to be closed."""
        return self.running or bool(self.window)

    @property
    def blocks(self) -> bool:
        """Return whether the next rows are read while the stream is held."""
        return self.running and self.queue[0].blocking

    @property
    def begins(self) -> bool:
        """Return whether rows of the first snapshot are still to come."""
        return any(wanted.first for wanted in self.queue)

    def with_first(self, wanted: Wanted) -> Progress:
        """Return it with the first table as it is now."""
        return replace(self, queue=(wanted, *self.queue[1:]))

    def done(self, reason: str = "") -> Progress:
        """Return it without the first table."""
        first = self.queue[0]
        ended = Ended(first.request, first.table, first.rows, reason)
        return replace(self, queue=self.queue[1:], ended=(*self.ended, ended)[-_REMEMBERED:])

    def with_wanted(self, wanted: Sequence[Wanted]) -> Progress:
        """Return it with more tables."""
        return replace(self, queue=(*self.queue, *wanted))

    def paused_now(self, paused: bool) -> Progress:
        """Return it paused, or resumed; where nothing is wanted there is nothing to pause."""
        return replace(self, paused=paused and bool(self.queue))

    def without(self, oids: set[int] | None) -> Progress:
        """Return it without tables, all where None is given, as somebody stops their snapshots."""
        gone = [wanted for wanted in self.queue if oids is None or wanted.oid in oids]
        ended = tuple(Ended(wanted.request, wanted.table, wanted.rows, "it was stopped") for wanted in gone)
        kept = tuple(wanted for wanted in self.queue if wanted not in gone)
        paused = self.paused and bool(kept)
        return replace(self, queue=kept, paused=paused, ended=(*self.ended, *ended)[-_REMEMBERED:])

    def since(self, base: Progress, now: Progress) -> Progress | None:
        """Return what was made of ``base`` as it is made of ``now``; None where tables are gone from it meanwhile."""
        n = len(base.queue)
        if now.queue[:n] != base.queue:
            return None
        queue = (*self.queue, *now.queue[n:])
        return replace(self, queue=queue, paused=now.paused and bool(self.queue), channels=now.channels)

    def to_json(self) -> bytes:
        """Return the record as it is stored."""
        return json.dumps(asdict(self), ensure_ascii=False).encode()

    @classmethod
    def load(cls, log: Log, source: str) -> Progress:
        """Return the log's record.

        Raises:
            LogCorrupt: it cannot be read.
        """

        def parse(fields: dict[str, Any]) -> Progress:
            queue = tuple(
                Wanted(**{**entry, "last": _key(entry["last"]), "maximum": _key(entry["maximum"])})
                for entry in fields["queue"]
            )
            ended = tuple(Ended(**entry) for entry in fields["ended"])
            return cls(**{**fields, "queue": queue, "ended": ended})

        return read_record(log, KIND, source, f"snapshots of source «{source}»", parse) or cls()


def _key(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
