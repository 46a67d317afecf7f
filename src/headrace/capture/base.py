"""The contract of a source: six methods, one `Piece`, a position that only its source understands.

    start ──▶ (poll ──▶ store ──▶ acknowledge)* ──▶ stop          end: from any thread, while it runs

A source hands out what was committed at its origin, in order; the engine appends it to the log and puts the source's
own record beside it, in one transaction; only then does the source hear that it is durable. After a crash it goes on
behind the last record that was stored: what was handed out and not stored comes again, what was stored does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa

from headrace.batch import Batch
from headrace.foreseen import Foreseen
from headrace.kafka.ranges import MessageRange

KIND = "source"  # of the record that a source keeps in the log, under its name


# --- what a source needs of a log: the part of `headrace.log.base` that capture uses, and no more ---


class Transaction(Protocol):
    """All or nothing, durable when its block ends; see `headrace.log.base.Transaction` for each method's contract."""

    def next_slice(self) -> None: ...

    def stage(self, topic: str, records: pa.RecordBatch) -> None: ...

    def publish(self) -> None: ...

    def discard_staged(self) -> None: ...

    def put(self, kind: str, name: str, value: bytes) -> None: ...

    def delete(self, kind: str, name: str) -> None: ...


class Stored(Protocol):
    """An entry of a topic: rows, and the offset of the first."""

    @property
    def offset(self) -> int: ...
    @property
    def records(self) -> pa.RecordBatch: ...


