"""The contract of a sink: batches of a topic come in order, at least once, and their effect is there exactly once.

A sink follows one topic of the log from a position of its own. Where the destination can hold that position, it lies
there, together with the rows; where it cannot (HTTP, a terminal), it is a record of the log, which the engine writes.

`SinkSpec` is what is declared, `Sink` what delivers, `SinkContext` what the engine gives to it.
``tests/contract/test_sink.py`` runs every sink through what is promised here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import plain_values
from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.errors import DeclarationError, SinkError

ORDER = "__order"
Reason = tuple[int, str]
# What libraries raise because of a value: its row is at fault, and no repetition helps.
ROW_ERRORS = (
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    NotImplementedError,
    RecursionError,
    pa.ArrowException,
)


@dataclass(frozen=True, slots=True)
class SinkBatch:
    """Rows of one topic that are delivered together.

    Attributes:
        topic: where they come from.
        first, end: the offsets covered; the position afterwards is ``end``.
        batch: the rows, all of one schema; some or none of those covered, where operations dropped rows.
        offsets: each row's offset in its topic, ascending.
    """

    topic: str
    first: int
    end: int
    batch: Batch
    offsets: npt.NDArray[np.int64]

    def ids(self, app: str) -> list[str]:
        """A name for each row that is the same at every delivery: ``<app>/<topic>/<offset>``.

        Where one row of the topic became several, those after the first have their number behind a dot.

        >>> part = SinkBatch("t", 0, 3, Batch.of({"a": [1, 2, 3]}), np.array([0, 2, 2]))
        >>> part.ids("shop")
        ['shop/t/0', 'shop/t/2', 'shop/t/2.1']
        """
        nth = np.arange(self.offsets.size) - np.searchsorted(self.offsets, self.offsets)
        pairs = zip(self.offsets.tolist(), nth.tolist(), strict=True)
        return [f"{app}/{self.topic}/{offset}" + (f".{again}" if again else "") for offset, again in pairs]

    def take(self, rows: npt.NDArray[np.int64]) -> SinkBatch:
        """The same part with some of its rows."""
        return SinkBatch(self.topic, self.first, self.end, self.batch.take(rows), self.offsets[rows])


class Stopped(Exception):
    """The pipeline is being stopped: what a sink was doing is done again at the next start."""


class SinkContext(Protocol):
    """The log's side of one sink: its names, its dead letters and, where the destination cannot hold it, its position.

    Given to a sink by the engine and used by the sink's own thread only. `refuse` and `keep` return when what they were
    given is durable; they and `pause` raise `Stopped` when the pipeline ends before that.
    """

    app: str
    sink: str
    topic: str
    log_id: str
    """The log's identity: a position that was stored for another log means nothing in this one."""

    @property
    def position(self) -> int:
        """The position that `keep` has stored; 0 at first."""
        ...

    def refuse(self, part: SinkBatch, reasons: Sequence[Reason]) -> None:
        """Write rows of a batch (by their indexes) to the dead-letter topic, each once however often it is refused.

        To be called before the position moves past them.
        """
        ...

    def keep(
        self,
        position: int,
        *,
        outputs: Iterable[tuple[str, Batch]] = (),
        refused: tuple[SinkBatch, Sequence[Reason]] | None = None,
    ) -> None:
        """Store the position, with rows for topics of the log and dead letters, in one transaction of the log."""
        ...

    def pause(self, seconds: float, why: str) -> None:
        """Wait, saying why in the sink's status."""
        ...


class Sink(Protocol):
    """One destination.

    The engine calls `open` once, then `deliver` again and again, then `close`, all in the sink's own thread. `cancel`
    may be called at any time from any other thread.

    A resume starts at the position that `open` returns: the offset behind the last row whose effect is durable. The
    same rows come again only where an error, or a kill, left the position before them; they have the same offsets then,
    and the same names (`SinkBatch.ids`), but not always the same borders. Delivering them again must change nothing
    but where no destination could tell (a terminal).

    After an error a sink is closed and another one made of the same `SinkSpec`; the engine pauses in between (see
    `headrace.retry.Backoff`), for ever where need be. A sink tries nothing again itself, unless a status of its own has
    to be told meanwhile (`SinkContext.pause`).
    """

    rows: int
    """At most so many rows of the topic make a batch."""
    linger: float
    """Seconds to wait for that many; 0: what is there is delivered at once."""

    def open(self) -> int:
        """Connect, make what is missing, and return the position: the offset of the first row to deliver.

        Raises:
            SinkUnavailable: the destination cannot be reached now.
            SinkError: it refuses what was asked for, or holds the results of another log.
        """
        ...

    def deliver(self, part: SinkBatch) -> None:
        """Deliver a batch and move the position to its end, which may be all there is to do: a batch may have no rows.

        A row that the destination refuses for what it holds goes to `SinkContext.refuse`, the others are delivered.

        Raises:
            SinkUnavailable, SinkError: as `open`.
            Stopped: the pipeline ends; what was not stored is delivered again at the next start.
        """
        ...

    def cancel(self) -> None:
        """Break off a call that waits for the destination; calls to come may fail at once. Also before `open`."""
        ...

    def close(self) -> None:
        """Let go of the destination; repeatable, and harmless before `open`."""
        ...


