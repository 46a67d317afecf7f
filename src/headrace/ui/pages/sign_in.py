"""Signing in with a key or a token, and out."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import fastapi
from starlette.responses import RedirectResponse, Response

from headrace.serve.exchange import Problem, Request
from headrace.serve.security import Gate
from headrace.ui.guard import BASE, COOKIE, header_of
from headrace.ui.site import Site

LONGEST = 10_000
DAYS = 30


def router(site: Site, gate: Gate, *, secure: bool) -> fastapi.APIRouter:
    """Return the routes.

    Args:
        secure: whether the cookie is for TLS only.
    """
    routes = fastapi.APIRouter()

    @routes.get("/sign-in")
    def ask(request: fastapi.Request, next: str = f"{BASE}/") -> Response:
        return site.page(request, "sign_in.html", next=_ours(next), wrong="")

    @routes.post("/sign-in")
    async def sign_in(request: fastapi.Request) -> Response:
        body = await request.body()
        given = parse_qs(body[:LONGEST].decode("utf-8", "replace"))
        key, place = given.get("key", [""])[0].strip(), _ours(given.get("next", [""])[0])
        scope = {**request.scope, "headers": [header_of(key)] if key else []}
        try:
            gate.authorize(Request(scope, request.receive, {}, 0), "read")
        except Problem as problem:
            text = "A key or a token is needed." if not key else f"Not taken: {problem.detail}."
            return site.page(request, "sign_in.html", problem.status, next=place, wrong=text)
        answer = RedirectResponse(place, 303)
        answer.set_cookie(
            COOKIE, key, max_age=DAYS * 86_400, path=BASE, secure=secure, httponly=True, samesite="strict"
        )
        return answer

    @routes.post("/sign-out")
    def sign_out() -> Response:
        answer = RedirectResponse(f"{BASE}/sign-in", 303)
        answer.delete_cookie(COOKIE, path=BASE, secure=secure, httponly=True, samesite="strict")
        return answer

    return routes


def _ours(place: str) -> str:
    """Return an address of this server, whatever was asked for.

    >>> _ours("/ui/topics?x=1"), _ours("https://elsewhere.example/ui/"), _ours("//elsewhere.example")
    ('/ui/topics?x=1', '/ui/', '/ui/')
    """
    parts = urlsplit(place)
    if parts.scheme or parts.netloc or not parts.path.startswith(f"{BASE}/") or "\\" in place or "//" in parts.path:
        return f"{BASE}/"
    return place
