"""Linear regression: what `lm` says, exactly; aliased columns, R's coding, rows taken out again."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.arrays import Floats
from headrace.errors import BadRows, DeclarationError, LearnError
from headrace.learn.linear import LinearRegression
from headrace.learn.state import dump_state, state_hash

RNG = np.random.default_rng(6)
NAN = math.nan


def learned(X: Any, y: Any, weights: Any = None, **options: Any) -> LinearRegression:
    model = LinearRegression(**options)
    model.learn(np.asarray(X, np.float64), np.asarray(y, np.float64), weights)
    return model


def numbers(named: dict[str, float | None]) -> Floats:
    return np.array([NAN if value is None else value for value in named.values()])


def exactly(design: Floats, y: Floats) -> list[Fraction]:
    """The least-squares solution without any rounding: the normal equations in fractions."""
    columns = [[Fraction(value) for value in column] for column in [*design.T.tolist(), y.tolist()]]
    table = [[sum((p * q for p, q in zip(a, b, strict=True)), Fraction(0)) for b in columns] for a in columns[:-1]]
    for k, pivot in enumerate(table):
        table[k] = [cell / pivot[k] for cell in pivot]
        for i in range(len(table)):
            if i != k:
                table[i] = [cell - table[i][k] * own for cell, own in zip(table[i], table[k], strict=True)]
    return [row[-1] for row in table]


def by_qr(design: Floats, y: Floats) -> tuple[Floats, Floats, float, float]:
    """Coefficients, standard errors, R² and residual standard error, by the textbook from the rows themselves."""
    q, r = np.linalg.qr(design)
    found = np.linalg.solve(r, q.T @ y)
    residuals = y - design @ found
    variance = residuals @ residuals / (len(y) - design.shape[1])
    inverse = np.linalg.inv(r)
    errors = np.sqrt((inverse**2).sum(axis=1) * variance)
    return found, errors, 1 - residuals @ residuals / ((y - y.mean()) ** 2).sum(), math.sqrt(variance)


# -- the seed's data ---------------------------------------------------------------------------------------------


@pytest.fixture
def training(shared_data: Path) -> tuple[Floats, Floats]:
    rows = np.genfromtxt(shared_data / "fish" / "training.csv", delimiter=",", skip_header=1, usecols=(2, 3, 4))
    return rows[:, :2].copy(), rows[:, 2].copy()


@pytest.fixture
def fish(shared_data: Path) -> list[dict[str, Any]]:
    """The measured fish with their weights."""
    measured, weighed = (
        [json.loads(line) for line in (shared_data / "fish" / name).read_text().splitlines()]
        for name in ("measurement.jsonl", "weight.jsonl")
    )
    return [one | other for one, other in zip(measured, weighed, strict=True)]


def test_the_training_rows_as_lm_has_them(training: tuple[Floats, Floats]) -> None:
    X, y = training
    design = np.column_stack([np.ones(len(X)), X])
    model = learned(X, y)
    found = numbers(model.coefficients(["length", "height"]))
    exact = np.array([float(value) for value in exactly(design, y)])
    assert found.tolist() == exact.tolist()  # rounded once
    np.testing.assert_allclose(found, np.linalg.lstsq(design, y)[0], rtol=1e-8)
    coefficients, errors, r_squared, sigma = by_qr(design, y)
    np.testing.assert_allclose(found, coefficients, rtol=1e-10)
    np.testing.assert_allclose(numbers(model.standard_errors(["length", "height"])), errors, rtol=1e-10)
    assert model.r_squared == pytest.approx(r_squared, rel=1e-12)
    assert round(model.r_squared, 2) == 0.83  # the seed: "explains 83% of the data's variance"
    assert model.adjusted_r_squared == pytest.approx(1 - (1 - r_squared) * 99 / 97, rel=1e-12)
    assert model.residual_standard_error == pytest.approx(sigma, rel=1e-12)
    assert model.rows == 100


def one_hot(words: list[str], *, capacity: int) -> tuple[Floats, list[tuple[str, str | None]]]:
    """As `hr.category` codes them: columns in the order of appearance, others waiting."""
    known = list(dict.fromkeys(words))
    X = np.zeros((len(words), capacity))
    X[np.arange(len(words)), [known.index(word) for word in words]] = 1.0
    return X, [("Species", word) for word in known] + [("Species", None)] * (capacity - len(known))


@pytest.mark.parametrize("span", [slice(45, 95), slice(0, 179), slice(70, 160)], ids=["both", "all", "walleye first"])
def test_two_species_in_treatment_coding(fish: list[dict[str, Any]], span: slice) -> None:
    some = fish[span]
    words = [row["Species"] for row in some]
    plain = np.array([[row["Length"], row["Height"]] for row in some])
    y = np.array([row["Weight"] for row in some])
    columns, names = one_hot(words, capacity=32)
    model = learned(np.hstack([plain, columns]), y)
    design = np.column_stack([np.ones(len(y)), plain, [word == "walleye" for word in words]])
    found, errors, r_squared, sigma = by_qr(design, y)
    given = model.coefficients(["Length", "Height", *names])
    assert list(given) == ["(Intercept)", "Length", "Height", "Specieswalleye"]
    assert list(given.values()) == [float(value) for value in exactly(design, y)]
    np.testing.assert_allclose(numbers(given), found, rtol=1e-8)
    np.testing.assert_allclose(numbers(model.standard_errors(["Length", "Height", *names])), errors, rtol=1e-8)
    np.testing.assert_allclose(model.predict(np.hstack([plain, columns])), design @ found, rtol=1e-10)
    assert model.r_squared == pytest.approx(r_squared, rel=1e-10)
    assert model.residual_standard_error == pytest.approx(sigma, rel=1e-10)


def test_one_species_has_no_coefficient_and_another_is_predicted_alike(training: tuple[Floats, Floats]) -> None:
    X, y = training
    columns, names = one_hot(["salmon"] * len(y), capacity=32)
    model, plain = learned(np.hstack([X, columns]), y), learned(X, y)
    assert model.coefficients(["length", "height", *names]) == plain.coefficients(["length", "height"])
    assert model.standard_errors(["length", "height", *names]) == plain.standard_errors(["length", "height"])
    walleye = np.roll(columns, 1, axis=1)
    for species in (columns, walleye, np.zeros_like(columns)):
        assert (model.predict(np.hstack([X, species])) == plain.predict(X)).all()


def test_the_first_model_errs_on_the_new_species(training: tuple[Floats, Floats], fish: list[dict[str, Any]]) -> None:
    model = learned(*training)
    predicted = model.predict(np.array([[row["Length"], row["Height"]] for row in fish]))
    weights = np.array([row["Weight"] for row in fish])
    errors, salmon = np.abs(predicted - weights) / weights, np.array([row["Species"] == "salmon" for row in fish])
    assert errors[salmon].mean() < 0.03
    assert errors[~salmon].mean() > 0.8


# -- accuracy ----------------------------------------------------------------------------------------------------

LONGLEY = """
60323 83.0 234289 2356 1590 107608 1947
61122 88.5 259426 2325 1456 108632 1948
60171 88.2 258054 3682 1616 109773 1949
61187 89.5 284599 3351 1650 110929 1950
63221 96.2 328975 2099 3099 112075 1951
63639 98.1 346999 1932 3594 113270 1952
64989 99.0 365385 1870 3547 115094 1953
63761 100.0 363112 3578 3350 116219 1954
66019 101.2 397469 2904 3048 117388 1955
67857 104.6 419180 2822 2857 118734 1956
68169 108.4 442769 2936 2798 120445 1957
66513 110.8 444546 4681 2637 121950 1958
68655 112.6 482704 3813 2552 123366 1959
69564 114.2 502601 3931 2514 125368 1960
69331 115.7 518173 4806 2572 127852 1961
70551 116.9 554894 4007 2827 130081 1962
"""


def test_longley_as_nist_certifies_it() -> None:
    """NIST StRD, linear regression, "Longley", higher level of difficulty: 15 certified digits."""
    rows = np.array([[float(cell) for cell in line.split()] for line in LONGLEY.split("\n") if line])
    model = learned(rows[:, 1:], rows[:, 0])
    names = ["x1", "x2", "x3", "x4", "x5", "x6"]
    certified = [
        (-3482258.63459582, 890420.383607373),
        (15.0618722713733, 84.9149257747669),
        (-0.358191792925910e-01, 0.334910077722432e-01),
        (-2.02022980381683, 0.488399681651699),
        (-1.03322686717359, 0.214274163161675),
        (-0.511041056535807e-01, 0.226073200069370),
        (1829.15146461355, 455.478499142212),
    ]
    found = list(zip(model.coefficients(names).values(), model.standard_errors(names).values(), strict=True))
    np.testing.assert_allclose(np.array(found, np.float64), certified, rtol=1e-14)
    assert model.r_squared == pytest.approx(0.995479004577296, rel=1e-14)
    assert model.residual_standard_error == pytest.approx(304.854073561965, rel=1e-14)


def test_wampler_1_as_nist_certifies_it() -> None:
    """NIST StRD, "Wampler1": a polynomial of degree 5 through 21 points, all coefficients 1, no residual."""
    x = np.arange(21.0)
    X = np.column_stack([x**power for power in range(1, 6)])
    model = learned(X, 1 + X.sum(axis=1))
    names = [f"x{power}" for power in range(1, 6)]
    assert set(model.coefficients(names).values()) == {1.0}
    assert set(model.standard_errors(names).values()) == {0.0}
    assert (model.r_squared, model.residual_standard_error) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("offset", "noise", "tolerance"),
    [(0.0, 1.0, 1e-7), (1e6, 1.0, 1e-7), (1e6, 1e-3, 1e-12), (1e9, 1.0, 1e-12), (1e12, 1e-1, 1e-14), (0.0, 1e-9, 1e-7)],
)
def test_columns_far_from_zero_cost_no_accuracy(offset: float, noise: float, tolerance: float) -> None:
    X = np.column_stack([offset + RNG.normal(size=200), RNG.normal(size=200)])
    y = X @ [2.0, -1.0] + noise * RNG.normal(size=200)
    model = learned(X, y, tolerance=tolerance)
    found = [value or NAN for value in model.coefficients(["far", "near"]).values()]
    exact = [float(value) for value in exactly(np.column_stack([np.ones(200), X]), y)]
    assert found == exact
    if offset <= 1e6:  # beyond, lstsq errs by the condition of its matrix, and can tell nothing
        raw = np.linalg.lstsq(np.column_stack([np.ones(200), X]), y, rcond=0)[0]
        np.testing.assert_allclose(raw[1:], exact[1:], rtol=1e-8)


def test_numbers_of_any_size() -> None:
    X = np.array([[1e300, 1e-300], [2e300, 3e-300], [4e300, 2e-300], [3e300, 1e-300]])
    y = np.array([1e-200, 3e-200, 2e-200, 5e-200])
    found = list(learned(X, y).coefficients(["large", "small"]).values())
    assert found == [float(value) for value in exactly(np.column_stack([np.ones(4), X]), y)]


@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 4))
def test_any_full_rank_design_is_solved_exactly(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(d + 5, d)) * 10.0 ** rng.integers(-6, 7, size=d), rng.normal(size=d + 5)
    exact = exactly(np.column_stack([np.ones(d + 5), X]), y)
    assert list(learned(X, y).coefficients([f"x{j}" for j in range(d)]).values()) == list(map(float, exact))


# -- aliased columns ---------------------------------------------------------------------------------------------

A, B = RNG.normal(size=30), RNG.normal(size=30)
NEAR = A + 1e-9 * B  # what is left of it beside A is 1e-9 of its length

ALIASED: dict[str, tuple[list[Any], dict[str, Any], list[bool]]] = {
    "none": ([A, B], {}, [False, False]),
    "zeros": ([A, 0 * A, B], {}, [False, True, False]),
    "constant": ([A, 0 * A + 0.1, B], {}, [False, True, False]),
    "constant, no intercept": ([A, 0 * A + 0.1], {"intercept": False}, [False, False]),
    "twice": ([A, B, A], {}, [False, False, True]),
    "a sum": ([A, B, A + B], {}, [False, False, True]),
    "the sum first": ([A + B, A, B], {}, [False, False, True]),
    "near": ([A, NEAR], {}, [False, True]),
    "near, smaller tolerance": ([A, NEAR], {"tolerance": 1e-10}, [False, False]),
    "far and constant to lm": ([1e9 + A, B], {}, [True, False]),
    "far, smaller tolerance": ([1e9 + A, B], {"tolerance": 1e-12}, [False, False]),
    "all": ([0 * A, 0 * A + 5], {}, [True, True]),
}


@pytest.mark.parametrize("case", ALIASED)
def test_aliased_columns(case: str) -> None:
    columns, options, aliased = ALIASED[case]
    X, y = np.column_stack(columns), A - B + RNG.normal(size=30)
    model, names = learned(X, y, **options), [f"x{j}" for j in range(len(columns))]
    given, errors = model.coefficients(names), model.standard_errors(names)
    assert [given[name] is None for name in names] == [errors[name] is None for name in names] == aliased
    kept = X[:, ~np.array(aliased)]
    other = learned(kept if kept.size else np.zeros((30, 1)), y, **options)
    assert (model.predict(X) == other.predict(kept if kept.size else np.zeros((30, 1)))).all()
    assert model.r_squared == other.r_squared


WORDS = ["pike", "bream", "roach", "bream", "pike", "roach", "roach", "bream", "pike", "pike"]
LENGTHS = np.array([1.0, 2.0, 4.0, 3.0, 5.0, 9.0, 2.0, 6.0, 7.0, 3.0])
WEIGHTS = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0])
HABITATS = ["sea", "lake", "lake", "sea", "lake", "sea", "lake", "lake", "sea", "lake"]


def treatment(words: list[str], *, base: bool = False) -> list[Floats]:
    levels = sorted(set(words))
    return [np.array([word == level for word in words], float) for level in (levels if base else levels[1:])]


@pytest.mark.parametrize(
    ("intercept", "names", "design"),
    [
        pytest.param(
            True,
            ["(Intercept)", "Length", "Speciespike", "Speciesroach"],
            [np.ones(10), LENGTHS, *treatment(WORDS)],
            id="with an intercept",
        ),
        pytest.param(
            False,
            ["Length", "Speciesbream", "Speciespike", "Speciesroach"],
            [LENGTHS, *treatment(WORDS, base=True)],
            id="without one the base stays",
        ),
    ],
)
def test_words_in_order_of_appearance_are_shown_as_r_codes_them(
    intercept: bool, names: list[str], design: list[Floats]
) -> None:
    columns, words = one_hot(WORDS, capacity=6)
    model = learned(np.column_stack([LENGTHS, columns]), WEIGHTS, intercept=intercept)
    found, errors, _, _ = by_qr(np.column_stack(design), WEIGHTS)
    given = model.coefficients(["Length", *words])
    assert list(given) == names
    np.testing.assert_allclose(numbers(given), found, rtol=1e-12)
    np.testing.assert_allclose(numbers(model.standard_errors(["Length", *words])), errors, rtol=1e-12)
    predicted = model.predict(np.column_stack([LENGTHS, columns]))
    np.testing.assert_allclose(predicted, np.column_stack(design) @ found, rtol=1e-12)


def test_two_categories() -> None:
    species, names = one_hot(WORDS, capacity=4)
    habitats, more = one_hot(HABITATS, capacity=2)
    model = learned(np.column_stack([species, LENGTHS, habitats]), WEIGHTS)
    design = np.column_stack([np.ones(10), *treatment(WORDS), LENGTHS, *treatment(HABITATS)])
    given = model.coefficients([*names, "Length", *[("Habitat", word) for _, word in more]])
    assert list(given) == ["(Intercept)", "Speciespike", "Speciesroach", "Length", "Habitatsea"]
    np.testing.assert_allclose(numbers(given), by_qr(design, WEIGHTS)[0], rtol=1e-11)


def test_columns_of_treatment_coding_are_shown_as_they_are() -> None:
    columns, words = one_hot(WORDS, capacity=3)  # pike comes first: it has no column, as in `category`
    model = learned(np.column_stack([LENGTHS, columns[:, 1:]]), WEIGHTS)
    given = model.coefficients(["Length", *words[1:]])
    design = np.column_stack([np.ones(10), LENGTHS, columns[:, 1:]])
    assert list(given) == ["(Intercept)", "Length", "Speciesbream", "Speciesroach"]
    np.testing.assert_allclose(numbers(given), by_qr(design, WEIGHTS)[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        pytest.param(["Length"], "1 names for 4 columns", id="too few"),
        pytest.param(["a", "b", "c", "a"], "comes twice", id="a name twice"),
        pytest.param(["a", ("S", "x"), ("S", None), ("S", "y")], "word None", id="a column that is taken"),
        pytest.param(["a", ("S", "x"), ("S", "x"), ("S", "y")], "word 'x'", id="a word twice"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: list[Any], says: str) -> None:
    model = learned(np.column_stack([LENGTHS, one_hot(WORDS, capacity=3)[0]]), WEIGHTS)
    with pytest.raises(DeclarationError, match=says):
        model.coefficients(names)


# -- few rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "y", "coefficients", "errors", "summary"),
    [
        pytest.param([[3]], [5], [5.0, None], [NAN, None], (0.0, 0.0, NAN), id="one row"),
        pytest.param([[1], [2]], [3, 5], [1.0, 2.0], [NAN, NAN], (1.0, NAN, NAN), id="as many rows as coefficients"),
        pytest.param([[1], [1]], [3, 5], [4.0, None], [1.0, None], (0.0, 0.0, math.sqrt(2)), id="nothing varies"),
        pytest.param([[1], [2], [3]], [4, 4, 4], [4.0, 0.0], [0.0, 0.0], (NAN, NAN, 0.0), id="a constant target"),
    ],
)
def test_few_rows_as_r_prints_them(X: Any, y: Any, coefficients: Any, errors: Any, summary: Any) -> None:
    model = learned(X, y)
    assert list(model.coefficients(["x"]).values()) == coefficients
    assert list(model.standard_errors(["x"]).values()) == pytest.approx(errors, nan_ok=True)
    found = (model.r_squared, model.adjusted_r_squared, model.residual_standard_error)
    assert found == pytest.approx(summary, nan_ok=True)


def test_r_squared_without_an_intercept_is_about_zero() -> None:
    model = learned([[1.0], [2.0]], [1.0, 3.0], intercept=False)
    assert model.coefficients(["x"]) == {"x": 1.4}
    assert model.r_squared == pytest.approx(1 - 0.2 / 10)
    assert model.adjusted_r_squared == pytest.approx(1 - 0.02 * 2)


def test_nothing_is_known_before_the_first_row() -> None:
    model = LinearRegression()
    assert (model.ready, model.width, model.rows) == (False, None, 0)
    calls: list[Callable[[], Any]] = [
        lambda: model.predict(np.ones((1, 2))),
        lambda: model.coefficients(["a"]),
        lambda: model.standard_errors(["a"]),
        lambda: model.r_squared,
    ]
    for call in calls:
        with pytest.raises(LearnError, match="no row"):
            call()


# -- weights -----------------------------------------------------------------------------------------------------


def test_weights_as_lm_has_them() -> None:
    X, y, w = RNG.normal(size=(60, 2)) + 100, RNG.normal(size=60), RNG.random(60)
    w[::7] = 0.0
    model, root, used = learned(X, y, w), np.sqrt(w), np.count_nonzero(w)
    design = np.column_stack([np.ones(60), X]) * root[:, None]
    found = np.linalg.lstsq(design, y * root)[0]
    np.testing.assert_allclose(numbers(model.coefficients(["a", "b"])), found, rtol=1e-8)
    residual = ((y * root - design @ found) ** 2).sum()
    total = (w * (y - np.average(y, weights=w)) ** 2).sum()
    assert model.rows == used
    assert model.residual_standard_error == pytest.approx(math.sqrt(residual / (used - 3)), rel=1e-10)
    assert model.r_squared == pytest.approx(1 - residual / total, rel=1e-8)
    errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * residual / (used - 3))
    np.testing.assert_allclose(numbers(model.standard_errors(["a", "b"])), errors, rtol=1e-8)


def test_a_weight_of_0_is_no_row_and_one_of_2_is_two_to_the_sums() -> None:
    X, y = RNG.normal(size=(40, 2)), RNG.normal(size=40)
    weights = np.arange(40.0) % 3
    twice = learned(np.repeat(X, weights.astype(int), axis=0), np.repeat(y, weights.astype(int)))
    once = learned(X, y, weights)
    assert dump_state(once.state() | {"rows": 0}) == dump_state(twice.state() | {"rows": 0})
    assert once.coefficients(["a", "b"]) == twice.coefficients(["a", "b"])
    nothing = learned(X, y, np.zeros(40))
    assert not nothing.ready
    assert nothing.state() == LinearRegression().state()


# -- without a trace ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 50), weighted=st.booleans())
def test_unlearned_rows_leave_no_bit(seed: int, cut: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    X, y = rng.normal(size=(50, 3)) * 10.0 ** rng.integers(-9, 9, size=(50, 3)), rng.normal(size=50)
    w = rng.random(50) if weighted else None
    kept, gone = slice(0, cut), slice(cut, 50)
    model = learned(X[kept], y[kept], None if w is None else w[kept])
    before = dump_state(model.state())
    model.learn(X[gone], y[gone], None if w is None else w[gone])
    model.unlearn(X[gone], y[gone], None if w is None else w[gone])
    assert dump_state(model.state()) == before


def test_a_sliding_window_is_the_regression_on_its_rows() -> None:
    X, y = RNG.normal(size=(200, 2)), RNG.normal(size=200)
    model = learned(X[:50], y[:50])
    for at in range(150):
        model.learn(X[at + 50 : at + 51], y[at + 50 : at + 51])
        model.unlearn(X[at : at + 1], y[at : at + 1])
    assert dump_state(model.state()) == dump_state(learned(X[150:], y[150:]).state())


@settings(max_examples=25)
@given(order=st.permutations(range(5)), bounds=st.lists(st.integers(0, 300), min_size=4, max_size=4))
def test_parts_in_any_order_are_the_whole(order: list[int], bounds: list[int]) -> None:
    rng = np.random.default_rng(5)
    X, y = rng.normal(size=(300, 3)), rng.normal(size=300)
    edges = [0, *sorted(bounds), 300]
    parts = [LinearRegression().partial(X[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    merged = LinearRegression()
    merged.merge([parts[place] for place in order])
    assert dump_state(merged.state()) == dump_state(learned(X, y).state())


@pytest.mark.parametrize(
    ("X", "y"),
    [
        pytest.param([[1.0, 2.0]], [3.5], id="another target"),
        pytest.param([[50.0, 2.0]], [3.0], id="other features"),
        pytest.param([[1.0, 2.0]] * 3, [3.0] * 3, id="too often"),
        pytest.param([[1.0, 2.0], [4.0, 5.0]], [3.0, 6.5], id="one of two"),
    ],
)
def test_rows_that_were_not_learned_cannot_be_unlearned(X: Any, y: Any) -> None:
    model = learned([[1, 2], [4, 5]], [3, 6])
    before = state_hash(model.state())
    with pytest.raises(LearnError, match="not all learned"):
        model.unlearn(np.array(X), np.array(y) + 10.0 * (len(X) == 1))
    assert state_hash(model.state()) == before


def test_unlearning_from_nothing_is_refused() -> None:
    with pytest.raises(LearnError, match="0 rows were"):
        LinearRegression().unlearn(np.ones((1, 2)), np.ones(1))


_CHILD = """
import numpy as np
from headrace.learn.linear import LinearRegression
from headrace.learn.state import state_hash
rng = np.random.default_rng(3)
model = LinearRegression()
model.learn(rng.normal(size=(9000, 40)), rng.normal(size=9000))
print(state_hash(model.state()), model.predict(rng.normal(size=(64, 40))).tobytes().hex())
"""


def test_the_threads_of_blas_change_no_bit() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", _CHILD],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": kernel},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for threads, kernel in (("1", "Haswell"), ("2", "Haswell"), ("2", "Prescott"))
    }
    assert len(printed) == 1


# -- what is refused ---------------------------------------------------------------------------------------------

GOOD = np.arange(8.0).reshape(4, 2) ** 2, np.arange(4.0)


@pytest.mark.parametrize(
    ("y", "weight", "rows", "says"),
    [
        pytest.param(None, None, (0, 1, 2, 3), "without a target", id="no target"),
        pytest.param([1, NAN, 2, math.inf], None, (1, 3), "row 1 has a target that is nan", id="targets not finite"),
        pytest.param([1, 2, 3], None, (0, 1, 2, 3), "one number a row", id="too few targets"),
        pytest.param([[1], [2], [3], [4]], None, (0, 1, 2, 3), "one number a row", id="two dimensions"),
        pytest.param(["a", "b", "c", "d"], None, (0, 1, 2, 3), "one number a row", id="text"),
        pytest.param([1, 2, 3, 4], [1, -1, 1, 1], (1,), "row 1 has the sample weight -1", id="a negative weight"),
        pytest.param([1, 2, 3, 4], [1, 1, NAN, 1], (2,), "row 2 has a sample weight", id="a weight that is NaN"),
        pytest.param([1, 2, 3, 4], [1.0], (0, 1, 2, 3), "sample weight must be one", id="too few weights"),
    ],
)
def test_bad_rows(y: Any, weight: Any, rows: tuple[int, ...], says: str) -> None:
    model = learned(*GOOD)
    before = state_hash(model.state())
    targets = None if y is None else np.asarray(y)
    weights = None if weight is None else np.asarray(weight)
    for call in (model.learn, model.unlearn, model.partial):
        with pytest.raises(BadRows, match=says) as refused:
            call(GOOD[0], targets, weights)
        assert refused.value.rows == rows
    assert state_hash(model.state()) == before


def test_rows_without_features_are_refused_and_none_of_no_width_are_taken() -> None:
    model = LinearRegression()
    with pytest.raises(BadRows, match="without features"):
        model.learn(np.empty((3, 0)), np.ones(3))
    model.learn(np.empty((0, 0)), np.empty(0))
    model.learn(np.empty((0, 0)))
    assert not model.ready


@pytest.mark.parametrize("tolerance", [0, -1.0, 1.0, 1e-16, NAN, True, "1e-7", None], ids=repr)
def test_a_tolerance_out_of_range_is_refused(tolerance: Any) -> None:
    with pytest.raises(DeclarationError, match="tolerance"):
        LinearRegression(tolerance=tolerance)


STATE = learned(*GOOD).state()


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({}, id="empty"),
        pytest.param({"sums": None, "exponent": 0, "rows": 3}, id="rows without sums"),
        pytest.param({**STATE, "rows": 0}, id="sums without rows"),
        pytest.param({**STATE, "rows": 2.0}, id="rows no whole number"),
        pytest.param({**STATE, "exponent": 10**12}, id="an exponent that would fill the memory"),
        pytest.param({**STATE, "sums": np.zeros((3, 2))}, id="sums no bytes"),
        pytest.param({**STATE, "sums": np.zeros((10, 3), np.uint8)}, id="sums of nothing"),
        pytest.param({**STATE, "sums": np.full((10, 1), 255, np.uint8)}, id="negative squares"),
        pytest.param({**STATE, "sums": np.ones((3, 1), np.uint8)}, id="no features"),
        pytest.param({**STATE, "more": 1}, id="more than a state"),
    ],
)
def test_what_is_no_state_is_refused(state: Any) -> None:
    model = learned(*GOOD)
    before = state_hash(model.state())
    for call in (model.restore, lambda part: model.merge([part])):
        with pytest.raises(LearnError, match="not the state"):
            call(state)
    assert state_hash(model.state()) == before


def test_parts_of_another_width_are_refused() -> None:
    model, other = learned(*GOOD), learned(np.ones((2, 3)), np.ones(2))
    before = state_hash(model.state())
    with pytest.raises(LearnError, match="3 features, the others 2"):
        model.merge([model.state(), other.state()])
    assert state_hash(model.state()) == before
