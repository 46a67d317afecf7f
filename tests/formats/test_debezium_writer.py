"""What rows share is written once for all of them: the events are those of each row by itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from headrace.batch import CHANGE, NAN, Batch
from headrace.formats.debezium_types import java_double, java_floats, java_string, quoted
from headrace.formats.debezium_writer import FACTS, EventOptions, EventWriter

_TYPES = {"id": "int8", "f": "float8", "t": "text", "n": "numeric"}
_COLUMNS = [
    {
        "name": name,
        "type": {"name": kind, "typmod": (5 << 16 | 1) + 4 if kind == "numeric" else -1},
        "not_null": name == "id",
        "default": "'x'::text" if name == "t" else None,
    }
    for name, kind in _TYPES.items()
]
_FACTS = {"schema": "pu bl", "table": 'ta"é', "identity": "f", "key": ["id"], "columns": _COLUMNS}
_UNWRAP = {
    "transforms": "unwrap",
    "transforms.unwrap.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.unwrap.delete.tombstone.handling.mode": "rewrite-with-tombstone",
    "transforms.unwrap.add.fields": "op,source.lsn,source.ts_ms,source.snapshot,source.txId,source.sequence,ts_ns",
    "transforms.unwrap.add.headers": "op,source.table,lsn",
}
_ROUTE = {
    "transforms": "route",
    "transforms.route.type": "org.apache.kafka.connect.transforms.RegexRouter",
    "transforms.route.regex": "(.*)",
    "transforms.route.replacement": "all-$1",
}


def _values(ids: list[int | None], shift: int) -> list[pa.Array]:
    floats = [0.1, None, float("nan"), -0.0, 1e300, 5e-324, 12345678.9, 1 / 3, float("-inf"), 2.0]
    texts = ["a", None, '"\\\x00\x1f', "é😀", "", "\u2028", "x" * 300, "null", "\n", "😀"]
    decimals = [None if at in (1, 4) else f"{at}.5" for at in range(10)]
    turned = [column[shift:] + column[:shift] for column in (floats, texts)]
    numbers = pa.array(decimals).cast(pa.decimal128(5, 1))
    return [pa.array(ids, pa.int64()), pa.array(turned[0]), pa.array(turned[1]), numbers]


@pytest.fixture(scope="module")
def records() -> pa.RecordBatch:
    """Rows of four transactions with every operation; one changes its key, two have no old row."""
    ids: list[int | None] = [1, 2, 2**63 - 1, -(2**63), None, 0, 7, 8, 9, 9]
    old: list[int | None] = [1, 2, 2**63 - 1, -(2**63), None, 0, 6, 8, 9, 9]
    known = pa.array([False, True, True, False, False, True, True, True, False, True])
    before = pa.StructArray.from_arrays(_values(old, 3), names=list(_TYPES), mask=pa.array(~np.asarray(known)))
    batch = Batch.of(
        dict(zip(_TYPES, _values(ids, 0), strict=True)),
        op=np.frombuffer(b"cuudtuudcu", np.uint8),
        lsn=np.array([5, 5, 5, 5, 9, 9, 2**63, 2**63, 2**63 + 1, 2**63 + 1], np.uint64),
        ts_us=np.array([0, 0, 0, 0, -1, -1, 1796099580252399, 1796099580252399, 1796099580252399, 7]),
        key=["id"],
        source="shop",
        before=before,
        unchanged=pa.array([[], [], ["t"], [], [], [], [], [], [], []], pa.list_(pa.string())),
    ).records
    nans = [[], [{"column": "n", "before": True}], *[[]] * 2, [{"column": "n", "before": False}], *[[]] * 5]
    change = pa.StructArray.from_arrays(
        [
            pa.array(range(2**40, 2**40 + 10), pa.uint64()),
            pa.array([3, 3, 3, 3, None, None, 2**32 - 1, 2**32 - 1, 1, 1], pa.uint32()),
            pa.array([None, None, None, 5, 5, 5, 9, 2**63, 2**63, 2**63], pa.uint64()),
        ],
        names=["lsn", "number", "after"],
    )
    more = records_with(batch, {NAN.name: pa.array(nans, NAN.type), CHANGE: change})
    return more.replace_schema_metadata({**more.schema.metadata, FACTS: json.dumps(_FACTS).encode()})


def records_with(batch: pa.RecordBatch, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch


@pytest.mark.parametrize("schemas", [False, True])
@pytest.mark.parametrize(
    "properties", [{}, _UNWRAP, _ROUTE, {"skipped.operations": "none", "skip.messages.without.change": "true"}]
)
def test_rows_together_and_alone(records: pa.RecordBatch, properties: dict[str, str], schemas: bool) -> None:
    for markers in (None, pa.array(["first", *["true"] * 7, "last", "incremental"], pa.large_string())):
        writer = EventWriter("shop", "da\\ta", EventOptions.of(properties, schemas=schemas))
        found = writer.lines(records, markers)
        alone = [
            writer.lines(records.slice(at, 1), None if markers is None else markers.slice(at, 1))
            for at in range(records.num_rows)
        ]
        assert found.texts.to_pylist() == [text for lines in alone for text in lines.texts.to_pylist()]
        assert found.rows.tolist() == [at for at, lines in enumerate(alone) for _ in lines.rows]
        assert found.counted.tolist() == [counted for lines in alone for counted in lines.counted]
        assert len(found.texts) >= 12 and all(text.endswith("}\n") for text in found.texts.to_pylist())


def test_no_rows(records: pa.RecordBatch) -> None:
    lines = EventWriter("shop", "data", EventOptions.of({})).lines(records.slice(0, 0))
    assert len(lines.texts) == lines.rows.size == lines.counted.size == 0


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_are_as_one_by_one(kind: type[np.floating[Any]]) -> None:
    """Powers of two have neighbours that are not as far away on both sides: there shortest digits are hardest."""
    random = np.random.default_rng(7)
    bits = random.integers(0, 2 ** (8 * np.dtype(kind).itemsize) - 1, 2000, np.uint64)
    any_bits = bits.astype(f"u{np.dtype(kind).itemsize}").view(kind)
    powers = (2.0 ** np.arange(-20, 30)).astype(kind)
    usual = (10.0 ** random.uniform(-4, 8, 2000)).astype(kind)
    edges = np.array([0, -0.0, 1e-3, 1e7, np.nan, np.inf, -np.inf, 0.1], kind)
    numbers = np.concatenate([any_bits, powers, -powers, np.nextafter(powers, kind(0)), usual, edges])
    assert java_floats(pa.array(numbers)).to_pylist() == [java_double(number) for number in numbers]
    none = pa.array([None, 1.5, None], pa.from_numpy_dtype(kind))
    assert java_floats(none).to_pylist() == [None, "1.5", None] and java_floats(none[1:2]).to_pylist() == ["1.5"]
    assert java_floats(none[:0]).to_pylist() == []


def test_texts_are_as_one_by_one() -> None:
    texts = [chr(code) for code in [*range(300), 0x2028, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]]
    texts += ["", '\\"\\u0000', '😀\\😀"', "x" * 5000]
    for column in (texts, texts[:31], texts[40:60], [*texts[-3:], None]):
        wanted = [None if text is None else java_string(text) for text in column]
        assert quoted(pa.array(column)).to_pylist() == wanted
        assert quoted(pa.array(["\x00", *column])[1:]).to_pylist() == wanted
