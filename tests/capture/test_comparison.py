"""A table's rows compared with what its topic says of them, against a plain dictionary of rows."""

from __future__ import annotations

import datetime as dt
import random
from collections import Counter
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import OPS, Batch
from headrace.capture import comparison
from headrace.capture.comparison import Comparison, Difference
from headrace.errors import LogError

SCHEMA = pa.schema([("id", pa.int64()), ("x", pa.float64()), ("note", pa.string())])


def events(rows: list[dict[str, Any]], *, schema: pa.Schema = SCHEMA, key: tuple[str, ...] = ("id",)) -> Batch:
    """A batch of events, each a row with ``op``, and perhaps ``before`` and ``unchanged``."""
    columns = pa.RecordBatch.from_pylist([{n: row.get(n) for n in schema.names} for row in rows], schema=schema)
    before = pa.array([row.get("before") for row in rows], pa.struct(list(schema)))
    unchanged = pa.array([row.get("unchanged", []) for row in rows], pa.list_(pa.string()))
    return Batch.of(columns, op=np.array([OPS[row["op"]] for row in rows], np.uint8), key=key, before=before, unchanged=unchanged)  # noqa: E501  # fmt: skip


def table(rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def found(compared: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The rows that differ, by how; of updates also the old ones, as ``before``."""
    made: dict[str, list[dict[str, Any]]] = {"c": [], "u": [], "d": [], "before": []}
    for difference in compared.differences():
        made[difference.op] += difference.rows.to_pylist()
        if difference.before is not None:
            made["before"] += difference.before.to_pylist()
    compared.close()
    return made


@pytest.mark.parametrize("seed", range(6))
def test_random_changes_of_a_table_with_a_key(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PART_BYTES", 1)
    monkeypatch.setattr(comparison, "COMPACT_BYTES", [1 << 30, 1000, 1][seed % 3])
    chance = random.Random(seed)
    compared = Comparison(SCHEMA, ["id"], size=chance.choice([0, 7]))
    known: dict[int, dict[str, Any]] = {}
    for _ in range(20):
        said = [event for _ in range(30) if (event := _change(known, chance))]
        if said:
            compared.note(events(said))
    now = {key: row for key, row in known.items() if chance.random() < 0.8}
    for key in chance.sample(sorted(now), min(5, len(now))):
        now[key] = {**now[key], "x": chance.random()}
    now |= {1000 + i: {"id": 1000 + i, "x": None, "note": "new"} for i in range(3)}
    for row in now.values():
        compared.meet(table([row]))
    differs = found(compared)
    assert {row["id"] for row in differs["d"]} == known.keys() - now.keys()
    assert {row["id"] for row in differs["c"]} == now.keys() - known.keys()
    changed = {key for key in known.keys() & now.keys() if known[key] != now[key]}
    assert {row["id"]: row for row in differs["u"]} == {key: now[key] for key in changed}
    assert {row["id"]: row for row in differs["before"]} == {key: known[key] for key in changed}
    assert {row["id"]: row for row in differs["d"]} == {key: known[key] for key in known.keys() - now.keys()}
    counts = compared.counts
    assert (counts.known, counts.now) == (len(known), len(now))
    assert counts.equal == len(known.keys() & now.keys()) - len(changed)


def _change(known: dict[int, dict[str, Any]], chance: random.Random) -> dict[str, Any] | None:
    """One random event of a table whose rows are known; changes them too."""
    kind, key = chance.random(), chance.randrange(40)
    if kind < 0.005:
        known.clear()
        return {"op": "t"}
    if kind < 0.5 or key not in known:
        if key in known:
            return None
        known[key] = {"id": key, "x": chance.choice([None, chance.random()]), "note": "n" * chance.randrange(3)}
        return {"op": "c", **known[key]}
    if kind < 0.65:
        return {"op": "d", "id": known.pop(key)["id"]}
    if kind < 0.8:
        known[key] = {**known[key], "x": chance.random()}
        return {"op": "u", "id": key, "x": known[key]["x"], "unchanged": ["note"]}  # a large text that was not sent
    other = chance.randrange(40)
    if other in known:
        return None
    known[other] = {**known.pop(key), "id": other}
    return {"op": "u", **known[other], "before": {"id": key}}


@pytest.mark.parametrize("size", [0, 5])
def test_rows_without_a_key_are_counted(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "PART_BYTES", 1)
    monkeypatch.setattr(comparison, "COMPACT_BYTES", 1 if size else 1 << 30)
    compared = Comparison(SCHEMA, [], size=size)
    rows = [
        {"id": 1, "x": float("nan"), "note": None},
        {"id": 2, "x": 0.0, "note": "b"},
        {"id": 3, "x": 1.0, "note": ""},
    ]
    compared.note(events([{"op": "c", **row} for row in [*rows, rows[0], rows[0]]], key=()))
    compared.note(
        events([{"op": "d", **rows[0]}, {"op": "d", "id": 9}, {"op": "u", **rows[1], "before": rows[2]}], key=())
    )
    # The log has: row 1 twice, row 2 twice.
    compared.meet(table([rows[0], rows[1], rows[1], rows[1], rows[2]]))
    differs = found(compared)
    assert [row["id"] for row in differs["d"]] == [1]
    assert sorted(row["id"] for row in differs["c"]) == [2, 3]
    assert differs["u"] == []
    assert (compared.counts.known, compared.counts.now, compared.counts.equal) == (4, 5, 3)


def test_columns_that_were_added_dropped_renamed_and_retyped() -> None:
    old = pa.schema([("id", pa.int32()), ("gone", pa.string()), ("price", pa.string()), ("old_name", pa.string())])
    new = pa.schema([("id", pa.int64()), ("price", pa.decimal128(10, 2)), ("added", pa.string())])
    compared = Comparison(new, ["id"])
    rows = [{"id": n, "gone": "g", "price": p} for n, p in ((1, "1.50"), (2, "2.50"), (3, "not a number"))]
    compared.note(events([{"op": "c", **row} for row in rows], schema=old))
    compared.meet(table([{"id": 1, "price": Decimal("1.50")}, {"id": 2, "price": Decimal("2.50"), "added": "x"}], new))
    differs = found(compared)
    # «not a number» fits no decimal: of that batch no price is known, and what is not known is told again.
    assert [row["id"] for row in differs["d"]] == [3]
    assert sorted(row["id"] for row in differs["u"]) == [1, 2]
    renamed = pa.schema([("key", pa.int64()), ("x", pa.float64()), ("note", pa.string())])
    compared = Comparison(renamed, ["key"])
    compared.note(events([{"op": "c", "id": 1, "x": 0.5, "note": "a"}]))
    compared.meet(table([{"key": 1, "x": 0.5, "note": "a"}], renamed))
    assert not any(found(compared).values())


def test_a_key_that_became_another_one() -> None:
    compared = Comparison(SCHEMA, ["note"])
    compared.note(events([{"op": "c", "id": n, "x": 0.0, "note": f"n{n}"} for n in (1, 2, 3)]))
    compared.note(events([{"op": "d", "id": 3}]))
    compared.note(events([{"op": "d", "note": "n1"}], key=("note",)))
    compared.meet(table([{"id": 2, "x": 0.0, "note": "n2"}]))
    assert not any(found(compared).values())
    other = pa.schema([("uid", pa.string()), ("x", pa.float64())])
    with pytest.raises(LogError, match="«id», which the table does not have"):
        Comparison(other, ["uid"]).note(events([{"op": "c", "id": 1}]))


def test_one_key_that_changes_for_ever_takes_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "COMPACT_BYTES", 100_000)
    compared = Comparison(SCHEMA, ["id"])
    row = {"id": 1, "x": 0.0, "note": "n" * 1000}
    for number in range(40):
        compared.note(events([{"op": "u", **row, "x": float(number)} for _ in range(50)]))
        assert compared._events.sizes.max() < 200_000
    compared.meet(table([{**row, "x": 39.0}]))
    assert not any(found(compared).values())


def test_a_row_that_no_event_can_hold_keeps_what_is_known_of_it() -> None:
    compared = Comparison(SCHEMA, ["id"])
    compared.note(events([{"op": "c", "id": 1, "x": 0.5}, {"op": "c", "id": 2, "x": 0.5}]))
    compared.meet(table([]), table([{"id": 1}, {"id": 7}]))
    assert [row["id"] for row in found(compared)["d"]] == [2]


def test_every_type_is_compared_by_its_value() -> None:
    values: dict[str, tuple[Any, Any, pa.DataType]] = {
        "bool": (True, False, pa.bool_()),
        "int2": (-(2**15), 1, pa.int16()),
        "int8": (2**63 - 1, -(2**63), pa.int64()),
        "float4": (float("nan"), -0.0, pa.float32()),
        "float8": (float("inf"), 0.0, pa.float64()),
        "decimal": (Decimal("99.99"), Decimal("-0.01"), pa.decimal128(38, 2)),
        "date": (dt.date(1, 1, 1), dt.date(9999, 12, 31), pa.date32()),
        "ts": (-(2**62), 2**62, pa.timestamp("us")),
        "tz": (0, 2**62, pa.timestamp("us", "UTC")),
        "bytes": (b"", b"\0", pa.binary()),
        "text": ("", "ä" * 500, pa.string()),
    }
    schema = pa.schema([("id", pa.int64()), *((name, kind) for name, (_, _, kind) in values.items())])

    def row(number: int, which: int, null: str = "") -> dict[str, Any]:
        return {"id": number, **{name: None if name == null else pair[which] for name, pair in values.items()}}

    names = list(values)
    first = [row(number, number % 2) for number in range(20)]
    second = [row(number, number % 2) for number in range(20)]
    for number, name in enumerate(names):
        second[number] = row(number, number % 2, null=name)
    compared = Comparison(schema, ["id"])
    compared.note(events([{"op": "c", **row} for row in first], schema=schema))
    compared.meet(table(second, schema))
    changed = [d.rows.column("id").to_pylist() for d in compared.differences()]
    assert [sorted(ids) for ids in changed] == [list(range(len(names)))]
    whole = Comparison(schema, [])
    whole.note(events([{"op": "c", **row} for row in first], schema=schema, key=()))
    whole.meet(table(second, schema))
    differs = Counter(difference_of(whole))
    assert differs == {"c": len(names), "d": len(names)}


def difference_of(compared: Comparison) -> list[str]:
    made: list[Difference] = list(compared.differences())
    return [difference.op for difference in made for _ in range(difference.rows.num_rows)]
