"""Alarms, grouped by reason, and one of them with all that it has to do with."""

from __future__ import annotations

import fastapi
from starlette.responses import Response

from headrace.errors import LogError
from headrace.ui.read import alarms as read
from headrace.ui.read.relations import relations_of
from headrace.ui.read.topics import row_of
from headrace.ui.site import Name, Site


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/alarms")
    def alarms(request: fastapi.Request, at: str = "") -> Response:
        moments = [site.subject.moment_of(log, at) for log in site.subject.logs().values()]
        reasons: list[read.Reason] = []
        silent: list[str] = []
        for moment in moments:
            found, without = read.reasons_of(moment)
            reasons, silent = [*reasons, *found], [*silent, *without]
        first = moments[0] if moments else None
        return site.page(request, "alarms.html", at=first, reasons=reasons, silent=silent)

    @routes.get("/alarms/{topic}/{offset:int}")
    def alarm(request: fastapi.Request, topic: Name, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        node, why, ts_us = read.alarm_of(moment, topic, offset)
        row = row_of(moment, topic, offset)
        if row is None:
            raise LogError(f"«{topic}» holds no alarm {offset}", advice="The page of alarms shows which there are.")
        relations = relations_of(moment, topic, offset)
        return site.page(
            request, "alarm.html", at=moment, row=row, node=node, why=why, ts_us=ts_us, relations=relations
        )

    return routes
