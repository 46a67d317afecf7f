"""The dashboard's application: its pages behind their guard, as one ASGI application under ``/ui``."""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import threading
import webbrowser
from collections.abc import MutableMapping
from functools import cache, partial
from typing import Any
from urllib.parse import parse_qsl

import fastapi
from fastapi.exceptions import RequestValidationError
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from headrace.errors import DeclarationError, HeadraceError, LogError, LogLocked, TopicInUse
from headrace.event_log import event
from headrace.serve.exchange import Problem, said
from headrace.serve.keys import KeyFile
from headrace.serve.models import Models
from headrace.serve.security import Gate
from headrace.serve.settings import ServeSettings
from headrace.ui.guard import BASE, Guard
from headrace.ui.pages import (
    alarms,
    foreign,
    health,
    letters,
    model_changes,
    model_parts,
    models,
    pipeline,
    produce,
    sign_in,
    sql,
    topics,
)
from headrace.ui.read.cluster import pipeline_numbers
from headrace.ui.read.states import States
from headrace.ui.site import Site
from headrace.ui.stream import Hub
from headrace.ui.subject import PIPELINE, Subject

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "txt": "text/plain"}
PAGES = (pipeline, model_changes, model_parts, models, foreign, topics, alarms, health, sql, produce, letters)
logger = logging.getLogger("headrace")


class Dashboard(Guard):
    """The dashboard of a subject; see `headrace.ui.guard.Guard`.

    Args:
        models: of a pipeline in this process, or that is followed in it.
    """

    def __init__(
        self, subject: Subject, settings: ServeSettings, keys: KeyFile | None, *, models: Models | None = None
    ) -> None:
        view = subject.view
        others = partial(pipeline_numbers, view) if view is not None and not view.location.name else dict
        self.hub = Hub(subject.logs, others)
        self._subject = subject
        gate = Gate(settings, keys)
        app = _application(
            Site(subject, self.hub, models, States(follows=models is None)), gate, secure=settings.tls_cert is not None
        )
        super().__init__(app, gate, body_limit=settings.body_limit, secure=settings.tls_cert is not None)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """ASGI's."""
        if scope["type"] == "http" and self._subject.view is not None:
            PIPELINE.set(dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("pipeline", ""))
        await super().__call__(scope, receive, send)

    def end(self) -> None:
        """Let streams end: the server ends."""
        self.hub.end()


def announce(server: str) -> str:
    """Say where the dashboard of a server is; return its address."""
    address = f"{server}{BASE}/"
    logger.info("the dashboard is at %s", address, extra=event("dashboard", url=address))
    return address


def open_browser(address: str) -> None:
    """Show a page in the person's browser, where there is one."""
    threading.Thread(target=webbrowser.open, args=(address,), name="headrace-browser", daemon=True).start()


def _application(site: Site, gate: Gate, *, secure: bool) -> fastapi.FastAPI:
    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for page in PAGES:
        app.include_router(page.router(site), prefix=BASE)
    app.include_router(sign_in.router(site, gate, secure=secure), prefix=BASE)
    app.get(BASE + "/{kind}/{name}")(_file)
    app.get("/")(_home)

    def failed(request: fastapi.Request, status: int, text: str, advice: str = "") -> Response:
        if request.headers.get("hx-request") or "text/html" not in request.headers.get("accept", ""):
            return JSONResponse({"detail": text, "advice": advice}, status)
        return site.page(request, "error.html", status, title=text, advice=advice)

    def problem(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return failed(request, error.status, said(error.detail))

    def refused(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, HeadraceError)
        missing_here = isinstance(error, LogError) and not isinstance(error, LogLocked | TopicInUse)
        status = 404 if missing_here else 400 if isinstance(error, DeclarationError) else 409
        return failed(request, status, error.message, error.advice)

    def defect(request: fastapi.Request, error: Exception) -> Response:
        logger.error(
            "the page %r failed", request.url.path, exc_info=error, extra=event("ui_page_failed", path=request.url.path)
        )
        return failed(request, 500, "this page failed: a defect of Headrace, which is in the server's log")

    def misread(request: fastapi.Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        wrong = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
        return failed(request, 400, f"the address is wrong: {wrong}")

    def missing(request: fastapi.Request, error: Exception) -> Response:
        return failed(request, 404, "there is no such page")

    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(HeadraceError, refused)
    app.add_exception_handler(RequestValidationError, misread)
    app.add_exception_handler(404, missing)
    app.add_exception_handler(Exception, defect)
    return app


def _home() -> Response:
    return RedirectResponse(f"{BASE}/")


@cache
def _content(kind: str, name: str) -> tuple[bytes, str] | None:
    """Return a file of the package and its ETag; None where there is none."""
    ending = name.rpartition(".")[2]
    if kind not in ("static", "vendor") or ending not in TYPES or "/" in name or name.startswith("."):
        return None
    file = importlib.resources.files("headrace.ui").joinpath(kind, name)
    if not file.is_file():
        return None
    content = file.read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def _file(kind: str, name: str, request: fastapi.Request) -> Response:
    found = _content(kind, name)
    if found is None:
        return HTMLResponse("Not Found", 404)
    content, tag = found
    headers = {"etag": tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=TYPES[name.rpartition(".")[2]], headers=headers)
