"""The HTTP client with which a pipeline asks other servers: schema registries, receivers of results.

On urllib3: pooled connections, time-outs, TLS, and proxies from the environment (``HTTP_PROXY``, ``HTTPS_PROXY``,
``NO_PROXY``). See docs/decisions/0052-one-http-client.md for what it does not do.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError
from urllib3.exceptions import TimeoutError as TimedOut

CONNECTIONS = 4


class NoResponse(Exception):
    """No response came, or not all of it: whether the server has seen the request is not known. Says why."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response, whatever its status.

    Attributes:
        headers: their names may be asked for in any case.
        body: as it was sent, or its beginning where there was a limit.
    """

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


class HttpClient:
    """Sends requests and gives their responses. Safe to use from any thread.

    No redirect is followed: what authorises a request must not reach somebody else's server. Nothing is repeated, with
    one exception: a server may close an idle connection at any time, and a request that met this end is sent again on
    a new connection. Requests must therefore be ones that may arrive twice.

    Args:
        timeout: seconds to wait for the connection, and for each part of the response.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = urllib3.Timeout(connect=timeout, read=timeout)
        self._managers: dict[tuple[str, str], urllib3.PoolManager] = {}
        self._open: WeakSet[HTTPConnection] = WeakSet()
        self._opened = 0
        self._cancelled = False
        self._connection_classes = _connections_of(self)

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | None = None, limit: int | None = None
    ) -> HttpResponse:
        """Send a request and return the response.

        Args:
            limit: bytes of the body that are read at most; the connection of a longer one is closed.

        Raises:
            NoResponse: the server cannot be reached, its response broke off or took too long, or `cancel` was called.
        """
        try:
            given = self._sent(method, url, headers, body)
            content = given.read(None if limit is None else limit + 1, decode_content=False)
            if limit is not None and len(content) > limit:
                given.close()
            else:
                given.drain_conn()
        except (HTTPError, OSError) as error:
            raise NoResponse(_words(error)) from error
        return HttpResponse(given.status, given.reason or "", given.headers, content[:limit])

    def _sent(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> urllib3.BaseHTTPResponse:
        opened = self._opened
        try:
            return self._once(method, url, headers, body)
        except ProtocolError:
            if self._opened != opened or self._cancelled:
                raise
            self.close()
            return self._once(method, url, headers, body)

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> urllib3.BaseHTTPResponse:
        if self._cancelled:
            raise ConnectionAbortedError("it is being stopped")
        return self._manager(url).request(
            method, url, body=body, headers={"User-Agent": "headrace", **headers}, timeout=self._timeout,
            retries=False, redirect=False, preload_content=False,
        )  # fmt: skip

    def cancel(self) -> None:
        """Break off every request, now and from now on. May be called from any thread."""
        self._cancelled = True
        for connection in list(self._open):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close idle connections; the next request opens another one."""
        for manager in list(self._managers.values()):
            manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        """Return the pools for a server, by the proxy that the environment names for it when it is first asked."""
        parts = urlsplit(url)
        found = self._managers.get((parts.scheme, parts.netloc))
        if found is None:
            proxies = getproxies()
            proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
            if proxy and proxy_bypass(f"{parts.hostname}:{parts.port}" if parts.port else f"{parts.hostname}"):
                proxy = ""
            found = self._managers.setdefault((parts.scheme, parts.netloc), self._new_manager(parts.scheme, proxy))
        return found

    def _new_manager(self, scheme: str, proxy: str) -> urllib3.PoolManager:
        options: dict[str, Any] = {"maxsize": CONNECTIONS}
        if "https" in (scheme, urlsplit(proxy).scheme):
            options["ssl_context"] = ssl.create_default_context()
        if proxy:
            address = proxy if "://" in proxy else f"http://{proxy}"
            auth = urllib3.util.parse_url(address).auth
            manager: urllib3.PoolManager = urllib3.ProxyManager(
                address, proxy_headers=urllib3.make_headers(proxy_basic_auth=auth) if auth else None, **options
            )
        else:
            manager = urllib3.PoolManager(**options)
        plain, secure = self._connection_classes
        pools = {
            "http": type("Pool", (urllib3.HTTPConnectionPool,), {"ConnectionCls": plain}),
            "https": type("SecurePool", (urllib3.HTTPSConnectionPool,), {"ConnectionCls": secure}),
        }
        manager.pool_classes_by_scheme = pools
        return manager


def _connections_of(client: HttpClient) -> tuple[type[HTTPConnection], type[HTTPSConnection]]:
    """Return the classes of a client's connections, which it knows of as soon as they are open."""

    def opened(connection: HTTPConnection) -> None:
        client._opened += 1
        client._open.add(connection)
        if client._cancelled:
            raise ConnectionAbortedError("it is being stopped")

    class Plain(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            opened(self)

    class Secure(HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            opened(self)

    return Plain, Secure


def _words(error: BaseException) -> str:
    """Return what the system or the other side said, without what urllib3 wraps around it."""
    inner = next((given for given in error.args if isinstance(given, BaseException)), error.__cause__)
    if inner is not None:
        return _words(inner)
    if isinstance(error, TimedOut | TimeoutError):
        return "timed out"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
