"""Events written as a grid, put into a log, and delivered from there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import headrace as hr
from headrace.batch import OPS
from headrace.log import open_log


def events(text: str, *, key: Sequence[str] = ("id",), **types: pa.DataType) -> hr.Batch:
    """A batch from a grid: a line of names, then a line an event; ``-`` is null, ``~`` a value that was not sent.

    ``op`` is the event's letter; ``was`` the key's old value. Values are JSON where they can be read so, else text.
    """
    head, *lines = [line.split() for line in text.strip().splitlines()]
    rows = [dict(zip(head, line, strict=True)) for line in lines]
    names = [name for name in head if name not in ("op", "was")]
    columns = {name: pa.array([_value(row[name]) for row in rows], types.get(name)) for name in names}
    records = pa.RecordBatch.from_pydict(columns)
    before = None
    if "was" in head:
        old = [_value(row["was"]) for row in rows]
        before = pa.StructArray.from_arrays(
            [pa.array(old, records.schema.field(key[0]).type)],
            names=[key[0]],
            mask=pa.array([item is None for item in old]),
        )
    unchanged = None
    if any("~" in row.values() for row in rows):
        kept = [[name for name in names if row[name] == "~"] for row in rows]
        unchanged = pa.array(kept, pa.list_(pa.string()))
    ops = np.array([OPS[row["op"]] for row in rows], np.uint8)
    return hr.Batch.of(records, op=ops, key=key, before=before, unchanged=unchanged)


def _value(text: str) -> Any:
    if text in "-~":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def write(log: Path, *batches: hr.Batch, topic: str = "in") -> None:
    """Append batches to a topic of a log, each as an entry of its own."""
    held = open_log(log, writer=True)
    try:
        for batch in batches:
            with held.transaction() as txn:
                txn.append(topic, batch.records)
    finally:
        held.close()


def app_on(log: Path) -> tuple[hr.App, Any]:
    """An app on a log, and the stream of its topic «in»."""
    app = hr.App("shop", log=log)
    return app, app.topic("in")


def letters(log: Path) -> list[str]:
    """Reasons and rows in the dead letters of «in»."""
    held = open_log(log, writer=False)
    try:
        found = [row for entry in held.read_topic("in.dlq") for row in entry.records.to_pylist()]
        return [f"{row['reason']} | {row['row']}" for row in found]
    finally:
        held.close()
