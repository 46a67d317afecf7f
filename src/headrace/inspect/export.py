"""A version of a model as a folder that its own library loads without Headrace, with a model card.

==================  ===============================================================================================
file                holds
==================  ===============================================================================================
MODEL_CARD.md       what it is, what it learned, how to load it, what it is not for
model.json          the version as the registry has it
state.npz           the arrays of its state (no pickle)
model.skops         scikit-learn: the estimator; ``model.onnx`` too, where skl2onnx is installed and knows it
centers.npz         k-means: centres and weights, with ``kmeans.json``
plane.npz           linear regression: the plane; ``linear.json``: R's coefficients and their standard errors
model.keras         Keras; with ``weights.npz``
state_dict.pt       PyTorch
model.pickle        River, which has no other form: opening it runs what is in it
==================  ===============================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headrace.errors import LearnError, LogError
from headrace.registry.versions import VersionRecord


@dataclass(frozen=True)
class Exported:
    """A version to export.

    Attributes:
        version: which one.
        fingerprint: its declaration.
        lineage: it and those that it goes on from, oldest first.
        state: of its learner.
        learner: makes the declared learner; raises where the log does not say how.
    """

    version: VersionRecord
    fingerprint: Mapping[str, Any]
    lineage: Sequence[VersionRecord]
    state: dict[str, Any]
    learner: Callable[[], Any]


def export(directory: Path, what: Exported) -> list[str]:
    """Write the folder; returns the names of its files.

    Raises:
        LogError: the folder is there and holds something else.
        HeadraceError: its library cannot write it, or is not installed.
    """
    if directory.exists() and any(directory.iterdir()) and not (directory / "model.json").exists():
        raise LogError(f"{directory} is not empty", advice="Name a new folder.")
    directory.mkdir(parents=True, exist_ok=True)
    kind = str(what.fingerprint.get("learner", ""))
    writer = _WRITERS.get(kind.rpartition(".")[2], _of_ones_own)
    files, notes = writer(directory, what)
    arrays = {name: value for name, value in what.state.items() if isinstance(value, np.ndarray)}
    np.savez(directory / "state.npz", allow_pickle=False, **arrays)
    plain = {name: value for name, value in what.state.items() if name not in arrays and name != "estimator.tree"}
    about = {**what.version.to_dict(), "fingerprint": dict(what.fingerprint), "values": plain}
    (directory / "model.json").write_text(json.dumps(about, indent=2, ensure_ascii=False, default=str) + "\n")
    (directory / "MODEL_CARD.md").write_text("\n".join(_card(what, files, notes)) + "\n")
    return sorted([*files, "state.npz", "model.json", "MODEL_CARD.md"])


@dataclass(frozen=True)
class Notes:
    """Remarks on a library's files.

    Attributes:
        load: lines of Python that load them; the last one leaves the model in ``model``.
        limits: what they cannot do.
    """

    load: Sequence[str]
    limits: Sequence[str] = ()


Written = tuple[list[str], Notes]

# -- each library -----------------------------------------------------------------------------------------------------


def _scikit_learn(directory: Path, what: Exported) -> Written:
    from skops import io as skops

    estimator = _estimator(what)
    skops.dump(estimator, directory / "model.skops")
    files, limits = ["model.skops"], []
    load = [
        "from skops.io import get_untrusted_types, load",
        "# Look at the types before trusting them: they are classes that loading will make.",
        'types = get_untrusted_types(file="model.skops")',
        'model = load("model.skops", trusted=types)',
    ]
    try:
        (directory / "model.onnx").write_bytes(_onnx(estimator, what))
        files.append("model.onnx")
        limits.append("`model.onnx` computes in float32 (scikit-learn: float64): its last digits differ.")
    except ImportError:
        limits.append("No ONNX file: skl2onnx is not installed (`pip install skl2onnx`).")
    except Exception as error:  # skl2onnx raises many classes for what it cannot convert
        limits.append(f"No ONNX file: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    return files, Notes(load, limits)


def _estimator(what: Exported) -> Any:
    """Return the estimator in the state; one with classes of the user's own needs the declared learner."""
    from headrace.learn.adapters.sklearn import stored_estimator

    try:
        return stored_estimator(what.state)
    except LearnError:
        learner = what.learner()
        learner.restore(what.state)
        return learner.estimator


