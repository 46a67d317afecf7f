"""The server's application: its routes, who may use them, what is counted.

`Front` stands before FastAPI: it lets requests in, counts them, and answers those for predictions itself. FastAPI has
the other routes, the descriptions of all, and the interactive page, whose assets come from here.

Which route a path is, `Front` decides alone. Were FastAPI to read a path otherwise (its patterns match ``/train`` with
a line's end behind it), a route would be reached without the key that it needs.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastapi

from headrace.errors import HeadraceError
from headrace.event_log import event
from headrace.serve import openapi, tracing
from headrace.serve.arrow import Batches
from headrace.serve.endpoint import Prediction, Training
from headrace.serve.exchange import Handler, Problem, Receive, Request, Response, Scope, Send
from headrace.serve.home import Home
from headrace.serve.inference import Inference
from headrace.serve.keys import KeyFile
from headrace.serve.metrics import Metrics, Scrape
from headrace.serve.models import Models
from headrace.serve.parameters import Endpoint
from headrace.serve.security import Gate
from headrace.serve.service import PredictionService, problem_of
from headrace.serve.settings import ServeSettings

logger = logging.getLogger("headrace")

# What FastAPI answers besides the routes: the interactive page, its description and assets.
PAGES = re.compile(r"/docs|/openapi\.json|/static-offline-docs/[A-Za-z0-9._-]+")
ROUTE = "headrace.route"
PAGES_BASE = "/ui"
App = Callable[[Scope, Receive, Send], Awaitable[None]]
_KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a JSON web token."},
}


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        path: with ``{names}``.
        scope: what a key needs; empty: it is open to all that reach the server.
        hot: whether it is answered before FastAPI sees it.
        about: for OpenAPI.
        protocol: whether its errors are as the Open Inference Protocol has them.
    """

    method: str
    path: str
    scope: str
    handler: Handler
    about: Mapping[str, Any]
    hot: bool = False
    protocol: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression of its paths."""
        return re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.path))


def application(
    models: Models,
    endpoints: Sequence[Endpoint],
    settings: ServeSettings,
    keys: KeyFile | None,
    *,
    title: str,
    pages: App | None = None,
) -> tuple[Front, PredictionService]:
    """Return the application of one server, and the service that is to be closed after it.

    Args:
        pages: what answers everything under `PAGES_BASE`, with a gate of its own.
    """
    from fastapi_offline import FastAPIOffline

    service = PredictionService(models, settings)
    metrics = Metrics(models.metrics)
    routes = _routes(service, endpoints, settings, metrics)
    app: fastapi.FastAPI = FastAPIOffline(
        title=f"Headrace: {title}", version="2", docs_url="/docs", redoc_url=None, redirect_slashes=False
    )
    gate = Gate(settings, keys)
    about = [(route.method, route.path, route.scope, str(route.about["summary"])) for route in routes]
    home = Home(models, endpoints, about, title=title, may=gate.may, closed=lambda: not gate.open)
    routes.insert(0, Route("GET", "/", "", home, openapi.home()))
    for route in routes:
        _add(app, route, settings.body_limit)
    _say_what_is_needed(app, gate)
    front = Front(app, routes=routes, gate=gate, metrics=metrics, body_limit=settings.body_limit, pages=pages)
    return front, service


def _say_what_is_needed(app: fastapi.FastAPI, gate: Gate) -> None:
    """Let the page ask for a key where one is needed; a first key may be made at any time."""
    described_by_fastapi = app.openapi

    def openapi() -> dict[str, Any]:
        found = described_by_fastapi()
        if gate.open:
            return found
        components = {**found.get("components", {}), "securitySchemes": _KEYS}
        return {**found, "components": components, "security": [{"key": []}, {"bearer": []}]}

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual has it


def _routes(
    service: PredictionService, endpoints: Sequence[Endpoint], settings: ServeSettings, metrics: Metrics
) -> list[Route]:
    longest, descriptions = settings.longest_deadline, service.models.descriptions
    found = []
    for endpoint in endpoints:
        about = openapi.prediction(endpoint, descriptions[endpoint.model], longest)
        found.append(Route("GET", endpoint.path, "predict", Prediction(service, endpoint), about, hot=True))
    batches = Batches(service)
    about = openapi.batches(descriptions.values(), longest)
    return [
        *found,
        Route("POST", "/train", "train", Training(service), openapi.training()),
        Route("GET", "/models", "predict", batches.models, openapi.models()),
        Route("POST", "/models/{model}/predict", "predict", batches.predict, about),
        Route("GET", "/metrics", "metrics", Scrape(metrics, service.blocking), openapi.metrics()),
        *_protocol_routes(Inference(service)),
    ]


def _protocol_routes(inference: Inference) -> list[Route]:
    """The Open Inference Protocol's."""
    found = [
        Route("GET", "/v2", "", inference.server, openapi.server(), protocol=True),
        Route("GET", "/v2/health/live", "", inference.live, openapi.health("live"), protocol=True),
        Route("GET", "/v2/health/ready", "", inference.ready, openapi.health("ready"), protocol=True),
    ]
    for base, own in (("/v2/models/{model}", []), ("/v2/models/{model}/versions/{version}", [openapi.VERSION])):
        named = {"parameters": [openapi.MODEL, *own]}
        about, asked = openapi.metadata(), openapi.inference()
        ready = {**openapi.health("ready"), "summary": "Whether a model is ready"}
        found += [
            Route("GET", base, "predict", inference.metadata, about | named, protocol=True),
            Route("GET", f"{base}/ready", "predict", inference.model_ready, ready | named, protocol=True),
            Route("POST", f"{base}/infer", "predict", inference.infer, asked | named, hot=True, protocol=True),
        ]
    return found


