"""Estimators of scikit-learn as the plain values and arrays that a log keeps, and back, without a pickle.

skops writes an estimator as a tree in JSON and a file for each array. Its object ids are memory addresses; here they
are numbers in the order of the tree, so that equal estimators give equal states, and arrays stand by themselves, so
that those which two states have in common are kept once.

Source: https://skops.readthedocs.io/en/stable/persistence.html
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace.errors import LearnError
from headrace.learn.base import State

# Parts of scikit-learn that skops does not know yet; they hold numbers only.
KNOWN = (
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
_TREE, _SCHEMA = "tree", "schema.json"


def types_within(estimator: Any) -> list[str]:
    """Classes of an estimator that skops would not load by itself.

    Raises:
        LearnError: it has parts that skops cannot write.
    """
    from skops import io as skops

    return list(skops.get_untrusted_types(data=_dumped(estimator)))


def to_state(estimator: Any) -> State:
    """The estimator's tree as JSON, and its arrays under their numbers.

    Raises:
        LearnError: as for `types_within`.
    """
    with zipfile.ZipFile(io.BytesIO(_dumped(estimator))) as files:
        state: State = {}

        def named(file: str) -> str:
            name = str(len(state))
            data = files.read(file)
            if file.endswith(".npy"):
                state[name] = np.load(io.BytesIO(data), allow_pickle=False)
                return f"{name}.npy"
            state[name] = np.frombuffer(data, np.uint8)
            return f"{name}.{file.rpartition('.')[2]}"

        tree = _renumbered(json.loads(files.read(_SCHEMA)), {}, named)
    return {**state, _TREE: json.dumps(tree)}


def from_state(state: State, trusted: Sequence[str] = ()) -> Any:
    """The inverse of `to_state`.

    Args:
        state: what `to_state` gave.
        trusted: classes that may be made beside scikit-learn's, NumPy's and Python's plain ones.

    Raises:
        LearnError: the tree names another class, or is none of an estimator. Nothing of it has been made then.
    """
    from skops import io as skops
    from skops.io.exceptions import UntrustedTypesFoundException

    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as files:
        tree = str(state[_TREE])
        files.writestr(_SCHEMA, tree)
        for file in _files(json.loads(tree)):
            array = state[file.partition(".")[0]]
            content = io.BytesIO()
            if file.endswith(".npy"):
                np.save(content, np.asarray(array), allow_pickle=False)
            else:
                content.write(np.asarray(array, np.uint8).tobytes())
            files.writestr(file, content.getvalue())
    try:
        return skops.loads(data.getvalue(), trusted=[*KNOWN, *trusted])
    except UntrustedTypesFoundException as error:
        raise LearnError(
            f"a stored model has parts that are not known to be safe: {error}",
            advice="Load it only when you know who wrote it: trusted=True.",
        ) from error


def _dumped(estimator: Any) -> bytes:
    from skops import io as skops

    try:
        return bytes(skops.dumps(estimator))
    except Exception as error:  # skops has no common class for what it cannot write
        raise LearnError(
            f"{type(estimator).__name__} cannot be stored without a pickle: {error}",
            advice="Use an estimator that skops can write, or a learner of your own (headrace.Learner).",
        ) from error


def _renumbered(node: Any, ids: dict[int, int], named: Callable[[str], str]) -> Any:
    """The tree with ids in the order of their first appearance; plain values need none."""
    if isinstance(node, list):
        return [_renumbered(one, ids, named) for one in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key == "__id__":
            if node.get("__loader__") != "JsonNode":
                found[key] = ids.setdefault(value, len(ids))
        elif key == "file" and isinstance(value, str):
            found[key] = named(value)
        else:
            found[key] = _renumbered(value, ids, named)
    return found


def _files(node: Any) -> list[str]:
    if isinstance(node, list):
        return [file for one in node for file in _files(one)]
    if not isinstance(node, dict):
        return []
    own = [node["file"]] if isinstance(node.get("file"), str) else []
    return own + [file for key, one in node.items() if key != "file" for file in _files(one)]
