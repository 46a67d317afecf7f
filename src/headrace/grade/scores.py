"""Scores of a model's predictions: over all rows so far, and over the newest ones.

Test, then train ("prequential", Dawid 1984, https://doi.org/10.2307/2981683; Gama, Sebastião and Rodrigues 2013,
https://doi.org/10.1007/s10994-012-5320-9): each row is answered before it is learned, so its answer is a fair test.

A classifier's counts are a confusion matrix, a regressor's are sums; none of them depends on how rows were grouped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.errors import DeclarationError, near

WINDOW_ROWS = 1000
CLASSIFICATION = ("accuracy", "macro_f1")
REGRESSION = ("mae", "rmse", "r2")
_FROM_SUMS: dict[str, Callable[[Array, float], float]] = {
    "mae": lambda sums, n: sums[0] / n,
    "mse": lambda sums, n: sums[1] / n,
    "rmse": lambda sums, n: float(np.sqrt(sums[1] / n)),
    "r2": lambda sums, n: 1 - sums[1] / spread if (spread := sums[3] - sums[2] ** 2 / n) > 0 else float("nan"),
}
_FROM_COUNTS: dict[str, Callable[[Array], float]] = {}


@dataclass(frozen=True, slots=True)
class ScoreSpec:
    """Rows that are scored, and by which metrics.

    Attributes:
        name: of the rows, as the metrics topic names them.
        kind: ``"classification"`` or ``"regression"``.
        window: how many of the newest rows the windowed figures are made of.
        metrics: names; ``functions``: those that are not ours, by their names.
    """

    name: str
    kind: str
    window: int = WINDOW_ROWS
    metrics: tuple[str, ...] = CLASSIFICATION
    functions: Mapping[str, Any] = field(default_factory=dict)


LINE_TYPES: Mapping[str, pa.DataType] = {
    **dict.fromkeys(("stream", "model", "model_position"), pa.string()),
    **dict.fromkeys(("rows", "learned", "window", "model_version"), pa.int64()),
    "labels": pa.list_(pa.string()),
    "confusion": pa.list_(pa.int64()),
}
"""The types of a line of scores; what is not here is a metric, float64."""


def line_schema(spec: ScoreSpec) -> pa.Schema:
    """Return the columns of a line of scores, as a topic of metrics has it.

    >>> line_schema(score_spec("test", "regression", ["mae"], 500)).names[4:6]
    ['mae', 'window_mae']
    """
    classifies = spec.kind == "classification"
    names = ["stream", "rows", "learned", "window"]
    for metric in spec.metrics:
        whole = classifies or metric not in spec.functions  # a function of somebody's own is asked of the newest rows
        names += [metric, f"window_{metric}"] if whole else [f"window_{metric}"]
    names += ["model", "model_version", "model_position", *(["labels", "confusion"] if classifies else [])]
    return pa.schema([(name, LINE_TYPES.get(name, pa.float64())) for name in names])


def score_spec(name: str, kind: str, metrics: Sequence[Any] | None, window: int) -> ScoreSpec:
    """Check what a user asks to be scored.

    Args:
        metrics: names; functions of scikit-learn that take (y_true, y_pred); metric objects of River.

    Raises:
        DeclarationError: no such metric for this kind of model.

    >>> score_spec("test", "regression", ["mae"], 500).metrics
    ('mae',)
    """
    classifies = kind == "classification"
    if window < 1:
        raise DeclarationError(f"window={window} rows", advice="Give a positive number of rows.")
    names: list[str] = []
    functions: dict[str, Any] = {}
    if metrics is not None and not metrics:
        raise DeclarationError("metrics=[] scores nothing", advice="Name some, or leave it out.")
    for metric in metrics if metrics is not None else (CLASSIFICATION if classifies else REGRESSION):
        known = _FROM_COUNTS if classifies else _FROM_SUMS
        label = metric if isinstance(metric, str) else _name_of(metric)
        if label not in known:
            if isinstance(metric, str | int | float | None):
                raise DeclarationError(
                    f"there is no metric «{metric}» for a {kind} model{near(str(metric), known)}",
                    advice=f"Take {', '.join(known)}, or a function of sklearn.metrics.",
                )
            if not classifies and not callable(metric):
                raise DeclarationError(
                    f"River's {label} cannot be kept in a log",
                    advice=f"Take {', '.join(known)}, or a function of sklearn.metrics.",
                )
            functions[label] = metric
        names.append(label)
    return ScoreSpec(name, kind, window, tuple(dict.fromkeys(names)), functions)


def _name_of(metric: Any) -> str:
    own = getattr(metric, "__name__", None) or type(metric).__name__
    aliases = {"MAE": "mae", "MSE": "mse", "RMSE": "rmse", "R2": "r2", "Accuracy": "accuracy", "MacroF1": "macro_f1"}
    found = {"accuracy_score": "accuracy", "mean_absolute_error": "mae", "mean_squared_error": "mse", "r2_score": "r2"}
    return aliases.get(own) or found.get(own) or re.sub(r"(?<!^)([A-Z])", r"_\1", own).lower()


class Scores:
    """Answers of one stream beside the truth.

    >>> scores = Scores(ScoreSpec("test", "classification"))
    >>> scores.add(np.array([3, 1, 3]), np.array([3, 3, 3]))
    >>> scores.rows, round(scores.values()["accuracy"], 2)
    (3, 0.67)
    """

    def __init__(self, spec: ScoreSpec) -> None:
        self.spec = spec
        self.rows = 0
        self._labels: list[Any] = []
        self.confusion = np.zeros((0, 0), np.int64)
        self.newest: tuple[Array, Array] = (np.empty(0), np.empty(0))
        self.told_at = 0
        self._sums = np.zeros(4)

    def add(self, truth: Array, predictions: Array) -> None:
        """Score rows, in order; both of shape (n,)."""
        self.add_coded(*self.coded(truth, predictions))

    def coded(self, truth: Array, predictions: Array) -> tuple[Array, Array]:
        """Return rows as they are added: labels as their numbers in the order in which they come up, or numbers."""
        if self.spec.kind != "classification":
            return np.asarray(truth, np.float64), np.asarray(predictions, np.float64)
        known = {label: i for i, label in enumerate(self._labels)}
        if truth.dtype.kind == "O" or predictions.dtype.kind == "O":
            # Labels that no one type holds: in the order in which they come up, a truth before its prediction.
            flat = [_plain(label) for pair in zip(truth, predictions, strict=True) for label in pair]
            codes = np.array([known.setdefault(label, len(known)) for label in flat], np.int64).reshape(-1, 2)
            self._labels = list(known)
            return codes[:, 0], codes[:, 1]
        both = np.column_stack([truth, predictions]).reshape(-1)
        distinct, first, where = np.unique(both, return_index=True, return_inverse=True)
        values = distinct.tolist()
        for i in np.argsort(first).tolist():
            if values[i] not in known:
                known[values[i]] = len(self._labels)
                self._labels.append(values[i])
        codes = np.array([known[label] for label in values], np.int64)[where].reshape(-1, 2)
        return codes[:, 0], codes[:, 1]

    def add_coded(self, truth: Array, predictions: Array) -> None:
        """Score rows that `coded` gave."""
        if not len(truth):
            return
        self.rows += len(truth)
        if self.spec.kind == "classification":
            had, k = len(self.confusion), max(len(self.confusion), int(truth.max()) + 1, int(predictions.max()) + 1)
            if k > had:
                wide = np.zeros((k, k), np.int64)
                wide[:had, :had] = self.confusion
                self.confusion = wide
            self.confusion += np.bincount(truth * k + predictions, minlength=k * k).reshape(k, k)
        else:
            error = predictions - truth
            each = np.column_stack([np.abs(error), error**2, truth, truth**2])
            # One after the other from the last sum on: the same bits however rows come.
            self._sums = np.add.accumulate(np.concatenate([self._sums[None], each]))[-1]
        keep = self.spec.window
        if len(truth) >= keep or not len(self.newest[0]):
            self.newest = truth[-keep:], predictions[-keep:]
        else:
            self.newest = (
                np.concatenate([self.newest[0], truth])[-keep:],
                np.concatenate([self.newest[1], predictions])[-keep:],
            )

    @property
    def labels(self) -> list[Any]:
        """Labels in the order of the confusion matrix."""
        return self._labels[: len(self.confusion)]

    def values(self) -> dict[str, float | None]:
        """Return every metric over all rows, and over the newest as ``window_…``.

        None where it is not defined, as R² of one row.
        """
        if not self.rows:
            return {}
        found: dict[str, float] = {}
        windowed = self._of_window()
        for name in self.spec.metrics:
            function = self.spec.functions.get(name)
            if self.spec.kind == "classification":
                for prefix, counts in (("", self.confusion), ("window_", windowed)):
                    found[prefix + name] = (
                        _FROM_COUNTS[name](counts) if function is None else _asked(self._ask, function, counts)
                    )
            elif function is None:
                found[name] = float(_FROM_SUMS[name](self._sums, self.rows))
                found[f"window_{name}"] = float(_FROM_SUMS[name](windowed, len(self.newest[0])))
            else:
                found[f"window_{name}"] = _asked(function, *self.newest)
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    def _of_window(self) -> Array:
        truth, predictions = self.newest
        if self.spec.kind == "classification":
            k = len(self.confusion)
            return np.bincount(truth * k + predictions, minlength=k * k).reshape(k, k)
        error = predictions - truth
        return np.array([np.abs(error).sum(), (error**2).sum(), truth.sum(), (truth**2).sum()])

    def _ask(self, metric: Any, counts: Array) -> float:
        """Return a metric of scikit-learn or River, from counts."""
        truth, predictions = np.nonzero(counts)
        weights = counts[truth, predictions]
        if not hasattr(metric, "update"):
            labels = np.array(self.labels)
            return float(metric(labels[truth], labels[predictions], sample_weight=weights))
        fresh = metric.clone()
        for i, j, weight in zip(truth.tolist(), predictions.tolist(), weights.tolist(), strict=True):
            fresh.update(self.labels[i], self.labels[j], weight)
        return float(fresh.get())

    # -- kept with the task's state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return everything that scoring has changed."""
        about = {"rows": self.rows, "told_at": self.told_at, "labels": json.dumps(self.labels)}
        arrays = {"confusion": self.confusion, "truth": self.newest[0], "answers": self.newest[1], "sums": self._sums}
        return {**about, **arrays}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what ``state`` was taken of."""
        self.rows, self.told_at = int(state["rows"]), int(state["told_at"])
        self._labels = json.loads(state["labels"])
        self.confusion = np.array(state["confusion"])
        self.newest = np.array(state["truth"]), np.array(state["answers"])
        self._sums = np.array(state["sums"])


def _asked(function: Callable[..., Any], *args: Any) -> float:
    """Return what a metric of somebody's own gives; NaN where it fails on these rows."""
    try:
        return float(function(*args))
    except Exception:
        return float("nan")


