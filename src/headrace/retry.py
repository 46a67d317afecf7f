"""Pauses between attempts. See docs/decisions/0049-pauses-between-attempts.md for why no library repeats the calls."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator
from contextvars import ContextVar

FIRST_ANSWER_SECONDS = 2.0
_due: ContextVar[float] = ContextVar("due", default=math.inf)


@contextlib.contextmanager
def reached_by(due: float) -> Iterator[None]:
    """Let servers that have not answered yet be given up at a time (`time.monotonic`), in this thread inside.

    Each has two seconds to answer at least. What waits for a server looks at `due`.
    """
    token = _due.set(max(due, time.monotonic() + FIRST_ANSWER_SECONDS))
    try:
        yield
    finally:
        _due.reset(token)


def due() -> float:
    """Return when a server that has not answered yet is given up; never, outside of `reached_by`."""
    return _due.get()


class Backoff:
    """Pauses that double from ``first`` to ``most`` seconds, each shortened at random by up to a third.

    Used by one thread. What waits, and what ends the waiting early, is the caller's.

    >>> backoff = Backoff(first=1, most=4)
    >>> [0.6 < pause / full <= 1 for pause, full in zip([backoff.next() for _ in range(4)], [1, 2, 4, 4])]
    [True, True, True, True]
    """

    def __init__(self, *, first: float = 0.1, most: float = 15.0) -> None:
        self.first = first
        self.most = most
        self._full = first

    def next(self) -> float:
        """Return the next pause, in seconds."""
        full, self._full = self._full, min(self.most, self._full * 2)
        # Many clients of one server shall not all come back at once.
        return full * random.uniform(2 / 3, 1)

    def reset(self) -> None:
        """Begin at the shortest pause again: an attempt has succeeded."""
        self._full = self.first
