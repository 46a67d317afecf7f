"""Models of Keras as learners: the contract, what is refused, and that padding teaches nothing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")  # read by Keras when it is first imported
keras = pytest.importorskip("keras")

from tests.learners import contract  # noqa: E402

import headrace as hr  # noqa: E402
from headrace.engines.workers import pickled  # noqa: E402
from headrace.errors import BadRows, DeclarationError, LearnError  # noqa: E402
from headrace.learn.adapters import adapted  # noqa: E402
from headrace.learn.adapters import keras as with_options  # noqa: E402
from headrace.learn.base import adopt, declared_with  # noqa: E402
from headrace.learn.state import dump_state, load_state, state_hash  # noqa: E402

L = keras.layers
ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(7)
X = RNG.normal(size=(96, 36))
LABELS = (X[:, 0] + X[:, 1] > 0).astype(np.int64) + (X[:, 2] > 0)
WORDS = np.array(["few", "some", "tons"])[LABELS]
ON_JAX = keras.backend.backend() == "jax"


def network(*layers: Any, loss: Any, optimizer: Any = "sgd", shape: tuple[int, ...] = (36,)) -> Any:
    model = keras.Sequential([keras.Input(shape), *layers])
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def mlp(rate: float = 0.3) -> Any:
    layers = [L.Dense(16, "relu"), L.Dropout(rate), L.Dense(3, "softmax")]
    return network(*layers, loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.Adam(0.01))


def cnn() -> Any:
    layers = [L.Conv2D(4, 3, strides=2, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dense(3)]
    return network(*layers, loss=keras.losses.CategoricalCrossentropy(from_logits=True), shape=(6, 6, 1))


def regressor() -> Any:
    return network(L.Dense(8, "tanh"), L.GaussianNoise(0.1), L.Dense(1), loss="mse", optimizer="rmsprop")


def normalized() -> Any:
    layers = [L.Dense(8), L.BatchNormalization(), L.Activation("relu"), L.Dense(1)]
    return network(*layers, loss=keras.losses.BinaryCrossentropy(from_logits=True))


@functools.cache
def declared(build: Callable[..., Any], classes: tuple[Any, ...] | None, options: tuple[tuple[str, Any], ...]) -> Any:
    keras.utils.set_random_seed(5)
    return adapted(with_options(build(), **dict(options)), classes=classes)


def make(build: Callable[..., Any], classes: tuple[Any, ...] | None = None, **options: Any) -> hr.Learner:
    """Copies of one declaration: they share what is compiled."""
    return copy.deepcopy(declared(build, classes, tuple(options.items())))  # type: ignore[no-any-return]  # cached


CASES: dict[str, tuple[Callable[[], hr.Learner], Any]] = {
    "dropout and Adam": (partial(make, mlp, ("few", "some", "tons")), WORDS),
    "in mini-batches": (partial(make, mlp, (0, 1, 2), batch_size=16, epochs=2), LABELS),
    "convolution": (partial(make, cnn, (0, 1, 2)), LABELS),
    "regressor": (partial(make, regressor), X[:, 0] * 2),
    "batch normalization": (partial(make, normalized, (0, 1)), np.minimum(LABELS, 1)),
}


@pytest.mark.parametrize("check", contract({case: (build, X, y) for case, (build, y) in CASES.items()}))
def test_contract(check: Callable[[], None]) -> None:
    check()


# -- what is taken -----------------------------------------------------------------------------------------------


def uncompiled() -> Any:
    return keras.Sequential([keras.Input((4,)), L.Dense(2)])


def unbuilt() -> Any:
    model = keras.Sequential([L.Dense(2, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def of_two() -> Any:
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], L.Dense(1)(L.concatenate([a, b])))
    model.compile("sgd", "mse")
    return model


def to_two() -> Any:
    a = keras.Input((2,))
    model = keras.Model(a, [L.Dense(1)(a), L.Dense(1)(a)])
    model.compile("sgd", ["mse", "mse"])
    return model


def ending(units: int, loss: Any, activation: str | None = None) -> Any:
    return network(L.Dense(units, activation), loss=loss, optimizer=keras.optimizers.Adam(0.05))


def open_sized() -> Any:
    return network(L.GlobalAveragePooling1D(), L.Dense(1), loss="mse", shape=(None, 2))


def sequence() -> Any:
    return network(L.Dense(2), loss="mse", shape=(3, 2))


@pytest.mark.parametrize(
    ("build", "classes", "words"),
    [
        (uncompiled, [0, 1], r"not compiled.*model\.compile"),
        (unbuilt, [0, 1], r"no weights yet.*keras\.Input"),
        (of_two, None, "2 inputs"),
        (to_two, None, "several losses"),
        (partial(ending, 3, "sparse_categorical_crossentropy"), None, r"tells classes apart.*classes="),
        (partial(ending, 3, "sparse_categorical_crossentropy"), range(4), "3 outputs for 4 classes"),
        (partial(ending, 3, "sparse_categorical_crossentropy"), [1], "two classes or more"),
        (partial(ending, 1, "binary_crossentropy"), range(3), "two classes apart by one output"),
        (partial(ending, 3, "mse"), None, "3 outputs for one number"),
        (partial(ending, 3, "crossentropy"), range(3), "which cross-entropy"),
        (partial(ending, 3, ["crossentropy"]), range(3), "which cross-entropy"),
        (open_sized, None, "without open sizes"),
        (sequence, None, "one vector a row"),
        (lambda: with_options(mlp(), batch_size=0), range(3), "batch_size=0"),
    ],
    ids=(
        *("not compiled", "not built", "two inputs", "two outputs", "no classes", "too many classes", "one class"),
        *("three classes of one output", "three numbers", "which cross-entropy", "of one in a list"),
        *("an open size", "a sequence", "no rows in a batch"),
    ),
)
def test_what_cannot_be_taken_is_refused_when_it_is_declared(
    build: Callable[[], Any], classes: Any, words: str
) -> None:
    with pytest.raises(DeclarationError, match=f"(?s){words}"):
        hr.App("x", log="memory://").model("m", build(), features=["a"], classes=classes)


def test_the_users_model_stays_as_it_is() -> None:
    model = mlp()
    before = [np.array(get_weight) for get_weight in model.get_weights()]
    learner = adapted(model, classes=range(3))
    learner.learn(X, LABELS)
    assert all((a == b).all() for a, b in zip(before, model.get_weights(), strict=True))
    held = state_hash(learner.state())
    model.train_on_batch(X, LABELS)
    learner.learn(X[:0], LABELS[:0])
    assert state_hash(learner.state()) == held
    learner.learn(X, LABELS)  # JAX has not given its arrays away


@pytest.mark.parametrize("pretrained", [False, True], ids=["as it is", "pretrained"])
def test_a_model_that_was_trained_answers_at_once(pretrained: bool) -> None:
    fresh = adapted(with_options(mlp(), pretrained=pretrained), classes=range(3))
    assert fresh.ready == pretrained
    trained = mlp(0.0)
    trained.fit(X, LABELS, epochs=2, verbose=0)
    learner = adapted(trained, classes=range(3))
    assert learner.ready
    assert (learner.predict(X[:64]) == trained.predict(X[:64], verbose=0).argmax(axis=1)).all()
    trained.train_on_batch(X[:32], LABELS[:32])
    learner.learn(X[:32], LABELS[:32])  # with the moments of the optimizer
    assert np.allclose(probabilities(learner, X), trained.predict(X, verbose=0), atol=1e-6)


def test_a_model_that_learned_nothing_does_not_answer() -> None:
    with pytest.raises(LearnError, match=r"learned nothing yet(?s:.*)pretrained"):
        adapted(mlp(), classes=range(3)).predict(X)


class Doubled(keras.layers.Layer):  # type: ignore[misc]  # Keras declares no types
    def call(self, rows: Any) -> Any:
        return rows * 2


class Own(keras.Model):  # type: ignore[misc]  # Keras declares no types
    def __init__(self, units: int = 4, **more: Any) -> None:
        super().__init__(**more)
        self.units = units
        self.first, self.last = L.Dense(units, "relu"), L.Dense(3, "softmax")

    def call(self, rows: Any) -> Any:
        return self.last(self.first(rows))

    def get_config(self) -> dict[str, Any]:
        return {"units": self.units}


def own() -> Any:
    model = Own()
    model(np.zeros((1, 36), np.float32))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def functional() -> Any:
    rows = keras.Input((36,))
    inner = keras.Sequential([keras.Input((36,)), L.Dense(8, "relu"), L.Lambda(lambda x: x / 2)])
    model = keras.Model(rows, L.Dense(3, "softmax")(inner(rows) + Doubled()(L.Dense(8)(rows))))
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def frozen() -> Any:
    model = network(L.Dense(8, "relu"), L.Dense(3, "softmax"), loss="sparse_categorical_crossentropy")
    model.layers[0].trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


@pytest.mark.parametrize("build", [mlp, own, functional, frozen], ids=["mlp", "own class", "functional", "frozen"])
def test_models_of_every_kind_learn_as_keras_alone(build: Callable[..., Any]) -> None:
    model = build(0.0) if build is mlp else build()
    learner = adapted(model, classes=range(3))
    for n in (32, 20):
        learner.learn(X[:n], LABELS[:n])
        model.train_on_batch(X[:n].astype(np.float32), LABELS[:n])
    assert np.allclose(probabilities(learner, X), model.predict(X, verbose=0), atol=1e-6)


# -- targets and outputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "loss", "activation", "classes"),
    [
        (3, "sparse_categorical_crossentropy", "softmax", ("few", "some", "tons")),
        (3, "categorical_crossentropy", "softmax", ("few", "some", "tons")),
        (3, keras.losses.SparseCategoricalCrossentropy(from_logits=True), None, (0, 1, 2)),
        (3, "categorical_hinge", None, (0, 1, 2)),
        (3, "mse", None, (0, 1, 2)),
        (1, "binary_crossentropy", "sigmoid", ("no", "yes")),
        (1, keras.losses.BinaryCrossentropy(from_logits=True), None, (False, True)),
        (1, "hinge", "tanh", (-1, 1)),
    ],
    ids=["sparse", "one-hot", "logits", "categorical hinge", "squares", "binary", "binary logits", "hinge"],
)
def test_labels_are_mapped_to_what_the_loss_takes(
    units: int, loss: Any, activation: str | None, classes: tuple[Any, ...]
) -> None:
    keras.utils.set_random_seed(3)
    learner: Any = adapted(with_options(ending(units, loss, activation), epochs=60), classes=classes)
    labels = np.array(classes)[LABELS if len(classes) == 3 else (LABELS > 0).astype(int)]
    learner.learn(X, labels)
    assert (learner.predict(X) == labels).mean() > 0.75
    assert learner.predict(X).dtype == labels.dtype
    if loss in ("hinge", "categorical_hinge", "mse"):
        assert "predict_proba" not in learner.traits.offers
        return
    chances = learner.predict_proba(X)
    assert chances.shape == (96, len(classes))
    assert np.allclose(chances.sum(axis=1), 1, atol=1e-5)
    assert (learner.classes[chances.argmax(axis=1)] == learner.predict(X)).all()


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.array(["few"] * 95 + ["none"]), "'none' is none of the classes"),
        (np.zeros(96), "labels of type float64"),
        (None, "there is none"),
    ],
    ids=["another label", "numbers for texts", "no target"],
)
def test_unknown_labels_change_nothing(y: Any, words: str) -> None:
    learner = make(mlp, ("few", "some", "tons"))
    before = state_hash(learner.state())
    with pytest.raises(BadRows, match=words):
        learner.learn(X, y)
    assert state_hash(learner.state()) == before


# -- updates -----------------------------------------------------------------------------------------------------


def trained_apart(model: Any, *cuts: Any) -> list[Any]:
    for rows, y, weights in cuts:
        model.train_on_batch(rows.astype(np.float32), y, weights)
    return [np.array(get_weight) for get_weight in model.get_weights()]


REDUCTIONS = ["sum_over_batch_size", "sum", "mean_with_sample_weight"]
# Each of them is compiled by itself: every size once in the short form, and every reduction.
SHORT = {("sum_over_batch_size", 5), ("sum", 33), ("mean_with_sample_weight", 1), ("sum_over_batch_size", 64)}
UPDATES = [
    pytest.param(reduction, n, marks=[] if (reduction, n) in SHORT else pytest.mark.slow)
    for reduction in REDUCTIONS
    for n in (1, 5, 33, 64)
]


@pytest.mark.parametrize(("reduction", "n"), UPDATES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_padded_update_is_the_update_of_its_rows(reduction: str, n: int, weighted: bool) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    model = network(L.Dense(8, "relu", kernel_regularizer="l2"), L.Dense(3, "softmax"), loss=loss)
    learner: Any = adapted(model, classes=range(3))
    weights = RNG.random(n).astype(np.float32) if weighted else None
    learner.learn(X[:n], LABELS[:n], sample_weight=weights)
    expected = trained_apart(model, (X[:n], LABELS[:n], weights))
    given = [value for name, value in learner.state().items() if name.startswith("variable.")]
    assert all(np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(expected, given, strict=True))


def test_where_rows_influence_one_another_an_update_has_its_rows_only() -> None:
    keras.utils.set_random_seed(1)
    model = normalized()
    learner = adapted(model, classes=[0, 1])
    learner.learn(X[:37], np.minimum(LABELS, 1)[:37])
    expected = trained_apart(model, (X[:37], np.minimum(LABELS, 1)[:37, None], None))
    state = [value for name, value in learner.state().items() if name.startswith("variable.")]
    order = [*model.trainable_variables, *model.non_trainable_variables]
    assert all((keras.ops.convert_to_numpy(a) == b).all() for a, b in zip(order, state, strict=True))
    assert len(expected) == len(state)


def test_a_cut_is_split_in_order() -> None:
    model = network(L.Dense(3, "softmax"), loss="sparse_categorical_crossentropy")
    learner = adapted(with_options(model, batch_size=10), classes=range(3))
    learner.learn(X[:25], LABELS[:25])
    cuts = [(X[s], LABELS[s], None) for s in (slice(0, 10), slice(10, 20), slice(20, 25))]
    kernel, _ = trained_apart(model, *cuts)
    assert np.allclose(learner.state()["variable.000.kernel"], kernel, atol=1e-6)  # type: ignore[arg-type]  # an array


@pytest.mark.skipif(not ON_JAX, reason="only JAX compiles for each shape")
@pytest.mark.slow
def test_ragged_cuts_are_compiled_by_powers_of_two() -> None:
    learner: Any = adapted(mlp(), classes=range(3))
    for n in range(1, 33):
        learner.learn(X[:n], LABELS[:n])
    assert learner._program._step._cache_size() == 6


@pytest.mark.parametrize("weights", [[1.0, -1.0], [np.nan, 1.0], [1.0]], ids=["negative", "NaN", "too few"])
def test_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    learner: Any = make(mlp, (0, 1, 2))
    before = state_hash(learner.state())
    with pytest.raises(BadRows, match="weight"):
        learner.learn(X[:2], LABELS[:2], sample_weight=np.array(weights))
    assert state_hash(learner.state()) == before


# -- states and declarations -------------------------------------------------------------------------------------


def test_dropout_goes_on_where_it_was() -> None:
    straight, first = make(mlp, (0, 1, 2)), make(mlp, (0, 1, 2))
    for learner in (straight, first):
        learner.learn(X[:32], LABELS[:32])
    resumed = adapted(mlp(), classes=range(3))  # other weights, until it is restored
    resumed.restore(load_state(dump_state(first.state())))
    for learner in (straight, resumed):
        learner.learn(X[32:], LABELS[32:])
    assert state_hash(straight.state()) == state_hash(resumed.state())


def test_a_state_of_another_network_is_refused() -> None:
    learner = make(mlp, (0, 1, 2))
    before = state_hash(learner.state())
    state = learner.state()
    for other in (
        {**state, "variable.001.bias": np.zeros(3, np.float32)},
        {k: v for k, v in state.items() if k != "learned"},
    ):
        with pytest.raises(LearnError, match=r"shape|missing"):
            learner.restore(other)
    assert state_hash(learner.state()) == before


BUILDERS = {"mlp": mlp, "cnn": cnn, "normalized": normalized, "functional": functional, "own": own}
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
import pickle
builds, classes = pickle.loads(sys.stdin.buffer.read())
from headrace.learn.adapters import adapted
print(json.dumps({name: adapted(build(), classes=classes[name]).parameters() for name, build in builds.items()}))
"""


