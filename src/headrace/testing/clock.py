"""Time that a test sets."""

from __future__ import annotations


class SettableClock:
    """A `headrace.clock.Clock` that moves when it is told.

    >>> clock = SettableClock(1_000_000)
    >>> clock.advance(0.5)
    >>> clock.now_us(), clock.monotonic()
    (1500000, 0.5)
    """

    def __init__(self, now_us: int = 0) -> None:
        self._now_us = now_us
        self._elapsed = 0.0

    def now_us(self) -> int:
        return self._now_us

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now_us += round(seconds * 1e6)
        self._elapsed += seconds
