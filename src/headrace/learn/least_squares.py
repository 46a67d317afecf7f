"""Least squares from exact cross products, with the rules of R's ``lm``: what is aliased, what a summary says.

The normal equations square a matrix's condition, which costs half of the digits. Here they are known exactly and
solved with 76 digits, so that a coefficient is right to the last bit of a double wherever ``lm``, with its QR of the
rows in 16 digits, still tells a column from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.arrays import Floats
from headrace.learn.cross_products import CrossProducts

_CONTEXT = Context(prec=76, Emax=MAX_EMAX, Emin=MIN_EMIN)
_NOISE = Decimal("1e-60")  # of the sum of squares: a residual below that is a perfect fit's
_as_decimals = np.frompyfunc(Decimal, 1, 1)


@dataclass(frozen=True, slots=True)
class Fit:
    """A least-squares fit.

    Attributes:
        intercept: 0.0 where there is none.
        intercept_error: its standard error; NaN without degrees of freedom, and where there is no intercept.
        coefficients: shape (columns,), in the order asked for; NaN where the column is aliased.
        standard_errors: shape (columns,); NaN likewise, and everywhere without degrees of freedom.
        aliased: shape (columns,), which columns are linear combinations of those before them.
        rank: coefficients that were estimated, the intercept's included.
        r_squared, adjusted_r_squared: NaN where R says so; 0.0 where nothing but an intercept is estimated.
        residual_standard_error: NaN without degrees of freedom.
    """

    intercept: float
    intercept_error: float
    coefficients: Floats
    standard_errors: Floats
    aliased: npt.NDArray[np.bool_]
    rank: int
    r_squared: float
    adjusted_r_squared: float
    residual_standard_error: float


def fit(sums: CrossProducts, columns: Sequence[int], *, rows: int, intercept: bool, tolerance: float) -> Fit:
    """The last column of the products by the given ones.

    Args:
        sums: of the columns [1, features…, target].
        columns: indexes of the features to use, in the order in which they are tried.
        rows: how many rows of positive weight there are, for the degrees of freedom.
        intercept: whether column 0 is used, before the others.
        tolerance: a column is aliased when what those before it leave of it is shorter than this part of its length.

    Source: the rule is that of LINPACK's ``dqrdc2`` as changed for R (``tol`` of ``lm.fit``); the elimination is
    J. H. Goodnight, "A Tutorial on the SWEEP Operator", The American Statistician 33, 1979.

    >>> from headrace.learn.cross_products import cross_products
    >>> sums = cross_products(np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 5.0]]))
    >>> found = fit(sums, [1], rows=3, intercept=True, tolerance=1e-7)
    >>> found.intercept, found.coefficients.tolist(), found.r_squared
    (-1.0, [2.0], 1.0)
    """
    with localcontext(_CONTEXT):
        used = [place for place, column in enumerate(columns) if sums.whole[column, column]]
        table, means, limits = _equations(sums, [columns[place] for place in used], intercept, tolerance)
        total = table[-1, -1]
        table, kept = _swept(table, limits)
        residual = table[-1, -1] if table[-1, -1] > total * _NOISE else Decimal(0)
        places = [used[k] for k in kept]
        aliased = np.ones(len(columns), np.bool_)
        aliased[places] = False
        slopes, inverse = table[kept, -1], table[np.ix_(kept, kept)]
        freedom = rows - len(kept) - intercept
        variance = residual / freedom if freedom > 0 else Decimal("NaN")
        constant, spread = Decimal(0), Decimal("NaN")
        if intercept:
            constant = means[-1] - (slopes * means[kept]).sum()
            weight = Decimal(2) ** -sums.exponent / Decimal(sums.whole[0, 0])
            spread = weight + (means[kept] * inverse * means[kept][:, None]).sum()
        return Fit(
            intercept=float(constant),
            intercept_error=_root(spread * variance),
            coefficients=_placed(len(columns), places, [float(slope) for slope in slopes]),
            standard_errors=_placed(len(columns), places, [_root(inverse[k, k] * variance) for k in range(len(kept))]),
            aliased=aliased,
            rank=len(kept) + intercept,
            **_quality(residual, total, estimated=len(kept), freedom=freedom, rows=rows - intercept),
        )


def _equations(sums: CrossProducts, columns: list[int], intercept: bool, tolerance: float) -> tuple[Any, Any, Any]:
    """The products of columns and target, about their means with an intercept; the means; the least pivots.

    Means are taken off in integers: nothing is lost by columns that are far from zero.
    """
    chosen = [*columns, len(sums) - 1]
    whole: Any = sums.whole[np.ix_(chosen, chosen)]
    first, count = sums.whole[0, chosen], sums.whole[0, 0]
    unit = Decimal(2) ** sums.exponent
    lengths = _as_decimals(whole.diagonal()) * unit
    limits = lengths * Decimal(tolerance) ** 2
    if not intercept:
        return _as_decimals(whole) * unit, None, limits
    centred = _as_decimals(whole * count - np.multiply.outer(first, first)) * (unit / Decimal(count))
    return centred, _as_decimals(first) / Decimal(count), limits


def _swept(table: Any, limits: Any) -> tuple[Any, list[int]]:
    """Sweep one column after the other, but the last one, and leave out those with nothing of their own left.

    Returns:
        The swept table: coefficients in the last column, the residual sum of squares in the corner, the inverse in
        the rest; and the columns that were swept.
    """
    kept = []
    for k in range(len(table) - 1):
        pivot = table[k, k]
        if pivot <= 0 or pivot < limits[k]:
            continue
        column, row = table[:, k].copy(), table[k] / pivot
        table = table - np.multiply.outer(column, row)
        table[k], table[:, k], table[k, k] = row, -column / pivot, 1 / pivot
        kept.append(k)
    return table, kept


def _quality(residual: Decimal, total: Decimal, *, estimated: int, freedom: int, rows: int) -> dict[str, float]:
    """What ``summary.lm`` says of a fit; ``rows`` less one for an intercept."""
    nan = float("nan")
    r_squared = adjusted = 0.0
    if estimated:
        share = residual / total if total else Decimal("NaN")
        r_squared = float(1 - share)
        adjusted = float(1 - share * rows / freedom) if freedom > 0 else nan
    return {
        "r_squared": r_squared,
        "adjusted_r_squared": adjusted,
        "residual_standard_error": _root(residual / freedom) if freedom > 0 else nan,
    }


def _root(value: Decimal) -> float:
    return float(value.sqrt())


def _placed(size: int, places: list[int], values: list[float]) -> Floats:
    placed = np.full(size, np.nan)
    placed[places] = values
    return placed
