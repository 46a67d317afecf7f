"""What every page has in common: the log that it looks at, its templates, the place in time that its address names."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import fastapi
import jinja2
from markupsafe import Markup
from pydantic import AfterValidator
from starlette.responses import HTMLResponse

from headrace import units
from headrace.row_tables import cell
from headrace.serve.models import Models
from headrace.ui.guard import BASE, CALLER, SLASH
from headrace.ui.read.states import States
from headrace.ui.stream import Hub
from headrace.ui.subject import PIPELINE, Subject

NAV = (
    ("Pipeline", "/"),
    ("Topics", "/topics"),
    ("Models", "/models"),
    ("Alarms", "/alarms"),
    ("Dead letters", "/letters"),
    ("SQL", "/sql"),
    ("Health", "/health"),
)


# Pages that are of pipelines alone.
OF_PIPELINES = tuple(f"{BASE}/{name}" for name in ("models", "alarms", "letters", "health"))
# A name in a path, whatever its characters; see `headrace.ui.guard.SLASH`.
Name = Annotated[str, AfterValidator(lambda text: text.replace(SLASH, "/"))]


@dataclass(slots=True)
class Site:
    """The dashboard of one log or cluster.

    Attributes:
        models: of a pipeline in this process, or that is followed in it; None where only the log is looked at.
        states: of models, made of the log alone.
    """

    subject: Subject
    hub: Hub
    models: Models | None = None
    states: States = field(default_factory=States)
    _templates: jinja2.Environment = field(default_factory=lambda: _environment())

    def page(self, request: fastapi.Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page.

        Args:
            values: of its template; ``at`` (`Moment`), where the page is of one.
        """
        caller = request.scope.get(CALLER)
        moment = values.get("at")
        at = moment.text if moment is not None and not moment.live else ""
        text = self._templates.get_template(template).render(
            site=self,
            nav=NAV,
            path=request.url.path,
            here=request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            at_text=at,
            may=caller.may if caller is not None else (lambda scope: False),
            link=functools.partial(link, at=at),
            travel=link("travel", at=at, path=_without_at(request)),
            now_path=_without_at(request),
            pipeline=PIPELINE.get(),
            kept=_kept(PIPELINE.get()),
            pipelines=self.subject.pipelines,
            undecided=self.subject.undecided,
            choose=self.subject.undecided and _of_pipelines(request),
            headrace=version("headrace"),
            **values,
        )
        return HTMLResponse(text, status)

    def part(self, template: str, **values: Any) -> str:
        """Return a part of a page as it is now, the same for all viewers."""
        return self._templates.get_template(template).render(
            at_text="", link=link, kept=_kept(PIPELINE.get()), **values
        )


def _of_pipelines(request: fastapi.Request) -> bool:
    """Return whether a page is of a pipeline's log alone, as the list of topics is where it is of before."""
    path = request.url.path
    return path.startswith(OF_PIPELINES) or (path == f"{BASE}/topics" and bool(request.query_params.get("at")))


def _kept(pipeline: str) -> Markup:
    """Return what a form that is sent by GET carries along: such a form loses what its address says."""
    hidden = Markup('<input type="hidden" name="pipeline" value="{}">')
    return hidden.format(pipeline) if pipeline else Markup("")


def _without_at(request: fastapi.Request) -> str:
    """Return the address of a page as it is now."""
    query = urlencode([(name, value) for name, value in request.query_params.multi_items() if name != "at"])
    return request.url.path + (f"?{query}" if query else "")


def link(*parts: object, at: str = "", **query: object) -> str:
    """Return the address of a page; parts of its path are quoted, what is empty in its query is left out.

    The pipeline of a cluster that was chosen goes along.

    >>> link("topics", "a/b", offset=3, order=""), link("models", "m", at="14:02")
    ('/ui/topics/a%2Fb?offset=3', '/ui/models/m?at=14%3A02')
    """
    given = {"pipeline": PIPELINE.get(), **query, "at": at}
    given = {name: value for name, value in given.items() if value not in ("", None)}
    path = "/".join([BASE, *(quote(str(part), safe="") for part in parts)])
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("headrace.ui"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters: Mapping[str, Callable[..., Any]] = {
        "bytes": units.bytes_text,
        "rate": units.rate_text,
        "age": units.age_text,
        "time": units.time_text,
        "cell": cell,
        "number": number,
        "compact": compact,
    }
    made.filters.update(filters)
    return made


def number(value: Any) -> str:
    """Return a number with thousands apart; a fraction with six digits that count.

    >>> number(12345), number(0.123456789), number(None), number("a")
    ('12,345', '0.123457', '–', 'a')
    """
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def compact(value: Any) -> str:
    """Return a value as JSON in one line, for an attribute of a page."""
    return json.dumps(value, separators=(",", ":"), default=str)
