"""A topic as a data set: batches of its rows for a model's ``fit``, ``evaluate`` and ``predict``, or for a loop.

It is what `tfio.IODataset.from_kafka` (existing rows) and `KafkaGroupIODataset` (rows as they arrive, consumer groups,
``stream_timeout``) are for TensorFlow, with the rows' own types: bytes are tensors, numbers are numbers.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from headrace.arrays import Array
from headrace.clock import duration_us
from headrace.dataset.examples import Data, Examples, recut, shuffled
from headrace.dataset.groups import Positions
from headrace.dataset.readers import Chunk, ChunkReader, Start, TopicFinder, TopicPosition
from headrace.errors import DeclarationError, LogError, MissingExtra
from headrace.event_log import event
from headrace.learn.features import Features, depend_on_the_log, feature_text
from headrace.log.base import Log
from headrace.plan.plan import Plan
from headrace.plan.task import StreamPlan

logger = logging.getLogger("headrace")

SHUFFLED_ROWS = 10_000
POLL_SECONDS = 0.05
FIND_SECONDS = 0.2
# X, X and y, or rows as Arrow.
Given: TypeAlias = Array | tuple[Array, ...] | pa.RecordBatch


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The rows that a data set reads, and how often; see `Stream.dataset`.

    Raises:
        DeclarationError: it makes no sense.

    >>> ReadOptions(idle_timeout="9 s").live
    True
    """

    group: str | None = None
    wait: bool = False
    idle_timeout: str | float | timedelta | None = None
    start: Start = "earliest"
    epochs: int = 1
    until: Literal["caught-up"] | None = None

    def __post_init__(self) -> None:
        idle = self.idle
        if self.until not in (None, "caught-up"):
            raise DeclarationError(f"until={self.until!r}", advice='Give "caught-up" or nothing.')
        start = self.start
        if start not in ("earliest", "latest") and (isinstance(start, bool | str) or start < 0):
            raise DeclarationError(f"start={start!r}", advice='Give "earliest", "latest" or an offset.')
        _count("epochs", self.epochs)
        if self.epochs > 1 and self.live and idle is None:
            raise DeclarationError(
                f"epochs={self.epochs} of rows that never end",
                advice='Say where the first ends: until="caught-up", or idle_timeout="9 s".',
            )
        if self.group is not None and (not isinstance(self.group, str) or not self.group):
            raise DeclarationError(f"group={self.group!r} is no name")

    @property
    def idle(self) -> float | None:
        """Seconds without rows after which a live one ends; None: never."""
        return None if self.idle_timeout is None else _seconds(self.idle_timeout)

    @property
    def live(self) -> bool:
        """True where it goes on with rows as they arrive."""
        return self.until is None and (self.wait or self.idle is not None)


