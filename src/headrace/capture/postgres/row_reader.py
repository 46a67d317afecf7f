"""Connections that read the rows of queries as Arrow batches, by COPY in binary.

Where the bytes on the socket are the protocol's own, we read them off it, a megabyte at a time, and decode them column
by column (`copy_data`): ADBC, which asks libpq for each row and takes each value by itself, costs several times as
much. What TLS or GSSAPI encrypts only libpq can read; there it is ADBC.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import numpy as np
import psycopg
import pyarrow as pa
from psycopg import pq

from headrace.arrays import Bytes
from headrace.capture.postgres.catalog import SqlConnection
from headrace.capture.postgres.client import Server, without_timeout
from headrace.capture.postgres.copy_data import HEADROOM, CopyColumn, CopyRows
from headrace.capture.postgres.messages import PAD
from headrace.capture.read_ahead import ReadAhead
from headrace.errors import SourceError, SourceRefused, SourceUnavailable

_BATCH_BYTES = 1 << 19
_BLOCK_BYTES = 1 << 20
_COLUMN_BYTES = 16 << 10  # of a block: a column is decoded at once, which pays where it has a thousand values
_BLOCKS_AHEAD = 4
_WAIT_US = 4_000  # the rest of a block: whoever waits longer is given what is there
_LOOK_MS = 200
_READY = b"Z\0\0\0\x05"
_PATIENCE = struct.pack("@ll", 0, _WAIT_US)


class RowReader(Protocol):
    """A connection in autocommit mode, for one thread; `cancel` is called from any."""

    def execute(self, statement: str) -> None:
        """Run a statement without a result.

        Raises:
            SourceError: as `read`.
        """

    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        """Yield a query's rows, in batches of a megabyte or more. What Arrow cannot hold is null or any value.

        Raises:
            SourceUnavailable: the connection broke; SourceRefused: the server refuses the query.
        """

    def cancel(self) -> None:
        """End what is being read, with an error."""

    def close(self) -> None:
        """Close the connection."""


def connect_reader(server: Server) -> RowReader:
    """Return a connection that reads rows.

    Raises:
        SourceUnavailable: the server cannot be reached now; SourceRefused: it will not let us in.
    """
    connection = server.sql()
    encoding = connection.info.parameter_status("server_encoding")
    try:
        reader = _copying(server, connection)
    except BaseException:
        connection.close()
        raise
    reader.execute("SET synchronize_seqscans = off")
    if encoding == "SQL_ASCII":
        reader.execute("SET client_encoding = 'SQL_ASCII'")  # else the first text that is not UTF-8 ends it
    return reader


def _copying(server: Server, connection: SqlConnection) -> RowReader:
    if not connection.pgconn.ssl_in_use and server.parameters().get("gssencmode") == "disable":
        return SocketReader(server, connection)
    version = connection.info.server_version
    connection.close()
    return AdbcReader(server, version)


def broken(server: Server, sqlstate: str, text: str) -> SourceError:
    """Return the error for what a server or a driver says of a query."""
    text = " ".join(text.split())
    if sqlstate and not sqlstate.startswith(("57P", "08", "53")):
        return SourceRefused(f"the snapshot of {server} was refused: {text}")
    return SourceUnavailable(f"the snapshot of {server} broke off: {text}")


class SocketReader:
    """A `RowReader` that takes the bytes off the socket."""

    def __init__(self, server: Server, connection: SqlConnection) -> None:
        self._server, self._connection = server, connection

    def execute(self, statement: str) -> None:
        """See `RowReader.execute`."""
        try:
            self._connection.execute(statement.encode())
        except psycopg.Error as error:
            raise broken(self._server, error.sqlstate or "", error.diag.message_primary or str(error)) from error

    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        """See `RowReader.read`. It is read to its end, or the connection is closed."""
        columns = self._columns(query)
        rows, size = CopyRows(columns), max(_BLOCK_BYTES, _COLUMN_BYTES * len(columns))
        free: list[Bytes] = []
        done = False
        try:
            with contextlib.closing(
                ReadAhead(lambda stopped: self._blocks(query, size, stopped, free), "headrace-copy")
            ) as blocks:
                yield from gathered(self._decoded(rows, blocks, free))
            done = rows.ended
        finally:
            if not done:
                self.close()
        if rows.refusal is not None:
            raise broken(self._server, rows.refusal.get("C", ""), rows.refusal.get("M", ""))

    def _columns(self, query: str) -> list[CopyColumn]:
        pgconn = self._connection.pgconn
        for result in (pgconn.prepare(b"", query.encode()), pgconn.describe_prepared(b"")):
            if result.status != pq.ExecStatus.COMMAND_OK:
                sqlstate = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
                raise broken(self._server, sqlstate, result.get_error_message("utf-8"))
        names = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
        return [CopyColumn(name, result.ftype(place), result.fmod(place)) for place, name in enumerate(names)]

    @staticmethod
    def _decoded(rows: CopyRows, blocks: ReadAhead[tuple[Bytes, int]], free: list[Bytes]) -> Iterator[pa.RecordBatch]:
        for block, stop in blocks:
            yield from rows.feed(block, HEADROOM, stop)
            free.append(block)

    def _blocks(
        self, query: str, size: int, stopped: threading.Event, free: list[Bytes]
    ) -> Iterator[tuple[Bytes, int]]:
        """Yield all that the server answers: blocks, and where the bytes end that begin behind their headroom."""
        fd = self._connection.pgconn.socket
        message = f"COPY ({query}) TO STDOUT (FORMAT binary)".encode() + b"\0"
        with socket.socket(fileno=socket.dup(fd)) as bare:
            bare.setblocking(True)
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
            try:
                bare.sendall(b"Q" + struct.pack(">I", 4 + len(message)) + message)
                yield from self._received(bare, size, stopped, free)
            except OSError as error:
                raise self._server.lost(error) from error
            finally:
                bare.setblocking(False)  # as libpq left it

    def _received(
        self, bare: socket.socket, size: int, stopped: threading.Event, free: list[Bytes]
    ) -> Iterator[tuple[Bytes, int]]:
        waiter = select.poll()
        waiter.register(bare, select.POLLIN)
        tail = b""
        while tail[:-1] != _READY and not stopped.is_set():
            block = free.pop() if free else np.empty(HEADROOM + size + len(PAD), np.uint8)
            room = block.data[HEADROOM : HEADROOM + size]
            stop = 0
            while stop < size and tail[:-1] != _READY:
                try:
                    # As much as fits, in one call: each gives up the interpreter's lock, and has to wait for it.
                    n = bare.recv_into(room[stop:], flags=socket.MSG_WAITALL)
                except BlockingIOError:
                    if stop or stopped.is_set():
                        break
                    waiter.poll(_LOOK_MS)
                    continue
                if not n:
                    raise self._server.lost(psycopg.OperationalError("the server closed the connection"))
                stop += n
                tail = bytes(room[max(0, stop - 6) : stop]) if stop >= 6 else (tail + bytes(room[:stop]))[-6:]
            if stop:
                yield block, HEADROOM + stop

    def cancel(self) -> None:
        """See `RowReader.cancel`."""
        with contextlib.suppress(psycopg.Error):
            self._connection.cancel()

    def close(self) -> None:
        """See `RowReader.close`."""
        self._connection.close()


def gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches put together to ones of half a megabyte at least: each is an entry of the log.

    >>> [batch.num_rows for batch in gathered(iter([pa.record_batch({"id": [1, 2]})] * 3))]
    [6]
    """
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= _BATCH_BYTES:
            yield _joined(held)
            held, size = [], 0
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    if not batches[0].num_columns:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * sum(map(len, batches)), pa.struct([])))
    return pa.concat_batches(batches)


