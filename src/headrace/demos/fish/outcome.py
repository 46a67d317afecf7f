"""The outcome of a run, read from its log: graded fish, alarms, versions that were trained, mean errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.demos.fish.events import iso
from headrace.learn.linear import LinearRegression
from headrace.learn.state import load_state
from headrace.log.base import Log
from headrace.pipeline.app import App
from headrace.plan.task import column_names
from headrace.registry.versions import VersionList
from headrace.replay.lineage import kept_state
from headrace.replay.rebuild import Place, rebuild

MODEL, ONLINE = "weight", "weight-online"
SHOWN = {
    "Fish_Id": "Fish_Id",
    "Species": "Species",
    "PredictedWeight": "prediction",
    "ActualWeight": "Weight",
    "Error": "error",
    "model_version": "model_version",
}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """A version that took over, and what it was trained on.

    Attributes:
        grades: numbers of those rows of ``weight-diff``.
        ts_us: when it was made.
    """

    version: int
    rows: int
    species: list[str]
    coefficients: dict[str, float | None]
    grades: frozenset[int]
    ts_us: int

    def to_dict(self) -> Row:
        """As the demo says it in JSON."""
        names = ("version", "rows", "species", "coefficients")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        graded: rows of ``weight-diff`` that compare a fish with its weight, as they are there.
        alarms: as the demo says them in JSON.
        trainings: by version.
        online: `graded` of the model that learns every fish; None where there is none.
    """

    graded: list[Row]
    alarms: list[Row]
    trainings: list[Training]
    online: list[Row] | None = None

    @property
    def rows(self) -> list[Row]:
        """Graded fish as the demo says them in JSON."""
        return shown(self.graded)


def read_outcome(app: App, log: Log) -> Outcome:
    """Read the log of an app that runs, when nothing is on its way any more."""
    graded = _graded(app, log, "weight-diff")
    online = "weight-online-diff"
    learned = any(task.name == ONLINE for task in app.plan().models)
    alarms = [
        {
            "window_start": iso(row["window_start"]),
            "window_end": iso(row["window_end"]),
            **{name: row[name] for name in ("ErrorAvg", "Fish_Id_Start", "Fish_Id_End", "Species")},
        }
        for row in _rows(app, log, "weight-retrain")
    ]
    return Outcome(graded, alarms, _trainings(app, log, graded), _graded(app, log, online) if learned else None)


def shown(graded: Sequence[Row]) -> list[Row]:
    """Graded rows with the seed's names."""
    return [{name: row[column] for name, column in SHOWN.items()} for row in graded]


def is_graded(row: Row) -> bool:
    """Return whether a row of ``weight-diff`` compares a fish with its weight, which came in time."""
    return row["status"] in ("graded", "corrected") and row["error"] is not None


def _graded(app: App, log: Log, topic: str) -> list[Row]:
    """A fish whose weight was corrected counts once, with the weight that it has now."""
    rows = {row["grade"]: row for row in _rows(app, log, topic) if is_graded(row)}
    for row in list(rows.values()):
        rows.pop(row["supersedes"], None)
    return list(rows.values())


def _rows(app: App, log: Log, topic: str) -> list[Row]:
    rows: list[Row] = app.topic(topic).read().to_arrow().to_pylist() if topic in log.topics() else []
    return rows


# -- mean errors ---------------------------------------------------------------------------------------------------


def mean_errors(
    rows: Sequence[Mapping[str, Any]], species: Sequence[str], versions: Sequence[int] | None = None
) -> dict[str, float | None]:
    """Mean errors of each species, predicted by version 1 and by later ones; None where there is no such fish.

    Args:
        rows: with ``Species``, ``Error`` and ``model_version``.
        species: in the order in which they came; afterwards they are named the other way round.
        versions: to be taken instead of the rows' own.

    >>> rows = [{"Species": "salmon", "Error": 0.5, "model_version": 1}]
    >>> mean_errors(rows, ["salmon"])
    {'salmon_before': 0.5, 'salmon_after': None}
    """
    by = [row["model_version"] for row in rows] if versions is None else versions

    def mean(name: str, chosen: Callable[[int], bool]) -> float | None:
        errors = [
            row["Error"] for row, version in zip(rows, by, strict=True) if row["Species"] == name and chosen(version)
        ]
        return math.fsum(errors) / len(errors) if errors else None

    before = {f"{name}_before": mean(name, lambda version: version == 1) for name in species}
    return before | {f"{name}_after": mean(name, lambda version: version > 1) for name in reversed(species)}


# -- versions ------------------------------------------------------------------------------------------------------


def _trainings(app: App, log: Log, graded: Sequence[Row]) -> list[Training]:
    """Versions that were trained while rows came, each with its coefficients as R's ``lm`` names them."""
    versions = VersionList.read(log, MODEL)
    trained = [item for item in versions if item.parent is not None and item.training.get("status") == "trained"]
    if not trained:
        return []
    plan = app.plan()
    task = next(model for model in plan.models if model.name == MODEL)
    now = rebuild(plan, task, log, Place(end=True)).version
    found = []
    for item in trained:
        grades = frozenset(n for first, last in item.training["grades"] for n in range(first, last + 1))
        species = sorted({row["Species"] for row in graded if row["grade"] in grades})
        if item.version == now.number:
            learner = now.learner
        else:
            learner = copy.deepcopy(task.learner)
            learner.restore(load_state(kept_state(log, item)))
        assert isinstance(learner, LinearRegression)
        known = None if item.version == now.number else item.known
        named = learner.coefficients(column_names(task, now.words, known=known))
        found.append(Training(item.version, item.training["rows"], species, named, grades, item.ts_us))
    return found