class SinkSpec(Protocol):
    """A destination as declared: a frozen description whose secrets are in no repr. Opens nothing by itself.

    The sinks here inherit from it, and with it what most of them have in common.
    """

    @property
    def kind(self) -> str:
        """The word for it: ``postgres``, ``mongo``, ``parquet``, ``http``, ``console``."""
        ...

    @property
    def key(self) -> tuple[str, ...]:
        """Columns that the destination identifies rows by; none where it does not."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that must be there, the key's included; the key's alone where a sink says nothing else."""
        return self.key

    @property
    def where(self) -> str:
        """The place in words, without user, password and tokens."""
        ...

    @property
    def writes(self) -> tuple[str, ...]:
        """Topics of the log that it writes to, dead letters left out; none by default."""
        return ()

    @property
    def positions(self) -> str:
        """What of the destination holds the positions of sinks, in words; "" where they go with the results."""
        return ""

    def forget(self, app: str, log_id: str) -> None:
        """Delete the positions that an app's sinks have there for a log, which is deleted too.

        Raises:
            SinkError: the destination cannot be reached, or refuses.
        """
        return

    def sink(self, context: SinkContext) -> Sink:
        """Return a sink, not yet open."""
        ...


def other_log(where: str, context: SinkContext, *, advice: str) -> SinkError:
    """The refusal to add rows of a new log to those of another one, which cannot be told apart."""
    return SinkError(
        f"{where} holds results that the sink «{context.sink}» has written from another log of «{context.app}»",
        advice=advice,
    )


def refuse_values(column: pa.Array, reason: str) -> dict[int, str]:
    """Rows that hold a value in a column, each with the reason to refuse it."""
    return dict.fromkeys(np.flatnonzero(np.asarray(column.is_valid())).tolist(), reason)


def left_rows(count: int, refused: Iterable[int]) -> Ints:
    """The rows of so many that were not refused."""
    return np.setdiff1d(np.arange(count), list(refused)).astype(np.int64)


def error_text(error: BaseException) -> str:
    """An exception in one line, as the reason to refuse a row.

    >>> error_text(ValueError("no such\\nday"))
    'ValueError: no such day'
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]


def unreadable(records: pa.RecordBatch) -> dict[int, str]:
    """Rows with a text that is no UTF-8, which no destination can be given as it is.

    >>> bad = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\\xff"))
    >>> unreadable(pa.RecordBatch.from_arrays([bad], ["x"]))
    {1: 'the text in «x» is no UTF-8'}
    """
    found: dict[int, str] = {}
    for name, column in zip(records.schema.names, records.columns, strict=True):
        if _holds_text(column.type) and not all_utf8(column):
            rows = [row for row in range(len(column)) if not all_utf8(column.take(pa.array([row])))]
            found = dict.fromkeys(rows, f"the text in «{name}» is no UTF-8") | found
    return found


def _holds_text(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_holds_text(kind.field(i).type) for i in range(kind.num_fields))
    return plain_values.is_text(kind)


def all_utf8(column: pa.Array) -> bool:
    """Return whether every text in a column can be read."""
    kind = column.type
    if not _holds_text(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return all_utf8(column.storage)
    if pa.types.is_dictionary(kind):
        return all_utf8(column.dictionary_decode())
    if pa.types.is_run_end_encoded(kind) or pa.types.is_union(kind):
        return not plain_values.beyond(column)
    if pa.types.is_map(kind):
        return all_utf8(column.keys) and all_utf8(column.items)
    if pa.types.is_struct(kind):
        return all(all_utf8(child) for child in column.flatten())
    if pa.types.is_nested(kind):
        return all_utf8(column.flatten())
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def nothing_kept(names: Sequence[str], why: str) -> str:
    """The reason to refuse a row of which the source did not send some values (unchanged TOAST), nor anybody has them.

    >>> nothing_kept(["x"], "it has no such row")
    'the source did not send «x», which did not change, and it has no such row (REPLICA IDENTITY FULL sends all)'
    """
    columns = ", ".join(f"«{name}»" for name in names)
    return f"the source did not send {columns}, which did not change, and {why} (REPLICA IDENTITY FULL sends all)"


def check_names(names: Iterable[object], what: str) -> tuple[str, ...]:
    """Columns as the user gave them: one name or several.

    Raises:
        DeclarationError: there is none, one is no name, or one is given twice.

    >>> check_names("id", "key"), check_names(["a", "b"], "key")
    (('id',), ('a', 'b'))
    """
    found = [names] if isinstance(names, str) else list(names)
    if not found:
        raise DeclarationError(f"{what}=[] names no column", advice=f"Name one, or leave {what}= out.")
    for name in found:
        if not isinstance(name, str) or not name.strip():
            raise DeclarationError(f"{what}={name!r} is not a column's name")
        if found.count(name) > 1:
            raise DeclarationError(f"{what}: the column «{name}» is named twice")
    return tuple(str(name) for name in found)


def pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most ``size``.

    >>> list(pieces(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, count, size):
        yield start, min(count, start + size)
