"""Events of a batch, folded to what is to be done for each key: the last event of a key wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import OPS, Batch
from headrace.errors import SinkError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done, in this order; each key is in one place only.

    Attributes:
        clear: everything goes first, since the source's table was truncated.
        gone: keys to delete; only the key's columns.
        rows: rows to insert or to update by key. Each batch sets its own columns: what a source did not send
            (``__unchanged``) is not among them.
    """

    clear: bool
    gone: pa.RecordBatch
    rows: tuple[pa.RecordBatch, ...]


def fold(batch: Batch, key: Sequence[str]) -> Iterator[Change]:
    """The changes that a batch amounts to. Usually one; more where a row says of a value only that it stays.

    Args:
        batch: its key columns are there and hold no null, but for truncates.

    Raises:
        SinkError: a key column's type cannot be compared.

    >>> ops = np.array([OPS[one] for one in "ccud"], np.uint8)
    >>> (change,) = fold(Batch.of({"id": [1, 2, 1, 2], "x": [5, 6, 7, None]}, op=ops), ["id"])
    >>> change.rows[0].to_pylist(), change.gone.to_pylist()
    ([{'id': 1, 'x': 7}], [{'id': 2}])
    """
    truncates = np.flatnonzero(batch.op == OPS["t"])
    clear = truncates.size > 0
    if clear:
        batch = batch.slice(int(truncates[-1]) + 1)
    if not batch.num_rows:
        yield Change(clear, pa.RecordBatch.from_pydict({}), ())
        return
    rows, keys, orders = _events(batch, key)
    codes = _codes(keys)
    for start, stop in _runs(batch, codes, orders):
        chosen = (orders >= 2 * start) & (orders < 2 * stop)
        last = _last(codes, np.flatnonzero(chosen))
        deleted = (rows[last] < 0) | (batch.op[np.maximum(rows[last], 0)] == OPS["d"])
        gone = keys.take(pa.array(last[deleted]))
        yield Change(clear, gone, tuple(_groups(batch, rows[last[~deleted]])))
        clear = False


def without_key(batch: Batch, key: Sequence[str]) -> list[tuple[int, str]]:
    """Rows that no key identifies: its column is missing, or null. With the reasons."""
    for name in key:
        if name not in batch.column_names:
            return [(i, f"there is no key column «{name}»") for i in np.flatnonzero(batch.op != OPS["t"]).tolist()]
    found: dict[int, str] = {}
    for name in key:
        nulls = np.asarray(pc.is_null(batch.column(name))) & (batch.op != OPS["t"])
        found |= dict.fromkeys(np.flatnonzero(nulls).tolist(), f"the key column «{name}» is null")
    return sorted(found.items())


def _events(batch: Batch, key: Sequence[str]) -> tuple[Ints, pa.RecordBatch, Ints]:
    """One event a row, and before it the end of the old key where an update changed it.

    Returns:
        Each event's row (-1: an old key), its key, and its order: 2·row + 1, an old key's 2·row.
    """
    rows = np.arange(batch.num_rows, dtype=np.int64)
    keys = batch.records.select(list(key))
    keys = pa.RecordBatch.from_arrays(keys.columns, names=list(key))
    before = batch.before
    if before is None or any(before.type.get_field_index(name) < 0 for name in key):
        return rows, keys, 2 * rows + 1
    old = [pc.struct_field(before, name).cast(keys.column(name).type) for name in key]
    known = np.logical_and.reduce([np.asarray(one.is_valid()) for one in old])
    differs = [
        np.asarray(pc.fill_null(pc.not_equal(one, keys.column(name)), False))
        for one, name in zip(old, key, strict=True)
    ]
    moved = np.flatnonzero(known & np.logical_or.reduce(differs) & (batch.op == OPS["u"]))
    if not moved.size:
        return rows, keys, 2 * rows + 1
    ends = pa.RecordBatch.from_arrays([one.take(pa.array(moved)) for one in old], names=list(key))
    order = np.concatenate([2 * rows + 1, 2 * moved])
    by = np.argsort(order, kind="stable")
    both = pa.Table.from_batches([keys, ends]).combine_chunks().to_batches()[0]
    return np.concatenate([rows, np.full(moved.size, -1)])[by], both.take(pa.array(by)), order[by]


def _codes(keys: pa.RecordBatch) -> Ints:
    """A number for each key: equal keys, equal numbers."""
    codes = np.zeros(keys.num_rows, np.int64)
    for field, column in zip(keys.schema, keys.columns, strict=True):
        try:
            values = column if pa.types.is_dictionary(column.type) else column.dictionary_encode("encode")
        except pa.ArrowNotImplementedError:
            raise SinkError(f"the key column «{field.name}» is of the type {field.type}, which is no key") from None
        # Made dense after each column: the product of two numbers of rows fits.
        codes = codes * (len(values.dictionary) + 1) + np.asarray(values.indices).astype(np.int64)
        codes = np.unique(codes, return_inverse=True)[1].astype(np.int64)
    return codes


def _last(codes: Ints, events: Ints) -> Ints:
    """The last event of each key, in order."""
    last = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
    # Where an index comes several times, the last assignment stays.
    last[codes[events]] = events
    return np.sort(last[last >= 0])


def _runs(batch: Batch, codes: Ints, orders: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of rows that can be folded: a row that keeps a value is not in one with an earlier event of its key."""
    start = 0
    if batch.unchanged is not None:
        events = np.full(batch.num_rows, -1, np.int64)
        events[orders[orders % 2 == 1] // 2] = np.flatnonzero(orders % 2 == 1)
        for row in np.flatnonzero(_keeps(batch)).tolist():
            earlier = (orders >= 2 * start) & (orders < 2 * row)
            if row > start and bool((codes[earlier] == codes[events[row]]).any()):
                yield start, row
                start = row
    if start < batch.num_rows:
        yield start, batch.num_rows


def _keeps(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which rows say of a value only that it stays as it was."""
    return np.asarray(pc.fill_null(pc.list_value_length(batch.unchanged), 0)) > 0


def _groups(batch: Batch, rows: Ints) -> Iterator[pa.RecordBatch]:
    """Rows by the columns that they set."""
    own = batch.rows
    if batch.unchanged is None or not _keeps(batch)[rows].any():
        if rows.size:
            yield own if rows.size == own.num_rows else own.take(pa.array(rows))
        return
    stays = [tuple(sorted(one or ())) for one in batch.unchanged.take(pa.array(rows)).to_pylist()]
    for some in dict.fromkeys(stays):
        mine = np.array([one == some for one in stays])
        yield own.select([name for name in own.schema.names if name not in some]).take(pa.array(rows[mine]))
