"""Rows a second that `headrace.KMeans` learns, against a bare NumPy kernel on the same batches.

The reference is the fastest plain kernel we know: nearest centres by expanded squares through one matrix product
(|c|² - 2xc), sums through a one-hot matrix product, arrays allocated once, no checks. Its labels and bits depend on
BLAS; ours are defined by direct differences and additions in a fixed order, and its input is checked. BLAS is held
to one thread, which is all that ours uses (two made the reference 30 times slower beside another busy process). The
bare kernel of direct differences, one pass for each centre, stands in the details.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from headrace.arrays import Floats
from headrace.learn.kmeans import KMeans

BATCH = 1_000
SHAPES = ((3, 4), (64, 64))


class Kernel(Protocol):
    """The loop that is timed, once a batch."""

    def learn(self, X: Floats) -> None: ...


class Bare:
    """Assignment and weighted mean, and nothing else."""

    def __init__(self, centers: Floats) -> None:
        k = len(centers)
        self.centers, self.weights = centers, np.zeros(k)
        self.scores, self.one_hot, self.every = np.empty((BATCH, k)), np.empty((k, BATCH)), np.arange(k)[:, None]

    def labels(self, X: Floats) -> npt.NDArray[np.int64]:
        np.matmul(X, -2.0 * self.centers.T, out=self.scores)
        self.scores += (self.centers * self.centers).sum(axis=1)
        return np.asarray(self.scores.argmin(axis=1), np.int64)

    def learn(self, X: Floats) -> None:
        np.copyto(self.one_hot, self.labels(X) == self.every)
        counts = self.one_hot.sum(axis=1)
        self.weights = self.weights + counts
        share = counts / np.maximum(self.weights, 1e-16)
        means = (self.one_hot @ X) / np.maximum(counts, 1.0)[:, None]
        self.centers = (1.0 - share)[:, None] * self.centers + share[:, None] * means


class BareDifferences(Bare):
    """The same with direct differences."""

    def labels(self, X: Floats) -> npt.NDArray[np.int64]:
        for c, center in enumerate(self.centers):
            apart = X - center
            np.einsum("nd,nd->n", apart, apart, out=self.scores[:, c])
        return np.asarray(self.scores.argmin(axis=1), np.int64)


def run(rows: int) -> list[dict[str, Any]]:
    """One result for each shape, from ``rows`` rows of it.

    The kernels take turns batch by batch, each first on every other batch, and the times of single batches are
    compared by their medians: what else runs on the machine meets both alike.

    Returns:
        Dicts of name, reference and ours (rows/s), ratio (ours to reference), unit, details.
    """
    with threadpool_limits(1):
        return [_measure(k, d, max(10, rows // BATCH)) for k, d in SHAPES]


def _measure(k: int, d: int, batches: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=2.0, size=(k, d))
    made = [truth[rng.integers(0, k, BATCH)] + rng.normal(size=(BATCH, d)) for _ in range(min(batches, 50))]
    start = truth + rng.normal(scale=0.5, size=(k, d))
    bare, ours = Bare(start), KMeans(k, initial_centers=start, decay=1)
    reference, mine = (statistics.median(times) for times in _take_turns((bare, ours), made, batches))
    assert np.allclose(bare.centers, ours.centers)
    differences = statistics.median(_take_turns((BareDifferences(start),), made, min(batches, 50))[0])
    return {
        "name": f"k-means learn, k={k}, d={d}, batches of {BATCH:,}",
        "reference": BATCH / reference,
        "ours": BATCH / mine,
        "ratio": reference / mine,
        "unit": "rows/s",
        "details": {
            "reference": "bare NumPy: expanded squares by one matrix product, one-hot sums; one BLAS thread",
            "bare direct differences": BATCH / differences,
            "batches": batches,
        },
    }


def _take_turns(kernels: Sequence[Kernel], made: Sequence[Floats], batches: int) -> list[list[float]]:
    """Seconds of each batch, for each kernel."""
    times: list[list[float]] = [[] for _ in kernels]
    for number in range(batches):
        X = made[number % len(made)]
        turns = range(len(kernels)) if number % 2 else reversed(range(len(kernels)))
        for turn in turns:
            before = time.perf_counter()
            kernels[turn].learn(X)
            times[turn].append(time.perf_counter() - before)
    return times
