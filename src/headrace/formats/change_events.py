"""Change events out of decoded columns, for every format: what keys, headers and messages without a value say.

A format makes columns of payloads, and says of which it cannot. Everything else is done here, once:

======================================  =====================================================================
message                                 event
======================================  =====================================================================
an envelope                             its op; the row of ``after``, of ``before`` where it is a delete
a row alone                             an insert, or the op that ``__op``, ``__deleted`` or the headers say
null, headers with the row (`headers`)  that delete or truncation
null behind a delete of the same key    none: its tombstone
null, the header ``__tombstone``        none
null behind an envelope                 none: in such a topic only envelopes are events
null                                    a delete of the row that the key names
======================================  =====================================================================

"Behind" means behind in the same partition: in these messages, or in those before them that `Preceding` remembers. So
a message becomes the same event however messages are cut into fetches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import batch as batches
from headrace import plain_values
from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch, is_meta
from headrace.formats import debezium
from headrace.formats.base import FIRST, Decoded, Preceding
from headrace.formats.coerce import Reading, converted, raw_types, reading, spread
from headrace.formats.debezium import UNKNOWN, Columns, Events
from headrace.formats.headers import Cells, EventHeaders, read_event_headers, topic_source
from headrace.formats.json_parse import Bad, parse, without_columns
from headrace.wire import WireMessages


class Keys(Protocol):
    """The keys of some messages; called by `ChangeEvents` once for each group of rows."""

    def names_of(self, rows: Ints, schema: pa.Schema) -> tuple[str, ...]:
        """Return the key columns of these messages' rows, none where the keys do not name any of the schema's."""
        ...

    def columns_of(self, rows: Ints, schema: pa.Schema | None) -> tuple[Columns, Ints, Bad]:
        """Return the columns of these messages' keys, the messages that have some, and what is wrong with others."""
        ...


@dataclass(slots=True)
class Rows:
    """Some events in their final columns; ``events`` says what they are, its raw columns are done with."""

    records: pa.RecordBatch
    events: Events
    before: pa.StructArray | None = None
    key: tuple[str, ...] = ()


