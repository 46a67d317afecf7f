"""What a version has learned, as numbers: coefficients, centres, weights; and how far from another version's they are.

They are read of what the log keeps of the declaration, and of states; where it does not keep them, that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.errors import HeadraceError
from headrace.learn.linear import LinearRegression
from headrace.plan.blueprint import declared_by_log
from headrace.plan.task import ModelTask, column_names
from headrace.registry.models import read_model
from headrace.registry.versions import VersionRecord
from headrace.replay.rebuild import Place, Rebuilt, rebuild
from headrace.replay.version_state import described_diff, state_diff, version_of
from headrace.step.model_version import ModelVersion
from headrace.ui.read.models import VersionLine, no_model, version_lines
from headrace.ui.read.moment import Moment
from headrace.ui.read.predictor import BESIDE
from headrace.ui.read.relations import Finder, versions_of

SHOWN = 24
MOST_CENTRES = 2_000


@dataclass(frozen=True, slots=True)
class Parameter:
    """Numbers that a version has learned.

    Attributes:
        shape: of the array; empty of a number that has a name.
        values: the first of them; ``left``: how many more there are.
        before: the same of the version that it is compared with, where it has it.
        moved: the largest change, and the length of all changes as a vector (Euclid's norm).
    """

    name: str
    shape: tuple[int, ...]
    values: list[float]
    left: int
    before: list[float] = field(default_factory=list)
    moved: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """The numbers of a version.

    Attributes:
        position: up to which it has learned in the state that the log holds.
        against: the version that they are compared with; None where there is none.
        centres: points of a k-means in all columns; ``columns``: names of these.
        before: the centres of the other version.
        why_not: why nothing is known of them; empty where it is.
    """

    version: int
    position: str | None = None
    against: int | None = None
    numbers: list[Parameter] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    centres: list[list[float]] = field(default_factory=list)
    before: list[list[float]] = field(default_factory=list)
    why_not: str = ""

    def chart(self, x: int, y: int) -> dict[str, Any]:
        """Return the centres over two columns, as a picture is drawn of them."""
        points = [*((point, True) for point in self.centres), *((point, False) for point in self.before)]
        names = [self.columns[x], f"{self.columns[y]}, version {self.version}"]
        values: list[list[float | None]] = [[point[x] for point, _ in points]]
        values.append([point[y] if mine else None for point, mine in points])
        if self.before:
            names.append(f"version {self.against}")
            values.append([None if mine else point[y] for point, mine in points])
        return {"names": names, "values": values, "time": False}


def parameters_of(moment: Moment, model: str, number: str = "") -> Parameters:
    """Return the numbers of a version, and how far they have moved since the version that it goes on from.

    Args:
        number: of the version, or a tag; empty: the one that is, or was, there.

    Raises:
        LogError: there was no such model or version.
    """
    versions = versions_of(moment, model)
    if versions.current is None:
        raise no_model(moment, model)
    chosen = versions.find(number) if number else versions.current
    other = versions.versions.get(chosen.parent or chosen.version - 1)
    known = read_model(moment.log, model)
    assert known is not None
    try:
        task = declared_by_log(model, known, repeats=False)[1]
        by = version_of(moment.log, task, chosen)
        mine = _numbers(task, by)
    except HeadraceError as error:
        return Parameters(chosen.version, why_not=f"{error.message}. {BESIDE}")
    theirs = _of_other(moment, task, other)
    position = str(by.position) if by.position else None
    centres, before = mine.get("centers"), theirs.get("centers")
    names = list(task.feature_names)
    found = [_parameter(name, array, theirs.get(name)) for name, array in mine.items()]
    shown = centres is not None and centres.ndim == 2 and centres.shape[1] >= 2
    if not shown or centres is None:
        return Parameters(by.number, position, other.version if theirs and other else None, found)
    if len(names) != centres.shape[1]:
        names = [f"column {i}" for i in range(centres.shape[1])]
    fits = before is not None and before.shape[1:] == centres.shape[1:]
    return Parameters(
        by.number,
        position,
        other.version if theirs and other else None,
        found,
        names,
        centres[:MOST_CENTRES].tolist(),
        before[:MOST_CENTRES].tolist() if fits and before is not None else [],
    )


def _of_other(moment: Moment, task: ModelTask, other: VersionRecord | None) -> dict[str, np.ndarray[Any, Any]]:
    if other is None:
        return {}
    try:
        return _numbers(task, version_of(moment.log, task, other))
    except HeadraceError:  # its state is not kept
        return {}


def _numbers(task: ModelTask, by: ModelVersion) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a model has learned: a regression's coefficients by their names, else the arrays of its state."""
    learner = by.learner
    if isinstance(learner, LinearRegression):
        if not learner.ready:
            return {}
        named = learner.coefficients(column_names(task, by.words))
        return {name: np.array(np.nan if value is None else value) for name, value in named.items()}
    found = {}
    for name, value in learner.state().items():
        array = np.asarray(value) if value is not None else np.empty(0)
        if array.dtype.kind in "fiu" and array.dtype != np.uint8 and array.size:
            found[name] = array
    return found


def _parameter(name: str, array: np.ndarray[Any, Any], other: np.ndarray[Any, Any] | None) -> Parameter:
    flat = array.astype(np.float64).reshape(-1)
    before, moved = [], None
    if other is not None and other.shape == array.shape:
        apart = flat - other.astype(np.float64).reshape(-1)
        moved = (float(np.abs(apart).max()), float(np.linalg.norm(apart)))
        before = other.reshape(-1)[:SHOWN].tolist()
    return Parameter(name, array.shape, flat[:SHOWN].tolist(), max(0, flat.size - SHOWN), before, moved)


# -- two versions side by side ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions of a model.

    Attributes:
        metrics: stream, metric, of both, change.
        positions: name, of both.
        declared: what was declared differently, a line each.
        moved: arrays of the state, as `headrace models diff` has them; ``why_not``: why they are not known.
        numbers: of ``b``, against those of ``a``.
    """

    model: str
    a: VersionLine
    b: VersionLine
    metrics: list[tuple[str, str, Any, Any, float]]
    positions: list[tuple[str, Any, Any]]
    declared: list[str]
    moved: list[dict[str, Any]]
    numbers: list[Parameter]
    why_not: str = ""


def comparison_of(moment: Moment, model: str, a: str, b: str) -> Comparison:
    """Return two versions side by side, by their numbers or tags.

    Raises:
        LogError: there was no such model or version.
    """
    finder = Finder(moment)
    versions = finder.versions(model)
    if versions.current is None:
        raise no_model(moment, model)
    left, right = versions.find(a), versions.find(b)
    told = described_diff(moment.log, versions, left, right)
    moved: list[dict[str, Any]] = []
    numbers: list[Parameter] = []
    why_not = ""
    try:
        moved = state_diff(moment.log, left, right, lambda place: _rebuilt(moment, model, place))
        known = read_model(moment.log, model)
        assert known is not None
        task = declared_by_log(model, known, repeats=False)[1]
        mine, theirs = (_numbers(task, version_of(moment.log, task, each)) for each in (right, left))
        numbers = [_parameter(name, array, theirs.get(name)) for name, array in mine.items()]
    except HeadraceError as error:
        why_not = f"{error.message}. {error.advice}"
    lines = {line.number: line for line in version_lines(finder, model, [left.version, right.version])}
    metrics = [
        (stream, metric, pair["a"], pair["b"], pair["change"])
        for stream, pairs in told["metrics"].items()
        for metric, pair in pairs.items()
        if pair["change"] is not None
    ]
    positions = [(name, pair["a"], pair["b"]) for name, pair in told["positions"].items()]
    return Comparison(
        model,
        lines[left.version],
        lines[right.version],
        metrics,
        positions,
        told["parameters"],
        moved,
        numbers,
        why_not,
    )


def _rebuilt(moment: Moment, model: str, place: Place) -> Rebuilt:
    known = read_model(moment.log, model)
    assert known is not None
    plan, task = declared_by_log(model, known, repeats=True)
    return rebuild(plan, task, moment.log, place)
