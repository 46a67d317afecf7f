"""The index of a log on Kafka: which messages of which partitions make up each slice.

A broker's partitions are ordered each by itself only. What the order *between* them is, is written down: each
transaction adds a **slices record** to ``__headrace.NAME.slices``, in the same Kafka transaction as the rows. It names,
for every slice and every topic in it, the partitions' offsets, the first and the last. A reader who follows these
records fetches until it is past all of them, and so sees every transaction whole and in commit order, however the
fetches of the partitions interleave.

Rows get offsets of their own (0, 1, 2, …, counted over all partitions of a topic): Kafka's have gaps where
transactions end, and say nothing across partitions. The record's timestamp is its last slice's number, so that
`offsets_for_times` finds a slice without a search.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headrace.kafka.ranges import MessageRange
from headrace.log.base import Extent

Packed = bytes  # the name «bytes» is a field's here
ENTRIES_IN_RECORD = 2_000


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One entry of a topic, without its rows.

    Attributes:
        slice, seq: its slice, and its place among the slice's entries.
        topic, offset, rows, bytes: as in `headrace.log.base.Entry` and `Extent`.
        form: number of its schema and format.
        complete, ts_us: as in `headrace.log.base.Entry`.
        ranges: where its messages lie; for several partitions without ``spread``, one range after the other.
        spread: the partition of each message in order, where rows were spread over several partitions.
    """

    slice: int
    seq: int
    topic: str
    offset: int
    rows: int
    bytes: int
    form: int
    complete: bool
    ts_us: int
    ranges: tuple[MessageRange, ...]
    spread: Packed = b""

    @property
    def end(self) -> int:
        """The offset after its last row."""
        return self.offset + self.rows

    @property
    def extent(self) -> Extent:
        return Extent(self.offset, self.rows, self.bytes, self.ts_us)


def dump_slices(entries: Sequence[IndexEntry]) -> Iterator[tuple[int, bytes]]:
    """Yield entries in the order of their slices as records: number of the last slice, and bytes, of each.

    A slice is never divided between two records.
    """
    start = 0
    while start < len(entries):
        end = min(start + ENTRIES_IN_RECORD, len(entries))
        while end < len(entries) and entries[end].slice == entries[end - 1].slice:
            end += 1
        chunk = entries[start:end]
        yield chunk[-1].slice, json.dumps([_row(entry) for entry in chunk], separators=(",", ":")).encode()
        start = end


def _row(entry: IndexEntry) -> list[object]:
    row: list[object] = [
        entry.slice,
        entry.seq,
        entry.topic,
        entry.offset,
        entry.rows,
        entry.bytes,
        entry.form,
        int(entry.complete),
        entry.ts_us,
        entry.ranges,
    ]
    return [*row, base64.b64encode(entry.spread).decode()] if entry.spread else row


def load_slices(value: bytes) -> list[IndexEntry]:
    """Return the inverse of one record of `dump_slices`.

    >>> entry = IndexEntry(7, 0, "t", 3, 2, 40, 1, True, 99, (MessageRange(0, 12, 13, 2),))
    >>> [load_slices(value) == [entry] for _, value in dump_slices([entry])]
    [True]
    """
    found = []
    for slice_, seq, topic, offset, rows, size, form, complete, ts_us, ranges, *spread in json.loads(value):
        span = tuple(MessageRange(*values) for values in ranges)
        packed = base64.b64decode(spread[0]) if spread else b""
        found.append(IndexEntry(slice_, seq, topic, offset, rows, size, form, bool(complete), ts_us, span, packed))
    return found
