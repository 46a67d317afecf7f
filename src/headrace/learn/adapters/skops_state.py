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

from headrace.arrays import Array
from headrace.errors import LearnError
from headrace.learn.base import State

# Parts of scikit-learn that skops does not know yet; they hold numbers and parameters only.
KNOWN = (
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.calibration._TemperatureScaling",
    "sklearn.cluster._bisect_k_means._BisectingTree",
    "sklearn.cluster._kmeans._kmeans_single_elkan",
    "sklearn.cluster._kmeans._kmeans_single_lloyd",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._ball_tree.BallTree32",
    "sklearn.neighbors._ball_tree.BallTree64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neighbors._kd_tree.KDTree32",
    "sklearn.neighbors._kd_tree.KDTree64",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
)
# Modules of which each part is one: kernels, distances, losses, ways to split rows, measures of quality.
_FAMILIES = (
    "sklearn._loss.loss.",
    "sklearn.gaussian_process.kernels.",
    "sklearn.metrics._classification.",
    "sklearn.metrics._dist_metrics.",
    "sklearn.metrics._ranking.",
    "sklearn.metrics._regression.",
    "sklearn.model_selection._split.",
)
CANNOT = {"Birch": "its tree of Python objects refers to itself, which skops cannot write"}
"""Estimators of scikit-learn that predict and cannot be stored, and why; `tests/learn/test_all_estimators.py` finds no
others."""
_TREE, _SCHEMA = "tree", "schema.json"


def types_within(estimator: Any) -> list[str]:
    """Classes of an estimator that skops would not load by itself.

    Raises:
        LearnError: it has parts that skops cannot write.
    """
    from skops import io as skops

    return list(skops.get_untrusted_types(data=_dumped(estimator)))


def to_state(estimator: Any) -> State:
    """Return the estimator's tree as JSON, and its arrays under their numbers.

    Raises:
        LearnError: as for `types_within`.
    """
    with zipfile.ZipFile(io.BytesIO(_dumped(estimator))) as files:
        state: State = {}

        def named(file: str) -> str:
            name = str(len(state))
            data = files.read(file)
            if file.endswith(".npy"):
                array = np.load(io.BytesIO(data), allow_pickle=False)
                if array.dtype.names is not None:
                    # Records, as trees keep their nodes: a whole file, for a state holds plain arrays.
                    state[name] = np.frombuffer(_file_of(_without_gaps(array)), np.uint8)
                    return f"{name}.records.npy"
                state[name] = array
                return f"{name}.npy"
            state[name] = np.frombuffer(data, np.uint8)
            return f"{name}.{file.rpartition('.')[2]}"

        tree = _renumbered(json.loads(files.read(_SCHEMA)), {}, named)
    return {**state, _TREE: json.dumps(tree)}


def from_state(state: State, trusted: Sequence[str] = ()) -> Any:
    """Return the inverse of `to_state`.

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
            plain = file.endswith(".npy") and not file.endswith(".records.npy")
            files.writestr(file, _file_of(np.asarray(array)) if plain else np.asarray(array, np.uint8).tobytes())
    found = data.getvalue()
    try:
        try:
            return skops.loads(found, trusted=[*KNOWN, *trusted])
        except UntrustedTypesFoundException:
            known = [name for name in skops.get_untrusted_types(data=found) if name.startswith(_FAMILIES)]
            return skops.loads(found, trusted=[*KNOWN, *known, *trusted])
    except UntrustedTypesFoundException as error:
        raise LearnError(
            f"a stored model has parts that are not known to be safe: {error}",
            advice="Load it only when you know who wrote it: trusted=True.",
        ) from error


def _file_of(array: Array) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _without_gaps(array: Array) -> Array:
    """Return the same records with zeros between their fields, where other bytes stand in each process."""
    clean = np.frombuffer(bytearray(array.nbytes), array.dtype).reshape(array.shape)  # a copy of it would have gaps
    for name in array.dtype.names or ():
        clean[name] = array[name]
    return clean


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
    """Return the tree with ids in the order of their first appearance; plain values need none."""
    if isinstance(node, list):
        return [_renumbered(item, ids, named) for item in node]
    if not isinstance(node, dict):
        return node
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key == "__id__":
            if node.get("__loader__") != "JsonNode":
                # skops does not find what is shared under this number: it would be two. A type is always one.
                if ids.get(value) == 0 and node.get("__loader__") != "TypeNode":
                    value = -len(ids)
                found[key] = ids.setdefault(value, len(ids))
        elif key == "file" and isinstance(value, str):
            found[key] = named(value)
        else:
            found[key] = _renumbered(value, ids, named)
    return found


def _files(node: Any) -> list[str]:
    if isinstance(node, list):
        return [file for item in node for file in _files(item)]
    if not isinstance(node, dict):
        return []
    own = [node["file"]] if isinstance(node.get("file"), str) else []
    return own + [file for key, item in node.items() if key != "file" for file in _files(item)]
