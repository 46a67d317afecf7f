"""Learning and predicting through an adapter against calling the library itself with the same batches.

Both on one thread, as the adapter pins it; rows a second, the median of pairs.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from river import anomaly, forest, linear_model, stream, tree
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import SGDClassifier
from sklearn.naive_bayes import MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from headrace.learn import adapters
from headrace.learn.adapters import adapted
from headrace.learn.base import Learner, pinned
from headrace.step.predictions import BLOCK_ROWS, predict_in_blocks

PAIRS = 5
BATCH, WIDTH = 64, 784
CLASSES = list(range(10))
RIVER_WIDTH = 8
RIVER: dict[str, Callable[[], Any]] = {
    "LogisticRegression": linear_model.LogisticRegression,
    "HoeffdingTreeClassifier": tree.HoeffdingTreeClassifier,
    "ARFClassifier": lambda: forest.ARFClassifier(seed=1),
    "HalfSpaceTrees": lambda: anomaly.HalfSpaceTrees(seed=1),
}
MODELS: dict[str, Callable[[], Any]] = {
    "SGDClassifier": lambda: SGDClassifier(random_state=0),
    "MLPClassifier": lambda: MLPClassifier((128,), random_state=0),
    "MultinomialNB": MultinomialNB,
    "MiniBatchKMeans": lambda: MiniBatchKMeans(10, random_state=0),
    "StandardScaler, SGDClassifier": lambda: make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
}


def run(rows: int) -> list[dict[str, Any]]:
    """Figures of each estimator: learning, then predicting."""
    chance = np.random.default_rng(1)
    batches = [
        (chance.random((BATCH, WIDTH)).astype(np.float32), chance.integers(0, 10, BATCH))
        for _ in range(max(2, rows // BATCH))
    ]
    found = []
    with threadpool_limits(1):
        for name, make in MODELS.items():
            found += _measure(name, make, batches)
        for name, make in RIVER.items():
            found += _measure_river(name, make, max(2, rows // BATCH // 8))
        found += [figure for name in NETWORKS for figure in _measure_network(name, batches)]
    return found


NETWORKS = ("keras", "torch")


def _measure_network(library: str, batches: list[Any]) -> list[dict[str, Any]]:
    """A dense network with 128 hidden units and Adam; nothing where the library is not installed."""
    if importlib.util.find_spec(library) is None:
        return []
    times: dict[str, list[tuple[float, float]]] = {"learn": [], "predict": []}
    for _ in range(PAIRS):
        learner, learn, predict = (_keras if library == "keras" else _torch)()
        learn(*batches[0])  # compiled, as ours is by its first batch
        predict(batches[0][0])
        learner.learn(*batches[0])
        learner.predict(batches[0][0])
        times["learn"].append((_seconds(learn, batches), _pinned(learner, learner.learn, batches)))
        times["predict"].append(
            (
                _seconds(lambda X, _, call=predict: call(X), batches),
                _pinned(learner, lambda X, _, model=learner: predict_in_blocks(model.predict, X), batches),
            )
        )
    return _figures(f"{library} 784-128-10", times, BATCH * len(batches), WIDTH)


def _keras() -> tuple[Learner, Callable[..., Any], Callable[[Any], Any]]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    model = keras.Sequential(
        [keras.Input((WIDTH,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    learner = adapted(model, classes=CLASSES)
    return learner, model.train_on_batch, lambda X: np.asarray(model.predict_on_batch(X)).argmax(axis=1)


def _torch() -> tuple[Learner, Callable[..., Any], Callable[[Any], Any]]:
    import torch

    torch.set_num_threads(1)
    module = torch.nn.Sequential(torch.nn.Linear(WIDTH, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    loss, theirs = torch.nn.CrossEntropyLoss(), copy.deepcopy(module)
    optimizer = torch.optim.Adam(theirs.parameters())

    def learn(X: Any, y: Any) -> None:
        optimizer.zero_grad()
        loss(theirs(torch.from_numpy(X)), torch.from_numpy(y)).backward()
        optimizer.step()

    def predict(X: Any) -> Any:
        theirs.eval()
        with torch.no_grad():
            found = theirs(torch.from_numpy(X)).argmax(1).numpy()
        theirs.train()
        return found

    own = adapters.torch(module, optimizer=torch.optim.Adam(module.parameters()), loss=loss)
    return adapted(own, classes=CLASSES), learn, predict


def _measure_river(name: str, make: Callable[[], Any], count: int) -> list[dict[str, Any]]:
    """Against River's own way through arrays, `river.stream.iter_array`."""
    chance = np.random.default_rng(2)
    batches = [(chance.random((BATCH, RIVER_WIDTH)), chance.integers(0, 2, BATCH).astype(bool)) for _ in range(count)]
    supervised = name != "HalfSpaceTrees"
    names = [f"x{i}" for i in range(RIVER_WIDTH)]

    def learn(model: Any, X: Any, y: Any) -> None:
        for row, label in stream.iter_array(X, y, feature_names=names):
            if supervised:
                model.learn_one(row, label)
            else:
                model.learn_one(row)

    def predict(model: Any, X: Any) -> None:
        answer = model.predict_one if supervised else model.score_one
        np.array([answer(row) for row, _ in stream.iter_array(X, feature_names=names)])

    times: dict[str, list[tuple[float, float]]] = {"learn": [], "predict": []}
    for _ in range(PAIRS):
        theirs, mine = make(), adapted(make(), classes=[False, True] if supervised else None, names=names)
        times["learn"].append(
            (
                _seconds(lambda X, y, model=theirs: learn(model, X, y), batches),
                _pinned(mine, lambda X, y, model=mine: model.learn(X, y if supervised else None), batches),
            )
        )
        times["predict"].append(
            (
                _seconds(lambda X, _, model=theirs: predict(model, X), batches),
                _pinned(mine, lambda X, _, model=mine: predict_in_blocks(model.predict, X), batches),
            )
        )
    return _figures(f"River {name}", times, BATCH * count, RIVER_WIDTH)