def _onnx(estimator: Any, what: Exported) -> bytes:
    from skl2onnx import to_onnx  # type: ignore[import-untyped]  # it has no types

    width = what.state.get("width")
    if width is None:
        raise LearnError("the model has not seen a row yet")
    example = np.zeros((1, int(width)), np.float32)
    return bytes(to_onnx(estimator, example).SerializeToString())


def _kmeans(directory: Path, what: Exported) -> Written:
    centers = what.state.get("centers")
    if centers is None:
        raise LearnError(f"«{what.version.model}» has no centres yet: there is nothing to export")
    np.savez(directory / "centers.npz", allow_pickle=False, centers=centers, weights=what.state["weights"])
    (directory / "kmeans.json").write_text(json.dumps(what.fingerprint.get("parameters", {}), indent=2) + "\n")
    load = [
        "import numpy as np",
        'centers = np.load("centers.npz")["centers"]',
        "def model(X):",
        "    return ((X[:, None, :] - centers) ** 2).sum(axis=2).argmin(axis=1)",
    ]
    return ["centers.npz", "kmeans.json"], Notes(load)


def _linear(directory: Path, what: Exported) -> Written:
    """Write the plane, and the coefficients as R's ``lm`` has them."""
    learner = what.learner()
    learner.restore(what.state)
    intercept, coefficients = learner.plane
    plane = {"intercept": np.float64(intercept), "coefficients": coefficients}
    np.savez(directory / "plane.npz", allow_pickle=False, **plane)
    names = _columns_of(what)
    about = {"rows": learner.rows, "r_squared": learner.r_squared, "columns": [_label(name) for name in names]}
    if len(names) == len(coefficients):
        about |= {"coefficients": learner.coefficients(names), "standard_errors": learner.standard_errors(names)}
    (directory / "linear.json").write_text(json.dumps(_json(about), indent=2, ensure_ascii=False) + "\n")
    load = [
        "import numpy as np",
        'plane = np.load("plane.npz")',
        "def model(X):",
        '    return X @ plane["coefficients"] + plane["intercept"]',
    ]
    limits = ["The columns of X are in `linear.json`; a category has one column of zeros and ones for each word."]
    return ["plane.npz", "linear.json"], Notes(load, limits)


def _columns_of(what: Exported) -> list[Any]:
    """Return names of the columns of X: of a category (column, word), the word None where none has the column."""
    words = what.version.training.get("words", {})
    names: list[Any] = []
    for feature in what.fingerprint.get("features", ()):
        if isinstance(feature, str):
            names.append(feature)
        elif isinstance(feature, dict) and "category" in feature:
            known = list(feature.get("known") or words.get(feature["category"], []))
            known += [None] * (int(feature["columns"]) - len(known))
            names += [(feature["category"], word) for word in known[1 if feature["coding"] == "treatment" else 0 :]]
    return names


def _label(name: Any) -> str | None:
    return name if isinstance(name, str) else None if name[1] is None else f"{name[0]}={name[1]}"


