"""Reading a replication stream as fast as the server sends it.

CopyData payloads of https://www.postgresql.org/docs/current/protocol-replication.html: ``w`` XLogData (25 bytes of
header, then a `pgoutput` message), ``k`` primary keepalive (18 bytes: walEnd, clock, whether a reply is wanted), from
PostgreSQL 19 on ``s`` primary status update, and from us ``r`` standby status update.

The server sends every message by itself. Waiting in `poll` for each costs it a wake-up and us a system call a
message; under load a short sleep instead lets the socket's buffer fill (Unix sockets: 280 small messages), which
is read at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
import weakref

import psycopg
from psycopg import pq

from headrace.capture.postgres.client import Replication, Server
from headrace.capture.postgres.messages import UNIX_2000_US, Frame
from headrace.capture.postgres.slot_binding import Stranded
from headrace.errors import DecodeError, SourceError, SourceRefused
from headrace.position import format_lsn

MOST_MESSAGES = 16_384
MOST_BYTES = 8 << 20
KEEPALIVE = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")
# Classes of SQLSTATE: not supported, bad data, no right, no such object, object not in the right state.
LASTING = ("0A", "22", "28", "42", "55")
_MESSAGE_TYPE = 25  # of the pgoutput message inside an XLogData
_COMMIT = ord("C")
_XLOG, _KEEP, _PRIMARY_STATUS = b"wks"
NOT_IN_STATE = "55000"  # SQLSTATE object_not_in_prerequisite_state
_NO_OBJECT = ("42704", NOT_IN_STATE)

# Measured with a server that makes 300,000 small messages a second on a Unix socket.
NAP_S = 150e-6  # while messages pour in: let them gather
_POURING = 1024  # bytes gathered in one nap
_FULL = 4096  # bytes in one read of libpq's buffer: there may be more
_FEW = 48  # messages: no load
SETTLE_MS = 0.2  # in the middle of a transaction: the rest is on its way
LINGER_S = 0.005  # no longer than this in one read


class Wake:
    """A pipe that wakes a thread that waits in `poll`.

    `set` may be called from any thread and from signal handlers; the others from the thread that waits.

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
        # Not when the interpreter ends: threads that are left then may still wake others.
        weakref.finalize(self, _close, self.fd, self._writer).atexit = False
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