@dataclass(repr=False)
class Dataset:
    """Batches of a stream's rows. Iterating begins anew each time: at ``start``, or where the group is.

    Without features a batch is an Arrow record batch; with them ``X``, or ``(X, y)`` where there is a target. `arrow`,
    `keras`, `torch` and `tf` give the same rows in other forms. Made by `Stream.dataset`, which says what the arguments
    are.

    Attributes:
        skipped: rows of the newest iteration that were left out, since their label is missing or a feature cannot be
            made; the first reasons are warnings of the logger ``headrace``.
    """

    plan: Plan = field(repr=False)
    stream: StreamPlan
    log_in_memory: Callable[[], Log | None] = field(repr=False)
    batch_size: int
    features: Features | None
    target: str | None
    options: ReadOptions
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
                f"what the features of a data set of {self.stream.topic} are is left to the rows that a model learns",
                advice="Say it: hr.category(…, known=[…]), hr.vector(…, size=…).",
            )
        if self.shuffle and self.options.live:
            raise DeclarationError(
                "rows that are still to come cannot be shuffled",
                advice='Shuffle what is there: until="caught-up", without idle_timeout.',
            )

    def __repr__(self) -> str:
        features, options = self.features, self.options
        columns = feature_text(features) if features is not None else "all columns"
        said = [
            str(self.stream),
            f"batches of {self.batch_size}",
            columns + (f" → {self.target}" if self.target else ""),
        ]
        said += [f"{options.epochs} epochs"] if options.epochs > 1 else []
        said += ["shuffled"] if self.shuffle else []
        said += [f"group {options.group}"] if options.group else []
        return f"Dataset({', '.join([*said, *(['live'] if options.live else [])])})"

    def __iter__(self) -> Iterator[Given]:
        return self.batches()

    def batches(self, *, pass_: int = 0) -> Iterator[Given]:
        """Yield what iterating gives.

        Args:
            pass_: which of several passes over the same rows this is: each is shuffled in its own way.
        """
        for data in self._data(self.features, self.target, pass_):
            yield _record_batch(data[0]) if self.features is None else data if len(data) > 1 else data[0]

    def arrow(self) -> Iterator[pa.RecordBatch]:
        """Yield Arrow record batches, whatever the features: all rows that were inserted, with all their columns."""
        return (_record_batch(data[0]) for data in self._data(None, None, 0))

    def arrays(self, *, pass_: int = 0) -> Iterator[tuple[Array, ...]]:
        """Yield ``(X,)`` or ``(X, y)``, with ``X`` in float32, as networks want it; of a data set with features."""
        for X, *y in self._data(self.features, self.target, pass_):
            yield (np.asarray(X, np.float32), *y)

    def keras(self) -> Any:
        """Return what a Keras model's `fit`, `evaluate` and `predict` take, on any back end.

        Each of the model's epochs is a pass over the data set; ``fit(…, epochs=3)`` and ``dataset(…, epochs=3)`` are
        both possible. The last batch is smaller, and compiled for its own shape by JAX; ``drop_remainder=True`` leaves
        it out. Batches are asked for somewhat ahead, which a group counts as consumed.

        Raises:
            MissingExtra: Keras is not installed.
        """
        return keras_data(self)

    def torch(self) -> Any:
        """Return a `torch.utils.data.IterableDataset` of batches, for ``DataLoader(…, batch_size=None)``.

        With several workers each gives a part of the batches; with a group that is refused.

        Raises:
            MissingExtra: PyTorch is not installed.
        """
        return torch_data(self)

    def tf(self) -> Any:
        """Return a `tf.data.Dataset` of batches. Their types are seen from the first one, which is waited for.

        Raises:
            DeclarationError: TensorFlow is not installed.
        """
        return tensorflow_data(self)

    # -- iterating ------------------------------------------------------------------------------------------------

    def _data(self, features: Features | None, target: str | None, pass_: int) -> Iterator[Data]:
        found = self._find()
        self.skipped = 0
        if found is None:
            return
        reader, waited = found
        with closing(reader):
            group = self.options.group
            positions = None if group is None else reader.positions(group)
            try:
                yield from self._epochs(reader, positions, waited, features, target, pass_)
            finally:
                if positions is not None:
                    positions.close()

    def _find(self) -> tuple[ChunkReader, bool] | None:
        """Return a reader of the topic and whether it had to be waited for; None when it did not come in time.

        Raises:
            LogError: there is no such topic, and nobody wants to wait for it.
        """
        since = time.monotonic()
        with closing(TopicFinder(self.plan, self.stream.topic, self.log_in_memory)) as finder:
            waited = False
            while (reader := finder.find(wait=self.options.live or self.options.wait)) is None:
                if not self.options.wait:
                    raise finder.missing()
                if not waited:
                    logger.info("waiting for the topic %s", self.stream.topic, extra=event("waiting"))
                waited = True
                if self.options.idle is not None and time.monotonic() - since >= self.options.idle:
                    return None
                time.sleep(FIND_SECONDS)
            return reader, waited

    def _epochs(
        self,
        reader: ChunkReader,
        positions: Positions | None,
        waited: bool,
        features: Features | None,
        target: str | None,
        pass_: int,
    ) -> Iterator[Data]:
        start = self._start(reader, positions, waited)
        end = None if self.options.live else reader.end()
        epochs = self.options.epochs
        for epoch in range(epochs):
            reader.seek(start)
            examples = Examples(self.stream.topic, self.stream.operations, features, target, tell=epoch == 0)
            # A group has consumed what all epochs have: its position moves in the last one.
            kept = positions if epoch == epochs - 1 else None
            blocks = examples.blocks(self._chunks(reader, end, kept))
            if self.shuffle:
                generator = np.random.default_rng((self.seed, pass_ * epochs + epoch))
                blocks = shuffled(blocks, self.shuffle, generator, start)
            left_over = False
            for block in recut(blocks, self.batch_size):
                left_over = self.drop_remainder and block.rows < self.batch_size
                if not left_over:
                    yield block.data
                    # The next one is asked for: this one is consumed.
                    if kept is not None:
                        kept.commit(block.after(block.rows - 1))
            if epoch == 0:
                self.skipped = examples.skipped
            if kept is not None and not left_over:
                kept.commit(reader.position)
            end = reader.position if end is None else end

    def _start(self, reader: ChunkReader, positions: Positions | None, waited: bool) -> TopicPosition:
        """Return the group's position, else the first one; a topic that was waited for is read from its first row."""
        options = self.options
        position = None if positions is None else positions.read()
        if position is None:
            return reader.begin("earliest" if waited and options.start == "latest" else options.start)
        held = reader.held(position)
        if held is None:
            logger.warning(
                "the group «%s» has read further than %s goes: the topic is another one; it begins anew",
                options.group,
                self.stream.topic,
            )
            return reader.begin(options.start)
        if any(held[number] > offset for number, offset in position.items() if number in held):
            logger.warning("rows of %s were dropped before the group «%s» read them", self.stream.topic, options.group)
        return held

    def _chunks(self, reader: ChunkReader, end: TopicPosition | None, positions: Positions | None) -> Iterator[Chunk]:
        """Yield rows up to a position; without one as they arrive, until nothing has come for the time-out."""
        quiet_since: float | None = None
        while end is None or not reader.reached(end):
            chunks = reader.read(end, POLL_SECONDS)
            if chunks:
                quiet_since = None
                yield from chunks
                continue
            if positions is not None:
                positions.flush()
            if end is None and self.options.idle is not None:
                # Counted from the first look that found nothing: what is done with a batch is no idleness of the topic.
                quiet_since = quiet_since if quiet_since is not None else time.monotonic()
                if time.monotonic() - quiet_since >= self.options.idle:
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
    """Return how many rows are shuffled together; 0: none.

    >>> shuffle_rows(True), shuffle_rows(500), shuffle_rows(None)
    (10000, 500, 0)
    """
    if shuffle is None or isinstance(shuffle, bool):
        return SHUFFLED_ROWS if shuffle else 0
    _count("shuffle", shuffle)
    return shuffle


