"""Exact sums of products: against fractions, over all of a double's range, in any order, and taken back."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.arrays import Floats
from headrace.learn.cross_products import CrossProducts, cross_products, nothing, unpacked

RNG = np.random.default_rng(7)

DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
TABLES = st.integers(1, 40).flatmap(lambda n: arrays(np.float64, (3, n), elements=DOUBLES))


def by_fractions(columns: Floats, weights: Floats | None) -> list[list[Fraction]]:
    exact = [[Fraction(value) for value in column] for column in columns.tolist()]
    weight = [Fraction(1)] * columns.shape[1] if weights is None else [Fraction(value) for value in weights.tolist()]
    return [[sum((w * a * b for w, a, b in zip(weight, x, y, strict=True)), Fraction(0)) for y in exact] for x in exact]


def as_fractions(sums: CrossProducts) -> list[list[Fraction]]:
    unit = Fraction(2) ** sums.exponent
    return [[cell * unit for cell in row] for row in sums.whole.tolist()]


def same(one: CrossProducts, other: CrossProducts) -> bool:
    return one.exponent == other.exponent and one.whole.tolist() == other.whole.tolist()


def spread(k: int, n: int, octaves: int) -> Floats:
    return np.asarray(RNG.normal(size=(k, n)) * 2.0 ** RNG.integers(-octaves, octaves + 1, size=(k, n)))


CASES: dict[str, tuple[Floats, Floats | None]] = {
    "no rows": (np.zeros((3, 0)), None),
    "zeros": (np.zeros((2, 30)), None),
    "one row": (spread(4, 1, 3), None),
    "few rows": (spread(4, 16, 3), None),
    "rows for digits": (spread(4, 17, 3), None),
    "more than a block": (spread(3, 700, 1), None),
    "more than a chunk": (spread(2, 4097, 1), None),
    "more columns than a tile": (spread(9, 40, 1), None),
    "a column of zeros between": (spread(3, 600, 1) * np.array([[1.0], [0.0], [1.0]]), None),
    "far from zero": (1e9 + spread(3, 600, 1), None),
    "all of a double's range": (spread(2, 200, 1000), None),
    "largest and smallest": (np.tile([[1.7976931348623157e308, 5e-324, -1e308], [5e-324, 1e-310, 1.0]], 9), None),
    "weights": (spread(3, 600, 2), RNG.random(600)),
    "weights, more than a chunk": (spread(2, 4097, 1), RNG.random(4097)),
    "weights 1": (spread(3, 600, 2), np.ones(600)),
    "weights 0": (spread(3, 600, 2), np.zeros(600)),
    "weights, few rows": (spread(3, 9, 2), RNG.random(9)),
    "weights of any size": (spread(2, 100, 900), np.abs(spread(1, 100, 900)[0])),
    "negative weights": (spread(2, 100, 2), spread(1, 100, 2)[0]),
}


@pytest.mark.parametrize("case", CASES)
def test_sums_are_those_of_fractions(case: str) -> None:
    columns, weights = CASES[case]
    assert as_fractions(cross_products(columns, weights)) == by_fractions(columns, weights)


@given(columns=TABLES, data=st.data())
def test_any_doubles(columns: Floats, data: st.DataObject) -> None:
    n = columns.shape[1]
    weights = data.draw(st.none() | arrays(np.float64, n, elements=DOUBLES))
    assert as_fractions(cross_products(columns, weights)) == by_fractions(columns, weights)


@given(columns=TABLES, data=st.data())
def test_cuts_and_order_leave_no_trace(columns: Floats, data: st.DataObject) -> None:
    whole = cross_products(columns)
    order = data.draw(st.permutations(range(columns.shape[1])))
    cut = data.draw(st.integers(0, columns.shape[1]))
    first, second = columns[:, order[:cut]], columns[:, order[cut:]]
    assert same(cross_products(first) + cross_products(second), whole)
    assert same(whole - cross_products(second), cross_products(first))


@pytest.mark.parametrize("case", CASES)
def test_packed_sums_come_back(case: str) -> None:
    sums = cross_products(*CASES[case])
    packed = sums.packed()
    assert same(unpacked(packed, sums.exponent), sums)
    assert packed.tobytes() == unpacked(packed, sums.exponent).packed().tobytes()


def test_sums_taken_back_are_packed_as_if_they_had_never_been() -> None:
    before = cross_products(spread(3, 5, 2))
    after = before + cross_products(spread(3, 5, 300)) - nothing(3)
    again = after - (after - before)
    assert again.packed().tobytes() == before.packed().tobytes()
    assert (after - after).nothing
    assert same(after - after, nothing(3))


@pytest.mark.parametrize(
    ("data", "exponent"),
    [
        pytest.param(np.zeros((2, 4), np.uint8), 0, id="no triangle"),
        pytest.param(np.zeros((3, 0), np.uint8), 0, id="no bytes"),
        pytest.param(np.zeros((3, 4), np.int8), 0, id="another type"),
        pytest.param(np.zeros(3, np.uint8), 0, id="one dimension"),
        pytest.param(np.ones((3, 4), np.uint8), 10**9, id="an exponent that would fill the memory"),
    ],
)
def test_what_is_no_packed_sum_is_refused(data: Any, exponent: int) -> None:
    with pytest.raises(ValueError, match=r"triangle|multiple"):
        unpacked(data, exponent)
