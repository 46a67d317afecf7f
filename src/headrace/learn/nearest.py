"""Nearest centres, the same bits always.

They are defined by direct differences, summed column by column in one fixed order with plain IEEE additions and
multiplications. A row's centre is therefore the same alone and among others, on every CPU and with every BLAS.
Matrix products only *screen* rows: they settle those for which their rounding cannot matter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headrace.arrays import Array, Floats, Ints

_CACHED = 16_384  # differences held at once by the direct kernel: 128 kB
_SCREEN_FROM = 64  # k * d above which a matrix product is cheaper than k * d differences a row
_SCREENED = 32_640  # elements of a score matrix: in single precision just under 128 kB, which malloc keeps at hand
_EPS = float(np.finfo(np.float64).eps)
_ONE_THREAD = 262_144  # multiplications up to which OpenBLAS uses one thread


@np.errstate(over="ignore", invalid="ignore")
def nearest(X: Floats, centers: Floats) -> Ints:
    """The index of each row's nearest centre; the first among equals.

    Distances are sums of squared differences, added column by column. For large ``k * d`` matrix products screen
    the rows first: they settle all but those whose two nearest centres are too close to tell by them, in single
    precision, then in double, and what is left is settled by the differences. Labels are the same either way.

    Args:
        X: shape (n, d), finite, C-contiguous.
        centers: shape (k, d).

    Returns:
        Shape (n,).

    >>> nearest(np.array([[1.0], [5.0], [9.0]]), np.array([[0.0], [10.0]])).tolist()
    [0, 0, 1]
    """
    if len(centers) == 1 or not len(X):
        return np.zeros(len(X), np.int64)
    if centers.size <= _SCREEN_FROM:
        return _by_differences(X, centers)
    labels, unclear = _by_products(X, centers, np.float32)
    if len(unclear):
        labels[unclear], still = _by_products(X[unclear], centers, np.float64)
        unclear = unclear[still]
    if len(unclear):
        labels[unclear] = _by_differences(X[unclear], centers)
    return labels


def _by_differences(X: Floats, centers: Floats) -> Ints:
    """Nearest centres, in pieces of rows that stay in the cache."""
    piece = max(16, _CACHED // len(centers))
    if len(X) <= piece:
        return _lowest(squared_distances(X, centers))
    pieces = [_lowest(squared_distances(X[at : at + piece], centers)) for at in range(0, len(X), piece)]
    return np.concatenate(pieces)


def _lowest(distances: Floats) -> Ints:
    """``distances.argmin(axis=0)``; for few centres without its branches, which mispredict on every other row."""
    if len(distances) > 8:
        return np.asarray(distances.argmin(axis=0), np.int64)
    best = distances.min(axis=0)
    later = distances[0] != best
    labels: Ints = later.astype(np.int64)
    for c in range(1, len(distances) - 1):
        later &= distances[c] != best
        labels += later
    return labels


def squared_distances(X: Floats, centers: Floats) -> Floats:
    """Shape (k, n). Element by element, so that a value's bits depend on its row and its centre alone."""
    columns = np.ascontiguousarray(X.T)[:, None, :]
    targets = np.ascontiguousarray(centers.T)[:, :, None]
    group = max(1, _CACHED // (len(X) * len(centers)))
    total: Floats = np.zeros(0)
    for at in range(0, len(columns), group):
        squares = columns[at : at + group] - targets[at : at + group]
        np.multiply(squares, squares, out=squares)
        total = squares[0] if at == 0 else np.add(total, squares[0], out=total)
        for square in squares[1:]:
            np.add(total, square, out=total)
    return total


def _by_products(X: Floats, centers: Floats, kind: type[np.floating[Any]]) -> tuple[Ints, Ints]:
    """Nearest centres by the score |c|² - 2xc, and the indexes of the rows for which that proves nothing.

    To first order, summed in any order, with or without fused multiply-adds, a score is wrong by at most
    (d + 4) u (2|x||c| + |c|²), u being half of ``kind``'s eps and x and c rounded to ``kind``. Moving the origin
    and the sum of `squared_distances` itself are wrong by at most (d + 4) u (|x| + |c|)² in double precision. Two
    centres whose scores differ by more than twice all this are in the same order in both; a quarter is added for
    the higher orders. NaN and infinity prove nothing.
    """
    (n, d), k = X.shape, len(centers)
    origin = centers.sum(axis=0) / k  # keeps |x| small for data far from zero, such as times
    moved = centers - origin
    factors = np.empty((d + 1, k), kind)
    factors[:d] = -2.0 * moved.T
    factors[d] = np.einsum("kd,kd->k", moved, moved)
    piece = min(n, max(16, _SCREENED // max(k, d + 1)))
    wide, rows, first = np.empty((piece, d)), np.ones((piece, d + 1), kind), np.arange(0, piece * k, k)
    labels, gap, size = np.empty(n, np.int64), np.empty(n, kind), np.empty(n, kind)
    for at in range(0, n, piece):
        part = X[at : at + piece]
        some = rows[: len(part)]
        some[:, :d] = np.subtract(part, origin, out=wide[: len(part)])
        labels[at : at + piece], gap[at : at + piece] = _two_best(_product(some, factors), first[: len(part)])
        np.einsum("nd,nd->n", some[:, :d], some[:, :d], out=size[at : at + piece])
    np.sqrt(size, out=size)
    farthest, limits = math.sqrt(factors[d].max()), np.finfo(kind)
    bound = (
        1.25 * (d + 8) * (limits.eps * farthest * (2 * size + farthest) + _EPS * (size + farthest) ** 2) + limits.tiny
    )
    return labels, np.flatnonzero(~(gap > bound))


def _product(rows: Array, factors: Array) -> Array:
    """``rows @ factors`` in products so small that BLAS leaves its threads asleep.

    Woken, they spin for work beside the threads of capture: 20 times slower on two busy cores (measured).
    """
    size = max(8, _ONE_THREAD // factors.size)
    whole = len(rows) // size * size
    result = np.empty((len(rows), factors.shape[1]), rows.dtype)
    if whole:
        np.matmul(
            rows[:whole].reshape(-1, size, len(factors)), factors, out=result[:whole].reshape(-1, size, len(factors.T))
        )
    if whole < len(rows):
        np.matmul(rows[whole:], factors, out=result[whole:])
    return result


def _two_best(scores: Array, first: Ints) -> tuple[Ints, Array]:
    """Each row's lowest score: where, and how far below the second lowest. Overwrites ``scores``."""
    flat = scores.reshape(-1)
    labels = scores.argmin(axis=1)
    lowest = labels + first
    best = flat[lowest]
    flat[lowest] = np.inf
    return labels, flat[scores.argmin(axis=1) + first] - best
