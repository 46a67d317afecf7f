"""What a version has learned, as numbers: coefficients, centres, weights; and how far from another version's they are.

They are read of what the log keeps of the declaration, and of states; where it does not keep them, that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from headrace.errors import HeadraceError
from headrace.learn.linear import LinearRegression
from headrace.plan.task import column_names
from headrace.registry.versions import VersionList, VersionRecord
from headrace.replay.lineage import metrics_in
from headrace.replay.version_state import about, described_diff, newest_scores, state_diff
from headrace.ui.read.models import VersionLine, no_model, version_lines
from headrace.ui.read.moment import Moment
from headrace.ui.read.predictor import BESIDE
from headrace.ui.read.relations import Finder, versions_of
from headrace.ui.read.states import States, VersionState, step_then

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
        position, rows: up to which, and how many, it has learned.
        note: which state of the version these are of; empty where it is the one that is, or was, there.
        against: the version that they are compared with; None where there is none.
        centres: points of a k-means in all columns; ``columns``: names of these.
        before: the centres of the other version.
        why_not: why nothing is known of them; empty where it is.
    """

    version: int
    position: str | None = None
    rows: int | None = None
    note: str = ""
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


def parameters_of(states: States, moment: Moment, model: str, number: str = "") -> Parameters:
    """Return the numbers of a version as it is, or was then, and how far they have moved since the one before it.

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
    try:
        state = states.of(moment, model, str(chosen.version))
        with state.lock:
            mine = _numbers(state)
    except HeadraceError as error:
        return Parameters(chosen.version, why_not=f"{error.message}. {BESIDE}")
    theirs = _of_other(states, moment, other)
    against = other.version if theirs and other else None
    by, centres, before = state.by, mine.get("centers"), theirs.get("centers")
    names = list(state.task.feature_names)
    found = [_parameter(name, array, theirs.get(name)) for name, array in mine.items()]
    about = Parameters(by.number, state.position, by.rows, state.note, against, found)
    if centres is None or centres.ndim != 2 or centres.shape[1] < 2:
        return about
    if len(names) != centres.shape[1]:
        names = [f"column {i}" for i in range(centres.shape[1])]
    fits = before is not None and before.shape[1:] == centres.shape[1:]
    earlier = before[:MOST_CENTRES].tolist() if fits and before is not None else []
    return replace(about, columns=names, centres=centres[:MOST_CENTRES].tolist(), before=earlier)


def _of_other(states: States, moment: Moment, other: VersionRecord | None) -> dict[str, np.ndarray[Any, Any]]:
    if other is None:
        return {}
    try:
        return _numbers(states.of(moment, other.model, str(other.version)))
    except HeadraceError:  # its state is not kept
        return {}


def _numbers(state: VersionState) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a model has learned: a regression's coefficients by their names, else the arrays of its state."""
    learner = state.by.learner
    if isinstance(learner, LinearRegression):
        if not learner.ready:
            return {}
        named = learner.coefficients(column_names(state.task, state.by.words))
        return {name: np.array(np.nan if value is None else value) for name, value in named.items()}
    found = {}
    for name, value in learner.state().items():
        array = np.asarray(value) if value is not None else np.empty(0)
        if array.dtype.kind in "fiu" and array.dtype != np.uint8 and array.size:
            found[name] = array.copy()  # it may be learning on
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
        notes: which states of the versions these are.
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
    notes: list[str] = field(default_factory=list)


def comparison_of(states: States, moment: Moment, model: str, a: str, b: str) -> Comparison:
    """Return two versions side by side, by their numbers or tags, as they are, or were then.

    Raises:
        LogError: there was no such model or version.
    """
    finder = Finder(moment)
    versions = finder.versions(model)
    if versions.current is None:
        raise no_model(moment, model)
    left, right = versions.find(a), versions.find(b)
    moved: list[dict[str, Any]] = []
    numbers: list[Parameter] = []
    why_not = ""
    try:
        theirs, mine = (states.of(moment, model, str(each.version)) for each in (left, right))
        with theirs.lock, mine.lock:
            moved = state_diff(dict(theirs.by.learner.state()), dict(mine.by.learner.state()))
            before = _numbers(theirs)
            numbers = [_parameter(name, array, before.get(name)) for name, array in _numbers(mine).items()]
        notes = [f"version {each.by.number}: {each.note}" for each in (theirs, mine) if each.note]
    except HeadraceError as error:
        notes, why_not = [], f"{error.message}. {error.advice}"
    told = described_diff(versions, left, right, *(_about(moment, versions, each) for each in (left, right)))
    lines = {line.number: line for line in version_lines(finder, model, [left.version, right.version])}
    metrics = [
        (stream, metric, pair["a"], pair["b"], pair["change"])
        for stream, pairs in told["metrics"].items()
        for metric, pair in pairs.items()
        if pair["change"] is not None
    ]
    positions = [(name, pair["a"], pair["b"]) for name, pair in told["positions"].items()]
    a_line, b_line = lines[left.version], lines[right.version]
    return Comparison(model, a_line, b_line, metrics, positions, told["parameters"], moved, numbers, why_not, notes)


def _about(moment: Moment, versions: VersionList, version: VersionRecord) -> dict[str, Any]:
    """Return what was known of a version then."""
    found = about(moment.log, versions, version)
    if moment.live or version.ended_us is not None:
        return found
    step, topic = step_then(moment, version.model), f"{version.model}-metrics"
    lines = newest_scores(moment.log, version.model, end=moment.end(topic))
    own = [line for line in lines if line.get("model_version") == version.version]
    unknown = {"rows": None, "learned": None, "size": None}
    return found | unknown | {
        "position": step.position if step is not None else None,
        "hash": step.hash if step is not None else None,
        "metrics": metrics_in(own),
    }  # fmt: skip
