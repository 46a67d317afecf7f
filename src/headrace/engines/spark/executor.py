"""The work that Python does on an executor: it predicts and trains, and has no effects.

A task that is tried again, runs twice (speculation) or is lost with its executor changes nothing: rows come with it or
are read again, and what it returns is written by the driver alone.
"""

from __future__ import annotations

import gc
import json
import pickle
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headrace.arrays import Array
from headrace.batch import META_FIELDS, OPS, Batch
from headrace.capture.base import Piece
from headrace.capture.topics.pieces import decoded_piece
from headrace.capture.topics.reader import Offsets
from headrace.engines import workers
from headrace.engines.workers import KnownState, Measured
from headrace.foreseen import Method
from headrace.formats.topic_formats import ForeignFormats, Formats, TopicCodec, codec_for
from headrace.kafka.fetch import RangeReader, wire_messages
from headrace.kafka.ranges import TopicRange
from headrace.kafka.settings import KafkaLocation
from headrace.learn.base import pinned
from headrace.plan.task import PREDICTION_COLUMNS, ModelTask
from headrace.step.absent import FrozenVersion, predicted, without_columns
from headrace.step.outputs import Emission
from headrace.step.retraining import Trained
from headrace.wire import EncodedRows, MessageColumns

if TYPE_CHECKING:
    from pyspark import Broadcast

_warm = False


def warm() -> None:
    """Take what was imported out of the collector's sight, once in each process.

    PySpark's worker collects garbage after every task, which takes 0.2 s where scikit-learn is imported.
    """
    global _warm
    if not _warm:
        _warm = True
        gc.collect()
        gc.freeze()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class BroadcastState:
    """A large state that every executor fetches once."""

    broadcast: Broadcast[bytes]

    def read_bytes(self) -> bytes:
        """Return the state."""
        state: bytes = self.broadcast.value
        return state


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a task does with each part of the rows.

    Attributes:
        learners: as they were declared, pickled, by their models' names.
    """

    learners: Broadcast[Mapping[str, bytes]]
    known: KnownState
    method: Method
    width: int

    def __call__(self, part: Array) -> Measured:
        workers.declare(self.learners.value)
        measured = workers.predict(self.known, self.method, part, self.width)
        warm()
        return measured


def train(training: bytes) -> Trained:
    """Do a training."""
    trained = workers.train(training)
    warm()
    return trained


# -- rows that stay here -----------------------------------------------------------------------------------------------

_readers: dict[str, RangeReader] = {}
_codecs: dict[str, TopicCodec] = {}
_LARGEST = 200  # bytes that a message has beside its key and value


def codec_of(formats: Formats) -> TopicCodec:
    """Return the codec of declared formats; each process makes it once, since it remembers schemas."""
    key = json.dumps([formats.default, formats.topics, formats.prefixes, formats.keys, formats.registry], default=dict)
    if key not in _codecs:
        _codecs[key] = codec_for(formats)
    return _codecs[key]


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a task does with each range of messages: it fetches and decodes them.

    Attributes:
        named: topic -> format, where the user says it.
        decided: by topic, what its messages have decided so far.
    """

    location: KafkaLocation
    formats: Formats
    named: Mapping[str, str]
    decided: Mapping[str, bytes]

    def __call__(self, range_: TopicRange) -> Decoded:
        key = repr((self.location, sorted(self.location.settings.items())))
        if key not in _readers:
            _readers[key] = RangeReader(self.location)
        messages = wire_messages(range_.topic, _readers[key].read(range_), partition=range_.partition)
        decode = ForeignFormats(codec_of(self.formats), self.named)
        decode.restore(self.decided)
        piece = decoded_piece(messages, decode) if len(messages) else Piece[Offsets]()
        warm()
        return Decoded(piece, decode.records() == self.decided)


