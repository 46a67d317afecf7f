"""A row's answer does not depend on its neighbours, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from headrace.learn.kmeans import KMeans
from headrace.step.predictions import BLOCK_ROWS, predict_in_blocks

CHANCE = np.random.default_rng(4)
WEIGHTS = CHANCE.normal(size=(20, 7))
ROWS = CHANCE.normal(size=(500, 20))


class Blas:
    """A model whose answers go through BLAS, which chooses its kernels by the matrix's shape."""

    def predict(self, X: npt.NDArray[Any]) -> npt.NDArray[Any]:
        assert X.shape == (BLOCK_ROWS, 20)
        assert X.flags.c_contiguous
        return np.tanh(X @ WEIGHTS)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_any_grouping_gives_equal_bits(sizes: list[int]) -> None:
    kmeans = KMeans(k=5, initial_centers=CHANCE.normal(size=(5, 20)))
    for model in (Blas(), kmeans):
        whole = predict_in_blocks(model.predict, ROWS)
        at, parts = 0, []
        for size in sizes * 500:
            parts.append(predict_in_blocks(model.predict, ROWS[at : at + size]))
            at += size
            if at >= len(ROWS):
                break
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_bare_blas_would_not_hold_this() -> None:
    alone = np.concatenate([np.tanh(ROWS[i : i + 1] @ WEIGHTS) for i in range(len(ROWS))])
    if alone.tobytes() == np.tanh(ROWS @ WEIGHTS).tobytes():
        import pytest

        pytest.skip("this machine's BLAS happens to use one kernel for both shapes")
