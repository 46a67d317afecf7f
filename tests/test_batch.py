"""A batch says which of its decimals are NaN, and not more than that."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa

from headrace.batch import NAN, OPS, Batch, not_numbers
from headrace.sinks.changes import nan_as_text
from headrace.sinks.json_row import json_rows

KIND = pa.decimal128(5, 2)


def batch(**columns: pa.Array) -> Batch:
    """Return two updates; the first has a NaN in n, its old row too, the second in none."""
    rows = pa.record_batch(columns)
    before = pa.array([{"n": None}, {"n": Decimal("2.00")}], pa.struct({"n": KIND}))
    made = Batch.of(rows, op=np.full(2, OPS["u"], np.uint8), before=before)
    about = [[{"column": "n", "before": False}, {"column": "n", "before": True}], None]
    return Batch(made.records.append_column(NAN, pa.array(about, NAN.type)))


def test_nan_of_rows_and_of_old_rows() -> None:
    found = batch(n=pa.array([None, Decimal("1.50")], KIND), m=pa.array([None, None], KIND))
    for before in (False, True):
        nan = found.nan("n", before=before)
        assert nan is not None and nan.tolist() == [True, False]
    assert found.nan("m") is None and found.nan("gone") is None
    assert not_numbers(found.records) == [[("n", False), ("n", True)], []]
    assert found.slice(1).nan("n") is None and not_numbers(found.slice(1).records) == [[]]
    assert json_rows(found) == [b'{"n":"NaN","m":null}', b'{"n":"1.50","m":null}']
    told = nan_as_text(found)
    assert told.rows.to_pydict() == {"n": ["NaN", "1.50"], "m": [None, None]}
    assert told.before is not None and told.before.to_pylist() == [{"n": "NaN"}, {"n": "2.00"}]


def test_a_column_in_its_place_has_none() -> None:
    for other in (pa.array([Decimal(7), None], KIND), pa.array([None, 1], pa.int64()), pa.array([None, "x"])):
        found = batch(n=other)
        assert found.nan("n") is None
        assert nan_as_text(found).rows.column("n").null_count == 1
        assert b"NaN" not in b"".join(json_rows(found))
    assert json_rows(batch(m=pa.array([1, 2]))) == [b'{"m":1}', b'{"m":2}']
