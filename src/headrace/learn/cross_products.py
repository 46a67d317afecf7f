"""Sums of products of columns, exactly: integers times one power of two, the same whatever the order and the CPU.

A double is an integer times a power of two, so a sum of products of doubles is one too, and Python's integers hold
it without rounding. The work is done by matrix products all the same: each column is cut into digits of a few bits,
so small that the products of two digits, summed over a block of rows, are whole numbers below 2**53. Every partial
sum is then exact, and neither the order in which BLAS adds nor its threads can change a bit.

Sums like these can be taken back: ``a + b - b`` is ``a``. Rows that differ by 600 orders of magnitude cost time and
longer integers, and no accuracy.

Source: K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, "Error-free transformations of matrix multiplication by using fast
routines of matrix multiplication and its applications", Numerical Algorithms 59, 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats, Ints

Objects = npt.NDArray[np.object_]

_BLOCK_ROWS = 512  # rows whose products are added in doubles
_CHUNK_ROWS = 4096  # rows whose products are added in 64-bit integers: 2**12 rows, 2**44 each, 96 pairs of digits
_BITS = 22  # of a digit: 2 * 22 + 9 for the 512 rows are 53
_WEIGHTED_BITS = 14  # three digits are multiplied: 3 * 14 + 9 < 53
_TILE = 22  # rows and columns of a product: 22 * 22 * 512 multiplications, for which OpenBLAS wakes no thread
_EXPONENT = 4096  # of sums: the lowest is that of three of the smallest doubles, 3 * -1074
_FEW_ROWS = 16  # rows up to which Python's integers are faster


@dataclass(frozen=True, slots=True, eq=False)
class CrossProducts:
    """The matrix ``sum(w * z z')`` over rows ``z`` of k columns, exactly.

    Attributes:
        whole: shape (k, k), symmetric, Python integers; never changed in place.
        exponent: a cell is ``whole * 2**exponent``, with the largest exponent there is for these values (0 where
            all of them are 0): equal sums have equal attributes.
    """

    whole: Objects
    exponent: int

    def __add__(self, other: CrossProducts) -> CrossProducts:
        low = min(self.exponent, other.exponent)
        return _normal(self._at(low) + other._at(low), low)

    def __sub__(self, other: CrossProducts) -> CrossProducts:
        low = min(self.exponent, other.exponent)
        return _normal(self._at(low) - other._at(low), low)

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def nothing(self) -> bool:
        """Return whether every sum is 0."""
        return not self.whole.any()

    def packed(self) -> npt.NDArray[np.uint8]:
        """Return the upper triangle, row by row, as two's complement: shape (k (k + 1) / 2, bytes), little-endian."""
        cells = self.whole[np.triu_indices(len(self.whole))].tolist()
        size = max((cell.bit_length() // 8 + 1 for cell in cells), default=1)
        data = b"".join(cell.to_bytes(size, "little", signed=True) for cell in cells)
        return np.frombuffer(data, np.uint8).reshape(len(cells), size).copy()

    def _at(self, exponent: int) -> Objects:
        """Return the integers for a lower exponent."""
        shifted: Objects = self.whole if exponent == self.exponent else self.whole << (self.exponent - exponent)
        return shifted


def unpacked(data: npt.NDArray[np.uint8], exponent: int) -> CrossProducts:
    """Return the inverse of `CrossProducts.packed`.

    Raises:
        ValueError: the shape is not one of a triangle, or the exponent is none that doubles can lead to.

    >>> sums = cross_products(np.array([[1.0, 1.0], [0.5, -3.0]]))
    >>> unpacked(sums.packed(), sums.exponent).whole.tolist()
    [[8, -10], [-10, 37]]
    """
    size = (math.isqrt(8 * len(data) + 1) - 1) // 2
    if data.dtype != np.uint8 or data.ndim != 2 or not data.shape[1] or size * (size + 1) // 2 != len(data):
        raise ValueError(f"no triangle of integers: {data.dtype}, shape {data.shape}")
    if abs(exponent) > _EXPONENT:
        raise ValueError(f"no product of three doubles is a multiple of 2**{exponent}")
    rows, columns = np.triu_indices(size)
    whole = np.zeros((size, size), object)
    whole[rows, columns] = [int.from_bytes(cell.tobytes(), "little", signed=True) for cell in data]
    whole[columns, rows] = whole[rows, columns]
    return _normal(whole, exponent)


def nothing(size: int) -> CrossProducts:
    """Return the sums of no rows, of ``size`` columns."""
    return CrossProducts(np.zeros((size, size), object), 0)


def cross_products(columns: Floats, weights: Floats | None = None) -> CrossProducts:
    """Return the sums of the products of any two columns.

    Args:
        columns: shape (k, n), finite; one column of the table in a row of the array.
        weights: shape (n,), finite; each row's product is multiplied by its weight.

    >>> sums = cross_products(np.array([[1.0, 1.0], [1e10, 1e-10]]))
    >>> bool(1e10 + 1e-10 == 1e10), sums.whole[0, 1] * 2.0**sums.exponent
    (True, 10000000000.0)
    >>> rest = sums - cross_products(np.array([[1.0], [1e10]]))
    >>> rest.whole[0, 1] * 2.0**rest.exponent
    1e-10
    """
    if columns.shape[1] <= _FEW_ROWS:
        return _of_few(columns, weights)
    total = nothing(len(columns))
    for at in range(0, columns.shape[1], _CHUNK_ROWS):
        chunk = slice(at, at + _CHUNK_ROWS)
        total += _of_chunk(columns[:, chunk], None if weights is None else weights[chunk])
    return total


def _of_few(columns: Floats, weights: Floats | None) -> CrossProducts:
    """Return the same for few rows, by Python's integers."""
    total = nothing(len(columns))
    used = np.flatnonzero(columns.any(axis=1))
    if not len(used):
        return total
    right, unit = _integers(columns[used])
    left, exponent = right, 2 * unit
    if weights is not None:
        factors, unit = _integers(weights)
        left, exponent = right * factors, exponent + unit
    total.whole[np.ix_(used, used)] = left @ right.T
    return _normal(total.whole, exponent)


def _integers(values: Floats) -> tuple[Objects, int]:
    """Doubles as integers and the power of two by which they are multiplied."""
    mantissa, exponent = np.frexp(values)
    low = int(exponent[mantissa != 0.0].min(initial=2000))
    shift = np.where(mantissa != 0.0, exponent - low, 0)
    whole: Objects = np.ldexp(mantissa, 53).astype(np.int64).astype(object) << shift.astype(object)
    return whole, low - 53


@dataclass(frozen=True, slots=True)
class _Digits:
    """Columns in parts of a few bits: a column is the sum of its digits, each times a power of two.

    Attributes:
        values: shape (m, n), whole numbers below 2**bits.
        column: shape (m,), whose digits these are.
        place: shape (m,), how many digits of the same column come before, left-out zeros counted.
        top: shape (k,), every value of a column is below ``2**top``.
        bits: of a digit.
    """

    values: Floats
    column: Ints
    place: Ints
    top: Ints
    bits: int

    @property
    def exponents(self) -> Ints:
        """Shape (m,), a digit's unit as a power of two."""
        units: Ints = self.top[self.column] - (self.place + 1) * self.bits
        return units


def _digits(columns: Floats, bits: int) -> _Digits:
    """Cut until nothing is left. What is left of a column is always smaller than the unit of its last digit."""
    rest, column = columns, np.arange(len(columns))
    top = np.zeros(len(columns), np.int64)
    values: list[Floats] = []
    owners, places = [], []
    while True:
        exponent = np.frexp(np.abs(rest).max(axis=1, initial=0.0))
        some = np.flatnonzero(exponent[0])
        if not len(some):
            break
        rest = rest[some] if len(some) < len(rest) else rest
        column, exponents = column[some], exponent[1][some].astype(np.int64)
        if not values:
            top[column] = exponents
        place = (top[column] - exponents) // bits
        unit = top[column] - (place + 1) * bits
        digit = np.trunc(_scaled(rest, -unit))
        rest = rest - _scaled(digit, unit)
        values.append(digit)
        owners.append(column)
        places.append(place)
    if not values:
        return _Digits(np.zeros((0, columns.shape[1])), np.zeros(0, np.int64), np.zeros(0, np.int64), top, bits)
    return _Digits(np.concatenate(values), np.concatenate(owners), np.concatenate(places), top, bits)


def _scaled(rows: Floats, exponents: Ints) -> Floats:
    """Return each row times its power of two; a product far below 1 may vanish, as its whole part is 0 anyway."""
    if exponents.min() >= -1022 and exponents.max() <= 1023:
        scaled: Floats = rows * np.ldexp(1.0, exponents)[:, None]
        return scaled
    return np.asarray(np.ldexp(rows, exponents[:, None]), np.float64)


def _of_chunk(columns: Floats, weights: Floats | None) -> CrossProducts:
    """Return the same for at most 4,096 rows, by products of digits."""
    digits = _digits(columns, _BITS if weights is None else _WEIGHTED_BITS)
    used = np.flatnonzero(np.bincount(digits.column, minlength=len(columns)))
    if not len(used):
        return nothing(len(columns))
    if weights is None:
        return _folded(_products(digits.values, digits.values), digits, used)
    total, factors = nothing(len(columns)), _digits(weights[None], _WEIGHTED_BITS)
    for factor, exponent in zip(factors.values, factors.exponents.tolist(), strict=True):
        part = _folded(_products(digits.values * factor, digits.values), digits, used)
        total += CrossProducts(part.whole, part.exponent + exponent)
    return total


def _products(left: Floats, right: Floats) -> Ints:
    """``left @ right.T``, a symmetric matrix, in 64-bit integers: by blocks of rows whose sums are exact in doubles.

    It is made of small products: the threads of BLAS, once woken, spin for work beside those of capture.
    """
    size = len(right)
    tiles = [slice(at, at + _TILE) for at in range(0, size, _TILE)]
    right = right.copy() if left is right else right  # NumPy has another routine for ``a @ a.T``, which wakes them
    total, block = np.zeros((size, size), np.int64), np.zeros((size, size))
    for at in range(0, left.shape[1], _BLOCK_ROWS):
        some, others = left[:, at : at + _BLOCK_ROWS], right[:, at : at + _BLOCK_ROWS].T
        for t, tile in enumerate(tiles):
            for other in tiles[t:]:
                block[tile, other] = some[tile] @ others[:, other]
        total += block.astype(np.int64)
    upper = np.triu(total)
    whole: Ints = upper + np.triu(total, 1).T
    return whole


def _folded(products: Ints, digits: _Digits, used: Ints) -> CrossProducts:
    """Return the digits' products put together to those of the columns: those of the same unit first, then by place."""
    position = np.zeros(len(digits.top), np.int64)
    position[used] = np.arange(len(used))
    owner, depth = position[digits.column], 2 * int(digits.place.max()) + 1
    by_place = np.zeros((depth, len(used), len(used)), np.int64)
    np.add.at(by_place, (digits.place[:, None] + digits.place, owner[:, None], owner), products)
    folded: Any = np.zeros((len(used), len(used)), object)
    for layer in by_place:
        folded = (folded << digits.bits) + layer.astype(object)
    top = digits.top[used]
    above = top - top.min()
    whole = np.zeros((len(digits.top), len(digits.top)), object)
    whole[np.ix_(used, used)] = folded << (above[:, None] + above).astype(object)
    return _normal(whole, 2 * int(top.min()) - (depth + 1) * digits.bits)


def _normal(whole: Any, exponent: int) -> CrossProducts:
    """Common trailing zeros go into the exponent."""
    marks = int(np.bitwise_or.reduce(whole, axis=None))
    if not marks:
        return CrossProducts(whole, 0)
    zeros = (marks & -marks).bit_length() - 1
    return CrossProducts(whole >> zeros if zeros else whole, exponent + zeros)
