"""Descriptions of the routes for OpenAPI: their handlers read bytes, so they are written here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.serve.arrow import STREAM
from headrace.serve.inference import DATATYPES, datatype_of
from headrace.serve.models import Description
from headrace.serve.parameters import Endpoint, Parameter


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    """The schema of an object; where nothing is said, no member is required."""
    found = {"type": "object", "properties": dict(properties)}
    return {**found, "required": list(required)} if required else found


def _list(items: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": dict(items), **more}


_TEXT = {"type": "string"}
_POSITION = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_HEADERS = {
    "Headrace-Model": {"description": "The model that answered.", "schema": _TEXT},
    "Headrace-Version": {"description": "Its version.", "schema": {"type": "integer"}},
    "Headrace-Position": {"description": "Up to where it has learned.", "schema": _TEXT},
}
_FIELD = {"type": _TEXT, "loc": _list({"anyOf": [_TEXT, {"type": "integer"}]}), "msg": _TEXT, "input": {}}
_FIELDS = _list(_object(_FIELD, "type", "loc", "msg"))
_DETAIL = _object({"detail": {"anyOf": [_TEXT, _FIELDS]}}, "detail")
_ERROR = _object({"error": _TEXT}, "error")
_STATUS = {
    400: "Not a request of this protocol",
    401: "A key or token is needed",
    403: "The key or token may not do that",
    404: "There is no such model or version",
    408: "The body did not come",
    409: "It is being trained, or cannot be trained now",
    413: "The body is too large",
    415: "The body is of another kind",
    421: "Without keys only localhost is answered",
    422: "Which field is wrong, and why",
    429: "Too many requests",
    503: "The model has learned nothing yet",
    504: "The deadline came first; up to where the model has learned",
}
_ALWAYS = (401, 403, 421, 429)


def responses(
    ok: Mapping[str, Any], *statuses: int, kind: str = "application/json", protocol: bool = False
) -> dict[str, Any]:
    """Responses of a route, errors included, for OpenAPI."""
    schema = _ERROR if protocol else _DETAIL
    found: dict[str, Any] = {
        "200": {"description": "Answered", "content": {kind: {"schema": dict(ok)}}, "headers": _HEADERS}
    }
    for status in (*_ALWAYS, *statuses):
        # Who may ask is decided before the route is looked at.
        own = _DETAIL if status in _ALWAYS else schema
        found[str(status)] = {"description": _STATUS[status], "content": {"application/json": {"schema": own}}}
    return found


def in_path(name: str, text: str) -> dict[str, Any]:
    """A part of a path."""
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {**_TEXT, "minLength": 1}}


MODEL = in_path("model", "Its name.")
VERSION = in_path("version", "A number, or a tag.")
_LSN = "[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}"


def in_query(name: str, schema: Mapping[str, Any], text: str = "", *, required: bool = False) -> dict[str, Any]:
    """A parameter of the query."""
    about = {"description": text} if text else {}
    return {"name": name, "in": "query", "required": required, **about, "schema": dict(schema)}


def at_least(topics: Iterable[str], *, databases: bool) -> dict[str, Any]:
    """The parameter of that name.

    Args:
        topics: that can be named; ``databases``: whether an LSN can be.
    """
    named = [f"({'|'.join(map(re.escape, topics))}):[0-9]{{1,18}}"] if topics else []
    schema = {**_TEXT, "pattern": f"^({'|'.join([_LSN] * databases + named)})$"}
    text = "Answer with a model that has learned at least up to here: an LSN, or TOPIC:OFFSET."
    return in_query("at_least", schema, text)


def deadline(longest: float) -> dict[str, Any]:
    """The parameter of that name."""
    schema = {"type": "number", "minimum": 0, "maximum": longest}
    return in_query("deadline", schema, "Seconds that at_least may wait.")


def prediction(endpoint: Endpoint, description: Description, longest: float) -> dict[str, Any]:
    """``GET`` of a declared path."""
    answers = _json_type(datatype_of(description.answers))
    reach = at_least(description.topics, databases=description.databases)
    properties: dict[str, Any] = {endpoint.output: dict(answers)}
    if endpoint.model_time:
        properties["ModelTime"] = {"type": "string", "description": "When the model's version was made (UTC)."}
    ok = _object(properties, *properties)
    return {
        "summary": f"Ask the model «{endpoint.model}»",
        "parameters": [*(_parameter(parameter) for parameter in endpoint.parameters), reach, deadline(longest)],
        "responses": responses(ok, 404, 422, 503, 504),
    }


def _json_type(datatype: str) -> dict[str, Any]:
    if datatype == "BYTES":
        return {"type": "string"}
    if datatype == "BOOL":
        return {"type": "boolean"}
    return {"type": "integer"} if "INT" in datatype else {"anyOf": [{"type": "number"}, {"type": "null"}]}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": {"number": "number", "integer": "integer", "text": "string"}[parameter.type]}
    if parameter.words is not None:
        schema["enum"] = list(parameter.words)
    return in_query(parameter.name, schema, required=not parameter.optional)


def training() -> dict[str, Any]:
    """``POST /train``."""
    ok = _object({"model": _TEXT, "version": {"type": "integer"}, "rows": {"type": "integer"}})
    found = responses(ok, 404, 408, 409, 413, 415, 422, 503, 504)
    found["202"] = {
        "description": "Begun; the current version goes on answering",
        "content": {"application/json": {"schema": ok}},
    }
    return {
        "summary": "Train a new version now",
        "parameters": [in_query("model", _TEXT, "Which, where there are several.")],
        "responses": found,
    }


def models() -> dict[str, Any]:
    """``GET /models``."""
    about = {"model": _TEXT, "version": {"type": "integer"}, "position": _POSITION, "model_time": _TEXT}
    item = _object({**about, "ready": {"type": "boolean"}}, *about, "ready")
    ok = _object({"models": _list(item)}, "models")
    return {"summary": "The models, as they are now", "responses": responses(ok)}


def batches(descriptions: Iterable[Description], longest: float) -> dict[str, Any]:
    """``POST /models/{model}/predict``."""
    known = list(descriptions)
    topics = dict.fromkeys(topic for description in known for topic in description.topics)
    reach = at_least(topics, databases=any(description.databases for description in known))
    binary = {"type": "string", "format": "binary"}
    return {
        "summary": "Ask for many rows, as an Arrow stream",
        "parameters": [
            MODEL,
            in_query("version", {**_TEXT, "minLength": 1}),
            in_query("probabilities", {"type": "boolean"}),
            reach,
            deadline(longest),
        ],
        "requestBody": {"required": True, "content": {STREAM: {"schema": binary}}},
        "responses": responses(binary, 404, 408, 413, 415, 422, 503, 504, kind=STREAM),
    }


def home() -> dict[str, Any]:
    """``GET /``."""
    about = {"model": _TEXT, "examples": _list(_TEXT)}
    known: dict[str, Any] = {"learner": _TEXT, "features": _list(_TEXT), "target": _POSITION}
    known |= {"version": {"type": "integer"}, "position": _POSITION, "model_time": _TEXT, "ready": {"type": "boolean"}}
    path = {"method": _TEXT, "path": _TEXT, "scope": _POSITION, "summary": _TEXT}
    properties = {
        "name": _TEXT,
        "headrace": _TEXT,
        "needs_key": {"type": "boolean"},
        "models": _list(_object({**about, **known}, *about)),
        "paths": _list(_object(path, *path)),
        "links": {"type": "object", "additionalProperties": _TEXT},
    }
    found = responses(_object(properties, *properties))
    found["200"]["content"]["text/html"] = {"schema": _TEXT}
    return {"summary": "What is here: a page for a browser, else JSON", "responses": found}


def metrics() -> dict[str, Any]:
    """``GET /metrics``."""
    return {"summary": "Numbers for Prometheus", "responses": responses(_TEXT, kind="text/plain")}


# -- the Open Inference Protocol --------------------------------------------------------------------------------------


_TENSOR = {"name": _TEXT, "datatype": {**_TEXT, "enum": list(DATATYPES)}, "shape": _list({"type": "integer"})}
_TENSOR_ABOUT = _object(_TENSOR, *_TENSOR)
_SHAPE = _list({"type": "integer", "minimum": 0})
_INPUT = _object({**_TENSOR, "shape": _SHAPE, "data": _list({}), "parameters": {"type": "object"}}, *_TENSOR)
_REQUEST = _object(
    {
        "id": _TEXT,
        "parameters": {"type": "object"},
        "inputs": _list(_INPUT, minItems=1),
        "outputs": _list(_object({"name": _TEXT}, "name")),
    },
    "inputs",
)


def server() -> dict[str, Any]:
    """``GET /v2``."""
    ok = _object({"name": _TEXT, "version": _TEXT}, "name", "version")
    return {"summary": "About the server", "responses": responses(ok)}


def health(name: str) -> dict[str, Any]:
    """``GET /v2/health/…`` and ``…/ready`` of a model."""
    ok = _object({name: {"type": "boolean"}, "reasons": _list(_TEXT), "parts": _list({"type": "object"})}, name)
    found = responses(ok, 404, protocol=True)
    found["503"] = {"description": "Not ready", "content": {"application/json": {"schema": ok}}}
    return {"summary": f"Whether it is {name}", "responses": found}


def metadata() -> dict[str, Any]:
    """``GET /v2/models/{model}``."""
    tensors = _list(_TENSOR_ABOUT)
    properties = {"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT, "inputs": tensors, "outputs": tensors}
    ok = _object(properties, *properties)
    return {"summary": "About a model", "responses": responses(ok, 404, protocol=True)}


def inference() -> dict[str, Any]:
    """``POST /v2/models/{model}/infer``."""
    tensor = {"allOf": [_TENSOR_ABOUT, _object({"data": {"type": "array"}})]}
    properties = {"model_name": _TEXT, "model_version": _TEXT, "outputs": _list(tensor)}
    ok = _object(properties, *properties)
    found = responses(ok, 400, 404, 408, 413, 415, 422, 503, 504, protocol=True)
    return {
        "summary": "Ask a model",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _REQUEST}}},
        "responses": found,
    }
