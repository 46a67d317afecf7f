"""Images and vectors as features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import headrace as hr
from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.learn.features import matrix


def test_bytes_become_scaled_pixels() -> None:
    pixels = pa.array([bytes([0, 51, 255, 102]), b"\x00" * 4], pa.binary())
    found = matrix(Batch.of({"p": pixels}), (hr.image("p", shape=(2, 2), scale=1 / 255),))
    assert found.X.dtype == np.float32 and found.valid.all()
    np.testing.assert_allclose(found.X[0], [0, 0.2, 1, 0.4], rtol=1e-6)


def test_a_slice_of_a_batch_has_its_own_pixels() -> None:
    pixels = pa.array([bytes([i] * 3) for i in range(9)], pa.binary())
    batch = Batch.of({"p": pixels}).slice(4, 2)
    assert matrix(batch, (hr.image("p", shape=(3,)),)).X.tolist() == [[4.0] * 3, [5.0] * 3]


def test_rows_that_are_no_such_image_are_refused_with_the_reason() -> None:
    pixels = pa.array([b"ab", None, b"abc"], pa.binary())
    found = matrix(Batch.of({"p": pixels, "x": [1.0, 2.0, None]}), (hr.image("p", shape=(2,)), "x"))
    assert found.valid.tolist() == [True, False, False]
    assert found.reasons == {1: "the image «p» is NULL", 2: "the image «p» has 3 bytes, not 2"}
    assert found.X.shape == (3, 3) and found.X.dtype == np.float64
    assert matrix(Batch.of({"p": ["text"]}), (hr.image("p", shape=(2,)),)).reasons == {0: "«p» is string, no bytes"}
    assert matrix(Batch.of({"q": [1]}), (hr.image("p", shape=(2,)),)).reasons == {0: "there is no column «p»"}


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2), pa.large_list(pa.int32())], ids=str
)
def test_arrays_become_columns(kind: pa.DataType) -> None:
    found = matrix(Batch.of({"v": pa.array([[1, 2], None, [3, 4]], kind)}), (hr.vector("v", size=2),))
    assert found.X[found.valid].tolist() == [[1, 2], [3, 4]]
    assert found.reasons == {1: "the vector «v» is NULL"}


def test_vectors_of_another_length_or_with_holes_are_refused() -> None:
    found = matrix(Batch.of({"v": [[1.0], [1.0, None], [float("inf"), 1.0], [1.0, 2.0]]}), (hr.vector("v", size=2),))
    assert found.valid.tolist() == [False, False, False, True]
    assert found.reasons[0] == "the vector «v» has 1 numbers, not 2"
    assert "NULL, NaN or infinite" in found.reasons[1]


def test_mistakes_are_refused_when_declared() -> None:
    for make in (
        lambda: hr.image("", shape=(2,)),
        lambda: hr.image("p", shape=(0,)),
        lambda: hr.image("p", shape=(2,), scale=float("nan")),
        lambda: hr.vector("v", size=0),
    ):
        with pytest.raises(DeclarationError):
            make()
