"""Rows of outcomes: which columns, in which order, of which types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.batch import Batch
from headrace.errors import HeadraceError
from headrace.grade import metrics
from headrace.grade.compare import TAIL, CompareSpec, graded_rows, rounded
from headrace.grade.interval_join.join import Arrivals, Join

SPEC = CompareSpec(target="Weight", on_left=("Fish_Id",), on_right=("Fish_Id",), metric=metrics.relative_error)


def predictions(**columns: Any) -> pa.RecordBatch:
    rows = {
        "Fish_Id": [1, 2],
        "Species": ["salmon", "walleye"],
        "prediction": [1.1, None],
        "status": ["ok", "invalid"],
        "model": ["weight", "weight"],
        "model_version": [1, 1],
        "model_position": ["0/A:1", "0/A:1"],
        **columns,
    }
    return Batch.of(rows, lsn=26421800, index=np.array([3, 4])).records


def labels(**columns: Any) -> pa.RecordBatch:
    return Batch.of({"Fish_Id": [1, 2, 9], "Weight": [1.0, 2.0, 3.0], **columns}, lsn=26421801).records


def outcomes(left: pa.RecordBatch, right: pa.RecordBatch, spec: CompareSpec = SPEC, **options: Any) -> pa.RecordBatch:
    """Rows of one event: the first two labels meet the predictions, the third is late or waits."""
    join = Join(10_000_000)
    join.left.rows.add(left)
    join.right.rows.add(right)
    lefts = Arrivals([1, 2], np.array([0, 0]), np.array([0, 1]))
    rights = Arrivals([1, 2, None], np.array([1_500_000, 2_000_000, 0]), np.array([2, 3, 4]))
    found = join.match(lefts, rights, end=5)
    return graded_rows(found, join.left.rows.take(found.left), join.right.rows.take(found.right), spec, **options)


def test_columns_in_their_order() -> None:
    rows = outcomes(predictions(), labels(Species=["s", "w", "x"], Scales=["A", "B", "C"]))
    own = ["Fish_Id", "Species", "prediction", "model", "model_version", "model_position", "Weight"]
    assert rows.schema.names == [*own, "Species_right", "Scales", *TAIL]
    assert rows.to_pylist() == [
        {
            "Fish_Id": 1,
            "Species": "salmon",
            "prediction": 1.1,
            "model": "weight",
            "model_version": 1,
            "model_position": "0/A:1",
            "Weight": 1.0,
            "Species_right": "s",
            "Scales": "A",
            "error": pytest.approx(0.1),
            "status": "graded",
            "reason": None,
            "label_delay": 1.5,
            "prediction_position": "0/1932A28:3",
            "label_position": "0/1932A29:0",
            "grade": 0,
            "supersedes": None,
        },
        {
            "Fish_Id": 2,
            "Species": "walleye",
            "prediction": None,
            "model": "weight",
            "model_version": 1,
            "model_position": "0/A:1",
            "Weight": 2.0,
            "Species_right": "w",
            "Scales": "B",
            "error": None,
            "status": "graded",
            "reason": None,
            "label_delay": 2.0,
            "prediction_position": "0/1932A28:4",
            "label_position": "0/1932A29:1",
            "grade": 1,
            "supersedes": None,
        },
        {
            **dict.fromkeys(own),
            "Fish_Id": 9,
            "Weight": 3.0,
            "Species_right": "x",
            "Scales": "C",
            "error": None,
            "status": "orphan",
            "reason": "the key is NULL",
            "label_delay": None,
            "prediction_position": None,
            "label_position": "0/1932A29:2",
            "grade": 2,
            "supersedes": None,
        },
    ]


def test_the_truth_stands_where_the_prediction_has_the_target() -> None:
    left = predictions(Weight=[None, 7.0])
    left = left.select(["Weight", *[name for name in left.schema.names if name != "Weight"]])
    rows = outcomes(left, labels())
    assert rows.schema.names[:2] == ["Weight", "Fish_Id"]
    assert rows.column("Weight").to_pylist() == [1.0, 2.0, 3.0]


def test_names_that_are_taken() -> None:
    rows = outcomes(
        predictions(Species_right=["a", "b"], error=["e", "f"]),
        labels(Species=["s", "w", "x"], status=["in", "in", "out"], error=[1, 2, 3]),
    )
    names = rows.schema.names
    assert len(set(names)) == len(names)
    assert rows.column("Species_right").to_pylist()[:2] == ["a", "b"]
    assert rows.column("Species_right_right").to_pylist() == ["s", "w", "x"]
    assert rows.column("error_left").to_pylist()[:2] == ["e", "f"]
    assert rows.column("error_right").to_pylist() == [1, 2, 3]
    assert rows.column("status_right").to_pylist() == ["in", "in", "out"]
    assert rows.column("status").to_pylist() == ["graded", "graded", "orphan"]


def test_keys_of_different_names_and_types() -> None:
    spec = CompareSpec(target="Weight", on_left=("Fish_Id",), on_right=("id",), metric=metrics.absolute_error)
    rows = outcomes(predictions(), labels(id=["1", "2", "9"]), spec)
    assert rows.column("Fish_Id").to_pylist() == [1, 2, 9]
    assert "id" not in rows.schema.names and rows.column("Fish_Id_right").to_pylist() == [1, 2, 9]
    rows = outcomes(predictions(), labels(id=["1", "2", "nine"]), spec)
    assert rows.column("Fish_Id").to_pylist() == [1, 2, None]


def test_only_labels_have_the_columns_that_rows_had_before() -> None:
    before = outcomes(predictions(), labels(Scales=["A", "B", "C"])).schema
    join = Join(10)
    join.right.rows.add(labels().slice(2))
    found = join.match(Arrivals.none(), Arrivals([None], np.array([0]), np.array([0])), end=1)
    left, right = join.left.rows.take(found.left), join.right.rows.take(found.right)
    alone = graded_rows(found, left, right, SPEC)
    assert alone.schema.names == ["Fish_Id", "Weight", *TAIL]
    assert alone.schema.field("error").type == pa.float64()
    rows = graded_rows(found, left, right, SPEC, schema=before)
    assert rows.schema == before
    assert rows.to_pylist()[0]["Fish_Id"] == 9
    wrong = before.set(0, pa.field("Fish_Id", pa.timestamp("us")))
    wrong = wrong.set(wrong.get_field_index("Weight"), pa.field("Weight", pa.list_(pa.int8())))
    with pytest.raises(HeadraceError, match="graded rows had «Weight»"):
        graded_rows(found, left, right, SPEC, schema=wrong)


@pytest.mark.parametrize(
    ("prediction", "truth", "metric", "expected"),
    [
        ([[0.9, 0.1], [0.5, 0.5]], [0, 1, None], metrics.log_loss, [0.1054, 0.6931, None]),
        (["a", "b"], ["a", "c", "x"], metrics.incorrect, [0.0, 1.0, None]),
        ([1, 2], [1, None, 1], metrics.absolute_error, [0.0, None, None]),
        ([1, 2], [1.0, 3.0, 1.0], metrics.as_metric(lambda p, t: p == t), [True, False, None]),
        (
            ["a", "b"],
            ["a", "b", None],
            metrics.as_metric(lambda p, t: np.array(["yes"] * len(p))),
            ["yes", "yes", None],
        ),
    ],
    ids=["probabilities", "classes", "no truth", "flags", "words"],
)
def test_errors_of_all_kinds(prediction: list[Any], truth: list[Any], metric: Any, expected: list[Any]) -> None:
    spec = CompareSpec(target="Weight", on_left=("Fish_Id",), on_right=("Fish_Id",), metric=metric)
    if isinstance(prediction[0], list):
        left = predictions(prediction=pa.array(prediction, pa.list_(pa.float64(), 2)))
    else:
        left = predictions(prediction=prediction)
    found = outcomes(left, labels(Weight=truth), spec).column("error").to_pylist()
    assert [round(item, 4) if isinstance(item, float) else item for item in found] == expected


def test_rounding_is_that_of_ksqldb() -> None:
    assert rounded(np.array([0.0005, 1.0005, 2.675, -2.675, -0.0005, np.nan]), 3)[:5].tolist() == [
        0.001,
        1.001,
        2.675,
        -2.675,
        0.0,
    ]
    assert rounded(np.array([2.675, -1.5]), 2).tolist() == [2.68, -1.5]
    spec = CompareSpec(
        target="Weight", on_left=("Fish_Id",), on_right=("Fish_Id",), metric=metrics.relative_error, round=3
    )
    assert outcomes(predictions(prediction=[1.00049, 3.0]), labels(), spec).column("error").to_pylist() == [
        0.0,
        0.5,
        None,
    ]


@given(st.floats(-1e6, 1e6), st.integers(0, 6))
def test_a_rounded_number_is_the_nearest(value: float, places: int) -> None:
    (found,) = rounded(np.array([value]), places).tolist()
    assert abs(found - value) <= 0.5 * 10.0**-places * (1 + 1e-9) + 1e-9
    assert found == float(f"{found:.{places}f}")
