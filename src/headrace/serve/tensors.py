"""Tensors of the Open Inference Protocol, in JSON and in its binary extension, as columns and back.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md, for binary data
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.serve.exchange import Problem
from headrace.serve.models import Column

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
    whole = isinstance(shape, list) and all(type(one) is int and 0 <= one < MOST_ELEMENTS for one in shape)
    return whole and math.prod(shape) < MOST_ELEMENTS


def _from_json(name: str, datatype: str, data: Any, count: int) -> npt.NDArray[Any]:
    if not isinstance(data, list):
        raise Problem(400, f"the input «{name}» has no data")
    flat = _flat(data)
    if len(flat) != count:
        raise Problem(400, f"the input «{name}» has {len(flat)} elements, its shape says {count}")
    if datatype == "BYTES":
        if not all(isinstance(one, str) for one in flat):
            raise Problem(400, f"the input «{name}» has elements that are no text")
        found = np.empty(count, object)
        found[:] = [one.encode() for one in flat]
        return found
    kind = np.dtype(_NUMPY[datatype])
    taken: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(kind.kind, (int,))
    if not all(type(one) in taken for one in flat):
        raise Problem(400, f"the input «{name}» has elements that are no {datatype}")
    try:
        return np.array(flat, kind)
    except OverflowError:
        raise Problem(400, f"the input «{name}» has elements that {datatype} does not hold") from None


def _flat(data: Sequence[Any]) -> list[Any]:
    """Nested lists, row by row, as one."""
    found = list(data)
    while found and all(isinstance(one, list) for one in found):
        found = [inner for one in found for inner in one]
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
        return pa.array([one.tobytes() for one in tensor.data], pa.binary())
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
        return [str(one) for one in pa.array(flat).cast(pa.string()).to_pylist()]
    try:
        return [one.decode() for one in flat.tolist()]
    except UnicodeDecodeError:
        raise Problem(400, f"the input «{tensor.name}» has text that is no UTF-8") from None


def _lists(matrix: npt.NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, max(1, matrix.shape[1])) if matrix.size else pa.nulls(len(matrix))


# -- answers ----------------------------------------------------------------------------------------------------------


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
    data = [one if isinstance(one, str) else str(one) for one in values] if datatype == "BYTES" else list(values)
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def binary_tensor(
    name: str, datatype: str, shape: Sequence[int], values: Sequence[Any]
) -> tuple[dict[str, Any], bytes]:
    """An output in binary: what stands in the JSON, and the bytes."""
    if datatype == "BYTES":
        texts = [str(one).encode() for one in values]
        data = b"".join(_LENGTH.pack(len(one)) + one for one in texts)
    else:
        data = np.asarray(values, np.dtype(_NUMPY[datatype])).tobytes()
    about = {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": len(data)}}
    return about, data
