"""Changes of models from a page: retrain, promote, tag, roll back, reset; what came of one is shown there."""

from __future__ import annotations

import contextlib
from typing import Any
from urllib.parse import parse_qs

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.errors import HeadraceError, LogError, LogLocked
from headrace.formats.topic_formats import codec_for
from headrace.inspect.health import read_status
from headrace.log import file_of, open_log
from headrace.log.base import Log
from headrace.log.kafka import KafkaLog
from headrace.registry.requests import Request, whoami
from headrace.replay.model_changes import REQUEST_SECONDS, TRAINING_SECONDS, change, reset
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
    request = _request(model, action, values, by)
    if isinstance(log, KafkaLog):
        done = _by_its_pipeline(site, log, action, request)
        if done is not None:
            return done
        _refuse_running(log, model, action, sure="stopped" in values)
    where = log.location.url if isinstance(log, KafkaLog) else str(file_of(log))

    def writing() -> contextlib.AbstractContextManager[Log]:
        return contextlib.closing(open_log(where, writer=True, codec=codec_for()))

    if request is None:
        with writing() as held:
            relearn = values.get("from", "earliest") == "earliest"
            return {"version": reset(held, model, relearn=relearn, by=by)}
    return change(where, writing, request, stopped=True)


def _request(model: str, action: str, values: dict[str, str], by: str) -> Request | None:
    """Return what a pipeline is asked for; None where it is to be stopped for that."""
    number = values.get("version", "0")
    if action == "tag":
        return Request("tag", model, number, by, values.get("tag", ""), "delete" in values)
    if action == "rollback":
        return Request("rollback", model, number, by)
    return None if action == "reset" else Request("retrain" if action == "retrain" else "promote", model, 0, by)


def _by_its_pipeline(site: Site, log: KafkaLog, action: str, request: Request | None) -> dict[str, Any] | None:
    """Have the pipeline of this process do it; None where it runs in another one, or not at all."""
    if site.models is None or site.subject.view is not None:
        return None
    if request is None:
        return None  # it runs, and says so
    assert request.action != "tick" and request.action != "snapshot"  # no page asks for one
    timeout = TRAINING_SECONDS if action in ("retrain", "promote") else REQUEST_SECONDS
    version, tag = str(request.version), request.tag
    try:
        return site.models.change(
            request.model, request.action, timeout, by=request.by, version=version, tag=tag, delete=request.delete
        )
    except LogLocked:
        return None


def _refuse_running(log: KafkaLog, model: str, action: str, *, sure: bool) -> None:
    """Refuse to write to the log of a pipeline that runs, or may: a log on a cluster has one writer.

    Args:
        sure: whether somebody says that it does not run.

    Raises:
        LogLocked: it says that it does, or says nothing.
    """
    status, command = read_status(log), f"headrace models {action} {model} --log {log.location.url}"
    if status.runs:
        advice = f"Stop it, and ask again on headrace ui, or: {command}."
        if action != "reset":
            advice = "Do it on the page beside it (headrace run FILE --ui, headrace serve FILE), or stop it first."
        raise LogLocked(
            f"the pipeline runs ({status.where}), and what is written to its log would end it", advice=advice
        )
    if not (status.stopped or status.failed or sure):
        heard = f"it was not heard of for {status.age:.0f} s" if status.silent else "its log does not say"
        raise LogLocked(
            f"whether the pipeline runs is not known ({heard}); what is written to its log would end it",
            advice="If it does not run, say so above, and ask again.",
        )


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
    if status == "shadow":
        return f"{of.capitalize()} is tried out beside the current one{rows}."
    reason = f": {result['reason']}" if result.get("reason") else ""
    return f"{status}: {of}{rows}{reason}."