@dataclass(frozen=True, slots=True)
class Decoded:
    """The messages of a range, decoded.

    Attributes:
        sound: whether they decided nothing new: else what was decoded beside them may be decoded otherwise.
    """

    piece: Piece[Offsets]
    sound: bool

    def told(self, predicted: Collection[str]) -> Decoded:
        """Return what the driver needs: of rows of topics that are only predicted, their order."""
        batches = tuple(
            (topic, Batch(without_columns(batch.records, 0)) if topic in predicted and _may_stay(batch) else batch)
            for topic, batch in self.piece.batches
        )
        return Decoded(replace(self.piece, batches=batches), self.sound)


def _may_stay(batch: Batch) -> bool:
    """Return whether a step needs nothing of rows but their order: new ones, which nothing identifies."""
    names = batch.schema.names
    extra = [name for name in names if name.startswith("__") and name not in {field.name for field in META_FIELDS}]
    plain = not extra and not batch.key_columns and not set(PREDICTION_COLUMNS) & set(names)
    return plain and len(set(names)) == len(names) and bool((batch.op == OPS["c"]).all())


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows of one decoded batch, and who predicts them.

    Attributes:
        number: in the order of the rows of all segments.
        batch: number of the batch within its range; ``first``, ``rows``: which of its rows.
        runs: so many rows, predicted by that one of the versions.
    """

    number: int
    batch: int
    first: int
    rows: int
    runs: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Performance:
    """What a task does with decoded ranges: it predicts rows, and makes messages of what becomes of them.

    Attributes:
        task: the model's, pickled; ``predict``: which of its declared predictions.
        versions: of the model, by their numbers in segments.
        limits: topic -> bytes that a message may have.
    """

    task: Broadcast[bytes]
    predict: int
    versions: Broadcast[Sequence[FrozenVersion]]
    formats: Formats
    limits: Mapping[str, int]

    def __call__(self, decoded: Decoded, segments: Sequence[Segment]) -> list[tuple[int, Performed]]:
        task: ModelTask = pickle.loads(self.task.value)
        versions, codec = self.versions.value, codec_of(self.formats)
        found = []
        with pinned(task.learner):
            for segment in segments:
                _, batch = decoded.piece.batches[segment.batch]
                runs = [(rows, versions[number]) for rows, number in segment.runs]
                rows = batch.slice(segment.first, segment.rows)
                made = predicted(task, self.predict, rows, runs, task.learner)
                found.append((segment.number, performed(made, codec, self.limits)))
        warm()
        return found


@dataclass(frozen=True, slots=True)
class Performed:
    """What became of a segment's rows: as in an `Emission`, but rows to topics are messages where they may be."""

    rejected: int
    rows: list[tuple[str, Batch]]
    messages: list[tuple[str, EncodedRows]]


def performed(made: Emission, codec: TopicCodec, limits: Mapping[str, int]) -> Performed:
    """Return rows to topics as messages, but dead letters, and rows of which one may be too large for its topic."""
    rows: list[tuple[str, Batch]] = list(made.letters)
    messages: list[tuple[str, EncodedRows]] = []
    for topic, batch in made.outputs:
        encoded = None if topic.endswith(".dlq") else encode(codec, topic, batch, limits[topic])
        if encoded is None:
            rows.append((topic, batch))
        else:
            messages.append((topic, encoded))
    return Performed(made.rejected, rows, messages)


def encode(codec: TopicCodec, topic: str, batch: Batch, limit: int) -> EncodedRows | None:
    """Return rows as messages; None where one may be too large, or has other headers than the others."""
    made = codec.encode(topic, codec.format_of(topic), batch.records)
    values = [len(value) for value in made.values if value is not None]
    keys = [len(key) for key in made.keys if key is not None]
    if max(values, default=0) + 2 * max(keys, default=0) + _LARGEST > limit // 2:
        return None
    packed = MessageColumns.of(made)
    return None if packed is None else EncodedRows(packed, batch.schema, batch.num_rows, sum(values) + sum(keys))
