"""Topics of a cluster that others write: the same pages and addresses as those of pipelines, and a message in full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence

import fastapi
import pyarrow as pa
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from headrace.inspect.messages import plain
from headrace.inspect.query import Bounds
from headrace.log.kafka_view import KafkaView
from headrace.ui.export import KINDS, exported
from headrace.ui.read.foreign import (
    Follower,
    ForeignSearch,
    foreign_page,
    foreign_row,
    foreign_topic,
    places_of,
    shape_of,
    text_of,
)
from headrace.ui.read.topics import ROWS
from headrace.ui.site import Name, Site
from headrace.ui.stream import message

LONGEST_JSON = 100_000
EXPORT_SECONDS = 3600.0


def view_of(site: Site, topic: str) -> KafkaView | None:
    """Return the cluster, where a topic is one of others on it."""
    view = site.subject.view
    return view if view is not None and site.subject.log_of(topic) is None else None


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/topics/{topic}/{partition:int}:{offset:int}")
    def row(request: fastapi.Request, topic: Name, partition: int, offset: int) -> Response:
        view = site.subject.view
        if view is None:
            raise fastapi.HTTPException(404)
        found = foreign_row(view, topic, partition, offset)
        text = json.dumps(plain(found.values), indent=2, ensure_ascii=False)[:LONGEST_JSON]
        return site.page(request, "message.html", row=found, json=text)

    return routes


def rows_page(
    site: Site,
    request: fastapi.Request,
    view: KafkaView,
    name: str,
    *,
    at: str,
    offset: str,
    columns: Sequence[str],
    order: str,
    newest_first: bool,
    filter_: str,
) -> Response:
    """Return the page of a topic's rows."""
    topic = foreign_topic(view, name, at)
    begin = places_of(view, topic, offset)
    count = 0 if filter_ else ROWS
    page = foreign_page(view, topic, begin, columns=columns, newest_first=newest_first, count=count)
    return site.page(
        request,
        "topic.html",
        at=topic,
        topic=topic,
        page=page,
        columns=columns,
        offset=offset,
        order=order,
        filter=filter_,
        kinds=KINDS,
        foreign=True,
        after=text_of(topic.end),
    )


def search_of(
    view: KafkaView, name: str, filter_: str, *, at: str, offset: str, newest_first: bool, bounds: Bounds
) -> ForeignSearch:
    """Return a search over a topic's rows."""
    topic = foreign_topic(view, name, at)
    begin = places_of(view, topic, offset)
    first, end = topic.first, topic.end
    if begin is not None:
        first, end = (first, begin) if newest_first else (begin, end)
    return ForeignSearch(view, topic, filter_, first, end, newest_first, bounds)


def export(view: KafkaView, name: str, form: str, *, at: str, filter_: str) -> Response:
    """Return a topic's rows as a file."""

    def tables() -> Iterator[pa.Table]:
        bounds = Bounds(seconds=EXPORT_SECONDS)
        yield from search_of(view, name, filter_, at=at, offset="", newest_first=False, bounds=bounds).tables()

    # What columns there are is seen first: no schema tells it. JSON has those of each row.
    shape = pa.table({}) if form == "jsonl" else shape_of(tables())
    return exported(tables(), shape, form, name)


def tail(site: Site, view: KafkaView, name: str, after: str, columns: Sequence[str], most: int) -> Response:
    """Return rows as they come."""

    async def rows() -> AsyncIterator[bytes]:
        topic = await run_in_threadpool(foreign_topic, view, name)
        begin = await run_in_threadpool(places_of, view, topic, after)
        follower = Follower(view, name, begin or topic.end)
        yield b"retry: 1000\n\n"
        try:
            async with site.hub.watching():
                while not site.hub.ended:
                    found = await run_in_threadpool(follower.rows, columns, most)
                    if found:
                        yield message("rows", json.dumps(found), follower.text)
                    else:
                        await site.hub.changed()
        finally:
            follower.close()

    return StreamingResponse(rows(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
