"""Messages of rows: those without a value, behind a delete and for a key that changed.

Before the message of a row whose key changed goes a null for the key that it had, as Debezium sends it: compaction,
and every sink that knows a row by its message's key, would otherwise keep the row under both keys. To us that null is
no event of its own (`headers.TOMBSTONE`): the row's own message says that it was an update, and of what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints
from headrace.batch import OPS, Batch, take
from headrace.formats.headers import TOMBSTONE, event_headers
from headrace.wire import Encoded, Headers

Keys = Sequence[bytes | None]
# Makes the keys of rows of a topic, and the headers that go with each of them.
WriteKeys = Callable[[Batch], tuple[Keys, Headers]]


def row_messages(
    topic: str,
    batch: Batch,
    values: Keys,
    write: WriteKeys,
    *,
    extra: Headers = (),
    envelope: bool = False,
    tombstones: bool = True,
    whole: bool = True,
) -> Encoded:
    """Make the messages of rows from their values.

    A delete and a truncation are messages without a value; headers say which (`headers`). In an envelope a delete is
    its envelope and then a tombstone, as Debezium sends it. Either way a null for the old key goes before a row whose
    key changed.

    Args:
        values: of each row; those of deletes and truncations count in envelopes only.
        extra: headers of every message of a row, behind those of its key.
        tombstones: of envelopes; without them there is no null for an old key either.
        whole: whether the values say all of the rows; else headers have them too.
    """
    n = batch.num_rows
    deleted = batch.op == OPS["d"]
    keys, key_extra = write(batch)
    rows = np.repeat(np.arange(n), 1 + (deleted & (envelope and tombstones)))
    if envelope:
        gone = np.diff(rows, prepend=-1) == 0
        headers = event_headers(batch, topic=topic, null_values=np.zeros(n, np.bool_), before=False)
    else:
        gone = deleted | (batch.op == OPS["t"])
        headers = event_headers(batch, topic=topic, null_values=gone if whole else np.ones(n, np.bool_))
    if key_extra or extra:
        for pairs in headers:
            pairs += [*key_extra, *extra]
    encoded = Encoded(keys, values, headers, rows)
    if gone.any():
        behind: Headers = [TOMBSTONE, *key_extra]
        chosen = list(zip(rows.tolist(), gone.tolist(), strict=True))
        encoded = Encoded(
            [keys[row] for row, _ in chosen],
            [None if empty else values[row] for row, empty in chosen],
            [behind if empty and envelope else headers[row] for row, empty in chosen],
            rows,
        )
    return with_old_keys(batch, encoded, write) if tombstones else encoded


def with_old_keys(batch: Batch, encoded: Encoded, write: WriteKeys) -> Encoded:
    """Messages with a null before each row whose key is not what it was.

    Args:
        batch: the rows.
        encoded: their messages.

    >>> old = pa.array([{"id": 1}, {"id": 8}])
    >>> batch = Batch.of({"id": [1, 9]}, op="u", key=["id"], before=old)
    >>> written = Encoded([b"1", b"9"], [b"{}", b"{}"], [[], []], np.arange(2))
    >>> found = with_old_keys(batch, written, lambda rows: ([b"%d" % key for key in rows.column("id").to_pylist()], []))
    >>> found.keys, found.values, found.rows.tolist()
    ([b'1', b'8', b'9'], [b'{}', None, b'{}'], [0, 1, 1])
    """
    rows = _with_another_key(batch)
    if not rows.size:
        return encoded
    old, extra = write(_old_keys(batch, rows))
    first = np.searchsorted(encoded.rows, rows)
    changed = np.array([i for i, at in enumerate(first.tolist()) if old[i] != encoded.keys[at]], np.int64)
    if not changed.size:
        return encoded
    n = len(encoded.keys)
    order = np.insert(np.arange(n), first[changed], n + np.arange(changed.size)).tolist()
    keys = [*encoded.keys, *(old[i] for i in changed.tolist())]
    values = [*encoded.values, *[None] * changed.size]
    headers: list[Headers] = [*encoded.headers, *([TOMBSTONE, *extra] for _ in range(changed.size))]
    return Encoded(
        [keys[i] for i in order],
        [values[i] for i in order],
        [headers[i] for i in order],
        np.insert(encoded.rows, first[changed], rows[changed]),
    )


def _with_another_key(batch: Batch) -> Ints:
    """Updates whose old row has all of the key, and possibly another one."""
    before, names = batch.before, batch.key_columns
    if before is None or not names or any(before.type.get_field_index(name) < 0 for name in names):
        return np.zeros(0, np.int64)
    candidates = (batch.op == OPS["u"]) & np.asarray(before.is_valid())
    changed = np.zeros(batch.num_rows, bool)
    for name in names:
        old = before.field(name)
        candidates &= np.asarray(pc.is_valid(old))
        changed |= _differs(old, batch.column(name))
    return np.flatnonzero(candidates & changed)


def _differs(old: pa.Array, new: pa.Array) -> npt.NDArray[np.bool_]:
    """Mark values that are not the same; all of them where Arrow cannot compare the type."""
    try:
        return np.asarray(pc.fill_null(pc.not_equal(old, new), True))
    except pa.ArrowNotImplementedError:
        return np.ones(len(old), bool)


def _old_keys(batch: Batch, rows: Ints) -> Batch:
    names = batch.key_columns
    fields = [batch.schema.field(name) for name in names]
    columns = [take(batch.before.field(name), rows) for name in names]  # type: ignore[union-attr]  # rows has some
    typed = [
        column if column.type.equals(field.type) else column.cast(field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    return Batch.of(pa.RecordBatch.from_arrays(typed, schema=pa.schema(fields)), op="d", key=names, source=batch.source)
