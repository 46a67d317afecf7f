"""One thread for BLAS and OpenMP, whatever other threads do meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import sklearn.linear_model  # loads the libraries that are limited
from threadpoolctl import ThreadpoolController

from headrace.learn.adapters.threads import one_thread


def limits(api: str) -> set[int]:
    return {row["num_threads"] for row in ThreadpoolController().select(user_api=api).info()}


def test_who_leaves_first_does_not_lift_the_limit_of_the_other() -> None:
    """One thread learns while another one predicts: neither may give the other its threads back."""
    np.ones((4, 4)) @ np.ones((4, 4))
    sklearn.linear_model.LinearRegression().fit([[1.0], [2.0]], [1.0, 2.0])
    before = limits("blas")
    inside, leave = threading.Event(), threading.Event()
    seen: list[set[int]] = []

    def learn() -> None:
        with one_thread():
            inside.set()
            assert leave.wait(10)
            seen.extend([limits("blas"), limits("openmp")])

    learning = threading.Thread(target=learn)
    with one_thread(), one_thread():
        learning.start()
        assert inside.wait(10)
        assert limits("blas") == {1}
    assert limits("blas") == {1}
    leave.set()
    learning.join(10)
    assert all(item <= {1} for item in seen)
    assert limits("blas") == before


def test_a_later_thread_has_the_limit_too_while_the_first_one_lives() -> None:
    """One that was limited once may be alive and idle: threadpoolctl would let no other thread set the limit."""
    before = limits("blas")
    with one_thread():
        pass
    seen: list[set[int]] = []

    def learn() -> None:
        with one_thread():
            seen.append(limits("blas"))

    learning = threading.Thread(target=learn)
    learning.start()
    learning.join(10)
    assert seen == [{1}]
    assert limits("blas") == before
