"""One thread for libraries that would split sums among several: another number of threads gives other bits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def _controller() -> Any:
    # Finding the libraries takes a millisecond, limiting them a few microseconds.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


class _Held(threading.local):
    """How many blocks this thread is in: limiting twelve libraries again would cost as much as a small update."""

    depth = 0


_held = _Held()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP run on one thread inside; a block inside another one costs nothing."""
    if _held.depth:
        yield
        return
    with _controller().limit(limits=1):
        _held.depth += 1
        try:
            yield
        finally:
            _held.depth -= 1
