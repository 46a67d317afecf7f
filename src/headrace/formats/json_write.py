"""Rows to JSON messages: flattened or in Debezium's envelope, with or without Kafka Connect's schema."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.arrays import Ints, Mask
from headrace.batch import OPS, Batch
from headrace.formats import connect
from headrace.formats.base import Encoded
from headrace.formats.headers import TOMBSTONE, Header, event_headers
from headrace.formats.json_keys import write_keys
from headrace.formats.json_text import TEXT, Known, as_bytes, joined, objects, quoted
from headrace.formats.key_changes import with_old_keys


def flattened(topic: str, batch: Batch, *, schemas: bool, key: str) -> Encoded:
    """One message for each row: the columns as an object; deletes and truncates have no value.

    Before a row whose key changed goes a null for the old one (`key_changes`).
    """
    rows = batch.rows
    columns = list(zip(rows.schema.names, rows.columns, strict=True))
    known: Known | None = {} if schemas == (key == "json+schema") else None
    texts = objects(columns, batch.num_rows, binary_decimals=schemas, known=known)
    if schemas:
        texts = joined([f'{{"schema":{row_schema(topic, rows.schema)},"payload":', texts, "}"], batch.num_rows)
    op = batch.op
    nulls = (op == OPS["d"]) | (op == OPS["t"])
    if nulls.any():
        texts = pc.if_else(pa.array(nulls), pa.scalar(None, TEXT), texts)
    keys = _without(write_keys(topic, batch, key, known=known), op == OPS["t"])
    headers = event_headers(batch, topic=topic, null_values=nulls)
    encoded = Encoded(keys, _cells(texts), headers, np.arange(batch.num_rows))
    return with_old_keys(batch, encoded, lambda old: (write_keys(topic, old, key), ()))


def enveloped(topic: str, batch: Batch, *, schemas: bool, key: str, tombstones: bool) -> Encoded:
    """One change event for each row; where tombstones are wanted, one behind each delete, one for each changed key."""
    rows, n, op = batch.rows, batch.num_rows, batch.op
    columns = list(zip(rows.schema.names, rows.columns, strict=True))
    row = objects(columns, n, binary_decimals=schemas)
    none = pa.scalar(None, TEXT)
    deleted, truncated = op == OPS["d"], op == OPS["t"]
    after = pc.if_else(pa.array(deleted | truncated), none, row) if (deleted | truncated).any() else row
    before: pa.Array | str = pc.if_else(pa.array(deleted), row, none) if deleted.any() else "null"
    if batch.before is not None and batch.before.null_count < n:
        old = _old_rows(batch.before, schemas)
        before = pc.if_else(pa.array(deleted), row, old)
    letters = _LETTERS.take(pa.array(op))
    parts = ['{"before":', before, ',"after":', after, *_source(topic, batch)]
    texts = joined([*parts, ',"transaction":null,"op":"', letters, '"', *_times(batch.ts_us), "}"], n)
    if schemas:
        texts = joined([f'{{"schema":{envelope_schema(topic, rows.schema)},"payload":', texts, "}"], n)
    keys = _without(write_keys(topic, batch, key), truncated)
    headers = event_headers(batch, topic=topic, null_values=np.zeros(n, bool), before=False)
    values = _cells(texts)
    if not tombstones:
        return Encoded(keys, values, headers, np.arange(n))
    encoded = _with_tombstones(keys, values, headers, deleted)
    return with_old_keys(batch, encoded, lambda old: (write_keys(topic, old, key), ()))


def _old_rows(before: pa.StructArray, schemas: bool) -> pa.Array:
    children = [(one.name, child) for one, child in zip(before.type, before.flatten(), strict=True)]
    texts = objects(children, len(before), binary_decimals=schemas)
    return pc.if_else(before.is_valid(), texts, pa.scalar(None, TEXT))


def _with_tombstones(
    keys: list[bytes | None], values: list[bytes | None], headers: list[list[Header]], deleted: Mask
) -> Encoded:
    rows: Ints = np.repeat(np.arange(deleted.size), 1 + deleted)
    second = np.zeros(rows.size, bool)
    second[1:] = rows[1:] == rows[:-1]
    chosen = list(zip(rows.tolist(), second.tolist(), strict=True))
    return Encoded(
        [keys[row] for row, _ in chosen],
        [None if again else values[row] for row, again in chosen],
        [[TOMBSTONE] if again else headers[row] for row, again in chosen],
        rows,
    )


_LETTERS = pa.array([chr(code) for code in range(128)], TEXT)


def _source(topic: str, batch: Batch) -> list[str | pa.Array]:
    """Debezium's source block, as far as a batch knows it."""
    ts = batch.ts_us
    lsn = pa.array(batch.lsn.view(np.int64)).cast(TEXT)  # signed, as Java's
    snapshot = batch.op == OPS["r"]
    parts = topic.split(".")
    schema, table = (parts[-2], parts[-1]) if len(parts) > 1 else ("", parts[-1])
    head = f',"source":{{"version":{quoted(_version())},"connector":"postgresql","name":{quoted(batch.source)},"ts_ms":'
    marks = pc.if_else(pa.array(snapshot), "true", "false").cast(TEXT)
    quote = '\\"'
    own = joined(['"[', quote, lsn, f"{quote},{quote}", lsn, quote, ']"'], batch.num_rows)
    snapshot_own = joined([f'"[null,{quote}', lsn, f'{quote}]"'], batch.num_rows)
    sequence = pc.if_else(pa.array(snapshot), snapshot_own, own) if snapshot.any() else own
    return [
        head,
        _millis(ts),
        ',"snapshot":"',
        marks,
        '","db":"","sequence":',
        sequence,
        *_times(ts)[2:],
        f',"schema":{quoted(schema)},"table":{quoted(table)},"txId":null,"lsn":',
        lsn,
        ',"xmin":null,"origin":null,"origin_lsn":null}',
    ]


