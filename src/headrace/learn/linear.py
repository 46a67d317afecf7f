"""Linear regression on a stream: exact least squares, as R's ``lm`` has it.

The normal equations square a matrix's condition, which costs half of the digits. Here they are known exactly and
solved with 76 digits, so that a coefficient is right to the last bit of a double wherever ``lm``, with its QR of the
rows in 16 digits, still tells a column from the others.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.arrays import Array, Floats
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.base import LearnerTraits, State, as_features
from headrace.learn.cross_products import CrossProducts, cross_products, nothing, unpacked

Name = str | tuple[str, str | None]
Row = tuple[CrossProducts, int]
INTERCEPT = "(Intercept)"
_CONTEXT = Context(prec=76, Emax=MAX_EMAX, Emin=MIN_EMIN)
_NOISE = Decimal("1e-60")  # of the sum of squares: a residual below that is a perfect fit's
_as_decimals = np.frompyfunc(Decimal, 1, 1)


class LinearRegression:
    """Least squares on all rows learned so far, whatever the cuts they came in.

    It keeps the sums of the products of its columns, exactly, as integers. Therefore

    - `unlearn` takes rows out without a trace: the state is bit for bit that of a learner that never had them;
    - rows learned one by one, at once, in another order, or as parts of other processes give the same bits, and no
      CPU, BLAS or number of threads changes one;
    - coefficients are those of the exact solution, rounded once: columns far from zero cost no accuracy.

    The first prediction after a change solves for the coefficients: 0.4 ms for 4 columns that are not all zero, 0.3 s
    for 100, 4 s for 200.

    It forgets nothing; to follow a stream that changes, unlearn old rows or retrain on recent ones.

    A column that the intercept and the columns before it explain has no coefficient, as in R (``NA``), and counts as
    0 in predictions. `headrace.category` columns can so be used as they are, one-hot coded and with columns that wait
    for words to come: with one word in the rows its column is as constant as the intercept, and any other word
    is predicted alike; with more, predictions are those of R's treatment coding, and a word that was never learned is
    predicted as the last of the known words.

    Args:
        intercept: whether there is a constant.
        tolerance: what counts as explained: what is left of the column is shorter than this part of its length
            (the root of its sum of squares). 1e-7 is R's. A column far from zero that hardly varies, such as times
            in milliseconds during one minute, is constant by this rule: subtract its beginning, or declare
            a smaller tolerance, down to 1e-15; accuracy does not suffer.

    Raises:
        DeclarationError: the tolerance is out of its range.

    Sources: ``lm``, ``summary.lm`` and ``contr.treatment`` of R 4.5, https://stat.ethz.ch/R-manual/.

    >>> model = LinearRegression()
    >>> model.learn(np.array([[1.0], [2.0], [3.0]]), np.array([3.0, 5.0, 7.0]))
    >>> model.coefficients(["length"])
    {'(Intercept)': 1.0, 'length': 2.0}
    >>> model.predict(np.array([[10.0]])).tolist()
    [21.0]
    """

    traits = LearnerTraits(
        splits="exact",
        part_rows=1,
        rowwise=True,
        needs_target=True,
        takes_sample_weight=True,
        prediction_type=pa.float64(),
        offers=frozenset({"unlearn", "partial", "merge", "adopt"}),
    )

    def __init__(self, *, intercept: bool = True, tolerance: float = 1e-7) -> None:
        number = isinstance(tolerance, (int, float, np.floating)) and not isinstance(tolerance, bool)
        if not number or not 1e-15 <= tolerance < 1.0:
            raise DeclarationError(
                f"tolerance is {tolerance!r}", advice="tolerance lies between 1e-15 and 1; R's is 1e-7."
            )
        self.intercept = bool(intercept)
        self.tolerance = float(tolerance)
        # Replaced, never changed in place: copies of a learner may share them.
        self._sums: CrossProducts | None = None
        self._rows = 0
        self._fit: Fit | None = None

    def learn(self, X: Array, y: Array | None = None, sample_weight: Array | None = None) -> None:
        """Add rows.

        Args:
            X: shape (n, d), numbers.
            y: shape (n,), the targets.
            sample_weight: shape (n,), from 0 on; a row of weight 0 changes nothing. Without it each row has weight 1.

        Raises:
            BadRows: NaN, infinite, not numbers, of another width, a negative weight, with the rows' indexes; nothing
                was learned.
        """
        sums, rows = self._summed(X, y, sample_weight)
        if rows:
            self._take(sums if self._sums is None else self._sums + sums, self._rows + rows)

    def unlearn(self, X: Array, y: Array | None = None, sample_weight: Array | None = None) -> None:
        """Take rows out that were learned with these weights: afterwards the state is as if they had never come.

        Raises:
            BadRows: as for `learn`.
            LearnError: these rows cannot have been learned; nothing was changed.
        """
        sums, rows = self._summed(X, y, sample_weight)
        if not rows:
            return
        left = (nothing(len(sums)) if self._sums is None else self._sums) - sums
        if self._rows < rows or (left.whole.diagonal() < 0).any() or left.nothing != (self._rows == rows):
            raise LearnError(
                f"{rows} rows to unlearn were not all learned: {self._rows} rows were",
                advice="Unlearn a row with the features, target and weight with which it was learned, and once.",
            )
        self._take(left, self._rows - rows)

    def partial(self, X: Array, y: Array | None = None, sample_weight: Array | None = None) -> State:
        """Return what `merge` needs of these rows: a state. Changes nothing; plain values, fit to be sent.

        Raises:
            BadRows: as for `learn`.
        """
        return _state(*self._summed(X, y, sample_weight))

    def merge(self, parts: Sequence[State]) -> None:
        """Learn the rows of parts made by `partial`, in any order: bit for bit what `learn` of the rows gives.

        Raises:
            LearnError: a part does not fit; nothing was learned.
        """
        sums, rows = self._sums, self._rows
        for part in parts:
            found = _read(part)
            if found is None:
                continue
            if sums is not None and len(found[0]) != len(sums):
                raise LearnError(
                    f"a part has {len(found[0]) - 2} features, the others {len(sums) - 2}",
                    advice="Merge only parts of rows with the same features.",
                )
            sums, rows = found[0] if sums is None else sums + found[0], rows + found[1]
        if sums is not None:
            self._take(sums, rows)

    def predict(self, X: Array) -> Floats:
        """Return predictions of shape (n,), float64. A row's prediction does not depend on its neighbours.

        Raises:
            BadRows: as for `learn`.
            LearnError: no row was learned.
        """
        found, rows = self._found, self._checked(X)
        predicted = np.full(len(rows), found.intercept)
        with np.errstate(over="ignore", invalid="ignore"):
            for j in np.flatnonzero(~found.aliased).tolist():  # in order, so that no bit depends on BLAS
                predicted += rows[:, j] * found.coefficients[j]
        return predicted

    @property
    def ready(self) -> bool:
        """Return whether a row was learned."""
        return self._rows > 0

    @property
    def width(self) -> int | None:
        """Number of features; None until it is known."""
        return None if self._sums is None else len(self._sums) - 2

    @property
    def rows(self) -> int:
        """Return how many rows of positive weight the fit is made of."""
        return self._rows

    @property
    def r_squared(self) -> float:
        """R's multiple R-squared: with an intercept about the mean, without one about 0. NaN for a constant target.

        Raises:
            LearnError: no row was learned.
        """
        return self._found.r_squared

    @property
    def adjusted_r_squared(self) -> float:
        """R's adjusted R-squared; NaN without degrees of freedom.

        Raises:
            LearnError: no row was learned.
        """
        return self._found.adjusted_r_squared

    @property
    def residual_standard_error(self) -> float:
        """R's residual standard error; NaN without degrees of freedom.

        Raises:
            LearnError: no row was learned.
        """
        return self._found.residual_standard_error

    @property
    def plane(self) -> tuple[float, Floats]:
        """Intercept, and a coefficient for each column of X, shape (d,): 0 where it is aliased.

        Raises:
            LearnError: no row was learned.
        """
        found = self._found
        return found.intercept, np.where(found.aliased, 0.0, found.coefficients)

    def coefficients(self, names: Sequence[Name]) -> dict[str, float | None]:
        """Return the coefficients as R's ``lm`` names, codes and orders them; None where R says ``NA``.

        Args:
            names: one for each column of X: the name of a column of numbers, or (column, word) for each column of
                a one-hot category, the word None where none has taken the column yet.

        Of a category's words only those in the learned rows appear; the first of them in the order of their code
        points is the base, part of the intercept. Without an intercept the first category keeps its base.

        Raises:
            DeclarationError: not one name for each column, or a name twice.
            LearnError: no row was learned.

        >>> model = LinearRegression()
        >>> model.learn(np.array([[1, 1, 0], [2, 1, 0], [1, 0, 1], [2, 0, 1]]), np.array([1, 2, 3, 4]))
        >>> model.coefficients(["Length", ("Species", "walleye"), ("Species", "salmon")])
        {'(Intercept)': 2.0, 'Length': 1.0, 'Specieswalleye': -2.0}
        """
        found, labels = self._in_treatment_coding(names)
        shown: dict[str, float | None] = {INTERCEPT: found.intercept} if self.intercept else {}
        return shown | _named(labels, found.coefficients, found)

    def standard_errors(self, names: Sequence[Name]) -> dict[str, float | None]:
        """Return the standard errors of `coefficients`: NaN without degrees of freedom, None where R says ``NA``.

        Raises:
            DeclarationError, LearnError: as for `coefficients`.
        """
        found, labels = self._in_treatment_coding(names)
        shown: dict[str, float | None] = {INTERCEPT: found.intercept_error} if self.intercept else {}
        return shown | _named(labels, found.standard_errors, found)

    def parameters(self) -> dict[str, Any]:
        """Return the declared parameters as JSON values."""
        return {"intercept": self.intercept, "tolerance": self.tolerance}

    def state(self) -> State:
        """``sums``: the upper triangle of the sums of products of [1, X, y], integers of some bytes, shape
        (cells, bytes), None before the first row; they are multiplied by 2 to the ``exponent``; and ``rows``."""
        return _state(self._sums, self._rows)

    def restore(self, state: State) -> None:
        """Take over a `state`.

        Raises:
            LearnError: not the state of a linear regression; nothing was changed.
        """
        found = _read(state)
        self._sums, self._rows = found or (None, 0)
        self._fit = None

    def adopt(self, state: State) -> None:
        """Take over the state of a linear regression with other parameters: sums of products depend on none."""
        self.restore(state)

    def __deepcopy__(self, memo: dict[int, Any]) -> LinearRegression:
        """Return a copy that shares the sums, which are never changed in place: engines copy at every open cut."""
        return copy.copy(self)

    def __repr__(self) -> str:
        return f"LinearRegression(intercept={self.intercept}, tolerance={self.tolerance})"

    @property
    def _found(self) -> Fit:
        """The fit in the order of X's columns, made once for each state."""
        if self._fit is None:
            sums = self._learned()
            self._fit = self._fitted(sums, range(1, len(sums) - 1))
        return self._fit

    def _learned(self) -> CrossProducts:
        if self._sums is None:
            raise LearnError("the linear regression has learned no row yet", advice="Wait for rows (`ready`).")
        return self._sums

    def _fitted(self, sums: CrossProducts, columns: Sequence[int]) -> Fit:
        return fit(sums, columns, rows=self._rows, intercept=self.intercept, tolerance=self.tolerance)

    def _in_treatment_coding(self, names: Sequence[Name]) -> tuple[Fit, list[str]]:
        sums = self._learned()
        if len(names) != len(sums) - 2:
            raise DeclarationError(f"{len(names)} names for {len(sums) - 2} columns", advice="Name each column of X.")
        columns = _treatment_columns(sums, names, intercept=self.intercept)
        return self._fitted(sums, list(columns.values())), list(columns)

    def _take(self, sums: CrossProducts, rows: int) -> None:
        self._sums, self._rows, self._fit = (sums if rows else None), rows, None

    def _checked(self, X: Array) -> Floats:
        width = self.width
        if getattr(X, "shape", None) == (0, 0):
            return np.empty((0, width or 0))
        rows: Floats = as_features(X, width)
        if rows.shape[1] == 0:
            raise BadRows("rows without features", rows=range(len(rows)))
        return rows

    def _summed(self, X: Array, y: Array | None, weight: Array | None) -> Row:
        """Return the sums of the products of the columns [1, X, y], and how many rows of positive weight there are."""
        rows = self._checked(X)
        targets = _column("target", y, len(rows))
        weights = None if weight is None else _column("sample weight", weight, len(rows))
        if weights is not None and (weights < 0).any():
            bad = np.flatnonzero(weights < 0)
            raise BadRows(f"row {bad[0]} has the sample weight {weights[bad[0]]}", rows=bad.tolist())
        columns = np.empty((rows.shape[1] + 2, len(rows)))
        columns[0], columns[1:-1], columns[-1] = 1.0, rows.T, targets
        count = len(rows) if weights is None else int(np.count_nonzero(weights))
        return cross_products(columns, weights), count


