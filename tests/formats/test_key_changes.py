"""A row whose key changed: a null for the old key before it, which is no event when it is read again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import Batch
from headrace.formats.base import Encoded
from headrace.formats.factory import format_for
from headrace.wire import WireMessages

TOPIC = "shop.public.t"
KIND = pa.struct([("id", pa.int64()), ("part", pa.string()), ("value", pa.string())])


def row(id_: int, part: str, value: str | None) -> dict[str, Any]:
    return {"id": id_, "part": part, "value": value}


# op, row, the old row as the replica identity gives it, whether a null goes before it
EVENTS = [
    ("c", row(1, "a", "x"), None, False),
    ("u", row(1, "a", "y"), None, False),
    ("u", row(1, "a", "z"), row(1, "a", "y"), False),
    ("u", row(2, "a", "z"), row(1, "a", None), True),
    ("u", row(2, "b", "z"), row(2, "a", "z"), True),
    ("d", row(2, "b", None), None, False),
]


def batch(events: list[Any]) -> Batch:
    rows = pa.RecordBatch.from_struct_array(pa.array([row for _, row, _, _ in events], KIND))
    before = pa.array([old for _, _, old, _ in events], KIND)
    op = np.frombuffer("".join(op for op, *_ in events).encode(), np.uint8)
    return Batch.of(rows, op=op, lsn=9, ts_us=5, key=["id", "part"], source="shop", before=before)


def wire(encoded: Encoded) -> WireMessages:
    n = len(encoded.values)
    return WireMessages(
        TOPIC, list(encoded.values), keys=list(encoded.keys), headers=list(encoded.headers), offsets=np.arange(n)
    )


@pytest.mark.parametrize(
    "name", ["json", "json+schema", "json+envelope", "json+envelope+schema", "csv", "string", "bytes"]
)
def test_the_old_key_goes_before_the_row(name: str) -> None:
    form, events = format_for(name, key="json"), batch(EVENTS)
    encoded = form.encode(TOPIC, events)
    wanted = []
    for op, new, old, changed in EVENTS:
        key = {"id": new["id"], "part": new["part"]}
        wanted += [({"id": old["id"], "part": old["part"]}, False)] if changed else []
        wanted += [(key, op != "d" or "envelope" in name)]
        wanted += [(key, False)] if op == "d" and "envelope" in name else []
    told = zip(encoded.keys, encoded.values, strict=True)
    assert [(json.loads(key or b""), value is not None) for key, value in told] == wanted
    assert encoded.rows.tolist()[:7] == [0, 1, 2, 3, 3, 4, 4]
    ((found, _),) = form.decode(wire(encoded), events.rows.schema).parts
    assert found.op.tolist() == events.op.tolist()
    if name.startswith("json"):
        assert found.records.equals(events.records, check_metadata=True)


def test_without_keys_or_the_whole_old_key_there_is_none() -> None:
    assert len(format_for("json", key="none").encode(TOPIC, batch(EVENTS)).values) == len(EVENTS)
    half = batch([("u", row(2, "a", "z"), {"id": 1, "part": None, "value": None}, False)])
    assert len(format_for("json").encode(TOPIC, half).values) == 1
