"""Rows a second that `headrace.KMeans` learns, against the bare NumPy kernel on the same batches.

The reference is the fastest plain kernel we know: expanded squares through one matrix product (|c|² - 2xc), sums
through a one-hot matrix product, no checks, and rounding that depends on BLAS. Ours checks its input, decides by
direct differences and adds in a fixed order. The bare kernel of direct differences stands in the details.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.learn.kmeans import KMeans

Floats = npt.NDArray[np.float64]
Labels = Callable[[Floats, Floats], npt.NDArray[np.int64]]

BATCH = 1_000
SHAPES = ((3, 4), (64, 64))


def expanded(X: Floats, centers: Floats) -> npt.NDArray[np.int64]:
    return ((centers * centers).sum(axis=1) - 2.0 * (X @ centers.T)).argmin(axis=1)


def differences(X: Floats, centers: Floats) -> npt.NDArray[np.int64]:
    distances = np.empty((len(X), len(centers)))
    for c, center in enumerate(centers):
        apart = X - center
        np.einsum("nd,nd->n", apart, apart, out=distances[:, c])
    return distances.argmin(axis=1)


def bare(labels: Labels, centers: Floats, batches: list[Floats]) -> Floats:
    """Assignment and weighted mean, batch after batch, and nothing else."""
    weights, every = np.zeros(len(centers)), np.arange(len(centers))[:, None]
    for X in batches:
        one_hot = (labels(X, centers) == every).astype(np.float64)
        counts = one_hot.sum(axis=1)
        weights = weights + counts
        share = counts / np.maximum(weights, 1e-16)
        means = (one_hot @ X) / np.maximum(counts, 1.0)[:, None]
        centers = (1.0 - share)[:, None] * centers + share[:, None] * means
    return centers


def ours(centers: Floats, batches: list[Floats]) -> Floats:
    model = KMeans(len(centers), initial_centers=centers, decay=1)
    for X in batches:
        model.learn(X)
    return model.centers


def run(rows: int) -> list[dict[str, Any]]:
    """One result for each shape; ``rows`` are timed in rounds, the kernels taking turns.

    Returns:
        Dicts of name, reference and ours (rows/s, medians of the rounds), ratio (ours to reference; the median of
        the rounds' ratios, since other load on the machine meets both), unit, details.
    """
    return [_measure(k, d, rows) for k, d in SHAPES]


def _measure(k: int, d: int, rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    truth = rng.normal(scale=2.0, size=(k, d))
    rounds = 15
    count = max(1, rows // BATCH // rounds)
    batches = [truth[rng.integers(0, k, BATCH)] + rng.normal(size=(BATCH, d)) for _ in range(count)]
    start = truth + rng.normal(scale=0.5, size=(k, d))
    kernels: dict[str, Callable[[], Floats]] = {
        "expanded": lambda: bare(expanded, start, batches),
        "ours": lambda: ours(start, batches),
    }
    assert np.allclose(kernels["expanded"](), kernels["ours"]())
    timed = list(_rounds(kernels, rounds))
    slow = batches[: max(1, count // 10)]
    direct = statistics.median(one["direct"] for one in _rounds({"direct": lambda: bare(differences, start, slow)}, 3))
    rate = {name: count * BATCH / statistics.median(one[name] for one in timed) for name in kernels}
    return {
        "name": f"k-means learn, k={k}, d={d}, batches of {BATCH:,}",
        "reference": rate["expanded"],
        "ours": rate["ours"],
        "ratio": statistics.median(one["expanded"] / one["ours"] for one in timed),
        "unit": "rows/s",
        "details": {
            "reference": "bare NumPy: expanded squares by one matrix product, one-hot sums",
            "bare direct differences, rows/s": len(slow) * BATCH / direct,
            "rounds": rounds,
        },
    }


def _rounds(kernels: dict[str, Callable[[], Floats]], rounds: int) -> Iterator[dict[str, float]]:
    for _ in range(rounds):
        seconds = {}
        for name, kernel in kernels.items():
            before = time.perf_counter()
            kernel()
            seconds[name] = time.perf_counter() - before
        yield seconds
