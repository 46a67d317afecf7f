"""Topics: the list, the rows of one, its tail, and one row in full."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator

import anyio.to_thread
import fastapi
import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from headrace.errors import DeclarationError, LogError, TopicInUse
from headrace.inspect.messages import plain
from headrace.inspect.query import Bounds
from headrace.inspect.rows import no_topic
from headrace.log.base import TopicInfo
from headrace.produce.topics import create, delete
from headrace.ui.export import KINDS, exported
from headrace.ui.guard import BASE, need
from headrace.ui.pages import foreign
from headrace.ui.pages.produce import form_values
from headrace.ui.read import topics as read
from headrace.ui.read.foreign import ForeignSearch
from headrace.ui.read.images import declared_images, image_of
from headrace.ui.read.moment import Moment
from headrace.ui.read.pipeline import graph_of
from headrace.ui.read.relations import relations_of
from headrace.ui.read.search import Search, all_columns
from headrace.ui.site import Name, Site, link
from headrace.ui.stream import message

TAIL_ROWS = 2_000
INTERNAL_COOKIE, REMEMBERED = "headrace-internal", 365 * 86_400
OLDEST = "oldest"
SEARCH_SECONDS = 120.0
EXPORT_SECONDS = 3600.0
LONGEST_JSON = 100_000


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()
    _add_list(routes, site)
    _add_rows(routes, site)
    _add_search(routes, site)
    _add_tail(routes, site)
    _add_row(routes, site)
    return routes


def _add_list(routes: fastapi.APIRouter, site: Site) -> None:
    @routes.get("/topics")
    def topics(request: fastapi.Request, at: str = "", internal: str = "") -> Response:
        log, view = site.subject.log, site.subject.view
        moment = site.subject.moment_of(log, at) if log is not None else None
        if view is not None and not at:
            lines = read.cluster_lines(view)
        else:
            lines = read.topic_lines(moment) if moment is not None else []
        wants = internal or request.cookies.get(INTERNAL_COOKIE, "")
        shown = [line for line in lines if wants == "yes" or not line.internal]
        hidden = sum(line.internal for line in lines)
        page = site.page(
            request,
            "topics.html",
            at=moment,
            lines=shown,
            hidden=hidden,
            internal=wants == "yes",
            cluster=view is not None,
        )
        if internal:
            page.set_cookie(INTERNAL_COOKIE, internal, max_age=REMEMBERED, path=BASE, samesite="lax", httponly=True)
        return page

    @routes.post("/topics")
    async def make(request: fastapi.Request) -> Response:
        need(request, "admin")
        given = await form_values(request)
        name, partitions = given.get("topic", ""), given.get("partitions", "")
        count = int(partitions) if partitions.isdecimal() and 0 < int(partitions) < 100_000 else None
        if partitions and count is None:
            raise DeclarationError(f"«{partitions}» is no number of partitions", advice="Give 1 or more.")
        await run_in_threadpool(create, site.subject.location, name, count)
        return RedirectResponse(link("topics"), 303)

    @routes.post("/topics/{topic}/delete")
    async def remove(request: fastapi.Request, topic: Name) -> Response:
        need(request, "admin")
        given = await form_values(request)
        if given.get("confirm") != topic:
            raise DeclarationError(f"«{topic}» was not deleted", advice="Type its name to confirm.")
        force = given.get("force") == "yes"
        try:
            await run_in_threadpool(lambda: delete(site.subject.location, topic, force=force))
        except TopicInUse as error:
            advice = (
                "Their past can then not be verified or repeated. If so: stop the pipeline, and tick «also where …»."
            )
            raise TopicInUse(error.message, advice=advice) from error
        return RedirectResponse(link("topics"), 303)


def _add_rows(routes: fastapi.APIRouter, site: Site) -> None:
    @routes.get("/topics/{topic}")
    def topic(
        request: fastapi.Request,
        topic: Name,
        at: str = "",
        offset: str = "",
        columns: str = "",
        order: str = "",
        filter: str = "",
    ) -> Response:
        newest_first, view = order != OLDEST, foreign.view_of(site, topic)
        if view is not None:
            return foreign.rows_page(
                site, request, view, topic, at=at, offset=offset, columns=_names(columns), order=order,
                newest_first=newest_first, filter_=filter,
            )  # fmt: skip
        moment = site.subject.moment(topic, at)
        info = _info(moment, topic)
        begin = read.offset_of(moment, info, offset, newest_first=newest_first)
        wanted = _names(columns)
        page = read.page_of(
            moment, info, offset=begin, columns=wanted, newest_first=newest_first, count=0 if filter else read.ROWS
        )
        return site.page(
            request,
            "topic.html",
            at=moment,
            topic=info,
            page=page,
            columns=wanted,
            offset=offset,
            order=order,
            filter=filter,
            kinds=KINDS,
            foreign=False,
            after=info.end,
        )


def _add_search(routes: fastapi.APIRouter, site: Site) -> None:
    @routes.get("/topics/{topic}/search")
    async def search(
        request: fastapi.Request,
        topic: Name,
        filter: str,
        at: str = "",
        offset: str = "",
        columns: str = "",
        order: str = "",
    ) -> Response:
        def begin() -> Search | ForeignSearch:
            newest_first, view = order != OLDEST, foreign.view_of(site, topic)
            bounds = Bounds(seconds=SEARCH_SECONDS)
            if view is not None:
                return foreign.search_of(
                    view, topic, filter, at=at, offset=offset, newest_first=newest_first, bounds=bounds
                )
            moment = site.subject.moment(topic, at)
            info = _info(moment, topic)
            start = read.offset_of(moment, info, offset, newest_first=newest_first)
            first, end = (
                (info.first, info.end)
                if start is None
                else ((info.first, start + 1) if newest_first else (start, info.end))
            )
            return Search(
                moment,
                info,
                filter,
                max(first, info.first),
                min(end, info.end),
                newest_first,
                bounds,
            )

        sought = await run_in_threadpool(begin)
        return StreamingResponse(
            _found(site, sought, _names(columns)), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    @routes.get("/topics/{topic}/export")
    def export(request: fastapi.Request, topic: Name, form: str, at: str = "", filter: str = "") -> Response:
        view = foreign.view_of(site, topic)
        if view is not None:
            return foreign.export(view, topic, form, at=at, filter_=filter)
        moment = site.subject.moment(topic, at)
        info = _info(moment, topic)
        if filter:
            seeking = Search(moment, info, filter, info.first, info.end, False, Bounds(seconds=EXPORT_SECONDS))
            tables = seeking.tables()
            first = next(tables, None)  # a wrong filter is told before anything is sent
            tables = iter(()) if first is None else itertools.chain([first], tables)
        else:
            tables = (read.table_of([part]) for part in moment.rows(topic, info.first, info.end))
        shape = read.table_of([(0, pa.RecordBatch.from_pylist([], all_columns(moment, info)))])
        return exported(tables, shape, form, topic)


def _add_tail(routes: fastapi.APIRouter, site: Site) -> None:
    @routes.get("/topics/{topic}/tail")
    async def tail(request: fastapi.Request, topic: Name, after: str, columns: str = "") -> Response:
        wanted = _names(columns)
        # A browser that comes back says the last row it has seen.
        last = request.headers.get("last-event-id", "")
        view = await run_in_threadpool(foreign.view_of, site, topic)
        if view is not None:
            return foreign.tail(site, view, topic, last or after, wanted, TAIL_ROWS)
        moment = await run_in_threadpool(site.subject.moment, topic, "")
        seen = _number(last)
        start = (_number(after) or 0) if seen is None else seen + 1

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


def _add_row(routes: fastapi.APIRouter, site: Site) -> None:
    @routes.get("/topics/{topic}/{offset:int}")
    def row(request: fastapi.Request, topic: Name, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        found = read.row_of(moment, topic, offset)
        if found is None:
            raise LogError(f"«{topic}» holds no row {offset}", advice="The topic's page shows which it holds.")
        info = moment.topic(topic)
        text = json.dumps(plain(found.values), indent=2, ensure_ascii=False)
        shapes = declared_images(moment.log)
        images = [name for name, value in found.values.items() if image_of(value, shapes.get(name))]
        relations = relations_of(moment, topic, offset)
        return site.page(
            request,
            "row.html",
            at=moment,
            row=found,
            json=text[:LONGEST_JSON],
            cut=len(text) > LONGEST_JSON,
            images=images,
            topic=info,
            relations=relations,
        )

    @routes.get("/topics/{topic}/{offset:int}/json")
    def whole(topic: Name, offset: int, at: str = "") -> Response:
        found = read.row_of(site.subject.moment(topic, at), topic, offset)
        if found is None:
            raise LogError(f"«{topic}» holds no row {offset}")
        return JSONResponse(plain({**found.values, **found.headers}))

    @routes.get("/topics/{topic}/{offset:int}/image")
    def image(topic: Name, offset: int, column: str) -> Response:
        moment = site.subject.moment(topic, "")
        found = read.row_of(moment, topic, offset)
        value = found.values.get(column) if found is not None else None
        drawn = image_of(value, declared_images(moment.log).get(column))
        if drawn is None:
            raise LogError(f"«{column}» of row {offset} of «{topic}» is no image")
        return Response(drawn[0], media_type=drawn[1], headers={"x-content-type-options": "nosniff"})


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _names(text: str) -> list[str]:
    # A form's field comes with CRLF where its value has line feeds.
    return [name for name in text.replace("\r\n", "\n").split("\n") if name]


def _info(moment: Moment, topic: str) -> TopicInfo:
    info = moment.topic(topic)
    if info is None and f"topic:{topic}" in graph_of(moment.log).parts:
        return TopicInfo(topic, 0, 0, 0, 0, 0, 0)  # it is declared, and its first row is still to come
    if info is None:
        raise no_topic(moment.log, topic)
    return info


async def _found(site: Site, search: Search | ForeignSearch, columns: list[str]) -> AsyncIterator[bytes]:
    """Yield rows as they are found, how far the search is, and how it ended."""
    steps = search.steps(read.ROWS)
    found = 0
    try:
        while True:
            try:
                step = await anyio.to_thread.run_sync(
                    next, steps, None, abandon_on_cancel=True, limiter=site.hub.queries
                )
            except LogError as error:
                yield message("wrong", json.dumps({"message": error.message, "advice": error.advice}))
                return
            if step is None:
                break
            if step.found:
                found += len(step.found)
                texts = await run_in_threadpool(step.cells, columns)
                yield message("rows", json.dumps(texts))
            last, of = step.looked, step.of
            yield message("progress", json.dumps({"looked": last, "of": of, "found": found}))
            if found >= read.ROWS and last < of:
                after = search.place(last)
                yield message("done", json.dumps({"after": after}))
                return
        yield message("done", json.dumps({"after": None}))
    finally:
        search.bounds.cancel()