@pytest.mark.slow
def test_a_declaration_is_the_same_in_another_process() -> None:
    classes = {name: range(2) if name == "normalized" else range(3) for name in BUILDERS}
    mine = {name: adapted(build(), classes=classes[name]).parameters() for name, build in BUILDERS.items()}
    backwards = pickle.dumps((dict(reversed(BUILDERS.items())), classes))  # layers get other automatic numbers
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(sys.path)], input=backwards, capture_output=True, timeout=120
    )
    assert child.returncode == 0, child.stderr.decode()
    assert json.loads(child.stdout) == json.loads(json.dumps(mine))


def twice(x: Any) -> Any:
    return x * 2


def off(true: Any, predicted: Any) -> Any:
    """Return a loss of somebody's own."""
    return keras.ops.mean(keras.ops.abs(true - predicted), axis=-1)


class Off(keras.losses.Loss):  # type: ignore[misc]  # Keras declares no types
    def call(self, true: Any, predicted: Any) -> Any:
        return off(true, predicted)


class Halved(keras.optimizers.SGD):  # type: ignore[misc]  # Keras declares no types
    pass


SENT: dict[str, tuple[Callable[[], Any], Any]] = {
    **{name: (build, np.minimum(LABELS, 1) if name == "normalized" else LABELS) for name, build in BUILDERS.items()},
    "frozen": (frozen, LABELS),
    "regressor": (regressor, X[:, 0]),
    "loss of one's own": (lambda: network(L.Dense(1, activation=twice), loss=off), X[:, 0]),
    "classes of one's own": (lambda: network(Doubled(), L.Dense(1), loss=Off(), optimizer=Halved(0.1)), X[:, 0]),
    "schedule": (
        lambda: network(
            L.Dense(3, "softmax", kernel_regularizer="l2"),
            loss=["sparse_categorical_crossentropy"],
            optimizer=keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)),
        ),
        LABELS,
    ),
}
SENT_TO = """
import json, pickle, sys
sys.path[:] = [path for path in json.loads(sys.argv[1]) if path]
import headrace
from headrace.learn.state import state_hash
for learner, X, y in pickle.load(sys.stdin.buffer):
    begun = state_hash(learner.state())
    learner.learn(X, y)
    print(begun, state_hash(learner.state()), learner.predict(X[:64]).tolist(), json.dumps(learner.parameters()))
"""


