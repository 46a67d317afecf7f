"""Topics: the list, the rows of one, its tail, and one row in full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from headrace.errors import LogError
from headrace.inspect.messages import plain
from headrace.inspect.rows import no_topic
from headrace.ui.read import topics as read
from headrace.ui.read.moment import moment_at
from headrace.ui.read.relations import relations_of
from headrace.ui.site import Site
from headrace.ui.stream import message

TAIL_ROWS = 2_000


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/topics")
    def topics(request: fastapi.Request, at: str = "", internal: str = "") -> Response:
        log, view = site.subject.log, site.subject.view
        moment = moment_at(log, at) if log is not None else None
        if view is not None and not at:
            lines = read.cluster_lines(view)
        else:
            lines = read.topic_lines(moment) if moment is not None else []
        shown = [line for line in lines if internal or not line.internal]
        hidden = len(lines) - len([line for line in lines if not line.internal])
        return site.page(
            request, "topics.html", at=moment, lines=shown, hidden=hidden, internal=internal, cluster=view is not None
        )

    @routes.get("/topics/{topic}")
    def topic(request: fastapi.Request, topic: str, at: str = "", offset: str = "", columns: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        info = moment.topic(topic)
        if info is None:
            raise no_topic(moment.log, topic)
        wanted = [name for name in columns.split("\n") if name]
        page = read.page_of(moment, info, offset=_number(offset), columns=wanted)
        return site.page(request, "topic.html", at=moment, topic=info, page=page, columns=wanted)

    @routes.get("/topics/{topic}/tail")
    async def tail(request: fastapi.Request, topic: str, after: int, columns: str = "") -> Response:
        moment = await run_in_threadpool(site.subject.moment, topic, "")
        wanted = [name for name in columns.split("\n") if name]
        # A browser that comes back says the last row it has seen.
        seen = _number(request.headers.get("last-event-id", ""))
        start = after if seen is None else seen + 1

        async def rows() -> AsyncIterator[bytes]:
            offset = start
            yield b"retry: 1000\n\n"
            async with site.hub.watching():
                while not site.hub.ended:
                    found = await run_in_threadpool(read.rows_after, moment, topic, offset, wanted, TAIL_ROWS)
                    if found:
                        offset = found[-1][0] + 1
                        yield message("rows", json.dumps(found), offset - 1)
                    if len(found) < TAIL_ROWS:
                        await site.hub.changed()

        return StreamingResponse(rows(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    @routes.get("/topics/{topic}/{offset}")
    def row(request: fastapi.Request, topic: str, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        found = read.row_of(moment, topic, offset)
        if found is None:
            raise LogError(f"«{topic}» holds no row {offset}", advice="The topic's page shows which it holds.")
        info = moment.topic(topic)
        text = json.dumps(plain(found.values), indent=2, ensure_ascii=False)
        relations = relations_of(moment, topic, offset)
        return site.page(request, "row.html", at=moment, row=found, json=text, topic=info, relations=relations)

    return routes


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None
