"""Rows whose label comes later: learned once, by the first update that fills it.

Where updates carry the old row (REPLICA IDENTITY FULL), that shows whether the label was missing. Elsewhere the keys of
rows without a label show it, which are remembered: 64 bits of a hash of each, so that of a million such rows two share
one with a probability of 3 in 10^8.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.batch import OPS, Batch, inserted
from headrace.plain_values import values

Mask = npt.NDArray[np.bool_]


def new_examples(batch: Batch, target: str | None, waiting: set[int]) -> Mask:
    """Which events bring a row to be learned: inserts, rows of a snapshot, updates that give a row its label.

    Args:
        target: the label's column, where one is wanted.
        waiting: as for `filled_in`.
    """
    if target is None or target not in batch.schema.names or not batch.num_rows:
        return inserted(batch)
    return inserted(batch) | filled_in(batch, target, waiting)


def filled_in(batch: Batch, target: str, waiting: set[int]) -> Mask:
    """Which rows are updates that give a row its label for the first time.

    Args:
        batch: changes of one table, in order.
        target: the label's column.
        waiting: hashes of the keys of rows without a label; changed in place.

    >>> key = {"key": ["id"]}
    >>> waiting: set[int] = set()
    >>> filled_in(Batch.of({"id": [1, 2], "y": [None, 5]}, **key), "y", waiting).tolist(), len(waiting)
    ([False, False], 1)
    >>> filled_in(Batch.of({"id": [1, 2], "y": [7, 8]}, op="u", **key), "y", waiting).tolist(), len(waiting)
    ([True, False], 0)
    """
    none = np.zeros(batch.num_rows, bool)
    op, fresh = batch.op, inserted(batch)
    labelled = np.asarray(batch.column(target).is_valid())
    if (fresh & labelled).all():
        return none
    told, missing = _old_labels(batch, target)
    found: Mask = (op == OPS["u"]) & labelled & told & missing
    if not batch.key_columns or any(name not in batch.schema.names for name in batch.key_columns):
        return found
    rows = np.flatnonzero(~(fresh & labelled))
    for row, key in zip(rows.tolist(), _hashes(batch, rows), strict=True):
        if op[row] == OPS["t"]:
            waiting.clear()
        elif fresh[row]:
            waiting.add(key)
        elif op[row] == OPS["d"]:
            waiting.discard(key)
        elif labelled[row] and key in waiting:
            waiting.remove(key)
            found[row] |= not told[row]
    return found


def _old_labels(batch: Batch, target: str) -> tuple[Mask, Mask]:
    """Which rows' old label is known, and which of those had none."""
    none = np.zeros(batch.num_rows, bool)
    before = batch.before
    if before is None or before.type.get_field_index(target) < 0 or before.type.num_fields < len(batch.column_names):
        return none, none
    told = np.asarray(before.is_valid())
    return told, told & np.asarray(before.field(target).is_null())


def _hashes(batch: Batch, rows: npt.NDArray[np.int64]) -> list[int]:
    if not len(rows):
        return []
    columns = [values(batch.column(name).take(pa.array(rows))) for name in batch.key_columns]
    return [_hash(key) for key in zip(*columns, strict=True)]


def _hash(key: tuple[object, ...]) -> int:
    text = json.dumps(key, default=str, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big", signed=True)