@pytest.mark.parametrize("names", [["classes of one's own"], pytest.param(list(SENT), marks=pytest.mark.slow)])
def test_a_learner_is_sent_to_another_process_with_all_it_has_learned(names: list[str]) -> None:
    learners, said = [], []
    for build, y in (SENT[name] for name in names):
        learner: Any = adapted(build(), classes=None if y.dtype == float else range(int(y.max()) + 1))
        learner.learn(X[:32], y[:32])
        learners.append((learner, X, y))
    sent = pickled(learners)
    for learner, _, y in learners:
        begun = state_hash(learner.state())
        learner.learn(X, y)
        hashed = state_hash(learner.state())
        said.append(f"{begun} {hashed} {learner.predict(X[:64]).tolist()} {json.dumps(learner.parameters())}")
    # The tests' classes are not found there: they are in what was sent.
    paths = json.dumps([path for path in sys.path if Path(path) != ROOT])
    child = subprocess.run(
        [sys.executable, "-c", SENT_TO, paths], input=sent, capture_output=True, timeout=120, cwd="/"
    )
    assert child.returncode == 0, child.stderr.decode()
    for name, mine, its in zip(names, said, child.stdout.decode().splitlines(), strict=True):
        assert its == mine, name


def test_a_learner_is_not_made_on_another_back_end() -> None:
    recipe = make(regressor)._program.recipe()  # type: ignore[attr-defined]  # a learner of Keras
    with pytest.raises(LearnError, match=r"(?s)on theano .* KERAS_BACKEND=theano"):
        dataclasses.replace(recipe, backend="theano").program()


