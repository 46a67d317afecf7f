"""Entries with their rows: from memory where they are there, else fetched and decoded, many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import LogTruncated
from headrace.kafka.fetch import Fetcher, Range, wire_messages
from headrace.kafka.place import Place, unpack_spread
from headrace.log.base import Entry
from headrace.log.kafka_codec import Codecs
from headrace.log.kafka_topics import Form
from headrace.log.kafka_writer import Cached
from headrace.log.slices import Stored

OURS = "__position"


class Loader:
    """Reads the rows of entries. Any thread may call it.

    Args:
        fetcher: where messages come from.
        codecs: what they mean.
        forms: number -> form, kept up to date by the log.
    """

    def __init__(self, fetcher: Fetcher, codecs: Codecs, forms: Mapping[int, Form]) -> None:
        self._fetcher = fetcher
        self._codecs = codecs
        self._forms = forms

    def load(self, chosen: Sequence[Cached]) -> list[Entry]:
        """The entries, in the order given."""
        missing = [one.stored for one in chosen if one.records is None and one.staged is None]
        loaded = iter(self._fetched(missing))
        entries = []
        for one in chosen:
            records = one.records
            if records is None and one.staged is not None:
                where, form = one.staged
                records = self.staged(where.topic, Place(where.partition, where.first, where.last, 0), form)
            entries.append(_entry(one.stored, next(loaded) if records is None else records))
        return entries

    def staged(self, topic: str, place: Place, form: int) -> pa.RecordBatch:
        """Rows that wait for their publication."""
        messages = self._fetcher.fetch([Range(topic, place.partition, place.first, place.last)])[0]
        return self._codecs.decode(self._forms[form], wire_messages(topic, messages))

    def _fetched(self, missing: Sequence[Stored]) -> Iterator[pa.RecordBatch]:
        ranges = [Range(one.topic, place.partition, place.first, place.last) for one in missing for place in one.places]
        by_partition = sorted(range(len(ranges)), key=lambda i: (ranges[i].where, ranges[i].first))
        found: list[list[Any]] = [[] for _ in ranges]
        fetched = self._fetcher.fetch([ranges[i] for i in by_partition])
        for i, messages in zip(by_partition, fetched, strict=True):
            found[i] = messages
        each: list[list[Any]] = []
        at = 0
        for stored in missing:
            places = stored.places
            each.append(in_order(stored, found[at : at + len(places)]))
            at += len(places)
        yield from self._decoded(missing, each)

    def _decoded(self, missing: Sequence[Stored], each: Sequence[list[Any]]) -> Iterator[pa.RecordBatch]:
        """Rows of consecutive entries of one form are decoded together, where each message is a row."""
        start = 0
        while start < len(missing):
            end = start + 1
            while end < len(missing) and _together(missing[start], missing[end], each[start], each[end]):
                end += 1
            topic, form = missing[start].topic, self._forms[missing[start].form]
            joined = [message for messages in each[start:end] for message in messages]
            records = self._codecs.decode(form, wire_messages(topic, joined))
            first = 0
            for stored in missing[start:end]:
                yield records.slice(first, stored.rows) if end - start > 1 else records
                first += stored.rows
            start = end

    def close(self) -> None:
        """Leave the cluster; `load` comes back to it."""
        self._fetcher.close()


def _together(one: Stored, other: Stored, messages: list[Any], others: list[Any]) -> bool:
    same = one.topic == other.topic and one.form == other.form
    return same and len(messages) == one.rows and len(others) == other.rows


def in_order(stored: Stored, found: Sequence[list[Any]]) -> list[Any]:
    """An entry's messages in the order of its rows.

    Raises:
        LogTruncated: some are missing.
    """
    parts = []
    for place, messages in zip(stored.places, found, strict=True):
        if len(messages) > place.messages:
            # Others wrote to the same partition at the same time.
            messages = [one for one in messages if any(name == OURS for name, _ in one.headers() or ())]
        if len(messages) != place.messages:
            raise LogTruncated(
                f"«{stored.topic}» partition {place.partition} holds {len(messages)} of the {place.messages} messages "
                f"of ours between offsets {place.first} and {place.last}",
                advice="They were deleted or compacted. Restore them, or begin a log with another app name.",
            )
        parts.append(messages)
    if not stored.spread:
        return parts[0] if len(parts) == 1 else [one for messages in parts for one in messages]
    by_partition = {place.partition: messages for place, messages in zip(stored.places, parts, strict=True)}
    spread = unpack_spread(stored.spread)
    ordered: list[Any] = [None] * len(spread)
    for partition, messages in by_partition.items():
        for i, message in zip(np.flatnonzero(spread == partition).tolist(), messages, strict=True):
            ordered[i] = message
    return ordered


def _entry(stored: Stored, records: pa.RecordBatch) -> Entry:
    return Entry(stored.topic, stored.slice, stored.offset, records, stored.complete, stored.ts_us)
