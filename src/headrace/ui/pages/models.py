"""Models: the list, one with its versions, a version, and what is known of a prediction's origin."""

from __future__ import annotations

import functools
from typing import Any

import fastapi
from starlette.responses import Response

from headrace.errors import HeadraceError, LogError
from headrace.replay.explain import explain, range_text
from headrace.ui.pictures import timeline_svg
from headrace.ui.read import models as read
from headrace.ui.read.curves import Tables, curves_of
from headrace.ui.read.flows import flows_of
from headrace.ui.read.moment import Moment, moment_at
from headrace.ui.read.predictor import Asked, Predictor
from headrace.ui.site import Site, link


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()
    predictor, tables = Predictor(site.models), Tables()

    def moment_of(model: str, at: str) -> Moment:
        log = site.subject.log_of_model(model)
        if log is None:
            known = [name for held in site.subject.logs().values() for name in held.records("model")]
            raise LogError(f"there is no model «{model}»", advice=f"Its models: {', '.join(known) or 'none'}.")
        return moment_at(log, at)

    @routes.get("/models")
    def models(request: fastapi.Request, at: str = "") -> Response:
        moments = [moment_at(log, at) for log in site.subject.logs().values()]
        lines = [line for moment in moments for line in read.model_lines(moment, flows_of(moment))]
        return site.page(request, "models.html", at=moments[0] if moments else None, lines=lines)

    @routes.get("/models/{name}")
    def model(request: fastapi.Request, name: str, at: str = "") -> Response:
        moment = moment_of(name, at)
        found, finder = read.model_of(moment, name)
        then = "" if moment.live else moment.text
        marks = read.marks_of(finder, name)
        svg = timeline_svg(name, found.versions, marks, functools.partial(link, at=then), until_us=moment.newest_us())
        given, version = _given(request), request.query_params.get("version", "")
        form = predictor.form(moment, finder.flows, name, given)
        asked, failed = _asked(moment, name, given, version) if given else (None, "")
        about: dict[str, Any] = {"form": form, "asked": asked, "failed": failed, "version": version, "model_name": name}
        about |= {"target": read.target_of(moment, name), "x": request.query_params.get("x", "rows")}
        return site.page(request, "model.html", at=moment, model=found, timeline=svg, **about)

    def _asked(moment: Moment, name: str, given: dict[str, str], version: str) -> tuple[Asked | None, str]:
        try:
            return predictor.ask(moment, name, given, version), ""
        except HeadraceError as error:
            return None, f"{error.message} {error.advice}"

    @routes.get("/models/{name}/charts")
    def charts(request: fastapi.Request, name: str, at: str = "", x: str = "rows") -> Response:
        moment = moment_of(name, at)
        curves = curves_of(tables, moment, name, time=x == "time")
        return site.page(request, "_charts.html", at=moment, curves=curves, model_name=name, time=x == "time")

    @routes.get("/models/{name}/ask")
    def ask(request: fastapi.Request, name: str, at: str = "", version: str = "") -> Response:
        moment = moment_of(name, at)
        asked, failed = _asked(moment, name, _given(request), version)
        target = read.target_of(moment, name)
        return site.page(request, "_asked.html", at=moment, asked=asked, failed=failed, model_name=name, target=target)

    @routes.get("/models/{name}/{number}")
    def version(request: fastapi.Request, name: str, number: str, at: str = "") -> Response:
        moment = moment_of(name, at)
        found = read.version_of(moment, name, number)
        return site.page(request, "version.html", at=moment, version=found)

    @routes.get("/topics/{topic}/{offset}/origin")
    def origin(request: fastapi.Request, topic: str, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        found = explain(moment.log, topic, offset)
        return site.page(request, "_origin.html", at=moment, origin=found, learned=list(range_text(found["learned"])))

    return routes


def _given(request: fastapi.Request) -> dict[str, str]:
    """Return the values of a form's fields, by their columns."""
    return {name[2:]: value for name, value in request.query_params.items() if name.startswith("f.")}