def test_two_declarations_differ_in_what_they_say() -> None:
    said = [json.dumps(adapted(item, classes=range(3)).parameters()) for item in (mlp(), mlp(0.4), cnn(), frozen())]
    assert len(set(said)) == 4


def test_copies_learn_apart_and_alike() -> None:
    one = make(mlp, (0, 1, 2))
    one.learn(X[:32], LABELS[:32])
    other = copy.deepcopy(one)
    for _ in range(2):
        before = state_hash(one.state())
        other.learn(X, LABELS)
        assert state_hash(one.state()) == before
        one.learn(X, LABELS)
        assert state_hash(one.state()) == state_hash(other.state())
        assert (one.predict(X[:64]) == other.predict(X[:64])).all()


def test_keras_loads_what_is_saved(tmp_path: Path) -> None:
    learner: Any = make(mlp, (0, 1, 2))
    learner.learn(X[:64], LABELS[:64])
    assert learner.save_to(tmp_path / "out") == ["model.keras", "weights.npz"]
    loaded = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert np.allclose(loaded.predict(X, verbose=0), learner.predict_proba(X), atol=1e-6)
    assert int(loaded.optimizer.iterations) == 1
    assert loaded.loss == "sparse_categorical_crossentropy"
    again = adapted(loaded, classes=range(3))
    assert again.ready
    assert again.parameters() == learner.parameters()
    with np.load(tmp_path / "out" / "weights.npz", allow_pickle=False) as arrays:
        state = learner.state()
        assert all((arrays[name] == state[name]).all() for name in arrays.files)


