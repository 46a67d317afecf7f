"""Decoded rows of several shapes put together again, in the order of their messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace import batch as batches
from headrace.arrays import Ints
from headrace.batch import Batch
from headrace.formats.debezium import UNKNOWN, Events


@dataclass(slots=True)
class Rows:
    """Some events in their final columns; ``events`` says what they are, its raw columns are done with."""

    records: pa.RecordBatch
    events: Events
    before: pa.StructArray | None = None
    key: tuple[str, ...] = ()


def parts(found: Sequence[Rows], ts_us: Ints) -> list[tuple[Batch, Ints]]:
    """Batches in the order of the messages, a new one where the schema changes.

    Args:
        found: rows in any order, no message in two of them.
        ts_us: each message's own timestamp, for events that say no time.
    """
    merged = _merge([one for one in found if one.events.rows.size])
    if not merged:
        return []
    ordered = merged if len(merged) == 1 else _in_order(merged)
    _number(ordered)
    return [(_batch(one, ts_us), one.events.rows) for one in ordered]


def _merge(found: Sequence[Rows]) -> list[Rows]:
    """Rows of equal schemas in one, sorted by message."""
    groups: list[list[Rows]] = []
    for one in found:
        for group in groups:
            if _go_together(group[0], one):
                group.append(one)
                break
        else:
            groups.append([one])
    return [_sorted(_concatenated(group)) for group in groups]


def _go_together(one: Rows, other: Rows) -> bool:
    same = one.records.schema.equals(other.records.schema, check_metadata=True)
    olds = one.before is None or other.before is None or one.before.type.equals(other.before.type)
    # Rows that name no source (flattened ones, tombstones) go with any.
    return same and olds and one.key == other.key and one.events.source == other.events.source


def _concatenated(group: list[Rows]) -> Rows:
    if len(group) == 1:
        return group[0]
    first = group[0]
    records = pa.Table.from_batches([one.records for one in group]).combine_chunks()
    n = sum(one.events.rows.size for one in group)
    batches = records.to_batches()
    whole = (
        batches[0]
        if records.num_columns and batches
        else pa.RecordBatch.from_struct_array(pa.array([{}] * n, pa.struct([])))
    )
    events = [one.events for one in group]
    joined = Events(
        {},
        np.concatenate([one.rows for one in events]),
        np.concatenate([one.op for one in events]),
        np.concatenate([one.lsn for one in events]),
        np.concatenate([one.tx for one in events]),
        np.concatenate([one.order for one in events]),
        np.concatenate([one.ts_us for one in events]),
        source=first.events.source,
    )
    if any(one.unchanged for one in events):
        lists = [one.unchanged or [None] * one.rows.size for one in events]
        joined.unchanged = [names for part in lists for names in part]
    old = next((one.before.type for one in group if one.before is not None), None)
    before = None
    if old is not None:
        before = pa.concat_arrays(
            [pa.nulls(one.events.rows.size, old) if one.before is None else one.before for one in group]
        )
    return Rows(whole, joined, before, first.key)


def _sorted(one: Rows) -> Rows:
    rows = one.events.rows
    return one if (rows[1:] > rows[:-1]).all() else take(one, np.argsort(rows, kind="stable"))


def take(one: Rows, where: Ints) -> Rows:
    """Some of the rows."""
    one.events.columns = {}
    before = None if one.before is None else batches.take(one.before, where)
    return Rows(batches.take_records(one.records, where), one.events.take(where), before, one.key)


def _in_order(groups: list[Rows]) -> list[Rows]:
    """Groups cut where another one's messages come between theirs."""
    message = np.concatenate([one.events.rows for one in groups])
    group = np.repeat(np.arange(len(groups)), [one.events.rows.size for one in groups])
    place = np.concatenate([np.arange(one.events.rows.size) for one in groups])
    order = np.argsort(message, kind="stable")
    group, place = group[order], place[order]
    cuts = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1).tolist(), group.size]
    return [take(groups[int(group[a])], place[a:b]) for a, b in pairwise(cuts)]


def _number(ordered: list[Rows]) -> None:
    """An index for every event that has none: its place among those of its transaction in these messages."""
    order = np.concatenate([one.events.order for one in ordered])
    if (order != UNKNOWN).all():
        return
    message = np.concatenate([one.events.rows for one in ordered])
    lsn = np.concatenate([one.events.lsn for one in ordered])
    tx = np.concatenate([one.events.tx for one in ordered])
    ranks = _ranks(message, lsn, tx)
    at = 0
    for one in ordered:
        own = one.events
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
