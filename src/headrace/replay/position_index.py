"""Finding rows of a topic by their positions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Ints
from headrace.log.base import Entry, Log, walk
from headrace.position import Position


def find_row(log: Log, topic: str, position: Position, *, most: int | None = None) -> int | None:
    """Return the offset of the row at a position; None where the topic has none.

    Rows of a table, and those that a program appends, are in the order of their positions: then it takes a few reads.
    Others are searched one after the other.

    Args:
        most: rows of a topic that is searched so; of one that has more, rows out of order are not found.
    """
    info = log.topics().get(topic)
    if info is None or not info.rows:
        return None
    low, high = info.first, info.end
    while low < high:
        entry = entry_of(log, topic, (low + high) // 2)
        if entry is None:
            return None
        found = _within(entry.records, position)
        if found is not None:
            return entry.offset + found
        if place_of(entry.records, 0) > (position.lsn, position.index):
            high = entry.offset
        else:
            low = entry.offset + entry.records.num_rows
    if most is not None and info.rows > most:
        return None
    for entry in walk(log, topic, info.first):
        found = _within(entry.records, position)
        if found is not None:
            return entry.offset + found
    return None


def last_row(log: Log, topic: str, end: int) -> Position | None:
    """Return the position of the row before an offset; None where it is not held any more."""
    entry = entry_of(log, topic, end - 1)
    if entry is None or entry.offset > end - 1:
        return None
    return Position(*place_of(entry.records, end - 1 - entry.offset))


def reach_of(log: Log, topic: str, at: Entry, position: Position) -> int:
    """Return the offset after a topic's last row that comes before, or is at, a position in an entry's slice."""
    info = log.topics().get(topic)
    if info is None:
        return 0
    end = None
    for entry in log.read([topic], after=at.slice - 1, until=at.slice, limit=2**62):
        records = entry.records
        lsn, index = _columns(records)
        upto = (lsn < position.lsn) | ((lsn == position.lsn) & (index <= position.index))
        end = entry.offset + (int(upto.sum()) if upto.any() else 0)
        if not upto.all():
            break
    if end is not None:
        return end
    following = log.read([topic], after=at.slice, limit=1)
    return following[0].offset if following else info.end


def entry_of(log: Log, topic: str, offset: int) -> Entry | None:
    """Return the entry that holds an offset."""
    found = log.read_topic(topic, offset=offset, limit=1)
    return found[0] if found else None


def _columns(records: pa.RecordBatch) -> tuple[npt.NDArray[np.uint64], Ints]:
    if "__lsn" not in records.schema.names:
        # Rows that no source wrote get positions that keep their order (`Batch.of`).
        return np.zeros(records.num_rows, np.uint64), np.arange(records.num_rows)
    return np.asarray(records.column("__lsn"), np.uint64), np.asarray(records.column("__index"), np.int64)


def place_of(records: pa.RecordBatch, row: int) -> tuple[int, int]:
    """Return LSN and index of a row; LSN 0 where no database gave it a position."""
    lsn, index = _columns(records)
    return int(lsn[row]), int(index[row])


def _within(records: pa.RecordBatch, position: Position) -> int | None:
    lsn, index = _columns(records)
    found = np.flatnonzero((lsn == np.uint64(position.lsn)) & (index == position.index))
    return int(found[0]) if len(found) else None