def probabilities(learner: Any, rows: Any) -> Any:
    return learner.predict_proba(rows)


# -- going on under other parameters --------------------------------------------------------------------------------


def tuned(
    optimizer: Any = None, *, units: int = 16, loss: Any = "sparse_categorical_crossentropy", **dense: Any
) -> Any:
    layers = [L.Dense(units, "relu", **dense), L.Dense(3, "softmax")]
    return network(*layers, loss=loss, optimizer=optimizer or keras.optimizers.Adam(0.01))


def learner_of(build: Callable[[], Any], classes: Any = (0, 1, 2), **options: Any) -> Any:
    keras.utils.set_random_seed(11)
    return adapted(with_options(build(), **options), classes=classes)


def optimizer_state(learner: Any) -> dict[str, Any]:
    return {name: value for name, value in learner.state().items() if name.startswith("optimizer.")}


GOES_ON: dict[str, tuple[Callable[[], Any], dict[str, Any], bool]] = {
    "a rate": (lambda: tuned(keras.optimizers.Adam(0.5)), {}, True),
    "a schedule": (
        lambda: tuned(keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9))),
        {},
        False,
    ),
    "another optimizer": (lambda: tuned(keras.optimizers.SGD(0.5)), {}, False),
    "momentum": (lambda: tuned(keras.optimizers.Adam(0.01, beta_1=0.5)), {}, True),
    "batches and epochs": (tuned, {"batch_size": 8, "epochs": 3}, True),
    "a penalty": (lambda: tuned(kernel_regularizer=keras.regularizers.L2(0.1)), {}, True),
}