class AdbcReader:
    """A `RowReader` for connections that libpq encrypts."""

    def __init__(self, server: Server, version: int) -> None:
        self._server = server
        # While it connects it asks for all types: on a busy machine that may take longer than a role's timeout.
        with self._translated():
            self._connection = adbc.connect(server.conninfo(**without_timeout(server, version)), autocommit=True)
        self._reading: Any = None

    def execute(self, statement: str) -> None:
        """See `RowReader.execute`."""
        with self._translated(), contextlib.closing(self._connection.cursor()) as cursor:
            cursor.execute(statement)

    def read(self, query: str) -> Iterator[pa.RecordBatch]:
        """See `RowReader.read`."""
        with self._translated(), contextlib.closing(self._connection.cursor()) as cursor:
            cursor.adbc_statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)})
            self._reading = cursor
            try:
                cursor.execute(query)
                yield from cursor.fetch_record_batch()
            finally:
                self._reading = None

    def cancel(self) -> None:
        """See `RowReader.cancel`."""
        with contextlib.suppress(adbc_driver_manager.Error, AttributeError):
            self._reading.adbc_cancel()

    def close(self) -> None:
        """See `RowReader.close`."""
        with contextlib.suppress(adbc_driver_manager.Error):
            self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except adbc_driver_manager.Error as error:
            raise broken(self._server, error.sqlstate or "", str(error)) from error
        except pa.ArrowException as error:
            raise broken(self._server, "", str(error)) from error
