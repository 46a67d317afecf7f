"""Dead letters: by reason, one with its row and bytes, and sending it again."""

from __future__ import annotations

import json
from typing import Any

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from headrace.errors import FormatError, HeadraceError, LogError
from headrace.ui.appending import Appended, GivenRows, append, row_of_json
from headrace.ui.guard import need
from headrace.ui.pages.produce import SCOPE, form_values
from headrace.ui.read import letters as read
from headrace.ui.read.produced import form_of
from headrace.ui.site import Name, Site

HEX_BYTES = 2_048


def router(site: Site) -> fastapi.APIRouter:
    """Return the routes."""
    routes = fastapi.APIRouter()

    @routes.get("/letters")
    def letters(request: fastapi.Request, at: str = "", topic: str = "", reason: str = "") -> Response:
        if topic:
            moment = site.subject.moment(topic, at)
            found = read.letters_of(moment, topic, reason)
            return site.page(request, "letters_group.html", at=moment, topic=topic, reason=reason, letters=found)
        moments = {name: site.subject.moment_of(log, at) for name, log in site.subject.logs().items()}
        groups: list[read.Group] = []
        cut = False
        for moment in moments.values():
            some, more = read.groups_of(moment)
            groups, cut = groups + some, cut or more
        first = next(iter(moments.values()), None)
        groups.sort(key=lambda group: -group.last_us)
        return site.page(request, "letters.html", at=first, groups=groups, cut=cut)

    @routes.get("/letters/{topic}/{offset:int}")
    def letter(request: fastapi.Request, topic: Name, offset: int, at: str = "") -> Response:
        moment = site.subject.moment(topic, at)
        found = _letter(read.letter_of(moment, topic, offset), topic, offset)
        raw = found.raw[:HEX_BYTES].hex(" ") if found.raw is not None else ""
        return site.page(request, "letter.html", at=moment, letter=found, raw=raw, why_not=why_not(found))

    @routes.post("/letters/{topic}/{offset:int}/send")
    async def send(request: fastapi.Request, topic: Name, offset: int) -> Response:
        need(request, SCOPE)
        values = await form_values(request)
        appended, wrong = None, None
        try:
            appended = await run_in_threadpool(_sent, site, topic, offset, values.get("row", ""))
        except HeadraceError as error:
            wrong = error
        origin = topic.removesuffix(read.ENDING)
        return site.page(request, "produced.html", topic=origin, appended=appended, wrong=wrong, token="")

    return routes


def _letter(found: read.Letter | None, topic: str, offset: int) -> read.Letter:
    if found is None:
        raise LogError(
            f"«{topic}» holds no dead letter {offset}", advice="The page of dead letters shows which there are."
        )
    return found


def why_not(letter: read.Letter) -> str:
    """Return why a letter cannot be sent again; "" where it can."""
    if letter.op in ("d", "t"):
        return "It is a delete: there is no row to send again. Delete it where the rows come from, once more."
    return ""


def _sent(site: Site, topic: str, offset: int, text: str) -> Appended:
    """Append a letter's row, as it was repaired, to the topic that it was meant for, once.

    Raises:
        HeadraceError: it cannot be.
    """
    moment = site.subject.moment(topic, "")
    letter = _letter(read.letter_of(moment, topic, offset), topic, offset)
    if reason := why_not(letter):
        raise FormatError(reason)
    if letter.sent:
        return Appended(0, 1, None)
    row = _object(text)
    origin = letter.origin
    form = form_of(moment, origin)
    given = GivenRows(row_of_json(form.schema, row))
    return append(site, origin, given, read.producer_of(letter), key=[name for name in form.key if name in row])


def _object(text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise FormatError(f"the row is no JSON: {error}", advice="Correct it there.") from error
    if not isinstance(row, dict) or not row:
        raise FormatError("the row is no JSON object", advice='Write {"column": value, …}.')
    return row
