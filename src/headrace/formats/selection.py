"""Rows of columns by their indexes, whatever the type: Arrow's own `take` knows no views."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]


def take(array: pa.Array, rows: Ints) -> pa.Array:
    """Some of the values, in the given order.

    >>> take(pa.array(["a", "b", "c"], pa.string_view()), np.array([2, 0])).to_pylist()
    ['c', 'a']
    """
    try:
        return array.take(pa.array(rows, pa.int64()))
    except pa.ArrowNotImplementedError:
        if not rows.size:
            return array.slice(0, 0)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), rows.size]
        spans = pairwise(cuts)  # neighbours are taken together
        return pa.concat_arrays([array.slice(int(rows[a]), b - a) for a, b in spans])


def take_records(records: pa.RecordBatch, rows: Ints) -> pa.RecordBatch:
    """Some of the rows of a record batch.

    >>> take_records(pa.record_batch({"a": [1, 2]}), np.array([1])).to_pydict()
    {'a': [2]}
    """
    if not records.num_columns:
        return records.take(pa.array(rows, pa.int64()))
    return pa.RecordBatch.from_arrays([take(one, rows) for one in records.columns], schema=records.schema)
