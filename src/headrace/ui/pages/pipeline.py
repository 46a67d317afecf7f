"""The first page: the plan as a picture whose parts are live."""

from __future__ import annotations

import re

import fastapi
from markupsafe import Markup
from starlette.responses import Response, StreamingResponse

from headrace.plan.graph import Graph, Part
from headrace.plan.picture import laid_out, svg
from headrace.ui.read.cluster import pipeline_lines
from headrace.ui.read.moment import Moment
from headrace.ui.read.pipeline import graph_of
from headrace.ui.read.relations import versions_of
from headrace.ui.site import Site, link
from headrace.ui.stream import numbers
from headrace.ui.subject import PIPELINE

# Lines of numbers that stand in a part of the picture, by its kind.
SHOWN = {
    "topic": ("{rows} rows", "{rate} · {age}"),
    "model": ("{version} · {busy} busy", "{learned} learned", "{waiting} waiting"),
    "operator": ("{note}",),
    "source": ("{status}", "{note}"),
    "sink": ("{status}", "{note}"),
}
EMPTY = {"note": ""}
LINES = {kind: len(lines) for kind, lines in SHOWN.items()}
# What a page of a computer, and one of a telephone, has room for.
WIDE, NARROW = 1220.0, 330.0
MOST_TWICE = 80
PART = "part:"  # a part of a page among the keys that its stream is asked for
PIECES = re.compile(r"\{(\w+)\}")


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/")
    def pipeline(request: fastapi.Request, at: str = "") -> Response:
        logs = site.subject.logs()
        moments = {name: site.subject.moment_of(log, at) for name, log in logs.items()}
        pictures = [
            {"name": name, "graph": graph, "svgs": pictures_of(graph, moments[name])}
            for name, log in logs.items()
            if (graph := graph_of(log, moments[name].topics())).parts
        ]
        first = next(iter(moments.values()), None)
        view = site.subject.view if site.subject.pipelines and not PIPELINE.get() else None
        lines = pipeline_lines(view) if view is not None else []
        return site.page(request, "pipeline.html", at=first, pictures=pictures, lines=lines)

    @routes.get("/events")
    async def events(want: str = "") -> Response:
        lines = [line for line in want.split("\n") if line]
        names = [line.removeprefix(PART) for line in lines if line.startswith(PART)]
        prefixes = tuple(line for line in lines if not line.startswith(PART)) or ("",)
        found = numbers(site.hub, lambda key: key.startswith(prefixes), names)
        return StreamingResponse(found, media_type="text/event-stream", headers={"x-accel-buffering": "no"})

    return routes


def pictures_of(graph: Graph, moment: Moment) -> list[tuple[str, Markup]]:
    """Return the plan as SVG, its parts links to their pages: for wide pages and for narrow ones, each with a name.

    Of a plan with many parts there is one only.
    """
    at = "" if moment.live else moment.text
    topics = {} if moment.live else moment.topics()

    def numbers_of(part: Part) -> list[list[tuple[str, str]]]:
        if moment.live:
            return [pieces(part.id, line) for line in SHOWN.get(part.kind, ())]
        name = part.id.partition(":")[2]
        if part.kind == "model":
            version = versions_of(moment, name).current
            return [[("", f"v{version.version}")]] if version is not None else []
        return [[("", f"{topics[name].rows if name in topics else 0:,} rows")]] if part.kind == "topic" else []

    def drawn(width: float) -> Markup:
        picture = laid_out(graph, spare=LINES if moment.live else {"topic": 1, "model": 1}, width=width)
        return Markup(svg(picture, link=lambda part: place_of(part, at), numbers=numbers_of, style=""))

    if len(graph.parts) > MOST_TWICE:
        return [("", drawn(WIDE))]
    return [("wide", drawn(WIDE)), ("narrow", drawn(NARROW))]


def pieces(part: str, line: str) -> list[tuple[str, str]]:
    """Return a line of a part as texts, with keys where they are numbers.

    >>> pieces("topic:a", "{rows} rows")
    [('topic:a/rows', '–'), ('', ' rows')]
    """
    split = PIECES.split(line)
    found = [
        ("", text) if number % 2 == 0 else (f"{part}/{text}", EMPTY.get(text, "–")) for number, text in enumerate(split)
    ]
    return [piece for piece in found if any(piece)]


def place_of(part: Part, at: str = "") -> str:
    """Return the page of a part of the plan; "" where it has none."""
    name = part.id.partition(":")[2]
    if part.kind == "topic":
        return link("topics", name, at=at)
    if part.kind in ("model", "training"):
        return link("models", name.partition("/")[0], at=at)
    if part.kind == "operator":
        return link("alarms", at=at) if part.operation in ("alarm", "drift") else ""
    if part.kind in ("source", "sink"):
        return link("health", at=at)
    return ""
