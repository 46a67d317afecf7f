"""Online k-means: centres that follow a stream, one Lloyd step for each cut.

Nearest centres are defined by direct differences, summed column by column in one fixed order with plain IEEE additions
and multiplications. A row's centre is therefore the same alone and among others, on every CPU and with every BLAS.
Matrix products only *screen* rows: they settle those for which their rounding cannot matter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Array, Floats, Ints
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.base import LearnerTraits, State, as_features, largest_in

BLOCK_ROWS = 1024
"""Rows whose sum is one number: a batch's sum is the sum of its blocks' sums, in order."""


_FARTHEST = 1e290  # squared distances of the k-means++ start saturate here, so that their sum stays finite
_CACHED = 16_384  # differences held at once by the direct kernel: 128 kB
_SCREEN_FROM = 64  # k * d above which a matrix product is cheaper than k * d differences a row
_SCREENED = 32_640  # elements of a score matrix: in single precision just under 128 kB, which malloc keeps at hand
_EPS = float(np.finfo(np.float64).eps)
_ONE_THREAD = 262_144  # multiplications up to which OpenBLAS uses one thread


class KMeans:
    """Online k-means with forgetting (mini-batch k-means).

    Each `learn` is one update: every row of the batch goes to its nearest centre, old weights are multiplied by
    the discount, and a centre that received ``m`` rows of mean ``x`` moves to ``(1 - r) * centre + r * x`` with
    ``r = m / (weight + m)``; its weight grows by ``m``.

    The defaults are those of Flink ML's ``OnlineKMeans``. ``decay=0`` makes a centre the mean of the rows that
    the *latest* cut gave it, which suits cuts of dozens of rows and more (``learn(rows, every=32)``). **Where a cut
    is a row or two (``every="transaction"``) use ``decay=1``**, or a little less, else a centre is the last row.

    ==========================  =======================================================================
    to get                      declare
    ==========================  =======================================================================
    Flink ML ``OnlineKMeans``   nothing more; ``every=N`` for ``globalBatchSize``; parallelism 1
    MLlib ``StreamingKMeans``   ``decay=1, split_dying=True``; learn empty micro-batches too
    Sculley's mini-batch        ``decay=1``: a centre is the mean of all rows it ever received
    ==========================  =======================================================================

    Args:
        k: number of clusters.
        initial_centers: shape (k, d). Without them the centres start by k-means++ on the first rows: nothing is
            predicted (``ready`` is False) until k different rows have come; they and their numbers are kept, as
            part of the state, and are learned together with the batch that completes them, as one update.
        initial_weights: shape (k,), how many rows each initial centre stands for; zeros when not given: the first
            rows a centre receives replace it.
        decay: what is left of the old weights at an update, from 0 (only the latest cut counts) to 1 (nothing is
            forgotten).
        time_unit: ``"batches"``: ``decay`` is applied once an update, empty ones included. ``"points"``: once a
            row, ``decay ** n`` in all.
        split_dying: after an update, when the smallest weight is below 1e-8 of the largest, the largest cluster
            is split in two and the smallest takes one half.
        seed: of the k-means++ start.

    Raises:
        DeclarationError: an argument is out of its range; says which.

    Sources: D. Sculley, "Web-Scale K-Means Clustering", WWW 2010;
    https://nightlies.apache.org/flink/flink-ml-docs-stable/docs/operators/clustering/onlinekmeans/;
    https://spark.apache.org/docs/latest/mllib-clustering.html#streaming-k-means;
    D. Arthur, S. Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.

    >>> model = KMeans(2, initial_centers=[[0.0], [10.0]], decay=1)
    >>> model.learn(np.array([[1.0], [3.0], [11.0]]))
    >>> model.centers.tolist(), model.weights.tolist()
    ([[2.0], [11.0]], [2.0, 1.0])
    >>> model.predict(np.array([[5.0], [9.0]])).tolist()
    [0, 1]
    """

    traits = LearnerTraits(
        part_rows=BLOCK_ROWS, prediction_type=pa.int64(), offers=frozenset({"partial", "merge", "largest", "adopt"})
    )

    def __init__(
        self,
        k: int,
        *,
        initial_centers: npt.ArrayLike | None = None,
        initial_weights: npt.ArrayLike | None = None,
        decay: float = 0.0,
        time_unit: Literal["batches", "points"] = "batches",
        split_dying: bool = False,
        seed: int = 0,
    ) -> None:
        self.k = _whole("k", k, at_least=1)
        self.decay = _decay(decay)
        if time_unit not in ("batches", "points"):
            raise DeclarationError(f"time_unit is {time_unit!r}", advice='Use "batches" or "points".')
        self.time_unit = time_unit
        self.split_dying = bool(split_dying)
        self.seed = _whole("seed", seed, at_least=0)
        self._initial = _initial(self.k, initial_centers, initial_weights)
        # Arrays are replaced, never changed in place: copies of a learner may share them.
        self._centers: Floats | None = None
        self._weights: Floats | None = None
        if self._initial is not None:
            self._centers, self._weights = self._initial
        self._waiting: Floats | None = None
        self._waiting_counts: Ints | None = None

    def learn(self, X: Array, y: Array | None = None) -> None:
        """Make one update. An empty batch, of shape (0, d) or (0, 0), decays the weights and may split a dying cluster.

        Args:
            X: shape (n, d), numbers.
            y: ignored.

        Raises:
            BadRows: NaN, infinite, not numbers or of another width, with the rows' indexes; nothing was learned.
        """
        rows = self._rows(X)
        if self._centers is None:
            self._start(rows)
        else:
            self._update(*_total(_statistics(rows, self._centers), self._centers.shape))

    def predict(self, X: Array) -> Ints:
        """Return each row's cluster, shape (n,), from 0 to k - 1; among centres equally near, the first.

        Raises:
            BadRows: as for `learn`.
            LearnError: there are no centres yet.
        """
        return nearest(self._rows(X), self.centers)

    def partial(self, X: Array, y: Array | None = None) -> State:
        """Return what `merge` needs of these rows: sums and counts for each cluster, by the centres of now.

        While there are no centres it is the rows themselves. Changes nothing; plain arrays, fit to be sent.

        Raises:
            BadRows: as for `learn`.
        """
        rows = self._rows(X)
        if self._centers is None:
            return {"rows": rows.copy()}
        blocks = list(_statistics(rows, self._centers))
        return {
            "sums": np.array([sums for sums, _ in blocks]).reshape(-1, *self._centers.shape),
            "counts": np.array([counts for _, counts in blocks], np.int64).reshape(-1, self.k),
        }

    def merge(self, parts: Sequence[State]) -> None:
        """Make one update from the parts of one batch, all made by `partial` of a learner in this learner's state.

        Bit for bit what `learn` of the whole batch gives when the parts come in the order of the rows and each
        but the last holds a multiple of ``part_rows`` (1,024) rows. Other parts give the same weights, and
        centres equal up to the rounding of a sum taken in another order.

        Raises:
            LearnError: a part does not fit; nothing was learned.
        """
        if self._centers is None:
            rows = [held for part in parts if len(held := self._part_of(part, "rows", 2))]
            if len({held.shape[1] for held in rows}) > 1:
                raise LearnError(f"parts hold rows of shapes {[held.shape for held in rows]}")
            self.learn(np.concatenate(rows) if rows else np.empty((0, 0)))
            return
        blocks: list[tuple[Floats, Ints]] = []
        for part in parts:
            sums, counts = self._part_of(part, "sums", 3), self._part_of(part, "counts", 2)
            if sums.shape[1:] != self._centers.shape or counts.shape != (len(sums), self.k):
                raise LearnError(f"a part holds sums of shape {sums.shape[1:]}, the centres {self._centers.shape}")
            blocks += zip(sums, counts, strict=True)
        self._update(*_total(blocks, self._centers.shape))

    @property
    def ready(self) -> bool:
        """Return whether there are centres."""
        return self._centers is not None

    @property
    def width(self) -> int | None:
        """Number of features; None until it is known."""
        known = self._waiting if self._centers is None else self._centers
        return None if known is None else int(known.shape[1])

    @property
    def centers(self) -> Floats:
        """The centres, shape (k, d), a copy.

        Raises:
            LearnError: there are none yet.
        """
        if self._centers is None:
            raise LearnError(
                f"k-means has no centres yet: fewer than {self.k} different rows have come",
                advice="Wait for more rows (`ready`), or declare initial_centers.",
            )
        return self._centers.copy()

    @property
    def weights(self) -> Floats:
        """Rows that each centre stands for, decayed, shape (k,), a copy; zeros while there are no centres."""
        return np.zeros(self.k) if self._weights is None else self._weights.copy()

    def parameters(self) -> dict[str, Any]:
        """Return the declared parameters as JSON values."""
        centers, weights = self._initial or (None, None)
        return {
            "k": self.k,
            "initial_centers": None if centers is None else centers.tolist(),
            "initial_weights": None if weights is None else weights.tolist(),
            "decay": self.decay,
            "time_unit": self.time_unit,
            "split_dying": self.split_dying,
            "seed": self.seed,
        }

    def largest(self) -> float:
        """Return the largest absolute number that it holds."""
        return 0.0 if self._centers is None else largest_in((self._centers,))

    def state(self) -> State:
        """``centers`` (k, d) and ``weights`` (k,), or None; ``waiting`` rows and their counts before the start."""
        return {name: None if array is None else array.copy() for name, array in self._arrays().items()}

    def restore(self, state: State) -> None:
        """Take over a `state`.

        Raises:
            LearnError: the state is not one of a k-means of this k; nothing was changed.
        """
        found = {name: state.get(name) for name in self._arrays()}
        shapes = {name: getattr(array, "shape", None) for name, array in found.items()}
        centers, waiting = shapes["centers"], shapes["waiting"]
        fits = centers is None or (len(centers) == 2 and centers[0] == self.k and shapes["weights"] == (self.k,))
        fits &= waiting is None or (len(waiting) == 2 and shapes["waiting_counts"] == waiting[:1])
        if state.keys() != found.keys() or not fits:
            raise LearnError(
                f"not the state of a k-means with k={self.k}: {shapes}",
                advice="Restore it into a learner declared as the one that gave it.",
            )
        for name, array in found.items():
            kind = np.int64 if name == "waiting_counts" else np.float64
            setattr(self, f"_{name}", None if array is None else np.array(array, kind))

    def adopt(self, state: State) -> None:
        """Take over the state of a k-means with other parameters; the number of centers is the same.

        Raises:
            LearnError: it is not, or as for `restore`.
        """
        centers = state.get("centers")
        if isinstance(centers, np.ndarray) and len(centers) != self.k:
            raise LearnError(f"it has learned {len(centers)} centers, and k={self.k} is declared")
        self.restore(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> KMeans:
        """Return a copy that shares the arrays, which are never changed in place: engines copy at every open cut."""
        return copy.copy(self)

    def __repr__(self) -> str:
        return f"KMeans(k={self.k}, decay={self.decay}, time_unit={self.time_unit!r}, split_dying={self.split_dying})"

    def _arrays(self) -> dict[str, Floats | Ints | None]:
        return {
            "centers": self._centers,
            "weights": self._weights,
            "waiting": self._waiting,
            "waiting_counts": self._waiting_counts,
        }

    def _rows(self, X: Array) -> Floats:
        width = self.width
        if type(X) is np.ndarray and X.dtype == np.float64 and X.ndim == 2 and X.flags.c_contiguous:
            if X.shape[1] == width and np.isfinite(X).all():
                return X
            if X.shape == (0, 0):
                return np.empty((0, width or 0))
        rows = as_features(X, width)
        if rows.shape[1] == 0:
            raise BadRows("rows without features", rows=range(len(rows)))
        return rows

    def _part_of(self, part: State, name: str, dimensions: int) -> Array:
        array = part.get(name)
        if not isinstance(array, np.ndarray) or array.ndim != dimensions:
            raise LearnError(
                f"a part has no «{name}» of {dimensions} dimensions: {sorted(part)}",
                advice="Merge only parts made by `partial` of a learner in the same state.",
            )
        return array

    def _start(self, rows: Floats) -> None:
        """Choose centres among the rows so far, or keep waiting; the rows are learned once there are centres."""
        if not len(rows):
            return
        counts = np.ones(len(rows), np.int64)
        kept, kept_counts = self._waiting, self._waiting_counts
        if kept is not None and kept_counts is not None:
            seen, seen_counts = np.concatenate([kept, rows]), np.concatenate([kept_counts, counts])
        else:
            seen, seen_counts = rows, counts
        chosen = plus_plus(seen, seen_counts, self.k, self.seed)
        if len(chosen) < self.k:
            self._waiting = chosen
            self._waiting_counts = np.bincount(nearest(seen, chosen), seen_counts, len(chosen)).astype(np.int64)
            return
        self._centers, self._weights = chosen, np.zeros(self.k)
        self._waiting = self._waiting_counts = None
        earlier = [] if kept is None or kept_counts is None else [_repeated(kept, kept_counts, chosen)]
        self._update(*_total([*earlier, *_statistics(rows, chosen)], chosen.shape))

    def _update(self, sums: Floats, counts: Ints) -> None:
        """Apply the update rule, from the sum and the number of each cluster's new rows."""
        assert self._centers is not None and self._weights is not None
        discount = self.decay if self.time_unit == "batches" else self.decay ** int(counts.sum())
        weights = self._weights * discount + counts
        share = counts / np.maximum(weights, 1e-16)
        per_row = share / np.maximum(counts, 1)
        self._centers = (1.0 - share)[:, None] * self._centers + per_row[:, None] * sums
        self._weights = weights
        if self.split_dying:
            self._split_dying()

    def _split_dying(self) -> None:
        """MLlib's rule: the largest cluster is split when the smallest is dying; the first of equals is taken."""
        assert self._centers is not None and self._weights is not None
        largest, smallest = int(self._weights.argmax()), int(self._weights.argmin())
        most, least = self._weights[largest], self._weights[smallest]
        if not least < 1e-8 * most:
            return
        self._weights[[largest, smallest]] = (most + least) / 2.0
        old = self._centers[largest].copy()
        apart = 1e-14 * np.maximum(np.abs(old), 1.0)
        self._centers[largest] = old + apart
        self._centers[smallest] = old - apart


