"""Reading a replication stream off the socket itself, many messages at a time.

libpq hands out CopyData one message a call: at the server's own speed that is half of what a row costs us. On a
connection without TLS its frames are plain to see, so after libpq has logged in we send START_REPLICATION and read
the answer ourselves: the reading thread moves bytes, and frames are found by NumPy, thousands at once.

Frames are those of https://www.postgresql.org/docs/current/protocol-message-formats.html: a type byte, an int32
length that counts itself, a body. Inside CopyData stands what `headrace.capture.postgres.stream` describes.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time

import numpy as np
import psycopg

from headrace.capture.postgres.client import CommandError, Replication, Server
from headrace.capture.postgres.messages import PAD, Frame, Ints, gather
from headrace.capture.postgres.stream import (
    KEEPALIVE,
    LASTING,
    LINGER_S,
    MOST_BYTES,
    NAP_S,
    SETTLE_MS,
    Statuses,
    gone_publication,
    start_replication,
)
from headrace.capture.postgres.wake import Wake
from headrace.errors import SourceError, SourceRefused

_READ_BYTES = 1 << 16  # more than a Unix socket holds; small enough for the allocator to keep
_FEW = 8192  # bytes: no load
_HEADER = 5
_LENGTH = struct.Struct(">I")
_DATA, _XLOG, _KEEP = b"dwk"
_COMMIT_BYTES = 5 + 25 + 26  # CopyData header, XLogData header, Commit
_COMMIT_FRAME = b"d" + _LENGTH.pack(_COMMIT_BYTES - 1) + b"w"
_KEEP_BYTES = 5 + 18
_KEEP_FRAME = b"d" + _LENGTH.pack(_KEEP_BYTES - 1) + b"k"


class WireStream(Statuses):
    """A started stream, with the methods of `ReplicationStream`; what `read` gives are bytes, not messages.

    Attributes:
        wal_end: everything committed before this LSN has been given out by `frame` (from keepalives).
        reply_wanted, size, pouring: as `ReplicationStream`.
    """

    def __init__(self, replication: Replication, lsn: int) -> None:
        self.wal_end = 0
        super().__init__(lsn)
        self.size = 0
        self.pouring = False
        self._server: Server = replication.server
        self._replication = replication
        self._fd = replication.pgconn.socket
        self._wake = Wake()
        self._rest = b""
        self._both = select.poll()
        self._both.register(self._fd, select.POLLIN)
        self._both.register(self._wake.fd, select.POLLIN)
        self._data = select.poll()
        self._data.register(self._fd, select.POLLIN)

    @classmethod
    def start(cls, replication: Replication, *, slot: str, lsn: int, publication: str, binary: bool) -> WireStream:
        """As `ReplicationStream.start`."""
        stream = cls(replication, lsn)
        stream._command(start_replication(slot=slot, lsn=lsn, publication=publication, binary=binary))
        return stream

    def read(self, timeout: float) -> list[bytes]:
        """The bytes that are there, waiting at most ``timeout`` seconds for the first; see `ReplicationStream.read`.

        Raises:
            SourceUnavailable: the connection is lost.
        """
        chunks: list[bytes] = []
        self.size, self.pouring = 0, False
        self._take(chunks)
        if not chunks:
            if not self._both.poll(max(0.0, timeout) * 1000):
                return chunks
            self._wake.clear()
            self._take(chunks)
        if chunks:
            self._gather(chunks)
        return chunks

    def frame(self, chunks: list[bytes]) -> Frame | None:
        """The messages in what `read` gave, all of it and in that order; the rest of the last waits for more.

        Raises:
            SourceUnavailable, SourceRefused: the server ended the stream; what it said about it.
        """
        data = b"".join([self._rest, *chunks, PAD])
        start, end, used = self._frames(data)
        self._rest = data[used : -len(PAD)]
        if not start.size:
            return None
        return Frame.at(data, start, end)

    def _frames(self, data: bytes) -> tuple[Ints, Ints, int]:
        """Where XLogData payloads start and end, and how many bytes are dealt with."""
        size = len(data) - len(PAD)
        first = frames(data, size)
        at = first + _HEADER
        end = first + 1 + gather(np.frombuffer(data, np.uint8), first + 1, ">u4").astype(np.int64)
        used = int(end[-1]) if first.size else 0
        kinds = np.frombuffer(data, np.uint8)[at]
        rows = kinds == _XLOG
        if not rows.all():
            for number in np.flatnonzero(~rows).tolist():
                self._note(data[int(at[number]) : int(end[number])])
            at, end = at[rows], end[rows]
        talked = False
        while used + _HEADER <= size and data[used] != _DATA and (next_one := self._talk(data, used, size)) > used:
            used, talked = next_one, True
        if talked and used < size and data[used] == _DATA:
            more_at, more_end, more = self._frames(data[used:])
            return np.concatenate([at, more_at + used]), np.concatenate([end, more_end + used]), used + more
        return at, end, used

    def _note(self, payload: bytes) -> None:
        _, wal_end, _, _ = KEEPALIVE.unpack(payload)
        self.wal_end = max(self.wal_end, wal_end)

    def _talk(self, data: bytes, at: int, size: int) -> int:
        """Deal with a frame that is no CopyData; where it ends, or ``at`` while the rest of it has not come."""
        length: int = _LENGTH.unpack_from(data, at + 1)[0]
        kind, end = data[at : at + 1], at + 1 + length
        if end > size:
            return at
        fields = _fields(data[at + _HEADER : end]) if kind in (b"E", b"N") else {}
        if kind == b"N" and fields.get("C") == "55000":
            raise gone_publication(self._server, fields.get("M", ""))
        if kind in (b"E", b"c", b"C", b"Z"):
            raise self._ended(fields)
        return end

    def _ended(self, fields: dict[str, str]) -> SourceError:
        text = fields.get("M", "stream ended")
        if fields.get("C", "")[:2] in LASTING:
            return SourceRefused(f"PostgreSQL at {self._server} ended the stream: {' '.join(text.split())}")
        return self._server.lost(psycopg.OperationalError(text))

    def wake(self) -> None:
        """Make a waiting `read` return."""
        self._wake.set()

    def _gather(self, chunks: list[bytes]) -> None:
        """Read on while more comes, after naps: who waits for each message is woken for each."""
        until = time.monotonic() + LINGER_S
        while self.size < MOST_BYTES:
            if self.size < _FEW and at_rest(chunks[-1]):
                return
            if time.monotonic() > until:
                break
            time.sleep(NAP_S)
            before = self.size
            self._take(chunks)
            if self.size == before and not self._data.poll(SETTLE_MS):
                return
        self.pouring = self.size >= _FEW

    def _take(self, chunks: list[bytes]) -> None:
        """Move what the socket holds into ``chunks``."""
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._server.lost(error) from error
        if not data:
            raise self._server.lost(psycopg.OperationalError("the server closed the connection"))
        chunks.append(data)
        self.size += len(data)
        # Seen here, by the reading thread: an engine that works for long must not cost the connection.
        self.reply_wanted |= data[-_KEEP_BYTES:].startswith(_KEEP_FRAME) and bool(data[-1])

    def _command(self, text: str) -> None:
        """Send a command and wait until the server turns to COPY."""
        self._write(b"Q", text.encode() + b"\0")
        data = b""
        while True:
            chunks: list[bytes] = []
            while not chunks:
                self._data.poll(200)
                self._take(chunks)
            data += chunks[0]
            while len(data) >= _HEADER and len(data) >= (end := 1 + _LENGTH.unpack_from(data, 1)[0]):
                kind, body, data = data[:1], data[_HEADER:end], data[end:]
                if kind == b"W":
                    self._rest = data
                    return
                if kind == b"E":
                    raise self._refusal(_fields(body), text)

    def _refusal(self, fields: dict[str, str], text: str) -> SourceError:
        code, message = fields.get("C", ""), fields.get("M", "")
        if code.startswith(("57P", "08")):
            return self._server.lost(psycopg.OperationalError(message))
        return CommandError(f"PostgreSQL at {self._server} refuses «{text}»: {message}", code=code)

    def _put(self, message: bytes) -> None:
        self._write(b"d", message)

    def _write(self, kind: bytes, body: bytes) -> None:
        data = kind + _LENGTH.pack(4 + len(body)) + body
        waiter = select.poll()
        waiter.register(self._fd, select.POLLOUT)
        try:
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:
                    waiter.poll(200)
        except OSError as error:
            raise self._server.lost(error) from error

    def close(self) -> None:
        """Drop the connection; calling it twice is harmless. Nobody may be reading."""
        self._replication.close()

    def finish(self) -> None:
        """End the stream in good order, so that the server gets the last status; takes a second at most."""
        with contextlib.suppress(SourceError):
            self._write(b"c", b"")
            until = time.monotonic() + 1.0
            tail = b""
            while time.monotonic() < until and b"c\0\0\0\x04" not in tail:
                chunks: list[bytes] = []
                self._data.poll(100)
                self._take(chunks)
                tail = (tail + b"".join(chunks))[-_READ_BYTES:]
        self.close()


def frames(data: bytes, size: int) -> Ints:
    """First bytes of the whole CopyData frames at the beginning of a buffer, up to one that is no CopyData.

    What looks like a frame's beginning is searched everywhere at once; usually each one ends where the next begins,
    and that proves them. A row that happens to hold such bytes breaks the chain; then frames are followed one by one.

    >>> frame = b"d" + bytes([0, 0, 0, 29]) + b"w" + bytes(24)
    >>> frames(frame * 3 + b"d" + bytes(32), 3 * len(frame) + 1).tolist()
    [0, 30, 60]
    """
    buffer = np.frombuffer(data, np.uint8)[: size + _HEADER + 1]
    inner = buffer[_HEADER:size] if size > _HEADER else buffer[:0]
    n = inner.size
    looks = (buffer[:n] == _DATA) & (buffer[1 : n + 1] == 0) & ((inner == _XLOG) | (inner == _KEEP))
    first: Ints = np.flatnonzero(looks)
    if not first.size or first[0] != 0:
        return _followed(data, size)
    end = first + 1 + gather(np.frombuffer(data, np.uint8), first + 1, ">u4").astype(np.int64)
    if not (end[:-1] == first[1:]).all():
        return _followed(data, size)
    last = int(end[-1])
    if last > size:
        return first[:-1]
    # A frame that does not look like one (over 16 MB) may follow.
    return _followed(data, size) if last + _HEADER < size and data[last] == _DATA else first


def _followed(data: bytes, size: int) -> Ints:
    found = []
    at = 0
    while at + _HEADER <= size and data[at] == _DATA:
        end = at + 1 + int(_LENGTH.unpack_from(data, at + 1)[0])
        if end > size:
            break
        found.append(at)
        at = end
    return np.array(found, np.int64)


def at_rest(chunk: bytes) -> bool:
    """Whether nothing is on its way for sure: the last message is a Commit, or there are keepalives only.

    A server that has nothing more to send says so with a keepalive after the Commit.
    """
    end = len(chunk)
    while end >= _KEEP_BYTES and chunk[end - _KEEP_BYTES : end].startswith(_KEEP_FRAME):
        end -= _KEEP_BYTES
    if end < _COMMIT_BYTES:
        return end == 0
    commit = chunk[end - _COMMIT_BYTES : end]
    return commit.startswith(_COMMIT_FRAME) and commit[_HEADER + 25] == ord("C")


def _fields(body: bytes) -> dict[str, str]:
    """The fields of an ErrorResponse or NoticeResponse."""
    return {part[:1].decode(): part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
