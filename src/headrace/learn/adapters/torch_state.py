"""Parameters, buffers and an optimizer's state as the arrays and plain values that a log keeps, and back.

Nothing is pickled: an optimizer's state is JSON in which each tensor is the name of an array.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.errors import LearnError
from headrace.learn.base import State

_OPTIMIZER = "optimizer"
_ARRAY = "tensor"


def to_state(module: Any, optimizer: Any) -> State:
    """Every parameter and buffer by its name, and the optimizer's state.

    Raises:
        LearnError: the optimizer keeps what is no number, text, tensor, list or dictionary.
    """
    state: State = {f"module.{name}": to_array(tensor) for name, tensor in _tensors(module)}
    arrays: dict[str, Array] = {}
    tree = _flattened(optimizer.state_dict(), _OPTIMIZER, arrays)
    return {**state, **arrays, _OPTIMIZER: json.dumps(tree)}


def from_state(state: State, module: Any, optimizer: Any, name: str) -> None:
    """The inverse of `to_state`, into a module and an optimizer declared alike.

    Raises:
        LearnError: the optimizer's state is one of other parameters; nothing has been changed then.
    """
    import torch

    tree = _rebuilt(json.loads(str(state[_OPTIMIZER])), state)
    groups = [len(group["params"]) for group in tree["param_groups"]]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if groups != own:
        raise LearnError(f"a stored optimizer has parameters {groups} in its groups, the one of {name} {own}")
    with torch.no_grad():
        for key, tensor in _tensors(module):
            tensor.copy_(_tensor(np.asarray(state[f"module.{key}"]), str(tensor.dtype)))
    optimizer.load_state_dict(tree)


def to_array(tensor: Any) -> Array:
    """A copy of a tensor; types that NumPy lacks, as their bits."""
    tensor = tensor.detach().cpu()
    bits = _bits().get(tensor.dtype)
    return np.array((tensor if bits is None else tensor.view(bits)).numpy())


@cache
def _bits() -> dict[Any, Any]:
    """Integers of the size of each type that NumPy lacks."""
    import torch

    float8 = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]
    return {torch.bfloat16: torch.int16, **dict.fromkeys(float8, torch.uint8)}


def _tensor(array: Array, dtype: str) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    kind = getattr(torch, dtype.removeprefix("torch."))
    return tensor if tensor.dtype == kind else tensor.view(kind)


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers, those too that ``state_dict`` leaves out."""
    return chain(module.named_parameters(), module.named_buffers())


def _flattened(value: Any, path: str, arrays: dict[str, Array]) -> Any:
    """JSON values; tensors go to ``arrays`` under their path. Pairs stand for dictionaries: keys may be numbers."""
    if hasattr(value, "detach"):
        arrays[path] = to_array(value)
        return {_ARRAY: path, "dtype": str(value.dtype)}
    if isinstance(value, dict):
        return {"items": [[key, _flattened(one, f"{path}.{key}", arrays)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        listed = [_flattened(one, f"{path}.{i}", arrays) for i, one in enumerate(value)]
        return {"tuple": listed} if isinstance(value, tuple) else listed
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise LearnError(
        f"the optimizer keeps a {type(value).__name__} under «{path}»", advice="Use an optimizer of torch.optim."
    )


def _rebuilt(node: Any, state: State) -> Any:
    if isinstance(node, list):
        return [_rebuilt(one, state) for one in node]
    if not isinstance(node, dict):
        return node
    if _ARRAY in node:
        return _tensor(np.asarray(state[node[_ARRAY]]), node["dtype"])
    if "tuple" in node:
        return tuple(_rebuilt(one, state) for one in node["tuple"])
    return {key: _rebuilt(one, state) for key, one in node["items"]}
