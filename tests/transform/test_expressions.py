"""Expressions and operations on whole batches."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.transform.expressions import Filter, Select, Sql, Transform, WithColumns, check, evaluate, operate, text

BATCH = Batch.of({"a": [3, 1, None], "b": ["x", "y", "z"]}, lsn=7, key=["a"])


def test_filter_keeps_what_is_true_and_neither_false_nor_null() -> None:
    assert Filter(pc.field("a") > 1).apply(BATCH).rows.to_pylist() == [{"a": 3, "b": "x"}]
    assert Filter(lambda batch: np.array([False, True, True])).apply(BATCH).column("b").to_pylist() == ["y", "z"]


def test_a_condition_in_sql_keeps_rows_in_order_and_refuses_those_at_fault() -> None:
    n = 5000
    batch = Batch.of({"a": list(range(n)), 'ü "q': ["x"] * n}, lsn=7, key=["a"])
    kept = Filter(Sql('a % 1000 = 7 AND "ü ""q" = \'x\' -- every thousandth')).apply(batch)
    assert kept.column("a").to_pylist() == [7, 1007, 2007, 3007, 4007]
    assert Filter(Sql("a > 1")).apply(BATCH).rows.to_pylist() == [{"a": 3, "b": "x"}]
    good, bad = operate(BATCH, [Filter(Sql("CASE WHEN b = 'y' THEN error('no ' || b) ELSE true END"))])
    assert [row for part in good for row in part.column("b").to_pylist()] == ["x", "z"]
    assert [(row.column("b").to_pylist(), "no y" in reason) for row, reason in bad] == [(["y"], True)]
    with pytest.raises(KeyError, match="nope"):
        Filter(Sql("nope = 1")).apply(BATCH)
    with pytest.raises(ValueError, match="disabled"):
        Filter(Sql("(SELECT count(*) FROM read_text('/etc/hostname')) > 0")).apply(BATCH)


@pytest.mark.parametrize("condition", ["", "a >", "1), (2", "true; SELECT 1", "1) FROM range(3) t(x"])
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(DeclarationError, match="where"):
        Sql(condition).check()


def test_select_orders_columns_and_keeps_the_event() -> None:
    chosen = Select(("b",), {"double": pc.field("a") * 2}).apply(BATCH)
    assert chosen.rows.to_pylist() == [{"b": "x", "double": 6}, {"b": "y", "double": 2}, {"b": "z", "double": None}]
    assert chosen.lsn.tolist() == [7, 7, 7]
    assert str(chosen.position(2)) == "0/7:2"


def test_with_columns_adds_and_replaces() -> None:
    changed = WithColumns({"a": pc.field("b"), "n": lambda batch: [1, 2, 3]}).apply(BATCH)
    assert changed.rows.to_pylist()[0] == {"b": "x", "a": "x", "n": 1}


def test_a_transform_must_return_a_batch() -> None:
    assert Transform(lambda batch: batch.slice(1, 1)).apply(BATCH).num_rows == 1
    with pytest.raises(TypeError, match="expected a Batch"):
        Transform(lambda batch: None).apply(BATCH)  # type: ignore[arg-type, return-value]


def test_text_writes_missing_values_and_literal_braces() -> None:
    said = evaluate(text("{{{b}}} is {a}"), BATCH).to_pylist()
    assert said == ["{x} is 3", "{y} is 1", "{z} is null"]
    assert evaluate(text("all the same"), BATCH).to_pylist() == ["all the same"] * 3


def test_floats_in_text_are_shortest_and_keep_their_point() -> None:
    batch = Batch.of({"x": pa.array([0.1, 3.0, 1e22, None])})
    assert evaluate(text("{x}"), batch).to_pylist() == ["0.1", "3.0", "1e+22", "null"]


@pytest.mark.parametrize("template", ["{", "{}", "{a"])
def test_templates_that_cannot_be_read(template: str) -> None:
    with pytest.raises(DeclarationError):
        text(template)


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(DeclarationError, match="is not a column expression"):
        check(3, "filter")
    with pytest.raises(ValueError, match="gave 1 values for 3 rows"):
        evaluate(lambda batch: [1], BATCH)
