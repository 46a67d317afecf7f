"""Time, injected: whoever needs it is given a `Clock`, so that tests set it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the house knows of time. Called from any thread."""

    def now_us(self) -> int:
        """Wall-clock time in microseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, for deadlines."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()
