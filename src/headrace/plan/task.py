"""Tasks: what a pipeline does with the rows of its topics, as frozen descriptions.

A task reads topics, runs one step, and writes topics; it has positions of its own in the log, so it can be
stopped, moved and replayed by itself. A model is a task (what it learns, what it predicts, what is derived from its
predictions); a stream written to a topic without a model is a task too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from headrace.batch import Batch
from headrace.errors import DeclarationError
from headrace.grade.scores import ScoreSpec
from headrace.learn.base import Learner, traits_of
from headrace.learn.category import Category
from headrace.learn.features import Feature, Features, column_of
from headrace.learn.images import Image, Vector
from headrace.plan.fingerprint import chain_of
from headrace.plan.operators import Initial, Node, RetrainPlan, topics_of
from headrace.plan.operators import OutputPlan as OutputPlan
from headrace.plan.operators import StreamPlan as StreamPlan
from headrace.serve.models import Column
from headrace.transform.expressions import Operation

SHADOW_COLUMNS = ("shadow_prediction", "shadow_version", "shadow_error")
PREDICTION_COLUMNS = ("prediction", "status", "model", "model_version", "model_position")
TRAINING_COLUMNS = pa.schema(
    {
        "model": pa.string(),
        "status": pa.string(),
        "version": pa.int64(),
        "previous": pa.int64(),
        "rows": pa.int64(),
        "selection": pa.string(),
        "reason": pa.string(),
        "metric": pa.string(),
        "holdout": pa.int64(),
        "old_score": pa.float64(),
        "new_score": pa.float64(),
        "by": pa.string(),
        "cause": pa.string(),
    }
)
"""Of the topic in which trainings are told of."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The places at which learning is cut: exactly one of the three is set, or none for `tick` only.

    Attributes:
        rows: after so many accepted rows.
        duration_us: at multiples of a duration of commit time.
        transaction: at each commit.
    """

    rows: int = 0
    duration_us: int = 0
    transaction: bool = False

    def __str__(self) -> str:
        if self.transaction:
            return "transaction"
        return f"{self.rows} rows" if self.rows else f"{self.duration_us / 1e6:g} s"


@dataclass(frozen=True, slots=True)
class PredictPlan:
    """A stream whose rows a model predicts, and the topics that the predictions go to.

    Attributes:
        served: a topic of predictions that were given elsewhere, over HTTP: they go where these go.
    """

    stream: StreamPlan
    outputs: tuple[OutputPlan, ...] = ()
    proba: bool = False
    served: StreamPlan | None = None


@dataclass(frozen=True, slots=True)
class EvaluatePlan:
    """Rows on which a model's predictions are compared with the truth.

    Attributes:
        stream: rows that are predicted before they are learned; None for a fixed set.
        rows: the fixed set, predicted after learning.
        every: rows between two lines of the metrics topic; 0: as the docstring of `Model.evaluate` says.
    """

    spec: ScoreSpec
    stream: StreamPlan | None = None
    rows: Batch | None = field(default=None, repr=False, compare=False)
    every: int = 0

    def __str__(self) -> str:
        count = 0 if self.rows is None else self.rows.num_rows
        rows = str(self.stream) if self.rows is None else "1 row" if count == 1 else f"{count} rows"
        return rows if rows == self.spec.name else f"{rows} as «{self.spec.name}»"


@dataclass(frozen=True, slots=True)
class Versions:
    """Rules by which a model begins a new version by itself, and by which ended ones keep their state.

    Attributes:
        every: learned rows; 0: only a reset, a rollback or another declaration begins one.
        last: kept states; those with a tag, and those that others go back to, stay in any case.
    """

    every: int = 0
    last: int = 10


@dataclass(frozen=True, slots=True)
class ModelTask:
    """One model: what it learns from, what it predicts.

    Attributes:
        sample_weight: the column that says how much a learned row counts.
        missing: ``"pass"`` gives NaN to the learner where a number is missing, ``"reject"`` refuses the row.
        nodes: what is derived from its predictions; ``learn_nodes``: nodes whose rows it learns, after operations.
        retrain: when it is trained anew; ``initial``: what it is before its first event.
        reads: the topics it read, in their order, where it is a task of before (`headrace.plan.attachments`).
    """

    name: str
    learner: Learner
    features: Features
    target: str | None = None
    cut: Cut = Cut(transaction=True)
    learn: tuple[StreamPlan, ...] = ()
    predict: tuple[PredictPlan, ...] = ()
    evaluate: tuple[EvaluatePlan, ...] = ()
    sample_weight: str | None = None
    missing: str = "reject"
    versions: Versions = Versions()
    nodes: tuple[Node, ...] = ()
    learn_nodes: tuple[tuple[int, tuple[Operation, ...]], ...] = ()
    retrain: RetrainPlan | None = None
    initial: Initial | None = None
    reads: tuple[str, ...] = ()

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics it reads, each once."""
        if self.reads:
            return self.reads
        streams = [*self.learn, *(plan.stream for plan in self.predict)]
        streams += [plan.stream for plan in self.evaluate if plan.stream is not None]
        streams += [plan.served for plan in self.predict if plan.served is not None]
        return tuple(dict.fromkeys([*(stream.topic for stream in streams), *topics_of(self.nodes)]))

    @property
    def outputs(self) -> tuple[OutputPlan, ...]:
        found = [output for plan in self.predict for output in plan.outputs]
        found += [output for node in self.nodes for output in node.outputs]
        found += [OutputPlan(self.metrics_topic)] if self.evaluate else []
        found += [OutputPlan(self.training_topic)] if self.retrain else []
        return tuple(found)

    @property
    def training_topic(self) -> str:
        """The topic in which each training is told of: what came of it, and why."""
        return f"{self.name}-training"

    @property
    def metrics_topic(self) -> str:
        """The topic of its evaluations."""
        return f"{self.name}-metrics"

    @property
    def stores_beginning(self) -> bool:
        """True where the state before its first event is stored: another process would not make the same one."""
        return self.initial is not None or traits_of(self.learner).stores_beginning

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The columns that features are made of; none where a function makes them."""
        return () if callable(self.features) else tuple(map(column_of, self.features))

    def fingerprint(self) -> dict[str, Any]:
        """Return what the numbers that the model has learned depend on, as JSON values.

        What hangs on it is no part of it (`headrace.plan.attachments`).
        """
        features = self.features
        learner = type(self.learner)
        more: dict[str, Any] = {"sample_weight": self.sample_weight} if self.sample_weight else {}
        more |= {"missing": self.missing} if self.missing != "reject" else {}
        # Recorded steps are repeated with it: another number would begin versions elsewhere than the predictions say.
        more |= {"versions": self.versions.every} if self.versions.every else {}
        more |= {"initial": self.initial.text} if self.initial else {}
        if self.learn_nodes:
            nodes = [node.describe() for node in self.nodes]
            more["learns_derived"] = [
                [chain_of(nodes, number), list(map(str, operations))] for number, operations in self.learn_nodes
            ]
        found = {
            **more,
            "learner": f"{learner.__module__}.{learner.__qualname__}",
            "parameters": self.learner.parameters(),
            "features": getattr(features, "__qualname__", repr(features))
            if callable(features)
            else [feature if isinstance(feature, str) else feature.describe() for feature in features],
            "target": self.target,
            "cut": str(self.cut),
            "inputs": sorted(str(stream) for stream in self.learn),
        }
        return dict(json.loads(json.dumps(found, default=str)))


@dataclass(frozen=True, slots=True)
class OperatorTask:
    """Rows derived from topics without a model of this pipeline; ``reads``: as of a `ModelTask`."""

    name: str
    nodes: tuple[Node, ...]
    reads: tuple[str, ...] = ()

    @property
    def topics(self) -> tuple[str, ...]:
        return self.reads or topics_of(self.nodes)

    @property
    def outputs(self) -> tuple[OutputPlan, ...]:
        return tuple(output for node in self.nodes for output in node.outputs)


@dataclass(frozen=True, slots=True)
class StreamTask:
    """A stream written to topics without a model."""

    name: str
    stream: StreamPlan
    outputs: tuple[OutputPlan, ...]

    @property
    def topics(self) -> tuple[str, ...]:
        return (self.stream.topic,)


Task = ModelTask | OperatorTask | StreamTask


def served_column(feature: str | Feature, missing: str) -> Column:
    """Return a feature as a column that those who ask the model give.

    >>> served_column("Length", "reject")
    Column(name='Length', kind='number', size=None, words=None, nullable=False)
    """
    if isinstance(feature, str):
        return Column(feature, "number", nullable=missing == "pass")
    if isinstance(feature, Category):
        return Column(feature.column, "text", words=feature.words if feature.unseen == "error" else None)
    if isinstance(feature, Image):
        return Column(feature.column, "bytes")
    return Column(feature.column, "numbers", size=feature.size if isinstance(feature, Vector) else None)


def column_names(
    task: ModelTask, words: Mapping[str, Sequence[str]], *, known: Mapping[str, int] | None = None
) -> list[str | tuple[str, str | None]]:
    """Return the columns of a model's X: of a category (column, word), and (column, None) where none has come yet.

    Args:
        words: of each category, in the order in which they came.
        known: how many of them; all by default.
    """
    assert not callable(task.features)
    names: list[str | tuple[str, str | None]] = []
    for feature in task.features:
        if not isinstance(feature, Category):
            names.append(feature if isinstance(feature, str) else feature.column)
            continue
        there = list(words.get(feature.column, feature.words))[
            : None if known is None else known.get(feature.column, 0)
        ]
        names += [(feature.column, word) for word in there] + [(feature.column, None)] * (feature.width - len(there))
    return names


def parse_cut(every: object) -> Cut:
    """Return ``every=`` as a `Cut`.

    Raises:
        DeclarationError: not ``"transaction"``, a positive row count, or a duration.

    >>> str(parse_cut("transaction")), str(parse_cut(32)), str(parse_cut("1 min"))
    ('transaction', '32 rows', '60 s')
    """
    from datetime import timedelta

    from headrace.clock import duration_us

    if every == "transaction":
        return Cut(transaction=True)
    if isinstance(every, int) and not isinstance(every, bool) and every > 0:
        return Cut(rows=every)
    if isinstance(every, str | timedelta):
        try:
            return Cut(duration_us=duration_us(every))
        except ValueError as error:
            raise DeclarationError(f"every={every!r}: {error}") from error
    raise DeclarationError(
        f"every={every!r} says nothing", advice='Give "transaction", a number of rows, or a duration such as "1 s".'
    )


def check_columns(names: Sequence[object], where: str) -> tuple[str, ...]:
    """Return column names as the user gave them, checked."""
    if isinstance(names, str):
        names = [names]
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise DeclarationError(f"{where}: {wrong[0]!r} is not a column's name")
    doubled = [name for name in names if list(names).count(name) > 1]
    if doubled:
        raise DeclarationError(f"{where}: the column «{doubled[0]}» is named twice")
    return tuple(str(name) for name in names)


def check_features(features: Sequence[object], where: str) -> tuple[str | Feature, ...]:
    """Return features as the user gave them, checked: names of columns, or what makes features of one."""
    if isinstance(features, str):
        features = [features]
    # Their order is that of the matrix's columns.
    if not isinstance(features, Sequence):
        raise DeclarationError(
            f"{where}: {features!r} is no list of columns", advice='Name columns, ["length", "height"], or a function.'
        )
    check_columns([given.column if isinstance(given, Feature) else given for given in features], where)
    return tuple(features)  # type: ignore[arg-type]  # each is one or the other, it was checked