def _column(what: str, values: Array | None, n: int) -> Floats:
    """Return one number a row."""
    given = np.asarray([] if values is None and not n else values)
    if values is None and n:
        raise BadRows(f"rows without a {what}", rows=range(n))
    if given.shape != (n,) or given.dtype.kind not in "fiub":
        raise BadRows(f"a {what} must be one number a row, got {given.dtype}, shape {given.shape}", rows=range(n))
    column = given.astype(np.float64, copy=False)
    if not np.isfinite(column).all():
        bad = np.flatnonzero(~np.isfinite(column))
        raise BadRows(f"row {bad[0]} has a {what} that is {column[bad[0]]}", rows=bad.tolist())
    return column


def _state(sums: CrossProducts | None, rows: int) -> State:
    if sums is None or not rows:
        return {"sums": None, "exponent": 0, "rows": 0}
    return {"sums": sums.packed(), "exponent": sums.exponent, "rows": rows}


def _read(state: State) -> Row | None:
    """Return the inverse of `_state`, checked."""
    sums, exponent, rows = state.get("sums"), state.get("exponent"), state.get("rows")
    if len(state) == 3 and sums is None and exponent == rows == 0:
        return None
    try:
        if len(state) != 3 or type(exponent) is not int or type(rows) is not int or not isinstance(sums, np.ndarray):
            raise ValueError("sums, exponent and rows are expected")
        found = unpacked(sums, exponent)
        if len(found) < 3 or rows < 1 or found.nothing or (found.whole.diagonal() < 0).any():
            raise ValueError(f"no sums of {rows} rows")
    except ValueError as error:
        raise LearnError(
            f"not the state of a linear regression: {sorted(state)}: {error}",
            advice="Restore or merge what `state` or `partial` of a LinearRegression gave.",
        ) from error
    return found, rows