@lru_cache(maxsize=1)
def _version() -> str:
    return f"headrace {version('headrace')}"


def _times(ts_us: Ints) -> list[str | pa.Array]:
    nanos = ts_us.astype(object) * 1000 if np.abs(ts_us).max(initial=0) > np.iinfo(np.int64).max // 1000 else None
    texts = pa.array(ts_us * 1000 if nanos is None else [str(one) for one in nanos]).cast(TEXT)
    return [',"ts_ms":', _millis(ts_us), ',"ts_us":', pa.array(ts_us).cast(TEXT), ',"ts_ns":', texts]


def _millis(ts_us: Ints) -> pa.Array:
    return pa.array(ts_us // 1000).cast(TEXT)


def _without(keys: list[bytes | None], nulls: Mask) -> list[bytes | None]:
    if nulls.any():
        for row in np.flatnonzero(nulls).tolist():
            keys[row] = None
    return keys


def _cells(array: pa.Array) -> list[bytes | None]:
    found: list[bytes | None] = as_bytes(array).to_pylist()
    return found


def row_schema(topic: str, schema: pa.Schema) -> str:
    """Text of the Connect schema of a topic's rows; made once for each Arrow schema."""
    return _schema_text(topic, schema.serialize().to_pybytes(), False)


def envelope_schema(topic: str, schema: pa.Schema) -> str:
    """Text of the Connect schema of a topic's change events."""
    return _schema_text(topic, schema.serialize().to_pybytes(), True)


@lru_cache(maxsize=256)
def _schema_text(topic: str, serialized: bytes, envelope: bool) -> str:
    fields = list(pa.ipc.read_schema(pa.py_buffer(serialized)))
    found = connect.envelope_schema(fields, topic) if envelope else connect.struct_schema(fields, f"{topic}.Value")
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))