@dataclass(slots=True)
class ChangeEvents:
    """The events of the messages of one call of `Format.decode`: `add` those with a value, then `add_nulls`.

    Args:
        messages: all of them.
        schema: the columns that are asked for, None where the messages say them.
        keys: reads their keys.
        preceding: what the messages before these say of them.
        reading_of: makes a column of a known field from what keys or payloads have.
        header_readings: reads the columns of a row in a header, given its JSON and its event; None: as they look.
        placeholder: what Debezium writes for a value that the source did not send.

    Attributes:
        headers: what the messages' headers say, None where they say nothing.
        found: the events so far.
        bad: index and reason of messages that are none.
        decided: the columns that the topic's rows decided, where no schema is asked for; None where they do not decide.
        first_envelope: index of the first message that is an envelope; None where there is none so far.
    """

    messages: WireMessages
    schema: pa.Schema | None
    keys: Keys
    preceding: Preceding = FIRST
    reading_of: Callable[[pa.Field], Reading] = reading
    header_readings: Callable[[bytes, Events], list[Reading] | None] | None = None
    placeholder: str = debezium.PLACEHOLDER
    headers: EventHeaders | None = field(init=False)
    found: list[Rows] = field(default_factory=list)
    bad: Bad = field(default_factory=list)
    decided: pa.Schema | None = None
    first_envelope: int | None = None
    _empty: Mask = field(init=False)  # messages that have neither a value nor a row in a header

    def __post_init__(self) -> None:
        self.headers = read_event_headers(self.messages)
        self._empty = np.zeros(len(self.messages), np.bool_)

    # -- messages with a value --

    def add(
        self,
        events: Events,
        readings: Sequence[Reading] | None,
        *,
        hidden: bool = False,
        reason: str = "",
    ) -> None:
        """Add events in raw columns; what the headers say goes before what the values say.

        Args:
            readings: make the final columns; None where the raw ones are final.
            hidden: some value may stand for one that the source did not send.
            reason: what begins the reasons of those that do not fit.
        """
        self.bad += events.bad
        if events.enveloped and events.rows.size:
            self.saw_envelopes(events.rows)
        if not events.rows.size:
            return
        if any(map(is_meta, events.columns)):
            events = self._without_our_names(events)
        headers = None if self.headers is None else self.headers.take(events.rows)
        if hidden and (headers is None or not headers.ours.all()):
            events = debezium.mark_unchanged(events, self.placeholder)
        old = self._merge(events, headers) if headers is not None else None
        events.source = events.source or self._source()
        self._convert(events, readings, old if old is not None else readings, reason)

    def saw_envelopes(self, rows: Ints) -> None:
        """Note that these messages are envelopes, whether or not they can be decoded."""
        first = int(rows.min())
        self.first_envelope = first if self.first_envelope is None else min(self.first_envelope, first)

    def _without_our_names(self, events: Events) -> Events:
        """Envelopes of a table that has a column of a name of Headrace's own: rows with a value there are refused."""
        named = [name for name in events.columns if is_meta(name)]
        for name in named:
            found = np.flatnonzero(np.asarray(events.columns[name].is_valid()))
            reason = f"a column «{name}», a name of Headrace's own"
            self.bad += [(int(events.rows[row]), reason) for row in found.tolist()]
            events = events.take(np.setdiff1d(np.arange(events.rows.size), found)) if found.size else events
        events.columns = {name: array for name, array in events.columns.items() if name not in named}
        if events.before is not None:
            events.before = {name: array for name, array in events.before.items() if name not in named}
        return events

    def _source(self) -> str:
        if self.headers is not None and self.headers.source is not None:
            return self.headers.source
        return topic_source(self.messages.topic)

    def _merge(self, events: Events, headers: EventHeaders) -> list[Reading] | None:
        """Put what the headers say in place of what the values say; return how old rows in headers are read."""
        events.op = np.where(headers.op > 0, headers.op, events.op).astype(np.uint8)
        events.lsn = np.where(headers.ours, headers.lsn, events.lsn).astype(np.uint64)
        events.order = np.where(headers.ours, headers.index, events.order)
        events.ts_us = np.where(headers.ts_us >= 0, headers.ts_us, events.ts_us)
        if headers.source is not None:
            events.source = headers.source
        if headers.unchanged is not None:
            lists = [None if cell is None else json.loads(cell) for cell in headers.unchanged]
            known = events.unchanged or [None] * len(lists)
            events.unchanged = [new or old for new, old in zip(lists, known, strict=True)]
        return None if headers.before is None else self._old_rows(events, headers.before)

    def _old_rows(self, events: Events, before: Cells) -> list[Reading] | None:
        where = np.array([i for i, cell in enumerate(before) if cell is not None], np.int64)
        if not where.size:
            return None
        first = next(cell for cell in before if cell is not None)
        readings = self._header_readings(first, events)
        types, whole, by_row = raw_types(readings)
        parts, bad = parse([cell for cell in before if cell is not None], types, whole=whole, by_row=by_row)
        self.bad += [(int(events.rows[where[i]]), f"header «__before»: {why}") for i, why in bad]
        if not parts:
            return None
        found: list[tuple[pa.RecordBatch, Ints]] = []
        for part in parts:
            columns, kept, wrong = _in_final_types(part.columns, readings, found[0][0].schema if found else None)
            self.bad += [(int(events.rows[where[part.rows[i]]]), f"header «__before»: {why}") for i, why in wrong]
            found.append((columns, where[part.rows[kept]]))
        rows = np.concatenate([at for _, at in found])
        table = pa.Table.from_batches([columns for columns, _ in found]).combine_chunks()
        n = events.rows.size
        at = np.zeros(n, np.int64)
        has = np.zeros(n, bool)
        at[rows], has[rows] = np.arange(rows.size), True
        columns = dict(zip(table.column_names, map(plain_values.whole, table.columns), strict=True))
        events.before = {name: spread(column, at, has) for name, column in columns.items()}
        events.has_before = has
        return None if readings is None else [Reading(known.field, None, lambda array: array) for known in readings]

    def _convert(
        self, events: Events, readings: Sequence[Reading] | None, old: Sequence[Reading] | None, reason: str
    ) -> None:
        """Make the final columns; events of which a value does not fit are bad."""
        n = events.rows.size
        if readings is None:
            natural = [pa.field(name, array.type) for name, array in events.columns.items()]
            records = _of_fields(natural, list(events.columns.values()), n)
            self.found.append(Rows(records, events, _natural_before(events, records)))
            return
        reasons: dict[int, str] = {}
        arrays, bad = converted(events.columns, readings, n)
        for row, why in bad:
            reasons[row] = f"{reasons[row]}; {why}" if row in reasons else why
        found = Rows(_of_fields([column.field for column in readings], arrays, n), events)
        found.before = _before(events, old or (), reasons)
        if not reasons:
            self.found.append(found)
            return
        self.bad += [(int(events.rows[row]), reason + reasons[row]) for row in sorted(reasons)]
        odd = np.array(sorted(reasons), np.int64)
        if odd.size < n:
            kept = np.setdiff1d(np.arange(n), odd)
            self.found.append(take(found, kept))

    def _header_readings(self, row: bytes, events: Events) -> list[Reading] | None:
        if self.header_readings is not None:
            return self.header_readings(row, events)
        fields = self.schema or [pa.field(name, array.type) for name, array in events.columns.items()]
        return [reading(column) for column in fields]

    # -- messages without a value --

    def add_nulls(self, rows: Ints) -> None:
        """Add the deletes (and truncations of ours) that these messages without a value are, where they are events."""
        rows = self.null_events(rows)
        for like, some in self._neighbours(rows):
            columns, kept, bad = self.keys.columns_of(some, self.schema)
            self.bad += bad
            if not kept.size:
                continue
            schema = self._schema_of_key(columns, like)
            readings = None if schema is None else [self.reading_of(column) for column in schema]
            self.add(debezium.blank(columns, kept, "d"), readings, reason="key: ")

    def delete_keyed(self, keyed: Mask) -> None:
        """Make deletes of the rows that were read from the keys of messages without a value, where they are events."""
        wanted = np.zeros(keyed.size, np.bool_)
        wanted[self.null_events(np.flatnonzero(keyed))] = True
        for group in self.found:
            group.events.op = np.where(keyed[group.events.rows], OPS["d"], group.events.op).astype(np.uint8)
        dropped = keyed & ~wanted
        if dropped.any():
            self.found = [take(group, np.flatnonzero(~dropped[group.events.rows])) for group in self.found]

    def null_events(self, rows: Ints) -> Ints:
        """Return those of these messages without a value that are events."""
        rows = np.sort(rows)
        self._empty[rows] = True
        headers = self.headers
        if headers is not None and headers.tombstone is not None:
            rows = rows[~headers.tombstone[rows]]
        if self.preceding.recorded or not rows.size:
            return rows
        silent = self._behind_deletes(rows)
        if self.preceding.enveloped:
            silent[:] = True
        elif self.first_envelope is not None:
            silent |= rows > self.first_envelope
        return rows[~silent if headers is None else ~silent | headers.ours[rows]]

    def _behind_deletes(self, rows: Ints) -> Mask:
        """Tell which messages' predecessor in their partition is a delete of the same key that has a row of its own."""
        deleted = self._deletes_with_rows()
        remembered = self.preceding.deletes
        if not deleted.any() and not remembered:
            return np.zeros(rows.size, np.bool_)
        previous = _predecessors(self.messages.partitions)[rows]
        keys, partitions, offsets = self.messages.keys, self.messages.partitions, self.messages.offsets

        def is_behind(row: int, before: int) -> bool:
            if before >= 0:
                return bool(deleted[before]) and keys[row] == keys[before]
            last = remembered.get(int(partitions[row]))
            return last is not None and offsets[row] > last[0] and keys[row] == last[1]

        pairs = zip(rows.tolist(), previous.tolist(), strict=True)
        return np.fromiter((is_behind(row, before) for row, before in pairs), np.bool_, rows.size)

    def _deletes_with_rows(self) -> Mask:
        """Tell which messages are deletes that say more than their key."""
        deleted = np.zeros(len(self.messages), np.bool_)
        for group in self.found:
            deleted[group.events.rows[group.events.op == OPS["d"]]] = True
        return deleted & ~self._empty

    def _neighbours(self, rows: Ints) -> list[tuple[Rows | None, Ints]]:
        """Return messages without a value by the group of rows before them, or else behind them."""
        groups = list(self.found)
        if not groups or self.schema is not None:
            return [(groups[0] if groups else None, rows)] if rows.size else []
        message = np.concatenate([group.events.rows for group in groups])
        number = np.repeat(np.arange(len(groups)), [group.events.rows.size for group in groups])
        order = np.argsort(message, kind="stable")
        at = np.maximum(np.searchsorted(message[order], rows) - 1, 0)
        nearest = number[order][at]
        return [(groups[int(near)], rows[nearest == near]) for near in np.unique(nearest)]

    def _schema_of_key(self, columns: Columns, like: Rows | None) -> pa.Schema | None:
        """Return the columns of a row of which there is nothing but a key; None: the key's alone."""
        if self.schema is not None:
            return self.schema
        if self.decided is not None and columns:
            return None  # keys with a schema of their own say their types
        if self.decided is not None and self.decided.names:
            return self.decided
        if like is None or not set(columns) <= set(like.records.schema.names):
            return None
        return like.records.schema

    # -- the result --

    def decoded(self) -> Decoded:
        """Return all events in the order of their messages, and what they say of the messages that follow."""
        deletes = self._last_deletes()
        for group in self.found:
            group.key = self.keys.names_of(group.events.rows, group.records.schema)
        batches_found = in_parts(self.found, self.messages.ts_ms * 1000)
        preceding = replace(
            self.preceding, enveloped=self.preceding.enveloped or self.first_envelope is not None, deletes=deletes
        )
        return Decoded(batches_found, sorted(self.bad), preceding=preceding)

    def _last_deletes(self) -> dict[int, tuple[int, bytes | None]]:
        """Return offset and key of each partition's last message, where that is a delete that has a row of its own."""
        known = dict(self.preceding.deletes)
        deleted = self._deletes_with_rows()
        if not known and not deleted.any():
            return known
        partitions = self.messages.partitions
        numbers, from_end = np.unique(partitions[::-1], return_index=True)
        for partition, last in zip(numbers.tolist(), (partitions.size - 1 - from_end).tolist(), strict=True):
            known.pop(partition, None)
            if deleted[last]:
                known[partition] = int(self.messages.offsets[last]), self.messages.key(last)
        return known


