"""A Keras model's declaration as JSON values that are equal in every process.

Keras numbers the layers that have no name by what the process has made before: ``dense_7``. Here layers are numbered by
their place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# References to layers are under these; elsewhere an equal text ("relu", "float32") means something else.
_NAMING = frozenset({"name", "keras_history", "input_layers", "output_layers"})


def described(model: Any) -> Any:
    """The architecture, without weights and without the layers' names. Functions are named, not compared."""
    layers = [model, *model._flatten_layers(include_self=False), *getattr(model, "operations", ())]
    known = {layer.name for layer in layers}
    config = {"class": _class(model), "config": model.get_config(), "trainable": _trainable(model)}
    return _numbered(_values(config), known, {})


def described_optimizer(optimizer: Any) -> Any:
    """The optimizer's class and options."""
    config = {key: one for key, one in optimizer.get_config().items() if key != "name"}
    return _values({"class": _class(optimizer), **config})


def described_loss(loss: Any) -> Any:
    """The loss' name and options."""
    if not hasattr(loss, "get_config"):
        return _values(loss)
    fn = getattr(loss, "fn", None)
    own = {} if fn is None else {"fn": _values(fn), **_values(getattr(loss, "_fn_kwargs", {}))}
    config = {} if fn is not None else {key: one for key, one in loss.get_config().items() if key != "name"}
    return _values({"class": _class(loss), "reduction": loss.reduction, **config, **own})


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _trainable(model: Any) -> list[bool]:
    return [bool(variable.trainable) for variable in model.weights]


def _values(value: Any) -> Any:
    """JSON values; what has none is named."""
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return "lambda"
        if value.get("class_name") == "SeedGenerator":
            return {"class_name": "SeedGenerator", "seed": _values(value.get("config", {}).get("seed"))}
        return {str(key): _values(one) for key, one in value.items() if key != "shared_object_id"}
    if isinstance(value, list | tuple):
        return [_values(one) for one in value]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "get_config"):
        return {"class": _class(value), "config": _values(value.get_config())}
    return getattr(value, "__qualname__", type(value).__qualname__)


def _numbered(value: Any, known: set[str], places: dict[str, int], *, naming: bool = False) -> Any:
    """Names of layers as their places in the order of their first appearance."""
    if isinstance(value, dict):
        return {key: _numbered(one, known, places, naming=key in _NAMING) for key, one in value.items()}
    if isinstance(value, list):
        return [_numbered(one, known, places, naming=naming) for one in value]
    if naming and isinstance(value, str) and value in known:
        return f"#{places.setdefault(value, len(places))}"
    return value
