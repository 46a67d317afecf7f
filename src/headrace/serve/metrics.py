"""``GET /metrics`` for Prometheus: requests and their latency, and numbers about the pipeline.

With several worker processes on one port each counts its own; they share files then, which prometheus-client reads
together (``PROMETHEUS_MULTIPROC_DIR``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from headrace.errors import HeadraceError
from headrace.serve.exchange import Request, Response
from headrace.serve.models import Gauge

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SHARED = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """Counts of one server.

    Args:
        gauges: gives numbers about the pipeline; asked with every scrape, in a thread.
    """

    def __init__(self, gauges: Callable[[], list[Gauge]]) -> None:
        self._gauges = gauges
        self._own = CollectorRegistry()
        about = (("route", "status"), ("route",))
        self._requests = Counter("headrace_requests", "HTTP requests", about[0], registry=self._own)
        self._seconds = Histogram(
            "headrace_request_seconds", "How long requests took", about[1], buckets=BUCKETS, registry=self._own
        )
        self._known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        found = self._known.get((route, status))
        if found is None:
            found = (self._requests.labels(route, str(status)), self._seconds.labels(route))
            self._known[route, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        registry = self._own
        if os.environ.get(SHARED):
            from prometheus_client.multiprocess import MultiProcessCollector

            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the package leaves it unannotated
        pipeline = CollectorRegistry()
        pipeline.register(_Pipeline(self._gauges()))
        return generate_latest(registry) + generate_latest(pipeline)


class _Pipeline:
    """Gauges, grouped by their names."""

    def __init__(self, gauges: Iterable[Gauge]) -> None:
        self._families: dict[str, GaugeMetricFamily] = {}
        for gauge in gauges:
            names = sorted(gauge.labels)
            family = self._families.get(gauge.name)
            if family is None:
                family = self._families[gauge.name] = GaugeMetricFamily(
                    f"headrace_{gauge.name}", gauge.help, labels=names
                )
            family.add_metric([gauge.labels[name] for name in names], gauge.value)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """For prometheus-client."""
        return self._families.values()


class MetricsServer:
    """Serves ``GET /metrics`` alone, of a pipeline without a server: numbers about it, to everybody who can reach it.

    Args:
        gauges: gives numbers about the pipeline; asked with every scrape, in a thread.

    Raises:
        HeadraceError: the address cannot be had.
    """

    def __init__(self, gauges: Callable[[], list[Gauge]], host: str, port: int) -> None:
        self._gauges = gauges
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise HeadraceError(
                f"metrics cannot be served at {host}:{port}: {error.strerror or error}",
                advice="Choose another --metrics-port.",
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """For prometheus-client, which else asks for numbers that are not there yet."""
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """For prometheus-client."""
        return _Pipeline(self._gauges()).collect()

    def close(self) -> None:
        """Serve no more; calling it twice is harmless."""
        self._server.shutdown()
        self._server.server_close()


class Scrape:
    """``GET /metrics``."""

    def __init__(self, metrics: Metrics, blocking: Callable[[Callable[[], bytes]], Any]) -> None:
        self._metrics = metrics
        self._blocking = blocking

    async def __call__(self, request: Request) -> Response:
        """The counts as they are now."""
        text = await self._blocking(self._metrics.text)
        return Response(text, 200, [(b"content-type", CONTENT_TYPE_LATEST.encode())])