def _predecessors(partitions: Ints) -> Ints:
    """Return the index of each message's predecessor in its partition; -1 where it is the first."""
    order = np.argsort(partitions, kind="stable")
    previous = np.full(partitions.size, -1)
    same = partitions[order[1:]] == partitions[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    return previous


def in_parts(found: Sequence[Rows], ts_us: Ints) -> list[tuple[Batch, Ints]]:
    """Return batches in the order of the messages, a new one where the schema changes.

    Args:
        found: rows in any order, no message in two of them.
        ts_us: each message's own timestamp, for events that say no time.
    """
    merged = _merge([some for some in found if some.events.rows.size])
    if not merged:
        return []
    ordered = merged if len(merged) == 1 else _in_order(merged)
    _number(ordered)
    return [(_batch(group, ts_us), group.events.rows) for group in ordered]


def _merge(found: Sequence[Rows]) -> list[Rows]:
    """Join rows of equal schemas, sorted by message."""
    groups: list[list[Rows]] = []
    for group in found:
        for some in groups:
            if _go_together(some[0], group):
                some.append(group)
                break
        else:
            groups.append([group])
    return [_sorted(_concatenated(some)) for some in groups]


def _go_together(one: Rows, other: Rows) -> bool:
    same = one.records.schema.equals(other.records.schema, check_metadata=True)
    olds = one.before is None or other.before is None or one.before.type.equals(other.before.type)
    # Rows that name no source (flattened ones, tombstones) go with any.
    return same and olds and one.key == other.key and one.events.source == other.events.source


def _concatenated(groups: list[Rows]) -> Rows:
    if len(groups) == 1:
        return groups[0]
    first = groups[0]
    records = pa.Table.from_batches([item.records for item in groups]).combine_chunks()
    n = sum(group.events.rows.size for group in groups)
    joined_records = records.to_batches()
    rows = joined_records[0] if records.num_columns and joined_records else without_columns(n)
    events = [some.events for some in groups]
    facts: dict[str, Any] = {
        name: np.concatenate([getattr(event, name) for event in events]) for name in debezium.FACTS
    }
    joined = replace(
        first.events, columns={}, before=None, has_before=None, unchanged=None, enveloped=False, bad=[], **facts
    )
    if any(piece.unchanged for piece in events):
        lists = [event.unchanged or [None] * event.rows.size for event in events]
        joined.unchanged = [names for part in lists for names in part]
    old = next((some.before.type for some in groups if some.before is not None), None)
    before = None
    if old is not None:
        before = pa.concat_arrays(
            [pa.nulls(item.events.rows.size, old) if item.before is None else item.before for item in groups]
        )
    return Rows(rows, joined, before, first.key)


def _sorted(one: Rows) -> Rows:
    rows = one.events.rows
    return one if (rows[1:] > rows[:-1]).all() else take(one, np.argsort(rows, kind="stable"))


def take(one: Rows, where: Ints) -> Rows:
    """Return some of the rows."""
    one.events.columns = {}
    before = None if one.before is None else batches.take(one.before, where)
    return Rows(batches.take_records(one.records, where), one.events.take(where), before, one.key)


def _in_order(groups: list[Rows]) -> list[Rows]:
    """Cut groups where another one's messages come between theirs."""
    message = np.concatenate([some.events.rows for some in groups])
    group = np.repeat(np.arange(len(groups)), [some.events.rows.size for some in groups])
    place = np.concatenate([np.arange(item.events.rows.size) for item in groups])
    order = np.argsort(message, kind="stable")
    group, place = group[order], place[order]
    cuts = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist(), group.size]
    return [take(groups[int(group[a])], place[a:b]) for a, b in pairwise(cuts)]


