"""Reading a replication stream as fast as the server sends it.

CopyData payloads of https://www.postgresql.org/docs/current/protocol-replication.html: ``w`` XLogData (25 bytes of
header, then a `pgoutput` message), ``k`` primary keepalive (18 bytes: walEnd, clock, whether a reply is wanted), and
from us ``r`` standby status update.

The server sends every message by itself. Waiting in `poll` for each costs it a wake-up and us a system call a
message; under load a short sleep instead lets the socket's buffer fill (Unix sockets: 280 small messages), which
is read at once.
"""

from __future__ import annotations

import select
import struct
import time

import psycopg

from headrace.capture.postgres.client import Replication, Server
from headrace.errors import SourceUnavailable
from headrace.position import format_lsn

MOST_MESSAGES = 65_536
MOST_BYTES = 32 << 20
_KEEPALIVE = struct.Struct(">cQqB")
_STATUS = struct.Struct(">cQQQqB")
_UNIX_2000_US = 946_684_800_000_000
_MESSAGE_TYPE = 25  # of the pgoutput message inside an XLogData
_COMMIT = ord("C")

# Measured with a server that makes 300,000 small messages a second on a Unix socket.
_NAP_S = 150e-6  # while messages pour in: let them gather
_POURING = 4096  # bytes gathered in one nap
_FEW = 48  # messages: no load
_SETTLE_MS = 0.2  # in the middle of a transaction: the rest is on its way
_LINGER_S = 0.02  # no longer than this in one read


class ReplicationStream:
    """A started stream; used by one thread.

    Attributes:
        wal_end: everything committed before this LSN has been read (from keepalives).
        reply_wanted: the server has asked for a status update since the last one was sent.
        last_keepalive: when the last keepalive came (`time.monotonic`).
    """

    def __init__(self, replication: Replication, wake_fd: int) -> None:
        self.wal_end = 0
        self.reply_wanted = False
        self.last_keepalive = time.monotonic()
        self._server: Server = replication.server
        self._replication = replication
        self._pgconn = replication.pgconn
        self._fd = self._pgconn.socket
        self._bytes = 0
        self._both = select.poll()
        self._both.register(self._fd, select.POLLIN)
        self._both.register(wake_fd, select.POLLIN)
        self._data = select.poll()
        self._data.register(self._fd, select.POLLIN)

    @classmethod
    def start(
        cls, replication: Replication, *, slot: str, lsn: int, publication: str, binary: bool, wake_fd: int
    ) -> ReplicationStream:
        """START_REPLICATION: what committed at or after ``lsn``, as `pgoutput` protocol 1, whole transactions only.

        Raises:
            CommandError: the server refuses (slot gone, in use, invalidated; publication gone).
        """
        name = publication.replace('"', '""').replace("'", "''")
        options = f"proto_version '1', publication_names '\"{name}\"', binary '{str(binary).lower()}'"
        replication.command(f'START_REPLICATION SLOT "{slot}" LOGICAL {format_lsn(lsn)} ({options})')
        return cls(replication, wake_fd)

    def read(self, timeout: float) -> list[bytes]:
        """The XLogData payloads that are there, waiting at most ``timeout`` seconds for the first.

        A lone transaction is returned at once. While messages pour in, they are gathered for up to 20 ms, 65,536
        messages or 32 MB. Keepalives are noted and left out.

        Raises:
            SourceUnavailable: the connection is lost, or the server ended the stream.
        """
        messages: list[bytes] = []
        self._bytes = 0
        try:
            self._take(messages)
            if not messages:
                if not self._both.poll(max(0.0, timeout) * 1000):
                    return messages
                self._take(messages)
            if messages:
                self._gather(messages)
        except psycopg.OperationalError as error:
            raise self._server.lost(error) from error
        return messages

    def _gather(self, messages: list[bytes]) -> None:
        """Read on while more comes."""
        until = time.monotonic() + _LINGER_S
        before = 0
        while len(messages) < MOST_MESSAGES and self._bytes < MOST_BYTES:
            if self._bytes - before >= _POURING:
                time.sleep(_NAP_S)
            elif (messages[-1][_MESSAGE_TYPE] == _COMMIT and len(messages) < _FEW) or not self._data.poll(_SETTLE_MS):
                return
            if time.monotonic() > until:
                return
            before = self._bytes
            self._take(messages)

    def _take(self, messages: list[bytes]) -> None:
        """Move what the socket holds into ``messages``."""
        get, append, consume = self._pgconn.get_copy_data, messages.append, self._pgconn.consume_input
        while len(messages) < MOST_MESSAGES and self._bytes < MOST_BYTES:
            consume()
            first = len(messages)
            while True:
                size, data = get(1)
                if size > _KEEPALIVE.size:
                    append(bytes(data))  # a copy is cheaper than a view: the garbage collector tracks views
                elif size > 0:
                    self._keepalive(data)
                else:
                    break
            if size < 0:
                raise self._ended()
            taken = sum(map(len, messages[first:]))
            self._bytes += taken
            if taken < _POURING:
                return  # libpq's buffer was not full: the socket is empty

    def _keepalive(self, data: memoryview) -> None:
        _, wal_end, _, reply = _KEEPALIVE.unpack(data)
        self.wal_end = max(self.wal_end, wal_end)
        self.reply_wanted |= bool(reply)
        self.last_keepalive = time.monotonic()

    def _ended(self) -> SourceUnavailable:
        """The server has ended the COPY: what it said about it."""
        result = self._pgconn.get_result()
        text = result.get_error_message("utf-8") if result is not None and result.error_message else "stream ended"
        return self._server.lost(psycopg.OperationalError(text))

    def send_status(self, *, received: int, flushed: int, ask: bool = False) -> None:
        """Standby status update: the slot may forget what committed before ``flushed``.

        Args:
            received: how far the stream has been read, for the server's statistics.
            flushed: how far it is stored durably.
            ask: have the server answer with a keepalive at once.
        """
        clock = time.time_ns() // 1000 - _UNIX_2000_US
        message = _STATUS.pack(b"r", max(received, flushed), flushed, flushed, clock, ask)
        try:
            self._pgconn.put_copy_data(message)
            self._pgconn.flush()
        except psycopg.OperationalError as error:
            raise self._server.lost(error) from error
        self.reply_wanted = False

    def close(self) -> None:
        """Drop the connection; calling it twice is harmless."""
        self._replication.close()

    def finish(self) -> None:
        """End the stream in good order, so that the server frees the slot before this returns (2 s at most)."""
        try:
            self._pgconn.put_copy_end()
            self._pgconn.flush()
            until = time.monotonic() + 2.0
            while time.monotonic() < until:
                size, _ = self._pgconn.get_copy_data(1)
                if size < 0:
                    break
                if size == 0 and self._data.poll(100):
                    self._pgconn.consume_input()
        except psycopg.OperationalError:
            pass
        self.close()
