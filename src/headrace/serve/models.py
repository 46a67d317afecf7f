"""The contract: what the HTTP side asks of whoever has the models.

A `Snapshot` is one model as it was after one commit. It never changes: a request takes one and answers everything from
it, so that no answer mixes two versions, whatever is swapped meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import pyarrow as pa

from headrace.errors import HeadraceError

Kind = Literal["number", "text", "bytes", "numbers"]
# What comes of a training that begins a version which answers from then on.
TAKES_OVER = ("trained", "promoted")


@dataclass(frozen=True, slots=True)
class Column:
    """A column that a model wants.

    Attributes:
        kind: numbers, words, bytes, lists of numbers.
        size: of a list of numbers, where it is fixed.
        words: the only ones that are taken; None: any.
        nullable: whether a missing value is answered too.
    """

    name: str
    kind: Kind
    size: int | None = None
    words: tuple[str, ...] | None = None
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Description:
    """A model as it is declared.

    Attributes:
        columns: those it wants, in order; none where a function of the user's makes the features.
        answers: the Arrow type of its predictions.
        classes: labels of its probabilities; None where it gives none.
        learner_text: the learner for people, with its parameters.
        topics: those it reads; ``databases``: whether the pipeline captures any, so that an LSN says something.
    """

    name: str
    learner: str
    columns: tuple[Column, ...]
    target: str | None
    answers: pa.DataType
    classes: tuple[Any, ...] | None = None
    topics: tuple[str, ...] = ()
    databases: bool = False
    learner_text: str = ""

    @property
    def plain(self) -> bool:
        """Return whether its features are numbers only, so that a matrix says it all."""
        return bool(self.columns) and all(column.kind == "number" for column in self.columns)


@dataclass(frozen=True)
class VersionInfo:
    """The version of a model that predicted.

    Attributes:
        position: of the last row it has learned; None where it has learned none.
        ts_us: when the version was made.
        headers: the same for every HTTP answer.
        model_time: ``ts_us`` as the seed writes it (UTC).

    >>> VersionInfo("weight", 2, "0/A:1", 1622620132000000).model_time
    '2021-06-02 07:48:52'
    """

    model: str
    version: int
    position: str | None
    ts_us: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = field(init=False, repr=False, compare=False)
    model_time: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pairs = [(b"headrace-model", _latin(self.model)), (b"headrace-version", str(self.version).encode())]
        if self.position is not None:
            pairs.append((b"headrace-position", self.position.encode()))
        object.__setattr__(self, "headers", tuple(pairs))
        when = datetime.fromtimestamp(self.ts_us / 1e6, UTC)
        object.__setattr__(self, "model_time", when.strftime("%Y-%m-%d %H:%M:%S"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"model": self.model, "version": self.version, "position": self.position, "model_time": self.model_time}


def _latin(text: str) -> bytes:
    """A name as a header's value: other characters than Latin-1 prints are escaped as in URLs."""
    from urllib.parse import quote

    return quote(text, safe=" !#$&'()*+,/:;=?@[]").encode()


@dataclass(frozen=True, slots=True)
class PredictedRows:
    """Predictions for the rows of a batch, by one model.

    Attributes:
        batch: the rows with ``prediction``, ``status``, ``model``, ``model_version``, ``model_position`` beside them,
            and ``probability`` where it was asked for.
        reasons: row -> why it has no prediction.
    """

    batch: pa.RecordBatch
    info: VersionInfo
    reasons: Mapping[int, str]


class Snapshot(Protocol):
    """One model after one commit. Its methods may be called from any thread, one at a time or not."""

    @property
    def info(self) -> VersionInfo: ...

    def predict(self, rows: Sequence[Sequence[Any]], *, wait: bool = False) -> list[Any]:
        """The predictions for at most 64 rows: values of `Description.columns`, in order; the bits that `answer` gives.

        Args:
            wait: whether the caller may be held up; else `TooSlow` says that it would be.

        Returns:
            For each row its prediction, or the `RowRefused` that says why there is none.

        Raises:
            NotReady: the model has learned nothing yet.
            TooSlow: ask again from a thread, with ``wait``.
        """
        ...

    def predict_batch(self, rows: pa.RecordBatch, *, probabilities: bool = False) -> PredictedRows:
        """Predict many rows."""
        ...