def _number(ordered: list[Rows]) -> None:
    """Give every event without an index one: its place among those of its transaction in these messages."""
    order = np.concatenate([some.events.order for some in ordered])
    if (order != UNKNOWN).all():
        return
    message = np.concatenate([some.events.rows for some in ordered])
    lsn = np.concatenate([item.events.lsn for item in ordered])
    tx = np.concatenate([item.events.tx for item in ordered])
    ranks = _ranks(message, lsn, tx)
    at = 0
    for group in ordered:
        own = group.events
        own.order = np.where(own.order == UNKNOWN, ranks[at : at + own.rows.size], own.order)
        at += own.rows.size


def _ranks(message: Ints, lsn: npt.NDArray[np.uint64], tx: Ints) -> Ints:
    n = message.size
    if (lsn == lsn[0]).all() and (tx == tx[0]).all() and (message[1:] > message[:-1]).all():
        return np.arange(n)
    by = np.lexsort((message, tx, lsn))
    sorted_lsn, sorted_tx = lsn[by], tx[by]
    begins = np.ones(n, bool)
    begins[1:] = (sorted_lsn[1:] != sorted_lsn[:-1]) | (sorted_tx[1:] != sorted_tx[:-1])
    starts = np.flatnonzero(begins)
    ranks = np.empty(n, np.int64)
    ranks[by] = np.arange(n) - np.repeat(starts, np.diff([*starts.tolist(), n]))
    return ranks