# Each compiles three programs.
OFTEN = ("a rate", "another optimizer")
SELDOM = [pytest.param(case, marks=pytest.mark.slow) for case in GOES_ON if case not in OFTEN]


@pytest.mark.parametrize("case", [*OFTEN, *SELDOM])
def test_parameters_that_say_how_it_goes_on_may_change(case: str) -> None:
    build, options, keeps = GOES_ON[case]
    before, now = learner_of(tuned), learner_of(build, **options)
    before.learn(X[:32], LABELS[:32])
    adopt(now, before.state(), before.parameters())
    assert probabilities(now, X).tolist() == probabilities(before, X).tolist()
    kept, had = optimizer_state(now), optimizer_state(before)
    moments = [name for name in had if "momentum" in name or "velocity" in name]
    same = kept.keys() == had.keys() and all(np.array_equal(kept[name], had[name]) for name in moments)
    assert same == keeps
    again = learner_of(build, **options)
    again.restore(load_state(dump_state(now.state())))
    for learner in (before, now, again):
        learner.learn(X[32:64], LABELS[32:64])
    assert state_hash(now.state()) == state_hash(again.state())
    assert probabilities(now, X).tolist() != probabilities(before, X).tolist()


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (lambda: tuned(units=8), {}, r"«model\..*units» .* 16 -> 8"),
        (lambda: tuned(loss="categorical_crossentropy"), {}, r"«loss\.?.*» of"),
        pytest.param(mlp, {}, r"«model\..*", marks=pytest.mark.slow),
        (tuned, {"classes": (0, 1, 3)}, r"the classes \[0, 1, 2\], and \[0, 1, 3\]"),
        pytest.param(
            lambda: tuned(bias_constraint="non_neg"), {}, r"«model\..*bias_constraint", marks=pytest.mark.slow
        ),
    ],
)
def test_parameters_that_decide_what_was_learned_are_refused(build: Any, options: Any, words: str) -> None:
    before, now = learner_of(tuned), learner_of(build, **options)
    before.learn(X[:32], LABELS[:32])
    fresh = state_hash(now.state())
    with pytest.raises(LearnError, match=words):
        adopt(now, before.state(), before.parameters())
    assert state_hash(now.state()) == fresh


