"""The Open Inference Protocol v2 over HTTP, with its binary extension.

A model's inputs are its columns, each a tensor of shape [rows]; where they are all numbers, one tensor of shape
[rows, columns] will do. Outputs are ``prediction`` and, where it is asked for, ``probability``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from headrace import plain_values
from headrace.errors import HeadraceError
from headrace.serve.batching import BLOCK_ROWS, refused
from headrace.serve.exchange import JSON, Call, Handler, Problem, Reply, json_reply, wrong
from headrace.serve.models import Column, Description, Made, Part, Snapshot
from headrace.serve.service import Asking, problem_of, reach_wanted
from headrace.serve.tensors import Tensor, arrow_of, binary_tensor, datatype_of, json_tensor, read_tensor, values_of

LENGTH_HEADER = b"inference-header-content-length"
PREDICTION, PROBABILITY = "prediction", "probability"


def protocol(handler: Handler) -> Handler:
    """A handler whose errors are as the protocol has them: ``{"error": text}``."""

    async def answered(call: Call) -> Reply:
        try:
            return await handler(call)
        except HeadraceError as error:
            return problem_of(error).reply(protocol=True)
        except Problem as problem:
            return problem.reply(protocol=True)

    return answered


class Inference:
    """The protocol's handlers, on what a server asks."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._models = asking.models

    async def server(self, call: Call) -> Reply:
        """``GET /v2``."""
        try:
            number = version("headrace")
        except PackageNotFoundError:
            number = "0"
        return json_reply({"name": "headrace", "version": number, "extensions": ["binary_tensor_data"]})

    async def live(self, call: Call) -> Reply:
        """``GET /v2/health/live``: the loop runs, since it answers; and so does the engine."""
        limits = {"engine": self._asking.settings.live_round_seconds}
        return _health("live", True, await self._asking.blocking(self._models.parts), limits)

    async def ready(self, call: Call) -> Reply:
        """``GET /v2/health/ready``: every model can answer, and what it learns from arrives."""
        settings = self._asking.settings
        limits = {
            "source": settings.ready_source_seconds,
            "sink": settings.ready_sink_seconds,
            "engine": settings.ready_round_seconds,
        }
        return _health("ready", self._models.ready(), await self._asking.blocking(self._models.parts), limits)

    async def model_ready(self, call: Call) -> Reply:
        """``GET /v2/models/{model}[/versions/{version}]/ready``."""
        name = call.names["model"]
        if "version" in call.names:
            await self._asking.version(name, call.names["version"])
        ready = self._models.ready(name)
        return json_reply({"name": name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, call: Call) -> Reply:
        """``GET /v2/models/{model}[/versions/{version}]``."""
        name = call.names["model"]
        snapshot: Snapshot = self._models.current(name)
        if "version" in call.names:
            snapshot = await self._asking.version(name, call.names["version"])
        description = self._models.descriptions[name]
        numbers = await self._asking.blocking(lambda: self._models.versions(name))
        return json_reply(
            {
                "name": name,
                "versions": numbers,
                "platform": f"headrace_{description.learner}",
                "inputs": [_input(one) for one in description.columns],
                "outputs": _outputs(description),
                "parameters": _parameters(snapshot.made),
            },
            200,
            snapshot.made.headers,
        )

    async def infer(self, call: Call) -> Reply:
        """``POST /v2/models/{model}[/versions/{version}]/infer``."""
        name = call.names["model"]
        description = self._models.descriptions.get(name)
        if description is None:
            self._models.current(name)  # says which there are
        assert description is not None
        request, tensors = _read(await call.body(), call.header(LENGTH_HEADER))
        outputs = _wanted(request, description)
        query = {key: str(one) for key, one in (request.get("parameters") or {}).items() if key in _ASKED}
        await reach_wanted(self._asking, name, call, {**query, **dict(call.query())})
        chosen = await self._asking.version(name, call.names["version"]) if "version" in call.names else None
        proba = any(one["name"] == PROBABILITY for one in outputs)
        found = await self._answers(description, tensors, chosen, proba=proba)
        return _reply(request, description, outputs, *found)

    async def _answers(
        self, description: Description, tensors: Sequence[Tensor], chosen: Snapshot | None, *, proba: bool
    ) -> tuple[Made, Sequence[Any], Any]:
        """Who answered, predictions, and probabilities where they are wanted."""
        columns = description.columns
        given = _given(description, tensors)
        few = bool(columns) and len(given[0].data) <= BLOCK_ROWS
        simple = few and all(one.kind in ("number", "text") for one in columns)
        if simple and chosen is None and not proba:
            values = [values_of(one, column) for one, column in zip(given, columns, strict=True)]
            rows = list(zip(*values, strict=True))
            if rows:
                answers, made = await self._asking.values(description.name, rows)
                _refuse([(row, one.message, one.column) for row, one in refused(answers)], made)
                return made, answers, None
        arrays = [arrow_of(one, column) for one, column in zip(given, columns or [None] * len(given), strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, [one.name for one in given])
        snapshot: Snapshot = chosen or self._models.current(description.name)
        answer = await self._asking.answer(snapshot, batch, probabilities=proba)
        _refuse([(row, text, "") for row, text in answer.reasons.items()], answer.made)
        found = answer.batch
        states = set(found.column("status").to_pylist())
        if "not_ready" in states:
            raise Problem(503, f"the model «{description.name}» has learned nothing yet")
        if "diverged" in states:
            raise Problem(503, f"the model «{description.name}» has diverged")
        if not proba:
            return answer.made, plain_values.values(found.column(PREDICTION)), None
        chances = found.column(PROBABILITY)
        assert description.classes is not None
        flat = np.asarray(chances.flatten(), np.float64).reshape(len(chances), len(description.classes))
        return answer.made, plain_values.values(found.column(PREDICTION)), flat


_ASKED = ("at_least", "deadline")


def _input(column: Column) -> dict[str, Any]:
    kinds = {"number": ("FP64", [-1]), "text": ("BYTES", [-1]), "bytes": ("BYTES", [-1])}
    datatype, shape = kinds.get(column.kind, ("FP32", [-1, column.size or -1]))
    return {"name": column.name, "datatype": datatype, "shape": shape}


def _outputs(description: Description) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": PREDICTION, "datatype": datatype_of(description.answers), "shape": [-1]},
    ]
    if description.classes is not None:
        found.append({"name": PROBABILITY, "datatype": "FP64", "shape": [-1, len(description.classes)]})
    return found


def _parameters(made: Made) -> dict[str, Any]:
    return {"model_version": made.version, "position": made.position or "", "model_time": made.model_time}


def _health(name: str, models: bool, parts: Sequence[Part], limits: Mapping[str, float | None]) -> Reply:
    """Whether no part is past its limit, and which are."""
    reasons = [] if models else ["a model has learned nothing yet"]
    for part in parts:
        limit = limits.get(part.kind)
        if part.ended:
            reasons.append(f"the {part.kind} «{part.name}»: {part.status}")
        elif limit is not None and part.seconds > limit:
            reasons.append(f"the {part.kind} «{part.name}» for {part.seconds:.0f} s: {part.status}")
    well = not reasons
    found = {name: well, "reasons": reasons, "parts": [asdict(part) for part in parts]}
    return json_reply(found, 200 if well else 503)


# -- requests ---------------------------------------------------------------------------------------------------------


def _read(body: bytes, length: str | None) -> tuple[dict[str, Any], list[Tensor]]:
    """The JSON of a request, and its tensors.

    Raises:
        Problem: 400, saying what is wrong.
    """
    size = len(body) if length is None else int(length) if re.fullmatch("[0-9]{1,18}", length) else -1
    if not 0 <= size <= len(body):
        raise Problem(400, f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    try:
        request = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the request is no JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list) or not request["inputs"]:
        raise Problem(400, "the request must be an object with inputs, a list of tensors")
    for name, kind in (("id", str), ("parameters", dict), ("outputs", list)):
        if not isinstance(request.get(name), kind | None):
            raise Problem(400, f"«{name}» must be {_KINDS[kind]}")
    binary = memoryview(body)[size:]
    tensors: list[Tensor] = []
    for about in request["inputs"]:
        tensor, taken = read_tensor(about, binary)
        binary = binary[taken:]
        tensors.append(tensor)
    if len(binary):
        raise Problem(400, f"{len(binary)} bytes of the body belong to no input")
    return request, tensors


_KINDS = {str: "a text", dict: "an object", list: "a list"}


def _wanted(request: dict[str, Any], description: Description) -> list[dict[str, Any]]:
    """The outputs that are asked for, each with its name and whether it is to be binary."""
    known = [one["name"] for one in _outputs(description)]
    binary = bool((request.get("parameters") or {}).get("binary_data_output", False))
    given = request.get("outputs")
    if not given:
        return [{"name": PREDICTION, "binary": binary}]
    found = []
    for one in given:
        if not isinstance(one, dict) or one.get("name") not in known:
            name = one.get("name") if isinstance(one, dict) else one
            raise Problem(400, f"there is no output {name!r}; there are {', '.join(known)}")
        own = one.get("parameters")
        told = own.get("binary_data", binary) if isinstance(own, dict) else binary
        found.append({"name": one["name"], "binary": bool(told)})
    return found


def _given(description: Description, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A tensor for each column, in the columns' order.

    Raises:
        Problem: 400: one is missing, doubled or unknown, or they are not of one length.
    """
    columns, names = description.columns, [one.name for one in tensors]
    if description.plain and len(tensors) == 1 and len(tensors[0].shape) == 2:
        (whole,) = tensors
        alone = len(columns) == 1 and names == [columns[0].name]
        if not alone and whole.datatype != "BYTES" and whole.shape[1] == len(columns):
            parts = [whole.data[:, j] for j in range(len(columns))]
            shape = (whole.shape[0],)
            return [Tensor(one.name, whole.datatype, shape, part) for one, part in zip(columns, parts, strict=True)]
    if len(set(names)) != len(names):
        raise Problem(400, f"an input is given twice: {', '.join(names)}")
    wanted = [one.name for one in columns] or names
    if set(wanted) != set(names):
        raise Problem(
            400, f"the model «{description.name}» wants the inputs {', '.join(wanted)}; got {', '.join(names)}"
        )
    found = [tensors[names.index(name)] for name in wanted]
    lengths = {one.shape[0] if one.shape else 1 for one in found}
    if len(lengths) != 1 or any(not one.shape for one in found):
        raise Problem(400, "inputs must have the same number of rows, in their first dimension")
    return found


def _refuse(reasons: Sequence[tuple[int, str, str]], made: Made) -> None:
    """Refuse a request some of whose rows have no answer, naming the first."""
    if reasons:
        detail = [wrong("inputs", column, str(row), msg=text) for row, text, column in reasons[:20]]
        row, text, _ = reasons[0]
        raise Problem(422, f"row {row}: {text}", headers=made.headers, rows=detail)


# -- replies ----------------------------------------------------------------------------------------------------------


def _reply(
    request: dict[str, Any],
    description: Description,
    outputs: Sequence[dict[str, Any]],
    made: Made,
    predictions: Sequence[Any],
    chances: Any,
) -> Reply:
    tensors: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for one in outputs:
        if one["name"] == PREDICTION:
            what: tuple[Any, ...] = (PREDICTION, datatype_of(description.answers), [len(predictions)], predictions)
        else:
            what = (PROBABILITY, "FP64", list(chances.shape), chances.reshape(-1).tolist())
        if one["binary"]:
            about, data = binary_tensor(*what)
            tensors.append(about)
            binary.append(data)
        else:
            tensors.append(json_tensor(*what))
    answer: dict[str, Any] = {"model_name": made.model, "model_version": str(made.version), "outputs": tensors}
    answer["parameters"] = _parameters(made)
    if request.get("id") is not None:
        answer["id"] = request["id"]
    text = orjson.dumps(answer)
    if not binary:
        return Reply(text, 200, [JSON, *made.headers])
    headers = [(b"content-type", b"application/octet-stream"), (LENGTH_HEADER, str(len(text)).encode()), *made.headers]
    return Reply(b"".join([text, *binary]), 200, headers)
