"""Asking a model from a page: a form of its columns, and predictions by the version that is there, or was there.

Where a pipeline runs in this process, or is followed by it, the model is that one's, as after its last commit. Else it
is made of the log alone (`headrace.ui.read.states`).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from headrace import plain_values
from headrace.batch import Batch
from headrace.errors import HeadraceError, LogError
from headrace.learn.base import offers_probabilities, traits_of
from headrace.plan.blueprint import declared_by_log
from headrace.plan.task import served_column
from headrace.registry.models import read_model
from headrace.row_tables import cell
from headrace.serve.models import Column, Models
from headrace.step.predictions import PredictionBatch
from headrace.ui.read.flows import Flows
from headrace.ui.read.moment import Moment
from headrace.ui.read.relations import versions_of
from headrace.ui.read.states import States, VersionState

BESIDE = "A dashboard beside the pipeline knows: headrace run FILE --ui."
LONGEST = 1 << 20
KINDS = {"number": pa.float64(), "text": pa.string(), "bytes": pa.binary(), "numbers": pa.list_(pa.float64())}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the form.

    Attributes:
        text: what stands in it.
        shape: of an image; empty of anything else.
    """

    column: Column
    text: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """What a model is asked with.

    Attributes:
        versions: those that can be asked, the newest first.
        why_not: why it cannot be asked; empty where it can.
    """

    fields: list[Field] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """A prediction.

    Attributes:
        reason: why there is none; empty where there is one.
        chances: label and probability, the most probable first.
        note: which state of the version this is by, where it is not the one that predicts in the pipeline.
    """

    prediction: str
    reason: str
    version: int
    position: str | None
    chances: list[tuple[str, float]] = field(default_factory=list)
    note: str = ""


class Predictor:
    """Asks models for pages.

    Args:
        models: of a pipeline in this process, or that is followed in it.
        states: makes them of the log alone.
    """

    def __init__(self, models: Models | None, states: States) -> None:
        self._models, self._states = models, states

    def form(self, moment: Moment, flows: Flows, model: str, given: Mapping[str, str]) -> Form:
        """Return what a model is asked with, its fields as given, else as in the newest row that it predicted."""
        try:
            columns, shapes = self._columns(moment, model)
        except HeadraceError as error:
            return Form(why_not=f"{error.message}. {BESIDE}")
        if not columns:
            return Form(why_not="a function of its pipeline's makes its features, so that its columns are not known")
        known = {} if given else _newest_row(moment, flows, model)
        fields = [
            Field(column, given.get(column.name, known.get(column.name, "")), shapes.get(column.name, ()))
            for column in columns
        ]
        versions = [str(each.version) for each in versions_of(moment, model) if each.kept or each.ended_us is None]
        return Form(fields, versions[::-1])

    def ask(self, moment: Moment, model: str, given: Mapping[str, str], version: str = "") -> Asked:
        """Predict a row.

        Args:
            given: texts by column.
            version: a number or a tag; empty: the one that is, or was, there.

        Raises:
            HeadraceError: the model cannot be asked.
        """
        columns, _ = self._columns(moment, model)
        values: dict[str, pa.Array] = {}
        for column in columns:
            try:
                value = parsed(column, given.get(column.name, ""))
            except ValueError as error:
                return Asked("", f"{column.name}: {error}", 0, None)
            values[column.name] = pa.array([value], KINDS[column.kind])
        rows = pa.RecordBatch.from_pydict(values)
        if moment.live and self._models is not None and model in self._models.descriptions:
            return self._by_pipeline(self._models, model, rows, version)
        return _predicted(self._states.of(moment, model, version), rows)

    def _columns(self, moment: Moment, model: str) -> tuple[Sequence[Column], dict[str, tuple[int, ...]]]:
        known = read_model(moment.log, model)
        if known is None:
            raise LogError(f"the log has no model «{model}»")
        shapes = {
            feature["image"]: tuple(feature["shape"])
            for feature in known["fingerprint"].get("features", [])
            if isinstance(feature, dict) and "image" in feature
        }
        if self._models is not None and model in self._models.descriptions:
            return self._models.descriptions[model].columns, shapes
        task = declared_by_log(model, known, repeats=False)[1]
        if callable(task.features):
            return (), shapes
        return [served_column(feature, task.missing) for feature in task.features], shapes

    def _by_pipeline(self, models: Models, model: str, rows: pa.RecordBatch, version: str) -> Asked:
        snapshot = models.version(model, version) if version else models.current(model)
        classes = models.descriptions[model].classes
        found = snapshot.predict_batch(rows, probabilities=classes is not None)
        return _asked(found.batch, found.reasons, found.info.version, found.info.position, classes)


def _predicted(state: VersionState, rows: pa.RecordBatch) -> Asked:
    with state.lock:
        by, learner = state.by, state.by.learner
        proba = offers_probabilities(learner)
        if not learner.ready:
            return Asked("", "it has learned nothing yet", by.number, None)
        batch = PredictionBatch(Batch.of(rows), np.arange(rows.num_rows), state.task, proba=proba)
        batch.predict_until(rows.num_rows, by)
        classes = np.asarray(traits_of(learner).classes).tolist() if proba else None
        return _asked(batch.output().rows, batch.reasons, by.number, state.position, classes, state.note)


def parsed(column: Column, text: str) -> Any:
    """Return a text of the form as a value.

    Raises:
        ValueError: why it is none.

    >>> parsed(Column("x", "number"), " 1.5 "), parsed(Column("v", "numbers"), "1, 2"), parsed(Column("w", "text"), "a")
    (1.5, [1.0, 2.0], 'a')
    """
    if len(text) > LONGEST:
        raise ValueError("it is too long")
    if column.kind == "text":
        return text
    text = text.strip()
    if not text:
        return None
    if column.kind == "bytes":
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise ValueError("these are no bytes in base64") from None
    try:
        numbers = [float(part) for part in text.strip("[]").split(",")] if column.kind == "numbers" else [float(text)]
    except ValueError:
        raise ValueError(f"{cell(text)} is no number") from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("it is no finite number")
    return numbers if column.kind == "numbers" else numbers[0]


def _asked(
    found: pa.RecordBatch,
    reasons: Mapping[int, str],
    version: int,
    position: str | None,
    classes: Sequence[Any] | None,
    note: str = "",
) -> Asked:
    prediction = plain_values.values(found.column("prediction"))[0]
    chances: list[tuple[str, float]] = []
    if classes is not None and "probability" in found.schema.names:
        given = plain_values.values(found.column("probability"))[0] or []
        chances = sorted(zip(map(str, classes), map(float, given), strict=False), key=lambda pair: -pair[1])
    reason = next(iter(reasons.values()), "" if prediction is not None else "it has learned nothing yet")
    return Asked("" if prediction is None else str(prediction), reason, version, position, chances, note)


def _newest_row(moment: Moment, flows: Flows, model: str) -> dict[str, str]:
    """Return the newest row that a model predicted, as texts of a form."""
    for topic in flows.predictions.get(model, ()):
        end = moment.end(topic)
        for _, records in moment.rows(topic, max(0, end - 1), end):
            row = plain_values.rows(records)[-1]
            return {name: _field_text(value) for name, value in row.items() if not name.startswith("__")}
    return {}


def _field_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
