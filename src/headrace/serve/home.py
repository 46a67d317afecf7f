"""The page at ``/``: what is served here, for people in a browser and as JSON.

Who may not predict is told no more than the description at ``/openapi.json`` tells all: paths, and the names of models
that have one. The page is one answer: no script, no image, nothing from anywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from headrace.serve.exchange import Request, Response, json_response
from headrace.serve.models import Models
from headrace.serve.parameters import Endpoint, Parameter

LINKS = {"docs": "/docs", "openapi": "/openapi.json", "metrics": "/metrics", "ready": "/v2/health/ready"}
_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_VARY = (b"vary", b"accept, authorization, x-api-key")
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2rem }
small, .dim { opacity: .7 }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884 }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere }
.paths code { white-space: nowrap }
nav a { margin-right: 1.2rem }
"""


class Home:
    """``GET /``.

    Args:
        title: the pipeline's name.
        routes: method, path, scope and summary of every other route.
        may: whether a request may predict; ``closed``: whether a key is needed for that.
    """

    def __init__(
        self,
        models: Models,
        endpoints: Sequence[Endpoint],
        routes: Sequence[tuple[str, str, str, str]],
        *,
        title: str,
        may: Callable[[Request, str], bool],
        closed: Callable[[], bool],
    ) -> None:
        self._models = models
        self._endpoints = endpoints
        self._routes = routes
        self._title = title
        self._may = may
        self._closed = closed

    async def __call__(self, request: Request) -> Response:
        """Answer with a page where a browser asks, else with JSON."""
        told = self._may(request, "predict")
        about: dict[str, Any] = {
            "name": self._title,
            "headrace": version("headrace"),
            "needs_key": self._closed(),
            "models": self._about_models(told),
            "paths": [
                {"method": method, "path": path, "scope": scope or None, "summary": summary}
                for method, path, scope, summary in self._routes
            ],
            "links": LINKS,
        }
        if wants_html(request.header(b"accept")):
            return Response(_page(about).encode(), 200, [*_HEADERS, _VARY])
        return json_response(about, 200, [_VARY])

    def _about_models(self, told: bool) -> list[dict[str, Any]]:
        models, found = self._models, []
        for name, description in models.descriptions.items():
            about: dict[str, Any] = {"model": name}
            if told:
                about |= {**models.current(name).info.to_dict(), "ready": models.ready(name)}
                features = [column.name for column in description.columns]
                about |= {"learner": description.learner_text, "features": features, "target": description.target}
            about["examples"] = [example(endpoint) for endpoint in self._endpoints if endpoint.model == name]
            if told or about["examples"]:
                found.append(about)
        return found


def wants_html(accept: str | None) -> bool:
    """Return whether a browser asks: HTML is named, and nothing that JSON is, is wanted more.

    >>> wants_html("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
    True
    >>> [wants_html(accept) for accept in (None, "*/*", "application/json", "application/json, text/html;q=0.5")]
    [False, False, False, False]
    """
    wanted: dict[str, float] = {}
    for part in (accept or "").lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            wanted[kind] = float(weight)
        except ValueError:
            wanted[kind] = 0.0
    page = wanted.get("text/html", 0.0)
    return page > 0 and page >= wanted.get("application/json", 0.0)


def example(endpoint: Endpoint) -> str:
    """Return a path as one would ask it, relative to the server's.

    >>> example(Endpoint("/days", "days", (Parameter("weight", "Weight", "number", True),), "took"))
    '/days?weight=1.0'
    """
    asked = "&".join(f"{quote(parameter.name)}={quote(_value(parameter))}" for parameter in endpoint.parameters)
    return f"{endpoint.path}?{asked}"


def _value(parameter: Parameter) -> str:
    if parameter.words:
        return parameter.words[0]
    return {"number": "1.0", "integer": "1", "text": "a"}[parameter.type]


# -- HTML -------------------------------------------------------------------------------------------------------------


def _page(about: dict[str, Any]) -> str:
    title = escape(about["name"])
    links = "".join(f'<a href="{escape(path[1:])}">{escape(name)}</a>' for name, path in about["links"].items())
    key = "<p>A key is needed: <code>X-API-Key: …</code> or <code>Authorization: Bearer …</code>.</p>"
    paths = _table(("", "path", "what", "scope of the key"), map(_path_cells, about["paths"]))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p class=dim>Served by Headrace {escape(about['headrace'])}</p><nav>{links}</nav>"
        f"{key if about['needs_key'] else ''}<h2>Models</h2>{''.join(map(_model_text, about['models']))}"
        f"<h2>Paths</h2>{paths}</body></html>"
    )


def _model_text(model: dict[str, Any]) -> str:
    rows = []
    if "version" in model:
        position = model["position"] or "nothing"
        rows = [
            ("version", f"{model['version']}, of {escape(model['model_time'])} UTC"),
            ("learned up to", f"{escape(position)}{'' if model['ready'] else ': it cannot predict yet'}"),
            ("learner", f"<code>{escape(model['learner'])}</code>"),
            ("features", escape(", ".join(model["features"]) or "made by a function")),
            ("target", escape(model["target"] or "–")),
        ]
    for asked in model["examples"]:
        rows.append(("ask", f'<a href="{escape(asked[1:])}"><code>{escape(asked)}</code></a>'))
    cells = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows)
    return f"<h3>{escape(model['model'])}</h3><div class=wide><table>{cells}</table></div>"


def _path_cells(path: dict[str, Any]) -> tuple[str, ...]:
    return (
        escape(path["method"]),
        f"<code>{escape(path['path'])}</code>",
        escape(path["summary"]),
        escape(path["scope"] or "–"),
    )


def _table(names: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide paths"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