def test_a_learner_of_before_is_made_of_the_one_of_now() -> None:
    """Layers of one's own have no form in a log: steps that were taken before are repeated with what the file has."""
    before = learner_of(own)
    now = adapted(with_options(recompiled(own(), keras.optimizers.RMSprop(0.2)), batch_size=4), classes=range(3))
    before.learn(X[:32], LABELS[:32])
    made: Any = declared_with(now, before.parameters())
    assert made is not None and made.parameters() == before.parameters()
    made.restore(before.state())
    for learner in (before, made):
        learner.learn(X[32:], LABELS[32:])
    assert state_hash(before.state()) == state_hash(made.state())
    assert declared_with(learner_of(tuned), before.parameters()) is None


def recompiled(model: Any, optimizer: Any) -> Any:
    model.compile(optimizer, model.loss)
    return model


def test_a_pipeline_goes_on_with_another_rate_and_all_of_it_is_replayed(tmp_path: Path) -> None:
    from headrace.formats.topic_formats import codec_for
    from headrace.log import open_log
    from headrace.registry.requests import put_continue
    from headrace.replay.verify import verify

    def app(rate: float) -> hr.App:
        made = hr.App("net", log=tmp_path / "net.headrace")
        rows = made.topic("rows", append=True)
        keras.utils.set_random_seed(1)
        net = network(L.Dense(4, "tanh"), L.Dense(1), loss="mse", optimizer=keras.optimizers.Adam(rate), shape=(2,))
        model = made.model("m", net, features=["a", "b"], target="y")
        model.learn(rows, every=4)
        model.predict(rows).to("predictions")
        return made

    def feed(pipeline: hr.App, first: int) -> None:
        with pipeline.start() as running:
            running.append("rows", [{"a": i % 3, "b": i % 5, "y": i % 7} for i in range(first, first + 11)])
            running.wait(60)

    feed(app(0.01), 0)
    with closing(open_log(tmp_path / "net.headrace", writer=True)) as held, held.transaction() as txn:
        put_continue(txn, "m", "me@here", 1)
    feed(app(0.1), 11)
    with closing(open_log(tmp_path / "net.headrace", writer=False, codec=codec_for())) as held:
        assert verify(app(0.1).plan(), held).result == "equal"
