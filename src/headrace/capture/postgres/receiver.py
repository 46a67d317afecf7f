"""A stream read by a thread of its own, so that the server goes on sending while rows are decoded and stored.

A Unix socket holds about 280 small messages: without the thread the server would stand still whenever the engine
works. The thread does nothing but read; what it has read waits in a bounded queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from headrace.capture.postgres.messages import Frame
from headrace.capture.postgres.stream import ReplicationStream, Wake
from headrace.capture.postgres.wire import WireStream
from headrace.errors import SourceUnavailable

MOST_MESSAGES = 65_536  # given out at once
MOST_BYTES = 32 << 20  # given out at once; waiting, with what Python needs for each message
_MESSAGE_OVERHEAD = 64
_REPEAT_S = 1.0  # an engine that is busy for minutes must not make the server give up on us
_LINGER_SHARE = 4.0  # how long to gather for what the engine's work on the last read took
_LONGEST_LINGER_S = 0.2


@dataclass(frozen=True, slots=True)
class _Chunk:
    messages: list[bytes]
    size: int
    wal_end: int
    pouring: bool

    @property
    def memory(self) -> int:
        return self.size + _MESSAGE_OVERHEAD * len(self.messages)


class Receiver:
    """Takes over a started stream. `read` and the like are called by one thread, the engine's.

    Args:
        stream: nobody else reads it from here on; it says what `read` gives, and what `frame` makes of it.
        ready: set whenever there is something to read.

    Attributes:
        wal_end: everything committed before this LSN has been given out by `read` (from keepalives).
        bytes: what `read` has given out.
        heard_at: when the server sent something last, rows or keepalives, by the monotonic clock.
    """

    def __init__(self, stream: ReplicationStream | WireStream, ready: Wake) -> None:
        self.wal_end = 0
        self.bytes = 0
        self.heard_at = time.monotonic()
        self._stream, self._ready = stream, ready
        self._chunks: deque[_Chunk] = deque()
        self._waiting = 0
        self._space = threading.Condition()
        self._error: BaseException | None = None
        self._unsent: SourceUnavailable | None = None
        self._closed = False
        self._returned_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="headrace-receive", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # a signal, while this thread waits for the other one to have begun
            self._end()
            raise

    def read(self, timeout: float) -> list[bytes]:
        """Return the XLogData payloads that are there, waiting at most ``timeout`` seconds for the first.

        A lone transaction is returned at once. While messages pour in, they are gathered for four times as long as the
        caller was away, so that costs of each round stay small beside it; for 0.2 s, 65,536 messages or 32 MB at most.

        Raises:
            SourceUnavailable, SourceRefused: as `ReplicationStream.read`; everything read before was given out.
        """
        if isinstance(self._stream, WireStream) and self._stream.ended is not None:
            raise self._stream.ended
        now = time.monotonic()
        until = now + min(_LONGEST_LINGER_S, _LINGER_SHARE * (now - self._returned_at))
        if not self._chunks and self._error is None:
            self._ready.wait(timeout)
        messages: list[bytes] = []
        while True:
            self._ready.clear()
            error = self._error  # before the queue: what came before the error is given out first
            gather = self._take(messages) and error is None
            left = until - time.monotonic()
            if not gather or left <= 0:
                break
            self._ready.wait(left)
        if not messages and error is not None:
            raise error
        self._returned_at = time.monotonic()
        return messages

    def frame(self, messages: list[bytes]) -> Frame | None:
        """Return what `read` gave, laid out for the decoder; None when no message is whole.

        Raises:
            SourceUnavailable, SourceRefused: the server ended the stream, and nothing came before it.
            DecodeError: what came cannot be understood.
        """
        frame = self._stream.frame(messages)
        if isinstance(self._stream, WireStream):
            self.wal_end = max(self.wal_end, self._stream.wal_end)
            if frame is None and self._stream.ended is not None:
                raise self._stream.ended
        return frame

    def _take(self, messages: list[bytes]) -> bool:
        """Move what waits, up to a full read, into ``messages``; return whether more is pouring in and has room."""
        pouring, size = False, 0
        while self._chunks and len(messages) < MOST_MESSAGES and size < MOST_BYTES:
            chunk = self._chunks.popleft()
            messages += chunk.messages
            size += chunk.size
            self.bytes += chunk.size
            self.wal_end = max(self.wal_end, chunk.wal_end)
            pouring = chunk.pouring
            with self._space:
                self._waiting -= chunk.memory
                self._space.notify()
        return pouring and len(messages) < MOST_MESSAGES and size < MOST_BYTES

    def send_status(self, *, received: int, flushed: int, ask: bool = False) -> None:
        """See `ReplicationStream.send_status`; whoever reads finds out why it cannot be sent."""
        try:
            self._stream.send_status(received=received, flushed=flushed, ask=ask)
        except SourceUnavailable as error:
            self._unsent = error

    def _repeat(self) -> None:
        try:
            self._stream.repeat_status(_REPEAT_S)
        except SourceUnavailable as error:
            self._unsent = error

    def _run(self) -> None:
        try:
            while not self._closed:
                seen = self._noted()
                messages = self._stream.read(_REPEAT_S)
                if messages or self._noted() > seen:
                    self._put(_Chunk(messages, self._stream.size, self._noted(), self._stream.pouring))
                elif self._unsent is not None:
                    raise self._unsent  # and nothing has come that says why
                self._repeat()
        except BaseException as error:
            self._error = error
        self._ready.set()

    def _noted(self) -> int:
        """Return the LSN of keepalives that `read` has met; a wire stream's are met by `frame`."""
        return 0 if isinstance(self._stream, WireStream) else self._stream.wal_end

    def _put(self, chunk: _Chunk) -> None:
        self.heard_at = time.monotonic()
        with self._space:
            while self._waiting > MOST_BYTES and not self._closed:
                self._space.wait(_REPEAT_S)
                self._repeat()
            self._waiting += chunk.memory
        self._chunks.append(chunk)
        self._ready.set()

    def close(self) -> None:
        """Drop the connection; calling it twice is harmless."""
        self._end()
        self._stream.close()

    def finish(self) -> None:
        """End the stream in good order; what still waits is forgotten."""
        self._end()
        self._stream.finish()

    def _end(self) -> None:
        self._closed = True
        self._stream.wake()
        with self._space:
            self._space.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._error = self._error or SourceUnavailable("the stream is closed")
