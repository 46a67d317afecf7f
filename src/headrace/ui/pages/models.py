"""Models: the list, one with its versions, and a version."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import fastapi
from markupsafe import Markup
from starlette.responses import Response

from headrace.ui.live_parts import LivePart, part_name
from headrace.ui.pages.model_parts import ask_as_given, given_in, moment_of
from headrace.ui.pictures import timeline_svg
from headrace.ui.read import models as read
from headrace.ui.read.flows import flows_of
from headrace.ui.read.predictor import Predictor
from headrace.ui.read.relations import Finder
from headrace.ui.site import Name, Site, link


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()
    predictor = Predictor(site.models, site.states)

    @routes.get("/models")
    def models(request: fastapi.Request, at: str = "") -> Response:
        moments = [site.subject.moment_of(log, at) for log in site.subject.logs().values()]
        lines = [line for moment in moments for line in read.model_lines(moment, flows_of(moment))]
        return site.page(request, "models.html", at=moments[0] if moments else None, lines=lines)

    @routes.get("/models/{name}")
    def model(request: fastapi.Request, name: Name, at: str = "", version: str = "", x: str = "rows") -> Response:
        moment = moment_of(site, name, at)
        found, finder = read.model_of(moment, name)
        svg = _timeline(found, finder)
        given = given_in(request)
        form = predictor.form(moment, finder.flows, name, given)
        asked, failed = ask_as_given(predictor, moment, name, given, version) if given else (None, "")
        about: dict[str, Any] = {"form": form, "asked": asked, "failed": failed, "version": version, "x": x}
        about |= {"model_name": name, "target": read.target_of(moment, name)}
        about["pushed"] = {kind: part_name(kind, model=name) for kind in ("scores", "history")}
        return site.page(request, "model.html", at=moment, model=found, timeline=svg, **about)

    def live_history(values: Mapping[str, str]) -> LivePart:
        name = values["model"]

        def made() -> str:
            found, finder = read.model_of(moment_of(site, name, ""), name)
            return site.part("_history.html", model=found, timeline=_timeline(found, finder))

        topics = read.topics_of(moment_of(site, name, ""), name)
        return LivePart([f"model:{name}/version", *(f"topic:{topic}/end" for topic in topics["told"])], made)

    site.hub.parts.offer("history", live_history)

    @routes.get("/models/{name}/{number}")
    def version(request: fastapi.Request, name: Name, number: str, at: str = "") -> Response:
        moment = moment_of(site, name, at)
        found = read.version_of(moment, name, number)
        return site.page(request, "version.html", at=moment, version=found)

    return routes


def _timeline(model: read.Model, finder: Finder) -> Markup:
    moment = finder.moment
    address = functools.partial(link, at="" if moment.live else moment.text)
    marks = read.marks_of(finder, model.name)
    return timeline_svg(model.name, model.versions, marks, address, until_us=moment.newest_us())
