"""The models of the demo, each with how it is trained by replay.

The seeds of them are https://debezium.io/blog/2023/05/02/tensorflow-mnist-classification/ (``keras``: a dense network)
and the online trainer of https://github.com/cmhh/kafkatrain (``cnn``: a convolutional one).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.arrays import Array
from headrace.demos.mnist.pipeline import PIXELS, pooled
from headrace.errors import DeclarationError, MissingExtra
from headrace.learn import adapters

CLASSES = range(10)
SEED = 0
SEEDS_L2 = 1e-4
SEEDS_RATE = 0.01

Learn = Callable[[Any, Array, Array], None]


@dataclass(frozen=True)
class Recipe:
    """One of the demo's models.

    Attributes:
        make: an untrained model.
        learn: one batch, by the library's own call.
        epochs, batch_size: of training by replay.
        features: as `headrace.App.model` takes them.
        row_by_row: what makes a learner that is updated on every row, of a model that else takes a cut at once.
    """

    make: Callable[[], Any]
    learn: Learn
    epochs: int
    batch_size: int
    features: Any = (PIXELS,)
    row_by_row: Callable[[Any], Any] | None = None

    def learner(self) -> Any:
        """An untrained model for the online mode."""
        return self.make() if self.row_by_row is None else self.row_by_row(self.make())

    def train(self, model: Any, batches: Iterable[tuple[Array, Array]], seen: Callable[[int], None]) -> Any:
        """Learn every batch; ``seen`` is told the rows of each."""
        for X, y in batches:
            self.learn(model, X.reshape(len(X), -1), y)
            seen(len(y))
        return model


def recipe(name: str) -> Recipe:
    """A model by its name on the command line.

    Raises:
        MissingExtra: the library it needs is not installed.
        DeclarationError: there is no such model.
    """
    if name not in RECIPES:
        raise DeclarationError(f"there is no model «{name}»", advice=f"There are {', '.join(RECIPES)}.")
    return RECIPES[name]


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def mlp() -> Any:
    """128 hidden units; Adam."""
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((128,), solver="adam", random_state=SEED)


def _each_row_of_mlp(model: Any) -> Any:
    return model.set_params(batch_size=1, learning_rate_init=0.0005)


def _partial_fit(model: Any, X: Array, y: Array) -> None:
    model.partial_fit(X, y, classes=np.array(CLASSES))


# -- River ------------------------------------------------------------------------------------------------------------


def one_vs_rest() -> Any:
    """A logistic regression for each digit, a row at a time, on the 196 means of 2 x 2 pixels."""
    from river.linear_model import LogisticRegression
    from river.multiclass import OneVsRestClassifier
    from river.optim import SGD

    return OneVsRestClassifier(LogisticRegression(SGD(0.1)))


def _learn_one(model: Any, X: Array, y: Array) -> None:
    names = [str(i) for i in range(X.shape[1])]
    for row, label in zip(X.tolist(), y.tolist(), strict=True):
        model.learn_one(dict(zip(names, row, strict=True)), label)


# -- Keras ------------------------------------------------------------------------------------------------------------


def keras() -> Any:
    """The first seed's network: 128 hidden units, logits of 10 classes; Adam."""
    kr = _keras()
    model = kr.Sequential([kr.Input((784,)), kr.layers.Dense(128, activation="relu"), kr.layers.Dense(10)])
    loss = kr.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=kr.optimizers.Adam(0.001), loss=loss)
    return model


def cnn(*, rate: float = SEEDS_RATE) -> Any:
    """The second seed's network: one convolution, one pooling, 100 hidden units, softmax; plain SGD, L2."""
    kr = _keras()
    layers, l2 = kr.layers, kr.regularizers.L2(SEEDS_L2)
    model = kr.Sequential(
        [
            kr.Input((784,)),
            layers.Reshape((28, 28, 1)),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", kernel_regularizer=l2),
            layers.MaxPooling2D(2, strides=1),
            layers.Flatten(),
            layers.Dense(100, activation="relu", kernel_regularizer=l2),
            layers.Dense(10, activation="softmax", kernel_regularizer=l2),
        ]
    )
    model.compile(optimizer=kr.optimizers.SGD(rate), loss=kr.losses.SparseCategoricalCrossentropy())
    return model


def _keras() -> Any:
    # The extra brings JAX; Keras alone would look for TensorFlow.
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras as kr
    except ImportError as error:
        raise MissingExtra("keras", "this model") from error
    kr.utils.set_random_seed(SEED)
    return kr


def _each_row(model: Any) -> Any:
    return adapters.keras(model, batch_size=1).learner(classes=CLASSES)


def _train_on_batch(model: Any, X: Array, y: Array) -> None:
    model.train_on_batch(X, y)


# -- PyTorch ----------------------------------------------------------------------------------------------------------


def torch(**options: Any) -> Any:
    """128 hidden units in PyTorch; Adam."""
    try:
        import torch as th
    except ImportError as error:
        raise MissingExtra("torch", "this model") from error
    th.manual_seed(SEED)
    module = th.nn.Sequential(th.nn.Linear(784, 128), th.nn.ReLU(), th.nn.Linear(128, 10))
    optimizer = th.optim.Adam(module.parameters(), lr=0.001)
    made = adapters.torch(module, optimizer=optimizer, loss=th.nn.CrossEntropyLoss(), **options)
    return made.learner(classes=CLASSES)


def _learner(model: Any, X: Array, y: Array) -> None:
    model.learn(X, y)


RECIPES = {
    "mlp": Recipe(mlp, _partial_fit, epochs=10, batch_size=32, row_by_row=_each_row_of_mlp),
    "keras": Recipe(keras, _train_on_batch, epochs=10, batch_size=50, row_by_row=_each_row),
    "torch": Recipe(torch, _learner, epochs=10, batch_size=50, row_by_row=lambda _: torch(batch_size=1)),
    "cnn": Recipe(cnn, _train_on_batch, epochs=4, batch_size=1, row_by_row=_each_row),
    "river": Recipe(one_vs_rest, _learn_one, epochs=2, batch_size=100, features=pooled),
}