Change = Literal["retrain", "promote", "tag", "rollback"]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A bound: how far a model must have learned; one of the two is set.

    Attributes:
        lsn: everything committed to the databases up to there.
        topic, offset: the row of a topic at an offset.
    """

    lsn: int | None = None
    topic: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Gauge:
    """A number about the pipeline, for `GET /metrics`."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ComponentHealth:
    """One part of the pipeline, for the health routes.

    Attributes:
        kind: ``source``, ``sink`` or ``engine``.
        seconds: how long a source or a sink's destination has been away; how old the engine's last round is.
        status: one line for people.
        ended: whether the engine runs no more.
    """

    kind: str
    name: str
    seconds: float
    status: str
    ended: bool = False


class Models(Protocol):
    """Provides the models: a pipeline in this process, or a replica that follows the log of another one.

    ``current`` is called by the server's loop for every request and returns at once. `train` and `record` wait, and are
    called in threads of their own. The others may read the log.
    """

    descriptions: Mapping[str, Description]

    def ready(self, model: str | None = None) -> bool:
        """Return whether a model, or every one, can predict."""
        ...

    def health(self) -> list[ComponentHealth]:
        """Return the health of the pipeline's sources, sinks and engine, as far as it is known here."""
        ...

    def current(self, model: str) -> Snapshot:
        """Return the model that predicts now.

        Raises:
            NoModel: there is none of this name.
        """
        ...

    def version(self, model: str, version: str) -> Snapshot:
        """A version, by its number or a tag; may read the log.

        Raises:
            NoModel: there is no such model or version, or its state is not kept.
        """
        ...

    def versions(self, model: str) -> list[str]:
        """Numbers of the versions that can be asked for; reads the log."""
        ...

    def reached(self, model: str, wanted: AtLeast) -> Snapshot | None:
        """Return the model that predicts now, when it has learned that far; None: not yet, ask again."""
        ...

    def train(self, model: str, timeout: float) -> dict[str, Any]:
        """Train a new version now; returns ``status``, ``version`` and ``rows``.

        With a status of `TAKES_OVER` `current` gives that version, or a later one; others have begun only.

        Raises:
            Busy: it is being trained.
            HeadraceError: it cannot be.
        """
        ...

    def change(
        self, model: str, action: Change, timeout: float, *, by: str, version: str, tag: str, delete: bool
    ) -> dict[str, Any]:
        """Have the pipeline change a model as a person asks; returns what came of it, once that is durable.

        Args:
            action: ``retrain``, ``promote``, ``tag`` or ``rollback``.
            by: who asks.
            version, tag, delete: of a rollback, and of a tag.

        Raises:
            LogLocked: the pipeline runs in another process.
            HeadraceError: it cannot be done, or was not in time.
        """
        ...

    def record(self, topic: str, rows: pa.RecordBatch, timeout: float) -> None:
        """Append answers that were given to a topic; returns when they are durable."""
        ...

    def append(
        self, topic: str, rows: pa.RecordBatch, *, key: Sequence[str], producer_id: str, sequence: int, timeout: float
    ) -> int:
        """Append rows of a person's to a topic that the pipeline appends to; returns how many are new, once durable.

        Args:
            key: columns that identify a row.
            producer_id, sequence: name of who appends, and how many of its rows come before these; what is there
                already is skipped.

        Raises:
            DeclarationError: the topic is not declared with ``append=True``.
            LogLocked: the pipeline runs in another process.
            HeadraceError: they are not durable.
        """
        ...

    def metrics(self) -> list[Gauge]:
        """Return numbers about the pipeline."""
        ...


class NoModel(HeadraceError):
    """There is no such model, or no such version of it."""


class NotReady(HeadraceError):
    """The model has learned nothing yet."""


class Busy(HeadraceError):
    """The same is going on already."""


class TooSlow(HeadraceError):
    """This model takes long to answer, or is answering: ask it in a thread."""


class RowRefused(HeadraceError):
    """A row that cannot be answered.

    Args:
        message: why.
        column: whose value is wrong; empty where that is not known.
    """

    def __init__(self, message: str, *, column: str = "") -> None:
        super().__init__(message)
        self.column = column