def _plain(label: Any) -> Any:
    """Return a label that JSON keeps as it is: what is no number, truth value or text, as text."""
    label = label.item() if isinstance(label, np.generic) else label
    return label if isinstance(label, bool | int | float | str) else str(label)


# Of a few labels: plain numbers take a fifth of the time that NumPy's calls do.


def _accuracy(counts: Array) -> float:
    rows = counts.tolist()
    return float(sum(row[i] for i, row in enumerate(rows)) / sum(map(sum, rows)))


def _recalls(counts: Array) -> Array:
    rows = counts.sum(axis=1)
    return np.asarray(np.diag(counts)[rows > 0] / rows[rows > 0])


def _macro_f1(counts: Array) -> float:
    rows = counts.tolist()
    both = [sum(row) + sum(column) for row, column in zip(rows, zip(*rows, strict=True), strict=True)]
    scores = [2 * rows[i][i] / n for i, n in enumerate(both) if n]
    return float(sum(scores) / len(scores))


def _cohen_kappa(counts: Array) -> float:
    total = counts.sum()
    chance = float((counts.sum(axis=0) * counts.sum(axis=1)).sum()) / total**2
    return float("nan") if chance == 1 else (_accuracy(counts) - chance) / (1 - chance)


_FROM_COUNTS |= {
    "accuracy": _accuracy,
    "balanced_accuracy": lambda counts: float(_recalls(counts).mean()),
    "macro_f1": _macro_f1,
    "cohen_kappa": _cohen_kappa,
}
