"""The server's application: its routes, who may use them, what is counted.

`Front` stands before FastAPI: it lets requests in, counts them, and answers those for predictions itself. FastAPI has
the other routes, the descriptions of all, and the interactive page, whose assets come from here.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from headrace.errors import HeadraceError
from headrace.serve import described, tracing
from headrace.serve.arrow import Batches
from headrace.serve.asking import Asking, problem_of
from headrace.serve.declared import Endpoint
from headrace.serve.endpoint import Prediction, Training
from headrace.serve.exchange import Call, Handler, Problem, Receive, Reply, Scope, Send
from headrace.serve.inference import Inference, protocol
from headrace.serve.keys import KeyFile
from headrace.serve.metrics import Metrics, Scrape
from headrace.serve.models import Models
from headrace.serve.security import Gate
from headrace.serve.settings import ServeSettings

logger = logging.getLogger("headrace")


@dataclass(frozen=True, slots=True)
class Route:
    """One route.

    Attributes:
        path: with ``{names}``.
        scope: what a key needs; empty: it is open to all that reach the server.
        hot: whether it is answered before FastAPI sees it.
        about: for OpenAPI.
    """

    method: str
    path: str
    scope: str
    handler: Handler
    about: Mapping[str, Any]
    hot: bool = False

    @property
    def pattern(self) -> str:
        """A regular expression of its paths."""
        return re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(self.path))


def application(
    models: Models, endpoints: Sequence[Endpoint], settings: ServeSettings, keys: KeyFile | None, *, title: str
) -> tuple[Front, Asking]:
    """The application of one server, and what is to be closed after it."""
    from fastapi_offline import FastAPIOffline

    asking = Asking(models, settings)
    metrics = Metrics(models.gauges)
    routes = _routes(asking, endpoints, settings, metrics)
    app: FastAPI = FastAPIOffline(
        title=f"Headrace: {title}", version="2", docs_url="/docs", redoc_url=None, redirect_slashes=False
    )
    for route in routes:
        _add(app, route, settings.body_limit)
    front = Front(app, routes=routes, gate=Gate(settings, keys), metrics=metrics, body_limit=settings.body_limit)
    return front, asking


def _routes(asking: Asking, endpoints: Sequence[Endpoint], settings: ServeSettings, metrics: Metrics) -> list[Route]:
    longest, descriptions = settings.longest_deadline, asking.models.descriptions
    found = []
    for one in endpoints:
        about = described.prediction(one, descriptions[one.model], longest)
        found.append(Route("GET", one.path, "predict", Prediction(asking, one), about, hot=True))
    batches = Batches(asking)
    about = described.batches(descriptions.values(), longest)
    return [
        *found,
        Route("POST", "/train", "train", Training(asking), described.training()),
        Route("GET", "/models", "predict", batches.models, described.models()),
        Route(
            "POST",
            "/models/{model}/predict",
            "predict",
            batches.predict,
            described.batches(descriptions.values(), longest),
        ),
        Route("GET", "/metrics", "admin", Scrape(metrics, asking.blocking), described.metrics()),
        *_protocol_routes(Inference(asking)),
    ]


def _protocol_routes(inference: Inference) -> list[Route]:
    """The Open Inference Protocol's."""
    found = [
        Route("GET", "/v2", "", protocol(inference.server), described.server()),
        Route("GET", "/v2/health/live", "", protocol(inference.live), described.health("live")),
        Route("GET", "/v2/health/ready", "", protocol(inference.ready), described.health("ready")),
    ]
    for base, own in (("/v2/models/{model}", []), ("/v2/models/{model}/versions/{version}", [described.VERSION])):
        named = {"parameters": [described.MODEL, *own]}
        about, ready, asked = described.metadata(), described.health("ready"), described.inference()
        found += [
            Route("GET", base, "predict", protocol(inference.metadata), about | named),
            Route("GET", f"{base}/ready", "predict", protocol(inference.model_ready), ready | named),
            Route("POST", f"{base}/infer", "predict", protocol(inference.infer), asked | named, hot=True),
        ]
    return found


def _add(app: FastAPI, route: Route, body_limit: int) -> None:
    """Give FastAPI a route: its description, and the same handler."""

    async def endpoint(request: Request) -> Response:
        call = Call(request.scope, request.receive, dict(request.path_params), body_limit)
        reply = await answered(route.handler, call)
        headers = {name.decode(): value.decode("latin-1") for name, value in reply.headers}
        return Response(reply.body, reply.status, headers)

    about = {key: value for key, value in route.about.items() if key not in ("summary", "responses")}
    app.add_api_route(
        route.path,
        endpoint,
        methods=[route.method],
        name=f"{route.method.lower()} {route.path}",
        summary=route.about["summary"],
        openapi_extra={**about, "responses": route.about["responses"]},
        response_class=Response,
    )


async def answered(handler: Handler, call: Call) -> Reply:
    """What a handler answers, errors included."""
    try:
        return await handler(call)
    except Problem as problem:
        return problem.reply()
    except HeadraceError as error:
        return problem_of(error).reply()


class Front:
    """Before FastAPI: admits, counts, answers the hot routes. Bare ASGI.

    Args:
        app: what answers the rest.
    """

    def __init__(self, app: Any, *, routes: Sequence[Route], gate: Gate, metrics: Metrics, body_limit: int) -> None:
        self._app = app
        self._gate = gate
        self._metrics = metrics
        self._body_limit = body_limit
        self._exact = {one.path: one for one in routes if "{" not in one.path}
        self._patterns = [(re.compile(one.pattern), one) for one in routes if "{" in one.path]
        self._tracer = tracing.tracer()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        route, names = self._find(scope["path"])
        call = Call(scope, receive, names, self._body_limit)
        label = route.path if route is not None else "other"
        if self._tracer is None:
            status = await self._answer(route, call, receive, send, None)
        else:
            with tracing.request_span(self._tracer, call, label) as span:
                status = await self._answer(route, call, receive, send, span)
        self._metrics.count(label, status, time.perf_counter() - started)

    async def _answer(self, route: Route | None, call: Call, receive: Receive, send: Send, span: Any) -> int:
        try:
            self._gate.admit(call, route.scope if route is not None else "")
        except Problem as problem:
            reply = problem.reply()
        else:
            if route is None or not route.hot or call.scope["method"] != route.method:
                return await self._pass_on(call.scope, receive, send, span)
            reply = await _safely(route.handler, call)
        await reply.send(send)
        tracing.annotate(span, reply.status, reply.headers)
        return reply.status

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


async def _safely(handler: Handler, call: Call) -> Reply:
    """A handler's answer; a defect of ours is logged and answered with 500, without what it says."""
    try:
        return await answered(handler, call)
    except Exception:
        logger.exception("a request of %s failed", call.scope["path"])
        return Problem(500, "Internal Server Error").reply()
