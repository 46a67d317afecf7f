"""The two ways into a PostgreSQL server: a SQL connection, and a replication connection (a walsender).

The protocol is that of https://www.postgresql.org/docs/current/protocol-replication.html; the replication connection
uses libpq directly (`psycopg.pq`), because a message must cost no more than one call. Every error of the driver
leaves this module as a `SourceError`; no message contains the password.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from headrace.errors import SourceError, SourceRefused, SourceUnavailable

# Everything that our sessions depend on, whatever ALTER ROLE and ALTER DATABASE … SET say. Only what every role may set
# and every version from 14 on knows.
_SETTINGS = {
    # The text forms of values, in the snapshot and in the stream.
    "datestyle": "ISO",
    "timezone": "UTC",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "3",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "xmlbinary": "base64",
    "xmloption": "content",
    # What names and SQL mean. Names of types, functions and tables in text come with their schema.
    "search_path": "pg_catalog",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "array_nulls": "on",
    # Row security must refuse rather than hide rows.
    "row_security": "off",
    # No time-out interrupts a long read; slots and publications can be made.
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read\\ committed",
    # That a publication is gone is a warning (from version 18 on).
    "client_min_messages": "warning",
}
# Known from version 17 on only: set when the version is known. It would end the snapshot, and the decoding of a long
# transaction.
_NO_TIMEOUT = "SET transaction_timeout = 0"
_HAS_TIMEOUT = 170000
# What libpq says when trying again cannot help (a connection that fails has no SQLSTATE to read).
_HOPELESS = re.compile(
    r"authentication failed|no pg_hba\.conf entry|pg_hba\.conf rejects|no password supplied"
    r"|(role|database) \".*\" does not exist|is not permitted to log in|permission denied"
    r"|replication role|server does not support SSL|certificate verify failed|unsupported startup parameter"
    r"|does not match host name|(root )?certificate file|private key file|certificate present|definition of service"
)
_OF_TLS = re.compile("certificate|private key|match host name")
_POOLED = "unsupported startup parameter"  # what PgBouncer says of settings, and of replication connections
_LIBPQ_ADVICE = " Is the server running on that host and accepting TCP/IP connections?"
_CONNECT_SECONDS = 10.0
# Parameters of a connection that say where and as whom, and hold no secret.
_PUBLIC = frozenset({"host", "hostaddr", "port", "dbname", "user", "service", "passfile", "sslmode", "sslrootcert"})
_PUBLIC |= {"sslcert", "sslkey", "sslcrl", "channel_binding", "require_auth", "target_session_attrs"}


def _nobody(_pid: int) -> None:
    """Ignore a connection."""


@dataclass(frozen=True)
class Server:
    """A database's address, and the way to log in.

    Attributes:
        connected: told of each connection by its server process.

    >>> server = Server("postgresql://app:secret@db.example/shop", "headrace iris")
    >>> str(server), "secret" in repr(server)
    ('db.example:5432/shop', False)
    """

    dsn: str
    application: str = "headrace"
    connected: Callable[[int], None] = field(default=_nobody, compare=False)

    def parameters(self) -> dict[str, str]:
        """Return the connection's parameters as libpq names them."""
        try:
            given = conninfo_to_dict(self.dsn)
        except psycopg.Error:
            # The driver's message repeats the string, and with it the password.
            raise SourceRefused(
                "the connection string of the database cannot be read",
                advice="Write it as postgresql://USER@HOST:PORT/DATABASE or as host=… port=… dbname=…",
            ) from None
        parameters = {name: str(value) for name, value in given.items() if value is not None}
        settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        parameters["options"] = f"{parameters.get('options', '')} {settings}".strip()
        defaults = {
            # Asked for only where the user does: what libpq encrypts, only libpq can read.
            "gssencmode": os.environ.get("PGGSSENCMODE", "disable"),
            "application_name": self.application,
            "connect_timeout": "10",
            "keepalives_idle": "30",
            "keepalives_interval": "10",
            "keepalives_count": "3",
        }
        return {**defaults, **parameters, "client_encoding": "UTF8"}

    @property
    def address(self) -> str:
        """Return the connection string without what may be secret, to be kept.

        >>> Server("postgresql://app:secret@db.example/shop?options=-c%20x%3Dy").address
        'user=app dbname=shop host=db.example'
        """
        given = conninfo_to_dict(self.dsn)
        return make_conninfo("", **{name: given[name] for name in given if name in _PUBLIC})

    def conninfo(self, **extra: str) -> str:
        return make_conninfo("", **{**self.parameters(), **extra})

    def __str__(self) -> str:
        parameters = self.parameters()
        host = parameters.get("host") or parameters.get("hostaddr") or "localhost"
        return f"{host}:{parameters.get('port', '5432')}/{parameters.get('dbname', '')}"

    def __repr__(self) -> str:
        return f"Server({self})"

    def sql(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return an ordinary connection in autocommit mode.

        Raises:
            SourceUnavailable: the server cannot be reached now; SourceRefused: it will not let us in.
        """
        try:
            connection = psycopg.connect(self.conninfo(), autocommit=True)
        except psycopg.Error as error:
            raise self.failed_to_connect(str(error)) from error
        self.connected(connection.info.backend_pid)
        with self.translated("to set up the session"):
            for statement in no_timeout(connection.info.server_version):
                connection.execute(statement.encode())
        return connection

    def failed_to_connect(self, text: str) -> SourceError:
        """Return the error for what libpq said when a connection could not be made."""
        text = " ".join(text.split()).removeprefix("connection failed: ").removesuffix(_LIBPQ_ADVICE)
        if _HOPELESS.search(text):
            return SourceRefused(f"PostgreSQL at {self} refuses the connection: {text}", advice=_advice(text))
        return SourceUnavailable(
            f"PostgreSQL at {self} cannot be reached: {text}", advice="Is it running, and are host and port right?"
        )

    @contextlib.contextmanager
    def translated(self, what: str) -> Iterator[None]:
        """Translate errors of the driver inside the block; ``what`` says what was being done.

        Raises:
            SourceUnavailable: the connection broke; SourceRefused: the server refused the statement.
        """
        try:
            yield
        except psycopg.OperationalError as error:
            raise self.lost(error) from error
        except psycopg.Error as error:
            text = error.diag.message_primary or str(error)
            raise SourceRefused(
                f"PostgreSQL at {self} refuses {what}: {text}", advice=error.diag.message_hint or ""
            ) from error

    def lost(self, error: Exception) -> SourceUnavailable:
        """Return the error for a connection that broke while it was used."""
        return SourceUnavailable(f"the connection to PostgreSQL at {self} was lost: {' '.join(str(error).split())}")


def _advice(text: str) -> str:
    if _POOLED in text:
        return "That is a connection pooler (PgBouncer or the like): name the server's own host and port."
    if "does not support SSL" in text:
        return "Give the server a certificate and ssl = on; over a trusted network sslmode=prefer does without."
    if _OF_TLS.search(text):
        return "Check sslmode, sslrootcert, sslcert and sslkey, and that the server is called as its certificate says."
    if "replication" in text or "WAL sender" in text:
        return "Give the role the right: ALTER ROLE … REPLICATION; (and let pg_hba.conf admit it)."
    return "Check user, password, database and the server's pg_hba.conf."


def without_timeout(server: Server, version: int) -> dict[str, str]:
    """Return parameters of a connection whose transactions may take any time, on a server of this version."""
    if version < _HAS_TIMEOUT:
        return {}
    return {"options": f"{server.parameters().get('options', '')} -c transaction_timeout=0".strip()}


def no_timeout(server_version: int) -> tuple[str, ...]:
    """Return statements that a new session of this version needs."""
    return (_NO_TIMEOUT,) if server_version >= _HAS_TIMEOUT else ()


def _never() -> bool:
    return False


class Connecting:
    """A replication connection that is being made, in steps that never wait longer than they are told."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._deadline = time.monotonic() + _CONNECT_SECONDS
        self._pgconn = pq.PGconn.connect_start(server.conninfo(replication="database").encode())
        self._wanted = pq.PollingStatus.WRITING

    def step(self, timeout: float, wake_fd: int = -1) -> Replication | None:
        """Go on for ``timeout`` seconds, or until ``wake_fd`` is readable; None while it is not made.

        Raises:
            SourceUnavailable, SourceRefused: it failed; begin anew.
        """
        until = time.monotonic() + timeout
        while True:
            if self._pgconn.status == pq.ConnStatus.BAD:
                self._fail(self._pgconn.get_error_message("utf-8"))
            self._wait(until, wake_fd)
            status = self._pgconn.connect_poll() if self._ready else self._wanted
            if status == pq.PollingStatus.OK:
                if self._pgconn.parameter_status(b"server_encoding") == b"SQL_ASCII":
                    # Else the first text that is not UTF-8 ends the stream.
                    self._pgconn.exec_(b"SET client_encoding = 'SQL_ASCII'")
                return Replication(self._server, self._pgconn)
            if status == pq.PollingStatus.FAILED:
                self._fail(self._pgconn.get_error_message("utf-8"))
            self._wanted = pq.PollingStatus(status)
            now = time.monotonic()
            if now > self._deadline:
                self._fail(f"no answer within {_CONNECT_SECONDS:.0f} s")
            if self._woken or now >= until:
                return None

    def _wait(self, until: float, wake_fd: int) -> None:
        waiter = select.poll()
        fd = self._pgconn.socket
        waiter.register(fd, select.POLLIN if self._wanted == pq.PollingStatus.READING else select.POLLOUT)
        if wake_fd >= 0:
            waiter.register(wake_fd, select.POLLIN)
        seconds = max(0.0, min(until, self._deadline) - time.monotonic())
        events = [event for event, _ in waiter.poll(seconds * 1000)]
        self._ready, self._woken = fd in events, wake_fd in events

    def _fail(self, text: str) -> None:
        self._pgconn.finish()
        raise self._server.failed_to_connect(text)

    def close(self) -> None:
        self._pgconn.finish()


class Replication:
    """A connection in replication mode, bound to the database: it takes SQL and replication commands.

    Used by one thread. Every method raises `SourceUnavailable` when the connection is lost.
    """

    def __init__(self, server: Server, pgconn: pq.abc.PGconn) -> None:
        self.server = server
        self.pgconn = pgconn

    @classmethod
    def open(cls, server: Server, *, cancelled: Callable[[], bool] = _never) -> Replication:
        """Connect now.

        Raises:
            SourceUnavailable, SourceRefused: as `Server.sql`; also when ``cancelled`` says so.
        """
        connecting = Connecting(server)
        while True:
            made = connecting.step(0.2)
            if made:
                made.set_up()
                return made
            if cancelled():
                connecting.close()
                raise SourceUnavailable(f"connecting to {server} was interrupted")

    def set_up(self) -> None:
        """Set what could not be set while the version was not known; harmless when repeated."""
        self.server.connected(self.pgconn.backend_pid)
        for statement in no_timeout(self.pgconn.server_version):
            self.command(statement)

    @property
    def plain(self) -> bool:
        """Return whether the bytes on the socket are the protocol's own: neither TLS nor GSSAPI encryption."""
        return not self.pgconn.ssl_in_use and self.server.parameters().get("gssencmode") == "disable"

    def command(self, text: str, *, cancelled: Callable[[], bool] = _never) -> list[dict[str, str | None]]:
        """Run a command and give its rows, as text by column name.

        Waits in Python, so that signals are handled: CREATE_REPLICATION_SLOT waits for the transactions that are
        open when it is issued.

        Raises:
            CommandError: the server refused the command.
        """
        try:
            self.pgconn.send_query(text.encode())
            result = self._result(cancelled)
        except psycopg.OperationalError as error:
            raise self.server.lost(error) from error
        if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK, pq.ExecStatus.COPY_BOTH):
            raise self._refusal(result, text)
        names = [(result.fname(column) or b"").decode() for column in range(result.nfields)]
        return [
            {name: _text(result.get_value(row, column)) for column, name in enumerate(names)}
            for row in range(result.ntuples)
        ]

    def _result(self, cancelled: Callable[[], bool]) -> pq.abc.PGresult:
        waiter = select.poll()
        waiter.register(self.pgconn.socket, select.POLLIN)
        first = None
        while True:
            while self.pgconn.is_busy():
                if waiter.poll(200):
                    self.pgconn.consume_input()
                if cancelled():
                    self.close()
                    raise SourceUnavailable(f"a command to {self.server} was interrupted")
            result = self.pgconn.get_result()
            if result is None:
                break
            first = first or result
            if result.status == pq.ExecStatus.COPY_BOTH:
                return result
        if first is None:
            raise psycopg.OperationalError("no answer")
        return first

    def _refusal(self, result: pq.abc.PGresult, text: str) -> SourceError:
        message = (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode(errors="replace")
        code = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
        if not message or self.pgconn.status == pq.ConnStatus.BAD or code.startswith(("57P", "08")):
            return self.server.lost(psycopg.OperationalError(message or result.get_error_message("utf-8")))
        return CommandError(f"PostgreSQL at {self.server} refuses «{text}»: {message}", code=code)

    def close(self) -> None:
        """Drop the connection; calling it twice is harmless."""
        self.pgconn.finish()


class CommandError(SourceRefused):
    """The server answered a command with an error; ``code`` is its SQLSTATE."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