# -- frameworks, each imported when it is asked for --------------------------------------------------------------------


def keras_data(dataset: Dataset) -> Any:
    """Return what `Dataset.keras` promises.

    Keras takes a generator too, but only once: it reads some batches ahead to see their types and refuses an empty one.
    A data adapter is asked for an iterator in every epoch.
    """
    try:
        adapters = importlib.import_module("keras.src.trainers.data_adapters.data_adapter")
        convert = importlib.import_module("keras.src.trainers.data_adapters.data_adapter_utils")
    except ImportError as error:
        raise MissingExtra("keras", "dataset.keras()") from error
    _refuse_without_features(dataset)

    class TopicData(adapters.DataAdapter):  # type: ignore[misc,name-defined]  # Keras is imported late
        """Passes over a data set, one for each epoch of `fit`."""

        def __init__(self) -> None:
            self._pass = itertools.count()
            self._silence: warnings.catch_warnings[Any] | None = None

        def _batches(self) -> Iterator[tuple[Array, ...]]:
            some = False
            for arrays in dataset.arrays(pass_=next(self._pass)):
                some = True
                yield arrays
            if not some:
                # Keras itself fails later, with an error of its back end.
                raise _nothing(dataset)
            # A data set without a known length ends by ending. Keras takes that for a mistake and says so at once.
            self._silence = warnings.catch_warnings()
            self._silence.__enter__()
            warnings.filterwarnings("ignore", message="Your input ran out of data", category=UserWarning)

        def on_epoch_end(self) -> None:
            if self._silence is not None:
                self._silence.__exit__(None, None, None)
                self._silence = None

        def get_numpy_iterator(self) -> Any:
            return convert.get_numpy_iterator(self._batches())

        def get_jax_iterator(self) -> Any:
            return convert.get_jax_iterator(self._batches())

        def get_torch_dataloader(self) -> Any:
            return convert.get_torch_dataloader(self._batches())

        def get_tf_dataset(self) -> Any:
            return tensorflow_data(dataset)

        num_batches = None
        batch_size = dataset.batch_size
        has_partial_batch = None
        partial_batch_size = None

    return TopicData()


