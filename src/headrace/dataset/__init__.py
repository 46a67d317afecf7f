"""A topic as a data set: batches of its rows for a model's ``fit``, ``evaluate`` and ``predict``, or for a loop.

It is what `tfio.IODataset.from_kafka` (existing rows) and `KafkaGroupIODataset` (rows as they arrive, consumer groups,
``stream_timeout``) are for TensorFlow, with the rows' own types: bytes are tensors, numbers are numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.clock import duration_us
from headrace.dataset.examples import Examples, recut, shuffled
from headrace.dataset.groups import Positions
from headrace.dataset.opening import Finder
from headrace.dataset.reading import Chunk, Place, Reader, Start
from headrace.errors import DeclarationError
from headrace.learn.features import Features, depend_on_the_log
from headrace.plan.task import StreamPlan

if TYPE_CHECKING:
    from headrace.pipeline.app import App

logger = logging.getLogger("headrace")

SHUFFLED_ROWS = 10_000
POLL_SECONDS = 0.05
FIND_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Reading:
    """Which rows a data set reads, and how often; see `Dataset`.

    Attributes:
        idle: seconds without rows after which a live one ends; None: never.
        live: whether it goes on with rows as they arrive.
    """

    group: str | None = None
    wait: bool = False
    idle: float | None = None
    start: Start = "earliest"
    epochs: int = 1
    live: bool = False

    @classmethod
    def of(
        cls,
        *,
        group: str | None,
        wait: bool,
        idle_timeout: str | float | timedelta | None,
        start: Start,
        epochs: int,
        until: Literal["caught-up"] | None,
    ) -> Reading:
        """As the user says it.

        Raises:
            DeclarationError: it makes no sense.

        >>> Reading.of(group=None, wait=False, idle_timeout="9 s", start="earliest", epochs=1, until=None).live
        True
        """
        idle = None if idle_timeout is None else _seconds(idle_timeout)
        if until not in (None, "caught-up"):
            raise DeclarationError(f"until={until!r}", advice='Give "caught-up" or nothing.')
        live = until is None and (wait or idle is not None)
        if start not in ("earliest", "latest") and (isinstance(start, bool | str) or start < 0):
            raise DeclarationError(f"start={start!r}", advice='Give "earliest", "latest" or an offset.')
        _count("epochs", epochs)
        if epochs > 1 and live and idle is None:
            raise DeclarationError(
                f"epochs={epochs} of rows that never end",
                advice='Say where the first ends: until="caught-up", or idle_timeout="9 s".',
            )
        if group is not None and (not isinstance(group, str) or not group):
            raise DeclarationError(f"group={group!r} is no name")
        return cls(group, wait, idle, start, epochs, live)


@dataclass
class Dataset:
    """Batches of a stream's rows; iterating begins anew each time: at ``start``, or where the group is.

    Without features a batch is an Arrow record batch; with them ``X``, or ``(X, y)`` where there is a target. `arrow`,
    `keras`, `torch` and `tf` give the same rows in other forms. Made by `Stream.dataset`, which says what the arguments
    are.

    Attributes:
        skipped: rows of the newest iteration that were left out, since their label is missing or a feature cannot be
            made; the first reasons are warnings of the logger ``headrace``.
    """

    app: App = field(repr=False)
    plan: StreamPlan
    batch_size: int
    features: Features | None
    target: str | None
    reading: Reading
    shuffle: int = 0
    seed: int = 0
    drop_remainder: bool = False
    skipped: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        _count("batch_size", self.batch_size)
        if self.features is None and self.target is not None:
            raise DeclarationError(
                f"target={self.target!r} without features", advice="Name features=[…]; Arrow batches hold all columns."
            )
        if self.features is not None and depend_on_the_log(self.features):
            raise DeclarationError(
                f"what the features of a data set of {self.plan.topic} are is left to the rows that a model learns",
                advice="Say it: hr.category(…, known=[…]), hr.vector(…, size=…).",
            )
        if self.shuffle and self.reading.live:
            raise DeclarationError(
                "rows that are still to come cannot be shuffled",
                advice='Shuffle what is there: until="caught-up", without idle_timeout.',
            )

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def batches(self, *, pass_: int = 0) -> Iterator[Any]:
        """What iterating gives.

        Args:
            pass_: which of several passes over the same rows this is: each is shuffled in its own way.
        """
        for data in self._data(self.features, self.target, pass_):
            yield _record_batch(data[0]) if self.features is None else data if len(data) > 1 else data[0]

    def arrow(self) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow record batches, whatever the features: all that were inserted, with all their columns."""
        return (_record_batch(data[0]) for data in self._data(None, None, 0))

    def arrays(self, *, pass_: int = 0) -> Iterator[tuple[Array, ...]]:
        """``(X,)`` or ``(X, y)``, with ``X`` in float32, as networks want it; of a data set with features."""
        for X, *y in self._data(self.features, self.target, pass_):
            yield (np.asarray(X, np.float32), *y)

    def keras(self) -> Any:
        """What a Keras model's `fit`, `evaluate` and `predict` take, on any back end.

        Each of the model's epochs is a pass over the data set; ``fit(…, epochs=3)`` and ``dataset(…, epochs=3)`` are
        both possible. The last batch is smaller, and compiled for its own shape by JAX; ``drop_remainder=True`` leaves
        it out. Batches are asked for somewhat ahead, which a group counts as consumed.

        Raises:
            MissingExtra: Keras is not installed.
        """
        from headrace.dataset.frameworks import keras_data

        return keras_data(self)

    def torch(self) -> Any:
        """A `torch.utils.data.IterableDataset` of batches, for ``DataLoader(…, batch_size=None)``.

        With several workers each gives a part of the batches; with a group that is refused.

        Raises:
            MissingExtra: PyTorch is not installed.
        """
        from headrace.dataset.frameworks import torch_data

        return torch_data(self)

    def tf(self) -> Any:
        """A `tf.data.Dataset` of batches. Their types are seen from the first one, which is waited for.

        Raises:
            DeclarationError: TensorFlow is not installed.
        """
        from headrace.dataset.frameworks import tensorflow_data

        return tensorflow_data(self)

    # -- iterating ------------------------------------------------------------------------------------------------

    def _data(self, features: Features | None, target: str | None, pass_: int) -> Iterator[tuple[Any, ...]]:
        found = self._find()
        self.skipped = 0
        if found is None:
            return
        reader, waited = found
        with closing(reader):
            group = self.reading.group
            positions = None if group is None else reader.positions(group)
            try:
                yield from self._epochs(reader, positions, waited, features, target, pass_)
            finally:
                if positions is not None:
                    positions.close()

    def _find(self) -> tuple[Reader, bool] | None:
        """A reader of the topic and whether it had to be waited for; None when it did not come in time.

        Raises:
            LogError: there is no such topic, and nobody wants to wait for it.
        """
        since = time.monotonic()
        with closing(Finder(self.app, self.plan.topic)) as finder:
            waited = False
            while (reader := finder.find(wait=self.reading.live or self.reading.wait)) is None:
                if not self.reading.wait:
                    raise finder.missing()
                if not waited:
                    logger.info("waiting for the topic %s", self.plan.topic)
                waited = True
                if self.reading.idle is not None and time.monotonic() - since >= self.reading.idle:
                    return None
                time.sleep(FIND_SECONDS)
            return reader, waited

    def _epochs(
        self,
        reader: Reader,
        positions: Positions | None,
        waited: bool,
        features: Features | None,
        target: str | None,
        pass_: int,
    ) -> Iterator[tuple[Any, ...]]:
        start = self._start(reader, positions, waited)
        end = None if self.reading.live else reader.end()
        epochs = self.reading.epochs
        for epoch in range(epochs):
            reader.seek(start)
            examples = Examples(self.plan.topic, self.plan.operations, features, target, tell=epoch == 0)
            # A group has consumed what all epochs have: its position moves in the last one.
            kept = positions if epoch == epochs - 1 else None
            pieces = examples.pieces(self._chunks(reader, end, kept))
            if self.shuffle:
                generator = np.random.default_rng((self.seed, pass_ * epochs + epoch))
                pieces = shuffled(pieces, self.shuffle, generator, start)
            left_over = False
            for piece in recut(pieces, self.batch_size):
                left_over = self.drop_remainder and piece.rows < self.batch_size
                if not left_over:
                    yield piece.data
                    # The next one is asked for: this one is consumed.
                    if kept is not None:
                        kept.commit(piece.after(piece.rows - 1))
            if epoch == 0:
                self.skipped = examples.skipped
            if kept is not None and not left_over:
                kept.commit(reader.place)
            end = reader.place if end is None else end

    def _start(self, reader: Reader, positions: Positions | None, waited: bool) -> Place:
        """Where the group is, else where reading starts; a topic that was waited for is read from its first row."""
        reading = self.reading
        place = None if positions is None else positions.read()
        if place is None:
            return reader.begin("earliest" if waited and reading.start == "latest" else reading.start)
        held = reader.held(place)
        if held is None:
            logger.warning(
                "the group «%s» has read further than %s goes: the topic is another one; it begins anew",
                reading.group,
                self.plan.topic,
            )
            return reader.begin(reading.start)
        if any(held[number] > offset for number, offset in place.items() if number in held):
            logger.warning("rows of %s were dropped before the group «%s» read them", self.plan.topic, reading.group)
        return held

    def _chunks(self, reader: Reader, end: Place | None, positions: Positions | None) -> Iterator[Chunk]:
        """Rows up to a place; without one as they arrive, until nothing has come for the time-out."""
        quiet_since: float | None = None
        while end is None or not reader.reached(end):
            chunks = reader.read(end, POLL_SECONDS)
            if chunks:
                quiet_since = None
                yield from chunks
                continue
            if positions is not None:
                positions.flush()
            if end is None and self.reading.idle is not None:
                # Counted from the first look that found nothing: what is done with a batch is no idleness of the topic.
                quiet_since = quiet_since if quiet_since is not None else time.monotonic()
                if time.monotonic() - quiet_since >= self.reading.idle:
                    return


def _record_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


def _seconds(duration: str | float | timedelta) -> float:
    try:
        return duration_us(timedelta(seconds=duration) if isinstance(duration, int | float) else duration) / 1e6
    except (ValueError, TypeError) as error:
        raise DeclarationError(
            f"idle_timeout={duration!r}: {error}", advice='Give seconds, a timedelta, or words such as "9 s".'
        ) from error


def _count(name: str, number: object) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise DeclarationError(f"{name}={number!r}", advice="Give a whole number of at least 1.")


def shuffle_rows(shuffle: int | bool | None) -> int:
    """How many rows are shuffled together; 0: none.

    >>> shuffle_rows(True), shuffle_rows(500), shuffle_rows(None)
    (10000, 500, 0)
    """
    if shuffle is None or isinstance(shuffle, bool):
        return SHUFFLED_ROWS if shuffle else 0
    _count("shuffle", shuffle)
    return shuffle