class StartedStream:
    """A started stream, however it is read: status updates, sent from any thread, and messages that are no rows.

    Attributes:
        size: bytes of the last read's messages.
        pouring: the last read ended because there was so much, not because nothing more came.
        wal_end: everything committed before this LSN has been given out (from keepalives).
        reply_wanted: the server has asked for a status update since the last one was sent.
    """

    def __init__(self, replication: Replication, publication: str, lsn: int) -> None:
        self.size = 0
        self.pouring = False
        self.wal_end = 0
        self.reply_wanted = False
        self._replication, self._server = replication, replication.server
        self._wake = Wake()
        self._both, self._data = select.poll(), select.poll()
        for waiter, fd in (
            (self._both, replication.pgconn.socket),
            (self._both, self._wake.fd),
            (self._data, replication.pgconn.socket),
        ):
            waiter.register(fd, select.POLLIN)
        self._publication, self._from = publication, lsn
        # A connection is not for two threads at a time.
        self._lock = threading.Lock()
        self._status = (lsn, lsn)
        self._status_at = time.monotonic()

    def send_status(self, *, received: int, flushed: int, ask: bool = False) -> None:
        """Send a standby status update: the slot may forget what committed before ``flushed``.

        Args:
            received: how far the stream has been read, for the server's statistics.
            flushed: how far it is stored durably.
            ask: have the server answer with a keepalive at once.
        """
        with self._lock:
            self._status = (received, flushed)
            self._send(ask)

    def repeat_status(self, after: float) -> None:
        """Send the last status once more when it is so many seconds old, or when the server wants one."""
        with self._lock:
            if self.reply_wanted or time.monotonic() - self._status_at >= after:
                self._send(ask=False)

    def _send(self, ask: bool) -> None:
        self.reply_wanted, self._status_at = False, time.monotonic()
        self._put(status_update(*self._status, ask=ask))

    def _note(self, payload: bytes) -> None:
        """Deal with a CopyData payload that is no XLogData.

        Raises:
            DecodeError: it is of a kind that nobody knows.
        """
        kind = payload[0] if payload else 0
        if kind == _KEEP and len(payload) == KEEPALIVE.size:
            _, wal_end, _, reply = KEEPALIVE.unpack(payload)
            self.wal_end = max(self.wal_end, wal_end)
            self.reply_wanted |= bool(reply)
        elif payload and kind != _PRIMARY_STATUS:  # about two-phase and dead tuples, for subscribers
            what = f"a CopyData message of kind {chr(kind)!r} and {len(payload)} bytes"
            raise self._misunderstood(f"{what}, where XLogData ('w') or a keepalive ('k') was due")

    def _misunderstood(self, what: str) -> DecodeError:
        where = format_lsn(max(self.wal_end, self._from))
        return DecodeError(
            f"PostgreSQL at {self._server} sent {what}, at or after {where}",
            advice="Restart the capture: it resumes from the log. If it happens again, report it with this message.",
        )

    def _said(self, code: str, text: str) -> SourceError:
        """Return the error for what the server said when it ended the stream."""
        text = " ".join(text.split())
        if code in _NO_OBJECT and self._publication in text:  # the name: texts are in the server's language
            return gone_publication(self._server, self._publication, text, self._from)
        if code[:2] in LASTING:
            return SourceRefused(
                f"PostgreSQL at {self._server} ended the stream: {text}",
                advice="Mend what it names and start again: the capture resumes where the log ends.",
            )
        return self._server.lost(psycopg.OperationalError(text))

    def wake(self) -> None:
        """Make a waiting `read` return."""
        self._wake.set()

    def close(self) -> None:
        """Drop the connection; calling it twice is harmless. Nobody may be reading."""
        self._replication.close()

    def _put(self, message: bytes) -> None:
        """Send one CopyData payload.

        Raises:
            SourceUnavailable: the connection is lost.
        """
        raise NotImplementedError


