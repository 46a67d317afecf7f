"""A server: a socket, uvicorn in a thread or in this one, its connections, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from headrace.errors import DeclarationError, HeadraceError
from headrace.event_log import event
from headrace.serve.exchange import Receive, Scope, Send
from headrace.serve.keys import LOOK_SECONDS, KeyFile, keys_beside
from headrace.serve.settings import ServeSettings
from headrace.serve.tracing import flush

# On every answer: a browser neither guesses what it is, nor keeps it, nor shows the page inside another site's.
HEADERS = [("x-content-type-options", "nosniff"), ("cache-control", "no-store"), ("x-frame-options", "DENY")]
logger = logging.getLogger("headrace")

FREE_PORT = 8080
PORTS_TRIED = 20
START_SECONDS = 30.0
STOP_SECONDS = 5
# The engine computes in this process too: a request waits for the interpreter so long at most, not for 5 ms.
SWITCH_S = 0.0005
HEAD_SECONDS = 20.0
HEAD_BYTES = 65_536
# So long a server that ends waits for a request on a connection that has none.
LAST_REQUEST_SECONDS = 0.3

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as HttpProtocol
else:
    HttpProtocol = AutoHTTPProtocol


def open_keys(settings: ServeSettings, log: str) -> KeyFile | None:
    """The file of keys that a server of this log looks at; None where there is no place for one."""
    path = settings.keys or keys_beside(log)
    return None if path is None else KeyFile(path)


def open_socket(settings: ServeSettings, *, reuse: bool = True) -> socket.socket:
    """Bind a socket. It listens when a server starts on it: until then connections are refused.

    Args:
        reuse: whether a port is taken that connections of an earlier server still linger on, or that another process
            has bound, and does not listen on yet.

    Raises:
        HeadraceError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise HeadraceError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise HeadraceError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", advice="Choose another --port."
        ) from error
    return opened


def open_free_socket(settings: ServeSettings) -> socket.socket:
    """Bind port 8080, or one of the next ones where it is taken: nobody has asked for one.

    Raises:
        HeadraceError: the address cannot be had.
    """
    for port in range(FREE_PORT, FREE_PORT + PORTS_TRIED):
        with contextlib.suppress(HeadraceError):
            return open_socket(settings.model_copy(update={"port": port}), reuse=False)
    return open_socket(settings.model_copy(update={"port": 0}))


class Connection(HttpProtocol):
    """A connection whose requests begin within 20 s, with heads of at most 64 KiB; else it is closed.

    uvicorn waits without a limit for a head that does not end: a few thousand connections, each sending a byte now and
    then, would use up what the server may open. Between two requests uvicorn's own keep-alive time counts. Used by the
    server's loop only.

    Args:
        is_ending: whether the server ends: it tells the connections that it has, and not those that are only being
            made (a TLS handshake takes its time).
    """

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _ending = False

    def __init__(self, *args: Any, is_ending: Callable[[], bool], **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_ending = is_ending

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request; called by asyncio."""
        super().connection_made(transport)
        if self._is_ending():
            self.shutdown()
        else:
            self._expect_head(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a head or of a body; called by asyncio."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before or (before is not None and not before.response_complete):
            if self._ending and self.cycle is not None:
                self.cycle.keep_alive = False
            self._forget_head()
            return
        if self._late is None:
            self._expect_head(HEAD_SECONDS)
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; called by asyncio."""
        self._forget_head()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End after one more request; called by uvicorn when the server ends.

        A request may be on its way already, and would fail if the connection were closed under it. Where none comes
        soon, the connection is closed.
        """
        self._ending = True
        if self.cycle is None or self.cycle.response_complete:
            self._forget_head()
            self._expect_head(LAST_REQUEST_SECONDS)
        else:
            self.cycle.keep_alive = False

    def _expect_head(self, seconds: float) -> None:
        self._late = self.loop.call_later(seconds, self._refuse)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self) -> None:
        self._forget_head()
        if not self.transport.is_closing():
            self.transport.close()


def announce(url: str) -> None:
    """Say where a server is asked."""
    logger.info("serving at %s   %s/docs", url, url, extra=event("serving", url=url))


class Served(Protocol):
    """An ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        ...

    async def look(self) -> None:
        """Look whether keys have come; called by the server's loop once a second."""
        ...


class Server:
    """An application, served. `start` serves in a thread, `run` in this one; `stop` may be called from any.

    Args:
        listening: a bound socket, which belongs to the server from here on.
        ending: called by `stop`, in its thread: requests that go on for ever are to end.
        ended: called when no request is answered any more.

    Raises:
        DeclarationError: it cannot work.
    """

    def __init__(
        self,
        app: Served,
        settings: ServeSettings,
        *,
        listening: socket.socket,
        ending: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._socket = listening
        self._ending = ending
        self._ended = ended
        # A header that says where a request came from is not believed: limits are by the address that connects.
        options: dict[str, Any] = {
            "proxy_headers": False,
            "timeout_graceful_shutdown": STOP_SECONDS,
            "timeout_keep_alive": 30,
            "limit_concurrency": settings.connections,
            "headers": HEADERS,
            "http": functools.partial(Connection, is_ending=lambda: self._server.should_exit),
            "callback_notify": app.look,
            "timeout_notify": LOOK_SECONDS,
        }
        if settings.tls_cert is not None:
            options |= {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none", **options
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise DeclarationError(f"the certificate or its key cannot be used: {error}") from error
        self._server: uvicorn.Server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        return int(self._socket.getsockname()[1])

    def __repr__(self) -> str:
        return f"Server({self.url})"

    @property
    def url(self) -> str:
        """Return its URL."""
        scheme = "http" if self.settings.tls_cert is None else "https"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{scheme}://{host}:{self.port}"

    def start(self) -> None:
        """Serve in a thread; returns when requests are answered."""
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread = threading.Thread(target=self._serve, name="headrace-serve", daemon=True)
        self._thread.start()
        self._wait_until_started()

    def run(self) -> None:
        """Serve until `stop`, or a signal where this is the main thread."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._ended()
            flush()

    def stop(self) -> None:
        """End: no new connections, requests that are being answered are; calling it twice is harmless."""
        self._ending()
        self._server.should_exit = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        try:
            self.run()
        except BaseException as error:  # told to whoever starts
            self._failed = error

    def _wait_until_started(self) -> None:
        assert self._thread is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise HeadraceError(f"the server did not start: {self._failed or 'no answer'}")
            time.sleep(0.005)
