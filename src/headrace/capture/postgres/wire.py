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

from headrace.arrays import Ints
from headrace.capture.postgres.client import CommandError, Replication
from headrace.capture.postgres.copy_data import fields_of
from headrace.capture.postgres.messages import PAD, Frame, gather
from headrace.capture.postgres.stream import (
    LINGER_S,
    MOST_BYTES,
    NAP_S,
    NOT_IN_STATE,
    SETTLE_MS,
    StartedStream,
    start_replication,
)
from headrace.errors import SourceError

_READ_BYTES = 1 << 16  # more than a Unix socket holds; small enough for the allocator to keep
_FEW = 8192  # bytes: no load
_HEADER = 5
_LENGTH = struct.Struct(">I")
_DATA, _XLOG, _KEEP = b"dwk"
# CopyData; CopyDone, CommandComplete, ErrorResponse, ReadyForQuery; notices, parameters, notifications.
_KINDS = b"d" + b"cCEZ" + b"NSA"
_COMMIT_BYTES = 5 + 25 + 26  # CopyData header, XLogData header, Commit
_COMMIT_FRAME = b"d" + _LENGTH.pack(_COMMIT_BYTES - 1) + b"w"
_KEEP_BYTES = 5 + 18
_KEEP_FRAME = b"d" + _LENGTH.pack(_KEEP_BYTES - 1) + b"k"


