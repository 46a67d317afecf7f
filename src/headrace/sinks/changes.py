"""Events of a batch, folded to what is to be done for each key: the last event of a key wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal  # noqa: F401  # in an example
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import NAN, OPS, Batch, not_numbers


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to insert or to update by key, which all set the same columns.

    Attributes:
        records: the columns that they set.
        kept: columns that stay as they are, because the source did not send them (``__unchanged``).
        was: where there are such columns, the keys under which the destination has them until now: an update may have
            moved a row. Empty otherwise.
    """

    records: pa.RecordBatch
    kept: tuple[str, ...] = ()
    was: pa.RecordBatch | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Operations to perform, in this order; each key is in one of them only.

    Attributes:
        clear: everything goes first, since the source's table was truncated.
        rows: rows to insert or to update by key. Values that stay are taken from where they are before anything else
            is written.
        gone: keys to delete; only the key's columns.
    """

    clear: bool
    gone: pa.RecordBatch
    rows: tuple[Rows, ...]


def fold(batch: Batch, key: Sequence[str]) -> Iterator[Change]:
    """The changes that a batch amounts to. Usually one; more where a row says of a value only that it stays.

    Args:
        batch: its key columns are there and hold no null, but for truncates (`without_key`).

    >>> ops = np.array([OPS[letter] for letter in "ccud"], np.uint8)
    >>> (change,) = fold(Batch.of({"id": [1, 2, 1, 2], "x": [5, 6, 7, None]}, op=ops), ["id"])
    >>> change.rows[0].records.to_pylist(), change.gone.to_pylist()
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
        yield Change(clear, gone, tuple(_groups(batch, rows[last[~deleted]], keys, orders)))
        clear = False


def spans(batch: Batch, key: Sequence[str]) -> list[tuple[int, int]]:
    """Ranges of rows that become one `Change` each, where a destination cannot hold several in one transaction.

    Rows that move and keep a value stand alone: what they keep is read from the destination, and must still be there
    when the range is written once more.

    >>> whole = Batch.of({"id": [1, 2, 3]})
    >>> spans(whole, ["id"])
    [(0, 3)]
    """
    if batch.unchanged is None or not batch.num_rows:
        return [(0, batch.num_rows)]
    last = int(np.flatnonzero(batch.op == OPS["t"]).max(initial=-1)) + 1
    rest = batch.slice(last)
    if not rest.num_rows:
        return [(0, batch.num_rows)]
    _, keys, orders = _events(rest, key)
    found = set()
    for start, stop in _runs(rest, _codes(keys), orders):
        found |= {start, stop}
    for order in orders[orders % 2 == 0].tolist():
        row = order // 2
        if _keeps(rest)[row]:
            found |= {row, row + 1}
    return list(pairwise([0, *sorted(last + edge for edge in found if last + edge > 0)]))


def without_key(batch: Batch, key: Sequence[str]) -> list[tuple[int, str]]:
    """Rows that no key identifies: its column is missing, null, or of a type that is no key. With the reasons."""
    for name in key:
        if name not in batch.column_names:
            return [(i, f"there is no key column «{name}»") for i in np.flatnonzero(batch.op != OPS["t"]).tolist()]
        kind = batch.schema.field(name).type
        if not _comparable(kind):
            reason = f"the key column «{name}» is of the type {kind}, which is no key"
            return [(i, reason) for i in np.flatnonzero(batch.op != OPS["t"]).tolist()]
    found: dict[int, str] = {}
    for name in key:
        nulls = np.asarray(pc.is_null(batch.column(name))) & (batch.op != OPS["t"])
        found |= dict.fromkeys(np.flatnonzero(nulls).tolist(), f"the key column «{name}» is null")
    return sorted(found.items())