class ReplicationStream(StartedStream):
    """A stream read by libpq. One thread reads; `send_status` and `wake` may be called from another."""

    def __init__(self, replication: Replication, publication: str, lsn: int) -> None:
        super().__init__(replication, publication, lsn)
        self._pgconn = replication.pgconn
        self._error: SourceError | None = None
        self._pgconn.notice_handler = self._notice

    @classmethod
    def start(
        cls, replication: Replication, *, slot: str, lsn: int, publication: str, binary: bool, messages: bool = False
    ) -> ReplicationStream:
        """Start the replication of what committed at or after ``lsn``, as `pgoutput` protocol 1, whole transactions
        only.

        Raises:
            CommandError: the server refuses (slot gone, in use, invalidated; publication gone).
        """
        command = start_replication(slot=slot, lsn=lsn, publication=publication, binary=binary, messages=messages)
        replication.command(command)
        return cls(replication, publication, lsn)

    def read(self, timeout: float) -> list[bytes]:
        """Return the XLogData payloads that are there, waiting at most ``timeout`` seconds for the first.

        A lone transaction is returned at once. While messages pour in, they are gathered for up to 5 ms, 16,384
        messages or 8 MB. Keepalives are noted and left out. What came before an error is given out before it.

        Raises:
            SourceUnavailable: the connection is lost, or the server ended the stream.
            SourceRefused: the server ended it with an error that will come again.
            DecodeError: it sent something that the protocol does not know.
        """
        messages: list[bytes] = []
        self.size, self.pouring = 0, False
        if self._error is None:
            try:
                self._read(messages, timeout)
            except psycopg.OperationalError as error:
                self._error = self._server.lost(error)
            except SourceError as error:
                self._error = error
        if self._error is not None and not messages:
            raise self._error
        return messages

    def _read(self, messages: list[bytes], timeout: float) -> None:
        self._take(messages)
        if not messages:
            if not self._both.poll(max(0.0, timeout) * 1000):
                return
            self._wake.clear()
            self._take(messages)
        if messages:
            self._gather(messages)

    def frame(self, messages: list[bytes]) -> Frame | None:
        """Return what `read` gave, laid out for the decoder."""
        return Frame.of(messages) if messages else None

    def _gather(self, messages: list[bytes]) -> None:
        """Read on while more comes."""
        until = time.monotonic() + LINGER_S
        before = 0
        while len(messages) < MOST_MESSAGES and self.size < MOST_BYTES:
            if self.size - before >= _POURING:
                time.sleep(NAP_S)
            elif (len(messages) < _FEW and messages[-1][_MESSAGE_TYPE] == _COMMIT) or not self._data.poll(SETTLE_MS):
                return
            if time.monotonic() > until:
                break
            before = self.size
            self._take(messages)
        self.pouring = True

    def _take(self, messages: list[bytes]) -> None:
        """Move what the socket holds into ``messages``."""
        get, append, consume = self._pgconn.get_copy_data, messages.append, self._pgconn.consume_input
        while len(messages) < MOST_MESSAGES and self.size < MOST_BYTES:
            first = len(messages)
            with self._lock:
                consume()
                while True:
                    size, data = get(1)
                    if size <= 0 or self._error is not None:
                        break
                    payload = bytes(data)  # a copy is cheaper than a view: the garbage collector tracks views
                    if payload[0] == _XLOG:
                        append(payload)
                    else:
                        self._note(payload)
                if self._error is not None:
                    raise self._error
                if size < 0:
                    raise self._ended()
            taken = sum(map(len, messages[first:]))
            self.size += taken
            if taken < _FULL:
                return  # libpq's buffer was not full: the socket is empty

    def _notice(self, result: pq.abc.PGresult) -> None:
        """Note a warning: PostgreSQL 18 goes on without a publication that is gone, and leaves its rows out."""
        code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        if code == NOT_IN_STATE:
            self._error = self._said(code, result.get_error_message("utf-8"))

    def _ended(self) -> SourceError:
        """Return the error for what the server said when it ended the COPY."""
        result = self._pgconn.get_result()
        text = result.get_error_message("utf-8") if result is not None and result.error_message else "stream ended"
        code = result.error_field(pq.DiagnosticField.SQLSTATE) if result is not None else None
        return self._said((code or b"").decode(), text)

    def _put(self, message: bytes) -> None:
        try:
            self._pgconn.put_copy_data(message)
            self._pgconn.flush()
        except psycopg.OperationalError as error:
            raise self._server.lost(error) from error

    def finish(self) -> None:
        """End the stream in good order, so that the server gets the last status; takes a second at most."""
        with contextlib.suppress(psycopg.OperationalError):
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            until = time.monotonic() + (1.0 if self._error is None else 0.0)
            while time.monotonic() < until:
                size, _ = self._pgconn.get_copy_data(1)
                if size < 0:
                    break
                if size == 0 and self._data.poll(100):
                    self._pgconn.consume_input()
        self.close()


def start_replication(*, slot: str, lsn: int, publication: str, binary: bool, messages: bool = False) -> str:
    """Return the command that starts a stream of `pgoutput` protocol 1: whole transactions only.

    Args:
        messages: with what `pg_logical_emit_message` writes.
    """
    name = publication.replace('"', '""').replace("'", "''")
    options = f"proto_version '1', publication_names '\"{name}\"', binary '{str(binary).lower()}'"
    options += ", messages 'true'" if messages else ""
    return f'START_REPLICATION SLOT "{slot}" LOGICAL {format_lsn(lsn)} ({options})'


def status_update(received: int, flushed: int, *, ask: bool) -> bytes:
    """Return the body of a standby status update."""
    clock = time.time_ns() // 1000 - UNIX_2000_US
    return _STATUS.pack(b"r", max(received, flushed), flushed, flushed, clock, ask)


def gone_publication(server: Server, name: str, text: str, lsn: int) -> SourceRefused:
    """Return the error for a publication that is gone, or was made after what is to be read.

    Up to version 17 the server ends the stream. Version 18 goes on, and only warns that it leaves the rows out.
    """
    return Stranded(
        f"publication «{name}» is not there at every place of what is to be read from {format_lsn(lsn)} on: it was "
        "dropped (and perhaps made again later), and changes committed without it cannot be read any more (PostgreSQL "
        f"at {server}: {text})",
        force=True,
    )
