"""Waiting for a condition, with a deadline that a busy machine meets too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

BUSY_S = 8.0
"""What a call that returns at once may take on a busy machine."""


def wait_until(condition: Callable[[], Any], what: str = "what the test waits for", timeout: float = 60) -> Any:
    """Return what a condition gives as soon as that is true; fail loudly at the deadline."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout:.0f} s"
        time.sleep(0.01)
    return found
