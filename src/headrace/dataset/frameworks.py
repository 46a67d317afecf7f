"""A data set as Keras, PyTorch and TensorFlow take it. Each of them is imported when it is asked for."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import DeclarationError, LogError, MissingExtra

if TYPE_CHECKING:
    from headrace.dataset import Dataset


def keras_data(dataset: Dataset) -> Any:
    """See `Dataset.keras`.

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

        def _batches(self) -> Iterator[tuple[Any, ...]]:
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
    """See `Dataset.torch`."""
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
            if worker is not None and worker.num_workers > 1 and dataset.reading.group is not None:
                raise DeclarationError(
                    f"{worker.num_workers} workers read for the group «{dataset.reading.group}»",
                    advice="A group's position moves in order: take num_workers=1 or 0, or no group.",
                )
            batches = dataset.arrays(pass_=self._pass)
            self._pass += 1
            if worker is not None:
                batches = itertools.islice(batches, worker.id, None, worker.num_workers)
            for arrays in batches:
                # Arrow's buffers cannot be written, a tensor's can.
                tensors = tuple(torch.from_numpy(one if one.flags.writeable else one.copy()) for one in arrays)
                yield tensors if len(tensors) > 1 else tensors[0]

    return TopicBatches()


def tensorflow_data(dataset: Dataset) -> Any:
    """See `Dataset.tf`."""
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
        tf.TensorSpec((None, *one.shape[1:]), tf.string if one.dtype == object else one.dtype) for one in first
    )
    signature = specs if len(specs) > 1 else specs[0]
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(1)


def _first(dataset: Dataset) -> tuple[Any, ...]:
    """The first batch, which counts as consumed by nobody; without one, what shows the numbers of dimensions."""
    batches = dataset.arrays()
    try:
        for arrays in batches:
            return arrays
    finally:
        batches.close()  # type: ignore[attr-defined]  # it is a generator, whose end closes the log
    nothing = np.empty((0, 0), np.float32)
    return (nothing,) if dataset.target is None else (nothing, np.empty(0, np.float32))


def _nothing(dataset: Dataset) -> LogError:
    reading = dataset.reading
    if reading.group is not None:
        advice = f"Has the group «{reading.group}» read it all? Another group reads again; epochs: dataset(epochs=…)."
    else:
        advice = "Is the topic empty? To wait for rows: idle_timeout=…" if reading.idle is None else "Wait longer."
    return LogError(f"no rows of {dataset.plan.topic} came that are examples", advice=advice)


def _refuse_without_features(dataset: Dataset) -> None:
    if dataset.features is None:
        raise DeclarationError(
            f"the data set of {dataset.plan.topic} has no features", advice="Say what X is: features=[…]."
        )