def _measure(name: str, make: Callable[[], Any], batches: list[Any]) -> list[dict[str, Any]]:
    supervised = name != "MiniBatchKMeans"
    times: dict[str, list[tuple[float, float]]] = {"learn": [], "predict": []}
    for _ in range(PAIRS):
        theirs, mine = make(), adapted(make(), classes=CLASSES if supervised else None)
        times["learn"].append(
            (
                _seconds(lambda X, y, model=theirs: _direct(model, X, y, supervised), batches),
                _pinned(mine, lambda X, y, model=mine: model.learn(X, y if supervised else None), batches),
            )
        )
        assert (theirs.predict(batches[0][0]) == mine.predict(batches[0][0])).all()
        times["predict"].append(
            (
                _seconds(lambda X, _, model=theirs: model.predict(X), batches),
                _pinned(mine, lambda X, _, model=mine: predict_in_blocks(model.predict, X), batches),
            )
        )
    return _figures(name, times, BATCH * len(batches), WIDTH)


def _figures(name: str, times: dict[str, list[tuple[float, float]]], n: int, width: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{name}: {what}",
            "reference": n / statistics.median(reference for reference, _ in pairs),
            "ours": n / statistics.median(ours for _, ours in pairs),
            "ratio": statistics.median(reference / ours for reference, ours in pairs),
            "unit": "rows/s",
            "target": 0.8,
            "details": {"batch": BATCH, "features": width, "block": BLOCK_ROWS},
        }
        for what, pairs in times.items()
    ]


def _direct(model: Any, X: Any, y: Any, supervised: bool) -> None:
    if hasattr(model, "steps"):
        for _, step in model.steps[:-1]:
            X = step.partial_fit(X, y).transform(X)
        model = model.steps[-1][1]
    if supervised:
        model.partial_fit(X, y, classes=CLASSES)
    else:
        model.partial_fit(X)


def _pinned(model: Learner, call: Callable[[Any, Any], Any], batches: list[Any]) -> float:
    """As `headrace.step.step` calls a learner: many times inside one block."""
    with pinned(model):
        return _seconds(call, batches)


def _seconds(call: Callable[[Any, Any], Any], batches: list[Any]) -> float:
    began = time.perf_counter()
    for X, y in batches:
        call(X, y)
    return time.perf_counter() - began