def _statistics(X: Floats, centers: Floats) -> Iterator[tuple[Floats, Ints]]:
    """For each block of rows: the sums (k, d) and the numbers (k,) of the rows nearest to each centre."""
    for at in range(0, len(X), BLOCK_ROWS):
        block = X[at : at + BLOCK_ROWS]
        labels = nearest(block, centers)
        yield _sums(block, labels, len(centers)), np.bincount(labels, minlength=len(centers))


@np.errstate(over="ignore", invalid="ignore")
def _total(blocks: Iterable[tuple[Floats, Ints]], shape: tuple[int, ...]) -> tuple[Floats, Ints]:
    """Add the blocks' statistics in their order. Sums beyond the largest double saturate: no infinite centres."""
    each = iter(blocks)
    sums, counts = next(each, None) or (np.zeros(shape), np.zeros(shape[0], np.int64))
    for more_sums, more_counts in each:
        sums, counts = sums + more_sums, counts + more_counts
    return (sums if math.isfinite(sums.sum()) else np.nan_to_num(sums)), counts


def _sums(X: Floats, labels: Ints, k: int) -> Floats:
    """Add the rows of each label, shape (k, d): one addition a row in the order of the rows, so fixed bits."""
    d = X.shape[1]
    if d > 8:
        cells = np.arange(k * d).reshape(k, d)[labels]
        return np.bincount(cells.reshape(-1), X.reshape(-1), k * d).reshape(k, d).astype(np.float64, copy=False)
    sums = np.empty((k, d))
    for j in range(d):
        sums[:, j] = np.bincount(labels, X[:, j], k)
    return sums


