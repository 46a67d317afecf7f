"""SIGINT and SIGTERM: what runs is ended in good order, or after a short while as it stands.

A log loses nothing by either: what had not committed is done again by the next start. See
docs/decisions/0064-a-signal-ends-a-command-in-two-seconds.md.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, TypeVar

from headrace.engines.contract import RunningPipeline
from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.log.base import Log
from headrace.retry import Backoff, reached_by

logger = logging.getLogger("headrace")

Pipeline = TypeVar("Pipeline", bound=RunningPipeline)

JOIN_SECONDS = 0.2
GRACE_SECONDS = {signal.SIGINT: 1.2, signal.SIGTERM: 8.0}
"""From a signal to the end of the process, where its threads have not ended by themselves.

Who presses Ctrl-C waits for the prompt; who sends SIGTERM is a supervisor, and gives a service time to store its state
(systemd 90 s, Kubernetes 30 s, Docker 10 s).
"""
FLUSH_SECONDS = 0.1
NUMBERS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = b"\x1b[?25h"

at_cut_off: list[Callable[[], object]] = []
"""Called before a process ends as it stands: servers that would outlive it are stopped. May be called twice."""


class Stopped(BaseException):
    """A signal came, and there is nothing that could be asked to stop.

    It is no `KeyboardInterrupt`: scikit-learn's networks take that as the end of the training, and go on.
    """


class Signals:
    """Handlers of SIGINT and SIGTERM while a block runs; blocks may be nested.

    The first signal calls ``stop``, or raises `Stopped` in the main thread where that is None. When the outermost block
    has not ended in the time that `GRACE_SECONDS` gives, or a second signal comes, the process ends with code 128 + the
    signal's number.

    Args:
        expected: a signal is how this block ends: it is not passed on to the block around it.
        to_the_end: the process ends with this block; threads may hold that up, and the deadline stays for them.

    Attributes:
        came: the number of the signal that came; 0 while none has.
    """

    _blocks: ClassVar[list[Signals]] = []

    def __init__(self, *, expected: bool = False, to_the_end: bool = False) -> None:
        self.stop: Callable[[], None] | None = None
        self.came = 0
        self._expected = expected
        self._to_the_end = to_the_end
        self._old: dict[signal.Signals, Any] = {}
        self._deadline: _Deadline | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            # Else whoever runs the main thread handles signals.
            if not self._blocks:
                _register_fork()
                self._deadline = _Deadline()
            self._old = {number: signal.signal(number, self._handle) for number in NUMBERS}
            self._blocks.append(self)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if any(block.came for block in self._blocks):
            end_at_once(number)
        self.came = number
        if self.stop is None:
            raise Stopped
        self.stop()

    def __exit__(self, *_: object) -> None:
        if not self._old or (self.came and self._to_the_end):
            return
        self._blocks.remove(self)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._deadline is not None:
            self._deadline.close()
        if self.came and not self._expected and self._blocks:
            self._blocks[-1].came = self.came


_forking = threading.local()


@functools.cache
def _register_fork() -> None:
    os.register_at_fork(before=_hold, after_in_parent=_go_on, after_in_child=_leave_to_parent)


def _hold() -> None:
    """Let signals wait while this thread forks: the child shares the socket, and its signals are not its parent's."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)


def _go_on() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _leave_to_parent() -> None:
    """Let a forked child end by signals as any process does."""
    if Signals._blocks:
        Signals._blocks.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _go_on()


class _Deadline:
    """A thread that ends the process when a signal came and `close` was not called in time.

    The interpreter writes a signal's number into a socket at once, while its handler in Python has to wait until the
    main thread runs Python: a library may hold it for minutes.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._old = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="headrace-signals", daemon=True).start()

    def _run(self) -> None:
        with self._ours:
            number = self._next(None)
            if number:
                number = self._next(GRACE_SECONDS[signal.Signals(number)]) or number
                if self._theirs.fileno() >= 0:
                    end_at_once(number)

    def _next(self, seconds: float | None) -> int:
        """Return the next signal's number; 0 where it was closed, or none came in time."""
        due = None if seconds is None else time.monotonic() + seconds
        while True:
            self._ours.settimeout(None if due is None else max(0.001, due - time.monotonic()))
            try:
                (number,) = self._ours.recv(1) or (0,)
            except TimeoutError:
                return 0
            if number in (0, *NUMBERS):
                return int(number)

    def close(self) -> None:
        signal.set_wakeup_fd(self._old)
        self._theirs.close()


def end_at_once(number: int) -> None:
    """End the process as it stands, but for what it has begun outside of itself. Any thread may call it."""
    for call in at_cut_off:
        with contextlib.suppress(Exception):
            call()
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS)
    os._exit(128 + number)


def _flush() -> None:
    """Write what is still buffered, and show the cursor that a live display has hidden."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
            if stream.isatty():
                os.write(stream.fileno(), SHOW_CURSOR)


def run_in_foreground(
    start: Callable[[], RunningPipeline],
    current: Callable[[], RunningPipeline | None],
    *,
    until_caught_up: bool = False,
    at_end: Callable[[Log], None] | None = None,
    patience: float = 0.0,
) -> None:
    """Run a pipeline until SIGINT or SIGTERM. A signal that comes while it is still starting ends it there, as cleanly.

    Args:
        start: starts it.
        current: returns what `start` has started, where that has not returned yet.
        until_caught_up: end when everything that was committed before now is dealt with.
        at_end: given the log before that is closed, where the pipeline had started.
        patience: seconds for which a start is tried again while a server cannot be reached.

    Raises:
        HeadraceError: a signal came before it had caught up; or what the pipeline died of.
    """
    with Signals(expected=not until_caught_up) as signals:
        try:
            with start_patiently(start, patience) as running:
                running.at_end = at_end
                signals.stop = running.interrupt
                if running.server is not None:
                    from headrace.serve.server import announce

                    announce(running.server.url)
                if until_caught_up:
                    running.wait(None)
                while not until_caught_up and not running.join(JOIN_SECONDS):
                    pass
        except Stopped:
            started = current()
            if started is not None:
                started.stop()
            if until_caught_up:
                raise HeadraceError("the pipeline was stopped before it had caught up") from None
        except HeadraceError as error:
            # It was waiting for a server when it was told to end; what it had not written is done again.
            if not (signals.came and error.retry and not until_caught_up):
                raise


def start_patiently(start: Callable[[], Pipeline], patience: float) -> Pipeline:
    """Start a pipeline; one whose database, broker or registry cannot be reached is tried again for some seconds.

    Raises:
        HeadraceError: it cannot start, or not in that time.
    """
    due, backoff, said = time.monotonic() + patience, Backoff(first=0.5, most=5.0), False
    while True:
        try:
            with reached_by(due):
                return start()
        except HeadraceError as error:
            left = due - time.monotonic()
            if not error.retry or left <= 0:
                raise
            if not said:
                said = True
                text = f"{error.message}; it is tried again for {patience:.0f} s"
                logger.warning("%s", text, extra=event("waiting_for_server", seconds=patience))
            time.sleep(min(left, backoff.next()))
