"""A pipe that wakes a thread that waits in `poll`."""

from __future__ import annotations

import contextlib
import os
import select


class Wake:
    """`set` may be called from any thread and from signal handlers; the others from the thread that waits.

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
        os.set_blocking(self.fd, False)
        os.set_blocking(self._writer, False)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def set(self) -> None:
        """Make the waiting thread return; before `wait`, make it return at once."""
        with contextlib.suppress(OSError):  # full: a wake-up is already on its way; closed: nobody waits
            os.write(self._writer, b"w")

    def clear(self) -> None:
        with contextlib.suppress(OSError):
            os.read(self.fd, 4096)

    def wait(self, seconds: float) -> bool:
        """Wait until `set` is called, or for so long; whether it was."""
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def close(self) -> None:
        """Release the pipe; calling it twice is harmless, later calls of `set` do nothing."""
        reader, writer, self.fd, self._writer = self.fd, self._writer, -1, -1
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)
