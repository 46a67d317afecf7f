"""SQL over all topics: an editor, its result as a table or a picture, and the result as a file."""

from __future__ import annotations

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.errors import HeadraceError
from headrace.inspect.query import Bounds
from headrace.ui.export import KINDS, exported
from headrace.ui.read import sql as read
from headrace.ui.site import Site
from headrace.ui.stream import while_watched

SECONDS = 30.0
SHOWN_ROWS = 10_000
EXPORTED_ROWS = 1_000_000
EXPORTED_BYTES = 512 << 20
FORMS = ("table", "line", "bars", "scatter")


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/sql")
    def sql(request: fastapi.Request, q: str = "", at: str = "", show: str = "table") -> Response:
        log = site.subject.log
        moment = site.subject.moment_of(log, at) if log is not None else None
        columns = read.columns_of(site.subject, at)
        words = sorted({name for names in columns.values() for name in names})
        show = show if show in FORMS else "table"
        return site.page(
            request, "sql.html", at=moment, q=q, show=show, forms=FORMS, topics=columns, words=words, seconds=SECONDS
        )

    @routes.get("/sql/result")
    async def result(request: fastapi.Request, q: str, at: str = "", show: str = "table") -> Response:
        bounds = Bounds(seconds=SECONDS, rows=SHOWN_ROWS)
        try:
            table = await while_watched(request, site.hub, lambda: read.run(site.subject, q, at, bounds), bounds.cancel)
            found, wrong = await run_in_threadpool(read.result_of, table, more=bounds.more), None
        except HeadraceError as error:
            found, wrong = None, error
        return site.page(request, "sql_result.html", q=q, at_=at, show=show, result=found, wrong=wrong, kinds=KINDS)

    @routes.get("/sql/export")
    async def export(request: fastapi.Request, q: str, form: str, at: str = "") -> Response:
        bounds = Bounds(seconds=SECONDS * 4, rows=EXPORTED_ROWS, bytes=EXPORTED_BYTES)
        table = await while_watched(request, site.hub, lambda: read.run(site.subject, q, at, bounds), bounds.cancel)
        parts = (table.slice(start, 8192) for start in range(0, table.num_rows, 8192))
        return exported(parts, table.slice(0, 0), form, "query")

    return routes