def nan_as_text(batch: Batch) -> Batch:
    """Return the batch with texts for decimals in the columns of which some are NaN, of rows and of old rows.

    >>> batch = Batch.of(pa.record_batch({"n": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2))}))
    >>> about = pa.array([[], [{"column": "n", "before": False}]], NAN.type)
    >>> nan_as_text(Batch(batch.records.append_column(NAN, about))).rows.to_pydict()
    {'n': ['1.50', 'NaN']}
    """
    if NAN.name not in batch.schema.names:
        return batch
    records = batch.records
    named = {name for row in not_numbers(records) for name, _ in row}
    for place, name in enumerate(records.schema.names):
        if name in named and name in batch.column_names:
            texts = _with_nan(records.column(place), batch.nan(name))
            records = records.set_column(place, name, texts)
    if batch.before is not None:
        old = batch.before
        names = [child.name for child in old.type]
        children = [
            _with_nan(child, batch.nan(name, before=True)) if name in named else child
            for name, child in zip(names, old.flatten(), strict=True)
        ]
        place = records.schema.get_field_index("__before")
        made = pa.StructArray.from_arrays(children, names=names, mask=old.is_null())
        records = records.set_column(place, "__before", made)
    return Batch(records)


def _with_nan(array: pa.Array, nan: npt.NDArray[np.bool_] | None) -> pa.Array:
    texts = array.cast(pa.string())
    return texts if nan is None else pc.if_else(pa.array(nan), pa.scalar("NaN"), texts)


def unsent(batch: Batch, rows: Ints) -> list[tuple[str, ...]]:
    """Of some rows, the columns whose values the source did not send, because they stay as they were."""
    if batch.unchanged is None:
        return [()] * rows.size
    return [tuple(sorted(names or ())) for names in batch.unchanged.take(pa.array(rows)).to_pylist()]


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
    known = np.logical_and.reduce([np.asarray(column.is_valid()) for column in old])
    differs = [
        np.asarray(pc.fill_null(pc.not_equal(column, keys.column(name)), False))
        for column, name in zip(old, key, strict=True)
    ]
    moved = np.flatnonzero(known & np.logical_or.reduce(differs) & (batch.op == OPS["u"]))
    if not moved.size:
        return rows, keys, 2 * rows + 1
    ends = pa.RecordBatch.from_arrays([column.take(pa.array(moved)) for column in old], names=list(key))
    order = np.concatenate([2 * rows + 1, 2 * moved])
    by = np.argsort(order, kind="stable")
    both = pa.Table.from_batches([keys, ends]).combine_chunks().to_batches()[0]
    return np.concatenate([rows, np.full(moved.size, -1)])[by], both.take(pa.array(by)), order[by]


def _codes(keys: pa.RecordBatch) -> Ints:
    """A number for each key: equal keys, equal numbers."""
    codes = np.zeros(keys.num_rows, np.int64)
    for column in keys.columns:
        values = column if pa.types.is_dictionary(column.type) else column.dictionary_encode("encode")
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
    """Ranges of rows that can be folded.

    A row that keeps a value is not in one with an earlier event of its key, or of the key that it had.
    """
    start = 0
    if batch.unchanged is not None:
        keeps = _keeps(batch)
        seen = np.full(int(codes.max(initial=-1)) + 1, -1, np.int64)
        edges = np.searchsorted(orders, 2 * np.arange(batch.num_rows + 1))
        for row, (first, last) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            mine = codes[first:last]
            if row > start and keeps[row] and bool((seen[mine] >= start).any()):
                yield start, row
                start = row
            seen[mine] = row
    if start < batch.num_rows:
        yield start, batch.num_rows


def _keeps(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return the rows that say of a value only that it stays as it was."""
    return np.asarray(pc.fill_null(pc.list_value_length(batch.unchanged), 0)) > 0


def _groups(batch: Batch, rows: Ints, keys: pa.RecordBatch, orders: Ints) -> Iterator[Rows]:
    """Rows by the columns that they set."""
    own = batch.rows
    if batch.unchanged is None or not _keeps(batch)[rows].any():
        if rows.size:
            yield Rows(own if rows.size == own.num_rows else own.take(pa.array(rows)))
        return
    stays = unsent(batch, rows)
    for some in dict.fromkeys(stays):
        mine = rows[np.array([stay == some for stay in stays])]
        kept = tuple(name for name in some if name in own.schema.names)
        records = own.select([name for name in own.schema.names if name not in some]).take(pa.array(mine))
        # The first event of a row is the end of its old key, where it has moved.
        was = keys.take(pa.array(np.searchsorted(orders, 2 * mine))) if kept else None
        yield Rows(records, kept, was)


def _comparable(kind: pa.DataType) -> bool:
    try:
        return bool(pa.types.is_dictionary(kind) or pa.array([], kind).dictionary_encode("encode") is not None)
    except pa.ArrowNotImplementedError:
        return False
