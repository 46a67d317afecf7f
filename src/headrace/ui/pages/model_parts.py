"""Parts of pages about models, which a page asks for when it is there, and again when numbers move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fastapi
from starlette.responses import Response

from headrace.errors import HeadraceError, LogError
from headrace.replay.explain import explain, range_text
from headrace.ui.live_parts import LivePart, part_name
from headrace.ui.read import models as read
from headrace.ui.read.curves import Tables, curves_of
from headrace.ui.read.moment import Moment
from headrace.ui.read.parameters import comparison_of, parameters_of
from headrace.ui.read.predictor import Asked, Predictor
from headrace.ui.site import Name, Site


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()
    predictor, tables = Predictor(site.models, site.states), Tables()

    @routes.get("/models/{name}/charts")
    def charts(request: fastapi.Request, name: Name, at: str = "", x: str = "rows") -> Response:
        moment = moment_of(site, name, at)
        curves = curves_of(tables, moment, name, time=x == "time")
        about: dict[str, Any] = {"curves": curves, "model_name": name, "time": x == "time"}
        if not moment.live:
            return site.page(request, "_charts.html", at=moment, **about)
        pushed = part_name("charts", model=name, x=x)
        return site.page(request, "charts_part.html", at=moment, pushed=pushed, **about)

    @routes.get("/models/{name}/parameters")
    def parameters(request: fastapi.Request, name: Name, at: str = "", cx: int = 0, cy: int = 1) -> Response:
        moment = moment_of(site, name, at)
        found = parameters_of(site.states, moment, name)
        most = max(0, len(found.columns) - 1)
        axes = {"cx": min(max(0, cx), most), "cy": min(max(0, cy), most)}
        return site.page(request, "_parameters.html", at=moment, found=found, model_name=name, **axes)

    @routes.get("/models/{name}/compare")
    def compare(request: fastapi.Request, name: Name, a: str, b: str, at: str = "") -> Response:
        moment = moment_of(site, name, at)
        return site.page(request, "compare.html", at=moment, both=comparison_of(site.states, moment, name, a, b))

    @routes.get("/models/{name}/ask")
    def ask(request: fastapi.Request, name: Name, at: str = "", version: str = "") -> Response:
        moment = moment_of(site, name, at)
        asked, failed = ask_as_given(predictor, moment, name, given_in(request), version)
        target = read.target_of(moment, name)
        return site.page(request, "_asked.html", at=moment, asked=asked, failed=failed, model_name=name, target=target)

    @routes.get("/topics/{topic}/{offset:int}/origin")
    def origin(request: fastapi.Request, topic: Name, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        try:
            found, failed = explain(moment.log, topic, offset), ""
        except HeadraceError as error:  # rows that it had learned are not kept any more, say
            found, failed = {"learned": []}, f"{error.message}. {error.advice}"
        learned = list(range_text(found["learned"]))
        return site.page(request, "_origin.html", at=moment, origin=found, learned=learned, failed=failed)

    _offer(site, tables)
    return routes


def _offer(site: Site, tables: Tables) -> None:
    """Let charts and scores be looked at while they move."""

    def live_charts(values: Mapping[str, str]) -> LivePart:
        name, time = values["model"], values.get("x") == "time"

        def made() -> str:
            curves = curves_of(tables, moment_of(site, name, ""), name, time=time)
            return site.part("_charts.html", curves=curves, model_name=name, time=time)

        topics = read.topics_of(moment_of(site, name, ""), name)
        keys = [f"topic:{topic}/end" for topic in (*topics["graded"], *topics["scored"], *topics["told"])]
        return LivePart([f"model:{name}/version", *keys], made)

    def live_scores(values: Mapping[str, str]) -> LivePart:
        name = values["model"]

        def made() -> str:
            return site.part("_scores.html", all_scores=read.scores_of(moment_of(site, name, ""), name))

        topics = read.topics_of(moment_of(site, name, ""), name)
        return LivePart([f"topic:{topic}/end" for topic in topics["scored"]], made)

    site.hub.parts.offer("charts", live_charts)
    site.hub.parts.offer("scores", live_scores)


def moment_of(site: Site, model: str, at: str) -> Moment:
    """Return the log that a model is in, at a place.

    Raises:
        LogError: there is no such model.
    """
    log = site.subject.log_of_model(model)
    if log is None:
        known = [name for held in site.subject.logs().values() for name in held.records("model")]
        raise LogError(f"there is no model «{model}»", advice=f"Its models: {', '.join(known) or 'none'}.")
    return site.subject.moment_of(log, at)


def ask_as_given(
    predictor: Predictor, moment: Moment, model: str, given: dict[str, str], version: str
) -> tuple[Asked | None, str]:
    """Return a prediction, or why the model cannot be asked; neither where nothing is given yet."""
    if not any(given.values()):
        return None, ""
    try:
        return predictor.ask(moment, model, given, version), ""
    except HeadraceError as error:
        return None, f"{error.message} {error.advice}"


def given_in(request: fastapi.Request) -> dict[str, str]:
    """Return the values of a form's fields, by their columns."""
    return {name[2:]: value for name, value in request.query_params.items() if name.startswith("f.")}