def torch_data(dataset: Dataset) -> Any:
    """Return what `Dataset.torch` promises."""
    try:
        torch = importlib.import_module("torch")
        data = importlib.import_module("torch.utils.data")
    except ImportError as error:
        raise MissingExtra("torch", "dataset.torch()") from error
    _refuse_without_features(dataset)

    class TopicBatches(data.IterableDataset):  # type: ignore[misc,name-defined]  # PyTorch is imported late
        """Batches as tensors; each iteration is a pass over the data set."""

        def __init__(self) -> None:
            self._pass = 0

        def __iter__(self) -> Iterator[Any]:
            worker = data.get_worker_info()
            if worker is not None and worker.num_workers > 1 and dataset.options.group is not None:
                raise DeclarationError(
                    f"{worker.num_workers} workers read for the group «{dataset.options.group}»",
                    advice="A group's position moves in order: take num_workers=1 or 0, or no group.",
                )
            batches = dataset.arrays(pass_=self._pass)
            self._pass += 1
            if worker is not None:
                batches = itertools.islice(batches, worker.id, None, worker.num_workers)
            for arrays in batches:
                # Arrow's buffers cannot be written, a tensor's can.
                tensors = tuple(torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays)
                yield tensors if len(tensors) > 1 else tensors[0]

    return TopicBatches()


def tensorflow_data(dataset: Dataset) -> Any:
    """Return what `Dataset.tf` promises."""
    try:
        tf = importlib.import_module("tensorflow")
    except ImportError as error:
        raise DeclarationError(
            "dataset.tf() needs TensorFlow, which is not installed",
            advice="pip install tensorflow; dataset.keras() works with any of Keras' back ends.",
        ) from error
    _refuse_without_features(dataset)
    first = _first(dataset)
    passes = itertools.count()

    def batches() -> Iterator[Any]:
        for arrays in dataset.arrays(pass_=next(passes)):
            yield arrays if len(arrays) > 1 else arrays[0]

    specs = tuple(
        tf.TensorSpec((None, *array.shape[1:]), tf.string if array.dtype == object else array.dtype) for array in first
    )
    signature = specs if len(specs) > 1 else specs[0]
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(1)


def _first(dataset: Dataset) -> tuple[Array, ...]:
    """Return the first batch, consumed by nobody; without one, arrays that show the numbers of dimensions."""
    batches = dataset.arrays()
    try:
        for arrays in batches:
            return arrays
    finally:
        batches.close()  # type: ignore[attr-defined]  # it is a generator, whose end closes the log
    nothing = np.empty((0, 0), np.float32)
    return (nothing,) if dataset.target is None else (nothing, np.empty(0, np.float32))


def _nothing(dataset: Dataset) -> LogError:
    options = dataset.options
    if options.group is not None:
        advice = f"Has the group «{options.group}» read it all? Another group reads again; epochs: dataset(epochs=…)."
    else:
        advice = "Is the topic empty? To wait for rows: idle_timeout=…" if options.idle is None else "Wait longer."
    return LogError(f"no rows of {dataset.stream.topic} came that are examples", advice=advice)


def _refuse_without_features(dataset: Dataset) -> None:
    if dataset.features is None:
        raise DeclarationError(
            f"the data set of {dataset.stream.topic} has no features", advice="Say what X is: features=[…]."
        )
