"""Authentication, authorisation and limits of requests.

A request brings ``Authorization: Bearer KEY-OR-TOKEN`` or ``X-API-Key: KEY``. Where no key and no token is configured,
only this machine can ask, and only under a name of its own: a web page elsewhere cannot use a browser here to train.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.errors import DeclarationError
from headrace.event_log import event
from headrace.serve.exchange import Problem, Request
from headrace.serve.keys import SCOPES, KeyFile
from headrace.serve.settings import SOME_KEY, ServeSettings

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.strategies import RateLimiter

logger = logging.getLogger("headrace")

FAILURES = "20/minute"
LONGEST_TOKEN = 8192
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated client: a name for limits and logs, and its scopes."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Return whether it has a scope; ``admin`` has every one."""
        return not scope or scope in self.scopes or "admin" in self.scopes


_ANYBODY_HERE = frozenset(SCOPES)


class Gate:
    """Authenticates and authorises requests. Used by the server's loop.

    Whether anybody on this machine may ask is decided when the server starts, and only becomes stricter: a file of keys
    that has a key, that changed since, or that cannot be read ends it, whatever becomes of the file afterwards.

    Args:
        keys: API keys; None where there is no file of them.

    Attributes:
        open: whether neither key nor token is configured. Limits hold for one process: with several workers each has
            its own.
    """

    def __init__(self, settings: ServeSettings, keys: KeyFile | None) -> None:
        self._settings = settings
        self._keys = keys
        self.open = not settings.tokens and settings.keys_at_start != SOME_KEY
        # A worker that is started again goes by the file as it was when the whole server started.
        self._keys_at_start = settings.keys_at_start
        if keys is not None and self._keys_at_start is None:
            self._keys_at_start = keys.identity()
        self.look()
        self._verify = _verifier(settings) if settings.tokens else None
        self._rate = _limiter(settings.rate) if settings.rate else None
        self._failing, self._failures = _limiter(FAILURES)

    def look(self) -> None:
        """Close an open server where keys have come, or may have: called with every request, and once a second."""
        if not self.open or self._keys is None:
            return
        try:
            self.open = not self._keys.some() and self._keys.identity() in (self._keys_at_start, "")
        except DeclarationError as error:
            logger.warning("this server is closed from now on: %s", error.message, extra=event("keys"))
            self.open = False

    def authorize(self, request: Request, scope: str) -> Caller:
        """Authenticate, authorise and rate-limit a request; returns who sent it.

        Args:
            scope: what the route needs; empty: nothing.

        Raises:
            Problem: 401, 403, 429; 503 while the keys cannot be read; 421 or 403 for a page that asks through a
                browser of this machine.
        """
        address = (request.scope.get("client") or ("?", 0))[0]
        self.look()
        if self.open:
            self._refuse_pages(request, scope)
            caller = Caller(address, _ANYBODY_HERE)
        elif scope:
            caller = self._authenticated(request, address)
            if not caller.may(scope):
                held = ", ".join(sorted(caller.scopes)) or "none"
                raise Problem(403, f"this needs a key or token with the scope {scope}; this one has {held}")
        else:
            caller = Caller(address, frozenset())
        if self._rate is not None and scope and not self._rate[0].hit(self._rate[1], caller.name):
            raise _too_many(*self._rate, caller.name)
        return caller

    def may(self, request: Request, scope: str) -> bool:
        """Return whether a request that is let in anyway would be where a scope is needed.

        Raises:
            Problem: it brings a key or token that is none.
        """
        if self.open:
            return True
        brings = request.header(b"x-api-key") is not None or request.header(b"authorization") is not None
        return brings and self._authenticated(request, (request.scope.get("client") or ("?", 0))[0]).may(scope)

    def _authenticated(self, request: Request, address: str) -> Caller:
        if not self._failing.test(self._failures, address):
            raise _too_many(self._failing, self._failures, address)
        text = request.header(b"x-api-key")
        if text is None:
            kind, _, text = (request.header(b"authorization") or "").partition(" ")
            text = text.strip() if kind.lower() == "bearer" else ""
        caller = self._known(text) if text else None
        if caller is None:
            if text:
                self._failing.hit(self._failures, address)
            raise Problem(
                401,
                "no such key or token"
                if text
                else "a key or token is needed: Authorization: Bearer …, or X-API-Key: …",
                headers=[(b"www-authenticate", b'Bearer realm="headrace"')],
            )
        return caller

    def _known(self, text: str) -> Caller | None:
        if len(text) > LONGEST_TOKEN:
            return None
        if self._keys is not None and text.startswith("hr_"):
            try:
                key = self._keys.find(text)
            except DeclarationError as error:
                logger.warning("no key is taken: %s", error.message, extra=event("keys"))
                raise Problem(503, "the keys cannot be read now") from None
            return None if key is None else Caller(f"key {key.id}", frozenset(key.scopes))
        return None if self._verify is None else self._verify(text)

    def _refuse_pages(self, request: Request, scope: str) -> None:
        host = request.header(b"host") or ""
        name = host if host.endswith("]") else host.rpartition(":")[0] if ":" in host else host
        if name.lower() not in _OWN_NAMES and name != self._settings.host:
            raise Problem(421, "without keys this server answers only to localhost")
        # A browser says so where a page of another site asks, also where it says no origin: <img src="…/prediction?…">.
        if scope and request.header(b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Problem(403, "without keys this server takes no requests from pages of other sites")
        origin = request.header(b"origin")
        if origin is not None and scope and origin.partition("://")[2] != host:
            raise Problem(403, "without keys this server takes no requests from pages of other sites")


def _verifier(settings: ServeSettings) -> Callable[[str], Caller | None]:
    """Return a check of a JSON web token (signature, expiry, audience, issuer), which gives the caller or None."""
    import jwt

    if settings.jwt_secret is not None:
        key: Any = settings.jwt_secret.get_secret_value()
        algorithms: Sequence[str] = settings.jwt_algorithms or ("HS256",)
    else:
        assert settings.jwt_public_key is not None
        key = settings.jwt_public_key.read_text()
        algorithms = settings.jwt_algorithms or ("RS256", "ES256")
    wanted = ["exp", *(["aud"] if settings.jwt_audience else []), *(["iss"] if settings.jwt_issuer else [])]

    def verify(text: str) -> Caller | None:
        try:
            claims = jwt.decode(
                text,
                key,
                algorithms=list(algorithms),
                audience=settings.jwt_audience,
                issuer=settings.jwt_issuer,
                options={"require": wanted, "verify_aud": settings.jwt_audience is not None},
            )
        except Exception:  # whatever is wrong with it: the reason would help whoever guesses
            return None
        given = claims.get("scope", claims.get("scopes"))
        given = given.split() if isinstance(given, str) else given
        scopes = [scope for scope in given if isinstance(scope, str)] if isinstance(given, list) else []
        return Caller(f"token {claims.get('sub', '')}", frozenset(scopes) & set(SCOPES))

    return verify


def _limiter(rate: str) -> tuple[RateLimiter, RateLimitItem]:
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    return SlidingWindowCounterRateLimiter(MemoryStorage()), parse(rate)


def _too_many(limiter: RateLimiter, rate: RateLimitItem, name: str) -> Problem:
    import time

    wait = max(1, round(limiter.get_window_stats(rate, name).reset_time - time.time()))
    return Problem(429, f"too many requests: {rate}", headers=[(b"retry-after", str(wait).encode())])
