"""Health: how a pipeline is, where its time goes, what its log takes; and the slider through a log's time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import fastapi
from starlette.responses import Response

from headrace.inspect.health import Sample
from headrace.log.base import Log
from headrace.ui.database_findings import DatabaseFindings
from headrace.ui.guard import BASE
from headrace.ui.read.health import health_of
from headrace.ui.read.history import history_of, joined
from headrace.ui.read.travel import Stop, stops_of
from headrace.ui.site import Site
from headrace.ui.subject import PIPELINE

KEPT_SECONDS = 2.0
HISTORY_SECONDS = 10.0


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()
    stops, databases, histories = _Stops(), DatabaseFindings(), _Histories()

    def page(request: fastapi.Request, at: str, template: str) -> Response:
        logs = site.subject.logs()
        first = next(iter(logs.values()), None)
        moment = site.subject.moment_of(first, at) if first is not None else None
        found = {name: health_of(log) for name, log in logs.items()}
        live = moment is None or moment.live
        # Nobody's address is asked because somebody looks at a log that they were sent: a pipeline runs on this one.
        running = {name: log for name, log in logs.items() if live and found[name].runs}
        asked = databases.of(running, site.subject.location)
        asked = {name: asked[name] for name in running if name in asked}
        charts = _charts(histories.of(first, site.hub.history.get(PIPELINE.get(), ()))) if first is not None else []
        return site.page(request, template, at=moment, found=found, asked=asked, charts=charts)

    @routes.get("/health")
    def health(request: fastapi.Request, at: str = "") -> Response:
        return page(request, at, "health.html")

    @routes.get("/health/now")
    def health_now(request: fastapi.Request, at: str = "") -> Response:
        return page(request, at, "_health.html")

    @routes.get("/travel")
    def travel(request: fastapi.Request, path: str, at: str = "") -> Response:
        log = site.subject.log
        here = path if path.startswith(f"{BASE}/") and "//" not in path.partition("?")[0] else f"{BASE}/"
        if log is None:
            return Response("")
        moment = site.subject.moment_of(log, at)
        newest = log.newest_slice()
        number = newest if moment.slice is None else moment.slice
        return site.page(
            request, "_travel.html", at=moment, marks=stops.of(log), newest=newest, slice=number, page=here
        )

    @routes.get("/slices/{number}")
    def slice_time(number: int) -> dict[str, Any]:
        log = site.subject.log
        return {"ts_us": None if log is None else site.subject.moment_of(log, f"slice:{number}").ts_us}

    return routes


@dataclass(slots=True)
class _Stops:
    """Stops of logs, kept for a while: every page asks for them."""

    _found: dict[Log, tuple[float, list[Stop]]] = field(default_factory=dict)

    def of(self, log: Log) -> list[Stop]:
        """Return them, as they were `KEPT_SECONDS` ago at most."""
        at, found = self._found.get(log, (-KEPT_SECONDS, []))
        if time.monotonic() - at > KEPT_SECONDS:
            found = stops_of(log)
            self._found[log] = time.monotonic(), found
        return found


@dataclass(slots=True)
class _Histories:
    """The last hour of logs, kept for a while: a page that moves asks every two seconds."""

    _log: Log | None = None
    _at: float = 0.0
    _found: list[Sample] = field(default_factory=list)

    def of(self, log: Log, watched: Iterable[Sample]) -> list[Sample]:
        """Return it; what was seen while somebody watched as it is now, what was before as `HISTORY_SECONDS` ago."""
        if log is not self._log or time.monotonic() - self._at > HISTORY_SECONDS:
            self._log, self._at, self._found = log, time.monotonic(), history_of(log)
        return joined(self._found, watched)


def _charts(history: list[Sample]) -> list[dict[str, Any]]:
    """Return the strips of the last hour; none of a pipeline that has just begun."""
    if len(history) < 3:
        return []
    times = [sample.ts for sample in history]

    def strip(title: str, **lines: list[float | None]) -> dict[str, Any]:
        chart = {"names": ["time", *lines], "values": [times, *lines.values()], "time": True}
        return {"title": title, "chart": chart, "rows": list(zip(times, *lines.values(), strict=True))[-60:]}

    return [
        strip(
            "From a commit in the database to its prediction, ms",
            p50=[sample.p50_ms for sample in history],
            p99=[sample.p99_ms for sample in history],
        ),
        strip("Rounds a second", rounds=[sample.rounds_s for sample in history]),
    ]
