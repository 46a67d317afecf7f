"""Folding a batch: whatever the events and however they are split, the table is what one event after another makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import OPS, Batch
from headrace.halves import by_halves
from headrace.sinks.changes import fold

Table = dict[tuple[Any, ...], dict[str, Any]]

event = st.fixed_dictionaries(
    {
        "op": st.sampled_from("ccuuudr" + "t"),
        "a": st.integers(0, 3),
        "b": st.sampled_from(["x", "y"]),
        "was": st.none() | st.integers(0, 3),
        "v": st.none() | st.integers(0, 99),
        "w": st.none() | st.integers(0, 99),
        "unchanged": st.sampled_from([(), (), (), ("w",), ("v", "w")]),
    }
)


def batch_of(found: list[dict[str, Any]]) -> Batch:
    columns = {
        "a": pa.array([row["a"] for row in found], pa.int64()),
        "b": pa.array([row["b"] for row in found], pa.string()),
        "v": pa.array([row["v"] for row in found], pa.int64()),
        "w": pa.array([None if "w" in sent(row) else row["w"] for row in found], pa.int64()),
    }
    before = pa.array(
        [None if row["was"] is None or row["op"] != "u" else {"a": row["was"], "b": row["b"]} for row in found],
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
    )
    unchanged = pa.array([list(sent(item)) for item in found], pa.list_(pa.string()))
    ops = np.array([OPS[row["op"]] for row in found], np.uint8)
    return Batch.of(pa.RecordBatch.from_pydict(columns), op=ops, before=before, unchanged=unchanged)


def sent(one: dict[str, Any]) -> tuple[str, ...]:
    """Columns that are not sent: only an update leaves some out."""
    return one["unchanged"] if one["op"] == "u" else ()


def one_by_one(table: Table, found: list[dict[str, Any]]) -> None:
    for item in found:
        key = (item["a"], item["b"])
        if item["op"] == "t":
            table.clear()
            continue
        if item["op"] == "u" and item["was"] is not None and item["was"] != item["a"]:
            table.pop((item["was"], item["b"]), None)
        if item["op"] == "d":
            table.pop(key, None)
        else:
            row = table.setdefault(key, {"v": None, "w": None})
            row.update({name: item[name] for name in ("v", "w") if name not in sent(item)})


def folded(table: Table, batch: Batch) -> None:
    for change in fold(batch, ["a", "b"]):
        if change.clear:
            table.clear()
        seen = []
        for gone in change.gone.to_pylist():
            seen.append((gone["a"], gone["b"]))
            table.pop(seen[-1], None)
        for rows in change.rows:
            for row in rows.records.to_pylist():
                seen.append((row.pop("a"), row.pop("b")))
                table.setdefault(seen[-1], {"v": None, "w": None}).update(row)
        assert len(seen) == len(set(seen)), "a key is in two places of one change"


@given(st.lists(event, max_size=30), st.lists(st.integers(0, 30), max_size=3))
def test_folding_equals_one_event_after_another(found: list[dict[str, Any]], cuts: list[int]) -> None:
    expected: Table = {}
    one_by_one(expected, found)
    table: Table = {}
    ends = sorted({*(min(cut, len(found)) for cut in cuts), len(found)})
    for start, stop in zip([0, *ends], ends, strict=False):
        if stop > start:
            folded(table, batch_of(found[start:stop]))
    assert table == expected


@given(st.integers(0, 40), st.sets(st.integers(0, 39)))
def test_only_the_rows_at_fault_are_refused(count: int, bad: set[int]) -> None:
    delivered: list[int] = []

    def attempt(start: int, stop: int) -> str | None:
        if bad & set(range(start, stop)):
            return "bad"
        delivered.extend(range(start, stop))
        return None

    refused = by_halves(count, attempt)
    assert list(refused) == sorted(row for row in bad if row < count)
    assert delivered == [row for row in range(count) if row not in bad]
