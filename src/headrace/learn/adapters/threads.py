"""One thread for libraries that would split sums among several: another number of threads gives other bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Finding the libraries takes a millisecond, limiting them a few microseconds.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP run on one thread inside."""
    with _controller().limit(limits=1):
        yield
