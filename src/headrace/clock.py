"""Time, injected: whoever needs it is given a `Clock`, so that tests set it."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import Protocol

_UNITS_US = {
    "us": 1,
    "ms": 1_000,
    "s": 1_000_000,
    "min": 60_000_000,
    "h": 3_600_000_000,
    "day": 86_400_000_000,
    "week": 604_800_000_000,
}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(us|ms|s|sec|seconds?|min|minutes?|h|hours?|days?|d|weeks?)\s*")


class Clock(Protocol):
    """Time, as the house knows it. Called from any thread."""

    def now_us(self) -> int:
        """Wall-clock time in microseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards, for deadlines."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


def duration_us(duration: str | timedelta) -> int:
    """Return a duration in microseconds, from words or a `timedelta`.

    Raises:
        ValueError: not a positive duration.

    >>> duration_us("1 s"), duration_us("1.5 min"), duration_us("7 days") == duration_us(timedelta(days=7))
    (1000000, 90000000, True)
    """
    if isinstance(duration, timedelta):
        value = duration // timedelta(microseconds=1)
    else:
        match = _DURATION.fullmatch(duration)
        if not match:
            raise ValueError(f"{duration!r} is not a duration such as '500 ms', '1 s', '5 min', '2 h' or '7 days'")
        unit = next(name for name in ("us", "ms", "min", "s", "h", "day", "d", "week") if match[2].startswith(name))
        value = round(float(match[1]) * _UNITS_US["day" if unit == "d" else unit])
    if value <= 0:
        raise ValueError(f"{duration!r} is not longer than nothing")
    return value