def _batch(one: Rows, ts_us: Ints) -> Batch:
    events = one.events
    times = np.where(events.ts_us == UNKNOWN, ts_us[events.rows], events.ts_us)
    unchanged = None
    if events.unchanged is not None and any(events.unchanged):
        unchanged = pa.array(events.unchanged, pa.list_(pa.string()))
    return Batch.of(
        one.records,
        op=events.op,
        lsn=events.lsn,
        index=events.order,
        ts_us=times,
        key=one.key,
        source=events.source,
        before=one.before if one.before is not None and one.before.null_count < len(one.before) else None,
        unchanged=unchanged,
    )


# -- columns --


def _in_final_types(
    raw: pa.RecordBatch, readings: list[Reading] | None, schema: pa.Schema | None
) -> tuple[pa.RecordBatch, Ints, list[tuple[int, str]]]:
    """Rows in their final types, or else in those of ``schema``; which rows fit, and why the others do not."""
    if readings is None:
        readings = [reading(child) for child in (raw.schema if schema is None else schema)]
    arrays, bad = converted(dict(zip(raw.schema.names, raw.columns, strict=True)), readings, len(raw))
    reasons = dict(bad)
    kept = np.setdiff1d(np.arange(len(raw)), np.array(list(reasons), np.int64))
    records = _of_fields([column.field for column in readings], arrays, len(raw))
    return batches.take_records(records, kept) if reasons else records, kept, list(reasons.items())


def _of_fields(fields: Sequence[pa.Field], arrays: list[pa.Array], n: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)) if arrays else without_columns(n)


def _natural_before(events: Events, records: pa.RecordBatch) -> pa.StructArray | None:
    if events.before is None or events.has_before is None or not records.num_columns:
        return None
    n = events.rows.size
    children = []
    for name, array in zip(records.schema.names, records.columns, strict=True):
        old = events.before.get(name, pa.nulls(n))
        children.append(pa.nulls(n, array.type) if pa.types.is_null(old.type) else old)
    fields = [pa.field(name, child.type) for name, child in zip(records.schema.names, children, strict=True)]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(~events.has_before))


def _before(events: Events, readings: Sequence[Reading], reasons: dict[int, str]) -> pa.StructArray | None:
    """Old rows of updates in the final types; one that does not fit makes its event odd."""
    if events.before is None or events.has_before is None or not readings:
        return None
    children, bad = converted(events.before, readings, events.rows.size)
    for row, why in bad:
        if events.has_before[row]:
            reasons[row] = f"{reasons[row]}; before: {why}" if row in reasons else f"before: {why}"
    fields = [known.field for known in readings]
    return pa.StructArray.from_arrays(children, fields=fields, mask=pa.array(~events.has_before))
