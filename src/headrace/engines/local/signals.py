"""Signals that end a pipeline: cleanly, or at once where another one comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


class Stopped(BaseException):
    """A signal came before there was anything to stop."""


class Signals:
    """SIGINT and SIGTERM stop the pipeline cleanly, where the main thread runs it; a second one ends the process.

    A log loses nothing by that: what had not committed is done again by the next start.
    """

    def __init__(self) -> None:
        self.stop: Callable[[], None] | None = None
        self._came = False
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        except ValueError:
            # Not the main thread: whoever runs it there handles signals.
            self._old = {}
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._came = True
        if self.stop is None:
            raise Stopped
        self.stop()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