def _repeated(rows: Floats, counts: Ints, centers: Floats) -> tuple[Floats, Ints]:
    """Return the statistics of rows that came several times."""
    labels, k = nearest(rows, centers), len(centers)
    return _sums(rows * counts[:, None], labels, k), np.bincount(labels, counts, k).astype(np.int64)


@np.errstate(over="ignore", invalid="ignore")
def plus_plus(X: Floats, counts: Ints, k: int, seed: int) -> Floats:
    """k-means++ centres: each drawn with a probability proportional to its squared distance from those before.

    Args:
        X: shape (n, d), at least one row.
        counts: shape (n,), how often each row came.

    Returns:
        Shape (k, d); when there are fewer than k different rows, these, shape (fewer, d).

    >>> plus_plus(np.array([[1.0], [1.0], [2.0]]), np.ones(3, int), 3, seed=0).tolist()
    [[1.0], [2.0]]
    """
    draws = np.random.Generator(np.random.PCG64(seed)).random(k)
    distance = np.ones(len(X))
    chosen: list[int] = []
    for draw in draws:
        reach = np.cumsum(distance * counts)
        if reach[-1] == 0.0:
            break
        target = min(draw * reach[-1], np.nextafter(reach[-1], 0.0))
        chosen.append(int(np.searchsorted(reach, target, "right")))
        latest = squared_distances(X, X[chosen[-1:]])[0]
        distance = np.minimum(np.minimum(latest, _FARTHEST), distance if len(chosen) > 1 else np.inf)
    return X[chosen]


