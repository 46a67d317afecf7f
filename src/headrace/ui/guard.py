"""Who may look, and who may change: the keys, tokens and scopes of `headrace.serve`, for people in a browser.

A person signs in once with a key or a token, which is then a cookie that no script reads and no other site sends. What
changes something must come from a page of this server itself: browsers say so (``Sec-Fetch-Site``, ``Origin``), and
without such a header, or with another site's, nothing is changed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, unquote

from headrace.event_log import event
from headrace.serve.exchange import Problem, Request, Response
from headrace.serve.security import Caller, Gate

COOKIE = "headrace"
BASE = "/ui"
SIGN_IN = f"{BASE}/sign-in"
OPEN_PATHS = (f"{BASE}/static/", f"{BASE}/vendor/")
CALLER = "headrace.caller"
SLASH = "\ue02f"  # of private use: no name has it
# The browser runs what comes from here, and nothing that stands in a page.
HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
     b"frame-ancestors 'none'; object-src 'none'"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)  # fmt: skip
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
logger = logging.getLogger("headrace")


class Guard:
    """ASGI middleware before the pages: lets requests in, and puts headers on every answer.

    The scope that a change needs is its handler's to ask for, by `need`; looking needs ``read``.

    Args:
        app: the pages.
        secure: whether the server speaks TLS: the cookie then goes over nothing else.
    """

    def __init__(self, app: App, gate: Gate, *, body_limit: int, secure: bool) -> None:
        self._app = app
        self.gate = gate
        self._body_limit = body_limit
        self.secure = secure

    async def look(self) -> None:
        """Look whether keys have come; called once a second, whether anybody asks or not."""
        self.gate.look()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """ASGI's."""

        answered = False

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body", False)

        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        scope = _with_slashes(_with_key(scope))
        request = Request(scope, receive, {}, self._body_limit)
        try:
            scope[CALLER] = self._caller(request)
        except Problem as problem:
            await self._refused(request, problem).send(with_headers)
            return
        except Exception:  # whoever cannot be judged stays out
            logger.exception("whether a request is let in could not be decided", extra=event("request_failed"))
            await Problem(503, "who may ask cannot be decided now").response().send(with_headers)
            return
        try:
            await self._app(scope, receive, with_headers)
        except Exception:
            # Starlette raises again what the application has logged; what it has answered in full needs no other end.
            if not answered:
                raise

    def _caller(self, request: Request) -> Caller:
        """Return who asks.

        Raises:
            Problem: nobody that is let in.
        """
        path, method = request.scope["path"], request.scope["method"]
        changes = method not in ("GET", "HEAD")
        if changes:
            refuse_other_sites(request)
        is_open = path == SIGN_IN or path.startswith(OPEN_PATHS)
        # A link in a message of a colleague's leads here from another site; what such a page then holds, that site
        # does not see.
        arrives = not changes and request.header(b"sec-fetch-mode") == "navigate"
        arrives = arrives and request.header(b"sec-fetch-dest") == "document"
        return self.gate.authorize(request, "" if is_open or (arrives and self.gate.open) else "read")

    def _refused(self, request: Request, problem: Problem) -> Response:
        """Send a person who has to sign in to where that is done, and come back from there."""
        wants_page = "text/html" in (request.header(b"accept") or "") and request.header(b"hx-request") is None
        if problem.status != 401 or not wants_page:
            return problem.response()
        if request.header(b"sec-fetch-site") == "cross-site":
            # A cookie that is for this site only did not come along from another one; it does from here.
            page = b'<!doctype html><meta http-equiv="refresh" content="0"><title>Headrace</title>'
            return Response(page, 200, [(b"content-type", b"text/html; charset=utf-8")])
        query = request.scope["query_string"].decode("latin-1")
        here = request.scope["path"] + (f"?{query}" if query else "")
        return Response(b"", 303, [(b"location", f"{SIGN_IN}?next={quote(here, safe='')}".encode())])


def refuse_other_sites(request: Request) -> None:
    """Refuse a change that does not come from a page of this server.

    Raises:
        Problem: 403.
    """
    site, origin = request.header(b"sec-fetch-site"), request.header(b"origin")
    host = request.header(b"host") or ""
    same = site == "same-origin" if site is not None else origin is not None
    if origin is not None and origin.partition("://")[2] != host:
        same = False
    if not same:
        raise Problem(403, "a change must come from a page of this server (Origin, Sec-Fetch-Site)")


def need(request: Any, scope: str) -> Caller:
    """Return who asks, if they may do what needs a scope.

    Args:
        request: Starlette's.

    Raises:
        Problem: 403.
    """
    caller: Caller = request.scope[CALLER]
    if not caller.may(scope):
        held = ", ".join(sorted(caller.scopes)) or "none"
        raise Problem(403, f"this needs a key or token with the scope {scope}; this one has {held}")
    return caller


def _with_key(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a request that brings the key of its cookie in a header, where it brings none itself."""
    cookies = ""
    for name, value in scope["headers"]:
        if name in (b"x-api-key", b"authorization"):
            return scope
        if name == b"cookie":
            cookies += ("; " if cookies else "") + value.decode("latin-1")
    text = _cookie(cookies)
    if not text:
        return scope
    return {**scope, "headers": [*scope["headers"], header_of(text)]}


def _with_slashes(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a request in whose path a slash of a name (``%2F``) is `SLASH`, and so parts nothing."""
    raw = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower():
        return scope
    return {**scope, "path": unquote(re.sub("%2f", quote(SLASH), raw.decode("latin-1"), flags=re.IGNORECASE))}


def header_of(key: str) -> tuple[bytes, bytes]:
    """Return the header that a key or a token comes in."""
    if key.startswith("hr_"):
        return b"x-api-key", key.encode("latin-1", "replace")
    return b"authorization", b"Bearer " + key.encode("latin-1", "replace")


def _cookie(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
