"""Events to messages whose schemas are in a registry: what Avro and JSON Schema have in common.

Without an envelope a delete and a truncation are messages without a value; headers say which (`headers`). With one a
delete is its envelope and then a tombstone, as Debezium sends it. Either way a null for the old key goes before a row
whose key changed (`key_changes`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.batch import OPS, Batch
from headrace.formats.base import Encoded
from headrace.formats.headers import TOMBSTONE, event_headers, topic_source
from headrace.formats.json_keys import write_keys
from headrace.formats.key_changes import with_old_keys
from headrace.formats.registry_framing import Role
from headrace.wire import Headers

Record = Literal["Key", "Value", "Envelope"]
Extra = list[tuple[str, bytes]]
# Rows of one kind of record as payloads, and the headers that go with each of them.
Write = Callable[[Role, Record, pa.StructArray, Sequence[str]], tuple[list[bytes], Extra]]
# Debezium's source block, without the parts that only its connector has.
SOURCE = pa.struct(
    [
        pa.field("version", pa.string(), nullable=False),
        pa.field("connector", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("ts_ms", pa.int64(), nullable=False),
        pa.field("snapshot", pa.string()),
        pa.field("db", pa.string(), nullable=False),
        pa.field("sequence", pa.string()),
        pa.field("ts_us", pa.int64()),
        pa.field("ts_ns", pa.int64()),
        pa.field("schema", pa.string(), nullable=False),
        pa.field("table", pa.string(), nullable=False),
        pa.field("txId", pa.int64()),
        pa.field("lsn", pa.int64()),
        pa.field("xmin", pa.int64()),
    ]
)


def messages(topic: str, batch: Batch, write: Write, *, envelope: bool, key: str | None) -> Encoded:
    """The messages of a batch.

    Args:
        write: makes payloads; its last argument names the columns that are never null.
        envelope: with Debezium's envelope or the row alone.
        key: None for keys whose schema is in the registry too; else as `json_keys.write_keys` takes it.
    """
    keys, key_extra = _keys(topic, batch, write, key)
    is_delete = batch.op == OPS["d"]
    if envelope:
        payloads, extra = write("value", "Envelope", envelopes(topic, batch), ())
        nothing = np.zeros(batch.num_rows, np.bool_)
        told = event_headers(batch, topic=topic, null_values=nothing, before=False)
        rows = np.repeat(np.arange(batch.num_rows), 1 + is_delete)
        gone = np.diff(rows, prepend=-1) == 0
    else:
        gone = is_delete | (batch.op == OPS["t"])
        at = np.flatnonzero(~gone)
        written, extra = write("value", "Value", struct_of(batch.rows.take(pa.array(at))), ()) if len(at) else ([], [])
        places = np.cumsum(~gone) - 1
        payloads = [written[i] if i >= 0 else b"" for i in places.tolist()] if len(at) else [b""] * batch.num_rows
        told = event_headers(batch, topic=topic)
        rows = np.arange(batch.num_rows)
    listed, empty = rows.tolist(), gone.tolist()
    values = [None if no else payloads[i] for i, no in zip(listed, empty, strict=True)]
    if key_extra or extra:
        for one in told:
            one += [*key_extra, *extra]
    behind: Headers = [TOMBSTONE, *key_extra]
    headers: list[Headers] = [behind if envelope and no else told[i] for i, no in zip(listed, empty, strict=True)]
    encoded = Encoded([keys[i] for i in listed], values, headers, rows)
    return with_old_keys(batch, encoded, lambda old: _keys(topic, old, write, key))


def _keys(topic: str, batch: Batch, write: Write, key: str | None) -> tuple[list[bytes | None], Extra]:
    """Keys of the rows; a truncation has none."""
    if key is not None:
        plain = write_keys(topic, batch, key)
        truncated = (batch.op == OPS["t"]).tolist()
        return [None if gone else one for one, gone in zip(plain, truncated, strict=True)], []
    names = [name for name in batch.key_columns if name in batch.column_names]
    at = np.flatnonzero(batch.op != OPS["t"])
    if not names or not len(at):
        return [None] * batch.num_rows, []
    columns = batch.rows.select(names)
    columns = columns if len(at) == batch.num_rows else columns.take(pa.array(at))
    # A primary key has no nulls; the unique index that stands in for one may.
    required = [name for name in names if not columns.column(name).null_count]
    payloads, extra = write("key", "Key", struct_of(columns), required)
    keys: list[bytes | None] = [None] * batch.num_rows
    for i, payload in zip(at.tolist(), payloads, strict=True):
        keys[i] = payload
    return keys, extra


def struct_of(rows: pa.RecordBatch) -> pa.StructArray:
    """Columns as one column of structs."""
    if not rows.num_columns:
        return pa.array([{}] * rows.num_rows, pa.struct([]))
    return pa.StructArray.from_arrays(rows.columns, fields=list(rows.schema))


def envelopes(topic: str, batch: Batch) -> pa.StructArray:
    """Debezium's envelopes of the events.

    >>> envelopes("s.public.t", Batch.of({"id": [7]}, op="d")).field("before").to_pylist()
    [{'id': 7}]
    """
    rows, n = struct_of(batch.rows), batch.num_rows
    is_delete, is_truncate = (pa.array(batch.op == OPS[name]) for name in "dt")
    absent = pa.nulls(n, rows.type)
    before = absent if batch.before is None else batch.before.cast(rows.type)
    ops = pa.array([chr(code) for code in range(128)]).take(pa.array(batch.op))
    times = _times(batch)
    columns = {
        "before": pc.if_else(is_delete, rows, before),
        "after": pc.if_else(pc.or_(is_delete, is_truncate), absent, rows),
        "source": _source(topic, batch, times),
        "op": ops,
        **times,
    }
    required = {"source", "op"}
    fields = [pa.field(name, column.type, nullable=name not in required) for name, column in columns.items()]
    return pa.StructArray.from_arrays(list(columns.values()), fields=fields)


def _times(batch: Batch) -> dict[str, pa.Array]:
    micros = batch.ts_us
    return {"ts_ms": pa.array(micros // 1000), "ts_us": pa.array(micros), "ts_ns": pa.array(micros * 1000)}


def _source(topic: str, batch: Batch, times: dict[str, pa.Array]) -> pa.StructArray:
    n = batch.num_rows
    *_, schema, table = ("", *topic.split("."))
    constant = {
        "version": "headrace",
        "connector": "postgresql",
        "name": batch.source or topic_source(topic),
        "db": "",
        "schema": schema,
        "table": table,
    }
    columns = {
        **{name: pa.repeat(pa.scalar(value), n) for name, value in constant.items()},
        **times,
        "lsn": pa.array(batch.lsn.astype(np.int64)),
        "snapshot": pc.if_else(pa.array(batch.op == OPS["r"]), "true", "false"),
    }
    arrays = [columns.get(field.name, pa.nulls(n, field.type)) for field in SOURCE]
    return pa.StructArray.from_arrays(arrays, fields=list(SOURCE))