class WireStream(StartedStream):
    """A started stream, with the methods of `ReplicationStream`; what `read` gives are bytes, not messages.

    Attributes:
        ended: why nothing comes after what `frame` gave last: the server ended the stream, or is not understood.
    """

    def __init__(self, replication: Replication, publication: str, lsn: int) -> None:
        super().__init__(replication, publication, lsn)
        self.ended: SourceError | None = None
        self._fd = replication.pgconn.socket
        self._begun = b""  # came with the answer to START_REPLICATION: nothing else may come for a long time
        self._rest = b""
        self._lost: SourceError | None = None

    @classmethod
    def start(
        cls, replication: Replication, *, slot: str, lsn: int, publication: str, binary: bool, messages: bool = False
    ) -> WireStream:
        """Start as `ReplicationStream.start` does."""
        stream = cls(replication, publication, lsn)
        command = start_replication(slot=slot, lsn=lsn, publication=publication, binary=binary, messages=messages)
        stream._command(command)
        return stream

    def read(self, timeout: float) -> list[bytes]:
        """Return the bytes that are there, waiting at most ``timeout`` seconds; see `ReplicationStream.read`.

        Raises:
            SourceUnavailable: the connection is lost; what came before was given out.
        """
        chunks: list[bytes] = []
        self.size, self.pouring = 0, False
        if self._lost is not None:
            raise self._lost
        if self._begun:
            begun, self._begun = self._begun, b""
            self._note_wanted(begun)
            return [begun]
        self._take(chunks)
        if not chunks:
            if not self._both.poll(max(0.0, timeout) * 1000):
                return chunks
            self._wake.clear()
            self._take(chunks)
        if chunks:
            try:
                self._gather(chunks)
            except SourceError as error:
                self._lost = error  # the last bytes before it may say why
        return chunks

    def frame(self, chunks: list[bytes]) -> Frame | None:
        """Return the messages in what `read` gave, all of it and in that order; the rest of the last waits for more.

        What comes before the end of the stream is given; `ended` then says why nothing follows.
        """
        if self.ended is not None:
            return None
        data = b"".join([self._rest, *chunks, PAD])
        start, end, used = self._frames(data)
        self._rest = data[used : -len(PAD)]
        if not start.size:
            return None
        return Frame.at(data, start, end)

    def _frames(self, data: bytes) -> tuple[Ints, Ints, int]:
        """Return where XLogData payloads start and end, and how many bytes are dealt with."""
        size = len(data) - len(PAD)
        first = frames(data, size)
        used = int(first[-1]) + 1 + int(_LENGTH.unpack_from(data, int(first[-1]) + 1)[0]) if first.size else 0
        if used + _HEADER <= size:
            followed, used = self._follow(data, used, size)
            first = np.concatenate([first, np.array(followed, np.int64)])
        at = first + _HEADER
        end = first + 1 + gather(np.frombuffer(data, np.uint8), first + 1, ">u4").astype(np.int64)
        kinds = np.frombuffer(data, np.uint8)[at]
        rows = kinds == _XLOG
        if not rows.all():
            for number in np.flatnonzero(~rows).tolist():
                try:
                    self._note(data[int(at[number]) : int(end[number])])
                except SourceError as error:
                    # What stands before it is still good; nothing after it is.
                    self.ended, rows[number:] = error, False
                    break
            at, end = at[rows], end[rows]
        return at, end, used

    def _follow(self, data: bytes, at: int, size: int) -> tuple[list[int], int]:
        """Follow frames one by one, dealing with those that are no CopyData; the CopyData's, and where it stopped."""
        found = []
        while at + _HEADER <= size and self.ended is None:
            end = at + 1 + int(_LENGTH.unpack_from(data, at + 1)[0])
            if data[at] not in _KINDS:
                self.ended = self._misunderstood(f"a message of the unknown kind {chr(data[at])!r}")
            elif end > size:
                break
            elif data[at] != _DATA:
                self.ended = self._talk(data[at : at + 1], data[at + _HEADER : end])
            elif end > at + _HEADER:
                found.append(at)
            at = end
        return found, at

    def _talk(self, kind: bytes, body: bytes) -> SourceError | None:
        """Deal with a message that is no CopyData; the error when nothing good comes after it."""
        fields = fields_of(body) if kind in (b"E", b"N") else {}
        code, text = fields.get("C", ""), fields.get("M", "stream ended")
        if kind in (b"E", b"c", b"C", b"Z") or code == NOT_IN_STATE:
            return self._said(code, text)
        return None  # NoticeResponse, ParameterStatus, NotificationResponse: may come at any time

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
        self._note_wanted(data)

    def _note_wanted(self, data: bytes) -> None:
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
                    self._begun = data
                    return
                if kind == b"E":
                    raise self._refusal(fields_of(body), text)

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

    def finish(self) -> None:
        """End the stream in good order, so that the server gets the last status; takes a second at most."""
        with contextlib.suppress(SourceError):
            self._write(b"c", b"")
            until = time.monotonic() + (1.0 if self.ended is None else 0.0)
            tail = b""
            while time.monotonic() < until and b"c\0\0\0\x04" not in tail:
                chunks: list[bytes] = []
                self._data.poll(100)
                self._take(chunks)
                tail = (tail + b"".join(chunks))[-_READ_BYTES:]
        self.close()


def frames(data: bytes, size: int) -> Ints:
    """Return the first bytes of whole CopyData frames at the beginning of a buffer; others may follow.

    What looks like a frame's beginning is searched everywhere at once; usually each one ends where the next begins,
    and that proves them. A row that happens to hold such bytes breaks the chain; what comes after it, and what does
    not look like a frame (one over 16 MB), is left to be followed one by one.

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
        return first[:0]
    end = first + 1 + gather(np.frombuffer(data, np.uint8), first + 1, ">u4").astype(np.int64)
    proven = first.size if (end[:-1] == first[1:]).all() else int((end[:-1] != first[1:]).argmax()) + 1
    return first[: proven - (int(end[proven - 1]) > size)]


def at_rest(chunk: bytes) -> bool:
    """Return whether nothing is on its way for sure: the last message is a Commit, or there are keepalives only.

    A server that has nothing more to send says so with a keepalive after the Commit.
    """
    end = len(chunk)
    while end >= _KEEP_BYTES and chunk[end - _KEEP_BYTES : end].startswith(_KEEP_FRAME):
        end -= _KEEP_BYTES
    if end < _COMMIT_BYTES:
        return end == 0
    commit = chunk[end - _COMMIT_BYTES : end]
    return commit.startswith(_COMMIT_FRAME) and commit[_HEADER + 25] == ord("C")
