"""The Open Inference Protocol v2 over HTTP, with its binary extension.

A model's inputs are its columns, each a tensor of shape [rows]; where they are all numbers, one tensor of shape
[rows, columns] will do. Outputs are ``prediction`` and, where it is asked for, ``probability``.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, for binary data
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from headrace import plain_values
from headrace.serve.exchange import JSON, Problem, Request, Response, field_error, json_response
from headrace.serve.models import Column, ComponentHealth, Description, Snapshot, VersionInfo
from headrace.serve.service import BLOCK_ROWS, PredictionService, reach_wanted, refused

LENGTH_HEADER = b"inference-header-content-length"
PREDICTION, PROBABILITY = "prediction", "probability"
_NUMPY = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
DATATYPES = (*_NUMPY, "BYTES")
_LENGTH = struct.Struct("<I")
MOST_ELEMENTS = 2**40


class Inference:
    """The protocol's handlers, on what a server asks."""

    def __init__(self, service: PredictionService) -> None:
        self._service = service
        self._models = service.models

    async def server(self, request: Request) -> Response:
        """``GET /v2``."""
        try:
            number = version("headrace")
        except PackageNotFoundError:
            number = "0"
        return json_response({"name": "headrace", "version": number, "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """``GET /v2/health/live``: the loop runs, since it answers; and so does the engine."""
        limits = {"engine": self._service.settings.live_round_seconds}
        return _health("live", True, await self._service.blocking(self._models.health), limits)

    async def ready(self, request: Request) -> Response:
        """``GET /v2/health/ready``: every model can answer, and what it learns from arrives."""
        settings = self._service.settings
        limits = {
            "source": settings.ready_source_seconds,
            "sink": settings.ready_sink_seconds,
            "engine": settings.ready_round_seconds,
        }
        return _health("ready", self._models.ready(), await self._service.blocking(self._models.health), limits)

    async def model_ready(self, request: Request) -> Response:
        """``GET /v2/models/{model}[/versions/{version}]/ready``."""
        name = request.names["model"]
        if "version" in request.names:
            await self._service.version(name, request.names["version"])
        ready = self._models.ready(name)
        return json_response({"name": name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        """``GET /v2/models/{model}[/versions/{version}]``."""
        name = request.names["model"]
        snapshot: Snapshot = self._models.current(name)
        if "version" in request.names:
            snapshot = await self._service.version(name, request.names["version"])
        description = self._models.descriptions[name]
        numbers = await self._service.blocking(lambda: self._models.versions(name))
        return json_response(
            {
                "name": name,
                "versions": numbers,
                "platform": f"headrace_{description.learner}",
                "inputs": [_input(column) for column in description.columns],
                "outputs": _outputs(description),
                "parameters": _parameters(snapshot.info),
            },
            200,
            snapshot.info.headers,
        )

    async def infer(self, request: Request) -> Response:
        """``POST /v2/models/{model}[/versions/{version}]/infer``."""
        name = request.names["model"]
        description = self._models.descriptions.get(name)
        if description is None:
            self._models.current(name)  # says which there are
        assert description is not None
        content, tensors = _read(await request.body(), request.header(LENGTH_HEADER))
        outputs = _wanted(content, description)
        query = {key: str(value) for key, value in (content.get("parameters") or {}).items() if key in _ASKED}
        await reach_wanted(self._service, name, request, {**query, **dict(request.query())})
        chosen = await self._service.version(name, request.names["version"]) if "version" in request.names else None
        proba = any(output["name"] == PROBABILITY for output in outputs)
        found = await self._answers(description, tensors, chosen, proba=proba)
        return _response(content, description, outputs, *found)

    async def _answers(
        self, description: Description, tensors: Sequence[Tensor], chosen: Snapshot | None, *, proba: bool
    ) -> tuple[VersionInfo, Sequence[Any], Any]:
        """Return the version that predicted, predictions, and probabilities where they are wanted."""
        columns = description.columns
        given = _given(description, tensors)
        few = bool(columns) and len(given[0].data) <= BLOCK_ROWS
        simple = few and all(column.kind in ("number", "text") for column in columns)
        if simple and chosen is None and not proba:
            values = [values_of(tensor, column) for tensor, column in zip(given, columns, strict=True)]
            rows = list(zip(*values, strict=True))
            if rows:
                answers, info = await self._service.predict(description.name, rows)
                _refuse([(row, refusal.message, refusal.column) for row, refusal in refused(answers)], info)
                return info, answers, None
        wanted = columns or [None] * len(given)
        arrays = [arrow_of(tensor, column) for tensor, column in zip(given, wanted, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, [tensor.name for tensor in given])
        snapshot: Snapshot = chosen or self._models.current(description.name)
        answer = await self._service.predict_batch(snapshot, batch, probabilities=proba)
        _refuse([(row, text, "") for row, text in answer.reasons.items()], answer.info)
        found = answer.batch
        states = set(found.column("status").to_pylist())
        if "not_ready" in states:
            raise Problem(503, f"the model «{description.name}» has learned nothing yet")
        if "diverged" in states:
            raise Problem(503, f"the model «{description.name}» has diverged")
        if not proba:
            return answer.info, plain_values.values(found.column(PREDICTION)), None
        chances = found.column(PROBABILITY)
        assert description.classes is not None
        flat = np.asarray(chances.flatten(), np.float64).reshape(len(chances), len(description.classes))
        return answer.info, plain_values.values(found.column(PREDICTION)), flat


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


def _parameters(info: VersionInfo) -> dict[str, Any]:
    return {"model_version": info.version, "position": info.position or "", "model_time": info.model_time}


def _health(name: str, models: bool, parts: Sequence[ComponentHealth], limits: Mapping[str, float | None]) -> Response:
    """Respond whether no component is past its limit, and which are."""
    reasons = [] if models else ["a model has learned nothing yet"]
    for part in parts:
        limit = limits.get(part.kind)
        if part.ended:
            reasons.append(f"the {part.kind} «{part.name}»: {part.status}")
        elif limit is not None and part.seconds > limit:
            reasons.append(f"the {part.kind} «{part.name}» for {part.seconds:.0f} s: {part.status}")
    well = not reasons
    found = {name: well, "reasons": reasons, "parts": [asdict(part) for part in parts]}
    return json_response(found, 200 if well else 503)


# -- requests ---------------------------------------------------------------------------------------------------------


def _read(body: bytes, length: str | None) -> tuple[dict[str, Any], list[Tensor]]:
    """The JSON of a request, and its tensors.

    Raises:
        Problem: 400, saying what is field_error.
    """
    size = len(body) if length is None else int(length) if re.fullmatch("[0-9]{1,18}", length) else -1
    if not 0 <= size <= len(body):
        raise Problem(400, f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    try:
        content = orjson.loads(body[:size])
    except orjson.JSONDecodeError as error:
        raise Problem(400, f"the request is no JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list) or not content["inputs"]:
        raise Problem(400, "the request must be an object with inputs, a list of tensors")
    for name, kind in (("id", str), ("parameters", dict), ("outputs", list)):
        if not isinstance(content.get(name), kind | None):
            raise Problem(400, f"«{name}» must be {_KINDS[kind]}")
    binary = memoryview(body)[size:]
    tensors: list[Tensor] = []
    for about in content["inputs"]:
        tensor, taken = read_tensor(about, binary)
        binary = binary[taken:]
        tensors.append(tensor)
    if len(binary):
        raise Problem(400, f"{len(binary)} bytes of the body belong to no input")
    return content, tensors


_KINDS = {str: "a text", dict: "an object", list: "a list"}


def _wanted(content: dict[str, Any], description: Description) -> list[dict[str, Any]]:
    """The outputs that are asked for, each with its name and whether it is to be binary."""
    known = [output["name"] for output in _outputs(description)]
    binary = bool((content.get("parameters") or {}).get("binary_data_output", False))
    given = content.get("outputs")
    if not given:
        return [{"name": PREDICTION, "binary": binary}]
    found = []
    for output in given:
        if not isinstance(output, dict) or output.get("name") not in known:
            name = output.get("name") if isinstance(output, dict) else output
            raise Problem(400, f"there is no output {name!r}; there are {', '.join(known)}")
        own = output.get("parameters")
        told = own.get("binary_data", binary) if isinstance(own, dict) else binary
        found.append({"name": output["name"], "binary": bool(told)})
    return found


def _given(description: Description, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A tensor for each column, in the columns' order.

    Raises:
        Problem: 400: one is missing, doubled or unknown, or they are not of one length.
    """
    columns, names = description.columns, [tensor.name for tensor in tensors]
    if description.plain and len(tensors) == 1 and len(tensors[0].shape) == 2:
        (whole,) = tensors
        alone = len(columns) == 1 and names == [columns[0].name]
        if not alone and whole.datatype != "BYTES" and whole.shape[1] == len(columns):
            parts = [whole.data[:, j] for j in range(len(columns))]
            shape = (whole.shape[0],)
            return [
                Tensor(column.name, whole.datatype, shape, part) for column, part in zip(columns, parts, strict=True)
            ]
    if len(set(names)) != len(names):
        raise Problem(400, f"an input is given twice: {', '.join(names)}")
    wanted = [column.name for column in columns] or names
    if set(wanted) != set(names):
        raise Problem(
            400, f"the model «{description.name}» wants the inputs {', '.join(wanted)}; got {', '.join(names)}"
        )
    found = [tensors[names.index(name)] for name in wanted]
    lengths = {tensor.shape[0] if tensor.shape else 1 for tensor in found}
    if len(lengths) != 1 or any(not tensor.shape for tensor in found):
        raise Problem(400, "inputs must have the same number of rows, in their first dimension")
    return found


def _refuse(reasons: Sequence[tuple[int, str, str]], info: VersionInfo) -> None:
    """Refuse a request some of whose rows have no answer, naming the first."""
    if reasons:
        detail = [field_error("inputs", column, str(row), msg=text) for row, text, column in reasons[:20]]
        row, text, _ = reasons[0]
        raise Problem(422, f"row {row}: {text}", headers=info.headers, rows=detail)


# -- responses --------------------------------------------------------------------------------------------------------


def _response(
    content: dict[str, Any],
    description: Description,
    outputs: Sequence[dict[str, Any]],
    info: VersionInfo,
    predictions: Sequence[Any],
    chances: Any,
) -> Response:
    tensors: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for output in outputs:
        if output["name"] == PREDICTION:
            what: tuple[Any, ...] = (PREDICTION, datatype_of(description.answers), [len(predictions)], predictions)
        else:
            what = (PROBABILITY, "FP64", list(chances.shape), chances.reshape(-1).tolist())
        if output["binary"]:
            about, data = binary_tensor(*what)
            tensors.append(about)
            binary.append(data)
        else:
            tensors.append(json_tensor(*what))
    answer: dict[str, Any] = {"model_name": info.model, "model_version": str(info.version), "outputs": tensors}
    answer["parameters"] = _parameters(info)
    if content.get("id") is not None:
        answer["id"] = content["id"]
    text = orjson.dumps(answer)
    if not binary:
        return Response(text, 200, [JSON, *info.headers])
    headers = [(b"content-type", b"application/octet-stream"), (LENGTH_HEADER, str(len(text)).encode()), *info.headers]
    return Response(b"".join([text, *binary]), 200, headers)


# -- tensors, in JSON and in the binary extension ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a request; ``data`` has the given shape, of BYTES elements are objects (bytes)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any]


def read_tensor(about: Any, binary: memoryview) -> tuple[Tensor, int]:
    """One member of ``inputs``, and how many bytes of the binary part it took.

    Raises:
        Problem: 400, saying what is wrong with it.
    """
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise Problem(400, "an input must be an object with a name")
    name, datatype, shape = about["name"], about.get("datatype"), about.get("shape")
    if datatype not in DATATYPES:
        raise Problem(400, f"the input «{name}» has datatype {datatype!r}; taken are {', '.join(DATATYPES)}")
    if not _sizes(shape):
        raise Problem(400, f"the input «{name}» has shape {shape!r}: give a list of sizes")
    parameters = about.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    count = math.prod(shape)
    if size is None:
        flat = _from_json(name, datatype, about.get("data"), count)
        return Tensor(name, datatype, tuple(shape), flat.reshape(shape)), 0
    if type(size) is not int or not 0 <= size <= len(binary):
        raise Problem(400, f"the input «{name}» has {size!r} bytes of binary data, {len(binary)} are there")
    flat = _from_bytes(name, datatype, binary[:size], count)
    return Tensor(name, datatype, tuple(shape), flat.reshape(shape)), size


def _sizes(shape: Any) -> TypeGuard[list[int]]:
    whole = isinstance(shape, list) and all(type(size) is int and 0 <= size < MOST_ELEMENTS for size in shape)
    return whole and math.prod(shape) < MOST_ELEMENTS


def _from_json(name: str, datatype: str, data: Any, count: int) -> npt.NDArray[Any]:
    if not isinstance(data, list):
        raise Problem(400, f"the input «{name}» has no data")
    flat = _flat(data)
    if len(flat) != count:
        raise Problem(400, f"the input «{name}» has {len(flat)} elements, its shape says {count}")
    if datatype == "BYTES":
        if not all(isinstance(element, str) for element in flat):
            raise Problem(400, f"the input «{name}» has elements that are no text")
        found = np.empty(count, object)
        found[:] = [element.encode() for element in flat]
        return found
    kind = np.dtype(_NUMPY[datatype])
    taken: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(kind.kind, (int,))
    if not all(type(element) in taken for element in flat):
        raise Problem(400, f"the input «{name}» has elements that are no {datatype}")
    try:
        return np.array(flat, kind)
    except OverflowError:
        raise Problem(400, f"the input «{name}» has elements that {datatype} does not hold") from None


def _flat(data: Sequence[Any]) -> list[Any]:
    """Nested lists, row by row, as one."""
    found = list(data)
    while found and all(isinstance(element, list) for element in found):
        found = [inner for element in found for inner in element]
    return found


def _from_bytes(name: str, datatype: str, data: memoryview, count: int) -> npt.NDArray[Any]:
    if datatype != "BYTES":
        kind = np.dtype(_NUMPY[datatype])
        if len(data) != count * kind.itemsize:
            raise Problem(400, f"the input «{name}» has {len(data)} bytes, its shape says {count * kind.itemsize}")
        return np.frombuffer(data, kind)
    if 4 * count > len(data):
        raise Problem(400, f"the input «{name}» has {len(data)} bytes, too few for {count} elements")
    found = np.empty(count, object)
    at = 0
    for i in range(count):
        end = at + 4
        length = _LENGTH.unpack_from(data, at)[0] if end <= len(data) else len(data)
        if end + length > len(data):
            raise Problem(400, f"the input «{name}» ends within element {i}")
        found[i] = bytes(data[end : end + length])
        at = end + length
    if at != len(data):
        raise Problem(400, f"the input «{name}» has {len(data) - at} bytes after its last element")
    return found


# -- tensors as columns -----------------------------------------------------------------------------------------------


def values_of(tensor: Tensor, column: Column) -> list[Any]:
    """A tensor as values of a column of numbers or words.

    Raises:
        Problem: it is of another kind or shape.
    """
    flat = _rows(tensor, column)
    if column.kind == "text":
        return _texts(tensor, flat)
    if tensor.datatype == "BYTES":
        raise Problem(400, f"the input «{tensor.name}» is BYTES, the model wants numbers")
    return list(flat.astype(np.float64).tolist())


def arrow_of(tensor: Tensor, column: Column | None) -> pa.Array:
    """A tensor as an Arrow column.

    Args:
        column: as the model wants it; None where it does not say.
    """
    if column is None:
        flat = tensor.data.reshape(len(tensor.data), -1) if tensor.data.ndim else tensor.data.reshape(1, 1)
        if tensor.datatype == "BYTES":
            return pa.array(_texts(tensor, flat[:, 0]), pa.string())
        return pa.array(flat[:, 0]) if flat.shape[1] == 1 else _lists(flat)
    if column.kind == "numbers":
        if len(tensor.shape) != 2 or tensor.datatype == "BYTES":
            raise Problem(400, f"the input «{tensor.name}» must have shape [rows, numbers], not {list(tensor.shape)}")
        return _lists(tensor.data)
    if column.kind == "bytes":
        if tensor.datatype == "BYTES":
            return pa.array(_rows(tensor, column).tolist(), pa.binary())
        if tensor.datatype != "UINT8" or len(tensor.shape) < 2:
            raise Problem(400, f"the input «{tensor.name}» must be BYTES, or UINT8 of shape [rows, …]")
        return pa.array([row.tobytes() for row in tensor.data], pa.binary())
    if column.kind == "text":
        return pa.array(_texts(tensor, _rows(tensor, column)), pa.string())
    if tensor.datatype == "BYTES":
        raise Problem(400, f"the input «{tensor.name}» is BYTES, the model wants numbers")
    return pa.array(_rows(tensor, column).astype(np.float64))


def _rows(tensor: Tensor, column: Column) -> npt.NDArray[Any]:
    if not tensor.shape or (len(tensor.shape) > 1 and math.prod(tensor.shape[1:]) != 1):
        raise Problem(400, f"the input «{column.name}» must have shape [rows], not {list(tensor.shape)}")
    return tensor.data.reshape(-1)


def _texts(tensor: Tensor, flat: npt.NDArray[Any]) -> list[str]:
    if tensor.datatype != "BYTES":
        return [str(text) for text in pa.array(flat).cast(pa.string()).to_pylist()]
    try:
        return [text.decode() for text in flat.tolist()]
    except UnicodeDecodeError:
        raise Problem(400, f"the input «{tensor.name}» has text that is no UTF-8") from None


def _lists(matrix: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, max(1, matrix.shape[1])) if matrix.size else pa.nulls(len(matrix))


# -- tensors of a response --------------------------------------------------------------------------------------------


def datatype_of(kind: pa.DataType) -> str:
    """The protocol's name of an Arrow type of answers.

    >>> datatype_of(pa.float64()), datatype_of(pa.string())
    ('FP64', 'BYTES')
    """
    names: Mapping[str, str] = {"double": "FP64", "float": "FP32", "halffloat": "FP16", "bool": "BOOL"}
    name = names.get(str(kind), str(kind).upper())
    return name if name in _NUMPY else "BYTES"


def json_tensor(name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]) -> dict[str, Any]:
    """An output in JSON."""
    data = (
        [value if isinstance(value, str) else str(value) for value in values] if datatype == "BYTES" else list(values)
    )
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def binary_tensor(
    name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]
) -> tuple[dict[str, Any], bytes]:
    """An output in binary: what stands in the JSON, and the bytes."""
    if datatype == "BYTES":
        texts = [str(value).encode() for value in values]
        data = b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    else:
        data = np.asarray(values, np.dtype(_NUMPY[datatype])).tobytes()
    about = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(data)}}
    return about, data
