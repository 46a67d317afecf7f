"""Events of a task, and the one order of their rows: by position, whatever topic they came from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Ints
from headrace.batch import OPS, Batch
from headrace.foreseen import Foreseen
from headrace.plan.task import Task
from headrace.step.model_version import VersionChange

SNAPSHOT_CUT_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one topic, all of one schema: their slices in the log and the offset of the first.

    Attributes:
        arrived_us: when the log took each row in; None where nobody asked.
        foreseen: predictions of its rows that were made ahead.
    """

    topic: str
    batch: Batch
    slices: Ints
    offset: int
    arrived_us: Ints | None = None
    foreseen: tuple[Foreseen, ...] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive slices of a task's topics.

    Attributes:
        parts: in the order of the task's topics; rows of a topic in the order of their offsets.
        complete: whether the last row's transaction ends with these rows.
    """

    parts: tuple[Part, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: closes a duration's idle cut, or (``explicit``) any cut, were it empty.

    Attributes:
        idle_us: topic -> how long no row of it has come, of topics whose silence moves the time of what is derived.
    """

    ts_us: int
    explicit: bool = False
    idle_us: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Train:
    """Somebody asks for a training now; ``until`` is the last slice whose rows it may take.

    Attributes:
        promote: asks that the model that is tried out takes over instead.
    """

    ts_us: int
    until: int
    by: str = ""
    promote: bool = False


@dataclass(frozen=True, slots=True)
class Redeclared:
    """The task is declared differently from here on; nothing is consumed.

    Attributes:
        before: the task as it was declared.
        by: who let its model go on under another declaration of what it is, where that has changed too.
        written: topic -> offset after the last row that the task had written, where a training may read the topic.
    """

    ts_us: int
    before: Task
    by: str = ""
    written: Mapping[str, int] = field(default_factory=dict)


Happening = Rows | Tick | VersionChange | Train
Event = Happening | Redeclared


@dataclass(frozen=True, slots=True)
class Merged:
    """All rows of an event in one order.

    Attributes:
        parts: the batches, each with a column ``__order``: its rows' places in the whole order.
        transactions: for each place, the ordinal of its transaction: 0 continues the one left open before.
        ts_us, lsn, index, offset, slices: for each place.
        last_key: key of the last transaction.
    """

    parts: tuple[Part, ...]
    transactions: Ints
    ts_us: Ints
    lsn: npt.NDArray[np.uint64]
    index: Ints
    offset: Ints
    slices: Ints
    last_key: tuple[int, int]

    @property
    def rows(self) -> int:
        return len(self.transactions)

    def numbered(self, topics: Collection[str], follow: Callable[[str, Batch], Batch]) -> Merged:
        """Return the same with the numbers of the rows of some topics (`headrace.step.row_identity`)."""
        parts = tuple(
            replace(part, batch=follow(part.topic, part.batch)) if part.topic in topics else part for part in self.parts
        )
        return replace(self, parts=parts)

    def after(self, transaction: int) -> int:
        """Return the first place after a transaction."""
        return int(np.searchsorted(self.transactions, transaction, "right"))


def merge(event: Rows, open_key: tuple[int, int] | None) -> Merged:
    parts = event.parts
    lsn = _joined([part.batch.lsn for part in parts])
    index = _joined([part.batch.index for part in parts])
    slices = _joined([part.slices for part in parts])
    ts_us = _joined([part.batch.ts_us for part in parts])
    offset = _joined([part.offset + np.arange(part.batch.num_rows) for part in parts])
    snapshot = _joined([_snapshot_keys(part) for part in parts])
    if len(parts) == 1:
        place = np.arange(len(lsn))
    else:
        order = np.lexsort((index, lsn, slices))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        lsn, index, slices, snapshot = lsn[order], index[order], slices[order], snapshot[order]
        ts_us, offset = ts_us[order], offset[order]
    begins = np.ones(len(lsn), np.bool_)
    begins[1:] = (lsn[1:] != lsn[:-1]) | (snapshot[1:] != snapshot[:-1])
    begins[1:] |= (lsn[1:] == 0) & (slices[1:] != slices[:-1])
    begins[0] = open_key != (int(lsn[0]), int(snapshot[0]))
    starts = np.cumsum([0, *(part.batch.num_rows for part in parts)])
    placed = tuple(
        replace(part, batch=_with_order(part.batch, place[a:b]))
        for part, a, b in zip(parts, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    )
    last_key = (int(lsn[-1]), int(snapshot[-1]))
    return Merged(placed, np.cumsum(begins), ts_us, lsn, index, offset, slices, last_key)


def _joined(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return arrays as one; usually there is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _snapshot_keys(part: Part) -> Ints:
    """Return keys of a snapshot's cuts: it is no transaction, and cut at every 100,000 rows and between its tables."""
    reads = part.batch.op == OPS["r"]
    if not reads.any():
        return np.zeros(part.batch.num_rows, np.int64)
    table = zlib.crc32(part.topic.encode()) & 0x7FFFFFFF
    return np.where(reads, (table << 20) + 1 + part.batch.index // SNAPSHOT_CUT_ROWS, 0)


def _with_order(batch: Batch, place: Ints) -> Batch:
    return Batch(batch.records.append_column("__order", pa.array(place)))


def order_of(batch: Batch) -> Ints:
    if "__order" not in batch.schema.names:
        raise ValueError("a transform must keep the columns that begin with «__»: use Batch.with_columns or .filter")
    return np.asarray(batch.column("__order"))