def _whole(name: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise DeclarationError(f"{name} is {value!r}", advice=f"{name} is a whole number from {at_least} on.")
    return int(value)


def _decay(value: Any) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:
        raise DeclarationError(
            f"decay is {value!r}",
            advice="decay lies between 0 (only the latest cut counts) and 1 (nothing is forgotten).",
        )
    return float(value)


def _initial(k: int, centers: npt.ArrayLike | None, weights: npt.ArrayLike | None) -> tuple[Floats, Floats] | None:
    """Return the declared start, checked."""
    if centers is None:
        if weights is not None:
            raise DeclarationError("initial_weights without initial_centers", advice="Give both, or neither.")
        return None
    places = _numbers("initial_centers", centers)
    if places.ndim != 2 or places.shape[0] != k or places.shape[1] == 0:
        raise DeclarationError(
            f"initial_centers has shape {places.shape}",
            advice=f"One row for each of the {k} clusters: ({k}, features).",
        )
    amounts = np.zeros(k) if weights is None else _numbers("initial_weights", weights)
    if amounts.shape != (k,) or (amounts < 0).any():
        raise DeclarationError(
            f"initial_weights is {amounts.tolist()}", advice=f"{k} numbers from 0 on, one for each cluster."
        )
    return places, amounts


def _numbers(name: str, value: npt.ArrayLike) -> Floats:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise DeclarationError(
            f"{name} is not an array of numbers: {error}", advice="Lists of equal length."
        ) from error
    if not np.isfinite(array).all():
        raise DeclarationError(f"{name} holds NaN or infinity", advice="Give finite numbers.")
    return array


@np.errstate(over="ignore", invalid="ignore")
def nearest(X: Floats, centers: Floats) -> Ints:
    """Return the index of each row's nearest centre; the first among equals.

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
    """Return distances, shape (k, n), element by element: a value's bits depend on its row and its centre alone."""
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
    """Return each row's lowest score: where, and how far below the second lowest. Overwrites ``scores``."""
    flat = scores.reshape(-1)
    labels = scores.argmin(axis=1)
    lowest = labels + first
    best = flat[lowest]
    flat[lowest] = np.inf
    return labels, flat[scores.argmin(axis=1) + first] - best
