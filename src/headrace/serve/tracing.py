"""Spans for OpenTelemetry, where it is configured: ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set and the SDK is installed.

A request is one span; what the model takes is one inside it. Traces go to the endpoint in the background.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, cast

from headrace.event_log import event
from headrace.serve.exchange import Request
from headrace.serve.models import VersionInfo

logger = logging.getLogger("headrace")

ENDPOINT = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@lru_cache(maxsize=1)
def _provider() -> Any:
    """The process's provider of tracers; None where nothing is configured."""
    if not any(os.environ.get(name) for name in ENDPOINT):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(
            "traces are asked for (%s), but not installed: pip install 'headrace[otel]'",
            ENDPOINT[0],
            extra=event("tracing"),
        )
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "headrace")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def tracer() -> Any:
    """The process's tracer; None where nothing is configured."""
    provider = _provider()
    return None if provider is None else provider.get_tracer("headrace")


def flush() -> None:
    """Send what is held back; nothing where nothing is configured."""
    provider = _provider()
    if provider is not None:
        provider.force_flush()


@contextmanager
def request_span(traced: Any, request: Request, route: str) -> Iterator[Any]:
    """The span of a request, inside the caller's own where its headers name one."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    carrier = {name: found for name in ("traceparent", "tracestate") if (found := request.header(name.encode()))}
    method = request.scope["method"]
    with traced.start_as_current_span(f"{method} {route}", context=extract(carrier), kind=SpanKind.SERVER) as span:
        span.set_attribute("http.request.method", method)
        span.set_attribute("http.route", route)
        yield span


def annotate(span: Any, status: int, headers: Any) -> None:
    """Say on a request's span what came of it, and which model answered."""
    if span is None:
        return
    span.set_attribute("http.response.status_code", status)
    for name, value in headers:
        if name.startswith(b"headrace-"):
            span.set_attribute(name.decode().replace("-", "."), value.decode())


def predict_span(traced: Any, model: str, rows: int) -> AbstractContextManager[Any]:
    """The span of what a model takes, inside a request's; nothing without a tracer."""
    if traced is None:
        return nullcontext()
    about = {"headrace.model": model, "headrace.rows": rows}
    return cast(AbstractContextManager[Any], traced.start_as_current_span("predict", attributes=about))


def say_version(span: Any, info: VersionInfo) -> None:
    """Say on a prediction's span which model answered."""
    if span is not None:
        span.set_attribute("headrace.version", info.version)
        span.set_attribute("headrace.position", info.position or "")


def past_span(traced: Any, name: str, start_us: int, end_us: int, about: Mapping[str, Any]) -> None:
    """A span that is over, with its times in microseconds since 1970."""
    span = traced.start_span(name, start_time=start_us * 1000, attributes=dict(about))
    span.end(end_time=max(start_us, end_us) * 1000)
