"""A pipeline in the foreground: signals end it, cleanly, or at once where another one comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from headrace.engines.local.running import Running
from headrace.log.base import Log

JOIN_SECONDS = 0.2


class Stopped(BaseException):
    """A signal came before there was anything to stop."""


class Signals:
    """Handlers of SIGINT and SIGTERM, where the main thread runs the pipeline.

    The first signal stops it cleanly, a second one ends the process. A log loses nothing by that: what had not
    committed is done again by the next start.
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


def run_in_foreground(
    start: Callable[[], Running],
    current: Callable[[], Running | None],
    *,
    until_caught_up: bool = False,
    at_end: Callable[[Log], None] | None = None,
) -> None:
    """Run a pipeline until SIGINT or SIGTERM. A signal that comes while it is still starting ends it there, as cleanly.

    Args:
        start: starts it.
        current: returns what `start` has started, where that has not returned yet.
        until_caught_up: end when everything that was committed before now is dealt with.
        at_end: given the log before that is closed, where the pipeline had started.
    """
    with Signals() as signals:
        try:
            with start() as running:
                running.at_end = at_end
                signals.stop = running.engine.stop
                if running.server is not None:
                    running.server.announce()
                if until_caught_up:
                    running.wait(None)
                while not until_caught_up and not running.join(JOIN_SECONDS):
                    pass
        except Stopped:
            started = current()
            if started is not None:
                started.stop()
