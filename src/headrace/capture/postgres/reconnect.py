"""A replication stream that comes back: lost connections are made again, with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable

from headrace.capture.base import SourceState
from headrace.capture.postgres.client import Connecting, Replication, Server
from headrace.capture.postgres.messages import Frame
from headrace.capture.postgres.receiver import Receiver
from headrace.capture.postgres.stream import Wake
from headrace.clock import Clock
from headrace.errors import SourceUnavailable
from headrace.retry import Backoff

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_SILENT_S = 40.0  # a server sends keepalives at half of wal_sender_timeout, 30 s by default, whether it is asked or not


class ReconnectingStream:
    """Holds the stream, or makes it anew; used by one thread.

    Args:
        attach: checks a fresh connection and starts the stream on it; called at each connection. When it raises
            `SourceUnavailable` it is tried again, any other error ends it.

    Attributes:
        stream: the running stream, None while there is none.
        lost: the connection has been lost since the last `read`; what was unfinished will come again.
        state, doing: what it is doing, in one word and for people.
        reconnects: how often the stream was started again.
    """

    def __init__(self, server: Server, wake: Wake, attach: Callable[[Replication], Receiver], clock: Clock) -> None:
        self.stream: Receiver | None = None
        self.lost = False
        self.state, self.doing = SourceState.STARTING, f"connecting to {server}"
        self.reconnects = 0
        self._bytes = 0
        self._away_since: float | None = None
        self._server, self._wake, self._attach, self._clock = server, wake, attach, clock
        self._connecting: Connecting | None = None
        self._attempts = 0
        self._backoff = Backoff(first=_FIRST_PAUSE_S, most=_LONGEST_PAUSE_S)
        self._retry_at = 0.0

    def begin(self, replication: Replication) -> None:
        """Start the stream on a first connection; a failure is not retried.

        Raises:
            SourceUnavailable, SourceRefused: whatever ``attach`` raises.
        """
        self.stream = self._attach(replication)
        self.reconnects += self._away_since is not None
        self._away_since = None
        self.state, self.doing = SourceState.CONNECTED, f"streaming from {self._server}"

    @property
    def bytes(self) -> int:
        """Return how many bytes of changes have come since the start, those that came twice too."""
        stream = self.stream
        return self._bytes + (0 if stream is None else stream.bytes)

    @property
    def away_since(self) -> float | None:
        """Since when there is no connection, or nothing comes over it, keepalives included; None while all is well."""
        if self.stream is None:
            return self._away_since
        return self.stream.heard_at if time.monotonic() - self.stream.heard_at > _SILENT_S else None

    def read(self, timeout: float) -> Frame | None:
        """Return what has come, waiting at most ``timeout`` seconds; nothing while the connection is being made.

        Raises:
            SourceRefused: the server is there again and will not go on.
        """
        try:
            if self.stream is None:
                self._connect(timeout)
                self._wake.clear()
                return None
            messages = self.stream.read(timeout)
            frame = self.stream.frame(messages) if messages else None
        except SourceUnavailable as error:
            self.drop(error)
            return None
        if messages:
            self._attempts = 0
            self._backoff.reset()
        return frame

    def send_status(self, *, received: int, flushed: int, ask: bool = False) -> bool:
        """Send a standby status update; return False when there is no connection to send it over."""
        if self.stream is None:
            return False
        try:
            self.stream.send_status(received=received, flushed=flushed, ask=ask)
        except SourceUnavailable as error:
            self.drop(error)
            return False
        return True

    def drop(self, reason: Exception | str, *, at_once: bool = False) -> None:
        """Close the connection and plan the next: ``at_once``, or after a pause that doubles from 0.1 s to 10 s."""
        if self.stream is not None:
            self._bytes += self.stream.bytes
            self.stream.close()
            self.stream = None
            self.lost = True
        self._away_since = self._away_since or time.monotonic()
        self._connecting = None
        pause = 0.0 if at_once else self._backoff.next()
        self._attempts += not at_once
        self._retry_at = self._clock.monotonic() + pause
        text = reason.message if isinstance(reason, SourceUnavailable) else str(reason)
        self.state = SourceState.RETRYING
        self.doing = f"connecting to {self._server} again in {pause:.1f} s (attempt {self._attempts}): {text}"

    def _connect(self, timeout: float) -> None:
        if self._connecting is None:
            left = self._retry_at - self._clock.monotonic()
            if left > 0:
                self._wake.wait(min(left, timeout))
            if left > timeout:
                return
            self._connecting = Connecting(self._server)
        replication = self._connecting.step(timeout, self._wake.fd)
        if replication is None:
            return
        self._connecting = None
        try:
            self.begin(replication)
        except BaseException:
            replication.close()
            raise

    def close(self) -> None:
        """End the stream in good order; calling it twice is harmless."""
        if self._connecting is not None:
            self._connecting.close()
            self._connecting = None
        if self.stream is not None:
            self.stream.finish()
            self.stream = None
        self.state, self.doing = SourceState.STOPPED, "stopped"