def _treatment_columns(sums: CrossProducts, names: Sequence[Name], *, intercept: bool) -> dict[str, int]:
    """R's names of the columns that R's coding uses, in R's order, with their indexes in the sums."""
    labelled: list[tuple[str, int]] = []
    categories: dict[str, dict[str, int]] = {}
    for at, name in enumerate(names, start=1):
        if isinstance(name, str):
            labelled.append((name, at))
            continue
        column, word = name
        if column not in categories:
            categories[column] = {}
            labelled.append((column, 0))
        if sums.whole[at, at]:
            if word is None or word in categories[column]:
                raise DeclarationError(
                    f"column {at - 1} of X, of the category «{column}», holds rows of the word {word!r}",
                    advice="Name each word that has a column, once.",
                )
            categories[column][word] = at
    found: list[tuple[str, int]] = []
    for label, at in labelled:
        if at:
            found.append((label, at))
            continue
        words = sorted(categories[label].items())
        if _cover(sums, [at for _, at in words]):
            words, intercept = words[1 if intercept else 0 :], True
        found += [(label + word, at) for word, at in words]
    if len({label for label, _ in found}) < len(found):
        raise DeclarationError(f"a name comes twice: {[label for label, _ in found]}", advice="Give each its own.")
    return dict(found)


def _cover(sums: CrossProducts, columns: list[int]) -> bool:
    """Return whether every row has a 1 in one of these columns and zeros in the others."""
    each = sums.whole[np.ix_(columns, columns)]
    shares = sums.whole[0, columns]
    return bool(columns) and bool((each == np.diag(shares)).all()) and shares.sum() == sums.whole[0, 0]


def _named(labels: list[str], values: Floats, found: Fit) -> dict[str, float | None]:
    triples = zip(labels, values.tolist(), found.aliased.tolist(), strict=True)
    return {label: None if aliased else value for label, value, aliased in triples}


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
    """Return the last column of the products by the given ones.

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
    """Return the products of columns and target, about their means with an intercept; the means; the least pivots.

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
    """Return what ``summary.lm`` says of a fit; ``rows`` less one for an intercept."""
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
