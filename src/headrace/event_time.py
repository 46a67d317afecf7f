"""When something happened, by a column of the row or by the commit that brought it."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace import plain_values
from headrace.batch import Batch

Times = tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], dict[int, str]]
_UTC = pa.timestamp("us", tz="UTC")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def event_times(batch: Batch, column: str | None) -> Times:
    """Microseconds since 1970-01-01 UTC, which rows have a time, and why the others do not.

    Args:
        column: a timestamp or date, ISO 8601 text (without a zone it is UTC), or whole milliseconds since 1970;
            None: the time of the commit.

    >>> rows = Batch.of({"at": ["1970-01-01T00:00:01Z", "1970-01-01 02:00:00+02:00", "soon"]})
    >>> times, valid, reasons = event_times(rows, "at")
    >>> times[valid].tolist(), reasons
    ([1000000, 0], {2: "the time «at» is 'soon'"})
    """
    n = batch.num_rows
    if column is None:
        return batch.ts_us, np.ones(n, np.bool_), {}
    if column not in batch.schema.names:
        reasons = dict.fromkeys(range(n), f"there is no column «{column}» for the time")
        return np.zeros(n, np.int64), np.zeros(n, np.bool_), reasons
    array = batch.column(column)
    times = _as_timestamps(array)
    valid = np.asarray(times.is_valid())
    found = np.asarray(pc.fill_null(times.view(pa.int64()), 0).to_numpy(zero_copy_only=False), np.int64)
    bad = np.flatnonzero(~valid).tolist()
    return found, valid, {row: f"the time «{column}» is {_shown(array[row])}" for row in bad}


def _as_timestamps(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return array.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).view(_UTC)
    if pa.types.is_integer(kind):
        return pc.multiply(array.cast(pa.int64()), 1000).view(_UTC)
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        return pa.nulls(len(array), _UTC)
    try:
        return array.cast(_UTC)
    except pa.ArrowInvalid:
        # Some other ISO 8601 than Arrow's, or no time at all: value by value.
        return pa.array([_parsed(one) for one in plain_values.values(array)], _UTC)


def _parsed(text: str | None) -> int | None:
    try:
        when = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    if when is None:
        return None
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _shown(value: pa.Scalar) -> str:
    return repr(plain_values.value(value)) if value.is_valid else "NULL"