class Held(Protocol):
    """The extent of a topic: ``first`` is the oldest offset still held, ``end`` the next to be written."""

    @property
    def first(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class Log(Protocol):
    """The place where captured rows go, and where the source's own record is kept beside them."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...

    def records(self, kind: str, prefix: str = "") -> dict[str, bytes]: ...

    def topics(self) -> Mapping[str, Held]: ...

    def read_topic(self, topic: str, *, offset: int = 0, limit: int = 65_536) -> Sequence[Stored]: ...


# --- what a source hands out ---


class SourcePosition(Protocol):
    """A point up to which a source has come. Positions of one source compare; `str` shows one to people."""

    def __ge__(self, other: Any, /) -> bool: ...


P = TypeVar("P", bound=SourcePosition)


@dataclass(frozen=True, slots=True)
class Origin:
    """The messages that a batch was made of, so that a log on the same cluster can adopt them and copies nothing.

    Attributes:
        ranges: where they lie.
        format: the form in which they are to be read again.
        spread: how they were spread over several partitions (`headrace.kafka.ranges.pack_spread`).
    """

    ranges: tuple[MessageRange, ...]
    format: str
    spread: bytes = b""


@dataclass(frozen=True)  # no slots: they would forbid `Piece[…](…)`
class Piece(Generic[P]):
    """Rows that belong together: one slice of the log; whole transactions of the source, or a part of a large one.

    Attributes:
        batches: (topic, rows); in commit order inside each topic, and by their first rows' positions across topics.
        rejected: (topic + ``.dlq``, dead letters) of the rows that no batch can hold.
        position: everything before it has been handed out with this piece, and may be stored; None where no
            transaction ends. A piece that has nothing else says that nothing was captured up to there: it may be
            stored so that the origin need not keep what is of no interest here.
        continued: the first rows belong to a transaction begun in an earlier piece; there is nothing else in it.
        open: its transaction goes on after this piece; its rows are staged until the piece that is not open.
        complete: a transaction of the source ends with it.
        origins: of the first batches, one each, where they lie on a cluster already.
        rewound: the connection was lost, and what is staged of an open transaction comes again: the engine discards
            what it has staged. Such a piece has nothing else.
        foreseen: of the first batches, for each, predictions that whoever read its rows has made ahead.
    """

    batches: tuple[tuple[str, Batch], ...] = ()
    rejected: tuple[tuple[str, Batch], ...] = ()
    position: P | None = None
    continued: bool = False
    open: bool = False
    complete: bool = True
    origins: tuple[Origin, ...] = ()
    rewound: bool = False
    foreseen: tuple[tuple[Foreseen, ...], ...] = ()

    @property
    def rows(self) -> int:
        """Return the number of rows in ``batches`` and ``rejected``."""
        return sum(batch.num_rows for _, batch in (*self.batches, *self.rejected))

    @property
    def idle(self) -> bool:
        """Return whether it has a position at most. A source hands one out again, as long as it was not stored."""
        return not (self.batches or self.rejected or self.continued or self.open or self.rewound)


# --- what a source says of itself ---


class SourceState(Enum):
    """The state of a source; `RETRYING` and `WAITING` are worth a warning."""

    STARTING = "starting"
    CONNECTED = "connected"
    RETRYING = "retrying"  # the connection is lost and is made again
    WAITING = "waiting"  # for something that is not there, or not there yet
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """The state of a source at one moment, for engines and people.

    Attributes:
        state: in one word.
        text: one line for people: where it is connected to, why it retries, what it waits for.
        position: everything before it has been handed out by `poll`.
        away_since: when the origin went away, by `time.monotonic`; None while it is there.
        reconnects: connections made again since the start.
    """

    state: SourceState
    text: str
    position: SourcePosition
    away_since: float | None = None
    reconnects: int = 0

    @property
    def away_seconds(self) -> float:
        """Return how long the origin has been away; 0 while it is there."""
        return 0.0 if self.away_since is None else time.monotonic() - self.away_since

    @property
    def troubled(self) -> bool:
        """Return whether something is waited for that people should know of."""
        return self.state in (SourceState.RETRYING, SourceState.WAITING)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number about a source, under a name of its own, with what it means, of one of its tables or of them all."""

    name: str
    about: str
    value: float
    table: str = ""


@dataclass(frozen=True)  # no slots: they would forbid `SourceTraits[…](…)`
class SourceTraits(Generic[P]):
    """The abilities of a source beyond its six methods; constant once it was started.

    Attributes:
        tables: topic -> schema, where they are known before rows come.
        warnings: what the user should know before it runs.
        cluster: address of the cluster on which the messages lie that its pieces' ``origins`` name; "" for none.
        parse_position: makes a position of what a user names (the LSN of a database); None where nobody can name one.
        measure: what a database's capture has done since the start; asks nobody; None of other sources.
        measure_lag: how far the log is behind the origin; asks the origin, from any thread; empty while it is away.
        want_snapshot: appends the rows that tables have (patterns, a condition as SQL, a column to read by, an id)
            while it goes on; belongs to the engine's thread. It raises SourceRefused, or calls what it is given when
            the request is durable.
    """

    tables: Mapping[str, pa.Schema] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cluster: str = ""
    parse_position: Callable[[str | int], P] | None = None
    measure: Callable[[], Sequence[Measurement]] | None = None
    measure_lag: Callable[[], Sequence[Measurement]] | None = None
    want_snapshot: Callable[[Sequence[str], str, str, str, Callable[[dict[str, Any]], None]], None] | None = None


class Waker:
    """Ends the waiting of sources from other threads: an engine has one, and each source adds itself in `start`.

    Attributes:
        interrupted: whether nobody wants to wait for an origin any more.

    >>> waker = Waker()
    >>> waker.on_wake(lambda: print("awake"))
    >>> waker.wake()
    awake
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._wake: list[Callable[[], None]] = []
        self._interrupt: list[Callable[[], None]] = []

    def on_wake(self, call: Callable[[], None]) -> None:
        """Add what makes `poll` return soon; it is called by any thread and must not block."""
        self._wake.append(call)

    def on_interrupt(self, call: Callable[[], None]) -> None:
        """Add what ends waiting for an origin that is away; it is called by any thread and must not block."""
        self._interrupt.append(call)

    def wake(self) -> None:
        """Make every `poll` return soon: there is something else to do. From any thread."""
        for call in self._wake:
            call()

    def interrupt(self) -> None:
        """Make every wait for an origin end soon, and not be begun again: the pipeline ends. From any thread."""
        self.interrupted = True
        for call in self._interrupt:
            call()
        self.wake()


class Source(Protocol[P]):
    """The contract of an engine with a source: a database, topics, another pipeline, rows that the program appends.

    One thread, the engine's, calls `start`, then in rounds `poll`, `store` and `acknowledge`, and last `stop`. `end`,
    `status` and what `traits` has may be asked by any thread.

    Attributes:
        name: of its record in the log, and for people.
    """

    name: str

    @property
    def traits(self) -> SourceTraits[P]:
        """Return what it can do beyond this."""
        ...

    @property
    def status(self) -> SourceStatus:
        """Return how it is now; cheap, asked in every round."""
        ...

    def start(self, log: Log, waker: Waker | None = None) -> None:
        """Go on behind the position that the log has stored, or begin; once, before anything else.

        Args:
            log: where its record is. A source may write to it here (a first snapshot), and nowhere else.
            waker: ends the waiting of `poll`, where an engine has other things to do.

        Raises:
            SourceError: it cannot begin; nothing that `poll` would have given is lost.
        """
        ...

    def poll(self, timeout: float) -> Sequence[Piece[P]]:
        """Return what has been committed, waiting at most ``timeout`` seconds for the first of it.

        Each piece is handed out once, until the connection is lost: then a piece that is ``rewound`` comes before
        everything that was not stored. A lost connection is made again here, and is no error.

        Raises:
            SourceError: it cannot go on; the pipeline ends.
        """
        ...

    def store(self, txn: Transaction, position: P) -> None:
        """Put the source's record into the transaction that appends everything up to a piece's position.

        Called before the next `poll`, with the last position of the pieces; repeated when the transaction was undone.
        """
        ...

    def acknowledge(self) -> None:
        """Note that the transaction of the last `store` is durable: the origin may forget what lies before.

        A crash may come between the two: then the next `start` finds the stored record and goes on behind it.
        """
        ...

    def end(self, until: P | None = None) -> P:
        """Return the position behind everything that has been committed until now, and hasten to hand that out.

        Args:
            until: hasten to this position instead, and return it; nothing is asked of the origin.

        Raises:
            SourceError: the origin cannot be asked.
        """
        ...

    def stop(self) -> None:
        """Let the origin know what is stored, and release everything; harmless before `start`, and twice."""
        ...
