"""A model's version as a value: a learner, its number and what it has learned; and what takes a version's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.learn.base import Learner
from headrace.position import Position
from headrace.step.state_codec import SHARED


@dataclass(slots=True)
class Vocabulary:
    """The facts about a model's features that rows have shown so far; all its versions share it.

    Attributes:
        words: category -> words in the order of their columns.
        sizes: vector -> its length.
    """

    words: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model at one place of its life: between two cuts.

    Attributes:
        learner: what predicts. That of the current version goes on learning, in place, when the next cut ends.
        number: the version that predictions name.
        position: of the last row it has learned; ``rows``: how many, those of the versions it goes back to included.
        known: category -> how many of the vocabulary's words it knew when it had learned.
        diverged: why it predicts nothing any more; empty where it does.
    """

    learner: Learner
    number: int = 1
    position: Position | None = None
    rows: int = 0
    known: Mapping[str, int] = field(default_factory=dict)
    vocabulary: Vocabulary = field(default_factory=Vocabulary, metadata=SHARED)
    diverged: str = ""

    @property
    def words(self) -> Mapping[str, Sequence[str]]:
        """The words that it knows, by category: those that came later have no column of it."""
        return {column: words[: self.known.get(column, 0)] for column, words in self.vocabulary.words.items()}

    @property
    def sizes(self) -> Mapping[str, int]:
        """Lengths of vectors."""
        return self.vocabulary.sizes


@dataclass(frozen=True, slots=True)
class VersionChange:
    """Another version takes the model's place at the next place between two cuts: a rollback, or one trained anew.

    Attributes:
        to: the version that takes over; None where a training came to nothing, as ``refused`` says.
        parent: the version whose state it begins with.
        artifact: where its learner's state is stored in the log; ``by``: who asks for it.
        training: of a version that was trained anew: on what; its rows are then not the parent's.
        declared: of a version that goes on under another declaration: what has changed.
    """

    to: ModelVersion | None
    parent: int
    artifact: str = ""
    by: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    refused: str = ""
    declared: str = ""


@dataclass(frozen=True, slots=True)
class VersionEnd:
    """The end of a version, for whoever runs the step to store.

    Attributes:
        version: as it was then; its learner may have gone on.
        state: of its learner then.
        learned_offsets: topic -> offset after the last row it took.
        metrics: what it was scored, where it was.
        change: what took its place; None where the next version goes on from it.
    """

    version: ModelVersion
    state: Mapping[str, Any]
    learned_offsets: Mapping[str, int]
    metrics: Mapping[str, Any]
    change: VersionChange | None = None


@dataclass(slots=True)
class Challenger:
    """A trained model that predicts beside the current one, to be compared with it.

    Attributes:
        change: what happens when it is promoted; the model is its ``to``.
        errors: of the current model and of this one, for each row that was graded since.
    """

    change: VersionChange
    errors: list[list[float]] = field(default_factory=list)

    @property
    def version(self) -> ModelVersion:
        """The model that is tried out."""
        assert self.change.to is not None
        return self.change.to
