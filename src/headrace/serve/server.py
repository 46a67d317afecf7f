"""A server: a socket, uvicorn in a thread or in this one, and its end."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Sequence
from typing import Any

from headrace.errors import DeclarationError, HeadraceError
from headrace.serve.api import application
from headrace.serve.keys import LOOK_SECONDS, KeyFile, keys_beside
from headrace.serve.models import Models
from headrace.serve.parameters import Endpoint
from headrace.serve.settings import ServeSettings
from headrace.serve.tracing import flush

# On every answer: a browser neither guesses what it is, nor keeps it, nor shows the page inside another site's.
HEADERS = [("x-content-type-options", "nosniff"), ("cache-control", "no-store"), ("x-frame-options", "DENY")]
START_SECONDS = 30.0
STOP_SECONDS = 5


def open_keys(settings: ServeSettings, log: str) -> KeyFile | None:
    """The file of keys that a server of this log looks at; None where there is no place for one."""
    path = settings.keys or keys_beside(log)
    return None if path is None else KeyFile(path)


def open_socket(settings: ServeSettings, *, shared: bool = False) -> socket.socket:
    """A socket that listens soon.

    Args:
        shared: whether other processes open the same address too: the kernel spreads connections among them.

    Raises:
        HeadraceError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise HeadraceError(f"cannot listen on {settings.host}:{settings.port}: {error}") from error
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise HeadraceError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", advice="Choose another --port."
        ) from error
    return opened


SWITCH_S = 0.0005


class Server:
    """Models, served. `start` serves in a thread, `run` in this one; `stop` may be called from any.

    Args:
        log: the pipeline's, whose keys count.
        listening: a bound socket, which belongs to the server from here on.

    Raises:
        DeclarationError: it would be open to others, or cannot work.
    """

    def __init__(
        self,
        models: Models,
        endpoints: Sequence[Endpoint],
        settings: ServeSettings,
        *,
        listening: socket.socket,
        keys: KeyFile | None,
        title: str,
    ) -> None:
        import uvicorn

        from headrace.serve.connection import Connection

        self.settings = settings
        self._socket = listening
        app, self._asking = application(models, endpoints, settings, keys, title=title)
        # A header that says where a request came from is not believed: limits are by the address that connects.
        options: dict[str, Any] = {
            "proxy_headers": False,
            "timeout_graceful_shutdown": STOP_SECONDS,
            "timeout_keep_alive": 30,
            "limit_concurrency": settings.connections,
            "headers": HEADERS,
            "http": Connection,
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
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    @property
    def url(self) -> str:
        """Where to ask."""
        scheme = "http" if self.settings.tls_cert is None else "https"
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"{scheme}://{host}:{self.port}"

    def announce(self) -> None:
        """Tell people where to ask, on stderr."""
        print(f"serving at {self.url}   {self.url}/docs", file=sys.stderr, flush=True)

    def start(self) -> None:
        """Serve in a thread; returns when requests are answered."""
        # The engine computes in this process too: a request waits for the interpreter so long at most, not for 5 ms.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread = threading.Thread(target=self._serve, name="headrace-serve", daemon=True)
        self._thread.start()
        self._wait_until_started()

    def run(self) -> None:
        """Serve until `stop`, or a signal where this is the main thread."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._asking.close()
            flush()

    def stop(self) -> None:
        """End: no new connections, requests that are being answered are; calling it twice is harmless."""
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
        import time

        assert self._thread is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise HeadraceError(f"the server did not start: {self._failed or 'no answer'}")
            time.sleep(0.005)
