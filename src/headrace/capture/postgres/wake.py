"""A pipe that wakes a thread that waits in `poll`."""

from __future__ import annotations

import contextlib
import os
import select
import weakref


class Wake:
    """`set` may be called from any thread and from signal handlers; the others from the thread that waits.

    The pipe is closed when nobody holds the object any more: were it closed before, a late `set` could write into
    whatever file has got its number by then.

    >>> wake = Wake()
    >>> wake.set()
    >>> wake.wait(10.0)
    True
    >>> wake.clear()
    >>> wake.wait(0.0)
    False
    """

    def __init__(self) -> None:
        self.fd, self._writer = os.pipe()
        weakref.finalize(self, _close, self.fd, self._writer)
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def set(self) -> None:
        """Make the waiting thread return; before `wait`, make it return at once."""
        with contextlib.suppress(BlockingIOError):  # full: a wake-up is already on its way
            os.write(self._writer, b"w")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 4096)

    def wait(self, seconds: float) -> bool:
        """Wait until `set` is called, or for so long; whether it was."""
        return bool(self._poll.poll(max(0.0, seconds) * 1000))


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
