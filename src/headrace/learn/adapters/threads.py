"""One thread for libraries that would split sums among several: another number of threads gives other bits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=2)
def _controller(api: str) -> Any:
    # Finding the libraries takes a millisecond, limiting them a few microseconds.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api=api)


class _Held(threading.local):
    """The number of blocks that this thread is in: limiting twelve libraries again costs as much as a small update."""

    depth = 0


_held = _Held()
# OpenMP's limit is each thread's own; that of a BLAS is the process's: the first thread to come in sets it, the last
# one to leave takes it away. Were each to restore what it had found, one that predicts would lift the limit of another
# one that is learning.
_changing = threading.Lock()
_inside: list[Any] = []


def _disown() -> None:
    """Let this thread change OpenBLAS's limit: threadpoolctl would leave that to the first one that ever did."""
    from threadpoolctl import OpenBLASController

    OpenBLASController.clear_controlling_thread(force=True)


def _limited() -> Any:
    _disown()
    return _controller("blas").limit(limits=1)


def _lift(limit: Any) -> None:
    _disown()
    limit.restore_original_limits()
    _disown()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP run on one thread inside; a block inside another one costs nothing."""
    if _held.depth:
        yield
        return
    with _changing:
        _inside.append(None if _inside else _limited())
    try:
        with _controller("openmp").limit(limits=1):
            _held.depth += 1
            try:
                yield
            finally:
                _held.depth -= 1
    finally:
        with _changing:
            limit = _inside[0]
            _inside.pop()
            if not _inside:
                _lift(limit)
