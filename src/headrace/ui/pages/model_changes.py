"""Changes of models from a page: retrain, promote, tag, roll back, reset; what came of one is shown there."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import parse_qs

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.errors import HeadraceError, LogError, LogLocked
from headrace.log import file_of, open_log
from headrace.log.base import Log
from headrace.registry.requests import Request, whoami
from headrace.replay.model_changes import TRAINING_SECONDS, change, reset
from headrace.ui.guard import need
from headrace.ui.site import Name, Site

SCOPES = {"retrain": "train", "promote": "train", "tag": "train", "rollback": "admin", "reset": "admin"}
LONGEST = 10_000


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.post("/models/{name}/{action}")
    async def changed(request: fastapi.Request, name: Name, action: str) -> Response:
        if action not in SCOPES:
            raise LogError(f"nothing is called {action}", advice=f"There is {', '.join(SCOPES)}.")
        caller = need(request, SCOPES[action])
        given = parse_qs((await request.body())[:LONGEST].decode("utf-8", "replace"))
        # Somebody on this machine has an address for a name.
        by = f"{caller.name} ({whoami()})" if caller.name.startswith(("key ", "token ")) else whoami()
        values = {key: texts[0].strip() for key, texts in given.items()}
        try:
            result = await run_in_threadpool(_done, site, name, action, values, by)
            text, advice = said(name, action, result), ""
        except HeadraceError as error:
            text, advice, result = error.message, error.advice, {}
        return site.page(request, "_changed.html", text=text, advice=advice, result=result, model_name=name)

    return routes


def _done(site: Site, model: str, action: str, values: dict[str, str], by: str) -> dict[str, Any]:
    """Do what is asked; return what came of it.

    Raises:
        HeadraceError: it cannot be done, and why.
    """
    log = site.subject.log_of_model(model)
    if log is None:
        raise LogError(f"there is no model «{model}»")
    path = file_of(log)
    if action == "retrain" and path is None and site.models is not None:
        return site.models.train(model, TRAINING_SECONDS)
    if path is None:
        raise LogLocked(
            "a page does not write to a log on a cluster: that would stop the pipeline that writes it, if one runs",
            advice="While it runs: running.rollback(…) in Python. While it is stopped: headrace models … --stopped.",
        )
    where = str(path)

    def writing() -> contextlib.AbstractContextManager[Log]:
        return contextlib.closing(open_log(where, writer=True))

    if action == "reset":
        with writing() as held:
            relearn = values.get("from", "earliest") == "earliest"
            return {"version": reset(held, model, relearn=relearn, by=by)}
    number = values.get("version", "0")
    if action == "tag":
        return change(where, writing, Request("tag", model, number, by, values.get("tag", ""), "delete" in values))
    if action == "rollback":
        return change(where, writing, Request("rollback", model, number, by))
    wish = Request("retrain" if action == "retrain" else "promote", model, 0, by)
    return change(where, writing, wish)


def said(model: str, action: str, result: dict[str, Any]) -> str:
    """Return what came of a change, in a line.

    >>> said("m", "tag", {"version": 3, "tags": ["best"]}), said("m", "retrain", {"status": "asked"})
    ('Version 3 of m: best.', 'm is trained anew when its pipeline starts.')
    """
    version = result.get("version")
    if action == "tag":
        return f"Version {version} of {model}: {', '.join(result['tags']) or 'no tags'}."
    if action == "reset":
        return f"{model} begins anew, as version {version}, when its pipeline starts."
    if action == "rollback":
        if version is None:
            return f"{model} goes on from version {result['parent']} when its pipeline starts."
        when = "has begun" if result.get("begun") else "begins when the open cut is complete"
        return f"Version {version} {when}, from version {result['parent']}."
    status = result["status"]
    if status == "asked":
        return f"{model} is {'trained anew' if action == 'retrain' else 'replaced'} when its pipeline starts."
    of = f"version {version}" if version is not None else "no new version"
    rows = f", on {result['rows']:,} rows" if result.get("rows") is not None else ""
    reason = f": {result['reason']}" if result.get("reason") else ""
    return f"{status}: {of}{rows}{reason}."