def _add(app: fastapi.FastAPI, route: Route, body_limit: int) -> None:
    """Give FastAPI a route: its description, and the same handler."""

    async def endpoint(received: fastapi.Request) -> fastapi.Response:
        if received.scope.get(ROUTE) is not route:  # not what was asked for: see the module's docstring
            return fastapi.Response(status_code=404)
        request = Request(received.scope, received.receive, dict(received.path_params), body_limit)
        response = await _safely(route, request)
        headers = {name.decode(): value.decode("latin-1") for name, value in response.headers}
        return fastapi.Response(response.body, response.status, headers)

    about = {key: value for key, value in route.about.items() if key not in ("summary", "responses")}
    if not route.scope:
        about["security"] = []
    app.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        name=f"{route.method.lower()} {route.path}",
        summary=route.about["summary"],
        openapi_extra={**about, "responses": route.about["responses"]},
        response_class=fastapi.Response,
    )


class Front:
    """ASGI middleware before FastAPI: authorises, counts, and answers the hot routes itself.

    Args:
        app: what answers the rest.
        pages: what answers all under `PAGES_BASE`.
    """

    def __init__(
        self,
        app: Any,
        *,
        routes: Sequence[Route],
        gate: Gate,
        metrics: Metrics,
        body_limit: int,
        pages: App | None = None,
    ) -> None:
        self._app = app
        self._pages = pages
        self._gate = gate
        self._metrics = metrics
        self._body_limit = body_limit
        self._exact = {route.path: route for route in routes if "{" not in route.path}
        self._patterns = [(re.compile(route.pattern), route) for route in routes if "{" in route.path]
        self._tracer = tracing.tracer()

    async def look(self) -> None:
        """Look whether keys have come; called once a second, whether anybody asks or not."""
        self._gate.look()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")  # the server is told to offer HTTP only
        if self._pages is not None and f"{scope['path']}/".startswith(f"{PAGES_BASE}/"):
            await self._pages(scope, receive, send)
            return
        started = time.perf_counter()
        if scope["method"] == "HEAD":
            # The answer to GET: the server leaves the body out, since its own scope still says HEAD.
            scope = {**scope, "method": "GET"}
        route, names = self._find(scope["path"])
        scope[ROUTE] = route
        request = Request(scope, receive, names, self._body_limit)
        label = route.path if route is not None else "other"
        if self._tracer is None:
            status = await self._answer(route, request, receive, send, None)
        else:
            with tracing.request_span(self._tracer, request, label) as span:
                status = await self._answer(route, request, receive, send, span)
        self._metrics.count(label, status, time.perf_counter() - started)

    async def _answer(self, route: Route | None, request: Request, receive: Receive, send: Send, span: Any) -> int:
        response = self._refusal(route, request)
        if response is None:
            if route is None or not route.hot or request.scope["method"] != route.method:
                return await self._pass_on(request.scope, receive, send, span)
            response = await _safely(route, request)
        await response.send(send)
        tracing.annotate(span, response.status, response.headers)
        return response.status

    def _refusal(self, route: Route | None, request: Request) -> Response | None:
        """Return the response to a request that is not let in, or None."""
        try:
            self._gate.authorize(request, route.scope if route is not None else "")
        except Problem as problem:
            return problem.response()
        except Exception:  # whoever cannot be judged stays out
            logger.exception(
                "whether a request of %r is let in could not be decided",
                request.scope["path"],
                extra=event("request_failed"),
            )
            return Problem(503, "who may ask cannot be decided now").response()
        if route is None and PAGES.fullmatch(request.scope["path"]) is None:
            return Problem(404, "Not Found").response()
        return None

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, span: Any) -> int:
        status = 500

        async def noticing(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                tracing.annotate(span, status, message.get("headers", ()))
            await send(message)

        await self._app(scope, receive, noticing)
        return status

    def _find(self, path: str) -> tuple[Route | None, dict[str, str]]:
        found = self._exact.get(path)
        if found is not None:
            return found, {}
        for pattern, route in self._patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return route, match.groupdict()
        return None, {}


async def _safely(route: Route, request: Request) -> Response:
    """Return a handler's response, errors included; a defect of ours is logged, and 500 does not tell what it says."""
    try:
        return await route.handler(request)
    except Problem as error:
        problem = error
    except HeadraceError as error:
        problem = problem_of(error)
    except Exception:
        logger.exception("a request of %r failed", request.scope["path"], extra=event("request_failed"))
        problem = Problem(500, "Internal Server Error")
    return problem.response(protocol=route.protocol)