def _json(value: Any) -> Any:
    """Return a value with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


def _saved(load: Sequence[str], limits: Sequence[str]) -> Callable[[Path, Exported], Written]:
    def write(directory: Path, what: Exported) -> Written:
        learner = what.learner()
        learner.restore(what.state)
        return list(learner.save_to(directory)), Notes(load, limits)

    return write


def _river(directory: Path, what: Exported) -> Written:
    from headrace.learn.adapters.river import made_again

    # Raises where another installation wrote it.
    made_again(what.state, classes=_parameter(what, "classes"), names=_parameter(what, "names"))
    (directory / "model.pickle").write_bytes(np.asarray(what.state["pickle"], np.uint8).tobytes())
    load = ["import pickle", 'with open("model.pickle", "rb") as file:', "    model = pickle.load(file)"]
    limits = ["`model.pickle` is a pickle: opening it runs what is in it. Open it only where you know who wrote it."]
    return ["model.pickle"], Notes(load, limits)


def _of_ones_own(directory: Path, what: Exported) -> Written:
    load = ["import numpy as np", 'model = np.load("state.npz")']
    return [], Notes(load, ["A learner of one's own: its class and its arrays are all there is."])


_KERAS = [
    "import os",
    'os.environ.setdefault("KERAS_BACKEND", "jax")',
    "import keras",
    'model = keras.saving.load_model("model.keras")',
]
_TORCH = [
    "import torch",
    'states = torch.load("state_dict.pt", weights_only=True)',
    "# model = the class of your own; model.load_state_dict(states['module'])",
    'model = states["module"]',
]
_WRITERS: dict[str, Callable[[Path, Exported], Written]] = {
    "SklearnLearner": _scikit_learn,
    "KMeans": _kmeans,
    "LinearRegression": _linear,
    "KerasLearner": _saved(_KERAS, ["Where generators of Dropout stood is in `weights.npz` only."]),
    "TorchLearner": _saved(_TORCH, ["PyTorch keeps no architecture: `module.txt` says what the module was."]),
    "RiverLearner": _river,
}


def _parameter(what: Exported, name: str) -> Any:
    return what.fingerprint.get("parameters", {}).get(name)


# -- the card ---------------------------------------------------------------------------------------------------------


def _card(what: Exported, files: Sequence[str], notes: Notes) -> Iterator[str]:
    version, declared = what.version, what.fingerprint
    yield f"# {version.model}, version {version.version}"
    yield ""
    yield from _table(
        {
            "learner": declared.get("learner"),
            "features, in the order of X": declared.get("features"),
            "target": declared.get("target"),
            "classes": _parameter(what, "classes"),
            "learned rows": version.rows,
            "up to position": version.position,
            "up to offsets": version.learned,
            "cut": version.cut or declared.get("cut"),
            "learned from": declared.get("inputs"),
            "tags": version.tags or None,
            "hash of the state": version.hash,
        }
    )
    yield from ("", "## Where it comes from", "")
    yield from (f"- version {version.version}: {version.reason}, by {version.by}" for version in what.lineage)
    yield from ("", "## How good it is", "")
    yield from _metrics(version.metrics)
    yield from (
        "",
        "## How to load it",
        "",
        "In this folder, without Headrace:",
        "",
        "```python",
        *notes.load,
        "```",
        "",
    )
    yield f"Files: {', '.join(f'`{file}`' for file in files) or 'none of a library'}; `state.npz` has the arrays alone."
    yield from ("", "## Libraries it learned with", "")
    yield from _table(version.libraries)
    yield from ("", "## What to know", "")
    yield "- Probabilities are the model's own, uncalibrated."
    yield "- It knows the rows above and no later ones; how good it is on others, these figures do not say."
    yield "- Features must be made as they were: columns in the order above, images scaled as declared."
    yield from (f"- {limit}" for limit in notes.limits)


def _table(values: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in values.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"| {name} | {text.replace('|', chr(92) + '|')} |"


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    if not metrics:
        yield "It was not evaluated while it learned (`model.evaluate(stream)`)."
    for stream, values in metrics.items():
        yield f"On «{stream}»:"
        yield ""
        yield from _table({key: value for key, value in values.items() if key not in ("labels", "confusion")})
        if values.get("confusion"):
            yield from ("", "Confusion (rows are the truth):", "", *_confusion(values["labels"], values["confusion"]))


def _confusion(labels: Sequence[Any], flat: Sequence[int]) -> Iterator[str]:
    k = len(labels)
    yield "| | " + " | ".join(map(str, labels)) + " |"
    yield "|" + "---|" * (k + 1)
    for i, label in enumerate(labels):
        yield f"| {label} | " + " | ".join(map(str, flat[i * k : (i + 1) * k])) + " |"
